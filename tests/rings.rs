//! A whole port and a guest whose driver is the model's: what becomes of rings that are started, disabled, reset, many.
//! In `rings/`: of rings whose front-end keeps what was in flight, of packets beyond a limit or dropped for another reason, of what people
//! are told of all that, and of the rest of the device.

mod common;
#[path = "rings/config_change.rs"]
mod config_change;
#[path = "rings/device.rs"]
mod device;
#[path = "rings/drops.rs"]
mod drops;
#[path = "common/events.rs"]
mod events;
#[path = "common/frontend.rs"]
mod frontend;
#[path = "rings/in_flight.rs"]
mod in_flight;
#[path = "rings/inside.rs"]
mod inside;
#[path = "rings/limits.rs"]
mod limits;
#[path = "common/wire.rs"]
mod wire;

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use ovs_vhost::datapath::TxSlot;
use ovs_vhost::memory::GuestAddr;
use ovs_vhost::model::{Driver, GuestMemory, Net, PackedDriver, Virtqueue, FRONTEND_OFFSET};
use ovs_vhost::port::Switches;
use ovs_vhost::virtio::features::*;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vmm_sys_util::eventfd::EventFd;

use common::{eventually, TestPort};
use frontend::{fresh, info, start_ring};
use wire::{message, reply, VERSION};

const SPLIT: Features = VIRTIO_F_VERSION_1
    .with(VIRTIO_NET_F_MRG_RXBUF)
    .with(VIRTIO_NET_F_MQ)
    .with(VHOST_USER_F_PROTOCOL_FEATURES);
const PACKED: Features = SPLIT.with(VIRTIO_F_RING_PACKED);
const SIZE: u16 = 64;
const ROOM: u32 = 256;

fn server(name: &str) -> TestPort {
    TestPort::server(&format!("rings-{name}"), Switches::default()).0
}

fn connect(port: &TestPort) -> UnixStream {
    UnixStream::connect(std::env::temp_dir().join(port.name())).expect("a port that listens")
}

impl TestPort {
    fn counter(&self, name: &str) -> u64 {
        let mut found = None;
        self.custom_stats(&mut |key, value| {
            if key == name {
                found = Some(value);
            }
        });
        found.expect(name)
    }

    fn deliver(&self, queue: u16, frames: &[Vec<u8>]) {
        let slots: Vec<_> = frames.iter().map(|frame| TxSlot::new(frame)).collect();
        self.send(queue, &slots);
    }

    /// One burst of what the guest sent. A guest that comes back is announced first.
    fn receive(&self, queue: u16) -> Vec<Vec<u8>> {
        let is_announcement = |frame: &Vec<u8>| frame[12..14] == [0x80, 0x35];
        match self.burst(queue) {
            frames if frames.first().is_some_and(is_announcement) => self.burst(queue),
            frames => frames,
        }
    }
}

/// A guest with `pairs` queue pairs: the model's drivers, and rust-vmm's front-end to speak for them.
struct Guest<D> {
    frontend: Frontend,
    /// The same connection, for what rust-vmm's front-end does not say.
    wire: UnixStream,
    memory: Arc<GuestMemory>,
    rings: Vec<Net<D>>,
    kicks: Vec<EventFd>,
}

impl<D: Virtqueue> Guest<D> {
    /// Negotiates and hands over the memory; no ring is started.
    fn new(port: &TestPort, pairs: u16, features: Features) -> Guest<D> {
        let space = Net::<D>::space(SIZE, ROOM);
        let memory = Arc::new(GuestMemory::new(2 * u64::from(pairs) * space));
        let at = |index: u16| GuestAddr(0x1000 + u64::from(index) * space);
        let ring = |index| Net::within(Arc::clone(&memory), at(index), SIZE, ROOM, features);
        let wire = connect(port);
        let mut guest = Guest {
            frontend: Frontend::from_stream(wire.try_clone().expect("a descriptor"), 256),
            wire,
            rings: (0..2 * pairs).map(ring).collect(),
            memory: Arc::clone(&memory),
            kicks: (0..2 * pairs)
                .map(|_| EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd"))
                .collect(),
        };
        guest.negotiate(features);
        guest.hand_over_memory();
        guest
    }

    fn negotiate(&mut self, features: Features) {
        self.frontend.set_owner().expect("owner");
        let offered = self.frontend.get_features().expect("features");
        assert_eq!(offered & features.0, features.0, "offered: {offered:#x}");
        let protocol = self.frontend.get_protocol_features().expect("protocol features");
        self.frontend
            .set_protocol_features(protocol)
            .expect("protocol features");
        self.frontend.set_features(features.0).expect("features");
    }

    /// The connection breaks, and a new one is made; the memory and the drivers are the same.
    fn reconnect(&mut self, port: &TestPort, features: Features) {
        // First the old one goes: a second front-end is refused.
        let (nobody, _) = UnixStream::pair().expect("a socket pair");
        self.frontend = Frontend::from_stream(nobody.try_clone().expect("a descriptor"), 256);
        self.wire = nobody;
        self.wire = connect(port);
        self.frontend = Frontend::from_stream(self.wire.try_clone().expect("a descriptor"), 256);
        self.negotiate(features);
        self.hand_over_memory();
    }

    fn hand_over_memory(&mut self) {
        for region in self.memory.regions() {
            self.frontend.set_mem_table(&[info(&region)]).expect("memory");
        }
    }

    /// Starts a ring at `base`.
    fn start(&mut self, index: u16, base: u16) {
        let vring = usize::from(index);
        let ring = self.rings[vring].driver.config(index);
        start_ring(&self.frontend, &ring, base, &self.kicks[vring]).expect("a ring that starts");
    }

    fn enable(&mut self, index: u16, enable: bool) {
        self.frontend
            .set_vring_enable(usize::from(index), enable)
            .expect("on or off");
    }

    /// Has the first pair run from `base` on.
    fn run(&mut self, port: &TestPort, base: u16) {
        for index in 0..2 {
            self.start(index, base);
            self.enable(index, true);
        }
        self.settle();
        eventually("the pair runs", || port.connected());
    }

    /// Says what rust-vmm's front-end has no words for: a request with a number for a payload.
    fn say(&mut self, request: u32, number: Option<u64>) {
        let payload = number.map(u64::to_ne_bytes);
        let message = message(request, VERSION, payload.as_ref().map_or(&[], |bytes| bytes));
        self.wire.write_all(&message).expect("to send");
    }

    /// The same, for a request that is answered with a number.
    fn ask(&mut self, request: u32) -> u64 {
        self.say(request, None);
        u64::from_ne_bytes(reply(&mut self.wire, request))
    }

    /// Waits until all that was said is carried out.
    fn settle(&self) {
        self.frontend.get_features().expect("an answer");
    }

    /// Sends frames as a driver would that kicks each time.
    fn transmit(&mut self, index: u16, frames: &[Vec<u8>]) {
        let ring = &mut self.rings[usize::from(index)];
        frames.iter().for_each(|frame| assert!(ring.send(frame), "room"));
        ring.driver.publish();
        self.kicks[usize::from(index)].write(1).expect("a kick");
    }

    fn reap(&mut self, index: u16) -> usize {
        let ring = &mut self.rings[usize::from(index)];
        std::iter::from_fn(|| ring.driver.reap()).count()
    }
}

fn frames(from: u8, count: u8) -> Vec<Vec<u8>> {
    (from..from + count).map(|seed| vec![seed & !1; 60]).collect()
}

fn a_disabled_queue_drains<D: Virtqueue>(name: &str, features: Features) {
    let port = server(name);
    let mut guest = Guest::<D>::new(&port, 2, features);
    for index in 0..4 {
        guest.start(index, fresh(features));
    }
    // What waits in a ring that is enabled right after its start arrives.
    guest.transmit(1, &frames(0, 4));
    guest.enable(1, true);
    guest.enable(0, true);
    guest.settle();
    eventually("the first pair runs", || port.connected());
    assert_eq!(port.receive(0), frames(0, 4));
    assert_eq!(guest.reap(1), 4);

    // The second pair stays disabled, and its guest sends.
    let drops = || port.counter("ovs_vhost_rx_disabled_drops");
    port.reconfigure();
    let mut back = 0;
    for round in 1..=50 {
        guest.transmit(3, &frames(0, 30));
        eventually("the buffers come back", || {
            back += guest.reap(3);
            back == 30 * round
        });
    }
    assert_eq!((drops(), port.counter("rx_q1_good_packets")), (1500, 0));

    // Enabled, it moves packets; disabled, it drains again.
    guest.enable(3, true);
    guest.settle();
    guest.transmit(3, &frames(7, 5));
    assert_eq!(port.receive(1), frames(7, 5));
    assert_eq!(guest.reap(3), 5);
    guest.enable(3, false);
    guest.settle();
    guest.transmit(3, &frames(0, 5));
    eventually("drained again", || guest.reap(3) == 5);
    assert_eq!((drops(), port.counter("rx_q1_good_packets")), (1505, 5));

    // Receive buffers of a disabled pair are left alone, and the other pair never noticed.
    guest.rings[2].supply(8);
    guest.rings[2].driver.publish();
    guest.kicks[2].write(1).expect("a kick");
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(guest.reap(2), 0);
    guest.transmit(1, &frames(3, 3));
    assert_eq!(port.receive(0), frames(3, 3));
}

#[test]
fn what_a_guest_sends_on_a_started_but_disabled_queue_comes_back_and_is_counted() {
    a_disabled_queue_drains::<Driver>("drain-split", SPLIT);
    a_disabled_queue_drains::<Driver>("drain-event-idx", SPLIT | VIRTIO_RING_F_EVENT_IDX);
    a_disabled_queue_drains::<PackedDriver>("drain-packed", PACKED);
}

/// Resets a queue as QEMU does for its driver (VIRTIO_F_RING_RESET), to another size, with a driver that begins anew.
fn reset<D: Virtqueue>(guest: &mut Guest<D>, index: u16, size: u16, features: Features) {
    let vring = usize::from(index);
    let old = &guest.rings[vring];
    let at = GuestAddr(0x1000 + u64::from(index) * Net::<D>::space(SIZE, ROOM));
    let memory = Arc::clone(&guest.memory);
    memory.write(at, &vec![0; usize::try_from(D::ring_bytes(SIZE)).expect("small")]);
    assert!(old.driver.config(index).size == SIZE || size == SIZE);
    guest.frontend.get_vring_base(vring).expect("it stops");
    guest.rings[vring] = Net::within(memory, at, size, ROOM, features);
    // The queue stays enabled: nothing is said of that.
    guest.start(index, fresh(features));
    guest.settle();
}

fn one_ring_is_reset_while_others_run<D: Virtqueue>(name: &str, features: Features) {
    let port = server(name);
    let mut guest = Guest::<D>::new(&port, 2, features);
    for index in 0..4 {
        guest.start(index, fresh(features));
        guest.enable(index, true);
    }
    guest.settle();
    eventually("the first pair runs", || port.connected());
    port.reconfigure();
    for round in 0..40 {
        // Something is under way in every ring when one of the second pair goes.
        guest.transmit(1, &frames(round, 3));
        guest.transmit(3, &frames(round, 2));
        guest.rings[0].supply(4);
        guest.rings[0].driver.publish();
        guest.rings[2].supply(4);
        guest.rings[2].driver.publish();
        let index = if round % 2 == 0 { 3 } else { 2 };
        reset(
            &mut guest,
            index,
            if round % 4 < 2 { SIZE / 2 } else { SIZE },
            features,
        );
        assert!(port.carrier(), "nobody noticed");

        assert_eq!(port.receive(0), frames(round, 3), "the other pair moves packets");
        assert_eq!(guest.reap(1), 3);
        port.deliver(0, &frames(round, 2));
        assert_eq!(guest.rings[0].receive(), Some(vec![round & !1; 60]));
        assert!(guest.rings[0].receive().is_some());

        // The ring that was reset has forgotten what it had, and goes on.
        port.receive(1);
        guest.reap(3);
        guest.transmit(3, &frames(round, 5));
        assert_eq!(port.receive(1), frames(round, 5));
        assert_eq!(guest.reap(3), 5);
        guest.rings[2].supply(4);
        guest.rings[2].driver.publish();
        port.deliver(1, &frames(round, 1));
        assert_eq!(guest.rings[2].receive(), Some(vec![round & !1; 60]));
    }
}

#[test]
fn one_ring_is_reset_and_resized_while_the_others_run() {
    one_ring_is_reset_while_others_run::<Driver>("reset-split", SPLIT);
    one_ring_is_reset_while_others_run::<PackedDriver>("reset-packed", PACKED);
}

#[test]
fn two_hundred_and_fifty_six_vrings_run_and_move_packets() {
    let port = server("many");
    let mut guest = Guest::<Driver>::new(&port, 128, SPLIT);
    for index in 0..256 {
        guest.start(index, 0);
        guest.enable(index, true);
    }
    guest.settle();
    eventually("the first pair runs", || port.connected());
    let topology = port.reconfigure();
    assert_eq!((topology.n_rxq, topology.n_txq), (128, 128));
    for queue in 0..128 {
        assert!(port.rxq_enabled(queue));
        let (to_guest, from_guest) = (2 * queue, 2 * queue + 1);
        let seed = u8::try_from(queue).expect("small");
        guest.transmit(from_guest, &frames(seed, 2));
        assert_eq!(port.receive(queue), frames(seed, 2), "queue {queue}");
        guest.rings[usize::from(to_guest)].supply(1);
        guest.rings[usize::from(to_guest)].driver.publish();
        port.deliver(queue, &frames(seed, 1));
        let got = guest.rings[usize::from(to_guest)].receive();
        assert_eq!(got, Some(vec![seed & !1; 60]), "queue {queue}");
    }
    assert_eq!(port.counter("tx_q47_good_packets"), 1, "the last that is listed");
    assert_eq!(port.stats().tx_packets, 128, "the others count as well");
    assert!(guest.frontend.set_vring_enable(256, true).is_err());
}

#[test]
fn a_guest_has_five_hundred_and_nine_memory_slots() {
    let port = server("slots");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    assert_eq!(guest.frontend.get_max_mem_slots().expect("an answer"), 509);
    guest.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let (_, file) = guest.memory.regions().remove(0);
    // One is the rings'.
    for slot in 1..=509_u64 {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: slot << 32,
            memory_size: 4096,
            userspace_addr: (slot << 32) + FRONTEND_OFFSET,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        assert_eq!(
            guest.frontend.add_mem_region(&region).is_ok(),
            slot <= 508,
            "slot {slot}"
        );
    }
    guest.run(&port, 0);
    guest.transmit(1, &frames(0, 2));
    assert_eq!(port.receive(0), frames(0, 2));
}

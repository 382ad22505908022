//! A whole port and a guest whose driver is the model's: what becomes of rings that are started, disabled, reset, many.

mod common;
#[path = "common/frontend.rs"]
mod frontend;
#[path = "common/wire.rs"]
mod wire;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use ovs_vhost::datapath::TxSlot;
use ovs_vhost::memory::GuestAddr;
use ovs_vhost::model::{Driver, GuestMemory, Net, PackedDriver, Virtqueue, FRONTEND_OFFSET};
use ovs_vhost::port::Switches;
use ovs_vhost::virtio::features::*;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserHeaderFlag,
    VhostUserInflight,
};
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
    fn settle(&mut self) {
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
    assert_eq!(port.counter("tx_q127_good_packets"), 1);
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

/// Has the front-end keep an in-flight buffer for all its rings, as QEMU's and cloud-hypervisor's do: asked for once, handed
/// to every back-end.
fn keep_in_flight<D: Virtqueue>(guest: &mut Guest<D>) -> (VhostUserInflight, File) {
    let queues = u16::try_from(guest.rings.len()).expect("few");
    let wanted = VhostUserInflight::new(0, 0, queues, SIZE);
    let (buffer, file) = guest.frontend.get_inflight_fd(&wanted).expect("a buffer");
    assert_eq!((buffer.num_queues, buffer.queue_size), (queues, SIZE));
    let length = file.metadata().expect("a file").len();
    assert!(buffer.mmap_size > 0 && length >= buffer.mmap_offset + buffer.mmap_size);
    assert!(file.set_len(0).is_err(), "nobody can pull it away");
    (buffer, file)
}

fn a_reconnect_goes_on_where_the_ring_stood<D: Virtqueue>(name: &str, features: Features) {
    let port = server(name);
    let mut guest = Guest::<D>::new(&port, 1, features);
    let (buffer, file) = keep_in_flight(&mut guest);
    let mut seed = 0;
    for round in 0..25 {
        guest
            .frontend
            .set_inflight_fd(&buffer, file.as_raw_fd())
            .expect("a buffer of its own");
        // The base says nothing, as after a crash: it is that of a ring that nobody used.
        guest.run(&port, fresh(features));
        for _ in 0..round {
            guest.transmit(1, &frames(seed, 3));
            assert_eq!(port.receive(0), frames(seed, 3), "round {round}");
            assert_eq!(guest.reap(1), 3);
            guest.rings[0].supply(3);
            guest.rings[0].driver.publish();
            port.deliver(0, &frames(seed, 3));
            for _ in 0..3 {
                assert!(guest.rings[0].receive().is_some());
            }
            seed = (seed + 2) % 200;
        }
        // What waits when the connection breaks waits when it is back.
        guest.transmit(1, &frames(seed, 2));
        guest.reconnect(&port, features);
        guest
            .frontend
            .set_inflight_fd(&buffer, file.as_raw_fd())
            .expect("a buffer of its own");
        guest.run(&port, fresh(features));
        assert_eq!(port.receive(0), frames(seed, 2));
        assert_eq!(guest.reap(1), 2);
        guest.reconnect(&port, features);
    }
}

#[test]
fn with_an_in_flight_buffer_a_ring_goes_on_whatever_the_base_says() {
    a_reconnect_goes_on_where_the_ring_stood::<Driver>("inflight-split", SPLIT);
    a_reconnect_goes_on_where_the_ring_stood::<PackedDriver>("inflight-packed", PACKED);
}

#[test]
fn a_ring_stopped_in_order_begins_where_its_front_end_says() {
    // A guest that resets its device: the ring is new, the buffer is not.
    let port = server("inflight-reset");
    let mut guest = Guest::<PackedDriver>::new(&port, 1, PACKED);
    let (buffer, file) = keep_in_flight(&mut guest);
    guest
        .frontend
        .set_inflight_fd(&buffer, file.as_raw_fd())
        .expect("a buffer of its own");
    for index in 0..2 {
        guest.start(index, 0x8000);
        guest.enable(index, true);
    }
    guest.settle();
    for round in 0..10 {
        guest.transmit(1, &frames(round, 5));
        assert_eq!(port.receive(0), frames(round, 5), "round {round}");
        assert_eq!(guest.reap(1), 5);
        reset(&mut guest, 1, SIZE, PACKED);
    }
}

#[test]
fn an_in_flight_buffer_that_does_not_add_up_is_refused() {
    let port = server("inflight-bad");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    let (buffer, file) = keep_in_flight(&mut guest);
    guest.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    for bad in [
        VhostUserInflight::new(buffer.mmap_size - 1, 0, 2, SIZE),
        VhostUserInflight::new(buffer.mmap_size, 64, 2, SIZE),
        VhostUserInflight::new(buffer.mmap_size, u64::MAX - 63, 2, SIZE),
        VhostUserInflight::new(1 << 40, 0, 2, SIZE),
        VhostUserInflight::new(buffer.mmap_size, 0, 2, 1024),
    ] {
        let told = guest.frontend.set_inflight_fd(&bad, file.as_raw_fd());
        assert!(told.is_err(), "{} {}", bad.mmap_size, bad.queue_size);
    }
    let told = guest.frontend.set_inflight_fd(&buffer, file.as_raw_fd());
    assert!(told.is_ok(), "and the connection lives");
}

#[test]
fn the_configuration_space_is_offered_where_the_operator_set_an_mtu() {
    let port = server("config");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    let read = |guest: &mut Guest<Driver>, offset, size: u32| {
        let room = vec![0; usize::try_from(size).expect("small")];
        let flags = VhostUserConfigFlags::empty();
        guest.frontend.get_config(offset, size, flags, &room)
    };
    assert!(read(&mut guest, 0, 12).is_err(), "not offered");

    port.set_mtu(9000).expect("an MTU");
    guest.reconnect(&port, SPLIT);
    let (_, space) = read(&mut guest, 0, 12).expect("offered");
    assert_eq!(space, [0, 0, 0, 0, 0, 0, 1, 0, 128, 0, 0x28, 0x23]);
    guest.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let mac = [2, 0, 0, 0, 0, 1];
    let written = guest.frontend.set_config(0, VhostUserConfigFlags::empty(), &mac);
    assert!(written.is_err(), "no field is the driver's");
    // The number 1, which is the specification's for a guest that moves, has this name here.
    let brought = guest.frontend.set_config(0, VhostUserConfigFlags::WRITABLE, &mac);
    assert!(brought.is_ok());
    assert_eq!(read(&mut guest, 0, 6).expect("an address").1, mac);
}

/// Has a state moved by a channel, whose both ends are returned: where it comes out and where it goes in.
fn transfer(
    guest: &Guest<Driver>,
    direction: VhostTransferStateDirection,
) -> vhost::Result<(UnixStream, UnixStream)> {
    let (reader, writer) = UnixStream::pair().expect("a channel");
    let ours = match direction {
        VhostTransferStateDirection::SAVE => OwnedFd::from(writer.try_clone().expect("a descriptor")),
        VhostTransferStateDirection::LOAD => OwnedFd::from(reader.try_clone().expect("a descriptor")),
    };
    let answer = guest
        .frontend
        .set_device_state_fd(direction, VhostTransferStatePhase::STOPPED, ours)?;
    assert!(answer.is_none(), "our own channel is used");
    Ok((reader, writer))
}

#[test]
fn the_devices_own_state_moves_from_port_to_port() {
    let (from, to) = (server("state-from"), server("state-to"));
    let mut guest = Guest::<Driver>::new(&from, 1, SPLIT);
    guest.run(&from, 0);
    let mut heard = vec![0xff; 6];
    heard.extend([0x52, 0x54, 0, 0, 0, 9]);
    heard.resize(60, 0);
    guest.transmit(1, &[heard.clone(), heard]);
    assert_eq!(from.receive(0).len(), 2);
    let bases = [0, 1].map(|vring| guest.frontend.get_vring_base(vring).expect("it stops"));
    assert_eq!(bases, [0, 2]);
    let left = 2;
    let (mut reader, writer) = transfer(&guest, VhostTransferStateDirection::SAVE).expect("saved");
    drop(writer);
    let mut state = Vec::new();
    reader.read_to_end(&mut state).expect("a state, and its end");
    assert!(state.starts_with(b"ovsvhost"));
    guest.frontend.check_device_state().expect("it went well");

    let mut destination = Guest::<Driver>::new(&to, 1, SPLIT);
    for ring in &mut destination.rings {
        ring.driver.set_used_idx(left);
    }
    let (_, mut writer) = transfer(&destination, VhostTransferStateDirection::LOAD).expect("to be loaded");
    writer.write_all(&state).expect("room");
    drop(writer);
    destination.frontend.check_device_state().expect("it went well");

    // The guest was heard there, and is silent here: it is announced all the same.
    destination.run(&to, left);
    let announced = to.burst(0);
    assert_eq!(announced.len(), 1, "{announced:?}");
    assert_eq!(announced[0][6..12], [0x52, 0x54, 0, 0, 0, 9]);
    for vring in 0..2 {
        destination.frontend.get_vring_base(vring).expect("it stops");
    }

    // Nothing, noise, and a state of a device that runs.
    let again = destination.frontend.check_device_state();
    assert!(again.is_err(), "nothing was to be checked");
    let (_, mut writer) = transfer(&destination, VhostTransferStateDirection::LOAD).expect("to be loaded");
    writer.write_all(b"something else").expect("room");
    drop(writer);
    assert!(destination.frontend.check_device_state().is_err());
    guest.start(0, 0);
    guest.settle();
    assert!(
        transfer(&guest, VhostTransferStateDirection::SAVE).is_err(),
        "a ring runs"
    );
}

const NET_SET_MTU: u32 = 20;
const SET_STATUS: u32 = 39;
const GET_STATUS: u32 = 40;
const SET_VRING_CALL: u32 = 13;
/// In the payload of SET_VRING_CALL: without a descriptor.
const NO_DESCRIPTOR: u64 = 1 << 8;

#[test]
fn a_front_end_that_uses_the_device_status_gets_its_rings_at_driver_ok() {
    let port = server("status");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    assert_eq!(guest.ask(GET_STATUS), 0);
    guest.say(SET_STATUS, Some(0xb));
    for index in 0..2 {
        guest.start(index, 0);
        guest.enable(index, true);
    }
    assert_eq!(guest.ask(GET_STATUS), 0xb);
    assert!(!port.carrier(), "not DRIVER_OK yet");
    guest.say(SET_STATUS, Some(0xf));
    assert_eq!(guest.ask(GET_STATUS), 0xf);
    assert!(port.carrier());
    guest.transmit(1, &frames(0, 2));
    assert_eq!(port.receive(0), frames(0, 2));
    guest.say(SET_STATUS, Some(0));
    assert_eq!(guest.ask(GET_STATUS), 0);
    eventually("reset", || !port.connected());
}

#[test]
fn the_mtu_of_the_front_end_is_in_status_where_it_is_negotiated() {
    let port = server("set-mtu");
    for (features, shown) in [(SPLIT | VIRTIO_NET_F_MTU, Some("1400")), (SPLIT, None)] {
        let mut guest = Guest::<Driver>::new(&port, 1, features);
        guest.say(NET_SET_MTU, Some(1400));
        guest.run(&port, 0);
        assert_eq!(port.status("mtu").as_deref(), shown);
        drop(guest);
        eventually("it is gone", || !port.connected());
    }
}

#[test]
fn a_broken_ring_is_told_by_its_error_descriptor_and_in_status() {
    let port = server("err");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    let err = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
    guest.frontend.set_vring_err(1, &err).expect("taken");
    guest.run(&port, 0);
    assert!(err.read().is_err(), "nothing is wrong");
    guest.rings[1].driver.set_avail_idx(SIZE + 1);
    assert_eq!(port.receive(0), Vec::<Vec<u8>>::new());
    eventually("the error", || err.read().is_ok());
    let why = port.status("vring_1_error").expect("a reason");
    assert!(why.contains("avail index 65"), "{why}");
    // Set up again it goes on.
    guest.frontend.get_vring_base(1).expect("an index");
    guest.rings[1].driver.set_avail_idx(0);
    guest.start(1, 0);
    guest.settle();
    guest.transmit(1, &frames(0, 2));
    assert_eq!(port.receive(0), frames(0, 2));
    assert_eq!(port.status("vring_1_error"), None);
}

#[test]
fn a_driver_that_polls_gives_no_call_and_gets_none() {
    let port = server("no-call");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    for index in 0..2 {
        guest.start(index, 0);
        guest.say(SET_VRING_CALL, Some(u64::from(index) | NO_DESCRIPTOR));
        guest.enable(index, true);
    }
    guest.settle();
    eventually("the pair runs", || port.connected());
    let before = port.counter("rx_q0_guest_notifications");
    for round in 0..20 {
        guest.transmit(1, &frames(round, 3));
        assert_eq!(port.receive(0), frames(round, 3));
        assert_eq!(guest.reap(1), 3);
    }
    assert_eq!(port.counter("rx_q0_guest_notifications"), before);
}

#[test]
fn a_device_that_is_reset_keeps_its_memory_and_features() {
    let port = server("reset-device");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    for round in 0..3 {
        guest.run(&port, 0);
        guest.transmit(1, &frames(round, 3));
        assert_eq!(port.receive(0), frames(round, 3));
        assert_eq!(guest.reap(1), 3);
        guest.frontend.reset_device().expect("it is reset");
        guest.settle();
        eventually("it stands still", || !port.connected());
        guest.transmit(1, &frames(round, 1));
        assert_eq!(port.receive(0), Vec::<Vec<u8>>::new());
        // Kicked, but not enabled again: what waits is dropped, see above; here it is enabled and arrives.
        for index in 0..2 {
            guest.start(index, 0);
            guest.enable(index, true);
        }
        guest.settle();
        assert_eq!(port.receive(0), frames(round, 1));
        assert_eq!(guest.reap(1), 1);
        guest.frontend.reset_device().expect("it is reset");
    }
}

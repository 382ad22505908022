//! A whole port and a guest whose driver is the model's: what becomes of rings that are started, disabled, reset, many.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ovs_vhost::memory::GuestAddr;
use ovs_vhost::model::{Driver, GuestMemory, Net, PackedDriver, Pool, Virtqueue, FRONTEND_OFFSET};
use ovs_vhost::port::{Environment, Host, Mode, Port, Switches};
use ovs_vhost::virtio::features::*;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

const SPLIT: Features = VIRTIO_F_VERSION_1
    .with(VIRTIO_NET_F_MRG_RXBUF)
    .with(VIRTIO_NET_F_MQ)
    .with(VHOST_USER_F_PROTOCOL_FEATURES);
const PACKED: Features = SPLIT.with(VIRTIO_F_RING_PACKED);
const SIZE: u16 = 64;
const ROOM: u32 = 256;

fn eventually(what: &str, mut claim: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !claim() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A netdev that does nothing of what it is told.
struct Netdev;

impl Host for Netdev {
    fn changed(&self) {}
    fn request_reconfigure(&self) {}
    fn unlink_at_exit(&self, _: &Path) {}
    fn keep_at_exit(&self, _: &Path) {}
}

/// A server port that goes when its test is over.
struct TestPort(Arc<Port>);

impl TestPort {
    fn new(name: &str) -> TestPort {
        static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
        let environment = ENVIRONMENT.get_or_init(|| {
            Environment::new(&std::env::temp_dir(), None, Switches::default(), || ())
                .expect("a control thread")
        });
        let name = format!("rings-{name}-{}", std::process::id());
        TestPort(Port::new(&name, Mode::Server, environment, Box::new(Netdev)).expect("a port"))
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(std::env::temp_dir().join(self.0.name())).expect("a port that listens")
    }

    fn counter(&self, name: &str) -> u64 {
        let mut found = None;
        self.0.custom_stats(&mut |key, value| {
            if key == name {
                found = Some(value);
            }
        });
        found.expect(name)
    }

    /// One burst from queue `queue`.
    fn receive(&self, queue: u16) -> Vec<Vec<u8>> {
        let mut pool = Pool::new(32, 2048);
        let mut slots = pool.slots();
        let count = self.0.rx_queue(queue).expect("a queue").dequeue(&mut slots);
        slots[..count].iter().map(|slot| slot.frame().to_vec()).collect()
    }
}

impl Drop for TestPort {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A guest with `pairs` queue pairs: the model's drivers, and rust-vmm's front-end to speak for them.
struct Guest<D> {
    frontend: Frontend,
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
        let mut guest = Guest {
            frontend: Frontend::from_stream(port.connect(), 256),
            rings: (0..2 * pairs).map(ring).collect(),
            kicks: (0..2 * pairs)
                .map(|_| EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd"))
                .collect(),
        };
        guest.negotiate(features);
        for (desc, file) in memory.regions() {
            let region = VhostUserMemoryRegionInfo {
                guest_phys_addr: desc.guest.0,
                memory_size: desc.size,
                userspace_addr: desc.guest.0 + FRONTEND_OFFSET,
                mmap_offset: desc.mmap_offset,
                mmap_handle: file.as_raw_fd(),
            };
            guest.frontend.set_mem_table(&[region]).expect("memory");
        }
        guest
    }

    fn negotiate(&mut self, features: Features) {
        self.frontend.set_owner().expect("owner");
        let offered = self.frontend.get_features().expect("features");
        assert_eq!(offered & features.0, features.0, "offered: {offered:#x}");
        let protocol = self.frontend.get_protocol_features().expect("protocol features");
        self.frontend
            .set_protocol_features(protocol & !VhostUserProtocolFeatures::STATUS)
            .expect("protocol features");
        assert_eq!(self.frontend.get_queue_num().expect("queues"), 128);
        self.frontend.set_features(features.0).expect("features");
    }

    /// Starts a ring at `base`.
    fn start(&mut self, index: u16, base: u16) {
        let vring = usize::from(index);
        let config = self.rings[vring].driver.config(index);
        let call = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
        let addresses = VringConfigData {
            queue_max_size: config.size,
            queue_size: config.size,
            flags: 0,
            desc_table_addr: config.desc.0,
            avail_ring_addr: config.driver.0,
            used_ring_addr: config.device.0,
            log_addr: None,
        };
        let frontend = &mut self.frontend;
        frontend
            .set_vring_num(vring, config.size)
            .and_then(|()| frontend.set_vring_base(vring, base))
            .and_then(|()| frontend.set_vring_addr(vring, &addresses))
            .and_then(|()| frontend.set_vring_call(vring, &call))
            .and_then(|()| frontend.set_vring_kick(vring, &self.kicks[vring]))
            .expect("a ring that starts");
    }

    fn enable(&mut self, index: u16, enable: bool) {
        self.frontend
            .set_vring_enable(usize::from(index), enable)
            .expect("on or off");
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

/// Where a fresh ring of this layout stands.
fn fresh(features: Features) -> u16 {
    match features.contains(VIRTIO_F_RING_PACKED) {
        true => 0x8000,
        false => 0,
    }
}

fn frames(from: u8, count: u8) -> Vec<Vec<u8>> {
    (from..from + count).map(|seed| vec![seed & !1; 60]).collect()
}

fn a_disabled_queue_drains<D: Virtqueue>(name: &str, features: Features) {
    let port = TestPort::new(name);
    let mut guest = Guest::<D>::new(&port, 2, features);
    for index in 0..4 {
        guest.start(index, fresh(features));
    }
    // What waits in a ring that is enabled right after its start arrives.
    guest.transmit(1, &frames(0, 4));
    guest.enable(1, true);
    guest.enable(0, true);
    guest.settle();
    eventually("the first pair runs", || port.0.carrier());
    assert_eq!(port.receive(0), frames(0, 4));
    assert_eq!(guest.reap(1), 4);

    // The second pair stays disabled, and its guest sends.
    let drops = || port.counter("ovs_vhost_rx_disabled_drops");
    port.0.reconfigure();
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

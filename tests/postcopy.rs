//! Post-copy through a whole port: rust-vmm's `Frontend` on one side, poll threads of the test's own on the other, and
//! memory whose pages arrive when the test says so.

#[path = "common/client.rs"]
mod client;
mod common;
#[path = "common/frontend.rs"]
mod frontend;

use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ovs_vhost::datapath::TxSlot;
use ovs_vhost::memory::GuestAddr;
use ovs_vhost::model::{Buffer, Driver, GuestMemory, PackedDriver, PageServer, Virtqueue};
use ovs_vhost::port::Switches;
use ovs_vhost::virtio::features::{Features, VIRTIO_F_RING_PACKED};
use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

use client::Client;
use common::{eventually, TestPort};
use frontend::{fresh, info, start_ring};

const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;
/// VERSION_1 and the protocol features' bit: a virtio-net header of 12 bytes.
const FEATURES: u64 = 1 << 32 | 1 << 30;
const HEADER: usize = 12;
const RING_SIZE: u16 = 64;
/// Rings have a page each, apart from other things: descriptors, avail and used ring fit.
const RINGS: [GuestAddr; 2] = [GuestAddr(0x10_000), GuestAddr(0x20_000)];
const BUFFERS: GuestAddr = GuestAddr(0x40_000);

/// All ports of these tests have one control thread, so each test would notice another's blocking it.
fn switches() -> Switches {
    Switches {
        postcopy: true,
        ..Switches::default()
    }
}

/// A port. All ports of these tests have one control thread, so each test would notice another's blocking it.
struct World(Client);

impl World {
    fn new(name: &str) -> World {
        World(Client::new(name, switches()))
    }

    fn accept(&self) -> Frontend {
        self.accept_with(Features(FEATURES))
    }

    fn accept_with(&self, features: Features) -> Frontend {
        negotiated(self.0.accept(), features)
    }

    fn connected(&self) -> bool {
        self.0.port.connected()
    }

    /// One burst out of the guest.
    fn receive(&self) -> Vec<Vec<u8>> {
        self.0.port.burst(0)
    }
}

fn negotiated(stream: UnixStream, features: Features) -> Frontend {
    let mut frontend = Frontend::from_stream(stream, 256);
    frontend.set_owner().expect("owner");
    frontend.get_features().expect("features");
    let wanted = VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::PAGEFAULT
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    let offered = frontend.get_protocol_features().expect("protocol features");
    assert!(offered.contains(wanted), "{offered:?}");
    frontend.set_protocol_features(wanted).expect("offered");
    frontend.set_features(features.0).expect("offered");
    frontend
}

/// A guest that runs already, and of whose memory nothing has arrived yet.
struct Incoming<D = Driver> {
    frontend: Frontend,
    memory: Arc<GuestMemory>,
    pages: PageServer,
    /// Where the port has the guest's address 0x1000.
    base: u64,
    receiveq: D,
    transmitq: D,
}

impl Incoming {
    fn new(frontend: Frontend) -> Incoming {
        Incoming::with(frontend, Features(FEATURES))
    }
}

impl<D: Virtqueue> Incoming<D> {
    /// In post-copy, with all memory handed over.
    fn with(mut frontend: Frontend, features: Features) -> Incoming<D> {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let pages = PageServer::new(frontend.postcopy_advise().expect("a userfaultfd").into());
        frontend.postcopy_listen().expect("to listen");
        let memory = Arc::new(GuestMemory::new(0x10_0000));
        let base = frontend
            .add_mem_region(&info(&memory.regions()[0]))
            .expect("to add");
        frontend
            .postcopy_ack_mem_regions(FrontendReq::ADD_MEM_REG)
            .expect("to acknowledge");
        let [receiveq, transmitq] = RINGS.map(|at| D::new(Arc::clone(&memory), at, RING_SIZE, features));
        // From here on nothing waits for an answer, as little as QEMU does.
        frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
        Incoming {
            frontend,
            memory,
            pages,
            base: base.expect("an address"),
            receiveq,
            transmitq,
        }
    }

    fn start_rings(&mut self) {
        for index in [0, 1] {
            let ring = [&self.receiveq, &self.transmitq][usize::from(index)].config(index);
            let kick = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
            start_ring(&self.frontend, &ring, fresh(ring.features), &kick)
                .and_then(|()| self.frontend.set_vring_enable(index.into(), true))
                .expect("to send");
        }
    }

    /// The guest page that somebody waits for.
    fn wanted(&self) -> GuestAddr {
        let mut asked = None;
        eventually("a page is asked for", || {
            asked = self.pages.next();
            asked.is_some()
        });
        GuestAddr(0x1000 + asked.expect("one") - self.base)
    }

    /// A page arrives.
    fn bring(&self, at: GuestAddr, bytes: &[u8]) {
        let mut page = bytes.to_vec();
        page.resize(PAGE_BYTES, 0);
        let address = self.base + at.0 - 0x1000;
        self.pages.bring(address, &page).expect("a missing page");
    }

    /// Brings every page that is asked for, as it is in a guest that has just started, until `world` is connected.
    fn bring_up(&self, world: &World) {
        eventually("connected", || {
            if let Some(address) = self.pages.next() {
                self.bring(GuestAddr(0x1000 + address - self.base), &[]);
            }
            world.connected()
        });
    }

    /// Pages that the guest has.
    fn present(&self) -> i64 {
        let stat = rustix::fs::fstat(self.memory.file()).expect("a file");
        stat.st_blocks * 512 / 4096
    }
}

/// The guest pages that a ring at `at` begins with: descriptors, then avail and used ring.
fn ring_pages(at: GuestAddr) -> [GuestAddr; 2] {
    [at, GuestAddr(at.0 + PAGE)]
}

/// Proves that the control thread serves others: a second port comes up and goes down again.
fn others_are_served(name: &str) {
    let world = World::new(name);
    let mut guest = Incoming::new(world.accept());
    guest.start_rings();
    guest.bring_up(&world);
    drop(guest);
    eventually("disconnected", || !world.connected());
}

#[test]
fn a_ring_whose_pages_are_late_keeps_only_its_own_port_waiting() {
    let world = World::new("late");
    let mut guest = Incoming::new(world.accept());
    guest.start_rings();
    let page = guest.wanted();
    assert!(
        ring_pages(RINGS[0]).contains(&page),
        "{page}: starting a ring reads its indices"
    );
    others_are_served("other");
    assert!(!world.connected(), "asking main's way waits for nobody");
    guest.bring(page, &[]);
    guest.bring_up(&world);
}

#[test]
fn a_burst_sleeps_until_its_page_arrives_and_moves_what_came() {
    bursts::<Driver>("split", Features(FEATURES));
}

#[test]
fn a_burst_on_a_packed_ring_sleeps_until_its_page_arrives_and_moves_what_came() {
    bursts::<PackedDriver>("packed", Features(FEATURES) | VIRTIO_F_RING_PACKED);
}

fn bursts<D: Virtqueue + Sync>(name: &str, features: Features) {
    let world = World::new(name);
    let mut guest = Incoming::<D>::with(world.accept_with(features), features);
    guest.start_rings();
    guest.bring_up(&world);

    // The guest sends from a page that is not there: its frame comes with the page.
    let frame: Vec<u8> = (0..200).collect();
    let len = u32::try_from(HEADER + frame.len()).expect("short");
    let buffer = Buffer {
        addr: BUFFERS,
        len,
        write: false,
    };
    guest.transmitq.add(&[buffer]).expect("room in the ring");
    guest.transmitq.publish();
    thread::scope(|scope| {
        let poll = scope.spawn(|| world.receive());
        // The descriptors' page was not touched before.
        let mut page = guest.wanted();
        while page != BUFFERS {
            wake(&guest, page);
            page = guest.wanted();
        }
        assert!(!poll.is_finished());
        others_are_served(&format!("other-{name}"));
        guest.bring(BUFFERS, &[&[0; HEADER][..], &frame].concat());
        assert_eq!(poll.join().expect("no panic"), std::slice::from_ref(&frame));
    });

    // A frame for the guest waits for the page it goes to, and leaves the rest of that page alone.
    let addr = GuestAddr(BUFFERS.0 + PAGE);
    guest
        .receiveq
        .add(&[Buffer {
            addr,
            len: 1500,
            write: true,
        }])
        .expect("room");
    guest.receiveq.publish();
    thread::scope(|scope| {
        let sent = scope.spawn(|| world.0.port.send(0, &[TxSlot::new(&frame)]));
        let mut page = guest.wanted();
        while page != addr {
            wake(&guest, page);
            page = guest.wanted();
        }
        assert!(!sent.is_finished());
        guest.bring(addr, &[0x55; PAGE_BYTES]);
        sent.join().expect("no panic");
    });
    let mut bytes = [0; 300];
    guest.memory.read(addr, &mut bytes);
    assert_eq!(bytes[HEADER..HEADER + frame.len()], frame);
    assert!(bytes[HEADER + frame.len()..].iter().all(|byte| *byte == 0x55));

    // All has arrived: nobody waits for anything any more, but what is missing is missing.
    guest.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    guest.frontend.postcopy_end().expect("to end");
    let addr = GuestAddr(BUFFERS.0 + 8 * PAGE);
    guest
        .transmitq
        .add(&[Buffer {
            addr,
            len,
            write: false,
        }])
        .expect("room");
    guest.transmitq.publish();
    assert_eq!(world.receive(), [vec![0; frame.len()]]);
    assert!(world.connected());
}

/// A page that the guest here has written already, and that only has to be told of.
fn wake<D>(guest: &Incoming<D>, page: GuestAddr) {
    let address = guest.base + page.0 - 0x1000;
    guest.pages.wake(address, PAGE).expect("a watched page");
}

#[test]
fn a_front_end_that_leaves_while_its_ring_waits_is_forgotten_at_once() {
    let world = World::new("leaves");
    let mut guest = Incoming::new(world.accept());
    guest.start_rings();
    guest.wanted();
    // The descriptor stays open, as in a process that does not die of it.
    let Incoming { frontend, pages, .. } = guest;
    drop(frontend);
    let mut guest = Incoming::new(world.accept());
    guest.start_rings();
    guest.bring_up(&world);
    drop(pages);
}

#[test]
fn a_poll_thread_that_sleeps_when_the_front_end_leaves_wakes_up_and_makes_up_nothing() {
    let world = World::new("sleeps");
    let mut guest = Incoming::new(world.accept());
    guest.start_rings();
    guest.bring_up(&world);
    let buffer = Buffer {
        addr: BUFFERS,
        len: 1000,
        write: false,
    };
    guest.transmitq.add(&[buffer]).expect("room in the ring");
    guest.transmitq.publish();
    let present = guest.present();
    thread::scope(|scope| {
        let (done, is_done) = mpsc::channel();
        let world = &world;
        scope.spawn(move || done.send(world.receive()));
        guest.wanted();
        let Incoming { frontend, .. } = &mut guest;
        let gone = std::mem::replace(
            frontend,
            Frontend::from_stream(UnixStream::pair().expect("a pair").0, 1),
        );
        drop(gone);
        let frames = is_done
            .recv_timeout(Duration::from_secs(20))
            .expect("it wakes up");
        // What it saw is not the guest's; the connection is gone, and so is the ring.
        assert!(frames.len() <= 1);
    });
    eventually("disconnected", || !world.connected());
    assert_eq!(
        guest.present(),
        present,
        "no page was made up in the guest's memory"
    );
    assert!(world.receive().is_empty());
}

#[test]
fn a_port_that_is_deleted_while_its_ring_waits_delays_nobody() {
    let world = World::new("deleted");
    let mut guest = Incoming::new(world.accept());
    guest.start_rings();
    guest.wanted();
    drop(world);
    others_are_served("other-deleted");
}

#[test]
fn qemu_goes_through_it_once_per_queue_pair() {
    let world = World::new("pairs");
    let mut frontend = world.accept();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let _fds = [0, 1].map(|_| frontend.postcopy_advise().expect("a userfaultfd"));
    for _ in 0..2 {
        frontend.postcopy_listen().expect("to listen");
    }
    let memory = GuestMemory::with_regions(&[(GuestAddr(0), 0xa0_000), (GuestAddr(0xc0_000), 0x40_000)]);
    let mut rounds = Vec::new();
    for _ in 0..2 {
        let bases: Vec<_> = memory
            .regions()
            .iter()
            .map(|region| frontend.add_mem_region(&info(region)).expect("to add"))
            .collect();
        frontend
            .postcopy_ack_mem_regions(FrontendReq::ADD_MEM_REG)
            .expect("to acknowledge");
        rounds.push(bases);
    }
    assert_eq!(rounds[0], rounds[1], "the same memory, at the same place");
    assert!(rounds[0].iter().all(Option::is_some) && rounds[0][0] != rounds[0][1]);
    for _ in 0..2 {
        frontend.postcopy_end().expect("to end");
    }
    // From here on regions are as ever.
    let more = GuestMemory::with_regions(&[(GuestAddr(0x100_0000), PAGE)]);
    let region = &more.regions()[0];
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(frontend.add_mem_region(&info(region)).expect("to add"), None);
    for region in memory.regions().iter().chain([region]) {
        frontend.remove_mem_region(&info(region)).expect("it is there");
    }
}

#[test]
fn memory_that_waits_for_its_acknowledgement_can_be_taken_back() {
    let world = World::new("retract");
    let mut frontend = world.accept();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let _fd = frontend.postcopy_advise().expect("a userfaultfd");
    frontend.postcopy_listen().expect("to listen");
    let memory = GuestMemory::new(PAGE);
    let region = &memory.regions()[0];
    frontend.add_mem_region(&info(region)).expect("to add");
    frontend.remove_mem_region(&info(region)).expect("to remove");
    frontend
        .postcopy_ack_mem_regions(FrontendReq::ADD_MEM_REG)
        .expect("to acknowledge");
    assert!(
        frontend.remove_mem_region(&info(region)).is_err(),
        "it is not there"
    );
}

type Story = fn(&mut Frontend) -> vhost::Result<()>;

#[test]
fn out_of_its_order_post_copy_is_refused() {
    // Each story ends in a refusal, and only there.
    let stories: [(&str, Story); 3] = [
        ("LISTEN without ADVISE", |frontend| frontend.postcopy_listen()),
        ("LISTEN with memory there", |frontend| {
            let memory = GuestMemory::new(PAGE);
            frontend
                .add_mem_region(&info(&memory.regions()[0]))
                .expect("to add");
            frontend.postcopy_advise().expect("a userfaultfd");
            frontend.postcopy_listen()
        }),
        ("an acknowledgement of nothing", |frontend| {
            frontend.postcopy_ack_mem_regions(FrontendReq::ADD_MEM_REG)?;
            frontend.get_features().map(drop)
        }),
    ];
    let world = World::new("order");
    for (what, story) in stories {
        let mut frontend = world.accept();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert!(story(&mut frontend).is_err(), "{what}");
    }
}

#[test]
fn post_copy_is_offered_by_client_ports_only() {
    let (_port, path) = TestPort::server("postcopy-server", switches());
    let mut frontend = Frontend::connect(path, 2).expect("a port that listens");
    frontend.get_features().expect("features");
    let offered = frontend.get_protocol_features().expect("protocol features");
    assert!(
        !offered.contains(VhostUserProtocolFeatures::PAGEFAULT),
        "{offered:?}"
    );
}

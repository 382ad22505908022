//! A whole port behind an IOMMU, without Open vSwitch or QEMU: a front-end that writes its IOTLB messages byte by byte,
//! and answers on the back-end channel when a test tells it to.

#[path = "common/client.rs"]
mod client;
mod common;
#[path = "iommu/in_flight.rs"]
mod in_flight;
#[path = "common/wire.rs"]
mod wire;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ovs_vhost::datapath::{RingConfig, TxSlot};
use ovs_vhost::memory::GuestAddr;
use ovs_vhost::model::{Buffer, Driver, GuestMemory, Virtqueue, FRONTEND_OFFSET};
use ovs_vhost::port::Switches;
use ovs_vhost::virtio::features::{
    Features, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use client::Client;
use common::{eventually, TestPort};
use wire::{message, reply, VERSION};

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const SET_BACKEND_REQ_FD: u32 = 21;
const IOTLB_MSG: u32 = 22;

const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

const MISS: u8 = 1;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;
const ACCESS_FAIL: u8 = 4;

const READ: u8 = 1;
const WRITE: u8 = 2;
const BOTH: u8 = 3;

/// MQ, REPLY_ACK, BACKEND_REQ.
const PROTOCOL: u64 = 1 << 0 | 1 << 3 | 1 << 5;
const FEATURES: Features = VIRTIO_F_VERSION_1
    .with(VIRTIO_F_ACCESS_PLATFORM)
    .with(VHOST_USER_F_PROTOCOL_FEATURES);

const PAGE: u64 = 0x1000;
const SIZE: u16 = 64;
/// The device sees everything this much higher than the guest.
const SHIFT: u64 = 0x4_0000_0000;
/// Each ring has two pages.
const RINGS: [u64; 2] = [PAGE, 3 * PAGE];
const BUFFERS: u64 = 8 * PAGE;
const HEADER: usize = 12;

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn state(index: u32, num: u32) -> Vec<u8> {
    [index.to_ne_bytes(), num.to_ne_bytes()].concat()
}

fn iotlb(iova: u64, size: u64, uaddr: u64, perm: u8, kind: u8) -> Vec<u8> {
    [numbers(&[iova, size, uaddr]), vec![perm, kind, 0, 0, 0, 0, 0, 0]].concat()
}

fn switches() -> Switches {
    Switches {
        iommu: true,
        ..Switches::default()
    }
}

/// What a back-end asked.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    iova: u64,
    perm: u8,
    kind: u8,
    need_reply: bool,
}

/// A front-end with its guest, and the port it serves.
struct World {
    client: Client,
    stream: UnixStream,
    /// Our end of the back-end channel, and a copy of the port's that we should not have kept.
    channel: UnixStream,
    kept: UnixStream,
    memory: Arc<GuestMemory>,
    rx: Driver,
    tx: Driver,
}

impl World {
    /// Connected, and nothing said.
    fn connect(name: &str) -> World {
        let client = Client::new(name, switches());
        let stream = client.accept();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a time limit");
        let (channel, kept) = UnixStream::pair().expect("a socket pair");
        channel.set_nonblocking(true).expect("non-blocking");
        let memory = Arc::new(GuestMemory::new(64 * PAGE));
        let driver = |at| Driver::new(Arc::clone(&memory), GuestAddr(at), SIZE, FEATURES);
        World {
            client,
            stream,
            channel,
            kept,
            rx: driver(RINGS[0]),
            tx: driver(RINGS[1]),
            memory,
        }
    }

    /// All is said but translations.
    fn start(name: &str) -> World {
        let mut world = World::connect(name);
        assert_eq!(world.get(GET_FEATURES, &[]) & FEATURES.0, FEATURES.0);
        world.send(SET_PROTOCOL_FEATURES, VERSION, &numbers(&[PROTOCOL]), &[]);
        let theirs = world.kept.try_clone().expect("a copy");
        assert_eq!(world.ask_with(SET_BACKEND_REQ_FD, &[], theirs.as_raw_fd()), 0);
        assert_eq!(world.ask(SET_FEATURES, &numbers(&[FEATURES.0])), 0);
        world.start_rings();
        world
    }

    fn start_rings(&mut self) {
        self.hand_over_memory();
        for (index, config) in [(0, self.rx.config(0)), (1, self.tx.config(1))] {
            self.start_ring(index, &config);
        }
    }

    fn hand_over_memory(&mut self) {
        let regions = self.memory.regions();
        let (desc, fd) = &regions[0];
        let table = [
            state(1, 0),
            numbers(&[desc.guest.0, desc.size, desc.frontend.0, desc.mmap_offset]),
        ];
        assert_eq!(self.ask_with(SET_MEM_TABLE, &table.concat(), fd.as_raw_fd()), 0);
    }

    fn start_ring(&mut self, index: u32, config: &RingConfig) {
        let [desc, driver, device] =
            [config.desc, config.driver, config.device].map(|addr| addr.0 - FRONTEND_OFFSET + SHIFT);
        let kick = EventFd::new(0).expect("an eventfd");
        assert_eq!(self.ask(SET_VRING_NUM, &state(index, SIZE.into())), 0);
        assert_eq!(self.ask(SET_VRING_BASE, &state(index, 0)), 0);
        let addr = [state(index, 0), numbers(&[desc, device, driver, 0])].concat();
        assert_eq!(self.ask(SET_VRING_ADDR, &addr), 0);
        assert_eq!(
            self.ask_with(SET_VRING_KICK, &numbers(&[index.into()]), kick.as_raw_fd()),
            0
        );
        assert_eq!(self.ask(SET_VRING_ENABLE, &state(index, 1)), 0);
    }

    fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[i32]) {
        let bytes = message(request, flags, payload);
        let sent = self.stream.send_with_fds(&[&bytes[..]], fds).expect("to send");
        assert_eq!(sent, bytes.len());
    }

    fn get(&mut self, request: u32, payload: &[u8]) -> u64 {
        self.send(request, VERSION, payload, &[]);
        u64::from_ne_bytes(reply(&mut self.stream, request))
    }

    /// Sends with need_reply: the answer.
    fn ask(&mut self, request: u32, payload: &[u8]) -> u64 {
        self.send(request, VERSION | NEED_REPLY, payload, &[]);
        u64::from_ne_bytes(reply(&mut self.stream, request))
    }

    fn ask_with(&mut self, request: u32, payload: &[u8], fd: i32) -> u64 {
        self.send(request, VERSION | NEED_REPLY, payload, &[fd]);
        u64::from_ne_bytes(reply(&mut self.stream, request))
    }

    /// What the back-end has asked and nobody has read yet.
    fn questions(&mut self) -> Vec<Question> {
        let mut found = Vec::new();
        loop {
            let mut bytes = [0; 44];
            match self.channel.read(&mut bytes) {
                Ok(44) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return found,
                other => panic!("{other:?}"),
            }
            let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
            assert_eq!((word(0), word(8)), (1, 32));
            found.push(Question {
                iova: u64::from_ne_bytes(bytes[12..20].try_into().expect("eight bytes")),
                perm: bytes[36],
                kind: bytes[37],
                need_reply: word(4) == 9,
            });
        }
    }

    fn wait_questions(&mut self) -> Vec<Question> {
        let mut found = Vec::new();
        eventually("a question", || {
            found.extend(self.questions());
            !found.is_empty()
        });
        // All that is asked together comes together.
        std::thread::sleep(Duration::from_millis(20));
        found.extend(self.questions());
        found
    }

    /// Tells where the page at `iova` leads, as an answer or unasked.
    fn tell(&mut self, iova: u64, perm: u8) -> u64 {
        let target = iova - SHIFT + FRONTEND_OFFSET;
        self.ask(IOTLB_MSG, &iotlb(iova, PAGE, target, perm, UPDATE))
    }

    fn answer(&mut self, questions: &[Question]) {
        for question in questions {
            assert_eq!(question.kind, MISS);
            assert_eq!(self.tell(question.iova, BOTH), 0);
            if question.need_reply {
                self.channel
                    .write_all(&message(1, VERSION | REPLY, &numbers(&[0])))
                    .expect("to answer");
            }
        }
    }

    fn refuse(&mut self) {
        self.channel
            .write_all(&message(1, VERSION | REPLY, &numbers(&[1])))
            .expect("to answer");
    }

    /// Answers whatever is asked until `claim` holds.
    fn answer_until(&mut self, what: &str, mut claim: impl FnMut(&mut World) -> bool) {
        eventually(what, || {
            let asked = self.questions();
            self.answer(&asked);
            claim(self)
        });
    }

    fn run(name: &str) -> World {
        let mut world = World::start(name);
        world.answer_until("connected", World::connected);
        world
    }

    fn invalidate(&mut self, iova: u64, size: u64) {
        assert_eq!(self.ask(IOTLB_MSG, &iotlb(iova, size, 0, 0, INVALIDATE)), 0);
    }

    fn connected(&mut self) -> bool {
        self.client.port.connected()
    }

    /// The guest transmits one frame from the buffer on page `page` of its buffers.
    fn transmit(&mut self, page: u64, frame: &[u8]) {
        let at = BUFFERS + page * PAGE;
        self.memory.write(GuestAddr(at), &[&[0; HEADER], frame].concat());
        let len = u32::try_from(HEADER + frame.len()).expect("short");
        let addr = GuestAddr(at + SHIFT);
        while self.tx.reap().is_some() {}
        self.tx
            .add(&[Buffer {
                addr,
                len,
                write: false,
            }])
            .expect("room");
        self.tx.publish();
    }

    fn poll(&mut self) -> Vec<Vec<u8>> {
        self.client.port.burst(0)
    }

    /// The guest gives a buffer to receive into.
    fn supply(&mut self, page: u64) {
        let addr = GuestAddr(BUFFERS + page * PAGE + SHIFT);
        self.rx
            .add(&[Buffer {
                addr,
                len: 2048,
                write: true,
            }])
            .expect("room");
        self.rx.publish();
    }

    fn deliver(&mut self, frame: &[u8]) {
        self.client.port.send(0, &[TxSlot::new(frame)]);
    }

    fn received(&mut self, page: u64) -> Option<Vec<u8>> {
        let used = self.rx.reap()?;
        let mut bytes = vec![0; used.len as usize];
        self.memory.read(GuestAddr(BUFFERS + page * PAGE), &mut bytes);
        Some(bytes.split_off(HEADER))
    }
}

/// Where the device sees a page of buffers.
fn buffer(page: u64) -> u64 {
    BUFFERS + page * PAGE + SHIFT
}

/// Milliseconds that the control thread has run.
fn control_thread_time() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc").flatten();
    let stat = tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok())
        .find(|stat| stat.contains("(ovs-vhost)"))
        .expect("a control thread");
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    10 * [11, 12]
        .map(|at| fields[at].parse::<u64>().expect("ticks"))
        .iter()
        .sum::<u64>()
}

#[test]
fn rings_start_when_the_last_of_their_own_translations_has_come() {
    let mut world = World::start("starts");
    let asked = world.wait_questions();
    let mut pages: Vec<_> = asked.iter().map(|question| question.iova).collect();
    pages.sort_unstable();
    pages.dedup();
    assert_eq!(pages, [RINGS[0], RINGS[1]].map(|at| at + SHIFT), "{asked:?}");
    assert!(asked
        .iter()
        .all(|question| question.need_reply && question.kind == MISS));
    assert!(!world.connected());
    let (last, others) = pages.split_last().expect("pages");
    for page in others {
        assert_eq!(world.tell(*page, BOTH), 0);
    }
    assert!(!world.connected());
    assert_eq!(world.tell(*last, BOTH), 0);
    eventually("connected", || world.connected());
    assert!(world.questions().is_empty());
}

#[test]
fn a_miss_is_asked_once_and_stalls_its_own_ring_alone() {
    let mut world = World::run("stalls");
    world.transmit(0, b"the first frame of all");
    world.transmit(1, b"the second");
    for _ in 0..1000 {
        assert!(world.poll().is_empty());
    }
    let asked = world.wait_questions();
    let expected = |page| Question {
        iova: buffer(page),
        perm: READ,
        kind: MISS,
        need_reply: true,
    };
    assert_eq!(asked, [expected(0), expected(1)], "both at a look, each once");
    // The other ring goes on.
    world.supply(5);
    assert_eq!(world.tell(buffer(5), BOTH), 0);
    world.deliver(b"to the guest");
    assert_eq!(world.received(5).expect("a frame"), b"to the guest");
    // So does another port.
    let mut other = World::run("other");
    other.transmit(0, b"elsewhere");
    let mut got = Vec::new();
    other.answer_until("a frame of the other port", |other| {
        got.extend(other.poll());
        !got.is_empty()
    });
    assert!(world.poll().is_empty() && world.questions().is_empty());
    world.answer(&asked);
    assert_eq!(world.poll(), [&b"the first frame of all"[..], b"the second"]);
}

#[test]
fn no_buffer_is_touched_after_its_invalidate_was_acknowledged() {
    let mut world = World::run("unmapped");
    world.transmit(0, b"while it is mapped");
    world.answer_until("a frame", |world| !world.poll().is_empty());
    world.supply(1);
    assert_eq!(world.tell(buffer(1), BOTH), 0);
    world.transmit(0, b"after it was unmapped");
    world.invalidate(buffer(0), 2 * PAGE);
    // The guest has other things in these pages now.
    let secret = [0x5a; 4096];
    for page in [0, 1] {
        world.memory.write(GuestAddr(BUFFERS + page * PAGE), &secret);
    }
    for _ in 0..100 {
        assert!(world.poll().is_empty());
        world.deliver(b"must not be written");
    }
    let mut page = [0; 4096];
    world.memory.read(GuestAddr(BUFFERS + PAGE), &mut page);
    assert_eq!(page, secret);
    let mut asked: Vec<_> = world.wait_questions().iter().map(|q| (q.iova, q.perm)).collect();
    asked.sort_unstable();
    assert_eq!(asked, [(buffer(0), READ), (buffer(1), WRITE)]);
}

#[test]
fn a_ring_whose_own_memory_is_taken_back_stops_at_once_and_asks_again() {
    let mut world = World::run("ring");
    assert_eq!(world.tell(buffer(0), BOTH), 0);
    world.transmit(0, b"one");
    assert_eq!(world.poll(), [b"one"]);
    // All there is: what Linux takes back when it unmaps lazily.
    world.invalidate(0, 0);
    world.transmit(0, b"two");
    assert!(world.poll().is_empty());
    assert!(world.connected(), "nobody else is bothered with it");
    let mut got = Vec::new();
    world.answer_until("the frame", |world| {
        got.extend(world.poll());
        !got.is_empty()
    });
    assert_eq!(got, [b"two"]);
}

#[test]
fn what_the_guest_does_not_allow_is_complained_of_and_not_done() {
    let mut world = World::run("denied");
    world.supply(0);
    world.deliver(b"must not be written");
    let asked = world.wait_questions();
    assert_eq!((asked[0].iova, asked[0].perm), (buffer(0), WRITE));
    assert_eq!(world.tell(buffer(0), READ), 0);
    world.refuse();
    for _ in 0..100 {
        world.deliver(b"must not be written");
    }
    let complaints = world.wait_questions();
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    assert_eq!((complaints[0].iova, complaints[0].kind), (buffer(0), ACCESS_FAIL));
    assert!(world.received(0).is_none() && world.connected());
    assert_eq!(world.tell(buffer(0), BOTH), 0);
    world.deliver(b"now it may");
    assert_eq!(world.received(0).expect("a frame"), b"now it may");
}

#[test]
fn a_translation_that_does_not_exist_is_asked_for_a_few_times_and_no_more() {
    let mut world = World::run("in-vain");
    world.transmit(0, b"from nowhere");
    let mut asked = 0;
    let deadline = Instant::now() + Duration::from_millis(500);
    while Instant::now() < deadline {
        assert!(world.poll().is_empty());
        for question in world.questions() {
            assert_eq!(question.iova, buffer(0));
            world.refuse();
            asked += 1;
        }
    }
    assert!((1..=5).contains(&asked), "asked {asked} times");
    assert!(world.connected());
    // The guest maps it after all, and its IOMMU says that something changed.
    world.invalidate(buffer(0), PAGE);
    let mut got = Vec::new();
    world.answer_until("the frame", |world| {
        got.extend(world.poll());
        !got.is_empty()
    });
}

#[test]
fn a_device_that_stopped_remembers_no_translation() {
    let mut world = World::run("stopped");
    assert_eq!(world.tell(buffer(0), BOTH), 0);
    for index in [0, 1] {
        world.get(GET_VRING_BASE, &state(index, 0));
    }
    let driver = |at| Driver::new(Arc::clone(&world.memory), GuestAddr(at), SIZE, FEATURES);
    // Another driver in the same place: the guest has booted anew, and its IOMMU may lead elsewhere now.
    let rings = RINGS.map(driver);
    world.memory.write(GuestAddr(PAGE), &[0; 6 * 4096]);
    [world.rx, world.tx] = rings;
    world.start_rings();
    let asked = world.wait_questions();
    assert!(
        RINGS
            .iter()
            .all(|ring| asked.iter().any(|question| question.iova == ring + SHIFT)),
        "{asked:?}"
    );
    world.transmit(0, b"from a buffer not told yet");
    world.answer(&asked);
    eventually("connected", || world.connected());
    assert!(world.poll().is_empty());
    assert_eq!(world.wait_questions()[0].iova, buffer(0));
}

#[test]
fn updates_that_lead_out_of_memory_or_come_without_a_reason_are_refused_and_nothing_else_happens() {
    let mut world = World::run("refused");
    let end = FRONTEND_OFFSET + 65 * PAGE;
    for (size, target) in [
        (PAGE, end),
        (PAGE, end - 1),
        (PAGE, 0),
        (65 * PAGE, FRONTEND_OFFSET + PAGE),
    ] {
        assert_ne!(
            world.ask(IOTLB_MSG, &iotlb(buffer(0), size, target, BOTH, UPDATE)),
            0
        );
    }
    assert!(world.connected());
    assert_eq!(world.get(GET_FEATURES, &[]) & FEATURES.0, FEATURES.0);

    let mut plain = World::connect("plain");
    plain.send(SET_PROTOCOL_FEATURES, VERSION, &numbers(&[PROTOCOL]), &[]);
    let without = FEATURES.without(VIRTIO_F_ACCESS_PLATFORM);
    assert_eq!(plain.ask(SET_FEATURES, &numbers(&[without.0])), 0);
    assert_ne!(plain.tell(buffer(0), BOTH), 0);
    assert_ne!(plain.get(GET_FEATURES, &[]), 0);
}

#[test]
fn a_front_end_that_misuses_its_channel_loses_that_and_costs_the_control_thread_nothing() {
    let mut world = World::run("misused");
    world.channel.write_all(&[0xff; 64]).expect("to write");
    eventually("the channel is given up", || {
        world.transmit(0, b"miss");
        world.poll();
        world.questions().is_empty()
    });
    // The connection lives. And though a copy of the port's end is open and readable, nobody goes round in circles.
    assert!(world.connected());
    // (Other tests have work for that thread, but not all the time.)
    let is_idle = |_| {
        let before = control_thread_time();
        std::thread::sleep(Duration::from_millis(300));
        control_thread_time() - before <= 20
    };
    assert!((0..10).any(is_idle));
    // A new channel asks what the old one did not get answered.
    let (channel, theirs) = UnixStream::pair().expect("a socket pair");
    channel.set_nonblocking(true).expect("non-blocking");
    assert_eq!(world.ask_with(SET_BACKEND_REQ_FD, &[], theirs.as_raw_fd()), 0);
    world.channel = channel;
    world.invalidate(buffer(0), PAGE);
    let mut got = Vec::new();
    world.answer_until("a frame", |world| {
        got.extend(world.poll());
        !got.is_empty()
    });
    let file = OwnedFd::from(tempfile::tempfile().expect("a file"));
    assert_ne!(world.ask_with(SET_BACKEND_REQ_FD, &[], file.as_raw_fd()), 0);
}

#[test]
fn a_new_channel_is_asked_at_once_what_the_one_before_left_open() {
    let mut world = World::run("anew");
    world.transmit(0, b"waits");
    assert!(world.poll().is_empty());
    assert_eq!(world.wait_questions()[0].iova, buffer(0));
    let (channel, theirs) = UnixStream::pair().expect("a socket pair");
    channel.set_nonblocking(true).expect("non-blocking");
    assert_eq!(world.ask_with(SET_BACKEND_REQ_FD, &[], theirs.as_raw_fd()), 0);
    world.channel = channel;
    let asked = world.wait_questions();
    assert_eq!(asked[0].iova, buffer(0));
    world.answer(&asked);
    assert_eq!(world.poll(), [b"waits"]);
}

#[test]
fn a_server_port_does_not_offer_it() {
    let (_port, path) = TestPort::server("iommu-server", switches());
    let mut stream = UnixStream::connect(path).expect("a port that listens");
    stream
        .write_all(&message(GET_FEATURES, VERSION, &[]))
        .expect("to ask");
    let features = Features(u64::from_ne_bytes(reply(&mut stream, GET_FEATURES)));
    assert!(!features.contains(VIRTIO_F_ACCESS_PLATFORM));
}

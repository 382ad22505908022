//! Front-ends that make a port do all that it can do for one: each visit goes from a connection to its end.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use ovs_vhost::datapath::TxSlot;
use ovs_vhost::memory::GuestAddr;
use ovs_vhost::model::{Buffer, Driver, GuestMemory, PageServer, Scattered, Virtqueue, FRONTEND_OFFSET};
use ovs_vhost::virtio::features::{
    Features, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1,
};
use rustix::event::{eventfd, EventfdFlags};
use rustix::fs::{ftruncate, memfd_create, MemfdFlags};

use crate::common::TestPort;
use crate::talk::*;
use crate::wire::{message, VERSION};

const PLAIN: Features = VIRTIO_F_VERSION_1.with(VHOST_USER_F_PROTOCOL_FEATURES);
/// Protocol features by their bits: MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, PAGEFAULT, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS,
/// DEVICE_STATE.
const PROTOCOL: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 12 | 1 << 15 | 1 << 19;

const PAGE: u64 = 4096;
const SIZE: u16 = 64;
const RINGS: [GuestAddr; 2] = [GuestAddr(2 * PAGE), GuestAddr(4 * PAGE)];
/// One for each ring.
const BUFFERS: [GuestAddr; 2] = [GuestAddr(8 * PAGE), GuestAddr(9 * PAGE)];
const HEADER: usize = 12;

fn event() -> Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::NONBLOCK)?)
}

/// The first pair of rings of a guest.
struct Pair([Driver; 2]);

impl Pair {
    fn new(memory: &Arc<GuestMemory>, at: [GuestAddr; 2], size: u16, features: Features) -> Pair {
        Pair(at.map(|at| Driver::new(Arc::clone(memory), at, size, features)))
    }

    /// One frame each way.
    fn exchange(&mut self, port: &TestPort) -> Result<()> {
        let Pair([receiveq, transmitq]) = self;
        let frame = [0x5a; 100];
        let give = |ring: &mut Driver, addr, len, write| {
            ring.add(&[Buffer { addr, len, write }]).context("a full ring")?;
            ring.publish();
            anyhow::Ok(())
        };
        transmitq
            .memory()
            .write(BUFFERS[1], &[&[0; HEADER][..], &frame].concat());
        give(transmitq, BUFFERS[1], 112, false)?;
        let came = port.burst(0);
        ensure!(
            came.iter().any(|came| came == &frame),
            "out of the guest came {came:?}"
        );
        give(receiveq, BUFFERS[0], 2048, true)?;
        port.send(0, &[TxSlot::new(&frame)]);
        ensure!(receiveq.reap().is_some(), "nothing came to the guest");
        ensure!(transmitq.reap().is_some(), "the guest's buffer did not come back");
        Ok(())
    }
}

/// Says who one is, up to the features.
fn introduce(talk: &mut Talk, features: Features) -> Result<()> {
    talk.tell(SET_OWNER, &[], &[])?;
    let offered = talk.number(GET_FEATURES, &[], &[])?;
    ensure!(offered & features.0 == features.0, "offered: {offered:#x}");
    let protocol = talk.number(GET_PROTOCOL_FEATURES, &[], &[])?;
    talk.tell(SET_PROTOCOL_FEATURES, &numbers(&[protocol & PROTOCOL]), &[])?;
    talk.ask(SET_FEATURES, &numbers(&[features.0]), &[])
}

fn connected(port: &TestPort, talk: &mut Talk) -> Result<()> {
    talk.wait("connected", |_| Ok(port.connected()))
}

fn start(talk: &mut Talk, pair: &Pair, kick: &OwnedFd) -> Result<()> {
    for index in [0, 1] {
        let ring = pair.0[usize::from(index)].config(index);
        let places = [ring.desc, ring.driver, ring.device].map(|place| place.0);
        talk.start_ring(&ring, places, kick, Talk::ask)?;
    }
    Ok(())
}

/// A guest that runs, and is left running.
pub struct Running {
    talk: Talk,
    pair: Pair,
}

impl Running {
    pub fn on(port: &TestPort, stream: UnixStream) -> Result<Running> {
        let mut talk = Talk::on(stream)?;
        introduce(&mut talk, PLAIN)?;
        let memory = Arc::new(GuestMemory::new(16 * PAGE));
        let (desc, fd) = &memory.regions()[0];
        talk.ask(
            SET_MEM_TABLE,
            &[state(1, 0), region(desc)].concat(),
            &[fd.as_raw_fd()],
        )?;
        let pair = Pair::new(&memory, RINGS, SIZE, PLAIN);
        start(&mut talk, &pair, &event()?)?;
        connected(port, &mut talk)?;
        Ok(Running { talk, pair })
    }

    /// Whether all is as ever.
    pub fn goes_on(&mut self, port: &TestPort) -> Result<()> {
        self.pair.exchange(port)?;
        self.talk.number(GET_FEATURES, &[], &[]).map(drop)
    }
}

/// A guest on any port: its memory in two regions, a log, a buffer for what is in flight, a frame each way, a ring that is
/// disabled and kicked, the device's own state in the end.
pub fn plain(port: &TestPort, stream: UnixStream) -> Result<()> {
    const LOGGED: Features = PLAIN.with(VHOST_F_LOG_ALL);
    let mut talk = Talk::on(stream)?;
    introduce(&mut talk, LOGGED)?;
    let (channel, theirs) = UnixStream::pair()?;
    talk.ask(SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()])?;
    drop(theirs);

    let (desc, buffer) = talk.get(
        GET_INFLIGHT_FD,
        &[numbers(&[0, 0]), vec![2, 0, 64, 0]].concat(),
        &[],
    )?;
    let buffer = buffer.context("no in-flight buffer")?;
    talk.ask(SET_INFLIGHT_FD, &desc, &[buffer.as_raw_fd()])?;

    let memory = Arc::new(GuestMemory::with_regions(&[
        (GuestAddr(PAGE), 15 * PAGE),
        (GuestAddr(64 * PAGE), PAGE),
    ]));
    let regions = memory.regions();
    for (desc, fd) in &regions {
        talk.ask(
            ADD_MEM_REG,
            &[numbers(&[0]), region(desc)].concat(),
            &[fd.as_raw_fd()],
        )?;
    }
    let log = memfd_create("log", MemfdFlags::CLOEXEC)?;
    ftruncate(&log, PAGE)?;
    talk.get(SET_LOG_BASE, &numbers(&[PAGE, 0]), &[log.as_raw_fd()])?;
    talk.ask(SET_LOG_FD, &[], &[event()?.as_raw_fd()])?;

    let kick = event()?;
    let mut pair = Pair::new(&memory, RINGS, SIZE, LOGGED);
    start(&mut talk, &pair, &kick)?;
    connected(port, &mut talk)?;
    pair.exchange(port)?;

    talk.ask(SET_VRING_ENABLE, &state(1, 0), &[])?;
    let len = 64;
    let addr = BUFFERS[1];
    pair.0[1]
        .add(&[Buffer {
            addr,
            len,
            write: false,
        }])
        .context("a full ring")?;
    pair.0[1].publish();
    rustix::io::write(&kick, &1_u64.to_ne_bytes())?;
    talk.wait("a drained ring", |_| Ok(pair.0[1].reap().is_some()))?;

    for index in [0, 1] {
        talk.get(GET_VRING_BASE, &state(index, 0), &[])?;
    }
    let (reader, writer) = UnixStream::pair()?;
    talk.number(SET_DEVICE_STATE_FD, &state(0, 0), &[writer.as_raw_fd()])?;
    ensure!(
        talk.number(CHECK_DEVICE_STATE, &[], &[])? == 0,
        "the state was not saved"
    );
    drop((reader, writer));
    let (desc, _) = &regions[1];
    talk.ask(REM_MEM_REG, &[numbers(&[0]), region(desc)].concat(), &[])?;
    drop(channel);
    Ok(())
}

/// A guest behind an IOMMU, whose rings lie in pages from anywhere, and who is asked where.
pub fn behind_iommu(port: &TestPort, stream: UnixStream) -> Result<()> {
    const FEATURES: Features = PLAIN.with(VIRTIO_F_ACCESS_PLATFORM);
    /// Descriptors of more than a page.
    const LARGE: u16 = 512;
    const RINGS: [GuestAddr; 2] = [GuestAddr(16 * PAGE), GuestAddr(24 * PAGE)];
    let mut talk = Talk::on(stream)?;
    introduce(&mut talk, FEATURES)?;
    let (mut channel, theirs) = UnixStream::pair()?;
    channel.set_nonblocking(true)?;
    talk.ask(SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()])?;
    drop(theirs);

    let scattered = Scattered::new(&[(GuestAddr(PAGE), 31 * PAGE)]);
    let (desc, fd) = &scattered.guest().regions()[0];
    talk.ask(
        SET_MEM_TABLE,
        &[state(1, 0), region(desc)].concat(),
        &[fd.as_raw_fd()],
    )?;
    let mut pair = Pair::new(&scattered.seen(), RINGS, LARGE, FEATURES);
    let kick = event()?;
    for index in [0, 1] {
        let ring = pair.0[usize::from(index)].config(index);
        let places = [ring.desc, ring.driver, ring.device].map(|place| place.0 - FRONTEND_OFFSET);
        talk.start_ring(&ring, places, &kick, Talk::ask)?;
    }
    for page in BUFFERS {
        translate(&mut talk, &scattered, page)?;
    }
    talk.wait("connected", |talk| {
        answer(&mut channel, talk, &scattered)?;
        Ok(port.connected())
    })?;
    pair.exchange(port)
}

/// Tells where a page is.
fn translate(talk: &mut Talk, scattered: &Scattered, page: GuestAddr) -> Result<()> {
    const BOTH: u8 = 3;
    const UPDATE: u8 = 2;
    let target = scattered.translation(page).target.0;
    let payload = [
        numbers(&[page.0, PAGE, target]),
        vec![BOTH, UPDATE, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    talk.ask(IOTLB_MSG, &payload, &[])
}

/// Answers what was asked meanwhile.
fn answer(channel: &mut UnixStream, talk: &mut Talk, scattered: &Scattered) -> Result<()> {
    const NEED_REPLY: u8 = 1 << 3;
    const REPLY: u32 = 1 << 2;
    let mut asked = [0; 44];
    loop {
        match channel.read(&mut asked) {
            Ok(44) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            other => anyhow::bail!("the back-end channel: {other:?}"),
        }
        let iova = u64::from_ne_bytes(asked[12..20].try_into()?);
        translate(talk, scattered, GuestAddr(iova & !(PAGE - 1)))?;
        if asked[4] & NEED_REPLY != 0 {
            channel.write_all(&message(1, VERSION | REPLY, &numbers(&[0])))?;
        }
    }
}

/// A guest in post-copy that leaves while somebody waits for its pages.
pub fn leaving_in_postcopy(_port: &TestPort, stream: UnixStream) -> Result<()> {
    let mut incoming = Incoming::on(stream)?;
    incoming.start()?;
    let Incoming { talk, pages, .. } = &mut incoming;
    talk.wait("a page is asked for", |_| Ok(pages.next().is_some()))
}

/// A guest in post-copy, all of whose pages arrive.
pub fn postcopy(port: &TestPort, stream: UnixStream) -> Result<()> {
    let mut incoming = Incoming::on(stream)?;
    incoming.start()?;
    let Incoming {
        talk,
        pages,
        base,
        pair,
        ..
    } = &mut incoming;
    talk.wait("connected", |_| {
        if let Some(page) = pages.next() {
            // It may be there already, for another who waited.
            let _ = pages.bring(page, &[0; 4096]);
        }
        Ok(port.connected())
    })?;
    for page in 0..15 {
        // Those that nobody has touched.
        let _ = pages.bring(*base + page * PAGE, &[0; 4096]);
    }
    pair.exchange(port)?;
    ensure!(
        talk.number(POSTCOPY_END, &[], &[])? == 0,
        "post-copy did not end well"
    );
    pair.exchange(port)
}

/// A guest that runs already, and of whose memory nothing has arrived yet.
struct Incoming {
    talk: Talk,
    pages: PageServer,
    /// Where the port has the guest's first page.
    base: u64,
    pair: Pair,
    kick: OwnedFd,
}

impl Incoming {
    fn on(stream: UnixStream) -> Result<Incoming> {
        let mut talk = Talk::on(stream)?;
        introduce(&mut talk, PLAIN)?;
        let (_, pages) = talk.get(POSTCOPY_ADVISE, &[], &[])?;
        let pages = PageServer::new(pages.context("no userfaultfd")?);
        talk.ask(POSTCOPY_LISTEN, &[], &[])?;
        let memory = Arc::new(GuestMemory::new(15 * PAGE));
        let (desc, fd) = &memory.regions()[0];
        let payload = [state(1, 0), region(desc)].concat();
        let (told, _) = talk.get(SET_MEM_TABLE, &payload, &[fd.as_raw_fd()])?;
        let base = told.get(24..32).context("no address")?;
        let base = u64::from_ne_bytes(base.try_into()?);
        talk.ask(SET_MEM_TABLE, &numbers(&[0]), &[])?;
        Ok(Incoming {
            talk,
            pages,
            base,
            pair: Pair::new(&memory, RINGS, SIZE, PLAIN),
            kick: event()?,
        })
    }

    /// Starts the rings, and waits for no answer: whoever starts one waits for its pages.
    fn start(&mut self) -> Result<()> {
        for index in [0, 1] {
            let ring = self.pair.0[usize::from(index)].config(index);
            let places = [ring.desc, ring.driver, ring.device].map(|place| place.0);
            self.talk.start_ring(&ring, places, &self.kick, Talk::tell)?;
        }
        Ok(())
    }
}

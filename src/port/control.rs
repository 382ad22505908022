//! The control thread: one for all ports. It alone speaks to front-ends, and nothing it does waits for
//! one: every socket is non-blocking, every wait has an end, and everybody's turn is bounded.
//!
//! Main sends it commands; poll threads poke it when a ring breaks or misses an address. It takes no lock that another
//! thread holds for longer than it takes to copy a few words, and it never waits for Open vSwitch's RCU.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{unbounded, Receiver, Sender};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{eventfd, EventfdFlags, Timespec};

use crate::memory::lost_news;
use crate::panics;

use super::listener::Listener;
use super::peer::Peer;
use super::shared::{Port, PortId};
use super::thread;
use super::watch::Watches;

/// What main asks of the control thread.
pub(super) enum Command {
    /// Serve this port from now on; server mode: its socket is there.
    Add(Arc<Port>, Option<PathBuf>),
    /// Server mode: front-ends may knock.
    Listen(PortId, Listener),
    /// Client mode: connect it to this path from now on, or to nothing.
    Configure(PortId, Option<PathBuf>),
    /// Its configuration space may have changed.
    Reconfigured(PortId),
    /// Forget it: take down its connection, its rings and its socket.
    Remove(PortId),
    /// A panic was caught in it elsewhere: as `Remove`, but it stays known to main.
    Poisoned(PortId),
    /// Panics while serving it.
    #[cfg(feature = "fault-injection")]
    Panic(PortId),
}

/// The way to the control thread. Cheap to copy; the thread lives as long as the process.
#[derive(Clone)]
pub(super) struct Control {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
}

impl Control {
    /// Starts the thread. `on_start` runs first in it.
    pub(super) fn start(on_start: impl FnOnce() + Send + 'static) -> io::Result<Control> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, inbox) = unbounded();
        let reactor = Reactor::new()?;
        reactor.add(wake.as_fd(), Source::Wake)?;
        reactor.add(reactor.watches.as_fd(), Source::Watches)?;
        reactor.add_edges(lost_news()?, Source::Lost)?;
        let mut control = ControlThread {
            reactor,
            inbox,
            wake: Arc::clone(&wake),
            peers: BTreeMap::new(),
            wanted: BTreeMap::new(),
        };
        thread::spawn("ovs-vhost", move || {
            on_start();
            control.run();
        })?;
        Ok(Control { commands, wake })
    }

    pub(super) fn send(&self, command: Command) {
        // The thread never ends before the process, so there is always somebody to receive.
        let _ = self.commands.send(command);
        self.poke();
    }

    /// Makes the thread look round. Any thread; never blocks.
    pub(super) fn poke(&self) {
        // A full counter already says what this would.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// What a ready descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Wake,
    Watches,
    /// A mapping of some front-end's memory is lost.
    Lost,
    Listener(PortId),
    Connection(PortId),
    /// The driver of this vring kicked.
    Kick(PortId, u16),
    Backend(PortId),
}

/// A source as epoll carries it: the port's number, a vring's in eight bits, then three bits that say what it is.
impl Source {
    fn data(self) -> EventData {
        EventData::new_u64(match self {
            Source::Wake => 0,
            Source::Watches => 1,
            Source::Lost => 6,
            Source::Listener(id) => id.0 << 11 | 2,
            Source::Connection(id) => id.0 << 11 | 3,
            Source::Kick(id, vring) => id.0 << 11 | u64::from(vring & 0xff) << 3 | 4,
            Source::Backend(id) => id.0 << 11 | 5,
        })
    }

    fn of(data: u64) -> Source {
        let id = PortId(data >> 11);
        let [vring, ..] = (data >> 3).to_le_bytes();
        match data & 7 {
            0 => Source::Wake,
            1 => Source::Watches,
            2 => Source::Listener(id),
            3 => Source::Connection(id),
            4 => Source::Kick(id, u16::from(vring)),
            6 => Source::Lost,
            _ => Source::Backend(id),
        }
    }
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Readiness {
    pub(super) input: bool,
    pub(super) output: bool,
}

/// What peers register with: readiness of descriptors, appearance of files.
pub(super) struct Reactor {
    epoll: Arc<OwnedFd>,
    pub(super) watches: Watches<PortId>,
}

impl Reactor {
    pub(super) fn new() -> io::Result<Reactor> {
        Ok(Reactor {
            epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?),
            watches: Watches::new()?,
        })
    }

    pub(super) fn add(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, source.data(), EventFlags::IN)?)
    }

    /// Adds what came from a front-end: see [`Watched`].
    pub(super) fn watch<T: AsFd>(&self, inner: T, source: Source) -> io::Result<Watched<T>> {
        self.add(inner.as_fd(), source)?;
        Ok(Watched {
            inner,
            epoll: Arc::clone(&self.epoll),
        })
    }

    /// Reports each time something is written to `fd`, which nobody need read.
    pub(super) fn add_edges(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, source.data(), flags)?)
    }

    /// Asks for this from now on; of a hang-up a socket tells always.
    pub(super) fn rearm(&self, fd: BorrowedFd<'_>, source: Source, readiness: Readiness) {
        let mut flags = EventFlags::RDHUP;
        flags.set(EventFlags::IN, readiness.input);
        flags.set(EventFlags::OUT, readiness.output);
        // It was added: changing what to wait for cannot fail.
        let _ = epoll::modify(&self.epoll, fd, source.data(), flags);
    }

    pub(super) fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, fd);
    }
}

/// A descriptor that a front-end sent, watched until dropped. Closing it would not be enough: the front-end may keep its
/// own copy open, and epoll would go on to tell of that.
pub(super) struct Watched<T: AsFd> {
    pub(super) inner: T,
    epoll: Arc<OwnedFd>,
}

impl<T: AsFd> Drop for Watched<T> {
    fn drop(&mut self) {
        let _ = epoll::delete(&self.epoll, self.inner.as_fd());
    }
}

struct ControlThread {
    reactor: Reactor,
    inbox: Receiver<Command>,
    wake: Arc<OwnedFd>,
    peers: BTreeMap<PortId, Peer>,
    /// Client ports and the path each was last given, whether or not it has it.
    wanted: BTreeMap<PortId, PathBuf>,
}

impl ControlThread {
    fn run(&mut self) {
        let mut events = Vec::with_capacity(64);
        loop {
            let timeout = self.until_next_deadline();
            // EINTR and the like: look round and wait again.
            let _ = epoll::wait(&self.reactor.epoll, spare_capacity(&mut events), timeout.as_ref());
            let now = Instant::now();
            for event in events.drain(..) {
                self.survive(|thread| thread.dispatch(Source::of(event.data.u64()), now));
            }
            self.survive(|thread| thread.tick(now));
        }
    }

    /// Does one thing. A panic outside any port's own work must not end the thread that serves them all.
    fn survive(&mut self, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            log::error!("internal error in the control thread: {}", panics::take());
        }
    }

    fn until_next_deadline(&self) -> Option<Timespec> {
        let next = self.peers.values().filter_map(Peer::wakes_at).min()?;
        let wait = next.saturating_duration_since(Instant::now());
        Timespec::try_from(wait.max(Duration::from_micros(1))).ok()
    }

    fn dispatch(&mut self, source: Source, now: Instant) {
        match source {
            Source::Wake => self.woken(now),
            Source::Watches => {
                for id in self.reactor.watches.drain() {
                    self.with(id, |peer, reactor| peer.appeared(reactor, now));
                }
            }
            Source::Lost => {
                let everybody: Vec<PortId> = self.peers.keys().copied().collect();
                for id in everybody {
                    self.with(id, |peer, reactor| peer.check_memory(reactor, now));
                }
            }
            Source::Listener(id) => self.with(id, |peer, reactor| peer.acceptable(reactor, now)),
            Source::Connection(id) => self.with(id, |peer, reactor| peer.readable(reactor, now)),
            Source::Kick(id, vring) => self.with(id, |peer, _| peer.kicked(vring, now)),
            Source::Backend(id) => self.with(id, |peer, reactor| peer.answered(reactor, now)),
        }
    }

    fn tick(&mut self, now: Instant) {
        let due = |p: &Peer| p.wakes_at().is_some_and(|at| now >= at);
        let due: Vec<PortId> = self.peers.values().filter(|p| due(p)).map(Peer::id).collect();
        for id in due {
            self.with(id, |peer, reactor| peer.tick(reactor, now));
        }
    }

    /// Serves one port. A panic there is that port's end, and nobody else's.
    fn with(&mut self, id: PortId, serve: impl FnOnce(&mut Peer, &mut Reactor)) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let reactor = &mut self.reactor;
        if catch_unwind(AssertUnwindSafe(|| serve(peer, reactor))).is_err() {
            peer.port().poison(&panics::take());
            self.drop_peer(id);
        }
    }

    fn woken(&mut self, now: Instant) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
        let mut obeyed = false;
        while let Ok(command) = self.inbox.try_recv() {
            self.obey(command, now);
            obeyed = true;
        }
        if obeyed {
            self.allot(now);
        }
        let broken: Vec<PortId> = self
            .peers
            .values()
            .filter(|p| p.port().has_faults())
            .map(Peer::id)
            .collect();
        for id in broken {
            self.with(id, |peer, _| peer.rings_broke(now));
        }
        let away: Vec<PortId> = self
            .peers
            .values()
            .filter(|p| p.is_away())
            .map(Peer::id)
            .collect();
        for id in away {
            self.with(id, |peer, reactor| peer.readable(reactor, now));
        }
        let missing: Vec<PortId> = self
            .peers
            .values()
            .filter(|p| !p.is_away() && p.port().take_misses())
            .map(Peer::id)
            .collect();
        for id in missing {
            self.with(id, |peer, reactor| peer.rings_missed(reactor, now));
        }
    }

    fn obey(&mut self, command: Command, now: Instant) {
        match command {
            Command::Add(port, socket) => {
                let peer = Peer::new(port, socket, now);
                self.peers.insert(peer.id(), peer);
            }
            Command::Listen(id, listener) => {
                self.with(id, |peer, reactor| peer.listen(listener, reactor, now));
            }
            Command::Configure(id, path) => {
                match path {
                    Some(path) => self.wanted.insert(id, path),
                    None => self.wanted.remove(&id),
                };
            }
            Command::Reconfigured(id) => self.with(id, |peer, reactor| peer.ask(reactor, now)),
            Command::Remove(id) => {
                self.wanted.remove(&id);
                if let Some(peer) = self.peers.remove(&id) {
                    let reactor = &mut self.reactor;
                    // A panic now has nobody left to concern.
                    let _ = catch_unwind(AssertUnwindSafe(|| peer.close(reactor, now)));
                }
                self.reactor.watches.forget(id);
            }
            Command::Poisoned(id) => self.drop_peer(id),
            #[cfg(feature = "fault-injection")]
            Command::Panic(id) => self.with(id, |_, _| panic!("injected")),
        }
    }

    /// Drops a port that panicked. What its destructors may still trip over is caught too.
    fn drop_peer(&mut self, id: PortId) {
        self.wanted.remove(&id);
        self.reactor.watches.forget(id);
        let peer = self.peers.remove(&id);
        // Closing its descriptors takes them out of epoll.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(peer)));
    }

    /// Gives each client port its path, or nothing while another port has it: two ports on one socket
    /// would take turns at breaking each other's connection.
    fn allot(&mut self, now: Instant) {
        // Those that lose or change their path go first, so that others find it free.
        for id in self.unwanted() {
            self.with(id, |peer, reactor| peer.configure(None, reactor, now));
        }
        let mut holders: HashMap<PathBuf, (PortId, String)> = self
            .peers
            .values()
            .filter_map(|p| Some((p.socket()?.to_owned(), (p.id(), p.port().name().to_owned()))))
            .collect();
        let lacking: Vec<(PortId, PathBuf)> = self
            .wanted
            .iter()
            .filter(|(id, path)| holders.get(*path).is_none_or(|(holder, _)| holder != *id))
            .map(|(id, path)| (*id, path.clone()))
            .collect();
        for (id, path) in lacking {
            match holders.get(&path) {
                Some((_, holder)) => self.with(id, |peer, _| peer.wait_for(&path, holder, now)),
                None => {
                    let name = self.peers.get(&id).map(|p| p.port().name().to_owned());
                    self.with(id, |peer, reactor| {
                        peer.configure(Some(path.clone()), reactor, now)
                    });
                    holders.insert(path, (id, name.unwrap_or_default()));
                }
            }
        }
    }

    /// Client ports that have a path which is not theirs any more.
    fn unwanted(&self) -> Vec<PortId> {
        let has_another = |p: &&Peer| {
            p.is_client()
                && p.socket().is_some()
                && self.wanted.get(&p.id()).map(PathBuf::as_path) != p.socket()
        };
        self.peers.values().filter(has_another).map(Peer::id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_survives_its_way_through_epoll() {
        let id = PortId(12345);
        for source in [
            Source::Wake,
            Source::Watches,
            Source::Lost,
            Source::Listener(id),
            Source::Connection(id),
            Source::Backend(id),
            Source::Kick(id, 0),
            Source::Kick(id, 255),
            Source::Backend(id),
        ] {
            assert_eq!(Source::of(source.data().u64()), source);
        }
    }
}

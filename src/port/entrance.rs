//! Where front-ends knock at a server port, as the control thread sees it: who is let in, and when nobody is heard.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::control::{Reactor, Readiness, Source};
use super::listener::Listener;
use super::protection::Stranger;
use super::shared::PortId;

/// How long nobody is heard after that, or to accept somebody, was more than the system could do.
const DEAFNESS: Duration = Duration::from_secs(1);

pub(super) struct Entrance {
    listener: Listener,
    source: Source,
    /// Whether the reactor knows of it.
    is_watched: bool,
    /// When it wants to hear again, while it does not.
    deaf_until: Option<Instant>,
}

/// What came of a knock.
pub(super) enum Knock {
    FrontEnd(UnixStream),
    /// To be hung up on once that is counted: whoever sees it happen can look it up.
    Stranger(Stranger, UnixStream),
    Nobody,
}

impl Entrance {
    /// Hears nobody before the first [`tick`](Self::tick), which is due.
    pub(super) fn new(listener: Listener, id: PortId, now: Instant) -> Entrance {
        Entrance {
            listener,
            source: Source::Listener(id),
            is_watched: false,
            deaf_until: Some(now),
        }
    }

    /// Accepts who knocks, if it is one of `allowed`. An error is most likely that there is no descriptor left: as it would
    /// knock again at once, and all the time, nobody is heard for a while.
    pub(super) fn answer(
        &mut self,
        allowed: Option<&[u32]>,
        reactor: &Reactor,
        now: Instant,
    ) -> io::Result<Knock> {
        let accepted = self.listener.accept().inspect_err(|_| {
            self.hear(false, reactor);
            self.deaf_until = Some(now + DEAFNESS);
        });
        Ok(match accepted? {
            Some(stream) => match Stranger::among(allowed, &stream) {
                Some(stranger) => Knock::Stranger(stranger, stream),
                None => Knock::FrontEnd(stream),
            },
            None => Knock::Nobody,
        })
    }

    /// When it wants a tick.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        self.deaf_until
    }

    /// Hears those who knock, if it is time to. If the system cannot have that, it is tried again.
    pub(super) fn tick(&mut self, reactor: &Reactor, now: Instant) -> io::Result<()> {
        if self.deaf_until.is_none_or(|until| now < until) {
            return Ok(());
        }
        self.deaf_until = Some(now + DEAFNESS);
        match self.is_watched {
            true => self.hear(true, reactor),
            false => reactor.add(self.listener.as_fd(), self.source)?,
        }
        (self.is_watched, self.deaf_until) = (true, None);
        Ok(())
    }

    pub(super) fn close(self, reactor: &Reactor) {
        reactor.remove(self.listener.as_fd());
    }

    fn hear(&self, wanted: bool, reactor: &Reactor) {
        let readiness = Readiness {
            input: wanted,
            output: false,
        };
        reactor.rearm(self.listener.as_fd(), self.source, readiness);
    }
}

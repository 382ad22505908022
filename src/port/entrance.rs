//! Where front-ends knock at a server port, as the control thread sees it: who is let in, and when nobody is heard.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::control::{Reactor, Readiness, Source};
use super::listener::Listener;
use super::protection::Stranger;
use super::shared::PortId;

/// How long nobody is heard after somebody could not be accepted.
const DEAFNESS: Duration = Duration::from_secs(1);

pub(super) struct Entrance {
    listener: Listener,
    source: Source,
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
    pub(super) fn new(listener: Listener, id: PortId, reactor: &Reactor) -> io::Result<Entrance> {
        let source = Source::Listener(id);
        reactor.add(listener.as_fd(), source)?;
        Ok(Entrance {
            listener,
            source,
            deaf_until: None,
        })
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

    pub(super) fn tick(&mut self, reactor: &Reactor, now: Instant) {
        if self.deaf_until.is_some_and(|until| now >= until) {
            self.deaf_until = None;
            self.hear(true, reactor);
        }
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

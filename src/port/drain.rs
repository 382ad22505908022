//! Transmitqs that are started and disabled: what the guest sends on them is given back unread.
//!
//! A ring is started and enabled independently (vhost-user, "Ring states"), and a device must go on taking what is sent on
//! a ring that is only started, or a guest that closes its interface waits for its buffers for ever. No poll thread looks at
//! such a ring, so its driver is asked to kick, and the control thread watches the kick descriptors.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::{Reactor, Source};
use super::shared::{Port, PortId};

/// How long a ring is left alone first. Front-ends start a ring and enable it right after; what waits in it then, as after a
/// restart of this process, is to arrive and not to be dropped in between.
const GRACE: Duration = Duration::from_millis(100);
/// When to come back to a ring whose driver made buffers available while others were given back.
const AGAIN: Duration = Duration::from_millis(1);

/// The rings of one front-end that drain.
#[derive(Default)]
pub(super) struct Drains(BTreeMap<u16, Drain>);

struct Drain {
    /// None for a driver that does not kick: then there is only what waits at the start.
    kick: Option<Arc<OwnedFd>>,
    watched: bool,
    /// When to look at the ring although nobody kicks.
    due: Option<Instant>,
}

impl Drains {
    /// Takes note of which rings are started and disabled now, each with its kick descriptor.
    pub(super) fn settle(
        &mut self,
        idle: impl Iterator<Item = (u16, Option<Arc<OwnedFd>>)>,
        reactor: &Reactor,
        now: Instant,
    ) {
        let mut before = std::mem::take(&mut self.0);
        for (vring, kick) in idle {
            let same = |drain: &Drain| drain.kick.as_ref().map(Arc::as_ptr) == kick.as_ref().map(Arc::as_ptr);
            let drain = match before.remove(&vring) {
                Some(drain) if same(&drain) => drain,
                other => {
                    other.into_iter().for_each(|old| old.forget(reactor));
                    let due = Some(now + GRACE);
                    Drain {
                        kick,
                        watched: false,
                        due,
                    }
                }
            };
            self.0.insert(vring, drain);
        }
        before.into_values().for_each(|old| old.forget(reactor));
    }

    /// When a ring next wants to be looked at.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        self.0.values().filter_map(|drain| drain.due).min()
    }

    /// A driver kicked. A ring that is looked at soon anyway can wait.
    pub(super) fn kicked(&mut self, vring: u16, port: &Port, now: Instant) {
        if let Some(drain) = self.0.get_mut(&vring).filter(|drain| drain.due.is_none()) {
            drain.run(vring, port, now);
        }
    }

    /// Looks at the rings that are due, each once and for a ring full at most.
    pub(super) fn tick(&mut self, port: &Port, reactor: &Reactor, id: PortId, now: Instant) {
        let due = |drain: &Drain| drain.due.is_some_and(|at| now >= at);
        for (vring, drain) in self.0.iter_mut().filter(|(_, drain)| due(drain)) {
            // Watch first: a kick between the two would be missed.
            if let (Some(kick), false) = (&drain.kick, drain.watched) {
                drain.watched = reactor
                    .add_edges(kick.as_fd(), Source::Kick(id, *vring))
                    .inspect_err(|error| {
                        log::debug!(
                            "port '{}': kicks of vring {vring} cannot be waited for: {error}",
                            port.name()
                        )
                    })
                    .is_ok();
            }
            drain.run(*vring, port, now);
        }
    }

    /// Watches nothing any more.
    pub(super) fn clear(&mut self, reactor: &Reactor) {
        self.settle(std::iter::empty(), reactor, Instant::now());
    }
}

impl Drain {
    fn run(&mut self, vring: u16, port: &Port, now: Instant) {
        self.due = port.queue(vring).discard().then_some(now + AGAIN);
    }

    /// The front-end holds the descriptor too, so closing ours would not end the watch.
    fn forget(self, reactor: &Reactor) {
        if let (Some(kick), true) = (&self.kick, self.watched) {
            reactor.remove(kick.as_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{eventfd, EventfdFlags};

    use super::*;

    fn kick() -> Option<Arc<OwnedFd>> {
        Some(Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap()))
    }

    #[test]
    fn a_ring_is_left_alone_for_its_grace_and_not_at_all_once_it_is_enabled() {
        let (reactor, now) = (Reactor::new().unwrap(), Instant::now());
        let (mut drains, kick) = (Drains::default(), kick());
        drains.settle([(1, kick.clone())].into_iter(), &reactor, now);
        assert_eq!(drains.wakes_at(), Some(now + GRACE));
        // Messages that change nothing do not put it off.
        let later = now + Duration::from_millis(60);
        drains.settle([(1, kick.clone())].into_iter(), &reactor, later);
        assert_eq!(drains.wakes_at(), Some(now + GRACE));
        drains.settle(std::iter::empty(), &reactor, later);
        assert_eq!(drains.wakes_at(), None);
    }

    #[test]
    fn another_kick_descriptor_is_another_ring() {
        let (reactor, now) = (Reactor::new().unwrap(), Instant::now());
        let mut drains = Drains::default();
        drains.settle([(1, kick()), (3, None)].into_iter(), &reactor, now);
        let later = now + Duration::from_millis(60);
        drains.settle([(1, kick()), (3, None)].into_iter(), &reactor, later);
        assert_eq!(drains.wakes_at(), Some(now + GRACE), "that of vring 3");
        drains.settle([(1, kick())].into_iter(), &reactor, later);
        assert_eq!(drains.wakes_at(), Some(later + GRACE));
    }
}

//! A queue as the control thread uses it: rings start, stop and are replaced, each while no burst is inside.

use std::sync::{Arc, OnceLock};

use super::{Errand, Queue, State, Wake, Waker};
use crate::clock;
use crate::datapath::config::{Direction, Found, RingConfig, RingError, RingFault};
use crate::datapath::counters::Counters;
use crate::datapath::gate::Gate;
use crate::datapath::miss::Halt;
use crate::datapath::ring::{attach, Start};
use crate::datapath::stall::Stalls;
use crate::memory::{MemTable, Miss};
use crate::sync::{AtomicU16, AtomicU32, AtomicU64, Ordering};

impl Queue {
    /// A queue without a ring, disabled.
    pub fn new(direction: Direction, waker: Waker) -> Self {
        Self {
            direction,
            watched: AtomicU16::new(0),
            status: AtomicU32::new(0),
            tasks: AtomicU32::new(0),
            broken: AtomicU32::new(0),
            missed: AtomicU64::new(0),
            gate: Gate::new(State {
                ring: None,
                errand: None,
                guest: None,
                enabled: false,
                behind_iommu: false,
                fault: None,
            }),
            counters: Counters::default(),
            stalls: Stalls::default(),
            gauge: OnceLock::new(),
            poller: AtomicU32::new(0),
            waker,
        }
    }

    /// Starts a ring, in place of the one that runs, and calls its driver once: it may have been waiting for
    /// a back-end that is gone. Forgets an earlier fault. Says what that back-end left to be put right. Waits for at most
    /// one burst.
    ///
    /// # Errors
    ///
    /// [`RingError`]; what ran before then still runs.
    pub fn start(&self, config: RingConfig) -> Result<Vec<Found>, RingError> {
        self.control(|state| {
            // With the gate shut, so that a ring that is replaced uses no more buffers once its used index is read.
            state.behind_iommu = config.mem.is_behind_iommu();
            let (ring, found) = attach(config, Start::Resume)?;
            self.missed.store(0, Ordering::Relaxed);
            if self.discards(state) {
                ring.want_kicks(true);
            }
            ring.call(&self.counters);
            self.publish_status(ring.as_ref());
            state.ring = Some(ring);
            self.ask_poller();
            self.set_fault(state, None);
            Ok(found)
        })
    }

    /// Starts the ring that runs anew where it stands, for what may change in its life: where it logs its writes. Its driver
    /// notices nothing, and a broken ring stays broken. Nothing happens if none runs. Waits for at most one burst.
    ///
    /// # Errors
    ///
    /// [`RingError`]; what ran before then still runs.
    pub fn restart(&self, config: RingConfig) -> Result<(), RingError> {
        self.control(|state| {
            if let Some(ring) = &state.ring {
                let base = ring.base();
                let (ring, _) = attach(RingConfig { base, ..config }, Start::Here)?;
                state.ring = Some(ring);
            }
            Ok(())
        })
    }

    /// Stops the ring, if one runs, and says where it stands, for GET_VRING_BASE (see [`RingConfig::base`]). Waits for
    /// at most one burst.
    pub fn stop(&self) -> Option<u32> {
        let ring = self.control(|state| state.ring.take());
        // Relaxed: for display.
        self.status.store(0, Ordering::Relaxed);
        ring.map(|ring| ring.base())
    }

    /// Has the ring, if one runs, go on with another table: when this returns no burst uses the one before. If the ring
    /// does not lie where it did, stops it instead and says where it stood, as [`Queue::stop`]. Waits for at most one
    /// burst.
    pub fn replace_mem(&self, mem: &Arc<MemTable>) -> Option<u32> {
        let stopped = self.visit(|state| {
            // What was missing is reported again if it still is. Relaxed: poll threads are out.
            self.missed.store(0, Ordering::Relaxed);
            match state.ring.as_mut()?.replace_mem(mem) {
                true => None,
                false => state.ring.take(),
            }
        })?;
        self.status.store(0, Ordering::Relaxed);
        Some(stopped.base())
    }

    /// Tells `visit` what addresses of the available chains are missing, until it has enough and says false. Waits for at
    /// most one burst.
    pub fn misses(&self, visit: &mut dyn FnMut(Miss) -> bool) {
        self.visit(|state| {
            if let Some(ring) = state.ring.as_ref().filter(|_| state.fault.is_none()) {
                ring.misses(self.direction, visit);
            }
        });
    }

    /// Whether a burst ran into a miss since the table was replaced, or soon will.
    pub fn has_missed(&self) -> bool {
        // Relaxed: whoever is woken for it sees it by way of the waker.
        self.missed.load(Ordering::Relaxed) != 0
    }

    /// Lets bursts move packets, or not (SET_VRING_ENABLE). Waits for at most one burst.
    ///
    /// The driver of a disabled transmitq is asked to kick, since nobody polls it: what it sends is to be
    /// [discarded](Self::discard).
    pub fn set_enabled(&self, enabled: bool) {
        self.control(|state| {
            if std::mem::replace(&mut state.enabled, enabled) == enabled {
                return;
            }
            if let (Direction::Dequeue, Some(ring)) = (self.direction, &state.ring) {
                ring.want_kicks(!enabled);
            }
        });
    }

    /// Gives back unread what the driver sent on a ring that is started and disabled, at most a ring full, and says
    /// whether more came meanwhile. Does nothing for any other ring.
    pub fn discard(&self) -> bool {
        self.control(|state| {
            if !self.discards(state) || state.fault.is_some() {
                return false;
            }
            let Some(ring) = &mut state.ring else {
                return false;
            };
            let chains = ring.discard(&self.counters);
            self.counters.count_discarded(chains.into());
            self.publish_status(ring.as_ref());
            if let Some(halt) = ring.take_halt() {
                let vring = ring.vring();
                if let Halt::Fault(reason) = halt {
                    self.set_fault(state, Some(RingFault { vring, reason }));
                    (self.waker)(Wake::Broken);
                }
                return false;
            }
            // Where the next kick is due depends on where the ring stands.
            ring.want_kicks(true);
            ring.backlog() > 0
        })
    }

    /// Whether what the driver sends is discarded, once there is a ring.
    fn discards(&self, state: &State) -> bool {
        self.direction == Direction::Dequeue && !state.enabled
    }

    /// Makes the next dequeue begin with an announcement of the guest at `mac` (VHOST_USER_SEND_RARP).
    pub fn request_rarp(&self, mac: [u8; 6]) {
        self.control(|state| {
            state.errand = Some(Errand::Announce(mac));
            state.guest = Some(mac);
        });
    }

    /// Forgets the guest's address, learns it from the first frame that comes, and announces it then if `announce`.
    pub fn learn_guest(&self, announce: bool) {
        self.control(|state| {
            state.errand = Some(Errand::Learn { announce });
            state.guest = None;
        });
    }

    /// The guest's address, once it is learnt or told.
    pub fn guest(&self) -> Option<[u8; 6]> {
        self.control(|state| state.guest)
    }

    /// Why the driver's ring broke, until the next start.
    pub fn fault(&self) -> Option<RingFault> {
        if !self.gate.is_closed() {
            return None;
        }
        self.control(|state| state.fault)
    }

    /// As [`Queue::control`], for moments in which frames are on their way: as a burst of its own where it can, so that
    /// frames wait for it instead of being refused.
    fn visit<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let Some(mut state) = self.gate.enter().0 else {
            return self.control(change);
        };
        let result = self.change(&mut state, change);
        if !state.may_burst() {
            state.close_behind();
        }
        result
    }

    /// As [`Queue::fault`], for threads that wait for no burst: `None` also while the ring is being changed.
    pub fn try_fault(&self) -> Option<RingFault> {
        self.gate.try_shut()?.fault
    }

    /// Changes the state while no burst is inside.
    fn control<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.gate.close();
        let result = self.change(&mut state, change);
        if state.may_burst() {
            state.open();
        }
        result
    }

    /// Changes the state, and what follows from it.
    fn change<R>(&self, state: &mut State, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(state);
        if !state.may_burst() {
            self.end_stall(clock::now());
            // What comes next is no gap between polls.
            if let Some(gauge) = self.gauge.get() {
                gauge.polled.store(0, Ordering::Relaxed);
            }
        }
        self.settle(state);
        result
    }
}

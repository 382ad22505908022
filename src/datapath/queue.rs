//! A port's queue: one per vring index, at a stable address for the port's life.
//!
//! Poll threads burst through it; the control thread starts, stops and replaces the ring inside. The gate
//! between them is open exactly while there is an enabled ring that its driver has not broken.

use std::sync::Arc;

use super::config::{Direction, RingConfig, RingError, RingFault, RingStatus};
use super::counters::{Counters, Tally};
use super::gate::{Entered, Gate};
use super::miss::Halt;
use super::rarp;
use super::ring::{attach, Burst, Ring, Start, BURST};
use super::slot::{RxSlot, TxSlot};
use crate::memory::{MemTable, Miss};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Tells the control thread that a ring needs it. Called on a poll thread: must not block.
pub type Waker = Arc<dyn Fn(Wake) + Send + Sync>;

/// What a ring needs the control thread for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Its driver broke it: see [`Queue::fault`].
    Broken,
    /// Addresses are missing: see [`Queue::misses`].
    Missed,
}

/// What [`Queue::enqueue`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames that the driver got. All others are the caller's to count as dropped.
    pub packets: usize,
    /// Of the others, those to which something was left to be done that cannot be done.
    pub invalid: usize,
    /// Attempts after the first.
    pub retries: u32,
    /// Whether another burst on this queue had to be waited for.
    pub contended: bool,
}

/// A vring of a port, whether a ring runs on it or not.
///
/// What an empty poll looks at comes first and on one cache line; the ring itself is on another.
#[repr(C, align(64))]
pub struct Queue {
    direction: Direction,
    /// See [`RingStatus`]: the size in the upper half, the next index in the lower; 0 without a ring.
    status: AtomicU32,
    /// Behind an IOMMU: the miss last reported, as [`word`] has it, so that each is reported once; 0 if none was.
    missed: AtomicU64,
    gate: Gate<State>,
    counters: Counters,
    waker: Waker,
}

// A port has 256 of them.
const _: () = assert!(size_of::<Queue>() <= 384);

/// What the gate guards.
#[repr(C)]
struct State {
    ring: Option<Box<dyn Ring>>,
    /// What to do besides, which no ordinary burst does.
    errand: Option<Errand>,
    /// The guest's address, once it is known.
    guest: Option<[u8; 6]>,
    enabled: bool,
    behind_iommu: bool,
    fault: Option<RingFault>,
}

/// What a dequeue is to do besides moving frames, once.
#[derive(Clone, Copy)]
enum Errand {
    /// Announce the guest with this address, before anything else.
    Announce([u8; 6]),
    /// Learn the guest's address from the first frame, and announce it then if so wished.
    Learn { announce: bool },
}

impl State {
    fn may_burst(&self) -> bool {
        self.enabled && self.ring.is_some() && self.fault.is_none()
    }
}

/// For the control thread.
impl Queue {
    /// A queue without a ring, disabled.
    pub fn new(direction: Direction, waker: Waker) -> Self {
        Self {
            direction,
            status: AtomicU32::new(0),
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
            waker,
        }
    }

    /// Starts a ring, in place of the one that runs, and calls its driver once: it may have been waiting for
    /// a back-end that is gone. Forgets an earlier fault. Waits for at most one burst.
    ///
    /// # Errors
    ///
    /// [`RingError`]; what ran before then still runs.
    pub fn start(&self, config: RingConfig) -> Result<(), RingError> {
        self.control(|state| {
            // With the gate shut, so that a ring that is replaced uses no more buffers once its used index is read.
            state.behind_iommu = config.mem.is_behind_iommu();
            let ring = attach(config, Start::Resume)?;
            self.missed.store(0, Ordering::Relaxed);
            if self.discards(state) {
                ring.want_kicks(true);
            }
            ring.call(&self.counters);
            self.publish_status(ring.as_ref());
            state.ring = Some(ring);
            state.fault = None;
            Ok(())
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
                state.ring = Some(attach(RingConfig { base, ..config }, Start::Here)?);
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
            let burst = ring.discard(&self.counters);
            self.counters.count_discarded(burst.frames);
            self.publish_status(ring.as_ref());
            if burst.halted {
                let vring = ring.vring();
                if let Some(Halt::Fault(reason)) = ring.take_halt() {
                    state.fault = Some(RingFault { vring, reason });
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
        let result = change(&mut state);
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
        let result = change(&mut state);
        if state.may_burst() {
            state.open();
        }
        result
    }
}

/// For any thread, at any time.
impl Queue {
    /// What the queue moved and dropped since it was made.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Where the ring is, if one runs. Never disturbs a burst.
    pub fn snapshot(&self) -> Option<RingStatus> {
        // Relaxed: for display.
        let status = self.status.load(Ordering::Relaxed);
        let [size_high, size_low, next_high, next_low] = status.to_be_bytes();
        let (size, next) = (
            u16::from_be_bytes([size_high, size_low]),
            u16::from_be_bytes([next_high, next_low]),
        );
        (size != 0).then_some(RingStatus {
            size,
            avail: next,
            used: next,
        })
    }

    fn publish_status(&self, ring: &dyn Ring) {
        let status = u32::from(ring.size()) << 16 | u32::from(ring.next_avail());
        // Relaxed: for display.
        self.status.store(status, Ordering::Relaxed);
    }
}

/// For poll threads.
impl Queue {
    /// Receives what the guest sent: fills `slots` from the first on and says how many, at most [`BURST`].
    ///
    /// Never waits: 0 if the ring is stopped, disabled or broken, or if another thread is at it. A frame that is too
    /// large for its slot, but would fit in another, stays in its ring, see [`Queue::dequeue_growing`].
    #[inline]
    pub fn dequeue(&self, slots: &mut [RxSlot<'_>]) -> usize {
        self.dequeue_growing(slots, |_, _| false)
    }

    /// Receives as [`Queue::dequeue`] does. Where a frame does not fit in its slot, `grow` may put another slot in its place,
    /// for the number of bytes that it is told, at most [`MAX_FRAME`](super::MAX_FRAME), and says whether it did. If
    /// not, the frame stays in its ring: there may be memory for it the next time.
    #[inline]
    pub fn dequeue_growing<'a>(
        &self,
        slots: &mut [RxSlot<'a>],
        grow: impl FnMut(&mut RxSlot<'a>, u32) -> bool,
    ) -> usize {
        if self.direction != Direction::Dequeue {
            return 0;
        }
        let Ok(mut state) = self.gate.try_enter() else {
            return 0;
        };
        let burst = match state.errand {
            None => self.receive(&mut state, slots, grow),
            Some(errand) => self.run_errand(errand, &mut state, slots, grow),
        };
        if burst.halted {
            self.halt(state);
        }
        burst.frames
    }

    #[inline(always)]
    fn receive<'a>(
        &self,
        state: &mut State,
        slots: &mut [RxSlot<'a>],
        grow: impl FnMut(&mut RxSlot<'a>, u32) -> bool,
    ) -> Burst {
        let Some(ring) = &mut state.ring else {
            return Burst::default();
        };
        let mut burst = ring.dequeue(slots, &self.counters);
        if burst.large > 0 {
            burst = self.dequeue_large(ring.as_mut(), burst, slots, grow);
        }
        if burst.frames > 0 {
            self.publish_status(ring.as_ref());
        }
        burst
    }

    /// Goes on behind a burst that ended before a frame larger than its slot. Each round moves a frame or ends this: only a
    /// driver that makes a frame larger meanwhile has it end early.
    #[cold]
    fn dequeue_large<'a>(
        &self,
        ring: &mut dyn Ring,
        first: Burst,
        slots: &mut [RxSlot<'a>],
        mut grow: impl FnMut(&mut RxSlot<'a>, u32) -> bool,
    ) -> Burst {
        let mut all = first;
        while let Some((slot, _)) = slots.get_mut(all.frames..).and_then(<[_]>::split_first_mut) {
            if all.large == 0 || all.halted || !grow(slot, all.large) {
                break;
            }
            let rest = slots.get_mut(all.frames..).unwrap_or_default();
            let burst = ring.dequeue(rest, &self.counters);
            all = Burst {
                slots: all.slots + burst.slots,
                frames: all.frames + burst.frames,
                ..burst
            };
            if burst.frames == 0 {
                break;
            }
        }
        all
    }

    /// Sends frames to the guest, any number of them, in order.
    ///
    /// Makes up to `retries` further attempts, each only if the one before made some progress, as stock ports do.
    /// Waits only for another thread's burst on this queue; sends nothing if the ring is stopped, disabled or broken.
    pub fn enqueue(&self, slots: &[TxSlot<'_>], retries: u32) -> Sent {
        let mut sent = Sent::default();
        if self.direction != Direction::Enqueue || slots.is_empty() {
            return sent;
        }
        let (state, contended) = self.gate.enter();
        sent.contended = contended;
        let Some(mut state) = state else { return sent };
        let Some(ring) = &mut state.ring else { return sent };
        let mut left = slots;
        let halted = loop {
            let attempt = self.attempt(ring.as_mut(), left);
            sent.packets += attempt.frames;
            sent.invalid += attempt.invalid;
            left = left.get(attempt.slots..).unwrap_or_default();
            if attempt.halted || left.is_empty() || attempt.slots == 0 || sent.retries == retries {
                break attempt.halted;
            }
            sent.retries += 1;
        };
        self.publish_status(ring.as_ref());
        if halted {
            self.halt(state);
        } else if state.behind_iommu {
            self.look_ahead(&state);
        }
        sent
    }

    /// One attempt to send all of `slots`: ends at the first group that the ring does not take whole.
    #[inline]
    fn attempt(&self, ring: &mut dyn Ring, slots: &[TxSlot<'_>]) -> Burst {
        let mut all = Burst::default();
        for group in slots.chunks(BURST) {
            let burst = ring.enqueue(group, &self.counters);
            all.slots += burst.slots;
            all.frames += burst.frames;
            all.invalid += burst.invalid;
            all.halted = burst.halted;
            if burst.halted || burst.slots < group.len() {
                break;
            }
        }
        all
    }

    /// Buffers that the driver made available and that wait. 0 if the ring is stopped or another thread is at it.
    pub fn backlog(&self) -> u32 {
        match self.gate.try_enter() {
            Ok(state) => state.ring.as_ref().map_or(0, |ring| u32::from(ring.backlog())),
            Err(_) => 0,
        }
    }

    #[cold]
    fn run_errand<'a>(
        &self,
        errand: Errand,
        state: &mut State,
        slots: &mut [RxSlot<'a>],
        grow: impl FnMut(&mut RxSlot<'a>, u32) -> bool,
    ) -> Burst {
        let announce = match errand {
            Errand::Announce(mac) => {
                let frames = self.announce(mac, slots);
                state.errand = state.errand.filter(|_| slots.is_empty());
                return Burst {
                    frames,
                    ..Burst::default()
                };
            }
            Errand::Learn { announce } => announce,
        };
        let burst = self.receive(state, slots, grow);
        let first = slots.first().filter(|_| burst.frames > 0);
        if let Some(mac) = first.and_then(|slot| rarp::source(slot.frame())) {
            state.guest = Some(mac);
            state.errand = announce.then_some(Errand::Announce(mac));
        }
        burst
    }

    /// Receives an announcement, alone.
    fn announce(&self, mac: [u8; 6], slots: &mut [RxSlot<'_>]) -> usize {
        let Some(slot) = slots.first_mut() else { return 0 };
        let mut tally = Tally::default();
        let fits = slot.set(&rarp::frame(mac));
        if fits {
            tally.frame(slot.frame());
        }
        self.counters.add(&tally);
        usize::from(fits)
    }

    /// Ends a burst before its time. If the driver broke the ring, no other begins until the control thread starts it
    /// anew.
    #[cold]
    fn halt(&self, mut state: Entered<'_, State>) {
        let Some(ring) = &mut state.ring else { return };
        let vring = ring.vring();
        match ring.take_halt() {
            Some(Halt::Fault(reason)) => {
                state.fault = Some(RingFault { vring, reason });
                state.close_behind();
                drop(state);
                (self.waker)(Wake::Broken);
            }
            Some(Halt::Miss(miss)) => self.report(miss),
            None => {}
        }
    }

    /// Has the control thread ask for what the guest will soon be sent into, before a frame is lost for want of it: the
    /// driver makes buffers available long before they are used.
    #[cold]
    fn look_ahead(&self, state: &State) {
        if let Some(miss) = state
            .ring
            .as_ref()
            .and_then(|ring| ring.look_ahead(self.direction))
        {
            self.report(miss);
        }
    }

    /// Reports a miss, unless it was the last one reported.
    fn report(&self, miss: Miss) {
        let word = word(miss);
        // Relaxed: the waker orders it for the control thread. Inside the gate there is no other writer.
        if self.missed.load(Ordering::Relaxed) != word {
            self.missed.store(word, Ordering::Relaxed);
            (self.waker)(Wake::Missed);
        }
    }
}

/// A miss in a word, to tell one from another: its address but for the offset in a page, and its access, which is not 0.
fn word(miss: Miss) -> u64 {
    miss.iova.0 & !0xfff | u64::from(miss.access.perm())
}

//! A port's queue: one per vring index, at a stable address for the port's life.
//!
//! Poll threads burst through it; the control thread starts, stops and replaces the ring inside. The gate
//! between them is open exactly while there is an enabled ring that its driver has not broken. What each of the threads
//! does with it is in `control_side` and `poll_side`.

mod control_side;
mod poll_side;

use std::sync::{Arc, OnceLock};

use super::config::{Direction, RingFault, RingStatus};
use super::counters::Counters;
use super::gate::Gate;
use super::histogram::{Distribution, Histogram};
use super::ring::Ring;
use super::stall::Stalls;
use crate::sync::{AtomicU16, AtomicU32, AtomicU64, Ordering};

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
    /// Slots dealt with, from the first on: nearly always those of these frames.
    pub slots: usize,
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
    /// See [`Queue::watched`]: a vring's index and one, or 0.
    watched: AtomicU16,
    /// See [`RingStatus`]: the size in the upper half, the next index in the lower; 0 without a ring.
    status: AtomicU32,
    /// What a burst has to do beside moving frames, by the bits of [`task`]. All of that it looks at.
    tasks: AtomicU32,
    /// Not 0 while [`State::fault`] is something, for who stands before the closed gate.
    broken: AtomicU32,
    /// Behind an IOMMU: the miss last reported, as `poll_side` has it, so that each is reported once; 0 if none was.
    missed: AtomicU64,
    gate: Gate<State>,
    counters: Counters,
    stalls: Stalls,
    /// Where waits are counted, from the first time on that somebody wanted that.
    gauge: OnceLock<Box<Gauge>>,
    /// The system's number of the thread that polled last when that was asked; 0 if none did.
    poller: AtomicU32,
    waker: Waker,
}

// A port has 256 of them. Loom's atomics are what they are.
#[cfg(not(loom))]
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

/// Tasks of bursts.
mod task {
    /// There is an errand; out of the guest.
    pub(super) const ERRAND: u32 = 1;
    /// Addresses may be missing that are due soon; into the guest.
    pub(super) const LOOK_AHEAD: u32 = 2;
    /// The driver had no room; into the guest.
    pub(super) const END_STALL: u32 = 4;
    /// Somebody wants to know who polls; out of the guest.
    pub(super) const NAME_POLLER: u32 = 8;
    /// Somebody measures how long frames wait.
    pub(super) const GAUGE: u32 = 16;

    /// Those of a burst out of the guest, and of one into it: there stalls are gauged when they end.
    pub(super) const DEQUEUE: u32 = ERRAND | NAME_POLLER | GAUGE;
    pub(super) const ENQUEUE: u32 = LOOK_AHEAD | END_STALL;
}

/// Counts how long frames had to wait: out of the guest, from poll to poll; into it, while it had no room.
#[derive(Default)]
struct Gauge {
    /// When the last poll was; 0 if there was none since the ring last stopped.
    polled: AtomicU64,
    seen: Histogram,
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

/// For any thread, at any time.
impl Queue {
    /// What the queue moved and dropped since it was made.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How long the driver had no room for what was sent to it.
    pub fn stalls(&self) -> &Stalls {
        &self.stalls
    }

    /// The number of the thread that polls, as it said when it was [asked](Self::ask_poller) last.
    pub fn poller(&self) -> Option<u32> {
        Some(self.poller.load(Ordering::Relaxed)).filter(|thread| *thread != 0)
    }

    /// Has the next poll say which thread it is, and those that follow cost nothing. Never waits.
    pub fn ask_poller(&self) {
        self.set_task(task::NAME_POLLER, true);
    }

    /// Counts from here on how long frames wait here, for a poll or for room, or does so no more. Never waits.
    pub fn gauge(&self, on: bool) {
        if on {
            let gauge = self.gauge.get_or_init(Box::default);
            gauge.polled.store(0, Ordering::Relaxed);
            gauge.seen.clear();
        }
        self.set_task(task::GAUGE, on);
    }

    /// What was counted since that last began.
    pub fn gauged(&self) -> Option<Distribution> {
        self.gauge.get().map(|gauge| gauge.seen.read())
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

    /// Notes in the state, and for who is kept out of it, that the driver broke the ring, or that a new one begins whole.
    fn set_fault(&self, state: &mut State, fault: Option<RingFault>) {
        state.fault = fault;
        // Relaxed: tells one reason of a drop from another.
        self.broken.store(u32::from(fault.is_some()), Ordering::Relaxed);
    }

    /// Whether bursts have this task. `tasks` is a hint: what it says is looked up where it matters.
    fn has_task(&self, tasks: u32) -> bool {
        self.tasks.load(Ordering::Relaxed) & tasks != 0
    }

    fn set_task(&self, task: u32, on: bool) {
        if self.has_task(task) == on {
            return;
        }
        // Relaxed: no data is behind it but what the gate orders.
        match on {
            true => self.tasks.fetch_or(task, Ordering::Relaxed),
            false => self.tasks.fetch_and(!task, Ordering::Relaxed),
        };
    }

    /// The tasks that follow from the state, after each change of it.
    fn settle(&self, state: &State) {
        self.set_task(task::ERRAND, state.errand.is_some());
        self.set_task(task::LOOK_AHEAD, state.behind_iommu);
        self.set_task(task::END_STALL, self.stalls.lasts());
    }

    /// The driver has room again as of `now`, or the ring has come to its end.
    fn end_stall(&self, now: u64) {
        if let (Some(nanos), Some(gauge)) = (self.stalls.end(now), self.gauge.get()) {
            if self.has_task(task::GAUGE) {
                gauge.seen.add(nanos);
            }
        }
    }

    /// Marks the queue as watched under this number, or as not watched: for its port, which looks at its bursts then.
    pub fn watch(&self, vring: Option<u16>) {
        // Relaxed: what is to be done with a burst that is seen is ordered elsewhere.
        let mark = vring.map_or(0, |vring| vring.wrapping_add(1));
        self.watched.store(mark, Ordering::Relaxed);
    }

    /// Under which number the queue is watched, if it is. Beside what a burst looks at anyhow.
    #[inline(always)]
    pub fn watched(&self) -> Option<u16> {
        self.watched.load(Ordering::Relaxed).checked_sub(1)
    }

    fn publish_status(&self, ring: &dyn Ring) {
        let status = u32::from(ring.size()) << 16 | u32::from(ring.next_avail());
        // Relaxed: for display.
        self.status.store(status, Ordering::Relaxed);
    }
}

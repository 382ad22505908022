//! A port's queue: one per vring index, at a stable address for the port's life.
//!
//! Poll threads burst through it; the control thread starts, stops and replaces the ring inside. The gate
//! between them is open exactly while there is an enabled ring that its driver has not broken. What each of the threads
//! does with it is in `control_side` and `poll_side`.

mod control_side;
mod poll_side;

use std::sync::Arc;

use super::config::{Direction, RingFault, RingStatus};
use super::counters::Counters;
use super::gate::Gate;
use super::ring::Ring;
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
    /// Behind an IOMMU: the miss last reported, as `poll_side` has it, so that each is reported once; 0 if none was.
    missed: AtomicU64,
    gate: Gate<State>,
    /// Not 0 while [`State::fault`] is something, for who stands before the closed gate.
    broken: AtomicU32,
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

    /// Notes in the state, and for who is kept out of it, that the driver broke the ring, or that a new one begins whole.
    fn set_fault(&self, state: &mut State, fault: Option<RingFault>) {
        state.fault = fault;
        // Relaxed: tells one reason of a drop from another.
        self.broken.store(u32::from(fault.is_some()), Ordering::Relaxed);
    }

    fn publish_status(&self, ring: &dyn Ring) {
        let status = u32::from(ring.size()) << 16 | u32::from(ring.next_avail());
        // Relaxed: for display.
        self.status.store(status, Ordering::Relaxed);
    }
}

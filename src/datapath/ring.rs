//! What every ring layout has in common: how it starts, what it does for a queue, how it tells the driver.

use std::sync::Arc;

use super::config::{Direction, Found, RingConfig, RingError};
use super::counters::Counters;
use super::miss::Halt;
use super::slot::{RxSlot, TxSlot};
use super::{packed, split};
use crate::memory::{MemTable, Miss};
use crate::virtio::features::VIRTIO_F_RING_PACKED;

/// Frames that are looked up, prefetched, moved and published together.
pub const BURST: usize = 32;

/// A started ring. Its implementors are compiled once per feature set: choosing one is choosing their code.
pub(super) trait Ring: Send {
    /// Moves frames from the driver into `slots`, at most [`BURST`].
    fn dequeue(&mut self, slots: &mut [RxSlot<'_>], counters: &Counters) -> Burst;

    /// Moves frames from `slots` to the driver, at most [`BURST`].
    fn enqueue(&mut self, slots: &[TxSlot<'_>], counters: &Counters) -> Burst;

    /// Gives back to the driver, unread, all that it made available: for a transmitq that is disabled. Says how many chains
    /// that was.
    fn discard(&mut self, counters: &Counters) -> u16;

    /// Asks the driver to kick when it makes buffers available, or not to.
    fn want_kicks(&self, wanted: bool);

    /// Buffers that the driver made available and we have not taken.
    fn backlog(&self) -> u16;

    /// The next avail index to take, for display.
    fn next_avail(&self) -> u16;

    /// What GET_VRING_BASE answers.
    fn base(&self) -> u32;

    /// Entries.
    fn size(&self) -> u16;

    /// Vring index.
    fn vring(&self) -> u16;

    /// Why the last burst ended before its time. Told once.
    fn take_halt(&mut self) -> Option<Halt>;

    /// Goes on with another table, if the ring lies in the same memory there; says whether it does.
    fn replace_mem(&mut self, mem: &Arc<MemTable>) -> bool;

    /// Finds all misses among the next chains that the driver made available. Not for poll threads.
    fn misses(&self, direction: Direction, visit: &mut dyn FnMut(Miss) -> bool);

    /// A miss that a burst of this direction will run into soon, if one is found at a look.
    fn look_ahead(&self, direction: Direction) -> Option<Miss>;

    /// Calls the driver, whether it wants that or not.
    fn call(&self, counters: &Counters);
}

/// A ring that was started, and what was found in it.
pub(super) type Attached = (Box<dyn Ring>, Vec<Found>);

/// What one burst did.
///
/// One word, so that it is returned in a register: to read it from memory in another shape than it was written in would be to
/// wait for all stores before it, those into the guest too.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Burst {
    /// Bytes of the next frame, if the next slot has less room than that; out of the guest only.
    pub(super) large: u32,
    /// Slots dealt with, from the first on.
    pub(super) slots: u8,
    /// Frames moved; the slots between were dropped and counted.
    pub(super) frames: u8,
    /// Of the slots dealt with, those dropped because of what was left to be done to them; into the guest only.
    pub(super) invalid: u8,
    /// Whether it ended before its time, see [`Ring::take_halt`]; what was moved before that stands.
    pub(super) halted: bool,
}

impl Burst {
    /// A burst of this many frames, each in a slot of its own.
    #[inline(always)]
    pub(super) fn of(frames: usize) -> Self {
        let frames = u8::try_from(frames).unwrap_or(u8::MAX);
        Self {
            slots: frames,
            frames,
            ..Self::default()
        }
    }

    /// Slots dealt with.
    #[inline(always)]
    pub(super) fn slots(&self) -> usize {
        self.slots.into()
    }

    /// Frames moved.
    #[inline(always)]
    pub(super) fn frames(&self) -> usize {
        self.frames.into()
    }
}

const _: () = assert!(size_of::<Burst>() == size_of::<u64>() && BURST <= u8::MAX as usize);

/// Where a ring begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Where it stands, whoever served it before: [`RingConfig::base`] may be wrong after a crash.
    Resume,
    /// At [`RingConfig::base`], where it was stopped just now by us: nothing but its code changes.
    Here,
}

/// Starts the ring that `config` describes, in the layout and with the code that its features ask for.
///
/// # Errors
///
/// [`RingError`]; nothing in guest memory was changed then.
pub(super) fn attach(config: RingConfig, start: Start) -> Result<Attached, RingError> {
    match config.features.contains(VIRTIO_F_RING_PACKED) {
        true => packed::attach(config, start),
        false => split::attach(config, start),
    }
}

//! The split ring's part of the dirty log: used entries, used.idx, and the device's wishes around them.

use std::cell::Cell;

use crate::datapath::dirty::{Dirty, Place, RingLog};
use crate::memory::cpu;
use crate::virtio::chain::DescRing;
use crate::virtio::desc::{used_bytes, ENTRIES_OFFSET, IDX_OFFSET};
use crate::virtio::ring::SplitMem;

/// Bytes of a used entry.
const ENTRY: u16 = 8;
/// Bytes of an index, of the flags, of an event.
const WORD: u32 = 2;

/// What a split ring wrote, on its way into the log.
pub(super) struct SplitLog {
    data: Dirty,
    /// Where the used ring is, as the log counts.
    used: Place,
    size: u16,
    /// The free-running index of the first used entry of a burst, and how many from there on it wrote: also those that
    /// it did not publish in the end.
    first: Cell<u16>,
    entries: Cell<u16>,
}

impl SplitLog {
    /// The log of a ring whose next used entry has the free-running index `next`.
    pub(super) fn new(log: RingLog, mem: &SplitMem, next: u16) -> Self {
        let data = Dirty::new(log.writes, log.notify);
        let bytes = used_bytes(mem.size());
        Self {
            used: match log.used {
                Some(guest) => Place::told(guest, bytes),
                None => data.place(mem.mem(), mem.used_host(), bytes),
            },
            data,
            size: mem.size(),
            first: Cell::new(next),
            entries: Cell::new(0),
        }
    }

    /// For the bytes of frames.
    #[inline(always)]
    pub(super) fn data(&self) -> &Dirty {
        &self.data
    }

    /// Takes down that the used entry was written which the free-running index `at` falls on.
    #[inline]
    pub(super) fn wrote_used(&self, at: u16) {
        let entries = at.wrapping_sub(self.first.get()).wrapping_add(1);
        self.entries.set(self.entries.get().max(entries));
    }

    /// Marks all that a burst wrote. Before it is published.
    pub(super) fn settle(&self) {
        cpu::full_barrier();
        self.data.mark_staged();
        let first = self.first.get() % self.size;
        let entries = self.entries.take().min(self.size);
        let until_end = entries.min(self.size - first);
        self.mark_entries(first, until_end);
        self.mark_entries(0, entries - until_end);
    }

    /// Marks used.idx, which was just published as `next`, and tells the front-end.
    pub(super) fn published(&self, next: u16) {
        self.first.set(next);
        cpu::full_barrier();
        self.mark(IDX_OFFSET, WORD);
        self.data.notify();
    }

    /// For a burst that published nothing.
    pub(super) fn notify(&self) {
        self.data.notify();
    }

    /// Marks what a back-end before this one had taken and was given back now: the used entries from `old` to `new`, both
    /// free-running, and used.idx.
    pub(super) fn gave_back(&self, old: u16, new: u16) {
        if old == new {
            return;
        }
        self.first.set(old);
        self.entries.set(new.wrapping_sub(old));
        self.settle();
        self.published(new);
    }

    /// Marks used.flags, and avail_event if it was written too.
    pub(super) fn wrote_wishes(&self, avail_event: bool) {
        cpu::full_barrier();
        self.mark(0, WORD);
        if avail_event {
            self.mark(entry(self.size), WORD);
        }
        self.data.notify();
    }

    fn mark_entries(&self, first: u16, count: u16) {
        self.mark(entry(first), u32::from(ENTRY) * u32::from(count));
    }

    fn mark(&self, offset: usize, len: u32) {
        self.data.mark(&self.used, offset, len);
    }
}

/// Where entry `index` of the used ring begins, or what follows them for the ring's size.
fn entry(index: u16) -> usize {
    ENTRIES_OFFSET + usize::from(ENTRY) * usize::from(index)
}

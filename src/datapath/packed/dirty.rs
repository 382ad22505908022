//! The packed ring's part of the dirty log: used descriptors, and the device event suppression structure.

use crate::datapath::dirty::{Dirty, Place, RingLog};
use crate::memory::cpu;
use crate::virtio::chain::DescRing;
use crate::virtio::desc::{desc_table_bytes, Desc, DESC_SIZE};
use crate::virtio::packed_ring::{PackedMem, Position, EVENT_BYTES};

/// What a packed ring wrote, on its way into the log.
pub(super) struct PackedLog {
    data: Dirty,
    /// Where the descriptors and the device's structure are, as the log counts. What the front-end said of the used ring
    /// is about neither: it means the latter, and says nothing of the former.
    descs: Place,
    event: Place,
    size: u16,
}

impl PackedLog {
    pub(super) fn new(log: RingLog, mem: &PackedMem) -> Self {
        let data = Dirty::new(log.writes, log.notify);
        Self {
            descs: data.place(mem.mem(), mem.desc_host(), desc_table_bytes(mem.size())),
            event: data.place(mem.mem(), mem.device_event_host(), EVENT_BYTES),
            data,
            size: mem.size(),
        }
    }

    /// For the bytes of frames.
    #[inline(always)]
    pub(super) fn data(&self) -> &Dirty {
        &self.data
    }

    /// Marks all that a burst wrote into buffers.
    pub(super) fn settle(&self) {
        cpu::full_barrier();
        self.data.mark_staged();
    }

    /// Marks descriptors that were written: `count` of them, no more than the ring has, from `first` on.
    pub(super) fn wrote_descs(&self, first: Position, count: u16) {
        cpu::full_barrier();
        let until_end = count.min(self.size - first.index);
        self.mark_descs(first.index, until_end);
        self.mark_descs(0, count - until_end);
    }

    /// All descriptors of a ring that is about to be taken over.
    pub(super) fn look(mem: &PackedMem) -> Vec<Desc> {
        (0..mem.size()).filter_map(|index| mem.desc(index)).collect()
    }

    /// Marks the descriptors that taking over the ring wrote: those of chains that a back-end before this one had taken.
    pub(super) fn gave_back(&self, mem: &PackedMem, before: &[Desc]) {
        for (index, before) in (0..mem.size()).zip(before) {
            if mem.desc(index).is_some_and(|now| now != *before) {
                self.wrote_descs(Position { index, wrap: true }, 1);
            }
        }
    }

    /// Tells the front-end of what was marked.
    pub(super) fn notify(&self) {
        self.data.notify();
    }

    /// Marks the device event suppression structure.
    pub(super) fn wrote_event(&self) {
        cpu::full_barrier();
        self.data.mark(&self.event, 0, EVENT_BYTES);
        self.data.notify();
    }

    fn mark_descs(&self, first: u16, count: u16) {
        let offset = DESC_SIZE as usize * usize::from(first);
        self.data.mark(&self.descs, offset, DESC_SIZE * u32::from(count));
    }
}

//! A split virtqueue, driver side (VIRTIO 1.2, 2.7.13 and 2.7.14).
//!
//! Well-behaved by itself: descriptors are in one chain at a time and come back by the used ring. The `set_`
//! functions write whatever they are told, for tests of what a back-end does with it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::memory::GuestMemory;
use super::virtqueue::{describe, Buffer, Virtqueue};
use crate::datapath::RingConfig;
use crate::memory::GuestAddr;
use crate::virtio::desc::{
    avail_bytes, desc_table_bytes, used_bytes, Desc, UsedElem, DESC_SIZE, VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE,
};
use crate::virtio::features::{Features, VIRTIO_F_IN_ORDER};

/// A driver's end of one split ring.
#[derive(Debug)]
pub struct Driver {
    memory: Arc<GuestMemory>,
    size: u16,
    features: Features,
    desc: GuestAddr,
    avail: GuestAddr,
    used: GuestAddr,
    /// Descriptors in no chain.
    free: Vec<u16>,
    /// By head: the descriptors of the chain that the device has.
    chains: Vec<Vec<u16>>,
    next_avail: u16,
    next_used: u16,
    /// Heads that the device has, in the order in which they were made available.
    order: VecDeque<u16>,
    /// Of these, those that one used entry gave back and that were not reaped yet (VIRTIO_F_IN_ORDER).
    batch: usize,
    /// The length that the entry said.
    batch_len: u32,
}

impl Virtqueue for Driver {
    fn new(memory: Arc<GuestMemory>, at: GuestAddr, size: u16, features: Features) -> Self {
        let desc = at;
        let avail = GuestAddr(desc.0 + u64::from(desc_table_bytes(size)));
        let used = GuestAddr((avail.0 + u64::from(avail_bytes(size))).next_multiple_of(64));
        let chains = vec![Vec::new(); usize::from(size)];
        let free = (0..size).rev().collect();
        Self {
            memory,
            size,
            features,
            desc,
            avail,
            used,
            free,
            chains,
            next_avail: 0,
            next_used: 0,
            order: VecDeque::new(),
            batch: 0,
            batch_len: 0,
        }
    }

    fn ring_bytes(size: u16) -> u64 {
        u64::from(desc_table_bytes(size) + avail_bytes(size) + 64 + used_bytes(size))
    }

    fn config(&self, index: u16) -> RingConfig {
        let areas = [self.desc, self.avail, self.used];
        RingConfig {
            index,
            ..describe(&self.memory, self.features, self.size, areas)
        }
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn features(&self) -> Features {
        self.features
    }

    fn next_id(&self) -> Option<u16> {
        self.free.last().copied()
    }

    fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        let chain = self.allocate(buffers.len())?;
        let descs = link(buffers, |position| chain.get(position).copied());
        for (index, desc) in chain.iter().zip(descs) {
            self.set_desc(*index, desc);
        }
        self.make_available(chain)
    }

    fn add_indirect(&mut self, table: GuestAddr, buffers: &[Buffer]) -> Option<u16> {
        let chain = self.allocate(1)?;
        let descs = link(buffers, |position| u16::try_from(position).ok());
        for (position, desc) in (0_u64..).zip(&descs) {
            self.memory.write(
                GuestAddr(table.0 + position * u64::from(DESC_SIZE)),
                &desc.to_bytes(),
            );
        }
        let len = DESC_SIZE * u32::try_from(descs.len()).ok()?;
        let desc = Desc {
            addr: table.0,
            len,
            flags: VIRTQ_DESC_F_INDIRECT,
            next: 0,
        };
        self.set_desc(*chain.first()?, desc);
        self.make_available(chain)
    }

    fn publish(&mut self) {
        self.set_avail_idx(self.next_avail);
    }

    fn reap(&mut self) -> Option<UsedElem> {
        if self.used_idx() == self.next_used {
            return None;
        }
        let used = self
            .next_in_batch()
            .unwrap_or_else(|| self.used_elem(self.next_used));
        self.next_used = self.next_used.wrapping_add(1);
        let chain = self.chains.get_mut(usize::try_from(used.id).ok()?)?;
        self.free.extend(chain.drain(..).rev());
        Some(used)
    }
}

impl Driver {
    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Descriptors in no chain.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// The used entry that a free-running index falls on.
    pub fn used_elem(&self, at: u16) -> UsedElem {
        let mut bytes = [0; 8];
        self.memory
            .read(GuestAddr(self.used.0 + 4 + 8 * self.wrap(at)), &mut bytes);
        let word = u64::from_le_bytes(bytes);
        #[expect(clippy::cast_possible_truncation, reason = "takes a word apart")]
        UsedElem {
            id: word as u32,
            len: (word >> 32) as u32,
        }
    }

    /// The next avail entry to fill, free-running.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// used.idx as the device left it.
    pub fn used_idx(&self) -> u16 {
        self.memory.load(GuestAddr(self.used.0 + 2))
    }

    /// used.flags as the device left them.
    pub fn used_flags(&self) -> u16 {
        self.memory.load(self.used)
    }

    /// avail_event as the device left it.
    pub fn avail_event(&self) -> u16 {
        self.memory
            .load(GuestAddr(self.used.0 + 4 + 8 * u64::from(self.size)))
    }

    /// Writes a descriptor, of any content.
    pub fn set_desc(&self, index: u16, desc: Desc) {
        let addr = GuestAddr(self.desc.0 + u64::from(DESC_SIZE) * u64::from(index));
        self.memory.write(addr, &desc.to_bytes());
    }

    /// Writes the avail entry that a free-running index falls on.
    pub fn set_avail_entry(&self, at: u16, head: u16) {
        self.memory
            .store(GuestAddr(self.avail.0 + 4 + 2 * self.wrap(at)), head);
    }

    /// Publishes an avail index.
    pub fn set_avail_idx(&self, idx: u16) {
        self.memory.store(GuestAddr(self.avail.0 + 2), idx);
    }

    /// Sets avail.flags.
    pub fn set_avail_flags(&self, flags: u16) {
        self.memory.store(self.avail, flags);
    }

    /// Sets used_event.
    pub fn set_used_event(&self, event: u16) {
        self.memory
            .store(GuestAddr(self.avail.0 + 4 + 2 * u64::from(self.size)), event);
    }

    /// Sets used.idx, as another back-end may have left it, and goes on from there.
    pub fn set_used_idx(&mut self, idx: u16) {
        self.memory.store(GuestAddr(self.used.0 + 2), idx);
        self.next_used = idx;
        self.next_avail = idx;
        self.order.clear();
        self.publish();
    }

    /// In order, a used entry gives back every chain up to its own: that of the first of them is given out here, with the
    /// length if it is the last. `None` if buffers come back in any order, or one that the device does not have.
    fn next_in_batch(&mut self) -> Option<UsedElem> {
        if !self.features.contains(VIRTIO_F_IN_ORDER) {
            return None;
        }
        if self.batch == 0 {
            let last = self.used_elem(self.next_used).id;
            self.batch = 1 + self.order.iter().position(|head| u32::from(*head) == last)?;
            self.batch_len = self.used_elem(self.next_used).len;
        }
        self.batch -= 1;
        let id = u32::from(self.order.pop_front()?);
        let len = if self.batch == 0 { self.batch_len } else { 0 };
        Some(UsedElem { id, len })
    }

    fn wrap(&self, at: u16) -> u64 {
        u64::from(at % self.size)
    }

    fn allocate(&mut self, count: usize) -> Option<Vec<u16>> {
        let keep = self.free.len().checked_sub(count)?;
        let mut chain = self.free.split_off(keep);
        chain.reverse();
        Some(chain)
    }

    fn make_available(&mut self, chain: Vec<u16>) -> Option<u16> {
        let head = *chain.first()?;
        *self.chains.get_mut(usize::from(head))? = chain;
        self.set_avail_entry(self.next_avail, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        if self.features.contains(VIRTIO_F_IN_ORDER) {
            self.order.push_back(head);
        }
        Some(head)
    }
}

/// Descriptors of these buffers, each naming the place of the one after it.
fn link(buffers: &[Buffer], place: impl Fn(usize) -> Option<u16>) -> Vec<Desc> {
    let mut descs = Vec::with_capacity(buffers.len());
    for (position, buffer) in buffers.iter().enumerate() {
        let write = if buffer.write { VIRTQ_DESC_F_WRITE } else { 0 };
        let (next, flags) = match position + 1 < buffers.len() {
            true => (place(position + 1).unwrap_or(0), VIRTQ_DESC_F_NEXT),
            false => (0, 0),
        };
        descs.push(Desc {
            addr: buffer.addr.0,
            len: buffer.len,
            flags: flags | write,
            next,
        });
    }
    descs
}

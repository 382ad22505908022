//! A packed virtqueue, driver side (VIRTIO 1.2, 2.8.15 to 2.8.21).
//!
//! Well-behaved by itself; the `set_` functions write whatever they are told, for tests of what a back-end does with it.

use std::sync::Arc;

use super::memory::GuestMemory;
use super::virtqueue::{describe, Buffer, Virtqueue};
use crate::datapath::RingConfig;
use crate::memory::GuestAddr;
use crate::virtio::desc::{
    desc_table_bytes, UsedElem, DESC_SIZE, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE,
};
use crate::virtio::features::Features;
use crate::virtio::packed_ring::{Event, Position, EVENT_BYTES, VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED};

/// `struct pvirtq_desc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedDesc {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Bytes in the buffer.
    pub len: u32,
    /// Buffer id.
    pub id: u16,
    /// `VIRTQ_DESC_F_*`, AVAIL and USED among them.
    pub flags: u16,
}

impl PackedDesc {
    /// Its bytes, as in guest memory.
    pub fn to_bytes(self) -> [u8; DESC_SIZE as usize] {
        let word = u128::from(self.addr)
            | u128::from(self.len) << 64
            | u128::from(self.id) << 96
            | u128::from(self.flags) << 112;
        word.to_le_bytes()
    }
}

/// A driver's end of one packed ring.
#[derive(Debug)]
pub struct PackedDriver {
    memory: Arc<GuestMemory>,
    size: u16,
    features: Features,
    desc: GuestAddr,
    /// Ids of no chain.
    free: Vec<u16>,
    /// Descriptors of no chain.
    room: u16,
    /// By id: descriptors of the chain that the device has.
    chains: Vec<u16>,
    next_avail: Position,
    next_used: Position,
    /// The first chain added since the last publication: where it is, and the flags that make it available.
    pending: Option<(u16, u16)>,
}

impl Virtqueue for PackedDriver {
    fn new(memory: Arc<GuestMemory>, at: GuestAddr, size: u16, features: Features) -> Self {
        Self {
            memory,
            size,
            features,
            desc: at,
            free: (0..size).rev().collect(),
            room: size,
            chains: vec![0; usize::from(size)],
            next_avail: Position::START,
            next_used: Position::START,
            pending: None,
        }
    }

    fn ring_bytes(size: u16) -> u64 {
        u64::from(desc_table_bytes(size) + 2 * EVENT_BYTES)
    }

    fn config(&self, index: u16) -> RingConfig {
        let areas = [self.desc, self.event(0), self.event(1)];
        RingConfig {
            index,
            base: 0x8000_8000,
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
        self.free.last().copied().filter(|_| self.room > 0)
    }

    fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        let descs = u16::try_from(buffers.len()).ok()?;
        if descs == 0 || descs > self.room {
            return None;
        }
        let id = self.free.pop()?;
        // The first descriptor last: with its flags the device may take the chain.
        for (place, buffer) in (0..descs).zip(buffers).rev() {
            let goes_on = if place + 1 < descs { VIRTQ_DESC_F_NEXT } else { 0 };
            let desc = PackedDesc {
                addr: buffer.addr.0,
                len: buffer.len,
                id,
                flags: write_flag(buffer) | goes_on,
            };
            self.put(place, desc);
        }
        Some(self.added(id, descs))
    }

    fn add_indirect(&mut self, table: GuestAddr, buffers: &[Buffer]) -> Option<u16> {
        if self.room == 0 {
            return None;
        }
        let id = self.free.pop()?;
        for (place, buffer) in (0_u64..).zip(buffers) {
            let entry = PackedDesc {
                addr: buffer.addr.0,
                len: buffer.len,
                id: 0,
                flags: write_flag(buffer),
            };
            let at = GuestAddr(table.0 + place * u64::from(DESC_SIZE));
            self.memory.write(at, &entry.to_bytes());
        }
        let desc = PackedDesc {
            addr: table.0,
            len: DESC_SIZE * u32::try_from(buffers.len()).ok()?,
            id,
            flags: VIRTQ_DESC_F_INDIRECT,
        };
        self.put(0, desc);
        Some(self.added(id, 1))
    }

    fn publish(&mut self) {
        if let Some((index, flags)) = self.pending.take() {
            self.set_flags(index, flags);
        }
    }

    fn reap(&mut self) -> Option<UsedElem> {
        let desc = self.used(self.next_used)?;
        let descs = *self.chains.get(usize::from(desc.id))?;
        assert!(descs > 0, "id {} is not the device's", desc.id);
        self.chains[usize::from(desc.id)] = 0;
        self.free.push(desc.id);
        self.room += descs;
        self.next_used = self.next_used.advance(descs, self.size);
        Some(UsedElem {
            id: u32::from(desc.id),
            len: desc.len,
        })
    }
}

impl PackedDriver {
    /// Where the next chain goes.
    pub fn next_avail(&self) -> Position {
        self.next_avail
    }

    /// Where the next used descriptor is due.
    pub fn next_used(&self) -> Position {
        self.next_used
    }

    /// A descriptor as it is now.
    pub fn desc(&self, index: u16) -> PackedDesc {
        let mut bytes = [0; DESC_SIZE as usize];
        let flags = self.memory.load(self.flags_at(index));
        self.memory.read(self.desc_at(index), &mut bytes);
        let word = u128::from_le_bytes(bytes);
        #[expect(clippy::cast_possible_truncation, reason = "takes a word apart")]
        PackedDesc {
            addr: word as u64,
            len: (word >> 64) as u32,
            id: (word >> 96) as u16,
            flags,
        }
    }

    /// Writes a descriptor, of any content, its flags last.
    pub fn set_desc(&self, index: u16, desc: PackedDesc) {
        self.memory.write(self.desc_at(index), &desc.to_bytes()[..14]);
        self.set_flags(index, desc.flags);
    }

    /// Writes a descriptor's flags.
    pub fn set_flags(&self, index: u16, flags: u16) {
        self.memory.store(self.flags_at(index), flags);
    }

    /// Says when the device should call.
    pub fn set_driver_event(&self, event: Event) {
        self.memory.store(self.event(0), event.desc);
        self.memory.store(GuestAddr(self.event(0).0 + 2), event.flags);
    }

    /// When the device wants to be kicked.
    pub fn device_event(&self) -> Event {
        Event {
            desc: self.memory.load(self.event(1)),
            flags: self.memory.load(GuestAddr(self.event(1).0 + 2)),
        }
    }

    /// The flags that make a descriptor at `at` available.
    pub fn turn(at: Position) -> u16 {
        match at.wrap {
            true => VIRTQ_DESC_F_AVAIL,
            false => VIRTQ_DESC_F_USED,
        }
    }

    /// The descriptor at `at`, if it is used.
    fn used(&self, at: Position) -> Option<PackedDesc> {
        let desc = self.desc(at.index);
        let turn = [VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED].map(|bit| desc.flags & bit != 0);
        (turn == [at.wrap; 2]).then_some(desc)
    }

    /// Writes the descriptor `place` behind the next one, available at once unless it is the first to be published.
    fn put(&mut self, place: u16, desc: PackedDesc) {
        let at = self.next_avail.advance(place, self.size);
        let flags = desc.flags | Self::turn(at);
        if place > 0 || self.pending.is_some() {
            return self.set_desc(at.index, PackedDesc { flags, ..desc });
        }
        self.memory.write(self.desc_at(at.index), &desc.to_bytes()[..14]);
        self.pending = Some((at.index, flags));
    }

    fn added(&mut self, id: u16, descs: u16) -> u16 {
        self.chains[usize::from(id)] = descs;
        self.room -= descs;
        self.next_avail = self.next_avail.advance(descs, self.size);
        id
    }

    fn desc_at(&self, index: u16) -> GuestAddr {
        GuestAddr(self.desc.0 + u64::from(DESC_SIZE) * u64::from(index))
    }

    fn flags_at(&self, index: u16) -> GuestAddr {
        GuestAddr(self.desc_at(index).0 + 14)
    }

    /// The driver's (0) or the device's (1) event suppression structure, behind the descriptors.
    fn event(&self, number: u32) -> GuestAddr {
        GuestAddr(self.desc.0 + u64::from(desc_table_bytes(self.size) + number * EVENT_BYTES))
    }
}

fn write_flag(buffer: &Buffer) -> u16 {
    match buffer.write {
        true => VIRTQ_DESC_F_WRITE,
        false => 0,
    }
}

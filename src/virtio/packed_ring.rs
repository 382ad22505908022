//! UNSAFE: the memory of a packed ring (VIRTIO 1.2, 2.8).
//!
//! Driver and device write the same descriptors: the driver to make a buffer available, the device to say that it has
//! used it. Whose turn it is says a pair of bits in each descriptor's flags, against a counter that each side flips
//! when it passes the end of the ring.
//!
//! All that can be wrong with three addresses and a size is found when a [`PackedMem`] is made; after that its
//! accessors cannot leave the ring, whatever the driver writes into it. As in `ring`, each read is one fetch of a value
//! that stays what it was, and the atomics are the standard ones even under loom.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use super::chain::DescRing;
use super::desc::{
    desc_table_bytes, Desc, DESC_SIZE, MAX_SIZE, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE,
};
use super::ring::{area, Area, LayoutError, RingAddrs};
use crate::memory::{cpu, crash, meddle, Access, MemTable};

/// The driver's bit: equal to its wrap counter when it made the descriptor available.
pub const VIRTQ_DESC_F_AVAIL: u16 = 1 << 7;
/// The device's bit: differs from the other while the descriptor is available, equals it once used.
pub const VIRTQ_DESC_F_USED: u16 = 1 << 15;
/// Both.
const TURN: u16 = VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED;

/// `flags` of an event suppression structure (2.8.10): notify of every buffer.
pub const RING_EVENT_FLAGS_ENABLE: u16 = 0;
/// Never notify.
pub const RING_EVENT_FLAGS_DISABLE: u16 = 1;
/// Notify when the descriptor that `desc` names is passed; needs VIRTIO_RING_F_EVENT_IDX.
pub const RING_EVENT_FLAGS_DESC: u16 = 2;
/// The two bits that `flags` are.
pub const RING_EVENT_FLAGS: u16 = 3;

/// Bytes of an event suppression structure.
pub const EVENT_BYTES: u32 = 4;

/// The bit of a position on the wire that is the wrap counter.
const WRAP: u16 = 1 << 15;

/// The descriptors of a line of the cache.
const PER_LINE: u16 = 4;
/// How many descriptors further on a line is asked for: of two lines, while the one before them is read.
const STRIDE: u16 = 2 * PER_LINE;

/// A place in a packed ring, and the wrap counter of whoever is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Less than the ring's size.
    pub index: u16,
    /// Flips each time the end of the ring is passed.
    pub wrap: bool,
}

impl Position {
    /// Where driver and device begin.
    pub const START: Self = Self { index: 0, wrap: true };

    /// The position as event suppression and SET_VRING_BASE write it, if a ring of `size` has it.
    pub fn from_bits(bits: u16, size: u16) -> Option<Self> {
        let index = bits & !WRAP;
        (index < size).then_some(Self {
            index,
            wrap: bits & WRAP != 0,
        })
    }

    /// As event suppression and GET_VRING_BASE write it.
    #[inline]
    pub fn bits(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    /// The position `descs` further on in a ring of `size`, which are no more than `size`.
    #[inline(always)]
    pub fn advance(self, descs: u16, size: u16) -> Self {
        let index = self.index + descs;
        match index < size {
            true => Self { index, ..self },
            false => Self {
                index: index - size,
                wrap: !self.wrap,
            },
        }
    }

    /// Of the next `descs` positions in a ring of `size`, how many come before its end: they have the same wrap counter.
    #[inline(always)]
    pub fn run(self, descs: u16, size: u16) -> u16 {
        descs.min(size - self.index)
    }

    /// Whether a descriptor here, with these flags, is available.
    #[inline(always)]
    pub fn is_available(self, flags: u16) -> bool {
        let available = match self.wrap {
            true => VIRTQ_DESC_F_AVAIL,
            false => VIRTQ_DESC_F_USED,
        };
        flags & TURN == available
    }

    /// AVAIL and USED of a used descriptor here.
    #[inline(always)]
    fn used(self) -> u16 {
        if self.wrap {
            TURN
        } else {
            0
        }
    }
}

/// What a used descriptor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Which buffer comes back.
    pub id: u16,
    /// Descriptors that it took.
    pub descs: u16,
    /// Bytes written into it.
    pub len: u32,
}

/// `struct pvirtq_event_suppress`, a private copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Index and wrap counter, as in [`Position::bits`], of any value.
    pub desc: u16,
    /// `RING_EVENT_FLAGS_*`, of any value.
    pub flags: u16,
}

impl Event {
    /// The structure whose bytes were read as a little-endian word.
    #[expect(clippy::cast_possible_truncation, reason = "takes a word apart")]
    fn from_word(word: u32) -> Self {
        Self {
            desc: word as u16,
            flags: (word >> 16) as u16,
        }
    }

    fn to_word(self) -> u32 {
        u32::from(self.desc) | u32::from(self.flags) << 16
    }
}

/// A packed ring in mapped memory, and the table that keeps it mapped.
///
/// # Invariants
///
/// `desc` is aligned to 16 and mapped for `size` descriptors, `driver` and `device` are aligned to 4 and mapped for an
/// event suppression structure, while `mem` lives.
pub struct PackedMem {
    desc: NonNull<u8>,
    driver: NonNull<u8>,
    device: NonNull<u8>,
    mem: Arc<MemTable>,
    size: u16,
    addrs: RingAddrs,
}

/// The descriptors of a packed ring. A loop over many has them by value: then where they are and how many need not be fetched
/// anew behind each access, which for all that the compiler knows might have changed it.
#[derive(Clone, Copy)]
pub struct Descs<'m> {
    /// As in [`PackedMem`], both.
    start: NonNull<u8>,
    size: u16,
    ring: PhantomData<&'m PackedMem>,
}

/// The areas of a packed ring of `size` descriptors: the ring, driver and device event suppression.
pub fn packed_areas(size: u16, addrs: RingAddrs) -> [Area; 3] {
    use Access::{Read, ReadWrite};
    let rows = [
        (
            "descriptor ring",
            addrs.desc,
            desc_table_bytes(size),
            16,
            ReadWrite,
        ),
        ("driver event suppression", addrs.driver, EVENT_BYTES, 4, Read),
        (
            "device event suppression",
            addrs.device,
            EVENT_BYTES,
            4,
            ReadWrite,
        ),
    ];
    rows.map(Area::row)
}

// SAFETY: the pointers stand for memory of the process that `mem` keeps mapped.
unsafe impl Send for PackedMem {}
// SAFETY: shared access goes through atomics.
unsafe impl Sync for PackedMem {}

impl PackedMem {
    /// A ring of `size` descriptors at `addrs`; the size need be no power of two.
    ///
    /// # Errors
    ///
    /// [`LayoutError`]: a bad size, or an area that is unaligned or not wholly in one region.
    pub fn new(mem: Arc<MemTable>, size: u16, addrs: RingAddrs) -> Result<Self, LayoutError> {
        if !(1..=MAX_SIZE).contains(&size) {
            return Err(LayoutError::PackedSize(size));
        }
        let [desc, driver, device] = packed_areas(size, addrs);
        Ok(Self {
            desc: area(&mem, desc)?,
            driver: area(&mem, driver)?,
            device: area(&mem, device)?,
            mem,
            size,
            addrs,
        })
    }

    /// Goes on with another table, if the ring lies in the same memory there; says whether it does.
    pub fn replace_mem(&mut self, mem: &Arc<MemTable>) -> bool {
        let Ok(new) = Self::new(Arc::clone(mem), self.size, self.addrs) else {
            return false;
        };
        let same = [new.desc, new.driver, new.device] == [self.desc, self.driver, self.device];
        if same {
            *self = new;
        }
        same
    }

    /// The table that maps the ring, for the addresses in its descriptors.
    #[inline(always)]
    pub fn mem(&self) -> &MemTable {
        &self.mem
    }

    /// Its descriptors.
    #[inline(always)]
    pub fn descs(&self) -> Descs<'_> {
        Descs {
            start: self.desc,
            size: self.size,
            ring: PhantomData,
        }
    }

    /// Where the descriptor ring is in this process, to find its pages in the dirty log.
    pub fn desc_host(&self) -> usize {
        self.desc.as_ptr().addr()
    }

    /// Where the device event suppression structure is in this process, likewise.
    pub fn device_event_host(&self) -> usize {
        self.device.as_ptr().addr()
    }

    /// Whether the descriptor at `at` is available now.
    #[inline(always)]
    pub fn is_available(&self, at: Position) -> bool {
        meddle::point();
        self.rest(at.index).is_some_and(|rest| {
            // Relaxed: only a guess, which the fetch of the descriptor proves.
            at.is_available(flags(rest.load(Ordering::Relaxed)))
        })
    }

    /// Writes the used descriptor at `at`, which is the next that the driver looks at, and so hands it and those behind
    /// it to the driver.
    #[inline(always)]
    pub fn publish_used(&self, at: Position, used: Used) {
        if let Some(rest) = self.rest(at.index) {
            crash::point();
            // Release: pairs with the driver's load of the flags; it then sees the others and the buffers' bytes.
            rest.store(used_word(at, used), Ordering::Release);
        }
    }

    /// Marks a descriptor behind the first of a chain as used, and leaves the rest of it as it is. No driver looks at it,
    /// but who scans the ring does.
    pub fn mark_used(&self, at: Position) {
        if let Some(rest) = self.rest(at.index) {
            crash::point();
            // Relaxed, and a load and a store: until its chain is published it is the device's alone.
            let word = rest.load(Ordering::Relaxed) & !(u64::from(TURN) << 48);
            rest.store(word | u64::from(at.used()) << 48, Ordering::Relaxed);
        }
    }

    /// Marks a descriptor as used if nobody wrote to it since it was `seen`, and leaves the rest of it as it is. So it harms no
    /// driver that is about to write there: whatever it has written, or will, stays.
    pub fn mark_unless_changed(&self, at: Position, seen: &Desc) {
        if let Some(rest) = self.rest(at.index) {
            crash::point();
            let word = |flags| u64::from(seen.len) | u64::from(seen.next) << 32 | u64::from(flags) << 48;
            let used = word(seen.flags & !TURN | at.used());
            // Release: as in publish_used, for a driver that waits for it. One that has written something else meanwhile has it.
            let _ = rest.compare_exchange(word(seen.flags), used, Ordering::Release, Ordering::Relaxed);
        }
    }

    /// When the driver wants a call.
    #[inline]
    pub fn driver_event(&self) -> Event {
        meddle::point();
        // Relaxed: the caller's full barrier orders it after the publication.
        Event::from_word(self.event(self.driver).load(Ordering::Relaxed))
    }

    /// When the driver should kick, as whoever serves the ring wrote it.
    pub fn device_event(&self) -> Event {
        // Relaxed: for display.
        Event::from_word(self.event(self.device).load(Ordering::Relaxed))
    }

    /// Says when the driver should kick.
    pub fn set_device_event(&self, event: Event) {
        // Relaxed: a hint, with no data behind it.
        self.event(self.device).store(event.to_word(), Ordering::Relaxed);
    }

    #[inline(always)]
    fn rest(&self, index: u16) -> Option<&AtomicU64> {
        self.descs().rest(index)
    }

    fn event(&self, area: NonNull<u8>) -> &AtomicU32 {
        // SAFETY: both areas are aligned to 4 and mapped while self lives; all concurrent access is atomic.
        unsafe { AtomicU32::from_ptr(area.as_ptr().cast()) }
    }
}

impl<'m> Descs<'m> {
    /// Descriptor `index`, as that of any ring, with the buffer id in place of `next`, and AVAIL and USED among the flags.
    #[inline(always)]
    pub fn get(self, index: u16) -> Option<Desc> {
        meddle::point();
        // Acquire: pairs with the driver's release of the flags after writing all else. What it wrote into this word
        // before is in the same fetch.
        let rest = self.rest(index)?.load(Ordering::Acquire);
        // SAFETY: index < size, or there would be no rest; so the word is inside the ring, which is aligned to 16.
        let addr = unsafe { AtomicU64::from_ptr(self.ptr(index).cast()) };
        meddle::point();
        Some(packed(addr.load(Ordering::Relaxed), rest))
    }

    /// Writes the used descriptor at `at`. The driver may see it at once, but looks only behind what it saw before.
    #[inline(always)]
    pub fn write_used(self, at: Position, used: Used) {
        if let Some(rest) = self.rest(at.index) {
            crash::point();
            // Relaxed: ordered by the release of the first one of the burst.
            rest.store(used_word(at, used), Ordering::Relaxed);
        }
    }

    /// The same for chains of one descriptor each, from `at` on.
    #[inline(always)]
    pub fn write_used_each(self, mut at: Position, mut chains: &[Used]) {
        while !chains.is_empty() {
            let left = u16::try_from(chains.len()).unwrap_or(u16::MAX);
            let run = at.run(left, self.size);
            let (before_end, behind) = chains.split_at(usize::from(run).min(chains.len()));
            for (index, used) in (at.index..at.index + run).zip(before_end) {
                self.write_used(Position { index, ..at }, *used);
            }
            (at, chains) = (at.advance(run, self.size), behind);
        }
    }

    /// Where descriptor `index` is the first of its line: asks to own the line `STRIDE` descriptors further on, to read it soon
    /// and write it later.
    #[inline(always)]
    pub fn prefetch_behind(self, index: u16) {
        if index % PER_LINE == 0 {
            let here = Position { index, wrap: false };
            let there = here.advance(STRIDE.min(self.size), self.size);
            cpu::prefetch_write(self.ptr(there.index));
        }
    }

    #[inline(always)]
    fn ptr(self, index: u16) -> *mut u8 {
        self.start
            .as_ptr()
            .wrapping_add(DESC_SIZE as usize * usize::from(index))
    }

    /// The second word of a descriptor: length, id and flags, which the driver publishes and we give back in one piece.
    #[inline(always)]
    fn rest(self, index: u16) -> Option<&'m AtomicU64> {
        if index >= self.size {
            return None;
        }
        // SAFETY: index < size, so the word is inside the ring, which is aligned to 16 and mapped during 'm; all
        // concurrent access from this process is atomic.
        Some(unsafe { AtomicU64::from_ptr(self.ptr(index).add(8).cast()) })
    }
}

/// The flags in the second word of a descriptor.
#[inline(always)]
fn flags(rest: u64) -> u16 {
    (rest >> 48) as u16
}

/// The second word of a used descriptor; WRITE there says that the length means something (2.8.4).
#[inline(always)]
fn used_word(at: Position, used: Used) -> u64 {
    let written = if used.len == 0 { 0 } else { VIRTQ_DESC_F_WRITE };
    u64::from(used.len) | u64::from(used.id) << 32 | u64::from(at.used() | written) << 48
}

impl DescRing for PackedMem {
    #[inline(always)]
    fn size(&self) -> u16 {
        self.size
    }

    #[inline(always)]
    fn desc(&self, index: u16) -> Option<Desc> {
        self.descs().get(index)
    }

    #[inline(always)]
    fn following(&self, index: u16, _: &Desc) -> u16 {
        match index + 1 {
            next if next < self.size => next,
            _ => 0,
        }
    }

    /// Entries are used in the order of the table, whatever their NEXT flag and id (2.8.7).
    fn entry(bytes: [u8; DESC_SIZE as usize], index: u16, entries: u16) -> Desc {
        let word = u128::from_le_bytes(bytes);
        #[expect(clippy::cast_possible_truncation, reason = "takes a word apart")]
        let raw = packed(word as u64, (word >> 64) as u64);
        let next = index.saturating_add(1);
        let goes_on = if next < entries { VIRTQ_DESC_F_NEXT } else { 0 };
        Desc {
            flags: raw.flags & (VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_INDIRECT) | goes_on,
            next,
            ..raw
        }
    }

    #[inline(always)]
    fn prefetch_desc(&self, index: u16) {
        cpu::prefetch_write(self.descs().ptr(index));
    }
}

/// A packed descriptor read as two little-endian words: address; length, id and flags.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "takes a word apart")]
fn packed(addr: u64, rest: u64) -> Desc {
    Desc {
        addr,
        len: rest as u32,
        flags: flags(rest),
        next: (rest >> 32) as u16,
    }
}

impl std::fmt::Debug for PackedMem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedMem")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

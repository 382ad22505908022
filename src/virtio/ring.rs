//! UNSAFE: the memory of a split ring (VIRTIO 1.2, 2.7).
//!
//! All that can be wrong with three addresses and a size is found when a [`SplitMem`] is made; after that
//! its accessors cannot leave the ring, whatever the driver writes into it. Fields that the driver changes
//! under us are atomics of its memory: each read is one fetch of a value that stays what it was.
//!
//! These are the standard atomics even under loom, which cannot place one at a given address.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::Arc;

use super::chain::DescRing;
use super::desc::{
    avail_bytes, desc_table_bytes, used_bytes, Desc, UsedElem, DESC_SIZE, ENTRIES_OFFSET, IDX_OFFSET,
    MAX_SIZE,
};
use crate::memory::{cpu, crash, meddle, Access, FrontendAddr, MemTable};

/// Why three addresses and a size are not a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not a power of two from 1 to 32768 (VIRTIO 1.2, 2.7).
    #[error("ring size {0} is not a power of two from 1 to {MAX_SIZE}")]
    Size(u16),
    /// Not from 1 to 32768 (VIRTIO 1.2, 2.8.10.1).
    #[error("packed ring size {0} is not from 1 to {MAX_SIZE}")]
    PackedSize(u16),
    /// The area does not lie wholly in one mapped region.
    #[error("{area} of {bytes} bytes at {addr} is not mapped by one region")]
    Unmapped {
        /// `descriptor table`, `avail ring`, `used ring`, or what a packed ring has in their place.
        area: &'static str,
        /// Where the front-end says it is.
        addr: FrontendAddr,
        /// Its length.
        bytes: u32,
    },
    /// The area's address is not a multiple of what VIRTIO 1.2, 2.7 and 2.8.10 ask.
    #[error("{area} at {addr} is not aligned to {align} bytes")]
    Unaligned {
        /// `descriptor table`, `avail ring`, `used ring`, or what a packed ring has in their place.
        area: &'static str,
        /// Where the front-end says it is.
        addr: FrontendAddr,
        /// The alignment it must have, in our address space as in the front-end's.
        align: usize,
    },
}

/// Where a front-end says a ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddrs {
    /// Descriptor table, or packed descriptor ring.
    pub desc: FrontendAddr,
    /// The driver's area: avail ring, or driver event suppression.
    pub driver: FrontendAddr,
    /// The device's area: used ring, or device event suppression.
    pub device: FrontendAddr,
}

/// One of the three areas of a ring.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// `descriptor table`, `avail ring`, `used ring`, or what a packed ring has in their place.
    pub name: &'static str,
    /// Where the front-end says it is.
    pub addr: FrontendAddr,
    /// Its length.
    pub bytes: u32,
    /// The alignment it must have.
    pub align: usize,
    /// What the device does there.
    pub access: Access,
}

/// The areas of a split ring of `size` entries: descriptor table, avail ring, used ring.
pub fn split_areas(size: u16, addrs: RingAddrs) -> [Area; 3] {
    use Access::{Read, ReadWrite};
    let rows = [
        ("descriptor table", addrs.desc, desc_table_bytes(size), 16, Read),
        ("avail ring", addrs.driver, avail_bytes(size), 2, Read),
        ("used ring", addrs.device, used_bytes(size), 4, ReadWrite),
    ];
    rows.map(Area::row)
}

impl Area {
    pub(super) fn row(
        (name, addr, bytes, align, access): (&'static str, FrontendAddr, u32, usize, Access),
    ) -> Self {
        Self {
            name,
            addr,
            bytes,
            align,
            access,
        }
    }
}

/// Finds one area of a ring.
pub(super) fn area(mem: &MemTable, area: Area) -> Result<NonNull<u8>, LayoutError> {
    let Area {
        name: area,
        addr,
        bytes,
        align,
        access,
    } = area;
    let slice = mem
        .ring_area(addr, bytes, access)
        .ok_or(LayoutError::Unmapped { area, addr, bytes })?;
    match NonNull::new(slice.as_ptr()) {
        Some(start) if slice.as_ptr().addr() % align == 0 => Ok(start),
        _ => Err(LayoutError::Unaligned { area, addr, align }),
    }
}

/// A split ring in mapped memory, and the table that keeps it mapped.
///
/// # Invariants
///
/// `desc`, `avail` and `used` are aligned and mapped for a ring of `size`, a power of two, while `mem` lives.
pub struct SplitMem {
    desc: NonNull<u8>,
    avail: NonNull<u8>,
    used: NonNull<u8>,
    mem: Arc<MemTable>,
    size: u16,
    addrs: RingAddrs,
}

// SAFETY: the pointers stand for memory of the process that `mem` keeps mapped.
unsafe impl Send for SplitMem {}
// SAFETY: shared access goes through atomics, but for used entries, which is documented where they are written.
unsafe impl Sync for SplitMem {}

impl SplitMem {
    /// A ring of `size` entries at `addrs`.
    ///
    /// # Errors
    ///
    /// [`LayoutError`]: a bad size, or an area that is unaligned or not wholly in one region.
    pub fn new(mem: Arc<MemTable>, size: u16, addrs: RingAddrs) -> Result<Self, LayoutError> {
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(LayoutError::Size(size));
        }
        let [desc, avail, used] = split_areas(size, addrs);
        Ok(Self {
            desc: area(&mem, desc)?,
            avail: area(&mem, avail)?,
            used: area(&mem, used)?,
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
        let same = [new.desc, new.avail, new.used] == [self.desc, self.avail, self.used];
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

    /// Where the used ring is in this process, to find its page in the dirty log.
    pub fn used_host(&self) -> usize {
        self.used.as_ptr().addr()
    }

    /// `avail.idx`. Acquire: pairs with the driver's release of it after writing entries and descriptors.
    #[inline(always)]
    pub fn avail_idx(&self) -> u16 {
        meddle::point();
        self.u16(self.avail, IDX_OFFSET).load(Ordering::Acquire)
    }

    /// The head in the avail entry that the free-running index `at` falls on.
    #[inline(always)]
    pub fn avail_entry(&self, at: u16) -> u16 {
        meddle::point();
        // Relaxed: ordered by the acquire of avail.idx.
        self.u16(self.avail, ENTRIES_OFFSET + 2 * self.wrap(at))
            .load(Ordering::Relaxed)
    }

    /// Asks for the line of `avail.idx` and `avail.flags`.
    #[inline(always)]
    pub fn prefetch_avail_idx(&self) {
        cpu::prefetch_read(self.avail.as_ptr());
    }

    /// `avail.flags`.
    #[inline]
    pub fn avail_flags(&self) -> u16 {
        meddle::point();
        // Relaxed: the caller's full barrier orders it after the publication of used.idx.
        self.u16(self.avail, 0).load(Ordering::Relaxed)
    }

    /// `used_event`, after the last avail entry: call when the used index passes it.
    #[inline]
    pub fn used_event(&self) -> u16 {
        meddle::point();
        // Relaxed: as for the flags.
        self.u16(self.avail, ENTRIES_OFFSET + 2 * usize::from(self.size))
            .load(Ordering::Relaxed)
    }

    /// Asks for the used entries for the `count` chains from free-running index `at`: to own them, or to read them if they will
    /// likely stay what they are.
    #[inline(always)]
    pub fn prefetch_used(&self, at: u16, count: u16, stay: bool) {
        let first = ENTRIES_OFFSET + size_of::<UsedElem>() * self.wrap(at);
        for line in 0..=usize::from(count) * size_of::<UsedElem>() / cpu::LINE {
            let line = self.used.as_ptr().wrapping_add(first + line * cpu::LINE);
            match stay {
                true => cpu::prefetch_read(line),
                false => cpu::prefetch_write(line),
            }
        }
    }

    /// Writes the used entry that the free-running index `at` falls on, and says whether it was that already. The driver may
    /// look at it once it is published.
    ///
    /// What it was already is not written: a driver that takes its descriptors in turns gets the same entries in every lap, and
    /// their lines stay with its core, too.
    #[inline(always)]
    pub fn write_used(&self, at: u16, head: u16, len: u32) -> bool {
        // `struct virtq_used_elem`, id and len, as one word.
        let elem = (u64::from(head) | u64::from(len) << 32).to_le();
        let entry = ENTRIES_OFFSET + size_of::<UsedElem>() * self.wrap(at);
        meddle::point();
        crash::point();
        // Plain accesses: until used.idx passes it this entry is the device's alone.
        // SAFETY: the entry is inside the used ring. It is aligned to 4 only, as are all of its fields.
        unsafe {
            let entry = self.used.as_ptr().add(entry).cast::<u64>();
            let stays = entry.read_unaligned() == elem;
            if !stays {
                entry.write_unaligned(elem);
            }
            stays
        }
    }

    /// `used.idx`, of which we are the only writer but for whoever served this ring before.
    #[inline]
    pub fn used_idx(&self) -> u16 {
        // Acquire: pairs with the release of the back-end before us, which may have been another process.
        self.u16(self.used, IDX_OFFSET).load(Ordering::Acquire)
    }

    /// Hands the used entries before `idx` to the driver.
    #[inline(always)]
    pub fn publish_used(&self, idx: u16) {
        crash::point();
        // Release: pairs with the driver's load of used.idx; it then sees the entries and the buffers' bytes.
        self.u16(self.used, IDX_OFFSET).store(idx, Ordering::Release);
    }

    /// `used.flags`, as whoever serves the ring wrote them.
    pub fn used_flags(&self) -> u16 {
        // Relaxed: for display.
        self.u16(self.used, 0).load(Ordering::Relaxed)
    }

    /// `avail_event`, likewise.
    pub fn avail_event(&self) -> u16 {
        let offset = ENTRIES_OFFSET + size_of::<UsedElem>() * usize::from(self.size);
        // Relaxed: for display.
        self.u16(self.used, offset).load(Ordering::Relaxed)
    }

    /// `used.flags`.
    pub fn set_used_flags(&self, flags: u16) {
        // Relaxed: a hint, with no data behind it.
        self.u16(self.used, 0).store(flags, Ordering::Relaxed);
    }

    /// `avail_event`, after the last used entry: kick when the avail index passes it.
    pub fn set_avail_event(&self, event: u16) {
        let offset = ENTRIES_OFFSET + size_of::<UsedElem>() * usize::from(self.size);
        // Relaxed: a hint, with no data behind it.
        self.u16(self.used, offset).store(event, Ordering::Relaxed);
    }

    /// The entry that a free-running index falls on.
    #[inline(always)]
    fn wrap(&self, at: u16) -> usize {
        usize::from(at & (self.size - 1))
    }

    #[inline(always)]
    fn desc_ptr(&self, index: u16) -> *const u8 {
        self.desc
            .as_ptr()
            .wrapping_add(size_of::<Desc>() * usize::from(index))
    }

    /// The word at an even `offset` of the avail or the used ring.
    #[inline(always)]
    fn u16(&self, area: NonNull<u8>, offset: usize) -> &AtomicU16 {
        // SAFETY: the callers above compute an even offset inside the area for a ring of `size`; both areas are aligned
        // to 2 and mapped while self lives; all concurrent access from this process is atomic.
        unsafe { AtomicU16::from_ptr(area.as_ptr().add(offset).cast()) }
    }
}

impl DescRing for SplitMem {
    #[inline(always)]
    fn size(&self) -> u16 {
        self.size
    }

    #[inline(always)]
    fn desc(&self, index: u16) -> Option<Desc> {
        if index >= self.size {
            return None;
        }
        let at = self.desc_ptr(index).cast::<AtomicU64>();
        // SAFETY: index < size, so both words are inside the table, which is aligned to 16.
        let (low, high) = unsafe { (&*at, &*at.add(1)) };
        meddle::point();
        // Relaxed: ordered by the acquire of avail.idx. A driver that writes between the two words tears its own chain.
        let low = low.load(Ordering::Relaxed);
        meddle::point();
        Some(Desc::from_words(low, high.load(Ordering::Relaxed)))
    }

    #[inline(always)]
    fn prefetch_desc(&self, index: u16) {
        cpu::prefetch_read(self.desc_ptr(index));
    }

    #[inline(always)]
    fn following(&self, _: u16, desc: &Desc) -> u16 {
        desc.next
    }

    #[inline(always)]
    fn entry(bytes: [u8; DESC_SIZE as usize], _: u16, _: u16) -> Desc {
        Desc::from_bytes(bytes)
    }
}

impl std::fmt::Debug for SplitMem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SplitMem")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::desc::used_bytes;
    use super::*;
    use crate::effort;
    use crate::memory::GuestAddr;
    use crate::model::{Driver, GuestMemory, Virtqueue};
    use crate::virtio::features::VIRTIO_F_VERSION_1;

    fn ring(driver: &Driver) -> SplitMem {
        let config = driver.config(0);
        let addrs = RingAddrs {
            desc: config.desc,
            driver: config.driver,
            device: config.device,
        };
        SplitMem::new(config.mem, config.size, addrs).unwrap()
    }

    #[test]
    fn a_used_entry_says_whether_it_was_that_already() {
        let memory = Arc::new(GuestMemory::new(0x1000));
        let driver = Driver::new(memory, GuestAddr(0x1000), 4, VIRTIO_F_VERSION_1);
        let ring = ring(&driver);
        let entries = [(5, 60), (5, 60), (6, 60), (6, 61), (6, 61)];
        let were = entries.map(|(head, len)| {
            let was = ring.write_used(7, head, len);
            let elem = driver.used_elem(7);
            assert_eq!((elem.id, elem.len), (head.into(), len));
            was
        });
        assert_eq!(were, [false, true, false, false, true]);
    }

    #[test]
    fn a_free_running_index_falls_on_every_entry_in_turn_also_where_it_wraps() {
        for shift in 0..=effort::of(15, 7) {
            let size = 1_u16 << shift;
            let memory = Arc::new(GuestMemory::new(Driver::ring_bytes(size).next_multiple_of(4096)));
            let ring = ring(&Driver::new(memory, GuestAddr(0x1000), size, VIRTIO_F_VERSION_1));
            let end = usize::try_from(used_bytes(size)).unwrap();
            for at in (0..=u16::MAX).step_by(effort::of(1, 1021)) {
                let (here, next) = (ring.wrap(at), ring.wrap(at.wrapping_add(1)));
                assert_eq!(next, (here + 1) % usize::from(size), "{at} of {size}");
                assert!(ENTRIES_OFFSET + size_of::<UsedElem>() * here + size_of::<UsedElem>() <= end);
            }
        }
    }
}

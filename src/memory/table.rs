//! The memory table: an immutable, sorted set of regions, and translation of peers' addresses through it.

use std::sync::Arc;

use super::addr::{FrontendAddr, GuestAddr};
use super::copy::{GuestSlice, Span};
use super::error::MemError;
use super::region::{Region, RegionDesc};

/// The most regions one front-end may map: what QEMU's largest memory layouts use, and what the kernel's vhost takes.
pub const MAX_REGIONS: usize = 509;

/// An address range that no region holds whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped;

/// All memory of one front-end. Never changes: a new set of regions is a new table that shares the old regions.
#[derive(Debug, Default)]
pub struct MemTable {
    regions: Vec<Arc<Region>>,
    /// One per region and in the same order, by guest address: all that translation needs, close together.
    spans: Vec<Span>,
}

impl MemTable {
    /// A table of these regions, in any order.
    ///
    /// Two regions may show the same front-end addresses (aliases of one memory); guest addresses must be distinct.
    ///
    /// # Errors
    ///
    /// [`MemError::TooMany`] and [`MemError::Overlap`].
    pub fn new(mut regions: Vec<Arc<Region>>) -> Result<Self, MemError> {
        if regions.len() > MAX_REGIONS {
            return Err(MemError::TooMany(regions.len()));
        }
        regions.sort_by_key(|region| region.desc().guest);
        for (low, high) in regions.iter().zip(regions.iter().skip(1)) {
            if high.desc().guest.0 - low.desc().guest.0 < low.desc().size {
                return Err(MemError::Overlap(*low.desc(), *high.desc()));
            }
        }
        let spans = regions.iter().map(|region| Span::new(region)).collect();
        Ok(Self { regions, spans })
    }

    /// This table and one region more (ADD_MEM_REG).
    ///
    /// # Errors
    ///
    /// As for [`MemTable::new`].
    pub fn with_region(&self, region: Arc<Region>) -> Result<Self, MemError> {
        let mut regions = self.regions.clone();
        regions.push(region);
        Self::new(regions)
    }

    /// This table without the region that `desc` names (REM_MEM_REG).
    ///
    /// # Errors
    ///
    /// [`MemError::NoSuchRegion`].
    pub fn without_region(&self, desc: &RegionDesc) -> Result<Self, MemError> {
        let mut regions = self.regions.clone();
        let index = regions
            .iter()
            .position(|region| region.desc().is_same_memory(desc));
        regions.remove(index.ok_or(MemError::NoSuchRegion(*desc))?);
        Self::new(regions)
    }

    /// The regions, by guest address.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// The `len` bytes at a front-end address, if one region holds them all.
    pub fn frontend(&self, addr: FrontendAddr, len: u32) -> Option<GuestSlice<'_>> {
        let (region, span) = self.regions.iter().zip(&self.spans).find(|(region, _)| {
            let desc = region.desc();
            addr.0.wrapping_sub(desc.frontend.0) < desc.size
        })?;
        let offset = addr.0 - region.desc().frontend.0;
        span.prefix(offset, len).filter(|slice| slice.len() == len)
    }

    /// A translator of guest addresses that first tries the region numbered `hint`, of any value.
    /// `None` if there is no region at all.
    #[inline]
    pub fn cursor(&self, hint: u16) -> Option<Cursor<'_>> {
        match self.spans.get(usize::from(hint)) {
            Some(hit) => Some(Cursor {
                spans: &self.spans,
                hit,
                hint,
            }),
            None => self.spans.first().map(|hit| Cursor {
                spans: &self.spans,
                hit,
                hint: 0,
            }),
        }
    }
}

/// Translates guest addresses, beginning with the region of the last hit: a guest's buffers are mostly neighbours.
pub struct Cursor<'m> {
    spans: &'m [Span],
    hit: &'m Span,
    hint: u16,
}

impl<'m> Cursor<'m> {
    /// As many of the `len` bytes at `addr` as lie together in one region: at least one unless `len` is 0.
    ///
    /// A range that goes on in a neighbouring region is legal: ask again for what is left.
    #[inline(always)]
    pub fn prefix(&mut self, addr: GuestAddr, len: u32) -> Option<GuestSlice<'m>> {
        let offset = addr.0.wrapping_sub(self.hit.guest());
        match self.hit.prefix(offset, len) {
            Some(slice) => Some(slice),
            None => self.search(addr, len),
        }
    }

    /// Fills `bytes` from guest memory at `addr`, reading each byte once, across regions if it must.
    ///
    /// # Errors
    ///
    /// [`Unmapped`] if any of the bytes is; `bytes` is then partly written.
    pub fn read(&mut self, mut addr: GuestAddr, mut bytes: &mut [u8]) -> Result<(), Unmapped> {
        while !bytes.is_empty() {
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let read = self.prefix(addr, len).ok_or(Unmapped)?.read(bytes);
            bytes = bytes.get_mut(read..).unwrap_or_default();
            if !bytes.is_empty() {
                addr = addr.checked_add(read as u64).ok_or(Unmapped)?;
            }
        }
        Ok(())
    }

    /// Writes `bytes` to guest memory at `addr`, across regions if it must.
    ///
    /// # Errors
    ///
    /// [`Unmapped`] if any of the range is; the part before it is then written.
    pub fn write(&mut self, mut addr: GuestAddr, mut bytes: &[u8]) -> Result<(), Unmapped> {
        while !bytes.is_empty() {
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let written = self.prefix(addr, len).ok_or(Unmapped)?.write(bytes);
            bytes = bytes.get(written..).unwrap_or_default();
            if !bytes.is_empty() {
                addr = addr.checked_add(written as u64).ok_or(Unmapped)?;
            }
        }
        Ok(())
    }

    /// The number of the region of the last hit, for the next [`MemTable::cursor`].
    #[inline]
    pub fn hint(&self) -> u16 {
        self.hint
    }

    #[cold]
    fn search(&mut self, addr: GuestAddr, len: u32) -> Option<GuestSlice<'m>> {
        let above = self.spans.partition_point(|span| span.guest() <= addr.0);
        let index = above.checked_sub(1)?;
        let span = self.spans.get(index)?;
        let slice = span.prefix(addr.0 - span.guest(), len)?;
        self.hit = span;
        self.hint = u16::try_from(index).unwrap_or(0);
        Some(slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::GuestMemory;
    use std::os::fd::AsFd;

    fn desc(guest: u64, size: u64, mmap_offset: u64) -> RegionDesc {
        RegionDesc {
            guest: GuestAddr(guest),
            size,
            frontend: FrontendAddr(guest + 0x7000_0000),
            mmap_offset,
        }
    }

    fn map(memory: &GuestMemory, desc: RegionDesc) -> Arc<Region> {
        Arc::new(Region::map(desc, memory.file().as_fd()).unwrap())
    }

    #[test]
    fn a_region_needs_a_file_that_holds_it() {
        let memory = GuestMemory::new(0x2000);
        let file = memory.file();
        for fits in [
            desc(0, 0x2000, 0),
            desc(0, 1, 0x1fff),
            desc(0x1234, 0x1000, 0x777),
        ] {
            assert!(Region::map(fits, file.as_fd()).is_ok(), "{fits}");
        }
        for (short, need) in [
            (desc(0, 0x2001, 0), 0x2001),
            (desc(0, 1, 0x2000), 0x2001),
            (desc(0, 0x1000, 0x1001), 0x2001),
        ] {
            match Region::map(short, file.as_fd()) {
                Err(MemError::FileTooShort {
                    need: said,
                    have: 0x2000,
                    ..
                }) => assert_eq!(said, need),
                other => panic!("{short}: {other:?}"),
            }
        }
    }

    #[test]
    fn sums_that_wrap_are_refused() {
        let memory = GuestMemory::new(0x2000);
        let wrapping = [
            (desc(u64::MAX - 0x8000_0000, 0x8000_0002, 0), "guest address"),
            (
                RegionDesc {
                    frontend: FrontendAddr(u64::MAX),
                    ..desc(0, 2, 0)
                },
                "front-end address",
            ),
            (desc(0, 0x1000, u64::MAX - 0xfff), "file"),
            (desc(0, 0x2000, !0xfff), "file"),
        ];
        for (desc, space) in wrapping {
            match Region::map(desc, memory.file()) {
                Err(MemError::Wraps { space: said, .. }) => assert_eq!(said, space),
                other => panic!("{desc}: {other:?}"),
            }
        }
        assert!(matches!(
            Region::map(desc(0, 0, 0), memory.file()),
            Err(MemError::Empty(_))
        ));
    }

    #[test]
    fn what_is_no_memory_is_refused() {
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(
            Region::map(desc(0, 0x1000, 0), socket),
            Err(MemError::FileTooShort { .. })
        ));
    }

    #[test]
    fn a_region_shows_its_part_of_the_file_from_any_offset() {
        let memory = GuestMemory::new(0x4000);
        for offset in [0, 1, 0x1000, 0x1ffd] {
            let at = GuestAddr(0x1000 + offset + 5);
            memory.write(at, &offset.to_le_bytes());
            let table = MemTable::new(vec![map(&memory, desc(0x9000, 0x100, offset))]).unwrap();
            let mut bytes = [0; 8];
            table
                .cursor(0)
                .unwrap()
                .read(GuestAddr(0x9005), &mut bytes)
                .unwrap();
            assert_eq!(u64::from_le_bytes(bytes), offset);
        }
    }

    #[test]
    fn guest_memory_stays_out_of_core_dumps() {
        let memory = GuestMemory::new(0x5000);
        let start = memory.table().regions()[0].mapping().start().addr();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let ours = smaps.split_once(&format!("{start:x}-")).unwrap().1;
        let flags = ours.lines().find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
    }

    #[test]
    fn overlapping_guest_addresses_are_refused_in_any_order() {
        let memory = GuestMemory::new(0x4000);
        let (one, two) = (
            map(&memory, desc(0x1000, 0x2000, 0)),
            map(&memory, desc(0x2fff, 0x1000, 0)),
        );
        assert!(matches!(
            MemTable::new(vec![one.clone(), two.clone()]),
            Err(MemError::Overlap(..))
        ));
        assert!(matches!(
            MemTable::new(vec![two, one.clone()]),
            Err(MemError::Overlap(..))
        ));
        assert!(matches!(
            MemTable::new(vec![one.clone(), one]),
            Err(MemError::Overlap(..))
        ));
    }

    #[test]
    fn as_many_regions_as_the_largest_front_ends_have_and_no_more() {
        let memory = GuestMemory::new(0x1000);
        let region = |index: u64| map(&memory, desc(index * 0x1000, 0x1000, 0));
        let table = MemTable::new((0..509).rev().map(region).collect()).unwrap();
        let mut cursor = table.cursor(0).unwrap();
        for index in [508, 0, 254, 508, 1] {
            assert_eq!(
                cursor
                    .prefix(GuestAddr(index * 0x1000 + 1), 0x1000)
                    .map(|slice| slice.len()),
                Some(0xfff)
            );
            assert_eq!(u64::from(cursor.hint()), index);
        }
        assert!(matches!(
            table.with_region(region(509)),
            Err(MemError::TooMany(510))
        ));
    }

    #[test]
    fn regions_come_and_go_and_tables_stay_as_they_were() {
        let memory = GuestMemory::new(0x4000);
        let one = MemTable::new(vec![map(&memory, desc(0x1000, 0x1000, 0))]).unwrap();
        let two = one
            .with_region(map(&memory, desc(0x8000, 0x1000, 0x1000)))
            .unwrap();
        // REM_MEM_REG does not say the right offset.
        let three = two.without_region(&desc(0x1000, 0x1000, 0x3000)).unwrap();
        let mapped = |table: &MemTable, addr| table.cursor(7).unwrap().prefix(GuestAddr(addr), 1).is_some();
        assert_eq!(
            [&one, &two, &three].map(|table| mapped(table, 0x1fff)),
            [true, true, false]
        );
        assert_eq!(
            [&one, &two, &three].map(|table| mapped(table, 0x8000)),
            [false, true, true]
        );
        assert!(matches!(
            three.without_region(&desc(0x1000, 0x1000, 0)),
            Err(MemError::NoSuchRegion(_))
        ));
        assert!(matches!(
            three.without_region(&desc(0x8000, 0xfff, 0)),
            Err(MemError::NoSuchRegion(_))
        ));
        let none = three.without_region(&desc(0x8000, 0x1000, 0)).unwrap();
        assert!(none.cursor(0).is_none());
    }

    #[test]
    fn only_addresses_inside_a_region_translate() {
        let memory = GuestMemory::new(0x2000);
        let table = MemTable::new(vec![map(&memory, desc(0x1000, 0x2000, 0))]).unwrap();
        let len = |addr, len| {
            table
                .cursor(0)
                .unwrap()
                .prefix(GuestAddr(addr), len)
                .map(|slice| slice.len())
        };
        let rows = [
            (0x0fff, 1, None),
            (0x1000, 1, Some(1)),
            (0x1000, 0, Some(0)),
            (0x2fff, 1, Some(1)),
            (0x2fff, 2, Some(1)),
            (0x2ff0, u32::MAX, Some(16)),
            (0x3000, 0, None),
            (u64::MAX, 1, None),
        ];
        for (addr, asked, got) in rows {
            assert_eq!(len(addr, asked), got, "{asked} bytes at {addr:#x}");
        }
        let frontend = |addr, len| table.frontend(FrontendAddr(addr), len).is_some();
        assert!(frontend(0x7000_1000, 0x2000) && !frontend(0x7000_1000, 0x2001) && !frontend(0x1000, 1));
        assert!(!frontend(0x7000_2fff, 2) && !frontend(0x7000_0fff, 2) && !frontend(u64::MAX, u32::MAX));
    }

    #[test]
    fn reading_crosses_into_a_neighbour_and_stops_at_a_gap() {
        let memory = GuestMemory::with_regions(&[(GuestAddr(0x1000), 0x1000), (GuestAddr(0x2000), 0x1000)]);
        memory.write(GuestAddr(0x1ffe), &[1, 2, 3, 4]);
        let mut bytes = [0; 4];
        memory.read(GuestAddr(0x1ffe), &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4]);
        let table = memory.table();
        assert_eq!(
            table.cursor(0).unwrap().read(GuestAddr(0x2ffe), &mut bytes),
            Err(Unmapped)
        );
        assert_eq!(
            table.cursor(0).unwrap().write(GuestAddr(u64::MAX), &bytes),
            Err(Unmapped)
        );
    }
}

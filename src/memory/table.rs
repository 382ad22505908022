//! The memory table: an immutable, sorted set of regions, and translation of peers' addresses through it.

use std::sync::Arc;

use super::addr::{FrontendAddr, GuestAddr};
use super::copy::{GuestSlice, Span};
use super::error::MemError;
use super::iotlb::{Access, Iotlb, MAX_TRANSLATIONS};
use super::region::{Region, RegionDesc};
use super::stitch::{Stitch, PAGE};

/// The most regions one front-end may map: what QEMU's largest memory layouts use, and what the kernel's vhost takes.
pub const MAX_REGIONS: usize = 509;

/// The most parts that translations may fall into where regions meet. Only who means ill needs more than a few.
const MAX_PARTS: usize = 4 * MAX_TRANSLATIONS;

/// An address range that no region holds whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped;

/// All memory of one front-end. Never changes: a new set of regions is a new table that shares the old regions.
#[derive(Debug, Default)]
pub struct MemTable {
    regions: Vec<Arc<Region>>,
    /// One per region and in the same order, by guest address: all that translation needs, close together.
    spans: Vec<Span>,
    /// Behind an IOMMU: what the addresses of descriptors and rings lead to, instead of `spans`.
    iommu: Option<Translated>,
}

/// Memory as a device behind an IOMMU may see it: by I/O virtual address, once for each thing to be done with it.
#[derive(Debug, Default)]
struct Translated {
    readable: Vec<Span>,
    writable: Vec<Span>,
    /// Parts of rings that do not lie in one span.
    stitches: Vec<Stitched>,
}

/// Pages put together, and what the device may do there.
#[derive(Clone, Debug)]
struct Stitched {
    span: Span,
    access: Access,
    stitch: Arc<Stitch>,
}

impl Translated {
    fn spans(&self, access: Access) -> &[Span] {
        match access {
            Access::Read => &self.readable,
            Access::Write | Access::ReadWrite => &self.writable,
        }
    }
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
        Ok(Self {
            regions,
            spans,
            iommu: None,
        })
    }

    /// The same memory seen through an IOMMU. What a translation leads to where no region is, is left out.
    pub fn behind(&self, iotlb: &Iotlb) -> Self {
        let mut seen = Translated::default();
        for translation in iotlb.translations() {
            let (mut guest, mut target, mut extent) = (
                translation.iova.first().0,
                translation.target.0,
                translation.extent(),
            );
            // A translation goes from region to region, as long as there is one.
            while let Some(span) = self.frontend_span(target, extent, guest) {
                if seen.readable.len().max(seen.writable.len()) >= MAX_PARTS {
                    break;
                }
                if translation.access.allows(Access::Read) {
                    seen.readable.push(span);
                }
                if translation.access.allows(Access::Write) {
                    seen.writable.push(span);
                }
                let Some(left) = extent.checked_sub(span.size()) else {
                    break;
                };
                (guest, target, extent) = (guest + span.size(), target.wrapping_add(span.size()), left);
            }
        }
        Self {
            regions: self.regions.clone(),
            spans: self.spans.clone(),
            iommu: Some(seen),
        }
    }

    /// This table, with these parts of rings (address, length and access) together wherever they lie apart. What `before`
    /// has together already is taken over, so that a ring on it stays where it is.
    pub fn stitched(mut self, areas: &[(GuestAddr, u32, Access)], before: &Self) -> Self {
        let known = before.iommu.as_ref().map_or(&[][..], |seen| &seen.stitches);
        let stitches: Vec<_> = areas
            .iter()
            .filter(|(addr, len, access)| {
                let apart = self.ring_area(FrontendAddr(addr.0), *len, *access).is_none();
                apart && self.first_miss(*addr, *len, *access).is_none()
            })
            .filter_map(|(addr, len, access)| self.stitch(*addr, *len, *access, known))
            .collect();
        if let Some(seen) = &mut self.iommu {
            seen.stitches = stitches;
        }
        self
    }

    fn stitch(&self, addr: GuestAddr, len: u32, access: Access, known: &[Stitched]) -> Option<Stitched> {
        let page = PAGE as u64;
        let (first, last) = (
            addr.0 & !(page - 1),
            addr.checked_add(u64::from(len.checked_sub(1)?))?.0,
        );
        let pages = (first..=last).step_by(PAGE).map(|at| {
            let whole = self.ring_area(FrontendAddr(at), u32::try_from(PAGE).ok()?, access)?;
            Some(whole.as_ptr()).filter(|start| start.addr() % PAGE == 0)
        });
        let pages: Vec<_> = pages.collect::<Option<_>>()?;
        let same = known.iter().find(|other| other.stitch.is_of(first, &pages));
        let stitch = match same {
            Some(same) => Arc::clone(&same.stitch),
            None => match Stitch::new(first, pages) {
                Ok(stitch) => Arc::new(stitch),
                Err(error) => {
                    log::debug!("pages of a ring at {addr} cannot be put together: {error}");
                    return None;
                }
            },
        };
        Some(Stitched {
            span: Span::stitched(&stitch),
            access,
            stitch,
        })
    }

    /// Whether the addresses of descriptors and rings are I/O virtual ones.
    #[inline]
    pub fn is_behind_iommu(&self) -> bool {
        self.iommu.is_some()
    }

    /// Whether regions hold all of the `size` bytes at a front-end address.
    pub fn holds(&self, addr: FrontendAddr, size: u64) -> bool {
        let (mut target, Some(mut extent)) = (addr.0, size.checked_sub(1)) else {
            return true;
        };
        while let Some(span) = self.frontend_span(target, extent, 0) {
            match (extent.checked_sub(span.size()), target.checked_add(span.size())) {
                (None, _) => return true,
                (Some(left), Some(next)) => (extent, target) = (left, next),
                (Some(_), None) => return false,
            }
        }
        false
    }

    /// The beginning, within one region, of `extent + 1` bytes at a front-end address, to be seen at `guest`.
    fn frontend_span(&self, target: u64, extent: u64, guest: u64) -> Option<Span> {
        self.regions
            .iter()
            .find_map(|region| Span::part(region, target, extent, guest))
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

    /// The `len` bytes of a ring for which SET_VRING_ADDR gave `addr`, if they lie together in memory and the device may
    /// do with them what it must. Behind an IOMMU that address is an I/O virtual one.
    pub fn ring_area(&self, addr: FrontendAddr, len: u32, access: Access) -> Option<GuestSlice<'_>> {
        let Some(seen) = &self.iommu else {
            return self.frontend(addr, len);
        };
        let whole = |spans| {
            let slice = find(spans, GuestAddr(addr.0), len)?.1;
            (slice.len() == len).then_some(slice)
        };
        let together = match access {
            Access::Read | Access::Write => whole(seen.spans(access)),
            Access::ReadWrite => whole(&seen.readable).filter(|readable| {
                whole(&seen.writable).is_some_and(|slice| slice.as_ptr() == readable.as_ptr())
            }),
        };
        together.or_else(|| {
            let stitches = seen
                .stitches
                .iter()
                .filter(|stitched| stitched.access.allows(access));
            let mut slices = stitches.filter_map(|stitched| {
                stitched
                    .span
                    .prefix(addr.0.wrapping_sub(stitched.span.guest()), len)
            });
            slices.find(|slice| slice.len() == len)
        })
    }

    /// Behind an IOMMU: the first of the `len` addresses from `addr` on of which the device may not, as far as known, do
    /// what it wants.
    pub fn first_miss(&self, addr: GuestAddr, len: u32, access: Access) -> Option<GuestAddr> {
        let seen = self.iommu.as_ref()?;
        let passed = |wanted| match access.allows(wanted) {
            true => reach(seen.spans(wanted), addr, len),
            false => len,
        };
        let passed = passed(Access::Read).min(passed(Access::Write));
        addr.checked_add(u64::from(passed)).filter(|_| passed < len)
    }

    /// A translator of the addresses of descriptors to be read that first tries the region numbered `hint`, of any value.
    /// `None` if there is no region at all.
    #[inline]
    pub fn cursor(&self, hint: u16) -> Option<Cursor<'_>> {
        match &self.iommu {
            None => Cursor::new(&self.spans, None, hint),
            Some(seen) => Cursor::new(&seen.readable, None, hint),
        }
    }

    /// As [`MemTable::cursor`], for descriptors to be written.
    #[inline]
    pub fn cursor_to_write(&self, hint: u16) -> Option<Cursor<'_>> {
        match &self.iommu {
            None => Cursor::new(&self.spans, None, hint),
            Some(seen) => Cursor::new(&seen.writable, Some(&seen.readable), hint),
        }
    }
}

/// As many of the `len` bytes at `addr` as lie in one span, and the number of that span.
fn find(spans: &[Span], addr: GuestAddr, len: u32) -> Option<(usize, GuestSlice<'_>)> {
    let index = spans
        .partition_point(|span| span.guest() <= addr.0)
        .checked_sub(1)?;
    let span = spans.get(index)?;
    Some((index, span.prefix(addr.0 - span.guest(), len)?))
}

/// How many of the `len` addresses from `addr` on are in spans, without a gap.
fn reach(spans: &[Span], addr: GuestAddr, len: u32) -> u32 {
    let mut passed = 0;
    while passed < len {
        let at = addr.checked_add(u64::from(passed));
        match at.and_then(|at| find(spans, at, len - passed)) {
            Some((_, slice)) => passed += slice.len(),
            None => break,
        }
    }
    passed
}

/// Translates guest addresses, beginning with the region of the last hit: a guest's buffers are mostly neighbours.
pub struct Cursor<'m> {
    spans: &'m [Span],
    /// Where to read, if that is not where to write.
    readable: Option<&'m [Span]>,
    hit: &'m Span,
    hint: u16,
}

impl<'m> Cursor<'m> {
    #[inline(always)]
    fn new(spans: &'m [Span], readable: Option<&'m [Span]>, hint: u16) -> Option<Self> {
        let (hit, hint) = match spans.get(usize::from(hint)) {
            Some(hit) => (hit, hint),
            None => (spans.first()?, 0),
        };
        Some(Cursor {
            spans,
            readable,
            hit,
            hint,
        })
    }

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

    /// As [`Cursor::prefix`], of bytes that the device reads whatever the cursor is for: an indirect table.
    #[inline]
    pub fn readable_prefix(&mut self, addr: GuestAddr, len: u32) -> Option<GuestSlice<'m>> {
        match self.readable {
            None => self.prefix(addr, len),
            Some(spans) => find(spans, addr, len).map(|(_, slice)| slice),
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
            let read = self.readable_prefix(addr, len).ok_or(Unmapped)?.read(bytes);
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
        let (index, slice) = find(self.spans, addr, len)?;
        self.hit = self.spans.get(index)?;
        self.hint = u16::try_from(index).unwrap_or(0);
        Some(slice)
    }
}

#[cfg(test)]
mod tests {
    use super::super::iotlb::{IovaRange, Translation};
    use super::*;
    use crate::model::{GuestMemory, FRONTEND_OFFSET};
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

    /// Memory of two regions, the second of which the front-end has right behind the first.
    fn behind(translations: &[(u64, u64, u64, Access)]) -> (GuestMemory, MemTable) {
        let memory = GuestMemory::with_regions(&[(GuestAddr(0x1000), 0x2000), (GuestAddr(0x3000), 0x1000)]);
        let mut iotlb = Iotlb::default();
        for (iova, size, target, access) in translations {
            let translation = Translation {
                iova: IovaRange::new(GuestAddr(*iova), *size).unwrap(),
                target: FrontendAddr(FRONTEND_OFFSET + target),
                access: *access,
            };
            iotlb.update(translation, &[]);
        }
        let table = memory.table().behind(&iotlb);
        (memory, table)
    }

    #[test]
    fn behind_an_iommu_only_what_was_translated_is_there_and_only_as_allowed() {
        let (memory, table) = behind(&[
            (0x10_0000, 0x1000, 0x2000, Access::Read),
            (0x20_0000, 0x1000, 0x1000, Access::Write),
        ]);
        memory.write(GuestAddr(0x2010), b"read");
        let mut bytes = [0; 4];
        let mut reader = table.cursor(0).unwrap();
        assert_eq!(reader.read(GuestAddr(0x10_0010), &mut bytes), Ok(()));
        assert_eq!(&bytes, b"read");
        // A guest-physical address means nothing here, and what may only be written cannot be read.
        assert_eq!(reader.read(GuestAddr(0x2010), &mut bytes), Err(Unmapped));
        assert_eq!(reader.read(GuestAddr(0x20_0000), &mut bytes), Err(Unmapped));
        let mut writer = table.cursor_to_write(0).unwrap();
        assert_eq!(writer.write(GuestAddr(0x20_0020), b"wrote"), Ok(()));
        assert_eq!(writer.write(GuestAddr(0x10_0020), b"wrote"), Err(Unmapped));
        // But an indirect table is read whatever its buffers are for.
        assert_eq!(
            writer
                .readable_prefix(GuestAddr(0x10_0ff8), 16)
                .map(|slice| slice.len()),
            Some(8)
        );
        let mut bytes = [0; 5];
        memory.read(GuestAddr(0x1020), &mut bytes);
        assert_eq!(&bytes, b"wrote");
    }

    #[test]
    fn a_translation_goes_on_from_region_to_region_and_ends_where_none_is() {
        let (memory, table) = behind(&[(0x10_0000, 0x9000, 0x2000, Access::ReadWrite)]);
        memory.write(GuestAddr(0x2ffe), &[1, 2, 3, 4]);
        let mut bytes = [0; 4];
        table
            .cursor(0)
            .unwrap()
            .read(GuestAddr(0x10_0ffe), &mut bytes)
            .unwrap();
        assert_eq!(bytes, [1, 2, 3, 4]);
        let miss = |at, len| table.first_miss(GuestAddr(at), len, Access::ReadWrite);
        assert_eq!(miss(0x10_0ff0, 0x1010), None);
        assert_eq!(miss(0x10_0ff0, 0x1011), Some(GuestAddr(0x10_2000)));
        assert_eq!(miss(0xf_ffff, 1), Some(GuestAddr(0xf_ffff)));
        assert!(memory
            .table()
            .holds(FrontendAddr(FRONTEND_OFFSET + 0x1000), 0x3000));
        assert!(!memory
            .table()
            .holds(FrontendAddr(FRONTEND_OFFSET + 0x1000), 0x3001));
        assert!(!memory.table().holds(FrontendAddr(u64::MAX), 2));
    }

    #[test]
    fn a_ring_behind_an_iommu_lies_where_its_addresses_lead_together_and_with_access() {
        let (memory, table) = behind(&[
            (0x10_0000, 0x1000, 0x2000, Access::ReadWrite),
            (0x10_1000, 0x1000, 0x1000, Access::ReadWrite),
            (0x20_0000, 0x1000, 0x1000, Access::Read),
        ]);
        let area = |at, len, access| {
            let slice = table.ring_area(FrontendAddr(at), len, access)?;
            Some(slice.as_ptr().addr())
        };
        let physical = |at| {
            memory
                .table()
                .frontend(FrontendAddr(FRONTEND_OFFSET + at), 1)
                .map(|s| s.as_ptr().addr())
        };
        assert_eq!(area(0x10_0010, 0xff0, Access::ReadWrite), physical(0x2010));
        assert_eq!(area(0x20_0000, 0x1000, Access::Read), physical(0x1000));
        // Two pages that are neighbours here and not in memory; no leave to write; the front-end's own address.
        assert_eq!(area(0x10_0010, 0xff1, Access::ReadWrite), None);
        assert_eq!(area(0x20_0000, 16, Access::ReadWrite), None);
        assert_eq!(area(FRONTEND_OFFSET + 0x1000, 16, Access::Read), None);
    }

    #[test]
    fn pages_of_a_ring_that_lie_apart_are_put_together_and_stay_where_they_are() {
        let scattered = [
            (0x10_0000, 0x1000, 0x2000, Access::ReadWrite),
            (0x10_1000, 0x1000, 0x1000, Access::ReadWrite),
            (0x10_2000, 0x1000, 0x3000, Access::Read),
        ];
        let (memory, table) = behind(&scattered);
        let ring = FrontendAddr(0x10_0800);
        let areas = [
            (GuestAddr(ring.0), 0x1000, Access::ReadWrite),
            // Not all told; not all to be written.
            (GuestAddr(0x10_2800), 0x1000, Access::Read),
            (GuestAddr(0x10_1800), 0x1000, Access::ReadWrite),
        ];
        let none = MemTable::default();
        let table = table.stitched(&areas, &none);
        let slice = table.ring_area(ring, 0x1000, Access::ReadWrite).unwrap();
        assert!(slice.write_all(&[0x11; 0x1000]));
        memory.write(GuestAddr(0x17ff), &[0x22]);
        let mut bytes = [0; 2];
        memory.read(GuestAddr(0x2fff), &mut bytes[..1]);
        memory.read(GuestAddr(0x1000), &mut bytes[1..]);
        assert_eq!(bytes, [0x11, 0x11]);
        let mut seen = vec![0; 0x1000];
        assert_eq!(slice.read(&mut seen), 0x1000);
        assert_eq!(seen[0xffe..], [0x11, 0x22]);
        assert!(table
            .ring_area(FrontendAddr(0x10_2800), 0x1000, Access::Read)
            .is_none());
        assert!(table
            .ring_area(FrontendAddr(0x10_1800), 0x1000, Access::ReadWrite)
            .is_none());
        assert!(table
            .ring_area(FrontendAddr(0x10_0fff), 0x1002, Access::ReadWrite)
            .is_none());

        // The same again is the same memory; with a page elsewhere, or one page less, it is not.
        let where_is = |table: &MemTable| {
            let slice = table.ring_area(ring, 0x1000, Access::ReadWrite)?;
            Some(slice.as_ptr().addr())
        };
        let seen_by = |translations: &[(u64, u64, u64, Access)]| {
            let mut iotlb = Iotlb::default();
            for (iova, size, target, access) in translations {
                let iova = IovaRange::new(GuestAddr(*iova), *size).unwrap();
                let (target, access) = (FrontendAddr(FRONTEND_OFFSET + target), *access);
                iotlb.update(Translation { iova, target, access }, &[]);
            }
            memory.table().behind(&iotlb).stitched(&areas, &table)
        };
        assert_eq!(where_is(&seen_by(&scattered)), where_is(&table));
        let moved = [scattered[0], (0x10_1000, 0x1000, 0x3000, Access::ReadWrite)];
        let moved = where_is(&seen_by(&moved));
        assert!(moved.is_none() || moved != where_is(&table));
        assert_eq!(where_is(&seen_by(&scattered[..1])), None);
    }
}

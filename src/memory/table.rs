//! The memory table: an immutable, sorted set of regions, and what peers' addresses lead to in it.

use std::sync::Arc;

use super::addr::{FrontendAddr, GuestAddr};
use super::copy::{GuestSlice, Span};
use super::cursor::{find, reach, Cursor};
use super::error::MemError;
use super::iotlb::{Access, Iotlb, MAX_TRANSLATIONS};
use super::region::{Region, RegionDesc};
use super::stitch::{Stitch, PAGE};

/// The most regions one front-end may map: what QEMU's largest memory layouts use, and what the kernel's vhost takes.
pub const MAX_REGIONS: usize = 509;

/// The most parts that translations may fall into where regions meet. Only who means ill needs more than a few.
const MAX_PARTS: usize = 4 * MAX_TRANSLATIONS;

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

    /// Whether the file behind any of it was cut short, and that was noticed. There is empty memory in its place then, for
    /// whoever is at it still; the front-end has lost its device.
    pub fn is_lost(&self) -> bool {
        let stitches = self.iommu.iter().flat_map(|seen| &seen.stitches);
        self.regions.iter().any(|region| region.mapping().is_lost())
            || stitches.into_iter().any(|stitched| stitched.stitch.is_lost())
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

    /// The address of ours, in the mapping of a region, of what is at this one: parts of rings may be mapped once more.
    pub fn home(&self, host: usize) -> usize {
        let mut stitches = self.iommu.iter().flat_map(|seen| &seen.stitches);
        let home = stitches.find_map(|stitched| stitched.stitch.home(host));
        home.unwrap_or(host)
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

#[cfg(test)]
mod tests;

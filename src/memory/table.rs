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

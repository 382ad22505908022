//! Translation: from an address of the guest's to bytes that are mapped, through the spans of a table.

use super::addr::GuestAddr;
use super::copy::{GuestSlice, Span};

/// An address range that no region holds whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped;

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
    pub(super) fn new(spans: &'m [Span], readable: Option<&'m [Span]>, hint: u16) -> Option<Self> {
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

    /// All of the `len` bytes at `addr`, if they lie together in one region.
    #[inline(always)]
    pub fn whole(&mut self, addr: GuestAddr, len: u32) -> Option<GuestSlice<'m>> {
        match self.hit.whole(addr.0.wrapping_sub(self.hit.guest()), len) {
            Some(slice) => Some(slice),
            None => self.search(addr, len).filter(|slice| slice.len() == len),
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

    /// The number of the region of the last hit, for the next [`MemTable::cursor`](super::MemTable::cursor).
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

/// As many of the `len` bytes at `addr` as lie in one span, and the number of that span.
pub(super) fn find(spans: &[Span], addr: GuestAddr, len: u32) -> Option<(usize, GuestSlice<'_>)> {
    let index = spans
        .partition_point(|span| span.guest() <= addr.0)
        .checked_sub(1)?;
    let span = spans.get(index)?;
    Some((index, span.prefix(addr.0 - span.guest(), len)?))
}

/// How many of the `len` addresses from `addr` on are in spans, without a gap.
pub(super) fn reach(spans: &[Span], addr: GuestAddr, len: u32) -> u32 {
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

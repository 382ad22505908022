//! Where a part of a ring is, as the dirty log counts. In one piece, mostly; but behind an IOMMU a guest may put a ring together
//! of pages from anywhere, which are mapped here once more to lie side by side.

use std::ops::Range;

use crate::memory::{GuestAddr, MemTable, WriteLog};

/// What is looked up at a time: no smaller piece lies apart.
const PAGE: usize = 4096;

/// A part of a ring.
pub(in crate::datapath) struct Place(Vec<Piece>);

/// Bytes that are together for the log too.
struct Piece {
    /// By how far they are from the beginning of the part.
    bytes: Range<usize>,
    guest: GuestAddr,
}

impl Place {
    /// The `len` bytes at a guest address.
    pub(in crate::datapath) fn told(guest: GuestAddr, len: u32) -> Self {
        Self(vec![Piece {
            bytes: 0..len as usize,
            guest,
        }])
    }

    /// The `len` bytes at an address of ours, which belong to a ring in memory of this table. Those that are nowhere in the
    /// memory that is logged are left out.
    pub(super) fn find(writes: &WriteLog, mem: &MemTable, host: usize, len: u32) -> Self {
        let mut place = Self(Vec::new());
        let (mut at, len) = (0, len as usize);
        while at < len {
            let next = len.min(at + PAGE - (host + at) % PAGE);
            if let Some(guest) = writes.guest(mem.home(host + at)) {
                place.extend(at..next, guest);
            }
            at = next;
        }
        place
    }

    fn extend(&mut self, bytes: Range<usize>, guest: GuestAddr) {
        match self.0.last_mut() {
            Some(last)
                if last.bytes.end == bytes.start
                    && last.guest.checked_add(last.bytes.len() as u64) == Some(guest) =>
            {
                last.bytes.end = bytes.end;
            }
            _ => self.0.push(Piece { bytes, guest }),
        }
    }

    /// Where the `len` bytes at `offset` are, piece by piece.
    pub(super) fn pieces(&self, offset: usize, len: u32) -> impl Iterator<Item = (GuestAddr, u32)> + '_ {
        let end = offset.saturating_add(len as usize);
        self.0.iter().filter_map(move |piece| {
            let (first, end) = (piece.bytes.start.max(offset), piece.bytes.end.min(end));
            let len = u32::try_from(end.checked_sub(first)?)
                .ok()
                .filter(|len| *len > 0)?;
            let guest = piece.guest.checked_add((first - piece.bytes.start) as u64)?;
            Some((guest, len))
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn pieces(place: &Place, offset: usize, len: u32) -> Vec<(u64, u32)> {
        let pieces = place.pieces(offset, len);
        pieces.map(|(guest, len)| (guest.0, len)).collect()
    }

    #[test]
    fn what_is_together_for_the_log_is_one_piece_and_what_is_not_is_several() {
        let mut place = Place(Vec::new());
        place.extend(0..0x100, GuestAddr(0x8f00));
        place.extend(0x100..0x1100, GuestAddr(0x9000));
        place.extend(0x1100..0x1200, GuestAddr(0x3000));
        assert_eq!(place.0.len(), 2);
        assert_eq!(pieces(&place, 0, 0x1200), [(0x8f00, 0x1100), (0x3000, 0x100)]);
        assert_eq!(pieces(&place, 0x10ff, 2), [(0x9fff, 1), (0x3000, 1)]);
        assert_eq!(pieces(&place, 0x1100, 4), [(0x3000, 4)]);
    }

    #[test]
    fn nothing_lies_beyond_the_part_or_in_no_bytes() {
        let place = Place::told(GuestAddr(0x5000), 0x20);
        assert_eq!(pieces(&place, 0x10, 0x10), [(0x5010, 0x10)]);
        assert_eq!(pieces(&place, 0x1f, 9), [(0x501f, 1)]);
        for (offset, len) in [(0x20, 1), (0x10, 0), (usize::MAX, 1)] {
            assert_eq!(pieces(&place, offset, len), []);
        }
        let last = Place::told(GuestAddr(u64::MAX - 1), 4);
        assert_eq!(pieces(&last, 0, 1), [(u64::MAX - 1, 1)]);
        assert_eq!(pieces(&last, 3, 1), []);
    }
}

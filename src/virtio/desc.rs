//! Layout of the split ring (VIRTIO 1.2, 2.7.5 to 2.7.8), proven at compile time.

use std::mem::size_of;

use memoffset::offset_of;

use crate::memory::GuestAddr;

/// The chain goes on in the descriptor `next`.
pub const VIRTQ_DESC_F_NEXT: u16 = 1;
/// The device writes the buffer; else it reads it.
pub const VIRTQ_DESC_F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const VIRTQ_DESC_F_INDIRECT: u16 = 4;
/// `used.flags`: the driver need not kick.
pub const VIRTQ_USED_F_NO_NOTIFY: u16 = 1;
/// `avail.flags`: the device need not call.
pub const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;

/// The most descriptors a split ring may have.
pub const MAX_SIZE: u16 = 1 << 15;

/// `struct virtq_desc`, a private copy: read once from guest memory, then judged.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desc {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Bytes in the buffer.
    pub len: u32,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
    /// The next descriptor, if flags have NEXT.
    pub next: u16,
}

/// `struct virtq_used_elem`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedElem {
    /// Head of the chain that comes back.
    pub id: u32,
    /// Bytes written into it.
    pub len: u32,
}

/// Bytes of one descriptor, in the ring or in an indirect table.
pub const DESC_SIZE: u32 = 16;

/// `struct virtq_avail` and `struct virtq_used`: `flags` and `idx` before the entries, an event index after them.
pub const IDX_OFFSET: usize = 2;
/// Where the entries of both begin.
pub const ENTRIES_OFFSET: usize = 4;

const _: () = assert!(size_of::<Desc>() == DESC_SIZE as usize);
const _: () = assert!(offset_of!(Desc, addr) == 0 && offset_of!(Desc, len) == 8);
const _: () = assert!(offset_of!(Desc, flags) == 12 && offset_of!(Desc, next) == 14);
const _: () = assert!(size_of::<UsedElem>() == 8 && offset_of!(UsedElem, len) == 4);

impl Desc {
    /// The descriptor whose bytes were read as two little-endian words.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "takes a word apart")]
    pub fn from_words(addr: u64, rest: u64) -> Self {
        Self {
            addr,
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    /// The descriptor in these bytes of an indirect table.
    #[inline]
    pub fn from_bytes(bytes: [u8; DESC_SIZE as usize]) -> Self {
        let word = u128::from_le_bytes(bytes);
        #[expect(clippy::cast_possible_truncation, reason = "takes a word apart")]
        Self::from_words(word as u64, (word >> 64) as u64)
    }

    /// Its bytes, as a driver writes them.
    pub fn to_bytes(self) -> [u8; DESC_SIZE as usize] {
        let word = u128::from(self.addr)
            | u128::from(self.len) << 64
            | u128::from(self.flags) << 96
            | u128::from(self.next) << 112;
        word.to_le_bytes()
    }

    /// Where its buffer is.
    #[inline(always)]
    pub fn addr(&self) -> GuestAddr {
        GuestAddr(self.addr)
    }

    /// Whether any of `flags` is set.
    #[inline(always)]
    pub fn has(&self, flags: u16) -> bool {
        self.flags & flags != 0
    }
}

/// Bytes of the descriptor table of a ring of `size`.
pub fn desc_table_bytes(size: u16) -> u32 {
    DESC_SIZE * u32::from(size)
}

/// Bytes of the avail ring (driver area) of a ring of `size`, `used_event` included.
pub fn avail_bytes(size: u16) -> u32 {
    6 + 2 * u32::from(size)
}

/// Bytes of the used ring (device area) of a ring of `size`, `avail_event` included.
pub fn used_bytes(size: u16) -> u32 {
    6 + 8 * u32::from(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_survives_its_bytes() {
        let desc = Desc {
            addr: 0x1122_3344_5566_7788,
            len: 0x99aa_bbcc,
            flags: 0x0102,
            next: 0xfffe,
        };
        assert_eq!(Desc::from_bytes(desc.to_bytes()), desc);
        assert_eq!(desc.to_bytes()[..2], [0x88, 0x77]);
        assert_eq!(desc.to_bytes()[14..], [0xfe, 0xff]);
    }
}

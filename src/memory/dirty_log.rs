//! UNSAFE: the dirty log: in memory shared with the front-end, one bit for each guest page that we wrote
//! (vhost-user, "Migration").
//!
//! The front-end takes bits out, a word at a time, and copies the pages that they stood for; it may do so between any two
//! steps of ours. So a bit that is set before its bytes are written, or found set before they are visible, may be gone with
//! the bytes left behind: write, then a full barrier, then mark. `WriteLog` keeps that order for the bursts.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};

use super::addr::{FrontendAddr, GuestAddr};
use super::error::MemError;
use super::mapping::Mapping;
use super::region::RegionDesc;

/// Bytes of guest memory that one bit stands for, whatever page size guest and host use.
pub const LOG_PAGE: u64 = 4096;
/// The longest log: a bit for each page below 2^52, beyond which no processor addresses memory.
pub const MAX_LOG_BYTES: u64 = 1 << 37;
/// Bytes of guest memory that one byte of the log stands for.
const PER_BYTE: u64 = 8 * LOG_PAGE;

/// A log that a front-end offered, and that we refuse.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// No bytes, or more than [`MAX_LOG_BYTES`].
    #[error("dirty log of {0} bytes, expected 1 to {MAX_LOG_BYTES}")]
    Size(u64),
    /// Offset plus size passes the end of all files.
    #[error("dirty log of {size} bytes at offset {offset:#x} wraps around the end of its file")]
    Wraps {
        /// Bytes.
        size: u64,
        /// Where it begins in the file.
        offset: u64,
    },
    /// The file ends before the log does: touching its end would be a bus error.
    #[error("dirty log needs a file of {need} bytes and got one of {have}")]
    FileTooShort {
        /// Bytes the file must hold: offset plus size.
        need: u64,
        /// Bytes it holds.
        have: u64,
    },
    /// The operating system refused.
    #[error("dirty log: {0}")]
    Os(MemError),
}

/// The log, mapped.
///
/// The bit of page `n` is bit `n % 8` of byte `n / 8`, counted from where the front-end said that the log begins.
#[derive(Debug)]
pub struct DirtyLog {
    mapping: Mapping,
    /// Pages written that it has no bit for.
    beyond: AtomicU64,
}

impl DirtyLog {
    /// Maps the log of `size` bytes that begins `offset` bytes into the file `fd`: there is the bit of guest address 0.
    ///
    /// # Errors
    ///
    /// [`LogError`]: a log that is empty or absurdly long, a file that is too short, or the system's refusal.
    pub fn map(size: u64, offset: u64, fd: impl AsFd) -> Result<Self, LogError> {
        if !(1..=MAX_LOG_BYTES).contains(&size) {
            return Err(LogError::Size(size));
        }
        let desc = RegionDesc {
            guest: GuestAddr(0),
            size,
            frontend: FrontendAddr(0),
            mmap_offset: offset,
        };
        let mapping = Mapping::new(&desc, fd.as_fd()).map_err(|error| match error {
            MemError::Wraps { .. } => LogError::Wraps { size, offset },
            MemError::FileTooShort { need, have, .. } => LogError::FileTooShort { need, have },
            other => LogError::Os(other),
        })?;
        Ok(Self {
            mapping,
            beyond: AtomicU64::new(0),
        })
    }

    /// Whether its file was cut short, and that was noticed.
    pub fn is_lost(&self) -> bool {
        self.mapping.is_lost()
    }

    /// Bytes in it.
    pub fn size(&self) -> u64 {
        self.mapping.size()
    }

    /// Whether it has a bit for each page of the `size` bytes at `addr`.
    pub fn covers(&self, addr: GuestAddr, size: u64) -> bool {
        let last = addr.checked_add(size.saturating_sub(1));
        last.is_some_and(|last| last.0 / PER_BYTE < self.size())
    }

    /// Pages written so far that it has no bit for: a log too short for the guest's memory is the front-end's own loss.
    pub fn beyond(&self) -> u64 {
        // Relaxed: for display.
        self.beyond.load(Ordering::Relaxed)
    }

    /// Sets the bits of the pages that the `len` bytes at `addr` lie in, and says whether any of them was clear.
    ///
    /// Who wrote the bytes must have passed a full barrier since: what is set already is not set once more.
    pub fn mark(&self, addr: GuestAddr, len: u32) -> bool {
        let Some(more) = len.checked_sub(1) else {
            return false;
        };
        let first = addr.0 / LOG_PAGE;
        let last = addr.0.saturating_add(u64::from(more)) / LOG_PAGE;
        (first..=last).fold(false, |fresh, page| self.mark_page(page) | fresh)
    }

    #[inline]
    fn mark_page(&self, page: u64) -> bool {
        let Some(byte) = self.byte(page / 8) else {
            // Relaxed: a number, for display.
            self.beyond.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        let bit = 1 << (page % 8);
        // Relaxed: the caller's barrier orders both behind what they stand for. A locked operation only where it is needed:
        // most pages are written again and again between two looks of the front-end.
        let clear = byte.load(Ordering::Relaxed) & bit == 0;
        if clear {
            byte.fetch_or(bit, Ordering::Relaxed);
        }
        clear
    }

    #[inline]
    fn byte(&self, at: u64) -> Option<&AtomicU8> {
        if at >= self.mapping.size() {
            return None;
        }
        let at = usize::try_from(at).ok()?;
        // SAFETY: at < size, and size bytes are mapped, readable and writable, while self lives. Bytes need no alignment,
        // and all accesses to them from this process are atomic.
        Some(unsafe { AtomicU8::from_ptr(self.mapping.start().add(at)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::GuestMemory;

    /// A log of `size` bytes, `offset` bytes into a file that ends with it, and that file as guest memory at 0x1000.
    fn log(size: u64, offset: u64) -> (DirtyLog, GuestMemory) {
        let file = GuestMemory::new(offset + size);
        (DirtyLog::map(size, offset, file.file()).unwrap(), file)
    }

    fn bytes(file: &GuestMemory, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        file.read(GuestAddr(0x1000), &mut bytes);
        bytes
    }

    #[test]
    fn each_page_touched_is_marked_and_no_other() {
        // (address, length, bits)
        let rows = [
            (0, 1, 0b1),
            (0xfff, 1, 0b1),
            (0xfff, 2, 0b11),
            (0x1000, 0x1000, 0b10),
            (0x1000, 0x1001, 0b110),
            (0x7fff, 2, 0b1_1000_0000),
            (0x3000, 0, 0),
            (0x2800, 0x5000, 0b1111_1100),
        ];
        for (addr, len, bits) in rows {
            let (log, file) = log(4, 0);
            assert_eq!(log.mark(GuestAddr(addr), len), bits != 0);
            let found = u32::from_le_bytes(bytes(&file, 4).try_into().unwrap());
            assert_eq!(found, bits, "{len} bytes at {addr:#x}");
            assert!(!log.mark(GuestAddr(addr), len), "it is marked already");
        }
    }

    #[test]
    fn the_log_begins_at_its_offset_wherever_that_is() {
        for offset in [1, 4095, 4096, 5000] {
            let (log, file) = log(2, offset);
            log.mark(GuestAddr(9 * LOG_PAGE), 1);
            let at = usize::try_from(offset).unwrap();
            let mut expected = vec![0; at + 2];
            expected[at + 1] = 2;
            assert_eq!(bytes(&file, at + 2), expected);
        }
    }

    #[test]
    fn pages_beyond_the_log_are_counted_and_harm_nothing() {
        let (log, file) = log(1, 0);
        assert!(
            log.mark(GuestAddr(7 * LOG_PAGE), 8192),
            "the first page has a bit"
        );
        assert_eq!((log.beyond(), bytes(&file, 1)), (1, vec![0x80]));
        for addr in [8 * LOG_PAGE, 1 << 52, u64::MAX] {
            assert!(!log.mark(GuestAddr(addr), 1));
        }
        assert_eq!((log.beyond(), bytes(&file, 1)), (4, vec![0x80]));
        assert!(log.covers(GuestAddr(0), 8 * LOG_PAGE) && !log.covers(GuestAddr(0), 8 * LOG_PAGE + 1));
        assert!(!log.covers(GuestAddr(u64::MAX), 2));
    }

    #[test]
    fn a_mark_sets_its_bit_and_keeps_those_of_others() {
        let (log, file) = log(1, 0);
        file.write(GuestAddr(0x1000), &[0b1000_0100]);
        log.mark(GuestAddr(0), 1);
        assert_eq!(bytes(&file, 1), [0b1000_0101]);
    }

    #[test]
    fn a_log_needs_a_size_and_a_file_that_holds_it() {
        let file = GuestMemory::new(0x2000);
        let map = |size, offset| DirtyLog::map(size, offset, file.file());
        assert!(map(0x2000, 0).is_ok() && map(1, 0x1fff).is_ok());
        for size in [0, MAX_LOG_BYTES + 1, u64::MAX] {
            assert!(matches!(map(size, 0), Err(LogError::Size(said)) if said == size));
        }
        for (size, offset, need) in [
            (0x2001, 0, 0x2001),
            (1, 0x2000, 0x2001),
            (MAX_LOG_BYTES, 0, MAX_LOG_BYTES),
        ] {
            match map(size, offset) {
                Err(LogError::FileTooShort {
                    need: said,
                    have: 0x2000,
                }) => assert_eq!(said, need),
                other => panic!("{size:#x} at {offset:#x}: {other:?}"),
            }
        }
        for (size, offset) in [(0x200, u64::MAX - 0xff), (1, u64::MAX)] {
            assert!(
                matches!(map(size, offset), Err(LogError::Wraps { .. })),
                "{offset:#x}"
            );
        }
    }

    #[test]
    fn what_is_no_memory_is_no_log() {
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(
            DirtyLog::map(1, 0, socket),
            Err(LogError::FileTooShort { .. })
        ));
    }

    #[test]
    #[cfg_attr(miri, ignore = "no kernel to map what is not there")]
    fn the_longest_log_is_mapped_and_marked_at_its_end() {
        let file = GuestMemory::new(0x1000);
        rustix::fs::ftruncate(file.file(), MAX_LOG_BYTES).unwrap();
        let log = DirtyLog::map(MAX_LOG_BYTES, 0, file.file()).unwrap();
        assert!(log.mark(GuestAddr((1 << 52) - 1), 1));
        assert!(!log.mark(GuestAddr(1 << 52), 1));
        assert_eq!(log.beyond(), 1);
    }
}

//! One range of a front-end's file, mapped into this process, and its end.

use std::io;
use std::os::fd::BorrowedFd;

use super::error::MemError;
use super::pages::{Pages, Range, Shape};
use super::region::RegionDesc;

/// A byte range of a file, mapped shared, readable and writable, until dropped.
///
/// # Invariants
///
/// `pages` hold the `size` bytes asked for, behind `lead` others.
#[derive(Debug)]
pub struct Mapping {
    pages: Pages,
    lead: usize,
    size: u64,
}

impl Mapping {
    /// Maps the file range that `desc` names. The descriptor may be closed afterwards.
    ///
    /// # Errors
    ///
    /// A file that is shorter than the range, a range that does not fit the address space, or the system's own refusal.
    pub fn new(desc: &RegionDesc, fd: BorrowedFd<'_>) -> Result<Self, MemError> {
        let refused = |(what, error)| MemError::Os {
            what,
            desc: *desc,
            error,
        };
        let file = Shape::of(fd).map_err(|error| refused(("fstat", error)))?;
        let wraps = |space| MemError::Wraps { desc: *desc, space };
        let need = desc
            .mmap_offset
            .checked_add(desc.size)
            .ok_or_else(|| wraps("file"))?;
        if file.size < need {
            return Err(MemError::FileTooShort {
                desc: *desc,
                need,
                have: file.size,
            });
        }
        // The kernel maps whole pages of the file: huge ones on hugetlbfs, whose munmap wants the length whole too.
        let start = desc.mmap_offset & !(file.page - 1);
        let lead = desc.mmap_offset - start;
        let length = (need - start)
            .checked_next_multiple_of(file.page)
            .ok_or_else(|| wraps("process address"))?;
        let length = usize::try_from(length).map_err(|_| wraps("process address"))?;
        let lead = usize::try_from(lead).map_err(|_| wraps("process address"))?;
        let offset = libc::off_t::try_from(start).map_err(|_| wraps("file"))?;
        Ok(Self {
            pages: Pages::map(fd, offset, length).map_err(refused)?,
            lead,
            size: desc.size,
        })
    }

    /// The first byte of the range asked for.
    pub(super) fn start(&self) -> *mut u8 {
        self.pages.part(self.lead, self.size)
    }

    /// All that is mapped, in whole pages of the file.
    pub(super) fn range(&self) -> Range {
        self.pages.range()
    }

    /// Makes the kernel fill no page but the one that is asked for.
    pub(super) fn use_small_pages(&self) {
        self.pages.use_small();
    }

    /// Puts empty memory of our own where the file was. Whoever has a pointer into the mapping may go on using it.
    ///
    /// # Errors
    ///
    /// The system's refusal; the file is mapped still.
    pub(super) fn cut_off(&self) -> io::Result<()> {
        self.pages.cut_off()
    }

    /// Whether an access found that the file was cut short. The mapping is empty memory since then.
    pub(super) fn is_lost(&self) -> bool {
        self.pages.is_lost()
    }

    /// Bytes in the range asked for.
    pub fn size(&self) -> u64 {
        self.size
    }
}

#[cfg(all(test, not(miri)))]
mod tests;

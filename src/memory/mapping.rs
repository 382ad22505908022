//! UNSAFE: one mapping of a front-end's file into this process, and its end.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use super::error::MemError;
use super::lost::{put_empty, Watch};
use super::region::RegionDesc;

/// Addresses of this process, as the kernel's interfaces write them: whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Range {
    pub(super) start: u64,
    /// Bytes.
    pub(super) len: u64,
}

/// A byte range of a file, mapped shared, readable and writable, until dropped.
///
/// # Invariants
///
/// `base..base + length` is a mapping that only this value unmaps; `base + lead..` holds the `size` bytes asked for.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    length: usize,
    lead: usize,
    size: u64,
    /// None in a value that is being dropped.
    watch: Option<Watch>,
}

// SAFETY: the mapping belongs to the process, not to a thread; the value only holds its place.
unsafe impl Send for Mapping {}
// SAFETY: nothing can be done through a shared Mapping but ask where it is.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the file range that `desc` names. The descriptor may be closed afterwards.
    ///
    /// # Errors
    ///
    /// A file that is shorter than the range, a range that does not fit the address space, or the system's own refusal.
    pub fn new(desc: &RegionDesc, fd: BorrowedFd<'_>) -> Result<Self, MemError> {
        let file = stat(desc, fd)?;
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

        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, fd.as_raw_fd(), offset) };
        let base = match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => base,
            _ => {
                return Err(MemError::Os {
                    what: "mmap",
                    desc: *desc,
                    error: io::Error::last_os_error(),
                })
            }
        };
        // A core dump of the switch holds no guest's memory. Kernels that cannot do it lose nothing else by it.
        // SAFETY: the range was mapped just now and nobody else knows it.
        unsafe { libc::madvise(base.as_ptr().cast(), length, libc::MADV_DONTDUMP) };
        let mut mapping = Self {
            base,
            length,
            lead,
            size: desc.size,
            watch: None,
        };
        let watch = Watch::on(base.as_ptr(), length).map_err(|error| MemError::Os {
            what: "sigaction",
            desc: *desc,
            error,
        })?;
        mapping.watch = Some(watch);
        Ok(mapping)
    }

    /// The first byte of the range asked for.
    pub(super) fn start(&self) -> *mut u8 {
        // SAFETY: lead < length, both of one mapping.
        unsafe { self.base.as_ptr().add(self.lead) }
    }

    /// All that is mapped, in whole pages of the file.
    pub(super) fn range(&self) -> Range {
        Range {
            start: self.base.as_ptr().addr() as u64,
            len: self.length as u64,
        }
    }

    /// Makes the kernel fill no page but the one that is asked for: a huge page made of small ones would fill in
    /// those that have not arrived yet.
    pub(super) fn use_small_pages(&self) {
        // Kernels without transparent huge pages refuse, and have none to fill in.
        // SAFETY: advice on a mapping of our own; it changes no byte.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.length, libc::MADV_NOHUGEPAGE) };
    }

    /// Puts empty memory of our own where the file was. Whoever has a pointer into the mapping may go on using it.
    ///
    /// # Errors
    ///
    /// The system's refusal; the file is mapped still.
    pub(super) fn cut_off(&self) -> io::Result<()> {
        // SAFETY: it is this value's own, of a file whose bytes its owner may change at any time.
        unsafe { put_empty(self.base.as_ptr(), self.length) }
    }

    /// Whether an access found that the file was cut short. The mapping is empty memory since then.
    pub(super) fn is_lost(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::is_lost)
    }

    /// Bytes in the range asked for.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First: what is mapped there next is somebody else's.
        self.watch = None;
        // SAFETY: base and length are what mmap was given; whoever could point into it borrowed self.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

struct File {
    size: u64,
    page: u64,
}

/// What fstat says: the size, and the page size, which hugetlbfs tells as the block size.
fn stat(desc: &RegionDesc, fd: BorrowedFd<'_>) -> Result<File, MemError> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat writes one struct stat, for which there is room.
    if unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(MemError::Os {
            what: "fstat",
            desc: *desc,
            error: io::Error::last_os_error(),
        });
    }
    // SAFETY: fstat succeeded, so it wrote all of it.
    let stat = unsafe { stat.assume_init() };
    // SAFETY: sysconf reads a constant.
    let system = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let system = u64::try_from(system).unwrap_or(4096);
    let block = u64::try_from(stat.st_blksize).unwrap_or(system);
    let page = if block.is_power_of_two() {
        block.max(system)
    } else {
        system
    };
    Ok(File {
        size: u64::try_from(stat.st_size).unwrap_or(0),
        page,
    })
}

#[cfg(all(test, not(miri)))]
mod tests;

//! UNSAFE: pages of a file in this process, and files that are nothing but memory: all that mappings need of the system.
//!
//! Where there is no such system, under Miri, `pages_miri.rs` has its place.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{fcntl_add_seals, fstat, memfd_create, MemfdFlags, SealFlags};
use rustix::param::page_size;

use super::lost::{put_empty, Watch};

/// Addresses of this process, as the kernel's interfaces write them: whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Range {
    pub(super) start: u64,
    /// Bytes.
    pub(super) len: u64,
}

/// Of a file: its bytes, and those of its pages, which hugetlbfs tells as the block size.
pub(super) struct Shape {
    pub(super) size: u64,
    pub(super) page: u64,
}

impl Shape {
    pub(super) fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = fstat(file)?;
        let system = page_size() as u64;
        let block = u64::try_from(stat.st_blksize).unwrap_or(system);
        Ok(Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            page: match block.is_power_of_two() {
                true => block.max(system),
                false => system,
            },
        })
    }
}

/// Pages of a file, mapped shared, readable and writable, until dropped.
///
/// # Invariants
///
/// `base..base + length` is a mapping that only this value unmaps.
#[derive(Debug)]
pub(super) struct Pages {
    base: NonNull<u8>,
    length: usize,
    /// None in a value that is being made or dropped.
    watch: Option<Watch>,
}

// SAFETY: the mapping belongs to the process, not to a thread; the value only holds its place.
unsafe impl Send for Pages {}
// SAFETY: nothing can be done through shared Pages but ask where they are.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps the `length` bytes at `start`, which are whole pages that the file has.
    ///
    /// # Errors
    ///
    /// The system's refusal, and of what.
    pub(super) fn map(
        file: BorrowedFd<'_>,
        start: libc::off_t,
        length: usize,
    ) -> Result<Self, (&'static str, io::Error)> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                protection,
                flags,
                file.as_raw_fd(),
                start,
            )
        };
        let base = NonNull::new(base.cast::<u8>()).filter(|base| base.as_ptr().cast() != libc::MAP_FAILED);
        let mut pages = Self {
            base: base.ok_or_else(|| ("mmap", io::Error::last_os_error()))?,
            length,
            watch: None,
        };
        // A core dump of the switch holds no guest's memory. Kernels that cannot do it lose nothing else by it.
        pages.advise(libc::MADV_DONTDUMP);
        let watch = Watch::on(pages.base.as_ptr(), length).map_err(|error| ("sigaction", error))?;
        pages.watch = Some(watch);
        Ok(pages)
    }

    /// The first of `size` bytes, behind `lead` others. They are not looked at beyond that.
    pub(super) fn part(&self, lead: usize, size: u64) -> *mut u8 {
        debug_assert!(lead as u64 + size <= self.length as u64);
        self.base.as_ptr().wrapping_add(lead)
    }

    /// Where they are.
    pub(super) fn range(&self) -> Range {
        Range {
            start: self.base.as_ptr().addr() as u64,
            len: self.length as u64,
        }
    }

    /// Makes the kernel fill no page but the one that is asked for: a huge page made of small ones would fill in
    /// those that have not arrived yet.
    pub(super) fn use_small(&self) {
        // Kernels without transparent huge pages refuse, and have none to fill in.
        self.advise(libc::MADV_NOHUGEPAGE);
    }

    fn advise(&self, advice: libc::c_int) {
        // SAFETY: advice on a mapping of our own; what is given above changes no byte.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.length, advice) };
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

    /// Whether an access found that the file was cut short. There is empty memory since then.
    pub(super) fn is_lost(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::is_lost)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // First: what is mapped there next is somebody else's.
        self.watch = None;
        // SAFETY: base and length are what mmap was given; whoever could point into it borrowed self.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// A new file in memory, of no bytes. Its name is for people.
pub(crate) fn memfd(name: &str, flags: MemfdFlags) -> io::Result<OwnedFd> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC | flags)?)
}

/// Promises, for its owner and everybody else, that nobody will do these things to a file in memory.
pub(super) fn seal(file: &OwnedFd, seals: SealFlags) -> io::Result<()> {
    Ok(fcntl_add_seals(file, seals)?)
}

//! UNSAFE: pages of guest memory that lie apart, mapped once more so that they lie together.
//!
//! Behind an IOMMU a guest's kernel may put a ring together of pages from anywhere. Ring code wants each part of a ring
//! in one piece; so the pages are mapped a second time, one behind the other.

use std::io;
use std::ptr::{self, NonNull};

use super::lost::Watch;

/// The pages that can be put together. A guest's memory in larger ones cannot.
pub(super) const PAGE: usize = 4096;

/// Pages at consecutive I/O virtual addresses, together.
///
/// # Invariants
///
/// `base..base + pages.len() * PAGE` is a mapping that only this value unmaps, readable and writable, and does not depend
/// on the mappings that the pages were found in.
#[derive(Debug)]
pub(super) struct Stitch {
    /// The first I/O virtual address.
    first: u64,
    /// Where each page lay when this was made.
    pages: Vec<usize>,
    base: NonNull<u8>,
    /// None in a value that is being made or dropped.
    watch: Option<Watch>,
}

// SAFETY: the mapping belongs to the process, not to a thread; the value only holds its place.
unsafe impl Send for Stitch {}
// SAFETY: nothing can be done through a shared Stitch but ask where it is.
unsafe impl Sync for Stitch {}

impl Stitch {
    /// Maps the pages at these addresses, each of which is the start of a page that is mapped now, shared.
    ///
    /// # Errors
    ///
    /// What the system says: of memory in huge pages, that it cannot be taken apart.
    pub(super) fn new(first: u64, pages: Vec<*mut u8>) -> io::Result<Self> {
        let length = pages.len() * PAGE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let base = NonNull::new(base.cast::<u8>()).filter(|base| base.as_ptr().cast() != libc::MAP_FAILED);
        let mut stitch = Self {
            first,
            pages: pages.iter().map(|page| page.addr()).collect(),
            base: base.ok_or_else(io::Error::last_os_error)?,
            watch: None,
        };
        for (number, page) in pages.into_iter().enumerate() {
            // SAFETY: number < pages.len(), so this is inside the mapping made just now.
            let to = unsafe { stitch.base.as_ptr().add(number * PAGE) };
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            // SAFETY: an old size of 0 leaves the shared mapping that `page` is in as it is and maps the same memory at
            // `to`, in place of a page of the mapping above, which nobody uses yet.
            let mapped = unsafe { libc::mremap(page.cast(), 0, PAGE, flags, to.cast::<libc::c_void>()) };
            if mapped == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: the range is this value's own. As for the guest's other mappings: not into a core dump.
        unsafe { libc::madvise(stitch.base.as_ptr().cast(), length, libc::MADV_DONTDUMP) };
        stitch.watch = Some(Watch::on(stitch.base.as_ptr(), length)?);
        Ok(stitch)
    }

    /// Whether it is what `new` would make of these.
    pub(super) fn is_of(&self, first: u64, pages: &[*mut u8]) -> bool {
        self.first == first
            && self
                .pages
                .iter()
                .copied()
                .eq(pages.iter().map(|page| page.addr()))
    }

    /// Where the byte at this address of ours lay, if it is one of these.
    pub(super) fn home(&self, host: usize) -> Option<usize> {
        let offset = host.checked_sub(self.base.addr().get())?;
        Some(self.pages.get(offset / PAGE)? + offset % PAGE)
    }

    /// The first I/O virtual address.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Bytes.
    pub(super) fn size(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    /// Whether an access found that the file behind a page was cut short.
    pub(super) fn is_lost(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::is_lost)
    }

    /// Where it is.
    pub(super) fn start(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

impl Drop for Stitch {
    fn drop(&mut self) {
        // First: what is mapped there next is somebody else's.
        self.watch = None;
        // SAFETY: base and length are what mmap was given; whoever could point into it borrowed self.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.pages.len() * PAGE) };
    }
}

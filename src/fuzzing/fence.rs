//! UNSAFE: pages on both sides of a mapping that nobody may touch: one byte beyond it ends the process.

use std::os::fd::AsFd;
use std::ptr;

use crate::memory::{Region, RegionDesc};

const PAGE: usize = 4096;
/// Holes that the kernel may like better than those between fences, and that are filled first.
const TRIES: usize = 100;

/// Two pages without any access, `length` bytes apart.
#[derive(Debug)]
pub(super) struct Fence {
    start: *mut u8,
    length: usize,
}

/// Maps a region between two such pages.
pub(super) fn map(desc: RegionDesc, file: impl AsFd) -> (Region, Fence) {
    let page = PAGE as u64;
    let lead = desc.mmap_offset % page;
    let length = usize::try_from((lead + desc.size).next_multiple_of(page)).expect("small");
    let (mut fences, mut elsewhere) = (Vec::new(), Vec::new());
    for _ in 0..TRIES {
        fences.push(Fence::around(length));
        let region = Region::map(desc, &file).expect("a region that can be mapped");
        let base = region.base() - lead;
        if let Some(at) = fences.iter().position(|fence| fence.inside() == base) {
            return (region, fences.swap_remove(at));
        }
        elsewhere.push(region);
    }
    panic!("the kernel maps {length} bytes anywhere but where they fit best");
}

impl Fence {
    /// A hole of `length` bytes between two pages.
    fn around(length: usize) -> Self {
        let (none, flags) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let start = unsafe { libc::mmap(ptr::null_mut(), length + 2 * PAGE, none, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let fence = Self {
            start: start.cast(),
            length,
        };
        // SAFETY: the middle of what was mapped just now, which nobody knows yet.
        unsafe { libc::munmap(fence.start.add(PAGE).cast(), length) };
        fence
    }

    fn inside(&self) -> u64 {
        (self.start.addr() + PAGE) as u64
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        let last = self.start.wrapping_add(PAGE + self.length);
        for page in [self.start, last] {
            // SAFETY: a page that `around` mapped, to which there is no access.
            unsafe { libc::munmap(page.cast(), PAGE) };
        }
    }
}

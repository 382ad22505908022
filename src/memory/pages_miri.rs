//! UNSAFE: what pages.rs is under Miri, which has no mappings that two can share, and no files in memory.
//!
//! Files are ordinary ones that have no name. While anybody has pages of one mapped, its bytes are one allocation; then they go
//! back to the file, for who maps it next. So whoever maps a file sees what others write there, as with a kernel. What Miri
//! adds is that a pointer to a part is good for that part: one byte beside it is found, whatever lies there.

use std::alloc::{alloc_zeroed, dealloc, Layout};
use std::cell::UnsafeCell;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags};

const PAGE: usize = 4096;

/// As in pages.rs.
#[expect(dead_code, reason = "userfault.rs tells it to the kernel")]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}

/// As in pages.rs.
pub(super) struct Shape {
    pub(super) size: u64,
    pub(super) page: u64,
}

impl Shape {
    pub(super) fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            size: own(file)?.metadata()?.len(),
            page: PAGE as u64,
        })
    }
}

fn own(file: BorrowedFd<'_>) -> io::Result<File> {
    Ok(File::from(file.try_clone_to_owned()?))
}

/// A file that somebody has mapped.
///
/// # Invariants
///
/// `start` is an allocation of `layout`.
struct Mapped {
    file: File,
    inode: u64,
    start: NonNull<u8>,
    layout: Layout,
    users: usize,
}

// SAFETY: the allocation belongs to the value, wherever that is.
unsafe impl Send for Mapped {}

static MAPPED: Mutex<Vec<Mapped>> = Mutex::new(Vec::new());

impl Mapped {
    fn new(file: File) -> io::Result<Self> {
        let stat = file.metadata()?;
        let size = usize::try_from(stat.len()).map_err(io::Error::other)?;
        let layout = Layout::from_size_align(size.next_multiple_of(PAGE), PAGE).map_err(io::Error::other)?;
        // SAFETY: who maps pages of a file was told by its shape that there are some.
        let start = unsafe { alloc_zeroed(layout) };
        let mut mapped = Self {
            inode: stat.ino(),
            start: NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?,
            layout,
            users: 0,
            file,
        };
        let mut bytes = vec![0; size];
        mapped.file.read_exact_at(&mut bytes, 0)?;
        // SAFETY: the allocation has at least `size` bytes, and nobody knows it yet.
        unsafe {
            mapped
                .start
                .copy_from_nonoverlapping(NonNull::from(&mut *bytes).cast(), size)
        };
        mapped.users = 1;
        Ok(mapped)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: of one allocation, which nobody else has any more; zeroed, then written, so there are bytes everywhere.
        let bytes = unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) };
        // A file that grew in the meantime is no longer than it was said to be: only what it had is put back.
        let size = self.file.metadata().map_or(0, |stat| stat.len());
        let size = usize::try_from(size).map_or(bytes.len(), |size| size.min(bytes.len()));
        let written = bytes.get(..size).map(|bytes| self.file.write_all_at(bytes, 0));
        debug_assert!(matches!(written, Some(Ok(()))));
        // SAFETY: allocated by `new`, with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// As in pages.rs.
///
/// # Invariants
///
/// `base..base + length` is inside the allocation of the file `inode`, which has it as long as this value lives.
#[derive(Debug)]
pub(super) struct Pages {
    inode: u64,
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the allocation belongs to no thread; the value only holds its place.
unsafe impl Send for Pages {}
// SAFETY: nothing can be done through shared Pages but ask where they are.
unsafe impl Sync for Pages {}

impl Pages {
    pub(super) fn map(
        file: BorrowedFd<'_>,
        start: libc::off_t,
        length: usize,
    ) -> Result<Self, (&'static str, io::Error)> {
        let mut all = MAPPED.lock();
        let mut pages = || {
            let file = own(file)?;
            let inode = file.metadata()?.ino();
            let mapped = match all.iter_mut().find(|mapped| mapped.inode == inode) {
                Some(mapped) => {
                    mapped.users += 1;
                    mapped
                }
                None => all.push_mut(Mapped::new(file)?),
            };
            let start = usize::try_from(start).map_err(io::Error::other)?;
            assert!(start + length <= mapped.layout.size(), "a file that grew");
            Ok(Self {
                inode,
                // SAFETY: inside the allocation, as was just seen.
                base: unsafe { mapped.start.add(start) },
                length,
            })
        };
        pages().map_err(|error| ("mmap", error))
    }

    pub(super) fn part(&self, lead: usize, size: u64) -> *mut u8 {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        assert!(lead <= self.length && size <= self.length - lead);
        let part = ptr::slice_from_raw_parts(self.base.as_ptr().wrapping_add(lead), size);
        // A shared reference to a cell forbids nobody to write there, but leads nowhere else.
        // SAFETY: inside the allocation, and the reference is gone at the end of this function.
        let cell = unsafe { &*(part as *const UnsafeCell<[u8]>) };
        cell.get().cast()
    }

    pub(super) fn range(&self) -> Range {
        Range {
            start: self.base.addr().get() as u64,
            len: self.length as u64,
        }
    }

    pub(super) fn use_small(&self) {}

    pub(super) fn cut_off(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn is_lost(&self) -> bool {
        false
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let mut all = MAPPED.lock();
        all.retain_mut(|mapped| {
            mapped.users -= usize::from(mapped.inode == self.inode);
            mapped.users > 0
        });
    }
}

pub(crate) fn memfd(name: &str, _: MemfdFlags) -> io::Result<OwnedFd> {
    // Relaxed: nothing but a number.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("{name}-{}-{number}", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file.into())
}

pub(super) fn seal(_: &OwnedFd, _: SealFlags) -> io::Result<()> {
    Ok(())
}

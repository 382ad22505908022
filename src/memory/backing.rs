//! What is behind a region: the front-end's file, as far as the kernel tells of it. For people; nothing depends on it.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{fcntl_get_seals, fstatfs, SealFlags};
use rustix::param::page_size;

/// `f_type` of hugetlbfs and of tmpfs (statfs(2)).
const HUGETLBFS: u32 = 0x9584_58f6;
const TMPFS: u32 = 0x0102_1994;

/// A front-end's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    kind: &'static str,
    page: u64,
    seals: SealFlags,
}

impl Backing {
    /// What the kernel says of the file `fd`; what it does not say is as of any file.
    pub(super) fn of(fd: BorrowedFd<'_>) -> Self {
        if cfg!(miri) {
            // It has none of the calls below.
            return Self {
                kind: "file",
                page: page_size() as u64,
                seals: SealFlags::empty(),
            };
        }
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let is_memfd = link.is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"/memfd:"));
        let system = fstatfs(fd).ok();
        // The type is a number of 32 bits, in a field whose width and sign are the architecture's.
        let is_on =
            |magic: u32| system.is_some_and(|fs| i128::from(fs.f_type) & 0xffff_ffff == i128::from(magic));
        let huge = system
            .filter(|_| is_on(HUGETLBFS))
            .and_then(|fs| u64::try_from(fs.f_bsize).ok());
        Self {
            kind: if is_memfd {
                "memfd"
            } else if huge.is_some() {
                "hugetlbfs"
            } else if is_on(TMPFS) {
                "tmpfs"
            } else {
                "file"
            },
            page: huge.unwrap_or(page_size() as u64),
            // Only a memfd can be sealed by its owner.
            seals: match is_memfd {
                true => fcntl_get_seals(fd).unwrap_or(SealFlags::empty()),
                false => SealFlags::empty(),
            },
        }
    }

    /// `memfd`, `hugetlbfs`, `tmpfs`, or `file` for any other.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Bytes of its pages.
    pub fn page(&self) -> u64 {
        self.page
    }

    /// What its owner can do to it no more.
    pub fn seals(&self) -> Vec<&'static str> {
        let names = [
            (SealFlags::SEAL, "seal"),
            (SealFlags::SHRINK, "shrink"),
            (SealFlags::GROW, "grow"),
            (SealFlags::WRITE, "write"),
            (SealFlags::FUTURE_WRITE, "future-write"),
        ];
        let set = names.iter().filter(|(seal, _)| self.seals.contains(*seal));
        set.map(|(_, name)| *name).collect()
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{fcntl_add_seals, memfd_create, MemfdFlags};

    use super::*;

    #[test]
    fn a_sealed_memfd_is_known_as_one() {
        let file = memfd_create("guest", MemfdFlags::ALLOW_SEALING).unwrap();
        assert_eq!(
            (
                Backing::of(file.as_fd()).kind(),
                Backing::of(file.as_fd()).seals()
            ),
            ("memfd", vec![])
        );
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        let backing = Backing::of(file.as_fd());
        assert_eq!(backing.seals(), ["shrink", "grow"]);
        assert_eq!(backing.page(), page_size() as u64);
    }

    #[test]
    fn any_other_file_is_just_a_file() {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        let backing = Backing::of(file.as_fd());
        assert_eq!((backing.kind(), backing.seals()), ("file", vec![]));
    }
}

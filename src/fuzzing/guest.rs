//! A guest's memory in a file of which not all is the guest's: what is around it must stay what it was, and must not come
//! out in any frame.
//!
//! ```text
//!   file   | canary | A: 32 KiB, whole pages | canary | canary B: odd begin and end canary | canary | C: a page | canary |
//!   guest           0x1_0000                          0x1_8000: behind A                            the last page, almost
//! ```

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{ftruncate, memfd_create, MemfdFlags};

use super::fence::{self, Fence};
use super::input::Input;
use crate::memory::{FrontendAddr, GuestAddr, MemTable, Region, RegionDesc};
use crate::model::{GuestMemory, FRONTEND_OFFSET};

/// Bytes of the file.
const FILE: usize = 0x1_0000;
/// What lies around the guest's memory; no target writes such bytes into it.
const CANARY: u8 = 0xc5;

/// Where rings and buffers are: A, and B behind it.
pub(super) const START: u64 = 0x1_0000;
const B: u64 = 0x1_8000;
pub(super) const END: u64 = B + 0x2f81;
/// The last page but its last byte, which no front-end may name.
const C: u64 = u64::MAX - 0xfff;

const fn region(guest: u64, size: u64, frontend: u64, mmap_offset: u64) -> RegionDesc {
    RegionDesc {
        guest: GuestAddr(guest),
        size,
        frontend: FrontendAddr(frontend),
        mmap_offset,
    }
}

/// The regions, as SET_MEM_TABLE has them.
pub(super) const REGIONS: [RegionDesc; 3] = [
    region(START, B - START, START + FRONTEND_OFFSET, 0x1000),
    region(B, END - B, B + FRONTEND_OFFSET, 0xa040),
    region(C, 0xfff, 0x7fff_0000_0000, 0xe000),
];

/// A guest's memory, between fences.
pub(super) struct Guest {
    pub(super) memory: Arc<GuestMemory>,
    /// The whole file.
    all: MemTable,
    _fences: Vec<Fence>,
}

thread_local! {
    static GUEST: Guest = Guest::new();
}

impl Guest {
    /// Lends this thread's guest, empty, and looks afterwards whether anything around it changed.
    pub(super) fn lend(to: impl FnOnce(&Guest)) {
        Self::lend_file(|guest| {
            to(guest);
            guest.check();
        });
    }

    /// Lends it to whoever may make any part of its file a region, so that nothing of that lies around.
    pub(super) fn lend_file(to: impl FnOnce(&Guest)) {
        GUEST.with(|guest| {
            guest.clear();
            to(guest);
        });
    }

    fn new() -> Self {
        let file = memfd_create("fuzz-guest", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, FILE as u64).expect("room");
        let (regions, fences): (Vec<_>, _) = REGIONS.map(|desc| fence::map(desc, &file)).into_iter().unzip();
        let regions = regions.into_iter().map(Arc::new).collect();
        let table = MemTable::new(regions).expect("regions that do not overlap");
        let all = Region::map(region(0, FILE as u64, 0, 0), &file).expect("the whole");
        Self {
            memory: Arc::new(GuestMemory::of(file, Arc::new(table))),
            all: MemTable::new(vec![Arc::new(all)]).expect("one region"),
            _fences: fences,
        }
    }

    /// A descriptor of its file.
    pub(super) fn file(&self) -> OwnedFd {
        let file = self.memory.file();
        file.as_fd().try_clone_to_owned().expect("a descriptor")
    }

    /// The content of the file.
    pub(super) fn image(&self) -> Vec<u8> {
        let mut image = vec![0; FILE];
        let mut cursor = self.all.cursor(0).expect("a region");
        cursor.read(GuestAddr(0), &mut image).expect("it is mapped");
        image
    }

    fn clear(&self) {
        let mut image = [CANARY; FILE];
        places().for_each(|place| image[place].fill(0));
        let mut cursor = self.all.cursor(0).expect("a region");
        cursor.write(GuestAddr(0), &image).expect("it is mapped");
    }

    fn check(&self) {
        let (image, mut start) = (self.image(), 0);
        for place in places().chain(std::iter::once(FILE..FILE)) {
            let around = &image[start..place.start];
            assert!(
                *around == [CANARY; FILE][..around.len()],
                "changed around the guest's memory, before {:#x} of its file",
                place.start
            );
            start = place.end;
        }
    }
}

/// Where the regions are in the file.
fn places() -> impl Iterator<Item = Range<usize>> {
    REGIONS.iter().map(|desc| {
        let [start, size] = [desc.mmap_offset, desc.size].map(|at| usize::try_from(at).expect("small"));
        start..start + size
    })
}

/// The guest pages below [`END`] in which two images differ.
pub(super) fn changed_pages(before: &[u8], after: &[u8]) -> Vec<u64> {
    let regions = REGIONS.iter().zip(places()).take(2);
    let pages = regions.flat_map(|(desc, place)| {
        let pages = before[place.clone()].chunks(4096).zip(after[place].chunks(4096));
        (desc.guest.0 / 4096..).zip(pages)
    });
    let changed = pages.filter(|(_, (before, after))| before != after);
    changed.map(|(page, _)| page).collect()
}

/// Whether there is anything in `frame` that was never the guest's: a row of canaries.
pub(super) fn is_foreign(frame: &[u8]) -> bool {
    frame.chunks_exact(8).any(|bytes| *bytes == [CANARY; 8])
}

/// Bytes that may be put into the guest's memory: no canaries.
pub(super) fn tame(bytes: &[u8]) -> Vec<u8> {
    let tame = |byte: &u8| if *byte == CANARY { !CANARY } else { *byte };
    bytes.iter().map(tame).collect()
}

/// An address, mostly one that means something.
pub(super) fn addr(input: &mut Input<'_>) -> GuestAddr {
    GuestAddr(match input.u8() % 6 {
        0 | 1 => START + u64::from(input.u16() % 0xb000),
        2 => B - 16 + u64::from(input.u8() % 32),
        3 => END - u64::from(input.u8()),
        4 => u64::MAX - u64::from(input.u16() % 0x1100),
        _ => input.u64(),
    })
}

/// A length, mostly a short one.
pub(super) fn len(input: &mut Input<'_>) -> u32 {
    match input.u8() % 4 {
        0 => u32::from(input.u8()),
        1 => u32::from(input.u16()),
        2 => 16 * u32::from(input.u8()),
        _ => input.u32(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_that_changes_anywhere_around_the_memory_is_noticed() {
        for at in [0, 0xfff, 0x9000, 0xa03f, 0xcfc1, 0xd000, 0xefff, 0xffff] {
            let deface = move || {
                Guest::lend(|guest| {
                    let mut cursor = guest.all.cursor(0).expect("a region");
                    cursor.write(GuestAddr(at), &[0]).expect("it is mapped");
                });
            };
            assert!(std::panic::catch_unwind(deface).is_err(), "{at:#x}");
        }
        Guest::lend(|guest| {
            let mut cursor = guest.all.cursor(0).expect("a region");
            for at in [0x1000, 0x8fff, 0xa040, 0xcfc0, 0xe000, 0xeffe] {
                cursor.write(GuestAddr(at), &[0]).expect("it is mapped");
            }
        });
    }

    #[test]
    fn pages_that_changed_are_told_by_guest_address() {
        Guest::lend(|guest| {
            let before = guest.image();
            for at in [START, 0x1_7fff, END - 1] {
                guest.memory.write(GuestAddr(at), &[1]);
            }
            assert_eq!(changed_pages(&before, &guest.image()), [0x10, 0x17, 0x1a]);
        });
    }
}

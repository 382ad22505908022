//! What the kernel says of the memory that peers lend: it is no code, and no core dump has it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{ftruncate, memfd_create, MemfdFlags};

use super::*;
use crate::memory::inflight::{InflightDesc, InflightLayout, InflightMem};
use crate::memory::stitch::Stitch;
use crate::memory::{DirtyLog, FrontendAddr, GuestAddr, Region};

const SIZE: u64 = 0x4000;

/// A file that /proc/self/smaps knows by its name.
fn file(name: &str) -> OwnedFd {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, SIZE).unwrap();
    file
}

fn desc() -> RegionDesc {
    RegionDesc {
        guest: GuestAddr(0),
        size: SIZE,
        frontend: FrontendAddr(0),
        mmap_offset: 0,
    }
}

/// Fails unless `count` mappings have `mark` in their first line in /proc/self/smaps, and each may be read and written, not
/// executed, and is in no core dump.
fn are_kept_apart(mark: &str, count: usize) {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut found = 0;
    let mut lines = smaps.lines();
    while let Some(line) = lines.find(|line| line.contains(mark)) {
        let permissions = line.split_whitespace().nth(1).unwrap();
        assert!(permissions.starts_with("rw-"), "{line}");
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        assert!(
            flags.split_whitespace().any(|flag| flag == "dd"),
            "{line}: {flags}"
        );
        found += 1;
    }
    assert_eq!(found, count, "mappings with {mark}");
}

#[test]
fn guest_memory_stays_out_of_core_dumps_and_is_no_code() {
    let region = Region::map(desc(), file("a-region")).unwrap();
    are_kept_apart("a-region", 1);
    let _ring = Stitch::new(0x9000, vec![region.mapping().start()]).unwrap();
    are_kept_apart("a-region", 2);
    let _incomplete = Region::map_incomplete(desc(), file("by-post-copy")).unwrap();
    are_kept_apart("by-post-copy", 1);
}

#[test]
fn logs_and_in_flight_buffers_stay_out_of_core_dumps_and_are_no_code() {
    let _log = DirtyLog::map(SIZE, 0, file("a-dirty-log")).unwrap();
    are_kept_apart("a-dirty-log", 1);
    let desc = InflightDesc {
        mmap_size: SIZE,
        mmap_offset: 0,
        num_queues: 2,
        queue_size: 64,
    };
    let _buffer = InflightMem::map(desc, InflightLayout::Split, &file("in-flight")).unwrap();
    are_kept_apart("in-flight", 1);
}

#[test]
fn what_takes_the_place_of_lost_memory_stays_out_of_core_dumps_too() {
    let mapping = Mapping::new(&desc(), file("to-be-lost").as_fd()).unwrap();
    mapping.cut_off().unwrap();
    are_kept_apart("to-be-lost", 0);
    are_kept_apart(&format!("{:x}-", mapping.start().addr()), 1);
}

//! Files that are cut short under a mapping: who reads or writes there goes on, and the mapping says so.

use std::os::fd::OwnedFd;

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{ftruncate, memfd_create, MemfdFlags};

use super::super::{FrontendAddr, GuestAddr, MemTable, Region, RegionDesc};
use super::*;

const SIZE: u64 = 0x10000;

fn file() -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, SIZE).unwrap();
    file
}

fn region(file: &OwnedFd) -> Region {
    let desc = RegionDesc {
        guest: GuestAddr(0),
        size: SIZE,
        frontend: FrontendAddr(0),
        mmap_offset: 0,
    };
    Region::map(desc, file).unwrap()
}

fn table(file: &OwnedFd) -> MemTable {
    MemTable::new(vec![region(file).into()]).unwrap()
}

fn write(table: &MemTable, addr: u64, bytes: &[u8]) {
    let mut cursor = table.cursor_to_write(0).unwrap();
    cursor.write(GuestAddr(addr), bytes).unwrap();
}

fn read(table: &MemTable, addr: u64) -> [u8; 4] {
    let mut bytes = [0xee; 4];
    let mut cursor = table.cursor(0).unwrap();
    cursor.read(GuestAddr(addr), &mut bytes).unwrap();
    bytes
}

#[test]
fn a_file_cut_short_reads_as_zeros_and_takes_what_is_written() {
    let file = file();
    let table = table(&file);
    write(&table, 0, b"head");
    write(&table, 0x8000, b"tail");
    ftruncate(&file, 0x1000).unwrap();
    assert!(!table.is_lost(), "nobody has touched it yet");
    assert_eq!(read(&table, 0), *b"head");

    assert_eq!(read(&table, 0x8000), [0; 4]);
    assert!(table.is_lost());
    write(&table, 0x8000, b"mine");
    assert_eq!(read(&table, 0x8000), *b"mine");
    assert_eq!(
        read(&table, 0),
        [0; 4],
        "nothing of the file is left, also where it still is"
    );
}

#[test]
fn a_write_survives_as_a_read_does() {
    let file = file();
    let table = table(&file);
    ftruncate(&file, 0).unwrap();
    write(&table, 0x2000, b"none");
    assert!(table.is_lost());
}

#[test]
fn other_mappings_do_not_notice_even_of_the_same_file() {
    let (short, whole) = (file(), file());
    let (lost, kept, beside) = (table(&short), table(&whole), table(&short));
    write(&kept, 0x8000, b"kept");
    ftruncate(&short, 0).unwrap();
    read(&lost, 0x8000);
    assert!(lost.is_lost());
    assert!(!kept.is_lost() && !beside.is_lost());
    assert_eq!(read(&kept, 0x8000), *b"kept");
    read(&beside, 0);
    assert!(beside.is_lost());
}

#[test]
fn more_mappings_than_a_block_has_slots_are_all_watched_and_slots_are_used_again() {
    let file = file();
    let round = || {
        let tables: Vec<MemTable> = (0..200).map(|_| table(&file)).collect();
        tables.len()
    };
    round();
    let count = slots().count();
    for _ in 0..10 {
        round();
    }
    // Other tests watch a few beside these.
    assert!(slots().count() <= count + SLOTS.slots.len());

    let tables: Vec<MemTable> = (0..200).map(|_| table(&file)).collect();
    ftruncate(&file, 0).unwrap();
    for table in &tables {
        read(table, 0x3000);
        assert!(table.is_lost());
    }
}

#[test]
fn an_address_of_nobodys_is_not_ours_and_a_mapping_that_is_gone_is_nobodys() {
    let file = file();
    let region = region(&file);
    let range = region.mapping().range();
    let address = |at: u64| usize::try_from(at).unwrap();
    let (start, end) = (address(range.start), address(range.start + range.len));
    let held = |address| slots().any(|slot| slot.holds(address).is_some());
    assert!(held(start) && held(end - 1));
    let slot = slots().find(|slot| slot.holds(start).is_some()).unwrap();
    assert!(slot.holds(start - 1).is_none() && slot.holds(end).is_none());
    drop(region);
    assert!(slot.holds(start).is_none());
}

#[test]
fn a_loss_is_told() {
    let news = news().unwrap();
    let file = file();
    let table = table(&file);
    ftruncate(&file, 0).unwrap();
    read(&table, 0);
    let mut polled = [PollFd::new(&news, PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut polled, Some(&at_once)).unwrap(), 1);
}

#[test]
fn threads_that_meet_in_a_lost_mapping_all_go_on() {
    for _ in 0..50 {
        let file = file();
        let table = table(&file);
        ftruncate(&file, 0).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for at in (0..SIZE).step_by(0x1000) {
                        assert_eq!(read(&table, at), [0; 4]);
                    }
                });
            }
        });
        assert!(table.is_lost());
    }
}

/// What a process does that this test does not want to be: see below.
const ALONE: &str = "OVS_VHOST_TEST_SIGBUS";

/// A SIGBUS elsewhere ends the process as ever: shown in a process of its own, which is this test once more.
#[test]
fn a_fault_elsewhere_ends_the_process_as_ever() {
    if std::env::var_os(ALONE).is_some() {
        let file = file();
        let _watched = table(&file);
        let elsewhere = rustix::fs::memfd_create("elsewhere", MemfdFlags::CLOEXEC).unwrap();
        // SAFETY: a mapping of its own, that is read where its file has no byte.
        unsafe {
            let base = libc::mmap(
                ptr::null_mut(),
                0x1000,
                libc::PROT_READ,
                libc::MAP_SHARED,
                elsewhere.as_raw_fd(),
                0,
            );
            ptr::read_volatile(base.cast::<u8>());
        }
        return;
    }
    use std::os::unix::process::ExitStatusExt;
    let name = "memory::lost::tests::a_fault_elsewhere_ends_the_process_as_ever";
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(ALONE, "1")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}

//! What a front-end lends: its log while the guest moves, and memory that it takes back.

use std::os::fd::{AsRawFd, OwnedFd};

use ovs_vhost::datapath::TxSlot;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserVirtioFeatures};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use vmm_sys_util::eventfd::EventFd;

use super::common::eventually;
use super::guest::{receive, Guest, MEMORY};
use super::server;

/// A dirty log that begins 64 bytes into its file.
fn dirty_log() -> OwnedFd {
    let log = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&log, 64 + MEMORY as u64 / 4096 / 8).expect("memory");
    log
}

/// The pages in a log, which are taken out of it.
fn taken(log: &OwnedFd) -> Vec<usize> {
    let mut bytes = [0; 64 + MEMORY / 4096 / 8];
    rustix::io::pread(log, &mut bytes, 0).unwrap();
    rustix::io::pwrite(log, &[0; 64 + MEMORY / 4096 / 8], 0).unwrap();
    assert!(bytes[..64].iter().all(|byte| *byte == 0), "before its offset");
    let set = |bit: &usize| bytes[64 + bit / 8] >> (bit % 8) & 1 == 1;
    (0..MEMORY / 4096).filter(set).collect()
}

/// Has the port log from now on, in QEMU's order: the log, the feature, the rings' addresses. Returns the features without
/// that one.
fn begin_to_log(guest: &Guest, log: &OwnedFd, event: Option<&EventFd>) -> u64 {
    let region = VhostUserDirtyLogRegion {
        mmap_size: MEMORY as u64 / 4096 / 8,
        mmap_offset: 64,
        mmap_handle: log.as_raw_fd(),
    };
    guest.frontend.set_log_base(0, Some(region)).expect("an answer");
    if let Some(event) = event {
        guest.frontend.set_log_fd(event.as_raw_fd()).expect("log fd");
    }
    let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | 1 << 32 | 1 << 15;
    guest
        .frontend
        .set_features(features | 1 << 26)
        .expect("VHOST_F_LOG_ALL");
    (0..2)
        .try_for_each(|ring| guest.set_vring_addr(ring, true))
        .expect("addresses");
    guest.frontend.get_features().expect("all is carried out");
    features
}

#[test]
fn a_migration_begins_and_ends_under_running_rings() {
    let (port, path) = server("migrates");
    let guest = Guest::connect(&path).up(&port, 1);
    receive(&port, &guest, 0x10_0000);

    let (log, event) = (dirty_log(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let features = begin_to_log(&guest, &log, Some(&event));
    assert!(port.connected());
    assert_eq!(taken(&log), [0; 0], "nothing is written by beginning");

    receive(&port, &guest, 0x10_0800);
    assert_eq!(taken(&log), [0x2, 0x100], "used ring and buffer");
    assert_eq!(event.read().expect("signalled"), 1);
    receive(&port, &guest, 0x10_1fc0);
    assert_eq!(taken(&log), [0x2, 0x101, 0x102], "a frame across two pages");

    // And in the end.
    guest.frontend.set_features(features).expect("without");
    (0..2)
        .try_for_each(|ring| guest.set_vring_addr(ring, false))
        .expect("addresses");
    guest.frontend.get_features().expect("all is carried out");
    receive(&port, &guest, 0x10_3000);
    assert_eq!(taken(&log), [0; 0], "it is over");
    assert_eq!(
        guest.frontend.get_vring_base(0).expect("an index"),
        4,
        "no frame was lost or sent twice"
    );
}

#[test]
fn no_other_feature_changes_under_running_rings() {
    let (port, path) = server("features");
    let guest = Guest::connect(&path).up(&port, 1);
    guest.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | 1 << 32 | 1 << 15;
    assert!(guest.frontend.set_features(features & !(1 << 15)).is_err());
    assert!(guest
        .frontend
        .set_features(features & !(1 << 15) | 1 << 26)
        .is_err());
    guest
        .frontend
        .set_features(features | 1 << 26)
        .expect("LOG_ALL alone");
    assert!(port.connected());
}

#[test]
fn a_log_that_its_file_does_not_hold_ends_the_connection() {
    let (port, path) = server("short-log");
    let guest = Guest::connect(&path).up(&port, 1);
    let log = dirty_log();
    let region = VhostUserDirtyLogRegion {
        mmap_size: 1 << 20,
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    assert!(guest.frontend.set_log_base(0, Some(region)).is_err());
    eventually("disconnected", || !port.connected());
}

#[test]
fn a_front_end_that_cuts_its_memory_short_loses_its_connection_and_nobody_else_notices() {
    let ((port, path), (beside, path_beside)) = (server("cut-short"), server("beside"));
    let guest = Guest::connect(&path).up(&port, 1);
    let neighbour = Guest::connect(&path_beside).up(&beside, 1);
    receive(&port, &guest, 0x10_0000);

    rustix::fs::ftruncate(&guest.memory, 0).expect("nobody sealed it");
    // Both bursts touch what is gone.
    port.send(0, &[TxSlot::new(&[0x5a; 100])]);
    port.burst(0);
    eventually("disconnected", || !port.connected());
    receive(&beside, &neighbour, 0x10_0000);

    // Its next front-end finds it as if nothing had been.
    let next = Guest::connect(&path).up(&port, 1);
    receive(&port, &next, 0x10_0000);
    assert!(beside.connected());
}

#[test]
fn a_front_end_that_cuts_the_buffer_of_a_frame_out_of_its_memory_does_not_get_it_back() {
    let (port, path) = server("cut-buffer");
    let guest = Guest::connect(&path).up(&port, 1);
    guest.give(0, 0x10_0000, true);
    // The rings stay, the buffer goes.
    rustix::fs::ftruncate(&guest.memory, 0x8_0000).expect("nobody sealed it");
    port.send(0, &[TxSlot::new(&[0x5a; 100])]);
    eventually("disconnected", || !port.connected());
    assert_eq!(guest.used(0), 0, "what is written after the loss stays here");
}

#[test]
fn a_front_end_that_cuts_its_dirty_log_short_loses_its_connection() {
    let (port, path) = server("cut-log");
    let guest = Guest::connect(&path).up(&port, 1);
    let log = dirty_log();
    begin_to_log(&guest, &log, None);
    rustix::fs::ftruncate(&log, 0).expect("nobody sealed it");
    receive(&port, &guest, 0x10_0000);
    eventually("disconnected", || !port.connected());
}

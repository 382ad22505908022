//! A device whose guest moves: where its rings log what they write, and since when.
//!
//! QEMU says SET_LOG_BASE, then SET_FEATURES with VHOST_F_LOG_ALL, then SET_VRING_ADDR with the log flag for each ring; in
//! the end SET_FEATURES and SET_VRING_ADDR without. Each takes effect in whatever order it comes, on rings that run.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use log::Level;

use crate::datapath::RingLog;
use crate::memory::{DirtyLog, LogError, MemTable, WriteLog};
use crate::vhost_user::VringAddr;
use crate::virtio::features::{Features, VHOST_F_LOG_ALL, VIRTIO_F_ACCESS_PLATFORM};

/// What a front-end said of logging.
#[derive(Default)]
pub(super) struct Migration {
    log: Option<Arc<DirtyLog>>,
    notify: Option<Arc<OwnedFd>>,
    /// The log and the memory, while rings are to log.
    writes: Option<Arc<WriteLog>>,
}

impl Migration {
    /// Logs here from now on (SET_LOG_BASE), once VHOST_F_LOG_ALL is acknowledged.
    ///
    /// # Errors
    ///
    /// [`LogError`]; what was logged to before then still is.
    pub(super) fn set_log(&mut self, size: u64, offset: u64, fd: &OwnedFd) -> Result<(), LogError> {
        self.log = Some(Arc::new(DirtyLog::map(size, offset, fd)?));
        Ok(())
    }

    /// Whether the front-end took the log away.
    pub(super) fn is_lost(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.is_lost())
    }

    /// Signals this when pages were logged (SET_LOG_FD).
    pub(super) fn set_notify(&mut self, fd: OwnedFd) {
        self.notify = Some(Arc::new(fd));
    }

    /// Takes in that features, memory or the log changed, and says what that means, for the operator: that logging
    /// begins, ends, or leaves something out.
    pub(super) fn settle(
        &mut self,
        features: Option<Features>,
        memory: &MemTable,
    ) -> Option<(Level, String)> {
        let wanted = features.is_some_and(|features| features.contains(VHOST_F_LOG_ALL));
        let log = self.log.as_ref().filter(|_| wanted);
        let now = log.map(|log| Arc::new(WriteLog::new(Arc::clone(log), memory)));
        let before = std::mem::replace(&mut self.writes, now);
        match (before, &self.writes) {
            (None, Some(now)) => Some(begun(now)),
            (Some(before), None) => Some(ended(&before)),
            // A log is replaced by a longer one when the guest's memory grows.
            (Some(before), Some(now)) if !Arc::ptr_eq(before.log(), now.log()) => Some(begun(now)),
            _ => None,
        }
    }

    /// Where a ring at `address` logs, if it does.
    pub(super) fn ring(&self, features: Features, address: &VringAddr) -> Option<RingLog> {
        // Behind an IOMMU the front-end's number is an address before translation, and the log counts in those behind it.
        let physical = !features.contains(VIRTIO_F_ACCESS_PLATFORM);
        self.writes.as_ref().map(|writes| RingLog {
            writes: Arc::clone(writes),
            used: address.log().filter(|_| physical),
            notify: self.notify.clone(),
        })
    }
}

fn begun(writes: &WriteLog) -> (Level, String) {
    let size = writes.log().size();
    match writes.covers_all() {
        true => (Level::Info, format!("dirty logging begins, {size} bytes of log")),
        false => (
            Level::Warn,
            format!("dirty logging begins, but {size} bytes of log are too few for the guest's memory: some writes will not be in it"),
        ),
    }
}

fn ended(writes: &WriteLog) -> (Level, String) {
    match writes.log().beyond() {
        0 => (Level::Info, "dirty logging ends".to_owned()),
        pages => (
            Level::Warn,
            format!("dirty logging ends; the log was too short for {pages} writes to guest pages"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{FrontendAddr, GuestAddr};
    use crate::model::GuestMemory;
    use std::os::fd::AsFd;

    fn log(migration: &mut Migration, bytes: u64) {
        let file = GuestMemory::new(bytes);
        let fd = file.file().as_fd().try_clone_to_owned().unwrap();
        migration.set_log(bytes, 0, &fd).unwrap();
    }

    fn address(flags: u32) -> VringAddr {
        VringAddr {
            index: 0,
            flags,
            desc: FrontendAddr(0),
            used: FrontendAddr(0),
            avail: FrontendAddr(0),
            log: GuestAddr(0x5000),
        }
    }

    #[test]
    fn logging_is_on_while_there_is_a_log_and_the_feature() {
        let memory = GuestMemory::new(0x1000).table();
        let mut migration = Migration::default();
        let all = Some(VHOST_F_LOG_ALL);
        assert_eq!(migration.settle(all, &memory), None);
        assert!(migration.ring(VHOST_F_LOG_ALL, &address(1)).is_none());
        log(&mut migration, 1);
        let begins = "dirty logging begins, 1 bytes of log".to_owned();
        assert_eq!(migration.settle(all, &memory), Some((Level::Info, begins)));
        assert!(migration.ring(VHOST_F_LOG_ALL, &address(1)).is_some());
        assert_eq!(migration.settle(all, &memory), None);
        log(&mut migration, 2);
        assert!(migration.settle(all, &memory).is_some());
        let ends = "dirty logging ends".to_owned();
        assert_eq!(
            migration.settle(Some(Features::NONE), &memory),
            Some((Level::Info, ends))
        );
        assert!(migration.ring(Features::NONE, &address(1)).is_none());
    }

    #[test]
    fn a_log_that_is_too_short_is_spoken_of() {
        let memory = GuestMemory::new(0x1_0000).table();
        let mut migration = Migration::default();
        log(&mut migration, 1);
        let said = migration.settle(Some(VHOST_F_LOG_ALL), &memory);
        assert!(matches!(said, Some((Level::Warn, _))), "{said:?}");
        let ring = migration.ring(VHOST_F_LOG_ALL, &address(0)).unwrap();
        ring.writes.log().mark(GuestAddr(0x1_0000), 1);
        let said = migration.settle(None, &memory);
        assert!(matches!(said, Some((Level::Warn, _))), "{said:?}");
    }

    #[test]
    fn the_used_rings_log_address_counts_if_its_flag_is_set_and_it_is_physical() {
        let memory = GuestMemory::new(0x1000).table();
        let mut migration = Migration::default();
        log(&mut migration, 1);
        migration.settle(Some(VHOST_F_LOG_ALL), &memory);
        let used = |features, flags| migration.ring(features, &address(flags)).unwrap().used;
        assert_eq!(used(VHOST_F_LOG_ALL, 0), None);
        assert_eq!(used(VHOST_F_LOG_ALL, 1), Some(GuestAddr(0x5000)));
        assert_eq!(used(VHOST_F_LOG_ALL | VIRTIO_F_ACCESS_PLATFORM, 1), None);
    }
}

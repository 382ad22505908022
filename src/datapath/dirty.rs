//! What bursts write into guest memory while the guest moves, on its way into the dirty log.
//!
//! The order is: write, full barrier, mark, publish. A bit that is set before its bytes are visible could be taken out by
//! the front-end with the bytes left behind; bytes that are published before their bit is set would be lost if this process
//! died in between. What publishes by being written (used.idx, the first used descriptor of a burst) is marked behind it:
//! nobody copies the last of it before the ring is stopped, and stopping a ring waits for its burst.

mod place;

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::call;
use super::set::Set;
use crate::memory::{cpu, GuestAddr, MemTable, WriteLog, Written};

pub(super) use self::place::Place;

/// Where a ring logs what it writes.
#[derive(Clone, Debug)]
pub struct RingLog {
    /// The log, and where guest memory is.
    pub writes: Arc<WriteLog>,
    /// The guest address under which writes to a split ring's used ring are logged (SET_VRING_ADDR with VHOST_VRING_F_LOG).
    /// Without it, and for packed rings, it is found by where the ring lies.
    pub used: Option<GuestAddr>,
    /// Signalled when pages were logged that were not before (SET_LOG_FD); an eventfd, non-blocking.
    pub notify: Option<Arc<OwnedFd>>,
}

/// A ring's log, where its code has extras at all.
#[inline(always)]
pub(super) fn extra<S: Set, L>(log: &Option<Box<L>>) -> Option<&L> {
    match S::EXTRA {
        true => log.as_deref(),
        false => None,
    }
}

/// Writes that wait for one barrier together: a burst of frames in a buffer each.
const STAGED: usize = 64;

/// What a burst wrote and has not marked yet.
pub(super) struct Dirty {
    writes: Arc<WriteLog>,
    notify: Option<Arc<OwnedFd>>,
    staged: [Cell<Written>; STAGED],
    count: Cell<usize>,
    /// Whether a page was marked that was not before, since the last notification.
    fresh: Cell<bool>,
}

impl Dirty {
    pub(super) fn new(writes: Arc<WriteLog>, notify: Option<Arc<OwnedFd>>) -> Self {
        Self {
            writes,
            notify,
            staged: std::array::from_fn(|_| Cell::default()),
            count: Cell::new(0),
            fresh: Cell::new(false),
        }
    }

    /// Where the `len` bytes at `host` are of a ring in memory of this table.
    pub(super) fn place(&self, mem: &MemTable, host: usize, len: u32) -> Place {
        Place::find(&self.writes, mem, host, len)
    }

    /// Takes down bytes that were just written.
    #[inline]
    pub(super) fn wrote(&self, written: impl Into<Written>) {
        let written = written.into();
        if written.len == 0 {
            return;
        }
        if self.count.get() == STAGED {
            cpu::full_barrier();
            self.mark_staged();
        }
        if let Some(place) = self.staged.get(self.count.get()) {
            place.set(written);
            self.count.set(self.count.get() + 1);
        }
    }

    /// Marks what was taken down. The caller has passed a full barrier since.
    pub(super) fn mark_staged(&self) {
        for written in self.staged.iter().take(self.count.take()).map(Cell::get) {
            if self.writes.mark(written.host, written.len) {
                self.fresh.set(true);
            }
        }
    }

    /// Marks `len` bytes at `offset` of a part of the ring. The caller has passed a full barrier since they were written.
    pub(super) fn mark(&self, place: &Place, offset: usize, len: u32) {
        for (addr, len) in place.pieces(offset, len) {
            if self.writes.log().mark(addr, len) {
                self.fresh.set(true);
            }
        }
    }

    /// Tells the front-end of what was marked, once for all since the last time.
    pub(super) fn notify(&self) {
        if let (true, Some(fd)) = (self.fresh.take(), &self.notify) {
            call::notify(fd);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

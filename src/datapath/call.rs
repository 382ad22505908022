//! UNSAFE: the call eventfd, the one system call of a burst (and, while a guest moves, the log eventfd).

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::counters::Counters;

/// Tells a driver that it has used buffers, unless it gave no eventfd for that because it polls.
#[derive(Debug)]
pub(super) struct Call(Option<Arc<OwnedFd>>);

impl Call {
    /// `fd` must be non-blocking, which the control thread sees to.
    pub(super) fn new(fd: Option<Arc<OwnedFd>>) -> Self {
        Self(fd)
    }

    /// Whether the driver can be called. One that polls needs neither call nor barrier.
    #[inline(always)]
    pub(super) fn is_possible(&self) -> bool {
        self.0.is_some()
    }

    /// Adds one to the eventfd. A counter that is full is a call that the driver has yet to hear: nothing is lost.
    #[cold]
    pub(super) fn signal(&self, counters: &Counters) {
        let Some(fd) = &self.0 else { return };
        notify(fd);
        counters.count_call();
    }
}

/// Adds one to an eventfd, which is non-blocking.
#[cold]
pub(super) fn notify(fd: &OwnedFd) {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: the descriptor is open while it is borrowed, and `one` holds the bytes to write.
    unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

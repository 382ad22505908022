//! UNSAFE: the call eventfd, the one system call of a burst.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// Tells a driver that it has used buffers.
#[derive(Debug)]
pub(super) struct Call(Arc<OwnedFd>);

impl Call {
    /// `fd` must be non-blocking, which the control thread sees to.
    pub(super) fn new(fd: Arc<OwnedFd>) -> Self {
        Self(fd)
    }

    /// Adds one to the eventfd. A counter that is full is a call that the driver has yet to hear: nothing is lost.
    #[cold]
    pub(super) fn signal(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the descriptor is open while self owns it, and `one` holds the bytes to write.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

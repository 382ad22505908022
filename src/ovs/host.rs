//! A netdev as the port layer sees it, and the control thread's name in Open vSwitch's log.

use std::ffi::{c_char, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;

use ovs_sys::netdev;

use crate::port::Host;

/// The netdev of a port. Open vSwitch owns it and keeps it until `port_destroy` has returned; by then
/// the port has dropped this.
pub(super) struct Netdev(NonNull<netdev>);

// SAFETY: the services below may be called on any thread, says the header, and nothing else is done
// with the pointer.
unsafe impl Send for Netdev {}
// SAFETY: as above; they take Open vSwitch's own locks.
unsafe impl Sync for Netdev {}

impl Netdev {
    /// # Safety
    ///
    /// The netdev must outlive the value.
    pub(super) unsafe fn new(netdev: NonNull<netdev>) -> Netdev {
        Netdev(netdev)
    }
}

impl Host for Netdev {
    fn changed(&self) {
        // SAFETY: the netdev lives (`new`).
        unsafe { ovs_sys::ovsv_host_changed(self.0.as_ptr()) }
    }

    fn request_reconfigure(&self) {
        // SAFETY: the netdev lives (`new`).
        unsafe { ovs_sys::ovsv_host_request_reconfigure(self.0.as_ptr()) }
    }

    fn unlink_at_exit(&self, path: &Path) {
        if let Some(path) = c_path(path) {
            // SAFETY: a terminated string, valid during the call.
            unsafe { ovs_sys::ovsv_host_unlink_at_exit(path.as_ptr()) }
        }
    }

    fn keep_at_exit(&self, path: &Path) {
        if let Some(path) = c_path(path) {
            // SAFETY: a terminated string, valid during the call.
            unsafe { ovs_sys::ovsv_host_keep_at_exit(path.as_ptr()) }
        }
    }
}

/// No file's name has a NUL byte.
fn c_path(path: &Path) -> Option<CString> {
    CString::new(path.as_os_str().as_bytes()).ok()
}

/// Gives the calling thread its name in Open vSwitch's log.
pub(super) fn name_control_thread() {
    const NAME: &str = "ovs-vhost";
    // SAFETY: `NAME` is valid for its length; the calling thread is ours.
    unsafe { ovs_sys::ovsv_host_thread_name(NAME.as_ptr().cast::<c_char>(), NAME.len()) }
}

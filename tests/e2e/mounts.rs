//! A mount namespace: the machine's files, but for some folders that are a case's own. What is started inside finds
//! the paths that documents name, and leaves nothing on the machine.
//!
//! Like the network namespace it is held open by a file descriptor of the harness, and ends with it.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::{io, ptr};

use anyhow::{anyhow, Context, Result};

/// The namespace.
#[derive(Clone)]
pub struct MountNs(Arc<OwnedFd>);

impl MountNs {
    /// A fresh namespace with all that is mounted now. What is mounted in it from now on stays in it.
    pub fn create() -> Result<Self> {
        let made = std::thread::spawn(|| -> Result<OwnedFd> {
            leave_mounts().context("cannot make a mount namespace")?;
            Ok(File::open("/proc/thread-self/ns/mnt")?.into())
        });
        let fd = made
            .join()
            .map_err(|_| anyhow!("the namespace thread panicked"))??;
        Ok(MountNs(Arc::new(fd)))
    }

    /// Makes `command` run inside, in the root directory.
    pub fn enter(&self, command: &mut Command) {
        let ns = Arc::clone(&self.0);
        // SAFETY: between fork and exec only setns is called; the descriptor is kept open by the captured Arc.
        unsafe {
            command.pre_exec(move || match libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNS) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
    }
}

/// Moves the calling thread, and all that it starts from now on, to mounts of its own: those that it sees now, and what is
/// mounted later.
pub fn leave_mounts() -> io::Result<()> {
    // SAFETY: unshare moves only this thread; no memory is touched.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } == -1 {
        return Err(io::Error::last_os_error());
    }
    let own = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the target is a C string; a change of propagation reads nothing else.
    match unsafe { libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), own, ptr::null()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

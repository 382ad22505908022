//! One run at a time on a machine: two would take the processors from each other, and every time limit with them.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait;

/// Longer than any run takes.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Held for as long as the run lasts; the kernel lets go of it however the process ends.
pub struct Turn {
    _lock: File,
}

/// Waits until no other run is under way; `say` tells that there is one.
pub fn take(say: impl Fn(&str)) -> Result<Turn> {
    let path = std::env::temp_dir().join("ovs-vhost-e2e.lock");
    let lock = File::options().create(true).append(true).open(&path);
    let lock = lock.with_context(|| format!("cannot open {}", path.display()))?;
    let mut told = false;
    wait::until("another run to end", PATIENCE, || {
        // SAFETY: flock touches no memory; the descriptor is open.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(Some(()));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error.into());
        }
        if !told {
            say("waiting for another run of these tests on this machine to end");
            told = true;
        }
        Ok(None)
    })?;
    Ok(Turn { _lock: lock })
}

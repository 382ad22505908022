//! A dirty log between canaries of its own.

use std::os::fd::OwnedFd;

use anyhow::{ensure, Result};
use rustix::fs::{ftruncate, memfd_create, MemfdFlags};

use super::plan::Plan;

/// A bit for each page of a guest's memory.
const BYTES: usize = 0x3010_0000 / 4096 / 8;
const AROUND: usize = 4096;
const CANARY: u8 = 0xc5;

/// A log for all of a guest's memory.
pub struct DirtyLog(OwnedFd);

impl DirtyLog {
    pub fn new() -> Result<DirtyLog> {
        let fd = memfd_create("log", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, (2 * AROUND + BYTES) as u64)?;
        for at in [0, AROUND + BYTES] {
            rustix::io::pwrite(&fd, &[CANARY; AROUND], at as u64)?;
        }
        Ok(DirtyLog(fd))
    }

    /// Has the port log into it.
    pub fn lend(&self, plan: &mut Plan) -> Result<()> {
        plan.log(BYTES as u64, AROUND as u64, self.0.try_clone()?);
        Ok(())
    }

    /// Nothing was written around it.
    pub fn check_canaries(&self) -> Result<()> {
        for at in [0, AROUND + BYTES] {
            let mut bytes = [0; AROUND];
            rustix::io::pread(&self.0, &mut bytes, at as u64)?;
            ensure!(
                bytes == [CANARY; AROUND],
                "the dirty log's surroundings were written to"
            );
        }
        Ok(())
    }
}

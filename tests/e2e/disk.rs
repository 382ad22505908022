//! A small disk of a test's own, that can be filled and made read-only. Nobody else sees it: it lies in mounts of the harness.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use rustix::mount::{mount, mount_remount, unmount, MountFlags, UnmountFlags};

/// In 4 KiB pages, and in files.
const PAGES: usize = 16 << 10;
const FILES: usize = 1000;
/// What fills it.
const BALLAST: &str = "ballast";

/// The disk; dropping it takes it away, and leaves the logs on it beside its place.
pub struct Disk(PathBuf);

impl Disk {
    /// A disk at `place`, which has to be a directory, in mounts that the calling thread has for itself.
    pub fn mount(place: &Path) -> Result<Disk> {
        let options = CString::new(format!("mode=0755,nr_blocks={PAGES},nr_inodes={FILES}"))?;
        mount("tmpfs", place, "tmpfs", MountFlags::empty(), options.as_c_str())
            .with_context(|| format!("no disk at {}", place.display()))?;
        Ok(Disk(place.into()))
    }

    /// Leaves no room on it, neither for a byte nor for a file.
    pub fn fill(&self) -> Result<()> {
        let ballast = self.0.join(BALLAST);
        fs::create_dir(&ballast)?;
        let mut file = File::create(ballast.join("bytes"))?;
        while has_room(file.write_all(&[0; 4096]))? {}
        for number in 0.. {
            if !has_room(File::create(ballast.join(number.to_string())))? {
                return Ok(());
            }
        }
        bail!("a disk without an end")
    }

    /// Takes away what filled it.
    pub fn clear(&self) -> Result<()> {
        fs::remove_dir_all(self.0.join(BALLAST)).context("the ballast")
    }

    /// Whether it may be written to.
    pub fn set_writable(&self, writable: bool) -> Result<()> {
        let flags = match writable {
            true => MountFlags::empty(),
            false => MountFlags::RDONLY,
        };
        mount_remount(&self.0, flags, c"").with_context(|| format!("{} stays as it is", self.0.display()))
    }

    fn keep_logs(&self) -> Result<()> {
        let beside = self.0.parent().context("the root")?;
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let is_log = |end: &OsStr| end == "log" || end == "out";
            if let (Some(name), true) = (path.file_name(), path.extension().is_some_and(is_log)) {
                fs::copy(&path, beside.join(name))?;
            }
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A case that fails has something to say already.
        let _ = self.keep_logs();
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Whether there was room for what was tried.
fn has_room<T>(tried: io::Result<T>) -> Result<bool> {
    match tried {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::StorageFull => Ok(false),
        Err(error) => Err(error.into()),
    }
}

//! Hugepages for the cases that have DPDK in the switch: taken only if there are too few, given back on the way out.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{bail, Context, Result};

const COUNT: &str = "/proc/sys/vm/nr_hugepages";
const MOUNT: &str = "/dev/hugepages";
/// 2 MiB pages: 512 MiB for testpmd, the rest for the packet pools of the switch.
const WANTED: u64 = 1024;

/// Holds the hugepages; dropping it restores what was found.
pub struct Hugepages {
    found: Option<u64>,
    mounted: bool,
}

impl Hugepages {
    /// Makes sure that [`WANTED`] pages exist and hugetlbfs is mounted somewhere.
    pub fn take() -> Result<Self> {
        let mut held = Hugepages {
            found: None,
            mounted: false,
        };
        let found = read_count()?;
        if found < WANTED {
            fs::write(COUNT, WANTED.to_string()).context("cannot reserve hugepages")?;
            held.found = Some(found);
            let got = read_count()?;
            if got < WANTED {
                bail!("the kernel gave {got} of {WANTED} hugepages");
            }
        }
        if !fs::read_to_string("/proc/mounts")?
            .lines()
            .any(|line| line.split(' ').nth(2) == Some("hugetlbfs"))
        {
            mount()?;
            held.mounted = true;
        }
        Ok(held)
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        if self.mounted {
            if let Ok(target) = CString::new(MOUNT) {
                // SAFETY: `target` is a NUL-terminated string that lives through the call.
                unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
            }
        }
        if let Some(found) = self.found {
            // Nothing useful can be done if the kernel refuses.
            let _ = fs::write(COUNT, found.to_string());
        }
    }
}

fn read_count() -> Result<u64> {
    Ok(fs::read_to_string(COUNT)?.trim().parse()?)
}

fn mount() -> Result<()> {
    if !Path::new(MOUNT).is_dir() {
        fs::create_dir(MOUNT)?;
    }
    let (source, target, kind) = (
        CString::new("hugetlbfs")?,
        CString::new(MOUNT)?,
        CString::new("hugetlbfs")?,
    );
    // SAFETY: three NUL-terminated strings that live through the call; no flags, no data.
    let status = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if status == -1 {
        return Err(io::Error::last_os_error()).context("cannot mount hugetlbfs");
    }
    Ok(())
}

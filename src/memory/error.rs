//! Why memory that a front-end offers is refused.

use super::addr::GuestAddr;
use super::region::RegionDesc;

/// Memory that a front-end offered, or asked to take away, and that we refuse.
#[derive(Debug, thiserror::Error)]
pub enum MemError {
    /// A region of no bytes.
    #[error("region at {0} is empty")]
    Empty(GuestAddr),
    /// Start plus size, in one of the three spaces a region lives in, passes the end of that space.
    #[error("region {desc} wraps around the end of its {space} space")]
    Wraps {
        /// The region as the front-end described it.
        desc: RegionDesc,
        /// `guest address`, `front-end address`, `file` or `process address`.
        space: &'static str,
    },
    /// The file ends before the region does: touching its end would be a bus error.
    #[error("region {desc} needs a file of {need} bytes and got one of {have}")]
    FileTooShort {
        /// The region as the front-end described it.
        desc: RegionDesc,
        /// Bytes the file must hold: offset plus size.
        need: u64,
        /// Bytes it holds.
        have: u64,
    },
    /// The operating system refused `what`.
    #[error("{what} of region {desc}: {error}")]
    Os {
        /// `fstat` or `mmap`.
        what: &'static str,
        /// The region as the front-end described it.
        desc: RegionDesc,
        /// Its reason.
        error: std::io::Error,
    },
    /// Two regions claim the same guest addresses.
    #[error("regions {0} and {1} overlap")]
    Overlap(RegionDesc, RegionDesc),
    /// More regions than [`super::MAX_REGIONS`].
    #[error("{0} regions are more than {max}", max = super::MAX_REGIONS)]
    TooMany(usize),
    /// REM_MEM_REG names a region that is not in the table.
    #[error("no region {0}")]
    NoSuchRegion(RegionDesc),
}

//! One region of guest memory, as the front-end described it and as we mapped it.

use std::fmt;
use std::os::fd::AsFd;

use super::addr::{FrontendAddr, GuestAddr};
use super::backing::Backing;
use super::error::MemError;
use super::mapping::Mapping;
use super::numa;

/// A memory region description of SET_MEM_TABLE and ADD_MEM_REG (vhost-user, "Memory region description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionDesc {
    /// Where the guest sees it.
    pub guest: GuestAddr,
    /// Bytes.
    pub size: u64,
    /// Where the front-end sees it.
    pub frontend: FrontendAddr,
    /// Where in the file it begins, in bytes.
    pub mmap_offset: u64,
}

impl RegionDesc {
    /// The same memory in the sense of REM_MEM_REG, for which the file does not matter.
    pub fn is_same_memory(&self, other: &Self) -> bool {
        (self.guest, self.size, self.frontend) == (other.guest, other.size, other.frontend)
    }
}

impl fmt::Display for RegionDesc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            guest,
            size,
            frontend,
            mmap_offset,
        } = self;
        write!(
            f,
            "[guest {:#x} size {size:#x} front-end {:#x} offset {mmap_offset:#x}]",
            guest.0, frontend.0
        )
    }
}

/// A region in our address space, until the last [`super::MemTable`] that shares it goes.
#[derive(Debug)]
pub struct Region {
    desc: RegionDesc,
    mapping: Mapping,
    backing: Backing,
}

/// Pages that are looked at to find where a region's memory is.
const SAMPLES: usize = 64;

impl Region {
    /// Maps the region `desc` of the file `fd`, which is closed on return if it was given by value.
    ///
    /// # Errors
    ///
    /// [`MemError`]: an empty or wrapping description, a file that is too short, or the system's refusal.
    pub fn map(desc: RegionDesc, fd: impl AsFd) -> Result<Self, MemError> {
        if desc.size == 0 {
            return Err(MemError::Empty(desc.guest));
        }
        // The last byte, not the one after it, must have an address: a region may end where the space does.
        let last = desc.size - 1;
        let wraps = |space| MemError::Wraps { desc, space };
        desc.guest
            .checked_add(last)
            .ok_or_else(|| wraps("guest address"))?;
        desc.frontend
            .checked_add(last)
            .ok_or_else(|| wraps("front-end address"))?;
        let mapping = Mapping::new(&desc, fd.as_fd())?;
        let backing = Backing::of(fd.as_fd());
        Ok(Self {
            desc,
            mapping,
            backing,
        })
    }

    /// As [`Region::map`], of a file whose missing pages are somewhere else still (post-copy).
    ///
    /// # Errors
    ///
    /// As for [`Region::map`].
    pub fn map_incomplete(desc: RegionDesc, fd: impl AsFd) -> Result<Self, MemError> {
        let region = Self::map(desc, fd)?;
        region.mapping.use_small_pages();
        Ok(region)
    }

    /// The address of its first byte in this process, which a front-end needs to make sense of our page faults.
    pub fn base(&self) -> u64 {
        self.mapping.start().addr() as u64
    }

    /// What the front-end said of it.
    pub fn desc(&self) -> &RegionDesc {
        &self.desc
    }

    /// What it is made of.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// The NUMA nodes on which those of its pages are that this process has used: of some dozens of them, evenly spread.
    /// Waits for no page that is not there.
    pub fn nodes(&self) -> Vec<i32> {
        let (start, size) = (self.mapping.start(), self.mapping.size());
        let step = usize::try_from(size / SAMPLES as u64).unwrap_or(usize::MAX);
        let last = usize::try_from(size - 1).unwrap_or(usize::MAX);
        let samples = (0..SAMPLES).map(|sample| start.wrapping_add((sample * step).min(last)).cast_const());
        numa::nodes_of(&samples.collect::<Vec<_>>())
    }

    /// Where it is.
    pub(super) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

//! A guest's memory, in a memfd that a back-end can map too.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{ftruncate, MemfdFlags};

use crate::memory::{memfd, FrontendAddr, GuestAddr, GuestSlice, MemTable, Region, RegionDesc};

/// In a model guest the front-end sees each address this much higher than the guest does.
pub const FRONTEND_OFFSET: u64 = 0x7f00_0000_0000;

/// The memory of a guest: one file, some regions of it.
#[derive(Debug)]
pub struct GuestMemory {
    file: OwnedFd,
    table: Arc<MemTable>,
}

impl GuestMemory {
    /// One region of `size` bytes at guest address 0x1000, so that address 0 is unmapped.
    ///
    /// # Panics
    ///
    /// If the system has no memory to give.
    pub fn new(size: u64) -> Self {
        Self::with_regions(&[(GuestAddr(0x1000), size)])
    }

    /// Regions at these guest addresses and of these sizes, one behind the other in the file but each in a mapping of its own.
    ///
    /// # Panics
    ///
    /// If they are no valid memory table.
    pub fn with_regions(regions: &[(GuestAddr, u64)]) -> Self {
        Self::made(regions, MemfdFlags::empty())
    }

    /// One region at `first`, of `size` bytes and what makes them whole huge pages of 2 MiB.
    ///
    /// # Panics
    ///
    /// If the system has none to give.
    pub fn in_huge_pages(first: GuestAddr, size: u64) -> Self {
        let size = size.next_multiple_of(2 << 20);
        Self::made(&[(first, size)], MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)
    }

    /// Regions of a file that `flags` say more of.
    fn made(regions: &[(GuestAddr, u64)], flags: MemfdFlags) -> Self {
        let size = regions.iter().map(|(_, size)| size).sum();
        let file = file_of(size, flags).unwrap_or_else(|error| panic!("memfd of {size} bytes: {error}"));
        let mut mmap_offset = 0;
        let mut mapped = Vec::new();
        for &(guest, size) in regions {
            let frontend = FrontendAddr(guest.0 + FRONTEND_OFFSET);
            let desc = RegionDesc {
                guest,
                size,
                frontend,
                mmap_offset,
            };
            mapped.push(Arc::new(
                Region::map(desc, &file).unwrap_or_else(|error| panic!("{error}")),
            ));
            mmap_offset += size;
        }
        let table = MemTable::new(mapped).unwrap_or_else(|error| panic!("{error}"));
        Self {
            file,
            table: Arc::new(table),
        }
    }

    /// Memory that somebody else mapped, of this file.
    pub fn of(file: OwnedFd, table: Arc<MemTable>) -> Self {
        Self { file, table }
    }

    /// The memory as its own back-end would map it.
    pub fn table(&self) -> Arc<MemTable> {
        self.table.clone()
    }

    /// What SET_MEM_TABLE carries.
    ///
    /// # Panics
    ///
    /// If the system has no file descriptor to give.
    pub fn regions(&self) -> Vec<(RegionDesc, OwnedFd)> {
        let fd = || self.file.try_clone().unwrap_or_else(|error| panic!("{error}"));
        self.table
            .regions()
            .iter()
            .map(|region| (*region.desc(), fd()))
            .collect()
    }

    /// The file behind the memory.
    pub fn file(&self) -> impl AsFd + '_ {
        &self.file
    }

    /// Reads `bytes` at `addr`.
    ///
    /// # Panics
    ///
    /// If they are not all mapped.
    pub fn read(&self, addr: GuestAddr, bytes: &mut [u8]) {
        let read = self.table.cursor(0).map(|mut cursor| cursor.read(addr, bytes));
        assert_eq!(read, Some(Ok(())), "{addr}");
    }

    /// Writes `bytes` at `addr`.
    ///
    /// # Panics
    ///
    /// If they are not all mapped.
    pub fn write(&self, addr: GuestAddr, bytes: &[u8]) {
        let written = self.table.cursor(0).map(|mut cursor| cursor.write(addr, bytes));
        assert_eq!(written, Some(Ok(())), "{addr}");
    }

    /// The 16-bit word at `addr`, as one side of a ring reads what the other publishes.
    ///
    /// # Panics
    ///
    /// If it is not mapped and aligned.
    pub fn load(&self, addr: GuestAddr) -> u16 {
        self.word(addr).load_acquire().unwrap_or_else(|| panic!("{addr}"))
    }

    /// Publishes the 16-bit word at `addr`.
    ///
    /// # Panics
    ///
    /// If it is not mapped and aligned.
    pub fn store(&self, addr: GuestAddr, value: u16) {
        assert!(self.word(addr).store_release(value), "{addr}");
    }

    fn word(&self, addr: GuestAddr) -> GuestSlice<'_> {
        let slice = self.table.cursor(0).and_then(|mut cursor| cursor.prefix(addr, 2));
        slice.unwrap_or_else(|| panic!("{addr}"))
    }
}

fn file_of(size: u64, flags: MemfdFlags) -> io::Result<OwnedFd> {
    let file = memfd("model-guest", flags)?;
    ftruncate(&file, size)?;
    Ok(file)
}

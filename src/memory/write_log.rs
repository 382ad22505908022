//! The dirty log as whoever writes guest memory sees it: by where bytes lie in this process.
//!
//! A burst knows the host address of what it writes, and no longer how it got there: through the memory table, or through
//! an IOTLB on top of it. The table that mapped the memory tells its guest-physical address, which is what the log counts in.

use std::sync::Arc;

use super::addr::GuestAddr;
use super::copy::GuestSlice;
use super::dirty_log::DirtyLog;
use super::table::MemTable;

/// A dirty log, and where each region lies in this process.
#[derive(Debug)]
pub struct WriteLog {
    log: Arc<DirtyLog>,
    /// By host address. No two overlap: each is a mapping of its own.
    places: Box<[Place]>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    host: usize,
    size: u64,
    guest: GuestAddr,
}

impl WriteLog {
    /// The log of writes to the memory of `table`.
    pub fn new(log: Arc<DirtyLog>, table: &MemTable) -> Self {
        let place = |region: &Arc<super::Region>| Place {
            host: region.mapping().start().addr(),
            size: region.mapping().size(),
            guest: region.desc().guest,
        };
        let mut places: Box<[Place]> = table.regions().iter().map(place).collect();
        places.sort_by_key(|place| place.host);
        Self { log, places }
    }

    /// The log itself.
    pub fn log(&self) -> &Arc<DirtyLog> {
        &self.log
    }

    /// Whether the log has a bit for each page of the table's memory.
    pub fn covers_all(&self) -> bool {
        let covered = |place: &Place| self.log.covers(place.guest, place.size);
        self.places.iter().all(covered)
    }

    /// The guest-physical address of the byte at this address of ours.
    #[inline]
    pub fn guest(&self, host: usize) -> Option<GuestAddr> {
        let above = self.places.partition_point(|place| place.host <= host);
        let place = self.places.get(above.checked_sub(1)?)?;
        let offset = (host - place.host) as u64;
        (offset < place.size)
            .then(|| place.guest.checked_add(offset))
            .flatten()
    }

    /// Marks the pages of the `len` bytes from this address of ours on, all of one slice, and says whether any was not
    /// marked yet. As for [`DirtyLog::mark`] a full barrier must lie between writing them and this.
    #[inline]
    pub fn mark(&self, host: usize, len: u32) -> bool {
        self.guest(host).is_some_and(|guest| self.log.mark(guest, len))
    }
}

/// Bytes that were written, to be marked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// Where they are in this process.
    pub host: usize,
    /// How many.
    pub len: u32,
}

impl From<GuestSlice<'_>> for Written {
    #[inline(always)]
    fn from(slice: GuestSlice<'_>) -> Self {
        Self {
            host: slice.as_ptr().addr(),
            len: slice.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::LOG_PAGE;
    use crate::model::GuestMemory;

    #[test]
    fn every_byte_of_every_region_is_found_back() {
        let regions = [
            (GuestAddr(0x10_0000), 0x3000),
            (GuestAddr(0), 0x1800),
            (GuestAddr(0x4000_0000), 0x1000),
        ];
        let memory = GuestMemory::with_regions(&regions);
        let file = GuestMemory::new(0x1_0000);
        let log = Arc::new(DirtyLog::map(0x1_0000, 0, file.file()).unwrap());
        let table = memory.table();
        let writes = WriteLog::new(log, &table);
        assert!(writes.covers_all());
        let mut cursor = table.cursor(0).unwrap();
        for (guest, size) in regions {
            for offset in [0, 1, LOG_PAGE - 1, size - 1] {
                let addr = GuestAddr(guest.0 + offset);
                let host = Written::from(cursor.prefix(addr, 1).unwrap()).host;
                assert_eq!(writes.guest(host), Some(addr));
            }
        }
        let elsewhere = 0_u8;
        assert_eq!(writes.guest((&raw const elsewhere).addr()), None);
        assert_eq!((writes.guest(0), writes.guest(usize::MAX)), (None, None));
        assert!(!writes.mark(0, 1));
    }

    #[test]
    fn a_log_that_is_too_short_for_the_memory_is_noticed() {
        let memory = GuestMemory::with_regions(&[(GuestAddr(0), 0x8000), (GuestAddr(0x10_0000), 0x1000)]);
        let file = GuestMemory::new(0x1000);
        for (bytes, covers) in [(32, false), (33, true)] {
            let log = Arc::new(DirtyLog::map(bytes, 0, file.file()).unwrap());
            assert_eq!(WriteLog::new(log, &memory.table()).covers_all(), covers);
        }
    }
}

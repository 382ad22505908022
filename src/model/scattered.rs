//! The memory of a guest whose devices are behind an IOMMU: a driver has pages side by side that lie apart in the guest.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::memory::{GuestMemory, FRONTEND_OFFSET};
use crate::datapath::RingConfig;
use crate::memory::{
    Access, FrontendAddr, GuestAddr, Iotlb, IovaRange, MemTable, Region, RegionDesc, Translation,
};

const PAGE: u64 = 4096;
/// Where the guest has it all, and what it has where a driver has nothing.
const PHYSICAL: GuestAddr = GuestAddr(0x400_0000);

/// One memory under two sets of addresses: those that a driver and its device use, and those that the guest has behind
/// them, in which the pages are in the opposite order, so that no page of the guest's follows on the one before.
#[derive(Debug)]
pub struct Scattered {
    guest: GuestMemory,
    seen: Arc<GuestMemory>,
    /// The pages as the driver sees them, in that order.
    pages: Vec<GuestAddr>,
}

impl Scattered {
    /// Memory that a driver sees at these addresses, in whole pages.
    ///
    /// # Panics
    ///
    /// If they are no valid memory table, or the system has no memory to give.
    pub fn new(seen: &[(GuestAddr, u64)]) -> Self {
        let pages: Vec<_> = seen
            .iter()
            .flat_map(|(first, size)| (first.0..first.0 + size).step_by(4096))
            .map(GuestAddr)
            .collect();
        let guest = GuestMemory::with_regions(&[(PHYSICAL, PAGE * pages.len() as u64)]);
        let file = guest.file().as_fd().try_clone_to_owned();
        let file = file.unwrap_or_else(|error| panic!("{error}"));
        let from_end = (0..pages.len() as u64).rev();
        let regions = pages.iter().zip(from_end).map(|(iova, page)| {
            let desc = RegionDesc {
                guest: *iova,
                size: PAGE,
                frontend: FrontendAddr(iova.0 + FRONTEND_OFFSET),
                mmap_offset: PAGE * page,
            };
            Arc::new(Region::map(desc, &file).unwrap_or_else(|error| panic!("{error}")))
        });
        let table = MemTable::new(regions.collect()).unwrap_or_else(|error| panic!("{error}"));
        Self {
            guest,
            seen: Arc::new(GuestMemory::of(file, Arc::new(table))),
            pages,
        }
    }

    /// The memory as the driver sees it.
    pub fn seen(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.seen)
    }

    /// The memory as the guest has it, and its front-end describes it.
    pub fn guest(&self) -> &GuestMemory {
        &self.guest
    }

    /// Where the guest has the page that the driver sees at `page`.
    ///
    /// # Panics
    ///
    /// If the driver has no such page.
    pub fn behind(&self, page: GuestAddr) -> GuestAddr {
        let index = self.pages.binary_search_by_key(&page.0, |page| page.0);
        let index = index.unwrap_or_else(|_| panic!("no page at {page}"));
        GuestAddr(PHYSICAL.0 + PAGE * (self.pages.len() - 1 - index) as u64)
    }

    /// What the front-end tells of the page that the driver sees at `page`.
    ///
    /// # Panics
    ///
    /// If the driver has no such page.
    pub fn translation(&self, page: GuestAddr) -> Translation {
        Translation {
            iova: IovaRange::new(page, PAGE).unwrap_or(IovaRange::ALL),
            target: FrontendAddr(self.behind(page).0 + FRONTEND_OFFSET),
            access: Access::ReadWrite,
        }
    }

    /// What the front-end tells of all pages.
    pub fn translations(&self) -> Iotlb {
        let mut iotlb = Iotlb::default();
        for page in &self.pages {
            iotlb.update(self.translation(*page), &[]);
        }
        iotlb
    }

    /// A ring that the driver describes, as a device has it of which the front-end has told this much.
    pub fn config(&self, ring: RingConfig, told: &Iotlb) -> RingConfig {
        let iova = |addr: FrontendAddr| FrontendAddr(addr.0 - FRONTEND_OFFSET);
        let ring = RingConfig {
            desc: iova(ring.desc),
            driver: iova(ring.driver),
            device: iova(ring.device),
            ..ring
        };
        let areas = ring
            .areas()
            .map(|area| (GuestAddr(area.addr.0), area.bytes, area.access));
        let view = self.guest.table().behind(told);
        RingConfig {
            mem: Arc::new(view.stitched(&areas, &MemTable::default())),
            ..ring
        }
    }
}

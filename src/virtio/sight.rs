//! A ring as somebody sees it who does not serve it: what lies in guest memory at this moment, for people who look for a
//! fault. Every word is read once, and nothing is written; device and driver go on meanwhile, so what is seen need not be
//! of one moment.

use std::sync::Arc;

use super::chain::DescRing;
use super::desc::{Desc, VIRTQ_DESC_F_NEXT};
use super::packed_ring::{Event, PackedMem, Position};
use super::ring::{LayoutError, RingAddrs, SplitMem};
use crate::memory::MemTable;

/// Descriptors that are seen at most.
pub const SEEN: usize = 16;

/// A descriptor, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its index in the table, or in the packed ring.
    pub index: u16,
    /// Split: the avail index whose chain it belongs to.
    pub avail: u16,
    /// What it says; in a packed ring `next` is the buffer id.
    pub desc: Desc,
}

/// What lies in a split ring.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub struct SplitSight {
    pub avail_flags: u16,
    pub avail_idx: u16,
    pub used_event: u16,
    pub used_flags: u16,
    pub used_idx: u16,
    pub avail_event: u16,
    /// The chains that the device takes next, as far as they are available.
    pub descs: Vec<Seen>,
}

/// What lies in a packed ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedSight {
    /// The driver event suppression structure: when it wants a call.
    pub driver_event: Event,
    /// The device event suppression structure: when it wants a kick.
    pub device_event: Event,
    /// Descriptors that are available from the device's position on.
    pub available: u16,
    /// The descriptors that the device takes next, up to and with the first that is not available.
    pub descs: Vec<Seen>,
}

impl SplitSight {
    /// Looks at a ring of which the device takes the avail index `next` next.
    ///
    /// # Errors
    ///
    /// [`LayoutError`]: addresses and size are no ring in `mem`.
    pub fn of(mem: Arc<MemTable>, size: u16, addrs: RingAddrs, next: u16) -> Result<Self, LayoutError> {
        let ring = SplitMem::new(mem, size, addrs)?;
        let avail_idx = ring.avail_idx();
        let ready = avail_idx.wrapping_sub(next);
        let mut sight = Self {
            avail_flags: ring.avail_flags(),
            avail_idx,
            used_event: ring.used_event(),
            used_flags: ring.used_flags(),
            used_idx: ring.used_idx(),
            avail_event: ring.avail_event(),
            descs: Vec::new(),
        };
        for at in 0..ready {
            // A driver that broke the ring may say that anything is available.
            if at >= size || sight.descs.len() >= SEEN {
                break;
            }
            sight.see_chain(&ring, next.wrapping_add(at));
        }
        Ok(sight)
    }

    /// Follows a chain as far as there is room: it may have no end.
    fn see_chain(&mut self, ring: &SplitMem, avail: u16) {
        let mut index = ring.avail_entry(avail);
        while self.descs.len() < SEEN {
            let Some(desc) = ring.desc(index) else { return };
            self.descs.push(Seen { index, avail, desc });
            if !desc.has(VIRTQ_DESC_F_NEXT) {
                return;
            }
            index = desc.next;
        }
    }
}

impl PackedSight {
    /// Looks at a ring of which the device takes the descriptor at `next` next, a position as [`Position::bits`] writes it.
    ///
    /// # Errors
    ///
    /// [`LayoutError`]: addresses and size are no ring in `mem`.
    pub fn of(mem: Arc<MemTable>, size: u16, addrs: RingAddrs, next: u16) -> Result<Self, LayoutError> {
        let ring = PackedMem::new(mem, size, addrs)?;
        let mut sight = Self {
            driver_event: ring.driver_event(),
            device_event: ring.device_event(),
            available: 0,
            descs: Vec::new(),
        };
        let mut at = Position::from_bits(next, size).unwrap_or(Position::START);
        while sight.available < size {
            let Some(desc) = ring.desc(at.index) else { break };
            if sight.descs.len() < SEEN {
                let (index, avail) = (at.index, at.bits());
                sight.descs.push(Seen { index, avail, desc });
            }
            if !at.is_available(desc.flags) {
                break;
            }
            sight.available += 1;
            at = at.advance(1, size);
        }
        Ok(sight)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::memory::GuestAddr;
    use crate::model::{Buffer, Driver, GuestMemory, PackedDriver, Virtqueue};
    use crate::virtio::desc::VIRTQ_DESC_F_WRITE;
    use crate::virtio::features::{Features, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};

    const SIZE: u16 = 8;

    fn driver<D: Virtqueue>(features: Features) -> (D, Arc<MemTable>, RingAddrs) {
        let memory = Arc::new(GuestMemory::new(0x10000));
        let driver = D::new(memory, GuestAddr(0x1000), SIZE, features);
        let config = driver.config(0);
        let addrs = RingAddrs {
            desc: config.desc,
            driver: config.driver,
            device: config.device,
        };
        (driver, config.mem, addrs)
    }

    fn buffers(count: u64) -> Vec<Buffer> {
        let buffer = |at: u64| Buffer {
            addr: GuestAddr(0x8000 + 0x100 * at),
            len: 100,
            write: true,
        };
        (0..count).map(buffer).collect()
    }

    #[test]
    fn of_a_split_ring_the_chains_are_seen_that_come_next() {
        let (mut driver, mem, addrs) = driver::<Driver>(VIRTIO_F_VERSION_1);
        let head = driver.add(&buffers(1)).unwrap();
        driver.add(&buffers(2)).unwrap();
        driver.publish();
        driver.set_used_event(5);
        let sight = SplitSight::of(Arc::clone(&mem), SIZE, addrs, 0).unwrap();
        assert_eq!((sight.avail_idx, sight.used_idx, sight.used_event), (2, 0, 5));
        assert_eq!(sight.descs.len(), 3);
        let first = sight.descs[0];
        assert_eq!(
            (first.index, first.avail, first.desc.addr, first.desc.len),
            (head, 0, 0x8000, 100)
        );
        assert!(first.desc.has(VIRTQ_DESC_F_WRITE));
        assert_eq!((sight.descs[1].avail, sight.descs[2].avail), (1, 1));
        assert_eq!(sight.descs[1].desc.next, sight.descs[2].index);
        let behind = SplitSight::of(mem, SIZE, addrs, 2).unwrap();
        assert!(behind.descs.is_empty());
    }

    #[test]
    fn a_broken_split_ring_is_seen_in_part() {
        let (mut driver, mem, addrs) = driver::<Driver>(VIRTIO_F_VERSION_1);
        let head = driver.add(&buffers(1)).unwrap();
        driver.publish();
        let forever = Desc {
            addr: 0,
            len: 0,
            flags: VIRTQ_DESC_F_NEXT,
            next: head,
        };
        driver.set_desc(head, forever);
        driver.set_avail_idx(0x8000);
        assert_eq!(
            SplitSight::of(Arc::clone(&mem), SIZE, addrs, 0)
                .unwrap()
                .descs
                .len(),
            SEEN
        );
        (0..SIZE).for_each(|at| driver.set_avail_entry(at, SIZE));
        assert!(
            SplitSight::of(mem, SIZE, addrs, 0).unwrap().descs.is_empty(),
            "heads beyond the table"
        );
    }

    #[test]
    fn of_a_packed_ring_all_is_seen_up_to_the_first_that_is_not_available() {
        let (mut driver, mem, addrs) = driver::<PackedDriver>(VIRTIO_F_VERSION_1.with(VIRTIO_F_RING_PACKED));
        driver.add(&buffers(1)).unwrap();
        driver.add(&buffers(1)).unwrap();
        driver.publish();
        let start = Position::START.bits();
        let sight = PackedSight::of(Arc::clone(&mem), SIZE, addrs, start).unwrap();
        assert_eq!((sight.available, sight.descs.len()), (2, 3));
        assert_eq!((sight.descs[0].desc.addr, sight.descs[0].desc.len), (0x8000, 100));
        let ahead = PackedSight::of(mem, SIZE, addrs, Position::START.advance(2, SIZE).bits()).unwrap();
        assert_eq!((ahead.available, ahead.descs.len()), (0, 1));
    }

    #[test]
    fn what_is_no_ring_is_not_looked_at() {
        let (_driver, mem, addrs) = driver::<Driver>(VIRTIO_F_VERSION_1);
        assert!(SplitSight::of(Arc::clone(&mem), 7, addrs, 0).is_err());
        assert!(SplitSight::of(Arc::default(), SIZE, addrs, 0).is_err());
        assert!(PackedSight::of(Arc::default(), SIZE, addrs, 0).is_err());
    }
}

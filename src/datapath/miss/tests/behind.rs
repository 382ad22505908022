//! A queue whose ring and buffers lie behind an IOMMU, with the driver and the front-end that go with it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use crate::datapath::{Direction, Queue, RingConfig, TxSlot, Wake};
use crate::memory::{Access, FrontendAddr, GuestAddr, Iotlb, IovaRange, MemTable, Miss, Translation};
use crate::model::{Buffer, GuestMemory, Pool, Virtqueue, FRONTEND_OFFSET};
use crate::virtio::features::{Features, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};

pub(super) const PAGE: u64 = 0x1000;
const SIZE: u16 = 16;
/// Where the device sees the ring; the guest has it at the beginning of its memory.
pub(super) const RING: u64 = 0x10_0000;
pub(super) const RING_PAGES: u64 = 4;
/// Where the device sees buffers: pages that lie elsewhere, in another order.
pub(super) const BUFFERS: u64 = 0xfff0_0000;
pub(super) const BUFFER_PAGES: u64 = 30;
/// From one buffer to the next, so that most lie on two pages.
pub(super) const STRIDE: u64 = 3000;
const ROOM: u32 = 2048;
pub(super) const HEADER: usize = 12;

/// A queue on a model's ring, all addresses of which go through an IOMMU.
pub(super) struct Behind<D> {
    pub(super) queue: Queue,
    pub(super) driver: D,
    memory: Arc<GuestMemory>,
    pub(super) iotlb: Iotlb,
    pool: Pool,
    pub(super) wakes: Arc<AtomicU32>,
}

pub(super) fn range(first: u64, size: u64) -> IovaRange {
    IovaRange::new(GuestAddr(first), size).unwrap()
}

/// Where a buffer address leads in the guest.
pub(super) fn physical(iova: u64) -> GuestAddr {
    let page = (iova - BUFFERS) / PAGE * 7 % BUFFER_PAGES;
    GuestAddr(PAGE + (RING_PAGES + page) * PAGE + iova % PAGE)
}

pub(super) fn buffer(slot: u16) -> u64 {
    BUFFERS + STRIDE * u64::from(slot)
}

impl<D: Virtqueue> Behind<D> {
    /// With the ring translated and nothing else.
    pub(super) fn new(direction: Direction, features: Features) -> Self {
        let packed = std::any::type_name::<D>().contains("Packed");
        let layout = if packed {
            VIRTIO_F_RING_PACKED
        } else {
            Features::NONE
        };
        let features = features | layout | VIRTIO_F_VERSION_1 | VIRTIO_F_ACCESS_PLATFORM;
        assert!(D::ring_bytes(SIZE) <= RING_PAGES * PAGE && u64::from(SIZE) * STRIDE < 16 * PAGE);
        let memory = Arc::new(GuestMemory::new((RING_PAGES + BUFFER_PAGES) * PAGE));
        let wakes = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&wakes);
        let waker = move |wake| {
            assert_eq!(wake, Wake::Missed, "no driver broke anything here");
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let mut behind = Self {
            queue: Queue::new(direction, Arc::new(waker)),
            driver: D::new(Arc::clone(&memory), GuestAddr(PAGE), SIZE, features),
            memory,
            iotlb: Iotlb::default(),
            pool: Pool::new(32, 2048),
            wakes,
        };
        behind.tell_ring();
        behind.queue.set_enabled(true);
        behind.queue.start(behind.config(None)).unwrap();
        behind
    }

    pub(super) fn view(&self) -> Arc<MemTable> {
        Arc::new(self.memory.table().behind(&self.iotlb))
    }

    pub(super) fn config(&self, base: Option<u32>) -> RingConfig {
        let config = self.driver.config(3);
        let iova = |addr: FrontendAddr| FrontendAddr(addr.0 - FRONTEND_OFFSET - PAGE + RING);
        RingConfig {
            desc: iova(config.desc),
            driver: iova(config.driver),
            device: iova(config.device),
            mem: self.view(),
            base: base.unwrap_or(config.base),
            ..config
        }
    }

    pub(super) fn tell_ring(&mut self) {
        let ring = Translation {
            iova: range(RING, RING_PAGES * PAGE),
            target: FrontendAddr(FRONTEND_OFFSET + PAGE),
            access: Access::ReadWrite,
        };
        self.iotlb.update(ring, &[]);
    }

    /// An update of the page that `iova` is on.
    pub(super) fn tell(&mut self, iova: u64, access: Access) -> Option<u32> {
        self.learn(iova, access);
        self.queue.replace_mem(&self.view())
    }

    /// The same, of which the ring knows nothing yet.
    fn learn(&mut self, iova: u64, access: Access) {
        let page = iova & !(PAGE - 1);
        let update = Translation {
            iova: range(page, PAGE),
            target: FrontendAddr(FRONTEND_OFFSET + physical(page).0),
            access,
        };
        self.iotlb.update(update, &[]);
    }

    pub(super) fn tell_all(&mut self, access: Access) {
        for page in 0..BUFFER_PAGES {
            self.learn(BUFFERS + page * PAGE, access);
        }
        assert_eq!(self.queue.replace_mem(&self.view()), None);
    }

    pub(super) fn take_back(&mut self, iova: u64, size: u64) -> Option<u32> {
        self.iotlb.invalidate(range(iova, size));
        self.queue.replace_mem(&self.view())
    }

    pub(super) fn misses(&self) -> Vec<Miss> {
        let mut found = Vec::new();
        self.queue.misses(&mut |miss| {
            found.push(miss);
            true
        });
        found
    }

    pub(super) fn wakes(&self) -> u32 {
        self.wakes.swap(0, Ordering::Relaxed)
    }

    /// The guest's own access to a buffer.
    fn each_page(iova: u64, len: usize, mut access: impl FnMut(GuestAddr, std::ops::Range<usize>)) {
        let mut at = 0;
        while at < len {
            let here = iova + at as u64;
            let piece = usize::try_from(PAGE - here % PAGE).unwrap().min(len - at);
            access(physical(here), at..at + piece);
            at += piece;
        }
    }

    fn poke(&self, iova: u64, bytes: &[u8]) {
        Self::each_page(iova, bytes.len(), |at, part| self.memory.write(at, &bytes[part]));
    }

    pub(super) fn peek(&self, iova: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Self::each_page(iova, len, |at, part| self.memory.read(at, &mut bytes[part]));
        bytes
    }

    /// The guest transmits; says whether there was room.
    pub(super) fn send(&mut self, frame: &[u8]) -> bool {
        let Some(slot) = self.driver.next_id() else {
            return false;
        };
        self.poke(buffer(slot), &[&[0; HEADER], frame].concat());
        let len = u32::try_from(HEADER + frame.len()).unwrap();
        self.add(buffer(slot), len, false)
    }

    fn add(&mut self, addr: u64, len: u32, write: bool) -> bool {
        let addr = GuestAddr(addr);
        let added = self.driver.add(&[Buffer { addr, len, write }]).is_some();
        self.driver.publish();
        added
    }

    /// The guest gives all the receive buffers it can.
    pub(super) fn supply(&mut self) {
        while let Some(slot) = self.driver.next_id() {
            if !self.add(buffer(slot), ROOM, true) {
                break;
            }
        }
    }

    pub(super) fn dequeue(&mut self) -> Vec<Vec<u8>> {
        while self.driver.reap().is_some() {}
        let mut slots = self.pool.slots();
        let count = self.queue.dequeue(&mut slots);
        slots[..count].iter().map(|slot| slot.frame().to_vec()).collect()
    }

    pub(super) fn enqueue(&self, frames: &[Vec<u8>]) -> usize {
        let slots: Vec<_> = frames.iter().map(|frame| TxSlot::new(frame)).collect();
        self.queue.enqueue(&slots, 0).packets
    }

    pub(super) fn received(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| {
            let used = self.driver.reap()?;
            let slot = u16::try_from(used.id).unwrap();
            Some(self.peek(buffer(slot), used.len as usize)[HEADER..].to_vec())
        })
        .collect()
    }

    pub(super) fn pages(misses: &[Miss]) -> Vec<u64> {
        let mut pages: Vec<_> = misses.iter().map(|miss| miss.iova.0 & !(PAGE - 1)).collect();
        pages.sort_unstable();
        pages.dedup();
        pages
    }
}

//! What a queue with a split ring does for good drivers, and to bad ones.

mod hostile;
mod life;
mod moves;
mod threads;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use crate::datapath::{
    Direction, FaultReason, Queue, QueueStats, RingConfig, RingError, RingFault, RxSlot, Sent, TxSlot, BURST,
};
use crate::memory::GuestAddr;
use crate::model::{Buffer, Driver, GuestMemory, Net, Pool};
use crate::virtio::chain::ChainError;
use crate::virtio::desc::{Desc, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use crate::virtio::features::*;
use crate::virtio::ring::LayoutError;

const V1: Features = VIRTIO_F_VERSION_1;
const MERGE: Features = V1.with(VIRTIO_NET_F_MRG_RXBUF);
const INDIRECT: Features = V1.with(VIRTIO_RING_F_INDIRECT_DESC);
const SIZE: u16 = 64;

/// A queue on a model's ring, with a slot pool for what comes out.
struct Rig {
    queue: Queue,
    net: Net,
    pool: Pool,
    wakes: Arc<AtomicU32>,
}

impl Rig {
    fn new(direction: Direction, size: u16, features: Features) -> Self {
        Self::with_room(direction, size, 2048, features)
    }

    fn with_room(direction: Direction, size: u16, room: u32, features: Features) -> Self {
        let net = Net::new(size, room, features);
        let wakes = Arc::new(AtomicU32::new(0));
        let waker = wakes.clone();
        let queue = Queue::new(
            direction,
            Arc::new(move || {
                waker.fetch_add(1, Ordering::Relaxed);
            }),
        );
        queue.set_enabled(true);
        queue.start(net.driver.config(7)).unwrap();
        Self {
            queue,
            net,
            pool: Pool::new(64, 2048),
            wakes,
        }
    }

    fn tx(features: Features) -> Self {
        Self::new(Direction::Dequeue, SIZE, features)
    }

    fn rx(features: Features) -> Self {
        Self::new(Direction::Enqueue, SIZE, features)
    }

    /// One burst out of the guest.
    fn dequeue(&mut self) -> Vec<Vec<u8>> {
        let mut slots = self.pool.slots();
        let count = self.queue.dequeue(&mut slots);
        slots[..count].iter().map(|slot| slot.frame().to_vec()).collect()
    }

    fn enqueue(&self, frames: &[Vec<u8>]) -> Sent {
        let slots: Vec<_> = frames.iter().map(|frame| TxSlot::new(frame)).collect();
        self.queue.enqueue(&slots, 0)
    }

    fn received(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.net.receive()).collect()
    }

    fn stats(&self) -> QueueStats {
        self.queue.counters().read()
    }

    /// Moves what it can in the queue's direction.
    fn burst(&mut self) -> usize {
        self.dequeue().len() + self.enqueue(&[frame(60, 0)]).packets
    }

    fn chain_error(&self) -> Option<ChainError> {
        match self.queue.fault() {
            Some(RingFault {
                vring: 7,
                reason: FaultReason::Chain { error, .. },
            }) => Some(error),
            _ => None,
        }
    }
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from(at % 251).unwrap().wrapping_add(seed) & !1)
        .collect()
}

fn read(addr: GuestAddr, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        write: false,
    }
}

fn write(addr: GuestAddr, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        write: true,
    }
}

fn at(addr: GuestAddr, offset: u64) -> GuestAddr {
    GuestAddr(addr.0 + offset)
}

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc {
        addr,
        len,
        flags,
        next,
    }
}

/// Three regions, the first two neighbours for the guest, mapped apart; a ring in the first.
fn neighbours(direction: Direction, features: Features) -> (Queue, Driver) {
    let (low, high, far) = (GuestAddr(0x10_0000), GuestAddr(0x10_4000), GuestAddr(0x20_0000));
    let regions = [(low, 0x4000), (far, 0x4000), (high, 0x4000)];
    let memory = Arc::new(GuestMemory::with_regions(&regions));
    let driver = Driver::new(memory, low, 16, features);
    let queue = Queue::new(direction, Arc::new(|| {}));
    queue.set_enabled(true);
    queue.start(driver.config(7)).unwrap();
    (queue, driver)
}

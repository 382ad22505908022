//! What a queue with a split ring does for good drivers, and to bad ones.

mod hostile;
mod life;
mod moves;
mod threads;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use crate::datapath::testing::*;
use crate::datapath::{
    Direction, FaultReason, Found, Queue, RingConfig, RingError, RingFault, RxSlot, Sent, TxSlot, BURST,
};
use crate::effort;
use crate::memory::GuestAddr;
use crate::model::{Buffer, Driver, GuestMemory, Net, Pool, Virtqueue};
use crate::virtio::chain::ChainError;
use crate::virtio::desc::{Desc, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use crate::virtio::features::*;
use crate::virtio::ring::LayoutError;

type Rig = crate::datapath::testing::Rig<Driver>;

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
    let queue = Queue::new(direction, Arc::new(|_| {}));
    queue.set_enabled(true);
    queue.start(driver.config(7)).unwrap();
    (queue, driver)
}

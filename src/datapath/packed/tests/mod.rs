//! What a queue with a packed ring does for good drivers, and to bad ones.

mod hostile;
mod life;
mod moves;
mod resume;

use std::sync::atomic::Ordering;
use std::sync::Arc;

use crate::datapath::testing::*;
use crate::datapath::{
    Direction, FaultReason, Found, Queue, RingConfig, RingError, RingFault, RxSlot, Sent, TxSlot, BURST,
};
use crate::effort;
use crate::memory::GuestAddr;
use crate::model::{Buffer, Net, PackedDesc, PackedDriver, Pool, Virtqueue};
use crate::virtio::chain::ChainError;
use crate::virtio::desc::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_WRITE};
use crate::virtio::features::*;
use crate::virtio::packed_ring::{Event, Position, VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED};
use crate::virtio::ring::LayoutError;

type Rig = crate::datapath::testing::Rig<PackedDriver>;

const PACKED: Features = V1.with(VIRTIO_F_RING_PACKED);
const MERGED: Features = PACKED.with(VIRTIO_NET_F_MRG_RXBUF);
const TABLES: Features = PACKED.with(VIRTIO_RING_F_INDIRECT_DESC);

/// Splits `len` bytes at `data` into buffers of these lengths and a last one with the rest.
fn cut(data: GuestAddr, cuts: &[u32], len: u32, write: bool) -> Vec<Buffer> {
    let mut buffers = Vec::new();
    let mut offset = 0;
    for cut in cuts.iter().copied().chain([len - cuts.iter().sum::<u32>()]) {
        buffers.push(Buffer {
            addr: at(data, u64::from(offset)),
            len: cut,
            write,
        });
        offset += cut;
    }
    buffers
}

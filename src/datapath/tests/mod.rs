//! What both ring layouts do alike: a driver that cannot tell them apart is served the same.

mod crash;
mod drain;
mod inflight;
mod laps;
mod same;
mod unsent;
mod waits;

use super::testing::*;
use super::{Direction, Found, Queue, RingConfig};
use crate::effort;
use crate::memory::GuestAddr;
use crate::model::{Buffer, Driver, PackedDriver, Virtqueue, FRONTEND_OFFSET};
use crate::virtio::features::*;

const PACKED: Features = V1.with(VIRTIO_F_RING_PACKED);

/// What a random driver does, the same on every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 40).unwrap() % sides
    }
}

/// `len` bytes at `data` as `pieces` buffers, the first ones of 12 and 7 bytes.
fn pieces(data: GuestAddr, len: u32, pieces: usize, write: bool) -> Vec<Buffer> {
    let cuts = &[12, 7][..pieces - 1];
    let mut buffers = Vec::new();
    let mut offset = 0;
    for len in cuts.iter().copied().chain([len - cuts.iter().sum::<u32>()]) {
        let addr = at(data, u64::from(offset));
        buffers.push(Buffer { addr, len, write });
        offset += len;
    }
    buffers
}

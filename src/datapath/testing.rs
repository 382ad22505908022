//! A queue on a model's ring, for tests of either layout.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};

use super::{Direction, FaultReason, Queue, QueueStats, RingConfig, RingFault, Sent, TxSlot};
use crate::effort;
use crate::memory::GuestAddr;
use crate::model::{Buffer, Driver, Net, Pool, Virtqueue};
use crate::virtio::chain::ChainError;
use crate::virtio::features::*;

pub(super) const V1: Features = VIRTIO_F_VERSION_1;
pub(super) const MERGE: Features = V1.with(VIRTIO_NET_F_MRG_RXBUF);
pub(super) const INDIRECT: Features = V1.with(VIRTIO_RING_F_INDIRECT_DESC);
pub(super) const SIZE: u16 = 64;

/// A queue on a model's ring, with a slot pool for what comes out.
pub(super) struct Rig<D = Driver> {
    pub(super) queue: Queue,
    pub(super) net: Net<D>,
    pub(super) pool: Pool,
    pub(super) wakes: Arc<AtomicU32>,
}

impl<D: Virtqueue> Rig<D> {
    pub(super) fn new(direction: Direction, size: u16, features: Features) -> Self {
        Self::with_room(direction, size, 2048, features)
    }

    pub(super) fn with_room(direction: Direction, size: u16, room: u32, features: Features) -> Self {
        Self::with_config(direction, size, room, features, |config| config)
    }

    /// A ring of which the host has words for offloads.
    pub(super) fn with_offloads(direction: Direction, size: u16, room: u32, features: Features) -> Self {
        Self::with_config(direction, size, room, features, |config| RingConfig {
            offloads: true,
            ..config
        })
    }

    fn with_config(
        direction: Direction,
        size: u16,
        room: u32,
        features: Features,
        change: impl FnOnce(RingConfig) -> RingConfig,
    ) -> Self {
        Self::serving(direction, Net::new(size, room, features), change)
    }

    /// A queue on this ring, in the memory that `change` finds it in.
    pub(super) fn serving(
        direction: Direction,
        net: Net<D>,
        change: impl FnOnce(RingConfig) -> RingConfig,
    ) -> Self {
        let wakes = Arc::new(AtomicU32::new(0));
        let waker = wakes.clone();
        let queue = Queue::new(
            direction,
            Arc::new(move |_| {
                waker.fetch_add(1, Ordering::Relaxed);
            }),
        );
        queue.set_enabled(true);
        queue.start(change(net.driver.config(7))).unwrap();
        Self {
            queue,
            net,
            pool: Pool::new(64, 2048),
            wakes,
        }
    }

    pub(super) fn tx(features: Features) -> Self {
        Self::new(Direction::Dequeue, SIZE, features)
    }

    pub(super) fn rx(features: Features) -> Self {
        Self::new(Direction::Enqueue, SIZE, features)
    }

    /// One burst out of the guest.
    pub(super) fn dequeue(&mut self) -> Vec<Vec<u8>> {
        let mut slots = self.pool.slots();
        let count = self.queue.dequeue(&mut slots);
        slots[..count].iter().map(|slot| slot.frame().to_vec()).collect()
    }

    pub(super) fn enqueue(&self, frames: &[Vec<u8>]) -> Sent {
        let slots: Vec<_> = frames.iter().map(|frame| TxSlot::new(frame)).collect();
        self.queue.enqueue(&slots, 0)
    }

    pub(super) fn received(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.net.receive()).collect()
    }

    pub(super) fn stats(&self) -> QueueStats {
        self.queue.counters().read()
    }

    /// Moves what it can in the queue's direction.
    pub(super) fn burst(&mut self) -> usize {
        self.dequeue().len() + self.enqueue(&[frame(60, 0)]).packets
    }

    pub(super) fn chain_error(&self) -> Option<ChainError> {
        match self.queue.fault() {
            Some(RingFault {
                vring: 7,
                reason: FaultReason::Chain { error, .. },
            }) => Some(error),
            _ => None,
        }
    }
}

/// Lengths of frames: every one up to beyond an ordinary MTU.
pub(super) fn lengths() -> impl Iterator<Item = usize> {
    (1..1600).step_by(effort::of(1, 90))
}

pub(super) fn frame(len: usize, seed: u8) -> Vec<u8> {
    let lap: Vec<_> = (0..251_u8).map(|at| at.wrapping_add(seed) & !1).collect();
    let mut bytes = lap.repeat(len.div_ceil(lap.len()));
    bytes.truncate(len);
    bytes
}

pub(super) fn read(addr: GuestAddr, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        write: false,
    }
}

pub(super) fn write(addr: GuestAddr, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        write: true,
    }
}

pub(super) fn at(addr: GuestAddr, offset: u64) -> GuestAddr {
    GuestAddr(addr.0 + offset)
}

/// A call descriptor that can be read from the other end. Neither blocks.
pub(super) fn socket_pair() -> (UnixStream, UnixStream) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    (ours.into(), theirs.into())
}

/// The config with a call descriptor, and the end of it that counts calls.
pub(super) fn with_call(config: RingConfig) -> (RingConfig, UnixStream) {
    let (ours, theirs) = socket_pair();
    (
        RingConfig {
            call: Some(Arc::new(OwnedFd::from(theirs))),
            ..config
        },
        ours,
    )
}

pub(super) fn calls(stream: &mut UnixStream) -> usize {
    let mut bytes = [0; 1024];
    let read = rustix::io::read(&*stream, &mut bytes).unwrap_or(0);
    assert!(bytes[..read].chunks(8).all(|call| call == 1_u64.to_ne_bytes()));
    read / 8
}

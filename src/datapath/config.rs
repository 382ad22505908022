//! What the control thread says to a queue, and what it hears back.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::dirty::RingLog;
use crate::memory::{FrontendAddr, InflightQueue, MemTable, Miss};
use crate::virtio::chain::ChainError;
use crate::virtio::features::{Features, VIRTIO_F_RING_PACKED};
use crate::virtio::packed_ring::packed_areas;
use crate::virtio::ring::{split_areas, Area, LayoutError, RingAddrs};

/// Which way a queue moves packets, as Open vSwitch sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Out of the guest: its transmitq, vring 2q+1.
    Dequeue,
    /// Into the guest: its receiveq, vring 2q.
    Enqueue,
}

/// All that a ring needs to start, as the front-end said it.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Vring index, for messages.
    pub index: u16,
    /// Entries (SET_VRING_NUM).
    pub size: u16,
    /// Descriptor table (SET_VRING_ADDR).
    pub desc: FrontendAddr,
    /// Avail ring: the driver's area (SET_VRING_ADDR).
    pub driver: FrontendAddr,
    /// Used ring: the device's area (SET_VRING_ADDR).
    pub device: FrontendAddr,
    /// Where the ring stands, as SET_VRING_BASE says it in the ring's layout. Split: the next avail index. Packed: the next
    /// avail position in the lower half and the next used position in the upper, each an index with the wrap counter in
    /// bit 15; the upper half may be left 0.
    pub base: u32,
    /// What driver and device agreed on (SET_FEATURES).
    pub features: Features,
    /// The front-end's memory, kept mapped while the ring runs.
    pub mem: Arc<MemTable>,
    /// The call eventfd, non-blocking; `None` for a driver that polls (SET_VRING_CALL).
    pub call: Option<Arc<OwnedFd>>,
    /// Whether the host takes and gives offload words with its packets. If not, what the virtio-net header says of
    /// offloads is neither read nor written, whatever was negotiated.
    pub offloads: bool,
    /// Where the ring keeps what the back-end after this one must know, if the front-end keeps that (SET_INFLIGHT_FD).
    pub inflight: Option<InflightQueue>,
    /// Where writes to guest memory are logged, while the guest moves.
    pub log: Option<RingLog>,
}

impl RingConfig {
    /// Whether the ring needs code beyond that which moves bytes.
    pub(super) fn has_extras(&self) -> bool {
        self.offloads || self.inflight.is_some() || self.log.is_some()
    }
}

impl RingError {
    /// Whether part of the ring is not mapped: behind an IOMMU, perhaps not yet.
    pub fn is_unmapped(&self) -> bool {
        matches!(self, Self::Layout(LayoutError::Unmapped { .. }))
    }
}

impl RingConfig {
    /// Where the parts of the ring are.
    pub fn areas(&self) -> [Area; 3] {
        let addrs = RingAddrs {
            desc: self.desc,
            driver: self.driver,
            device: self.device,
        };
        match self.features.contains(VIRTIO_F_RING_PACKED) {
            true => packed_areas(self.size, addrs),
            false => split_areas(self.size, addrs),
        }
    }
}

/// Why a ring does not start, in words that leave to the caller which ring it is. The ring that ran before, if any, still
/// runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The addresses and the size are no ring.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// What SET_VRING_BASE said is no position in a ring of this layout and size.
    #[error("base {base:#x} is no position in a ring of {size}")]
    Base {
        /// What SET_VRING_BASE said.
        base: u32,
        /// Entries in the ring.
        size: u16,
    },
    /// avail.idx is further ahead than the ring is long.
    #[error("avail index {avail} is more than {size} ahead of {next}")]
    AvailJump {
        /// avail.idx in guest memory.
        avail: u16,
        /// The index to go on from.
        next: u16,
        /// Entries in the ring.
        size: u16,
    },
    /// Behind an IOMMU: what the back-end before was giving back cannot be while this is missing.
    #[error("no translation of {:#x}, where a chain goes on that was being given back", .0.iova.0)]
    InFlight(
        /// What to ask for.
        Miss,
    ),
}

/// What was found in a ring that another back-end had served, and put right. No harm is done, but an operator who wonders
/// about frames that came twice or never wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Found {
    /// SET_VRING_BASE said one place and the ring another.
    #[error("base {base:#x} is not where the ring stands: going on from {next:#x}")]
    Elsewhere {
        /// What SET_VRING_BASE said.
        base: u32,
        /// Where the ring stands.
        next: u16,
    },
    /// Buffers that the back-end before had taken when it died.
    #[error("gives back {0} buffers that another back-end left in flight")]
    InFlight(usize),
    /// Buffers that the back-end before had taken out of order, and that the base passes over.
    #[error("gives back {0} buffers that the front-end passed over")]
    PassedOver(usize),
}

/// What a driver did to break its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultReason {
    /// avail.idx ran further ahead than the ring is long, or went back.
    #[error("avail index {avail} is more than {size} ahead of {next}")]
    AvailJump {
        /// avail.idx in guest memory.
        avail: u16,
        /// The next avail index to take.
        next: u16,
        /// Entries in the ring.
        size: u16,
    },
    /// A chain breaks a rule.
    #[error("chain at head {head} (avail index {avail}): {error}")]
    Chain {
        /// The avail index that the chain was found at; in a packed ring its position, with the wrap counter in bit 15.
        avail: u16,
        /// Its first descriptor.
        head: u16,
        /// The rule.
        error: ChainError,
    },
}

/// Why a ring moves nothing any more, until it is started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFault {
    /// Vring index.
    pub vring: u16,
    /// What the driver did.
    pub reason: FaultReason,
}

/// Where a started ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingStatus {
    /// Entries.
    pub size: u16,
    /// The next avail index to take; in a packed ring with the wrap counter in bit 15.
    pub avail: u16,
    /// The used index as last published, likewise.
    pub used: u16,
}

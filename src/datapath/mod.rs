//! A queue that poll threads burst through while the control thread swaps rings under it.
//!
//! [`Queue`] is what a port keeps per vring; it guards a ring with a `gate`. A ring is one implementor of
//! `ring::Ring`, compiled once per feature set (`set`): `split` or `packed`. What they have in common is in `frame`,
//! which moves frames between slots and chains, `ahead`, which looks chains up before they are used, and `miss`, for
//! chains that an IOMMU hides. `offload` knows what is left to be done to a frame.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod ahead;
mod call;
mod config;
mod counters;
mod dirty;
mod frame;
mod gate;
mod histogram;
mod miss;
mod offload;
mod packed;
mod queue;
mod rarp;
mod ring;
mod set;
mod slot;
mod split;
mod stall;
mod unsent;

pub use config::{Direction, FaultReason, Found, RingConfig, RingError, RingFault, RingStatus};
pub use counters::{Counters, QueueStats, SIZE_BIN_NAMES};
pub use dirty::RingLog;
pub use histogram::{Distribution, Histogram};
pub use queue::{Queue, Sent, Wake, Waker};
pub use ring::BURST;
pub use slot::{RxSlot, TxSlot, MAX_FRAME};
pub use stall::{StallStats, Stalls};
pub use unsent::Unsent;

pub use crate::virtio::net_hdr::Offload;

#[cfg(all(test, not(loom)))]
mod testing;
#[cfg(all(test, not(loom)))]
mod tests;

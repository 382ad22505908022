//! A queue that poll threads burst through while the control thread swaps rings under it.
//!
//! [`Queue`] is what a port keeps per vring; it guards a ring with a `gate`. A ring is one implementor of
//! `ring::Ring`, compiled once per feature set: `split` here, and other layouts beside it.

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

mod call;
mod config;
mod counters;
mod gate;
mod queue;
mod rarp;
mod ring;
mod slot;
mod split;

pub use config::{Direction, FaultReason, RingConfig, RingError, RingFault, RingStatus};
pub use counters::{Counters, QueueStats, SIZE_BIN_NAMES};
pub use queue::{Queue, Sent, Waker};
pub use ring::BURST;
pub use slot::{RxSlot, TxSlot};

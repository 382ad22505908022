//! The virtqueue, device side (VIRTIO 1.2, section 2). No I/O, no threads.
//!
//! [`ring`] is the memory of a split ring, [`packed_ring`] that of a packed one, [`chain`] walks one buffer's descriptors, [`notify`] decides
//! whether the driver wants a call, [`net_hdr`] is what precedes each frame. [`sight`] is for people who look for a fault.

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

// Ring fields are little-endian since VIRTIO 1.0 and in the guest's own order before; we serve guests of our own order.
#[cfg(target_endian = "big")]
compile_error!("vrings are read as little-endian words");

pub mod chain;
pub mod desc;
pub mod features;
pub mod net_hdr;
pub mod notify;
pub mod packed_ring;
pub mod ring;
pub mod sight;

//! What the models of both ring layouts do for a network driver.

use std::sync::Arc;

use super::memory::{GuestMemory, FRONTEND_OFFSET};
use crate::datapath::RingConfig;
use crate::memory::{FrontendAddr, GuestAddr};
use crate::virtio::desc::UsedElem;
use crate::virtio::features::Features;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its guest address.
    pub addr: GuestAddr,
    /// Its bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub write: bool,
}

/// A driver's end of one ring.
pub trait Virtqueue {
    /// A ring of `size` entries at `at`, which must be aligned to 16, in fresh, zeroed memory.
    fn new(memory: Arc<GuestMemory>, at: GuestAddr, size: u16, features: Features) -> Self;

    /// Bytes that a ring of `size` takes from its address on.
    fn ring_bytes(size: u16) -> u64;

    /// The ring as a front-end would describe it when it is new, without call eventfd.
    fn config(&self, index: u16) -> RingConfig;

    /// The memory the ring is in.
    fn memory(&self) -> &GuestMemory;

    /// What driver and device agreed on.
    fn features(&self) -> Features;

    /// What the used entry of the next chain will say: its head or id, less than the ring's size. `None` if the ring is full.
    fn next_id(&self) -> Option<u16>;

    /// Makes a chain of these buffers available, once published. `None` if there are too few descriptors.
    fn add(&mut self, buffers: &[Buffer]) -> Option<u16>;

    /// Makes a chain of these buffers available by way of an indirect table at `table`, once published.
    fn add_indirect(&mut self, table: GuestAddr, buffers: &[Buffer]) -> Option<u16>;

    /// Lets the device see the chains added.
    fn publish(&mut self);

    /// Takes back the next chain that the device has used.
    fn reap(&mut self) -> Option<UsedElem>;
}

/// A ring of `size` whose descriptors, driver's and device's areas lie at `areas`, as a front-end would describe it.
pub(super) fn describe(
    memory: &GuestMemory,
    features: Features,
    size: u16,
    areas: [GuestAddr; 3],
) -> RingConfig {
    let [desc, driver, device] = areas.map(|addr| FrontendAddr(addr.0 + FRONTEND_OFFSET));
    RingConfig {
        index: 0,
        size,
        desc,
        driver,
        device,
        base: 0,
        features,
        mem: memory.table(),
        call: None,
        offloads: false,
        inflight: None,
        log: None,
    }
}

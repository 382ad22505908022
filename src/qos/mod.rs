//! How much a port may carry: ingress policing and egress QoS, as numbers alone.
//!
//! Pure: time comes in as nanoseconds of one clock that does not go backwards, packets as lengths. Who holds these and
//! when is the port's affair. Bottom up:
//!
//! * `bucket`: a token bucket, exact for any rate and any burst.
//! * `meter`: the meters of RFC 2697 and RFC 4115, which are made of buckets.
//! * `ingress`: what a guest may send, `Interface.ingress_policing_*`.
//! * `trtcm`: a port's meter behind those of its queues.
//! * `egress`: what it is sent, a row of the table `QoS`, of either type.
//!
//! A length that is metered is that of the packet without its Ethernet header, as on stock ports.

mod bucket;
mod egress;
mod ingress;
mod meter;
#[cfg(test)]
mod testing;
mod trtcm;

pub use egress::{Details, Egress, Refusal, Settings, TYPES};
pub use ingress::{Ingress, Limits};
pub use trtcm::QueueCounts;

const ETHERNET_HEADER: u32 = 14;

/// Bytes of a packet of `len` bytes that count.
fn metered(len: u32) -> u64 {
    u64::from(len.saturating_sub(ETHERNET_HEADER))
}

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
//! * `outbound`: that, behind a limit on packets.
//!
//! A length that is metered is that of the packet without its Ethernet header, as on stock ports.

mod bucket;
mod egress;
mod ingress;
mod meter;
mod outbound;
#[cfg(test)]
mod testing;
mod trtcm;

pub use egress::{Details, Egress, Refusal, Settings, TYPES};
pub use ingress::{Ingress, Limits};
pub use outbound::Outbound;
pub use trtcm::QueueCounts;

/// A limit on packets in Open vSwitch's unit, which is a thousand of them. A rate of 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KiloPackets {
    /// In each second.
    pub rate: u32,
    /// At once; 0: 16.
    pub burst: u32,
}

impl KiloPackets {
    /// Rate and burst in packets.
    fn packets(self) -> (u64, u64) {
        let burst = if self.burst == 0 { 16 } else { self.burst };
        (u64::from(self.rate) * 1000, u64::from(burst) * 1000)
    }
}

const ETHERNET_HEADER: u32 = 14;

/// Bytes of a packet of `len` bytes that count.
fn metered(len: u32) -> u64 {
    u64::from(len.saturating_sub(ETHERNET_HEADER))
}

//! What is left to be done to a frame, on its way between a driver and the host.
//!
//! `receive` judges what a driver says of the frames it sends; `send` gives a driver each frame in a form that it
//! negotiated, doing itself what the driver would not. Both stand on `headers`, `checksum` and `segment`, which know
//! nothing of rings: bytes in, bytes out.

mod checksum;
mod headers;
mod receive;
mod segment;
mod send;

use super::config::RingConfig;
use crate::virtio::features::{
    Features, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
};
use headers::Ip;

/// What a ring knows of offloads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offloads {
    /// Whether the host has words for them.
    on: bool,
    /// What the driver may leave to us.
    from_driver: Forms,
    /// What we may leave to the driver.
    to_driver: Forms,
}

/// The forms that one side takes frames in, beside the one that goes on the wire.
#[derive(Clone, Copy, Debug)]
struct Forms {
    checksum: bool,
    tcp4: bool,
    tcp6: bool,
    ecn: bool,
}

impl Offloads {
    pub(super) fn new(config: &RingConfig) -> Self {
        let forms = |bits: [Features; 4]| {
            let [checksum, tcp4, tcp6, ecn] = bits.map(|bit| config.features.contains(bit));
            // No segments without checksums (5.1.3.1), whatever a driver acknowledged.
            Forms {
                checksum,
                tcp4: checksum && tcp4,
                tcp6: checksum && tcp6,
                ecn,
            }
        };
        Self {
            on: config.offloads,
            from_driver: forms([
                VIRTIO_NET_F_CSUM,
                VIRTIO_NET_F_HOST_TSO4,
                VIRTIO_NET_F_HOST_TSO6,
                VIRTIO_NET_F_HOST_ECN,
            ]),
            to_driver: forms([
                VIRTIO_NET_F_GUEST_CSUM,
                VIRTIO_NET_F_GUEST_TSO4,
                VIRTIO_NET_F_GUEST_TSO6,
                VIRTIO_NET_F_GUEST_ECN,
            ]),
        }
    }
}

impl Forms {
    /// Whether segments of TCP over `ip` may be left to be cut, `ecn` if the CWR flag is set.
    fn take_segments(self, ip: Ip, ecn: bool) -> bool {
        let tcp = match ip {
            Ip::V4 => self.tcp4,
            Ip::V6 => self.tcp6,
        };
        tcp && (self.ecn || !ecn)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

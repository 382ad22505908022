//! `struct virtio_net_hdr` (VIRTIO 1.2, 5.1.6): what stands before each frame.

use super::features::{Features, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF};

/// Header bytes of a legacy driver that did not negotiate mergeable buffers: no `num_buffers`.
pub const SHORT: u32 = 10;
/// Header bytes of every other driver.
pub const LONG: u32 = 12;

/// The short header of a frame that asks nothing of the driver, and so much of the long one as comes before `num_buffers`.
pub const PLAIN_SHORT: [u8; SHORT as usize] = [0; SHORT as usize];
/// `num_buffers` of a frame that lies in one buffer.
pub const NUM_BUFFERS: [u8; 2] = 1_u16.to_le_bytes();
/// The long header of a frame that asks nothing of the driver and lies in one buffer.
pub const PLAIN: [u8; LONG as usize] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NUM_BUFFERS[0], NUM_BUFFERS[1]];

/// Whether drivers with these features use the long header.
pub fn is_long(features: Features) -> bool {
    features.contains(VIRTIO_F_VERSION_1) || features.contains(VIRTIO_NET_F_MRG_RXBUF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_legacy_drivers_without_mergeable_buffers_use_the_short_header() {
        assert!(!is_long(Features::NONE));
        assert!(is_long(VIRTIO_F_VERSION_1));
        assert!(is_long(VIRTIO_NET_F_MRG_RXBUF));
    }
}

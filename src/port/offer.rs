//! What a port offers its front-end: what is implemented and the operator allows, and nothing else.
//!
//! A front-end may acknowledge by mask alone, so an offered bit is a promise.

use crate::vhost_user::ProtocolFeatures;
use crate::virtio::features::{self, Features};

/// What the operator switches on for every port (`other_config`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// `userspace-tso-enable`.
    pub tso: bool,
    /// `vhost-iommu-support`.
    pub iommu: bool,
    /// `vhost-postcopy-support`.
    pub postcopy: bool,
}

/// VIRTIO and vhost feature bits that every port has.
const ALWAYS: Features = features::VIRTIO_NET_F_MTU
    .with(features::VIRTIO_NET_F_MRG_RXBUF)
    .with(features::VIRTIO_NET_F_CTRL_VQ)
    .with(features::VIRTIO_NET_F_CTRL_RX)
    .with(features::VIRTIO_NET_F_GUEST_ANNOUNCE)
    .with(features::VIRTIO_NET_F_MQ)
    .with(features::VIRTIO_F_ANY_LAYOUT)
    .with(features::VIRTIO_RING_F_INDIRECT_DESC)
    .with(features::VIRTIO_RING_F_EVENT_IDX)
    .with(features::VHOST_USER_F_PROTOCOL_FEATURES)
    .with(features::VIRTIO_F_VERSION_1)
    .with(features::VIRTIO_F_RING_PACKED)
    // Every ring gives its buffers back in the order it took them, negotiated or not.
    .with(features::VIRTIO_F_IN_ORDER)
    // A queue is reset as a vring is stopped (GET_VRING_BASE), set up and kicked, which concerns no other.
    .with(features::VIRTIO_F_RING_RESET);

/// The feature bits of a port (GET_FEATURES).
pub fn features(_switches: Switches) -> Features {
    ALWAYS
}

/// The protocol feature bits of a port (GET_PROTOCOL_FEATURES); `mtu` if the operator asked for one.
///
/// Without one there is nothing in the configuration space that a front-end does not know, and QEMU, whose network devices
/// keep a space of their own, warns at each connection of a back-end that offers one.
pub fn protocol_features(_switches: Switches, mtu: bool) -> ProtocolFeatures {
    let all = ProtocolFeatures::SUPPORTED;
    match mtu {
        true => all,
        false => ProtocolFeatures(all.0 & !ProtocolFeatures::CONFIG.0),
    }
}

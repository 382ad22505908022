//! What a port offers its front-end: what is implemented and the operator allows, and nothing else.
//!
//! A front-end may acknowledge by mask alone, so an offered bit is a promise.

use super::options::Mode;
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
    .with(features::VIRTIO_F_IN_ORDER);

/// The feature bits of a port (GET_FEATURES).
pub(super) fn features(switches: Switches, mode: Mode) -> Features {
    // As the stock ports: a switch for client ports alone.
    match switches.iommu && mode == Mode::Client {
        true => ALWAYS.with(features::VIRTIO_F_ACCESS_PLATFORM),
        false => ALWAYS,
    }
}

/// The protocol feature bits of a port (GET_PROTOCOL_FEATURES).
pub(super) fn protocol_features(_switches: Switches) -> ProtocolFeatures {
    ProtocolFeatures::SUPPORTED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_iommu_is_offered_to_front_ends_of_client_ports_and_only_when_the_operator_says_so() {
        let offered = |iommu, mode| {
            let switches = Switches {
                iommu,
                ..Switches::default()
            };
            features(switches, mode).contains(features::VIRTIO_F_ACCESS_PLATFORM)
        };
        assert!(offered(true, Mode::Client));
        assert!(!offered(true, Mode::Server) && !offered(false, Mode::Client));
    }
}

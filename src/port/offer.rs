//! What a port offers its front-end: what is implemented and the operator allows, and nothing else.
//!
//! A front-end may acknowledge by mask alone, so an offered bit is a promise.

use std::fmt;

use crate::vhost_user::ProtocolFeatures;
use crate::virtio::features::{self, Features};

use super::options::{Mode, Options};

/// What the operator switches on, for every port (`other_config`) or for one (`options`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// `userspace-tso-enable`, `vhost-tso`.
    pub tso: bool,
    /// `vhost-iommu-support`, `vhost-iommu`.
    pub iommu: bool,
    /// `vhost-postcopy-support`, `vhost-postcopy`.
    pub postcopy: bool,
}

/// VIRTIO and vhost feature bits that every port has.
const ALWAYS: Features = features::VIRTIO_NET_F_GUEST_CSUM
    .with(features::VIRTIO_NET_F_MTU)
    .with(features::VIRTIO_NET_F_GSO)
    .with(features::VIRTIO_NET_F_GUEST_TSO4)
    .with(features::VIRTIO_NET_F_GUEST_TSO6)
    .with(features::VIRTIO_NET_F_GUEST_ECN)
    // No datagram ever comes to be fragmented: the guest may take such, or not.
    .with(features::VIRTIO_NET_F_GUEST_UFO)
    .with(features::VIRTIO_NET_F_MRG_RXBUF)
    .with(features::VIRTIO_NET_F_CTRL_VQ)
    .with(features::VIRTIO_NET_F_CTRL_RX)
    .with(features::VIRTIO_NET_F_GUEST_ANNOUNCE)
    .with(features::VIRTIO_NET_F_MQ)
    .with(features::VHOST_F_LOG_ALL)
    .with(features::VIRTIO_F_ANY_LAYOUT)
    .with(features::VIRTIO_RING_F_INDIRECT_DESC)
    .with(features::VIRTIO_RING_F_EVENT_IDX)
    .with(features::VHOST_USER_F_PROTOCOL_FEATURES)
    .with(features::VIRTIO_F_VERSION_1)
    .with(features::VIRTIO_F_RING_PACKED)
    // Every ring gives its buffers back in the order it took them, negotiated or not.
    .with(features::VIRTIO_F_IN_ORDER);

/// What a guest may leave to us, where Open vSwitch has words for it.
const WITH_OFFLOADS: Features = features::VIRTIO_NET_F_CSUM
    .with(features::VIRTIO_NET_F_HOST_TSO4)
    .with(features::VIRTIO_NET_F_HOST_TSO6);

/// Stock ports offer this bit where it means nothing, as no segments are taken, and do not where it would: so a guest
/// that comes from one may have acknowledged it.
const WITHOUT_OFFLOADS: Features = features::VIRTIO_NET_F_HOST_ECN;

/// Whether the guest of a port may leave work to us, and we to it. Open vSwitch gives server ports packets only as they go
/// on the wire, whatever the operator says.
pub(super) fn offloads(mode: Mode, switches: Switches) -> bool {
    switches.tso && mode == Mode::Client
}

/// The feature bits of a port (GET_FEATURES).
pub fn features(mode: Mode, switches: Switches) -> Features {
    let offered = match offloads(mode, switches) {
        true => ALWAYS.with(WITH_OFFLOADS),
        false => ALWAYS.with(WITHOUT_OFFLOADS),
    };
    // As the stock ports: a switch for client ports alone.
    match switches.iommu && mode == Mode::Client {
        true => offered.with(features::VIRTIO_F_ACCESS_PLATFORM),
        false => offered,
    }
}

/// The protocol feature bits of a port (GET_PROTOCOL_FEATURES); `mtu` if the operator asked for one.
pub fn protocol_features(mode: Mode, switches: Switches, mtu: bool) -> ProtocolFeatures {
    let mut offer = ProtocolFeatures::SUPPORTED;
    // Without an MTU there is nothing in the configuration space that a front-end does not know, and QEMU, whose network
    // devices keep a space of their own, warns at each connection of a back-end that offers one.
    if !mtu {
        offer = offer.without(ProtocolFeatures::CONFIG);
    }
    // Poll threads may have to wait for a guest's memory then: the operator decides. Client ports only, as stock.
    if !switches.postcopy || mode != Mode::Client {
        offer = offer.without(ProtocolFeatures::PAGEFAULT);
    }
    offer
}

/// What a connection is offered, settled when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortOffer {
    pub(super) features: Features,
    pub(super) protocol: ProtocolFeatures,
    /// What the port would offer, were it not for `options`.
    pub(super) kept_back: KeptBack,
    /// Whether the guest may leave work to us, and we to it.
    pub(super) offloads: bool,
}

/// Features that an operator keeps back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeptBack {
    pub(super) features: Features,
    pub(super) protocol: ProtocolFeatures,
}

impl KeptBack {
    /// The names of them all.
    pub(super) fn names(self) -> Vec<String> {
        let protocol = match self.protocol {
            ProtocolFeatures(0) => String::new(),
            some => some.to_string(),
        };
        let names = [self.features.names(), protocol];
        names
            .iter()
            .flat_map(|names| names.split('|'))
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    }
}

impl fmt::Display for KeptBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(", "))
    }
}

impl PortOffer {
    pub(super) fn new(mode: Mode, options: &Options, mtu: bool) -> PortOffer {
        let all = features(mode, options.switches);
        let all_protocol = protocol_features(mode, options.switches, mtu);
        let (features, protocol) = options.pins.apply(all, all_protocol);
        PortOffer {
            features,
            protocol,
            kept_back: KeptBack {
                features: all.without(features),
                protocol: all_protocol.without(protocol),
            },
            offloads: offloads(mode, options.switches),
        }
    }

    /// What the rings go by, of what the driver acknowledged. Where Open vSwitch speaks of offloads and the port may not,
    /// whatever the guest says it could take counts for nothing: it gets frames as they go on the wire.
    pub(super) fn in_force(&self, acknowledged: Features) -> Features {
        const WORDS: Features = WITH_OFFLOADS
            .with(features::VIRTIO_NET_F_GUEST_CSUM)
            .with(features::VIRTIO_NET_F_GUEST_TSO4)
            .with(features::VIRTIO_NET_F_GUEST_TSO6)
            .with(features::VIRTIO_NET_F_GUEST_ECN);
        match self.offloads {
            true => acknowledged,
            false => acknowledged.without(WORDS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offer_is_that_of_stock_ports() {
        let (on, off) = (
            Switches {
                tso: true,
                ..Switches::default()
            },
            Switches::default(),
        );
        let rows = [
            (Mode::Client, off, 0xd_7c66_a7ca),
            (Mode::Server, off, 0xd_7c66_a7ca),
            (Mode::Client, on, 0xd_7c66_9fcb),
            (Mode::Server, on, 0xd_7c66_a7ca),
        ];
        for (mode, switches, stock) in rows {
            let offered = features(mode, switches);
            // Not one bit more: a guest that acknowledged it could not go back to a stock port while it runs.
            assert_eq!(offered, Features(stock), "{mode:?} {switches:?}");
        }
    }

    #[test]
    fn a_port_without_offloads_beside_ports_with_them_goes_by_none_that_its_guest_took() {
        let offer = |tso| {
            let switches = Switches {
                tso,
                ..Switches::default()
            };
            let options = Options {
                switches,
                ..Options::default()
            };
            PortOffer::new(Mode::Client, &options, false)
        };
        let (with, without) = (offer(true), offer(false));
        assert_eq!(with.in_force(with.features), with.features);
        assert!(!without.features.contains(features::VIRTIO_NET_F_HOST_TSO4));
        let gone = without.features.without(without.in_force(without.features));
        assert_eq!(
            gone.names(),
            "VIRTIO_NET_F_GUEST_CSUM|VIRTIO_NET_F_GUEST_TSO4|VIRTIO_NET_F_GUEST_TSO6|VIRTIO_NET_F_GUEST_ECN"
        );
    }

    #[test]
    fn an_iommu_is_offered_to_front_ends_of_client_ports_and_only_when_the_operator_says_so() {
        let offered = |iommu, mode| {
            let switches = Switches {
                iommu,
                ..Switches::default()
            };
            features(mode, switches).contains(features::VIRTIO_F_ACCESS_PLATFORM)
        };
        assert!(offered(true, Mode::Client));
        assert!(!offered(true, Mode::Server) && !offered(false, Mode::Client));
    }
}

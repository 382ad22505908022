//! Features that an operator keeps back, from one port: what it offers at most.
//!
//! A guest that must be able to go back to an older switch, or whose driver trips over a feature, is offered less. What
//! depends on a feature goes with it; the two that nothing works without stay.

use crate::vhost_user::ProtocolFeatures;
use crate::virtio::features::{self as f, Features};

/// The most that a port offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pins {
    features: Features,
    protocol: ProtocolFeatures,
}

impl Default for Pins {
    /// Whatever there is.
    fn default() -> Pins {
        Pins {
            features: Features(u64::MAX),
            protocol: ProtocolFeatures(u64::MAX),
        }
    }
}

/// What other switches offer, on any of their settings, by name.
const PROFILES: &[(&str, Pins)] = &[(
    // Open vSwitch 3.1 with DPDK 22.11, as it was seen to.
    "ovs-3.1",
    Pins {
        features: Features(0xf_7c66_bfcb),
        protocol: ProtocolFeatures(0x1_0dbf),
    },
)];

/// What is never kept back, and why.
const ALWAYS: &[(Features, &str)] = &[
    (f::VIRTIO_F_VERSION_1, "no modern driver starts without it"),
    (
        f::VHOST_USER_F_PROTOCOL_FEATURES,
        "without it front-end and port can agree on nothing else",
    ),
];

/// Features, and those of which each needs one (VIRTIO 1.2, 5.1.3.1). None stands before one that it needs. HOST_ECN has
/// no line: stock ports offer it where it means nothing, and guests have acknowledged it.
const NEEDS: &[(Features, Features)] = &[
    (f::VIRTIO_NET_F_GUEST_TSO4, f::VIRTIO_NET_F_GUEST_CSUM),
    (f::VIRTIO_NET_F_GUEST_TSO6, f::VIRTIO_NET_F_GUEST_CSUM),
    (f::VIRTIO_NET_F_GUEST_UFO, f::VIRTIO_NET_F_GUEST_CSUM),
    (
        f::VIRTIO_NET_F_GUEST_ECN,
        f::VIRTIO_NET_F_GUEST_TSO4.with(f::VIRTIO_NET_F_GUEST_TSO6),
    ),
    (f::VIRTIO_NET_F_HOST_TSO4, f::VIRTIO_NET_F_CSUM),
    (f::VIRTIO_NET_F_HOST_TSO6, f::VIRTIO_NET_F_CSUM),
    (f::VIRTIO_NET_F_CTRL_RX, f::VIRTIO_NET_F_CTRL_VQ),
    (f::VIRTIO_NET_F_GUEST_ANNOUNCE, f::VIRTIO_NET_F_CTRL_VQ),
    (f::VIRTIO_NET_F_MQ, f::VIRTIO_NET_F_CTRL_VQ),
];

/// An IOMMU's translations are asked for on the back-end channel, and QEMU starts no guest with one without these.
const FOR_IOMMU: ProtocolFeatures = ProtocolFeatures::BACKEND_REQ.with(ProtocolFeatures::REPLY_ACK);

impl Pins {
    /// Offers no more than a profile or a mask names.
    pub(super) fn limit(&mut self, text: &str) -> Result<(), String> {
        if let Some((_, profile)) = PROFILES.iter().find(|(name, _)| *name == text) {
            self.features = self.features & profile.features;
            self.protocol = self.protocol & profile.protocol;
            return Ok(());
        }
        let Some(Ok(mask)) = text
            .strip_prefix("0x")
            .map(|digits| u64::from_str_radix(digits, 16))
        else {
            let profiles: Vec<&str> = PROFILES.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "is neither a profile ({}) nor a mask like 0x140008000; nothing is kept back for it",
                profiles.join(", ")
            ));
        };
        self.keep_back(Features(!mask))
    }

    /// Does not offer the features of a list with commas.
    pub(super) fn disable(&mut self, text: &str) -> Result<(), String> {
        let mut wrong = Vec::new();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if let Some(protocol) = ProtocolFeatures::named(name) {
                self.protocol = self.protocol.without(protocol);
            } else if let Some(feature) = Features::named(name) {
                wrong.extend(self.keep_back(feature).err());
            } else {
                wrong.push(format!(
                    "names '{name}', which is no feature: see vhost-user/show"
                ));
            }
        }
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(wrong.join(", and ")),
        }
    }

    fn keep_back(&mut self, unwanted: Features) -> Result<(), String> {
        let mut wrong = Vec::new();
        let mut offered = self.features.without(unwanted);
        for (feature, reason) in ALWAYS.iter().filter(|(feature, _)| unwanted.contains(*feature)) {
            offered = offered.with(*feature);
            wrong.push(format!(
                "would switch off {}, which stays: {reason}",
                feature.names()
            ));
        }
        self.features = offered;
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(wrong.join(", and ")),
        }
    }

    /// What is left of an offer.
    pub(super) fn apply(
        &self,
        features: Features,
        protocol: ProtocolFeatures,
    ) -> (Features, ProtocolFeatures) {
        let mut protocol = protocol & self.protocol;
        if !protocol.contains(ProtocolFeatures::BACKEND_REQ) {
            protocol = protocol.without(ProtocolFeatures::BACKEND_SEND_FD);
        }
        let mut left = features & self.features;
        for (feature, needed) in NEEDS {
            if left & *needed == Features::NONE {
                left = left.without(*feature);
            }
        }
        if !protocol.contains(FOR_IOMMU) {
            left = left.without(f::VIRTIO_F_ACCESS_PLATFORM);
        }
        (left, protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::offer;
    use crate::port::{Mode, Switches};

    const EVERYTHING: Switches = Switches {
        tso: true,
        iommu: true,
        postcopy: true,
    };

    fn left(pins: Pins) -> (Features, ProtocolFeatures) {
        let mode = Mode::Client;
        pins.apply(
            offer::features(mode, EVERYTHING),
            offer::protocol_features(mode, EVERYTHING, true),
        )
    }

    /// What `vhost-disable-features` leaves, and what is said of it.
    fn disabled(text: &str) -> (Features, ProtocolFeatures, Result<(), String>) {
        let mut pins = Pins::default();
        let result = pins.disable(text);
        let (features, protocol) = left(pins);
        (features, protocol, result)
    }

    #[test]
    fn without_pins_everything_is_offered() {
        let (features, protocol) = left(Pins::default());
        assert_eq!(features, offer::features(Mode::Client, EVERYTHING));
        assert_eq!(protocol, ProtocolFeatures::SUPPORTED);
    }

    #[test]
    fn a_profile_and_a_mask_are_upper_bounds() {
        let mut pins = Pins::default();
        pins.limit("ovs-3.1").unwrap();
        // Of its protocol features two are not ours: CRYPTO_SESSION and HOST_NOTIFIER.
        assert_eq!(left(pins).1, ProtocolFeatures(0x1_0dbf & !(1 << 7 | 1 << 11)));
        assert_eq!(
            left(pins).0,
            offer::features(Mode::Client, EVERYTHING),
            "the offer is stock's"
        );

        let mut pins = Pins::default();
        let mask = f::VIRTIO_F_VERSION_1 | f::VHOST_USER_F_PROTOCOL_FEATURES | f::VIRTIO_NET_F_MRG_RXBUF;
        pins.limit(&format!("{mask}")).unwrap();
        assert_eq!(left(pins).0, mask);
        pins.disable("VIRTIO_NET_F_MRG_RXBUF").unwrap();
        assert_eq!(left(pins).0, mask.without(f::VIRTIO_NET_F_MRG_RXBUF), "both hold");
    }

    #[test]
    fn what_is_no_profile_and_no_mask_keeps_nothing_back_and_is_told_what_there_is() {
        for bad in ["", "ovs-2.5", "140008000", "0x", "0xg", "0x10000000000000000"] {
            let mut pins = Pins::default();
            let complaint = pins.limit(bad).unwrap_err();
            assert!(
                complaint.contains("(ovs-3.1)") && complaint.contains("0x"),
                "{complaint}"
            );
            assert_eq!(pins, Pins::default());
        }
    }

    #[test]
    fn names_are_those_of_the_specifications_and_the_unknown_are_named() {
        let (features, protocol, result) =
            disabled("VIRTIO_F_RING_PACKED, INFLIGHT_SHMFD,nonsense,VIRTIO_F_IN_ORDER");
        assert!(!features.contains(f::VIRTIO_F_RING_PACKED) && !features.contains(f::VIRTIO_F_IN_ORDER));
        assert!(!protocol.contains(ProtocolFeatures::INFLIGHT_SHMFD));
        assert!(result.unwrap_err().starts_with("names 'nonsense'"));
    }

    #[test]
    fn what_nothing_works_without_stays_and_the_reason_is_given() {
        let (features, _, result) = disabled("VIRTIO_F_VERSION_1,VIRTIO_F_IN_ORDER");
        assert!(features.contains(f::VIRTIO_F_VERSION_1) && !features.contains(f::VIRTIO_F_IN_ORDER));
        assert!(result.unwrap_err().contains("no modern driver starts without it"));
        let mut pins = Pins::default();
        let complaint = pins.limit("0x100000000").unwrap_err();
        assert!(
            complaint.contains("VHOST_USER_F_PROTOCOL_FEATURES"),
            "{complaint}"
        );
        assert_eq!(
            left(pins).0,
            f::VIRTIO_F_VERSION_1 | f::VHOST_USER_F_PROTOCOL_FEATURES
        );
    }

    #[test]
    fn what_depends_on_a_feature_goes_with_it() {
        let gone = |text: &str| offer::features(Mode::Client, EVERYTHING).without(disabled(text).0);
        assert_eq!(
            gone("VIRTIO_NET_F_GUEST_CSUM").names(),
            "VIRTIO_NET_F_GUEST_CSUM|VIRTIO_NET_F_GUEST_TSO4|VIRTIO_NET_F_GUEST_TSO6|VIRTIO_NET_F_GUEST_ECN|VIRTIO_NET_F_GUEST_UFO"
        );
        assert_eq!(gone("VIRTIO_NET_F_GUEST_TSO4").names(), "VIRTIO_NET_F_GUEST_TSO4");
        assert_eq!(
            gone("VIRTIO_NET_F_CSUM").names(),
            "VIRTIO_NET_F_CSUM|VIRTIO_NET_F_HOST_TSO4|VIRTIO_NET_F_HOST_TSO6"
        );
        assert_eq!(
            gone("VIRTIO_NET_F_CTRL_VQ").names(),
            "VIRTIO_NET_F_CTRL_VQ|VIRTIO_NET_F_CTRL_RX|VIRTIO_NET_F_GUEST_ANNOUNCE|VIRTIO_NET_F_MQ"
        );
        assert_eq!(gone("REPLY_ACK").names(), "VIRTIO_F_ACCESS_PLATFORM");
        let (_, protocol, _) = disabled("BACKEND_REQ");
        assert!(!protocol.contains(ProtocolFeatures::BACKEND_SEND_FD));
    }
}

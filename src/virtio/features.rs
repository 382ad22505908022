//! Feature bits, by the specifications' names.
//!
//! VIRTIO 1.2: network device 5.1.3, rings and transport 6. vhost-user: "Feature bits".

use std::fmt;
use std::ops::{BitAnd, BitOr};

/// A set of feature bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// No feature.
    pub const NONE: Self = Self(0);

    /// The set of one bit.
    pub const fn bit(number: u32) -> Self {
        Self(1 << number)
    }

    /// The bit that the specifications call `name`.
    pub fn named(name: &str) -> Option<Self> {
        let (bit, _) = NAMES.iter().find(|(_, known)| *known == name)?;
        Some(Self::bit(*bit))
    }

    /// Whether all of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// This set and `other`.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set less `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The names of the bits, `VIRTIO_F_VERSION_1|VIRTIO_F_RING_PACKED`; a bit without a name as its number.
    pub fn names(self) -> String {
        let name = |bit: u32| match NAMES.iter().find(|(number, _)| *number == bit) {
            Some((_, name)) => (*name).to_owned(),
            None => format!("bit {bit}"),
        };
        let bits = (0..64).filter(|bit| self.contains(Self::bit(*bit)));
        bits.map(name).collect::<Vec<_>>().join("|")
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl BitAnd for Features {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

macro_rules! features {
    ($($name:ident = $bit:literal, $says:literal;)*) => {
        $(#[doc = $says] pub const $name: Features = Features::bit($bit);)*

        /// The number and the name of every bit above.
        pub const NAMES: &[(u32, &str)] = &[$(($bit, stringify!($name)),)*];
    };
}

features! {
    VIRTIO_NET_F_CSUM = 0, "The device takes frames with partial checksums.";
    VIRTIO_NET_F_GUEST_CSUM = 1, "The driver takes frames with partial checksums.";
    VIRTIO_NET_F_MTU = 3, "The device tells its largest MTU.";
    VIRTIO_NET_F_MAC = 5, "The device tells its MAC address.";
    VIRTIO_NET_F_GSO = 6, "Legacy: both sides take segments to be cut.";
    VIRTIO_NET_F_GUEST_TSO4 = 7, "The driver takes TCP segments over IPv4 to be cut.";
    VIRTIO_NET_F_GUEST_TSO6 = 8, "The driver takes TCP segments over IPv6 to be cut.";
    VIRTIO_NET_F_GUEST_ECN = 9, "The driver takes segments to be cut with ECN.";
    VIRTIO_NET_F_GUEST_UFO = 10, "The driver takes UDP datagrams to be fragmented.";
    VIRTIO_NET_F_HOST_TSO4 = 11, "The device takes TCP segments over IPv4 to be cut.";
    VIRTIO_NET_F_HOST_TSO6 = 12, "The device takes TCP segments over IPv6 to be cut.";
    VIRTIO_NET_F_HOST_ECN = 13, "The device takes segments to be cut with ECN.";
    VIRTIO_NET_F_HOST_UFO = 14, "The device takes UDP datagrams to be fragmented.";
    VIRTIO_NET_F_MRG_RXBUF = 15, "A frame may be spread over several receive buffers.";
    VIRTIO_NET_F_STATUS = 16, "The device tells whether its link is up.";
    VIRTIO_NET_F_CTRL_VQ = 17, "There is a control queue.";
    VIRTIO_NET_F_CTRL_RX = 18, "The control queue sets receive modes.";
    VIRTIO_NET_F_GUEST_ANNOUNCE = 21, "The driver announces itself after a migration.";
    VIRTIO_NET_F_MQ = 22, "There are several queue pairs.";
    VHOST_F_LOG_ALL = 26, "vhost: every write to guest memory is logged, for migration.";
    VIRTIO_F_ANY_LAYOUT = 27, "Legacy: the header may share a descriptor with the frame.";
    VIRTIO_RING_F_INDIRECT_DESC = 28, "A descriptor may refer to a table of descriptors.";
    VIRTIO_RING_F_EVENT_IDX = 29, "used_event and avail_event say when to notify.";
    VHOST_USER_F_PROTOCOL_FEATURES = 30, "vhost-user: protocol features are negotiated, rings begin disabled.";
    VIRTIO_F_VERSION_1 = 32, "Not a legacy device.";
    VIRTIO_F_ACCESS_PLATFORM = 33, "Addresses pass through an IOMMU.";
    VIRTIO_F_RING_PACKED = 34, "The ring has the packed layout.";
    VIRTIO_F_IN_ORDER = 35, "Buffers are used in the order they were made available.";
    VIRTIO_F_ORDER_PLATFORM = 36, "Memory is ordered as for a device, not for a processor.";
    VIRTIO_F_RING_RESET = 40, "The driver resets queues one by one.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_contains_exactly_its_bits() {
        let set = VIRTIO_NET_F_MRG_RXBUF | VIRTIO_F_VERSION_1;
        assert_eq!(set.0, (1 << 15) | (1 << 32));
        assert!(set.contains(VIRTIO_F_VERSION_1));
        assert!(!set.contains(VIRTIO_F_VERSION_1 | VIRTIO_RING_F_EVENT_IDX));
        assert_eq!(set.without(VIRTIO_F_VERSION_1), VIRTIO_NET_F_MRG_RXBUF);
    }

    #[test]
    fn a_set_names_its_bits_and_numbers_those_without_a_name() {
        let set = VIRTIO_F_RING_RESET | VIRTIO_NET_F_MRG_RXBUF | Features::bit(63);
        assert_eq!(set.names(), "VIRTIO_NET_F_MRG_RXBUF|VIRTIO_F_RING_RESET|bit 63");
    }
}

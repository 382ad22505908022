//! Protocol feature bits (vhost-user, "Protocol features"), with the specification's names.

use std::fmt;
use std::ops::BitAnd;

/// A set of `VHOST_USER_PROTOCOL_F_*` bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProtocolFeatures(pub u64);

/// Every bit the specification names, lowest first: one row per bit that a log line may have to spell.
const NAMES: [&str; 23] = [
    "MQ",
    "LOG_SHMFD",
    "RARP",
    "REPLY_ACK",
    "NET_MTU",
    "BACKEND_REQ",
    "CROSS_ENDIAN",
    "CRYPTO_SESSION",
    "PAGEFAULT",
    "CONFIG",
    "BACKEND_SEND_FD",
    "HOST_NOTIFIER",
    "INFLIGHT_SHMFD",
    "RESET_DEVICE",
    "INBAND_NOTIFICATIONS",
    "CONFIGURE_MEM_SLOTS",
    "STATUS",
    "XEN_MMAP",
    "SHARED_OBJECT",
    "DEVICE_STATE",
    "GET_VRING_BASE_INFLIGHT",
    "GPA_ADDRESSES",
    "SHMEM",
];

impl ProtocolFeatures {
    /// More than one queue pair, and GET_QUEUE_NUM.
    pub const MQ: ProtocolFeatures = ProtocolFeatures(1 << 0);
    /// SET_LOG_BASE with a file descriptor.
    pub const LOG_SHMFD: ProtocolFeatures = ProtocolFeatures(1 << 1);
    /// SEND_RARP.
    pub const RARP: ProtocolFeatures = ProtocolFeatures(1 << 2);
    /// A message may ask for an answer with the need_reply flag.
    pub const REPLY_ACK: ProtocolFeatures = ProtocolFeatures(1 << 3);
    /// NET_SET_MTU.
    pub const NET_MTU: ProtocolFeatures = ProtocolFeatures(1 << 4);
    /// SET_BACKEND_REQ_FD: requests of the back-end.
    pub const BACKEND_REQ: ProtocolFeatures = ProtocolFeatures(1 << 5);
    /// The back-end may send descriptors with its requests. That it never does is its own affair.
    pub const BACKEND_SEND_FD: ProtocolFeatures = ProtocolFeatures(1 << 10);
    /// POSTCOPY_ADVISE, POSTCOPY_LISTEN, POSTCOPY_END.
    pub const PAGEFAULT: ProtocolFeatures = ProtocolFeatures(1 << 8);
    /// GET_CONFIG and SET_CONFIG.
    pub const CONFIG: ProtocolFeatures = ProtocolFeatures(1 << 9);
    /// GET_INFLIGHT_FD and SET_INFLIGHT_FD.
    pub const INFLIGHT_SHMFD: ProtocolFeatures = ProtocolFeatures(1 << 12);
    /// RESET_DEVICE.
    pub const RESET_DEVICE: ProtocolFeatures = ProtocolFeatures(1 << 13);
    /// GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG.
    pub const CONFIGURE_MEM_SLOTS: ProtocolFeatures = ProtocolFeatures(1 << 15);
    /// SET_STATUS and GET_STATUS.
    pub const STATUS: ProtocolFeatures = ProtocolFeatures(1 << 16);
    /// SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE.
    pub const DEVICE_STATE: ProtocolFeatures = ProtocolFeatures(1 << 19);
    /// GET_VRING_BASE does not wait for what is in flight. Nothing ever is once a burst has ended.
    pub const GET_VRING_BASE_INFLIGHT: ProtocolFeatures = ProtocolFeatures(1 << 20);

    /// What this back-end implements. Front-ends acknowledge by mask alone, so an offered bit is a promise.
    pub const SUPPORTED: ProtocolFeatures = ProtocolFeatures(
        Self::MQ.0
            | Self::LOG_SHMFD.0
            | Self::RARP.0
            | Self::REPLY_ACK.0
            | Self::NET_MTU.0
            | Self::BACKEND_REQ.0
            | Self::BACKEND_SEND_FD.0
            | Self::PAGEFAULT.0
            | Self::CONFIG.0
            | Self::INFLIGHT_SHMFD.0
            | Self::RESET_DEVICE.0
            | Self::CONFIGURE_MEM_SLOTS.0
            | Self::STATUS.0
            | Self::DEVICE_STATE.0
            | Self::GET_VRING_BASE_INFLIGHT.0,
    );

    /// The bit that the specification calls `name`.
    pub fn named(name: &str) -> Option<ProtocolFeatures> {
        let bit = NAMES.iter().position(|known| *known == name)?;
        Some(ProtocolFeatures(1 << bit))
    }

    /// This set and `other`.
    #[must_use]
    pub const fn with(self, other: ProtocolFeatures) -> ProtocolFeatures {
        ProtocolFeatures(self.0 | other.0)
    }

    /// This set without the bits of `other`.
    #[must_use]
    pub const fn without(self, other: ProtocolFeatures) -> ProtocolFeatures {
        ProtocolFeatures(self.0 & !other.0)
    }

    /// Whether every bit of `other` is in this set.
    pub fn contains(self, other: ProtocolFeatures) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitAnd for ProtocolFeatures {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Display for ProtocolFeatures {
    /// The names of the bits, `MQ|REPLY_ACK`; a bit without a name as its number, none at all as `none`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("none");
        }
        let mut separator = "";
        for bit in (0..64_u8).filter(|bit| self.0 >> bit & 1 == 1) {
            f.write_str(separator)?;
            match NAMES.get(usize::from(bit)) {
                Some(name) => f.write_str(name)?,
                None => write!(f, "bit {bit}")?,
            }
            separator = "|";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_names_agree() {
        let named = [
            (ProtocolFeatures::MQ, "MQ"),
            (ProtocolFeatures::LOG_SHMFD, "LOG_SHMFD"),
            (ProtocolFeatures::RARP, "RARP"),
            (ProtocolFeatures::REPLY_ACK, "REPLY_ACK"),
            (ProtocolFeatures::NET_MTU, "NET_MTU"),
            (ProtocolFeatures::BACKEND_REQ, "BACKEND_REQ"),
            (ProtocolFeatures::BACKEND_SEND_FD, "BACKEND_SEND_FD"),
            (ProtocolFeatures::PAGEFAULT, "PAGEFAULT"),
            (ProtocolFeatures::CONFIG, "CONFIG"),
            (ProtocolFeatures::INFLIGHT_SHMFD, "INFLIGHT_SHMFD"),
            (ProtocolFeatures::RESET_DEVICE, "RESET_DEVICE"),
            (ProtocolFeatures::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS"),
            (ProtocolFeatures::STATUS, "STATUS"),
            (ProtocolFeatures::DEVICE_STATE, "DEVICE_STATE"),
            (
                ProtocolFeatures::GET_VRING_BASE_INFLIGHT,
                "GET_VRING_BASE_INFLIGHT",
            ),
        ];
        for (bit, name) in named {
            assert_eq!(bit.to_string(), name);
            assert_eq!(ProtocolFeatures::named(name), Some(bit));
            assert!(ProtocolFeatures::SUPPORTED.contains(bit), "{name}");
        }
        assert_eq!(ProtocolFeatures::SUPPORTED.0.count_ones() as usize, named.len());
    }

    #[test]
    fn a_set_prints_every_bit_even_one_without_a_name() {
        assert_eq!(ProtocolFeatures(0).to_string(), "none");
        assert_eq!(
            ProtocolFeatures(0x8009).to_string(),
            "MQ|REPLY_ACK|CONFIGURE_MEM_SLOTS"
        );
        assert_eq!(ProtocolFeatures(1 << 40).to_string(), "bit 40");
    }
}

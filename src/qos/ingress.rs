//! What a guest may send: `Interface.ingress_policing_*`, a limit on bytes and one on packets. A packet passes if both
//! have room for it; one that does not pass counts for neither.

use super::bucket::Limit;
use super::{metered, KiloPackets};

/// The limits as the database has them. A rate of 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `ingress_policing_rate`: 1000 bits per second.
    pub kbits_rate: u32,
    /// `ingress_policing_burst`: 1000 bits; 0: 8000 of them.
    pub kbits_burst: u32,
    /// `ingress_policing_kpkts_rate` and `_burst`.
    pub kpkts: KiloPackets,
}

/// The meters of what comes from a guest.
#[derive(Debug, Default)]
pub struct Ingress {
    bytes: Limit,
    packets: Limit,
}

impl Ingress {
    /// Puts `limits` in force. A meter that they do not change keeps its tokens.
    pub fn set(&mut self, limits: Limits, now: u64) {
        let burst = if limits.kbits_burst == 0 {
            8000
        } else {
            limits.kbits_burst
        };
        let bytes = [limits.kbits_rate, burst].map(|kbits| u64::from(kbits) * 1000 / 8);
        self.bytes.set(bytes.into(), now);
        self.packets.set(limits.kpkts.packets(), now);
    }

    /// Whether there is any limit.
    pub fn is_set(&self) -> bool {
        self.limits().iter().any(Option::is_some)
    }

    /// Whether a packet of `len` bytes passes.
    pub fn admit(&mut self, now: u64, len: u32) -> bool {
        let bytes = metered(len);
        let pass = self.bytes.holds(now, bytes) && self.packets.holds(now, 1);
        if pass {
            self.bytes.take(now, bytes);
            self.packets.take(now, 1);
        }
        pass
    }

    /// The limits in force: of bytes, of packets; each as its rate per second and its burst.
    pub fn limits(&self) -> [Option<(u64, u64)>; 2] {
        [self.bytes.get(), self.packets.get()]
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::SECOND;
    use super::*;

    fn limited(kbits_rate: u32, kbits_burst: u32, kpkts_rate: u32, kpkts_burst: u32) -> Ingress {
        let mut ingress = Ingress::default();
        let limits = Limits {
            kbits_rate,
            kbits_burst,
            kpkts: KiloPackets {
                rate: kpkts_rate,
                burst: kpkts_burst,
            },
        };
        ingress.set(limits, 0);
        ingress
    }

    fn passed(ingress: &mut Ingress, now: u64, len: u32, tries: u32) -> u32 {
        (0..tries).map(|_| u32::from(ingress.admit(now, len))).sum()
    }

    #[test]
    fn kilobits_become_bytes_and_kilopackets_packets() {
        let ingress = limited(10_000, 1000, 5, 2);
        assert_eq!(ingress.limits(), [Some((1_250_000, 125_000)), Some((5000, 2000))]);
    }

    #[test]
    fn a_burst_of_zero_is_the_default_and_a_rate_of_zero_no_limit() {
        assert_eq!(
            limited(8, 0, 1, 0).limits(),
            [Some((1000, 1_000_000)), Some((1000, 16_000))]
        );
        let mut none = limited(0, 7, 0, 7);
        assert!(!none.is_set());
        assert!(none.admit(0, u32::MAX));
    }

    #[test]
    fn the_largest_limits_do_not_overflow() {
        let mut most = limited(u32::MAX, u32::MAX, u32::MAX, u32::MAX);
        assert!(most.admit(u64::MAX, u32::MAX));
    }

    #[test]
    fn the_ethernet_header_is_free_and_a_runt_costs_nothing() {
        // 125 bytes.
        let mut ingress = limited(1, 1, 0, 0);
        assert_eq!(passed(&mut ingress, 0, 13, 1000), 1000);
        assert!(!ingress.admit(0, 140));
        assert!(ingress.admit(0, 139));
        assert!(!ingress.admit(0, 15));
    }

    #[test]
    fn what_one_limit_refuses_costs_the_other_nothing() {
        // 125 bytes, 1000 packets.
        let mut ingress = limited(1, 1, 1, 1);
        assert_eq!(passed(&mut ingress, 0, 64, 10_000), 2, "50 bytes each");
        assert_eq!(passed(&mut ingress, 0, 14, 10_000), 998, "packets were left");
        assert!(!ingress.admit(0, 15), "25 bytes are left, no packet is");
        assert!(ingress.admit(SECOND / 1000, 39), "with a packet they can be used");
    }

    #[test]
    fn the_same_limits_again_keep_the_tokens_as_they_are() {
        let mut ingress = limited(1, 1, 1, 1);
        assert_eq!(passed(&mut ingress, 0, 14, 2000), 1000);
        let limits = Limits {
            kbits_rate: 1,
            kbits_burst: 1,
            kpkts: KiloPackets { rate: 1, burst: 1 },
        };
        ingress.set(limits, 0);
        assert!(!ingress.admit(0, 14));
        // Only the other limit changes.
        ingress.set(
            Limits {
                kbits_rate: 2,
                ..limits
            },
            0,
        );
        assert!(!ingress.admit(0, 14));
        ingress.set(
            Limits {
                kpkts: KiloPackets { rate: 1, burst: 2 },
                ..limits
            },
            0,
        );
        assert_eq!(passed(&mut ingress, 0, 14, 3000), 2000, "a new limit begins full");
    }
}

//! What a guest is sent: a limit on packets, and behind it the port's QoS. A packet that one of them refuses takes nothing of
//! the other.

use super::bucket::Limit;
use super::egress::Egress;
use super::KiloPackets;

/// The meters of what goes to a guest.
#[derive(Debug, Default)]
pub struct Outbound {
    packets: Limit,
    /// The port's QoS, if it has any.
    pub qos: Option<Egress>,
}

impl Outbound {
    /// Puts a limit on packets in force. One that does not change keeps its tokens.
    pub fn set_packets(&mut self, limit: KiloPackets, now: u64) {
        self.packets.set(limit.packets(), now);
    }

    /// The limit on packets: rate per second, and burst.
    pub fn packets(&self) -> Option<(u64, u64)> {
        self.packets.get()
    }

    /// Whether anything is limited.
    pub fn is_set(&self) -> bool {
        self.packets().is_some() || self.qos.is_some()
    }

    /// Whether a packet of `len` bytes passes; it is of the queue that `queue` names, if that matters.
    #[inline]
    pub fn admit(&mut self, now: u64, len: u32, queue: impl FnOnce() -> u32) -> bool {
        let by_qos = || self.qos.as_mut().is_none_or(|qos| qos.admit(now, len, queue));
        let pass = self.packets.holds(now, 1) && by_qos();
        if pass {
            self.packets.take(now, 1);
        }
        pass
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::SECOND;
    use super::*;

    fn limited(rate: u32, burst: u32) -> Outbound {
        let mut outbound = Outbound::default();
        outbound.set_packets(KiloPackets { rate, burst }, 0);
        outbound
    }

    fn passed(outbound: &mut Outbound, now: u64, len: u32, tries: u32) -> u32 {
        (0..tries)
            .map(|_| u32::from(outbound.admit(now, len, || 0)))
            .sum()
    }

    #[test]
    fn thousands_become_packets_and_a_rate_of_zero_is_no_limit() {
        assert_eq!(limited(5, 2).packets(), Some((5000, 2000)));
        assert_eq!(limited(5, 0).packets(), Some((5000, 16_000)));
        let mut none = limited(0, 7);
        assert!(!none.is_set() && none.admit(0, u32::MAX, || 0));
    }

    #[test]
    fn packets_of_any_length_count_as_one() {
        let mut outbound = limited(1, 1);
        assert_eq!(passed(&mut outbound, 0, 0, 500), 500);
        assert_eq!(passed(&mut outbound, 0, u32::MAX, 1000), 500);
    }

    #[test]
    fn what_one_refuses_costs_the_other_nothing() {
        let mut outbound = limited(1, 1);
        // 100 bytes, of which a frame of 64 takes 50.
        outbound.qos = Egress::new("egress-policer", &[("cir", "1"), ("cbs", "100")], 0).ok();
        assert_eq!(passed(&mut outbound, 0, 14, 1000), 1000);
        assert_eq!(passed(&mut outbound, 0, 64, 5000), 0, "packets are short");
        for moment in [1, 2] {
            let now = moment * SECOND / 1000;
            assert_eq!(passed(&mut outbound, now, 64, 9), 1, "bytes were left");
        }
        let now = 3 * SECOND / 1000;
        assert_eq!(passed(&mut outbound, now, 64, 9), 0, "bytes are short");
        assert_eq!(passed(&mut outbound, now, 14, 9), 1, "a packet was left");
    }

    #[test]
    fn the_same_limit_again_keeps_the_tokens_as_they_are() {
        let mut outbound = limited(1, 1);
        assert_eq!(passed(&mut outbound, 0, 64, 2000), 1000);
        outbound.set_packets(KiloPackets { rate: 1, burst: 1 }, 0);
        assert_eq!(passed(&mut outbound, 0, 64, 2000), 0);
        outbound.set_packets(KiloPackets { rate: 1, burst: 2 }, 0);
        assert_eq!(
            passed(&mut outbound, 0, 64, 3000),
            2000,
            "a new limit begins full"
        );
    }

    #[test]
    fn ten_seconds_of_plenty_pass_at_the_rate_within_two_percent() {
        for rate in [1, 20, 300] {
            let mut outbound = limited(rate, 1);
            assert_eq!(
                passed(&mut outbound, 0, 64, 5000),
                1000,
                "the burst is no part of the rate"
            );
            // Bursts of 32, at four times the rate.
            let packets = u64::from(rate) * 1000;
            let gap = 32 * SECOND / packets / 4;
            let steps = 10 * SECOND / gap;
            let passed: u32 = (1..=steps)
                .map(|step| passed(&mut outbound, step * gap, 64, 32))
                .sum();
            let allowed = 10 * packets;
            assert!(
                (allowed * 98 / 100..=allowed).contains(&u64::from(passed)),
                "{passed} of {allowed}"
            );
        }
    }
}

//! The meter with two rates, RFC 4115: packets within the committed rate are green, within the excess rate yellow, beyond
//! both red. That of RFC 2697 without an excess burst, green or red, is a [`Bucket`] and needs nothing more.

use super::bucket::Bucket;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Green,
    Yellow,
    Red,
}

/// Rates in bytes per second and bursts in bytes, by their names in both RFCs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rates {
    pub(super) cir: u64,
    pub(super) cbs: u64,
    pub(super) eir: u64,
    pub(super) ebs: u64,
}

#[derive(Clone, Debug)]
pub(super) struct TwoRate {
    committed: Bucket,
    excess: Bucket,
}

impl TwoRate {
    pub(super) fn new(rates: Rates, now: u64) -> TwoRate {
        TwoRate {
            committed: Bucket::full(rates.cir, rates.cbs, now),
            excess: Bucket::full(rates.eir, rates.ebs, now),
        }
    }

    pub(super) fn rates(&self) -> Rates {
        Rates {
            cir: self.committed.rate(),
            cbs: self.committed.burst(),
            eir: self.excess.rate(),
            ebs: self.excess.burst(),
        }
    }

    /// The colour of a packet that has none yet: the meter's colour-blind mode.
    pub(super) fn blind(&mut self, now: u64, len: u64) -> Colour {
        self.aware(now, len, Colour::Green)
    }

    /// The colour of a packet that a meter before this one gave the colour `was`: it gets no better one.
    pub(super) fn aware(&mut self, now: u64, len: u64, was: Colour) -> Colour {
        if was == Colour::Green && self.committed.take(now, len) {
            Colour::Green
        } else if was != Colour::Red && self.excess.take(now, len) {
            Colour::Yellow
        } else {
            Colour::Red
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Naive, Random, SECOND};
    use super::Colour::*;
    use super::*;

    fn rates(cir: u64, cbs: u64, eir: u64, ebs: u64) -> Rates {
        Rates { cir, cbs, eir, ebs }
    }

    #[test]
    fn green_goes_before_yellow_and_yellow_before_red() {
        let mut meter = TwoRate::new(rates(1, 2, 1, 1), 0);
        let colours = [(); 5].map(|()| meter.blind(0, 1));
        assert_eq!(colours, [Green, Green, Yellow, Red, Red]);
    }

    #[test]
    fn a_colour_gets_no_better() {
        let mut meter = TwoRate::new(rates(1, 9, 1, 1), 0);
        assert_eq!(meter.aware(0, 1, Yellow), Yellow);
        assert_eq!(meter.aware(0, 1, Yellow), Red, "green tokens are not for it");
        assert_eq!(meter.aware(0, 1, Green), Green);
        assert_eq!(meter.aware(0, 0, Red), Red, "even where nothing is to be taken");
    }

    #[test]
    fn what_is_red_takes_nothing() {
        let mut meter = TwoRate::new(rates(0, 4, 0, 6), 0);
        assert_eq!(meter.blind(0, 7), Red);
        assert_eq!(meter.aware(0, 1, Red), Red);
        assert_eq!(meter.blind(0, 6), Yellow);
        assert_eq!(meter.blind(0, 4), Green);
    }

    #[test]
    fn a_packet_larger_than_the_committed_burst_is_yellow_at_best() {
        let mut meter = TwoRate::new(rates(1000, 10, 1000, 100), 0);
        assert_eq!(meter.blind(0, 11), Yellow);
        assert_eq!(meter.blind(0, 10), Green);
    }

    #[test]
    fn a_rate_of_zero_has_no_colour() {
        let mut meter = TwoRate::new(rates(0, 0, 8, 8), 0);
        assert_eq!(meter.blind(0, 8), Yellow);
        assert_eq!(meter.blind(SECOND, 8), Yellow);
        assert_eq!(meter.blind(SECOND, 1), Red);
    }

    #[test]
    fn every_small_meter_is_the_naive_one_in_both_modes() {
        let all = (0..3_u64.pow(4)).map(|n| rates(n % 3, n / 3 % 3, n / 9 % 3, n / 27));
        for (seed, rates) in (0..).zip(all) {
            let mut random = Random::new(seed);
            let mut meter = TwoRate::new(rates, 0);
            let mut green = Naive::full(rates.cir, rates.cbs);
            let mut yellow = Naive::full(rates.eir, rates.ebs);
            let mut now = 0;
            for _ in 0..1000 {
                let step = random.below(5);
                now += step * SECOND / 8;
                green.tick(step, 8);
                yellow.tick(step, 8);
                let (len, was) = (random.below(4), random.of([Green, Yellow, Red]));
                let expected = match was {
                    Green if green.take(len) => Green,
                    Green | Yellow if yellow.take(len) => Yellow,
                    _ => Red,
                };
                let found = match was {
                    Green => meter.blind(now, len),
                    was => meter.aware(now, len, was),
                };
                assert_eq!(found, expected, "{rates:?} at {now}");
            }
        }
    }

    #[test]
    fn ten_seconds_of_plenty_pass_at_both_rates_within_two_percent() {
        let rates = rates(1_250_000, 15_000, 625_000, 15_000);
        let mut meter = TwoRate::new(rates, 0);
        let (mut green, mut yellow) = (0, 0);
        for step in 0..1_000_000 {
            match meter.blind(step * 10_000, 1000) {
                Green => green += 1000,
                Yellow => yellow += 1000,
                Red => {}
            }
        }
        for (passed, allowed) in [(green, 12_500_000 + 15_000), (yellow, 6_250_000 + 15_000)] {
            assert!(
                passed <= allowed && passed >= allowed / 100 * 98,
                "{passed} of {allowed}"
            );
        }
    }
}

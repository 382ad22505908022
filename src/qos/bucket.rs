//! A token bucket: tokens come in at a rate, up to a burst, and packets take them out.
//!
//! Tokens are counted in billionths, so that tokens per second times nanoseconds is a number of them, and nothing is
//! ever rounded: how often the bucket is asked does not change what it gives. All of it fits 128 bits: a level is below
//! 2^94, and what any rate earns in any time below 2^128.

const BILLION: u128 = 1_000_000_000;

#[derive(Clone, Debug)]
pub(super) struct Bucket {
    /// Tokens per second.
    rate: u64,
    /// Tokens it has room for.
    burst: u64,
    /// Billionths of tokens in it, no more than `burst` tokens.
    level: u128,
    /// The time of which `level` tells.
    filled_at: u64,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn full(rate: u64, burst: u64, now: u64) -> Bucket {
        Bucket {
            rate,
            burst,
            level: u128::from(burst) * BILLION,
            filled_at: now,
        }
    }

    pub(super) fn rate(&self) -> u64 {
        self.rate
    }

    pub(super) fn burst(&self) -> u64 {
        self.burst
    }

    /// Whether there are `tokens` in it.
    pub(super) fn holds(&mut self, now: u64, tokens: u64) -> bool {
        self.fill(now);
        self.level >= u128::from(tokens) * BILLION
    }

    /// Takes `tokens` out, all or none if they are not there.
    pub(super) fn take(&mut self, now: u64, tokens: u64) -> bool {
        let holds = self.holds(now, tokens);
        if holds {
            self.level -= u128::from(tokens) * BILLION;
        }
        holds
    }

    /// A time before the last is another thread's, which looked at the clock first and came second: no tokens come of it,
    /// and none twice.
    fn fill(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.filled_at);
        let earned = u128::from(elapsed) * u128::from(self.rate);
        let room = u128::from(self.burst) * BILLION;
        self.level = self.level.saturating_add(earned).min(room);
        self.filled_at += elapsed;
    }
}

/// A bucket that is there while there is a limit.
#[derive(Debug, Default)]
pub(super) struct Limit(Option<Bucket>);

impl Limit {
    /// Limits to `rate` and `burst`, or with a rate of 0 not at all. A limit that is so already keeps its tokens.
    pub(super) fn set(&mut self, (rate, burst): (u64, u64), now: u64) {
        if self.get() != Some((rate, burst)) {
            self.0 = (rate > 0).then(|| Bucket::full(rate, burst, now));
        }
    }

    /// Its rate per second, and its burst.
    pub(super) fn get(&self) -> Option<(u64, u64)> {
        self.0.as_ref().map(|bucket| (bucket.rate, bucket.burst))
    }

    /// Whether it lets `tokens` pass.
    pub(super) fn holds(&mut self, now: u64, tokens: u64) -> bool {
        self.0.as_mut().is_none_or(|bucket| bucket.holds(now, tokens))
    }

    /// Takes `tokens` that [`Limit::holds`] has said are there.
    pub(super) fn take(&mut self, now: u64, tokens: u64) {
        if let Some(bucket) = &mut self.0 {
            bucket.take(now, tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Naive, Random, SECOND};
    use super::*;

    /// Numbers at which arithmetic breaks, if it does.
    const EDGES: [u64; 9] = [
        0,
        1,
        2,
        7,
        999_999_999,
        1_000_000_000,
        1 << 32,
        u64::MAX - 1,
        u64::MAX,
    ];

    #[test]
    fn a_new_bucket_is_full_and_gives_no_more_than_its_burst() {
        let mut bucket = Bucket::full(1000, 5, 7);
        assert!((0..5).all(|_| bucket.take(7, 1)));
        assert!(!bucket.take(7, 1));
    }

    #[test]
    fn tokens_come_at_the_rate_to_the_nanosecond() {
        let mut bucket = Bucket::full(3, 1, 0);
        assert!(bucket.take(0, 1));
        assert!(!bucket.holds(SECOND / 3, 1), "a third of a nanosecond early");
        assert!(bucket.holds(SECOND / 3 + 1, 1));
    }

    #[test]
    fn all_or_none_is_taken() {
        let mut bucket = Bucket::full(0, 10, 0);
        assert!(!bucket.take(0, 11));
        assert!(bucket.take(0, 10), "the failure took nothing");
    }

    #[test]
    fn a_bucket_without_a_rate_gives_its_burst_once() {
        let mut bucket = Bucket::full(0, 1, 0);
        assert!(bucket.take(0, 1));
        assert!(!bucket.take(u64::MAX, 1));
    }

    #[test]
    fn asking_often_gives_what_asking_once_does() {
        let (mut often, mut once) = (Bucket::full(7, 100, 0), Bucket::full(7, 100, 0));
        assert!(often.take(0, 100) && once.take(0, 100));
        for now in 0..10_000 {
            often.holds(now, 1);
        }
        often.holds(SECOND, 1);
        once.holds(SECOND, 1);
        assert_eq!(often.level, once.level);
    }

    #[test]
    fn a_clock_that_stands_still_earns_nothing() {
        let mut bucket = Bucket::full(u64::MAX, 3, 9);
        assert!(bucket.take(9, 3));
        assert!((0..1000).all(|_| !bucket.take(9, 1)));
    }

    #[test]
    fn a_clock_that_goes_back_earns_nothing_and_nothing_twice() {
        let mut bucket = Bucket::full(1, 1, 5 * SECOND);
        assert!(bucket.take(5 * SECOND, 1));
        assert!(!bucket.take(4 * SECOND, 1));
        assert!(!bucket.take(5 * SECOND, 1), "that second is spent");
        assert!(bucket.take(6 * SECOND, 1));
    }

    #[test]
    fn a_clock_that_jumps_ahead_earns_one_burst() {
        let mut bucket = Bucket::full(1000, 2, 0);
        assert!(bucket.take(0, 2));
        assert!(bucket.take(u64::MAX, 2));
        assert!(!bucket.take(u64::MAX, 1));
    }

    #[test]
    fn no_number_is_too_large() {
        for (rate, burst) in EDGES.iter().flat_map(|r| EDGES.map(|b| (*r, b))) {
            for (now, tokens) in EDGES.iter().flat_map(|n| EDGES.map(|t| (*n, t))) {
                let mut bucket = Bucket::full(rate, burst, 0);
                assert_eq!(bucket.holds(0, tokens), tokens <= burst);
                assert!(bucket.take(0, burst));
                let earned = u128::from(rate) * u128::from(now);
                let expected = tokens <= burst && earned >= u128::from(tokens) * BILLION;
                assert_eq!(
                    bucket.take(now, tokens),
                    expected,
                    "{rate} {burst} {now} {tokens}"
                );
            }
        }
    }

    #[test]
    fn every_small_bucket_is_the_naive_one() {
        for (rate, burst) in (0..5).flat_map(|rate| (0..5).map(move |burst| (rate, burst))) {
            let mut random = Random::new(rate * 5 + burst);
            let (mut bucket, mut naive) = (Bucket::full(rate, burst, 0), Naive::full(rate, burst));
            let mut now = 0;
            for _ in 0..2000 {
                // The naive one counts ticks; its rate is per 16 of them.
                let step = random.below(9);
                now += step * SECOND / 16;
                naive.tick(step, 16);
                let tokens = random.below(burst + 2);
                assert_eq!(bucket.take(now, tokens), naive.take(tokens));
            }
        }
    }

    #[test]
    fn ten_seconds_of_plenty_pass_at_the_rate_within_two_percent() {
        for rate in [10_000, 125_000, 1_250_000, 125_000_000, 12_500_000_000_u64] {
            for len in [46, 1486, 64_000] {
                let burst = len.max(rate / 1000);
                let mut bucket = Bucket::full(rate, burst, 0);
                // The burst it begins with is not part of the rate.
                assert!(bucket.take(0, burst));
                // Packets come four times as fast as they may pass.
                let (gap, mut passed) = ((len * SECOND / rate / 4).max(1), 0);
                let steps = 10 * SECOND / gap;
                for step in 1..=steps.min(4_000_000) {
                    passed += len * u64::from(bucket.take(step * gap, len));
                }
                let span = gap * steps.min(4_000_000);
                let allowed = u128::from(rate) * u128::from(span) / u128::from(SECOND);
                let passed = u128::from(passed);
                assert!(passed <= allowed, "{passed} of {allowed} at {rate}");
                assert!(
                    passed + u128::from(len) >= allowed * 98 / 100,
                    "{passed} of {allowed} at {rate}"
                );
            }
        }
    }
}

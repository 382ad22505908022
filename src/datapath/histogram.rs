//! How often something took how long, by powers of two of a nanosecond: small enough to keep for each ring, and as exact as
//! the question "how bad is it" asks for.

use crate::sync::{AtomicU64, Ordering};

/// The last bin has all from 2^40 ns on, which is 18 minutes.
const BINS: usize = 42;

/// Counts durations. Anybody may add and read, at any time.
#[derive(Debug)]
pub struct Histogram {
    /// Bin `n` has what took less than 2^n ns and not less than half of that.
    bins: [AtomicU64; BINS],
    longest: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            bins: std::array::from_fn(|_| AtomicU64::new(0)),
            longest: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Counts one of `nanos` nanoseconds.
    pub fn add(&self, nanos: u64) {
        let bin = (u64::BITS - nanos.leading_zeros()) as usize;
        if let Some(counter) = self.bins.get(bin.min(BINS - 1)) {
            // Relaxed: numbers with no data behind them.
            counter.fetch_add(1, Ordering::Relaxed);
            self.longest.fetch_max(nanos, Ordering::Relaxed);
        }
    }

    /// Begins anew.
    pub fn clear(&self) {
        let all = self.bins.iter().chain([&self.longest]);
        all.for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    /// What was counted until now.
    pub fn read(&self) -> Distribution {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Distribution {
            bins: std::array::from_fn(|bin| self.bins.get(bin).map_or(0, get)),
            longest: get(&self.longest),
        }
    }
}

/// The values of a [`Histogram`] at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Distribution {
    bins: [u64; BINS],
    longest: u64,
}

impl Distribution {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.bins.iter().sum()
    }

    /// The longest, in nanoseconds.
    pub fn longest(&self) -> u64 {
        self.longest
    }

    /// A number of nanoseconds that at least `share` thousandths of all did not exceed: the end of their bin, which is less
    /// than twice the truth. `None` if there were none.
    pub fn within(&self, share: u64) -> Option<u64> {
        let wanted = (self.count() * share).div_ceil(1000).max(1);
        let mut seen = 0;
        self.ends()
            .find(|(_, count)| {
                seen += count;
                seen >= wanted
            })
            .map(|(end, _)| end.min(self.longest))
    }

    /// The bins with anything in them: the nanoseconds below which they end, and how many.
    pub fn ends(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let ends = (0..BINS).map(|bin| if bin + 1 < BINS { 1_u64 << bin } else { u64::MAX });
        ends.zip(self.bins).filter(|(_, count)| *count > 0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_bin_that_ends_above_it() {
        for (nanos, end) in [
            (0, 1),
            (1, 2),
            (2, 4),
            (3, 4),
            (4, 8),
            (1023, 1024),
            (1024, 2048),
            ((1 << 40) - 1, 1 << 40),
            (1 << 40, u64::MAX),
            (u64::MAX, u64::MAX),
        ] {
            let histogram = Histogram::default();
            histogram.add(nanos);
            let seen = histogram.read();
            assert_eq!(seen.ends().collect::<Vec<_>>(), [(end, 1)], "{nanos} ns");
            assert_eq!((seen.count(), seen.longest()), (1, nanos));
        }
    }

    #[test]
    fn percentiles_are_ends_of_bins_and_no_longer_than_the_longest() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read().within(500), None);
        (0..990).for_each(|_| histogram.add(100));
        (0..10).for_each(|_| histogram.add(5000));
        let seen = histogram.read();
        assert_eq!(seen.within(500), Some(128));
        assert_eq!(seen.within(990), Some(128));
        assert_eq!(seen.within(991), Some(5000));
        assert_eq!(seen.within(1000), Some(5000));
    }
}

//! How long a driver had no room for what was sent to it: from the burst that first left a frame behind, to the next one of
//! which a frame got through, or to the end of the ring. Looked at where frames are left behind, and once after that.

use crate::sync::{AtomicU64, Ordering};

/// A queue's stalls since it was made. Who is inside the gate writes; anybody reads.
#[derive(Debug, Default)]
pub struct Stalls {
    count: AtomicU64,
    total: AtomicU64,
    longest: AtomicU64,
    /// When the one that lasts began; 0 if none does.
    since: AtomicU64,
}

/// The values of [`Stalls`] at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StallStats {
    /// Stalls that are over.
    pub count: u64,
    /// Nanoseconds of all of them.
    pub total: u64,
    /// Nanoseconds of the longest.
    pub longest: u64,
    /// When the one that lasts began, in nanoseconds of CLOCK_MONOTONIC.
    pub since: Option<u64>,
}

impl Stalls {
    /// The values now. Never disturbs a burst.
    pub fn read(&self) -> StallStats {
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        StallStats {
            count: get(&self.count),
            total: get(&self.total),
            longest: get(&self.longest),
            since: Some(get(&self.since)).filter(|since| *since != 0),
        }
    }

    /// The longest is looked for anew.
    pub fn forget_longest(&self) {
        self.longest.store(0, Ordering::Relaxed);
    }

    /// Whether the driver has no room, as far as is known.
    pub(super) fn lasts(&self) -> bool {
        self.since.load(Ordering::Relaxed) != 0
    }

    /// The driver has no room from `now` on.
    pub(super) fn begin(&self, now: u64) {
        self.since.store(now, Ordering::Relaxed);
    }

    /// It has room again, or is gone. Says how long it had none, if so it was.
    pub(super) fn end(&self, now: u64) -> Option<u64> {
        let nanos = now.saturating_sub(self.read().since?);
        self.since.store(0, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.total.fetch_add(nanos, Ordering::Relaxed);
        self.longest.fetch_max(nanos, Ordering::Relaxed);
        Some(nanos)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn stalls_are_counted_with_their_sum_and_the_longest_when_they_are_over() {
        let stalls = Stalls::default();
        assert_eq!(stalls.end(50), None, "there is none");
        stalls.begin(100);
        assert!(stalls.lasts());
        assert_eq!(stalls.read().since, Some(100));
        assert_eq!(stalls.end(150), Some(50));
        stalls.begin(200);
        assert_eq!(stalls.end(210), Some(10));
        let expected = StallStats {
            count: 2,
            total: 60,
            longest: 50,
            since: None,
        };
        assert_eq!((stalls.read(), stalls.lasts()), (expected, false));
        stalls.forget_longest();
        assert_eq!(
            stalls.read(),
            StallStats {
                longest: 0,
                ..expected
            }
        );
    }
}

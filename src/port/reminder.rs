//! When the switch is told again what it was told already: that the link came up, or went.
//!
//! vswitchd writes into its database what differs from what it last heard from there. If the link comes up while a word of
//! vswitchd's own that it is down is still on its way there, as when vswitchd has just started, and the database says "up" from
//! before, it writes nothing; then its own word arrives, and the database says "down" for good. Told again later, it finds that out.

use std::time::{Duration, Instant};

/// How long after the first time, and then the pauses double.
const FIRST: Duration = Duration::from_secs(1);
/// The last pause. With 500 ports vswitchd takes three seconds to start.
const LAST: Duration = Duration::from_secs(16);

/// Reminds a few times of something, ever more rarely.
#[derive(Debug, Default)]
pub(super) struct Reminder {
    /// When the next one is due, and the pause before it.
    next: Option<(Instant, Duration)>,
}

impl Reminder {
    /// It was told just now.
    pub(super) fn told(&mut self, now: Instant) {
        self.next = Some((now + FIRST, FIRST));
    }

    pub(super) fn wakes_at(&self) -> Option<Instant> {
        self.next.map(|(at, _)| at)
    }

    /// Whether it is to be told again now.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let Some((_, pause)) = self.next.filter(|(at, _)| now >= *at) else {
            return false;
        };
        let pause = 2 * pause;
        self.next = (pause <= LAST).then_some((now + pause, pause));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_told_again_after_1_3_7_15_and_31_seconds() {
        let start = Instant::now();
        let mut reminder = Reminder::default();
        assert!(!reminder.is_due(start), "nothing was told");
        reminder.told(start);
        let again = |second: &u64| reminder.is_due(start + Duration::from_secs(*second));
        let seconds: Vec<u64> = (0..100).filter(again).collect();
        assert_eq!(seconds, [1, 3, 7, 15, 31]);
        assert_eq!(reminder.wakes_at(), None);
    }

    #[test]
    fn who_is_told_something_else_is_reminded_of_that_from_then_on() {
        let start = Instant::now();
        let mut reminder = Reminder::default();
        reminder.told(start);
        let later = start + FIRST / 2;
        reminder.told(later);
        assert_eq!(reminder.wakes_at(), Some(later + FIRST));
    }
}

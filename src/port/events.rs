//! The last things that happened to a port, kept for whoever asks: more than the log holds, which has a budget and may be
//! rotated away, and by port.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use log::Level;
use parking_lot::Mutex;

/// How many are kept.
const KEPT: usize = 256;

/// What happened, oldest first. The control thread writes, main reads; each holds the lock for a copy.
#[derive(Debug, Default)]
pub(super) struct Events(Mutex<VecDeque<Event>>);

#[derive(Clone, Debug)]
struct Event {
    at: Instant,
    level: Level,
    text: String,
}

/// One event, as it is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) ago: Duration,
    pub(super) level: Level,
    pub(super) text: String,
}

impl Events {
    pub(super) fn add(&self, at: Instant, level: Level, text: String) {
        let mut events = self.0.lock();
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(Event { at, level, text });
    }

    pub(super) fn tell(&self, now: Instant) -> Vec<Told> {
        let events = self.0.lock().clone();
        let told = |event: Event| Told {
            ago: now.saturating_duration_since(event.at),
            level: event.level,
            text: event.text,
        };
        events.into_iter().map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept_and_told_oldest_first_with_their_age() {
        let (events, start) = (Events::default(), Instant::now());
        for second in 0..300 {
            let at = start + Duration::from_secs(second);
            events.add(at, Level::Info, format!("event {second}"));
        }
        let told = events.tell(start + Duration::from_secs(300));
        assert_eq!(told.len(), KEPT);
        assert_eq!(
            told.first(),
            Some(&Told {
                ago: Duration::from_secs(256),
                level: Level::Info,
                text: "event 44".into()
            })
        );
        assert_eq!(told.last().map(|t| t.text.as_str()), Some("event 299"));
    }
}

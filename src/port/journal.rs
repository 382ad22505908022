//! A port's lines in the log, held to a budget: a front-end that reconnects a thousand times a second
//! must not fill the host's disk. What was left out is counted and said as soon as there is room again.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::Level;

use super::events::Events;

/// Lines a port may write at once...
const BURST: u32 = 200;
/// ...and how long one more takes to earn.
const REFILL: Duration = Duration::from_millis(50);
/// How long lines that were left out are collected before they are spoken of.
const REPORT: Duration = Duration::from_secs(10);

pub(super) struct Journal {
    port: String,
    /// These are kept whatever becomes of the lines.
    events: Arc<Events>,
    budget: u32,
    earned_until: Instant,
    left_out: u64,
    /// Since when.
    left_out_since: Instant,
}

impl Journal {
    pub(super) fn new(port: &str, events: Arc<Events>, now: Instant) -> Journal {
        Journal {
            port: port.to_owned(),
            events,
            budget: BURST,
            earned_until: now,
            left_out: 0,
            left_out_since: now,
        }
    }

    /// Keeps `line` as an event, and writes it or counts it as left out.
    pub(super) fn write(&mut self, now: Instant, level: Level, line: fmt::Arguments<'_>) {
        let line = line.to_string();
        self.events.add(now, level, line.clone());
        // Lines that the log would not take cost no budget.
        if !log::log_enabled!(level) || !self.spend(now) {
            return;
        }
        if self.left_out > 0 && now.saturating_duration_since(self.left_out_since) >= REPORT {
            log::warn!(
                "port '{}': {} lines left out, there were too many at once",
                self.port,
                self.left_out
            );
            self.left_out = 0;
        }
        log::log!(level, "{line}");
    }

    fn spend(&mut self, now: Instant) -> bool {
        while self.budget < BURST && now.saturating_duration_since(self.earned_until) >= REFILL {
            self.budget += 1;
            self.earned_until += REFILL;
        }
        if self.budget == BURST {
            self.earned_until = now;
        }
        match self.budget.checked_sub(1) {
            Some(rest) => {
                self.budget = rest;
                true
            }
            None => {
                if self.left_out == 0 {
                    self.left_out_since = now;
                }
                self.left_out += 1;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_the_budget_and_quiet_earns_it_back() {
        let start = Instant::now();
        let mut journal = Journal::new("p", Arc::default(), start);
        let passed = (0..10_000).filter(|_| journal.spend(start)).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(journal.left_out, 10_000 - u64::from(BURST));
        let later = start + REFILL * 20;
        let passed = (0..10_000).filter(|_| journal.spend(later)).count();
        assert_eq!(passed, 20);
    }
}

//! What came of all blows: a line for each as it falls, a table in the end.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use super::flood::Moved;
use super::stage::Outcome;
use super::talk::Account;

pub struct Tally {
    start: Instant,
    rows: BTreeMap<&'static str, Row>,
}

/// All blows of a kind.
#[derive(Default)]
struct Row {
    recoveries: Vec<Duration>,
    pause: Duration,
    account: Account,
    flood: Moved,
}

impl Tally {
    pub fn new(start: Instant) -> Tally {
        Tally {
            start,
            rows: BTreeMap::new(),
        }
    }

    /// Takes in what came of a blow, and says it in a line.
    pub fn add(&mut self, blow: &'static str, outcome: &Outcome) -> String {
        self.rows.entry(blow).or_default().add(outcome);
        let Outcome {
            recovery,
            pause,
            account,
            flood,
        } = outcome;
        format!(
            "{:>5} s  {blow}: works again after {} ms; innocent: {} frames, {} dropped, {} lost, {} twice, waited {} \
             ms; flood: {} packets, {} dropped",
            self.start.elapsed().as_secs(),
            recovery.as_millis(),
            account.sent,
            account.lost - account.uncounted(),
            account.uncounted(),
            account.twice,
            pause.as_millis(),
            flood.packets,
            flood.dropped
        )
    }

    pub fn table(&mut self) -> String {
        let mut text = format!(
            "\n{:<34}{:>6}{:>15}{:>12}{:>10}{:>9}{:>6}{:>7}{:>12}{:>9}\n",
            "",
            "times",
            "recovery, ms",
            "waited, ms",
            "innocent",
            "dropped",
            "lost",
            "twice",
            "flood",
            "dropped"
        );
        for (blow, row) in &mut self.rows {
            let _ = writeln!(text, "{blow:<34}{}", row.tell());
        }
        text
    }
}

impl Row {
    fn add(&mut self, outcome: &Outcome) {
        self.recoveries.push(outcome.recovery);
        self.pause = self.pause.max(outcome.pause);
        self.account = self.account.and(&outcome.account);
        self.flood.packets += outcome.flood.packets;
        self.flood.dropped += outcome.flood.dropped;
    }

    fn tell(&mut self) -> String {
        self.recoveries.sort_unstable();
        let times = self.recoveries.len();
        let ms = |index: usize| self.recoveries.get(index).map_or(0, Duration::as_millis);
        let recovery = format!("{} (..{})", ms(times / 2), ms(times - 1));
        let Account {
            sent, twice, lost, ..
        } = self.account;
        let (uncounted, waited) = (self.account.uncounted(), self.pause.as_millis());
        let (
            dropped,
            Moved {
                packets,
                dropped: of_flood,
            },
        ) = (lost - uncounted, self.flood);
        format!(
            "{times:>6}{recovery:>15}{waited:>12}{sent:>10}{dropped:>9}{uncounted:>6}{twice:>7}{packets:>12}{of_flood:>9}"
        )
    }
}

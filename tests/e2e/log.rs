//! Reading ovs-vswitchd.log: lines with their time and level, and the judgement whether a log is clean. A line at
//! WARN or above that no case expected is a finding, the same rule Open vSwitch's own suite has.

use std::path::Path;

use anyhow::{bail, Result};

/// Lines a loaded machine produces on its own account; Open vSwitch's own suite tolerates the same.
const LOADED_MACHINE: &[&str] = &[
    "ms poll interval",
    "major faults",
    "faults: ",
    "disk: ",
    "context switches: ",
    "waiting for main to quiesce",
    "waiting for pmd-",
    "waiting for vhost_",
    "waiting for handler",
    "waiting for revalidator",
    // A flow that is looked at again just when its port is deleted.
    "xlate_key failed (No such device)",
];

/// One line of the log.
#[derive(Clone, Debug)]
pub struct Line {
    /// Seconds since the epoch.
    pub time: f64,
    /// Module, and thread where it is not the main one.
    pub module: String,
    /// INFO, WARN, ERR, ...
    pub level: String,
    /// The message.
    pub text: String,
}

impl Line {
    /// Reads `2026-01-02T03:04:05.678Z|00001|module|LEVEL|text`; other lines are continuations and yield nothing.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(5, '|');
        let time = parse_time(fields.next()?)?;
        let _sequence = fields.next()?;
        Some(Line {
            time,
            module: fields.next()?.into(),
            level: fields.next()?.into(),
            text: fields.next()?.into(),
        })
    }

    fn is_finding(&self) -> bool {
        matches!(self.level.as_str(), "WARN" | "ERR" | "EMER")
    }
}

/// The lines of `path` from byte `from` on.
pub fn read(path: &Path, from: usize) -> Vec<Line> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned();
    text.lines().filter_map(Line::parse).collect()
}

/// Size of the log now: a mark to read from later.
pub fn mark(path: &Path) -> usize {
    std::fs::metadata(path).map_or(0, |data| usize::try_from(data.len()).unwrap_or(usize::MAX))
}

/// Fails on every WARN, ERR and EMER line that contains none of `allowed`.
pub fn check_clean(lines: &[Line], allowed: &[&str]) -> Result<()> {
    let expected = |line: &Line| {
        let mut allowed = LOADED_MACHINE.iter().chain(allowed);
        allowed.any(|text| line.text.contains(text))
    };
    let findings: Vec<String> = lines
        .iter()
        .filter(|line| line.is_finding() && !expected(line))
        .map(|line| format!("  {}|{}|{}", line.module, line.level, line.text))
        .collect();
    if !findings.is_empty() {
        let shown = findings.len().min(20);
        bail!(
            "ovs-vswitchd.log has {} unexpected lines:\n{}",
            findings.len(),
            findings[..shown].join("\n")
        );
    }
    Ok(())
}

/// Seconds since the epoch of an RFC 3339 time in UTC.
fn parse_time(text: &str) -> Option<f64> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let days = days_from_civil(date.next()??, date.next()??, date.next()??);
    let mut clock = clock.splitn(3, ':');
    let hours: f64 = clock.next()?.parse().ok()?;
    let minutes: f64 = clock.next()?.parse().ok()?;
    let seconds: f64 = clock.next()?.parse().ok()?;
    #[expect(clippy::cast_precision_loss, reason = "a day number is far below 2^52")]
    Some(days as f64 * 86400.0 + hours * 3600.0 + minutes * 60.0 + seconds)
}

/// Days since 1970-01-01 of a date of the Gregorian calendar (years start in March here, so the leap day is last).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

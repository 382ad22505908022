//! What benches have in common: two sides that take turns, what many samples say together, and where that goes.

use std::fmt;
use std::process::ExitCode;

use anyhow::{bail, ensure, Context, Result};

use crate::chart::Chart;
use crate::settings::{Need, Settings};
use crate::turn;

/// A bench as a program: does what was asked for, as the only run on this machine. No plan: it was asked wrongly.
pub fn main<P>(usage: &str, plan: Option<P>, bench: impl FnOnce(&P) -> Result<()>) -> ExitCode {
    let Some(plan) = plan else {
        eprintln!("{usage}");
        return ExitCode::from(2);
    };
    match turn::take(|text| eprintln!("{text}")).and_then(|_turn| bench(&plan)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Fails unless both sides can be had.
pub fn check_needs(settings: &Settings) -> Result<()> {
    for need in [Need::Switch, Need::Testpmd] {
        if let Some(reason) = need.missing(settings) {
            bail!("cannot measure: {reason}");
        }
    }
    ensure!(
        !settings.stock(),
        "E2E_PLUGIN=none: nothing to compare the stock ports with"
    );
    Ok(())
}

/// Writes all samples to `file`, from the repository's root, and a chart of them beside it; says where.
pub fn keep(settings: &Settings, file: &str, json: &str, chart: &Chart) -> Result<()> {
    let path = settings.root.join(file);
    std::fs::create_dir_all(path.parent().context("a file name")?)?;
    for (path, text) in [(path.with_extension("svg"), chart.svg()?), (path, json.into())] {
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Which ports serve.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Stock,
    Plugin,
}

impl Side {
    /// Both, in the order in which they take turns.
    pub const BOTH: [Side; 2] = [Side::Stock, Side::Plugin];

    pub fn name(self) -> &'static str {
        match self {
            Side::Stock => "stock",
            Side::Plugin => "plugin",
        }
    }

    /// The caller's settings, for this side.
    pub fn settings(self, settings: &Settings) -> Settings {
        let plugin = settings.plugin.clone().filter(|_| self == Side::Plugin);
        Settings {
            plugin,
            ..settings.clone()
        }
    }
}

/// Least, middle and greatest of some samples.
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub greatest: f64,
}

impl Spread {
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        Spread {
            least: at(0),
            median: match values.len() % 2 {
                0 => (at(middle.wrapping_sub(1)) + at(middle)) / 2.0,
                _ => at(middle),
            },
            greatest: at(values.len().wrapping_sub(1)),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.0} ({:.0}-{:.0})", self.median, self.least, self.greatest);
        f.pad(&text)
    }
}

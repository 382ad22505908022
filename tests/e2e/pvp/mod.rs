//! `e2e pvp`: what a packet costs the poll thread, with the plugin and with the stock ports, side by side.
//!
//! A real switch with one poll thread and two or more dpdkvhostuserclient ports, and peers on the other core: testpmd, which
//! bounces packets between them, so that every packet crosses the poll thread twice a round, once out of a guest's ring and
//! once into another; or two guests of our own that send each other all they can, for what testpmd does not do.
//! The same patched vswitchd runs once without the plugin and once with it, in turn, so that what the machine does
//! meanwhile hits both alike; the median of the pairs' ratios is what counts, the figures themselves are this machine's. Where
//! the host moved a core between two samples they are no pair: such are measured again, and told of.

mod distance;
mod load;
mod peers;
mod report;
mod sample;
mod shapes;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{ensure, Context, Result};

use crate::settings::Settings;
use crate::sides::{self, check_needs, keep, Side};
use crate::wait;
pub use distance::{stay_beside_the_poll_thread, Aside};
use load::Load;
use report::Report;
pub use sample::Times;
use sample::{Pair, Sample, Shape};
use shapes::SHAPES;

const USAGE: &str = "usage: e2e pvp [--pairs N] [--seconds N] [--load LOAD] [--json FILE] [RINGS...]";

/// Before anything is measured.
const WARM_UP: Duration = Duration::from_millis(1500);

/// What is measured.
pub struct Plan {
    pub pairs: usize,
    pub times: Times,
    /// How often a pair is measured at most, where the host spoils it, before there is one less.
    pub attempts: u32,
    /// Packets of the load of this name only.
    pub load: Option<String>,
    pub json: Option<String>,
    /// Names of shapes; none: all.
    pub filters: Vec<String>,
}

impl Plan {
    fn parse(arguments: &[String]) -> Option<Self> {
        let mut plan = Plan {
            pairs: 5,
            times: Times {
                warm_up: WARM_UP,
                measured: Duration::from_secs(3),
            },
            attempts: 4,
            load: None,
            json: None,
            filters: Vec::new(),
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--pairs" => plan.pairs = arguments.next()?.parse().ok()?,
                "--seconds" => plan.times.measured = Duration::from_secs(arguments.next()?.parse().ok()?),
                "--load" => plan.load = Some(arguments.next()?.clone()),
                "--json" => plan.json = Some(arguments.next()?.clone()),
                option if option.starts_with('-') => return None,
                filter => plan.filters.push(filter.into()),
            }
        }
        (plan.pairs > 0 && !plan.times.measured.is_zero()).then_some(plan)
    }

    /// Which of the shape's loads.
    fn loads(&self, shape: &Shape) -> Vec<Load> {
        let wanted = |load: &Load| self.load.as_ref().is_none_or(|name| name == load.name);
        shape.loads.iter().copied().filter(wanted).collect()
    }

    fn wants(&self, shape: &Shape) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| shape.name == filter)
    }
}

/// Measures and prints; fails only if packets did not move.
pub fn main(settings: &Settings, arguments: &[String]) -> ExitCode {
    sides::main(USAGE, Plan::parse(arguments), |plan| run(settings, plan))
}

/// Measures what `plan` says, both sides in turn.
pub fn run(settings: &Settings, plan: &Plan) -> Result<()> {
    check_needs(settings)?;
    let mut report = Report::default();
    let shapes: Vec<&Shape> = SHAPES.iter().filter(|shape| plan.wants(shape)).collect();
    ensure!(
        !shapes.is_empty(),
        "no such rings; there are {:?}",
        SHAPES.each_ref().map(|shape| shape.name)
    );
    for shape in shapes {
        for pair in 1..=plan.pairs {
            eprintln!("{}: pair {pair} of {}", shape.name, plan.pairs);
            measure_pair(settings, plan, shape, &mut report)?;
        }
        print!("{}", report.table(shape.name));
    }
    if let Some(file) = &plan.json {
        keep(settings, file, &report.json(plan.times.measured), &report.chart())?;
    }
    Ok(())
}

/// Adds one pair for each load to the report, of samples taken at one distance of the cores if the host grants it.
fn measure_pair(settings: &Settings, plan: &Plan, shape: &Shape, report: &mut Report) -> Result<()> {
    let mut loads = plan.loads(shape);
    for attempt in 1..=plan.attempts {
        let side = |side: Side| {
            ensure!(!wait::interrupted(), "interrupted");
            measure(settings, shape, &loads, side, plan.times)
                .with_context(|| format!("{} with {} ports", shape.name, side.name()))
        };
        let (stock, plugin) = (side(Side::Stock)?, side(Side::Plugin)?);
        let mut left = Vec::new();
        for ((load, stock), plugin) in loads.iter().zip(stock).zip(plugin) {
            let pair = Pair { stock, plugin };
            if pair.is_even() {
                report.add(shape.name, load.name, pair);
            } else {
                eprintln!(
                    "{}, {}: the host moved a core ({}), attempt {attempt} of {}",
                    shape.name,
                    load.name,
                    pair.told_distances(),
                    plan.attempts,
                );
                left.push(*load);
            }
        }
        loads = left;
        if loads.is_empty() {
            break;
        }
    }
    Ok(())
}

fn measure(
    settings: &Settings,
    shape: &Shape,
    loads: &[Load],
    side: Side,
    times: Times,
) -> Result<Vec<Sample>> {
    let dir = tempfile::Builder::new().prefix("ovs-pvp-").tempdir()?;
    sample::run(&side.settings(settings), dir.path(), shape, loads, times)
}

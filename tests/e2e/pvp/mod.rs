//! `e2e pvp`: what a packet costs the poll thread, with the plugin and with the stock ports, side by side.
//!
//! A real switch with one poll thread and two or more dpdkvhostuserclient ports, testpmd bouncing packets between them from the
//! other core: every packet crosses the poll thread twice a round, once out of a guest's ring and once into another.
//! The same patched vswitchd runs once without the plugin and once with it, in turn, so that what the machine does
//! meanwhile hits both alike; the median of the pairs' ratios is what counts, the figures themselves are this machine's. Where
//! the host moved a core between two samples they are no pair: such are measured again, and told of.

mod distance;
mod load;
mod report;
mod sample;

use std::process::ExitCode;

use anyhow::{ensure, Context, Result};

use crate::settings::Settings;
use crate::sides::{self, check_needs, keep, Side};
use crate::testpmd::{Capacity, Rings, USUAL};
use crate::wait;
pub use distance::{stay_beside_the_poll_thread, Aside};
use load::Load;
use report::Report;
use sample::{Pair, Sample, Shape};

const USAGE: &str = "usage: e2e pvp [--pairs N] [--seconds N] [--load LOAD] [--json FILE] [RINGS...]";

const TWO_PORTS: Shape = Shape {
    name: "split",
    rings: Rings::PLAIN,
    ports: 2,
    queues: 1,
    capacity: USUAL,
    loads: &[load::B64, load::B256, load::B512, load::B1518, load::IMIX],
};

/// What is measured, by name, with what is sent.
const SHAPES: [Shape; 8] = [
    Shape {
        name: "split-mergeable",
        rings: Rings::MERGEABLE,
        ..TWO_PORTS
    },
    TWO_PORTS,
    Shape {
        name: "in-order",
        rings: Rings {
            in_order: true,
            ..Rings::PLAIN
        },
        loads: &[load::B64, load::B512],
        ..TWO_PORTS
    },
    Shape {
        name: "packed",
        rings: Rings::PACKED_MERGEABLE,
        ..TWO_PORTS
    },
    Shape {
        name: "two-queue-pairs",
        rings: Rings::MERGEABLE,
        queues: 2,
        loads: &[load::B64],
        ..TWO_PORTS
    },
    Shape {
        name: "eight-ports",
        rings: Rings::MERGEABLE,
        ports: 8,
        loads: &[load::B64],
        ..TWO_PORTS
    },
    Shape {
        name: "thousand-flows",
        rings: Rings::MERGEABLE,
        capacity: Capacity { ring: 1024, ..USUAL },
        loads: &[load::FLOWS],
        ..TWO_PORTS
    },
    Shape {
        name: "jumbo",
        rings: Rings::MERGEABLE,
        capacity: Capacity { mtu: 9000, ..USUAL },
        loads: &[load::B9000],
        ..TWO_PORTS
    },
];

/// What is measured.
pub struct Plan {
    pub pairs: usize,
    pub seconds: u64,
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
            seconds: 3,
            attempts: 4,
            load: None,
            json: None,
            filters: Vec::new(),
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--pairs" => plan.pairs = arguments.next()?.parse().ok()?,
                "--seconds" => plan.seconds = arguments.next()?.parse().ok()?,
                "--load" => plan.load = Some(arguments.next()?.clone()),
                "--json" => plan.json = Some(arguments.next()?.clone()),
                option if option.starts_with('-') => return None,
                filter => plan.filters.push(filter.into()),
            }
        }
        (plan.pairs > 0 && plan.seconds > 0).then_some(plan)
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
        SHAPES.map(|shape| shape.name)
    );
    for shape in shapes {
        for pair in 1..=plan.pairs {
            eprintln!("{}: pair {pair} of {}", shape.name, plan.pairs);
            measure_pair(settings, plan, shape, &mut report)?;
        }
        print!("{}", report.table(shape.name));
    }
    if let Some(file) = &plan.json {
        keep(settings, file, &report.json(plan.seconds), &report.chart())?;
    }
    Ok(())
}

/// Adds one pair for each load to the report, of samples taken at one distance of the cores if the host grants it.
fn measure_pair(settings: &Settings, plan: &Plan, shape: &Shape, report: &mut Report) -> Result<()> {
    let mut loads = plan.loads(shape);
    for attempt in 1..=plan.attempts {
        let side = |side: Side| {
            ensure!(!wait::interrupted(), "interrupted");
            measure(settings, shape, &loads, side, plan.seconds)
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
    seconds: u64,
) -> Result<Vec<Sample>> {
    let dir = tempfile::Builder::new().prefix("ovs-pvp-").tempdir()?;
    sample::run(&side.settings(settings), dir.path(), shape, loads, seconds)
}

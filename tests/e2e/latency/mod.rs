//! `e2e latency`: how long a frame is under way through the switch, and how many frames a second it takes without losing one,
//! with the plugin and with the stock ports, side by side.
//!
//! Two guests in this process, on the core beside the poll thread's, send each other stamped frames of 64 bytes at a steady
//! rate. First the rate at which nothing is lost is searched for, by halves; then both sides are asked for their latencies
//! at a tenth, a half and nine tenths of what the *stock* ports bear: the same load for both.

mod stream;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{ensure, Context, Result};

use crate::cases::world::{Kind, World, PATIENCE};
use crate::pvp::stay_beside_the_poll_thread;
use crate::quick_guest::Guest;
use crate::samples::Report;
use crate::settings::Settings;
use crate::sides::{self, check_needs, keep, Side};
use crate::wait;
use stream::{Outcome, Way};

const USAGE: &str = "usage: e2e latency [--pairs N] [--seconds N] [--json FILE]";
/// The load, in hundredths of what the stock ports bear.
const LOADS: [u64; 3] = [10, 50, 90];
const PERCENTILES: [f64; 3] = [50.0, 99.0, 99.9];
/// Between these rates, in frames a second, lies the one that is searched for.
const RATES: [u64; 2] = [100_000, 16_000_000];
/// The range is halved so many times.
const HALVES: u32 = 7;
/// A rate is borne if one of these loses nothing: whoever shares the machine spoils some.
const TRIALS: u32 = 4;
const TRIAL: Duration = Duration::from_millis(150);
/// Before anything is measured: frames a second, and how long.
const WARM_UP: (u64, Duration) = (100_000, Duration::from_secs(1));

/// What is measured.
pub struct Plan {
    pub pairs: usize,
    /// Of each load.
    pub seconds: u64,
    pub json: Option<String>,
}

impl Plan {
    fn parse(arguments: &[String]) -> Option<Self> {
        let mut plan = Plan {
            pairs: 3,
            seconds: 2,
            json: None,
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--pairs" => plan.pairs = arguments.next()?.parse().ok()?,
                "--seconds" => plan.seconds = arguments.next()?.parse().ok()?,
                "--json" => plan.json = Some(arguments.next()?.clone()),
                _ => return None,
            }
        }
        (plan.pairs > 0 && plan.seconds > 0).then_some(plan)
    }
}

/// Measures and prints; fails only if frames did not arrive at all.
pub fn main(settings: &Settings, arguments: &[String]) -> ExitCode {
    sides::main(USAGE, Plan::parse(arguments), |plan| run(settings, plan))
}

/// Measures what `plan` says, both sides in turn, the stock ports first.
pub fn run(settings: &Settings, plan: &Plan) -> Result<()> {
    check_needs(settings)?;
    let mut report = Report::default();
    for pair in 1..=plan.pairs {
        let mut borne = None;
        for side in Side::BOTH {
            ensure!(!wait::interrupted(), "interrupted");
            eprintln!("pair {pair} of {}, {}", plan.pairs, side.name());
            let time = Duration::from_secs(plan.seconds);
            measure(settings, side, time, &mut borne, &mut report)
                .with_context(|| format!("{} ports", side.name()))?;
        }
    }
    print!("{}", report.table());
    match &plan.json {
        Some(file) => keep(
            settings,
            file,
            &report.json(),
            &report.chart("How long a frame is under way, and what is borne without loss"),
        ),
        None => Ok(()),
    }
}

/// One side: what it bears, and its latencies at shares of `borne`, which is what the first side bore.
fn measure(
    settings: &Settings,
    side: Side,
    time: Duration,
    borne: &mut Option<u64>,
    report: &mut Report,
) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("ovs-latency-").tempdir()?;
    let world = World::new(&side.settings(settings), dir.path(), true)?;
    let ports = world.many_testpmd_ports(Kind::Server, 2)?;
    world.cross_connect(&ports)?;
    // A thread of its own, which stays where it is put.
    let measured = std::thread::scope(|scope| {
        let measuring = scope.spawn(|| -> Result<Vec<(String, &'static str, f64)>> {
            stay_beside_the_poll_thread();
            let mut guests = [
                Guest::connect(&ports[0].socket)?,
                Guest::connect(&ports[1].socket)?,
            ];
            for port in &ports {
                world.ovs.wait_link(&port.name, true, PATIENCE)?;
            }
            stream::run(&mut guests, Way::AndBack, WARM_UP.0, WARM_UP.1)?;
            let bears = search(&mut guests)?;
            let base = *borne.get_or_insert(bears);
            let mut found = vec![(
                "frames a second without loss".to_owned(),
                "M/s",
                bears as f64 / 1e6,
            )];
            // A frame that comes back is two for the switch.
            for (way, name, frames) in [(Way::There, "one way", 1), (Way::AndBack, "there and back", 2)] {
                for load in LOADS {
                    let rate = base * load / 100 / frames;
                    let outcome = stream::run(&mut guests, way, rate, time)?;
                    found.extend(told(&format!("{name}, {load} % load"), &outcome));
                }
            }
            Ok(found)
        });
        measuring.join().expect("measuring does not panic")
    })?;
    for (what, unit, value) in measured {
        report.add(side, what, unit, value);
    }
    world.finish(&[])
}

/// The highest rate at which nothing is lost.
fn search(guests: &mut [Guest; 2]) -> Result<u64> {
    let [mut least, mut most] = RATES;
    for _ in 0..HALVES {
        let middle = u64::midpoint(least, most);
        match bears(guests, middle)? {
            true => least = middle,
            false => most = middle,
        }
    }
    Ok(least)
}

fn bears(guests: &mut [Guest; 2], rate: u64) -> Result<bool> {
    for _ in 0..TRIALS {
        if stream::run(guests, Way::There, rate, TRIAL)?.lost == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What the report says of an outcome.
fn told(what: &str, outcome: &Outcome) -> Vec<(String, &'static str, f64)> {
    let percentile = |percentile: f64| {
        let nanos = outcome.latency.value_at_quantile(percentile / 100.0);
        (format!("{what}: P{percentile}"), "µs", nanos as f64 / 1e3)
    };
    let lost = (
        format!("{what}: lost"),
        "ppm",
        1e6 * outcome.lost as f64 / outcome.due.max(1) as f64,
    );
    PERCENTILES.into_iter().map(percentile).chain([lost]).collect()
}

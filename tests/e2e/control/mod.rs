//! `e2e control`: what ports cost besides packets, with the plugin and with the stock ports, side by side: how long guests
//! are without a switch when it is started anew, how long a switch leaves a new guest waiting, what memory a port takes,
//! and what ports that come and go do to those beside them.

pub mod crowd;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use crate::cases::world::{Kind, World};
use crate::samples::Report;
use crate::settings::Settings;
use crate::sides::{self, check_needs, keep, Side};
use crate::testpmd::Rings;
use crate::wait;
use crowd::{add_ports, Crowd};

const USAGE: &str = "usage: e2e control [--pairs N] [--json FILE] [PORTS...]";
/// Ports that come and go beside running ones.
const VISITORS: usize = 20;
/// How long packets go round before and while they do.
const QUIET: Duration = Duration::from_secs(1);

/// What is measured.
pub struct Plan {
    pub pairs: usize,
    /// Numbers of ports that reconnect.
    pub crowds: Vec<usize>,
    pub json: Option<String>,
}

impl Plan {
    fn parse(arguments: &[String]) -> Option<Self> {
        let mut plan = Plan {
            pairs: 3,
            crowds: Vec::new(),
            json: None,
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--pairs" => plan.pairs = arguments.next()?.parse().ok()?,
                "--json" => plan.json = Some(arguments.next()?.clone()),
                number => plan.crowds.push(number.parse().ok()?),
            }
        }
        if plan.crowds.is_empty() {
            plan.crowds = vec![1, 100, 500];
        }
        (plan.pairs > 0 && !plan.crowds.contains(&0)).then_some(plan)
    }
}

/// Measures and prints; fails only if something did not come about at all.
pub fn main(settings: &Settings, arguments: &[String]) -> ExitCode {
    sides::main(USAGE, Plan::parse(arguments), |plan| run(settings, plan))
}

/// Measures what `plan` says, both sides in turn.
pub fn run(settings: &Settings, plan: &Plan) -> Result<()> {
    check_needs(settings)?;
    let mut report = Report::default();
    for pair in 1..=plan.pairs {
        for side in Side::BOTH {
            for count in &plan.crowds {
                eprintln!("pair {pair} of {}, {}: {count} ports", plan.pairs, side.name());
                in_a_world(settings, side, |world| crowd(world, side, *count, &mut report))
                    .with_context(|| format!("{count} {} ports", side.name()))?;
            }
            eprintln!("pair {pair} of {}, {}: visitors", plan.pairs, side.name());
            in_a_world(settings, side, |world| visitors(world, side, &mut report))
                .with_context(|| format!("visitors of {} ports", side.name()))?;
        }
    }
    print!("{}", report.table());
    if let Some(file) = &plan.json {
        keep(
            settings,
            file,
            &report.json(),
            &report.chart("Ports by the hundred"),
        )?;
    }
    Ok(())
}

fn in_a_world(settings: &Settings, side: Side, measure: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    ensure!(!wait::interrupted(), "interrupted");
    let dir = tempfile::Builder::new().prefix("ovs-control-").tempdir()?;
    let mut world = World::new(&side.settings(settings), dir.path(), true)?;
    measure(&mut world)
}

/// `count` ports: what memory they take, and how long they take to find their front-ends again.
fn crowd(world: &mut World, side: Side, count: usize, report: &mut Report) -> Result<()> {
    let mut add = |what: &str, unit, value| report.add(side, format!("{count} ports: {what}"), unit, value);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;

    let empty = memory(world)?;
    let start = Instant::now();
    let ports = add_ports(world, "br0", count)?;
    add("added", "ms", ms(start.elapsed()));
    let alone = memory(world)?;

    // The front-ends come when the ports have long waited for them, as after the start of a host.
    std::thread::sleep(QUIET);
    let crowd = Crowd::listen(&ports)?;
    let start = Instant::now();
    let connected = crowd.gather()?;
    add(
        "front-ends appear, until the last is answered",
        "ms",
        ms(connected.end - start),
    );
    // Among the first port's is what all have in common.
    if count > 1 {
        let per_port = |now: u64| now.saturating_sub(empty) as f64 / count as f64;
        add("memory of each, alone", "KiB", per_port(alone));
        add("memory of each, connected", "KiB", per_port(memory(world)?));
    }

    // The switch goes and comes.
    world.ovs.kill_9()?;
    drop(connected);
    let start = Instant::now();
    world.ovs.spawn_vswitchd()?;
    let connected = crowd.gather()?;
    add(
        "vswitchd starts, until the last is answered",
        "ms",
        ms(connected.end - start),
    );
    if count > 1 {
        add("the same, from the first answer on", "ms", ms(connected.span));
    }
    world.ovs.wait_configured()?;
    world.ovs.check_alive()
}

/// Two ports with packets going round, and others that come and go meanwhile.
fn visitors(world: &mut World, side: Side, report: &mut Report) -> Result<()> {
    let ports = world.testpmd_ports(Kind::Client)?;
    world.cross_connect(&ports)?;
    let mut testpmd = world.start_testpmd(&ports, Rings::MERGEABLE)?;
    testpmd.command("start tx_first 2", "packet forwarding")?;
    std::thread::sleep(QUIET);
    let mut times = [Vec::new(), Vec::new()];
    for number in 0..VISITORS {
        ensure!(!wait::interrupted(), "interrupted");
        let visitor = world.port(Kind::Client, &format!("visitor{number}"));
        let commands = [
            format!("add-port br0 {} -- {}", visitor.name, visitor.vsctl_args()),
            format!("del-port br0 {}", visitor.name),
        ];
        for (command, times) in commands.iter().zip(&mut times) {
            let start = Instant::now();
            world.ovs.vsctl(command)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    for (what, times) in ["add-port", "del-port"].iter().zip(times) {
        for time in times {
            report.add(side, format!("{what} beside running ports"), "ms", time);
        }
    }
    let mut moved = 0;
    let mut lost = 0;
    testpmd.command("stop", "Done.")?;
    for port in &ports {
        let counters = world.ovs.counters(&port.name)?.context("no counters")?;
        moved += counters.rx_packets;
        lost += counters.tx_dropped;
    }
    ensure!(moved > 1000, "only {moved} packets went round");
    report.add(side, "packets lost beside them".into(), "", lost as f64);
    drop(testpmd);
    world.ovs.check_alive()
}

/// KiB of memory that vswitchd has, huge pages included.
fn memory(world: &World) -> Result<u64> {
    let path = format!("/proc/{}/smaps_rollup", world.ovs.pid()?);
    let text = std::fs::read_to_string(Path::new(&path)).with_context(|| path.clone())?;
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .with_context(|| format!("no {name} in {path}"))
    };
    Ok(kib("Rss:")? + kib("Shared_Hugetlb:")? + kib("Private_Hugetlb:")?)
}

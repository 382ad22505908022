//! One measurement: a switch, ports, peers on them, and the poll thread's own account of its cycles.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use super::distance;
use super::load::Load;
use super::peers::{Guests, Peers};
use crate::cases::world::{self, Kind, World};
use crate::ovs::Options;
use crate::settings::Settings;

/// What to measure, and what to send through it.
pub struct Shape {
    pub name: &'static str,
    /// Ports, of which every two exchange packets.
    pub ports: usize,
    pub guests: Guests,
    /// `other_config` of the switch, where it is not the usual.
    pub other_config: &'static [&'static str],
    /// Whether the plugin's switch starts DPDK. Stock ports cannot be without.
    pub dpdk: bool,
    /// What is sent.
    pub loads: &'static [Load],
}

/// How long to measure.
#[derive(Clone, Copy)]
pub struct Times {
    /// How long packets go before anything is measured: caches, pools and the flow cache are warm then.
    pub warm_up: Duration,
    pub measured: Duration,
}

/// Matches nothing that is sent, but has the switch look at more of a packet than at its port: else all are one flow to it.
const TELLS_FLOWS_APART: &str = "priority=40000,udp,nw_dst=10.0.0.1,tp_src=1,actions=drop";

/// What the poll thread said.
#[derive(Clone, Copy)]
pub struct Sample {
    /// Cycles per packet in iterations that moved packets.
    pub cycles: f64,
    /// Million packets per second that it received.
    pub mpps: f64,
    /// How far the cores were apart, before and after.
    pub distance: [Duration; 2],
}

/// What both sides took for the same.
#[derive(Clone, Copy)]
pub struct Pair {
    pub stock: Sample,
    pub plugin: Sample,
}

impl Pair {
    /// Whether the cores were equally far apart all the time.
    pub fn is_even(&self) -> bool {
        distance::are_alike(self.distances())
    }

    /// The same for people.
    pub fn told_distances(&self) -> String {
        let texts: Vec<String> = self.distances().map(|d| format!("{} ns", d.as_nanos())).collect();
        texts.join(", ")
    }

    /// Before and after each sample.
    fn distances(&self) -> impl Iterator<Item = Duration> + Clone {
        self.stock.distance.into_iter().chain(self.plugin.distance)
    }
}

/// Measures each of `loads`.
pub fn run(
    settings: &Settings,
    dir: &Path,
    shape: &Shape,
    loads: &[Load],
    times: Times,
) -> Result<Vec<Sample>> {
    let options = Options {
        other_config: shape.other_config.to_vec(),
        ..world::options(settings, shape.dpdk || settings.stock())
    };
    let world = World::with(settings, dir, options, true)?;
    let ports = world.many_testpmd_ports(Kind::Client, shape.ports)?;
    let mut peers = shape.guests.come(&world, &ports)?;
    loads
        .iter()
        .map(|load| {
            world.cross_connect(&ports)?;
            if load.flows {
                world.ovs.ofctl(&format!("add-flow br0 {TELLS_FLOWS_APART}"))?;
            }
            let sample = measure(&world, peers.as_mut(), load, times);
            sample.with_context(|| load.name)
        })
        .collect()
}

/// Has a load go through the switch for a while, and then its packets leave the rings.
fn measure(world: &World, peers: &mut dyn Peers, load: &Load, times: Times) -> Result<Sample> {
    let before = distance::measure();
    peers.start(load)?;
    std::thread::sleep(times.warm_up);
    world.ovs.appctl("dpif-netdev/pmd-stats-clear")?;
    let start = Instant::now();
    std::thread::sleep(times.measured);
    let stats = world.ovs.appctl("dpif-netdev/pmd-stats-show")?;
    let elapsed = start.elapsed();
    peers.stop(world)?;
    let packets = value(&stats, "packets received:")?;
    ensure!(packets > 1000.0, "only {packets} packets went through");
    Ok(Sample {
        cycles: value(&stats, "avg processing cycles per packet:")?,
        mpps: packets / elapsed.as_secs_f64() / 1e6,
        distance: [before, distance::measure()],
    })
}

/// The number behind `name` of the poll thread that moved packets; main has such lines too, after it or before it.
fn value(stats: &str, name: &str) -> Result<f64> {
    let thread = stats
        .split("pmd thread ")
        .nth(1)
        .context("no poll thread in pmd-stats-show")?;
    let (_, rest) = thread.split_once(name).with_context(|| format!("no {name}"))?;
    let number = rest.split_whitespace().next().context("no number")?;
    number.parse().with_context(|| format!("{name} {number}"))
}

//! One measurement: a switch, two ports, a packet loop, and the poll thread's own account of its cycles.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use super::distance;
use super::load::Load;
use crate::cases::world::{Kind, Port, World, PATIENCE};
use crate::settings::Settings;
use crate::testpmd::{Capacity, Device, Rings, Testpmd};
use crate::wait;

/// Rings to measure, and what to send through them.
pub struct Shape {
    pub name: &'static str,
    pub rings: Rings,
    /// Ports, of which every two exchange packets.
    pub ports: usize,
    /// Queue pairs of each.
    pub queues: u16,
    pub capacity: Capacity,
    /// What is sent.
    pub loads: &'static [Load],
}

/// How long packets go round before anything is measured: caches, pools and the flow cache are warm then.
const WARM_UP: Duration = Duration::from_millis(1500);

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

/// Measures each of `loads` for `seconds`.
pub fn run(
    settings: &Settings,
    dir: &Path,
    shape: &Shape,
    loads: &[Load],
    seconds: u64,
) -> Result<Vec<Sample>> {
    let world = World::new(settings, dir, true)?;
    let ports = world.many_testpmd_ports(Kind::Client, shape.ports)?;
    for port in &ports {
        world.ovs.vsctl(&format!(
            "set Interface {} mtu_request={}",
            port.name, shape.capacity.mtu
        ))?;
    }
    let device = |port: &Port| Device {
        queues: shape.queues,
        ..port.device(shape.rings)
    };
    let devices: Vec<Device> = ports.iter().map(device).collect();
    let mut testpmd = Testpmd::start_with(&devices, shape.capacity, dir)?;
    for port in &ports {
        world.ovs.wait_link(&port.name, true, PATIENCE)?;
        world.check_rings(port, shape.rings.packed, shape.rings.in_order)?;
    }
    loads
        .iter()
        .map(|load| {
            world.cross_connect(&ports)?;
            if load.flows {
                world.ovs.ofctl(&format!("add-flow br0 {TELLS_FLOWS_APART}"))?;
            }
            let sample = measure(&world, &mut testpmd, load, seconds);
            sample.with_context(|| load.name)
        })
        .collect()
}

/// Sends a load round for `seconds`, then lets its packets leave the rings.
fn measure(world: &World, testpmd: &mut Testpmd, load: &Load, seconds: u64) -> Result<Sample> {
    let before = distance::measure();
    load.start(testpmd)?;
    std::thread::sleep(WARM_UP);
    world.ovs.appctl("dpif-netdev/pmd-stats-clear")?;
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(seconds));
    let stats = world.ovs.appctl("dpif-netdev/pmd-stats-show")?;
    let elapsed = start.elapsed();
    testpmd.command("stop", "Done.")?;
    let distance = [before, distance::measure()];
    drain(world, testpmd)?;
    let packets = value(&stats, "packets received:")?;
    ensure!(packets > 1000.0, "only {packets} packets went round");
    Ok(Sample {
        cycles: value(&stats, "avg processing cycles per packet:")?,
        mpps: packets / elapsed.as_secs_f64() / 1e6,
        distance,
    })
}

/// Receives what is still in the rings and sends nothing.
fn drain(world: &World, testpmd: &mut Testpmd) -> Result<()> {
    testpmd.command("set fwd rxonly", "Set rxonly packet forwarding mode")?;
    testpmd.command("start", "packet forwarding")?;
    let mut before = None;
    wait::until_true("the rings to be empty", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(50));
        let now = world.ovs.ofctl("dump-flows br0")?;
        let still = before.as_deref().is_some_and(|old| packets(old) == packets(&now));
        before = Some(now);
        Ok(still)
    })?;
    testpmd.command("stop", "Done.").map(drop)
}

/// The packet counts in a listing of flows.
fn packets(flows: &str) -> Vec<&str> {
    let count = |line| -> Option<&str> { str::split_once(line, "n_packets=")?.1.split(',').next() };
    flows.lines().filter_map(count).collect()
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

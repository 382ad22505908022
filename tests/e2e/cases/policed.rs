//! testpmd floods two ports of which one has limits both ways, on packets first and on bytes then. What passes is what the limits say, as the switch counts it in
//! the time that the counting took; and every packet is received by somebody or counted as dropped for its reason.

use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use super::dpdk;
use super::world::{self, Kind, World, PATIENCE};
use super::Ctx;
use crate::ovs::{Ovs, PortCounters};
use crate::testpmd::{Counters, Rings, Testpmd};
use crate::wait;

/// How long the counters are watched, with each kind of QoS.
const SPAN: Duration = Duration::from_secs(5);
/// Bytes of each packet of the flood, in testpmd's words: with a checksum that no virtio device sends.
const LENGTH: u64 = 1000;
/// Those of them that are metered.
const METERED: u64 = LENGTH - 4 - 14;

/// A limit; its burst is a quarter of what passes in a second. A poll thread that is kept from the processor for that long
/// loses nothing of the rate.
#[derive(Clone, Copy)]
struct Limit {
    rate: u64,
    /// What each packet counts.
    packet: u64,
}

impl Limit {
    const fn of_bytes(rate: u64) -> Self {
        Limit {
            rate,
            packet: METERED,
        }
    }

    const fn of_packets(rate: u64) -> Self {
        Limit { rate, packet: 1 }
    }

    const fn burst(self) -> u64 {
        self.rate / 4
    }
}

const INGRESS_PACKETS: Limit = Limit::of_packets(4000);
const EGRESS_PACKETS: Limit = Limit::of_packets(8000);
const INGRESS: Limit = Limit::of_bytes(1_000_000);
const EGRESS: Limit = Limit::of_bytes(2_000_000);
/// Of the queue that all packets are for; the port's own is [`EGRESS`].
const QUEUE: Limit = Limit::of_bytes(500_000);

/// Packets that had passed by a moment between two others.
struct Sample {
    before: Instant,
    ingress: u64,
    egress: u64,
    after: Instant,
}

pub fn with_dpdk(ctx: &Ctx) -> Result<()> {
    flood(ctx, true)
}

pub fn without_dpdk(ctx: &Ctx) -> Result<()> {
    flood(ctx, false)
}

/// vhost1 has the limits: what its guest sends arrives on vhost2, and the other way round.
fn flood(ctx: &Ctx, dpdk: bool) -> Result<()> {
    // testpmd needs the hugepages in any case.
    let options = world::options(&ctx.settings, dpdk);
    let world = World::with(&ctx.settings, &ctx.dir, options, true)?;
    let ports = world.testpmd_ports(Kind::Client)?;
    connect(&world)?;
    limit_packets(&world.ovs, [INGRESS_PACKETS, EGRESS_PACKETS].map(Some))?;
    ctx.step("start testpmd");
    let mut testpmd = world.start_testpmd(&ports, Rings::PLAIN)?;
    testpmd.command(&format!("set txpkts {LENGTH}"), "testpmd>")?;
    testpmd.command("set fwd flowgen", "Set flowgen packet forwarding mode")?;
    testpmd.command("start", "packet forwarding")?;
    ctx.step("packets per second");
    let rates = watch(&world.ovs)?;
    let from_guest = check("ingress policing", INGRESS_PACKETS, &rates, |sample| {
        sample.ingress
    })?;
    let to_guest = check("the limit on packets", EGRESS_PACKETS, &rates, |sample| {
        sample.egress
    })?;
    ctx.result(&format!(
        "{from_guest} packets per second of {} from the guest, {to_guest} of {} to it",
        INGRESS_PACKETS.rate, EGRESS_PACKETS.rate
    ));
    limit_packets(&world.ovs, [None; 2])?;
    ctx.step("egress-policer");
    set_limits(&world.ovs)?;
    let rates = watch(&world.ovs)?;
    check("ingress policing", INGRESS, &rates, |sample| sample.ingress)?;
    let one_rate = check("egress-policer", EGRESS, &rates, |sample| sample.egress)?;
    ctx.step("trtcm-policer, and types that are refused");
    set_two_rates(&world.ovs)?;
    refuse(&world.ovs)?;
    let rates = watch(&world.ovs)?;
    let ingress = check("ingress policing", INGRESS, &rates, |sample| sample.ingress)?;
    let queue = check("trtcm-policer", QUEUE, &rates, |sample| sample.egress)?;
    ctx.step("drain and compare");
    dpdk::stop(&mut testpmd)?;
    let dropped = account(&world, &mut testpmd)?;
    ctx.result(&format!(
        "{ingress} bytes per second of {} policed, {one_rate} of {} by one rate, {queue} of {} by a queue; \
         of what was dropped, {dropped} packets, none is missing",
        INGRESS.rate, EGRESS.rate, QUEUE.rate
    ));
    drop(testpmd);
    for port in &ports {
        world.ovs.wait_link(&port.name, false, PATIENCE)?;
    }
    world.finish(&["Failed to set QoS type linux-htb on port vhost1: Operation not supported"])
}

/// Everything for vhost1 is for queue 1, which matters to a policer that has queues.
fn connect(world: &World) -> Result<()> {
    world.ovs.ofctl("del-flows br0")?;
    for flow in [
        "in_port=vhost1,actions=output:vhost2",
        "in_port=vhost2,actions=set_queue:1,output:vhost1",
    ] {
        world.ovs.ofctl(&format!("add-flow br0 {flow}"))?;
    }
    Ok(())
}

/// Limits the packets that vhost1's guest sends, and those that it is sent; both at once, and live.
fn limit_packets(ovs: &Ovs, limits: [Option<Limit>; 2]) -> Result<()> {
    let thousands = |limit: Option<Limit>| limit.map_or((0, 0), |l| (l.rate / 1000, l.burst() / 1000));
    let [(in_rate, in_burst), (out_rate, out_burst)] = limits.map(thousands);
    ovs.vsctl(&format!(
        "set Interface vhost1 ingress_policing_kpkts_rate={in_rate} ingress_policing_kpkts_burst={in_burst} \
         options:vhost-egress-kpkts-rate={out_rate} options:vhost-egress-kpkts-burst={out_burst}"
    ))?;
    Ok(())
}

fn set_limits(ovs: &Ovs) -> Result<()> {
    let kilobits = |bytes: u64| bytes * 8 / 1000;
    let (rate, burst) = (kilobits(INGRESS.rate), kilobits(INGRESS.burst()));
    ovs.vsctl(&format!(
        "set Interface vhost1 ingress_policing_rate={rate} ingress_policing_burst={burst}"
    ))?;
    let (rate, burst) = (EGRESS.rate, EGRESS.burst());
    ovs.vsctl(&format!(
        "set Port vhost1 qos=@qos -- --id=@qos create QoS type=egress-policer \
         other_config:cir={rate} other_config:cbs={burst}"
    ))?;
    shows(
        ovs,
        &[
            "QoS: vhost1 egress-policer",
            &format!("cir: {rate}"),
            &format!("cbs: {burst}"),
        ],
    )
}

fn set_two_rates(ovs: &Ovs) -> Result<()> {
    let (rate, burst) = (EGRESS.rate, EGRESS.burst());
    let (queue_rate, queue_burst) = (QUEUE.rate, QUEUE.burst());
    ovs.vsctl(&format!(
        "set Port vhost1 qos=@qos -- --id=@qos create QoS type=trtcm-policer \
         other_config:cir={rate} other_config:cbs={burst} queues:1=@queue \
         -- --id=@queue create Queue other_config:cir={queue_rate} other_config:cbs={queue_burst}"
    ))?;
    shows(
        ovs,
        &[
            "QoS: vhost1 trtcm-policer",
            "Default:",
            "Queue 1:",
            &format!("cir: {queue_rate}"),
        ],
    )
}

/// A type that there is not leaves the one before in force, with its queues.
fn refuse(ovs: &Ovs) -> Result<()> {
    ovs.vsctl("set Port vhost1 qos=@qos -- --id=@qos create QoS type=linux-htb")?;
    shows(ovs, &["QoS: vhost1 trtcm-policer"])
}

/// Holds if `qos/show` has all of `parts`.
fn shows(ovs: &Ovs, parts: &[&str]) -> Result<()> {
    let shown = ovs.appctl("qos/show vhost1")?;
    let all = parts.iter().all(|part| shown.contains(part));
    ensure!(all, "qos/show lacks one of {parts:?}: {shown}");
    Ok(())
}

/// Two samples, [`SPAN`] apart, of a flood that has been there for long enough to have spent the bursts.
fn watch(ovs: &Ovs) -> Result<[Sample; 2]> {
    wait::holds("the flood", SPAN / 10, || Ok(true))?;
    let first = sample(ovs)?;
    wait::holds("the flood", SPAN, || Ok(true))?;
    Ok([first, sample(ovs)?])
}

fn sample(ovs: &Ovs) -> Result<Sample> {
    let before = Instant::now();
    let passed = |port| Ok::<_, anyhow::Error>(counters(ovs, port)?.tx_packets);
    Ok(Sample {
        before,
        ingress: passed("vhost2")?,
        egress: passed("vhost1")?,
        after: Instant::now(),
    })
}

fn counters(ovs: &Ovs, port: &str) -> Result<PortCounters> {
    ovs.counters(port)?.context("no counters")
}

/// Holds if what passed between two samples is what `limit` allows; returns how much of it a second.
fn check(what: &str, limit: Limit, samples: &[Sample; 2], passed: fn(&Sample) -> u64) -> Result<u64> {
    let [first, last] = samples;
    let found = (passed(last) - passed(first)) * limit.packet;
    let allowed = |span: Duration| u64::try_from(u128::from(limit.rate) * span.as_micros() / 1_000_000);
    // No more than in the longest time that this can have been, after a rest; and most of it in the shortest.
    let most = allowed(last.after - first.before)? + limit.burst();
    let least = allowed(last.before - first.after)? / 4 * 3;
    ensure!(
        (least..=most).contains(&found),
        "{what} let {found} pass, not {least} to {most}"
    );
    let micros = u64::try_from((last.before - first.before).as_micros())?;
    Ok(found * 1_000_000 / micros.max(1))
}

/// Holds if no packet is missing, once nothing moves. Returns how many the limits cost.
fn account(world: &World, testpmd: &mut Testpmd) -> Result<u64> {
    let ovs = &world.ovs;
    ovs.wait_counters_still(&["vhost1", "vhost2"])?;
    let [vhost1, vhost2] = [counters(ovs, "vhost1")?, counters(ovs, "vhost2")?];
    let mut seen = [Counters::default(); 2];
    wait::until_true("all packets to arrive", PATIENCE, || {
        seen = [testpmd.counters(0)?, testpmd.counters(1)?];
        let arrived = [0, 1].map(|device: usize| seen[device].rx + seen[device].rx_lost);
        Ok(arrived == [vhost1.tx_packets, vhost2.tx_packets])
    })?;
    // The database is told of the counters every few seconds.
    let named = |name| ovs.statistic("vhost1", name);
    wait::until_true("the counters in the database", PATIENCE, || {
        Ok(named("rx_packets")? == vhost1.rx_packets && named("tx_dropped")? == vhost1.tx_dropped)
    })?;
    let (policed, shaped) = (named("ovs_rx_qos_drops")?, named("ovs_tx_qos_drops")?);
    let no_room = named("ovs_tx_failure_drops")?;
    let claims = [
        (
            "both devices sent what was received",
            [seen[0].tx, seen[1].tx],
            [vhost1.rx_packets, vhost2.rx_packets],
        ),
        (
            "what passed or not is what came",
            [vhost1.rx_packets, vhost2.rx_packets],
            [
                policed + vhost2.tx_packets + vhost2.tx_dropped,
                vhost1.tx_packets + vhost1.tx_dropped,
            ],
        ),
        (
            "each drop has its reason",
            [named("rx_dropped")?, vhost1.tx_dropped],
            [policed, shaped + no_room],
        ),
    ];
    for (claim, one, other) in claims {
        ensure!(one == other, "{claim}: {one:?} and {other:?}");
    }
    ensure!(
        policed > 0 && shaped > 0,
        "the limits were never met: {policed}, {shaped}"
    );
    queue_counts(ovs, shaped)?;
    Ok(policed + shaped)
}

/// Holds if queue 1 counted what it let pass and what not. Queue 0 has what came before there was a queue 1: next to nothing.
fn queue_counts(ovs: &Ovs, shaped: u64) -> Result<()> {
    let [packets, bytes, errors] = queue_stats(ovs, 1)?;
    ensure!(
        packets > 0 && bytes == packets * METERED,
        "{packets} packets, {bytes} bytes"
    );
    ensure!(
        errors > 0 && errors <= shaped,
        "{errors} of {shaped} drops are the queue's"
    );
    let [early, _, early_errors] = queue_stats(ovs, 0)?;
    ensure!(
        10 * (early + early_errors) < packets + errors,
        "queue 0 got {early} packets and dropped {early_errors}"
    );
    Ok(())
}

/// Packets, bytes and drops of a queue of vhost1, as OpenFlow tells them.
fn queue_stats(ovs: &Ovs, queue: u32) -> Result<[u64; 3]> {
    let text = ovs.ofctl(&format!("queue-stats br0 vhost1 {queue}"))?;
    let field = |name: &str| -> Result<u64> {
        let (_, rest) = text
            .split_once(name)
            .with_context(|| format!("no {name} in {text}"))?;
        let number = rest.split([',', '\n']).next().unwrap_or_default();
        number.trim().parse().with_context(|| format!("{name}{number}"))
    };
    Ok([field("pkts=")?, field("bytes=")?, field("errors=")?])
}

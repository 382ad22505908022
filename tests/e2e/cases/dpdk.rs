//! testpmd bounces packets through the switch and back, as fast as both can. At the end every packet that was sent
//! has been received, or a counter says where it went.

use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};

use super::world::{Kind, Port, World, PATIENCE};
use super::Ctx;
use crate::testpmd::{self, Counters, Rings, Testpmd};
use crate::wait;

const IN_ORDER: Rings = Rings {
    in_order: true,
    ..Rings::MERGEABLE
};
const PACKED_IN_ORDER: Rings = Rings {
    in_order: true,
    ..Rings::PACKED_MERGEABLE
};

pub fn client_mergeable(ctx: &Ctx) -> Result<()> {
    packet_loop(ctx, Kind::Client, Rings::MERGEABLE)
}

pub fn client_plain(ctx: &Ctx) -> Result<()> {
    packet_loop(ctx, Kind::Client, Rings::PLAIN)
}

pub fn server_mergeable(ctx: &Ctx) -> Result<()> {
    packet_loop(ctx, Kind::Server, Rings::MERGEABLE)
}

pub fn server_plain(ctx: &Ctx) -> Result<()> {
    packet_loop(ctx, Kind::Server, Rings::PLAIN)
}

pub fn client_packed_mergeable(ctx: &Ctx) -> Result<()> {
    packet_loop(ctx, Kind::Client, Rings::PACKED_MERGEABLE)
}

pub fn client_packed_plain(ctx: &Ctx) -> Result<()> {
    packet_loop(ctx, Kind::Client, Rings::PACKED)
}

pub fn server_packed_mergeable(ctx: &Ctx) -> Result<()> {
    packet_loop(ctx, Kind::Server, Rings::PACKED_MERGEABLE)
}

pub fn server_packed_plain(ctx: &Ctx) -> Result<()> {
    packet_loop(ctx, Kind::Server, Rings::PACKED)
}

pub fn client_in_order(ctx: &Ctx) -> Result<()> {
    packet_loop(ctx, Kind::Client, IN_ORDER)
}

pub fn client_packed_in_order(ctx: &Ctx) -> Result<()> {
    packet_loop(ctx, Kind::Client, PACKED_IN_ORDER)
}

/// Two ports, cross-connected by two flows; testpmd forwards between its two devices, so packets go round for ever.
fn packet_loop(ctx: &Ctx, kind: Kind, rings: Rings) -> Result<()> {
    let mut world = World::new(&ctx.settings, &ctx.dir, true)?;
    let ports = world.testpmd_ports(kind)?;
    world.cross_connect(&ports)?;
    ctx.step("start testpmd");
    let mut testpmd = world.start_testpmd(&ports, rings)?;
    for port in &ports {
        world.check_rings(port, rings.packed, rings.in_order)?;
    }
    ctx.step("loop");
    let time = time(ctx, rings);
    // 64 packets in each direction: fewer than a ring has room for, so nobody has a reason to drop one.
    testpmd.command("start tx_first 2", "packet forwarding")?;
    let (ovs, mut packets) = (&mut world.ovs, 0);
    wait::holds("vswitchd alive", time, || ovs.check_alive().map(|()| true))?;
    ctx.step("drain and compare");
    let dropped = stop(&mut testpmd)?;
    ensure!(dropped == 0, "testpmd could not send {dropped} packets");
    for (from, to) in [(0, 1), (1, 0)] {
        packets += compare(&world, &mut testpmd, [&ports[from], &ports[to]], [from, to])?;
    }
    let per_second = packets / time.as_secs().max(1);
    ctx.result(&format!("{packets} packets, {per_second} per second, none lost"));
    ensure!(packets > 1000, "only {packets} packets went round");
    drop(testpmd);
    for port in &ports {
        world.ovs.wait_link(&port.name, false, PATIENCE)?;
    }
    world.finish(&[])
}

/// How long packets go round. The rings that most guests have run longest; what others do wrong shows in the first ten million
/// packets.
fn time(ctx: &Ctx, rings: Rings) -> Duration {
    let share = if rings.packed || rings.in_order { 6 } else { 2 };
    ctx.settings.loop_time / share
}

/// Stops forwarding, then receives what is still in the rings; says how many packets testpmd failed to send.
pub(super) fn stop(testpmd: &mut Testpmd) -> Result<u64> {
    let report = testpmd.command("stop", "Done.")?;
    let (_, all) = report
        .split_once("Accumulated forward statistics")
        .context("no statistics")?;
    let dropped = testpmd::field(all, "TX-dropped:")?;
    testpmd.command("set fwd rxonly", "Set rxonly packet forwarding mode")?;
    testpmd.command("start", "packet forwarding")?;
    Ok(dropped)
}

/// One direction: testpmd's `from` device, the switch's two ports, testpmd's `to` device. Returns the packets.
pub(super) fn compare(
    world: &World,
    testpmd: &mut Testpmd,
    ports: [&Port; 2],
    devices: [usize; 2],
) -> Result<u64> {
    let names = ports.map(|port| port.name.as_str());
    let switch = world.ovs.wait_counters_still(&names)?;
    let mut seen = [Counters::default(); 2];
    let arrived = wait::until_true("all packets to arrive", PATIENCE, || {
        seen = [testpmd.counters(devices[0])?, testpmd.counters(devices[1])?];
        Ok(seen[0].tx == seen[1].rx)
    });
    let account = format!("testpmd {seen:?}, switch {switch:?}");
    if let Err(error) = arrived {
        bail!("{} to {}: {error}: {account}", names[0], names[1]);
    }
    ensure!(seen[1].rx_lost == 0, "testpmd lost packets: {account}");
    if let [Some(from), Some(to)] = switch[..] {
        let exact = from.rx_packets == seen[0].tx && to.tx_packets == seen[1].rx && to.tx_dropped == 0;
        ensure!(exact, "the counters of the switch differ: {account}");
    } else {
        ensure!(world.stock(), "the ports have no counters");
    }
    let flow = format!("n_packets={},", seen[0].tx);
    wait::until_true(
        &format!("the flow of {} to have {flow}", names[0]),
        PATIENCE,
        || {
            let flows = world.ovs.ofctl("--names dump-flows br0")?;
            Ok(flows
                .lines()
                .any(|line| line.contains(&format!("in_port={}", names[0])) && line.contains(&flow)))
        },
    )?;
    Ok(seen[0].tx)
}

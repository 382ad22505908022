//! vswitchd is killed again and again under full load. Afterwards the rings of its peer, which lived through all of it, have
//! every descriptor they had before: none was lost, and none came back twice, which would have ended the peer.

use std::time::Duration;

use anyhow::{ensure, Context, Result};

use super::world::{self, Kind, Port, World, PATIENCE};
use super::Ctx;
use crate::settings::run_tool;
use crate::testpmd::{Device, Rings, Testpmd};
use crate::wait;

/// How often it dies; less often where loops are to be short.
const KILLS: u32 = 100;
const FEW_KILLS: u32 = 30;
const SHORT: Duration = Duration::from_secs(20);
/// Packets in each direction that show that a ring moves: many laps.
const MOVED: u64 = 5_000;
/// More than any ring has room for.
const TOO_MANY: usize = 600;

/// testpmd's devices: one with split rings, one with packed ones. The switch connects them, so each packet sees both.
const RINGS: [Rings; 2] = [Rings::MERGEABLE, Rings::PACKED_MERGEABLE];

pub fn kill_storm(ctx: &Ctx) -> Result<()> {
    // Without DPDK vswitchd starts in no time; testpmd needs the hugepages.
    let mut world = World::with(
        &ctx.settings,
        &ctx.dir,
        world::options(&ctx.settings, false),
        true,
    )?;
    let ports = world.testpmd_ports(Kind::Client)?;
    ctx.step("start testpmd");
    let devices: Vec<Device> = ports
        .iter()
        .zip(RINGS)
        .map(|(port, rings)| port.device(rings))
        .collect();
    let mut testpmd = Testpmd::start(&devices, &world.dir)?;
    for (port, rings) in ports.iter().zip(RINGS) {
        world.ovs.wait_link(&port.name, true, PATIENCE)?;
        world.check_rings(port, rings.packed, false)?;
    }
    connect(&world)?;
    ctx.step("count descriptors before");
    let before = room(&world, &mut testpmd, &ports)?;
    ensure!(before.iter().flatten().all(|free| *free > 100), "{before:?}");

    let kills = if ctx.settings.loop_time < SHORT {
        FEW_KILLS
    } else {
        KILLS
    };
    testpmd.command("set fwd flowgen", "Set flowgen packet forwarding mode")?;
    testpmd.command("start", "packet forwarding")?;
    let mut packets = moves(&mut testpmd)?;
    for round in 0..kills {
        ctx.step(&format!("kill {round}"));
        // At another moment of the load each time.
        std::thread::sleep(Duration::from_micros(u64::from(round) * 7919 % 20_000));
        world.ovs.kill_9()?;
        world.ovs.start_vswitchd()?;
        connect(&world)?;
        packets += moves(&mut testpmd)?;
    }
    testpmd.command("stop", "Done.")?;
    ctx.step("count descriptors after");
    let after = room(&world, &mut testpmd, &ports)?;
    ensure!(after == before, "free descriptors {before:?} became {after:?}");
    ctx.result(&format!(
        "{kills} kills, {packets} packets seen, free descriptors (split and packed, from and to the guest): {after:?}"
    ));
    drop(testpmd);
    for port in &ports {
        world.ovs.wait_link(&port.name, false, PATIENCE)?;
    }
    world.finish(&[])
}

/// Flows die with vswitchd. Its bridge takes new ones a moment after it says that it is configured.
fn connect(world: &World) -> Result<()> {
    let file = world.dir.join("flows");
    std::fs::write(
        &file,
        "in_port=vhost1,actions=output:vhost2\nin_port=vhost2,actions=output:vhost1\n",
    )?;
    let command = format!("add-flows br0 {}", file.display());
    wait::until_true("br0 to take flows", PATIENCE, || {
        Ok(world.ovs.ofctl(&command).is_ok())
    })
}

/// Waits until packets arrive in both directions, many of them, and says how many.
fn moves(testpmd: &mut Testpmd) -> Result<u64> {
    let start = received(testpmd)?;
    let mut seen = 0;
    wait::until_true("packets in both directions", PATIENCE, || {
        let now = received(testpmd)?;
        seen = now.iter().sum::<u64>() - start.iter().sum::<u64>();
        Ok(now.iter().zip(start).all(|(now, start)| now - start > MOVED))
    })?;
    Ok(seen)
}

fn received(testpmd: &mut Testpmd) -> Result<[u64; 2]> {
    Ok([testpmd.counters(0)?.rx, testpmd.counters(1)?.rx])
}

/// For each device, how many packets it can send with nobody taking them, and get with nobody fetching them: its free
/// descriptors. Nothing moves before and after.
fn room(world: &World, testpmd: &mut Testpmd, ports: &[Port; 2]) -> Result<[[u64; 2]; 2]> {
    drain(testpmd)?;
    let pid = world.ovs.pid()?.to_string();
    run_tool("kill", &["-STOP", &pid])?;
    let sent = fill_from_guest(testpmd);
    run_tool("kill", &["-CONT", &pid])?;
    let [split_sent, packed_sent] = sent?;
    drain(testpmd)?;
    let [split_got, packed_got] = [fill_to_guest(world, &ports[0])?, fill_to_guest(world, &ports[1])?];
    drain(testpmd)?;
    Ok([[split_sent, split_got], [packed_sent, packed_got]])
}

/// Receives until there is nothing more.
fn drain(testpmd: &mut Testpmd) -> Result<()> {
    testpmd.command("set fwd rxonly", "Set rxonly packet forwarding mode")?;
    testpmd.command("start", "packet forwarding")?;
    let mut before = received(testpmd)?;
    wait::until_true("all packets to arrive", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(300));
        let now = received(testpmd)?;
        Ok(std::mem::replace(&mut before, now) == now)
    })?;
    testpmd.command("stop", "Done.").map(drop)
}

fn fill_from_guest(testpmd: &mut Testpmd) -> Result<[u64; 2]> {
    let sent = |testpmd: &mut Testpmd| Ok([testpmd.counters(0)?.tx, testpmd.counters(1)?.tx]);
    let before: [u64; 2] = sent(testpmd)?;
    testpmd.command("set fwd txonly", "Set txonly packet forwarding mode")?;
    testpmd.command("start", "packet forwarding")?;
    std::thread::sleep(Duration::from_millis(300));
    testpmd.command("stop", "Done.")?;
    let after: Result<[u64; 2]> = sent(testpmd);
    let after = after?;
    Ok([after[0] - before[0], after[1] - before[1]])
}

fn fill_to_guest(world: &World, port: &Port) -> Result<u64> {
    let still = |world: &World| -> Result<u64> {
        let counters = world.ovs.wait_counters_still(&[&port.name])?;
        Ok(counters[0].context("no counters")?.tx_packets)
    };
    let before = still(world)?;
    let outputs = vec![port.name.as_str(); TOO_MANY].join(",");
    let packet = format!("{}{}0800{}", "02000000000a", "02000000000b", "00".repeat(46));
    world.ovs.ofctl(&format!(
        "packet-out br0 in_port=local,packet={packet},actions={outputs}"
    ))?;
    Ok(still(world)? - before)
}

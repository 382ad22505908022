//! What exactly is lost and what comes twice when vswitchd is killed under load, packet by packet.

use anyhow::{ensure, Result};

use super::world::{wait_reachable, Guest, Kind, Port, World, PATIENCE};
use super::Ctx;
use crate::numbered::{Count, Flow, Total};

const KILLS: u64 = 5;
/// Datagrams a second each way: bursts of several, and less than a guest without KVM can take.
const RATE: u32 = 2000;
/// Descriptors of a ring, as QEMU makes them.
const RING: u64 = 256;

pub fn split(ctx: &Ctx) -> Result<()> {
    killed_under_numbers(ctx, Guest::new(0))
}

pub fn packed(ctx: &Ctx) -> Result<()> {
    let guest = Guest {
        packed: true,
        ..Guest::new(0)
    };
    killed_under_numbers(ctx, guest)
}

/// Numbered datagrams both ways while vswitchd dies again and again. Each time the flows go on; what comes twice is
/// bounded by the ring that is read once more, and what is lost by the rings of both ends; in quiet times nothing is.
fn killed_under_numbers(ctx: &Ctx, guest: Guest) -> Result<()> {
    let mut world = World::new(&ctx.settings, &ctx.dir, false)?;
    ctx.step("boot");
    let (ports, vms) = world.boot(&[Kind::Server, Kind::Client], guest)?;
    for port in &ports {
        world.check_rings(port, guest.packed, false)?;
    }
    wait_reachable(&vms[0], 2)?;
    let flows = [
        Flow::start(&vms[0], &vms[1], RATE)?,
        Flow::start(&vms[1], &vms[0], RATE)?,
    ];
    let mut dropped = [0; 2];
    for round in 1..=KILLS {
        ctx.step(&format!("kill -9 and start, round {round}"));
        for flow in &flows {
            flow.wait_more(RATE.into(), PATIENCE)?;
        }
        add_drops(&world, &ports, &mut dropped)?;
        world.kill_vswitchd(&ports)?;
        world.ovs.start_vswitchd()?;
    }
    ctx.step("in quiet times");
    for flow in &flows {
        let before = flow.wait_more(RATE.into(), PATIENCE)?;
        let after = flow.wait_more(RATE.into(), PATIENCE)?;
        let arrived = after.arrived;
        ensure!(
            after == Count { arrived, ..before },
            "{}: {before:?}, then {after:?} though nobody was killed",
            flow.name()
        );
    }
    add_drops(&world, &ports, &mut dropped)?;
    // A flow ends at the other one's port.
    for (flow, dropped) in flows.into_iter().zip([dropped[1], dropped[0]]) {
        let name = flow.name();
        let Total { count, unsent } = flow.stop()?;
        let Count {
            arrived,
            lost,
            twice,
            late,
        } = count;
        let died = lost.saturating_sub(unsent + dropped);
        ctx.result(&format!(
            "{name}: {arrived} arrived, {twice} of them twice, {lost} lost in {KILLS} kills: {unsent} sent while the link \
             was down, {dropped} dropped for want of a receiver, {died} died with vswitchd"
        ));
        ensure!(late == 0, "{name}: {late} came after a later one");
        ensure!(twice <= KILLS * RING, "{name}: {twice} came twice");
        // A stock server port counts no drops.
        ensure!(
            world.stock() || died <= KILLS * 2 * RING,
            "{name}: {died} died with vswitchd"
        );
    }
    drop(vms);
    world.finish(&[])
}

/// Adds what the switch, in this life of it, took and could not give to each port.
fn add_drops(world: &World, ports: &[Port], dropped: &mut [u64; 2]) -> Result<()> {
    for (port, dropped) in ports.iter().zip(dropped) {
        *dropped += world
            .ovs
            .counters(&port.name)?
            .map_or(0, |counters| counters.tx_dropped);
    }
    Ok(())
}

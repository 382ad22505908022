//! Guests whose NIC is behind an IOMMU: the switch reaches only what their kernels have mapped for it.

use anyhow::{ensure, Context, Result};

use super::vm::all_traffic;
use super::world::{wait_reachable, Guest, Kind, Port, World, PATIENCE, PING_INTERVAL};
use super::Ctx;
use crate::ping::Ping;
use crate::tcp;
use crate::vm::Unmap;

pub fn split(ctx: &Ctx) -> Result<()> {
    behind_iommu(ctx, false)
}

pub fn packed(ctx: &Ctx) -> Result<()> {
    behind_iommu(ctx, true)
}

/// Guests that take everything back every few milliseconds, the rings included. What is sent to a guest meanwhile is
/// lost, as it is to one that has no buffers; nothing else is.
pub fn lazy(ctx: &Ctx) -> Result<()> {
    let world = world(ctx)?;
    ctx.step("boot");
    let guest = Guest {
        iommu: Some(Unmap::Lazily),
        ..Guest::new(0)
    };
    let (ports, vms) = world.boot(&[Kind::Client, Kind::Client], guest)?;
    for port in &ports {
        check_negotiated(&world, port)?;
    }
    ctx.step("ping");
    wait_reachable(&vms[0], 2)?;
    let ping = Ping::start(&vms[0], 2, PING_INTERVAL)?;
    ping.wait_more(200, PATIENCE)?;
    let report = ping.stop()?;
    let (lost, received) = (report.lost(), report.received());
    ctx.result(&format!("{lost} pings lost, {received} answered"));
    ensure!(
        lost * 4 < u64::try_from(received)?,
        "{lost} pings lost, {received} answered"
    );
    ctx.step("checksummed transfer");
    tcp::transfer(&vms[0], &vms[1], 8)?;
    tcp::transfer(&vms[1], &vms[0], 8)?;
    world.finish(&[])
}

/// `vhost-iommu-support` is read when vswitchd starts.
fn world(ctx: &Ctx) -> Result<World> {
    let mut world = World::new(&ctx.settings, &ctx.dir, false)?;
    world
        .ovs
        .vsctl("--no-wait set Open_vSwitch . other_config:vhost-iommu-support=true")?;
    world.ovs.exit(PATIENCE)?;
    let mark = world.ovs.log_mark();
    world.ovs.start_vswitchd()?;
    world
        .ovs
        .wait_log(mark, &["IOMMU support for vhost-user-client enabled."], PATIENCE)?;
    Ok(world)
}

/// VIRTIO_F_ACCESS_PLATFORM is negotiated.
fn check_negotiated(world: &World, port: &Port) -> Result<()> {
    let status = world.ovs.status(&port.name)?;
    let features = status.get("features").context("no features in the status")?;
    let bits = u64::from_str_radix(features.trim_start_matches("0x"), 16)?;
    ensure!(bits >> 33 & 1 == 1, "{}: features {features}", port.name);
    Ok(())
}

fn behind_iommu(ctx: &Ctx, packed: bool) -> Result<()> {
    let world = world(ctx)?;
    ctx.step("boot");
    let guest = Guest {
        packed,
        iommu: Some(Unmap::Strictly),
        ..Guest::new(0)
    };
    let (ports, vms) = world.boot(&[Kind::Client, Kind::Client], guest)?;
    for (port, vm) in ports.iter().zip(&vms) {
        check_negotiated(&world, port)?;
        vm.run("test -d /sys/class/iommu/dmar0")?;
    }
    all_traffic(ctx, &world, &ports, &vms, 1)?;
    world.finish(&[])
}

//! Guests whose NIC is behind an IOMMU: the switch reaches only what their kernels have mapped for it.

use anyhow::{ensure, Context, Result};

use super::vm::all_traffic;
use super::world::{Guest, Kind, Port, World, PATIENCE};
use super::Ctx;

pub fn split(ctx: &Ctx) -> Result<()> {
    behind_iommu(ctx, false)
}

pub fn packed(ctx: &Ctx) -> Result<()> {
    behind_iommu(ctx, true)
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
        iommu: true,
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

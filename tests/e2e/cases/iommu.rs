//! Guests whose NIC is behind an IOMMU: the switch reaches only what their kernels have mapped for it.

use anyhow::{ensure, Context, Result};

use super::vm::all_traffic;
use super::world::{wait_reachable, Guest, Kind, Port, World, PATIENCE, PING_INTERVAL};
use super::Ctx;
use crate::ping::Ping;
use crate::tcp;
use crate::vm::{Iommu, Vm};

pub fn split(ctx: &Ctx) -> Result<()> {
    strict(ctx, false)
}

pub fn packed(ctx: &Ctx) -> Result<()> {
    strict(ctx, true)
}

pub fn lazy(ctx: &Ctx) -> Result<()> {
    lazily(ctx, false)
}

pub fn lazy_packed(ctx: &Ctx) -> Result<()> {
    lazily(ctx, true)
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
    let bits = world.features(port)?;
    ensure!(bits >> 33 & 1 == 1, "{}: features {bits:#x}", port.name);
    Ok(())
}

/// Nothing is lost.
fn strict(ctx: &Ctx, packed: bool) -> Result<()> {
    let world = world(ctx)?;
    let (ports, vms) = boot(ctx, &world, packed, Iommu::Strict)?;
    all_traffic(ctx, &world, &ports, &vms, 1)?;
    world.finish(&[])
}

/// What arrives is what was sent, and the ports go on. How much is lost is told, and not judged.
fn lazily(ctx: &Ctx, packed: bool) -> Result<()> {
    let world = world(ctx)?;
    let (ports, vms) = boot(ctx, &world, packed, Iommu::Lazy)?;
    ctx.step("ping");
    wait_reachable(&vms[0], 2)?;
    let ping = Ping::start(&vms[0], 2, PING_INTERVAL)?;
    ping.wait_more(200, PATIENCE)?;
    let report = ping.stop()?;
    ctx.result(&format!(
        "pings: {} answered, {} lost",
        report.received(),
        report.lost()
    ));
    ctx.step("checksummed transfer");
    // Little: each flush costs what is on its way, and TCP waits longer after each loss.
    tcp::transfer(&vms[0], &vms[1], 1)?;
    tcp::transfer(&vms[1], &vms[0], 1)?;
    for port in &ports {
        let status = world.ovs.status(&port.name)?;
        let connected = status.get("status").is_some_and(|status| status == "connected");
        ensure!(connected, "status of {}: {status:?}", port.name);
        let counters = world.ovs.counters(&port.name)?.context("no counters")?;
        ctx.result(&format!(
            "{}: {} not given to the guest",
            port.name, counters.tx_dropped
        ));
    }
    world.finish(&[])
}

/// Two guests with a NIC behind an IOMMU each, of which the kernel does with it as it should.
fn boot(ctx: &Ctx, world: &World, packed: bool, iommu: Iommu) -> Result<(Vec<Port>, Vec<Vm>)> {
    ctx.step("boot");
    let guest = Guest {
        packed,
        iommu: Some(iommu),
        ..Guest::new(0)
    };
    let (ports, vms) = world.boot(&[Kind::Client, Kind::Client], guest)?;
    // Linux's names; FQ is the queue in which a lazy one keeps what it will take back.
    let wanted = match iommu {
        Iommu::Strict => "DMA",
        Iommu::Lazy => "DMA-FQ",
    };
    for (port, vm) in ports.iter().zip(&vms) {
        check_negotiated(world, port)?;
        let found = vm.run("cat /sys/class/net/eth0/device/../iommu_group/type")?;
        ensure!(found.trim() == wanted, "{}: domain of type {found}", vm.spec.name);
    }
    Ok((ports, vms))
}

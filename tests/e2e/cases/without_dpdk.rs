//! Switches without DPDK: it was not built in, is not wanted, or comes late.

use anyhow::{ensure, Context, Result};

use super::vm::{all_traffic, check_status};
use super::world::{self, ping_all, wait_reachable, Guest, Kind, World, PATIENCE, PING_INTERVAL};
use super::Ctx;
use crate::ping::Ping;
use crate::wait;

/// The plugin in an Open vSwitch that was configured without DPDK.
pub fn no_dpdk_build(ctx: &Ctx) -> Result<()> {
    let (tree, plugin) = ctx.settings.nodpdk.clone().context("no tree without DPDK")?;
    let options = crate::ovs::Options {
        tree,
        plugin: Some(plugin),
        ..world::options(&ctx.settings, false)
    };
    let world = World::with(&ctx.settings, &ctx.dir, options, false)?;
    ctx.step("boot");
    let (ports, vms) = world.boot(&[Kind::Server, Kind::Client], Guest::new(0))?;
    all_traffic(ctx, &world, &ports, &vms, 1)?;
    check_status(&world, &ports)?;
    world.finish(&[])
}

/// Without dpdk-init there is no EAL in the process and no page of a hugetlb mapping.
pub fn no_hugepages(ctx: &Ctx) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, false)?;
    ctx.step("boot");
    let (_, vms) = world.boot(&[Kind::Server, Kind::Client], Guest::new(0))?;
    ping_all(&vms[0], 2, 20)?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.ovs.pid()?))?;
    let huge = status
        .lines()
        .find_map(|line| line.strip_prefix("HugetlbPages:"))
        .context("no HugetlbPages")?;
    ensure!(huge.trim() == "0 kB", "vswitchd has hugepages: {huge}");
    ensure!(
        world.ovs.vsctl("get Open_vSwitch . dpdk_initialized")?.trim() == "false",
        "DPDK is initialised"
    );
    world.finish(&[])
}

/// `dpdk-init=true` on the running switch: the ports there are go on, and new ones work as well.
pub fn dpdk_init_at_run_time(ctx: &Ctx) -> Result<()> {
    let options = world::options(&ctx.settings, false);
    let mut world = World::with(&ctx.settings, &ctx.dir, options, true)?;
    ctx.step("boot");
    let (ports, vms) = world.boot(&[Kind::Server, Kind::Client], Guest::new(0))?;
    wait_reachable(&vms[0], 2)?;
    let ping = Ping::start(&vms[0], 2, PING_INTERVAL)?;
    ping.wait_more(20, PATIENCE)?;
    ctx.step("dpdk-init=true");
    world.ovs.enable_dpdk()?;
    wait::until_true("DPDK to be initialised", PATIENCE, || {
        Ok(world.ovs.vsctl("get Open_vSwitch . dpdk_initialized")?.trim() == "true")
    })?;
    ping.wait_more(50, PATIENCE)?;
    let outage = ping.stop()?.longest_silence();
    ctx.result(&format!(
        "DPDK is up; traffic was away for {} ms",
        outage.length.as_millis()
    ));
    all_traffic(ctx, &world, &ports, &vms, 1)?;
    ctx.step("a port made after it");
    let third = world.add_port(Kind::Client, "vhost3")?;
    let mut vm = world.start_guest(&third, Guest::new(3))?;
    vm.wait_ready()?;
    ping_all(&vm, 1, 20)?;
    ctx.step("reconnect of a port made before it");
    world.ovs.vsctl(&format!(
        "del-port {0} -- add-port br0 {0} -- {1}",
        ports[1].name,
        ports[1].vsctl_args()
    ))?;
    ping_all(&vms[1], 1, 20)?;
    world.ovs.check_alive()?;
    world.finish(&[])
}

//! A guest with more queue pairs than a host of ours has processors.

use anyhow::{ensure, Context, Result};

use super::world::{wait_reachable, Guest, Kind, World};
use super::Ctx;
use crate::netns::{OBSERVER, OBSERVER_END};
use crate::party::HostEnd;
use crate::tcp;

const PAIRS: u16 = 8;
/// Enough connections for the guest to spread over all queues.
const STREAMS: u32 = 64;

/// Every one of eight transmit queues carries packets. (Which receive queue a packet goes to is Open vSwitch's choice,
/// and one poll thread has one for all.)
pub fn eight_pairs(ctx: &Ctx) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, false)?;
    ctx.step("boot");
    let guest = Guest {
        queues: PAIRS,
        ..Guest::new(0)
    };
    let (ports, vms) = world.boot(&[Kind::Client], guest)?;
    let vm = &vms[0];
    vm.run(&format!("ethtool -L eth0 combined {PAIRS}"))?;
    // By connection, not by the processor that iperf3 happens to run on.
    vm.run("for cpus in /sys/class/net/eth0/queues/tx-*/xps_cpus; do echo 0 >$cpus; done")?;
    wait_reachable(vm, OBSERVER)?;
    let vrings = world.ovs.status(&ports[0].name)?.remove("num_of_vrings");
    ensure!(
        vrings.as_deref() == Some("16"),
        "num_of_vrings of {}: {vrings:?}",
        ports[0].name
    );
    // Else its kernel leaves checksums to the far end of the pair.
    world.ns.run("ethtool", &["-K", OBSERVER_END, "tx", "off"])?;
    let host = HostEnd::new(OBSERVER_END, OBSERVER, &world.ns, &world.dir);
    ctx.step("many connections");
    tcp::iperf(vm, &host, 3, STREAMS)?;
    ctx.step("content");
    tcp::transfer(vm, &host, 4)?;
    tcp::transfer(&host, vm, 4)?;
    let counters = vm.run("ethtool -S eth0")?;
    for queue in 0..PAIRS {
        let name = format!("tx_queue_{queue}_packets: ");
        let count = counters.lines().find_map(|line| line.trim().strip_prefix(&name));
        let count: u64 = count.with_context(|| format!("no {name}"))?.parse()?;
        ensure!(count > 0, "{name}no packet went that way");
    }
    drop(vms);
    world.finish(&[])
}

//! Guests that leave checksums and segments to the switch, and guests that do not: with `userspace-tso-enable`, every
//! pair of them, in every kind of packet memory.

use anyhow::{ensure, Context, Result};

use super::world::{self, ping_all, Guest, Kind, Port, World, PATIENCE};
use super::Ctx;
use crate::netns::Family;
use crate::ovs::Options;
use crate::tcp::{self, Account};
use crate::vm::Vm;
use crate::wait;

/// Takes and leaves nothing: its frames are as on the wire.
const BARE: &str = "csum=off,guest_csum=off,gso=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,\
                    guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off";
/// Leaves checksums to the switch and takes them, but no segments.
const CHECKSUMS: &str =
    "host_tso4=off,host_tso6=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off";
/// One buffer for each frame, of 64 KiB.
const NOT_MERGEABLE: &str = "mrg_rxbuf=off";

/// The bits of `status:features` that are looked at.
const CSUM: u32 = 0;
const GUEST_CSUM: u32 = 1;
const GUEST_TSO4: u32 = 7;
const GUEST_TSO6: u32 = 8;
const HOST_TSO4: u32 = 11;
const HOST_TSO6: u32 = 12;

/// What a guest negotiates, and speaks.
struct Shape {
    nic: &'static str,
    packed: bool,
    checksums: bool,
    segments: bool,
    family: Family,
}

const ALL: Shape = Shape {
    nic: "",
    packed: false,
    checksums: true,
    segments: true,
    family: Family::V4,
};
const ALL_IPV6: Shape = Shape {
    family: Family::V6,
    ..ALL
};

pub fn tso(ctx: &Ctx) -> Result<()> {
    between(ctx, switch(ctx, false), [&ALL, &ALL])
}

pub fn tso_ipv6(ctx: &Ctx) -> Result<()> {
    between(ctx, switch(ctx, false), [&ALL_IPV6, &ALL_IPV6])
}

pub fn tso_dpdk(ctx: &Ctx) -> Result<()> {
    between(ctx, switch(ctx, true), [&ALL, &ALL])
}

pub fn tso_packed(ctx: &Ctx) -> Result<()> {
    let packed = Shape { packed: true, ..ALL };
    let not_mergeable = Shape {
        nic: NOT_MERGEABLE,
        ..ALL
    };
    between(ctx, switch(ctx, false), [&packed, &not_mergeable])
}

pub fn to_bare(ctx: &Ctx) -> Result<()> {
    between(ctx, switch(ctx, false), [&ALL, &bare(false)])
}

pub fn to_bare_ipv6(ctx: &Ctx) -> Result<()> {
    let bare_ipv6 = Shape {
        family: Family::V6,
        ..bare(false)
    };
    between(ctx, switch(ctx, false), [&ALL_IPV6, &bare_ipv6])
}

pub fn to_bare_dpdk(ctx: &Ctx) -> Result<()> {
    between(ctx, switch(ctx, true), [&ALL, &bare(true)])
}

pub fn to_checksums_only(ctx: &Ctx) -> Result<()> {
    let checksums = Shape {
        nic: CHECKSUMS,
        segments: false,
        ..ALL
    };
    between(ctx, switch(ctx, false), [&ALL, &checksums])
}

/// The plugin in an Open vSwitch that was configured without DPDK.
pub fn no_dpdk_build(ctx: &Ctx) -> Result<()> {
    let (tree, plugin) = ctx.settings.nodpdk.clone().context("no tree without DPDK")?;
    let options = Options {
        tree,
        plugin: Some(plugin),
        ..switch(ctx, false)
    };
    between(ctx, options, [&ALL, &bare(false)])
}

fn bare(packed: bool) -> Shape {
    Shape {
        nic: BARE,
        packed,
        checksums: false,
        segments: false,
        family: Family::V4,
    }
}

fn switch(ctx: &Ctx, dpdk: bool) -> Options {
    Options {
        tso: true,
        ..world::options(&ctx.settings, dpdk || ctx.settings.stock())
    }
}

/// TCP both ways between two guests: what arrives is what was sent, no frame is dropped for its form, and frames larger
/// than the MTU come from exactly the guests that negotiated them, and go to those that did where they come from such.
fn between(ctx: &Ctx, options: Options, shapes: [&Shape; 2]) -> Result<()> {
    let dpdk = options.dpdk;
    let world = World::with(&ctx.settings, &ctx.dir, options, dpdk)?;
    ctx.step("boot");
    let (mut ports, mut vms) = (Vec::new(), Vec::new());
    for (id, shape) in (1..).zip(shapes) {
        let port = world.add_port(Kind::Client, &format!("vhost{id}"))?;
        let guest = Guest {
            packed: shape.packed,
            nic: shape.nic,
            family: shape.family,
            ..Guest::new(id)
        };
        vms.push(world.start_guest(&port, guest)?);
        ports.push(port);
    }
    for vm in &mut vms {
        vm.wait_ready()?;
    }
    for (port, shape) in ports.iter().zip(shapes) {
        check_negotiated(&world, port, shape)?;
    }
    traffic(ctx, &world, &ports, &vms, shapes)?;
    let both = shapes.iter().all(|shape| shape.segments);
    for (port, shape) in ports.iter().zip(shapes) {
        check_large(ctx, &world, port, "rx_1523_to_max_packets", shape.segments)?;
        check_large(ctx, &world, port, "tx_1523_to_max_packets", both)?;
        check_no_drops(&world, port)?;
    }
    world.finish(&[])
}

fn traffic(ctx: &Ctx, world: &World, ports: &[Port], vms: &[Vm], shapes: [&Shape; 2]) -> Result<()> {
    ctx.step("ping");
    ping_all(&vms[0], 2, 20)?;
    let ends = [0, 1].map(|end| world.end(&vms[end], &ports[end].name));
    // Frames that the switch cuts are more when they leave it than when they came.
    let whole = shapes.iter().all(|shape| shape.segments);
    let account = whole.then(|| Account::open(ends)).transpose()?;
    ctx.step("iperf3 both ways");
    let there = tcp::iperf(&vms[0], &vms[1], 3, 1)?;
    let back = tcp::iperf(&vms[1], &vms[0], 3, 1)?;
    ctx.result(&format!("{} and {} bytes", there.received, back.received));
    if let Some(account) = account {
        account.close()?;
    }
    ctx.step("checksummed transfer");
    tcp::transfer(&vms[0], &vms[1], 16)?;
    tcp::transfer(&vms[1], &vms[0], 16)
}

fn check_negotiated(world: &World, port: &Port, shape: &Shape) -> Result<()> {
    let features = world.ovs.status(&port.name)?.remove("features");
    let features = features.context("no features in the status")?;
    let bits = u64::from_str_radix(features.trim_start_matches("0x"), 16)?;
    let rows = [
        (CSUM, shape.checksums),
        (GUEST_CSUM, shape.checksums),
        (GUEST_TSO4, shape.segments),
        (GUEST_TSO6, shape.segments),
        (HOST_TSO4, shape.segments),
        (HOST_TSO6, shape.segments),
    ];
    for (bit, wanted) in rows {
        ensure!(
            (bits >> bit & 1 == 1) == wanted,
            "{}: bit {bit} of features {features}",
            port.name
        );
    }
    Ok(())
}

/// Holds if frames larger than the MTU crossed the port, or none if none should have.
fn check_large(ctx: &Ctx, world: &World, port: &Port, name: &str, wanted: bool) -> Result<()> {
    ctx.step(&format!("{name} of {}", port.name));
    let count = || world.ovs.statistic(&port.name, name);
    if wanted {
        // The database hears of counters every few seconds.
        wait::until_true(name, PATIENCE, || Ok(count()? > 100))?;
    }
    let count = count()?;
    ctx.result(&format!("{}: {name} {count}", port.name));
    ensure!(wanted || count == 0, "{}: {name} {count}", port.name);
    Ok(())
}

pub(super) fn check_no_drops(world: &World, port: &Port) -> Result<()> {
    let names = [
        "rx_dropped",
        "ovs_tx_invalid_hwol_drops",
        "ovs_tx_mtu_exceeded_drops",
        "ovs_vhost_rx_invalid_offload_drops",
        "ovs_vhost_rx_oversize_drops",
    ];
    for name in names {
        let count = world.ovs.statistic(&port.name, name)?;
        ensure!(count == 0, "{}: {name} {count}", port.name);
    }
    Ok(())
}

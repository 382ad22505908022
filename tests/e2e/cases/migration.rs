//! A running guest moves from one QEMU process to another, between two ports of the switch, again and again.

use std::path::Path;
use std::time::Duration;

use anyhow::{ensure, Context, Result};

use super::world::{options, Guest, Kind, World, PATIENCE, PLUGIN_LOADED, STOCK_ALLOWED};
use super::Ctx;
use crate::announcement::{By, Watch};
use crate::memory_check;
use crate::migration::{Move, Nomad, Way};
use crate::ovs;
use crate::ping::{HostPing, Report};
use crate::shell::host_time;
use crate::stream::Stream;
use crate::vm::{Iommu, Life};

/// Twenty a second.
const PING_INTERVAL: Duration = Duration::from_millis(50);
/// How much of the TCP stream has to go round after each move.
const SHARE: u64 = 1 << 20;
/// Traffic away for longer than this is a failure, even on a busy machine; how long it was is printed.
const LATE: Duration = Duration::from_secs(10);
/// What a client port says while there is no QEMU on its socket, as is the case between two moves.
const NOBODY_THERE: &[&str] = &["failed to connect: No such file or directory"];

pub fn client(ctx: &Ctx) -> Result<()> {
    under_traffic(ctx, [Kind::Client; 2], Guest::new(1), Way::default())
}

pub fn server(ctx: &Ctx) -> Result<()> {
    under_traffic(ctx, [Kind::Server; 2], Guest::new(1), Way::default())
}

pub fn packed_client(ctx: &Ctx) -> Result<()> {
    under_traffic(ctx, [Kind::Client; 2], packed(), Way::default())
}

pub fn packed_server(ctx: &Ctx) -> Result<()> {
    under_traffic(ctx, [Kind::Server; 2], packed(), Way::default())
}

/// From a port of one type to one of the other, with two queue pairs.
pub fn multiqueue(ctx: &Ctx) -> Result<()> {
    let guest = Guest {
        queues: 2,
        ..Guest::new(1)
    };
    under_traffic(ctx, [Kind::Client, Kind::Server], guest, Way::default())
}

pub fn postcopy(ctx: &Ctx) -> Result<()> {
    let way = Way {
        postcopy: true,
        ..Way::default()
    };
    under_traffic(ctx, [Kind::Client; 2], Guest::new(1), way)
}

/// A guest whose NIC is behind an IOMMU: its rings, put together of pages from anywhere, are logged where the guest has them.
pub fn iommu_packed(ctx: &Ctx) -> Result<()> {
    under_traffic(ctx, [Kind::Client; 2], behind_iommu(packed()), Way::default())
}

/// The guest has announced itself; nobody else could.
pub fn announce(ctx: &Ctx) -> Result<()> {
    silent(ctx, Guest::new(1), By::Guest)
}

/// The guest cannot announce itself, so QEMU has the port do it (VHOST_USER_SEND_RARP).
pub fn rarp(ctx: &Ctx) -> Result<()> {
    let guest = Guest {
        nic: "guest_announce=off",
        ..Guest::new(1)
    };
    silent(ctx, guest, By::Port)
}

/// A guest that came to life on the stock ports.
pub fn stock_and_back(ctx: &Ctx) -> Result<()> {
    switch_changes(ctx, None)
}

/// A guest that came to life on the plugin's ports.
pub fn plugin_and_back(ctx: &Ctx) -> Result<()> {
    switch_changes(ctx, ctx.settings.plugin.as_deref())
}

/// A running guest and its connections get another switch under them, and the first one back, twice. Rings that are not
/// packed: QEMU has no way to tell a new back-end where a packed ring stands, and the stock ports guess.
fn switch_changes(ctx: &Ctx, first: Option<&Path>) -> Result<()> {
    let second = ctx.settings.plugin.as_deref().filter(|_| first.is_none());
    let options = ovs::Options {
        plugin: first.map(Path::to_path_buf),
        ..options(&ctx.settings, true)
    };
    let mut world = World::with(&ctx.settings, &ctx.dir, options, true)?;
    ctx.step("boot");
    let port = world.add_port(Kind::Client, "vhost1")?;
    let guest = Guest::new(1);
    let mut vm = world.start_guest(&port, guest)?;
    vm.wait_ready()?;
    memory_check::start(&vm)?;
    let mut ping = HostPing::start(&world.ns, guest.id, PING_INTERVAL, &ctx.dir)?;
    let mut stream = Stream::start(&world.ns, &vm)?;
    world.ovs.wait_link(&port.name, true, PATIENCE)?;
    let negotiated = world.ovs.status(&port.name)?.remove("features");
    for plugin in [second, first, second, first] {
        let name = if plugin.is_some() { "the plugin" } else { "stock" };
        ctx.step(&format!("change to {name}, features {negotiated:?}"));
        stream.wait_more(SHARE, PATIENCE)?;
        let left = host_time()?;
        start_with(&mut world, plugin)?;
        stream.wait_more(SHARE, PATIENCE)?;
        ping.wait_more(10, PATIENCE)?;
        memory_check::check(&vm)?;
        // The stock ports forget to tell the database of a guest that is there before their bridge is.
        if plugin.is_some() {
            world.ovs.wait_link(&port.name, true, PATIENCE)?;
            let features = world.ovs.status(&port.name)?.remove("features");
            ensure!(
                features == negotiated,
                "features were {negotiated:?}, are {features:?}"
            );
        }
        let (report, up) = (ping.report(), host_time()?);
        let (away, lost) = (
            report.silence_within(left, up).length,
            report.lost_within(left, up),
        );
        ctx.result(&format!(
            "to {name}: pings away for {} ms, {lost} lost",
            away.as_millis()
        ));
    }
    let bytes = stream.finish()?;
    check_checksums(&vm.run("cat /proc/net/snmp")?)?;
    ctx.result(&format!(
        "features {negotiated:?}; {} KiB of TCP exact",
        bytes >> 10
    ));
    drop((vm, ping));
    world.finish(&[NOBODY_THERE, STOCK_ALLOWED].concat())
}

/// Ends the switch in order and starts it again with that plugin, or none.
fn start_with(world: &mut World, plugin: Option<&Path>) -> Result<()> {
    let mark = world.ovs.log_mark();
    world.ovs.exit(PATIENCE)?;
    world.ovs.set_plugin(plugin);
    world.ovs.start_vswitchd()?;
    let lines = world.ovs.log_since(mark);
    let loaded = lines.iter().any(|line| line.text.contains(PLUGIN_LOADED));
    ensure!(
        loaded == plugin.is_some(),
        "vswitchd runs with another plugin than {plugin:?}"
    );
    Ok(())
}

fn packed() -> Guest {
    Guest {
        packed: true,
        ..Guest::new(1)
    }
}

/// With rings of which each part is longer than a page.
fn behind_iommu(guest: Guest) -> Guest {
    Guest {
        iommu: Some(Iommu::Strict),
        nic: "rx_queue_size=1024,tx_queue_size=1024",
        ..guest
    }
}

/// Moves under a ping and a TCP stream, while the guest looks after its memory. In the last move, the memory is also
/// compared from outside: every byte the switch wrote has come along.
fn under_traffic(ctx: &Ctx, kinds: [Kind; 2], guest: Guest, way: Way) -> Result<()> {
    let world = world(ctx, guest, way)?;
    ctx.step("boot");
    let mut nomad = Nomad::boot(&world, kinds, movable(guest))?;
    memory_check::start(nomad.vm()?)?;
    let watch = Watch::start(&world.ns, guest.id, &ctx.dir)?;
    let mut ping = HostPing::start(&world.ns, guest.id, PING_INTERVAL, &ctx.dir)?;
    let mut stream = Stream::start(&world.ns, nomad.vm()?)?;
    stream.wait_more(SHARE, PATIENCE)?;
    let mut compared = 0;
    for number in 1..=ctx.settings.migrations {
        ctx.step(&format!("move {number}"));
        // Behind an IOMMU it takes only one page of a ring that is missed, so there every move counts.
        let last = number == ctx.settings.migrations;
        let compare = (last || guest.iommu.is_some()) && !way.postcopy;
        let moved = nomad.migrate(Way { compare, ..way })?;
        ctx.step(&format!("after move {number}"));
        stream.wait_more(SHARE, PATIENCE)?;
        ping.wait_more(10, PATIENCE)?;
        report(ctx, number, &moved, &ping.report(), &watch)?;
        ensure!(
            !way.postcopy || moved.requests > 0,
            "nothing was left for post-copy"
        );
        compared += moved.compared >> 20;
        memory_check::check(nomad.vm()?)?;
        world.ovs.wait_link(&nomad.port().name, true, PATIENCE)?;
        world.check_rings(nomad.port(), guest.packed, false)?;
    }
    ctx.step("the end of the stream");
    let bytes = stream.finish()?;
    check_checksums(&nomad.vm()?.run("cat /proc/net/snmp")?)?;
    ctx.result(&format!(
        "{} moves: {} pings lost, {} answered; {} KiB of TCP exact; {compared} MiB of memory compared",
        ctx.settings.migrations,
        ping.report().lost(),
        ping.report().received(),
        bytes >> 10
    ));
    drop((nomad, ping, watch));
    world.finish(NOBODY_THERE)
}

/// Moves of a guest that never speaks unless spoken to: only the announcement leads the switch to its new place.
fn silent(ctx: &Ctx, guest: Guest, by: By) -> Result<()> {
    let world = world(ctx, guest, Way::default())?;
    ctx.step("boot");
    let mut nomad = Nomad::boot(&world, [Kind::Client; 2], movable(guest))?;
    let watch = Watch::start(&world.ns, guest.id, &ctx.dir)?;
    let mut ping = HostPing::start(&world.ns, guest.id, PING_INTERVAL, &ctx.dir)?;
    ping.wait_more(10, PATIENCE)?;
    for number in 1..=ctx.settings.migrations {
        ctx.step(&format!("move {number}"));
        // A new place has no flows. With those of the last visit an announcement is not looked at when it passes, but
        // only when the flow's statistics are, twice a second.
        world.ovs.appctl("revalidator/purge")?;
        let moved = nomad.migrate(Way::default())?;
        ctx.step(&format!("after move {number}"));
        watch.wait(by, moved.resumed)?;
        ping.wait_more(10, PATIENCE)?;
        report(ctx, number, &moved, &ping.report(), &watch)?;
    }
    drop((nomad, ping, watch));
    world.finish(NOBODY_THERE)
}

fn world(ctx: &Ctx, guest: Guest, way: Way) -> Result<World> {
    let dpdk = ctx.settings.stock();
    let mut options = options(&ctx.settings, dpdk);
    if way.postcopy {
        options.other_config.push("vhost-postcopy-support=true");
    }
    if guest.iommu.is_some() {
        options.other_config.push("vhost-iommu-support=true");
    }
    World::with(&ctx.settings, &ctx.dir, options, dpdk)
}

fn movable(guest: Guest) -> Guest {
    Guest {
        life: Life::Moves,
        ..guest
    }
}

/// Prints what a move cost; fails if the traffic came back late.
fn report(ctx: &Ctx, number: usize, moved: &Move, ping: &Report, watch: &Watch) -> Result<()> {
    let span = (moved.stopped, moved.resumed);
    let away = ping.silence_within(span.0, span.1);
    let seen = [By::Guest, By::Port].map(|by| {
        watch.first(by, moved.resumed).map_or("never".into(), |time| {
            format!("after {:.0} ms", (time - moved.resumed) * 1000.0)
        })
    });
    ctx.result(&format!(
        "move {number}: {} MiB sent, stopped for {} ms; pings away for {} ms, {} lost; announced by the guest {}, by \
         the port {}",
        moved.sent >> 20,
        moved.downtime().as_millis(),
        away.length.as_millis(),
        ping.lost_within(span.0, span.1),
        seen[0],
        seen[1]
    ));
    ensure!(
        away.length < LATE,
        "move {number}: traffic away for {:?}",
        away.length
    );
    Ok(())
}

/// Fails if a packet reached the guest in a state that TCP repairs in silence: its page had not come along.
fn check_checksums(snmp: &str) -> Result<()> {
    for protocol in ["Ip:", "Icmp:", "Tcp:"] {
        let mut rows = snmp.lines().filter_map(|line| line.strip_prefix(protocol));
        let (names, values) = rows.next().zip(rows.next()).context("odd /proc/net/snmp")?;
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            let bad = ["InHdrErrors", "InErrs", "InErrors", "InCsumErrors"].contains(&name);
            ensure!(!bad || value == "0", "{protocol} {name} {value} in the guest");
        }
    }
    Ok(())
}

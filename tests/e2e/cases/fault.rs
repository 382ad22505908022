//! A panic inside the plugin, injected on purpose, costs the port it happens in and nothing else.

use anyhow::{ensure, Context, Result};

use super::vm::UNDISTURBED;
use super::world::{self, wait_reachable, Guest, Kind, World, PATIENCE, PING_INTERVAL};
use super::Ctx;
use crate::netns::OBSERVER;
use crate::ping::Ping;

/// Where `vhost-user/inject-panic` can make the plugin panic.
const PLACES: &[&str] = &["dequeue", "enqueue", "control"];

/// What the one log line about a panic says.
const PANICKED: &str = "internal error";

pub fn panic_costs_one_port(ctx: &Ctx) -> Result<()> {
    let plugin = ctx.settings.fault_plugin.clone();
    let options = crate::ovs::Options {
        plugin,
        ..world::options(&ctx.settings, false)
    };
    let mut world = World::with(&ctx.settings, &ctx.dir, options, false)?;
    let healthy = world.add_port(Kind::Client, "healthy")?;
    let mut vm = world.start_guest(&healthy, Guest::new(1))?;
    vm.wait_ready()?;
    wait_reachable(&vm, OBSERVER)?;
    for (place, kind) in PLACES.iter().zip([Kind::Server, Kind::Client, Kind::Client]) {
        ctx.step(&format!("panic in {place}"));
        let name = format!("victim-{place}");
        let victim = world.add_port(kind, &name)?;
        let mut other = world.start_guest(&victim, Guest::new(2))?;
        other.wait_ready()?;
        wait_reachable(&other, 1)?;
        let ping = Ping::start(&vm, OBSERVER, PING_INTERVAL)?;
        let traffic = Ping::start(&other, 1, PING_INTERVAL)?;
        let mark = world.ovs.log_mark();
        world
            .ovs
            .appctl(&format!("vhost-user/inject-panic {name} {place}"))?;
        world
            .ovs
            .wait_log(mark, &[PANICKED, &name], PATIENCE)
            .with_context(|| format!("panic in {place}"))?;
        world.ovs.wait_link(&name, false, PATIENCE)?;
        ping.wait_more(50, PATIENCE)?;
        ping.stop()?.check_undisturbed(UNDISTURBED)?;
        traffic.stop()?;
        let about = |line: &&crate::log::Line| line.text.contains(PANICKED);
        let count = world.ovs.log_since(mark).iter().filter(about).count();
        ensure!(count == 1, "{count} log lines about one panic in {place}");
        world.ovs.check_alive()?;
        drop(other);
        world.ovs.vsctl(&format!("del-port {name}"))?;
    }
    world.finish(&[PANICKED])
}

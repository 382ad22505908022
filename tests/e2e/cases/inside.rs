//! A look inside ports under load: the commands are asked in a loop while testpmd's packets go round, and cost none of them;
//! and where packets are dropped, the reasons add up.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use serde_json::Value;

use super::describe::json;
use super::dpdk::{compare, stop};
use super::world::{Kind, World, PATIENCE};
use super::Ctx;
use crate::testpmd::Rings;
use crate::wait;

/// How long the commands are asked.
const ASKED: Duration = Duration::from_secs(3);

pub fn under_load(ctx: &Ctx) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, true)?;
    let ports = world.testpmd_ports(Kind::Client)?;
    world.cross_connect(&ports)?;
    let mut testpmd = world.start_testpmd(&ports, Rings::PLAIN)?;
    let names = ports.each_ref().map(|port| port.name.as_str());

    ctx.step("asked while packets go round");
    for name in names {
        world.ovs.appctl(&format!("vhost-user/latency {name} on"))?;
    }
    testpmd.command("start tx_first 2", "packet forwarding")?;
    let rounds = ask(&world, names)?;
    ensure!(stop(&mut testpmd)? == 0, "testpmd could not send all");
    compare(&world, &mut testpmd, [&ports[0], &ports[1]], [0, 1])?;
    compare(&world, &mut testpmd, [&ports[1], &ports[0]], [1, 0])?;
    ctx.result(&format!("asked {rounds} times, nothing lost"));
    for name in names {
        let seen = &json(&world, &format!("vhost-user/latency --json {name} off"))?[0];
        let polls = seen["polls"][0]["count"].as_u64();
        ensure!(polls > Some(1000), "no polls: {seen}");
    }

    ctx.step("a device that does not look into its ring");
    testpmd.command("stop", "Done.")?;
    testpmd.command("set portlist 0", "previous number of forwarding ports")?;
    testpmd.command("set fwd txonly", "Set txonly packet forwarding mode")?;
    testpmd.command("start", "packet forwarding")?;
    wait::until_true("drops", PATIENCE, || {
        let seen = stats(&world, names[1])?;
        Ok(seen["to-the-guest"]["drops"]["ring-full"].as_u64() > Some(1000))
    })?;
    let row = &stats(&world, names[1])?["vrings"][0];
    ensure!(row["stalled-now-for-ms"].as_f64() > Some(0.0), "no stall: {row}");
    testpmd.command("stop", "Done.")?;
    world.ovs.wait_counters_still(&names)?;
    reasons_add_up(&world, names)?;

    ctx.step("nonsense");
    for (command, complaint) in [
        ("ring-dump", "requires at least 1"),
        ("ring-dump --json", "the name of a port is missing"),
        (&*format!("ring-dump {} 9", names[0]), "has no vring 9"),
        (&*format!("latency {} sideways", names[0]), "neither on nor off"),
        ("stats nobody", "no such vhost-user port"),
        ("reset-stats nobody", "no such vhost-user port"),
        ("stats one two", "more than one port"),
    ] {
        let answer = world.ovs.appctl(&format!("vhost-user/{command}"));
        let error = answer
            .err()
            .with_context(|| format!("\"{command}\" makes sense"))?;
        ensure!(
            format!("{error:#}").contains(complaint),
            "not \"{complaint}\": {error:#}"
        );
    }
    drop(testpmd);
    world.finish(&[])
}

fn stats(world: &World, port: &str) -> Result<Value> {
    Ok(json(world, &format!("vhost-user/stats --json {port}"))?[0].clone())
}

/// Asks for all there is to know, again and again. Says how often.
fn ask(world: &World, names: [&str; 2]) -> Result<u32> {
    let (start, mut rounds) = (Instant::now(), 0);
    while start.elapsed() < ASKED {
        for command in ["show", "events", "stats", "latency"] {
            json(world, &format!("vhost-user/{command} --json"))?;
        }
        for name in names {
            let rings = &json(world, &format!("vhost-user/ring-dump --json {name}"))?[0]["vrings"];
            let rings = rings.as_array().context("no vrings")?;
            let seen = rings
                .iter()
                .filter(|ring| ring["avail"]["index"].is_u64())
                .count();
            ensure!(seen == 2, "not two rings: {rings:?}");
        }
        rounds += 1;
    }
    let shown = &json(world, &format!("vhost-user/show --json {}", names[0]))?[0];
    let poller = &shown["vrings"][1]["polled-by"];
    ensure!(
        poller.as_str().is_some_and(|name| name.starts_with("pmd-c")),
        "polled by {poller}"
    );
    let backing = &shown["memory"][0]["backing"];
    ensure!(
        backing == "memfd" && shown["memory"][0]["page-size"] == 2 << 20,
        "in {shown}"
    );
    Ok(rounds)
}

/// Each packet from one port arrived at the other or was dropped there for one reason; and what began anew is told from there.
fn reasons_add_up(world: &World, [from, to]: [&str; 2]) -> Result<()> {
    let counters = [from, to].map(|name| world.ovs.counters(name));
    let [Some(sender), Some(receiver)] = counters.map(|counters| counters.ok().flatten()) else {
        bail!("no counters");
    };
    ensure!(
        sender.rx_packets == receiver.tx_packets + receiver.tx_dropped,
        "{sender:?} to {receiver:?}"
    );
    let seen = &stats(world, to)?["to-the-guest"];
    let drops = seen["drops"].as_object().context("no drops")?;
    let sum: u64 = drops.values().filter_map(Value::as_u64).sum();
    ensure!(
        seen["dropped"] == sum && sum == receiver.tx_dropped,
        "not {}: {seen}",
        receiver.tx_dropped
    );
    world.ovs.appctl(&format!("vhost-user/reset-stats {to}"))?;
    ensure!(
        stats(world, to)?["to-the-guest"]["dropped"] == 0,
        "not begun anew"
    );
    let after = world.ovs.counters(to)?.context("no counters")?;
    ensure!(
        after.tx_dropped == sum,
        "Open vSwitch's counters went back: {after:?}"
    );
    Ok(())
}

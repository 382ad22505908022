//! `ovs-appctl vhost-user/show` and `vhost-user/events`: what an operator is told of ports with guests, and without.

use anyhow::{bail, ensure, Context, Result};
use serde_json::Value;

use super::world::{ping_all, Guest, Kind, World, PATIENCE};
use super::Ctx;
use crate::netns::OBSERVER;

pub fn told_to_operators(ctx: &Ctx) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, false)?;
    world.add_port(Kind::Server, "lonely")?;
    let (ports, mut vms) = world.boot(&[Kind::Client], Guest::new(1))?;
    let name = &ports[0].name;
    ping_all(&vms[0], OBSERVER, 5)?;

    ctx.step("show");
    let all = json(&world, "vhost-user/show --json")?;
    ensure!(all.as_array().map(Vec::len) == Some(2), "not two ports: {all}");
    let all = json(&world, "vhost-user/show --json lonely")?;
    ensure!(
        all[0]["status"] == "disconnected" && all[0].get("front-end").is_none(),
        "not lonely: {all}"
    );
    let [port] = &json(&world, &format!("vhost-user/show {name} --json"))?
        .as_array()
        .cloned()
        .unwrap_or_default()[..]
    else {
        bail!("not one port");
    };
    let front_end = &port["front-end"];
    ensure!(front_end["pid"] == vms[0].pid(), "not QEMU: {front_end}");
    let command = front_end["command"].as_str().unwrap_or_default();
    ensure!(command.starts_with("qemu-system"), "not QEMU: {front_end}");
    // QEMU says which features it took where it says anything: in the status, in hexadecimal.
    let status = world.ovs.status(name)?;
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16);
    let acknowledged = port["features"]["acknowledged"].as_str().context("no features")?;
    ensure!(
        hex(acknowledged)? == hex(status.get("features").context("no features")?)?,
        "{acknowledged} are not the features of {status:?}"
    );
    let memory = port["memory"].as_array().context("no memory")?;
    let bytes: u64 = memory.iter().filter_map(|region| region["size"].as_u64()).sum();
    ensure!(bytes >= 64 << 20, "a guest in {bytes} bytes");
    for vring in port["vrings"].as_array().context("no vrings")? {
        let runs = vring["running"] == true && vring["enabled"] == true && vring["next"].is_u64();
        ensure!(runs, "a vring that does not run: {vring}");
    }

    ctx.step("the same for people");
    let text = world.ovs.appctl("vhost-user/show")?;
    for line in [
        "name: lonely",
        &format!("name: {name}"),
        "front-end:",
        &format!("  command: {command}"),
    ] {
        ensure!(text.lines().any(|l| l == line), "no line \"{line}\" in\n{text}");
    }
    ensure!(
        text.contains("VIRTIO_NET_F_MRG_RXBUF"),
        "no feature names in\n{text}"
    );

    ctx.step("events");
    vms.clear();
    world.ovs.wait_link(name, false, PATIENCE)?;
    let events = json(&world, &format!("vhost-user/events --json {name}"))?;
    let texts: Vec<&str> = events[0]["events"]
        .as_array()
        .context("no events")?
        .iter()
        .filter_map(|event| event["text"].as_str())
        .collect();
    for event in ["connected", "virtio is now ready", "vhost peer closed"] {
        ensure!(
            texts.iter().any(|text| text.contains(event)),
            "no \"{event}\" in {texts:?}"
        );
    }

    ctx.step("nonsense");
    for (arguments, complaint) in [
        ("nobody", "no such vhost-user port"),
        ("one two", "more than one port"),
    ] {
        let Err(error) = world.ovs.appctl(&format!("vhost-user/show {arguments}")) else {
            bail!("\"{arguments}\" is a port");
        };
        ensure!(
            format!("{error:#}").contains(complaint),
            "not \"{complaint}\": {error:#}"
        );
    }
    world.finish(&[])
}

pub(super) fn json(world: &World, command: &str) -> Result<Value> {
    let text = world.ovs.appctl(command)?;
    serde_json::from_str(&text).with_context(|| format!("{command}: {text}"))
}

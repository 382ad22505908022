//! Memory that a guest gets and gives back while it runs: the port maps what comes and lets go of what goes, and the
//! traffic notices nothing.

use std::time::Duration;

use anyhow::{ensure, Context, Result};
use serde_json::json;

use super::world::{wait_reachable, Guest, Kind, World, PATIENCE, PING_INTERVAL};
use super::Ctx;
use crate::netns::{address, mac, OBSERVER};
use crate::ping::Ping;
use crate::stream::Stream;
use crate::vm::{Vm, DIMM, MEMORY};
use crate::wait;

/// Modules for each guest. A stock port has room for 8 regions, of which the guest's first memory takes some.
const MODULES: u16 = 32;
const STOCK_MODULES: u16 = 4;
/// The last modules are used for what can be moved, so that they can be pulled out again.
const MOVABLE: u16 = 2;
/// What must come back unchanged of each stream, in bytes, before the next thing is done.
const BETWEEN: u64 = 64 << 10;
/// A guest without KVM that takes a module into use hears nothing for a while. (A ping may be lost beside TCP streams
/// that fill the rings.)
const UNDISTURBED: Duration = Duration::from_secs(3);

/// Modules are plugged into two guests while a checked TCP stream runs to each and pings between them; then the rings
/// themselves move into the new memory; then modules are pulled.
pub fn under_traffic(ctx: &Ctx) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, false)?;
    let modules = if world.stock() { STOCK_MODULES } else { MODULES };
    ctx.step("boot");
    let guest = Guest {
        dimms: modules,
        ..Guest::new(0)
    };
    let (ports, vms) = world.boot(&[Kind::Server, Kind::Client], guest)?;
    wait_reachable(&vms[0], 2)?;
    wait_reachable(&vms[1], OBSERVER)?;
    let mapped = mapped_regions(&world)?;
    let mark = world.ovs.log_mark();
    let mut streams = vms
        .iter()
        .map(|vm| Stream::start(&world.ns, vm))
        .collect::<Result<Vec<_>>>()?;
    let ping = Ping::start(&vms[0], 2, PING_INTERVAL)?;
    for module in 0..modules {
        ctx.step(&format!("plug in module {module}"));
        let zone = if module + MOVABLE < modules {
            "kernel"
        } else {
            "movable"
        };
        for vm in &vms {
            plug(vm, module, zone)?;
        }
        go_on(&mut streams)?;
    }
    wait_mapped(&world, mapped + 2 * usize::from(modules))?;
    let silence = ping.stop()?.longest_silence().length;
    ensure!(
        silence < UNDISTURBED,
        "pings were away for {} ms",
        silence.as_millis()
    );
    check_connected_throughout(&world, mark)?;
    for (vm, port) in vms.iter().zip(&ports) {
        ctx.step(&format!("the rings of {} move", port.name));
        move_rings(vm)?;
        world.ovs.wait_link(&port.name, true, PATIENCE)?;
        go_on(&mut streams)?;
    }
    let mark = world.ovs.log_mark();
    for module in modules - MOVABLE..modules {
        ctx.step(&format!("pull module {module}"));
        for vm in &vms {
            pull(vm, module)?;
        }
        go_on(&mut streams)?;
    }
    wait_mapped(&world, mapped + 2 * usize::from(modules - MOVABLE))?;
    check_connected_throughout(&world, mark)?;
    ctx.step("the streams end");
    for (stream, port) in streams.into_iter().zip(&ports) {
        let bytes = stream.finish()?;
        ctx.result(&format!(
            "{}: {} KiB came back as sent, {modules} modules",
            port.name,
            bytes >> 10
        ));
    }
    drop(vms);
    world.finish(&[])
}

fn go_on(streams: &mut [Stream]) -> Result<()> {
    streams
        .iter_mut()
        .try_for_each(|stream| stream.wait_more(BETWEEN, PATIENCE))
}

/// Plugs a module in and has the guest use it for `zone` ("kernel" or "movable").
fn plug(vm: &Vm, module: u16, zone: &str) -> Result<()> {
    let mut qmp = vm.qmp()?;
    qmp.run(
        "object-add",
        json!({ "qom-type": "memory-backend-memfd", "id": format!("mem{module}"), "size": DIMM, "share": true }),
    )?;
    qmp.run(
        "device_add",
        json!({ "driver": "pc-dimm", "id": format!("dimm{module}"), "memdev": format!("mem{module}") }),
    )?;
    let blocks = MEMORY / DIMM + u64::from(module) + 1;
    let what = format!("{} to use module {module}", vm.spec.name);
    wait::until_true(&what, PATIENCE, || {
        let online = vm.run(&format!(
            "cd /sys/devices/system/memory; \
             for state in memory*/state; do grep -q offline $state && echo online_{zone} >$state; done; \
             cat memory*/state | grep -c online"
        ))?;
        Ok(online.trim().parse() == Ok(blocks))
    })
}

/// Asks the guest to give a module back, and takes its memory away.
fn pull(vm: &Vm, module: u16) -> Result<()> {
    let mut qmp = vm.qmp()?;
    qmp.run("device_del", json!({ "id": format!("dimm{module}") }))?;
    qmp.wait_event("DEVICE_DELETED", PATIENCE)?;
    qmp.run("object-del", json!({ "id": format!("mem{module}") }))
        .map(drop)
}

/// The driver starts anew, for which the guest's kernel takes memory above 4 GiB, where only modules are.
fn move_rings(vm: &Vm) -> Result<()> {
    let setup = [
        "cd /sys/bus/virtio/drivers/virtio_net".to_string(),
        "for device in virtio*; do echo $device >unbind; echo $device >bind; done".to_string(),
        format!("ip address add {}/24 dev eth0", address(vm.spec.id)),
        "ip link set eth0 up".to_string(),
    ];
    let neighbours = [1, 2, OBSERVER].map(|id| format!("arp -i eth0 -s {} {}", address(id), mac(id)));
    let neighbours = neighbours
        .iter()
        .enumerate()
        .filter(|(index, _)| index + 1 != usize::from(vm.spec.id));
    let script: Vec<&str> = setup
        .iter()
        .chain(neighbours.map(|(_, line)| line))
        .map(String::as_str)
        .collect();
    vm.run(&script.join(" && "))?;
    let mut qmp = vm.qmp()?;
    let devices = qmp.run("x-query-virtio", json!({}))?;
    let path = &devices[0]["path"];
    for queue in 0..2 {
        // The command without "vhost" would stop the ring, to ask its back-end where it stands.
        let status = qmp.run(
            "x-query-virtio-vhost-queue-status",
            json!({ "path": path, "queue": queue }),
        )?;
        let address = status["desc-phys"].as_u64().context("no desc-phys")?;
        ensure!(
            address >= 4 << 30,
            "vring {queue} of {} is at {address:#x}, not in a module",
            vm.spec.name
        );
    }
    Ok(())
}

/// How many pieces of guest memory the switch has mapped.
fn mapped_regions(world: &World) -> Result<usize> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", world.ovs.pid()?))?;
    Ok(maps
        .lines()
        .filter(|line| line.contains("memory-backend-memfd"))
        .count())
}

fn wait_mapped(world: &World, wanted: usize) -> Result<()> {
    let mut found = 0;
    wait::until_true("the switch to have the modules mapped", PATIENCE, || {
        found = mapped_regions(world)?;
        Ok(found == wanted)
    })
    .with_context(|| format!("{found} regions are mapped, not {wanted}"))
}

/// No port lost its front-end since `mark`.
fn check_connected_throughout(world: &World, mark: usize) -> Result<()> {
    let lines = world.ovs.log_since(mark);
    let lost = lines.iter().find(|line| line.text.contains("has been removed"));
    ensure!(lost.is_none(), "a port was disturbed: {lost:?}");
    Ok(())
}

//! QEMU is killed in the middle of TCP, and again while its next guest boots, on ports of either kind. Two guests beside it on the
//! same poll thread lose nothing, and once there is another QEMU the switch holds as much as before.

use std::time::Duration;

use anyhow::{ensure, Context, Result};

use super::bad_luck::talk::{Pair, Talk};
use super::world::{wait_reachable, Guest, Kind, Port, World, PATIENCE};
use super::Ctx;
use crate::dice::Dice;
use crate::ovs::PortCounters;
use crate::quick_guest;
use crate::shell::Job;
use crate::tcp::{self, Account};
use crate::usage::Usage;
use crate::vm::{Spec, Vm};
use crate::wait;

/// How often each of the two guests' QEMUs is killed in each way.
const ROUNDS: usize = 2;
/// Deals the same moments each time, as far as the machine lets it.
const SEED: u64 = 9;
/// Packets in each direction that show that TCP is in the middle of it, and some time more until the blow.
const MOVED: u64 = 500;
const MIDDLE: Duration = Duration::from_millis(400);
/// The time in which a guest boots, finds its NIC, and starts its rings.
const YOUTH: Duration = Duration::from_secs(4);
/// Frames of those beside that show that they go on.
const GO_ON: u64 = 1_000;

pub fn under_tcp(ctx: &Ctx) -> Result<()> {
    let mut world = World::new(&ctx.settings, &ctx.dir, false)?;
    let mut beside = innocent(&world)?;
    ctx.step("boot");
    let (ports, mut vms) = world.boot(&[Kind::Server, Kind::Client], Guest::new(0))?;
    check_content(&world, &ports, &vms)?;
    let before = Usage::settled(&world)?;
    let mut dice = Dice::new(ctx.settings.soak_seed.unwrap_or(SEED));
    for index in [0, 1].repeat(ROUNDS) {
        let port = &ports[index];
        let victim = vms.remove(index);
        ctx.step(&format!("kill the QEMU of {} in the middle of TCP", port.name));
        let spec = die_in_tcp(&mut world, port, victim, &vms[0], dice.moment(MIDDLE))?;
        ctx.step("kill the next one in its youth");
        let young = world.start_spec(spec)?;
        std::thread::sleep(dice.moment(YOUTH));
        let spec = young.kill_9()?;
        ctx.step("start another");
        let mut again = world.start_spec(spec)?;
        again.wait_ready()?;
        vms.insert(index, again);
        check_content(&world, &ports, &vms)?;
        before.check(&world).context("after a QEMU that was killed")?;
        beside.wait_more(GO_ON)?;
    }
    let (mut pair, _) = beside.halt()?;
    let account = pair.settle(true)?;
    ensure!(account.lost + account.twice == 0, "beside: {account:?}");
    let (deaths, frames) = (4 * ROUNDS, account.arrived);
    ctx.result(&format!(
        "{deaths} QEMUs were killed; {frames} frames beside, all arrived once"
    ));
    world.finish(&[])
}

/// Two quick guests that send each other frames, past everybody else and through the one poll thread.
pub fn innocent(world: &World) -> Result<Talk> {
    world
        .ovs
        .vsctl("set Open_vSwitch . other_config:pmd-cpu-mask=0x1")?;
    let mut guests = Vec::new();
    let mut ports = Vec::new();
    for name in ["beside1", "beside2"] {
        let port = world.add_port(Kind::Server, name)?;
        // What the switch floods does not go there.
        world.ovs.vsctl(&format!("set Port {name} tag=10"))?;
        guests.push(quick_guest::Guest::connect(&port.socket)?);
        world.ovs.wait_link(name, true, PATIENCE)?;
        ports.push(port);
    }
    world.connect(&ports)?;
    let guests = guests.try_into().ok().context("two guests")?;
    Talk::start(Pair::new(guests))
}

/// What the guests send each other arrives as it was sent, and every packet is accounted for.
fn check_content(world: &World, ports: &[Port], vms: &[Vm]) -> Result<()> {
    wait_reachable(&vms[0], 2)?;
    let ends = [0, 1].map(|index| world.end(&vms[index], &ports[index].name));
    let account = Account::open(ends)?;
    tcp::transfer(&vms[0], &vms[1], 2)?;
    tcp::transfer(&vms[1], &vms[0], 2)?;
    account.close()
}

/// Kills the victim's QEMU so long after TCP has begun to flow both ways. Its port says what happened, and is ready for the next.
fn die_in_tcp(world: &mut World, port: &Port, victim: Vm, survivor: &Vm, moment: Duration) -> Result<Spec> {
    let mark = world.ovs.log_mark();
    let client = both_ways(survivor, &victim)?;
    wait_moved(world, port)?;
    std::thread::sleep(moment);
    let spec = victim.kill_9()?;
    let socket = port.socket.display().to_string();
    for told in [
        "vhost peer closed",
        "has been removed",
        "connection has been destroyed",
    ] {
        world.ovs.wait_log(mark, &[&socket, told], PATIENCE)?;
    }
    world.ovs.wait_link(&port.name, false, PATIENCE)?;
    let status = world.ovs.status(&port.name)?;
    ensure!(
        status.get("status").is_some_and(|word| word == "disconnected"),
        "{}: {status:?}",
        port.name
    );
    client.kill()?;
    Ok(spec)
}

/// TCP at full speed in both directions, until somebody dies.
fn both_ways<'vm>(from: &'vm Vm, to: &Vm) -> Result<Job<'vm>> {
    to.spawn("server", "iperf3 -s -1")?;
    tcp::wait_listening(to, 5201)?;
    let address = to.spec.family.address(to.spec.id);
    from.spawn("client", &format!("iperf3 -c {address} -t 60 --bidir"))
}

fn wait_moved(world: &World, port: &Port) -> Result<()> {
    let counters = || world.ovs.counters(&port.name)?.context("no counters");
    let before: PortCounters = counters()?;
    wait::until_true("TCP to flow both ways", PATIENCE, || {
        let now = counters()?;
        let moved = [
            now.rx_packets - before.rx_packets,
            now.tx_packets - before.tx_packets,
        ];
        Ok(moved.iter().all(|packets| *packets > MOVED))
    })
}

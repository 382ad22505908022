//! Real guests on the ports: traffic of every shape, and every way in which one side goes away and comes back.

use std::time::Duration;

use anyhow::{ensure, Context, Result};

use super::world::{ping_all, wait_reachable, Guest, Kind, Port, World, PATIENCE, PING_INTERVAL};
use super::Ctx;
use crate::evidence;
use crate::netns::{address, OBSERVER};
use crate::ping::Ping;
use crate::shell::host_time;
use crate::tcp::{self, Account};
use crate::vm::Vm;

/// What "not disturbed" allows on a shared machine without KVM.
pub const UNDISTURBED: Duration = Duration::from_millis(1500);

pub fn server_and_client(ctx: &Ctx) -> Result<()> {
    two_guests(ctx, [Kind::Server, Kind::Client], Guest::new(0), false)
}

pub fn server_and_client_dpdk(ctx: &Ctx) -> Result<()> {
    two_guests(ctx, [Kind::Server, Kind::Client], Guest::new(0), true)
}

pub fn client_and_client(ctx: &Ctx) -> Result<()> {
    two_guests(ctx, [Kind::Client, Kind::Client], Guest::new(0), false)
}

/// Guests of which the device shows only what was there before VIRTIO 1.0: rings at fixed alignment, in one piece, and their
/// drivers say that a header may be anywhere (VIRTIO_F_ANY_LAYOUT).
pub fn legacy(ctx: &Ctx) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, false)?;
    ctx.step("boot");
    let guest = Guest {
        nic: "disable-modern=on",
        ..Guest::new(0)
    };
    let (ports, vms) = world.boot(&[Kind::Server, Kind::Client], guest)?;
    for port in &ports {
        let features = world.features(port)?;
        ctx.result(&format!("{}: features {features:#x}", port.name));
        ensure!(
            features >> 27 & 1 == 1 && features >> 32 == 0,
            "{}: features {features:#x}",
            port.name
        );
    }
    all_traffic(ctx, &world, &ports, &vms, 1)?;
    world.finish(&[])
}

/// A guest with packed rings, unless it says otherwise.
fn packed_guest() -> Guest {
    Guest {
        packed: true,
        ..Guest::new(0)
    }
}

/// Both guests negotiate packed rings.
pub fn packed(ctx: &Ctx) -> Result<()> {
    two_guests(ctx, [Kind::Server, Kind::Client], packed_guest(), false)
}

/// QEMU cannot say where a packed ring stood when its back-end died.
pub fn packed_vswitchd_killed(ctx: &Ctx) -> Result<()> {
    killed_and_started(ctx, packed_guest(), false)
}

/// Ping, TCP load both ways with every packet accounted for, and content that arrives as it was sent.
fn two_guests(ctx: &Ctx, kinds: [Kind; 2], guest: Guest, dpdk: bool) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, dpdk)?;
    ctx.step("boot");
    let (ports, vms) = world.boot(&kinds, guest)?;
    for port in &ports {
        world.check_rings(port, guest.packed, false)?;
    }
    all_traffic(ctx, &world, &ports, &vms, 1)?;
    check_status(&world, &ports)?;
    world.finish(&[])
}

pub fn all_traffic(ctx: &Ctx, world: &World, ports: &[Port], vms: &[Vm], streams: u32) -> Result<()> {
    ctx.step("ping");
    ping_all(&vms[0], 2, 20)?;
    let account = Account::open([
        world.end(&vms[0], &ports[0].name),
        world.end(&vms[1], &ports[1].name),
    ])?;
    ctx.step("iperf3 both ways");
    let there = tcp::iperf(&vms[0], &vms[1], 2, streams)?;
    let back = tcp::iperf(&vms[1], &vms[0], 2, streams)?;
    ctx.step(&format!("account of {there:?} {back:?}"));
    account.close()?;
    ctx.step("checksummed transfer");
    tcp::transfer(&vms[0], &vms[1], 8)?;
    tcp::transfer(&vms[1], &vms[0], 8)
}

/// The stock keys of the `status` column.
pub fn check_status(world: &World, ports: &[Port]) -> Result<()> {
    for port in ports {
        let status = world.ovs.status(&port.name)?;
        let mode = if port.kind == Kind::Server {
            "server"
        } else {
            "client"
        };
        let has = |key: &str, value: &str| status.get(key).is_some_and(|found| found == value);
        ensure!(
            has("mode", mode) && has("status", "connected"),
            "status of {}: {status:?}",
            port.name
        );
        for key in [
            "socket",
            "features",
            "num_of_vrings",
            "vring_0_size",
            "vring_1_size",
        ] {
            ensure!(
                status.contains_key(key),
                "status of {} without {key}: {status:?}",
                port.name
            );
        }
    }
    Ok(())
}

pub fn multiqueue(ctx: &Ctx) -> Result<()> {
    two_queue_pairs(ctx, false)
}

pub fn multiqueue_dpdk(ctx: &Ctx) -> Result<()> {
    two_queue_pairs(ctx, true)
}

/// Two queue pairs, used and unused in turn while TCP runs over them.
fn two_queue_pairs(ctx: &Ctx, dpdk: bool) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, dpdk)?;
    ctx.step("boot");
    let (ports, vms) = world.boot(
        &[Kind::Server, Kind::Client],
        Guest {
            queues: 2,
            ..Guest::new(0)
        },
    )?;
    for vm in &vms {
        vm.run("ethtool -L eth0 combined 2")?;
    }
    all_traffic(ctx, &world, &ports, &vms, 4)?;
    ctx.step("queues off and on under traffic");
    let server = vms[1].spawn("server", "iperf3 -s -1")?;
    let command = format!("iperf3 -c {} -t 8 -P 4 --connect-timeout 5000", address(2));
    tcp::wait_listening(&vms[1], 5201)?;
    let client = vms[0].spawn("client", &command)?;
    for combined in [1, 2, 1, 2] {
        for vm in &vms {
            vm.run(&format!("ethtool -L eth0 combined {combined}"))?;
        }
        let pings = Ping::start(&vms[0], 2, PING_INTERVAL)?;
        pings.wait_more(10, PATIENCE).with_context(|| {
            let evidence = evidence::of_silence(&world.ovs, &["vhost1", "vhost2"], &vms);
            format!("with {combined} queue pairs; {evidence}")
        })?;
        pings.stop()?;
    }
    ensure!(
        client.wait(PATIENCE)? == 0,
        "iperf3: {}",
        client.printed("tail -n 3")?
    );
    server.wait(PATIENCE)?;
    for port in &ports {
        let vrings = world.ovs.status(&port.name)?.remove("num_of_vrings");
        ensure!(
            vrings.as_deref() == Some("4"),
            "num_of_vrings of {}: {vrings:?}",
            port.name
        );
    }
    ctx.step("all traffic once more");
    all_traffic(ctx, &world, &ports, &vms, 4)?;
    world.finish(&[])
}

pub fn mtu_9000(ctx: &Ctx) -> Result<()> {
    jumbo(ctx, false)
}

pub fn mtu_9000_dpdk(ctx: &Ctx) -> Result<()> {
    jumbo(ctx, true)
}

/// Frames of 9000 bytes, not one of them cut or dropped.
fn jumbo(ctx: &Ctx, dpdk: bool) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, dpdk)?;
    let (mut ports, mut vms) = (Vec::new(), Vec::new());
    ctx.step("boot");
    for (id, kind) in [(1, Kind::Server), (2, Kind::Client)] {
        let port = world.add_port(kind, &format!("vhost{id}"))?;
        world
            .ovs
            .vsctl(&format!("set Interface {} mtu_request=9000", port.name))?;
        vms.push(world.start_guest(
            &port,
            Guest {
                mtu: 9000,
                ..Guest::new(id)
            },
        )?);
        ports.push(port);
    }
    for vm in &mut vms {
        vm.wait_ready()?;
    }
    wait_reachable(&vms[0], 2)?;
    ctx.step("frames of full size");
    for (from, to) in [(0, 2), (1, 1)] {
        // 8972 bytes of data are 9000 of IP; -M do forbids fragments.
        vms[from].run(&format!(
            "/opt/ping -n -c 10 -i 0.1 -W 5 -M do -s 8972 {}",
            address(to)
        ))?;
    }
    for port in &ports {
        let mtu = world.ovs.interface(&port.name, "mtu")?;
        ensure!(mtu == "9000", "mtu of {} is {mtu}", port.name);
    }
    all_traffic(ctx, &world, &ports, &vms, 1)?;
    world.finish(&[])
}

/// A guest restarts from inside: QEMU and the connection stay, the rings begin anew.
pub fn guest_reboot(ctx: &Ctx) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, false)?;
    let (_, mut vms) = world.boot(&[Kind::Server, Kind::Client], Guest::new(0))?;
    for id in [1, 2] {
        ctx.step(&format!("reboot guest {id}"));
        wait_reachable(&vms[0], 2)?;
        let index = usize::from(id - 1_u8);
        vms[index].reboot()?;
        ping_all(&vms[0], 2, 20)?;
        ping_all(&vms[1], 1, 20)?;
    }
    ctx.step("transfer");
    tcp::transfer(&vms[0], &vms[1], 8)?;
    world.finish(&[])
}

pub fn vswitchd_killed(ctx: &Ctx) -> Result<()> {
    killed_and_started(ctx, Guest::new(0), false)
}

pub fn vswitchd_killed_dpdk(ctx: &Ctx) -> Result<()> {
    killed_and_started(ctx, Guest::new(0), true)
}

/// vswitchd dies under running pings, three times, and everybody gets their traffic back untouched.
fn killed_and_started(ctx: &Ctx, guest: Guest, dpdk: bool) -> Result<()> {
    let mut world = World::new(&ctx.settings, &ctx.dir, dpdk)?;
    ctx.step("boot");
    let kinds = [Kind::Server, Kind::Client];
    let (ports, vms) = world.boot(&kinds, guest)?;
    for port in &ports {
        world.check_rings(port, guest.packed, false)?;
    }
    wait_reachable(&vms[0], 2)?;
    for round in 1..=3 {
        // Each guest pings the observer, so each outage is of one port; the first also pings the other guest.
        let pings = vms
            .iter()
            .map(|vm| Ping::start(vm, OBSERVER, PING_INTERVAL))
            .collect::<Result<Vec<_>>>()?;
        let through = Ping::start(&vms[0], 2, PING_INTERVAL)?;
        for ping in pings.iter().chain([&through]) {
            ping.wait_more(20, PATIENCE)?;
        }
        ctx.step(&format!("kill -9 and start, round {round}"));
        let moment = (host_time()?, world.ovs.log_mark());
        world.kill_vswitchd(&ports)?;
        world.ovs.start_vswitchd()?;
        for ping in pings.iter().chain([&through]) {
            ping.wait_more(20, PATIENCE)?;
        }
        for ((ping, vm), port) in pings.into_iter().zip(&vms).zip(&ports) {
            report_outage(ctx, &world, moment, vm, port, ping)?;
        }
        through.stop()?;
    }
    ctx.step("transfer");
    tcp::transfer(&vms[0], &vms[1], 8)?;
    world.finish(&[])
}

/// Reports how long a port's traffic was away, in all and since the switch had the port again.
fn report_outage(
    ctx: &Ctx,
    world: &World,
    (killed, mark): (f64, usize),
    vm: &Vm,
    port: &Port,
    ping: Ping,
) -> Result<()> {
    let socket = port.socket.display().to_string();
    let lines = world.ovs.log_since(mark);
    let created = lines
        .iter()
        .find(|line| line.text.contains(&socket))
        .context("the port is not in the log")?;
    let offset = vm.clock_offset()?;
    let outage = ping
        .stop()?
        .silence_within(killed - offset, created.time - offset);
    let after = outage.until + offset - created.time;
    ctx.result(&format!(
        "{}: {} ms away in all, back {:.0} ms after the switch had the port",
        port.name,
        outage.length.as_millis(),
        after * 1000.0
    ));
    // How soon it was is for the reader: milliseconds for a client port, up to a second for a server port, whose QEMU
    // looks for a lost server once a second. A test on a busy machine can only tell soon from late.
    const LATE: f64 = 10.0;
    ensure!(
        world.stock() || after < LATE,
        "{} came back only {after:.2} s after it existed",
        port.name
    );
    Ok(())
}

/// QEMU dies as in a crash and is started again; the other guest goes on all the while.
pub fn front_end_crash(ctx: &Ctx) -> Result<()> {
    let mut world = World::new(&ctx.settings, &ctx.dir, false)?;
    for kind in [Kind::Server, Kind::Client] {
        ctx.step(&format!("boot on {kind:?} ports"));
        let name = |id: u8| format!("{}{id}", if kind == Kind::Server { "server" } else { "client" });
        let ports = [world.add_port(kind, &name(1))?, world.add_port(kind, &name(2))?];
        let mut stays = world.start_guest(&ports[0], Guest::new(1))?;
        let mut crashes = world.start_guest(&ports[1], Guest::new(2))?;
        stays.wait_ready()?;
        crashes.wait_ready()?;
        wait_reachable(&stays, 2)?;
        let ping = Ping::start(&stays, OBSERVER, PING_INTERVAL)?;
        ctx.step("kill -9 QEMU");
        let mark = world.ovs.log_mark();
        let spec = crashes.kill_9()?;
        let socket = ports[1].socket.display().to_string();
        world
            .ovs
            .wait_log(mark, &["vHost Device", &socket, "has been removed"], PATIENCE)?;
        world.ovs.wait_link(&ports[1].name, false, PATIENCE)?;
        ctx.step("start it again");
        let mut again = world.start_spec(spec)?;
        again.wait_ready()?;
        ping_all(&again, 1, 20)?;
        ping.stop()?.check_undisturbed(UNDISTURBED)?;
        drop((stays, again));
        world.ovs.vsctl(&format!(
            "del-port {} -- del-port {}",
            ports[0].name, ports[1].name
        ))?;
    }
    world.finish(&[])
}

/// The port is there long before its QEMU, as OpenStack does it, and after QEMU has gone for good once.
pub fn path_not_there_yet(ctx: &Ctx) -> Result<()> {
    let mut world = World::new(&ctx.settings, &ctx.dir, false)?;
    let port = world.add_port(Kind::Client, "vhost1")?;
    let status = world.ovs.status(&port.name)?;
    ensure!(
        status.get("status").is_some_and(|text| text == "disconnected"),
        "status: {status:?}"
    );
    for round in 1..=2 {
        ctx.step(&format!("start the guest, round {round}"));
        let mark = world.ovs.log_mark();
        let mut vm = world.start_guest(&port, Guest::new(1))?;
        vm.wait_ready()?;
        ping_all(&vm, OBSERVER, 20)?;
        world.ovs.wait_link(&port.name, true, PATIENCE)?;
        vm.kill_9()?;
        world
            .ovs
            .wait_log(mark, &["vHost Device", "has been removed"], PATIENCE)?;
        // As an orchestrator does when it cleans up after a VM.
        std::fs::remove_file(&port.socket)?;
    }
    world.finish(&["failed to connect: No such file or directory"])
}

/// `del-port` and `add-port` of the same name while the guest runs.
pub fn port_deleted_and_added(ctx: &Ctx) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, false)?;
    ctx.step("boot");
    let (ports, vms) = world.boot(&[Kind::Server, Kind::Client], Guest::new(0))?;
    for (index, port) in ports.iter().enumerate() {
        let vm = &vms[index];
        wait_reachable(vm, OBSERVER)?;
        for round in 1..=3 {
            ctx.step(&format!("delete {} and add it again, round {round}", port.name));
            world.ovs.vsctl(&format!("del-port {}", port.name))?;
            ensure!(
                port.kind == Kind::Client || !port.socket.exists(),
                "the socket of a deleted port is left"
            );
            world
                .ovs
                .vsctl(&format!("add-port br0 {} -- {}", port.name, port.vsctl_args()))?;
            ping_all(vm, OBSERVER, 20)?;
        }
        ctx.step("in one transaction");
        world.ovs.vsctl(&format!(
            "del-port {0} -- add-port br0 {0} -- {1}",
            port.name,
            port.vsctl_args()
        ))?;
        ping_all(vm, OBSERVER, 20)?;
    }
    ping_all(&vms[0], 2, 20)?;
    // The stock lines about a server port that is deleted under a running guest.
    world.finish(&[
        "while vhost device still attached",
        "To restore connectivity after re-adding of port",
    ])
}

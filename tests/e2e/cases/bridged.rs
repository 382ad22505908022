//! A guest and everything else that a switch has ports for: the host's own stack behind an internal port, a veth
//! pair, an AF_XDP port, and another guest behind a tunnel to another switch. Everywhere the same proof: frames of
//! full size pass whole, every packet and byte is accounted for from NIC to NIC, and content arrives as it was sent.

use anyhow::{ensure, Context, Result};

use super::world::{self, wait_reachable, Guest, Kind, Port, World};
use super::Ctx;
use crate::netns::{self, NetNs, OBSERVER_END};
use crate::party::{HostEnd, Party};
use crate::tcp::{self, Account, End};
use crate::vm::Vm;

/// What differs between the rows of a world.
#[derive(Clone, Copy)]
pub struct Shape {
    /// MTU of guests and ports.
    mtu: u16,
    /// Type of the guests' ports.
    kind: Kind,
    /// `other_config:userspace-tso-enable`.
    tso: bool,
}

const SMALL: Shape = Shape {
    mtu: 1500,
    kind: Kind::Client,
    tso: false,
};
const JUMBO: Shape = Shape {
    mtu: 9000,
    kind: Kind::Server,
    tso: false,
};

const SMALL_TSO: Shape = Shape { tso: true, ..SMALL };
// Server ports offer no TSO.
const JUMBO_TSO: Shape = Shape {
    kind: Kind::Client,
    tso: true,
    ..JUMBO
};

/// How long iperf3 runs each way over each path, in seconds.
const LOAD: u64 = 2;
/// Size of the checksummed transfers, in MiB.
const CONTENT: u32 = 4;

/// The largest MTU of an AF_XDP port, whose frames have a page each.
const AF_XDP_MTU: u16 = 3498;

pub fn ports_1500(ctx: &Ctx) -> Result<()> {
    ports(ctx, SMALL)
}

pub fn ports_9000(ctx: &Ctx) -> Result<()> {
    ports(ctx, JUMBO)
}

pub fn ports_1500_tso(ctx: &Ctx) -> Result<()> {
    ports(ctx, SMALL_TSO)
}

pub fn ports_9000_tso(ctx: &Ctx) -> Result<()> {
    ports(ctx, JUMBO_TSO)
}

pub fn tunnels_1500(ctx: &Ctx) -> Result<()> {
    tunnels(ctx, SMALL)
}

pub fn tunnels_9000(ctx: &Ctx) -> Result<()> {
    tunnels(ctx, JUMBO)
}

pub fn tunnels_1500_tso(ctx: &Ctx) -> Result<()> {
    tunnels(ctx, SMALL_TSO)
}

pub fn tunnels_9000_tso(ctx: &Ctx) -> Result<()> {
    tunnels(ctx, JUMBO_TSO)
}

/// One guest and, in turn, the host behind ports of other types.
fn ports(ctx: &Ctx, shape: Shape) -> Result<()> {
    let world = new_world(ctx, "switch", shape)?;
    ctx.step("boot");
    let (port, mut vm) = add_guest(&world, 1, shape)?;
    ctx.step("add the other ports");
    let mut ends = vec![internal(&world, shape)?, veth(&world, shape)?];
    // Open vSwitch drops what has offload flags on its way to an AF_XDP port.
    if shape.mtu <= AF_XDP_MTU && !shape.tso {
        ends.push(af_xdp(&world, shape)?);
    }
    vm.wait_ready()?;
    check_segments(&vm, shape)?;
    for (host, name, leaks) in &ends {
        let host_end = End {
            leaks: *leaks,
            ..world.end(host, name)
        };
        let accounts = [[world.end(&vm, &port.name), host_end]];
        exchange(ctx, &vm, host, shape, &accounts).with_context(|| format!("guest and {name}"))?;
    }
    drop(vm);
    // Vswitchd asks for more locked memory than some machines let even root have, and goes on without.
    world.finish(&["setrlimit(RLIMIT_MEMLOCK) failed"])
}

/// A host's end, its port, and whether its kernel may drop between the two.
type Other = (HostEnd, &'static str, bool);

/// An internal port, which in the userspace datapath is a tap: its interface lives where the switch does.
fn internal(world: &World, shape: Shape) -> Result<Other> {
    const PORT: &str = "int0";
    const ID: u8 = 253;
    // The observer has the same network in the same namespace.
    world.ns.ip(&format!("address flush dev {OBSERVER_END}"))?;
    world.ovs.vsctl(&format!(
        "add-port br0 {PORT} -- set Interface {PORT} type=internal mtu_request={}",
        shape.mtu
    ))?;
    world.ns.settle(PORT, ID)?;
    Ok((HostEnd::new(PORT, ID, &world.ns, &world.dir), PORT, false))
}

/// A veth pair that the switch reads through a packet socket, which has room for so much.
fn veth(world: &World, shape: Shape) -> Result<Other> {
    const PORT: &str = "veth0";
    let host = host_behind(world, PORT, "veth1", 252, shape)?;
    world.ovs.vsctl(&format!("add-port br0 {PORT}"))?;
    Ok((host, PORT, true))
}

/// A veth pair that the switch reads through an AF_XDP socket.
fn af_xdp(world: &World, shape: Shape) -> Result<Other> {
    const PORT: &str = "xdp0";
    let host = host_behind(world, PORT, "xdp1", 251, shape)?;
    world.ovs.vsctl(&format!(
        "add-port br0 {PORT} -- set Interface {PORT} type=afxdp options:n_rxq=1 options:xdp-mode=native"
    ))?;
    Ok((host, PORT, true))
}

/// A veth pair from the switch's namespace to a host in one of its own, party `id`.
fn host_behind(world: &World, port: &str, device: &str, id: u8, shape: Shape) -> Result<HostEnd> {
    let ns = NetNs::bare()?;
    world.ns.add_veth(port, &ns, device)?;
    // Both ends: Open vSwitch has segments cut to the MTU of its own.
    world.ns.ip(&format!("link set {port} mtu {}", shape.mtu))?;
    ns.ip(&format!("link set {device} mtu {}", shape.mtu))?;
    // The kernel leaves checksums and segmentation to the far end of a veth pair, which for it is the kernel again: only
    // with TSO does the switch see, and take, what is left to do.
    if !shape.tso {
        ns.run("ethtool", &["-K", device, "tx", "off"])?;
    }
    ns.settle(device, id)?;
    Ok(HostEnd::new(device, id, &ns, &world.dir))
}

/// Two switches in two namespaces with a guest each, and a tunnel between them: VXLAN first, then Geneve.
fn tunnels(ctx: &Ctx, shape: Shape) -> Result<()> {
    let mut worlds = [new_world(ctx, "first", shape)?, new_world(ctx, "second", shape)?];
    let [first, second] = &worlds;
    for world in &worlds {
        // How often tunnels are credited with what they have had, in milliseconds: accounts wait for that.
        world
            .ovs
            .vsctl("set Open_vSwitch . other_config:max-revalidator=100")?;
    }
    ctx.step("boot");
    let (port1, mut vm1) = add_guest(first, 1, shape)?;
    let (port2, mut vm2) = add_guest(second, 2, shape)?;
    ctx.step("underlay");
    first.ns.add_veth(UNDERLAY_PORT, &second.ns, UNDERLAY_PORT)?;
    add_underlay(first, 1, 2)?;
    add_underlay(second, 2, 1)?;
    for vm in [&mut vm1, &mut vm2] {
        vm.wait_ready()?;
        check_segments(vm, shape)?;
        if shape.tso {
            // Open vSwitch 3.1 drops what has offload flags on its way into a tunnel, and says that guests do this.
            vm.run("ethtool -K eth0 tx off")?;
        }
    }
    for kind in ["vxlan", "geneve"] {
        ctx.step(kind);
        add_tunnel(first, kind, 2)?;
        add_tunnel(second, kind, 1)?;
        // An account for each switch: the packet sockets of the underlay between them lose what they have no room for.
        let accounts = [
            [first.end(&vm1, &port1.name), tunnel_end(first)],
            [tunnel_end(second), second.end(&vm2, &port2.name)],
        ];
        exchange(ctx, &vm1, &vm2, shape, &accounts).context(kind)?;
        for world in &worlds {
            world.ovs.vsctl(&format!("del-port {TUNNEL}"))?;
        }
    }
    drop((vm1, vm2));
    // Neither goes before both were looked at: the underlay goes with either.
    for world in &mut worlds {
        world.ovs.check_alive()?;
        // A packet that is still under way when the kind of tunnel changes.
        world.check_log(&["receive tunnel port not found"])?;
    }
    Ok(())
}

const UNDERLAY_PORT: &str = "phy0";
const UNDERLAY_BRIDGE: &str = "br-phy";
const TUNNEL: &str = "tun0";

/// Address of switch `number` for its tunnels.
fn endpoint(number: u8) -> String {
    format!("10.97.0.{number}")
}

/// A bridge with the way to the other switch, and the tunnel endpoint's address on its own interface, where the
/// userspace datapath looks for it.
fn add_underlay(world: &World, number: u8, other: u8) -> Result<()> {
    let mac = |number: u8| netns::mac(0xf0 + number);
    world.ovs.vsctl_args(&[
        "add-br",
        UNDERLAY_BRIDGE,
        "--",
        "set",
        "Bridge",
        UNDERLAY_BRIDGE,
        "datapath_type=netdev",
        &format!("other_config:hwaddr=\"{}\"", mac(number)),
        "--",
        "add-port",
        UNDERLAY_BRIDGE,
        UNDERLAY_PORT,
    ])?;
    world.ns.ip(&format!(
        "address add {}/24 dev {UNDERLAY_BRIDGE}",
        endpoint(number)
    ))?;
    world.ns.ip(&format!("link set {UNDERLAY_BRIDGE} up"))?;
    // Else the first packet is given up for a question to the network.
    world
        .ovs
        .appctl(&format!(
            "tnl/neigh/set {UNDERLAY_BRIDGE} {} {}",
            endpoint(other),
            mac(other)
        ))
        .map(drop)
}

/// A tunnel port on br0 to switch `other`.
fn add_tunnel(world: &World, kind: &str, other: u8) -> Result<()> {
    world
        .ovs
        .vsctl(&format!(
            "add-port br0 {TUNNEL} -- set Interface {TUNNEL} type={kind} options:remote_ip={} options:key=42",
            endpoint(other)
        ))
        .map(drop)
}

fn tunnel_end(world: &World) -> End<'_> {
    End {
        ovs: &world.ovs,
        port: TUNNEL,
        party: None,
        underlay: Some((UNDERLAY_BRIDGE, UNDERLAY_PORT)),
        leaks: false,
    }
}

/// A switch in a directory of its own.
fn new_world(ctx: &Ctx, name: &str, shape: Shape) -> Result<World> {
    let dir = ctx.dir.join(name);
    std::fs::create_dir(&dir)?;
    let dpdk = ctx.settings.stock();
    let options = crate::ovs::Options {
        tso: shape.tso,
        ..world::options(&ctx.settings, dpdk)
    };
    World::with(&ctx.settings, &dir, options, dpdk)
}

/// A port and the guest on it, which boots meanwhile.
fn add_guest(world: &World, id: u8, shape: Shape) -> Result<(Port, Vm)> {
    let port = world.add_port(shape.kind, &format!("vhost{id}"))?;
    world
        .ovs
        .vsctl(&format!("set Interface {} mtu_request={}", port.name, shape.mtu))?;
    let guest = Guest {
        mtu: shape.mtu,
        ..Guest::new(id)
    };
    let vm = world.start_guest(&port, guest)?;
    Ok((port, vm))
}

/// Whether the guest hands over segments to be cut, as the row says.
fn check_segments(vm: &Vm, shape: Shape) -> Result<()> {
    let features = vm.run("ethtool -k eth0")?;
    let on = features
        .lines()
        .any(|line| line.trim() == "tcp-segmentation-offload: on");
    ensure!(on == shape.tso, "TSO of {} is {on}", vm.name());
    Ok(())
}

/// The proof: traffic between `guest` and `other`, with an account for every switch in between.
fn exchange(ctx: &Ctx, guest: &Vm, other: &dyn Party, shape: Shape, switches: &[[End<'_>; 2]]) -> Result<()> {
    let path = format!("{} and {}", guest.name(), other.name());
    ctx.step(&format!("{path}: frames of full size"));
    wait_reachable(guest, other.id())?;
    // 28 bytes of it are headers; -M do forbids fragments.
    guest.run(&format!(
        "/opt/ping -n -c 5 -i 0.1 -W 5 -M do -s {} {}",
        shape.mtu - 28,
        netns::address(other.id())
    ))?;
    ctx.step(&format!("{path}: account"));
    let accounts = switches.iter().map(|ends| Account::open(*ends));
    let accounts = accounts.collect::<Result<Vec<_>>>()?;
    let there = tcp::iperf(guest, other, LOAD, 1)?;
    let back = tcp::iperf(other, guest, LOAD, 1)?;
    for account in accounts {
        account.close()?;
    }
    ctx.result(&format!(
        "{path}: {} MiB there, {} MiB back",
        there.received >> 20,
        back.received >> 20
    ));
    ctx.step(&format!("{path}: content"));
    tcp::transfer(guest, other, CONTENT)?;
    tcp::transfer(other, guest, CONTENT)
}

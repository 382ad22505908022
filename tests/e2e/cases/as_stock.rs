//! Settings of the whole switch, and of how ports are polled: the stock ports and the plugin's live with the same ones, one
//! after the other in one run, move packets, and answer the same to who asks what came of the settings.

use std::collections::BTreeSet;

use anyhow::{ensure, Context, Result};

use super::tools::shape;
use super::world::{self, Kind, Port, World, PATIENCE};
use super::Ctx;
use crate::ovs::Ovs;
use crate::sides::Side;
use crate::testpmd::{Device, Rings, Testpmd};
use crate::wait;

/// Queue pairs of each guest.
const QUEUES: u16 = 2;

/// A switch with two ports, and what is to be seen of it whoever provides them.
struct Life {
    arguments: &'static [&'static str],
    other_config: &'static [&'static str],
    /// Kind and MTU of each port.
    ports: [(Kind, u16); 2],
    /// What is set once guests are there, for ovs-vsctl.
    then: &'static str,
    /// What the answers contain.
    says: &'static [&'static str],
    /// What the log may complain of.
    allowed: &'static [&'static str],
}

/// Each port has its packets to itself, of the size that it needs itself; memory is locked, which post-copy cannot be
/// beside.
pub fn own_pools_and_locked_memory(ctx: &Ctx) -> Result<()> {
    live_twice(
        ctx,
        &Life {
            arguments: &["--mlockall"],
            other_config: &[
                "per-port-memory=true",
                "shared-mempool-config=2500",
                "vhost-postcopy-support=true",
            ],
            ports: [(Kind::Server, 1500), (Kind::Client, 1500)],
            then: "",
            says: &[
                "log: INFO Per port memory for DPDK devices enabled.",
                "log: WARN vhost-postcopy-support and mlockall are not compatible.",
                "log: INFO POSTCOPY support for vhost-user-client disabled.",
                "pools: 2",
                "memory is locked: true",
            ],
            allowed: &["vhost-postcopy-support and mlockall are not compatible."],
        },
    )
}

/// Ports of two MTUs share packets of the size that is set. All queues of a port are polled by the core that was named for
/// them, which sends by the hash of each packet: so it uses every queue of the guest, and by itself it would use one. How
/// many queues there are is the guest's to say.
pub fn shared_pools_and_steered_queues(ctx: &Ctx) -> Result<()> {
    live_twice(
        ctx,
        &Life {
            arguments: &[],
            other_config: &["shared-mempool-config=2500", "userspace-tso-enable=true"],
            ports: [(Kind::Client, 1500), (Kind::Client, 2500)],
            then: "set Open_vSwitch . other_config:pmd-cpu-mask=0x3 \
                   -- set Interface vhost1 options:n_rxq=4 other_config:tx-steering=hash \
                   other_config:pmd-rxq-affinity=\"0:1,1:1\" \
                   -- set Interface vhost2 options:n_rxq=4 other_config:tx-steering=hash \
                   other_config:pmd-rxq-affinity=\"0:0,1:0\"",
            says: &[
                "log: INFO User configured shared mempool set for: MTU 2500, NUMA ALL.",
                "log: INFO Userspace TCP Segmentation Offloading support enabled",
                "log: INFO vhost1: Tx packet steering mode has been set to 'hash'.",
                "pools: 1",
                "vhost1: sent by queues 0 and 1: true, true",
                "vhost2: sent by queues 0 and 1: true, true",
            ],
            allowed: &[],
        },
    )
}

/// Holds if both sides say what they should, and the same.
fn live_twice(ctx: &Ctx, life: &Life) -> Result<()> {
    let told = |side: Side| -> Result<BTreeSet<String>> {
        let answers = live(ctx, side, life).with_context(|| side.name())?;
        let missing = life.says.iter().find(|expected| !answers.contains(**expected));
        ensure!(
            missing.is_none(),
            "{}: no {missing:?} in {answers:#?}",
            side.name()
        );
        Ok(answers)
    };
    let [stock, plugin] = [told(Side::Stock)?, told(Side::Plugin)?];
    let only_stock: Vec<_> = stock.difference(&plugin).collect();
    let only_plugin: Vec<_> = plugin.difference(&stock).collect();
    ensure!(
        only_stock.is_empty() && only_plugin.is_empty(),
        "only stock says {only_stock:#?}, only the plugin {only_plugin:#?}"
    );
    Ok(())
}

fn live(ctx: &Ctx, side: Side, life: &Life) -> Result<BTreeSet<String>> {
    ctx.step(&format!("{}: start", side.name()));
    let settings = side.settings(&ctx.settings);
    let mut options = world::options(&settings, true);
    options.arguments = life.arguments.to_vec();
    // Poll threads on both cores would keep testpmd from starting.
    options.other_config = [life.other_config, &["pmd-cpu-mask=0x1"]].concat();
    let world = World::with(&settings, &ctx.dir.join(side.name()), options, true)?;
    let mut ports = Vec::new();
    for (index, (kind, mtu)) in (1..).zip(life.ports) {
        let port = world.port(kind, &format!("vhost{index}"));
        let (name, args) = (&port.name, port.vsctl_args());
        world
            .ovs
            .vsctl(&format!("add-port br0 {name} -- {args} mtu_request={mtu}"))?;
        ports.push(port);
    }
    world.cross_connect(&ports)?;
    ctx.step(&format!("{}: packets", side.name()));
    let device = |port: &Port| Device {
        queues: QUEUES,
        ..port.device(Rings::MERGEABLE)
    };
    let devices: Vec<Device> = ports.iter().map(device).collect();
    let mut testpmd = Testpmd::start(&devices, &world.dir)?;
    for port in &ports {
        world.ovs.wait_link(&port.name, true, PATIENCE)?;
    }
    if !life.then.is_empty() {
        world.ovs.vsctl(life.then)?;
    }
    flood(&world, &mut testpmd, &ports)?;
    let answers = ask(&world, life, &ports)?;
    drop(testpmd);
    for port in &ports {
        world.ovs.wait_link(&port.name, false, PATIENCE)?;
    }
    world.finish(life.allowed)?;
    Ok(answers)
}

/// Sends packets of many flows both ways, until enough have arrived.
fn flood(world: &World, testpmd: &mut Testpmd, ports: &[Port]) -> Result<()> {
    testpmd.command("set fwd flowgen", "Set flowgen packet forwarding mode")?;
    testpmd.command("start", "packet forwarding")?;
    wait::until_true("packets in both directions", PATIENCE, || {
        let flows = world.ovs.ofctl("--names dump-flows br0")?;
        let many = |port: &Port| {
            let flow = flows
                .lines()
                .find(|line| line.contains(&format!("in_port={}", port.name)))?;
            let (_, rest) = flow.split_once("n_packets=")?;
            rest.split(',').next()?.parse::<u64>().ok()
        };
        Ok(ports.iter().all(|port| many(port).is_some_and(|n| n > 10_000)))
    })?;
    testpmd.command("stop", "Done.").map(drop)
}

/// What came of the settings.
fn ask(world: &World, life: &Life, ports: &[Port]) -> Result<BTreeSet<String>> {
    let ovs = &world.ovs;
    let mut answers = BTreeSet::new();
    let mut pools = BTreeSet::new();
    for Port { name, kind, .. } in ports {
        let pool = ovs.appctl(&format!("netdev-dpdk/get-mempool-info {name}"))?;
        let line = |what: &str| {
            let line = pool.lines().find(|line| line.trim().starts_with(what));
            line.with_context(|| format!("no {what} in {pool}"))
        };
        pools.insert(line("mempool <")?.to_owned());
        answers.insert(format!("{name}: {}", line("elt_size=")?.trim()));
        let features = ovs.status(name)?.remove("features");
        answers.insert(format!("{name}: {}", features.context("no features")?));
        // By hash it is all queues. Else it is those of the threads that had something to send, and that is chance. Stock's
        // server ports count nothing.
        if life.then.contains("tx-steering") && *kind == Kind::Client {
            let [used0, used1] = [0, 1].map(|queue| has_sent(ovs, name, queue));
            answers.insert(format!("{name}: sent by queues 0 and 1: {}, {}", used0?, used1?));
        }
    }
    answers.insert(format!("pools: {}", pools.len()));
    let memory = std::fs::read_to_string(format!("/proc/{}/status", ovs.pid()?))?;
    let locked = !memory
        .lines()
        .any(|line| line.starts_with("VmLck:") && line.ends_with("\t       0 kB"));
    answers.insert(format!("memory is locked: {locked}"));
    for question in ["dpctl/show", "dpif-netdev/pmd-rxq-show"] {
        let mut items = shape::items(&ovs.appctl(question)?);
        // Numbers of packets come before the ports.
        items.retain(|item| !item.contains("hit:"));
        // Lines that are alike belong to different threads.
        let numbered = items.iter().enumerate();
        answers.extend(numbered.map(|(line, item)| format!("{question} {line}: {item}")));
    }
    answers.extend(log(world));
    Ok(answers)
}

/// Whether a queue towards the guest has had any packet.
fn has_sent(ovs: &Ovs, port: &str, queue: u16) -> Result<bool> {
    let counters = ovs.ofctl(&format!("-O OpenFlow14 dump-ports br0 {port}"))?;
    let counter = format!("tx_q{queue}_good_packets=");
    let (_, rest) = counters
        .split_once(&counter)
        .with_context(|| format!("no {counter} in {counters}"))?;
    Ok(!rest.starts_with("0,"))
}

/// What the log says of the settings.
fn log(world: &World) -> impl Iterator<Item = String> {
    const WORDS: [&str; 6] = [
        "Per port memory",
        "shared mempool",
        "mlockall",
        "for vhost-user-client",
        "Segmentation Offloading",
        "Tx packet steering mode",
    ];
    let lines = world.ovs.log_since(0).into_iter();
    lines
        .filter(|line| WORDS.iter().any(|word| line.text.contains(word)))
        .map(|line| format!("log: {} {}", line.level, line.text))
}

//! A switch that may do little: not root, next to no capabilities, behind the system call filter of the systemd drop-in. Its
//! ports must not notice, and what guests lend it must be as far from harm as the kernel can put it.

use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::{fs, ptr};

use anyhow::{bail, ensure, Context, Result};
use ovs_vhost::model::Driver;

use super::attack::dirty_log::DirtyLog;
use super::attack::guest::{Guest, BARE};
use super::attack::innocent::Traffic;
use super::world::{self, Kind, Port, World, PATIENCE};
use super::Ctx;
use crate::frontend::{Frontend, Listener};
use crate::settings::tool;
use crate::smaps::Mapping;
use crate::user::User;
use crate::wire::{Answer, Message, Wire};
use crate::{drop_in, ovs, process, systemd, wait};

/// How a switch comes to have few rights.
struct Rights {
    user: User,
    /// Who sees to the system call filter is systemd, not the harness.
    systemd: bool,
    /// All capabilities that it has, as /proc has them.
    left: &'static str,
}

/// The fewest capabilities with which any userspace bridge can be made: its own interface is a tap. For a user that no
/// system has.
fn fewest() -> Rights {
    Rights {
        user: User {
            id: 64_055,
            capabilities: vec!["CAP_NET_ADMIN"],
            by_itself: None,
        },
        systemd: false,
        left: "0000000000001000",
    }
}

/// What Open vSwitch keeps as another user, if it began with what the drop-in leaves root.
fn of_the_drop_in(systemd: bool) -> Rights {
    Rights {
        user: User {
            id: 65_534,
            capabilities: drop_in::capabilities(),
            by_itself: Some("nobody:nogroup"),
        },
        systemd,
        // The first line of the drop-in's capabilities.
        left: "0000000000007c00",
    }
}

pub fn unprivileged(ctx: &Ctx) -> Result<()> {
    serves(ctx, fewest(), false)
}

/// EAL in memory, with huge pages, without physical ports.
pub fn unprivileged_dpdk(ctx: &Ctx) -> Result<()> {
    serves(ctx, fewest(), true)
}

/// `--user`, as distributions start it.
pub fn gives_up_root(ctx: &Ctx) -> Result<()> {
    serves(ctx, of_the_drop_in(false), false)
}

/// The same by a systemd that reads the drop-in itself.
pub fn by_systemd(ctx: &Ctx) -> Result<()> {
    let served = serves(ctx, of_the_drop_in(true), false);
    systemd::clean()?;
    served
}

/// A switch with these rights, and with no more, goes through all that a host does with two ports.
fn serves(ctx: &Ctx, rights: Rights, dpdk: bool) -> Result<()> {
    let plugin = ctx.settings.plugin.as_deref().context("no plugin")?;
    let user = rights.user;
    let options = ovs::Options {
        tree: reachable_tree(&ctx.settings.ovs_tree, &ctx.dir)?,
        plugin: Some(reachable(plugin, &ctx.dir)?),
        other_config: vec!["vhost-postcopy-support=true", "pmd-cpu-mask=0x1"],
        seccomp: !rights.systemd,
        user: Some(user.clone()),
        systemd: rights.systemd,
        ..world::options(&ctx.settings, dpdk)
    };
    let mut world = World::unobserved(&ctx.settings, &ctx.dir, options)?;
    for (key, value) in [
        ("Uid", user.id.to_string().as_str()),
        ("CapEff", rights.left),
        ("CapPrm", rights.left),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        let now = status(&world, key)?;
        ensure!(now == value, "{key} is {now}, not {value}");
    }

    let client = world.port(Kind::Client, "client");
    let listen = || {
        let listener = Listener::bind(&client.socket)?;
        // Who connects to a socket must be allowed to write to it: its owner's to see to.
        user.give(&client.socket).map(|()| listener)
    };
    let listener = listen()?;
    let ports = [
        world.add_port(Kind::Server, "server")?,
        world.add_port(Kind::Client, "client")?,
    ];
    world.cross_connect(&ports)?;
    ctx.step("traffic");
    talk(&world, &ports, &listener)?;
    ctx.step("requests of migrations");
    migrates(&world, &ports[1], &listener)?;
    ctx.step("kill -9 and start");
    let before = switch(&world)?;
    world.kill_vswitchd(&ports)?;
    wait::until_true("the switch to be gone", PATIENCE, || Ok(!before.exists()))?;
    // Also gone then: a connection that the killed one may have made, and that nobody took.
    drop(listener);
    let listener = listen()?;
    world.ovs.start_vswitchd()?;
    world.cross_connect(&ports)?;
    talk(&world, &ports, &listener)?;
    ctx.step("delete and exit");
    world.ovs.vsctl("del-port server -- del-port client")?;
    ensure!(!ports[0].socket.exists(), "the socket of a deleted port is left");
    world.check_log(&[])?;
    world.ovs.exit(PATIENCE)
}

/// Two guests talk, one on a port of each kind; meanwhile their memory is looked at from outside.
fn talk(world: &World, ports @ [server, _]: &[Port; 2], listener: &Listener) -> Result<()> {
    let wires = [
        Wire::new(Frontend::connect(&server.socket, PATIENCE)?.into())?,
        Wire::new(listener.accept(PATIENCE)?.into())?,
    ];
    let settled = || {
        for port in ports {
            world.ovs.wait_link(&port.name, true, PATIENCE)?;
        }
        // Any command does: the switch hears it when it has done what the two new links gave it to do.
        world.ovs.appctl("dpif-netdev/pmd-rxq-show").map(drop)
    };
    let mut traffic = Traffic::start_after(wires, settled)?;
    traffic.wait_more(1000)?;
    lent_memory_is_kept_apart(world)?;
    traffic.finish().map(drop)
}

/// What guests lend is in no core dump of the switch and is no code; nothing is code that can be written to.
fn lent_memory_is_kept_apart(world: &World) -> Result<()> {
    let mappings = Mapping::of(&switch(world)?)?;
    let lent: Vec<&Mapping> = mappings
        .iter()
        .filter(|it| it.head.contains("memfd:model-guest"))
        .collect();
    ensure!(lent.len() == 4, "two guests lend {} mappings", lent.len());
    for mapping in &lent {
        ensure!(
            mapping.has(&["rd", "wr", "dd"]) && !mapping.has(&["ex"]),
            "{}",
            mapping.head
        );
    }
    match mappings.iter().find(|it| it.has(&["wr", "ex"])) {
        Some(mapping) => bail!("code that can be written: {}", mapping.head),
        None => Ok(()),
    }
}

/// A guest that arrives by post-copy, and one that is moved away under its traffic.
fn migrates(world: &World, port: &Port, listener: &Listener) -> Result<()> {
    let connect = || Wire::new(listener.accept(PATIENCE)?.into());
    let mut arriving = connect()?;
    arriving.negotiate()?;
    let advised = arriving.ask(&Message::new("POSTCOPY_ADVISE", vec![]))?;
    ensure!(advised == Answer::Done, "no userfaultfd: {advised:?}");
    drop(arriving);

    world.ovs.ofctl("del-flows br0")?;
    let flow = format!("in_port={},actions=in_port", port.name);
    world.ovs.ofctl(&format!("add-flow br0 {flow}"))?;
    let (mut guest, log) = (Guest::<Driver>::new(64, BARE), DirtyLog::new()?);
    let mut leaving = connect()?;
    leaving.negotiate()?;
    let mut plan = guest.plan();
    log.lend(&mut plan)?;
    let heard = plan.say(&mut leaving)?;
    ensure!(heard.is_well(), "refused {:?}", heard.refused);
    guest.echo()?;
    guest.check_canaries()?;
    log.check_canaries()
}

/// The filter ends who does what it does not allow, and nobody else.
pub fn filter_bites(ctx: &Ctx) -> Result<()> {
    // What is done, by whom, and what ends that.
    type Act = (&'static str, fn(), Option<i32>);
    const ACTS: [Act; 5] = [
        ("nothing", || (), None),
        ("a namespace", namespace, Some(libc::SIGSYS)),
        (
            "code in new memory",
            || map(libc::PROT_WRITE | libc::PROT_EXEC),
            Some(libc::SIGSYS),
        ),
        ("data in new memory", || map(libc::PROT_WRITE), None),
        (
            "a socket of a family that is not listed",
            bluetooth,
            Some(libc::SIGSYS),
        ),
    ];
    for (what, act, signal) in ACTS {
        ctx.step(what);
        let mut command = tool("true");
        drop_in::filter()?.put_on(&mut command);
        let act = move || {
            act();
            Ok(())
        };
        // SAFETY: between fork and exec an act makes one system call only.
        unsafe { command.pre_exec(act) };
        let ended = process::finish(command, PATIENCE)?.status;
        ensure!(ended.signal() == signal, "{what}: {ended}");
    }
    Ok(())
}

fn namespace() {
    // SAFETY: touches no memory.
    unsafe { libc::unshare(libc::CLONE_NEWNET) };
}

fn map(protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
    unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0) };
}

fn bluetooth() {
    // SAFETY: touches no memory.
    unsafe { libc::socket(libc::AF_BLUETOOTH, libc::SOCK_RAW, 0) };
}

/// Open vSwitch's tree as another user may reach it, wherever the real one is: the switch itself is a copy.
fn reachable_tree(tree: &Path, dir: &Path) -> Result<PathBuf> {
    let here = dir.join("tree");
    fs::create_dir_all(here.join("vswitchd"))?;
    for folder in ["ovsdb", "utilities"] {
        symlink(tree.join(folder), here.join(folder))?;
    }
    for file in ["ovs-vswitchd", "vswitch.ovsschema"] {
        reachable(&tree.join("vswitchd").join(file), &here.join("vswitchd"))?;
    }
    Ok(here)
}

/// A copy of a file in `dir`.
fn reachable(file: &Path, dir: &Path) -> Result<PathBuf> {
    let copy = dir.join(file.file_name().context("no file")?);
    fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(copy)
}

/// The switch's folder in /proc. systemd stands between it and us, where there is one.
fn switch(world: &World) -> Result<PathBuf> {
    let program = world.dir.join("tree/vswitchd/ovs-vswitchd");
    let mut processes = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    processes
        .find(|process| fs::read_link(process.join("exe")).is_ok_and(|exe| exe == program))
        .context("no process is the switch")
}

/// A line of its /proc/PID/status: the first word, which of four user ids is the real one.
fn status(world: &World, key: &str) -> Result<String> {
    let text = fs::read_to_string(switch(world)?.join("status"))?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines
        .find(|(name, _)| *name == key)
        .with_context(|| format!("no {key}"))?;
    Ok(value.split_whitespace().next().unwrap_or_default().into())
}

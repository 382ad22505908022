//! What operators set for one port: what it offers, who may connect to it, and where its socket is.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{symlink, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{ensure, Context, Result};

use super::describe::json;
use super::world::{self, ping_all, Guest, Kind, World, PATIENCE};
use super::Ctx;
use crate::frontend::Listener;
use crate::netns::OBSERVER;
use crate::wait;

/// VERSION_1, protocol features and mergeable buffers: all that a guest takes of it.
const PIN: u64 = 0x1_4000_8000;

/// A guest takes no more than the pin. One that runs with more than a later pin is named in the status, and is served
/// again once it is started anew.
pub fn pinned(ctx: &Ctx) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, false)?;
    let port = world.port(Kind::Client, "pinned");
    let (name, args) = (port.name.clone(), port.vsctl_args());
    let add = |options: &str| {
        world
            .ovs
            .vsctl(&format!("add-port br0 {name} -- {args} {options}"))
    };
    ctx.step("boot with a mask");
    add(&format!("options:vhost-features={PIN:#x}"))?;
    let mut vm = world.start_guest(&port, Guest::new(1))?;
    vm.wait_ready()?;
    ping_all(&vm, OBSERVER, 10)?;
    let features = |expected: u64| {
        let what = format!("features {expected:#x} in the status");
        wait::until_true(&what, PATIENCE, || {
            let status = world.ovs.status(&name)?;
            Ok(status.get("features") == Some(&format!("{expected:#018x}")))
        })
    };
    features(PIN)?;
    let shown = json(&world, &format!("vhost-user/show --json {name}"))?;
    let left = shown[0]["features"]["left"].as_array().context("no list")?;
    ensure!(left.is_empty(), "offered beyond the pin: {left:?}");
    let kept_back = shown[0]["kept-back"].to_string();
    ensure!(
        kept_back.contains("\"VIRTIO_F_RING_PACKED\""),
        "kept back: {kept_back}"
    );

    ctx.step("a port that keeps back what the guest runs with");
    world.ovs.vsctl(&format!("del-port {name}"))?;
    add("options:vhost-disable-features=VIRTIO_NET_F_MRG_RXBUF")?;
    wait::until_true("a word on it in the status", PATIENCE, || {
        let status = world.ovs.status(&name)?;
        let error = status.get("error").map(String::as_str).unwrap_or_default();
        Ok(error.contains("runs with VIRTIO_NET_F_MRG_RXBUF"))
    })?;

    ctx.step("the guest, started anew");
    let spec = vm.kill_9()?;
    let mut vm = world.start_spec(spec)?;
    vm.wait_ready()?;
    ping_all(&vm, OBSERVER, 10)?;
    let status = world.ovs.status(&name)?;
    ensure!(!status.contains_key("error"), "still at odds: {status:?}");
    let features = status.get("features").context("no features")?;
    let bits = u64::from_str_radix(features.trim_start_matches("0x"), 16)?;
    ensure!(bits & 1 << 15 == 0 && bits & 1 << 29 != 0, "features {features}");
    world.finish(&["runs with VIRTIO_NET_F_MRG_RXBUF"])
}

/// A socket whose mode is set and whose users are listed, and one whose path is longer than the kernel takes.
pub fn protected_and_far_down(ctx: &Ctx) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, false)?;
    let guarded = world.port(Kind::Server, "guarded");
    world.ovs.vsctl(&format!(
        "add-port br0 guarded -- {} options:vhost-sock-mode=0600 options:vhost-allowed-uids=12345",
        guarded.vsctl_args()
    ))?;
    let mode = fs::metadata(&guarded.socket)?.mode() & 0o7777;
    ensure!(mode == 0o600, "mode {mode:o}");

    // QEMU makes its socket by a shorter way.
    let (deep, short) = (world.dir.join("d".repeat(120)), world.dir.join("short"));
    fs::create_dir(&deep)?;
    symlink(&deep, &short)?;
    let mut far = world.port(Kind::Client, "far");
    far.socket = deep.join("far.sock");
    world
        .ovs
        .vsctl(&format!("add-port br0 far -- {}", far.vsctl_args()))?;
    let mut spec = world.spec(&far, Guest::new(2));
    spec.path = short.join("far.sock");

    ctx.step("boot");
    let mut vms = [
        world.start_guest(&guarded, Guest::new(1))?,
        world.start_spec(spec)?,
    ];
    let refused = wait::until("a refusal", PATIENCE, || {
        let lines = world.ovs.log_since(0).into_iter().map(|line| line.text);
        let mut refusals = lines.filter(|text| text.contains("refused a front-end of user 0"));
        Ok(refusals.next())
    })?;
    ensure!(refused.contains("vhost-allowed-uids"), "{refused}");
    world
        .ovs
        .vsctl("set Interface guarded options:vhost-allowed-uids=12345,root")?;
    for vm in &mut vms {
        vm.wait_ready()?;
    }
    ping_all(&vms[0], 2, 10)?;
    world.finish(&["refused a front-end of user 0"])
}

/// The database may name a directory for sockets that the administrator has listed, or one below it, and no other: what it
/// names is below the run directory else, where in this case there is nothing of that name.
pub fn socket_directories(ctx: &Ctx) -> Result<()> {
    let place = |name: &str| ctx.dir.join(name);
    let (listed, below, elsewhere) = (place("listed"), place("listed/below"), place("elsewhere"));
    for directory in [&below, &elsewhere] {
        fs::create_dir_all(directory)?;
    }
    let mut options = world::options(&ctx.settings, false);
    options.environment = vec![("OVS_VHOST_SOCK_DIRS", listed)];
    let mut world = World::with(&ctx.settings, &ctx.dir, options, false)?;
    // It is read at start.
    let start_with = |world: &mut World, directory: &Path| {
        world.ovs.exit(PATIENCE)?;
        let set = format!("other_config:vhost-sock-dir={}", directory.display());
        world.ovs.vsctl(&format!("--no-wait set Open_vSwitch . {set}"))?;
        world.ovs.start_vswitchd()
    };

    ctx.step("one that is not listed");
    start_with(&mut world, &elsewhere)?;
    let mut port = world.port(Kind::Server, "vhost1");
    world
        .ovs
        .vsctl(&format!("add-port br0 vhost1 -- {}", port.vsctl_args()))?;
    let error = world.ovs.interface("vhost1", "error")?;
    ensure!(error.contains("could not open"), "the port's error is {error:?}");
    let found = fs::read_dir(&elsewhere)?.count();
    ensure!(found == 0, "{found} files where there may be none");

    ctx.step("one that is");
    start_with(&mut world, &below)?;
    port.socket = below.join("vhost1");
    let mut vm = world.start_guest(&port, Guest::new(1))?;
    vm.wait_ready()?;
    ping_all(&vm, OBSERVER, 10)?;
    let status = world.ovs.status("vhost1")?;
    let socket = status.get("socket").context("no socket in the status")?;
    ensure!(
        *socket == port.socket.display().to_string(),
        "the socket is {socket}"
    );
    world.finish(&["vhost-user sock directory", "vhost1"])
}

/// Another path for a client port that is connected: it hangs up at the old one and connects at the new one.
pub fn another_path(ctx: &Ctx) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, false)?;
    let port = world.port(Kind::Client, "vhost1");
    let moved = ctx.dir.join("moved.sock");
    let (old, new) = (Listener::bind(&port.socket)?, Listener::bind(&moved)?);
    world.add_port(Kind::Client, "vhost1")?;
    let mut before = old.accept(PATIENCE)?;
    before.get_features()?;
    let set = format!("options:vhost-server-path={}", moved.display());
    world.ovs.vsctl(&format!("set Interface vhost1 {set}"))?;
    new.accept(PATIENCE)?.get_features()?;
    let end = UnixStream::from(before).read(&mut [0])?;
    ensure!(end == 0, "still connected to the old path");
    world.finish(&[])
}

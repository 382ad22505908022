//! What operators set for one port: who may connect to it, and where its socket is.

use std::fs;
use std::os::unix::fs::{symlink, MetadataExt};

use anyhow::{ensure, Result};

use super::world::{ping_all, Guest, Kind, World, PATIENCE};
use super::Ctx;
use crate::wait;

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

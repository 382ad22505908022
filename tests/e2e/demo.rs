//! `make demo`: the plugin's main job, shown. Two guests, one on a port of each type, ping each other while vswitchd
//! is killed and started again; at the end stands how long each port's traffic was away. No DPDK, no hugepages.
//!
//! How an outage is measured per port: a ping between the guests needs both ports, so it cannot tell them apart.
//! Therefore each guest also pings the observer (`netns`), for which it needs its own port only. What the guest's
//! clock shows as the silence around the kill, less the ping interval, is the port's outage.
//!
//! `KEEP=1`: the work is done by a second process, the holder, which stays behind with everything it started and
//! takes it all down when it is told to end. The process in the foreground only waits for it and passes Ctrl-C on.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use crate::cases::world::{wait_reachable, Guest, Kind, Port, World, PATIENCE, PING_INTERVAL};
use crate::image;
use crate::netns::OBSERVER;
use crate::ping::{Outage, Ping, Report};
use crate::settings::{Need, Settings};
use crate::shell::host_time;
use crate::vm::Vm;
use crate::{turn, wait};

/// Argument by which the foreground process starts the holder.
pub const HOLD: &str = "demo-hold";
/// What the holder says when all is well and it stays behind.
const KEPT: &[u8] = b"kept\n";
/// Replies each ping must have got before the kill, and again after it.
const REPLIES: u64 = 100;

/// Runs the demo, in this process or, to be kept, in a holder.
pub fn main(settings: &Settings) -> ExitCode {
    if !settings.keep {
        return report(settings, &Clock::new(), |_, _, _| Ok(()));
    }
    match wait_for_holder() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The holder: the demo, and then a long wait for somebody to end it.
pub fn hold(settings: &Settings) -> ExitCode {
    report(settings, &Clock::new(), |world, vms, dir| {
        explain_keeping(settings, world, vms, dir)?;
        stay_behind()?;
        while !wait::interrupted() {
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    })
}

/// Seconds since the start, before every line of progress.
struct Clock(Instant);

impl Clock {
    fn new() -> Self {
        Clock(Instant::now())
    }

    fn say(&self, text: &str) {
        println!("[{:5.1} s] {text}", self.0.elapsed().as_secs_f64());
    }
}

/// Runs the demo and, while everything is still up, `afterwards`.
fn report(
    settings: &Settings,
    clock: &Clock,
    afterwards: impl FnOnce(&World, &[Vm], &Path) -> Result<()>,
) -> ExitCode {
    let logs = tempfile::Builder::new().prefix("ovs-demo-").tempdir();
    let result = logs.map_err(Into::into).and_then(|logs| {
        let dir = logs.keep();
        let result = demo(settings, clock, &dir, afterwards);
        if result.is_ok() || wait::interrupted() {
            let _ = std::fs::remove_dir_all(&dir);
            return result;
        }
        result.with_context(|| format!("logs: {}", dir.display()))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if wait::interrupted() => {
            eprintln!("interrupted: nothing is left running");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(
    settings: &Settings,
    clock: &Clock,
    dir: &Path,
    afterwards: impl FnOnce(&World, &[Vm], &Path) -> Result<()>,
) -> Result<()> {
    for need in [Need::Switch, Need::Guests] {
        if let Some(reason) = need.missing(settings) {
            bail!("{reason}");
        }
    }
    image::build(&settings.root, |text| clock.say(text))?;
    clock.say("starting a private ovsdb-server and ovs-vswitchd");
    if let Some(plugin) = &settings.plugin {
        clock.say(&format!("  with the plugin {}", plugin.display()));
    }
    let turn = turn::take(|text| clock.say(text))?;
    let mut world = World::new(settings, dir, false)?;
    clock.say("adding vhost1 (dpdkvhostuser) and vhost2 (dpdkvhostuserclient)");
    clock.say("booting guest1 and guest2 (QEMU without KVM; waiting for both)");
    let (ports, vms) = world.boot(&[Kind::Server, Kind::Client], Guest::new(0))?;
    let shown = ordeal(&mut world, clock, &ports, &vms)?;
    show(&world, &ports)?;
    print_table(&shown);
    world.check_log(&[])?;
    clock.say("every guest has its traffic back, and nobody touched it");
    drop(turn);
    afterwards(&world, &vms, dir)
}

/// A line of the result: whose traffic, and what its ping saw.
struct Row {
    what: String,
    outage: Outage,
    report: Report,
}

/// Pings, kill -9, start, pings: fails unless every guest gets its traffic back by itself.
fn ordeal(world: &mut World, clock: &Clock, ports: &[Port], vms: &[Vm]) -> Result<Vec<Row>> {
    for (vm, peer) in vms.iter().zip([2, 1]) {
        wait_reachable(vm, peer)?;
        wait_reachable(vm, OBSERVER)?;
    }
    let boots = boot_ids(vms)?;
    let (mut pings, mut names) = (Vec::new(), Vec::new());
    for ((vm, port), peer) in vms.iter().zip(ports).zip([2, 1]) {
        pings.push(Ping::start(vm, OBSERVER, PING_INTERVAL)?);
        names.push(format!("{} alone ({})", port.name, class(port.kind)));
        pings.push(Ping::start(vm, peer, PING_INTERVAL)?);
        names.push(format!("{} to guest{peer}, through both ports", vm.spec.name));
    }
    clock.say(&format!(
        "guests ping each other; waiting for {REPLIES} replies each"
    ));
    wait_all(&pings)?;
    let killed = host_time()?;
    world.kill_vswitchd(ports)?;
    clock.say("killed ovs-vswitchd with -9 under the running pings; starting it again");
    world.ovs.start_vswitchd()?;
    let configured = host_time()?;
    clock.say(&format!(
        "ovs-vswitchd is configured; waiting for {REPLIES} more replies each"
    ));
    wait_all(&pings)?;
    ensure!(boot_ids(vms)? == boots, "a guest has been booted again");
    let mut rows = Vec::new();
    for ((ping, what), vm) in pings
        .into_iter()
        .zip(names)
        .zip(vms.iter().flat_map(|vm| [vm, vm]))
    {
        let offset = vm.clock_offset()?;
        let report = ping.stop()?;
        let outage = report.silence_within(killed - offset, configured - offset);
        rows.push(Row { what, outage, report });
    }
    Ok(rows)
}

fn wait_all(pings: &[Ping]) -> Result<()> {
    pings
        .iter()
        .try_for_each(|ping| ping.wait_more(REPLIES, PATIENCE))
}

/// A guest that was restarted, by whomever, has another one.
fn boot_ids(vms: &[Vm]) -> Result<Vec<String>> {
    vms.iter()
        .map(|vm| vm.run("cat /proc/sys/kernel/random/boot_id"))
        .collect()
}

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Server => "dpdkvhostuser",
        Kind::Client => "dpdkvhostuserclient",
    }
}

/// What the switch says about the ports.
fn show(world: &World, ports: &[Port]) -> Result<()> {
    println!("\novs-vsctl show:\n{}", world.ovs.vsctl("show")?.trim_end());
    for port in ports {
        println!("\nstatus of {} ({}):", port.name, class(port.kind));
        for (key, value) in world.ovs.status(&port.name)? {
            println!("    {key} = {value}");
        }
        if let Some(counters) = world.ovs.counters(&port.name)? {
            println!(
                "    rx {} packets, tx {} packets since the restart",
                counters.rx_packets, counters.tx_packets
            );
        }
    }
    Ok(())
}

fn print_table(rows: &[Row]) {
    println!(
        "\n{:<42} {:>14} {:>14} {:>6} {:>14}",
        "", "replies before", "replies after", "lost", "traffic away"
    );
    for Row { what, outage, report } in rows {
        let before = report.received_before(outage.until);
        println!(
            "{what:<42} {before:>14} {:>14} {:>6} {:>11} ms",
            report.received() - before,
            report.lost(),
            outage.length.as_millis()
        );
    }
    println!();
}

fn explain_keeping(settings: &Settings, world: &World, vms: &[Vm], dir: &Path) -> Result<()> {
    let run = world.ovs.dir().display();
    let tools = settings.ovs_tree.join("utilities");
    let exe = std::env::current_exe()?;
    println!("\nEverything stays up. To look around:");
    println!("    export PATH={}:$PATH OVS_RUNDIR={run}", tools.display());
    println!("    ovs-vsctl --db=unix:{run}/db.sock show");
    println!("    ovs-ofctl dump-ports br0");
    println!("    ovs-appctl -t {run}/vswitchd.ctl dpif-netdev/pmd-rxq-show");
    println!("    less {run}/ovs-vswitchd.log");
    for vm in vms {
        // One client at a time; from now on that is whoever looks around.
        vm.hang_up()?;
        println!(
            "    {} guest {} 'ip address'",
            exe.display(),
            vm.channel_path().display()
        );
    }
    println!(
        "Files are in {}. To end it all:\n    kill {}",
        dir.display(),
        std::process::id()
    );
    Ok(())
}

/// Tells the foreground process that it may go, and lets go of it and its terminal.
fn stay_behind() -> Result<()> {
    std::io::stdout().flush()?;
    // SAFETY: prctl with integer options touches no memory. The parent's end is no longer a reason to end.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
    UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?).write_all(KEPT)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for fd in 0..=2 {
        // SAFETY: both are open descriptors; nothing in this process relies on what 0 to 2 refer to.
        unsafe { libc::dup2(null.as_raw_fd(), fd) };
    }
    Ok(())
}

/// Starts the holder and waits until it says that it stays, or ends.
fn wait_for_holder() -> Result<ExitCode> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(HOLD).stdin(OwnedFd::from(theirs));
    // SAFETY: between fork and exec setsid touches no memory. A session of its own: Ctrl-C reaches us only.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() == -1 {
                Err(std::io::Error::last_os_error())
            } else {
                Ok(())
            }
        })
    };
    let mut holder = command.spawn().context("cannot start the holder")?;
    drop(command);
    ours.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut said = [0; KEPT.len()];
    loop {
        if ours.read(&mut said).is_ok_and(|length| length == KEPT.len()) {
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(status) = holder.try_wait()? {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
        }
        if wait::interrupted() {
            return end_holder(&mut holder);
        }
    }
}

/// Ctrl-C: the holder takes everything down, then so do we.
fn end_holder(holder: &mut Child) -> Result<ExitCode> {
    let pid = libc::pid_t::try_from(holder.id())?;
    // SAFETY: kill touches no memory; the pid is our own child's, not yet reaped.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    holder.wait()?;
    Ok(ExitCode::FAILURE)
}

//! A front-end whose memory is cut short under its rings costs itself its port. Anywhere else the access would have
//! ended the switch.

use std::fs::{read_dir, read_link, OpenOptions};
use std::time::Duration;

use anyhow::{ensure, Result};

use super::vm::UNDISTURBED;
use super::world::{wait_reachable, Guest, Kind, Port, World, PATIENCE, PING_INTERVAL};
use super::Ctx;
use crate::netns::OBSERVER;
use crate::ping::Ping;
use crate::process;
use crate::testpmd::{Rings, Testpmd};
use crate::wait;

/// The reason that the port gives.
const CUT_SHORT: &str = "was cut short";
const ROUNDS: usize = 3;

/// Huge pages under a running packet loop, on two ports of either kind in turn; a guest beside them does not notice.
pub fn under_traffic(ctx: &Ctx) -> Result<()> {
    let mut world = World::new(&ctx.settings, &ctx.dir, true)?;
    let healthy = world.add_port(Kind::Client, "healthy")?;
    let mut vm = world.start_guest(&healthy, Guest::new(1))?;
    vm.wait_ready()?;
    wait_reachable(&vm, OBSERVER)?;
    let ports = world.testpmd_ports(Kind::Client)?;
    world.connect(&ports)?;
    for round in 1..=ROUNDS {
        ctx.step(&format!("round {round}"));
        let mut testpmd = start_loop(&world, &ports)?;
        let (ping, mark) = (Ping::start(&vm, OBSERVER, PING_INTERVAL)?, world.ovs.log_mark());
        let pid = testpmd.pid();
        // Stopped: it would fall into its own pit, and who is dead before the switch looks has left, and no more.
        process::stopped(pid, || {
            cut_memory_short(pid)?;
            let mut told = ports.iter().map(|port| port.socket.display().to_string());
            told.try_for_each(|socket| {
                let parts = [socket.as_str(), "guest memory", CUT_SHORT];
                world.ovs.wait_log(mark, &parts, PATIENCE).map(drop)
            })
        })?;
        // It falls sooner or later; if later, its ports come back to find the same.
        let _ = testpmd.command("stop", "Done.");
        drop(testpmd);
        for port in &ports {
            world.ovs.wait_link(&port.name, false, PATIENCE)?;
            // One that was killed leaves its socket, and the next does not replace it.
            let _ = std::fs::remove_file(&port.socket);
        }
        ping.wait_more(50, PATIENCE)?;
        ping.stop()?.check_undisturbed(UNDISTURBED)?;
        world.ovs.check_alive()?;
    }
    ctx.step("as if nothing had been");
    let testpmd = start_loop(&world, &ports)?;
    drop(testpmd);
    ctx.result(&format!("{ROUNDS} times, and the guest beside it lost nothing"));
    world.finish(&[CUT_SHORT, "VHOST_CONFIG: "])
}

/// testpmd on both ports, with packets going round.
fn start_loop(world: &World, ports: &[Port; 2]) -> Result<Testpmd> {
    let mut testpmd = world.start_testpmd(ports, Rings::MERGEABLE)?;
    let received = |name: &str| Ok::<_, anyhow::Error>(world.ovs.counters(name)?.map_or(0, |c| c.rx_packets));
    let before = received(&ports[0].name)?;
    testpmd.command("start tx_first 2", "packet forwarding")?;
    wait::until_true("packets to go round", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(50));
        Ok(received(&ports[0].name)? > before + 10_000)
    })?;
    Ok(testpmd)
}

/// Takes away all memory that a process has in memfds: what its front-ends lent to the switch is among it.
fn cut_memory_short(pid: u32) -> Result<()> {
    let mut cut = 0;
    for entry in read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        let is_memory = read_link(&path).is_ok_and(|to| to.to_string_lossy().contains("memfd:"));
        if is_memory {
            OpenOptions::new().write(true).open(&path)?.set_len(0)?;
            cut += 1;
        }
    }
    ensure!(cut > 0, "process {pid} has no memfd");
    Ok(())
}

//! Ports that are connected to and left again, hundreds of times: nothing may pile up.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};

use super::world::{Kind, World, PATIENCE};
use super::Ctx;
use crate::frontend::{Frontend, Listener};
use crate::wait;

const CYCLES: usize = 300;
/// After this many everything that is made once has been made.
const WARM_UP: usize = 10;
/// A peer that comes and goes this often must not fill the disk: the port says less, and says so.
const RATE_LIMIT: &str = "lines left out";
/// "Within 200 ms of the moment both ends exist."
const AT_ONCE: Duration = Duration::from_millis(200);

/// A front-end comes and goes on a server port.
pub fn server(ctx: &Ctx) -> Result<()> {
    let mut world = World::new(&ctx.settings, &ctx.dir, false)?;
    let port = world.add_port(Kind::Server, "soak")?;
    flat(ctx, &mut world, || {
        Frontend::connect(&port.socket, PATIENCE)?.get_features()?;
        Ok(())
    })?;
    world.finish(&[RATE_LIMIT])
}

/// The socket of a client port appears, is connected to, and goes away with its file.
pub fn client(ctx: &Ctx) -> Result<()> {
    let mut world = World::new(&ctx.settings, &ctx.dir, false)?;
    let port = world.add_port(Kind::Client, "soak")?;
    flat(ctx, &mut world, || {
        let listener = Listener::bind(&port.socket)?;
        listener.accept(PATIENCE)?.get_features()?;
        Ok(())
    })?;
    world.finish(&["failed to connect: No such file or directory", RATE_LIMIT])
}

/// Runs the cycles and compares vswitchd's open files after the first few with those at the end.
fn flat(ctx: &Ctx, world: &mut World, mut cycle: impl FnMut() -> Result<()>) -> Result<()> {
    for _ in 0..WARM_UP {
        cycle()?;
    }
    let before = settled_fds(world)?;
    for number in 0..CYCLES {
        ctx.step(&format!("cycle {number}"));
        cycle()?;
    }
    wait::until_true(&format!("{before} open files as before"), PATIENCE, || {
        Ok(world.ovs.fd_count()? <= before)
    })?;
    world.ovs.check_alive()
}

/// Open files once the last disconnect has been dealt with: the same for a quarter of a second.
fn settled_fds(world: &World) -> Result<usize> {
    let (mut count, mut since) = (world.ovs.fd_count()?, Instant::now());
    wait::until("the number of open files to settle", PATIENCE, || {
        let now = world.ovs.fd_count()?;
        if now != count {
            (count, since) = (now, Instant::now());
        }
        Ok((since.elapsed() > Duration::from_millis(250)).then_some(count))
    })
}

/// A client port connects within 200 ms of its socket appearing. The timer behind inotify would do that alone, later:
/// that it is inotify shows in the printed times, and that directories are watched in the unit tests of `watch`.
pub fn connects_at_once(ctx: &Ctx) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, false)?;
    let port = world.add_port(Kind::Client, "prompt")?;
    let mut times = Vec::new();
    for round in 0..20 {
        ctx.step(&format!("round {round}"));
        let mark = world.ovs.log_mark();
        let listener = Listener::bind(&port.socket)?;
        let start = Instant::now();
        let mut frontend = listener.accept(PATIENCE)?;
        times.push(start.elapsed());
        frontend.get_features()?;
        drop((frontend, listener));
        // The port has noticed that its peer is gone, so the next round finds it waiting again.
        wait::until_true("the port to notice the disconnect", PATIENCE, || {
            Ok(world
                .ovs
                .log_since(mark)
                .iter()
                .any(|line| line.text.contains("peer closed")))
        })?;
    }
    times.sort_unstable();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    ctx.result(&format!(
        "connects take {} ms, at most {} ms",
        median.as_millis(),
        slowest.as_millis()
    ));
    // Outliers are the machine's.
    ensure!(
        median <= AT_ONCE,
        "a client port takes {} ms to connect",
        median.as_millis()
    );
    world.finish(&["failed to connect: No such file or directory"])
}

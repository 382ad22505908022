//! A switch that can have not one more descriptor: its ports say what they cannot take from front-ends, those that run go on, and all
//! works as soon as there are descriptors again. tests/faults has every system call fail; here the whole of a real switch goes short.

use std::fs::read_dir;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use rustix::process::{getrlimit, prlimit, Pid, Resource, Rlimit};

use super::qemu_killed::innocent;
use super::world::{Kind, Port, World, PATIENCE};
use super::Ctx;
use crate::frontend::Listener;
use crate::quick_guest::Guest;
use crate::usage::Usage;

const ROUNDS: usize = 3;
/// Frames of those beside that show that they go on.
const GO_ON: u64 = 1_000;

/// One front-end knocks at a server port, another one, which a client port has connected to before, lends its memory.
pub fn of_descriptors(ctx: &Ctx) -> Result<()> {
    let mut world = World::new(&ctx.settings, &ctx.dir, false)?;
    let mut beside = innocent(&world)?;
    let lent = world.port(Kind::Client, "lent");
    let listener = Listener::bind(&lent.socket)?;
    world.add_port(Kind::Client, &lent.name)?;
    let knocked = world.add_port(Kind::Server, "knocked")?;
    let mut early = listener.accept(PATIENCE)?;
    let before = Usage::settled(&world)?;
    for round in 1..=ROUNDS {
        ctx.step(&format!("no descriptor, round {round}"));
        let mark = world.ovs.log_mark();
        let shortage = Shortage::begin(world.ovs.pid()?)?;
        let late = UnixStream::connect(&knocked.socket)?;
        wait_told(
            &mut world,
            mark,
            &knocked,
            "cannot accept a front-end: Too many open files",
        )?;
        ensure!(Guest::on(early.into()).is_err(), "memory was taken all the same");
        wait_told(&mut world, mark, &lent, "this process can open no more")?;
        beside.wait_more(GO_ON)?;
        drop(shortage);
        ctx.step(&format!("descriptors, round {round}"));
        wait_told(&mut world, mark, &knocked, "new device")?;
        let guests = [Guest::on(late)?, Guest::on(listener.accept(PATIENCE)?.into())?];
        for port in [&knocked, &lent] {
            world.ovs.wait_link(&port.name, true, PATIENCE)?;
        }
        drop(guests);
        early = listener.accept(PATIENCE)?;
        before.check(&world).context("after a shortage")?;
    }
    let account = beside.halt()?.0.settle(true)?;
    ensure!(account.lost + account.twice == 0, "beside: {account:?}");
    world.finish(&["Too many open files", "can open no more"])
}

/// Waits until a port has said so.
fn wait_told(world: &mut World, mark: usize, port: &Port, what: &str) -> Result<()> {
    let socket = port.socket.display().to_string();
    world.ovs.wait_log(mark, &[&socket, what], PATIENCE).map(drop)
}

/// A process that can have no more descriptors than it has, until dropped.
struct Shortage {
    process: Option<Pid>,
    before: Rlimit,
}

impl Shortage {
    fn begin(pid: u32) -> Result<Shortage> {
        let process = Pid::from_raw(i32::try_from(pid)?);
        // Some are open for a moment only.
        let mut limit = u64::MAX;
        for _ in 0..20 {
            limit = limit.min(first_free(pid)?);
            std::thread::sleep(Duration::from_millis(10));
        }
        let short = Rlimit {
            current: Some(limit),
            ..getrlimit(Resource::Nofile)
        };
        let before = prlimit(process, Resource::Nofile, short).context("a limit")?;
        Ok(Shortage { process, before })
    }
}

impl Drop for Shortage {
    fn drop(&mut self) {
        // The switch may be gone already.
        let _ = prlimit(self.process, Resource::Nofile, self.before);
    }
}

/// The descriptor that a process would get next. A limit is the first number that it does not get.
fn first_free(pid: u32) -> Result<u64> {
    let mut held = Vec::new();
    for entry in read_dir(format!("/proc/{pid}/fd"))? {
        held.push(entry?.file_name().to_string_lossy().parse::<u64>()?);
    }
    held.sort_unstable();
    let free = (0..).zip(&held).find(|(number, fd)| number != *fd);
    Ok(free.map_or(held.len() as u64, |(number, _)| number))
}

//! A switch that can have not one more descriptor, or no more memory: its ports say what they cannot take from front-ends, those that
//! run go on, and all works as soon as there is some again. tests/faults has every system call fail; here the whole of a real switch
//! goes short.

use std::fs::{read_dir, read_to_string};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use ovs_vhost::memory::{FrontendAddr, GuestAddr, RegionDesc};
use ovs_vhost::model::FRONTEND_OFFSET;
use rustix::fs::{ftruncate, memfd_create, MemfdFlags};
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
/// Addresses that the switch may still take for itself, and what a guest's memory takes.
const SPARE: u64 = 1 << 30;
const PLUGGED: u64 = 8 << 30;

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
        let shortage = Shortage::of_descriptors(world.ovs.pid()?)?;
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

/// A guest whose memory was taken has more plugged in than the switch has addresses for.
pub fn of_memory(ctx: &Ctx) -> Result<()> {
    let mut world = World::new(&ctx.settings, &ctx.dir, false)?;
    let mut beside = innocent(&world)?;
    let lent = world.port(Kind::Client, "lent");
    let listener = Listener::bind(&lent.socket)?;
    world.add_port(Kind::Client, &lent.name)?;
    let file = memfd_create("plugged-in", MemfdFlags::CLOEXEC)?;
    // Nobody writes to it: it takes addresses, and no memory of this machine.
    ftruncate(&file, PLUGGED)?;
    let plugged = [(plugged_in(), file)];
    let mut early = listener.accept(PATIENCE)?;
    let before = Usage::settled(&world)?;
    for round in 1..=ROUNDS {
        ctx.step(&format!("no memory, round {round}"));
        let guest = Guest::on(early.into())?;
        world.ovs.wait_link(&lent.name, true, PATIENCE)?;
        let mark = world.ovs.log_mark();
        let shortage = Shortage::of_memory(world.ovs.pid()?)?;
        ensure!(guest.lend(&plugged).is_err(), "memory was taken all the same");
        let reason = format!("mmap of region {}: Cannot allocate memory", plugged[0].0);
        wait_told(&mut world, mark, &lent, &reason)?;
        beside.wait_more(GO_ON)?;
        drop((guest, shortage));
        ctx.step(&format!("memory, round {round}"));
        let guest = Guest::on(listener.accept(PATIENCE)?.into())?;
        guest.lend(&plugged).context("there is memory again")?;
        world.ovs.wait_link(&lent.name, true, PATIENCE)?;
        drop(guest);
        early = listener.accept(PATIENCE)?;
        before.check(&world).context("after a shortage")?;
    }
    let account = beside.halt()?.0.settle(true)?;
    ensure!(account.lost + account.twice == 0, "beside: {account:?}");
    world.finish(&["Cannot allocate memory"])
}

/// Far from what the guest had before.
fn plugged_in() -> RegionDesc {
    let guest = 64 << 30;
    RegionDesc {
        guest: GuestAddr(guest),
        size: PLUGGED,
        frontend: FrontendAddr(guest + FRONTEND_OFFSET),
        mmap_offset: 0,
    }
}

/// Waits until a port has said so.
fn wait_told(world: &mut World, mark: usize, port: &Port, what: &str) -> Result<()> {
    let socket = port.socket.display().to_string();
    world.ovs.wait_log(mark, &[&socket, what], PATIENCE).map(drop)
}

/// A process that can have no more of something than it has, until dropped.
struct Shortage {
    process: Option<Pid>,
    of: Resource,
    before: Rlimit,
}

impl Shortage {
    fn of_descriptors(pid: u32) -> Result<Shortage> {
        // Some are open for a moment only.
        let mut limit = u64::MAX;
        for _ in 0..20 {
            limit = limit.min(first_free(pid)?);
            std::thread::sleep(Duration::from_millis(10));
        }
        Shortage::begin(pid, Resource::Nofile, limit)
    }

    fn of_memory(pid: u32) -> Result<Shortage> {
        let statm = read_to_string(format!("/proc/{pid}/statm"))?;
        let pages: u64 = statm.split(' ').next().context("a size")?.parse()?;
        Shortage::begin(pid, Resource::As, pages * 4096 + SPARE)
    }

    fn begin(pid: u32, of: Resource, limit: u64) -> Result<Shortage> {
        let process = Pid::from_raw(i32::try_from(pid)?);
        let short = Rlimit {
            current: Some(limit),
            ..getrlimit(of)
        };
        let before = prlimit(process, of, short).context("a limit")?;
        Ok(Shortage { process, of, before })
    }
}

impl Drop for Shortage {
    fn drop(&mut self) {
        // The switch may be gone already.
        let _ = prlimit(self.process, self.of, self.before);
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

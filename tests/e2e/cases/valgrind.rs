//! vswitchd under valgrind while front-ends come and go and ports are deleted under them: no invalid access, no use
//! of uninitialised memory, no leak.

use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};

use super::world::{self, Kind, World};
use super::Ctx;
use crate::frontend::{Frontend, Listener};
use crate::quick_guest::Guest;
use crate::wait;

/// Valgrind runs one thread at a time, some thirty times slower, and the poll thread takes its share.
const PATIENCE: Duration = Duration::from_secs(180);
const CYCLES: usize = 10;
/// More than a few bursts, and fewer than a ring has place for.
const FRAMES: u64 = 500;

/// Findings that are not the plugin's, each with the reason why it is let pass.
const SUPPRESSIONS: &str = include_str!("../valgrind.supp");

fn under_valgrind(ctx: &Ctx) -> Result<World> {
    let options = crate::ovs::Options {
        valgrind: true,
        ..world::options(&ctx.settings, false)
    };
    let run = ctx.dir.join("run");
    std::fs::create_dir(&run)?;
    std::fs::write(run.join("valgrind.supp"), SUPPRESSIONS)?;
    ctx.step("start vswitchd under valgrind");
    World::with(&ctx.settings, &ctx.dir, options, false)
}

pub fn clean(ctx: &Ctx) -> Result<()> {
    let mut world = under_valgrind(ctx)?;
    for cycle in 0..CYCLES {
        ctx.step(&format!("cycle {cycle}"));
        let server = world.add_port(Kind::Server, "server")?;
        let client = world.add_port(Kind::Client, "client")?;
        let listener = Listener::bind(&client.socket)?;
        let mut ends = [
            Frontend::connect(&server.socket, PATIENCE)?,
            listener.accept(PATIENCE)?,
        ];
        for end in &mut ends {
            end.get_features()?;
        }
        // Every other time the ports go first, while both are connected.
        let delete = "del-port server -- del-port client";
        if cycle % 2 == 0 {
            world.ovs.vsctl(delete)?;
            drop((ends, listener));
        } else {
            drop((ends, listener));
            world.ovs.vsctl(delete)?;
        }
    }
    ctx.step("exit and read the report");
    leave(&mut world)
}

fn leave(world: &mut World) -> Result<()> {
    world.check_log(&[
        "failed to connect",
        "while vhost device still attached",
        "To restore connectivity",
    ])?;
    world.ovs.exit(PATIENCE)?;
    judge(&std::fs::read_to_string(world.ovs.valgrind_report())?)
}

/// One guest sends to the other, which is there for half of it, and both ports are deleted while frames are under way.
pub fn talk(ctx: &Ctx) -> Result<()> {
    let mut world = under_valgrind(ctx)?;
    let ports = ["one", "two"]
        .map(|name| world.add_port(Kind::Client, name))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let listeners: Vec<Listener> = ports
        .iter()
        .map(|port| Listener::bind(&port.socket))
        .collect::<Result<_>>()?;
    let mut guests: Vec<Guest> = listeners
        .iter()
        .map(|listener| Guest::on(listener.accept(PATIENCE)?.into()))
        .collect::<Result<_>>()?;
    for port in &ports {
        world.ovs.wait_link(&port.name, true, PATIENCE)?;
    }
    world.cross_connect(&ports)?;
    ctx.step("send");
    let mut receiver = guests.pop().context("two guests")?;
    let sender = &mut guests[0].transmitq;
    for number in 0..FRAMES {
        ensure!(sender.send(number), "its ring is full");
    }
    sender.publish();
    let mut received = 0;
    wait::until_true("the frames to arrive", PATIENCE, || {
        while let Some(number) = receiver.receiveq.receive()? {
            ensure!(number == received, "{number}, not {received}");
            received += 1;
        }
        Ok(received == FRAMES)
    })?;
    ctx.step("send to nobody, and delete the ports");
    drop(receiver);
    while sender.send(0) {}
    sender.publish();
    world.ovs.vsctl("del-port one -- del-port two")?;
    drop((guests, listeners));
    leave(&mut world)
}

/// Fails when the report ends with errors, quoting the first.
fn judge(report: &str) -> Result<()> {
    let Some(summary) = report.lines().find(|line| line.contains("ERROR SUMMARY:")) else {
        bail!("valgrind did not finish:\n{report}");
    };
    let lines = report.lines().skip_while(|line| !line.contains(" at 0x"));
    let first: Vec<&str> = lines.take(25).collect();
    ensure!(
        summary.contains("ERROR SUMMARY: 0 errors"),
        "{summary}\n{}",
        first.join("\n")
    );
    Ok(())
}

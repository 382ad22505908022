//! vswitchd under valgrind while front-ends come and go and ports are deleted under them: no invalid access, no use
//! of uninitialised memory, no leak.

use std::time::Duration;

use anyhow::{bail, ensure, Result};

use super::world::{self, Kind, World};
use super::Ctx;
use crate::frontend::{Frontend, Listener};

/// Valgrind runs one thread at a time, some thirty times slower, and the poll thread takes its share.
const PATIENCE: Duration = Duration::from_secs(180);
const CYCLES: usize = 10;

/// Findings that are not the plugin's, each with the reason why it is let pass.
const SUPPRESSIONS: &str = include_str!("../valgrind.supp");

pub fn clean(ctx: &Ctx) -> Result<()> {
    let options = crate::ovs::Options {
        valgrind: true,
        ..world::options(&ctx.settings, false)
    };
    let run = ctx.dir.join("run");
    std::fs::create_dir(&run)?;
    std::fs::write(run.join("valgrind.supp"), SUPPRESSIONS)?;
    ctx.step("start vswitchd under valgrind");
    let mut world = World::with(&ctx.settings, &ctx.dir, options, false)?;
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
    world.check_log(&[
        "failed to connect",
        "while vhost device still attached",
        "To restore connectivity",
    ])?;
    world.ovs.exit(PATIENCE)?;
    judge(&std::fs::read_to_string(world.ovs.valgrind_report())?)
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

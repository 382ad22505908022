//! The switch's database: a file, and a server for it that is a child of the harness.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::process::{self, Process};
use crate::user::User;
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(60);

/// Makes an empty database in `dir`, with the programs and the schema of the Open vSwitch in `tree`.
pub fn create(tree: &Path, dir: &Path) -> Result<()> {
    let mut create = Command::new(tree.join("ovsdb/ovsdb-tool"));
    create
        .arg("create")
        .arg(dir.join("conf.db"))
        .arg(tree.join("vswitchd/vswitch.ovsschema"));
    process::run(create, PATIENCE).map(drop)
}

/// Starts its server, to which `user` may connect.
pub fn start(tree: &Path, user: Option<&User>, dir: &Path) -> Result<Process> {
    let (database, socket) = (dir.join("conf.db"), dir.join("db.sock"));
    let mut command = Command::new(tree.join("ovsdb/ovsdb-server"));
    command
        .arg(&database)
        .arg(format!("--remote=punix:{}", socket.display()))
        .arg(format!("--unixctl={}", dir.join("ovsdb.ctl").display()))
        .arg("--no-chdir");
    command
        .env("OVS_RUNDIR", dir)
        .env("OVS_DBDIR", dir)
        .env("OVS_LOGDIR", dir);
    let mut ovsdb = Process::spawn("ovsdb-server", command, &dir.join("ovsdb-server.out"))?;
    wait::until_true("ovsdb-server's socket", PATIENCE, || {
        ovsdb.check_alive()?;
        Ok(UnixStream::connect(&socket).is_ok())
    })?;
    if let Some(user) = user {
        user.give(&socket)?;
    }
    Ok(ovsdb)
}

//! A systemd for one service: it runs in namespaces of its own, so that the machine's (if it has one) does not hear of it, and
//! reads the drop-in as it would on a host. When it ends, so does all that it started; when the service ends, so does it.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::drop_in;
use crate::process;
use crate::settings::tool;

/// Where it is wherever there is one, in no PATH.
pub const PROGRAM: &str = "/lib/systemd/systemd";

/// Puts it into a control group of its own, below which it may do what it likes. The kernel refuses to cover control groups by
/// themselves, so there is something else between.
const ENTER: &str = "
set -e
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/ovs-vhost-e2e
echo $$ > /sys/fs/cgroup/ovs-vhost-e2e/cgroup.procs
exec unshare --pid --fork --kill-child --mount --uts --ipc --cgroup sh -c \"$BOOT\" sh \"$1\"";

/// The first process of the namespaces: gives itself what systemd expects to find, and becomes it.
const BOOT: &str = "
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
cp -r \"$1/.\" /run/systemd/system
mount -t proc proc /proc
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
export container=e2e
exec $PROGRAM --system --unit=ovs-vswitchd.service --log-target=console --log-level=notice";

/// Removes the control groups that are left when it has ended.
const CLEAN: &str = "
mount -t tmpfs tmpfs /sys/fs/cgroup &&
mount -t cgroup2 cgroup2 /sys/fs/cgroup &&
find /sys/fs/cgroup/ovs-vhost-e2e -depth -type d -delete";

/// A command that runs `command` as the service ovs-vswitchd with the drop-in, whose files go to `dir`.
pub fn serve(command: &Command, dir: &Path) -> Result<Command> {
    let units = dir.join("units");
    let drop_ins = units.join("ovs-vswitchd.service.d");
    fs::create_dir_all(&drop_ins)?;
    let (service, here) = unit(command)?;
    fs::write(units.join("ovs-vswitchd.service"), service)?;
    fs::write(drop_ins.join("vhost-plugin.conf"), drop_in::TEXT)?;
    fs::write(drop_ins.join("where-it-is.conf"), here)?;
    let mut serve = tool("unshare");
    serve.args(["--mount", "sh", "-c", ENTER, "sh"]).arg(units);
    serve.env("BOOT", BOOT).env("PROGRAM", PROGRAM);
    Ok(serve)
}

/// Leaves nothing behind.
pub fn clean() -> Result<()> {
    let mut clean = tool("unshare");
    clean.args(["--mount", "sh", "-c", CLEAN]);
    process::finish(clean, Duration::from_secs(10)).map(drop)
}

/// The service, and a second drop-in, which says where the plugin is: the first has its place on a host.
fn unit(command: &Command) -> Result<(String, String)> {
    let mut start = command.get_program().to_str().context("a program")?.to_owned();
    let mut here = "[Service]\n".to_owned();
    for argument in command.get_args() {
        let argument = argument.to_str().context("an argument")?;
        match argument.strip_prefix("--netdev-plugin=") {
            Some(plugin) => writeln!(here, "Environment=OVS_NETDEV_PLUGINS={plugin}")?,
            None => write!(start, " {argument}")?,
        }
    }
    let mut service = format!(
        "[Unit]\nDefaultDependencies=no\nSuccessAction=exit-force\nFailureAction=exit-force\n\
         [Service]\nType=exec\nStandardOutput=null\nStandardError=null\nExecStart={start}\n"
    );
    for (key, value) in command.get_envs() {
        let (key, value) = (key.to_str().context("a name")?, value.and_then(|it| it.to_str()));
        if let Some(value) = value {
            writeln!(service, "Environment={key}={value}")?;
        }
    }
    Ok((service, here))
}

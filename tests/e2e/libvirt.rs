//! libvirt from the distribution, in a house of its own: its daemons, their domains and all their files are in a mount
//! namespace with a process namespace in it. Nothing of it is seen on the machine, and all of it ends with its first process.
//!
//! In there things are where documents say: `/run/openvswitch`, `virsh`, a user `libvirt-qemu` for QEMU to run as.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::mounts::MountNs;
use crate::netns::NetNs;
use crate::ovs::Ovs;
use crate::party::{Party, Running};
use crate::process::{self, Process};
use crate::settings::tool;
use crate::shell::{Shell, COMMAND};
use crate::wait;

const FURNISH: &str = include_str!("libvirt-house.sh");
/// The daemons' parent has to reap what they leave, or libvirt waits for its dead QEMUs.
const DAEMONS: &str = "virtlogd & libvirtd & wait";
/// For what waits for a guest, too.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where it all happens.
#[derive(Clone)]
pub struct House {
    /// What the switch has to see, too.
    pub mounts: MountNs,
    folder: PathBuf,
}

impl House {
    /// With files in `folder`, and the run directory `switch` of Open vSwitch where it usually is.
    pub fn furnish(folder: &Path, switch: &Path) -> Result<Self> {
        for dir in [&folder.join("etc"), switch] {
            std::fs::create_dir_all(dir)?;
        }
        let house = House {
            mounts: MountNs::create()?,
            folder: folder.into(),
        };
        let mut command = tool("sh");
        command.args(["-c", FURNISH, "sh"]).arg(folder).arg(switch);
        house.mounts.enter(&mut command);
        process::run(command, COMMAND)?;
        Ok(house)
    }

    /// What is called `inside` there, as seen from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.folder.join(inside.trim_start_matches('/'))
    }
}

/// The running daemons.
pub struct Libvirt<'switch> {
    house: House,
    ovs: &'switch Ovs,
    daemons: Process,
}

impl<'switch> Libvirt<'switch> {
    /// Starts them beside the switch `ovs`, in its network namespace.
    pub fn start(house: House, ovs: &'switch Ovs, ns: &NetNs) -> Result<Self> {
        let mut command = tool("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", DAEMONS]);
        ovs.introduce(&mut command);
        house.mounts.enter(&mut command);
        ns.enter(&mut command);
        let daemons = Process::spawn("libvirtd", command, &house.path("libvirtd.out"))?;
        let mut libvirt = Libvirt { house, ovs, daemons };
        let socket = libvirt.house.path("/run/libvirt/libvirt-sock");
        wait::until_true("libvirtd's socket", PATIENCE, || {
            libvirt.daemons.check_alive()?;
            Ok(UnixStream::connect(&socket).is_ok())
        })?;
        Ok(libvirt)
    }

    /// Runs shell commands as the host's operator would, in a folder that is the same each time.
    pub fn shell(&self, commands: &str) -> Result<String> {
        let mut command: Command = tool("sh");
        command.args(["-ec", &format!("cd /var/lib/libvirt\n{commands}")]);
        self.ovs.introduce(&mut command);
        self.house.mounts.enter(&mut command);
        process::run(command, PATIENCE)
    }

    /// Where `shell` runs, as seen from outside.
    pub fn folder(&self) -> PathBuf {
        self.house.path("/var/lib/libvirt")
    }

    /// The guest of the running domain `name`, which may still boot: party `id`. What it says before this is lost.
    pub fn listen(&self, name: &str, id: u8) -> Result<Domain> {
        let stream = UnixStream::connect(self.house.path(&serial_socket(name)))
            .with_context(|| format!("{name}'s serial line"))?;
        let shell = Shell::new(name, stream, &self.house.path(&console(name)))?;
        Ok(Domain {
            name: name.into(),
            id,
            shell,
        })
    }
}

/// Where in the house the shell in domain `name` has its socket.
pub fn serial_socket(name: &str) -> String {
    format!("/run/{name}.serial")
}

/// Where in the house domain `name` prints.
pub fn console(name: &str) -> String {
    format!("/var/log/libvirt/qemu/{name}.console")
}

/// A guest that libvirt has started.
pub struct Domain {
    name: String,
    id: u8,
    shell: Shell,
}

impl Domain {
    /// The same, once it has booted.
    pub fn booted(mut self) -> Result<Self> {
        self.shell.wait_ready()?;
        Ok(self)
    }
}

impl Party for Domain {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> u8 {
        self.id
    }

    fn address(&self) -> String {
        crate::netns::address(self.id)
    }

    fn run_within(&self, command: &str, limit: Duration) -> Result<(i32, String)> {
        self.shell.run_within(command, limit)
    }

    fn start<'a>(&'a self, name: &str, command: &str) -> Result<Box<dyn Running + 'a>> {
        Ok(Box::new(self.shell.spawn(name, command)?))
    }

    fn nic_counter(&self, name: &str) -> Result<u64> {
        self.shell.nic_counter(name)
    }
}

//! An end of traffic: a guest, or an interface of the host with the host's kernel behind it. What runs over a path
//! (see `tcp`) does not care which it is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::{address, NetNs};
use crate::process::{self, Process};
use crate::settings::tool;
use crate::shell::{Job, Shell};
use crate::vm::Vm;

/// Something with a shell, a NIC and a number in the address plan.
pub trait Party {
    /// For messages.
    fn name(&self) -> &str;

    /// Number in the address plan.
    fn id(&self) -> u8;

    /// Where it is reached.
    fn address(&self) -> String;

    /// Runs a shell command: its exit status and output.
    fn run_within(&self, command: &str, limit: Duration) -> Result<(i32, String)>;

    /// Starts a command (without single quotes) in the background.
    fn start<'a>(&'a self, name: &str, command: &str) -> Result<Box<dyn Running + 'a>>;

    /// A counter of the NIC, by its name under /sys/class/net/*/statistics.
    fn nic_counter(&self, name: &str) -> Result<u64>;
}

/// A command in a party's background. Dropping it ends it on the host, and in a guest leaves it alone.
pub trait Running {
    /// Waits for its end: the exit status.
    fn wait(&mut self, limit: Duration) -> Result<i32>;
}

impl Party for Vm {
    fn name(&self) -> &str {
        &self.spec.name
    }

    fn id(&self) -> u8 {
        self.spec.id
    }

    fn address(&self) -> String {
        self.spec.family.address(self.spec.id)
    }

    fn run_within(&self, command: &str, limit: Duration) -> Result<(i32, String)> {
        Shell::run_within(self, command, limit)
    }

    fn start<'a>(&'a self, name: &str, command: &str) -> Result<Box<dyn Running + 'a>> {
        Ok(Box::new(self.spawn(name, command)?))
    }

    fn nic_counter(&self, name: &str) -> Result<u64> {
        Shell::nic_counter(self, name)
    }
}

impl Running for Job<'_> {
    fn wait(&mut self, limit: Duration) -> Result<i32> {
        Job::wait(self, limit)
    }
}

/// An interface of the host, in a namespace, behind a port of the switch. It speaks through busybox as the guests do.
pub struct HostEnd {
    device: String,
    id: u8,
    ns: NetNs,
    dir: PathBuf,
}

impl HostEnd {
    /// The interface `device` in `ns`, which has the address of party `id` already; files go to `dir`.
    pub fn new(device: &str, id: u8, ns: &NetNs, dir: &Path) -> Self {
        HostEnd {
            device: device.into(),
            id,
            ns: ns.clone(),
            dir: dir.into(),
        }
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = tool("busybox");
        shell.args(["sh", "-c", command]).current_dir(&self.dir);
        self.ns.enter(&mut shell);
        shell
    }
}

impl Party for HostEnd {
    fn name(&self) -> &str {
        &self.device
    }

    fn id(&self) -> u8 {
        self.id
    }

    fn address(&self) -> String {
        address(self.id)
    }

    fn run_within(&self, command: &str, limit: Duration) -> Result<(i32, String)> {
        let done = process::finish(self.shell(command), limit)?;
        let status = done.status.code().context("ended by a signal")?;
        Ok((status, done.stdout + &done.stderr))
    }

    fn start<'a>(&'a self, name: &str, command: &str) -> Result<Box<dyn Running + 'a>> {
        let name = format!("{}-{name}", self.device);
        let printed = self.dir.join(format!("{name}.out"));
        let process = Process::spawn(&name, self.shell(&format!("exec {command}")), &printed)?;
        Ok(Box::new(process))
    }

    /// /sys shows the namespace in which it was mounted, /proc/net that of who reads it.
    fn nic_counter(&self, name: &str) -> Result<u64> {
        const COLUMNS: &[(&str, usize)] = &[
            ("rx_bytes", 0),
            ("rx_packets", 1),
            ("rx_errors", 2),
            ("rx_dropped", 3),
            ("tx_bytes", 8),
            ("tx_packets", 9),
        ];
        let column = COLUMNS.iter().find(|column| column.0 == name);
        let (_, column) = column.with_context(|| format!("no counter {name}"))?;
        let table = self.ns.run("cat", &["/proc/net/dev"])?;
        let head = format!("{}:", self.device);
        let mut rows = table.lines().map(str::trim_start);
        let row = rows.find_map(|row| row.strip_prefix(&head));
        let row = row.with_context(|| format!("no {} in /proc/net/dev", self.device))?;
        let text = row.split_whitespace().nth(*column).unwrap_or_default();
        text.parse().with_context(|| format!("counter {name}: {row}"))
    }
}

impl Running for Process {
    fn wait(&mut self, limit: Duration) -> Result<i32> {
        Process::wait(self, limit)?.code().context("ended by a signal")
    }
}

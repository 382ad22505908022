//! A private Open vSwitch: its own ovsdb-server and ovs-vswitchd, run directory and network namespace, so a system
//! Open vSwitch is neither touched nor needed. Both are children of the harness, not daemons; vswitchd can be killed
//! and started again while everything else goes on, and its log keeps growing in one file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{bail, Context, Result};

use crate::drop_in;
use crate::log::{self, Line};
use crate::mounts::MountNs;
use crate::netns::{NetNs, OBSERVER_PORT};
use crate::ovsdb;
use crate::process::{self, Process};
use crate::settings::tool;
use crate::systemd;
use crate::user::{self, User};
use crate::wait;

/// How long a command line tool may take, and vswitchd to be up. Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// How to run the switch.
#[derive(Clone)]
pub struct Options {
    /// Built source tree.
    pub tree: PathBuf,
    /// Plugin to load.
    pub plugin: Option<PathBuf>,
    /// `other_config:dpdk-init=true`.
    pub dpdk: bool,
    /// `other_config:userspace-tso-enable=true`.
    pub tso: bool,
    /// More of `other_config`, for what is read only once ("key=value").
    pub other_config: Vec<&'static str>,
    /// More arguments of vswitchd, and more of its environment.
    pub arguments: Vec<&'static str>,
    pub environment: Vec<(&'static str, PathBuf)>,
    /// Run vswitchd under valgrind, its report in the run directory.
    pub valgrind: bool,
    /// Take from vswitchd root's right to ignore file permissions, so that EACCES can happen to it.
    pub obey_permissions: bool,
    /// Run vswitchd behind the system call filter of the systemd drop-in.
    pub seccomp: bool,
    /// Who vswitchd is, if not root.
    pub user: Option<User>,
    /// A systemd starts vswitchd, with the drop-in.
    pub systemd: bool,
    /// The mounts that vswitchd sees, if not the machine's.
    pub mounts: Option<MountNs>,
}

/// Counters of one port as `ovs-ofctl dump-ports` gives them, fresh from the port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Packets the switch took from the port.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Packets the switch gave to the port.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Packets the switch could not give to the port.
    pub tx_dropped: u64,
}

/// The running switch.
pub struct Ovs {
    options: Options,
    dir: PathBuf,
    ns: NetNs,
    ovsdb: Option<Process>,
    vswitchd: Option<Process>,
}

impl Ovs {
    /// Starts database and switch in `dir`, with one bridge `br0` that the observer is attached to.
    pub fn start(options: Options, dir: &Path, ns: &NetNs) -> Result<Self> {
        let ovs = Self::start_alone(options, dir, ns)?;
        ovs.vsctl(&format!("add-port br0 {OBSERVER_PORT}"))?;
        Ok(ovs)
    }

    /// Starts database and switch in `dir`, with one bridge `br0`.
    pub fn start_alone(options: Options, dir: &Path, ns: &NetNs) -> Result<Self> {
        let mut ovs = Self::configured(options, dir, ns)?;
        ovs.start_vswitchd()?;
        ovs.vsctl("add-br br0 -- set Bridge br0 datapath_type=netdev")?;
        Ok(ovs)
    }

    /// Starts the database in `dir` and configures the switch in it, which does not run yet.
    pub fn configured(options: Options, dir: &Path, ns: &NetNs) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        ovsdb::create(&options.tree, dir)?;
        let ovsdb = ovsdb::start(&options.tree, options.user.as_ref(), dir)?;
        if let Some(user) = &options.user {
            user.give(dir)?;
        }
        let ovs = Ovs {
            options,
            dir: dir.into(),
            ns: ns.clone(),
            ovsdb: Some(ovsdb),
            vswitchd: None,
        };
        ovs.vsctl("--no-wait init")?;
        if ovs.options.dpdk {
            ovs.set_dpdk(&["--no-wait"])?;
        }
        if ovs.options.tso {
            ovs.vsctl("--no-wait set Open_vSwitch . other_config:userspace-tso-enable=true")?;
        }
        for setting in &ovs.options.other_config {
            ovs.vsctl(&format!("--no-wait set Open_vSwitch . other_config:{setting}"))?;
        }
        Ok(ovs)
    }

    /// Ends the database server; what is in the database stays.
    pub fn stop_database(&mut self) -> Result<()> {
        self.ovsdb
            .take()
            .context("ovsdb-server is not running")?
            .kill_9()?;
        std::fs::remove_file(self.dir.join("db.sock")).context("the database's socket")
    }

    /// Starts the database server again.
    pub fn start_database(&mut self) -> Result<()> {
        self.ovsdb = Some(ovsdb::start(
            &self.options.tree,
            self.options.user.as_ref(),
            &self.dir,
        )?);
        Ok(())
    }

    /// Starts vswitchd on the present database and waits until it has configured itself once.
    pub fn start_vswitchd(&mut self) -> Result<()> {
        self.spawn_vswitchd()?;
        self.wait_configured()
    }

    /// Starts vswitchd on the present database without waiting for anything.
    pub fn spawn_vswitchd(&mut self) -> Result<()> {
        let mut command = self.vswitchd_command();
        if self.options.systemd {
            command = systemd::serve(&command, &self.dir)?;
        } else if let Some(user) = &self.options.user {
            command = user.run(&command);
        }
        self.ns.enter(&mut command);
        if let Some(mounts) = &self.options.mounts {
            mounts.enter(&mut command);
        }
        if self.options.obey_permissions {
            user::drop_dac_override(&mut command);
        }
        // Last: what comes before it may be what it does not allow.
        if self.options.seccomp {
            drop_in::filter()?.put_on(&mut command);
        }
        let printed = self.dir.join("ovs-vswitchd.out");
        self.vswitchd = Some(Process::spawn("ovs-vswitchd", command, &printed)?);
        Ok(())
    }

    /// Waits until vswitchd has gone through its whole configuration.
    pub fn wait_configured(&mut self) -> Result<()> {
        let limit = if self.options.valgrind {
            3 * PATIENCE
        } else {
            PATIENCE
        };
        let ctl = self.control_socket();
        let vswitchd = self.vswitchd.as_mut().context("vswitchd is not running")?;
        wait::until_true("ovs-vswitchd's control socket", limit, || {
            vswitchd.check_alive()?;
            Ok(std::os::unix::net::UnixStream::connect(&ctl).is_ok())
        })?;
        // Without --no-wait ovs-vsctl returns when vswitchd has caught up with the database, if there is a change in it.
        let pid = vswitchd.pid();
        let set = self.vsctl(&format!("set Open_vSwitch . external_ids:e2e={pid}"));
        self.check_alive()?;
        set.map(drop)
    }

    fn vswitchd_command(&self) -> Command {
        let binary = self.options.tree.join("vswitchd/ovs-vswitchd");
        let mut command = if self.options.valgrind {
            let mut valgrind = tool("valgrind");
            valgrind
                .args([
                    "--tool=memcheck",
                    "--leak-check=full",
                    "--show-leak-kinds=definite",
                ])
                .args([
                    "--errors-for-leak-kinds=definite",
                    "--num-callers=40",
                    "--fair-sched=yes",
                ])
                .arg(format!("--log-file={}", self.valgrind_report().display()))
                .arg(format!(
                    "--suppressions={}",
                    self.dir.join("valgrind.supp").display()
                ))
                .arg(binary);
            valgrind
        } else {
            Command::new(binary)
        };
        command
            .arg(format!("unix:{}", self.dir.join("db.sock").display()))
            .arg(format!("--unixctl={}", self.control_socket().display()))
            .arg(format!("--log-file={}", self.log_path().display()))
            .args(["-vconsole:off", "-vfile:info", "--no-chdir", "--disable-system"])
            .args(&self.options.arguments)
            .envs(self.options.environment.iter().cloned());
        if let Some(plugin) = &self.options.plugin {
            command.arg(format!("--netdev-plugin={}", plugin.display()));
        }
        if let Some(name) = self.options.user.as_ref().and_then(|user| user.by_itself) {
            command.arg(format!("--user={name}"));
        }
        self.set_dirs(&mut command);
        command
    }

    /// Lets `command` and what it starts find this switch and its tools by themselves, as on a host that has one.
    pub fn introduce(&self, command: &mut Command) {
        self.set_dirs(command);
        let tools = self.options.tree.join("utilities");
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", tools.display()));
    }

    fn set_dirs(&self, command: &mut Command) {
        for name in ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR"] {
            command.env(name, &self.dir);
        }
        // Where EAL keeps what it keeps, if it is not root's.
        command.env("XDG_RUNTIME_DIR", &self.dir);
        command.env_remove("OVS_NETDEV_PLUGINS");
    }

    /// Run directory: sockets of server ports are here.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where valgrind writes.
    pub fn valgrind_report(&self) -> PathBuf {
        self.dir.join("valgrind.txt")
    }

    /// vswitchd's process id.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.vswitchd.as_ref().context("vswitchd is not running")?.pid())
    }

    /// Fails when vswitchd is gone.
    pub fn check_alive(&mut self) -> Result<()> {
        self.vswitchd
            .as_mut()
            .context("vswitchd is not running")?
            .check_alive()
    }

    /// `kill -9` of vswitchd, as a crash would end it.
    pub fn kill_9(&mut self) -> Result<()> {
        self.vswitchd.take().context("vswitchd is not running")?.kill_9()
    }

    /// Asks vswitchd to end and waits for it.
    pub fn exit(&mut self, limit: Duration) -> Result<()> {
        self.appctl("exit")?;
        let mut vswitchd = self.vswitchd.take().context("vswitchd is not running")?;
        let status = vswitchd.wait(limit)?;
        if !status.success() {
            bail!("ovs-vswitchd: {status}\n{}", vswitchd.printed());
        }
        Ok(())
    }

    /// Chooses what vswitchd loads when it is started next: a plugin, or none.
    pub fn set_plugin(&mut self, plugin: Option<&Path>) {
        self.options.plugin = plugin.map(Path::to_path_buf);
    }

    /// Runs ovs-vsctl with space-separated `args`; waits for vswitchd unless they say `--no-wait`.
    pub fn vsctl(&self, args: &str) -> Result<String> {
        self.vsctl_args(&args.split(' ').collect::<Vec<_>>())
    }

    /// Runs ovs-vsctl with arguments that may contain spaces.
    pub fn vsctl_args(&self, args: &[&str]) -> Result<String> {
        let done = self.vsctl_finish(args)?;
        if !done.status.success() {
            bail!("ovs-vsctl {}: {}", args.join(" "), done.stderr.trim());
        }
        Ok(done.stdout)
    }

    /// Runs ovs-vsctl and leaves it to the caller to judge: it exits 0 with a text on stderr when a port has an error.
    pub fn vsctl_finish(&self, args: &[&str]) -> Result<process::Finished> {
        let mut command = self.tool("ovs-vsctl");
        command
            .arg(format!("--timeout={}", 2 * PATIENCE.as_secs()))
            .args(args);
        process::finish(command, 3 * PATIENCE)
    }

    /// Runs ovs-appctl on vswitchd with space-separated `args`.
    pub fn appctl(&self, args: &str) -> Result<String> {
        let mut command = self.tool("ovs-appctl");
        command.args(args.split(' '));
        process::run(command, 2 * PATIENCE)
    }

    /// What ovs-appctl connects to.
    pub fn control_socket(&self) -> PathBuf {
        self.dir.join("vswitchd.ctl")
    }

    /// Runs ovs-ofctl with space-separated `args`.
    pub fn ofctl(&self, args: &str) -> Result<String> {
        let mut command = self.tool("ovs-ofctl");
        command.args(args.split(' '));
        process::run(command, 2 * PATIENCE)
    }

    /// A tool of Open vSwitch that finds this switch by itself, as on a host that has one.
    pub fn tool(&self, name: &str) -> Command {
        let place = match name {
            "ovsdb-client" => "ovsdb",
            _ => "utilities",
        };
        let mut command = Command::new(self.options.tree.join(place).join(name));
        if name == "ovs-appctl" {
            command.arg("-t").arg(self.control_socket());
        }
        self.set_dirs(&mut command);
        command
    }

    /// One column of a port's Interface row, as ovs-vsctl prints it (`[]` when empty), without quotes.
    pub fn interface(&self, port: &str, column: &str) -> Result<String> {
        let text = self.vsctl_args(&["--no-wait", "get", "Interface", port, column])?;
        Ok(text.trim().trim_matches('"').to_string())
    }

    /// The `status` map of a port.
    pub fn status(&self, port: &str) -> Result<BTreeMap<String, String>> {
        let text = self.interface(port, "status")?;
        let pairs = text
            .trim_matches(['{', '}'])
            .split(", ")
            .filter_map(|pair| pair.split_once('='));
        Ok(pairs
            .map(|(key, value)| (key.into(), value.trim_matches('"').into()))
            .collect())
    }

    /// A number in the `statistics` map of a port, as last written to the database; 0 if there is none.
    pub fn statistic(&self, port: &str, name: &str) -> Result<u64> {
        let text = self.interface(port, "statistics")?;
        let mut pairs = text
            .trim_matches(['{', '}'])
            .split(", ")
            .filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(key, _)| *key == name);
        found.map_or(Ok(0), |(_, value)| Ok(value.parse()?))
    }

    /// The `statistics` of a port that are not 0, as last written to the database.
    pub fn counted(&self, port: &str) -> Result<String> {
        let text = self.interface(port, "statistics")?;
        let pairs = text.trim_matches(['{', '}']).split(", ");
        Ok(pairs
            .filter(|pair| !pair.ends_with("=0"))
            .collect::<Vec<_>>()
            .join(" "))
    }

    /// Waits until the switch says the port's link is up, that is: a front-end is connected and running.
    pub fn wait_link(&self, port: &str, up: bool, limit: Duration) -> Result<()> {
        let wanted = if up { "up" } else { "down" };
        wait::until_true(&format!("link_state={wanted} of {port}"), limit, || {
            Ok(self.interface(port, "link_state")? == wanted)
        })
    }

    /// Counters of a port, or nothing when the port type keeps none (stock server ports).
    pub fn counters(&self, port: &str) -> Result<Option<PortCounters>> {
        self.counters_on("br0", port)
    }

    /// Like [`Ovs::counters`] for a port of another bridge.
    pub fn counters_on(&self, bridge: &str, port: &str) -> Result<Option<PortCounters>> {
        let text = self.ofctl(&format!("dump-ports {bridge} {port}"))?;
        let (rx, tx) = text.split_once("tx ").context("dump-ports without tx line")?;
        let (_, rx) = rx.split_once("rx ").context("dump-ports without rx line")?;
        let field = |text: &str, name: &str| -> Option<u64> {
            let (_, rest) = text.split_once(&format!("{name}="))?;
            rest.split([',', '\n']).next()?.trim().parse().ok()
        };
        let (Some(rx_packets), Some(tx_packets)) = (field(rx, "pkts"), field(tx, "pkts")) else {
            return Ok(None);
        };
        Ok(Some(PortCounters {
            rx_packets,
            tx_packets,
            rx_bytes: field(rx, "bytes").unwrap_or(0),
            tx_bytes: field(tx, "bytes").unwrap_or(0),
            tx_dropped: field(tx, "drop").unwrap_or(0),
        }))
    }

    /// Waits until two looks in a row at the counters of `ports` see the same.
    pub fn wait_counters_still(&self, ports: &[&str]) -> Result<Vec<Option<PortCounters>>> {
        let look = || {
            ports
                .iter()
                .map(|port| self.counters(port))
                .collect::<Result<Vec<_>>>()
        };
        let mut before = look()?;
        wait::until("port counters to stand still", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(100));
            let now = look()?;
            let still = now == before;
            before = now;
            Ok(still.then(|| before.clone()))
        })
    }

    /// vswitchd's log file.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("ovs-vswitchd.log")
    }

    /// A mark to read the log from later.
    pub fn log_mark(&self) -> usize {
        log::mark(&self.log_path())
    }

    /// The log from `mark` on.
    pub fn log_since(&self, mark: usize) -> Vec<Line> {
        log::read(&self.log_path(), mark)
    }

    /// Waits for a line that contains all of `parts`.
    pub fn wait_log(&mut self, mark: usize, parts: &[&str], limit: Duration) -> Result<Line> {
        wait::until(&format!("a log line with {parts:?}"), limit, || {
            self.check_alive()?;
            let lines = self.log_since(mark);
            Ok(lines
                .into_iter()
                .find(|line| parts.iter().all(|part| line.text.contains(part))))
        })
    }

    /// Fails on any WARN, ERR or EMER line that contains none of `allowed`.
    pub fn assert_log_clean(&self, allowed: &[&str]) -> Result<()> {
        log::check_clean(&self.log_since(0), allowed)
    }

    /// `other_config:dpdk-init=true` on the running switch.
    pub fn enable_dpdk(&self) -> Result<()> {
        self.set_dpdk(&[])
    }

    fn set_dpdk(&self, options: &[&str]) -> Result<()> {
        let set = ["set", "Open_vSwitch", "."];
        self.vsctl_args(&[options, &set, &DPDK_SETTINGS].concat())
            .map(drop)
    }

    /// How many file descriptors vswitchd has open.
    pub fn fd_count(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()?))?.count())
    }
}

/// `--no-pci`: EAL would log errors about the machine's own virtio NIC. `--in-memory`: hugepages come as memfds, so a
/// killed vswitchd leaves no files on hugetlbfs and two runs never meet in one.
const DPDK_SETTINGS: [&str; 2] = [
    "other_config:dpdk-extra=--no-pci --in-memory",
    "other_config:dpdk-init=true",
];

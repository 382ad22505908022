//! What the caller chose through the environment, read once, and what the machine offers. The table of cases names
//! its needs; here each need becomes yes or a reason.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process;
use crate::systemd;

/// Choices of the caller.
#[derive(Clone)]
pub struct Settings {
    /// The package: where `target/` is.
    pub root: PathBuf,
    /// Built Open vSwitch tree (`OVS_TREE`).
    pub ovs_tree: PathBuf,
    /// The plugin (`E2E_PLUGIN`), or none: the stock ports are tested then, to validate the harness itself.
    pub plugin: Option<PathBuf>,
    /// The plugin built with `fault-injection` (`E2E_FAULT_PLUGIN`).
    pub fault_plugin: Option<PathBuf>,
    /// Open vSwitch tree configured without DPDK, and the plugin built against it.
    pub nodpdk: Option<(PathBuf, PathBuf)>,
    /// How long the packet loops run (`E2E_SECONDS`).
    pub loop_time: Duration,
    /// How many times a guest is moved (`E2E_MIGRATIONS`).
    pub migrations: usize,
    /// How long blows are dealt (`E2E_SOAK_MINUTES`), by which dice (`E2E_SOAK_SEED`), and only those whose names contain this
    /// (`E2E_SOAK_BLOWS`).
    pub soak_time: Duration,
    pub soak_seed: Option<u64>,
    pub soak_blows: Option<String>,
    /// `E2E_SECCOMP=1`: every vswitchd runs behind the system call filter of the systemd drop-in.
    pub seccomp: bool,
    /// `CI=true`: a skipped case is a failure.
    pub ci: bool,
    /// `KEEP=1`: the demo stays up.
    pub keep: bool,
}

impl Settings {
    /// Reads the environment; paths are relative to the package.
    pub fn from_env() -> Self {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let root = var("CARGO_MANIFEST_DIR").map_or_else(|| ".".into(), PathBuf::from);
        let root = root.canonicalize().unwrap_or(root);
        let path = |name: &str| var(name).map(|value| root.join(value));
        let plugin = match var("E2E_PLUGIN").as_deref() {
            Some("none") => None,
            Some(file) => Some(root.join(file)),
            None => Some(root.join("target/release/libovs_vhost.so")),
        };
        let seconds = var("E2E_SECONDS")
            .and_then(|text| text.parse().ok())
            .unwrap_or(30);
        let migrations = var("E2E_MIGRATIONS").and_then(|text| text.parse().ok());
        let minutes = var("E2E_SOAK_MINUTES").and_then(|text| text.parse().ok());
        Settings {
            ovs_tree: path("OVS_TREE").unwrap_or_else(|| root.join("target/ovs")),
            plugin,
            fault_plugin: path("E2E_FAULT_PLUGIN"),
            nodpdk: path("OVS_TREE_NODPDK").zip(path("E2E_PLUGIN_NODPDK")),
            loop_time: Duration::from_secs(seconds),
            migrations: migrations.unwrap_or(5),
            soak_time: Duration::from_secs(60 * minutes.unwrap_or(2)),
            soak_blows: var("E2E_SOAK_BLOWS"),
            soak_seed: var("E2E_SOAK_SEED").and_then(|text| text.parse().ok()),
            seccomp: var("E2E_SECCOMP").as_deref() == Some("1"),
            ci: var("CI").as_deref() == Some("true"),
            keep: var("KEEP").as_deref() == Some("1"),
            root,
        }
    }

    /// Whether the stock ports are tested instead of the plugin's.
    pub fn stock(&self) -> bool {
        self.plugin.is_none()
    }
}

/// What a case cannot run without.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Root, the built Open vSwitch and, unless stock, the plugin: every case.
    Switch,
    /// QEMU and what the guest image is made from.
    Guests,
    /// tcpdump.
    Capture,
    /// tshark.
    Tshark,
    /// A kernel that has hugepages, and DPDK's testpmd.
    Testpmd,
    /// A kernel that has hugepages.
    Hugepages,
    /// The plugin built with `fault-injection`.
    FaultPlugin,
    /// The tree without DPDK and its plugin.
    NoDpdkTree,
    /// libvirt's daemon and its tools.
    Libvirt,
    /// Valgrind.
    Valgrind,
    /// An Open vSwitch that was configured with AF_XDP.
    AfXdp,
    /// systemd-analyze, to read the drop-in; a running systemd is not needed.
    DropIn,
    /// systemd, to run one of its own.
    Systemd,
}

impl Need {
    /// Why the need is not met, if it is not.
    pub fn missing(self, settings: &Settings) -> Option<String> {
        match self {
            Need::Switch => missing_switch(settings),
            Need::Guests => missing_tools(&[
                "qemu-system-x86_64",
                "busybox",
                "cpio",
                "iperf3",
                "ethtool",
                "ping",
                "dpkg",
            ]),
            Need::Capture => missing_tools(&["tcpdump"]),
            Need::Tshark => missing_tools(&["tshark"]),
            Need::Testpmd => missing_tools(&["dpdk-testpmd"]).or_else(|| Need::Hugepages.missing(settings)),
            Need::Hugepages => {
                missing_file(Path::new("/proc/sys/vm/nr_hugepages"), "kernel without hugepages")
            }
            Need::Valgrind if settings.seccomp => {
                Some("valgrind makes code, which the drop-in forbids".into())
            }
            Need::Libvirt => missing_tools(&["libvirtd", "virtlogd", "virsh", "unshare"]),
            Need::Valgrind => missing_tools(&["valgrind"]),
            Need::DropIn => missing_tools(&["systemd-analyze", "setpriv"]),
            Need::Systemd => missing_tools(&["unshare"])
                .or_else(|| missing_file(Path::new(systemd::PROGRAM), "not installed")),
            Need::AfXdp if settings.seccomp => Some("the drop-in does not allow AF_XDP ports".into()),
            Need::AfXdp => {
                let config = std::fs::read_to_string(settings.ovs_tree.join("config.h")).unwrap_or_default();
                let has = config.contains("#define HAVE_AF_XDP 1");
                (!has).then(|| "Open vSwitch without AF_XDP".into())
            }
            Need::FaultPlugin => match &settings.fault_plugin {
                None => {
                    Some("E2E_FAULT_PLUGIN names no plugin built with the feature fault-injection".into())
                }
                Some(file) => missing_file(file, "E2E_FAULT_PLUGIN"),
            },
            Need::NoDpdkTree => match &settings.nodpdk {
                None => Some("OVS_TREE_NODPDK and E2E_PLUGIN_NODPDK are not both set".into()),
                Some((tree, plugin)) => missing_file(&tree.join("vswitchd/ovs-vswitchd"), "OVS_TREE_NODPDK")
                    .or_else(|| missing_file(plugin, "E2E_PLUGIN_NODPDK")),
            },
        }
    }
}

fn missing_switch(settings: &Settings) -> Option<String> {
    // SAFETY: geteuid touches no memory and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Some("not root".into());
    }
    let vswitchd = settings.ovs_tree.join("vswitchd/ovs-vswitchd");
    let drop_in = settings.seccomp.then(|| Need::DropIn.missing(settings)).flatten();
    drop_in
        .or_else(|| missing_file(&vswitchd, "OVS_TREE"))
        .or_else(|| missing_file(settings.plugin.as_deref()?, "E2E_PLUGIN"))
}

fn missing_file(file: &Path, what: &str) -> Option<String> {
    (!file.exists()).then(|| format!("{what}: no {}", file.display()))
}

fn missing_tools(tools: &[&str]) -> Option<String> {
    let missing: Vec<&str> = tools
        .iter()
        .copied()
        .filter(|tool| find_tool(tool).is_none())
        .collect();
    (!missing.is_empty()).then(|| format!("not installed: {}", missing.join(", ")))
}

/// Where a tool is, in PATH or the system directories that root's PATH may lack.
pub fn find_tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// A command line tool by its name.
pub fn tool(name: &str) -> Command {
    Command::new(find_tool(name).unwrap_or_else(|| name.into()))
}

/// Runs a short-lived tool and returns what it printed.
pub fn run_tool(name: &str, args: &[&str]) -> anyhow::Result<String> {
    let mut command = tool(name);
    command.args(args);
    process::run(command, Duration::from_secs(60))
}

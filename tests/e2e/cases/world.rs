//! What most cases stand on: a network namespace with the observer, a switch, vhost ports, guests on them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{anyhow, ensure, Context, Result};

use crate::hugepages::Hugepages;
use crate::image;
use crate::netns::{Family, NetNs};
use crate::ovs::{self, Ovs};
use crate::party::Party;
use crate::ping::Ping;
use crate::settings::Settings;
use crate::tcp::End;
use crate::testpmd::{Device, Rings, Testpmd};
use crate::vm::{Iommu, Life, Socket, Spec, Vm};

/// For anything that takes moments on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Rate of the pings by which an outage is measured.
pub const PING_INTERVAL: Duration = Duration::from_millis(20);

/// Lines that belong to the normal life of the ports, so no case lists them.
const ALWAYS_ALLOWED: &[&str] = &[
    // Once per process, kept from the stock ports.
    "dpdkvhostuser ports are considered deprecated",
    // EAL, about a machine that has hugepages of one size only, and about running in memory only.
    "No free 1048576 kB hugepages reported",
    "TELEMETRY: No legacy callbacks",
];

/// What the stock ports log when a peer goes away. For runs that have them.
pub const STOCK_ALLOWED: &[&str] = &[
    "VHOST_CONFIG: ",
    "Removing port '",
    "To restore connectivity after re-adding",
    // Stock does not replace a stale socket.
    "rte_vhost_driver_start failed",
    "could not open network device",
];

/// The two port types.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `dpdkvhostuser`: the switch listens.
    Server,
    /// `dpdkvhostuserclient`: the switch connects.
    Client,
}

/// A vhost port of the switch.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Its socket.
    pub socket: PathBuf,
}

impl Port {
    /// Arguments for ovs-vsctl that make this port's interface.
    pub fn vsctl_args(&self) -> String {
        let set = format!("set Interface {} type=", self.name);
        match self.kind {
            Kind::Server => format!("{set}dpdkvhostuser"),
            Kind::Client => format!(
                "{set}dpdkvhostuserclient options:vhost-server-path={}",
                self.socket.display()
            ),
        }
    }
}

impl Port {
    /// testpmd's end of it, with one queue pair.
    pub fn device(&self, rings: Rings) -> Device {
        Device {
            path: self.socket.clone(),
            listens: self.kind == Kind::Client,
            queues: 1,
            rings,
        }
    }
}

/// How a guest differs from the usual one.
#[derive(Clone, Copy)]
pub struct Guest {
    /// Number in the address plan.
    pub id: u8,
    /// Queue pairs.
    pub queues: u16,
    /// MTU.
    pub mtu: u16,
    /// Packed rings.
    pub packed: bool,
    /// Behind an IOMMU, with this policy.
    pub iommu: Option<Iommu>,
    /// What it speaks to others.
    pub family: Family,
    /// Further properties of its NIC, as QEMU takes them.
    pub nic: &'static str,
    /// Whether it can be moved.
    pub life: Life,
    /// Slots for memory that is plugged in later.
    pub dimms: u16,
}

impl Guest {
    /// One queue pair, MTU 1500.
    pub fn new(id: u8) -> Self {
        Guest {
            id,
            queues: 1,
            mtu: 1500,
            packed: false,
            iommu: None,
            family: Family::V4,
            nic: "",
            life: Life::Stays,
            dimms: 0,
        }
    }
}

/// The world of one case. The guests are the case's own; what is here goes away after them.
pub struct World {
    /// The switch.
    pub ovs: Ovs,
    /// Where files of this case go.
    pub dir: PathBuf,
    /// The switch's network namespace, with the observer in it.
    pub ns: NetNs,
    stock: bool,
    dpdk: bool,
    root: PathBuf,
    _hugepages: Option<Hugepages>,
}

impl World {
    /// The usual switch: with DPDK if `dpdk`, and always with it on stock, which has no vhost ports otherwise.
    pub fn new(settings: &Settings, dir: &Path, dpdk: bool) -> Result<Self> {
        let dpdk = dpdk || settings.stock();
        Self::with(settings, dir, options(settings, dpdk), dpdk)
    }

    /// A switch of the caller's choice; `hugepages` even if it does not begin with DPDK.
    pub fn with(settings: &Settings, dir: &Path, options: ovs::Options, hugepages: bool) -> Result<Self> {
        Self::make(settings, dir, options, hugepages, NetNs::create, Ovs::start)
    }

    /// The same without the observer: for a switch that may not look into the system's interfaces.
    pub fn unobserved(settings: &Settings, dir: &Path, options: ovs::Options) -> Result<Self> {
        let hugepages = options.dpdk;
        Self::make(settings, dir, options, hugepages, NetNs::bare, Ovs::start_alone)
    }

    fn make(
        settings: &Settings,
        dir: &Path,
        options: ovs::Options,
        hugepages: bool,
        ns: fn() -> Result<NetNs>,
        start: fn(ovs::Options, &Path, &NetNs) -> Result<Ovs>,
    ) -> Result<Self> {
        let hugepages = hugepages.then(Hugepages::take).transpose()?;
        let ns = ns()?;
        let (stock, dpdk) = (options.plugin.is_none(), options.dpdk);
        let ovs = start(options, &dir.join("run"), &ns)?;
        Ok(World {
            ovs,
            dir: dir.into(),
            ns,
            stock,
            dpdk,
            root: settings.root.clone(),
            _hugepages: hugepages,
        })
    }

    /// Whether the stock ports are tested.
    pub fn stock(&self) -> bool {
        self.stock
    }

    /// Where a port of this name and kind has its socket.
    pub fn port(&self, kind: Kind, name: &str) -> Port {
        let socket = match kind {
            Kind::Server => self.ovs.dir().join(name),
            Kind::Client => self.dir.join(format!("{name}.sock")),
        };
        Port {
            name: name.into(),
            kind,
            socket,
        }
    }

    /// Adds a port to br0 and waits until the switch has it.
    pub fn add_port(&self, kind: Kind, name: &str) -> Result<Port> {
        let port = self.port(kind, name);
        self.ovs
            .vsctl(&format!("add-port br0 {name} -- {}", port.vsctl_args()))?;
        Ok(port)
    }

    /// Two ports for testpmd's two devices. It forwards on core 1: on the same core, both would only wait for their turn.
    pub fn testpmd_ports(&self, kind: Kind) -> Result<[Port; 2]> {
        let ports = self.many_testpmd_ports(kind, 2)?;
        ports.try_into().map_err(|_| anyhow!("not two ports"))
    }

    /// `count` of them.
    pub fn many_testpmd_ports(&self, kind: Kind, count: usize) -> Result<Vec<Port>> {
        self.ovs
            .vsctl("set Open_vSwitch . other_config:pmd-cpu-mask=0x1")?;
        (1..=count)
            .map(|number| self.add_port(kind, &format!("vhost{number}")))
            .collect()
    }

    /// Starts testpmd on the ports, and waits until each has its guest.
    pub fn start_testpmd(&self, ports: &[Port], rings: Rings) -> Result<Testpmd> {
        let devices: Vec<Device> = ports.iter().map(|port| port.device(rings)).collect();
        let testpmd = Testpmd::start(&devices, &self.dir)?;
        for port in ports {
            self.ovs.wait_link(&port.name, true, PATIENCE)?;
        }
        Ok(testpmd)
    }

    /// Has the switch send what comes from a port to the one beside it, and nothing anywhere else: the first and the
    /// second exchange packets, the third and the fourth, and so on.
    pub fn cross_connect(&self, ports: &[Port]) -> Result<()> {
        self.ovs.ofctl("del-flows br0")?;
        ports.chunks_exact(2).try_for_each(|pair| self.connect(pair))
    }

    /// Has the switch send what comes from one of two ports to the other, whatever it does with the rest.
    pub fn connect(&self, pair: &[Port]) -> Result<()> {
        for (from, to) in pair.iter().zip(pair.iter().rev()) {
            let (from, to) = (&from.name, &to.name);
            self.ovs.ofctl(&format!(
                "add-flow br0 priority=100,in_port={from},actions=output:{to}"
            ))?;
        }
        Ok(())
    }

    /// Holds if a connected port negotiated packed rings, and rings in order, exactly if it should have.
    pub fn check_rings(&self, port: &Port, packed: bool, in_order: bool) -> Result<()> {
        let bits = self.features(port)?;
        let negotiated = |bit: u32| bits >> bit & 1 == 1;
        ensure!(
            negotiated(34) == packed && negotiated(35) == in_order,
            "{}: features {bits:#x}",
            port.name
        );
        Ok(())
    }

    /// What the guest has negotiated.
    pub fn features(&self, port: &Port) -> Result<u64> {
        // The guest may be up before the switch has told the database of it.
        let what = format!("features in the status of {}", port.name);
        let features = crate::wait::until(&what, PATIENCE, || {
            Ok(self.ovs.status(&port.name)?.get("features").cloned())
        })?;
        Ok(u64::from_str_radix(features.trim_start_matches("0x"), 16)?)
    }

    /// One end of an account of traffic: a port, and who is on it.
    pub fn end<'a>(&'a self, party: &'a dyn Party, port: &'a str) -> End<'a> {
        End {
            ovs: &self.ovs,
            port,
            party: Some(party),
            underlay: None,
            leaks: false,
        }
    }

    /// Starts a guest on `port`.
    pub fn start_guest(&self, port: &Port, guest: Guest) -> Result<Vm> {
        self.start_spec(self.spec(port, guest))
    }

    /// How a guest on `port` is made.
    pub fn spec(&self, port: &Port, guest: Guest) -> Spec {
        Spec {
            name: format!("guest{}", guest.id),
            id: guest.id,
            path: port.socket.clone(),
            socket: if port.kind == Kind::Server {
                Socket::Connect
            } else {
                Socket::Listen
            },
            queues: guest.queues,
            mtu: guest.mtu,
            packed: guest.packed,
            iommu: guest.iommu,
            family: guest.family,
            nic: guest.nic,
            life: guest.life,
            dimms: guest.dimms,
        }
    }

    /// Starts a guest as an earlier one was made.
    pub fn start_spec(&self, spec: Spec) -> Result<Vm> {
        let image = image::build(&self.root, |text| eprintln!("  {text}")).context("guest image")?;
        Vm::start(spec, &image, &self.dir)
    }

    /// Adds ports of the given kinds with a guest on each, and waits until all have booted.
    pub fn boot(&self, kinds: &[Kind], shape: Guest) -> Result<(Vec<Port>, Vec<Vm>)> {
        let (mut ports, mut vms) = (Vec::new(), Vec::new());
        for (index, kind) in (1..).zip(kinds) {
            let port = self.add_port(*kind, &format!("vhost{index}"))?;
            vms.push(self.start_guest(&port, Guest { id: index, ..shape })?);
            ports.push(port);
        }
        for vm in &mut vms {
            vm.wait_ready()?;
        }
        Ok((ports, vms))
    }

    /// `kill -9` of vswitchd. Stock refuses a server port whose socket was left like this, and its users remove it by
    /// hand; so does this, for stock only.
    pub fn kill_vswitchd(&mut self, ports: &[Port]) -> Result<()> {
        self.ovs.kill_9()?;
        for port in ports
            .iter()
            .filter(|port| self.stock && port.kind == Kind::Server)
        {
            std::fs::remove_file(&port.socket)?;
        }
        Ok(())
    }

    /// Ends the case: the switch is alive, its log is clean and, with the plugin, shows that the plugin served.
    pub fn finish(mut self, allowed: &[&str]) -> Result<()> {
        self.ovs.check_alive()?;
        self.check_log(allowed)
    }

    /// The log part of [`World::finish`].
    pub fn check_log(&self, allowed: &[&str]) -> Result<()> {
        let stock: &[&str] = if self.stock { STOCK_ALLOWED } else { &[] };
        self.ovs
            .assert_log_clean(&[ALWAYS_ALLOWED, stock, allowed].concat())?;
        if !self.stock {
            self.check_proof(PLUGIN_LOADED)?;
        }
        if !self.stock && self.dpdk {
            self.check_proof(STOCK_STEPS_BACK)?;
        }
        Ok(())
    }

    fn check_proof(&self, text: &str) -> Result<()> {
        let proven = self.ovs.log_since(0).iter().any(|line| line.text.contains(text));
        ensure!(
            proven,
            "no log line \"{text}\" proves that the plugin serves the ports"
        );
        Ok(())
    }
}

/// The loader tells that it has loaded the plugin; without DPDK nobody else provides the two types.
pub const PLUGIN_LOADED: &str = "loaded netdev plugin";
/// With DPDK the stock provider tells that it leaves the two types to the plugin.
const STOCK_STEPS_BACK: &str = "dpdkvhostuserclient ports are provided by a plugin";

/// The usual options of the switch.
pub fn options(settings: &Settings, dpdk: bool) -> ovs::Options {
    ovs::Options {
        tree: settings.ovs_tree.clone(),
        plugin: settings.plugin.clone(),
        dpdk,
        tso: false,
        other_config: Vec::new(),
        arguments: Vec::new(),
        environment: Vec::new(),
        valgrind: false,
        obey_permissions: false,
        seccomp: settings.seccomp,
        user: None,
        systemd: false,
        mounts: None,
    }
}

/// Pings `to` once and again until it answers, in the family of `from`.
pub fn wait_reachable(from: &Vm, to: u8) -> Result<()> {
    let command = format!("/opt/ping -n -c 1 -W 1 {}", from.spec.family.address(to));
    crate::wait::until_true(&format!("{} to reach {to}", from.spec.name), PATIENCE, || {
        Ok(from.run_within(&command, PATIENCE)?.0 == 0)
    })
}

/// Pings `to` for `count` replies and fails if one is lost.
pub fn ping_all(from: &Vm, to: u8, count: u64) -> Result<()> {
    wait_reachable(from, to)?;
    let ping = Ping::start(from, to, PING_INTERVAL)?;
    ping.wait_more(count, PATIENCE)?;
    let report = ping.stop()?;
    ensure!(
        report.lost() == 0,
        "{} pings lost, {} answered",
        report.lost(),
        report.received()
    );
    Ok(())
}

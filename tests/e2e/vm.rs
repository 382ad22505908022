//! A QEMU guest with one virtio NIC on one vhost-user socket, and a shell in it.

use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{bail, Context, Result};

use crate::image::Image;
use crate::netns::{mac, Family};
use crate::process::Process;
use crate::qmp::Qmp;
use crate::settings::tool;
use crate::shell::{Shell, COMMAND};
use crate::wait;

/// Which end of the vhost-user socket QEMU is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Socket {
    /// QEMU listens: the peer of a dpdkvhostuserclient port.
    Listen,
    /// QEMU connects, and again one second after it lost the connection: the peer of a dpdkvhostuser port.
    Connect,
}

/// How a guest is made.
#[derive(Clone)]
pub struct Spec {
    /// Name, for files and messages.
    pub name: String,
    /// Number in the address plan.
    pub id: u8,
    /// The vhost-user socket.
    pub path: PathBuf,
    /// Which end of it QEMU is.
    pub socket: Socket,
    /// Queue pairs (and processors, as far as there are enough to emulate them in time).
    pub queues: u16,
    /// MTU that the device tells the guest, and that the guest sets.
    pub mtu: u16,
    /// Packed rings.
    pub packed: bool,
    /// Further properties of the NIC.
    pub nic: &'static str,
    /// Slots for memory that is plugged in later, of [`DIMM`] bytes each.
    pub dimms: u16,
    /// How it starts, and whether it can be moved.
    pub life: Life,
    /// The NIC is behind an IOMMU, if the guest has a policy for one.
    pub iommu: Option<Iommu>,
    /// What it speaks to others; without IPv6 it says nothing that was not asked for.
    pub family: Family,
}

/// When a guest with an IOMMU takes back what it no longer lets the NIC reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Iommu {
    /// At once, with every buffer.
    Strict,
    /// Many buffers at a time and a little later: Linux's default.
    Lazy,
}

/// How a guest comes to life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// It boots, and stays where it is.
    Stays,
    /// It boots, and can be moved.
    Moves,
    /// It comes from another QEMU process, and can be moved on. It runs at once, or only when told to.
    Comes {
        /// Whether it runs without being told.
        runs: bool,
    },
}

/// With many more than the host has, the guest's kernel finds them stuck while it boots.
const MAX_PROCESSORS: u16 = 2;
/// Bytes of a memory module: what the guest's kernel takes into use at once.
pub const DIMM: u64 = 128 << 20;
/// Bytes of memory that the guest begins with.
pub const MEMORY: u64 = 256 << 20;

/// A running guest.
pub struct Vm {
    /// How it was made.
    pub spec: Spec,
    qemu: Process,
    shell: Shell,
    ctl: PathBuf,
    qmp: PathBuf,
}

impl Vm {
    /// Starts QEMU. It waits for the other end of the vhost-user socket before the guest runs.
    pub fn start(spec: Spec, image: &Image, dir: &Path) -> Result<Self> {
        let console = dir.join(format!("{}.console", spec.name));
        let ctl = dir.join(format!("{}.ctl", spec.name));
        let qmp = dir.join(format!("{}.qmp", spec.name));
        // A predecessor that was killed leaves its sockets; QEMU would replace them, but connecting must not find them.
        for socket in [&ctl, &qmp] {
            let _ = std::fs::remove_file(socket);
        }
        let mut command = qemu_command(&spec, image, &console, &ctl);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())]);
        command.args(spec.life.qemu_args());
        let mut qemu = Process::spawn(&spec.name, command, &dir.join(format!("{}.out", spec.name)))?;
        let stream = wait::until("QEMU's control socket", COMMAND, || {
            qemu.check_alive()?;
            Ok(UnixStream::connect(&ctl).ok())
        })?;
        Ok(Vm {
            shell: Shell::new(&spec.name, stream, &console)?,
            spec,
            qemu,
            ctl,
            qmp,
        })
    }

    /// QEMU's control socket; one connection at a time.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.qmp).with_context(|| self.spec.name.clone())
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// Waits until QEMU has ended by itself, as it does when told to quit.
    pub fn wait_end(mut self, limit: Duration) -> Result<()> {
        let status = self.qemu.wait(limit)?;
        if !status.success() {
            bail!("{}: QEMU: {status}: {}", self.spec.name, self.qemu.printed());
        }
        Ok(())
    }

    /// The command channel's socket.
    pub fn channel_path(&self) -> &Path {
        &self.ctl
    }

    /// `kill -9` of QEMU, as a crash would end it.
    pub fn kill_9(self) -> Result<Spec> {
        self.qemu.kill_9()?;
        Ok(self.spec)
    }
}

impl Deref for Vm {
    type Target = Shell;

    fn deref(&self) -> &Shell {
        &self.shell
    }
}

impl DerefMut for Vm {
    fn deref_mut(&mut self) -> &mut Shell {
        &mut self.shell
    }
}

impl Life {
    /// QEMU 7.2 under TCG gives the destination a corrupted guest unless all processors share one thread.
    fn qemu_args(self) -> &'static [&'static str] {
        match self {
            Life::Stays => &["-accel", "tcg"],
            Life::Moves => &["-accel", "tcg,thread=single"],
            Life::Comes { runs: true } => &["-accel", "tcg,thread=single", "-incoming", "defer"],
            Life::Comes { runs: false } => &["-accel", "tcg,thread=single", "-incoming", "defer", "-S"],
        }
    }
}

/// `vectors=0`: QEMU 7.2 under TCG crashes in its guest notifier code (MSI-X) when a vhost-user device starts. The
/// guest then has one ordinary interrupt line for all queues, which is slower and otherwise the same; more than one
/// queue pair works with it.
fn qemu_command(spec: &Spec, image: &Image, console: &Path, ctl: &Path) -> Command {
    let socket = match spec.socket {
        Socket::Listen => "server=on,wait=on",
        Socket::Connect => "reconnect=1",
    };
    let multiqueue = if spec.queues > 1 { ",mq=on" } else { "" };
    let host_mtu = if spec.mtu == 1500 {
        String::new()
    } else {
        format!(",host_mtu={}", spec.mtu)
    };
    // `nopt`: or Linux gives the NIC's domain no page tables. `no_timer_check`: on a busy machine q35's timer interrupt
    // comes too late for Linux under TCG, which then panics.
    let guest_iommu = match spec.iommu {
        Some(Iommu::Strict) => " no_timer_check intel_iommu=on iommu=nopt iommu.strict=1",
        Some(Iommu::Lazy) => " no_timer_check intel_iommu=on iommu=nopt iommu.strict=0",
        None => "",
    };
    let comma = if spec.nic.is_empty() { "" } else { "," };
    let append = kernel_arguments(spec.id, spec.mtu, spec.family) + guest_iommu;
    let mut command = tool("qemu-system-x86_64");
    if spec.iommu.is_some() {
        // Before the NIC, which else would not be behind it. And the NIC behind a port: on the root bus it is no PCI
        // Express device and has no ATS, without which QEMU does not tell all that a lazy guest unmaps.
        command
            .args(["-machine", "q35"])
            .args(["-device", "intel-iommu,intremap=off,device-iotlb=on"])
            .args(["-device", "pcie-root-port,id=pcie1"]);
    }
    let nic_iommu = if spec.iommu.is_some() {
        ",bus=pcie1,iommu_platform=on,ats=on,disable-legacy=on"
    } else {
        ""
    };
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-m", &memory(spec)])
        .args(["-smp", &spec.queues.min(MAX_PROCESSORS).to_string()])
        .args([
            "-object",
            &format!("memory-backend-memfd,id=mem,size={MEMORY},share=on"),
            "-numa",
            "node,memdev=mem",
        ])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initramfs)
        .args(["-append", &append])
        .args([
            "-chardev",
            &format!("file,id=con,path={},append=on", console.display()),
            "-serial",
            "chardev:con",
        ])
        .args([
            "-chardev",
            &format!("socket,id=ctl,path={},server=on,wait=off", ctl.display()),
        ])
        .args(["-serial", "chardev:ctl"])
        .args([
            "-chardev",
            &format!("socket,id=vhost,path={},{socket}", spec.path.display()),
        ])
        .args([
            "-netdev",
            &format!("vhost-user,id=net,chardev=vhost,queues={}", spec.queues),
        ])
        .args([
            "-device",
            &format!(
                "virtio-net-pci,netdev=net,mac={},vectors=0,packed={}{multiqueue}{host_mtu}{nic_iommu}{comma}{}",
                mac(spec.id),
                if spec.packed { "on" } else { "off" },
                spec.nic
            ),
        ]);
    command
}

/// What a guest's kernel is told, and through it `guest-init.sh`.
pub fn kernel_arguments(id: u8, mtu: u16, family: Family) -> String {
    let family = match family {
        Family::V4 => "ipv6.disable=1",
        Family::V6 => "e2e.ipv6",
    };
    format!("console=ttyS0 quiet panic=1 {family} e2e.id={id} e2e.mtu={mtu}")
}

fn memory(spec: &Spec) -> String {
    match u64::from(spec.dimms) {
        0 => format!("{MEMORY}B"),
        slots => format!("{MEMORY}B,slots={slots},maxmem={}B", MEMORY + slots * DIMM),
    }
}

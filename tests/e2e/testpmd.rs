//! dpdk-testpmd as the peer of vhost ports: one virtio-user device per port, driven through its prompt.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::Process;
use crate::settings::{find_tool, tool};
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(60);
const PROMPT: &str = "testpmd> ";

/// One virtio-user device.
pub struct Device {
    /// The socket.
    pub path: PathBuf,
    /// testpmd listens: the peer of a dpdkvhostuserclient port.
    pub listens: bool,
    /// Queue pairs.
    pub queues: u16,
    /// What it negotiates.
    pub rings: Rings,
}

/// The rings that a virtio-user device asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rings {
    /// Receive buffers that may be merged.
    pub mergeable: bool,
    /// Packed rings, not split ones.
    pub packed: bool,
    /// VIRTIO_F_IN_ORDER.
    pub in_order: bool,
}

impl Rings {
    pub const PLAIN: Rings = Rings {
        mergeable: false,
        packed: false,
        in_order: false,
    };
    pub const MERGEABLE: Rings = Rings {
        mergeable: true,
        ..Rings::PLAIN
    };
    pub const PACKED: Rings = Rings {
        packed: true,
        ..Rings::PLAIN
    };
    pub const PACKED_MERGEABLE: Rings = Rings {
        packed: true,
        ..Rings::MERGEABLE
    };
}

/// What fits into its rings.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Descriptors of each.
    pub ring: u16,
    pub mtu: u16,
}

/// virtio-user's own.
pub const USUAL: Capacity = Capacity { ring: 256, mtu: 1500 };
/// Bytes of a frame on a wire beside what the MTU counts: Ethernet's header and check sequence, a VLAN tag.
const AROUND: u16 = 22;

/// Counters of one testpmd port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets received.
    pub rx: u64,
    /// Packets lost or refused on receive.
    pub rx_lost: u64,
    /// Packets sent.
    pub tx: u64,
}

/// A running testpmd.
pub struct Testpmd {
    process: Process,
    stdin: ChildStdin,
}

impl Testpmd {
    /// Starts it and waits for its prompt; devices that listen wait for their port to connect.
    pub fn start(devices: &[Device], dir: &Path) -> Result<Self> {
        Self::start_with(devices, USUAL, dir)
    }

    /// The same, of another size.
    pub fn start_with(devices: &[Device], capacity: Capacity, dir: &Path) -> Result<Self> {
        // Into a file it would print in blocks of 4 KiB; stdbuf (which execs it, so the pid stays) makes it lines.
        let mut command = tool("stdbuf");
        command
            .arg("-oL")
            .arg(find_tool("dpdk-testpmd").context("no dpdk-testpmd")?);
        // --in-memory: hugepages are memfds, whose descriptors virtio-user hands to the switch; no files are left.
        command
            .args([
                "--lcores",
                "0@0,1@1",
                "--no-pci",
                "--in-memory",
                "--single-file-segments",
                "--socket-mem=512",
            ])
            .args(
                devices
                    .iter()
                    .enumerate()
                    .map(|(index, device)| device.argument(index, capacity.ring)),
            )
            .args(["--", "-i", "--forward-mode=io"]);
        let queues = devices.iter().map(|device| device.queues).max().unwrap_or(1);
        command.args([format!("--rxq={queues}"), format!("--txq={queues}")]);
        if capacity.mtu > USUAL.mtu {
            command.arg(format!("--max-pkt-len={}", capacity.mtu + AROUND));
            // Frames of several buffers, both ways (RTE_ETH_TX_OFFLOAD_MULTI_SEGS).
            command.args(["--enable-scatter", "--tx-offloads=0x8000"]);
        }
        let (process, stdin) = Process::spawn_piped("dpdk-testpmd", command, &dir.join("testpmd.out"))?;
        let mut testpmd = Testpmd { process, stdin };
        testpmd.wait_printed(0, PROMPT)?;
        Ok(testpmd)
    }

    /// Gives a command and returns what it printed, which must come to contain `end`.
    pub fn command(&mut self, command: &str, end: &str) -> Result<String> {
        let from = self.process.printed().len();
        writeln!(self.stdin, "{command}")?;
        self.wait_printed(from, end)
            .with_context(|| format!("testpmd: {command}"))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether it is still there.
    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.process.exited()?.is_none())
    }

    /// Counters of a port, as its driver keeps them.
    pub fn counters(&mut self, port: usize) -> Result<Counters> {
        let text = self.command(&format!("show port stats {port}"), "Tx-pps:")?;
        Ok(Counters {
            rx: field(&text, "RX-packets:")?,
            rx_lost: field(&text, "RX-missed:")? + field(&text, "RX-errors:")? + field(&text, "RX-nombuf:")?,
            tx: field(&text, "TX-packets:")?,
        })
    }

    fn wait_printed(&mut self, from: usize, end: &str) -> Result<String> {
        wait::until(&format!("testpmd to print {end:?}"), PATIENCE, || {
            self.process.check_alive()?;
            let text = self.process.printed().get(from..).unwrap_or_default().to_string();
            Ok(text.contains(end).then_some(text))
        })
    }
}

impl Device {
    fn argument(&self, index: usize, ring: u16) -> String {
        let server = if self.listens { ",server=1" } else { "" };
        let Rings {
            mergeable,
            packed,
            in_order,
        } = self.rings;
        let [mergeable, packed, in_order] = [mergeable, packed, in_order].map(u8::from);
        let (path, queues) = (self.path.display(), self.queues);
        // With more than one queue pair the driver says on the control queue how many it uses.
        let control = if queues > 1 { ",cq=1" } else { "" };
        format!(
            "--vdev=net_virtio_user{index},path={path}{server},queues={queues}{control},queue_size={ring},\
             mrg_rxbuf={mergeable},packed_vq={packed},in_order={in_order}"
        )
    }
}

/// The number after `name`.
pub fn field(text: &str, name: &str) -> Result<u64> {
    let (_, rest) = text
        .split_once(name)
        .with_context(|| format!("testpmd prints no {name}"))?;
    let number = rest.split_whitespace().next().context("no number")?;
    number.parse().with_context(|| format!("{name} {number}"))
}

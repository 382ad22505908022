//! A QEMU guest with one virtio NIC on one vhost-user socket, and a command channel to it.
//!
//! The channel is the guest's second serial port on a unix socket; `guest-init.sh` answers on it. It does not depend
//! on the network under test, and it survives a reboot of the guest.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{anyhow, bail, Context, Result};

use crate::image::Image;
use crate::netns::{mac, Family};
use crate::process::{tail, Process};
use crate::qmp::Qmp;
use crate::settings::tool;
use crate::wait;

/// Boot under TCG takes about 5 s on an idle machine; this is for a busy one.
const BOOT: Duration = Duration::from_secs(120);
/// For commands that answer at once.
pub const COMMAND: Duration = Duration::from_secs(30);

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
    channel: RefCell<Channel>,
    console: PathBuf,
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
            spec,
            qemu,
            channel: RefCell::new(Channel::new(stream)?),
            console,
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

    /// Waits until the guest has booted and serves commands.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = self.channel.get_mut().read_until("READY", BOOT);
        self.explain(ready.map(drop))
    }

    /// Runs a shell command in the guest: its exit status and output.
    pub fn run_within(&self, command: &str, limit: Duration) -> Result<(i32, String)> {
        let done = self.channel.borrow_mut().run(command, limit);
        self.explain(done)
            .with_context(|| format!("{}: {command}", self.spec.name))
    }

    /// Runs a shell command in the guest that must succeed: its output.
    pub fn run(&self, command: &str) -> Result<String> {
        let (status, output) = self.run_within(command, COMMAND)?;
        if status != 0 {
            bail!(
                "{}: {command}: exit status {status}: {}",
                self.spec.name,
                output.trim()
            );
        }
        Ok(output)
    }

    /// Starts a command (without single quotes) in the guest's background.
    pub fn spawn(&self, name: &str, command: &str) -> Result<Job<'_>> {
        let file = format!("/tmp/{name}");
        self.run(&format!(
            "rm -f {file}.*; (sh -c 'echo $$ >{file}.pid; exec {command}' >{file}.out 2>&1; \
             echo $? >{file}.new; mv {file}.new {file}.rc) >/dev/null 2>&1 &"
        ))?;
        Ok(Job { vm: self, file })
    }

    /// A command that was started in the guest's background before, perhaps in another QEMU process.
    pub fn job(&self, name: &str) -> Job<'_> {
        Job {
            vm: self,
            file: format!("/tmp/{name}"),
        }
    }

    /// Reboots the guest from inside and waits until it is back.
    pub fn reboot(&mut self) -> Result<()> {
        self.channel.get_mut().send("0", "reboot -f")?;
        self.wait_ready()
    }

    /// A number under /sys/class/net/eth0/statistics.
    pub fn nic_counter(&self, name: &str) -> Result<u64> {
        let text = self.run(&format!("cat /sys/class/net/eth0/statistics/{name}"))?;
        text.trim()
            .parse()
            .with_context(|| format!("counter {name}: {text}"))
    }

    /// Seconds to add to the guest's clock to get the host's: the best of a few tries, good to half a round trip of
    /// the command channel.
    pub fn clock_offset(&self) -> Result<f64> {
        let mut best: Option<(Duration, f64)> = None;
        for _ in 0..5 {
            let start = Instant::now();
            let before = host_time()?;
            let guest: f64 = self.run("/opt/date +%s.%N")?.trim().parse()?;
            let trip = start.elapsed();
            if best.is_none_or(|(shortest, _)| trip < shortest) {
                best = Some((trip, before + trip.as_secs_f64() / 2.0 - guest));
            }
        }
        best.map(|(_, offset)| offset).context("no try")
    }

    /// Lets go of the command channel, so that [`run_in`] can use it.
    pub fn hang_up(&self) -> Result<()> {
        Ok(self.channel.borrow().stream.shutdown(std::net::Shutdown::Both)?)
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

    fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            anyhow!(
                "{error:#}; console of {}:\n{}",
                self.spec.name,
                tail(&self.console, 5)
            )
        })
    }
}

/// The host's clock, seconds since the epoch.
pub fn host_time() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

/// Runs a shell command in the guest whose command channel is at `socket`.
pub fn run_in(socket: &Path, command: &str) -> Result<(i32, String)> {
    let stream = UnixStream::connect(socket).with_context(|| format!("no guest at {}", socket.display()))?;
    Channel::new(stream)?.run(command, COMMAND)
}

/// A command that runs in the guest's background.
pub struct Job<'vm> {
    vm: &'vm Vm,
    file: String,
}

impl Job<'_> {
    /// What it has printed, through a shell filter in the guest (`cat` for all of it).
    pub fn printed(&self, filter: &str) -> Result<String> {
        self.vm.run(&format!("{filter} <{}.out", self.file))
    }

    /// Waits for its end: the exit status.
    pub fn wait(&self, limit: Duration) -> Result<i32> {
        let what = format!("{} in {}", self.file, self.vm.spec.name);
        wait::until(&what, limit, || {
            let (_, text) = self
                .vm
                .run_within(&format!("cat {}.rc 2>/dev/null", self.file), COMMAND)?;
            Ok(text.trim().parse().ok())
        })
    }

    /// Ends it for good.
    pub fn kill(&self) -> Result<()> {
        self.vm
            .run(&format!("kill -9 $(cat {}.pid)", self.file))
            .map(drop)
    }

    /// Sends SIGINT (programs that end well on Ctrl-C only: the shell starts background jobs with it ignored).
    pub fn interrupt(&self) -> Result<()> {
        self.vm
            .run(&format!("kill -INT $(cat {}.pid)", self.file))
            .map(drop)
    }
}

/// The host's end of the serial line.
struct Channel {
    stream: UnixStream,
    pending: Vec<u8>,
    last_request: u32,
}

impl Channel {
    fn new(stream: UnixStream) -> Result<Self> {
        // Short, so that an interrupt is noticed; the deadlines are the callers'.
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Channel {
            stream,
            pending: Vec::new(),
            last_request: 0,
        })
    }

    fn run(&mut self, command: &str, limit: Duration) -> Result<(i32, String)> {
        self.last_request += 1;
        let request = self.last_request.to_string();
        self.send(&request, command)?;
        let lines = self.read_until(&format!(">{request}"), limit)?;
        let head = format!("<{request} ");
        let start = lines
            .iter()
            .position(|line| line.starts_with(&head))
            .context("garbled answer")?;
        let status = lines[start][head.len()..]
            .parse()
            .context("garbled exit status")?;
        let output = base64_decode(&lines[start + 1..lines.len() - 1].concat())?;
        Ok((status, String::from_utf8_lossy(&output).into_owned()))
    }

    fn send(&mut self, request: &str, command: &str) -> Result<()> {
        let line = format!("{request} {}\n", base64_encode(command.as_bytes()));
        // The guest's tty keeps 4096 bytes; a longer line would be lost in part.
        if line.len() > 4000 {
            bail!("command too long for the serial line: {} bytes", line.len());
        }
        Ok(self.stream.write_all(line.as_bytes())?)
    }

    /// All lines up to and with the one that says `end`.
    fn read_until(&mut self, end: &str, limit: Duration) -> Result<Vec<String>> {
        let deadline = Instant::now() + limit;
        let mut lines = Vec::new();
        loop {
            while let Some(length) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=length).collect();
                lines.push(String::from_utf8_lossy(&line).trim().to_string());
                if lines.last().is_some_and(|line| line == end) {
                    return Ok(lines);
                }
            }
            wait::check_interrupt()?;
            if Instant::now() > deadline {
                bail!("waited {:.0} s for {end} on the serial line", limit.as_secs_f64());
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("QEMU closed the serial line"),
                Ok(length) => self.pending.extend_from_slice(&chunk[..length]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
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
    let family = match spec.family {
        Family::V4 => "ipv6.disable=1",
        Family::V6 => "e2e.ipv6",
    };
    let comma = if spec.nic.is_empty() { "" } else { "," };
    let append = format!(
        "console=ttyS0 quiet panic=1 {family} e2e.id={} e2e.mtu={}{guest_iommu}",
        spec.id, spec.mtu
    );
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

fn memory(spec: &Spec) -> String {
    match u64::from(spec.dimms) {
        0 => format!("{MEMORY}B"),
        slots => format!("{MEMORY}B,slots={slots},maxmem={}B", MEMORY + slots * DIMM),
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64_encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = (word >> (18 - 6 * place) & 63) as usize;
            text.push(if place > chunk.len() {
                '='
            } else {
                char::from(ALPHABET[digit])
            });
        }
    }
    text
}

fn base64_decode(text: &str) -> Result<Vec<u8>> {
    let digits = text.bytes().filter(|byte| *byte != b'=');
    let (mut bytes, mut word, mut bits) = (Vec::new(), 0_u32, 0);
    for byte in digits {
        let digit = ALPHABET
            .iter()
            .position(|known| *known == byte)
            .context("garbled base64")?;
        word = word << 6 | u32::try_from(digit)?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((word >> bits & 255) as u8);
        }
    }
    Ok(bytes)
}

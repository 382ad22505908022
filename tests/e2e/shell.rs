//! A shell in a guest: the host's end of its second serial port, on a unix socket, which `guest-init.sh` answers. It does
//! not depend on the network under test, nor on who started QEMU, and it survives a reboot of the guest.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{anyhow, bail, Context, Result};

use crate::process::tail;
use crate::wait;

/// Boot under TCG takes about 5 s on an idle machine; this is for a busy one.
const BOOT: Duration = Duration::from_secs(120);
/// For commands that answer at once.
pub const COMMAND: Duration = Duration::from_secs(30);

/// The shell.
pub struct Shell {
    name: String,
    channel: RefCell<Channel>,
    console: PathBuf,
}

impl Shell {
    /// Over the serial line `stream` of the guest `name`; when it fails, the end of the file `console` tells more.
    pub fn new(name: &str, stream: UnixStream, console: &Path) -> Result<Self> {
        Ok(Shell {
            name: name.into(),
            channel: RefCell::new(Channel::new(stream)?),
            console: console.into(),
        })
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
            .with_context(|| format!("{}: {command}", self.name))
    }

    /// Runs a shell command in the guest that must succeed: its output.
    pub fn run(&self, command: &str) -> Result<String> {
        let (status, output) = self.run_within(command, COMMAND)?;
        if status != 0 {
            bail!(
                "{}: {command}: exit status {status}: {}",
                self.name,
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
        Ok(Job { shell: self, file })
    }

    /// A command that was started in the guest's background before, perhaps in another QEMU process.
    pub fn job(&self, name: &str) -> Job<'_> {
        Job {
            shell: self,
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

    fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| anyhow!("{error:#}; console of {}:\n{}", self.name, tail(&self.console, 5)))
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
pub struct Job<'guest> {
    shell: &'guest Shell,
    file: String,
}

impl Job<'_> {
    /// What it has printed, through a shell filter in the guest (`cat` for all of it).
    pub fn printed(&self, filter: &str) -> Result<String> {
        self.shell.run(&format!("{filter} <{}.out", self.file))
    }

    /// Waits for its end: the exit status.
    pub fn wait(&self, limit: Duration) -> Result<i32> {
        let what = format!("{} in {}", self.file, self.shell.name);
        wait::until(&what, limit, || {
            let (_, text) = self
                .shell
                .run_within(&format!("cat {}.rc 2>/dev/null", self.file), COMMAND)?;
            Ok(text.trim().parse().ok())
        })
    }

    /// Ends it for good.
    pub fn kill(&self) -> Result<()> {
        self.shell
            .run(&format!("kill -9 $(cat {}.pid)", self.file))
            .map(drop)
    }

    /// Sends SIGINT (programs that end well on Ctrl-C only: the shell starts background jobs with it ignored).
    pub fn interrupt(&self) -> Result<()> {
        self.shell
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

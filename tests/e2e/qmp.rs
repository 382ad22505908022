//! QEMU's control socket (QMP): a line of JSON for each command, answer and event.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use serde_json::{json, Value};

use crate::wait;

/// QEMU answers nothing until its back-ends are set up, for which a vhost-user socket has to have its other end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Something QEMU told by itself.
#[derive(Clone, Debug)]
pub struct Event {
    /// `STOP`, `RESUME`, ...
    pub name: String,
    /// When, in seconds of the host's clock.
    pub time: f64,
}

/// A connection to one QEMU.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// What has come of a line so far.
    partial: Vec<u8>,
    events: Vec<Event>,
}

impl Qmp {
    /// Connects and goes through the handshake.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = wait::until("QEMU's QMP socket", PATIENCE, || {
            Ok(UnixStream::connect(path).ok())
        })?;
        // Short, so that an interrupt is noticed.
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut qmp = Qmp {
            stream: BufReader::new(stream),
            partial: Vec::new(),
            events: Vec::new(),
        };
        let greeting = qmp.read(PATIENCE)?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU greets with {greeting}");
        }
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command: what it returns.
    ///
    /// # Errors
    /// QEMU's own words, if it refuses.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes())?;
        loop {
            let mut message = self.read(PATIENCE).with_context(|| command.to_string())?;
            if let Some(error) = message.get("error") {
                bail!("QEMU refuses {}: {}", line.trim(), error["desc"]);
            }
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            self.events.extend(event(&message));
        }
    }

    /// When the first event called `name` happened, if it has come already.
    pub fn event_time(&self, name: &str) -> Option<f64> {
        self.events
            .iter()
            .find(|event| event.name == name)
            .map(|event| event.time)
    }

    /// Waits for the first event called `name`.
    pub fn wait_event(&mut self, name: &str, limit: Duration) -> Result<f64> {
        loop {
            if let Some(time) = self.event_time(name) {
                return Ok(time);
            }
            let message = self.read(limit).with_context(|| format!("waiting for {name}"))?;
            self.events.extend(event(&message));
        }
    }

    /// The next message.
    fn read(&mut self, limit: Duration) -> Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            match self.stream.read_until(b'\n', &mut self.partial) {
                Ok(0) => bail!("QEMU closed its QMP socket"),
                Ok(_) if self.partial.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.partial);
                    return serde_json::from_slice(&line).context("garbled QMP");
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
            wait::check_interrupt()?;
            if Instant::now() > deadline {
                bail!("waited {:.0} s for an answer of QEMU", limit.as_secs_f64());
            }
        }
    }
}

fn event(message: &Value) -> Option<Event> {
    let stamp = message.get("timestamp")?;
    Some(Event {
        name: message.get("event")?.as_str()?.into(),
        time: stamp["seconds"].as_f64()? + stamp["microseconds"].as_f64()? / 1e6,
    })
}

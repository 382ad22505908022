//! tshark as the judge of captures: what it makes of a file.

use std::path::Path;

use anyhow::{ensure, Context, Result};

use crate::settings::run_tool;

/// [`Frame::direction`]: into the switch.
pub const INBOUND: u32 = 1;
/// [`Frame::direction`]: out of it.
pub const OUTBOUND: u32 = 2;

/// A frame of a capture, as tshark dissects it.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The interface's name.
    pub interface: String,
    /// Which way it went.
    pub direction: u32,
    /// The interface's queue.
    pub queue: u32,
    /// Bytes it had, and bytes of it that were kept.
    pub lens: [u32; 2],
    /// Since 1970.
    pub seconds: f64,
    /// IPv4 source, and UDP destination; empty where it has none.
    pub source: String,
    pub port: String,
    /// What is said of it.
    pub comment: String,
}

const FIELDS: [&str; 9] = [
    "frame.interface_name",
    "frame.packet_flags_direction",
    "frame.interface_queue",
    "frame.len",
    "frame.cap_len",
    "frame.time_epoch",
    "ip.src",
    "udp.dstport",
    "frame.comment",
];

/// All frames of a file, which tshark must find nothing wrong with.
pub fn frames(file: &Path) -> Result<Vec<Frame>> {
    let file = file.to_str().context("a path that is no text")?;
    let mut args = vec!["-n", "-r", file, "-T", "fields"];
    FIELDS.iter().for_each(|field| args.extend(["-e", field]));
    let text = run_tool("tshark", &args)?;
    text.lines().map(frame).collect()
}

fn frame(line: &str) -> Result<Frame> {
    let values: Vec<&str> = line.split('\t').collect();
    ensure!(values.len() == FIELDS.len(), "{line}");
    let number = |at: usize| -> Result<u32> {
        let text: &str = values[at];
        let parsed = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        parsed.with_context(|| format!("{} in {line}", FIELDS[at]))
    };
    Ok(Frame {
        interface: values[0].into(),
        direction: number(1)?,
        queue: number(2)?,
        lens: [number(3)?, number(4)?],
        seconds: values[5].parse().with_context(|| line.to_owned())?,
        source: values[6].into(),
        port: values[7].into(),
        comment: values[8].into(),
    })
}

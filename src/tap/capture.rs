//! A capture under way: what its threads share, and how poll threads give it frames.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;
use std::time::{Instant, SystemTime};

use serde_json::{json, Value};

use super::options::{Filter, Number, Wish};
use super::pcapng::{self, Packet};
use super::shards::Shards;
use super::{file, Seen};
use crate::datapath::{Direction, Offload};

const NUMBERS: &[Number] = &[
    // Of each frame.
    Number("snaplen", 16..=65_535, 65_535),
    // One frame of so many.
    Number("sample", 1..=1_000_000_000, 1),
    // Of the file.
    Number("packets", 1..=1_000_000_000_000, 1_000_000),
    Number("bytes", 4096..=1_000_000_000_000, 100_000_000),
    Number("seconds", 1..=86_400, 60),
];

/// Bytes that wait to be written, of all vrings together...
const ROOM: usize = 8 << 20;
/// ...but of each as many as this: several of the largest frames.
const LEAST_ROOM: usize = 256 << 10;

/// A capture, from its start until another follows it.
pub(super) struct Capture {
    pub(super) port: String,
    pub(super) path: PathBuf,
    wish: Wish,
    filter: Filter,
    snaplen: usize,
    sample: u64,
    /// Blocks of packets, until they are written.
    pub(super) buffers: Shards<Vec<u8>>,
    /// Frames that the filter lets pass, and of those that were to be taken those for which there was no room.
    passed: AtomicU64,
    lost: AtomicU64,
    /// Packets in the file, and its bytes. The writer counts.
    pub(super) written: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) start: Instant,
    pub(super) start_time: u64,
    /// Why, once it has.
    ended: OnceLock<String>,
}

impl Capture {
    /// A capture that nobody gives frames yet, and its file.
    pub(super) fn new(
        port: &str,
        vrings: usize,
        directory: &Path,
        words: &[&str],
    ) -> Result<(Capture, File), String> {
        let wish = Wish::parse(words, NUMBERS, true)?;
        let start_time = now();
        let usual = || file::usual_name(port, start_time / 1_000_000_000);
        let path = file::place(directory, &wish.file.clone().unwrap_or_else(usual))?;
        let file = file::create(&path)?;
        let capture = Capture {
            port: port.to_owned(),
            path,
            filter: wish.filter,
            snaplen: usize::try_from(wish.number("snaplen")).unwrap_or(usize::MAX),
            sample: wish.number("sample").max(1),
            wish,
            buffers: Shards::new(vrings, || buffer(vrings)),
            passed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            written: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            start: Instant::now(),
            start_time,
            ended: OnceLock::new(),
        };
        Ok((capture, file))
    }

    /// Takes copies of those frames of a burst that are wanted. Poll threads; never waits.
    pub(super) fn take<'f>(&self, seen: &Seen, frames: impl Iterator<Item = (&'f [u8], Offload)>) {
        if !self.filter.wants(seen.direction, seen.queue()) {
            return;
        }
        // Relaxed, here and below: numbers with no data behind them.
        let first = self.passed.fetch_add(seen.moved as u64, Ordering::Relaxed);
        let mut sampled = (first..)
            .zip(frames)
            .filter(|(number, _)| number % self.sample == 0);
        let Some((_, frame)) = sampled.next() else { return };
        let sampled = std::iter::once(frame).chain(sampled.map(|(_, frame)| frame));
        let lost = match self.buffers.try_at(seen.vring) {
            None => sampled.count(),
            Some(mut buffer) => {
                let time = now();
                let put = |(frame, offload)| {
                    let packet = Packet {
                        time,
                        direction: seen.direction,
                        queue: seen.queue().into(),
                        frame,
                        offload,
                    };
                    pcapng::packet(&mut buffer, self.snaplen, &packet)
                };
                sampled.map(put).filter(|fits| !fits).count()
            }
        };
        if lost > 0 {
            self.lost.fetch_add(lost as u64, Ordering::Relaxed);
        }
    }

    /// A limit, by its option.
    pub(super) fn limit(&self, name: &str) -> u64 {
        self.wish.number(name)
    }

    /// What the file begins with.
    pub(super) fn header(&self) -> Vec<u8> {
        let snaplen = u32::try_from(self.snaplen).unwrap_or(u32::MAX);
        pcapng::header(&self.port, snaplen)
    }

    /// What it ends with.
    pub(super) fn statistics(&self) -> Vec<u8> {
        let passed = self.passed.load(Ordering::Relaxed);
        pcapng::statistics(&pcapng::Statistics {
            start: self.start_time,
            end: now(),
            passed,
            sampled: passed.div_ceil(self.sample),
            lost: self.lost.load(Ordering::Relaxed),
            written: self.written.load(Ordering::Relaxed),
        })
    }

    /// Ends it, for this reason, and lets go of its memory.
    pub(super) fn end(&self, why: String) {
        self.buffers.iter().for_each(|buffer| *buffer.lock() = Vec::new());
        let _ = self.ended.set(why);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.get().is_some()
    }

    /// What is known of it.
    pub(super) fn tell(&self) -> Value {
        let number = |number: &AtomicU64| json!(number.load(Ordering::Relaxed));
        let state = [
            ("file", json!(self.path.display().to_string())),
            ("running", json!(!self.has_ended())),
            ("ended", json!(self.ended.get())),
            ("direction", json!(self.filter.direction.map_or("both", name))),
            ("queue", json!(self.filter.queue)),
        ];
        let limits = NUMBERS
            .iter()
            .map(|Number(name, ..)| (*name, json!(self.limit(name))));
        let counts = [
            ("passed", number(&self.passed)),
            ("lost", number(&self.lost)),
            ("written", number(&self.written)),
            ("file-bytes", number(&self.bytes)),
        ];
        state.into_iter().chain(limits).chain(counts).collect()
    }
}

/// A direction as options name it.
pub(super) fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Dequeue => "in",
        Direction::Enqueue => "out",
    }
}

/// Room for one of so many vrings. Each page of it is there: no poll thread shall be the first to touch one.
pub(super) fn buffer(vrings: usize) -> Vec<u8> {
    let room = (ROOM / vrings.max(1)).max(LEAST_ROOM);
    // Zeros would not be written.
    let mut buffer = vec![1; room];
    buffer.clear();
    buffer
}

/// Nanoseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

//! A capture's file, and the thread that writes it.
//!
//! It looks for frames every few milliseconds: to be woken for them would cost poll threads a system call.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use log::Level;

use super::capture::{buffer, Capture};
use super::pcapng::{self, STATISTICS_LEN};

/// How long frames wait at most for somebody to look.
const PAUSE: Duration = Duration::from_millis(5);
/// How long poll threads are waited for.
const PATIENCE: Duration = Duration::from_millis(20);

pub(super) struct Writer {
    capture: Arc<Capture>,
    out: BufWriter<File>,
    /// What poll threads get in exchange for what they filled.
    spares: Vec<Vec<u8>>,
    /// How much the file may still take.
    packets_left: u64,
    bytes_left: u64,
}

impl Writer {
    pub(super) fn new(capture: Arc<Capture>, file: File, vrings: usize) -> Writer {
        let spares = (0..capture.buffers.len()).map(|_| buffer(vrings)).collect();
        Writer {
            packets_left: capture.limit("packets"),
            // What a file ends with has its place from the beginning.
            bytes_left: capture.limit("bytes").saturating_sub(STATISTICS_LEN),
            capture,
            out: BufWriter::new(file),
            spares,
        }
    }

    /// Writes until a limit is met or `stop` is dropped. Calls `off` before the end, after which no poll thread gives it
    /// anything more.
    pub(super) fn run(mut self, stop: &Receiver<()>, off: impl FnOnce()) {
        let end = self.begin().and_then(|()| self.write_until_due(stop));
        off();
        let end = end.and_then(|why| self.finish().map(|()| why));
        let (level, why) = match end {
            Ok(why) => (Level::Info, why),
            Err(error) => (Level::Warn, format!("it cannot be written: {error}")),
        };
        let Capture { port, path, .. } = &*self.capture;
        let (path, written) = (path.display(), self.capture.written.load(Ordering::Relaxed));
        log::log!(
            level,
            "port '{port}': the capture into {path} has ended with {written} packets: {why}"
        );
        self.capture.end(why);
    }

    fn begin(&mut self) -> io::Result<()> {
        let header = self.capture.header();
        self.write(&header)?;
        self.out.flush()
    }

    /// Says why it is over.
    fn write_until_due(&mut self, stop: &Receiver<()>) -> io::Result<String> {
        let time = Duration::from_secs(self.capture.limit("seconds"));
        loop {
            match stop.recv_timeout(PAUSE) {
                Err(RecvTimeoutError::Timeout) if self.capture.start.elapsed() < time => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Ok(format!("its time of {} s is over", time.as_secs()))
                }
                _ => return Ok("it was stopped".into()),
            }
            self.exchange();
            if let Some(full) = self.drain()? {
                return Ok(full);
            }
        }
    }

    /// Takes what poll threads filled. A part that one of them is at is free again in a moment, and is asked for until then: a
    /// file with few packets would else have those of one direction only. If its thread has lost its core, it waits for the
    /// next time.
    pub(super) fn exchange(&mut self) {
        let until = Instant::now() + PATIENCE;
        for (part, spare) in self.capture.buffers.iter().zip(&mut self.spares) {
            let mut filled = part.try_lock();
            while filled.is_none() && Instant::now() < until {
                // To sleep on the lock would have the poll thread wake us.
                thread::yield_now();
                filled = part.try_lock();
            }
            if let Some(mut filled) = filled {
                std::mem::swap(&mut *filled, spare);
            }
        }
    }

    /// Writes what was taken, in the order of time, as far as the limits go; says which one it met.
    fn drain(&mut self) -> io::Result<Option<String>> {
        let mut spares = std::mem::take(&mut self.spares);
        let mut found: Vec<_> = spares.iter().flat_map(|filled| pcapng::packets(filled)).collect();
        found.sort_by_key(|(time, _)| *time);
        let mut full = None;
        for (_, block) in found {
            full = self.full(block.len());
            if full.is_some() {
                break;
            }
            self.write(block)?;
            self.packets_left -= 1;
            self.capture.written.fetch_add(1, Ordering::Relaxed);
        }
        spares.iter_mut().for_each(Vec::clear);
        self.spares = spares;
        self.out.flush()?;
        Ok(full.or_else(|| self.full(0)))
    }

    /// Which limit is in the way of a packet of `len` bytes; none that follows is written then.
    fn full(&mut self, len: usize) -> Option<String> {
        let limit = |name| self.capture.limit(name);
        if self.bytes_left < len as u64 {
            self.packets_left = 0;
            return Some(format!(
                "another packet would make it longer than {} bytes",
                limit("bytes")
            ));
        }
        (self.packets_left == 0).then(|| format!("it has {} packets", limit("packets")))
    }

    /// Writes what is left, as far as the limits go, and the end.
    fn finish(&mut self) -> io::Result<()> {
        self.exchange();
        self.drain()?;
        let statistics = self.capture.statistics();
        self.write(&statistics)?;
        self.out.flush()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        let len = bytes.len() as u64;
        self.bytes_left = self.bytes_left.saturating_sub(len);
        self.capture.bytes.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }
}

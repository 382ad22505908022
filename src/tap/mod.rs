//! Looking at the packets of one port while it runs: a capture into a pcapng file, and a log of its bursts.
//!
//! A poll thread looks at one mark of its queue after a burst, and does no more while nobody looks. Otherwise it hands the burst
//! to [`Looking::see`], which copies what is wanted into memory that was there before, and never waits: what finds no room, or
//! another thread in its way, is counted as lost. Frames are copied from packet memory, not from the guest's: what is captured is
//! what was switched. Bottom up:
//!
//! * `options`: what is asked for, and its limits; `file`: where captures may go.
//! * `pcapng`: blocks to bytes.
//! * `shards`: what poll threads write into.
//! * `capture`, `writer`: frames on their way into a file, as poll threads have them, and as the thread has them that writes.
//! * `trace`: the log of bursts.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod capture;
mod file;
mod options;
mod pcapng;
mod shards;
mod trace;
mod writer;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{bounded, Receiver, Sender};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use serde_json::Value;

use crate::datapath::{Direction, Offload, RingFault};
use capture::Capture;
use trace::Trace;
use writer::Writer;

/// How long who stops a capture waits for the rest of it to be written, before it is left to itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who looks at a port.
#[derive(Default)]
pub struct Tap {
    /// For poll threads, which only ever try.
    looking: RwLock<Looking>,
    /// The capture that runs or ran last. For main.
    capture: Mutex<Option<Work>>,
}

/// Who looks at a port just now.
#[derive(Default)]
pub struct Looking {
    capture: Option<Arc<Capture>>,
    trace: Option<Arc<Trace>>,
}

/// A capture, and the way to the thread that writes it.
struct Work {
    capture: Arc<Capture>,
    /// Dropped, it ends the capture.
    stop: Option<Sender<()>>,
    done: Receiver<()>,
}

/// A burst, as its port saw it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Index of the vring.
    pub vring: u16,
    /// Which way its frames went.
    pub direction: Direction,
    /// Frames there was room for, or that were to be sent.
    pub asked: usize,
    /// Frames that were moved.
    pub moved: usize,
}

impl Seen {
    fn queue(&self) -> u16 {
        self.vring / 2
    }
}

/// Where a ring stands after a burst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stand {
    /// The next index to take.
    pub next: Option<u16>,
    /// Buffers that wait in it.
    pub waiting: u32,
    /// Whether an address is not translated yet.
    pub missed: bool,
    /// Why it is broken.
    pub fault: Option<RingFault>,
}

/// As poll threads use it.
impl Looking {
    /// Whether there is nobody any more.
    pub fn is_nobody(&self) -> bool {
        self.capture.is_none() && self.trace.as_ref().is_none_or(|trace| trace.is_over())
    }

    /// Takes down what is wanted of a burst. `stand` says where its ring stands; it is asked only if that matters.
    pub fn see<'f>(
        &self,
        seen: &Seen,
        stand: impl FnOnce() -> Stand,
        frames: impl Iterator<Item = (&'f [u8], Offload)>,
    ) {
        if let Some(trace) = &self.trace {
            trace.note(seen, stand);
        }
        if let Some(capture) = self.capture.as_ref().filter(|_| seen.moved > 0) {
            capture.take(seen, frames);
        }
    }
}

impl Tap {
    /// Who looks; `None` while that changes. Never waits.
    pub fn looking(&self) -> Option<RwLockReadGuard<'_, Looking>> {
        self.looking.try_read()
    }

    /// Starts a capture of `port`, which has `vrings` of them, as `words` say; `watch` has bursts be seen from then on.
    ///
    /// # Errors
    ///
    /// What is wrong with the words, the file or the system; or one runs already.
    pub fn start_capture(
        self: &Arc<Self>,
        port: &str,
        vrings: usize,
        directory: &Path,
        words: &[&str],
        watch: impl FnOnce(),
    ) -> Result<(), String> {
        let mut work = self.capture.lock();
        if let Some(running) = work.as_ref().filter(|work| !work.capture.has_ended()) {
            let path = running.capture.path.display();
            return Err(format!("port '{port}' is being captured into {path}"));
        }
        let (capture, file) = Capture::new(port, vrings, directory, words)?;
        let (capture, (stop, stopped), (tell, done)) = (Arc::new(capture), bounded(0), bounded(1));
        let writer = Writer::new(Arc::clone(&capture), file, vrings);
        {
            let mut looking = self.looking.write();
            looking.capture = Some(Arc::clone(&capture));
            watch();
        }
        log::info!(
            "port '{port}': its packets are captured into {}",
            capture.path.display()
        );
        let tap = Arc::clone(self);
        let write = move || {
            writer.run(&stopped, || tap.looking.write().capture = None);
            // Nobody may wait for it.
            let _ = tell.send(());
        };
        let thread = std::thread::Builder::new().name("ovs-vhost-pcap".into());
        if let Err(error) = thread.spawn(write) {
            self.looking.write().capture = None;
            return Err(format!("no thread to write {}: {error}", capture.path.display()));
        }
        *work = Some(Work {
            capture,
            stop: Some(stop),
            done,
        });
        Ok(())
    }

    /// Stops the capture and waits a moment for its file to be whole.
    ///
    /// # Errors
    ///
    /// None runs.
    pub fn stop_capture(&self) -> Result<(), String> {
        let mut work = self.capture.lock();
        let running = work.as_mut().filter(|work| !work.capture.has_ended());
        let Some(Work { stop, done, .. }) = running else {
            return Err("it is not being captured".into());
        };
        *stop = None;
        let _ = done.recv_timeout(PATIENCE);
        Ok(())
    }

    /// Starts a log of bursts anew, as `words` say.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn start_trace(&self, vrings: usize, words: &[&str], watch: impl FnOnce()) -> Result<(), String> {
        let trace = Arc::new(Trace::new(vrings, words)?);
        let mut looking = self.looking.write();
        looking.trace = Some(trace);
        watch();
        Ok(())
    }

    /// Stops it, and forgets it. Says what was in it.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn stop_trace(&self) -> Result<Value, String> {
        let trace = self.looking.write().trace.take();
        trace
            .map(|trace| trace.tell(false))
            .ok_or_else(|| "its bursts are not traced".into())
    }

    /// What is known of the capture that runs or ran last.
    pub fn tell_capture(&self) -> Value {
        let work = self.capture.lock();
        work.as_ref().map_or(Value::Null, |work| work.capture.tell())
    }

    /// The log of bursts.
    pub fn tell_trace(&self) -> Value {
        let trace = self.looking.read().trace.clone();
        trace.map_or(Value::Null, |trace| trace.tell(true))
    }

    /// The port is gone: what runs ends by itself. Waits for nothing.
    pub fn close(&self) {
        if let Some(work) = self.capture.lock().as_mut() {
            work.stop = None;
        }
    }
}

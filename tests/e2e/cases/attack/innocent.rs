//! Two guests that have done nothing: one with split rings, one with packed ones, each sending the other numbered frames
//! through the poll thread that serves the attacker, too. There are never more frames under way than the receiver has
//! buffers for, so a frame that is lost was lost by the switch.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};
use ovs_vhost::model::{Driver, PackedDriver, Virtqueue};
use ovs_vhost::virtio::features::*;

use super::guest::{frame, number, Guest, BARE};
use crate::wire::Wire;

/// Entries of each ring.
const SIZE: u16 = 64;
/// Frames under way in one direction: less than a ring has buffers.
const WINDOW: u64 = 32;
/// For a frame to arrive, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// The other threads of this machine want to run, too.
const PAUSE: Duration = Duration::from_micros(100);

/// Traffic in a thread of its own.
pub struct Traffic {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    /// No more frames; what is under way may arrive.
    stop: AtomicBool,
    /// Nobody wants to know any more.
    abandoned: AtomicBool,
    /// Frames that arrived, in both directions.
    arrived: AtomicU64,
}

impl Traffic {
    /// Brings both up on these connections and has them talk.
    pub fn start(wires: [Wire; 2]) -> Result<Traffic> {
        Self::start_after(wires, || Ok(()))
    }

    /// The same, with nothing said between them before `settled`: a switch that still makes room for a port loses frames.
    pub fn start_after(mut wires: [Wire; 2], settled: impl FnOnce() -> Result<()>) -> Result<Traffic> {
        let split = Guest::<Driver>::new(SIZE, BARE.with(VIRTIO_NET_F_MRG_RXBUF));
        let packed = Guest::<PackedDriver>::new(SIZE, BARE.with(VIRTIO_F_RING_PACKED));
        split.come_up(&mut wires[0])?;
        packed.come_up(&mut wires[1])?;
        settled()?;
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("innocent".into())
            // The connections live as long as the thread.
            .spawn(move || talk(split, packed, &of_thread).map(|()| drop(wires)))?;
        Ok(Traffic {
            shared,
            thread: Some(thread),
        })
    }

    /// Waits for more frames to arrive; fails if the thread has found one to be missing.
    pub fn wait_more(&mut self, count: u64) -> Result<()> {
        let aim = self.arrived() + count;
        crate::wait::until_true("traffic of the innocent", PATIENCE, || {
            self.check()?;
            Ok(self.arrived() >= aim)
        })
    }

    /// Fails if the thread has given up.
    pub fn check(&mut self) -> Result<()> {
        match &self.thread {
            Some(thread) if !thread.is_finished() => Ok(()),
            _ => self.join().and(Err(anyhow!("the innocent have stopped"))),
        }
    }

    /// Frames that arrived so far.
    pub fn arrived(&self) -> u64 {
        self.shared.arrived.load(Ordering::Relaxed)
    }

    /// Lets what is under way arrive, and says how many frames did: all that were sent, once, in order and unaltered.
    pub fn finish(mut self) -> Result<u64> {
        self.join()?;
        Ok(self.arrived())
    }

    fn join(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result.context("of the innocent"),
            Some(Err(_)) => Err(anyhow!("a device broke the rules towards the innocent")),
        }
    }
}

impl Drop for Traffic {
    /// The switch may be gone already.
    fn drop(&mut self) {
        self.shared.abandoned.store(true, Ordering::Relaxed);
        let _ = self.join();
    }
}

/// One direction.
#[derive(Default)]
struct Lane {
    sent: u64,
    received: u64,
}

fn talk(mut a: Guest<Driver>, mut b: Guest<PackedDriver>, shared: &Shared) -> Result<()> {
    let (mut there, mut back) = (Lane::default(), Lane::default());
    a.supply();
    b.supply();
    greet(&mut a, &mut b)?;
    greet(&mut b, &mut a)?;
    let mut last = Instant::now();
    loop {
        let stop = shared.stop.load(Ordering::Relaxed);
        if !stop {
            there.send(&mut a);
            back.send(&mut b);
        }
        let arrived = there.receive(&mut b)? + back.receive(&mut a)?;
        if arrived > 0 {
            shared.arrived.fetch_add(arrived, Ordering::Relaxed);
            last = Instant::now();
        } else if stop && there.is_idle() && back.is_idle() {
            break;
        }
        if shared.abandoned.load(Ordering::Relaxed) {
            bail!("abandoned");
        }
        if last.elapsed() > PATIENCE {
            bail!(
                "frames {} and {} are missing",
                there.received + 1,
                back.received + 1
            );
        }
        std::thread::sleep(PAUSE);
    }
    a.check_canaries()?;
    b.check_canaries()
}

/// The number of frames that do not count: a port that has just come up may lose them.
const GREETING: u64 = 0;

/// Sends greetings until one arrives.
fn greet<A: Virtqueue, B: Virtqueue>(from: &mut Guest<A>, to: &mut Guest<B>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        from.send(&frame(GREETING));
        std::thread::sleep(Duration::from_millis(20));
        if to.receive()?.is_some() {
            return Ok(());
        }
    }
    bail!("no greeting arrived")
}

impl Lane {
    fn is_idle(&self) -> bool {
        self.sent == self.received
    }

    fn send<D: Virtqueue>(&mut self, from: &mut Guest<D>) {
        while self.sent - self.received < WINDOW && from.send(&frame(self.sent + 1)) {
            self.sent += 1;
        }
    }

    /// Takes what has come; each must be the one that is due.
    fn receive<D: Virtqueue>(&mut self, to: &mut Guest<D>) -> Result<u64> {
        let before = self.received;
        while let Some(received) = to.receive()? {
            if number(&received) == Some(GREETING) {
                continue;
            }
            let due = self.received + 1;
            ensure!(
                received == frame(due),
                "frame {due} was due, {:?} of {} bytes came",
                number(&received),
                received.len()
            );
            self.received = due;
        }
        to.supply();
        Ok(self.received - before)
    }
}

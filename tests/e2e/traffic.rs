//! Two quick guests that send each other numbered frames at a steady rate, in a thread of their own, and account for each of them.
//! There are never more under way than the receiver has buffers for, so a frame that is lost was lost by the switch.
//!
//! They look at the clock all the time, and so know when they did not get to run themselves: what they call a wait is a time
//! for which they were awake, had frames under way, and saw none arrive.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};

use crate::pvp::stay_beside_the_poll_thread;
use crate::quick_guest::{Guest, Ring};

/// Frames sent between two looks.
const BURST: u64 = 32;
/// Who has not looked for so long was asleep.
const ASLEEP: Duration = Duration::from_micros(200);
/// Ports that have just come up may lose frames for so long.
const UNSETTLED: Duration = Duration::from_millis(500);
/// Between two greetings.
const PAUSE: Duration = Duration::from_millis(20);
/// A frame that is under way for longer does not come any more.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which way the frames go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// From the first to the second.
    There,
    /// Either way.
    Both,
}

/// Traffic under way.
pub struct Traffic {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<[Guest; 2]>>>,
}

/// Relaxed, all of it: numbers that belong to nothing else.
struct Shared {
    stop: AtomicBool,
    /// Frames a second in each direction.
    rate: AtomicU64,
    /// Frames in both directions.
    arrived: AtomicU64,
    lost: AtomicU64,
    /// Nanoseconds that frames waited, at the longest, since this was last asked.
    wait: AtomicU64,
}

/// The number of frames that do not count.
const GREETING: u64 = 0;
/// More frames a second than guests can send.
const ALL_THEY_CAN: u64 = 1_000_000_000;

impl Traffic {
    /// Has guests that are up begin, and send all they can. Who else has something to do on their core goes first if they are
    /// `nice`.
    pub fn start(guests: [Guest; 2], ways: Ways, nice: i32) -> Result<Traffic> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            rate: AtomicU64::new(ALL_THEY_CAN),
            arrived: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            wait: AtomicU64::new(0),
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("traffic".into())
            .spawn(move || {
                stay_beside_the_poll_thread();
                rustix::process::nice(nice)?;
                let mut guests = guests;
                talk(&mut guests, ways, &of_thread)?;
                Ok(guests)
            })?;
        Ok(Traffic {
            shared,
            thread: Some(thread),
        })
    }

    /// From now on so many frames a second in each direction; what is due and not sent yet is forgotten.
    pub fn set_rate(&self, rate: u64) {
        self.shared.rate.store(rate, Ordering::Relaxed);
    }

    /// Frames that have arrived, in both directions.
    pub fn arrived(&self) -> u64 {
        self.shared.arrived.load(Ordering::Relaxed)
    }

    /// Frames that were sent and have not arrived though later ones have.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// How long frames waited at the longest, since this was last asked.
    pub fn take_wait(&self) -> Duration {
        Duration::from_nanos(self.shared.wait.swap(0, Ordering::Relaxed))
    }

    /// Fails if the guests have given up.
    pub fn check(&mut self) -> Result<()> {
        match &self.thread {
            Some(thread) if !thread.is_finished() => Ok(()),
            _ => self.join().and(Err(anyhow!("the guests have stopped"))),
        }
    }

    /// Lets what is under way arrive.
    pub fn finish(mut self) -> Result<[Guest; 2]> {
        self.join()
    }

    fn join(&mut self) -> Result<[Guest; 2]> {
        self.shared.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            None => bail!("the guests have gone"),
            Some(Ok(result)) => result.context("the guests beside"),
            Some(Err(_)) => Err(anyhow!("a device broke the rules towards the guests beside")),
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        let _ = self.join();
    }
}

fn talk([a, b]: &mut [Guest; 2], ways: Ways, shared: &Shared) -> Result<()> {
    let mut lanes = vec![Lane::new(&mut a.transmitq, &mut b.receiveq)];
    if ways == Ways::Both {
        lanes.push(Lane::new(&mut b.transmitq, &mut a.receiveq));
    }
    for lane in &mut lanes {
        lane.greet()?;
    }
    let mut last = Instant::now();
    lanes.iter_mut().for_each(|lane| lane.saw_one(last));
    let mut pace = Pace::default();
    loop {
        let now = Instant::now();
        let passed = now - std::mem::replace(&mut last, now);
        let awake = passed < ASLEEP;
        let stop = shared.stop.load(Ordering::Relaxed);
        let rate = shared.rate.load(Ordering::Relaxed);
        if stop || pace.rate != rate {
            pace = Pace { rate, rest: 0 };
            lanes.iter_mut().for_each(|lane| lane.due = lane.sent);
        }
        // Who sleeps sends nothing, and does not make up for it.
        let more = if awake && !stop { pace.frames(passed) } else { 0 };
        for lane in &mut lanes {
            let arrived = lane.step(more, now)?;
            shared.arrived.fetch_add(arrived, Ordering::Relaxed);
            let wait = u64::try_from(lane.wait(now, awake).as_nanos()).unwrap_or(u64::MAX);
            shared.wait.fetch_max(wait, Ordering::Relaxed);
        }
        let lost = lanes.iter().map(|lane| lane.lost).sum();
        shared.lost.store(lost, Ordering::Relaxed);
        if stop && lanes.iter().all(|lane| lane.under_way() == 0) {
            return Ok(());
        }
    }
}

/// How many frames are due as time goes by.
#[derive(Default)]
struct Pace {
    rate: u64,
    /// Billionths of a frame.
    rest: u64,
}

impl Pace {
    fn frames(&mut self, passed: Duration) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        let billionths = self.rest + self.rate * u64::from(passed.subsec_nanos());
        self.rest = billionths % SECOND;
        billionths / SECOND
    }
}

/// One direction. Frames are numbered from 1.
struct Lane<'a> {
    from: &'a mut Ring,
    to: &'a mut Ring,
    /// Numbers of the last frames that should have been sent, that was, and that arrived.
    due: u64,
    sent: u64,
    received: u64,
    lost: u64,
    /// When one arrived last, or nothing was under way.
    arrived: Instant,
    /// The same, or nobody was awake.
    content: Instant,
}

impl<'a> Lane<'a> {
    fn new(from: &'a mut Ring, to: &'a mut Ring) -> Lane<'a> {
        let now = Instant::now();
        Lane {
            from,
            to,
            due: 0,
            sent: 0,
            received: 0,
            lost: 0,
            arrived: now,
            content: now,
        }
    }

    /// Sends frames that do not count, for as long as some may get lost, and until one arrives.
    fn greet(&mut self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < UNSETTLED + PATIENCE {
            self.from.send(GREETING);
            self.from.publish();
            std::thread::sleep(PAUSE);
            let mut arrived = false;
            while self.to.receive()?.is_some() {
                arrived = true;
            }
            self.to.give_back();
            if arrived && start.elapsed() > UNSETTLED {
                return Ok(());
            }
        }
        bail!("no greeting arrived")
    }

    fn under_way(&self) -> u64 {
        self.sent - self.received
    }

    /// Sends what is due, `more` than before, and takes what has come: how many did.
    fn step(&mut self, more: u64, now: Instant) -> Result<u64> {
        self.due += more;
        let window = self.received + self.to.holds();
        let until = self.due.min(window).min(self.sent + BURST);
        while self.sent < until && self.from.send(self.sent + 1) {
            self.sent += 1;
        }
        self.from.publish();
        let before = self.received;
        while let Some(number) = self.to.receive()? {
            if number == GREETING {
                continue;
            }
            let awaited = self.received + 1..=self.sent;
            ensure!(
                awaited.contains(&number),
                "frame {number} came where {awaited:?} may"
            );
            self.lost += number - awaited.start();
            self.received = number;
        }
        self.to.give_back();
        if self.received > before || self.under_way() == 0 {
            self.saw_one(now);
        }
        ensure!(
            now.saturating_duration_since(self.arrived) < PATIENCE,
            "no frame after {} came, of those to {}",
            self.received,
            self.sent
        );
        Ok(self.received - before)
    }

    fn saw_one(&mut self, now: Instant) {
        (self.arrived, self.content) = (now, now);
    }

    /// For how long frames have been waiting for the switch, as far as somebody was awake to see it.
    fn wait(&mut self, now: Instant, awake: bool) -> Duration {
        if !awake {
            self.content = now;
        }
        now.saturating_duration_since(self.content)
    }
}

//! Two guests that have done nothing and outlive every switch: they send each other numbered frames, and know of each what
//! became of it. There are never more under way than the receiver has buffers for, so what is lost was lost by the switch.
//!
//! Unlike those of `calm` they bear frames that come twice or never, and leave it to the ledger to say when that may be.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure, Context, Result};

use crate::pvp::stay_beside_the_poll_thread;
use crate::quick_guest::{Guest, Ring};
use crate::wait;

/// Frames under way in one direction at the most.
pub const WINDOW: u64 = 256;
/// Between two looks, and frames sent at each: 8000 a second.
const PERIOD: Duration = Duration::from_micros(500);
const BURST: u64 = 4;
/// A switch that lives delivers within this; one that died leaves nothing that comes later than that.
const PATIENCE: Duration = Duration::from_secs(20);
const QUIET: Duration = Duration::from_millis(200);

/// What a switch tells others of a guest that has come back (RARP, RFC 903), where a frame has its number.
const ANNOUNCEMENT: u64 = u64::from_le_bytes([0, 1, 8, 0, 6, 4, 0, 3]);

/// The two, with nothing being said.
pub struct Pair {
    guests: [Guest; 2],
    lanes: [Lane; 2],
}

/// Their account, both directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub sent: u64,
    /// Frames that have arrived, once or more often.
    pub arrived: u64,
    /// Frames that never arrived.
    pub lost: u64,
    /// Arrivals of a frame that had arrived before.
    pub twice: u64,
    /// What the switch says that it dropped.
    pub dropped: u64,
}

impl Account {
    /// Of the lost, those that no port counted.
    pub fn uncounted(&self) -> u64 {
        self.lost.saturating_sub(self.dropped)
    }

    /// Both of them.
    pub fn and(&self, other: &Account) -> Account {
        Account {
            sent: self.sent + other.sent,
            arrived: self.arrived + other.arrived,
            lost: self.lost + other.lost,
            twice: self.twice + other.twice,
            dropped: self.dropped + other.dropped,
        }
    }

    /// What has come to it since another.
    pub fn since(&self, before: &Account) -> Account {
        Account {
            sent: self.sent - before.sent,
            arrived: self.arrived - before.arrived,
            // One that was written off may have come late.
            lost: self.lost.saturating_sub(before.lost),
            twice: self.twice - before.twice,
            dropped: self.dropped - before.dropped,
        }
    }
}

impl Pair {
    /// Guests that are up.
    pub fn new(guests: [Guest; 2]) -> Pair {
        Pair {
            guests,
            lanes: Default::default(),
        }
    }

    /// One of them comes back to a new switch.
    pub fn come_back(&mut self, guest: usize, stream: UnixStream) -> Result<()> {
        self.guests[guest].come_back(stream)
    }

    /// Lets what is under way arrive, and writes off what does not. If the switch `lived` it has time to.
    pub fn settle(&mut self, lived: bool) -> Result<Account> {
        let patience = if lived { PATIENCE } else { QUIET };
        let mut last = Instant::now();
        while self.under_way() && last.elapsed() < patience {
            wait::check_interrupt()?;
            if self.step(0)? > 0 {
                last = Instant::now();
            }
            std::thread::sleep(PERIOD);
        }
        self.lanes.iter_mut().for_each(Lane::write_off);
        let account = self.account();
        ensure!(
            account.sent == account.arrived + account.lost,
            "the account does not add up: {account:?}"
        );
        Ok(account)
    }

    fn account(&self) -> Account {
        let sum = |of: fn(&Lane) -> u64| self.lanes.iter().map(of).sum();
        Account {
            sent: sum(|lane| lane.sent),
            arrived: sum(|lane| lane.arrived),
            lost: sum(|lane| lane.missing.len() as u64),
            twice: sum(|lane| lane.twice),
            dropped: 0,
        }
    }

    fn under_way(&self) -> bool {
        self.lanes.iter().any(|lane| lane.under_way() > 0)
    }

    /// Each sends so many frames if it may, and takes what has come: how many frames did.
    fn step(&mut self, burst: u64) -> Result<u64> {
        let ([a, b], [there, back]) = (&mut self.guests, &mut self.lanes);
        let arrived = there.step(&mut a.transmitq, &mut b.receiveq, burst)?;
        Ok(arrived + back.step(&mut b.transmitq, &mut a.receiveq, burst)?)
    }
}

/// One direction. Frames are numbered from 1.
#[derive(Default)]
struct Lane {
    sent: u64,
    /// The highest number that arrived, or was written off.
    highest: u64,
    /// Different numbers that arrived.
    arrived: u64,
    /// Those below the highest that did not.
    missing: BTreeSet<u64>,
    twice: u64,
}

impl Lane {
    fn under_way(&self) -> u64 {
        self.sent - self.highest
    }

    fn step(&mut self, from: &mut Ring, to: &mut Ring, burst: u64) -> Result<u64> {
        let until = self.sent + burst.min(WINDOW - self.under_way());
        while self.sent < until && from.send(self.sent + 1) {
            self.sent += 1;
        }
        from.publish();
        let mut arrived = 0;
        while let Some(number) = to.receive()? {
            if number == ANNOUNCEMENT {
                continue;
            }
            ensure!(
                (1..=self.sent).contains(&number),
                "frame {number} came, and {} was the last sent",
                self.sent
            );
            self.take(number);
            arrived += 1;
        }
        to.give_back();
        Ok(arrived)
    }

    fn take(&mut self, number: u64) {
        if number > self.highest {
            self.missing.extend(self.highest + 1..number);
            self.highest = number;
        } else if !self.missing.remove(&number) {
            self.twice += 1;
            return;
        }
        self.arrived += 1;
    }

    /// What has not arrived by now is not waited for.
    fn write_off(&mut self) {
        self.missing.extend(self.highest + 1..=self.sent);
        self.highest = self.sent;
    }
}

/// The two in conversation, in a thread of their own.
pub struct Talk {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<Pair>>>,
}

/// Relaxed, all of it: numbers that belong to nothing else.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    arrived: AtomicU64,
    /// Microseconds for which nothing arrived though something was under way, at the longest.
    pause: AtomicU64,
}

impl Talk {
    pub fn start(mut pair: Pair) -> Result<Talk> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("talk".into()).spawn(move || {
            stay_beside_the_poll_thread();
            talk(&mut pair, &of_thread).map(|()| pair)
        })?;
        Ok(Talk {
            shared,
            thread: Some(thread),
        })
    }

    /// Waits for so many frames to arrive: the poll thread moves.
    pub fn wait_more(&mut self, count: u64) -> Result<()> {
        let aim = self.shared.arrived.load(Ordering::Relaxed) + count;
        wait::until_true("the innocent to exchange frames", PATIENCE, || {
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                return self.join().and(Err(anyhow!("the innocent have stopped")));
            }
            Ok(self.shared.arrived.load(Ordering::Relaxed) >= aim)
        })
    }

    fn join(&mut self) -> Result<Pair> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take().context("nobody talks")?.join();
        let told = joined.map_err(|_| anyhow!("a device broke the rules"))?;
        told.context("of the innocent")
    }

    /// Ends it at once, whatever is under way; and says how long frames waited at the longest.
    pub fn halt(mut self) -> Result<(Pair, Duration)> {
        let pair = self.join()?;
        let pause = self.shared.pause.load(Ordering::Relaxed);
        Ok((pair, Duration::from_micros(pause)))
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.join();
    }
}

fn talk(pair: &mut Pair, shared: &Shared) -> Result<()> {
    let mut last = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        let arrived = pair.step(BURST)?;
        let now = Instant::now();
        let pause = u64::try_from((now - last).as_micros()).unwrap_or(u64::MAX);
        shared.pause.fetch_max(pause, Ordering::Relaxed);
        if arrived > 0 {
            shared.arrived.fetch_add(arrived, Ordering::Relaxed);
            last = now;
        }
        std::thread::sleep(PERIOD);
    }
    Ok(())
}

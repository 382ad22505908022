//! A log of the last bursts of a port: how many frames were asked for and moved, why not more, and where the ring stood.
//!
//! A poll that finds nothing is no burst: it would push all others out of the log.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use super::capture::name;
use super::options::{Filter, Number, Wish};
use super::shards::Shards;
use super::{Seen, Stand};
use crate::datapath::Direction;

const NUMBERS: &[Number] = &[
    // That are kept.
    Number("bursts", 16..=4096, 256),
    Number("seconds", 1..=86_400, 60),
];

pub(super) struct Trace {
    filter: Filter,
    /// Bursts of each vring that are kept.
    room: usize,
    time: Duration,
    start: Instant,
    bursts: Shards<VecDeque<Burst>>,
    /// Bursts that another thread was in the way of.
    lost: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Burst {
    /// Since the start of the log.
    at: Duration,
    seen: Seen,
    /// The next index before it, as the burst before left it.
    before: Option<u16>,
    stand: Stand,
}

impl Trace {
    /// A log that nobody writes yet.
    pub(super) fn new(vrings: usize, words: &[&str]) -> Result<Trace, String> {
        let wish = Wish::parse(words, NUMBERS, false)?;
        let room = usize::try_from(wish.number("bursts")).unwrap_or(usize::MAX);
        Ok(Trace {
            filter: wish.filter,
            room,
            time: Duration::from_secs(wish.number("seconds")),
            start: Instant::now(),
            bursts: Shards::new(vrings, || VecDeque::with_capacity(room)),
            lost: AtomicU64::new(0),
        })
    }

    /// Whether its time is over.
    pub(super) fn is_over(&self) -> bool {
        self.start.elapsed() >= self.time
    }

    /// Takes down a burst. Poll threads; never waits.
    pub(super) fn note(&self, seen: &Seen, stand: impl FnOnce() -> Stand) {
        let at = self.start.elapsed();
        if at >= self.time || !self.filter.wants(seen.direction, seen.queue()) {
            return;
        }
        let Some(mut bursts) = self.bursts.try_at(seen.vring) else {
            // Relaxed: a number with no data behind it.
            self.lost.fetch_add(u64::from(seen.moved > 0), Ordering::Relaxed);
            return;
        };
        let (last, stand) = (
            bursts.iter().rev().find(|last| last.seen.vring == seen.vring),
            stand(),
        );
        let burst = Burst {
            at,
            seen: *seen,
            before: last.and_then(|last| last.stand.next),
            stand,
        };
        if !burst.is_news(last) {
            return;
        }
        if bursts.len() == self.room {
            bursts.pop_front();
        }
        bursts.push_back(burst);
    }

    /// All of it, oldest first.
    pub(super) fn tell(&self, running: bool) -> Value {
        let mut bursts: Vec<Burst> = Vec::new();
        for part in self.bursts.iter() {
            bursts.extend(part.lock().iter());
        }
        bursts.sort_by_key(|burst| burst.at);
        let first = bursts.len().saturating_sub(self.room);
        json!({
            "running": running && !self.is_over(),
            "seconds": seconds(self.start.elapsed()),
            "lost": self.lost.load(Ordering::Relaxed),
            "bursts": bursts.iter().skip(first).map(Burst::tell).collect::<Value>(),
        })
    }
}

impl Burst {
    /// Whether there is anything to tell of it, after the one before on this vring.
    fn is_news(&self, last: Option<&Burst>) -> bool {
        let is_broken =
            self.stand.fault.is_some() && last.is_none_or(|last| last.stand.fault != self.stand.fault);
        let was_dropped = last.is_some() && self.before != self.stand.next;
        self.seen.moved > 0 || self.seen.direction == Direction::Enqueue || was_dropped || is_broken
    }

    fn tell(&self) -> Value {
        let Seen {
            direction,
            asked,
            moved,
            ..
        } = self.seen;
        json!({
            "seconds": seconds(self.at),
            "direction": name(direction),
            "queue": self.seen.queue(),
            "asked": asked,
            "moved": moved,
            "before": self.before,
            "after": self.stand.next,
            "waiting": self.stand.waiting,
            "ended": self.why(),
        })
    }

    /// Why it moved no more than it did.
    fn why(&self) -> Option<String> {
        if self.seen.moved >= self.seen.asked {
            return None;
        }
        let Stand {
            next,
            waiting,
            missed,
            fault,
        } = self.stand;
        let why = match (fault, self.seen.direction) {
            (Some(fault), _) => return Some(fault.reason.to_string()),
            _ if next.is_none() => "the ring is stopped",
            _ if missed => "an address is not translated yet",
            (None, Direction::Dequeue) if waiting == 0 => "the guest sent no more",
            (None, Direction::Dequeue) => "the rest is left to the next burst",
            (None, Direction::Enqueue) if waiting == 0 => "the guest has no buffers",
            (None, Direction::Enqueue) => "the guest's buffers do not do for the rest",
        };
        Some(why.into())
    }
}

/// To the nanosecond.
fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

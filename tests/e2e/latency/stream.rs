//! Frames at a steady rate from one guest to another, and what became of them.

use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use hdrhistogram::Histogram;

use crate::quick_guest::Guest;

/// Who stops a frame's clock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The other guest, when it has the frame.
    There,
    /// The one that sent it, when the other has sent it back.
    AndBack,
}

/// What became of the frames.
pub struct Outcome {
    /// Frames that the rate asked for.
    pub due: u64,
    /// Of these, those that never arrived, or could not be sent for want of room.
    pub lost: u64,
    /// Nanoseconds from when a frame was due until it was there: one that has to wait for room waits as well.
    pub latency: Histogram<u64>,
}

/// Frames sent between two looks.
const BURST: u64 = 32;
/// For frames under way when the last one was sent.
const DRAIN: Duration = Duration::from_millis(20);
/// Latencies are kept up to this, to three digits.
const LONGEST: Duration = Duration::from_secs(10);

/// Sends `rate` frames a second for `time`.
pub fn run(guests: &mut [Guest; 2], way: Way, rate: u64, time: Duration) -> Result<Outcome> {
    forget(guests)?;
    let [near, far] = guests;
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut latency = Histogram::new_with_max(nanos(LONGEST), 3).context("a histogram")?;
    let due_at = |frame: u64| frame * 1_000_000_000 / rate;
    let all = rate * nanos(time) / 1_000_000_000;
    let start = Instant::now();
    let (mut sent, mut received) = (0, 0);
    loop {
        let now = start.elapsed();
        if now > time + DRAIN || received == all {
            break;
        }
        // A few at a time: what arrives meanwhile has its clock running.
        let due = |sent| sent < all && due_at(sent) <= nanos(now);
        let burst =
            (sent..sent + BURST).take_while(|frame| due(*frame) && near.transmitq.send(due_at(*frame)));
        sent += burst.count() as u64;
        near.transmitq.publish();
        if way == Way::AndBack {
            while let Some(stamp) = far.receiveq.receive()? {
                if !far.transmitq.send(stamp) {
                    break;
                }
            }
            far.receiveq.give_back();
            far.transmitq.publish();
        }
        let end = match way {
            Way::There => &mut far.receiveq,
            Way::AndBack => &mut near.receiveq,
        };
        let now = nanos(start.elapsed());
        while let Some(stamp) = end.receive()? {
            latency.saturating_record(now.saturating_sub(stamp));
            received += 1;
        }
        end.give_back();
    }
    ensure!(received > 0, "nothing arrived");
    Ok(Outcome {
        due: all,
        lost: all - received,
        latency,
    })
}

/// Takes what is still under way from before.
fn forget(guests: &mut [Guest; 2]) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < DRAIN {
        for guest in &mut *guests {
            while guest.receiveq.receive()?.is_some() {}
            guest.receiveq.give_back();
        }
    }
    Ok(())
}

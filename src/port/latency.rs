//! `ovs-appctl vhost-user/latency`: how long packets had to wait for us or for the guest, while somebody wants to know. Off,
//! a burst looks at nothing for it that it would not look at anyhow; on, a poll reads the clock.
//!
//! Three waits are told. *Polls*: from one look into a ring from the guest to the next, which is the most that a packet lay
//! there before somebody took it; what it waited for behind it, in Open vSwitch or at another port, is not in it. *Stalls*:
//! from the first packet that a ring to the guest had no room for to the next that got through. *Connects*: from a
//! front-end's arrival to its first queue pair; these few are always counted.

use std::time::Instant;

use serde_json::{json, Map, Value};

use crate::datapath::{Distribution, Queue};

use super::shared::Port;

/// When something is or was measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measurement {
    began: Instant,
    /// When it ended, unless it goes on.
    ended: Option<Instant>,
}

/// As main uses it. Nothing here waits for a burst.
impl Port {
    /// Begins to measure, with nothing measured yet, or ends it.
    pub fn measure_latency(&self, on: bool) {
        let mut latency = self.latency.lock();
        if !on && latency.is_none_or(|measured| measured.ended.is_some()) {
            return;
        }
        self.queues.iter().for_each(|queue| queue.gauge(on));
        let now = Instant::now();
        *latency = match (on, *latency) {
            (false, Some(measured)) => Some(Measurement {
                ended: Some(now),
                ..measured
            }),
            _ => Some(Measurement {
                began: now,
                ended: None,
            }),
        };
    }

    /// What was measured.
    pub fn describe_latency(&self) -> Value {
        let mut tree = Map::new();
        let mut put = |key: &str, value: Value| tree.insert(key.into(), value);
        put("name", json!(self.name()));
        put("connects", row(Map::new(), &self.connects.read()));
        let latency = *self.latency.lock();
        let on = latency.is_some_and(|measured| measured.ended.is_none());
        put("measuring", json!(on));
        if let Some(Measurement { began, ended }) = latency {
            let until = ended.unwrap_or_else(Instant::now);
            put("seconds", json!(until.saturating_duration_since(began).as_secs()));
            put("polls", rows(&self.queues, 1));
            put("stalls", rows(&self.queues, 0));
        }
        Value::Object(tree)
    }
}

/// The vrings of one direction in which anything was measured.
fn rows(queues: &[Queue], first: usize) -> Value {
    let of_direction = queues.iter().enumerate().skip(first).step_by(2);
    of_direction
        .filter_map(|(index, queue)| Some((index, queue.gauged()?)))
        .filter(|(_, seen)| seen.count() > 0)
        .map(|(index, seen)| row(Map::from_iter([("vring".into(), json!(index))]), &seen))
        .collect()
}

/// How many, how long the usual and the rare ones, and how many ended below each power of two of a nanosecond.
fn row(mut row: Map<String, Value>, seen: &Distribution) -> Value {
    row.insert("count".into(), json!(seen.count()));
    for (name, share) in [
        ("p50-us", 500),
        ("p90-us", 900),
        ("p99-us", 990),
        ("p99.9-us", 999),
    ] {
        row.insert(name.into(), seen.within(share).map_or(Value::Null, micros));
    }
    row.insert("longest-us".into(), micros(seen.longest()));
    let bins = seen.ends().map(|(end, count)| (format!("<{end}"), json!(count)));
    row.insert("nanoseconds".into(), Value::Object(bins.collect()));
    Value::Object(row)
}

fn micros(nanos: u64) -> Value {
    json!(nanos as f64 / 1e3)
}

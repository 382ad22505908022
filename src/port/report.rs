//! `ovs-appctl vhost-user/stats` and `vhost-user/reset-stats`: what a port and its queues moved and dropped, since the port
//! was made or somebody began anew. Open vSwitch's own counters know of no beginning, and never go back.

use std::time::Instant;

use serde_json::{json, Value};

use crate::clock;
use crate::datapath::{Queue, QueueStats, StallStats, Unsent};

use super::shared::Port;
use super::stats::DropCounts;

/// Where counting begins.
#[derive(Debug)]
pub(super) struct Baseline {
    at: Instant,
    port: DropCounts,
    /// By vring; of those that are not here, at nothing.
    vrings: Vec<(QueueStats, StallStats)>,
}

impl Default for Baseline {
    fn default() -> Self {
        Baseline {
            at: Instant::now(),
            port: DropCounts::default(),
            vrings: Vec::new(),
        }
    }
}

/// As main uses it.
impl Port {
    /// What was counted since the last [`Port::reset_stats`]. Disturbs no burst.
    pub fn describe_stats(&self) -> Value {
        let baseline = self.baseline.lock();
        let drops = self.drops.read().since(&baseline.port);
        let vrings: Vec<(QueueStats, StallStats)> = self
            .counted_queues()
            .iter()
            .enumerate()
            .map(|(index, queue)| since(queue, baseline.vrings.get(index)))
            .collect();
        let sum = |first: usize| {
            let each = vrings.iter().skip(first).step_by(2);
            each.fold(QueueStats::default(), |sum, (one, _)| {
                sum.with(one, |sum, one| sum + one)
            })
        };
        json!({
            "name": self.name(),
            "seconds": baseline.at.elapsed().as_secs(),
            "from-the-guest": from_the_guest(&sum(1), &drops),
            "to-the-guest": to_the_guest(&sum(0), &drops),
            "vrings": vrings.iter().enumerate().map(vring).collect::<Value>(),
        })
    }

    /// From here on counting begins, for [`Port::describe_stats`] and for nobody else.
    pub fn reset_stats(&self) {
        let mut baseline = self.baseline.lock();
        self.counted_queues()
            .iter()
            .for_each(|queue| queue.stalls().forget_longest());
        *baseline = Baseline {
            at: Instant::now(),
            port: self.drops.read(),
            vrings: self
                .counted_queues()
                .iter()
                .map(|queue| (queue.counters().read(), queue.stalls().read()))
                .collect(),
        };
    }
}

/// What a queue counted since `before`. Of stalls the longest is looked for anew by itself.
fn since(queue: &Queue, before: Option<&(QueueStats, StallStats)>) -> (QueueStats, StallStats) {
    let (counters, stalls) = (queue.counters().read(), queue.stalls().read());
    let Some((counters_before, stalls_before)) = before else {
        return (counters, stalls);
    };
    let stalls = StallStats {
        count: stalls.count - stalls_before.count,
        total: stalls.total - stalls_before.total,
        ..stalls
    };
    (counters.with(counters_before, |now, before| now - before), stalls)
}

fn from_the_guest(sum: &QueueStats, drops: &DropCounts) -> Value {
    json!({
        "packets": sum.good_packets,
        "bytes": sum.good_bytes,
        "dropped": sum.runts + sum.oversize + sum.invalid + drops.policed,
        "drops": {
            "runt": sum.runts,
            "oversize": sum.oversize,
            "invalid-offload": sum.invalid,
            "policed": drops.policed,
        },
        "given-back-unread": sum.discarded,
        "pool-empty-polls": sum.starved,
    })
}

fn to_the_guest(sum: &QueueStats, drops: &DropCounts) -> Value {
    json!({
        "packets": sum.good_packets,
        "bytes": sum.good_bytes,
        "dropped": drops.unsent,
        "drops": {
            "not-connected": drops.unconnected,
            "admin-down": drops.down,
            "vring-disabled": drops.disabled + sum.unsent(Unsent::Disabled),
            "vring-broken": sum.unsent(Unsent::Broken),
            "ring-full": sum.unsent(Unsent::Full),
            "desc-invalid": sum.unsent(Unsent::Malformed),
            "iotlb-miss": sum.unsent(Unsent::Missing),
            "too-big": sum.oversize,
            "mtu-exceeded": drops.too_long,
            "invalid-offload": sum.invalid,
            "qos": drops.shaped,
        },
        "retries": drops.retries,
    })
}

/// What a vring counted, in a row.
fn vring((index, (counters, stalls)): (usize, &(QueueStats, StallStats))) -> Value {
    let mut row = json!({
        "index": index,
        "packets": counters.good_packets,
        "bytes": counters.good_bytes,
        "notifications": counters.guest_notifications,
    });
    let mut put = |key: &str, value: Value| row[key] = value;
    if index % 2 == 1 {
        put("runt", json!(counters.runts));
        put("oversize", json!(counters.oversize));
        put("given-back-unread", json!(counters.discarded));
        put("pool-empty-polls", json!(counters.starved));
    } else {
        for (key, reason) in [
            ("ring-full", Unsent::Full),
            ("desc-invalid", Unsent::Malformed),
            ("vring-broken", Unsent::Broken),
            ("vring-disabled", Unsent::Disabled),
            ("iotlb-miss", Unsent::Missing),
        ] {
            put(key, json!(counters.unsent(reason)));
        }
        put("too-big", json!(counters.oversize));
        put("stalls", json!(stalls.count));
        put("stalled-ms", millis(stalls.total));
        put("longest-stall-ms", millis(stalls.longest));
        if let Some(began) = stalls.since {
            put("stalled-now-for-ms", millis(clock::now().saturating_sub(began)));
        }
    }
    put("invalid-offload", json!(counters.invalid));
    row
}

/// Nanoseconds in milliseconds, to the microsecond.
fn millis(nanos: u64) -> Value {
    let micros = nanos / 1000;
    json!(micros as f64 / 1e3)
}

//! What a port counts, under the names Open vSwitch and its tools know.
//!
//! Queues count for themselves; what never reached a queue is counted here. Everything only grows, over
//! reconnects and reconfigurations too. "rx" is from the guest, "tx" is to it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::datapath::{Queue, QueueStats, Unsent, SIZE_BIN_NAMES};

/// Packets that were to be sent and reached no ring, by reason; what a queue did not send it counts itself.
#[derive(Default)]
pub(super) struct Drops {
    /// All of them, whatever the reason, those that a queue did not send too.
    unsent: AtomicU64,
    /// Of these, all that a queue was given and did not send, but for those with something left to be done to them.
    failed: AtomicU64,
    /// No guest was there.
    unconnected: AtomicU64,
    /// The port was down by the operator's word.
    down: AtomicU64,
    /// The guest had enabled no queue.
    disabled: AtomicU64,
    /// Longer than the MTU allows.
    too_long: AtomicU64,
    /// Beyond what the QoS allows.
    shaped: AtomicU64,
    /// Packets from the guest beyond what its policer allows. None that were to be sent, but they are counted like those.
    policed: AtomicU64,
    /// Attempts to send again what did not fit. No drops, but they live and die with them.
    retries: AtomicU64,
}

impl Drops {
    /// Counts what one send left behind, in all.
    #[cold]
    pub(super) fn unsent(&self, packets: usize) {
        add(&self.unsent, packets);
    }

    /// Counts those of them that were too long, those beyond the QoS, and those that a queue failed to send.
    #[inline]
    pub(super) fn reasons(&self, too_long: usize, shaped: usize, failed: usize) {
        if too_long + shaped + failed > 0 {
            add(&self.too_long, too_long);
            add(&self.shaped, shaped);
            add(&self.failed, failed);
        }
    }

    /// Counts those that were sent to a port without a guest, or to one that the operator took `down`.
    #[cold]
    pub(super) fn closed(&self, packets: usize, down: bool) {
        add(if down { &self.down } else { &self.unconnected }, packets);
    }

    /// Counts those for which there was no queue.
    #[cold]
    pub(super) fn disabled(&self, packets: usize) {
        add(&self.disabled, packets);
    }

    /// Counts packets from the guest that its policer refused.
    pub(super) fn policed(&self, packets: usize) {
        if packets > 0 {
            add(&self.policed, packets);
        }
    }

    /// The values now.
    pub(super) fn read(&self) -> DropCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DropCounts {
            unsent: get(&self.unsent),
            failed: get(&self.failed),
            unconnected: get(&self.unconnected),
            down: get(&self.down),
            disabled: get(&self.disabled),
            too_long: get(&self.too_long),
            shaped: get(&self.shaped),
            policed: get(&self.policed),
            retries: get(&self.retries),
        }
    }

    #[inline]
    pub(super) fn retries(&self, retries: u32) {
        if retries > 0 {
            add(&self.retries, retries as usize);
        }
    }
}

/// The values of [`Drops`] at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DropCounts {
    pub(super) unsent: u64,
    pub(super) failed: u64,
    pub(super) unconnected: u64,
    pub(super) down: u64,
    pub(super) disabled: u64,
    pub(super) too_long: u64,
    pub(super) shaped: u64,
    pub(super) policed: u64,
    pub(super) retries: u64,
}

impl DropCounts {
    /// What came since `before`.
    pub(super) fn since(&self, before: &DropCounts) -> DropCounts {
        DropCounts {
            unsent: self.unsent - before.unsent,
            failed: self.failed - before.failed,
            unconnected: self.unconnected - before.unconnected,
            down: self.down - before.down,
            disabled: self.disabled - before.disabled,
            too_long: self.too_long - before.too_long,
            shaped: self.shaped - before.shaped,
            policed: self.policed - before.policed,
            retries: self.retries - before.retries,
        }
    }
}

/// Several threads may send at once, so this is a locked addition; it runs only when something went wrong.
fn add(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

/// The standard counters of an interface, named as in `struct netdev_stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Open vSwitch's and say it all")]
pub struct Stats {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
    pub multicast: u64,
    pub tx_multicast_packets: u64,
    pub rx_broadcast_packets: u64,
    pub tx_broadcast_packets: u64,
    pub rx_1_to_64_packets: u64,
    pub tx_1_to_64_packets: u64,
    pub rx_65_to_127_packets: u64,
    pub tx_65_to_127_packets: u64,
    pub rx_128_to_255_packets: u64,
    pub tx_128_to_255_packets: u64,
    pub rx_256_to_511_packets: u64,
    pub tx_256_to_511_packets: u64,
    pub rx_512_to_1023_packets: u64,
    pub tx_512_to_1023_packets: u64,
    pub rx_1024_to_1522_packets: u64,
    pub tx_1024_to_1522_packets: u64,
    pub rx_1523_to_max_packets: u64,
    pub tx_1523_to_max_packets: u64,
}

impl Stats {
    /// The sums over `queues`, which are in vring order: even to the guest, odd from it.
    pub(super) fn of(queues: &[Queue], drops: &Drops) -> Stats {
        let rx = total(queues.iter().skip(1).step_by(2));
        let tx = total(queues.iter().step_by(2));
        let [rx_undersize, rx_64, rx_65, rx_128, rx_256, rx_512, rx_1024, rx_1519] = rx.size_bins;
        let [tx_undersize, tx_64, tx_65, tx_128, tx_256, tx_512, tx_1024, tx_1519] = tx.size_bins;
        Stats {
            rx_packets: rx.good_packets,
            tx_packets: tx.good_packets,
            rx_bytes: rx.good_bytes,
            tx_bytes: tx.good_bytes,
            rx_dropped: rx.runts + rx.oversize + rx.invalid + drops.read().policed,
            tx_dropped: drops.read().unsent,
            multicast: rx.multicast_packets,
            tx_multicast_packets: tx.multicast_packets,
            rx_broadcast_packets: rx.broadcast_packets,
            tx_broadcast_packets: tx.broadcast_packets,
            rx_1_to_64_packets: rx_undersize + rx_64,
            tx_1_to_64_packets: tx_undersize + tx_64,
            rx_65_to_127_packets: rx_65,
            tx_65_to_127_packets: tx_65,
            rx_128_to_255_packets: rx_128,
            tx_128_to_255_packets: tx_128,
            rx_256_to_511_packets: rx_256,
            tx_256_to_511_packets: tx_256,
            rx_512_to_1023_packets: rx_512,
            tx_512_to_1023_packets: tx_512,
            rx_1024_to_1522_packets: rx_1024,
            tx_1024_to_1522_packets: tx_1024,
            rx_1523_to_max_packets: rx_1519,
            tx_1523_to_max_packets: tx_1519,
        }
    }
}

fn total<'a>(queues: impl Iterator<Item = &'a Queue>) -> QueueStats {
    queues
        .map(|queue| queue.counters().read())
        .fold(QueueStats::default(), |sum, one| {
            sum.with(&one, |sum, one| sum + one)
        })
}

/// Queues whose own counters are listed. OpenFlow has all named counters of a port in one property of at most 64 KiB: a guest with
/// as many queues as there may be would leave its operator none that can be read, of this port and of those told with it.
const LISTED: usize = 2 * 48;

/// The named counters: the port's, then each receive queue's, then each transmit queue's; the stock
/// names in the stock order, then ours. Queues beyond those that are [`LISTED`] count in the sums.
pub(super) fn custom(queues: &[Queue], drops: &Drops, emit: &mut dyn FnMut(&str, u64)) {
    let drops = drops.read();
    emit("ovs_tx_retries", drops.retries);
    emit("ovs_tx_failure_drops", drops.failed);
    emit("ovs_tx_mtu_exceeded_drops", drops.too_long);
    emit("ovs_tx_qos_drops", drops.shaped);
    emit("ovs_rx_qos_drops", drops.policed);
    let tx = total(queues.iter().step_by(2));
    emit("ovs_tx_invalid_hwol_drops", tx.invalid);
    let listed = queues.get(..LISTED).unwrap_or(queues);
    for (q, queue) in listed.iter().skip(1).step_by(2).enumerate() {
        of_queue(&format!("rx_q{q}"), &queue.counters().read(), emit);
    }
    for (q, queue) in listed.iter().step_by(2).enumerate() {
        of_queue(&format!("tx_q{q}"), &queue.counters().read(), emit);
    }
    let rx = total(queues.iter().skip(1).step_by(2));
    emit("ovs_vhost_rx_runt_drops", rx.runts);
    emit("ovs_vhost_rx_oversize_drops", rx.oversize);
    emit("ovs_vhost_rx_disabled_drops", rx.discarded);
    emit("ovs_vhost_rx_invalid_offload_drops", rx.invalid);
    emit("ovs_vhost_rx_pool_empty_polls", rx.starved);
    emit("ovs_vhost_tx_not_connected_drops", drops.unconnected);
    emit("ovs_vhost_tx_admin_down_drops", drops.down);
    let disabled = drops.disabled + tx.unsent(Unsent::Disabled);
    emit("ovs_vhost_tx_vring_disabled_drops", disabled);
    emit("ovs_vhost_tx_vring_broken_drops", tx.unsent(Unsent::Broken));
    emit("ovs_vhost_tx_ring_full_drops", tx.unsent(Unsent::Full));
    emit("ovs_vhost_tx_desc_invalid_drops", tx.unsent(Unsent::Malformed));
    emit("ovs_vhost_tx_iotlb_miss_drops", tx.unsent(Unsent::Missing));
    emit("ovs_vhost_tx_too_big_drops", tx.oversize);
}

fn of_queue(prefix: &str, stats: &QueueStats, emit: &mut dyn FnMut(&str, u64)) {
    let mut one = |name: &str, value| emit(&format!("{prefix}_{name}"), value);
    one("good_packets", stats.good_packets);
    one("good_bytes", stats.good_bytes);
    one("multicast_packets", stats.multicast_packets);
    one("broadcast_packets", stats.broadcast_packets);
    for (name, value) in SIZE_BIN_NAMES.iter().zip(stats.size_bins) {
        one(name, value);
    }
    one("guest_notifications", stats.guest_notifications);
    // No IOTLB and no in-flight region: tools walk the names, so they stay.
    for name in [
        "iotlb_hits",
        "iotlb_misses",
        "inflight_submitted",
        "inflight_completed",
    ] {
        one(name, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::datapath::Direction;

    #[test]
    fn the_counters_of_a_port_with_all_queues_fit_into_what_openflow_has_for_them() {
        // The property's header and number of counters; a counter is a length, a name and a value (OVS, lib/ofp-port.c).
        let (mut bytes, mut names) = (16, Vec::new());
        let queues: Vec<_> = (0..256)
            .map(|_| Queue::new(Direction::Enqueue, Arc::new(|_| ())))
            .collect();
        custom(&queues, &Drops::default(), &mut |name, _| {
            bytes += 1 + name.len() + 8;
            names.push(name.to_owned());
        });
        // The port's standard counters, in the same entry.
        assert!(bytes + 400 <= usize::from(u16::MAX), "{bytes}");
        for name in [
            "rx_q47_good_bytes",
            "tx_q47_good_bytes",
            "ovs_vhost_tx_too_big_drops",
        ] {
            assert!(names.iter().any(|listed| listed == name), "{name}");
        }
    }
}

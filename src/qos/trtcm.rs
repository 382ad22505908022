//! `trtcm-policer`: each packet meets the meter of its queue, which gives it a colour, and then the port's, which lets it
//! pass unless it is red. What a queue may not send as green or yellow no other queue's rest makes good.

use std::collections::BTreeMap;

use super::meter::{Colour, Rates, TwoRate};

/// What a queue did, as `struct netdev_queue_stats` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Bytes that were metered, of packets that passed.
    pub tx_bytes: u64,
    /// Packets that passed.
    pub tx_packets: u64,
    /// Packets that did not, by the queue's meter or by the port's.
    pub tx_errors: u64,
    /// When the queue was made, in nanoseconds.
    pub created: u64,
}

#[derive(Debug)]
struct Queue {
    meter: TwoRate,
    counts: QueueCounts,
}

impl Queue {
    fn new(rates: Rates, now: u64) -> Queue {
        Queue {
            meter: TwoRate::new(rates, now),
            counts: QueueCounts {
                created: now,
                ..QueueCounts::default()
            },
        }
    }

    /// Its counters stay; its tokens too, if the rates are the same.
    fn retune(&mut self, rates: Rates, now: u64) {
        retune(&mut self.meter, rates, now);
    }
}

fn retune(meter: &mut TwoRate, rates: Rates, now: u64) {
    if meter.rates() != rates {
        *meter = TwoRate::new(rates, now);
    }
}

#[derive(Debug)]
pub(super) struct Trtcm {
    port: TwoRate,
    /// Queue 0, where packets of queues that are not there go. It is always there.
    first: Queue,
    /// The others, by number.
    others: BTreeMap<u32, Queue>,
}

impl Trtcm {
    /// With queue 0, whose rates are the port's.
    pub(super) fn new(rates: Rates, now: u64) -> Trtcm {
        Trtcm {
            port: TwoRate::new(rates, now),
            first: Queue::new(rates, now),
            others: BTreeMap::new(),
        }
    }

    pub(super) fn rates(&self) -> Rates {
        self.port.rates()
    }

    /// Changes the port's rates. The queues stay as they are.
    pub(super) fn set(&mut self, rates: Rates, now: u64) {
        retune(&mut self.port, rates, now);
    }

    pub(super) fn queue_ids(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::once(0).chain(self.others.keys().copied())
    }

    pub(super) fn queue(&self, id: u32) -> Option<(Rates, QueueCounts)> {
        let queue = if id == 0 {
            Some(&self.first)
        } else {
            self.others.get(&id)
        };
        queue.map(|queue| (queue.meter.rates(), queue.counts))
    }

    /// Makes a queue, or changes its rates.
    pub(super) fn set_queue(&mut self, id: u32, rates: Rates, now: u64) {
        match id {
            0 => self.first.retune(rates, now),
            id => self
                .others
                .entry(id)
                .or_insert_with(|| Queue::new(rates, now))
                .retune(rates, now),
        }
    }

    /// Takes a queue away. Queue 0 goes back to the port's rates instead.
    pub(super) fn delete_queue(&mut self, id: u32, now: u64) {
        match id {
            0 => self.first.retune(self.port.rates(), now),
            id => drop(self.others.remove(&id)),
        }
    }

    /// Whether a packet of `len` metered bytes passes, and counts it with its queue.
    pub(super) fn admit(&mut self, now: u64, len: u64, queue: u32) -> bool {
        let queue = match queue {
            0 => &mut self.first,
            id => self.others.get_mut(&id).unwrap_or(&mut self.first),
        };
        let colour = queue.meter.blind(now, len);
        let pass = self.port.aware(now, len, colour) != Colour::Red;
        let counts = &mut queue.counts;
        if pass {
            counts.tx_packets += 1;
            counts.tx_bytes += len;
        } else {
            counts.tx_errors += 1;
        }
        pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(cir: u64, cbs: u64, eir: u64, ebs: u64) -> Rates {
        Rates { cir, cbs, eir, ebs }
    }

    /// A port with room for 100 bytes as green and 100 as yellow, and queue 7 with 30 and 20.
    fn with_queue_7() -> Trtcm {
        let mut policer = Trtcm::new(rates(0, 100, 0, 100), 5);
        policer.set_queue(7, rates(0, 30, 0, 20), 6);
        policer
    }

    fn counts(policer: &Trtcm, id: u32) -> QueueCounts {
        policer.queue(id).expect("a queue").1
    }

    #[test]
    fn a_packet_meets_its_queue_first_and_the_port_then() {
        let mut policer = with_queue_7();
        let passed = [(); 6].map(|()| policer.admit(6, 10, 7));
        assert_eq!(passed, [true, true, true, true, true, false], "the queue is red");
        // 30 green and 20 yellow bytes are gone: 70 and 80 are left, for queue 0, which by itself has room for all.
        assert!(policer.admit(6, 70, 0));
        assert!(policer.admit(6, 30, 0), "green by its queue, yellow by the port");
        assert!(policer.admit(6, 50, 0));
        assert!(!policer.admit(6, 1, 0));
    }

    #[test]
    fn a_queue_counts_what_passed_the_port_too() {
        let mut policer = with_queue_7();
        policer.set_queue(8, rates(0, 1000, 0, 0), 9);
        let passed = [(); 6].map(|()| policer.admit(9, 50, 8));
        assert_eq!(passed, [true, true, true, true, false, false], "the port is red");
        let expected = QueueCounts {
            tx_bytes: 200,
            tx_packets: 4,
            tx_errors: 2,
            created: 9,
        };
        assert_eq!(counts(&policer, 8), expected);
        assert_eq!(counts(&policer, 7).tx_packets, 0);
    }

    #[test]
    fn packets_of_a_queue_that_is_not_there_go_to_queue_0() {
        let mut policer = with_queue_7();
        assert!(policer.admit(6, 1, u32::MAX));
        assert_eq!(counts(&policer, 0).tx_packets, 1);
        policer.delete_queue(7, 6);
        assert!(policer.queue(7).is_none());
        assert!(policer.admit(6, 1, 7));
        assert_eq!(counts(&policer, 0).tx_packets, 2);
    }

    #[test]
    fn queue_0_is_always_there_and_falls_back_to_the_ports_rates() {
        let mut policer = with_queue_7();
        assert_eq!(policer.queue_ids().collect::<Vec<_>>(), [0, 7]);
        assert_eq!(policer.queue(0).expect("0").0, policer.rates());
        policer.set_queue(0, rates(1, 2, 3, 4), 6);
        assert_eq!(policer.queue(0).expect("0").0, rates(1, 2, 3, 4));
        policer.delete_queue(0, 6);
        assert_eq!(policer.queue(0).expect("0").0, policer.rates());
    }

    #[test]
    fn the_same_rates_again_keep_tokens_and_new_ones_keep_counters() {
        let mut policer = with_queue_7();
        let passed = [(); 6].map(|()| policer.admit(6, 10, 7));
        assert!(!passed[5], "none is left");
        policer.set_queue(7, rates(0, 30, 0, 20), 6);
        policer.set(rates(0, 100, 0, 100), 6);
        assert!(!policer.admit(6, 1, 7), "no new tokens");
        policer.set_queue(7, rates(0, 30, 0, 21), 6);
        assert!(policer.admit(6, 1, 7));
        assert_eq!(counts(&policer, 7).tx_packets, 6);
        assert_eq!(counts(&policer, 7).created, 6);
    }

    #[test]
    fn new_rates_of_the_port_leave_the_queues() {
        let mut policer = with_queue_7();
        policer.set(rates(9, 9, 9, 9), 6);
        assert_eq!(policer.rates(), rates(9, 9, 9, 9));
        assert_eq!(policer.queue(7).expect("7").0, rates(0, 30, 0, 20));
    }
}

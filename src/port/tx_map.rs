//! Which of the guest's receive queues a packet goes to. Open vSwitch names one of `n_txq` queues; the
//! guest may have enabled only some of them, so each name maps to one that is.
//!
//! The control thread rewrites the map while poll threads read it: every entry is valid by itself.

use std::sync::atomic::{AtomicU16, Ordering};

use super::MAX_QUEUE_PAIRS;

/// No queue is enabled: what is sent is dropped.
const NONE: u16 = u16::MAX;

pub(super) struct TxMap {
    /// Queues that Open vSwitch may name, at least 1.
    names: AtomicU16,
    queues: [AtomicU16; MAX_QUEUE_PAIRS as usize],
}

impl TxMap {
    pub(super) fn new() -> TxMap {
        TxMap {
            names: AtomicU16::new(1),
            queues: std::array::from_fn(|_| AtomicU16::new(NONE)),
        }
    }

    /// The enabled queue that stands for `name`, or None when there is none.
    #[inline]
    pub(super) fn queue(&self, name: u16) -> Option<u16> {
        let names = self.names.load(Ordering::Relaxed).max(1);
        let queue = self
            .queues
            .get(usize::from(name % names))?
            .load(Ordering::Relaxed);
        (queue != NONE).then_some(queue)
    }

    /// How many queues Open vSwitch names from now on.
    pub(super) fn set_names(&self, n: u16) {
        self.names.store(n.clamp(1, MAX_QUEUE_PAIRS), Ordering::Relaxed);
    }

    /// An enabled queue stands for itself; the names of the others go round those that are enabled,
    /// so that load spreads as evenly as it can.
    pub(super) fn rebuild(&self, enabled: impl Fn(u16) -> bool) {
        let usable: Vec<u16> = (0..MAX_QUEUE_PAIRS).filter(|q| enabled(*q)).collect();
        let mut round = usable.iter().copied().cycle();
        for (name, entry) in (0..MAX_QUEUE_PAIRS).zip(&self.queues) {
            let queue = if enabled(name) {
                name
            } else {
                round.next().unwrap_or(NONE)
            };
            entry.store(queue, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(names: u16, enabled: &[u16]) -> Vec<Option<u16>> {
        let map = TxMap::new();
        map.set_names(names);
        map.rebuild(|q| enabled.contains(&q));
        (0..names).map(|name| map.queue(name)).collect()
    }

    #[test]
    fn an_enabled_queue_stands_for_itself() {
        assert_eq!(map(3, &[0, 1, 2]), [Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn names_of_disabled_queues_go_round_the_enabled_ones() {
        assert_eq!(
            map(6, &[1, 4]),
            [Some(1), Some(1), Some(4), Some(1), Some(4), Some(4)]
        );
    }

    #[test]
    fn with_nothing_enabled_there_is_nowhere_to_send() {
        assert_eq!(map(2, &[]), [None, None]);
    }

    #[test]
    fn a_name_beyond_the_last_wraps() {
        let map = TxMap::new();
        map.set_names(2);
        map.rebuild(|q| q < 2);
        assert_eq!((map.queue(2), map.queue(u16::MAX)), (Some(0), Some(1)));
    }
}

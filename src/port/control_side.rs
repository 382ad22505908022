//! A port as the control thread uses it: what its front-end makes of it is published here.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::datapath::{Queue, RingFault};

use super::options::Mode;
use super::shared::{Link, Port, PortId, Topology};

impl Port {
    pub(super) fn id(&self) -> PortId {
        self.id
    }

    /// The name Open vSwitch knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn path(&self) -> String {
        self.path.lock().clone()
    }

    /// What the guest's frames may hold, as far as its front-end is told.
    pub(super) fn mtu(&self) -> u16 {
        u16::try_from(self.requested.lock().mtu).unwrap_or(u16::MAX)
    }

    /// A vring index is checked where it is decoded: it is below twice `MAX_QUEUE_PAIRS`.
    pub(super) fn queue(&self, vring: u16) -> &Queue {
        &self.queues[usize::from(vring)]
    }

    /// A front-end took so long from its arrival until its first queue pair ran.
    pub(super) fn count_connect(&self, took: Duration) {
        self.connects
            .add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The first queue pair of a front-end that spoke of `pairs` runs.
    pub(super) fn attach(&self, link: Link, pairs: u16) {
        self.most_pairs.fetch_max(pairs, Ordering::Relaxed);
        let mut requested = self.requested.lock();
        let wanted = Topology {
            n_rxq: pairs.max(1),
            n_txq: pairs.max(1),
            mtu: requested.mtu,
            numa: link.numa.unwrap_or(requested.numa),
            attached: true,
        };
        let reconfigure = *requested != wanted;
        *requested = wanted;
        drop(requested);
        let news = std::mem::replace(&mut *self.link.lock(), link.clone()) != link;
        let first = !self.attached.swap(true, Ordering::Relaxed);
        self.reopen();
        if reconfigure {
            self.request_reconfigure();
        }
        if first || news {
            self.changed();
        }
    }

    /// The front-end is gone, or its first queue pair does not run any more.
    pub(super) fn detach(&self) {
        if self.attached.swap(false, Ordering::Relaxed) {
            self.reopen();
            self.changed();
        }
    }

    /// A vring runs and is enabled, or no more.
    pub(super) fn set_usable(&self, vring: u16, usable: bool) {
        let index = usize::from(vring);
        if self.usable[index].swap(usable, Ordering::Relaxed) == usable {
            return;
        }
        if vring % 2 == 0 {
            self.tx_map
                .rebuild(|q| self.usable[2 * usize::from(q)].load(Ordering::Relaxed));
        } else {
            // Poll threads read again which queues to poll.
            self.changed();
        }
    }

    /// What the connection suffers from, for `status`.
    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        if std::mem::replace(&mut *self.trouble.lock(), trouble.clone()) != trouble {
            self.changed();
        }
    }

    pub(super) fn has_faults(&self) -> bool {
        // Acquire: pairs with the waker's store.
        self.faults.load(Ordering::Acquire)
    }

    /// Whether a burst met an address that is missing, since this was last asked.
    pub(super) fn take_misses(&self) -> bool {
        // A load first: most ports, most times, have none. Acquire: pairs with the waker's store.
        self.misses.load(Ordering::Relaxed) && self.misses.swap(false, Ordering::Acquire)
    }

    /// The vrings that are broken, and why. From here on a new one is news again.
    pub(super) fn take_faults(&self) -> Vec<RingFault> {
        self.faults.store(false, Ordering::Release);
        self.changed();
        self.queues.iter().filter_map(Queue::fault).collect()
    }
}

//! What a split transmitq gets while it is started and disabled: its buffers back, unread.

use super::dequeue::READ;
use super::{beyond, give_back, Halt, SplitRing};
use crate::datapath::config::FaultReason;
use crate::datapath::counters::{Counters, Tally};
use crate::datapath::dirty::extra;
use crate::datapath::set::Bits;
use crate::virtio::chain::DescRing;

impl<const SET: usize> SplitRing<SET> {
    /// Gives back all that is available now, at most a ring full. What the chains hold is nobody's business.
    pub(super) fn discard_ready(&mut self, counters: &Counters) -> u16 {
        let ready = self.ready(u16::MAX);
        let (mem, next, log) = (&self.mem, self.next, extra::<Bits<SET>, _>(&self.log));
        let mut chains = 0;
        while chains < ready {
            let avail = next.wrapping_add(chains);
            let head = mem.avail_entry(avail);
            if head >= mem.size() {
                let error = beyond(mem, head);
                self.halt = Some(Halt::Fault(FaultReason::Chain { avail, head, error }));
                break;
            }
            give_back(mem, log, avail, head, READ);
            chains += 1;
        }
        self.finish(chains, Tally::default, counters);
        chains
    }
}

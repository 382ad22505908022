//! What a packed transmitq gets while it is started and disabled: its buffers back, unread.

use super::{broken, Halt, PackedRing};
use crate::datapath::counters::{Counters, Tally};
use crate::datapath::set::{Bits, Set};
use crate::virtio::chain::{Chain, DescRing, Readable};
use crate::virtio::packed_ring::Used;

impl<const SET: usize> PackedRing<SET> {
    /// Gives back all that is available now, at most a ring full. Chains are walked in the ring only: at their end is the id.
    pub(super) fn discard_available(&mut self, counters: &Counters) -> u16 {
        let (mem, staged, mut at) = (&self.mem, &mut self.staged, self.next);
        let Some(mut cursor) = mem.mem().cursor(self.hint) else {
            return 0;
        };
        let mut chains = 0;
        while staged.descs < mem.size() {
            let Some(first) = mem.desc(at.index).filter(|desc| at.is_available(desc.flags)) else {
                break;
            };
            let mut chain = Chain::<_, Readable>::new(mem, at.index, first, Bits::<SET>::INDIRECT);
            let taken = chain.finish(&mut cursor).and_then(|extent| {
                let (id, descs) = (extent.last, extent.descs);
                staged.push(Used { id, descs, len: 0 }).map(|()| descs)
            });
            match taken {
                Ok(descs) => {
                    at = at.advance(descs, mem.size());
                    chains += 1;
                }
                Err(error) => {
                    self.halt = Some(Halt::Fault(broken(at, error)));
                    break;
                }
            }
        }
        self.finish(Tally::default, counters);
        chains
    }
}

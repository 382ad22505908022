//! Into the guest: a burst to a split receiveq.

use super::{beyond, look, SplitRing};
use crate::datapath::ahead::{burst, Plan};
use crate::datapath::config::FaultReason;
use crate::datapath::counters::{Counters, Tally};
use crate::datapath::frame::{self, own, put, scatter, Put, Writer, WORK};
use crate::datapath::miss::Halt;
use crate::datapath::ring::{Burst, BURST};
use crate::datapath::set::{Bits, Set};
use crate::datapath::slot::TxSlot;
use crate::memory::{Access, Cursor};
use crate::virtio::chain::{Chain, DescRing, Writable};
use crate::virtio::ring::SplitMem;

impl<const SET: usize> SplitRing<SET> {
    /// A burst to a ring with `ready` chains, more than none.
    pub(super) fn enqueue_ready(&mut self, ready: u16, slots: &[TxSlot<'_>], counters: &Counters) -> Burst {
        let (mem, next) = (&self.mem, self.next);
        let Some(mut cursor) = mem.mem().cursor_to_write(self.hint) else {
            return Burst::default();
        };
        let ahead = look::<Writable>(mem, &mut cursor, next, ready.min(burst(slots.len())));
        let (mut tally, mut outcome) = (Tally::default(), Burst::default());
        let (mut chains, mut work, mut fault) = (0_u16, 0, None);
        let mut following = slots.iter().skip(1);
        for slot in slots.iter().take(BURST) {
            let frame = slot.frame();
            let at = next.wrapping_add(chains);
            own(ahead.chain(chains + 1), following.next());
            let put = match ahead.chain(chains) {
                Some((head, Plan::Direct(buffer))) if put::<Bits<SET>>(buffer, frame) => {
                    mem.write_used(at, head, Bits::<SET>::HEADER + slot.len());
                    Ok(Put::Done(1))
                }
                _ => {
                    let buffers = Buffers {
                        mem,
                        next: at,
                        left: ready - chains,
                        allow_indirect: Bits::<SET>::INDIRECT,
                        work: &mut work,
                    };
                    scatter::<Bits<SET>>(buffers, &mut cursor, frame)
                }
            };
            match put {
                Ok(Put::Done(taken)) => {
                    tally.frame(frame);
                    outcome.frames += 1;
                    chains += taken;
                }
                Ok(Put::Oversize) => tally.oversize += 1,
                Ok(Put::NoBuffers) => break,
                Err(reason) => {
                    fault = Some(reason);
                    break;
                }
            }
            outcome.slots += 1;
            if work > WORK {
                break;
            }
        }
        self.hint = cursor.hint();
        if let Some(reason) = fault {
            self.halt = Some(Halt::new(self.mem.mem(), reason, Access::Write));
        }
        self.finish(chains, &tally, counters);
        Burst {
            halted: fault.is_some(),
            ..outcome
        }
    }
}

/// The chains that one frame may go into.
struct Buffers<'a, 'm> {
    mem: &'m SplitMem,
    /// Avail index of the first.
    next: u16,
    left: u16,
    allow_indirect: bool,
    /// Counts descriptors walked.
    work: &'a mut u32,
}

impl<'m> frame::Buffers<'m> for Buffers<'_, 'm> {
    fn fill(&mut self, cursor: &mut Cursor<'m>, writer: &mut Writer<'_, 'm>) -> Result<bool, FaultReason> {
        let (mem, avail) = (self.mem, self.next);
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(false);
        };
        self.left = left;
        let head = mem.avail_entry(avail);
        let broken = |error| FaultReason::Chain { avail, head, error };
        let first = mem.desc(head).ok_or_else(|| broken(beyond(mem, head)))?;
        let mut chain = Chain::<_, Writable>::new(mem, head, first, self.allow_indirect);
        let written = writer.fill(&mut chain, cursor).map_err(broken)?;
        mem.write_used(avail, head, written);
        *self.work += u32::from(chain.walked());
        self.next = avail.wrapping_add(1);
        Ok(true)
    }
}

//! Into the guest: a burst to a split receiveq.

use super::dirty::SplitLog;
use super::{beyond, look, SplitRing};
use crate::datapath::ahead::{burst, Plan};
use crate::datapath::config::FaultReason;
use crate::datapath::counters::{Counters, Tally};
use crate::datapath::dirty::extra;
use crate::datapath::frame::{self, own, put, scatter, Frame, Put, Writer, WORK};
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
        let (mem, next, log) = (&self.mem, self.next, extra::<Bits<SET>, _>(&self.log));
        let data = log.map(SplitLog::data);
        let Some(mut cursor) = mem.mem().cursor_to_write(self.hint) else {
            return Burst::default();
        };
        let ahead = look::<Writable>(mem, &mut cursor, next, ready.min(burst(slots.len())));
        let (mut tally, mut outcome) = (Tally::default(), Burst::default());
        let (mut chains, mut work, mut fault) = (0_u16, 0, None);
        let mut following = slots.iter().skip(1);
        for slot in slots.iter().take(BURST) {
            own(ahead.chain(chains + 1), following.next());
            // Puts one frame behind the `taken` chains that others of this slot take.
            let mut one = |frame: &Frame<'_>, taken: u16| {
                let (chain, left) = (chains + taken, ready - chains - taken);
                let at = next.wrapping_add(chain);
                match ahead.chain(chain) {
                    Some((head, Plan::Direct(buffer))) if put::<Bits<SET>>(buffer, frame, data) => {
                        mem.write_used(at, head, Bits::<SET>::HEADER + frame.len_u32());
                        if let Some(log) = log {
                            log.wrote_used(at);
                        }
                        Ok(Put::Done(1))
                    }
                    _ => {
                        let buffers = Buffers {
                            mem,
                            next: at,
                            left,
                            allow_indirect: Bits::<SET>::INDIRECT,
                            work: &mut work,
                            log,
                        };
                        scatter::<Bits<SET>>(buffers, &mut cursor, frame, data)
                    }
                }
            };
            let put = if Bits::<SET>::EXTRA && !slot.offload().is_none() {
                self.offloads.send(slot, &mut tally, counters, one)
            } else {
                one(&Frame::plain(slot.frame()), 0).inspect(|put| put.count(slot, &mut tally))
            };
            match put {
                Ok(Put::Done(taken)) => {
                    outcome.frames += 1;
                    chains += taken;
                }
                Ok(dropped @ (Put::Oversize | Put::Invalid)) => {
                    outcome.invalid += dropped.count_drop(&mut tally);
                }
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
    log: Option<&'a SplitLog>,
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
        if let Some(log) = self.log {
            log.wrote_used(avail);
        }
        *self.work += u32::from(chain.walked());
        self.next = avail.wrapping_add(1);
        Ok(true)
    }
}

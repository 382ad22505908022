//! Into the guest: a burst to a packed receiveq.

use super::dirty::PackedLog;
use super::{broken, look, PackedRing, Staged};
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
use crate::virtio::packed_ring::{PackedMem, Position, Used};

/// More chains than a look finds.
const ALL_PASSED: u16 = u16::MAX / 2;

impl<const SET: usize> PackedRing<SET> {
    /// A burst to a ring whose next descriptor is available.
    pub(super) fn enqueue_available(&mut self, slots: &[TxSlot<'_>], counters: &Counters) -> Burst {
        let (mem, staged, first) = (&self.mem, &mut self.staged, self.next);
        let log = extra::<Bits<SET>, _>(&self.log).map(PackedLog::data);
        let Some(mut cursor) = mem.mem().cursor_to_write(self.hint) else {
            return Burst::default();
        };
        let mut ahead = look::<Writable>(mem, &mut cursor, first, burst(slots.len()));
        let (mut tally, mut outcome) = (Tally::default(), Burst::default());
        // Of the chains looked up, those that are used.
        let (mut passed, mut work, mut fault) = (0_u16, 0, None);
        let mut following = slots.iter().skip(1);
        for slot in slots.iter().take(BURST) {
            let (mark, after) = (staged.mark(), following.next());
            let left = burst(slots.len() - outcome.slots);
            // Puts one frame behind all that is staged.
            let mut one = |frame: &Frame<'_>, _: u16| {
                let (at, begun) = (first.advance(staged.descs, mem.size()), staged.count);
                if passed > 0 && usize::from(passed) >= ahead.count {
                    ahead = look::<Writable>(mem, &mut cursor, at, left);
                    passed = 0;
                }
                own(ahead.chain(passed + 1), after);
                let put = match ahead.chain(passed) {
                    Some((id, Plan::Direct(buffer))) if put::<Bits<SET>>(buffer, frame, log) => {
                        let len = Bits::<SET>::HEADER + frame.len_u32();
                        let used = Used { id, descs: 1, len };
                        staged
                            .push(used)
                            .map_or_else(|error| Err(broken(at, error)), |()| Ok(Put::Done(1)))
                    }
                    _ => {
                        let buffers = Buffers {
                            mem,
                            at,
                            staged,
                            allow_indirect: Bits::<SET>::INDIRECT,
                            work: &mut work,
                        };
                        scatter::<Bits<SET>>(buffers, &mut cursor, frame, log)
                    }
                };
                if let Ok(Put::Done(taken)) = &put {
                    // All chains looked up but the last are of one descriptor: the next begins where it was looked up.
                    passed += taken;
                    if Bits::<SET>::EXTRA && *taken > 1 {
                        staged.join(begun, *taken);
                    }
                }
                put
            };
            let put = if Bits::<SET>::EXTRA && !slot.offload().is_none() {
                self.offloads.send(slot, &mut tally, counters, one)
            } else {
                one(&Frame::plain(slot.frame()), 0).inspect(|put| put.count(slot, &mut tally))
            };
            match put {
                Ok(Put::Done(_)) => outcome.frames += 1,
                Ok(dropped @ (Put::Oversize | Put::Invalid)) => {
                    outcome.invalid += dropped.count_drop(&mut tally);
                    staged.rewind(mark);
                    if Bits::<SET>::EXTRA {
                        // Of a frame in several segments some may have passed chains that are free again.
                        passed = ALL_PASSED;
                    }
                }
                Ok(Put::NoBuffers) => {
                    staged.rewind(mark);
                    break;
                }
                Err(reason) => {
                    staged.rewind(mark);
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
        self.finish(&tally, counters);
        Burst {
            halted: fault.is_some(),
            ..outcome
        }
    }
}

/// The chains that one frame may go into.
struct Buffers<'a, 'm> {
    mem: &'m PackedMem,
    /// Where the next is, if it is available.
    at: Position,
    staged: &'a mut Staged,
    allow_indirect: bool,
    /// Counts descriptors walked.
    work: &'a mut u32,
}

impl<'m> frame::Buffers<'m> for Buffers<'_, 'm> {
    fn fill(&mut self, cursor: &mut Cursor<'m>, writer: &mut Writer<'_, 'm>) -> Result<bool, FaultReason> {
        let (mem, at) = (self.mem, self.at);
        let Some(first) = mem.desc(at.index).filter(|desc| at.is_available(desc.flags)) else {
            return Ok(false);
        };
        let mut chain = Chain::<_, Writable>::new(mem, at.index, first, self.allow_indirect);
        let len = writer
            .fill(&mut chain, cursor)
            .map_err(|error| broken(at, error))?;
        // To the end also of a chain that the frame does not fill: only there is its id, and the next one behind it.
        let extent = chain.finish(cursor).map_err(|error| broken(at, error))?;
        let used = Used {
            id: extent.last,
            descs: extent.descs,
            len,
        };
        self.staged.push(used).map_err(|error| broken(at, error))?;
        *self.work += u32::from(chain.walked());
        self.at = at.advance(extent.descs, mem.size());
        Ok(true)
    }
}

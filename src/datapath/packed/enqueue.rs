//! Into the guest: a burst to a packed receiveq.

use super::dirty::PackedLog;
use super::{broken, look, PackedRing, Staged};
use crate::datapath::ahead::{burst, Ahead, Plan};
use crate::datapath::config::FaultReason;
use crate::datapath::counters::{Counters, Tally};
use crate::datapath::dirty::{extra, Dirty};
use crate::datapath::frame::{self, own, put, scatter, Content, Put, Writer, WORK};
use crate::datapath::miss::Halt;
use crate::datapath::ring::{Burst, BURST};
use crate::datapath::set::{Bits, Set};
use crate::datapath::slot::TxSlot;
use crate::memory::{Access, Cursor};
use crate::virtio::chain::{Chain, DescRing, Writable};
use crate::virtio::packed_ring::{PackedMem, Position, Used};

impl<const SET: usize> PackedRing<SET> {
    /// A burst to a ring whose next descriptor is available.
    pub(super) fn enqueue_available(&mut self, slots: &[TxSlot<'_>], counters: &Counters) -> Burst {
        let (mem, staged, first) = (&self.mem, &mut self.staged, self.next);
        let log = extra::<Bits<SET>, _>(&self.log).map(PackedLog::data);
        let Some(mut cursor) = mem.mem().cursor_to_write(self.hint) else {
            return Burst::default();
        };
        let mut ahead = look::<Writable, Bits<SET>>(mem, &mut cursor, first, burst(slots.len()));
        let mut tally = Tally::default();
        let straight = straight::<SET>(staged, &ahead, slots, log);
        let mut outcome = Burst::of(straight);
        // Of the chains looked up, those that are used.
        let (mut passed, mut work, mut fault) = (burst(straight), 0, None);
        for slot in slots.iter().take(BURST).skip(straight) {
            let (frame, mark) = (slot.frame(), staged.mark());
            let at = first.advance(mark.descs, mem.size());
            if passed > 0 && usize::from(passed) >= ahead.count {
                let left = burst(slots.len() - outcome.slots());
                ahead = look::<Writable, Bits<SET>>(mem, &mut cursor, at, left);
                passed = 0;
            }
            let is_plain = !Bits::<SET>::EXTRA || slot.offload().is_none();
            let put = if is_plain {
                place::<SET>(
                    ahead.chain(passed),
                    mem,
                    at,
                    staged,
                    &mut work,
                    &mut cursor,
                    frame,
                    log,
                )
            } else {
                self.offloads.send(slot, &mut tally, counters, |frame, taken| {
                    let at = first.advance(staged.descs, mem.size());
                    let chain = ahead.chain(passed.saturating_add(taken));
                    place::<SET>(chain, mem, at, staged, &mut work, &mut cursor, frame, log)
                })
            };
            match put {
                Ok(Put::Done(taken)) => {
                    if is_plain {
                        tally.count(frame, frame.len());
                    }
                    outcome.frames += 1;
                    // All chains looked up but the last are of one descriptor: the next begins where it was looked up.
                    passed += taken;
                }
                Ok(Put::Oversize) => {
                    tally.oversize += 1;
                    staged.rewind(mark);
                }
                Ok(Put::Invalid) => {
                    tally.invalid += 1;
                    outcome.invalid += 1;
                    staged.rewind(mark);
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
        let count = || {
            tally.frames(slots.iter().take(straight).map(TxSlot::frame));
            tally
        };
        self.finish(count, counters);
        Burst {
            halted: fault.is_some(),
            ..outcome
        }
    }
}

/// The common case, in a loop of its own: frames as they are, each into the one buffer looked up for it. Says how many
/// from the first on; nothing is done for the one behind them.
#[inline(always)]
fn straight<const SET: usize>(
    staged: &mut Staged,
    ahead: &Ahead<'_>,
    slots: &[TxSlot<'_>],
    log: Option<&Dirty>,
) -> usize {
    let (mut done, plans) = (0, ahead.plans());
    for (((slot, plan), id), used) in slots.iter().zip(plans).zip(&ahead.tags).zip(staged.spare()) {
        own(plans.get(done + 1), slots.get(done + 1));
        let is_plain = !Bits::<SET>::EXTRA || slot.offload().is_none();
        let Plan::Direct(buffer) = plan else { break };
        if !is_plain || !put::<Bits<SET>>(*buffer, slot.frame(), log) {
            break;
        }
        *used = Used {
            id: *id,
            descs: 1,
            len: Bits::<SET>::HEADER + slot.len(),
        };
        done += 1;
    }
    staged.add_spare(done);
    done
}

/// Puts a frame into the chain looked up for it or, if that is not enough or none was, into the chains from `at` on, which
/// begin with it. Counts descriptors walked in `work`.
#[expect(
    clippy::too_many_arguments,
    reason = "a struct of them would be built for each frame"
)]
#[inline(always)]
fn place<'m, const SET: usize>(
    chain: Option<(u16, Plan<'m>)>,
    mem: &'m PackedMem,
    at: Position,
    staged: &mut Staged,
    work: &mut u32,
    cursor: &mut Cursor<'m>,
    frame: impl Content,
    log: Option<&Dirty>,
) -> Result<Put, FaultReason> {
    match chain {
        Some((id, Plan::Direct(buffer))) if put::<Bits<SET>>(buffer, frame, log) => {
            let len = Bits::<SET>::HEADER + frame.len();
            match staged.push(Used { id, descs: 1, len }) {
                Ok(()) => Ok(Put::Done(1)),
                Err(error) => Err(broken(at, error)),
            }
        }
        _ => {
            let begun = staged.count;
            let buffers = Buffers::<SET> {
                mem,
                at,
                staged,
                work,
            };
            let put = scatter::<Bits<SET>>(buffers, cursor, frame, log)?;
            match put {
                Put::Done(taken) if Bits::<SET>::EXTRA && taken > 1 => staged.join(begun, taken),
                _ => {}
            }
            Ok(put)
        }
    }
}

/// The chains that one frame may go into.
struct Buffers<'a, 'm, const SET: usize> {
    mem: &'m PackedMem,
    /// Where the next is, if it is available.
    at: Position,
    staged: &'a mut Staged,
    /// Counts descriptors walked.
    work: &'a mut u32,
}

impl<'m, const SET: usize> frame::Buffers<'m> for Buffers<'_, 'm, SET> {
    fn fill(&mut self, cursor: &mut Cursor<'m>, writer: &mut Writer<'_, 'm>) -> Result<bool, FaultReason> {
        let (mem, at) = (self.mem, self.at);
        let Some(first) = mem.desc(at.index).filter(|desc| at.is_available(desc.flags)) else {
            return Ok(false);
        };
        if let Some(next) = mem.desc(at.advance(1, mem.size()).index) {
            writer.own_next(&first, &next, cursor);
        }
        let mut chain = Chain::<_, Writable>::new(mem, at.index, first, Bits::<SET>::INDIRECT);
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

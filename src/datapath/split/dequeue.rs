//! Out of the guest: a burst from a split transmitq.

use super::{beyond, burst, Ahead, Bits, Plan, Set, SplitRing, WORK};
use crate::datapath::config::FaultReason;
use crate::datapath::counters::{Counters, Tally};
use crate::datapath::ring::Burst;
use crate::datapath::slot::RxSlot;
use crate::memory::{Cursor, GuestSlice};
use crate::virtio::chain::{Chain, ChainError, Readable};

/// What became of one chain.
enum Taken {
    Frame,
    /// No more than a header.
    Runt,
    /// More than the slot's room.
    Oversize,
}

impl<const SET: usize> SplitRing<SET> {
    /// A burst from a ring with `ready` chains, more than none.
    pub(super) fn dequeue_ready(
        &mut self,
        ready: u16,
        slots: &mut [RxSlot<'_>],
        counters: &Counters,
    ) -> Burst {
        let (mem, next) = (&self.mem, self.next);
        let Some(mut cursor) = mem.mem().cursor(self.hint) else {
            return Burst::default();
        };
        let ahead = Ahead::look::<Readable>(mem, &mut cursor, next, ready.min(burst(slots.len())));
        let mut tally = Tally::default();
        let (mut chains, mut frames, mut work) = (0_u16, 0, 0);
        let mut fault = None;
        for (head, plan) in ahead.chains() {
            let Some(slot) = slots.get_mut(frames) else { break };
            let taken = match plan {
                Plan::Direct(buffer) => Ok(take::<Bits<SET>>(buffer, slot)),
                Plan::Walk(first) => {
                    let chain = Chain::new(mem, first, Bits::<SET>::INDIRECT);
                    gather::<Bits<SET>>(chain, &mut cursor, slot, &mut work)
                }
                Plan::Beyond => Err(beyond(mem, head)),
            };
            match taken {
                Ok(Taken::Frame) => {
                    tally.frame(slot.frame());
                    frames += 1;
                }
                Ok(Taken::Runt) => tally.runts += 1,
                Ok(Taken::Oversize) => tally.oversize += 1,
                Err(error) => {
                    slot.clear();
                    fault = Some(FaultReason::Chain {
                        avail: next.wrapping_add(chains),
                        head,
                        error,
                    });
                    break;
                }
            }
            // Length 0: the device wrote nothing into a buffer that it only reads.
            mem.write_used(next.wrapping_add(chains), head, 0);
            chains += 1;
            if work > WORK {
                break;
            }
        }
        self.hint = cursor.hint();
        self.fault = fault;
        self.finish(chains, &tally, counters);
        Burst {
            slots: frames,
            frames,
            broken: fault.is_some(),
        }
    }
}

/// Takes the frame out of a buffer in one piece.
#[inline(always)]
fn take<S: Set>(buffer: GuestSlice<'_>, slot: &mut RxSlot<'_>) -> Taken {
    // What the header says matters only to offloads, none of which are offered: it is not even read.
    let (_, frame) = buffer.split_at(S::HEADER);
    slot.clear();
    if frame.is_empty() {
        Taken::Runt
    } else if slot.append(frame) {
        Taken::Frame
    } else {
        Taken::Oversize
    }
}

/// Takes the frame out of any chain. The header may lie in any number of descriptors and share one with the frame.
///
/// Walks to the end of a frame that does not fit, too: a chain without end is a broken ring, however long its frame.
#[inline(never)]
fn gather<'m, S: Set>(
    mut chain: Chain<'m, Readable>,
    cursor: &mut Cursor<'m>,
    slot: &mut RxSlot<'_>,
    work: &mut u32,
) -> Result<Taken, ChainError> {
    slot.clear();
    let mut header = S::HEADER;
    let mut fits = true;
    while let Some(piece) = chain.next(cursor)? {
        let (in_header, frame) = piece.split_at(header);
        header -= in_header.len();
        fits = fits && slot.append(frame);
    }
    *work += u32::from(chain.walked());
    if !fits {
        slot.clear();
        return Ok(Taken::Oversize);
    }
    Ok(if slot.is_empty() {
        Taken::Runt
    } else {
        Taken::Frame
    })
}

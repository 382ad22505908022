//! Out of the guest: a burst from a split transmitq.

use super::{beyond, give_back, look, SplitRing};
use crate::datapath::ahead::{burst, Ahead, Plan};
use crate::datapath::config::FaultReason;
use crate::datapath::counters::{Counters, Tally};
use crate::datapath::dirty::extra;
use crate::datapath::frame::{gather, take, Taken, WORK};
use crate::datapath::miss::Halt;
use crate::datapath::offload::Offloads;
use crate::datapath::ring::Burst;
use crate::datapath::set::{Bits, Set};
use crate::datapath::slot::RxSlot;
use crate::memory::Access;
use crate::virtio::chain::{Chain, Readable};

/// What a used entry says of a buffer that the device only reads: that it wrote nothing into it.
pub(super) const READ: u32 = 0;

impl<const SET: usize> SplitRing<SET> {
    /// A burst from a ring with `ready` chains, more than none.
    pub(super) fn dequeue_ready(
        &mut self,
        ready: u16,
        slots: &mut [RxSlot<'_>],
        counters: &Counters,
    ) -> Burst {
        let (mem, next, log) = (&self.mem, self.next, extra::<Bits<SET>, _>(&self.log));
        let Some(mut cursor) = mem.mem().cursor(self.hint) else {
            return Burst::default();
        };
        let count = ready.min(burst(slots.len()));
        let ahead = look::<Readable, Bits<SET>>(mem, &mut cursor, next, count, self.stays);
        let mut tally = Tally::default();
        let mut frames = straight::<SET>(&ahead, slots, &self.offloads);
        let (mut chains, mut work, mut large) = (burst(frames), 0, 0);
        if !self.in_order {
            for (at, head) in (0..chains).zip(&ahead.tags) {
                self.stays = give_back(mem, log, next.wrapping_add(at), *head, READ);
            }
        }
        let mut fault = None;
        for (head, plan) in ahead.chains().skip(frames) {
            let Some(slot) = slots.get_mut(frames) else { break };
            let taken = match plan {
                Plan::Direct(buffer) => Ok(take::<Bits<SET>>(buffer, slot, &self.offloads)),
                Plan::Walk(first) => {
                    let mut chain = Chain::new(mem, head, first, Bits::<SET>::INDIRECT);
                    gather::<Bits<SET>, _>(&mut chain, &mut cursor, slot, &self.offloads, &mut work)
                }
                Plan::Beyond => Err(beyond(mem, head)),
            };
            match taken {
                Ok(Taken::Large(len)) => {
                    large = len;
                    break;
                }
                Ok(taken) => frames += taken.count(&mut tally),
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
            if !self.in_order {
                give_back(mem, log, next.wrapping_add(chains), head, READ);
            }
            chains += 1;
            if work > WORK {
                break;
            }
        }
        if let (true, Some(last)) = (self.in_order, chains.checked_sub(1)) {
            // One entry stands for the batch: where its first would be, with the head of its last (VIRTIO 1.2, 2.7.9). That
            // is for buffers that the device reads; of those it writes each has its length.
            let head = ahead.chain(last).map_or(0, |(head, _)| head);
            self.stays = give_back(mem, log, next, head, READ);
        }
        self.hint = cursor.hint();
        if let Some(reason) = fault {
            self.halt = Some(Halt::new(self.mem.mem(), reason, Access::Read));
        }
        let count = || {
            let moved = slots.get(..frames).unwrap_or_default();
            tally.frames(moved.iter().map(RxSlot::frame));
            tally
        };
        self.finish(chains, count, counters);
        Burst {
            large,
            halted: fault.is_some(),
            ..Burst::of(frames)
        }
    }
}

/// The common case, in a loop of its own: frames from buffers in one piece. Says how many from the first on; what was done
/// for the one behind them is to be done anew.
#[inline(always)]
fn straight<const SET: usize>(ahead: &Ahead<'_>, slots: &mut [RxSlot<'_>], offloads: &Offloads) -> usize {
    let mut done = 0;
    for (plan, slot) in ahead.plans().iter().zip(slots) {
        match plan {
            Plan::Direct(buffer) if take::<Bits<SET>>(*buffer, slot, offloads).is_frame() => done += 1,
            _ => break,
        }
    }
    done
}

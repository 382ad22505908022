//! Out of the guest: a burst from a packed transmitq.

use super::{broken, look, PackedRing, Staged};
use crate::datapath::ahead::{burst, Ahead, Plan};
use crate::datapath::counters::{Counters, Tally};
use crate::datapath::frame::{gather, take, Taken, WORK};
use crate::datapath::miss::Halt;
use crate::datapath::offload::Offloads;
use crate::datapath::ring::Burst;
use crate::datapath::set::{Bits, Set};
use crate::datapath::slot::RxSlot;
use crate::memory::Access;
use crate::virtio::chain::{Chain, DescRing, Extent, Readable};
use crate::virtio::packed_ring::Used;

impl<const SET: usize> PackedRing<SET> {
    /// A burst from a ring whose next descriptor is available.
    pub(super) fn dequeue_available(&mut self, slots: &mut [RxSlot<'_>], counters: &Counters) -> Burst {
        let (mem, staged, mut at) = (&self.mem, &mut self.staged, self.next);
        let offloads = &self.offloads;
        let Some(mut cursor) = mem.mem().cursor(self.hint) else {
            return Burst::default();
        };
        let mut tally = Tally::default();
        let (mut left, mut frames, mut work, mut large) = (burst(slots.len()), 0, 0, 0);
        let mut fault = None;
        'burst: while left > 0 {
            let ahead = look::<Readable, Bits<SET>>(mem, &mut cursor, at, left);
            if ahead.count == 0 {
                break;
            }
            let done = straight::<SET>(
                staged,
                &ahead,
                slots.get_mut(frames..).unwrap_or_default(),
                offloads,
            );
            frames += done;
            left -= burst(done);
            at = at.advance(burst(done), mem.size());
            for (id, plan) in ahead.chains().skip(done) {
                let Some(slot) = slots.get_mut(frames) else {
                    break 'burst;
                };
                let mark = staged.mark();
                // Length 0: the device wrote nothing into a buffer that it only reads.
                let taken = match plan {
                    Plan::Direct(buffer) => staged
                        .push(Used { id, descs: 1, len: 0 })
                        .map(|()| (take::<Bits<SET>>(buffer, slot, offloads), 1)),
                    Plan::Walk(first) => {
                        let mut chain = Chain::new(mem, at.index, first, Bits::<SET>::INDIRECT);
                        let gathered =
                            gather::<Bits<SET>, _>(&mut chain, &mut cursor, slot, offloads, &mut work);
                        gathered.and_then(|taken| {
                            let Extent { descs, last: id } = chain.finish(&mut cursor)?;
                            staged.push(Used { id, descs, len: 0 })?;
                            Ok((taken, descs))
                        })
                    }
                    Plan::Beyond => break 'burst,
                };
                match taken {
                    Ok((Taken::Large(len), _)) => {
                        staged.rewind(mark);
                        large = len;
                        break 'burst;
                    }
                    Ok((taken, descs)) => {
                        frames += taken.count(&mut tally);
                        at = at.advance(descs, mem.size());
                        left -= 1;
                    }
                    Err(error) => {
                        slot.clear();
                        fault = Some(broken(at, error));
                        break 'burst;
                    }
                }
                if work > WORK {
                    break 'burst;
                }
            }
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
        self.finish(count, counters);
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
fn straight<const SET: usize>(
    staged: &mut Staged,
    ahead: &Ahead<'_>,
    slots: &mut [RxSlot<'_>],
    offloads: &Offloads,
) -> usize {
    let mut done = 0;
    let plans = ahead
        .plans()
        .iter()
        .zip(&ahead.tags)
        .zip(slots)
        .zip(staged.spare());
    for (((plan, id), slot), used) in plans {
        match plan {
            Plan::Direct(buffer) if take::<Bits<SET>>(*buffer, slot, offloads).is_frame() => {
                // Length 0: the device wrote nothing into a buffer that it only reads.
                *used = Used {
                    id: *id,
                    descs: 1,
                    len: 0,
                };
                done += 1;
            }
            _ => break,
        }
    }
    staged.add_spare(done);
    done
}

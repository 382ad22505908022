//! Into the guest: a burst to a split receiveq.

use super::dirty::SplitLog;
use super::{beyond, give_back, look, SplitRing};
use crate::datapath::ahead::{burst, Ahead, Plan};
use crate::datapath::config::FaultReason;
use crate::datapath::counters::{Counters, Tally};
use crate::datapath::dirty::extra;
use crate::datapath::frame::{self, own, put, scatter, Content, Put, Writer, WORK};
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
        let Some(mut cursor) = mem.mem().cursor_to_write(self.hint) else {
            return Burst::default();
        };
        let count = ready.min(burst(slots.len()));
        let ahead = look::<Writable, Bits<SET>>(mem, &mut cursor, next, count, self.stays);
        let mut tally = Tally::default();
        let straight = straight::<SET>(&ahead, slots, log);
        for ((at, head), slot) in (0..burst(straight)).zip(&ahead.tags).zip(slots) {
            self.stays = give_back(
                mem,
                log,
                next.wrapping_add(at),
                *head,
                Bits::<SET>::HEADER + slot.len(),
            );
        }
        let mut outcome = Burst::of(straight);
        let (mut chains, mut work, mut fault) = (burst(straight), 0, None);
        for slot in slots.iter().take(BURST).skip(straight) {
            let frame = slot.frame();
            let is_plain = !Bits::<SET>::EXTRA || slot.offload().is_none();
            let put = if is_plain {
                let (at, left) = (next.wrapping_add(chains), ready - chains);
                place::<SET>(
                    ahead.chain(chains),
                    mem,
                    at,
                    left,
                    &mut work,
                    &mut cursor,
                    frame,
                    log,
                )
            } else {
                self.offloads.send(slot, &mut tally, counters, |frame, taken| {
                    let chain = chains + taken;
                    let (at, left) = (next.wrapping_add(chain), ready - chain);
                    place::<SET>(
                        ahead.chain(chain),
                        mem,
                        at,
                        left,
                        &mut work,
                        &mut cursor,
                        frame,
                        log,
                    )
                })
            };
            match put {
                Ok(Put::Done(taken)) => {
                    if is_plain {
                        tally.count(frame, frame.len());
                    }
                    outcome.frames += 1;
                    chains += taken;
                }
                Ok(Put::Oversize) => tally.oversize += 1,
                Ok(Put::Invalid) => {
                    tally.invalid += 1;
                    outcome.invalid += 1;
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
        let count = || {
            tally.frames(slots.iter().take(straight).map(TxSlot::frame));
            tally
        };
        self.finish(chains, count, counters);
        Burst {
            halted: fault.is_some(),
            ..outcome
        }
    }
}

/// The common case, in a loop of its own: frames as they are, each into the one buffer looked up for it. Says how many
/// from the first on; nothing is done for the one behind them.
///
/// Their used entries are for the caller to write, all at once: the driver's core reads ahead in the used ring, and takes a line
/// away from who is still writing it, once a frame.
#[inline(always)]
fn straight<const SET: usize>(ahead: &Ahead<'_>, slots: &[TxSlot<'_>], log: Option<&SplitLog>) -> usize {
    let mut done = 0;
    for (slot, plan) in slots.iter().zip(ahead.plans()) {
        own(ahead.plans().get(done + 1), slots.get(done + 1));
        let is_plain = !Bits::<SET>::EXTRA || slot.offload().is_none();
        let Plan::Direct(buffer) = plan else { break };
        if !is_plain || !put::<Bits<SET>>(*buffer, slot.frame(), log.map(SplitLog::data)) {
            break;
        }
        done += 1;
    }
    done
}

impl<const SET: usize> SplitRing<SET> {
    /// Goes on with a burst for which the chains known of did not suffice: there may be more by now.
    #[cold]
    pub(super) fn enqueue_more(&mut self, first: Burst, slots: &[TxSlot<'_>], counters: &Counters) -> Burst {
        let rest = slots.get(first.slots()..).unwrap_or_default();
        let known = self.avail.wrapping_sub(self.next);
        let burst = match self.ready(u16::MAX) {
            ready if ready > known => self.enqueue_ready(ready, rest, counters),
            _ => self.idle(),
        };
        Burst {
            slots: first.slots + burst.slots,
            frames: first.frames + burst.frames,
            invalid: first.invalid + burst.invalid,
            ..burst
        }
    }
}

/// Puts a frame into the chain looked up for it or, if that is not enough or none was, into the `left` chains from avail
/// index `at` on, which begin with it. Counts descriptors walked in `work`.
#[expect(
    clippy::too_many_arguments,
    reason = "a struct of them would be built for each frame"
)]
#[inline(always)]
fn place<'m, const SET: usize>(
    chain: Option<(u16, Plan<'m>)>,
    mem: &'m SplitMem,
    at: u16,
    left: u16,
    work: &mut u32,
    cursor: &mut Cursor<'m>,
    frame: impl Content,
    log: Option<&SplitLog>,
) -> Result<Put, FaultReason> {
    let data = log.map(SplitLog::data);
    match chain {
        Some((head, Plan::Direct(buffer))) if put::<Bits<SET>>(buffer, frame, data) => {
            give_back(mem, log, at, head, Bits::<SET>::HEADER + frame.len());
            Ok(Put::Done(1))
        }
        _ => {
            let buffers = Buffers::<SET> {
                mem,
                next: at,
                left,
                work,
                log,
            };
            scatter::<Bits<SET>>(buffers, cursor, frame, data)
        }
    }
}

/// Descriptors of a cache line.
const PER_LINE: u16 = 4;

/// The chains that one frame may go into.
struct Buffers<'a, 'm, const SET: usize> {
    mem: &'m SplitMem,
    /// Avail index of the first.
    next: u16,
    left: u16,
    /// Counts descriptors walked.
    work: &'a mut u32,
    log: Option<&'a SplitLog>,
}

impl<'m, const SET: usize> frame::Buffers<'m> for Buffers<'_, 'm, SET> {
    fn fill(&mut self, cursor: &mut Cursor<'m>, writer: &mut Writer<'_, 'm>) -> Result<bool, FaultReason> {
        let (mem, avail) = (self.mem, self.next);
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(false);
        };
        self.left = left;
        let head = mem.avail_entry(avail);
        let broken = |error| FaultReason::Chain { avail, head, error };
        let first = mem.desc(head).ok_or_else(|| broken(beyond(mem, head)))?;
        if left > 0 {
            mem.prefetch_desc(mem.avail_entry(avail.wrapping_add(PER_LINE)));
            if let Some(next) = mem.desc(mem.avail_entry(avail.wrapping_add(1))) {
                writer.own_next(&first, &next, cursor);
            }
        }
        let mut chain = Chain::<_, Writable>::new(mem, head, first, Bits::<SET>::INDIRECT);
        let written = writer.fill(&mut chain, cursor).map_err(broken)?;
        give_back(mem, self.log, avail, head, written);
        *self.work += u32::from(chain.walked());
        self.next = avail.wrapping_add(1);
        Ok(true)
    }
}

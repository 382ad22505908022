//! The packed ring, as the device serves it (VIRTIO 1.2, 2.8), compiled once per feature set.
//!
//! Chains are used in the order they were made available, and all that a burst takes it gives back. So at rest one
//! position says both what to take next and where the next used descriptor goes.
//!
//! A used descriptor takes the place of an available one, which is gone then. So what a burst has used is staged, and
//! written when it ends: all but the first, then the first, behind which the driver does not look before it is there.

mod dequeue;
mod enqueue;
mod resume;

use std::sync::Arc;

use super::ahead::{burst, Ahead, Plan};
use super::call::Call;
use super::config::{self, FaultReason, RingConfig, RingError};
use super::counters::{Counters, Tally};
use super::miss::{self, Halt, Search, AHEAD};
use super::ring::{Burst, Ring, BURST};
use super::set::{per_set, set_number, Bits, Set, SETS};
use super::slot::{RxSlot, TxSlot};
use crate::memory::{Cursor, MemTable, Miss};
use crate::virtio::chain::{Chain, ChainError, DescRing, Direction, Readable, Writable};
use crate::virtio::desc::{Desc, VIRTQ_DESC_F_NEXT};
use crate::virtio::notify::packed_driver_wants_call;
use crate::virtio::packed_ring::{Event, PackedMem, Position, Used, RING_EVENT_FLAGS_DISABLE};
use crate::virtio::ring::RingAddrs;

/// A packed ring with the code for one feature set.
#[repr(align(64))]
struct PackedRing<const SET: usize> {
    mem: PackedMem,
    /// The next descriptor to take, and the next to give back.
    next: Position,
    /// The region of the last buffer.
    hint: u16,
    vring: u16,
    call: Call,
    staged: Staged,
    halt: Option<Halt>,
}

/// Starts a packed ring.
///
/// # Errors
///
/// A bad layout, or a base that is no position in the ring; nothing in guest memory was changed then.
pub(super) fn attach(config: RingConfig) -> Result<Box<dyn Ring>, RingError> {
    let RingConfig {
        index,
        size,
        desc,
        driver,
        device,
        base,
        features,
        mem,
        call,
    } = config;
    let addrs = RingAddrs { desc, driver, device };
    let mem = PackedMem::new(mem, size, addrs).map_err(|error| RingError::Layout { index, error })?;
    let next = resume::resume(&mem, index, base)?;
    // We poll: the driver need not kick.
    mem.set_device_event(Event {
        desc: 0,
        flags: RING_EVENT_FLAGS_DISABLE,
    });
    let parts = Parts {
        mem,
        next,
        vring: index,
        call: Call::new(call),
    };
    let with_set = RINGS.get(set_number(features)).unwrap_or(&RINGS[0]);
    Ok(with_set(parts))
}

struct Parts {
    mem: PackedMem,
    next: Position,
    vring: u16,
    call: Call,
}

fn boxed<const SET: usize>(parts: Parts) -> Box<dyn Ring> {
    let Parts {
        mem,
        next,
        vring,
        call,
    } = parts;
    Box::new(PackedRing::<SET> {
        staged: Staged::new(mem.size()),
        mem,
        next,
        hint: 0,
        vring,
        call,
        halt: None,
    })
}

/// All the code there is for packed rings, by the number of the set.
const RINGS: [fn(Parts) -> Box<dyn Ring>; SETS] = per_set!(boxed);

impl<const SET: usize> Ring for PackedRing<SET> {
    #[inline]
    fn dequeue(&mut self, slots: &mut [RxSlot<'_>], counters: &Counters) -> Burst {
        match self.mem.is_available(self.next) {
            true => self.dequeue_available(slots, counters),
            false => Burst::default(),
        }
    }

    #[inline]
    fn enqueue(&mut self, slots: &[TxSlot<'_>], counters: &Counters) -> Burst {
        match self.mem.is_available(self.next) {
            true => self.enqueue_available(slots, counters),
            false => Burst::default(),
        }
    }

    /// Counts descriptors, of which a buffer may have several.
    fn backlog(&self) -> u16 {
        let (mut at, mut count) = (self.next, 0);
        while count < self.mem.size() && self.mem.is_available(at) {
            at = at.advance(1, self.mem.size());
            count += 1;
        }
        count
    }

    fn next_avail(&self) -> u16 {
        self.next.bits()
    }

    fn base(&self) -> u32 {
        u32::from(self.next.bits()) << 16 | u32::from(self.next.bits())
    }

    fn size(&self) -> u16 {
        self.mem.size()
    }

    fn vring(&self) -> u16 {
        self.vring
    }

    fn take_halt(&mut self) -> Option<Halt> {
        self.halt.take()
    }

    fn replace_mem(&mut self, mem: &Arc<MemTable>) -> bool {
        self.mem.replace_mem(mem)
    }

    fn misses(&self, direction: config::Direction, visit: &mut dyn FnMut(Miss) -> bool) {
        let Some(search) = Search::new(self.mem.mem(), direction, visit) else {
            return;
        };
        match direction {
            config::Direction::Dequeue => self.search::<Readable>(search),
            config::Direction::Enqueue => self.search::<Writable>(search),
        }
    }

    fn look_ahead(&self, direction: config::Direction) -> Option<Miss> {
        miss::peek(self.mem.mem(), self.soon()?, direction.access())
    }

    fn call(&self, counters: &Counters) {
        self.call.signal(counters);
    }
}

impl<const SET: usize> PackedRing<SET> {
    /// Ends a burst: gives back what it staged, and calls the driver if it wants that. Counts `tally`.
    #[inline(always)]
    fn finish(&mut self, tally: &Tally, counters: &Counters) {
        counters.add(tally);
        if self.staged.descs == 0 {
            return;
        }
        self.staged.publish(&self.mem, self.next);
        let descs = self.staged.descs;
        self.next = self.next.advance(descs, self.mem.size());
        self.staged.rewind(Mark { count: 0, descs: 0 });
        if self.call.is_possible() && self.wants_call(descs) {
            self.call.signal(counters);
        }
    }

    /// Looks at each available chain.
    fn search<'m, D: Direction>(&'m self, mut search: Search<'_, 'm>) {
        let (mut at, mut left) = (self.next, self.mem.size().min(AHEAD));
        while let Some(first) = self.mem.desc(at.index).filter(|desc| at.is_available(desc.flags)) {
            let chain = Chain::<_, D>::new(&self.mem, at.index, first, Bits::<SET>::INDIRECT);
            let Some((extent, rest)) = search
                .chain(chain)
                .and_then(|extent| Some((extent, left.checked_sub(extent.descs)?)))
            else {
                break;
            };
            left = rest;
            at = at.advance(extent.descs, self.mem.size());
        }
    }

    /// An available descriptor that is due about a burst from now, or sooner if there are not so many.
    fn soon(&self) -> Option<Desc> {
        let available = |ahead: u16| {
            let at = self.next.advance(ahead.min(self.mem.size() - 1), self.mem.size());
            self.mem.desc(at.index).filter(|desc| at.is_available(desc.flags))
        };
        [burst(BURST) - 1, 15, 7, 3, 1, 0].into_iter().find_map(available)
    }

    #[inline(always)]
    fn wants_call(&self, descs: u16) -> bool {
        match Bits::<SET>::EVENT_IDX {
            true => packed_driver_wants_call::<true>(&self.mem, descs, self.next),
            false => packed_driver_wants_call::<false>(&self.mem, descs, self.next),
        }
    }
}

/// What a burst has used and not yet written into the ring.
///
/// # Invariants
///
/// `descs` is the sum over the first `count` entries, each of which has at least one, and is at most the ring's size: so
/// there is an entry for each, and no burst goes round the ring twice, whatever the driver does meanwhile.
struct Staged {
    used: Box<[Used]>,
    count: usize,
    descs: u16,
}

/// A state of [`Staged`] to go back to.
#[derive(Clone, Copy)]
struct Mark {
    count: usize,
    descs: u16,
}

impl Staged {
    fn new(size: u16) -> Self {
        let none = Used {
            id: 0,
            descs: 0,
            len: 0,
        };
        Self {
            used: vec![none; usize::from(size)].into(),
            count: 0,
            descs: 0,
        }
    }

    /// Stages one chain.
    ///
    /// # Errors
    ///
    /// [`ChainError::TooLong`] if the burst would have taken more descriptors than there are.
    #[inline(always)]
    fn push(&mut self, used: Used) -> Result<(), ChainError> {
        let size = u16::try_from(self.used.len()).unwrap_or(u16::MAX);
        let descs = self.descs.checked_add(used.descs).filter(|descs| *descs <= size);
        match (descs, self.used.get_mut(self.count)) {
            (Some(descs), Some(entry)) => {
                *entry = used;
                self.count += 1;
                self.descs = descs;
                Ok(())
            }
            _ => Err(ChainError::TooLong(size)),
        }
    }

    #[inline(always)]
    fn mark(&self) -> Mark {
        Mark {
            count: self.count,
            descs: self.descs,
        }
    }

    /// Forgets what was staged since `mark`.
    #[inline(always)]
    fn rewind(&mut self, mark: Mark) {
        (self.count, self.descs) = (mark.count, mark.descs);
    }

    /// Writes all that is staged from position `first` on, so that the driver sees all or nothing of it.
    #[inline(always)]
    fn publish(&self, mem: &PackedMem, first: Position) {
        let staged = self.used.get(..self.count).unwrap_or_default();
        let Some((head, others)) = staged.split_first() else {
            return;
        };
        let mut at = first.advance(head.descs, mem.size());
        for used in others {
            mark_behind(mem, at, used.descs);
            mem.write_used(at, *used);
            at = at.advance(used.descs, mem.size());
        }
        mark_behind(mem, first, head.descs);
        mem.publish_used(first, *head);
    }
}

/// Marks the descriptors behind the first of a chain as used: so the ring alone tells where it stands, see [`resume`].
/// From the last on, so that a chain of which any is marked is marked to its end.
#[inline(always)]
fn mark_behind(mem: &PackedMem, first: Position, descs: u16) {
    for behind in (1..descs).rev() {
        mem.mark_used(first.advance(behind, mem.size()));
    }
}

/// How many descriptors further on a line is asked for: of two lines, while the one before them is read.
const STRIDE: u16 = 8;

/// Looks up the available chains from position `at` on, at most `count`: up to the first that has several descriptors in
/// the ring, since only a walk tells where the next one begins.
#[inline(always)]
fn look<'m, D: Direction>(
    mem: &'m PackedMem,
    cursor: &mut Cursor<'m>,
    mut at: Position,
    count: u16,
) -> Ahead<'m> {
    let mut ahead = Ahead::none();
    let size = mem.size();
    for (tag, plan) in ahead
        .tags
        .iter_mut()
        .zip(&mut ahead.plans)
        .take(usize::from(count))
    {
        let Some(first) = mem.desc(at.index).filter(|desc| at.is_available(desc.flags)) else {
            break;
        };
        mem.prefetch_line(at.advance(STRIDE.min(size), size).index);
        *tag = first.next;
        *plan = Plan::new::<PackedMem, D>(mem, at.index, first, cursor);
        ahead.count += 1;
        if first.has(VIRTQ_DESC_F_NEXT) {
            break;
        }
        at = at.advance(1, size);
    }
    ahead
}

/// The fault of a driver whose chain at `at` breaks a rule.
#[cold]
fn broken(at: Position, error: ChainError) -> FaultReason {
    FaultReason::Chain {
        avail: at.bits(),
        head: at.index,
        error,
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

//! The packed ring, as the device serves it (VIRTIO 1.2, 2.8), compiled once per feature set.
//!
//! Chains are used in the order they were made available, and all that a burst takes it gives back. So at rest one
//! position says both what to take next and where the next used descriptor goes.
//!
//! A used descriptor takes the place of an available one, which is gone then. So what a burst has used is staged, and
//! written when it ends: all but the first, then the first, behind which the driver does not look before it is there.

mod dequeue;
mod dirty;
mod discard;
mod enqueue;
mod inflight;
mod resume;
mod staged;

use std::sync::Arc;

use self::dirty::PackedLog;
use self::inflight::Track;
use self::staged::{Mark, Staged};
use super::ahead::{burst, Ahead, Plan};
use super::call::Call;
use super::config::{self, FaultReason, RingConfig, RingError};
use super::counters::{Counters, Tally};
use super::dirty::extra;
use super::miss::{self, Halt, Search, AHEAD};
use super::offload::Offloads;
use super::ring::{Attached, Burst, Ring, Start, BURST};
use super::set::{per_set, set_number, Bits, Set, SETS};
use super::slot::{RxSlot, TxSlot};
use crate::memory::{cpu, Cursor, MemTable, Miss};
use crate::virtio::chain::{Chain, ChainError, DescRing, Direction, Readable, Writable};
use crate::virtio::desc::{Desc, VIRTQ_DESC_F_NEXT};
use crate::virtio::notify::packed_driver_wants_call;
use crate::virtio::packed_ring::{
    Event, PackedMem, Position, RING_EVENT_FLAGS_DISABLE, RING_EVENT_FLAGS_ENABLE,
};
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
    track: Option<Track>,
    log: Option<Box<PackedLog>>,
    halt: Option<Halt>,
    offloads: Offloads,
}

/// Starts a packed ring.
///
/// # Errors
///
/// A bad layout, or a base that is no position in the ring; nothing in guest memory was changed then.
pub(super) fn attach(config: RingConfig, start: Start) -> Result<Attached, RingError> {
    let offloads = Offloads::new(&config);
    let with_set = RINGS.get(set_number(&config)).unwrap_or(&RINGS[0]);
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
        offloads: _,
        inflight,
        log,
    } = config;
    let addrs = RingAddrs { desc, driver, device };
    let mem = PackedMem::new(mem, size, addrs)?;
    let log = log.map(|log| Box::new(PackedLog::new(log, &mem)));
    let before = log.as_ref().map(|_| PackedLog::look(&mem));
    let mut found = Vec::new();
    let (track, next) = match (start, inflight) {
        (Start::Here, part) => (part.map(Track::go_on), resume::positions(base, size)?.0),
        (Start::Resume, Some(part)) => {
            Track::attach(part, &mem, base, features, &mut found).map(|(track, next)| (Some(track), next))?
        }
        (Start::Resume, None) => (None, resume::resume(&mem, base, features, &mut found)?),
    };
    if let (Some(log), Some(before)) = (&log, before) {
        log.gave_back(&mem, &before);
    }
    let parts = Parts {
        mem,
        next,
        vring: index,
        call: Call::new(call),
        track,
        offloads,
        log,
    };
    let ring = with_set(parts);
    if start == Start::Resume {
        // We poll.
        ring.want_kicks(false);
    }
    Ok((ring, found))
}

struct Parts {
    mem: PackedMem,
    next: Position,
    vring: u16,
    call: Call,
    track: Option<Track>,
    offloads: Offloads,
    log: Option<Box<PackedLog>>,
}

fn boxed<const SET: usize>(parts: Parts) -> Box<dyn Ring> {
    let Parts {
        mem,
        next,
        vring,
        call,
        track,
        offloads,
        log,
    } = parts;
    Box::new(PackedRing::<SET> {
        staged: Staged::new(mem.size()),
        mem,
        next,
        hint: 0,
        vring,
        call,
        track,
        log,
        halt: None,
        offloads,
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

    fn discard(&mut self, counters: &Counters) -> u16 {
        self.discard_available(counters)
    }

    fn want_kicks(&self, wanted: bool) {
        let flags = match wanted {
            true => RING_EVENT_FLAGS_ENABLE,
            false => RING_EVENT_FLAGS_DISABLE,
        };
        self.mem.set_device_event(Event { desc: 0, flags });
        // Pairs with the driver's barrier between publishing and reading this: it kicks, or we see what it published.
        cpu::full_barrier();
        if let Some(log) = extra::<Bits<SET>, _>(&self.log) {
            log.wrote_event();
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
    /// Ends a burst: gives back what it staged, counts what `count` says, and calls the driver if it wants that.
    #[inline(always)]
    fn finish(&mut self, count: impl FnOnce() -> Tally, counters: &Counters) {
        let log = extra::<Bits<SET>, _>(&self.log);
        if let Some(log) = log {
            log.settle();
        }
        if self.staged.descs == 0 {
            counters.add(&count());
            return log.map_or((), PackedLog::notify);
        }
        let (first, descs) = (self.next, self.staged.descs);
        self.next = first.advance(descs, self.mem.size());
        match &self.track {
            Some(track) if Bits::<SET>::EXTRA => self
                .staged
                .publish_tracked(&self.mem, first, self.next, track, log),
            _ => self.staged.publish(&self.mem, first, log),
        }
        self.staged.rewind(Mark::default());
        // Before the barrier, which waits for the driver's core to let go of the lines just written.
        counters.add(&count());
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

/// Looks up the available chains from position `at` on, at most `count`: up to the first that has several descriptors in
/// the ring, since only a walk tells where the next one begins.
#[inline(always)]
fn look<'m, D: Direction, S: Set>(
    mem: &'m PackedMem,
    cursor: &mut Cursor<'m>,
    mut at: Position,
    count: u16,
) -> Ahead<'m> {
    let mut ahead = Ahead::none();
    let (descs, size) = (mem.descs(), mem.size());
    let (mut found, count) = (0, count.min(burst(BURST)));
    'found: while found < count {
        // Up to the end of the ring: in there a position is an index and no more.
        let run = at.run(count - found, size);
        let tags = ahead.tags.get_mut(usize::from(found)..).unwrap_or_default();
        let plans = ahead.plans.get_mut(usize::from(found)..).unwrap_or_default();
        for (index, (tag, plan)) in (at.index..at.index + run).zip(tags.iter_mut().zip(plans)) {
            let Some(first) = descs.get(index).filter(|desc| at.is_available(desc.flags)) else {
                break 'found;
            };
            descs.prefetch_behind(index);
            *tag = first.next;
            *plan = Plan::new::<PackedMem, D, S>(mem, index, first, cursor);
            found += 1;
            if first.has(VIRTQ_DESC_F_NEXT) {
                break 'found;
            }
        }
        at = at.advance(run, size);
    }
    ahead.count = usize::from(found);
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

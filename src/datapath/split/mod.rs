//! The split ring, as the device serves it (VIRTIO 1.2, 2.7), compiled once per feature set.
//!
//! Chains are used in the order they were made available, and all that a burst takes it gives back. So at rest
//! one free-running index says both what to take next and what was used last.

mod dequeue;
mod dirty;
mod discard;
mod enqueue;
mod inflight;

use std::sync::Arc;

use self::dirty::SplitLog;
use self::inflight::Track;
use super::ahead::{burst, Ahead, Plan};
use super::call::Call;
use super::config::{self, FaultReason, Found, RingConfig, RingError};
use super::counters::{Counters, Tally};
use super::dirty::extra;
use super::miss::{self, Halt, Search, AHEAD};
use super::offload::Offloads;
use super::ring::{Attached, Burst, Ring, Start, BURST};
use super::set::{per_set, set_number, Bits, Set, SETS};
use super::slot::{RxSlot, TxSlot};
use crate::memory::{cpu, Cursor, MemTable, Miss};
use crate::virtio::chain::{Chain, ChainError, DescRing, Direction, Readable, Writable};
use crate::virtio::desc::{Desc, VIRTQ_USED_F_NO_NOTIFY};
use crate::virtio::features::VIRTIO_F_IN_ORDER;
use crate::virtio::notify::driver_wants_call;
use crate::virtio::ring::{RingAddrs, SplitMem};

/// A split ring with the code for one feature set.
#[repr(align(64))]
struct SplitRing<const SET: usize> {
    mem: SplitMem,
    /// The next avail entry to take, and the next used entry to write.
    next: u16,
    /// The avail index as it was last seen: at most the ring's size ahead of `next`.
    avail: u16,
    /// The region of the last buffer.
    hint: u16,
    /// The last used entry was what it had to be before it was written.
    stays: bool,
    vring: u16,
    call: Call,
    track: Option<Track>,
    log: Option<Box<SplitLog>>,
    halt: Option<Halt>,
    offloads: Offloads,
    /// One used entry may stand for a batch (VIRTIO_F_IN_ORDER).
    in_order: bool,
}

/// Starts a split ring.
///
/// # Errors
///
/// A bad layout, or an avail index that the ring cannot hold; nothing in guest memory was changed then.
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
    let mem = SplitMem::new(mem, size, addrs)?;
    let base = u16::try_from(base).map_err(|_| RingError::Base { base, size })?;
    let (before, mut found) = (mem.used_idx(), Vec::new());
    let (track, next) = match start {
        Start::Resume => (
            inflight.map(|part| Track::attach(part, &mem, &mut found)),
            resume(&mem, base, &mut found)?,
        ),
        Start::Here => (inflight.map(Track::go_on), base),
    };
    let log = log.map(|log| Box::new(SplitLog::new(log, &mem, next)));
    if let Some(log) = log.as_ref().filter(|_| start == Start::Resume) {
        log.gave_back(before, next);
    }
    let parts = Parts {
        mem,
        next,
        vring: index,
        call: Call::new(call),
        track,
        offloads,
        log,
        in_order: features.contains(VIRTIO_F_IN_ORDER),
    };
    let ring = with_set(parts);
    if start == Start::Resume {
        // We poll.
        ring.want_kicks(false);
    }
    Ok((ring, found))
}

/// Where to go on in a ring that another back-end may have served.
///
/// Every burst gives back what it takes, so after an orderly stop `base` is used.idx. They differ when the last
/// back-end died within a burst, or the front-end lost count: then used.idx is the truth that both sides share.
/// Going on from it moves some frames twice, going on from `base` would lose the buffers in between for good.
fn resume(mem: &SplitMem, base: u16, found: &mut Vec<Found>) -> Result<u16, RingError> {
    let next = mem.used_idx();
    if next != base {
        let base = base.into();
        found.push(Found::Elsewhere { base, next });
    }
    let (avail, size) = (mem.avail_idx(), mem.size());
    if avail.wrapping_sub(next) > size {
        return Err(RingError::AvailJump { avail, next, size });
    }
    Ok(next)
}

struct Parts {
    mem: SplitMem,
    next: u16,
    vring: u16,
    call: Call,
    track: Option<Track>,
    offloads: Offloads,
    log: Option<Box<SplitLog>>,
    in_order: bool,
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
        in_order,
    } = parts;
    Box::new(SplitRing::<SET> {
        mem,
        in_order,
        next,
        avail: next,
        hint: 0,
        stays: false,
        vring,
        call,
        track,
        log,
        halt: None,
        offloads,
    })
}

/// All the code there is for split rings, by the number of the set.
const RINGS: [fn(Parts) -> Box<dyn Ring>; SETS] = per_set!(boxed);

impl<const SET: usize> Ring for SplitRing<SET> {
    #[inline]
    fn dequeue(&mut self, slots: &mut [RxSlot<'_>], counters: &Counters) -> Burst {
        match self.ready(burst(slots.len())) {
            0 => self.idle(),
            ready => self.dequeue_ready(ready, slots, counters),
        }
    }

    #[inline]
    fn enqueue(&mut self, slots: &[TxSlot<'_>], counters: &Counters) -> Burst {
        let before = self.avail;
        let burst = match self.ready(burst(slots.len())) {
            0 => return self.idle(),
            ready => self.enqueue_ready(ready, slots, counters),
        };
        match burst.slots() < slots.len().min(BURST) && !burst.halted && before == self.avail {
            true => self.enqueue_more(burst, slots, counters),
            false => burst,
        }
    }

    fn discard(&mut self, counters: &Counters) -> u16 {
        self.discard_ready(counters)
    }

    fn want_kicks(&self, wanted: bool) {
        if Bits::<SET>::EVENT_IDX {
            // The driver kicks when its index passes this one: at once, or once in 65536 entries.
            let event = if wanted {
                self.next
            } else {
                self.next.wrapping_sub(1)
            };
            self.mem.set_used_flags(0);
            self.mem.set_avail_event(event);
        } else {
            let flags = if wanted { 0 } else { VIRTQ_USED_F_NO_NOTIFY };
            self.mem.set_used_flags(flags);
        }
        // Pairs with the driver's barrier between publishing and reading this: it kicks, or we see what it published.
        cpu::full_barrier();
        if let Some(log) = extra::<Bits<SET>, _>(&self.log) {
            log.wrote_wishes(Bits::<SET>::EVENT_IDX);
        }
    }

    fn backlog(&self) -> u16 {
        match self.mem.avail_idx().wrapping_sub(self.next) {
            ready if ready <= self.mem.size() => ready,
            _ => 0,
        }
    }

    fn next_avail(&self) -> u16 {
        self.next
    }

    fn base(&self) -> u32 {
        u32::from(self.next)
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

impl<const SET: usize> SplitRing<SET> {
    /// Chains that may be taken. Looks at the avail index only if that is not known of `wanted`: the driver writes that
    /// line all the time. 0 also if the driver just broke the ring.
    #[inline(always)]
    fn ready(&mut self, wanted: u16) -> u16 {
        let known = self.avail.wrapping_sub(self.next);
        if known >= wanted {
            return known;
        }
        let avail = self.mem.avail_idx();
        let ready = avail.wrapping_sub(self.next);
        if ready > self.mem.size() {
            self.avail_jumped(avail);
            return 0;
        }
        self.avail = avail;
        ready
    }

    #[cold]
    fn avail_jumped(&mut self, avail: u16) {
        self.halt = Some(Halt::Fault(FaultReason::AvailJump {
            avail,
            next: self.next,
            size: self.mem.size(),
        }));
    }

    /// Looks at each available chain.
    fn search<'m, D: Direction>(&'m self, mut search: Search<'_, 'm>) {
        for at in 0..self.backlog().min(AHEAD) {
            let head = self.mem.avail_entry(self.next.wrapping_add(at));
            let chain = |first| Chain::<_, D>::new(&self.mem, head, first, Bits::<SET>::INDIRECT);
            if self
                .mem
                .desc(head)
                .and_then(|first| search.chain(chain(first)))
                .is_none()
            {
                break;
            }
        }
    }

    /// The first descriptor of a chain that is due a burst from now, or of the last one before that.
    fn soon(&self) -> Option<Desc> {
        let ready = self.backlog().min(burst(BURST));
        let head = self
            .mem
            .avail_entry(self.next.wrapping_add(ready.checked_sub(1)?));
        self.mem.desc(head)
    }

    /// The outcome of a burst that found nothing to do.
    #[inline(always)]
    fn idle(&self) -> Burst {
        Burst {
            halted: self.halt.is_some(),
            ..Burst::default()
        }
    }

    /// Ends a burst that gives back `chains` chains, whose used entries are written: publishes them, counts what
    /// `count` says, and calls the driver if it wants that.
    #[inline(always)]
    fn finish(&mut self, chains: u16, count: impl FnOnce() -> Tally, counters: &Counters) {
        let log = extra::<Bits<SET>, _>(&self.log);
        if let Some(log) = log {
            log.settle();
        }
        if chains == 0 {
            counters.add(&count());
            return log.map_or((), SplitLog::notify);
        }
        let old = self.next;
        self.next = old.wrapping_add(chains);
        self.mem.publish_used(self.next);
        if let Some(log) = log {
            log.published(self.next);
        }
        if let (true, Some(track)) = (Bits::<SET>::EXTRA, &self.track) {
            track.published(self.next);
        }
        // Before the barrier, which waits for the driver's core to let go of the lines just written.
        counters.add(&count());
        if self.call.is_possible() && self.wants_call(old) {
            self.call.signal(counters);
        }
    }

    #[inline(always)]
    fn wants_call(&self, old: u16) -> bool {
        match Bits::<SET>::EVENT_IDX {
            true => driver_wants_call::<true>(&self.mem, old, self.next),
            false => driver_wants_call::<false>(&self.mem, old, self.next),
        }
    }
}

/// Looks up the `count` chains from avail index `next` on, which the driver made available. `stay`: their used entries likely are
/// what they will have to be.
#[inline(always)]
fn look<'m, D: Direction, S: Set>(
    mem: &'m SplitMem,
    cursor: &mut Cursor<'m>,
    next: u16,
    count: u16,
    stay: bool,
) -> Ahead<'m> {
    let mut ahead = Ahead::none();
    mem.prefetch_used(next, count, stay);
    // Where the driver says whether it wants a call.
    mem.prefetch_avail_idx();
    for (at, head) in (0..count).zip(&mut ahead.tags) {
        *head = mem.avail_entry(next.wrapping_add(at));
        mem.prefetch_desc(*head);
    }
    ahead.count = usize::from(count);
    for (head, plan) in ahead.tags.iter().zip(&mut ahead.plans).take(ahead.count) {
        *plan = match mem.desc(*head) {
            Some(first) => Plan::new::<SplitMem, D, S>(mem, *head, first, cursor),
            None => Plan::Beyond,
        };
    }
    ahead
}

/// Writes the used entry that avail index `at` falls on: the chain at `head`, into which `len` bytes were written. Says whether it
/// was that already.
#[inline(always)]
fn give_back(mem: &SplitMem, log: Option<&SplitLog>, at: u16, head: u16, len: u32) -> bool {
    let stays = mem.write_used(at, head, len);
    if let Some(log) = log {
        log.wrote_used(at);
    }
    stays
}

/// A head that is no descriptor of the ring.
#[cold]
fn beyond(mem: &SplitMem, head: u16) -> ChainError {
    ChainError::OutOfTable {
        index: head,
        entries: mem.size(),
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

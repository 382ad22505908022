//! The split ring, as the device serves it (VIRTIO 1.2, 2.7), compiled once per feature set.
//!
//! Chains are used in the order they were made available, and all that a burst takes it gives back. So at rest
//! one free-running index says both what to take next and what was used last.

mod dequeue;
mod enqueue;

use super::call::Call;
use super::config::{FaultReason, RingConfig, RingError, RingFault};
use super::counters::{Counters, Tally};
use super::ring::{Burst, Ring, BURST};
use super::slot::{RxSlot, TxSlot};
use crate::memory::{Cursor, GuestSlice};
use crate::virtio::chain::{self, ChainError, Direction};
use crate::virtio::desc::{Desc, VIRTQ_USED_F_NO_NOTIFY};
use crate::virtio::features::{
    Features, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use crate::virtio::net_hdr;
use crate::virtio::notify::driver_wants_call;
use crate::virtio::ring::{SplitAddrs, SplitMem};

/// Descriptors that one burst walks before it leaves the rest to the next: the most that a poll thread spends on
/// chains that a driver made long for no good reason. Ordinary chains of 20 fragments still fill a burst.
const WORK: u32 = 1024;

/// Bytes at the front of each buffer whose lines are asked for while a burst is looked up: a small frame with its header.
const NEAR: u32 = 128;

/// The features that burst code depends on, as constants.
trait Set {
    const LONG: bool;
    /// Bytes of the virtio-net header.
    const HEADER: u32 = if Self::LONG { net_hdr::LONG } else { net_hdr::SHORT };
    const MERGE: bool;
    const EVENT_IDX: bool;
    const INDIRECT: bool;
}

/// A [`Set`] by its number, of which each bit is a constant of it: see [`set_number`].
struct Bits<const SET: usize>;

impl<const SET: usize> Set for Bits<SET> {
    const LONG: bool = SET & 1 != 0;
    const MERGE: bool = SET & 2 != 0;
    const EVENT_IDX: bool = SET & 4 != 0;
    const INDIRECT: bool = SET & 8 != 0;
}

/// The number of the [`Set`] for these features.
fn set_number(features: Features) -> usize {
    let bits = [
        net_hdr::is_long(features),
        features.contains(VIRTIO_NET_F_MRG_RXBUF),
        features.contains(VIRTIO_RING_F_EVENT_IDX),
        features.contains(VIRTIO_RING_F_INDIRECT_DESC),
    ];
    bits.iter()
        .rev()
        .fold(0, |number, bit| number << 1 | usize::from(*bit))
}

/// A split ring with the code for one feature set.
#[repr(align(64))]
struct SplitRing<const SET: usize> {
    mem: SplitMem,
    /// The next avail entry to take, and the next used entry to write.
    next: u16,
    /// The region of the last buffer.
    hint: u16,
    vring: u16,
    call: Option<Call>,
    fault: Option<FaultReason>,
}

/// Starts a split ring.
///
/// # Errors
///
/// A bad layout, or an avail index that the ring cannot hold; nothing in guest memory was changed then.
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
    let addrs = SplitAddrs { desc, driver, device };
    let mem = SplitMem::new(mem, size, addrs).map_err(|error| RingError::Layout { index, error })?;
    let next = resume(&mem, index, base)?;
    if features.contains(VIRTIO_RING_F_EVENT_IDX) {
        // We poll. The driver kicks when its index passes this one: once in 65536 entries.
        mem.set_used_flags(0);
        mem.set_avail_event(next.wrapping_sub(1));
    } else {
        mem.set_used_flags(VIRTQ_USED_F_NO_NOTIFY);
    }
    let parts = Parts {
        mem,
        next,
        vring: index,
        call: call.map(Call::new),
    };
    let with_set = RINGS.get(set_number(features)).unwrap_or(&RINGS[0]);
    Ok(with_set(parts))
}

/// Where to go on in a ring that another back-end may have served.
///
/// Every burst gives back what it takes, so after an orderly stop `base` is used.idx. They differ when the last
/// back-end died within a burst, or the front-end lost count: then used.idx is the truth that both sides share.
/// Going on from it moves some frames twice, going on from `base` would lose the buffers in between for good.
fn resume(mem: &SplitMem, index: u16, base: u16) -> Result<u16, RingError> {
    let next = mem.used_idx();
    if next != base {
        log::info!("vring {index}: base {base} is not the used index {next}: going on from the latter");
    }
    let (avail, size) = (mem.avail_idx(), mem.size());
    if avail.wrapping_sub(next) > size {
        return Err(RingError::AvailJump {
            index,
            avail,
            next,
            size,
        });
    }
    Ok(next)
}

struct Parts {
    mem: SplitMem,
    next: u16,
    vring: u16,
    call: Option<Call>,
}

fn boxed<const SET: usize>(parts: Parts) -> Box<dyn Ring> {
    let Parts {
        mem,
        next,
        vring,
        call,
    } = parts;
    Box::new(SplitRing::<SET> {
        mem,
        next,
        hint: 0,
        vring,
        call,
        fault: None,
    })
}

/// One row per [`Set`], by its number: all the code there is for split rings.
const RINGS: [fn(Parts) -> Box<dyn Ring>; 16] = [
    boxed::<0>,
    boxed::<1>,
    boxed::<2>,
    boxed::<3>,
    boxed::<4>,
    boxed::<5>,
    boxed::<6>,
    boxed::<7>,
    boxed::<8>,
    boxed::<9>,
    boxed::<10>,
    boxed::<11>,
    boxed::<12>,
    boxed::<13>,
    boxed::<14>,
    boxed::<15>,
];

impl<const SET: usize> Ring for SplitRing<SET> {
    #[inline]
    fn dequeue(&mut self, slots: &mut [RxSlot<'_>], counters: &Counters) -> Burst {
        match self.ready() {
            0 => self.idle(),
            ready => self.dequeue_ready(ready, slots, counters),
        }
    }

    #[inline]
    fn enqueue(&mut self, slots: &[TxSlot<'_>], counters: &Counters) -> Burst {
        match self.ready() {
            0 => self.idle(),
            ready => self.enqueue_ready(ready, slots, counters),
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

    fn size(&self) -> u16 {
        self.mem.size()
    }

    fn fault(&self) -> Option<RingFault> {
        self.fault.map(|reason| RingFault {
            vring: self.vring,
            reason,
        })
    }

    fn call(&self, counters: &Counters) {
        if let Some(call) = &self.call {
            call.signal();
            counters.count_call();
        }
    }
}

impl<const SET: usize> SplitRing<SET> {
    /// Chains that may be taken: 0 also if the driver just broke the ring.
    #[inline(always)]
    fn ready(&mut self) -> u16 {
        let avail = self.mem.avail_idx();
        let ready = avail.wrapping_sub(self.next);
        if ready > self.mem.size() {
            self.avail_jumped(avail);
            return 0;
        }
        ready
    }

    #[cold]
    fn avail_jumped(&mut self, avail: u16) {
        self.fault = Some(FaultReason::AvailJump {
            avail,
            next: self.next,
            size: self.mem.size(),
        });
    }

    /// The outcome of a burst that found nothing to do.
    #[inline(always)]
    fn idle(&self) -> Burst {
        Burst {
            broken: self.fault.is_some(),
            ..Burst::default()
        }
    }

    /// Ends a burst that gives back `chains` chains, whose used entries are written: publishes them, and calls the
    /// driver if it wants that. Counts `tally`.
    #[inline(always)]
    fn finish(&mut self, chains: u16, tally: &Tally, counters: &Counters) {
        counters.add(tally);
        if chains == 0 {
            return;
        }
        let old = self.next;
        self.next = old.wrapping_add(chains);
        self.mem.publish_used(self.next);
        // A driver that gave no eventfd polls: it needs neither call nor barrier.
        if self.call.is_some() && self.wants_call(old) {
            self.call(counters);
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

/// The first chains of a burst, looked up together so that their lines arrive while others are looked up.
struct Ahead<'m> {
    heads: [u16; BURST],
    plans: [Plan<'m>; BURST],
    count: usize,
}

/// One chain, looked up ahead.
#[derive(Clone, Copy)]
enum Plan<'m> {
    /// One descriptor, in one region: the buffer.
    Direct(GuestSlice<'m>),
    /// Anything else: the first descriptor as fetched, to be walked from.
    Walk(Desc),
    /// The head is no descriptor of the ring.
    Beyond,
}

impl<'m> Ahead<'m> {
    /// Looks up the `count` chains from avail index `next` on, which the driver made available.
    #[inline(always)]
    fn look<D: Direction>(mem: &'m SplitMem, cursor: &mut Cursor<'m>, next: u16, count: u16) -> Self {
        let mut heads = [0; BURST];
        let mut plans = [Plan::Beyond; BURST];
        mem.prefetch_used(next, count);
        for (at, head) in (0..count).zip(&mut heads) {
            *head = mem.avail_entry(next.wrapping_add(at));
            mem.prefetch_desc(*head);
        }
        let count = usize::from(count);
        for (head, plan) in heads.iter().zip(&mut plans).take(count) {
            *plan = Plan::new::<D>(mem, *head, cursor);
        }
        Self { heads, plans, count }
    }

    /// Chain `at` of the burst, if it was looked up.
    #[inline(always)]
    fn chain(&self, at: u16) -> Option<(u16, Plan<'m>)> {
        let at = usize::from(at);
        match (self.heads.get(at), self.plans.get(at)) {
            (Some(head), Some(plan)) if at < self.count => Some((*head, *plan)),
            _ => None,
        }
    }

    /// The chains looked up: head and plan.
    #[inline(always)]
    fn chains(&self) -> impl Iterator<Item = (u16, Plan<'m>)> + use<'_, 'm> {
        self.heads
            .iter()
            .copied()
            .zip(self.plans.iter().copied())
            .take(self.count)
    }
}

impl<'m> Plan<'m> {
    /// Looks up the chain at `head`, and asks for the lines that moving a frame will touch.
    #[inline(always)]
    fn new<D: Direction>(mem: &'m SplitMem, head: u16, cursor: &mut Cursor<'m>) -> Self {
        let Some(first) = mem.desc(head) else {
            return Self::Beyond;
        };
        match chain::direct::<D>(&first, cursor) {
            Some(buffer) => {
                if D::WRITE == 0 {
                    buffer.prefetch_read(0..NEAR);
                } else {
                    buffer.prefetch_write(0..NEAR);
                }
                Self::Direct(buffer)
            }
            None => {
                chain::prefetch_second(mem, &first, cursor);
                Self::Walk(first)
            }
        }
    }
}

/// A head that is no descriptor of the ring.
#[cold]
fn beyond(mem: &SplitMem, head: u16) -> ChainError {
    ChainError::OutOfTable {
        index: head,
        entries: mem.size(),
    }
}

/// `count` as an index of the ring, at most [`BURST`].
#[inline(always)]
fn burst(count: usize) -> u16 {
    u16::try_from(count.min(BURST)).unwrap_or(0)
}

#[cfg(all(test, not(loom)))]
mod tests;

//! A queue as poll threads use it: bursts, which never wait but for one another.

use super::{task, Errand, Gauge, Queue, Sent, State, Wake};
use crate::clock;
use crate::datapath::config::{Direction, RingFault};
use crate::datapath::counters::Tally;
use crate::datapath::frame::BYTES;
use crate::datapath::gate::Entered;
use crate::datapath::miss::Halt;
use crate::datapath::rarp;
use crate::datapath::ring::{Burst, Ring, BURST};
use crate::datapath::slot::{RxSlot, TxSlot};
use crate::datapath::unsent::Unsent;
use crate::memory::Miss;
use crate::sync::Ordering;

impl Queue {
    /// Receives what the guest sent: fills `slots` from the first on and says how many, at most [`BURST`].
    ///
    /// Never waits: 0 if the ring is stopped, disabled or broken, or if another thread is at it. A frame that is too
    /// large for its slot, but would fit in another, stays in its ring, see [`Queue::dequeue_growing`].
    #[inline]
    pub fn dequeue(&self, slots: &mut [RxSlot<'_>]) -> usize {
        self.dequeue_growing(slots, |_, _| false)
    }

    /// Receives as [`Queue::dequeue`] does. Where a frame does not fit in its slot, `grow` may put another slot in its place,
    /// for the number of bytes that it is told, at most [`MAX_FRAME`](crate::datapath::MAX_FRAME), and says whether it did. If
    /// not, the frame stays in its ring: there may be memory for it the next time.
    #[inline]
    pub fn dequeue_growing<'a>(
        &self,
        slots: &mut [RxSlot<'a>],
        grow: impl FnMut(&mut RxSlot<'a>, u32) -> bool,
    ) -> usize {
        if self.direction != Direction::Dequeue {
            return 0;
        }
        let most = slots.len().min(BURST);
        let slots = slots.get_mut(..most).unwrap_or_default();
        let Ok(mut state) = self.gate.try_enter() else {
            return 0;
        };
        let burst = match self.has_task(task::DEQUEUE) {
            false => self.receive(&mut state, slots, grow),
            true => self.receive_busily(&mut state, slots, grow),
        };
        if burst.halted {
            let halt = state.ring.as_mut().and_then(|ring| ring.take_halt());
            self.halt(state, halt);
        }
        burst.frames()
    }

    #[inline(always)]
    fn receive<'a>(
        &self,
        state: &mut State,
        slots: &mut [RxSlot<'a>],
        grow: impl FnMut(&mut RxSlot<'a>, u32) -> bool,
    ) -> Burst {
        let Some(ring) = &mut state.ring else {
            return Burst::default();
        };
        let mut burst = ring.dequeue(slots, &self.counters);
        if burst.large > 0 {
            burst = self.dequeue_large(ring.as_mut(), burst, slots, grow);
        }
        if burst.frames > 0 {
            self.publish_status(ring.as_ref());
        }
        burst
    }

    /// Goes on behind a burst that ended before a frame larger than its slot, until [`BYTES`] of such are moved. Each round
    /// moves a frame or ends this: only a driver that makes a frame larger meanwhile has it end early.
    #[cold]
    fn dequeue_large<'a>(
        &self,
        ring: &mut dyn Ring,
        first: Burst,
        slots: &mut [RxSlot<'a>],
        mut grow: impl FnMut(&mut RxSlot<'a>, u32) -> bool,
    ) -> Burst {
        let (mut all, mut bytes) = (first, 0);
        while let [slot, ..] = slots.get_mut(all.frames()..).unwrap_or_default() {
            if all.large == 0 || all.halted || bytes >= BYTES {
                break;
            }
            if !grow(slot, all.large) {
                self.counters.count_starved();
                break;
            }
            bytes += all.large;
            let rest = slots.get_mut(all.frames()..).unwrap_or_default();
            let burst = ring.dequeue(rest, &self.counters);
            all = Burst {
                slots: all.slots + burst.slots,
                frames: all.frames + burst.frames,
                ..burst
            };
            if burst.frames == 0 {
                break;
            }
        }
        all
    }

    /// Sends frames to the guest, any number of them, in order.
    ///
    /// Makes up to `retries` further attempts, each only if the one before made some progress, as stock ports do.
    /// Waits only for another thread's burst on this queue; sends nothing if the ring is stopped, disabled or broken.
    /// What is not sent is counted, each frame for its reason.
    pub fn enqueue(&self, slots: &[TxSlot<'_>], retries: u32) -> Sent {
        let mut sent = Sent::default();
        if self.direction != Direction::Enqueue || slots.is_empty() {
            return sent;
        }
        let (state, contended) = self.gate.enter();
        sent.contended = contended;
        let Some(mut state) = state else {
            self.refuse(slots.len());
            return sent;
        };
        let Some(ring) = &mut state.ring else { return sent };
        let mut left = slots;
        loop {
            let before = sent.slots;
            let halted = self.attempt(ring.as_mut(), left, &mut sent);
            let taken = sent.slots - before;
            left = left.get(taken..).unwrap_or_default();
            if left.is_empty() {
                break;
            }
            if halted || taken == 0 || sent.retries == retries {
                self.fall_short(state, sent.packets > 0, left.len());
                return sent;
            }
            sent.retries += 1;
        }
        self.publish_status(ring.as_ref());
        if self.has_task(task::ENQUEUE) {
            self.look_around(&state, sent.packets > 0);
        }
        sent
    }

    /// Ends a burst into the guest that leaves no frame behind and has more to do than that.
    #[cold]
    fn look_around(&self, state: &State, moved: bool) {
        if moved && self.stalls.lasts() {
            self.end_stall(clock::now());
        }
        if state.behind_iommu {
            self.look_ahead(state);
        }
        self.settle(state);
    }

    /// Counts frames that came to a closed gate.
    #[cold]
    #[inline(never)]
    fn refuse(&self, frames: usize) {
        let reason = match self.broken.load(Ordering::Relaxed) {
            0 => Unsent::Disabled,
            _ => Unsent::Broken,
        };
        self.counters.count_unsent(reason, frames);
    }

    /// Ends a burst into the guest that leaves frames behind, whether or not some got through.
    #[cold]
    fn fall_short(&self, mut state: Entered<'_, State>, moved: bool, left: usize) {
        let Some(ring) = &mut state.ring else { return };
        self.publish_status(ring.as_ref());
        let halt = ring.take_halt();
        let reason = match halt {
            None => Unsent::Full,
            Some(Halt::Fault(_)) => Unsent::Malformed,
            Some(Halt::Miss(_)) => Unsent::Missing,
        };
        self.counters.count_unsent(reason, left);
        let full = reason == Unsent::Full;
        if moved || !full || !self.stalls.lasts() {
            let now = clock::now();
            self.end_stall(now);
            if full {
                self.stalls.begin(now);
            }
        }
        if halt.is_none() && state.behind_iommu {
            self.look_ahead(&state);
        }
        self.settle(&state);
        self.halt(state, halt);
    }

    /// One attempt to send all of `slots`, told of in `sent`: ends at the first group that the ring does not take whole. Says
    /// whether a burst ended before its time.
    #[inline]
    fn attempt(&self, ring: &mut dyn Ring, slots: &[TxSlot<'_>], sent: &mut Sent) -> bool {
        for group in slots.chunks(BURST) {
            let burst = ring.enqueue(group, &self.counters);
            sent.packets += burst.frames();
            sent.slots += burst.slots();
            sent.invalid += usize::from(burst.invalid);
            if burst.halted || burst.slots() < group.len() {
                return burst.halted;
            }
        }
        false
    }

    /// Says instead of a poll that there is no memory to receive into. What the guest sent stays in its ring; that it had to
    /// is counted.
    #[cold]
    pub fn starve(&self) {
        if self.backlog() > 0 {
            self.counters.count_starved();
        }
    }

    /// Buffers that the driver made available and that wait. 0 if the ring is stopped or another thread is at it.
    pub fn backlog(&self) -> u32 {
        match self.gate.try_enter() {
            Ok(state) => state.ring.as_ref().map_or(0, |ring| u32::from(ring.backlog())),
            Err(_) => 0,
        }
    }

    /// A poll that has more to do than to move frames.
    #[cold]
    fn receive_busily<'a>(
        &self,
        state: &mut Entered<'_, State>,
        slots: &mut [RxSlot<'a>],
        grow: impl FnMut(&mut RxSlot<'a>, u32) -> bool,
    ) -> Burst {
        if self.has_task(task::NAME_POLLER) {
            self.set_task(task::NAME_POLLER, false);
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            self.poller.store(thread.unsigned_abs(), Ordering::Relaxed);
        }
        if let Some(gauge) = self.gauge.get().filter(|_| self.has_task(task::GAUGE)) {
            gauge.poll(clock::now());
        }
        let burst = match state.errand {
            None => self.receive(state, slots, grow),
            Some(errand) => self.run_errand(errand, state, slots, grow),
        };
        self.settle(state);
        burst
    }

    fn run_errand<'a>(
        &self,
        errand: Errand,
        state: &mut State,
        slots: &mut [RxSlot<'a>],
        grow: impl FnMut(&mut RxSlot<'a>, u32) -> bool,
    ) -> Burst {
        let announce = match errand {
            Errand::Announce(mac) => {
                let frames = self.announce(mac, slots);
                state.errand = state.errand.filter(|_| slots.is_empty());
                return Burst::of(frames);
            }
            Errand::Learn { announce } => announce,
        };
        let burst = self.receive(state, slots, grow);
        let first = slots.first().filter(|_| burst.frames > 0);
        if let Some(mac) = first.and_then(|slot| rarp::source(slot.frame())) {
            state.guest = Some(mac);
            state.errand = announce.then_some(Errand::Announce(mac));
        }
        burst
    }

    /// Receives an announcement, alone.
    fn announce(&self, mac: [u8; 6], slots: &mut [RxSlot<'_>]) -> usize {
        let Some(slot) = slots.first_mut() else { return 0 };
        let mut tally = Tally::default();
        let fits = slot.set(&rarp::frame(mac));
        if fits {
            tally.frames([slot.frame()].into_iter());
        }
        self.counters.add(&tally);
        usize::from(fits)
    }

    /// Ends a burst before its time. If the driver broke the ring, no other begins until the control thread starts it
    /// anew.
    #[cold]
    fn halt(&self, mut state: Entered<'_, State>, halt: Option<Halt>) {
        let Some(vring) = state.ring.as_ref().map(|ring| ring.vring()) else {
            return;
        };
        match halt {
            Some(Halt::Fault(reason)) => {
                self.set_fault(&mut state, Some(RingFault { vring, reason }));
                state.close_behind();
                drop(state);
                (self.waker)(Wake::Broken);
            }
            Some(Halt::Miss(miss)) => self.report(miss),
            None => {}
        }
    }

    /// Has the control thread ask for what the guest will soon be sent into, before a frame is lost for want of it: the
    /// driver makes buffers available long before they are used.
    #[cold]
    fn look_ahead(&self, state: &State) {
        if let Some(miss) = state
            .ring
            .as_ref()
            .and_then(|ring| ring.look_ahead(self.direction))
        {
            self.report(miss);
        }
    }

    /// Reports a miss, unless it was the last one reported.
    fn report(&self, miss: Miss) {
        let word = word(miss);
        // Relaxed: the waker orders it for the control thread. Inside the gate there is no other writer.
        if self.missed.load(Ordering::Relaxed) != word {
            self.missed.store(word, Ordering::Relaxed);
            (self.waker)(Wake::Missed);
        }
    }
}

impl Gauge {
    /// Counts how long ago the last poll was. Inside the gate.
    fn poll(&self, now: u64) {
        let last = self.polled.load(Ordering::Relaxed);
        self.polled.store(now, Ordering::Relaxed);
        if last != 0 {
            self.seen.add(now.saturating_sub(last));
        }
    }
}

/// A miss in a word, to tell one from another: its address but for the offset in a page, and its access, which is not 0.
fn word(miss: Miss) -> u64 {
    miss.iova.0 & !0xfff | u64::from(miss.access.perm())
}

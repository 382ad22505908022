//! Targets `split_ring` and `packed_ring`: a queue, and a driver that keeps the rules or breaks them.
//!
//! As long as it keeps them, every frame arrives as it was sent, in order, and every buffer comes back. Once it has broken
//! one it may get anything, but nothing that is not its own, and nobody else notices.

use std::sync::Arc;

use rustix::event::{eventfd, EventfdFlags};

use super::driver::{poke, Liar, Player};
use super::guest::{addr, changed_pages, is_foreign, tame, Guest, START};
use super::input::Input;
use crate::datapath::{Direction, Queue, RingConfig, RingLog, RxSlot, TxSlot, BURST, MAX_FRAME};
use crate::memory::{meddle, DirtyLog, GuestAddr, InflightLayout, InflightMem, InflightQueue, WriteLog};
use crate::model::{Driver, GuestMemory, PackedDriver};
use crate::virtio::features::*;

/// Steps of one input.
const STEPS: usize = 200;
/// Bytes of a slot, and of what lies between it and the next.
const ROOM: usize = 2048;
const GAP: usize = 32;
const UNTOUCHED: u8 = 0xee;

pub(super) fn split(input: Input<'_>) {
    run::<Driver>(input, InflightLayout::Split);
}

pub(super) fn packed(input: Input<'_>) {
    run::<PackedDriver>(input, InflightLayout::Packed);
}

fn run<D: Liar>(mut input: Input<'_>, layout: InflightLayout) {
    Guest::lend(|guest| {
        let mut bench = Bench::<D>::new(guest, &mut input, layout);
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            bench.step(&mut input);
        }
        bench.finish();
    });
}

/// A log of all that the guest's memory has, in memory of its own.
struct Log {
    bits: GuestMemory,
    ring: RingLog,
}

impl Log {
    const BYTES: usize = 64;

    fn new(memory: &GuestMemory) -> Self {
        let bits = GuestMemory::new(4096);
        let log = DirtyLog::map(Self::BYTES as u64, 0, bits.file()).expect("a log");
        let ring = RingLog {
            writes: Arc::new(WriteLog::new(Arc::new(log), &memory.table())),
            used: None,
            notify: None,
        };
        Self { bits, ring }
    }

    fn clear(&self) {
        self.bits.write(GuestAddr(0x1000), &[0; Self::BYTES]);
    }

    fn has(&self, page: u64) -> bool {
        let mut byte = [0];
        self.bits.read(GuestAddr(0x1000 + page / 8), &mut byte);
        byte[0] >> (page % 8) & 1 == 1
    }
}

struct Bench<'g, D> {
    guest: &'g Guest,
    queue: Queue,
    direction: Direction,
    player: Player<D>,
    config: RingConfig,
    log: Option<Log>,
    /// Whether the driver breaks rules when it is told to.
    lies: bool,
    /// Frames moved.
    moved: u64,
}

impl<'g, D: Liar> Bench<'g, D> {
    fn new(guest: &'g Guest, input: &mut Input<'_>, layout: InflightLayout) -> Self {
        let size = match (input.u8(), layout) {
            (size @ 0..=250, InflightLayout::Split) => 1 << (size % 7),
            (size @ 0..=250, InflightLayout::Packed) => 1 + u16::from(size % 64),
            _ => 100,
        };
        let [modern, merges, indirect, event_idx, in_order, offloads, logs, tracks] = input.flags();
        let [writes, calls, enabled, lies] = input.flags();
        let features = [
            (modern, VIRTIO_F_VERSION_1),
            (merges, VIRTIO_NET_F_MRG_RXBUF),
            (indirect, VIRTIO_RING_F_INDIRECT_DESC),
            (event_idx, VIRTIO_RING_F_EVENT_IDX),
            (in_order, VIRTIO_F_IN_ORDER),
            (layout == InflightLayout::Packed, VIRTIO_F_RING_PACKED),
        ];
        let features = features.iter().filter(|(on, _)| *on);
        let features = features.fold(Features::NONE, |all, (_, bit)| all | *bit);
        let memory = Arc::clone(&guest.memory);
        let player = Player::<D>::new(memory, GuestAddr(START), size, features, writes);
        let log = logs.then(|| Log::new(&guest.memory));
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let config = RingConfig {
            offloads,
            call: calls.then(|| Arc::new(eventfd(0, flags).expect("an eventfd"))),
            inflight: tracks.then(|| in_flight(size, layout)),
            log: log.as_ref().map(|log| log.ring.clone()),
            ..player.ring.config(0)
        };
        let direction = match writes {
            true => Direction::Enqueue,
            false => Direction::Dequeue,
        };
        let queue = Queue::new(direction, Arc::new(|_| {}));
        queue.set_enabled(enabled);
        let bench = Self {
            guest,
            queue,
            direction,
            player,
            config,
            log,
            lies,
            moved: 0,
        };
        bench.start();
        bench
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 12 {
            0 | 1 => self.player.add(input, self.longest()),
            2 => self.player.ring.publish(),
            3 => self.burst(input),
            4 => self.reap(),
            5 if self.lies => {
                self.player.honest = false;
                self.player.ring.lie(input);
            }
            6 if self.lies => self.player.poke(input),
            7 if self.lies => self.burst_with_meddler(input),
            5..=7 => {}
            8 => self.toggle(),
            9 => self.stop_and_start(),
            10 => self.restart(input),
            _ => self.player.ring.wish(input),
        }
    }

    /// The most bytes of a frame that come out of the guest.
    fn longest(&self) -> usize {
        match self.config.offloads {
            true => MAX_FRAME as usize,
            false => ROOM,
        }
    }

    fn start(&self) {
        let started = self.queue.start(self.config.clone());
        let legal = self.player.honest && (self.config.size != 100 || self.is_packed());
        assert!(started.is_ok() || !legal, "{started:?}");
    }

    fn is_packed(&self) -> bool {
        self.config.features.contains(VIRTIO_F_RING_PACKED)
    }

    fn burst(&mut self, input: &mut Input<'_>) {
        let before = self.log.as_ref().map(|log| {
            log.clear();
            self.guest.image()
        });
        self.plain_burst(input);
        if let (Some(log), Some(before)) = (&self.log, before) {
            for page in changed_pages(&before, &self.guest.image()) {
                assert!(log.has(page), "page {page:#x} was written and not logged");
            }
        }
    }

    fn plain_burst(&mut self, input: &mut Input<'_>) {
        let fault = self.queue.fault();
        let moved = match self.direction {
            Direction::Dequeue => self.dequeue(usize::from(input.u8() % 40), input.u8() % 2 == 0),
            Direction::Enqueue => self.enqueue(input),
        };
        assert!(fault.is_none() || moved == 0, "a broken ring moves nothing");
        assert!(
            self.queue.fault().is_none() || !self.player.honest,
            "{:?}",
            self.queue.fault()
        );
        self.moved += moved as u64;
        assert_eq!(self.queue.counters().read().good_packets, self.moved);
        let status = self.queue.snapshot();
        assert!(status.is_none_or(|status| status.size == self.config.size));
        assert!(status.is_none_or(|status| !self.is_packed() || status.avail & 0x7fff < status.size));
    }

    fn dequeue(&mut self, count: usize, grows: bool) -> usize {
        let mut pool = vec![UNTOUCHED; count * (ROOM + GAP)];
        let grows = grows && self.config.offloads;
        let mut large = vec![0; if grows { 2 * MAX_FRAME as usize } else { 0 }];
        let mut large = large.chunks_mut(MAX_FRAME as usize);
        let (mut slots, gaps): (Vec<_>, Vec<_>) = pool
            .chunks_mut(ROOM + GAP)
            .map(|chunk| chunk.split_at_mut(ROOM))
            .map(|(room, gap)| (RxSlot::new(room), gap))
            .unzip();
        let got = self.queue.dequeue_growing(&mut slots, |slot, len| {
            let Some(larger) = large.next().and_then(|room| room.get_mut(..len as usize)) else {
                return false;
            };
            *slot = RxSlot::new(larger);
            true
        });
        assert!(got <= count.min(BURST));
        for slot in &slots[..got] {
            assert!(!slot.is_empty() && slot.len() <= slot.room() && !is_foreign(slot.frame()));
            if self.player.honest {
                assert_eq!(self.player.frames.pop_front().as_deref(), Some(slot.frame()));
            }
        }
        let mut around = gaps.iter().flat_map(|gap| gap.iter());
        assert!(around.all(|byte| *byte == UNTOUCHED), "written behind a slot");
        got
    }

    fn enqueue(&mut self, input: &mut Input<'_>) -> usize {
        let count = usize::from(input.u8() % 40);
        let len = match input.u8() {
            short @ 0..=200 => usize::from(short),
            _ => usize::from(input.u16() % 0x3000),
        };
        let frames: Vec<_> = (0..count)
            .map(|at| self.player.frame((len + at).max(14)))
            .collect();
        let slots: Vec<_> = frames.iter().map(|frame| TxSlot::new(frame)).collect();
        let sent = self.queue.enqueue(&slots, u32::from(input.u8() % 3));
        assert!(sent.packets <= count && sent.invalid == 0);
        self.player.frames.extend(frames);
        if self.player.honest {
            assert_eq!(self.player.reap(), sent.packets, "frames that arrived");
        }
        sent.packets
    }

    fn reap(&mut self) {
        assert_eq!(self.player.reap(), 0, "frames arrive with their burst");
    }

    /// A burst during which the driver writes, each thing ahead of a certain read of ours.
    fn burst_with_meddler(&mut self, input: &mut Input<'_>) {
        self.player.honest = false;
        let writes: Vec<_> = (0..=input.u8() % 4)
            .map(|_| (input.u8(), addr(input), tame(input.bytes(8))))
            .collect();
        let (memory, mut reads) = (Arc::clone(&self.guest.memory), 0_u8);
        let meddler = move || {
            for (_, at, bytes) in writes.iter().filter(|(turn, ..)| *turn == reads) {
                poke(&memory, *at, bytes);
            }
            reads = reads.saturating_add(1);
        };
        meddle::during(meddler, || self.plain_burst(input));
    }

    /// Disabled, a transmitq is emptied.
    fn toggle(&mut self) {
        self.player.ring.publish();
        self.queue.set_enabled(false);
        let before = self.queue.counters().read().discarded;
        let more = self.queue.discard();
        let discarded = self.queue.counters().read().discarded - before;
        assert!(discarded <= u64::from(self.config.size));
        if self.player.honest && discarded > 0 {
            assert!(!more);
            self.player.frames.clear();
        }
        self.queue.set_enabled(true);
    }

    fn stop_and_start(&mut self) {
        if let Some(base) = self.queue.stop() {
            self.config.base = base;
            self.start();
        }
    }

    /// Goes on where it is, logging or not.
    fn restart(&mut self, input: &mut Input<'_>) {
        let on = input.u8() % 2 == 0;
        if !on {
            self.log = None;
        }
        self.config.log = self.log.as_ref().map(|log| log.ring.clone());
        let restarted = self.queue.restart(self.config.clone());
        assert!(restarted.is_ok() || !self.player.honest, "{restarted:?}");
    }

    /// What an honest driver sent is all there in the end, and its buffers come back.
    fn finish(mut self) {
        if !self.player.honest || self.queue.snapshot().is_none() {
            return;
        }
        self.player.ring.publish();
        self.queue.set_enabled(true);
        if self.direction == Direction::Dequeue {
            while self.dequeue(BURST, true) > 0 || self.queue.backlog() > 0 {}
            self.reap();
            assert_eq!((self.player.frames.len(), self.player.outstanding()), (0, 0));
        }
    }
}

/// A fresh in-flight buffer's part.
fn in_flight(size: u16, layout: InflightLayout) -> InflightQueue {
    let (desc, file) = InflightMem::create(1, size, layout).expect("a buffer");
    let mem = Arc::new(InflightMem::map(desc, layout, &file).expect("it is ours"));
    mem.queue(0, size, layout).expect("its only part")
}

//! A guest that moves: its ring and buffers anywhere in two regions, what the device writes prepared so that it changes, and the
//! log held against it after each burst.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use crate::datapath::dirty::RingLog;
use crate::datapath::testing::*;
use crate::datapath::{Direction, Queue, RingConfig, TxSlot};
use crate::memory::{DirtyLog, GuestAddr, InflightLayout, InflightMem, InflightQueue, WriteLog, LOG_PAGE};
use crate::model::{Buffer, Driver, GuestMemory, PackedDriver, Pool, Scattered, Virtqueue, FRONTEND_OFFSET};
use crate::virtio::features::*;
use crate::virtio::net_hdr::{Offload, GSO_TCPV4, NEEDS_CSUM};

/// Where the ring, the indirect tables and the buffers are: two regions, far apart, the second mapped anywhere.
const RING: u64 = 0x10_0000;
const RING_BYTES: u64 = 0x8000;
pub(super) const BUFFERS: u64 = 0x800_0000;
/// Bytes of guest memory that the buffers of one chain may use.
pub(super) const STRIDE: u64 = 0x1d00;
pub(super) const ENTRIES: u16 = 64;
const TABLES: u64 = BUFFERS + STRIDE * ENTRIES as u64;
pub(super) const REGIONS: [(GuestAddr, u64); 2] = [
    (GuestAddr(RING), RING_BYTES),
    (GuestAddr(BUFFERS), STRIDE * ENTRIES as u64 + 0x2000),
];
/// A bit for each page up to the last table, in whole words.
pub(super) const LOG_BYTES: u64 = ((TABLES + 0x2000) / LOG_PAGE / 8 + 1).next_multiple_of(8);

/// Numbers without pattern, the same on every run (xorshift64*).
struct Noise(u64);

impl Noise {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit
    }

    fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What the device may write that is not a buffer, per layout.
pub(super) trait DeviceArea: Virtqueue {
    /// Its bytes.
    fn bytes(size: u16) -> u64;
    /// The guest addresses of what bursts write of the ring.
    fn written(&self) -> Range<u64>;
    /// What a burst writes of it, where the driver has taken back all that is used.
    fn burst_writes(size: u16) -> Range<u64>;
    /// What starting a ring writes of it.
    fn start_writes(size: u16, features: Features) -> [Range<u64>; 2];
}

impl DeviceArea for Driver {
    fn bytes(size: u16) -> u64 {
        6 + 8 * u64::from(size)
    }
    fn written(&self) -> Range<u64> {
        let used = self.config(0).device.0 - FRONTEND_OFFSET;
        used..used + Self::bytes(ENTRIES)
    }
    fn burst_writes(size: u16) -> Range<u64> {
        4..4 + 8 * u64::from(size)
    }
    fn start_writes(size: u16, features: Features) -> [Range<u64>; 2] {
        let end = Self::bytes(size);
        match features.contains(VIRTIO_RING_F_EVENT_IDX) {
            true => [0..2, end - 2..end],
            false => [0..2, 0..0],
        }
    }
}

impl DeviceArea for PackedDriver {
    fn bytes(_: u16) -> u64 {
        4
    }
    fn written(&self) -> Range<u64> {
        let descs = self.config(0).desc.0 - FRONTEND_OFFSET;
        descs..descs + 16 * u64::from(ENTRIES)
    }
    fn burst_writes(_: u16) -> Range<u64> {
        0..0
    }
    fn start_writes(_: u16, _: Features) -> [Range<u64>; 2] {
        [0..4, 0..0]
    }
}

/// A guest that moves.
pub(super) struct World<D> {
    noise: Noise,
    direction: Direction,
    features: Features,
    /// As the driver sees it, by the addresses it uses.
    pub(super) memory: Arc<GuestMemory>,
    /// Where the driver's addresses are not the guest's.
    scattered: Option<Scattered>,
    pub(super) driver: D,
    /// Where the driver has the device's area.
    pub(super) device: GuestAddr,
    pub(super) queue: Queue,
    pub(super) config: RingConfig,
    pub(super) bits: GuestMemory,
    pub(super) log: RingLog,
    pub(super) logging: bool,
    /// The buffers of each chain that the device has, by its id.
    held: Vec<Vec<Buffer>>,
    /// Bits seen.
    pub(super) marked: usize,
}

impl<D: DeviceArea> World<D> {
    pub(super) fn new(direction: Direction, features: Features, seed: u64) -> Self {
        let mut noise = Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // A driver that cuts segments itself, or one for whom they are cut.
        let features = match noise.one_in(2) {
            true => features | VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_TSO4,
            false => features,
        };
        let behind = features.contains(VIRTIO_F_ACCESS_PLATFORM);
        let scattered = behind.then(|| Scattered::new(&REGIONS));
        let memory = match &scattered {
            Some(scattered) => scattered.seen(),
            None => Arc::new(GuestMemory::with_regions(&REGIONS)),
        };
        // Anywhere in its region where what the device writes falls across two pages.
        let driver = loop {
            let at = GuestAddr(RING + 16 * noise.below((RING_BYTES - D::ring_bytes(ENTRIES)) / 16));
            let driver = D::new(memory.clone(), at, ENTRIES, features);
            let Range { start, end } = driver.written();
            if start / LOG_PAGE < (end - 1) / LOG_PAGE {
                break driver;
            }
        };
        let queue = Queue::new(direction, Arc::new(|_| {}));
        queue.set_enabled(true);
        let mut config = driver.config(7);
        let device = GuestAddr(config.device.0 - FRONTEND_OFFSET);
        let mut physical = memory.table();
        if let Some(scattered) = &scattered {
            config = scattered.config(config, &scattered.translations());
            physical = scattered.guest().table();
        }
        // What else may be done besides moving bytes, and so by the same code.
        config.offloads = noise.one_in(2);
        config.inflight = noise.one_in(2).then(|| part(features));
        let bits = GuestMemory::new(LOG_BYTES);
        let log = Arc::new(DirtyLog::map(LOG_BYTES, 0, bits.file()).unwrap());
        let packed = features.contains(VIRTIO_F_RING_PACKED);
        let log = RingLog {
            writes: Arc::new(WriteLog::new(log, &physical)),
            used: (!packed && !behind && noise.one_in(2)).then_some(device),
            notify: None,
        };
        queue.start(config.clone()).unwrap();
        Self {
            noise,
            direction,
            features,
            memory,
            scattered,
            driver,
            device,
            queue,
            config,
            bits,
            log,
            logging: false,
            held: vec![Vec::new(); usize::from(ENTRIES)],
            marked: 0,
        }
    }

    /// Fills what the device may write with what it does not write.
    fn scribble(&self, range: Range<u64>) {
        let ones = vec![0xff; usize::try_from(range.end - range.start).unwrap()];
        self.memory.write(at(self.device, range.start), &ones);
    }

    pub(super) fn config(&self) -> RingConfig {
        RingConfig {
            log: self.logging.then(|| self.log.clone()),
            ..self.config.clone()
        }
    }

    /// All guest memory, region by region.
    fn bytes(&self) -> [Vec<u8>; 2] {
        REGIONS.map(|(guest, size)| {
            let mut bytes = vec![0; usize::try_from(size).unwrap()];
            self.memory.read(guest, &mut bytes);
            bytes
        })
    }

    /// The log's bits, taken out of it.
    fn take_bits(&self) -> BTreeSet<u64> {
        let mut bytes = vec![0; usize::try_from(LOG_BYTES).unwrap()];
        self.bits.read(GuestAddr(0x1000), &mut bytes);
        self.bits.write(GuestAddr(0x1000), &vec![0; bytes.len()]);
        let marked = (0_u64..).zip(bytes).filter(|(_, byte)| *byte != 0);
        let pages = marked.flat_map(|(at, byte)| (0..8).map(move |bit| (8 * at + bit, byte >> bit & 1 == 1)));
        pages.filter(|(_, set)| *set).map(|(page, _)| page).collect()
    }

    /// The number, in the guest, of what the driver knows as this page.
    fn guest_page(&self, page: u64) -> u64 {
        match &self.scattered {
            Some(scattered) => scattered.behind(GuestAddr(page * LOG_PAGE)).0 / LOG_PAGE,
            None => page,
        }
    }

    /// Lets the device do something, and holds the log against what changed.
    fn watch<R>(&mut self, what: &str, act: impl FnOnce(&mut Self) -> R) -> R {
        let before = self.bytes();
        let result = act(self);
        let changed = changed_pages(&before, &self.bytes());
        let changed: BTreeSet<_> = changed.into_iter().map(|page| self.guest_page(page)).collect();
        let bits = self.take_bits();
        let expected = if self.logging { changed } else { BTreeSet::new() };
        let missing: Vec<_> = expected.difference(&bits).collect();
        let extra: Vec<_> = bits.difference(&expected).collect();
        let ring = self.device;
        assert!(
            missing.is_empty() && extra.is_empty(),
            "{what}: written and not logged {missing:x?}, logged and not written {extra:x?}; device area at {ring}, \
             features {}",
            self.features
        );
        self.marked += bits.len();
        result
    }

    /// Buffers of a chain, cut at random out of the memory that belongs to `id`.
    fn buffers(&mut self, id: u16, count: u64) -> Vec<Buffer> {
        let mut offset = u64::from(id) * STRIDE + self.noise.below(0x200);
        // Where a frame may have one chain only, most should have room for it.
        let merges = self.features.contains(VIRTIO_NET_F_MRG_RXBUF);
        let shortest = if merges { 20 } else { 500 };
        (0..count)
            .map(|_| {
                let len = match self.noise.below(8) {
                    0 => self.noise.within(1..20),
                    1 => 0,
                    _ => self.noise.within(shortest..1500),
                };
                let addr = at(GuestAddr(BUFFERS), offset);
                offset += len + self.noise.below(200);
                let len = u32::try_from(len).unwrap();
                Buffer {
                    addr,
                    len,
                    write: self.direction == Direction::Enqueue,
                }
            })
            .collect()
    }

    /// Makes some chains available.
    fn supply(&mut self) {
        for _ in 0..self.noise.below(24) {
            let Some(id) = self.driver.next_id() else { break };
            let count = self.noise.within(1..5);
            let buffers = self.buffers(id, count);
            let indirect = self.features.contains(VIRTIO_RING_F_INDIRECT_DESC) && self.noise.one_in(2);
            let table = at(GuestAddr(TABLES), 0x80 * u64::from(id));
            let added = match indirect {
                true => self.driver.add_indirect(table, &buffers),
                false => self.driver.add(&buffers),
            };
            if added.is_none() {
                break;
            }
            self.held[usize::from(id)] = buffers;
        }
        self.driver.publish();
    }

    /// Prepares all that a burst may write, also what one before wrote and did not use.
    fn prepare(&self) {
        for buffer in self.held.iter().flatten() {
            if self.direction == Direction::Enqueue {
                self.memory.write(buffer.addr, &vec![0xa5; buffer.len as usize]);
            }
        }
        self.scribble(D::burst_writes(ENTRIES));
    }

    /// Takes back what is used.
    fn reap(&mut self) {
        while let Some(used) = self.driver.reap() {
            self.held[usize::try_from(used.id).unwrap()].clear();
        }
    }

    /// Frames of all lengths; some to be cut into segments, where the ring takes such.
    fn frames(&mut self) -> Vec<(Vec<u8>, Offload)> {
        let count = self.noise.within(1..33);
        let mut frames = Vec::new();
        for seed in 0..count {
            let limit = if self.noise.one_in(8) { 9000 } else { 1514 };
            let len = usize::try_from(self.noise.within(1..limit)).unwrap();
            frames.push(match self.config.offloads && self.noise.one_in(4) {
                true => segments(len),
                false => (frame(len, u8::try_from(seed).unwrap()), Offload::default()),
            });
        }
        frames
    }

    /// One burst in the queue's direction.
    fn burst(&mut self) {
        match self.direction {
            Direction::Dequeue => {
                self.queue.dequeue(&mut Pool::new(32, 2048).slots());
            }
            Direction::Enqueue => {
                let frames = self.frames();
                let slots: Vec<_> = frames
                    .iter()
                    .map(|(frame, offload)| TxSlot::with_offload(frame, *offload))
                    .collect();
                self.queue.enqueue(&slots, 0);
            }
        }
    }

    /// Switches logging on or off where the ring stands, or stops the ring and starts it again.
    fn disturb(&mut self) {
        // More often on than off.
        let switches = if self.logging { 1 } else { 4 };
        match self.noise.below(8) {
            n if n < switches => {
                self.watch("switch", |world| {
                    // What is logged by the old ring is expected by whether it did.
                    let logging = !world.logging;
                    world.queue.restart(RingConfig {
                        log: logging.then(|| world.log.clone()),
                        ..world.config.clone()
                    })
                })
                .unwrap();
                self.logging = !self.logging;
            }
            7 => {
                for range in D::start_writes(ENTRIES, self.features) {
                    self.scribble(range);
                }
                self.watch("start", |world| {
                    let base = world.queue.stop().unwrap();
                    world.queue.start(RingConfig {
                        base,
                        ..world.config()
                    })
                })
                .unwrap();
            }
            _ => {}
        }
    }

    pub(super) fn live(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.disturb();
            self.supply();
            self.prepare();
            self.watch("burst", Self::burst);
            self.reap();
            assert_eq!(self.queue.fault(), None);
        }
    }

    /// A driver that breaks its ring in the middle of a burst: what was written before is logged all the same.
    pub(super) fn die(&mut self) {
        self.supply();
        let Some(id) = self.driver.next_id() else { return };
        let mut buffers = self.buffers(id, 2);
        let Some(last) = buffers.last_mut() else { return };
        (last.addr, last.len) = (GuestAddr(0x7777_0000), 1500);
        if self.driver.add(&buffers).is_none() {
            return;
        }
        self.driver.publish();
        self.held[usize::from(id)] = buffers[..1].to_vec();
        while self.queue.fault().is_none() && self.queue.backlog() > 0 {
            let taken = self.queue.snapshot();
            self.prepare();
            self.watch("last burst", Self::burst);
            self.reap();
            if self.queue.snapshot() == taken && self.queue.fault().is_none() {
                break; // no room for a frame in what is left
            }
        }
    }
}

/// An in-flight buffer for one ring.
fn part(features: Features) -> InflightQueue {
    let layout = match features.contains(VIRTIO_F_RING_PACKED) {
        true => InflightLayout::Packed,
        false => InflightLayout::Split,
    };
    let (desc, file) = InflightMem::create(1, ENTRIES, layout).unwrap();
    let mem = Arc::new(InflightMem::map(desc, layout, &file).unwrap());
    mem.queue(0, ENTRIES, layout).unwrap()
}

/// TCP over IPv4 with `len` bytes of payload, to be cut into segments of 700.
fn segments(len: usize) -> (Vec<u8>, Offload) {
    let mut frame = vec![0x22; 54 + len];
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6]);
    frame[16..18].copy_from_slice(&u16::try_from(40 + len).unwrap().to_be_bytes());
    frame[46..48].copy_from_slice(&[0x50, 0x10]);
    let offload = Offload {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 700,
        csum_start: 34,
        csum_offset: 16,
    };
    (frame, offload)
}

/// The pages in which the memory differs.
fn changed_pages(before: &[Vec<u8>; 2], after: &[Vec<u8>; 2]) -> BTreeSet<u64> {
    let mut changed = BTreeSet::new();
    for (((guest, _), before), after) in REGIONS.iter().zip(before).zip(after) {
        let pages = before.chunks(4096).zip(after.chunks(4096));
        let differ = (guest.0 / LOG_PAGE..).zip(pages).filter(|(_, (a, b))| a != b);
        changed.extend(differ.map(|(page, _)| page));
    }
    changed
}

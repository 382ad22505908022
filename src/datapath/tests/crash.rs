//! A back-end that dies ahead of any one of its stores, and its successor with the in-flight buffer: no buffer of the guest's
//! is lost, none comes back twice, and every frame that arrives is whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::datapath::RingError;
use crate::memory::{crash, InflightLayout, InflightMem, InflightQueue, Iotlb, Miss};
use crate::model::{Net, Scattered};
use crate::virtio::net_hdr::LONG;

/// A ring with its in-flight buffer, somewhere in its life.
#[derive(Clone, Copy, Debug)]
struct Scene {
    size: u16,
    /// Chains that went through it before.
    start: u16,
    seed: u64,
    features: Features,
}

impl Scene {
    fn layout(&self) -> InflightLayout {
        match self.features.contains(VIRTIO_F_RING_PACKED) {
            true => InflightLayout::Packed,
            false => InflightLayout::Split,
        }
    }

    /// A base that says nothing: that of a ring that nobody used.
    fn base(&self) -> u32 {
        match self.layout() {
            InflightLayout::Split => 0,
            InflightLayout::Packed => 0x8000,
        }
    }
}

/// Room of each buffer in these tests: large frames take several.
const ROOM: u32 = 100;

struct Stage<D> {
    scene: Scene,
    rig: Rig<D>,
    /// Behind an IOMMU: the guest's memory, and what the back-end was told of it.
    scattered: Option<Scattered>,
    told: Iotlb,
    part: InflightQueue,
    dice: Dice,
    /// What the device has.
    outstanding: BTreeSet<u16>,
}

impl<D: Virtqueue> Stage<D> {
    fn new(direction: Direction, scene: Scene) -> Self {
        let (desc, file) = InflightMem::create(8, scene.size, scene.layout()).unwrap();
        let mem = Arc::new(InflightMem::map(desc, scene.layout(), &file).unwrap());
        let (ring, room) = (GuestAddr(0x1000), 512);
        let behind = scene.features.contains(VIRTIO_F_ACCESS_PLATFORM);
        let scattered = behind.then(|| Scattered::new(&[(ring, Net::<D>::space(scene.size, room))]));
        let rig = match &scattered {
            Some(scattered) => Rig::serving(
                direction,
                Net::within(scattered.seen(), ring, scene.size, room, scene.features),
                |config| scattered.config(config, &scattered.translations()),
            ),
            None => Rig::with_room(direction, scene.size, room, scene.features),
        };
        let mut stage = Self {
            scene,
            rig,
            scattered,
            told: Iotlb::default(),
            part: mem.queue(7, scene.size, scene.layout()).unwrap(),
            dice: Dice(scene.seed),
            outstanding: BTreeSet::new(),
        };
        stage.successor();
        stage
    }

    /// Another process takes over: it has the guest's memory, the buffer, and a base that says nothing. Behind an IOMMU it was
    /// told where the ring is and nothing else.
    fn successor(&mut self) {
        self.rig.queue = Queue::new(self.direction(), Arc::new(|_| {}));
        self.rig.queue.set_enabled(true);
        self.told = Iotlb::default();
        let mut wanted = GuestAddr(0x1000);
        loop {
            let mut config = RingConfig {
                base: self.scene.base(),
                inflight: Some(self.part.clone()),
                ..self.rig.net.driver.config(7)
            };
            if let Some(scattered) = &self.scattered {
                self.told.update(scattered.translation(wanted), &[]);
                config = scattered.config(config, &self.told);
            }
            match self.rig.queue.start(config) {
                // Of a chain that lies in an indirect table its length must be read.
                Err(RingError::InFlight(miss)) => wanted = page(miss),
                started => return drop(started.unwrap()),
            }
        }
    }

    /// The front-end tells where the addresses lead that the ring waits for, if it does.
    fn tell(&mut self) -> bool {
        let Some(scattered) = &self.scattered else {
            return false;
        };
        let mut missed = false;
        self.rig.queue.misses(&mut |miss| {
            self.told.update(scattered.translation(page(miss)), &[]);
            missed = true;
            true
        });
        let view = scattered.guest().table().behind(&self.told);
        assert_eq!(self.rig.queue.replace_mem(&Arc::new(view)), None, "it goes on");
        missed
    }

    fn dequeue(&mut self) -> Vec<Vec<u8>> {
        loop {
            let frames = self.rig.dequeue();
            if !frames.is_empty() || !self.tell() {
                return frames;
            }
        }
    }

    fn enqueue(&mut self, frames: &[Vec<u8>]) -> usize {
        loop {
            let packets = self.rig.enqueue(frames).packets;
            if packets > 0 || !self.tell() {
                return packets;
            }
        }
    }

    fn direction(&self) -> Direction {
        match self.scene.features.contains(VIRTIO_NET_F_MRG_RXBUF) {
            true => Direction::Enqueue,
            false => Direction::Dequeue,
        }
    }

    /// Makes a chain of `len` bytes available, of any shape; nothing if there is no room.
    fn add(&mut self, len: u32, write: bool, frame: &[u8]) -> bool {
        let driver = &mut self.rig.net.driver;
        let Some(id) = driver.next_id() else { return false };
        let data = self.rig.net.buffer(id);
        self.rig
            .net
            .driver
            .memory()
            .write(at(data, u64::from(LONG)), frame);
        let driver = &mut self.rig.net.driver;
        let added = match self.dice.roll(5) {
            0 => driver.add_indirect(at(data, 256), &pieces(data, len, 2, write)),
            1 => driver.add(&pieces(data, len, 2, write)),
            2 => driver.add(&pieces(data, len, 3, write)),
            _ => driver.add(&pieces(data, len, 1, write)),
        };
        added.is_some_and(|id| {
            assert!(self.outstanding.insert(id), "{id} is the device's already");
            true
        })
    }

    /// Takes back all that is used, and says how long each was.
    fn reap(&mut self) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        while let Some(elem) = self.rig.net.driver.reap() {
            let id = u16::try_from(elem.id).unwrap();
            assert!(
                self.outstanding.remove(&id),
                "{id} came back twice: {:?}",
                self.scene
            );
            used.push((id, elem.len));
        }
        used
    }

    /// Nothing is in flight, whatever happened.
    fn assert_nothing_in_flight(&self) {
        let (states, state) = (self.scene.layout().header(), self.scene.layout().entry());
        for entry in 0..u64::from(self.scene.size) {
            let at = usize::try_from(states + state * entry).unwrap();
            assert_eq!(self.part.load_u8(at), 0, "{:?}", self.scene);
        }
    }
}

fn page(miss: Miss) -> GuestAddr {
    GuestAddr(miss.iova.0 & !0xfff)
}

fn numbered(number: u32, len: usize) -> Vec<u8> {
    let seed = u8::try_from(number % 200).unwrap();
    [number.to_le_bytes().as_slice(), &frame(len - 4, seed)].concat()
}

fn number(frame: &[u8]) -> u32 {
    u32::from_le_bytes(frame[..4].try_into().unwrap())
}

/// What a crash after `stores` stores leads to. Says whether there was one: a burst has only so many stores.
type Act = fn(Scene, u32, u32) -> Survived;

/// How far a test got before the process was to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Survived {
    /// The burst ended first.
    Burst,
    /// It died, and its successor was up before that was to die too.
    Successor,
    /// Both died.
    Nobody,
}

/// From the guest: dies after `stores` stores of a burst, its successor after `more` stores of its start; then all goes well.
fn from_guest<D: Virtqueue>(scene: Scene, stores: u32, more: u32) -> Survived {
    let mut stage = Stage::<D>::new(Direction::Dequeue, scene);
    for _ in 0..scene.start {
        assert!(stage.add(72, false, &numbered(0, 60)));
        stage.rig.net.driver.publish();
        assert_eq!((stage.dequeue().len(), stage.reap().len()), (1, 1));
    }
    let mut sent = 0;
    for _ in 0..1 + stage.dice.roll(usize::from(scene.size)) {
        sent += u32::from(stage.add(72, false, &numbered(sent, 60)));
    }
    stage.rig.net.driver.publish();
    let survived = die(&mut stage, stores, more, |stage| stage.dequeue().len());
    // Frames come in order, and at most those of the burst are missing; whatever was taken is given back.
    let got: Vec<u32> = std::iter::from_fn(|| Some(stage.dequeue()).filter(|frames| !frames.is_empty()))
        .flatten()
        .map(|frame| {
            assert_eq!(frame, numbered(number(&frame), 60));
            number(&frame)
        })
        .collect();
    let first = sent - u32::try_from(got.len()).unwrap();
    assert_eq!(got, (first..sent).collect::<Vec<_>>(), "{scene:?} {stores}");
    assert_eq!(
        stage.reap().len(),
        usize::try_from(sent).unwrap(),
        "{scene:?} {stores}"
    );
    // And the ring goes on, all of it.
    for lap in 0..3 {
        let mut more = 0;
        while stage.add(72, false, &numbered(lap, 60)) {
            more += 1;
        }
        stage.rig.net.driver.publish();
        let mut moved = 0;
        while moved < more {
            let burst = stage.dequeue().len();
            assert!(burst > 0, "stuck: {scene:?} {stores}");
            moved += burst;
        }
        assert_eq!(stage.reap().len(), more);
    }
    assert!(stage.outstanding.is_empty() && stage.rig.queue.fault().is_none());
    survived
}

/// To the guest, likewise.
fn to_guest<D: Virtqueue>(scene: Scene, stores: u32, more: u32) -> Survived {
    let mut stage = Stage::<D>::new(Direction::Enqueue, scene);
    for _ in 0..scene.start {
        assert!(stage.add(ROOM, true, &[]));
        stage.rig.net.driver.publish();
        assert_eq!(stage.enqueue(&[numbered(0, 60)]), 1);
        assert_eq!(stage.reap().len(), 1);
    }
    let mut supplied = 0;
    while stage.add(ROOM, true, &[]) {
        supplied += 1;
    }
    stage.rig.net.driver.publish();
    let length = |number: u32| 60 + 61 * usize::try_from(number % 5).unwrap();
    let frames: Vec<_> = (0..6).map(|number| numbered(number, length(number))).collect();
    let survived = die(&mut stage, stores, more, |stage| stage.enqueue(&frames));
    // More frames, until every buffer is used.
    let mut next = 6;
    loop {
        let long = stage.enqueue(&[numbered(next, length(next))]);
        let short = stage.enqueue(&[numbered(next + 1, 60)]);
        next += 2;
        if long + short == 0 {
            break;
        }
    }
    arrived(&mut stage, supplied, |number| match number {
        0..6 => length(number),
        _ if number % 2 == 0 => length(number),
        _ => 60,
    });
    assert!(
        stage.outstanding.is_empty() && stage.rig.queue.fault().is_none(),
        "{scene:?} {stores}"
    );
    survived
}

/// Takes back `supplied` buffers, and the frames in them: each whole, in order, and once.
fn arrived<D: Virtqueue>(stage: &mut Stage<D>, supplied: usize, length: impl Fn(u32) -> usize) {
    let scene = stage.scene;
    let mut used = stage.reap().into_iter();
    let (mut count, mut last) = (0, None);
    while let Some((id, len)) = used.next() {
        let mut bytes = read_back(stage, id, len);
        let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
        for _ in 1..buffers {
            let (id, len) = used
                .next()
                .unwrap_or_else(|| panic!("a piece is missing: {scene:?}"));
            bytes.extend(read_back(stage, id, len));
        }
        count += usize::from(buffers);
        let frame = &bytes[12..];
        let number = number(frame);
        assert_eq!(frame, numbered(number, length(number)), "{scene:?}");
        assert!(last < Some(number), "{number} after {last:?}: {scene:?}");
        last = Some(number);
    }
    assert_eq!(count, supplied, "{scene:?}");
}

fn read_back<D: Virtqueue>(stage: &Stage<D>, id: u16, len: u32) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    assert!(len <= ROOM, "{len} bytes");
    stage
        .rig
        .net
        .driver
        .memory()
        .read(stage.rig.net.buffer(id), &mut bytes);
    bytes
}

/// Lets a process die after `stores` stores of `burst`, and its successor after `more` of its start; then comes another.
fn die<D: Virtqueue>(
    stage: &mut Stage<D>,
    stores: u32,
    more: u32,
    burst: impl FnOnce(&mut Stage<D>) -> usize,
) -> Survived {
    let died = crash::after(stores, || burst(stage)).is_err();
    stage.assert_nothing_in_flight();
    let again = died && crash::after(more, || stage.successor()).is_err();
    stage.successor();
    stage.assert_nothing_in_flight();
    match (died, again) {
        (false, _) => Survived::Burst,
        (true, false) => Survived::Successor,
        (true, true) => Survived::Nobody,
    }
}

/// Dies ahead of each store of the burst; of those, ahead of each store of the successor's start. Says how often.
fn every_store(scene: Scene, act: Act) -> u32 {
    let mut deaths = 0;
    for stores in (0..).step_by(effort::of(1, 5)) {
        let mut survived = Survived::Nobody;
        for more in (0..).step_by(effort::of(1, 7)) {
            survived = act(scene, stores, more);
            deaths += 1;
            if survived != Survived::Nobody {
                break;
            }
        }
        if survived == Survived::Burst {
            break;
        }
    }
    deaths
}

fn every_scene(sizes: &[u16], features: Features, act: Act) {
    let mut deaths = 0;
    for &size in &sizes[..effort::of(sizes.len(), 1)] {
        // Under Miri: the ring as it begins, and across its end.
        for start in (0..2 * size).step_by(usize::from(effort::of(1, size - 1))) {
            let seed = u64::from(size) * 1000 + u64::from(start);
            let scene = Scene {
                size,
                start,
                seed,
                features: features | VIRTIO_RING_F_INDIRECT_DESC,
            };
            deaths += every_store(scene, act);
        }
    }
    assert!(deaths > effort::of(1000, 5), "{deaths}");
}

#[test]
fn a_split_ring_survives_death_at_every_store_from_the_guest() {
    every_scene(&[4, 8, 16], V1, from_guest::<Driver>);
}

#[test]
fn a_split_ring_survives_death_at_every_store_to_the_guest() {
    every_scene(&[4, 8, 16], MERGE, to_guest::<Driver>);
}

#[test]
fn a_packed_ring_survives_death_at_every_store_from_the_guest() {
    every_scene(&[3, 5, 8], PACKED, from_guest::<PackedDriver>);
}

#[test]
fn a_packed_ring_survives_death_at_every_store_to_the_guest() {
    every_scene(
        &[3, 5, 8],
        PACKED | VIRTIO_NET_F_MRG_RXBUF,
        to_guest::<PackedDriver>,
    );
}

#[test]
fn a_split_ring_behind_an_iommu_survives_death_at_every_store() {
    let behind = V1 | VIRTIO_F_ACCESS_PLATFORM;
    every_scene(&[4, 8, 16], behind, from_guest::<Driver>);
    every_scene(&[4, 8, 16], behind | VIRTIO_NET_F_MRG_RXBUF, to_guest::<Driver>);
}

#[test]
fn a_packed_ring_behind_an_iommu_survives_death_at_every_store() {
    let behind = PACKED | VIRTIO_F_ACCESS_PLATFORM;
    every_scene(&[3, 5, 8], behind, from_guest::<PackedDriver>);
    every_scene(
        &[3, 5, 8],
        behind | VIRTIO_NET_F_MRG_RXBUF,
        to_guest::<PackedDriver>,
    );
}

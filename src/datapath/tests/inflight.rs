//! In-flight buffers that another back-end left, or nobody in his senses.

use std::sync::Arc;

use super::*;
use crate::memory::{InflightLayout, InflightMem, InflightQueue};
use crate::model::{PackedDesc, FRONTEND_OFFSET};
use crate::virtio::packed_ring::Position;

const SIZE: u16 = 8;

fn part(layout: InflightLayout) -> InflightQueue {
    let (desc, file) = InflightMem::create(1, SIZE, layout).unwrap();
    let mem = Arc::new(InflightMem::map(desc, layout, &file).unwrap());
    mem.queue(0, SIZE, layout).unwrap()
}

/// Frames that the guest sent, of which nothing was given back; no back-end runs.
fn sent<D: Virtqueue>(features: Features, count: u8) -> Rig<D> {
    let mut rig = Rig::<D>::new(Direction::Dequeue, SIZE, features);
    rig.queue.stop();
    (0..count).for_each(|seed| assert!(rig.net.send(&frame(60, seed))));
    rig.net.driver.publish();
    rig
}

fn start<D: Virtqueue>(rig: &Rig<D>, part: &InflightQueue) -> Vec<Found> {
    let config = RingConfig {
        inflight: Some(part.clone()),
        ..rig.net.driver.config(7)
    };
    rig.queue.start(config).unwrap()
}

fn used<D: Virtqueue>(rig: &mut Rig<D>) -> Vec<u32> {
    std::iter::from_fn(|| rig.net.driver.reap())
        .map(|elem| elem.id)
        .collect()
}

/// Whether any chain is marked.
fn in_flight(part: &InflightQueue, layout: InflightLayout) -> bool {
    (0..u64::from(SIZE)).any(|entry| {
        let at = usize::try_from(layout.header() + layout.entry() * entry).unwrap();
        part.load_u8(at) != 0
    })
}

#[test]
fn chains_that_another_back_end_left_in_flight_on_a_split_ring_come_back_in_order() {
    // It took five, gave back the second and the fourth, and died before or after it took note of that.
    for noted in [true, false] {
        let (mut rig, part) = (sent::<Driver>(V1, 5), part(InflightLayout::Split));
        let device = rig.net.driver.config(7).device.0 - FRONTEND_OFFSET;
        let memory = rig.net.driver.memory();
        for (at, id) in [(0, 1_u32), (1, 3)] {
            memory.write(GuestAddr(device + 4 + 8 * at), &u64::from(id).to_le_bytes());
        }
        memory.store(GuestAddr(device + 2), 2);
        part.store_u16(14, if noted { 2 } else { 0 });
        part.store_u16(12, 3);
        part.store_u16(16 + 16 * 3 + 6, 1);
        // Taken in another order than that of their numbers.
        for (counter, head) in [(0, 4), (1, 1), (2, 0), (3, 3), (4, 2)] {
            let marked = !noted || ![1, 3].contains(&head);
            part.store_u8(16 + 16 * head, u8::from(marked));
            part.store_u64(16 + 16 * head + 8, counter);
        }
        part.initialize();
        assert_eq!(start(&rig, &part)[0], Found::InFlight(3));
        assert_eq!(used(&mut rig), [1, 3, 4, 0, 2]);
        assert!(!in_flight(&part, InflightLayout::Split));
        assert!(rig.net.send(&frame(60, 9)));
        rig.net.driver.publish();
        assert_eq!(rig.dequeue(), [frame(60, 9)]);
        assert_eq!(part.load_u16(14), 6);
    }
}

#[test]
fn chains_that_another_back_end_left_in_flight_on_a_packed_ring_come_back_in_order() {
    let (mut rig, part) = (sent::<PackedDriver>(PACKED, 5), part(InflightLayout::Packed));
    let layout = InflightLayout::Packed;
    for (index, id) in [(0, 1), (1, 3)] {
        let flags = 0x8080;
        rig.net.driver.set_desc(
            index,
            PackedDesc {
                addr: 0,
                len: 0,
                id,
                flags,
            },
        );
    }
    for entry in 0..usize::from(SIZE) {
        let state = 32 + 32 * entry;
        let taken = [0, 2, 4].contains(&entry);
        part.store_u8(state, u8::from(taken));
        // Free: 5, 6, 7, and what was given back.
        part.store_u16(state + 2, [0, 8, 0, 1, 0, 6, 7, 3][entry]);
        let entry = u16::try_from(entry).unwrap();
        part.store_u16(state + 4, entry);
        part.store_u16(state + 6, 1);
        part.store_u64(state + 8, u64::from(10 - entry));
        part.store_u16(state + 16, entry);
    }
    part.store_u16(12, 5);
    part.store_u16(14, 5);
    part.store_u64(16, 0x0101_0002_0002);
    part.initialize();
    assert_eq!(start(&rig, &part), [Found::InFlight(3)]);
    assert_eq!(used(&mut rig), [1, 3, 4, 2, 0]);
    assert!(!in_flight(&part, layout));
    for round in 0..20 {
        assert!(rig.net.send(&frame(60, round)));
        rig.net.driver.publish();
        assert_eq!(rig.dequeue(), [frame(60, round)]);
        assert_eq!(used(&mut rig).len(), 1);
    }
}

/// The position that the specification's rules for reconnecting make of a part, in a ring at rest.
fn reconnect(part: &InflightQueue, driver: &PackedDriver) -> Position {
    let [u0, u1, o0, o1, used_wrap, old_wrap, _, _] = part.load_u64(16).to_le_bytes();
    let position = |index, wrap: u8| Position {
        index: u16::from_le_bytes(index),
        wrap: wrap != 0,
    };
    let (used, old) = (position([u0, u1], used_wrap), position([o0, o1], old_wrap));
    let flags = driver.desc(old.index).flags & 0x8080;
    let submitted = flags != PackedDriver::turn(old);
    if used != old && !submitted {
        old
    } else {
        used
    }
}

#[test]
fn between_bursts_any_back_end_finds_where_the_ring_stands() {
    let (mut rig, part) = (sent::<PackedDriver>(PACKED, 0), part(InflightLayout::Packed));
    start(&rig, &part);
    let mut dice = Dice(7);
    for _ in 0..effort::of(300, 3) {
        let count = 1 + dice.roll(usize::from(SIZE));
        (0..count).for_each(|_| assert!(rig.net.send(&frame(60, 1))));
        rig.net.driver.publish();
        assert_eq!(rig.dequeue().len(), count);
        // Before the driver looked, after it did, and after it used the descriptors again.
        let here = rig.queue.snapshot().unwrap().avail;
        assert_eq!(reconnect(&part, &rig.net.driver).bits(), here);
        assert_eq!(used(&mut rig).len(), count);
        assert_eq!(reconnect(&part, &rig.net.driver).bits(), here);
        assert!(rig.net.send(&frame(60, 1)));
        rig.net.driver.publish();
        assert_eq!(reconnect(&part, &rig.net.driver).bits(), here);
        assert_eq!((rig.dequeue().len(), used(&mut rig).len()), (1, 1));
    }

    let (mut rig, part) = (sent::<Driver>(V1, 3), self::part(InflightLayout::Split));
    start(&rig, &part);
    assert_eq!((rig.dequeue().len(), part.load_u16(14)), (3, 3));
    assert!(!in_flight(&part, InflightLayout::Split));
    assert_eq!(used(&mut rig).len(), 3);
}

#[test]
fn a_part_of_noise_harms_nobody_but_its_ring() {
    let mut dice = Dice(1);
    let mut word = || {
        let [a, b, c, d] = [0; 4].map(|_| dice.roll(if dice_is_small() { 16 } else { 1 << 16 }) as u64);
        a | b << 16 | c << 32 | d << 48
    };
    for round in 0..effort::of(2000, 20) {
        let layout = [InflightLayout::Split, InflightLayout::Packed][round % 2];
        let part = part(layout);
        let words = layout.stride(SIZE) / 8;
        for at in 0..usize::try_from(words).unwrap() {
            part.store_u64(8 * at, word());
        }
        part.initialize();
        match layout {
            InflightLayout::Split => noise::<Driver>(V1, &part),
            InflightLayout::Packed => noise::<PackedDriver>(PACKED, &part),
        }
    }
}

/// Small numbers hit what large ones miss.
fn dice_is_small() -> bool {
    use std::cell::Cell;
    thread_local!(static TURN: Cell<bool> = const { Cell::new(false) });
    TURN.replace(!TURN.get())
}

fn noise<D: Virtqueue>(features: Features, part: &InflightQueue) {
    let mut rig = sent::<D>(features, 5);
    let config = RingConfig {
        inflight: Some(part.clone()),
        ..rig.net.driver.config(7)
    };
    // It starts or says why not; bursts end.
    if rig.queue.start(config).is_ok() {
        for _ in 0..4 {
            rig.dequeue();
        }
    }
}

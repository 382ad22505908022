//! Frames of every shape, both ways, in rings of any size; and drops that break nothing.

use super::*;

/// Smallest, odd, prime, a power of two.
const SIZES: [u16; 5] = [1, 3, 7, 61, 64];

#[test]
fn frames_of_every_length_come_out_as_they_went_in() {
    for features in [PACKED, MERGED, TABLES, PACKED | VIRTIO_RING_F_EVENT_IDX] {
        let mut rig = Rig::new(Direction::Dequeue, 61, features);
        for len in lengths() {
            let sent = frame(len, 3);
            assert!(rig.net.send(&sent));
            rig.net.driver.publish();
            assert_eq!(rig.dequeue(), [sent], "{len} bytes");
            assert_eq!(rig.net.driver.reap().map(|used| used.len), Some(0));
        }
        assert_eq!(rig.stats().good_packets, lengths().count() as u64);
        assert_eq!(rig.stats().good_bytes, lengths().sum::<usize>() as u64);
    }
}

#[test]
fn frames_of_every_length_go_in_as_they_were() {
    for features in [PACKED, MERGED, TABLES, MERGED | VIRTIO_RING_F_EVENT_IDX] {
        let mut rig = Rig::new(Direction::Enqueue, 61, features);
        for len in lengths() {
            rig.net.supply(1);
            rig.net.driver.publish();
            let sent = vec![frame(len, 5)];
            assert_eq!(rig.enqueue(&sent).packets, 1);
            assert_eq!(rig.received(), sent, "{len} bytes");
        }
    }
}

#[test]
fn rings_of_any_size_wrap_many_times_both_ways() {
    for size in SIZES {
        let mut tx = Rig::new(Direction::Dequeue, size, PACKED);
        let mut rx = Rig::new(Direction::Enqueue, size, MERGED);
        let (mut seed, mut expected) = (0_u32, 0_u32);
        let rounds = effort::of(1000_usize, 3 * usize::from(size));
        for round in 0..rounds {
            let count = 1 + round % usize::from(size);
            for _ in 0..count {
                if tx.net.send(&seed.to_le_bytes().repeat(16)) {
                    seed += 1;
                }
            }
            tx.net.driver.publish();
            let frames = tx.dequeue();
            for frame in &frames {
                assert_eq!(frame, &expected.to_le_bytes().repeat(16), "size {size}");
                expected += 1;
            }
            while tx.net.driver.reap().is_some() {}
            rx.net.supply(frames.len());
            rx.net.driver.publish();
            assert_eq!(rx.enqueue(&frames).packets, frames.len());
            assert_eq!(rx.received(), frames, "size {size}");
        }
        assert!(
            2 * seed as usize > rounds && seed - expected <= u32::from(size),
            "{seed} {expected}"
        );
        assert_eq!((tx.queue.fault(), rx.queue.fault()), (None, None));
    }
}

#[test]
fn chains_that_straddle_the_end_come_out_whole() {
    for size in [5_u16, 7, 13] {
        for indirect in [false, true] {
            let mut rig = Rig::new(Direction::Dequeue, size, TABLES);
            let (data, table) = (rig.net.buffer(0), rig.net.buffer(1));
            for round in 0..effort::of(200_u8, 4) {
                let sent = frame(150, round);
                rig.net.driver.memory().write(at(data, 12), &sent);
                for cuts in [&[12, 30][..], &[5, 0, 40], &[], &[11, 1]] {
                    let buffers = cut(data, cuts, 162, false);
                    match indirect {
                        true => rig.net.driver.add_indirect(table, &buffers),
                        false => rig.net.driver.add(&buffers),
                    }
                    .unwrap();
                    rig.net.driver.publish();
                    assert_eq!(rig.dequeue(), std::slice::from_ref(&sent), "{size} {round}");
                    rig.net.driver.reap().unwrap();
                }
            }
        }
    }
}

#[test]
fn chains_of_several_shapes_come_out_of_one_burst_in_order() {
    let mut rig = Rig::new(Direction::Dequeue, 61, TABLES);
    let mut sent = Vec::new();
    for round in 0..effort::of(50_u8, 9) {
        let (first, table) = (rig.net.buffer(20), rig.net.buffer(21));
        for place in 0..8_u8 {
            let data = rig.net.buffer(u16::from(place));
            let bytes = frame(100 + usize::from(place), round);
            rig.net.driver.memory().write(at(data, 12), &bytes);
            let len = u32::try_from(bytes.len()).unwrap() + 12;
            match place % 4 {
                0 | 3 => rig.net.driver.add(&cut(data, &[], len, false)),
                1 => rig.net.driver.add(&cut(data, &[12, 7], len, false)),
                _ => rig
                    .net
                    .driver
                    .add_indirect(at(table, u64::from(place) * 64), &cut(data, &[20], len, false)),
            }
            .unwrap();
            sent.push(bytes);
        }
        assert_ne!(first, table);
        rig.net.driver.publish();
        assert_eq!(rig.dequeue(), sent);
        sent.clear();
        assert_eq!(std::iter::from_fn(|| rig.net.driver.reap()).count(), 8);
    }
}

#[test]
fn a_received_frame_may_be_scattered_anywhere() {
    let sent = vec![frame(150, 9)];
    for features in [MERGED, PACKED] {
        for indirect in [false, true] {
            let mut rig = Rig::new(Direction::Enqueue, 11, features | VIRTIO_RING_F_INDIRECT_DESC);
            let (data, table) = (rig.net.buffer(0), rig.net.buffer(1));
            for cuts in [&[1, 1, 1, 20][..], &[12][..], &[5, 0, 0, 30], &[11, 1, 60], &[]] {
                // More than is needed: the chain is skipped whole, also the part that is not written.
                let mut buffers = cut(data, cuts, 1000, true);
                buffers.push(write(at(data, 1000), 100));
                buffers.push(write(at(data, 1100), 100));
                match indirect {
                    true => rig.net.driver.add_indirect(table, &buffers),
                    false => rig.net.driver.add(&buffers),
                }
                .unwrap();
                rig.net.driver.publish();
                assert_eq!(rig.enqueue(&sent).packets, 1);
                assert_eq!(rig.received(), sent, "{cuts:?}");
            }
        }
    }
}

#[test]
fn a_burst_fills_no_more_slots_than_it_is_given() {
    let mut rig = Rig::tx(PACKED);
    (0..50).for_each(|seed| assert!(rig.net.send(&frame(60, seed))));
    rig.net.driver.publish();
    let mut slots = rig.pool.slots();
    assert_eq!((rig.queue.dequeue(&mut slots[..4]), rig.queue.backlog()), (4, 46));
    assert_eq!(rig.queue.dequeue(&mut []), 0);
    assert_eq!(rig.queue.dequeue(&mut slots), BURST);
    assert_eq!(rig.queue.dequeue(&mut slots), 14);
    assert_eq!((rig.queue.backlog(), rig.queue.dequeue(&mut slots)), (0, 0));
}

#[test]
#[cfg_attr(miri, ignore = "thousands of steps that are all the same")]
fn the_largest_ring_works_at_its_last_descriptor() {
    let mut rig = Rig::with_room(Direction::Dequeue, 32768, 128, PACKED);
    for _ in 0..2 {
        while rig.net.send(&[0; 60]) {}
        rig.net.driver.publish();
        assert_eq!(rig.queue.backlog(), 32768);
        let mut moved = 0;
        while let count @ 1.. = rig.dequeue().len() {
            moved += count;
        }
        assert_eq!(moved, 32768);
        while rig.net.driver.reap().is_some() {}
    }
    assert_eq!(rig.queue.stop(), Some(0x8000_8000));
}

// ---- mergeable buffers ----

#[test]
fn a_frame_is_merged_over_as_many_buffers_as_it_needs() {
    let mut rig = Rig::with_room(Direction::Enqueue, 61, 256, MERGED);
    for _ in 0..20 {
        rig.net.supply(61);
        rig.net.driver.publish();
        let sent: Vec<_> = [60, 244, 245, 1500, 9000, 1]
            .into_iter()
            .map(|len| frame(len, u8::try_from(len % 7).unwrap()))
            .collect();
        assert_eq!(rig.enqueue(&sent).packets, 6);
        assert_eq!(rig.received(), sent);
    }
}

#[test]
fn a_frame_that_lacks_buffers_leaves_the_ring_as_it_was() {
    let mut rig = Rig::with_room(Direction::Enqueue, 61, 256, MERGED);
    rig.net.supply(4);
    rig.net.driver.publish();
    let before: Vec<_> = (1..4).map(|index| rig.net.driver.desc(index)).collect();
    let sent: Vec<_> = [100, 1000, 100].into_iter().map(|len| frame(len, 1)).collect();
    assert_eq!(rig.enqueue(&sent).packets, 1);
    assert_eq!(
        (1..4).map(|index| rig.net.driver.desc(index)).collect::<Vec<_>>(),
        before
    );
    assert_eq!(rig.received(), sent[..1]);
    rig.net.supply(3);
    rig.net.driver.publish();
    assert_eq!(rig.enqueue(&sent[1..]).packets, 2);
    assert_eq!(rig.received(), sent[1..]);
    assert_eq!(rig.queue.fault(), None);
}

#[test]
fn a_frame_too_large_for_an_unmergeable_buffer_is_dropped_alone() {
    let mut rig = Rig::with_room(Direction::Enqueue, 61, 256, PACKED);
    rig.net.supply(4);
    rig.net.driver.publish();
    let sent: Vec<_> = [100, 300, 200].into_iter().map(|len| frame(len, 1)).collect();
    assert_eq!((rig.enqueue(&sent).packets, rig.stats().oversize), (2, 1));
    assert_eq!(rig.received(), [sent[0].clone(), sent[2].clone()]);
}

#[test]
fn enqueue_takes_any_number_of_frames() {
    let mut rig = Rig::new(Direction::Enqueue, 255, MERGED);
    rig.net.supply(255);
    rig.net.driver.publish();
    let sent: Vec<_> = (0..100).map(|seed| frame(64, seed)).collect();
    assert_eq!(rig.enqueue(&sent).packets, 100);
    assert_eq!(rig.received(), sent);
    let more: Vec<_> = (0..200).map(|seed| frame(64, seed)).collect();
    assert_eq!(rig.enqueue(&more).packets, 155);
    assert_eq!(rig.received(), more[..155]);
}

#[test]
#[cfg_attr(
    miri,
    ignore = "a driver writes parts of the word that we look at, and we look at any time"
)]
fn the_driver_sees_a_burst_whole_or_not_at_all() {
    // Frames of three buffers each: a driver that sees the first sees the others.
    let net: Net<PackedDriver> = Net::new(61, 256, MERGED);
    let queue = Queue::new(Direction::Enqueue, Arc::new(|_| {}));
    queue.set_enabled(true);
    queue.start(net.driver.config(7)).unwrap();
    let total = effort::of(20_000, 60);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut net = net;
            let mut received = 0;
            while received < total {
                net.supply(61);
                net.driver.publish();
                // Panics if the second or third buffer of a frame is not there.
                match net.receive() {
                    Some(got) => {
                        assert_eq!(got, frame(600, 4));
                        received += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
        let (sent, mut moved) = (frame(600, 4), 0);
        let slots = [TxSlot::new(&sent); 8];
        while moved < total {
            match queue.enqueue(&slots[..8.min(total - moved)], 0).packets {
                0 => std::thread::yield_now(),
                packets => moved += packets,
            }
        }
    });
    assert_eq!(queue.fault(), None);
}

// ---- drops that break nothing ----

#[test]
fn runts_and_oversize_frames_are_given_back_and_counted_apart() {
    let mut rig = Rig::tx(PACKED);
    let data = rig.net.buffer(0);
    for buffers in [
        &[read(data, 12)][..],
        &[read(data, 0)],
        &[read(data, 6), read(data, 6)],
        &[read(data, 2048), read(data, 1000)],
    ] {
        rig.net.driver.add(buffers).unwrap();
    }
    rig.net.send(&frame(60, 1));
    rig.net.driver.publish();
    assert_eq!(rig.dequeue(), [frame(60, 1)]);
    assert_eq!((rig.stats().runts, rig.stats().oversize), (3, 1));
    assert_eq!(std::iter::from_fn(|| rig.net.driver.reap()).count(), 5);
}

#[test]
fn very_long_chains_end_a_burst_early_but_lose_nothing() {
    let mut rig = Rig::with_room(Direction::Dequeue, 1000, 64, TABLES);
    let (data, table) = (rig.net.buffer(0), rig.net.buffer(100));
    let buffers: Vec<_> = (0..600).map(|_| read(data, 1)).collect();
    for _ in 0..4 {
        rig.net.driver.add_indirect(table, &buffers).unwrap();
    }
    rig.net.driver.publish();
    assert_eq!([0; 3].map(|_| rig.dequeue().len()), [2, 2, 0]);
}

#[test]
fn a_chain_as_long_as_the_ring_is_legal_and_one_longer_is_not() {
    for longer in [0, 1] {
        let mut rig = Rig::new(Direction::Dequeue, 7, TABLES);
        let (data, table) = (rig.net.buffer(0), rig.net.buffer(1));
        let buffers: Vec<_> = (0..7 + longer).map(|_| read(data, 20)).collect();
        rig.net.driver.add_indirect(table, &buffers).unwrap();
        rig.net.driver.publish();
        assert_eq!(rig.dequeue().len(), 1 - longer);
    }
    let mut rig = Rig::new(Direction::Dequeue, 7, TABLES);
    let data = rig.net.buffer(0);
    for _ in 0..3 {
        rig.net.driver.add(&[read(data, 20); 7]).unwrap();
        rig.net.driver.publish();
        assert_eq!((rig.dequeue().len(), rig.net.driver.reap().is_some()), (1, true));
    }
}

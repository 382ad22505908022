//! Frames of every shape, both ways; and drops that break nothing.

use super::*;

#[test]
fn frames_of_every_length_come_out_as_they_went_in() {
    for features in [Features::NONE, V1, MERGE, INDIRECT, V1 | VIRTIO_RING_F_EVENT_IDX] {
        let mut rig = Rig::tx(features);
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
    for features in [
        Features::NONE,
        V1,
        MERGE,
        INDIRECT,
        MERGE | VIRTIO_RING_F_EVENT_IDX,
    ] {
        let mut rig = Rig::rx(features);
        for len in lengths() {
            rig.net.supply(1);
            rig.net.driver.publish();
            let sent = vec![frame(len, 5)];
            assert_eq!(rig.enqueue(&sent).packets, 1);
            assert_eq!(rig.received(), sent, "{len} bytes");
        }
        assert_eq!(rig.stats().good_bytes, lengths().sum::<usize>() as u64);
    }
}

#[test]
fn a_full_ring_comes_out_in_order_in_bursts() {
    let mut rig = Rig::tx(V1);
    // Twice around, and across the end of the ring.
    let mut next = 0_u8;
    for round in 0..6 {
        let sent: Vec<_> = (0..47).map(|seed| frame(64, seed + round)).collect();
        sent.iter().for_each(|frame| assert!(rig.net.send(frame)));
        rig.net.driver.publish();
        let mut received = rig.dequeue();
        assert_eq!(received.len(), BURST);
        received.extend(rig.dequeue());
        assert_eq!(received, sent);
        while rig.net.driver.reap().is_some() {
            next = next.wrapping_add(1);
        }
    }
    assert_eq!(u64::from(next) + 256, 6 * 47);
}

#[test]
fn a_burst_sees_buffers_made_available_behind_those_it_knew_of() {
    let mut rig = Rig::with_room(Direction::Enqueue, SIZE, 512, MERGE);
    rig.net.supply(40);
    rig.net.driver.publish();
    let small: Vec<_> = (0..8).map(|seed| frame(60, seed)).collect();
    assert_eq!(rig.enqueue(&small).packets, 8);
    // 32 are known, and enough for a burst of small frames; these take 40.
    rig.net.supply(8);
    rig.net.driver.publish();
    let large: Vec<_> = (0..20).map(|seed| frame(600, seed)).collect();
    assert_eq!(rig.enqueue(&large).packets, 20);
    assert_eq!(rig.received(), [small, large].concat());
    assert_eq!(rig.enqueue(&[frame(60, 1)]).packets, 0, "none is left");
}

#[test]
fn in_order_one_used_entry_gives_back_what_a_burst_took() {
    let mut rig = Rig::tx(V1 | VIRTIO_F_IN_ORDER);
    for (round, count) in [3_u16, 32, 1, 20].into_iter().enumerate() {
        let from = rig.net.driver.used_idx();
        let heads: Vec<u16> = (0..count)
            .map(|_| {
                let head = rig.net.driver.next_id().expect("a free descriptor");
                assert!(rig.net.send(&frame(60, 1)));
                head
            })
            .collect();
        let untouched = rig.net.driver.used_elem(from.wrapping_add(1));
        rig.net.driver.publish();
        assert_eq!(rig.dequeue().len(), usize::from(count), "{round}");
        assert_eq!(rig.net.driver.used_idx(), from + count);
        let entry = rig.net.driver.used_elem(from);
        assert_eq!((entry.id, entry.len), (u32::from(heads[heads.len() - 1]), 0));
        assert_eq!(rig.net.driver.used_elem(from.wrapping_add(1)), untouched);
        let reaped: Vec<u32> = std::iter::from_fn(|| rig.net.driver.reap())
            .map(|used| used.id)
            .collect();
        assert_eq!(
            reaped,
            heads.iter().map(|head| u32::from(*head)).collect::<Vec<_>>()
        );
    }
}

#[test]
fn in_order_every_buffer_that_is_written_has_its_own_length() {
    let mut rig = Rig::rx(V1 | VIRTIO_F_IN_ORDER);
    rig.net.supply(2);
    rig.net.driver.publish();
    assert_eq!(rig.enqueue(&[frame(60, 1), frame(70, 2)]).packets, 2);
    assert_eq!([0, 1].map(|at| rig.net.driver.used_elem(at).len), [72, 82]);
}

#[test]
fn a_burst_fills_no_more_slots_than_it_is_given() {
    let mut rig = Rig::tx(V1);
    (0..10).for_each(|seed| assert!(rig.net.send(&frame(60, seed))));
    rig.net.driver.publish();
    let mut slots = rig.pool.slots();
    assert_eq!(rig.queue.dequeue(&mut slots[..4]), 4);
    assert_eq!(rig.queue.backlog(), 6);
    assert_eq!(rig.queue.dequeue(&mut []), 0);
    assert_eq!(rig.queue.dequeue(&mut slots), 6);
    assert_eq!(rig.queue.backlog(), 0);
}

#[test]
fn a_ring_of_one_entry_works_both_ways() {
    let mut tx = Rig::new(Direction::Dequeue, 1, V1);
    let mut rx = Rig::new(Direction::Enqueue, 1, MERGE);
    for seed in 0..5 {
        let sent = vec![frame(100, seed)];
        assert!(tx.net.send(&sent[0]));
        tx.net.driver.publish();
        assert_eq!(tx.dequeue(), sent);
        tx.net.driver.reap().unwrap();
        rx.net.supply(1);
        rx.net.driver.publish();
        assert_eq!(rx.enqueue(&sent).packets, 1);
        assert_eq!(rx.received(), sent);
    }
}

#[test]
#[cfg_attr(miri, ignore = "thousands of steps that are all the same")]
fn the_largest_ring_works_at_its_last_descriptor() {
    let mut rig = Rig::with_room(Direction::Dequeue, 32768, 128, V1);
    while rig.net.send(&[0; 60]) {}
    rig.net.driver.publish();
    let mut moved = 0;
    while let count @ 1.. = rig.dequeue().len() {
        moved += count;
    }
    assert_eq!(moved, 32768);
    assert_eq!(rig.queue.stop(), Some(32768));
}

#[test]
fn header_and_frame_may_be_cut_anywhere() {
    let sent = frame(150, 9);
    for features in [V1, Features::NONE] {
        for indirect in [false, true] {
            let mut rig = Rig::tx(features | VIRTIO_RING_F_INDIRECT_DESC);
            let header = rig.net.header();
            let (data, table) = (rig.net.buffer(0), rig.net.buffer(1));
            // The whole lies at `data`; descriptors of these lengths cut it up, empty ones among them.
            for cuts in [
                &[1, 1, 1, 20][..],
                &[header][..],
                &[5, 0, 0, 30],
                &[header + 1, 60],
                &[header - 1, 1],
                &[0],
            ] {
                rig.net.driver.memory().write(at(data, header.into()), &sent);
                let whole = header + 150;
                let mut buffers = Vec::new();
                let mut offset = 0;
                for len in cuts {
                    buffers.push(read(at(data, offset), *len));
                    offset += u64::from(*len);
                }
                buffers.push(read(at(data, offset), whole - u32::try_from(offset).unwrap()));
                match indirect {
                    true => rig.net.driver.add_indirect(table, &buffers),
                    false => rig.net.driver.add(&buffers),
                };
                rig.net.driver.publish();
                assert_eq!(rig.dequeue(), std::slice::from_ref(&sent), "{cuts:?}");
                rig.net.driver.reap().unwrap();
            }
        }
    }
}

#[test]
fn a_received_frame_may_be_scattered_anywhere() {
    let sent = vec![frame(150, 9)];
    for features in [MERGE, V1, Features::NONE] {
        for indirect in [false, true] {
            let mut rig = Rig::rx(features | VIRTIO_RING_F_INDIRECT_DESC);
            let (data, table) = (rig.net.buffer(0), rig.net.buffer(1));
            for cuts in [
                &[1, 1, 1, 20][..],
                &[12][..],
                &[5, 0, 0, 30],
                &[11, 1, 60],
                &[10, 1, 1, 1],
                &[],
            ] {
                let mut buffers = Vec::new();
                let mut offset = 0;
                for len in cuts {
                    buffers.push(write(at(data, offset), *len));
                    offset += u64::from(*len);
                }
                buffers.push(write(at(data, offset), 1000));
                match indirect {
                    true => rig.net.driver.add_indirect(table, &buffers),
                    false => rig.net.driver.add(&buffers),
                };
                rig.net.driver.publish();
                assert_eq!(rig.enqueue(&sent).packets, 1);
                // Head 0 is the first descriptor, whose buffer begins the whole.
                assert_eq!(rig.received(), sent, "{cuts:?}");
            }
        }
    }
}

#[test]
fn direct_descriptors_may_precede_an_indirect_one() {
    let mut rig = Rig::tx(INDIRECT);
    let (data, table) = (rig.net.buffer(0), rig.net.buffer(9));
    let sent = frame(100, 1);
    rig.net.driver.memory().write(at(data, 12), &sent);
    rig.net
        .driver
        .add_indirect(table, &[read(at(data, 20), 50), read(at(data, 70), 42)]);
    let indirect = desc(table.0, 32, VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_WRITE, 0);
    // The WRITE flag of the referring descriptor means nothing.
    rig.net.driver.set_desc(5, indirect);
    rig.net.driver.set_desc(0, desc(data.0, 20, VIRTQ_DESC_F_NEXT, 5));
    rig.net.driver.publish();
    assert_eq!(rig.dequeue(), [sent]);
}

#[test]
fn a_chain_as_long_as_the_ring_is_legal_and_one_longer_is_not() {
    for direct in [true, false] {
        for longer in [0, 1] {
            let mut rig = Rig::new(Direction::Dequeue, 8, INDIRECT);
            let (data, table) = (rig.net.buffer(0), rig.net.buffer(1));
            let buffers: Vec<_> = (0..8 + longer).map(|_| read(data, 20)).collect();
            match direct {
                true => {
                    rig.net.driver.add(&buffers[..8]).unwrap();
                    if longer > 0 {
                        // The last goes on where the chain began: a loop.
                        rig.net.driver.set_desc(7, desc(data.0, 20, 1, 0));
                    }
                }
                false => {
                    rig.net.driver.add_indirect(table, &buffers).unwrap();
                }
            }
            rig.net.driver.publish();
            let moved = rig.dequeue().len();
            match (longer, direct) {
                (0, _) => assert_eq!((moved, rig.queue.fault()), (1, None)),
                (_, true) => assert_eq!(rig.chain_error(), Some(ChainError::TooLong(8))),
                (_, false) => assert_eq!(rig.chain_error(), Some(ChainError::IndirectLength(144))),
            }
        }
    }
}

#[test]
fn a_buffer_across_neighbouring_regions_is_legal_and_split() {
    let sent = frame(1500, 4);
    for offset in [1, 11, 12, 13, 700, 1511] {
        let data = GuestAddr(0x10_4000 - offset);
        let (queue, mut driver) = neighbours(Direction::Dequeue, V1);
        driver.memory().write(at(data, 12), &sent);
        driver.add(&[read(data, 1512)]);
        driver.publish();
        let mut pool = Pool::new(1, 2048);
        let mut slots = pool.slots();
        assert_eq!(queue.dequeue(&mut slots), 1);
        assert_eq!(slots[0].frame(), sent);

        let (queue, mut driver) = neighbours(Direction::Enqueue, V1);
        driver.add(&[write(data, 1600)]);
        driver.publish();
        assert_eq!(queue.enqueue(&[TxSlot::new(&sent)], 0).packets, 1);
        let mut received = vec![0; 1500];
        driver.memory().read(at(data, 12), &mut received);
        assert_eq!(received, sent);
        assert_eq!(driver.reap().map(|used| used.len), Some(1512));
    }
}

#[test]
fn an_indirect_table_across_neighbouring_regions_is_legal() {
    for offset in [16, 8, 24, 1] {
        let (queue, mut driver) = neighbours(Direction::Dequeue, INDIRECT);
        let data = GuestAddr(0x20_0000);
        let sent = frame(88, 4);
        driver.memory().write(at(data, 12), &sent);
        driver.add_indirect(
            GuestAddr(0x10_4000 - offset),
            &[read(data, 50), read(at(data, 50), 50)],
        );
        driver.publish();
        let mut pool = Pool::new(1, 2048);
        let mut slots = pool.slots();
        assert_eq!(queue.dequeue(&mut slots), 1, "{:?}", queue.fault());
        assert_eq!(slots[0].frame(), sent);
    }
}

// ---- mergeable buffers ----

#[test]
fn a_frame_is_merged_over_as_many_buffers_as_it_needs() {
    let mut rig = Rig::with_room(Direction::Enqueue, SIZE, 256, MERGE);
    rig.net.supply(64);
    rig.net.driver.publish();
    let sent: Vec<_> = [60, 244, 245, 1500, 9000, 1]
        .into_iter()
        .map(|len| frame(len, u8::try_from(len % 7).unwrap()))
        .collect();
    assert_eq!(rig.enqueue(&sent).packets, 6);
    assert_eq!(rig.received(), sent);
    assert_eq!(rig.stats().size_bins, [2, 0, 0, 2, 0, 0, 1, 1]);
    assert_eq!(rig.net.driver.used_idx(), 1 + 1 + 2 + 6 + 36 + 1);
}

#[test]
fn a_frame_that_lacks_buffers_leaves_the_ring_as_it_was() {
    let mut rig = Rig::with_room(Direction::Enqueue, SIZE, 256, MERGE);
    rig.net.supply(4);
    rig.net.driver.publish();
    let sent: Vec<_> = [100, 1000, 100].into_iter().map(|len| frame(len, 1)).collect();
    assert_eq!(rig.enqueue(&sent).packets, 1);
    assert_eq!(rig.net.driver.used_idx(), 1);
    assert_eq!(rig.received(), sent[..1]);
    rig.net.supply(3);
    rig.net.driver.publish();
    assert_eq!(rig.enqueue(&sent[1..]).packets, 2);
    assert_eq!(rig.received(), sent[1..]);
    assert_eq!(rig.queue.fault(), None);
}

#[test]
fn the_bytes_of_num_buffers_may_lie_apart() {
    let mut rig = Rig::rx(MERGE);
    let (one, two) = (rig.net.buffer(40), rig.net.buffer(50));
    rig.net
        .driver
        .add(&[write(one, 11), write(at(one, 100), 1), write(at(one, 11), 5)])
        .unwrap();
    rig.net.driver.add(&[write(two, 500)]).unwrap();
    rig.net.driver.publish();
    assert_eq!(rig.enqueue(&[frame(100, 0)]).packets, 1);
    let (mut low, mut high) = ([0], [9]);
    rig.net.driver.memory().read(at(one, 10), &mut low);
    rig.net.driver.memory().read(at(one, 100), &mut high);
    assert_eq!((low, high), ([2], [0]));
    let used = [rig.net.driver.reap(), rig.net.driver.reap()].map(|used| used.unwrap().len);
    assert_eq!(used, [17, 95]);
}

#[test]
fn a_frame_too_large_for_an_unmergeable_buffer_is_dropped_alone() {
    let mut rig = Rig::with_room(Direction::Enqueue, SIZE, 256, V1);
    rig.net.supply(4);
    rig.net.driver.publish();
    let sent: Vec<_> = [100, 300, 200].into_iter().map(|len| frame(len, 1)).collect();
    assert_eq!(rig.enqueue(&sent).packets, 2);
    assert_eq!(rig.stats().oversize, 1);
    assert_eq!(rig.net.driver.used_idx(), 2);
    assert_eq!(rig.received(), [sent[0].clone(), sent[2].clone()]);
}

#[test]
fn enqueue_takes_any_number_of_frames_and_publishes_once_per_group() {
    let mut rig = Rig::new(Direction::Enqueue, 256, MERGE);
    rig.net.supply(256);
    rig.net.driver.publish();
    let sent: Vec<_> = (0..100).map(|seed| frame(64, seed)).collect();
    assert_eq!(rig.enqueue(&sent).packets, 100);
    assert_eq!(rig.received(), sent);
    let more: Vec<_> = (0..200).map(|seed| frame(64, seed)).collect();
    assert_eq!(rig.enqueue(&more).packets, 156);
    assert_eq!(rig.received(), more[..156]);
}

#[test]
fn retries_follow_progress_only() {
    let rig = Rig::rx(MERGE);
    let frames = [frame(60, 0), frame(60, 1)];
    let slots = frames.each_ref().map(|frame| TxSlot::new(frame));
    assert_eq!(rig.queue.enqueue(&slots, 8), Sent::default());
    let mut rig = rig;
    rig.net.supply(1);
    rig.net.driver.publish();
    // Some progress, one attempt more, which finds nothing.
    assert_eq!(
        rig.queue.enqueue(&slots, 8),
        Sent {
            invalid: 0,
            packets: 1,
            slots: 1,
            retries: 1,
            contended: false
        }
    );
    rig.net.supply(1);
    rig.net.driver.publish();
    assert_eq!(
        rig.queue.enqueue(&slots, 0),
        Sent {
            invalid: 0,
            packets: 1,
            slots: 1,
            retries: 0,
            contended: false
        }
    );
}

// ---- drops that break nothing ----

#[test]
fn runts_and_oversize_frames_are_given_back_and_counted_apart() {
    let mut rig = Rig::tx(V1);
    let data = rig.net.buffer(0);
    for buffers in [
        &[read(data, 12)][..],
        &[read(data, 5)],
        &[read(data, 0)],
        &[read(data, 6), read(data, 6)],
        &[read(data, 2048), read(data, 1000)],
        &[read(data, 2048), read(data, 13)],
    ] {
        rig.net.driver.add(buffers).unwrap();
    }
    let whole = read(data, 2060);
    rig.net.driver.add(&[whole]).unwrap();
    rig.net.send(&frame(60, 1));
    rig.net.driver.publish();
    let out = rig.dequeue();
    assert_eq!(out.len(), 2);
    assert_eq!((out[0].len(), &out[1]), (2048, &frame(60, 1)));
    assert_eq!(
        (rig.stats().runts, rig.stats().oversize, rig.stats().good_packets),
        (4, 2, 2)
    );
    assert_eq!(rig.net.driver.used_idx(), 8);
    assert_eq!(rig.queue.fault(), None);
}

#[test]
fn very_long_chains_end_a_burst_early_but_lose_nothing() {
    let mut rig = Rig::with_room(Direction::Dequeue, 1024, 64, INDIRECT);
    let (data, table) = (rig.net.buffer(0), rig.net.buffer(100));
    let buffers: Vec<_> = (0..600).map(|_| read(data, 1)).collect();
    for _ in 0..4 {
        rig.net.driver.add_indirect(table, &buffers).unwrap();
    }
    rig.net.driver.publish();
    assert_eq!([0; 3].map(|_| rig.dequeue().len()), [2, 2, 0]);
}

//! Notification, starting, stopping.

use super::*;

#[test]
fn one_call_after_attach_then_one_per_burst_that_the_driver_wants() {
    let mut rig = Rig::tx(PACKED);
    let (config, mut call) = with_call(rig.net.driver.config(7));
    rig.queue.start(config).unwrap();
    assert_eq!(calls(&mut call), 1);
    // (flags of the driver's event suppression, calls); 2 needs EVENT_IDX, 3 means nothing.
    for (flags, wanted) in [(0, 1), (1, 0), (2, 1), (3, 1), (0xfffd, 0)] {
        rig.net.driver.set_driver_event(Event { desc: 0x7fff, flags });
        (0..10).for_each(|seed| assert!(rig.net.send(&frame(60, seed))));
        rig.net.driver.publish();
        assert_eq!(rig.dequeue().len(), 10);
        assert_eq!(calls(&mut call), wanted, "flags {flags}");
        while rig.net.driver.reap().is_some() {}
    }
}

#[test]
fn the_descriptor_that_the_driver_names_decides_when_event_idx_is_negotiated() {
    let mut rig = Rig::new(Direction::Dequeue, 5, PACKED | VIRTIO_RING_F_EVENT_IDX);
    let (config, mut call) = with_call(rig.net.driver.config(7));
    rig.queue.start(config).unwrap();
    assert_eq!(calls(&mut call), 1);
    // Bursts of 3 in a ring of 5: descriptors 0-2, 3-4 and 0, 1-3, 4 and 0-1, 2-4.
    let rows = [(0x8002, 1), (0x8002, 0), (0x0003, 1), (0x8002, 0), (0x8004, 1)];
    for (desc, wanted) in rows {
        rig.net.driver.set_driver_event(Event { desc, flags: 2 });
        (0..3).for_each(|seed| assert!(rig.net.send(&frame(60, seed))));
        rig.net.driver.publish();
        assert_eq!(rig.dequeue().len(), 3);
        assert_eq!(calls(&mut call), wanted, "event {desc:#x}");
        while rig.net.driver.reap().is_some() {}
    }
    for (flags, wanted) in [(0, 1), (1, 0)] {
        rig.net.driver.set_driver_event(Event { desc: 0, flags });
        rig.net.send(&frame(60, 0));
        rig.net.driver.publish();
        assert_eq!((rig.dequeue().len(), calls(&mut call)), (1, wanted));
        rig.net.driver.reap();
    }
}

#[test]
fn drivers_are_told_not_to_kick() {
    for features in [PACKED, PACKED | VIRTIO_RING_F_EVENT_IDX] {
        assert_eq!(Rig::tx(features).net.driver.device_event().flags, 1);
    }
}

#[test]
fn a_restarted_ring_goes_on_where_it_stopped_at_every_position() {
    for size in [1_u16, 5, 64] {
        let mut rig = Rig::new(Direction::Dequeue, size, PACKED);
        for round in 0..effort::of(200_u8, 11) {
            assert!(rig.net.send(&frame(60, round)));
            rig.net.driver.publish();
            let base = rig.queue.stop().unwrap();
            let next = rig.net.driver.next_used().bits();
            assert_eq!(base, u32::from(next) << 16 | u32::from(next));
            assert_eq!((rig.queue.stop(), rig.dequeue().len()), (None, 0));
            let config = RingConfig {
                base,
                ..rig.net.driver.config(7)
            };
            rig.queue.start(config).unwrap();
            assert_eq!(rig.dequeue(), [frame(60, round)]);
            let status = rig.queue.snapshot().unwrap();
            rig.net.driver.reap().unwrap();
            assert_eq!(status.size, size);
            assert_eq!(status.avail, rig.net.driver.next_used().bits());
        }
    }
}

#[test]
fn a_ring_that_cannot_start_leaves_the_old_one_running() {
    let mut rig = Rig::new(Direction::Dequeue, 61, PACKED);
    let good = rig.net.driver.config(7);
    rig.net.send(&frame(60, 1));
    rig.net.driver.publish();
    let layout = RingError::Layout;
    let high = crate::memory::FrontendAddr(u64::MAX - 63);
    let odd = |addr: crate::memory::FrontendAddr| addr.checked_add(2).unwrap();
    let unmapped = |area, bytes| {
        layout(LayoutError::Unmapped {
            area,
            addr: high,
            bytes,
        })
    };
    let unaligned = |area, addr, align| layout(LayoutError::Unaligned { area, addr, align });
    let with = |change: &dyn Fn(&mut RingConfig)| {
        let mut config = good.clone();
        change(&mut config);
        config
    };
    let base = |base| RingError::Base { base, size: 61 };
    let (desc, driver, device) = (good.desc, good.driver, good.device);
    let rows = [
        (with(&|c| c.size = 0), layout(LayoutError::PackedSize(0))),
        (with(&|c| c.size = 32769), layout(LayoutError::PackedSize(32769))),
        (with(&|c| c.desc = high), unmapped("descriptor ring", 61 * 16)),
        (
            with(&|c| c.driver = high),
            unmapped("driver event suppression", 4),
        ),
        (
            with(&|c| c.device = high),
            unmapped("device event suppression", 4),
        ),
        (
            with(&|c| c.desc = odd(desc)),
            unaligned("descriptor ring", odd(desc), 16),
        ),
        (
            with(&|c| c.driver = odd(driver)),
            unaligned("driver event suppression", odd(driver), 4),
        ),
        (
            with(&|c| c.device = odd(device)),
            unaligned("device event suppression", odd(device), 4),
        ),
        (with(&|c| c.base = 61), base(61)),
        (with(&|c| c.base = 0x803d_8000), base(0x803d_8000)),
        (with(&|c| c.base = 0x7fff), base(0x7fff)),
    ];
    for (config, expected) in rows {
        assert_eq!(rig.queue.start(config), Err(expected));
    }
    assert_eq!(rig.dequeue(), [frame(60, 1)]);
}

#[test]
fn a_disabled_queue_moves_nothing_and_loses_nothing() {
    for direction in [Direction::Dequeue, Direction::Enqueue] {
        let mut rig = Rig::new(direction, 61, MERGED);
        match direction {
            Direction::Dequeue => assert!(rig.net.send(&frame(60, 1))),
            Direction::Enqueue => assert_eq!(rig.net.supply(1), 1),
        }
        rig.net.driver.publish();
        rig.queue.set_enabled(false);
        assert_eq!((rig.burst(), rig.net.driver.reap()), (0, None));
        rig.queue.set_enabled(true);
        assert_eq!((rig.burst(), rig.net.driver.reap().is_some()), (1, true));
    }
}

#[test]
fn retries_follow_progress_only() {
    let mut rig = Rig::rx(MERGED);
    let frames = [frame(60, 0), frame(60, 1)];
    let slots = frames.each_ref().map(|frame| TxSlot::new(frame));
    assert_eq!(rig.queue.enqueue(&slots, 8), Sent::default());
    rig.net.supply(1);
    rig.net.driver.publish();
    let sent = rig.queue.enqueue(&slots, 8);
    assert_eq!((sent.packets, sent.retries), (1, 1));
}

#[test]
#[cfg_attr(miri, ignore = "a driver that races with us, on purpose")]
fn rings_are_swapped_under_a_burst_without_losing_a_frame() {
    let net: Net<PackedDriver> = Net::new(251, 2048, PACKED);
    let (config, queue) = (
        net.driver.config(7),
        Queue::new(Direction::Dequeue, Arc::new(|_| {})),
    );
    queue.set_enabled(true);
    queue.start(config.clone()).unwrap();
    let total = 30_000_u32;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut net, mut next) = (net, 0_u32);
            while next < total {
                if net.send(&next.to_le_bytes().repeat(16)) {
                    next += 1;
                    net.driver.publish();
                } else if net.driver.reap().is_none() {
                    std::thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            // The base is stale more often than not, while the driver is at work: the ring tells.
            for round in 0_u32.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let base = queue.stop().filter(|_| round % 2 == 0);
                queue
                    .start(RingConfig {
                        base: base.unwrap_or(0x8000_8000),
                        ..config.clone()
                    })
                    .unwrap();
                std::thread::yield_now();
            }
        });
        let mut pool = Pool::new(BURST, 2048);
        let mut slots = pool.slots();
        let mut expected = 0_u32;
        while expected < total {
            let count = queue.dequeue(&mut slots);
            for slot in &slots[..count] {
                assert_eq!(slot.frame(), expected.to_le_bytes().repeat(16));
                expected += 1;
            }
            if count == 0 {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(queue.fault(), None);
}

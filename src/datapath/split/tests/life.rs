//! Notification, starting, stopping, resuming.

use super::*;

#[test]
fn one_call_after_attach_then_one_per_burst_that_the_driver_wants() {
    let mut rig = Rig::tx(V1);
    let (config, mut call) = with_call(rig.net.driver.config(7));
    rig.queue.start(config).unwrap();
    assert_eq!(calls(&mut call), 1);
    assert_eq!(rig.dequeue().len(), 0);
    assert_eq!(calls(&mut call), 0);
    (0..10).for_each(|seed| assert!(rig.net.send(&frame(60, seed))));
    rig.net.driver.publish();
    assert_eq!(rig.dequeue().len(), 10);
    assert_eq!(calls(&mut call), 1);
    rig.net.driver.set_avail_flags(1);
    rig.net.send(&frame(60, 0));
    rig.net.driver.publish();
    assert_eq!(rig.dequeue().len(), 1);
    assert_eq!(calls(&mut call), 0);
    assert_eq!(rig.stats().guest_notifications, 2);
}

#[test]
fn used_event_decides_when_event_idx_is_negotiated() {
    let mut rig = Rig::tx(V1 | VIRTIO_RING_F_EVENT_IDX);
    let (config, mut call) = with_call(rig.net.driver.config(7));
    rig.queue.start(config).unwrap();
    assert_eq!(calls(&mut call), 1);
    rig.net.driver.set_avail_flags(1);
    for (event, wanted) in [(0, 1), (0, 0), (3, 0), (3, 1)] {
        rig.net.driver.set_used_event(event);
        rig.net.send(&frame(60, 0));
        rig.net.driver.publish();
        assert_eq!(rig.dequeue().len(), 1);
        assert_eq!(calls(&mut call), wanted, "event {event}");
    }
}

#[test]
fn drivers_are_told_not_to_kick() {
    let rig = Rig::tx(V1);
    assert_eq!(rig.net.driver.used_flags(), 1);
    let rig = Rig::tx(V1 | VIRTIO_RING_F_EVENT_IDX);
    assert_eq!(rig.net.driver.used_flags(), 0);
    assert_eq!(rig.net.driver.avail_event(), 0xffff);
}

#[test]
fn a_call_nobody_reads_stops_nothing() {
    let mut rig = Rig::tx(V1);
    let (ours, theirs) = socket_pair();
    let config = RingConfig {
        call: Some(Arc::new(theirs.into())),
        ..rig.net.driver.config(7)
    };
    rig.queue.start(config).unwrap();
    for _ in 0..effort::of(100_000, 10) {
        rig.net.send(&frame(60, 0));
        rig.net.driver.publish();
        assert_eq!(rig.dequeue().len(), 1);
        rig.net.driver.reap().unwrap();
    }
    drop(ours);
}

// ---- starting, stopping ----

#[test]
fn a_restarted_ring_goes_on_where_it_stopped() {
    let mut rig = Rig::tx(V1);
    (0..10).for_each(|seed| assert!(rig.net.send(&frame(60, seed))));
    rig.net.driver.publish();
    let mut slots = rig.pool.slots();
    assert_eq!(rig.queue.dequeue(&mut slots[..3]), 3);
    assert_eq!(
        rig.queue
            .snapshot()
            .map(|status| (status.size, status.avail, status.used)),
        Some((64, 3, 3))
    );
    let base = rig.queue.stop();
    assert_eq!(base, Some(3));
    assert_eq!(
        (rig.queue.stop(), rig.queue.snapshot(), rig.dequeue().len()),
        (None, None, 0)
    );
    rig.queue
        .start(RingConfig {
            base: 3,
            ..rig.net.driver.config(7)
        })
        .unwrap();
    assert_eq!(rig.dequeue()[0], frame(60, 3));
    assert_eq!(rig.stats().good_packets, 10);
}

#[test]
fn after_a_crash_the_used_index_in_guest_memory_counts() {
    let mut rig = Rig::tx(V1);
    rig.queue.stop();
    rig.net.driver.set_used_idx(0xfffe);
    rig.net.send(&frame(60, 1));
    rig.net.driver.publish();
    let config = RingConfig {
        base: 0,
        ..rig.net.driver.config(7)
    };
    let found = Found::Elsewhere {
        base: 0,
        next: 0xfffe,
    };
    assert_eq!(rig.queue.start(config), Ok(vec![found]));
    assert_eq!(rig.dequeue(), [frame(60, 1)]);
    assert_eq!(rig.queue.stop(), Some(0xffff));
}

#[test]
fn a_disabled_queue_moves_nothing_and_loses_nothing() {
    for (direction, features) in [(Direction::Dequeue, V1), (Direction::Enqueue, MERGE)] {
        let mut rig = Rig::new(direction, SIZE, features);
        match direction {
            Direction::Dequeue => assert!(rig.net.send(&frame(60, 1))),
            Direction::Enqueue => assert_eq!(rig.net.supply(1), 1),
        }
        rig.net.driver.publish();
        rig.queue.set_enabled(false);
        assert_eq!((rig.burst(), rig.net.driver.used_idx()), (0, 0));
        rig.queue.set_enabled(true);
        assert_eq!((rig.burst(), rig.net.driver.used_idx()), (1, 1));
    }
}

#[test]
fn a_ring_that_cannot_start_leaves_the_old_one_running() {
    let mut rig = Rig::tx(V1);
    let good = rig.net.driver.config(7);
    rig.net.send(&frame(60, 1));
    rig.net.driver.publish();
    let layout = |error| Err(RingError::Layout(error));
    let high = crate::memory::FrontendAddr(u64::MAX - 63);
    let odd = good.desc.checked_add(8).unwrap();
    let (desc_bytes, used_bytes) = (64 * 16, 64 * 8 + 6);
    let rows = [
        (
            RingConfig {
                size: 0,
                ..good.clone()
            },
            layout(LayoutError::Size(0)),
        ),
        (
            RingConfig {
                size: 63,
                ..good.clone()
            },
            layout(LayoutError::Size(63)),
        ),
        (
            RingConfig {
                size: 0xffff,
                ..good.clone()
            },
            layout(LayoutError::Size(0xffff)),
        ),
        (
            RingConfig {
                desc: high,
                ..good.clone()
            },
            layout(LayoutError::Unmapped {
                area: "descriptor table",
                addr: high,
                bytes: desc_bytes,
            }),
        ),
        (
            RingConfig {
                device: high,
                ..good.clone()
            },
            layout(LayoutError::Unmapped {
                area: "used ring",
                addr: high,
                bytes: used_bytes,
            }),
        ),
        (
            RingConfig {
                desc: odd,
                ..good.clone()
            },
            layout(LayoutError::Unaligned {
                area: "descriptor table",
                addr: odd,
                align: 16,
            }),
        ),
        (
            RingConfig {
                base: 0x1_0000,
                ..good.clone()
            },
            Err(RingError::Base {
                base: 0x1_0000,
                size: 64,
            }),
        ),
    ];
    for (config, expected) in rows {
        assert_eq!(rig.queue.start(config), expected);
    }
    assert_eq!(rig.dequeue(), [frame(60, 1)]);
}

#[test]
fn a_ring_area_that_ends_with_its_region_starts_and_one_byte_more_does_not() {
    let memory = Arc::new(GuestMemory::new(0x4000));
    let config = |used| {
        let driver = Driver::new(memory.clone(), GuestAddr(0x1000), 16, V1);
        RingConfig {
            device: crate::memory::FrontendAddr(used),
            ..driver.config(7)
        }
    };
    let queue = Queue::new(Direction::Dequeue, Arc::new(|_| {}));
    let end = 0x1000 + 0x4000 + crate::model::FRONTEND_OFFSET;
    let fits = (end - (6 + 8 * 16)) & !3;
    assert_eq!(queue.start(config(fits)), Ok(vec![]));
    assert!(queue.start(config(fits + 4)).is_err());
}

#[test]
fn an_announcement_comes_first_alone_and_once() {
    let mut rig = Rig::tx(V1);
    rig.net.send(&frame(60, 1));
    rig.net.driver.publish();
    rig.queue.request_rarp([2, 0, 0, 0, 0, 1]);
    let first = rig.dequeue();
    assert_eq!(
        (first.len(), first[0].len(), &first[0][6..12]),
        (1, 64, &[2, 0, 0, 0, 0, 1][..])
    );
    assert_eq!(rig.dequeue(), [frame(60, 1)]);
    assert_eq!((rig.stats().good_packets, rig.stats().broadcast_packets), (2, 1));
}

#[test]
fn a_queue_only_works_in_its_own_direction() {
    let mut rig = Rig::tx(MERGE);
    rig.net.supply(4);
    rig.net.driver.publish();
    assert_eq!(rig.enqueue(&[frame(60, 1)]), Sent::default());
    assert_eq!(rig.net.driver.used_idx(), 0);
}

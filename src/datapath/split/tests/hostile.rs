//! What drivers get that break the rules.

use super::*;
use crate::model::crimes;

#[test]
fn an_avail_index_beyond_the_ring_breaks_only_that_queue() {
    for jump in [65, 0x8000, 0xffff] {
        let (mut bad, mut good) = (Rig::tx(V1), Rig::tx(V1));
        bad.net.driver.set_avail_idx(jump);
        good.net.send(&frame(60, 1));
        good.net.driver.publish();
        assert_eq!(bad.dequeue().len(), 0);
        let reason = FaultReason::AvailJump {
            avail: jump,
            next: 0,
            size: 64,
        };
        assert_eq!(bad.queue.fault(), Some(RingFault { vring: 7, reason }));
        assert_eq!(bad.wakes.load(Ordering::Relaxed), 1);
        assert_eq!(good.dequeue().len(), 1);
        // Nothing moves until the next start, whatever the driver does, and nobody is woken again.
        bad.net.driver.set_avail_idx(1);
        assert_eq!(bad.dequeue().len(), 0);
        assert_eq!(bad.wakes.load(Ordering::Relaxed), 1);
        assert_eq!(bad.queue.stop(), Some(0));
        assert_eq!(bad.queue.fault(), Some(RingFault { vring: 7, reason }));
        bad.net.send(&frame(60, 1));
        bad.queue.start(bad.net.driver.config(7)).unwrap();
        assert_eq!((bad.queue.fault(), bad.dequeue().len()), (None, 1));
    }
}

#[test]
fn an_avail_index_beyond_the_ring_cannot_start() {
    let rig = Rig::tx(V1);
    rig.queue.stop();
    rig.net.driver.set_avail_idx(65);
    let error = RingError::AvailJump {
        avail: 65,
        next: 0,
        size: 64,
    };
    assert_eq!(rig.queue.start(rig.net.driver.config(7)), Err(error));
}

#[test]
fn a_bad_chain_breaks_the_ring_after_the_good_ones_before_it() {
    for crime in crimes::SPLIT {
        for direction in [Direction::Dequeue, Direction::Enqueue] {
            let name = crime.name;
            let mut rig = Rig::new(direction, SIZE, MERGE | INDIRECT);
            let error = crime.commit(&mut rig.net, direction);
            let moved = match direction {
                Direction::Dequeue => rig.dequeue().len(),
                Direction::Enqueue => rig.enqueue(&[frame(60, 0), frame(60, 1), frame(60, 2)]).packets,
            };
            assert_eq!(rig.chain_error(), Some(error), "{name}, {direction:?}");
            assert_eq!(
                (moved, rig.net.driver.used_idx()),
                (1, 1),
                "{name}, {direction:?}"
            );
            assert_eq!(rig.wakes.load(Ordering::Relaxed), 1, "{name}");
            assert_eq!((rig.burst(), rig.stats().good_packets), (0, 1), "{name}");
            let fault = rig.queue.fault().unwrap();
            let reason = fault.reason.to_string();
            assert!(
                reason.starts_with("chain at head 1 (avail index 1): "),
                "{reason}"
            );
            assert_eq!(fault.vring, 7);
        }
    }
}

#[test]
fn a_head_beyond_the_ring_breaks_it() {
    for (direction, head) in [(Direction::Dequeue, 64), (Direction::Enqueue, 0xffff)] {
        let mut rig = Rig::new(direction, SIZE, MERGE);
        rig.net.driver.set_avail_entry(0, head);
        rig.net.driver.set_avail_idx(1);
        assert_eq!(rig.burst(), 0);
        assert_eq!(
            rig.chain_error(),
            Some(ChainError::OutOfTable {
                index: head,
                entries: 64
            })
        );
    }
}

#[test]
fn indirect_descriptors_must_be_negotiated() {
    for (direction, flags) in [(Direction::Dequeue, 0), (Direction::Enqueue, VIRTQ_DESC_F_WRITE)] {
        let mut rig = Rig::new(direction, SIZE, MERGE);
        let (table, flags) = (rig.net.buffer(5), flags | VIRTQ_DESC_F_INDIRECT);
        rig.net.driver.set_desc(1, desc(table.0, 16, flags, 0));
        rig.net.driver.set_avail_entry(0, 1);
        rig.net.driver.set_avail_idx(1);
        assert_eq!(rig.burst(), 0);
        assert_eq!(rig.chain_error(), Some(ChainError::IndirectNotNegotiated));
    }
}

#[test]
#[cfg_attr(miri, ignore = "no kernel to map what is not there")]
fn lengths_that_wrap_32_bits_break_the_ring() {
    // Memory of 4 GiB that nobody touches: a descriptor may be that long.
    let memory = Arc::new(GuestMemory::new(0x1_0000_2000));
    let mut driver = Driver::new(memory, GuestAddr(0x1000), 16, V1);
    let queue = Queue::new(Direction::Dequeue, Arc::new(|_| {}));
    queue.set_enabled(true);
    queue.start(driver.config(7)).unwrap();
    let long = read(GuestAddr(0x2000), 0xffff_ff00);
    driver.add(&[long, read(GuestAddr(0x2000), 0x100)]).unwrap();
    driver.publish();
    let mut pool = Pool::new(1, 2048);
    assert_eq!(queue.dequeue(&mut pool.slots()), 0);
    let reason = FaultReason::Chain {
        avail: 0,
        head: 0,
        error: ChainError::TooManyBytes,
    };
    assert_eq!(queue.fault(), Some(RingFault { vring: 7, reason }));
}

#[test]
fn a_buffer_that_runs_out_of_its_region_breaks_the_ring() {
    for direction in [Direction::Dequeue, Direction::Enqueue] {
        let (queue, mut driver) = neighbours(direction, MERGE);
        // 16 bytes before the end of the second region, and no neighbour behind it.
        let addr = GuestAddr(0x10_8000 - 16);
        driver
            .add(&[Buffer {
                addr,
                len: 4096,
                write: direction == Direction::Enqueue,
            }])
            .unwrap();
        driver.publish();
        let mut pool = Pool::new(1, 2048);
        assert_eq!(queue.dequeue(&mut pool.slots()), 0);
        assert_eq!(queue.enqueue(&[TxSlot::new(&[0; 60])], 0).packets, 0);
        let error = ChainError::Unmapped {
            addr: GuestAddr(0x10_8000),
            len: 4080,
        };
        let reason = FaultReason::Chain {
            avail: 0,
            head: 0,
            error,
        };
        assert_eq!(queue.fault(), Some(RingFault { vring: 7, reason }));
    }
}

#[test]
#[cfg_attr(miri, ignore = "a driver that races with us, on purpose")]
fn descriptors_that_change_under_the_walk_harm_nobody() {
    let features = MERGE | INDIRECT;
    for direction in [Direction::Dequeue, Direction::Enqueue] {
        let rig = Rig::new(direction, SIZE, features);
        let (queue, driver) = (&rig.queue, &rig.net.driver);
        let buffer = rig.net.buffer(0).0;
        let config = driver.config(7);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // A driver that writes any value, good and bad, into everything, as fast as it can.
            scope.spawn(|| {
                let mut seed = 1_u64;
                while !stop.load(Ordering::Relaxed) {
                    seed = seed
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    let [a, b, c, d, e, f, g, _] = (seed >> 3).to_le_bytes();
                    let addr = [buffer, buffer + 100, 0x1000, 0, u64::MAX][usize::from(a % 5)];
                    let len = [64, 1000, 16, 32, 0, u32::MAX][usize::from(b % 6)];
                    let flags = [0, 0, 1, 2, 2, 3, 4, 6][usize::from(c % 8)];
                    let next = [u16::from(d), u16::from(d % 64)][usize::from(e % 2)];
                    driver.set_desc(u16::from(f % 4), desc(addr, len, flags, next));
                    driver
                        .memory()
                        .write(GuestAddr(buffer), &desc(addr, len, flags, next).to_bytes());
                    driver.set_avail_entry(u16::from(g), u16::from(f % 8));
                    driver.set_avail_idx(driver.used_idx().wrapping_add(u16::from(g % 70)));
                }
            });
            let mut pool = Pool::new(BURST, 2048);
            let mut slots: Vec<RxSlot<'_>> = pool.slots();
            let frames = [[0xaa_u8; 1500]; 8];
            let tx = frames.each_ref().map(|frame| TxSlot::new(frame));
            let (mut moved, mut faults) = (0, 0);
            // Enough to have met most lies, however the two threads are scheduled.
            for _ in 0..300_000 {
                let burst = queue.dequeue(&mut slots) + queue.enqueue(&tx, 2).packets;
                assert!(slots.iter().all(|slot| slot.len() <= 2048));
                moved += burst;
                if queue.fault().is_some() {
                    faults += 1;
                    // May be refused: the driver still writes.
                    let _ = queue.start(config.clone());
                } else if burst == 0 {
                    std::thread::yield_now();
                }
                if faults >= 200 && moved >= 200 {
                    break;
                }
            }
            stop.store(true, Ordering::Relaxed);
            assert_eq!(
                queue.counters().read().good_packets,
                u64::try_from(moved).unwrap()
            );
            assert!(faults > 0, "{moved} moved");
        });
    }
}

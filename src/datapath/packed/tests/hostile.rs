//! What drivers get that break the rules.

use super::*;
use crate::model::crimes;

const SIZE: u16 = 61;

#[test]
fn a_bad_chain_breaks_the_ring_after_the_good_ones_before_it() {
    for crime in crimes::PACKED {
        for direction in [Direction::Dequeue, Direction::Enqueue] {
            let name = crime.name;
            let mut rig = Rig::new(direction, SIZE, MERGED | TABLES);
            let error = crime.commit(&mut rig.net, direction);
            let moved = match direction {
                Direction::Dequeue => rig.dequeue().len(),
                Direction::Enqueue => rig.enqueue(&[frame(60, 0), frame(60, 1), frame(60, 2)]).packets,
            };
            assert_eq!(rig.chain_error(), Some(error), "{name}, {direction:?}");
            assert_eq!(moved, crime.good, "{name}, {direction:?}");
            let used = rig.net.driver.desc(0).flags & VIRTQ_DESC_F_USED != 0;
            assert_eq!(used, crime.good == 1, "{name}, {direction:?}");
            assert_eq!(rig.wakes.load(Ordering::Relaxed), 1, "{name}");
            assert_eq!(rig.burst(), 0, "{name}");
        }
    }
}

fn set(rig: &Rig, index: u16, addr: u64, len: u32, flags: u16) {
    let desc = PackedDesc {
        addr,
        len,
        id: index,
        flags,
    };
    rig.net.driver.set_desc(index, desc);
}

#[test]
fn a_fault_names_the_descriptor() {
    let mut rig = Rig::tx(PACKED);
    set(&rig, 0, 0, 100, VIRTQ_DESC_F_AVAIL);
    assert_eq!(rig.dequeue().len(), 0);
    let fault = rig.queue.fault().unwrap();
    let reason = FaultReason::Chain {
        avail: 0x8000,
        head: 0,
        error: ChainError::Unmapped {
            addr: GuestAddr(0),
            len: 100,
        },
    };
    assert_eq!(fault, RingFault { vring: 7, reason });
}

#[test]
fn indirect_descriptors_must_be_negotiated() {
    let mut rig = Rig::tx(PACKED);
    set(&rig, 0, 0x1000, 16, VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_INDIRECT);
    assert_eq!(rig.dequeue().len(), 0);
    assert_eq!(rig.chain_error(), Some(ChainError::IndirectNotNegotiated));
}

#[test]
#[cfg_attr(miri, ignore = "a driver that races with us, on purpose")]
fn a_driver_that_never_lets_descriptors_go_costs_one_ring_per_burst() {
    // Each descriptor looks available in either lap as soon as the burst has passed it: a thread flips them all.
    let rig = Rig::with_room(Direction::Enqueue, 3, 64, MERGED);
    let (queue, driver) = (&rig.queue, &rig.net.driver);
    let buffer = rig.net.buffer(0).0;
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut turn = [VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED].into_iter().cycle();
            while !stop.load(Ordering::Relaxed) {
                let flags = turn.next().unwrap_or(0) | VIRTQ_DESC_F_WRITE;
                (0..3).for_each(|index| set(&rig, index, buffer, 20, flags));
            }
        });
        let jumbo = vec![0xaa; 60_000];
        let small = [0xaa; 60];
        for _ in 0..20_000 {
            queue.enqueue(&[TxSlot::new(&jumbo), TxSlot::new(&small)], 0);
            queue.enqueue(&[TxSlot::new(&small)], 0);
            if queue.fault().is_some() {
                queue.start(driver.config(7)).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
#[cfg_attr(miri, ignore = "a driver that races with us, on purpose")]
fn descriptors_that_change_under_the_walk_harm_nobody() {
    for direction in [Direction::Dequeue, Direction::Enqueue] {
        let rig = Rig::new(direction, 61, MERGED | TABLES);
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
                    let flags = [0, 0, 0, 1, 2, 2, 2, 3, 4, 6][usize::from(c % 10)];
                    let turn = [VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED][usize::from(d % 2)];
                    let desc = PackedDesc {
                        addr,
                        len,
                        id: u16::from(e),
                        flags: flags | turn,
                    };
                    driver.set_desc(u16::from(f % 61), desc);
                    driver.memory().write(GuestAddr(buffer), &desc.to_bytes());
                    driver.set_driver_event(Event {
                        desc: u16::from_le_bytes([a, g]),
                        flags: u16::from(g),
                    });
                }
            });
            let mut pool = Pool::new(BURST, 2048);
            let mut slots: Vec<RxSlot<'_>> = pool.slots();
            let frames = [[0xaa_u8; 1500]; 8];
            let tx = frames.each_ref().map(|frame| TxSlot::new(frame));
            let (mut moved, mut faults) = (0, 0);
            // Enough to have met most lies, however the two threads are scheduled.
            for round in 0..300_000_u32 {
                let burst = queue.dequeue(&mut slots) + queue.enqueue(&tx, 2).packets;
                assert!(slots.iter().all(|slot| slot.len() <= 2048));
                moved += burst;
                if queue.fault().is_some() {
                    faults += 1;
                    let base = 0x8000_8000 ^ (round % 61);
                    queue
                        .start(RingConfig {
                            base,
                            ..config.clone()
                        })
                        .unwrap();
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

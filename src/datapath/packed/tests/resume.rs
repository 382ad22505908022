//! A back-end that comes after one that died: where it goes on, and what that costs.

use super::*;

/// Bases that say nothing: what QEMU keeps from the start of a ring, what virtio-user always says, and nonsense.
const STALE: [u32; 5] = [0x8000_8000, 0x8000, 0, 0x0003_0003, 0x8002_8001];

/// Those that say nothing even by accident.
const FRESH: [u32; 3] = [0x8000_8000, 0x8000, 0];

/// Starts the ring anew with a base that is not where it stands.
fn restart(rig: &Rig, base: u32) -> Vec<Found> {
    rig.queue.stop();
    let config = RingConfig {
        base,
        ..rig.net.driver.config(7)
    };
    rig.queue.start(config).unwrap()
}

fn number(frame: &[u8]) -> u32 {
    u32::from_le_bytes(frame[..4].try_into().unwrap())
}

fn numbered(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(16)
}

/// What a random driver and device do in one step.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        usize::try_from(self.0 >> 40).unwrap() % sides
    }
}

/// Sends a frame as a chain of one to three descriptors, or indirect.
fn send(rig: &mut Rig, dice: &mut Dice, frame: &[u8]) -> bool {
    let Some(id) = rig.net.driver.next_id() else {
        return false;
    };
    let data = rig.net.buffer(id);
    rig.net.driver.memory().write(at(data, 12), frame);
    let len = 12 + u32::try_from(frame.len()).unwrap();
    let added = match dice.roll(4) {
        0 => rig.net.driver.add(&cut(data, &[12], len, false)),
        1 => rig.net.driver.add(&cut(data, &[5, 7], len, false)),
        2 => {
            let buffers = cut(data, &[12], len, false);
            rig.net.driver.add_indirect(at(data, 1024), &buffers)
        }
        _ => rig.net.driver.add(&cut(data, &[], len, false)),
    };
    added.is_some()
}

#[test]
fn a_ring_that_nobody_used_begins_at_its_start_whatever_the_base() {
    for base in STALE {
        for filled in [0, 1, 60, 61] {
            let mut rig = Rig::new(Direction::Enqueue, 61, MERGED);
            assert_eq!(rig.net.supply(filled), filled);
            rig.net.driver.publish();
            restart(&rig, base);
            assert_eq!(rig.queue.stop(), Some(0x8000_8000), "{base:#x}, {filled} filled");
        }
    }
}

#[test]
fn a_restart_between_bursts_loses_and_repeats_nothing_from_the_guest() {
    for (size, base) in [3, 7, 61, 64].into_iter().flat_map(|s| FRESH.map(|b| (s, b))) {
        let mut rig = Rig::new(Direction::Dequeue, size, TABLES);
        let (mut dice, mut sent, mut expected) = (Dice(size.into()), 0, 0);
        for _ in 0..effort::of(400, 8) {
            for _ in 0..dice.roll(usize::from(size) + 2) {
                if send(&mut rig, &mut dice, &numbered(sent)) {
                    sent += 1;
                }
            }
            rig.net.driver.publish();
            if dice.roll(3) == 0 {
                restart(&rig, base);
            }
            for frame in rig.dequeue() {
                assert_eq!(number(&frame), expected, "size {size}, base {base:#x}");
                expected += 1;
            }
            for _ in 0..dice.roll(usize::from(size) + 2) {
                rig.net.driver.reap();
            }
        }
        assert!(expected > effort::of(300, 0), "size {size}: {expected}");
        assert_eq!(rig.queue.fault(), None);
    }
}

#[test]
fn a_restart_between_bursts_loses_and_repeats_nothing_to_the_guest() {
    for (size, base) in [3, 7, 61, 64].into_iter().flat_map(|s| FRESH.map(|b| (s, b))) {
        let mut rig = Rig::with_room(Direction::Enqueue, size, 64, MERGED);
        let (mut dice, mut sent, mut expected) = (Dice(size.into()), 0, 0);
        for _ in 0..effort::of(400, 8) {
            rig.net.supply(dice.roll(usize::from(size) + 2));
            rig.net.driver.publish();
            if dice.roll(3) == 0 {
                restart(&rig, base);
            }
            let frames: Vec<_> = (0..5_u32).map(|more| numbered(sent + more)).collect();
            sent += u32::try_from(rig.enqueue(&frames).packets).unwrap();
            for _ in 0..dice.roll(6) {
                let Some(frame) = rig.net.receive() else { break };
                assert_eq!(number(&frame), expected, "size {size}, base {base:#x}");
                expected += 1;
            }
        }
        assert!(expected > effort::of(100, 0), "size {size}: {expected}");
        assert_eq!(rig.queue.fault(), None);
    }
}

/// Undoes the last part of what a burst wrote into the ring: what a process leaves behind that died while it published.
/// The first used descriptor is written last, so it is undone first; `more` others behind it as well.
fn unpublish(rig: &Rig, before: &[PackedDesc], first: u16, keep: impl Fn(u16) -> bool) {
    let size = u16::try_from(before.len()).unwrap();
    for offset in 0..size {
        let index = (first + offset) % size;
        if offset == 0 || !keep(offset) {
            rig.net.driver.set_desc(index, before[usize::from(index)]);
        }
    }
}

fn ring(rig: &Rig, size: u16) -> Vec<PackedDesc> {
    (0..size).map(|index| rig.net.driver.desc(index)).collect()
}

#[test]
fn a_burst_half_published_from_the_guest_is_lost_or_repeated_as_a_whole_frame_each() {
    for size in [7_u16, 61] {
        for start in 0..size {
            for kept in 0..5_u16 {
                let mut rig = Rig::new(Direction::Dequeue, size, PACKED);
                // Move the ring to `start`.
                for _ in 0..start {
                    rig.net.send(&numbered(999));
                    rig.net.driver.publish();
                    rig.dequeue();
                    rig.net.driver.reap();
                }
                (0..5).for_each(|seed| assert!(rig.net.send(&numbered(seed))));
                rig.net.driver.publish();
                let before = ring(&rig, size);
                assert_eq!(rig.dequeue().len(), 5);
                rig.queue.stop();
                // It had written the used descriptors of the second to the `kept`-th frame, in order.
                unpublish(&rig, &before, start, |offset| offset <= kept || offset >= 5);
                assert_eq!(rig.net.driver.reap(), None, "the driver sees nothing of it");
                restart(&rig, 0x8000_8000);
                // Those after them come again, and only those; unless nothing was written, when all do.
                let again: Vec<_> = rig.dequeue().iter().map(|frame| number(frame)).collect();
                let from = if kept == 0 { 0 } else { u32::from(kept) + 1 };
                assert_eq!(again, (from..5).collect::<Vec<_>>(), "{size} {start} {kept}");
                // The driver gets back all five, and the ring goes on.
                assert_eq!(std::iter::from_fn(|| rig.net.driver.reap()).count(), 5);
                assert!(rig.net.send(&numbered(5)));
                rig.net.driver.publish();
                assert_eq!(rig.dequeue(), [numbered(5)]);
            }
        }
    }
}

#[test]
fn a_burst_half_published_to_the_guest_arrives() {
    for kept in 0..5_u16 {
        let mut rig = Rig::with_room(Direction::Enqueue, 7, 100, MERGED);
        rig.net.supply(7);
        rig.net.driver.publish();
        let before = ring(&rig, 7);
        let sent: Vec<_> = (0..5).map(numbered).collect();
        assert_eq!(rig.enqueue(&sent).packets, 5);
        rig.queue.stop();
        unpublish(&rig, &before, 0, |offset| offset <= kept || offset >= 5);
        restart(&rig, 0x8000);
        let arrived: Vec<_> = rig.received();
        let expected = if kept == 0 { 0 } else { usize::from(kept) + 1 };
        assert_eq!(arrived.len(), expected, "{kept}");
        for (frame, sent) in arrived.iter().zip(&sent) {
            // The length of the first is that of its buffer: the true one was never written.
            assert!(frame.starts_with(sent), "{kept}");
        }
        // Buffers not given back are still there.
        assert_eq!(rig.queue.backlog(), u32::try_from(7 - expected).unwrap());
        assert_eq!(rig.enqueue(&[numbered(9)]).packets, 1);
        assert_eq!(rig.received(), [numbered(9)]);
    }
}

#[test]
fn chains_half_published_are_given_back_whole() {
    for kept in 0..9_u16 {
        let mut rig = Rig::new(Direction::Dequeue, 11, PACKED);
        let data = rig.net.buffer(0);
        for _ in 0..3 {
            rig.net.driver.add(&cut(data, &[12, 20], 100, false)).unwrap();
        }
        rig.net.driver.publish();
        let before = ring(&rig, 11);
        assert_eq!(rig.dequeue().len(), 3);
        rig.queue.stop();
        // In the order of writing: each chain from its end; the first chain last.
        let order = [5, 4, 3, 8, 7, 6, 2, 1, 0];
        let written = &order[..usize::from(kept)];
        unpublish(&rig, &before, 0, |offset| written.contains(&offset) || offset > 8);
        restart(&rig, 0);
        let again = rig.dequeue().len();
        // Three in all come back, in one piece each; what was not given back comes again.
        assert_eq!(std::iter::from_fn(|| rig.net.driver.reap()).count(), 3, "{kept}");
        assert!(again <= 3, "{kept}: {again}");
        assert!(rig.net.send(&numbered(5)));
        rig.net.driver.publish();
        assert_eq!(rig.dequeue(), [numbered(5)], "{kept}");
        assert_eq!(rig.queue.fault(), None);
    }
}

#[test]
fn a_base_behind_chains_that_another_back_end_did_not_mark_is_believed() {
    for descs in 2..5_u32 {
        let mut rig = Rig::new(Direction::Dequeue, 7, PACKED);
        let data = rig.net.buffer(0);
        let cuts = vec![10; usize::try_from(descs).unwrap() - 1];
        for round in 0..30 {
            rig.net.driver.add(&cut(data, &cuts, 100, false)).unwrap();
            rig.net.driver.publish();
            let (first, before) = (rig.net.driver.next_used(), ring(&rig, 7));
            assert_eq!(rig.dequeue().len(), 1);
            rig.net.driver.reap().unwrap();
            let base = u32::from(rig.net.driver.next_used().bits());
            if base & 0x7fff == 0 {
                continue;
            }
            // As the driver left them, still looking available.
            for behind in 1..u16::try_from(descs).unwrap() {
                let index = first.advance(behind, 7).index;
                rig.net.driver.set_desc(index, before[usize::from(index)]);
            }
            let next = round % 2 == 0;
            if next {
                assert!(rig.net.send(&numbered(round)));
                rig.net.driver.publish();
            }
            restart(&rig, base);
            let expected = if next { vec![numbered(round)] } else { vec![] };
            assert_eq!(rig.dequeue(), expected, "{descs} descriptors, round {round}");
            while rig.net.driver.reap().is_some() {}
            assert_eq!(rig.net.driver.next_avail(), rig.net.driver.next_used());
        }
    }
}

/// A front-end serves the ring while its back-end is gone: it drops what is available from `from` on, as QEMU does, and
/// marks only the first descriptor of each chain. Returns the base it names then.
fn drop_available(rig: &Rig, size: u16, from: Position) -> u32 {
    let mut at = from;
    loop {
        let desc = rig.net.driver.desc(at.index);
        if !at.is_available(desc.flags) {
            return u32::from(at.bits()) << 16 | u32::from(at.bits());
        }
        let wrap = if at.wrap {
            VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED
        } else {
            0
        };
        let used = PackedDesc {
            flags: wrap,
            len: 0,
            ..desc
        };
        rig.net.driver.set_desc(at.index, used);
        at = at.advance(1, size);
    }
}

/// A ring of `size` that was stopped after it moved so many frames, one at a time.
fn stopped_after(size: u16, frames: u16) -> Rig {
    let mut rig = Rig::new(Direction::Dequeue, size, PACKED);
    for number in 0..frames {
        assert!(rig.net.send(&numbered(number.into())));
        rig.net.driver.publish();
        assert_eq!(rig.dequeue().len(), 1);
        rig.net.driver.reap().unwrap();
    }
    rig.queue.stop();
    rig
}

#[test]
fn frames_that_a_front_end_passed_over_are_given_back() {
    const SIZE: u16 = 16;
    // Where the ring stood, and how many frames waited: across the end of the ring, where the front-end thinks itself.
    for stood in 8..SIZE {
        for waiting in SIZE - stood + 1..SIZE {
            // The first lap has wrap counter 1, and so has the third: there the start position looks like news.
            let mut rig = stopped_after(SIZE, SIZE + stood);
            (0..waiting).for_each(|seed| assert!(rig.net.send(&numbered(u32::from(seed)))));
            rig.net.driver.publish();
            let base = drop_available(&rig, SIZE, Position::START);
            assert_eq!(rig.net.driver.reap(), None, "the driver waits for the first");
            let found = restart(&rig, base);
            assert!(matches!(found[..], [Found::PassedOver(_)]), "{found:?}");
            assert_eq!(rig.dequeue(), Vec::<Vec<u8>>::new(), "all are lost");
            let given_back = std::iter::from_fn(|| rig.net.driver.reap()).count();
            assert_eq!(given_back, usize::from(waiting), "{stood} {waiting}");
            assert!(rig.net.send(&numbered(7)));
            rig.net.driver.publish();
            assert_eq!(rig.dequeue(), [numbered(7)], "{stood} {waiting}");
        }
    }
}

/// It looks like the rest of a used chain, which is where its driver writes next; but here the driver waits for it.
#[test]
fn the_oldest_frame_of_a_full_ring_is_given_back_if_a_front_end_passed_over_it_alone() {
    const SIZE: u16 = 16;
    for stood in 0..2 * SIZE {
        let mut rig = stopped_after(SIZE, stood);
        (0..SIZE).for_each(|seed| assert!(rig.net.send(&numbered(seed.into()))));
        rig.net.driver.publish();
        let base = drop_available(&rig, SIZE, rig.net.driver.next_used().advance(1, SIZE));
        assert_eq!(rig.net.driver.reap(), None, "the driver waits for the first");
        restart(&rig, base);
        let given_back = std::iter::from_fn(|| rig.net.driver.reap()).count();
        assert_eq!(given_back, usize::from(SIZE), "{stood}");
        assert!(rig.net.send(&numbered(7)));
        rig.net.driver.publish();
        assert_eq!(rig.dequeue(), [numbered(7)], "{stood}");
    }
}

#[test]
fn a_driver_that_adds_while_the_ring_is_looked_at_misleads_nobody() {
    const SIZE: u16 = effort::of(8, 3);
    for stood in 0..SIZE {
        for lap in 0..2 {
            for (hidden, added) in [(1, 3), (1, 7), (2, 5)] {
                // We read upwards; only the first of a chain that goes across the end can be older than what is below it.
                if hidden > 1 && stood + added > SIZE {
                    continue;
                }
                let mut rig = stopped_after(SIZE, SIZE * lap + stood);
                let before = ring(&rig, SIZE);
                (0..added).for_each(|seed| assert!(rig.net.send(&numbered(seed.into()))));
                rig.net.driver.publish();
                let after = ring(&rig, SIZE);
                // The first ones were read before they were added, the others after.
                for behind in 0..hidden {
                    let index = (stood + behind) % SIZE;
                    rig.net.driver.set_desc(index, before[usize::from(index)]);
                }
                restart(&rig, 0x8000_8000);
                for behind in 0..hidden {
                    let index = (stood + behind) % SIZE;
                    rig.net.driver.set_desc(index, after[usize::from(index)]);
                }
                let frames: Vec<_> = rig.dequeue().iter().map(|frame| number(frame)).collect();
                assert_eq!(
                    frames,
                    (0..added.into()).collect::<Vec<u32>>(),
                    "{stood} {lap} {hidden} {added}"
                );
                assert_eq!(
                    std::iter::from_fn(|| rig.net.driver.reap()).count(),
                    usize::from(added)
                );
            }
        }
    }
}

#[test]
fn a_driver_that_fills_the_whole_ring_and_publishes_it_by_its_first_descriptor_is_waited_for() {
    const SIZE: u16 = effort::of(8, 3);
    for (stood, shown) in (0..SIZE).flat_map(|stood| (0..SIZE).map(move |shown| (stood, shown))) {
        for lap in 0..3 {
            let mut rig = Rig::new(Direction::Dequeue, SIZE, PACKED);
            for number in 0..u32::from(SIZE * lap + stood) {
                assert!(rig.net.send(&numbered(number)));
                rig.net.driver.publish();
                assert_eq!(rig.dequeue().len(), 1);
                rig.net.driver.reap().unwrap();
            }
            (0..shown).for_each(|seed| assert!(rig.net.send(&numbered(seed.into()))));
            rig.net.driver.publish();
            (shown..SIZE).for_each(|seed| assert!(rig.net.send(&numbered(seed.into()))));
            // The ring is stopped and started in order, while its driver is at it.
            let base = rig.queue.stop().unwrap();
            restart(&rig, base);
            rig.net.driver.publish();
            let frames: Vec<_> = rig.dequeue().iter().map(|frame| number(frame)).collect();
            assert_eq!(
                frames,
                (0..SIZE.into()).collect::<Vec<u32>>(),
                "{stood} {lap} {shown}"
            );
            let given_back = std::iter::from_fn(|| rig.net.driver.reap()).count();
            assert_eq!(given_back, usize::from(SIZE), "{stood} {lap} {shown}");
        }
    }
}

#[test]
fn positions_and_bases_have_the_same_bits() {
    let at = Position {
        index: 3,
        wrap: false,
    };
    assert_eq!((at.bits(), Position::from_bits(3, 4)), (3, Some(at)));
}

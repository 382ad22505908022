//! What each test does, whatever the layout.

use super::behind::{
    buffer, physical, range, Behind, BUFFERS, BUFFER_PAGES, HEADER, PAGE, RING, RING_PAGES, STRIDE,
};
use crate::datapath::testing::frame;
use crate::datapath::{Direction, Unsent};
use crate::effort;
use crate::memory::{Access, FrontendAddr, GuestAddr, Miss, Translation};
use crate::model::{Buffer, Virtqueue, FRONTEND_OFFSET};
use crate::virtio::features::{Features, VIRTIO_RING_F_INDIRECT_DESC};

pub(super) fn a_transmit_ring_waits_at_a_miss_and_loses_nothing<D: Virtqueue>() {
    let mut behind = Behind::<D>::new(Direction::Dequeue, Features::NONE);
    // Slot 1 lies on two pages, so three frames lie on three or four.
    let frames: Vec<_> = (0..3).map(|seed| frame(1400, seed * 2)).collect();
    assert!(frames.iter().all(|frame| behind.send(frame)));
    for _ in 0..3 {
        assert!(behind.dequeue().is_empty());
    }
    assert_eq!(
        (behind.wakes(), behind.queue.fault()),
        (1, None),
        "one miss is reported once"
    );
    let misses = behind.misses();
    assert!(misses.iter().all(|miss| miss.access == Access::Read));
    let pages = Behind::<D>::pages(&misses);
    assert!(pages.len() >= 2 && pages.contains(&BUFFERS), "{pages:x?}");
    // The last ones first: what is behind the miss does not overtake it.
    for page in (1..BUFFER_PAGES).rev() {
        assert_eq!(behind.tell(BUFFERS + page * PAGE, Access::Read), None);
        assert!(behind.dequeue().is_empty());
    }
    assert!(
        behind.wakes() >= 1,
        "the same miss under a new table is reported again"
    );
    assert_eq!(behind.tell(BUFFERS, Access::Read), None);
    assert_eq!(behind.dequeue(), frames);
    assert!(behind.misses().is_empty());
}

pub(super) fn a_receive_ring_waits_at_a_miss_and_writes_nothing<D: Virtqueue>() {
    let mut behind = Behind::<D>::new(Direction::Enqueue, Features::NONE);
    behind.supply();
    let frames: Vec<_> = (0..4).map(|seed| frame(1400, seed * 2)).collect();
    assert_eq!(behind.enqueue(&frames), 0);
    let missing = behind.queue.counters().read().unsent(Unsent::Missing);
    assert_eq!(missing, frames.len() as u64);
    assert_eq!(behind.queue.fault(), None);
    assert!(behind.misses().iter().all(|miss| miss.access == Access::Write));
    assert!(behind.received().is_empty());
    behind.tell_all(Access::Write);
    assert_eq!(behind.enqueue(&frames), 4);
    assert_eq!(behind.received(), frames);
}

pub(super) fn an_access_after_an_invalidate_is_refused<D: Virtqueue>() {
    let mut behind = Behind::<D>::new(Direction::Enqueue, Features::NONE);
    behind.tell_all(Access::ReadWrite);
    behind.supply();
    let (one, two) = (frame(100, 2), frame(100, 4));
    assert_eq!(behind.enqueue(std::slice::from_ref(&one)), 1);
    // The driver gives the buffers' order: the next is the second it supplied.
    assert_eq!(behind.received(), [one]);
    assert_eq!(behind.take_back(BUFFERS, BUFFER_PAGES * PAGE), None);
    let before = behind.peek(BUFFERS, usize::try_from(16 * STRIDE).unwrap());
    assert_eq!(behind.enqueue(std::slice::from_ref(&two)), 0);
    assert_eq!(
        behind.peek(BUFFERS, before.len()),
        before,
        "not a byte was written"
    );
    behind.tell_all(Access::ReadWrite);
    assert_eq!(behind.enqueue(std::slice::from_ref(&two)), 1);
    assert_eq!(behind.received(), [two]);

    let mut behind = Behind::<D>::new(Direction::Dequeue, Features::NONE);
    behind.tell_all(Access::Read);
    let frames = [frame(1400, 2), frame(1400, 4)];
    assert!(frames.iter().all(|frame| behind.send(frame)));
    // The tail of the second frame.
    assert_eq!(behind.take_back(buffer(1) + 1000, 1), None);
    assert_eq!(behind.dequeue(), frames[..1]);
    assert!(behind.dequeue().is_empty());
    assert_eq!(behind.tell(buffer(1) + 1000, Access::Read), None);
    assert_eq!(behind.dequeue(), frames[1..]);
}

pub(super) fn a_buffer_is_used_only_as_its_page_tables_allow<D: Virtqueue>() {
    let rows = [
        (Direction::Dequeue, Access::Write, Access::Read),
        (Direction::Enqueue, Access::Read, Access::Write),
    ];
    for (direction, told, wanted) in rows {
        let mut behind = Behind::<D>::new(direction, Features::NONE);
        behind.tell_all(told);
        let sent = frame(200, 0);
        match direction {
            Direction::Dequeue => assert!(behind.send(&sent)),
            Direction::Enqueue => behind.supply(),
        }
        assert_eq!(
            behind.dequeue().len() + behind.enqueue(std::slice::from_ref(&sent)),
            0
        );
        assert!(behind.misses().iter().all(|miss| miss.access == wanted));
        assert!(!behind.misses().is_empty());
        assert_eq!((behind.queue.fault(), behind.wakes()), (None, 1));
        behind.tell_all(Access::ReadWrite);
        assert_eq!(behind.dequeue().len() + behind.enqueue(&[sent]), 1);
    }
}

pub(super) fn an_indirect_table_is_a_miss_of_its_own_and_only_read<D: Virtqueue>() {
    let mut behind = Behind::<D>::new(Direction::Enqueue, VIRTIO_RING_F_INDIRECT_DESC);
    // The driver writes the table where it is told: at its guest-physical address, then under its other name.
    let (table, one, two) = (BUFFERS + 20 * PAGE, BUFFERS, BUFFERS + 2 * PAGE);
    let buffers = [(one, 500), (two, 1500)].map(|(addr, len)| Buffer {
        addr: GuestAddr(addr),
        len,
        write: true,
    });
    let name = Translation {
        iova: range(physical(table).0, PAGE),
        target: FrontendAddr(FRONTEND_OFFSET + physical(table).0),
        access: Access::Read,
    };
    assert!(behind.driver.add_indirect(physical(table), &buffers).is_some());
    behind.driver.publish();
    let sent = frame(1000, 0);
    let expect = |behind: &Behind<D>, iova, access| {
        assert_eq!(behind.enqueue(std::slice::from_ref(&sent)), 0);
        let first = behind.misses().first().copied();
        let iova = GuestAddr(iova);
        assert_eq!(first, Some(Miss { iova, access }));
    };
    expect(&behind, physical(table).0, Access::Read);
    behind.iotlb.update(name, &[]);
    assert_eq!(behind.queue.replace_mem(&behind.view()), None);
    expect(&behind, one, Access::Write);
    assert_eq!(
        behind.misses().len(),
        2,
        "the second buffer is seen behind the first"
    );
    assert_eq!(behind.tell(one, Access::Write), None);
    expect(&behind, two, Access::Write);
    assert_eq!(behind.tell(two, Access::Write), None);
    assert_eq!(behind.enqueue(std::slice::from_ref(&sent)), 1);
    let parts = [behind.peek(one, 500), behind.peek(two, 512)].concat();
    assert_eq!(parts[HEADER..], sent);
}

pub(super) fn a_ring_whose_own_memory_is_taken_back_stops_at_once_and_goes_on_where_it_stood<D: Virtqueue>() {
    let mut behind = Behind::<D>::new(Direction::Dequeue, Features::NONE);
    behind.tell_all(Access::ReadWrite);
    assert!(behind.send(&frame(60, 0)) && behind.send(&frame(60, 2)));
    assert_eq!(behind.dequeue().len(), 2);
    assert!(behind.send(&frame(60, 4)));
    let base = behind.take_back(RING, 1).expect("stopped");
    assert!(behind.dequeue().is_empty() && behind.queue.snapshot().is_none());
    let error = behind
        .queue
        .start(behind.config(Some(base)))
        .expect_err("not told yet");
    assert!(error.is_unmapped(), "{error}");
    behind.tell_ring();
    behind.queue.start(behind.config(Some(base))).unwrap();
    assert_eq!(behind.dequeue(), [frame(60, 4)]);
    // The same addresses told again change nothing; elsewhere, they do.
    behind.tell_ring();
    assert_eq!(behind.queue.replace_mem(&behind.view()), None);
    let elsewhere = Translation {
        iova: range(RING, PAGE),
        target: FrontendAddr(FRONTEND_OFFSET + 2 * PAGE),
        access: Access::ReadWrite,
    };
    behind.iotlb.update(elsewhere, &[]);
    assert!(behind.queue.replace_mem(&behind.view()).is_some());
    // The used ring or the device's descriptors cannot be only read.
    behind.tell_ring();
    let read_only = Translation {
        iova: range(RING, RING_PAGES * PAGE),
        target: FrontendAddr(FRONTEND_OFFSET + PAGE),
        access: Access::Read,
    };
    behind.iotlb.update(read_only, &[]);
    assert!(behind
        .queue
        .start(behind.config(None))
        .expect_err("no leave")
        .is_unmapped());
}

pub(super) fn what_is_due_soon_is_missed_before_a_frame_is_lost<D: Virtqueue>() {
    let mut behind = Behind::<D>::new(Direction::Enqueue, Features::NONE);
    behind.supply();
    for page in 0..4 {
        behind.tell(BUFFERS + page * PAGE, Access::Write);
    }
    assert_eq!(behind.wakes(), 0);
    // The buffer of this frame is known. That of one a burst later is not.
    assert_eq!(behind.enqueue(&[frame(60, 0)]), 1);
    assert_eq!(behind.wakes(), 1);
    assert!(behind.queue.has_missed() && behind.misses().len() >= 10);
    behind.tell_all(Access::Write);
    assert!(!behind.queue.has_missed());
    assert_eq!(behind.enqueue(&[frame(60, 0)]), 1);
    assert_eq!(behind.wakes(), 0);
}

pub(super) fn a_ring_that_is_disabled_gets_the_new_table_too<D: Virtqueue>() {
    let mut behind = Behind::<D>::new(Direction::Dequeue, Features::NONE);
    behind.tell_all(Access::Read);
    assert!(behind.send(&frame(60, 0)));
    behind.queue.set_enabled(false);
    assert_eq!(behind.take_back(BUFFERS, BUFFER_PAGES * PAGE), None);
    assert!(behind.dequeue().is_empty());
    behind.queue.set_enabled(true);
    assert!(behind.dequeue().is_empty());
    behind.tell_all(Access::Read);
    assert_eq!(behind.dequeue(), [frame(60, 0)]);
}

/// A generator of numbers below a bound, the same each time.
fn dice(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |below| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

/// Something happens to the IOMMU, or to the ring by way of it.
fn shake<D: Virtqueue>(behind: &mut Behind<D>, roll: &mut impl FnMut(u64) -> u64, access: Access) {
    match roll(8) {
        0 => {
            let (page, pages) = (roll(BUFFER_PAGES), 1 + roll(8));
            assert_eq!(behind.take_back(BUFFERS + page * PAGE, pages * PAGE), None);
        }
        1 if roll(8) == 0 => {
            let base = behind.take_back(RING + roll(256), 1 << 40).expect("stopped");
            behind.tell_ring();
            behind.queue.start(behind.config(Some(base))).unwrap();
        }
        2..=5 => {
            if let Some(miss) = behind.misses().first() {
                assert_eq!((behind.tell(miss.iova.0, access), miss.access), (None, access));
            }
        }
        _ => {}
    }
}

pub(super) fn random_updates_and_invalidates_lose_double_or_reorder_nothing_out_of_the_guest<D: Virtqueue>() {
    let mut roll = dice(7);
    let mut behind = Behind::<D>::new(Direction::Dequeue, Features::NONE);
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    for step in 0..effort::of(6_000_u32, 30) {
        let frame = frame(
            60 + usize::try_from(roll(1900)).unwrap(),
            step.to_le_bytes()[0] & !1,
        );
        if behind.send(&frame) {
            sent.push(frame);
        }
        shake(&mut behind, &mut roll, Access::Read);
        got.extend(behind.dequeue());
    }
    behind.tell_all(Access::Read);
    got.extend(behind.dequeue());
    assert!(got.len() > effort::of(500, 0), "{}", got.len());
    assert!(sent == got, "{} sent, {} received", sent.len(), got.len());
}

pub(super) fn random_updates_and_invalidates_lose_double_or_reorder_nothing_into_the_guest<D: Virtqueue>() {
    let mut roll = dice(8);
    let mut behind = Behind::<D>::new(Direction::Enqueue, Features::NONE);
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    for step in 0..effort::of(6_000_u32, 30) {
        behind.supply();
        let burst: Vec<_> = (0..roll(5))
            .map(|_| {
                frame(
                    60 + usize::try_from(roll(1900)).unwrap(),
                    step.to_le_bytes()[0] & !1,
                )
            })
            .collect();
        let count = behind.enqueue(&burst);
        sent.extend_from_slice(&burst[..count]);
        shake(&mut behind, &mut roll, Access::Write);
        got.extend(behind.received());
    }
    assert!(got.len() > effort::of(500, 0), "{}", got.len());
    assert!(sent == got, "{} sent, {} received", sent.len(), got.len());
}

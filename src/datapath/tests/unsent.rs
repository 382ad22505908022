//! Every frame that a queue does not send is counted, for one reason.

use super::*;
use crate::datapath::{QueueStats, TxSlot, Unsent};

const REASONS: [Unsent; 5] = [
    Unsent::Disabled,
    Unsent::Broken,
    Unsent::Full,
    Unsent::Malformed,
    Unsent::Missing,
];

/// Sends `count` frames and checks that each of them arrived or was counted, once.
fn send<D: Virtqueue>(rig: &Rig<D>, count: usize) -> QueueStats {
    let (before, frames) = (rig.stats(), vec![frame(60, 0); count]);
    rig.enqueue(&frames);
    let more = rig.stats().with(&before, |after, before| after - before);
    let unsent: u64 = REASONS.iter().map(|reason| more.unsent(*reason)).sum();
    let accounted = more.good_packets + unsent + more.oversize + more.invalid;
    assert_eq!(accounted, count as u64, "{more:?}");
    more
}

fn the_reason_is_what_the_driver_did<D: Virtqueue>(features: Features) {
    let mut rig = Rig::<D>::rx(features);
    assert_eq!(send(&rig, 3).unsent(Unsent::Full), 3, "no buffer");
    rig.net.supply(5);
    rig.net.driver.publish();
    assert_eq!(send(&rig, 40).unsent(Unsent::Full), 35, "five buffers");

    rig.queue.set_enabled(false);
    assert_eq!(send(&rig, 2).unsent(Unsent::Disabled), 2);
    rig.queue.set_enabled(true);

    // A chain that the device may only read.
    let buffer = rig.net.buffer(0);
    rig.net.driver.add(&[read(buffer, 2048)]);
    rig.net.driver.publish();
    assert_eq!(send(&rig, 4).unsent(Unsent::Malformed), 4);
    assert_eq!(send(&rig, 2).unsent(Unsent::Broken), 2);
    rig.queue.stop();
    assert_eq!(
        send(&rig, 2).unsent(Unsent::Broken),
        2,
        "nothing was started since"
    );
}

#[test]
fn a_frame_that_is_not_sent_has_the_reason_that_its_driver_gave() {
    the_reason_is_what_the_driver_did::<Driver>(V1);
    the_reason_is_what_the_driver_did::<Driver>(MERGE);
    the_reason_is_what_the_driver_did::<PackedDriver>(PACKED);
}

#[test]
fn a_ring_that_is_started_anew_is_not_broken_any_more() {
    let rig = Rig::<Driver>::rx(V1);
    rig.net.driver.set_avail_idx(SIZE + 1);
    assert_eq!(send(&rig, 1).unsent(Unsent::Malformed), 1);
    rig.net.driver.set_avail_idx(0);
    rig.queue.start(rig.net.driver.config(7)).unwrap();
    assert_eq!(send(&rig, 1).unsent(Unsent::Full), 1);
    rig.queue.stop();
    assert_eq!(send(&rig, 1).unsent(Unsent::Disabled), 1);
}

#[test]
fn a_frame_too_large_for_a_buffer_that_may_not_be_merged_is_no_full_ring() {
    let mut rig = Rig::<Driver>::with_room(Direction::Enqueue, SIZE, 50, V1);
    rig.net.supply(3);
    rig.net.driver.publish();
    let stats = send(&rig, 3);
    assert_eq!((stats.oversize, stats.unsent(Unsent::Full)), (3, 0));
}

#[test]
fn what_was_sent_at_last_after_more_attempts_is_not_counted() {
    let mut rig = Rig::<Driver>::rx(V1);
    rig.net.supply(2);
    rig.net.driver.publish();
    let frames = vec![frame(60, 0); 3];
    let slots: Vec<_> = frames.iter().map(|frame| TxSlot::new(frame)).collect();
    assert_eq!(rig.queue.enqueue(&slots, 8).packets, 2);
    assert_eq!(
        rig.stats().unsent(Unsent::Full),
        1,
        "once, however often it was tried"
    );
}

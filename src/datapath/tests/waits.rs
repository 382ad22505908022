//! How long frames wait is seen where they wait, and costs a burst that nobody waits for nothing.

use super::*;

fn supply<D: Virtqueue>(rig: &mut Rig<D>, count: usize) {
    assert_eq!(rig.net.supply(count), count);
    rig.net.driver.publish();
}

fn a_stall_ends_with_a_frame_or_with_the_ring<D: Virtqueue>(features: Features) {
    let mut rig = Rig::<D>::rx(features);
    let one = [frame(60, 0)];
    rig.queue.gauge(true);
    let over = |rig: &Rig<D>| {
        (
            rig.queue.stalls().read().count,
            rig.queue.stalls().read().since.is_some(),
        )
    };
    rig.enqueue(&one);
    let began = rig.queue.stalls().read().since;
    rig.enqueue(&one);
    assert_eq!(rig.queue.stalls().read().since, began, "it lasts");
    supply(&mut rig, 1);
    rig.enqueue(&one);
    assert_eq!(over(&rig), (1, false));
    supply(&mut rig, 1);
    rig.enqueue(&one);
    assert_eq!(over(&rig), (1, false), "a burst that is sent whole is none");
    rig.enqueue(&one);
    rig.queue.set_enabled(false);
    assert_eq!(over(&rig), (2, false));
    rig.enqueue(&one);
    assert_eq!(over(&rig), (2, false), "no ring, no stall");
    let seen = rig.queue.gauged().unwrap();
    assert_eq!(seen.count(), 2);
    let stalls = rig.queue.stalls().read();
    assert!(stalls.longest <= stalls.total && stalls.longest == seen.longest());
}

#[test]
fn a_stall_ends_with_a_frame_that_gets_through_or_with_its_ring() {
    a_stall_ends_with_a_frame_or_with_the_ring::<Driver>(V1);
    a_stall_ends_with_a_frame_or_with_the_ring::<PackedDriver>(PACKED);
}

#[test]
fn gaps_between_polls_are_counted_while_the_ring_is_polled() {
    let mut rig = Rig::<Driver>::tx(V1);
    let gaps = |rig: &Rig| rig.queue.gauged().map(|seen| seen.count());
    let poll = |rig: &mut Rig, times: usize| (0..times).for_each(|_| assert!(rig.dequeue().is_empty()));
    poll(&mut rig, 3);
    assert_eq!(gaps(&rig), None);
    rig.queue.gauge(true);
    poll(&mut rig, 3);
    assert_eq!(gaps(&rig), Some(2));
    rig.queue.set_enabled(false);
    poll(&mut rig, 3);
    rig.queue.set_enabled(true);
    poll(&mut rig, 2);
    assert_eq!(gaps(&rig), Some(3), "the time in which it was disabled is no gap");
    rig.queue.gauge(false);
    poll(&mut rig, 2);
    assert_eq!(gaps(&rig), Some(3));
    rig.queue.gauge(true);
    assert_eq!(gaps(&rig), Some(0), "anew");
}

#[test]
fn who_polls_is_known_from_the_first_poll_after_it_was_asked() {
    let mut rig = Rig::<Driver>::tx(V1);
    assert_eq!(rig.queue.poller(), None);
    rig.dequeue();
    let here = rig.queue.poller();
    assert!(here.is_some(), "a ring that starts asks");
    let poll_elsewhere = |rig: &mut Rig| {
        std::thread::scope(|scope| scope.spawn(|| rig.dequeue()).join().unwrap());
        rig.queue.poller()
    };
    assert_eq!(poll_elsewhere(&mut rig), here, "nobody asked");
    rig.queue.ask_poller();
    assert_ne!(poll_elsewhere(&mut rig), here);
}

#[test]
fn frames_that_nobody_has_memory_for_wait_and_are_seen_to() {
    let mut rig = Rig::<Driver>::tx(V1);
    rig.queue.starve();
    assert_eq!(rig.stats().starved, 0, "nothing waits");
    assert!(rig.net.send(&frame(60, 0)));
    rig.net.driver.publish();
    rig.queue.starve();
    assert_eq!((rig.stats().starved, rig.dequeue().len()), (1, 1));
}

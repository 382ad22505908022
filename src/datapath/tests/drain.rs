//! Rings that are started and disabled: what the driver sends on them comes back, and it is asked to kick.

use super::*;

/// What a driver sees that asks whether it should kick.
trait Kicks: Virtqueue {
    /// Whether the chain added before the last publication asks for a kick.
    fn is_kick_due(&self, event_idx: bool) -> bool;
}

impl Kicks for Driver {
    fn is_kick_due(&self, event_idx: bool) -> bool {
        match event_idx {
            true => self.avail_event() == self.next_avail().wrapping_sub(1),
            false => self.used_flags() & 1 == 0,
        }
    }
}

impl Kicks for PackedDriver {
    fn is_kick_due(&self, _: bool) -> bool {
        self.device_event().flags == 0
    }
}

fn send<D: Kicks>(rig: &mut Rig<D>, count: u8) {
    (0..count).for_each(|seed| assert!(rig.net.send(&frame(60, seed))));
    rig.net.driver.publish();
}

fn reaped<D: Kicks>(rig: &mut Rig<D>) -> usize {
    std::iter::from_fn(|| rig.net.driver.reap()).count()
}

fn a_disabled_ring_drains<D: Kicks>(features: Features) {
    let event_idx = features.contains(VIRTIO_RING_F_EVENT_IDX);
    let mut rig = Rig::<D>::tx(features);
    send(&mut rig, 3);
    assert!(!rig.net.driver.is_kick_due(event_idx), "it is polled");
    assert_eq!(rig.dequeue().len(), 3);
    assert!(!rig.queue.discard(), "an enabled ring is none of its business");
    assert_eq!(reaped(&mut rig), 3);

    rig.queue.set_enabled(false);
    for round in 1..=40 {
        send(&mut rig, 9);
        assert_eq!((rig.dequeue().len(), reaped(&mut rig)), (0, 0));
        assert!(!rig.queue.discard(), "nothing came meanwhile");
        assert_eq!(reaped(&mut rig), 9, "round {round}");
        assert_eq!(rig.stats().discarded, 10 * round - 1);
        send(&mut rig, 1);
        assert!(rig.net.driver.is_kick_due(event_idx), "round {round}");
        rig.queue.discard();
        assert_eq!(reaped(&mut rig), 1);
    }
    assert_eq!(rig.stats().good_packets, 3);

    rig.queue.set_enabled(true);
    send(&mut rig, 2);
    assert!(!rig.net.driver.is_kick_due(event_idx), "it is polled again");
    assert_eq!(rig.dequeue(), [frame(60, 0), frame(60, 1)]);
    assert_eq!(rig.queue.fault(), None);
}

#[test]
fn a_ring_that_is_started_and_disabled_drains_asks_for_kicks_and_counts() {
    for features in [V1, V1 | VIRTIO_RING_F_EVENT_IDX] {
        a_disabled_ring_drains::<Driver>(features);
        a_disabled_ring_drains::<PackedDriver>(features | VIRTIO_F_RING_PACKED);
    }
}

fn chains_of_any_shape_come_back<D: Kicks>(features: Features) {
    let mut rig = Rig::<D>::tx(features | VIRTIO_RING_F_INDIRECT_DESC);
    rig.queue.set_enabled(false);
    let rounds = effort::of(100, 3);
    for _ in 0..rounds {
        let data = rig.net.buffer(0);
        let pieces = [read(data, 12), read(at(data, 12), 60), read(at(data, 100), 1)];
        assert!(rig.net.driver.add(&pieces).is_some());
        assert!(rig.net.driver.add_indirect(at(data, 1024), &pieces).is_some());
        assert!(rig.net.driver.add(&pieces[..1]).is_some());
        rig.net.driver.publish();
        assert!(!rig.queue.discard());
        assert_eq!(reaped(&mut rig), 3);
    }
    assert_eq!(rig.stats().discarded, 3 * rounds);
}

#[test]
fn a_disabled_ring_gives_back_chains_of_any_shape() {
    chains_of_any_shape_come_back::<Driver>(V1);
    chains_of_any_shape_come_back::<PackedDriver>(V1 | VIRTIO_F_RING_PACKED);
}

#[test]
fn a_broken_chain_on_a_disabled_ring_breaks_it_and_wakes() {
    let mut rig = Rig::<Driver>::tx(V1);
    rig.queue.set_enabled(false);
    send(&mut rig, 1);
    rig.net.driver.set_avail_entry(1, 999);
    rig.net.driver.set_avail_idx(2);
    assert!(!rig.queue.discard());
    assert_eq!(reaped(&mut rig), 1, "what came before it is given back");
    assert!(rig.chain_error().is_some());
    assert_eq!(rig.wakes.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert!(!rig.queue.discard(), "and nothing more");
}

#[test]
fn the_guests_receive_buffers_on_a_disabled_ring_stay_where_they_are() {
    let mut rig = Rig::<Driver>::rx(MERGE);
    rig.queue.set_enabled(false);
    rig.net.supply(5);
    rig.net.driver.publish();
    assert!(!rig.queue.discard());
    assert_eq!((rig.net.driver.reap(), rig.stats().discarded), (None, 0));
}

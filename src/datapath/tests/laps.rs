//! What is in a ring or a buffer already from the lap before is not written again; what a driver changed of it is.

use super::*;

fn headers_are_right_in_every_lap<D: Virtqueue>(features: Features) {
    let mut rig = Rig::<D>::new(Direction::Enqueue, 2, features);
    let sent = [frame(60, 2)];
    for byte in 0..u64::from(rig.net.header()) {
        for junk in [0, 1, 0xff] {
            let places = [0, 1].map(|head| at(rig.net.buffer(head), byte));
            places
                .iter()
                .for_each(|place| rig.net.driver.memory().write(*place, &[junk]));
            assert_eq!(rig.net.supply(1), 1);
            rig.net.driver.publish();
            assert_eq!(rig.enqueue(&sent).packets, 1);
            // Which holds that its header is plain.
            assert_eq!(rig.received(), sent, "{junk:#x} in byte {byte} of the header");
        }
    }
}

#[test]
fn whatever_a_driver_left_in_a_buffer_the_header_is_right() {
    for features in [Features::NONE, V1, MERGE] {
        headers_are_right_in_every_lap::<Driver>(features);
        headers_are_right_in_every_lap::<PackedDriver>(features | VIRTIO_F_RING_PACKED);
    }
}

#[test]
fn whatever_a_driver_left_in_the_used_ring_the_entries_are_right() {
    let mut rig = Rig::<Driver>::new(Direction::Dequeue, 4, V1);
    let used = rig.net.driver.config(7).device;
    for lap in 0..8 {
        for entry in 0..4 {
            let place = GuestAddr(used.0 - FRONTEND_OFFSET + 4 + 8 * entry);
            // As it was, and each half of it changed.
            match (lap + entry) % 3 {
                0 => {}
                1 => rig.net.driver.memory().write(place, &[0xff; 4]),
                _ => rig.net.driver.memory().write(at(place, 4), &[0xff; 4]),
            }
        }
        let frames: Vec<_> = (0..4).map(|seed| frame(60, 2 * seed)).collect();
        assert!(frames.iter().all(|frame| rig.net.send(frame)));
        rig.net.driver.publish();
        assert_eq!(rig.dequeue(), frames);
        let mut heads: Vec<_> = (0..4).map(|_| rig.net.driver.reap().unwrap()).collect();
        assert!(heads.iter().all(|elem| elem.len == 0), "{heads:?}");
        heads.sort_by_key(|elem| elem.id);
        assert!(heads.iter().map(|elem| elem.id).eq(0..4), "{heads:?}");
    }
}

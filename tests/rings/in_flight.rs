//! What becomes of rings whose front-end keeps what was in flight.

use std::fs::File;
use std::os::fd::AsRawFd;

use ovs_vhost::model::{Driver, PackedDriver, Virtqueue};
use ovs_vhost::virtio::features::Features;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::VhostUserFrontend;

use crate::frontend::fresh;
use crate::{frames, reset, server, Guest, PACKED, SIZE, SPLIT};

/// Has the front-end keep an in-flight buffer for all its rings, as QEMU's and cloud-hypervisor's do: asked for once, handed
/// to every back-end.
fn keep_in_flight<D: Virtqueue>(guest: &mut Guest<D>) -> (VhostUserInflight, File) {
    let queues = u16::try_from(guest.rings.len()).expect("few");
    let wanted = VhostUserInflight::new(0, 0, queues, SIZE);
    let (buffer, file) = guest.frontend.get_inflight_fd(&wanted).expect("a buffer");
    assert_eq!((buffer.num_queues, buffer.queue_size), (queues, SIZE));
    let length = file.metadata().expect("a file").len();
    assert!(buffer.mmap_size > 0 && length >= buffer.mmap_offset + buffer.mmap_size);
    assert!(file.set_len(0).is_err(), "nobody can pull it away");
    (buffer, file)
}

fn hand_over<D>(guest: &mut Guest<D>, buffer: &VhostUserInflight, file: &File) {
    let handed = guest.frontend.set_inflight_fd(buffer, file.as_raw_fd());
    handed.expect("a buffer of its own");
}

fn a_reconnect_goes_on_where_the_ring_stood<D: Virtqueue>(name: &str, features: Features) {
    let port = server(name);
    let mut guest = Guest::<D>::new(&port, 1, features);
    let (buffer, file) = keep_in_flight(&mut guest);
    let mut seed = 0;
    for round in 0..25 {
        hand_over(&mut guest, &buffer, &file);
        // The base says nothing, as after a crash: it is that of a ring that nobody used.
        guest.run(&port, fresh(features));
        for _ in 0..round {
            guest.transmit(1, &frames(seed, 3));
            assert_eq!(port.receive(0), frames(seed, 3), "round {round}");
            assert_eq!(guest.reap(1), 3);
            guest.rings[0].supply(3);
            guest.rings[0].driver.publish();
            port.deliver(0, &frames(seed, 3));
            for _ in 0..3 {
                assert!(guest.rings[0].receive().is_some());
            }
            seed = (seed + 2) % 200;
        }
        // What waits when the connection breaks waits when it is back.
        guest.transmit(1, &frames(seed, 2));
        guest.reconnect(&port, features);
        hand_over(&mut guest, &buffer, &file);
        guest.run(&port, fresh(features));
        assert_eq!(port.receive(0), frames(seed, 2));
        assert_eq!(guest.reap(1), 2);
        guest.reconnect(&port, features);
    }
}

#[test]
fn with_an_in_flight_buffer_a_ring_goes_on_whatever_the_base_says() {
    a_reconnect_goes_on_where_the_ring_stood::<Driver>("inflight-split", SPLIT);
    a_reconnect_goes_on_where_the_ring_stood::<PackedDriver>("inflight-packed", PACKED);
}

#[test]
fn a_ring_stopped_in_order_begins_where_its_front_end_says() {
    // A guest that resets its device: the ring is new, the buffer is not.
    let port = server("inflight-reset");
    let mut guest = Guest::<PackedDriver>::new(&port, 1, PACKED);
    let (buffer, file) = keep_in_flight(&mut guest);
    hand_over(&mut guest, &buffer, &file);
    for index in 0..2 {
        guest.start(index, 0x8000);
        guest.enable(index, true);
    }
    guest.settle();
    for round in 0..10 {
        guest.transmit(1, &frames(round, 5));
        assert_eq!(port.receive(0), frames(round, 5), "round {round}");
        assert_eq!(guest.reap(1), 5);
        reset(&mut guest, 1, SIZE, PACKED);
    }
}

#[test]
fn an_in_flight_buffer_that_does_not_add_up_is_refused() {
    let port = server("inflight-bad");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    let (buffer, file) = keep_in_flight(&mut guest);
    guest.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    for bad in [
        VhostUserInflight::new(buffer.mmap_size - 1, 0, 2, SIZE),
        VhostUserInflight::new(buffer.mmap_size, 64, 2, SIZE),
        VhostUserInflight::new(buffer.mmap_size, u64::MAX - 63, 2, SIZE),
        VhostUserInflight::new(1 << 40, 0, 2, SIZE),
        VhostUserInflight::new(buffer.mmap_size, 0, 2, 1024),
    ] {
        let told = guest.frontend.set_inflight_fd(&bad, file.as_raw_fd());
        assert!(told.is_err(), "{} {}", bad.mmap_size, bad.queue_size);
    }
    let told = guest.frontend.set_inflight_fd(&buffer, file.as_raw_fd());
    assert!(told.is_ok(), "and the connection lives");
}

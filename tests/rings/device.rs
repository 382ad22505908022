//! What the device has beside its rings: configuration space, status, a state of its own, what is wrong with it.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use ovs_vhost::model::Driver;
use ovs_vhost::virtio::features::VIRTIO_NET_F_MTU;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserHeaderFlag,
};
use vhost::vhost_user::VhostUserFrontend;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

use crate::common::eventually;
use crate::events::events;
use crate::{frames, server, Guest, SIZE, SPLIT};

#[test]
fn the_configuration_space_is_offered_where_the_operator_set_an_mtu() {
    let port = server("config");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    let read = |guest: &mut Guest<Driver>, offset, size: u32| {
        let room = vec![0; usize::try_from(size).expect("small")];
        let flags = VhostUserConfigFlags::empty();
        guest.frontend.get_config(offset, size, flags, &room)
    };
    assert!(read(&mut guest, 0, 12).is_err(), "not offered");

    port.set_mtu(9000).expect("an MTU");
    guest.reconnect(&port, SPLIT);
    let (_, space) = read(&mut guest, 0, 12).expect("offered");
    assert_eq!(space, [0, 0, 0, 0, 0, 0, 1, 0, 128, 0, 0x28, 0x23]);
    guest.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let mac = [2, 0, 0, 0, 0, 1];
    let written = guest.frontend.set_config(0, VhostUserConfigFlags::empty(), &mac);
    assert!(written.is_err(), "no field is the driver's");
    // The number 1, which is the specification's for a guest that moves, has this name here.
    let brought = guest.frontend.set_config(0, VhostUserConfigFlags::WRITABLE, &mac);
    assert!(brought.is_ok());
    assert_eq!(read(&mut guest, 0, 6).expect("an address").1, mac);
}

/// Has a state moved by a channel, whose both ends are returned: where it comes out and where it goes in.
fn transfer(
    guest: &Guest<Driver>,
    direction: VhostTransferStateDirection,
) -> vhost::Result<(UnixStream, UnixStream)> {
    let (reader, writer) = UnixStream::pair().expect("a channel");
    let ours = match direction {
        VhostTransferStateDirection::SAVE => OwnedFd::from(writer.try_clone().expect("a descriptor")),
        VhostTransferStateDirection::LOAD => OwnedFd::from(reader.try_clone().expect("a descriptor")),
    };
    let answer = guest
        .frontend
        .set_device_state_fd(direction, VhostTransferStatePhase::STOPPED, ours)?;
    assert!(answer.is_none(), "our own channel is used");
    Ok((reader, writer))
}

#[test]
fn the_devices_own_state_moves_from_port_to_port() {
    let (from, to) = (server("state-from"), server("state-to"));
    let mut guest = Guest::<Driver>::new(&from, 1, SPLIT);
    guest.run(&from, 0);
    let mut heard = vec![0xff; 6];
    heard.extend([0x52, 0x54, 0, 0, 0, 9]);
    heard.resize(60, 0);
    guest.transmit(1, &[heard.clone(), heard]);
    assert_eq!(from.receive(0).len(), 2);
    let bases = [0, 1].map(|vring| guest.frontend.get_vring_base(vring).expect("it stops"));
    assert_eq!(bases, [0, 2]);
    let left = 2;
    let (mut reader, writer) = transfer(&guest, VhostTransferStateDirection::SAVE).expect("saved");
    drop(writer);
    let mut state = Vec::new();
    reader.read_to_end(&mut state).expect("a state, and its end");
    assert!(state.starts_with(b"ovsvhost"));
    guest.frontend.check_device_state().expect("it went well");

    let mut destination = Guest::<Driver>::new(&to, 1, SPLIT);
    for ring in &mut destination.rings {
        ring.driver.set_used_idx(left);
    }
    let (_, mut writer) = transfer(&destination, VhostTransferStateDirection::LOAD).expect("to be loaded");
    writer.write_all(&state).expect("room");
    drop(writer);
    destination.frontend.check_device_state().expect("it went well");

    // The guest was heard there, and is silent here: it is announced all the same.
    destination.run(&to, left);
    let announced = to.burst(0);
    assert_eq!(announced.len(), 1, "{announced:?}");
    assert_eq!(announced[0][6..12], [0x52, 0x54, 0, 0, 0, 9]);
    for vring in 0..2 {
        destination.frontend.get_vring_base(vring).expect("it stops");
    }

    // Nothing, noise, and a state of a device that runs.
    let again = destination.frontend.check_device_state();
    assert!(again.is_err(), "nothing was to be checked");
    let told = "the device's state cannot be moved: nothing was to be loaded or saved";
    eventually("an operator hears why", || {
        to.describe_events().to_string().contains(told)
    });
    let (_, mut writer) = transfer(&destination, VhostTransferStateDirection::LOAD).expect("to be loaded");
    writer.write_all(b"something else").expect("room");
    drop(writer);
    assert!(destination.frontend.check_device_state().is_err());
    guest.start(0, 0);
    guest.settle();
    assert!(
        transfer(&guest, VhostTransferStateDirection::SAVE).is_err(),
        "a ring runs"
    );
    let says = |port, reason: &str| {
        let line = format!("the device's state cannot be moved: {reason}");
        events(port, "WARN", &line) == 1
    };
    eventually("reasons", || {
        says(&to, "nothing was") && says(&to, "14 bytes are")
    });
    eventually("a reason", || says(&from, "a vring runs"));
}

#[test]
fn a_ring_that_stands_elsewhere_than_its_front_end_says_is_an_event_of_its_port() {
    let port = server("elsewhere");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    guest.rings[1].driver.set_used_idx(5);
    guest.run(&port, 0);
    let line = "vring 1: base 0x0 is not where the ring stands: going on from 0x5";
    eventually("an event", || events(&port, "INFO", line) == 1);
    assert_eq!(events(&port, "INFO", "vring 0: "), 0);
}

const NET_SET_MTU: u32 = 20;
const SET_STATUS: u32 = 39;
const GET_STATUS: u32 = 40;
const SET_VRING_CALL: u32 = 13;
/// In the payload of SET_VRING_CALL: without a descriptor.
const NO_DESCRIPTOR: u64 = 1 << 8;

#[test]
fn a_front_end_that_uses_the_device_status_gets_its_rings_at_driver_ok() {
    let port = server("status");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    assert_eq!(guest.ask(GET_STATUS), 0);
    guest.say(SET_STATUS, Some(0xb));
    for index in 0..2 {
        guest.start(index, 0);
        guest.enable(index, true);
    }
    assert_eq!(guest.ask(GET_STATUS), 0xb);
    assert!(!port.carrier(), "not DRIVER_OK yet");
    guest.say(SET_STATUS, Some(0xf));
    assert_eq!(guest.ask(GET_STATUS), 0xf);
    assert!(port.carrier());
    guest.transmit(1, &frames(0, 2));
    assert_eq!(port.receive(0), frames(0, 2));
    guest.say(SET_STATUS, Some(0));
    assert_eq!(guest.ask(GET_STATUS), 0);
    eventually("reset", || !port.connected());
}

#[test]
fn the_mtu_of_the_front_end_is_in_status_where_it_is_negotiated() {
    let port = server("set-mtu");
    for (features, shown) in [(SPLIT | VIRTIO_NET_F_MTU, Some("1400")), (SPLIT, None)] {
        let mut guest = Guest::<Driver>::new(&port, 1, features);
        guest.say(NET_SET_MTU, Some(1400));
        guest.run(&port, 0);
        assert_eq!(port.status("mtu").as_deref(), shown);
        drop(guest);
        eventually("it is gone", || !port.connected());
    }
}

#[test]
fn a_broken_ring_is_told_by_its_error_descriptor_and_in_status() {
    let port = server("err");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    let err = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
    guest.frontend.set_vring_err(1, &err).expect("taken");
    guest.run(&port, 0);
    assert!(err.read().is_err(), "nothing is wrong");
    guest.rings[1].driver.set_avail_idx(SIZE + 1);
    assert_eq!(port.receive(0), Vec::<Vec<u8>>::new());
    eventually("the error", || err.read().is_ok());
    let why = port.status("vring_1_error").expect("a reason");
    assert!(why.contains("avail index 65"), "{why}");
    // Set up again it goes on.
    guest.frontend.get_vring_base(1).expect("an index");
    guest.rings[1].driver.set_avail_idx(0);
    guest.start(1, 0);
    guest.settle();
    guest.transmit(1, &frames(0, 2));
    assert_eq!(port.receive(0), frames(0, 2));
    assert_eq!(port.status("vring_1_error"), None);
}

#[test]
fn a_driver_that_polls_gives_no_call_and_gets_none() {
    let port = server("no-call");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    for index in 0..2 {
        guest.start(index, 0);
        guest.say(SET_VRING_CALL, Some(u64::from(index) | NO_DESCRIPTOR));
        guest.enable(index, true);
    }
    guest.settle();
    eventually("the pair runs", || port.connected());
    let before = port.counter("rx_q0_guest_notifications");
    for round in 0..20 {
        guest.transmit(1, &frames(round, 3));
        assert_eq!(port.receive(0), frames(round, 3));
        assert_eq!(guest.reap(1), 3);
    }
    assert_eq!(port.counter("rx_q0_guest_notifications"), before);
}

#[test]
fn a_device_that_is_reset_keeps_its_memory_and_features() {
    let port = server("reset-device");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    for round in 0..3 {
        guest.run(&port, 0);
        guest.transmit(1, &frames(round, 3));
        assert_eq!(port.receive(0), frames(round, 3));
        assert_eq!(guest.reap(1), 3);
        guest.frontend.reset_device().expect("it is reset");
        guest.settle();
        eventually("it stands still", || !port.connected());
        guest.transmit(1, &frames(round, 1));
        assert_eq!(port.receive(0), Vec::<Vec<u8>>::new());
        // Kicked, but not enabled again: what waits is dropped, see above; here it is enabled and arrives.
        for index in 0..2 {
            guest.start(index, 0);
            guest.enable(index, true);
        }
        guest.settle();
        assert_eq!(port.receive(0), frames(round, 1));
        assert_eq!(guest.reap(1), 1);
        guest.frontend.reset_device().expect("it is reset");
    }
}

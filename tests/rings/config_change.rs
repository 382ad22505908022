//! The operator changes the MTU of a port whose front-end has the configuration space: it is told on the back-end channel.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use ovs_vhost::model::Driver;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler};

use crate::common::{eventually, TestPort};
use crate::wire::{message, VERSION};
use crate::{frames, server, Guest, SPLIT};

const CONFIG_CHANGE_MSG: u32 = 2;

/// Counts what it is told.
#[derive(Default)]
struct Told(AtomicUsize);

impl VhostUserFrontendReqHandler for Told {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(0)
    }
}

/// A port with an MTU, and its front-end that took all it was offered.
fn connected(name: &str) -> (TestPort, Guest<Driver>) {
    let port = server(name);
    port.set_mtu(1400).expect("an MTU");
    let guest = Guest::new(&port, 1, SPLIT);
    (port, guest)
}

/// Hands over a channel: our end of it.
fn channel(guest: &mut Guest<Driver>) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    ours.set_nonblocking(true).expect("non-blocking");
    guest.frontend.set_backend_request_fd(&theirs).expect("a channel");
    ours
}

/// Changes the MTU. When this returns, whatever there was to say of it has been said.
fn change(port: &TestPort, guest: &Guest<Driver>, mtu: u32) {
    port.set_mtu(mtu).expect("an MTU");
    // The control thread may look at the request of the first turn before it looks at the change, not at that of the second.
    guest.settle();
    guest.settle();
}

/// How often a change was told on a channel since the last time.
fn told(channel: &mut UnixStream) -> usize {
    let expected = message(CONFIG_CHANGE_MSG, VERSION, &[]);
    let mut bytes = Vec::new();
    match channel.read_to_end(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        other => panic!("{other:?}"),
    }
    let messages = bytes.chunks(expected.len());
    assert!(messages.clone().all(|message| message == expected), "{bytes:?}");
    messages.count()
}

#[test]
fn a_front_end_that_has_the_configuration_space_is_told_when_the_operator_changes_it() {
    let (port, mut guest) = connected("config-change");
    let told = Arc::new(Told::default());
    let mut handler = FrontendReqHandler::new(Arc::clone(&told)).expect("a channel");
    guest
        .frontend
        .set_backend_request_fd(&handler.get_tx_raw_fd())
        .expect("taken");
    guest.run(&port, 0);
    // It ends with the channel.
    let listener = std::thread::spawn(move || while handler.handle_request().is_ok() {});
    for (times, mtu) in [(1, 9000), (2, 1500)] {
        port.set_mtu(mtu).expect("an MTU");
        eventually("it is told", || told.0.load(Ordering::Relaxed) == times);
        let flags = VhostUserConfigFlags::empty();
        let (_, space) = guest
            .frontend
            .get_config(10, 2, flags, &[0; 2])
            .expect("the space");
        assert_eq!(u32::from(u16::from_le_bytes([space[0], space[1]])), mtu);
    }
    guest.transmit(1, &frames(0, 2));
    assert_eq!(port.receive(0), frames(0, 2));
    assert!(!listener.is_finished(), "no more and nothing else was said");
}

#[test]
fn a_change_is_told_once_and_what_did_not_change_or_came_from_the_front_end_is_not() {
    let (port, mut guest) = connected("config-once");
    let mut channel = channel(&mut guest);
    for (mtu, times) in [(1400, 0), (9000, 1), (9000, 0), (1400, 1)] {
        change(&port, &guest, mtu);
        assert_eq!(told(&mut channel), times, "{mtu}");
    }
    guest.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    // What rust-vmm calls so is a guest that moves.
    let flags = VhostUserConfigFlags::WRITABLE;
    guest
        .frontend
        .set_config(0, flags, &[2, 0, 0, 0, 0, 1])
        .expect("taken");
    assert_eq!(told(&mut channel), 0);
    assert!(port.set_mtu(1).is_err());
    guest.settle();
    assert_eq!(told(&mut channel), 0);
}

#[test]
fn what_changed_before_there_was_a_channel_is_told_as_soon_as_there_is_one() {
    let (port, mut guest) = connected("config-late");
    change(&port, &guest, 9000);
    change(&port, &guest, 1500);
    for times in [1, 0] {
        let mut channel = channel(&mut guest);
        guest.settle();
        assert_eq!(told(&mut channel), times);
    }
}

#[test]
fn a_front_end_that_did_not_take_the_configuration_space_is_told_nothing() {
    let (port, mut guest) = connected("config-untaken");
    let offered = guest.frontend.get_protocol_features().expect("protocol features");
    guest
        .frontend
        .set_protocol_features(offered - VhostUserProtocolFeatures::CONFIG)
        .expect("taken");
    let mut channel = channel(&mut guest);
    change(&port, &guest, 9000);
    assert_eq!(told(&mut channel), 0);
}

#[test]
fn a_front_end_that_does_not_read_what_it_is_told_loses_the_channel_and_nothing_else() {
    let (port, mut guest) = connected("config-deaf");
    let mut channel = channel(&mut guest);
    guest.run(&port, 0);
    for _ in 0..1500 {
        change(&port, &guest, 9000);
        change(&port, &guest, 1400);
    }
    let mut said = Vec::new();
    channel.read_to_end(&mut said).expect("the end of it");
    assert!(said.len() < 3000 * 12, "{} bytes", said.len());
    guest.transmit(1, &frames(0, 2));
    assert_eq!(port.receive(0), frames(0, 2));
}

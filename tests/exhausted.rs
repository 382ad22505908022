//! A process that has no descriptor left. Alone in its program: the table of descriptors is that of all its tests.

#[expect(dead_code, reason = "nobody gets as far as to packets here")]
mod common;
#[path = "common/events.rs"]
mod events;

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use ovs_vhost::port::Switches;
use rustix::net::{connect, socket, AddressFamily, SocketAddrUnix, SocketType};
use vhost::vhost_user::Frontend;
use vhost::VhostBackend;

use common::{eventually, TestPort};
use events::events;

/// All descriptors that there are, until dropped.
fn all_descriptors() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

/// How often a front-end could not be accepted.
fn complaints(port: &TestPort) -> usize {
    events(port, "WARN", "cannot accept")
}

#[test]
fn a_port_that_cannot_accept_waits_quietly_until_it_can() {
    let (port, path) = TestPort::server("exhausted", Switches::default());
    let client = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    let held = all_descriptors();
    connect(&client, &SocketAddrUnix::new(&path).expect("a path")).expect("a port that listens");
    eventually("a complaint", || complaints(&port) > 0);
    sleep(Duration::from_millis(1500));
    let count = complaints(&port);
    assert!(count <= 3, "{count} attempts in a second and a half");

    drop(held);
    let frontend = Frontend::from_stream(UnixStream::from(client), 2);
    frontend.set_owner().expect("owner");
    assert_ne!(frontend.get_features().expect("an answer"), 0);
}

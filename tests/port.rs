//! A whole port without Open vSwitch: its sockets, its control thread, its rings, driven by rust-vmm's
//! `Frontend` and by front-ends that misbehave. In `port/`: that front-end, what it lends, what is told of it, and what
//! options change.

mod common;
#[path = "port/describe.rs"]
mod describe;
#[path = "port/guest.rs"]
mod guest;
#[path = "port/memory.rs"]
mod memory;
#[path = "port/settings.rs"]
mod settings;
#[path = "port/tapped.rs"]
mod tapped;

use std::io::{Read, Write};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ovs_vhost::port::{Mode, Port, Switches};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::VhostUserFrontend;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

use common::{environment, eventually, Netdev, TestPort};
use guest::{Guest, MEMORY};

impl TestPort {
    fn connect_to(&self, path: &Path) {
        self.set_config(&[("vhost-server-path", path.to_str().expect("a path in UTF-8"))]);
    }
}

fn client(name: &str) -> TestPort {
    TestPort::new(name, Mode::Client, Switches::default())
}

/// A server port, and the path of its socket.
fn server(name: &str) -> (TestPort, PathBuf) {
    TestPort::server(name, Switches::default())
}

/// A directory for the sockets of client ports.
struct World {
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        World {
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A client port on the socket `name`, which need not be there.
    fn client(&self, name: &str) -> TestPort {
        let port = client(name);
        port.connect_to(&self.path(name));
        port
    }
}

#[test]
fn a_server_port_carries_a_front_end_through_its_whole_life() {
    let (port, path) = server("life");
    assert!(path.exists());
    let guest = Guest::connect(&path).up(&port, 2);
    assert_eq!(port.status("mode").as_deref(), Some("server"));
    assert_eq!(port.status("num_of_vrings").as_deref(), Some("4"));
    assert_eq!(port.status("vring_3_size").as_deref(), Some("256"));
    assert_eq!(port.status("features").as_deref(), Some("0x0000000140008000"));
    let topology = port.reconfigure();
    assert_eq!((topology.n_rxq, topology.n_txq, topology.attached), (2, 2, true));
    assert!(
        guest.calls.iter().all(|call| call.read().is_ok()),
        "each ring is called once when it starts"
    );

    // Stopping one ring of the first pair is a guest that goes down; its index is handed back.
    assert_eq!(guest.frontend.get_vring_base(0).expect("an index"), 0);
    eventually("disconnected", || !port.connected());
    drop(guest);

    let _again = Guest::connect(&path).up(&port, 1);
    drop(port);
    assert!(!path.exists(), "the socket goes with its port");
}

#[test]
fn a_client_port_connects_when_its_socket_and_even_its_directory_appear() {
    let world = World::new();
    let path = world.path("later/s");
    let port = client("appears");
    port.connect_to(&path);
    std::fs::create_dir(world.path("later")).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let (stream, _) = listener.accept().expect("the port connects by itself");
    let guest = Guest::on(stream).up(&port, 1);

    // The front-end goes, its file stays, another one comes.
    drop(guest);
    drop(listener);
    eventually("disconnected", || !port.connected());
    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let (stream, _) = listener.accept().expect("the port connects again");
    let _guest = Guest::on(stream).up(&port, 1);
}

#[test]
fn counters_and_queue_count_outlive_a_front_end() {
    let (port, path) = server("outlive");
    let guest = Guest::connect(&path).up(&port, 2);
    drop(guest);
    eventually("disconnected", || !port.connected());
    let mut names = Vec::new();
    port.custom_stats(&mut |name, _| names.push(name.to_owned()));
    for name in [
        "ovs_tx_retries",
        "rx_q0_good_packets",
        "rx_q1_guest_notifications",
        "tx_q1_inflight_completed",
    ] {
        assert!(
            names.iter().any(|n| n == name),
            "{name} is missing from {names:?}"
        );
    }
    assert_eq!(names.len(), 6 + 4 * 17 + 14);
}

#[test]
fn a_second_front_end_is_refused_and_the_first_does_not_notice() {
    let (port, path) = server("second");
    let guest = Guest::connect(&path).up(&port, 1);
    let mut second = UnixStream::connect(&path).unwrap();
    second.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(second.read(&mut [0]).expect("end of stream"), 0, "hung up on");
    assert!(guest.frontend.get_features().is_ok());
    assert!(port.connected());
}

#[test]
fn a_front_end_that_sends_half_a_header_delays_nobody() {
    let (_slow, slow_path) = server("slow");
    let (port, path) = server("quick");
    let mut half = UnixStream::connect(&slow_path).unwrap();
    half.write_all(&[1, 0, 0]).unwrap();
    let started = Instant::now();
    for _ in 0..20 {
        let guest = Guest::connect(&path).up(&port, 1);
        drop(guest);
        eventually("disconnected", || !port.connected());
    }
    assert!(started.elapsed() < Duration::from_secs(20), "each was quick");
    half.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(
        half.read(&mut [0]).expect("end of stream"),
        0,
        "the half message has a deadline"
    );
}

#[test]
fn a_message_of_an_unknown_kind_ends_the_connection_and_the_port_goes_on() {
    let (port, path) = server("unknown");
    let mut rude = UnixStream::connect(&path).unwrap();
    rude.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    rude.write_all(&[200, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(rude.read(&mut [0]).expect("end of stream"), 0);
    let _guest = Guest::connect(&path).up(&port, 1);
}

#[test]
fn a_region_is_there_until_it_was_removed_as_often_as_added() {
    let (port, path) = server("slots");
    let mut guest = Guest::connect(&path);
    guest.negotiate().expect("negotiation");
    guest.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    // QEMU adds its memory once per queue pair.
    for _ in 0..2 {
        guest.frontend.add_mem_region(&guest.region()).expect("added");
    }
    (0..2)
        .try_for_each(|index| guest.start_ring(index))
        .expect("rings");
    eventually("connected", || port.connected());
    guest
        .frontend
        .remove_mem_region(&guest.region())
        .expect("removed once");
    assert!(port.connected(), "it was added twice");
    guest
        .frontend
        .remove_mem_region(&guest.region())
        .expect("removed twice");
    eventually("disconnected: the rings' memory is gone", || !port.connected());
    assert!(
        guest.frontend.remove_mem_region(&guest.region()).is_err(),
        "it is not there"
    );
    guest
        .frontend
        .add_mem_region(&guest.region())
        .expect("added again");
    eventually("connected again", || port.connected());
}

#[test]
fn a_call_descriptor_that_could_block_a_poll_thread_is_refused() {
    let (port, path) = server("pipe");
    let guest = Guest::connect(&path).up(&port, 1);
    let (_reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the descriptor is this value's own from here on.
    let not_an_eventfd = unsafe { EventFd::from_raw_fd(writer.into_raw_fd()) };
    let told = guest
        .frontend
        .set_vring_call(0, &not_an_eventfd)
        .and_then(|()| guest.frontend.get_features());
    assert!(told.is_err(), "the connection ends");
    eventually("disconnected", || !port.connected());
}

#[test]
fn of_two_ports_with_one_path_the_second_waits_and_says_so() {
    let world = World::new();
    let listener = UnixListener::bind(world.path("one")).unwrap();
    let first = world.client("one");
    let (stream, _) = listener.accept().unwrap();
    let guest = Guest::on(stream).up(&first, 1);

    let second = client("two");
    second.connect_to(&world.path("one"));
    eventually("the reason in status", || second.status("error").is_some());
    assert!(second
        .status("error")
        .unwrap()
        .contains("is in use by port 'one'"));
    assert!(guest.frontend.get_features().is_ok());

    drop(first);
    let (stream, _) = listener.accept().expect("the second takes over");
    let _guest = Guest::on(stream).up(&second, 1);
    assert_eq!(second.status("error"), None);
}

#[test]
fn a_changed_path_takes_effect_at_once() {
    let world = World::new();
    let (old, new) = (
        UnixListener::bind(world.path("old")).unwrap(),
        UnixListener::bind(world.path("new")).unwrap(),
    );
    let port = world.client("old");
    let (mut stream, _) = old.accept().unwrap();
    port.connect_to(&world.path("new"));
    new.accept().expect("connected to the new path");
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the old connection is closed");
}

#[test]
fn a_deleted_port_can_be_added_again_at_once_under_the_same_name() {
    for _ in 0..50 {
        let (port, path) = server("again");
        let _guest = Guest::connect(&path).up(&port, 1);
        // The guest is still attached.
        drop(port);
    }
}

#[test]
fn the_netdev_of_a_deleted_port_is_not_called_again() {
    let (port, path) = server("deleted");
    let guest = Guest::connect(&path).up(&port, 1);
    let netdev = port.netdev.clone();
    drop(port);
    eventually("hung up on", || guest.frontend.get_features().is_err());
    // What comes after it on the control thread has come.
    let (other, path) = server("deleted-other");
    let _guest = Guest::connect(&path).up(&other, 1);
    assert_eq!(netdev.0.late.load(Ordering::SeqCst), 0);
}

#[test]
fn a_bad_option_is_named_in_status_and_harms_nothing() {
    let port = client("bad");
    port.set_config(&[("tx-retries-max", "99")]);
    let error = port.status("error").expect("two complaints");
    assert!(
        error.contains("options:tx-retries-max='99'") && error.contains("vhost-server-path is not set"),
        "{error}"
    );
    assert_eq!(port.status("status").as_deref(), Some("disconnected"));
}

#[test]
fn the_mtu_is_checked_and_applied_without_a_guest() {
    let port = client("mtu");
    for bad in [0, 67, 9703, 65536] {
        assert_eq!(port.set_mtu(bad).unwrap_err().errno(), libc::EINVAL);
    }
    for good in [68, 9702] {
        port.set_mtu(good).unwrap();
        assert_eq!(port.reconfigure().mtu, good);
    }
    assert!(port.netdev.0.reconfigure.load(Ordering::SeqCst) >= 2);
}

#[test]
fn names_that_would_leave_the_directory_are_refused() {
    for name in ["../up", "a/b", "back\\slash"] {
        let error = Port::new(
            name,
            Mode::Server,
            environment(Switches::default()),
            Box::new(Netdev::default()),
        )
        .map(drop)
        .unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
    }
}

#[test]
fn hundreds_of_connections_leave_no_descriptor_behind() {
    // Other tests of this process open descriptors too, so count those of this port's own sockets.
    let (port, path) = server("leak");
    let memfds = || {
        let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        all.filter_map(|e| std::fs::read_link(e.path()).ok())
            .filter(|l| l.to_string_lossy().contains("leakprobe"))
            .count()
    };
    for round in 0..200 {
        let mut guest = Guest::connect(&path);
        guest.memory = rustix::fs::memfd_create("leakprobe", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&guest.memory, MEMORY as u64).unwrap();
        if round % 2 == 0 {
            guest.start(1).expect("negotiation");
        } else {
            guest.negotiate().expect("negotiation");
        }
        drop(guest);
    }
    eventually("disconnected", || !port.connected());
    eventually("no descriptor of a guest's memory left", || memfds() == 0);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    eventually("no mapping of it either", || {
        !maps.contains("leakprobe")
            || !std::fs::read_to_string("/proc/self/maps")
                .unwrap()
                .contains("leakprobe")
    });
}

/// The types of the frames that come out of the guest, and where they come from.
fn heard(port: &TestPort) -> Vec<(u16, [u8; 6])> {
    let of = |frame: Vec<u8>| {
        let kind = u16::from_be_bytes([frame[12], frame[13]]);
        (kind, frame[6..12].try_into().unwrap())
    };
    port.burst(0).into_iter().map(of).collect()
}

#[test]
fn the_switch_is_told_again_that_the_link_is_up() {
    let (port, path) = server("told-again");
    let _guest = Guest::connect(&path).up(&port, 1);
    let told = || port.netdev.0.changed.load(Ordering::SeqCst);
    let mut before = told();
    eventually("quiet", || {
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut before, told()) == told()
    });
    eventually("told again", || told() > before);
}

#[test]
fn a_guest_that_comes_back_in_mid_ring_is_announced_and_a_new_one_is_not() {
    const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
    let (port, path) = server("announced");
    let guest = Guest::connect(&path).up(&port, 1);
    assert_eq!(heard(&port), []);
    // Header, addresses, a type that is not ARP's.
    let frame = [&[0; 12][..], &[0xff; 6], &MAC, &[0x88, 0xb5], &[0; 50]].concat();
    guest.write(0x10_0000, &frame);
    guest.give(1, 0x10_0000, false);
    assert_eq!(heard(&port), [(0x88b5, MAC)]);
    assert_eq!(heard(&port), [], "it began here");

    // The connection goes, the guest's memory and rings stay.
    let memory = guest.memory.try_clone().unwrap();
    drop(guest);
    eventually("disconnected", || !port.connected());
    let mut guest = Guest::connect(&path);
    guest.memory = memory;
    guest.start(1).expect("negotiation");
    eventually("connected again", || port.connected());
    assert_eq!((heard(&port), heard(&port)), (vec![(0x8035, MAC)], vec![]));

    drop(guest);
    eventually("disconnected", || !port.connected());
    let _other = Guest::connect(&path).up(&port, 1);
    assert_eq!(heard(&port), [], "another guest, which begins here");
}

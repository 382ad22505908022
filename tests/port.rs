//! A whole port without Open vSwitch: its sockets, its control thread, its rings, driven by rust-vmm's
//! `Frontend` and by front-ends that misbehave.

mod common;

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ovs_vhost::datapath::TxSlot;
use ovs_vhost::port::{Mode, Port, Switches};
use serde_json::json;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use common::{environment, eventually, Netdev, TestPort};

const RING_SIZE: u16 = 256;
const MEMORY: usize = 2 << 20;
/// Guest memory from ring to ring.
const RING_STRIDE: u64 = 0x4000;
/// Where the front-end pretends to have the guest's memory mapped.
const FRONTEND_BASE: u64 = 0x7f00_0000_0000;

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

/// A front-end that is rust-vmm's, with guest memory and eventfds.
struct Guest {
    frontend: Frontend,
    memory: OwnedFd,
    calls: Vec<EventFd>,
}

impl Guest {
    /// A front-end on an established connection, before it has said anything.
    fn on(stream: UnixStream) -> Guest {
        let memory = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::fs::ftruncate(&memory, MEMORY as u64).expect("memory");
        Guest {
            frontend: Frontend::from_stream(stream, 256),
            memory,
            calls: Vec::new(),
        }
    }

    fn connect(path: &Path) -> Guest {
        Guest::on(UnixStream::connect(path).expect("a port that listens"))
    }

    /// With `pairs` queue pairs that run, the port says.
    fn up(mut self, port: &TestPort, pairs: usize) -> Guest {
        self.start(pairs).expect("negotiation");
        eventually("connected", || port.connected());
        self
    }

    /// All of the guest's memory.
    fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: FRONTEND_BASE,
            mmap_offset: 0,
            mmap_handle: self.memory.as_raw_fd(),
        }
    }

    /// Says everything, in the order of rust-vmm's own users, up to `pairs` enabled queue pairs.
    fn start(&mut self, pairs: usize) -> vhost::Result<()> {
        self.negotiate()?;
        self.frontend.set_mem_table(&[self.region()])?;
        (0..2 * pairs).try_for_each(|index| self.start_ring(index))?;
        // An answer says that all before it was carried out.
        self.frontend.get_features().map(drop)
    }

    fn negotiate(&mut self) -> vhost::Result<()> {
        self.frontend.set_owner()?;
        let features = self.frontend.get_features()?;
        let wanted = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | 1 << 32 | 1 << 15;
        assert_eq!(features & wanted, wanted, "offered: {features:#x}");
        let protocol = self.frontend.get_protocol_features()?;
        let wanted_protocol = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        self.frontend.set_protocol_features(protocol & wanted_protocol)?;
        assert_eq!(self.frontend.get_queue_num()?, 128);
        self.frontend.set_features(wanted)
    }

    /// Where the rings are, and whether writes to them are logged.
    fn set_vring_addr(&self, index: usize, logged: bool) -> vhost::Result<()> {
        let ring = index as u64 * RING_STRIDE;
        let config = VringConfigData {
            queue_max_size: RING_SIZE,
            queue_size: RING_SIZE,
            flags: u32::from(logged),
            desc_table_addr: FRONTEND_BASE + ring,
            avail_ring_addr: FRONTEND_BASE + ring + 0x1000,
            used_ring_addr: FRONTEND_BASE + ring + 0x2000,
            log_addr: logged.then_some(ring + 0x2000),
        };
        self.frontend.set_vring_addr(index, &config)
    }

    fn write(&self, addr: u64, bytes: &[u8]) {
        assert_eq!(
            rustix::io::pwrite(&self.memory, bytes, addr).unwrap(),
            bytes.len()
        );
    }

    fn u16(&self, addr: u64) -> u16 {
        let mut bytes = [0; 2];
        rustix::io::pread(&self.memory, &mut bytes, addr).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// Frames that went through a ring.
    fn used(&self, ring: usize) -> u16 {
        self.u16(ring as u64 * RING_STRIDE + 0x2002)
    }

    /// Makes a buffer of 2048 bytes available, as descriptor 0, that the device writes or reads.
    fn give(&self, ring: usize, addr: u64, write: bool) {
        let base = ring as u64 * RING_STRIDE;
        let flags = if write { 2_u64 } else { 0 };
        self.write(base, &[addr, 2048 | flags << 32].map(u64::to_le_bytes).concat());
        let idx = self.u16(base + 0x1002);
        self.write(base + 0x1004 + 2 * u64::from(idx % RING_SIZE), &[0; 2]);
        self.write(base + 0x1002, &(idx + 1).to_le_bytes());
    }

    fn start_ring(&mut self, index: usize) -> vhost::Result<()> {
        let call = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
        let kick = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
        self.frontend.set_vring_num(index, RING_SIZE)?;
        self.frontend.set_vring_base(index, self.used(index))?;
        self.set_vring_addr(index, false)?;
        self.frontend.set_vring_call(index, &call)?;
        self.frontend.set_vring_kick(index, &kick)?;
        self.frontend.set_vring_enable(index, true)?;
        self.calls.push(call);
        Ok(())
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
    assert_eq!(names.len(), 6 + 4 * 17 + 4);
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
fn a_port_describes_its_front_end_while_it_has_one_and_its_past_always() {
    let (port, path) = server("describes");
    let alone = port.describe();
    assert_eq!(alone["mode"], "server");
    assert_eq!(alone["status"], "disconnected");
    assert_eq!(alone["socket"], path.to_str().unwrap());
    assert!(alone.get("front-end").is_none() && alone.get("vrings").is_none());

    let guest = Guest::connect(&path).up(&port, 1);
    receive(&port, &guest, 0x10_0000);
    let there = port.describe();
    assert_eq!(there["status"], "connected");
    assert_eq!(there["front-end"]["pid"], std::process::id());
    assert!(there["front-end"]["command"]
        .as_str()
        .is_some_and(|name| !name.is_empty()));
    let acknowledged = &there["features"]["names"];
    let is_named = |list: &serde_json::Value, name: &str| list.as_array().unwrap().iter().any(|n| n == name);
    assert!(is_named(acknowledged, "VIRTIO_F_VERSION_1"), "{acknowledged}");
    let left = &there["features"]["left"];
    assert!(is_named(left, "VIRTIO_F_RING_PACKED") && !is_named(left, "VIRTIO_F_VERSION_1"));
    assert!(is_named(&there["protocol-features"]["names"], "REPLY_ACK"));
    let region = json!({
        "guest-address": "0x0",
        "size": MEMORY,
        "front-end-address": format!("{FRONTEND_BASE:#x}"),
    });
    assert_eq!(there["memory"], json!([region]));
    let vring = json!({
        "index": 0,
        "direction": "to the guest",
        "layout": "split",
        "size": RING_SIZE,
        "enabled": true,
        "running": true,
        "next": 1,
    });
    assert_eq!(there["vrings"][0], vring);
    assert_eq!(there["vrings"].as_array().map(Vec::len), Some(2));

    drop(guest);
    eventually("gone", || port.describe().get("front-end").is_none());
    let events = port.describe_events();
    let texts: Vec<&str> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["text"].as_str().unwrap())
        .collect();
    let place = |what: &str| texts.iter().position(|text| text.contains(what));
    let (ready, closed) = (place("virtio is now ready"), place("vhost peer closed"));
    assert!(ready.is_some() && ready < closed, "{texts:?}");
}

#[test]
fn a_broken_ring_is_described_with_its_reason() {
    let (port, path) = server("broken");
    let guest = Guest::connect(&path).up(&port, 1);
    guest.write(0x1002, &0x7fff_u16.to_le_bytes());
    port.send(0, &[TxSlot::new(&[0x5a; 100])]);
    let error = port.describe()["vrings"][0]["error"].clone();
    assert!(
        error.as_str().is_some_and(|text| text.contains("avail")),
        "{error}"
    );
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

/// Sends the guest one frame, for which it gives a buffer at `addr`.
fn receive(port: &TestPort, guest: &Guest, addr: u64) {
    guest.give(0, addr, true);
    let before = guest.used(0);
    port.send(0, &[TxSlot::new(&[0x5a; 100])]);
    assert_eq!(guest.used(0), before + 1, "it arrived");
}

/// A dirty log that begins 64 bytes into its file.
fn dirty_log() -> OwnedFd {
    let log = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&log, 64 + MEMORY as u64 / 4096 / 8).expect("memory");
    log
}

/// The pages in a log, which are taken out of it.
fn taken(log: &OwnedFd) -> Vec<usize> {
    let mut bytes = [0; 64 + MEMORY / 4096 / 8];
    rustix::io::pread(log, &mut bytes, 0).unwrap();
    rustix::io::pwrite(log, &[0; 64 + MEMORY / 4096 / 8], 0).unwrap();
    assert!(bytes[..64].iter().all(|byte| *byte == 0), "before its offset");
    let set = |bit: &usize| bytes[64 + bit / 8] >> (bit % 8) & 1 == 1;
    (0..MEMORY / 4096).filter(set).collect()
}

#[test]
fn a_migration_begins_and_ends_under_running_rings() {
    let (port, path) = server("migrates");
    let guest = Guest::connect(&path).up(&port, 1);
    receive(&port, &guest, 0x10_0000);

    // In QEMU's order: the log, the feature, the rings' addresses.
    let (log, event) = (dirty_log(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let region = VhostUserDirtyLogRegion {
        mmap_size: MEMORY as u64 / 4096 / 8,
        mmap_offset: 64,
        mmap_handle: log.as_raw_fd(),
    };
    guest.frontend.set_log_base(0, Some(region)).expect("an answer");
    guest.frontend.set_log_fd(event.as_raw_fd()).expect("log fd");
    let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | 1 << 32 | 1 << 15;
    guest
        .frontend
        .set_features(features | 1 << 26)
        .expect("VHOST_F_LOG_ALL");
    (0..2)
        .try_for_each(|ring| guest.set_vring_addr(ring, true))
        .expect("addresses");
    guest.frontend.get_features().expect("all is carried out");
    assert!(port.connected());
    assert_eq!(taken(&log), [0; 0], "nothing is written by beginning");

    receive(&port, &guest, 0x10_0800);
    assert_eq!(taken(&log), [0x2, 0x100], "used ring and buffer");
    assert_eq!(event.read().expect("signalled"), 1);
    receive(&port, &guest, 0x10_1fc0);
    assert_eq!(taken(&log), [0x2, 0x101, 0x102], "a frame across two pages");

    // And in the end.
    guest.frontend.set_features(features).expect("without");
    (0..2)
        .try_for_each(|ring| guest.set_vring_addr(ring, false))
        .expect("addresses");
    guest.frontend.get_features().expect("all is carried out");
    receive(&port, &guest, 0x10_3000);
    assert_eq!(taken(&log), [0; 0], "it is over");
    assert_eq!(
        guest.frontend.get_vring_base(0).expect("an index"),
        4,
        "no frame was lost or sent twice"
    );
}

#[test]
fn no_other_feature_changes_under_running_rings() {
    let (port, path) = server("features");
    let guest = Guest::connect(&path).up(&port, 1);
    guest.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | 1 << 32 | 1 << 15;
    assert!(guest.frontend.set_features(features & !(1 << 15)).is_err());
    assert!(guest
        .frontend
        .set_features(features & !(1 << 15) | 1 << 26)
        .is_err());
    guest
        .frontend
        .set_features(features | 1 << 26)
        .expect("LOG_ALL alone");
    assert!(port.connected());
}

#[test]
fn a_log_that_its_file_does_not_hold_ends_the_connection() {
    let (port, path) = server("short-log");
    let guest = Guest::connect(&path).up(&port, 1);
    let log = dirty_log();
    let region = VhostUserDirtyLogRegion {
        mmap_size: 1 << 20,
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    assert!(guest.frontend.set_log_base(0, Some(region)).is_err());
    eventually("disconnected", || !port.connected());
}

#[test]
fn a_front_end_that_cuts_its_memory_short_loses_its_connection_and_nobody_else_notices() {
    let ((port, path), (beside, path_beside)) = (server("cut-short"), server("beside"));
    let guest = Guest::connect(&path).up(&port, 1);
    let neighbour = Guest::connect(&path_beside).up(&beside, 1);
    receive(&port, &guest, 0x10_0000);

    rustix::fs::ftruncate(&guest.memory, 0).expect("nobody sealed it");
    // Both bursts touch what is gone.
    port.send(0, &[TxSlot::new(&[0x5a; 100])]);
    port.burst(0);
    eventually("disconnected", || !port.connected());
    receive(&beside, &neighbour, 0x10_0000);

    // Its next front-end finds it as if nothing had been.
    let next = Guest::connect(&path).up(&port, 1);
    receive(&port, &next, 0x10_0000);
    assert!(beside.connected());
}

#[test]
fn a_front_end_that_cuts_the_buffer_of_a_frame_out_of_its_memory_does_not_get_it_back() {
    let (port, path) = server("cut-buffer");
    let guest = Guest::connect(&path).up(&port, 1);
    guest.give(0, 0x10_0000, true);
    // The rings stay, the buffer goes.
    rustix::fs::ftruncate(&guest.memory, 0x8_0000).expect("nobody sealed it");
    port.send(0, &[TxSlot::new(&[0x5a; 100])]);
    eventually("disconnected", || !port.connected());
    assert_eq!(guest.used(0), 0, "what is written after the loss stays here");
}

#[test]
fn a_front_end_that_cuts_its_dirty_log_short_loses_its_connection() {
    let (port, path) = server("cut-log");
    let guest = Guest::connect(&path).up(&port, 1);
    let log = dirty_log();
    let region = VhostUserDirtyLogRegion {
        mmap_size: MEMORY as u64 / 4096 / 8,
        mmap_offset: 64,
        mmap_handle: log.as_raw_fd(),
    };
    guest.frontend.set_log_base(0, Some(region)).expect("an answer");
    let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | 1 << 32 | 1 << 15;
    guest
        .frontend
        .set_features(features | 1 << 26)
        .expect("VHOST_F_LOG_ALL");
    (0..2)
        .try_for_each(|ring| guest.set_vring_addr(ring, true))
        .expect("addresses");
    guest.frontend.get_features().expect("all is carried out");
    rustix::fs::ftruncate(&log, 0).expect("nobody sealed it");
    receive(&port, &guest, 0x10_0000);
    eventually("disconnected", || !port.connected());
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

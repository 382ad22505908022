//! What options make of a port: who may connect to it, and what it offers.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use ovs_vhost::datapath::{Offload, TxSlot};
use ovs_vhost::port::{Environment, Mode, Settings, Switches};
use ovs_vhost::virtio::features::{
    Features, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED, VIRTIO_NET_F_MRG_RXBUF,
};
use vhost::VhostBackend;

use super::common::{eventually, settings, TestPort};
use super::guest::Guest;
use super::{server, World};

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().expect("a socket").mode() & 0o7777
}

#[test]
fn nobody_connects_to_a_port_before_its_options_are_known() {
    let name = format!("closed-{}", std::process::id());
    let path = std::env::temp_dir().join(&name);
    let port = TestPort::new(&name, Mode::Server, Switches::default());
    let refused = UnixStream::connect(&path).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    port.set_config(&[("vhost-sock-mode", "0600")]);
    assert_eq!(mode(&path), 0o600);
    let _guest = Guest::connect(&path).up(&port, 1);
}

#[test]
fn a_sockets_permissions_follow_its_options() {
    let (port, path) = server("permissions");
    let born = mode(&path);
    port.set_config(&[("vhost-sock-mode", "0640")]);
    assert_eq!(mode(&path), 0o640);
    let shown = &port.describe()["socket-file"];
    assert_eq!(shown["mode"], "0640");
    assert_eq!(shown["owner"], path.symlink_metadata().unwrap().uid());
    // What another did to the file meanwhile is let be while the options stay.
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    port.set_config(&[("vhost-sock-mode", "0640")]);
    assert_eq!(mode(&path), 0o666);
    port.set_config(&[]);
    assert_eq!(mode(&path), born);
}

/// How often a front-end was refused for its user.
fn refused(port: &TestPort) -> u64 {
    let mut count = 0;
    port.custom_stats(&mut |name, value| {
        if name == "ovs_vhost_refused_front_ends" {
            count = value;
        }
    });
    count
}

#[test]
fn a_front_end_of_a_user_that_is_not_listed_is_hung_up_on_and_counted() {
    let (port, path) = server("users");
    let me = rustix::process::getuid().as_raw();
    port.set_config(&[("vhost-allowed-uids", &format!("{},{}", me + 1, me + 2))]);
    assert_eq!(
        port.describe()["allowed-uids"],
        serde_json::json!([me + 1, me + 2])
    );
    for knocks in 1..=2 {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(stream.read(&mut [0]).expect("end of stream"), 0, "hung up on");
        assert_eq!(refused(&port), knocks);
    }
    let events = port.describe_events().to_string();
    let line = format!(
        "refused a front-end of user {me} (process {})",
        std::process::id()
    );
    assert!(events.contains(&line), "{events}");

    port.set_config(&[("vhost-allowed-uids", &format!("{me}"))]);
    let _guest = Guest::connect(&path).up(&port, 1);
    assert_eq!(refused(&port), 2);
}

/// What a fresh front-end is offered.
fn offered(guest: &Guest) -> Features {
    guest.frontend.set_owner().expect("owner");
    Features(guest.frontend.get_features().expect("features"))
}

#[test]
fn a_port_offers_no_more_than_its_options_allow_from_the_next_connection_on() {
    let (port, path) = server("pinned");
    let first = Guest::connect(&path);
    let all = offered(&first);
    port.set_config(&[
        ("vhost-features", "0x140008000"),
        ("vhost-disable-features", "VIRTIO_NET_F_MRG_RXBUF,INFLIGHT_SHMFD"),
    ]);
    assert_eq!(offered(&first), all, "a connection keeps its offer");
    let kept_back = port.describe()["kept-back"].to_string();
    for name in ["VIRTIO_F_RING_PACKED", "VIRTIO_NET_F_MRG_RXBUF", "INFLIGHT_SHMFD"] {
        assert!(kept_back.contains(&format!("\"{name}\"")), "{kept_back}");
    }
    drop(first);
    let mut second = Guest::connect(&path);
    assert_eq!(
        offered(&second),
        Features(0x140008000).without(VIRTIO_NET_F_MRG_RXBUF)
    );
    second.frontend.set_features(1 << 30).expect("features");
    let protocol = vhost::vhost_user::VhostUserFrontend::get_protocol_features(&mut second.frontend);
    let protocol = protocol.expect("protocol features").bits();
    assert_eq!((protocol >> 12 & 1, protocol >> 3 & 1), (0, 1));

    port.set_config(&[]);
    drop(second);
    assert_eq!(offered(&Guest::connect(&path)), all);
    assert!(port.describe().get("kept-back").is_none());
}

#[test]
fn a_guest_that_runs_with_what_is_kept_back_is_named_until_one_comes_to_terms_with_it() {
    let (port, path) = server("odds");
    let error = || port.status("error").unwrap_or_default();
    // It takes packed rings and runs.
    let mut guest = Guest::connect(&path);
    guest.negotiate().expect("negotiation");
    let packed = 1 << 30 | 1 << 32 | 1 << 15 | VIRTIO_F_RING_PACKED.0;
    guest.frontend.set_features(packed).expect("features");
    guest.frontend.set_mem_table(&[guest.region()]).expect("memory");
    (0..2)
        .try_for_each(|index| guest.start_ring(index))
        .expect("rings");
    eventually("connected", || port.connected());
    port.set_config(&[("vhost-disable-features", "VIRTIO_F_RING_PACKED")]);
    assert!(port.connected() && error().is_empty(), "it goes on");
    drop(guest);
    eventually("disconnected", || !port.connected());

    // As QEMU does: looks, and leaves. Then one that takes what it had all the same.
    let looks = Guest::connect(&path);
    assert!(!offered(&looks).contains(VIRTIO_F_RING_PACKED));
    drop(looks);
    let reason = "its guest runs with VIRTIO_F_RING_PACKED, kept back by the port's options";
    eventually("a reason", || error().contains(reason));
    let insists = Guest::connect(&path);
    offered(&insists);
    assert!(
        error().contains(reason),
        "it is not forgotten before it is settled"
    );
    insists.frontend.set_features(packed).expect("sent");
    eventually("another reason", || {
        error().starts_with("the guest runs with VIRTIO_F_RING_PACKED")
    });
    drop(insists);

    let _guest = Guest::connect(&path).up(&port, 1);
    assert_eq!(error(), "");
}

#[test]
fn a_front_end_that_leaves_is_no_news_where_nothing_is_kept_back() {
    let (port, path) = server("leaves");
    let guest = Guest::connect(&path);
    offered(&guest);
    drop(guest);
    let _guest = Guest::connect(&path).up(&port, 1);
    assert_eq!(port.status("error"), None);
}

#[test]
fn one_port_may_have_an_iommu_where_others_have_none() {
    let world = World::new();
    let path = world.path("iommu");
    let listener = UnixListener::bind(&path).unwrap();
    let port = super::client("iommu");
    let path = path.to_str().unwrap();
    port.set_config(&[("vhost-server-path", path), ("vhost-iommu", "true")]);
    let guest = Guest::on(listener.accept().unwrap().0);
    assert!(offered(&guest).contains(VIRTIO_F_ACCESS_PLATFORM));
    port.set_config(&[("vhost-server-path", path)]);
    drop(guest);
    let guest = Guest::on(listener.accept().unwrap().0);
    assert!(!offered(&guest).contains(VIRTIO_F_ACCESS_PLATFORM));
}

/// What all ports have that say nothing themselves, and what a port's own word is worth.
#[test]
fn what_other_config_says_holds_for_ports_that_say_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let all = Settings {
        other_config: &[("vhost-sock-mode", "0640"), ("vhost-allowed-uids", "4294967294")],
        ..settings(Switches::default(), directory.path())
    };
    let environment = Environment::new(&all, || ()).expect("a control thread");
    let port = TestPort::of(&environment, "all", Mode::Server);
    port.set_config(&[]);
    let path = directory.path().join("all");
    assert_eq!(mode(&path), 0o640);
    let mut stream = UnixStream::connect(&path).unwrap();
    assert_eq!(stream.read(&mut [0]).expect("end of stream"), 0, "hung up on");
    let me = rustix::process::getuid().as_raw().to_string();
    port.set_config(&[("vhost-sock-mode", "0600"), ("vhost-allowed-uids", &me)]);
    assert_eq!(mode(&path), 0o600);
    let _guest = Guest::connect(&path).up(&port, 1);
}

/// A TCP segment whose checksum is left to whoever sends it on the wire, and where that goes.
fn unfinished() -> (Vec<u8>, Offload) {
    const HEADERS: [u8; 54] = {
        let mut bytes = [0; 54];
        (bytes[12], bytes[14], bytes[17], bytes[23], bytes[46]) = (0x08, 0x45, 40, 6, 0x50);
        bytes
    };
    let offload = Offload {
        flags: 1,
        csum_start: 34,
        csum_offset: 16,
        ..Offload::default()
    };
    (HEADERS.to_vec(), offload)
}

#[test]
fn a_port_without_tso_gives_frames_as_they_go_on_the_wire_to_a_guest_that_would_take_more() {
    const GUEST_CSUM: u64 = 1 << 1;
    let world = World::new();
    let on = Switches {
        tso: true,
        ..Switches::default()
    };
    let rundir = std::env::temp_dir();
    let environment = Environment::new(&settings(on, &rundir), || ()).expect("a control thread");
    for (name, tso) in [("with", "true"), ("without", "false")] {
        let path = world.path(name);
        let listener = UnixListener::bind(&path).unwrap();
        let port = TestPort::of(&environment, name, Mode::Client);
        port.set_config(&[("vhost-server-path", path.to_str().unwrap()), ("vhost-tso", tso)]);
        let mut guest = Guest::on(listener.accept().unwrap().0);
        let takes = offered(&guest).contains(Features(1 << 11));
        assert_eq!(takes.to_string(), tso, "HOST_TSO4");
        guest
            .frontend
            .set_features(GUEST_CSUM | 1 << 30 | 1 << 32 | 1 << 15)
            .expect("features");
        guest.frontend.set_mem_table(&[guest.region()]).expect("memory");
        (0..2)
            .try_for_each(|index| guest.start_ring(index))
            .expect("rings");
        eventually("connected", || port.connected());
        guest.give(0, 0x10_0000, true);
        let (frame, offload) = unfinished();
        port.send(0, &[TxSlot::with_offload(&frame, offload)]);
        assert_eq!(guest.used(0), 1);
        let needs_checksum = guest.u16(0x10_0000) & 1 == 1;
        let checksum = guest.u16(0x10_0000 + 12 + 34 + 16);
        assert_eq!(
            (needs_checksum.to_string().as_str(), checksum == 0),
            (tso, tso == "true")
        );
    }
}

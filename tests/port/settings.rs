//! What options make of a port: who may connect to it.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ovs_vhost::port::{Environment, Mode, Settings, Switches};

use super::common::{settings, TestPort};
use super::guest::Guest;
use super::server;

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

//! Somebody looks at a port's packets: what the port hands over, over several front-ends, and what it refuses.

use super::common::{eventually, TestPort};
use super::guest::{receive, Guest};
use super::server;

const BUFFER: u64 = 0x10_0000;

/// One frame each way, of a guest that comes and goes.
fn visit(port: &TestPort, path: &std::path::Path) {
    let guest = Guest::connect(path).up(port, 1);
    receive(port, &guest, BUFFER);
    guest.give(1, BUFFER + 0x1000, false);
    assert_eq!(port.burst(0).len(), 1);
    drop(guest);
    eventually("disconnected", || !port.connected());
}

#[test]
fn a_capture_begins_without_a_front_end_and_outlives_each() {
    let (port, path) = server("captured");
    let dir = tempfile::tempdir().expect("a directory");
    let tap = |words: &[&str]| port.tap(words, dir.path());
    visit(&port, &path);
    tap(&["pcap", "start", "file", "snaplen=200"]).expect("a capture");
    visit(&port, &path);
    visit(&port, &path);
    let told = tap(&["pcap", "stop"]).expect("a capture that ran");
    let capture = &told["capture"];
    assert_eq!((&capture["passed"], &capture["written"]), (&4.into(), &4.into()));
    visit(&port, &path);
    assert_eq!(tap(&["pcap", "show"]).unwrap(), told, "it is over");
    let bytes = std::fs::read(dir.path().join("file")).expect("a file");
    let sent = bytes.windows(100).filter(|bytes| *bytes == [0x5a; 100]);
    assert_eq!(sent.count(), 2, "frames to the guest");
}

#[test]
fn a_log_has_the_bursts_of_both_directions() {
    let (port, path) = server("traced");
    let tap = |words: &[&str]| port.tap(words, std::path::Path::new("/nowhere"));
    tap(&["trace", "start"]).expect("a log");
    visit(&port, &path);
    let told = tap(&["trace", "stop"]).expect("a log that was kept");
    let bursts = told["bursts"].as_array().expect("bursts");
    let told: Vec<_> = bursts
        .iter()
        .map(|burst| {
            let number = |key: &str| burst[key].as_u64().expect("a number");
            (
                burst["direction"].as_str(),
                number("asked"),
                number("moved"),
                number("after"),
            )
        })
        .collect();
    assert_eq!(told, [(Some("out"), 1, 1, 1), (Some("in"), 32, 1, 1)]);
    assert_eq!(bursts[1]["ended"], "the guest sent no more");
}

#[test]
fn nonsense_is_refused_and_leaves_nothing_behind() {
    let (port, _path) = server("nonsense");
    let dir = tempfile::tempdir().expect("a directory");
    let rows = [
        (&["pcap", "stop"][..], "it is not being captured"),
        (&["trace", "stop"], "its bursts are not traced"),
        (&["pcap", "show", "more"], "what is 'more'?"),
        (&["pcap", "start", "a", "b"], "what is 'b'?"),
        (&["trace", "start", "file"], "what is 'file'?"),
        (&["pcap", "start", "../file"], "'..' is not allowed"),
        (&["trace", "start", "packets=1"], "there is no option packets"),
        (&["listen", "start"], "no way to look"),
    ];
    for (words, complaint) in rows {
        let refusal = port.tap(words, dir.path()).expect_err("a refusal");
        assert!(refusal.contains(complaint), "{words:?}: {refusal}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 0);
    assert!(port.tap(&["pcap", "show"], dir.path()).expect("an answer")["capture"].is_null());
}

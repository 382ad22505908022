//! What people are told of rings and waits, and that asking costs nothing: `vhost-user/stats`, `latency`, `ring-dump`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ovs_vhost::model::{Driver, PackedDriver, Virtqueue, FRONTEND_OFFSET};
use ovs_vhost::port::Topic;
use serde_json::{json, Value};
use vhost::VhostBackend;

use crate::{common::TestPort, eventually, frames, server, Guest, PACKED, SIZE, SPLIT};

fn guest<D: Virtqueue>(port: &TestPort, features: ovs_vhost::virtio::features::Features) -> Guest<D> {
    let mut guest = Guest::new(port, 1, features);
    guest.run(port, crate::fresh(features));
    guest
}

/// The only vring in the dump of vring `index`.
fn vring(port: &TestPort, index: usize) -> Value {
    let tree = port.dump_rings(Some(&index.to_string())).expect("a vring");
    let [vring] = &tree["vrings"].as_array().expect("vrings")[..] else {
        panic!("not one vring: {tree}");
    };
    assert_eq!(vring["index"], index);
    vring.clone()
}

#[test]
fn a_dump_shows_what_driver_and_device_have_said_of_a_split_ring() {
    let port = server("dump-split");
    let mut guest = guest::<Driver>(&port, SPLIT);
    guest.transmit(1, &frames(0, 3));
    let there = vring(&port, 1);
    assert_eq!((&there["next"], &there["in-flight"]), (&json!(0), &json!(3)));
    assert_eq!(
        (&there["avail"]["index"], &there["used"]["index"]),
        (&json!(3), &json!(0))
    );
    assert_eq!(there["used"]["flags"], 1, "it is polled: no kicks");
    let descriptors = there["descriptors"].as_array().expect("descriptors");
    assert_eq!(descriptors.len(), 3);
    assert_eq!(
        (&descriptors[2]["avail"], &descriptors[2]["length"]),
        (&json!(2), &json!(72))
    );
    assert_eq!(descriptors[0]["flags"], "");
    let desc = guest.rings[1].driver.config(1).desc.0 - FRONTEND_OFFSET;
    assert_eq!(
        there["addresses"]["descriptors"],
        format!("{desc:#x}"),
        "the guest's address"
    );

    assert_eq!(port.receive(0).len(), 3);
    let then = vring(&port, 1);
    assert_eq!((&then["next"], &then["in-flight"]), (&json!(3), &json!(0)));
    assert_eq!(
        (&then["used"]["index"], &then["descriptors"]),
        (&json!(3), &json!([]))
    );
    let text = ovs_vhost::port::indented(&port.dump_rings(None).expect("all"));
    assert_eq!(
        text.lines().filter(|line| line.contains("index: ")).count(),
        2,
        "{text}"
    );
}

#[test]
fn a_dump_shows_what_driver_and_device_have_said_of_a_packed_ring() {
    let port = server("dump-packed");
    let mut guest = guest::<PackedDriver>(&port, PACKED);
    guest.transmit(1, &frames(0, 2));
    let there = vring(&port, 1);
    assert_eq!((&there["next"], &there["wrap"]), (&json!(0), &json!(true)));
    assert_eq!(there["in-flight"], 2);
    assert_eq!(there["device-event"]["flags"], 1, "it is polled: no kicks");
    let descriptors = there["descriptors"].as_array().expect("descriptors");
    assert_eq!(
        (descriptors.len(), &descriptors[0]["flags"]),
        (3, &json!("AVAIL"))
    );
    assert_eq!(port.receive(0).len(), 2);
    assert_eq!(
        (&vring(&port, 1)["next"], &vring(&port, 1)["in-flight"]),
        (&json!(2), &json!(0))
    );
}

#[test]
fn a_dump_is_of_a_vring_that_is_there_or_says_that_it_is_not() {
    let port = server("dump-none");
    let refused = |word| port.dump_rings(Some(word)).expect_err("no such vring");
    assert_eq!(port.dump_rings(None).expect("a port")["vrings"], json!([]));
    assert!(refused("0").contains("no vring 0"));
    let guest = guest::<Driver>(&port, SPLIT);
    assert!(refused("2").contains("it has 2"));
    assert!(refused("-1").contains("is no vring's number"));
    // A ring that is stopped has no place to look at.
    guest.frontend.get_vring_base(1).expect("it stops");
    eventually("it is told", || vring(&port, 1)["running"] == false);
    let stopped = vring(&port, 1);
    assert!(
        stopped.get("avail").is_none() && stopped.get("not-seen").is_none(),
        "{stopped}"
    );
}

#[test]
fn asking_again_and_again_loses_no_packet() {
    let port = server("asked");
    let mut guest = guest::<Driver>(&port, SPLIT);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for topic in [
                    Topic::Show,
                    Topic::Events,
                    Topic::Stats,
                    Topic::Latency,
                    Topic::Rings,
                ] {
                    port.tell(topic, None).expect("an answer");
                }
                port.measure_latency(true);
                port.reset_stats();
                port.measure_latency(false);
            }
        });
        for round in (0..200).cycle().take(2000) {
            let sent = frames(round, 4);
            guest.transmit(1, &sent);
            let mut received = Vec::new();
            // While somebody asks, a poll may find nothing. The next one does.
            eventually("all of them", || {
                received.extend(port.receive(0));
                received.len() == 4
            });
            assert_eq!((received, guest.reap(1)), (sent.clone(), 4));
            guest.rings[0].supply(4);
            guest.rings[0].driver.publish();
            port.deliver(0, &sent);
            assert_eq!(
                std::iter::from_fn(|| guest.rings[0].receive()).count(),
                4,
                "round {round}"
            );
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(port.stats().tx_dropped, 0);
}

#[test]
fn a_poll_thread_is_told_by_its_name() {
    let port = server("polled-by");
    let guest = guest::<Driver>(&port, SPLIT);
    let name = std::fs::read_to_string("/proc/thread-self/comm").expect("a name");
    port.receive(0);
    assert_eq!(port.describe()["vrings"][1]["polled-by"], name.trim_end());
    // It was asked anew just now, and another one polls.
    std::thread::scope(|scope| {
        let other = std::thread::Builder::new().name("another".into());
        other
            .spawn_scoped(scope, || port.receive(0))
            .expect("a thread")
            .join()
            .expect("no panic");
        // The thread is gone, so nobody knows its name.
        assert_eq!(port.describe()["vrings"][1]["polled-by"], Value::Null);
    });
    assert!(port.describe()["vrings"][0].get("polled-by").is_none());
    drop(guest);
}

#[test]
fn stats_begin_anew_where_somebody_wants_that_and_counters_do_not() {
    let port = server("stats");
    let mut guest = guest::<Driver>(&port, SPLIT);
    port.deliver(0, &frames(0, 3));
    guest.transmit(1, &frames(0, 2));
    port.receive(0);
    let seen = port.describe_stats();
    assert_eq!(seen["from-the-guest"]["packets"], 2);
    let to_guest = &seen["to-the-guest"];
    assert_eq!(
        (&to_guest["dropped"], &to_guest["drops"]["ring-full"]),
        (&json!(3), &json!(3))
    );
    assert_eq!(seen["vrings"][0]["ring-full"], 3);
    let dropped = port.stats().tx_dropped;

    port.reset_stats();
    let seen = port.describe_stats();
    assert_eq!(seen["from-the-guest"]["packets"], 0);
    assert_eq!(
        (&seen["to-the-guest"]["dropped"], &seen["vrings"][0]["ring-full"]),
        (&json!(0), &json!(0))
    );
    port.deliver(0, &frames(0, 1));
    let to_guest = &port.describe_stats()["to-the-guest"];
    assert_eq!(
        (&to_guest["dropped"], &to_guest["drops"]["ring-full"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(port.stats().tx_dropped, dropped + 1);
    assert_eq!(port.counter("ovs_vhost_tx_ring_full_drops"), 4);
}

#[test]
fn a_stall_lasts_until_a_packet_gets_through_or_the_ring_stops() {
    let port = server("stall");
    let mut guest = guest::<Driver>(&port, SPLIT);
    let to_guest = || port.describe_stats()["vrings"][0].clone();
    let lasts = |row: &Value| row.get("stalled-now-for-ms").is_some();
    assert!(!lasts(&to_guest()));
    port.deliver(0, &frames(0, 1));
    port.deliver(0, &frames(0, 1));
    assert!(lasts(&to_guest()) && to_guest()["stalls"] == 0);
    std::thread::sleep(Duration::from_millis(5));
    guest.rings[0].supply(1);
    guest.rings[0].driver.publish();
    port.deliver(0, &frames(0, 1));
    let row = to_guest();
    assert!(!lasts(&row) && row["stalls"] == 1, "{row}");
    assert!(row["longest-stall-ms"].as_f64() >= Some(5.0), "{row}");
    assert_eq!(row["stalled-ms"], row["longest-stall-ms"]);

    // A packet gets through and the next one does not: that is the next stall.
    guest.rings[0].supply(1);
    guest.rings[0].driver.publish();
    port.deliver(0, &frames(0, 2));
    assert!(lasts(&to_guest()) && to_guest()["stalls"] == 1);
    guest.frontend.get_vring_base(0).expect("it stops");
    let row = to_guest();
    assert!(!lasts(&row) && row["stalls"] == 2, "{row}");
    port.reset_stats();
    assert_eq!(
        (&to_guest()["stalls"], &to_guest()["longest-stall-ms"]),
        (&json!(0), &json!(0.0))
    );
}

#[test]
fn latency_is_measured_from_on_to_off() {
    let port = server("latency");
    let mut guest = guest::<Driver>(&port, SPLIT);
    assert!(port.tell(Topic::Latency, Some("sideways")).is_err());
    let tell = |word| port.tell(Topic::Latency, word).expect("an answer");
    let before = tell(None);
    assert_eq!(
        (&before["measuring"], &before["connects"]["count"]),
        (&json!(false), &json!(1))
    );
    assert!(before.get("polls").is_none());

    assert_eq!(tell(Some("on"))["polls"], json!([]));
    (0..5).for_each(|_| assert!(port.receive(0).is_empty()));
    port.deliver(0, &frames(0, 1));
    guest.rings[0].supply(SIZE.into());
    guest.rings[0].driver.publish();
    port.deliver(0, &frames(0, 1));
    let seen = tell(Some("off"));
    let polls = &seen["polls"][0];
    assert_eq!(
        (&polls["vring"], &polls["count"]),
        (&json!(1), &json!(4)),
        "gaps between five polls"
    );
    let micros = |key: &str| polls[key].as_f64().expect("a number");
    assert!(micros("p50-us") <= micros("p99-us") && micros("p99-us") <= micros("longest-us"));
    let stalls = &seen["stalls"][0];
    assert_eq!((&stalls["vring"], &stalls["count"]), (&json!(0), &json!(1)));

    port.receive(0);
    let after = tell(None);
    assert_eq!(
        (&after["measuring"], &after["polls"]),
        (&json!(false), &seen["polls"])
    );
    assert_eq!(tell(Some("on"))["polls"], json!([]), "anew");
}

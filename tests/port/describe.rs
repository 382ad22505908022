//! What is told of a port: who is there, how its rings are, and what happened.

use ovs_vhost::datapath::TxSlot;
use serde_json::json;

use super::common::eventually;
use super::guest::{receive, Guest, FRONTEND_BASE, MEMORY, RING_SIZE};
use super::server;

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
        "backing": "memfd",
        "page-size": 4096,
        "seals": ["seal"],
    });
    let mut memory = there["memory"].clone();
    let members = memory[0].as_object_mut().expect("a region");
    // Of which nodes, and whether of any, is the machine's business.
    assert!(members.remove("numa-nodes").is_some_and(|nodes| nodes.is_array()));
    assert_eq!(memory, json!([region]));
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

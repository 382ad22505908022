//! Every packet that does not reach the guest is in one counter of drops beside `tx_dropped`, and in no other.

use std::collections::BTreeMap;

use ovs_vhost::model::{Driver, Virtqueue};
use ovs_vhost::qos::{KiloPackets, Limits};

use crate::{common::TestPort, eventually, frames, server, Guest, SPLIT};

/// The reasons for which packets are dropped that do not begin like ours.
const STOCK: [&str; 3] = [
    "ovs_tx_mtu_exceeded_drops",
    "ovs_tx_qos_drops",
    "ovs_tx_invalid_hwol_drops",
];

/// The counters of drops on the way to the guest that are not zero.
fn reasons(port: &TestPort) -> BTreeMap<String, u64> {
    let mut reasons = BTreeMap::new();
    port.custom_stats(&mut |name, value| {
        let ours = name.starts_with("ovs_vhost_tx_") && name.ends_with("_drops");
        if (ours || STOCK.contains(&name)) && value > 0 {
            reasons.insert(name.to_owned(), value);
        }
    });
    assert_eq!(
        reasons.values().sum::<u64>(),
        port.stats().tx_dropped,
        "{reasons:?}"
    );
    reasons
}

#[test]
fn reasons_add_up_to_what_was_dropped() {
    let port = server("drops");
    let mut expected = BTreeMap::new();
    let mut send = |frames: &[Vec<u8>], reason: &str, dropped: u64| {
        port.deliver(0, frames);
        *expected.entry(reason.to_owned()).or_insert(0) += dropped;
        assert_eq!(reasons(&port), expected);
    };
    send(&frames(0, 3), "ovs_vhost_tx_not_connected_drops", 3);

    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    guest.run(&port, 0);
    send(&frames(0, 5), "ovs_vhost_tx_ring_full_drops", 5);
    send(&[vec![0; 1600]], "ovs_tx_mtu_exceeded_drops", 1);
    port.set_up(false);
    send(&frames(0, 2), "ovs_vhost_tx_admin_down_drops", 2);
    port.set_up(true);

    guest.rings[0].supply(10);
    guest.rings[0].driver.publish();
    port.set_qos("egress-policer", &[("cir", "1"), ("cbs", "100")])
        .expect("a policer");
    send(&frames(0, 4), "ovs_tx_qos_drops", 2);
    port.set_qos("", &[]).expect("no policer");
    assert_eq!(port.counter("ovs_tx_failure_drops"), 5);

    guest.rings[0].driver.set_avail_idx(0x7fff);
    send(&frames(0, 20), "ovs_vhost_tx_desc_invalid_drops", 20);
    send(&frames(0, 6), "ovs_vhost_tx_vring_broken_drops", 6);

    drop(guest);
    eventually("gone", || !port.connected());
    send(&frames(0, 1), "ovs_vhost_tx_not_connected_drops", 1);
}

#[test]
fn a_guest_with_fewer_queues_takes_nothing_from_the_sums() {
    let port = server("fewer");
    let mut guest = Guest::<Driver>::new(&port, 2, SPLIT);
    for index in 0..4 {
        guest.start(index, 0);
        guest.enable(index, true);
    }
    guest.settle();
    eventually("the first pair runs", || port.connected());
    port.reconfigure();
    port.deliver(1, &frames(0, 3));
    guest.transmit(3, &frames(0, 4));
    port.receive(1);
    let before = (port.stats(), reasons(&port));
    drop(guest);
    eventually("gone", || !port.connected());

    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    guest.run(&port, 0);
    assert_eq!(port.reconfigure().n_rxq, 1);
    assert_eq!((port.stats(), reasons(&port)), before);
}

#[test]
fn reasons_add_up_for_what_a_guest_sends() {
    let port = server("rx-drops");
    let mut guest = Guest::<Driver>::new(&port, 1, SPLIT);
    guest.run(&port, 0);
    port.set_policing(Limits {
        kpkts: KiloPackets { rate: 1, burst: 1 },
        kbits_rate: 0,
        kbits_burst: 0,
    });
    guest.transmit(1, &[vec![], vec![0; 60], vec![]]);
    port.receive(0);
    let sum = ["runt", "oversize", "invalid_offload"]
        .map(|reason| port.counter(&format!("ovs_vhost_rx_{reason}_drops")));
    assert_eq!(sum, [2, 0, 0]);
    assert_eq!(port.stats().rx_dropped, 2 + port.counter("ovs_rx_qos_drops"));
}

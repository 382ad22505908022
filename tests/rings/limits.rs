//! What becomes of packets beyond what a port lets pass, either way. The rates are so low that no test lives to see a token
//! come, so the bursts decide, whatever the machine's speed. A frame of 60 bytes counts as 46.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ovs_vhost::datapath::TxSlot;
use ovs_vhost::model::{Driver, Virtqueue};
use ovs_vhost::port::Stats;
use ovs_vhost::qos::{KiloPackets, Limits, Refusal};

use crate::{common::TestPort, frames, server, Guest, SPLIT};

const OFF: Limits = Limits {
    kbits_rate: 0,
    kbits_burst: 0,
    kpkts: KiloPackets { rate: 0, burst: 0 },
};
/// 125 bytes, then 125 more each second: two frames pass, for the next 104 ms.
const TWO_FRAMES: Limits = Limits {
    kbits_rate: 1,
    kbits_burst: 1,
    ..OFF
};
const POLICER: &str = "egress-policer";
const TRTCM: &str = "trtcm-policer";

/// Rates of one byte per second.
fn bursts<'a>(cbs: &'a str, ebs: &'a str) -> [(&'static str, &'a str); 4] {
    [("cir", "1"), ("cbs", cbs), ("eir", "1"), ("ebs", ebs)]
}

fn guest(port: &TestPort) -> Guest<Driver> {
    let mut guest = Guest::new(port, 1, SPLIT);
    guest.run(port, 0);
    guest
}

impl Guest<Driver> {
    /// What arrives of `frames`, for which the guest gives buffers.
    fn arrived(&mut self, port: &TestPort, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        self.arrived_on(port, 0, frames)
    }

    /// The same, with all of them for one queue of the port's QoS.
    fn arrived_on(&mut self, port: &TestPort, queue: u32, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        self.rings[0].supply(frames.len());
        self.rings[0].driver.publish();
        let slots: Vec<_> = frames.iter().map(|frame| TxSlot::new(frame)).collect();
        port.send_queued(0, &slots, |_| queue);
        std::iter::from_fn(|| self.rings[0].receive()).collect()
    }
}

fn tx_drops(port: &TestPort) -> [u64; 3] {
    let Stats { tx_dropped, .. } = port.stats();
    let counter = |name| port.counter(name);
    [
        tx_dropped,
        counter("ovs_tx_qos_drops"),
        counter("ovs_tx_mtu_exceeded_drops"),
    ]
}

#[test]
fn of_what_a_guest_sends_its_burst_passes_and_the_rest_is_counted() {
    let port = server("policed");
    let mut guest = guest(&port);
    port.set_policing(TWO_FRAMES);
    guest.transmit(1, &frames(0, 10));
    assert_eq!(port.receive(0), frames(0, 2));
    let stats = port.stats();
    assert_eq!((stats.rx_packets, stats.rx_dropped), (10, 8), "all were received");
    assert_eq!(port.counter("ovs_rx_qos_drops"), 8);
    assert_eq!(guest.reap(1), 10, "the guest has its buffers back");

    port.set_policing(OFF);
    guest.transmit(1, &frames(0, 10));
    assert_eq!(port.receive(0), frames(0, 10));
    assert_eq!(port.counter("ovs_rx_qos_drops"), 8);
}

#[test]
fn a_limit_on_packets_does_not_ask_how_long_they_are() {
    let port = server("kpkts");
    let mut guest = guest(&port);
    let limits = Limits {
        kpkts: KiloPackets {
            rate: 1,
            burst: u32::MAX,
        },
        ..OFF
    };
    port.set_policing(limits);
    assert_eq!(port.policing(), [None, Some((1000, 1000 * u64::from(u32::MAX)))]);
    guest.transmit(1, &frames(0, 32));
    assert_eq!(port.receive(0), frames(0, 32));
}

#[test]
fn of_what_a_guest_is_sent_the_burst_passes_in_order_and_the_rest_is_counted() {
    let port = server("shaped");
    let mut guest = guest(&port);
    port.set_qos(POLICER, &[("cir", "1"), ("cbs", "100")])
        .expect("taken");
    // More than one burst's worth.
    assert_eq!(guest.arrived(&port, &frames(0, 50)), frames(0, 2));
    assert_eq!(tx_drops(&port), [48, 48, 0]);
    // A short one fits where a long one did not.
    let short = vec![vec![1; 60], vec![2; 20]];
    assert_eq!(guest.arrived(&port, &short), short[1..]);
    assert_eq!(tx_drops(&port), [49, 49, 0]);

    port.set_qos("", &[]).expect("taken");
    assert_eq!(guest.arrived(&port, &frames(0, 50)), frames(0, 50));
    assert_eq!(tx_drops(&port), [49, 49, 0]);
}

/// Settings of a limit on packets that a guest is sent.
fn kpkts<'a>(rate: &'a str, burst: &'a str) -> [(&'static str, &'a str); 2] {
    [
        ("vhost-egress-kpkts-rate", rate),
        ("vhost-egress-kpkts-burst", burst),
    ]
}

#[test]
fn a_guest_is_sent_no_more_packets_than_its_limit_and_the_rest_is_counted() {
    let port = server("egress-kpkts");
    let mut guest = guest(&port);
    port.set_config(&kpkts("1", "1"));
    assert_eq!(port.egress_packets(), Some((1000, 1000)));
    let (start, sent) = (Instant::now(), frames(0, 30));
    let arrived: usize = (0..200).map(|_| guest.arrived(&port, &sent).len()).sum();
    // However long that took: a packet more for each millisecond.
    let most = 1001 + start.elapsed().as_millis();
    assert!(
        arrived >= 1000 && arrived as u128 <= most,
        "{arrived}, at most {most}"
    );
    let dropped = 6000 - arrived as u64;
    assert_eq!(tx_drops(&port), [dropped, dropped, 0]);

    port.set_config(&kpkts("0", "1"));
    assert_eq!(guest.arrived(&port, &sent), sent);
    assert_eq!(tx_drops(&port), [dropped, dropped, 0]);
}

#[test]
fn a_limit_on_packets_and_qos_come_and_go_without_each_other() {
    let port = server("both-limits");
    let mut guest = guest(&port);
    let policer = [("cir", "1"), ("cbs", "100")];
    port.set_qos(POLICER, &policer).expect("taken");
    port.set_config(&kpkts("1", "1"));
    assert_eq!(guest.arrived(&port, &frames(0, 9)).len(), 2, "of the QoS");
    port.set_config(&[]);
    assert_eq!(
        guest.arrived(&port, &frames(0, 9)).len(),
        0,
        "it has not begun anew"
    );
    port.set_config(&kpkts("1", "1"));
    port.set_qos("", &[]).expect("taken");
    assert_eq!((port.qos(), port.egress_packets()), (None, Some((1000, 1000))));
    assert_eq!(guest.arrived(&port, &frames(0, 9)).len(), 9);
}

#[test]
fn what_the_mtu_forbids_takes_no_tokens() {
    let port = server("shaped-mtu");
    port.set_mtu(68).expect("the least");
    let mut guest = guest(&port);
    port.reconfigure();
    port.set_qos(POLICER, &[("cir", "1"), ("cbs", "46")])
        .expect("taken");
    let sent = [vec![1; 200], vec![2; 60], vec![3; 60]];
    assert_eq!(guest.arrived(&port, &sent), [sent[1].clone()]);
    assert_eq!(tx_drops(&port), [2, 1, 1]);
}

#[test]
fn a_guest_that_has_no_room_is_no_matter_of_the_qos() {
    let port = server("shaped-full");
    let mut guest = guest(&port);
    port.set_qos(POLICER, &[("cir", "1"), ("cbs", "10000")])
        .expect("taken");
    guest.rings[0].supply(1);
    guest.rings[0].driver.publish();
    port.deliver(0, &frames(0, 3));
    assert_eq!(tx_drops(&port), [2, 0, 0]);
    assert_eq!(port.counter("ovs_tx_failure_drops"), 2);
}

#[test]
fn each_queue_has_its_own_limit_and_all_have_the_ports() {
    let port = server("queues");
    let mut guest = guest(&port);
    port.set_qos(TRTCM, &bursts("184", "46")).expect("taken");
    port.set_qos_queue(5, &bursts("46", "46")).expect("taken");
    assert_eq!(port.qos_queues(), Ok(vec![0, 5]));
    assert_eq!(guest.arrived_on(&port, 5, &frames(0, 4)), frames(0, 2));
    // Three of the port's five are left, for whatever queue is not there.
    assert_eq!(guest.arrived_on(&port, 9, &frames(0, 9)), frames(0, 3));
    let counts = |id| port.qos_queue(id).expect("a queue").1;
    assert_eq!(
        (counts(5).tx_packets, counts(5).tx_errors, counts(5).tx_bytes),
        (2, 2, 92)
    );
    assert_eq!((counts(0).tx_packets, counts(0).tx_errors), (3, 6));
    assert_eq!(tx_drops(&port), [8, 8, 0]);
    assert!(counts(5).created >= counts(0).created && counts(0).created > 0);
}

#[test]
fn each_packet_is_of_its_own_queue_beyond_the_first_burst_too() {
    let port = server("queue-of");
    let mut guest = guest(&port);
    port.set_qos(TRTCM, &bursts("10000", "1")).expect("taken");
    port.set_qos_queue(5, &bursts("10000", "1")).expect("taken");
    let sent = frames(0, 50);
    guest.rings[0].supply(50);
    guest.rings[0].driver.publish();
    let slots: Vec<_> = sent.iter().map(|frame| TxSlot::new(frame)).collect();
    port.send_queued(0, &slots, |index| if index >= 45 { 5 } else { 0 });
    let packets = [0, 5].map(|id| port.qos_queue(id).expect("a queue").1.tx_packets);
    assert_eq!(packets, [45, 5]);
}

#[test]
fn qos_that_is_refused_leaves_the_one_before_in_force() {
    let port = server("refused");
    assert_eq!(port.qos(), None);
    let refuse = |name, details: &[(&str, &str)], why| {
        assert_eq!(port.set_qos(name, details), Err(why), "{name} {details:?}");
    };
    refuse(POLICER, &[("cir", "1")], Refusal::Invalid);
    assert_eq!(port.qos(), None);
    port.set_qos(POLICER, &[("cir", "1"), ("cbs", "2")])
        .expect("taken");
    refuse(POLICER, &[("cbs", "1")], Refusal::Invalid);
    refuse(TRTCM, &[("cir", "1")], Refusal::Invalid);
    refuse("linux-htb", &[("max-rate", "1")], Refusal::Unsupported);
    let (name, settings) = port.qos().expect("still there");
    assert_eq!(name.to_str(), Ok(POLICER));
    assert_eq!(settings, [("cir", 1), ("cbs", 2)]);
    assert_eq!(port.set_qos_queue(0, &[]), Err(Refusal::Unsupported));
}

#[test]
fn the_queues_of_qos_that_is_refused_leave_those_in_force() {
    let port = server("refused-queues");
    port.set_qos(TRTCM, &bursts("1", "1")).expect("taken");
    port.set_qos_queue(5, &bursts("4", "5")).expect("taken");
    let queue = || port.qos_queue(5).expect("queue 5").0;
    let before = queue();
    assert!(port.set_qos("linux-htb", &[]).is_err());
    assert_eq!(
        port.set_qos_queue(5, &bursts("6", "7")),
        Err(Refusal::Unsupported)
    );
    assert_eq!(
        port.set_qos_queue(6, &bursts("6", "7")),
        Err(Refusal::Unsupported)
    );
    assert_eq!(port.delete_qos_queue(5), Err(Refusal::Unsupported));
    assert_eq!((queue(), port.qos_queues()), (before.clone(), Ok(vec![0, 5])));
    port.set_qos(TRTCM, &bursts("1", "1")).expect("taken");
    assert_eq!(queue(), before);
    port.set_qos_queue(5, &bursts("6", "7")).expect("taken");
    assert_ne!(queue(), before);
}

#[test]
fn the_same_settings_again_bring_no_new_tokens() {
    let port = server("same");
    let mut guest = guest(&port);
    let policer = [("cir", "1"), ("cbs", "100")];
    let set = || port.set_qos(POLICER, &policer).expect("taken");
    set();
    assert_eq!(guest.arrived(&port, &frames(0, 9)).len(), 2);
    set();
    assert_eq!(guest.arrived(&port, &frames(0, 9)).len(), 0);
}

#[test]
fn what_is_shown_of_a_port_names_its_limits() {
    let port = server("shown");
    let told = |key| port.describe().get(key).is_some();
    assert!(!["qos", "ingress-policing", "egress-policing"]
        .into_iter()
        .any(told));
    port.set_config(&kpkts("3", "4"));
    assert_eq!(port.describe()["egress-policing"]["packets"]["burst"], 4000);
    port.set_policing(TWO_FRAMES);
    port.set_qos(TRTCM, &bursts("2", "3")).expect("taken");
    port.set_qos_queue(5, &bursts("4", "5")).expect("taken");
    let tree = port.describe();
    assert_eq!(tree["ingress-policing"]["bytes"]["rate"], 125);
    assert!(tree["ingress-policing"]["packets"].is_null());
    assert_eq!(
        (&tree["qos"]["type"], &tree["qos"]["cbs"]),
        (&TRTCM.into(), &2.into())
    );
    assert_eq!(
        (
            &tree["qos"]["queues"][1]["queue"],
            &tree["qos"]["queues"][1]["ebs"]
        ),
        (&5.into(), &5.into())
    );
}

/// Settings that main changes as fast as it can, until nobody sends any more.
fn change_settings(port: &TestPort, done: &AtomicBool) {
    let kinds = [
        (
            POLICER,
            [("cir", "1000000"), ("cbs", "1000"), ("eir", ""), ("ebs", "")],
        ),
        (TRTCM, bursts("500", "500")),
        ("", bursts("", "")),
    ];
    let mut round = 0;
    while !done.load(Ordering::Relaxed) || round < 300 {
        let (name, details) = kinds[round % 3];
        port.set_qos(name, &details).expect("taken");
        let _ = port.set_qos_queue(u32::try_from(round % 4).expect("small"), &bursts("300", "300"));
        let _ = port.delete_qos_queue(3);
        port.set_policing(if round % 2 == 0 { TWO_FRAMES } else { OFF });
        round += 1;
    }
}

#[test]
fn under_changing_limits_every_packet_arrives_or_is_counted() {
    const BURSTS: u64 = 2000;
    let port = server("changing");
    let mut guest = guest(&port);
    let done = AtomicBool::new(false);
    let sent = frames(0, 30);
    let (mut arrived, mut received) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| change_settings(&port, &done));
        for burst in 0..BURSTS {
            arrived += guest
                .arrived_on(&port, u32::try_from(burst % 5).expect("small"), &sent)
                .len() as u64;
            guest.transmit(1, &sent);
            received += port.burst(0).len() as u64;
            assert_eq!(guest.reap(1), 30);
        }
        done.store(true, Ordering::Relaxed);
    });
    let stats = port.stats();
    let [tx_dropped, tx_qos_drops, _] = tx_drops(&port);
    assert_eq!(
        (stats.rx_packets, stats.tx_packets + tx_dropped),
        (30 * BURSTS, 30 * BURSTS)
    );
    assert_eq!((arrived, tx_dropped), (stats.tx_packets, tx_qos_drops));
    assert_eq!(received + port.counter("ovs_rx_qos_drops"), 30 * BURSTS);
    assert!(
        tx_qos_drops > 0 && arrived > 0 && received > 0,
        "both ways were seen"
    );
}

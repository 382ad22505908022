//! TCP between two guests: iperf3 for load, a checksummed transfer for content, and the packet account of the way
//! from one guest's NIC through the switch to the other's.

use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};

use crate::netns::address;
use crate::ovs::{Ovs, PortCounters};
use crate::vm::Vm;
use crate::wait;

/// What iperf3 moved.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// Bytes the sender handed to TCP.
    pub sent: u64,
    /// Bytes the receiver got.
    pub received: u64,
}

/// Runs iperf3 for `seconds` with `from` as sender (and client), `streams` connections in parallel.
pub fn iperf(from: &Vm, to: &Vm, seconds: u64, streams: u32) -> Result<Moved> {
    let server = to.spawn("iperf-server", "iperf3 -s -1")?;
    wait_listening(to, 5201)?;
    let client = format!(
        "iperf3 -c {} -t {seconds} -P {streams} -J --connect-timeout 5000",
        address(to.spec.id)
    );
    let (status, report) = from.run_within(&client, Duration::from_secs(60 + seconds))?;
    ensure!(
        status == 0,
        "iperf3 in {}: {}",
        from.spec.name,
        json_error(&report)
    );
    server.wait(Duration::from_secs(30))?;
    let moved = Moved {
        sent: json_bytes(&report, "sum_sent")?,
        received: json_bytes(&report, "sum_received")?,
    };
    // The receiver stops counting when it hears of the end, so it may have seen a little less, never more.
    ensure!(
        moved.received > 0 && moved.received <= moved.sent,
        "iperf3 moved {moved:?}"
    );
    Ok(moved)
}

/// Sends `mebibytes` of random bytes and compares the checksum of both ends.
pub fn transfer(from: &Vm, to: &Vm, mebibytes: u32) -> Result<()> {
    let limit = Duration::from_secs(120);
    let make = format!(
        "head -c {} /dev/urandom >/tmp/data && sha256sum </tmp/data",
        mebibytes << 20
    );
    let (status, text) = from.run_within(&make, limit)?;
    ensure!(status == 0, "cannot make data: {text}");
    // The receiver answers with the checksum of what it got, over the same connection.
    let receiver = to.spawn("receiver", "nc -l -p 9000 -e sha256sum")?;
    wait_listening(to, 9000)?;
    let (status, got) = from.run_within(&format!("nc {} 9000 </tmp/data", address(to.spec.id)), limit)?;
    ensure!(status == 0, "nc in {}: {got}", from.spec.name);
    receiver.wait(limit)?;
    ensure!(
        got == text,
        "{mebibytes} MiB from {} to {} arrived changed",
        from.spec.name,
        to.spec.name
    );
    Ok(())
}

/// The switch's and both guests' counters, to be compared over a span of traffic between exactly these two.
pub struct Account<'a> {
    ovs: &'a Ovs,
    ends: [(&'a Vm, &'a str); 2],
    before: [Counted; 2],
}

/// One end: the guest's NIC and the switch's port it is on.
#[derive(Clone, Copy, Debug)]
struct Counted {
    nic_rx: (u64, u64),
    nic_tx: (u64, u64),
    nic_rx_lost: u64,
    port: Option<PortCounters>,
}

impl<'a> Account<'a> {
    /// Opens the account; each end is a guest and its port.
    pub fn open(ovs: &'a Ovs, a: (&'a Vm, &'a str), b: (&'a Vm, &'a str)) -> Result<Self> {
        let ends = [a, b];
        let before = count(ovs, &ends)?;
        Ok(Account { ovs, ends, before })
    }

    /// Fails unless all that one guest sent is what the switch took, and all the switch took is what it gave to the
    /// other or dropped and counted, and all it gave is what the other guest got: packets and bytes, both directions.
    pub fn close(self) -> Result<()> {
        let after = count(self.ovs, &self.ends)?;
        let [a, b] = [0, 1].map(|end| self.before[end].until(&after[end]));
        for (from, to, name) in [(&a, &b, "first to second"), (&b, &a, "second to first")] {
            balance(from, to).with_context(|| format!("{name} guest: {from:?} -> {to:?}"))?;
        }
        Ok(())
    }
}

impl Counted {
    fn until(&self, after: &Counted) -> Counted {
        let pair = |after: (u64, u64), before: (u64, u64)| (after.0 - before.0, after.1 - before.1);
        let port = after.port.zip(self.port).map(|(after, before)| PortCounters {
            rx_packets: after.rx_packets - before.rx_packets,
            rx_bytes: after.rx_bytes - before.rx_bytes,
            tx_packets: after.tx_packets - before.tx_packets,
            tx_bytes: after.tx_bytes - before.tx_bytes,
            tx_dropped: after.tx_dropped - before.tx_dropped,
        });
        Counted {
            nic_rx: pair(after.nic_rx, self.nic_rx),
            nic_tx: pair(after.nic_tx, self.nic_tx),
            nic_rx_lost: after.nic_rx_lost - self.nic_rx_lost,
            port,
        }
    }
}

fn balance(from: &Counted, to: &Counted) -> Result<()> {
    if let Some(port) = from.port {
        ensure!(
            from.nic_tx == (port.rx_packets, port.rx_bytes),
            "the guest sent other than the switch took"
        );
    }
    if let Some(port) = to.port {
        let got = (to.nic_rx.0 + to.nic_rx_lost, to.nic_rx.1);
        ensure!(
            (port.tx_packets, port.tx_bytes) == got || to.nic_rx_lost > 0 && port.tx_packets == got.0,
            "the switch gave other than the guest got"
        );
    }
    let dropped = to.port.map_or(0, |port| port.tx_dropped);
    // A stock server port counts no drops, so between two guests of which one has it there is only an upper bound.
    let exact = from.port.is_some() && to.port.is_some();
    let arrived = to.nic_rx.0 + to.nic_rx_lost + dropped;
    if arrived > from.nic_tx.0 || exact && arrived < from.nic_tx.0 {
        bail!("packets do not add up");
    }
    Ok(())
}

fn count(ovs: &Ovs, ends: &[(&Vm, &str); 2]) -> Result<[Counted; 2]> {
    let ports = ovs.wait_counters_still(&[ends[0].1, ends[1].1])?;
    Ok([count_end(ends[0].0, ports[0])?, count_end(ends[1].0, ports[1])?])
}

fn count_end(vm: &Vm, port: Option<PortCounters>) -> Result<Counted> {
    let nic = |name: &str| vm.nic_counter(name);
    Ok(Counted {
        nic_rx: (nic("rx_packets")?, nic("rx_bytes")?),
        nic_tx: (nic("tx_packets")?, nic("tx_bytes")?),
        nic_rx_lost: nic("rx_dropped")? + nic("rx_errors")?,
        port,
    })
}

/// Waits until something in the guest listens on TCP `port`.
pub fn wait_listening(vm: &Vm, port: u16) -> Result<()> {
    let probe = format!("grep -q ':{port:04X} 00000000:0000 0A' /proc/net/tcp /proc/net/tcp6 2>/dev/null");
    wait::until_true(
        &format!("port {port} to listen in {}", vm.spec.name),
        Duration::from_secs(30),
        || Ok(vm.run_within(&probe, Duration::from_secs(30))?.0 == 0),
    )
}

/// `"bytes"` of the object called `name` in iperf3's report.
fn json_bytes(report: &str, name: &str) -> Result<u64> {
    let (_, object) = report
        .split_once(&format!("\"{name}\":"))
        .with_context(|| format!("no {name} in iperf3's report"))?;
    let (_, rest) = object
        .split_once("\"bytes\":")
        .context("iperf3's report without bytes")?;
    Ok(rest.split([',', '}']).next().unwrap_or_default().trim().parse()?)
}

fn json_error(report: &str) -> String {
    report
        .split_once("\"error\":")
        .map_or(report, |(_, text)| text)
        .trim()
        .to_string()
}

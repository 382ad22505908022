//! TCP between two parties: iperf3 for load, a checksummed transfer for content, and the packet account of the way
//! from one party's NIC through the switch, or two of them, to the other's.

use std::time::Duration;

use anyhow::{ensure, Context, Result};

use crate::ovs::{Ovs, PortCounters};
use crate::party::Party;
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
pub fn iperf(from: &dyn Party, to: &dyn Party, seconds: u64, streams: u32) -> Result<Moved> {
    let mut server = to.start("iperf-server", "iperf3 -s -1")?;
    wait_listening(to, 5201)?;
    let client = format!(
        "iperf3 -c {} -t {seconds} -P {streams} -J --connect-timeout 5000",
        to.address()
    );
    let (status, report) = from.run_within(&client, Duration::from_secs(60 + seconds))?;
    ensure!(status == 0, "iperf3 in {}: {}", from.name(), json_error(&report));
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
pub fn transfer(from: &dyn Party, to: &dyn Party, mebibytes: u32) -> Result<()> {
    let limit = Duration::from_secs(120);
    let make = format!(
        "head -c {} /dev/urandom >data && sha256sum <data",
        mebibytes << 20
    );
    let (status, text) = from.run_within(&make, limit)?;
    ensure!(status == 0, "cannot make data: {text}");
    // The receiver answers with the checksum of what it got, over the same connection.
    let mut receiver = to.start("receiver", "nc -l -p 9000 -e sha256sum")?;
    wait_listening(to, 9000)?;
    let (status, got) = from.run_within(&format!("nc {} 9000 <data", to.address()), limit)?;
    ensure!(status == 0, "nc in {}: {got}", from.name());
    receiver.wait(limit)?;
    ensure!(
        got == text,
        "{mebibytes} MiB from {} to {} arrived changed",
        from.name(),
        to.name()
    );
    Ok(())
}

/// One end of an account: a port of the switch, and the party on it.
#[derive(Clone, Copy)]
pub struct End<'a> {
    /// The switch.
    pub ovs: &'a Ovs,
    /// The port.
    pub port: &'a str,
    /// Who is on it, unless that is another switch.
    pub party: Option<&'a dyn Party>,
    /// Bridge and port that count what leaves by a tunnel: vswitchd counts that twice at the tunnel's own port.
    pub underlay: Option<(&'a str, &'a str)>,
    /// The host's kernel may drop a frame of the party after it has counted it and before the switch sees it.
    pub leaks: bool,
}

/// The counters of a switch's two ports and of the parties on them, to be compared over a span of traffic between
/// exactly these two.
pub struct Account<'a> {
    ends: [End<'a>; 2],
    before: [Counted; 2],
}

/// What was counted at one end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Counted {
    nic: Option<Nic>,
    port: Option<PortCounters>,
}

/// The counters of a party's NIC: packets and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Nic {
    rx: (u64, u64),
    tx: (u64, u64),
    rx_lost: u64,
}

impl<'a> Account<'a> {
    /// Opens the account.
    pub fn open(ends: [End<'a>; 2]) -> Result<Self> {
        let before = count(&ends)?;
        Ok(Account { ends, before })
    }

    /// Fails unless all that one party sent is what the switch took, and all the switch took is what it gave to the
    /// other or dropped and counted, and all it gave is what the other party got: packets and bytes, both directions.
    pub fn close(self) -> Result<()> {
        let after = count(&self.ends)?;
        let [a, b] = [0, 1].map(|end| self.before[end].until(&after[end]));
        let [first, second] = &self.ends;
        for (from, to, sender, receiver) in [(&a, &b, first, second), (&b, &a, second, first)] {
            balance(from, to, sender.leaks).with_context(|| {
                let told = told_elsewhere(receiver.ovs);
                let (sender, receiver) = (sender.port, receiver.port);
                format!("{sender} to {receiver}: {from:?} -> {to:?}; elsewhere: {told}")
            })?;
        }
        Ok(())
    }
}

impl Counted {
    fn until(&self, after: &Counted) -> Counted {
        let pair = |after: (u64, u64), before: (u64, u64)| (after.0 - before.0, after.1 - before.1);
        let nic = after.nic.zip(self.nic).map(|(after, before)| Nic {
            rx: pair(after.rx, before.rx),
            tx: pair(after.tx, before.tx),
            rx_lost: after.rx_lost - before.rx_lost,
        });
        let port = after.port.zip(self.port).map(|(after, before)| PortCounters {
            rx_packets: after.rx_packets - before.rx_packets,
            rx_bytes: after.rx_bytes - before.rx_bytes,
            tx_packets: after.tx_packets - before.tx_packets,
            tx_bytes: after.tx_bytes - before.tx_bytes,
            tx_dropped: after.tx_dropped - before.tx_dropped,
        });
        Counted { nic, port }
    }

    /// Packets that set out from here.
    fn sent(&self) -> Option<u64> {
        let by_nic = self.nic.map(|nic| nic.tx.0);
        by_nic.or(self.port.map(|port| port.rx_packets))
    }

    /// Packets that ended here, in whatever way.
    fn ended(&self) -> Option<u64> {
        let by_nic = self.nic.map(|nic| nic.rx.0 + nic.rx_lost);
        let arrived = by_nic.or(self.port.map(|port| port.tx_packets))?;
        Some(arrived + self.port.map_or(0, |port| port.tx_dropped))
    }
}

fn balance(from: &Counted, to: &Counted, leaks: bool) -> Result<()> {
    if let (Some(nic), Some(port)) = (from.nic, from.port) {
        ensure!(
            nic.tx == (port.rx_packets, port.rx_bytes) || leaks && nic.tx.0 > port.rx_packets,
            "one sent other than the switch took"
        );
    }
    if let (Some(nic), Some(port)) = (to.nic, to.port) {
        let got = (nic.rx.0 + nic.rx_lost, nic.rx.1);
        ensure!(
            (port.tx_packets, port.tx_bytes) == got || nic.rx_lost > 0 && port.tx_packets == got.0,
            "the switch gave other than the other got"
        );
    }
    // A stock server port counts no drops, so between two guests of which one has it there is only an upper bound.
    let exact = from.port.is_some() && to.port.is_some() && !leaks;
    let (sent, ended) = (from.sent(), to.ended());
    ensure!(
        sent == ended || sent > ended && !exact,
        "packets do not add up: {sent:?} set out and {ended:?} ended"
    );
    Ok(())
}

/// What a switch counts that no port does: packets dropped between two ports, and what makes it credit a port, which it does
/// by its flows where that is a tunnel, with packets that the port has not had.
fn told_elsewhere(ovs: &Ovs) -> String {
    let of_interest = |line: &&str| {
        let words = ["drop", "upcall", "ukey", "dump", "revalidate"];
        words.iter().any(|word| line.contains(word))
    };
    match ovs.appctl("coverage/show") {
        Ok(told) => format!("{:?}", told.lines().filter(of_interest).collect::<Vec<_>>()),
        Err(error) => format!("{error:#}"),
    }
}

fn count(ends: &[End<'_>; 2]) -> Result<[Counted; 2]> {
    let look = || -> Result<_> { Ok([count_end(&ends[0])?, count_end(&ends[1])?]) };
    let mut before = look()?;
    wait::until("the counters to stand still", Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_millis(100));
        ends.iter().try_for_each(wait_credited)?;
        let now = look()?;
        let still = now == before;
        before = now;
        Ok(still.then_some(before))
    })
}

/// Waits until a tunnel's port has been told of what it has had so far: vswitchd counts that by looking at its flows now and
/// then. The first look to end may have begun before the call, and have passed by a flow that got a packet since.
fn wait_credited(end: &End<'_>) -> Result<()> {
    if end.underlay.is_some() {
        end.ovs.appctl("revalidator/wait")?;
        end.ovs.appctl("revalidator/wait")?;
    }
    Ok(())
}

fn count_end(end: &End<'_>) -> Result<Counted> {
    let mut port = end.ovs.counters(end.port)?;
    if let (Some(port), Some((bridge, name))) = (port.as_mut(), end.underlay) {
        let below = end.ovs.counters_on(bridge, name)?;
        port.tx_packets = below.context("the underlay counts nothing")?.tx_packets;
    }
    Ok(Counted {
        nic: end.party.map(count_nic).transpose()?,
        port,
    })
}

fn count_nic(party: &dyn Party) -> Result<Nic> {
    let counter = |name: &str| party.nic_counter(name);
    Ok(Nic {
        rx: (counter("rx_packets")?, counter("rx_bytes")?),
        tx: (counter("tx_packets")?, counter("tx_bytes")?),
        rx_lost: counter("rx_dropped")? + counter("rx_errors")?,
    })
}

/// Waits until something listens on TCP `port` of a party.
pub fn wait_listening(party: &dyn Party, port: u16) -> Result<()> {
    let probe = format!("grep -q ':{port:04X} 0*:0000 0A' /proc/net/tcp /proc/net/tcp6 2>/dev/null");
    wait::until_true(
        &format!("port {port} to listen in {}", party.name()),
        Duration::from_secs(30),
        || Ok(party.run_within(&probe, Duration::from_secs(30))?.0 == 0),
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

//! A flow of numbered datagrams from one guest to another, and the account of what was lost and what came twice
//! (`guest/numbers.rs` does the counting).

use std::time::Duration;

use anyhow::{ensure, Context, Result};

use crate::netns::address;
use crate::shell::Job;
use crate::vm::Vm;
use crate::wait;

const PORT: u16 = 7000;

/// A flow under way.
pub struct Flow<'vm> {
    from: &'vm Vm,
    to: &'vm Vm,
    sender: Job<'vm>,
    receiver: Job<'vm>,
    /// What the sender's NIC had sent before.
    sent_before: u64,
}

/// What a flow's receiver has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Different numbers that arrived.
    pub arrived: u64,
    /// Numbers that have not arrived although a higher one has.
    pub lost: u64,
    /// Datagrams whose number had arrived before.
    pub twice: u64,
    /// Numbers that came after a higher one.
    pub late: u64,
}

/// What became of all of a flow, once nothing is under way any more.
#[derive(Clone, Copy, Debug)]
pub struct Total {
    /// What the receiver has counted.
    pub count: Count,
    /// Of the lost, those that never reached the sender's ring: its kernel drops what is sent while the link is down.
    pub unsent: u64,
}

impl<'vm> Flow<'vm> {
    /// Starts sending `rate` datagrams a second.
    pub fn start(from: &'vm Vm, to: &'vm Vm, rate: u32) -> Result<Self> {
        // Room for all that may come while the receiver does not get to run.
        to.run("echo 8388608 >/proc/sys/net/core/rmem_max; echo 8388608 >/proc/sys/net/core/rmem_default")?;
        let receiver = to.spawn("numbers-receive", &format!("numbers receive {PORT}"))?;
        let bound = format!("grep -q ':{PORT:04X} ' /proc/net/udp");
        wait::until_true("the receiver to be there", Duration::from_secs(30), || {
            Ok(to.run_within(&bound, Duration::from_secs(30))?.0 == 0)
        })?;
        let command = format!("numbers send {}:{PORT} {rate}", address(to.spec.id));
        Ok(Flow {
            sent_before: from.nic_counter("tx_packets")?,
            sender: from.spawn("numbers-send", &command)?,
            receiver,
            from,
            to,
        })
    }

    /// "guest1 to guest2".
    pub fn name(&self) -> String {
        format!("{} to {}", self.from.spec.name, self.to.spec.name)
    }

    /// The count so far.
    pub fn count(&self) -> Result<Count> {
        let line = self.receiver.printed("tail -n 1")?;
        let numbers: Option<Vec<u64>> = line.split_whitespace().map(|word| word.parse().ok()).collect();
        match numbers.as_deref() {
            Some([arrived, lost, twice, late]) => Ok(Count {
                arrived: *arrived,
                lost: *lost,
                twice: *twice,
                late: *late,
            }),
            // It has not reported yet.
            Some([]) => Ok(Count::default()),
            _ => Err(anyhow::anyhow!("{}: {line}", self.name())),
        }
    }

    /// Waits for `more` datagrams than have arrived by now.
    pub fn wait_more(&self, more: u64, limit: Duration) -> Result<Count> {
        let goal = self.count()?.arrived + more;
        wait::until(
            &format!("{more} more datagrams from {}", self.name()),
            limit,
            || Ok(Some(self.count()?).filter(|count| count.arrived >= goal)),
        )
    }

    /// Ends the flow, and waits for what is still under way.
    pub fn stop(self) -> Result<Total> {
        self.sender.kill()?;
        let mut last = self.count()?;
        let count = wait::until("the last datagrams to arrive", Duration::from_secs(30), || {
            std::thread::sleep(Duration::from_millis(500));
            let now = self.count()?;
            let still = now == last;
            last = now;
            Ok(still.then_some(now))
        })?;
        self.receiver.kill()?;
        let full: u64 = self
            .to
            .run(RECEIVE_ERRORS)?
            .trim()
            .parse()
            .context("RcvbufErrors")?;
        ensure!(
            full == 0,
            "{}: the receiver itself had no room for {full}",
            self.name()
        );
        // A virtio NIC counts what it has got back from its ring, the last few only when it sends again.
        self.from
            .run(&format!("ping -c 1 -W 1 {} || true", address(self.to.spec.id)))?;
        let sent = self.from.nic_counter("tx_packets")? - self.sent_before;
        Ok(Total {
            count,
            unsent: (count.arrived + count.lost).saturating_sub(sent),
        })
    }
}

/// Datagrams that the guest threw away for want of room in the socket.
const RECEIVE_ERRORS: &str =
    "awk '/^Udp:/ { for (i = 1; i <= NF; i++) if (seen) value[name[i]] = $i; else name[i] = $i; seen = 1 } \
     END { print value[\"RcvbufErrors\"] }' /proc/net/snmp";

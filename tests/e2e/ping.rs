//! Pings at a fixed rate that note when each reply came. Inside a guest an outage is measured on the guest's own clock,
//! to about one interval, instead of guessed from outside; from the observer it is measured on the host's clock, which
//! goes on while the guest stands still.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{bail, Result};

use crate::netns::{address, NetNs};
use crate::process::Process;
use crate::settings::tool;
use crate::shell::Job;
use crate::vm::Vm;
use crate::wait;

/// One reply.
#[derive(Clone, Copy, Debug)]
struct Reply {
    /// Guest time, seconds.
    time: f64,
    sequence: u64,
}

/// A ping under way.
pub struct Ping<'vm> {
    vm: &'vm Vm,
    job: Job<'vm>,
    interval: Duration,
}

/// A silence in a finished ping.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outage {
    /// How long replies were away beyond the interval at which they are due.
    pub length: Duration,
    /// Guest time of the first reply after, seconds.
    pub until: f64,
}

/// What a finished ping saw.
pub struct Report {
    replies: Vec<Reply>,
    interval: Duration,
}

impl Report {
    /// Replies received.
    pub fn received(&self) -> usize {
        self.replies.len()
    }

    /// Replies received before guest time `time`.
    pub fn received_before(&self, time: f64) -> usize {
        self.replies.iter().filter(|reply| reply.time < time).count()
    }

    /// Requests that were not answered though later ones were. What was still under way at the end is not lost.
    pub fn lost(&self) -> u64 {
        let last = self.replies.iter().map(|reply| reply.sequence).max().unwrap_or(0);
        last.saturating_sub(self.replies.len() as u64)
    }

    /// Requests without an answer around the span from `start` to `end`.
    pub fn lost_within(&self, start: f64, end: f64) -> u64 {
        let gaps = self
            .replies
            .windows(2)
            .filter(|pair| pair[0].time <= end && pair[1].time >= start);
        gaps.map(|pair| pair[1].sequence.saturating_sub(pair[0].sequence + 1))
            .sum()
    }

    /// The longest silence.
    pub fn longest_silence(&self) -> Outage {
        self.silence_within(f64::NEG_INFINITY, f64::INFINITY)
    }

    /// The longest of the silences that share a moment with the span from `start` to `end`, in guest time: what an
    /// event in that span has caused, whatever else the machine did at other times.
    pub fn silence_within(&self, start: f64, end: f64) -> Outage {
        let silences = self
            .replies
            .windows(2)
            .filter(|pair| pair[0].time <= end && pair[1].time >= start);
        let outages = silences.map(|pair| {
            let silence = Duration::try_from_secs_f64(pair[1].time - pair[0].time).unwrap_or_default();
            let length = silence.saturating_sub(self.interval);
            Outage {
                length,
                until: pair[1].time,
            }
        });
        outages.max_by_key(|outage| outage.length).unwrap_or_default()
    }

    /// Fails if a request was lost or an answer kept away for more than `limit`.
    pub fn check_undisturbed(&self, limit: Duration) -> Result<()> {
        let silence = self.longest_silence().length;
        if self.lost() > 0 || silence > limit {
            bail!(
                "disturbed: {} pings lost, {} answered, longest silence {} ms",
                self.lost(),
                self.received(),
                silence.as_millis()
            );
        }
        Ok(())
    }
}

impl<'vm> Ping<'vm> {
    /// Starts pinging party `id` of the address plan, in the family of `vm`.
    pub fn start(vm: &'vm Vm, id: u8, interval: Duration) -> Result<Self> {
        let job = vm.spawn(
            &format!("ping{id}"),
            &format!(
                "/opt/ping -n -D -i {:.3} {}",
                interval.as_secs_f64(),
                vm.spec.family.address(id)
            ),
        )?;
        Ok(Ping { vm, job, interval })
    }

    /// Replies so far.
    pub fn replies(&self) -> Result<u64> {
        Ok(self
            .job
            .printed("grep -c time=")
            .or_else(zero_matches)?
            .trim()
            .parse()?)
    }

    /// Waits for `count` more replies than there are now.
    pub fn wait_more(&self, count: u64, limit: Duration) -> Result<()> {
        let goal = self.replies()? + count;
        wait::until_true(
            &format!("{count} more ping replies in {}", self.vm.spec.name),
            limit,
            || Ok(self.replies()? >= goal),
        )
    }

    /// Stops and evaluates.
    pub fn stop(self) -> Result<Report> {
        self.job.interrupt()?;
        // Only what is evaluated goes over the serial line.
        self.job.wait(Duration::from_secs(30))?;
        let replies = self
            .job
            .printed(r#"sed -n "s/^\[\([0-9.]*\)\].*icmp_seq=\([0-9]*\) .*time=.*/\1 \2/p""#)?;
        Ok(Report {
            replies: distinct(&replies),
            interval: self.interval,
        })
    }
}

/// A ping that the observer sends to a guest.
pub struct HostPing {
    process: Process,
    interval: Duration,
}

impl HostPing {
    /// Starts pinging party `id`.
    pub fn start(ns: &NetNs, id: u8, interval: Duration, dir: &Path) -> Result<Self> {
        let mut command = tool("ping");
        command.args([
            "-n",
            "-D",
            "-i",
            &format!("{:.3}", interval.as_secs_f64()),
            &address(id),
        ]);
        ns.enter(&mut command);
        let name = format!("host-ping{id}");
        let process = Process::spawn(&name, command, &dir.join(format!("{name}.out")))?;
        Ok(HostPing { process, interval })
    }

    /// What it has seen so far.
    pub fn report(&self) -> Report {
        let printed = self.process.printed();
        let replies = printed.lines().filter_map(|line| {
            let (time, rest) = line.strip_prefix('[')?.split_once(']')?;
            let (_, rest) = rest.split_once("icmp_seq=")?;
            let (sequence, rest) = rest.split_once(' ')?;
            rest.contains("time=").then(|| format!("{time} {sequence}\n"))
        });
        Report {
            replies: distinct(&replies.collect::<String>()),
            interval: self.interval,
        }
    }

    /// Waits for `count` replies from now on.
    pub fn wait_more(&mut self, count: usize, limit: Duration) -> Result<()> {
        let goal = self.report().received() + count;
        wait::until_true(
            &format!("{count} more ping replies to the observer"),
            limit,
            || {
                self.process.check_alive()?;
                Ok(self.report().received() >= goal)
            },
        )
    }
}

/// `grep -c` prints 0 and exits with status 1.
fn zero_matches(error: anyhow::Error) -> Result<String> {
    if format!("{error:#}").contains("exit status 1: 0") {
        return Ok("0".into());
    }
    Err(error)
}

/// The replies in `text`, a line "TIME SEQUENCE" for each, in the order they came; duplicates count once.
fn distinct(text: &str) -> Vec<Reply> {
    let mut seen = HashSet::new();
    let replies = text.lines().filter_map(parse_reply);
    replies.filter(|reply| seen.insert(reply.sequence)).collect()
}

fn parse_reply(line: &str) -> Option<Reply> {
    let (time, sequence) = line.split_once(' ')?;
    Some(Reply {
        time: time.parse().ok()?,
        sequence: sequence.trim().parse().ok()?,
    })
}

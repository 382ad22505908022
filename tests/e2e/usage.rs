//! What the switch holds of what machines have little of.

use std::fs::{read_dir, read_to_string};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cases::world::{World, PATIENCE};
use crate::wait;

/// For what grows once and is kept for the next: heap arenas, the lists of a thread.
const SLACK: Usage = Usage {
    fds: 0,
    threads: 0,
    lent: 0,
    mappings: 16,
    kib: 16 << 10,
};
/// How long nothing may change to be settled.
const SETTLED: Duration = Duration::from_millis(250);

/// Descriptors, threads, mappings, and resident memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    fds: usize,
    threads: usize,
    /// Of the mappings those of memfds, which is what guests' memory is in.
    lent: usize,
    mappings: usize,
    kib: usize,
}

impl Usage {
    fn now(world: &World) -> Result<Usage> {
        let pid = world.ovs.pid()?;
        let status = read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|text| text.split_whitespace().next());
        let maps = read_to_string(format!("/proc/{pid}/maps"))?;
        Ok(Usage {
            fds: world.ovs.fd_count()?,
            threads: read_dir(format!("/proc/{pid}/task"))?.count(),
            lent: maps.lines().filter(|line| line.contains("/memfd:")).count(),
            mappings: maps.lines().count(),
            kib: kib.context("no VmRSS")?.parse()?,
        })
    }

    /// What is held once the last connection has been dealt with.
    pub fn settled(world: &World) -> Result<Usage> {
        let (mut usage, mut since) = (Usage::now(world)?, Instant::now());
        wait::until("the switch to settle", PATIENCE, || {
            let now = Usage::now(world)?;
            let counts = |usage: &Usage| (usage.fds, usage.threads, usage.mappings);
            if counts(&now) != counts(&usage) {
                (usage, since) = (now, Instant::now());
            }
            Ok((since.elapsed() > SETTLED).then_some(now))
        })
    }

    /// As many descriptors as these, and the memory of `later`: what has grown once is kept for the next who wants it.
    pub fn grown_to(self, later: Usage) -> Usage {
        Usage {
            fds: self.fds,
            ..later
        }
    }

    /// Waits until no more is held than this.
    pub fn check(&self, world: &World) -> Result<()> {
        let mut now = *self;
        let flat = wait::until_true("everything to be given back", PATIENCE, || {
            now = Usage::now(world)?;
            let rows = [
                (now.fds, self.fds + SLACK.fds),
                (now.threads, self.threads + SLACK.threads),
                (now.lent, self.lent + SLACK.lent),
                (now.mappings, self.mappings + SLACK.mappings),
                (now.kib, self.kib + SLACK.kib),
            ];
            Ok(rows.iter().all(|(now, limit)| now <= limit))
        });
        flat.with_context(|| format!("{self:?} has become {now:?}"))
    }
}

//! What the switch holds of what machines have little of.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry};
use std::time::{Duration, Instant};
use std::{fmt, io};

use anyhow::{Context, Result};

use crate::cases::world::{World, PATIENCE};
use crate::wait;

/// For what grows once and is kept for the next: heap arenas, the lists of a thread.
const SLACK_MAPPINGS: usize = 16;
const SLACK_KIB: usize = 16 << 10;
/// As Open vSwitch names them, without the numbers.
const POLL_THREAD: &str = "pmd-c/id:";
const PIPE: &str = "pipe:[]";
const ENDS_OF_PIPE: usize = 2;
/// How long nothing may change to be settled.
const SETTLED: Duration = Duration::from_millis(250);

/// Descriptors, threads, mappings, and resident memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    fds: Kinds,
    threads: Kinds,
    /// Of the mappings those of memfds, which is what guests' memory is in.
    lent: usize,
    mappings: usize,
    kib: usize,
}

/// How many of what: by the name of each without its number, so that who finds more also finds what.
#[derive(Clone, PartialEq, Eq)]
struct Kinds(BTreeMap<String, usize>);

impl Kinds {
    /// What is listed in this directory of `/proc`, by these names. What goes while it is being read is not counted.
    fn listed(directory: &str, name: impl Fn(&DirEntry) -> io::Result<String>) -> Result<Kinds> {
        let mut kinds = BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            if let Ok(name) = name(&entry?) {
                let kind = name.replace(|symbol: char| symbol.is_ascii_digit(), "");
                *kinds.entry(kind.trim_end().into()).or_default() += 1;
            }
        }
        Ok(Kinds(kinds))
    }

    fn of(&self, kind: &str) -> usize {
        self.0.get(kind).copied().unwrap_or(0)
    }

    fn count_but(&self, kind: &str) -> usize {
        self.count() - self.of(kind)
    }

    fn count(&self) -> usize {
        self.0.values().sum()
    }
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.count(), self.0)
    }
}

impl Usage {
    fn now(world: &World) -> Result<Usage> {
        let pid = world.ovs.pid()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|text| text.split_whitespace().next());
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let target = |fd: &DirEntry| Ok(fs::read_link(fd.path())?.to_string_lossy().into_owned());
        let comm = |thread: &DirEntry| fs::read_to_string(thread.path().join("comm"));
        Ok(Usage {
            fds: Kinds::listed(&format!("/proc/{pid}/fd"), target)?,
            threads: Kinds::listed(&format!("/proc/{pid}/task"), comm)?,
            lent: maps.lines().filter(|line| line.contains("/memfd:")).count(),
            mappings: maps.lines().count(),
            kib: kib.context("no VmRSS")?.parse()?,
        })
    }

    /// What may not grow by itself.
    fn counts(&self) -> [usize; 3] {
        [self.fds.count(), self.threads.count(), self.mappings]
    }

    /// What is held once the last connection has been dealt with.
    pub fn settled(world: &World) -> Result<Usage> {
        let (mut usage, mut since) = (Usage::now(world)?, Instant::now());
        wait::until("the switch to settle", PATIENCE, || {
            let now = Usage::now(world)?;
            if now.counts() != usage.counts() {
                (usage, since) = (now.clone(), Instant::now());
            }
            Ok((since.elapsed() > SETTLED).then_some(now))
        })
    }

    /// As many descriptors as these, and the memory of `later`: what has grown once is kept for the next who wants it.
    pub fn grown_to(&self, later: Usage) -> Usage {
        Usage {
            fds: self.fds.clone(),
            ..later
        }
    }

    /// A poll thread of Open vSwitch that has once had nothing to poll has a pipe to be woken by, until it ends (`seq_wait` of
    /// lib/seq.c). Whether a switch that starts comes to that is chance.
    fn pipes_to_come(&self) -> usize {
        ENDS_OF_PIPE * self.threads.of(POLL_THREAD)
    }

    /// Waits until no more is held than this.
    pub fn check(&self, world: &World) -> Result<()> {
        let mut now = self.clone();
        let flat = wait::until_true("everything to be given back", PATIENCE, || {
            now = Usage::now(world)?;
            let rows = [
                (now.fds.of(PIPE), self.fds.of(PIPE) + self.pipes_to_come()),
                (now.fds.count_but(PIPE), self.fds.count_but(PIPE)),
                (now.threads.count(), self.threads.count()),
                (now.lent, self.lent),
                (now.mappings, self.mappings + SLACK_MAPPINGS),
                (now.kib, self.kib + SLACK_KIB),
            ];
            Ok(rows.iter().all(|(now, limit)| now <= limit))
        });
        flat.with_context(|| format!("{self:?} has become {now:?}"))
    }
}

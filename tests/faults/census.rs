//! What the process has, so that nobody keeps anything.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};

/// What the process has.
#[derive(Debug)]
pub struct Census {
    descriptors: BTreeMap<String, usize>,
    /// Mappings of memory that has no name.
    mappings: usize,
    threads: usize,
}

impl Census {
    pub fn take() -> Census {
        let mut descriptors = BTreeMap::new();
        for entry in fs::read_dir("/proc/self/fd").expect("descriptors").flatten() {
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            let target = target.display().to_string();
            let kind = target.split(":[").next().unwrap_or_default().to_owned();
            *descriptors.entry(kind).or_default() += 1;
        }
        let maps = fs::read_to_string("/proc/self/maps").expect("mappings");
        let tasks = fs::read_dir("/proc/self/task").expect("threads").flatten();
        let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        Census {
            descriptors,
            mappings: maps.lines().filter(|line| line.contains("memfd:")).count(),
            threads: names.filter(|name| name.starts_with("ovs-vhost")).count(),
        }
    }

    /// Waits until the process has no more than that again. What the control thread does for a port that is gone, it does
    /// later; so it may be less, where another port went before.
    pub fn comes_back(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let now = Census::take();
            if now.is_within(self) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "it was {self:?}, and is {now:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_within(&self, other: &Census) -> bool {
        let of_a_kind = |kind: &String| other.descriptors.get(kind).copied().unwrap_or(0);
        let mut descriptors = self.descriptors.iter();
        descriptors.all(|(kind, count)| *count <= of_a_kind(kind))
            && self.mappings <= other.mappings
            && self.threads <= other.threads
    }
}

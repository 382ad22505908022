//! The systemd drop-in of deploy/systemd, as far as a process can be put under it without systemd: its system call filter,
//! and its capabilities.
//!
//! Groups like `@system-service` are what `systemd-analyze` says they are, which needs no running systemd.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use anyhow::{Context, Result};

use crate::seccomp::Filter;
use crate::settings::run_tool;

/// All of it.
pub const TEXT: &str = include_str!("../../deploy/systemd/ovs-vswitchd.service.d/vhost-plugin.conf");

/// The filter that the drop-in asks for.
pub fn filter() -> Result<Filter> {
    static FILTER: OnceLock<Filter> = OnceLock::new();
    if let Some(filter) = FILTER.get() {
        return Ok(filter.clone());
    }
    let groups = Groups::read()?;
    let names = allowed(values("SystemCallFilter"), &groups)?;
    let families: Vec<&str> = values("RestrictAddressFamilies")
        .flat_map(str::split_whitespace)
        .collect();
    let code_is_fixed = values("MemoryDenyWriteExecute").eq(["yes"]);
    let filter = Filter::new(&names, &families, code_is_fixed)?;
    Ok(FILTER.get_or_init(|| filter).clone())
}

/// The capabilities that it leaves.
pub fn capabilities() -> Vec<&'static str> {
    values("CapabilityBoundingSet")
        .flat_map(str::split_whitespace)
        .collect()
}

/// What a key is set to, line by line.
fn values(key: &'static str) -> impl Iterator<Item = &'static str> {
    let settings = TEXT.lines().filter(|line| !line.starts_with('#'));
    let pairs = settings.filter_map(|line| line.split_once('='));
    pairs
        .filter(move |(name, _)| *name == key)
        .map(|(_, value)| value)
}

/// The names that a list of lines allows: the first says that it is a list of what is allowed, later ones add to it or,
/// behind a `~`, take from it.
fn allowed<'a>(lines: impl Iterator<Item = &'a str>, groups: &Groups) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for line in lines {
        let (takes, words) = match line.strip_prefix('~') {
            Some(words) => (true, words),
            None => (false, line),
        };
        for word in words.split_whitespace() {
            for name in groups.members(word)? {
                match takes {
                    true => names.remove(&name),
                    false => names.insert(name),
                };
            }
        }
    }
    Ok(names)
}

/// systemd's groups of system calls.
struct Groups(BTreeMap<String, Vec<String>>);

impl Groups {
    /// Asks for all of them: a line for each, its members indented below it.
    fn read() -> Result<Groups> {
        let text = run_tool("systemd-analyze", &["--no-pager", "syscall-filter"])?;
        let (mut groups, mut group) = (BTreeMap::<String, Vec<String>>::new(), String::new());
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
            match line.strip_prefix("    ") {
                Some(member) => groups
                    .entry(group.clone())
                    .or_default()
                    .push(member.trim().into()),
                None => group = line.trim().into(),
            }
        }
        Ok(Groups(groups))
    }

    /// The system calls that a word of the list stands for.
    fn members(&self, word: &str) -> Result<BTreeSet<String>> {
        if !word.starts_with('@') {
            return Ok([word.into()].into());
        }
        let members = self.0.get(word).with_context(|| format!("no group {word}"))?;
        let mut names = BTreeSet::new();
        for member in members {
            names.extend(self.members(member)?);
        }
        Ok(names)
    }
}

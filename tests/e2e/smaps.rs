//! The memory of a process, as the kernel tells it.

use std::path::Path;

use anyhow::Result;

/// A mapping.
pub struct Mapping {
    /// Its first line: addresses, permissions, file.
    pub head: String,
    /// Its flags, two letters each.
    flags: String,
}

impl Mapping {
    /// All mappings of a process, which is named by its folder in /proc.
    pub fn of(process: &Path) -> Result<Vec<Mapping>> {
        let text = std::fs::read_to_string(process.join("smaps"))?;
        let mut lines = text.lines();
        let mut found = Vec::new();
        while let Some(head) = lines.next() {
            let flags = lines.find_map(|line| line.strip_prefix("VmFlags:"));
            found.push(Mapping {
                head: head.into(),
                flags: flags.unwrap_or_default().into(),
            });
        }
        Ok(found)
    }

    /// Whether it has all of these flags.
    pub fn has(&self, flags: &[&str]) -> bool {
        flags
            .iter()
            .all(|flag| self.flags.split_whitespace().any(|it| it == *flag))
    }
}

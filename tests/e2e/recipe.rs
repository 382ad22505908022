//! Commands as a document gives them to its readers: what a case runs is what stands there.

use std::path::Path;

use anyhow::{ensure, Context, Result};

/// The blocks of commands right below a heading: the fenced ones that name no language.
pub fn blocks(root: &Path, document: &str, heading: &str) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(root.join(document)).with_context(|| document.to_owned())?;
    let (mut blocks, mut fence, mut here) = (Vec::new(), None, false);
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), fence) {
            (Some(language), None) => {
                fence = Some(language);
                if here && language.is_empty() {
                    blocks.push(String::new());
                }
            }
            (Some(_), Some(_)) => fence = None,
            (None, Some("")) if here => {
                let block = blocks.last_mut().context("a line outside of a block")?;
                *block += &format!("{}\n", line.trim_start());
            }
            (None, None) if line.starts_with('#') => here = line.trim_matches(['#', ' ']) == heading,
            _ => {}
        }
    }
    ensure!(!blocks.is_empty(), "{document}: no commands below \"{heading}\"");
    Ok(blocks)
}

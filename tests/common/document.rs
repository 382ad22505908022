//! The tables of a document, for tests that hold it to the code.

use std::fs;
use std::path::Path;

/// The repository's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The cells of every line of the tables below a heading, but for the lines that name the columns.
pub fn rows(document: &str, heading: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join(document)).unwrap_or_else(|e| panic!("{document}: {e}"));
    let (_, section) = text
        .split_once(&format!("\n## {heading}"))
        .unwrap_or_else(|| panic!("{document}: no heading {heading}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let lines: Vec<&str> = section.lines().collect();
    let is_rule = |line: Option<&&str>| line.is_some_and(|line| line.starts_with("|---"));
    let body = lines.iter().enumerate().filter(|(at, line)| {
        let names_columns = is_rule(lines.get(at + 1));
        line.starts_with("| ") && !names_columns
    });
    body.map(|(_, line)| cells(line)).collect()
}

/// A line's cells. A bar behind a backslash is text.
fn cells(line: &str) -> Vec<String> {
    const BAR: &str = "\u{0}";
    let line = line.replace("\\|", BAR);
    let cells = line.trim_matches('|').split('|');
    cells.map(|cell| cell.trim().replace(BAR, "|")).collect()
}

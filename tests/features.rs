//! docs/features.md against the code: every bit that any port offers has its row and no other bit has one, and every test
//! that a row names exists.

#[path = "common/document.rs"]
mod document;
#[path = "common/names.rs"]
mod names;
#[path = "common/quoted.rs"]
mod quoted;

use names::Names;
use ovs_vhost::port::{features, protocol_features, Mode, Switches};
use ovs_vhost::vhost_user::ProtocolFeatures;
use ovs_vhost::virtio::features::{Features, NAMES};
use quoted::quoted;

/// A row: its bit, the name of the feature, and what shows it.
struct Row {
    bit: u32,
    name: String,
    cells: Vec<String>,
}

impl Row {
    /// What stands between backquotes in its cells.
    fn tests(&self) -> impl Iterator<Item = &str> {
        self.cells.iter().flat_map(|cell| quoted(cell))
    }
}

/// The rows below a heading of the document.
fn rows(heading: &str) -> Vec<Row> {
    let rows = document::rows("docs/features.md", heading);
    rows.into_iter().filter_map(row).collect()
}

fn row(cells: Vec<String>) -> Option<Row> {
    let mut cells = cells.into_iter();
    let bit = cells.next()?.parse().ok()?;
    let name = cells.next()?.trim_matches('`').to_owned();
    let cells = cells.collect();
    Some(Row { bit, name, cells })
}

/// All that ports offer, on whatever setting of the operator's switches.
fn offered() -> (Features, ProtocolFeatures) {
    let (mut bits, mut protocol) = (Features::NONE, 0);
    for mode in [Mode::Client, Mode::Server] {
        for setting in 0..16 {
            let switches = Switches {
                tso: setting & 1 != 0,
                iommu: setting & 2 != 0,
                postcopy: setting & 4 != 0,
            };
            bits = bits | features(mode, switches);
            protocol |= protocol_features(mode, switches, setting & 8 != 0).0;
        }
    }
    (bits, ProtocolFeatures(protocol))
}

/// Proves that the rows are those of `offered`; `name` says what a bit is called.
fn compare(heading: &str, offered: u64, name: impl Fn(u32) -> String) {
    let rows = rows(heading);
    let mut wrong = Vec::new();
    for bit in 0..64 {
        let found: Vec<&Row> = rows.iter().filter(|row| row.bit == bit).collect();
        let name = name(bit);
        match (offered >> bit & 1 == 1, found.as_slice()) {
            (true, [row]) if row.name == name => {}
            (false, []) => {}
            (true, []) => wrong.push(format!(
                "offered, no row: | {bit} | `{name}` | - | - | - | - | - |"
            )),
            (true, _) => wrong.push(format!("bit {bit} wants one row, called `{name}`")),
            (false, _) => wrong.push(format!("not offered by any port, remove its row: {bit} `{name}`")),
        }
    }
    for row in &rows {
        if row.cells.len() != 5 || row.cells.iter().any(String::is_empty) {
            wrong.push(format!(
                "`{}` wants five cells, each with a test, words or -",
                row.name
            ));
        }
        if row.tests().next().is_none() {
            wrong.push(format!("`{}` is shown by no test", row.name));
        }
    }
    assert!(wrong.is_empty(), "docs/features.md, {heading}: {wrong:#?}");
}

#[test]
fn every_feature_bit_that_is_offered_has_its_row() {
    compare("Feature bits", offered().0 .0, |bit| {
        let known = NAMES.iter().find(|(number, _)| *number == bit);
        known.map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).to_owned())
    });
}

#[test]
fn every_protocol_feature_that_is_offered_has_its_row() {
    compare("Protocol features", offered().1 .0, |bit| {
        ProtocolFeatures(1 << bit).to_string()
    });
}

#[test]
fn every_test_that_a_row_names_exists() {
    let names = Names::read();
    let rows = ["Feature bits", "Protocol features"].map(rows);
    let wrong: Vec<String> = rows
        .iter()
        .flatten()
        .flat_map(|row| {
            let missing = row.tests().filter(|name| !names.contain(name));
            missing.map(|name| format!("`{}` names `{name}`", row.name))
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "docs/features.md names tests that are not there: {wrong:#?}"
    );
}

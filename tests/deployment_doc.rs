//! docs/deployment.md against the systemd drop-in: each setting and each capability has its row, and no row is of another.

#[path = "common/document.rs"]
mod document;
#[path = "common/quoted.rs"]
mod quoted;

use std::collections::BTreeSet;
use std::fs;

use document::{root, rows};
use quoted::quoted;

const DOCUMENT: &str = "docs/deployment.md";
const DROP_IN: &str = "deploy/systemd/ovs-vswitchd.service.d/vhost-plugin.conf";

/// The settings of the drop-in, with their values.
fn settings() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join(DROP_IN)).expect("the drop-in");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (key.into(), value.into())).collect()
}

/// The names in the first cells of a table.
fn named(heading: &str) -> BTreeSet<String> {
    let rows = rows(DOCUMENT, heading);
    rows.iter()
        .flat_map(|cells| quoted(&cells[0]).map(String::from).collect::<Vec<_>>())
        .collect()
}

#[test]
fn every_setting_of_the_drop_in_is_explained_and_no_other() {
    let set: BTreeSet<String> = settings().into_iter().map(|(key, _)| key).collect();
    assert!(set.len() > 10, "only {set:?}");
    assert_eq!(named("The drop-in"), set);
}

#[test]
fn every_capability_that_the_drop_in_leaves_has_a_reason() {
    let left: BTreeSet<String> = settings()
        .iter()
        .filter(|(key, _)| key == "CapabilityBoundingSet")
        .flat_map(|(_, value)| value.split(' ').map(String::from))
        .collect();
    assert!(left.len() > 5, "only {left:?}");
    assert_eq!(named("Capabilities"), left);
}

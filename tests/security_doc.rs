//! docs/security.md against the tests: what it says shows that an attack fails must exist, by that name.

#[path = "common/names.rs"]
mod names;

use std::fs;

use names::{quoted, root, Names};

/// The lines of the table of attacks: the attack, and the names in its last cell.
fn attacks() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("docs/security.md")).expect("docs/security.md");
    let (_, table) = text
        .split_once("| attack | must come of it | shown by |")
        .expect("the table of attacks");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with("| "));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [attack, _, shown_by] = cells[..] else {
            panic!("not three cells: {line}");
        };
        (attack.to_owned(), shown_by.to_owned())
    })
    .collect()
}

#[test]
fn every_attack_is_shown_to_fail_by_tests_that_exist() {
    let (names, attacks) = (Names::read(), attacks());
    assert!(attacks.len() > 25, "only {} attacks", attacks.len());
    for (attack, shown_by) in attacks {
        assert!(
            quoted(&shown_by).next().is_some(),
            "nothing shows that this fails: {attack}"
        );
        for name in quoted(&shown_by) {
            assert!(
                names.contain(name),
                "there is no test {name}, which is to show: {attack}"
            );
        }
    }
}

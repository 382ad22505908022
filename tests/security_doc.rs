//! docs/security.md against the tests: what it says shows that an attack fails must exist, by that name.

#[path = "common/document.rs"]
mod document;
#[path = "common/names.rs"]
mod names;
#[path = "common/quoted.rs"]
mod quoted;

use document::rows;
use names::Names;
use quoted::quoted;

/// The lines of the table of attacks: the attack, and the names in its last cell.
fn attacks() -> Vec<(String, String)> {
    let rows = rows("docs/security.md", "Attacks, and what shows that they fail");
    rows.into_iter()
        .map(|cells| {
            let [attack, _, shown_by] = &cells[..] else {
                panic!("not three cells: {cells:?}");
            };
            (attack.clone(), shown_by.clone())
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

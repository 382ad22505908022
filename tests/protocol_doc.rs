//! docs/protocol.md against the code: its tables say what is handled and offered, and must not say anything else.

#[path = "common/document.rs"]
mod document;

use ovs_vhost::port::{features, protocol_features, Mode, Switches};
use ovs_vhost::vhost_user::requests::{Gate, Row, TABLE};
use ovs_vhost::vhost_user::{ProtocolFeatures, BACKEND_TABLE};

/// The rows that begin with a number, of the table below a heading.
fn table(heading: &str) -> Vec<Vec<String>> {
    let mut rows = document::rows("docs/protocol.md", heading);
    rows.retain(|cells| cells[0].starts_with(|c: char| c.is_ascii_digit()));
    rows
}

fn needs(row: &Row) -> String {
    match row.rule.as_ref().map(|rule| rule.gate) {
        None | Some(Gate::Open) => String::new(),
        Some(Gate::ProtocolFeatures) => "`PROTOCOL_FEATURES`".to_owned(),
        Some(Gate::Negotiated(feature)) => format!("`{feature}`"),
    }
}

#[test]
fn the_table_of_requests_says_what_is_handled_and_what_it_needs() {
    let document = table("Requests");
    let mut wrong = Vec::new();
    for row in &TABLE {
        let name = row
            .name
            .strip_prefix("VHOST_USER_")
            .expect("the specification's prefix");
        let handled = if row.rule.is_some() { "yes" } else { "refused" };
        let expected = [
            row.id.to_string(),
            format!("`{name}`"),
            handled.to_owned(),
            needs(row),
        ];
        match document.iter().find(|cells| cells[0] == expected[0]) {
            Some(cells) if cells[..4] == expected => {
                let explained = row.rule.is_some() || !cells[4].is_empty();
                assert!(
                    explained,
                    "{name} is refused, and docs/protocol.md does not say why"
                );
            }
            _ => wrong.push(format!("| {} | ... |", expected.join(" | "))),
        }
    }
    assert!(wrong.is_empty(), "docs/protocol.md must say: {wrong:#?}");
    assert_eq!(document.len(), TABLE.len(), "a line for each request, once");
}

#[test]
fn the_table_of_back_end_requests_says_what_is_sent() {
    let document = table("Back-end requests");
    let expected = BACKEND_TABLE.map(|(id, name, sent)| {
        let sent = if sent { "yes" } else { "no" };
        [id.to_string(), format!("`{name}`"), sent.to_owned()]
    });
    let said: Vec<_> = document.iter().map(|cells| &cells[..3]).collect();
    assert_eq!(said, expected, "docs/protocol.md");
    assert!(document.iter().all(|cells| !cells[3].is_empty()));
}

#[test]
fn the_table_of_protocol_features_says_what_is_offered() {
    let document = table("Protocol features");
    let offered = protocol_features(Mode::Client, Switches::default(), false);
    let mut wrong = Vec::new();
    for (bit, cells) in document.iter().enumerate() {
        let feature = ProtocolFeatures(1 << bit);
        let state = if offered.contains(feature) { "yes" } else { "no" };
        let expected = [bit.to_string(), format!("`{feature}`"), state.to_owned()];
        if cells[..3] != expected {
            wrong.push(format!("| {} | ... |", expected.join(" | ")));
        }
        let explained = state == "yes" || !cells[3].is_empty();
        assert!(
            explained,
            "{feature} is not offered, and docs/protocol.md does not say why"
        );
    }
    assert!(wrong.is_empty(), "docs/protocol.md must say: {wrong:#?}");
    let named = (0..64).take_while(|bit| !ProtocolFeatures(1 << bit).to_string().starts_with("bit "));
    assert_eq!(
        document.len(),
        named.count(),
        "a line for each bit that has a name"
    );
    assert_eq!(
        offered.0 >> document.len(),
        0,
        "nothing is offered that has no line"
    );
}

/// Whether a feature bit is offered, in the document's words.
fn offered(bit: u32) -> &'static str {
    let has = |mode, switches| features(mode, switches).0 >> bit & 1 == 1;
    let off = Switches::default();
    let (tso, iommu) = (Switches { tso: true, ..off }, Switches { iommu: true, ..off });
    match (
        has(Mode::Client, off),
        has(Mode::Client, tso),
        has(Mode::Client, iommu),
    ) {
        (true, true, _) => "yes",
        (true, false, _) => "without TSO",
        (false, true, _) => "with TSO",
        (false, false, true) => "with IOMMU",
        (false, false, false) => "no",
    }
}

#[test]
fn the_table_of_feature_bits_says_what_is_offered() {
    let document = table("Feature bits");
    let mut wrong = Vec::new();
    for bit in 0..64 {
        let state = offered(bit);
        match document.iter().find(|cells| cells[0] == bit.to_string()) {
            Some(cells) => {
                if cells[2] != state {
                    wrong.push(format!("| {bit} | {} | {state} | ... |", cells[1]));
                }
                let explained = state != "no" || !cells[3].is_empty();
                assert!(
                    explained,
                    "{} is not offered, and docs/protocol.md does not say why",
                    cells[1]
                );
            }
            None if state != "no" => wrong.push(format!("| {bit} | ... | {state} | ... |")),
            None => {}
        }
    }
    assert!(wrong.is_empty(), "docs/protocol.md must say: {wrong:#?}");
}

//! A walk along every request number there is: each is carried out, or refused as the specification says.
//!
//! "Refused" is one thing, whatever the reason: an answer that says no if the sender asked for one and may (need_reply,
//! REPLY_ACK) and waits for no other, then the end of the connection; the device never hears of it, and no descriptor stays open.

use super::corpus::{every_number, other_fds, other_lengths};
use super::message::{Flags, Header, MAX_FDS, MAX_PAYLOAD};
use super::requests::{row, Gate};
use super::session::{Next, Outcome, Session, SessionError};
use super::testing::{handled, id, message, numbers, sample, Fake, Probe, NEED_REPLY, OFFER, PLAIN};
use super::ProtocolFeatures;

/// One message to a fresh connection with these protocol features, and what came of it.
struct Visit {
    outcome: Outcome,
    heard: bool,
    leaked: usize,
}

fn visit(probe: &Probe, features: ProtocolFeatures, id: u32, flags: Flags, body: (&[u8], usize)) -> Visit {
    let (mut session, mut device) = (Session::new(OFFER), Fake::default());
    let negotiate = message(16, PLAIN, numbers(&[features.0]), vec![]);
    assert_eq!(session.handle(negotiate, &mut device).error, None);
    let (payload, fds) = body;
    let outcome = session.handle(message(id, flags, payload.to_vec(), probe.fds(fds)), &mut device);
    let heard = !device.seen.is_empty();
    drop(device);
    Visit {
        outcome,
        heard,
        leaked: probe.leaked(),
    }
}

/// The acknowledgement that says no.
fn no(id: u32) -> Vec<u8> {
    let header = Header {
        request: id,
        flags: Flags::OF_A_REPLY,
        size: 8,
    };
    [header.encode().as_slice(), &1_u64.to_ne_bytes()].concat()
}

/// Proves that a message was refused: as it should be answered, and with nothing left behind.
fn assert_refused(visit: &Visit, answer: Option<Vec<u8>>, what: &str) {
    assert!(visit.outcome.error.is_some(), "{what}: taken");
    assert_eq!(visit.outcome.reply, answer, "{what}");
    assert_eq!(visit.outcome.next, Next::Close, "{what}");
    assert!(!visit.heard, "{what}: the device heard of it");
    assert_eq!(visit.leaked, 0, "{what}: descriptors are open");
}

/// Sends a bad message with and without a wish for an answer, and without REPLY_ACK.
fn refused_every_way(probe: &Probe, features: ProtocolFeatures, id: u32, body: (&[u8], usize), what: &str) {
    let acks = features.contains(ProtocolFeatures::REPLY_ACK);
    let waits_for_other = row(id)
        .and_then(|row| row.rule.as_ref())
        .is_some_and(|rule| !rule.answer.is_acknowledgement());
    let answer = (acks && !waits_for_other).then(|| no(id));
    assert_refused(&visit(probe, features, id, PLAIN, body), None, what);
    assert_refused(&visit(probe, features, id, NEED_REPLY, body), answer, what);
}

const ALL: ProtocolFeatures = ProtocolFeatures(OFFER.protocol_features);
const NO_ACK: ProtocolFeatures = ProtocolFeatures(ALL.0 & !ProtocolFeatures::REPLY_ACK.0);

#[test]
fn every_number_is_carried_out_or_refused_and_nothing_between() {
    let probe = Probe::new();
    for id in every_number() {
        match row(id).and_then(|row| row.rule.as_ref()) {
            Some(_) => {
                let (payload, fds) = sample(id);
                let outcome = visit(&probe, ALL, id, PLAIN, (&payload, fds)).outcome;
                assert_eq!(
                    (outcome.error, outcome.next),
                    (None, Next::Continue),
                    "request {id}"
                );
            }
            None => {
                for (payload, fds) in [(vec![], 0), (vec![0; 8], 1), (vec![0xff; MAX_PAYLOAD], MAX_FDS)] {
                    for features in [ALL, NO_ACK, ProtocolFeatures(0)] {
                        let what = format!("request {id}, {} bytes", payload.len());
                        refused_every_way(&probe, features, id, (&payload, fds), &what);
                    }
                }
            }
        }
    }
}

#[test]
fn a_request_whose_feature_is_not_negotiated_is_refused_as_if_it_were_not_there() {
    let probe = Probe::new();
    for (id, name, rule) in handled() {
        let Gate::Negotiated(feature) = rule.gate else {
            continue;
        };
        let (payload, fds) = sample(id);
        for features in [ALL, NO_ACK, ProtocolFeatures::REPLY_ACK, ProtocolFeatures(0)] {
            let without = ProtocolFeatures(features.0 & !feature.0);
            refused_every_way(&probe, without, id, (&payload, fds), name);
            let error = visit(&probe, without, id, PLAIN, (&payload, fds)).outcome.error;
            assert!(
                matches!(error, Some(SessionError::Ungated { .. })),
                "{name}: {error:?}"
            );
        }
    }
}

#[test]
fn every_request_refuses_a_payload_of_another_length() {
    let probe = Probe::new();
    for (id, name, _) in handled() {
        for (payload, fds) in other_lengths(id) {
            refused_every_way(&probe, ALL, id, (&payload, fds), name);
        }
    }
}

#[test]
fn every_request_refuses_any_other_number_of_descriptors() {
    let probe = Probe::new();
    for (id, name, _) in handled() {
        let (payload, _) = sample(id);
        for fds in other_fds(id) {
            refused_every_way(&probe, ALL, id, (&payload, fds), name);
        }
    }
}

#[test]
fn the_numbers_the_specification_gave_away_are_where_it_put_them() {
    // The first and the last of each generation of the protocol, from the specification's text.
    for (number, name) in [
        (1, "GET_FEATURES"),
        (14, "SET_VRING_ERR"),
        (18, "SET_VRING_ENABLE"),
        (24, "GET_CONFIG"),
        (31, "GET_INFLIGHT_FD"),
        (34, "RESET_DEVICE"),
        (40, "GET_STATUS"),
        (44, "GET_SHMEM_CONFIG"),
    ] {
        assert_eq!(id(name), number);
    }
    assert!(
        every_number().any(|id| row(id).is_none()),
        "and some are nobody's"
    );
}

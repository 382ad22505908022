//! A session with a device that does nothing: what of each request reaches it, and what is answered.

use crate::memory::{FrontendAddr, GuestAddr, RegionDesc};
use crate::vhost_user::message::Flags;
use crate::vhost_user::testing::{
    handled, id, message, numbers, sample, state, Fake, Probe, NEED_REPLY, OFFER, PLAIN,
};

use super::*;

/// A session, a device and the descriptors they are sent.
struct Bench {
    session: Session,
    device: Fake,
    probe: Probe,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            session: Session::new(OFFER),
            device: Fake::default(),
            probe: Probe::new(),
        }
    }

    /// Everything negotiated.
    fn negotiated() -> Bench {
        let mut bench = Bench::new();
        bench.send(
            "SET_PROTOCOL_FEATURES",
            PLAIN,
            numbers(&[OFFER.protocol_features]),
            0,
        );
        bench
    }

    fn send(&mut self, name: &str, flags: Flags, payload: Vec<u8>, fds: usize) -> Outcome {
        let message = message(id(name), flags, payload, self.probe.fds(fds));
        self.session.handle(message, &mut self.device)
    }

    fn send_sample(&mut self, id: u32, flags: Flags) -> Outcome {
        let (payload, fds) = sample(id);
        self.session
            .handle(message(id, flags, payload, self.probe.fds(fds)), &mut self.device)
    }
}

fn reply(id: u32, payload: u64) -> Option<Vec<u8>> {
    let header = Header {
        request: id,
        flags: Flags(0x5),
        size: 8,
    };
    Some([header.encode().as_slice(), &payload.to_ne_bytes()].concat())
}

#[test]
fn every_request_is_carried_out_and_answered_as_its_row_says() {
    let mut bench = Bench::negotiated();
    for (id, name, rule) in handled() {
        let plain = bench.send_sample(id, PLAIN);
        let asked = bench.send_sample(id, NEED_REPLY);
        assert_eq!((plain.error, plain.next), (None, Next::Continue), "{name}");
        assert_eq!((asked.error, asked.next), (None, Next::Continue), "{name}");
        match rule.answer {
            Answer::Ack | Answer::AckOrRegions => {
                assert_eq!((plain.reply, asked.reply), (None, reply(id, 0)), "{name}");
            }
            // need_reply changes nothing where a reply comes anyway
            _ => {
                assert!(plain.reply.is_some(), "{name}");
                assert_eq!(plain.reply, asked.reply, "{name}");
            }
        }
        let with_fd = matches!(rule.answer, Answer::Fd | Answer::Inflight);
        assert_eq!(plain.fd.is_some(), with_fd, "{name}");
    }
}

#[test]
fn the_session_answers_from_its_offer_without_the_device() {
    let mut bench = Bench::negotiated();
    for (name, number) in [
        ("GET_FEATURES", OFFER.features),
        ("GET_PROTOCOL_FEATURES", OFFER.protocol_features),
        ("GET_QUEUE_NUM", 2),
        ("GET_MAX_MEM_SLOTS", 509),
    ] {
        assert_eq!(
            bench.send(name, PLAIN, vec![], 0).reply,
            reply(id(name), number),
            "{name}"
        );
    }
    assert!(bench.device.seen.is_empty());
}

#[test]
fn regions_are_answered_with_our_addresses_in_a_payload_as_long_as_the_request() {
    const OURS: u64 = 0x7fff_1234_5000;
    fn region(guest: u64) -> RegionDesc {
        RegionDesc {
            guest: GuestAddr(guest),
            size: 0x1000,
            frontend: FrontendAddr(OURS),
            mmap_offset: 7,
        }
    }
    let mut bench = Bench::negotiated();
    // Not in the order of addresses: in that of the request.
    bench.device.answers = Some(|| Response::Regions(Regions::Table(vec![region(9), region(0)])));
    let bytes = bench.send_sample(5, PLAIN).reply.expect("a reply");
    assert_eq!(bytes[..12], [5_u32, 5, 72].map(u32::to_ne_bytes).concat());
    let fields = [2, 9, 0x1000, OURS, 7, 0, 0x1000, OURS, 7];
    assert_eq!(bytes[12..], numbers(&fields));

    bench.device.answers = Some(|| Response::Regions(Regions::One(region(9))));
    let bytes = bench.send_sample(37, PLAIN).reply.expect("a reply");
    assert_eq!(bytes[..12], [37_u32, 5, 40].map(u32::to_ne_bytes).concat());
    assert_eq!(bytes[12..], numbers(&[0, 9, 0x1000, OURS, 7]));
}

#[test]
fn a_userfaultfd_comes_with_an_empty_reply() {
    let mut bench = Bench::negotiated();
    let outcome = bench.send("POSTCOPY_ADVISE", PLAIN, vec![], 0);
    // What QEMU insists on: no payload, one descriptor.
    assert_eq!(outcome.reply, Some([28, 5, 0].map(u32::to_ne_bytes).concat()));
    assert!(outcome.fd.is_some());
    bench.device.refuses = true;
    let outcome = bench.send("POSTCOPY_ADVISE", PLAIN, vec![], 0);
    assert_eq!((outcome.reply, outcome.next), (None, Next::Close));
    assert!(outcome.fd.is_none());
}

#[test]
fn a_zero_in_place_of_memory_is_an_acknowledgement_and_is_not_answered() {
    for name in ["NONE", "SET_MEM_TABLE", "ADD_MEM_REG", "REM_MEM_REG"] {
        let mut bench = Bench::negotiated();
        let outcome = bench.send(name, PLAIN, numbers(&[0]), 0);
        assert_eq!((outcome.error, outcome.reply), (None, None), "{name}");
        assert!(
            matches!(bench.device.seen.as_slice(), [Request::PostcopyAck]),
            "{name}"
        );
        for (payload, fds) in [
            (numbers(&[1]), 0),
            (numbers(&[1 << 32]), 0),
            (vec![0; 4], 0),
            (vec![0; 8], 2),
        ] {
            let mut bench = Bench::negotiated();
            let outcome = bench.send(name, PLAIN, payload.clone(), fds);
            assert!(
                matches!(outcome.error, Some(SessionError::Malformed { .. })),
                "{name} {payload:?} {fds}"
            );
            assert_eq!(outcome.next, Next::Close, "{name}");
            assert!(bench.device.seen.is_empty(), "{name}");
            assert_eq!(bench.probe.leaked(), 0, "{name}");
        }
    }
}

#[test]
fn get_vring_base_carries_both_halves() {
    let mut bench = Bench::negotiated();
    let outcome = bench.send("GET_VRING_BASE", PLAIN, state(1, 0), 0);
    let bytes = outcome.reply.expect("a reply");
    assert_eq!(bytes[12..], state(1, 0x8005_8004));
}

#[test]
fn set_log_base_is_answered_with_the_log_it_names() {
    let mut bench = Bench::negotiated();
    for flags in [PLAIN, NEED_REPLY] {
        let outcome = bench.send("SET_LOG_BASE", flags, numbers(&[0x1000, 0x20]), 1);
        let bytes = outcome.reply.expect("a reply");
        assert_eq!(bytes[..12], [6, 0, 0, 0, 5, 0, 0, 0, 16, 0, 0, 0]);
        assert_eq!(bytes[12..], numbers(&[0x1000, 0x20]));
    }
}

#[test]
fn a_log_of_no_bytes_or_beyond_all_files_is_refused() {
    for (size, offset) in [
        (0, 0),
        (0, 8),
        (1, u64::MAX),
        (u64::MAX, 1),
        (0xffff_ffff_ffff_ff00, 0x200),
    ] {
        let mut bench = Bench::negotiated();
        let outcome = bench.send("SET_LOG_BASE", NEED_REPLY, numbers(&[size, offset]), 1);
        let cause = Malformed::Log { size, offset };
        let name = "VHOST_USER_SET_LOG_BASE";
        assert_eq!(outcome.error, Some(SessionError::Malformed { name, cause }));
        assert_eq!((outcome.reply, outcome.next), (None, Next::Close));
        assert_eq!((bench.probe.leaked(), bench.device.seen.len()), (0, 0));
    }
}

#[test]
fn a_gated_request_before_negotiation_is_refused_and_never_reaches_the_device() {
    for (id, name, rule) in handled() {
        let Gate::Negotiated(feature) = rule.gate else {
            continue;
        };
        for granted in [
            ProtocolFeatures(0),
            ProtocolFeatures(OFFER.protocol_features & !feature.0),
        ] {
            let mut bench = Bench::new();
            bench.send("SET_PROTOCOL_FEATURES", PLAIN, numbers(&[granted.0]), 0);
            let outcome = bench.send_sample(id, PLAIN);
            let missing = format!("VHOST_USER_PROTOCOL_F_{feature}");
            assert_eq!(outcome.error, Some(SessionError::Ungated { name, missing }));
            assert_eq!((outcome.reply, outcome.next), (None, Next::Close), "{name}");
            assert!(bench.device.seen.is_empty(), "{name}");
            assert_eq!(bench.probe.leaked(), 0, "{name}");
        }
    }
}

#[test]
fn without_the_offered_feature_bit_there_are_no_protocol_features() {
    for (id, name, rule) in handled().filter(|(_, _, rule)| rule.gate == Gate::ProtocolFeatures) {
        let offer = Offer { features: 1, ..OFFER };
        let (payload, _) = sample(id);
        let outcome = Session::new(offer).handle(message(id, PLAIN, payload, vec![]), &mut Fake::default());
        assert!(
            matches!(outcome.error, Some(SessionError::Ungated { .. })),
            "{name} {:?}",
            rule.gate
        );
    }
}

#[test]
fn protocol_features_may_be_negotiated_again_for_each_queue_pair() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        let outcome = bench.send("SET_PROTOCOL_FEATURES", PLAIN, numbers(&[0x1801d]), 0);
        let note = "negotiated Vhost-user protocol features: 0x1801d";
        assert_eq!(outcome.note.as_deref(), Some(note));
        assert_eq!(bench.session.protocol_features(), ProtocolFeatures(0x1801d));
    }
}

#[test]
fn protocol_features_that_were_not_offered_are_refused_whole() {
    for bit in (0..64).filter(|bit| OFFER.protocol_features >> bit & 1 == 0) {
        let mut bench = Bench::new();
        let outcome = bench.send("SET_PROTOCOL_FEATURES", PLAIN, numbers(&[0x8 | 1 << bit]), 0);
        assert!(matches!(outcome.error, Some(SessionError::NotOffered { excess, .. }) if excess == 1 << bit));
        assert_eq!(outcome.next, Next::Close);
        assert_eq!(
            bench.session.protocol_features(),
            ProtocolFeatures(0),
            "bit {bit}"
        );
    }
}

#[test]
fn a_protocol_feature_that_is_not_implemented_is_not_offered() {
    let mut session = Session::new(Offer {
        protocol_features: u64::MAX,
        ..OFFER
    });
    let outcome = session.handle(
        message(id("GET_PROTOCOL_FEATURES"), PLAIN, vec![], vec![]),
        &mut Fake::default(),
    );
    assert_eq!(outcome.reply, reply(15, ProtocolFeatures::SUPPORTED.0));
}

#[test]
fn features_that_were_not_offered_never_reach_the_device() {
    let mut bench = Bench::negotiated();
    let outcome = bench.send("SET_FEATURES", NEED_REPLY, numbers(&[0x1_4000_0001]), 0);
    assert!(matches!(
        outcome.error,
        Some(SessionError::NotOffered { excess: 1, .. })
    ));
    let line = outcome
        .error
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    assert!(
        line.ends_with("bits 0x1 were not offered: VIRTIO_NET_F_CSUM"),
        "{line}"
    );
    assert_eq!((outcome.reply, outcome.next), (reply(2, 1), Next::Continue));
    assert!(bench.device.seen.is_empty());
    let outcome = bench.send("SET_FEATURES", NEED_REPLY, numbers(&[OFFER.features]), 0);
    assert_eq!((outcome.reply, outcome.next), (reply(2, 0), Next::Continue));
    assert!(matches!(bench.device.seen.as_slice(), [Request::SetFeatures(bits)] if *bits == OFFER.features));
}

#[test]
fn need_reply_means_nothing_before_reply_ack_is_negotiated() {
    let mut bench = Bench::new();
    let outcome = bench.send("SET_OWNER", NEED_REPLY, vec![], 0);
    assert_eq!((outcome.reply, outcome.next), (None, Next::Continue));
    bench.device.refuses = true;
    let outcome = bench.send("SET_OWNER", NEED_REPLY, vec![], 0);
    assert_eq!((outcome.reply, outcome.next), (None, Next::Close));
}

#[test]
fn the_request_that_negotiates_reply_ack_is_itself_acknowledged() {
    let mut bench = Bench::new();
    let outcome = bench.send("SET_PROTOCOL_FEATURES", NEED_REPLY, numbers(&[0x8]), 0);
    assert_eq!(outcome.reply, reply(16, 0));
}

#[test]
fn a_refusal_is_answered_when_asked_for_and_closes_when_not() {
    for (id, name, rule) in handled() {
        for flags in [PLAIN, NEED_REPLY] {
            let mut bench = Bench::negotiated();
            bench.device.refuses = true;
            let outcome = bench.send_sample(id, flags);
            let Some(error) = outcome.error else { continue }; // the session's own
            assert_eq!(error.to_string(), format!("{name}: not today"));
            let expected = match (rule.answer, flags.need_reply()) {
                (answer, true) if answer.is_acknowledgement() => (reply(id, 1), Next::Continue),
                // A number that means "no" cannot be told from one that means something.
                _ => (None, Next::Close),
            };
            assert_eq!((outcome.reply, outcome.next), expected, "{name}");
            assert_eq!(bench.probe.leaked(), 0, "{name}");
        }
    }
}

#[test]
fn requests_that_are_not_supported_or_unknown_are_answered_when_asked_and_close() {
    let refused = requests::TABLE
        .iter()
        .filter(|row| row.rule.is_none())
        .map(|row| row.id);
    for id in refused.chain([45, 0x8000_0001, u32::MAX]) {
        for (flags, expected) in [(PLAIN, None), (NEED_REPLY, reply(id, 1))] {
            let mut bench = Bench::negotiated();
            let message = message(id, flags, vec![0; 8], bench.probe.fds(8));
            let outcome = bench.session.handle(message, &mut bench.device);
            let named = matches!(
                outcome.error,
                Some(SessionError::Unknown(_) | SessionError::Unsupported(_))
            );
            assert!(named, "{:?}", outcome.error);
            assert_eq!(
                (outcome.reply, outcome.next),
                (expected, Next::Close),
                "request {id}"
            );
            assert_eq!(bench.probe.leaked(), 0);
        }
    }
}

#[test]
fn a_malformed_request_is_answered_when_asked_and_closes() {
    for (id, name, rule) in handled() {
        let mut bench = Bench::negotiated();
        let (payload, fds) = sample(id);
        let message = message(id, NEED_REPLY, [payload, vec![0]].concat(), bench.probe.fds(fds));
        let outcome = bench.session.handle(message, &mut bench.device);
        let answer = if rule.answer.is_acknowledgement() {
            reply(id, 1)
        } else {
            None
        };
        assert_eq!((outcome.reply, outcome.next), (answer, Next::Close), "{name}");
        assert!(bench.device.seen.is_empty(), "{name}");
        assert_eq!(bench.probe.leaked(), 0, "{name}");
    }
}

#[test]
fn an_invalid_mtu_is_answered_and_the_connection_lives() {
    let mut bench = Bench::negotiated();
    for mtu in [67, 65536] {
        let outcome = bench.send("NET_SET_MTU", NEED_REPLY, numbers(&[mtu]), 0);
        assert_eq!((outcome.reply, outcome.next), (reply(20, 1), Next::Continue));
    }
}

#[test]
fn wrong_flags_close_without_an_answer() {
    for flags in [0x0, 0x2, 0x3, 0x8, 0xb, 0x5, 0xd, 0x11, 0x8000_0009] {
        let mut bench = Bench::negotiated();
        let outcome = bench.send("SET_OWNER", Flags(flags), vec![], 0);
        assert!(
            matches!(outcome.error, Some(SessionError::Flags { .. })),
            "{flags:#x}"
        );
        assert_eq!((outcome.reply, outcome.next), (None, Next::Close), "{flags:#x}");
        assert!(bench.device.seen.is_empty());
    }
}

#[test]
fn a_damaged_message_is_refused_however_good_it_looks() {
    for defect in [
        Defect::Oversized(1 << 30),
        Defect::FdsTruncated,
        Defect::FdsInside,
    ] {
        let mut bench = Bench::negotiated();
        let mut message = message(id("SET_OWNER"), NEED_REPLY, vec![], vec![]);
        message.defect = Some(defect);
        let outcome = bench.session.handle(message, &mut bench.device);
        assert_eq!((outcome.reply, outcome.next), (reply(3, 1), Next::Close));
        assert!(bench.device.seen.is_empty());
    }
}

#[test]
fn a_device_that_answers_the_wrong_kind_closes_its_connection_only() {
    let mut bench = Bench::negotiated();
    bench.device.answers = Some(|| Response::U64(1));
    for name in ["GET_VRING_BASE", "SET_OWNER"] {
        let outcome = bench.send_sample(id(name), PLAIN);
        assert!(matches!(outcome.error, Some(SessionError::WrongResponse { .. })));
        assert_eq!((outcome.reply, outcome.next), (None, Next::Close));
    }
}

#[test]
fn queue_pairs_bound_the_vring_index() {
    let mut session = Session::new(Offer {
        queue_pairs: 128,
        ..OFFER
    });
    let mut ask = |index| {
        let message = message(id("SET_VRING_BASE"), PLAIN, state(index, 0), vec![]);
        session.handle(message, &mut Fake::default()).error
    };
    assert_eq!(ask(255), None);
    assert!(ask(256).is_some());
}

#[test]
fn errors_name_the_request_and_the_values() {
    let mut bench = Bench::negotiated();
    let error = bench
        .send("SET_VRING_NUM", PLAIN, state(9, 256), 0)
        .error
        .expect("an error");
    assert_eq!(
        error.to_string(),
        "VHOST_USER_SET_VRING_NUM: vring index 9, this device has 4 vrings"
    );
    let mut bench = Bench::new();
    let error = bench.send_sample(id("SEND_RARP"), PLAIN).error.expect("an error");
    assert_eq!(
        error.to_string(),
        "VHOST_USER_SEND_RARP without VHOST_USER_PROTOCOL_F_RARP negotiated"
    );
}

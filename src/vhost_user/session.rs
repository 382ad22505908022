//! One connection's protocol state: what is offered, what is negotiated, and who answers what.
//!
//! No I/O, no clock, no threads: a message goes in, an [`Outcome`] comes out. The rules of a request stand in
//! [its row](super::requests::TABLE); here is only what holds for all of them: flags, gates, acknowledgements.

use std::fmt::Display;
use std::os::fd::OwnedFd;

use thiserror::Error;

use super::decode::{Decoded, Malformed, Own, Request};
use super::features::ProtocolFeatures;
use super::message::{self, Defect, FlagsError, Header, Message, Regions};
use super::requests::{self, Answer, Gate, Rule};
use super::{config_space, inflight};
use crate::memory::InflightDesc;

/// The feature bit that says: this back-end has protocol features. Not a VIRTIO feature; drivers never see it.
const VHOST_USER_F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// What the back-end offers on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// VIRTIO and vhost feature bits for GET_FEATURES.
    pub features: u64,
    /// Protocol feature bits; what is not in [`ProtocolFeatures::SUPPORTED`] is not offered.
    pub protocol_features: u64,
    /// Queue pairs, as GET_QUEUE_NUM counts for a network device: each has two vrings.
    pub queue_pairs: u16,
    /// Memory regions the front-end may add, for GET_MAX_MEM_SLOTS.
    pub mem_slots: u64,
}

/// Carries out what a session cannot: everything about rings and memory.
pub trait Device {
    /// Carries out one request, whole or not at all.
    ///
    /// # Errors
    /// A [`Refusal`] reaches the front-end as a failed acknowledgement, or costs it the connection.
    fn handle(&mut self, request: Request) -> Result<Response, Refusal>;
}

/// A device's answer. It must be of the kind that [`Answer`] names in the request's row.
#[derive(Debug)]
pub enum Response {
    /// Carried out; there is nothing to tell.
    Done,
    /// A number.
    U64(u64),
    /// Where a vring stopped.
    VringState {
        /// Vring index.
        index: u16,
        /// Its indices, laid out as in [`Request::SetVringBase`].
        num: u32,
    },
    /// A buffer for what is in flight.
    Inflight {
        /// What it is.
        desc: InflightDesc,
        /// As the question had it.
        padded: bool,
        /// Its file.
        fd: OwnedFd,
    },
    /// A part of the configuration space; no bytes if there is no such part.
    Config {
        /// As the question had it.
        offset: u32,
        /// As the question had them.
        flags: u32,
        /// As many bytes as were asked for.
        bytes: Vec<u8>,
    },
    /// Where regions are mapped here.
    Regions(Regions),
    /// A file descriptor.
    Fd(OwnedFd),
}

/// Why a device refuses a request, in words: what and why, with the values.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Refusal(String);

impl Refusal {
    /// Refuses for `reason`, which may be an error of the layer that found it.
    pub fn new(reason: impl Display) -> Refusal {
        Refusal(reason.to_string())
    }
}

/// Why a message was not carried out.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SessionError {
    /// Its header is no request's.
    #[error("{name}: {cause}")]
    Flags {
        /// The request.
        name: &'static str,
        /// What is wrong with the flags.
        cause: FlagsError,
    },
    /// A number that the specification does not have.
    #[error("request {0} is unknown")]
    Unknown(u32),
    /// A request of the specification that this back-end does not have; nothing offered makes it legal.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The receiver found it damaged.
    #[error("{name}: {defect}")]
    Damaged {
        /// The request.
        name: &'static str,
        /// What the receiver found.
        defect: Defect,
    },
    /// Legal only after something that was not negotiated.
    #[error("{name} without {missing} negotiated")]
    Ungated {
        /// The request.
        name: &'static str,
        /// The names of the missing bits.
        missing: String,
    },
    /// It breaks the rules of its row.
    #[error("{name}: {cause}")]
    Malformed {
        /// The request.
        name: &'static str,
        /// Which rule.
        cause: Malformed,
    },
    /// Feature bits that were never offered.
    #[error("{name}: bits {excess:#x} were not offered")]
    NotOffered {
        /// The request.
        name: &'static str,
        /// Those bits.
        excess: u64,
    },
    /// The device refuses.
    #[error("{name}: {refusal}")]
    Refused {
        /// The request.
        name: &'static str,
        /// Why.
        refusal: Refusal,
    },
    /// The device gave an answer that the request does not have.
    #[error("{name}: the device answered {response}")]
    WrongResponse {
        /// The request.
        name: &'static str,
        /// What it answered.
        response: String,
    },
}

impl SessionError {
    /// Whether the front-end can be taken at its word after this: it asked a well-formed question and hears
    /// "no". After anything else, what it sends next means nothing.
    fn is_an_answer(&self) -> bool {
        match self {
            SessionError::NotOffered { .. } | SessionError::Refused { .. } => true,
            // The specification has an invalid MTU answered, not punished.
            SessionError::Malformed { cause, .. } => matches!(cause, Malformed::Mtu(_)),
            _ => false,
        }
    }
}

/// Whether the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for the next message.
    Continue,
    /// Send the reply, if there is one, and close.
    Close,
}

/// What a message led to.
#[derive(Debug)]
pub struct Outcome {
    /// Bytes to send.
    pub reply: Option<Vec<u8>>,
    /// A file descriptor to send with the first of them.
    pub fd: Option<OwnedFd>,
    /// Why it was not carried out, for the log.
    pub error: Option<SessionError>,
    /// What it settled, for the log: `negotiated Vhost-user protocol features: 0x1801d`.
    pub note: Option<String>,
    /// Whether the connection goes on.
    pub next: Next,
}

/// The state of one connection. A new connection gets a new session.
#[derive(Debug)]
pub struct Session {
    offer: Offer,
    protocol_features: ProtocolFeatures,
}

/// How a request that succeeded is answered.
enum Success {
    Done,
    Settled(String),
    Payload(Vec<u8>, Option<OwnedFd>),
}

impl Success {
    fn number(number: u64) -> Success {
        Success::Payload(number.to_ne_bytes().to_vec(), None)
    }
}

impl Session {
    /// A connection on which nothing is negotiated yet.
    pub fn new(offer: Offer) -> Session {
        let protocol_features = offer.protocol_features & ProtocolFeatures::SUPPORTED.0;
        Session {
            offer: Offer {
                protocol_features,
                ..offer
            },
            protocol_features: ProtocolFeatures(0),
        }
    }

    /// The protocol features negotiated so far.
    pub fn protocol_features(&self) -> ProtocolFeatures {
        self.protocol_features
    }

    /// Proves one message, has it carried out, and says what to send back. File descriptors that the device
    /// did not take are closed when this returns.
    pub fn handle(&mut self, message: Message, device: &mut dyn Device) -> Outcome {
        let header = message.header;
        match self.carry_out(message, device) {
            Ok(success) => self.accept(header, success),
            Err(error) => self.refuse(header, error),
        }
    }

    fn carry_out(&mut self, message: Message, device: &mut dyn Device) -> Result<Success, SessionError> {
        let Message {
            header,
            payload,
            fds,
            defect,
        } = message;
        let name = requests::name(header.request);
        header
            .flags
            .check_request()
            .map_err(|cause| SessionError::Flags { name, cause })?;
        let row = requests::row(header.request).ok_or(SessionError::Unknown(header.request))?;
        let rule = row.rule.as_ref().ok_or(SessionError::Unsupported(name))?;
        if let Some(defect) = defect {
            return Err(SessionError::Damaged { name, defect });
        }
        self.check_gate(name, rule.gate)?;
        let vrings = u32::from(self.offer.queue_pairs) * 2;
        let decoded = rule
            .decode(&payload, fds, vrings)
            .map_err(|cause| SessionError::Malformed { name, cause })?;
        match decoded {
            Decoded::Session(request) => self.answer(name, request),
            Decoded::Device(request) => match self.ask(name, rule, request, device)? {
                Success::Done if rule.answer == Answer::Echo => Ok(Success::Payload(payload, None)),
                success => Ok(success),
            },
        }
    }

    fn check_gate(&self, name: &'static str, gate: Gate) -> Result<(), SessionError> {
        let missing = match gate {
            Gate::ProtocolFeatures if self.offer.features & VHOST_USER_F_PROTOCOL_FEATURES == 0 => {
                "VHOST_USER_F_PROTOCOL_FEATURES".to_owned()
            }
            Gate::Negotiated(feature) if !self.protocol_features.contains(feature) => {
                format!("VHOST_USER_PROTOCOL_F_{feature}")
            }
            Gate::Open | Gate::ProtocolFeatures | Gate::Negotiated(_) => return Ok(()),
        };
        Err(SessionError::Ungated { name, missing })
    }

    /// Answers what needs no device.
    fn answer(&mut self, name: &'static str, request: Own) -> Result<Success, SessionError> {
        let number = match request {
            Own::GetFeatures => self.offer.features,
            Own::GetProtocolFeatures => self.offer.protocol_features,
            Own::GetQueueNum => self.offer.queue_pairs.into(),
            Own::GetMaxMemSlots => self.offer.mem_slots,
            Own::SetProtocolFeatures(bits) => {
                offered(name, bits, self.offer.protocol_features)?;
                self.protocol_features = ProtocolFeatures(bits);
                return Ok(Success::Settled(format!(
                    "negotiated Vhost-user protocol features: {bits:#x}"
                )));
            }
        };
        Ok(Success::number(number))
    }

    /// Has the device carry a request out.
    fn ask(
        &self,
        name: &'static str,
        rule: &Rule,
        request: Request,
        device: &mut dyn Device,
    ) -> Result<Success, SessionError> {
        if let Request::SetFeatures(bits) = request {
            offered(name, bits, self.offer.features)?;
        }
        let response = device
            .handle(request)
            .map_err(|refusal| SessionError::Refused { name, refusal })?;
        match (rule.answer, response) {
            (Answer::Ack | Answer::AckOrRegions | Answer::Echo, Response::Done) => Ok(Success::Done),
            (Answer::AckOrRegions, Response::Regions(regions)) => {
                Ok(Success::Payload(message::encode_regions(&regions), None))
            }
            (Answer::Fd, Response::Fd(fd)) => Ok(Success::Payload(Vec::new(), Some(fd))),
            (Answer::U64, Response::U64(number)) => Ok(Success::number(number)),
            (Answer::VringState, Response::VringState { index, num }) => {
                let payload = message::encode_vring_state(index.into(), num);
                Ok(Success::Payload(payload.to_vec(), None))
            }
            (Answer::Inflight, Response::Inflight { desc, padded, fd }) => {
                Ok(Success::Payload(inflight::encode(desc, padded), Some(fd)))
            }
            (Answer::Config, Response::Config { offset, flags, bytes }) => Ok(Success::Payload(
                config_space::encode(offset, flags, &bytes),
                None,
            )),
            (_, response) => Err(SessionError::WrongResponse {
                name,
                response: format!("{response:?}"),
            }),
        }
    }

    fn accept(&self, header: Header, success: Success) -> Outcome {
        let (reply, fd, note) = match success {
            Success::Payload(payload, fd) => (Some(message::reply(header.request, &payload)), fd, None),
            Success::Settled(note) => (self.acknowledge(header, 0), None, Some(note)),
            Success::Done => (self.acknowledge(header, 0), None, None),
        };
        Outcome {
            reply,
            fd,
            error: None,
            note,
            next: Next::Continue,
        }
    }

    fn refuse(&self, header: Header, error: SessionError) -> Outcome {
        // Where a front-end waits for an answer of another shape, "no" would be misread: closing says it.
        let waits_for_other = requests::row(header.request)
            .and_then(|row| row.rule.as_ref())
            .is_some_and(|rule| !rule.answer.is_acknowledgement());
        let reply = match error {
            SessionError::Flags { .. } => None, // what the other bits ask for is not to be trusted
            _ if waits_for_other => None,
            _ => self.acknowledge(header, 1),
        };
        let next = match error.is_an_answer() && reply.is_some() {
            true => Next::Continue,
            false => Next::Close,
        };
        Outcome {
            reply,
            fd: None,
            error: Some(error),
            note: None,
            next,
        }
    }

    /// The acknowledgement the sender asked for, if it may ask (vhost-user, "REPLY_ACK"): zero for success.
    fn acknowledge(&self, header: Header, result: u64) -> Option<Vec<u8>> {
        let asked = header.flags.need_reply() && self.protocol_features.contains(ProtocolFeatures::REPLY_ACK);
        asked.then(|| message::reply(header.request, &result.to_ne_bytes()))
    }
}

/// Checks that a front-end takes only what it was offered.
fn offered(name: &'static str, bits: u64, offer: u64) -> Result<(), SessionError> {
    match bits & !offer {
        0 => Ok(()),
        excess => Err(SessionError::NotOffered { name, excess }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Flags;
    use super::super::testing::{id, message, numbers, sample, state, Fake, Probe, NEED_REPLY, OFFER, PLAIN};
    use super::*;
    use crate::memory::{FrontendAddr, GuestAddr, RegionDesc};

    /// A session, a device and the descriptors they are sent.
    struct Bench {
        session: Session,
        device: Fake,
        probe: Probe,
    }

    impl Bench {
        fn new(name: &str) -> Bench {
            Bench {
                session: Session::new(OFFER),
                device: Fake::default(),
                probe: Probe::new(name),
            }
        }

        /// Everything negotiated.
        fn negotiated(name: &str) -> Bench {
            let mut bench = Bench::new(name);
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

    fn rows() -> impl Iterator<Item = (u32, &'static str, &'static Rule)> {
        requests::TABLE
            .iter()
            .filter_map(|row| Some((row.id, row.name, row.rule.as_ref()?)))
    }

    #[test]
    fn every_request_is_carried_out_and_answered_as_its_row_says() {
        let mut bench = Bench::negotiated("answers");
        for (id, name, rule) in rows() {
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
        let mut bench = Bench::negotiated("offer");
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
        let mut bench = Bench::negotiated("regions");
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
        let mut bench = Bench::negotiated("userfault");
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
            let mut bench = Bench::negotiated("ack");
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
                let mut bench = Bench::negotiated("no-ack");
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
        let mut bench = Bench::negotiated("base");
        let outcome = bench.send("GET_VRING_BASE", PLAIN, state(1, 0), 0);
        let bytes = outcome.reply.expect("a reply");
        assert_eq!(bytes[12..], state(1, 0x8005_8004));
    }

    #[test]
    fn set_log_base_is_answered_with_the_log_it_names() {
        let mut bench = Bench::negotiated("log");
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
            let mut bench = Bench::negotiated("log-wraps");
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
        for (id, name, rule) in rows() {
            let Gate::Negotiated(feature) = rule.gate else {
                continue;
            };
            for granted in [
                ProtocolFeatures(0),
                ProtocolFeatures(OFFER.protocol_features & !feature.0),
            ] {
                let mut bench = Bench::new("gates");
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
        for (id, name, rule) in rows().filter(|(_, _, rule)| rule.gate == Gate::ProtocolFeatures) {
            let offer = Offer { features: 1, ..OFFER };
            let (payload, _) = sample(id);
            let outcome =
                Session::new(offer).handle(message(id, PLAIN, payload, vec![]), &mut Fake::default());
            assert!(
                matches!(outcome.error, Some(SessionError::Ungated { .. })),
                "{name} {:?}",
                rule.gate
            );
        }
    }

    #[test]
    fn protocol_features_may_be_negotiated_again_for_each_queue_pair() {
        let mut bench = Bench::new("again");
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
            let mut bench = Bench::new("excess");
            let outcome = bench.send("SET_PROTOCOL_FEATURES", PLAIN, numbers(&[0x8 | 1 << bit]), 0);
            assert!(
                matches!(outcome.error, Some(SessionError::NotOffered { excess, .. }) if excess == 1 << bit)
            );
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
        let mut bench = Bench::negotiated("features");
        let outcome = bench.send("SET_FEATURES", NEED_REPLY, numbers(&[0x1_4000_0001]), 0);
        assert!(matches!(
            outcome.error,
            Some(SessionError::NotOffered { excess: 1, .. })
        ));
        assert_eq!((outcome.reply, outcome.next), (reply(2, 1), Next::Continue));
        assert!(bench.device.seen.is_empty());
        let outcome = bench.send("SET_FEATURES", NEED_REPLY, numbers(&[OFFER.features]), 0);
        assert_eq!((outcome.reply, outcome.next), (reply(2, 0), Next::Continue));
        assert!(
            matches!(bench.device.seen.as_slice(), [Request::SetFeatures(bits)] if *bits == OFFER.features)
        );
    }

    #[test]
    fn need_reply_means_nothing_before_reply_ack_is_negotiated() {
        let mut bench = Bench::new("no-ack");
        let outcome = bench.send("SET_OWNER", NEED_REPLY, vec![], 0);
        assert_eq!((outcome.reply, outcome.next), (None, Next::Continue));
        bench.device.refuses = true;
        let outcome = bench.send("SET_OWNER", NEED_REPLY, vec![], 0);
        assert_eq!((outcome.reply, outcome.next), (None, Next::Close));
    }

    #[test]
    fn the_request_that_negotiates_reply_ack_is_itself_acknowledged() {
        let mut bench = Bench::new("first-ack");
        let outcome = bench.send("SET_PROTOCOL_FEATURES", NEED_REPLY, numbers(&[0x8]), 0);
        assert_eq!(outcome.reply, reply(16, 0));
    }

    #[test]
    fn a_refusal_is_answered_when_asked_for_and_closes_when_not() {
        for (id, name, rule) in rows() {
            for flags in [PLAIN, NEED_REPLY] {
                let mut bench = Bench::negotiated("refusal");
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
                let mut bench = Bench::negotiated("unsupported");
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
        for (id, name, rule) in rows() {
            let mut bench = Bench::negotiated("malformed");
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
        let mut bench = Bench::negotiated("mtu");
        for mtu in [67, 65536] {
            let outcome = bench.send("NET_SET_MTU", NEED_REPLY, numbers(&[mtu]), 0);
            assert_eq!((outcome.reply, outcome.next), (reply(20, 1), Next::Continue));
        }
    }

    #[test]
    fn wrong_flags_close_without_an_answer() {
        for flags in [0x0, 0x2, 0x3, 0x8, 0xb, 0x5, 0xd, 0x11, 0x8000_0009] {
            let mut bench = Bench::negotiated("flags");
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
            let mut bench = Bench::negotiated("damaged");
            let mut message = message(id("SET_OWNER"), NEED_REPLY, vec![], vec![]);
            message.defect = Some(defect);
            let outcome = bench.session.handle(message, &mut bench.device);
            assert_eq!((outcome.reply, outcome.next), (reply(3, 1), Next::Close));
            assert!(bench.device.seen.is_empty());
        }
    }

    #[test]
    fn a_device_that_answers_the_wrong_kind_closes_its_connection_only() {
        let mut bench = Bench::negotiated("wrong-kind");
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
        let mut bench = Bench::negotiated("texts");
        let error = bench
            .send("SET_VRING_NUM", PLAIN, state(9, 256), 0)
            .error
            .expect("an error");
        assert_eq!(
            error.to_string(),
            "VHOST_USER_SET_VRING_NUM: vring index 9, this device has 4 vrings"
        );
        let mut bench = Bench::new("texts-gate");
        let error = bench.send_sample(id("SEND_RARP"), PLAIN).error.expect("an error");
        assert_eq!(
            error.to_string(),
            "VHOST_USER_SEND_RARP without VHOST_USER_PROTOCOL_F_RARP negotiated"
        );
    }
}

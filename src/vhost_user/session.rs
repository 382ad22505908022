//! One connection's protocol state: what is offered, what is negotiated, and who answers what.
//!
//! No I/O, no clock, no threads: a message goes in, an [`Outcome`] comes out. The rules of a request stand in
//! [its row](super::requests::TABLE); here is only what holds for all of them: flags, gates, acknowledgements.

use std::fmt::Display;
use std::os::fd::OwnedFd;

use thiserror::Error;

use super::decode::{Decoded, Own, Request};
use super::features::ProtocolFeatures;
use super::malformed::Malformed;
use super::message::{self, Defect, FlagsError, Header, Message, Regions};
use super::requests::{self, Answer, Gate, Rule};
use super::{config_space, inflight};
use crate::memory::InflightDesc;
use crate::virtio::features::Features;

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
    #[error("{name}: bits {excess:#x} were not offered: {names}")]
    NotOffered {
        /// The request.
        name: &'static str,
        /// Those bits.
        excess: u64,
        /// What the specification calls them.
        names: String,
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
    /// The feature bits that SET_FEATURES named and that were never offered, if that is what is wrong.
    pub fn not_offered(&self) -> Option<u64> {
        match self {
            SessionError::NotOffered { name, excess, .. } if *name == "VHOST_USER_SET_FEATURES" => {
                Some(*excess)
            }
            _ => None,
        }
    }

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
                offered(name, bits, self.offer.protocol_features, |bits| {
                    ProtocolFeatures(bits).to_string()
                })?;
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
            offered(name, bits, self.offer.features, |bits| Features(bits).names())?;
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
fn offered(
    name: &'static str,
    bits: u64,
    offer: u64,
    names: impl Fn(u64) -> String,
) -> Result<(), SessionError> {
    match bits & !offer {
        0 => Ok(()),
        excess => Err(SessionError::NotOffered {
            name,
            excess,
            names: names(excess),
        }),
    }
}

#[cfg(test)]
mod tests;

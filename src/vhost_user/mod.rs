//! The vhost-user protocol, back-end side. Knows messages, never a ring.
//!
//! Bytes come in through [`Connection`] as [`Message`]s with the file descriptors that travelled with
//! them. [`Session`] proves a message against its row in the [table of requests](requests), answers what
//! it can itself, and hands the rest to a [`Device`] as a typed [`Request`]. What the back-end has to ask
//! of its own accord goes by a [`BackendChannel`].

mod backend;
mod config_space;
#[cfg(any(test, feature = "model"))]
pub mod corpus;
mod decode;
mod features;
#[cfg(test)]
mod hostile;
mod inflight;
mod iotlb;
mod malformed;
pub mod message;
pub mod requests;
#[cfg(any(test, feature = "model"))]
pub mod samples;
mod session;
mod socket;
mod state;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod walk;

pub use backend::{Answer, BackendChannel, BackendError, BackendRequest, BACKEND_TABLE};
pub use decode::Request;
pub use features::ProtocolFeatures;
pub use iotlb::IotlbRequest;
pub use malformed::Malformed;
pub use message::{Defect, Header, Message, Regions, VringAddr};
pub use session::{Device, Next, Offer, Outcome, Refusal, Response, Session, SessionError};
pub use socket::{Connection, ReceiveError, Received, SendError, MAX_OUTPUT};
pub use state::Transfer;

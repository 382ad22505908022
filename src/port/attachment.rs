//! A front-end that is there: its connection, the session on it, and the device it talks to.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::Level;

use crate::datapath::RingFault;
use crate::vhost_user::{
    Answer, BackendChannel, BackendError, Connection, Next, Offer, ProtocolFeatures, ReceiveError, Received,
    SendError, Session, SessionError,
};

use super::control::{Reactor, Source, Watched};
use super::device::PortDevice;
use super::offer;
use super::shared::{Port, PortId};
use super::MAX_QUEUE_PAIRS;

/// How long a front-end may take over one message, from its first byte to its last, and over taking
/// the answer. It talks to us over a local socket; a second is an age.
pub(super) const MESSAGE_DEADLINE: Duration = Duration::from_secs(5);
/// Answers taken from one back-end channel before others get their turn.
const ANSWERS_PER_TURN: usize = 64;
/// Memory regions a front-end may add one by one, as libvhost-user offers.
const MEM_SLOTS: u64 = 509;

pub(super) struct Attachment {
    port: Arc<Port>,
    connection: Connection,
    session: Session,
    pub(super) device: PortDevice,
    /// Where requests of ours go, once the front-end has said.
    backend: Option<Watched<BackendChannel>>,
    /// Since when a message, or our answer to one, is under way.
    busy_since: Option<Instant>,
    /// Broken rings that were spoken of.
    faults: Vec<RingFault>,
}

/// What a message led to, for the log.
pub(super) struct Heard {
    /// What it settled.
    pub(super) settled: Option<String>,
    /// Why it was not carried out; the front-end was told and may go on.
    pub(super) refused: Option<SessionError>,
}

impl Attachment {
    pub(super) fn new(stream: UnixStream, port: Arc<Port>) -> Attachment {
        let offer = Offer {
            features: offer::features(port.switches, port.mode()).0,
            protocol_features: offer::protocol_features(port.switches).0,
            queue_pairs: MAX_QUEUE_PAIRS,
            mem_slots: MEM_SLOTS,
        };
        Attachment {
            connection: Connection::new(stream),
            session: Session::new(offer),
            device: PortDevice::new(Arc::clone(&port)),
            backend: None,
            port,
            busy_since: None,
            faults: Vec::new(),
        }
    }

    /// Takes one message and answers it. None: there is none, or not the whole of it.
    pub(super) fn exchange(&mut self, now: Instant) -> Result<Option<Heard>, End> {
        self.connection.flush()?;
        let message = match self.connection.receive()? {
            Received::Message(message) => message,
            Received::Closed => return Err(End::Left),
            Received::Pending => {
                self.settle_deadline(now);
                return Ok(None);
            }
        };
        log::debug!(
            "VHOST_CONFIG: ({}) read message {}",
            self.port.path(),
            message.name()
        );
        self.busy_since = None;
        let outcome = self.session.handle(message, &mut self.device);
        if let Some(reply) = outcome.reply {
            self.connection.send(&reply)?;
        }
        match (outcome.error, outcome.next) {
            (Some(error), Next::Close) => Err(End::Refused(error)),
            (refused, _) => Ok(Some(Heard {
                settled: outcome.note,
                refused,
            })),
        }
    }

    /// Sends what the device has to ask. Says what went wrong, for the log.
    pub(super) fn ask(&mut self, reactor: &Reactor, id: PortId) -> Vec<String> {
        let mut notes = self.device.iommu.take_notes();
        if let Some(channel) = self.device.take_backend() {
            // The one before is taken from the reactor first: it may have had the same number.
            self.backend = None;
            match reactor.watch(channel, Source::Backend(id)) {
                Ok(channel) => self.backend = Some(channel),
                Err(error) => notes.push(format!("back-end channel cannot be watched: {error}")),
            }
        }
        let requests = self.device.iommu.take_outgoing();
        let reply_ack = self
            .session
            .protocol_features()
            .contains(ProtocolFeatures::REPLY_ACK);
        for request in requests {
            match self
                .backend
                .as_mut()
                .map(|channel| channel.inner.send(request, reply_ack))
            {
                Some(Ok(())) => {}
                Some(Err(error)) => notes.push(self.lose_backend(&error)),
                None => {
                    notes.push(format!(
                        "{}: there is no back-end channel to ask on",
                        request.name()
                    ));
                    break;
                }
            }
        }
        self.arm_backend(reactor, id);
        notes
    }

    /// Takes answers from the back-end channel. Says what went wrong, for the log.
    pub(super) fn take_answers(&mut self, reactor: &Reactor, id: PortId) -> Option<String> {
        for _ in 0..ANSWERS_PER_TURN {
            match self.backend.as_mut()?.inner.receive() {
                Ok(Answer::To(request, _)) => self.device.answered(request),
                Ok(Answer::None) => break,
                Err(error) => return Some(self.lose_backend(&error)),
            }
        }
        self.arm_backend(reactor, id);
        None
    }

    fn arm_backend(&self, reactor: &Reactor, id: PortId) {
        if let Some(channel) = &self.backend {
            let output = channel.inner.output_waiting();
            reactor.rearm(channel.inner.as_fd(), Source::Backend(id), output);
        }
    }

    fn lose_backend(&mut self, error: &BackendError) -> String {
        self.backend = None;
        self.device.iommu.forget_questions();
        error.to_string()
    }

    /// When the front-end will have taken too long, if it is at something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.busy_since.map(|since| since + MESSAGE_DEADLINE)
    }

    /// Of the rings that are broken now, those not spoken of yet; the front-end is told of them here.
    pub(super) fn new_faults(&mut self, faults: Vec<RingFault>) -> Vec<RingFault> {
        let known = std::mem::replace(&mut self.faults, faults.clone());
        let new: Vec<RingFault> = faults
            .into_iter()
            .filter(|fault| !known.contains(fault))
            .collect();
        new.iter()
            .for_each(|fault| self.device.signal_error(usize::from(fault.vring)));
        new
    }

    pub(super) fn register(&self, reactor: &Reactor, id: PortId) -> io::Result<()> {
        reactor.add(self.connection.as_fd(), Source::Connection(id))
    }

    pub(super) fn unregister(&self, reactor: &Reactor) {
        reactor.remove(self.connection.as_fd());
    }

    /// A deadline runs while a message is half read or an answer half sent.
    fn settle_deadline(&mut self, now: Instant) {
        if self.connection.message_started() || self.connection.output_waiting() {
            self.busy_since.get_or_insert(now);
        } else {
            self.busy_since = None;
        }
    }

    /// Asks for readiness to send only while there is something to send.
    pub(super) fn listen(&self, reactor: &Reactor, id: PortId) {
        reactor.rearm(
            self.connection.as_fd(),
            Source::Connection(id),
            self.connection.output_waiting(),
        );
    }
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("vhost peer closed")]
    Left,
    #[error("{0}; closing the connection")]
    Refused(SessionError),
    #[error("{0}; closing the connection")]
    Receive(#[from] ReceiveError),
    #[error("{0}; closing the connection")]
    Send(#[from] SendError),
}

impl End {
    /// A front-end that goes is business as usual, also when it goes without reading its answers.
    pub(super) fn level(&self) -> Level {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        match self {
            End::Left => Level::Info,
            End::Receive(ReceiveError::Io(error)) | End::Send(SendError::Io(error))
                if matches!(error.kind(), BrokenPipe | ConnectionReset) =>
            {
                Level::Info
            }
            _ => Level::Warn,
        }
    }
}

//! A front-end that is there: its connection, the session on it, and the device it talks to.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::Level;

use crate::datapath::RingFault;
use crate::memory::Remnant;
use crate::vhost_user::{
    Answer, BackendChannel, BackendError, Connection, Message, Next, Offer, Outcome, ProtocolFeatures,
    ReceiveError, Received, SendError, Session, SessionError,
};
use crate::virtio::features::Features;

use super::control::{Reactor, Readiness, Source, Watched};
use super::device::PortDevice;
use super::drain::Drains;
use super::errand::{Desk, Errand, Progress};
use super::odds;
use super::offer::PortOffer;
use super::portrait::{Portrait, Visitor};
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
    visitor: Option<Visitor>,
    offered: PortOffer,
    /// Since when it is there, until its first rings run.
    arrived: Option<Instant>,
    /// It has sent a message.
    has_spoken: bool,
    connection: Connection,
    desk: Whereabouts,
    /// Where requests of ours go, once the front-end has said.
    backend: Option<Watched<BackendChannel>>,
    pub(super) drains: Drains,
    /// Since when a message, or our answer to one, is under way.
    busy_since: Option<Instant>,
    /// Broken rings that were spoken of.
    faults: Vec<RingFault>,
}

/// Where session and device are.
enum Whereabouts {
    Here(Box<Desk>),
    /// Carrying out a message that may take long.
    Away(Errand),
    /// Lost with a thread that could not be started, or that panicked.
    Gone,
}

/// What a message led to, for the log.
pub(super) struct Heard {
    /// What it settled.
    pub(super) settled: Option<String>,
    /// Why it was not carried out; the front-end was told and may go on.
    pub(super) refused: Option<SessionError>,
}

impl Attachment {
    pub(super) fn new(stream: UnixStream, port: Arc<Port>, now: Instant) -> Attachment {
        let offered = port.next_offer();
        let offer = Offer {
            features: offered.features.0,
            protocol_features: offered.protocol.0,
            queue_pairs: MAX_QUEUE_PAIRS,
            mem_slots: MEM_SLOTS,
        };
        Attachment {
            visitor: Visitor::of(&stream, now),
            offered,
            arrived: Some(now),
            has_spoken: false,
            connection: Connection::new(stream),
            desk: Whereabouts::Here(Box::new(Desk {
                session: Session::new(offer),
                device: PortDevice::new(Arc::clone(&port), offered),
            })),
            backend: None,
            drains: Drains::default(),
            port,
            busy_since: None,
            faults: Vec::new(),
        }
    }

    /// The device, unless it is away.
    pub(super) fn device(&mut self) -> Option<&mut PortDevice> {
        match &mut self.desk {
            Whereabouts::Here(desk) => Some(&mut desk.device),
            Whereabouts::Away(_) | Whereabouts::Gone => None,
        }
    }

    /// What people are told of the front-end. None while a message is being carried out elsewhere.
    pub(super) fn portrait(&self) -> Option<Portrait> {
        let Whereabouts::Here(desk) = &self.desk else {
            return None;
        };
        Some(Portrait {
            visitor: self.visitor.clone(),
            offered: self.offered.features,
            acknowledged: desk.device.features(),
            protocol: desk.session.protocol_features(),
            memory: desk.device.memory(),
            is_complete: desk.device.is_complete(),
            vrings: desk.device.vring_portraits(),
        })
    }

    /// How long its first rings took to run. Told once.
    pub(super) fn take_age(&mut self, now: Instant) -> Option<Duration> {
        let arrived = self.arrived.take()?;
        Some(now.saturating_duration_since(arrived))
    }

    /// Takes one message and answers it. None: there is none, or not the whole of it, or one is being carried out.
    pub(super) fn exchange(&mut self, now: Instant) -> Result<Option<Heard>, End> {
        self.connection.flush()?;
        if let Some(outcome) = self.collect()? {
            return self.answer(outcome).map(Some);
        }
        if self.is_away() {
            // It is asked nothing meanwhile; but when it hangs up, nobody brings the pages that are waited for.
            return match self.connection.is_hung_up() {
                true => Err(End::Left),
                false => Ok(None),
            };
        }
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
        self.has_spoken = true;
        match self.carry_out(message)? {
            Some(outcome) => self.answer(outcome).map(Some),
            None => Ok(None),
        }
    }

    /// Has a message carried out: here and now, or on an errand if it may have to wait for the guest's memory.
    fn carry_out(&mut self, message: Message) -> Result<Option<Outcome>, End> {
        let Whereabouts::Here(desk) = &mut self.desk else {
            return Ok(None);
        };
        let Some(pages) = desk.device.missing_pages().cloned() else {
            return Ok(Some(desk.handle(message)));
        };
        let Whereabouts::Here(desk) = std::mem::replace(&mut self.desk, Whereabouts::Gone) else {
            return Ok(None);
        };
        self.desk = Whereabouts::Away(Errand::send(desk, message, pages, self.port.control.clone())?);
        Ok(None)
    }

    /// What became of a message that was carried out elsewhere, if it was and is.
    fn collect(&mut self) -> Result<Option<Outcome>, End> {
        let Whereabouts::Away(errand) = &mut self.desk else {
            return Ok(None);
        };
        match errand.progress() {
            Progress::Away => Ok(None),
            Progress::Back(desk, outcome) => {
                self.desk = Whereabouts::Here(desk);
                self.check_memory()?;
                Ok(Some(outcome))
            }
            Progress::Lost(panic) => {
                self.desk = Whereabouts::Gone;
                Err(End::Panicked(panic))
            }
        }
    }

    /// The end, if the front-end took away memory that is mapped here. Not while a message is being carried out elsewhere:
    /// that is looked at when it is back.
    pub(super) fn check_memory(&self) -> Result<(), End> {
        match &self.desk {
            Whereabouts::Here(desk) => desk.device.lost().map_or(Ok(()), |what| Err(End::CutShort(what))),
            Whereabouts::Away(_) | Whereabouts::Gone => Ok(()),
        }
    }

    /// Whether a message is being carried out elsewhere.
    pub(super) fn is_away(&self) -> bool {
        matches!(self.desk, Whereabouts::Away(_))
    }

    fn answer(&mut self, outcome: Outcome) -> Result<Heard, End> {
        if let Some(reply) = outcome.reply {
            self.connection.send_with(&reply, outcome.fd)?;
        }
        match (outcome.error, outcome.next) {
            (Some(error), Next::Close) => Err(End::Refused(error)),
            (refused, _) => Ok(Heard {
                settled: outcome.note,
                refused,
            }),
        }
    }

    /// Sends what the device has to ask and to tell, unless it is away. Says what went wrong, for the log.
    pub(super) fn ask(&mut self, reactor: &Reactor, id: PortId) -> Vec<(Level, String)> {
        let Whereabouts::Here(desk) = &mut self.desk else {
            return Vec::new();
        };
        let of_iommu = desk.device.iommu.take_notes();
        let mut notes: Vec<_> = of_iommu.into_iter().map(|note| (Level::Warn, note)).collect();
        if let Some(channel) = desk.device.take_backend() {
            // The one before is taken from the reactor first: it may have had the same number.
            self.backend = None;
            match reactor.watch(channel, Source::Backend(id)) {
                Ok(channel) => self.backend = Some(channel),
                Err(error) => notes.push((
                    Level::Warn,
                    format!("back-end channel cannot be watched: {error}"),
                )),
            }
        }
        let mut requests = desk.device.iommu.take_outgoing();
        let protocol = desk.session.protocol_features();
        let reply_ack = protocol.contains(ProtocolFeatures::REPLY_ACK);
        // Without a channel it is still to be told.
        if self.backend.is_some() && protocol.contains(ProtocolFeatures::CONFIG) {
            requests.extend(desk.device.config_change());
        }
        for request in requests {
            let Some(channel) = &mut self.backend else {
                let text = format!("{}: there is no back-end channel to ask on", request.name());
                notes.push((Level::Warn, text));
                break;
            };
            if let Err(error) = channel.inner.send(request, reply_ack) {
                notes.push(self.lose_backend(&error));
            }
        }
        self.arm_backend(reactor, id);
        notes
    }

    /// Takes answers from the back-end channel. Says what went wrong, for the log.
    pub(super) fn take_answers(&mut self, reactor: &Reactor, id: PortId) -> Option<(Level, String)> {
        for _ in 0..ANSWERS_PER_TURN {
            match self.backend.as_mut()?.inner.receive() {
                Ok(Answer::To(request, _)) => {
                    if let Some(device) = self.device() {
                        device.answered(request);
                    }
                }
                Ok(Answer::None) => break,
                Err(error) => return Some(self.lose_backend(&error)),
            }
        }
        self.arm_backend(reactor, id);
        None
    }

    fn arm_backend(&self, reactor: &Reactor, id: PortId) {
        if let Some(channel) = &self.backend {
            let readiness = Readiness {
                input: true,
                output: channel.inner.output_waiting(),
            };
            reactor.rearm(channel.inner.as_fd(), Source::Backend(id), readiness);
        }
    }

    /// A front-end that goes may close this channel first.
    fn lose_backend(&mut self, error: &BackendError) -> (Level, String) {
        self.backend = None;
        if let Some(device) = self.device() {
            device.iommu.forget_questions();
        }
        let level = match error {
            BackendError::Closed => Level::Info,
            BackendError::Receive(ReceiveError::Io(error)) | BackendError::Send(SendError::Io(error)) => {
                level_of(error)
            }
            _ => Level::Warn,
        };
        (level, error.to_string())
    }

    /// Why the connection ended, if that is because of what an operator keeps back.
    pub(super) fn ended_at_odds(&self, end: &End) -> Option<String> {
        if let End::Refused(error) = end {
            return self.refused_at_odds(error);
        }
        let Whereabouts::Here(desk) = &self.desk else {
            return None;
        };
        let has_only_looked = self.has_spoken && desk.device.features().is_none();
        let before = self.port.link.lock().features;
        has_only_looked
            .then(|| odds::of_one_that_left(self.offered.kept_back, before))
            .flatten()
    }

    /// Why the front-end was refused what it took, likewise.
    pub(super) fn refused_at_odds(&self, refused: &SessionError) -> Option<String> {
        odds::of_one_that_insists(self.offered.kept_back, Features(refused.not_offered()?))
    }

    /// When the front-end will have taken too long, if it is at something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.busy_since.map(|since| since + MESSAGE_DEADLINE)
    }

    /// Of the rings that are broken now, those not spoken of yet; the front-end is told of them here.
    pub(super) fn new_faults(&mut self, faults: Vec<RingFault>) -> Vec<RingFault> {
        let Whereabouts::Here(desk) = &self.desk else {
            return Vec::new();
        };
        let known = std::mem::replace(&mut self.faults, faults.clone());
        let new: Vec<RingFault> = faults
            .into_iter()
            .filter(|fault| !known.contains(fault))
            .collect();
        new.iter()
            .for_each(|fault| desk.device.signal_error(usize::from(fault.vring)));
        new
    }

    pub(super) fn register(&self, reactor: &Reactor, id: PortId) -> io::Result<()> {
        reactor.add(self.connection.as_fd(), Source::Connection(id))
    }

    /// Watches the rings that are started and disabled, and no others.
    pub(super) fn settle_drains(&mut self, reactor: &Reactor, now: Instant) {
        if let Whereabouts::Here(desk) = &self.desk {
            self.drains.settle(desk.device.idle_rings(), reactor, now);
        }
    }

    /// Hangs up: its rings stop, its memory goes. Says what is left of post-copy.
    pub(super) fn end(mut self, reactor: &Reactor) -> Vec<Remnant> {
        self.drains.clear(reactor);
        reactor.remove(self.connection.as_fd());
        match &mut self.desk {
            Whereabouts::Here(desk) => desk.device.abandon_pages(),
            Whereabouts::Away(errand) => errand.call_back(),
            Whereabouts::Gone => Vec::new(),
        }
    }

    /// A deadline runs while a message is half read or an answer half sent.
    fn settle_deadline(&mut self, now: Instant) {
        if self.connection.message_started() || self.connection.output_waiting() {
            self.busy_since.get_or_insert(now);
        } else {
            self.busy_since = None;
        }
    }

    /// Asks for readiness to send only while there is something to send, and not for messages while one is under way.
    pub(super) fn listen(&self, reactor: &Reactor, id: PortId) {
        let readiness = Readiness {
            input: !self.is_away(),
            output: self.connection.output_waiting(),
        };
        reactor.rearm(self.connection.as_fd(), Source::Connection(id), readiness);
    }
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("vhost peer closed")]
    Left,
    #[error("{0}; closing the connection")]
    Refused(SessionError),
    #[error("the file behind {0} was cut short; closing the connection")]
    CutShort(&'static str),
    #[error("no thread to wait for the guest's memory: {0}; closing the connection")]
    NoThread(#[from] io::Error),
    /// In our own code: the port's end, as if it had been on the control thread.
    #[error("{0}")]
    Panicked(String),
    #[error("{0}; closing the connection")]
    Receive(#[from] ReceiveError),
    #[error("{0}; closing the connection")]
    Send(#[from] SendError),
}

impl End {
    pub(super) fn level(&self) -> Level {
        match self {
            End::Left => Level::Info,
            End::Receive(ReceiveError::Io(error)) | End::Send(SendError::Io(error)) => level_of(error),
            _ => Level::Warn,
        }
    }
}

/// A front-end that goes is business as usual, also when it goes without reading its answers.
fn level_of(error: &io::Error) -> Level {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    match error.kind() {
        BrokenPipe | ConnectionReset => Level::Info,
        _ => Level::Warn,
    }
}

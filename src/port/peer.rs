//! One port as the control thread sees it: its life cycle, and while a front-end is there, the
//! connection, the protocol session and the device behind it.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

use log::Level;

use crate::datapath::RingFault;

use super::attachment::{Attachment, End, MESSAGE_DEADLINE};
use super::connector;
use super::control::Reactor;
use super::entrance::{Entrance, Knock};
use super::journal::Journal;
use super::lifecycle::{Action, Event, Lifecycle, State};
use super::listener::Listener;
use super::options::Mode;
use super::reminder::Reminder;
use super::shared::{Port, PortId};

/// Messages taken from one front-end before the others get their turn.
const MESSAGES_PER_TURN: usize = 32;

/// One port, served.
pub(super) struct Peer {
    port: Arc<Port>,
    life: Lifecycle,
    /// Where the socket is: the front-end's, or in server mode ours.
    path: Option<PathBuf>,
    /// Server mode, once front-ends may knock.
    entrance: Option<Entrance>,
    attachment: Option<Attachment>,
    journal: Journal,
    /// What was last said about a failure to connect, so that it is said once.
    said: Option<String>,
    /// Why front-ends leave or are refused, as long as that is an operator's doing and none has come to terms with it.
    at_odds: Option<String>,
    /// Of whether the link is up.
    reminder: Reminder,
}

/// A line about the port's socket, in the words operators know from librte_vhost.
macro_rules! vhost_config {
    ($peer:expr, $now:expr, $level:expr, $($text:tt)+) => {{
        let path = $peer.port.path();
        $peer.journal.write($now, $level, format_args!("VHOST_CONFIG: ({path}) {}", format_args!($($text)+)))
    }};
}

impl Peer {
    pub(super) fn new(port: Arc<Port>, path: Option<PathBuf>, now: Instant) -> Peer {
        let journal = Journal::new(port.name(), Arc::clone(&port.events), now);
        let life = Lifecycle::new(port.mode());
        Peer {
            port,
            life,
            path,
            entrance: None,
            attachment: None,
            journal,
            said: None,
            at_odds: None,
            reminder: Reminder::default(),
        }
    }

    pub(super) fn port(&self) -> &Arc<Port> {
        &self.port
    }

    pub(super) fn id(&self) -> PortId {
        self.port.id()
    }

    /// The socket this port keeps others from using.
    pub(super) fn socket(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    pub(super) fn is_client(&self) -> bool {
        self.port.mode() == Mode::Client
    }

    /// Client mode: another port has the path; says so, once.
    pub(super) fn wait_for(&mut self, path: &Path, holder: &str, now: Instant) {
        let text = format!(
            "options:vhost-server-path='{}' is in use by port '{holder}'; the port stays disconnected until it is free",
            path.display()
        );
        if self.said.as_ref() != Some(&text) {
            let name = self.port.name();
            self.journal
                .write(now, Level::Warn, format_args!("port '{name}': {text}"));
            self.port.set_trouble(Some(text.clone()));
            self.said = Some(text);
        }
    }

    /// Server mode: front-ends may knock from now on.
    pub(super) fn listen(&mut self, listener: Listener, reactor: &Reactor, now: Instant) {
        self.entrance = Some(Entrance::new(listener, self.id(), now));
        self.hear(reactor, now);
    }

    /// Lets them, as soon as it is time to and the system can.
    fn hear(&mut self, reactor: &Reactor, now: Instant) {
        let heard = self.entrance.as_mut().map(|entrance| entrance.tick(reactor, now));
        if let Some(Err(error)) = heard {
            vhost_config!(self, now, Level::Warn, "cannot wait for front-ends: {error}");
        }
    }

    /// When this port next wants to be called although nothing happens.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let deadline = self.attachment.as_ref().and_then(Attachment::deadline);
        let drain = self.attachment.as_ref().and_then(|there| there.drains.wakes_at());
        let entrance = self.entrance.as_ref().and_then(Entrance::wakes_at);
        [
            deadline,
            drain,
            entrance,
            self.life.wakes_at(),
            self.reminder.wakes_at(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Client mode: connect to `path` from now on; None, to nothing.
    pub(super) fn configure(&mut self, path: Option<PathBuf>, reactor: &mut Reactor, now: Instant) {
        if path == self.path {
            return;
        }
        self.said = None;
        self.at_odds = None;
        let event = if path.is_some() {
            Event::Configured
        } else {
            Event::Unconfigured
        };
        self.path = path;
        self.happened(event, reactor, now);
    }

    /// Something changed where the socket should be.
    pub(super) fn appeared(&mut self, reactor: &mut Reactor, now: Instant) {
        self.happened(Event::Appeared, reactor, now);
    }

    /// Time passed.
    pub(super) fn tick(&mut self, reactor: &mut Reactor, now: Instant) {
        let deadline = self.attachment.as_ref().and_then(Attachment::deadline);
        if deadline.is_some_and(|deadline| now >= deadline) {
            let seconds = MESSAGE_DEADLINE.as_secs();
            vhost_config!(
                self,
                now,
                Level::Warn,
                "front-end left a message unfinished for {seconds} s; closing"
            );
            self.happened(Event::Lost, reactor, now);
        }
        if let Some(attachment) = &mut self.attachment {
            attachment.drains.tick(&self.port, reactor, self.port.id(), now);
        }
        if self.reminder.is_due(now) {
            self.port.changed();
        }
        self.hear(reactor, now);
        self.happened(Event::Tick, reactor, now);
    }

    /// Somebody's memory is gone: ends the connection if it was this front-end's.
    pub(super) fn check_memory(&mut self, reactor: &mut Reactor, now: Instant) {
        let checked = self.attachment.as_ref().map_or(Ok(()), Attachment::check_memory);
        if let Err(end) = checked {
            vhost_config!(self, now, end.level(), "{end}");
            self.happened(Event::Lost, reactor, now);
        }
    }

    /// The driver of a ring that nobody polls has something for it.
    pub(super) fn kicked(&mut self, vring: u16, now: Instant) {
        if let Some(attachment) = &mut self.attachment {
            attachment.drains.kicked(vring, &self.port, now);
        }
    }

    /// The port is deleted.
    pub(super) fn close(mut self, reactor: &mut Reactor, now: Instant) {
        if self.life.state() == State::Running && !self.is_client() {
            let name = self.port.name();
            self.journal.write(
                now,
                Level::Warn,
                format_args!("Removing port '{name}' while vhost device still attached."),
            );
        }
        self.happened(Event::Close, reactor, now);
        if let Some(entrance) = self.entrance.take() {
            entrance.close(reactor);
        }
    }

    /// A message of this front-end is being carried out elsewhere.
    pub(super) fn is_away(&self) -> bool {
        self.attachment.as_ref().is_some_and(Attachment::is_away)
    }

    /// A poll thread broke a ring: says which and why, once, and tells the front-end. Not while a message is being
    /// carried out elsewhere, which may take the ring away, and keeps it: that is looked at when it is back.
    pub(super) fn rings_broke(&mut self, now: Instant) {
        let Some(attachment) = self.attachment.as_mut().filter(|a| !a.is_away()) else {
            return;
        };
        for RingFault { vring, reason } in attachment.new_faults(self.port.take_faults()) {
            vhost_config!(
                self,
                now,
                Level::Warn,
                "vring {vring}: {reason}; it stops until it is set up again"
            );
        }
    }

    /// A poll thread met addresses that the front-end has not told yet: asks for them.
    pub(super) fn rings_missed(&mut self, reactor: &Reactor, now: Instant) {
        if let Some(device) = self.attachment.as_mut().and_then(Attachment::device) {
            device.met_misses();
        }
        self.ask(reactor, now);
    }

    /// The front-end has answered what was asked on the back-end channel, or takes more questions.
    pub(super) fn answered(&mut self, reactor: &Reactor, now: Instant) {
        let id = self.id();
        let trouble = self
            .attachment
            .as_mut()
            .and_then(|attachment| attachment.take_answers(reactor, id));
        if let Some((level, trouble)) = trouble {
            vhost_config!(self, now, level, "{trouble}");
        }
        self.ask(reactor, now);
    }

    /// Lets the device ask what it has to, and tell what changed.
    pub(super) fn ask(&mut self, reactor: &Reactor, now: Instant) {
        let id = self.id();
        let notes = self
            .attachment
            .as_mut()
            .map(|attachment| attachment.ask(reactor, id));
        for (level, note) in notes.into_iter().flatten() {
            vhost_config!(self, now, level, "{note}");
        }
    }

    /// A front-end knocks.
    pub(super) fn acceptable(&mut self, reactor: &mut Reactor, now: Instant) {
        let Some(entrance) = &mut self.entrance else {
            return;
        };
        let allowed = self.port.options.lock().allowed_users.clone();
        match entrance.answer(allowed.as_deref(), reactor, now) {
            Ok(Knock::FrontEnd(stream)) => self.let_in(stream, reactor, now),
            Ok(Knock::Stranger(stranger, _stream)) => {
                self.port.refused.fetch_add(1, Ordering::Relaxed);
                vhost_config!(
                    self,
                    now,
                    Level::Warn,
                    "refused a front-end of {stranger}: not one of vhost-allowed-uids"
                );
            }
            Ok(Knock::Nobody) => {}
            Err(error) => vhost_config!(self, now, Level::Warn, "cannot accept a front-end: {error}"),
        }
    }

    /// A port has one front-end.
    fn let_in(&mut self, stream: UnixStream, reactor: &mut Reactor, now: Instant) {
        // The one before may be gone already, with the end of its stream still unread.
        if self.attachment.is_some() {
            self.readable(reactor, now);
        }
        if self.attachment.is_some() {
            vhost_config!(
                self,
                now,
                Level::Warn,
                "refused a second front-end: one is connected already"
            );
        } else {
            self.attach(stream, reactor, now);
        }
    }

    /// The front-end has something to say, or takes our answers again.
    pub(super) fn readable(&mut self, reactor: &mut Reactor, now: Instant) {
        for _ in 0..MESSAGES_PER_TURN {
            match self.exchange(reactor, now) {
                Ok(true) => {}
                Ok(false) => break,
                Err(End::Panicked(panic)) => return self.port.poison(&panic),
                Err(end) => {
                    // Who took memory away mostly dies of it, too: which of the two is heard first is chance.
                    let attachment = self.attachment.as_ref();
                    let end = attachment.and_then(|a| a.check_memory().err()).unwrap_or(end);
                    vhost_config!(self, now, end.level(), "{end}");
                    if let Some(why) = attachment.and_then(|a| a.ended_at_odds(&end)) {
                        self.set_at_odds(why, now);
                    }
                    return self.happened(Event::Lost, reactor, now);
                }
            }
        }
    }

    /// Says why front-ends cannot take what the port offers, as often as it is another reason.
    fn set_at_odds(&mut self, why: String, now: Instant) {
        if self.at_odds.as_ref() != Some(&why) {
            vhost_config!(self, now, Level::Warn, "{why}");
            self.port.set_trouble(Some(why.clone()));
            self.at_odds = Some(why);
        }
    }

    /// Takes one message and answers it. Ok(false): there is none.
    fn exchange(&mut self, reactor: &mut Reactor, now: Instant) -> Result<bool, End> {
        let Some(attachment) = &mut self.attachment else {
            return Ok(false);
        };
        let was_away = attachment.is_away();
        let Some(heard) = attachment.exchange(now)? else {
            attachment.listen(reactor, self.port.id());
            return Ok(false);
        };
        let is_back = was_away && !attachment.is_away();
        if let Some(note) = heard.settled {
            vhost_config!(self, now, Level::Info, "{note}");
        }
        if let Some(error) = heard.refused {
            vhost_config!(self, now, Level::Warn, "{error}");
            if let Some(why) = self.attachment.as_ref().and_then(|a| a.refused_at_odds(&error)) {
                self.set_at_odds(why, now);
            }
        }
        self.ask(reactor, now);
        self.publish(reactor, now);
        if is_back && self.port.has_faults() {
            self.rings_broke(now);
        }
        Ok(true)
    }

    /// Lets the rest of the port see what the device has become.
    fn publish(&mut self, reactor: &mut Reactor, now: Instant) {
        let Some(attachment) = &mut self.attachment else {
            return;
        };
        attachment.settle_drains(reactor, now);
        if let Some(portrait) = attachment.portrait() {
            *self.port.portrait.lock() = Some(Arc::new(portrait));
        }
        let Some(device) = attachment.device() else {
            return;
        };
        for (index, enabled) in device.take_toggled() {
            let (path, queue) = (self.port.path(), index / 2);
            // As everywhere in Open vSwitch, rx is from the guest: the odd vrings.
            let direction = if index % 2 == 1 { "rx" } else { "tx" };
            let state = if enabled { "enabled" } else { "disabled" };
            self.journal.write(
                now,
                Level::Info,
                format_args!("State of queue {queue} ( {direction}_qid {queue} ) of vhost device '{path}' changed to '{state}'"),
            );
        }
        if device.features().is_some() && self.at_odds.take().is_some() {
            self.port.set_trouble(None);
        }
        let (up, notes) = (device.attached(), device.take_notes());
        for (level, note) in notes {
            vhost_config!(self, now, level, "{note}");
        }
        let was_up = self.life.state() == State::Running;
        if up {
            let link = device.link();
            let pairs = device.queue_pairs();
            if !was_up {
                vhost_config!(self, now, Level::Info, "virtio is now ready for processing.");
                let (path, node) = (self.port.path(), link.numa.unwrap_or(0));
                self.journal.write(
                    now,
                    Level::Info,
                    format_args!("vHost Device '{path}' has been added on numa node {node}"),
                );
            }
            if let Some(age) = attachment.take_age(now) {
                self.port.count_connect(age);
            }
            self.port.attach(link, pairs);
        } else if was_up {
            self.say_removed(now);
            self.port.detach();
        }
        if up != was_up {
            self.reminder.told(now);
        }
        let event = if up { Event::RingsUp } else { Event::RingsDown };
        self.happened(event, reactor, now);
    }

    fn say_removed(&mut self, now: Instant) {
        let path = self.port.path();
        self.journal.write(
            now,
            Level::Info,
            format_args!("vHost Device '{path}' has been removed"),
        );
    }

    /// Steps the life cycle and does what it asks for, until it asks for nothing.
    fn happened(&mut self, event: Event, reactor: &mut Reactor, now: Instant) {
        let mut action = self.life.on(event, now);
        if matches!(action, Action::Disconnect | Action::Reconnect) {
            self.disconnect(reactor, now);
        }
        while matches!(action, Action::Connect | Action::Reconnect) {
            action = self.connect(reactor, now);
        }
        match (&self.path, self.life.state()) {
            (Some(path), State::Backoff { .. }) => reactor.watches.watch(self.id(), path),
            _ => reactor.watches.forget(self.id()),
        }
    }

    fn connect(&mut self, reactor: &mut Reactor, now: Instant) -> Action {
        let Some(path) = self.path.clone() else {
            return Action::Stay;
        };
        // Watch first: a socket that appears between a failed attempt and the watch would be missed.
        reactor.watches.watch(self.id(), &path);
        match connector::connect(&path) {
            Ok(stream) => {
                self.said = None;
                vhost_config!(self, now, Level::Info, "connected");
                self.attach(stream, reactor, now);
                Action::Stay
            }
            Err(error) => {
                self.say_waiting(&path, &error, now);
                self.life.on(Event::Failed, now)
            }
        }
    }

    /// Says why there is no connection: once, and again when the reason is another.
    fn say_waiting(&mut self, path: &Path, error: &io::Error, now: Instant) {
        let obstacle = connector::obstacle(path, error);
        let text = obstacle.clone().unwrap_or_default();
        if self.said.as_ref() == Some(&text) {
            return;
        }
        match obstacle {
            Some(text) => vhost_config!(self, now, Level::Warn, "{text}"),
            None => {
                let why = connector::words(error);
                vhost_config!(self, now, Level::Info, "failed to connect: {why}");
            }
        }
        vhost_config!(self, now, Level::Info, "reconnecting...");
        let trouble = connector::obstacle(path, error).or(self.at_odds.clone());
        self.port.set_trouble(trouble);
        self.said = Some(text);
    }

    fn attach(&mut self, stream: UnixStream, reactor: &mut Reactor, now: Instant) {
        let attachment = Attachment::new(stream, Arc::clone(&self.port), now);
        if let Err(error) = attachment.register(reactor, self.id()) {
            vhost_config!(self, now, Level::Error, "cannot serve the front-end: {error}");
            self.life.on(Event::Failed, now);
            return;
        }
        vhost_config!(self, now, Level::Info, "new device, handle is {}", self.id());
        self.port.set_trouble(self.at_odds.clone());
        self.attachment = Some(attachment);
        self.life.on(Event::Established, now);
    }

    /// Ends the connection, if there is one: its rings stop, its memory goes.
    fn disconnect(&mut self, reactor: &mut Reactor, now: Instant) {
        let Some(attachment) = self.attachment.take() else {
            return;
        };
        *self.port.portrait.lock() = None;
        let was_up = self.port.carrier();
        for remnant in attachment.end(reactor) {
            vhost_config!(self, now, Level::Warn, "{remnant}");
        }
        if was_up {
            self.say_removed(now);
            self.reminder.told(now);
        }
        self.port.detach();
        let path = self.port.path();
        self.journal.write(
            now,
            Level::Info,
            format_args!("vHost Device '{path}' connection has been destroyed"),
        );
    }
}

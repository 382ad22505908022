//! One message, carried out on a thread of its own.
//!
//! While post-copy goes on, whoever touches guest memory may sleep until the front-end brings a page, and whoever
//! waits for a poll thread's burst may wait for one that sleeps. Starting and stopping a ring does both. The control
//! thread serves every port and may do neither: it sends a thread on the errand, with the session and the device,
//! and listens to this front-end again when they are back. A front-end that brings no page keeps nobody but its own
//! port waiting; when it goes, or its port does, the errand is called back.

use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

use crossbeam::channel::{bounded, Receiver, TryRecvError};

use crate::memory::{Remnant, Userfault};
use crate::panics;
use crate::vhost_user::{Message, Outcome, Session};

use super::control::Control;
use super::device::PortDevice;
use super::thread;

/// What carries out a front-end's messages.
pub(super) struct Desk {
    pub(super) session: Session,
    pub(super) device: PortDevice,
}

impl Desk {
    pub(super) fn handle(&mut self, message: Message) -> Outcome {
        self.session.handle(message, &mut self.device)
    }
}

/// A message under way, and what carries it out. Called back when dropped.
pub(super) struct Errand {
    /// Until it is back.
    done: Option<Receiver<Result<Done, String>>>,
    pages: Arc<Userfault>,
}

type Done = (Box<Desk>, Outcome);

/// How an errand stands.
pub(super) enum Progress {
    /// Still away.
    Away,
    /// The desk is back, with what became of the message.
    Back(Box<Desk>, Outcome),
    /// Carrying the message out panicked, with this text; the desk is gone.
    Lost(String),
}

impl Errand {
    /// Sends `desk` to carry out `message`; `control` is told when it is back. What it may sleep on is `pages`.
    ///
    /// # Errors
    ///
    /// The system has no thread to give; the desk is gone then, and its rings with it.
    pub(super) fn send(
        mut desk: Box<Desk>,
        message: Message,
        pages: Arc<Userfault>,
        control: Control,
    ) -> io::Result<Errand> {
        let (give, done) = bounded(1);
        let work = move || {
            let outcome = catch_unwind(AssertUnwindSafe(move || {
                let outcome = desk.handle(message);
                (desk, outcome)
            }));
            // Nobody listens any more if the thread that waited for it panicked itself.
            let _ = give.send(outcome.map_err(|_| panics::take()));
            control.poke();
        };
        thread::spawn("ovs-vhost-page", work)?;
        let done = Some(done);
        Ok(Errand { done, pages })
    }

    /// How it stands; what it brought back can be taken once.
    pub(super) fn progress(&mut self) -> Progress {
        let progress = match self.done.as_ref().map(Receiver::try_recv) {
            Some(Err(TryRecvError::Empty)) => return Progress::Away,
            Some(Ok(Ok((desk, outcome)))) => Progress::Back(desk, outcome),
            Some(Ok(Err(panic))) => Progress::Lost(panic),
            Some(Err(TryRecvError::Disconnected)) | None => Progress::Lost("a thread was lost".to_owned()),
        };
        self.done = None;
        progress
    }
}

impl Errand {
    /// Calls it back, and the desk goes. Says what is left of post-copy.
    pub(super) fn call_back(&mut self) -> Vec<Remnant> {
        let Some(done) = self.done.take() else {
            return Vec::new();
        };
        // After this nobody sleeps on this front-end's pages any more, so the desk is here at once: its rings
        // must stop before the port's next front-end starts them.
        let remnants = self.pages.abandon();
        drop(done.recv());
        remnants
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        // Who could be told has called it back before.
        self.call_back();
    }
}

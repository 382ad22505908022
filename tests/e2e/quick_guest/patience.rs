//! Whoever waits for answers for good does not fail its test, and the library that speaks for the front-end does: where its
//! socket has a limit of time, it asks again.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;

use anyhow::Result;

use crate::cases::world::PATIENCE;

/// Hangs up on who has not answered in time, unless dropped before.
pub struct Patience {
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Patience {
    pub fn with(stream: &UnixStream) -> Result<Patience> {
        let stream = stream.try_clone()?;
        let (over, waited_for) = mpsc::channel();
        let wait = move || {
            if waited_for.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                // It may have hung up itself.
                let _ = stream.shutdown(Shutdown::Both);
            }
        };
        let thread = std::thread::Builder::new().name("patience".into()).spawn(wait)?;
        Ok(Patience {
            over: Some(over),
            thread: Some(thread),
        })
    }
}

impl Drop for Patience {
    /// The thread has the connection, too: while it lives, who hangs up has not.
    fn drop(&mut self) {
        drop(self.over.take());
        // It has nothing that could panic.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

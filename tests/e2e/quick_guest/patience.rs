//! Whoever waits for answers for good does not fail its test, and the library that speaks for the front-end does: where its
//! socket has a limit of time, it asks again.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};

use anyhow::Result;

use crate::cases::world::PATIENCE;

/// Hangs up on who has not answered in time, unless dropped before.
pub struct Patience {
    _over: Sender<()>,
}

impl Patience {
    pub fn with(stream: &UnixStream) -> Result<Patience> {
        let stream = stream.try_clone()?;
        let (_over, waited_for) = mpsc::channel();
        std::thread::Builder::new()
            .name("patience".into())
            .spawn(move || {
                if waited_for.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    // It may have hung up itself.
                    let _ = stream.shutdown(Shutdown::Both);
                }
            })?;
        Ok(Patience { _over })
    }
}

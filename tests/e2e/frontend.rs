//! The smallest possible front-end: it connects (or lets itself be connected to), asks for the features, and goes
//! away. Enough to take a port through connect and disconnect hundreds of times in a few seconds.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{ensure, Context, Result};

use crate::cases::world::PATIENCE;
use crate::wait;

/// Request number of VHOST_USER_GET_FEATURES.
const GET_FEATURES: u32 = 1;
/// Protocol version 1, in the flags of every message.
const VERSION: u32 = 1;
/// Flag of a message that is a reply.
const REPLY: u32 = 4;
/// Feature bit that every vhost-user back-end offers.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// An established connection to a port.
pub struct Frontend(UnixStream);

impl Frontend {
    /// Connects to a server port, as soon as it listens.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self> {
        let stream = wait::until(&format!("{} to accept", path.display()), limit, || {
            Ok(UnixStream::connect(path).ok())
        })?;
        Self::new(stream)
    }

    fn new(stream: UnixStream) -> Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Frontend(stream))
    }

    /// Asks for the features and checks that the answer is one.
    pub fn get_features(&mut self) -> Result<u64> {
        let mut request = Vec::new();
        for word in [GET_FEATURES, VERSION, 0] {
            request.extend_from_slice(&word.to_ne_bytes());
        }
        self.0.write_all(&request)?;
        let mut reply = [0; 20];
        self.0
            .read_exact(&mut reply)
            .context("no reply to GET_FEATURES")?;
        let word = |at: usize| u32::from_ne_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
        ensure!(
            (word(0), word(4), word(8)) == (GET_FEATURES, VERSION | REPLY, 8),
            "odd reply to GET_FEATURES: {reply:?}"
        );
        let features = u64::from(word(16)) << 32 | u64::from(word(12));
        ensure!(
            features & PROTOCOL_FEATURES != 0,
            "features {features:#x} without PROTOCOL_FEATURES"
        );
        Ok(features)
    }
}

/// For front-ends that have more to say.
impl From<Frontend> for UnixStream {
    fn from(frontend: Frontend) -> UnixStream {
        frontend.0
    }
}

/// The listening side, for client ports; the socket file goes away with it.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens on `path`, which must not exist.
    pub fn bind(path: &Path) -> Result<Self> {
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Listener {
            listener,
            path: path.into(),
        })
    }

    /// The next connection of the port.
    pub fn accept(&self, limit: Duration) -> Result<Frontend> {
        let stream = wait::until(
            &format!("a connection to {}", self.path.display()),
            limit,
            || match self.listener.accept() {
                Ok((stream, _)) => Ok(Some(stream)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error.into()),
            },
        )?;
        Frontend::new(stream)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

//! The socket of a front-end that may say anything, and hears what it is answered.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{bail, Result};
use ovs_vhost::vhost_user::corpus::Attack;
use ovs_vhost::vhost_user::samples::{id, numbers, wire, NEED_REPLY, PLAIN};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// How long a message may go without an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request with what goes with it.
pub struct Message {
    /// Its number.
    pub request: u32,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// A request by its name behind `VHOST_USER_`, without descriptors.
    pub fn new(name: &str, payload: Vec<u8>) -> Message {
        Message::with_fd(name, payload, [])
    }

    /// The same with these.
    pub fn with_fd(name: &str, payload: Vec<u8>, fds: impl Into<Vec<OwnedFd>>) -> Message {
        let (request, fds) = (id(name), fds.into());
        Message {
            request,
            payload,
            fds,
        }
    }
}

/// What the port says to a request that asked for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was carried out, or answered.
    Done,
    /// "No"; the connection may go on.
    Refused,
    /// The connection ended.
    Closed,
}

/// A connection to a port.
pub struct Wire(UnixStream);

impl Wire {
    /// On a connection that stands.
    pub fn new(stream: UnixStream) -> Result<Wire> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Wire(stream))
    }

    /// Acknowledges every protocol feature that the port offers. Asks for no answer, as there may be none yet.
    pub fn negotiate(&mut self) -> Result<u64> {
        self.send(&wire(id("GET_PROTOCOL_FEATURES"), PLAIN, &[]), &[]);
        let Some(offered) = self.hear()? else {
            bail!("closed before anything was said");
        };
        self.send(&wire(id("SET_PROTOCOL_FEATURES"), PLAIN, &offered), &[]);
        Ok(offered.try_into().map_or(0, u64::from_ne_bytes))
    }

    /// Sends; says whether it could, as the port may have hung up.
    pub fn send(&self, bytes: &[u8], fds: &[OwnedFd]) -> bool {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        matches!(self.0.send_with_fds(&[bytes], &raw), Ok(sent) if sent == bytes.len())
    }

    /// Sends a message a byte at a time, its descriptors with the first.
    pub fn send_slowly(&self, message: &Message) -> bool {
        let bytes = wire(message.request, NEED_REPLY, &message.payload);
        self.send(&bytes[..1], &message.fds) && bytes[1..].iter().all(|byte| self.send(&[*byte], &[]))
    }

    /// Sends an attack with as many descriptors as it wants.
    pub fn play(&self, attack: &Attack, fds: &[OwnedFd]) -> bool {
        self.send(&attack.bytes, &fds[..attack.fds])
    }

    /// The number and the payload of the next reply; none if the port hung up instead.
    fn hear_reply(&mut self) -> Result<Option<(u32, Vec<u8>)>> {
        let mut header = [0; 12];
        if !self.read(&mut header)? {
            return Ok(None);
        }
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let mut payload = vec![0; usize::try_from(word(8))?.min(4096)];
        Ok(self.read(&mut payload)?.then(|| (word(0), payload)))
    }

    /// The payload of the next reply; none if the port hung up instead.
    pub fn hear(&mut self) -> Result<Option<Vec<u8>>> {
        Ok(self.hear_reply()?.map(|(_, payload)| payload))
    }

    /// Asks an innocuous question and waits for its answer: all that was said before has been dealt with then. Says whether
    /// the connection lives.
    pub fn settle(&mut self) -> Result<bool> {
        let question = id("GET_FEATURES");
        self.send(&wire(question, PLAIN, &[]), &[]);
        while let Some((request, _)) = self.hear_reply()? {
            // There may be one to an attack before it that looks the same; whoever asks next finds ours, and does not mind.
            if request == question {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits for the port to hang up, whatever it says until then.
    pub fn hear_the_end(&mut self) -> Result<()> {
        while self.hear()?.is_some() {}
        Ok(())
    }

    /// Says something and waits for what comes of it.
    pub fn ask(&mut self, message: &Message) -> Result<Answer> {
        self.send(&wire(message.request, NEED_REPLY, &message.payload), &message.fds);
        self.answer()
    }

    /// What comes of a request. Those that are not acknowledged are answered with something else, never with "no".
    pub fn answer(&mut self) -> Result<Answer> {
        let no = numbers(&[1]);
        Ok(match self.hear()? {
            None => Answer::Closed,
            Some(payload) if payload == no => Answer::Refused,
            Some(_) => Answer::Done,
        })
    }

    /// Whether all of `bytes` came. A port that hangs up with something of ours unread resets the connection.
    fn read(&mut self, bytes: &mut [u8]) -> Result<bool> {
        match self.0.read_exact(bytes) {
            Ok(()) => Ok(true),
            Err(error) => match error.kind() {
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => Ok(false),
                ErrorKind::WouldBlock => bail!("neither answered nor closed for {} s", PATIENCE.as_secs()),
                _ => Err(error.into()),
            },
        }
    }
}

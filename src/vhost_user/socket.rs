//! The connection to a front-end: the only I/O of the protocol.
//!
//! Never waits. A message may come in as many pieces as its sender likes; what has arrived stays here until
//! the rest does. A read asks for no byte beyond the current message, because the kernel hands over file
//! descriptors with the bytes they were sent with: read further, and the next message's would be mixed in.
//! What a reader may trust here: each descriptor is owned from the moment the kernel made it, and neither a
//! sender that stalls nor one that never reads can make this hold more than one message and [`MAX_OUTPUT`].

mod sys;

use std::collections::VecDeque;
use std::io;
use std::mem::take;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{self, PollFd, PollFlags, Timespec};
use thiserror::Error;

use super::message::{Defect, Header, Message, HEADER_SIZE, MAX_PAYLOAD};

/// Replies that may wait for a peer to read them, in bytes: some 200 of them. A front-end waits for each
/// reply it asks for, so one that lets these pile up is not going to read them.
pub const MAX_OUTPUT: usize = 4096;

const BUFFER_SIZE: usize = HEADER_SIZE + MAX_PAYLOAD;

/// What [`Connection::receive`] found.
#[derive(Debug)]
pub enum Received {
    /// A whole message.
    Message(Message),
    /// Nothing, or not all of a message yet.
    Pending,
    /// The peer hung up between two messages.
    Closed,
}

/// Why nothing more can be received.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// The peer hung up inside a message.
    #[error("peer closed after {have} of {want} bytes of a message")]
    ClosedInside {
        /// Bytes that arrived.
        have: usize,
        /// Bytes that the message has, as far as known: of the header, until that is whole.
        want: usize,
    },
    /// A payload was too long to be read, so that nobody knows where the next message starts.
    #[error("the message before was oversized, its end is unknown")]
    Unframed,
    /// The socket failed.
    #[error("cannot receive: {0}")]
    Io(#[from] io::Error),
}

/// Why nothing more can be sent.
#[derive(Debug, Error)]
pub enum SendError {
    /// The peer does not read.
    #[error("peer does not read its replies: {waiting} bytes wait, at most {MAX_OUTPUT} may")]
    PeerDoesNotRead {
        /// Bytes that would wait.
        waiting: usize,
    },
    /// The socket failed.
    #[error("cannot send: {0}")]
    Io(#[from] io::Error),
}

/// A stream socket to a front-end.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    buffer: Box<[u8; BUFFER_SIZE]>,
    /// Bytes of the current message in `buffer`.
    have: usize,
    /// Descriptors of the current message.
    fds: Vec<OwnedFd>,
    defect: Option<Defect>,
    unframed: bool,
    /// What the socket did not take yet.
    output: VecDeque<Outgoing>,
}

/// A message that goes out, or the rest of it.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    /// Goes with the next byte, which is the first.
    fd: Option<OwnedFd>,
}

impl Connection {
    /// Takes over a connected stream. It need not be non-blocking: every call here is.
    pub fn new(stream: UnixStream) -> Connection {
        Connection {
            stream,
            buffer: Box::new([0; BUFFER_SIZE]),
            have: 0,
            fds: Vec::new(),
            defect: None,
            unframed: false,
            output: VecDeque::new(),
        }
    }

    /// Reads on in the current message; returns it once it is whole. At most one message per call, so that a
    /// peer who talks without pause can be left after each.
    ///
    /// # Errors
    /// See [`ReceiveError`]; the connection is of no further use.
    pub fn receive(&mut self) -> Result<Received, ReceiveError> {
        if self.unframed {
            return Err(ReceiveError::Unframed);
        }
        if let Some(unfinished) = self.fill(HEADER_SIZE)? {
            return Ok(unfinished);
        }
        let mut bytes = [0; HEADER_SIZE];
        bytes.copy_from_slice(&self.buffer[..HEADER_SIZE]);
        let header = Header::decode(bytes);
        let size = self.payload_size(header);
        match self.fill(HEADER_SIZE + size)? {
            Some(unfinished) => Ok(unfinished),
            None => Ok(Received::Message(self.take_message(header, size))),
        }
    }

    /// Whether part of a message is here and the rest is not: the time for a deadline to run.
    pub fn message_started(&self) -> bool {
        self.have > 0
    }

    /// Sends `bytes`, or keeps what the socket does not take for [`flush`](Self::flush).
    ///
    /// # Errors
    /// See [`SendError`]; the connection is of no further use.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), SendError> {
        self.send_with(bytes, None)
    }

    /// As [`send`](Self::send), with a file descriptor, which is closed here once the peer has its own.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_with(&mut self, bytes: &[u8], fd: Option<OwnedFd>) -> Result<(), SendError> {
        let before: usize = self.output.iter().map(|message| message.bytes.len()).sum();
        let waiting = before.saturating_add(bytes.len());
        if waiting > MAX_OUTPUT {
            return Err(SendError::PeerDoesNotRead { waiting });
        }
        let bytes = bytes.to_vec();
        self.output.push_back(Outgoing { bytes, fd });
        self.flush()
    }

    /// Sends what is kept. Call it when the socket becomes writable.
    ///
    /// # Errors
    /// [`SendError::Io`]; the connection is of no further use.
    pub fn flush(&mut self) -> Result<(), SendError> {
        while let Some(message) = self.output.front_mut() {
            if message.bytes.is_empty() {
                self.output.pop_front();
                continue;
            }
            match sys::send(&self.stream, &message.bytes, message.fd.as_ref()) {
                Ok(sent) => {
                    message.fd = None;
                    message.bytes.drain(..sent.min(message.bytes.len()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether the peer has hung up, perhaps behind messages that were not received yet.
    pub fn is_hung_up(&self) -> bool {
        let mut poll = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let told = event::poll(&mut poll, Some(&Timespec::default()));
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        told.is_ok() && poll.iter().any(|poll| poll.revents().intersects(gone))
    }

    /// Whether something is kept that the socket did not take yet.
    pub fn output_waiting(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads until `want` bytes of the message are here: `None`. Otherwise what is to be told instead.
    fn fill(&mut self, want: usize) -> Result<Option<Received>, ReceiveError> {
        while let Some(rest) = self
            .buffer
            .get_mut(self.have..want)
            .filter(|rest| !rest.is_empty())
        {
            let chunk = match sys::receive(&self.stream, rest) {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Some(Received::Pending))
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The peer closed and never read our last reply: a hang-up as any other.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => sys::Chunk::default(),
                Err(error) => return Err(error.into()),
            };
            match (chunk.len, self.have) {
                (0, 0) => return Ok(Some(Received::Closed)),
                (0, have) => return Err(ReceiveError::ClosedInside { have, want }),
                _ => self.absorb(chunk),
            }
        }
        Ok(None)
    }

    /// Takes note of bytes that were read. Descriptors that nobody may use are closed here.
    fn absorb(&mut self, chunk: sys::Chunk) {
        // The kernel does not tell which byte of one read brought them. A sender that puts them on the second
        // byte of a header and is read late gets away with it; they are its message's all the same.
        if self.have == 0 {
            self.fds = chunk.fds;
        } else if !chunk.fds.is_empty() {
            self.defect = Some(Defect::FdsInside);
        }
        if chunk.truncated {
            self.defect = Some(Defect::FdsTruncated);
        }
        self.have += chunk.len;
    }

    /// Payload bytes to read behind a header. Of a payload that no request can have: none.
    fn payload_size(&mut self, header: Header) -> usize {
        match usize::try_from(header.size) {
            Ok(size) if size <= MAX_PAYLOAD => size,
            _ => {
                self.defect = Some(Defect::Oversized(header.size));
                self.unframed = true;
                0
            }
        }
    }

    fn take_message(&mut self, header: Header, size: usize) -> Message {
        self.have = 0;
        Message {
            header,
            payload: self.buffer[HEADER_SIZE..].iter().take(size).copied().collect(),
            fds: take(&mut self.fds),
            defect: self.defect.take(),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests;

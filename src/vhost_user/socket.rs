//! The connection to a front-end: the only I/O of the protocol.
//!
//! Never waits. A message may come in as many pieces as its sender likes; what has arrived stays here until
//! the rest does. A read asks for no byte beyond the current message, because the kernel hands over file
//! descriptors with the bytes they were sent with: read further, and the next message's would be mixed in.
//! What a reader may trust here: each descriptor is owned from the moment the kernel made it, and neither a
//! sender that stalls nor one that never reads can make this hold more than one message and [`MAX_OUTPUT`].

use std::io;
use std::mem::{size_of, take};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use memoffset::offset_of;
use thiserror::Error;

use super::message::{Defect, Fields, Header, Message, Short, HEADER_SIZE, MAX_FDS, MAX_PAYLOAD};

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
    output: Vec<u8>,
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
            output: Vec::new(),
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
        let waiting = self.output.len().saturating_add(bytes.len());
        if waiting > MAX_OUTPUT {
            return Err(SendError::PeerDoesNotRead { waiting });
        }
        self.output.extend_from_slice(bytes);
        self.flush()
    }

    /// Sends what is kept. Call it when the socket becomes writable.
    ///
    /// # Errors
    /// [`SendError::Io`]; the connection is of no further use.
    pub fn flush(&mut self) -> Result<(), SendError> {
        while !self.output.is_empty() {
            match sys::send(&self.stream, &self.output) {
                Ok(sent) => drop(self.output.drain(..sent.min(self.output.len()))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
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

/// The two system calls. What they return is owned or counted before it leaves here.
mod sys {
    use super::*;

    /// What one read brought.
    #[derive(Debug, Default)]
    pub(super) struct Chunk {
        pub(super) len: usize,
        pub(super) fds: Vec<OwnedFd>,
        /// The kernel had more descriptors than it could hand over.
        pub(super) truncated: bool,
    }

    /// Room for exactly [`MAX_FDS`] descriptors: with one more the kernel says MSG_CTRUNC.
    const CONTROL_SIZE: usize = size_of::<libc::cmsghdr>() + MAX_FDS * size_of::<RawFd>();

    #[repr(C, align(8))]
    struct Control([u8; CONTROL_SIZE]);

    // Control messages are read as bytes below: length, level, type, data; the next one at the next word.
    const WORD: usize = size_of::<usize>();
    const _: () = {
        assert!(align_of::<libc::cmsghdr>() <= align_of::<Control>());
        assert!(CONTROL_SIZE % WORD == 0);
        assert!(offset_of!(libc::cmsghdr, cmsg_len) == 0);
        assert!(offset_of!(libc::cmsghdr, cmsg_level) == WORD);
        assert!(offset_of!(libc::cmsghdr, cmsg_type) == WORD + 4);
        assert!(size_of::<libc::cmsghdr>() == WORD + 8);
    };

    /// Reads what is there, at most `bytes.len()`, and the descriptors that came with it.
    pub(super) fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Chunk> {
        let mut control = Control([0; CONTROL_SIZE]);
        let mut iov = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: a msghdr is numbers and pointers, and zero is a value of each.
        let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = (&raw mut control).cast();
        msg.msg_controllen = CONTROL_SIZE;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: `stream` is an open socket; `msg` points to `iov` and `control`, `iov` to `bytes`, each with
        // its true length, and all of them outlive the call.
        let len = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut msg, flags) };
        let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
        let filled = control.0.get(..msg.msg_controllen).unwrap_or(&control.0);
        let fds = owned_fds(filled);
        Ok(Chunk {
            len,
            fds,
            truncated: msg.msg_flags & libc::MSG_CTRUNC != 0,
        })
    }

    /// Every descriptor in the control messages of a read that has just succeeded.
    fn owned_fds(mut control: &[u8]) -> Vec<OwnedFd> {
        let mut fds = Vec::new();
        while let Ok((len, level, kind)) = control_header(control) {
            let Some(data) = control.get(size_of::<libc::cmsghdr>()..len) else {
                break;
            };
            let mut numbers = Fields::new(data);
            while let (libc::SOL_SOCKET, libc::SCM_RIGHTS, Ok(number)) = (level, kind, numbers.bytes()) {
                // SAFETY: the kernel opened this descriptor for the read, and this is the only place that looks.
                fds.push(unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(number)) });
            }
            control = control.get(len.next_multiple_of(WORD)..).unwrap_or_default();
        }
        fds
    }

    /// Length (this header included), level and type of the first control message.
    fn control_header(control: &[u8]) -> Result<(usize, i32, i32), Short> {
        let mut fields = Fields::new(control);
        let len = usize::from_ne_bytes(fields.bytes()?);
        Ok((
            len,
            i32::from_ne_bytes(fields.bytes()?),
            i32::from_ne_bytes(fields.bytes()?),
        ))
    }

    /// Sends what fits of `bytes`; never raises SIGPIPE.
    pub(super) fn send(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `stream` is an open socket, and `bytes` is readable for its length.
        let sent = unsafe { libc::send(stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

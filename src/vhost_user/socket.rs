//! The connection to a front-end: the only I/O of the protocol.
//!
//! Never waits. A message may come in as many pieces as its sender likes; what has arrived stays here until
//! the rest does. A read asks for no byte beyond the current message, because the kernel hands over file
//! descriptors with the bytes they were sent with: read further, and the next message's would be mixed in.
//! What a reader may trust here: each descriptor is owned from the moment the kernel made it, and neither a
//! sender that stalls nor one that never reads can make this hold more than one message and [`MAX_OUTPUT`].

use std::collections::VecDeque;
use std::io;
use std::mem::{size_of, take};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use memoffset::offset_of;
use rustix::event::{self, PollFd, PollFlags, Timespec};
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

    /// A control message with one descriptor.
    #[repr(C)]
    struct Rights {
        header: libc::cmsghdr,
        fd: RawFd,
        padding: u32,
    }

    const _: () = assert!(offset_of!(Rights, fd) == size_of::<libc::cmsghdr>());

    /// Sends what fits of `bytes`, with `fd` if there is one; never raises SIGPIPE.
    pub(super) fn send(stream: &UnixStream, bytes: &[u8], fd: Option<&OwnedFd>) -> io::Result<usize> {
        let mut iov = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let mut rights = Rights {
            header: libc::cmsghdr {
                cmsg_len: offset_of!(Rights, padding),
                cmsg_level: libc::SOL_SOCKET,
                cmsg_type: libc::SCM_RIGHTS,
            },
            fd: fd.map_or(-1, AsRawFd::as_raw_fd),
            padding: 0,
        };
        // SAFETY: a msghdr is numbers and pointers, and zero is a value of each.
        let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        if fd.is_some() {
            msg.msg_control = (&raw mut rights).cast();
            msg.msg_controllen = size_of::<Rights>();
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `stream` is an open socket; `msg` points to `iov` and perhaps `rights`, `iov` to `bytes`, each with
        // its true length; all of them outlive the call, which only reads them.
        let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const msg, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    use super::super::testing::{id, numbers, sample, wire, Probe, PLAIN};
    use super::*;

    fn pair() -> (UnixStream, Connection) {
        let (peer, ours) = UnixStream::pair().expect("a socket pair");
        (peer, Connection::new(ours))
    }

    fn send(peer: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let sent = peer.send_with_fds(&[bytes], &raw).expect("to send");
        assert_eq!(sent, bytes.len());
    }

    fn next(connection: &mut Connection) -> Message {
        match connection.receive() {
            Ok(Received::Message(message)) => message,
            other => panic!("no message but {other:?}"),
        }
    }

    fn pending(connection: &mut Connection) -> bool {
        matches!(connection.receive(), Ok(Received::Pending))
    }

    fn fd_flags(fd: &OwnedFd) -> String {
        std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).expect("fdinfo")
    }

    #[test]
    fn a_message_may_come_one_byte_at_a_time() {
        let probe = Probe::new("bytes");
        let (mut peer, mut connection) = pair();
        let (payload, _) = sample(id("SET_MEM_TABLE"));
        let bytes = wire(5, PLAIN, &payload);
        assert!(pending(&mut connection));
        assert!(!connection.message_started());
        send(&peer, &bytes[..1], &probe.fds(2));
        for byte in &bytes[1..] {
            assert!(pending(&mut connection));
            assert!(connection.message_started());
            peer.write_all(&[*byte]).expect("to send");
        }
        let message = next(&mut connection);
        assert!(!connection.message_started());
        assert_eq!(
            (message.header.request, message.fds.len(), message.defect),
            (5, 2, None)
        );
        assert_eq!(message.payload, payload);
        assert!(pending(&mut connection));
    }

    #[test]
    fn each_message_gets_its_own_descriptors_when_several_arrive_at_once() {
        let probe = Probe::new("several");
        let (peer, mut connection) = pair();
        let with = |count: u64| wire(12, PLAIN, &numbers(&[count]));
        send(&peer, &[with(0), with(0)].concat(), &[]);
        send(&peer, &with(1), &probe.fds(1));
        send(&peer, &with(2), &probe.fds(2));
        send(&peer, &with(0), &[]);
        for expected in [0, 0, 1, 2, 0] {
            let message = next(&mut connection);
            assert_eq!(message.payload, numbers(&[expected]));
            assert_eq!(
                numbers(&[u64::try_from(message.fds.len()).expect("few")]),
                message.payload
            );
            assert_eq!(message.defect, None);
        }
        assert!(pending(&mut connection));
    }

    #[test]
    fn a_header_sent_apart_from_its_payload_brings_the_descriptors() {
        let probe = Probe::new("apart");
        let (mut peer, mut connection) = pair();
        let bytes = wire(12, PLAIN, &numbers(&[1]));
        send(&peer, &bytes[..HEADER_SIZE], &probe.fds(1));
        assert!(pending(&mut connection));
        peer.write_all(&bytes[HEADER_SIZE..]).expect("to send");
        let message = next(&mut connection);
        assert_eq!((message.fds.len(), message.defect), (1, None));
    }

    #[test]
    fn descriptors_inside_a_message_are_closed_and_the_message_is_damaged() {
        let probe = Probe::new("inside");
        let bytes = wire(12, PLAIN, &numbers(&[1]));
        for at in [1, 5, HEADER_SIZE, HEADER_SIZE + 3] {
            let (mut peer, mut connection) = pair();
            peer.write_all(&bytes[..at]).expect("to send");
            assert!(pending(&mut connection));
            send(&peer, &bytes[at..], &probe.fds(3));
            let message = next(&mut connection);
            assert_eq!(
                (message.fds.len(), message.defect),
                (0, Some(Defect::FdsInside)),
                "at {at}"
            );
            assert_eq!(probe.leaked(), 0);
        }
    }

    #[test]
    fn descriptors_with_the_payload_are_seen_even_when_it_waits_already() {
        let probe = Probe::new("with-payload");
        let (peer, mut connection) = pair();
        let bytes = wire(12, PLAIN, &numbers(&[1]));
        send(&peer, &bytes[..HEADER_SIZE], &[]);
        send(&peer, &bytes[HEADER_SIZE..], &probe.fds(1));
        assert_eq!(next(&mut connection).defect, Some(Defect::FdsInside));
        assert_eq!(probe.leaked(), 0);
    }

    #[test]
    fn eight_descriptors_arrive_and_are_closed_on_exec() {
        let probe = Probe::new("eight");
        let (peer, mut connection) = pair();
        send(&peer, &wire(3, PLAIN, &[]), &probe.fds(8));
        let message = next(&mut connection);
        assert_eq!((message.fds.len(), message.defect), (8, None));
        // O_CLOEXEC, octal 02000000, as /proc prints it
        assert!(
            message.fds.iter().all(|fd| fd_flags(fd).contains("flags:\t02")),
            "{}",
            fd_flags(&message.fds[0])
        );
        drop(message);
        assert_eq!(probe.leaked(), 0);
    }

    #[test]
    fn more_than_eight_descriptors_damage_the_message_and_none_leaks() {
        let probe = Probe::new("nine");
        for count in [9, 10, 64, 253] {
            let (peer, mut connection) = pair();
            send(&peer, &wire(3, PLAIN, &[]), &probe.fds(count));
            let message = next(&mut connection);
            assert_eq!(message.defect, Some(Defect::FdsTruncated), "{count}");
            drop(message);
            assert_eq!(probe.leaked(), 0, "{count}");
        }
    }

    #[test]
    fn an_oversized_message_is_told_at_its_header_and_ends_reception() {
        for size in [269, 4096, 0x8000_0000, u32::MAX] {
            let (mut peer, mut connection) = pair();
            let header = Header {
                request: 5,
                flags: PLAIN,
                size,
            };
            peer.write_all(&header.encode()).expect("to send");
            let message = next(&mut connection);
            assert_eq!(message.defect, Some(Defect::Oversized(size)));
            assert_eq!((message.header, message.payload.len()), (header, 0));
            assert!(matches!(connection.receive(), Err(ReceiveError::Unframed)));
        }
    }

    #[test]
    fn the_longest_message_fits() {
        let (mut peer, mut connection) = pair();
        peer.write_all(&wire(5, PLAIN, &[7; MAX_PAYLOAD]))
            .expect("to send");
        let message = next(&mut connection);
        assert_eq!((message.payload, message.defect), (vec![7; MAX_PAYLOAD], None));
    }

    #[test]
    fn a_hang_up_between_messages_is_no_error_and_inside_one_it_is() {
        let (peer, mut connection) = pair();
        drop(peer);
        assert!(matches!(connection.receive(), Ok(Received::Closed)));
        let bytes = wire(12, PLAIN, &numbers(&[1]));
        for (at, want) in [(1, HEADER_SIZE), (HEADER_SIZE, 20), (19, 20)] {
            let (mut peer, mut connection) = pair();
            peer.write_all(&bytes[..at]).expect("to send");
            drop(peer);
            match connection.receive() {
                Err(ReceiveError::ClosedInside { have, want: wanted }) => {
                    assert_eq!((have, wanted), (at, want))
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_peer_that_never_read_its_reply_hangs_up_like_any_other() {
        let (peer, mut connection) = pair();
        connection.send(&[0; 20]).expect("to send");
        drop(peer);
        assert!(matches!(connection.receive(), Ok(Received::Closed)));
    }

    #[test]
    fn whole_messages_are_still_read_after_the_peer_hung_up() {
        let (mut peer, mut connection) = pair();
        peer.write_all(&wire(3, PLAIN, &[]).repeat(2)).expect("to send");
        drop(peer);
        assert_eq!(next(&mut connection).name(), "VHOST_USER_SET_OWNER");
        assert_eq!(next(&mut connection).name(), "VHOST_USER_SET_OWNER");
        assert!(matches!(connection.receive(), Ok(Received::Closed)));
    }

    #[test]
    fn a_peer_that_never_reads_is_found_out_before_memory_grows() {
        let (peer, mut connection) = pair();
        let reply = [0; 20];
        let mut sends = 0;
        let error = loop {
            match connection.send(&reply) {
                Ok(()) => sends += 1,
                Err(error) => break error,
            }
            assert!(sends < 1_000_000, "the socket takes everything");
        };
        assert!(matches!(error, SendError::PeerDoesNotRead { waiting } if waiting > MAX_OUTPUT));
        let kept: usize = connection.output.iter().map(|message| message.bytes.len()).sum();
        assert!(kept <= MAX_OUTPUT);
        assert!(connection.output_waiting());
        drop(peer);
    }

    #[test]
    fn output_that_waits_goes_out_in_order_once_the_peer_reads() {
        let (mut peer, mut connection) = pair();
        let mut sent = Vec::new();
        for number in 0_u64.. {
            connection.send(&number.to_ne_bytes()).expect("to send");
            sent.extend(number.to_ne_bytes());
            if connection.output_waiting() {
                break;
            }
        }
        let mut got = vec![0; sent.len()];
        peer.read_exact(&mut got[..sent.len() - 8]).expect("to read");
        connection.flush().expect("to flush");
        assert!(!connection.output_waiting());
        peer.read_exact(&mut got[sent.len() - 8..]).expect("to read");
        assert_eq!(got, sent);
    }

    #[test]
    fn a_descriptor_goes_with_its_own_message_even_if_that_has_to_wait() {
        let probe = Probe::new("sent");
        let (peer, mut connection) = pair();
        let mut waited = Vec::new();
        while !connection.output_waiting() {
            connection.send(&[0; 20]).expect("to send");
            waited.extend([0; 20]);
        }
        connection.send_with(&[1; 12], Some(probe.fd())).expect("to send");
        connection.send(&[2; 12]).expect("to send");
        let expected = [waited, vec![1; 12], vec![2; 12]].concat();
        let mut got = Vec::<u8>::new();
        let mut fd_at = None;
        while got.len() < expected.len() {
            let mut bytes = [0; 4];
            let chunk = sys::receive(&peer, &mut bytes).expect("to read");
            if !chunk.fds.is_empty() {
                assert_eq!((chunk.fds.len(), fd_at.replace(got.len())), (1, None));
            }
            got.extend(&bytes[..chunk.len]);
            connection.flush().expect("to flush");
        }
        assert_eq!(got, expected);
        assert_eq!(
            fd_at,
            Some(expected.len() - 24),
            "with the first byte of its message"
        );
        assert_eq!(probe.leaked(), 0, "ours is closed once the peer has its own");
    }

    #[test]
    fn a_descriptor_that_nobody_takes_is_closed_with_the_connection() {
        let probe = Probe::new("unsent");
        let (_peer, mut connection) = pair();
        while !connection.output_waiting() {
            connection.send(&[0; 20]).expect("to send");
        }
        connection.send_with(&[1; 12], Some(probe.fd())).expect("to send");
        assert_eq!(probe.leaked(), 1);
        drop(connection);
        assert_eq!(probe.leaked(), 0);
    }

    #[test]
    fn sending_to_a_peer_that_is_gone_is_an_error_not_a_signal() {
        let (peer, mut connection) = pair();
        drop(peer);
        // SAFETY: sigset_t is plain bits; each call gets a live one, and masks this thread only. A blocked
        // SIGPIPE stays pending even though the test harness ignores it.
        let raised = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut set, libc::SIGPIPE);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            assert!(matches!(connection.send(&[0; 20]), Err(SendError::Io(_))));
            libc::sigpending(&raw mut set);
            libc::sigismember(&raw const set, libc::SIGPIPE)
        };
        assert_eq!(raised, 0);
    }

    #[test]
    fn descriptors_of_an_unfinished_message_are_closed_with_the_connection() {
        let probe = Probe::new("unfinished");
        let (peer, mut connection) = pair();
        send(&peer, &wire(12, PLAIN, &numbers(&[1]))[..7], &probe.fds(8));
        assert!(pending(&mut connection));
        assert_eq!(probe.leaked(), 8);
        drop(connection);
        assert_eq!(probe.leaked(), 0);
    }

    #[test]
    fn out_of_band_bytes_are_not_taken_for_a_message() {
        let (mut peer, mut connection) = pair();
        // SAFETY: `peer` is an open socket and the byte outlives the call.
        let sent = unsafe { libc::send(peer.as_raw_fd(), [9_u8].as_ptr().cast(), 1, libc::MSG_OOB) };
        if sent == 1 {
            assert!(!matches!(connection.receive(), Ok(Received::Message(_))));
        }
        peer.write_all(&wire(3, PLAIN, &[])).expect("to send");
        assert_eq!(next(&mut connection).name(), "VHOST_USER_SET_OWNER");
    }
}

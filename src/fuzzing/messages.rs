//! Target `messages`: a connection, on which anything comes, with any descriptors, cut anywhere.
//!
//! An input is records: how many descriptors and of which kind, how many bytes, and these. Each is one write; then the
//! back-end is given its turn. Seeds are sessions as QEMU and testpmd hold them.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use rustix::net::{sendmsg, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::guest::Guest;
use super::input::Input;
use crate::port::Stage;
use crate::vhost_user::message::{Flags, HEADER_SIZE};
use crate::vhost_user::{Connection, Header, Next, Received};

/// Records of one input.
const RECORDS: usize = 100;
/// The most descriptors of one record: one more than a message may have.
const FDS: usize = 9;
/// In a record's first byte: what the descriptors are. Else they are the guest's memory.
pub(super) const EVENTFDS: u8 = 0x10;
pub(super) const SOCKETS: u8 = 0x20;

pub(super) fn run(mut input: Input<'_>) {
    Guest::lend_file(|guest| {
        let before = count(guest);
        let (mut peer, ours) = UnixStream::pair().expect("a socket pair");
        peer.set_nonblocking(true).expect("non-blocking");
        let mut backend = Backend {
            connection: Connection::new(ours),
            stage: Stage::new(),
        };
        let mut heard = Vec::new();
        for _ in 0..RECORDS {
            if input.is_empty() || !say(guest, &peer, &mut backend, &mut input) {
                break;
            }
            let _pending = peer.read_to_end(&mut heard);
        }
        drop(backend);
        check_replies(&heard);
        assert_eq!(count(guest), before, "descriptors that stay open");
    });
}

/// Sends one record, and says whether the connection goes on.
fn say(guest: &Guest, peer: &UnixStream, backend: &mut Backend, input: &mut Input<'_>) -> bool {
    let (kind, len) = (input.u8(), input.u16() % 1024);
    write(peer, input.bytes(len.into()), &descriptors(guest, kind));
    backend.run()
}

/// A port's side of the connection.
struct Backend {
    connection: Connection,
    stage: Stage,
}

impl Backend {
    /// Carries out what has come, and says whether the connection goes on.
    fn run(&mut self) -> bool {
        loop {
            let message = match self.connection.receive() {
                Ok(Received::Message(message)) => message,
                Ok(Received::Pending) => return true,
                Ok(Received::Closed) | Err(_) => return false,
            };
            let outcome = self.stage.handle(message);
            let reply = outcome
                .reply
                .map(|reply| self.connection.send_with(&reply, outcome.fd));
            if outcome.next == Next::Close || reply.is_some_and(|sent| sent.is_err()) {
                return false;
            }
        }
    }
}

/// As many descriptors as the low bits of `kind` say.
fn descriptors(guest: &Guest, kind: u8) -> Vec<OwnedFd> {
    let one = |_| match kind & (EVENTFDS | SOCKETS) {
        EVENTFDS => rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("an eventfd"),
        SOCKETS => UnixStream::pair().expect("a socket pair").0.into(),
        _ => guest.file(),
    };
    (0..usize::from(kind & 0xf).min(FDS)).map(one).collect()
}

/// Sends; a back-end that does not read any more misses it.
fn write(peer: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    let _missed = sendmsg(peer, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL);
}

/// What comes back is replies, whole, one after the other.
fn check_replies(mut bytes: &[u8]) {
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_SIZE>() {
        let header = Header::decode(*header);
        assert_eq!(header.flags, Flags::OF_A_REPLY);
        let size = usize::try_from(header.size).expect("small");
        assert!(rest.len() >= size, "{} of {size} bytes of a reply", rest.len());
        bytes = &rest[size..];
    }
    assert!(bytes.is_empty(), "half a header");
}

/// Descriptors of the guest's memory that are open in this process.
fn count(guest: &Guest) -> usize {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let file = std::fs::File::from(guest.file());
    let wanted = identity(file.metadata().expect("a file"));
    let links = std::fs::read_dir("/proc/self/fd").expect("/proc").flatten();
    let open = links.filter_map(|link| std::fs::metadata(link.path()).ok());
    open.filter(|metadata| identity(metadata.clone()) == wanted)
        .count()
}

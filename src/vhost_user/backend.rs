//! The back-end channel (vhost-user, "Back-end communication"): the socket of SET_BACKEND_REQ_FD, on which the
//! back-end asks and the front-end answers.
//!
//! Never waits: what the socket does not take is kept, up to the bound of every [`Connection`]; answers come in
//! the order of what was asked. A front-end that breaks these rules loses its channel, not its connection.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use thiserror::Error;

use super::iotlb;
use super::message::{Fields, Flags, Header, Message};
use super::socket::{Connection, ReceiveError, Received, SendError};
use crate::memory::Miss;

/// What a back-end asks or tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendRequest {
    /// Where does this address lead? The translation comes as an IOTLB_MSG, or never. The number is the asker's own, to
    /// know the answer by.
    IotlbMiss(Miss, u64),
    /// The device was not allowed what the guest has it do.
    IotlbAccessFail(Miss),
    /// The configuration space is not as it was: who wants to know reads it again.
    ConfigChange,
}

/// Every request that the specification has for a back-end ("Back-end message types"), and whether this one sends it.
pub const BACKEND_TABLE: [(u32, &str, bool); 10] = [
    (IOTLB_MSG, "IOTLB_MSG", true),
    (CONFIG_CHANGE_MSG, "CONFIG_CHANGE_MSG", true),
    (3, "VRING_HOST_NOTIFIER_MSG", false),
    (4, "VRING_CALL", false),
    (5, "VRING_ERR", false),
    (6, "SHARED_OBJECT_ADD", false),
    (7, "SHARED_OBJECT_REMOVE", false),
    (8, "SHARED_OBJECT_LOOKUP", false),
    (9, "SHMEM_MAP", false),
    (10, "SHMEM_UNMAP", false),
];

/// What a variant of [`BackendRequest`] is on the wire.
struct Row {
    id: u32,
    name: &'static str,
    /// Whether an answer is wanted where REPLY_ACK is negotiated.
    asks: bool,
}

const IOTLB_MSG: u32 = 1;
const CONFIG_CHANGE_MSG: u32 = 2;

impl BackendRequest {
    fn row(&self) -> Row {
        let (id, name, asks) = match self {
            BackendRequest::IotlbMiss(..) => (IOTLB_MSG, "VHOST_USER_BACKEND_IOTLB_MSG (miss)", true),
            BackendRequest::IotlbAccessFail(_) => (IOTLB_MSG, "VHOST_USER_BACKEND_IOTLB_MSG (access)", false),
            // Whatever the front-end makes of it, there is nothing that we would do about it.
            BackendRequest::ConfigChange => {
                (CONFIG_CHANGE_MSG, "VHOST_USER_BACKEND_CONFIG_CHANGE_MSG", false)
            }
        };
        Row { id, name, asks }
    }

    /// The specification's name, for log lines.
    pub fn name(&self) -> &'static str {
        self.row().name
    }

    fn payload(&self) -> Vec<u8> {
        match self {
            BackendRequest::IotlbMiss(wanted, _) => iotlb::miss(*wanted),
            BackendRequest::IotlbAccessFail(wanted) => iotlb::access_fail(*wanted),
            BackendRequest::ConfigChange => Vec::new(),
        }
    }
}

/// What a front-end said on the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This request was carried out, or not.
    To(BackendRequest, bool),
    /// Nothing, or not all of an answer yet.
    None,
}

/// Why a channel is of no further use.
#[derive(Debug, Error)]
pub enum BackendError {
    /// The descriptor is no Unix socket; only of those is it known that nothing waits for them, closing included.
    #[error("the back-end channel is no Unix socket")]
    NotASocket,
    /// The front-end hung up.
    #[error("the front-end closed the back-end channel")]
    Closed,
    /// What came is no answer to what was asked.
    #[error("request {request} with flags {flags:#x} and {size} bytes on the back-end channel is no answer to what was asked")]
    NoAnswer {
        /// Number in its header.
        request: u32,
        /// Flags in its header.
        flags: u32,
        /// Payload bytes that its header announces.
        size: u32,
    },
    /// Nothing more can be received.
    #[error("back-end channel: {0}")]
    Receive(#[from] ReceiveError),
    /// Nothing more can be sent.
    #[error("back-end channel: {0}")]
    Send(#[from] SendError),
}

/// The back-end channel of one front-end.
#[derive(Debug)]
pub struct BackendChannel {
    connection: Connection,
    /// What was asked and not answered yet.
    asked: VecDeque<BackendRequest>,
}

impl BackendChannel {
    /// Takes over the socket.
    ///
    /// # Errors
    /// [`BackendError::NotASocket`].
    pub fn new(socket: OwnedFd) -> Result<Self, BackendError> {
        let stream = UnixStream::from(socket);
        // The standard library looks at the address family.
        stream.local_addr().map_err(|_| BackendError::NotASocket)?;
        Ok(Self {
            connection: Connection::new(stream),
            asked: VecDeque::new(),
        })
    }

    /// Sends a request, or keeps it until [`BackendChannel::receive`] finds the socket writable. `reply_ack` says
    /// whether the front-end can be asked for an answer.
    ///
    /// # Errors
    /// [`BackendError::Send`]; the channel is of no further use.
    pub fn send(&mut self, request: BackendRequest, reply_ack: bool) -> Result<(), BackendError> {
        let (row, payload) = (request.row(), request.payload());
        let asks = row.asks && reply_ack;
        let header = Header {
            request: row.id,
            flags: if asks {
                Flags::OF_A_QUESTION
            } else {
                Flags::OF_A_NOTE
            },
            size: u32::try_from(payload.len()).unwrap_or(u32::MAX),
        };
        if asks {
            self.asked.push_back(request);
        }
        Ok(self.connection.send(&[&header.encode()[..], &payload].concat())?)
    }

    /// Sends what is kept, and takes one answer, if there is one.
    ///
    /// # Errors
    /// [`BackendError`]; the channel is of no further use.
    pub fn receive(&mut self) -> Result<Answer, BackendError> {
        self.connection.flush()?;
        match self.connection.receive()? {
            Received::Message(message) => self.answer(&message),
            Received::Pending => Ok(Answer::None),
            Received::Closed => Err(BackendError::Closed),
        }
    }

    /// Whether something is kept that the socket did not take yet.
    pub fn output_waiting(&self) -> bool {
        self.connection.output_waiting()
    }

    /// Matches an answer with the oldest question.
    fn answer(&mut self, message: &Message) -> Result<Answer, BackendError> {
        let Header { request, flags, size } = message.header;
        let no_answer = BackendError::NoAnswer {
            request,
            flags: flags.0,
            size,
        };
        let mut fields = Fields::new(&message.payload);
        match (self.asked.front(), fields.u64()) {
            (Some(asked), Ok(result))
                if message.defect.is_none()
                    && flags == Flags::OF_A_REPLY
                    && asked.row().id == request
                    && message.payload.len() == size_of::<u64>() =>
            {
                let asked = *asked;
                self.asked.pop_front();
                Ok(Answer::To(asked, result == 0))
            }
            _ => Err(no_answer),
        }
    }
}

impl AsFd for BackendChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::testing::{iotlb, numbers, wire, PLAIN};
    use super::*;
    use crate::memory::{Access, GuestAddr};

    fn pair() -> (UnixStream, BackendChannel) {
        let (peer, ours) = UnixStream::pair().expect("a socket pair");
        peer.set_nonblocking(true).expect("non-blocking");
        (peer, BackendChannel::new(ours.into()).expect("a channel"))
    }

    fn miss(page: u64) -> BackendRequest {
        let wanted = Miss {
            iova: GuestAddr(page << 12),
            access: Access::Read,
        };
        BackendRequest::IotlbMiss(wanted, page)
    }

    fn sent(peer: &mut UnixStream) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 16];
        let len = peer.read(&mut bytes).expect("what was sent");
        bytes.truncate(len);
        bytes
    }

    #[test]
    fn a_question_wants_an_answer_only_where_that_is_negotiated() {
        for (reply_ack, flags) in [(true, Flags(0x9)), (false, PLAIN)] {
            let (mut peer, mut channel) = pair();
            channel.send(miss(5), reply_ack).expect("to send");
            assert_eq!(sent(&mut peer), wire(1, flags, &iotlb(0x5000, 0, 0, 1, 1)));
        }
    }

    #[test]
    fn a_change_of_the_configuration_space_is_told_in_a_header_and_no_answer_is_wanted() {
        let (mut peer, mut channel) = pair();
        channel.send(BackendRequest::ConfigChange, true).expect("to send");
        assert_eq!(sent(&mut peer), wire(2, PLAIN, &[]));
        peer.write_all(&wire(2, Flags::OF_A_REPLY, &numbers(&[0])))
            .expect("to answer");
        assert!(matches!(channel.receive(), Err(BackendError::NoAnswer { .. })));
    }

    #[test]
    fn what_is_sent_is_in_the_table_of_what_a_back_end_may_send() {
        let wanted = Miss {
            iova: GuestAddr(9),
            access: Access::Write,
        };
        let all = [
            miss(1),
            BackendRequest::IotlbAccessFail(wanted),
            BackendRequest::ConfigChange,
        ];
        for (id, name, sent) in BACKEND_TABLE {
            let mut ours = all.iter().filter(|request| request.row().id == id);
            assert_eq!(ours.clone().count() > 0, sent, "{name}");
            assert!(ours.all(|request| request.name().contains(name)), "{name}");
        }
    }

    #[test]
    fn answers_belong_to_questions_in_order_and_notes_have_none() {
        let (mut peer, mut channel) = pair();
        let Miss { iova, access } = Miss {
            iova: GuestAddr(9),
            access: Access::Write,
        };
        channel.send(miss(1), true).expect("to send");
        channel
            .send(BackendRequest::IotlbAccessFail(Miss { iova, access }), true)
            .expect("to send");
        channel.send(miss(2), true).expect("to send");
        assert!(matches!(channel.receive(), Ok(Answer::None)));
        let answer = |result| wire(1, Flags::OF_A_REPLY, &numbers(&[result]));
        let both = [answer(0), answer(u64::MAX)].concat();
        peer.write_all(&both[..30]).expect("to answer");
        assert_eq!(channel.receive().expect("an answer"), Answer::To(miss(1), true));
        assert_eq!(channel.receive().expect("half of one"), Answer::None);
        peer.write_all(&both[30..]).expect("to answer");
        assert_eq!(channel.receive().expect("an answer"), Answer::To(miss(2), false));
    }

    #[test]
    fn what_is_no_answer_ends_the_channel() {
        let bad = [
            wire(1, Flags::OF_A_REPLY, &numbers(&[0, 0])),
            wire(1, Flags::OF_A_REPLY, &[0; 4]),
            wire(2, Flags::OF_A_REPLY, &numbers(&[0])),
            wire(1, PLAIN, &numbers(&[0])),
            wire(1, Flags(0xd), &numbers(&[0])),
        ];
        for bytes in bad {
            let (mut peer, mut channel) = pair();
            channel.send(miss(1), true).expect("to send");
            peer.write_all(&bytes).expect("to answer");
            assert!(
                matches!(channel.receive(), Err(BackendError::NoAnswer { .. })),
                "{bytes:?}"
            );
        }
        let (mut peer, mut channel) = pair();
        peer.write_all(&wire(1, Flags::OF_A_REPLY, &numbers(&[0])))
            .expect("to answer");
        assert!(
            matches!(channel.receive(), Err(BackendError::NoAnswer { .. })),
            "nothing was asked"
        );
    }

    #[test]
    fn a_front_end_that_never_reads_its_channel_is_found_out() {
        let (_peer, mut channel) = pair();
        let found = (0..1 << 20).find_map(|page| channel.send(miss(page), false).err());
        assert!(matches!(
            found,
            Some(BackendError::Send(SendError::PeerDoesNotRead { .. }))
        ));
        assert!(channel.output_waiting());
    }

    #[test]
    fn a_hang_up_is_told() {
        let (peer, mut channel) = pair();
        drop(peer);
        assert!(matches!(channel.receive(), Err(BackendError::Closed)));
    }

    #[test]
    fn only_a_unix_socket_makes_a_channel() {
        let file = tempfile::tempfile().expect("a file");
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        for fd in [OwnedFd::from(file), OwnedFd::from(tcp)] {
            assert!(matches!(BackendChannel::new(fd), Err(BackendError::NotASocket)));
        }
        let (peer, _ours) = UnixStream::pair().expect("a socket pair");
        assert!(BackendChannel::new(peer.into()).is_ok());
    }
}

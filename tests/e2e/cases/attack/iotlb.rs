//! What a front-end says of its guest's IOMMU, and its end of the channel on which it is asked.

use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use anyhow::{bail, Context, Result};
use ovs_vhost::memory::Access;
use ovs_vhost::model::FRONTEND_OFFSET;
use ovs_vhost::vhost_user::message::Flags;
use ovs_vhost::vhost_user::samples::{iotlb, numbers, wire};

use crate::wire::Message;

/// `VHOST_IOTLB_*`.
pub const UPDATE: u8 = 2;
pub const INVALIDATE: u8 = 3;
/// Bytes of a question: header and payload.
const QUESTION: usize = 12 + 32;
/// VHOST_USER_BACKEND_IOTLB_MSG, and the flags of an answer.
pub const IOTLB_MSG: u32 = 1;
pub const REPLY: Flags = Flags(0x5);

/// These addresses of the device's lead to where the guest has `target`.
pub fn translate(iova: &Range<u64>, target: u64, access: Access) -> Message {
    let uaddr = FRONTEND_OFFSET + target;
    say(iova.start, iova.end - iova.start, uaddr, access.perm(), UPDATE)
}

/// They lead nowhere.
pub fn take_back(iova: &Range<u64>) -> Message {
    say(iova.start, iova.end - iova.start, 0, 0, INVALIDATE)
}

/// No address leads anywhere.
pub fn take_back_all() -> Message {
    say(0, 0, 0, 0, INVALIDATE)
}

/// An IOTLB message of any words.
pub fn say(iova: u64, size: u64, uaddr: u64, perm: u8, kind: u8) -> Message {
    Message::new("IOTLB_MSG", iotlb(iova, size, uaddr, perm, kind))
}

/// What the port asks or tells.
pub struct Question {
    pub iova: u64,
    /// Of what must not be done there is only told.
    wants_answer: bool,
}

/// The front-end's end of a back-end channel.
pub struct Channel(UnixStream);

impl Channel {
    /// A channel, and what hands the other end over.
    pub fn open() -> Result<(Channel, Message)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let message = Message::with_fd("SET_BACKEND_REQ_FD", vec![], [OwnedFd::from(theirs)]);
        Ok((Channel(ours), message))
    }

    /// The next thing that was asked, if anything was. Nothing more is of a port that has let go of its end.
    pub fn hear(&mut self) -> Result<Option<Question>> {
        let mut bytes = [0; QUESTION];
        match self.0.read(&mut bytes) {
            Ok(QUESTION) => {}
            Ok(0) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            other => bail!("no question: {other:?}"),
        }
        let (header, payload) = bytes.split_at(12);
        let iova = payload.first_chunk().context("an address")?;
        Ok(Some(Question {
            iova: u64::from_ne_bytes(*iova),
            wants_answer: header[4] & 8 != 0,
        }))
    }

    /// Answers a question: it was carried out, or not.
    pub fn answer(&mut self, question: &Question, done: bool) {
        if question.wants_answer {
            self.say(&wire(IOTLB_MSG, REPLY, &numbers(&[u64::from(!done)])));
        }
    }

    /// The addresses that were asked for since the last call; they lead nowhere, says the answer.
    pub fn refuse(&mut self) -> Result<Vec<u64>> {
        let mut asked = Vec::new();
        while let Some(question) = self.hear()? {
            self.answer(&question, false);
            asked.push(question.iova);
        }
        Ok(asked)
    }

    /// Says anything; says whether it could, as the port may have let go of its end.
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }
}

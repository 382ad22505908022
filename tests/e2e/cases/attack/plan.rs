//! All that a front-end says to have its rings run, in one value: what an attack changes before it is said.

use std::os::fd::OwnedFd;

use anyhow::Result;
use ovs_vhost::memory::RegionDesc;
use ovs_vhost::model::FRONTEND_OFFSET;
use ovs_vhost::vhost_user::samples::{numbers, state};
use ovs_vhost::virtio::features::VHOST_F_LOG_ALL;

use crate::wire::{Answer, Message, Wire};

/// What is said of one vring.
pub struct VringPlan {
    /// SET_VRING_NUM.
    pub num: u32,
    /// SET_VRING_BASE.
    pub base: u32,
    /// SET_VRING_ADDR: flags, and the four addresses.
    pub flags: u32,
    pub desc: u64,
    pub used: u64,
    pub avail: u64,
    pub log: u64,
    /// SET_VRING_CALL.
    pub call: OwnedFd,
    /// SET_VRING_KICK.
    pub kick: OwnedFd,
}

/// What is said.
pub struct Plan {
    /// SET_FEATURES.
    pub features: u64,
    /// Said before there is memory.
    pub first: Vec<Message>,
    /// SET_MEM_TABLE.
    pub regions: Vec<(RegionDesc, OwnedFd)>,
    /// Said before the rings.
    pub then: Vec<Message>,
    /// The receiveq and the transmitq.
    pub vrings: [VringPlan; 2],
}

/// What came of it.
pub struct Heard {
    /// Which requests were answered with "no".
    pub refused: Vec<u32>,
    /// Whether the connection ended.
    pub closed: bool,
}

impl Heard {
    /// Everything was done.
    pub fn is_well(&self) -> bool {
        self.refused.is_empty() && !self.closed
    }
}

impl Plan {
    /// Has the port log what it writes, from the beginning.
    pub fn log(&mut self, size: u64, offset: u64, fd: OwnedFd) {
        self.features |= VHOST_F_LOG_ALL.0;
        for vring in &mut self.vrings {
            (vring.flags, vring.log) = (1, vring.used.wrapping_sub(FRONTEND_OFFSET));
        }
        let message = Message::with_fd("SET_LOG_BASE", numbers(&[size, offset]), [fd]);
        self.first.push(message);
    }

    /// The messages, in the order of an ordinary front-end.
    pub fn messages(self) -> Vec<Message> {
        let mut messages = vec![
            Message::new("SET_OWNER", vec![]),
            Message::new("SET_FEATURES", numbers(&[self.features])),
        ];
        messages.extend(self.first);
        messages.push(mem_table(self.regions));
        messages.extend(self.then);
        for (index, vring) in (0..).zip(self.vrings) {
            messages.extend(vring_messages(index, vring));
        }
        messages
    }

    /// Says it all, as far as the port listens.
    pub fn say(self, wire: &mut Wire) -> Result<Heard> {
        say_all(self.messages(), wire)
    }
}

/// Says these messages, as far as the port listens.
pub fn say_all(messages: Vec<Message>, wire: &mut Wire) -> Result<Heard> {
    let mut refused = Vec::new();
    for message in messages {
        match wire.ask(&message)? {
            Answer::Done => {}
            Answer::Refused => refused.push(message.request),
            Answer::Closed => {
                return Ok(Heard {
                    refused,
                    closed: true,
                })
            }
        }
    }
    Ok(Heard {
        refused,
        closed: false,
    })
}

/// SET_MEM_TABLE of these regions.
pub fn mem_table(regions: Vec<(RegionDesc, OwnedFd)>) -> Message {
    let count = u32::try_from(regions.len()).expect("few");
    let (mut payload, mut fds) = (state(count, 0), Vec::new());
    for (desc, fd) in regions {
        payload.extend(region(&desc));
        fds.push(fd);
    }
    Message::with_fd("SET_MEM_TABLE", payload, fds)
}

/// A memory region description.
pub fn region(desc: &RegionDesc) -> Vec<u8> {
    numbers(&[desc.guest.0, desc.size, desc.frontend.0, desc.mmap_offset])
}

/// ADD_MEM_REG or REM_MEM_REG of a region.
pub fn single_region(name: &str, desc: &RegionDesc, fd: Option<OwnedFd>) -> Message {
    Message::with_fd(name, [numbers(&[0]), region(desc)].concat(), Vec::from_iter(fd))
}

/// SET_VRING_ADDR.
pub fn vring_addr(index: u32, vring: &VringPlan) -> Message {
    let addresses = numbers(&[vring.desc, vring.used, vring.avail, vring.log]);
    Message::new("SET_VRING_ADDR", [state(index, vring.flags), addresses].concat())
}

/// All that is said of a vring.
pub fn vring_messages(index: u32, vring: VringPlan) -> Vec<Message> {
    let fd = |name, fd| Message::with_fd(name, numbers(&[index.into()]), [fd]);
    vec![
        Message::new("SET_VRING_NUM", state(index, vring.num)),
        Message::new("SET_VRING_BASE", state(index, vring.base)),
        vring_addr(index, &vring),
        fd("SET_VRING_CALL", vring.call),
        fd("SET_VRING_KICK", vring.kick),
        Message::new("SET_VRING_ENABLE", state(index, 1)),
    ]
}

//! A guest in this process, whose driver does as little per frame as one can: its chains are laid out once, and go round in
//! the order in which they are. What is measured is the switch, not the guest.

#[path = "../common/frontend.rs"]
mod common;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use ovs_vhost::datapath::RingConfig;
use ovs_vhost::memory::{GuestAddr, RegionDesc};
use ovs_vhost::model::{Driver, GuestMemory, Net, Virtqueue, FRONTEND_OFFSET};
use ovs_vhost::virtio::desc::{ENTRIES_OFFSET, IDX_OFFSET};
use ovs_vhost::virtio::features::{Features, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_VERSION_1};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

use common::{fresh, info, start_ring};

/// Entries of each ring: what operators give guests that must not lose packets.
pub const SIZE: u16 = 1024;
const ROOM: u32 = 2048;
const FEATURES: Features = VIRTIO_F_VERSION_1.with(VHOST_USER_F_PROTOCOL_FEATURES);
/// The virtio-net header of a device of version 1.
const HEADER: u64 = 12;
/// A frame of 64 bytes with the checksum that Ethernet has on a wire, of a type for experiments (IEEE 802).
const FRAME: [u8; 60] = {
    let mut frame = [0; 60];
    (frame[0], frame[6], frame[12], frame[13]) = (2, 6, 0x88, 0xb5);
    frame
};
/// Where its stamp is.
const STAMP: u64 = 14;

/// Queue pairs that it may have.
const PAIRS: u16 = 4;

/// A guest that is up.
pub struct Guest {
    pub transmitq: Ring,
    pub receiveq: Ring,
    memory: Arc<GuestMemory>,
    /// What its front-end said of the receiveq and the transmitq.
    told: [RingConfig; 2],
    frontend: Frontend,
    kick: EventFd,
}

impl Guest {
    /// Comes up on a server port.
    pub fn connect(socket: &Path) -> Result<Guest> {
        Guest::on(UnixStream::connect(socket).context("a port that listens")?)
    }

    /// Comes up on a connection to a port.
    pub fn on(stream: UnixStream) -> Result<Guest> {
        let space = Net::<Driver>::space(SIZE, ROOM);
        let memory = Arc::new(GuestMemory::new(2 * space));
        let net = |at| Net::<Driver>::within(Arc::clone(&memory), GuestAddr(at), SIZE, ROOM, FEATURES);
        let (mut receiveq, mut transmitq) = (net(0x1000), net(0x1000 + space));
        ensure!(
            receiveq.supply(SIZE.into()) == usize::from(SIZE),
            "buffers are missing"
        );
        receiveq.driver.publish();
        while transmitq.send(&FRAME) {}

        let mut frontend = Frontend::from_stream(stream, u64::from(2 * PAIRS));
        frontend.set_owner()?;
        frontend.get_features()?;
        let protocol = frontend.get_protocol_features()? & VhostUserProtocolFeatures::REPLY_ACK;
        frontend.set_protocol_features(protocol)?;
        frontend.set_features(FEATURES.0)?;
        let guest = Guest {
            told: [receiveq.driver.config(0), transmitq.driver.config(1)],
            transmitq: Ring::new(transmitq),
            receiveq: Ring::new(receiveq),
            memory,
            frontend,
            kick: EventFd::new(libc::EFD_NONBLOCK)?,
        };
        guest.lend(&[])?;
        guest.start_pair(0)?;
        Ok(guest)
    }

    /// Says what its memory is, and that `more` is a part of it.
    pub fn lend(&self, more: &[(RegionDesc, OwnedFd)]) -> Result<()> {
        let own = self.memory.regions();
        let all: Vec<_> = own.iter().chain(more).map(info).collect();
        self.frontend.set_mem_table(&all)?;
        self.settle()
    }

    /// Starts a queue pair. All have the rings of the first: who starts more than one must leave them alone.
    pub fn start_pair(&self, pair: u16) -> Result<()> {
        for (told, of_pair) in self.told.iter().zip(0..) {
            let index = 2 * pair + of_pair;
            let ring = RingConfig {
                index,
                ..told.clone()
            };
            start_ring(&self.frontend, &ring, fresh(FEATURES), &self.kick)?;
            let mut frontend = self.frontend.clone();
            frontend.set_vring_enable(index.into(), true)?;
        }
        self.settle()
    }

    /// The answer says that all before it was carried out.
    fn settle(&self) -> Result<()> {
        self.frontend.get_features()?;
        Ok(())
    }
}

/// A ring whose chains, and so its avail entries, stay as they are: only the indices move.
pub struct Ring {
    net: Net<Driver>,
    avail_idx: GuestAddr,
    used_idx: GuestAddr,
    /// Chains made available beyond those that were there at first, and chains taken back.
    given: u64,
    taken: u64,
    /// Chains used, as was last seen.
    used: u64,
}

impl Ring {
    fn new(net: Net<Driver>) -> Ring {
        let config = net.driver.config(0);
        let idx = |area: u64| GuestAddr(area - FRONTEND_OFFSET + IDX_OFFSET as u64);
        Ring {
            avail_idx: idx(config.driver.0),
            used_idx: idx(config.device.0),
            net,
            given: 0,
            taken: 0,
            used: 0,
        }
    }

    /// Puts `stamp` into the next frame, to be sent with the others when they are published. Says whether there was one.
    pub fn send(&mut self, stamp: u64) -> bool {
        if self.given - self.used >= SIZE.into() && !self.look() {
            return false;
        }
        self.net
            .driver
            .memory()
            .write(self.stamp(self.given), &stamp.to_le_bytes());
        self.given += 1;
        true
    }

    /// Publishes what was sent.
    pub fn publish(&self) {
        self.net.driver.memory().store(self.avail_idx, low(self.given));
    }

    /// Takes the stamp out of the next frame received.
    ///
    /// # Errors
    ///
    /// If the device did not use the buffers in order, which would make this driver's shortcuts wrong.
    pub fn receive(&mut self) -> Result<Option<u64>> {
        if self.taken == self.used && !self.look() {
            return Ok(None);
        }
        let (memory, at) = (self.net.driver.memory(), self.taken % u64::from(SIZE));
        let mut id = [0; 4];
        let entry = self.used_idx.0 - IDX_OFFSET as u64 + ENTRIES_OFFSET as u64 + 8 * at;
        memory.read(GuestAddr(entry), &mut id);
        ensure!(
            u64::from(u32::from_le_bytes(id)) == at,
            "buffers come back out of order"
        );
        let mut stamp = [0; 8];
        memory.read(self.stamp(self.taken), &mut stamp);
        self.taken += 1;
        Ok(Some(u64::from_le_bytes(stamp)))
    }

    /// Makes the buffers of the frames received available again.
    pub fn give_back(&self) {
        let available = self.taken + u64::from(SIZE);
        self.net.driver.memory().store(self.avail_idx, low(available));
    }

    /// Looks how many chains the device has used, and says whether there are more.
    fn look(&mut self) -> bool {
        let idx = self.net.driver.memory().load(self.used_idx);
        let more = idx.wrapping_sub(low(self.used));
        self.used += u64::from(more);
        more > 0
    }

    /// Where the stamp of the `count`th frame is.
    fn stamp(&self, count: u64) -> GuestAddr {
        let head = low(count % u64::from(SIZE));
        GuestAddr(self.net.buffer(head).0 + HEADER + STAMP)
    }
}

/// An index as a ring has it.
fn low(count: u64) -> u16 {
    (count & 0xffff) as u16
}

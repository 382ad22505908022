//! What a quick guest's front-end says beside the ordinary, and rust-vmm's does not: of its IOMMU, and of its migration.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use anyhow::{ensure, Context, Result};
use ovs_vhost::memory::{GuestAddr, LOG_PAGE};
use ovs_vhost::model::{GuestMemory, FRONTEND_OFFSET};
use ovs_vhost::vhost_user::samples::{iotlb, numbers};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use super::HUGE_PAGE;
use crate::wire::{Answer, Message, Wire};

/// Both accesses, and that the front-end tells (`struct vhost_iotlb_msg`).
const BOTH: u8 = 3;
const UPDATE: u8 = 2;

/// An IOMMU in which a guest has mapped its memory once and for all, in huge pages, as DPDK does.
pub struct Iommu {
    /// Where it would be asked. All is told before it is, so nobody listens.
    _channel: [UnixStream; 2],
}

impl Iommu {
    /// Guest memory lies this much higher than the device sees it.
    pub const SHIFT: u64 = 1 << 40;

    /// Gives the back-end a way to ask.
    pub fn new(frontend: &mut Frontend) -> Result<Iommu> {
        let channel = UnixStream::pair()?;
        frontend.set_backend_request_fd(&channel.1)?;
        Ok(Iommu {
            _channel: channel.into(),
        })
    }

    /// Says where the `size` bytes at `first` lead.
    pub fn tell(&self, wire: &mut Wire, first: GuestAddr, size: u64) -> Result<()> {
        let (mut iova, end) = (first.0, first.0 + size);
        while iova < end {
            let size = HUGE_PAGE.min(end - iova);
            let translation = iotlb(iova, size, iova + FRONTEND_OFFSET, BOTH, UPDATE);
            say(wire, &Message::new("IOTLB_MSG", translation))?;
            iova += size;
        }
        Ok(())
    }
}

/// Where the port writes down which pages it writes. Nobody takes anything out of it.
pub struct Log(GuestMemory);

impl Log {
    /// Lends a log for all memory below `end`.
    pub fn lend(wire: &mut Wire, end: GuestAddr) -> Result<Log> {
        let bytes = (end.0 / LOG_PAGE / 8 + 1).next_multiple_of(LOG_PAGE);
        let log = Log(GuestMemory::new(bytes));
        let fd: OwnedFd = log.0.regions().pop().context("a region")?.1;
        say(
            wire,
            &Message::with_fd("SET_LOG_BASE", numbers(&[bytes, 0]), [fd]),
        )?;
        Ok(log)
    }

    /// Whether the page is marked that `addr` lies in.
    pub fn has(&self, addr: GuestAddr) -> bool {
        let page = addr.0 / LOG_PAGE;
        let start = self.0.table().regions()[0].desc().guest;
        let mut byte = [0];
        self.0.read(GuestAddr(start.0 + page / 8), &mut byte);
        byte[0] >> (page % 8) & 1 == 1
    }
}

fn say(wire: &mut Wire, message: &Message) -> Result<()> {
    let answer = wire.ask(message)?;
    ensure!(answer == Answer::Done, "request {}: {answer:?}", message.request);
    Ok(())
}

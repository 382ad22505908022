//! While the guest moves: rings log what they write, and begin and end to do so while they run.
//!
//! What is logged, and where, is [`crate::port::migration`]'s; here the rings are told.

use std::os::fd::OwnedFd;

use crate::vhost_user::{Refusal, Response, VringAddr};

use super::{eventfd, PortDevice};

impl PortDevice {
    /// Takes in what changed of logging, and of what it depends on.
    pub(super) fn settle_log(&mut self) {
        self.notes
            .extend(self.migration.settle(self.features, &self.memory));
    }

    pub(super) fn set_log_base(&mut self, size: u64, offset: u64, fd: &OwnedFd) -> Result<Response, Refusal> {
        self.migration.set_log(size, offset, fd).map_err(Refusal::new)?;
        self.restart_all()
    }

    pub(super) fn set_log_fd(&mut self, fd: OwnedFd) -> Result<Response, Refusal> {
        self.migration.set_notify(eventfd(fd)?);
        self.restart_all()
    }

    /// A migration that begins or ends says the addresses of running rings once more, which differ only in their log: such
    /// a ring goes on where it is.
    pub(super) fn set_address(&mut self, address: VringAddr) -> Result<Response, Refusal> {
        let vring = self.vring(address.index);
        let same = vring.address.is_some_and(|now| now.is_same_ring(&address));
        if !(same && vring.running) {
            return self.change(address.index, |vring| vring.address = Some(address));
        }
        vring.address = Some(address);
        self.restart(address.index)?;
        Ok(Response::Done)
    }

    /// Lets running rings go on where they are, logging or not as is wanted now.
    pub(super) fn restart_all(&mut self) -> Result<Response, Refusal> {
        self.settle_log();
        self.indices().try_for_each(|index| self.restart(index))?;
        Ok(Response::Done)
    }

    /// Lets a running ring go on where it is, from what is staged now.
    fn restart(&mut self, index: u16) -> Result<(), Refusal> {
        match self.ready(index).filter(|_| self.vring_ref(index).running) {
            Some(config) => self
                .port
                .queue(index)
                .restart(config)
                .map_err(|error| Refusal::new(format!("vring {index} cannot go on: {error}"))),
            None => Ok(()),
        }
    }
}

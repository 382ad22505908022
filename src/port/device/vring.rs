//! The vrings: what a front-end has said of each, and whether it runs.
//!
//! Settings are staged per vring as they arrive, in whatever order; a ring starts when everything it
//! needs is there, from settings validated as a whole, and nothing of a running ring is ever changed in
//! place: it is stopped, and started again from what is staged then.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use log::Level;

use crate::datapath::{Found, RingConfig, RingError};
use crate::memory::InflightQueue;
use crate::vhost_user::{Refusal, Response, VringAddr};
use crate::virtio::features;

use super::{eventfd, PortDevice};

#[cfg(all(test, not(loom)))]
mod tests;

/// `DRIVER_OK` of the device status (VIRTIO 1.2, 2.1).
const DRIVER_OK: u8 = 4;

/// What a front-end has said of one vring.
#[derive(Default)]
pub(super) struct Vring {
    pub(super) size: Option<u16>,
    pub(super) address: Option<VringAddr>,
    /// In the layout of the ring, see [`RingConfig::base`].
    pub(super) base: u32,
    /// The front-end has handed over the kick: the ring may start.
    pub(super) kicked: bool,
    /// It was handed over, and has not run since.
    pub(super) new: bool,
    /// What the driver kicks, which matters only to who drains a disabled ring.
    pub(super) kick: Option<Arc<OwnedFd>>,
    pub(super) call: Option<Arc<OwnedFd>>,
    pub(super) err: Option<OwnedFd>,
    pub(super) enabled: bool,
    /// A ring was started, and nobody but the IOMMU has stopped it.
    pub(super) up: bool,
    /// It is there.
    pub(super) running: bool,
    /// Behind an IOMMU: there may be misses that were not asked for yet.
    pub(super) to_search: bool,
}

impl PortDevice {
    pub(super) fn vring(&mut self, index: u16) -> &mut Vring {
        let index = usize::from(index);
        if self.vrings.len() <= index {
            self.vrings.resize_with(index + 1, Vring::default);
        }
        &mut self.vrings[index]
    }

    pub(super) fn vring_ref(&self, index: u16) -> &Vring {
        &self.vrings[usize::from(index)]
    }

    /// Of the vrings that the front-end has spoken of.
    pub(super) fn indices(&self) -> Range<u16> {
        0..u16::try_from(self.vrings.len()).unwrap_or(u16::MAX)
    }

    pub(super) fn usable(&self, vring: &Vring) -> bool {
        vring.up && self.enabled(vring)
    }

    /// Without protocol features there is no SET_VRING_ENABLE, and rings start enabled.
    pub(super) fn enabled(&self, vring: &Vring) -> bool {
        let controlled = self
            .features
            .is_some_and(|f| f.contains(features::VHOST_USER_F_PROTOCOL_FEATURES));
        vring.enabled || !controlled
    }

    /// The whole configuration of a ring, if the front-end has given the whole.
    pub(super) fn ready(&self, index: u16) -> Option<RingConfig> {
        let vring = self.vrings.get(usize::from(index))?;
        let address = vring.address.as_ref()?;
        let driver_ok = self.status.is_none_or(|status| status & DRIVER_OK != 0);
        if !vring.kicked || !driver_ok || self.memory.regions().is_empty() {
            return None;
        }
        Some(RingConfig {
            index,
            size: vring.size?,
            desc: address.desc,
            driver: address.avail,
            device: address.used,
            base: vring.base,
            features: self.offered.in_force(self.features?),
            mem: Arc::clone(&self.view),
            call: vring.call.clone(),
            offloads: self.port.speaks_offloads(),
            inflight: self.in_flight_part(index),
            log: self.migration.ring(self.features?, address),
        })
    }

    pub(super) fn in_flight_part(&self, index: u16) -> Option<InflightQueue> {
        let size = self.vrings.get(usize::from(index))?.size?;
        self.in_flight.part(index, size, self.features?)
    }

    /// Starts the ring when nothing is missing any more, stops it when something is, and tells the
    /// port whether it is usable.
    pub(super) fn settle(&mut self, index: u16) -> Result<(), RingError> {
        let config = self.ready(index);
        let (port, enabled) = (Arc::clone(&self.port), self.enabled(self.vring_ref(index)));
        let queue = port.queue(index);
        queue.set_enabled(enabled);
        let running = self.vring(index).running;
        let result = match config {
            Some(config) if !running => self.start(config),
            None if self.vring_ref(index).up => {
                self.stop(index);
                Ok(())
            }
            _ => Ok(()),
        };
        let usable = self.usable(self.vring_ref(index));
        self.port.set_usable(index, usable);
        result
    }

    /// Starts a ring, or asks for what it misses.
    fn start(&mut self, config: RingConfig) -> Result<(), RingError> {
        let (port, index) = (Arc::clone(&self.port), config.index);
        let queue = port.queue(index);
        let areas = config.areas();
        let mut result = queue.start(config);
        if let Err(RingError::InFlight(miss)) = result {
            // If it cannot be asked for now, then when something else is answered.
            self.iommu.ask(miss);
            return Ok(());
        }
        let waits = |result: &Result<_, RingError>| result.as_ref().is_err_and(RingError::is_unmapped);
        if self.behind_iommu() && waits(&result) {
            if self.iommu.ask_for_ring(&self.view, &areas) {
                return Ok(());
            }
            // Nothing is missing: its pages lie apart, and nobody has put them together yet.
            self.look_through_iommu();
            if let Some(config) = self.ready(index) {
                result = queue.start(config);
            }
            if let (true, Err(error)) = (waits(&result), &result) {
                self.iommu.note(format!(
                    "vring {index} cannot start: {error}, and its pages cannot be put together"
                ));
                return Ok(());
            }
        }
        self.note_found(index, &result?);
        let to_search = self.behind_iommu();
        let vring = self.vring(index);
        (vring.up, vring.running, vring.to_search) = (true, true, to_search);
        if std::mem::take(&mut vring.new) {
            self.port.meet_guest(index);
        }
        Ok(())
    }

    /// Notes what a ring was found with, for the operator.
    fn note_found(&mut self, index: u16, found: &[Found]) {
        let notes = found
            .iter()
            .map(|found| (Level::Info, format!("vring {index}: {found}")));
        self.notes.extend(notes);
    }

    /// Stops a ring; where it stood is where it will start again.
    pub(super) fn stop(&mut self, index: u16) {
        let base = self.port.queue(index).stop();
        self.port.remember_guest(index, base);
        let vring = self.vring(index);
        (vring.up, vring.running) = (false, false);
        vring.base = base.unwrap_or(vring.base);
        self.port.set_usable(index, false);
    }

    /// Changes what is staged for a vring: with the ring stopped, and started again if it still can be.
    pub(super) fn change(
        &mut self,
        index: u16,
        change: impl FnOnce(&mut Vring),
    ) -> Result<Response, Refusal> {
        if self.vring(index).up {
            self.stop(index);
        }
        change(self.vring(index));
        self.settle(index)
            .map_err(|error| Refusal::new(format!("vring {index} cannot start: {error}")))?;
        Ok(Response::Done)
    }

    /// Changes what concerns every ring.
    pub(super) fn change_all(&mut self, change: impl FnOnce(&mut Self)) {
        let all = self.indices();
        for index in all.clone() {
            if self.vring(index).up {
                self.stop(index);
            }
        }
        change(self);
        self.look_through_iommu();
        self.settle_log();
        for index in all {
            if let Err(error) = self.settle(index) {
                // A memory table is replaced region by region: a ring whose region is not there yet
                // starts with the one that brings it.
                log::debug!("port '{}': vring {index} waits: {error}", self.port.name());
            }
        }
    }

    /// Stops the ring until the next kick (the specification's "ring is stopped").
    pub(super) fn get_vring_base(&mut self, index: u16) -> Response {
        self.stop(index);
        // The front-end hears where it stands, and says so when it starts it anew.
        self.in_flight_part(index).iter().for_each(InflightQueue::forget);
        let vring = self.vring(index);
        vring.kicked = false;
        let num = vring.base;
        if self.behind_iommu() && !self.vrings.iter().any(|v| v.kicked) {
            // The device stops. QEMU tells of no more invalidates, not even of those of a guest that boots anew.
            self.iommu.clear();
            self.look_through_iommu();
        }
        Response::VringState { index, num }
    }

    pub(super) fn set_kick(&mut self, index: u16, fd: Option<OwnedFd>) -> Result<Response, Refusal> {
        self.iommu.forgive();
        self.change(index, |vring| {
            vring.new |= !std::mem::replace(&mut vring.kicked, true);
            vring.kick = fd.map(Arc::new);
        })
    }

    pub(super) fn set_call(&mut self, index: u16, fd: Option<OwnedFd>) -> Result<Response, Refusal> {
        let call = fd.map(eventfd).transpose()?.map(Arc::new);
        self.change(index, |vring| vring.call = call)
    }

    pub(super) fn set_err(&mut self, index: u16, fd: Option<OwnedFd>) -> Result<Response, Refusal> {
        self.vring(index).err = fd.map(eventfd).transpose()?;
        Ok(Response::Done)
    }

    pub(super) fn set_enable(&mut self, index: u16, enable: bool) -> Result<Response, Refusal> {
        let vring = self.vring(index);
        if vring.enabled != enable {
            vring.enabled = enable;
            self.toggled.push((index, enable));
        }
        // No stop: an enabled ring differs from a disabled one by a flag.
        self.settle(index)
            .map_err(|error| Refusal::new(format!("vring {index} cannot start: {error}")))?;
        Ok(Response::Done)
    }
}

//! Behind an IOMMU (VIRTIO_F_ACCESS_PLATFORM) a ring needs one thing more, the translations of where it lies. It asks
//! for them, and starts with the one that brings the last. If one is taken back, the ring stops before that is
//! answered, and asks again; to everybody else it is up meanwhile.
//!
//! What is known and what was asked is [`crate::port::iommu`]'s; here rings and memory follow.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::memory::{GuestAddr, IovaRange, Translation};
use crate::vhost_user::{BackendChannel, BackendRequest, IotlbRequest, Refusal, Response};
use crate::virtio::features;
use crate::virtio::ring::Area;

use super::PortDevice;

impl PortDevice {
    pub(super) fn set_backend(&mut self, fd: OwnedFd) -> Result<Response, Refusal> {
        self.backend = Some(BackendChannel::new(fd).map_err(Refusal::new)?);
        // What was asked on the one before is not answered any more. A ring that waits does not say so again: it is asked for now.
        self.iommu.forget_questions();
        self.settle_waiting();
        self.met_misses();
        Ok(Response::Done)
    }

    /// The channel that the front-end has handed over since the last call.
    pub(in crate::port) fn take_backend(&mut self) -> Option<BackendChannel> {
        self.backend.take()
    }

    /// A burst met addresses that are missing: asks for them, and for whatever else the ring will need.
    pub(in crate::port) fn met_misses(&mut self) {
        for (queue, vring) in self.port.queues.iter().zip(&mut self.vrings) {
            vring.to_search |= vring.running && queue.has_missed();
        }
        self.search();
    }

    /// The front-end has answered a question of ours. If it could not, and a ring still waits, it is asked again.
    pub(in crate::port) fn answered(&mut self, request: BackendRequest) {
        self.iommu.answered(request);
        self.settle_waiting();
        self.met_misses();
    }

    pub(super) fn behind_iommu(&self) -> bool {
        self.features
            .is_some_and(|features| features.contains(features::VIRTIO_F_ACCESS_PLATFORM))
    }

    /// Makes the rings' view of memory anew. Rings that run have yet to be given it.
    pub(super) fn look_through_iommu(&mut self) {
        self.view = match self.behind_iommu() {
            true => {
                let areas: Vec<_> = self
                    .ring_areas()
                    .map(|area| (GuestAddr(area.addr.0), area.bytes, area.access))
                    .collect();
                let view = self.memory.behind(self.iommu.iotlb());
                Arc::new(view.stitched(&areas, &self.view))
            }
            false => Arc::clone(&self.memory),
        };
    }

    pub(super) fn iotlb(&mut self, request: IotlbRequest) -> Result<Response, Refusal> {
        if !self.behind_iommu() {
            return Err(Refusal::new("VIRTIO_F_ACCESS_PLATFORM is not negotiated"));
        }
        match request {
            IotlbRequest::Update(translation) => self.update(translation)?,
            IotlbRequest::Invalidate(range) => self.iommu.invalidate(range),
        }
        self.look_through_iommu();
        for index in self.indices() {
            // Behind this line no burst uses the view before: only then is the front-end answered.
            if let Some(base) = self.port.queue(index).replace_mem(&self.view) {
                let vring = self.vring(index);
                (vring.running, vring.base) = (false, base);
            }
        }
        self.settle_waiting();
        self.search();
        Ok(Response::Done)
    }

    /// Where the rings are that run, or would if they could.
    fn ring_areas(&self) -> impl Iterator<Item = Area> + '_ {
        self.indices()
            .filter_map(|index| self.ready(index))
            .flat_map(|config| config.areas())
    }

    fn update(&mut self, translation: Translation) -> Result<(), Refusal> {
        let Translation { target, iova, .. } = translation;
        if !self.memory.holds(target, iova.size()) {
            return Err(Refusal::new(format!(
                "IOTLB update: {target} and the {:#x} bytes behind it are not all in memory regions",
                iova.size()
            )));
        }
        let keep: Vec<_> = self
            .ring_areas()
            .filter_map(|area| IovaRange::new(GuestAddr(area.addr.0), area.bytes.into()))
            .collect();
        self.iommu.update(translation, &keep);
        Ok(())
    }

    /// Starts the rings that waited for translations, if they are complete now.
    pub(super) fn settle_waiting(&mut self) {
        for index in self.indices() {
            let vring = self.vring_ref(index);
            if !vring.kicked || vring.running {
                continue;
            }
            if let Err(error) = self.settle(index) {
                self.iommu.note(format!(
                    "vring {index} cannot start: {error}; it waits until it is set up again"
                ));
            }
        }
    }

    /// Looks through the rings that may miss something, as long as questions may be asked. Not while pages of theirs may be
    /// missing: whoever looks must not wait for one.
    pub(super) fn search(&mut self) {
        if self.postcopy.is_listening() {
            return;
        }
        for (queue, vring) in self.port.queues.iter().zip(&mut self.vrings) {
            if !vring.to_search || !self.iommu.has_room() {
                continue;
            }
            let mut all = true;
            queue.misses(&mut |miss| {
                all = self.iommu.ask(miss);
                all
            });
            vring.to_search = !all;
        }
    }
}

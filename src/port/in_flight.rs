//! The buffer in which a front-end keeps, for whoever serves its rings next, what was in flight.
//!
//! What is in it is the rings' affair ([`crate::datapath`]); here it is made, taken, and handed to each ring as it starts.
//! A ring that is stopped in order has nothing in it: its front-end was told where it stands, and says so when it starts anew.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::memory::{InflightDesc, InflightLayout, InflightMem, InflightQueue};
use crate::vhost_user::{Refusal, Response};
use crate::virtio::features::{Features, VIRTIO_F_RING_PACKED};

/// The buffer of one front-end, if it keeps one.
#[derive(Default)]
pub(super) struct InFlight(Option<Arc<InflightMem>>);

impl InFlight {
    /// Makes one, of which nothing is kept here: the front-end hands it over when it likes.
    pub(super) fn make(
        num_queues: u16,
        queue_size: u16,
        padded: bool,
        features: Features,
    ) -> Result<Response, Refusal> {
        let (desc, fd) = InflightMem::create(num_queues, queue_size, layout(features))
            .map_err(|error| Refusal::new(format!("no in-flight buffer: {error}")))?;
        Ok(Response::Inflight { desc, padded, fd })
    }

    /// Maps one, for rings that start from now on.
    pub(super) fn take(desc: InflightDesc, fd: &OwnedFd, features: Features) -> Result<InFlight, Refusal> {
        let mem = InflightMem::map(desc, layout(features), fd)
            .map_err(|error| Refusal::new(format!("in-flight buffer refused: {error}")))?;
        Ok(InFlight(Some(Arc::new(mem))))
    }

    /// Whether the front-end took it away.
    pub(super) fn is_lost(&self) -> bool {
        self.0.as_ref().is_some_and(|mem| mem.is_lost())
    }

    /// The part of a vring of `size` entries; none if there is no buffer, or if that has no such part.
    pub(super) fn part(&self, index: u16, size: u16, features: Features) -> Option<InflightQueue> {
        self.0.as_ref()?.queue(index, size, layout(features))
    }
}

fn layout(features: Features) -> InflightLayout {
    match features.contains(VIRTIO_F_RING_PACKED) {
        true => InflightLayout::Packed,
        false => InflightLayout::Split,
    }
}

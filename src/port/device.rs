//! What a front-end's requests do to the port's rings and memory.
//!
//! Here they are dealt out, each to the part that it concerns:
//!
//! * `vring`: what was said of each vring, and whether it runs.
//! * `memory`: the guest's memory.
//! * `behind_iommu`: the view of it that rings have there, and what they miss.
//! * `logging`: what rings write is logged while the guest moves.
//! * `state`: the configuration space and the device's own state.

mod behind_iommu;
mod logging;
mod memory;
mod state;
mod vring;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};

use log::Level;
use rustix::fs::OFlags;

use crate::memory::{Access, MemTable, RegionDesc, Remnant, Userfault};
use crate::vhost_user::{BackendChannel, Device, Refusal, Request, Response};
use crate::virtio::features::{self, Features};
use crate::virtio::ring::RingAddrs;

use super::config_space::ConfigSpace;
use super::device_state::Moving;
use super::in_flight::InFlight;
use super::iommu::Iommu;
use super::migration::Migration;
use super::offer::PortOffer;
use super::portrait::VringPortrait;
use super::postcopy::Postcopy;
use super::shared::{Link, Port};
use super::MAX_QUEUE_PAIRS;
use vring::Vring;

/// The device that a front-end sees. Lives as long as its connection.
pub(super) struct PortDevice {
    port: Arc<Port>,
    /// What the front-end was offered.
    offered: PortOffer,
    features: Option<Features>,
    /// The device status, once the front-end uses it: then rings wait for `DRIVER_OK`.
    status: Option<u8>,
    memory: Arc<MemTable>,
    /// The same as rings see it: behind an IOMMU, if there is one.
    view: Arc<MemTable>,
    pub(super) iommu: Iommu,
    /// A channel that nobody has taken over yet.
    backend: Option<BackendChannel>,
    /// Regions that were added once more while they were there: QEMU adds each, and removes each, once per
    /// queue pair.
    added_again: Vec<RegionDesc>,
    postcopy: Postcopy,
    vrings: Vec<Vring>,
    mtu: Option<u16>,
    mac: Option<[u8; 6]>,
    /// The configuration space as the front-end has it, if it has read it since it was last told to.
    config_known: ConfigSpace,
    in_flight: InFlight,
    moving: Moving,
    migration: Migration,
    /// What happened that the operator should hear of, since this was last asked for.
    notes: Vec<(Level, String)>,
    /// Vrings enabled (true) or disabled since this was last asked for.
    toggled: Vec<(u16, bool)>,
}

impl PortDevice {
    pub(super) fn new(port: Arc<Port>, offered: PortOffer) -> PortDevice {
        let config_known = ConfigSpace {
            mac: None,
            mtu: port.mtu(),
        };
        PortDevice {
            port,
            offered,
            features: None,
            status: None,
            memory: Arc::default(),
            view: Arc::default(),
            iommu: Iommu::default(),
            backend: None,
            added_again: Vec::new(),
            postcopy: Postcopy::default(),
            vrings: Vec::new(),
            mtu: None,
            mac: None,
            config_known,
            in_flight: InFlight::default(),
            moving: Moving::default(),
            migration: Migration::default(),
            notes: Vec::new(),
            toggled: Vec::new(),
        }
    }

    /// The first queue pair moves packets.
    pub(super) fn attached(&self) -> bool {
        matches!(self.vrings.get(..2), Some([rx, tx]) if self.usable(rx) && self.usable(tx))
    }

    /// Queue pairs that the front-end has spoken of, at most what Open vSwitch can poll.
    pub(super) fn queue_pairs(&self) -> u16 {
        u16::try_from(self.vrings.len().div_ceil(2))
            .unwrap_or(MAX_QUEUE_PAIRS)
            .min(MAX_QUEUE_PAIRS)
    }

    /// What `status` shows of this device.
    pub(super) fn link(&self) -> Link {
        let features = self.features.unwrap_or_default();
        Link {
            features,
            mtu: self.mtu.filter(|_| features.contains(features::VIRTIO_NET_F_MTU)),
            numa: self.numa(),
            vring_sizes: self.vrings.iter().map(|v| v.size.unwrap_or(0)).collect(),
        }
    }

    /// What the front-end took away although it lent it to us, if anything.
    pub(super) fn lost(&self) -> Option<&'static str> {
        let lent = [
            (self.memory.is_lost() || self.view.is_lost(), "guest memory"),
            (self.in_flight.is_lost(), "the in-flight buffer"),
            (self.migration.is_lost(), "the dirty log"),
        ];
        lent.into_iter()
            .find_map(|(is_lost, what)| is_lost.then_some(what))
    }

    /// What the driver acknowledged, once it has.
    pub(super) fn features(&self) -> Option<Features> {
        self.features
    }

    /// The guest's memory as its rings see it, for who looks at it and does not keep it.
    pub(super) fn memory(&self) -> Weak<MemTable> {
        Arc::downgrade(&self.view)
    }

    /// Whether all of it is there.
    pub(super) fn is_complete(&self) -> bool {
        !self.postcopy.is_listening()
    }

    /// The vrings that the front-end has spoken of.
    pub(super) fn vring_portraits(&self) -> Vec<VringPortrait> {
        let portrait = |vring: &Vring| VringPortrait {
            size: vring.size,
            addrs: vring.address.as_ref().map(|address| RingAddrs {
                desc: address.desc,
                driver: address.avail,
                device: address.used,
            }),
            enabled: vring.enabled,
            running: vring.running,
        };
        self.vrings.iter().map(portrait).collect()
    }

    /// Tells the front-end, through the err descriptor it gave for it, that a vring is broken.
    pub(super) fn signal_error(&self, index: usize) {
        if let Some(err) = self.vrings.get(index).and_then(|v| v.err.as_ref()) {
            // A full or closed descriptor is the front-end's own loss.
            let _ = rustix::io::write(err, &1u64.to_ne_bytes());
        }
    }

    /// Vrings that the front-end enabled (true) or disabled since the last call.
    pub(super) fn take_toggled(&mut self) -> Vec<(u16, bool)> {
        std::mem::take(&mut self.toggled)
    }

    /// What happened that the operator should hear of, since the last call.
    pub(super) fn take_notes(&mut self) -> Vec<(Level, String)> {
        std::mem::take(&mut self.notes)
    }

    /// What a thread may sleep on that carries out a request now.
    pub(super) fn missing_pages(&self) -> Option<&Arc<Userfault>> {
        self.postcopy.missing_pages()
    }

    /// The connection is gone: nobody waits for its pages any more. Says what is left of post-copy.
    pub(super) fn abandon_pages(&self) -> Vec<Remnant> {
        self.postcopy.abandon()
    }

    /// Not while the page may be missing: to ask for its node would be to wait for it.
    fn numa(&self) -> Option<i32> {
        if !self.is_complete() {
            return None;
        }
        let ring = self.vrings.first()?.address.as_ref()?;
        self.view.ring_area(ring.desc, 1, Access::Read)?.numa_node()
    }

    /// The guest's transmitqs that are started and disabled, with their kick descriptors. None while their pages may be
    /// missing: the control thread looks at these rings itself, and must not wait for a page.
    pub(super) fn idle_rings(&self) -> impl Iterator<Item = (u16, Option<Arc<OwnedFd>>)> + '_ {
        let complete = self.is_complete();
        let idle = move |vring: &Vring| complete && vring.running && !self.enabled(vring);
        (0..)
            .zip(&self.vrings)
            .filter(move |(index, vring)| index % 2 == 1 && idle(vring))
            .map(|(index, vring)| (index, vring.kick.clone()))
    }

    fn set_features(&mut self, features: Features) -> Result<Response, Refusal> {
        if self.features == Some(features) {
            // QEMU says it once per queue pair, the later ones while the first may run.
            return Ok(Response::Done);
        }
        let settled = format!("negotiated Virtio features: {:#x}", features.0);
        if self.vrings.iter().any(|v| v.up) {
            let logging = features::VHOST_F_LOG_ALL;
            if self.features.map(|now| now.without(logging)) != Some(features.without(logging)) {
                return Err(Refusal::new("only VHOST_F_LOG_ALL can change while a vring runs"));
            }
            self.notes.push((Level::Info, settled));
            self.features = Some(features);
            return self.restart_all();
        }
        self.notes.push((Level::Info, settled));
        self.change_all(|device| {
            device.features = Some(features);
            if !device.behind_iommu() {
                device.iommu.clear();
            }
        });
        Ok(Response::Done)
    }

    /// RESET_OWNER and RESET_DEVICE: rings are disabled and stopped; memory and features stay.
    fn reset(&mut self) -> Response {
        self.change_all(|device| {
            device.status = device.status.map(|_| 0);
            for vring in &mut device.vrings {
                vring.kicked = false;
                vring.enabled = false;
            }
            let parts = (0..)
                .zip(&device.vrings)
                .filter_map(|(index, _)| device.in_flight_part(index));
            parts.for_each(|part| part.forget());
            device.iommu.clear();
        });
        Response::Done
    }
}

impl Device for PortDevice {
    fn handle(&mut self, request: Request) -> Result<Response, Refusal> {
        match request {
            Request::SetOwner => Ok(Response::Done),
            Request::ResetOwner | Request::ResetDevice => Ok(self.reset()),
            Request::SetFeatures(bits) => self.set_features(Features(bits)),
            Request::SetMemTable(regions) => self.replace_memory(regions),
            Request::AddMemReg(desc, fd) => self.add_memory(desc, fd),
            Request::RemMemReg(desc) => self.remove_memory(&desc),
            Request::SetVringNum { index, num } => self.change(index, |v| v.size = Some(num)),
            Request::SetVringAddr(address) => self.set_address(address),
            Request::SetVringBase { index, base } => self.change(index, |v| v.base = base),
            Request::GetVringBase { index } => Ok(self.get_vring_base(index)),
            Request::SetVringKick { index, fd } => self.set_kick(index, fd),
            Request::SetVringCall { index, fd } => self.set_call(index, fd),
            Request::SetVringErr { index, fd } => self.set_err(index, fd),
            Request::SetVringEnable { index, enable } => self.set_enable(index, enable),
            Request::SetBackendReqFd(fd) => self.set_backend(fd),
            Request::Iotlb(request) => self.iotlb(request),
            Request::SetLogBase { size, offset, fd } => self.set_log_base(size, offset, &fd),
            Request::SetLogFd(fd) => self.set_log_fd(fd),
            Request::SetMtu(mtu) => Ok(self.set_mtu(mtu)),
            Request::SendRarp(mac) => {
                self.port.queue(1).request_rarp(mac);
                Ok(Response::Done)
            }
            Request::SetStatus(status) => {
                self.change_all(|device| device.status = Some(status));
                Ok(Response::Done)
            }
            Request::GetInflightFd {
                num_queues,
                queue_size,
                padded,
            } => InFlight::make(num_queues, queue_size, padded, self.features.unwrap_or_default()),
            Request::SetInflightFd(desc, fd) => self.set_in_flight(desc, &fd),
            Request::GetConfig { offset, size, flags } => Ok(Response::Config {
                offset,
                flags,
                bytes: self.config_space().read(offset, size),
            }),
            Request::SetConfig {
                offset,
                bytes,
                migration,
            } => self.set_config(offset, &bytes, migration),
            Request::SetDeviceStateFd(transfer, channel) => Ok(self.move_state(transfer, channel)),
            Request::CheckDeviceState => Ok(self.check_state()),
            Request::PostcopyAdvise => self.postcopy.advise(),
            Request::PostcopyListen => self.postcopy.listen(&self.memory),
            Request::PostcopyAck => self.acknowledged(),
            Request::PostcopyEnd => Ok(self.end_postcopy()),
            Request::GetStatus => Ok(Response::U64(u64::from(self.status.unwrap_or(0)))),
        }
    }
}

impl Drop for PortDevice {
    /// The connection is gone: so are its rings, and with the last of them its memory.
    fn drop(&mut self) {
        // First, or a burst that sleeps would be waited for below.
        self.abandon_pages();
        for index in self.indices() {
            self.stop(index);
        }
    }
}

/// Proves that writing to a descriptor cannot make a poll thread wait: it is an eventfd, and non-blocking.
///
/// Anything else that a front-end may hand over (a pipe that is full, a terminal, a file on a dead server) could.
fn eventfd(fd: OwnedFd) -> Result<OwnedFd, Refusal> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map_err(|error| Refusal::new(format!("what the descriptor is cannot be seen: {error}")))?;
    if link.as_os_str() != "anon_inode:[eventfd]" {
        return Err(Refusal::new("the descriptor is no eventfd"));
    }
    let flags = rustix::fs::fcntl_getfl(&fd);
    flags
        .and_then(|flags| rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK))
        .map_err(|error| Refusal::new(format!("the eventfd cannot be made non-blocking: {error}")))?;
    Ok(fd)
}

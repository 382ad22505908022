//! What a front-end's requests do to the port's rings and memory.
//!
//! Settings are staged per vring as they arrive, in whatever order; a ring starts when everything it
//! needs is there, from settings validated as a whole, and nothing of a running ring is ever changed in
//! place: it is stopped, and started again from what is staged then.
//!
//! Behind an IOMMU (VIRTIO_F_ACCESS_PLATFORM) a ring needs one thing more, the translations of where it lies. It asks
//! for them, and starts with the one that brings the last. If one is taken back, the ring stops before that is
//! answered, and asks again; to everybody else it is up meanwhile.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::datapath::{RingConfig, RingError};
use crate::memory::{
    Access, GuestAddr, IovaRange, MemError, MemTable, Region, RegionDesc, Translation, MAX_REGIONS,
};
use crate::vhost_user::{
    BackendChannel, BackendRequest, Device, IotlbRequest, Refusal, Request, Response, VringAddr,
};
use crate::virtio::features::{self, Features};
use crate::virtio::ring::Area;

use super::iommu::Iommu;
use super::shared::{Link, Port};
use super::MAX_QUEUE_PAIRS;

/// `DRIVER_OK` of the device status (VIRTIO 1.2, 2.1).
const DRIVER_OK: u8 = 4;

/// What a front-end has said of one vring.
#[derive(Default)]
struct Vring {
    size: Option<u16>,
    address: Option<VringAddr>,
    /// In the layout of the ring, see [`RingConfig::base`].
    base: u32,
    /// The front-end has handed over the kick: the ring may start. Poll threads need no kick, so the
    /// descriptor itself is closed.
    kicked: bool,
    call: Option<Arc<OwnedFd>>,
    err: Option<OwnedFd>,
    enabled: bool,
    /// A ring was started, and nobody but the IOMMU has stopped it.
    up: bool,
    /// It is there.
    running: bool,
    /// Behind an IOMMU: there may be misses that were not asked for yet.
    to_search: bool,
}

/// The device that a front-end sees. Lives as long as its connection.
pub(super) struct PortDevice {
    port: Arc<Port>,
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
    vrings: Vec<Vring>,
    mtu: Option<u16>,
    /// Vrings enabled (true) or disabled since this was last asked for.
    toggled: Vec<(u16, bool)>,
}

impl PortDevice {
    pub(super) fn new(port: Arc<Port>) -> PortDevice {
        PortDevice {
            port,
            features: None,
            status: None,
            memory: Arc::default(),
            view: Arc::default(),
            iommu: Iommu::default(),
            backend: None,
            added_again: Vec::new(),
            vrings: Vec::new(),
            mtu: None,
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

    fn numa(&self) -> Option<i32> {
        let ring = self.vrings.first()?.address.as_ref()?;
        self.view.ring_area(ring.desc, 1, Access::Read)?.numa_node()
    }

    fn usable(&self, vring: &Vring) -> bool {
        vring.up && self.enabled(vring)
    }

    /// Without protocol features there is no SET_VRING_ENABLE, and rings start enabled.
    fn enabled(&self, vring: &Vring) -> bool {
        let controlled = self
            .features
            .is_some_and(|f| f.contains(features::VHOST_USER_F_PROTOCOL_FEATURES));
        vring.enabled || !controlled
    }

    fn vring(&mut self, index: u16) -> &mut Vring {
        let index = usize::from(index);
        if self.vrings.len() <= index {
            self.vrings.resize_with(index + 1, Vring::default);
        }
        &mut self.vrings[index]
    }

    /// Starts the ring when nothing is missing any more, stops it when something is, and tells the
    /// port whether it is usable.
    fn settle(&mut self, index: u16) -> Result<(), RingError> {
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
        let waits = |result: &Result<(), RingError>| result.as_ref().is_err_and(RingError::is_unmapped);
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
                self.iommu
                    .note(format!("{error}, and its pages cannot be put together"));
                return Ok(());
            }
        }
        result?;
        let to_search = self.behind_iommu();
        let vring = self.vring(index);
        (vring.up, vring.running, vring.to_search) = (true, true, to_search);
        Ok(())
    }

    fn vring_ref(&self, index: u16) -> &Vring {
        &self.vrings[usize::from(index)]
    }

    /// The whole configuration of a ring, if the front-end has given the whole.
    fn ready(&self, index: u16) -> Option<RingConfig> {
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
            features: self.features?,
            mem: Arc::clone(&self.view),
            call: vring.call.clone(),
        })
    }

    /// Stops a ring; where it stood is where it will start again.
    fn stop(&mut self, index: u16) {
        let base = self.port.queue(index).stop();
        let vring = self.vring(index);
        (vring.up, vring.running) = (false, false);
        vring.base = base.unwrap_or(vring.base);
        self.port.set_usable(index, false);
    }

    /// Changes what is staged for a vring: with the ring stopped, and started again if it still can be.
    fn change(&mut self, index: u16, change: impl FnOnce(&mut Vring)) -> Result<Response, Refusal> {
        if self.vring(index).up {
            self.stop(index);
        }
        change(self.vring(index));
        self.settle(index)
            .map_err(|error| Refusal::new(format!("vring {index} cannot start: {error}")))?;
        Ok(Response::Done)
    }

    /// Changes what concerns every ring.
    fn change_all(&mut self, change: impl FnOnce(&mut Self)) {
        let all = 0..u16::try_from(self.vrings.len()).unwrap_or(u16::MAX);
        for index in all.clone() {
            if self.vring(index).up {
                self.stop(index);
            }
        }
        change(self);
        self.look_through_iommu();
        for index in all {
            if let Err(error) = self.settle(index) {
                // A memory table is replaced region by region: a ring whose region is not there yet
                // starts with the one that brings it.
                log::debug!("port '{}': vring {index} waits: {error}", self.port.name());
            }
        }
    }

    fn set_memory(&mut self, table: MemTable) -> Result<Response, Refusal> {
        self.change_all(|device| device.memory = Arc::new(table));
        Ok(Response::Done)
    }

    fn add_memory(&mut self, desc: RegionDesc, fd: OwnedFd) -> Result<Response, Refusal> {
        if self
            .memory
            .regions()
            .iter()
            .any(|region| region.desc().is_same_memory(&desc))
        {
            if self.added_again.len() >= MAX_REGIONS * usize::from(MAX_QUEUE_PAIRS) {
                return Err(Refusal::new(
                    "memory region refused: added more often than there are queue pairs",
                ));
            }
            self.added_again.push(desc);
            return Ok(Response::Done);
        }
        let region = map_region((desc, fd)).map_err(refuse_memory)?;
        self.set_memory(self.memory.with_region(region).map_err(refuse_memory)?)
    }

    fn remove_memory(&mut self, desc: &RegionDesc) -> Result<Response, Refusal> {
        if let Some(again) = self
            .added_again
            .iter()
            .position(|other| other.is_same_memory(desc))
        {
            self.added_again.swap_remove(again);
            return Ok(Response::Done);
        }
        self.set_memory(self.memory.without_region(desc).map_err(refuse_memory)?)
    }

    fn set_features(&mut self, features: Features) -> Result<Response, Refusal> {
        if self.features == Some(features) {
            // QEMU says it once per queue pair, the later ones while the first may run.
            return Ok(Response::Done);
        }
        if self.vrings.iter().any(|v| v.up) {
            return Err(Refusal::new("features cannot change while a vring runs"));
        }
        self.change_all(|device| {
            device.features = Some(features);
            if !device.behind_iommu() {
                device.iommu.clear();
            }
        });
        Ok(Response::Done)
    }

    /// Stops the ring until the next kick (the specification's "ring is stopped").
    fn get_vring_base(&mut self, index: u16) -> Response {
        self.stop(index);
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

    fn set_enable(&mut self, index: u16, enable: bool) -> Result<Response, Refusal> {
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

    /// RESET_OWNER and RESET_DEVICE: rings are disabled and stopped; memory and features stay.
    fn reset(&mut self) -> Response {
        self.change_all(|device| {
            device.status = device.status.map(|_| 0);
            for vring in &mut device.vrings {
                vring.kicked = false;
                vring.enabled = false;
            }
            device.iommu.clear();
        });
        Response::Done
    }

    fn set_mtu(&mut self, mtu: u16) -> Response {
        self.mtu = Some(mtu);
        Response::Done
    }
}

/// Behind an IOMMU.
impl PortDevice {
    fn behind_iommu(&self) -> bool {
        self.features
            .is_some_and(|features| features.contains(features::VIRTIO_F_ACCESS_PLATFORM))
    }

    /// The channel that the front-end has handed over since the last call.
    pub(super) fn take_backend(&mut self) -> Option<BackendChannel> {
        self.backend.take()
    }

    /// Makes the rings' view of memory anew. Rings that run have yet to be given it.
    fn look_through_iommu(&mut self) {
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

    /// Where the rings are that run, or would if they could.
    fn ring_areas(&self) -> impl Iterator<Item = Area> + '_ {
        let vrings = 0..u16::try_from(self.vrings.len()).unwrap_or(u16::MAX);
        vrings
            .filter_map(|index| self.ready(index))
            .flat_map(|config| config.areas())
    }

    fn iotlb(&mut self, request: IotlbRequest) -> Result<Response, Refusal> {
        if !self.behind_iommu() {
            return Err(Refusal::new("VIRTIO_F_ACCESS_PLATFORM is not negotiated"));
        }
        match request {
            IotlbRequest::Update(translation) => self.update(translation)?,
            IotlbRequest::Invalidate(range) => self.iommu.invalidate(range),
        }
        self.look_through_iommu();
        for index in 0..u16::try_from(self.vrings.len()).unwrap_or(u16::MAX) {
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
    fn settle_waiting(&mut self) {
        for index in 0..u16::try_from(self.vrings.len()).unwrap_or(u16::MAX) {
            let vring = self.vring_ref(index);
            if !vring.kicked || vring.running {
                continue;
            }
            if let Err(error) = self.settle(index) {
                self.iommu
                    .note(format!("{error}; it stops until it is set up again"));
            }
        }
    }

    /// A burst met addresses that are missing: asks for them, and for whatever else the ring will need.
    pub(super) fn met_misses(&mut self) {
        for (queue, vring) in self.port.queues.iter().zip(&mut self.vrings) {
            vring.to_search |= vring.running && queue.has_missed();
        }
        self.search();
    }

    /// The front-end has answered a question of ours. If it could not, and a ring still waits, it is asked again.
    pub(super) fn answered(&mut self, request: BackendRequest) {
        self.iommu.answered(request);
        self.settle_waiting();
        self.met_misses();
    }

    /// Looks through the rings that may miss something, as long as questions may be asked.
    fn search(&mut self) {
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

impl Device for PortDevice {
    fn handle(&mut self, request: Request) -> Result<Response, Refusal> {
        match request {
            Request::SetOwner => Ok(Response::Done),
            Request::ResetOwner | Request::ResetDevice => Ok(self.reset()),
            Request::SetFeatures(bits) => self.set_features(Features(bits)),
            Request::SetMemTable(regions) => {
                let regions = regions.into_iter().map(map_region).collect::<Result<_, _>>();
                let table = regions.and_then(MemTable::new).map_err(refuse_memory)?;
                self.added_again.clear();
                self.set_memory(table)
            }
            Request::AddMemReg(desc, fd) => self.add_memory(desc, fd),
            Request::RemMemReg(desc) => self.remove_memory(&desc),
            Request::SetVringNum { index, num } => self.change(index, |v| v.size = Some(num)),
            Request::SetVringAddr(address) => self.change(address.index, |v| v.address = Some(address)),
            Request::SetVringBase { index, base } => self.change(index, |v| v.base = base),
            Request::GetVringBase { index } => Ok(self.get_vring_base(index)),
            Request::SetVringKick { index, .. } => {
                self.iommu.forgive();
                self.change(index, |v| v.kicked = true)
            }
            Request::SetVringCall { index, fd } => {
                let call = fd.map(eventfd).transpose()?.map(Arc::new);
                self.change(index, |vring| vring.call = call)
            }
            Request::SetVringErr { index, fd } => {
                self.vring(index).err = fd.map(eventfd).transpose()?;
                Ok(Response::Done)
            }
            Request::SetVringEnable { index, enable } => self.set_enable(index, enable),
            Request::SetBackendReqFd(fd) => {
                self.backend = Some(BackendChannel::new(fd).map_err(Refusal::new)?);
                // What was asked on the one before is not answered any more.
                self.iommu.forget_questions();
                self.settle_waiting();
                Ok(Response::Done)
            }
            Request::Iotlb(request) => self.iotlb(request),
            Request::SetMtu(mtu) => Ok(self.set_mtu(mtu)),
            Request::SendRarp(mac) => {
                self.port.queue(1).request_rarp(mac);
                Ok(Response::Done)
            }
            Request::SetStatus(status) => {
                self.change_all(|device| device.status = Some(status));
                Ok(Response::Done)
            }
            Request::GetStatus => Ok(Response::U64(u64::from(self.status.unwrap_or(0)))),
        }
    }
}

impl Drop for PortDevice {
    /// The connection is gone: so are its rings, and with the last of them its memory.
    fn drop(&mut self) {
        for index in 0..u16::try_from(self.vrings.len()).unwrap_or(u16::MAX) {
            self.stop(index);
        }
    }
}

/// Proves that writing to a descriptor cannot make a poll thread wait: it is an eventfd, and non-blocking.
///
/// Anything else that a front-end may hand over (a pipe that is full, a terminal, a file on a dead server) could.
fn eventfd(fd: OwnedFd) -> Result<OwnedFd, Refusal> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    if !link.is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]") {
        return Err(Refusal::new("the descriptor is no eventfd"));
    }
    let flags = rustix::fs::fcntl_getfl(&fd);
    flags
        .and_then(|flags| rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK))
        .map_err(|error| Refusal::new(format!("the eventfd cannot be made non-blocking: {error}")))?;
    Ok(fd)
}

fn map_region((desc, fd): (RegionDesc, OwnedFd)) -> Result<Arc<Region>, MemError> {
    Ok(Arc::new(Region::map(desc, fd)?))
}

fn refuse_memory(error: MemError) -> Refusal {
    Refusal::new(format!("memory region refused: {error}"))
}

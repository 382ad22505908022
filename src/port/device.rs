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

use log::Level;
use rustix::fs::OFlags;

use crate::datapath::{RingConfig, RingError};
use crate::memory::{
    Access, GuestAddr, InflightDesc, InflightQueue, IovaRange, MemError, MemTable, Region, RegionDesc,
    Translation, Userfault, MAX_REGIONS,
};
use crate::vhost_user::{
    BackendChannel, BackendRequest, Device, IotlbRequest, Refusal, Regions, Request, Response, Transfer,
    VringAddr,
};
use crate::virtio::features::{self, Features};
use crate::virtio::ring::Area;

use super::config_space::ConfigSpace;
use super::device_state::{DeviceState, Moving, StateError};
use super::in_flight::InFlight;
use super::iommu::Iommu;
use super::migration::Migration;
use super::postcopy::{self, Postcopy};
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
    /// The front-end has handed over the kick: the ring may start.
    kicked: bool,
    /// It was handed over, and has not run since.
    new: bool,
    /// What the driver kicks, which matters only to who drains a disabled ring.
    kick: Option<Arc<OwnedFd>>,
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
    postcopy: Postcopy,
    vrings: Vec<Vring>,
    mtu: Option<u16>,
    mac: Option<[u8; 6]>,
    in_flight: InFlight,
    moving: Moving,
    migration: Migration,
    /// What happened that the operator should hear of, since this was last asked for.
    notes: Vec<(Level, String)>,
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
            postcopy: Postcopy::default(),
            vrings: Vec::new(),
            mtu: None,
            mac: None,
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

    /// Not while the page may be missing: to ask for its node would be to wait for it.
    fn numa(&self) -> Option<i32> {
        if self.postcopy.is_listening() {
            return None;
        }
        let ring = self.vrings.first()?.address.as_ref()?;
        self.view.ring_area(ring.desc, 1, Access::Read)?.numa_node()
    }

    /// The guest's transmitqs that are started and disabled, with their kick descriptors. None while their pages may be
    /// missing: the control thread looks at these rings itself, and must not wait for a page.
    pub(super) fn idle_rings(&self) -> impl Iterator<Item = (u16, Option<Arc<OwnedFd>>)> + '_ {
        let complete = !self.postcopy.is_listening();
        let idle = move |vring: &Vring| complete && vring.running && !self.enabled(vring);
        (0..)
            .zip(&self.vrings)
            .filter(move |(index, vring)| index % 2 == 1 && idle(vring))
            .map(|(index, vring)| (index, vring.kick.clone()))
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
        if std::mem::take(&mut vring.new) {
            self.port.meet_guest(index);
        }
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
            offloads: self.port.speaks_offloads(),
            inflight: self.in_flight_part(index),
            log: self.migration.ring(self.features?, address),
        })
    }

    /// Stops a ring; where it stood is where it will start again.
    fn stop(&mut self, index: u16) {
        let base = self.port.queue(index).stop();
        self.port.remember_guest(index, base);
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
        self.settle_log();
        for index in all {
            if let Err(error) = self.settle(index) {
                // A memory table is replaced region by region: a ring whose region is not there yet
                // starts with the one that brings it.
                log::debug!("port '{}': vring {index} waits: {error}", self.port.name());
            }
        }
    }

    /// Takes in what changed of logging, and of what it depends on.
    fn settle_log(&mut self) {
        self.notes
            .extend(self.migration.settle(self.features, &self.memory));
    }

    /// Lets running rings go on where they are, logging or not as is wanted now.
    fn restart_all(&mut self) -> Result<Response, Refusal> {
        self.settle_log();
        let all = 0..u16::try_from(self.vrings.len()).unwrap_or(u16::MAX);
        all.into_iter().try_for_each(|index| self.restart(index))?;
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

    fn set_log_base(&mut self, size: u64, offset: u64, fd: &OwnedFd) -> Result<Response, Refusal> {
        self.migration.set_log(size, offset, fd).map_err(Refusal::new)?;
        self.restart_all()
    }

    /// A migration that begins or ends says the addresses of running rings once more, which differ only in their log: such
    /// a ring goes on where it is.
    fn set_address(&mut self, address: VringAddr) -> Result<Response, Refusal> {
        let vring = self.vring(address.index);
        let same = vring.address.is_some_and(|now| now.is_same_ring(&address));
        if !(same && vring.running) {
            return self.change(address.index, |vring| vring.address = Some(address));
        }
        vring.address = Some(address);
        self.restart(address.index)?;
        Ok(Response::Done)
    }

    fn set_memory(&mut self, table: MemTable) -> Result<Response, Refusal> {
        self.change_all(|device| device.memory = Arc::new(table));
        Ok(Response::Done)
    }

    /// Sets all memory. In post-copy it is told where that is, and waits.
    fn replace_memory(&mut self, regions: Vec<(RegionDesc, OwnedFd)>) -> Result<Response, Refusal> {
        let regions: Result<Vec<_>, _> = regions
            .into_iter()
            .map(|(desc, fd)| self.map_region(desc, fd))
            .collect();
        let regions = regions.map_err(refuse_memory)?;
        let addresses = regions.iter().map(|r| postcopy::with_our_address(r)).collect();
        let table = MemTable::new(regions).map_err(refuse_memory)?;
        self.added_again.clear();
        self.take_memory(table, Regions::Table(addresses))
    }

    /// Uses `table` from now on, or in post-copy when the front-end has acknowledged what it is answered.
    fn take_memory(&mut self, table: MemTable, addresses: Regions) -> Result<Response, Refusal> {
        if !self.postcopy.is_listening() {
            return self.set_memory(table);
        }
        self.postcopy.propose(table);
        Ok(Response::Regions(addresses))
    }

    fn acknowledged(&mut self) -> Result<Response, Refusal> {
        match self.postcopy.acknowledged(&self.memory)? {
            Some(table) => self.set_memory(table),
            None => Ok(Response::Done),
        }
    }

    fn map_region(&self, desc: RegionDesc, fd: OwnedFd) -> Result<Arc<Region>, MemError> {
        let region = match self.postcopy.is_listening() {
            true => Region::map_incomplete(desc, fd),
            false => Region::map(desc, fd),
        };
        region.map(Arc::new)
    }

    fn add_memory(&mut self, desc: RegionDesc, fd: OwnedFd) -> Result<Response, Refusal> {
        let memory = self.postcopy.latest(&self.memory);
        let known = |region: &&Arc<Region>| region.desc().is_same_memory(&desc);
        if let Some(region) = memory.regions().iter().find(known) {
            let address = postcopy::with_our_address(region);
            if self.added_again.len() >= MAX_REGIONS * usize::from(MAX_QUEUE_PAIRS) {
                return Err(Refusal::new(
                    "memory region refused: added more often than there are queue pairs",
                ));
            }
            self.added_again.push(desc);
            return Ok(match self.postcopy.is_listening() {
                true => Response::Regions(Regions::One(address)),
                false => Response::Done,
            });
        }
        let region = self.map_region(desc, fd).map_err(refuse_memory)?;
        let address = postcopy::with_our_address(&region);
        let table = memory.with_region(region).map_err(refuse_memory)?;
        self.take_memory(table, Regions::One(address))
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
        let retracted = self.postcopy.retract(desc);
        match self.memory.without_region(desc) {
            Ok(table) => self.set_memory(table),
            Err(_) if retracted => Ok(Response::Done),
            Err(error) => Err(refuse_memory(error)),
        }
    }

    fn set_features(&mut self, features: Features) -> Result<Response, Refusal> {
        if self.features == Some(features) {
            // QEMU says it once per queue pair, the later ones while the first may run.
            return Ok(Response::Done);
        }
        if self.vrings.iter().any(|v| v.up) {
            let logging = features::VHOST_F_LOG_ALL;
            if self.features.map(|now| now.without(logging)) != Some(features.without(logging)) {
                return Err(Refusal::new("only VHOST_F_LOG_ALL can change while a vring runs"));
            }
            self.features = Some(features);
            return self.restart_all();
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
            let parts = (0..)
                .zip(&device.vrings)
                .filter_map(|(index, _)| device.in_flight_part(index));
            parts.for_each(|part| part.forget());
            device.iommu.clear();
        });
        Response::Done
    }

    fn in_flight_part(&self, index: u16) -> Option<InflightQueue> {
        let size = self.vrings.get(usize::from(index))?.size?;
        self.in_flight.part(index, size, self.features?)
    }

    fn set_in_flight(&mut self, desc: InflightDesc, fd: &OwnedFd) -> Result<Response, Refusal> {
        let in_flight = InFlight::take(desc, fd, self.features.unwrap_or_default())?;
        self.change_all(|device| device.in_flight = in_flight);
        Ok(Response::Done)
    }

    fn config_space(&self) -> ConfigSpace {
        ConfigSpace {
            mac: self.mac,
            mtu: self.port.mtu(),
        }
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], migration: bool) -> Result<Response, Refusal> {
        if !migration {
            return Err(Refusal::new(
                "the driver may write no field of the configuration space",
            ));
        }
        let mut space = self.config_space();
        space.bring(offset, bytes).map_err(|at| {
            Refusal::new(format!(
                "the guest's configuration space differs from this port's at byte {at}"
            ))
        })?;
        self.mac = space.mac;
        Ok(Response::Done)
    }

    /// Begins to move the device's own state. Answers as the specification says: an error in the lower bits, and that
    /// no descriptor comes with the answer.
    fn move_state(&mut self, transfer: Transfer, channel: OwnedFd) -> Response {
        const NO_FD: u64 = 1 << 8;
        self.moving = Moving::No;
        let state = DeviceState {
            mtu: self.mtu,
            mac: self.mac,
            guest: *self.port.guest.lock(),
        };
        let begun = match transfer {
            _ if self.vrings.iter().any(|vring| vring.running) => Err(StateError::Running),
            Transfer::Save => Ok(Moving::Saved(state.save(channel))),
            Transfer::Load => Moving::load(channel),
        };
        match begun {
            Ok(moving) => {
                self.moving = moving;
                Response::U64(NO_FD)
            }
            Err(error) => {
                log::debug!("port '{}': device state: {error}", self.port.name());
                Response::U64(NO_FD | 1)
            }
        }
    }

    fn check_state(&mut self) -> Response {
        match std::mem::take(&mut self.moving).check() {
            Ok(None) => Response::U64(0),
            Ok(Some(DeviceState { mtu, mac, guest })) => {
                (self.mtu, self.mac) = (mtu, mac);
                *self.port.guest.lock() = guest;
                Response::U64(0)
            }
            Err(error) => {
                log::debug!("port '{}': device state: {error}", self.port.name());
                Response::U64(1)
            }
        }
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

    /// Looks through the rings that may miss something, as long as questions may be asked. Not while pages of theirs may be
    /// missing: whoever looks must not wait for one.
    fn search(&mut self) {
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
            Request::SetVringKick { index, fd } => {
                self.iommu.forgive();
                self.change(index, |vring| {
                    vring.new |= !std::mem::replace(&mut vring.kicked, true);
                    vring.kick = fd.map(Arc::new);
                })
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
            Request::SetLogBase { size, offset, fd } => self.set_log_base(size, offset, &fd),
            Request::SetLogFd(fd) => {
                self.migration.set_notify(eventfd(fd)?);
                self.restart_all()
            }
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
            Request::PostcopyEnd => {
                let answer = self.postcopy.end();
                self.search();
                Ok(answer)
            }
            Request::GetStatus => Ok(Response::U64(u64::from(self.status.unwrap_or(0)))),
        }
    }
}

impl Drop for PortDevice {
    /// The connection is gone: so are its rings, and with the last of them its memory.
    fn drop(&mut self) {
        // First, or a burst that sleeps would be waited for below.
        self.postcopy.abandon();
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

fn refuse_memory(error: MemError) -> Refusal {
    Refusal::new(format!("memory region refused: {error}"))
}

//! A guest in this process, whose driver does as little per frame as one can: its chains are laid out once, and go round in
//! the order in which they are. What is measured is the switch, not the guest.
//!
//! `frame`: what it sends; `ring`: how; `said`: what its front-end says beside the ordinary; `patience`: how long it waits for
//! answers.

#[path = "../../common/frontend.rs"]
#[expect(
    dead_code,
    reason = "a ring of this guest begins where it stands, fresh or not"
)]
mod common;
mod frame;
mod patience;
mod ring;
mod said;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use ovs_vhost::datapath::RingConfig;
use ovs_vhost::memory::{FrontendAddr, GuestAddr, RegionDesc};
use ovs_vhost::model::{Driver, GuestMemory, Net, Virtqueue, FRONTEND_OFFSET};
use ovs_vhost::virtio::desc::VIRTQ_AVAIL_F_NO_INTERRUPT;
use ovs_vhost::virtio::features::{
    Features, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1,
};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

use crate::wire::Wire;
use common::{addresses, info, start_ring};
use frame::Frame;
pub use frame::Sends;
use patience::Patience;
pub use ring::Ring;
use said::{Iommu, Log};

const FEATURES: Features = VIRTIO_F_VERSION_1.with(VHOST_USER_F_PROTOCOL_FEATURES);
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::REPLY_ACK
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::BACKEND_REQ);
/// Queue pairs that it may have.
const PAIRS: u16 = 4;
const HUGE_PAGE: u64 = 2 << 20;

/// What kind of guest.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Entries of its receiveq. Its transmitq has as many frames as that has buffers for.
    pub size: u16,
    pub sends: Sends,
    /// As DPDK is: in huge pages, and not to be called.
    pub polls: bool,
    /// It is being migrated.
    pub moves: bool,
    /// Its NIC is behind an IOMMU.
    pub iommu: bool,
}

/// Rings as operators give them to guests that must not lose packets.
pub const USUAL: Kind = Kind {
    size: 1024,
    sends: Sends::Small,
    polls: false,
    moves: false,
    iommu: false,
};

impl Kind {
    /// What it negotiates.
    pub fn features(self) -> Features {
        let with = |condition, features| if condition { features } else { Features::NONE };
        FEATURES
            | self.sends.frame().features
            | with(self.moves, VHOST_F_LOG_ALL)
            | with(self.iommu, VIRTIO_F_ACCESS_PLATFORM)
    }
}

/// A guest that is up.
pub struct Guest {
    pub transmitq: Ring,
    pub receiveq: Ring,
    memory: Arc<GuestMemory>,
    /// What its front-end said of the receiveq and the transmitq.
    told: [RingConfig; 2],
    frontend: Frontend,
    wire: Wire,
    kick: EventFd,
    iommu: Option<Iommu>,
    log: Option<Log>,
}

impl Guest {
    /// The usual one comes up on a server port.
    pub fn connect(socket: &Path) -> Result<Guest> {
        Guest::on(UnixStream::connect(socket).context("a port that listens")?)
    }

    /// The usual one comes up on a connection to a port.
    pub fn on(stream: UnixStream) -> Result<Guest> {
        Guest::of(USUAL, stream)
    }

    /// One of this kind comes up on a connection to a port.
    pub fn of(kind: Kind, stream: UnixStream) -> Result<Guest> {
        let _patience = Patience::with(&stream)?;
        let features = kind.features().without(VHOST_F_LOG_ALL);
        let frame = kind.sends.frame();
        let (memory, [receiveq, transmitq]) = lay_out(kind, &frame, features)?;
        let told = [receiveq.driver.config(0), transmitq.driver.config(1)];
        let wire = Wire::new(stream.try_clone()?)?;
        let mut frontend = negotiate(stream, features)?;
        let iommu = kind.iommu.then(|| Iommu::new(&mut frontend)).transpose()?;
        let mut guest = Guest {
            told: told.map(|ring| if kind.iommu { as_seen_by_device(ring) } else { ring }),
            transmitq: Ring::new(transmitq, &frame),
            receiveq: Ring::new(receiveq, &frame),
            memory,
            frontend,
            wire,
            kick: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            iommu,
            log: None,
        };
        guest.lend(&[])?;
        guest.start_pair(0)?;
        if kind.moves {
            guest.begin_to_move(kind.features())?;
        }
        Ok(guest)
    }

    /// The usual one comes back on another connection, after a switch that died: its rings go on from the last that was given
    /// back.
    pub fn come_back(&mut self, stream: UnixStream) -> Result<()> {
        let _patience = Patience::with(&stream)?;
        self.wire = Wire::new(stream.try_clone()?)?;
        self.frontend = negotiate(stream, USUAL.features())?;
        self.lend(&[])?;
        self.start_pair(0)
    }

    /// Says what its memory is, and that `more` is a part of it.
    pub fn lend(&self, more: &[(RegionDesc, OwnedFd)]) -> Result<()> {
        let own = self.memory.regions();
        let mut all: Vec<_> = own.iter().chain(more).map(info).collect();
        if self.iommu.is_some() {
            all.iter_mut()
                .for_each(|region| region.guest_phys_addr += Iommu::SHIFT);
        }
        self.frontend.set_mem_table(&all)?;
        self.settle()
    }

    /// Starts a queue pair. All have the rings of the first: who starts more than one must leave them alone.
    pub fn start_pair(&mut self, pair: u16) -> Result<()> {
        let rings = [&self.receiveq, &self.transmitq];
        for ((told, ring), of_pair) in self.told.iter().zip(rings).zip(0..) {
            let index = 2 * pair + of_pair;
            let told = RingConfig {
                index,
                ..told.clone()
            };
            // First, as QEMU does: what waits in a ring that is started and disabled is thrown away.
            let mut frontend = self.frontend.clone();
            frontend.set_vring_enable(index.into(), true)?;
            start_ring(&self.frontend, &told, ring.base(), &self.kick)?;
        }
        for (iommu, (region, _)) in self.iommu.iter().zip(self.memory.regions()) {
            iommu.tell(&mut self.wire, region.guest, region.size)?;
        }
        self.settle()
    }

    /// Says what QEMU says of a running device when a migration begins.
    fn begin_to_move(&mut self, features: Features) -> Result<()> {
        let regions = self.memory.regions();
        let end = regions
            .iter()
            .map(|(region, _)| region.guest.0 + region.size)
            .max();
        self.log = Some(Log::lend(&mut self.wire, GuestAddr(end.unwrap_or(0)))?);
        self.frontend.set_features(features.0)?;
        for ring in &self.told {
            let log = ring.device.0 - FRONTEND_OFFSET;
            let addresses = addresses(ring, Some(log));
            self.frontend.set_vring_addr(ring.index.into(), &addresses)?;
        }
        self.settle()
    }

    /// Fails unless the port has logged all that it wrote to a guest that moves, after at least a receiveq full of frames.
    pub fn check_log(&self) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        let missing = self.receiveq.written().find(|addr| !log.has(*addr));
        ensure!(missing.is_none(), "written and not logged: {missing:?}");
        Ok(())
    }

    /// The answer says that all before it was carried out.
    fn settle(&self) -> Result<()> {
        self.frontend.get_features()?;
        Ok(())
    }
}

/// A front-end that has settled with the port on `stream` what both can do.
fn negotiate(stream: UnixStream, features: Features) -> Result<Frontend> {
    let mut frontend = Frontend::from_stream(stream, u64::from(2 * PAIRS));
    frontend.set_owner()?;
    frontend.get_features()?;
    let protocol = frontend.get_protocol_features()? & PROTOCOL;
    frontend.set_protocol_features(protocol)?;
    frontend.set_features(features.0)?;
    Ok(frontend)
}

/// A guest's memory with its receiveq, all buffers available, and its transmitq, full of frames that are not.
fn lay_out(kind: Kind, frame: &Frame, features: Features) -> Result<(Arc<GuestMemory>, [Net<Driver>; 2])> {
    let length = u32::try_from(frame.bytes.len())? + ovs_vhost::virtio::net_hdr::LONG;
    let sizes = [
        (kind.size, frame.room),
        (kind.size / frame.buffers, length.max(frame.room)),
    ];
    let [receives, transmits] = sizes.map(|(size, room)| Net::<Driver>::space(size, room));
    let memory = Arc::new(match kind.polls {
        true => GuestMemory::in_huge_pages(GuestAddr(HUGE_PAGE), receives + transmits),
        false => GuestMemory::new(receives + transmits),
    });
    let first = memory.regions().first().context("memory")?.0.guest;
    let net = |at, (size, room)| Net::within(Arc::clone(&memory), GuestAddr(at), size, room, features);
    let mut receiveq: Net = net(first.0, sizes[0]);
    let mut transmitq: Net = net(first.0 + receives, sizes[1]);
    let supplied = receiveq.supply(kind.size.into());
    ensure!(supplied == usize::from(kind.size), "buffers are missing");
    receiveq.driver.publish();
    while transmitq.send_with(frame.offload, &frame.bytes) {}
    if kind.polls {
        for net in [&receiveq, &transmitq] {
            net.driver.set_avail_flags(VIRTQ_AVAIL_F_NO_INTERRUPT);
        }
    }
    Ok((memory, [receiveq, transmitq]))
}

/// Behind an IOMMU a ring has I/O virtual addresses, not the front-end's.
fn as_seen_by_device(ring: RingConfig) -> RingConfig {
    let seen = |addr: FrontendAddr| FrontendAddr(addr.0 - FRONTEND_OFFSET);
    RingConfig {
        desc: seen(ring.desc),
        driver: seen(ring.driver),
        device: seen(ring.device),
        ..ring
    }
}

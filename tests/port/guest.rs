//! A front-end that is rust-vmm's, with a guest of a few rings: what the tests of whole ports connect with.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use ovs_vhost::datapath::TxSlot;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::common::{eventually, TestPort};

pub const RING_SIZE: u16 = 256;
pub const MEMORY: usize = 2 << 20;
/// Guest memory from ring to ring.
pub const RING_STRIDE: u64 = 0x4000;
/// Where the front-end pretends to have the guest's memory mapped.
pub const FRONTEND_BASE: u64 = 0x7f00_0000_0000;

/// A front-end that is rust-vmm's, with guest memory and eventfds.
pub struct Guest {
    pub frontend: Frontend,
    pub memory: OwnedFd,
    pub calls: Vec<EventFd>,
}

impl Guest {
    /// A front-end on an established connection, before it has said anything.
    pub fn on(stream: UnixStream) -> Guest {
        let memory = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::fs::ftruncate(&memory, MEMORY as u64).expect("memory");
        Guest {
            frontend: Frontend::from_stream(stream, 256),
            memory,
            calls: Vec::new(),
        }
    }

    pub fn connect(path: &Path) -> Guest {
        Guest::on(UnixStream::connect(path).expect("a port that listens"))
    }

    /// With `pairs` queue pairs that run, the port says.
    pub fn up(mut self, port: &TestPort, pairs: usize) -> Guest {
        self.start(pairs).expect("negotiation");
        eventually("connected", || port.connected());
        self
    }

    /// All of the guest's memory.
    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: FRONTEND_BASE,
            mmap_offset: 0,
            mmap_handle: self.memory.as_raw_fd(),
        }
    }

    /// Says everything, in the order of rust-vmm's own users, up to `pairs` enabled queue pairs.
    pub fn start(&mut self, pairs: usize) -> vhost::Result<()> {
        self.negotiate()?;
        self.frontend.set_mem_table(&[self.region()])?;
        (0..2 * pairs).try_for_each(|index| self.start_ring(index))?;
        // An answer says that all before it was carried out.
        self.frontend.get_features().map(drop)
    }

    pub fn negotiate(&mut self) -> vhost::Result<()> {
        self.frontend.set_owner()?;
        let features = self.frontend.get_features()?;
        let wanted = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | 1 << 32 | 1 << 15;
        assert_eq!(features & wanted, wanted, "offered: {features:#x}");
        let protocol = self.frontend.get_protocol_features()?;
        let wanted_protocol = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        self.frontend.set_protocol_features(protocol & wanted_protocol)?;
        assert_eq!(self.frontend.get_queue_num()?, 128);
        self.frontend.set_features(wanted)
    }

    /// Where the rings are, and whether writes to them are logged.
    pub fn set_vring_addr(&self, index: usize, logged: bool) -> vhost::Result<()> {
        let ring = index as u64 * RING_STRIDE;
        let config = VringConfigData {
            queue_max_size: RING_SIZE,
            queue_size: RING_SIZE,
            flags: u32::from(logged),
            desc_table_addr: FRONTEND_BASE + ring,
            avail_ring_addr: FRONTEND_BASE + ring + 0x1000,
            used_ring_addr: FRONTEND_BASE + ring + 0x2000,
            log_addr: logged.then_some(ring + 0x2000),
        };
        self.frontend.set_vring_addr(index, &config)
    }

    pub fn write(&self, addr: u64, bytes: &[u8]) {
        assert_eq!(
            rustix::io::pwrite(&self.memory, bytes, addr).unwrap(),
            bytes.len()
        );
    }

    pub fn u16(&self, addr: u64) -> u16 {
        let mut bytes = [0; 2];
        rustix::io::pread(&self.memory, &mut bytes, addr).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// Frames that went through a ring.
    pub fn used(&self, ring: usize) -> u16 {
        self.u16(ring as u64 * RING_STRIDE + 0x2002)
    }

    /// Makes a buffer of 2048 bytes available, as descriptor 0, that the device writes or reads.
    pub fn give(&self, ring: usize, addr: u64, write: bool) {
        let base = ring as u64 * RING_STRIDE;
        let flags = if write { 2_u64 } else { 0 };
        self.write(base, &[addr, 2048 | flags << 32].map(u64::to_le_bytes).concat());
        let idx = self.u16(base + 0x1002);
        self.write(base + 0x1004 + 2 * u64::from(idx % RING_SIZE), &[0; 2]);
        self.write(base + 0x1002, &(idx + 1).to_le_bytes());
    }

    pub fn start_ring(&mut self, index: usize) -> vhost::Result<()> {
        let call = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
        let kick = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
        self.frontend.set_vring_num(index, RING_SIZE)?;
        self.frontend.set_vring_base(index, self.used(index))?;
        self.set_vring_addr(index, false)?;
        self.frontend.set_vring_call(index, &call)?;
        self.frontend.set_vring_kick(index, &kick)?;
        self.frontend.set_vring_enable(index, true)?;
        self.calls.push(call);
        Ok(())
    }
}

/// Sends the guest one frame, for which it gives a buffer at `addr`.
pub fn receive(port: &TestPort, guest: &Guest, addr: u64) {
    guest.give(0, addr, true);
    let before = guest.used(0);
    port.send(0, &[TxSlot::new(&[0x5a; 100])]);
    assert_eq!(guest.used(0), before + 1, "it arrived");
}

//! What rust-vmm's `Frontend` has to say of the memory and the rings of a guest that is the model's.

use std::os::fd::{AsRawFd, OwnedFd};

use ovs_vhost::datapath::RingConfig;
use ovs_vhost::memory::RegionDesc;
use ovs_vhost::virtio::features::{Features, VIRTIO_F_RING_PACKED};
use vhost::vhost_user::Frontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

/// A region as it is handed over.
pub fn info((desc, fd): &(RegionDesc, OwnedFd)) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: desc.guest.0,
        memory_size: desc.size,
        userspace_addr: desc.frontend.0,
        mmap_offset: desc.mmap_offset,
        mmap_handle: fd.as_raw_fd(),
    }
}

/// Where a fresh ring of this layout stands: a packed one with both wrap counters set.
pub fn fresh(features: Features) -> u16 {
    match features.contains(VIRTIO_F_RING_PACKED) {
        true => 0x8000,
        false => 0,
    }
}

/// What is said of where a ring is; `log`: under which guest address writes to its used ring are logged, if they are.
pub fn addresses(ring: &RingConfig, log: Option<u64>) -> VringConfigData {
    VringConfigData {
        queue_max_size: ring.size,
        queue_size: ring.size,
        flags: log.map_or(0, |_| VHOST_VRING_F_LOG),
        desc_table_addr: ring.desc.0,
        avail_ring_addr: ring.driver.0,
        used_ring_addr: ring.device.0,
        log_addr: log,
    }
}

const VHOST_VRING_F_LOG: u32 = 1;

/// Starts a ring at `base`. Where it has to be enabled, that is left to do.
pub fn start_ring(frontend: &Frontend, ring: &RingConfig, base: u16, kick: &EventFd) -> vhost::Result<()> {
    let index = usize::from(ring.index);
    let call = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).expect("an eventfd");
    frontend.set_vring_num(index, ring.size)?;
    frontend.set_vring_base(index, base)?;
    frontend.set_vring_addr(index, &addresses(ring, None))?;
    frontend.set_vring_call(index, &call)?;
    frontend.set_vring_kick(index, kick)
}

//! UNSAFE: DPDK's side: `rte_vhost` as Open vSwitch uses it, and a front-end of rust-vmm's that gives it a guest's rings.

use std::ffi::{c_int, CString};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use dpdk_sys::rte_vhost_device_ops;
use ovs_vhost::datapath::BURST;
use tempfile::TempDir;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

use crate::duel::BackEnd;
use crate::frontend::{fresh, info, start_ring};
use crate::guest::Guest;
use crate::packets::{why, Packet, Pool, COUNT};

const PROTOCOL_FEATURES: u64 = 1 << 30;
const NOBODY: i32 = -1;
/// What Open vSwitch registers ports with, as far as it concerns bursts.
const FLAGS: u64 =
    (dpdk_sys::RTE_VHOST_USER_LINEARBUF_SUPPORT | dpdk_sys::RTE_VHOST_USER_NET_STATS_ENABLE) as u64;

/// The device that runs; there is one at a time.
static RUNNING: AtomicI32 = AtomicI32::new(NOBODY);
/// Its rings that are enabled.
static ENABLED: AtomicI32 = AtomicI32::new(0);

const OPS: &rte_vhost_device_ops = &rte_vhost_device_ops {
    new_device: Some(new_device),
    destroy_device: Some(destroy_device),
    vring_state_changed: Some(vring_state_changed),
    features_changed: None,
    new_connection: None,
    destroy_connection: None,
    guest_notified: None,
    reserved: [std::ptr::null_mut()],
};

unsafe extern "C" fn new_device(vid: c_int) -> c_int {
    RUNNING.store(vid, Ordering::Release);
    0
}

unsafe extern "C" fn destroy_device(_: c_int) {
    RUNNING.store(NOBODY, Ordering::Release);
}

unsafe extern "C" fn vring_state_changed(_: c_int, _: u16, enable: c_int) -> c_int {
    ENABLED.fetch_add(if enable == 0 { -1 } else { 1 }, Ordering::AcqRel);
    0
}

/// rte_vhost's virtqueues: a pair's first is what the guest receives from.
const RECEIVEQ: u16 = 0;
const TRANSMITQ: u16 = 1;

pub struct Stock {
    vid: c_int,
    pool: Pool,
    path: CString,
    // Hangs up before the socket is unregistered.
    frontend: Option<Frontend>,
    _kicks: [EventFd; 2],
    _directory: TempDir,
}

impl Stock {
    pub fn new(guest: &Guest, pool: &Pool) -> Stock {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("vhost");
        let path = CString::new(socket.to_str().expect("UTF-8")).expect("no zero in it");
        ENABLED.store(0, Ordering::Release);
        // SAFETY: EAL runs; the path is terminated, and OPS lives forever.
        unsafe {
            check(
                "register",
                dpdk_sys::rte_vhost_driver_register(path.as_ptr(), FLAGS),
            );
            check(
                "callbacks",
                dpdk_sys::rte_vhost_driver_callback_register(path.as_ptr(), OPS),
            );
            check("start", dpdk_sys::rte_vhost_driver_start(path.as_ptr()));
        }
        let mut frontend = Frontend::connect(&socket, 2).expect("rte_vhost listens");
        let kicks = [(); 2].map(|()| EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd"));
        hand_over(&mut frontend, guest, &kicks).expect("rte_vhost takes the guest");
        wait_until("the device runs", || {
            ENABLED.load(Ordering::Acquire) >= 2 && RUNNING.load(Ordering::Acquire) != NOBODY
        });
        let vid = RUNNING.load(Ordering::Acquire);
        Stock {
            vid,
            pool: pool.clone(),
            path,
            frontend: Some(frontend),
            _kicks: kicks,
            _directory: directory,
        }
    }
}

fn check(what: &str, result: c_int) {
    assert_eq!(result, 0, "{what}: {}", why());
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: never");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What QEMU does when a guest's driver is ready.
fn hand_over(frontend: &mut Frontend, guest: &Guest, kicks: &[EventFd; 2]) -> vhost::Result<()> {
    frontend.set_owner()?;
    let offered = frontend.get_features()?;
    let wanted = guest.features.0 | PROTOCOL_FEATURES;
    assert_eq!(wanted & !offered, 0, "rte_vhost offers {offered:#x}");
    let protocol = VhostUserProtocolFeatures::MQ;
    assert!(frontend
        .get_protocol_features()
        .is_ok_and(|offered| offered.contains(protocol)));
    frontend.set_protocol_features(protocol).expect("offered");
    frontend.set_features(wanted)?;
    let regions = guest.memory.regions();
    frontend.set_mem_table(&regions.iter().map(info).collect::<Vec<_>>())?;
    for (ring, kick) in [&guest.receiveq, &guest.transmitq].into_iter().zip(kicks) {
        start_ring(frontend, ring, fresh(guest.features), kick)?;
    }
    for ring in [RECEIVEQ, TRANSMITQ] {
        frontend
            .set_vring_enable(usize::from(ring), true)
            .expect("a ring");
    }
    Ok(())
}

impl BackEnd for Stock {
    fn dequeue(&mut self, packets: &mut [Packet; BURST]) -> usize {
        // SAFETY: the device runs; a Packet is a pointer to an mbuf, and there is room for BURST of them.
        let count = unsafe {
            dpdk_sys::rte_vhost_dequeue_burst(
                self.vid,
                TRANSMITQ,
                self.pool.mempool(),
                packets.as_mut_ptr().cast(),
                COUNT,
            )
        };
        usize::from(count)
    }

    fn enqueue(&mut self, packets: &mut [Packet; BURST]) -> usize {
        // SAFETY: the device runs; all BURST packets are mbufs of ours.
        let count = unsafe {
            dpdk_sys::rte_vhost_enqueue_burst(self.vid, RECEIVEQ, packets.as_mut_ptr().cast(), COUNT)
        };
        usize::from(count)
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        drop(self.frontend.take());
        wait_until("the device is gone", || RUNNING.load(Ordering::Acquire) == NOBODY);
        // SAFETY: the path is terminated, and nobody uses the device any more.
        unsafe { dpdk_sys::rte_vhost_driver_unregister(self.path.as_ptr()) };
    }
}

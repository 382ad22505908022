//! UNSAFE: DPDK's packets, its mempools, and cores.

use std::ffi::{c_char, CStr, CString};
use std::mem::MaybeUninit;
use std::ptr;
use std::rc::Rc;

use dpdk_sys::{rte_mbuf, rte_mempool};
use ovs_vhost::datapath::BURST;

/// The core of the bursts, and of guests that run elsewhere.
const CORES: [usize; 2] = [0, 1];
/// Packets of a pool.
const PACKETS: u32 = 2047;
/// What a port's pool keeps per core, so that a burst's worth costs no lock.
const CACHE: u32 = 256;
/// Bytes of a packet's buffer: headroom and a frame of 1518 bytes, rounded as Open vSwitch does.
const BUFFER: u16 = 128 + 2048;

/// Starts EAL, without hugepages or devices, with this thread on the first core.
pub fn start_eal() {
    let cores = CORES[0].to_string();
    let arguments = [
        "burst",
        "--no-huge",
        "--no-pci",
        "--no-shconf",
        "--no-telemetry",
        "--log-level=1",
        "-m",
        "64",
        "-l",
        &cores,
    ];
    let arguments = arguments.map(|argument| CString::new(argument).expect("no zero in it"));
    let mut argv: Vec<*mut c_char> = arguments.iter().map(|a| a.as_ptr().cast_mut()).collect();
    // SAFETY: `argv` has as many terminated strings, which outlive the call and which EAL may reorder.
    let parsed = unsafe { dpdk_sys::rte_eal_init(10, argv.as_mut_ptr()) };
    assert!(parsed >= 0, "EAL does not start: {}", why());
}

/// What DPDK last complained about on this thread.
pub fn why() -> String {
    // SAFETY: rte_strerror returns a terminated string, valid until this thread's next call of it.
    unsafe { CStr::from_ptr(dpdk_sys::rte_strerror(dpdk_sys::dpdk_sys_errno())) }
        .to_string_lossy()
        .into_owned()
}

/// Keeps this thread off the core of the bursts.
pub fn run_on_another_core() {
    // SAFETY: a set of cores is plain bits, and the calls write nothing else.
    let pinned = unsafe {
        let mut cores = MaybeUninit::<libc::cpu_set_t>::zeroed().assume_init();
        libc::CPU_SET(CORES[1], &mut cores);
        libc::sched_setaffinity(0, size_of_val(&cores), &cores)
    };
    assert_eq!(pinned, 0, "this needs two cores");
}

/// A burst, as DPDK's functions want it.
pub const COUNT: u16 = 32;
const _: () = assert!(COUNT as usize == BURST);

/// A pool of packets, as both sides take them from.
#[derive(Clone)]
pub struct Pool(Rc<Mempool>);

struct Mempool(*mut rte_mempool);

impl Pool {
    pub fn new() -> Pool {
        // SAFETY: EAL runs; the name is a terminated string.
        let pool =
            unsafe { dpdk_sys::rte_pktmbuf_pool_create(c"packets".as_ptr(), PACKETS, CACHE, 0, BUFFER, -1) };
        assert!(!pool.is_null(), "no mempool: {}", why());
        Pool(Rc::new(Mempool(pool)))
    }

    pub fn mempool(&self) -> *mut rte_mempool {
        self.0 .0
    }

    /// Replaces all of `packets` by new ones.
    #[inline]
    pub fn alloc(&self, packets: &mut [Packet; BURST]) {
        // SAFETY: a pool of mbufs, and a Packet is a pointer to one: there is room for BURST of them.
        let failed = unsafe {
            dpdk_sys::dpdk_sys_pktmbuf_alloc_bulk(self.mempool(), packets.as_mut_ptr().cast(), COUNT.into())
        };
        assert_eq!(failed, 0, "the pool is empty");
    }

    #[inline]
    pub fn free(&self, packets: &mut [Packet; BURST]) {
        // SAFETY: all are ours to free; they are not used any more.
        unsafe { dpdk_sys::rte_pktmbuf_free_bulk(packets.as_mut_ptr().cast(), COUNT.into()) };
        packets.fill(Packet::NONE);
    }
}

impl Drop for Mempool {
    fn drop(&mut self) {
        // SAFETY: every mbuf is home, and nobody uses the pool any more.
        unsafe { dpdk_sys::rte_mempool_free(self.0) };
    }
}

/// An mbuf of this thread's, or none.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Packet(*mut rte_mbuf);

impl Packet {
    pub const NONE: Packet = Packet(ptr::null_mut());

    /// Where its frame goes.
    #[inline]
    pub fn room(&mut self) -> &mut [u8] {
        // SAFETY: an mbuf of ours alone, whose buffer reaches from `buf_addr` for `buf_len` bytes; the pool's memory came
        // zeroed.
        unsafe {
            let mbuf = &*self.0;
            let data = mbuf.buf_addr.cast::<u8>().add(usize::from(mbuf.data_off));
            std::slice::from_raw_parts_mut(data, usize::from(mbuf.buf_len - mbuf.data_off))
        }
    }

    /// Says how many bytes its frame has.
    #[inline]
    pub fn set_len(&mut self, len: u32) {
        // SAFETY: an mbuf of ours alone.
        let mbuf = unsafe { &mut *self.0 };
        mbuf.pkt_len = len;
        mbuf.data_len = u16::try_from(len).expect("at most a buffer");
    }

    /// Its frame.
    #[inline]
    pub fn frame(&self) -> &[u8] {
        // SAFETY: as in `room`; `data_len` bytes of it are the frame.
        unsafe {
            let mbuf = &*self.0;
            let data = mbuf.buf_addr.cast::<u8>().add(usize::from(mbuf.data_off));
            std::slice::from_raw_parts(data, usize::from(mbuf.data_len))
        }
    }

    /// Gives it the frame of `size` bytes that guests of that size know.
    pub fn fill(&mut self, size: usize) {
        for (at, byte) in self.room()[..size].iter_mut().enumerate() {
            *byte = u8::try_from(at % 251).expect("less");
        }
        self.set_len(u32::try_from(size).expect("small"));
    }
}

//! EAL starts on any machine, without hugepages or devices, and packet memory comes out of it.

use std::ffi::{c_char, CStr, CString};
use std::ptr;

/// The one start of EAL that a process has.
fn start_eal() {
    let arguments = [
        "dpdk-sys",
        "--no-huge",
        "--no-pci",
        "--no-shconf",
        "-m",
        "64",
        "-l",
        "0",
    ];
    let arguments = arguments.map(|argument| CString::new(argument).unwrap());
    let mut argv: Vec<*mut c_char> = arguments.iter().map(|a| a.as_ptr().cast_mut()).collect();
    let argc = i32::try_from(argv.len()).unwrap();
    // SAFETY: `argv` has `argc` terminated strings, which outlive the call and which EAL may reorder.
    let parsed = unsafe { dpdk_sys::rte_eal_init(argc, argv.as_mut_ptr()) };
    assert!(parsed >= 0, "EAL does not start: {}", why());
}

fn why() -> String {
    // SAFETY: rte_strerror returns a terminated string, valid until this thread's next call of it.
    unsafe { CStr::from_ptr(dpdk_sys::rte_strerror(dpdk_sys::dpdk_sys_errno())) }
        .to_string_lossy()
        .into_owned()
}

#[test]
fn packets_come_out_of_a_mempool_and_go_home_into_it() {
    const PACKETS: u32 = 1023;
    start_eal();
    // SAFETY: EAL runs; the name is a terminated string.
    let pool =
        unsafe { dpdk_sys::rte_pktmbuf_pool_create(c"packets".as_ptr(), PACKETS, 0, 0, 2048 + 128, -1) };
    assert!(!pool.is_null(), "no mempool: {}", why());
    // SAFETY: `pool` is a mempool.
    let available = || unsafe { dpdk_sys::rte_mempool_avail_count(pool) };
    assert_eq!(available(), PACKETS);

    let mut packets = [ptr::null_mut(); 32];
    // SAFETY: `pool` is a mempool of mbufs, and there is room for 32 of them.
    let failed = unsafe { dpdk_sys::dpdk_sys_pktmbuf_alloc_bulk(pool, packets.as_mut_ptr(), 32) };
    assert_eq!((failed, available()), (0, PACKETS - 32));
    for &packet in &packets {
        // SAFETY: a fresh mbuf has room for 60 bytes after its headroom.
        unsafe {
            let data = dpdk_sys::dpdk_sys_pktmbuf_append(packet, 60).cast::<u8>();
            assert_eq!(data.cast(), dpdk_sys::dpdk_sys_pktmbuf_data(packet));
            data.write_bytes(0xa5, 60);
        }
    }
    // SAFETY: all 32 are ours to free, and not used any more.
    unsafe { dpdk_sys::rte_pktmbuf_free_bulk(packets.as_mut_ptr(), 32) };
    assert_eq!(available(), PACKETS);

    // SAFETY: every mbuf is home; nothing uses the pool or EAL any more.
    unsafe {
        dpdk_sys::rte_mempool_free(pool);
        dpdk_sys::rte_eal_cleanup();
    }
}

//! Which NUMA node a page of guest memory lives on.

const MPOL_F_NODE: libc::c_ulong = 1;
const MPOL_F_ADDR: libc::c_ulong = 2;

/// The node of the page at `address`; None where the kernel cannot say.
pub(super) fn node_of(address: *const u8) -> Option<i32> {
    let mut node: libc::c_int = -1;
    // SAFETY: get_mempolicy(2) writes one int to `node`, which outlives the call, and none to the null
    // mask; it reads nothing at `address`, which may be any value.
    let result = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut node,
            std::ptr::null_mut::<libc::c_ulong>(),
            0 as libc::c_ulong,
            address,
            MPOL_F_NODE | MPOL_F_ADDR,
        )
    };
    (result == 0 && node >= 0).then_some(node)
}

//! Which NUMA nodes pages of guest memory live on.

const MPOL_F_NODE: libc::c_ulong = 1;
const MPOL_F_ADDR: libc::c_ulong = 2;

/// The node of the page at `address`; None where the kernel cannot say.
pub(super) fn node_of(address: *const u8) -> Option<i32> {
    if cfg!(miri) {
        return None;
    }
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

/// The nodes of those of the pages at `addresses` that this process has in use, each once; none where the kernel cannot say.
pub(super) fn nodes_of(addresses: &[*const u8]) -> Vec<i32> {
    if cfg!(miri) {
        return Vec::new();
    }
    let mut nodes = vec![-1 as libc::c_int; addresses.len()];
    // SAFETY: move_pages(2) without nodes to move to moves nothing: it reads as many addresses as it is told, which are there
    // and may have any value, and writes as many numbers, for which there is room. It looks at no page's content.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0 as libc::c_long,
            addresses.len(),
            addresses.as_ptr(),
            std::ptr::null::<libc::c_int>(),
            nodes.as_mut_ptr(),
            0 as libc::c_long,
        )
    };
    // A page that is not there has an error's number.
    nodes.retain(|node| result == 0 && *node >= 0);
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

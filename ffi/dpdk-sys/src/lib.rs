//! Raw bindings to the DPDK that this machine builds against: EAL, mempools, mbufs, rte_vhost.
//!
//! For benches and tests that set our rings beside DPDK's. The plugin does not use it: it is loaded into
//! a process that may have DPDK or not, and reaches it through the C shim.

#![allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    missing_docs,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::cast_possible_truncation,
    clippy::undocumented_unsafe_blocks,
    reason = "generated: names, code and comments are DPDK's"
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

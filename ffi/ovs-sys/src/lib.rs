//! Raw bindings to `c-shim/ovs_vhost.h`, the whole border between Open vSwitch and the ports.
//!
//! The header documents every item: who owns what, which thread calls, what may block. The functions
//! here are defined by the shim, which the package `ovs-vhost` compiles; this crate links nothing.

#![allow(
    non_camel_case_types,
    missing_docs,
    clippy::undocumented_unsafe_blocks,
    reason = "generated: the names and the comments are the header's"
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

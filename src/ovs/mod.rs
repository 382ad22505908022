//! The border with ovs-vswitchd: the only layer that knows a C type.
//!
//! `c-shim/ovs_vhost.h` is the border's text, in both directions; this is its Rust side.
//!
//! * `entry`: what C calls, one small function per row of the table that the shim gets.
//! * `qos`: those of them that limit what a port carries.
//! * `tap`: that for those who look at packets.
//! * `guard`: keeps panics on this side; one costs its port and nothing else.
//! * `convert`: C's types to ours and back.
//! * `host`: a netdev as the [`crate::port`] layer sees it.
//! * `log`: lines of the `log` crate to Open vSwitch's log.
//! * `faults`: panics on demand, in builds for tests.

mod convert;
mod entry;
mod faults;
mod guard;
mod host;
mod log;
mod qos;
mod tap;

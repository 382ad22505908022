//! vhost-user ports for Open vSwitch's userspace datapath.
//!
//! The map of the crate, bottom up; a layer uses only those left of it:
//!
//! ```text
//!   sync <- memory <- virtio <- datapath <- port <- ovs -> ffi/ovs-sys
//!                          vhost_user  <---- port
//!                       datapath <- tap, qos <- port
//! ```
//!
//! * `sync`, `clock`: atomics that can be model-checked, and the time; `panics`: the text of one.
//! * [`memory`]: guest addresses, mapped regions, and the only ways to touch guest bytes.
//! * [`virtio`]: a virtqueue seen from the device side. No I/O, no threads.
//! * [`datapath`]: a queue that a poll thread bursts through while the control thread swaps rings under it.
//! * [`vhost_user`]: the protocol: messages, one table of requests, one session per connection. Never sees a ring.
//! * [`qos`]: meters, and what they let pass. Time and lengths, nothing else.
//! * [`tap`]: what those see who look at a port's packets while it runs: captures, and a log of its bursts.
//! * [`port`]: a vhost-user port: configuration, life cycle, the control thread. Knows both protocol and rings.
//! * `ovs` (feature `plugin`): the border with ovs-vswitchd. Alone knows a C type.
//! * `model` (feature `model`): a guest driver and a front-end for tests and benches.
//! * `effort`: how much tests try, under Miri less.
//! * `fuzzing` (feature `fuzzing`): what fuzzers drive, and tests replay.
//!
//! Three kinds of threads meet here. ovs-vswitchd's *main* thread configures and asks for status; its
//! *poll (PMD)* threads call the bursts; one *control* thread of ours, `ovs-vhost`, speaks vhost-user
//! on every port. Main and poll threads never wait for a peer, and no thread waits for Open vSwitch's RCU.

mod clock;
pub mod datapath;
#[cfg(test)]
mod effort;
#[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
pub mod fuzzing;
pub mod memory;
#[cfg(any(test, feature = "model"))]
pub mod model;
#[cfg(feature = "plugin")]
mod ovs;
mod panics;
pub mod port;
pub mod qos;
mod sync;
pub mod tap;
pub mod vhost_user;
pub mod virtio;

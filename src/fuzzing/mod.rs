//! What the fuzzers of `fuzz/` drive, and the tests replay: bytes in, and nothing may panic that is not a finding.
//!
//! Each target reads its input as an [`Input`], a byte at a time, so that a mutation stays where it is made, seeds can be
//! written by hand, and an input means the same as long as no operation is renumbered. Targets:
//!
//! * `messages`: a connection as a front-end writes to it, descriptors and all, cut anywhere.
//! * `device`: requests that make sense one by one, in any order, with bursts in between.
//! * `ring`: a driver that keeps the rules or breaks them, also between two reads of ours; split and packed.
//! * `offload`: any header before any frame, out of the guest and into it.
//! * `options`: what users may write into the database.
//!
//! Beside them: `guest` is memory with what must not change around it, `fence` puts pages around it that nobody may touch,
//! `driver` plays the ring's other side, `seeds` are inputs of real sessions.

mod device;
mod driver;
mod fence;
mod guest;
mod input;
mod messages;
mod offload;
mod options;
mod ring;

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod seeds;

use input::Input;

/// What an input is given to.
type Target = fn(Input<'_>);

/// Each target by the name of its program and of its folder in the corpus.
const TARGETS: &[(&str, Target)] = &[
    ("device", device::run),
    ("messages", messages::run),
    ("net_hdr", offload::run),
    ("options", options::run),
    ("packed_ring", ring::packed),
    ("split_ring", ring::split),
];

/// Runs the target `name` on `data`.
///
/// # Panics
///
/// If there is a finding, or no such target.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.unwrap_or_else(|| panic!("no target {name}")).1(Input::new(data));
}

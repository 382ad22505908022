//! The clock that meters, stalls and latencies go by.

use nix::time::{clock_gettime, ClockId};

/// Nanoseconds of CLOCK_MONOTONIC, which is Open vSwitch's clock too; never 0. The C library's call: rustix looks for the
/// kernel's fast one by itself, and not every process has that where it looks (valgrind's has not).
pub(crate) fn now() -> u64 {
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    let nanos = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        part(time.tv_sec()) * 1_000_000_000 + part(time.tv_nsec())
    });
    nanos.max(1)
}

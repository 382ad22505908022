//! Atomics and locks: the standard ones, or loom's under `cfg(loom)`.

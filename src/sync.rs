//! Atomics and the cell that shares state between a poll thread and the control thread: the standard
//! ones, or loom's under `cfg(loom)`, so that loom can try every interleaving of what is built on them.
//!
//! `Arc` stays the standard one: what this crate shares through it is immutable, and loom's cannot hold
//! a trait object. Atomics that live in guest memory stay standard too (`virtio::ring`): loom cannot
//! place an atomic at a given address.
//!
//! Run the models with `RUSTFLAGS="--cfg loom" cargo test --no-default-features --lib loom`.

pub(crate) use imp::*;

#[cfg(not(loom))]
mod imp {
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
    pub(crate) use std::thread::yield_now;

    /// `std::cell::UnsafeCell` with the face of loom's, which records each access.
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        #[inline(always)]
        pub(crate) fn with_mut<R>(&self, use_it: impl FnOnce(*mut T) -> R) -> R {
            use_it(self.0.get())
        }
    }
}

#[cfg(loom)]
mod imp {
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
    pub(crate) use loom::thread::yield_now;
}

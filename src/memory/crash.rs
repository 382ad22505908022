//! A place to die: tests end a burst ahead of any store that another process will see.
//!
//! Called ahead of each store into a ring or an in-flight buffer; nothing at all outside of this crate's own tests.

/// The next store is about to happen.
#[cfg(any(not(test), loom))]
#[inline(always)]
pub(crate) fn point() {}

#[cfg(all(test, not(loom)))]
pub(crate) use armed::{after, point};

#[cfg(all(test, not(loom)))]
mod armed {
    use std::cell::Cell;
    use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};

    thread_local! {
        /// Stores that this thread may still do; None: any number.
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// What a burst that died left: nothing but what it stored.
    #[derive(Debug)]
    pub(crate) struct Crash;

    pub(crate) fn point() {
        match LEFT.get() {
            None => {}
            // Unwinding stands for the process's end. Nothing on its way may store any more.
            Some(0) => resume_unwind(Box::new(Crash)),
            Some(left) => LEFT.set(Some(left - 1)),
        }
    }

    /// Runs `burst` until it is about to do its store number `stores`, counted from 0.
    pub(crate) fn after<T>(stores: u32, burst: impl FnOnce() -> T) -> Result<T, Crash> {
        LEFT.set(Some(stores));
        let outcome = catch_unwind(AssertUnwindSafe(burst));
        LEFT.set(None);
        outcome.map_err(|panic| match panic.downcast::<Crash>() {
            Ok(crash) => *crash,
            Err(other) => resume_unwind(other),
        })
    }
}

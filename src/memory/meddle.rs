//! A place to meddle: tests have a driver write ahead of any read of ours, where in the field it is a race that is hard to hit.
//!
//! Called ahead of each read of guest memory on the burst path; nothing at all outside of tests and fuzzers.

/// The next read is about to happen.
#[cfg(any(not(any(test, feature = "fuzzing")), loom))]
#[inline(always)]
pub(crate) fn point() {}

#[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
pub(crate) use armed::{during, point};

#[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
mod armed {
    use std::cell::RefCell;

    /// What is done ahead of each read.
    type Meddler = Box<dyn FnMut()>;

    thread_local! {
        static MEDDLER: RefCell<Option<Meddler>> = const { RefCell::new(None) };
    }

    pub(crate) fn point() {
        MEDDLER.with(|meddler| {
            // Taken: it reads and writes guest memory itself.
            if let Ok(mut meddler) = meddler.try_borrow_mut() {
                meddler.iter_mut().for_each(|meddle| meddle());
            }
        });
    }

    /// Runs `burst` with `meddler` called ahead of each of its reads.
    pub(crate) fn during<T>(meddler: impl FnMut() + 'static, burst: impl FnOnce() -> T) -> T {
        MEDDLER.replace(Some(Box::new(meddler)));
        let outcome = burst();
        MEDDLER.replace(None);
        outcome
    }
}

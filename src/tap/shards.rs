//! Memory that poll threads write into and one other thread takes from. Each vring has a part of its own, so poll threads of
//! different queues do not meet; and nobody waits for a part that another has.

use crossbeam::utils::CachePadded;
use parking_lot::{Mutex, MutexGuard};

/// Parts, each for one vring or, where there are more vrings than that, for several.
pub(super) struct Shards<T>(Box<[CachePadded<Mutex<T>>]>);

impl<T> Shards<T> {
    pub(super) fn new(count: usize, make: impl Fn() -> T) -> Self {
        let part = |_| CachePadded::new(Mutex::new(make()));
        Self((0..count.max(1)).map(part).collect())
    }

    /// The part for `vring`, unless somebody else has it.
    pub(super) fn try_at(&self, vring: u16) -> Option<MutexGuard<'_, T>> {
        self.0.get(usize::from(vring) % self.0.len())?.try_lock()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Mutex<T>> {
        self.0.iter().map(|part| &**part)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

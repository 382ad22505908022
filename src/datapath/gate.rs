//! UNSAFE: the gate between poll threads, which burst through a value, and control threads, which change it.
//!
//! A poll thread enters with one locked operation and leaves with a plain store. A control thread closes the
//! gate, waits for at most the one burst under way, changes the value as it likes, and opens the gate again.
//! Nobody waits for a thread that is not inside.
//!
//! Two counters make that possible. `begun` counts bursts that entered, and carries the CLOSED bit: entering is
//! a compare-and-swap of both, so no burst enters a closed gate. `ended` counts bursts that left, and only who
//! is inside writes it: were there one word only, leaving would have to be a locked operation too, lest it wipe
//! out a CLOSED bit set meanwhile. The gate is occupied while the counters differ.

use std::ops::{Deref, DerefMut};

use parking_lot::{Mutex, MutexGuard};

use crate::sync::{spin_loop, yield_now, AtomicU64, Ordering, UnsafeCell};

/// The bit of `begun` that keeps bursts out.
const CLOSED: u64 = 1;
/// One burst, in both counters.
const ONE: u64 = 2;
/// How often a control thread looks before it lets another thread have the processor.
const SPINS: u32 = 100;

/// A value that bursts use, one at a time, and that control threads change while no burst does. Made closed.
#[repr(C)]
pub(super) struct Gate<T> {
    begun: AtomicU64,
    ended: AtomicU64,
    control: Mutex<()>,
    value: UnsafeCell<T>,
}

// SAFETY: an Entered or a Shut excludes every other (see their invariants), so the value has one user at a time.
unsafe impl<T: Send> Sync for Gate<T> {}

/// Why a burst did not enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// Another burst is inside.
    Busy,
    /// The gate is closed.
    Closed,
}

impl<T> Gate<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            begun: AtomicU64::new(CLOSED),
            ended: AtomicU64::new(0),
            value: UnsafeCell::new(value),
            control: Mutex::new(()),
        }
    }

    /// Enters for one burst, if the gate is open and free. A closed gate costs one load.
    #[inline(always)]
    pub(super) fn try_enter(&self) -> Result<Entered<'_, T>, Denied> {
        // Relaxed: a guess that the exchange below proves.
        let begun = self.begun.load(Ordering::Relaxed);
        if begun & CLOSED != 0 {
            return Err(Denied::Closed);
        }
        // Acquire: pairs with the release in Entered::drop, of the burst before.
        if self.ended.load(Ordering::Acquire) != begun {
            return Err(Denied::Busy);
        }
        // Nobody entered since `ended` was read, or `begun` would differ; it counts too high to come round.
        // Acquire: pairs with the release in Shut::open, so the burst sees what the control thread changed.
        match self
            .begun
            .compare_exchange(begun, begun + ONE, Ordering::Acquire, Ordering::Relaxed)
        {
            Ok(_) => Ok(Entered {
                gate: self,
                ticket: begun + ONE,
            }),
            Err(now) if now & CLOSED != 0 => Err(Denied::Closed),
            Err(_) => Err(Denied::Busy),
        }
    }

    /// Enters for one burst, waiting for another that is inside, and says whether it had to.
    /// `None` if the gate is closed.
    #[inline(always)]
    pub(super) fn enter(&self) -> (Option<Entered<'_, T>>, bool) {
        match self.try_enter() {
            Ok(entered) => (Some(entered), false),
            Err(Denied::Closed) => (None, false),
            Err(Denied::Busy) => (self.enter_contended(), true),
        }
    }

    #[cold]
    fn enter_contended(&self) -> Option<Entered<'_, T>> {
        loop {
            spin_loop();
            match self.try_enter() {
                Ok(entered) => return Some(entered),
                Err(Denied::Closed) => return None,
                Err(Denied::Busy) => {}
            }
        }
    }

    /// The gate if it is closed, with no burst inside and no other control thread at it. Never waits.
    pub(super) fn try_shut(&self) -> Option<Shut<'_, T>> {
        let control = self.control.try_lock()?;
        // Relaxed: no burst enters a closed gate, and who would open it needs the lock.
        let begun = self.begun.load(Ordering::Relaxed);
        // Acquire: as in close.
        let free = self.ended.load(Ordering::Acquire) == begun & !CLOSED;
        (free && begun & CLOSED != 0).then_some(Shut {
            gate: self,
            _control: control,
        })
    }

    /// Whether bursts are kept out, at this moment.
    pub(super) fn is_closed(&self) -> bool {
        // Relaxed: who wants the value closes the gate first.
        self.begun.load(Ordering::Relaxed) & CLOSED != 0
    }

    /// Closes the gate and waits for the burst that is inside, if there is one. For control threads.
    pub(super) fn close(&self) -> Shut<'_, T> {
        let control = self.control.lock();
        // Relaxed: an exchange that read the bit enters nothing; who entered before is waited for below.
        let begun = self.begun.fetch_or(CLOSED, Ordering::Relaxed) & !CLOSED;
        let mut looks = 0;
        // Acquire: pairs with the release in Entered::drop, so we see all that the last burst did.
        while self.ended.load(Ordering::Acquire) != begun {
            looks += 1;
            if looks < SPINS {
                spin_loop();
            } else {
                yield_now();
            }
        }
        Shut {
            gate: self,
            _control: control,
        }
    }
}

/// One burst inside the gate; leaves when dropped, be it by a panic.
///
/// # Invariants
///
/// `ticket` is `begun` without CLOSED, and `ended` is one less: no burst enters and no close returns.
pub(super) struct Entered<'a, T> {
    gate: &'a Gate<T>,
    ticket: u64,
}

impl<T> Entered<'_, T> {
    /// Closes the gate behind this burst, until a control thread opens it again.
    pub(super) fn close_behind(&self) {
        // Relaxed: whoever reads the bit stays out; the value is handed on by the release in drop.
        self.gate.begun.fetch_or(CLOSED, Ordering::Relaxed);
    }
}

impl<T> Deref for Entered<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: by the invariant nobody else is at the value.
        unsafe { &*self.gate.value.with_mut(|value| value) }
    }
}

impl<T> DerefMut for Entered<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: by the invariant nobody else is at the value, and self is borrowed for this one reference.
        unsafe { &mut *self.gate.value.with_mut(|value| value) }
    }
}

impl<T> Drop for Entered<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // Release: pairs with the acquires of `ended` in try_enter and close.
        self.gate.ended.store(self.ticket, Ordering::Release);
    }
}

/// The gate closed and nobody inside. Stays closed when dropped; opens by [`Shut::open`].
///
/// # Invariants
///
/// CLOSED is set, `begun` equals `ended`, and `_control` keeps other control threads away.
pub(super) struct Shut<'a, T> {
    gate: &'a Gate<T>,
    _control: MutexGuard<'a, ()>,
}

impl<T> Shut<'_, T> {
    /// Lets bursts in again.
    pub(super) fn open(self) {
        // Release: pairs with the acquire of the exchange in try_enter.
        self.gate.begun.fetch_and(!CLOSED, Ordering::Release);
    }
}

impl<T> Deref for Shut<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: by the invariant nobody else is at the value.
        unsafe { &*self.gate.value.with_mut(|value| value) }
    }
}

impl<T> DerefMut for Shut<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: by the invariant nobody else is at the value, and self is borrowed for this one reference.
        unsafe { &mut *self.gate.value.with_mut(|value| value) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::effort;

    fn open<T>(value: T) -> Gate<T> {
        let gate = Gate::new(value);
        gate.close().open();
        gate
    }

    #[test]
    fn a_new_gate_is_closed() {
        let gate = Gate::new(());
        assert_eq!(gate.try_enter().err(), Some(Denied::Closed));
        assert!(gate.enter().0.is_none());
    }

    #[test]
    fn one_burst_at_a_time() {
        let gate = open(());
        let first = gate.try_enter();
        assert!(first.is_ok());
        assert_eq!(gate.try_enter().err(), Some(Denied::Busy));
        drop(first);
        assert!(gate.try_enter().is_ok());
    }

    #[test]
    fn a_burst_can_close_the_gate_behind_itself() {
        let gate = open(7);
        let burst = gate.try_enter().ok().unwrap();
        burst.close_behind();
        drop(burst);
        assert_eq!(gate.try_enter().err(), Some(Denied::Closed));
        let shut = gate.close();
        assert_eq!(*shut, 7);
        shut.open();
        assert!(gate.try_enter().is_ok());
    }

    #[test]
    fn a_closed_gate_can_be_had_without_waiting_unless_somebody_is_at_it() {
        let gate = open(7);
        assert!(gate.try_shut().is_none(), "it is open");
        let burst = gate.try_enter().ok().unwrap();
        burst.close_behind();
        assert!(gate.try_shut().is_none(), "a burst is inside");
        drop(burst);
        assert_eq!(gate.try_shut().map(|shut| *shut), Some(7));
        let shut = gate.close();
        assert!(gate.try_shut().is_none(), "a control thread is at it");
        drop(shut);
        assert_eq!(
            gate.try_enter().err(),
            Some(Denied::Closed),
            "looking opens nothing"
        );
    }

    #[test]
    fn a_burst_that_panics_leaves() {
        let gate = open(());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _burst = gate.try_enter().ok();
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err());
        drop(gate.close());
    }

    #[test]
    fn changes_and_bursts_never_meet() {
        let gate = open((0_u64, 0_u64));
        let rounds = effort::of(20_000, 100);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut bursts = 0;
                    while bursts < rounds {
                        if let (Some(mut value), _) = gate.enter() {
                            assert_eq!(value.0, value.1);
                            value.0 += 1;
                            value.1 += 1;
                            bursts += 1;
                        }
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..200 {
                    let mut value = gate.close();
                    assert_eq!(value.0, value.1);
                    value.0 += 1;
                    value.1 += 1;
                    value.open();
                    std::thread::yield_now();
                }
            });
        });
        assert_eq!(*gate.close(), (2 * rounds + 200, 2 * rounds + 200));
    }
}

/// Every interleaving: `RUSTFLAGS="--cfg loom" cargo test --no-default-features --lib loom`.
/// Loom itself reports two users of the value at one time.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    fn open(value: u32) -> Arc<Gate<u32>> {
        let gate = Gate::new(value);
        gate.close().open();
        Arc::new(gate)
    }

    fn poll(gate: &Gate<u32>) -> bool {
        match gate.try_enter() {
            Ok(mut value) => {
                *value += 1;
                true
            }
            Err(_) => false,
        }
    }

    #[test]
    fn loom_no_burst_runs_while_the_gate_is_shut() {
        loom::model(|| {
            let gate = open(0);
            let poller = {
                let gate = gate.clone();
                thread::spawn(move || u32::from(poll(&gate)) + u32::from(poll(&gate)))
            };
            let mut value = gate.close();
            *value += 10;
            value.open();
            let bursts = poller.join().unwrap();
            assert_eq!(*gate.close(), 10 + bursts);
        });
    }

    #[test]
    fn loom_two_pollers_exclude_each_other() {
        loom::model(|| {
            let gate = open(0);
            let poller = {
                let gate = gate.clone();
                thread::spawn(move || u32::from(poll(&gate)))
            };
            let here = u32::from(poll(&gate));
            let there = poller.join().unwrap();
            assert!(here + there >= 1);
            assert_eq!(*gate.close(), here + there);
        });
    }

    #[test]
    fn loom_a_gate_closed_from_inside_stays_closed() {
        loom::model(|| {
            let gate = open(0);
            let poller = {
                let gate = gate.clone();
                thread::spawn(move || {
                    if let Ok(mut value) = gate.try_enter() {
                        *value = 1;
                        value.close_behind();
                    }
                })
            };
            let value = gate.close();
            let broken = *value == 1;
            if !broken {
                value.open();
            } else {
                drop(value);
            }
            poller.join().unwrap();
            let entered = gate.try_enter().is_ok();
            assert!(!(broken && entered));
        });
    }
}

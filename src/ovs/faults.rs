//! `ovs-appctl vhost-user/inject-panic`: the next burst of a kind on a port panics. It proves in a
//! running switch that a panic costs one port. Without the feature `fault-injection` none of it exists.

#[cfg(feature = "fault-injection")]
pub(super) use armed::{arm, trip};

/// Which burst panics.
#[derive(Clone, Copy, Debug)]
pub(super) enum Burst {
    Dequeue,
    Enqueue,
}

/// Panics if this burst of this port was asked to.
#[cfg(not(feature = "fault-injection"))]
#[inline]
pub(super) fn trip(_port: &crate::port::Port, _burst: Burst) {}

#[cfg(feature = "fault-injection")]
mod armed {
    use std::ptr;
    use std::sync::atomic::{AtomicPtr, Ordering};

    use super::Burst;
    use crate::port::Port;

    /// The port whose next dequeue, and the one whose next enqueue, panics. Compared, never followed.
    static ARMED: [AtomicPtr<Port>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];

    fn slot(burst: Burst) -> &'static AtomicPtr<Port> {
        match burst {
            Burst::Dequeue => &ARMED[0],
            Burst::Enqueue => &ARMED[1],
        }
    }

    pub(in crate::ovs) fn arm(port: &Port, burst: Burst) {
        slot(burst).store(ptr::from_ref(port).cast_mut(), Ordering::Relaxed);
    }

    #[inline]
    pub(in crate::ovs) fn trip(port: &Port, burst: Burst) {
        let armed = slot(burst);
        if ptr::eq(armed.load(Ordering::Relaxed), port) {
            armed.store(ptr::null_mut(), Ordering::Relaxed);
            panic!("injected in {burst:?}");
        }
    }
}

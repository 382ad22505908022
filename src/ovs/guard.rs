//! Keeps panics on this side of the border. A panic costs the port it happened in; what C gets instead
//! of an answer is written down here, one row per type.

use std::ffi::{c_char, c_int};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;

use ovs_sys::{ovsv_queue, ovsv_stats, ovsv_topology};

use crate::panics;
use crate::port::Port;

/// What an entry answers when there is no answer, as the header says it under "panic".
pub(super) trait Answer {
    fn without_one() -> Self;
}

macro_rules! answers {
    ($($type:ty => $value:expr,)*) => {
        $(impl Answer for $type {
            fn without_one() -> Self {
                $value
            }
        })*
    };
}

answers! {
    () => (),
    bool => false,
    u32 => 0,
    usize => 0,
    c_int => libc::EFAULT,
    *const ovsv_queue => ptr::null(),
    *const c_char => c"".as_ptr(),
    ovsv_stats => ovsv_stats::default(),
    ovsv_topology => ovsv_topology { n_rxq: 1, n_txq: 1, mtu: 1500, numa: -1, attached: false },
}

/// Runs what an entry does for `port`. Without a panic this costs one call.
#[inline]
pub(super) fn guard<A: Answer>(port: &Port, body: impl FnOnce(&Port) -> A) -> A {
    // What a panic leaves behind half done is inside the port, which does nothing any more.
    match catch_unwind(AssertUnwindSafe(|| body(port))) {
        Ok(answer) => answer,
        Err(payload) => {
            // Dropping a payload could panic in its turn.
            std::mem::forget(payload);
            poison(port);
            A::without_one()
        }
    }
}

#[cold]
fn poison(port: &Port) {
    let what = panics::take();
    // Should taking the port down fail too, it stays as it is: there is nobody left to tell.
    let _ = catch_unwind(AssertUnwindSafe(|| port.poison(&what)));
}

/// Runs what an entry does while there is no port yet, or none any more.
pub(super) fn guard_portless<A: Answer>(entry: &str, body: impl FnOnce() -> A) -> A {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        std::mem::forget(payload);
        let what = panics::take();
        let _ = catch_unwind(|| ::log::error!("internal error in {entry}: {what}"));
        A::without_one()
    })
}

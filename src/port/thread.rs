//! Threads of ours, in a process that is not.

use std::io;
use std::thread::{Builder, JoinHandle};

use nix::sys::signal::{SigSet, Signal};

/// Starts a thread that speaks to front-ends.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.into()).spawn(move || {
        survive_broken_pipes();
        work();
    })
}

/// From now on, writing to a pipe whose other end a front-end has closed is an error for this thread, and not the end of the
/// process, whatever the host does about SIGPIPE.
pub(super) fn survive_broken_pipes() {
    let mut held = SigSet::empty();
    held.add(Signal::SIGPIPE);
    // It could only fail if it were asked wrongly.
    let _ = held.thread_block();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_speaks_to_front_ends_holds_sigpipe_back_and_nothing_else() {
        let held = || SigSet::thread_get_mask().unwrap();
        let before: Vec<Signal> = held().iter().collect();
        let thread = spawn("test", move || {
            let mut expected = SigSet::from_iter(before);
            expected.add(Signal::SIGPIPE);
            assert_eq!(held(), expected);
        });
        thread.unwrap().join().unwrap();
    }
}

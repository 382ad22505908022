//! Waiting, the only way the harness does it: on a condition, with a deadline, and never longer than the person at
//! the keyboard wants to. Every loop of the harness ends up here, so one flag stops them all and everything that was
//! started is taken down by the ordinary `Drop`s on the way out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, Result};

/// Set by the signal thread, read by every wait. A lone flag that publishes no other data: relaxed is enough.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How often a condition is looked at.
const PERIOD: Duration = Duration::from_millis(5);

/// Fails once the run was interrupted (Ctrl-C, SIGTERM).
pub fn check_interrupt() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Whether the run was interrupted.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Looks at `condition` until it yields a value, fails, or `limit` has passed.
///
/// # Errors
/// The condition's own error, an interrupt, or the deadline, which names `what` was waited for.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        check_interrupt()?;
        if start.elapsed() > limit {
            bail!("waited {:.1} s for {what}", limit.as_secs_f64());
        }
        std::thread::sleep(PERIOD);
    }
}

/// Like [`until`] for a plain yes or no.
pub fn until_true(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, limit, || Ok(condition()?.then_some(())))
}

/// Watches for `span` that `condition` holds all along: for claims such as "the other port is not disturbed".
pub fn holds(what: &str, span: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < span {
        check_interrupt()?;
        if !condition()? {
            bail!("{what} held only for {:.1} s", start.elapsed().as_secs_f64());
        }
        std::thread::sleep(PERIOD);
    }
    Ok(())
}

/// Turns SIGINT, SIGTERM and SIGHUP into the flag above; a second one ends the process at once (the children die with
/// it, see `process`). To be called first thing in `main`, before any thread exists.
pub fn catch_signals() {
    // SAFETY: `set` is initialised by sigemptyset before use; blocking signals in the only thread touches nothing else.
    let set = unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    };
    std::thread::spawn(move || loop {
        let mut signal = 0;
        // SAFETY: `set` is a valid signal set, `signal` a valid place for the answer.
        unsafe { libc::sigwait(&set, &mut signal) };
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            // SAFETY: ends the process; nothing runs after it.
            unsafe { libc::_exit(130) };
        }
        eprintln!("interrupted: stopping everything that was started");
    });
}

/// Lets the harness end in order when whoever started it (cargo, make) is killed.
pub fn end_with_parent() {
    // SAFETY: prctl with an integer option touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
}

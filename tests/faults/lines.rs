//! What the port says: its log, kept for whoever wants to know whether something was told.

use std::io;
use std::sync::Mutex;

use log::{LevelFilter, Log, Metadata, Record};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Keeper;

impl Log for Keeper {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        LINES.lock().expect("no panic").push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// Keeps lines from now on. Those for developers do not count.
pub fn keep() {
    // Another test may have done it.
    let _ = log::set_logger(&Keeper);
    log::set_max_level(LevelFilter::Info);
}

/// All lines since this was last called.
pub fn take() -> Vec<String> {
    std::mem::take(&mut LINES.lock().expect("no panic"))
}

/// Whether a text says that this error was the reason.
pub fn tells_of(text: &str, errno: i32) -> bool {
    let tells = |errno| {
        let words = io::Error::from_raw_os_error(errno).to_string();
        text.contains(words.split(" (os error").next().unwrap_or_default())
    };
    match errno {
        // Where permissions are in order and it says EACCES all the same, that is told instead.
        libc::EACCES => tells(errno) || text.contains("a security module may not"),
        // So glibc calls it that a thread can have no stack.
        libc::ENOMEM => tells(errno) || tells(libc::EAGAIN),
        _ => tells(errno),
    }
}

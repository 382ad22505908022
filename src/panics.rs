//! What a panic said, kept on its thread for whoever catches it.
//!
//! Rust prints a panic on standard error, which a daemon does not have. Here the message and its place
//! wait on the thread that panicked until the one that catches the panic puts them into its own line.

#[cfg(feature = "plugin")]
use std::any::Any;
use std::cell::Cell;
#[cfg(feature = "plugin")]
use std::panic::{self, PanicHookInfo};

thread_local! {
    static LAST: Cell<Option<String>> = const { Cell::new(None) };
}

/// From now on panics are kept instead of printed. Called once, before there are ports.
#[cfg(feature = "plugin")]
pub(crate) fn keep() {
    panic::set_hook(Box::new(|info| LAST.set(Some(describe(info)))));
}

/// The message and place of the panic that this thread has just caught.
pub(crate) fn take() -> String {
    LAST.take().unwrap_or_else(|| "panic".to_owned())
}

#[cfg(feature = "plugin")]
fn describe(info: &PanicHookInfo<'_>) -> String {
    let message = message(info.payload());
    match info.location() {
        Some(place) => format!("{message} at {}:{}", place.file(), place.line()),
        None => message.to_owned(),
    }
}

#[cfg(feature = "plugin")]
fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic")
}

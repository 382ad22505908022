//! Lines of the `log` crate to Open vSwitch's log, module `netdev_vhost`. What is written and what is
//! left out, `ovs-appctl vlog/set` decides, as for every module of Open vSwitch.

use std::ffi::c_char;

use log::{Level, LevelFilter, Log, Metadata, Record};
use ovs_sys::ovsv_level;

struct Vlog;

fn level(level: Level) -> ovsv_level {
    match level {
        Level::Error => ovsv_level::OVSV_ERR,
        Level::Warn => ovsv_level::OVSV_WARN,
        Level::Info => ovsv_level::OVSV_INFO,
        Level::Debug | Level::Trace => ovsv_level::OVSV_DBG,
    }
}

impl Log for Vlog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // SAFETY: takes a number; any thread may ask.
        unsafe { ovs_sys::ovsv_host_log_enabled(level(metadata.level())) }
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = record.args().to_string();
            // SAFETY: `line` is valid for `line.len()` bytes during the call, which is all it asks for.
            unsafe {
                ovs_sys::ovsv_host_log(level(record.level()), line.as_ptr().cast::<c_char>(), line.len());
            }
        }
    }

    fn flush(&self) {}
}

/// From now on log lines reach Open vSwitch.
pub(super) fn install() {
    // A second logger in the process would be somebody else's code in this library: there is none.
    if ::log::set_logger(&Vlog).is_ok() {
        ::log::set_max_level(LevelFilter::Debug);
    }
}

//! What C calls to limit what a port carries: rows of the table in `entry`, and like them in all.

use std::ffi::{c_char, c_int, c_void};

use ovs_sys::{
    ovsv_limits, ovsv_option, ovsv_pair_cb, ovsv_port, ovsv_queue_id_cb, ovsv_queue_stats, ovsv_text_cb,
};

use super::convert::{self, Sink};
use super::entry::on_port;
use crate::port::Port;
use crate::qos::{Details, KiloPackets, Limits, QueueCounts, Refusal, Settings};

pub(super) unsafe extern "C" fn port_set_policing(port: *mut ovsv_port, limits: *const ovsv_limits) -> c_int {
    // SAFETY: C gives limits, valid during the call.
    let limits = unsafe { &*limits };
    let limits = Limits {
        kbits_rate: limits.kbits_rate,
        kbits_burst: limits.kbits_burst,
        kpkts: KiloPackets {
            rate: limits.kpkts_rate,
            burst: limits.kpkts_burst,
        },
    };
    let set = |port: &Port| {
        port.set_policing(limits);
        0
    };
    // SAFETY: a port from C.
    unsafe { on_port(port, set) }
}

pub(super) unsafe extern "C" fn port_qos_types(port: *const ovsv_port, emit: ovsv_text_cb, aux: *mut c_void) {
    // SAFETY: C's callback copies what it is given.
    let emit = unsafe { Sink::new(emit, aux) };
    let each = |_: &Port| {
        for name in Port::qos_types() {
            emit.text(&name.to_string_lossy());
        }
    };
    // SAFETY: a port from C.
    unsafe { on_port(port, each) }
}

pub(super) unsafe extern "C" fn port_qos(
    port: *const ovsv_port,
    emit: ovsv_pair_cb,
    aux: *mut c_void,
) -> *const c_char {
    // SAFETY: C's callback copies what it is given.
    let emit = unsafe { Sink::new(emit, aux) };
    let tell = |port: &Port| match port.qos() {
        Some((name, settings)) => {
            put(&emit, &settings);
            name.as_ptr()
        }
        None => c"".as_ptr(),
    };
    // SAFETY: a port from C.
    unsafe { on_port(port, tell) }
}

pub(super) unsafe extern "C" fn port_set_qos(
    port: *mut ovsv_port,
    name: *const c_char,
    options: *const ovsv_option,
    n_options: usize,
) -> c_int {
    // SAFETY: C gives a terminated string, valid during the call.
    let name = unsafe { convert::text("type", name) };
    let set = |port: &Port, details: &Details<'_>| match &name {
        Ok(name) => port.set_qos(name.unwrap_or_default(), details),
        // No type has such a name.
        Err(_) => Err(Refusal::Unsupported),
    };
    // SAFETY: a port from C; options valid during the call.
    unsafe { with_details(port, options, n_options, set) }
}

pub(super) unsafe extern "C" fn port_qos_queue(
    port: *const ovsv_port,
    queue_id: u32,
    stats: *mut ovsv_queue_stats,
    emit: ovsv_pair_cb,
    aux: *mut c_void,
) -> c_int {
    // SAFETY: C's callback copies what it is given.
    let emit = unsafe { Sink::new(emit, aux) };
    let mut known = ovsv_queue_stats::default();
    let tell = |port: &Port| {
        errno(port.qos_queue(queue_id).map(|(settings, counts)| {
            put(&emit, &settings);
            known = queue_stats(&counts);
        }))
    };
    // SAFETY: a port from C.
    let error = unsafe { on_port(port, tell) };
    // SAFETY: C gives a place for them.
    unsafe { *stats = known };
    error
}

pub(super) unsafe extern "C" fn port_set_qos_queue(
    port: *mut ovsv_port,
    queue_id: u32,
    options: *const ovsv_option,
    n_options: usize,
) -> c_int {
    let set = |port: &Port, details: &Details<'_>| port.set_qos_queue(queue_id, details);
    // SAFETY: a port from C; options valid during the call.
    unsafe { with_details(port, options, n_options, set) }
}

pub(super) unsafe extern "C" fn port_delete_qos_queue(port: *mut ovsv_port, queue_id: u32) -> c_int {
    // SAFETY: a port from C.
    unsafe { on_port(port, |port| errno(port.delete_qos_queue(queue_id))) }
}

pub(super) unsafe extern "C" fn port_qos_queues(
    port: *const ovsv_port,
    emit: ovsv_queue_id_cb,
    aux: *mut c_void,
) -> c_int {
    // SAFETY: C's callback copies what it is given.
    let emit = unsafe { Sink::new(emit, aux) };
    let tell = |port: &Port| {
        let queues = port.qos_queues();
        errno(queues.map(|queues| queues.into_iter().for_each(|id| emit.queue_id(id))))
    };
    // SAFETY: a port from C.
    unsafe { on_port(port, tell) }
}

/// # Safety
///
/// `port` is NULL or a live port from C; `options` are as `convert::options` wants them.
unsafe fn with_details(
    port: *const ovsv_port,
    options: *const ovsv_option,
    n_options: usize,
    body: impl FnOnce(&Port, &Details<'_>) -> Result<(), Refusal>,
) -> c_int {
    // SAFETY: the caller's promise.
    let details = unsafe { convert::options("other_config", options, n_options) };
    let run = |port: &Port| match &details {
        Ok(details) => errno(body(port, details)),
        Err(complaint) => {
            ::log::error!("port '{}': {complaint}", port.name());
            libc::EINVAL
        }
    };
    // SAFETY: the caller's promise.
    unsafe { on_port(port, run) }
}

fn errno(result: Result<(), Refusal>) -> c_int {
    result.map_or_else(Refusal::errno, |()| 0)
}

fn put(emit: &Sink<ovsv_pair_cb>, settings: &Settings) {
    for (key, value) in settings {
        emit.pair(key, &value.to_string());
    }
}

fn queue_stats(counts: &QueueCounts) -> ovsv_queue_stats {
    ovsv_queue_stats {
        tx_bytes: counts.tx_bytes,
        tx_packets: counts.tx_packets,
        tx_errors: counts.tx_errors,
        created: i64::try_from(counts.created / 1_000_000).unwrap_or(i64::MAX),
    }
}

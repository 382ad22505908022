//! What C calls: the rows of `struct ovsv_entries`, and the plugin's one exported symbol.
//!
//! Each entry guards, checks, calls; what it promises stands in the header, and that its type is the
//! header's is checked where the table is made. A `port` from C came out of `port_create` and has not
//! been to `port_destroy`; a `queue` came out of `port_rx_queue` for that port.

use std::ffi::{c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr::{self, NonNull};
use std::sync::{Arc, OnceLock};

use ovs_sys::{
    dp_packet, netdev, ovsv_config, ovsv_counter_cb, ovsv_entries, ovsv_mode, ovsv_option, ovsv_pair_cb,
    ovsv_port, ovsv_queue, ovsv_rx_slot, ovsv_stats, ovsv_text_cb, ovsv_topic, ovsv_topology, ovsv_tx_slot,
    packet_stash,
};

use super::convert::{self, Sink};
use super::faults::{self, Burst};
use super::guard::{guard, guard_portless, Answer};
use super::host::{name_control_thread, Netdev};
use super::qos;
use super::tap;
use crate::datapath::{Queue, RxSlot};
use crate::panics;
use crate::port::{indented, Environment, Port, Settings, Switches};

/// The table for the shim. A row of another type than the header's does not compile.
static ENTRIES: ovsv_entries = ovsv_entries {
    init: Some(init),
    port_create: Some(port_create),
    port_destroy: Some(port_destroy),
    port_set_config: Some(port_set_config),
    port_set_mtu: Some(port_set_mtu),
    port_reconfigure: Some(port_reconfigure),
    port_set_up: Some(port_set_up),
    port_carrier: Some(port_carrier),
    port_status: Some(port_status),
    port_describe: Some(port_describe),
    port_reset_stats: Some(port_reset_stats),
    port_tap: Some(tap::port_tap),
    port_stats: Some(port_stats),
    port_custom_stats: Some(port_custom_stats),
    port_set_policing: Some(qos::port_set_policing),
    port_qos_types: Some(qos::port_qos_types),
    port_qos: Some(qos::port_qos),
    port_set_qos: Some(qos::port_set_qos),
    port_qos_queue: Some(qos::port_qos_queue),
    port_set_qos_queue: Some(qos::port_set_qos_queue),
    port_delete_qos_queue: Some(qos::port_delete_qos_queue),
    port_qos_queues: Some(qos::port_qos_queues),
    port_rxq_enabled: Some(port_rxq_enabled),
    port_rx_queue: Some(port_rx_queue),
    dequeue: Some(dequeue),
    starve: Some(starve),
    send: Some(send),
    backlog: Some(backlog),
    #[cfg(feature = "fault-injection")]
    port_inject_panic: Some(port_inject_panic),
    #[cfg(not(feature = "fault-injection"))]
    port_inject_panic: None,
};

/// What Open vSwitch looks for in a plugin: its descriptor (`netdev_plugin_entry_func`).
#[no_mangle]
pub extern "C" fn ovs_netdev_plugin() -> *const c_void {
    // SAFETY: the table lives forever and is whole.
    unsafe { ovs_sys::ovsv_plugin(&ENTRIES) }
}

/// What all ports share, from `init` on.
static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();

/// # Safety
///
/// `port` is NULL or a live port from C (see above).
#[inline]
pub(super) unsafe fn on_port<A: Answer>(port: *const ovsv_port, body: impl FnOnce(&Port) -> A) -> A {
    // SAFETY: `port_create` made the pointer of a Port, and C's share keeps it until `port_destroy`.
    match unsafe { port.cast::<Port>().as_ref() } {
        Some(port) => guard(port, body),
        None => A::without_one(),
    }
}

/// # Safety
///
/// `queue` is a queue from C (see above), of a port that lives as long as the result is used.
#[inline]
unsafe fn queue<'a>(queue: *const ovsv_queue) -> &'a Queue {
    // SAFETY: `port_rx_queue` made the pointer of a Queue, whose address is its port's for life.
    unsafe { &*queue.cast::<Queue>() }
}

unsafe extern "C" fn init(config: *const ovsv_config) -> c_int {
    panics::keep();
    super::log::install();
    guard_portless("init", || {
        // SAFETY: C gives a configuration, valid during the call.
        let config = unsafe { &*config };
        // SAFETY: C gives pairs of terminated strings, valid during the call.
        let other_config =
            unsafe { convert::options("other_config", config.other_config, config.n_other_config) };
        announce_iommu(config);
        let settings = Settings {
            // SAFETY: C gives a terminated string, valid during the call.
            rundir: unsafe { convert::path(config.rundir) },
            sock_dirs: &sock_dirs(),
            other_config: &other_config.unwrap_or_else(|complaint| {
                ::log::error!("{complaint}");
                Vec::new()
            }),
            switches: Switches {
                tso: config.tso,
                iommu: config.iommu,
                postcopy: config.postcopy,
            },
            memory_locked: config.memory_locked,
        };
        match Environment::new(&settings, name_control_thread) {
            Ok(environment) => ENVIRONMENT.set(environment).map_or(libc::EALREADY, |()| 0),
            Err(error) => {
                ::log::error!("cannot start the control thread of the vhost-user ports: {error}");
                error.raw_os_error().unwrap_or(libc::EIO)
            }
        }
    })
}

/// Directories that the administrator lets the database name: from the environment, which the database does not reach.
fn sock_dirs() -> Vec<PathBuf> {
    std::env::var_os("OVS_VHOST_SOCK_DIRS")
        .map(|listed| std::env::split_paths(&listed).collect())
        .unwrap_or_default()
}

/// The stock line on a switch.
fn announce_iommu(config: &ovsv_config) {
    let iommu = if config.iommu { "enabled" } else { "disabled" };
    ::log::info!("IOMMU support for vhost-user-client {iommu}.");
}

unsafe extern "C" fn port_create(
    netdev: *mut netdev,
    name: *const c_char,
    mode: ovsv_mode,
    portp: *mut *mut ovsv_port,
) -> c_int {
    guard_portless("port_create", || {
        let (Some(netdev), Some(environment)) = (NonNull::new(netdev), ENVIRONMENT.get()) else {
            return libc::EINVAL;
        };
        // SAFETY: C gives a terminated string, valid during the call.
        let name = match unsafe { convert::text("port name", name) } {
            Ok(name) => name.unwrap_or_default(),
            Err(complaint) => {
                ::log::error!("{complaint}");
                return libc::EINVAL;
            }
        };
        // SAFETY: C keeps the netdev until `port_destroy` has returned, where the port drops this.
        let host = unsafe { Netdev::new(netdev) };
        match Port::new(name, convert::mode(mode), environment, Box::new(host)) {
            Ok(port) => {
                // SAFETY: C gives a place for the pointer. It owns one share from here on.
                unsafe { *portp = Arc::into_raw(port).cast_mut().cast() };
                0
            }
            Err(error) => error.errno(),
        }
    })
}

unsafe extern "C" fn port_destroy(port: *mut ovsv_port) {
    if port.is_null() {
        return;
    }
    // SAFETY: `port_create` gave C one share, and C gives it back here, once.
    let port = unsafe { Arc::from_raw(port.cast_const().cast::<Port>()) };
    guard(&port, Port::close);
    guard_portless("port_destroy", || drop(port));
}

unsafe extern "C" fn port_set_config(
    port: *mut ovsv_port,
    options: *const ovsv_option,
    n_options: usize,
    error: ovsv_text_cb,
    aux: *mut c_void,
) -> c_int {
    // SAFETY: C's callback copies what it is given.
    let error = unsafe { Sink::new(error, aux) };
    // SAFETY: a port from C; options valid during the call.
    unsafe {
        on_port(port, |port| {
            match convert::options("options", options, n_options) {
                Ok(options) => {
                    port.set_config(&options);
                    0
                }
                Err(complaint) => {
                    error.text(&complaint);
                    libc::EINVAL
                }
            }
        })
    }
}

unsafe extern "C" fn port_set_mtu(port: *mut ovsv_port, mtu: c_int) -> c_int {
    // No negative number is an MTU, and neither is 0.
    let mtu = u32::try_from(mtu).unwrap_or(0);
    // SAFETY: a port from C.
    unsafe {
        on_port(port, |port| {
            port.set_mtu(mtu).map_or_else(|error| error.errno(), |()| 0)
        })
    }
}

unsafe extern "C" fn port_reconfigure(port: *mut ovsv_port, topology: *mut ovsv_topology) {
    // SAFETY: a port from C.
    let live = unsafe { on_port(port, |port| convert::topology(&port.reconfigure())) };
    // SAFETY: C gives a place for it.
    unsafe { *topology = live };
}

unsafe extern "C" fn port_set_up(port: *mut ovsv_port, up: bool) {
    // SAFETY: a port from C.
    unsafe { on_port(port, |port| port.set_up(up)) }
}

unsafe extern "C" fn port_carrier(port: *const ovsv_port) -> bool {
    // SAFETY: a port from C.
    unsafe { on_port(port, Port::carrier) }
}

unsafe extern "C" fn port_status(port: *const ovsv_port, emit: ovsv_pair_cb, aux: *mut c_void) {
    // SAFETY: C's callback copies what it is given.
    let emit = unsafe { Sink::new(emit, aux) };
    // SAFETY: a port from C.
    unsafe { on_port(port, |port| port.status(&mut |key, value| emit.pair(key, value))) }
}

unsafe extern "C" fn port_stats(port: *const ovsv_port, stats: *mut ovsv_stats) {
    // SAFETY: a port from C.
    let known = unsafe { on_port(port, |port| convert::stats(&port.stats())) };
    // SAFETY: C gives a place for them.
    unsafe { *stats = known };
}

unsafe extern "C" fn port_custom_stats(port: *const ovsv_port, emit: ovsv_counter_cb, aux: *mut c_void) {
    // SAFETY: C's callback copies what it is given.
    let emit = unsafe { Sink::new(emit, aux) };
    // SAFETY: a port from C.
    unsafe {
        on_port(port, |port| {
            port.custom_stats(&mut |name, value| emit.counter(name, value))
        })
    }
}

unsafe extern "C" fn port_describe(
    port: *const ovsv_port,
    topic: ovsv_topic,
    word: *const c_char,
    json: bool,
    emit: ovsv_text_cb,
    aux: *mut c_void,
) -> bool {
    let describe = |port: &Port| {
        // SAFETY: C's callback, callable with `aux` during the call, copies what it is given.
        let emit = unsafe { Sink::new(emit, aux) };
        // SAFETY: C gives NULL or a terminated string, valid during the call.
        let word = unsafe { convert::text("argument", word) };
        match word.and_then(|word| port.tell(convert::topic(topic), word)) {
            Ok(tree) if json => emit.text(&tree.to_string()),
            Ok(tree) => emit.text(&indented(&tree)),
            Err(complaint) => {
                emit.text(&complaint);
                return false;
            }
        }
        true
    };
    // SAFETY: a port from C.
    unsafe { on_port(port, describe) }
}

unsafe extern "C" fn port_reset_stats(port: *mut ovsv_port) {
    // SAFETY: a port from C.
    unsafe { on_port(port, Port::reset_stats) }
}

unsafe extern "C" fn port_rxq_enabled(port: *const ovsv_port, queue_id: u16) -> bool {
    // SAFETY: a port from C.
    unsafe { on_port(port, |port| port.rxq_enabled(queue_id)) }
}

unsafe extern "C" fn port_rx_queue(port: *const ovsv_port, queue_id: u16) -> *const ovsv_queue {
    // SAFETY: a port from C.
    unsafe {
        on_port(port, |port| {
            port.rx_queue(queue_id)
                .map_or(ptr::null(), |queue| ptr::from_ref(queue).cast())
        })
    }
}

unsafe extern "C" fn dequeue(
    port: *const ovsv_port,
    from: *const ovsv_queue,
    stash: *mut packet_stash,
    slots: *mut ovsv_rx_slot,
    n: usize,
    refused: *mut u32,
) -> usize {
    // SAFETY: `slot` is one of `slots`, which are of `stash`; it comes back as `convert::rx_slots` wants it.
    let grow = |slot: &mut RxSlot<'_>, len| unsafe {
        ovs_sys::ovsv_host_grow(stash, ptr::from_mut(slot).cast(), len)
    };
    // SAFETY: a port from C and its queue; slots that are this call's alone; a place for a word.
    unsafe {
        on_port(port, |port| {
            faults::trip(port, Burst::Dequeue);
            let slots = convert::rx_slots(slots, n);
            let frames = port.receive(queue(from), slots, grow);
            *refused = port.police(slots.get(..frames).unwrap_or_default());
            frames
        })
    }
}

unsafe extern "C" fn starve(port: *const ovsv_port, of: *const ovsv_queue) {
    // SAFETY: a port from C and its queue.
    unsafe { on_port(port, |_| queue(of).starve()) }
}

unsafe extern "C" fn send(
    port: *const ovsv_port,
    qid: u16,
    slots: *const ovsv_tx_slot,
    n: usize,
    packets: *const *mut dp_packet,
) {
    // SAFETY: there is a packet for each slot, and it is asked for during the call.
    let queue_of = |index| unsafe { ovs_sys::ovsv_host_qos_queue(packets, index) };
    // SAFETY: a port from C; slots valid during the call.
    unsafe {
        on_port(port, |port| {
            faults::trip(port, Burst::Enqueue);
            if port.send_queued(qid, convert::tx_slots(slots, n), queue_of) {
                ovs_sys::ovsv_host_tx_contended();
            }
        });
    }
}

unsafe extern "C" fn backlog(port: *const ovsv_port, of: *const ovsv_queue) -> u32 {
    // SAFETY: a port from C and its queue.
    unsafe { on_port(port, |_| queue(of).backlog()) }
}

#[cfg(feature = "fault-injection")]
unsafe extern "C" fn port_inject_panic(port: *mut ovsv_port, site: ovs_sys::ovsv_site) {
    let inject = |port: &Port| match site {
        ovs_sys::ovsv_site::OVSV_DEQUEUE => faults::arm(port, Burst::Dequeue),
        ovs_sys::ovsv_site::OVSV_ENQUEUE => faults::arm(port, Burst::Enqueue),
        _ => port.inject_control_panic(),
    };
    // SAFETY: a port from C.
    unsafe { on_port(port, inject) }
}

//! C's types to ours and back. Nothing is lost on the way: a text that cannot be taken as it is, is
//! refused by name.

use std::ffi::{c_char, c_void, CStr, OsStr};
use std::mem::offset_of;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::slice;

use ovs_sys::{
    ovsv_counter_cb, ovsv_mode, ovsv_offload, ovsv_option, ovsv_pair_cb, ovsv_queue_id_cb, ovsv_rx_slot,
    ovsv_stats, ovsv_text_cb, ovsv_topic, ovsv_topology, ovsv_tx_slot, OVSV_MAX_FRAME,
};

use crate::datapath::{Offload, RxSlot, TxSlot, MAX_FRAME};
use crate::port::{Mode, Stats, Topic, Topology};

// Slots cross in bulk and in place: both sides must mean the same bytes. The members of ours, which are
// private, are in the header's order; datapath/slot.rs holds that their offsets are the same.
const _: () = {
    assert!(size_of::<Offload>() == size_of::<ovsv_offload>());
    assert!(align_of::<Offload>() == align_of::<ovsv_offload>());
    assert!(offset_of!(Offload, flags) == offset_of!(ovsv_offload, flags));
    assert!(offset_of!(Offload, gso_type) == offset_of!(ovsv_offload, gso_type));
    assert!(offset_of!(Offload, hdr_len) == offset_of!(ovsv_offload, hdr_len));
    assert!(offset_of!(Offload, gso_size) == offset_of!(ovsv_offload, gso_size));
    assert!(offset_of!(Offload, csum_start) == offset_of!(ovsv_offload, csum_start));
    assert!(offset_of!(Offload, csum_offset) == offset_of!(ovsv_offload, csum_offset));
    assert!(MAX_FRAME == OVSV_MAX_FRAME);
    assert!(offset_of!(ovsv_rx_slot, offload) == 16);
    assert!(offset_of!(ovsv_tx_slot, offload) == 12);
    assert!(size_of::<RxSlot<'_>>() == size_of::<ovsv_rx_slot>());
    assert!(align_of::<RxSlot<'_>>() == align_of::<ovsv_rx_slot>());
    assert!(size_of::<TxSlot<'_>>() == size_of::<ovsv_tx_slot>());
    assert!(align_of::<TxSlot<'_>>() == align_of::<ovsv_tx_slot>());
};

/// # Safety
///
/// `slots` must be valid for `n` slots for as long as the result is used, and used by nobody else; each
/// has room for what it says, and its `len` is 0 or says how much of that is written.
#[inline]
pub(super) unsafe fn rx_slots<'a>(slots: *mut ovsv_rx_slot, n: usize) -> &'a mut [RxSlot<'a>] {
    // SAFETY: the caller's promise; the layouts are the same (above).
    unsafe { slice::from_raw_parts_mut(slots.cast(), n) }
}

/// # Safety
///
/// `slots` must be valid for `n` slots for as long as the result is used, and so must their data.
#[inline]
pub(super) unsafe fn tx_slots<'a>(slots: *const ovsv_tx_slot, n: usize) -> &'a [TxSlot<'a>] {
    // SAFETY: the caller's promise; the layouts are the same (above).
    unsafe { slice::from_raw_parts(slots.cast(), n) }
}

pub(super) fn mode(mode: ovsv_mode) -> Mode {
    match mode {
        ovsv_mode::OVSV_SERVER => Mode::Server,
        _ => Mode::Client,
    }
}

pub(super) fn topic(topic: ovsv_topic) -> Topic {
    match topic {
        ovsv_topic::OVSV_EVENTS => Topic::Events,
        ovsv_topic::OVSV_STATS => Topic::Stats,
        ovsv_topic::OVSV_LATENCY => Topic::Latency,
        ovsv_topic::OVSV_RINGS => Topic::Rings,
        _ => Topic::Show,
    }
}

/// # Safety
///
/// `text` must be NULL or a terminated string that lives as long as the result is used.
pub(super) unsafe fn text<'a>(what: &str, text: *const c_char) -> Result<Option<&'a str>, String> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { CStr::from_ptr(text) };
    match bytes.to_str() {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(format!(
            "{what}: \"{}\" is not valid UTF-8",
            bytes.to_bytes().escape_ascii()
        )),
    }
}

/// # Safety
///
/// `path` must be a terminated string that lives as long as the result is used.
pub(super) unsafe fn path<'a>(path: *const c_char) -> &'a Path {
    // SAFETY: the caller's promise.
    let bytes = unsafe { CStr::from_ptr(path) };
    Path::new(OsStr::from_bytes(bytes.to_bytes()))
}

/// # Safety
///
/// `options` must be valid for `n` options (or NULL if that is 0), whose strings are terminated and live
/// as long as the result is used.
pub(super) unsafe fn options<'a>(
    column: &str,
    options: *const ovsv_option,
    n: usize,
) -> Result<Vec<(&'a str, &'a str)>, String> {
    if n == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the caller's promise.
    let options = unsafe { slice::from_raw_parts(options, n) };
    let pair = |option: &ovsv_option| {
        // SAFETY: the caller's promise.
        let key = unsafe { text(column, option.key) }?.unwrap_or_default();
        // SAFETY: the caller's promise.
        let value = unsafe { text(&format!("{column}:{key}"), option.value) }?.unwrap_or_default();
        Ok((key, value))
    };
    options.iter().map(pair).collect()
}

/// # Safety
///
/// `words` must be valid for `n` terminated strings that live as long as the result is used.
pub(super) unsafe fn words<'a>(words: *const *const c_char, n: usize) -> Result<Vec<&'a str>, String> {
    // SAFETY: the caller's promise.
    let words = unsafe { slice::from_raw_parts(words, n) };
    // SAFETY: the caller's promise.
    let word = |word: &*const c_char| Ok(unsafe { text("word", *word) }?.unwrap_or_default());
    words.iter().map(word).collect()
}

pub(super) fn topology(live: &Topology) -> ovsv_topology {
    let Topology {
        n_rxq,
        n_txq,
        mtu,
        numa,
        attached,
    } = *live;
    ovsv_topology {
        n_rxq,
        n_txq,
        mtu,
        numa,
        attached,
    }
}

pub(super) fn stats(known: &Stats) -> ovsv_stats {
    ovsv_stats {
        rx_packets: known.rx_packets,
        tx_packets: known.tx_packets,
        rx_bytes: known.rx_bytes,
        tx_bytes: known.tx_bytes,
        rx_dropped: known.rx_dropped,
        tx_dropped: known.tx_dropped,
        multicast: known.multicast,
        tx_multicast_packets: known.tx_multicast_packets,
        rx_broadcast_packets: known.rx_broadcast_packets,
        tx_broadcast_packets: known.tx_broadcast_packets,
        rx_1_to_64_packets: known.rx_1_to_64_packets,
        tx_1_to_64_packets: known.tx_1_to_64_packets,
        rx_65_to_127_packets: known.rx_65_to_127_packets,
        tx_65_to_127_packets: known.tx_65_to_127_packets,
        rx_128_to_255_packets: known.rx_128_to_255_packets,
        tx_128_to_255_packets: known.tx_128_to_255_packets,
        rx_256_to_511_packets: known.rx_256_to_511_packets,
        tx_256_to_511_packets: known.tx_256_to_511_packets,
        rx_512_to_1023_packets: known.rx_512_to_1023_packets,
        tx_512_to_1023_packets: known.tx_512_to_1023_packets,
        rx_1024_to_1522_packets: known.rx_1024_to_1522_packets,
        tx_1024_to_1522_packets: known.tx_1024_to_1522_packets,
        rx_1523_to_max_packets: known.rx_1523_to_max_packets,
        tx_1523_to_max_packets: known.tx_1523_to_max_packets,
    }
}

/// A callback of C with its argument: where texts and numbers go.
#[derive(Clone, Copy)]
pub(super) struct Sink<F> {
    callback: F,
    aux: *mut c_void,
}

impl<F> Sink<F> {
    /// # Safety
    ///
    /// `callback` must be callable with `aux` while the value lives, and copy what it is given.
    pub(super) unsafe fn new(callback: F, aux: *mut c_void) -> Sink<F> {
        Sink { callback, aux }
    }
}

impl Sink<ovsv_text_cb> {
    pub(super) fn text(&self, text: &str) {
        if let Some(callback) = self.callback {
            // SAFETY: callable with `aux` (`new`); `text` is valid during the call.
            unsafe { callback(self.aux, text.as_ptr().cast(), text.len()) }
        }
    }
}

impl Sink<ovsv_pair_cb> {
    pub(super) fn pair(&self, key: &str, value: &str) {
        if let Some(callback) = self.callback {
            // SAFETY: callable with `aux` (`new`); both strings are valid during the call.
            unsafe {
                callback(
                    self.aux,
                    key.as_ptr().cast(),
                    key.len(),
                    value.as_ptr().cast(),
                    value.len(),
                )
            }
        }
    }
}

impl Sink<ovsv_queue_id_cb> {
    pub(super) fn queue_id(&self, id: u32) {
        if let Some(callback) = self.callback {
            // SAFETY: callable with `aux` (`new`).
            unsafe { callback(self.aux, id) }
        }
    }
}

impl Sink<ovsv_counter_cb> {
    pub(super) fn counter(&self, name: &str, value: u64) {
        if let Some(callback) = self.callback {
            // SAFETY: callable with `aux` (`new`); `name` is valid during the call.
            unsafe { callback(self.aux, name.as_ptr().cast(), name.len(), value) }
        }
    }
}

//! What C calls for those who look at packets: a row of the table in `entry`, and like it in all.

use std::ffi::{c_char, c_void};

use ovs_sys::{ovsv_port, ovsv_text_cb};

use super::convert::{self, Sink};
use super::entry::on_port;
use crate::port::{indented, Port};

pub(super) unsafe extern "C" fn port_tap(
    port: *const ovsv_port,
    words: *const *const c_char,
    n_words: usize,
    directory: *const c_char,
    json: bool,
    emit: ovsv_text_cb,
    aux: *mut c_void,
) -> bool {
    // SAFETY: C's callback copies what it is given.
    let emit = unsafe { Sink::new(emit, aux) };
    let tap = |port: &Port| {
        // SAFETY: C gives terminated strings, valid during the call.
        let (words, directory) = unsafe { (convert::words(words, n_words), convert::path(directory)) };
        match words.and_then(|words| port.tap(&words, directory)) {
            Ok(tree) if json => emit.text(&tree.to_string()),
            Ok(tree) => emit.text(&indented(&tree)),
            Err(wrong) => {
                emit.text(&wrong);
                return false;
            }
        }
        true
    };
    // SAFETY: a port from C.
    unsafe { on_port(port, tap) }
}

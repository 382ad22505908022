//! A front-end that cuts its memory short and hangs up before anybody has looked. Alone in its program: where the control thread
//! stands is decided by the log.

#[expect(dead_code, reason = "nothing is received here")]
mod common;
#[path = "common/events.rs"]
mod events;
#[expect(dead_code, reason = "this guest gets one frame")]
#[path = "port/guest.rs"]
mod guest;

use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex};

use log::{LevelFilter, Log, Metadata, Record};
use ovs_vhost::datapath::TxSlot;
use ovs_vhost::port::Switches;

use common::{eventually, TestPort};
use events::events;
use guest::Guest;

/// What the control thread says when it is to stand still.
const HOLD_AT: &str = "refused a second front-end";

#[derive(Clone, Copy, PartialEq)]
enum Stand {
    NotYet,
    Still,
    Over,
}

static STAND: Mutex<Stand> = Mutex::new(Stand::NotYet);
static CHANGED: Condvar = Condvar::new();

struct Holder;

impl Log for Holder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.args().to_string().contains(HOLD_AT) {
            go_to(Stand::Still);
            let stand = STAND.lock().expect("no panic");
            let _over = CHANGED.wait_while(stand, |stand| *stand != Stand::Over);
        }
    }

    fn flush(&self) {}
}

fn go_to(stand: Stand) {
    *STAND.lock().expect("no panic") = stand;
    CHANGED.notify_all();
}

#[test]
fn of_one_that_cut_its_memory_short_and_left_the_first_is_told() {
    log::set_logger(&Holder).expect("no other");
    log::set_max_level(LevelFilter::Info);
    let (port, path) = TestPort::server("cut-and-left", Switches::default());
    let guest = Guest::connect(&path).up(&port, 1);
    let _second = UnixStream::connect(&path).expect("a port that listens");
    eventually("the control thread to stand still", || {
        *STAND.lock().expect("no panic") == Stand::Still
    });

    // The end of the connection is there first, then what a burst finds.
    rustix::fs::ftruncate(&guest.memory, 0).expect("nobody sealed it");
    drop(guest);
    port.send(0, &[TxSlot::new(&[0x5a; 100])]);
    go_to(Stand::Over);
    eventually("disconnected", || !port.connected());
    assert_eq!(events(&port, "WARN", "was cut short"), 1);
}

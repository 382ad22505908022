//! Every system call of a port's control path fails, one after the other: at each call of each kind that a whole life makes,
//! with each error that fits it. The process lives, the port says why, nothing stays behind, other ports do not notice, and
//! once the fault is gone the port works again.

// Which calls libraries make is not the same everywhere.
#![cfg(target_arch = "x86_64")]

#[path = "faults/calls.rs"]
mod calls;
#[path = "faults/census.rs"]
mod census;
#[expect(dead_code, reason = "ports are made here where they can fail")]
mod common;
#[path = "faults/injector.rs"]
mod injector;
#[path = "faults/lines.rs"]
mod lines;
#[path = "faults/site.rs"]
mod site;
#[path = "faults/stage.rs"]
mod stage;
#[path = "faults/talk.rs"]
mod talk;
#[path = "faults/visits.rs"]
mod visits;
#[expect(dead_code, reason = "who reads replies here must be ready for none")]
#[path = "common/wire.rs"]
mod wire;

use std::io;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ovs_vhost::port::{Environment, Mode, Switches};

use calls::{Call, CALLS};
use census::Census;
use injector::{arm, on_main, seen, Fault};
use site::Life;
use stage::Stage;

/// So many calls of a kind are many.
const MANY: u32 = 8;

const SERVER: Life = Life {
    name: "server",
    mode: Mode::Server,
    visits: &[visits::plain],
    captured: false,
};

/// The faults are those of the whole process: one life at a time.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a kind of call is made to fail that a life makes so many times, and how. Each time in each way; where it is often
/// made, in one way after the other.
fn faults(call: usize, count: u32) -> Vec<Fault> {
    let Call { passing, refused, .. } = &CALLS[call];
    let errnos = [*passing, *refused].concat();
    let all = (0..count).flat_map(|after| errnos.iter().map(move |errno| (after, *errno)));
    let chosen: Vec<_> = match count {
        0..MANY => all.collect(),
        _ => (0..count).zip(errnos.iter().copied().cycle()).collect(),
    };
    let fault = |(after, errno)| Fault { call, after, errno };
    chosen.into_iter().map(fault).collect()
}

/// Has each call of a life fail in each way.
fn sweep(life: &Life) {
    let _turn = alone();
    let mut stage = Stage::new();
    let counts = stage.play(life, None).expect("a life without faults");
    let all = (0..).zip(counts).flat_map(|(call, count)| faults(call, count));
    let mut wrong = Vec::new();
    for fault in all {
        if let Err(error) = stage.play(life, Some(fault)) {
            let why = io::Error::from_raw_os_error(fault.errno);
            let (name, after) = (CALLS[fault.call].name, fault.after);
            wrong.push(format!("{name} works {after} times, then it is {why}: {error:#}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(
        injector::unknown(),
        None,
        "a system call that faults/calls.rs does not list"
    );
}

#[test]
fn a_server_port_outlives_every_fault() {
    sweep(&SERVER);
}

#[test]
fn a_client_port_behind_an_iommu_outlives_every_fault() {
    sweep(&Life {
        name: "client",
        mode: Mode::Client,
        visits: &[visits::behind_iommu],
        captured: false,
    });
}

#[test]
fn a_port_in_post_copy_outlives_every_fault() {
    sweep(&Life {
        name: "postcopy",
        mode: Mode::Client,
        visits: &[visits::leaving_in_postcopy, visits::postcopy],
        captured: false,
    });
}

#[test]
fn a_port_that_is_captured_outlives_every_fault() {
    sweep(&Life {
        name: "captured",
        mode: Mode::Client,
        visits: &[],
        captured: true,
    });
}

#[test]
fn a_control_thread_that_cannot_start_says_why_and_leaves_nothing() {
    let _turn = alone();
    // One that starts stays, and does no harm.
    let start = |fault| {
        arm(fault);
        let (say, started) = channel();
        let on_start = move || say.send(()).expect("somebody listens");
        let settings = || common::settings(Switches::default(), Path::new("/tmp"));
        on_main(move || Environment::new(&settings(), on_start).map(drop))
            .map(|()| started.recv().expect("it starts"))
    };
    start(None).expect("a control thread");
    let mut failures = 0;
    for fault in (0..).zip(seen()).flat_map(|(call, count)| faults(call, count)) {
        let before = Census::take();
        let Err(error) = start(Some(fault)) else { continue };
        assert!(
            lines::tells_of(&error.to_string(), fault.errno),
            "{fault:?}: {error}"
        );
        before
            .comes_back()
            .unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        failures += 1;
    }
    arm(None);
    assert!(failures > 8, "only {failures} failures");
}

#[test]
fn a_server_port_whose_socket_cannot_be_watched_tries_again_by_itself() {
    let _turn = alone();
    let call = CALLS.iter().position(|call| call.name == "epoll_ctl(ADD)");
    let call = call.expect("a kind of call");
    for errno in [libc::ENOMEM, libc::ENOSPC] {
        // The port's first front-end knocks, is not heard, and is heard in the end.
        let fault = Fault {
            call,
            after: 0,
            errno,
        };
        Stage::new().undisturbed(&SERVER, fault).expect("a whole life");
    }
}

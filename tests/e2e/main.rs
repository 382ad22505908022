//! End-to-end tests: a real ovs-vswitchd, real QEMU guests, DPDK's testpmd. One program, which sees
//! what a user sees: of the plugin's own code it uses only the model of a guest, where it is one itself.
//!
//! ```text
//! e2e [--list] [FILTER...]   run the cases whose name contains a FILTER, or all
//! e2e demo                   what `make demo` runs
//! e2e pvp [RINGS...]         what `make bench-pvp` runs
//! e2e control                what `make bench-control` runs
//! e2e latency                what `make bench-latency` runs
//! e2e guest SOCKET COMMAND   run a command in a guest that `KEEP=1 e2e demo` left up
//! ```
//!
//! Where to start: `cases/mod.rs` has the table of cases, `cases/world.rs` what most of them stand on. Below that,
//! one file for each thing a case handles: `ovs` (with `ovsdb`), `vm` (with `image`, `shell`, `ping`, `numbered`), `party` (with
//! `tcp`), `migration` (with `qmp`, `stream`, `memory_check`, `announcement`), `testpmd`, `frontend`, `wire`, `quick_guest` (with
//! `traffic`), `unixctl`, what vswitchd may do (`user`, `drop_in`, `seccomp`, `systemd`), what it has (`smaps`,
//! `usage`, `disk`), `libvirt` (with `mounts`), `recipe`, and `process`, `netns`, `hugepages`, `log`, `evidence`, `wait` under them.
//! `settings` has the environment variables, `dice` chance.

mod announcement;
mod cases;
mod chart;
mod control;
mod demo;
mod dice;
mod disk;
mod drop_in;
mod evidence;
mod frontend;
mod hugepages;
mod image;
mod latency;
mod libvirt;
mod log;
mod memory_check;
mod migration;
mod mounts;
mod netns;
mod numbered;
mod ovs;
mod ovsdb;
mod party;
mod ping;
mod process;
mod pvp;
mod qmp;
mod quick_guest;
mod recipe;
mod samples;
mod seccomp;
mod settings;
mod shell;
mod sides;
mod smaps;
mod stream;
mod systemd;
mod tcp;
mod testpmd;
mod traffic;
mod tshark;
mod turn;
mod unixctl;
mod usage;
mod user;
mod vm;
mod wait;
mod wire;

use std::process::ExitCode;

use settings::Settings;

fn main() -> ExitCode {
    wait::catch_signals();
    wait::end_with_parent();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let settings = Settings::from_env();
    match arguments.first().map(String::as_str) {
        Some("demo") => demo::main(&settings),
        Some(demo::HOLD) => demo::hold(&settings),
        Some("pvp") => pvp::main(&settings, &arguments[1..]),
        Some("control") => control::main(&settings, &arguments[1..]),
        Some("latency") => latency::main(&settings, &arguments[1..]),
        Some("guest") => guest(&arguments[1..]),
        Some("--list") => {
            cases::list(&settings, &arguments[1..]);
            ExitCode::SUCCESS
        }
        Some(option) if option.starts_with('-') => {
            eprintln!("usage: e2e [--list] [FILTER...] | e2e demo | e2e pvp | e2e control | e2e latency | e2e guest SOCKET COMMAND");
            ExitCode::from(2)
        }
        _ => cases::run(&settings, &arguments),
    }
}

/// Runs a command in a guest that is up; the exit status is the command's.
fn guest(arguments: &[String]) -> ExitCode {
    let Some((socket, command)) = arguments.split_first() else {
        eprintln!("usage: e2e guest SOCKET COMMAND");
        return ExitCode::from(2);
    };
    match shell::run_in(socket.as_ref(), &command.join(" ")) {
        Ok((status, output)) => {
            print!("{output}");
            u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

//! What may befall a switch and those around it, a row for each. A blow strikes and is over when its function returns; the
//! stage then waits until all works again, and holds the account.

use std::time::Duration;

use anyhow::{ensure, Context, Result};

use super::stage::{Stage, VISITORS};
use crate::control::crowd::{add_ports, Crowd};
use crate::evidence;
use crate::process::stopped;
use crate::wait;

/// A blow.
pub struct Blow {
    pub name: &'static str,
    /// How often it is dealt, beside the others.
    pub weight: u64,
    pub strike: fn(&mut Stage) -> Result<()>,
}

const fn blow(name: &'static str, weight: u64, strike: fn(&mut Stage) -> Result<()>) -> Blow {
    Blow { name, weight, strike }
}

/// The first is dealt first: a process that has been through it has all that it will ever have.
pub const BLOWS: &[Blow] = &[
    blow("500 ports connect", 1, crowd),
    blow("vswitchd killed", 4, |stage| {
        stage.kill_switch()?;
        stage.start_switch()
    }),
    blow("vswitchd killed while it starts", 2, |stage| {
        for _ in 0..=stage.dice.below(3) {
            stage.kill_switch()?;
            stage.start_switch()?;
            std::thread::sleep(stage.dice.moment(YOUTH));
        }
        stage.kill_switch()?;
        stage.start_switch()
    }),
    blow("ovsdb-server killed", 2, |stage| {
        stage.world.ovs.stop_database()?;
        std::thread::sleep(stage.dice.moment(OUTAGE));
        stage.world.ovs.start_database()
    }),
    blow("vswitchd and ovsdb-server killed", 2, |stage| {
        stage.world.ovs.stop_database()?;
        stage.kill_switch()?;
        stage.start_switch()?;
        std::thread::sleep(stage.dice.moment(OUTAGE));
        stage.world.ovs.start_database()
    }),
    blow("testpmd killed", 2, |stage| {
        stage.flood.kill()?;
        stage.check_innocent()
    }),
    blow("testpmd stopped", 1, |stage| {
        let pid = stage.flood.pid()?;
        stopped_for(stage.stop, pid, || stage.check_innocent())
    }),
    blow("vswitchd stopped", 1, |stage| {
        let pid = stage.world.ovs.pid()?;
        stopped_for(stage.stop, pid, || Ok(()))
    }),
    blow("disk full", 2, disk_full),
    blow("sockets read-only", 2, |stage| {
        stage.sockets.set_writable(false)?;
        nothing_can_be_added(stage, "Read-only file system")?;
        stage.sockets.set_writable(true)
    }),
    blow("vswitchd killed, sockets read-only", 2, |stage| {
        stage.sockets.set_writable(false)?;
        stage.kill_switch()?;
        stage.start_switch()?;
        stage.world.ovs.wait_configured()?;
        stage.sockets.set_writable(true)
    }),
    blow("reconfigured again and again", 3, reconfigured),
];

/// The time in which a switch is young.
const YOUTH: Duration = Duration::from_millis(400);
/// For which there is no database.
const OUTAGE: Duration = Duration::from_millis(1500);
const CROWD: usize = 500;
/// Changes in a row.
const CHANGES: u64 = 25;

/// Stops a process for `time`, and does something at its end.
fn stopped_for(time: Duration, pid: u32, then: impl FnOnce() -> Result<()>) -> Result<()> {
    stopped(pid, || {
        std::thread::sleep(time);
        then()
    })
}

/// No room for a byte nor for a file, where the database, the logs and the sockets are. A capture and a server port are
/// refused; who is there goes on.
fn disk_full(stage: &mut Stage) -> Result<()> {
    stage.disk.fill()?;
    stage.sockets.fill()?;
    let capture = format!(
        "vhost-user/pcap start {} full.pcapng seconds=1",
        stage.innocent_port()
    );
    let told = stage.world.ovs.appctl(&capture);
    ensure!(told.is_err(), "a capture began on a full disk: {told:?}");
    stage.check_innocent()?;
    stage.disk.clear()?;
    nothing_can_be_added(stage, "No space left on device")?;
    stage.sockets.clear()
}

/// A server port cannot be made for this reason, and the port says so. When the reason has gone it comes up by itself.
fn nothing_can_be_added(stage: &mut Stage, reason: &str) -> Result<()> {
    let port = stage.next_server();
    let add = format!("add-port {VISITORS} {} -- {}", port.name, port.vsctl_args());
    stage.world.ovs.vsctl(&add)?;
    let error = stage.world.ovs.interface(&port.name, "error")?;
    ensure!(error.contains(reason), "{}: {error}", port.name);
    stage.check_innocent()?;
    stage
        .world
        .ovs
        .vsctl(&format!("del-port {VISITORS} {}", port.name))
        .map(drop)
}

/// Ports by the hundred find their front-ends at once under load, and lose them at once. To add and to delete so many goes ten
/// times as fast with nothing to do beside.
fn crowd(stage: &mut Stage) -> Result<()> {
    stage.flood.rest()?;
    let ports = add_ports(&stage.world, VISITORS, CROWD)?;
    stage.flood.start()?;
    let crowd = Crowd::listen(&ports)?;
    let connected = crowd
        .gather()
        .with_context(|| evidence::of_stillness(&stage.world.ovs))?;
    stage.check_innocent()?;
    drop((connected, crowd));
    stage.flood.rest()?;
    let commands: Vec<String> = ports
        .iter()
        .map(|port| format!("del-port {VISITORS} {}", port.name))
        .collect();
    stage.world.ovs.vsctl(&commands.join(" -- "))?;
    stage.flood.start()
}

/// Ports come and go and change, poll threads too.
fn reconfigured(stage: &mut Stage) -> Result<()> {
    let mut visitors = Vec::new();
    for _ in 0..CHANGES {
        wait::check_interrupt()?;
        let change = change(stage, &mut visitors);
        stage.world.ovs.vsctl(&change)?;
    }
    for name in visitors {
        stage.world.ovs.vsctl(&format!("del-port {VISITORS} {name}"))?;
    }
    let one_thread = "set Open_vSwitch . other_config:pmd-cpu-mask=0x1";
    stage.world.ovs.vsctl(one_thread).map(drop)
}

/// Any change, as ovs-vsctl takes it. Visitors are known by their names.
fn change(stage: &mut Stage, visitors: &mut Vec<String>) -> String {
    let kind = stage.dice.below(6);
    let dice = &mut stage.dice;
    match (kind, visitors.last()) {
        (0, Some(name)) => {
            let delete = format!("del-port {VISITORS} {name}");
            visitors.pop();
            delete
        }
        (1, Some(name)) => {
            let mtu = dice.one_of(&[1400, 1500, 9000]);
            format!("set Interface {name} mtu_request={mtu}")
        }
        (2, Some(name)) => {
            let queues = dice.one_of(&[1, 2, 4]);
            format!("set Interface {name} options:n_rxq={queues}")
        }
        (3, _) => {
            let mask = dice.one_of(&["0x1", "0x3"]);
            format!("set Open_vSwitch . other_config:pmd-cpu-mask={mask}")
        }
        (4, _) => {
            let retries = dice.one_of(&[0, 8, 32]);
            let name = stage.innocent_port();
            format!("set Interface {name} options:tx-retries-max={retries}")
        }
        _ => {
            let port = stage.next_visitor();
            let add = format!("add-port {VISITORS} {} -- {}", port.name, port.vsctl_args());
            visitors.push(port.name);
            add
        }
    }
}

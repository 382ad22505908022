//! Moving a running guest between two QEMU processes on two ports of one switch, there and back again.
//!
//! Each move starts a new QEMU on the port the guest is not on, hands the guest over, and ends the old QEMU.
//!
//! QEMU's own dirty tracking under TCG loses a store now and then: it marks a page dirty before the store is done, and a
//! processor thread that the host suspends in between finishes the store after the page was taken and sent. So here no
//! page is sent soon after the dirty bitmap was taken while the guest runs. The bitmap is taken at the beginning, from
//! where memory goes out slowly at first, and near the end of the first pass, when QEMU is told that it may stop the
//! guest for as long as it likes. The pages that were written during the pass, by the guest or by the switch, go then.

use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use serde_json::{json, Value};

use crate::cases::world::{Guest, Kind, Port, World};
use crate::memory_check;
use crate::qmp::Qmp;
use crate::vm::{Life, Spec, Vm};
use crate::wait;

/// For one move on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes per second at the beginning, and for how long.
const SLOW: u64 = 1 << 20;
const SLOW_TIME: Duration = Duration::from_millis(200);
/// Bytes per second from then on: the pass over a guest's memory takes a second or two.
const FAST: u64 = 64 << 20;
/// Bytes left to send at which the guest may be stopped. QEMU takes up to a tenth of a second to notice.
const NEAR_THE_END: u64 = 16 << 20;
/// Milliseconds for which the guest may be stopped before that, and after it.
const NEVER: u32 = 1;
const AT_ONCE: u32 = 2_000_000;

/// How to move.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Way {
    /// The guest goes first, most of its memory follows when it is needed.
    pub postcopy: bool,
    /// Before the guest runs on, its memory is compared between the two processes.
    pub compare: bool,
}

/// What a move was like.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// When the guest was stopped, seconds of the host's clock.
    pub stopped: f64,
    /// When it ran again.
    pub resumed: f64,
    /// Bytes of memory sent.
    pub sent: u64,
    /// Pages the guest or the switch asked for before they had come (post-copy).
    pub requests: u64,
    /// Bytes of memory found the same on both sides.
    pub compared: u64,
}

impl Move {
    /// How long the guest stood still.
    pub fn downtime(&self) -> Duration {
        Duration::try_from_secs_f64(self.resumed - self.stopped).unwrap_or_default()
    }
}

/// A guest with two ports to be on.
pub struct Nomad<'w> {
    world: &'w World,
    ports: [Port; 2],
    guest: Guest,
    /// Index of the port it is on.
    at: usize,
    vm: Option<Vm>,
}

impl<'w> Nomad<'w> {
    /// Adds two ports of the given kinds and boots a guest on the first.
    pub fn boot(world: &'w World, kinds: [Kind; 2], guest: Guest) -> Result<Self> {
        let ports = [
            world.add_port(kinds[0], "vhost1a")?,
            world.add_port(kinds[1], "vhost1b")?,
        ];
        let mut nomad = Nomad {
            world,
            ports,
            guest,
            at: 0,
            vm: None,
        };
        let mut vm = world.start_spec(nomad.spec(Life::Moves))?;
        vm.wait_ready()?;
        nomad.vm = Some(vm);
        Ok(nomad)
    }

    /// The guest.
    pub fn vm(&self) -> Result<&Vm> {
        self.vm.as_ref().context("the guest was lost in a failed move")
    }

    /// The port it is on.
    pub fn port(&self) -> &Port {
        &self.ports[self.at]
    }

    /// Moves the guest to the other port.
    pub fn migrate(&mut self, way: Way) -> Result<Move> {
        let source = self.vm.take().context("no guest to move")?;
        self.at = 1 - self.at;
        let runs = !way.compare;
        let destination = self.world.start_spec(self.spec(Life::Comes { runs }))?;
        let mut ends = Ends {
            source: source.qmp()?,
            destination: destination.qmp()?,
        };
        let socket = self.world.dir.join("migration.sock");
        ends.begin(&format!("unix:{}", socket.display()), way)?;
        let memory = ends.wait_completed()?;
        let mut compared = 0;
        if way.compare {
            compared = memory_check::compare(source.pid(), destination.pid())?;
            ends.destination.run("cont", json!({}))?;
        }
        let moved = Move {
            stopped: ends.source.wait_event("STOP", PATIENCE)?,
            resumed: ends.destination.wait_event("RESUME", PATIENCE)?,
            sent: memory["transferred"].as_u64().unwrap_or(0),
            requests: memory["postcopy-requests"].as_u64().unwrap_or(0),
            compared,
        };
        ends.source.run("quit", json!({}))?;
        source.wait_end(PATIENCE)?;
        self.vm = Some(destination);
        Ok(moved)
    }

    fn spec(&self, life: Life) -> Spec {
        let spec = self.world.spec(self.port(), self.guest);
        Spec {
            name: format!("{}{}", spec.name, ["a", "b"][self.at]),
            life,
            ..spec
        }
    }
}

/// The two processes of a move, by their control sockets.
struct Ends {
    source: Qmp,
    destination: Qmp,
}

impl Ends {
    fn begin(&mut self, uri: &str, way: Way) -> Result<()> {
        let capabilities =
            json!({ "capabilities": [{ "capability": "postcopy-ram", "state": way.postcopy }] });
        for end in [&mut self.source, &mut self.destination] {
            end.run("migrate-set-capabilities", capabilities.clone())?;
        }
        let limits = json!({ "max-bandwidth": SLOW, "downtime-limit": NEVER });
        self.source.run("migrate-set-parameters", limits)?;
        self.destination.run("migrate-incoming", json!({ "uri": uri }))?;
        self.source.run("migrate", json!({ "uri": uri }))?;
        wait::until_true("the migration to be active", PATIENCE, || {
            Ok(self.status()?.0 == "active")
        })?;
        std::thread::sleep(SLOW_TIME);
        if way.postcopy {
            // Most of the memory is left for it, and goes as fast as it can.
            return self.source.run("migrate-start-postcopy", json!({})).map(drop);
        }
        self.source
            .run("migrate-set-parameters", json!({ "max-bandwidth": FAST }))?;
        wait::until_true("most of the memory to be sent", PATIENCE, || {
            let (status, answer) = self.status()?;
            let left = answer["ram"]["remaining"].as_u64().unwrap_or(0);
            Ok(left < NEAR_THE_END || status != "active")
        })?;
        self.source
            .run("migrate-set-parameters", json!({ "downtime-limit": AT_ONCE }))
            .map(drop)
    }

    /// Waits until all has arrived: QEMU's account of the memory.
    fn wait_completed(&mut self) -> Result<Value> {
        let memory = wait::until("the migration to complete", PATIENCE, || {
            let (status, answer) = self.status()?;
            match status.as_str() {
                "completed" => Ok(Some(answer["ram"].clone())),
                "failed" | "cancelled" | "postcopy-paused" => bail!("migration {status}: {answer}"),
                _ => Ok(None),
            }
        })?;
        wait::until_true("the destination to have it all", PATIENCE, || {
            let status = self.destination.run("query-status", json!({}))?;
            Ok(status["status"] == "running" || status["status"] == "paused")
        })?;
        Ok(memory)
    }

    fn status(&mut self) -> Result<(String, Value)> {
        let answer = self.source.run("query-migrate", json!({}))?;
        let status = answer["status"].as_str().unwrap_or_default().to_string();
        ensure!(
            !status.is_empty() || answer == json!({}),
            "odd answer to query-migrate: {answer}"
        );
        Ok((status, answer))
    }
}

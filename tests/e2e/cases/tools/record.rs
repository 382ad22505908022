//! The life of a switch with a port of each type, and what it answers to the questions on the way.

use std::fmt;
use std::path::Path;

use anyhow::{ensure, Context, Result};

use super::super::world::{self, Kind, Port, World, PATIENCE};
use super::super::Ctx;
use super::questions::{self, Compare, Question, ADD, CHANGES};
use super::shape;
use crate::ovs::Ovs;
use crate::process;
use crate::settings::Settings;
use crate::testpmd::{Device, Rings, Testpmd};
use crate::wait;

/// When a question is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The ports are there, nobody is on them.
    Added,
    /// testpmd is on both.
    Connected,
    /// They have been taken down.
    Down,
    /// They have been put up again.
    Up,
    /// Their settings have been changed.
    Changed,
    /// They have been given settings that are out of range.
    OutOfRange,
    /// They have been deleted and added again, as a virtual machine is that was off for a moment.
    AddedAgain,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What was answered to a question at a time, about one port where it names one.
pub struct Answer {
    pub question: &'static Question,
    pub stage: Stage,
    /// The port's kind, or empty.
    pub port: &'static str,
    pub items: Vec<String>,
}

/// All answers of one side.
pub struct Record(Vec<Answer>);

impl Record {
    /// The answers to one question.
    pub fn answers<'a>(&'a self, question: &'a Question) -> impl Iterator<Item = &'a Answer> {
        self.0
            .iter()
            .filter(move |answer| std::ptr::eq(answer.question, question))
    }

    /// The answer to a question at a time.
    pub fn answer(&self, question: &Question, stage: Stage, port: &str) -> Option<&Answer> {
        let mut all = self
            .0
            .iter()
            .filter(|answer| std::ptr::eq(answer.question, question));
        all.find(|answer| answer.stage == stage && answer.port == port)
    }
}

/// Where server ports have their sockets, below the run directory; client ports' are in the same below the case's.
const SOCKETS: &str = "vhost_sockets";

const KINDS: [(&str, Kind, &str); 2] = [
    ("server", Kind::Server, "vhu4a6b3c1f-2d"),
    ("client", Kind::Client, "vhu9e8d7c6b-5a"),
];

/// The name of the port of a kind, or nothing for none.
pub fn name_of(kind: &str) -> &'static str {
    KINDS.iter().find(|row| row.0 == kind).map_or("", |row| row.2)
}

/// Lives through all stages in a switch of these settings.
pub fn make(ctx: &Ctx, settings: &Settings, dir: &Path) -> Result<Record> {
    let side = if settings.stock() { "stock" } else { "plugin" };
    let enter = |stage| ctx.step(&format!("{side}: {stage}"));
    let world = start(settings, dir)?;
    let mut witness = Witness::new(&world);

    enter(Stage::Added);
    witness.change(&[ADD])?;
    // Else the ports would exchange what one of them floods.
    world.ovs.ofctl("del-flows br-int")?;
    // The bridge's own address and number would be made up anew each time.
    world
        .ovs
        .vsctl("set Bridge br-int other_config:hwaddr=02:00:00:00:00:01")?;
    witness.ask(Stage::Added)?;

    enter(Stage::Connected);
    let mut testpmd = Some(Testpmd::start(&witness.devices(), &world.dir)?);
    witness.wait_column("link_state", "up")?;
    witness.wait_statistics()?;
    witness.ask(Stage::Connected)?;

    for (stage, changes) in CHANGES {
        enter(*stage);
        if *stage == Stage::AddedAgain {
            testpmd.take();
            witness.wait_column("link_state", "down")?;
        }
        witness.change(changes)?;
        match stage {
            Stage::Down => witness.wait_column("admin_state", "down")?,
            Stage::Up => witness.wait_column("admin_state", "up")?,
            _ => {}
        }
        witness.ask(*stage)?;
    }
    Ok(Record(witness.answers))
}

/// A switch with settings that are read only once, or that make it tell more.
fn start(settings: &Settings, dir: &Path) -> Result<World> {
    for place in [dir.join("run").join(SOCKETS), dir.join(SOCKETS)] {
        std::fs::create_dir_all(place)?;
    }
    let mut options = world::options(settings, true);
    options.other_config = vec![
        "vhost-sock-dir=vhost_sockets",
        "pmd-cpu-mask=0x1",
        "pmd-perf-metrics=true",
    ];
    World::with(settings, dir, options, true)
}

/// Who asks and takes down the answers.
struct Witness<'a> {
    world: &'a World,
    ovs: &'a Ovs,
    ports: Vec<Port>,
    mark: usize,
    answers: Vec<Answer>,
}

impl<'a> Witness<'a> {
    fn new(world: &'a World) -> Self {
        let port = |(_, kind, name): (&str, Kind, &str)| {
            let place = match kind {
                Kind::Server => world.ovs.dir(),
                Kind::Client => &world.dir,
            };
            Port {
                name: name.into(),
                kind,
                socket: place.join(SOCKETS).join(name),
            }
        };
        Witness {
            world,
            ovs: &world.ovs,
            ports: KINDS.map(port).into(),
            mark: world.ovs.log_mark(),
            answers: Vec::new(),
        }
    }

    fn devices(&self) -> Vec<Device> {
        self.ports
            .iter()
            .map(|port| port.device(Rings::MERGEABLE))
            .collect()
    }

    /// A command with this switch's words in it.
    fn words(&self, command: &str, port: Option<&Port>) -> String {
        let command = command.replace("RUN", &self.ovs.dir().display().to_string());
        let Some(port) = port else { return command };
        let (kind, options) = match port.kind {
            Kind::Server => ("dpdkvhostuser", String::new()),
            Kind::Client => (
                "dpdkvhostuserclient",
                format!(" options:vhost-server-path={}", port.socket.display()),
            ),
        };
        command
            .replace(" OPTIONS", &options)
            .replace("TYPE", kind)
            .replace("PATH", &port.socket.display().to_string())
            .replace("PORT", &port.name)
    }

    fn ask(&mut self, stage: Stage) -> Result<()> {
        for question in questions::all().filter(|question| question.when.contains(&stage)) {
            let names_port = ["PORT", "PATH"]
                .iter()
                .any(|word| question.command.contains(word));
            let ports: Vec<Option<&Port>> = match names_port {
                true => self.ports.iter().map(Some).collect(),
                false => vec![None],
            };
            let mut answers = Vec::new();
            for (row, port) in KINDS.iter().zip(ports) {
                let text = self.answer(&self.words(question.command, port))?;
                answers.push(Answer {
                    question,
                    stage,
                    port: port.map_or("", |_| row.0),
                    items: self.items(&text, question.compare),
                });
            }
            self.answers.extend(answers);
        }
        Ok(())
    }

    /// What a command says, whether it succeeds or not.
    fn answer(&self, command: &str) -> Result<String> {
        if command == "log" {
            return Ok(self.log());
        }
        let mut words = command.split(' ');
        let mut tool = self.ovs.tool(words.next().context("no command")?);
        tool.args(words);
        let done = process::finish(tool, PATIENCE)?;
        let failed = if done.status.success() {
            String::new()
        } else {
            format!("{}\n", done.status)
        };
        Ok(failed + &done.stdout + &done.stderr)
    }

    /// What the log says of the ports since the last change: complaints, and what was done.
    fn log(&self) -> String {
        let told = |line: &crate::log::Line| {
            let grave = matches!(line.level.as_str(), "WARN" | "ERR" | "EMER");
            let ours = self.ports.iter().any(|port| line.text.contains(&port.name));
            ours && (grave || line.text.contains("Max Tx retries"))
        };
        let lines = self.ovs.log_since(self.mark).into_iter().filter(told);
        lines
            .map(|line| format!("{} {}\n", line.level, line.text))
            .collect()
    }

    fn items(&self, text: &str, compare: Compare) -> Vec<String> {
        let text = text.replace(&self.world.dir.display().to_string(), "DIR");
        // Where ovs-dpctl has no counters it does not end its line.
        let text = text.replace("(Protocol error)", "(Protocol error)\n");
        let text = shape::without_chance(&text);
        match compare {
            Compare::Exactly | Compare::Nothing => shape::items(&text),
            Compare::ButNumbers | Compare::InOrder => shape::items(&shape::without_numbers(&text)),
        }
    }

    fn change(&mut self, changes: &[&str]) -> Result<()> {
        self.mark = self.ovs.log_mark();
        for change in changes {
            for port in &self.ports {
                let answer = self.answer(&self.words(change, Some(port)))?;
                ensure!(!answer.contains("exit status"), "{change}: {answer}");
            }
        }
        Ok(())
    }

    fn wait_column(&self, column: &str, wanted: &str) -> Result<()> {
        self.ports.iter().try_for_each(|port| {
            let what = format!("{column}={wanted} of {}", port.name);
            wait::until_true(&what, PATIENCE, || {
                Ok(self.ovs.interface(&port.name, column)? == wanted)
            })
        })
    }

    /// The database is told of counters every few seconds, and when that interval changes.
    fn wait_statistics(&self) -> Result<()> {
        self.ovs
            .vsctl("set Open_vSwitch . other_config:stats-update-interval=60000")?;
        let client = name_of("client");
        wait::until_true("counters of a connected port in the database", PATIENCE, || {
            Ok(self
                .ovs
                .interface(client, "statistics")?
                .contains("tx_q0_good_packets"))
        })
    }
}

//! A switch with two ports under load, and what is measured of ports that come and go beside them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use super::super::world::{Kind, Port, World, PATIENCE};
use crate::frontend::{Frontend, Listener};
use crate::quick_guest::Guest;
use crate::samples::Report;
use crate::settings::Settings;
use crate::sides::{Side, Spread};
use crate::traffic::{Traffic, Ways};
use crate::wait;

/// How long the guests send all they can.
const SEARCH: Duration = Duration::from_millis(500);
/// Of what they carry, in hundredths.
const SHARE: u64 = 80;
/// Of the guests: who adds and deletes ports goes first.
const NICE: i32 = 10;
/// A while of that.
const WHILE: Duration = Duration::from_millis(300);

/// Where ports come and go.
pub struct Stage<'a> {
    pub world: World,
    side: Side,
    load: Traffic,
    report: &'a mut Report,
    /// Who is beside the running ports.
    company: &'static str,
    /// What each change took, in milliseconds.
    times: Vec<f64>,
    /// Of these, deletions of ports that somebody was on.
    partings: Vec<f64>,
    visitors: usize,
}

/// What came of a company.
pub struct Played {
    /// What a change took, in milliseconds.
    pub median: f64,
    /// What the quickest deletion of a port took that somebody was on: who has to wait for a peer always does.
    pub parting: Option<f64>,
    /// Frames of those beside.
    pub lost: u64,
}

impl<'a> Stage<'a> {
    /// Searches for what the two ports carry, and has them carry a good part of it from then on.
    pub fn open(settings: &Settings, side: Side, dir: &Path, report: &'a mut Report) -> Result<Stage<'a>> {
        std::fs::create_dir_all(dir)?;
        let world = World::new(&side.settings(settings), dir, true)?;
        let ports = world.many_testpmd_ports(Kind::Server, 2)?;
        world.cross_connect(&ports)?;
        let guests = [
            Guest::connect(&ports[0].socket)?,
            Guest::connect(&ports[1].socket)?,
        ];
        for port in &ports {
            world.ovs.wait_link(&port.name, true, PATIENCE)?;
        }
        let mut stage = Stage {
            world,
            side,
            load: Traffic::start(guests, Ways::Both, NICE)?,
            report,
            company: "nobody",
            times: Vec::new(),
            partings: Vec::new(),
            visitors: 0,
        };
        stage.search()?;
        Ok(stage)
    }

    fn search(&mut self) -> Result<()> {
        wait::until_true("frames to arrive", PATIENCE, || {
            self.load.check()?;
            Ok(self.load.arrived() > 0)
        })?;
        let carried = self.carried(SEARCH)?;
        ensure!(self.load.lost() == 0, "frames are lost with nobody beside");
        let rate = carried * SHARE / 100;
        self.load.set_rate(rate / 2);
        std::thread::sleep(WHILE);
        self.load.take_wait();
        self.report.add(
            self.side,
            "frames a second at 80 % of what two ports carry".into(),
            "k/s",
            rate as f64 / 1e3,
        );
        self.load.check()
    }

    /// Frames a second in both directions.
    fn carried(&self, time: Duration) -> Result<u64> {
        let (start, before) = (Instant::now(), self.load.arrived());
        std::thread::sleep(time);
        let frames = self.load.arrived() - before;
        Ok(frames * 1_000_000 / u64::try_from(start.elapsed().as_micros())?)
    }

    /// Ports come and go in this company.
    pub fn play(&mut self, company: &'static str, play: fn(&mut Stage) -> Result<()>) -> Result<Played> {
        self.company = company;
        let before = self.load.lost();
        play(self).with_context(|| format!("beside {company}"))?;
        std::thread::sleep(WHILE);
        self.load.check()?;
        self.world.ovs.check_alive()?;
        let lost = self.load.lost() - before;
        self.add("frames lost", "", lost as f64);
        let median = Spread::of(self.times.drain(..)).median;
        let parting = self.partings.drain(..).reduce(f64::min);
        Ok(Played {
            median,
            parting,
            lost,
        })
    }

    fn add(&mut self, what: &str, unit: &'static str, value: f64) {
        self.report
            .add(self.side, format!("{}: {what}", self.company), unit, value);
    }

    /// Adds a port.
    pub fn add_port(&mut self, kind: Kind) -> Result<Port> {
        let port = self.next_port(kind);
        self.add_this(&port)?;
        Ok(port)
    }

    /// A port that is yet to be added.
    pub fn next_port(&mut self, kind: Kind) -> Port {
        self.visitors += 1;
        self.world.port(kind, &format!("visitor{}", self.visitors))
    }

    /// Adds it.
    pub fn add_this(&mut self, port: &Port) -> Result<()> {
        self.change(&format!("add-port br0 {} -- {}", port.name, port.vsctl_args()))
    }

    /// Deletes a port that somebody is on.
    pub fn delete(&mut self, port: &Port) -> Result<()> {
        self.change(&format!("del-port br0 {}", port.name))?;
        self.partings.extend(self.times.last());
        Ok(())
    }

    /// Adds and deletes a port on which nobody is.
    pub fn come_and_go(&mut self, kind: Kind) -> Result<()> {
        let port = self.add_port(kind)?;
        self.change(&format!("del-port br0 {}", port.name))
    }

    fn change(&mut self, command: &str) -> Result<()> {
        wait::check_interrupt()?;
        let start = Instant::now();
        self.world.ovs.vsctl(command)?;
        let time = start.elapsed().as_secs_f64() * 1e3;
        self.times.push(time);
        self.add("add-port, del-port", "ms", time);
        self.told_wait();
        Ok(())
    }

    /// Notes how long frames have waited since the last change.
    pub fn told_wait(&mut self) {
        let wait = self.load.take_wait();
        self.add("frames waited", "µs", wait.as_secs_f64() * 1e6);
    }

    /// A front-end on a port.
    pub fn front_end(&self, port: &Port) -> Result<Frontend> {
        match port.kind {
            Kind::Server => Frontend::connect(&port.socket, PATIENCE),
            Kind::Client => Listener::bind(&port.socket)?.accept(PATIENCE),
        }
    }

    /// A guest on a port.
    pub fn guest(&self, port: &Port) -> Result<Guest> {
        Guest::on(self.front_end(port)?.into())
    }

    /// Ends it: all that is under way must arrive.
    pub fn close(self) -> Result<World> {
        self.load.finish()?;
        Ok(self.world)
    }
}

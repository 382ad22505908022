//! A switch under load, and who is there: two innocent guests that outlive everything, testpmd that suffers, and a bridge for
//! ports that come and go. All the switch's files are on disks that can be filled and closed.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};

use super::super::world::{self, Kind, Port, World};
use super::super::Ctx;
use super::flood::{Flood, Moved};
use super::innocent::Innocent;
use super::talk::Account;
use crate::dice::Dice;
use crate::disk::Disk;
use crate::mounts::leave_mounts;
use crate::usage::Usage;

/// Below the run directory: what `other_config:vhost-sock-dir` says.
pub const SOCKETS: &str = "sockets";
/// Where ports come and go.
pub const VISITORS: &str = "br1";
/// A switch that does not answer for so long is stuck, on a busy machine, too.
const ANSWER: Duration = Duration::from_secs(10);
/// A blow comes some time after the load has begun.
const LOAD: Duration = Duration::from_millis(400);

/// Where blows fall.
pub struct Stage {
    pub world: World,
    pub dice: Dice,
    pub flood: Flood,
    /// How long somebody is stopped.
    pub stop: Duration,
    innocent: Innocent,
    usage: Usage,
    /// There has been no blow yet.
    fresh: bool,
    /// Deaths of the switch since the last account.
    deaths: u64,
    /// Since when it has not been known that the switch is configured.
    reborn: bool,
    visitors: u64,
    pub sockets: Disk,
    /// The last to go: files of all the others are on it.
    pub disk: Disk,
}

/// What came of a blow.
pub struct Outcome {
    /// Until everything worked again.
    pub recovery: Duration,
    /// For which frames of the innocent waited, at the longest.
    pub pause: Duration,
    /// Of the innocent: frames of this blow alone.
    pub account: Account,
    pub flood: Moved,
}

impl Stage {
    pub fn open(ctx: &Ctx, dice: Dice, stop: Duration) -> Result<Stage> {
        leave_mounts()?;
        let run = ctx.dir.join("run");
        fs::create_dir(&run)?;
        let disk = Disk::mount(&run)?;
        fs::create_dir(run.join(SOCKETS))?;
        let sockets = Disk::mount(&run.join(SOCKETS))?;

        let options = crate::ovs::Options {
            other_config: vec!["vhost-sock-dir=sockets"],
            // It tells of each poll thread's every queue whenever there is another port.
            arguments: vec!["-vdpif_netdev:file:warn"],
            ..world::options(&ctx.settings, false)
        };
        // testpmd needs the hugepages; without DPDK vswitchd starts in no time.
        let world = World::with(&ctx.settings, &ctx.dir, options, true)?;
        world.ovs.vsctl(&format!(
            "add-br {VISITORS} -- set Bridge {VISITORS} datapath_type=netdev"
        ))?;
        // Flows would die with the switch, what the database says does not.
        world
            .ovs
            .vsctl("set Bridge br0 flood_vlans=10,20 -- set Port br0 tag=99 -- set Port obs0 tag=99")?;
        let flood = [1, 2].map(|number| world.port(Kind::Client, &format!("flooded{number}")));
        world
            .ovs
            .vsctl("set Open_vSwitch . other_config:pmd-cpu-mask=0x1")?;
        let innocent = Innocent::open(&world)?;
        for port in &flood {
            add_to(&world, port, 20)?;
        }
        let mut flood = Flood::new(flood);
        flood.recover(&world, false)?;
        let mut stage = Stage {
            usage: Usage::settled(&world)?,
            fresh: true,
            world,
            dice,
            flood,
            stop,
            innocent,
            deaths: 0,
            reborn: false,
            visitors: 0,
            sockets,
            disk,
        };
        stage.recover()?;
        stage.flood.balance(&stage.world)?;
        Ok(stage)
    }

    /// Deals a blow, waits until all works again, and holds the account of it.
    pub fn play(&mut self, blow: fn(&mut Stage) -> Result<()>) -> Result<Outcome> {
        std::thread::sleep(self.dice.moment(LOAD));
        blow(self)?;
        let start = Instant::now();
        self.recover()?;
        let recovery = start.elapsed();
        let (account, pause) = self.innocent.balance(&self.world, self.deaths)?;
        let flood = self.flood.balance(&self.world)?;
        self.deaths = 0;
        self.check_usage()?;
        Ok(Outcome {
            recovery,
            pause,
            account,
            flood,
        })
    }

    /// Everything works: the switch answers and does what the database says, and packets of all move.
    fn recover(&mut self) -> Result<()> {
        if self.reborn {
            self.world.ovs.wait_configured()?;
        }
        self.world.ovs.check_alive()?;
        let asked = Instant::now();
        self.world.ovs.appctl("version")?;
        let took = asked.elapsed();
        ensure!(took < ANSWER, "the switch took {took:.0?} to answer");
        // Returns when the switch has done as it says.
        self.poke()?;
        if std::mem::take(&mut self.reborn) {
            // Packets of a new port are known a turn of the switch later than the port, and thrown away until then.
            self.poke()?;
            self.innocent.come_back()?;
        }
        self.innocent.wait_moved()?;
        self.flood.recover(&self.world, self.deaths > 0)
    }

    /// A change in the database that changes nothing: whatever could not be done before is tried again.
    fn poke(&self) -> Result<()> {
        let now = crate::shell::host_time()?;
        let set = format!("set Open_vSwitch . external_ids:soak={now}");
        self.world.ovs.vsctl(&set).map(drop)
    }

    /// Nothing has piled up, in this process or since the one before it: no descriptor since the beginning, no memory since
    /// the first blow.
    fn check_usage(&mut self) -> Result<()> {
        if std::mem::take(&mut self.fresh) {
            self.usage = self.usage.grown_to(Usage::settled(&self.world)?);
        }
        self.usage.check(&self.world)
    }

    /// `kill -9` of the switch.
    pub fn kill_switch(&mut self) -> Result<()> {
        self.world.ovs.kill_9()?;
        self.deaths += 1;
        self.flood.forget();
        Ok(())
    }

    /// Starts it again without waiting for anything.
    pub fn start_switch(&mut self) -> Result<()> {
        self.reborn = true;
        self.world.ovs.spawn_vswitchd()
    }

    /// A port that comes and goes: yet to be added.
    pub fn next_visitor(&mut self) -> Port {
        self.visitors += 1;
        let name = format!("visitor{}", self.visitors);
        match self.dice.one_of(&[Kind::Server, Kind::Client]) {
            Kind::Server => server_port(&self.world, &name),
            Kind::Client => self.world.port(Kind::Client, &name),
        }
    }

    /// A server port, yet to be added.
    pub fn next_server(&mut self) -> Port {
        self.visitors += 1;
        server_port(&self.world, &format!("visitor{}", self.visitors))
    }

    /// The innocent go on during the blow.
    pub fn check_innocent(&mut self) -> Result<()> {
        self.innocent.wait_moved()
    }

    /// A port of theirs.
    pub fn innocent_port(&self) -> &str {
        self.innocent.port()
    }

    /// Ends it.
    pub fn close(self) -> Result<()> {
        let Stage {
            world,
            innocent,
            flood,
            ..
        } = self;
        drop((innocent, flood));
        world.finish(ALLOWED)
    }
}

/// A server port in the directory of sockets, yet to be added.
pub fn server_port(world: &World, name: &str) -> Port {
    Port {
        name: name.into(),
        kind: Kind::Server,
        socket: world.ovs.dir().join(SOCKETS).join(name),
    }
}

/// Adds a port to br0, in this VLAN alone.
pub fn add_to(world: &World, port: &Port, vlan: u16) -> Result<()> {
    let (name, args) = (&port.name, port.vsctl_args());
    world
        .ovs
        .vsctl(&format!("add-port br0 {name} tag={vlan} -- {args}"))
        .map(drop)
}

/// What is warned of, on purpose.
const ALLOWED: &[&str] = &[
    "failed to connect: No such file or directory",
    "lines left out",
    "Read-only file system",
    "No space left on device",
];

//! Where attacks are played: one switch, an attacked port whose packets come back to it, two innocent guests beside it on the
//! same poll thread. After each attack the switch must be the same, and the port must work for an honest guest.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use ovs_vhost::model::{Driver, Virtqueue};
use ovs_vhost::virtio::features::{Features, VIRTIO_F_ACCESS_PLATFORM};
use serde_json::Value;

use super::super::world::{self, Kind, Port, World, PATIENCE};
use super::super::Ctx;
use super::guest::{bring_up, Guest, BARE};
use super::innocent::Traffic;
use crate::frontend::{Frontend, Listener};
use crate::unixctl::Unixctl;
use crate::wait;
use crate::wire::Wire;

/// The attacked port.
const ATTACKED: &str = "attacked";
/// The port says less if it has said too much, and says so.
const RATE_LIMIT: &str = "lines left out";
/// What begins a connection in the events of a port.
const CONNECTED: &str = "new device, handle is";

/// Where attacks are played.
pub struct Arena<'a> {
    ctx: &'a Ctx,
    pub world: World,
    control: Unixctl,
    port: Port,
    /// What the attacked port connects to, if it is a client.
    listener: Option<Listener>,
    /// What its guests negotiate because of where they are.
    pub platform: Features,
    traffic: Traffic,
    pid: u32,
    attacks: usize,
}

/// What happened to the attacked port.
#[derive(Clone, Debug)]
pub struct Event {
    pub level: String,
    pub text: String,
}

impl<'a> Arena<'a> {
    /// A switch with three ports, and the innocent in conversation. A client port takes offloads, too.
    pub fn open(ctx: &'a Ctx, kind: Kind) -> Result<Arena<'a>> {
        Arena::with(ctx, kind, Features::NONE)
    }

    /// The same with a client port, and every guest of it is behind an IOMMU.
    pub fn behind_iommu(ctx: &'a Ctx) -> Result<Arena<'a>> {
        Arena::with(ctx, Kind::Client, VIRTIO_F_ACCESS_PLATFORM)
    }

    fn with(ctx: &'a Ctx, kind: Kind, platform: Features) -> Result<Arena<'a>> {
        let iommu = platform.contains(VIRTIO_F_ACCESS_PLATFORM);
        let options = crate::ovs::Options {
            tso: kind == Kind::Client,
            other_config: Vec::from_iter(iommu.then_some("vhost-iommu-support=true")),
            ..world::options(&ctx.settings, false)
        };
        let world = World::with(&ctx.settings, &ctx.dir, options, false)?;
        world
            .ovs
            .vsctl("set Open_vSwitch . other_config:pmd-cpu-mask=0x1")?;
        let innocent = [
            world.add_port(Kind::Server, "innocent1")?,
            world.add_port(Kind::Server, "innocent2")?,
        ];
        let port = world.port(kind, ATTACKED);
        let listener = (kind == Kind::Client)
            .then(|| Listener::bind(&port.socket))
            .transpose()?;
        world.add_port(kind, ATTACKED)?;
        world.cross_connect(&innocent)?;
        world
            .ovs
            .ofctl(&format!("add-flow br0 in_port={ATTACKED},actions=in_port"))?;
        let wire = |port: &Port| Wire::new(Frontend::connect(&port.socket, PATIENCE)?.into());
        let mut traffic = Traffic::start([wire(&innocent[0])?, wire(&innocent[1])?])?;
        traffic.wait_more(100)?;
        let pid = world.ovs.pid()?;
        let control = Unixctl::connect(&world.ovs.control_socket())?;
        Ok(Arena {
            ctx,
            world,
            control,
            port,
            listener,
            platform,
            traffic,
            pid,
            attacks: 0,
        })
    }

    /// A connection to the attacked port.
    pub fn connect(&self) -> Result<Wire> {
        let frontend = match &self.listener {
            Some(listener) => listener.accept(PATIENCE)?,
            None => Frontend::connect(&self.port.socket, PATIENCE)?,
        };
        Wire::new(frontend.into())
    }

    /// A connection that nobody has taken yet. Server ports.
    pub fn knock(&self) -> Result<UnixStream> {
        Ok(UnixStream::connect(&self.port.socket)?)
    }

    /// A guest on the attacked port, and its connection.
    pub fn guest<D: Virtqueue>(&self, size: u16, features: Features) -> Result<(Guest<D>, Wire)> {
        let mut wire = self.connect()?;
        Ok((bring_up(size, features | self.platform, &mut wire)?, wire))
    }

    /// Plays one attack, or several of a kind; afterwards nothing may be the worse for it.
    pub fn play(&mut self, name: &str, attack: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.ctx.step(name);
        attack(self).with_context(|| name.to_owned())?;
        self.attacks += 1;
        self.is_unharmed().with_context(|| format!("after {name}"))
    }

    /// Counts more attacks than `play` could know of.
    pub fn count(&mut self, more: usize) {
        self.attacks += more;
    }

    /// The switch is the one that it was, the innocent go on, and an honest guest finds the port as new.
    fn is_unharmed(&mut self) -> Result<()> {
        self.world.ovs.check_alive()?;
        ensure!(self.world.ovs.pid()? == self.pid, "another process");
        self.traffic.check()?;
        let (mut guest, _wire) = self.guest::<Driver>(64, BARE)?;
        guest.echo()?;
        guest.check_canaries()
    }

    /// What a command has to tell of the attacked port.
    fn tell(&self, command: &str) -> Result<Value> {
        let text = self.control.run(command, &["--json", ATTACKED])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// What happened to the attacked port, by connection, oldest first.
    pub fn connections(&self) -> Result<Vec<Vec<Event>>> {
        let all = self.tell("vhost-user/events")?;
        let events = all[0]["events"].as_array().context("no events")?;
        // The beginning of the oldest may be forgotten.
        let mut connections = vec![Vec::new()];
        for event in events {
            let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            let event = Event {
                level: word("level"),
                text: word("text"),
            };
            if event.text.contains(CONNECTED) {
                connections.push(Vec::new());
            }
            if let Some(connection) = connections.last_mut() {
                connection.push(event);
            }
        }
        Ok(connections)
    }

    /// Waits for the last connection to have been warned of, in these words.
    pub fn wait_warning(&self, words: &str) -> Result<()> {
        wait::until_true(&format!("a warning with \"{words}\""), PATIENCE, || {
            Ok(self.warnings(words)? > 0)
        })
        .with_context(|| format!("{:#?}", self.connections()))
    }

    /// How often the last connection has been warned of, in these words.
    pub fn warnings(&self, words: &str) -> Result<usize> {
        Ok(count(&self.connections()?.pop().unwrap_or_default(), words))
    }

    /// How often any that is remembered has been: a client port that hung up has the next one already.
    pub fn warnings_of_all(&self, words: &str) -> Result<usize> {
        Ok(count(&self.connections()?.concat(), words))
    }

    /// What is told of a ring of the attacked port now.
    pub fn vring(&self, index: usize) -> Result<Value> {
        let all = self.tell("vhost-user/show")?;
        Ok(all[0]["vrings"][index].clone())
    }

    /// Waits until something was taken from the transmitq of a guest that has just come.
    pub fn wait_bursts(&self) -> Result<()> {
        wait::until_true("bursts", PATIENCE, || {
            Ok(self.vring(1)?["next"].as_u64().is_some_and(|next| next > 0))
        })
    }

    /// Whether the ring is said to be broken, in these words.
    pub fn is_broken(&self, index: usize, words: &str) -> Result<bool> {
        let told = self.vring(index)?;
        Ok(told["error"].as_str().is_some_and(|error| error.contains(words)))
    }

    /// Waits for that.
    pub fn wait_broken(&self, index: usize, words: &str) -> Result<()> {
        wait::until_true(&format!("vring {index} to break: {words}"), PATIENCE, || {
            self.is_broken(index, words)
        })
        .with_context(|| format!("{:?}", self.vring(index)))
    }

    /// A counter of the attacked port, as it is now.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let text = self
            .world
            .ovs
            .ofctl(&format!("-O OpenFlow14 dump-ports br0 {ATTACKED}"))?;
        let (_, rest) = text
            .split_once(&format!("{name}="))
            .with_context(|| format!("no counter {name} in {text}"))?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    }

    /// What the database says is wrong with the attacked port, for as long as it takes to say it.
    pub fn wait_status(&self, key: &str, words: &str) -> Result<()> {
        wait::until_true(&format!("{key} in the database"), PATIENCE, || {
            let status = self.world.ovs.status(ATTACKED)?;
            Ok(status.get(key).is_some_and(|value| value.contains(words)))
        })
    }

    /// How many frames the innocent have exchanged.
    pub fn wait_traffic(&mut self, count: u64) -> Result<()> {
        self.traffic.wait_more(count)
    }

    /// Ends the family: nothing of the innocent was lost, altered or doubled, and nobody else was warned of.
    pub fn close(self) -> Result<()> {
        let Arena {
            ctx,
            world,
            port,
            mut traffic,
            attacks,
            ..
        } = self;
        ctx.step("account of the innocent");
        traffic.wait_more(100)?;
        let frames = traffic.finish()?;
        ctx.result(&format!(
            "{attacks} attacks; beside them {frames} frames, none lost"
        ));
        let about = format!("({})", port.socket.display());
        world.finish(&[&about, RATE_LIMIT])
    }
}

/// How many of these warn in these words.
fn count(events: &[Event], words: &str) -> usize {
    let says = |event: &&Event| event.level == "WARN" && event.text.contains(words);
    events.iter().filter(says).count()
}

/// So many descriptors that can be closed and nothing else.
pub fn descriptors(count: usize) -> Result<Vec<OwnedFd>> {
    let file: OwnedFd = File::open("/dev/null")?.into();
    (0..count).map(|_| Ok(file.try_clone()?)).collect()
}

/// How long something goes on that has no natural end.
pub const A_WHILE: Duration = Duration::from_secs(1);

//! Who is on the ports, and has packets go through the switch.

use anyhow::{ensure, Context, Result};
use ovs_vhost::virtio::features::VHOST_F_LOG_ALL;

use super::load::Load;
use crate::cases::world::{Port, World, PATIENCE};
use crate::frontend::Listener;
use crate::quick_guest::{Guest, Kind};
use crate::testpmd::{Capacity, Device, Rings, Testpmd};
use crate::traffic::{Traffic, Ways};
use crate::wait;

/// Which peers.
pub enum Guests {
    /// DPDK's testpmd, with rings like these: packets go round between its ports.
    Testpmd {
        rings: Rings,
        /// Queue pairs of each port.
        queues: u16,
        capacity: Capacity,
    },
    /// Two of our own, for what testpmd does not do. They send all they can, and account for each frame.
    Quick { kind: Kind, ways: Ways },
}

/// Peers that are there.
pub trait Peers {
    /// Has packets go through the switch.
    fn start(&mut self, load: &Load) -> Result<()>;

    /// Has no more come, and those that are under way leave the rings. Fails if packets were lost, as far as peers know.
    fn stop(&mut self, world: &World) -> Result<()>;
}

impl Guests {
    /// Brings them up on these ports.
    pub fn come(&self, world: &World, ports: &[Port]) -> Result<Box<dyn Peers>> {
        match *self {
            Guests::Testpmd {
                rings,
                queues,
                capacity,
            } => start_testpmd(world, ports, rings, queues, capacity),
            Guests::Quick { kind, ways } => Ok(Box::new(Quick {
                guests: Some(start_quick(world, ports, kind)?),
                ways,
                traffic: None,
            })),
        }
    }
}

fn start_testpmd(
    world: &World,
    ports: &[Port],
    rings: Rings,
    queues: u16,
    capacity: Capacity,
) -> Result<Box<dyn Peers>> {
    for port in ports {
        world.ovs.vsctl(&format!(
            "set Interface {} mtu_request={}",
            port.name, capacity.mtu
        ))?;
    }
    let device = |port: &Port| Device {
        queues,
        ..port.device(rings)
    };
    let devices: Vec<Device> = ports.iter().map(device).collect();
    let testpmd = Testpmd::start_with(&devices, capacity, &world.dir)?;
    for port in ports {
        world.ovs.wait_link(&port.name, true, PATIENCE)?;
        world.check_rings(port, rings.packed, rings.in_order)?;
    }
    Ok(Box::new(testpmd))
}

impl Peers for Testpmd {
    fn start(&mut self, load: &Load) -> Result<()> {
        load.start(self)
    }

    /// Receives what is still in the rings and sends nothing.
    fn stop(&mut self, world: &World) -> Result<()> {
        self.command("stop", "Done.")?;
        self.command("set fwd rxonly", "Set rxonly packet forwarding mode")?;
        self.command("start", "packet forwarding")?;
        let mut before = None;
        wait::until_true("the rings to be empty", PATIENCE, || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let now = world.ovs.ofctl("dump-flows br0")?;
            let still = before.as_deref().is_some_and(|old| packets(old) == packets(&now));
            before = Some(now);
            Ok(still)
        })?;
        self.command("stop", "Done.").map(drop)
    }
}

/// The packet counts in a listing of flows.
fn packets(flows: &str) -> Vec<&str> {
    let count = |line| -> Option<&str> { str::split_once(line, "n_packets=")?.1.split(',').next() };
    flows.lines().filter_map(count).collect()
}

/// Two quick guests, or what they do.
struct Quick {
    guests: Option<[Guest; 2]>,
    ways: Ways,
    traffic: Option<Traffic>,
}

fn start_quick(world: &World, ports: &[Port], kind: Kind) -> Result<[Guest; 2]> {
    let mut guests = Vec::new();
    for port in ports {
        let front_end = Listener::bind(&port.socket)?.accept(PATIENCE)?;
        guests.push(Guest::of(kind, front_end.into()).with_context(|| port.name.clone())?);
        world.ovs.wait_link(&port.name, true, PATIENCE)?;
        // That it logs its log shows, and the database later.
        let wants = kind.features().without(VHOST_F_LOG_ALL).0;
        let has = world.features(port)?;
        ensure!(
            has & wants == wants,
            "{}: features {has:#x}, of {wants:#x}",
            port.name
        );
    }
    guests.try_into().ok().context("two ports")
}

impl Peers for Quick {
    fn start(&mut self, _: &Load) -> Result<()> {
        let guests = self.guests.take().context("guests that do nothing")?;
        let mut traffic = Traffic::start(guests, self.ways, 0)?;
        wait::until_true("the first frame", PATIENCE, || {
            traffic.check()?;
            Ok(traffic.arrived() > 0)
        })?;
        self.traffic = Some(traffic);
        Ok(())
    }

    fn stop(&mut self, _: &World) -> Result<()> {
        let traffic = self.traffic.take().context("guests that do something")?;
        let lost = traffic.lost();
        let guests = traffic.finish()?;
        ensure!(lost == 0, "{lost} frames were lost");
        // The second receives, whichever way frames go.
        guests[1].check_log()?;
        self.guests = Some(guests);
        Ok(())
    }
}

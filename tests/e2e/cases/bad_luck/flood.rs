//! testpmd floods two ports, and suffers for it. Between two stands of the counters every packet it sent was received by
//! it, or the switch counted it as dropped.

use std::fs;

use anyhow::{ensure, Context, Result};

use super::super::world::{Port, World, PATIENCE};
use crate::ovs::PortCounters;
use crate::testpmd::{Counters, Device, Rings, Testpmd};
use crate::wait;

/// One device with split rings, one with packed ones. The switch connects them, so each packet sees both.
const RINGS: [Rings; 2] = [Rings::MERGEABLE, Rings::PACKED_MERGEABLE];
/// Packets in each direction that show that it goes on.
const MOVED: u64 = 2_000;

pub struct Flood {
    ports: [Port; 2],
    testpmd: Option<Testpmd>,
    /// Where all counters stood while nothing moved, as long as the same switch and the same testpmd go on from there.
    stand: Option<Stand>,
}

#[derive(Clone, Copy, Debug)]
struct Stand {
    testpmd: [Counters; 2],
    switch: [PortCounters; 2],
}

/// What moved from one stand to another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    pub packets: u64,
    pub dropped: u64,
}

impl Flood {
    pub fn new(ports: [Port; 2]) -> Flood {
        Flood {
            ports,
            testpmd: None,
            stand: None,
        }
    }

    /// testpmd's process.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.testpmd.as_ref().context("no testpmd")?.pid())
    }

    /// `kill -9` of testpmd, which leaves its sockets.
    pub fn kill(&mut self) -> Result<()> {
        drop(self.testpmd.take());
        self.forget();
        for port in &self.ports {
            fs::remove_file(&port.socket)?;
        }
        Ok(())
    }

    /// The switch died, and its counters with it.
    pub fn forget(&mut self) {
        self.stand = None;
    }

    /// Starts testpmd if it is not there, and waits for packets in both directions. Its driver falls if a switch dies in the
    /// middle of what they say to each other: only if one `died` may testpmd have gone, too.
    pub fn recover(&mut self, world: &World, died: bool) -> Result<()> {
        loop {
            let moved = self.start_anew(world).and_then(|()| self.moves());
            let fell = match &mut self.testpmd {
                Some(testpmd) => !testpmd.is_alive()?,
                None => false,
            };
            if !(died && fell) {
                return moved;
            }
            self.kill()?;
        }
    }

    fn start_anew(&mut self, world: &World) -> Result<()> {
        if self.testpmd.is_some() {
            return Ok(());
        }
        let devices: Vec<Device> = self
            .ports
            .iter()
            .zip(RINGS)
            .map(|(port, rings)| port.device(rings))
            .collect();
        self.testpmd = Some(Testpmd::start(&devices, &world.dir)?);
        self.start()
    }

    fn moves(&mut self) -> Result<()> {
        let start = self.received()?;
        wait::until_true("the flood to move both ways", PATIENCE, || {
            let now = self.received()?;
            Ok(now.iter().zip(start).all(|(now, start)| now - start > MOVED))
        })
    }

    fn received(&mut self) -> Result<[u64; 2]> {
        Ok(self.counters()?.map(|counters| counters.rx))
    }

    fn counters(&mut self) -> Result<[Counters; 2]> {
        let testpmd = self.testpmd.as_mut().context("no testpmd")?;
        Ok([testpmd.counters(0)?, testpmd.counters(1)?])
    }

    fn command(&mut self, command: &str, end: &str) -> Result<()> {
        let testpmd = self.testpmd.as_mut().context("no testpmd")?;
        testpmd.command(command, end).map(drop)
    }

    /// Sends, from now on.
    pub fn start(&mut self) -> Result<()> {
        self.command("set fwd flowgen", "Set flowgen packet forwarding mode")?;
        self.command("start", "packet forwarding")
    }

    /// Sends nothing until it is told to start.
    pub fn rest(&mut self) -> Result<()> {
        self.command("stop", "Done.")
    }

    /// Stops sending, receives what is under way, and holds the account of all since the last stand. Then goes on.
    pub fn balance(&mut self, world: &World) -> Result<Moved> {
        self.rest()?;
        self.command("set fwd rxonly", "Set rxonly packet forwarding mode")?;
        self.command("start", "packet forwarding")?;
        let now = self.stand(world)?;
        self.rest()?;
        let moved = match self.stand.replace(now) {
            Some(before) => check(&before, &now)?,
            None => Moved::default(),
        };
        self.start()?;
        Ok(moved)
    }

    /// The counters, once all that was sent has been taken and all that was given has been fetched.
    fn stand(&mut self, world: &World) -> Result<Stand> {
        let names = [0, 1].map(|index| self.ports[index].name.clone());
        let names = [names[0].as_str(), names[1].as_str()];
        let mut before = self.counters()?;
        wait::until("the flood to stand still", PATIENCE, || {
            let switch = world.ovs.wait_counters_still(&names)?;
            let now = self.counters()?;
            let still = std::mem::replace(&mut before, now) == now;
            let [Some(a), Some(b)] = switch[..] else {
                anyhow::bail!("ports without counters");
            };
            Ok(still.then_some(Stand {
                testpmd: now,
                switch: [a, b],
            }))
        })
    }
}

/// Holds, for each direction, that all that was sent was taken, and all that was taken was received or counted as dropped.
fn check(before: &Stand, now: &Stand) -> Result<Moved> {
    let mut moved = Moved::default();
    for (from, to) in [(0, 1), (1, 0)] {
        let (testpmd, switch) = (
            |of: fn(&Counters) -> u64, at: usize| of(&now.testpmd[at]) - of(&before.testpmd[at]),
            |of: fn(&PortCounters) -> u64, at: usize| of(&now.switch[at]) - of(&before.switch[at]),
        );
        let sent = testpmd(|it| it.tx, from);
        let taken = switch(|it| it.rx_packets, from);
        let given = switch(|it| it.tx_packets, to);
        let dropped = switch(|it| it.tx_dropped, to);
        let received = testpmd(|it| it.rx + it.rx_lost, to);
        ensure!(
            sent == taken && taken == given + dropped && given == received,
            "of {sent} packets sent the switch took {taken}, gave {given} and dropped {dropped}, and {received} were received"
        );
        moved.packets += sent;
        moved.dropped += dropped;
    }
    Ok(moved)
}

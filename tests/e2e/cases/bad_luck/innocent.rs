//! The innocent on their ports: they come back to every new switch, and hold the account of what they sent each other.

use std::time::Duration;

use anyhow::{ensure, Context, Result};

use super::super::world::{Kind, Port, World, PATIENCE};
use super::stage::{add_to, server_port, SOCKETS};
use super::talk::{Account, Pair, Talk, WINDOW};
use crate::frontend::{Frontend, Listener};
use crate::quick_guest::Guest;
use crate::wait;

/// Frames that show that the poll thread moves.
const MOVED: u64 = 500;
/// The two.
pub struct Innocent {
    /// A server port, and one that connects.
    ports: [Port; 2],
    listener: Listener,
    /// None only while it is being halted.
    talk: Option<Talk>,
    /// As it was when the last blow had been dealt with.
    account: Account,
    /// The longest since then for which frames waited.
    pause: Duration,
    /// What the switch, in this life of it, has taken and could not give to them.
    dropped: u64,
}

impl Innocent {
    /// Both on ports of their own, and in conversation.
    pub fn open(world: &World) -> Result<Innocent> {
        let ports = [
            server_port(world, "innocent1"),
            Port {
                socket: world.ovs.dir().join(SOCKETS).join("innocent2.sock"),
                ..world.port(Kind::Client, "innocent2")
            },
        ];
        let listener = Listener::bind(&ports[1].socket)?;
        for port in &ports {
            add_to(world, port, 10)?;
        }
        let first = Frontend::connect(&ports[0].socket, PATIENCE)?;
        let second = listener.accept(PATIENCE)?;
        let pair = Pair::new([Guest::on(first.into())?, Guest::on(second.into())?]);
        for port in &ports {
            world.ovs.wait_link(&port.name, true, PATIENCE)?;
        }
        Ok(Innocent {
            ports,
            listener,
            talk: Some(Talk::start(pair)?),
            account: Account::default(),
            pause: Duration::ZERO,
            dropped: 0,
        })
    }

    /// Both come back to a new switch; nothing is sent before they have.
    pub fn come_back(&mut self) -> Result<()> {
        let mut pair = self.halt()?;
        let first = Frontend::connect(&self.ports[0].socket, PATIENCE)?;
        pair.come_back(0, first.into())?;
        // Switches that died young may have connected to the other, too.
        wait::until("the second innocent to come back", PATIENCE, || {
            let second = self.listener.accept(PATIENCE)?;
            Ok(pair.come_back(1, second.into()).ok())
        })?;
        // Nobody waits for what went with the old one.
        pair.settle(false)?;
        self.talk = Some(Talk::start(pair)?);
        Ok(())
    }

    fn halt(&mut self) -> Result<Pair> {
        let (pair, pause) = self.talk.take().context("nobody talks")?.halt()?;
        self.pause = self.pause.max(pause);
        Ok(pair)
    }

    /// Waits for them to exchange frames: the poll thread moves.
    pub fn wait_moved(&mut self) -> Result<()> {
        self.talk.as_mut().context("nobody talks")?.wait_more(MOVED)
    }

    /// The account since the last. Nothing is lost while the switch lives. If it died, only what was under way then may be
    /// lost: it was in its hands, or the next one could not give it to a guest that was not back yet, which the port counts, or
    /// was at making its port, of which the datapath keeps no account. What it had not given back comes again.
    pub fn balance(&mut self, world: &World, deaths: u64) -> Result<(Account, Duration)> {
        let mut pair = self.halt()?;
        let now = pair.settle(deaths == 0)?;
        let dropped = self.dropped(world)?;
        self.talk = Some(Talk::start(pair)?);
        // A new switch counts from 0.
        let before = std::mem::replace(&mut self.dropped, dropped);
        let account = Account {
            dropped: if deaths > 0 { dropped } else { dropped - before },
            ..now.since(&std::mem::replace(&mut self.account, now))
        };
        let under_way = if deaths > 0 { 2 * WINDOW } else { 0 };
        ensure!(
            account.lost <= under_way && account.twice <= deaths * under_way,
            "the switch died {deaths} times: {account:?}"
        );
        ensure!(deaths > 0 || account.dropped == 0, "{account:?}");
        Ok((account, std::mem::take(&mut self.pause)))
    }

    fn dropped(&self, world: &World) -> Result<u64> {
        let names = [0, 1].map(|index| self.ports[index].name.as_str());
        let counters = world.ovs.wait_counters_still(&names)?;
        Ok(counters.iter().flatten().map(|it| it.tx_dropped).sum())
    }

    /// One of the ports.
    pub fn port(&self) -> &str {
        &self.ports[0].name
    }
}

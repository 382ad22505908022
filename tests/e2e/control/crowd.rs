//! Many front-ends at once, each on a socket of its own: they listen, let their port connect, and ask for its features.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};

use crate::cases::world::{Kind, Port, World, PATIENCE};
use crate::frontend::{Frontend, Listener};
use crate::wait;

/// Front-ends that listen.
pub struct Crowd(Vec<Listener>);

/// Front-ends that were answered.
pub struct Connected {
    /// From the first answer to the last.
    pub span: Duration,
    /// When the last was.
    pub end: Instant,
    /// They are connected until this is dropped.
    _frontends: Vec<Frontend>,
}

impl Crowd {
    /// A front-end for each port, from now on.
    pub fn listen(ports: &[Port]) -> Result<Self> {
        ports
            .iter()
            .map(|port| Listener::bind(&port.socket))
            .collect::<Result<_>>()
            .map(Crowd)
    }

    /// Waits until every port has connected and answered.
    pub fn gather(&self) -> Result<Connected> {
        let mut waiting: Vec<&Listener> = self.0.iter().collect();
        let (mut frontends, mut answers) = (Vec::new(), Vec::new());
        let limit = Instant::now() + PATIENCE;
        while !waiting.is_empty() {
            ensure!(!wait::interrupted(), "interrupted");
            ensure!(Instant::now() < limit, "{} ports did not connect", waiting.len());
            for index in ready(&waiting)?.into_iter().rev() {
                let mut frontend = waiting.swap_remove(index).accept(PATIENCE)?;
                frontend.get_features()?;
                answers.push(Instant::now());
                frontends.push(frontend);
            }
        }
        let (first, last) = (answers.iter().min(), answers.iter().max());
        let end = last.copied().unwrap_or(limit);
        Ok(Connected {
            span: end - first.copied().unwrap_or(end),
            end,
            _frontends: frontends,
        })
    }
}

/// Which of them a port has connected to, within a tenth of a second.
fn ready(listeners: &[&Listener]) -> Result<Vec<usize>> {
    let mut polled: Vec<PollFd<'_>> = listeners
        .iter()
        .map(|listener| PollFd::new(*listener, PollFlags::IN))
        .collect();
    let tenth = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    poll(&mut polled, Some(&tenth))?;
    let ready = |(index, fd): (usize, &PollFd<'_>)| (!fd.revents().is_empty()).then_some(index);
    Ok(polled.iter().enumerate().filter_map(ready).collect())
}

/// Adds `count` client ports to a bridge, in one transaction.
pub fn add_ports(world: &World, bridge: &str, count: usize) -> Result<Vec<Port>> {
    let ports: Vec<Port> = (1..=count)
        .map(|number| world.port(Kind::Client, &format!("crowd{number}")))
        .collect();
    let commands: Vec<String> = ports
        .iter()
        .map(|port| format!("add-port {bridge} {} -- {}", port.name, port.vsctl_args()))
        .collect();
    world.ovs.vsctl(&commands.join(" -- "))?;
    Ok(ports)
}

//! The announcement by which a moved guest tells the switch where it is now: watched for at the observer, which gets it
//! because it is a broadcast.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::netns::{mac, NetNs, OBSERVER_END};
use crate::process::Process;
use crate::settings::tool;
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(30);

/// Who announces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// The guest: a gratuitous ARP.
    Guest,
    /// The switch's port: a RARP request.
    Port,
}

/// A capture of one party's announcements.
pub struct Watch(Process);

impl Watch {
    /// Starts watching for announcements of party `id`.
    pub fn start(ns: &NetNs, id: u8, dir: &Path) -> Result<Self> {
        let mut command = tool("tcpdump");
        let filter = format!("ether src {} and (arp or rarp)", mac(id));
        command.args(["-l", "-n", "-tt", "-i", OBSERVER_END, &filter]);
        ns.enter(&mut command);
        let mut watch = Watch(Process::spawn("tcpdump", command, &dir.join("tcpdump.out"))?);
        wait::until_true("tcpdump", PATIENCE, || {
            watch.0.check_alive()?;
            Ok(watch.0.printed().contains("listening on"))
        })?;
        Ok(watch)
    }

    /// The first announcement of this kind at or after `time` (seconds of the host's clock), if one came.
    pub fn first(&self, by: By, time: f64) -> Option<f64> {
        let kind = match by {
            By::Guest => "ARP, Request",
            By::Port => "ARP, Reverse Request",
        };
        let printed = self.0.printed();
        let mut times = printed
            .lines()
            .filter(|line| line.contains(kind))
            .filter_map(|line| line.split(' ').next()?.parse().ok());
        times.find(|seen| *seen >= time)
    }

    /// Waits for that.
    pub fn wait(&self, by: By, time: f64) -> Result<f64> {
        wait::until(&format!("an announcement by the {by:?}"), PATIENCE, || {
            Ok(self.first(by, time))
        })
    }
}

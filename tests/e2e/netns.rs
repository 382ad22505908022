//! A network namespace for the switch under test, and an observer in it.
//!
//! The namespace keeps the switch's own interfaces (br0 is a tap) away from the machine's. It is held open by a file
//! descriptor of the harness, so it outlives a killed vswitchd and ends with the harness, with nothing to clean up.
//!
//! The observer is one end of a veth pair whose other end is a port of the switch. The kernel behind it answers
//! pings. A guest that pings the observer uses its own vhost port and no other, which is what makes an outage
//! measurable per port.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use anyhow::{anyhow, Context, Result};

use crate::process;
use crate::settings::tool;

/// Number of the observer in the address plan of [`address`].
pub const OBSERVER: u8 = 254;
/// The observer's end that is a port of the switch.
pub const OBSERVER_PORT: &str = "obs0";
/// The end behind which the observer's kernel answers.
pub const OBSERVER_END: &str = "obs1";

/// Frames of every size in use are flooded to every port now and then; one that does not fit would be a WARN line.
const LARGE_MTU: u16 = 9702;

/// The internet protocol that a guest speaks to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4, which all parties speak.
    V4,
    /// IPv6, which only guests speak that were made so.
    V6,
}

impl Family {
    /// Address of party `id` in this family.
    pub fn address(self, id: u8) -> String {
        match self {
            Family::V4 => address(id),
            Family::V6 => format!("fd99::{id}"),
        }
    }
}

/// IPv4 address of party `id` (guest or observer).
pub fn address(id: u8) -> String {
    format!("10.99.0.{id}")
}

/// MAC address of party `id`.
pub fn mac(id: u8) -> String {
    format!("52:54:00:00:00:{id:02x}")
}

/// The namespace.
#[derive(Clone)]
pub struct NetNs(Arc<OwnedFd>);

impl NetNs {
    /// A fresh namespace with lo and the observer pair.
    pub fn create() -> Result<Self> {
        let ns = Self::bare()?;
        ns.add_observer().context("cannot set up the observer")?;
        Ok(ns)
    }

    /// A fresh namespace with lo, and no IPv6 (whose chatter would disturb exact byte counts).
    pub fn bare() -> Result<Self> {
        let made = std::thread::spawn(|| -> Result<OwnedFd> {
            // SAFETY: unshare(CLONE_NEWNET) moves only this short-lived thread; no memory is touched.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } == -1 {
                return Err(io::Error::last_os_error()).context("cannot make a network namespace");
            }
            for scope in ["all", "default"] {
                // Absent on a kernel without IPv6, which is as good.
                let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
            }
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        });
        let fd = made
            .join()
            .map_err(|_| anyhow!("the namespace thread panicked"))??;
        let ns = NetNs(Arc::new(fd));
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// Makes `command` run inside.
    pub fn enter(&self, command: &mut Command) {
        let ns = Arc::clone(&self.0);
        // SAFETY: between fork and exec only setns is called; the descriptor is kept open by the captured Arc.
        unsafe {
            command.pre_exec(move || match libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNET) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
    }

    /// Runs a tool inside and returns what it printed.
    pub fn run(&self, name: &str, args: &[&str]) -> Result<String> {
        let mut command = tool(name);
        command.args(args);
        self.enter(&mut command);
        process::run(command, Duration::from_secs(30))
    }

    /// A TCP connection from the observer to `target`; it stays in the namespace wherever it is used.
    pub fn connect(&self, target: SocketAddr) -> Result<TcpStream> {
        // A veth leaves checksums to a NIC that never comes: the switch would pass on what no guest accepts.
        self.run("ethtool", &["-K", OBSERVER_END, "tx", "off"])?;
        let ns = Arc::clone(&self.0);
        let connected = std::thread::spawn(move || -> Result<TcpStream> {
            // SAFETY: setns moves only this short-lived thread; no memory is touched.
            if unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNET) } == -1 {
                return Err(io::Error::last_os_error()).context("cannot enter the network namespace");
            }
            TcpStream::connect_timeout(&target, Duration::from_secs(30))
                .with_context(|| format!("cannot connect to {target}"))
        });
        connected
            .join()
            .map_err(|_| anyhow!("the connecting thread panicked"))?
    }

    /// Runs `ip` inside with space-separated `args`.
    pub fn ip(&self, args: &str) -> Result<()> {
        self.run("ip", &args.split(' ').collect::<Vec<_>>()).map(drop)
    }

    /// Adds a veth pair: one end called `here` in this namespace, the other called `there` in `other`, both up.
    pub fn add_veth(&self, here: &str, other: &NetNs, there: &str) -> Result<()> {
        let path = format!("/proc/{}/fd/{}", std::process::id(), other.0.as_raw_fd());
        self.ip(&format!(
            "link add {here} mtu {LARGE_MTU} type veth peer name {there} mtu {LARGE_MTU} netns {path}"
        ))?;
        self.ip(&format!("link set {here} up"))?;
        other.ip(&format!("link set {there} up"))
    }

    /// Makes the interface `device` party `id` of the address plan, who knows all guests.
    pub fn settle(&self, device: &str, id: u8) -> Result<()> {
        self.ip(&format!("link set {device} address {}", mac(id)))?;
        self.ip(&format!("address add {}/24 dev {device}", address(id)))?;
        self.ip(&format!("link set {device} up"))?;
        for guest in 1..=4 {
            self.ip(&format!(
                "neigh add {} lladdr {} dev {device} nud permanent",
                address(guest),
                mac(guest)
            ))?;
        }
        Ok(())
    }

    fn add_observer(&self) -> Result<()> {
        self.add_veth(OBSERVER_PORT, self, OBSERVER_END)?;
        self.settle(OBSERVER_END, OBSERVER)
    }
}

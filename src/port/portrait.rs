//! What a front-end is and has said, as far as people ask for it. The control thread paints one after each message;
//! main shows the last.

use std::fs;
use std::os::fd::AsFd;
use std::sync::Weak;
use std::time::Instant;

use rustix::net::sockopt::socket_peercred;

use crate::memory::MemTable;
use crate::vhost_user::ProtocolFeatures;
use crate::virtio::features::Features;
use crate::virtio::ring::RingAddrs;

/// Who is at the other end of the socket, as the kernel knows it: whoever connected, or began to listen.
#[derive(Clone, Debug)]
pub(super) struct Visitor {
    pub(super) since: Instant,
    pub(super) pid: i32,
    pub(super) uid: u32,
    /// The name of its program; empty if it is gone, or in another PID namespace.
    pub(super) command: String,
}

impl Visitor {
    pub(super) fn of(socket: impl AsFd, since: Instant) -> Option<Visitor> {
        let credentials = socket_peercred(socket).ok()?;
        let pid = credentials.pid.as_raw_nonzero().get();
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some(Visitor {
            since,
            pid,
            uid: credentials.uid.as_raw(),
            command: command.trim_end().to_owned(),
        })
    }
}

/// A front-end.
#[derive(Clone, Debug)]
pub(super) struct Portrait {
    pub(super) visitor: Option<Visitor>,
    pub(super) offered: Features,
    /// What the driver took of it, once it has said.
    pub(super) acknowledged: Option<Features>,
    pub(super) protocol: ProtocolFeatures,
    /// As its rings see it. What is mapped is not for a picture to keep.
    pub(super) memory: Weak<MemTable>,
    /// Whether all of it is there: who touches a page that is not sleeps until it comes (post-copy).
    pub(super) is_complete: bool,
    /// By index.
    pub(super) vrings: Vec<VringPortrait>,
}

/// One vring, as its front-end set it up.
#[derive(Clone, Copy, Debug)]
pub(super) struct VringPortrait {
    pub(super) size: Option<u16>,
    pub(super) addrs: Option<RingAddrs>,
    pub(super) enabled: bool,
    pub(super) running: bool,
}

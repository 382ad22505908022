//! A vhost-user port: configuration, life cycle, control thread. The one layer that knows both the
//! protocol ([`crate::vhost_user`]) and the rings ([`crate::datapath`]).
//!
//! Read in this order:
//!
//! * `options`, `lifecycle`, `tx_map`, `journal`: pure parts; time and bytes come in as arguments.
//! * `listener`, `connector`, `watch`: the socket file, from the server's and from the client's side.
//! * `device`: what a front-end's requests do to the port's rings and memory.
//! * `peer`: one port as the control thread sees it: life cycle, connection, session and device.
//! * `control`: the thread that serves every peer.
//! * `shared`: [`Port`], what the main, poll and control threads hold in common.

mod connector;
mod control;
mod device;
mod journal;
mod lifecycle;
mod listener;
mod options;
mod peer;
mod shared;
mod stats;
mod tx_map;
mod watch;

pub use listener::ListenError;
pub use options::{socket_directory, Mode, MTU_RANGE, TX_RETRIES_RANGE};
pub use shared::{Environment, Host, Port, PortError, Topology};
pub use stats::Stats;

/// Queue pairs a port can have (VHOST_MAX_QUEUE_PAIRS of the stock ports).
pub const MAX_QUEUE_PAIRS: u16 = 128;

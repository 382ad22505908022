//! A vhost-user port: configuration, life cycle, control thread. The one layer that knows both the
//! protocol ([`crate::vhost_user`]) and the rings ([`crate::datapath`]).
//!
//! Read in this order:
//!
//! * `options`, `lifecycle`, `tx_map`, `journal`, `events`: pure parts; time and bytes come in as arguments.
//! * `sock_dir`, `protection`, `door`, `entrance`: where server sockets are, who may connect to them, that nobody can before
//!   that is settled, and who is let in.
//! * `listener`, `connector`, `watch`: the socket file, from the server's and from the client's side; `address`: how the
//!   kernel is told of it; `denied`: why it would not have it.
//! * `iommu`: what a front-end's IOMMU is known to translate, and what is to be asked.
//! * `offer`: the features a port has; `pins`: those that an operator keeps back; `odds`: guests that run
//!   with these.
//! * `policing`: what of the packets a port lets pass, where the operator limits them.
//! * `device`: what a front-end's requests do to the port's rings and memory.
//! * `config_space`, `device_state`, `in_flight`: what of the device goes to the front-end, and comes back.
//! * `drain`: transmitqs that are started and disabled.
//! * `announce`: tells bridges of a guest that came here.
//! * `migration`: where its rings log what they write while the guest moves.
//! * `postcopy`: what they do while a guest runs whose memory is still arriving.
//! * `errand`: one of them carried out on a thread of its own, when it may have to wait for such memory.
//! * `attachment`: a front-end that is there: connection, session and device.
//! * `portrait`: what people are told of it; `describe`: how; `report`, `latency`, `ring_dump`: what is counted, measured, and
//!   seen in its rings.
//! * `tapped`: somebody looks at its packets.
//! * `peer`: one port as the control thread sees it: its life cycle, and its attachment while it has one.
//! * `control`: the thread that serves every peer; `fuzzing`: who takes its place; `thread`: what our threads have in common.
//! * `shared`: [`Port`], what the threads hold in common; `main_side`, `poll_side`, `control_side`: what each
//!   of them does with it.

mod address;
mod announce;
mod attachment;
mod config_space;
mod connector;
mod control;
mod control_side;
mod denied;
mod describe;
mod device;
mod device_state;
mod door;
mod drain;
mod entrance;
mod errand;
mod events;
#[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
mod fuzzing;
mod in_flight;
mod iommu;
mod journal;
mod latency;
mod lifecycle;
mod listener;
mod main_side;
mod migration;
mod odds;
mod offer;
mod options;
mod peer;
mod pins;
mod policing;
mod poll_side;
mod portrait;
mod postcopy;
mod protection;
mod reminder;
mod report;
mod ring_dump;
mod shared;
mod sock_dir;
mod stats;
mod tapped;
#[cfg(test)]
mod testing;
mod thread;
mod tx_map;
mod watch;

pub use describe::{indented, Topic};
#[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
pub(crate) use fuzzing::{parse_options, Stage};
pub use listener::ListenError;
pub use offer::{features, protocol_features, Switches};
pub use options::{Mode, MTU_RANGE, TX_RETRIES_RANGE};
pub use shared::{Environment, Host, Port, PortError, Settings, Topology};
pub use sock_dir::socket_directory;
pub use stats::Stats;

/// Queue pairs a port can have (VHOST_MAX_QUEUE_PAIRS of the stock ports).
pub const MAX_QUEUE_PAIRS: u16 = 128;

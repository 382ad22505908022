//! A port as the threads share it. Main configures it and asks how it is; poll threads burst through its
//! queues; the control thread starts and stops them. Each field says who writes it; what each thread does
//! with it is in `main_side`, `poll_side` and `control_side`.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::datapath::{Direction, Histogram, Queue, Wake, Waker};
use crate::qos::{Ingress, Outbound};
use crate::tap::Tap;
use crate::virtio::features::Features;

use super::announce::Guest;
use super::control::{Command, Control};
use super::door::Door;
use super::events::Events;
use super::latency::Measurement;
use super::listener::{ListenError, Listener};
use super::offer::{self, PortOffer, Switches};
use super::options::{self, Defaults, Mode, Options};
use super::policing::{Complaints, Guarded};
use super::portrait::Portrait;
use super::postcopy::{postcopy_obstacle, postcopy_support};
use super::report::Baseline;
use super::sock_dir::socket_directory;
use super::stats::Drops;
use super::tx_map::TxMap;
use super::MAX_QUEUE_PAIRS;

/// Ethernet header and one VLAN tag: what a frame may have beyond the MTU.
pub(super) const FRAME_OVERHEAD: u32 = 18;
const DEFAULT_MTU: u32 = 1500;

/// The netdev of a port, seen from here. Every method may be called by any thread and never blocks.
pub trait Host: Send + Sync {
    /// Link or status changed: the database and the poll threads should look again.
    fn changed(&self);
    /// The number of queues changed: [`Port::reconfigure`] should be called when it suits.
    fn request_reconfigure(&self);
    /// Remove this socket should the process end, however it ends.
    fn unlink_at_exit(&self, path: &Path);
    /// It is gone already.
    fn keep_at_exit(&self, path: &Path);
}

/// What the process and its database say for all ports, read once.
pub struct Settings<'a> {
    /// Where Open vSwitch keeps its sockets.
    pub rundir: &'a Path,
    /// Other directories that `vhost-sock-dir` may name: the administrator's word, not the database's.
    pub sock_dirs: &'a [PathBuf],
    /// `Open_vSwitch.other_config`.
    pub other_config: &'a [(&'a str, &'a str)],
    /// Its switches.
    pub switches: Switches,
    /// The process's memory is locked (`--mlockall`).
    pub memory_locked: bool,
}

/// What ports share: the directory of their sockets, what their options default to, the control thread.
pub struct Environment {
    sockets: PathBuf,
    defaults: Arc<Defaults>,
    control: Control,
}

impl Environment {
    /// Logs what it finds in the settings, and starts the control thread, in which `on_start` runs first. May take as
    /// long as a user's name takes to be looked up.
    pub fn new(settings: &Settings<'_>, on_start: impl FnOnce() + Send + 'static) -> io::Result<Environment> {
        let no_postcopy = postcopy_obstacle(settings.memory_locked);
        let switches = Switches {
            postcopy: postcopy_support(settings.switches.postcopy, no_postcopy.as_deref()),
            ..settings.switches
        };
        let sock_dir = options::value(settings.other_config, "vhost-sock-dir");
        let (sockets, level, line) = socket_directory(settings.rundir, settings.sock_dirs, sock_dir);
        log::log!(level, "{line}");
        let (defaults, complaints) = Defaults::parse(switches, no_postcopy, settings.other_config);
        complaints.iter().for_each(|complaint| log::warn!("{complaint}"));
        Ok(Environment {
            sockets,
            defaults: Arc::new(defaults),
            control: Control::start(on_start)?,
        })
    }
}

/// Names a port among all the process ever had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PortId(pub(super) u64);

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a port could not do what main asked.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The name would leave the socket directory.
    #[error("\"{0}\" is not a valid name for a vhost-user port. A valid name must not include '/' or '\\'")]
    BadName(String),
    /// Server mode: the socket could not be made.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The MTU is outside [`MTU_RANGE`](super::MTU_RANGE).
    #[error("unsupported MTU {0}")]
    BadMtu(u32),
}

impl PortError {
    /// The positive errno that Open vSwitch shows for it.
    pub fn errno(&self) -> i32 {
        match self {
            PortError::BadName(_) | PortError::BadMtu(_) => libc::EINVAL,
            PortError::Listen(error) => error.errno(),
        }
    }
}

/// What Open vSwitch has to arrange itself around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Receive queues to poll.
    pub n_rxq: u16,
    /// Transmit queues it may name.
    pub n_txq: u16,
    /// Bytes of Ethernet payload.
    pub mtu: u32,
    /// The NUMA node of the guest's rings, or of this process while there is no guest.
    pub numa: i32,
    /// A guest is or was there: packet memory is needed.
    pub attached: bool,
}

/// What `status` tells of a front-end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    /// Negotiated virtio features.
    pub features: Features,
    /// What the front-end said its MTU is, where that is negotiated.
    pub mtu: Option<u16>,
    /// Node of the first ring.
    pub numa: Option<i32>,
    /// Sizes of the vrings it spoke of, 0 where it gave none.
    pub vring_sizes: Vec<u16>,
}

/// A vhost-user port.
pub struct Port {
    pub(super) id: PortId,
    pub(super) name: String,
    pub(super) mode: Mode,
    pub(super) control: Control,
    pub(super) defaults: Arc<Defaults>,
    /// What holds from the next connection on, or at once. Main writes it.
    pub(super) options: Mutex<Options>,
    /// What it was made of, if nothing was wrong with that.
    pub(super) given: Mutex<Option<BTreeMap<String, String>>>,
    /// Server mode: the socket. Main takes it when the port goes.
    pub(super) door: Mutex<Option<Door>>,
    /// The socket's path, for log lines and `status`. Main writes it.
    pub(super) path: Mutex<String>,
    /// What is wrong with the options, and with the connection; for `status`.
    pub(super) complaints: Mutex<Vec<String>>,
    pub(super) trouble: Mutex<Option<String>>,
    /// None once the port is closed: the netdev must not be called any more.
    pub(super) host: Mutex<Option<Box<dyn Host>>>,

    /// By vring index: queue pair q is 2q (towards the guest) and 2q+1 (from it).
    pub(super) queues: Box<[Queue]>,
    /// Vrings that run and are enabled. The control thread writes it.
    pub(super) usable: Box<[AtomicBool]>,
    pub(super) tx_map: TxMap,
    /// Who was here last. The control thread writes it.
    pub(super) guest: Mutex<Option<Guest>>,
    /// What poll threads test once per send: a guest is there, and the port is up.
    pub(super) open: AtomicBool,
    pub(super) up: AtomicBool,
    pub(super) attached: AtomicBool,
    pub(super) poisoned: AtomicBool,
    /// Set by whoever finds a ring broken, until the control thread has looked.
    pub(super) faults: Arc<AtomicBool>,
    /// Set by whoever finds an address missing, likewise.
    pub(super) misses: Arc<AtomicBool>,
    pub(super) max_frame: AtomicU32,
    pub(super) tx_retries: AtomicU32,
    pub(super) drops: Drops,
    /// Queue pairs that the guest with the most of them had. The control thread writes it.
    pub(super) most_pairs: AtomicU16,
    /// Limits on what the guest sends, and on what it is sent. Main sets them.
    pub(super) ingress: Guarded<Ingress>,
    pub(super) egress: Guarded<Outbound>,
    pub(super) qos_complaints: Mutex<Complaints>,
    /// Front-ends that were not let in, for the user they ran as. The control thread counts.
    pub(super) refused: AtomicU64,

    /// The operator asked for an MTU, so there is one to tell front-ends.
    pub(super) mtu_requested: AtomicBool,
    /// What the next reconfigure makes live. Main and the control thread write it.
    pub(super) requested: Mutex<Topology>,
    pub(super) link: Mutex<Link>,
    /// The front-end, while there is one. The control thread writes it.
    pub(super) portrait: Mutex<Option<Arc<Portrait>>>,
    pub(super) events: Arc<Events>,
    /// What people see of the counters begins here. Main writes it.
    pub(super) baseline: Mutex<Baseline>,
    /// How long front-ends took to come up. The control thread writes it.
    pub(super) connects: Histogram,
    pub(super) latency: Mutex<Option<Measurement>>,
    /// Who looks at its packets.
    pub(super) tap: Arc<Tap>,
}

impl Port {
    /// Creates a port; in server mode its socket is there when this returns, and listens once the first options are set.
    /// Main; does not block.
    pub fn new(
        name: &str,
        mode: Mode,
        env: &Environment,
        host: Box<dyn Host>,
    ) -> Result<Arc<Port>, PortError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let door = match mode {
            Mode::Client => None,
            Mode::Server => Some(Door::new(bind(name, &env.sockets, &*host)?)),
        };
        let (faults, misses) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let waker: Waker = {
            let (faults, misses) = (Arc::clone(&faults), Arc::clone(&misses));
            let control = env.control.clone();
            Arc::new(move |wake| {
                let news = match wake {
                    Wake::Broken => &faults,
                    Wake::Missed => &misses,
                };
                // Release: pairs with the control thread's load; it then sees the fault or the miss itself.
                news.store(true, Ordering::Release);
                control.poke();
            })
        };
        let socket = door.as_ref().map(|door| door.file().path().to_owned());
        let path = socket
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default();
        let vrings = 2 * usize::from(MAX_QUEUE_PAIRS);
        let port = Arc::new(Port {
            id: PortId(NEXT.fetch_add(1, Ordering::Relaxed)),
            name: name.to_owned(),
            mode,
            control: env.control.clone(),
            defaults: Arc::clone(&env.defaults),
            options: Mutex::new(env.defaults.options.clone()),
            given: Mutex::default(),
            door: Mutex::new(door),
            path: Mutex::new(path),
            complaints: Mutex::default(),
            trouble: Mutex::default(),
            host: Mutex::new(Some(host)),
            queues: (0..vrings)
                .map(|index| Queue::new(direction(index), Arc::clone(&waker)))
                .collect(),
            usable: (0..vrings).map(|_| AtomicBool::new(false)).collect(),
            tx_map: TxMap::new(),
            guest: Mutex::default(),
            open: AtomicBool::new(false),
            up: AtomicBool::new(true),
            attached: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            faults,
            misses,
            max_frame: AtomicU32::new(DEFAULT_MTU + FRAME_OVERHEAD),
            tx_retries: AtomicU32::new(Options::default().tx_retries),
            drops: Drops::default(),
            most_pairs: AtomicU16::new(1),
            ingress: Guarded::default(),
            egress: Guarded::default(),
            qos_complaints: Mutex::default(),
            refused: AtomicU64::new(0),
            mtu_requested: AtomicBool::new(false),
            requested: Mutex::new(Topology {
                n_rxq: 1,
                n_txq: 1,
                mtu: DEFAULT_MTU,
                numa: 0,
                attached: false,
            }),
            link: Mutex::default(),
            portrait: Mutex::default(),
            events: Arc::default(),
            baseline: Mutex::default(),
            connects: Histogram::default(),
            latency: Mutex::default(),
            tap: Arc::default(),
        });
        env.control.send(Command::Add(Arc::clone(&port), socket));
        Ok(port)
    }

    /// Whether Open vSwitch's packets come and go with words on offloads.
    pub(super) fn speaks_offloads(&self) -> bool {
        offer::offloads(self.mode, self.defaults.options.switches)
    }

    /// What the next connection is offered.
    pub(super) fn next_offer(&self) -> PortOffer {
        let mtu = self.mtu_requested.load(Ordering::Relaxed);
        PortOffer::new(self.mode, &self.options.lock(), mtu)
    }

    pub(super) fn reopen(&self) {
        let open = self.up.load(Ordering::Relaxed)
            && self.attached.load(Ordering::Relaxed)
            && !self.poisoned.load(Ordering::Relaxed);
        self.open.store(open, Ordering::Relaxed);
    }

    pub(super) fn changed(&self) {
        if let Some(host) = &*self.host.lock() {
            host.changed();
        }
    }

    pub(super) fn request_reconfigure(&self) {
        if let Some(host) = &*self.host.lock() {
            host.request_reconfigure();
        }
    }
}

/// Even vrings take packets to the guest, odd ones bring them from it (VIRTIO 1.2, 5.1.2).
pub(super) fn direction(vring: usize) -> Direction {
    if vring % 2 == 0 {
        Direction::Enqueue
    } else {
        Direction::Dequeue
    }
}

fn bind(name: &str, directory: &Path, host: &dyn Host) -> Result<Listener, PortError> {
    if name.contains(['/', '\\']) {
        let error = PortError::BadName(name.to_owned());
        log::error!("{error}");
        return Err(error);
    }
    let path = directory.join(name);
    let listener = Listener::bind(&path).inspect_err(|e| log::error!("vhost-user port '{name}': {e}"))?;
    host.unlink_at_exit(&path);
    let shown = path.display();
    log::info!("VHOST_CONFIG: ({shown}) vhost-user server: socket created");
    log::info!("Socket {shown} created for vhost-user port {name}");
    log::info!("VHOST_CONFIG: ({shown}) binding succeeded");
    Ok(listener)
}

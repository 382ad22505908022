//! A port as the threads share it. Main configures it and asks how it is; poll threads burst through its
//! queues; the control thread starts and stops them. Each field says who writes it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::datapath::{Direction, Queue, RingFault, Sent, TxSlot, Waker};
use crate::virtio::features::Features;

use super::control::{Command, Control};
use super::listener::{ListenError, Listener, SocketFile};
use super::options::{socket_directory, Mode, Options, MTU_RANGE};
use super::stats::{Drops, Stats};
use super::tx_map::TxMap;
use super::MAX_QUEUE_PAIRS;

/// Ethernet header and one VLAN tag: what a frame may have beyond the MTU.
const FRAME_OVERHEAD: u32 = 18;
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

/// What ports share: the directory of their sockets and the control thread.
pub struct Environment {
    sockets: PathBuf,
    control: Control,
}

impl Environment {
    /// Reads where server sockets go (`rundir`, `other_config:vhost-sock-dir`), logs what it found, and
    /// starts the control thread, in which `on_start` runs first.
    pub fn new(
        rundir: &Path,
        vhost_sock_dir: Option<&str>,
        on_start: impl FnOnce() + Send + 'static,
    ) -> io::Result<Environment> {
        let (sockets, level, line) = socket_directory(rundir, vhost_sock_dir);
        log::log!(level, "{line}");
        Ok(Environment {
            sockets,
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
    /// The MTU is outside [`MTU_RANGE`].
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
    id: PortId,
    name: String,
    mode: Mode,
    control: Control,
    /// Server mode: the socket's file. Main takes it when the port goes.
    file: Mutex<Option<SocketFile>>,
    /// The socket's path, for log lines and `status`. Main writes it.
    path: Mutex<String>,
    /// What is wrong with the options, and with the connection; for `status`.
    complaints: Mutex<Vec<String>>,
    trouble: Mutex<Option<String>>,
    /// None once the port is closed: the netdev must not be called any more.
    host: Mutex<Option<Box<dyn Host>>>,

    /// By vring index: queue pair q is 2q (towards the guest) and 2q+1 (from it).
    queues: Box<[Queue]>,
    /// Vrings that run and are enabled. The control thread writes it.
    usable: Box<[AtomicBool]>,
    tx_map: TxMap,
    /// What poll threads test once per send: a guest is there, and the port is up.
    open: AtomicBool,
    up: AtomicBool,
    attached: AtomicBool,
    poisoned: AtomicBool,
    /// Set by whoever finds a ring broken, until the control thread has looked.
    faults: Arc<AtomicBool>,
    max_frame: AtomicU32,
    tx_retries: AtomicU32,
    drops: Drops,

    /// What the next reconfigure makes live. Main and the control thread write it.
    requested: Mutex<Topology>,
    link: Mutex<Link>,
}

impl Port {
    /// Creates a port; in server mode it listens when this returns. Main; does not block.
    pub fn new(
        name: &str,
        mode: Mode,
        env: &Environment,
        host: Box<dyn Host>,
    ) -> Result<Arc<Port>, PortError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let listener = match mode {
            Mode::Client => None,
            Mode::Server => Some(listen(name, &env.sockets, &*host)?),
        };
        let faults = Arc::new(AtomicBool::new(false));
        let waker: Waker = {
            let (faults, control) = (Arc::clone(&faults), env.control.clone());
            Arc::new(move || {
                // Release: pairs with the control thread's swap; it then sees the fault itself.
                faults.store(true, Ordering::Release);
                control.poke();
            })
        };
        let file = listener.as_ref().map(|l| l.file().clone());
        let path = file
            .as_ref()
            .map(|f| f.path().display().to_string())
            .unwrap_or_default();
        let vrings = 2 * usize::from(MAX_QUEUE_PAIRS);
        let port = Arc::new(Port {
            id: PortId(NEXT.fetch_add(1, Ordering::Relaxed)),
            name: name.to_owned(),
            mode,
            control: env.control.clone(),
            file: Mutex::new(file),
            path: Mutex::new(path),
            complaints: Mutex::default(),
            trouble: Mutex::default(),
            host: Mutex::new(Some(host)),
            queues: (0..vrings)
                .map(|index| Queue::new(direction(index), Arc::clone(&waker)))
                .collect(),
            usable: (0..vrings).map(|_| AtomicBool::new(false)).collect(),
            tx_map: TxMap::new(),
            open: AtomicBool::new(false),
            up: AtomicBool::new(true),
            attached: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            faults,
            max_frame: AtomicU32::new(DEFAULT_MTU + FRAME_OVERHEAD),
            tx_retries: AtomicU32::new(Options::default().tx_retries),
            drops: Drops::default(),
            requested: Mutex::new(Topology {
                n_rxq: 1,
                n_txq: 1,
                mtu: DEFAULT_MTU,
                numa: 0,
                attached: false,
            }),
            link: Mutex::default(),
        });
        env.control.send(Command::Add(Arc::clone(&port), listener));
        Ok(port)
    }

    // ---- Main: configuration -------------------------------------------------------------------

    /// Takes `Interface.options`. A bad value is logged, shown in `status`, and leaves its default in
    /// force: the port exists whatever its options say.
    pub fn set_config(&self, given: &[(&str, &str)]) {
        let (options, complaints) = Options::parse(self.mode, given);
        let complaints: Vec<String> = complaints.iter().map(ToString::to_string).collect();
        // Open vSwitch calls this at every change of the database: complain once.
        if *self.complaints.lock() != complaints {
            complaints
                .iter()
                .for_each(|c| log::warn!("port '{}': {c}", self.name));
            *self.complaints.lock() = complaints;
            self.changed();
        }
        if self.tx_retries.swap(options.tx_retries, Ordering::Relaxed) != options.tx_retries {
            let (path, retries) = (self.path(), options.tx_retries);
            log::info!("Max Tx retries for vhost device '{path}' set to {retries}");
        }
        if self.mode == Mode::Client {
            let path = options
                .server_path
                .as_ref()
                .map(|p| p.display().to_string())
                .unwrap_or_default();
            let before = std::mem::replace(&mut *self.path.lock(), path.clone());
            if before != path && !path.is_empty() {
                let name = &self.name;
                log::info!(
                    "vHost User device '{name}' created in 'client' mode, using client socket '{path}'"
                );
                log::info!("VHOST_CONFIG: ({path}) vhost-user client: socket created");
            }
            if before != path {
                self.control
                    .send(Command::Configure(self.id, options.server_path));
            }
        }
    }

    /// Asks for an MTU, which the next reconfigure makes live.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), PortError> {
        if !MTU_RANGE.contains(&mtu) {
            log::warn!("{}: unsupported MTU {mtu}", self.name);
            return Err(PortError::BadMtu(mtu));
        }
        let mut requested = self.requested.lock();
        if requested.mtu != mtu {
            requested.mtu = mtu;
            drop(requested);
            self.request_reconfigure();
        }
        Ok(())
    }

    /// Makes live what was asked for. No burst runs meanwhile: Open vSwitch has stopped them.
    pub fn reconfigure(&self) -> Topology {
        let topology = *self.requested.lock();
        self.max_frame
            .store(topology.mtu + FRAME_OVERHEAD, Ordering::Relaxed);
        self.tx_map.set_names(topology.n_txq);
        topology
    }

    /// Administratively up or down: down, nothing is sent to the guest.
    pub fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
        self.reopen();
    }

    /// The port is deleted. Called with netdev_mutex held, so it waits for nobody: its socket is gone
    /// when this returns, its connection is left to the control thread, its netdev is never called again.
    pub fn close(&self) {
        self.open.store(false, Ordering::Relaxed);
        if let Some(file) = self.file.lock().take() {
            file.remove();
            if let Some(host) = &*self.host.lock() {
                host.keep_at_exit(file.path());
            }
        }
        *self.host.lock() = None;
        self.control.send(Command::Remove(self.id));
    }

    /// A panic was caught in this port: it goes down and stays down; one line says so.
    pub fn poison(&self, what: &str) {
        if !self.poisoned.swap(true, Ordering::Relaxed) {
            log::error!(
                "port '{}': internal error: {what}; the port is down until it is deleted and added again",
                self.name
            );
            self.set_trouble(Some(format!("internal error: {what}")));
            self.detach();
            self.control.send(Command::Poisoned(self.id));
        }
    }

    /// Makes the control thread panic while it serves this port.
    #[cfg(feature = "fault-injection")]
    pub fn inject_control_panic(&self) {
        self.control.send(Command::Panic(self.id));
    }

    // ---- Main: questions -----------------------------------------------------------------------

    /// A guest is there and its first queue pair moves packets.
    pub fn carrier(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }

    /// Whether it makes sense to poll this queue. Queue 0 always does, as on stock ports.
    pub fn rxq_enabled(&self, queue: u16) -> bool {
        let from_guest = 2 * usize::from(queue) + 1;
        queue == 0
            || self
                .usable
                .get(from_guest)
                .is_some_and(|u| u.load(Ordering::Relaxed))
    }

    /// The queue of packets from the guest. Its address stays for the port's life.
    pub fn rx_queue(&self, queue: u16) -> Option<&Queue> {
        self.queues.get(2 * usize::from(queue) + 1)
    }

    /// The `status` column: the stock keys in the stock format, and beside them why something is wrong.
    pub fn status(&self, emit: &mut dyn FnMut(&str, &str)) {
        let connected = self.carrier();
        emit("mode", self.mode.name());
        emit("status", if connected { "connected" } else { "disconnected" });
        let wrong: Vec<String> = self
            .complaints
            .lock()
            .iter()
            .cloned()
            .chain(self.trouble.lock().clone())
            .collect();
        if !wrong.is_empty() {
            emit("error", &wrong.join("; "));
        }
        if !connected {
            return;
        }
        let link = self.link.lock().clone();
        emit("socket", &self.path());
        emit("features", &format!("0x{:016x}", link.features.0));
        if let Some(mtu) = link.mtu {
            emit("mtu", &mtu.to_string());
        }
        if let Some(numa) = link.numa {
            emit("numa", &numa.to_string());
        }
        emit(
            "num_of_vrings",
            &link.vring_sizes.len().next_multiple_of(2).to_string(),
        );
        for (index, size) in link.vring_sizes.iter().enumerate() {
            emit(&format!("vring_{index}_size"), &size.to_string());
        }
        for fault in self.all_faults() {
            emit(&format!("vring_{}_error", fault.vring), &fault.reason.to_string());
        }
    }

    /// The standard counters.
    pub fn stats(&self) -> Stats {
        Stats::of(self.live_queues(), &self.drops)
    }

    /// The named counters: the stock ones in the stock order.
    pub fn custom_stats(&self, emit: &mut dyn FnMut(&str, u64)) {
        super::stats::custom(self.live_queues(), &self.drops, emit);
    }

    fn live_queues(&self) -> &[Queue] {
        let pairs = self.requested.lock().n_rxq;
        self.queues.get(..2 * usize::from(pairs)).unwrap_or(&self.queues)
    }

    // ---- Poll threads --------------------------------------------------------------------------

    /// Sends packets to the guest by one of the queues Open vSwitch knows. What cannot be sent is
    /// counted; the caller frees all. Says whether it had to wait for another thread's burst.
    #[inline]
    pub fn send(&self, name: u16, slots: &[TxSlot<'_>]) -> bool {
        let Sent {
            packets, contended, ..
        } = self.deliver(name, slots);
        if packets < slots.len() {
            self.drops.unsent(slots.len() - packets);
        }
        contended
    }

    /// What reached the guest.
    fn deliver(&self, name: u16, slots: &[TxSlot<'_>]) -> Sent {
        let mut all = Sent::default();
        if !self.open.load(Ordering::Relaxed) {
            return all;
        }
        let Some(queue) = self
            .tx_map
            .queue(name)
            .and_then(|q| self.queues.get(2 * usize::from(q)))
        else {
            return all;
        };
        let (max_frame, retries) = (
            self.max_frame.load(Ordering::Relaxed),
            self.tx_retries.load(Ordering::Relaxed),
        );
        let mut tried = 0;
        // One run, unless a frame is too long for the MTU: then what lies between such frames.
        for run in slots
            .split(|slot| slot.len() > max_frame)
            .filter(|run| !run.is_empty())
        {
            let sent = queue.enqueue(run, retries);
            tried += run.len();
            all.packets += sent.packets;
            all.retries += sent.retries;
            all.contended |= sent.contended;
        }
        self.drops.retries(all.retries);
        self.drops.reasons(slots.len() - tried, tried - all.packets);
        all
    }

    // ---- The control thread --------------------------------------------------------------------

    pub(super) fn id(&self) -> PortId {
        self.id
    }

    /// The name Open vSwitch knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn path(&self) -> String {
        self.path.lock().clone()
    }

    /// A vring index is checked where it is decoded: it is below twice [`MAX_QUEUE_PAIRS`].
    pub(super) fn queue(&self, vring: u16) -> &Queue {
        &self.queues[usize::from(vring)]
    }

    /// The first queue pair of a front-end that spoke of `pairs` runs.
    pub(super) fn attach(&self, link: Link, pairs: u16) {
        let mut requested = self.requested.lock();
        let wanted = Topology {
            n_rxq: pairs.max(1),
            n_txq: pairs.max(1),
            mtu: requested.mtu,
            numa: link.numa.unwrap_or(requested.numa),
            attached: true,
        };
        let reconfigure = *requested != wanted;
        *requested = wanted;
        drop(requested);
        let news = std::mem::replace(&mut *self.link.lock(), link.clone()) != link;
        let first = !self.attached.swap(true, Ordering::Relaxed);
        self.reopen();
        if reconfigure {
            self.request_reconfigure();
        }
        if first || news {
            self.changed();
        }
    }

    /// The front-end is gone, or its first queue pair does not run any more.
    pub(super) fn detach(&self) {
        if self.attached.swap(false, Ordering::Relaxed) {
            self.reopen();
            self.changed();
        }
    }

    /// A vring runs and is enabled, or no more.
    pub(super) fn set_usable(&self, vring: u16, usable: bool) {
        let index = usize::from(vring);
        if self.usable[index].swap(usable, Ordering::Relaxed) == usable {
            return;
        }
        if vring % 2 == 0 {
            self.tx_map
                .rebuild(|q| self.usable[2 * usize::from(q)].load(Ordering::Relaxed));
        } else {
            // Poll threads read again which queues to poll.
            self.changed();
        }
    }

    /// What the connection suffers from, for `status`.
    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        if std::mem::replace(&mut *self.trouble.lock(), trouble.clone()) != trouble {
            self.changed();
        }
    }

    pub(super) fn has_faults(&self) -> bool {
        // Acquire: pairs with the waker's store.
        self.faults.load(Ordering::Acquire)
    }

    /// The vrings that are broken, and why. From here on a new one is news again.
    pub(super) fn take_faults(&self) -> Vec<RingFault> {
        self.faults.store(false, Ordering::Release);
        self.changed();
        self.all_faults()
    }

    fn all_faults(&self) -> Vec<RingFault> {
        self.queues.iter().filter_map(Queue::fault).collect()
    }

    fn reopen(&self) {
        let open = self.up.load(Ordering::Relaxed)
            && self.attached.load(Ordering::Relaxed)
            && !self.poisoned.load(Ordering::Relaxed);
        self.open.store(open, Ordering::Relaxed);
    }

    fn changed(&self) {
        if let Some(host) = &*self.host.lock() {
            host.changed();
        }
    }

    fn request_reconfigure(&self) {
        if let Some(host) = &*self.host.lock() {
            host.request_reconfigure();
        }
    }
}

/// Even vrings take packets to the guest, odd ones bring them from it (VIRTIO 1.2, 5.1.2).
fn direction(vring: usize) -> Direction {
    if vring % 2 == 0 {
        Direction::Enqueue
    } else {
        Direction::Dequeue
    }
}

fn listen(name: &str, directory: &Path, host: &dyn Host) -> Result<Listener, PortError> {
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

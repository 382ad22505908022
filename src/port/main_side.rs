//! A port as Open vSwitch's main thread uses it: configure, ask, delete. Nothing here waits for a peer.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use crate::datapath::Queue;

use super::control::Command;
use super::options::{Mode, Options, MTU_RANGE};
use super::shared::{Port, PortError, Topology, FRAME_OVERHEAD};
use super::stats::{self, Stats};

impl Port {
    /// Takes `Interface.options`. A bad value is logged, shown in `status`, and leaves its default in
    /// force: the port exists whatever its options say.
    pub fn set_config(&self, given: &[(&str, &str)]) {
        // Open vSwitch calls this at every change of the database. Where all was well, users are not looked up again.
        let copy = given
            .iter()
            .map(|(key, text)| (key.to_string(), text.to_string()));
        let copy: BTreeMap<String, String> = copy.collect();
        if self.given.lock().as_ref() == Some(&copy) {
            return;
        }
        let (options, complaints) = Options::parse(self.mode, given, &self.defaults);
        let mut complaints: Vec<String> = complaints.iter().map(ToString::to_string).collect();
        let offered = self.next_offer();
        *self.options.lock() = options.clone();
        complaints.extend(self.open(&options));
        *self.given.lock() = complaints.is_empty().then_some(copy);
        if self.next_offer() != offered && self.portrait.lock().is_some() {
            let name = &self.name;
            log::info!("port '{name}': it offers other features from the next connection on");
        }
        // Complain once.
        if *self.complaints.lock() != complaints {
            complaints
                .iter()
                .for_each(|c| log::warn!("port '{}': {c}", self.name));
            *self.complaints.lock() = complaints;
            self.changed();
        }
        if self.tx_retries.swap(options.tx_retries, Ordering::Relaxed) != options.tx_retries {
            let (name, retries) = (&self.name, options.tx_retries);
            log::info!("Max Tx retries for vhost device '{name}' set to {retries}");
        }
        self.set_egress_packets(options.egress);
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

    /// Server mode: settles who may connect, then lets front-ends in. Says what is wrong.
    fn open(&self, options: &Options) -> Vec<String> {
        let mut door = self.door.lock();
        let Some(door) = &mut *door else {
            return Vec::new();
        };
        let mut wrong: Vec<String> = door.protect(options.protection).into_iter().collect();
        match door.open() {
            Ok(Some(listener)) => self.control.send(Command::Listen(self.id, listener)),
            Ok(None) => {}
            Err(error) => wrong.push(error.to_string()),
        }
        wrong
    }

    /// Asks for an MTU, which the next reconfigure makes live.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), PortError> {
        if !MTU_RANGE.contains(&mtu) {
            let error = PortError::BadMtu(mtu);
            log::warn!("{}: {error}", self.name);
            return Err(error);
        }
        self.mtu_requested.store(true, Ordering::Relaxed);
        let mut requested = self.requested.lock();
        if requested.mtu != mtu {
            requested.mtu = mtu;
            drop(requested);
            self.request_reconfigure();
            self.control.send(Command::Reconfigured(self.id));
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
        self.tap.close();
        if let Some(door) = self.door.lock().take() {
            door.file().remove();
            if let Some(host) = &*self.host.lock() {
                host.keep_at_exit(door.file().path());
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
        for fault in self.queues.iter().filter_map(Queue::try_fault) {
            emit(&format!("vring_{}_error", fault.vring), &fault.reason.to_string());
        }
    }

    /// The standard counters.
    pub fn stats(&self) -> Stats {
        Stats::of(self.counted_queues(), &self.drops)
    }

    /// The named counters: the stock ones in the stock order.
    pub fn custom_stats(&self, emit: &mut dyn FnMut(&str, u64)) {
        stats::custom(self.counted_queues(), &self.drops, emit);
        emit(
            "ovs_vhost_refused_front_ends",
            self.refused.load(Ordering::Relaxed),
        );
    }

    /// All that ever had a ring: a guest with fewer queues takes nothing from the sums.
    pub(super) fn counted_queues(&self) -> &[Queue] {
        let pairs = self.most_pairs.load(Ordering::Relaxed);
        self.queues.get(..2 * usize::from(pairs)).unwrap_or(&self.queues)
    }
}

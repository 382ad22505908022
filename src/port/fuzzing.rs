//! A port without its control thread, for fuzzers: they do what that does, and when they like.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::datapath::Queue;
use crate::vhost_user::{Answer, BackendChannel, Message, Offer, Outcome, ProtocolFeatures, Session};

use super::device::PortDevice;
use super::errand::Desk;
use super::options::{Defaults, Mode, Options};
use super::shared::{Environment, Host, Port, Settings};
use super::thread;
use super::{Switches, MAX_QUEUE_PAIRS};

/// Everything that an operator can allow, but for post-copy: whoever touches a page that nobody brings waits for it.
const SWITCHES: Switches = Switches {
    tso: true,
    iommu: true,
    postcopy: false,
};

/// A netdev that nobody listens to.
struct Nobody;

impl Host for Nobody {
    fn changed(&self) {}
    fn request_reconfigure(&self) {}
    fn unlink_at_exit(&self, _: &Path) {}
    fn keep_at_exit(&self, _: &Path) {}
}

/// A session and its device, on a port that belongs to this thread.
pub(crate) struct Stage {
    port: Arc<Port>,
    desk: Desk,
    backend: Option<BackendChannel>,
}

impl Stage {
    /// A front-end has just connected, the first that the port ever had.
    pub(crate) fn new() -> Self {
        thread::survive_broken_pipes();
        let port = port();
        *port.guest.lock() = None;
        port.queues.iter().for_each(|queue| queue.learn_guest(false));
        let offered = port.next_offer();
        let offer = Offer {
            features: offered.features.0,
            protocol_features: offered.protocol.0,
            queue_pairs: MAX_QUEUE_PAIRS,
            mem_slots: 509,
        };
        Self {
            desk: Desk {
                session: Session::new(offer),
                device: PortDevice::new(Arc::clone(&port), offered),
            },
            port,
            backend: None,
        }
    }

    /// What a message leads to.
    pub(crate) fn handle(&mut self, message: Message) -> Outcome {
        let outcome = self.desk.handle(message);
        self.tend();
        outcome
    }

    /// A vring's queue.
    pub(crate) fn queue(&self, vring: u16) -> &Queue {
        self.port.queue(vring)
    }

    /// What the control thread does between two messages.
    pub(crate) fn tend(&mut self) {
        let device = &mut self.desk.device;
        if self.port.take_misses() {
            device.met_misses();
        }
        for (index, _) in device.idle_rings() {
            self.port.queue(index).discard();
        }
        if self.port.has_faults() {
            let faults = self.port.take_faults();
            faults
                .iter()
                .for_each(|fault| device.signal_error(usize::from(fault.vring)));
        }
        device.take_toggled();
        device.take_notes();
        device.iommu.take_notes();
        assert!(device.lost().is_none(), "nobody cut anything short");
        self.ask();
        self.listen();
    }

    /// Sends what the device has to ask.
    fn ask(&mut self) {
        let device = &mut self.desk.device;
        self.backend = device.take_backend().or(self.backend.take());
        let session = self.desk.session.protocol_features();
        let reply_ack = session.contains(ProtocolFeatures::REPLY_ACK);
        for request in device.iommu.take_outgoing() {
            let Some(channel) = &mut self.backend else { break };
            if channel.send(request, reply_ack).is_err() {
                self.backend = None;
                device.iommu.forget_questions();
            }
        }
    }

    /// Hears what it is answered.
    fn listen(&mut self) {
        while let Some(channel) = &mut self.backend {
            match channel.receive() {
                Ok(Answer::To(request, _)) => self.desk.device.answered(request),
                Ok(Answer::None) => break,
                Err(_) => {
                    self.backend = None;
                    self.desk.device.iommu.forget_questions();
                }
            }
        }
    }
}

/// This thread's port.
pub(super) fn port() -> Arc<Port> {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    thread_local! {
        static PORT: OnceCell<Arc<Port>> = const { OnceCell::new() };
    }
    let environment = ENVIRONMENT.get_or_init(|| {
        let settings = Settings {
            rundir: Path::new("/tmp"),
            sock_dirs: &[],
            other_config: &[],
            switches: SWITCHES,
            memory_locked: false,
        };
        Environment::new(&settings, || ()).expect("a control thread")
    });
    let create = || {
        let port = Port::new("fuzzed", Mode::Client, environment, Box::new(Nobody)).expect("a port");
        port.set_mtu(1500).expect("an MTU");
        port
    };
    PORT.with(|port| Arc::clone(port.get_or_init(create)))
}

/// What [`Options::parse`] makes of these pairs: path, retries, and what people are told.
pub(crate) fn parse_options(mode: Mode, given: &[(&str, &str)]) -> (Option<PathBuf>, u32, Vec<String>) {
    let (options, complaints) = Options::parse(mode, given, &Defaults::default());
    let complaints = complaints.iter().map(ToString::to_string).collect();
    (options.server_path, options.tx_retries, complaints)
}

//! What the tests of whole ports share: a port, the netdev it belongs to, and patience. Each program of tests compiles its
//! own copy, so what only some of them use is in the files beside this one.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ovs_vhost::model::Pool;
use ovs_vhost::port::{Environment, Host, Mode, Port, PortError, Settings, Switches};

/// Waits for `claim`; says which one did not come true.
pub fn eventually(what: &str, mut claim: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !claim() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The control thread is one for all tests of a program, as it is one for all ports; so a program always asks for the same.
pub fn environment(switches: Switches) -> &'static Environment {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        Environment::new(&settings(switches, &std::env::temp_dir()), || ()).expect("a control thread")
    })
}

/// A switch of which nothing but this is known.
pub fn settings(switches: Switches, rundir: &Path) -> Settings<'_> {
    Settings {
        rundir,
        sock_dirs: &[],
        other_config: &[],
        switches,
        memory_locked: false,
    }
}

/// A netdev that counts what it is told.
#[derive(Clone, Default)]
pub struct Netdev(pub Arc<Told>);

#[derive(Default)]
pub struct Told {
    pub changed: AtomicUsize,
    pub reconfigure: AtomicUsize,
    /// Calls after the port was closed. Nothing is asserted where they come: a panic there would end the port only.
    pub late: AtomicUsize,
    closed: AtomicBool,
}

impl Netdev {
    fn called(&self) {
        let late = usize::from(self.0.closed.load(Ordering::SeqCst));
        self.0.late.fetch_add(late, Ordering::SeqCst);
    }
}

impl Host for Netdev {
    fn changed(&self) {
        self.called();
        self.0.changed.fetch_add(1, Ordering::SeqCst);
    }
    fn request_reconfigure(&self) {
        self.called();
        self.0.reconfigure.fetch_add(1, Ordering::SeqCst);
    }
    fn unlink_at_exit(&self, _: &Path) {}
    fn keep_at_exit(&self, _: &Path) {}
}

/// A port that is closed when the test is over, as a netdev would be.
pub struct TestPort {
    port: Arc<Port>,
    pub netdev: Netdev,
}

impl TestPort {
    pub fn new(name: &str, mode: Mode, switches: Switches) -> TestPort {
        TestPort::of(environment(switches), name, mode)
    }

    pub fn of(environment: &Environment, name: &str, mode: Mode) -> TestPort {
        TestPort::try_of(environment, name, mode).expect("a port")
    }

    pub fn try_of(environment: &Environment, name: &str, mode: Mode) -> Result<TestPort, PortError> {
        let netdev = Netdev::default();
        let port = Port::new(name, mode, environment, Box::new(netdev.clone()))?;
        Ok(TestPort { port, netdev })
    }

    /// A server port that listens, and the path of its socket.
    pub fn server(name: &str, switches: Switches) -> (TestPort, PathBuf) {
        let name = format!("{name}-{}", std::process::id());
        let port = TestPort::new(&name, Mode::Server, switches);
        port.set_config(&[]);
        (port, std::env::temp_dir().join(name))
    }

    pub fn status(&self, key: &str) -> Option<String> {
        let mut found = None;
        self.port.status(&mut |k, v| {
            if k == key {
                found = Some(v.to_owned());
            }
        });
        found
    }

    pub fn connected(&self) -> bool {
        self.status("status").as_deref() == Some("connected")
    }

    /// One burst of what comes out of the guest on queue `queue` and passes its policer, announcements included.
    pub fn burst(&self, queue: u16) -> Vec<Vec<u8>> {
        let mut pool = Pool::new(32, 2048);
        let mut slots = pool.slots();
        let queue = self.rx_queue(queue).expect("a queue");
        let count = self.port.receive(queue, &mut slots, |_, _| false);
        let refused = self.police(&slots[..count]);
        let passed = (0..)
            .zip(&slots[..count])
            .filter(|(index, _)| refused >> index & 1 == 0);
        passed.map(|(_, slot)| slot.frame().to_vec()).collect()
    }
}

impl Deref for TestPort {
    type Target = Port;

    fn deref(&self) -> &Port {
        &self.port
    }
}

impl Drop for TestPort {
    fn drop(&mut self) {
        self.port.close();
        self.netdev.0.closed.store(true, Ordering::SeqCst);
    }
}

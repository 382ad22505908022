//! Where a port is made and visited, each step of which may fail.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, Context, Result};
use ovs_vhost::port::{Mode, Switches};

use crate::common::{environment, TestPort};
use crate::injector::on_main;

const SWITCHES: Switches = Switches {
    tso: false,
    iommu: true,
    postcopy: true,
};

/// What happens to a port between its creation and its end.
pub struct Life {
    pub name: &'static str,
    pub mode: Mode,
    /// Those who come, one after the other.
    pub visits: &'static [fn(&TestPort, UnixStream) -> Result<()>],
    /// Whether its packets are captured meanwhile.
    pub captured: bool,
}

/// Where a port is.
pub struct Site {
    directory: PathBuf,
    name: String,
    mode: Mode,
    /// Client mode: where its front-ends listen.
    listener: Option<UnixListener>,
}

impl Site {
    pub fn new(directory: &Path, name: &str, mode: Mode) -> Site {
        let mut site = Site {
            directory: directory.to_owned(),
            name: format!("{name}-{}", std::process::id()),
            mode,
            listener: None,
        };
        if mode == Mode::Client {
            let _ = fs::remove_file(site.socket());
            let listener = UnixListener::bind(site.socket()).expect("a socket");
            listener.set_nonblocking(true).expect("a listener");
            site.listener = Some(listener);
        }
        site
    }

    fn socket(&self) -> PathBuf {
        match self.mode {
            Mode::Client => self.directory.join(&self.name),
            Mode::Server => std::env::temp_dir().join(&self.name),
        }
    }

    /// Makes a port as Open vSwitch does.
    pub fn open(&self) -> Result<Arc<TestPort>> {
        let (name, mode) = (self.name.clone(), self.mode);
        let port = on_main(move || TestPort::try_of(environment(SWITCHES), &name, mode));
        let port = Arc::new(port?);
        self.configure(&port);
        Ok(port)
    }

    /// Says its options, as Open vSwitch does at every change of its database.
    fn configure(&self, port: &Arc<TestPort>) {
        let (port, socket, mode) = (Arc::clone(port), self.socket(), self.mode);
        on_main(move || match mode {
            Mode::Client => port.set_config(&[("vhost-server-path", socket.to_str().expect("UTF-8"))]),
            Mode::Server => port.set_config(&[("vhost-sock-mode", "0600")]),
        });
    }

    /// A front-end that has just connected.
    pub fn arrive(&self) -> Result<UnixStream> {
        let Some(listener) = &self.listener else {
            return UnixStream::connect(self.socket()).context("a front-end cannot connect");
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match listener.accept() {
                Ok((stream, _)) => return Ok(stream),
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => bail!("the port does not connect: {error}"),
            }
        }
    }

    pub fn visit(&self, port: &Arc<TestPort>, life: &Life) -> Result<()> {
        let capture = life
            .captured
            .then(|| Capture::start(port, &self.directory))
            .transpose()?;
        for visit in life.visits {
            visit(port, self.arrive()?)?;
        }
        capture.map_or(Ok(()), Capture::stop)
    }

    /// As a visit, however long it takes the port to find out that it can. What is left of an attempt may be in the way of the
    /// next one.
    pub fn visit_again(&self, port: &Arc<TestPort>, life: &Life) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.configure(port);
            let outcome = self.visit(port, life);
            if outcome.is_ok() || Instant::now() > deadline {
                return outcome;
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.listener.is_some() {
            let _ = fs::remove_file(self.socket());
        }
    }
}

/// A port's packets, written to a file.
struct Capture {
    port: Arc<TestPort>,
    directory: PathBuf,
}

impl Capture {
    fn start(port: &Arc<TestPort>, directory: &Path) -> Result<Capture> {
        let _ = fs::remove_file(directory.join("capture"));
        let capture = Capture {
            port: Arc::clone(port),
            directory: directory.to_owned(),
        };
        capture.tap("start", &["capture"])?;
        Ok(capture)
    }

    fn stop(self) -> Result<()> {
        self.tap("stop", &[])
    }

    fn tap(&self, verb: &'static str, options: &'static [&'static str]) -> Result<()> {
        let (port, directory) = (Arc::clone(&self.port), self.directory.clone());
        let words = [&["pcap", verb][..], options].concat();
        on_main(move || port.tap(&words, &directory))
            .map(drop)
            .map_err(|error| anyhow!("{verb}: {error}"))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.tap("stop", &[]);
    }
}

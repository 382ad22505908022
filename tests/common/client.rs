//! A client port with the socket that its front-end listens on.

use std::os::unix::net::{UnixListener, UnixStream};

use ovs_vhost::port::{Mode, Switches};

use crate::common::TestPort;

pub struct Client {
    pub port: TestPort,
    listener: UnixListener,
    _directory: tempfile::TempDir,
}

impl Client {
    pub fn new(name: &str, switches: Switches) -> Client {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let port = TestPort::new(name, Mode::Client, switches);
        port.set_config(&[("vhost-server-path", path.to_str().expect("UTF-8"))]);
        Client {
            port,
            listener,
            _directory: directory,
        }
    }

    /// The port's next connection.
    pub fn accept(&self) -> UnixStream {
        self.listener.accept().expect("the port connects").0
    }
}

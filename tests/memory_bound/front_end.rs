//! A front-end that says whatever it is told to, byte by byte.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ovs_vhost::model::GuestMemory;
use ovs_vhost::vhost_user::samples::{id, numbers, state, wire, NEED_REPLY, PLAIN};
use ovs_vhost::virtio::features::{Features, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_VERSION_1};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// For what takes moments; a connection that is full stays so.
const PATIENCE: Duration = Duration::from_secs(20);
const MOMENT: Duration = Duration::from_millis(100);

pub struct FrontEnd(UnixStream);

impl FrontEnd {
    pub fn new(stream: UnixStream) -> FrontEnd {
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        FrontEnd(stream)
    }

    /// Agrees on all that there is of the protocol, and on these features.
    pub fn negotiate(&mut self, features: Features) {
        let features = features | VIRTIO_F_VERSION_1 | VHOST_USER_F_PROTOCOL_FEATURES;
        let offered = self.ask("GET_PROTOCOL_FEATURES", &[], &[]);
        self.send("SET_PROTOCOL_FEATURES", &numbers(&[offered]));
        assert_eq!(self.ask("SET_FEATURES", &numbers(&[features.0]), &[]), 0);
    }

    fn send(&mut self, request: &str, payload: &[u8]) {
        let bytes = wire(id(request), PLAIN, payload);
        self.0.write_all(&bytes).expect("to send");
    }

    /// Lends the one region of `memory`.
    pub fn lend(&mut self, memory: &GuestMemory) {
        let (desc, file) = memory.regions().remove(0);
        let region = numbers(&[desc.guest.0, desc.size, desc.frontend.0, desc.mmap_offset]);
        let table = [state(1, 0), region].concat();
        assert_eq!(self.ask("SET_MEM_TABLE", &table, &[file.as_fd()]), 0);
    }

    /// The number that a request is answered with: 0, if it has none other and was carried out.
    pub fn ask(&mut self, request: &str, payload: &[u8], fds: &[BorrowedFd<'_>]) -> u64 {
        let bytes = wire(id(request), NEED_REPLY, payload);
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let sent = self.0.send_with_fds(&[&bytes[..]], &fds).expect("to send");
        assert_eq!(sent, bytes.len());
        let mut header = [0; 12];
        self.0.read_exact(&mut header).expect("an answer");
        let mut answer = vec![0; usize::from(header[8])];
        self.0.read_exact(&mut answer).expect("the rest of it");
        u64::from_ne_bytes(answer[..8].try_into().expect("a number"))
    }

    /// Asks for as long as there is somebody who listens, and reads no answer.
    pub fn never_read(&mut self, request: &str) {
        let questions = wire(id(request), PLAIN, &[]).repeat(64);
        self.0.set_write_timeout(Some(MOMENT)).expect("a time limit");
        while self.0.write_all(&questions).is_ok() {}
    }
}

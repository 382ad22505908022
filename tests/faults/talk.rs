//! A front-end that takes no for an answer: whatever a port does to it comes back as an error, and soon.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use ovs_vhost::datapath::RingConfig;
use ovs_vhost::memory::RegionDesc;
use rustix::net::{recv, RecvFlags};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::wire::{message, VERSION};

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_LOG_FD: u32 = 7;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SET_BACKEND_REQ_FD: u32 = 21;
pub const IOTLB_MSG: u32 = 22;
pub const POSTCOPY_ADVISE: u32 = 28;
pub const POSTCOPY_LISTEN: u32 = 29;
pub const POSTCOPY_END: u32 = 30;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;
pub const SET_DEVICE_STATE_FD: u32 = 42;
pub const CHECK_DEVICE_STATE: u32 = 43;

const NEED_REPLY: u32 = 1 << 3;
const HEADER: usize = 12;
/// Nothing that a port waits for takes as long.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

pub fn state(index: u32, num: u32) -> Vec<u8> {
    [index.to_ne_bytes(), num.to_ne_bytes()].concat()
}

pub fn region(desc: &RegionDesc) -> Vec<u8> {
    numbers(&[desc.guest.0, desc.size, desc.frontend.0, desc.mmap_offset])
}

/// A connection to a port.
pub struct Talk(UnixStream);

impl Talk {
    pub fn on(stream: UnixStream) -> Result<Talk> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Talk(stream))
    }

    /// Says something that is not to be answered.
    pub fn tell(&mut self, request: u32, payload: &[u8], fds: &[RawFd]) -> Result<()> {
        self.send(request, VERSION, payload, fds)
    }

    /// Says something, and hears that it was done.
    pub fn ask(&mut self, request: u32, payload: &[u8], fds: &[RawFd]) -> Result<()> {
        self.send(request, VERSION | NEED_REPLY, payload, fds)?;
        let (answer, _) = self.reply(request)?;
        ensure!(
            answer == numbers(&[0]),
            "request {request} was refused: {answer:?}"
        );
        Ok(())
    }

    /// Asks for something.
    pub fn get(&mut self, request: u32, payload: &[u8], fds: &[RawFd]) -> Result<(Vec<u8>, Option<OwnedFd>)> {
        self.tell(request, payload, fds)?;
        self.reply(request)
    }

    /// Asks for a number.
    pub fn number(&mut self, request: u32, payload: &[u8], fds: &[RawFd]) -> Result<u64> {
        let (answer, _) = self.get(request, payload, fds)?;
        let bytes = answer.try_into();
        bytes
            .map(u64::from_ne_bytes)
            .map_err(|answer: Vec<u8>| anyhow::anyhow!("request {request}: {answer:?}"))
    }

    /// Waits until `claim` is true, as long as the port is there.
    pub fn wait(&mut self, what: &str, mut claim: impl FnMut(&mut Talk) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !claim(self)? {
            let end = recv(&self.0, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT);
            ensure!(!matches!(end, Ok((_, 0))), "hung up on instead of {what}");
            ensure!(Instant::now() < deadline, "waited in vain: {what}");
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// Starts a ring that a driver describes. `addresses` are those of its parts as the front-end names them.
    pub fn start_ring(
        &mut self,
        ring: &RingConfig,
        addresses: [u64; 3],
        kick: &OwnedFd,
        say: fn(&mut Talk, u32, &[u8], &[RawFd]) -> Result<()>,
    ) -> Result<()> {
        let index = u32::from(ring.index);
        let [desc, driver, device] = addresses;
        let call = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK)?;
        say(self, SET_VRING_NUM, &state(index, ring.size.into()), &[])?;
        say(self, SET_VRING_BASE, &state(index, 0), &[])?;
        let places = numbers(&[desc, device, driver, 0]);
        say(self, SET_VRING_ADDR, &[state(index, 0), places].concat(), &[])?;
        let which = numbers(&[index.into()]);
        say(self, SET_VRING_CALL, &which, &[call.as_raw_fd()])?;
        say(self, SET_VRING_ERR, &which, &[call.as_raw_fd()])?;
        say(self, SET_VRING_KICK, &which, &[kick.as_raw_fd()])?;
        say(self, SET_VRING_ENABLE, &state(index, 1), &[])
    }

    fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) -> Result<()> {
        let bytes = message(request, flags, payload);
        let sent = self.0.send_with_fds(&[&bytes[..]], fds);
        let sent = sent.with_context(|| format!("request {request}"))?;
        ensure!(sent == bytes.len(), "request {request}: {sent} bytes were taken");
        Ok(())
    }

    fn reply(&mut self, request: u32) -> Result<(Vec<u8>, Option<OwnedFd>)> {
        let mut header = [0; HEADER];
        let (len, file) = self
            .0
            .recv_with_fd(&mut header)
            .with_context(|| format!("reply to {request}"))?;
        ensure!(len > 0, "hung up on instead of a reply to {request}");
        self.0.read_exact(&mut header[len..])?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        ensure!(word(0) == request, "a reply to {} instead of {request}", word(0));
        let mut payload = vec![0; usize::try_from(word(8))?];
        self.0.read_exact(&mut payload)?;
        Ok((payload, file.map(OwnedFd::from)))
    }
}

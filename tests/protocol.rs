//! The protocol against front-ends that were written by others: rust-vmm's `Frontend`, and the order of
//! messages that QEMU 7.2 was seen to send. Both speak over a socket pair to a session with a device that
//! checks and records what it is asked.

#[path = "common/wire.rs"]
mod wire;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ovs_vhost::memory::{FrontendAddr, RegionDesc};
use ovs_vhost::vhost_user::{
    Connection, Device, Next, Offer, ProtocolFeatures, Received, Refusal, Regions, Request, Response, Session,
};
use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vmm_sys_util::tempfile::TempFile;

use wire::{message, reply, VERSION};

const OFFER: Offer = Offer {
    features: 0xd_7c66_a7cb,
    protocol_features: ProtocolFeatures::SUPPORTED.0,
    queue_pairs: 8,
    mem_slots: 509,
};

/// Writes down each request in a line, and proves that descriptors are the ones that were sent.
#[derive(Default)]
struct Recorder {
    log: Vec<String>,
    status: u8,
    postcopy: bool,
}

/// A region as a back-end in post-copy answers it: this one has its memory where the guest sees it.
fn at_home(desc: &RegionDesc) -> RegionDesc {
    RegionDesc {
        frontend: FrontendAddr(desc.guest.0),
        ..*desc
    }
}

/// The first bytes of a region, read through its descriptor at its offset.
fn peek(fd: OwnedFd, offset: u64) -> String {
    let mut bytes = [0; 4];
    File::from(fd)
        .read_exact_at(&mut bytes, offset)
        .expect("a file that can be read");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What the front-end has put into an eventfd.
fn drain(fd: Option<OwnedFd>) -> Option<u64> {
    let mut count = [0; 8];
    File::from(fd?)
        .read_exact(&mut count)
        .expect("an eventfd that was signalled");
    Some(u64::from_ne_bytes(count))
}

/// Puts a number into the front-end's eventfd.
fn signal(fd: Option<OwnedFd>, count: u64) -> bool {
    fd.is_some_and(|fd| File::from(fd).write_all(&count.to_ne_bytes()).is_ok())
}

impl Device for Recorder {
    fn handle(&mut self, request: Request) -> Result<Response, Refusal> {
        let mut response = Response::Done;
        let line = match request {
            Request::SetMemTable(regions) => {
                if self.postcopy {
                    let addresses = regions.iter().map(|(desc, _)| at_home(desc)).collect();
                    response = Response::Regions(Regions::Table(addresses));
                }
                let regions = regions.into_iter().map(|(desc, fd)| {
                    format!(
                        " {:#x}+{:#x}={}",
                        desc.guest.0,
                        desc.size,
                        peek(fd, desc.mmap_offset)
                    )
                });
                format!("mem table{}", regions.collect::<String>())
            }
            Request::AddMemReg(desc, fd) => {
                if self.postcopy {
                    response = Response::Regions(Regions::One(at_home(&desc)));
                }
                format!(
                    "add {:#x}+{:#x}={}",
                    desc.guest.0,
                    desc.size,
                    peek(fd, desc.mmap_offset)
                )
            }
            Request::RemMemReg(desc) => format!("rem {:#x}+{:#x}", desc.guest.0, desc.size),
            Request::SetVringNum { num, .. } if !num.is_power_of_two() => {
                return Err(Refusal::new(format!("{num} descriptors are no power of two")))
            }
            Request::SetVringNum { index, num } => format!("num {index} {num}"),
            Request::SetVringAddr(addr) => {
                let log = addr.log().map(|log| format!(" log {:#x}", log.0));
                format!(
                    "addr {} {:#x} {:#x} {:#x}{}",
                    addr.index,
                    addr.desc.0,
                    addr.avail.0,
                    addr.used.0,
                    log.unwrap_or_default()
                )
            }
            Request::SetVringBase { index, base } => format!("base {index} {base:#x}"),
            Request::GetVringBase { index } => {
                response = Response::VringState {
                    index,
                    num: 0x8000_0007,
                };
                format!("stop {index}")
            }
            Request::SetVringKick { index, fd } => format!("kick {index} {:?}", drain(fd)),
            Request::SetVringCall { index, fd } => format!("call {index} {}", signal(fd, 5)),
            Request::SetVringErr { index, fd } => format!("err {index} {}", signal(fd, 6)),
            Request::SetVringEnable { index, enable } => format!("enable {index} {enable}"),
            Request::SetBackendReqFd(fd) => format!("backend channel {:?}", drain(Some(fd))),
            Request::Iotlb(request) => format!("iotlb {request:?}"),
            Request::SetStatus(status) => {
                self.status = status;
                format!("status {status:#x}")
            }
            Request::GetStatus => {
                response = Response::U64(self.status.into());
                "status?".to_owned()
            }
            Request::SetLogBase { size, offset, fd } => {
                format!("log {size:#x} at {offset:#x}={}", peek(fd, offset))
            }
            Request::SetLogFd(fd) => format!("log fd {}", signal(Some(fd), 7)),
            Request::SetFeatures(bits) => format!("features {bits:#x}"),
            Request::GetInflightFd {
                num_queues,
                queue_size,
                ..
            } => format!("inflight? {num_queues} {queue_size}"),
            Request::SetInflightFd(desc, _) => format!("inflight {desc:?}"),
            Request::GetConfig { offset, size, .. } => format!("config? {offset} {size}"),
            Request::SetConfig { offset, bytes, .. } => format!("config {offset} {bytes:?}"),
            Request::SetDeviceStateFd(transfer, _) => format!("state {transfer:?}"),
            Request::CheckDeviceState => "state?".to_owned(),
            Request::SetOwner => "owner".to_owned(),
            Request::ResetOwner => "reset owner".to_owned(),
            Request::ResetDevice => "reset device".to_owned(),
            Request::SetMtu(mtu) => format!("mtu {mtu}"),
            Request::SendRarp(mac) => format!("rarp {mac:02x?}"),
            Request::PostcopyAdvise => {
                response = Response::Fd(memory(&[(0, b"page")]).into());
                "advise".to_owned()
            }
            Request::PostcopyListen => {
                self.postcopy = true;
                "listen".to_owned()
            }
            Request::PostcopyAck => "ack".to_owned(),
            Request::PostcopyEnd => {
                self.postcopy = false;
                response = Response::U64(0);
                "end".to_owned()
            }
        };
        self.log.push(line);
        Ok(response)
    }
}

/// How a connection went: what the device was asked, and why it ended unless the front-end hung up.
type Record = (Vec<String>, Option<String>);

/// Serves one connection on a thread of its own until it ends.
fn serve() -> (UnixStream, JoinHandle<Record>) {
    let (peer, ours) = UnixStream::pair().expect("a socket pair");
    peer.set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a timeout");
    let backend = thread::spawn(move || {
        let mut connection = Connection::new(ours);
        let mut session = Session::new(OFFER);
        let mut device = Recorder::default();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            assert!(Instant::now() < deadline, "the front-end is stuck");
            let message = match connection.receive().expect("well-formed bytes") {
                Received::Message(message) => message,
                Received::Pending => {
                    thread::sleep(Duration::from_micros(200));
                    continue;
                }
                Received::Closed => return (device.log, None),
            };
            let outcome = session.handle(message, &mut device);
            if let Some(reply) = outcome.reply {
                let sent = connection.send_with(&reply, outcome.fd);
                sent.expect("a front-end that reads");
            }
            if outcome.next == Next::Close {
                return (device.log, outcome.error.map(|error| error.to_string()));
            }
        }
    });
    (peer, backend)
}

fn finish(backend: JoinHandle<Record>) -> Record {
    backend.join().expect("a back-end that does not panic")
}

/// Guest memory with a mark at each of `marks`.
fn memory(marks: &[(u64, &[u8; 4])]) -> File {
    let file = TempFile::new().expect("a temporary file").into_file();
    for (offset, mark) in marks {
        file.write_all_at(*mark, *offset).expect("to write");
    }
    file
}

fn region(file: &File, guest: u64, size: u64, offset: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: guest,
        memory_size: size,
        userspace_addr: 0x7f00_0000_0000 + guest,
        mmap_offset: offset,
        mmap_handle: file.as_raw_fd(),
    }
}

fn signalled(count: u64) -> EventFd {
    let event = EventFd::new(0).expect("an eventfd");
    event.write(count).expect("to signal");
    event
}

/// A rust-vmm front-end that has negotiated everything both sides know.
fn frontend(peer: UnixStream, need_reply: bool) -> Frontend {
    let mut frontend = Frontend::from_stream(peer, 16);
    let features = frontend.get_features().expect("features");
    assert_eq!(features, OFFER.features);
    let offered = frontend.get_protocol_features().expect("protocol features");
    let wanted = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::PAGEFAULT
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    assert!(offered.contains(wanted), "{offered:?}");
    frontend.set_protocol_features(wanted).expect("offered");
    if need_reply {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    frontend.set_owner().expect("owner");
    frontend.set_features(features).expect("offered");
    frontend
}

fn whole_life(need_reply: bool) {
    let (peer, backend) = serve();
    let mut frontend = frontend(peer, need_reply);
    let low = memory(&[(0, b"low0"), (0x2000, b"mid0")]);
    let high = memory(&[(0x1000, b"high")]);
    let regions = [
        region(&low, 0, 0xa0000, 0),
        region(&low, 0xc0000, 0x10_0000, 0x2000),
    ];
    frontend.set_mem_table(&regions).expect("memory");
    assert_eq!(frontend.get_max_mem_slots().expect("slots"), 509);
    let added = region(&high, 0x1_0000_0000, 0x1000, 0x1000);
    frontend.add_mem_region(&added).expect("to add");

    let [call, err] = [0, 0].map(|initial| EventFd::new(initial).expect("an eventfd"));
    for index in [0, 1] {
        frontend.set_vring_num(index, 256).expect("size");
        let config = VringConfigData {
            queue_max_size: 256,
            queue_size: 256,
            flags: 0,
            desc_table_addr: 0x7f00_0000_1000,
            used_ring_addr: 0x7f00_0000_3000,
            avail_ring_addr: 0x7f00_0000_2000,
            log_addr: None,
        };
        frontend.set_vring_addr(index, &config).expect("addresses");
        frontend.set_vring_base(index, 0x8002).expect("base");
        frontend.set_vring_call(index, &call).expect("call");
        frontend.set_vring_err(index, &err).expect("err");
        frontend
            .set_vring_kick(index, &signalled(40 + index as u64))
            .expect("kick");
        frontend.set_vring_enable(index, true).expect("enable");
    }
    // Both halves of a packed ring's indices.
    assert_eq!(frontend.get_vring_base(1).expect("base"), 0x8000_0007);
    assert_eq!(
        (call.read().expect("two calls"), err.read().expect("two errs")),
        (10, 12)
    );
    assert_eq!(frontend.get_queue_num().expect("queue pairs"), 8);
    frontend.remove_mem_region(&added).expect("to remove");
    frontend.reset_device().expect("reset");
    frontend.reset_owner().expect("reset");
    drop(frontend);

    let (log, error) = finish(backend);
    assert_eq!(error, None);
    let mut expected = lines(&[
        "owner",
        "features 0xd7c66a7cb",
        "mem table 0x0+0xa0000=low0 0xc0000+0x100000=mid0",
        "add 0x100000000+0x1000=high",
    ]);
    for index in [0, 1] {
        expected.push(format!("num {index} 256"));
        expected.push(format!(
            "addr {index} 0x7f0000001000 0x7f0000002000 0x7f0000003000"
        ));
        expected.push(format!("base {index} 0x8002"));
        expected.push(format!("call {index} true"));
        expected.push(format!("err {index} true"));
        expected.push(format!("kick {index} Some({})", 40 + index));
        expected.push(format!("enable {index} true"));
    }
    expected.extend(lines(&[
        "stop 1",
        "rem 0x100000000+0x1000",
        "reset device",
        "reset owner",
    ]));
    assert_eq!(log, expected);
}

fn lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

#[test]
fn rust_vmm_front_end_goes_through_post_copy() {
    let (peer, backend) = serve();
    let mut frontend = frontend(peer, true);
    let mut page = [0; 4];
    let mut userfault = frontend.postcopy_advise().expect("a descriptor");
    userfault
        .read_exact(&mut page)
        .expect("the one that the device made");
    assert_eq!(&page, b"page");
    frontend.postcopy_listen().expect("to listen");
    let low = memory(&[(0, b"low0"), (0x2000, b"mid0")]);
    let regions = [
        region(&low, 0xc0000, 0x10_0000, 0x2000),
        region(&low, 0, 0xa0000, 0),
    ];
    let bases = frontend.set_mem_table(&regions).expect("memory");
    assert_eq!(bases, Some(vec![0xc0000, 0]), "in the order they were set");
    frontend
        .postcopy_ack_mem_regions(FrontendReq::SET_MEM_TABLE)
        .expect("to acknowledge");
    let added = region(&low, 0x1_0000_0000, 0x1000, 0x2000);
    assert_eq!(
        frontend.add_mem_region(&added).expect("to add"),
        Some(0x1_0000_0000)
    );
    frontend
        .postcopy_ack_mem_regions(FrontendReq::ADD_MEM_REG)
        .expect("to acknowledge");
    frontend.postcopy_end().expect("to end");
    assert_eq!(frontend.get_features().expect("features"), OFFER.features);
    drop(frontend);
    let (log, error) = finish(backend);
    assert_eq!(error, None);
    let mut expected = lines(&["owner", "features 0xd7c66a7cb", "advise", "listen"]);
    expected.extend(lines(&[
        "mem table 0xc0000+0x100000=mid0 0x0+0xa0000=low0",
        "ack",
        "add 0x100000000+0x1000=mid0",
        "ack",
        "end",
    ]));
    assert_eq!(log, expected);
}

#[test]
fn rust_vmm_front_end_goes_through_a_whole_life() {
    whole_life(false);
}

#[test]
fn rust_vmm_front_end_goes_through_a_whole_life_with_every_request_acknowledged() {
    whole_life(true);
}

/// As QEMU does when its migration begins: the log, the feature, the rings' addresses once more. rust-vmm's front-end
/// takes no answer to SET_LOG_BASE but a log description.
fn a_migration_begins(need_reply: bool) {
    let (peer, backend) = serve();
    let frontend = frontend(peer, need_reply);
    let file = memory(&[(0x1000, b"bits")]);
    let log = VhostUserDirtyLogRegion {
        mmap_size: 0x200,
        mmap_offset: 0x1000,
        mmap_handle: file.as_raw_fd(),
    };
    frontend.set_log_base(0, Some(log)).expect("an answer");
    let event = EventFd::new(0).expect("an eventfd");
    frontend.set_log_fd(event.as_raw_fd()).expect("log fd");
    frontend
        .set_features(OFFER.features | 1 << 26)
        .expect("VHOST_F_LOG_ALL");
    let config = VringConfigData {
        queue_max_size: 256,
        queue_size: 256,
        flags: 1,
        desc_table_addr: 0x7f00_0000_1000,
        used_ring_addr: 0x7f00_0000_3000,
        avail_ring_addr: 0x7f00_0000_2000,
        log_addr: Some(0x3000),
    };
    frontend.set_vring_addr(1, &config).expect("addresses");
    frontend.get_features().expect("all is carried out");
    assert_eq!(event.read().expect("signalled"), 7);
    drop(frontend);
    let (asked, error) = finish(backend);
    assert_eq!(error, None);
    let expected = lines(&[
        "log 0x200 at 0x1000=bits",
        "log fd true",
        "features 0xd7c66a7cb",
        "addr 1 0x7f0000001000 0x7f0000002000 0x7f0000003000 log 0x3000",
    ]);
    assert_eq!(asked[2..], expected);
}

#[test]
fn rust_vmm_front_end_begins_a_migration() {
    a_migration_begins(false);
    a_migration_begins(true);
}

#[test]
fn rust_vmm_front_end_hears_a_refusal_and_goes_on() {
    let (peer, backend) = serve();
    let frontend = frontend(peer, true);
    let refused = frontend.set_vring_num(0, 100).expect_err("no power of two");
    assert!(
        format!("{refused:?}").contains("BackendInternalError"),
        "{refused:?}"
    );
    let refused = frontend.set_features(1 << 63).expect_err("not offered");
    assert!(
        format!("{refused:?}").contains("BackendInternalError"),
        "{refused:?}"
    );
    frontend.set_vring_num(0, 128).expect("the connection lives");
    drop(frontend);
    let (log, error) = finish(backend);
    assert_eq!((log.last().map(String::as_str), error), (Some("num 0 128"), None));
}

#[test]
fn rust_vmm_front_end_that_asks_for_no_reply_loses_the_connection_on_a_refusal() {
    let (peer, backend) = serve();
    let frontend = frontend(peer, false);
    frontend
        .set_vring_num(0, 100)
        .expect("nobody waits for the answer");
    let (_, error) = finish(backend);
    assert_eq!(
        error.as_deref(),
        Some("VHOST_USER_SET_VRING_NUM: 100 descriptors are no power of two")
    );
    assert!(frontend.get_features().is_err());
}

#[test]
fn rust_vmm_front_end_that_sets_a_dirty_log_without_its_memory_loses_the_connection() {
    let (peer, backend) = serve();
    let frontend = frontend(peer, true);
    // It does not wait for the answer here, so it learns of it with the next request.
    frontend.set_log_base(0, None).expect("to send");
    let (_, error) = finish(backend);
    assert_eq!(
        error.as_deref(),
        Some("VHOST_USER_SET_LOG_BASE: payload of 8 bytes, expected 16")
    );
    assert!(frontend.get_features().is_err());
}

/// The other side of the wire by hand, as QEMU has it.
struct Qemu {
    peer: UnixStream,
}

const VERSION_NEED_REPLY: u32 = 0x9;

impl Qemu {
    fn send(&self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) {
        let message = message(request, flags, payload);
        let sent = self
            .peer
            .send_with_fds(&[message.as_slice()], fds)
            .expect("to send");
        assert_eq!(sent, message.len());
    }

    fn get(&mut self, request: u32) -> u64 {
        self.send(request, VERSION, &[], &[]);
        u64::from_ne_bytes(reply(&mut self.peer, request))
    }

    fn acknowledged(&mut self, request: u32, payload: &[u8], fds: &[RawFd]) {
        self.send(request, VERSION_NEED_REPLY, payload, fds);
        assert_eq!(reply(&mut self.peer, request), [0; 8], "request {request}");
    }

    fn u64(&self, request: u32, number: u64, fds: &[RawFd]) {
        self.send(request, VERSION, &number.to_ne_bytes(), fds);
    }

    fn state(&self, request: u32, index: u32, num: u32) {
        self.send(
            request,
            VERSION,
            &[index.to_ne_bytes(), num.to_ne_bytes()].concat(),
            &[],
        );
    }

    /// What happens when a character device opens, once per queue pair.
    fn negotiate(&mut self, pair: u32, call: &EventFd) {
        let features = self.get(1);
        assert_ne!(features & 1 << 30, 0);
        let protocol = self.get(15);
        self.u64(16, protocol, &[]);
        assert_eq!(self.get(17), 8);
        assert_eq!(self.get(36), 509);
        self.send(3, VERSION, &[], &[]);
        self.get(1);
        for index in [2 * pair, 2 * pair + 1] {
            self.u64(13, index.into(), &[call.as_raw_fd()]);
            self.u64(14, index.into(), &[call.as_raw_fd()]);
        }
    }

    /// What happens when a driver starts, once per queue pair; memory comes with the first.
    fn start(&mut self, pair: u32, memory: &File, call: &EventFd) {
        self.acknowledged(20, &1500_u64.to_ne_bytes(), &[]);
        for index in [2 * pair, 2 * pair + 1] {
            self.state(18, index, 1); // before SET_FEATURES
        }
        self.u64(2, 0x1_4000_0000, &[]);
        let status = self.get(40);
        self.u64(39, status | 0x8, &[]);
        if pair == 0 {
            for [guest, size] in [[0_u64, 0xa_0000], [0xc_0000, 0x7f4_0000]] {
                let region = [0, guest, size, 0x7f00_0000_0000 + guest, guest];
                let payload: Vec<u8> = region.iter().flat_map(|number| number.to_ne_bytes()).collect();
                self.acknowledged(37, &payload, &[memory.as_raw_fd()]);
            }
        }
        for index in [2 * pair, 2 * pair + 1] {
            self.state(8, index, 256);
            self.state(10, index, 0);
            let mut addr = [index.to_ne_bytes(), 0_u32.to_ne_bytes()].concat();
            for ring in [0x7f00_0000_1000_u64, 0x7f00_0000_3000, 0x7f00_0000_2000, 0] {
                addr.extend(ring.to_ne_bytes());
            }
            self.send(9, VERSION, &addr, &[]);
            self.u64(12, index.into(), &[signalled(1).as_raw_fd()]);
            self.u64(13, index.into(), &[call.as_raw_fd()]);
        }
    }

    /// What happens when the driver stops.
    fn stop(&mut self, pair: u32) {
        for index in [2 * pair, 2 * pair + 1] {
            self.state(18, index, 0);
        }
        for index in [2 * pair, 2 * pair + 1] {
            self.state(11, index, 0);
            let expected = [index.to_ne_bytes(), 0x8000_0007_u32.to_ne_bytes()].concat();
            assert_eq!(reply(&mut self.peer, 11), expected[..]);
        }
    }
}

#[test]
fn qemu_7_2_order_of_messages_is_taken() {
    let (peer, backend) = serve();
    let mut qemu = Qemu { peer };
    let guest = memory(&[(0, b"bios"), (0xc_0000, b"rest")]);
    let call = EventFd::new(0).expect("an eventfd");
    for pair in [0, 1] {
        qemu.negotiate(pair, &call);
    }
    for pair in [0, 1] {
        qemu.start(pair, &guest, &call);
    }
    qemu.u64(39, 0xf, &[]); // with the last pair only
    assert_eq!(qemu.get(40), 0xf);
    for pair in [0, 1] {
        qemu.stop(pair);
    }
    drop(qemu);

    let (log, error) = finish(backend);
    assert_eq!(error, None);
    assert_eq!(log, qemu_as_the_device_sees_it());
}

fn qemu_as_the_device_sees_it() -> Vec<String> {
    let mut log = Vec::new();
    let rings = |pair: u16| [2 * pair, 2 * pair + 1];
    for pair in [0, 1] {
        log.push("owner".to_owned());
        for index in rings(pair) {
            log.push(format!("call {index} true"));
            log.push(format!("err {index} true"));
        }
    }
    for pair in [0, 1] {
        log.push("mtu 1500".to_owned());
        log.extend(rings(pair).map(|index| format!("enable {index} true")));
        log.extend(lines(&["features 0x140000000", "status?", "status 0x8"]));
        if pair == 0 {
            log.extend(lines(&["add 0x0+0xa0000=bios", "add 0xc0000+0x7f40000=rest"]));
        }
        for index in rings(pair) {
            log.push(format!("num {index} 256"));
            log.push(format!("base {index} 0x0"));
            log.push(format!(
                "addr {index} 0x7f0000001000 0x7f0000002000 0x7f0000003000"
            ));
            log.push(format!("kick {index} Some(1)"));
            log.push(format!("call {index} true"));
        }
    }
    log.extend(lines(&["status 0xf", "status?"]));
    for pair in [0, 1] {
        log.extend(rings(pair).map(|index| format!("enable {index} false")));
        log.extend(rings(pair).map(|index| format!("stop {index}")));
    }
    log
}

//! Front-ends that mean harm, over a real socket: bad messages by the thousand, and noise. Whatever they
//! send, nothing panics, no descriptor stays open, and the connection ends.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::message::{Flags, Header, HEADER_SIZE};
use super::requests::TABLE;
use super::session::{Next, Session};
use super::socket::{Connection, Received};
use super::testing::{
    handled, iotlb, mem_table, numbers, sample, state, wire, Fake, Probe, NEED_REPLY, OFFER, PLAIN,
};

/// The back-end's side of one connection, driven as a port's control thread drives it.
struct Backend {
    connection: Connection,
    session: Session,
    device: Fake,
    closed: bool,
    refused: usize,
}

impl Backend {
    fn new() -> (UnixStream, Backend) {
        let (peer, ours) = UnixStream::pair().expect("a socket pair");
        let backend = Backend {
            connection: Connection::new(ours),
            session: Session::new(OFFER),
            device: Fake::default(),
            closed: false,
            refused: 0,
        };
        (peer, backend)
    }

    /// Everything that is there to be done; at most as many rounds as there can be messages.
    fn run(&mut self) {
        while !self.closed {
            let outcome = match self.connection.receive() {
                Ok(Received::Pending) => return,
                Ok(Received::Closed) | Err(_) => break,
                Ok(Received::Message(message)) => self.session.handle(message, &mut self.device),
            };
            let sent = outcome
                .reply
                .is_none_or(|reply| self.connection.send(&reply).is_ok());
            self.refused += usize::from(outcome.error.is_some());
            self.closed = !sent || outcome.next == Next::Close;
            // A device keeps what it is given; this one does not, so that the count shows leaks only.
            self.device.seen.clear();
        }
        self.closed = true;
    }
}

/// Sends; a back-end that has closed may have cut us off.
fn send(peer: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let _cut_off = peer.send_with_fds(&[bytes], &raw);
}

/// Numbers without pattern, the same on every run (xorshift64*).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    fn small(&mut self, limit: u64) -> usize {
        usize::try_from(self.below(limit)).expect("small")
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.small(u64::try_from(from.len()).expect("few"))]
    }
}

#[test]
fn every_request_with_eight_unwanted_descriptors_a_thousand_times_leaks_none() {
    let probe = Probe::new();
    let fds = probe.fds(8);
    for row in &TABLE {
        let bytes = wire(row.id, PLAIN, &sample(row.id).0);
        for _ in 0..1000 {
            let (peer, mut backend) = Backend::new();
            send(&peer, &wire(16, PLAIN, &numbers(&[OFFER.protocol_features])), &[]);
            send(&peer, &bytes, &fds);
            backend.run();
            assert_eq!((backend.closed, backend.refused), (true, 1), "{}", row.name);
        }
        assert_eq!(probe.leaked(), 8, "{}", row.name);
    }
}

#[test]
fn bad_messages_on_a_connection_that_survives_them_leak_nothing() {
    let probe = Probe::new();
    let fds = probe.fds(8);
    let (mut peer, mut backend) = Backend::new();
    send(&peer, &wire(16, PLAIN, &numbers(&[OFFER.protocol_features])), &[]);
    backend.run();
    backend.device.refuses = true;
    for round in 0..5000 {
        let count = if round % 2 == 0 { 1 } else { 8 };
        let bytes = match count {
            1 => wire(12, NEED_REPLY, &numbers(&[1])),
            _ => wire(5, NEED_REPLY, &mem_table(8)),
        };
        send(&peer, &bytes, &fds[..count]);
        backend.run();
        let mut reply = [0; 20];
        peer.read_exact(&mut reply).expect("a refusal");
        assert_eq!(reply[12..], 1_u64.to_ne_bytes());
    }
    assert_eq!((backend.refused, backend.closed), (5000, false));
    assert_eq!(probe.leaked(), 8);
}

#[test]
fn replacing_a_vring_descriptor_again_and_again_keeps_none() {
    let probe = Probe::new();
    let fds = probe.fds(1);
    let (peer, mut backend) = Backend::new();
    for id in [12, 13, 14] {
        for _ in 0..1000 {
            send(&peer, &wire(id, PLAIN, &numbers(&[1])), &fds);
            backend.run();
        }
    }
    assert!(!backend.closed);
    assert_eq!(probe.leaked(), 1);
}

#[test]
fn each_message_of_the_attack_corpus_closes_the_connection() {
    let region = |values: [u64; 4]| [state(1, 0), numbers(&values)].concat();
    let count = |count: u32| [state(count, 0), vec![0; 256]].concat();
    let corpus: Vec<(&str, u32, Vec<u8>, usize)> = vec![
        (
            "SET_LOG_BASE that wraps (CVE-2020-10722)",
            6,
            numbers(&[0xffff_ffff_ffff_ff00, 0x200]),
            1,
        ),
        (
            "SET_VRING_NUM index 0x10000 (CVE-2020-10723)",
            8,
            state(0x1_0000, 256),
            0,
        ),
        ("SET_VRING_BASE index 0x100", 10, state(0x100, 0), 0),
        ("SET_VRING_ENABLE index 0xffffffff", 18, state(u32::MAX, 1), 0),
        ("SET_VRING_KICK index 0x10000", 12, numbers(&[0x1_0000]), 1),
        ("CREATE_CRYPTO_SESSION (CVE-2020-10724)", 26, vec![0xff; 200], 0),
        ("GET_INFLIGHT_FD (CVE-2020-10726)", 31, vec![0; 24], 0),
        (
            "GET_INFLIGHT_FD with descriptors (CVE-2022-0669)",
            31,
            vec![0; 24],
            8,
        ),
        (
            "SET_INFLIGHT_FD of 65535 queues (CVE-2021-3839)",
            32,
            vec![0xff; 24],
            1,
        ),
        ("SET_INFLIGHT_FD without a descriptor", 32, vec![0; 24], 0),
        (
            "SET_MEM_TABLE offset wraps",
            5,
            region([0, 0x1000, 0, u64::MAX - 0xfff]),
            1,
        ),
        ("SET_MEM_TABLE size 0", 5, region([0, 0, 0, 0]), 1),
        ("SET_MEM_TABLE of 9 regions", 5, count(9), 8),
        ("SET_MEM_TABLE of 0xffffffff regions", 5, count(u32::MAX), 8),
        ("SET_MEM_TABLE without descriptors", 5, mem_table(8), 0),
        ("SET_MEM_TABLE short of a descriptor", 5, mem_table(8), 7),
        ("SET_MEM_TABLE with 9 descriptors", 5, mem_table(8), 9),
        ("SET_BACKEND_REQ_FD without a descriptor", 21, vec![], 0),
        ("SET_BACKEND_REQ_FD with two descriptors", 21, vec![], 2),
        (
            "IOTLB_MSG update that wraps",
            22,
            iotlb(u64::MAX, 2, 0x1000, 3, 2),
            0,
        ),
        (
            "IOTLB_MSG update of no bytes",
            22,
            iotlb(0x1000, 0, 0x1000, 3, 2),
            0,
        ),
        (
            "IOTLB_MSG miss of the front-end",
            22,
            iotlb(0x1000, 0x1000, 0x1000, 3, 1),
            0,
        ),
        ("POSTCOPY_ADVISE with a descriptor of its own", 28, vec![], 1),
        (
            "a region that is acknowledged with an error",
            37,
            numbers(&[1]),
            0,
        ),
        (
            "an acknowledgement with a region's descriptor",
            37,
            numbers(&[0]),
            1,
        ),
        (
            "SET_VRING_KICK says none and brings one",
            12,
            numbers(&[0x101]),
            1,
        ),
        ("request -1", u32::MAX, vec![], 0),
        ("request 0x80000001", 0x8000_0001, vec![], 0),
        ("NONE", 0, vec![], 0),
    ];
    let probe = Probe::new();
    for (what, id, payload, fds) in corpus {
        for flags in [PLAIN, NEED_REPLY] {
            let (peer, mut backend) = Backend::new();
            send(&peer, &wire(16, PLAIN, &numbers(&[OFFER.protocol_features])), &[]);
            send(&peer, &wire(id, flags, &payload), &probe.fds(fds));
            backend.run();
            assert_eq!((backend.closed, backend.refused), (true, 1), "{what}");
        }
    }
    assert_eq!(probe.leaked(), 0);
}

#[test]
fn noise_never_panics_and_never_leaks() {
    let probe = Probe::new();
    let fds = probe.fds(9);
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for _ in 0..3000 {
        let (peer, mut backend) = Backend::new();
        for _ in 0..noise.below(8) {
            let bytes: Vec<u8> = (0..=noise.below(400))
                .map(|_| noise.next().to_ne_bytes()[4])
                .collect();
            send(&peer, &bytes, &fds[..noise.small(10)]);
            backend.run();
        }
        drop(peer);
        backend.run();
        assert!(backend.closed);
    }
    assert_eq!(probe.leaked(), 9);
}

/// One message that is nearly right: real numbers and sizes, a little of everything wrong with it.
fn nearly_right(noise: &mut Noise) -> (Vec<u8>, usize) {
    let id = noise.pick(&TABLE.each_ref().map(|row| row.id));
    let (mut payload, mut fds) = sample(id);
    let mut flags = noise.pick(&[PLAIN, NEED_REPLY]);
    match noise.below(8) {
        0 => payload.truncate(noise.small(u64::try_from(payload.len()).expect("short") + 1)),
        1 => payload.extend(std::iter::repeat_n(0xa5, noise.small(64))),
        2 => fds = noise.small(10),
        3 => flags = Flags(flags.0 ^ 1 << noise.below(32)),
        4 | 5 => {
            let at = noise.small(u64::try_from(payload.len()).expect("short").max(1));
            if let Some(byte) = payload.get_mut(at) {
                *byte ^= 1 << noise.below(8);
            }
        }
        _ => {}
    }
    let mut bytes = wire(id, flags, &payload);
    if noise.below(50) == 0 {
        let size = noise.pick(&[0, 1, 263, 264, 267, 268, 269, 0x7fff_ffff, u32::MAX]);
        bytes.splice(8..12, size.to_ne_bytes());
    }
    (bytes, fds)
}

#[test]
fn messages_that_are_nearly_right_never_panic_and_never_leak() {
    let probe = Probe::new();
    let fds = probe.fds(9);
    let mut noise = Noise(0x0123_4567_89ab_cdef);
    let (mut carried_out, mut refused) = (0_u32, 0);
    for _ in 0..3000 {
        let (peer, mut backend) = Backend::new();
        send(&peer, &wire(16, PLAIN, &numbers(&[OFFER.protocol_features])), &[]);
        for _ in 0..16 {
            let (bytes, count) = nearly_right(&mut noise);
            let cut = noise.small(u64::try_from(bytes.len()).expect("short")).max(1);
            send(&peer, &bytes[..cut], &fds[..count]);
            backend.run();
            send(
                &peer,
                &bytes[cut..],
                if noise.below(40) == 0 { &fds[..1] } else { &[] },
            );
            backend.device.refuses = noise.below(16) == 0;
            backend.run();
            carried_out += u32::from(!backend.closed);
        }
        refused += backend.refused;
        drop(peer);
        backend.run();
    }
    assert_eq!(probe.leaked(), 9);
    assert!(
        carried_out > 1000 && refused > 1000,
        "{carried_out} carried out, {refused} refused: too tame"
    );
}

#[test]
fn a_flood_of_questions_by_a_peer_that_never_reads_ends_its_connection() {
    let (mut peer, mut backend) = Backend::new();
    let questions = wire(1, PLAIN, &[]).repeat(256);
    peer.set_nonblocking(true).expect("non-blocking");
    for _ in 0..10_000 {
        if backend.closed {
            break;
        }
        let _full = peer.write(&questions[..]);
        backend.run();
    }
    assert!(backend.closed);
}

#[test]
fn a_peer_that_sends_a_byte_at_a_time_is_served_all_the_same() {
    let probe = Probe::new();
    let (mut peer, mut backend) = Backend::new();
    let mut order: Vec<_> = handled().collect();
    // Negotiation first, so that nothing is refused.
    order.sort_by_key(|(id, _, _)| *id != 16);
    for (id, name, rule) in order {
        let (payload, fds) = sample(id);
        let bytes = wire(id, PLAIN, &payload);
        send(&peer, &bytes[..1], &probe.fds(fds));
        for byte in &bytes[1..] {
            backend.run();
            assert!(backend.connection.message_started(), "{}", name);
            peer.write_all(&[*byte]).expect("to send");
        }
        backend.run();
        assert_eq!((backend.closed, backend.refused), (false, 0), "{}", name);
        if !rule.answer.is_acknowledgement() {
            let mut header = [0; HEADER_SIZE];
            peer.read_exact(&mut header).expect("a reply");
            let header = Header::decode(header);
            assert_eq!((header.request, header.flags), (id, Flags(0x5)), "{}", name);
            let mut payload = vec![0; usize::try_from(header.size).expect("small")];
            peer.read_exact(&mut payload).expect("a payload");
        }
    }
    assert_eq!(probe.leaked(), 0);
}

//! Front-ends that mean harm, over a real socket: bad messages by the thousand, and noise. Whatever they
//! send, nothing panics, no descriptor stays open, and the connection ends.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::corpus::{misshapen, published, Attack};
use super::message::{Flags, Header, HEADER_SIZE};
use super::requests::TABLE;
use super::session::{Next, Session};
use super::socket::{Connection, Received};
use super::testing::{handled, mem_table, numbers, sample, wire, Fake, Probe, NEED_REPLY, OFFER, PLAIN};

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
    let probe = Probe::new();
    for attack in published()
        .into_iter()
        .flat_map(|attack| [attack.clone().asking(), attack])
    {
        assert_eq!(play(&probe, &attack), (true, 1), "{}", attack.what);
    }
    assert_eq!(probe.leaked(), 0);
}

#[test]
fn every_request_in_every_shape_that_it_must_not_have_closes_the_connection() {
    let probe = Probe::new();
    for (id, attacks) in misshapen() {
        for attack in attacks {
            let (closed, _) = play(&probe, &attack);
            assert!(closed, "request {id} {}", attack.what);
        }
    }
    assert_eq!(probe.leaked(), 0);
}

/// Sends one attack over a connection of its own; says whether that was closed, and how often something was refused.
fn play(probe: &Probe, attack: &Attack) -> (bool, usize) {
    let (peer, mut backend) = Backend::new();
    if attack.negotiated {
        send(&peer, &wire(16, PLAIN, &numbers(&[OFFER.protocol_features])), &[]);
    }
    send(&peer, &attack.bytes, &probe.fds(attack.fds));
    backend.run();
    (backend.closed, backend.refused)
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

//! A connection whose far end sends what it likes, how it likes, and may not read.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::vhost_user::testing::{id, numbers, sample, wire, Probe, PLAIN};

use super::*;

fn pair() -> (UnixStream, Connection) {
    let (peer, ours) = UnixStream::pair().expect("a socket pair");
    (peer, Connection::new(ours))
}

fn send(peer: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let sent = peer.send_with_fds(&[bytes], &raw).expect("to send");
    assert_eq!(sent, bytes.len());
}

fn next(connection: &mut Connection) -> Message {
    match connection.receive() {
        Ok(Received::Message(message)) => message,
        other => panic!("no message but {other:?}"),
    }
}

fn pending(connection: &mut Connection) -> bool {
    matches!(connection.receive(), Ok(Received::Pending))
}

fn fd_flags(fd: &OwnedFd) -> String {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).expect("fdinfo")
}

#[test]
fn a_message_may_come_one_byte_at_a_time() {
    let probe = Probe::new();
    let (mut peer, mut connection) = pair();
    let (payload, _) = sample(id("SET_MEM_TABLE"));
    let bytes = wire(5, PLAIN, &payload);
    assert!(pending(&mut connection));
    assert!(!connection.message_started());
    send(&peer, &bytes[..1], &probe.fds(2));
    for byte in &bytes[1..] {
        assert!(pending(&mut connection));
        assert!(connection.message_started());
        peer.write_all(&[*byte]).expect("to send");
    }
    let message = next(&mut connection);
    assert!(!connection.message_started());
    assert_eq!(
        (message.header.request, message.fds.len(), message.defect),
        (5, 2, None)
    );
    assert_eq!(message.payload, payload);
    assert!(pending(&mut connection));
}

#[test]
fn each_message_gets_its_own_descriptors_when_several_arrive_at_once() {
    let probe = Probe::new();
    let (peer, mut connection) = pair();
    let with = |count: u64| wire(12, PLAIN, &numbers(&[count]));
    send(&peer, &[with(0), with(0)].concat(), &[]);
    send(&peer, &with(1), &probe.fds(1));
    send(&peer, &with(2), &probe.fds(2));
    send(&peer, &with(0), &[]);
    for expected in [0, 0, 1, 2, 0] {
        let message = next(&mut connection);
        assert_eq!(message.payload, numbers(&[expected]));
        assert_eq!(
            numbers(&[u64::try_from(message.fds.len()).expect("few")]),
            message.payload
        );
        assert_eq!(message.defect, None);
    }
    assert!(pending(&mut connection));
}

#[test]
fn a_header_sent_apart_from_its_payload_brings_the_descriptors() {
    let probe = Probe::new();
    let (mut peer, mut connection) = pair();
    let bytes = wire(12, PLAIN, &numbers(&[1]));
    send(&peer, &bytes[..HEADER_SIZE], &probe.fds(1));
    assert!(pending(&mut connection));
    peer.write_all(&bytes[HEADER_SIZE..]).expect("to send");
    let message = next(&mut connection);
    assert_eq!((message.fds.len(), message.defect), (1, None));
}

#[test]
fn descriptors_inside_a_message_are_closed_and_the_message_is_damaged() {
    let probe = Probe::new();
    let bytes = wire(12, PLAIN, &numbers(&[1]));
    for at in [1, 5, HEADER_SIZE, HEADER_SIZE + 3] {
        let (mut peer, mut connection) = pair();
        peer.write_all(&bytes[..at]).expect("to send");
        assert!(pending(&mut connection));
        send(&peer, &bytes[at..], &probe.fds(3));
        let message = next(&mut connection);
        assert_eq!(
            (message.fds.len(), message.defect),
            (0, Some(Defect::FdsInside)),
            "at {at}"
        );
        assert_eq!(probe.leaked(), 0);
    }
}

#[test]
fn descriptors_with_the_payload_are_seen_even_when_it_waits_already() {
    let probe = Probe::new();
    let (peer, mut connection) = pair();
    let bytes = wire(12, PLAIN, &numbers(&[1]));
    send(&peer, &bytes[..HEADER_SIZE], &[]);
    send(&peer, &bytes[HEADER_SIZE..], &probe.fds(1));
    assert_eq!(next(&mut connection).defect, Some(Defect::FdsInside));
    assert_eq!(probe.leaked(), 0);
}

#[test]
fn eight_descriptors_arrive_and_are_closed_on_exec() {
    let probe = Probe::new();
    let (peer, mut connection) = pair();
    send(&peer, &wire(3, PLAIN, &[]), &probe.fds(8));
    let message = next(&mut connection);
    assert_eq!((message.fds.len(), message.defect), (8, None));
    // O_CLOEXEC, octal 02000000, as /proc prints it
    assert!(
        message.fds.iter().all(|fd| fd_flags(fd).contains("flags:\t02")),
        "{}",
        fd_flags(&message.fds[0])
    );
    drop(message);
    assert_eq!(probe.leaked(), 0);
}

#[test]
fn more_than_eight_descriptors_damage_the_message_and_none_leaks() {
    let probe = Probe::new();
    for count in [9, 10, 64, 253] {
        let (peer, mut connection) = pair();
        send(&peer, &wire(3, PLAIN, &[]), &probe.fds(count));
        let message = next(&mut connection);
        assert_eq!(message.defect, Some(Defect::FdsTruncated), "{count}");
        drop(message);
        assert_eq!(probe.leaked(), 0, "{count}");
    }
}

#[test]
fn an_oversized_message_is_told_at_its_header_and_ends_reception() {
    for size in [269, 4096, 0x8000_0000, u32::MAX] {
        let (mut peer, mut connection) = pair();
        let header = Header {
            request: 5,
            flags: PLAIN,
            size,
        };
        peer.write_all(&header.encode()).expect("to send");
        let message = next(&mut connection);
        assert_eq!(message.defect, Some(Defect::Oversized(size)));
        assert_eq!((message.header, message.payload.len()), (header, 0));
        assert!(matches!(connection.receive(), Err(ReceiveError::Unframed)));
    }
}

#[test]
fn the_longest_message_fits() {
    let (mut peer, mut connection) = pair();
    peer.write_all(&wire(5, PLAIN, &[7; MAX_PAYLOAD]))
        .expect("to send");
    let message = next(&mut connection);
    assert_eq!((message.payload, message.defect), (vec![7; MAX_PAYLOAD], None));
}

#[test]
fn a_hang_up_between_messages_is_no_error_and_inside_one_it_is() {
    let (peer, mut connection) = pair();
    drop(peer);
    assert!(matches!(connection.receive(), Ok(Received::Closed)));
    let bytes = wire(12, PLAIN, &numbers(&[1]));
    for (at, want) in [(1, HEADER_SIZE), (HEADER_SIZE, 20), (19, 20)] {
        let (mut peer, mut connection) = pair();
        peer.write_all(&bytes[..at]).expect("to send");
        drop(peer);
        match connection.receive() {
            Err(ReceiveError::ClosedInside { have, want: wanted }) => {
                assert_eq!((have, wanted), (at, want))
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_peer_that_never_read_its_reply_hangs_up_like_any_other() {
    let (peer, mut connection) = pair();
    connection.send(&[0; 20]).expect("to send");
    drop(peer);
    assert!(matches!(connection.receive(), Ok(Received::Closed)));
}

#[test]
fn whole_messages_are_still_read_after_the_peer_hung_up() {
    let (mut peer, mut connection) = pair();
    peer.write_all(&wire(3, PLAIN, &[]).repeat(2)).expect("to send");
    drop(peer);
    assert_eq!(next(&mut connection).name(), "VHOST_USER_SET_OWNER");
    assert_eq!(next(&mut connection).name(), "VHOST_USER_SET_OWNER");
    assert!(matches!(connection.receive(), Ok(Received::Closed)));
}

#[test]
fn a_peer_that_never_reads_is_found_out_before_memory_grows() {
    let (peer, mut connection) = pair();
    let reply = [0; 20];
    let mut sends = 0;
    let error = loop {
        match connection.send(&reply) {
            Ok(()) => sends += 1,
            Err(error) => break error,
        }
        assert!(sends < 1_000_000, "the socket takes everything");
    };
    assert!(matches!(error, SendError::PeerDoesNotRead { waiting } if waiting > MAX_OUTPUT));
    let kept: usize = connection.output.iter().map(|message| message.bytes.len()).sum();
    assert!(kept <= MAX_OUTPUT);
    assert!(connection.output_waiting());
    drop(peer);
}

#[test]
fn output_that_waits_goes_out_in_order_once_the_peer_reads() {
    let (mut peer, mut connection) = pair();
    let mut sent = Vec::new();
    for number in 0_u64.. {
        connection.send(&number.to_ne_bytes()).expect("to send");
        sent.extend(number.to_ne_bytes());
        if connection.output_waiting() {
            break;
        }
    }
    let mut got = vec![0; sent.len()];
    peer.read_exact(&mut got[..sent.len() - 8]).expect("to read");
    connection.flush().expect("to flush");
    assert!(!connection.output_waiting());
    peer.read_exact(&mut got[sent.len() - 8..]).expect("to read");
    assert_eq!(got, sent);
}

#[test]
fn a_descriptor_goes_with_its_own_message_even_if_that_has_to_wait() {
    let probe = Probe::new();
    let (peer, mut connection) = pair();
    let mut waited = Vec::new();
    while !connection.output_waiting() {
        connection.send(&[0; 20]).expect("to send");
        waited.extend([0; 20]);
    }
    connection.send_with(&[1; 12], Some(probe.fd())).expect("to send");
    connection.send(&[2; 12]).expect("to send");
    let expected = [waited, vec![1; 12], vec![2; 12]].concat();
    let mut got = Vec::<u8>::new();
    let mut fd_at = None;
    while got.len() < expected.len() {
        let mut bytes = [0; 4];
        let chunk = sys::receive(&peer, &mut bytes).expect("to read");
        if !chunk.fds.is_empty() {
            assert_eq!((chunk.fds.len(), fd_at.replace(got.len())), (1, None));
        }
        got.extend(&bytes[..chunk.len]);
        connection.flush().expect("to flush");
    }
    assert_eq!(got, expected);
    assert_eq!(
        fd_at,
        Some(expected.len() - 24),
        "with the first byte of its message"
    );
    assert_eq!(probe.leaked(), 0, "ours is closed once the peer has its own");
}

#[test]
fn a_descriptor_that_nobody_takes_is_closed_with_the_connection() {
    let probe = Probe::new();
    let (_peer, mut connection) = pair();
    while !connection.output_waiting() {
        connection.send(&[0; 20]).expect("to send");
    }
    connection.send_with(&[1; 12], Some(probe.fd())).expect("to send");
    assert_eq!(probe.leaked(), 1);
    drop(connection);
    assert_eq!(probe.leaked(), 0);
}

#[test]
fn sending_to_a_peer_that_is_gone_is_an_error_not_a_signal() {
    let (peer, mut connection) = pair();
    drop(peer);
    // SAFETY: sigset_t is plain bits; each call gets a live one, and masks this thread only. A blocked
    // SIGPIPE stays pending even though the test harness ignores it.
    let raised = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        assert!(matches!(connection.send(&[0; 20]), Err(SendError::Io(_))));
        libc::sigpending(&raw mut set);
        libc::sigismember(&raw const set, libc::SIGPIPE)
    };
    assert_eq!(raised, 0);
}

#[test]
fn descriptors_of_an_unfinished_message_are_closed_with_the_connection() {
    let probe = Probe::new();
    let (peer, mut connection) = pair();
    send(&peer, &wire(12, PLAIN, &numbers(&[1]))[..7], &probe.fds(8));
    assert!(pending(&mut connection));
    assert_eq!(probe.leaked(), 8);
    drop(connection);
    assert_eq!(probe.leaked(), 0);
}

#[test]
fn out_of_band_bytes_are_not_taken_for_a_message() {
    let (mut peer, mut connection) = pair();
    // SAFETY: `peer` is an open socket and the byte outlives the call.
    let sent = unsafe { libc::send(peer.as_raw_fd(), [9_u8].as_ptr().cast(), 1, libc::MSG_OOB) };
    if sent == 1 {
        assert!(!matches!(connection.receive(), Ok(Received::Message(_))));
    }
    peer.write_all(&wire(3, PLAIN, &[])).expect("to send");
    assert_eq!(next(&mut connection).name(), "VHOST_USER_SET_OWNER");
}

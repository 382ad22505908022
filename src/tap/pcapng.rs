//! pcapng (draft-ietf-opsawg-pcapng), as much of it as a capture of one port needs: blocks to bytes. Pure; a block is written
//! only where it has room, since poll threads write them too.
//!
//! Frames are Ethernet, so that every tool dissects them. The virtio-net header before a frame is no part of it: what it says
//! is a comment on the frame, and a frame that it says nothing of has none.

use std::io::Write;

use crate::datapath::{Direction, Offload};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;
/// Time stamps are of 10^-9 s.
const NANOSECONDS: u8 = 9;

const END_OF_OPTIONS: u16 = 0;
const COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const EPB_QUEUE: u16 = 6;
const ISB_STARTTIME: u16 = 2;
const ISB_ENDTIME: u16 = 3;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;
const ISB_FILTERACCEPT: u16 = 6;
const ISB_USRDELIV: u16 = 8;

/// Room for the longest comment: three numbers of up to three digits and four of up to five, with their names.
const COMMENT_ROOM: usize = 100;
/// Bytes of a packet's block beside the frame and its padding, at most.
const PACKET_OVERHEAD: usize = 32 + 2 * 8 + (4 + COMMENT_ROOM) + 4;
/// Where a packet's block has its time stamp, in two halves.
const TIME_AT: usize = 12;
/// Bytes of the block of statistics.
pub(super) const STATISTICS_LEN: u64 = 24 + 6 * 12 + 4;

/// A frame, and what is known of it beside its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    /// Nanoseconds since 1970.
    pub(super) time: u64,
    pub(super) direction: Direction,
    /// Number of the queue pair.
    pub(super) queue: u32,
    pub(super) frame: &'a [u8],
    pub(super) offload: Offload,
}

/// What became of the frames that passed by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Statistics {
    /// Nanoseconds since 1970.
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) passed: u64,
    pub(super) sampled: u64,
    pub(super) lost: u64,
    pub(super) written: u64,
}

/// What a file begins with: its section, and the one interface in it.
pub(super) fn header(port: &str, snaplen: u32) -> Vec<u8> {
    let mut out = Vec::new();
    block(&mut out, SECTION_HEADER, |out| {
        put(out, &BYTE_ORDER.to_le_bytes());
        // Version 1.0; the section's length is not known yet.
        put(out, &1_u16.to_le_bytes());
        put(out, &0_u16.to_le_bytes());
        put(out, &u64::MAX.to_le_bytes());
        option(
            out,
            SHB_USERAPPL,
            concat!("ovs-vhost ", env!("CARGO_PKG_VERSION")).as_bytes(),
        );
        option(out, END_OF_OPTIONS, &[]);
    });
    block(&mut out, INTERFACE, |out| {
        put(out, &LINKTYPE_ETHERNET.to_le_bytes());
        put(out, &[0; 2]);
        put(out, &snaplen.to_le_bytes());
        option(out, IF_NAME, port.as_bytes());
        option(out, IF_DESCRIPTION, b"vhost-user port of Open vSwitch");
        option(out, IF_TSRESOL, &[NANOSECONDS]);
        option(out, END_OF_OPTIONS, &[]);
    });
    out
}

/// Adds a packet, of whose frame at most `snaplen` bytes are kept, if `out` has room for it without growing; says whether.
pub(super) fn packet(out: &mut Vec<u8>, snaplen: usize, packet: &Packet<'_>) -> bool {
    let kept = packet.frame.get(..snaplen).unwrap_or(packet.frame);
    if out.capacity() - out.len() < PACKET_OVERHEAD + kept.len().next_multiple_of(4) {
        return false;
    }
    let [low, high] = halves(packet.time);
    block(out, ENHANCED_PACKET, |out| {
        put(out, &0_u32.to_le_bytes());
        put(out, &high.to_le_bytes());
        put(out, &low.to_le_bytes());
        put(out, &length(kept.len()).to_le_bytes());
        put(out, &length(packet.frame.len()).to_le_bytes());
        padded(out, kept);
        option(out, EPB_FLAGS, &flags(packet.direction).to_le_bytes());
        option(out, EPB_QUEUE, &packet.queue.to_le_bytes());
        if packet.offload != Offload::NONE {
            comment(out, packet.offload);
        }
        option(out, END_OF_OPTIONS, &[]);
    });
    true
}

/// What a file ends with.
pub(super) fn statistics(known: &Statistics) -> Vec<u8> {
    let mut out = Vec::new();
    let time = |time| {
        let [low, high] = halves(time);
        (u64::from(low) << 32 | u64::from(high)).to_le_bytes()
    };
    block(&mut out, STATISTICS, |out| {
        put(out, &0_u32.to_le_bytes());
        put(out, &time(known.end));
        option(out, ISB_STARTTIME, &time(known.start));
        option(out, ISB_ENDTIME, &time(known.end));
        option(out, ISB_IFRECV, &known.passed.to_le_bytes());
        option(out, ISB_IFDROP, &known.lost.to_le_bytes());
        option(out, ISB_FILTERACCEPT, &known.sampled.to_le_bytes());
        option(out, ISB_USRDELIV, &known.written.to_le_bytes());
        option(out, END_OF_OPTIONS, &[]);
    });
    out
}

/// The blocks of packets in `bytes`, as [`packet`] made them, each with its time.
pub(super) fn packets(mut bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        let word = |at| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let len = usize::try_from(word(4)?).ok()?;
        let time = u64::from(word(TIME_AT)?) << 32 | u64::from(word(TIME_AT + 4)?);
        let (block, rest) = bytes.split_at_checked(len)?;
        bytes = rest;
        Some((time, block))
    })
}

/// The comment that says what a header says.
fn comment(out: &mut Vec<u8>, word: Offload) {
    let Offload {
        flags,
        gso_type,
        hdr_len,
        gso_size,
        csum_start,
        csum_offset,
    } = word;
    let mut text = [0; COMMENT_ROOM];
    let mut rest = &mut text[..];
    // There is room for it.
    let _ = write!(
        rest,
        "virtio-net flags={flags} gso_type={gso_type} hdr_len={hdr_len} gso_size={gso_size} \
         csum_start={csum_start} csum_offset={csum_offset}"
    );
    let len = COMMENT_ROOM - rest.len();
    option(out, COMMENT, text.get(..len).unwrap_or_default());
}

/// Inbound is what comes into the switch.
fn flags(direction: Direction) -> u32 {
    match direction {
        Direction::Dequeue => 1,
        Direction::Enqueue => 2,
    }
}

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    put(out, &kind.to_le_bytes());
    put(out, &[0; 4]);
    body(out);
    let len = length(out.len() - at + 4).to_le_bytes();
    if let Some(place) = out.get_mut(at + 4..at + 8) {
        place.copy_from_slice(&len);
    }
    put(out, &len);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
    put(out, &code.to_le_bytes());
    put(out, &len.to_le_bytes());
    padded(out, value.get(..usize::from(len)).unwrap_or_default());
}

/// `bytes`, up to a multiple of four.
fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes);
    let missing = bytes.len().next_multiple_of(4) - bytes.len();
    put(out, [0; 3].get(..missing).unwrap_or_default());
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A number's lower half, and its upper.
fn halves(number: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Packet<'_> = Packet {
        time: 0x0102_0304_0506_0708,
        direction: Direction::Dequeue,
        queue: 3,
        frame: &[1, 2, 3, 4, 5],
        offload: Offload::NONE,
    };

    #[rustfmt::skip]
    #[test]
    fn a_file_begins_with_a_section_of_one_ethernet_interface() {
        let application = concat!("ovs-vhost ", env!("CARGO_PKG_VERSION"));
        let len = 28 + application.len().next_multiple_of(4) + 8;
        let bytes = header("vm1", 96);
        let (section, interface) = bytes.split_at(len);
        let [len, application_len] = [len, application.len()].map(|len| u8::try_from(len).unwrap());
        assert_eq!(section[..28], [
            0x0a, 0x0d, 0x0d, 0x0a, len, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0,
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 4, 0, application_len, 0,
        ]);
        assert!(section[28..].starts_with(application.as_bytes()));
        assert!(section.ends_with(&[0, 0, 0, 0, len, 0, 0, 0]));
        assert_eq!(interface[..28], [
            1, 0, 0, 0, 76, 0, 0, 0, 1, 0, 0, 0, 96, 0, 0, 0,
            2, 0, 3, 0, b'v', b'm', b'1', 0, 3, 0, 31, 0,
        ]);
        assert_eq!(interface[60..], [9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 76, 0, 0, 0]);
    }

    #[rustfmt::skip]
    #[test]
    fn a_packet_has_time_lengths_direction_and_queue() {
        let mut out = Vec::with_capacity(1000);
        assert!(packet(&mut out, 4, &PLAIN));
        assert_eq!(out, [
            6, 0, 0, 0, 56, 0, 0, 0, 0, 0, 0, 0,
            4, 3, 2, 1, 8, 7, 6, 5, 4, 0, 0, 0, 5, 0, 0, 0,
            1, 2, 3, 4,
            2, 0, 4, 0, 1, 0, 0, 0, 6, 0, 4, 0, 3, 0, 0, 0, 0, 0, 0, 0,
            56, 0, 0, 0,
        ]);
    }

    #[test]
    fn a_frame_is_padded_and_what_goes_out_is_marked() {
        let mut out = Vec::with_capacity(1000);
        let outbound = Packet {
            direction: Direction::Enqueue,
            ..PLAIN
        };
        assert!(packet(&mut out, 5, &outbound));
        assert_eq!(out[28..44], [1, 2, 3, 4, 5, 0, 0, 0, 2, 0, 4, 0, 2, 0, 0, 0]);
        assert_eq!(out.len() % 4, 0);
    }

    #[test]
    fn a_header_that_says_something_is_a_comment() {
        let offload = Offload {
            flags: 1,
            gso_type: 1,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
        };
        let mut out = Vec::with_capacity(1000);
        assert!(packet(&mut out, 100, &Packet { offload, ..PLAIN }));
        let text = "virtio-net flags=1 gso_type=1 hdr_len=54 gso_size=1448 csum_start=34 csum_offset=16";
        let end = 56 + text.len();
        assert_eq!(out[52..56], [1, 0, u8::try_from(text.len()).unwrap(), 0]);
        assert_eq!(&out[56..end], text.as_bytes());
    }

    #[test]
    fn nothing_grows_and_the_longest_comment_fits() {
        let longest = Packet {
            offload: Offload {
                flags: u8::MAX,
                gso_type: u8::MAX,
                hdr_len: u16::MAX,
                gso_size: u16::MAX,
                csum_start: u16::MAX,
                csum_offset: u16::MAX,
            },
            frame: &[7; 1514],
            ..PLAIN
        };
        let mut room = 1514 + 2;
        let mut out = loop {
            let mut out = Vec::with_capacity(room);
            if packet(&mut out, 2000, &longest) {
                break out;
            }
            assert!(out.is_empty(), "a part of a packet");
            room += 1;
        };
        let (capacity, len) = (out.capacity(), out.len());
        assert!(
            len <= capacity && capacity <= len + 8,
            "{len} bytes in {capacity}"
        );
        assert!(!packet(&mut out, 2000, &longest));
        assert_eq!((out.capacity(), out.len()), (capacity, len));
    }

    #[test]
    fn packets_come_apart_again() {
        let mut out = Vec::with_capacity(1000);
        let later = Packet {
            time: 7 << 32 | 9,
            ..PLAIN
        };
        assert!(packet(&mut out, 5, &PLAIN) && packet(&mut out, 5, &later));
        let found: Vec<_> = packets(&out).map(|(time, block)| (time, block.len())).collect();
        assert_eq!(found, [(PLAIN.time, 60), (later.time, 60)]);
        assert_eq!(packets(&out[..100]).count(), 1);
    }

    #[test]
    fn statistics_say_what_was_lost() {
        let known = Statistics {
            start: 1,
            end: 2 << 32 | 3,
            passed: 10,
            sampled: 5,
            lost: 2,
            written: 4,
        };
        let bytes = statistics(&known);
        assert_eq!(bytes.len() as u64, STATISTICS_LEN);
        assert_eq!(
            bytes[..20],
            [5, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]
        );
        assert_eq!(bytes[20..32], [2, 0, 8, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[56..68], [5, 0, 8, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    }
}

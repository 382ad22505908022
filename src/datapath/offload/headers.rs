//! Where the headers of a frame are: Ethernet, VLAN tags, IPv4 or IPv6, and what follows.

use std::ops::Range;

/// Protocol numbers of IPv4 and IPv6.
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;

/// VLAN tags that a frame may have here; further ones would be beyond what Open vSwitch pushes.
const TAGS: u8 = 2;
/// Options headers that an IPv6 packet may have; more than one of each kind is not allowed (RFC 8200, 4.1).
const OPTIONS: u8 = 3;

/// Bytes of the longest headers that are rewritten here: two tags, IPv6 with some options, TCP with all of its own.
pub(super) const LONGEST: usize = 256;

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ip {
    V4,
    V6,
}

/// The headers of one frame.
///
/// # Invariants
///
/// `l3 < l4 <= end <=` the frame's length, and the fixed part of the IP header lies before `l4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Headers {
    pub(super) tags: u8,
    pub(super) ip: Ip,
    pub(super) l3: usize,
    pub(super) protocol: u8,
    pub(super) l4: usize,
    /// Where the IP packet ends; behind it is padding.
    pub(super) end: usize,
}

impl Headers {
    /// The headers of `frame`; `None` if it is no whole IP packet: something else, a fragment, or cut short.
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let (mut at, mut tags) = (12, 0);
        loop {
            match (be16(frame, at)?, at + 2) {
                (0x0800, l3) => return ipv4(frame, tags, l3),
                (0x86dd, l3) => return ipv6(frame, tags, l3),
                (0x8100 | 0x88a8, _) if tags < TAGS => (at, tags) = (at + 4, tags + 1),
                _ => return None,
            }
        }
    }

    /// Where the payload of TCP begins, if this is TCP and its header is whole.
    pub(super) fn tcp_payload(&self, frame: &[u8]) -> Option<usize> {
        if self.protocol != TCP {
            return None;
        }
        let words = usize::from(frame.get(self.l4 + 12)? >> 4);
        let payload = self.l4 + 4 * words;
        (words >= 5 && payload <= self.end).then_some(payload)
    }

    /// Where the two addresses are that a pseudo-header has.
    pub(super) fn addresses(&self) -> Range<usize> {
        match self.ip {
            Ip::V4 => self.l3 + 12..self.l3 + 20,
            Ip::V6 => self.l3 + 8..self.l3 + 40,
        }
    }
}

fn ipv4(frame: &[u8], tags: u8, l3: usize) -> Option<Headers> {
    let first = *frame.get(l3)?;
    let (length, protocol) = (usize::from(be16(frame, l3 + 2)?), *frame.get(l3 + 9)?);
    let header = 4 * usize::from(first & 0xf);
    let fragment = be16(frame, l3 + 6)? & 0x3fff != 0;
    let (l4, end) = (l3 + header, l3 + length);
    let sound = first >> 4 == 4 && header >= 20 && !fragment && l4 <= end && end <= frame.len();
    sound.then_some(Headers {
        tags,
        ip: Ip::V4,
        l3,
        protocol,
        l4,
        end,
    })
}

fn ipv6(frame: &[u8], tags: u8, l3: usize) -> Option<Headers> {
    let fixed = l3 + 40;
    let end = fixed + usize::from(be16(frame, l3 + 4)?);
    if frame.get(l3)? >> 4 != 6 || end > frame.len() {
        return None;
    }
    let (mut protocol, mut l4) = (*frame.get(l3 + 6)?, fixed);
    for _ in 0..OPTIONS {
        match protocol {
            // Hop-by-hop and destination options. Not routing: there the pseudo-header has another address.
            0 | 60 => {
                let length = 8 * (usize::from(*frame.get(l4 + 1)?) + 1);
                (protocol, l4) = (*frame.get(l4)?, l4 + length);
            }
            _ => break,
        }
    }
    (l4 <= end).then_some(Headers {
        tags,
        ip: Ip::V6,
        l3,
        protocol,
        l4,
        end,
    })
}

/// The number in network byte order at `at`.
pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*bytes))
}

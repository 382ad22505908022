//! Packets as bytes, and all that is computed from them, without any of the code under test.

use crate::virtio::net_hdr::{Offload, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM};

/// Numbers that are the same in every run (xorshift).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    pub(super) fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;

/// How a packet is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) tags: usize,
    pub(super) v6: bool,
    /// Bytes of IPv4 options or IPv6 destination options, a multiple of 8.
    pub(super) options: usize,
    pub(super) protocol: u8,
    /// Bytes of TCP options, a multiple of 4.
    pub(super) tcp_options: usize,
    pub(super) tcp_flags: u8,
    pub(super) payload: usize,
}

impl Packet {
    pub(super) const TCP4: Packet = Packet {
        tags: 0,
        v6: false,
        options: 0,
        protocol: TCP,
        tcp_options: 12,
        tcp_flags: 0x18,
        payload: 100,
    };

    pub(super) fn random(random: &mut Random) -> Self {
        Packet {
            tags: random.below(2),
            v6: random.chance(2),
            options: 8 * random.below(3),
            protocol: [TCP, UDP][random.below(2)],
            tcp_options: 4 * random.below(11),
            tcp_flags: 0x10 | random.next().to_le_bytes()[0] & 0x8f,
            payload: random.below(1300),
        }
    }

    pub(super) fn l3(&self) -> usize {
        14 + 4 * self.tags
    }

    pub(super) fn l4(&self) -> usize {
        self.l3() + if self.v6 { 40 } else { 20 } + self.options
    }

    pub(super) fn l4_header(&self) -> usize {
        match self.protocol {
            TCP => 20 + self.tcp_options,
            UDP => 8,
            _ => 12,
        }
    }

    pub(super) fn headers(&self) -> usize {
        self.l4() + self.l4_header()
    }

    pub(super) fn field(&self) -> usize {
        match self.protocol {
            TCP => 16,
            UDP => 6,
            _ => 8,
        }
    }

    /// The packet with everything computed.
    pub(super) fn whole(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.partial(random);
        complete(&mut bytes, self);
        bytes
    }

    /// The packet with the sum of the pseudo-header where the checksum will be.
    pub(super) fn partial(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = random.bytes(12);
        bytes[0] &= 0xfe;
        for _ in 0..self.tags {
            bytes.extend([0x81, 0x00, 0x00, 0x2a]);
        }
        bytes.extend(if self.v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        let l4_len = self.l4_header() + self.payload;
        if self.v6 {
            self.push_ipv6(&mut bytes, l4_len, random);
        } else {
            self.push_ipv4(&mut bytes, l4_len, random);
        }
        let mut header = random.bytes(self.l4_header());
        match self.protocol {
            TCP => {
                header[12] = u8::try_from(self.l4_header() / 4).unwrap() << 4;
                header[13] = self.tcp_flags;
            }
            UDP => header[4..6].copy_from_slice(&u16::try_from(l4_len).unwrap().to_be_bytes()),
            _ => {}
        }
        bytes.extend(header);
        bytes.extend(random.bytes(self.payload));
        let at = self.l4() + self.field();
        let sum = fold(pseudo_sum(&bytes, self));
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn push_ipv4(&self, bytes: &mut Vec<u8>, l4_len: usize, random: &mut Random) {
        let header = 20 + self.options;
        let total = u16::try_from(header + l4_len).unwrap().to_be_bytes();
        let start = bytes.len();
        bytes.push(0x40 | u8::try_from(header / 4).unwrap());
        bytes.push(0);
        bytes.extend(total);
        bytes.extend(random.bytes(2));
        bytes.extend([0x40, 0, 64, self.protocol, 0, 0]);
        bytes.extend(random.bytes(8));
        bytes.extend(vec![1; self.options]);
        let checksum = !fold(sum(&bytes[start..]));
        bytes[start + 10..start + 12].copy_from_slice(&checksum.to_be_bytes());
    }

    fn push_ipv6(&self, bytes: &mut Vec<u8>, l4_len: usize, random: &mut Random) {
        let length = u16::try_from(self.options + l4_len).unwrap().to_be_bytes();
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend(length);
        bytes.extend([if self.options > 0 { 60 } else { self.protocol }, 64]);
        bytes.extend(random.bytes(32));
        if self.options > 0 {
            let mut options = vec![0; self.options];
            options[0] = self.protocol;
            options[1] = u8::try_from(self.options / 8 - 1).unwrap();
            options[2..4].copy_from_slice(&[1, u8::try_from(self.options - 4).unwrap()]);
            bytes.extend(options);
        }
    }

    /// The word of a driver that leaves the checksum.
    pub(super) fn checksum(&self) -> Offload {
        Offload {
            flags: NEEDS_CSUM,
            csum_start: u16::try_from(self.l4()).unwrap(),
            csum_offset: u16::try_from(self.field()).unwrap(),
            ..Offload::NONE
        }
    }

    /// The word of a driver that leaves the cutting too.
    pub(super) fn segments(&self, size: u16) -> Offload {
        Offload {
            gso_type: if self.v6 { GSO_TCPV6 } else { GSO_TCPV4 },
            hdr_len: u16::try_from(self.headers()).unwrap(),
            gso_size: size,
            ..self.checksum()
        }
    }
}

/// The sum of 16-bit words, one after the other.
fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

fn fold(sum: u32) -> u16 {
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap()
}

fn pseudo_sum(bytes: &[u8], packet: &Packet) -> u32 {
    let l3 = packet.l3();
    let addresses = match packet.v6 {
        true => &bytes[l3 + 8..l3 + 40],
        false => &bytes[l3 + 12..l3 + 20],
    };
    sum(addresses) + u32::from(packet.protocol) + u32::try_from(bytes.len() - packet.l4()).unwrap()
}

/// Writes the checksum that the field should hold.
pub(super) fn complete(bytes: &mut [u8], packet: &Packet) {
    let at = packet.l4() + packet.field();
    bytes[at..at + 2].fill(0);
    let checksum = !fold(pseudo_sum(bytes, packet) + sum(&bytes[packet.l4()..]));
    let checksum = if checksum == 0 { 0xffff } else { checksum };
    bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// The segments of a packet, with everything computed.
pub(super) fn segments(bytes: &[u8], packet: &Packet, size: usize) -> Vec<Vec<u8>> {
    let (l3, l4, headers) = (packet.l3(), packet.l4(), packet.headers());
    let count = (bytes.len() - headers).div_ceil(size);
    let be16 = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let sequence = u32::from(be16(l4 + 4)) << 16 | u32::from(be16(l4 + 6));
    bytes[headers..]
        .chunks(size)
        .enumerate()
        .map(|(index, payload)| {
            let mut segment = [&bytes[..headers], payload].concat();
            let ip_len = segment.len() - l3;
            if packet.v6 {
                let length = u16::try_from(ip_len - 40).unwrap();
                segment[l3 + 4..l3 + 6].copy_from_slice(&length.to_be_bytes());
            } else {
                let id = be16(l3 + 4).wrapping_add(u16::try_from(index).unwrap());
                segment[l3 + 2..l3 + 4].copy_from_slice(&u16::try_from(ip_len).unwrap().to_be_bytes());
                segment[l3 + 4..l3 + 6].copy_from_slice(&id.to_be_bytes());
                segment[l3 + 10..l3 + 12].fill(0);
                let checksum = !fold(sum(&segment[l3..l4]));
                segment[l3 + 10..l3 + 12].copy_from_slice(&checksum.to_be_bytes());
            }
            let place = sequence.wrapping_add(u32::try_from(index * size).unwrap());
            segment[l4 + 4..l4 + 8].copy_from_slice(&place.to_be_bytes());
            if index > 0 {
                segment[l4 + 13] &= 0x7f;
            }
            if index + 1 < count {
                segment[l4 + 13] &= !0x09;
            }
            complete(&mut segment, packet);
            segment
        })
        .collect()
}

/// CRC-32C by long division of polynomials, most significant bit first.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    let mut rest = 0xffff_ffff_u32;
    for byte in bytes {
        rest ^= u32::from(byte.reverse_bits()) << 24;
        for _ in 0..8 {
            rest = if rest >> 31 == 1 {
                rest << 1 ^ 0x1edc_6f41
            } else {
                rest << 1
            };
        }
    }
    !rest.reverse_bits()
}

#[test]
fn the_naive_crc_is_that_of_the_check_value() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

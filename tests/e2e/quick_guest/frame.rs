//! What a quick guest sends: one frame, again and again, with a stamp in it.

use ovs_vhost::datapath::Offload;
use ovs_vhost::virtio::features::*;
use ovs_vhost::virtio::net_hdr::{GSO_TCPV4, LONG, NEEDS_CSUM};

/// Which frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sends {
    /// Of 64 bytes with the checksum that Ethernet has on a wire.
    Small,
    /// As much of a TCP stream over IPv4 as fits into one, to be cut into segments and to be summed.
    Segments,
}

/// The frame, and what goes with it.
pub struct Frame {
    pub bytes: Vec<u8>,
    pub offload: Offload,
    /// Where in it its stamp is.
    pub stamp: u64,
    /// Bytes of a buffer that such frames are received into, header included, and how many one fills.
    pub room: u32,
    pub buffers: u16,
    /// What has to be negotiated for it.
    pub features: Features,
}

const ETHERNET: u16 = 14;
const IPV4: u16 = 20;
const HEADERS: u16 = ETHERNET + IPV4 + 20;
const TCP: u8 = 6;
/// Payload of a segment: what an MTU of 1500 leaves behind IPv4, TCP and its time stamps.
const SEGMENT: u16 = 1448;
/// So many fit into what the length of IPv4 can say.
const SEGMENTS: u16 = 45;
/// Linux's buffers for large frames.
const PAGE: u32 = 4096;

impl Sends {
    pub fn frame(self) -> Frame {
        match self {
            Sends::Small => small(),
            Sends::Segments => segments(),
        }
    }
}

fn small() -> Frame {
    let mut bytes = vec![0; 60];
    // Of a type for experiments (IEEE 802).
    lay(&mut bytes, 0, &addresses(0x88b5));
    Frame {
        bytes,
        offload: Offload::NONE,
        stamp: ETHERNET.into(),
        room: 2048,
        buffers: 1,
        features: Features::NONE,
    }
}

fn segments() -> Frame {
    let length = HEADERS + SEGMENTS * SEGMENT - ETHERNET;
    let mut bytes = vec![0; usize::from(ETHERNET + length)];
    let ends = [10, 0, 0, 1, 10, 0, 0, 2];
    lay(&mut bytes, 0, &addresses(0x0800));
    let [high, low] = length.to_be_bytes();
    let mut ip = [&[0x45, 0, high, low, 0, 0, 0, 0, 64, TCP, 0, 0], &ends[..]].concat();
    let checksum = !sum(&ip);
    lay(&mut ip, 10, &checksum.to_be_bytes());
    lay(&mut bytes, ETHERNET, &ip);
    // Ports 1 and 2, an ACK; where the checksum goes is the sum of the pseudo-header.
    let [high, low] = (length - IPV4).to_be_bytes();
    let pseudo_header = [&ends[..], &[0, TCP, high, low]].concat();
    let [high, low] = sum(&pseudo_header).to_be_bytes();
    let tcp = [
        0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, high, low,
    ];
    lay(&mut bytes, ETHERNET + IPV4, &tcp);
    let buffers = (bytes.len() + LONG as usize).div_ceil(PAGE as usize);
    Frame {
        offload: Offload {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            hdr_len: HEADERS,
            gso_size: SEGMENT,
            csum_start: ETHERNET + IPV4,
            csum_offset: 16,
        },
        bytes,
        stamp: HEADERS.into(),
        room: PAGE,
        buffers: u16::try_from(buffers).expect("few"),
        features: VIRTIO_NET_F_CSUM
            .with(VIRTIO_NET_F_GUEST_CSUM)
            .with(VIRTIO_NET_F_HOST_TSO4)
            .with(VIRTIO_NET_F_GUEST_TSO4)
            .with(VIRTIO_NET_F_MRG_RXBUF),
    }
}

fn lay(bytes: &mut [u8], at: u16, what: &[u8]) {
    bytes[usize::from(at)..][..what.len()].copy_from_slice(what);
}

/// An Ethernet header between two stations of nobody's.
fn addresses(kind: u16) -> [u8; ETHERNET as usize] {
    let [high, low] = kind.to_be_bytes();
    [2, 0, 0, 0, 0, 2, 6, 0, 0, 0, 0, 1, high, low]
}

/// The ones' complement sum of an even number of bytes.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks_exact(2)
        .map(|word| u16::from_be_bytes([word[0], word[1]]));
    words.fold(0, |sum: u16, word| {
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

//! `struct virtio_net_hdr` (VIRTIO 1.2, 5.1.6): what stands before each frame.

use super::features::{Features, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF};

/// Header bytes of a legacy driver that did not negotiate mergeable buffers: no `num_buffers`.
pub const SHORT: u32 = 10;
/// Header bytes of every other driver.
pub const LONG: u32 = 12;

/// The short header of a frame that asks nothing of the driver, and so much of the long one as comes before `num_buffers`.
pub const PLAIN_SHORT: [u8; SHORT as usize] = [0; SHORT as usize];
/// `num_buffers` of a frame that lies in one buffer.
pub const NUM_BUFFERS: [u8; 2] = 1_u16.to_le_bytes();
/// `flags`: the checksum is to be computed from `csum_start` on and stored `csum_offset` bytes behind that.
pub const NEEDS_CSUM: u8 = 1;
/// `gso_type`: a frame as it goes on the wire.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4, to be cut into segments.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: TCP over IPv6, to be cut into segments.
pub const GSO_TCPV6: u8 = 4;
/// In `gso_type`, beside another: the TCP header has CWR set, which belongs into the first segment alone.
pub const GSO_ECN: u8 = 0x80;

/// What is left to be done to a frame: the header's fields but `num_buffers`, in host byte order.
///
/// All zero means nothing. The layout is that of the C border's word.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// [`NEEDS_CSUM`], or nothing.
    pub flags: u8,
    /// [`GSO_NONE`], [`GSO_TCPV4`] or [`GSO_TCPV6`], either of these with [`GSO_ECN`] or without.
    pub gso_type: u8,
    /// Bytes of all headers that each segment begins with.
    pub hdr_len: u16,
    /// Bytes of payload in each segment but the last.
    pub gso_size: u16,
    /// Where the checksum begins, in bytes from the front of the frame.
    pub csum_start: u16,
    /// Where it goes, in bytes from `csum_start`.
    pub csum_offset: u16,
}

impl Offload {
    /// Nothing is left to be done.
    pub const NONE: Self = Self {
        flags: 0,
        gso_type: GSO_NONE,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// What the first [`SHORT`] bytes of a header say, in the byte order of VIRTIO 1.0 and of legacy guests here.
    #[inline(always)]
    pub fn decode(bytes: [u8; SHORT as usize]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        }
    }

    /// The first [`SHORT`] bytes of a header that says this.
    #[inline(always)]
    pub fn encode(self) -> [u8; SHORT as usize] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// Whether nothing is left to be done. Flags that are not known say nothing (5.1.6.2.2).
    #[inline(always)]
    pub fn is_none(self) -> bool {
        self.flags & NEEDS_CSUM == 0 && self.gso_type == GSO_NONE
    }

    /// Whether the frame is to be cut into segments.
    #[inline(always)]
    pub fn is_gso(self) -> bool {
        self.gso_type != GSO_NONE
    }
}

/// Whether drivers with these features use the long header.
pub fn is_long(features: Features) -> bool {
    features.contains(VIRTIO_F_VERSION_1) || features.contains(VIRTIO_NET_F_MRG_RXBUF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_little_endian_and_comes_back_as_it_was() {
        let bytes = [1, 4, 0x02, 0x01, 0x04, 0x03, 0x06, 0x05, 0x08, 0x07];
        let word = Offload::decode(bytes);
        assert_eq!((word.flags, word.gso_type), (NEEDS_CSUM, GSO_TCPV6));
        assert_eq!((word.hdr_len, word.gso_size), (0x0102, 0x0304));
        assert_eq!((word.csum_start, word.csum_offset), (0x0506, 0x0708));
        assert_eq!(word.encode(), bytes);
        assert_eq!(Offload::NONE.encode(), PLAIN_SHORT);
    }

    #[test]
    fn flags_that_are_not_known_say_nothing() {
        let unknown = Offload {
            flags: !NEEDS_CSUM,
            csum_start: 7,
            ..Offload::NONE
        };
        assert!(unknown.is_none());
    }

    #[test]
    fn only_legacy_drivers_without_mergeable_buffers_use_the_short_header() {
        assert!(!is_long(Features::NONE));
        assert!(is_long(VIRTIO_F_VERSION_1));
        assert!(is_long(VIRTIO_NET_F_MRG_RXBUF));
    }
}

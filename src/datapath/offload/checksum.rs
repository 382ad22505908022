//! Checksums: the Internet's (RFC 1071) and SCTP's (CRC-32C, RFC 9260 appendix A).

/// A ones' complement sum in the making. It is the same in any byte order, so here it is made in little-endian words.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// This sum and these bytes. An odd number of them is only for the end.
    pub(super) fn and(self, bytes: &[u8]) -> Self {
        let words = bytes.chunks_exact(4);
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(words.remainder()) {
            *to = *from;
        }
        let last = u64::from(u32::from_le_bytes(last));
        // No carry is lost: of 2^32 words, far more than a frame has, all would fit.
        Self(words.fold(self.0 + last, |sum, word| sum + little_endian(word)))
    }

    /// The checksum field, as bytes of the frame. Never zero, which says in UDP that there is no checksum; the other
    /// zero of ones' complement is as good to everybody else.
    pub(super) fn field(self) -> [u8; 2] {
        match !self.fold() {
            0 => [0xff; 2],
            field => field.to_le_bytes(),
        }
    }

    fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        u16::try_from(sum).unwrap_or(0)
    }
}

fn little_endian(word: &[u8]) -> u64 {
    word.first_chunk::<4>()
        .map_or(0, |word| u64::from(u32::from_le_bytes(*word)))
}

/// The checksum of `bytes`, of which the field holds the sum of the pseudo-header.
pub(super) fn internet(bytes: &[u8]) -> [u8; 2] {
    Sum::default().and(bytes).field()
}

/// Where SCTP's checksum is in its header.
pub(super) const SCTP_FIELD: usize = 8;

/// SCTP's checksum of `packet`, whatever its field holds.
pub(super) fn sctp(packet: &[u8]) -> [u8; 4] {
    let (before, rest) = packet.split_at(packet.len().min(SCTP_FIELD));
    let (_, after) = rest.split_at(rest.len().min(4));
    let bytes = before.iter().chain(&[0; 4]).chain(after);
    (!bytes.fold(!0, |crc, byte| crc32c(crc, *byte))).to_le_bytes()
}

/// One byte of CRC-32C, bit by bit: no guest of ours leaves this to its device, and the host rarely.
fn crc32c(crc: u32, byte: u8) -> u32 {
    (0..8).fold(crc ^ u32::from(byte), |crc, _| {
        (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
    })
}

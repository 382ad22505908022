//! TCP over IPv4 or IPv6, cut into segments.

use super::checksum::Sum;
use super::headers::{be16, Headers, Ip, LONGEST, TCP};

/// Segments of one frame at most: enough to cut 64 KiB by the smallest segment size that every host must take (536).
/// More would be a guest that makes work.
pub(super) const SEGMENTS: usize = 128;

/// TCP flags, in the byte at 13.
pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const CWR: u8 = 0x80;
pub(super) const FLAGS: usize = 13;

/// The front of a frame, rewritten.
pub(super) struct Head {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Head {
    /// A copy of `front`, which is not longer than [`LONGEST`].
    pub(super) fn new(front: &[u8]) -> Option<Self> {
        let mut bytes = [0; LONGEST];
        bytes.get_mut(..front.len())?.copy_from_slice(front);
        Some(Self {
            bytes,
            len: front.len(),
        })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Replaces the bytes at `at`.
    pub(super) fn set(&mut self, at: usize, bytes: &[u8]) -> Option<()> {
        let front = self.bytes.get_mut(..self.len)?;
        front.get_mut(at..at + bytes.len())?.copy_from_slice(bytes);
        Some(())
    }
}

/// A frame that is to be cut.
pub(super) struct Segments<'a> {
    frame: &'a [u8],
    headers: Headers,
    /// Where the payload begins.
    payload: usize,
    /// Bytes of payload in each but the last.
    size: usize,
    count: usize,
}

impl<'a> Segments<'a> {
    /// Cuts `frame`, which has these headers and its payload at `payload`, into pieces of `size` bytes; `None` if that is
    /// no sensible thing to ask.
    pub(super) fn new(frame: &'a [u8], headers: Headers, payload: usize, size: u16) -> Option<Self> {
        let size = usize::from(size);
        let count = headers.end.checked_sub(payload)?.div_ceil(size.max(1));
        let sensible = size > 0 && payload <= LONGEST && (1..=SEGMENTS).contains(&count);
        sensible.then_some(Self {
            frame,
            headers,
            payload,
            size,
            count,
        })
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Segment `index`: its headers, and its part of the payload.
    pub(super) fn get(&self, index: usize) -> Option<(Head, &'a [u8])> {
        let from = self.payload + index * self.size;
        let to = self.headers.end.min(from + self.size);
        let payload = self.frame.get(from..to)?;
        let mut head = Head::new(self.frame.get(..self.payload)?)?;
        self.rewrite_ip(&mut head, index, payload)?;
        self.rewrite_tcp(&mut head, index, payload)?;
        Some((head, payload))
    }

    /// Lengths, and in IPv4 the identification, which counts segments, and the header's checksum.
    fn rewrite_ip(&self, head: &mut Head, index: usize, payload: &[u8]) -> Option<()> {
        let Headers { ip, l3, l4, .. } = self.headers;
        let length = u16::try_from(self.payload - l3 + payload.len()).ok()?;
        match ip {
            Ip::V4 => {
                let id = be16(self.frame, l3 + 4)?.wrapping_add(u16::try_from(index).ok()?);
                head.set(l3 + 2, &length.to_be_bytes())?;
                head.set(l3 + 4, &id.to_be_bytes())?;
                head.set(l3 + 10, &[0; 2])?;
                let checksum = Sum::default().and(head.bytes().get(l3..l4)?);
                head.set(l3 + 10, &checksum.field())
            }
            Ip::V6 => head.set(l3 + 4, &length.checked_sub(40)?.to_be_bytes()),
        }
    }

    /// The sequence number, the flags that belong to one segment only, and the checksum.
    fn rewrite_tcp(&self, head: &mut Head, index: usize, payload: &[u8]) -> Option<()> {
        let l4 = self.headers.l4;
        let sequence = self.frame.get(l4 + 4..)?.first_chunk::<4>()?;
        let passed = u32::try_from(index * self.size).ok()?;
        let sequence = u32::from_be_bytes(*sequence).wrapping_add(passed);
        head.set(l4 + 4, &sequence.to_be_bytes())?;
        let mut flags = *self.frame.get(l4 + FLAGS)?;
        if index > 0 {
            flags &= !CWR;
        }
        if index + 1 < self.count {
            flags &= !(FIN | PSH);
        }
        head.set(l4 + FLAGS, &[flags])?;
        head.set(l4 + 16, &[0; 2])?;
        let length = u16::try_from(self.payload - l4 + payload.len()).ok()?;
        let [high, low] = length.to_be_bytes();
        let checksum = Sum::default()
            .and(self.frame.get(self.headers.addresses())?)
            .and(&[0, TCP, high, low])
            .and(head.bytes().get(l4..)?)
            .and(payload);
        head.set(l4 + 16, &checksum.field())
    }
}

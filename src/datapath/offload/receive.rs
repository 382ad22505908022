//! Out of the guest: what its driver left to be done, proven before the host hears of it.

use super::headers::{Headers, Ip, LONGEST, SCTP, TCP, UDP};
use super::{checksum, Offloads};
use crate::datapath::frame::Taken;
use crate::datapath::slot::{RxSlot, MAX_FRAME};
use crate::virtio::net_hdr::{Offload, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, SHORT};

impl Offloads {
    /// What becomes of the frame in `slot`, before which `header` stood.
    #[inline(always)]
    pub(in crate::datapath) fn judge(&self, header: [u8; SHORT as usize], slot: &mut RxSlot<'_>) -> Taken {
        let said = Offload::decode(header);
        if said.is_none() {
            return Taken::Frame;
        }
        self.judge_offload(said, slot)
    }

    /// What becomes of a frame of `len` bytes, which are more than the slot's room. One that a slot can be made for stays
    /// where it is until that is done.
    #[cold]
    pub(in crate::datapath) fn too_large(&self, len: u32) -> Taken {
        match self.on && len <= MAX_FRAME {
            true => Taken::Large(len),
            false => Taken::Oversize,
        }
    }

    /// A driver that did not negotiate checksums leaves the header zero (5.1.6.2.1); what it says else means nothing. One
    /// that did and asks for what it did not negotiate, or what cannot be done, loses the frame: it is not as it goes on
    /// the wire, and nobody but the driver knows what it should have been.
    fn judge_offload(&self, said: Offload, slot: &mut RxSlot<'_>) -> Taken {
        if !self.on || !self.from_driver.checksum {
            return Taken::Frame;
        }
        match self.prove(said, slot.frame()) {
            Some(Proven::Word(word)) => {
                slot.set_offload(word);
                Taken::Frame
            }
            Some(Proven::Field(at, field)) => {
                write(slot, at, &field);
                Taken::Frame
            }
            Some(Proven::SctpField(at, field)) => {
                write(slot, at, &field);
                Taken::Frame
            }
            None => Taken::Invalid,
        }
    }

    /// What is to be done, in terms that the host knows, or done already.
    fn prove(&self, said: Offload, frame: &[u8]) -> Option<Proven> {
        let (start, offset) = (usize::from(said.csum_start), usize::from(said.csum_offset));
        if said.flags & NEEDS_CSUM == 0 || start + offset + 2 > frame.len() {
            return None;
        }
        let headers = Headers::of(frame).filter(|headers| headers.l4 == start);
        if said.is_gso() {
            return self.prove_segments(said, frame, headers?).map(Proven::Word);
        }
        match headers {
            Some(headers) if is_known(headers, offset) => Some(Proven::Word(checksum_word(headers, offset))),
            // The host could pass this on, but VIRTIO has no form for it.
            Some(headers) if (headers.protocol, offset) == (SCTP, checksum::SCTP_FIELD) => {
                let packet = frame.get(start..headers.end)?;
                Some(Proven::SctpField(start + offset, checksum::sctp(packet)))
            }
            // The host has no word for it: the packet inside a tunnel, say. So it is done here.
            _ => {
                let field = checksum::internet(frame.get(start..)?);
                Some(Proven::Field(start + offset, field))
            }
        }
    }

    fn prove_segments(&self, said: Offload, frame: &[u8], headers: Headers) -> Option<Offload> {
        let offset = usize::from(said.csum_offset);
        let payload = headers.tcp_payload(frame)?;
        let ip = match said.gso_type & !GSO_ECN {
            GSO_TCPV4 => Ip::V4,
            GSO_TCPV6 => Ip::V6,
            _ => return None,
        };
        let ecn = said.gso_type & GSO_ECN != 0;
        let negotiated = self.from_driver.take_segments(ip, ecn);
        if !negotiated || ip != headers.ip || said.gso_size == 0 || !is_known(headers, offset) {
            return None;
        }
        let word = checksum_word(headers, offset);
        if headers.end - payload <= usize::from(said.gso_size) {
            return Some(word);
        }
        Some(Offload {
            gso_type: said.gso_type,
            // The driver's own is a hint that nobody may rely on (5.1.6.2.2).
            hdr_len: u16::try_from(payload).ok()?,
            gso_size: said.gso_size,
            ..word
        })
    }
}

/// What is left to be done to a frame, once proven.
enum Proven {
    /// By the host.
    Word(Offload),
    /// Nothing, when this is written there.
    Field(usize, [u8; 2]),
    SctpField(usize, [u8; 4]),
}

/// Whether the host has a word for this checksum: Open vSwitch finds these headers itself, with one tag by default.
fn is_known(headers: Headers, offset: usize) -> bool {
    let known = matches!((headers.protocol, offset), (TCP, 16) | (UDP, 6));
    known && headers.tags <= 1 && headers.l4 <= LONGEST - 60 && headers.l4 + offset + 2 <= headers.end
}

fn checksum_word(headers: Headers, offset: usize) -> Offload {
    Offload {
        flags: NEEDS_CSUM,
        gso_type: GSO_NONE,
        csum_start: u16::try_from(headers.l4).unwrap_or(0),
        csum_offset: u16::try_from(offset).unwrap_or(0),
        ..Offload::NONE
    }
}

/// Writes a field of the frame, which was checked to lie in it.
fn write(slot: &mut RxSlot<'_>, at: usize, field: &[u8]) {
    let to = slot.frame_mut().iter_mut().skip(at);
    for (to, from) in to.zip(field) {
        *to = *from;
    }
}

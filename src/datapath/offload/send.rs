//! Into the guest: each frame in a form that its driver negotiated.

use super::headers::{Headers, Ip};
use super::segment::{Head, Segments, CWR, FLAGS, SEGMENTS};
use super::{checksum, Offloads};
use crate::datapath::config::FaultReason;
use crate::datapath::counters::{Counters, Tally};
use crate::datapath::frame::{Frame, Put};
use crate::datapath::slot::TxSlot;
use crate::virtio::net_hdr::{Offload, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM};

// A tally counts up to 255 frames of one size.
const _: () = assert!(SEGMENTS < 256);

/// What to do with a frame.
enum Form<'a> {
    /// The driver does what is left.
    Header(Offload),
    /// Nothing is left with this front, in place of as many bytes.
    Front(Head),
    Segments(Segments<'a>),
}

impl Offloads {
    /// Sends the frame of `slot` by `put`, which puts one frame into the chains behind as many as it is told: whole, or
    /// nothing of it. Counts what it sent.
    #[inline(never)]
    pub(in crate::datapath) fn send(
        &self,
        slot: &TxSlot<'_>,
        tally: &mut Tally,
        counters: &Counters,
        mut put: impl FnMut(&Frame<'_>, u16) -> Result<Put, FaultReason>,
    ) -> Result<Put, FaultReason> {
        let bytes = slot.frame();
        let head;
        let frame = match self.form(slot.offload(), bytes) {
            Some(Form::Header(word)) => Frame::with_header(word.encode(), bytes),
            Some(Form::Front(front)) => {
                head = front;
                Frame::new(head.bytes(), bytes.get(head.bytes().len()..).unwrap_or_default())
            }
            Some(Form::Segments(segments)) => return send_segments(&segments, counters, put),
            None => return Ok(Put::Invalid),
        };
        let put = put(&frame, 0)?;
        if matches!(put, Put::Done(_)) {
            tally.count(frame.front(), frame.len());
        }
        Ok(put)
    }

    /// The form for a frame to which `word` is left to be done; `None` if that makes no sense.
    fn form<'a>(&self, word: Offload, frame: &'a [u8]) -> Option<Form<'a>> {
        let (start, offset) = (usize::from(word.csum_start), usize::from(word.csum_offset));
        if word.flags & NEEDS_CSUM == 0 || start + offset + 2 > frame.len() {
            return None;
        }
        if word.is_gso() {
            if let Some(form) = self.segments(word, frame)? {
                return Some(form);
            }
        }
        if offset == checksum::SCTP_FIELD {
            return sctp(frame, start);
        }
        if self.to_driver.checksum {
            return Some(Form::Header(Offload {
                flags: NEEDS_CSUM,
                csum_start: word.csum_start,
                csum_offset: word.csum_offset,
                ..Offload::NONE
            }));
        }
        let at = start + offset;
        let mut head = Head::new(frame.get(..at + 2)?)?;
        head.set(at, &checksum::internet(frame.get(start..)?))?;
        Some(Form::Front(head))
    }

    /// The form for a frame to be cut, or nothing if there is nothing to cut.
    fn segments<'a>(&self, word: Offload, frame: &'a [u8]) -> Option<Option<Form<'a>>> {
        let headers = Headers::of(frame).filter(|headers| headers.l4 == usize::from(word.csum_start))?;
        let payload = headers.tcp_payload(frame)?;
        let (kind, size) = match headers.ip {
            Ip::V4 => (GSO_TCPV4, word.gso_size),
            Ip::V6 => (GSO_TCPV6, word.gso_size),
        };
        if kind != word.gso_type & !GSO_ECN || word.csum_offset != 16 {
            return None;
        }
        if headers.end - payload <= usize::from(size) {
            return Some(None);
        }
        let ecn = frame.get(headers.l4 + FLAGS)? & CWR != 0;
        if !self.to_driver.take_segments(headers.ip, ecn) {
            return Segments::new(frame, headers, payload, size).map(|cut| Some(Form::Segments(cut)));
        }
        if size == 0 {
            return None;
        }
        Some(Some(Form::Header(Offload {
            flags: NEEDS_CSUM,
            gso_type: kind | if ecn { GSO_ECN } else { GSO_NONE },
            hdr_len: u16::try_from(payload).ok()?,
            ..word
        })))
    }
}

/// VIRTIO's checksum is the Internet's: SCTP's is no driver's to make.
fn sctp(frame: &[u8], start: usize) -> Option<Form<'_>> {
    let end = Headers::of(frame).map_or(frame.len(), |headers| headers.end);
    let at = start + checksum::SCTP_FIELD;
    let mut head = Head::new(frame.get(..at + 4)?)?;
    head.set(at, &checksum::sctp(frame.get(start..end)?))?;
    Some(Form::Front(head))
}

fn send_segments(
    segments: &Segments<'_>,
    counters: &Counters,
    mut put: impl FnMut(&Frame<'_>, u16) -> Result<Put, FaultReason>,
) -> Result<Put, FaultReason> {
    let (mut taken, mut tally) = (0_u16, Tally::default());
    for index in 0..segments.count() {
        let Some((head, payload)) = segments.get(index) else {
            return Ok(Put::Invalid);
        };
        let frame = Frame::new(head.bytes(), payload);
        match put(&frame, taken)? {
            Put::Done(chains) => taken += chains,
            other => return Ok(other),
        }
        tally.count(frame.front(), frame.len());
    }
    counters.add(&tally);
    Ok(Put::Done(taken))
}

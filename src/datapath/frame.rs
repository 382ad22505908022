//! Frames on their way between slots and chains of guest memory, whatever the ring's layout.

use super::ahead::Plan;
use super::config::FaultReason;
use super::counters::Tally;
use super::dirty::Dirty;
use super::offload::Offloads;
use super::set::Set;
use super::slot::{RxSlot, TxSlot};
use crate::memory::{Cursor, GuestSlice};
use crate::virtio::chain::{self, Chain, ChainError, DescRing, Readable, Writable};
use crate::virtio::desc::Desc;
use crate::virtio::net_hdr::{self, NUM_BUFFERS, PLAIN_SHORT};

/// Descriptors that one burst walks before it leaves the rest to the next: the most that a poll thread spends on
/// chains that a driver made long for no good reason. Ordinary chains of 20 fragments still fill a burst.
pub(super) const WORK: u32 = 1024;

/// Bytes of large frames, in chains or in slots of their own, that one burst takes before it leaves the rest to the next: no
/// more than a poll thread's own cache still holds when they are sent on.
pub(super) const BYTES: u32 = 128 << 10;

/// Bytes that are as much work as a descriptor.
const WORTH: u32 = BYTES / WORK;

/// Bytes at the front of each buffer whose lines are asked for while a burst is looked up: a small frame with its header.
pub(super) const NEAR: u32 = 76;

// ---- out of the guest ----

/// What became of one chain.
pub(super) enum Taken {
    Frame,
    /// No more than a header.
    Runt,
    /// More than the slot's room.
    Oversize,
    /// This many bytes, which are more than the slot's room but would fit in another. Nothing is taken.
    Large(u32),
    /// Something was left to be done to it that cannot be done.
    Invalid,
}

impl Taken {
    #[inline(always)]
    pub(super) fn is_frame(&self) -> bool {
        matches!(self, Self::Frame)
    }

    /// Counts it unless it is a frame, which is counted with its burst, and says how many frames it is.
    #[inline(always)]
    pub(super) fn count(self, tally: &mut Tally) -> usize {
        match self {
            Self::Frame => return 1,
            Self::Runt => tally.runts += 1,
            Self::Oversize => tally.oversize += 1,
            Self::Invalid => tally.invalid += 1,
            Self::Large(_) => {}
        }
        0
    }
}

/// Takes the frame out of a buffer in one piece.
#[inline(always)]
pub(super) fn take<S: Set>(buffer: GuestSlice<'_>, slot: &mut RxSlot<'_>, offloads: &Offloads) -> Taken {
    // What the header says matters only to offloads: without them it is not even read.
    let (header, frame) = buffer.split_at(S::HEADER);
    if frame.is_empty() {
        slot.clear();
        return Taken::Runt;
    }
    match (slot.receive(frame), S::EXTRA) {
        (true, false) => Taken::Frame,
        (true, true) => offloads.judge(header.read_array().unwrap_or_default(), slot),
        (false, false) => Taken::Oversize,
        (false, true) => offloads.too_large(frame.len()),
    }
}

/// Takes the frame out of any chain. The header may lie in any number of descriptors and share one with the frame.
///
/// Walks to the end of a frame that does not fit, too: a chain without end is a broken ring, however long its frame.
#[inline(never)]
pub(super) fn gather<'m, S: Set, R: DescRing>(
    chain: &mut Chain<'m, R, Readable>,
    cursor: &mut Cursor<'m>,
    slot: &mut RxSlot<'_>,
    offloads: &Offloads,
    work: &mut u32,
) -> Result<Taken, ChainError> {
    slot.clear();
    let mut header = Gathered::new::<S>();
    let mut len = 0_u32;
    let mut fits = true;
    while let Some(piece) = chain.next(cursor)? {
        chain.prefetch_next(cursor);
        let (in_header, frame) = piece.split_at(header.left);
        header.take::<S>(in_header);
        // A chain has less than 2^32 bytes.
        len = len.saturating_add(frame.len());
        fits = fits && slot.append(frame);
    }
    *work += u32::from(chain.walked()) + len / WORTH;
    Ok(match (fits, S::EXTRA) {
        _ if len == 0 => Taken::Runt,
        (true, false) => Taken::Frame,
        (true, true) => offloads.judge(header.bytes, slot),
        (false, extra) => {
            slot.clear();
            if extra {
                offloads.too_large(len)
            } else {
                Taken::Oversize
            }
        }
    })
}

/// A header on its way out of guest memory, piece by piece.
struct Gathered {
    /// Of these only as many are read as matter.
    bytes: [u8; net_hdr::SHORT as usize],
    left: u32,
}

impl Gathered {
    fn new<S: Set>() -> Self {
        Self {
            bytes: [0; net_hdr::SHORT as usize],
            left: S::HEADER,
        }
    }

    /// Takes what comes next of the header.
    fn take<S: Set>(&mut self, piece: GuestSlice<'_>) {
        if S::EXTRA {
            let at = (S::HEADER - self.left) as usize;
            piece.read(self.bytes.get_mut(at..).unwrap_or_default());
        }
        self.left -= piece.len();
    }
}

// ---- into the guest ----

/// A frame for the driver. Just bytes are one as it goes on the wire, and cost no more than bytes.
pub(super) trait Content: Copy {
    /// The header before `num_buffers`.
    fn header(&self) -> [u8; net_hdr::SHORT as usize];
    /// The front, where that is not as in the packet.
    fn head(&self) -> &[u8];
    /// What follows it.
    fn body(&self) -> &[u8];

    /// Bytes in the frame.
    #[inline(always)]
    fn len(&self) -> u32 {
        u32::try_from(self.head().len() + self.body().len()).unwrap_or(u32::MAX)
    }
}

impl Content for &[u8] {
    #[inline(always)]
    fn header(&self) -> [u8; net_hdr::SHORT as usize] {
        PLAIN_SHORT
    }

    #[inline(always)]
    fn head(&self) -> &[u8] {
        &[]
    }

    #[inline(always)]
    fn body(&self) -> &[u8] {
        self
    }
}

/// A frame to which something is left to be done, or was done.
#[derive(Clone, Copy)]
pub(super) struct Frame<'a> {
    header: [u8; net_hdr::SHORT as usize],
    head: &'a [u8],
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// A frame as it goes on the wire, in two parts.
    pub(super) fn in_parts(head: &'a [u8], body: &'a [u8]) -> Self {
        Self {
            header: PLAIN_SHORT,
            head,
            body,
        }
    }

    /// A frame to which something is left to be done.
    pub(super) fn with_header(header: [u8; net_hdr::SHORT as usize], bytes: &'a [u8]) -> Self {
        Self {
            header,
            head: &[],
            body: bytes,
        }
    }

    /// The first part that is not empty.
    pub(super) fn front(&self) -> &'a [u8] {
        if self.head.is_empty() {
            self.body
        } else {
            self.head
        }
    }
}

impl Content for Frame<'_> {
    fn header(&self) -> [u8; net_hdr::SHORT as usize] {
        self.header
    }

    fn head(&self) -> &[u8] {
        self.head
    }

    fn body(&self) -> &[u8] {
        self.body
    }
}

/// What became of one frame.
pub(super) enum Put {
    /// In this many chains, whose used entries are written or staged.
    Done(u16),
    /// It needs more buffers than there are. None is used.
    NoBuffers,
    /// It does not fit the one buffer it may have. None is used.
    Oversize,
    /// Something is left to be done to it that cannot be done. No buffer is used.
    Invalid,
}

/// Asks to own all that the frame after this one will write, while this one is copied: the guest's core has those lines,
/// and a store that waits for one holds up all behind it. (1518 bytes from core to core: two fifths less time.)
#[inline(always)]
pub(super) fn own(plan: Option<&Plan<'_>>, slot: Option<&TxSlot<'_>>) {
    let large = slot.filter(|slot| slot.len() > NEAR);
    if let (Some(slot), Some(Plan::Direct(buffer))) = (large, plan) {
        buffer.prefetch_write_all(NEAR..slot.len());
    }
}

/// Puts a frame into a buffer in one piece, unless it is too small.
#[inline(always)]
pub(super) fn put<S: Set>(buffer: GuestSlice<'_>, frame: impl Content, log: Option<&Dirty>) -> bool {
    let (written, fits) = put_pieces::<S>(buffer, frame);
    if let Some(log) = log {
        // Of a frame that does not fit, the front may be written nevertheless.
        log.wrote(buffer.split_at(written).0);
    }
    fits
}

/// Says how many bytes it put, and whether that is all.
#[inline(always)]
fn put_pieces<S: Set>(buffer: GuestSlice<'_>, frame: impl Content) -> (u32, bool) {
    let (header, mut rest) = buffer.split_at(S::HEADER);
    // A driver that polls gives the same buffers again and again, and their headers are as they were.
    let header_fits = match S::LONG {
        true => header.keep_array(net_hdr::long(frame.header(), NUM_BUFFERS)),
        false => header.keep_array(frame.header()),
    };
    if !header_fits {
        return (0, false);
    }
    if !frame.head().is_empty() {
        let (head, behind) = rest.split_at(u32::try_from(frame.head().len()).unwrap_or(u32::MAX));
        if !head.write_all(frame.head()) {
            return (S::HEADER, false);
        }
        rest = behind;
    }
    match rest.write_all(frame.body()) {
        true => (S::HEADER + frame.len(), true),
        false => (buffer.len() - rest.len(), false),
    }
}

/// The chains that one frame may go into, one after the other.
pub(super) trait Buffers<'m> {
    /// Writes what fits into the next chain, and its used entry, which is nothing to the driver until published.
    /// Says whether there was such a chain.
    fn fill(&mut self, cursor: &mut Cursor<'m>, writer: &mut Writer<'_, 'm>) -> Result<bool, FaultReason>;
}

/// Puts a frame with its header into chains of any shape: one, or as many as it takes if buffers may be merged.
#[inline(never)]
pub(super) fn scatter<'m, S: Set>(
    mut buffers: impl Buffers<'m>,
    cursor: &mut Cursor<'m>,
    frame: impl Content,
    log: Option<&Dirty>,
) -> Result<Put, FaultReason> {
    let header = frame.header();
    let mut writer = Writer::new::<S>(&header, &frame, log);
    let most = if S::MERGE { u16::MAX } else { 1 };
    for taken in 1..=most {
        if !buffers.fill(cursor, &mut writer)? {
            return Ok(Put::NoBuffers);
        }
        if writer.is_done() {
            writer.set_num_buffers(taken);
            return Ok(Put::Done(taken));
        }
    }
    Ok(Put::Oversize)
}

/// A header and a frame on their way into guest memory, piece by piece.
pub(super) struct Writer<'a, 'm> {
    /// The header before `num_buffers`.
    header: &'a [u8],
    /// `num_buffers`, if the header has it: 1 until it is known better.
    num_buffers: &'a [u8],
    /// Where it went; its two bytes may be far apart.
    num_buffers_at: [Option<GuestSlice<'m>>; 2],
    head: &'a [u8],
    body: &'a [u8],
    /// Bytes of the frame.
    len: u32,
    /// Takes down what is written.
    log: Option<&'a Dirty>,
}

impl<'a, 'm> Writer<'a, 'm> {
    fn new<S: Set>(header: &'a [u8], frame: &'a impl Content, log: Option<&'a Dirty>) -> Self {
        let num_buffers: &[u8] = if S::LONG { &NUM_BUFFERS } else { &[] };
        Self {
            header,
            num_buffers,
            num_buffers_at: [None; 2],
            head: frame.head(),
            body: frame.body(),
            len: frame.len(),
            log,
        }
    }

    fn is_done(&self) -> bool {
        let left = [self.header, self.num_buffers, self.head, self.body];
        left.iter().all(|part| part.is_empty())
    }

    /// Asks to own the lines that are written next, in the buffer of `next` behind that of `desc`, while that is filled: by
    /// what is left of the frame or, at its end, by the next one, which most likely is as long. `next` may be anything: nothing
    /// is done with it but that.
    #[inline]
    pub(super) fn own_next(&self, desc: &Desc, next: &Desc, cursor: &mut Cursor<'m>) {
        if let Some(buffer) = chain::direct::<Writable>(next, cursor) {
            let due = match self.left().saturating_sub(desc.len) {
                0 => self.len,
                left => left,
            };
            buffer.prefetch_write_all(0..buffer.len().min(due));
        }
    }

    /// Bytes that are still to be written.
    fn left(&self) -> u32 {
        let bytes: usize = [self.header, self.num_buffers, self.head, self.body]
            .map(<[u8]>::len)
            .iter()
            .sum();
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// Fills the pieces of a chain with what comes next, as far as the chain goes, and says with how many bytes.
    /// Descriptors behind those that are needed are not looked at.
    pub(super) fn fill<R: DescRing>(
        &mut self,
        chain: &mut Chain<'m, R, Writable>,
        cursor: &mut Cursor<'m>,
    ) -> Result<u32, ChainError> {
        let mut written = 0;
        while !self.is_done() {
            let Some(piece) = chain.next(cursor)? else {
                break;
            };
            written += self.put(piece);
        }
        Ok(written)
    }

    /// Fills `piece` with what comes next, and says with how many bytes.
    fn put(&mut self, piece: GuestSlice<'m>) -> u32 {
        let (_, rest) = drain(&mut self.header, piece);
        let (written, rest) = drain(&mut self.num_buffers, rest);
        if !written.is_empty() {
            let free = self.num_buffers_at.iter_mut().find(|place| place.is_none());
            free.map(|place| place.insert(written));
        }
        let (_, rest) = drain(&mut self.head, rest);
        let (_, rest) = drain(&mut self.body, rest);
        let written = piece.len() - rest.len();
        if let Some(log) = self.log {
            log.wrote(piece.split_at(written).0);
        }
        written
    }

    /// Says in the header how many buffers the frame takes.
    fn set_num_buffers(&mut self, count: u16) {
        let bytes = count.to_le_bytes();
        let mut left = &bytes[..];
        for place in self.num_buffers_at.iter().flatten() {
            let (written, _) = drain(&mut left, *place);
            if let Some(log) = self.log {
                log.wrote(written);
            }
        }
    }
}

/// Moves as much as fits from the front of `bytes` into `piece`, and says which part that filled and which is left.
fn drain<'m>(bytes: &mut &[u8], piece: GuestSlice<'m>) -> (GuestSlice<'m>, GuestSlice<'m>) {
    let written = piece.write(bytes);
    *bytes = bytes.get(written..).unwrap_or_default();
    piece.split_at(u32::try_from(written).unwrap_or(0))
}

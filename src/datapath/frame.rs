//! Frames on their way between slots and chains of guest memory, whatever the ring's layout.

use super::ahead::Plan;
use super::config::FaultReason;
use super::counters::Tally;
use super::set::Set;
use super::slot::{RxSlot, TxSlot};
use crate::memory::{Cursor, GuestSlice};
use crate::virtio::chain::{Chain, ChainError, DescRing, Readable, Writable};
use crate::virtio::net_hdr::{NUM_BUFFERS, PLAIN, PLAIN_SHORT};

/// Descriptors that one burst walks before it leaves the rest to the next: the most that a poll thread spends on
/// chains that a driver made long for no good reason. Ordinary chains of 20 fragments still fill a burst.
pub(super) const WORK: u32 = 1024;

/// Bytes at the front of each buffer whose lines are asked for while a burst is looked up: a small frame with its header.
pub(super) const NEAR: u32 = 128;

// ---- out of the guest ----

/// What became of one chain.
pub(super) enum Taken {
    Frame,
    /// No more than a header.
    Runt,
    /// More than the slot's room.
    Oversize,
}

impl Taken {
    /// Counts it, and says how many frames it is.
    #[inline(always)]
    pub(super) fn count(self, slot: &RxSlot<'_>, tally: &mut Tally) -> usize {
        match self {
            Self::Frame => tally.frame(slot.frame()),
            Self::Runt => tally.runts += 1,
            Self::Oversize => tally.oversize += 1,
        }
        usize::from(matches!(self, Self::Frame))
    }
}

/// Takes the frame out of a buffer in one piece.
#[inline(always)]
pub(super) fn take<S: Set>(buffer: GuestSlice<'_>, slot: &mut RxSlot<'_>) -> Taken {
    // What the header says matters only to offloads, none of which are offered: it is not even read.
    let (_, frame) = buffer.split_at(S::HEADER);
    slot.clear();
    if frame.is_empty() {
        Taken::Runt
    } else if slot.append(frame) {
        Taken::Frame
    } else {
        Taken::Oversize
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
    work: &mut u32,
) -> Result<Taken, ChainError> {
    slot.clear();
    let mut header = S::HEADER;
    let mut fits = true;
    while let Some(piece) = chain.next(cursor)? {
        let (in_header, frame) = piece.split_at(header);
        header -= in_header.len();
        fits = fits && slot.append(frame);
    }
    *work += u32::from(chain.walked());
    if !fits {
        slot.clear();
        return Ok(Taken::Oversize);
    }
    Ok(if slot.is_empty() {
        Taken::Runt
    } else {
        Taken::Frame
    })
}

// ---- into the guest ----

/// What became of one frame.
pub(super) enum Put {
    /// In this many chains, whose used entries are written or staged.
    Done(u16),
    /// It needs more buffers than there are. None is used.
    NoBuffers,
    /// It does not fit the one buffer it may have. None is used.
    Oversize,
}

/// Asks to own all that the frame after this one will write, while this one is copied: the guest's core has those lines,
/// and a store that waits for one holds up all behind it. (1518 bytes from core to core: two fifths less time.)
#[inline(always)]
pub(super) fn own(chain: Option<(u16, Plan<'_>)>, slot: Option<&TxSlot<'_>>) {
    if let (Some((_, Plan::Direct(buffer))), Some(slot)) = (chain, slot) {
        buffer.prefetch_write(NEAR..slot.len());
    }
}

/// Puts a frame into a buffer in one piece, unless it is too small.
#[inline(always)]
pub(super) fn put<S: Set>(buffer: GuestSlice<'_>, frame: &[u8]) -> bool {
    let (header, rest) = buffer.split_at(S::HEADER);
    let header_fits = match S::LONG {
        true => header.write_array(PLAIN),
        false => header.write_array(PLAIN_SHORT),
    };
    header_fits && rest.write_all(frame)
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
    frame: &[u8],
) -> Result<Put, FaultReason> {
    let mut writer = Writer::new::<S>(frame);
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
    /// The header before `num_buffers`: no offload, nothing.
    zeros: &'a [u8],
    /// `num_buffers`, if the header has it: 1 until it is known better.
    num_buffers: &'a [u8],
    /// Where it went; its two bytes may be far apart.
    num_buffers_at: [Option<GuestSlice<'m>>; 2],
    frame: &'a [u8],
}

impl<'a, 'm> Writer<'a, 'm> {
    fn new<S: Set>(frame: &'a [u8]) -> Self {
        let num_buffers: &[u8] = if S::LONG { &NUM_BUFFERS } else { &[] };
        Self {
            zeros: &PLAIN_SHORT,
            num_buffers,
            num_buffers_at: [None; 2],
            frame,
        }
    }

    fn is_done(&self) -> bool {
        self.zeros.is_empty() && self.num_buffers.is_empty() && self.frame.is_empty()
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
        let (_, rest) = drain(&mut self.zeros, piece);
        let (written, rest) = drain(&mut self.num_buffers, rest);
        if !written.is_empty() {
            let free = self.num_buffers_at.iter_mut().find(|place| place.is_none());
            free.map(|place| place.insert(written));
        }
        let (_, rest) = drain(&mut self.frame, rest);
        piece.len() - rest.len()
    }

    /// Says in the header how many buffers the frame takes.
    fn set_num_buffers(&mut self, count: u16) {
        let bytes = count.to_le_bytes();
        let mut left = &bytes[..];
        for place in self.num_buffers_at.iter().flatten() {
            drain(&mut left, *place);
        }
    }
}

/// Moves as much as fits from the front of `bytes` into `piece`, and says which part that filled and which is left.
fn drain<'m>(bytes: &mut &[u8], piece: GuestSlice<'m>) -> (GuestSlice<'m>, GuestSlice<'m>) {
    let written = piece.write(bytes);
    *bytes = bytes.get(written..).unwrap_or_default();
    piece.split_at(u32::try_from(written).unwrap_or(0))
}

//! Into the guest: a burst to a split receiveq.

use super::{beyond, burst, Ahead, Bits, Plan, Set, SplitRing, NEAR, WORK};
use crate::datapath::config::FaultReason;
use crate::datapath::counters::{Counters, Tally};
use crate::datapath::ring::{Burst, BURST};
use crate::datapath::slot::TxSlot;
use crate::memory::{Cursor, GuestSlice};
use crate::virtio::chain::{Chain, Writable};
use crate::virtio::net_hdr::{NUM_BUFFERS, PLAIN, PLAIN_SHORT};
use crate::virtio::ring::SplitMem;

/// What became of one frame.
enum Put {
    /// In this many chains, whose used entries are written.
    Done(u16),
    /// It needs more buffers than there are. None is used.
    NoBuffers,
    /// It does not fit the one buffer it may have. None is used.
    Oversize,
}

impl<const SET: usize> SplitRing<SET> {
    /// A burst to a ring with `ready` chains, more than none.
    pub(super) fn enqueue_ready(&mut self, ready: u16, slots: &[TxSlot<'_>], counters: &Counters) -> Burst {
        let (mem, next) = (&self.mem, self.next);
        let Some(mut cursor) = mem.mem().cursor(self.hint) else {
            return Burst::default();
        };
        let ahead = Ahead::look::<Writable>(mem, &mut cursor, next, ready.min(burst(slots.len())));
        let (mut tally, mut outcome) = (Tally::default(), Burst::default());
        let (mut chains, mut work, mut fault) = (0_u16, 0, None);
        let mut following = slots.iter().skip(1);
        for slot in slots.iter().take(BURST) {
            let frame = slot.frame();
            let at = next.wrapping_add(chains);
            own(ahead.chain(chains + 1), following.next());
            let put = match ahead.chain(chains) {
                Some((head, Plan::Direct(buffer))) if put::<Bits<SET>>(buffer, frame) => {
                    mem.write_used(at, head, Bits::<SET>::HEADER + slot.len());
                    Ok(Put::Done(1))
                }
                _ => {
                    let buffers = Buffers {
                        mem,
                        next: at,
                        left: ready - chains,
                        work: &mut work,
                    };
                    scatter::<Bits<SET>>(buffers, &mut cursor, frame)
                }
            };
            match put {
                Ok(Put::Done(taken)) => {
                    tally.frame(frame);
                    outcome.frames += 1;
                    chains += taken;
                }
                Ok(Put::Oversize) => tally.oversize += 1,
                Ok(Put::NoBuffers) => break,
                Err(reason) => {
                    fault = Some(reason);
                    break;
                }
            }
            outcome.slots += 1;
            if work > WORK {
                break;
            }
        }
        self.hint = cursor.hint();
        self.fault = fault;
        self.finish(chains, &tally, counters);
        Burst {
            broken: fault.is_some(),
            ..outcome
        }
    }
}

/// Asks to own all that the frame after this one will write, while this one is copied: the guest's core has those lines,
/// and a store that waits for one holds up all behind it. (1518 bytes from core to core: two fifths less time.)
#[inline(always)]
fn own(chain: Option<(u16, Plan<'_>)>, slot: Option<&TxSlot<'_>>) {
    if let (Some((_, Plan::Direct(buffer))), Some(slot)) = (chain, slot) {
        buffer.prefetch_write(NEAR..slot.len());
    }
}

/// Puts a frame into a buffer in one piece, unless it is too small.
#[inline(always)]
fn put<S: Set>(buffer: GuestSlice<'_>, frame: &[u8]) -> bool {
    let (header, rest) = buffer.split_at(S::HEADER);
    let header_fits = match S::LONG {
        true => header.write_array(PLAIN),
        false => header.write_array(PLAIN_SHORT),
    };
    header_fits && rest.write_all(frame)
}

/// The chains that one frame may go into.
struct Buffers<'a, 'm> {
    mem: &'m SplitMem,
    /// Avail index of the first.
    next: u16,
    left: u16,
    /// Counts descriptors walked.
    work: &'a mut u32,
}

/// Puts a frame with its header into chains of any shape: one, or as many as it takes if buffers may be merged.
///
/// Writes their used entries, which are nothing to the driver until published.
#[inline(never)]
fn scatter<'m, S: Set>(
    mut buffers: Buffers<'_, 'm>,
    cursor: &mut Cursor<'m>,
    frame: &[u8],
) -> Result<Put, FaultReason> {
    let mut writer = Writer::new::<S>(frame);
    let most = if S::MERGE {
        buffers.left
    } else {
        buffers.left.min(1)
    };
    for taken in 1..=most {
        buffers.fill::<S>(cursor, &mut writer)?;
        if writer.is_done() {
            writer.set_num_buffers(taken);
            return Ok(Put::Done(taken));
        }
    }
    Ok(if S::MERGE || most == 0 {
        Put::NoBuffers
    } else {
        Put::Oversize
    })
}

impl<'m> Buffers<'_, 'm> {
    /// Writes what fits into the next chain, and its used entry.
    ///
    /// Descriptors behind those that the frame needs are not looked at.
    fn fill<S: Set>(
        &mut self,
        cursor: &mut Cursor<'m>,
        writer: &mut Writer<'_, 'm>,
    ) -> Result<(), FaultReason> {
        let (mem, avail) = (self.mem, self.next);
        let head = mem.avail_entry(avail);
        let broken = |error| FaultReason::Chain { avail, head, error };
        let first = mem.desc(head).ok_or_else(|| broken(beyond(mem, head)))?;
        let mut chain = Chain::<Writable>::new(mem, first, S::INDIRECT);
        let mut written = 0;
        while !writer.is_done() {
            let Some(piece) = chain.next(cursor).map_err(broken)? else {
                break;
            };
            written += writer.put(piece);
        }
        mem.write_used(avail, head, written);
        *self.work += u32::from(chain.walked());
        self.next = avail.wrapping_add(1);
        Ok(())
    }
}

/// A header and a frame on their way into guest memory, piece by piece.
struct Writer<'a, 'm> {
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

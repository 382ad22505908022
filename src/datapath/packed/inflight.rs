//! What a packed ring keeps for the back-end after this one (vhost-user, "Inflight I/O tracking", `QueueRegionPacked`).
//!
//! Every burst gives back what it takes, so no chain is in flight when a burst ends. But a burst takes more than one store to
//! publish: a used descriptor takes the place of an available one, and the driver sees nothing before the first is written,
//! which is written last. So ahead of it all goes, in one word, from where to where the burst publishes: the
//! specification's old and new used position. Between bursts the word says that the last one is done, because the
//! descriptor at the old position is used; that is the specification's rule too, so any back-end finds its way.
//!
//! A process that dies in between leaves, from the old position on:
//!
//! ```text
//!   available | used used used ... | available available   (not yet written)
//!   ^ first   ^ written, in order  ^ the next one goes on here
//! ```
//!
//! Its successor writes the first, whose length and id were kept beside the positions, and goes on behind the last that was
//! written: each chain is given back once, none is lost, and each frame that was written is whole. Frames that share several
//! chains are written from the last chain to the first, so that a part of one can be completed: all its chains but the last
//! are full, and their length is that of their buffers.

use std::sync::atomic::{fence, Ordering};

use super::{resume, staged::mark_behind};
use crate::datapath::config::{Found, RingError};
use crate::datapath::miss;
use crate::memory::{Access, InflightQueue, Miss};
use crate::virtio::chain::{Chain, ChainError, DescRing, Writable};
use crate::virtio::desc::{Desc, VIRTQ_DESC_F_NEXT};
use crate::virtio::features::Features;
use crate::virtio::packed_ring::{PackedMem, Position, Used};

/// Fields of the part. The positions are one word: index, old index, counter, old counter.
const FREE_HEAD: usize = 12;
const OLD_FREE_HEAD: usize = 14;
const POSITIONS: usize = 16;
/// What the specification leaves as padding: the first chain of the burst under way, as id, descriptors, length.
const FIRST: usize = 24;
/// Its descriptor states, and the fields of each.
const STATES: usize = 32;
const STATE: usize = 32;
const INFLIGHT: usize = 0;
const NEXT: usize = 2;
const LAST: usize = 4;
const NUM: usize = 6;
const COUNTER: usize = 8;
const ID: usize = 16;

/// A packed ring's part of the in-flight buffer.
pub(super) struct Track(InflightQueue);

impl Track {
    /// Keeps a part that this process kept before, of a ring at rest.
    pub(super) fn go_on(part: InflightQueue) -> Self {
        Self(part)
    }

    /// Takes over a part, and says where to go on in the ring. Gives back what the process before was publishing when it died.
    ///
    /// # Errors
    ///
    /// As for [`resume::resume`], if the part is new.
    pub(super) fn attach(
        part: InflightQueue,
        mem: &PackedMem,
        base: u32,
        features: Features,
        found: &mut Vec<Found>,
    ) -> Result<(Self, Position), RingError> {
        let track = Self(part);
        let kept = track.positions(mem.size()).filter(|_| track.0.is_initialized());
        let next = match kept {
            Some((used, old)) => track.resume(mem, used, old, found).map_err(RingError::InFlight)?,
            None => {
                track.link_free_list();
                resume::resume(mem, base, features, found)?
            }
        };
        track.store_positions(next, next);
        track.0.initialize();
        Ok((track, next))
    }

    /// A burst is about to publish the descriptors from `first` to `end`, of which `head` comes first.
    #[inline(always)]
    pub(super) fn begin(&self, first: Position, end: Position, head: Used) {
        let kept = u64::from(head.id) | u64::from(head.descs) << 16 | u64::from(head.len) << 32;
        self.0.store_u64(FIRST, kept);
        self.store_positions(end, first);
        // Ahead of all that the burst stores.
        fence(Ordering::Release);
    }

    fn store_positions(&self, used: Position, old: Position) {
        let word = u64::from(used.index)
            | u64::from(old.index) << 16
            | u64::from(used.wrap) << 32
            | u64::from(old.wrap) << 40;
        self.0.store_u64(POSITIONS, word);
    }

    /// The new and the old used position, unless they are none in a ring of `size`.
    fn positions(&self, size: u16) -> Option<(Position, Position)> {
        let [u0, u1, o0, o1, used_wrap, old_wrap, _, _] = self.0.load_u64(POSITIONS).to_le_bytes();
        let position = |index, wrap| {
            let wrap = wrap != 0;
            (index < size).then_some(Position { index, wrap })
        };
        Some((
            position(u16::from_le_bytes([u0, u1]), used_wrap)?,
            position(u16::from_le_bytes([o0, o1]), old_wrap)?,
        ))
    }

    /// Where to go on in a ring that a back-end served from here before; or, behind an IOMMU, what is missing to say so.
    fn resume(
        &self,
        mem: &PackedMem,
        used: Position,
        old: Position,
        found: &mut Vec<Found>,
    ) -> Result<Position, Miss> {
        let unpublished = used != old && mem.is_available(old);
        self.forget_free(if unpublished { OLD_FREE_HEAD } else { FREE_HEAD });
        let left = self.in_flight();
        if !left.is_empty() {
            found.push(Found::InFlight(left.len()));
            return Ok(self.give_back(mem, if unpublished { old } else { used }, left));
        }
        match unpublished {
            true => self.complete(mem, old, distance(old, used, mem.size())),
            false => Ok(used),
        }
    }

    /// Completes the publication of the `total` descriptors from `old` on as far as it went, and says how far. Nothing is
    /// stored before all is known that it takes.
    fn complete(&self, mem: &PackedMem, old: Position, total: u16) -> Result<Position, Miss> {
        let size = mem.size();
        let (mut at, mut done) = (0, 0);
        // Chains that look available: behind the last used descriptor, and before it.
        let (mut pending, mut skipped) = (Vec::new(), Vec::new());
        while let Some(desc) = (at < total)
            .then(|| mem.desc(old.advance(at, size).index))
            .flatten()
        {
            let place = old.advance(at, size);
            if place.is_available(desc.flags) {
                let chain = whole(mem, place, desc, total - at)?;
                pending.push((place, chain));
                // What is marked behind the first of a chain that is not written means nothing yet.
                at += chain.descs;
            } else {
                at += 1;
                done = at;
                skipped.append(&mut pending);
            }
        }
        if let Some((_, first)) = skipped.first_mut() {
            *first = self
                .first()
                .filter(|kept| kept.descs == first.descs)
                .unwrap_or(*first);
        }
        let next = old.advance(done, size);
        // From here on this is the burst that was under way: whoever dies in it leaves it to the one after.
        self.store_positions(next, old);
        fence(Ordering::Release);
        // Backwards, so that the driver sees nothing of them before the first.
        for (place, used) in skipped.into_iter().rev() {
            mark_behind(mem, place, used.descs);
            mem.publish_used(place, used);
        }
        Ok(next)
    }

    /// The first chain of the burst that was under way.
    fn first(&self) -> Option<Used> {
        let [i0, i1, d0, d1, l0, l1, l2, l3] = self.0.load_u64(FIRST).to_le_bytes();
        Some(Used {
            id: u16::from_le_bytes([i0, i1]),
            descs: u16::from_le_bytes([d0, d1]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
        })
    }
}

/// What other back-ends leave, which complete out of order: chains that were taken, and not given back.
impl Track {
    /// Makes the free list that such a back-end expects of a new part: every state.
    fn link_free_list(&self) {
        self.0.store_u16(FREE_HEAD, 0);
        self.0.store_u16(OLD_FREE_HEAD, 0);
        for entry in 0..self.0.entries() {
            self.0.store_u8(state(entry) + INFLIGHT, 0);
            self.0.store_u16(state(entry) + NEXT, entry.wrapping_add(1));
        }
    }

    /// A state in the free list is none of a chain in flight, whatever it says.
    fn forget_free(&self, head: usize) {
        let mut entry = self.0.load_u16(head);
        for _ in 0..self.0.entries() {
            // The list ends with a number that is no state's.
            if entry >= self.0.entries() {
                break;
            }
            self.0.store_u8(state(entry) + INFLIGHT, 0);
            entry = self.0.load_u16(state(entry) + NEXT);
        }
    }

    /// The chains in flight, in the order in which they were taken.
    fn in_flight(&self) -> Vec<(u64, u16)> {
        let mut heads: Vec<(u64, u16)> = (0..self.0.entries())
            .filter(|entry| self.0.load_u8(state(*entry) + INFLIGHT) == 1)
            .map(|entry| (self.0.load_u64(state(entry) + COUNTER), entry))
            .collect();
        heads.sort_unstable();
        heads
    }

    /// Gives chains back unused, from `next` on, as many as the ring holds, and says where that ends.
    fn give_back(&self, mem: &PackedMem, next: Position, heads: Vec<(u64, u16)>) -> Position {
        let (mut descs, mut chains) = (0_u16, Vec::new());
        for (_, head) in &heads {
            let last = self.0.load_u16(state(*head) + LAST);
            let used = Used {
                id: self.0.load_u16(state(last) + ID),
                descs: self.0.load_u16(state(*head) + NUM).max(1),
                len: 0,
            };
            let Some(sum) = descs.checked_add(used.descs).filter(|sum| *sum <= mem.size()) else {
                break;
            };
            chains.push((next.advance(descs, mem.size()), used));
            descs = sum;
        }
        for (place, used) in chains.into_iter().rev() {
            mark_behind(mem, place, used.descs);
            mem.publish_used(place, used);
        }
        for (_, head) in heads {
            self.0.store_u8(state(head) + INFLIGHT, 0);
        }
        self.link_free_list();
        next.advance(descs, mem.size())
    }
}

/// Where a descriptor state is; beyond the part's end for one that it does not have.
fn state(entry: u16) -> usize {
    STATES + STATE * usize::from(entry)
}

/// Descriptors from `from` to `to`, at most a lap further on.
fn distance(from: Position, to: Position, size: u16) -> u16 {
    let lap = if from.wrap == to.wrap { 0 } else { size };
    (to.index.wrapping_add(lap)).wrapping_sub(from.index).min(size)
}

/// The chain that begins with `first` at `place` and has at most `most` descriptors, given back with all the length it has.
/// Where its buffers lead does not matter, nor whether that is known; its indirect table must be.
fn whole(mem: &PackedMem, place: Position, first: Desc, most: u16) -> Result<Used, Miss> {
    let (mut last, mut descs) = (first, 1);
    while last.has(VIRTQ_DESC_F_NEXT) && descs < most {
        let Some(desc) = mem.desc(place.advance(descs, mem.size()).index) else {
            break;
        };
        (last, descs) = (desc, descs + 1);
    }
    let mut len = 0_u32;
    if let Some(mut cursor) = mem.mem().cursor_to_write(0) {
        let mut chain = Chain::<_, Writable>::new(mem, place.index, first, true);
        loop {
            match chain.next(&mut cursor) {
                Ok(Some(piece)) => len = len.saturating_add(piece.len()),
                Err(ChainError::Unmapped { len: rest, .. }) => {
                    len = len.saturating_add(rest);
                    chain.skip();
                }
                // Any other error is a chain that is only read, which has no length.
                Ok(None) => break,
                Err(error) => match miss::of(mem.mem(), &error, Access::Read) {
                    Some(miss) => return Err(miss),
                    None => break,
                },
            }
        }
    }
    Ok(Used {
        id: last.next,
        descs,
        len,
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::effort;

    #[test]
    fn the_distance_of_two_positions_is_the_way_between_them_in_every_small_ring() {
        for size in 1..=effort::of(64_u16, 6) {
            for (index, wrap) in (0..size).flat_map(|index| [(index, true), (index, false)]) {
                let from = Position { index, wrap };
                for descs in 0..=size {
                    assert_eq!(
                        distance(from, from.advance(descs, size), size),
                        descs,
                        "{from:?} of {size}"
                    );
                }
                // What no burst leaves behind is bounded all the same.
                for to in 0..size {
                    for wrap in [true, false] {
                        assert!(distance(from, Position { index: to, wrap }, size) <= size);
                    }
                }
            }
        }
    }
}

//! What a burst of a packed ring has used, until it ends: then it is written, such that the driver sees all or nothing.

use super::dirty::PackedLog;
use super::inflight::Track;
use crate::datapath::ahead::burst;
use crate::virtio::chain::{ChainError, DescRing};
use crate::virtio::packed_ring::{PackedMem, Position, Used};

/// What a burst has used and not yet written into the ring.
///
/// # Invariants
///
/// `descs` is the sum over the first `count` entries, each of which has at least one, and is at most the ring's size: so
/// there is an entry for each, and no burst goes round the ring twice, whatever the driver does meanwhile.
pub(super) struct Staged {
    used: Box<[Used]>,
    pub(super) count: usize,
    pub(super) descs: u16,
    /// Where frames begin that share several chains, and how many: noted for [`Staged::publish_tracked`] alone.
    joints: Box<[(u16, u16)]>,
    joined: usize,
}

/// A state of [`Staged`] to go back to.
#[derive(Clone, Copy, Default)]
pub(super) struct Mark {
    pub(super) count: usize,
    pub(super) descs: u16,
    joined: usize,
}

impl Staged {
    pub(super) fn new(size: u16) -> Self {
        let none = Used {
            id: 0,
            descs: 0,
            len: 0,
        };
        Self {
            used: vec![none; usize::from(size)].into(),
            count: 0,
            descs: 0,
            // A joint has two chains or more.
            joints: vec![(0, 0); usize::from(size / 2)].into(),
            joined: 0,
        }
    }

    /// Stages one chain.
    ///
    /// # Errors
    ///
    /// [`ChainError::TooLong`] if the burst would have taken more descriptors than there are.
    #[inline(always)]
    pub(super) fn push(&mut self, used: Used) -> Result<(), ChainError> {
        let size = u16::try_from(self.used.len()).unwrap_or(u16::MAX);
        let descs = self.descs.checked_add(used.descs).filter(|descs| *descs <= size);
        match (descs, self.used.get_mut(self.count)) {
            (Some(descs), Some(entry)) => {
                *entry = used;
                self.count += 1;
                self.descs = descs;
                Ok(())
            }
            _ => Err(ChainError::TooLong(size)),
        }
    }

    /// Room for chains of one descriptor each, see [`Staged::add_spare`].
    #[inline(always)]
    pub(super) fn spare(&mut self) -> &mut [Used] {
        let left = self.used.len().saturating_sub(usize::from(self.descs));
        let spare = self.used.get_mut(self.count..).unwrap_or_default();
        let room = spare.len().min(left);
        spare.get_mut(..room).unwrap_or_default()
    }

    /// Stages the chains in the first `count` entries of [`Staged::spare`], which must hold chains of one descriptor.
    #[inline(always)]
    pub(super) fn add_spare(&mut self, count: usize) {
        self.count += count;
        self.descs += burst(count);
    }

    #[inline(always)]
    pub(super) fn mark(&self) -> Mark {
        Mark {
            count: self.count,
            descs: self.descs,
            joined: self.joined,
        }
    }

    /// Forgets what was staged since `mark`.
    #[inline(always)]
    pub(super) fn rewind(&mut self, mark: Mark) {
        (self.count, self.descs, self.joined) = (mark.count, mark.descs, mark.joined);
    }

    /// Writes all that is staged from position `first` on, so that the driver sees all or nothing of it.
    #[inline(always)]
    pub(super) fn publish(&self, mem: &PackedMem, first: Position, log: Option<&PackedLog>) {
        let staged = self.used.get(..self.count).unwrap_or_default();
        let Some((head, others)) = staged.split_first() else {
            return;
        };
        let mut at = first.advance(head.descs, mem.size());
        if usize::from(self.descs) == self.count {
            mem.descs().write_used_each(at, others);
        } else {
            for used in others {
                mark_behind(mem, at, used.descs);
                mem.descs().write_used(at, *used);
                at = at.advance(used.descs, mem.size());
            }
        }
        mark_behind(mem, first, head.descs);
        self.publish_head(mem, first, *head, log);
    }

    /// Publishes the first chain, and with it all others, which are written already.
    #[inline(always)]
    fn publish_head(&self, mem: &PackedMem, first: Position, head: Used, log: Option<&PackedLog>) {
        if let Some(log) = log {
            log.wrote_descs(first, self.descs);
        }
        mem.publish_used(first, head);
        if let Some(log) = log {
            log.wrote_descs(first, 1);
            log.notify();
        }
    }
}

impl Staged {
    /// Notes that one frame shares the `chains` chains from number `first` on.
    pub(super) fn join(&mut self, first: usize, chains: u16) {
        if let (Some(joint), Ok(first)) = (self.joints.get_mut(self.joined), u16::try_from(first)) {
            *joint = (first, chains);
            self.joined += 1;
        }
    }

    /// As [`publish`](Self::publish), up to `end`, such that whoever finds the ring half published can complete it, see
    /// [`inflight`](super::inflight): frame by frame in order, each from its last chain to its first; then the first chain of all.
    pub(super) fn publish_tracked(
        &self,
        mem: &PackedMem,
        first: Position,
        end: Position,
        track: &Track,
        log: Option<&PackedLog>,
    ) {
        let (size, mut joints) = (mem.size(), self.joints.iter().take(self.joined).peekable());
        let mut left = self.used.get(..self.count).unwrap_or_default();
        let Some(head) = left.first() else { return };
        track.begin(first, end, *head);
        let mut at = 0;
        while !left.is_empty() {
            let shares = joints.next_if(|(from, _)| self.count - left.len() == usize::from(*from));
            let chains = shares.map_or(1, |(_, chains)| usize::from(*chains));
            let (frame, rest) = left.split_at(chains.clamp(1, left.len()));
            let descs: u16 = frame.iter().map(|used| used.descs).sum();
            let mut behind = at + descs;
            for used in frame.iter().rev() {
                behind -= used.descs;
                if behind > 0 {
                    mark_behind(mem, first.advance(behind, size), used.descs);
                    mem.publish_used(first.advance(behind, size), *used);
                }
            }
            (left, at) = (rest, at + descs);
        }
        mark_behind(mem, first, head.descs);
        self.publish_head(mem, first, *head, log);
    }
}

/// Marks the descriptors behind the first of a chain as used: so the ring alone tells where it stands, see
/// [`resume`](super::resume).
/// From the last on, so that a chain of which any is marked is marked to its end.
#[inline(always)]
pub(super) fn mark_behind(mem: &PackedMem, first: Position, descs: u16) {
    for behind in (1..descs).rev() {
        mem.mark_used(first.advance(behind, mem.size()));
    }
}

//! Chains looked up together, at the front of a burst, so that their lines arrive while others are looked up.

use super::frame::NEAR;
use super::ring::BURST;
use super::set::Set;
use crate::memory::{Cursor, GuestSlice};
use crate::virtio::chain::{self, DescRing, Direction};
use crate::virtio::desc::Desc;

/// The next chains of a burst, in order.
pub(super) struct Ahead<'m> {
    /// What the used entry of each will say: the head, or the buffer id.
    pub(super) tags: [u16; BURST],
    pub(super) plans: [Plan<'m>; BURST],
    pub(super) count: usize,
}

/// One chain, looked up ahead.
#[derive(Clone, Copy)]
pub(super) enum Plan<'m> {
    /// One descriptor, in one region: the buffer.
    Direct(GuestSlice<'m>),
    /// Anything else: the first descriptor as fetched, to be walked from.
    Walk(Desc),
    /// The head is no descriptor of the ring.
    Beyond,
}

impl<'m> Ahead<'m> {
    /// No chain.
    #[inline(always)]
    pub(super) fn none() -> Self {
        Self {
            tags: [0; BURST],
            plans: [Plan::Beyond; BURST],
            count: 0,
        }
    }

    /// Chain `at`, if it was looked up: tag and plan.
    #[inline(always)]
    pub(super) fn chain(&self, at: u16) -> Option<(u16, Plan<'m>)> {
        let at = usize::from(at);
        match (self.tags.get(at), self.plans.get(at)) {
            (Some(tag), Some(plan)) if at < self.count => Some((*tag, *plan)),
            _ => None,
        }
    }

    /// Of the chains looked up, the plans.
    #[inline(always)]
    pub(super) fn plans(&self) -> &[Plan<'m>] {
        self.plans.get(..self.count).unwrap_or_default()
    }

    /// The chains looked up: tag and plan.
    #[inline(always)]
    pub(super) fn chains(&self) -> impl Iterator<Item = (u16, Plan<'m>)> + use<'_, 'm> {
        self.tags
            .iter()
            .copied()
            .zip(self.plans.iter().copied())
            .take(self.count)
    }
}

impl<'m> Plan<'m> {
    /// Looks up the chain that begins with `first`, at `index` of the ring, and asks for the lines that moving a small
    /// frame will touch.
    #[inline(always)]
    pub(super) fn new<R: DescRing, D: Direction, S: Set>(
        ring: &R,
        index: u16,
        first: Desc,
        cursor: &mut Cursor<'m>,
    ) -> Self {
        match chain::direct::<D>(&first, cursor) {
            Some(buffer) => {
                prefetch::<D, S>(buffer);
                Self::Direct(buffer)
            }
            None => {
                chain::prefetch_second(ring, index, &first, cursor);
                Self::Walk(first)
            }
        }
    }
}

/// Asks for the lines of a small frame in `buffer`.
#[inline(always)]
fn prefetch<D: Direction, S: Set>(buffer: GuestSlice<'_>) {
    if D::WRITE != 0 {
        if buffer.is_line_at(S::HEADER) {
            // The header has a line of its own, which need not be written if the header is there already.
            buffer.prefetch_read_all(0..1);
            buffer.prefetch_write_all(S::HEADER..NEAR);
        } else {
            buffer.prefetch_write(0, NEAR - 1);
        }
    } else {
        // A header that nobody reads stays where it is, which often is a line of its own.
        let first = if S::EXTRA { 0 } else { S::HEADER };
        buffer.prefetch_read(first, buffer.len().min(NEAR).saturating_sub(1));
    }
}

/// `count` as a number of chains, at most [`BURST`].
#[inline(always)]
pub(super) fn burst(count: usize) -> u16 {
    u16::try_from(count.min(BURST)).unwrap_or(0)
}

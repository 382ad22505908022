//! Chains looked up together, at the front of a burst, so that their lines arrive while others are looked up.

use super::frame::NEAR;
use super::ring::BURST;
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
    /// Looks up the chain that begins with `first`, at `index` of the ring, and asks for the lines that moving a frame
    /// will touch.
    #[inline(always)]
    pub(super) fn new<R: DescRing, D: Direction>(
        ring: &R,
        index: u16,
        first: Desc,
        cursor: &mut Cursor<'m>,
    ) -> Self {
        match chain::direct::<D>(&first, cursor) {
            Some(buffer) => {
                if D::WRITE == 0 {
                    buffer.prefetch_read(0..NEAR);
                } else {
                    buffer.prefetch_write(0..NEAR);
                }
                Self::Direct(buffer)
            }
            None => {
                chain::prefetch_second(ring, index, &first, cursor);
                Self::Walk(first)
            }
        }
    }
}

/// `count` as a number of chains, at most [`BURST`].
#[inline(always)]
pub(super) fn burst(count: usize) -> u16 {
    u16::try_from(count.min(BURST)).unwrap_or(0)
}

//! An attacker whose rings and buffers are behind an IOMMU that its front-end plays: all that it can do without one, and what it
//! can do to translations.

use anyhow::Result;
use ovs_vhost::model::{Driver, PackedDriver, Virtqueue};

use super::super::Ctx;
use super::arena::Arena;
use super::layout::{Layout, PACKED, SPLIT};
use super::{answers, live, rings, translations};

/// Split rings.
pub fn split(ctx: &Ctx) -> Result<()> {
    let mut arena = Arena::behind_iommu(ctx)?;
    rings::avail_jumps(&mut arena)?;
    all::<Driver>(arena, &SPLIT)
}

/// Packed rings.
pub fn packed(ctx: &Ctx) -> Result<()> {
    all::<PackedDriver>(Arena::behind_iommu(ctx)?, &PACKED)
}

fn all<D: Virtqueue + Sync>(mut arena: Arena, layout: &Layout<D>) -> Result<()> {
    rings::family(&mut arena, layout)?;
    live::family(&mut arena, layout)?;
    translations::family(&mut arena, layout)?;
    answers::family(&mut arena, layout)?;
    arena.close()
}

//! The benches that need a switch, in short: that both sides do what is measured, not how fast.

use std::time::Duration;

use anyhow::Result;

use super::Ctx;
use crate::{control, latency, pvp};

/// For packets to get into their stride, and then to be measured.
const MOMENT: Duration = Duration::from_millis(500);

pub fn pvp(ctx: &Ctx) -> Result<()> {
    one_pair(ctx, &["split-mergeable"], Some("64"))
}

/// What testpmd does not do.
pub fn pvp_beyond(ctx: &Ctx) -> Result<()> {
    one_pair(ctx, &["quick-dirty-log", "quick-iommu", "quick-tso"], None)
}

fn one_pair(ctx: &Ctx, shapes: &[&str], load: Option<&str>) -> Result<()> {
    let plan = pvp::Plan {
        pairs: 1,
        times: pvp::Times {
            warm_up: MOMENT,
            measured: MOMENT,
        },
        attempts: 1,
        load: load.map(str::to_owned),
        json: None,
        filters: shapes.iter().copied().map(str::to_owned).collect(),
    };
    pvp::run(&ctx.settings, &plan)
}

pub fn control(ctx: &Ctx) -> Result<()> {
    let plan = control::Plan {
        pairs: 1,
        crowds: vec![20],
        json: None,
    };
    control::run(&ctx.settings, &plan)
}

pub fn latency(ctx: &Ctx) -> Result<()> {
    let plan = latency::Plan {
        pairs: 1,
        seconds: 1,
        json: None,
    };
    latency::run(&ctx.settings, &plan)
}

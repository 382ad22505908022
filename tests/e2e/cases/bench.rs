//! The benches that need a switch, in short: that both sides do what is measured, not how fast.

use anyhow::Result;

use super::Ctx;
use crate::{control, latency, pvp};

pub fn pvp(ctx: &Ctx) -> Result<()> {
    let plan = pvp::Plan {
        pairs: 1,
        seconds: 1,
        attempts: 1,
        load: Some("64".into()),
        json: None,
        filters: vec!["split-mergeable".into()],
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

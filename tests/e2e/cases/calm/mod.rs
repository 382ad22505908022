//! Ports that come, go, and are left again beside two that carry four fifths of what they can: these lose nothing, and nobody
//! who adds or deletes a port waits for a peer, however obstinate it is.
//!
//! `stage`: the switch under the `traffic` of two guests, and what is measured; `company`: the peers, a row for each.

mod company;
mod stage;

use anyhow::{ensure, Result};

use super::world::STOCK_ALLOWED;
use super::Ctx;
use crate::pvp::Aside;
use crate::samples::Report;
use crate::sides::Side;
use stage::Stage;

/// What adding or deleting a port may take, in milliseconds, process and database included. A machine that takes longer
/// with nobody there may take `TIMES` as long beside anybody.
const AT_ONCE: f64 = 100.0;
const TIMES: f64 = 4.0;

pub fn ports_come_and_go(ctx: &Ctx) -> Result<()> {
    let _aside = Aside::step();
    let mut report = Report::default();
    let told = one_side(ctx, Side::Plugin, &mut report);
    // For comparison; what becomes of them is no claim.
    if told.is_ok() {
        if let Err(error) = one_side(ctx, Side::Stock, &mut report) {
            ctx.result(&format!("the stock ports: {error:#}"));
        }
    }
    print!("{}", report.table());
    told
}

fn one_side(ctx: &Ctx, side: Side, report: &mut Report) -> Result<()> {
    let mut stage = Stage::open(&ctx.settings, side, &ctx.dir.join(side.name()), report)?;
    let mut alone = None;
    for (company, play) in company::rows(side) {
        ctx.step(&format!("{}: {company}", side.name()));
        let played = stage.play(company, play)?;
        if side == Side::Stock {
            continue;
        }
        ensure!(
            played.lost == 0,
            "beside {company} {} frames were lost",
            played.lost
        );
        let alone = *alone.get_or_insert(played.median);
        let limit = AT_ONCE.max(TIMES * alone);
        for took in [Some(played.median), played.parting].into_iter().flatten() {
            ensure!(
                took < limit,
                "beside {company} a change takes {took:.0} ms, with nobody there {alone:.0}"
            );
        }
    }
    let allowed = match side {
        Side::Stock => STOCK_ALLOWED,
        Side::Plugin => ALLOWED,
    };
    stage.close()?.finish(allowed)
}

/// What the port warns of, on purpose.
const ALLOWED: &[&str] = &[
    "left a message unfinished",
    "while vhost device still attached",
    "lines left out",
    "VHOST_CONFIG: ",
];

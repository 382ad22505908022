//! Bad luck under load, for as long as one likes: `make soak` deals blows at random for half an hour, `make check` for two
//! minutes, each at least once. After each blow everything has to work again, and every packet is accounted for.
//!
//! `blows`: what may befall; `stage`: the switch, who is there, and what is held after each blow; `innocent`, `talk`: two guests
//! that have done nothing; `flood`: testpmd.

mod blows;
mod flood;
mod innocent;
mod stage;
pub mod talk;
mod tally;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Ctx;
use crate::dice::Dice;
use blows::{Blow, BLOWS};
use stage::Stage;
use tally::Tally;

/// How long somebody is stopped: longer than a port waits for the rest of a message, which is 5 seconds.
const STOP: Duration = Duration::from_secs(10);
const SHORT_STOP: Duration = Duration::from_secs(6);
/// What `make check` deals, so that it finds tomorrow what it finds today; `make soak` deals something new each time.
const SEED_OF_SHORT: u64 = 7;
/// What the last blow and the end may take.
const LAST: Duration = Duration::from_secs(10);
/// Below this it is a short run.
const SHORT: Duration = Duration::from_secs(300);

pub fn bad_luck(ctx: &Ctx) -> Result<()> {
    let is_short = ctx.settings.soak_time < SHORT;
    let any_seed = || if is_short { SEED_OF_SHORT } else { Dice::any_seed() };
    let seed = ctx.settings.soak_seed.unwrap_or_else(any_seed);
    ctx.result(&format!("SEED={seed} deals the same again"));
    let start = Instant::now();
    let mut tally = Tally::new(start);
    let dealt = deal(ctx, seed, start, &mut tally);
    print!("{}", tally.table());
    dealt.with_context(|| format!("SEED={seed}"))
}

fn deal(ctx: &Ctx, seed: u64, start: Instant, tally: &mut Tally) -> Result<()> {
    let time = ctx.settings.soak_time;
    let stop = if time < SHORT { SHORT_STOP } else { STOP };
    let mut dice = Dice::new(seed);
    let wanted = |blow: &&Blow| {
        ctx.settings
            .soak_blows
            .as_ref()
            .is_none_or(|part| blow.name.contains(part))
    };
    let blows: Vec<&Blow> = BLOWS.iter().filter(wanted).collect();
    let mut first = blows.clone();
    dice.shuffle(&mut first[1..]);
    first.reverse();
    ctx.step("open");
    let mut stage = Stage::open(ctx, dice, stop)?;
    while start.elapsed() + LAST < time || !first.is_empty() {
        let blow = first.pop().unwrap_or_else(|| any(&blows, &mut stage.dice));
        ctx.step(blow.name);
        let outcome = stage.play(blow.strike).context(blow.name)?;
        ctx.result(&tally.add(blow.name, &outcome));
    }
    ctx.step("close");
    stage.close()
}

/// One of the blows, by their weights.
fn any<'a>(blows: &[&'a Blow], dice: &mut Dice) -> &'a Blow {
    let mut rest = dice.below(blows.iter().map(|blow| blow.weight).sum());
    for blow in blows {
        match rest.checked_sub(blow.weight) {
            Some(less) => rest = less,
            None => return blow,
        }
    }
    blows[0]
}

//! What tools see. Each case asks what one tool asks, word for word, of the stock ports and of the plugin's, in the same
//! switch with the same life behind it, and wants the same answers. What differs on purpose is in `better`.
//!
//! Both switches run once for all of these cases (`record`), whichever is the first to need them; what each tool asks
//! is a table (`questions`), and what of an answer counts is in `shape`.

mod better;
mod iface_types;
mod questions;
mod record;
pub mod shape;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::OnceLock;

use anyhow::{anyhow, ensure, Result};

pub use iface_types::there_from_the_start;

use super::Ctx;
use crate::settings::Settings;
use crate::sides::Side;
use better::Better;
use questions::{Compare, Question};
use record::{Answer, Record, Stage};

pub fn os_vif(ctx: &Ctx) -> Result<()> {
    compare(ctx, questions::OS_VIF)
}

pub fn libvirt_lookups(ctx: &Ctx) -> Result<()> {
    compare(ctx, questions::LIBVIRT)
}

pub fn neutron(ctx: &Ctx) -> Result<()> {
    compare(ctx, questions::NEUTRON)
}

pub fn exporter(ctx: &Ctx) -> Result<()> {
    compare(ctx, questions::NETWORK_EXPORTER)
}

/// It knows a counter by the beginning of its name: one that stock does not have must not begin like one that it has.
pub fn collectd(ctx: &Ctx) -> Result<()> {
    compare(ctx, questions::COLLECTD)?;
    let [stock, plugin] = records(ctx)?;
    let stocks = counters(stock, questions::COLLECTD, |answer| {
        answer.port == "client" && answer.stage == Stage::Connected
    });
    ensure!(stocks.contains("rx_packets"), "stock counts {stocks:?}");
    for name in counters(plugin, questions::COLLECTD, |_| true) {
        let known = stocks.contains(name) || name.starts_with("ovs_vhost_");
        ensure!(known, "a new counter is called {name}");
    }
    Ok(())
}

/// The names of the counters in some of the answers that a tool got.
fn counters(
    record: &'static Record,
    questions: &'static [Question],
    which: impl Fn(&Answer) -> bool,
) -> BTreeSet<&'static str> {
    let answers = questions
        .iter()
        .flat_map(|question| record.answers(question))
        .filter(|answer| which(answer));
    let items = answers.flat_map(|answer| &answer.items);
    let counters = items.filter_map(|item| item.strip_prefix("statistics: ")?.split_once('='));
    counters.map(|(name, _)| name).collect()
}

pub fn tripleo(ctx: &Ctx) -> Result<()> {
    compare(ctx, questions::TRIPLEO)
}

pub fn sos(ctx: &Ctx) -> Result<()> {
    compare(ctx, questions::SOS)
}

pub fn json(ctx: &Ctx) -> Result<()> {
    compare(ctx, questions::JSON)
}

pub fn operator(ctx: &Ctx) -> Result<()> {
    compare(ctx, questions::OPERATOR)
}

/// Every line of the list of what is better is true: some tool sees it.
pub fn better_is_seen(ctx: &Ctx) -> Result<()> {
    let [stock, plugin] = records(ctx)?;
    let mut seen = BTreeSet::new();
    for question in questions::all() {
        for difference in differences(question, stock, plugin) {
            seen.extend(better::excuse(&difference).map(|better| better.why));
        }
    }
    let unseen: Vec<&Better> = better::LIST
        .iter()
        .filter(|better| !seen.contains(better.why))
        .collect();
    ensure!(unseen.is_empty(), "no tool sees that this is better: {unseen:#?}");
    Ok(())
}

/// Something that only one side answers.
pub struct Difference<'a> {
    question: &'a Question,
    stage: Stage,
    /// The port that was asked for, by its kind.
    port: &'a str,
    /// Who answers so.
    side: Side,
    item: &'a str,
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (command, side) = (self.question.command, self.side.name());
        write!(
            f,
            "{} {}: {command}: only {side}: {}",
            self.stage, self.port, self.item
        )
    }
}

fn compare(ctx: &Ctx, questions: &'static [Question]) -> Result<()> {
    let [stock, plugin] = records(ctx)?;
    let mut wrong = Vec::new();
    for question in questions {
        for record in [stock, plugin] {
            let asked = record.answers(question).count();
            ensure!(
                asked >= question.when.len(),
                "{}: asked {asked} times",
                question.command
            );
        }
        wrong.extend(plugin.answers(question).filter_map(says_nothing));
        let meant = |difference: &Difference| better::excuse(difference).is_some();
        if question.compare == Compare::Nothing {
            continue;
        }
        let others = differences(question, stock, plugin).filter(|difference| !meant(difference));
        wrong.extend(others.map(|difference| difference.to_string()));
        if question.compare == Compare::InOrder {
            wrong.extend(disorder(question, stock, plugin));
        }
    }
    let shown = wrong.len().min(60);
    ensure!(
        wrong.is_empty(),
        "{} differences:\n{}",
        wrong.len(),
        wrong[..shown].join("\n")
    );
    Ok(())
}

/// Complains of an answer that has not in it what it is asked for.
fn says_nothing(answer: &Answer) -> Option<String> {
    let wanted = answer.question.says.replace("PORT", record::name_of(answer.port));
    let found = answer.items.join("\n").contains(&wanted);
    (!found).then(|| {
        format!(
            "{} {}: {}: no \"{wanted}\" in {:?}",
            answer.stage, answer.port, answer.question.command, answer.items
        )
    })
}

/// Both records, made once for all cases.
fn records(ctx: &Ctx) -> Result<&'static [Record; 2]> {
    static RECORDS: OnceLock<std::result::Result<[Record; 2], String>> = OnceLock::new();
    let make = |side: Side| -> Result<Record> {
        let settings: Settings = side.settings(&ctx.settings);
        record::make(ctx, &settings, &ctx.dir.join(side.name()))
    };
    let records = RECORDS.get_or_init(|| {
        let [stock, plugin] = Side::BOTH.map(make);
        Ok([
            stock.map_err(|error| format!("stock: {error:#}"))?,
            plugin.map_err(|error| format!("plugin: {error:#}"))?,
        ])
    });
    records.as_ref().map_err(|error| anyhow!("{error}"))
}

/// What is in only one of the answers to `question`.
fn differences<'a>(
    question: &'a Question,
    stock: &'a Record,
    plugin: &'a Record,
) -> impl Iterator<Item = Difference<'a>> {
    let only = move |side: Side, this: &'a Record, other: &'a Record| {
        this.answers(question).flat_map(move |answer| {
            let same = other.answer(question, answer.stage, answer.port);
            let new = move |item: &&'a String| !same.is_some_and(|same| same.items.contains(item));
            answer.items.iter().filter(new).map(move |item| Difference {
                question,
                stage: answer.stage,
                port: answer.port,
                side,
                item,
            })
        })
    };
    only(Side::Stock, stock, plugin).chain(only(Side::Plugin, plugin, stock))
}

/// Says where what both sides answer comes in another order.
fn disorder(question: &Question, stock: &Record, plugin: &Record) -> Option<String> {
    let common = |this: &Answer, other: &Answer| -> Vec<String> {
        let both = this.items.iter().filter(|item| other.items.contains(item));
        both.cloned().collect()
    };
    plugin.answers(question).find_map(|ours| {
        let theirs = stock.answer(question, ours.stage, ours.port)?;
        let (a, b) = (common(theirs, ours), common(ours, theirs));
        (a != b).then(|| format!("{}: another order: {a:?}, {b:?}", question.command))
    })
}

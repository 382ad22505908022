//! What Neutron looks for before it asks for a vhost-user port: that the switch lists the types. It may look at any time.

use std::path::Path;

use anyhow::{ensure, Context, Result};
use serde_json::Value;

use super::super::world::{options, PATIENCE};
use super::super::Ctx;
use crate::hugepages::Hugepages;
use crate::netns::NetNs;
use crate::ovs::Ovs;
use crate::process::Process;
use crate::sides::Side;
use crate::wait;

const TYPES: [&str; 2] = ["dpdkvhostuser", "dpdkvhostuserclient"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dpdk {
    Without,
    Initialized,
    InitializedLater,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Database,
    Switch,
}

/// In whatever order things start, the first list of types that the database ever shows has both, as has each later one;
/// and with DPDK it is the list of a switch with the stock ports.
pub fn there_from_the_start(ctx: &Ctx) -> Result<()> {
    let _hugepages = Hugepages::take()?;
    let starts = [
        (Dpdk::Without, First::Database),
        (Dpdk::Without, First::Switch),
        (Dpdk::Initialized, First::Database),
        (Dpdk::Initialized, First::Switch),
        (Dpdk::InitializedLater, First::Database),
    ];
    let mut last = Vec::new();
    for (number, (dpdk, first)) in starts.into_iter().enumerate() {
        ctx.step(&format!("start {number}"));
        let lists = start(ctx, Side::Plugin, dpdk, first, &ctx.dir.join(number.to_string()))?;
        for list in &lists {
            let missing = TYPES
                .iter()
                .find(|name| !list.iter().any(|listed| listed == *name));
            ensure!(
                missing.is_none(),
                "start {number}: no {missing:?} in {list:?}, of {lists:?}"
            );
        }
        last = lists.last().cloned().context("no list of types")?;
    }
    ctx.step("stock");
    let stock = start(
        ctx,
        Side::Stock,
        Dpdk::Initialized,
        First::Database,
        &ctx.dir.join("stock"),
    )?;
    ensure!(
        stock.last() == Some(&last),
        "stock lists {stock:?}, the plugin {last:?}"
    );
    Ok(())
}

/// Starts a switch and returns every list of types that the database showed.
fn start(ctx: &Ctx, side: Side, dpdk: Dpdk, first: First, dir: &Path) -> Result<Vec<Vec<String>>> {
    let options = options(&side.settings(&ctx.settings), dpdk == Dpdk::Initialized);
    let mut ovs = Ovs::configured(options, dir, &NetNs::create()?)?;
    let watcher = match first {
        First::Database => {
            let watcher = watch(&ovs, dir)?;
            ovs.spawn_vswitchd()?;
            watcher
        }
        First::Switch => {
            ovs.stop_database()?;
            ovs.spawn_vswitchd()?;
            let mark = 0;
            ovs.wait_log(mark, &["connecting"], PATIENCE)?;
            ovs.start_database()?;
            watch(&ovs, dir)?
        }
    };
    ovs.wait_configured()?;
    if dpdk == Dpdk::InitializedLater {
        let mark = ovs.log_mark();
        ovs.enable_dpdk()?;
        ovs.wait_log(mark, &["DPDK Enabled - initialized"], PATIENCE)?;
        ovs.wait_configured()?;
    }
    // The watcher is told of a change after whoever waits for vswitchd: until it has seen the last one.
    let now = types(&Value::String(ovs.vsctl("get Open_vSwitch . iface_types")?));
    wait::until("the watcher to see the list of types", PATIENCE, || {
        let seen = seen(&watcher.printed());
        Ok((seen.last() == Some(&now)).then_some(seen))
    })
}

/// Has the database print each value of the column.
fn watch(ovs: &Ovs, dir: &Path) -> Result<Process> {
    let mut command = ovs.tool("ovsdb-client");
    let database = format!("unix:{}", ovs.dir().join("db.sock").display());
    command.args([
        "--format=json",
        "monitor",
        &database,
        "Open_vSwitch",
        "Open_vSwitch",
        "iface_types",
    ]);
    let mut watcher = Process::spawn("ovsdb-client", command, &dir.join("watcher.out"))?;
    wait::until_true("the watcher's first line", PATIENCE, || {
        watcher.check_alive()?;
        Ok(watcher.printed().contains('\n'))
    })?;
    Ok(watcher)
}

/// The lists in what the watcher printed; where there was none yet is no list.
fn seen(printed: &str) -> Vec<Vec<String>> {
    let tables = printed
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let rows = tables.flat_map(|table| table["data"].as_array().cloned().unwrap_or_default());
    let cells = rows.filter_map(|row| {
        let new = row[1] != "old";
        new.then(|| row[2].clone())
    });
    cells
        .map(|cell| types(&cell))
        .filter(|list| !list.is_empty())
        .collect()
}

/// The names in a set, as JSON or as ovs-vsctl prints it, in order.
fn types(set: &Value) -> Vec<String> {
    let text = match set {
        Value::String(text) => text.clone(),
        json => json[1].to_string(),
    };
    let names = text.trim().trim_matches(['[', ']']).split(',');
    let mut names: Vec<String> = names
        .map(|name| name.trim().trim_matches('"').to_owned())
        .collect();
    names.retain(|name| !name.is_empty());
    names.sort();
    names
}

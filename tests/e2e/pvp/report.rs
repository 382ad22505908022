//! Samples in, medians and ratios out: as a table to read and as JSON to keep.

use std::fmt::Write;
use std::time::Duration;

use super::sample::{Pair, Sample};
use crate::chart::{Bar, Chart, Scale};
use crate::sides::{Side, Spread};

/// All pairs of one kind of rings and one load.
struct Row {
    rings: &'static str,
    load: &'static str,
    pairs: Vec<Pair>,
}

/// One of a sample's figures.
type Figure = fn(&Sample) -> f64;

/// How far apart the cores were at the begin of a sample, in nanoseconds.
const DISTANCE: Figure = |sample| sample.distance[0].as_nanos() as f64;
const CYCLES: Figure = |sample| sample.cycles;
const MPPS: Figure = |sample| sample.mpps;

/// All that was measured.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub fn add(&mut self, rings: &'static str, load: &'static str, pair: Pair) {
        let is_it = |row: &&mut Row| row.rings == rings && row.load == load;
        match self.rows.iter_mut().find(is_it) {
            Some(row) => row.pairs.push(pair),
            None => self.rows.push(Row {
                rings,
                load,
                pairs: vec![pair],
            }),
        }
    }

    /// The rows of one kind of rings, with a head.
    pub fn table(&self, rings: &str) -> String {
        let mut text = format!(
            "\n{rings:<16} {:>9}  {:>5}  {:>21}  {:>21}  {:>5}  {:>11}  {:>16}\n",
            "load",
            "pairs",
            "stock cycles/packet",
            "plugin cycles/packet",
            "ratio",
            "Mpps",
            "core to core, ns"
        );
        for row in self.rows.iter().filter(|row| row.rings == rings) {
            let of = |side, figure| row.spread(side, figure);
            let (stock, plugin) = (of(Side::Stock, CYCLES), of(Side::Plugin, CYCLES));
            let _ = writeln!(
                text,
                "{:<16} {:>9}  {:>5}  {stock:>21}  {plugin:>21}  {:>5.2}  {:>5.2} {:>5.2}  {:>16}",
                "",
                row.load,
                row.pairs.len(),
                row.ratio(),
                of(Side::Stock, MPPS).median,
                of(Side::Plugin, MPPS).median,
                of(Side::Plugin, DISTANCE),
            );
        }
        text
    }

    /// What the table says, to look at.
    pub fn chart(&self) -> Chart {
        let bar = |row: &Row| Bar {
            label: format!("{}, {}: {:.2}", row.rings, row.load, row.ratio()),
            sides: Side::BOTH.map(|side| row.spread(side, CYCLES)),
        };
        Chart {
            title: "What a packet costs the poll thread, cycles; and the ratio",
            scale: Scale::One,
            bars: self.rows.iter().map(bar).collect(),
        }
    }

    /// All samples and what the table says of them.
    pub fn json(&self, measured: Duration) -> String {
        let rows: Vec<String> = self.rows.iter().map(Row::json).collect();
        format!(
            "{{\"seconds\": {}, \"rows\": [\n  {}\n]}}\n",
            measured.as_secs_f64(),
            rows.join(",\n  ")
        )
    }
}

impl Row {
    fn values(&self, side: Side, figure: Figure) -> impl Iterator<Item = f64> + '_ {
        self.pairs.iter().map(move |pair| match side {
            Side::Stock => figure(&pair.stock),
            Side::Plugin => figure(&pair.plugin),
        })
    }

    fn spread(&self, side: Side, figure: Figure) -> Spread {
        Spread::of(self.values(side, figure))
    }

    /// How many times the plugin's cycles those of the stock ports are: the median of the pairs.
    fn ratio(&self) -> f64 {
        Spread::of(
            self.pairs
                .iter()
                .map(|pair| pair.stock.cycles / pair.plugin.cycles),
        )
        .median
    }

    fn json(&self) -> String {
        let list = |side, figure| {
            let values: Vec<String> = self
                .values(side, figure)
                .map(|value| format!("{value:.3}"))
                .collect();
            values.join(", ")
        };
        let mut text = format!(
            "{{\"rings\": \"{}\", \"load\": \"{}\", \"ratio\": {:.3}",
            self.rings,
            self.load,
            self.ratio()
        );
        for (name, side) in [("stock", Side::Stock), ("plugin", Side::Plugin)] {
            for (unit, figure) in [("cycles", CYCLES), ("mpps", MPPS), ("distance_ns", DISTANCE)] {
                let _ = write!(text, ", \"{name}_{unit}\": [{}]", list(side, figure));
            }
        }
        text.push('}');
        text
    }
}

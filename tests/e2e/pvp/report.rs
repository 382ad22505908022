//! Samples in, medians and ratios out: as a table to read and as JSON to keep.

use std::fmt::Write;

use super::sample::Sample;
use super::Side;

/// All samples of one kind of rings and one size.
struct Row {
    rings: &'static str,
    size: u32,
    stock: Vec<Sample>,
    plugin: Vec<Sample>,
}

/// One of a sample's figures.
type Figure = fn(&Sample) -> f64;

/// All that was measured.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

/// Least, middle and greatest of some samples.
struct Spread {
    least: f64,
    median: f64,
    greatest: f64,
}

impl Report {
    pub fn add(&mut self, rings: &'static str, size: u32, side: Side, sample: Sample) {
        let known = self
            .rows
            .iter()
            .position(|row| row.rings == rings && row.size == size);
        let index = known.unwrap_or_else(|| {
            self.rows.push(Row {
                rings,
                size,
                stock: Vec::new(),
                plugin: Vec::new(),
            });
            self.rows.len() - 1
        });
        let row = &mut self.rows[index];
        match side {
            Side::Stock => row.stock.push(sample),
            Side::Plugin => row.plugin.push(sample),
        }
    }

    /// The rows of one kind of rings, with a head.
    pub fn table(&self, rings: &str) -> String {
        let mut text = format!(
            "\n{:<16} {:>5}  {:>21}  {:>21}  {:>5}  {:>11}\n",
            rings, "bytes", "stock cycles/packet", "plugin cycles/packet", "ratio", "Mpps"
        );
        for row in self.rows.iter().filter(|row| row.rings == rings) {
            let (stock, plugin) = (row.cycles(Side::Stock), row.cycles(Side::Plugin));
            let (stock_rate, rate) = (row.mpps(Side::Stock), row.mpps(Side::Plugin));
            let _ = writeln!(
                text,
                "{:<16} {:>5}  {stock:>21}  {plugin:>21}  {:>5.2}  {:>5.2} {:>5.2}",
                "",
                row.size,
                stock.median / plugin.median,
                stock_rate.median,
                rate.median,
            );
        }
        text
    }

    /// All samples and what the table says of them.
    pub fn json(&self, seconds: u64) -> String {
        let rows: Vec<String> = self.rows.iter().map(Row::json).collect();
        format!(
            "{{\"seconds\": {seconds}, \"rows\": [\n  {}\n]}}\n",
            rows.join(",\n  ")
        )
    }
}

impl Row {
    fn samples(&self, side: Side) -> &[Sample] {
        match side {
            Side::Stock => &self.stock,
            Side::Plugin => &self.plugin,
        }
    }

    fn cycles(&self, side: Side) -> Spread {
        Spread::of(self.samples(side).iter().map(|sample| sample.cycles))
    }

    fn mpps(&self, side: Side) -> Spread {
        Spread::of(self.samples(side).iter().map(|sample| sample.mpps))
    }

    fn json(&self) -> String {
        let list = |side, get: Figure| {
            let values: Vec<String> = self
                .samples(side)
                .iter()
                .map(|sample| format!("{:.3}", get(sample)))
                .collect();
            values.join(", ")
        };
        let cycles: Figure = |sample| sample.cycles;
        let mpps: Figure = |sample| sample.mpps;
        format!(
            "{{\"rings\": \"{}\", \"bytes\": {}, \"ratio\": {:.3}, \
             \"stock_cycles\": [{}], \"plugin_cycles\": [{}], \"stock_mpps\": [{}], \"plugin_mpps\": [{}]}}",
            self.rings,
            self.size,
            self.cycles(Side::Stock).median / self.cycles(Side::Plugin).median,
            list(Side::Stock, cycles),
            list(Side::Plugin, cycles),
            list(Side::Stock, mpps),
            list(Side::Plugin, mpps),
        )
    }
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        Spread {
            least: at(0),
            median: match values.len() % 2 {
                0 => (at(middle.wrapping_sub(1)) + at(middle)) / 2.0,
                _ => at(middle),
            },
            greatest: at(values.len().wrapping_sub(1)),
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.0} ({:.0}-{:.0})", self.median, self.least, self.greatest);
        f.pad(&text)
    }
}

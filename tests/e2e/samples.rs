//! Samples of anything in, medians side by side out.

use std::fmt::Write;

use crate::chart::{Bar, Chart, Scale};
use crate::sides::{Side, Spread};

/// One thing that is measured on both sides.
struct Row {
    what: String,
    unit: &'static str,
    samples: [Vec<f64>; 2],
}

/// All that was measured, in the order in which it was first.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub fn add(&mut self, side: Side, what: String, unit: &'static str, value: f64) {
        let index = self.rows.iter().position(|row| row.what == what);
        let index = index.unwrap_or_else(|| {
            self.rows.push(Row {
                what,
                unit,
                samples: Default::default(),
            });
            self.rows.len() - 1
        });
        self.rows[index].samples[side as usize].push(value);
    }

    pub fn table(&self) -> String {
        let mut text = format!("\n{:<60} {:<5} {:>20} {:>20}\n", "", "", "stock", "plugin");
        for row in &self.rows {
            let [stock, plugin] = Side::BOTH.map(|side| row.spread(side));
            let _ = writeln!(text, "{:<60} {:<5} {stock:>20} {plugin:>20}", row.what, row.unit);
        }
        text
    }

    /// What the table says, to look at.
    pub fn chart(&self, title: &'static str) -> Chart {
        let bar = |row: &Row| Bar {
            label: format!("{}, {}", row.what, row.unit),
            sides: Side::BOTH.map(|side| row.spread(side)),
        };
        Chart {
            title,
            scale: Scale::EachRow,
            bars: self.rows.iter().map(bar).collect(),
        }
    }

    pub fn json(&self) -> String {
        let rows: Vec<String> = self.rows.iter().map(Row::json).collect();
        format!("{{\"rows\": [\n  {}\n]}}\n", rows.join(",\n  "))
    }
}

impl Row {
    fn spread(&self, side: Side) -> Spread {
        Spread::of(self.samples[side as usize].iter().copied())
    }

    fn json(&self) -> String {
        let list = |side: Side| {
            let values: Vec<String> = self.samples[side as usize]
                .iter()
                .map(|v| format!("{v:.3}"))
                .collect();
            format!("\"{}\": [{}]", side.name(), values.join(", "))
        };
        format!(
            "{{\"what\": \"{}\", \"unit\": \"{}\", {}}}",
            self.what,
            self.unit,
            Side::BOTH.map(list).join(", ")
        )
    }
}

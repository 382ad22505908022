//! The ratios: a table, and the same as JSON.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::duel::Way;
use crate::guest::Place;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench/burst.json");

#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

/// One case in one direction.
pub struct Row {
    pub rings: &'static str,
    pub size: usize,
    pub place: Place,
    pub way: Way,
    /// Nanoseconds per packet of stock and of the plugin, slice by slice.
    pairs: Vec<[f64; 2]>,
}

impl Row {
    /// Notes two slices of so many packets that followed each other.
    pub fn add(&mut self, packets: u64, stock: Duration, plugin: Duration) {
        let per_packet = |elapsed: Duration| elapsed.as_secs_f64() * 1e9 / packets as f64;
        self.pairs.push([per_packet(stock), per_packet(plugin)]);
    }

    fn stock(&self) -> f64 {
        median(self.pairs.iter().map(|[stock, _]| *stock))
    }

    fn plugin(&self) -> f64 {
        median(self.pairs.iter().map(|[_, plugin]| *plugin))
    }

    fn ratio(&self) -> f64 {
        median(self.pairs.iter().map(|[stock, plugin]| stock / plugin))
    }
}

impl Report {
    pub fn row(&mut self, rings: &'static str, size: usize, place: Place, way: Way) -> &mut Row {
        self.rows.push(Row {
            rings,
            size,
            place,
            way,
            pairs: Vec::new(),
        });
        self.rows.last_mut().expect("pushed just now")
    }

    /// Prints and writes what was measured, unless this was a test run, which measures nothing.
    pub fn finish(&self) {
        let measured = self.rows.iter().filter(|row| row.pairs.len() > 1);
        let measured: Vec<&Row> = measured.collect();
        if measured.is_empty() || std::env::args().any(|argument| argument == "--test") {
            return;
        }
        print!("{}", table(&measured));
        let rows: Vec<_> = measured.iter().map(|row| json(row)).collect();
        let text = format!(
            "{:#}\n",
            json!({ "unit": "nanoseconds per packet", "rows": rows })
        );
        let path = Path::new(FILE);
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(path, text));
        match written {
            Ok(()) => println!("{FILE}"),
            Err(error) => eprintln!("cannot write {FILE}: {error}"),
        }
    }
}

fn table(rows: &[&Row]) -> String {
    let mut text = format!(
        "\n{:<17} {:>5} {:<11} {:<8} {:>9} {:>9} {:>6}\n",
        "rings", "bytes", "driver", "way", "stock ns", "plugin ns", "ratio"
    );
    for row in rows {
        let _ = writeln!(
            text,
            "{:<17} {:>5} {:<11} {:<8} {:>9.1} {:>9.1} {:>6.2}",
            row.rings,
            row.size,
            row.place.name(),
            row.way.name(),
            row.stock(),
            row.plugin(),
            row.ratio()
        );
    }
    text
}

fn json(row: &Row) -> serde_json::Value {
    json!({
        "rings": row.rings,
        "bytes": row.size,
        "driver": row.place.name(),
        "way": row.way.name(),
        "stock": row.stock(),
        "plugin": row.plugin(),
        "ratio": row.ratio(),
        "pairs": row.pairs.len(),
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

//! What a bench measured as a picture: for each thing two bars, the stock ports' above the plugin's, as long as the median, with
//! a line from the least sample to the greatest.

use anyhow::{anyhow, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::sides::{Side, Spread};

/// One thing that was measured on both sides.
pub struct Bar {
    pub label: String,
    /// In the order of [`Side::BOTH`].
    pub sides: [Spread; 2],
}

/// All of a bench.
pub struct Chart {
    pub title: &'static str,
    pub scale: Scale,
    pub bars: Vec<Bar>,
}

/// Which bars can be compared by their length.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// All.
    One,
    /// The two of a row: where microseconds stand beside millions of frames.
    EachRow,
}

/// In pixels.
const WIDTH: i32 = 900;
const HEAD: i32 = 56;
const ROW: i32 = 36;
/// Where bars begin, and how long the longest of a row is.
const LEFT: i32 = 430;
const LENGTH: f64 = 340.0;
/// A bar's height.
const THICK: i32 = 12;
/// By side.
const COLOURS: [RGBColor; 2] = [RGBColor(150, 150, 150), RGBColor(20, 110, 190)];

impl Chart {
    /// The picture, as a document.
    pub fn svg(&self) -> Result<String> {
        let mut text = String::new();
        self.draw(&mut text)
            .map_err(|error| anyhow!("cannot draw {}: {error}", self.title))?;
        Ok(text)
    }

    fn draw(&self, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let rows = i32::try_from(self.bars.len())?;
        let height = HEAD + ROW * rows;
        let size = (WIDTH.try_into()?, height.try_into()?);
        let area = SVGBackend::with_string(text, size).into_drawing_area();
        area.fill(&WHITE)?;
        let style = |size: i32, to: HPos| {
            let at = Pos::new(to, VPos::Center);
            TextStyle::from(("sans-serif", size)).pos(at)
        };
        area.draw(&Text::new(self.title, (8, 18), style(16, HPos::Left)))?;
        for (side, x) in Side::BOTH.into_iter().zip([LEFT, LEFT + 90]) {
            area.draw(&square(side, (x, 34), (x + THICK, 34 + THICK)))?;
            let name = (x + THICK + 6, 34 + THICK / 2);
            area.draw(&Text::new(side.name(), name, style(12, HPos::Left)))?;
        }
        let greatest = self.bars.iter().map(Bar::greatest).fold(0.0, f64::max);
        for (bar, top) in self.bars.iter().zip((HEAD..).step_by(ROW as usize)) {
            let label = (LEFT - 10, top + THICK);
            area.draw(&Text::new(bar.label.as_str(), label, style(12, HPos::Right)))?;
            for (side, y) in Side::BOTH.into_iter().zip([top, top + THICK]) {
                let spread = &bar.sides[side as usize];
                let full = match self.scale {
                    Scale::One => greatest,
                    Scale::EachRow => bar.greatest(),
                };
                let at = |value| place(value, full);
                area.draw(&square(side, (LEFT, y), (at(spread.median), y + THICK - 1)))?;
                let middle = y + THICK / 2;
                let range = vec![(at(spread.least), middle), (at(spread.greatest), middle)];
                area.draw(&PathElement::new(range, BLACK))?;
                let end = (at(spread.greatest.max(spread.median)) + 6, middle);
                area.draw(&Text::new(told(spread.median), end, style(11, HPos::Left)))?;
            }
        }
        area.present()?;
        Ok(())
    }
}

impl Bar {
    fn greatest(&self) -> f64 {
        self.sides
            .iter()
            .map(|spread| spread.greatest)
            .fold(0.0, f64::max)
    }
}

/// Where a value lies on a scale that ends at `full`.
#[expect(clippy::cast_possible_truncation, reason = "a place in a picture")]
fn place(value: f64, full: f64) -> i32 {
    // What is not a number lies at the begin: `as` makes it 0.
    LEFT + (value / full.max(f64::MIN_POSITIVE) * LENGTH) as i32
}

/// A value with as many digits as say something.
fn told(value: f64) -> String {
    let digits = if value < 10.0 { 2 } else { 0 };
    format!("{value:.digits$}")
}

fn square(side: Side, from: (i32, i32), to: (i32, i32)) -> Rectangle<(i32, i32)> {
    Rectangle::new([from, to], COLOURS[side as usize].filled())
}

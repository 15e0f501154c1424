//! Charts, as SVG within the page.
//!
//! Each has a title and a description for those who don't see it, and says so in words where there is
//! nothing to draw. Colours come from the style sheet, by the class of a series.

use std::fmt::Display;

use crate::html::Html;
use crate::record::Count;

/// What a colour stands for: its class in the style sheet, and its name in the legend.
pub struct Series {
    pub class: &'static str,
    pub name: &'static str,
}

/// A bar, or a row: a value for each series, one upon the other.
pub struct Bar {
    pub label: String,
    pub parts: Vec<Count>,
    /// Said in place of a bar that can't be drawn.
    pub instead: Option<String>,
}

impl Bar {
    fn sum(&self) -> f64 {
        self.parts.iter().map(|part| part.0.max(0) as f64).sum()
    }

    /// A part of it, which says of itself what it is.
    fn part(&self, page: &mut Html, series: &Series, part: Count, place: [f64; 4]) {
        rectangle(page, series.class, place, |page| {
            page.leaf("title", &[], format_args!("{}: {} {part}", self.label, series.name));
        });
    }
}

/// At `x` and `y`, so wide and so tall.
fn rectangle(page: &mut Html, class: &str, place: [f64; 4], content: impl FnOnce(&mut Html)) {
    let [x, y, width, height] = place.map(Length);
    let place: [(_, &dyn Display); 5] =
        [("class", &class), ("x", &x), ("y", &y), ("width", &width), ("height", &height)];
    page.element("rect", &place, content);
}

fn text(page: &mut Html, anchor: &'static str, x: f64, y: f64, text: impl Display) {
    page.leaf("text", &[("x", &Length(x)), ("y", &Length(y)), ("text-anchor", &anchor)], text);
}

/// A chart.
pub struct Chart<'a> {
    /// Unique on the page.
    pub id: &'static str,
    pub title: &'a str,
    pub description: String,
    pub series: &'a [Series],
    pub bars: Vec<Bar>,
    /// Said where nothing is to be drawn.
    pub empty: &'a str,
}

/// A length with as many digits as a screen can show.
struct Length(f64);

impl Display for Length {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", (self.0 * 100.0).round() / 100.0)
    }
}

const WIDTH: f64 = 760.0;

impl Chart<'_> {
    /// Upright bars along time or classes.
    pub fn upright(&self, page: &mut Html, height: f64) {
        let (left, right, top, bottom) = (64.0, WIDTH - 6.0, 12.0, height - 26.0);
        self.frame(page, height, |page| {
            let highest = self.bars.iter().map(Bar::sum).fold(0.0, f64::max);
            let (step, steps) = scale(highest);
            for tick in 0..=steps {
                let value = step * f64::from(tick);
                let y = bottom - (bottom - top) * f64::from(tick) / f64::from(steps);
                page.empty(
                    "line",
                    &[
                        ("class", if tick == 0 { &"axis" } else { &"grid" }),
                        ("x1", &Length(left)),
                        ("x2", &Length(right)),
                        ("y1", &Length(y)),
                        ("y2", &Length(y)),
                    ],
                );
                text(page, "end", left - 8.0, y + 4.0, short(value));
            }
            let slot = (right - left) / self.bars.len().max(1) as f64;
            let gap = (slot * 0.2).min(12.0);
            let every = self.bars.len().div_ceil(8).max(1);
            for (index, bar) in self.bars.iter().enumerate() {
                let x = left + slot * index as f64;
                let mut y = bottom;
                for (part, series) in
                    bar.parts.iter().zip(self.series).filter(|(part, _)| part.0 > 0)
                {
                    // One of many is still to be seen.
                    let tall =
                        ((bottom - top) * part.0 as f64 / (step * f64::from(steps))).max(1.0);
                    y -= tall;
                    bar.part(page, series, *part, [x + gap / 2.0, y, slot - gap, tall]);
                }
                if index % every == 0 && (index + every / 2 < self.bars.len() || every == 1) {
                    text(page, "middle", x + slot / 2.0, height - 8.0, &bar.label);
                }
            }
            self.say_if_empty(page, highest, (top + bottom) / 2.0);
        });
    }

    /// A bar across for each row, as long as the others: what share each series has of it. The labels
    /// are left of `left`.
    pub fn across(&self, page: &mut Html, left: f64) {
        let (right, row, thick) = (WIDTH - 92.0, 30.0, 16.0);
        let height = row * self.bars.len().max(1) as f64 + 8.0;
        self.frame(page, height, |page| {
            for (index, bar) in self.bars.iter().enumerate() {
                let y = row * index as f64 + 8.0;
                let sum = bar.sum();
                text(page, "end", left - 10.0, y + 12.5, &bar.label);
                let whole = if bar.instead.is_some() { "unknown-amount" } else { "nothing" };
                rectangle(page, whole, [left, y, right - left, thick], |_| ());
                if let Some(instead) = &bar.instead {
                    page.leaf(
                        "text",
                        &[
                            ("class", &"instead"),
                            ("x", &Length(left + 8.0)),
                            ("y", &Length(y + 12.0)),
                        ],
                        instead,
                    );
                    continue;
                }
                let mut x = left;
                for (part, series) in
                    bar.parts.iter().zip(self.series).filter(|(part, _)| part.0 > 0)
                {
                    let wide = ((right - left) * part.0 as f64 / sum).max(1.5);
                    bar.part(page, series, *part, [x.min(right - wide), y, wide, thick]);
                    x += wide;
                }
                page.leaf(
                    "text",
                    &[("x", &Length(right + 8.0)), ("y", &Length(y + 12.5))],
                    Count(sum as i64),
                );
            }
            if self.bars.is_empty() {
                self.say_if_empty(page, 0.0, 22.0);
            }
        });
    }

    fn frame(&self, page: &mut Html, height: f64, content: impl FnOnce(&mut Html)) {
        page.element("figure", &[("class", &"chart"), ("id", &self.id)], |page| {
            page.leaf("figcaption", &[], self.title);
            if self.series.len() > 1 {
                page.element("ul", &[("class", &"legend"), ("aria-hidden", &"true")], |page| {
                    for series in self.series {
                        page.element("li", &[], |page| {
                            page.element(
                                "span",
                                &[("class", &format_args!("swatch {}", series.class))],
                                |_| (),
                            );
                            page.text(series.name);
                        });
                    }
                });
            }
            page.element("div", &[("class", &"scroll")], |page| {
                page.element(
                    "svg",
                    &[
                        ("role", &"img"),
                        ("aria-labelledby", &format_args!("{0}-title {0}-text", self.id)),
                        ("viewBox", &format_args!("0 0 {WIDTH} {}", Length(height))),
                    ],
                    |page| {
                        page.leaf(
                            "title",
                            &[("id", &format_args!("{}-title", self.id))],
                            self.title,
                        );
                        page.leaf(
                            "desc",
                            &[("id", &format_args!("{}-text", self.id))],
                            &self.description,
                        );
                        content(page);
                    },
                );
            });
        });
    }

    fn say_if_empty(&self, page: &mut Html, highest: f64, y: f64) {
        if highest == 0.0 {
            page.leaf(
                "text",
                &[
                    ("class", &"empty"),
                    ("x", &Length(WIDTH / 2.0)),
                    ("y", &Length(y)),
                    ("text-anchor", &"middle"),
                ],
                self.empty,
            );
        }
    }
}

/// Steps of 1, 2 or 5 times a power of ten that reach a value: how large, how many. Whole ones.
fn scale(highest: f64) -> (f64, u32) {
    let rough = (highest / 4.0).max(1.0);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .iter()
        .map(|times| times * power)
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    (step, ((highest / step).ceil() as u32).max(1))
}

/// A round number, short.
fn short(value: f64) -> String {
    match value {
        _ if value >= 1e12 => format!("{}T", value / 1e12),
        _ if value >= 1e9 => format!("{}G", value / 1e9),
        _ if value >= 1e6 => format!("{}M", value / 1e6),
        _ if value >= 1e4 => format!("{}k", value / 1e3),
        _ => format!("{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_reach_their_highest_value_in_few_whole_steps() {
        for highest in [0.0, 1.0, 3.0, 7.0, 10.0, 99.0, 1e6, 123_456_789.0, 9.3e18, 1e300] {
            let (step, steps) = scale(highest);
            assert!(step >= 1.0 && (1..=5).contains(&steps), "{highest}: {steps} steps of {step}");
            assert!(step * f64::from(steps) >= highest, "{highest}");
        }
    }

    #[test]
    fn ticks_are_short() {
        assert_eq!(short(0.0), "0");
        assert_eq!(short(2000.0), "2000");
        assert_eq!(short(50_000.0), "50k");
        assert_eq!(short(2e6), "2M");
    }
}

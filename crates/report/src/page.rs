//! What sections are made of: headings, figures, tables.

use std::fmt::Display;

use crate::html::Html;
use crate::record::{Count, List};
use crate::show::{Name, Of, Sentence};

/// How a column of a table is set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// Words.
    Text(&'static str),
    /// A number, or another short thing to the right.
    Number(&'static str),
    /// A name of any length that somebody chose.
    Name(&'static str),
    /// A time: never broken.
    Time(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Text(title) | Self::Number(title) | Self::Name(title) | Self::Time(title) => {
                title
            }
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Number(_) => "number",
            Self::Name(_) => "name",
            Self::Time(_) => "time",
        }
    }
}

/// A cell: what it says, and its class beside the column's.
pub struct Cell(String, &'static str);

/// A cell that says something.
pub fn cell(content: impl Display) -> Cell {
    Cell(content.to_string(), "")
}

/// A cell with a name that somebody chose.
pub fn name(content: &str) -> Cell {
    cell(Name(content))
}

/// A cell with what somebody wrote.
pub fn sentence(content: &str) -> Cell {
    cell(Sentence(content))
}

/// The same, where there may be nothing.
pub fn sentence_or_dash(content: &Option<String>) -> Cell {
    content.as_deref().map_or_else(|| cell("-"), sentence)
}

/// A cell with a name, where there may be none.
pub fn name_or_dash(content: &Option<String>) -> Cell {
    content.as_deref().map_or_else(|| cell("-"), name)
}

/// A cell that should be noticed if there is something to it.
pub fn alarming(count: Count) -> Cell {
    Cell(count.to_string(), if count.0 > 0 { "alarming" } else { "" })
}

/// A cell with a status.
pub fn status(status: &str) -> Cell {
    Cell(status.to_string(), tone(status))
}

/// The class of a status: it is in the word, too.
pub fn tone(status: &str) -> &'static str {
    match status {
        "ok" | "rotated" | "created" | "done" => "fine",
        "warning" | "interrupted" | "not run" => "noted",
        "critical" | "failed" => "alarming",
        _ => "",
    }
}

/// A table of some rows of a list, which says how many there are in all.
pub fn list<T>(
    page: &mut Html,
    caption: &str,
    columns: &[Column],
    list: &List<T>,
    row: impl Fn(&T) -> Vec<Cell>,
) {
    table(page, caption, columns, list.rows.iter().map(row), list.total);
}

/// A table of all rows there are.
pub fn all<T>(
    page: &mut Html,
    caption: &str,
    columns: &[Column],
    rows: &[T],
    row: impl Fn(&T) -> Vec<Cell>,
) {
    table(page, caption, columns, rows.iter().map(row), Count(rows.len() as i64));
}

fn table(
    page: &mut Html,
    caption: &str,
    columns: &[Column],
    rows: impl ExactSizeIterator<Item = Vec<Cell>>,
    total: Count,
) {
    let shown = Count(rows.len() as i64);
    if shown.0 == 0 {
        page.element("p", &[("class", &"none")], |page| {
            page.leaf("strong", &[], format_args!("{caption}: "));
            page.text(if total.0 == 0 { "none." } else { "not listed." });
        });
        return;
    }
    page.element("div", &[("class", &"scroll")], |page| {
        page.element("table", &[], |page| {
            page.element("caption", &[], |page| {
                page.text(caption);
                if total > shown {
                    page.leaf("span", &[("class", &"share")], format_args!(" {shown} of {total}"));
                }
            });
            page.element("thead", &[], |page| {
                page.element("tr", &[], |page| {
                    for column in columns {
                        page.leaf(
                            "th",
                            &[("scope", &"col"), ("class", &column.class())],
                            column.title(),
                        );
                    }
                });
            });
            page.element("tbody", &[], |page| {
                for cells in rows {
                    page.element("tr", &[], |page| {
                        for (Cell(content, class), column) in cells.iter().zip(columns) {
                            page.element(
                                "td",
                                &[("class", &format_args!("{} {class}", column.class()))],
                                |page| {
                                    if matches!(column, Column::Name(_)) {
                                        // Whatever direction it is written in, it stays in its cell.
                                        page.leaf("bdi", &[], content);
                                    } else {
                                        page.text(content);
                                    }
                                },
                            );
                        }
                    });
                }
            });
            if total > shown {
                page.element("tfoot", &[], |page| {
                    page.element("tr", &[], |page| {
                        page.leaf(
                            "td",
                            &[("colspan", &columns.len())],
                            format_args!(
                                "{} more not listed here.",
                                Count(total.0.saturating_sub(shown.0))
                            ),
                        );
                    });
                });
            }
        });
    });
}

/// Facts by name.
pub fn facts(page: &mut Html, facts: &[(&str, &dyn Display)]) {
    page.element("dl", &[("class", &"facts")], |page| {
        for (term, description) in facts {
            page.element("div", &[], |page| {
                page.leaf("dt", &[], term);
                page.element("dd", &[], |page| page.leaf("bdi", &[], description));
            });
        }
    });
}

/// A paragraph.
pub fn paragraph(page: &mut Html, text: impl Display) {
    page.leaf("p", &[], text);
}

/// What a figure is not, or where it comes from.
pub fn note(page: &mut Html, text: impl Display) {
    page.leaf("p", &[("class", &"note")], text);
}

/// "a, b and c", "none".
pub fn words(words: &[String]) -> String {
    match words {
        [] => "none".into(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// "3 keys".
pub fn of(count: Count, one: &'static str, many: &'static str) -> Of {
    Of(count, one, many)
}

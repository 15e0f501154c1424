//! What sections are made of: headings, figures, tables.

use std::fmt::Display;

use crate::html::Html;
use crate::record::{Count, List};
use crate::show::{Name, Sentence};

/// A column of a table: its title, and what its cells say of a row.
pub enum Column<T> {
    /// Words.
    Text(&'static str, fn(&T) -> Cell),
    /// A number, or another short thing to the right.
    Number(&'static str, fn(&T) -> Cell),
    /// A name of any length that somebody chose.
    Name(&'static str, fn(&T) -> Cell),
    /// A time: never broken.
    Time(&'static str, fn(&T) -> Cell),
}

impl<T> Column<T> {
    /// Its class, title and cells.
    fn parts(&self) -> (&'static str, &'static str, fn(&T) -> Cell) {
        match *self {
            Self::Text(title, cell) => ("text", title, cell),
            Self::Number(title, cell) => ("number", title, cell),
            Self::Name(title, cell) => ("name", title, cell),
            Self::Time(title, cell) => ("time", title, cell),
        }
    }

    fn write(&self, page: &mut Html, row: &T) {
        let (column, _, cell) = self.parts();
        let Cell(content, class) = cell(row);
        page.element("td", &[("class", &format_args!("{column} {class}"))], |page| {
            if matches!(self, Self::Name(..)) {
                // Whatever direction it is written in, it stays in its cell.
                page.leaf("bdi", &[], content);
            } else {
                page.text(content);
            }
        });
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
pub fn list<T>(page: &mut Html, caption: &str, list: &List<T>, columns: &[Column<T>]) {
    table(page, caption, &list.rows, list.total, columns);
}

/// A table of all rows there are.
pub fn all<T>(page: &mut Html, caption: &str, rows: &[T], columns: &[Column<T>]) {
    table(page, caption, rows, Count(rows.len() as i64), columns);
}

fn table<T>(page: &mut Html, caption: &str, rows: &[T], total: Count, columns: &[Column<T>]) {
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
                    for (class, title, _) in columns.iter().map(Column::parts) {
                        page.leaf("th", &[("scope", &"col"), ("class", &class)], title);
                    }
                });
            });
            page.element("tbody", &[], |page| {
                for row in rows {
                    page.element("tr", &[], |page| {
                        columns.iter().for_each(|it| it.write(page, row))
                    });
                }
            });
            if total > shown {
                let rest = Count(total.0.saturating_sub(shown.0));
                page.element("tfoot", &[], |page| {
                    page.element("tr", &[], |page| {
                        let text = format_args!("{rest} more not listed here.");
                        page.leaf("td", &[("colspan", &columns.len())], text);
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

//! The compliance report of pg_fieldcrypt as one page of HTML that needs nothing beside it: no script,
//! no font, no picture from elsewhere.
//!
//! What comes in is the document of `fieldcrypt.compliance_report()`, as text. What goes out is ASCII,
//! whatever was in it. Names in it are chosen by strangers: they reach the page through
//! [`html::Html`] only, which escapes.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod chart;
mod document;
mod html;
mod page;
mod record;
mod sections;
mod show;
mod summary;

use std::fmt;

use record::Report;

/// The page of a report.
pub fn page(report: &str) -> Result<String, Problem> {
    Ok(document::document(&parse(report)?))
}

fn parse(text: &str) -> Result<Report, Problem> {
    let report: Report = serde_json::from_str(text).map_err(|error| Problem(error.to_string()))?;
    if report.format != record::FORMAT || report.version != record::VERSION {
        return Err(Problem("not a compliance report of this version".into()));
    }
    Ok(report)
}

/// Why a text is no report.
#[derive(Debug)]
pub struct Problem(String);

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the compliance report can't be read: {}", self.0)
    }
}

impl std::error::Error for Problem {}

//! The page as a whole: its head, what is to be seen at once, the sections, the mapping, the limits.

use crate::html::Html;
use crate::page::{self, Column, cell, words};
use crate::record::Report;
use crate::sections::{SECTIONS, Section};
use crate::show::{Day, Name, Or, Time};
use crate::summary::summary;

/// Nothing is fetched and nothing runs, whatever the page holds.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// Writes the page.
pub fn document(report: &Report) -> String {
    let title =
        format!("Compliance report: field encryption in {}", Name(&report.generated.database));
    Html::document(
        &title,
        &[
            &[("charset", &"utf-8")],
            &[("http-equiv", &"Content-Security-Policy"), ("content", &POLICY)],
            &[("name", &"viewport"), ("content", &"width=device-width, initial-scale=1")],
            &[("name", &"referrer"), ("content", &"no-referrer")],
        ],
        include_str!("style.css"),
        |page| {
            header(page, report);
            page.element("main", &[], |page| {
                summary(page, report);
                contents(page);
                for (index, section) in SECTIONS.iter().enumerate() {
                    written(page, report, index + 1, section);
                }
                requirements(page, report, SECTIONS.len() + 1);
                limits(page, report, SECTIONS.len() + 2);
            });
            footer(page, report);
        },
    )
}

fn header(page: &mut Html, report: &Report) {
    let made = &report.generated;
    page.element("header", &[], |page| {
        page.leaf("p", &[("class", &"kind")], "Compliance report");
        page.element("h1", &[], |page| {
            page.text("Field encryption in database ");
            page.leaf("bdi", &[], Name(&made.database));
        });
        page::facts(
            page,
            &[
                (
                    "Period (UTC)",
                    &format_args!("{} to {}", Time(&report.period.from), Time(&report.period.to)),
                ),
                (
                    "Scope",
                    &match &report.scope.tenant {
                        Some(tenant) => format!("tenant {}", Name(tenant)),
                        None => "all tenants of the database".into(),
                    },
                ),
                ("Made at (UTC)", &Time(&made.at)),
                ("By", &Name(&crate::sections::who(&made.by, &made.role))),
                ("pg_fieldcrypt", &Or(&made.extension_version)),
                (
                    "PostgreSQL",
                    &format_args!(
                        "{}{}",
                        Or(&made.server_version),
                        if made.is_standby { ", a standby" } else { "" }
                    ),
                ),
                ("Cluster", &Or(&made.system_identifier)),
            ],
        );
    });
}

fn contents(page: &mut Html) {
    page.element("nav", &[("aria-label", &"Contents")], |page| {
        page.element("ol", &[], |page| {
            let last = [
                ("requirements", "Requirements and figures"),
                ("limits", "What this report does not show"),
            ];
            for (link, title) in
                SECTIONS.iter().map(|section| (section.figure, section.title)).chain(last)
            {
                page.element("li", &[], |page| {
                    page.leaf("a", &[("href", &format_args!("#{link}"))], title)
                });
            }
        });
    });
}

fn written(page: &mut Html, report: &Report, number: usize, section: &Section) {
    section_of(page, section.figure, number, section.title, |page| {
        let supports = (section.supports)(report);
        if !supports.is_empty() {
            page.element("p", &[("class", &"supports")], |page| {
                page.text("Supports ");
                for (index, requirement) in supports.iter().enumerate() {
                    if index > 0 {
                        page.text(" ");
                    }
                    page.leaf("span", &[("class", &"tag")], cited(requirement));
                }
            });
        }
        (section.write)(page, report);
    });
}

fn section_of(
    page: &mut Html,
    id: &'static str,
    number: usize,
    title: &str,
    content: impl FnOnce(&mut Html),
) {
    page.element(
        "section",
        &[("id", &id), ("aria-labelledby", &format_args!("{id}-heading"))],
        |page| {
            page.element("h2", &[("id", &format_args!("{id}-heading"))], |page| {
                page.leaf("span", &[("class", &"number")], format_args!("{number} "));
                page.text(title);
            });
            content(page);
        },
    );
}

/// A requirement with the sign that lawyers write.
fn cited(requirement: &str) -> String {
    match requirement.strip_prefix("HIPAA ") {
        Some(section) => format!("HIPAA \u{A7}{section}"),
        None => requirement.to_string(),
    }
}

fn requirements(page: &mut Html, report: &Report, number: usize) {
    section_of(page, "requirements", number, "Requirements and figures", |page| {
        page::paragraph(
            page,
            "Which figures can support which requirement. None of them shows alone that a requirement is met.",
        );
        page::all(
            page,
            "Requirements",
            &report.requirements,
            &[
                Column::Time("Requirement", |row| {
                    cell(cited(&format!("{} {}", row.standard, row.section)))
                }),
                Column::Text("About", |row| cell(&row.title)),
                Column::Text("Supported by section", |row| cell(words(&supporting(&row.figures)))),
                Column::Text("How", |row| cell(&row.note)),
            ],
        );
    });
}

fn supporting(figures: &[String]) -> Vec<String> {
    let numbered = SECTIONS.iter().zip(1..);
    let supporting = numbered.filter(|(section, _)| figures.iter().any(|it| it == section.figure));
    supporting.map(|(section, number)| format!("{number} {}", section.title)).collect()
}

fn limits(page: &mut Html, report: &Report, number: usize) {
    section_of(page, "limits", number, "What this report does not show", |page| {
        page.element("ul", &[("class", &"limits")], |page| {
            for limit in &report.limits {
                page.leaf("li", &[], limit);
            }
        });
    });
}

fn footer(page: &mut Html, report: &Report) {
    page.element("footer", &[], |page| {
        page::paragraph(page, format_args!(
            "pg_fieldcrypt {}, report of {} UTC, {} to {}. Lists show {} rows at most; the figures beside them count all. The same as data: SELECT fieldcrypt.compliance_report(). Times are UTC.",
            Or(&report.generated.extension_version), Time(&report.generated.at), Day(&report.period.from), Day(&report.period.to), report.rows_listed_at_most,
        ));
    });
}

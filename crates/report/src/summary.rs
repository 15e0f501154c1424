//! What somebody asks first: a tile for each question, and beside those that are not well why, and what to do.

use crate::html::Html;
use crate::page::tone;
use crate::record::{Count, Report};
use crate::sections::ran;
use crate::show::{Name, Of, Percent, Sentence};

/// Reasons of one tile that are told here; its section has all.
const MOST_REASONS: usize = 3;

/// A figure, what it is of, and the section that it comes from.
struct Tile {
    name: &'static str,
    class: &'static str,
    value: String,
    detail: String,
    section: &'static str,
    reasons: Vec<Reason>,
}

/// Why a tile is not well, and what to do.
struct Reason {
    why: String,
    to_do: String,
}

impl Reason {
    fn new(why: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self { why: why.into(), to_do: to_do.into() }
    }
}

/// Writes them.
pub fn summary(page: &mut Html, report: &Report) {
    let tiles = [
        verified(report),
        health(report),
        active_keys(report),
        past_policy(report),
        withdrawn_keys(report),
        coverage(report),
        rotations(report),
        failed_decrypts(report),
    ];
    page.element("section", &[("class", &"summary"), ("aria-label", &"Summary")], |page| {
        for tile in &tiles {
            let class = format!("tile {}", tile.class);
            let link = format!("#{}", tile.section);
            page.element("a", &[("class", &class), ("href", &link)], |page| {
                page.leaf("span", &[("class", &"tile-name")], tile.name);
                page.leaf("span", &[("class", &"tile-value")], &tile.value);
                page.leaf("span", &[("class", &"tile-detail")], &tile.detail);
            });
        }
    });
    if tiles.iter().any(|tile| !tile.reasons.is_empty()) {
        reasons(page, &tiles);
    }
    page.leaf("p", &[("class", &"lead")], "This report collects what the database records about the encryption of its fields. It is material for an assessment, and gives no verdict itself: each section names the requirements that its figures can support, and the last one says what they do not show.");
}

fn reasons(page: &mut Html, tiles: &[Tile]) {
    page.element(
        "section",
        &[("class", &"reasons"), ("aria-label", &"Why, and what to do")],
        |page| {
            page.leaf("p", &[("class", &"reasons-title")], "Why, and what to do");
            page.element("dl", &[], |page| {
                for tile in tiles.iter().filter(|tile| !tile.reasons.is_empty()) {
                    page.element(
                        "div",
                        &[("class", &format_args!("reason {}", tile.class))],
                        |page| {
                            page.leaf("dt", &[], tile.name);
                            for reason in tile.reasons.iter().take(MOST_REASONS) {
                                page.element("dd", &[], |page| {
                                    page.leaf("bdi", &[], &reason.why);
                                    if !reason.to_do.is_empty() {
                                        page.text(" ");
                                        page.leaf("span", &[("class", &"to-do")], &reason.to_do);
                                    }
                                });
                            }
                            let more = tile.reasons.len().saturating_sub(MOST_REASONS);
                            if more > 0 {
                                page.element("dd", &[], |page| {
                                    let link = format!("#{}", tile.section);
                                    page.leaf(
                                        "a",
                                        &[("href", &link)],
                                        format_args!("and {more} more"),
                                    );
                                });
                            }
                        },
                    );
                }
            });
        },
    );
}

fn verified(report: &Report) -> Tile {
    let section = &report.verification;
    let status = section.status.as_deref().unwrap_or("not known");
    let found = section.findings.total;
    let summary = section.summary.as_deref().unwrap_or("no reason is known");
    let reasons = match status {
        _ if tone(status) != "noted" && tone(status) != "alarming" => Vec::new(),
        "not run" => vec![Reason::new(
            "The log was not verified for this report.",
            "Make it with verify => true.",
        )],
        "failed" => vec![Reason::new(
            format!("The verification ended with an error: {}.", Sentence(summary)),
            "SELECT * FROM fieldcrypt.verify_audit_log() shows it alone.",
        )],
        _ => section
            .findings
            .rows
            .iter()
            .filter(|row| row.status != "ok")
            .map(|row| {
                let place = match (&row.log_id, row.leaf) {
                    (Some(id), _) => format!(", row {id}"),
                    (None, Some(leaf)) => format!(", leaf {leaf}"),
                    (None, None) => String::new(),
                };
                let detail =
                    row.detail.as_ref().map_or(String::new(), |it| format!(": {}", Sentence(it)));
                Reason::new(
                    format!("{} ({}{place}){detail}.", row.finding, row.status),
                    "docs/audit.md says what this finding can mean, and what to do.",
                )
            })
            .collect(),
    };
    Tile {
        name: "Audit log, verified",
        class: tone(status),
        value: status.into(),
        detail: match found.0 {
            _ if !ran(&section.status) => "no result".into(),
            0 => "no findings".into(),
            _ => Of(found, "finding", "findings").to_string(),
        },
        section: "verification",
        reasons,
    }
}

fn health(report: &Report) -> Tile {
    let section = &report.health;
    let status = section.status.as_deref().unwrap_or("not known");
    let mut reasons: Vec<Reason> = section
        .checks
        .iter()
        .filter(|check| check.status != "ok")
        .map(|check| match &check.detail {
            Some(detail) => Reason::new(
                format!("{} ({}): {detail}.", check.check, check.status),
                check.hint.as_deref().unwrap_or_default(),
            ),
            // What a check says may name other tenants.
            None => Reason::new(
                format!("{} ({}).", check.check, check.status),
                "A report about all tenants says why.",
            ),
        })
        .collect();
    if let Some(problem) = &section.problem {
        reasons.push(Reason::new(
            format!("The checks did not run: {}.", Sentence(problem)),
            "SELECT * FROM fieldcrypt.health() shows it alone.",
        ));
    }
    Tile {
        name: "Health checks",
        class: tone(status),
        value: status.into(),
        detail: if ran(&section.status) {
            format!("{}, {} critical", Of(section.warning, "warning", "warnings"), section.critical)
        } else {
            "no result".into()
        },
        section: "health",
        reasons,
    }
}

fn active_keys(report: &Report) -> Tile {
    let totals = &report.keys.totals;
    Tile {
        name: "Active keys",
        class: "",
        value: totals.active.to_string(),
        detail: format!("of {}", Of(totals.tenants, "tenant", "tenants")),
        section: "keys",
        reasons: Vec::new(),
    }
}

fn past_policy(report: &Report) -> Tile {
    let overdue = report.keys.totals.overdue;
    let oldest = report.keys.tenants.rows.iter().find(|row| row.is_overdue).map(|row| {
        let age = row
            .age_days
            .map_or(String::new(), |days| format!(", which is {} old", Of(days, "day", "days")));
        format!(" The oldest is that of tenant {}{age}.", Name(&row.tenant))
    });
    Tile {
        name: "Keys past their policy",
        class: if overdue.0 > 0 { "noted" } else { "fine" },
        value: overdue.to_string(),
        detail: format!("policy: {}", report.keys.default_policy),
        section: "keys",
        reasons: if overdue.0 > 0 {
            let why = format!(
                "{} older than the rotation policy allows.{}",
                Of(overdue, "key is", "keys are"),
                oldest.unwrap_or_default()
            );
            let to_do = "CALL fieldcrypt.rotate_keys() rotates what is due; fieldcrypt.schedule_rotation() has it done every night.";
            vec![Reason::new(why, to_do)]
        } else {
            Vec::new()
        },
    }
}

fn withdrawn_keys(report: &Report) -> Tile {
    let totals = &report.keys.totals;
    let mut reasons = Vec::new();
    if totals.compromised.0 > 0 {
        reasons.push(Reason::new(
            format!(
                "{} marked as compromised: others may know what encrypts their values.",
                Of(totals.compromised, "key is", "keys are")
            ),
            "CALL fieldcrypt.reencrypt() moves their values first; then CALL fieldcrypt.destroy_key(key_id).",
        ));
    }
    if totals.suspended.0 > 0 {
        reasons.push(Reason::new(
            format!(
                "{} suspended: nothing is encrypted or decrypted with it.",
                Of(totals.suspended, "key is", "keys are")
            ),
            "SELECT fieldcrypt.resume_key(key_id, reason), or mark_compromised.",
        ));
    }
    Tile {
        name: "Compromised or suspended",
        class: if totals.compromised.0 > 0 {
            "alarming"
        } else if totals.suspended.0 > 0 {
            "noted"
        } else {
            "fine"
        },
        value: [totals.compromised, totals.suspended].iter().sum::<Count>().to_string(),
        detail: format!("{} compromised, {} suspended", totals.compromised, totals.suspended),
        section: "keys",
        reasons,
    }
}

fn coverage(report: &Report) -> Tile {
    let totals = &report.reencryption.totals;
    let (value, detail) = match totals.active {
        Some(active) => {
            let others = [
                totals.deactivated,
                totals.suspended,
                totals.compromised,
                totals.destroyed,
                totals.unknown,
            ];
            let old: Count = others.iter().flatten().sum();
            let left_out = totals.columns_not_counted;
            (
                Percent(active, [old, active].iter().sum()).to_string(),
                format!(
                    "{} not on active keys ({}){}",
                    Of(old, "value", "values"),
                    if totals.is_exact { "counted" } else { "estimated" },
                    if left_out.0 > 0 {
                        format!("; {} not counted", Of(left_out, "column", "columns"))
                    } else {
                        String::new()
                    }
                ),
            )
        }
        None if totals.columns.0 == 0 => ("-".into(), "no encrypted columns".into()),
        None => ("?".into(), "not counted".into()),
    };
    Tile {
        name: "Values on active keys",
        class: "",
        value,
        detail,
        section: "reencryption",
        reasons: Vec::new(),
    }
}

fn rotations(report: &Report) -> Tile {
    let section = &report.rotation;
    let last = section.log.rows.iter().find(|row| row.outcome == "failed").map(|row| {
        let error = row.error.as_deref().unwrap_or("the error is not known");
        let code = row.error_code.as_deref().unwrap_or("no SQLSTATE");
        format!(" The last, of tenant {}: {} ({code}).", Name(&row.tenant), Sentence(error))
    });
    Tile {
        name: "Rotations",
        class: if section.failed.0 > 0 { "noted" } else { "" },
        value: section.rotated.to_string(),
        detail: format!("in the period; {} failed", section.failed),
        section: "rotation",
        reasons: if section.failed.0 > 0 {
            let why = format!(
                "{} failed in the period.{}",
                Of(section.failed, "rotation", "rotations"),
                last.unwrap_or_default()
            );
            vec![Reason::new(why, "Mend what the error says, and CALL fieldcrypt.rotate_keys().")]
        } else {
            Vec::new()
        },
    }
}

fn failed_decrypts(report: &Report) -> Tile {
    let section = &report.r#use;
    let codes: Vec<String> = section
        .by_code
        .rows
        .iter()
        .filter(|row| row.event == "decrypt_failed")
        .take(MOST_REASONS)
        .map(|row| {
            format!("{} ({})", row.error_code.as_deref().unwrap_or("no SQLSTATE"), row.times)
        })
        .collect();
    Tile {
        name: "Failed decrypts",
        class: if section.failed.0 > 0 { "noted" } else { "" },
        value: section.failed.to_string(),
        detail: format!("in the period; {}", Of(section.refused, "call refused", "calls refused")),
        section: "use",
        reasons: if section.failed.0 > 0 {
            let why = format!(
                "{} did not open{}{}.",
                Of(section.failed, "value", "values"),
                if codes.is_empty() { "" } else { ": " },
                codes.join(", ")
            );
            let to_do = "docs/errors.md says what each SQLSTATE means. KF002 is a value that was changed or opened with another context: CALL fieldcrypt.verify_values(table) finds those that are stored.";
            vec![Reason::new(why, to_do)]
        } else {
            Vec::new()
        },
    }
}

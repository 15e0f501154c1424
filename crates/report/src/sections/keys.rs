//! Sections about keys and what they encrypt.

use crate::chart::{Bar, Chart, Series};
use crate::html::Html;
use crate::page::Column::{Name, Number, Text, Time};
use crate::page::{
    Cell, Column, alarming, all, cell, facts, list, name, note, paragraph, sentence,
    sentence_or_dash, status,
};
use crate::record::{Count, Coverage, Key, Report};
use crate::sections::audit::{bars, events};
use crate::show::{self, Day, Of, Or, Percent};

pub fn cryptography(page: &mut Html, report: &Report) {
    let section = &report.cryptography;
    all(
        page,
        "Algorithms",
        &section.algorithms,
        &[
            Text("Use", |row| cell(&row.r#use)),
            Text("Algorithm", |row| cell(&row.algorithm)),
            Number("Key bits", |row| cell(Or(&row.key_bits))),
            Text("Standard", |row| cell(&row.standard)),
        ],
    );
    all(
        page,
        "Keys that are not destroyed, by algorithm",
        &report.keys.algorithms,
        &[Text("Algorithm", |row| cell(&row.algorithm)), Number("Keys", |row| cell(row.keys))],
    );
    note(page, "The extension is not a certified cryptographic module.");
}

pub fn inventory(page: &mut Html, report: &Report) {
    let section = &report.keys;
    let totals = &section.totals;
    facts(
        page,
        &[
            (
                "Keys",
                &format_args!(
                    "{}, of which {} for the audit log and {} for loose values",
                    totals.keys, totals.audit_keys, totals.loose_keys
                ),
            ),
            ("Tenants", &totals.tenants),
            ("Made in the period", &totals.created_in_period),
            (
                "Policy of rotation",
                &format_args!(
                    "{} ({} of their own)",
                    section.default_policy,
                    Of(section.own_policies, "tenant has one", "tenants have one")
                ),
            ),
            ("Active keys past their policy", &totals.overdue),
            (
                "Tenants without an active key",
                &format_args!(
                    "{}, of which {} shredded",
                    totals.tenants_without_active_key, totals.tenants_shredded
                ),
            ),
        ],
    );
    Chart {
        id: "key-states",
        title: "Keys of fields by state",
        description: format!(
            "Of {}, {} are active, {} deactivated, {} suspended, {} compromised and {} destroyed.",
            Of(totals.field_keys, "key", "keys"),
            totals.active,
            totals.deactivated,
            totals.suspended,
            totals.compromised,
            totals.destroyed
        ),
        series: &STATES,
        bars: vec![Bar {
            label: "Keys".into(),
            parts: vec![
                totals.active,
                totals.deactivated,
                totals.suspended,
                totals.compromised,
                totals.destroyed,
            ],
            instead: None,
        }],
        empty: "There are no keys.",
    }
    .across(page, 72.0);
    note(
        page,
        "States are those of NIST SP 800-57: active keys encrypt and decrypt, deactivated ones decrypt only, suspended ones neither, compromised ones decrypt so that values can be moved away, destroyed ones are erased.",
    );

    let old: Count =
        section.ages.iter().filter(|age| age.from_days.0 >= 90).map(|age| &age.keys).sum();
    Chart {
        id: "key-ages",
        title: "Active keys by age in days",
        description: format!(
            "Ages of active encryption keys. {} older than 90 days; {} past the policy of rotation.",
            Of(old, "is", "are"), Of(totals.overdue, "is", "are")
        ),
        series: &[Series { class: "s-active", name: "within policy" }, Series { class: "s-bad", name: "past policy" }],
        bars: section
            .ages
            .iter()
            .map(|age| Bar {
                label: match age.to_days {
                    Some(to) => format!("{} to {to}", age.from_days),
                    None => format!("over {}", age.from_days),
                },
                parts: vec![Count(age.keys.0.saturating_sub(age.overdue.0)), age.overdue],
                instead: None,
            })
            .collect(),
        empty: "There are no active keys.",
    }
    .upright(page, 220.0);
    list(
        page,
        "Tenants, those with the oldest active keys first",
        &section.tenants,
        &[
            Name("Tenant", |row| name(&row.tenant)),
            Text("Active key", |row| cell(row.key_id.as_deref().unwrap_or("none"))),
            Number("Version", |row| cell(Or(&row.version))),
            Time("Since", |row| cell(Day(&row.active_since))),
            Number("Age, days", |row| {
                if row.is_overdue {
                    alarming(row.age_days.unwrap_or_default())
                } else {
                    cell(Or(&row.age_days))
                }
            }),
            Text("Rotates every", |row| cell(Or(&row.rotate_every))),
            Number("Versions", |row| cell(row.versions)),
            Number("Deact.", |row| cell(row.deactivated)),
            Number("Susp.", |row| cell(row.suspended)),
            Number("Compr.", |row| alarming(row.compromised)),
            Number("Destr.", |row| cell(row.destroyed)),
        ],
    );
    list(page, "Keys that are suspended or compromised", &section.attention, &KEY_COLUMNS);
}

const STATES: [Series; 5] = [
    Series { class: "s-active", name: "active" },
    Series { class: "s-old", name: "deactivated" },
    Series { class: "s-held", name: "suspended" },
    Series { class: "s-bad", name: "compromised" },
    Series { class: "s-gone", name: "destroyed" },
];

const KEY_COLUMNS: [Column<Key>; 8] = [
    Name("Tenant", |row| name(&row.tenant)),
    Text("Key", |row| cell(&row.key_id)),
    Number("Version", |row| cell(row.version)),
    Text("State", |row| cell(&row.state)),
    Time("Made", |row| cell(Day(&row.created_at))),
    Time("Deactivated", |row| cell(Day(&row.deactivated_at))),
    Time("Destroyed", |row| cell(show::Time(&row.destroyed_at))),
    Time("To be destroyed", |row| cell(Day(&row.destroy_after))),
];

pub fn master_keys(page: &mut Html, report: &Report) {
    let section = &report.master_keys;
    facts(page, &[("Source of the master key", &Or(&section.source))]);
    list(
        page,
        "Master keys by fingerprint",
        &section.keys,
        &[
            Text("Fingerprint", |row| cell(&row.fingerprint)),
            Text("Now", |row| {
                cell(if row.is_current {
                    "current"
                } else if row.retired_at.is_some() {
                    "retired"
                } else {
                    "still needed"
                })
            }),
            Time("First used", |row| cell(show::Time(&row.first_used_at))),
            Number("Age, days", |row| cell(Or(&row.age_days))),
            Time("Retired", |row| cell(show::Time(&row.retired_at))),
            Number("Keys it wraps", |row| cell(row.wrapped_keys)),
        ],
    );
    events(page, "Rotations of the master key, and failures to load it", &section.events);
    note(
        page,
        "A master key is never in the database. Its fingerprint is derived from it and says nothing about it.",
    );
}

pub fn rotation(page: &mut Html, report: &Report) {
    let section = &report.rotation;
    facts(
        page,
        &[
            ("Rotations in the period", &section.rotated),
            ("Tenants rotated", &section.tenants),
            ("Failed attempts", &section.failed),
            ("Last rotation (UTC)", &show::Time(&section.last_at)),
        ],
    );
    let bucket = section.bucket.as_deref().unwrap_or("day");
    Chart {
        id: "rotations",
        title: &format!("Rotations of encryption keys a {bucket}"),
        description: format!(
            "{} and {} from {} to {}, a bar for each {bucket}.",
            Of(section.rotated, "rotation", "rotations"),
            Of(section.failed, "failed attempt", "failed attempts"),
            Day(&report.period.from),
            Day(&report.period.to)
        ),
        series: &[
            Series { class: "s-active", name: "rotated" },
            Series { class: "s-bad", name: "failed" },
        ],
        bars: bars(&section.over_time, |row| (&row.from, vec![row.rotated, row.failed])),
        empty: "No rotation in this period.",
    }
    .upright(page, 200.0);
    list(
        page,
        "What rotate_keys did, the latest first",
        &section.log,
        &[
            Time("At (UTC)", |row| cell(show::Time(&row.at))),
            Name("Tenant", |row| name(&row.tenant)),
            Text("Outcome", |row| status(&row.outcome)),
            Text("Key", |row| cell(Or(&row.new_key_id))),
            Name("By", |row| name(&who(&row.actor, &row.role))),
            Name("Reason or error", |row| match (&row.error_code, &row.error) {
                (Some(code), Some(error)) => sentence(&format!("{code}: {error}")),
                _ => sentence_or_dash(&row.reason),
            }),
        ],
    );
    note(
        page,
        "The chart counts new versions of keys, also those that mark_compromised makes; the table has the runs of rotate_keys. The first and the last bar may be parts of a week or month.",
    );
}

/// Who did something, and as which role if that was another.
pub fn who(actor: &str, role: &str) -> String {
    if actor == role { actor.to_string() } else { format!("{actor} as {role}") }
}

pub fn reencryption(page: &mut Html, report: &Report) {
    let section = &report.reencryption;
    let totals = &section.totals;
    let counted = [
        totals.active,
        totals.deactivated,
        totals.suspended,
        totals.compromised,
        totals.destroyed,
        totals.unknown,
    ];
    let sum: Count = counted.iter().flatten().sum();
    match totals.active {
        Some(active) => facts(
            page,
            &[
                (
                    "Values counted",
                    &format_args!(
                        "{} {}",
                        sum,
                        if totals.is_exact { "(exact)" } else { "(partly estimated)" }
                    ),
                ),
                ("On active keys", &Percent(active, sum)),
                ("On compromised keys", &Or(&totals.compromised)),
                ("Columns not counted", &totals.columns_not_counted),
                ("Values that could not be re-encrypted", &section.failures),
            ],
        ),
        None => facts(
            page,
            &[
                ("Values counted", &"not counted"),
                ("Columns not counted", &totals.columns_not_counted),
                ("Values that could not be re-encrypted", &section.failures),
            ],
        ),
    }
    if let Some(problem) = &section.problem {
        note(page, format_args!("Values on old keys were {problem}."));
    }
    let shown = section.columns.rows.len().min(20);
    Chart {
        id: "coverage",
        title: "Values by the state of their key, column by column",
        description: match totals.active {
            Some(active) => format!(
                "{} of {} are on active keys, in {}.",
                active,
                Of(sum, "value", "values"),
                Of(totals.columns, "column", "columns")
            ),
            None => "The values were not counted.".into(),
        },
        series: &COVERAGE,
        bars: section
            .columns
            .rows
            .iter()
            .take(shown)
            .map(|row| Bar {
                label: clipped(&format!("{}.{}", row.table, row.column)),
                parts: parts(row),
                instead: row.not_counted.as_ref().map(|_| "not counted".into()),
            })
            .collect(),
        empty: "No column of type fieldcrypt.encrypted.",
    }
    .across(page, 268.0);
    list(
        page,
        "Columns that can hold encrypted values",
        &section.columns,
        &[
            Name("Table", |row| name(&row.table)),
            Name("Column", |row| name(&row.column)),
            Number("On active", |row| if_counted(row, cell(row.active))),
            Number("On old", |row| if_counted(row, cell(row.deactivated))),
            Number("Compromised", |row| if_counted(row, alarming(row.compromised))),
            Number("Suspended", |row| if_counted(row, cell(row.suspended))),
            Number("Unreadable", |row| {
                if_counted(row, alarming([row.destroyed, row.unknown].iter().sum()))
            }),
            Text("How it was counted", |row| match (&row.not_counted, &row.note, row.is_exact) {
                (Some(problem), ..) => sentence(problem),
                (None, None, true) => cell("all rows"),
                (None, None, false) => cell("estimated from a sample"),
                (None, Some(note), true) => cell(format_args!("all rows; {note}")),
                (None, Some(note), false) => cell(format_args!("estimated from a sample; {note}")),
            }),
        ],
    );
    list(
        page,
        "Runs of re-encryption",
        &section.runs,
        &[
            Name("Table", |row| name(&row.table)),
            Text("State", |row| status(&row.state)),
            Number("Rows", |row| match row.rows_total_is_exact {
                true => cell(row.rows_total),
                false => cell(format_args!("about {}", row.rows_total)),
            }),
            Number("Seen", |row| cell(row.rows_done)),
            Number("Moved", |row| cell(row.rows_moved)),
            Number("Failed", |row| alarming(row.rows_failed)),
            Time("Began (UTC)", |row| cell(show::Time(&row.started_at))),
            Time("Ended (UTC)", |row| cell(show::Time(&row.finished_at))),
            Name("Error", |row| match (&row.error_code, &row.error) {
                (Some(code), Some(error)) => sentence(&format!("{code}: {error}")),
                (Some(code), None) => cell(code),
                _ => cell("-"),
            }),
        ],
    );
    note(
        page,
        "\"Unreadable\" are values of destroyed keys and of keys that this database does not have.",
    );
}

const COVERAGE: [Series; 6] = [
    Series { class: "s-active", name: "on active keys" },
    Series { class: "s-old", name: "deactivated" },
    Series { class: "s-held", name: "suspended" },
    Series { class: "s-bad", name: "compromised" },
    Series { class: "s-gone", name: "destroyed" },
    Series { class: "s-odd", name: "unknown" },
];

/// What was counted in a column, if it was.
fn if_counted(row: &Coverage, cell: Cell) -> Cell {
    if row.not_counted.is_some() { crate::page::cell("?") } else { cell }
}

fn parts(row: &Coverage) -> Vec<Count> {
    vec![row.active, row.deactivated, row.suspended, row.compromised, row.destroyed, row.unknown]
}

/// What fits beside a bar.
fn clipped(text: &str) -> String {
    if text.chars().count() <= 38 {
        text.to_string()
    } else {
        text.chars().take(35).chain("...".chars()).collect()
    }
}

pub fn destruction(page: &mut Html, report: &Report) {
    let section = &report.destruction;
    facts(
        page,
        &[
            ("Keys destroyed, ever", &section.destroyed.total),
            ("Destroyed in the period", &report.keys.totals.destroyed_in_period),
            ("Destruction scheduled", &section.scheduled.total),
        ],
    );
    list(page, "Destroyed keys, the latest first", &section.destroyed, &KEY_COLUMNS);
    list(page, "Keys to be destroyed", &section.scheduled, &KEY_COLUMNS);
    events(page, "Events of destruction in the period", &section.events);
    if section.destroyed.total.0 > 0 {
        paragraph(
            page,
            "A destroyed key is erased here. It lives on in older backups, exports and standbys until those are gone.",
        );
    }
}

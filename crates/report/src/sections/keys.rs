//! Sections about keys and what they encrypt.

use crate::chart::{Bar, Chart, Series};
use crate::html::Html;
use crate::page::Column::{Name, Number, Text, Time};
use crate::page::{
    alarming, all, cell, facts, list, name, note, of, paragraph, sentence, sentence_or_dash, status,
};
use crate::record::{Count, Coverage, Key, Report, Tenant};
use crate::sections::audit::events;
use crate::show::{self, Day, Or, Percent};

pub fn cryptography(page: &mut Html, report: &Report) {
    let section = &report.cryptography;
    all(
        page,
        "Algorithms",
        &[Text("Use"), Text("Algorithm"), Number("Key bits"), Text("Standard")],
        &section.algorithms,
        |row| {
            vec![
                cell(&row.r#use),
                cell(&row.algorithm),
                cell(Or(&row.key_bits)),
                cell(&row.standard),
            ]
        },
    );
    all(
        page,
        "Keys that are not destroyed, by algorithm",
        &[Text("Algorithm"), Number("Keys")],
        &report.keys.algorithms,
        |row| vec![cell(&row.algorithm), cell(row.keys)],
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
                &format_args!("{}, of which {} for the audit log", totals.keys, totals.audit_keys),
            ),
            ("Tenants", &totals.tenants),
            ("Made in the period", &totals.created_in_period),
            (
                "Policy of rotation",
                &format_args!(
                    "{} ({} of their own)",
                    section.default_policy,
                    of(section.own_policies, "tenant has one", "tenants have one")
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
        title: "Keys by state",
        description: format!(
            "Of {}, {} are active, {} deactivated, {} suspended, {} compromised and {} destroyed.",
            of(totals.keys, "key", "keys"),
            totals.active,
            totals.deactivated,
            totals.suspended,
            totals.compromised,
            totals.destroyed
        ),
        series: &STATES,
        bars: vec![Bar {
            label: "All keys".into(),
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
            of(old, "is", "are"), of(totals.overdue, "is", "are")
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
        &[
            Name("Tenant"),
            Text("Active key"),
            Number("Version"),
            Time("Since"),
            Number("Age, days"),
            Text("Rotates every"),
            Number("Versions"),
            Number("Deact."),
            Number("Susp."),
            Number("Compr."),
            Number("Destr."),
        ],
        &section.tenants,
        |row: &Tenant| {
            vec![
                name(&row.tenant),
                cell(row.key_id.as_deref().unwrap_or("none")),
                cell(Or(&row.version)),
                cell(Day(&row.active_since)),
                if row.is_overdue {
                    alarming(row.age_days.unwrap_or_default())
                } else {
                    cell(Or(&row.age_days))
                },
                cell(Or(&row.rotate_every)),
                cell(row.versions),
                cell(row.deactivated),
                cell(row.suspended),
                alarming(row.compromised),
                cell(row.destroyed),
            ]
        },
    );
    list(page, "Keys that are suspended or compromised", &KEY_COLUMNS, &section.attention, key);
}

const STATES: [Series; 5] = [
    Series { class: "s-active", name: "active" },
    Series { class: "s-old", name: "deactivated" },
    Series { class: "s-held", name: "suspended" },
    Series { class: "s-bad", name: "compromised" },
    Series { class: "s-gone", name: "destroyed" },
];

const KEY_COLUMNS: [crate::page::Column; 8] = [
    Name("Tenant"),
    Text("Key"),
    Number("Version"),
    Text("State"),
    Time("Made"),
    Time("Deactivated"),
    Time("Destroyed"),
    Time("To be destroyed"),
];

fn key(row: &Key) -> Vec<crate::page::Cell> {
    vec![
        name(&row.tenant),
        cell(&row.key_id),
        cell(row.version),
        cell(&row.state),
        cell(Day(&row.created_at)),
        cell(Day(&row.deactivated_at)),
        cell(show::Time(&row.destroyed_at)),
        cell(Day(&row.destroy_after)),
    ]
}

pub fn master_keys(page: &mut Html, report: &Report) {
    let section = &report.master_keys;
    facts(page, &[("Source of the master key", &Or(&section.source))]);
    list(
        page,
        "Master keys by fingerprint",
        &[
            Text("Fingerprint"),
            Text("Now"),
            Time("First used"),
            Number("Age, days"),
            Time("Retired"),
            Number("Keys it wraps"),
        ],
        &section.keys,
        |row| {
            vec![
                cell(&row.fingerprint),
                cell(if row.is_current {
                    "current"
                } else if row.retired_at.is_some() {
                    "retired"
                } else {
                    "still needed"
                }),
                cell(show::Time(&row.first_used_at)),
                cell(Or(&row.age_days)),
                cell(show::Time(&row.retired_at)),
                cell(row.wrapped_keys),
            ]
        },
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
            of(section.rotated, "rotation", "rotations"),
            of(section.failed, "failed attempt", "failed attempts"),
            Day(&report.period.from),
            Day(&report.period.to)
        ),
        series: &[
            Series { class: "s-active", name: "rotated" },
            Series { class: "s-bad", name: "failed" },
        ],
        bars: section
            .over_time
            .iter()
            .map(|row| Bar {
                label: row.from.clone(),
                parts: vec![row.rotated, row.failed],
                instead: None,
            })
            .collect(),
        empty: "No rotation in this period.",
    }
    .upright(page, 200.0);
    list(
        page,
        "What rotate_keys did, the latest first",
        &[
            Time("At (UTC)"),
            Name("Tenant"),
            Text("Outcome"),
            Text("Key"),
            Name("By"),
            Name("Reason or error"),
        ],
        &section.log,
        |row| {
            vec![
                cell(show::Time(&row.at)),
                name(&row.tenant),
                status(&row.outcome),
                cell(Or(&row.new_key_id)),
                name(&who(&row.actor, &row.role)),
                match (&row.error_code, &row.error) {
                    (Some(code), Some(error)) => sentence(&format!("{code}: {error}")),
                    _ => sentence_or_dash(&row.reason),
                },
            ]
        },
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
                of(sum, "value", "values"),
                of(totals.columns, "column", "columns")
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
        &[
            Name("Table"),
            Name("Column"),
            Number("On active"),
            Number("On old"),
            Number("Compromised"),
            Number("Suspended"),
            Number("Unreadable"),
            Text("How it was counted"),
        ],
        &section.columns,
        |row| {
            let mut cells = vec![name(&row.table), name(&row.column)];
            match &row.not_counted {
                Some(problem) => {
                    cells.extend((0..5).map(|_| cell("?")));
                    cells.push(sentence(problem));
                }
                None => {
                    cells.extend([
                        cell(row.active),
                        cell(row.deactivated),
                        alarming(row.compromised),
                        cell(row.suspended),
                        alarming([row.destroyed, row.unknown].iter().sum()),
                    ]);
                    cells.push(match (&row.note, row.is_exact) {
                        (None, true) => cell("all rows"),
                        (None, false) => cell("estimated from a sample"),
                        (Some(note), true) => cell(format_args!("all rows; {note}")),
                        (Some(note), false) => {
                            cell(format_args!("estimated from a sample; {note}"))
                        }
                    });
                }
            }
            cells
        },
    );
    list(
        page,
        "Runs of re-encryption",
        &[
            Name("Table"),
            Text("State"),
            Number("Rows"),
            Number("Seen"),
            Number("Moved"),
            Number("Failed"),
            Time("Began (UTC)"),
            Time("Ended (UTC)"),
            Name("Error"),
        ],
        &section.runs,
        |row| {
            vec![
                name(&row.table),
                status(&row.state),
                cell(row.rows_total),
                cell(row.rows_done),
                cell(row.rows_moved),
                alarming(row.rows_failed),
                cell(show::Time(&row.started_at)),
                cell(show::Time(&row.finished_at)),
                match (&row.error_code, &row.error) {
                    (Some(code), Some(error)) => sentence(&format!("{code}: {error}")),
                    (Some(code), None) => cell(code),
                    _ => cell("-"),
                },
            ]
        },
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
    list(page, "Destroyed keys, the latest first", &KEY_COLUMNS, &section.destroyed, key);
    list(page, "Keys to be destroyed", &KEY_COLUMNS, &section.scheduled, key);
    events(page, "Events of destruction in the period", &section.events);
    if section.destroyed.total.0 > 0 {
        paragraph(
            page,
            "A destroyed key is erased here. It lives on in older backups, exports and standbys until those are gone.",
        );
    }
}

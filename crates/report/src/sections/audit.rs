//! Sections about people, and about the record of what they did.

use std::fmt::Display;

use crate::chart::{Bar, Chart, Series};
use crate::html::Html;
use crate::page::Column::{Name, Number, Text, Time};
use crate::page::{
    alarming, all, cell, facts, list, name, name_or_dash, note, sentence, sentence_or_dash, status,
    tone, words,
};
use crate::record::{Count, Event, List, Report};
use crate::sections::keys::who;
use crate::show::{self, Day, Of, Or};

/// Events of the audit log.
pub fn events(page: &mut Html, caption: &str, events: &List<Event>) {
    list(
        page,
        caption,
        events,
        &[
            Time("At (UTC)", |row| cell(show::Time(&row.at))),
            Text("Event", |row| cell(&row.event)),
            Name("By", |row| {
                name(&match &row.client_address {
                    Some(address) => format!("{} from {address}", who(&row.actor, &row.role)),
                    None => who(&row.actor, &row.role),
                })
            }),
            Name("Tenant", |row| name_or_dash(&row.tenant)),
            Text("Code", |row| cell(Or(&row.error_code))),
            Name("What, in the words of the record", |row| {
                sentence_or_dash(&match (row.value_count, &row.reason) {
                    (Some(count), Some(reason)) if count.0 > 1 => {
                        Some(format!("{count} times: {reason}"))
                    }
                    (Some(count), None) if count.0 > 1 => Some(format!("{count} times")),
                    (_, reason) => reason.clone(),
                })
            }),
        ],
    );
}

pub fn access(page: &mut Html, report: &Report) {
    let section = &report.access;
    let holders = &section.counts;
    facts(
        page,
        &[
            ("Roles that can decrypt", &holders.decrypt),
            ("Roles that can encrypt", &holders.encrypt),
            ("Roles that manage keys", &holders.manage),
            ("Roles that read the audit log", &holders.audit),
            ("Roles that read wrapped keys", &holders.backup),
            ("Superusers, who can do everything", &section.superusers),
        ],
    );
    list(
        page,
        "Roles and their privileges now",
        &section.roles,
        &[
            Name("Role", |row| name(&row.role)),
            Text("Logs in", |row| cell(if row.can_login { "yes" } else { "no" })),
            Text("Privileges", |row| cell(words(&row.privileges))),
            Text("Granted to itself", |row| cell(words(&row.granted))),
            Name("Through", |row| {
                if row.through.is_empty() { cell("-") } else { cell(words(&row.through)) }
            }),
            Name("Other rights", |row| {
                let rights = row.other_rights.join("; ");
                match row.other_rights_total.0.saturating_sub(row.other_rights.len() as i64) {
                    _ if row.other_rights.is_empty() => cell("-"),
                    more if more > 0 => cell(format_args!("{rights}; and {}", Count(more))),
                    _ => cell(rights),
                }
            }),
        ],
    );
    list(
        page,
        "Roles that are above these rights, or near the master key",
        &section.powerful,
        &[
            Name("Role", |row| name(&row.role)),
            Text("Logs in", |row| cell(if row.can_login { "yes" } else { "no" })),
            Text("Because of", |row| cell(words(&row.why))),
        ],
    );
    note(
        page,
        "Members of pg_read_server_files can read the master key's file if the server can; pg_read_all_data reads wrapped keys and the audit log; REPLICATION copies the database; CREATEROLE can give itself roles (before PostgreSQL 16 nearly all). \"Other rights\" were given by GRANT on single objects, not by grant_access.",
    );
    events(page, "Changes of access in the period", &section.changes);
}

pub fn used(page: &mut Html, report: &Report) {
    let section = &report.r#use;
    facts(
        page,
        &[
            ("Values decrypted, as recorded", &section.decrypted),
            ("Failed decrypts", &section.failed),
            ("Calls refused", &section.refused),
            ("fieldcrypt.audit_decrypt, at the time of this report", &Or(&section.audit_decrypt)),
        ],
    );
    let bucket = section.bucket.as_deref().unwrap_or("day");
    let period = format!("from {} to {}", Day(&report.period.from), Day(&report.period.to));
    Chart {
        id: "decrypts",
        title: &format!("Values decrypted a {bucket}, as recorded"),
        description: format!(
            "{} {period}, a bar for each {bucket}.",
            Of(section.decrypted, "value decrypted", "values decrypted")
        ),
        series: &[Series { class: "s-active", name: "values decrypted" }],
        bars: bars(&section.over_time, |row| (&row.from, vec![row.decrypted])),
        empty: "No decryption was recorded in this period.",
    }
    .upright(page, 190.0);
    Chart {
        id: "failures",
        title: &format!("Failed decrypts and refused calls a {bucket}"),
        description: format!(
            "{} and {} {period}, a bar for each {bucket}.",
            Of(section.failed, "failed decrypt", "failed decrypts"),
            Of(section.refused, "refused call", "refused calls")
        ),
        series: &[
            Series { class: "s-bad", name: "failed decrypts" },
            Series { class: "s-old", name: "refused calls" },
        ],
        bars: bars(&section.over_time, |row| (&row.from, vec![row.failed, row.refused])),
        empty: "No failure was recorded in this period.",
    }
    .upright(page, 190.0);
    note(
        page,
        "Successful decryptions are recorded only while fieldcrypt.audit_decrypt is statements or all, failures unless it is off. Nothing recorded does not mean that nothing was decrypted.",
    );
    list(
        page,
        "Use by role",
        &section.by_role,
        &[
            Name("Role", |row| name(&row.role)),
            Name("Logged in as", |row| name(&row.actor)),
            Number("Tenants", |row| cell(row.tenants)),
            Number("Decrypted", |row| cell(row.decrypted)),
            Number("Failed", |row| alarming(row.failed)),
            Number("Refused", |row| alarming(row.refused)),
            Time("Last (UTC)", |row| cell(show::Time(&row.last_at))),
        ],
    );
    list(
        page,
        "Use by tenant",
        &section.by_tenant,
        &[
            Name("Tenant", |row| name_or_dash(&row.tenant)),
            Number("Roles", |row| cell(row.roles)),
            Number("Decrypted", |row| cell(row.decrypted)),
            Number("Failed", |row| alarming(row.failed)),
            Number("Refused", |row| alarming(row.refused)),
            Time("Last (UTC)", |row| cell(show::Time(&row.last_at))),
        ],
    );
    list(
        page,
        "Failures by code",
        &section.by_code,
        &[
            Text("Event", |row| cell(&row.event)),
            Text("Code", |row| cell(Or(&row.error_code))),
            Text("Meaning", |row| cell(meaning(row.error_code.as_deref()))),
            Number("Times", |row| cell(row.times)),
            Time("Last (UTC)", |row| cell(show::Time(&row.last_at))),
        ],
    );
    events(page, "Failures and refusals, the latest first", &section.refusals);
}

/// Bars along time, by the label and the parts of each.
pub fn bars<T>(rows: &[T], bar: fn(&T) -> (&String, Vec<Count>)) -> Vec<Bar> {
    let bars = rows.iter().map(bar);
    bars.map(|(label, parts)| Bar { label: label.clone(), parts, instead: None }).collect()
}

/// What the extension's error codes of failing decryption say.
fn meaning(code: Option<&str>) -> &'static str {
    match code {
        Some("KF001") => "not an encrypted value",
        Some("KF002") => "not authentic: tampered with, or another context",
        Some("KF003") => "the key does not exist in this database",
        Some("KF004") => "the key is suspended",
        Some("KF005") => "the key is destroyed",
        Some("KF006") => "another tenant's value",
        Some("KF007") => "the tenant has no active key",
        Some("KF008") => "no master key is configured",
        Some("KF009") => "the master key's source is not usable",
        Some("KF010") => "another master key is needed",
        Some("KF011") => "a wrapped key is not authentic",
        Some("KF014") => "decryption in ANALYZE, an index or a materialized view",
        Some("KF015") => "a table of the extension was written by hand",
        Some("KF016") => "a restore over existing keys or log",
        Some("KF017") => "the key is in use",
        Some("KF018") => "the key's state does not allow it",
        Some("KF019") => "no valid approval",
        Some("42501") => "missing right",
        _ => "-",
    }
}

pub fn approvals(page: &mut Html, report: &Report) {
    let section = &report.approvals;
    let counts = &section.counts;
    facts(
        page,
        &[
            ("Operations that need a second person", &words(&section.required_for)),
            ("Requested", &counts.requested),
            ("Approved", &counts.given),
            ("Used", &counts.used),
            ("Withdrawn", &counts.withdrawn),
            ("Refused", &counts.refused),
        ],
    );
    list(
        page,
        "Open requests",
        &section.open,
        &[
            Text("No.", |row| cell(&row.id)),
            Text("Operation", |row| cell(&row.operation)),
            Name("Subject", |row| name(&row.subject)),
            Name("Reason", |row| sentence(&row.reason)),
            Name("Requested by", |row| name(&row.requested_by)),
            Time("Expires (UTC)", |row| cell(show::Time(&row.expires_at))),
            Name("Approved by", |row| name_or_dash(&row.approved_by)),
        ],
    );
    events(page, "Requests, approvals and refusals in the period", &section.events);
}

pub fn exports(page: &mut Html, report: &Report) {
    let section = &report.exports;
    facts(
        page,
        &[
            ("Last export (UTC)", &show::Time(&section.last_export_at)),
            ("Exports in the period", &section.exports),
            ("Imports in the period", &section.imports),
            (
                "Key states confirmed since the last restore",
                &match section.states_confirmed {
                    Some(true) => "yes",
                    Some(false) => "no: see key_states_status()",
                    None => "not known",
                },
            ),
        ],
    );
    events(page, "Exports, imports and confirmations in the period", &section.events);
}

pub fn log(page: &mut Html, report: &Report) {
    let section = &report.audit_log;
    facts(
        page,
        &[
            ("Rows, in all", &section.rows),
            ("Rows in the period", &section.rows_in_period),
            ("From (UTC)", &show::Time(&section.first_at)),
            ("To (UTC)", &show::Time(&section.last_at)),
            ("Sealed", &section.sealed),
            ("Not yet sealed", &section.unsealed),
            ("Without authentication", &section.unauthenticated),
            (
                "Gaps, and events lost in them",
                &match (section.gaps, section.events_in_gaps) {
                    (Some(gaps), Some(events)) => format!("{gaps}, {events}"),
                    _ => "not in a report about one tenant".into(),
                },
            ),
        ],
    );
    facts(
        page,
        &[
            (
                "Failures and refusals outlive a rollback",
                &match section.is_preloaded {
                    Some(true) => "yes: preloaded",
                    Some(false) => "no: not preloaded, they are in the server log",
                    None => "not known",
                },
            ),
            ("Last problem of the writer", &Or(&section.last_problem)),
            ("Rows taken away by retention", &section.retired_rows),
            ("Forks nobody has accounted for", &section.forks),
        ],
    );
    match &section.checkpoint {
        Some(checkpoint) => {
            facts(
                page,
                &[
                    ("Last checkpoint (UTC)", &show::Time(&checkpoint.at)),
                    ("It seals, in rows", &checkpoint.size),
                    ("Checkpoints", &section.checkpoints),
                    (
                        "Signing keys",
                        &format_args!(
                            "{}, {} after an unclean stop",
                            section.signers.total, section.signers.unclean
                        ),
                    ),
                ],
            );
            // The document is for clients of every encoding; here each character can be shown.
            let text =
                checkpoint.note.as_deref().unwrap_or_default().replace("\\u2014", "\u{2014}");
            let caption = "The last checkpoint as it was signed (C2SP tlog-checkpoint)";
            signed(page, caption, text.lines());
            let signers = &section.signers;
            let keys = [&signers.first_public_key, &signers.last_public_key];
            let caption = "The first and the present public key (C2SP signed-note)";
            signed(page, caption, keys.into_iter().map(Or));
            note(
                page,
                "Compare checkpoint and first key with copies that were kept outside of the database: this page alone proves nothing against who can change the database.",
            );
        }
        None => note(page, "There is no checkpoint: the log is not sealed."),
    }
    list(
        page,
        "Where the log was written",
        &section.origins,
        &[
            Time("Since (UTC)", |row| cell(show::Time(&row.at))),
            Text("Log", |row| cell(&row.log_id)),
            Text("Cause", |row| cell(&row.cause)),
            Number("From row", |row| cell(row.old_size)),
            Time("Acknowledged", |row| cell(show::Time(&row.acknowledged_at))),
            Name("By", |row| name_or_dash(&row.acknowledged_by)),
            Name("Reason", |row| sentence_or_dash(&row.acknowledged_reason)),
        ],
    );
    events(page, "Gaps, starts of the seal, forks and retirements in the period", &section.events);
}

/// Lines as they were signed, or are signed with.
fn signed(page: &mut Html, caption: &str, lines: impl Iterator<Item: Display>) {
    page.element("figure", &[("class", &"signed")], |page| {
        page.leaf("figcaption", &[], caption);
        page.element("pre", &[], |page| lines.for_each(|line| page.leaf("code", &[], line)));
    });
}

pub fn verification(page: &mut Html, report: &Report) {
    let section = &report.verification;
    let result = section.status.as_deref().unwrap_or("not known");
    page.element("p", &[("class", &"verdict")], |page| {
        page.leaf("strong", &[("class", &format_args!("badge {}", tone(result)))], result);
        page.text(" ");
        page.leaf("bdi", &[], Or(&section.summary));
    });
    facts(
        page,
        &[
            ("Verified from (UTC)", &time_or(&section.from, "the beginning")),
            ("To (UTC)", &time_or(&section.to, "the end")),
            ("Took, in seconds", &Or(&section.seconds)),
        ],
    );
    if ran(&section.status) {
        list(
            page,
            "Findings",
            &section.findings,
            &[
                Text("Status", |row| status(&row.status)),
                Text("Finding", |row| cell(&row.finding)),
                Number("Leaf", |row| cell(Or(&row.leaf))),
                Text("Row", |row| cell(Or(&row.log_id))),
                Name("Detail", |row| sentence_or_dash(&row.detail)),
            ],
        );
    }
    list(
        page,
        "Verifications in the period, by check_audit_log",
        &section.stored,
        &[
            Time("At (UTC)", |row| cell(show::Time(&row.at))),
            Text("Status", |row| status(&row.status)),
            Number("Findings", |row| cell(row.findings)),
            Name("By", |row| name(&row.actor)),
            Name("Detail", |row| sentence_or_dash(&row.detail)),
        ],
    );
}

fn time_or(time: &Option<String>, instead: &str) -> String {
    if time.is_some() { show::Time(time).to_string() } else { instead.to_string() }
}

/// Whether a check has a result: it was asked for, and came to its end.
pub fn ran(status: &Option<String>) -> bool {
    !matches!(status.as_deref(), None | Some("not run" | "failed"))
}

pub fn health(page: &mut Html, report: &Report) {
    let section = &report.health;
    if let Some(problem) = &section.problem {
        note(page, format_args!("The checks did not run: {problem}"));
        return;
    }
    facts(
        page,
        &[
            ("Checks that are ok", &section.ok),
            ("Warnings", &section.warning),
            ("Critical", &section.critical),
        ],
    );
    all(
        page,
        "Checks",
        &section.checks,
        &[
            Text("Check", |row| cell(&row.check)),
            Text("Status", |row| status(&row.status)),
            Name("Detail", |row| long(&row.detail)),
            Name("What to do", |row| long(&row.hint)),
        ],
    );
}

/// A sentence of the extension itself, in full.
fn long(text: &Option<String>) -> crate::page::Cell {
    cell(text.as_deref().unwrap_or("-"))
}

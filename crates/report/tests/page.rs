//! The page of a report that was made by a database (`report.json`): what must be on it, and that no text in it,
//! whatever it is, can be more than text.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::Value;

const REPORT: &str = include_str!("report.json");

fn page_of(report: &Value) -> String {
    fieldcrypt_report::page(&report.to_string()).unwrap()
}

fn report() -> Value {
    serde_json::from_str(REPORT).unwrap()
}

#[test]
fn a_page_has_what_an_auditor_asks_for() {
    let page = page_of(&report());
    for fragment in [
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src &#39;none&#39;; style-src &#39;unsafe-inline&#39;; img-src data:\"/>",
        "<title>Compliance report: field encryption in clinic</title>",
        "<dt>Period (UTC)</dt><dd><bdi>2026-11-13 01:00 to 2026-11-23 01:00</bdi></dd>",
        "<h2 id=\"keys-heading\"><span class=\"number\">2 </span>Encryption keys</h2>",
        "<p class=\"supports\">Supports <span class=\"tag\">HIPAA &#xA7;164.312(a)(2)(iv)</span>",
        "<caption>Tenants, those with the oldest active keys first<span class=\"share\"> 26 of 100,026</span></caption>",
        "100,000 more not listed here.",
        "&quot;&gt;&lt;script&gt;document.title=&#39;pwned&#39;&lt;/script&gt;</bdi>",
        "]]&gt; [U+000A][U+0009] [U+202E]live[U+202C] &#x5D0;&#x5D1;&#x5D2; &amp; &lt;b&gt;</bdi>",
        "<strong class=\"badge fine\">ok</strong> <bdi>559 rows, 559 sealed</bdi>",
        "<td class=\"text noted\">warning</td><td class=\"text \">unanchored</td>",
        "<td class=\"text \">encryption_key_age</td><td class=\"text noted\">warning</td>",
        "<text class=\"instead\"",
        "not counted: a foreign table",
        "<td class=\"text \">shred_tenant</td><td class=\"name \"><bdi>acme</bdi></td>",
        "pg_fieldcrypt/",
        "A superuser of the database, and whoever is root",
    ] {
        assert!(page.contains(fragment), "missing: {fragment}");
    }
    assert_eq!(page.matches("<svg ").count(), 6);
    assert!(!page.contains("undefined") && !page.contains("NaN") && !page.contains("inf\""));
}

#[test]
fn what_was_not_counted_has_no_figure() {
    let mut report = report();
    report["reencryption"]["totals"] =
        serde_json::json!({"columns": 4, "columns_not_counted": 4, "active": null});
    report["reencryption"]["problem"] =
        "not counted: canceling statement due to lock timeout (55P03)".into();
    let page = page_of(&report);
    assert!(page.contains("<span class=\"tile-name\">Values on active keys</span><span class=\"tile-value\">?</span><span class=\"tile-detail\">not counted</span>"));
    assert!(page.contains("<dt>Values counted</dt><dd><bdi>not counted</bdi></dd>"));
    assert!(page.contains("lock timeout (55P03)"));
}

#[test]
fn a_check_that_did_not_run_is_not_without_findings() {
    for status in ["not run", "failed"] {
        let mut report = report();
        report["verification"] = serde_json::json!({"status": status, "summary": "why"});
        report["health"] = serde_json::json!({"status": "failed", "problem": "why not"});
        let page = page_of(&report);
        assert!(!page.contains("no findings") && page.contains("no result"), "{status}");
        assert!(!page.contains("Findings:") && !page.contains("Checks that are ok"), "{status}");
    }
}

#[test]
fn each_tile_that_is_not_well_says_why_on_the_first_page() {
    // What makes a tile amber or red, and what is said beside it.
    let cases: [(&str, Value, &str); 11] = [
        ("/keys/totals/overdue", 2.into(), "2 keys are older than the rotation policy allows."),
        ("/keys/totals/compromised", 1.into(), "1 key is marked as compromised"),
        ("/keys/totals/suspended", 3.into(), "3 keys are suspended"),
        ("/rotation/failed", 1.into(), "1 rotation failed in the period."),
        ("/use/failed", 7.into(), "7 values did not open"),
        ("/verification/status", "not run".into(), "Make it with verify =&gt; true."),
        ("/verification/status", "failed".into(), "The verification ended with an error: 559 rows"),
        ("/verification/status", "critical".into(), "unanchored (warning"),
        ("/health/status", "critical".into(), "encryption_key_age (warning): "),
        ("/health/problem", "boom (XX000)".into(), "The checks did not run: boom (XX000)."),
        ("/health/checks/0/detail", Value::Null, "A report about all tenants says why."),
    ];
    for (field, value, said) in cases {
        let mut report = report();
        let (parent, name) = field.rsplit_once('/').unwrap();
        report.pointer_mut(parent).unwrap()[name] = value;
        if field == "/health/problem" {
            report["health"]["status"] = "failed".into();
            report["health"]["checks"] = serde_json::json!([]);
        }
        let page = page_of(&report);
        check_markup(&page).unwrap();
        let (first, _) = page.split_once("<nav ").unwrap();
        assert!(first.contains(said), "{field}: {said}\n{first}");
        for tone in ["noted", "alarming"] {
            assert_eq!(
                first.matches(&format!("class=\"tile {tone}\"")).count(),
                first.matches(&format!("class=\"reason {tone}\"")).count(),
                "{field}, {tone}"
            );
        }
    }
}

#[test]
fn a_page_where_all_is_well_gives_no_reasons() {
    let mut report = report();
    for total in ["overdue", "compromised", "suspended"] {
        report["keys"]["totals"][total] = 0.into();
    }
    report["rotation"]["failed"] = 0.into();
    report["use"]["failed"] = 0.into();
    report["verification"] =
        serde_json::json!({"status": "ok", "findings": {"total": 0, "rows": []}});
    report["health"] = serde_json::json!({"status": "ok", "ok": 3, "checks": []});
    assert!(!page_of(&report).contains("what to do"));
}

#[test]
fn the_first_page_is_not_buried_under_findings() {
    let mut report = report();
    let check =
        serde_json::json!({"check": "some", "status": "critical", "detail": "why", "hint": "do"});
    report["health"]["checks"] = vec![check; 20].into();
    let page = page_of(&report);
    let (first, _) = page.split_once("<nav ").unwrap();
    assert_eq!(first.matches("some (critical): why.").count(), 3);
    assert!(first.contains("<a href=\"#health\">and 17 more</a>"));
}

#[test]
fn what_is_an_estimate_says_so() {
    let mut report = report();
    report["reencryption"]["totals"]["is_exact"] = true.into();
    assert!(page_of(&report).contains("not on active keys (counted)"));
    report["reencryption"]["totals"]["is_exact"] = false.into();
    let page = page_of(&report);
    assert!(page.contains("not on active keys (estimated)") && page.contains("(partly estimated)"));
    report["reencryption"]["runs"]["rows"][0]["rows_total"] = 1234.into();
    assert!(page_of(&report).contains(">about 1,234<"));
    report["reencryption"]["runs"]["rows"][0]["rows_total_is_exact"] = true.into();
    assert!(page_of(&report).contains(">1,234<"));
}

#[test]
fn other_documents_are_refused() {
    for text in [
        "",
        "{}",
        "[]",
        "null",
        "{\"format\": \"pg_fieldcrypt compliance report\"}",
        "{\"format\": 1}",
    ] {
        assert!(fieldcrypt_report::page(text).is_err(), "{text}");
    }
    let mut newer = report();
    newer["version"] = 2.into();
    assert!(fieldcrypt_report::page(&newer.to_string()).is_err());
}

#[test]
fn an_empty_report_is_a_page() {
    let page = fieldcrypt_report::page(
        "{\"format\": \"pg_fieldcrypt compliance report\", \"version\": 1}",
    )
    .unwrap();
    check_markup(&page).unwrap();
    assert!(page.contains("There are no active keys."));
}

#[test]
fn the_largest_numbers_are_shown() {
    let mut report = report();
    each_leaf(&mut report, &mut |leaf| {
        if leaf.is_number() {
            *leaf = serde_json::from_str("99999999999999999999999999").unwrap();
        }
    });
    report["version"] = 1.into();
    let page = page_of(&report);
    check_markup(&page).unwrap();
    assert!(!page.contains("NaN") && !page.contains("inf\""));
}

/// Calls for everything in a document that is not an object or array.
fn each_leaf(value: &mut Value, act: &mut impl FnMut(&mut Value)) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| each_leaf(item, act)),
        Value::Object(fields) => fields.values_mut().for_each(|field| each_leaf(field, act)),
        leaf => act(leaf),
    }
}

/// The report with a text in place of each of its texts.
fn filled_with(text: &str) -> Value {
    let mut report = report();
    each_leaf(&mut report, &mut |leaf| {
        if leaf.is_string() {
            *leaf = text.into();
        }
    });
    report["format"] = "pg_fieldcrypt compliance report".into();
    report
}

const ELEMENTS: [&str; 44] = [
    "a",
    "bdi",
    "body",
    "caption",
    "code",
    "dd",
    "desc",
    "div",
    "dl",
    "dt",
    "figcaption",
    "figure",
    "footer",
    "h1",
    "h2",
    "head",
    "header",
    "html",
    "li",
    "line",
    "link",
    "main",
    "meta",
    "nav",
    "ol",
    "p",
    "pre",
    "rect",
    "section",
    "span",
    "strong",
    "style",
    "svg",
    "table",
    "tbody",
    "td",
    "text",
    "tfoot",
    "th",
    "thead",
    "title",
    "tr",
    "ul",
    "!DOCTYPE",
];
const ATTRIBUTES: [&str; 25] = [
    "aria-hidden",
    "aria-label",
    "aria-labelledby",
    "charset",
    "class",
    "colspan",
    "content",
    "height",
    "href",
    "http-equiv",
    "id",
    "lang",
    "name",
    "rel",
    "role",
    "scope",
    "text-anchor",
    "viewBox",
    "width",
    "x",
    "x1",
    "x2",
    "y",
    "y1",
    "y2",
];

/// Whether a page is of our elements and attributes alone, each closed by its own.
fn check_markup(page: &str) -> Result<(), String> {
    if !page.bytes().all(|byte| matches!(byte, b'\n' | b' '..=b'~')) {
        return Err("not ASCII".into());
    }
    let (before, rest) = page.split_once("<style>").ok_or("no style")?;
    let (_, after) = rest.split_once("</style>").ok_or("no end of style")?;
    let page = format!("{before}{after}");
    let mut open: Vec<&str> = Vec::new();
    for part in page.split('<').skip(1) {
        let (tag, text) = part.split_once('>').ok_or("a tag without an end")?;
        if text.contains('>') || text.contains('"') || text.contains('\'') {
            return Err(format!("unescaped: {text}"));
        }
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return Err(format!("</{name}> closes another"));
            }
            continue;
        }
        let (tag, is_empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        if !ELEMENTS.contains(&name) {
            return Err(format!("an element {name}"));
        }
        if name == "!DOCTYPE" {
            continue;
        }
        while !attributes.is_empty() {
            let (attribute, rest) =
                attributes.split_once("=\"").ok_or("an attribute without a value")?;
            let (value, rest) = rest.split_once('"').ok_or("a value without an end")?;
            if !ATTRIBUTES.contains(&attribute) {
                return Err(format!("an attribute {attribute}"));
            }
            if attribute == "href" && value != "data:," && !value.starts_with('#') {
                return Err(format!("a link to {value}"));
            }
            attributes = rest.trim_start();
        }
        if !is_empty {
            open.push(name);
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("left open: {open:?}")) }
}

#[test]
fn hostile_texts_stay_texts_wherever_they_stand() {
    check_markup(&page_of(&report())).unwrap();
    for text in [
        "<script>alert(1)</script>",
        "\" onload=\"alert(1)",
        "' onload='alert(1)",
        "--></style></title><svg onload=alert(1)>",
        "]]><![CDATA[",
        "</table></td></bdi>",
        "javascript:alert(1)",
        "&lt;script&gt;&#60;",
        "\u{202E}\u{0}\n\r\u{2028}\u{FFFF}",
        "{{7*7}}{0}${x}%s",
    ] {
        check_markup(&page_of(&filled_with(text)))
            .unwrap_or_else(|problem| panic!("{text:?}: {problem}"));
    }
    check_markup(&page_of(&filled_with(&"<".repeat(1000)))).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_stays_text_wherever_it_stands(text in any::<String>()) {
        prop_assert_eq!(check_markup(&page_of(&filled_with(&text))), Ok(()));
    }

    #[test]
    fn no_text_is_taken_for_a_report_by_mistake(text in any::<String>()) {
        prop_assert!(fieldcrypt_report::page(&text).is_err());
    }
}

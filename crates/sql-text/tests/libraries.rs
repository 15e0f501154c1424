//! Lines of pgaudit and pg_cron, by example.

#![allow(clippy::unwrap_used)]

use fieldcrypt_sql_text::{Text, mask_audit, mask_job};

#[test]
fn lines_of_libraries_lose_what_is_not_the_clients() {
    let audit = |running: &str, line: &str| {
        let mut out = Text::new();
        mask_audit(line.as_bytes(), running.as_bytes(), &mut out).unwrap();
        String::from_utf8(out.as_bytes().to_vec()).unwrap()
    };
    let own = "SELECT f(735101, \"a\", 'x') /* secret */";
    for (line, expected) in [
        (
            "AUDIT: SESSION,1,1,READ,SELECT,TABLE,public.t,\"SELECT f(735101, \"\"a\"\", 'x') /* secret */\",<none>",
            "AUDIT: SESSION,1,1,READ,SELECT,TABLE,public.t,\"SELECT f(0, \"\"a\"\", '***')  \",<none>",
        ),
        (
            "AUDIT: SESSION,1,1,READ,SELECT,,,\"SELECT f(735101, \"\"a\"\", 'x') /* secret */\",<not logged>,12",
            "AUDIT: SESSION,1,1,READ,SELECT,,,\"SELECT f(0, \"\"a\"\", '***')  \",<not logged>,12",
        ),
        // Of another statement, which a function may have put together from values.
        (
            "AUDIT: SESSION,1,2,DDL,CREATE TABLE,TABLE,pg_temp.t_secret,create temp table t_secret (),<none>",
            "AUDIT: SESSION,1,2,DDL,CREATE TABLE,***",
        ),
        (
            "AUDIT: SESSION,1,2,MISC,LISTEN,,,listen secret,<none>",
            "AUDIT: SESSION,1,2,MISC,LISTEN,***",
        ),
        (
            "AUDIT: SESSION,1,2,DDL,CREATE TABLE,TABLE,pg_temp.t_secret,<previously logged>,<previously logged>",
            "AUDIT: SESSION,1,2,DDL,CREATE TABLE,***",
        ),
        // Values of parameters.
        ("AUDIT: SESSION,1,1,READ,SELECT,,,SELECT $1,secret", "AUDIT: ***"),
        ("AUDIT: SESSION,1,1,READ,SELECT,,,SELECT $1,\"secret,<none>\"", "AUDIT: ***"),
        ("AUDIT: SESSION,1,1,READ,SELECT,,,SELECT $1,secret,<none>", "AUDIT: ***"),
        ("AUDIT: SESSION,1,1,READ,SELECT,,,SELECT $1,<none>,secret", "AUDIT: ***"),
        ("AUDIT: SESSION,1,1,READ,SELECT,,,SELECT $1,secret,1,<none>", "AUDIT: ***"),
        // No CSV.
        ("AUDIT: SESSION,1,1,READ,SELECT,,,\"SELECT secret,<none>", "AUDIT: ***"),
        ("AUDIT: SESSION,1,1,READ,SELECT,,,\"SELECT\" secret,<none>", "AUDIT: ***"),
        ("AUDIT: secret", "AUDIT: ***"),
        ("secret", "AUDIT: ***"),
        ("AUDIT: ", "AUDIT: ***"),
    ] {
        assert_eq!(audit(own, line), expected, "{line}");
    }
    assert_eq!(
        audit("SELECT 5", "AUDIT: OBJECT,1,1,READ,SELECT,,,SELECT 5,<none>"),
        "AUDIT: OBJECT,1,1,READ,SELECT,,,SELECT 0,<none>"
    );
    // Without what ends it: pgaudit for PostgreSQL 18.
    for statement in ["SELECT 5;", " SELECT 5 ;\n"] {
        assert_eq!(
            audit(statement, "AUDIT: OBJECT,1,1,READ,SELECT,,,SELECT 5,<none>"),
            "AUDIT: OBJECT,1,1,READ,SELECT,,,SELECT 0,<none>"
        );
    }
    // One of several is not the statement.
    assert_eq!(
        audit("SELECT 5; SELECT 6;", "AUDIT: OBJECT,1,1,READ,SELECT,,,SELECT 5,<none>"),
        "AUDIT: OBJECT,1,1,READ,SELECT,***"
    );

    for (line, expected) in [
        ("cron job 12 starting: SELECT f('x: y', 5)", "cron job 12 starting: SELECT f('***', 0)"),
        (
            "cron job 0: ERROR: invalid input syntax for type integer: \"secret\"",
            "cron job 0: ERROR: ***",
        ),
        ("cron job 0: NOTICE: secret starting: SELECT secret", "cron job 0: NOTICE: ***"),
        ("cron job 0: secret", "cron job 0: ***"),
        ("cron job 0: SECRET SECRET: x", "cron job 0: ***"),
        ("cron job 0 secret", "cron job 0: ***"),
        ("cron job secret", "cron job : ***"),
        ("job 0 starting: SELECT secret", "***"),
    ] {
        let mut out = Text::new();
        mask_job(line.as_bytes(), &mut out).unwrap();
        assert_eq!(String::from_utf8_lossy(out.as_bytes()), expected, "{line}");
    }
}

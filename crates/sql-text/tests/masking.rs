//! What is masked, by example, and properties that hold for all input.

#![allow(clippy::unwrap_used)]

use fieldcrypt_sql_text::messages::{
    Record, mask_context, mask_lock_numbers, mask_memory_context, mask_processes,
};
use fieldcrypt_sql_text::{
    Kind, Names, Place, Text, Tokens, executes, mask, mask_audit, mask_job, mask_plan,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn masked(sql: &[u8]) -> Vec<u8> {
    let mut out = Text::new();
    mask(sql, &mut out).unwrap();
    out.as_bytes().to_vec()
}

fn becomes(sql: &str, expected: &str) {
    assert_eq!(String::from_utf8(masked(sql.as_bytes())).unwrap(), expected, "{sql}");
}

#[test]
fn every_kind_of_literal_is_masked() {
    becomes(
        "SELECT 'a', E'a\\'b', e'x', B'01', x'FF', N'n', U&'\\0041'",
        "SELECT '***', '***', '***', '***', '***', '***', '***'",
    );
    becomes("SELECT $$a$$, $t$ $$ $x$ '$t$", "SELECT '***', '***'");
    becomes(
        "SELECT 1, 1.5, .5, 1., 1e10, 1.5e-10, 1E+5, 0xFF, 1_000",
        "SELECT 0, 0, 0, 0, 0, 0, 0, 0, 0",
    );
    becomes("SELECT 'it''s', 'a'\n  'b', 'a' -- c\n 'b'", "SELECT '***', '***', '***'");
    becomes("SELECT E'a'\n'b\\'c' FROM t", "SELECT '***' FROM t");
    becomes(
        "SELECT U&'!0041' UESCAPE '!', U&\"a\" uescape '!', UESCAPE",
        "SELECT '***' , U&\"a\" , UESCAPE",
    );
}

#[test]
fn what_is_stuck_to_a_number_is_masked() {
    becomes("values (1$$a b secret$$)", "values (0 '***')");
    becomes("1e$$a$$, 1.$a$b c$a$, .5$x1$d$x1$, 1e5$$a", "0 '***', 0 '***', 0 '***', 0 '***'");
    becomes("0x1$$a$$, 1_0$$a$$, 1abc$$a$$, 1'a'", "0 '***', 0 '***', 0 '***', 0 '***'");
    becomes("$1$$secret$$, $1a$$secret$$, $1a$1, a.$1b", "$1 '***', 0 '***', 0$1, a. 0");
    becomes("1$2, 1$a, a$$b$$", "0$2, 0$a, a$$b$$");
}

#[test]
fn booleans_are_masked() {
    becomes(
        "SELECT f(true, FALSE, False), a IS NOT true, trueish, \"true\", NULL",
        "SELECT f(TRUE, TRUE, TRUE), a IS NOT TRUE, trueish, \"true\", NULL",
    );
    becomes("SET a.b = false", "SET a.b = TRUE");
}

#[test]
fn what_a_left_out_escape_stood_between_stays_apart() {
    becomes("SELECT U&\"a\"UESCAPE'!'\"b\"", "SELECT U&\"a\" \"b\"");
    becomes("SELECT U&\"a\"UESCAPE $$!$$\"secret \"\"", "SELECT U&\"a\" \"***\"");
    becomes("SELECT U&\"a\"UESCAPE/*'*/'!'UESCAPE '!'b", "SELECT U&\"a\" b");
    becomes("SELECT U&'a'UESCAPE'!'b", "SELECT '***' b");
    becomes("SELECT U&'a'UESCAPE'!' 'b'", "SELECT '***'");
}

#[test]
fn uescape_without_an_escape_stays() {
    for sql in ["U&\"a\"UESCAPE\"b\"", "U&\"a\" UESCAPE UESCAPE b", "U&\"a\" UESCAPE"] {
        becomes(sql, sql);
    }
    becomes("U&'a'UESCAPE UESCAPE'!'", "'***'UESCAPE UESCAPE '***'");
    becomes("U&'a' UESCAPE 1 'b'", "'***' UESCAPE 0 '***'");
}

#[test]
fn comments_become_a_blank() {
    becomes(
        "SELECT 1 -- secret\nFROM t /* a /* nested */ secret */ WHERE a-/**/-b",
        "SELECT 0  \nFROM t   WHERE a- -b",
    );
    becomes("SELECT /* open secret", "SELECT  ");
    becomes("a/*'*/'b'/*'*/c", "a '***' c");
}

#[test]
fn names_parameters_and_operators_stay() {
    let sql = "SELECT t.\"Col\", x$y, $1 <> ANY ($2), a->>b, c::text[] FROM \"a\"\"b\".t1 AS t2 WHERE e = n AND NOT b|| u&x";
    becomes(sql, sql);
    becomes("FOR i IN 1..10 LOOP", "FOR i IN 0..0 LOOP");
    becomes("x.5", "x 0");
    becomes("$1.5", "$1 0");
    becomes("t1.c2[3:4]", "t1.c2[0:0]");
}

#[test]
fn a_quoted_identifier_that_is_likely_a_mistake_is_masked() {
    becomes("SELECT \"a, 'secret', \"b\", 'x'", "SELECT \"***\"b \"***\"");
    becomes("SELECT \"open secret", "SELECT \"***\"");
    becomes(&format!("SELECT \"{}\"", "x".repeat(64)), "SELECT \"***\"");
    becomes("SELECT U&\"d\\0061t\\+000061\"", "SELECT U&\"d\\0061t\\+000061\"");
}

#[test]
fn what_has_no_end_is_masked_to_the_end() {
    becomes("SELECT 'secret", "SELECT '***'");
    becomes("SELECT E'secret\\'", "SELECT '***'");
    becomes("SELECT $a$secret$b$", "SELECT '***'");
    becomes("SELECT 'a\\', 'secret'", "SELECT '***'");
    becomes("SELECT 'a\\\\', b", "SELECT '***', b");
    becomes("SELECT '\\d', b", "SELECT '***', b");
}

#[test]
fn names_are_found_where_they_count() {
    let mut names = Names::new();
    names.add(b"fieldcrypt", Place::Anywhere).unwrap();
    names.add(b"patients", Place::Anywhere).unwrap();
    names.add(b"My Table", Place::Anywhere).unwrap();
    names.add(b"ssn", Place::Code).unwrap();
    names.add(b"encrypt_field", Place::Call).unwrap();
    let is = |sql: &str| names.are_mentioned_in(sql.as_bytes());
    for sql in [
        "SELECT fieldcrypt.encrypt_field('x')",
        "SELECT FieldCrypt.x",
        "SELECT Encrypt_Field ('x')",
        "SELECT encrypt_field/*c*/('x')",
        "SELECT \"encrypt_field\"('x')",
        "INSERT INTO PATIENTS VALUES (1)",
        "SELECT * FROM \"patients\"",
        "SELECT * FROM \"My Table\"",
        "SELECT ssn FROM v",
        "DO $$ BEGIN PERFORM encrypt_field('x'); END $$",
        "DO 'BEGIN PERFORM encrypt_field(''x''); END'",
        "DO $a$ BEGIN EXECUTE 'select encrypt_field($b$x$b$)'; END $a$",
        "SELECT * FROM U&\"p\\0061tients\"",
        "SET fieldcrypt.tenant = 'x'",
        "PL/pgSQL \"SELECT encrypt_field('x')\"",
    ] {
        assert!(is(sql), "{sql}");
    }
    for sql in [
        "SELECT 1",
        "SELECT encrypt_field FROM t",
        "SELECT 'ssn'",
        "SELECT $$ssn$$",
        "SELECT patient FROM t",
        "SELECT 1 /* patients */ -- ssn",
        "SELECT my.table",
        "",
        "SELECT 'encrypt_field', (1)",
    ] {
        assert!(!is(sql), "{sql}");
    }
    assert!(!Names::new().are_mentioned_in(b"SELECT fieldcrypt.x"));
}

#[test]
fn operators_are_found_as_tokens_and_as_the_words_for_them() {
    let mut names = Names::new();
    for operator in ["@@@", "<>", "~~"] {
        names.add(operator.as_bytes(), Place::Operator).unwrap();
    }
    let is = |sql: &str| names.are_mentioned_in(sql.as_bytes());
    for sql in [
        "SELECT @@@ 'x'",
        "SELECT a@@@'x'",
        "SELECT OPERATOR(public.@@@) 'x'",
        "SELECT @@@-1",
        "SELECT a <>-1",
        "SELECT a != -1",
        "SELECT a <>/*c*/ 'x'",
        "SELECT a NOT LIKE 'x'",
        "SELECT a Not In ('x')",
        "DO $$ BEGIN PERFORM @@@ 'x'; END $$",
    ] {
        assert!(is(sql), "{sql}");
    }
    for sql in [
        "SELECT a @@ 'x'",
        "SELECT a @@@@ 'x'",
        "SELECT a <= -1",
        "SELECT '@@@'",
        "SELECT \"@@@\"",
        "SELECT a /* @@@ */",
        "SELECT a ILIKE 'x'",
    ] {
        assert!(!is(sql), "{sql}");
    }
}

#[test]
fn long_and_foreign_names_are_found_too() {
    let mut names = Names::new();
    // As the server cuts them off.
    names.add("x".repeat(63).as_bytes(), Place::Anywhere).unwrap();
    names.add(b"pati\xebnten", Place::Anywhere).unwrap();
    assert!(names.are_mentioned_in("x".repeat(80).as_bytes()));
    assert!(names.are_mentioned_in(b"SELECT * FROM PATI\xcbNTEN"));
    assert!(!names.are_mentioned_in("x".repeat(20).as_bytes()));
}

#[test]
fn executed_statements_are_found() {
    let names = |sql: &str| {
        let mut names = Vec::new();
        let stopped = executes(sql.as_bytes(), &mut |name, is_outside| {
            let name = name.iter().copied().take_while(|byte| *byte != 0).collect();
            names.push((String::from_utf8(name).unwrap(), is_outside));
            false
        });
        assert!(!stopped);
        names
    };
    assert_eq!(
        names("EXECUTE P('x'); explain execute /* */ \"Q\"\"\" (1); SELECT execute, 'EXECUTE r'"),
        [("p".into(), true), ("Q\"".into(), true), ("r".into(), false)]
    );
    assert_eq!(names("DO $$ BEGIN EXECUTE 'EXECUTE p(''x'')'; END $$"), [("p".into(), true)]);
    assert_eq!(names(&format!("EXECUTE {}", "x".repeat(70))), [("x".repeat(63), true)]);
    assert!(executes(b"EXECUTE U&\"\\0070\"", &mut |_, _| false), "any name");
    assert!(executes(b"EXECUTE p; EXECUTE q", &mut |name, _| name[0] == b'q'));
}

struct Case<'t> {
    format: &'t str,
    message: &'t str,
    statement: &'t str,
}

fn message(case: &Case<'_>) -> String {
    let record = Record {
        message_format: Some(case.format.as_bytes()),
        statement: case.statement.as_bytes(),
        is_of_names: case.statement.starts_with("SELECT"),
        system_error: b"No such file or directory",
        names: [b"patients", b"ssn", b"patients_pkey", b"", b"public"],
        ..Record::default()
    };
    let mut out = Text::new();
    record.message(case.message.as_bytes(), &mut out).unwrap();
    String::from_utf8(out.as_bytes().to_vec()).unwrap()
}

#[test]
fn messages_keep_names_and_lose_values() {
    for (format, text, statement, expected) in [
        ("division by zero", "division by zero", "SELECT 1/0", "division by zero"),
        (
            "invalid input syntax for type %s: \"%s\"",
            "invalid input syntax for type integer: \"secret\"",
            "",
            "invalid input syntax for type integer: \"***\"",
        ),
        (
            "invalid input syntax for type %s: \"%s\"",
            "invalid input syntax for type integer: \"a \"b\" secret\"",
            "",
            "invalid input syntax for type integer: \"***\"",
        ),
        (
            "column \"%s\" does not exist",
            "column \"nonsense\" does not exist",
            "SELECT nonsense FROM t",
            "column \"nonsense\" does not exist",
        ),
        (
            "relation \"%s.%s\" does not exist",
            "relation \"a.b\" does not exist",
            "SELECT 1 FROM a.b",
            "relation \"a.b\" does not exist",
        ),
        (
            "duplicate key value violates unique constraint \"%s\"",
            "duplicate key value violates unique constraint \"patients_pkey\"",
            "",
            "duplicate key value violates unique constraint \"patients_pkey\"",
        ),
        (
            "%s at or near \"%s\"",
            "syntax error at or near \"'secret'\"",
            "SELECT FROM 'secret'",
            "syntax error at or near \"***\"",
        ),
        (
            "%s at or near \"%s\"",
            "unterminated quoted string at or near \"'secret \"x\" more\"",
            "SELECT 'secret \"x\" more",
            "unterminated quoted string at or near \"***\"",
        ),
        ("bad number %s", "bad number 123-45-6789", "SELECT f('123-45-6789')", "bad number ***"),
        ("%s", "bad number 123-45-6789", "", "***"),
        (
            "invalid byte sequence for encoding \"%s\": %s",
            "invalid byte sequence for encoding \"UTF8\": 0xe4 0x62",
            "",
            "invalid byte sequence for encoding \"***\": ***",
        ),
        // A value is a word that stands in the statement only by chance: which kind of error it is decides.
        (
            "invalid input syntax for type %s: \"%s\"",
            "invalid input syntax for type integer: \"flu\"",
            "UPDATE flu",
            "invalid input syntax for type integer: \"***\"",
        ),
        (
            "date field value out of range: %d-%02d-%02d",
            "date field value out of range: 1984-13-01",
            "",
            "date field value out of range: ***-***-***",
        ),
        (
            "operator does not exist: %s",
            "operator does not exist: ab",
            "SELECT 1",
            "operator does not exist: ***",
        ),
        (
            "could not open file \"%s\" for reading: %m",
            "could not open file \"secret\" for reading: No such file or directory",
            "",
            "could not open file \"***\" for reading: No such file or directory",
        ),
        ("%s at end of input", "syntax error at end of input", "", "syntax error at end of input"),
        ("%s at sea", "secret at sea", "", "*** at sea"),
        ("100%% of %s", "100% of secret", "", "100% of ***"),
        ("value %ld%s", "value 5ssn", "", "value ******"),
        // A value that holds the words of the message.
        (
            "value \"%s\" is out of range for type %s",
            "value \"x\" is out of range for type secret\" is out of range for type integer",
            "",
            "value \"***\" is out of range for type ***",
        ),
        ("cut off %", "cut off x", "", "cut off ***"),
    ] {
        let got = message(&Case { format, message: text, statement });
        assert_eq!(got, expected);
    }
}

#[test]
fn translated_messages_are_written_untranslated() {
    let record = Record {
        message_format: Some(b"invalid input syntax for type %s: \"%s\""),
        is_translated: true,
        ..Record::default()
    };
    let mut out = Text::new();
    record.message("ungültig: „secret“".as_bytes(), &mut out).unwrap();
    assert_eq!(out.as_bytes(), b"invalid input syntax for type ***: \"***\"");
    let mut out = Text::new();
    record.detail("Schlüssel »(a)=(secret)« existiert bereits.".as_bytes(), &mut out).unwrap();
    assert_eq!(out.as_bytes(), b"***");
}

fn with_record(write: impl FnOnce(&Record<'_>, &mut Text)) -> String {
    let record = Record {
        names: [b"patients", b"", b"", b"", b""],
        is_of_constraint: true,
        ..Record::default()
    };
    let mut out = Text::new();
    write(&record, &mut out);
    String::from_utf8(out.as_bytes().to_vec()).unwrap()
}

#[test]
fn details_lose_rows_and_keys() {
    for (detail, expected) in [
        ("Key (a, b)=(secret, 1) already exists.", "Key (a, b)=(***) already exists."),
        ("Key (r)=([1,2)) conflicts with existing key (r)=([1,3)).", "Key (r)=(***)."),
        (
            "Key (a)=(x) y (secret) is not present in table \"patients\".",
            "Key (a)=(***) is not present in table \"patients\".",
        ),
        ("Failing row contains (1, secret, (x)).", "Failing row contains (***)."),
        ("Partition key of the failing row contains (id) = (5).", "***"),
        ("Token \"secret\" is invalid.", "***"),
        ("Key secret (a)=(b)", "***"),
        ("It failed. Failing row contains (x)", "***"),
    ] {
        assert_eq!(
            with_record(|record, out| record.detail(detail.as_bytes(), out).unwrap()),
            expected
        );
    }
}

#[test]
fn contexts_keep_places_and_lose_values() {
    for (context, expected) in [
        ("COPY patients, line 3, column ssn: \"secret\"", "COPY patients, line 3: ***"),
        ("COPY patients, line 3: \"1,secret\nmore\"", "COPY patients, line 3: ***"),
        (
            "PL/pgSQL function f(integer) line 3 at RAISE",
            "PL/pgSQL function f(integer) line 3 at RAISE",
        ),
        (
            "SQL statement \"SELECT g('secret')\"\nPL/pgSQL function f() line 3 at PERFORM",
            "SQL statement \"***\"\nPL/pgSQL function f() line 3 at PERFORM",
        ),
        // Lines in values, that look like others.
        (
            "COPY patients, line 3: \"1\nwhile scanning the secret\nSQL function \"secret\"",
            "COPY patients, line 3: ***",
        ),
        ("COPY patients, line 3\nwhile scanning the secret", "COPY patients, line 3: ***"),
        ("JSON data, line 1: \nwhile scanning the secret", "***"),
        (
            "PL/pgSQL function f() line 1 at SQL statement\nJSON data, line 1: {\nPL/pgSQL function secret",
            "PL/pgSQL function f() line 1 at SQL statement\n***",
        ),
        (
            "SQL statement \"SELECT 'x\"\nwhile scanning the secret'\"\nwhile scanning block 3",
            "SQL statement \"***\"\nwhile scanning block 3",
        ),
        ("SQL statement \"SELECT 'x\"\nwhile scanning the secret", "SQL statement \"***\"\n***"),
        (
            "SQL statement \"SELECT 1\"\nPL/Perl function \"f\"\nCOPY t, line 1: \"secret",
            "SQL statement \"***\"\n***",
        ),
        (
            "SQL statement \"SELECT \"a\"\"\nCOPY t, line 1: \"secret\"",
            "SQL statement \"***\"\n***",
        ),
        (
            "unnamed portal with parameters: $1 = 'x\nwhile scanning the secret', $2 = '1'\nCOPY t, line 1: \"secret",
            "unnamed portal with parameters: $1 = '***', $2 = '***'\nCOPY t, line 1: ***",
        ),
        (
            "SQL statement \"SELECT \"A\", 'x\nsecret' FROM t\"\nSQL function \"f\" statement 1",
            "SQL statement \"***\"\nSQL function \"f\" statement 1",
        ),
        ("PL/pgSQL assignment \"x := 'secret'\"", "PL/pgSQL assignment \"***\""),
        // Values among the words of a statement that a function put together.
        (
            "SQL statement \"select * from t where note = Ada Secret\"\nPL/pgSQL function inline_code_block line 1 at EXECUTE",
            "SQL statement \"***\"\nPL/pgSQL function inline_code_block line 1 at EXECUTE",
        ),
        ("PL/pgSQL expression \"Ada = secret\"", "PL/pgSQL expression \"***\""),
        (
            "SQL expression \"Ada\"\nSQL function \"f\" statement 1",
            "SQL expression \"***\"\nSQL function \"f\" statement 1",
        ),
        (
            "unnamed portal with parameters: $1 = 'secret', $2 = NULL",
            "unnamed portal with parameters: $1 = '***', $2 = NULL",
        ),
        ("unnamed portal parameter $1 = 'secret'", "unnamed portal parameter $1 = '***'"),
        ("portal \"p\" with parameters: $1 = 'it''s'", "portal \"p\" with parameters: $1 = '***'"),
        ("JSON data, line 1: {\"a\": secret...", "***"),
        ("automatic analyze of table \"a.b.c\"", "automatic analyze of table \"a.b.c\""),
    ] {
        let mut out = Text::new();
        mask_context(context.as_bytes(), &mut out).unwrap();
        assert_eq!(String::from_utf8_lossy(out.as_bytes()), expected);
    }
}

#[test]
fn deadlocks_lose_the_literals_of_all_statements() {
    let mut out = Text::new();
    let detail = "Process 12 waits for ShareLock on transaction 7; blocked by process 13.\nProcess 13 waits for ShareLock on transaction 8; blocked by process 12.\nProcess 12: UPDATE t SET a = 'x\nsecret' WHERE id = 5\nProcess 13: UPDATE t SET a = 'cut off sec";
    mask_processes(detail.as_bytes(), &mut out).unwrap();
    assert_eq!(
        String::from_utf8_lossy(out.as_bytes()),
        "Process 12 waits for ShareLock on transaction 7; blocked by process 13.\nProcess 13 waits for ShareLock on transaction 8; blocked by process 12.\nProcess 12: UPDATE t SET a = '***' WHERE id = 0\nProcess 13: ***"
    );
    for (detail, expected) in [
        // What follows a statement that is cut off in a literal.
        ("Process 1: SELECT 'a\nProcess 2: SELECT 'secret", "Process 1: ***"),
        // A line in a literal.
        ("Process 1: SELECT 'a\nProcess 2: secret'\nProcess 3: SELECT 1", "Process 1: ***"),
        ("Process 1: SELECT /* a\nProcess 2: secret", "Process 1: ***"),
        (
            "Process 1 waits for ExclusiveLock on advisory lock [5,0,4711,1]; blocked by process 2.\nProcess 2: SELECT 1",
            "Process 1 waits for ExclusiveLock on advisory lock [***]; blocked by process 2.\nProcess 2: SELECT 0",
        ),
        ("Prozess 1 wartet: SELECT secret", "***"),
        ("Process 1: waits for 'secret'", "Process 1: waits for '***'"),
    ] {
        let mut out = Text::new();
        mask_processes(detail.as_bytes(), &mut out).unwrap();
        assert_eq!(String::from_utf8_lossy(out.as_bytes()), expected);
    }
}

#[test]
fn hints_stay_if_they_quote_nothing() {
    for (hint, expected) in [
        (
            "You might need to add explicit type casts.",
            "You might need to add explicit type casts.",
        ),
        ("Perhaps you meant \"secret\".", "***"),
        ("It was 4711.", "***"),
    ] {
        assert_eq!(with_record(|record, out| record.hint(hint.as_bytes(), out).unwrap()), expected);
    }
}

#[test]
fn locks_and_memory_keep_their_measures() {
    let masked =
        |text: &str, mask: fn(&[u8], &mut Text) -> Result<(), fieldcrypt_sql_text::OutOfMemory>| {
            let mut out = Text::new();
            mask(text.as_bytes(), &mut out).unwrap();
            String::from_utf8(out.as_bytes().to_vec()).unwrap()
        };
    let waits =
        "process 1 still waiting for ExclusiveLock on advisory lock [5,0,4711,1] after 200.1 ms";
    assert_eq!(
        masked(waits, mask_lock_numbers),
        "process 1 still waiting for ExclusiveLock on advisory lock [***] after 200.1 ms"
    );
    let waits = "process 1 still waiting for ShareLock on transaction 7 after 200.1 ms";
    assert_eq!(masked(waits, mask_lock_numbers), waits);
    assert_eq!(
        masked(
            "level: 2; CachedPlanSource: 4096 total in 3 blocks; 8 free (0 chunks); 4088 used: SELECT 'secret'",
            mask_memory_context
        ),
        "level: 2; CachedPlanSource: 4096 total in 3 blocks; 8 free (0 chunks); 4088 used: ***"
    );
    let whole = "Grand total: 1 bytes in 2 blocks; 3 free (4 chunks); 5 used";
    assert_eq!(masked(whole, mask_memory_context), whole);
}

#[test]
fn plans_keep_their_measures() {
    let mut out = Text::new();
    let query = "SELECT * FROM t\n  WHERE a = 5 AND b = 'Seq\n  (cost=1' -- secret";
    let plan = format!(
        "Query Text: {query}\nSeq Scan on t  (cost=0.00..1.00 rows=1 width=4) (actual time=0.1..0.2 rows=1 loops=1)\n  Output: a, 'secret'::text\n  Filter: ((a = 5) AND (b = 'x'::text))\n  Rows Removed by Filter: 3\n  ->  Index Scan using i on t  (cost=1.00..2.00 rows=1 width=4)\n        Index Cond: (a > 5)\n        Buffers: shared hit=3"
    );
    mask_plan(plan.as_bytes(), query.as_bytes(), false, &mut out).unwrap();
    assert_eq!(
        String::from_utf8_lossy(out.as_bytes()),
        "Query Text: SELECT * FROM t\n  WHERE a = 0 AND b = '***'  \nSeq Scan on t  (cost=0.00..1.00 rows=1 width=4) (actual time=0.1..0.2 rows=1 loops=1)\n  Output: a, '***'::text\n  Filter: ((a = 0) AND (b = '***'::text))\n  Rows Removed by Filter: 3\n  ->  Index Scan using i on t  (cost=1.00..2.00 rows=1 width=4)\n        Index Cond: (a > 0)\n        Buffers: shared hit=3"
    );
    let mut out = Text::new();
    mask_plan(b"{\"Query Text\": \"SELECT 'secret'\"}", b"SELECT 'secret'", false, &mut out)
        .unwrap();
    assert!(out.as_bytes().starts_with(b"(hidden"));
}

#[test]
fn plans_of_statements_that_a_function_put_together_are_hidden() {
    for running in
        ["SELECT f()", "SELECT", "SELECT a FROM t AS secre", "SELECT a FROM t AS secret\nSeq"]
    {
        let mut out = Text::new();
        let plan = "Query Text: SELECT a FROM t AS secret\nSeq Scan on t secret  (cost=0.00..1.00 rows=1 width=4)";
        mask_plan(plan.as_bytes(), running.as_bytes(), false, &mut out).unwrap();
        assert_eq!(String::from_utf8_lossy(out.as_bytes()), "Query Text: ***", "{running}");
    }
    for (client, is_cut_off, expected) in [
        ("SELECT a FR", true, "Query Text: SELECT a FROM t"),
        ("SELECT a FR", false, "Query Text: ***"),
        ("SELECT b", true, "Query Text: ***"),
        ("", false, "Query Text: ***"),
    ] {
        let mut out = Text::new();
        mask_plan(b"Query Text: SELECT a FROM t", client.as_bytes(), is_cut_off, &mut out).unwrap();
        assert_eq!(String::from_utf8_lossy(out.as_bytes()), expected, "{client}");
    }
}

/// Bytes of which a statement is made, often in pieces that matter.
fn sql() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"'".to_vec()),
        Just(b"''".to_vec()),
        Just(b"\\".to_vec()),
        Just(b"$$".to_vec()),
        Just(b"$a$".to_vec()),
        Just(b"E'".to_vec()),
        Just(b"U&'".to_vec()),
        Just(b"u&\"".to_vec()),
        Just(b"\"".to_vec()),
        Just(b"--".to_vec()),
        Just(b"/*".to_vec()),
        Just(b"*/".to_vec()),
        Just(b"\n".to_vec()),
        Just(b" ".to_vec()),
        Just(b"1".to_vec()),
        Just(b"1.5e".to_vec()),
        Just(b"..".to_vec()),
        Just(b".".to_vec()),
        Just(b"$1".to_vec()),
        Just(b"$".to_vec()),
        Just(b"-".to_vec()),
        Just(b"e".to_vec()),
        Just(b"name".to_vec()),
        Just(b"UESCAPE".to_vec()),
        Just(b"1$$".to_vec()),
        Just(b"$1x".to_vec()),
        Just(b"False".to_vec()),
        Just(b"(".to_vec()),
        Just(b"\xe4".to_vec()),
        Just(b"0x".to_vec()),
        vec(any::<u8>(), 0..3),
    ];
    vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// A literal of any kind that holds the word SECRET, and other things.
fn literal() -> impl Strategy<Value = String> {
    let content = "[ -&(-\\[\\]-~\n]{0,6}";
    (content, content, 0..8usize).prop_map(|(before, after, kind)| {
        let before = before.replace(['$', '\\'], "");
        let after = after.replace(['$', '\\'], "");
        let held = format!("{before}SECRET{after}");
        match kind {
            0 => format!("'{held}'"),
            1 => format!("E'{held}\\''"),
            2 => format!("$${held}$$"),
            3 => format!("$x1${held}'$x1$"),
            4 => format!("'{held}'''"),
            5 => format!("N'{held}'"),
            6 => "'a'\n 'SECRET'".to_string(),
            _ => format!("'{held}' -- SECRET"),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tokens_are_the_text(text in sql()) {
        let mut end = 0;
        for token in Tokens::of(&text) {
            prop_assert_eq!(token.range.start, end);
            prop_assert!(token.range.end > token.range.start);
            prop_assert!(token.content.start >= token.range.start && token.content.end <= token.range.end);
            prop_assert!(token.content.start <= token.content.end);
            end = token.range.end;
        }
        prop_assert_eq!(end, text.len());
    }

    #[test]
    fn masking_twice_is_masking_once(text in sql()) {
        let once = masked(&text);
        let twice = masked(&once);
        prop_assert_eq!(String::from_utf8_lossy(&twice), String::from_utf8_lossy(&once));
    }

    #[test]
    fn nothing_but_names_and_operators_is_left(text in sql()) {
        let once = masked(&text);
        for token in Tokens::of(&once) {
            let shown = once.get(token.range.clone()).unwrap();
            match token.kind {
                Kind::String => prop_assert_eq!(shown, b"'***'"),
                Kind::Number => prop_assert_eq!(shown, b"0"),
                Kind::Comment | Kind::OpenIdentifier => prop_assert!(false, "{:?} left", token.kind),
                _ => {}
            }
        }
    }

    #[test]
    fn no_literal_survives_and_everything_else_does(literals in vec(literal(), 1..6)) {
        let sql = literals.iter().map(|literal| format!("SELECT name1 + {literal}\n")).collect::<Vec<_>>().concat();
        let once = String::from_utf8(masked(sql.as_bytes())).unwrap();
        prop_assert!(!once.contains("SECRET"), "{} -> {}", sql, once);
        prop_assert_eq!(once.matches("SELECT name1 + '***'").count(), literals.len());
    }

    #[test]
    fn names_of_what_is_unmasked_survive(text in sql()) {
        let words = |text: &[u8]| Tokens::of(text).filter(|token| matches!(token.kind, Kind::Word | Kind::Parameter))
            .map(|token| text.get(token.range).unwrap().to_vec())
            .map(|word| if word.eq_ignore_ascii_case(b"false") { b"TRUE".to_vec() } else { word })
            .map(|word| if word.eq_ignore_ascii_case(b"true") { b"TRUE".to_vec() } else { word })
            .filter(|word| !word.eq_ignore_ascii_case(b"uescape")).collect::<Vec<_>>();
        prop_assert_eq!(words(&masked(&text)), words(&text));
    }

    #[test]
    fn messages_never_panic(text in sql(), statement in sql(), format in sql()) {
        let record = Record { message_format: Some(&format), statement: &statement, ..Record::default() };
        let mut out = Text::new();
        record.message(&text, &mut out).unwrap();
        record.detail(&text, &mut out).unwrap();
        record.hint(&text, &mut out).unwrap();
        mask_context(&text, &mut out).unwrap();
        mask_lock_numbers(&text, &mut out).unwrap();
        mask_memory_context(&text, &mut out).unwrap();
        executes(&text, &mut |_, _| false);
        mask_processes(&text, &mut out).unwrap();
        mask_plan(&[b"Query Text: ", &text[..]].concat(), &text, text.len() > 9, &mut out).unwrap();
        mask_audit(&[b"AUDIT: ", &text[..]].concat(), &statement, &mut out).unwrap();
        mask_job(&[b"cron job 1", &text[..]].concat(), &mut out).unwrap();
    }
}

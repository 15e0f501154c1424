-- Contexts in one form, values of any type in one text form, and contexts that are enforced when a row is written.
\getenv tests PG_ABS_SRCDIR
\set ECHO none
\i :tests/include/begin.sql
\set ECHO all
SET client_encoding = 'UTF8';

SELECT fieldcrypt.context('patients.ssn', 17), fieldcrypt.context('a/b%', 'c/d', '', true), fieldcrypt.context('t', 1.50, 100::numeric, 'x '::char(4));
SET DateStyle = 'SQL, DMY';
SET TimeZone = 'Asia/Kolkata';
SELECT fieldcrypt.context('t', make_date(2001, 3, 4), make_timestamp(2001, 3, 4, 5, 6, 7), make_timestamptz(2001, 3, 4, 5, 6, 7.5, 'UTC'), 'infinity'::date);
CREATE TABLE kept AS SELECT fieldcrypt.encrypt_field_as(make_date(2001, 3, 4)) AS born, fieldcrypt.encrypt_field_as(make_timestamptz(2001, 3, 4, 5, 6, 7, 'UTC')) AS seen,
    fieldcrypt.encrypt_field(make_date(2001, 3, 4)::text) AS by_hand;
RESET DateStyle;
RESET TimeZone;
SELECT fieldcrypt.decrypt_field(born), fieldcrypt.decrypt_field(seen), fieldcrypt.decrypt_field(by_hand),
       fieldcrypt.decrypt_field_as(born, NULL::date) = make_date(2001, 3, 4) AS same FROM kept;
SELECT what, e.code, e.message, e.hint FROM (VALUES
    ('a date in its own style', 'SELECT fieldcrypt.decrypt_field_as(by_hand, NULL::date) FROM kept'),
    ('a float', 'SELECT fieldcrypt.context(''t'', 1.0::float8)'),
    ('NULL', 'SELECT fieldcrypt.context(''t'', NULL)'),
    ('no name', 'SELECT fieldcrypt.context('''', 1)'),
    ('an array for the parts', 'SELECT fieldcrypt.context(VARIADIC ARRAY[''t'', ''1''])'),
    ('encrypted twice', 'SELECT fieldcrypt.encrypt_field(fieldcrypt.ciphertext_text(born)) FROM kept')) AS v (what, statement), test.error(statement) AS e;

CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted);
SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => $$fieldcrypt.context('patients.ssn', id)$$, enforce => true);
INSERT INTO patients VALUES (1, fieldcrypt.encrypt_field('one', fieldcrypt.context('patients.ssn', 1)));
SELECT what, e.code, e.message FROM (VALUES
    ('another row', 'INSERT INTO patients SELECT 2, ssn FROM patients'),
    ('an upsert', 'INSERT INTO patients VALUES (1, fieldcrypt.encrypt_field(''x'', fieldcrypt.context(''patients.ssn'', 2))) ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn'),
    ('another key', 'UPDATE patients SET id = 2'),
    ('volatile', 'SELECT fieldcrypt.set_column_context(''patients'', ''ssn'', expression => ''random()::text'')'),
    ('the time', 'SELECT fieldcrypt.set_column_context(''patients'', ''ssn'', expression => ''now()::text'')'),
    ('no context', 'SELECT fieldcrypt.set_column_context(''patients'', ''ssn'', enforce => true)'),
    ('the wrong context', 'SELECT fieldcrypt.rebind_field(ssn, ''x'', ''y'') FROM patients')) AS v (what, statement), test.error(statement) AS e;
UPDATE patients SET id = 2, ssn = fieldcrypt.rebind_field(ssn, fieldcrypt.context('patients.ssn', id), fieldcrypt.context('patients.ssn', 2));
SELECT id, fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id)) FROM patients;
CALL fieldcrypt.verify_values('patients');
SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => $$fieldcrypt.context('patients.ssn', id)$$);
UPDATE patients SET id = 3;
CALL fieldcrypt.verify_values('patients');
SELECT table_name, column_name, row_key, error_code FROM fieldcrypt.value_failures;
SELECT table_name, column_name, expression, enforced FROM fieldcrypt.column_contexts;

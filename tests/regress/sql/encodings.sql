-- Databases in other encodings: plaintexts, contexts and tenants are UTF-8 inside, whatever is outside.
\set ECHO all
\set VERBOSITY terse
SET client_encoding = 'UTF8';
SET client_min_messages = warning;
DROP DATABASE IF EXISTS regression_latin1;
DROP DATABASE IF EXISTS regression_ascii;
CREATE DATABASE regression_latin1 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0;
CREATE DATABASE regression_ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0;

\c regression_latin1
SET client_encoding = 'UTF8';
CREATE EXTENSION pg_fieldcrypt;
SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('Zoë', 'é', 'Müller'), 'é') AS latin1,
       fieldcrypt.decrypt_field_bytea(fieldcrypt.encrypt_field('é')) AS is_utf8_inside,
       fieldcrypt.decrypt_field_jsonb(fieldcrypt.encrypt_field_jsonb('{"é": "ë"}')) AS json;
SELECT tenant FROM fieldcrypt.encryption_keys WHERE tenant <> 'default';
SELECT fieldcrypt.create_key('Müller') = key_id AS is_same FROM fieldcrypt.encryption_keys WHERE tenant = 'Müller';
-- What LATIN1 can't show is an error; the bytes can be had.
CREATE TABLE t AS SELECT fieldcrypt.encrypt_field_bytea('\xe6bca2') AS v;
\set VERBOSITY default
SELECT fieldcrypt.decrypt_field(v) FROM t;
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY terse
SELECT fieldcrypt.decrypt_field_as(v, NULL::varchar) FROM t;
\echo :LAST_ERROR_SQLSTATE
SELECT fieldcrypt.decrypt_field_bytea(v) FROM t;
CREATE TABLE "Zoë" ("é" text PRIMARY KEY, "ü" fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('"Zoë"');
INSERT INTO "Zoë" VALUES ('ñ', fieldcrypt.encrypt_field('x'));
SELECT event, table_name, row_key, changed_columns FROM fieldcrypt.audit_log WHERE event LIKE 'row%';
CALL fieldcrypt.rotate_keys('Müller', 'weil jährlich');
CALL fieldcrypt.rotate_keys('Zoë');
SELECT event, tenant, reason FROM fieldcrypt.audit_log WHERE tenant <> 'default' ORDER BY id;

-- SQL_ASCII knows no encoding: UTF-8 passes, the rest is refused.
\c regression_ascii
SET client_encoding = 'SQL_ASCII';
CREATE EXTENSION pg_fieldcrypt;
SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('Zoë', 'é', 'Müller'), 'é') AS utf8;
\set VERBOSITY default
SELECT fieldcrypt.encrypt_field(E'\xe9');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY terse
SELECT fieldcrypt.encrypt_field('x', E'\xe9');
\echo :LAST_ERROR_SQLSTATE
SELECT fieldcrypt.encrypt_field('x', tenant => E'\xe9');
\echo :LAST_ERROR_SQLSTATE
SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field_bytea(E'\\xe9'));
\echo :LAST_ERROR_SQLSTATE
SELECT fieldcrypt.decrypt_field_bytea(fieldcrypt.encrypt_field_bytea(E'\\xe9'));

\c regression
DROP DATABASE regression_latin1;
DROP DATABASE regression_ascii;

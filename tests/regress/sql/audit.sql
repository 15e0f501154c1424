-- The audit log, and audit_table: which row and which encrypted columns, never a value.
\getenv tests PG_ABS_SRCDIR
\set ECHO none
\i :tests/include/begin.sql
\set ECHO all

SELECT attname, format_type(atttypid, atttypmod) AS type, attnotnull FROM pg_attribute
 WHERE attrelid = 'fieldcrypt.audit_log'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum;

CREATE FUNCTION c() RETURNS fieldcrypt.encrypted LANGUAGE sql AS $$ SELECT fieldcrypt.encrypt_field('canary') $$;
CREATE VIEW changes AS
SELECT event, table_name, partition_name, row_key, changed_columns FROM test.new_log() WHERE event !~ '^key_';

-- Who, when, from where.
SET application_name = 'the test';
CREATE ROLE fieldcrypt_regress_auditee;
CREATE TABLE one (id int PRIMARY KEY, name text, ssn fieldcrypt.encrypted, dob fieldcrypt.encrypted);
GRANT ALL ON one TO fieldcrypt_regress_auditee;
SELECT fieldcrypt.audit_table('one');
SELECT fieldcrypt.create_key() IS NOT NULL AS key;
BEGIN;
SET ROLE fieldcrypt_regress_auditee;
INSERT INTO one VALUES (1, 'Ada');
RESET ROLE;
SELECT event, at BETWEEN now() AND clock_timestamp() AS is_now, actor = session_user AS is_actor, role, client_address IS NULL AS is_local,
       application, backend_pid = pg_backend_pid() AS is_pid, transaction_id = pg_current_xact_id() AS is_transaction,
       tenant, key_id IS NOT NULL AS has_key, reason
  FROM test.new_log() WHERE event IN ('key_created', 'row_inserted');
COMMIT;
DROP OWNED BY fieldcrypt_regress_auditee;
DROP ROLE fieldcrypt_regress_auditee;
RESET application_name;

-- Each statement, each row. An encrypted column changed if its bytes did.
INSERT INTO one VALUES (2, 'Grace', c(), c()), (3, 'Alan', c(), NULL);
TABLE changes;
UPDATE one SET name = upper(name);
TABLE changes;
UPDATE one SET ssn = c() WHERE id IN (1, 2);
UPDATE one SET ssn = ssn, dob = NULL WHERE id = 2;
UPDATE one SET ssn = c(), dob = c() WHERE id = 3;
UPDATE one SET ssn = c() WHERE false;
TABLE changes;
INSERT INTO one VALUES (2, 'again') ON CONFLICT (id) DO UPDATE SET ssn = c();
INSERT INTO one VALUES (2, 'again') ON CONFLICT DO NOTHING;
MERGE INTO one USING (VALUES (1), (4)) AS s (id) ON one.id = s.id
 WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'merged', c());
DELETE FROM one WHERE id = 3;
TABLE changes;
COPY one (id, name) FROM STDIN;
5	copied
6	copied
\.
TRUNCATE one;
TABLE changes;
BEGIN;
INSERT INTO one VALUES (7, 'rolled back', c());
ROLLBACK;
TABLE changes;

-- Twice is harmless; unaudit_table ends it, and is harmless too.
SELECT fieldcrypt.audit_table('one');
SELECT tgname FROM pg_trigger WHERE tgrelid = 'one'::regclass ORDER BY 1;
INSERT INTO one VALUES (8);
TABLE changes;
SELECT fieldcrypt.unaudit_table('one');
SELECT fieldcrypt.unaudit_table('one');
INSERT INTO one VALUES (9);
TABLE changes;
SELECT count(*) AS triggers FROM pg_trigger WHERE tgrelid = 'one'::regclass;

-- Columns as they are when the row changes: renamed, dropped, added, of a domain, generated.
CREATE DOMAIN secret AS fieldcrypt.encrypted;
CREATE TABLE shifting (a fieldcrypt.encrypted, gone text, number int PRIMARY KEY, b fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('shifting');
INSERT INTO shifting VALUES (c(), 'x', 1, c());
ALTER TABLE shifting DROP gone;
INSERT INTO shifting VALUES (c(), 2, NULL);
ALTER TABLE shifting RENAME a TO "Renamed, ""a""";
ALTER TABLE shifting RENAME number TO "the Key";
ALTER TABLE shifting ADD added fieldcrypt.encrypted DEFAULT c(), ADD with_domain secret,
    ADD plain int GENERATED ALWAYS AS ("the Key" * 2) STORED, ADD array_of fieldcrypt.encrypted[];
UPDATE shifting SET "Renamed, ""a""" = c(), added = c(), with_domain = c() WHERE "the Key" = 1;
ALTER TABLE shifting DROP b;
ALTER TABLE shifting RENAME TO "Shifted";
UPDATE "Shifted" SET with_domain = c();
UPDATE "Shifted" SET array_of = ARRAY[c()] WHERE "the Key" = 1;
ALTER TABLE "Shifted" ALTER added DROP DEFAULT, ALTER added TYPE bytea USING added::bytea;
UPDATE "Shifted" SET added = '\x00' WHERE "the Key" = 1;
ALTER TABLE "Shifted" DROP CONSTRAINT shifting_pkey;
DELETE FROM "Shifted" WHERE "the Key" = 1;
TABLE changes;
SELECT fieldcrypt.unaudit_table('"Shifted"');

-- Primary keys of every kind, as JSON: integers as numbers, the rest as text.
CREATE TABLE key_composite (a bigint, v fieldcrypt.encrypted, b text, c date, PRIMARY KEY (c, a, b));
CREATE TABLE key_text (id text PRIMARY KEY, v fieldcrypt.encrypted);
CREATE TABLE key_uuid (id uuid PRIMARY KEY, v fieldcrypt.encrypted);
CREATE TABLE key_numeric (id numeric PRIMARY KEY, v fieldcrypt.encrypted);
CREATE TABLE key_time (id timestamptz PRIMARY KEY, v fieldcrypt.encrypted);
CREATE TABLE key_bytes (id bytea PRIMARY KEY, v fieldcrypt.encrypted);
CREATE TABLE key_none (id int, v fieldcrypt.encrypted);
CREATE TABLE key_unique (id int UNIQUE NOT NULL, v fieldcrypt.encrypted);
CREATE TABLE key_deferred (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v fieldcrypt.encrypted);
SELECT count(fieldcrypt.audit_table(name::regclass)::text) FROM unnest('{key_composite,key_text,key_uuid,key_numeric,key_time,key_bytes,key_none,key_unique,key_deferred}'::text[]) AS name;
INSERT INTO key_composite VALUES (9223372036854775807, c(), 'x "y" \ é', '2026-01-31');
INSERT INTO key_text VALUES ('a "quoted" \ text, 漢', c()), ('', NULL);
INSERT INTO key_uuid VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', c());
INSERT INTO key_numeric VALUES (1.50, c()), ('NaN', NULL), (12345678901234567890, NULL);
INSERT INTO key_bytes VALUES ('\x00ff', c());
INSERT INTO key_none VALUES (1, c());
UPDATE key_none SET v = c();
INSERT INTO key_unique VALUES (1, c());
INSERT INTO key_deferred VALUES (1, c());
TABLE changes;
INSERT INTO key_time VALUES ('2026-01-31 12:00:00+00', c());
-- A row has one key, whatever the settings of the session that changes it.
SET datestyle = 'German';
SET timezone = 'Asia/Tokyo';
SET bytea_output = 'escape';
UPDATE key_composite SET v = c();
UPDATE key_time SET v = c();
UPDATE key_bytes SET v = c();
RESET datestyle;
RESET timezone;
RESET bytea_output;
SELECT table_name, count(DISTINCT row_key) AS keys, count(*) AS entries FROM fieldcrypt.audit_log
 WHERE table_name IN ('public.key_composite', 'public.key_time', 'public.key_bytes') AND event LIKE 'row%' GROUP BY table_name ORDER BY 1;
SELECT count(*) > 0 AS some FROM changes;
-- A row whose key changes can be followed: the log names the old key and the new one.
INSERT INTO key_text VALUES ('the old key');
SELECT count(*) FROM test.new_log();
UPDATE key_text SET id = 'the new key' WHERE id = 'the old key';
SELECT count(*) > 0 AS is_recorded, bool_or(l::text LIKE '%the old key%') AS names_old_key, bool_or(l::text LIKE '%the new key%') AS names_new_key
  FROM test.new_log() AS l;

-- Partitions, on any level: the table at the top is named, and the partition that has the row.
CREATE TABLE whole (id int, region text, v fieldcrypt.encrypted, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE whole_eu PARTITION OF whole FOR VALUES IN ('eu') PARTITION BY RANGE (id);
CREATE TABLE whole_eu_low PARTITION OF whole_eu FOR VALUES FROM (0) TO (100);
CREATE TABLE whole_us PARTITION OF whole FOR VALUES IN ('us');
SELECT fieldcrypt.audit_table('whole_eu_low');
INSERT INTO whole VALUES (1, 'eu', c()), (1, 'us', c());
TABLE changes;
-- A partition audited first, then the whole: one trigger, one entry.
SELECT fieldcrypt.audit_table('whole');
SELECT fieldcrypt.audit_table('whole');
INSERT INTO whole VALUES (2, 'eu', c()), (2, 'us', c());
UPDATE whole SET v = c() WHERE id = 2;
UPDATE whole SET id = 3, region = 'us' WHERE id = 2 AND region = 'eu';
DELETE FROM whole_us WHERE id = 3;
TABLE changes;
CREATE TABLE whole_eu_high PARTITION OF whole_eu FOR VALUES FROM (100) TO (200);
CREATE TABLE joining (region text NOT NULL, id int NOT NULL, v fieldcrypt.encrypted);
ALTER TABLE whole ATTACH PARTITION joining FOR VALUES IN ('uk');
INSERT INTO whole VALUES (150, 'eu', c()), (9, 'uk', c());
TABLE changes;
-- Partitions made later are emptied on the record once audit_table has seen them.
SELECT fieldcrypt.audit_table('whole');
TRUNCATE whole_eu_high;
TRUNCATE whole_eu;
TRUNCATE whole;
TABLE changes;
SELECT fieldcrypt.unaudit_table('whole');
SELECT count(*) AS triggers FROM pg_trigger AS t JOIN pg_partition_tree('whole') AS p ON p.relid = t.tgrelid WHERE tgname LIKE 'fieldcrypt%';
INSERT INTO whole VALUES (11, 'eu', c());
TABLE changes;

-- Inheritance, foreign keys that cascade, writable views, triggers of the user's, PL/pgSQL.
CREATE TABLE parent (id int PRIMARY KEY, v fieldcrypt.encrypted);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE, v fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('parent'), fieldcrypt.audit_table('child');
CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := c(); RETURN NEW; END $$;
CREATE TRIGGER fill BEFORE INSERT ON child FOR EACH ROW EXECUTE FUNCTION fill();
CREATE VIEW parents AS SELECT id, v FROM parent;
INSERT INTO parents VALUES (1, c());
INSERT INTO child VALUES (10, 1), (11, 1);
UPDATE parent SET v = NULL;
DELETE FROM parents;
TRUNCATE parent CASCADE;
TABLE changes;

-- Tables of other schemas, with odd names; a hostile search_path when the trigger fires.
CREATE SCHEMA "Odd; schema";
CREATE TABLE "Odd; schema"."a ""b"" 'c' $$ é" ("Id ""x""" int PRIMARY KEY, "v ""y""" fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('"Odd; schema"."a ""b"" ''c'' $$ é"');
CREATE SCHEMA evil;
CREATE TABLE evil.audit_log (LIKE fieldcrypt.audit_log);
CREATE FUNCTION evil.jsonb_array_elements_text(jsonb) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the attacker''s function ran'; END $$;
CREATE FUNCTION evil.nextval(regclass) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the attacker''s function ran'; END $$;
SET search_path = evil, pg_catalog;
INSERT INTO "Odd; schema"."a ""b"" 'c' $$ é" VALUES (1, public.c());
UPDATE "Odd; schema"."a ""b"" 'c' $$ é" SET "v ""y""" = public.c();
TRUNCATE "Odd; schema"."a ""b"" 'c' $$ é";
RESET search_path;
TABLE changes;
SELECT count(*) FROM evil.audit_log;
SELECT fieldcrypt.unaudit_table('"Odd; schema"."a ""b"" ''c'' $$ é"');
TABLE changes;
CREATE TEMP TABLE passing (id int PRIMARY KEY, v fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('passing');
INSERT INTO passing VALUES (1, c());
SELECT event, regexp_replace(table_name, 'pg_temp_\d+', 'pg_temp') AS table_name, row_key, changed_columns FROM changes;

-- What can't be audited.
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
SELECT call, e.code, e.message FROM (VALUES
    ('audit_table(''parents'')'), ('audit_table(''test.log_read'')'), ('audit_table(''parent_pkey'')'), ('audit_table(NULL)'),
    ('audit_table(''missing'')'), ('audit_table(''fieldcrypt.encryption_keys'')'),
    ('audit_table(''fieldcrypt.audit_log'')'), ('audit_table(''pg_class'')'), ('unaudit_table(NULL)'), ('unaudit_table(''missing'')'),
    ('unaudit_table(''parents'')'), ('audit_table(''unlogged'')')) AS v (call), test.error('SELECT fieldcrypt.' || call) AS e;
SELECT count(*) AS triggers_of_the_extension_changed FROM pg_trigger
 WHERE tgrelid = 'fieldcrypt.audit_log'::regclass AND tgname LIKE 'fieldcrypt%';

-- Append-only, for superusers too.
SELECT statement, e.code, e.message FROM (VALUES
    ('UPDATE fieldcrypt.audit_log SET actor = ''somebody else'''),
    ('UPDATE fieldcrypt.audit_log SET at = at + interval ''1 year'' WHERE event = ''key_created'''),
    ('DELETE FROM fieldcrypt.audit_log'),
    ('DELETE FROM fieldcrypt.audit_log WHERE event = ''key_created'''),
    ('TRUNCATE fieldcrypt.audit_log'),
    ('TRUNCATE fieldcrypt_internal.audit_log_default'),
    ('TRUNCATE fieldcrypt_internal.audit_log_2030'),
    ('INSERT INTO fieldcrypt.audit_log (event) VALUES (''forged'')'),
    ('COPY fieldcrypt.audit_log FROM ''/dev/null'''),
    ('MERGE INTO fieldcrypt.audit_log AS l USING one ON true WHEN MATCHED THEN DELETE')) AS v (statement), test.error(statement) AS e;
SELECT count(*) AS forged FROM fieldcrypt.audit_log WHERE event = 'forged';

-- Never a value, and never a ciphertext.
SELECT count(*) > 50 AS has_rows, count(*) FILTER (WHERE l::text ~ 'canary|fc1:') AS with_value FROM fieldcrypt.audit_log AS l;
SELECT count(DISTINCT id) = count(*) AS ids_differ, bool_and(tableoid::regclass::text = 'fieldcrypt_internal.audit_log_' || extract(year FROM at AT TIME ZONE 'UTC')) AS in_its_year
  FROM fieldcrypt.audit_log;

-- encrypt_field, decrypt_field and their siblings: what is encrypted comes back, with its context,
-- to its tenant, as any type.
\getenv tests PG_ABS_SRCDIR
\set ECHO none
\i :tests/include/begin.sql
\set ECHO all
SET client_encoding = 'UTF8';

-- Text. The empty string is a value.
SELECT what, fieldcrypt.decrypt_field(fieldcrypt.encrypt_field(plain)) = plain AS comes_back,
       octet_length(fieldcrypt.encrypt_field(plain)::bytea) - octet_length(plain) AS overhead
  FROM (VALUES
    ('a number', '123-45-6789'), ('empty', ''), ('a space', ' '), ('quotes', '''"\'), ('lines', E'a\r\nb\tc'),
    ('control characters', E'\x01\x1f\x7f'), ('umlauts', 'Zoë Müller'), ('right to left', 'שלום'),
    ('emoji', '👩‍⚕️'), ('combining', E'e\u0301'), ('composed', 'é'), ('beyond the base plane', '𝔘𝔫𝔦'),
    ('own text form', 'fc1:AAAA'), ('1 kB', repeat('x', 1024)), ('1 MB', repeat('0123456789abcdef', 65536)),
    ('1 MB of letters of 3 bytes', repeat('漢', 349525))) AS v (what, plain);

-- Bytes.
SELECT what, fieldcrypt.decrypt_field_bytea(fieldcrypt.encrypt_field_bytea(plain)) = plain AS comes_back
  FROM (VALUES ('empty', ''::bytea), ('a NUL', '\x00'), ('no text', '\xff00fe80'),
               ('1 MB', decode(repeat('00ff', 524288), 'hex'))) AS v (what, plain);

-- JSON.
SELECT plain, fieldcrypt.decrypt_field_jsonb(fieldcrypt.encrypt_field_jsonb(plain)) = plain AS comes_back
  FROM (VALUES ('{}'::jsonb), ('null'), ('[]'), ('0'), ('"text"'), ('{"a": [1, 2.50, {"b": null}], "é": "\u00e9"}')) AS v (plain);
SELECT fieldcrypt.decrypt_field_jsonb(fieldcrypt.encrypt_field_jsonb(jsonb_build_object('long', repeat('x', 1048576))))
       = jsonb_build_object('long', repeat('x', 1048576)) AS one_megabyte;

-- What was encrypted one way can be read another: text is UTF-8, JSON is its text.
SELECT fieldcrypt.decrypt_field_bytea(fieldcrypt.encrypt_field('é')) AS text_as_bytes,
       fieldcrypt.decrypt_field(fieldcrypt.encrypt_field_bytea('\xc3a9')) AS bytes_as_text,
       fieldcrypt.decrypt_field(fieldcrypt.encrypt_field_jsonb('{"b": 1,  "a": 2}')) AS json_as_text,
       fieldcrypt.decrypt_field_jsonb(fieldcrypt.encrypt_field('[1,2]')) AS text_as_json;

-- Any type, named by a NULL of it.
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TYPE pair AS (a int, b text);
SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('1815-12-10'), NULL::date) AS date,
       fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('42'), NULL::int) + 1 AS int,
       fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('1.50'), NULL::numeric) AS numeric,
       fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('t'), NULL::boolean) AS boolean,
       fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'), NULL::uuid) AS uuid,
       fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('{1,NULL,3}'), NULL::int[]) AS array;
SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('7'), NULL::positive) AS domain,
       fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('happy'), NULL::mood) AS enum,
       (fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('(1,"x y")'), NULL::pair)).b AS composite,
       fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('{"a": 1}'), NULL::jsonb) AS jsonb,
       fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('1', 'c'), 0, 'c') AS not_a_null,
       pg_typeof(fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('7'), NULL::positive)) AS type;
-- What does not convert is an error that does not tell the value.
SELECT type, e.code, e.message
  FROM (VALUES ('int'), ('date'), ('numeric'), ('uuid'), ('boolean'), ('jsonb'), ('positive'), ('mood'), ('pair'),
               ('int[]'), ('bytea'), ('regclass'), ('xml'), ('fieldcrypt.encrypted')) AS v (type),
       test.error(format('SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field(''\canary <'', %L), NULL::%s, %1$L)', 'c', type)) AS e;
SELECT e.code, e.message FROM test.error('SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field(''-1''), NULL::positive)') AS e;
SELECT e.code, e.message FROM test.error('SELECT fieldcrypt.decrypt_field_jsonb(fieldcrypt.encrypt_field(''{"canary'')) ') AS e;
SELECT e.code, e.message FROM test.error('SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field(''1''), NULL)') AS e;

-- NULL: a NULL value gives NULL; a context or tenant that may be left out must not be NULL.
SELECT fieldcrypt.encrypt_field(NULL) IS NULL AS encrypt, fieldcrypt.encrypt_field_bytea(NULL) IS NULL AS encrypt_bytea,
       fieldcrypt.encrypt_field_jsonb(NULL) IS NULL AS encrypt_jsonb, fieldcrypt.decrypt_field(NULL) IS NULL AS decrypt,
       fieldcrypt.decrypt_field_bytea(NULL) IS NULL AS decrypt_bytea, fieldcrypt.decrypt_field_jsonb(NULL) IS NULL AS decrypt_jsonb,
       fieldcrypt.decrypt_field_as(NULL, NULL::int) IS NULL AS decrypt_as, fieldcrypt.try_decrypt_field(NULL) IS NULL AS try_decrypt,
       fieldcrypt.reencrypt_field(NULL) IS NULL AS reencrypt, fieldcrypt.key_id(NULL) IS NULL AS key_id,
       fieldcrypt.ciphertext_info(NULL) IS NULL AS info;
CREATE TABLE sample AS SELECT fieldcrypt.encrypt_field('x') AS v;
SELECT call, e.code, e.message FROM (VALUES
    ('encrypt_field(''x'', NULL)'), ('encrypt_field(''x'', tenant => NULL)'), ('encrypt_field_bytea(''x'', NULL)'),
    ('encrypt_field_bytea(''x'', tenant => NULL)'), ('encrypt_field_jsonb(''1'', NULL)'),
    ('encrypt_field_jsonb(''1'', tenant => NULL)'), ('decrypt_field(v, NULL)'), ('decrypt_field_bytea(v, NULL)'),
    ('decrypt_field_jsonb(v, NULL)'), ('decrypt_field_as(v, NULL::text, NULL)'), ('try_decrypt_field(v, NULL)'),
    ('reencrypt_field(v, NULL)'), ('create_key(NULL)')) AS c (call),
    test.error(format('SELECT fieldcrypt.%s FROM sample', call)) AS e;

-- Context: a value opens with the one it was given, and no other.
CREATE TABLE bound AS
SELECT sealed, fieldcrypt.encrypt_field('secret', sealed) AS v
  FROM unnest(ARRAY['', 'patients.ssn/1', 'Patients.ssn/1', 'patients.ssn/1 ', 'patients.ssn/12', 'é', E'e\u0301', repeat('c', 100000)]) AS sealed;
SELECT left(b.sealed, 20) AS sealed,
       string_agg(test.outcome(format('SELECT fieldcrypt.decrypt_field(%L, %L)', b.v, opened.sealed)), ' ' ORDER BY opened.number) AS opened
  FROM (SELECT *, row_number() OVER () AS number FROM bound) AS b,
       (SELECT sealed, row_number() OVER () AS number FROM bound) AS opened
 GROUP BY b.number, b.sealed ORDER BY b.number;
SELECT call, test.outcome(format('SELECT fieldcrypt.%s FROM bound WHERE sealed = ''patients.ssn/1''', call)) AS outcome FROM (VALUES
    ('decrypt_field(v, ''patients.ssn/1'')'), ('decrypt_field(v)'), ('decrypt_field(v, '''')'),
    ('decrypt_field_bytea(v)'), ('decrypt_field_jsonb(v)'), ('decrypt_field_as(v, NULL::text)'),
    ('decrypt_field_as(v, NULL::text, ''patients.ssn/2'')'), ('reencrypt_field(v)'), ('reencrypt_field(v, ''patients.ssn/2'')')) AS c (call);
SELECT fieldcrypt.try_decrypt_field(v, 'patients.ssn/1') AS right, fieldcrypt.try_decrypt_field(v) AS wrong
  FROM bound WHERE sealed = 'patients.ssn/1';

-- Tenant: the call's, else the session's, else `default`. The key knows whose it is.
CREATE FUNCTION tenant_of(key_id bigint) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT tenant FROM fieldcrypt.encryption_keys AS k WHERE k.key_id = $1
$$;
SHOW fieldcrypt.tenant;
SELECT tenant_of(fieldcrypt.key_id(fieldcrypt.encrypt_field('x'))) AS none,
       tenant_of(fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => ''))) AS empty,
       tenant_of(fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => 'acme'))) AS named,
       tenant_of(fieldcrypt.create_key()) AS created;
SET fieldcrypt.tenant = 'umbrella';
SELECT tenant_of(fieldcrypt.key_id(fieldcrypt.encrypt_field('x'))) AS none,
       tenant_of(fieldcrypt.key_id(fieldcrypt.encrypt_field_bytea('x', tenant => ''))) AS empty,
       tenant_of(fieldcrypt.key_id(fieldcrypt.encrypt_field_jsonb('1', tenant => 'umbrella'))) AS named,
       tenant_of(fieldcrypt.create_key()) AS created, tenant_of(fieldcrypt.create_key('acme')) AS created_for_another;
SELECT call, e.code, e.message FROM (VALUES
    ('encrypt_field(''x'', tenant => ''acme'')'), ('encrypt_field_bytea(''x'', ''c'', ''UMBRELLA'')'), ('encrypt_field_jsonb(''1'', tenant => ''default'')')) AS c (call),
    test.error('SELECT fieldcrypt.' || call) AS e;
RESET fieldcrypt.tenant;
CREATE TABLE owned AS
SELECT tenant, fieldcrypt.encrypt_field('secret of ' || tenant, tenant => tenant) AS v
  FROM unnest(ARRAY['default', 'acme', 'umbrella', 'ACME', 'ac me', 'Zoë''s "shop"; --', repeat('t', 1024)]) AS tenant;
-- A session with a tenant reads that tenant's values only; one without reads all.
CREATE FUNCTION readable_as(session text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('fieldcrypt.tenant', session, true);
    RETURN QUERY SELECT tenant FROM owned WHERE test.outcome(format('SELECT fieldcrypt.decrypt_field(%L)', v)) = '00000';
END
$$;
SELECT left(session, 20) AS session, count(r) AS readable, bool_and(r = session) AS is_own
  FROM (SELECT tenant AS session FROM owned UNION ALL VALUES (''), ('nobody')) AS s
  LEFT JOIN LATERAL readable_as(session) AS r ON true
 GROUP BY session ORDER BY session COLLATE "C";
SET fieldcrypt.tenant = 'umbrella';
SELECT call, e.code, e.message FROM (VALUES
    ('decrypt_field(v)'), ('decrypt_field_bytea(v)'), ('decrypt_field_jsonb(v)'), ('decrypt_field_as(v, NULL::text)'),
    ('try_decrypt_field(v)'), ('reencrypt_field(v)'), ('key_id(v)')) AS c (call),
    test.error(format('SELECT fieldcrypt.%s FROM owned WHERE tenant = ''acme''', call)) AS e;
RESET fieldcrypt.tenant;

-- Named arguments, in any order.
SELECT fieldcrypt.decrypt_field(context => 'c', value => fieldcrypt.encrypt_field(tenant => 'acme', context => 'c', value => 'named')) AS named;
SELECT fieldcrypt.decrypt_field_as(value => fieldcrypt.encrypt_field('1', 'c'), context => 'c', type => NULL::int) AS named;

-- Two encryptions of one value differ, in a statement and from one to the next.
SELECT count(DISTINCT v::bytea) AS different, count(DISTINCT (fieldcrypt.ciphertext_info(v)).nonce) AS nonces
  FROM (SELECT fieldcrypt.encrypt_field('same') AS v FROM generate_series(1, 1000) OFFSET 0) AS s;
PREPARE again AS SELECT fieldcrypt.encrypt_field('same') AS v;
CREATE TABLE first AS EXECUTE again;
CREATE TABLE second AS EXECUTE again;
CREATE TABLE third AS EXECUTE again;
SELECT count(*) AS different FROM (TABLE first UNION TABLE second UNION TABLE third) AS t;

-- What the header says.
SELECT format, algorithm, i.key_id = fieldcrypt.key_id(v) AS is_key_id, octet_length(nonce) AS nonce_bytes, plaintext_bytes
  FROM (VALUES (fieldcrypt.encrypt_field('')), (fieldcrypt.encrypt_field('123-45-6789'))) AS s (v),
       LATERAL fieldcrypt.ciphertext_info(v) AS i;

-- In tables: out of line, in views, cursors, PL/pgSQL, defaults; not where the plaintext would be stored.
CREATE TABLE patients (
    id int PRIMARY KEY,
    ssn fieldcrypt.encrypted DEFAULT fieldcrypt.encrypt_field('unknown', 'patients.ssn'),
    scan fieldcrypt.encrypted);
INSERT INTO patients (id) VALUES (1);
INSERT INTO patients VALUES (2, fieldcrypt.encrypt_field('123-45-6789', 'patients.ssn'),
    fieldcrypt.encrypt_field(repeat('scan', 262144), 'patients.scan'));
CREATE VIEW patients_plain AS
SELECT id, fieldcrypt.decrypt_field(ssn, 'patients.ssn') AS ssn, fieldcrypt.decrypt_field(scan, 'patients.scan') AS scan FROM patients;
SELECT id, ssn, length(scan) AS scan FROM patients_plain ORDER BY id;
SELECT id FROM patients_plain WHERE ssn LIKE '123%';
DO $$
DECLARE
    secret fieldcrypt.encrypted;
    row patients;
BEGIN
    secret := fieldcrypt.encrypt_field('in a variable');
    RAISE NOTICE '%', fieldcrypt.decrypt_field(secret);
    FOR row IN SELECT * FROM patients ORDER BY id LOOP
        RAISE NOTICE '%', fieldcrypt.decrypt_field(row.ssn, 'patients.ssn');
    END LOOP;
END
$$;
BEGIN;
DECLARE reader CURSOR FOR SELECT ssn FROM patients_plain ORDER BY id;
FETCH reader;
SAVEPOINT s;
SELECT fieldcrypt.decrypt_field(ssn) FROM patients;
ROLLBACK TO s;
FETCH reader;
COMMIT;
SELECT statement, e.code, e.message FROM (VALUES
    ('ALTER TABLE patients ADD g fieldcrypt.encrypted GENERATED ALWAYS AS (fieldcrypt.encrypt_field(''x'')) STORED'),
    ('ALTER TABLE patients ADD g text GENERATED ALWAYS AS (fieldcrypt.decrypt_field(ssn)) STORED'),
    ('CREATE INDEX ON patients (fieldcrypt.decrypt_field(ssn))'),
    ('CREATE INDEX ON patients (id) WHERE fieldcrypt.decrypt_field(ssn) > '''''),
    ('CREATE MATERIALIZED VIEW m AS SELECT fieldcrypt.decrypt_field(ssn, ''patients.ssn'') FROM patients'),
    ('CREATE MATERIALIZED VIEW m AS SELECT fieldcrypt.try_decrypt_field(ssn, ''patients.ssn'') FROM patients')) AS v (statement),
    test.error(statement) AS e;
CREATE STATISTICS on_plaintext ON (fieldcrypt.decrypt_field(ssn, 'patients.ssn')) FROM patients;
ANALYZE patients;
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) AS values_in_statistics FROM pg_stats_ext_exprs WHERE statistics_name = 'on_plaintext' AND most_common_vals IS NOT NULL;
CREATE MATERIALIZED VIEW ciphertexts AS SELECT id, ssn FROM patients;
SELECT id, fieldcrypt.decrypt_field(ssn, 'patients.ssn') FROM ciphertexts ORDER BY id;

-- Plans: an encryption happens once a row and statement, a decryption of one value may be shared.
SELECT p.proname, p.provolatile, p.proparallel, p.proleakproof
  FROM pg_proc AS p WHERE p.pronamespace = 'fieldcrypt'::regnamespace AND p.proname ~ 'crypt_field' ORDER BY 1;

-- Type `encrypted`: what goes in and out of it, what it can be turned into, how it compares.
\getenv tests PG_ABS_SRCDIR
\getenv output PG_ABS_BUILDDIR
\set ECHO none
\i :tests/include/begin.sql
\set ECHO all

SELECT typlen, typalign, typstorage, typcategory, typdelim, typnotnull
  FROM pg_type WHERE oid = 'fieldcrypt.encrypted'::regtype;

CREATE TABLE person (id int PRIMARY KEY, ssn fieldcrypt.encrypted);
INSERT INTO person SELECT n, fieldcrypt.encrypt_field('123-45-' || n) FROM generate_series(1, 5) AS n;
INSERT INTO person VALUES (6, NULL);
SELECT attstorage FROM pg_attribute WHERE attrelid = 'person'::regclass AND attname = 'ssn';

-- Text: fc1: and base64url without padding. What came out goes in again.
SELECT id, fieldcrypt.ciphertext_text(ssn) ~ '^fc1:[A-Za-z0-9_-]+$' AS is_base64url, length(fieldcrypt.ciphertext_text(ssn)) AS length,
       fieldcrypt.ciphertext_text(ssn)::fieldcrypt.encrypted OPERATOR(fieldcrypt.*=) ssn AS is_same_again,
       test.text_form(ssn::bytea) = fieldcrypt.ciphertext_text(ssn) AS is_text_of_bytes
  FROM person ORDER BY id;

-- Bytes: format, suite, key id, nonce, ciphertext, tag. Send and cast are the bytes.
SELECT id, octet_length(ssn::bytea) - length('123-45-1') AS overhead,
       substr(ssn::bytea, 1, 2) AS format_and_suite,
       ('x' || encode(substr(ssn::bytea, 3, 8), 'hex'))::bit(64)::bigint = fieldcrypt.key_id(ssn) AS has_key_id,
       fieldcrypt_internal.encrypted_send(ssn) = ssn::bytea AS sends_bytes,
       ssn::bytea::fieldcrypt.encrypted OPERATOR(fieldcrypt.*=) ssn AS is_same_again
  FROM person ORDER BY id LIMIT 1;

-- Nothing else goes in, as text or as bytes.
CREATE TABLE shape (what text, bytes bytea);
INSERT INTO shape
SELECT what, bytes FROM (SELECT ssn::bytea AS good FROM person WHERE id = 1) AS p, LATERAL (VALUES
    ('a value', good),
    ('nothing', ''),
    ('one byte', '\xf9'),
    ('header only', substr(good, 1, 10)),
    ('one byte short of the shortest', substr(good, 1, 41)),
    ('plaintext', convert_to('123-45-6789 123-45-6789 123-45-6789 123-45-6789', 'UTF8')),
    ('another format', set_byte(good, 0, 248)),
    ('suite 0', set_byte(good, 1, 0)),
    -- Where suite 1 has its random nonce, suite 2 has a form: one that there is not.
    ('suite 2', overlay(set_byte(good, 1, 2) PLACING decode(repeat('ff', 24), 'hex') FROM 11)),
    ('suite 4', set_byte(good, 1, 4)),
    ('suite 255', set_byte(good, 1, 255)),
    ('key id 0', overlay(good PLACING '\x0000000000000000' FROM 3)),
    ('key id negative', set_byte(good, 2, 255)),
    ('the shortest', substr(good, 1, 42))) AS v (what, bytes);
-- bytea has the same binary form, so what it writes can be read as an encrypted value.
\set binary_file :output '/results/type.bin'
SELECT set_config('test.file', :'binary_file', false) IS NOT NULL AS file_is_set;
CREATE TABLE received (v fieldcrypt.encrypted);
CREATE FUNCTION receive(bytes bytea) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('COPY (SELECT %L::bytea) TO %L (FORMAT binary)', bytes, current_setting('test.file'));
    EXECUTE format('COPY received FROM %L (FORMAT binary)', current_setting('test.file'));
END
$$;
SELECT what, from_text.code AS from_text, from_bytes.code AS from_bytes, from_binary.code AS from_binary,
       from_text.message
  FROM shape,
       test.error(format('SELECT %L::fieldcrypt.encrypted', test.text_form(bytes))) AS from_text,
       test.error(format('SELECT %L::bytea::fieldcrypt.encrypted', bytes)) AS from_bytes,
       test.error(format('SELECT receive(%L)', bytes)) AS from_binary;
SELECT count(*) FROM received;

SELECT what, e.code, e.message
  FROM (SELECT fieldcrypt.ciphertext_text(ssn) AS good FROM person WHERE id = 1) AS p, LATERAL (VALUES
    ('empty', ''),
    ('plaintext', '123-45-6789'),
    ('prefix only', 'fc1:'),
    ('no prefix', substr(good, 5)),
    ('prefix in capitals', upper(left(good, 4)) || substr(good, 5)),
    ('a later prefix', 'fc2:' || substr(good, 5)),
    ('padding', good || '='),
    ('a length that base64 never has', good || 'AA'),
    ('a space before', ' ' || good),
    ('a space after', good || ' '),
    ('a line break inside', overlay(good PLACING E'\n' FROM 20)),
    ('base64, not base64url', overlay(good PLACING '+/' FROM 20)),
    ('hex', encode(good::fieldcrypt.encrypted::bytea, 'hex')),
    ('bytea text', '\x' || encode(good::fieldcrypt.encrypted::bytea, 'hex')),
    ('unicode', overlay(good PLACING 'é' FROM 20))) AS v (what, input),
       test.error(format('SELECT %L::fieldcrypt.encrypted', input)) AS e;
-- Bits that base64 leaves over must be zero: a value has one text form only.
SELECT count(*) AS accepted
  FROM (SELECT test.text_form(substr(ssn::bytea, 1, 49)) AS good FROM person WHERE id = 1) AS p,
       regexp_split_to_table('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_', '') AS letter
 WHERE test.outcome(format('SELECT %L::fieldcrypt.encrypted', overlay(good PLACING letter FROM length(good)))) = '00000';
SELECT test.outcome('SELECT NULL::fieldcrypt.encrypted') AS null_is_null;

-- Casts: to and from bytea, when asked for; nothing happens by itself.
SELECT castsource::regtype, casttarget::regtype, castcontext, castmethod
  FROM pg_cast WHERE 'fieldcrypt.encrypted'::regtype IN (castsource, casttarget) ORDER BY 1, 2;
SELECT statement, e.code, e.message FROM (VALUES
    ('INSERT INTO person VALUES (7, ''123-45-6789'')'),
    ('INSERT INTO person VALUES (7, ''123-45-6789''::text)'),
    ('INSERT INTO person SELECT 7, string FROM (SELECT ''123-45-6789''::text AS string) AS s'),
    ('INSERT INTO person SELECT 7, fieldcrypt.ciphertext_text(ssn) FROM person WHERE id = 1'),
    ('INSERT INTO person SELECT 7, ssn::bytea FROM person WHERE id = 1'),
    ('UPDATE person SET ssn = ''123-45-6789''::varchar'),
    ('UPDATE person SET ssn = ''\xf901''::bytea'),
    ('UPDATE person SET ssn = 1'),
    ('ALTER TABLE person ADD plain fieldcrypt.encrypted DEFAULT ''123-45-6789'''),
    ('CREATE TABLE t (v bytea); INSERT INTO t SELECT ssn FROM person'),
    ('CREATE TABLE t (v text); ALTER TABLE t ALTER v TYPE fieldcrypt.encrypted'),
    ('CREATE TABLE t (v fieldcrypt.encrypted(10))')) AS v (statement), test.error(statement) AS e;
SELECT count(*), count(ssn) FROM person;

-- Ciphertexts do not compare as their plaintexts do. What takes operators of the usual names is refused; what sorts, sorts bytes.
SELECT statement, e.code, e.message FROM (VALUES
    ('SELECT ssn = ssn FROM person'),
    ('SELECT ssn <> ssn FROM person'),
    ('SELECT ssn < ssn FROM person'),
    ('SELECT * FROM person WHERE ssn = ''123-45-1'''),
    ('SELECT * FROM person WHERE ssn = ''123-45-1''::text'),
    ('SELECT * FROM person WHERE ssn LIKE ''123%'''),
    ('SELECT * FROM person WHERE ssn IN (SELECT ssn FROM person)'),
    ('SELECT * FROM person WHERE ssn = ANY (ARRAY(SELECT ssn FROM person))'),
    ('SELECT ssn IS DISTINCT FROM ssn FROM person'),
    ('SELECT nullif(ssn, ssn) FROM person'),
    ('SELECT * FROM person AS a JOIN person AS b USING (ssn)'),
    ('SELECT ssn FROM person ORDER BY ssn'),
    ('SELECT min(ssn) FROM person'),
    ('SELECT greatest(ssn, ssn) FROM person'),
    ('SELECT count(DISTINCT ssn) FROM person'),
    ('SELECT row_number() OVER (PARTITION BY ssn) FROM person'),
    ('SELECT row_number() OVER (ORDER BY ssn) FROM person'),
    ('CREATE INDEX ON person (ssn)'),
    ('CREATE UNIQUE INDEX ON person (ssn)'),
    ('CREATE INDEX ON person USING brin (ssn)'),
    ('CREATE TABLE t (v fieldcrypt.encrypted PRIMARY KEY)'),
    ('CREATE TABLE t (v fieldcrypt.encrypted) PARTITION BY RANGE (v)'),
    ('SELECT ARRAY[ssn] < ARRAY[ssn] FROM person'),
    ('SELECT ssn || ssn FROM person'),
    ('SELECT length(ssn) FROM person'),
    ('SELECT upper(ssn) FROM person')) AS v (statement), test.error(statement) AS e;

-- The byte image compares: two encryptions of one plaintext are not the same.
SELECT v OPERATOR(fieldcrypt.*=) v AS itself, v OPERATOR(fieldcrypt.*<>) v AS not_itself,
       v OPERATOR(fieldcrypt.*=) w AS another, v OPERATOR(fieldcrypt.*<>) w AS not_another,
       v OPERATOR(fieldcrypt.*=) NULL AS nothing
  FROM (SELECT fieldcrypt.encrypt_field('same') AS v, fieldcrypt.encrypt_field('same') AS w OFFSET 0) AS p;

-- What needs no more than that works.
CREATE TABLE twice AS SELECT id, ssn FROM person UNION ALL SELECT id + 10, ssn FROM person;
SELECT count(*) AS rows FROM twice;
SELECT count(*) AS distinct_rows FROM (SELECT DISTINCT ssn FROM twice) AS d;
SELECT count(*) AS groups, sum(members) AS members
  FROM (SELECT ssn, count(*) AS members FROM twice GROUP BY ssn) AS g;
SELECT count(*) AS union_rows FROM (SELECT ssn FROM person UNION SELECT ssn FROM twice) AS u;
SELECT count(*) AS common FROM (SELECT ssn FROM person INTERSECT SELECT ssn FROM twice) AS i;
SELECT count(*) AS missing FROM (SELECT ssn FROM person EXCEPT SELECT ssn FROM twice) AS e;
SET enable_nestloop = off;
SET enable_mergejoin = off;
EXPLAIN (COSTS OFF) SELECT * FROM person AS p JOIN twice AS t ON p.ssn OPERATOR(fieldcrypt.*=) t.ssn;
SELECT p.id, t.id FROM person AS p JOIN twice AS t ON p.ssn OPERATOR(fieldcrypt.*=) t.ssn ORDER BY 1, 2;
RESET enable_nestloop;
RESET enable_mergejoin;
CREATE INDEX person_bytes ON person USING hash (ssn);
SET enable_seqscan = off;
CREATE FUNCTION plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN (COSTS OFF) ' || query; END $$;
SELECT substring(line FROM 'Index Scan.*|Index Cond: .*OPERATOR\(fieldcrypt\.\*=\)') AS line
FROM plan($$SELECT id FROM person WHERE ssn OPERATOR(fieldcrypt.*=) (SELECT ssn FROM twice WHERE id = 13)$$) AS line WHERE line ~ 'Index';
DROP FUNCTION plan;
SELECT id FROM person WHERE ssn OPERATOR(fieldcrypt.*=) (SELECT ssn FROM twice WHERE id = 13);
RESET enable_seqscan;
DROP INDEX person_bytes;

-- Rows with an encrypted column compare, as triggers that ask "did anything change?" do.
CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE 'row %: changed %, by column %', NEW.id, OLD IS DISTINCT FROM NEW, OLD.* IS DISTINCT FROM NEW.*;
    RETURN NEW;
END
$$;
CREATE TRIGGER note_change BEFORE UPDATE ON person FOR EACH ROW EXECUTE FUNCTION note_change();
CREATE FUNCTION note_real_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE 'row %: really changed', NEW.id;
    RETURN NULL;
END
$$;
CREATE TRIGGER note_real_change AFTER UPDATE ON person FOR EACH ROW
    WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION note_real_change();
UPDATE person SET ssn = ssn WHERE id = 1;
UPDATE person SET ssn = fieldcrypt.encrypt_field('123-45-1') WHERE id = 1;
UPDATE person SET ssn = NULL WHERE id = 1;
UPDATE person SET ssn = NULL WHERE id = 1;
CREATE TRIGGER nothing_to_do BEFORE UPDATE ON person FOR EACH ROW
    EXECUTE FUNCTION suppress_redundant_updates_trigger();
DROP TABLE person, twice;

-- Arrays, domains, composites, and domains in composites in arrays.
CREATE DOMAIN secret AS fieldcrypt.encrypted CHECK (fieldcrypt.key_id(VALUE) > 0);
CREATE DOMAIN needed_secret AS fieldcrypt.encrypted NOT NULL;
CREATE TYPE card AS (label text, number secret);
CREATE TABLE wallet (id int, secrets fieldcrypt.encrypted[], one secret, needed needed_secret, card card, cards card[]);
INSERT INTO wallet
SELECT 1, ARRAY[v, NULL, w], v, w, ROW('visa', v)::card, ARRAY[ROW('visa', v)::card, ROW('none', NULL)::card]
  FROM (SELECT fieldcrypt.encrypt_field('first') AS v, fieldcrypt.encrypt_field('second') AS w OFFSET 0) AS p;
SELECT fieldcrypt.decrypt_field(secrets[1]) AS first, secrets[2] AS second, fieldcrypt.decrypt_field(secrets[3]) AS third,
       fieldcrypt.decrypt_field(one) AS domain, fieldcrypt.decrypt_field(needed) AS needed,
       fieldcrypt.decrypt_field((card).number) AS composite, fieldcrypt.decrypt_field(cards[1].number) AS composites
  FROM wallet;
SELECT secrets::text::fieldcrypt.encrypted[] = secrets AS array_again, card::text::card = card AS composite_again,
       cards::text::card[] = cards AS composites_again, secrets[1] OPERATOR(fieldcrypt.*=) (card).number AS same,
       array_position(secrets, secrets[3]) AS position
  FROM wallet;
SELECT count(*) FROM wallet, unnest(secrets) AS v WHERE v IS NOT NULL;
SELECT statement, e.code, e.message FROM (VALUES
    ('INSERT INTO wallet (secrets) VALUES (''{123-45-6789}'')'),
    ('INSERT INTO wallet (one) VALUES (''123-45-6789'')'),
    ('INSERT INTO wallet (card) VALUES (''(visa,4111)'')'),
    ('INSERT INTO wallet (secrets) VALUES (ARRAY[''plain''::text])'),
    ('INSERT INTO wallet (needed) VALUES (NULL)')) AS v (statement), test.error(statement) AS e;

-- JSON shows the text form.
SELECT jsonb_typeof(to_jsonb(one)) AS json_type, to_jsonb(one) ->> 0 IS NULL AS is_scalar,
       (to_jsonb(wallet) ->> 'one') = fieldcrypt.ciphertext_text(one) AS is_text_form FROM wallet;

-- COPY, in every format: the ciphertext, unchanged.
CREATE TABLE source AS
SELECT n AS id, fieldcrypt.encrypt_field(repeat('x', n * 100)) AS v FROM generate_series(0, 20) AS n
UNION ALL SELECT 21, NULL;
CREATE TABLE target (LIKE source);
\set text_file :output '/results/type.txt'
\set csv_file :output '/results/type.csv'
COPY source TO :'text_file';
COPY source TO :'csv_file' (FORMAT csv, HEADER, FORCE_QUOTE *);
COPY source TO :'binary_file' (FORMAT binary);
COPY target FROM :'text_file';
COPY target FROM :'csv_file' (FORMAT csv, HEADER);
COPY target FROM :'binary_file' (FORMAT binary);
SELECT count(*) AS rows, count(DISTINCT id) AS ids, count(DISTINCT v::bytea) AS values,
       bool_and(fieldcrypt.decrypt_field(v) = repeat('x', id * 100)) AS readable
  FROM target;
SELECT count(*) AS missing FROM (SELECT id, v FROM source EXCEPT SELECT id, v FROM target) AS e;
-- Plaintext in a file is refused.
CREATE TABLE refused (id int, v fieldcrypt.encrypted);
COPY refused FROM STDIN;
1	\N
2	123-45-6789
\.
SELECT count(*) FROM refused;

-- Maintenance leaves the values as they are.
ALTER TABLE source ADD PRIMARY KEY (id);
VACUUM FULL source;
CLUSTER source USING source_pkey;
ANALYZE source;
ALTER TABLE source ALTER v SET STORAGE EXTENDED;
ALTER TABLE source ALTER id TYPE bigint;
SELECT count(*) AS missing FROM (SELECT id, v FROM source EXCEPT SELECT id, v FROM target) AS e;
CREATE TABLE parts (id int, v fieldcrypt.encrypted) PARTITION BY HASH (v);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO parts SELECT id, v FROM source;
SELECT count(*) AS rows, bool_and(fieldcrypt.decrypt_field(v) = repeat('x', id * 100)) AS readable FROM parts;

-- A plaintext column becomes an encrypted one.
CREATE TABLE legacy (id int, ssn text);
INSERT INTO legacy VALUES (1, '123-45-6789'), (2, ''), (3, NULL);
ALTER TABLE legacy ALTER ssn TYPE fieldcrypt.encrypted USING fieldcrypt.encrypt_field(ssn, 'legacy.ssn/' || id);
SELECT id, fieldcrypt.decrypt_field(ssn, 'legacy.ssn/' || id) FROM legacy ORDER BY id;

-- As long as a column has the type, the extension stays.
DROP EXTENSION pg_fieldcrypt;
\echo :LAST_ERROR_SQLSTATE
DROP TYPE fieldcrypt.encrypted CASCADE;
\echo :LAST_ERROR_SQLSTATE

-- What is written as if a column held its plaintext: one error each, that says what to write, also over a table without rows
-- and where search_path is empty. And what goes on: output, JSON, sorting by bytes.
\getenv tests PG_ABS_SRCDIR
\set ECHO none
\i :tests/include/begin.sql
\set ECHO all

CREATE TABLE person (id int PRIMARY KEY, name text, code varchar(20), ssn fieldcrypt.encrypted, notes fieldcrypt.encrypted);
CREATE DOMAIN secret AS fieldcrypt.encrypted;
CREATE DOMAIN words AS text;
CREATE TABLE other (id int, ssn secret, many fieldcrypt.encrypted[]);
CREATE TABLE asked (place int GENERATED ALWAYS AS IDENTITY, statement text);
INSERT INTO asked (statement) VALUES
    ('SELECT * FROM person WHERE ssn = ''123-45-6789'''),
    ('SELECT * FROM person WHERE ''123-45-6789'' = ssn'),
    ('SELECT * FROM person WHERE ssn = ''fc1:AAAA'''),
    ('SELECT * FROM person WHERE ssn = '''''),
    ('SELECT * FROM person WHERE ssn = NULL'),
    ('SELECT * FROM person WHERE ssn = name'),
    ('SELECT * FROM person WHERE name = ssn'),
    ('SELECT * FROM person WHERE ssn = code'),
    ('SELECT * FROM person WHERE ssn = ''x''::char(3)'),
    ('SELECT * FROM person WHERE ssn = ''x''::name'),
    ('SELECT * FROM person WHERE ssn = ''x''::words'),
    ('SELECT * FROM person WHERE ssn = fieldcrypt.encrypt_field(''123-45-6789'')'),
    ('SELECT * FROM person WHERE fieldcrypt.encrypt_field(''123-45-6789'') = ssn'),
    ('SELECT * FROM other WHERE ssn = ''123-45-6789'''),
    ('SELECT * FROM other WHERE ssn = ssn'),
    ('SELECT * FROM person AS p JOIN other AS o ON p.ssn = o.ssn'),
    ('SELECT * FROM person AS p JOIN other AS o USING (ssn)'),
    ('SELECT * FROM person WHERE ssn <> ''123-45-6789'''),
    ('SELECT * FROM person WHERE ssn != name'),
    ('SELECT * FROM person WHERE NOT ssn = name'),
    ('SELECT * FROM person WHERE ssn > ''123'''),
    ('SELECT * FROM person WHERE ssn BETWEEN ''1'' AND ''2'''),
    ('SELECT * FROM person WHERE ssn IN (''123-45-6789'')'),
    ('SELECT * FROM person WHERE ssn IN (''1'', ''2'')'),
    ('SELECT * FROM person WHERE ssn IN (name, code)'),
    ('SELECT * FROM person WHERE ssn NOT IN (SELECT ssn FROM person)'),
    ('SELECT * FROM person WHERE ssn IN (SELECT name FROM person)'),
    ('SELECT * FROM person WHERE ssn = ANY (''{a,b}'')'),
    ('SELECT * FROM person WHERE ssn = ANY (ARRAY[''a'', ''b''])'),
    ('SELECT * FROM person WHERE ssn = ANY (SELECT ssn FROM other)'),
    ('SELECT * FROM person AS p, other AS o WHERE p.ssn = ANY (o.many)'),
    ('SELECT * FROM person WHERE ssn IS DISTINCT FROM ''x'''),
    ('SELECT * FROM person WHERE ssn IS NOT DISTINCT FROM ssn'),
    ('SELECT nullif(ssn, ''x'') FROM person'),
    ('SELECT CASE ssn WHEN ''x'' THEN 1 END FROM person'),
    ('SELECT * FROM person WHERE (id, ssn) = (1, ''x'')'),
    ('UPDATE person SET name = '''' WHERE ssn = ''x'''),
    ('DELETE FROM person WHERE ssn = ''x'''),
    ('INSERT INTO person (id) SELECT 1 FROM person WHERE ssn = ''x'''),
    ('PREPARE p AS SELECT * FROM person WHERE ssn = $1; EXECUTE p (''x'')'),
    ('DEALLOCATE ALL; PREPARE p (varchar) AS SELECT * FROM person WHERE ssn = $1; EXECUTE p (''x'')'),
    ('DEALLOCATE ALL; PREPARE p AS SELECT * FROM person WHERE ssn IN ($1, $2); EXECUTE p (''x'', ''y'')'),
    ('SET LOCAL plan_cache_mode = force_generic_plan; DEALLOCATE ALL; PREPARE p AS SELECT * FROM person WHERE ssn = $1; EXECUTE p (''x'')'),
    ('EXPLAIN SELECT * FROM person WHERE ssn = ''x'''),
    ('SET LOCAL search_path = ''''; SELECT * FROM public.person WHERE ssn = ''x'''),
    ('DO $x$ BEGIN IF (SELECT ssn FROM person) = ''x'' THEN NULL; END IF; END $x$'),
    ('DO $x$ DECLARE v fieldcrypt.encrypted; BEGIN IF v = ''x'' THEN NULL; END IF; END $x$'),
    ('DO $x$ DECLARE v fieldcrypt.encrypted; w fieldcrypt.encrypted; BEGIN IF v IS DISTINCT FROM w THEN NULL; END IF; END $x$'),
    ('SELECT * FROM person WHERE ssn LIKE ''123%'''),
    ('SELECT * FROM person WHERE ssn NOT LIKE name'),
    ('SELECT * FROM person WHERE ssn ILIKE ''123%'''),
    ('SELECT * FROM person WHERE ssn NOT ILIKE ''123%'''),
    ('SELECT * FROM person WHERE ssn SIMILAR TO ''123%'''),
    ('SELECT * FROM person WHERE ssn ~ ''^1'' OR ssn !~ ''^1'' OR ssn ~* ''^1'' OR ssn !~* ''^1'''),
    ('SELECT * FROM other WHERE ssn LIKE ANY (ARRAY[''a%''])'),
    ('SELECT * FROM person WHERE ssn::text = ''123-45-6789'''),
    ('SELECT * FROM person WHERE upper(ssn::text) = upper(''x'')'),
    ('SELECT * FROM person WHERE upper(ssn::text) LIKE upper(''%x%'')'),
    ('SELECT ssn::varchar FROM person'),
    ('SELECT ssn::varchar(5) FROM person'),
    ('SELECT ssn::char(5) FROM person'),
    ('SELECT ssn::name FROM person'),
    ('SELECT ssn::words FROM person'),
    ('SELECT ssn::text FROM other'),
    ('SELECT text(ssn) FROM person'),
    ('SELECT ssn::json FROM person'),
    ('SELECT ssn::date FROM person'),
    ('SELECT ssn::integer FROM person'),
    ('UPDATE person SET name = ssn'),
    ('INSERT INTO person (id, code) SELECT id, ssn FROM other'),
    ('DO $x$ DECLARE v text := fieldcrypt.encrypt_field(''x''); BEGIN END $x$'),
    ('ALTER TABLE other ALTER ssn TYPE text'),
    ('CREATE VIEW seen AS SELECT ssn::text FROM person; SELECT * FROM seen'),
    ('SELECT notes ->> ''a'' FROM person'),
    ('SELECT notes -> ''a'' FROM person'),
    ('SELECT notes -> 0 ->> ''a'' FROM person'),
    ('SELECT max(ssn) FROM person'),
    ('SELECT min(ssn) FROM person GROUP BY id'),
    ('SELECT max(ssn) FROM other'),
    ('CREATE INDEX ON person (ssn)'),
    ('CREATE UNIQUE INDEX ON person (ssn)'),
    ('CREATE INDEX ON person (name, ssn)'),
    ('CREATE INDEX ON person (ssn) WHERE ssn IS NOT NULL'),
    ('CREATE INDEX ON other (ssn)'),
    ('ALTER TABLE person ADD UNIQUE (ssn)'),
    ('ALTER TABLE person ADD UNIQUE (code, ssn)'),
    ('CREATE TABLE t (ssn fieldcrypt.encrypted PRIMARY KEY)'),
    ('CREATE TABLE t (ssn fieldcrypt.encrypted UNIQUE)'),
    ('CREATE TABLE t (ssn fieldcrypt.encrypted UNIQUE NULLS NOT DISTINCT)'),
    ('CREATE TABLE t (ssn fieldcrypt.encrypted, EXCLUDE USING btree (ssn WITH =))'),
    ('CREATE TABLE t (ssn fieldcrypt.encrypted, EXCLUDE USING btree (ssn WITH OPERATOR(fieldcrypt.*=)))'),
    ('CREATE TABLE t (id text UNIQUE); CREATE UNIQUE INDEX ON t (id); ALTER TABLE t ALTER id TYPE fieldcrypt.encrypted USING NULL'),
    ('CREATE INDEX ON person USING brin (ssn)'),
    ('ALTER TABLE other ADD FOREIGN KEY (ssn) REFERENCES person (ssn)'),
    ('INSERT INTO person (id, ssn) VALUES (1, NULL) ON CONFLICT (ssn) DO NOTHING');

-- Over tables without rows.
SELECT a.place, e.code, e.message, a.statement FROM asked AS a, test.error(a.statement) AS e ORDER BY a.place;
SELECT DISTINCT e.code, e.message, e.hint FROM asked AS a, test.error(a.statement) AS e WHERE e.code = '0A000' ORDER BY 2;

-- And with rows: the same errors.
CREATE TABLE before AS SELECT a.place, e.* FROM asked AS a, test.error(a.statement) AS e;
INSERT INTO person
SELECT i, 'n' || i, 'c', fieldcrypt.encrypt_field('123-45-' || i), fieldcrypt.encrypt_field_jsonb('{"a": 1}') FROM generate_series(1, 3) AS i;
INSERT INTO other SELECT id, ssn, ARRAY[ssn] FROM person;
SELECT a.statement, b.code AS without_rows, e.code AS with_rows, e.message FROM asked AS a JOIN before AS b USING (place), test.error(a.statement) AS e
 WHERE (b.code, b.message) IS DISTINCT FROM (e.code, e.message) ORDER BY a.place;
-- What only shows with rows.
SELECT statement, e.code, e.message FROM (VALUES
    ('SELECT ssn || '''' FROM person'),
    ('SELECT ''%'' || ssn FROM person'),
    ('SELECT quote_literal(ssn), quote_nullable(ssn) FROM person'),
    ('SELECT max(ssn) OVER () FROM person'),
    ('DO $x$ DECLARE v text; BEGIN SELECT ssn INTO v FROM person; END $x$'),
    ('SELECT fieldcrypt_internal.refuse_comparison_with_text(ssn, ''x'') FROM person')) AS v (statement), test.error(statement) AS e;

-- The ciphertext as text, for who wants it, is what comes out everywhere else.
SELECT bool_and(fieldcrypt.ciphertext_text(ssn) = test.text_form(ssn::bytea)) AS text_form,
       bool_and(format('%s', ssn) = fieldcrypt.ciphertext_text(ssn)) AS format, bool_and(concat(ssn) = fieldcrypt.ciphertext_text(ssn)) AS concat,
       bool_and(to_jsonb(p) ->> 'ssn' = fieldcrypt.ciphertext_text(ssn)) AS json,
       bool_and(array_to_string(ARRAY[ssn], ',') = fieldcrypt.ciphertext_text(ssn)) AS array,
       bool_and(fieldcrypt.ciphertext_text(ssn)::fieldcrypt.encrypted OPERATOR(fieldcrypt.*=) ssn) AS back, fieldcrypt.ciphertext_text(NULL) AS null
  FROM person AS p;

-- Sorting and grouping by bytes runs. The order means nothing; it is one order, that of the bytes.
SELECT count(DISTINCT ssn) AS distinct, (SELECT count(*) FROM (SELECT DISTINCT ON (ssn) ssn FROM person ORDER BY ssn) AS d) AS on,
       (SELECT array_agg(o.ssn::bytea ORDER BY o.ssn) = array_agg(o.ssn::bytea ORDER BY o.ssn::bytea) FROM person AS o) AS by_bytes,
       (SELECT max(n) FROM (SELECT count(*) OVER (PARTITION BY ssn) AS n FROM (SELECT * FROM person UNION ALL SELECT * FROM person) AS two) AS w) AS partitions,
       bool_and(ssn OPERATOR(fieldcrypt.*<=) ssn AND ssn OPERATOR(fieldcrypt.*>=) ssn AND NOT ssn OPERATOR(fieldcrypt.*<) ssn AND NOT ssn OPERATOR(fieldcrypt.*>) ssn) AS operators
  FROM person;
SET enable_hashjoin = off;
SET enable_nestloop = off;
EXPLAIN (COSTS OFF) SELECT count(*) FROM person AS p JOIN other AS o ON p.ssn OPERATOR(fieldcrypt.*=) o.ssn;
SELECT count(*) FROM person AS p JOIN other AS o ON p.ssn OPERATOR(fieldcrypt.*=) o.ssn;
RESET enable_hashjoin;
RESET enable_nestloop;
ANALYZE person;
-- Whether a value changed, NULL or not.
SELECT bool_or(p.ssn::bytea IS DISTINCT FROM o.ssn::bytea) AS same_value, bool_and(p.ssn::bytea IS DISTINCT FROM p.notes::bytea) AS another,
       bool_and(p.ssn::bytea IS DISTINCT FROM NULL::fieldcrypt.encrypted::bytea) AS from_null, bool_or((p.id, o.many) IS DISTINCT FROM (p.id, ARRAY[p.ssn])) AS arrays
  FROM person AS p JOIN other AS o USING (id);
\set VERBOSITY default
SELECT amname, opcname, opcdefault FROM pg_opclass JOIN pg_am AS a ON a.oid = opcmethod WHERE opcintype = 'fieldcrypt.encrypted'::regtype ORDER BY amname;
SELECT opcname, amvalidate(o.oid) FROM pg_opclass AS o WHERE opcintype = 'fieldcrypt.encrypted'::regtype ORDER BY opcmethod;
-- psql, as a user reads it.
SELECT * FROM person WHERE ssn = '123-45-6789';
SELECT ssn::text FROM person;
CREATE UNIQUE INDEX ON person (ssn);

-- Every error that SQL alone can cause: SQLSTATE, message, and a hint that says what to do. Errors
-- of the master key's sources, of standbys and of prepared transactions have tests on real clusters.
\getenv tests PG_ABS_SRCDIR
\set ECHO none
\i :tests/include/begin.sql
\set ECHO all
\pset format unaligned
\pset expanded on

CREATE TABLE t (id int, v fieldcrypt.encrypted);
INSERT INTO t VALUES (1, fieldcrypt.encrypt_field('x', 'c')), (2, fieldcrypt.encrypt_field('not a number')),
    (3, fieldcrypt.encrypt_field('x', tenant => 'suspended')), (4, fieldcrypt.encrypt_field('x', tenant => 'destroyed')),
    (5, fieldcrypt.encrypt_field('x', tenant => 'swapped')), (6, fieldcrypt.encrypt_field('x', tenant => 'elsewhere')),
    (7, fieldcrypt.encrypt_field('x', tenant => 'later')), (8, fieldcrypt.encrypt_field_bytea('\xff'));
SELECT test.set_state('suspended', 'suspended'), test.set_state('destroyed', 'destroyed');
SELECT test.write_keys($$
    UPDATE fieldcrypt.encryption_keys SET wrapped_key =
        (SELECT wrapped_key FROM fieldcrypt.encryption_keys WHERE tenant = 'default') WHERE tenant = 'swapped';
    UPDATE fieldcrypt.encryption_keys SET master_key_fingerprint = '\x00112233445566778899aabbccddeeff' WHERE tenant = 'elsewhere';
    UPDATE fieldcrypt.encryption_keys SET algorithm = 'ROT13' WHERE tenant = 'later'$$);
\c -
SET client_min_messages = error;

SELECT what, e.code, e.message, e.hint FROM (VALUES
    ('plaintext into an encrypted column', 'INSERT INTO t VALUES (1, ''123-45-6789'')'),
    ('another context', 'SELECT fieldcrypt.decrypt_field(v, ''d'') FROM t WHERE id = 1'),
    ('tampered with', 'SELECT fieldcrypt.decrypt_field(test.flipped(v, 26), ''c'') FROM t WHERE id = 1'),
    ('key of another database', 'SELECT fieldcrypt.decrypt_field(test.flipped(v, 9), ''c'') FROM t WHERE id = 1'),
    ('suspended key, decrypting', 'SELECT fieldcrypt.decrypt_field(v) FROM t WHERE id = 3'),
    ('suspended key, encrypting', 'SELECT fieldcrypt.encrypt_field(''x'', tenant => ''suspended'')'),
    ('destroyed key, decrypting', 'SELECT fieldcrypt.decrypt_field(v) FROM t WHERE id = 4'),
    ('destroyed key, encrypting', 'SELECT fieldcrypt.encrypt_field(''x'', tenant => ''destroyed'')'),
    ('another tenant', 'SET LOCAL fieldcrypt.tenant = ''nobody''; SELECT fieldcrypt.decrypt_field(v, ''c'') FROM t WHERE id = 1'),
    ('master key not loaded', 'SELECT fieldcrypt.decrypt_field(v) FROM t WHERE id = 6'),
    ('wrapped key of another row', 'SELECT fieldcrypt.decrypt_field(v) FROM t WHERE id = 5'),
    ('wrapped key of another row, encrypting', 'SELECT fieldcrypt.encrypt_field(''x'', tenant => ''swapped'')'),
    ('unknown algorithm', 'SELECT fieldcrypt.decrypt_field(v) FROM t WHERE id = 7'),
    ('first key in a READ ONLY transaction', 'SET LOCAL transaction_read_only = on; SELECT fieldcrypt.encrypt_field(''x'', tenant => ''new'')'),
    ('materialized view', 'CREATE MATERIALIZED VIEW m AS SELECT fieldcrypt.decrypt_field(v, ''c'') FROM t WHERE id = 1'),
    ('key changed by hand', 'UPDATE fieldcrypt.encryption_keys SET state = ''active'''),
    ('log changed by hand', 'DELETE FROM fieldcrypt.audit_log'),
    ('keys restored over keys', 'INSERT INTO fieldcrypt.encryption_keys SELECT * FROM fieldcrypt.encryption_keys LIMIT 0'),
    ('NULL context', 'SELECT fieldcrypt.encrypt_field(''x'', NULL)'),
    ('NULL tenant', 'SELECT fieldcrypt.encrypt_field(''x'', tenant => NULL)'),
    ('long tenant', 'SELECT fieldcrypt.encrypt_field(''x'', tenant => repeat(''t'', 1025))'),
    ('bytes as text', 'SELECT fieldcrypt.decrypt_field(v) FROM t WHERE id = 8'),
    ('a text with a NUL', 'SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field_bytea(''\x610062''))'),
    ('text as number', 'SELECT fieldcrypt.decrypt_field_as(v, NULL::int) FROM t WHERE id = 2'),
    ('text as JSON', 'SELECT fieldcrypt.decrypt_field_jsonb(v) FROM t WHERE id = 2'),
    ('auditing a view', 'SELECT fieldcrypt.audit_table(''pg_views'')'),
    ('auditing nothing', 'SELECT fieldcrypt.audit_table(NULL)'),
    ('auditing the log', 'SELECT fieldcrypt.audit_table(''fieldcrypt.audit_log'')'),
    ('unknown privilege', 'SELECT fieldcrypt.grant_access(current_user::regrole, ''everything'')')) AS v (what, statement),
    test.error(statement) AS e;

-- An error about a value names its key, and says whether a context was given: never which.
CREATE FUNCTION test.detail(statement text, value fieldcrypt.encrypted) RETURNS text LANGUAGE plpgsql AS $$
DECLARE detail text;
BEGIN
    EXECUTE statement;
    RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    RETURN replace(detail, fieldcrypt.key_id(value)::text, '<its key>');
END
$$;
SELECT what, test.detail(statement, (SELECT v FROM t WHERE id = 1)) AS detail FROM (VALUES
    ('another context', 'SELECT fieldcrypt.decrypt_field(v, ''a secret'') FROM t WHERE id = 1'),
    ('no context', 'SELECT fieldcrypt.decrypt_field(v) FROM t WHERE id = 1'),
    ('an empty context', 'SELECT fieldcrypt.decrypt_field(v, '''') FROM t WHERE id = 1'),
    ('re-encryption', 'SELECT fieldcrypt.reencrypt_field(v) FROM t WHERE id = 1'),
    ('tampered with', 'SELECT fieldcrypt.decrypt_field(test.flipped(v, 26), ''c'') FROM t WHERE id = 1'),
    ('another tenant', 'SET LOCAL fieldcrypt.tenant = ''nobody''; SELECT fieldcrypt.decrypt_field(v, ''c'') FROM t WHERE id = 1')) AS v (what, statement);

\pset expanded off
\pset format aligned
-- try_decrypt_field answers NULL for a value that is damaged or whose key is gone. The rest stays an error.
SELECT id, what, outcome, CASE outcome WHEN '00000' THEN fieldcrypt.try_decrypt_field(v, context) END AS plain
  FROM (SELECT id, what, context, changed AS v, test.outcome(format('SELECT fieldcrypt.try_decrypt_field(%L, %L)', changed, context)) AS outcome
          FROM t, LATERAL (VALUES
            (1, 'as it was', 'c', v), (1, 'another context', 'd', v), (1, 'no context', '', v), (1, 'tampered with', 'c', test.flipped(v, 30)),
            (1, 'unknown key', 'c', test.flipped(v, 9)), (3, 'suspended', '', v), (4, 'destroyed', '', v),
            (5, 'wrapped key of another row', '', v), (6, 'master key not loaded', '', v),
            (7, 'unknown algorithm', '', v), (8, 'no text', '', v)) AS c (of, what, context, changed) WHERE of = id
       ) AS tried ORDER BY id, what;

-- Every byte counts: with one changed, a value is refused, and never opens as anything else.
SELECT CASE WHEN byte = 0 THEN 'format' WHEN byte = 1 THEN 'suite' WHEN byte < 10 THEN 'key id'
            WHEN byte < 26 THEN 'nonce' WHEN byte < 38 THEN 'ciphertext' ELSE 'tag' END AS part,
       count(*) AS changes, string_agg(DISTINCT outcome, ' ') AS outcomes
  FROM t, generate_series(0, octet_length(v::bytea) - 1) AS byte, unnest(ARRAY[1, 128]) AS bit,
       LATERAL (SELECT set_byte(v::bytea, byte, get_byte(v::bytea, byte) # bit) AS changed) AS c,
       LATERAL (SELECT test.outcome(format('SELECT fieldcrypt.decrypt_field(%L::bytea::fieldcrypt.encrypted)', changed)) AS outcome) AS o
 WHERE id = 2 GROUP BY part ORDER BY min(byte);
SELECT string_agg(DISTINCT outcome, ' ') AS truncated, count(*) AS lengths
  FROM t, generate_series(0, octet_length(v::bytea) - 1) AS length,
       LATERAL (SELECT test.outcome(format('SELECT fieldcrypt.decrypt_field(%L::bytea::fieldcrypt.encrypted)', substr(v::bytea, 1, length))) AS outcome) AS o
 WHERE id = 2;
SELECT test.outcome(format('SELECT fieldcrypt.decrypt_field(%L::bytea::fieldcrypt.encrypted)', v::bytea || '\x00')) AS longer FROM t WHERE id = 2;
-- Header, nonce, ciphertext and tag of one value do not go with those of another.
INSERT INTO t SELECT 20 + n, fieldcrypt.encrypt_field('same length ' || n) FROM generate_series(1, 2) AS n;
INSERT INTO t SELECT 23, fieldcrypt.encrypt_field('same length 3', tenant => 'another');
SELECT other.id, part, test.outcome(format('SELECT fieldcrypt.decrypt_field(%L::bytea::fieldcrypt.encrypted)',
           overlay(a.v::bytea PLACING substr(other.v::bytea, start, length) FROM start))) AS outcome
  FROM t AS a, t AS other, (VALUES ('key id', 3, 8), ('nonce', 11, 16), ('ciphertext', 27, 13), ('tag', 40, 16)) AS p (part, start, length)
 WHERE a.id = 21 AND (other.id = 23 OR other.id = 22 AND part <> 'key id') ORDER BY other.id, start;

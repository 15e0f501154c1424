-- Keys: made on first use or ahead of time, one active for a tenant, guarded, and gone with the
-- transaction that made them.
\getenv tests PG_ABS_SRCDIR
\set ECHO none
\i :tests/include/begin.sql
\set ECHO all

-- No key and no master key is known before the first use.
SELECT count(*) FROM fieldcrypt.encryption_keys;
SELECT count(*) FROM fieldcrypt.master_keys;
SELECT octet_length(decode(fingerprint, 'hex')) AS fingerprint_bytes, is_loaded, is_current, encryption_keys, source,
       loaded_at BETWEEN now() - interval '1 hour' AND clock_timestamp() AS is_loaded_now, problem
  FROM fieldcrypt.master_key_status();

-- create_key is idempotent.
SELECT fieldcrypt.create_key('acme') AS key_id \gset
SELECT fieldcrypt.create_key('acme') = :key_id AS is_same, fieldcrypt.create_key(tenant => 'acme') = :key_id AS is_same_again;
SELECT fieldcrypt.create_key() = fieldcrypt.create_key('default') AS no_tenant_is_default,
       fieldcrypt.create_key('') = fieldcrypt.create_key() AS empty_is_none,
       fieldcrypt.create_key('ACME') <> :key_id AS case_matters,
       fieldcrypt.create_key('ac  me') <> :key_id AS spaces_matter;
SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => 'acme')) = :key_id AS encryption_takes_it;
SELECT fieldcrypt.create_key('odd: "quotes", \n, é, 漢') > 0 AS odd_name;
SELECT fieldcrypt.create_key(repeat('t', 1024)) > 0 AS longest_name;
SELECT e.code, e.message FROM test.error('SELECT fieldcrypt.create_key(repeat(''t'', 1025))') AS e;
SELECT name, e.code, e.message FROM unnest(ARRAY['acme ', ' acme', E'ac\nme', 'audit log']) AS name, test.error(format('SELECT fieldcrypt.create_key(%L)', name)) AS e;
SELECT e.code, e.message FROM test.error('SELECT fieldcrypt.create_key(repeat(''é'', 513))') AS e;
SELECT left(tenant, 30) AS tenant, purpose, version, state, algorithm, key_id > 0 AS is_positive, octet_length(wrapped_key) AS wrapped,
       master_key_fingerprint = (SELECT fingerprint FROM fieldcrypt.master_keys WHERE is_current) AS is_current,
       octet_length(key_check) AS check, created_at <= clock_timestamp() AS is_created, deactivated_at, destroyed_at
  FROM fieldcrypt.encryption_keys ORDER BY tenant;
SELECT event, count(*), count(DISTINCT key_id) AS keys, bool_and(tenant IS NOT NULL) AS all_name_tenants FROM test.new_log() GROUP BY event;

-- Ids are random 63-bit numbers, keys are not alike.
SELECT count(fieldcrypt.create_key('tenant ' || n)) FROM generate_series(1, 200) AS n;
SELECT count(DISTINCT key_id) = count(*) AS ids_differ, min(key_id) > 0 AS are_positive, max(key_id) > 2::numeric ^ 61 AS are_large,
       count(DISTINCT key_id >> 56) > 60 AS are_spread, count(DISTINCT key_id & 255) > 60 AS to_the_last_bit,
       count(DISTINCT wrapped_key) = count(*) AS wrapped_keys_differ, count(DISTINCT key_check) = count(*) AS checks_differ
  FROM fieldcrypt.encryption_keys WHERE tenant LIKE 'tenant %';
SELECT count(*) AS in_order FROM (
    SELECT key_id > lag(key_id) OVER (ORDER BY created_at, length(tenant), tenant) AS above FROM fieldcrypt.encryption_keys WHERE tenant LIKE 'tenant %') AS k
 WHERE above HAVING count(*) NOT BETWEEN 60 AND 140;

-- What each state allows.
SELECT count(fieldcrypt.create_key(state)) FROM unnest('{active,deactivated,suspended,compromised,destroyed}'::text[]) AS state;
CREATE TABLE sample AS
SELECT state, fieldcrypt.encrypt_field('x', tenant => state) AS v FROM unnest('{active,deactivated,suspended,compromised,destroyed}'::text[]) AS state;
SELECT count(test.set_state(state, state)) FROM sample WHERE state <> 'active';
SELECT state, test.outcome(format('SELECT fieldcrypt.encrypt_field(''x'', tenant => %L)', state)) AS encrypt,
       test.outcome(format('SELECT fieldcrypt.create_key(%L)', state)) AS create_key,
       test.outcome(format('SELECT fieldcrypt.decrypt_field(%L)', v)) AS decrypt,
       test.outcome(format('SELECT fieldcrypt.try_decrypt_field(%L)', v)) AS try_decrypt,
       test.outcome(format('SELECT fieldcrypt.reencrypt_field(%L)', v)) AS reencrypt,
       test.outcome(format('SELECT fieldcrypt.key_id(%L)', v)) AS key_id
  FROM sample;
SELECT fieldcrypt.decrypt_field(v) FROM sample WHERE state IN ('active', 'deactivated', 'compromised');
-- A state that changes back is seen at once, too.
SELECT test.set_state('suspended', 'active');
SELECT fieldcrypt.decrypt_field(v) FROM sample WHERE state = 'suspended';
SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('y', tenant => 'suspended')) = fieldcrypt.key_id(v) AS is_same_key FROM sample WHERE state = 'suspended';

-- The table refuses what may not be, whoever writes.
SELECT change, e.code, e.message FROM (VALUES
    ('SET key_id = 0'), ('SET key_id = -1'), ('SET tenant = '''''), ('SET tenant = repeat(''t'', 1025)'), ('SET tenant = NULL'),
    ('SET purpose = ''other'''), ('SET version = 0'), ('SET state = ''unknown'''), ('SET wrapped_key = ''\x00'''),
    ('SET wrapped_key = NULL'), ('SET state = ''destroyed'''), ('SET master_key_fingerprint = ''\x00'''), ('SET key_check = ''\x00'''),
    ('SET key_id = (SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = ''default'')'),
    ('SET tenant = ''default'''), ('SET tenant = ''default'', version = 2')) AS c (change),
    test.error(format('SELECT test.write_keys($w$UPDATE fieldcrypt.encryption_keys %s WHERE tenant = ''acme''$w$)', change)) AS e;

-- Nobody writes it by hand, superusers included: a key deleted is data lost.
SELECT statement, e.code, e.message FROM (VALUES
    ('UPDATE fieldcrypt.encryption_keys SET state = ''deactivated'''),
    ('UPDATE fieldcrypt.encryption_keys SET tenant = tenant WHERE tenant = ''acme'''),
    ('DELETE FROM fieldcrypt.encryption_keys'),
    ('DELETE FROM fieldcrypt.encryption_keys WHERE tenant = ''acme'''),
    ('TRUNCATE fieldcrypt.encryption_keys'),
    ('TRUNCATE fieldcrypt.encryption_keys, sample'),
    ('INSERT INTO fieldcrypt.encryption_keys SELECT * FROM fieldcrypt.encryption_keys'),
    ('INSERT INTO fieldcrypt.encryption_keys SELECT * FROM fieldcrypt.encryption_keys ON CONFLICT DO NOTHING'),
    ('MERGE INTO fieldcrypt.encryption_keys AS k USING sample AS s ON k.tenant = s.state WHEN MATCHED THEN DELETE'),
    ('COPY fieldcrypt.encryption_keys FROM ''/dev/null'''),
    ('WITH d AS (DELETE FROM fieldcrypt.encryption_keys RETURNING 1) SELECT count(*) FROM d'),
    ('UPDATE fieldcrypt.master_keys SET is_current = false'),
    ('DELETE FROM fieldcrypt.master_keys'),
    ('TRUNCATE fieldcrypt.master_keys'),
    ('INSERT INTO fieldcrypt.master_keys VALUES (''\x00112233445566778899aabbccddeeff'', false)')) AS v (statement),
    test.error(statement) AS e;
DO $$ BEGIN PERFORM fieldcrypt.encrypt_field('x', tenant => 'made just now'); DELETE FROM fieldcrypt.encryption_keys; END $$;
\echo :LAST_ERROR_SQLSTATE

-- A READ ONLY transaction encrypts with the keys that are there.
BEGIN READ ONLY;
SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', tenant => 'acme'));
SELECT fieldcrypt.create_key('acme') = :key_id AS is_there;
SAVEPOINT s;
SELECT fieldcrypt.encrypt_field('x', tenant => 'new in READ ONLY') IS NULL;
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT fieldcrypt.create_key('new in READ ONLY');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = 'new in READ ONLY';

-- A key that rolls back is not used again: whatever is stored afterwards opens in another session.
CREATE TABLE kept (how text, v fieldcrypt.encrypted);
BEGIN;
SELECT fieldcrypt.create_key('transaction') AS gone \gset
SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => 'transaction')) = :gone AS is_used_inside;
ROLLBACK;
INSERT INTO kept VALUES ('transaction', fieldcrypt.encrypt_field('x', tenant => 'transaction'));
SELECT test.active_key('transaction') <> :gone AS is_another;
BEGIN;
SAVEPOINT s;
SELECT fieldcrypt.create_key('savepoint') AS gone \gset
ROLLBACK TO s;
INSERT INTO kept VALUES ('savepoint', fieldcrypt.encrypt_field('x', tenant => 'savepoint'));
SAVEPOINT inner_one;
SAVEPOINT innermost;
SELECT fieldcrypt.create_key('released') AS gone_too \gset
RELEASE innermost;
SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => 'released')) = :gone_too AS is_used_inside;
ROLLBACK TO inner_one;
INSERT INTO kept VALUES ('released', fieldcrypt.encrypt_field('x', tenant => 'released'));
COMMIT;
SELECT test.active_key('savepoint') <> :gone AS is_another, test.active_key('released') <> :gone_too AS is_another_too;
DO $$
BEGIN
    BEGIN
        PERFORM fieldcrypt.encrypt_field('x', tenant => 'exception block');
        PERFORM 1 / 0;
    EXCEPTION WHEN division_by_zero THEN NULL;
    END;
    INSERT INTO kept VALUES ('exception block', fieldcrypt.encrypt_field('x', tenant => 'exception block'));
END
$$;
SELECT 1 / (length(fieldcrypt.ciphertext_text(fieldcrypt.encrypt_field('x', tenant => 'same statement'))) * 0);
INSERT INTO kept VALUES ('same statement', fieldcrypt.encrypt_field('x', tenant => 'same statement'));
BEGIN;
SELECT fieldcrypt.create_key('prepared, rolled back') AS gone \gset
PREPARE TRANSACTION 'rolled_back';
SET lock_timeout = '50ms';
SELECT fieldcrypt.encrypt_field('x', tenant => 'prepared, rolled back') IS NULL;
\echo :LAST_ERROR_SQLSTATE
RESET lock_timeout;
ROLLBACK PREPARED 'rolled_back';
INSERT INTO kept VALUES ('prepared, rolled back', fieldcrypt.encrypt_field('x', tenant => 'prepared, rolled back'));
SELECT test.active_key('prepared, rolled back') <> :gone AS is_another;
BEGIN;
INSERT INTO kept VALUES ('prepared, committed', fieldcrypt.encrypt_field('x', tenant => 'prepared, committed'));
PREPARE TRANSACTION 'committed';
COMMIT PREPARED 'committed';
INSERT INTO kept VALUES ('prepared, committed', fieldcrypt.encrypt_field('x', tenant => 'prepared, committed'));
\c -
SELECT how, fieldcrypt.decrypt_field(v) FROM kept ORDER BY how;
SELECT tenant, count(*) FROM fieldcrypt.encryption_keys WHERE tenant IN (SELECT how FROM kept) GROUP BY tenant ORDER BY tenant;

-- One active key for a tenant, whatever happened above.
SELECT count(*) AS tenants_with_two FROM (SELECT tenant FROM fieldcrypt.encryption_keys WHERE state = 'active' GROUP BY tenant HAVING count(*) > 1) AS t;
SELECT is_loaded, is_current, encryption_keys = (SELECT count(*) FROM fieldcrypt.encryption_keys WHERE wrapped_key IS NOT NULL) AS counts_keys, problem
  FROM fieldcrypt.master_key_status();
SELECT test.write_keys($$UPDATE fieldcrypt.encryption_keys SET master_key_fingerprint = '\x00112233445566778899aabbccddeeff' WHERE tenant = 'acme'$$);
SELECT is_loaded, is_current, encryption_keys, problem FROM fieldcrypt.master_key_status() WHERE NOT is_loaded;
-- An empty table takes a restore.
BEGIN;
CREATE TEMP TABLE dump AS TABLE fieldcrypt.encryption_keys;
SELECT test.write_keys('DELETE FROM fieldcrypt.encryption_keys');
INSERT INTO fieldcrypt.encryption_keys TABLE dump;
SELECT fieldcrypt.decrypt_field(v) FROM kept WHERE how = 'transaction';
ROLLBACK;

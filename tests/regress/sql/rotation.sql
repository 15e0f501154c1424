-- CALL rotate_keys, and reencrypt_field.
\getenv tests PG_ABS_SRCDIR
\set ECHO none
\i :tests/include/begin.sql
\set ECHO all

CREATE FUNCTION versions(tenant text) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(version || ' ' || state, ', ' ORDER BY version) FROM fieldcrypt.encryption_keys AS k WHERE k.tenant = $1
$$;
CREATE TABLE t (tenant text, how text, v fieldcrypt.encrypted);
INSERT INTO t SELECT tenant, 'first key', fieldcrypt.encrypt_field('secret of ' || tenant, 'c', tenant) FROM unnest('{default,acme,umbrella}'::text[]) AS tenant;
SELECT count(*) FROM test.new_log();

-- One tenant. Old values stay readable, new ones have the new key, other tenants are left alone.
SELECT test.active_key('acme') AS first_key \gset
CALL fieldcrypt.rotate_keys('acme', 'yearly');
SELECT versions('acme') AS acme, versions('default') AS default, versions('umbrella') AS umbrella;
SELECT test.active_key('acme') <> :first_key AS is_another;
INSERT INTO t VALUES ('acme', 'second key', fieldcrypt.encrypt_field('secret of acme', 'c', 'acme'));
SELECT how, fieldcrypt.decrypt_field(v, 'c'), fieldcrypt.key_id(v) = :first_key AS has_first_key,
       fieldcrypt.key_id(v) = test.active_key('acme') AS has_active_key
  FROM t WHERE tenant = 'acme' ORDER BY how;
SELECT event, tenant, key_id = :first_key AS is_first_key, key_id = test.active_key('acme') AS is_active_key, reason,
       actor = session_user AS is_actor, role = current_user AS is_role
  FROM test.new_log();
SELECT version, created_at <= clock_timestamp() AS is_created, deactivated_at >= created_at AS is_deactivated, destroyed_at,
       wrapped_key IS NOT NULL AS is_kept
  FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' ORDER BY version;
CALL fieldcrypt.rotate_keys('acme');
CALL fieldcrypt.rotate_keys(tenant => 'acme', force => false, reason => E'quotes '' " and \n lines');
SELECT versions('acme') AS acme;
SELECT event, tenant, reason FROM test.new_log();

-- All tenants.
CALL fieldcrypt.rotate_keys(force => true);
SELECT versions('acme') AS acme, versions('default') AS default, versions('umbrella') AS umbrella;
CALL fieldcrypt.rotate_keys(reason => 'all', force => true);
SELECT event, tenant, reason FROM test.new_log();
SELECT tenant, how, fieldcrypt.decrypt_field(v, 'c') FROM t ORDER BY tenant, how;
-- The session's tenant is not the procedure's.
SET fieldcrypt.tenant = 'umbrella';
CALL fieldcrypt.rotate_keys(force => true);
RESET fieldcrypt.tenant;
SELECT versions('default') AS default, versions('umbrella') AS umbrella;
SELECT count(*) FROM test.new_log();

-- A tenant without an active key is refused, and that is recorded; with force it gets one.
\set VERBOSITY default
CALL fieldcrypt.rotate_keys('unknown');
\echo :LAST_ERROR_SQLSTATE
CALL fieldcrypt.rotate_keys('');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY sqlstate
CALL fieldcrypt.rotate_keys(repeat('t', 1025));
\set VERBOSITY terse
SELECT event, left(tenant, 30) AS tenant, key_id, reason FROM test.new_log();
SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant IN ('unknown', '');
SELECT test.set_state('umbrella', 'suspended');
CALL fieldcrypt.rotate_keys('umbrella');
-- A run over all tenants makes no key where all were suspended, retired or destroyed: naming one does.
CALL fieldcrypt.rotate_keys(force => true);
SELECT versions('umbrella') AS umbrella;
CALL fieldcrypt.rotate_keys('umbrella', force => true);
SELECT versions('umbrella') AS umbrella;
CALL fieldcrypt.rotate_keys('unknown', force => true);
SELECT versions('unknown') AS unknown;
SELECT test.set_state('unknown', 'destroyed');
CALL fieldcrypt.rotate_keys('unknown', force => true);
SELECT versions('unknown') AS unknown;
SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', tenant => 'unknown'));
SELECT event, tenant, reason FROM test.new_log() WHERE tenant IN ('umbrella', 'unknown');

-- Nothing happens where it can't commit: in a transaction block, a function, an atomic caller.
CREATE TABLE before AS SELECT * FROM fieldcrypt.encryption_keys;
BEGIN;
\set VERBOSITY default
CALL fieldcrypt.rotate_keys(force => true);
\set VERBOSITY terse
\echo :LAST_ERROR_SQLSTATE
COMMIT;
BEGIN;
SAVEPOINT s;
CALL fieldcrypt.rotate_keys('acme');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
COMMIT;
CREATE FUNCTION rotate() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CALL fieldcrypt.rotate_keys(force => true); END $$;
SELECT rotate();
\echo :LAST_ERROR_SQLSTATE
DO $$ BEGIN CALL fieldcrypt.rotate_keys(force => true); EXCEPTION WHEN invalid_transaction_termination THEN RAISE NOTICE '2D000'; END $$;
CREATE PROCEDURE rotate_with_setting() LANGUAGE plpgsql SET search_path = public AS $$ BEGIN CALL fieldcrypt.rotate_keys(force => true); END $$;
CALL rotate_with_setting();
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) AS changed FROM (TABLE fieldcrypt.encryption_keys EXCEPT TABLE before) AS e;
SELECT count(*) FROM test.new_log();
-- One tenant's key is rotated inside a transaction by a function of its own, and comes and goes with it.
CREATE TABLE rotated (id int, value fieldcrypt.encrypted);
SELECT fieldcrypt.create_key('in a transaction') AS first_key \gset
INSERT INTO rotated SELECT 1, fieldcrypt.encrypt_field('one', tenant => 'in a transaction');
BEGIN;
SELECT fieldcrypt.rotate_key('in a transaction', 'a test') AS second_key \gset
INSERT INTO rotated SELECT 2, fieldcrypt.encrypt_field('two', tenant => 'in a transaction');
SELECT id, fieldcrypt.key_id(value) = :second_key AS is_new, fieldcrypt.decrypt_field(value) FROM rotated ORDER BY id;
ROLLBACK;
INSERT INTO rotated SELECT 3, fieldcrypt.encrypt_field('three', tenant => 'in a transaction');
SELECT id, fieldcrypt.key_id(value) = :first_key AS is_old, fieldcrypt.decrypt_field(value) FROM rotated ORDER BY id;
BEGIN;
SELECT fieldcrypt.rotate_key('in a transaction') AS second_key \gset
SAVEPOINT s;
SELECT fieldcrypt.rotate_key('in a transaction') AS third_key \gset
ROLLBACK TO s;
INSERT INTO rotated SELECT 4, fieldcrypt.encrypt_field('four', tenant => 'in a transaction');
COMMIT;
SELECT id, fieldcrypt.key_id(value) = :second_key AS is_new, fieldcrypt.decrypt_field(value) FROM rotated ORDER BY id;
SELECT versions('in a transaction');
SELECT outcome, old_key_id = :first_key AS from_first, new_key_id = :second_key AS to_second, reason
  FROM fieldcrypt.rotation_log WHERE tenant = 'in a transaction';
SELECT event, reason FROM test.new_log() WHERE tenant = 'in a transaction';
SELECT fieldcrypt.rotate_key('nobody has heard of');
\echo :LAST_ERROR_SQLSTATE
SELECT fieldcrypt.rotate_key(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT fieldcrypt.rotate_key('');
\echo :LAST_ERROR_SQLSTATE
BEGIN READ ONLY;
SELECT fieldcrypt.rotate_key('in a transaction');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = 'in a transaction';
DROP TABLE rotated;
-- From a procedure that may commit, it works.
DO $$ BEGIN CALL fieldcrypt.rotate_keys('acme'); END $$;
SET default_transaction_read_only = on;
CALL fieldcrypt.rotate_keys('acme');
\echo :LAST_ERROR_SQLSTATE
RESET default_transaction_read_only;
SELECT versions('acme') AS acme;

-- Whatever the session's isolation level is, and whatever lies in its search_path.
SET default_transaction_isolation = serializable;
CALL fieldcrypt.rotate_keys('acme');
CALL fieldcrypt.rotate_keys(force => true);
SHOW transaction_isolation;
SET default_transaction_isolation = 'repeatable read';
CALL fieldcrypt.rotate_keys(force => true);
RESET default_transaction_isolation;
CREATE SCHEMA evil;
CREATE FUNCTION evil.refuse(bigint, integer) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the attacker''s operator ran'; END $$;
CREATE FUNCTION evil.refuse(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the attacker''s operator ran'; END $$;
CREATE OPERATOR evil.+ (LEFTARG = bigint, RIGHTARG = integer, FUNCTION = evil.refuse);
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.refuse);
CREATE OPERATOR evil.> (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.refuse);
CREATE FUNCTION evil.format(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the attacker''s function ran'; END $$;
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the attacker''s function ran'; END $$;
CREATE FUNCTION evil.set_config(text, text, boolean) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the attacker''s function ran'; END $$;
CREATE TABLE evil.encryption_keys (LIKE fieldcrypt.encryption_keys);
CREATE TABLE evil.audit_log (id int);
CREATE TEMP TABLE encryption_keys (LIKE fieldcrypt.encryption_keys);
SET search_path = evil, public, pg_catalog;
CALL fieldcrypt.rotate_keys('acme');
CALL fieldcrypt.rotate_keys(force => true);
CALL fieldcrypt.rotate_keys('nobody');
SHOW search_path;
RESET search_path;
SELECT versions('acme') AS acme;
SELECT count(*) FROM evil.encryption_keys;
DROP TABLE encryption_keys;
DROP SCHEMA evil CASCADE;

-- One tenant's failure is reported and recorded; the others go on.
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'disk full' USING ERRCODE = 'disk_full', HINT = 'Buy another.';
END
$$;
CREATE TRIGGER fail BEFORE INSERT ON fieldcrypt.encryption_keys FOR EACH ROW WHEN (NEW.tenant IN ('acme', 'umbrella')) EXECUTE FUNCTION fail();
SELECT test.active_key('acme') AS acme_key, test.active_key('umbrella') AS umbrella_key, test.active_key('default') AS default_key \gset
SELECT count(*) > 0 AS some FROM test.new_log();
\set VERBOSITY default
CALL fieldcrypt.rotate_keys(force => true);
CALL fieldcrypt.rotate_keys('acme');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY terse
SELECT test.active_key('acme') = :acme_key AS acme_stays, test.active_key('umbrella') = :umbrella_key AS umbrella_stays,
       test.active_key('default') <> :default_key AS default_went_on;
SELECT event, tenant, reason FROM test.new_log() WHERE tenant <> 'unknown';
SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => 'acme')) = :acme_key AS acme_still_encrypts;
DROP TRIGGER fail ON fieldcrypt.encryption_keys;
CALL fieldcrypt.rotate_keys('acme');
SELECT test.active_key('acme') <> :acme_key AS acme_goes_on;

-- reencrypt_field: the same plaintext under the active key of the value's own tenant.
SELECT count(*) AS on_old_keys FROM t WHERE fieldcrypt.key_id(v) <> test.active_key(tenant);
CREATE TABLE old AS TABLE t;
SET fieldcrypt.tenant = 'acme';
SELECT fieldcrypt.reencrypt_field(v, 'c') IS NULL FROM t WHERE tenant = 'default';
\echo :LAST_ERROR_SQLSTATE
RESET fieldcrypt.tenant;
UPDATE t SET v = fieldcrypt.reencrypt_field(v, 'c');
SELECT tenant, how, fieldcrypt.decrypt_field(v, 'c'), fieldcrypt.key_id(v) = test.active_key(tenant) AS is_on_active_key,
       octet_length(v::bytea) = (SELECT octet_length(old.v::bytea) FROM old WHERE old.tenant = t.tenant AND old.how = t.how) AS same_length
  FROM t ORDER BY tenant, how;
SELECT count(*) AS opens_without_context FROM t WHERE test.outcome(format('SELECT fieldcrypt.decrypt_field(%L)', v)) = '00000';
-- On the active key already: the same bytes, but checked.
SELECT count(*) AS changed FROM t WHERE fieldcrypt.reencrypt_field(v, 'c') OPERATOR(fieldcrypt.*<>) v;
SELECT DISTINCT test.outcome(format('SELECT fieldcrypt.reencrypt_field(%L, ''c'')', test.flipped(v, 30))) AS tampered,
       test.outcome(format('SELECT fieldcrypt.reencrypt_field(%L, ''d'')', v)) AS another_context FROM t;
SELECT fieldcrypt.decrypt_field(fieldcrypt.reencrypt_field(fieldcrypt.encrypt_field(''))) = '' AS empty;
CREATE TABLE large AS SELECT fieldcrypt.encrypt_field(repeat('0123456789abcdef', 65536), 'c', 'acme') AS v;
CALL fieldcrypt.rotate_keys('acme');
SELECT fieldcrypt.decrypt_field(fieldcrypt.reencrypt_field(v, 'c'), 'c') = repeat('0123456789abcdef', 65536) AS large FROM large;
\c -
SELECT tenant, how, fieldcrypt.decrypt_field(v, 'c') FROM t ORDER BY tenant, how;
SELECT tenant, how, fieldcrypt.decrypt_field(v, 'c') FROM old ORDER BY tenant, how;
SELECT count(*) AS tenants, bool_and(active = 1) AS one_active_each, bool_and(newest = versions) AS versions_without_gaps
  FROM (SELECT count(*) FILTER (WHERE state = 'active') AS active, max(version) AS newest, count(*) AS versions
          FROM fieldcrypt.encryption_keys GROUP BY tenant) AS k;

-- The settings: their contexts, limits and defaults, and the reserved prefix.
\getenv tests PG_ABS_SRCDIR
\set ECHO none
\i :tests/include/begin.sql
\set ECHO all
SELECT fieldcrypt.create_key() IS NOT NULL AS library_is_loaded;

SELECT name, context, vartype, unit, min_val, max_val, boot_val,
       CASE WHEN name <> 'fieldcrypt.master_key_file' THEN setting ELSE regexp_replace(setting, '.*/', '') END AS setting
  FROM pg_settings WHERE name LIKE 'fieldcrypt.%' ORDER BY name COLLATE "C";
SELECT count(*) AS without_description FROM pg_settings WHERE name LIKE 'fieldcrypt.%' AND (short_desc = '' OR coalesce(extra_desc, '') = '');

-- fieldcrypt.tenant is anybody's; the empty one is none; a name has at most 1024 bytes.
CREATE ROLE regress_fc_ordinary;
SELECT fieldcrypt.grant_access('regress_fc_ordinary', 'encrypt', 'decrypt');
GRANT USAGE ON SCHEMA test TO regress_fc_ordinary;
SHOW fieldcrypt.tenant;
SET ROLE regress_fc_ordinary;
SET fieldcrypt.tenant = 'acme';
SHOW fieldcrypt.tenant;
BEGIN;
SET LOCAL fieldcrypt.tenant = 'umbrella';
SHOW fieldcrypt.tenant;
ROLLBACK;
SHOW fieldcrypt.tenant;
SET fieldcrypt.tenant = '';
SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('no tenant'));
SELECT set_config('fieldcrypt.tenant', repeat('t', 1024), false) = repeat('t', 1024) AS longest;
\set VERBOSITY sqlstate
SELECT set_config('fieldcrypt.tenant', repeat('t', 1025), false);
\set VERBOSITY terse
SELECT length(current_setting('fieldcrypt.tenant')) AS stays;
RESET fieldcrypt.tenant;
-- No control characters, no blanks at the ends, not the name of the log's own key.
SELECT name, e.code, e.message FROM unnest(ARRAY[' acme', 'acme ', E'ac\tme', 'audit log']) AS name,
    LATERAL (SELECT * FROM test.error(format('SET fieldcrypt.tenant = %L', name))) AS e;
-- Locked, it is refused any other value until the transaction ends.
BEGIN;
SELECT fieldcrypt.lock_tenant('acme');
SHOW fieldcrypt.tenant;
SELECT source FROM pg_settings WHERE name = 'fieldcrypt.tenant';
SELECT statement, e.code, e.message FROM (VALUES
    ('SET fieldcrypt.tenant = ''umbrella'''), ('SET LOCAL fieldcrypt.tenant = '''''), ('RESET fieldcrypt.tenant'), ('RESET ALL'), ('SET fieldcrypt.tenant TO DEFAULT'),
    ('SELECT set_config(''fieldcrypt.tenant'', NULL, true)'), ('SELECT fieldcrypt.lock_tenant(''umbrella'')'), ('SELECT fieldcrypt.lock_tenant(''acme'')')) AS v (statement),
    test.error(statement) AS e;
SHOW fieldcrypt.tenant;
COMMIT;
SHOW fieldcrypt.tenant;
RESET ROLE;
-- A tenant is required where the superuser says so.
SET fieldcrypt.require_tenant = on;
SELECT call, e.code, e.message FROM (VALUES
    ('encrypt_field(''x'')'), ('encrypt_field(''x'', '''', '''')'), ('decrypt_field(fieldcrypt.encrypt_field(''x'', '''', ''acme''))'), ('create_key('''')'), ('create_key(''acme'')')) AS c (call),
    test.error('SELECT fieldcrypt.' || call) AS e;
RESET fieldcrypt.require_tenant;
-- Keys are made by create_key alone where he says so.
SET fieldcrypt.create_keys_on_use = off;
SELECT call, e.code, e.message FROM (VALUES ('encrypt_field(''x'', '''', ''acmee'')'), ('encrypt_field(''x'', '''', ''acme'')'), ('create_key(''made'')'), ('encrypt_field(''x'', '''', ''made'')')) AS c (call),
    test.error('SELECT fieldcrypt.' || call) AS e;
RESET fieldcrypt.create_keys_on_use;
-- A function's own, as SET clause; a role's; a database's.
CREATE FUNCTION for_acme(value text) RETURNS fieldcrypt.encrypted LANGUAGE sql SET fieldcrypt.tenant = 'acme' AS $$ SELECT fieldcrypt.encrypt_field(value) $$;
SELECT fieldcrypt.key_id(for_acme('x')) = fieldcrypt.create_key('acme') AS is_acme, current_setting('fieldcrypt.tenant') AS outside;
ALTER ROLE regress_fc_ordinary SET fieldcrypt.tenant = 'theirs';
SELECT test.outcome('ALTER ROLE regress_fc_ordinary SET fieldcrypt.tenant = ' || quote_literal(repeat('t', 1025))) AS too_long;

-- The others are the administrator's. The words are Postgres's, and other ones from version to version.
SET ROLE regress_fc_ordinary;
SELECT statement, e.code FROM (VALUES
    ('SET fieldcrypt.require_tenant = off'), ('SET fieldcrypt.create_keys_on_use = on'), ('SET fieldcrypt.key_cache_size = 10'), ('SET fieldcrypt.master_key_file = ''/tmp/x'''), ('SET fieldcrypt.master_key_command = ''id'''),
    ('SET fieldcrypt.master_key_command_timeout = 1000'), ('SHOW fieldcrypt.master_key_file'), ('SHOW fieldcrypt.master_key_command'),
    ('SELECT current_setting(''fieldcrypt.master_key_file'')'), ('SHOW fieldcrypt.key_cache_size')) AS v (statement),
    test.error(statement) AS e;
SELECT name FROM pg_settings WHERE name LIKE 'fieldcrypt.master_key%' ORDER BY name;
RESET ROLE;

-- Superusers can't set them in a session, a role or a database either, nor a command or key through ALTER SYSTEM.
SELECT statement, e.code FROM (VALUES
    ('SET fieldcrypt.master_key_file = ''/tmp/x'''), ('SET LOCAL fieldcrypt.master_key_command = ''id'''),
    ('ALTER ROLE regress_fc_ordinary SET fieldcrypt.master_key_file = ''/tmp/x'''),
    ('ALTER DATABASE regression SET fieldcrypt.master_key_command = ''id'''),
    ('SET fieldcrypt.master_key = ''00'''), ('SHOW fieldcrypt.master_key'),
    ('ALTER ROLE regress_fc_ordinary SET fieldcrypt.master_key = ''00'''), ('ALTER DATABASE regression SET fieldcrypt.master_key = ''00'''),
    ('SET fieldcrypt.key_cache_size = 0'), ('SET fieldcrypt.key_cache_size = -1'), ('SET fieldcrypt.key_cache_size = 10000001'),
    ('SET fieldcrypt.key_cache_size = ''many'''), ('SET fieldcrypt.key_cache_size = 10000000'), ('SET fieldcrypt.key_cache_size = 1')) AS v (statement),
    test.error(statement) AS e;
\set VERBOSITY sqlstate
ALTER SYSTEM SET fieldcrypt.master_key_command = 'id';
ALTER SYSTEM SET fieldcrypt.master_key_command_timeout = '1h';
ALTER SYSTEM SET fieldcrypt.master_key_command_timeout = '99ms';
\set VERBOSITY terse

-- A misspelt setting is an error.
SET fieldcrypt.tennant = 'acme';
\echo :LAST_ERROR_SQLSTATE
SHOW fieldcrypt.tennant;
\echo :LAST_ERROR_SQLSTATE
SELECT set_config('fieldcrypt.key', 'x', false);
\echo :LAST_ERROR_SQLSTATE
ALTER DATABASE regression SET fieldcrypt.tennant = 'acme';
\echo :LAST_ERROR_SQLSTATE

-- In a session that has not called the extension yet, the library is not loaded: what was set before counts once it is.
\c -
SET fieldcrypt.tenant = 'acme';
SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x')) = fieldcrypt.create_key('acme') AS is_acme;
\c -
\set VERBOSITY sqlstate
SELECT set_config('fieldcrypt.tenant', repeat('t', 1025), false) IS NULL;
SET fieldcrypt.tennant = 'acme';
SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x')) = fieldcrypt.create_key('default') AS is_default;
SHOW fieldcrypt.tenant;
SHOW fieldcrypt.tennant;

-- A cache of one key, with many tenants, and in the middle of a statement.
\c -
SET client_min_messages = warning;
SET fieldcrypt.key_cache_size = 1;
CREATE TABLE many AS SELECT n, fieldcrypt.encrypt_field('value ' || n, tenant => 'tenant ' || n % 7) AS v FROM generate_series(1, 100) AS n;
SELECT count(*) AS readable FROM many WHERE fieldcrypt.decrypt_field(v) = 'value ' || n;
SET fieldcrypt.key_cache_size = 3;
SELECT count(*) AS readable FROM many WHERE fieldcrypt.decrypt_field(v) = 'value ' || n;
SELECT count(DISTINCT tenant) AS tenants, count(*) AS keys FROM fieldcrypt.encryption_keys WHERE tenant LIKE 'tenant %';
RESET fieldcrypt.key_cache_size;
SHOW fieldcrypt.key_cache_size;
DROP OWNED BY regress_fc_ordinary;
DROP ROLE regress_fc_ordinary;

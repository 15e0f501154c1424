-- What every test begins with: an empty database with a fresh extension, and the helpers of schema
-- `test`. Ids of keys and fingerprints are random: they are compared, never printed.
\set VERBOSITY terse
\set SHOW_CONTEXT never
\pset null '(null)'
SET client_min_messages = error;
SET fieldcrypt.allow_drop = on;
DROP EXTENSION IF EXISTS pg_fieldcrypt CASCADE;
DO $$
DECLARE
    left_over name;
BEGIN
    FOR left_over IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$)' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', left_over);
    END LOOP;
END
$$;
RESET fieldcrypt.allow_drop;
CREATE SCHEMA public;
GRANT USAGE ON SCHEMA public TO PUBLIC;
CREATE SCHEMA test;
CREATE EXTENSION pg_fieldcrypt;

-- Runs a statement and gives its error, with what is random in it masked; 00000 if there is none.
CREATE FUNCTION test.error(statement text, OUT code text, OUT message text, OUT hint text)
    LANGUAGE plpgsql AS $$
BEGIN
    code := '00000';
    EXECUTE statement;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS
        code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
    message := regexp_replace(message, 'encryption key \d+', 'encryption key <id>');
    message := regexp_replace(message, 'audit_log_(\d+|default)', 'audit_log_<year>');
    message := regexp_replace(message, '[0-9A-F]{4,32}(\.\.\.)?(?=;|$)', '<fingerprint>', 'g');
END
$$;

-- The same, its SQLSTATE only: for tables of cases.
CREATE FUNCTION test.outcome(statement text) RETURNS text LANGUAGE sql AS $$
    SELECT code FROM test.error(statement)
$$;

-- A value's bytes as its text form, whatever they are.
CREATE FUNCTION test.text_form(bytes bytea) RETURNS text LANGUAGE sql AS $$
    SELECT 'fc1:' || translate(encode(bytes, 'base64'), E'+/=\n', '-_')
$$;

-- The value with one byte changed.
CREATE FUNCTION test.flipped(value fieldcrypt.encrypted, byte integer) RETURNS fieldcrypt.encrypted
    LANGUAGE sql AS $$
    SELECT set_byte(value::bytea, byte, get_byte(value::bytea, byte) # 1)::fieldcrypt.encrypted
$$;

-- Writes the keys as damage, an attacker with superuser's rights, or functions of a later version
-- would: past the triggers that guard the table. The ones that tell other sessions fire.
CREATE FUNCTION test.write_keys(statement text) RETURNS void
    LANGUAGE plpgsql SET session_replication_role = replica AS $$
BEGIN
    EXECUTE statement;
END
$$;

-- Puts a tenant's newest key into a state.
CREATE FUNCTION test.set_state(tenant text, state text) RETURNS void LANGUAGE sql AS $$
    SELECT test.write_keys(format(
        'UPDATE fieldcrypt.encryption_keys AS k
            SET state = %2$L, wrapped_key = CASE WHEN %2$L <> ''destroyed'' THEN wrapped_key END
          WHERE tenant = %1$L AND version =
                (SELECT max(version) FROM fieldcrypt.encryption_keys WHERE tenant = k.tenant)',
        tenant, state))
$$;

-- A tenant's active key; NULL if it has none.
CREATE FUNCTION test.active_key(tenant text) RETURNS bigint LANGUAGE sql AS $$
    SELECT key_id FROM fieldcrypt.encryption_keys AS k WHERE k.tenant = $1 AND state = 'active'
$$;

-- What has been written to the audit log since this was last asked.
CREATE SEQUENCE test.log_read MINVALUE 0;
CREATE FUNCTION test.new_log() RETURNS SETOF fieldcrypt.audit_log LANGUAGE plpgsql AS $$
DECLARE
    read bigint := (SELECT last_value FROM test.log_read);
BEGIN
    PERFORM setval('test.log_read', greatest(read, (SELECT max(id) FROM fieldcrypt.audit_log)));
    RETURN QUERY SELECT * FROM fieldcrypt.audit_log WHERE id > read ORDER BY id;
END
$$;

SET client_min_messages = notice;

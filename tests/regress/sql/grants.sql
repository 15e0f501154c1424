-- grant_access and revoke_access: what each privilege gives, and that nothing else is there.
\getenv tests PG_ABS_SRCDIR
\set ECHO none
\i :tests/include/begin.sql
\set ECHO all

CREATE FUNCTION outcome_as(role regrole, statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    outcome text := '00000';
BEGIN
    BEGIN
        EXECUTE format('SET LOCAL ROLE %s', role);
        EXECUTE statement;
        RAISE EXCEPTION USING ERRCODE = 'P0099';
    EXCEPTION WHEN SQLSTATE 'P0099' THEN NULL;
    WHEN OTHERS THEN
        outcome := SQLSTATE;
    END;
    RETURN outcome;
END
$$;
CREATE ROLE regress_fc_nobody;
CREATE ROLE regress_fc_encrypt;
CREATE ROLE regress_fc_decrypt;
CREATE ROLE regress_fc_reencrypt;
CREATE ROLE regress_fc_manage;
CREATE ROLE regress_fc_audit;
CREATE ROLE regress_fc_backup;
CREATE ROLE "regress fc odd; ""role""";
CREATE TABLE sample AS SELECT fieldcrypt.encrypt_field('x') AS v;
CREATE TABLE owned (id int PRIMARY KEY, v text);
ALTER TABLE owned OWNER TO regress_fc_manage;
GRANT SELECT ON sample TO PUBLIC;
GRANT CREATE ON SCHEMA public TO regress_fc_encrypt, regress_fc_nobody;
SELECT count(*) > 0 AS some FROM test.new_log();

-- Nothing for PUBLIC, but for what constraints and triggers of everybody compute, and what only refuses.
SELECT count(*) AS open_functions FROM pg_proc AS p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
 WHERE p.pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND a.grantee = 0;
SELECT count(*) AS open_relations FROM pg_class AS c, aclexplode(c.relacl) AS a WHERE c.relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND a.grantee = 0;
SELECT count(*) AS open_types FROM pg_type AS t, aclexplode(coalesce(t.typacl, acldefault('T', t.typowner))) AS a
 WHERE t.oid = 'fieldcrypt.encrypted'::regtype AND a.grantee = 0;
SELECT has_schema_privilege('regress_fc_nobody', 'fieldcrypt', 'USAGE') AS schema_is_open,
       has_schema_privilege('regress_fc_nobody', 'fieldcrypt_internal', 'USAGE') AS internals_are_open;

SELECT fieldcrypt.grant_access('regress_fc_encrypt', 'encrypt');
SELECT fieldcrypt.grant_access('regress_fc_decrypt', 'decrypt');
SELECT fieldcrypt.grant_access('regress_fc_reencrypt', 'reencrypt');
SELECT fieldcrypt.grant_access('regress_fc_manage', 'manage');
SELECT fieldcrypt.grant_access('regress_fc_audit', 'audit');
SELECT fieldcrypt.grant_access('regress_fc_backup', 'backup');
SELECT fieldcrypt.grant_access('"regress fc odd; ""role"""'::regrole, 'encrypt', 'decrypt', 'encrypt');
SELECT event, actor = session_user AS is_actor, reason FROM test.new_log();

-- Each role may do its own, and nothing else.
CREATE TABLE attempt (number serial, statement text);
INSERT INTO attempt (statement) VALUES
    ('SELECT fieldcrypt.encrypt_field(''x'')'), ('SELECT fieldcrypt.encrypt_field(''x'', tenant => ''first use'')'),
    ('SELECT fieldcrypt.encrypt_field_bytea(''x'')'), ('SELECT fieldcrypt.encrypt_field_jsonb(''1'')'),
    ('SELECT fieldcrypt.decrypt_field(v) FROM sample'), ('SELECT fieldcrypt.decrypt_field_bytea(v) FROM sample'),
    ('SELECT fieldcrypt.decrypt_field_as(v, NULL::text) FROM sample'), ('SELECT fieldcrypt.try_decrypt_field(v) FROM sample'),
    ('SELECT fieldcrypt.reencrypt_field(v) FROM sample'), ('SELECT fieldcrypt.key_id(v) FROM sample'),
    ('SELECT * FROM sample, fieldcrypt.ciphertext_info(v)'), ('SELECT DISTINCT v FROM sample'),
    ('SELECT v::bytea::fieldcrypt.encrypted FROM sample'), ('SELECT fieldcrypt.ciphertext_text(v) FROM sample'),
    ('CREATE TABLE mine (v fieldcrypt.encrypted)'),
    ('SELECT fieldcrypt.create_key(''another'')'), ('SELECT fieldcrypt_internal.rotate_active_key(''default'', NULL, false, NULL)'),
    ('SELECT * FROM fieldcrypt_internal.rotate_step(''default'', NULL, false, NULL)'), ('SELECT * FROM fieldcrypt.master_key_status()'),
    ('SELECT fieldcrypt_internal.loaded_master_keys()'), ('SELECT fieldcrypt_internal.record_event(''forged'', NULL, NULL, NULL, NULL)'),
    ('SELECT fieldcrypt.audit_table(''owned'')'), ('SELECT fieldcrypt.audit_table(''sample'')'), ('SELECT fieldcrypt.unaudit_table(''sample'')'),
    ('SELECT wrapped_key FROM fieldcrypt.encryption_keys'), ('SELECT * FROM fieldcrypt.encryption_keys'),
    ('SELECT tenant, version, state FROM fieldcrypt.encryption_keys'), ('SELECT * FROM fieldcrypt.master_keys'),
    ('SELECT * FROM fieldcrypt.audit_log'), ('SELECT * FROM fieldcrypt_internal.audit_log_2026'),
    ('SELECT last_value FROM fieldcrypt_internal.audit_log_id_seq'), ('SELECT nextval(''fieldcrypt_internal.audit_log_id_seq'')'),
    ('INSERT INTO fieldcrypt.audit_log (event) VALUES (''forged'')'), ('UPDATE fieldcrypt.encryption_keys SET state = ''active'''),
    ('DELETE FROM fieldcrypt.audit_log'), ('TRUNCATE fieldcrypt.encryption_keys'), ('ALTER TABLE fieldcrypt.encryption_keys DISABLE TRIGGER ALL'),
    ('DROP TABLE fieldcrypt_internal.audit_log_2030'), ('CREATE TABLE fieldcrypt.mine (id int)'),
    ('SELECT fieldcrypt.grant_access(current_user::regrole, ''decrypt'')'), ('SELECT fieldcrypt.revoke_access(''regress_fc_audit'', ''audit'')'),
    ('SELECT fieldcrypt_internal.change_access(current_user::regrole, ''{decrypt}'', true)'), ('SET LOCAL session_replication_role = replica');
\pset null '.'
SELECT statement,
       nullif(outcome_as('regress_fc_nobody', statement), '42501') AS nobody,
       nullif(outcome_as('regress_fc_encrypt', statement), '42501') AS encrypt,
       nullif(outcome_as('regress_fc_decrypt', statement), '42501') AS decrypt,
       nullif(outcome_as('regress_fc_reencrypt', statement), '42501') AS reencrypt,
       nullif(outcome_as('regress_fc_manage', statement), '42501') AS manage,
       nullif(outcome_as('regress_fc_audit', statement), '42501') AS audit,
       nullif(outcome_as('regress_fc_backup', statement), '42501') AS backup
  FROM attempt ORDER BY number;
\pset null '(null)'
-- Rotation, which commits, by a role with `manage` and by one without.
SET ROLE regress_fc_manage;
CALL fieldcrypt.rotate_keys('default', 'by a manager');
SET ROLE regress_fc_decrypt;
CALL fieldcrypt.rotate_keys('default', 'by somebody else');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SELECT event, actor = session_user AS is_actor, role, reason FROM test.new_log() WHERE reason LIKE 'by%';

-- Encrypting needs no right on the keys, not even for a tenant's first one; the log says who it was.
SET ROLE regress_fc_encrypt;
SELECT fieldcrypt.encrypt_field('x', tenant => 'somebody new') IS NOT NULL AS is_encrypted;
SELECT fieldcrypt.decrypt_field(v) FROM sample;
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SELECT event, tenant, actor = session_user AS is_actor, role FROM test.new_log();

-- `type` is for who declares columns, and gives nothing else; who uses values has it, until the last such privilege goes.
CREATE ROLE regress_fc_type;
GRANT CREATE ON SCHEMA public TO regress_fc_type;
SELECT fieldcrypt.grant_access('regress_fc_type', 'type');
SELECT statement, outcome_as('regress_fc_type', statement) AS type
  FROM (SELECT statement FROM attempt UNION ALL VALUES
    ('CREATE DOMAIN public.encrypted_text_of_mine AS fieldcrypt.encrypted'), ('CREATE TYPE mine AS (v fieldcrypt.encrypted)'),
    ('CREATE TABLE mine (v fieldcrypt.encrypted[], w fieldcrypt.encrypted); INSERT INTO mine (w) SELECT v FROM sample')) AS a
 WHERE outcome_as('regress_fc_type', statement) <> '42501';
SELECT nullif(fieldcrypt_internal.held_privileges('regress_fc_type'), '{}') AS held;
CREATE FUNCTION held_after(steps text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE step text; BEGIN
    FOREACH step IN ARRAY string_to_array(steps, ' ') LOOP
        EXECUTE format('SELECT fieldcrypt.%s_access(''regress_fc_type'', %L)', CASE left(step, 1) WHEN '+' THEN 'grant' ELSE 'revoke' END, substr(step, 2));
    END LOOP;
    RETURN format('%s, type: %s, schema: %s', fieldcrypt_internal.held_privileges('regress_fc_type'),
        has_type_privilege('regress_fc_type', 'fieldcrypt.encrypted', 'USAGE'), has_schema_privilege('regress_fc_type', 'fieldcrypt', 'USAGE'));
END $$;
SELECT steps, held_after(steps) FROM (VALUES
    ('+audit'), ('-audit'), ('+encrypt'), ('-type'), ('+decrypt -encrypt'), ('-decrypt'), ('+type +backup -type'), ('-backup'), ('+type -encrypt'), ('+encrypt +audit -encrypt'), ('-audit')) AS v (steps);
SELECT count(*) > 0 AS some FROM test.new_log();
DROP OWNED BY regress_fc_type;
DROP ROLE regress_fc_type;

-- What is wrong is refused whole.
SELECT call, e.code, e.message, e.hint FROM (VALUES
    ('grant_access(''regress_fc_nobody'', ''everything'')'), ('grant_access(''regress_fc_nobody'', ''Encrypt'')'),
    ('grant_access(''regress_fc_nobody'', ''encrypt'', ''typo'')'), ('grant_access(''regress_fc_nobody'', ''encrypt'', NULL)'),
    ('grant_access(''regress_fc_nobody'', ''value'')'), ('grant_access(''regress_fc_nobody'', ''schema'')'),
    ('grant_access(''regress_fc_nobody'', VARIADIC ''{}'')'), ('grant_access(''regress_fc_nobody'', VARIADIC NULL)'),
    ('grant_access(NULL, ''encrypt'')'), ('grant_access(''regress_fc_missing'', ''encrypt'')'),
    ('revoke_access(''regress_fc_encrypt'', ''everything'')'), ('revoke_access(NULL, ''encrypt'')')) AS c (call),
    test.error('SELECT fieldcrypt.' || call) AS e;
SELECT count(*) AS granted FROM pg_proc AS p, aclexplode(p.proacl) AS a WHERE a.grantee = 'regress_fc_nobody'::regrole;
SELECT count(*) FROM test.new_log();
GRANT USAGE ON SCHEMA fieldcrypt, fieldcrypt_internal TO regress_fc_nobody;
GRANT EXECUTE ON FUNCTION fieldcrypt.grant_access(regrole, text[]), fieldcrypt_internal.change_access(regrole, text[], boolean) TO regress_fc_nobody;
SET ROLE regress_fc_nobody;
\set VERBOSITY default
SELECT fieldcrypt.grant_access('regress_fc_nobody', 'decrypt');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY terse
RESET ROLE;
REVOKE ALL ON ALL ROUTINES IN SCHEMA fieldcrypt, fieldcrypt_internal FROM regress_fc_nobody;
REVOKE ALL ON SCHEMA fieldcrypt, fieldcrypt_internal FROM regress_fc_nobody;

-- Several at once, taken away one by one: what they share goes with the last.
CREATE FUNCTION rights(role regrole) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(what, ', ' ORDER BY number) FROM (VALUES
        (1, 'schema', has_schema_privilege(role, 'fieldcrypt', 'USAGE')),
        (2, 'type', has_type_privilege(role, 'fieldcrypt.encrypted', 'USAGE')),
        (3, 'key_id', has_function_privilege(role, 'fieldcrypt.key_id(fieldcrypt.encrypted)', 'EXECUTE')),
        (4, 'encrypt', has_function_privilege(role, 'fieldcrypt.encrypt_field(text, text, text)', 'EXECUTE')),
        (5, 'decrypt', has_function_privilege(role, 'fieldcrypt.decrypt_field(fieldcrypt.encrypted, text)', 'EXECUTE')),
        (6, 'reencrypt', has_function_privilege(role, 'fieldcrypt.reencrypt_field(fieldcrypt.encrypted, text)', 'EXECUTE')),
        (7, 'manage', has_function_privilege(role, 'fieldcrypt.rotate_keys(text, text, boolean)', 'EXECUTE')),
        (8, 'log', has_table_privilege(role, 'fieldcrypt.audit_log', 'SELECT')),
        (9, 'partition', has_table_privilege(role, 'fieldcrypt_internal.audit_log_2026', 'SELECT')),
        (10, 'keys', has_table_privilege(role, 'fieldcrypt.encryption_keys', 'SELECT')),
        (11, 'some of keys', has_any_column_privilege(role, 'fieldcrypt.encryption_keys', 'SELECT')),
        (12, 'master keys', has_table_privilege(role, 'fieldcrypt.master_keys', 'SELECT')),
        (13, 'sequence', has_sequence_privilege(role, 'fieldcrypt_internal.audit_log_id_seq', 'SELECT')),
        (14, 'internal', has_schema_privilege(role, 'fieldcrypt_internal', 'USAGE'))) AS r (number, what, has) WHERE has
$$;
SELECT fieldcrypt.grant_access('regress_fc_nobody', 'encrypt', 'decrypt', 'reencrypt', 'manage', 'audit', 'backup');
SELECT rights('regress_fc_nobody');
SELECT fieldcrypt.grant_access('regress_fc_nobody', 'encrypt');
SELECT fieldcrypt.revoke_access('regress_fc_nobody', 'manage');
SELECT rights('regress_fc_nobody');
SELECT fieldcrypt.revoke_access('regress_fc_nobody', 'backup');
SELECT rights('regress_fc_nobody');
SELECT fieldcrypt.revoke_access('regress_fc_nobody', 'decrypt', 'reencrypt');
SELECT rights('regress_fc_nobody');
SELECT fieldcrypt.revoke_access('regress_fc_nobody', 'encrypt');
SELECT rights('regress_fc_nobody');
SELECT fieldcrypt.revoke_access('regress_fc_nobody', 'audit');
SELECT rights('regress_fc_nobody') IS NULL AS nothing_is_left;
SELECT fieldcrypt.revoke_access('regress_fc_nobody', 'audit');
SELECT fieldcrypt.revoke_access('"regress fc odd; ""role"""', 'encrypt', 'decrypt');
SELECT event, reason FROM test.new_log();
REVOKE CREATE ON SCHEMA public FROM regress_fc_nobody;
DROP ROLE regress_fc_nobody;
DROP ROLE "regress fc odd; ""role""";
-- Membership is enough; PUBLIC is not a role that can be named.
CREATE ROLE regress_fc_member IN ROLE regress_fc_encrypt;
SELECT outcome_as('regress_fc_member', 'SELECT fieldcrypt.encrypt_field(''x'')') AS member;
SELECT test.outcome('SELECT fieldcrypt.grant_access(''public'', ''decrypt'')') AS public;

SET client_min_messages = warning;
DROP OWNED BY regress_fc_encrypt, regress_fc_decrypt, regress_fc_reencrypt, regress_fc_manage, regress_fc_audit, regress_fc_backup;
DROP ROLE regress_fc_encrypt, regress_fc_decrypt, regress_fc_reencrypt, regress_fc_manage, regress_fc_audit, regress_fc_backup, regress_fc_member;

-- Rights: nothing for PUBLIC; the rest by name.

REVOKE ALL ON SCHEMA fieldcrypt, fieldcrypt_internal FROM PUBLIC;
REVOKE ALL ON TYPE fieldcrypt.encrypted, fieldcrypt.encrypted_text, fieldcrypt_internal.any_encrypted, fieldcrypt_internal.health_finding FROM PUBLIC;

CREATE FUNCTION fieldcrypt_internal.privilege_objects(privilege text)
    RETURNS TABLE (rights text, object text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH listed (privileges, rights, object) AS (VALUES
        ('{encrypt}'::text[], 'EXECUTE', 'FUNCTION fieldcrypt.encrypt_field(text, text, text)'),
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.encrypt_field_bytea(bytea, text, text)'),
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.encrypt_field_jsonb(jsonb, text, text)'),
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.encrypt_field_as(anyelement, text, text)'),
        -- It asks for decrypt, too.
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.rebind_field(fieldcrypt.encrypted, text, text)'),
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.loosen(fieldcrypt.encrypted, text)'),
        -- Both are for the owner of the table.
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.protect_column(regclass, name, text[], name, text, text)'),
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.unprotect_column(regclass, name)'),
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.create_decrypted_view(regclass, text, text[])'),
        -- It has no right that its caller has not.
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.write_decrypted_view()'),
        -- Of the table's owner, who has decrypt, too. The steps ask for both.
        ('{encrypt}', 'EXECUTE', 'PROCEDURE fieldcrypt.encrypt_column(regclass, name, text[], name, text, text, text, integer, integer, boolean, boolean, interval)'),
        ('{encrypt}', 'EXECUTE', 'PROCEDURE fieldcrypt.undo_encrypt_column(regclass, name, text, boolean, interval)'),
        ('{encrypt}', 'EXECUTE', 'PROCEDURE fieldcrypt.column_migration_run(regclass, name, text, integer, integer, interval, text, boolean)'),
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.drop_plaintext_column(regclass, name)'),
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.column_migration_step(regclass, text, text)'),
        ('{encrypt,manage,audit}', 'SELECT', 'TABLE fieldcrypt.column_migrations'),
        -- It tells whether a guess is right.
        ('{decrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.is_sealed_as(fieldcrypt.encrypted, text, "any", integer)'),
        ('{decrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.decrypt_field(fieldcrypt.encrypted, text)'),
        ('{decrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.decrypt_field_bytea(fieldcrypt.encrypted, text)'),
        ('{decrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.decrypt_field_jsonb(fieldcrypt.encrypted, text)'),
        ('{decrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.decrypt_field_as(fieldcrypt.encrypted, anyelement, text)'),
        ('{decrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.try_decrypt_field(fieldcrypt.encrypted, text)'),
        ('{reencrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.reencrypt_field(fieldcrypt.encrypted, text)'),
        ('{encrypt,decrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.lock_tenant(text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.create_key(text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.create_loose_key()'),
        -- As for refuse_foreign: protect_column makes the trigger, and who restores a dump makes it again.
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.rotate_keys(text, text, boolean)'),
        -- Rotation of keys and of the master key, and their schedule.
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.rotate_step(text, text, boolean, bigint)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.refuse_unless_writable()'),
        ('{manage,audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.refuse_unless_committable()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.keys_from(text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.refuse_unless_made_here(text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.other_nodes()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.rotate_key(text, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.next_tenant(text, boolean, timestamptz)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.due_audit_key(boolean, timestamptz)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.due_loose_key(boolean, timestamptz)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.count_active_tenants()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.set_rotation_policy(text, interval)'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.rotate_master_key(integer, interval)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.target_master_key()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.begin_master_key_rotation(bytea)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.keys_to_rewrap(bytea)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.rewrap_step(bytea, bigint, integer)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.finish_master_key_rotation()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.lock_holders(regclass)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.short_fingerprint(bytea)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.schedule_rotation(text, text, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.unschedule_rotation()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.scheduled_jobs(text, text, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.refuse_without_cron(jsonb)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.schedule_jobs(jsonb)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.unschedule_jobs(jsonb)'),
        ('{manage,audit,backup}', 'SELECT', 'TABLE fieldcrypt.rotation_policies'),
        ('{manage,audit,backup}', 'SELECT', 'TABLE fieldcrypt.rotation_log'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.master_key_status()'),
        -- Re-encryption.
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.reencrypt(regclass, integer, integer, bigint, interval, interval)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.reencrypt_begin(regclass)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.reencrypt_step(integer, oid[], bigint)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.reencrypt_end(integer)'),
        ('{manage,reencrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.set_column_context(regclass, name, text, text, boolean)'),
        -- Who restores a dump as the owner of its tables creates the triggers again.
        ('{manage,reencrypt}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.refuse_foreign()'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.verify_values(regclass, name)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.verify_begin(regclass, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.verify_step(oid)'),
        ('{manage,audit}', 'SELECT', 'TABLE fieldcrypt.value_verifications'),
        ('{manage,audit}', 'SELECT', 'TABLE fieldcrypt.value_failures'),
        ('{encrypt,manage,audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.live_runs()'),
        ('{manage}', 'SELECT', 'TABLE fieldcrypt.reencryption_progress'),
        ('{manage}', 'SELECT', 'TABLE fieldcrypt.reencryption_failures'),
        ('{manage,backup}', 'SELECT', 'TABLE fieldcrypt.column_contexts'),
        -- Approvals.
        ('{manage,audit}', 'SELECT', 'TABLE fieldcrypt.approvals'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.request_approval(text, text, text, interval)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.withdraw_approval(bigint)'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.approve(bigint)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.approve_step(bigint)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.by_own_hand()'),
        -- The compliance report.
        ('{audit,manage}', 'EXECUTE', 'FUNCTION fieldcrypt.compliance_report(text, timestamptz, timestamptz, boolean, boolean)'),
        ('{audit,manage}', 'EXECUTE', 'FUNCTION fieldcrypt.compliance_report_html(text, timestamptz, timestamptz, boolean, boolean)'),
        -- Key states.
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.mark_compromised(bigint, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.suspend_key(bigint, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.resume_key(bigint, text)'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.shred_tenant(text, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.shred_step(text, text)'),
        -- Key usage and destruction.
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.key_usage(boolean)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.cancel_destroy_key(bigint, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.retire_keys(integer, text, interval, text)'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.destroy_key(bigint, interval, text)'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.destroy_due_keys(boolean)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.schedule_step(bigint, interval, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.scheduled_keys()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.quiet_step(bigint)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.destroy_step(bigint[], boolean)'),
        -- Backup of keys.
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.import_keys(text, boolean, boolean)'),
        ('{manage,backup}', 'EXECUTE', 'FUNCTION fieldcrypt.verify_keys()'),
        ('{manage,backup}', 'EXECUTE', 'FUNCTION fieldcrypt.key_states_status(text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.confirm_key_states(text)'),
        ('{manage,backup}', 'SELECT', 'TABLE fieldcrypt.origins'),
        ('{backup}', 'EXECUTE', 'FUNCTION fieldcrypt.export_keys()'),
        -- The audit log.
        ('{manage,audit}', 'EXECUTE', 'FUNCTION fieldcrypt.audit_status()'),
        -- What seals the audit log.
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.acknowledge_audit_fork(text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.acknowledge_audit_findings(text)'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.apply_audit_retention()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.next_audit_partition(text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.retire_audit_step(text)'),
        ('{audit,backup}', 'SELECT', 'TABLE fieldcrypt.audit_origins'),
        ('{audit,backup}', 'SELECT', 'TABLE fieldcrypt.audit_signers'),
        ('{audit,backup}', 'SELECT', 'TABLE fieldcrypt.audit_checkpoints'),
        ('{audit,backup}', 'SELECT', 'TABLE fieldcrypt.audit_retirements'),
        -- Health.
        ('{manage,audit}', 'EXECUTE', 'FUNCTION fieldcrypt.health(boolean)'),
        ('{manage,audit,backup}', 'SELECT', 'TABLE fieldcrypt.audit_verifications'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.check_alerts()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.alert_step()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.schedule_alerts(text, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.unschedule_alerts()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.alert_jobs(text, text)'),
        ('{manage,audit}', 'SELECT', 'TABLE fieldcrypt.alerts'),
        ('{manage,audit}', 'EXECUTE', 'PROCEDURE fieldcrypt.check_audit_log()'),
        ('{manage,audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.verification_step()'),
        -- Verification of the audit log.
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt.verify_audit_log(timestamptz, timestamptz, text)'),
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt.audit_export(timestamptz, timestamptz)'),
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt.audit_proof(bigint)'),
        ('{audit}', 'SELECT', 'TABLE fieldcrypt.audit_trail'),
        -- A view's functions are called with the rights of who reads it.
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.event_words()'),
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.access_words(text)'),
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.list_of(text[], integer)'),
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.shown_text(text, integer)'),
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.quoted_name(text)'),
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt.who_could(text, timestamptz)'),
        ('{manage,audit}', 'EXECUTE', 'FUNCTION fieldcrypt.snapshot_access()'),
        -- Audited tables.
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.audit_table(regclass)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.unaudit_table(regclass)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.audit_change()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.audit_triggers()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.has_audit_trigger(regclass, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.note_table_audit(regclass)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.record_table_audit(regclass, boolean)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.row_identity(oid)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.is_said_to_be_audited(regclass)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.problems_of_audited_table(regclass)'),
        ('{manage,backup}', 'SELECT', 'TABLE fieldcrypt.master_keys'),
        ('{manage}', 'SELECT (key_id, tenant, purpose, version, state, algorithm, master_key_fingerprint, key_check, created_at, deactivated_at, destroyed_at, suspended_from, destroy_scheduled_at, destroy_after, destroy_horizon)',
            'TABLE fieldcrypt.encryption_keys'),
        ('{audit}', 'SELECT', 'TABLE fieldcrypt.audit_log'),
        ('{backup}', 'SELECT', 'TABLE fieldcrypt.encryption_keys'),
        -- Statistics. Tenants' names may tell of persons: not for pg_monitor.
        ('{manage,audit}', 'SELECT', 'TABLE fieldcrypt.fieldcrypt_stats'),
        ('{manage,audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.tenant_statistics()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.fieldcrypt_stats_reset()'),
        -- What every use of a value needs: the type, its casts and its comparison.
        ('{value,type}', 'USAGE', 'TYPE fieldcrypt.encrypted'),
        ('{value,type}', 'USAGE', 'TYPE fieldcrypt.encrypted_text'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_text_from("any")'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_from_bytea(bytea)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_same(fieldcrypt.encrypted, fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_not_same(fieldcrypt.encrypted, fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_less(fieldcrypt.encrypted, fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_less_or_same(fieldcrypt.encrypted, fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_more_or_same(fieldcrypt.encrypted, fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_more(fieldcrypt.encrypted, fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_order(fieldcrypt.encrypted, fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_hash(fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_hash_extended(fieldcrypt.encrypted, bigint)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt.key_id(fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt.ciphertext_text(fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt.ciphertext_info(fieldcrypt.encrypted)'),
        ('{schema}', 'USAGE', 'SCHEMA fieldcrypt'),
        -- What procedures call and pg_dump reads is looked up by name, with the rights of who does it.
        ('{manage,audit,backup}', 'USAGE', 'SCHEMA fieldcrypt_internal')
    )
    SELECT l.rights, l.object FROM listed AS l WHERE $1 = ANY (l.privileges)
    UNION ALL
    SELECT 'SELECT', format('TABLE %s', i.inhrelid::regclass)
      FROM pg_inherits AS i
     WHERE $1 = 'backup' AND i.inhparent = 'fieldcrypt.audit_log'::regclass
$$;
COMMENT ON FUNCTION fieldcrypt_internal.privilege_objects(text) IS 'what each privilege of grant_access is made of';

CREATE FUNCTION fieldcrypt_internal.held_privileges(grantee regrole) RETURNS text[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
    -- The type belongs to those who use values; by itself it is a privilege, too.
    SELECT CASE WHEN h.privileges && '{encrypt,decrypt,reencrypt,manage}' THEN array_remove(h.privileges, 'type') ELSE h.privileges END
      FROM (
        SELECT coalesce(array_agg(m.privilege ORDER BY m.privilege), '{}') AS privileges
          FROM (
            SELECT 'encrypt'::text, p.proacl FROM pg_proc AS p WHERE p.oid = 'fieldcrypt.encrypt_field(text, text, text)'::regprocedure
            UNION ALL
            SELECT 'decrypt', p.proacl FROM pg_proc AS p WHERE p.oid = 'fieldcrypt.decrypt_field(fieldcrypt.encrypted, text)'::regprocedure
            UNION ALL
            SELECT 'reencrypt', p.proacl FROM pg_proc AS p WHERE p.oid = 'fieldcrypt.reencrypt_field(fieldcrypt.encrypted, text)'::regprocedure
            UNION ALL
            SELECT 'manage', p.proacl FROM pg_proc AS p WHERE p.oid = 'fieldcrypt.create_key(text)'::regprocedure
            UNION ALL
            SELECT 'audit', c.relacl FROM pg_class AS c WHERE c.oid = 'fieldcrypt.audit_log'::regclass
            UNION ALL
            SELECT 'backup', c.relacl FROM pg_class AS c WHERE c.oid = 'fieldcrypt.encryption_keys'::regclass
            UNION ALL
            SELECT 'type', t.typacl FROM pg_type AS t WHERE t.oid = 'fieldcrypt.encrypted'::regtype
          ) AS m (privilege, acl)
         WHERE EXISTS (SELECT FROM aclexplode(m.acl) AS a WHERE a.grantee = $1)
      ) AS h
$$;
COMMENT ON FUNCTION fieldcrypt_internal.held_privileges(regrole) IS 'the privileges that were granted to a role itself';

-- Those of some privileges that were granted to a role itself, once each, in the order in which they were named.
CREATE FUNCTION fieldcrypt_internal.held_of(target regrole, privileges text[]) RETURNS text[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(n.privilege ORDER BY n.place), '{}')
      FROM (SELECT u.privilege, min(u.place) AS place FROM unnest($2) WITH ORDINALITY AS u (privilege, place) GROUP BY u.privilege) AS n,
           fieldcrypt_internal.held_privileges($1) AS h (privileges)
     WHERE n.privilege = ANY (h.privileges) OR n.privilege = 'type' AND h.privileges && '{encrypt,decrypt,reencrypt,manage}'
$$;
COMMENT ON FUNCTION fieldcrypt_internal.held_of(regrole, text[]) IS 'which of some privileges were granted to a role itself; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.change_access(target regrole, privileges text[], granting boolean) RETURNS text[]
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner regrole := (SELECT n.nspowner FROM pg_namespace AS n WHERE n.nspname = 'fieldcrypt');
    verb text := CASE WHEN granting THEN 'GRANT' ELSE 'REVOKE' END;
    direction text := CASE WHEN granting THEN 'TO' ELSE 'FROM' END;
    known text[] := '{encrypt,decrypt,reencrypt,manage,audit,backup,type}';
    bundles text[] := privileges;
    had text[];
    held text[];
    item record;
BEGIN
    IF NOT pg_has_role(current_user, owner, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'only the owner of pg_fieldcrypt can change access to it',
            HINT = format('Connect as %s, or as a superuser.', owner);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.oid = target) OR coalesce(cardinality(privileges), 0) = 0 OR NOT privileges <@ known THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a role and at least one known privilege are needed',
            HINT = 'Privileges are: encrypt, decrypt, reencrypt, manage, audit, backup, type.';
    END IF;
    had := fieldcrypt_internal.held_of(target, privileges);
    held := ARRAY(SELECT unnest(fieldcrypt_internal.held_privileges(target)) EXCEPT SELECT unnest(privileges));
    IF NOT granting OR privileges && '{encrypt,decrypt,reencrypt,manage}' THEN
        bundles := bundles || 'value'::text;
    END IF;
    FOR item IN
        SELECT o.rights, o.object FROM unnest(bundles || 'schema'::text) AS b(name), fieldcrypt_internal.privilege_objects(b.name) AS o
    LOOP
        EXECUTE format('%s %s ON %s %s %s', verb, item.rights, item.object, direction, target);
    END LOOP;
    -- What was taken away and belongs to other privileges, too, comes back.
    IF NOT granting AND cardinality(held) > 0 THEN
        PERFORM fieldcrypt_internal.change_access(target, held, true);
    END IF;
    RETURN had;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.change_access(regrole, text[], boolean) IS 'what grant_access and revoke_access share; gives those of the privileges that the role had before';

CREATE FUNCTION fieldcrypt.grant_access(target regrole, VARIADIC privileges text[]) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    had text[];
    has text[];
BEGIN
    had := fieldcrypt_internal.change_access(target, privileges, true);
    PERFORM fieldcrypt_internal.record_event('access_granted', NULL, NULL,
        format('%s to %s', array_to_string(privileges, ', '), target), NULL);
    has := fieldcrypt_internal.held_of(target, privileges);
    IF has <@ had THEN
        RAISE NOTICE 'grant_access: nothing to do: role % has % already', target, array_to_string(had, ', ');
    ELSE
        RAISE NOTICE 'grant_access: role % now has %', target, array_to_string(has, ', ');
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt.grant_access(regrole, text[]) IS
    'gives a role some of: encrypt, decrypt, reencrypt, manage (keys and audited tables), audit (read the log), backup (what pg_dump must read), type (declare columns of type encrypted, nothing else)';

CREATE FUNCTION fieldcrypt.revoke_access(target regrole, VARIADIC privileges text[]) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    had text[];
    has text[];
    lost text;
BEGIN
    had := fieldcrypt_internal.change_access(target, privileges, false);
    PERFORM fieldcrypt_internal.record_event('access_revoked', NULL, NULL,
        format('%s from %s', array_to_string(privileges, ', '), target), NULL);
    has := fieldcrypt_internal.held_of(target, privileges);
    lost := (SELECT string_agg(h.privilege, ', ' ORDER BY h.place)
               FROM unnest(had) WITH ORDINALITY AS h (privilege, place) WHERE h.privilege <> ALL (has));
    IF lost IS NOT NULL THEN
        RAISE NOTICE 'revoke_access: role % no longer has %', target, lost;
    ELSIF has <> '{}' THEN
        RAISE NOTICE 'revoke_access: nothing to do: role % keeps %, which belongs to its other privileges', target, array_to_string(has, ', ');
    ELSE
        RAISE NOTICE 'revoke_access: nothing to do: role % has no %', target, array_to_string(privileges, ', ');
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt.revoke_access(regrole, text[]) IS 'takes privileges of grant_access away from a role';

REVOKE ALL ON ALL TABLES IN SCHEMA fieldcrypt, fieldcrypt_internal FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA fieldcrypt, fieldcrypt_internal FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA fieldcrypt, fieldcrypt_internal FROM PUBLIC;

-- ALTER DEFAULT PRIVILEGES of whoever creates the extension may have given roles rights on all this.
DO $default_privileges$
DECLARE
    schemas oid[] := '{fieldcrypt,fieldcrypt_internal}'::regnamespace[];
    item record;
BEGIN
    FOR item IN
        SELECT o.object, a.grantee::regrole AS grantee
          FROM (
            SELECT 'SCHEMA ' || n.oid::regnamespace, n.nspacl, n.nspowner
              FROM pg_catalog.pg_namespace AS n WHERE n.oid = ANY (schemas)
            UNION ALL
            SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass, c.relacl, c.relowner
              FROM pg_catalog.pg_class AS c
             WHERE c.relnamespace = ANY (schemas) AND c.relkind IN ('r', 'p', 'v', 'S')
            UNION ALL
            SELECT 'ROUTINE ' || p.oid::regprocedure, p.proacl, p.proowner
              FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = ANY (schemas)
            UNION ALL
            SELECT 'TYPE ' || t.oid::regtype, t.typacl, t.typowner
              FROM pg_catalog.pg_type AS t
             WHERE t.typnamespace = ANY (schemas) AND t.typname IN ('encrypted', 'encrypted_text', 'any_encrypted', 'health_finding')
          ) AS o (object, acl, owner), pg_catalog.aclexplode(o.acl) AS a
         WHERE a.grantee <> o.owner AND a.grantee <> 0
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON %s FROM %s', item.object, item.grantee);
    END LOOP;
END
$default_privileges$;

-- What reads no key and shows nothing, and runs in constraints and triggers for whoever writes a row.
GRANT EXECUTE ON FUNCTION fieldcrypt.context("any") TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt.is_protected(fieldcrypt.encrypted_text, text, text, text, text, "any") TO PUBLIC;
-- What only refuses, with a hint, for whoever writes it.
GRANT USAGE ON TYPE fieldcrypt_internal.any_encrypted TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.refuse_comparison(fieldcrypt.encrypted, fieldcrypt_internal.any_encrypted) TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.refuse_comparison_with_text(fieldcrypt.encrypted, text) TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.refuse_comparison_of_text(text, fieldcrypt.encrypted) TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.refuse_match(fieldcrypt.encrypted, text) TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.refuse_member(fieldcrypt.encrypted, text) TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.refuse_element(fieldcrypt.encrypted, integer) TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.refuse_order(fieldcrypt.encrypted, fieldcrypt.encrypted) TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.refuse_text(fieldcrypt.encrypted) TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.refuse_name(fieldcrypt.encrypted) TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.refuse_encrypted_text(fieldcrypt.encrypted_text) TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.refuse_encrypted_name(fieldcrypt.encrypted_text) TO PUBLIC;
-- Conditions of triggers are computed with the rights of who writes the row. Nobody calls these by name without
-- USAGE on their schema. They answer authentic or not, for a value that the caller holds already.
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.is_twin(anyelement, fieldcrypt.encrypted_text, text) TO PUBLIC;
-- Of triggers that partitions get from their parent, whoever makes them. By hand they give nobody what he has not: what they do
-- is the table's owner's right, and nobody has a name that is another's (refuse_taken_names).
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.bind_values() TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.carry_column() TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.is_foreign("any", text, text) TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.is_changed_to_foreign("any", text, "any", text, text) TO PUBLIC;

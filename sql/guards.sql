-- The guards of the tables: only the extension changes them, nobody empties them, and nothing is restored over
-- rows that are there. Tables with other guards have them where they are made: the audit log, whose partitions
-- need them too, approvals, and those of re-encryption, which it writes in SQL.
DO $guards$
DECLARE
    guarded record;
BEGIN
    FOR guarded IN
        SELECT g.name, g.restore_guard
          FROM (VALUES ('encryption_keys', 'refuse_restore_over'),
                       ('master_keys', 'refuse_restore_over'),
                       ('origins', 'refuse_restore_over'),
                       ('rotation_policies', 'refuse_restore_over'),
                       ('rotation_log', 'refuse_restore_over'),
                       ('audit_verifications', 'refuse_restore_over'),
                       ('audit_origins', 'refuse_restore_over_log'),
                       ('audit_signers', 'refuse_restore_over_log'),
                       ('audit_checkpoints', 'refuse_restore_over_log'),
                       ('audit_retirements', 'refuse_restore_over_log'),
                       ('column_contexts', NULL),
                       ('alerts', NULL)) AS g (name, restore_guard)
    LOOP
        EXECUTE pg_catalog.format(
            'CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON fieldcrypt.%I
                FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.refuse_change()', guarded.name);
        EXECUTE pg_catalog.format(
            'CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt.%I
                FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change()', guarded.name);
        IF guarded.restore_guard IS NOT NULL THEN
            EXECUTE pg_catalog.format(
                'CREATE TRIGGER refuse_restore BEFORE INSERT ON fieldcrypt.%I
                    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.%I()', guarded.name, guarded.restore_guard);
        END IF;
    END LOOP;
END
$guards$;

-- What a subscription brings. FOR ALL TABLES sends all tables of the extension, but most of them are one database's own:
-- two logs, for instance, have leaves of the same numbers. These keep what they have and take nothing; policies and
-- contexts replace those that are here. The other guards do not fire where replication applies, these only there.
DO $arriving$
DECLARE
    kept regclass;
    policies regclass;
BEGIN
    FOR kept IN
        SELECT c.oid::regclass
          FROM pg_catalog.pg_class AS c
         WHERE c.relnamespace IN ('fieldcrypt'::regnamespace, 'fieldcrypt_internal'::regnamespace) AND c.relkind IN ('r', 'p')
           AND c.oid <> ALL ('{fieldcrypt.encryption_keys,fieldcrypt.master_keys,fieldcrypt.rotation_policies,fieldcrypt.column_contexts}'::regclass[])
    LOOP
        -- For rows a partition has that of the whole.
        IF NOT (SELECT c.relispartition FROM pg_catalog.pg_class AS c WHERE c.oid = kept) THEN
            EXECUTE pg_catalog.format(
                'CREATE TRIGGER keep_own BEFORE INSERT OR UPDATE OR DELETE ON %s
                    FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.keep_own()', kept);
            EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE REPLICA TRIGGER keep_own', kept);
        END IF;
        EXECUTE pg_catalog.format(
            'CREATE TRIGGER keep_own_truncate BEFORE TRUNCATE ON %s
                FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.keep_own()', kept);
        EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE REPLICA TRIGGER keep_own_truncate', kept);
    END LOOP;
    FOREACH policies IN ARRAY '{fieldcrypt.rotation_policies,fieldcrypt.column_contexts}'::regclass[] LOOP
        EXECUTE pg_catalog.format(
            'CREATE TRIGGER take_over BEFORE INSERT ON %s
                FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.take_over()', policies);
        EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE REPLICA TRIGGER take_over', policies);
    END LOOP;
END
$arriving$;

-- Without a key, a table that is published lets no row be deleted.
ALTER TABLE fieldcrypt.reencryption_failures REPLICA IDENTITY FULL;
ALTER TABLE fieldcrypt.value_failures REPLICA IDENTITY FULL;

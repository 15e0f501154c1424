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

-- From 0.1.0 to 0.2.0: what does not follow from the files of sql/. See README.md here.

-- what follows from sql/ stands here

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

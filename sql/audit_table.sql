-- The triggers that write the audit log for a user's tables.

CREATE FUNCTION fieldcrypt._audit_change() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'fieldcrypt_audit_change';
COMMENT ON FUNCTION fieldcrypt._audit_change() IS 'trigger: records who changed which row and which encrypted columns';

CREATE FUNCTION fieldcrypt._record_table_audit(table_name text, audited boolean) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT fieldcrypt._record(
        CASE WHEN $2 THEN 'table_audited' ELSE 'table_unaudited' END, NULL, NULL, NULL, $1)
$$;
COMMENT ON FUNCTION fieldcrypt._record_table_audit(text, boolean) IS 'records that a table''s audit triggers were made or dropped';

-- With the caller's rights: whoever may not put a trigger on the table may not audit it.
CREATE FUNCTION fieldcrypt.audit_table(target regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kind "char" := (SELECT c.relkind FROM pg_class AS c WHERE c.oid = target);
    member regclass;
    changed boolean := false;
BEGIN
    IF target IS NULL OR kind IS NULL OR kind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('%s is not a table', coalesce(target::text, 'NULL')),
            HINT = 'Only tables and partitioned tables can be audited.';
    END IF;
    IF EXISTS (SELECT FROM pg_class AS c WHERE c.oid = target AND c.relnamespace = 'fieldcrypt'::regnamespace) THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('%s belongs to pg_fieldcrypt', target),
            HINT = 'Its own tables are recorded already.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = target AND tgname = 'fieldcrypt_audit_change') THEN
        -- Partitions that were audited on their own get the trigger of the whole instead.
        FOR member IN
            SELECT t.tgrelid FROM pg_partition_tree(target) AS p
              JOIN pg_trigger AS t ON t.tgrelid = p.relid AND t.tgname = 'fieldcrypt_audit_change'
        LOOP
            EXECUTE format('DROP TRIGGER fieldcrypt_audit_change ON %s', member);
        END LOOP;
        EXECUTE format(
            'CREATE TRIGGER fieldcrypt_audit_change AFTER INSERT OR UPDATE OR DELETE ON %s
                FOR EACH ROW EXECUTE FUNCTION fieldcrypt._audit_change()', target);
        changed := true;
    END IF;
    FOR member IN
        SELECT m.relid FROM (SELECT target AS relid UNION SELECT relid FROM pg_partition_tree(target)) AS m
          JOIN pg_class AS c ON c.oid = m.relid AND c.relkind IN ('r', 'p')
         WHERE NOT EXISTS (SELECT FROM pg_trigger AS t
                            WHERE t.tgrelid = m.relid AND t.tgname = 'fieldcrypt_audit_truncate')
    LOOP
        EXECUTE format(
            'CREATE TRIGGER fieldcrypt_audit_truncate AFTER TRUNCATE ON %s
                FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt._audit_change()', member);
        changed := true;
    END LOOP;
    IF changed THEN
        PERFORM fieldcrypt._record_table_audit(target::text, true);
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt.audit_table(regclass) IS
    'records every INSERT, UPDATE, DELETE and TRUNCATE of a table in fieldcrypt.audit_log: row and columns, never a value. Twice is harmless';

CREATE FUNCTION fieldcrypt.unaudit_table(target regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_trigger record;
    changed boolean := false;
BEGIN
    FOR found_trigger IN
        SELECT t.tgrelid::regclass AS relation, t.tgname AS name
          FROM (SELECT target AS relid UNION SELECT relid FROM pg_partition_tree(target)) AS m
          JOIN pg_trigger AS t ON t.tgrelid = m.relid
         WHERE t.tgname IN ('fieldcrypt_audit_change', 'fieldcrypt_audit_truncate')
           AND t.tgparentid = 0
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', found_trigger.name, found_trigger.relation);
        changed := true;
    END LOOP;
    IF changed THEN
        PERFORM fieldcrypt._record_table_audit(target::text, false);
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt.unaudit_table(regclass) IS 'takes the triggers of audit_table away';

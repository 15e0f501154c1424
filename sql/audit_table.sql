-- The triggers that write the audit log for a user's tables.

CREATE FUNCTION fieldcrypt_internal.audit_change() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'fieldcrypt_audit_change';
COMMENT ON FUNCTION fieldcrypt_internal.audit_change() IS 'trigger: records who changed which row and which encrypted columns';

-- Whether a table has the triggers, enabled and of this extension: a name alone proves nothing.
CREATE FUNCTION fieldcrypt_internal.has_audit_trigger(target regclass, trigger_name name) RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM pg_trigger AS t
                    WHERE t.tgrelid = $1 AND t.tgname = $2 AND t.tgenabled IN ('O', 'A')
                      AND t.tgfoid = 'fieldcrypt_internal.audit_change()'::regprocedure)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.has_audit_trigger(regclass, name) IS 'whether a table has that trigger of audit_table, enabled';

-- Records what is so, not what the caller says: whoever may call this can't forge an entry.
CREATE FUNCTION fieldcrypt_internal.record_table_audit(target regclass, audited boolean) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = target)
       OR audited IS DISTINCT FROM fieldcrypt_internal.has_audit_trigger(target, 'fieldcrypt_audit_change')
       OR NOT has_table_privilege(fieldcrypt_internal.outer_role()::name, target, 'TRIGGER') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'only what audit_table and unaudit_table have done to a table of yours is recorded';
    END IF;
    PERFORM fieldcrypt_internal.record_event(
        CASE WHEN audited THEN 'table_audited' ELSE 'table_unaudited' END, NULL, NULL, NULL, target::text);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.record_table_audit(regclass, boolean) IS 'records that a table''s audit triggers were made or dropped';

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
    IF EXISTS (SELECT FROM pg_class AS c WHERE c.oid = target AND c.relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])) THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('%s belongs to pg_fieldcrypt', target),
            HINT = 'Its own tables are recorded already.';
    END IF;
    IF NOT fieldcrypt_internal.has_audit_trigger(target, 'fieldcrypt_audit_change') THEN
        -- Partitions that were audited on their own get the trigger of the whole instead; one that
        -- only has the name, or is disabled, is made anew.
        FOR member IN
            SELECT m.relid FROM (SELECT target AS relid UNION SELECT relid FROM pg_partition_tree(target)) AS m
              JOIN pg_trigger AS t ON t.tgrelid = m.relid AND t.tgname = 'fieldcrypt_audit_change'
             WHERE t.tgparentid = 0
        LOOP
            EXECUTE format('DROP TRIGGER fieldcrypt_audit_change ON %s', member);
        END LOOP;
        EXECUTE format(
            'CREATE TRIGGER fieldcrypt_audit_change AFTER INSERT OR UPDATE OR DELETE ON %s
                FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.audit_change()', target);
        changed := true;
    END IF;
    FOR member IN
        SELECT m.relid FROM (SELECT target AS relid UNION SELECT relid FROM pg_partition_tree(target)) AS m
          JOIN pg_class AS c ON c.oid = m.relid AND c.relkind IN ('r', 'p')
         WHERE NOT fieldcrypt_internal.has_audit_trigger(m.relid, 'fieldcrypt_audit_truncate')
    LOOP
        IF EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = member AND t.tgname = 'fieldcrypt_audit_truncate') THEN
            EXECUTE format('DROP TRIGGER fieldcrypt_audit_truncate ON %s', member);
        END IF;
        EXECUTE format(
            'CREATE TRIGGER fieldcrypt_audit_truncate AFTER TRUNCATE ON %s
                FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.audit_change()', member);
        changed := true;
    END LOOP;
    IF changed THEN
        PERFORM fieldcrypt_internal.record_table_audit(target, true);
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
        PERFORM fieldcrypt_internal.record_table_audit(target, false);
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt.unaudit_table(regclass) IS 'takes the triggers of audit_table away';

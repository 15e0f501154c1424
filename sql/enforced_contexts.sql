-- Contexts that are enforced: triggers that refuse what is not authentic for the row that it is written to.
--
-- The declaration is the condition of two triggers: it follows renames, goes into dumps, is copied to partitions
-- that are attached later, and is created by pg_restore after the data are there. AFTER ROW, so that it sees the row
-- as it was stored, whatever other triggers and generated columns did; and since the condition itself refuses, and is
-- never met, no event is queued.

CREATE FUNCTION fieldcrypt_internal.is_foreign(value "any", context text, column_name text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10 AS 'MODULE_PATHNAME', 'fieldcrypt_is_foreign';
COMMENT ON FUNCTION fieldcrypt_internal.is_foreign("any", text, text) IS
    'condition of triggers: an error unless a value is authentic for the context of its row; otherwise false';
CREATE FUNCTION fieldcrypt_internal.is_changed_to_foreign(
        value "any", context text, old_value "any", old_context text, column_name text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10 AS 'MODULE_PATHNAME', 'fieldcrypt_is_changed_to_foreign';
COMMENT ON FUNCTION fieldcrypt_internal.is_changed_to_foreign("any", text, "any", text, text) IS
    'the same for an UPDATE: what was there before, and is bound to the same, passes';

CREATE FUNCTION fieldcrypt_internal.refuse_foreign() RETURNS trigger
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_foreign';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_foreign() IS
    'what the triggers of an enforced context have as their function; their condition does the work and is never met';

CREATE FUNCTION fieldcrypt_internal.enforcing_triggers()
    RETURNS TABLE (relation oid, trigger_name text, column_name text, is_update boolean, fires boolean, is_copy boolean)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off SET standard_conforming_strings = on
AS $$
    SELECT t.tgrelid, t.tgname::text,
           (parse_ident(d.parts[3]))[1], d.parts[2] = 'is_changed_to_foreign',
           -- AFTER UPDATE or AFTER INSERT FOR EACH ROW, of all columns, at once, and on no other condition.
           t.tgenabled IN ('O', 'A') AND t.tgtype = CASE d.parts[2] WHEN 'is_changed_to_foreign' THEN 17 ELSE 5 END
               AND t.tgattr::text = '' AND t.tgconstraint = 0 AND d.parts[1] = '',
           t.tgparentid <> 0
      FROM pg_trigger AS t,
           regexp_match(pg_get_triggerdef(t.oid),
               ' WHEN \((.*?)fieldcrypt_internal\.(is_foreign|is_changed_to_foreign)\(new\.("(?:[^"]|"")+"|[a-z0-9_$]+), ') AS d(parts)
     WHERE t.tgfoid = 'fieldcrypt_internal.refuse_foreign()'::regprocedure
$$;
COMMENT ON FUNCTION fieldcrypt_internal.enforcing_triggers() IS
    'the triggers of enforced contexts: on which table, for which column, whether they fire, whether they are a partition''s copy';

CREATE FUNCTION fieldcrypt_internal.drop_enforcing_triggers(relation oid, column_name text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
AS $$
DECLARE
    item record;
    dropped boolean := false;
BEGIN
    FOR item IN
        SELECT e.relation, e.trigger_name
          FROM fieldcrypt_internal.enforcing_triggers() AS e
         WHERE e.column_name = $2 AND NOT e.is_copy
           AND e.relation IN (SELECT t.relation FROM fieldcrypt_internal.with_descendants($1) AS t)
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', item.trigger_name, item.relation::regclass);
        dropped := true;
    END LOOP;
    RETURN dropped;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.drop_enforcing_triggers(oid, text) IS
    'what is written to a column is not checked any more; says whether it was';

CREATE FUNCTION fieldcrypt_internal.create_enforcing_triggers(
        relation oid, column_name text, new_context text, old_context text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off SET standard_conforming_strings = on
AS $$
DECLARE
    item record;
    trigger_name text;
    number integer;
BEGIN
    -- Partitions have their parent's triggers; tables that inherit otherwise do not. Those of another owner are his.
    FOR item IN
        SELECT c.oid::regclass AS relation, format('%s.%I', c.oid::regclass, $2) AS place
          FROM fieldcrypt_internal.with_descendants($1) AS t
          JOIN pg_class AS c ON c.oid = t.relation
         WHERE c.relkind IN ('r', 'p') AND (c.oid = $1 OR NOT c.relispartition)
           AND c.relowner = (SELECT o.relowner FROM pg_class AS o WHERE o.oid = $1)
    LOOP
        number := 0;
        LOOP
            trigger_name := format('fieldcrypt_context_%s', number);
            EXIT WHEN NOT EXISTS (
                SELECT FROM pg_trigger AS g
                 WHERE g.tgname IN (trigger_name || '_insert', trigger_name || '_update')
                   AND g.tgrelid IN (SELECT t.relation FROM fieldcrypt_internal.with_descendants(item.relation) AS t));
            number := number + 1;
        END LOOP;
        EXECUTE format('CREATE TRIGGER %I AFTER INSERT ON %s FOR EACH ROW
            WHEN (fieldcrypt_internal.is_foreign(new.%I, %s, %L)) EXECUTE FUNCTION fieldcrypt_internal.refuse_foreign()',
            trigger_name || '_insert', item.relation, $2, new_context, item.place);
        EXECUTE format('CREATE TRIGGER %I AFTER UPDATE ON %s FOR EACH ROW
            WHEN (fieldcrypt_internal.is_changed_to_foreign(new.%I, %s, old.%I, %s, %L)) EXECUTE FUNCTION fieldcrypt_internal.refuse_foreign()',
            trigger_name || '_update', item.relation, $2, new_context, $2, old_context, item.place);
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.create_enforcing_triggers(oid, text, text, text) IS
    'what is written to a column is checked from now on';

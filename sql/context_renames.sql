-- Contexts follow renames. They are remembered by name, so that a dump restores them; but a name is not what stays of a
-- table. So before an ALTER that renames something it is looked up what the names mean, and after it they are brought up
-- to what they are now: of the table, its schema, the column, and the columns in the expression. What it writes is about
-- what the statement itself has locked: DDL on other tables neither waits for it nor costs more.

CREATE FUNCTION fieldcrypt_internal.column_names(relation oid) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(jsonb_object_agg(a.attnum, a.attname), '{}') FROM pg_attribute AS a
     WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
$$;
COMMENT ON FUNCTION fieldcrypt_internal.column_names(oid) IS 'the columns of a table, by number';

CREATE FUNCTION fieldcrypt_internal.renamed_expression(relation oid, expression text, old_table text, old_columns text)
    RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_renamed_expression';
COMMENT ON FUNCTION fieldcrypt_internal.renamed_expression(oid, text, text, text) IS
    'an expression that calls a table and its columns by old names, with those of now; old_columns: identifiers, comma-separated, one for each column that is there';

-- Typed tables have the columns of their type, and descendants those of their parent.
CREATE FUNCTION fieldcrypt_internal.altered_tables(what text, object oid) RETURNS TABLE (relation oid)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off SET jit = off
AS $$
    WITH RECURSIVE tree (relation) AS (
        SELECT a.relation
          FROM (SELECT $2 WHERE $1 = 'relation'
                UNION
                SELECT t.oid FROM pg_class AS c JOIN pg_class AS t ON t.reloftype = c.reltype
                 WHERE $1 = 'relation' AND c.oid = $2 AND c.relkind = 'c'
                UNION
                SELECT c.oid FROM pg_class AS c WHERE $1 = 'schema' AND c.relnamespace = $2 AND c.relkind IN ('r', 'p')
                UNION
                SELECT to_regclass(x.table_name)::oid FROM fieldcrypt.column_contexts AS x WHERE $1 = 'extension') AS a (relation)
         WHERE a.relation IS NOT NULL
        UNION
        SELECT i.inhrelid FROM tree AS t JOIN pg_inherits AS i ON i.inhparent = t.relation
    )
    SELECT t.relation FROM tree AS t
$$;
COMMENT ON FUNCTION fieldcrypt_internal.altered_tables(text, oid) IS 'tables whose name, or whose columns'' names, an ALTER may change; what: relation, schema or extension (all)';

-- PostgreSQL drops a CHECK constraint with any column that it names: with a column of the key the declaration would be gone,
-- and with it the place by which every value is bound to its row.
CREATE FUNCTION fieldcrypt_internal.declared_columns(relation oid) RETURNS jsonb
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_agg(d.attnum)
      FROM jsonb_to_recordset(CASE WHEN EXISTS (
               SELECT FROM pg_constraint AS k JOIN pg_depend AS u ON u.classid = 'pg_constraint'::regclass AND u.objid = k.oid
                WHERE k.conrelid = $1 AND k.contype = 'c' AND u.refclassid = 'pg_proc'::regclass
                  AND u.refobjid = 'fieldcrypt.is_protected(fieldcrypt.encrypted_text, text, text, text, text, "any")'::regprocedure)
           THEN fieldcrypt_internal.declarations($1)::jsonb ELSE '[]' END) AS d (attnum smallint)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.declared_columns(oid) IS 'the protected columns of a table, by number; NULL if it has none';

CREATE FUNCTION fieldcrypt_internal.refuse_undeclared(relation oid, declared jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    lost text;
BEGIN
    SELECT a.attname INTO lost
      FROM jsonb_array_elements_text(declared) AS d (attnum)
      JOIN pg_attribute AS a ON a.attrelid = $1 AND a.attnum = d.attnum::smallint AND NOT a.attisdropped
     WHERE NOT coalesce(fieldcrypt_internal.declared_columns($1), '[]') @> to_jsonb(d.attnum::smallint) LIMIT 1;
    IF lost IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',
            MESSAGE = format('column "%s" of table %s would not be protected any more: its declaration goes with what is dropped', lost, $1::regclass),
            HINT = format('Its values are bound to what the declaration names. SELECT fieldcrypt.unprotect_column(%L, %L) first, if that is meant; another key for the rows: see docs/columns.md.',
                $1::regclass, lost);
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.refuse_undeclared(oid, jsonb) IS 'an error if a column that was protected is no longer, and is still there; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.before_alter(what text, object oid) RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off SET jit = off
AS $$
DECLARE
    declared jsonb;
    contexts text;
BEGIN
    IF what = 'leaves' THEN
        RETURN coalesce((SELECT jsonb_build_object('leaves', object::bigint, 'parents', jsonb_agg(i.inhparent::bigint))
                           FROM pg_inherits AS i WHERE i.inhrelid = object HAVING count(*) > 0)::text, '');
    END IF;
    IF what = 'relation' THEN
        declared := fieldcrypt_internal.declared_columns(object);
    ELSIF what = 'our relation' THEN
        what := 'relation';
    END IF;
    IF declared IS NULL AND NOT EXISTS (SELECT FROM fieldcrypt.column_contexts) THEN
        RETURN '';
    END IF;
    -- Of those that count: a table of another owner may have the name by now.
    contexts := coalesce((
        SELECT jsonb_agg(jsonb_build_object('table_name', x.table_name, 'column_name', x.column_name, 'relation', c.oid::bigint,
                   'attnum', a.attnum, 'relname', c.relname, 'names', fieldcrypt_internal.column_names(c.oid)))
          FROM fieldcrypt_internal.altered_tables(what, object) AS t
          JOIN pg_class AS c ON c.oid = t.relation
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
          JOIN fieldcrypt.column_contexts AS x
            ON x.table_name = format('%I.%I', n.nspname, c.relname) AND fieldcrypt_internal.is_owner(x, c.relowner)
          JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = x.column_name AND NOT a.attisdropped)::text, '');
    RETURN CASE WHEN declared IS NULL THEN contexts
                ELSE jsonb_build_object('declared', declared, 'relation', object::bigint, 'contexts', nullif(contexts, '')::jsonb)::text END;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.before_alter(text, oid) IS 'what an ALTER may change of remembered contexts, or take from a partition, as it is before; empty: nothing; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.after_alter(before text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF before::jsonb ? 'declared' THEN
        PERFORM fieldcrypt_internal.refuse_undeclared((before::jsonb ->> 'relation')::oid, before::jsonb -> 'declared');
        IF jsonb_typeof(before::jsonb -> 'contexts') = 'array' THEN
            PERFORM fieldcrypt_internal.move_contexts(before::jsonb -> 'contexts');
        END IF;
    ELSIF jsonb_typeof(before::jsonb) = 'object' THEN
        PERFORM fieldcrypt_internal.follow_parents((before::jsonb ->> 'leaves')::oid, before::jsonb -> 'parents');
    ELSE
        PERFORM fieldcrypt_internal.move_contexts(before::jsonb);
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.after_alter(text) IS 'what follows from what before_alter found; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.move_contexts(before jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off SET jit = off
AS $$
DECLARE
    item record;
    context fieldcrypt.column_contexts;
    moved fieldcrypt.column_contexts[] := '{}';
BEGIN
    FOR item IN
        SELECT x AS context, c.oid AS relation, b.names AS old_names, now.names, b.relname AS old_relname, x.table_name AS old_table,
               x.column_name AS old_column, format('%I.%I', n.nspname, c.relname) AS table_name, a.attname::text AS column_name, c.relname::text,
               c.relowner::regrole::text AS table_owner
          FROM jsonb_to_recordset(before) AS b (table_name text, column_name text, relation bigint, attnum smallint, relname text, names jsonb)
          JOIN fieldcrypt.column_contexts AS x ON x.table_name = b.table_name AND x.column_name = b.column_name
          JOIN pg_class AS c ON c.oid = b.relation::oid AND fieldcrypt_internal.is_owner(x, c.relowner)
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
          JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = b.attnum AND NOT a.attisdropped,
               LATERAL (SELECT fieldcrypt_internal.column_names(c.oid)) AS now (names)
    LOOP
        CONTINUE WHEN (item.table_name, item.column_name, item.names) = (item.old_table, item.old_column, item.old_names);
        context := item.context;
        context.table_name := item.table_name;
        context.column_name := item.column_name;
        context.table_owner := item.table_owner;
        IF context.expression IS NOT NULL AND (item.names <> item.old_names OR item.old_relname <> item.relname) THEN
            BEGIN
                context.expression := fieldcrypt_internal.renamed_expression(
                    item.relation, context.expression, item.old_relname,
                    (SELECT string_agg(quote_ident(coalesce(item.old_names ->> n.key, '?' || n.key)), ',' ORDER BY n.key::integer)
                       FROM jsonb_each_text(item.names) AS n));
            EXCEPTION
            WHEN out_of_memory THEN
                RAISE;
            WHEN OTHERS THEN
                RAISE WARNING USING
                    MESSAGE = format('the context of %s.%I can''t be computed any more: %s', context.table_name, context.column_name, SQLERRM),
                    HINT = 'Say it anew: SELECT fieldcrypt.set_column_context(...).';
            END;
        END IF;
        moved := moved || context;
        DELETE FROM fieldcrypt.column_contexts AS x WHERE x.table_name = item.old_table AND x.column_name = item.old_column;
        IF (item.table_name, item.column_name) <> (item.old_table, item.old_column) THEN
            RAISE NOTICE 'the context that was remembered for %.% is that of %.% now',
                item.old_table, quote_ident(item.old_column), item.table_name, quote_ident(item.column_name);
        END IF;
    END LOOP;
    -- What had such a name before is gone.
    INSERT INTO fieldcrypt.column_contexts SELECT m.* FROM unnest(moved) AS m
        ON CONFLICT ON CONSTRAINT column_contexts_pkey DO UPDATE
       SET (constant, expression, table_owner, owner_here, set_by, set_at, enforced)
           = ROW (excluded.constant, excluded.expression, excluded.table_owner, excluded.owner_here, excluded.set_by, excluded.set_at, excluded.enforced);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.move_contexts(jsonb) IS 'brings the names in column_contexts up to what they are after an ALTER; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.note_alter() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'fieldcrypt_note_alter';
COMMENT ON FUNCTION fieldcrypt_internal.note_alter() IS 'event trigger: remembered contexts follow what is renamed, and partitions that are detached are told of';

DO $$
DECLARE
    moment text;
BEGIN
    FOREACH moment IN ARRAY '{start,end}'::pg_catalog.text[] LOOP
        EXECUTE pg_catalog.format(
            'CREATE EVENT TRIGGER fieldcrypt_renames_%1$s ON ddl_command_%1$s
                WHEN TAG IN (''ALTER TABLE'', ''ALTER SCHEMA'', ''ALTER EXTENSION'', ''ALTER INDEX'', ''ALTER VIEW'',
                             ''ALTER MATERIALIZED VIEW'', ''ALTER FOREIGN TABLE'', ''ALTER TYPE'')
                EXECUTE FUNCTION fieldcrypt_internal.note_alter()', moment);
        EXECUTE pg_catalog.format('ALTER EVENT TRIGGER fieldcrypt_renames_%s ENABLE ALWAYS', moment);
        EXECUTE pg_catalog.format('COMMENT ON EVENT TRIGGER fieldcrypt_renames_%s IS %L', moment,
            'remembered contexts of encrypted columns follow renames');
    END LOOP;
END
$$;

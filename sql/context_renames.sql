-- Contexts follow renames. They are remembered by name, so that a dump restores them; but a name is not what stays of a
-- table. So its number stands beside, in this database only, and after each ALTER that may have renamed something the
-- names are brought up to what they are now: of the table, its schema, the column, and the columns in the expression.

CREATE TABLE fieldcrypt_internal.context_places (
    table_name text NOT NULL,
    column_name text NOT NULL,
    relation oid NOT NULL,
    attnum smallint NOT NULL,
    owner oid NOT NULL,
    names jsonb NOT NULL,
    PRIMARY KEY (table_name, column_name)
);
CREATE TRIGGER refuse_change BEFORE INSERT OR UPDATE OR DELETE ON fieldcrypt_internal.context_places
    FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt_internal.context_places
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
COMMENT ON TABLE fieldcrypt_internal.context_places IS 'which table and column a row of column_contexts is about, whatever they are called; not in dumps, where names tell';
COMMENT ON COLUMN fieldcrypt_internal.context_places.table_name IS 'as in column_contexts';
COMMENT ON COLUMN fieldcrypt_internal.context_places.column_name IS 'as in column_contexts';
COMMENT ON COLUMN fieldcrypt_internal.context_places.relation IS 'the table';
COMMENT ON COLUMN fieldcrypt_internal.context_places.attnum IS 'the column';
COMMENT ON COLUMN fieldcrypt_internal.context_places.owner IS 'the role that column_contexts names as the owner';
COMMENT ON COLUMN fieldcrypt_internal.context_places.names IS 'the columns of the table as the expression calls them, by number';

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

-- A dropped column or table, or one that another has taken the place of.
CREATE FUNCTION fieldcrypt_internal.note_context_places() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
BEGIN
    DELETE FROM fieldcrypt_internal.context_places AS p
     WHERE NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = p.relation AND a.attnum = p.attnum AND NOT a.attisdropped)
        OR NOT EXISTS (SELECT FROM fieldcrypt.column_contexts AS x
                        WHERE x.table_name = p.table_name AND x.column_name = p.column_name);
    INSERT INTO fieldcrypt_internal.context_places (table_name, column_name, relation, attnum, owner, names)
    SELECT x.table_name, x.column_name, c.oid, a.attnum, c.relowner, fieldcrypt_internal.column_names(c.oid)
      FROM fieldcrypt.column_contexts AS x
      JOIN pg_class AS c ON c.oid = to_regclass(x.table_name) AND c.relowner::regrole::text = x.table_owner
      JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = x.column_name AND NOT a.attisdropped
     WHERE NOT EXISTS (SELECT FROM fieldcrypt_internal.context_places AS p
                        WHERE p.table_name = x.table_name AND p.column_name = x.column_name)
        -- Another session notes the same just now: it is waited for.
        ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.note_context_places() IS 'notes which tables and columns the names in column_contexts mean now; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.move_contexts() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    item record;
    context fieldcrypt.column_contexts;
    moved fieldcrypt.column_contexts[] := '{}';
BEGIN
    FOR item IN
        SELECT x AS context, p.relation, p.names AS old_names, now.names, x.table_name AS old_table, x.column_name AS old_column,
               format('%I.%I', n.nspname, c.relname) AS table_name, a.attname::text AS column_name, c.relname::text,
               CASE WHEN c.relowner = p.owner THEN p.owner::regrole::text ELSE x.table_owner END AS table_owner
          FROM fieldcrypt_internal.context_places AS p
          JOIN fieldcrypt.column_contexts AS x ON x.table_name = p.table_name AND x.column_name = p.column_name
          JOIN pg_class AS c ON c.oid = p.relation
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
          JOIN pg_attribute AS a ON a.attrelid = p.relation AND a.attnum = p.attnum AND NOT a.attisdropped,
               LATERAL (SELECT fieldcrypt_internal.column_names(c.oid)) AS now (names)
    LOOP
        CONTINUE WHEN (item.table_name, item.column_name, item.table_owner, item.names)
            = (item.old_table, item.old_column, (item.context).table_owner, item.old_names);
        context := item.context;
        context.table_name := item.table_name;
        context.column_name := item.column_name;
        context.table_owner := item.table_owner;
        -- Columns that were added since are of no concern to it.
        IF context.expression IS NOT NULL
           AND (NOT item.names @> item.old_names OR (parse_ident(item.old_table))[2] <> item.relname) THEN
            BEGIN
                context.expression := fieldcrypt_internal.renamed_expression(
                    item.relation, context.expression, (parse_ident(item.old_table))[2],
                    (SELECT string_agg(quote_ident(coalesce(item.old_names ->> n.key,
                                CASE WHEN EXISTS (SELECT FROM jsonb_each_text(item.old_names) AS o WHERE o.value = n.value)
                                     THEN '?' || n.key ELSE n.value END)), ',' ORDER BY n.key::integer)
                       FROM jsonb_each_text(item.names) AS n));
            EXCEPTION WHEN OTHERS THEN
                RAISE WARNING USING
                    MESSAGE = format('the context of %s.%I can''t be computed any more: %s', context.table_name, context.column_name, SQLERRM),
                    HINT = 'Say it anew: SELECT fieldcrypt.set_column_context(...).';
            END;
        END IF;
        moved := moved || context;
        DELETE FROM fieldcrypt.column_contexts AS x WHERE x.table_name = item.old_table AND x.column_name = item.old_column;
        DELETE FROM fieldcrypt_internal.context_places AS p WHERE p.table_name = item.old_table AND p.column_name = item.old_column;
        IF (item.table_name, item.column_name) <> (item.old_table, item.old_column) THEN
            RAISE NOTICE 'the context that was remembered for %.% is that of %.% now',
                item.old_table, quote_ident(item.old_column), item.table_name, quote_ident(item.column_name);
        END IF;
    END LOOP;
    -- Whose name one of them has now is gone.
    INSERT INTO fieldcrypt.column_contexts SELECT m.* FROM unnest(moved) AS m
        ON CONFLICT ON CONSTRAINT column_contexts_pkey DO UPDATE
       SET (constant, expression, table_owner, set_by, set_at, enforced)
           = ROW (excluded.constant, excluded.expression, excluded.table_owner, excluded.set_by, excluded.set_at, excluded.enforced);
    PERFORM fieldcrypt_internal.note_context_places();
    PERFORM fieldcrypt_internal.follow_parents();
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.move_contexts() IS 'brings the names in column_contexts up to what they are now, and what partitions had of their parents; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.follow_renames() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_follow_renames';
COMMENT ON FUNCTION fieldcrypt_internal.follow_renames() IS 'move_contexts past the guards of the tables; granted to nobody';

-- Before an ALTER, so that what a dump brought has its place noted while the names are right; and after it.
CREATE FUNCTION fieldcrypt_internal.note_alter() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM fieldcrypt.column_contexts)
       OR EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgfoid = 'fieldcrypt_internal.audit_change()'::regprocedure) THEN
        PERFORM fieldcrypt_internal.follow_renames();
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.note_alter() IS 'event trigger: remembered contexts follow what was renamed, and partitions that were detached are told of';

DO $$
DECLARE
    moment text;
BEGIN
    FOREACH moment IN ARRAY '{start,end}'::pg_catalog.text[] LOOP
        EXECUTE pg_catalog.format(
            'CREATE EVENT TRIGGER fieldcrypt_renames_%1$s ON ddl_command_%1$s
                WHEN TAG IN (''ALTER TABLE'', ''ALTER SCHEMA'', ''ALTER EXTENSION'', ''ALTER INDEX'', ''ALTER VIEW'',
                             ''ALTER MATERIALIZED VIEW'', ''ALTER FOREIGN TABLE'')
                EXECUTE FUNCTION fieldcrypt_internal.note_alter()', moment);
        EXECUTE pg_catalog.format('ALTER EVENT TRIGGER fieldcrypt_renames_%s ENABLE ALWAYS', moment);
        EXECUTE pg_catalog.format('COMMENT ON EVENT TRIGGER fieldcrypt_renames_%s IS %L', moment,
            'remembered contexts of encrypted columns follow renames');
    END LOOP;
END
$$;

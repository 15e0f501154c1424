-- What the values of columns are bound to, remembered for re-encryption.

-- By name, so that a dump restores it; with the owner of then, so that an expression never runs for
-- the owner of another table of that name.
CREATE TABLE fieldcrypt.column_contexts (
    table_name text NOT NULL,
    column_name text NOT NULL,
    constant text,
    expression text,
    table_owner text NOT NULL,
    set_by text NOT NULL DEFAULT session_user,
    set_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    enforced boolean NOT NULL DEFAULT false,
    owner_here text,
    PRIMARY KEY (table_name, column_name),
    CHECK ((constant IS NULL) OPERATOR(pg_catalog.<>) (expression IS NULL))
);
SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.column_contexts', '');
COMMENT ON TABLE fieldcrypt.column_contexts IS 'what the values of columns are bound to, for re-encryption: written by fieldcrypt.set_column_context()';
COMMENT ON COLUMN fieldcrypt.column_contexts.table_name IS 'the table, qualified';
COMMENT ON COLUMN fieldcrypt.column_contexts.column_name IS 'the column';
COMMENT ON COLUMN fieldcrypt.column_contexts.constant IS 'one context for all values of the column';
COMMENT ON COLUMN fieldcrypt.column_contexts.expression IS 'an expression over the columns of the row, as in a CHECK constraint';
COMMENT ON COLUMN fieldcrypt.column_contexts.table_owner IS 'owner of the table when it was set; it counts only while that is the owner';
COMMENT ON COLUMN fieldcrypt.column_contexts.set_by IS 'session_user: who set it';
COMMENT ON COLUMN fieldcrypt.column_contexts.set_at IS 'when it was set';
COMMENT ON COLUMN fieldcrypt.column_contexts.owner_here IS 'the owner by number, and of which server: a role that was renamed is the same';
COMMENT ON COLUMN fieldcrypt.column_contexts.enforced IS 'whether triggers refuse what is not authentic for its row';

CREATE FUNCTION fieldcrypt_internal.role_here(role oid) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('%s/%s', (SELECT s.system_identifier FROM pg_control_system() AS s), $1)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.role_here(oid) IS 'a role by number, and of which server';

CREATE FUNCTION fieldcrypt_internal.is_owner(context fieldcrypt.column_contexts, role oid) RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
AS $$
    SELECT CASE WHEN context.table_owner = role::regrole::text THEN true
                ELSE coalesce(context.owner_here = fieldcrypt_internal.role_here(role), false) END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.is_owner(fieldcrypt.column_contexts, oid) IS 'whether a role owned the table when its context was set, whatever it was called';

CREATE FUNCTION fieldcrypt_internal.remember_column_context(
        relation oid, column_name text, constant text, expression text, is_mutable boolean,
        enforce boolean, new_context text, old_context text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    qualified_name text;
    owner text;
    was_enforced boolean;
    was_there boolean;
    whose text := format('%s.%I', $1::regclass, $2);
BEGIN
    SELECT format('%I.%I', n.nspname, c.relname), c.relowner::regrole::text INTO qualified_name, owner
      FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = $1;
    IF NOT EXISTS (
        SELECT FROM fieldcrypt_internal.encrypted_columns() AS c
         WHERE c.column_name = $2
           AND c.relation IN (SELECT t.relation FROM fieldcrypt_internal.with_descendants($1) AS t)) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_column',
            MESSAGE = format('table %s has no encrypted column "%s"', $1::regclass, column_name),
            HINT = 'Contexts are remembered for columns of type fieldcrypt.encrypted, and of domains, arrays and composites over it.';
    END IF;
    IF (constant <> '' OR expression <> '') AND EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = $1 AND a.attname = $2 AND a.atttypid = 'fieldcrypt.encrypted_text'::regtype) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_object_definition',
            MESSAGE = format('column "%s" of table %s takes plaintext: its values are bound to their rows without a context', $2, $1::regclass),
            HINT = 'SELECT fieldcrypt.protect_column(relation, column) declares it.';
    END IF;
    IF constant <> '' AND expression <> '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a context is either a constant or an expression',
            HINT = 'Pass one of them; neither takes the context away.';
    END IF;
    IF enforce AND constant = '' AND expression = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'there is no context to be enforced',
            HINT = 'Pass it with enforce => true, as an expression such as fieldcrypt.context(''patients.ssn'', id).';
    END IF;
    IF is_mutable THEN
        RAISE WARNING USING
            MESSAGE = 'the context expression goes by settings or tables, too: what a session writes by its own may not open elsewhere',
            HINT = 'It is computed with DateStyle ISO, TimeZone UTC and the like. fieldcrypt.context(name, columns of the key) is the same for ever.';
    END IF;
    IF constant = '' AND expression = '' THEN
        DELETE FROM fieldcrypt.column_contexts AS c WHERE c.table_name = qualified_name AND c.column_name = $2;
        was_there := FOUND;
    ELSE
        INSERT INTO fieldcrypt.column_contexts (table_name, column_name, constant, expression, enforced, table_owner, owner_here)
        VALUES (qualified_name, $2, nullif($3, ''), nullif($4, ''), enforce, owner,
                (SELECT fieldcrypt_internal.role_here(c.relowner) FROM pg_class AS c WHERE c.oid = $1))
            ON CONFLICT ON CONSTRAINT column_contexts_pkey DO UPDATE
           SET constant = excluded.constant, expression = excluded.expression, enforced = excluded.enforced,
               table_owner = excluded.table_owner, owner_here = excluded.owner_here, set_by = excluded.set_by, set_at = excluded.set_at;
    END IF;
    was_enforced := fieldcrypt_internal.drop_enforcing_triggers($1, $2);
    IF enforce THEN
        PERFORM fieldcrypt_internal.create_enforcing_triggers($1, $2,
            CASE WHEN constant <> '' THEN quote_literal(constant) ELSE new_context END,
            CASE WHEN constant <> '' THEN quote_literal(constant) ELSE old_context END);
    END IF;
    IF enforce THEN
        RAISE NOTICE 'set_column_context: the context of % is remembered, and what is written and does not open with it is refused', whose;
    ELSIF was_there IS NULL THEN
        RAISE NOTICE 'set_column_context: the context of % is remembered%', whose, CASE WHEN was_enforced THEN ', and not enforced any more' ELSE '' END;
    ELSIF was_there OR was_enforced THEN
        RAISE NOTICE 'set_column_context: the context of % is forgotten%', whose, CASE WHEN was_enforced THEN ', and not enforced any more' ELSE '' END;
    ELSE
        RAISE NOTICE 'set_column_context: nothing to do: % has no context', whose;
    END IF;
    PERFORM fieldcrypt_internal.record_event('column_context_set', NULL, NULL,
        CASE WHEN enforce THEN column_name || ', enforced' ELSE column_name END, $1::regclass::text);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.remember_column_context(oid, text, text, text, boolean, boolean, text, text) IS
    'set_column_context for a caller whose rights were checked; granted to nobody';

-- C with the caller's rights: whose these are can't be told any more inside of a SECURITY DEFINER
-- function, and SET ROLE says nothing of the function that may call this.
CREATE FUNCTION fieldcrypt.set_column_context(
        relation regclass, column_name name, constant text DEFAULT '', expression text DEFAULT '',
        enforce boolean DEFAULT false)
    RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_set_column_context';
COMMENT ON FUNCTION fieldcrypt.set_column_context(regclass, name, text, text, boolean) IS
    'remembers what the values of a column are bound to, so that they can be re-encrypted and verified: a constant, or an expression over the row (names outside pg_catalog qualified), computed as the table''s owner; for a partitioned table it holds for its partitions; enforce: what is written and not authentic for its row is refused; neither takes it away';

-- PL/pgSQL, which keeps its plan: this is called for every batch.
CREATE FUNCTION fieldcrypt_internal.contexts_of(relation oid) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM fieldcrypt.column_contexts) THEN
        RETURN '{}';
    END IF;
    RETURN (WITH RECURSIVE up (relation, distance) AS (
        SELECT $1, 0
        UNION ALL
        SELECT i.inhparent, u.distance + 1 FROM up AS u JOIN pg_inherits AS i ON i.inhrelid = u.relation
    ), known AS (
        SELECT DISTINCT ON (x.column_name) x.column_name, x.constant, x.expression
          FROM up AS u
          JOIN pg_class AS c ON c.oid = u.relation
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
          JOIN fieldcrypt.column_contexts AS x
            ON x.table_name = format('%I.%I', n.nspname, c.relname)
           AND fieldcrypt_internal.is_owner(x, c.relowner)
         -- A parent of another owner says nothing about a child: its expression would run as the child's.
         WHERE c.relowner = (SELECT s.relowner FROM pg_class AS s WHERE s.oid = $1)
            OR x.constant IS NOT NULL
         ORDER BY x.column_name, u.distance
    )
    SELECT coalesce(jsonb_object_agg(k.column_name,
               jsonb_strip_nulls(jsonb_build_object('constant', k.constant, 'expression', k.expression))), '{}')::text
      FROM known AS k);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.contexts_of(oid) IS 'the remembered contexts of a table''s columns, as JSON; those of its parents count for it too';

-- Which key is used where.
--
-- Values are counted by fieldcrypt_internal.count_keys, which reads past row-level security: a count that a
-- policy filters would destroy keys that are in use.

CREATE FUNCTION fieldcrypt_internal.count_keys(relation oid) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_count_keys';
COMMENT ON FUNCTION fieldcrypt_internal.count_keys(oid) IS
    'how many values of each column of a table are on which key, as JSON: an array of attnum, column, key_id, values; every row that is committed, whatever its policies; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.relations_to_count() RETURNS oid[]
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS 'SELECT coalesce(array_agg(DISTINCT c.relation), ''{}'') FROM fieldcrypt_internal.encrypted_columns() AS c WHERE c.is_readable';
COMMENT ON FUNCTION fieldcrypt_internal.relations_to_count() IS 'the relations whose values can be counted; granted to nobody';

-- What nobody here can read, and why that forbids to destroy a key. Other sessions' temporary tables would
-- forbid it for ever; but one of a session that began after the key was known to be unused has no value
-- of it: there was none left that it could have copied.
CREATE FUNCTION fieldcrypt_internal.uncountable(since timestamptz) RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
DECLARE
    unreadable text;
    temporary text;
    elsewhere text;
    sessions text;
BEGIN
    SELECT string_agg(format('%s.%I (%s)', c.table_name, c.column_name, c.problem), ', ' ORDER BY c.table_name, c.attnum)
               FILTER (WHERE t.relpersistence <> 't'),
           string_agg(format('%s.%I', c.table_name, c.column_name), ', ' ORDER BY c.table_name, c.attnum)
               FILTER (WHERE t.relpersistence = 't')
      INTO unreadable, temporary
      FROM fieldcrypt_internal.encrypted_columns() AS c JOIN pg_class AS t ON t.oid = c.relation
     WHERE NOT c.is_readable;
    IF unreadable IS NOT NULL THEN
        RETURN 'values can''t be counted in ' || unreadable;
    END IF;
    elsewhere := fieldcrypt_internal.values_elsewhere();
    IF elsewhere IS NOT NULL THEN
        RETURN elsewhere;
    END IF;
    IF temporary IS NOT NULL THEN
        PERFORM pg_stat_clear_snapshot();
        SELECT string_agg(a.pid::text, ', ' ORDER BY a.backend_start) INTO sessions
          FROM pg_stat_activity AS a
         WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
           AND a.backend_type <> 'autovacuum worker' AND (a.backend_start < since OR a.backend_start IS NULL);
        IF sessions IS NOT NULL THEN
            RETURN format('values can''t be counted in temporary tables (%s), and there are sessions from before the schedule (processes %s)',
                temporary, sessions);
        END IF;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.uncountable(timestamptz) IS
    'why it can''t be known that a key scheduled before that time is unused; NULL if it can; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.count_in(relation oid, keys bigint[]) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
BEGIN
    -- Dropped meanwhile, and its values with it.
    IF NOT EXISTS (SELECT FROM pg_class AS t WHERE t.oid = $1) THEN
        RETURN '[]';
    END IF;
    RETURN coalesce((
        SELECT jsonb_agg(jsonb_build_object(
                   'key_id', u.key_id, 'values', u."values", 'table', $1::regclass::text,
                   'column', (SELECT a.attname FROM pg_attribute AS a WHERE a.attrelid = $1 AND a.attnum = u.attnum)))
          FROM jsonb_to_recordset(fieldcrypt_internal.count_keys($1)::jsonb) AS u(attnum integer, key_id text, "values" bigint)
         WHERE keys IS NULL OR u.key_id::bigint = ANY (keys)), '[]');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.count_in(oid, bigint[]) IS
    'how many values of some keys (NULL: of all) a relation has, as JSON; granted to nobody';

-- A literal of type encrypted_text in a DEFAULT, a view, a function, a constraint, a policy or a trigger was sealed when it was
-- written there. Postgres remembers that such an expression needs the type.
CREATE FUNCTION fieldcrypt_internal.literals() RETURNS TABLE (key_id bigint, place text)
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
    WITH needing AS (
        SELECT DISTINCT d.classid, d.objid FROM pg_depend AS d
         WHERE d.refclassid = 'pg_type'::regclass AND d.refobjid = 'fieldcrypt.encrypted_text'::regtype
    )
    -- What only looks like one, as a name may, is none.
    SELECT k.key_id, pg_describe_object(n.classid, n.objid, 0)
      FROM needing AS n,
           LATERAL (SELECT CASE n.classid
               WHEN 'pg_attrdef'::regclass THEN (SELECT pg_get_expr(a.adbin, a.adrelid) FROM pg_attrdef AS a WHERE a.oid = n.objid)
               WHEN 'pg_rewrite'::regclass THEN pg_get_ruledef(n.objid)
               WHEN 'pg_proc'::regclass THEN (SELECT pg_get_function_sqlbody(f.oid) FROM pg_proc AS f WHERE f.oid = n.objid)
               WHEN 'pg_constraint'::regclass THEN pg_get_constraintdef(n.objid)
               WHEN 'pg_trigger'::regclass THEN pg_get_triggerdef(n.objid)
               WHEN 'pg_policy'::regclass THEN (SELECT concat_ws(' ', pg_get_expr(y.polqual, y.polrelid), pg_get_expr(y.polwithcheck, y.polrelid))
                                                  FROM pg_policy AS y WHERE y.oid = n.objid)
               END) AS t (definition),
           -- A quote in a text is two: what a text quotes has one more before it.
           regexp_matches(t.definition, '(?<!'')''(fc1:[A-Za-z0-9_-]+)''::fieldcrypt\.encrypted_text', 'g') AS m (found),
           fieldcrypt_internal.key_of_text(m.found[1]) AS k (key_id)
     WHERE k.key_id IS NOT NULL
$$;
COMMENT ON FUNCTION fieldcrypt_internal.literals() IS 'the literals of type encrypted_text in expressions of this database: on which key, and where; granted to nobody';

-- In both directions: a value that is moved from a table not yet read to one already read is found on the
-- way back. The list is made anew for that: a table may have been made meanwhile.
CREATE FUNCTION fieldcrypt_internal.count_use(keys bigint[]) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    counted jsonb := '[]';
    relations oid[] := fieldcrypt_internal.relations_to_count();
BEGIN
    FOR place IN 1 .. cardinality(relations) LOOP
        counted := counted || fieldcrypt_internal.count_in(relations[place], keys);
    END LOOP;
    relations := fieldcrypt_internal.relations_to_count();
    FOR place IN REVERSE cardinality(relations) .. 1 LOOP
        counted := counted || fieldcrypt_internal.count_in(relations[place], keys);
    END LOOP;
    counted := counted || coalesce((
        SELECT jsonb_agg(jsonb_build_object('key_id', l.key_id::text, 'values', l.total, 'table', l.place))
          FROM (SELECT i.key_id, i.place, count(*) AS total FROM fieldcrypt_internal.literals() AS i GROUP BY i.key_id, i.place) AS l
         WHERE keys IS NULL OR l.key_id = ANY (keys)), '[]');
    -- By key, since it is asked key by key.
    RETURN coalesce((
        SELECT jsonb_object_agg(of_key.key_id, of_key.places)
          FROM (SELECT c ->> 'key_id' AS key_id, jsonb_agg(c) AS places
                  FROM jsonb_array_elements(counted) AS c WHERE c ->> 'key_id' IS NOT NULL GROUP BY 1) AS of_key), '{}');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.count_use(bigint[]) IS 'where some keys are used, in all tables, as a JSON object by key id; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.use_of_key(used jsonb, key_id bigint) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(format('%s value(s) in %s', u.total, concat_ws('.', u."table", quote_ident(u."column"))), ', ' ORDER BY u."table", u."column")
      FROM (SELECT c."table", c."column", max(c."values") AS total
              FROM jsonb_to_recordset(coalesce($1 -> $2::text, '[]')) AS c("table" text, "column" text, "values" bigint)
             GROUP BY c."table", c."column") AS u
$$;
COMMENT ON FUNCTION fieldcrypt_internal.use_of_key(jsonb, bigint) IS 'what count_use found of a key, as a text; NULL if nothing; granted to nobody';

CREATE FUNCTION fieldcrypt.key_usage(exact boolean DEFAULT false) RETURNS TABLE (
        key_id bigint, tenant text, version integer, state text,
        table_name text, column_name text, "values" bigint, is_exact boolean)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET row_security = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    counted jsonb := '[]';
    item record;
    relation_counted oid;
    of_relation jsonb;
    percent double precision;
    problem text := fieldcrypt_internal.uncountable('-infinity');
BEGIN
    IF exact IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'exact must not be NULL';
    END IF;
    -- A 0 is not the whole truth then.
    IF problem IS NOT NULL THEN
        RAISE NOTICE USING MESSAGE = 'key_usage: ' || problem,
            HINT = 'On each node that has such values: SELECT * FROM fieldcrypt.key_usage(exact => true).';
    END IF;
    FOR item IN
        WITH sized AS (
            -- What lies on the disk now, not what was known when the table was last analysed.
            SELECT t.oid, t.relkind, coalesce(pg_relation_size(t.oid), 0) / current_setting('block_size')::bigint AS pages,
                   coalesce(pg_table_size(t.oid), 0) AS bytes
              FROM pg_class AS t
             WHERE t.oid IN (SELECT c.relation FROM fieldcrypt_internal.encrypted_columns() AS c WHERE c.is_readable)
        ), cheap AS (
            -- The smaller tables, as many as have half a gigabyte together.
            SELECT s.*, sum(s.bytes) OVER (ORDER BY s.bytes, s.oid) <= 536870912 AS is_cheap FROM sized AS s
        )
        SELECT c.relation, c.table_name, c.attnum, c.column_name, c.holds, t.relkind, t.pages, t.is_cheap
          FROM fieldcrypt_internal.encrypted_columns() AS c JOIN cheap AS t ON t.oid = c.relation
         WHERE c.is_readable
         ORDER BY c.relation, c.attnum
    LOOP
        -- A sample of about a thousand pages; what is cheap is counted, and so is what
        -- is hidden in arrays and composites. With row_security off Postgres refuses what it would filter.
        percent := 100.0 * 1000 / greatest(item.pages, 1000);
        IF exact OR item.is_cheap OR percent > 50 OR item.relkind NOT IN ('r', 'm') OR item.holds <> 'value' THEN
            -- One look at a table tells of all its columns.
            IF relation_counted IS DISTINCT FROM item.relation THEN
                relation_counted := item.relation;
                of_relation := fieldcrypt_internal.count_in(item.relation, NULL);
            END IF;
            counted := counted || coalesce((
                SELECT jsonb_agg(u || jsonb_build_object('is_exact', true))
                  FROM jsonb_array_elements(of_relation) AS u
                 WHERE u ->> 'column' = item.column_name), '[]');
        ELSE
            -- As the table's owner, with functions of Postgres alone: to plan it may compute what is the owner's.
            counted := counted || coalesce(fieldcrypt_internal.on_table(item.relation, format(
                'SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(s)) FROM (
                    SELECT (''x'' || pg_catalog.encode(pg_catalog.substr(v.%I::pg_catalog.bytea, 3, 8), ''hex''))::pg_catalog.bit(64)::pg_catalog.int8::pg_catalog.text AS key_id,
                           %L::pg_catalog.text AS "table", %L::pg_catalog.text AS "column",
                           pg_catalog.round(pg_catalog.count(*) * 100 / (%s)::pg_catalog.float8)::pg_catalog.int8 AS "values", false AS is_exact
                      FROM ONLY %s AS v TABLESAMPLE SYSTEM (%s)
                     WHERE v.%I IS NOT NULL GROUP BY 1) AS s',
                item.column_name, item.relation::regclass::text, item.column_name, percent, fieldcrypt_internal.qualified_name(item.relation), percent,
                item.column_name))::jsonb, '[]');
        END IF;
    END LOOP;
    counted := counted || coalesce((
        SELECT jsonb_agg(jsonb_build_object('key_id', l.key_id::text, 'values', l.total, 'table', l.place, 'is_exact', true))
          FROM (SELECT i.key_id, i.place, count(*) AS total FROM fieldcrypt_internal.literals() AS i GROUP BY i.key_id, i.place) AS l), '[]');
    RETURN QUERY
        SELECT coalesce(k.key_id, u.key_id::bigint), k.tenant::text, k.version, k.state::text,
               u."table", u."column", coalesce(u."values", 0), coalesce(u.is_exact, exact)
          FROM (SELECT * FROM fieldcrypt.encryption_keys AS f WHERE f.purpose IN ('field', 'loose')) AS k
          FULL JOIN jsonb_to_recordset(counted)
               AS u(key_id text, "table" text, "column" text, "values" bigint, is_exact boolean)
            ON u.key_id = k.key_id::text
         ORDER BY k.tenant, k.version, u."table", u."column";
END
$$;
COMMENT ON FUNCTION fieldcrypt.key_usage(boolean) IS
    'every key version, and where and how often it is used; exact: counted in all tables, otherwise the smaller tables, half a gigabyte in all, are counted, and larger ones estimated from a sample: is_exact says which. Literals of type encrypted_text in a DEFAULT, a view or a function have no column. A key without a tenant is not of this database';

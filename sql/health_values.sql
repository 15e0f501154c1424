-- Health of stored values: whether enforced contexts are enforced, and whether values open.

CREATE FUNCTION fieldcrypt_internal.check_enforced_contexts(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    enforced bigint;
    open_columns text[];
BEGIN
    -- Where it was declared, and each table that has one of the triggers: a declaration names its table, and that
    -- may have another name now.
    WITH triggers AS MATERIALIZED (
        SELECT e.* FROM fieldcrypt_internal.enforcing_triggers() AS e
    ), declared (relation, column_name) AS (
        SELECT t.relation, x.column_name
          FROM fieldcrypt.column_contexts AS x
          JOIN pg_class AS c ON c.relowner::regrole::text = x.table_owner
          JOIN pg_namespace AS n ON n.oid = c.relnamespace AND format('%I.%I', n.nspname, c.relname) = x.table_name,
               fieldcrypt_internal.with_descendants(c.oid) AS t
         WHERE x.enforced
        UNION
        SELECT t.relation, e.column_name FROM triggers AS e, fieldcrypt_internal.with_descendants(e.relation) AS t
    ), standing AS (
        SELECT format('%s.%I', d.relation::regclass, d.column_name) AS place,
               (SELECT count(DISTINCT e.is_update) = 2 FROM triggers AS e
                 WHERE e.relation = d.relation AND e.column_name = d.column_name AND e.fires) AS is_enforced
          FROM declared AS d
          JOIN pg_class AS c ON c.oid = d.relation AND c.relkind IN ('r', 'p')
          JOIN pg_attribute AS a ON a.attrelid = d.relation AND a.attname = d.column_name AND NOT a.attisdropped
    )
    SELECT count(*) FILTER (WHERE s.is_enforced),
           coalesce(array_agg(s.place ORDER BY s.place COLLATE "C") FILTER (WHERE NOT s.is_enforced), '{}')
      INTO enforced, open_columns FROM standing AS s;
    IF cardinality(open_columns) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', CASE WHEN enforced = 0 THEN 'no context is enforced when values are written'
            ELSE format('what is written is checked against the context of %s columns', enforced) END);
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('a context is said to be enforced and is not: a trigger is disabled or missing for %s',
            fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(o)) FROM unnest(open_columns[1:3]) AS o),
                cardinality(open_columns), 'column')),
        'ALTER TABLE ... ENABLE TRIGGER ALL, or call set_column_context(..., enforce => true) again; tables that inherit from one need that, too. Then CALL fieldcrypt.verify_values(relation).',
        fieldcrypt_internal.finding_identity(open_columns, cardinality(open_columns)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_enforced_contexts(jsonb) IS 'check: enforced contexts whose triggers don''t fire';

CREATE FUNCTION fieldcrypt_internal.check_stored_values(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    bad text[];
    item record;
    result jsonb;
    blocks bigint;
    place bigint;
    seen bigint := 0;
    failed bigint := 0;
BEGIN
    bad := ARRAY(SELECT v.table_name FROM fieldcrypt.value_verifications AS v
                  WHERE v.values_failed > 0 AND EXISTS (SELECT FROM pg_class AS c WHERE c.oid = v.relation)
                  ORDER BY v.table_name);
    IF cardinality(bad) > 0 THEN
        RETURN fieldcrypt_internal.finding_of('critical',
            format('values do not open with the context of their row, of %s',
                fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(b)) FROM unnest(bad[1:3]) AS b), cardinality(bad), 'table')),
            'SELECT * FROM fieldcrypt.value_failures; restore these values or encrypt them anew, then CALL fieldcrypt.verify_values(relation).',
            fieldcrypt_internal.finding_identity(bad, cardinality(bad)));
    END IF;
    IF used IS NULL THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'verify_values has found no value that does not open; health(thorough => true) opens a sample');
    END IF;
    -- Some rows of each table with a context or a protected column, from three places.
    FOR item IN
        SELECT c.relation, c.table_name, b.bindings
          FROM (SELECT DISTINCT e.relation, e.table_name FROM fieldcrypt_internal.encrypted_columns() AS e WHERE e.is_readable) AS c,
               fieldcrypt_internal.bindings_of(c.relation) AS b (bindings)
         WHERE b.bindings <> '{}'
         ORDER BY random() LIMIT 200
    LOOP
        blocks := fieldcrypt_internal.table_blocks(item.relation);
        CONTINUE WHEN coalesce(blocks, 0) = 0;
        FOR stretch IN 1 .. 3 LOOP
            place := floor(random() * blocks);
            BEGIN
                result := fieldcrypt_internal.verify_batch(item.relation, place, 1, blocks, 100, item.bindings)::jsonb;
                CONTINUE WHEN (result ->> 'is_gone')::boolean;
                seen := seen + (result ->> 'values')::bigint;
                failed := failed + (result ->> 'failed')::bigint;
                IF (result ->> 'failed')::bigint > 0 AND item.table_name <> ALL (bad) THEN
                    bad := bad || item.table_name;
                END IF;
            EXCEPTION WHEN lock_not_available THEN
                NULL;
            END;
        END LOOP;
    END LOOP;
    IF failed = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('a sample of %s values opens with the contexts of their rows', seen));
    END IF;
    RETURN fieldcrypt_internal.finding_of('critical',
        format('of a sample of %s values %s do not open with the context of their row, of %s', seen, failed,
            fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(b)) FROM unnest(bad[1:3]) AS b), cardinality(bad), 'table')),
        'CALL fieldcrypt.verify_values(relation) lists them all in fieldcrypt.value_failures.',
        fieldcrypt_internal.finding_identity(bad, cardinality(bad)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_stored_values(jsonb) IS 'check: values that do not open, by verify_values or in a sample';

CREATE FUNCTION fieldcrypt_internal.check_encrypted_indexes(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    found text[];
    failing text[];
BEGIN
    -- Most are refused when they are built. Not so with INCLUDE, behind a column of numeric or float, on a partitioned table
    -- that has no partition yet, by EXCLUDE with hash, with an array, a domain or a composite around the values; and CREATE
    -- INDEX CONCURRENTLY leaves what was refused. A hash index by itself finds ciphertexts, and is let alone.
    WITH RECURSIVE holding (type) AS (
        SELECT 'fieldcrypt.encrypted'::regtype::oid
        UNION
        SELECT t.oid
          FROM holding AS h, pg_type AS t
         WHERE t.typtype = 'd' AND t.typbasetype = h.type
            OR t.typcategory = 'A' AND t.typelem = h.type
            OR t.typtype = 'r' AND EXISTS (SELECT FROM pg_range AS r WHERE r.rngtypid = t.oid AND r.rngsubtype = h.type)
            OR t.typtype = 'c' AND EXISTS (
                SELECT FROM pg_attribute AS a
                 WHERE a.attrelid = t.typrelid AND a.atttypid = h.type AND a.attnum > 0 AND NOT a.attisdropped)
    )
    SELECT coalesce(array_agg(DISTINCT i.indexrelid::regclass::text ORDER BY i.indexrelid::regclass::text), '{}') INTO found
      FROM pg_index AS i
     CROSS JOIN generate_series(1, i.indnkeyatts) AS k(place)
      JOIN pg_class AS c ON c.oid = i.indexrelid
      JOIN pg_am AS m ON m.oid = c.relam
      JOIN pg_opclass AS o ON o.oid = i.indclass[k.place - 1]
      -- What the index holds need not be of the column's type: elements of an array, or numbers.
      JOIN pg_attribute AS a ON a.attrelid = i.indexrelid AND a.attnum = k.place
      LEFT JOIN pg_attribute AS b ON b.attrelid = i.indrelid AND b.attnum = i.indkey[k.place - 1] AND b.attnum > 0
     WHERE (m.amname <> 'hash' OR i.indisunique OR i.indisexclusion)
       AND EXISTS (SELECT FROM holding AS h WHERE h.type IN (o.opcintype, a.atttypid, b.atttypid));

    -- What compares values where no statement says so: a statement with the table fails, by whatever it is about.
    WITH refusing (class, object) AS (
        SELECT 'pg_proc'::regclass::oid, p.oid
          FROM pg_proc AS p
         WHERE p.pronamespace = 'fieldcrypt_internal'::regnamespace AND p.proname LIKE 'refuse\_%' AND p.prosupport <> 0
    ), operators (class, object) AS (
        SELECT 'pg_operator'::regclass::oid, o.oid
          FROM pg_operator AS o JOIN refusing AS r ON r.object = o.oprcode
        UNION ALL
        SELECT r.class, r.object FROM refusing AS r
    )
    SELECT coalesce(array_agg(DISTINCT concat_ws(' ', d.type, d.identity) ORDER BY concat_ws(' ', d.type, d.identity)), '{}') INTO failing
      FROM (SELECT DISTINCT e.classid, e.objid
              FROM operators AS u
              JOIN pg_depend AS e ON e.refclassid = u.class AND e.refobjid = u.object
             WHERE e.classid = ANY (ARRAY['pg_statistic_ext', 'pg_constraint', 'pg_class', 'pg_attrdef', 'pg_policy', 'pg_trigger', 'pg_rewrite']::regclass[])
               AND NOT EXISTS (SELECT FROM pg_depend AS m WHERE m.classid = e.classid AND m.objid = e.objid AND m.deptype = 'e')) AS x,
           pg_identify_object(x.classid, x.objid, 0) AS d
     WHERE d.identity IS NOT NULL;

    IF cardinality(found) + cardinality(failing) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'no index but one by hash, no UNIQUE and no expression of a table or view compares encrypted values');
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        concat_ws('; ',
            'on encrypted values an index finds nothing, and UNIQUE or EXCLUDE no duplicate: ' ||
                fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(f)) FROM unnest(found[1:3]) AS f), cardinality(found), 'relation'),
            'statements fail by an expression that compares encrypted values: ' ||
                fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(f)) FROM unnest(failing[1:3]) AS f), cardinality(failing), 'object')),
        'Drop it. Make an index on a keyed hash in a column beside the values, an expression of what is decrypted: see docs/querying.md.',
        fieldcrypt_internal.finding_identity(found || failing, cardinality(found) + cardinality(failing)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_encrypted_indexes(jsonb) IS 'check: indexes and UNIQUE on encrypted values, which do nothing, and expressions that compare them, which fail';

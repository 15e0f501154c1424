-- Health of restores: what a restore computes before the keys are there, or is refused whenever.

-- Through functions by the names in their sources, which is what can be told cheaply: a name in a comment is found too,
-- and one that is put together at run time is not.
CREATE FUNCTION fieldcrypt_internal.functions_needing_keys(roots oid[]) RETURNS oid[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
    WITH RECURSIVE reached (root, function) AS (
        SELECT r, r FROM unnest($1) AS r
        UNION
        SELECT r.root, c.oid
          FROM reached AS r
          JOIN pg_proc AS p ON p.oid = r.function AND p.pronamespace <> ALL ('{fieldcrypt,fieldcrypt_internal,pg_catalog}'::regnamespace[])
               CROSS JOIN LATERAL (
               SELECT d.refobjid FROM pg_depend AS d
                WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.refclassid = 'pg_proc'::regclass
               UNION
               SELECT named.oid
                 FROM regexp_matches(p.prosrc, '[[:alpha:]_][[:alnum:]_$]*', 'g') AS word(parts)
                 JOIN pg_proc AS named ON named.proname = lower(word.parts[1]) OR named.proname = word.parts[1]
                WHERE named.pronamespace <> 'pg_catalog'::regnamespace) AS c (oid)
    )
    SELECT coalesce(array_agg(DISTINCT r.root), '{}')
      FROM reached AS r
      JOIN pg_proc AS p ON p.oid = r.function
     WHERE p.pronamespace = 'fieldcrypt'::regnamespace AND p.proname NOT IN ('context', 'key_id', 'ciphertext_info')
        OR p.pronamespace = 'fieldcrypt_internal'::regnamespace AND p.proname IN ('is_foreign', 'is_changed_to_foreign')
$$;
COMMENT ON FUNCTION fieldcrypt_internal.functions_needing_keys(oid[]) IS
    'those of some functions that need keys: of the extension, or calling such, however deep; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_restore_order(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
AS $$
DECLARE
    early text[];
    never text[];
    found text[];
BEGIN
    WITH calling (class, object, is_early, place) AS MATERIALIZED (
        -- What is NOT VALID is restored behind the data.
        SELECT 'pg_constraint'::regclass, c.oid, true,
               CASE WHEN c.contypid <> 0 THEN format('constraint %I of domain %s', c.conname, c.contypid::regtype)
                    ELSE format('constraint %I of %s', c.conname, c.conrelid::regclass) END
          FROM pg_constraint AS c
          LEFT JOIN pg_class AS t ON t.oid = c.conrelid
         WHERE c.contype = 'c' AND c.convalidated AND c.conislocal AND t.relpersistence IS DISTINCT FROM 't'
        UNION ALL
        SELECT 'pg_attrdef'::regclass, d.oid, true, format('generated column %s.%I', d.adrelid::regclass, a.attname)
          FROM pg_attrdef AS d
          JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum AND a.attgenerated <> ''
          JOIN pg_class AS t ON t.oid = d.adrelid AND t.relpersistence <> 't'
        UNION ALL
        SELECT 'pg_class'::regclass, p.partrelid, true, format('partition key of %s', p.partrelid::regclass)
          FROM pg_partitioned_table AS p WHERE p.partexprs IS NOT NULL
        UNION ALL
        SELECT 'pg_class'::regclass, i.indexrelid, false, format('index %s', i.indexrelid::regclass)
          FROM pg_index AS i
          JOIN pg_class AS t ON t.oid = i.indexrelid AND t.relpersistence <> 't'
         WHERE i.indexprs IS NOT NULL OR i.indpred IS NOT NULL
        UNION ALL
        SELECT 'pg_rewrite'::regclass, r.oid, false, format('materialized view %s', r.ev_class::regclass)
          FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class AND c.relkind = 'm'
    ), calls (place, is_early, function) AS MATERIALIZED (
        SELECT c.place, c.is_early, coalesce(o.oprcode::oid, d.refobjid)
          FROM calling AS c
          JOIN pg_depend AS d ON d.classid = c.class AND d.objid = c.object
           AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
          LEFT JOIN pg_operator AS o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
    ), needing (functions) AS MATERIALIZED (
        SELECT fieldcrypt_internal.functions_needing_keys(ARRAY(SELECT DISTINCT c.function FROM calls AS c))
    )
    SELECT coalesce(array_agg(DISTINCT c.place) FILTER (WHERE c.is_early), '{}'),
           coalesce(array_agg(DISTINCT c.place) FILTER (WHERE NOT c.is_early), '{}')
      INTO early, never
      FROM calls AS c, needing AS n
     WHERE c.function = ANY (n.functions);
    found := early || never;
    IF cardinality(found) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'no constraint, generated column, index or materialized view needs keys while it is restored');
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        concat_ws('; ',
            'a restore computes before the keys are there, and may fail by that: '
                || fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(e)) FROM unnest(early[1:3]) AS e), cardinality(early), 'object'),
            'a restore is refused to compute, since it would store plaintext: '
                || fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(n)) FROM unnest(never[1:3]) AS n), cardinality(never), 'object')),
        'Make constraints NOT VALID, which restores them behind the data and checks new rows as before; or restore the keys first, as docs/operations.md shows. Take what decrypts out of indexes and materialized views.',
        fieldcrypt_internal.finding_identity(found, cardinality(found)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_restore_order(jsonb) IS
    'check: constraints, generated columns, indexes and materialized views that need keys while they are restored';

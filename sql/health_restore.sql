-- Health of restores: what a restore computes before the keys are there, or is refused whenever.

-- By the names in its source, which is what can be told cheaply: a name in a comment is found too, and one that is put
-- together at run time is not.
CREATE FUNCTION fieldcrypt_internal.functions_called_by(function oid) RETURNS SETOF oid
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
    SELECT d.refobjid FROM pg_depend AS d
     WHERE d.classid = 'pg_proc'::regclass AND d.objid = $1 AND d.refclassid = 'pg_proc'::regclass
    UNION
    SELECT named.oid
      FROM pg_proc AS p
     CROSS JOIN LATERAL (
           SELECT DISTINCT word.parts[1] AS name FROM regexp_matches(left(p.prosrc, 200000), '[[:alpha:]_][[:alnum:]_$]*', 'g') AS word(parts)) AS word
      JOIN pg_proc AS named ON named.proname = ANY (ARRAY[word.name, lower(word.name)]::name[])
     WHERE p.oid = $1 AND named.pronamespace <> 'pg_catalog'::regnamespace
       AND p.pronamespace <> ALL ('{fieldcrypt,fieldcrypt_internal,pg_catalog}'::regnamespace[])
$$;
COMMENT ON FUNCTION fieldcrypt_internal.functions_called_by(oid) IS 'what a function of users'' calls, as its source names it; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.functions_needing_keys(roots oid[]) RETURNS oid[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
    WITH RECURSIVE reached (function) AS (
        SELECT r FROM unnest($1) AS r
        UNION
        SELECT c FROM reached AS r, fieldcrypt_internal.functions_called_by(r.function) AS c
    ), edges AS MATERIALIZED (
        SELECT r.function AS caller, c AS called FROM reached AS r, fieldcrypt_internal.functions_called_by(r.function) AS c
    ), needing (function) AS (
        SELECT p.oid FROM reached AS r JOIN pg_proc AS p ON p.oid = r.function
         WHERE p.pronamespace = 'fieldcrypt'::regnamespace AND p.proname NOT IN ('context', 'key_id', 'ciphertext_info', 'is_protected')
            OR p.pronamespace = 'fieldcrypt_internal'::regnamespace AND p.proname IN ('is_foreign', 'is_changed_to_foreign')
        UNION
        SELECT e.caller FROM needing AS n JOIN edges AS e ON e.called = n.function
    )
    SELECT coalesce(array_agg(n.function), '{}') FROM needing AS n
$$;
COMMENT ON FUNCTION fieldcrypt_internal.functions_needing_keys(oid[]) IS
    'of some functions and those that they call, however deep, the ones that need keys: of the extension, or calling such; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_restore_order(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    early text[];
    never text[];
    found text[];
BEGIN
    WITH calling (class, object, owner, is_early, kind) AS MATERIALIZED (
        -- What is NOT VALID is restored behind the data.
        SELECT 'pg_constraint'::regclass, c.oid, CASE WHEN c.contypid <> 0 THEN c.contypid ELSE c.conrelid END, true,
               CASE WHEN c.contypid <> 0 THEN 'domain' ELSE 'constraint' END
          FROM pg_constraint AS c WHERE c.contype = 'c' AND c.convalidated AND c.conislocal
        UNION ALL
        SELECT 'pg_attrdef'::regclass, d.oid, d.adrelid, true, 'generated'
          FROM pg_attribute AS a JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attgenerated <> ''
        UNION ALL
        SELECT 'pg_class'::regclass, p.partrelid, p.partrelid, true, 'partition key'
          FROM pg_partitioned_table AS p WHERE p.partexprs IS NOT NULL
        UNION ALL
        SELECT 'pg_class'::regclass, i.indexrelid, i.indexrelid, false, 'index'
          FROM pg_index AS i WHERE i.indexprs IS NOT NULL OR i.indpred IS NOT NULL
        UNION ALL
        SELECT 'pg_rewrite'::regclass, r.oid, r.ev_class, false, 'materialized view'
          FROM pg_class AS c JOIN pg_rewrite AS r ON r.ev_class = c.oid WHERE c.relkind = 'm'
    ), calls AS MATERIALIZED (
        SELECT c.*, coalesce(o.oprcode::oid, d.refobjid) AS function
          FROM calling AS c
          JOIN pg_depend AS d ON d.classid = c.class AND d.objid = c.object
           AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
          LEFT JOIN pg_operator AS o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
    ), needing (functions) AS MATERIALIZED (
        SELECT fieldcrypt_internal.functions_needing_keys(ARRAY(SELECT DISTINCT c.function FROM calls AS c))
    ), places AS MATERIALIZED (
        SELECT DISTINCT c.is_early,
               CASE c.kind
                   WHEN 'domain' THEN format('constraint %I of domain %s', k.conname, c.owner::regtype)
                   WHEN 'constraint' THEN format('constraint %I of %s', k.conname, c.owner::regclass)
                   WHEN 'generated' THEN format('generated column %s.%I', c.owner::regclass, a.attname)
                   WHEN 'partition key' THEN format('partition key of %s', c.owner::regclass)
                   ELSE format('%s %s', c.kind, c.owner::regclass) END AS place
          FROM calls AS c
          JOIN needing AS n ON c.function = ANY (n.functions)
          LEFT JOIN pg_constraint AS k ON c.class = 'pg_constraint'::regclass AND k.oid = c.object
          LEFT JOIN pg_attrdef AS d ON c.class = 'pg_attrdef'::regclass AND d.oid = c.object
          LEFT JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
          LEFT JOIN pg_class AS t ON c.kind <> 'domain' AND t.oid = c.owner
         WHERE t.relpersistence IS DISTINCT FROM 't'
    )
    SELECT coalesce(array_agg(p.place ORDER BY p.place COLLATE "C") FILTER (WHERE p.is_early), '{}'),
           coalesce(array_agg(p.place ORDER BY p.place COLLATE "C") FILTER (WHERE NOT p.is_early), '{}')
      INTO early, never FROM places AS p;
    found := early || never;
    IF cardinality(found) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'no constraint, generated column, index or materialized view needs keys while it is restored');
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        concat_ws('; ',
            'a restore computes before the keys are there, and may fail by that: ' || fieldcrypt_internal.counted_names(
                (SELECT array_agg(fieldcrypt_internal.quoted_name(e)) FROM unnest(early[1:3]) AS e), cardinality(early), 'object'),
            'a restore is refused to compute, since it would store plaintext: ' || fieldcrypt_internal.counted_names(
                (SELECT array_agg(fieldcrypt_internal.quoted_name(n)) FROM unnest(never[1:3]) AS n), cardinality(never), 'object')),
        'Make constraints NOT VALID, which restores them behind the data and checks new rows as before; or restore the keys first, as '
            'docs/operations.md shows. Take what decrypts out of indexes and materialized views.',
        fieldcrypt_internal.finding_identity(found, cardinality(found)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_restore_order(jsonb) IS
    'check: constraints, generated columns, indexes and materialized views that need keys while they are restored';

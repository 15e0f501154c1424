-- Health of protected columns: what is written to them is bound to its row, or DDL of somebody's has undone that.

-- Temporary tables are left out: what is in them is gone with its session.
CREATE FUNCTION fieldcrypt_internal.problems_of_protected_columns() RETURNS TABLE (rank integer, problem text, place text)
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
    WITH RECURSIVE holding (type) AS (
        SELECT 'fieldcrypt.encrypted_text'::regtype::oid
        UNION
        SELECT t.oid
          FROM holding AS h, pg_type AS t
         WHERE t.typtype = 'd' AND t.typbasetype = h.type
            OR t.typcategory = 'A' AND t.typelem = h.type
            OR t.typtype = 'c' AND EXISTS (
                SELECT FROM pg_attribute AS a WHERE a.attrelid = t.typrelid AND a.atttypid = h.type AND a.attnum > 0 AND NOT a.attisdropped)
    ), protected AS MATERIALIZED (
        SELECT p.* FROM fieldcrypt_internal.protected_columns() AS p JOIN pg_class AS c ON c.oid = p.relation WHERE c.relpersistence <> 't'
    ), binding AS (
        -- BEFORE INSERT OR UPDATE FOR EACH ROW, of all columns, on no condition.
        SELECT t.tgrelid, t.tgname
          FROM pg_trigger AS t
         WHERE t.tgfoid = 'fieldcrypt_internal.bind_values()'::regprocedure AND t.tgtype = 23
           AND t.tgenabled IN ('O', 'A') AND t.tgattr::text = '' AND t.tgqual IS NULL
    )
    SELECT 1, 'not protected, so that what is written there is bound to no row',
           format('%s.%I', c.oid::regclass, a.attname)
      FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
     WHERE a.atttypid IN (SELECT h.type FROM holding AS h) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
       AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
       AND NOT EXISTS (SELECT FROM protected AS p WHERE p.relation = a.attrelid AND p.attnum = a.attnum)
    UNION ALL
    SELECT 2, 'declared by a constraint that is not valid for all rows', format('%s.%I', p.relation::regclass, p.column_name)
      FROM protected AS p WHERE NOT p.is_believed
    UNION ALL
    SELECT DISTINCT 3, 'without the trigger that binds values, so that no plaintext can be written', format('%s.%I', p.relation::regclass, p.column_name)
      FROM protected AS p WHERE NOT EXISTS (SELECT FROM binding AS b WHERE b.tgrelid = p.relation)
    UNION ALL
    SELECT DISTINCT 4, 'with a trigger behind the one that binds values', format('%s.%I', p.relation::regclass, p.column_name)
      FROM protected AS p JOIN binding AS b ON b.tgrelid = p.relation JOIN pg_trigger AS t ON t.tgrelid = p.relation
     -- Bits of a trigger: for each row, before, INSERT or UPDATE.
     WHERE t.tgfoid NOT IN ('fieldcrypt_internal.bind_values()'::regprocedure, 'fieldcrypt_internal.carry_column()'::regprocedure) AND t.tgtype & 3 = 3 AND t.tgtype & 20 <> 0 AND t.tgenabled <> 'D'
       AND t.tgname::text COLLATE "C" > b.tgname::text COLLATE "C"
    UNION ALL
    SELECT DISTINCT 5, 'with a literal that other sessions can''t use', l.place FROM fieldcrypt_internal.literals() AS l
    UNION ALL
    SELECT DISTINCT 7, 'shown by a decrypted view with other DEFAULTs than the table''s', format('%s.%I', g.tgrelid::regclass, d.column_name)
      FROM pg_trigger AS g
      JOIN pg_rewrite AS w ON w.ev_class = g.tgrelid
      JOIN pg_depend AS r ON r.classid = 'pg_rewrite'::regclass AND r.objid = w.oid AND r.refclassid = 'pg_class'::regclass AND r.refobjid <> g.tgrelid
     CROSS JOIN LATERAL fieldcrypt_internal.defaults_of_view(r.refobjid, ARRAY(
               SELECT a.attname::text FROM pg_attribute AS a WHERE a.attrelid = g.tgrelid AND a.attnum > 0), '{}') AS d
      JOIN pg_attribute AS v ON v.attrelid = g.tgrelid AND v.attname = d.column_name
      LEFT JOIN pg_attrdef AS f ON f.adrelid = v.attrelid AND f.adnum = v.attnum
     WHERE g.tgfoid = 'fieldcrypt.write_decrypted_view()'::regprocedure
       AND NOT EXISTS (SELECT FROM protected AS p WHERE p.relation = r.refobjid AND p.column_name = d.column_name)
       AND pg_get_expr(f.adbin, f.adrelid) IS DISTINCT FROM d.expression
$$;
COMMENT ON FUNCTION fieldcrypt_internal.problems_of_protected_columns() IS 'columns that take plaintext, and what keeps them from binding it to its row; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_protected_columns(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    columns text[];
    problems text;
    protected bigint;
BEGIN
    -- Values that are bound to no row, where they were counted: in columns of type encrypted, too.
    WITH found AS MATERIALIZED (
        SELECT p.rank, p.problem, p.place FROM fieldcrypt_internal.problems_of_protected_columns() AS p
        UNION
        SELECT 6, 'with values that are bound to no row', format('%s.%I', u."table", u."column")
          FROM fieldcrypt.encryption_keys AS k,
               jsonb_to_recordset(coalesce(used -> k.key_id::text, '[]')) AS u ("table" text, "column" text, "values" bigint)
         WHERE k.purpose = 'loose' AND u."values" > 0 AND u."column" IS NOT NULL
    ), counted AS (
        SELECT f.rank, f.problem, count(*) AS total, array_agg(f.place ORDER BY f.place COLLATE "C") AS places FROM found AS f GROUP BY f.rank, f.problem
    )
    SELECT string_agg(format('%s: %s', fieldcrypt_internal.counted_names(
                   (SELECT array_agg(fieldcrypt_internal.quoted_name(p)) FROM unnest(c.places[1:3]) AS p), c.total, CASE c.rank WHEN 5 THEN 'expression' ELSE 'column' END), c.problem), '; ' ORDER BY c.rank),
           (SELECT array_agg(format('%s %s', f.rank, f.place) ORDER BY f.rank, f.place COLLATE "C") FROM found AS f)
      INTO problems, columns FROM counted AS c;
    IF problems IS NULL THEN
        SELECT count(DISTINCT (p.relation, p.attnum)) INTO protected FROM fieldcrypt_internal.protected_columns() AS p;
        RETURN fieldcrypt_internal.finding_of('ok', CASE WHEN protected = 0 THEN 'no column takes plaintext'
            ELSE format('what is written to %s columns is bound to its row', protected) END);
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning', problems,
        'SELECT fieldcrypt.protect_column(relation, column) declares, validates and makes the trigger that is missing; ALTER TABLE ... ENABLE TRIGGER; give a trigger of yours a name that sorts before ~ (ALTER TRIGGER ... RENAME TO); write a literal as (''...''::text), which is sealed when it is used; SELECT fieldcrypt.create_decrypted_view(relation) brings a view up to date.',
        fieldcrypt_internal.finding_identity(columns, cardinality(columns)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_protected_columns(jsonb) IS 'check: columns that take plaintext and don''t bind it to its row';

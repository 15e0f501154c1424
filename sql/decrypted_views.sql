-- Views that show protected columns decrypted, in their plaintext types, and take what is written to them.
--
-- security_invoker: who reads or writes needs the rights on the table, and its policies hold. The trigger finds the table and
-- its columns in the view's own definition, which follows renames.

CREATE FUNCTION fieldcrypt.write_decrypted_view() RETURNS trigger
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'fieldcrypt_write_decrypted_view';
COMMENT ON FUNCTION fieldcrypt.write_decrypted_view() IS
    'INSTEAD OF trigger of decrypted views: writes to the table behind the view, with the rights of who writes; made by create_decrypted_view';

-- What a view shows of a column: the column, or its plaintext.
CREATE FUNCTION fieldcrypt_internal.shown_column(declaration jsonb, column_name text) RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
AS $$
    SELECT CASE WHEN $1 IS NULL THEN format('t.%I', $2)
                ELSE format(CASE $1 ->> 'plaintext'
                                WHEN 'jsonb' THEN 'fieldcrypt.decrypt_field_jsonb(t.%1$I, %2$s) AS %1$I'
                                WHEN 'integer' THEN 'fieldcrypt.decrypt_field_as(t.%1$I, NULL::pg_catalog.int8, %2$s) AS %1$I'
                                WHEN 'numeric' THEN 'fieldcrypt.decrypt_field_as(t.%1$I, NULL::pg_catalog.numeric, %2$s) AS %1$I'
                                WHEN 'date' THEN 'fieldcrypt.decrypt_field_as(t.%1$I, NULL::pg_catalog.date, %2$s) AS %1$I'
                                WHEN 'timestamptz' THEN 'fieldcrypt.decrypt_field_as(t.%1$I, NULL::pg_catalog.timestamptz, %2$s) AS %1$I'
                                WHEN 'uuid' THEN 'fieldcrypt.decrypt_field_as(t.%1$I, NULL::pg_catalog.uuid, %2$s) AS %1$I'
                                WHEN 'boolean' THEN 'fieldcrypt.decrypt_field_as(t.%1$I, NULL::pg_catalog.bool, %2$s) AS %1$I'
                                ELSE 'fieldcrypt.decrypt_field(t.%1$I, %2$s) AS %1$I' END,
                    $2,
                    (SELECT format('fieldcrypt.context(%L, %s)', $1 ->> 'place_name', string_agg(format('t.%I', k.name), ', ' ORDER BY k.place))
                       FROM jsonb_array_elements_text(
                                CASE WHEN $1 ->> 'tenant' IS NULL THEN '[]' ELSE jsonb_build_array($1 ->> 'tenant') END || ($1 -> 'key'))
                            WITH ORDINALITY AS k (name, place))) END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.shown_column(jsonb, text) IS 'what a decrypted view shows of a column, as SQL; granted to nobody';

-- DEFAULTs are those of who inserts, for a view too. What the database makes by itself, numbers of identity columns, is left to
-- it by the trigger. A literal that is sealed already can't be shown.
CREATE FUNCTION fieldcrypt_internal.defaults_of_view(relation oid, columns text[], declared jsonb)
    RETURNS TABLE (column_name text, expression text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
    SELECT a.attname::text, pg_get_expr(d.adbin, d.adrelid)
      FROM pg_attribute AS a
      LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.attgenerated = ''
       AND NOT (a.atttypid = 'fieldcrypt.encrypted_text'::regtype AND pg_get_expr(d.adbin, d.adrelid) LIKE '%::fieldcrypt.encrypted_text%')
       -- Of a text that is to be a date, say, only the table makes one.
       AND NOT (pg_get_expr(d.adbin, d.adrelid) LIKE '%::text%'
                AND coalesce($3 -> a.attname::text ->> 'plaintext', 'text') NOT IN ('text', 'lower-17.0', 'digits-17.0'))
     WHERE a.attrelid = $1 AND a.attname = ANY ($2)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.defaults_of_view(oid, text[], jsonb) IS 'the DEFAULTs of a table''s columns that a decrypted view has, too; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.decrypted_view(relation oid, view_name text, columns jsonb) RETURNS text[]
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off SET standard_conforming_strings = on
AS $$
DECLARE
    of_table record;
    target text;
    there oid;
    shown text[];
    names text[];
    missing text;
    declared jsonb;
    statements text[];
    grants text[];
BEGIN
    SELECT n.nspname, c.relname, c.relkind, c.relowner INTO of_table
      FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = $1;
    IF of_table.relkind NOT IN ('r', 'p') THEN
        PERFORM fieldcrypt_internal.refuse_declaration(format('%s is no table', $1::regclass), 'Name a table with protected columns.');
    END IF;
    IF view_name IS NULL THEN
        target := format('%I.%I', of_table.nspname, left('decrypted_' || of_table.relname, 63));
    ELSE
        names := parse_ident(view_name);
        target := CASE cardinality(names) WHEN 1 THEN format('%I.%I', of_table.nspname, names[1]) WHEN 2 THEN format('%I.%I', names[1], names[2]) END;
        IF target IS NULL THEN
            PERFORM fieldcrypt_internal.refuse_declaration(format('"%s" is no name of a view', view_name), 'Name it as in SQL: name, or schema.name.');
        END IF;
    END IF;
    declared := coalesce((
        SELECT jsonb_object_agg(d.value ->> 'column_name', d.value) FROM jsonb_array_elements(fieldcrypt_internal.declarations($1)::jsonb) AS d), '{}');
    IF declared = '{}' THEN
        PERFORM fieldcrypt_internal.refuse_declaration(
            format('table %s has no protected column', $1::regclass), 'SELECT fieldcrypt.protect_column(...) first.');
    END IF;
    SELECT c.name INTO missing FROM jsonb_array_elements_text(columns) AS c (name)
     WHERE NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = $1 AND a.attname = c.name AND a.attnum > 0 AND NOT a.attisdropped) LIMIT 1;
    IF missing IS NOT NULL THEN
        PERFORM fieldcrypt_internal.refuse_declaration(format('table %s has no column "%s"', $1::regclass, missing), 'Leave columns out for all of them.');
    END IF;
    SELECT array_agg(fieldcrypt_internal.shown_column(declared -> a.attname::text, a.attname::text) ORDER BY a.attnum),
           array_agg(a.attname::text ORDER BY a.attnum)
      INTO shown, names
      FROM pg_attribute AS a
     WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND (columns ? a.attname::text OR columns IS NULL
           -- What encrypt_column has put beside a column, or keeps of it, is not the application's.
           AND NOT EXISTS (SELECT FROM fieldcrypt_internal.column_twins() AS w
                            WHERE w.relation = $1
                              AND a.attname = CASE WHEN w.step IN ('decrypt', 'forget') THEN w.plaintext_column ELSE w.value_column END));
    there := to_regclass(target);
    -- One of another owner's is his: he could make it show what he reads by it to anybody.
    IF there IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_trigger AS g JOIN pg_class AS v ON v.oid = g.tgrelid
         WHERE g.tgrelid = there AND g.tgfoid = 'fieldcrypt.write_decrypted_view()'::regprocedure AND v.relowner = of_table.relowner) THEN
        PERFORM fieldcrypt_internal.refuse_declaration(
            format('%s is there already, and was not made by create_decrypted_view', there::regclass), 'Name another: view_name => ''...''.');
    END IF;
    -- CREATE OR REPLACE adds columns at the end, and nothing else. Where that does not do, the view is made anew, with the rights that it
    -- had; what is made of it keeps it from being dropped, and is named by the error.
    IF there IS NOT NULL AND EXISTS (
        SELECT FROM pg_attribute AS v
          LEFT JOIN unnest(names) WITH ORDINALITY AS n (name, place) ON n.place = v.attnum
          LEFT JOIN pg_attribute AS a ON a.attrelid = $1 AND a.attname = n.name
         WHERE v.attrelid = there AND v.attnum > 0
           AND (n.name IS DISTINCT FROM v.attname OR declared -> n.name IS NULL AND (a.atttypid, a.atttypmod, a.attcollation) IS DISTINCT FROM (v.atttypid, v.atttypmod, v.attcollation)
                OR declared -> n.name IS NOT NULL AND format_type(v.atttypid, NULL) IS DISTINCT FROM
                   CASE declared -> n.name ->> 'plaintext' WHEN 'integer' THEN 'bigint' WHEN 'timestamptz' THEN 'timestamp with time zone'
                        WHEN 'numeric' THEN 'numeric' WHEN 'date' THEN 'date' WHEN 'uuid' THEN 'uuid' WHEN 'boolean' THEN 'boolean' WHEN 'jsonb' THEN 'jsonb' ELSE 'text' END)) THEN
        SELECT array_agg(format('GRANT %s ON %s TO %s%s', e.privilege_type, target,
                   CASE e.grantee WHEN 0 THEN 'PUBLIC' ELSE e.grantee::regrole::text END, CASE WHEN e.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END))
          INTO grants FROM pg_class AS c, aclexplode(c.relacl) AS e WHERE c.oid = there AND e.grantee <> c.relowner;
        grants := coalesce(grants, '{}') || ARRAY(
            SELECT format('GRANT %s (%I) ON %s TO %s%s', e.privilege_type, v.attname, target,
                   CASE e.grantee WHEN 0 THEN 'PUBLIC' ELSE e.grantee::regrole::text END, CASE WHEN e.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
              FROM pg_attribute AS v, aclexplode(v.attacl) AS e
             WHERE v.attrelid = there AND v.attname = ANY (names));
        statements := ARRAY[format('DROP VIEW %s', target)];
    END IF;
    statements := statements || format('CREATE OR REPLACE VIEW %s WITH (security_invoker = true) AS SELECT %s FROM %s AS t',
        target, array_to_string(shown, ', '), fieldcrypt_internal.qualified_name($1));
    statements := statements || ARRAY(
        SELECT CASE WHEN d.expression IS NULL THEN format('ALTER VIEW %s ALTER COLUMN %I DROP DEFAULT', target, d.column_name)
                    ELSE format('ALTER VIEW %s ALTER COLUMN %I SET DEFAULT %s', target, d.column_name, d.expression) END
          FROM fieldcrypt_internal.defaults_of_view($1, names, declared) AS d);
    statements := statements || format('CREATE OR REPLACE TRIGGER fieldcrypt_write INSTEAD OF INSERT OR UPDATE OR DELETE ON %s
        FOR EACH ROW EXECUTE FUNCTION fieldcrypt.write_decrypted_view()', target);
    statements := statements || format('COMMENT ON VIEW %s IS %L', target,
        format('%s with %s decrypted; made by fieldcrypt.create_decrypted_view', $1::regclass,
            (SELECT string_agg(n.name, ', ') FROM unnest(names) AS n (name) WHERE declared ? n.name)));
    IF there IS NULL OR grants IS NOT NULL THEN
        statements := statements || format('ALTER VIEW %s OWNER TO %s', target, of_table.relowner::regrole);
    END IF;
    RAISE NOTICE 'create_decrypted_view: % shows % with % decrypted', target, $1::regclass,
        coalesce((SELECT string_agg(n.name, ', ') FROM unnest(names) AS n (name) WHERE declared ? n.name), 'no column');
    RETURN statements || coalesce(grants, '{}');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.decrypted_view(oid, text, jsonb) IS 'the statements that make a decrypted view; granted to nobody';

CREATE FUNCTION fieldcrypt.create_decrypted_view(relation regclass, view_name text DEFAULT NULL, columns text[] DEFAULT NULL) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_create_decrypted_view';
COMMENT ON FUNCTION fieldcrypt.create_decrypted_view(regclass, text, text[]) IS
    'makes a view (decrypted_... in the table''s schema) that shows the table with its protected columns decrypted, for who has the rights on both and decrypt; what is written to it goes to the table; columns: these only. Called again after DDL it brings the view up to date. For the table''s owner';

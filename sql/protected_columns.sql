-- Protected columns. One CHECK constraint is the declaration, and there is no second register of them: it goes where the
-- table goes. A trigger, the last by its name, binds what is written.

-- IMMUTABLE, and for everybody: it reads a header and the row's key, needs no key of ours, and shows nothing. So restores,
-- subscribers and loads can ask it.
CREATE FUNCTION fieldcrypt.is_protected(
        value fieldcrypt.encrypted_text, name text, plaintext text, tenant text, domain text, VARIADIC key "any")
    RETURNS boolean LANGUAGE c IMMUTABLE PARALLEL SAFE COST 5 AS 'MODULE_PATHNAME', 'fieldcrypt_is_protected';
COMMENT ON FUNCTION fieldcrypt.is_protected(fieldcrypt.encrypted_text, text, text, text, text, "any") IS
    'in a CHECK constraint, the declaration of a protected column: whether a value is bound to the place of its row (name and key) and has that form of plaintext; tenant: column, if the first of the key names it, or session; made by protect_column';

CREATE FUNCTION fieldcrypt_internal.bind_values() RETURNS trigger
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'fieldcrypt_bind_values';
COMMENT ON FUNCTION fieldcrypt_internal.bind_values() IS 'trigger of tables with protected columns: binds what is written to its row';

CREATE FUNCTION fieldcrypt_internal.declarations(relation oid) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_declarations';
COMMENT ON FUNCTION fieldcrypt_internal.declarations(oid) IS 'the protected columns of a relation, as its constraints say, as JSON';

CREATE FUNCTION fieldcrypt_internal.declared(relation oid, name text, expression text, is_believed boolean) RETURNS text
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_declared';
COMMENT ON FUNCTION fieldcrypt_internal.declared(oid, text, text, boolean) IS
    'the protected column that a constraint of the catalog declares, as JSON; NULL: none; reads expressions of the catalog and no others; granted to nobody';

-- From the catalog, without a lock on any of the tables: somebody may hold one for hours.
CREATE FUNCTION fieldcrypt_internal.protected_columns()
    RETURNS TABLE (relation oid, attnum smallint, column_name text, constraint_name text, place_name text, plaintext text,
                   tenant text, key text[], is_believed boolean)
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
    SELECT r.relation, d.attnum, d.column_name, d.constraint_name, d.place_name, d.plaintext, d.tenant, d.key, d.is_believed
      FROM (SELECT DISTINCT c.oid, c.conrelid AS relation, c.conname, c.conbin::text AS expression,
                   c.convalidated AND NOT c.connoinherit AND to_jsonb(c) -> 'conenforced' IS DISTINCT FROM 'false' AS is_believed
              FROM pg_depend AS p JOIN pg_constraint AS c ON c.oid = p.objid AND c.contype = 'c' AND c.conrelid <> 0
             WHERE p.classid = 'pg_constraint'::regclass AND p.refclassid = 'pg_proc'::regclass
               AND p.refobjid = 'fieldcrypt.is_protected(fieldcrypt.encrypted_text, text, text, text, text, "any")'::regprocedure) AS r,
           jsonb_to_record(fieldcrypt_internal.declared(r.relation, r.conname, r.expression, r.is_believed)::jsonb)
           AS d (attnum smallint, column_name text, constraint_name text, place_name text, plaintext text, tenant text, key text[], is_believed boolean)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.protected_columns() IS 'every protected column of this database, of partitions and children too';

CREATE FUNCTION fieldcrypt_internal.on_table(relation oid, statement text) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_on_table';
COMMENT ON FUNCTION fieldcrypt_internal.on_table(oid, text) IS
    'runs a statement on a table as its owner, whose code it may compute, and gives the first text of its result; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.qualified_name(relation oid) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
    SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = $1
$$;
COMMENT ON FUNCTION fieldcrypt_internal.qualified_name(oid) IS 'a table''s name, the same whatever the search_path';

-- The name sorts behind what people call triggers: what other triggers have made of the row is bound, not the other way
-- round.
CREATE FUNCTION fieldcrypt_internal.create_binding_triggers(relation oid) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    item regclass;
BEGIN
    -- Partitions have their parent's trigger; tables that inherit otherwise do not.
    FOR item IN
        SELECT c.oid::regclass
          FROM fieldcrypt_internal.with_descendants($1) AS t JOIN pg_class AS c ON c.oid = t.relation
         WHERE c.relkind IN ('r', 'p') AND (c.oid = $1 OR NOT c.relispartition)
           AND c.relowner = (SELECT o.relowner FROM pg_class AS o WHERE o.oid = $1)
           AND NOT EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgrelid = c.oid AND g.tgfoid = 'fieldcrypt_internal.bind_values()'::regprocedure)
    LOOP
        EXECUTE format('CREATE TRIGGER "~fieldcrypt_bind_values" BEFORE INSERT OR UPDATE ON %s
            FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.bind_values()', item);
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.create_binding_triggers(oid) IS 'the trigger of a table with protected columns, and of those that inherit from it, where it is not there; granted to nobody';

-- The trigger is for all protected columns of its table.
CREATE FUNCTION fieldcrypt_internal.drop_binding_triggers(relation oid) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    item record;
BEGIN
    FOR item IN
        SELECT t.relation::regclass AS relation, g.tgname
          FROM fieldcrypt_internal.with_descendants($1) AS t
          JOIN pg_trigger AS g ON g.tgrelid = t.relation AND g.tgparentid = 0 AND g.tgfoid = 'fieldcrypt_internal.bind_values()'::regprocedure
         WHERE fieldcrypt_internal.declarations(t.relation) = '[]'
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', item.tgname, item.relation);
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.drop_binding_triggers(oid) IS 'the end of that trigger, where no column is protected any more; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.refuse_declaration(problem text, hint text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'invalid_object_definition', MESSAGE = problem, HINT = hint;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.refuse_declaration(text, text) IS 'what protect_column says of what can''t be protected; granted to nobody';

-- The columns that tell the rows of a table apart, as they stand in its primary key, or as they are named if they do.
CREATE FUNCTION fieldcrypt_internal.key_of_places(relation oid, column_name text, named jsonb, tenant text) RETURNS text[]
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
DECLARE
    found text[];
    problem text;
BEGIN
    IF named IS NULL THEN
        SELECT array_agg(a.attname::text ORDER BY k.place) INTO found
          FROM pg_index AS i, unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (number, place), pg_attribute AS a
         WHERE i.indrelid = $1 AND i.indisprimary AND a.attrelid = $1 AND a.attnum = k.number AND k.place <= i.indnkeyatts;
        IF found IS NULL THEN
            PERFORM fieldcrypt_internal.refuse_declaration(
                format('table %s has no primary key: its values can''t be bound to their rows', $1::regclass),
                'ALTER TABLE ... ADD PRIMARY KEY, or name the columns of another key: key => ''{...}'', NOT NULL and UNIQUE.');
        END IF;
    ELSE
        found := ARRAY(SELECT jsonb_array_elements_text(named));
    END IF;
    SELECT CASE WHEN a.attnum IS NULL THEN format('table %s has no column "%s"', $1::regclass, k.name)
                WHEN a.attgenerated <> '' THEN format('column "%s" of the key is generated: its value is made after that of the protected column', k.name)
                WHEN NOT a.attnotnull THEN format('column "%s" of the key may be NULL', k.name) END
      INTO problem
      FROM unnest(found) WITH ORDINALITY AS k (name, place)
      LEFT JOIN pg_attribute AS a ON a.attrelid = $1 AND a.attname = k.name AND a.attnum > 0 AND NOT a.attisdropped
     WHERE a.attnum IS NULL OR a.attgenerated <> '' OR NOT a.attnotnull
     ORDER BY k.place LIMIT 1;
    IF problem IS NULL AND NOT EXISTS (
        SELECT FROM pg_index AS i
         WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
           AND (SELECT bool_and(a.attname = ANY (found)) FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (number, place), pg_attribute AS a
                 WHERE a.attrelid = $1 AND a.attnum = k.number AND k.place <= i.indnkeyatts)) THEN
        problem := format('no UNIQUE constraint says that a row of %s is the only one with its %s', $1::regclass, array_to_string(found, ', '));
    END IF;
    IF problem IS NOT NULL THEN
        PERFORM fieldcrypt_internal.refuse_declaration(problem, 'The key of a value''s place is the primary key, or other columns that are NOT NULL and UNIQUE together.');
    END IF;
    IF $2 = ANY (found || tenant) THEN
        PERFORM fieldcrypt_internal.refuse_declaration(format('column "%s" can''t be part of its own key', $2), 'Name other columns: key => ''{...}''.');
    END IF;
    RETURN found;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.key_of_places(oid, text, jsonb, text) IS
    'the columns of the key by which values of a column are bound to rows; an error if there is none; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.name_of_places(relation oid, column_name text, wanted text) RETURNS text
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    name text := coalesce(wanted, (
        SELECT format('%I.%I.%I', n.nspname, c.relname, $2) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = $1));
BEGIN
    IF name = '' OR octet_length(name) > 1024 THEN
        PERFORM fieldcrypt_internal.refuse_declaration('the name of a column''s places has 1 to 1024 bytes', 'Leave it out for schema.table.column as they are called now.');
    END IF;
    RETURN name;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.name_of_places(oid, text, text) IS 'what the places of a column begin with: as wanted, or what it is called now; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.name_beside(column_name text, ending text) RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT left($1, n.length) || $2
      FROM generate_series(length($1), 1, -1) AS n (length)
     WHERE octet_length(left($1, n.length) || $2) <= 63
     ORDER BY n.length DESC LIMIT 1
$$;
COMMENT ON FUNCTION fieldcrypt_internal.name_beside(text, text) IS 'the name of what is made for a column';

CREATE FUNCTION fieldcrypt_internal.free_constraint_name(relation oid, column_name text, ending text) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
    SELECT m.name
      FROM generate_series(0, 100) AS n (number), fieldcrypt_internal.name_beside($2, $3 || CASE n.number WHEN 0 THEN '' ELSE n.number::text END) AS m (name)
     WHERE NOT EXISTS (
        SELECT FROM pg_constraint AS c
         WHERE c.conname = m.name AND c.conrelid IN (SELECT t.relation FROM fieldcrypt_internal.with_descendants($1) AS t))
     ORDER BY n.number LIMIT 1
$$;
COMMENT ON FUNCTION fieldcrypt_internal.free_constraint_name(oid, text, text) IS 'a name for a constraint of a column, which no other has; granted to nobody';

-- The declaration, for rows that are written from now on.
CREATE FUNCTION fieldcrypt_internal.add_declaration(
        relation oid, constraint_name text, column_name text, place_name text, form text, tenant text, key_columns text[]) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off SET standard_conforming_strings = on
AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I CHECK (fieldcrypt.is_protected(%I, %L, %L, %L, '''', %s)) NOT VALID',
        $1::regclass, constraint_name, column_name, place_name, form, CASE WHEN tenant IS NULL THEN 'session' ELSE 'column' END,
        (SELECT string_agg(quote_ident(c.name), ', ' ORDER BY c.place)
           FROM unnest(CASE WHEN tenant IS NULL THEN '{}' ELSE ARRAY[tenant] END || key_columns) WITH ORDINALITY AS c (name, place)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.add_declaration(oid, text, text, text, text, text, text[]) IS
    'the CHECK constraint that says how a column is protected; granted to nobody';

-- place: the name that its values are to be bound to. is_default: nobody has said it.
CREATE FUNCTION fieldcrypt_internal.refuse_unless_protectable(relation oid, column_name text, tenant text, place text, is_default boolean) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
DECLARE
    found record;
    problem text;
    hint text := 'See docs/columns.md.';
BEGIN
    SELECT c.relkind, c.relowner, a.attnum, a.attgenerated, a.atttypid INTO found
      FROM pg_class AS c LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped
     WHERE c.oid = $1;
    IF found.relkind NOT IN ('r', 'p') THEN
        problem := format('%s is no table', $1::regclass);
    ELSIF found.attnum IS NULL THEN
        problem := format('table %s has no column "%s"', $1::regclass, $2);
    ELSIF found.atttypid <> 'fieldcrypt.encrypted_text'::regtype THEN
        problem := format('column "%s" of table %s is of type %s, not fieldcrypt.encrypted_text', $2, $1::regclass, format_type(found.atttypid, NULL));
        hint := 'A new column: ALTER TABLE ... ADD COLUMN ... fieldcrypt.encrypted_text. One that has values: CALL fieldcrypt.encrypt_column(...).';
    ELSIF EXISTS (
        SELECT FROM fieldcrypt_internal.with_descendants($1) AS t JOIN pg_class AS c ON c.oid = t.relation WHERE c.relowner <> found.relowner) THEN
        problem := format('a partition or child of table %s is another owner''s: %s', $1::regclass, (
            SELECT string_agg(c.oid::regclass::text, ', ' ORDER BY c.oid)
              FROM fieldcrypt_internal.with_descendants($1) AS t JOIN pg_class AS c ON c.oid = t.relation WHERE c.relowner <> found.relowner));
        hint := 'What is declared is declared for all of them: ALTER TABLE ... OWNER TO.';
    ELSIF found.attgenerated <> '' THEN
        problem := format('column "%s" of table %s is generated', $2, $1::regclass);
    ELSIF tenant IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = $1 AND a.attname = tenant AND a.attnum > 0 AND NOT a.attisdropped
           AND a.attgenerated = '' AND a.attnotnull) THEN
        problem := format('table %s has no column "%s" that is NOT NULL and not generated, to name the tenant', $1::regclass, tenant);
    ELSIF EXISTS (
        SELECT FROM pg_partitioned_table AS p
          JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = ANY (p.partattrs::smallint[])
         WHERE a.attname = $2
           AND (p.partrelid IN (SELECT t.relation FROM fieldcrypt_internal.with_descendants($1) AS t)
                OR p.partrelid IN (SELECT u.relid FROM pg_partition_ancestors($1) AS u))) THEN
        problem := format('column "%s" of table %s is part of the partition key', $2, $1::regclass);
    ELSIF EXISTS (
        SELECT FROM pg_constraint AS k
         WHERE k.conrelid = $1 AND k.contype = 'f' AND found.attnum = ANY (k.conkey) AND k.confupdtype IN ('c', 'n', 'd')) THEN
        problem := format('column "%s" of table %s is in a foreign key that changes it', $2, $1::regclass);
        hint := 'ON UPDATE CASCADE, SET NULL and SET DEFAULT would write another row''s value there. NO ACTION and RESTRICT do not.';
    ELSE
        -- Two columns of one name are one place to their values: that of another owner's, or of this table's, is nobody's to
        -- take, and that of another table only where it is asked for.
        SELECT format('the name %s is that of column %s of table %s%s', $4, p.column_name, p.relation::regclass,
                   CASE WHEN c.relowner <> found.relowner THEN ', which is another owner''s' ELSE '' END) INTO problem
          FROM fieldcrypt_internal.protected_columns() AS p JOIN pg_class AS c ON c.oid = p.relation
         WHERE p.place_name = $4
           -- A constraint alone, which anybody can write, keeps nobody from a name.
           AND (p.relation = $1 OR c.relowner = found.relowner OR EXISTS (
                SELECT FROM pg_trigger AS g WHERE g.tgrelid = p.relation AND g.tgfoid = 'fieldcrypt_internal.bind_values()'::regprocedure))
           AND CASE WHEN p.relation = $1 THEN p.column_name <> $2
                    ELSE (c.relowner <> found.relowner OR is_default)
                         AND p.relation NOT IN (SELECT t.relation FROM fieldcrypt_internal.with_descendants($1) AS t)
                         AND $1 NOT IN (SELECT t.relation FROM fieldcrypt_internal.with_descendants(p.relation) AS t) END
         LIMIT 1;
        hint := 'Each column has a name of its own: name => ''...''.';
    END IF;
    IF problem IS NOT NULL THEN
        PERFORM fieldcrypt_internal.refuse_declaration(problem, hint);
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.refuse_unless_protectable(oid, text, text, text, boolean) IS 'an error that says why a column can''t be protected; granted to nobody';

-- A declaration is a constraint, which a table's owner can write as he likes: not by the name of another owner's column, to
-- whose rows values would be bound then, or with whose rights opened.
CREATE FUNCTION fieldcrypt_internal.refuse_taken_names() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    found record;
BEGIN
    SELECT t.relation::regclass AS table_name, d.column_name, d.place_name, p.relation::regclass AS taken_by INTO found
      FROM (SELECT DISTINCT x.relation
              FROM pg_event_trigger_ddl_commands() AS e
              LEFT JOIN pg_trigger AS g ON e.classid = 'pg_trigger'::regclass AND g.oid = e.objid
             CROSS JOIN LATERAL fieldcrypt_internal.with_descendants(CASE WHEN e.classid = 'pg_class'::regclass THEN e.objid ELSE g.tgrelid END) AS x
             WHERE e.classid IN ('pg_class'::regclass, 'pg_trigger'::regclass)
               AND EXISTS (SELECT FROM pg_constraint AS k JOIN pg_depend AS u ON u.classid = 'pg_constraint'::regclass AND u.objid = k.oid
                            WHERE k.conrelid = x.relation AND k.contype = 'c' AND u.refclassid = 'pg_proc'::regclass
                              AND u.refobjid = 'fieldcrypt.is_protected(fieldcrypt.encrypted_text, text, text, text, text, "any")'::regprocedure)) AS t
      JOIN pg_class AS c ON c.oid = t.relation
     CROSS JOIN LATERAL jsonb_to_recordset(fieldcrypt_internal.declarations(t.relation)::jsonb) AS d (column_name text, place_name text)
      JOIN fieldcrypt_internal.protected_columns() AS p ON p.place_name = d.place_name AND p.relation <> t.relation
      JOIN pg_class AS o ON o.oid = p.relation AND o.relowner <> c.relowner
     WHERE EXISTS (SELECT FROM pg_trigger AS b WHERE b.tgrelid = p.relation AND b.tgfoid = 'fieldcrypt_internal.bind_values()'::regprocedure)
     LIMIT 1;
    IF found.table_name IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('column "%s" of table %s can''t be declared as "%s": so is one of table %s, which is another owner''s',
                found.column_name, found.table_name, found.place_name, found.taken_by),
            HINT = 'Each owner''s columns have names of their own: fieldcrypt.protect_column(..., name => ...).';
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.refuse_taken_names() IS 'at the end of DDL: an error if a table has a declaration by another owner''s name; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.note_declarations() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'fieldcrypt_note_declarations';
COMMENT ON FUNCTION fieldcrypt_internal.note_declarations() IS 'event trigger: no table has a protected column by another owner''s name';
CREATE EVENT TRIGGER fieldcrypt_declarations ON ddl_command_end
    WHEN TAG IN ('CREATE TABLE', 'CREATE SCHEMA', 'ALTER TABLE', 'CREATE TRIGGER')
    EXECUTE FUNCTION fieldcrypt_internal.note_declarations();
ALTER EVENT TRIGGER fieldcrypt_declarations ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER fieldcrypt_declarations IS 'pg_fieldcrypt: no table has a protected column by another owner''s name';

-- Gives the statement that binds what the column has already; NULL if it has nothing.
CREATE FUNCTION fieldcrypt_internal.declare_protection(
        relation oid, column_name text, key jsonb, tenant text, wanted text, plaintext text) RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off SET standard_conforming_strings = on
AS $$
DECLARE
    place text := fieldcrypt_internal.name_of_places($1, $2, wanted);
    columns text[];
    known record;
    has_values boolean;
BEGIN
    SELECT p.place_name, p.plaintext, p.tenant, p.key, p.is_believed INTO known
      FROM fieldcrypt_internal.protected_columns() AS p WHERE p.relation = $1 AND p.column_name = $2;
    -- Also of a constraint that somebody has written: it may have another's name.
    PERFORM fieldcrypt_internal.refuse_unless_protectable($1, $2, tenant, coalesce(known.place_name, place), wanted IS NULL AND known.place_name IS NULL);
    columns := fieldcrypt_internal.key_of_places($1, $2, key, tenant);
    IF known.place_name IS NOT NULL THEN
        IF (known.plaintext, known.tenant, known.key) IS DISTINCT FROM ($6, $4, columns)
           OR known.place_name <> wanted THEN
            PERFORM fieldcrypt_internal.refuse_declaration(
                format('column "%s" of table %s is protected otherwise already', $2, $1::regclass),
                'See its CHECK constraint. To change it: unprotect_column; UPDATE the column to fieldcrypt.loosen(column, place); protect_column. See docs/columns.md.');
        END IF;
        IF known.is_believed THEN
            PERFORM fieldcrypt_internal.create_binding_triggers($1);
            RETURN NULL;
        END IF;
    ELSE
        PERFORM fieldcrypt_internal.add_declaration(
            $1, fieldcrypt_internal.free_constraint_name($1, $2, '_is_protected'), $2, place, $6, tenant, columns);
    END IF;
    PERFORM fieldcrypt_internal.create_binding_triggers($1);
    has_values := fieldcrypt_internal.on_table($1, format('SELECT EXISTS (SELECT FROM %s AS t WHERE t.%I IS NOT NULL)',
        fieldcrypt_internal.qualified_name($1), $2))::boolean;
    RETURN CASE WHEN has_values THEN format('UPDATE %s SET %I = %I WHERE %I IS NOT NULL', fieldcrypt_internal.qualified_name($1), $2, $2, $2) END;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.declare_protection(oid, text, jsonb, text, text, text) IS
    'protect_column for a caller whose rights were checked; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.believe_protection(relation oid, column_name text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    known record;
BEGIN
    SELECT p.constraint_name, p.place_name, p.is_believed INTO known
      FROM jsonb_to_recordset(fieldcrypt_internal.declarations($1)::jsonb) AS p (column_name text, constraint_name text, place_name text, is_believed boolean)
     WHERE p.column_name = $2;
    IF known.is_believed THEN
        RAISE NOTICE 'protect_column: column % of table % is protected already', $2, $1::regclass;
        RETURN;
    END IF;
    BEGIN
        PERFORM fieldcrypt_internal.on_table($1, format('ALTER TABLE %s VALIDATE CONSTRAINT %I', fieldcrypt_internal.qualified_name($1), known.constraint_name));
    EXCEPTION WHEN check_violation THEN
        PERFORM fieldcrypt_internal.refuse_declaration(
            format('column "%s" of table %s has values that are bound to no row of it', $2, $1::regclass),
            'UPDATE them to fieldcrypt.loosen(column, place), with the place or the context that each is bound to, and call again: see docs/columns.md.');
    END;
    RAISE NOTICE 'protect_column: column % of table % takes plaintext now; its values are bound to "%" and the row''s key', $2, $1::regclass, known.place_name;
    PERFORM fieldcrypt_internal.record_event('column_protected', NULL, NULL, format('%s, bound to %s', $2, known.place_name), $1::regclass::text);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.believe_protection(oid, text) IS 'the end of protect_column: all rows meet the declaration; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.withdraw_protection(relation oid, column_name text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    item record;
    withdrawn boolean := false;
BEGIN
    FOR item IN
        SELECT p.constraint_name
          FROM jsonb_to_recordset(fieldcrypt_internal.declarations($1)::jsonb) AS p (column_name text, constraint_name text)
         WHERE p.column_name = $2
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', $1::regclass, item.constraint_name);
        withdrawn := true;
    END LOOP;
    IF NOT withdrawn THEN
        RAISE NOTICE 'unprotect_column: nothing to do: column % of table % is not protected', $2, $1::regclass;
        RETURN;
    END IF;
    PERFORM fieldcrypt_internal.drop_binding_triggers($1);
    RAISE WARNING USING
        MESSAGE = format('column %s of table %s is not protected any more: what is written from now on stays bound to no row', $2, $1::regclass),
        HINT = 'Values that are there stay bound: they open with the place of their row. fieldcrypt.protect_column binds all that is loose.';
    PERFORM fieldcrypt_internal.record_event('column_unprotected', NULL, NULL, $2, $1::regclass::text);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.withdraw_protection(oid, text) IS 'unprotect_column for a caller whose rights were checked; granted to nobody';

-- C with the caller's rights: whose these are can't be told any more inside of a SECURITY DEFINER function.
CREATE FUNCTION fieldcrypt.protect_column(
        relation regclass, column_name name, key text[] DEFAULT NULL, tenant name DEFAULT NULL, name text DEFAULT NULL,
        plaintext text DEFAULT 'text')
    RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_protect_column';
COMMENT ON FUNCTION fieldcrypt.protect_column(regclass, name, text[], name, text, text) IS
    'from now on plaintext that is written to a column of type encrypted_text is bound to its row; for the table''s owner with encrypt. key: columns that tell rows apart, by default the primary key''s; tenant: the column that names it, by default the session''s; name: what values are bound to besides the key, for ever; plaintext: text, lower, digits, integer, numeric, date, timestamptz, uuid, boolean or jsonb';
CREATE FUNCTION fieldcrypt.unprotect_column(relation regclass, column_name name) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_unprotect_column';
COMMENT ON FUNCTION fieldcrypt.unprotect_column(regclass, name) IS
    'takes back protect_column; values stay as they are, bound to their rows';

-- The steps by which a column is encrypted into another: each a transaction of its own, for a caller whose rights were
-- checked. What reads and writes the table's rows is done by the procedures, with the caller's rights.

CREATE FUNCTION fieldcrypt_internal.refuse_migration(problem text, hint text, code text DEFAULT '55000') RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = code, MESSAGE = problem, HINT = hint;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.refuse_migration(text, text, text) IS 'what encrypt_column says of what it does not do; granted to nobody';

-- What is known of a migration: by its trigger, its declaration, and the row that says how far it is.
CREATE FUNCTION fieldcrypt_internal.migration_plan(relation oid, column_name text) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN (SELECT jsonb_build_object(
               'table', $1::regclass::text, 'attnum', w.attnum, 'trigger', w.trigger_name, 'step', w.step, 'column', $2,
               'plaintext', w.plaintext_column, 'value', w.value_column, 'has_source', w.step IN ('mark', 'forget'),
               'is_swapped', w.step IN ('decrypt', 'forget'),
               'place_name', d.place_name, 'form', d.plaintext, 'key', d.key, 'is_believed', d.is_believed, 'protection', d.constraint_name,
               'place', format('fieldcrypt.context(%L, %s)', d.place_name,
                   (SELECT string_agg('t.' || quote_ident(k.name), ', ' ORDER BY k.place)
                      FROM unnest(CASE WHEN d.tenant IS NULL THEN '{}' ELSE ARRAY[d.tenant] END || d.key) WITH ORDINALITY AS k (name, place))),
               'twins', (SELECT jsonb_build_object('name', k.conname, 'is_valid', k.convalidated)
                           FROM pg_constraint AS k
                           JOIN pg_attribute AS p ON p.attrelid = $1 AND p.attname = w.plaintext_column
                          WHERE k.conrelid = $1 AND k.contype = 'c' AND k.conkey @> ARRAY[p.attnum, w.attnum] AND k.conkey <@ ARRAY[p.attnum, w.attnum]
                            AND k.conname LIKE '%\_are\_twins%' LIMIT 1),
               'state', m.state, 'run', m.run)
      FROM fieldcrypt_internal.column_twins() AS w
      LEFT JOIN jsonb_to_recordset(fieldcrypt_internal.declarations($1)::jsonb)
           AS d (attnum smallint, constraint_name text, place_name text, plaintext text, tenant text, key text[], is_believed boolean) ON d.attnum = w.attnum
      LEFT JOIN fieldcrypt_internal.column_migrations AS m ON m.relation = $1 AND m.attnum = w.attnum
     WHERE w.relation = $1 AND NOT w.is_copy AND $2 = CASE WHEN w.step IN ('encrypt', 'mark') THEN w.plaintext_column ELSE w.value_column END);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.migration_plan(oid, text) IS 'what is known of a column that is being encrypted, or of which the plaintext is kept still; NULL if it is neither; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.create_twin_trigger(relation oid, attnum integer, plaintext text, value text, step text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
AS $$
DECLARE
    -- Before values are bound to their rows, or after that.
    name text := format(CASE WHEN step IN ('encrypt', 'mark') THEN '~fieldcrypt_are_twins_%s' ELSE '~fieldcrypt_keep_twin_%s' END, attnum);
BEGIN
    EXECUTE format('CREATE TRIGGER %I BEFORE INSERT OR UPDATE ON %s FOR EACH ROW
        WHEN (fieldcrypt_internal.is_twin(NEW.%I, NEW.%I, %L)) EXECUTE FUNCTION fieldcrypt_internal.carry_column()',
        name, relation::regclass, plaintext, value, step);
    -- Also for a session that applies what another server did: the columns would go apart.
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', relation::regclass, name);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.create_twin_trigger(oid, integer, text, text, text) IS 'the trigger that keeps two columns alike; granted to nobody';

-- Takes a migration for this session. One that another session is at is left to it.
CREATE FUNCTION fieldcrypt_internal.take_migration(relation oid, column_name text, plan jsonb, wanted_state text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
DECLARE
    known fieldcrypt_internal.column_migrations;
    other integer;
BEGIN
    IF fieldcrypt_internal.held_run() < 0 THEN
        PERFORM fieldcrypt_internal.hold_run(nextval('fieldcrypt_internal.reencryption_numbers'));
    END IF;
    -- A dump has the trigger and not this row.
    INSERT INTO fieldcrypt_internal.column_migrations (relation, attnum, table_name, column_name, state, has_source, rows_estimated)
    SELECT $1, (plan ->> 'attnum')::smallint, format('%I.%I', n.nspname, c.relname), $2,
           CASE WHEN (plan ->> 'is_swapped')::boolean THEN 'finishing' ELSE 'filling' END, (plan ->> 'has_source')::boolean,
           (SELECT coalesce(sum(greatest(l.reltuples, 0)), 0) FROM fieldcrypt_internal.with_descendants($1) AS t
              JOIN pg_class AS l ON l.oid = t.relation AND l.relkind = 'r')
      FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = $1
        ON CONFLICT ON CONSTRAINT column_migrations_pkey DO NOTHING;
    SELECT m.* INTO known FROM fieldcrypt_internal.column_migrations AS m
     WHERE m.relation = $1 AND m.attnum = (plan ->> 'attnum')::smallint FOR UPDATE;
    SELECT l.pid INTO other FROM fieldcrypt_internal.live_runs() AS l WHERE l.run = known.run AND l.pid <> pg_backend_pid();
    IF FOUND THEN
        PERFORM fieldcrypt_internal.refuse_migration(
            format('process %s is at column "%s" of table %s', other, $2, $1::regclass),
            'See fieldcrypt.column_migrations; what it does not end, the next CALL goes on with.', '55006');
    END IF;
    UPDATE fieldcrypt_internal.column_migrations AS m
       SET run = fieldcrypt_internal.held_run(), column_name = $2,
           table_name = (SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = $1),
           error_code = NULL, error = NULL, updated_at = clock_timestamp(),
           -- It may be of before a restore, or of another table that had the number.
           state = CASE WHEN (plan ->> 'is_swapped')::boolean AND m.state IN ('filling', 'validating', 'verifying', 'ready') THEN 'finishing'
                        WHEN NOT (plan ->> 'is_swapped')::boolean AND m.state IN ('finishing', 'swapped', 'undoing') THEN 'filling'
                        ELSE coalesce(wanted_state, m.state) END,
           parts = CASE WHEN wanted_state IS NULL THEN m.parts ELSE '{}' END
     WHERE m.relation = $1 AND m.attnum = (plan ->> 'attnum')::smallint;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.take_migration(oid, text, jsonb, text) IS 'has this session go on with a migration, or refuses; granted to nobody';

-- All that depends on the column is told before anything is done.
CREATE FUNCTION fieldcrypt_internal.tell_dependents(relation oid, column_name text, drop_dependents boolean, was_told boolean) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
DECLARE
    item record;
    refused text;
    kept text;
    hints text;
    writers text;
BEGIN
    FOR item IN SELECT d.verdict, d.what, d.hint FROM fieldcrypt_internal.column_dependents($1, $2) AS d WHERE NOT was_told LOOP
        RAISE NOTICE USING MESSAGE = CASE item.verdict
            WHEN 'refused' THEN format('encrypt_column: %s depends on the column, and can''t stay: %s', item.what, item.hint)
            WHEN 'kept' THEN format('encrypt_column: %s depends on the column: it stays with the old one, and goes with it', item.what)
            ELSE format('encrypt_column: %s: %s', item.what, item.hint) END;
    END LOOP;
    SELECT string_agg(d.what, '; ') FILTER (WHERE d.verdict = 'refused'), string_agg(DISTINCT d.hint, ' ') FILTER (WHERE d.verdict = 'refused'),
           string_agg(d.what, '; ') FILTER (WHERE d.verdict = 'kept')
      INTO refused, hints, kept FROM fieldcrypt_internal.column_dependents($1, $2) AS d;
    IF refused IS NOT NULL THEN
        PERFORM fieldcrypt_internal.refuse_migration(
            format('column "%s" of table %s can''t be encrypted while this depends on it: %s', $2, $1::regclass, refused), hints, '2BP01');
    END IF;
    IF kept IS NOT NULL AND NOT drop_dependents THEN
        PERFORM fieldcrypt_internal.refuse_migration(
            format('an encrypted column has no index, UNIQUE, CHECK or statistics, and column "%s" of table %s has: %s', $2, $1::regclass, kept),
            'drop_dependents => true: they stay with the old column, are kept and enforced until drop_plaintext_column, and go with it.', '2BP01');
    END IF;
    IF was_told THEN
        RETURN;
    END IF;
    SELECT string_agg(quote_ident(r.rolname), ', ' ORDER BY r.rolname) INTO writers
      FROM pg_roles AS r
     WHERE r.rolcanlogin AND NOT r.rolsuper AND has_schema_privilege(r.oid, (SELECT c.relnamespace FROM pg_class AS c WHERE c.oid = $1), 'USAGE')
       AND (has_column_privilege(r.oid, $1, $2, 'INSERT') OR has_column_privilege(r.oid, $1, $2, 'UPDATE'))
       AND NOT has_function_privilege(r.oid, 'fieldcrypt.encrypt_field(text,text,text)', 'EXECUTE');
    IF writers IS NOT NULL THEN
        RAISE WARNING USING MESSAGE = format('roles that may write column "%s" of table %s and can''t encrypt: %s', $2, $1::regclass, writers),
            HINT = 'After the swap what they write to it is refused. SELECT fieldcrypt.grant_access(role, ''encrypt'') before.';
    END IF;
    RAISE NOTICE 'encrypt_column: what names the column in a text (functions in PL/pgSQL, the application) is not known here; SELECT * and INSERT without a list of columns get another column';
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.tell_dependents(oid, text, boolean, boolean) IS 'lists what depends on a column, and refuses what can''t be carried over; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.begin_migration(relation oid, column_name text, arguments jsonb) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
    SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    plan jsonb := fieldcrypt_internal.migration_plan($1, $2);
    has_source boolean := (arguments ->> 'has_source')::boolean;
    key_columns text[];
    place text;
    form text;
    new_name text := fieldcrypt_internal.name_beside($2, '_encrypted_new');
    old_name text := fieldcrypt_internal.name_beside($2, CASE WHEN (arguments ->> 'has_source')::boolean THEN '_before' ELSE '_plaintext' END);
    protection text;
    number smallint;
    refused record;
BEGIN
    IF plan IS NOT NULL THEN
        IF (plan ->> 'is_swapped')::boolean AND plan ->> 'state' IS DISTINCT FROM 'finishing' THEN
            PERFORM fieldcrypt_internal.take_migration($1, $2, plan, 'swapped');
            RAISE NOTICE 'encrypt_column: nothing to do: column % of table % is encrypted; % is what it was before', $2, $1::regclass, plan ->> 'plaintext';
            RETURN fieldcrypt_internal.migration_plan($1, $2);
        END IF;
        IF NOT (plan ->> 'is_swapped')::boolean AND (plan ->> 'has_source')::boolean <> has_source THEN
            PERFORM fieldcrypt_internal.refuse_migration(
                format('the encryption of column "%s" of table %s was begun %s', $2, $1::regclass,
                    CASE WHEN has_source THEN 'without a source' ELSE 'with a source, which is kept nowhere' END),
                'CALL fieldcrypt.encrypt_column with the same arguments goes on; undo_encrypt_column ends it.', '22023');
        END IF;
        IF coalesce(arguments ->> 'name', plan ->> 'place_name') <> plan ->> 'place_name'
           OR coalesce(split_part(arguments ->> 'plaintext', '-', 1), split_part(plan ->> 'form', '-', 1)) <> split_part(plan ->> 'form', '-', 1)
           OR coalesce(nullif(arguments -> 'key', 'null'), plan -> 'key') <> plan -> 'key' THEN
            PERFORM fieldcrypt_internal.refuse_migration(
                format('the encryption of column "%s" of table %s was begun with another name, key or form', $2, $1::regclass),
                'CALL fieldcrypt.encrypt_column with the same arguments goes on; undo_encrypt_column ends it.', '22023');
        END IF;
        PERFORM fieldcrypt_internal.take_migration($1, $2, plan);
        RAISE NOTICE 'encrypt_column: goes on with column % of table %', $2, $1::regclass;
        RETURN fieldcrypt_internal.migration_plan($1, $2);
    END IF;
    SELECT p.problem, p.hint INTO refused FROM fieldcrypt_internal.problem_of_migration($1, $2, has_source, arguments ->> 'plaintext') AS p;
    IF refused.problem IS NOT NULL THEN
        PERFORM fieldcrypt_internal.refuse_declaration(refused.problem, refused.hint);
    END IF;
    key_columns := fieldcrypt_internal.key_of_places($1, $2, nullif(arguments -> 'key', 'null'), arguments ->> 'tenant');
    IF EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = $1 AND a.attname IN (new_name, old_name) AND NOT a.attisdropped) THEN
        PERFORM fieldcrypt_internal.refuse_declaration(
            format('table %s has a column "%s" or "%s"', $1::regclass, new_name, old_name), 'The column that is encrypted and the one that is kept are called so: rename yours.');
    END IF;
    PERFORM fieldcrypt_internal.tell_dependents($1, $2, (arguments ->> 'drop_dependents')::boolean, arguments ? 'was_told');
    place := fieldcrypt_internal.name_of_places($1, $2, arguments ->> 'name');
    form := coalesce(arguments ->> 'plaintext', CASE WHEN has_source THEN 'text'
        ELSE fieldcrypt_internal.form_of_type((SELECT a.atttypid FROM pg_attribute AS a WHERE a.attrelid = $1 AND a.attname = $2)) END);
    PERFORM fieldcrypt.create_loose_key();
    BEGIN
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', $1::regclass);
        EXECUTE format('ALTER TABLE %s ADD COLUMN %I fieldcrypt.encrypted_text', $1::regclass, new_name);
        PERFORM fieldcrypt_internal.refuse_unless_protectable($1, new_name, arguments ->> 'tenant', place, arguments ->> 'name' IS NULL);
        protection := fieldcrypt_internal.free_constraint_name($1, $2, '_is_protected');
        -- The form's name for ever is the one that the declaration is read with.
        FOR attempt IN 1 .. 2 LOOP
            PERFORM fieldcrypt_internal.add_declaration($1, protection, new_name, place, form, arguments ->> 'tenant', key_columns);
            SELECT d.plaintext, d.attnum INTO refused
              FROM jsonb_to_recordset(fieldcrypt_internal.declarations($1)::jsonb) AS d (attnum smallint, constraint_name text, plaintext text)
             WHERE d.constraint_name = protection;
            IF refused.plaintext IS NULL THEN
                PERFORM fieldcrypt_internal.refuse_declaration(
                    'there is no such form of plaintexts, or a column of the key, or that of the tenant, has a type whose values have no form that is the same for ever',
                    'Keys are texts, whole numbers, numeric, boolean, uuid, date, timestamp and timestamptz: see fieldcrypt.context. Forms: see protect_column.');
            END IF;
            EXIT WHEN refused.plaintext = form;
            form := refused.plaintext;
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', $1::regclass, protection);
        END LOOP;
        number := refused.attnum;
        PERFORM fieldcrypt_internal.create_twin_trigger($1, number, $2, new_name, CASE WHEN has_source THEN 'mark' ELSE 'encrypt' END);
        PERFORM fieldcrypt_internal.create_binding_triggers($1);
        IF NOT has_source THEN
            EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I CHECK ((%I IS NULL) = (%I IS NULL)) NOT VALID',
                $1::regclass, fieldcrypt_internal.free_constraint_name($1, $2, '_are_twins'), $2, new_name);
        END IF;
    EXCEPTION WHEN lock_not_available THEN
        RETURN jsonb_build_object('busy', true);
    END;
    DELETE FROM fieldcrypt_internal.column_migrations AS m WHERE m.relation = $1 AND m.attnum = number;
    DELETE FROM fieldcrypt_internal.migration_marks AS m WHERE m.relation = $1 AND m.place_name = place;
    plan := fieldcrypt_internal.migration_plan($1, $2);
    PERFORM fieldcrypt_internal.take_migration($1, $2, plan);
    PERFORM fieldcrypt_internal.record_event('column_encryption_started', NULL, NULL, $2, $1::regclass::text);
    RAISE NOTICE 'encrypt_column: what is written to column % of table % is encrypted into % from now on', $2, $1::regclass, new_name;
    RETURN fieldcrypt_internal.migration_plan($1, $2);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.begin_migration(oid, text, jsonb) IS 'step: begins to encrypt a column, or goes on; granted to nobody';

-- Statements that the caller runs as himself. Where the source stands they are cut in two, since it is told nobody. A row that
-- others hold is left for the next pass: what they write, the trigger takes over.
CREATE FUNCTION fieldcrypt_internal.statements_of_migration(plan jsonb, state text, part oid) RETURNS jsonb
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
#variable_conflict use_variable
BEGIN
    RETURN (SELECT CASE WHEN state = 'filling' THEN jsonb_build_object('do', 'fill', 'sql', s.fill, 'rows', format('SELECT t.ctid FROM ONLY %s AS t WHERE %s', s.part, s.pending))
                ELSE jsonb_build_object('do', 'verify', 'sql', s.verify) END
           || jsonb_build_object('key', format('SELECT %s FROM ONLY %s AS t WHERE t.ctid OPERATOR(pg_catalog.=) $1', s.key, s.part))
      FROM (
        SELECT p.part, p.pending, p.key,
               jsonb_build_array(
                   format('WITH fieldcrypt_picked AS MATERIALIZED (SELECT t.ctid AS fieldcrypt_at FROM ONLY %s AS t WHERE %s LIMIT $3 FOR NO KEY UPDATE OF t SKIP LOCKED), fieldcrypt_done AS (UPDATE ONLY %s AS t SET %I = (',
                       p.part, p.pending, p.part, plan ->> 'value') || CASE WHEN p.has_source THEN '' ELSE 'NULL' END,
                   format(') FROM fieldcrypt_picked WHERE t.ctid OPERATOR(pg_catalog.=) fieldcrypt_picked.fieldcrypt_at AND %s RETURNING t.%I IS NULL AS fieldcrypt_is_none) SELECT (SELECT pg_catalog.count(*) FROM fieldcrypt_picked), (SELECT pg_catalog.count(*) FROM fieldcrypt_done), (SELECT pg_catalog.count(*) FROM ONLY %s AS t WHERE %s), (SELECT pg_catalog.count(*) FROM fieldcrypt_done WHERE fieldcrypt_is_none)',
                       p.pending, plan ->> 'value', p.part, p.pending)) AS fill,
               jsonb_build_array(
                   format('SELECT pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE NOT v.is_same), (pg_catalog.array_agg(v.key) FILTER (WHERE NOT v.is_same))[1] FROM (SELECT %s AS key, CASE WHEN %s THEN true ELSE fieldcrypt.is_sealed_as(t.%I, %s, (',
                       p.key, CASE WHEN p.has_source THEN format('t.%I IS NULL AND t.%I IS NOT NULL', plan ->> 'value', plan ->> 'plaintext') ELSE 'false' END,
                       plan ->> 'value', plan ->> 'place') || CASE WHEN p.has_source THEN '' ELSE format('t.%I', plan ->> 'plaintext') END,
                   format('), %s) END AS is_same FROM ONLY %s AS t WHERE t.ctid OPERATOR(pg_catalog.>=) $1 AND t.ctid OPERATOR(pg_catalog.<) $2) AS v', p.modifier, p.part)) AS verify
          FROM (
            SELECT fieldcrypt_internal.qualified_name(part) AS part,
                   -- Of what was written to the encrypted column the old one has what its type makes of it.
                   CASE WHEN (plan ->> 'is_swapped')::boolean
                        THEN (SELECT a.atttypmod::text FROM pg_attribute AS a WHERE a.attrelid = part AND a.attname = plan ->> 'plaintext') ELSE 'NULL' END AS modifier,
                   (plan ->> 'has_source')::boolean AS has_source,
                   format('t.ctid OPERATOR(pg_catalog.>=) $1 AND t.ctid OPERATOR(pg_catalog.<) $2 AND t.%I IS NOT NULL AND t.%I IS NULL', plan ->> 'plaintext', plan ->> 'value') AS pending,
                   (SELECT format('pg_catalog.jsonb_build_object(%s)', string_agg(format('%L, t.%I', k.name, k.name), ', ')) FROM jsonb_array_elements_text(plan -> 'key') AS k (name)) AS key
          ) AS p
      ) AS s);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.statements_of_migration(jsonb, text, oid) IS 'what the caller runs over a stretch of a table: fills or verifies; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.statements_of_marks(relation oid, plan jsonb, state text) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
    SELECT jsonb_build_object('do', 'marks', 'sql', jsonb_build_array(
               format('WITH fieldcrypt_wanted AS MATERIALIZED (SELECT k.value AS fieldcrypt_key FROM pg_catalog.jsonb_array_elements($1) AS k), fieldcrypt_picked AS MATERIALIZED (SELECT fieldcrypt_key, t.tableoid AS fieldcrypt_part, t.ctid AS fieldcrypt_at FROM fieldcrypt_wanted JOIN %s AS t ON %s WHERE %s FOR NO KEY UPDATE OF t SKIP LOCKED), fieldcrypt_done AS (UPDATE %s AS t SET %I = (',
                   fieldcrypt_internal.qualified_name($1), s.is_row, s.pending, fieldcrypt_internal.qualified_name($1), s.target),
               format(') FROM fieldcrypt_picked WHERE t.tableoid OPERATOR(pg_catalog.=) fieldcrypt_part AND t.ctid OPERATOR(pg_catalog.=) fieldcrypt_at AND %s RETURNING fieldcrypt_key, t.%I IS NULL AS fieldcrypt_is_none) SELECT (SELECT pg_catalog.count(*) FROM fieldcrypt_done), (SELECT pg_catalog.jsonb_agg(fieldcrypt_key) FROM fieldcrypt_wanted JOIN %s AS t ON %s WHERE %s AND NOT EXISTS (SELECT FROM fieldcrypt_done WHERE fieldcrypt_done.fieldcrypt_key OPERATOR(pg_catalog.=) fieldcrypt_wanted.fieldcrypt_key)), (SELECT pg_catalog.count(*) FROM fieldcrypt_done WHERE fieldcrypt_is_none)',
                   s.pending, s.target, fieldcrypt_internal.qualified_name($1), s.is_row, s.pending)))
      FROM (
        SELECT string_agg(format('t.%I OPERATOR(pg_catalog.=) (fieldcrypt_key OPERATOR(pg_catalog.->>) %s)::%s', k.name, k.place - 1, format_type(a.atttypid, a.atttypmod)), ' AND ') AS is_row,
               min(CASE WHEN state = 'undoing' THEN plan ->> 'plaintext' ELSE plan ->> 'value' END) AS target,
               min(CASE WHEN state = 'undoing' THEN format('t.%I IS NULL AND t.%I IS NOT NULL', plan ->> 'plaintext', plan ->> 'value')
                        ELSE format('t.%I IS NULL AND t.%I IS NOT NULL', plan ->> 'value', plan ->> 'plaintext') END) AS pending
          FROM jsonb_array_elements_text(plan -> 'key') WITH ORDINALITY AS k (name, place)
          JOIN pg_attribute AS a ON a.attrelid = $1 AND a.attname = k.name
      ) AS s
$$;
COMMENT ON FUNCTION fieldcrypt_internal.statements_of_marks(oid, jsonb, text) IS 'what the caller runs over rows that were written meanwhile; granted to nobody';

-- What is to be done next.
CREATE FUNCTION fieldcrypt_internal.next_of_migration(relation oid, column_name text, arguments jsonb) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET jit = off
AS $$
DECLARE
    plan jsonb := fieldcrypt_internal.own_migration($1, $2, coalesce((arguments ->> 'verify')::boolean, true));
    known fieldcrypt_internal.column_migrations;
    item record;
    part jsonb;
    blocks bigint;
    behind bigint;
    density numeric;
BEGIN
    SELECT m.* INTO known FROM fieldcrypt_internal.column_migrations AS m WHERE m.relation = $1 AND m.attnum = (plan ->> 'attnum')::smallint;
    IF known.has_source AND known.state IN ('ready', 'undoing') AND (
        SELECT count(*) > 500 FROM (SELECT FROM fieldcrypt_internal.migration_marks AS m WHERE m.relation = $1 AND m.place_name = plan ->> 'place_name' LIMIT 501) AS c) THEN
        RETURN fieldcrypt_internal.statements_of_marks($1, plan, known.state);
    END IF;
    -- What only the caller can read was compared when it was taken over.
    IF known.has_source AND known.state = 'undoing' OR NOT coalesce((arguments ->> 'verify')::boolean, true) THEN
        RETURN jsonb_build_object('do', 'undo')
            || CASE WHEN known.has_source THEN jsonb_build_object('marks', fieldcrypt_internal.statements_of_marks($1, plan, known.state)) ELSE '{}'::jsonb END;
    END IF;
    IF known.state NOT IN ('filling', 'verifying', 'undoing') THEN
        RETURN jsonb_build_object('do', CASE known.state WHEN 'validating' THEN 'validate' WHEN 'ready' THEN 'swap' WHEN 'finishing' THEN 'finish' ELSE 'over' END)
            || CASE WHEN known.state = 'ready' AND known.has_source THEN jsonb_build_object('marks', fieldcrypt_internal.statements_of_marks($1, plan, known.state)) ELSE '{}'::jsonb END;
    END IF;
    FOR item IN
        SELECT c.oid, c.reltuples::numeric AS reltuples, c.relpages, pg_relation_filenode(c.oid) AS file
          FROM fieldcrypt_internal.with_descendants($1) AS t JOIN pg_class AS c ON c.oid = t.relation AND c.relkind = 'r' ORDER BY c.oid
    LOOP
        part := known.parts -> item.oid::text;
        -- VACUUM FULL and CLUSTER put rows where the pass has been.
        IF part IS NULL OR part ->> 'file' <> item.file::text THEN
            blocks := fieldcrypt_internal.table_blocks(item.oid);
            IF blocks IS NULL THEN
                RETURN jsonb_build_object('do', 'wait');
            END IF;
            part := jsonb_build_object('next', 0, 'end', blocks, 'file', item.file::text, 'left', 0);
            UPDATE fieldcrypt_internal.column_migrations AS m SET parts = m.parts || jsonb_build_object(item.oid::text, part)
             WHERE m.relation = $1 AND m.attnum = known.attnum;
        END IF;
        IF (part ->> 'next')::bigint < (part ->> 'end')::bigint THEN
            -- The table has grown since it was analyzed, by what was filled; and a stretch that is full would be gone through twice.
            density := coalesce(nullif(item.reltuples, -1) / nullif(greatest(item.relpages, (part ->> 'end')::bigint), 0), 100);
            RETURN jsonb_build_object('oid', item.oid, 'from', part -> 'next', 'to', least((part ->> 'end')::bigint,
                       (part ->> 'next')::bigint + least(1000, greatest(1, floor((arguments ->> 'batch_size')::numeric / greatest(density, 1))))::bigint))
                || fieldcrypt_internal.statements_of_migration(plan, known.state, item.oid);
        END IF;
    END LOOP;
    IF known.state = 'filling' THEN
        SELECT coalesce(sum((p.value ->> 'left')::bigint), 0) INTO behind FROM jsonb_each(known.parts) AS p;
        IF behind > 0 THEN
            UPDATE fieldcrypt_internal.column_migrations AS m
               SET parts = (SELECT jsonb_object_agg(p.key, CASE WHEN (p.value ->> 'left')::bigint > 0 THEN p.value || '{"next": 0, "left": 0}' ELSE p.value END)
                              FROM jsonb_each(m.parts) AS p)
             WHERE m.relation = $1 AND m.attnum = known.attnum;
            RETURN jsonb_build_object('do', 'wait', 'left', behind);
        END IF;
    END IF;
    IF known.state = 'undoing' THEN
        RETURN jsonb_build_object('do', 'undo');
    END IF;
    UPDATE fieldcrypt_internal.column_migrations AS m
       SET state = CASE m.state WHEN 'filling' THEN 'validating' ELSE 'ready' END, updated_at = clock_timestamp(),
           filled_before = pg_current_xact_id()
     WHERE m.relation = $1 AND m.attnum = known.attnum;
    RETURN jsonb_build_object('do', 'more');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.next_of_migration(oid, text, jsonb) IS 'step: what is to be done next; granted to nobody';

-- The migration that this session is at. DDL may have come between.
CREATE FUNCTION fieldcrypt_internal.own_migration(relation oid, column_name text, needs_declaration boolean DEFAULT true) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    plan jsonb := fieldcrypt_internal.migration_plan($1, $2);
BEGIN
    IF plan IS NULL OR plan ->> 'state' IS NULL THEN
        PERFORM fieldcrypt_internal.refuse_migration(
            format('column "%s" of table %s is not being encrypted any more: it was renamed, or somebody else ended it', $2, $1::regclass),
            'See fieldcrypt.column_migrations. A column that was renamed: CALL fieldcrypt.encrypt_column by its name of now goes on.');
    END IF;
    IF needs_declaration AND plan ->> 'place_name' IS NULL THEN
        PERFORM fieldcrypt_internal.refuse_migration(
            format('the declaration of the encrypted column beside "%s" of table %s is gone', $2, $1::regclass),
            'CALL fieldcrypt.undo_encrypt_column(..., verify => false), and begin again.');
    END IF;
    IF (plan ->> 'run')::integer IS DISTINCT FROM fieldcrypt_internal.held_run()::integer THEN
        PERFORM fieldcrypt_internal.refuse_migration(
            format('this session has not begun to encrypt column "%s" of table %s', $2, $1::regclass), 'CALL fieldcrypt.encrypt_column(...).');
    END IF;
    RETURN plan;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.own_migration(oid, text, boolean) IS 'the migration that this session is at, or an error; granted to nobody';

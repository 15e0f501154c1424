-- The steps after a column was encrypted: constraints validated, names swapped, the old column given back or dropped.

-- What a batch did.
CREATE FUNCTION fieldcrypt_internal.count_migration(relation oid, column_name text, arguments jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    plan jsonb := fieldcrypt_internal.own_migration($1, $2);
BEGIN
    UPDATE fieldcrypt_internal.column_migrations AS m
       SET parts = CASE WHEN arguments ? 'oid' AND m.parts ? (arguments ->> 'oid')
                        THEN m.parts || jsonb_build_object(arguments ->> 'oid', m.parts -> (arguments ->> 'oid')
                            || jsonb_build_object('next', arguments -> 'next', 'left', (m.parts -> (arguments ->> 'oid') ->> 'left')::bigint + (arguments ->> 'left')::bigint))
                        ELSE m.parts END,
           rows_done = m.rows_done + coalesce((arguments ->> 'done')::bigint, 0),
           rows_verified = m.rows_verified + coalesce((arguments ->> 'verified')::bigint, 0),
           updated_at = clock_timestamp()
     WHERE m.relation = $1 AND m.attnum = (plan ->> 'attnum')::smallint;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.count_migration(oid, text, jsonb) IS 'step: what a batch did; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.fail_migration(relation oid, column_name text, arguments jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    plan jsonb := fieldcrypt_internal.own_migration($1, $2);
BEGIN
    UPDATE fieldcrypt_internal.column_migrations AS m
       SET error_code = arguments ->> 'code', error = arguments ->> 'message', updated_at = clock_timestamp(),
           state = coalesce(arguments ->> 'state', m.state), parts = CASE WHEN arguments ? 'state' THEN '{}' ELSE m.parts END
     WHERE m.relation = $1 AND m.attnum = (plan ->> 'attnum')::smallint;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.fail_migration(oid, text, jsonb) IS 'step: what it stopped at; granted to nobody';

-- Rows are read while others write: only a lock that no writer minds.
CREATE FUNCTION fieldcrypt_internal.validate_migration(relation oid, column_name text) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' SET quote_all_identifiers = off
AS $$
DECLARE
    plan jsonb := fieldcrypt_internal.own_migration($1, $2);
    next_state text := 'verifying';
BEGIN
    IF plan -> 'twins' = 'null' AND NOT (plan ->> 'has_source')::boolean THEN
        PERFORM fieldcrypt_internal.refuse_migration(
            format('the constraint that columns "%s" and "%s" of table %s are NULL together is gone', $2, plan ->> 'value', $1::regclass),
            'CALL fieldcrypt.undo_encrypt_column(..., verify => false), and begin again.');
    END IF;
    BEGIN
        PERFORM fieldcrypt_internal.on_table($1, format('ALTER TABLE %s VALIDATE CONSTRAINT %I', fieldcrypt_internal.qualified_name($1), plan ->> 'protection'));
        IF plan -> 'twins' <> 'null' THEN
            PERFORM fieldcrypt_internal.on_table($1, format('ALTER TABLE %s VALIDATE CONSTRAINT %I', fieldcrypt_internal.qualified_name($1), plan -> 'twins' ->> 'name'));
        END IF;
    EXCEPTION WHEN check_violation THEN
        -- A partition was attached, or the trigger did not fire: once more over all.
        next_state := 'filling';
    WHEN lock_not_available THEN
        RETURN jsonb_build_object('busy', true);
    END;
    UPDATE fieldcrypt_internal.column_migrations AS m
       SET state = next_state, parts = '{}', rows_verified = 0, updated_at = clock_timestamp()
     WHERE m.relation = $1 AND m.attnum = (plan ->> 'attnum')::smallint;
    RETURN jsonb_build_object('busy', false, 'again', next_state = 'filling');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.validate_migration(oid, text) IS 'step: every row meets the constraints; granted to nobody';

-- Asked for a moment only: who waits for it keeps others waiting.
CREATE FUNCTION fieldcrypt_internal.lock_migration(relation oid, column_name text) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
AS $$
DECLARE
    holders integer[];
BEGIN
    -- Whose snapshot is older than a row's encrypted value would read NULL from then on, without an error.
    SELECT array_agg(a.pid ORDER BY a.pid) INTO holders
      FROM fieldcrypt_internal.column_migrations AS m
      JOIN pg_stat_activity AS a ON a.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
     WHERE m.relation = $1 AND m.column_name = $2 AND m.state = 'ready' AND a.pid <> pg_backend_pid() AND a.backend_type <> 'autovacuum worker'
       AND age(a.backend_xmin) > age(m.filled_before::xid);
    IF holders IS NOT NULL THEN
        RETURN jsonb_build_object('busy', true, 'older', true, 'holders', array_to_string(holders[:10], ', '));
    END IF;
    BEGIN
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', $1::regclass);
        RETURN jsonb_build_object('busy', false);
    EXCEPTION WHEN lock_not_available THEN
        holders := ARRAY(
            SELECT DISTINCT l.pid FROM pg_locks AS l
             WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid()
               AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
               AND l.relation IN (SELECT t.relation FROM fieldcrypt_internal.with_descendants($1) AS t)
             ORDER BY l.pid LIMIT 10);
        RETURN jsonb_build_object('busy', true, 'holders', array_to_string(holders, ', '));
    END;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.lock_migration(oid, text) IS 'step: nobody else is at the table, or reads with an older snapshot, if that can be had at once; granted to nobody';

-- What the old column had, the new one gets.
CREATE FUNCTION fieldcrypt_internal.carry_over(relation oid, from_column text, to_column text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    item record;
    known record;
BEGIN
    SELECT a.attnum, a.attnotnull, a.attstattarget, format_type(a.atttypid, a.atttypmod) AS type, pg_get_expr(d.adbin, d.adrelid) AS default_text,
           col_description(a.attrelid, a.attnum) AS description
      INTO known
      FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE a.attrelid = $1 AND a.attname = $2 AND NOT a.attisdropped;
    IF known.default_text IS NOT NULL THEN
        -- Of its own type: a literal of none would be sealed now, for nobody's row.
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT ((%s)::%s)', $1::regclass, $3, known.default_text,
            CASE known.type WHEN 'json' THEN 'jsonb' WHEN 'fieldcrypt.encrypted' THEN 'fieldcrypt.encrypted' ELSE known.type END);
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I DROP DEFAULT', $1::regclass, $2);
    END IF;
    IF known.attnotnull THEN
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I CHECK (%I IS NOT NULL) NOT VALID',
            $1::regclass, fieldcrypt_internal.free_constraint_name($1, $3, '_not_null_yet'), $3);
    END IF;
    IF known.attstattarget >= 0 THEN
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS %s', $1::regclass, $3, known.attstattarget);
    END IF;
    IF known.description IS NOT NULL THEN
        EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', $1::regclass, $3, known.description);
    END IF;
    FOR item IN
        SELECT t.relation::regclass AS relation, x.privilege_type, x.is_grantable,
               CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END AS grantee
          FROM fieldcrypt_internal.with_descendants($1) AS t
          JOIN pg_attribute AS a ON a.attrelid = t.relation AND a.attname = $2 AND NOT a.attisdropped, aclexplode(a.attacl) AS x
    LOOP
        EXECUTE format('GRANT %s (%I) ON %s TO %s %s', item.privilege_type, $3, item.relation, item.grantee,
            CASE WHEN item.is_grantable THEN 'WITH GRANT OPTION' ELSE '' END);
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.carry_over(oid, text, text) IS 'default, NOT NULL, statistics target, comment and column privileges of a column for another; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.swap_migration(relation oid, column_name text) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
    SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    plan jsonb := fieldcrypt_internal.own_migration($1, $2);
    value_column text := plan ->> 'value';
    has_source boolean := (plan ->> 'has_source')::boolean;
    old_name text := fieldcrypt_internal.name_beside($2, CASE WHEN (plan ->> 'has_source')::boolean THEN '_before' ELSE '_plaintext' END);
    known fieldcrypt_internal.column_migrations;
BEGIN
    -- The caller has it already.
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', $1::regclass);
    SELECT m.* INTO known FROM fieldcrypt_internal.column_migrations AS m WHERE m.relation = $1 AND m.attnum = (plan ->> 'attnum')::smallint;
    IF has_source AND EXISTS (SELECT FROM fieldcrypt_internal.migration_marks AS m WHERE m.relation = $1 AND m.place_name = plan ->> 'place_name') THEN
        RETURN jsonb_build_object('again', true);
    END IF;
    IF known.state <> 'ready' OR (plan ->> 'is_believed')::boolean IS NOT TRUE OR NOT has_source AND (plan -> 'twins' ->> 'is_valid')::boolean IS NOT TRUE THEN
        PERFORM fieldcrypt_internal.refuse_migration(
            format('column "%s" of table %s is not ready for the swap', $2, $1::regclass), 'CALL fieldcrypt.encrypt_column(...) does what is left before.');
    END IF;
    -- A table that was attached since, or that was rewritten.
    IF EXISTS (
        SELECT FROM fieldcrypt_internal.with_descendants($1) AS t JOIN pg_class AS c ON c.oid = t.relation AND c.relkind = 'r'
         WHERE known.parts -> c.oid::text ->> 'file' IS DISTINCT FROM pg_relation_filenode(c.oid)::text) THEN
        RETURN jsonb_build_object('again', true, 'state', 'filling');
    END IF;
    -- What was made since the beginning.
    PERFORM fieldcrypt_internal.refuse_dependents($1, $2, plan);
    EXECUTE format('DROP TRIGGER %I ON %s', plan ->> 'trigger', $1::regclass);
    EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I', $1::regclass, $2, old_name);
    EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I', $1::regclass, value_column, $2);
    PERFORM fieldcrypt_internal.carry_over($1, old_name, $2);
    IF has_source THEN
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', $1::regclass, old_name);
    END IF;
    PERFORM fieldcrypt_internal.create_twin_trigger($1, known.attnum, old_name, $2, CASE WHEN has_source THEN 'forget' ELSE 'decrypt' END);
    UPDATE fieldcrypt_internal.column_migrations AS m SET state = 'finishing', parts = '{}', updated_at = clock_timestamp()
     WHERE m.relation = $1 AND m.attnum = known.attnum;
    PERFORM fieldcrypt_internal.record_event('column_encrypted', NULL, NULL, format('%s, bound to %s', $2, plan ->> 'place_name'), $1::regclass::text);
    RAISE NOTICE 'encrypt_column: column % of table % is encrypted; % is what it was before', $2, $1::regclass, old_name;
    RETURN jsonb_build_object('again', false);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.swap_migration(oid, text) IS 'step: the encrypted column takes the name of the old one; granted to nobody';

-- A view or the like that was made while the column was encrypted would go on with the old column.
CREATE FUNCTION fieldcrypt_internal.refuse_dependents(relation oid, column_name text, plan jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
DECLARE
    found record;
BEGIN
    SELECT string_agg(DISTINCT d.what, '; ') AS what, string_agg(DISTINCT d.hint, ' ') AS hint INTO found
      FROM unnest(ARRAY[$2, plan ->> 'value']) AS c (name), fieldcrypt_internal.column_dependents($1, c.name) AS d
     WHERE d.verdict = 'refused' AND d.what <> pg_describe_object('pg_trigger'::regclass,
               (SELECT g.oid FROM pg_trigger AS g WHERE g.tgrelid = $1 AND g.tgname = plan ->> 'trigger'), 0);
    IF found.what IS NOT NULL THEN
        PERFORM fieldcrypt_internal.refuse_migration(
            format('the names of column "%s" of table %s can''t be swapped while this depends on it: %s', $2, $1::regclass, found.what), found.hint, '2BP01');
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.refuse_dependents(oid, text, jsonb) IS 'an error if something depends on a column that can''t follow the swap; granted to nobody';

-- NOT NULL, of which the rows that were there are told apart from the lock that it needs.
CREATE FUNCTION fieldcrypt_internal.finish_migration(relation oid, column_name text) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
    SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    item record;
BEGIN
    FOR item IN
        SELECT k.conname, k.convalidated
          FROM pg_constraint AS k JOIN pg_attribute AS a ON a.attrelid = $1 AND a.attname = $2
         WHERE k.conrelid = $1 AND k.contype = 'c' AND k.conkey = ARRAY[a.attnum] AND k.conname LIKE '%\_not\_null\_yet%'
    LOOP
        BEGIN
            IF NOT item.convalidated THEN
                PERFORM fieldcrypt_internal.on_table($1, format('ALTER TABLE %s VALIDATE CONSTRAINT %I', fieldcrypt_internal.qualified_name($1), item.conname));
                RETURN jsonb_build_object('busy', false, 'again', true);
            END IF;
            PERFORM fieldcrypt_internal.on_table($1, format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', fieldcrypt_internal.qualified_name($1), $2));
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', $1::regclass, item.conname);
        EXCEPTION WHEN lock_not_available THEN
            RETURN jsonb_build_object('busy', true, 'again', true);
        END;
    END LOOP;
    UPDATE fieldcrypt_internal.column_migrations AS m SET state = 'swapped', updated_at = clock_timestamp()
     WHERE m.relation = $1 AND m.attnum = (SELECT a.attnum FROM pg_attribute AS a WHERE a.attrelid = $1 AND a.attname = $2) AND m.state = 'finishing';
    RETURN jsonb_build_object('busy', false, 'again', false);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.finish_migration(oid, text) IS 'step: what is left after the swap; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.begin_undo(relation oid, column_name text) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    plan jsonb := fieldcrypt_internal.migration_plan($1, $2);
BEGIN
    IF plan IS NULL THEN
        PERFORM fieldcrypt_internal.refuse_migration(
            format('column "%s" of table %s is not being encrypted, and its old column is not there', $2, $1::regclass),
            'See fieldcrypt.column_migrations. After drop_plaintext_column nothing is left to go back to.');
    END IF;
    PERFORM fieldcrypt_internal.take_migration($1, $2, plan, CASE WHEN (plan ->> 'is_swapped')::boolean AND plan ->> 'state' IS DISTINCT FROM 'undoing' THEN 'undoing' END);
    -- A dump has the trigger, and not what was noted of rows: they are those whose old value was taken away.
    IF plan ->> 'state' IS NULL AND (plan ->> 'has_source')::boolean AND (plan ->> 'is_swapped')::boolean AND plan -> 'key' <> 'null' THEN
        INSERT INTO fieldcrypt_internal.migration_marks (relation, place_name, row_key)
        SELECT $1, plan ->> 'place_name', k.value::text
          FROM jsonb_array_elements(fieldcrypt_internal.on_table($1, format(
              'SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(%s)) FROM %s AS t WHERE t.%I IS NOT NULL AND t.%I IS NULL',
              (SELECT string_agg(format('pg_catalog.to_jsonb(t.%I) OPERATOR(pg_catalog.#>>) ''{}''', n.name), ', ' ORDER BY n.place)
                 FROM jsonb_array_elements_text(plan -> 'key') WITH ORDINALITY AS n (name, place)),
              fieldcrypt_internal.qualified_name($1), plan ->> 'value', plan ->> 'plaintext'))::jsonb) AS k;
    END IF;
    RETURN fieldcrypt_internal.migration_plan($1, $2);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.begin_undo(oid, text) IS 'step: begins to give a column back as it was; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.undo_migration(relation oid, column_name text) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
    SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    plan jsonb := fieldcrypt_internal.migration_plan($1, $2);
    was_swapped boolean := (plan ->> 'is_swapped')::boolean;
    was record;
BEGIN
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', $1::regclass);
    IF (plan ->> 'run')::integer IS DISTINCT FROM fieldcrypt_internal.held_run()::integer OR was_swapped AND plan ->> 'state' <> 'undoing' THEN
        PERFORM fieldcrypt_internal.refuse_migration(format('column "%s" of table %s is not being undone', $2, $1::regclass), 'CALL fieldcrypt.undo_encrypt_column(...).');
    END IF;
    IF was_swapped THEN
        IF EXISTS (SELECT FROM fieldcrypt_internal.migration_marks AS m WHERE m.relation = $1 AND m.place_name = plan ->> 'place_name') THEN
            RETURN jsonb_build_object('again', true);
        END IF;
        PERFORM fieldcrypt_internal.refuse_dependents($1, $2, plan);
    END IF;
    SELECT pg_get_expr(d.adbin, d.adrelid) AS default_text, a.attnotnull OR EXISTS (
               SELECT FROM pg_constraint AS k WHERE k.conrelid = $1 AND k.contype = 'c' AND k.conkey = ARRAY[a.attnum] AND k.conname LIKE '%\_not\_null\_yet%') AS is_not_null
      INTO was
      FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE a.attrelid = $1 AND a.attname = plan ->> 'value' AND NOT a.attisdropped;
    EXECUTE format('DROP TRIGGER %I ON %s', plan ->> 'trigger', $1::regclass);
    EXECUTE format('ALTER TABLE %s DROP COLUMN %I', $1::regclass, plan ->> 'value');
    IF was_swapped THEN
        EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I', $1::regclass, plan ->> 'plaintext', $2);
        IF was.default_text IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %s', $1::regclass, $2, was.default_text);
        END IF;
        IF was.is_not_null THEN
            PERFORM fieldcrypt_internal.on_table($1, format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', fieldcrypt_internal.qualified_name($1), $2));
        END IF;
    END IF;
    PERFORM fieldcrypt_internal.forget_migration($1, plan);
    PERFORM fieldcrypt_internal.record_event('column_encryption_undone', NULL, NULL, $2, $1::regclass::text);
    RAISE NOTICE 'undo_encrypt_column: column % of table % is what it was before', $2, $1::regclass;
    RETURN jsonb_build_object('again', false);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.undo_migration(oid, text) IS 'step: the old column is back; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.forget_migration(relation oid, plan jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
AS $$
BEGIN
    DELETE FROM fieldcrypt_internal.migration_marks AS m WHERE m.relation = $1 AND m.place_name = plan ->> 'place_name';
    DELETE FROM fieldcrypt_internal.column_migrations AS m WHERE m.relation = $1 AND m.attnum = (plan ->> 'attnum')::smallint;
    PERFORM fieldcrypt_internal.drop_binding_triggers($1);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.forget_migration(oid, jsonb) IS 'the end of a migration; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.drop_twin(relation oid, column_name text) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
    SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    plan jsonb := fieldcrypt_internal.migration_plan($1, $2);
    other integer;
    lost text;
BEGIN
    IF plan IS NULL OR NOT (plan ->> 'is_swapped')::boolean THEN
        PERFORM fieldcrypt_internal.refuse_migration(
            format('column "%s" of table %s has no old column beside it', $2, $1::regclass),
            CASE WHEN plan IS NULL THEN 'See fieldcrypt.column_migrations.' ELSE 'It is not encrypted yet: CALL fieldcrypt.encrypt_column(...) goes on.' END);
    END IF;
    -- The old column may be the last that can be read.
    IF plan ->> 'place_name' IS NULL OR (plan ->> 'is_believed')::boolean IS NOT TRUE THEN
        PERFORM fieldcrypt_internal.refuse_migration(
            format('the declaration of column "%s" of table %s is gone, or not valid: what it holds may open nowhere', $2, $1::regclass),
            'CALL fieldcrypt.undo_encrypt_column(..., verify => false) gives the column back as it was before.');
    END IF;
    SELECT string_agg(DISTINCT u ->> 'key_id', ', ') INTO lost
      FROM fieldcrypt_internal.with_descendants($1) AS t JOIN pg_class AS c ON c.oid = t.relation AND c.relkind = 'r'
     CROSS JOIN LATERAL jsonb_array_elements(fieldcrypt_internal.count_in(c.oid, NULL)) AS u
     WHERE u ->> 'column' = $2 AND NOT EXISTS (
        SELECT FROM fieldcrypt.encryption_keys AS k WHERE k.key_id = (u ->> 'key_id')::bigint AND k.state <> 'suspended');
    IF lost IS NOT NULL THEN
        PERFORM fieldcrypt_internal.refuse_migration(
            format('column "%s" of table %s has values of encryption keys that are not here, or suspended: %s', $2, $1::regclass, lost),
            'SELECT fieldcrypt.import_keys(...), or resume_key(...), before the old column goes.');
    END IF;
    IF plan ->> 'state' = 'finishing' THEN
        PERFORM fieldcrypt_internal.refuse_migration(format('NOT NULL of column "%s" of table %s is not carried over yet', $2, $1::regclass),
            'CALL fieldcrypt.encrypt_column(...) goes on with it.');
    END IF;
    SELECT l.pid INTO other FROM fieldcrypt_internal.live_runs() AS l WHERE l.run = (plan ->> 'run')::integer AND l.pid <> pg_backend_pid();
    IF FOUND THEN
        PERFORM fieldcrypt_internal.refuse_migration(format('process %s is at column "%s" of table %s', other, $2, $1::regclass), 'See fieldcrypt.column_migrations.', '55006');
    END IF;
    BEGIN
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', $1::regclass);
    EXCEPTION WHEN lock_not_available THEN
        RETURN jsonb_build_object('busy', true);
    END;
    EXECUTE format('DROP TRIGGER %I ON %s', plan ->> 'trigger', $1::regclass);
    EXECUTE format('ALTER TABLE %s DROP COLUMN %I', $1::regclass, plan ->> 'plaintext');
    PERFORM fieldcrypt_internal.forget_migration($1, plan);
    PERFORM fieldcrypt_internal.record_event('plaintext_column_dropped', NULL, NULL, plan ->> 'plaintext', $1::regclass::text);
    RAISE NOTICE 'drop_plaintext_column: column % of table % is gone; what was in it is still in', plan ->> 'plaintext', $1::regclass;
    RAISE NOTICE 'drop_plaintext_column: the files of the table and its indexes: VACUUM FULL %; (it locks the table; pg_repack --table=% does not)', $1::regclass, $1::regclass;
    RAISE NOTICE 'drop_plaintext_column: statistics: ANALYZE %; VACUUM FULL pg_catalog.pg_statistic;', $1::regclass;
    RAISE NOTICE 'drop_plaintext_column: WAL and its archive: until what is older than now is recycled (CHECKPOINT; SELECT pg_switch_wal();) and deleted from the archive';
    RAISE NOTICE 'drop_plaintext_column: backups, dumps and snapshots with % in them: until they expire or are deleted', $1::regclass;
    RAISE NOTICE 'drop_plaintext_column: standbys and logical subscribers: standbys follow VACUUM FULL %; subscribers keep their own copy', $1::regclass;
    RAISE NOTICE 'drop_plaintext_column: server logs, pg_stat_statements and clients'' logs with statements on %: see docs/logs.md', $1::regclass;
    RETURN jsonb_build_object('busy', false);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.drop_twin(oid, text) IS 'step: the old column is gone; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.migration_step(relation oid, step text, arguments jsonb) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name CONSTANT text := arguments ->> 'column';
BEGIN
    CASE step
        WHEN 'begin' THEN RETURN fieldcrypt_internal.begin_migration($1, name, arguments);
        WHEN 'next' THEN RETURN fieldcrypt_internal.next_of_migration($1, name, arguments);
        WHEN 'plan' THEN RETURN fieldcrypt_internal.own_migration($1, name);
        WHEN 'marks' THEN RETURN fieldcrypt_internal.take_marks($1, name, arguments);
        WHEN 'count' THEN PERFORM fieldcrypt_internal.count_migration($1, name, arguments);
        WHEN 'failed' THEN PERFORM fieldcrypt_internal.fail_migration($1, name, arguments);
        WHEN 'validate' THEN RETURN fieldcrypt_internal.validate_migration($1, name);
        WHEN 'lock' THEN RETURN fieldcrypt_internal.lock_migration($1, name);
        WHEN 'swap' THEN RETURN fieldcrypt_internal.swap_migration($1, name);
        WHEN 'finish' THEN RETURN fieldcrypt_internal.finish_migration($1, name);
        WHEN 'undo_begin' THEN RETURN fieldcrypt_internal.begin_undo($1, name);
        WHEN 'undo' THEN RETURN fieldcrypt_internal.undo_migration($1, name);
        WHEN 'drop' THEN RETURN fieldcrypt_internal.drop_twin($1, name);
        WHEN 'end' THEN PERFORM fieldcrypt_internal.release_run();
        ELSE PERFORM fieldcrypt_internal.refuse_migration('there is no such step', 'CALL fieldcrypt.encrypt_column(...).', '22023');
    END CASE;
    RETURN '{}';
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.migration_step(oid, text, jsonb) IS 'a step for a caller whose rights were checked; granted to nobody';

-- Each is taken in the transaction that brings its row's columns together.
CREATE FUNCTION fieldcrypt_internal.take_marks(relation oid, column_name text, arguments jsonb) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    plan jsonb := fieldcrypt_internal.own_migration($1, $2);
    keys jsonb;
BEGIN
    INSERT INTO fieldcrypt_internal.migration_marks (relation, place_name, row_key)
    SELECT $1, plan ->> 'place_name', k.value::text FROM jsonb_array_elements(CASE WHEN jsonb_typeof(arguments -> 'back') = 'array' THEN arguments -> 'back' ELSE '[]' END) AS k;
    WITH taken AS (
        DELETE FROM fieldcrypt_internal.migration_marks AS m
         WHERE m.mark IN (SELECT f.mark FROM fieldcrypt_internal.migration_marks AS f
                           WHERE f.relation = $1 AND f.place_name = plan ->> 'place_name' ORDER BY f.mark LIMIT (arguments ->> 'most')::bigint FOR UPDATE SKIP LOCKED)
        RETURNING m.row_key
    )
    SELECT coalesce(jsonb_agg(DISTINCT t.row_key::jsonb), '[]') INTO keys FROM taken AS t;
    RETURN jsonb_build_object('keys', keys);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.take_marks(oid, text, jsonb) IS 'step: rows that were written meanwhile; granted to nobody';

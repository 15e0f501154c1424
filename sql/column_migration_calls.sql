-- Columns encrypted online: the procedures, which loop and commit with their caller's rights, and the view that shows how
-- far they are. The source of the plaintexts is in their session and nowhere else.

-- One step after the other, until the goal is reached: ready, swapped or undone.
CREATE PROCEDURE fieldcrypt.column_migration_run(
        relation regclass, column_name name, source text, batch_size integer, rows_per_second integer,
        wait_for_locks interval, goal text, verify boolean)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    path pg_catalog.text;
    arguments pg_catalog.jsonb;
    work pg_catalog.jsonb;
    outcome pg_catalog.jsonb;
    statement pg_catalog.text;
    picked pg_catalog.int8;
    done pg_catalog.int8;
    pending pg_catalog.int8;
    none pg_catalog.int8;
    back pg_catalog.jsonb;
    failed_at pg_catalog.jsonb;
    at_row pg_catalog.tid;
    rows_at pg_catalog.tid[];
    code pg_catalog.text;
    message pg_catalog.text;
    said pg_catalog.text;
    total pg_catalog.int8;
    verified pg_catalog.int8;
    tries pg_catalog.int4;
    due pg_catalog.timestamptz;
    told pg_catalog.timestamptz;
    idle_since pg_catalog.timestamptz;
BEGIN
    COMMIT;
    -- Before anything is asked.
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    path := pg_catalog.current_setting('search_path');
    total := 0;
    verified := 0;
    tries := 0;
    due := pg_catalog.clock_timestamp();
    told := due;
    LOOP
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true), pg_catalog.set_config('row_security', 'off', true);
        arguments := jsonb_build_object('column', column_name, 'batch_size', batch_size, 'verify', verify);
        work := fieldcrypt.column_migration_step(relation, 'next', arguments::text)::jsonb;
        failed_at := NULL;
        said := NULL;
        outcome := NULL;
        EXIT WHEN work ->> 'do' = 'over';
        IF work ->> 'do' = 'fill' THEN
            statement := array_to_string(ARRAY(SELECT jsonb_array_elements_text(work -> 'sql')), CASE WHEN source IS NULL THEN '' ELSE source || E'\n' END);
            BEGIN
                PERFORM set_config('search_path', path, true);
                EXECUTE statement INTO picked, done, pending, none
                  USING format('(%s,0)', work ->> 'from')::pg_catalog.tid, format('(%s,0)', work ->> 'to')::pg_catalog.tid, batch_size;
                PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
                IF none > 0 THEN
                    RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'the source gives NULL where the column is not NULL';
                END IF;
            EXCEPTION WHEN OTHERS THEN
                -- Of the statement nothing may be told: it may hold a key, and what it quotes are plaintexts.
                GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
                picked := NULL;
            END;
            IF picked IS NULL THEN
                -- Row by row, to know which.
                PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
                EXECUTE format('SELECT array_agg(r.ctid) FROM (%s LIMIT $3) AS r', work ->> 'rows') INTO rows_at
                  USING format('(%s,0)', work ->> 'from')::tid, format('(%s,0)', work ->> 'to')::tid, batch_size;
                FOREACH at_row IN ARRAY coalesce(rows_at, '{}') LOOP
                    BEGIN
                        PERFORM set_config('search_path', path, true);
                        EXECUTE statement INTO picked, done, pending, none
                          USING at_row, pg_catalog.regexp_replace(at_row::pg_catalog.text, ',.*', ',65535)')::pg_catalog.tid, 1;
                        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
                        IF none > 0 THEN
                            RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'the source gives NULL where the column is not NULL';
                        END IF;
                        total := total + coalesce(done, 0);
                    EXCEPTION WHEN OTHERS THEN
                        GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
                        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
                        -- Others' locks and a transaction that was chosen to give way are no fault of the row's.
                        IF code <> ALL ('{55P03,40001,40P01}'::text[]) THEN
                            EXECUTE work ->> 'key' INTO failed_at USING at_row;
                            failed_at := coalesce(failed_at, '{}');
                        END IF;
                    END;
                    EXIT WHEN failed_at IS NOT NULL;
                END LOOP;
                IF failed_at IS NULL AND code <> ALL ('{55P03,40001,40P01}'::text[]) AND rows_at IS NULL THEN
                    failed_at := '{}';
                END IF;
                IF failed_at IS NOT NULL THEN
                    said := format('a row can''t be taken over (SQLSTATE %s%s): %s', code,
                        CASE WHEN left(code, 2) IN ('KF', '53', '57', '58') OR code IN ('22004', '55000') THEN ', ' || message ELSE '' END, failed_at);
                END IF;
            ELSE
                idle_since := CASE WHEN done = 0 THEN idle_since END;
                total := total + done;
                tries := CASE WHEN picked >= batch_size AND done > 0 THEN 1 ELSE 0 END;
                PERFORM fieldcrypt.column_migration_step(relation, 'count', (arguments || jsonb_build_object(
                    'oid', work -> 'oid', 'done', done,
                    'next', CASE WHEN tries = 1 THEN work -> 'from' ELSE work -> 'to' END,
                    'left', CASE WHEN tries = 1 THEN 0 ELSE pending - done END))::text);
            END IF;
        ELSIF work ->> 'do' = 'verify' THEN
            statement := array_to_string(ARRAY(SELECT jsonb_array_elements_text(work -> 'sql')), CASE WHEN source IS NULL THEN '' ELSE source || E'\n' END);
            BEGIN
                PERFORM set_config('search_path', path, true);
                EXECUTE statement INTO picked, done, failed_at
                  USING format('(%s,0)', work ->> 'from')::pg_catalog.tid, format('(%s,0)', work ->> 'to')::pg_catalog.tid;
                PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
            EXCEPTION WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
                PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
                said := format('rows can''t be verified (SQLSTATE %s%s)', code, CASE WHEN left(code, 2) IN ('KF', '53', '57', '58') THEN ', ' || message ELSE '' END);
                done := 0;
            END;
            IF done > 0 THEN
                code := 'KF031';
                said := format('%s values do not open in their place, or are not what the column has, for instance of the row with %s', done, failed_at);
            ELSIF said IS NULL THEN
                verified := verified + picked;
                done := picked;
                PERFORM fieldcrypt.column_migration_step(relation, 'count', (arguments || jsonb_build_object(
                    'oid', work -> 'oid', 'verified', picked, 'next', work -> 'to', 'left', 0))::text);
            END IF;
        ELSIF work ->> 'do' = 'marks' OR work ->> 'do' = 'swap' AND goal <> 'ready' OR work ->> 'do' = 'undo' THEN
            -- What was written meanwhile, and then the swap, under a lock that is had at once or not at all.
            BEGIN
                IF work ->> 'do' <> 'marks' THEN
                    outcome := fieldcrypt.column_migration_step(relation, 'lock', arguments::text)::jsonb;
                    IF (outcome ->> 'busy')::boolean THEN
                        RAISE SQLSTATE 'FC001';
                    END IF;
                END IF;
                statement := CASE WHEN work ->> 'do' = 'marks' THEN work ->> 'sql' ELSE work -> 'marks' ->> 'sql' END;
                IF statement IS NOT NULL THEN
                    back := fieldcrypt.column_migration_step(relation, 'marks', (arguments || '{"most": 500}')::text)::jsonb -> 'keys';
                    IF back <> '[]' THEN
                        IF source IS NULL THEN
                            code := '55000';
                            said := format('%s or more rows were written since, whose old values only an expression can give', jsonb_array_length(back));
                            RAISE SQLSTATE 'FC001';
                        END IF;
                        statement := array_to_string(ARRAY(SELECT jsonb_array_elements_text(statement::jsonb)), source || E'\n');
                        PERFORM set_config('search_path', path, true);
                        EXECUTE statement INTO done, outcome, none USING back;
                        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
                        IF none > 0 THEN
                            RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'the source gives NULL where the column is not NULL';
                        END IF;
                        IF outcome IS NOT NULL THEN
                            PERFORM fieldcrypt.column_migration_step(relation, 'marks', (arguments || jsonb_build_object('most', 0, 'back', outcome))::text);
                        END IF;
                        total := total + done;
                    END IF;
                END IF;
                outcome := '{"again": true}';
                IF work ->> 'do' <> 'marks' THEN
                    outcome := fieldcrypt.column_migration_step(relation, work ->> 'do', arguments::text)::jsonb;
                    IF (outcome ->> 'again')::boolean THEN
                        RAISE SQLSTATE 'FC001';
                    END IF;
                END IF;
            EXCEPTION WHEN SQLSTATE 'FC001' THEN
                NULL;
            WHEN lock_not_available THEN
                outcome := '{"busy": true}';
            WHEN dependent_objects_still_exist THEN
                -- Of the step itself, which quotes nothing.
                GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, statement = PG_EXCEPTION_HINT;
                said := message;
            WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
                said := format('%s can''t be done (SQLSTATE %s%s)', work ->> 'do', code,
                    CASE WHEN left(code, 2) IN ('KF', '53', '57', '58') OR code IN ('22004', '55000') THEN ', ' || message ELSE '' END);
            END;
            PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
            IF outcome ? 'state' THEN
                PERFORM fieldcrypt.column_migration_step(relation, 'failed', (arguments || jsonb_build_object('state', outcome -> 'state'))::text);
            END IF;
            IF work ->> 'do' = 'undo' AND said IS NULL AND NOT coalesce((outcome ->> 'busy')::boolean OR (outcome ->> 'again')::boolean, false) THEN
                COMMIT;
                RETURN;
            END IF;
        ELSIF work ->> 'do' IN ('validate', 'finish') THEN
            outcome := fieldcrypt.column_migration_step(relation, work ->> 'do', arguments::text)::jsonb;
        ELSIF work ->> 'do' = 'swap' THEN
            EXIT;
        END IF;
        IF said IS NOT NULL THEN
            PERFORM fieldcrypt.column_migration_step(relation, 'failed', (arguments || jsonb_build_object('code', code, 'message', said)
                || CASE WHEN work ->> 'do' = 'verify' AND goal <> 'undo' THEN '{"state": "filling"}'::jsonb ELSE '{}' END)::text);
        END IF;
        COMMIT;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        IF said IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = code, MESSAGE = format('column "%s" of table %s: %s', column_name, relation, said),
                HINT = CASE WHEN code = 'KF031' THEN 'Write that row''s column once more, and CALL again: it verifies all rows anew. (KF031, see docs/errors.md)'
                            WHEN code = '2BP01' THEN statement
                            WHEN goal = 'undo' THEN 'CALL fieldcrypt.undo_encrypt_column(..., source => ''an expression that gives the old value of a row''): see docs/migration.md.'
                            ELSE 'Mend it and CALL again: it goes on where it stopped.' END;
        END IF;
        IF work ->> 'do' = 'wait' OR (outcome ->> 'busy')::boolean THEN
            -- The longer it is busy, the rarer it is asked: each time others wait behind it for a moment.
            idle_since := coalesce(idle_since, clock_timestamp());
            IF clock_timestamp() - idle_since > wait_for_locks THEN
                RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
                    MESSAGE = format('column "%s" of table %s: others hold %s', column_name, relation,
                        CASE WHEN (outcome ->> 'older')::boolean THEN 'older snapshots than its values (processes ' || (outcome ->> 'holders') || ')'
                             WHEN work ->> 'do' = 'wait' THEN 'rows, or a trigger of the table keeps them from being changed' ELSE 'the table' END),
                    HINT = 'CALL again: it goes on where it stopped. wait_for_locks => how long it tries.';
            END IF;
            IF clock_timestamp() - told > interval '10 seconds' THEN
                told := clock_timestamp();
                RAISE NOTICE 'column % of table %: tries to get a lock (processes %)', column_name, relation, coalesce(outcome ->> 'holders', 'unknown');
            END IF;
            PERFORM pg_sleep(least(5, 0.1 + EXTRACT(epoch FROM clock_timestamp() - idle_since)::float8 / 4));
        ELSIF (outcome ->> 'again')::boolean THEN
            PERFORM pg_sleep(0.05);
        ELSE
            idle_since := CASE WHEN work ->> 'do' IN ('fill', 'more') THEN idle_since END;
            IF clock_timestamp() - told > interval '10 seconds' THEN
                told := clock_timestamp();
                RAISE NOTICE 'column % of table %: % rows encrypted, % verified so far (see fieldcrypt.column_migrations)', column_name, relation, total, verified;
            END IF;
            IF rows_per_second > 0 AND work ->> 'do' IN ('fill', 'verify') AND done > 0 THEN
                due := greatest(due, clock_timestamp() - interval '1 second') + interval '1 second' * (done::float8 / rows_per_second);
                IF due > clock_timestamp() THEN
                    PERFORM pg_sleep(EXTRACT(epoch FROM due - clock_timestamp())::float8);
                END IF;
            END IF;
        END IF;
        -- Nothing is held while it sleeps; and the settings are those of one transaction.
        COMMIT;
    END LOOP;
    COMMIT;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.column_migration_run(regclass, name, text, integer, integer, interval, text, boolean) IS
    'what encrypt_column and undo_encrypt_column have in common; not called by hand';

CREATE PROCEDURE fieldcrypt.encrypt_column(
        relation regclass, column_name name, key text[] DEFAULT NULL, tenant name DEFAULT NULL, name text DEFAULT NULL,
        plaintext text DEFAULT NULL, source text DEFAULT NULL, batch_size integer DEFAULT 1000, rows_per_second integer DEFAULT 0,
        drop_dependents boolean DEFAULT false, swap boolean DEFAULT true, wait_for_locks interval DEFAULT '1 hour')
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    arguments pg_catalog.jsonb;
    plan pg_catalog.jsonb;
    began pg_catalog.timestamptz;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF relation IS NULL OR column_name IS NULL OR batch_size IS NULL OR rows_per_second IS NULL OR drop_dependents IS NULL OR swap IS NULL OR wait_for_locks IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'relation, column_name and limits must not be NULL',
            HINT = 'Leave an argument out for its default.';
    END IF;
    IF batch_size < 1 OR batch_size > 100000 OR rows_per_second < 0 OR source = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'batch_size is 1 to 100000, a rate is not negative, and a source is not empty',
            HINT = '1000 rows take some milliseconds.';
    END IF;
    arguments := jsonb_build_object('column', column_name, 'key', to_jsonb(key), 'tenant', tenant, 'name', name, 'plaintext', plaintext,
        'has_source', source IS NOT NULL, 'drop_dependents', drop_dependents);
    began := clock_timestamp();
    LOOP
        plan := fieldcrypt.column_migration_step(relation, 'begin', arguments::text)::jsonb;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        EXIT WHEN NOT plan ? 'busy';
        arguments := arguments || '{"was_told": true}';
        IF clock_timestamp() - began > wait_for_locks THEN
            RAISE EXCEPTION USING ERRCODE = 'lock_not_available', MESSAGE = format('others hold table %s', relation),
                HINT = 'CALL again. wait_for_locks => how long it tries.';
        END IF;
        PERFORM pg_sleep(least(5, 0.1 + EXTRACT(epoch FROM clock_timestamp() - began)::float8 / 4));
    END LOOP;
    COMMIT;
    -- Both undo this at the end of their transactions.
    CALL fieldcrypt.column_migration_run(relation, column_name, source, batch_size, rows_per_second, wait_for_locks,
        CASE WHEN swap THEN 'swap' ELSE 'ready' END, true);
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF fieldcrypt.column_migration_step(relation, 'plan', arguments::text)::jsonb ->> 'state' = 'ready' THEN
        RAISE NOTICE 'encrypt_column: column % of table % is encrypted beside itself and verified: CALL again, without swap => false, swaps the names', column_name, relation;
    END IF;
    PERFORM fieldcrypt.column_migration_step(relation, 'end', arguments::text);
    COMMIT;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.encrypt_column(regclass, name, text[], name, text, text, text, integer, integer, boolean, boolean, interval) IS
    'encrypts a column that has values, online: a new column beside it, committed batches that resume, verification of every row, a swap of names; for the table''s owner with encrypt and decrypt. source: an expression over the row that gives the plaintext, if the column is encrypted otherwise; drop_dependents: indexes, UNIQUE, CHECK and statistics stay with the old column; swap => false stops before the swap. Undone by undo_encrypt_column, ended by drop_plaintext_column';

CREATE PROCEDURE fieldcrypt.undo_encrypt_column(
        relation regclass, column_name name, source text DEFAULT NULL, verify boolean DEFAULT true, wait_for_locks interval DEFAULT '1 hour')
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    arguments pg_catalog.jsonb;
BEGIN
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF relation IS NULL OR column_name IS NULL OR verify IS NULL OR wait_for_locks IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'relation, column_name and limits must not be NULL',
            HINT = 'Leave an argument out for its default.';
    END IF;
    arguments := jsonb_build_object('column', column_name);
    -- Before the swap the old column is the one that is written: there is nothing to compare.
    IF NOT (fieldcrypt.column_migration_step(relation, 'undo_begin', arguments::text)::jsonb ->> 'is_swapped')::boolean THEN
        verify := false;
    END IF;
    COMMIT;
    CALL fieldcrypt.column_migration_run(relation, column_name, source, 1000, 0, wait_for_locks, 'undo', verify);
    PERFORM fieldcrypt.column_migration_step(relation, 'end', arguments::pg_catalog.text);
    COMMIT;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.undo_encrypt_column(regclass, name, text, boolean, interval) IS
    'gives a column back as it was before encrypt_column, with all that was written since, until drop_plaintext_column; source: an expression that gives the old value of a row, if encrypt_column had a source and rows were written after the swap; verify => false: without opening every value, when keys are lost';

CREATE FUNCTION fieldcrypt.drop_plaintext_column(relation regclass, column_name name) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    began timestamptz := clock_timestamp();
BEGIN
    IF relation IS NULL OR column_name IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'relation and column_name must not be NULL';
    END IF;
    LOOP
        EXIT WHEN NOT coalesce((fieldcrypt.column_migration_step(relation, 'drop', jsonb_build_object('column', column_name)::text)::jsonb ->> 'busy')::boolean, false);
        IF clock_timestamp() - began > interval '1 minute' THEN
            RAISE EXCEPTION USING ERRCODE = 'lock_not_available', MESSAGE = format('table %s is held by others', relation), HINT = 'Call drop_plaintext_column again.';
        END IF;
        PERFORM pg_sleep(1);
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt.drop_plaintext_column(regclass, name) IS
    'drops what encrypt_column has kept of a column as it was before, and says where its values still are; for the table''s owner';

CREATE VIEW fieldcrypt.column_migrations AS
    SELECT m.table_name, m.column_name,
           CASE WHEN l.pid IS NULL AND m.state OPERATOR(pg_catalog.<>) ALL ('{ready,swapped}'::pg_catalog.text[]) THEN 'interrupted' ELSE m.state END AS state,
           m.state AS step, m.rows_done, GREATEST(m.rows_estimated, m.rows_done, m.rows_verified) AS rows_total, m.rows_verified,
           l.pid, m.started_at, m.updated_at, m.error_code, m.error
      FROM fieldcrypt_internal.column_migrations AS m
      LEFT JOIN LATERAL (SELECT r.pid FROM fieldcrypt_internal.live_runs() AS r WHERE r.run OPERATOR(pg_catalog.=) m.run LIMIT 1) AS l ON true
     WHERE pg_catalog.pg_relation_filenode(m.relation) IS NOT NULL OR EXISTS (SELECT FROM pg_catalog.pg_partitioned_table AS p WHERE p.partrelid OPERATOR(pg_catalog.=) m.relation)
     ORDER BY m.table_name, m.column_name;
COMMENT ON VIEW fieldcrypt.column_migrations IS 'columns that encrypt_column is at, or of which what they were before is kept still';
COMMENT ON COLUMN fieldcrypt.column_migrations.table_name IS 'the table, qualified';
COMMENT ON COLUMN fieldcrypt.column_migrations.column_name IS 'the column that is encrypted';
COMMENT ON COLUMN fieldcrypt.column_migrations.state IS 'filling, validating, verifying, ready (to swap), finishing, swapped (the old column is kept), undoing, or interrupted (the next CALL goes on)';
COMMENT ON COLUMN fieldcrypt.column_migrations.step IS 'the same of one that was interrupted: where it stands';
COMMENT ON COLUMN fieldcrypt.column_migrations.rows_done IS 'rows that batches have encrypted; what is written meanwhile is encrypted by a trigger';
COMMENT ON COLUMN fieldcrypt.column_migrations.rows_total IS 'rows of the table, an estimate';
COMMENT ON COLUMN fieldcrypt.column_migrations.rows_verified IS 'rows that were opened and compared with the old column';
COMMENT ON COLUMN fieldcrypt.column_migrations.pid IS 'the process that is at it';
COMMENT ON COLUMN fieldcrypt.column_migrations.started_at IS 'when it began';
COMMENT ON COLUMN fieldcrypt.column_migrations.updated_at IS 'when a step last ended';
COMMENT ON COLUMN fieldcrypt.column_migrations.error_code IS 'SQLSTATE of what it stopped at';
COMMENT ON COLUMN fieldcrypt.column_migrations.error IS 'what it stopped at, without values';

-- Runs of re-encryption: how one begins and ends, and which are under way.

CREATE FUNCTION fieldcrypt_internal.hold_run(run bigint) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_hold_run';
COMMENT ON FUNCTION fieldcrypt_internal.hold_run(bigint) IS 'shows to other sessions that this one runs a re-encryption, until that ends or fails';

CREATE FUNCTION fieldcrypt_internal.release_run() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_release_run';
COMMENT ON FUNCTION fieldcrypt_internal.release_run() IS 'the end of hold_run';

CREATE FUNCTION fieldcrypt_internal.held_run() RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_held_run';
COMMENT ON FUNCTION fieldcrypt_internal.held_run() IS 'the run of this session, after hold_run and before release_run; otherwise -1';

CREATE FUNCTION fieldcrypt_internal.refuse_unless_own_run(run integer) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF run IS NULL OR run < 0 OR run <> fieldcrypt_internal.held_run() THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('run %s of re-encryption is not one that this session has begun and not ended', coalesce(run::text, 'NULL')),
            HINT = 'CALL fieldcrypt.reencrypt()';
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.refuse_unless_own_run(integer) IS 'an error if a run is not that of this session; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.live_runs() RETURNS TABLE (run integer, pid integer)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT l.objid::bigint::integer, l.pid
      FROM pg_locks AS l
     WHERE l.locktype = 'object'
       AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
       AND l.classid = 'fieldcrypt_internal.reencryption_chunks'::regclass
       AND l.objsubid = 0 AND l.granted
$$;
COMMENT ON FUNCTION fieldcrypt_internal.live_runs() IS 'the runs of re-encryption that are under way, and their processes';

CREATE FUNCTION fieldcrypt_internal.reencrypt_begin(relation regclass, OUT run integer, OUT relations oid[])
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET jit = off
AS $$
DECLARE
    compromised text := (SELECT string_agg(k.key_id::text, ' ' ORDER BY k.key_id)
                           FROM fieldcrypt.encryption_keys AS k WHERE k.purpose IN ('field', 'loose') AND k.state = 'compromised');
    item record;
    note text;
    blocks bigint;
    file oid;
    distributed oid[] := fieldcrypt_internal.distributed_tables();
    elsewhere text[] := '{}';
BEGIN
    PERFORM fieldcrypt_internal.refuse_unless_writable();
    run := nextval('fieldcrypt_internal.reencryption_numbers');
    PERFORM fieldcrypt_internal.hold_run(run);
    relations := '{}';
    PERFORM fieldcrypt_internal.forget_table(r.relation)
       FROM fieldcrypt_internal.reencryptions AS r
      WHERE NOT EXISTS (SELECT FROM pg_class AS t WHERE t.oid = r.relation);
    FOR item IN
        SELECT c.relation, c.table_name,
               array_agg(c.column_name ORDER BY c.attnum) FILTER (WHERE c.problem IS NULL) AS columns,
               array_agg(format('%s.%I is left alone: %s', c.table_name, c.column_name, c.problem) ORDER BY c.attnum)
                   FILTER (WHERE c.problem IS NOT NULL) AS left_alone,
               (SELECT greatest(t.reltuples, 0)::bigint FROM pg_class AS t WHERE t.oid = c.relation) AS rows_estimated
          FROM fieldcrypt_internal.encrypted_columns() AS c
         WHERE reencrypt_begin.relation IS NULL
            OR c.relation IN (SELECT t.relation FROM fieldcrypt_internal.with_descendants(reencrypt_begin.relation) AS t)
         GROUP BY c.relation, c.table_name
         ORDER BY c.table_name
    LOOP
        IF item.relation = ANY (distributed) THEN
            elsewhere := elsewhere || item.table_name;
            CONTINUE;
        END IF;
        FOREACH note IN ARRAY coalesce(item.left_alone, '{}') LOOP
            RAISE NOTICE '%', note;
        END LOOP;
        CONTINUE WHEN item.columns IS NULL;
        relations := relations || item.relation;
        file := pg_relation_filenode(item.relation);
        blocks := fieldcrypt_internal.table_blocks(item.relation);
        -- A table that another session holds is not waited for here: it has an empty pass first, and then
        -- another. What is in progress is gone on with: another run is at it, or one was interrupted.
        DELETE FROM fieldcrypt.reencryption_failures AS f
         WHERE f.relation = item.relation
           AND EXISTS (SELECT FROM fieldcrypt_internal.reencryptions AS r WHERE r.relation = f.relation AND r.state <> 'in_progress');
        INSERT INTO fieldcrypt_internal.reencryptions AS r
               (relation, table_name, columns, state, only_compromised, compromised_pass, pass, needs_pass,
                next_block, end_block, file_node, rows_estimated, last_run)
        VALUES (item.relation, item.table_name, item.columns, 'in_progress', compromised IS NOT NULL,
                compromised, 1, blocks IS NULL, 0, coalesce(blocks, 0), file, item.rows_estimated, run)
            ON CONFLICT ON CONSTRAINT reencryptions_pkey DO UPDATE
           SET (table_name, columns, state, only_compromised, compromised_pass, pass, needs_pass, was_extended, next_block, end_block,
                file_node, rows_estimated, rows_seen, rows_moved, bytes_moved, rows_failed, error_code, error, started_at, updated_at, finished_at,
                last_run, resumed_at, rows_at_resume, tally, columns_left)
               = ROW (excluded.table_name, excluded.columns, excluded.state,
                         compromised IS NOT NULL AND compromised IS DISTINCT FROM r.compromised_done, compromised,
                         1, excluded.needs_pass, false, 0, excluded.end_block, excluded.file_node, excluded.rows_estimated, 0, 0, 0, 0, NULL, NULL, clock_timestamp(), clock_timestamp(), NULL,
                         -- Another run may be just ending, which began the table before.
                         excluded.last_run, clock_timestamp(), 0, '{}', '{}')
         WHERE r.state <> 'in_progress';
        UPDATE fieldcrypt_internal.reencryptions AS r
           SET last_run = reencrypt_begin.run, resumed_at = clock_timestamp(), rows_at_resume = r.rows_seen, error_code = NULL, error = NULL
         WHERE r.relation = item.relation
           AND r.last_run NOT IN (SELECT l.run FROM fieldcrypt_internal.live_runs() AS l WHERE l.run <> reencrypt_begin.run);
        -- A key was compromised since the pass began: its values first, then the pass from the start.
        UPDATE fieldcrypt_internal.reencryptions AS r
           SET only_compromised = true, compromised_pass = compromised, next_block = 0, end_block = coalesce(blocks, 0),
               file_node = file, needs_pass = r.needs_pass OR blocks IS NULL
         WHERE r.relation = item.relation AND NOT r.only_compromised
           AND compromised IS NOT NULL AND compromised IS DISTINCT FROM r.compromised_done;
        IF FOUND THEN
            DELETE FROM fieldcrypt_internal.reencryption_chunks AS c
             WHERE c.relation = item.relation
               AND (c.run IS NULL OR c.run NOT IN (SELECT l.run FROM fieldcrypt_internal.live_runs() AS l));
        END IF;
    END LOOP;
    IF reencrypt_begin.relation IS NOT NULL AND cardinality(relations) = 0 AND cardinality(elsewhere) > 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'KF033',
            MESSAGE = format('%s is a distributed table of Citus: its rows are in shards, on other nodes, too, and are not re-encrypted from here', reencrypt_begin.relation),
            HINT = 'On each node that has shards: CALL fieldcrypt.reencrypt(). See docs/more-than-one-node.md. (KF033, see docs/errors.md)';
    ELSIF cardinality(elsewhere) > 0 THEN
        RAISE WARNING USING ERRCODE = 'KF033',
            MESSAGE = format('distributed tables of Citus are left alone, their shards here are not: %s', array_to_string(elsewhere, ', ')),
            HINT = 'On each node that has shards: CALL fieldcrypt.reencrypt(). See docs/more-than-one-node.md. (KF033, see docs/errors.md)';
    END IF;
    IF reencrypt_begin.relation IS NOT NULL AND cardinality(relations) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('%s has no encrypted column that can be re-encrypted', reencrypt_begin.relation),
            HINT = 'Re-encryption is for tables with columns of type fieldcrypt.encrypted, or of domains, arrays and composites over it.';
    END IF;
    DELETE FROM fieldcrypt_internal.reencryption_runs AS r
     WHERE r.run NOT IN (SELECT l.run FROM fieldcrypt_internal.live_runs() AS l WHERE l.run <> reencrypt_begin.run);
    INSERT INTO fieldcrypt_internal.reencryption_runs (run, relations) VALUES (reencrypt_begin.run, reencrypt_begin.relations);
    PERFORM fieldcrypt_internal.record_event('reencryption_started', NULL, NULL,
        format('run %s: %s tables', run, cardinality(relations)), reencrypt_begin.relation::text);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.reencrypt_begin(regclass) IS 'begins a run over a table, or over all that hold encrypted values';

-- A batch's lock_timeout is for this too: somebody may hold the table, and a run waits for nobody.
CREATE FUNCTION fieldcrypt_internal.table_blocks(relation oid) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
AS $$
BEGIN
    RETURN coalesce(pg_relation_size(relation::regclass), 0) / current_setting('block_size')::bigint;
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.table_blocks(oid) IS 'blocks that a table has now; 0 if it is gone, NULL if another session holds it';

-- What another run has in hand is not left: that run goes on with the table.
CREATE FUNCTION fieldcrypt_internal.is_left(table_row fieldcrypt_internal.reencryptions, by_run integer) RETURNS boolean
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT $1.state = 'in_progress' AND NOT EXISTS (
        SELECT FROM fieldcrypt_internal.live_runs() AS l
         WHERE l.run <> $2
           AND (l.run = $1.last_run
                OR l.run IN (SELECT c.run FROM fieldcrypt_internal.reencryption_chunks AS c WHERE c.relation = $1.relation)))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.is_left(fieldcrypt_internal.reencryptions, integer) IS
    'whether a table is in progress and no run but that one is at it';

CREATE FUNCTION fieldcrypt_internal.reencrypt_end(
        run integer,
        OUT done bigint, OUT failed_tables text, OUT failed_rows bigint, OUT unfinished text, OUT unbound text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relations oid[];
    moved bigint;
    candidates text[];
BEGIN
    PERFORM fieldcrypt_internal.refuse_unless_own_run(run);
    DELETE FROM fieldcrypt_internal.reencryption_runs AS r WHERE r.run = reencrypt_end.run
    RETURNING r.relations, r.rows_moved INTO relations, moved;
    UPDATE fieldcrypt_internal.reencryption_chunks AS c SET run = NULL WHERE c.run = reencrypt_end.run;
    SELECT count(*) FILTER (WHERE r.state = 'done' AND r.rows_failed = 0),
           string_agg(format('%s: %s (%s)', r.table_name, r.error, r.error_code), '; ' ORDER BY r.table_name)
               FILTER (WHERE r.state = 'failed'),
           coalesce(sum(r.rows_failed), 0)::bigint,
           array_agg(format('%s %s', r.relation, r.last_run)) FILTER (WHERE fieldcrypt_internal.is_left(r, run))
      INTO done, failed_tables, failed_rows, candidates
      FROM fieldcrypt_internal.reencryptions AS r
     WHERE r.relation = ANY (relations);
    unbound := (
        SELECT string_agg(format('%s.%I', f.table_name, f.column_name), ', ' ORDER BY f.table_name, f.column_name)
          FROM (SELECT DISTINCT l.relation, l.table_name, l.column_name FROM fieldcrypt.reencryption_failures AS l
                 WHERE l.relation = ANY (relations) AND l.error_code = 'KF002' AND l.column_name IS NOT NULL) AS f
         WHERE NOT fieldcrypt_internal.contexts_of(f.relation)::jsonb ? f.column_name);
    -- Rows are those of a snapshot, locks those of the moment: a run that has ended since then has nothing in hand,
    -- and its tables are in progress in that snapshot. They are done in the next one.
    unfinished := (SELECT string_agg(r.table_name, ', ' ORDER BY r.table_name)
                     FROM fieldcrypt_internal.reencryptions AS r
                    WHERE format('%s %s', r.relation, r.last_run) = ANY (candidates) AND fieldcrypt_internal.is_left(r, run));
    PERFORM fieldcrypt_internal.record_event(
        CASE WHEN failed_tables IS NULL AND failed_rows = 0 AND unfinished IS NULL
             THEN 'reencryption_finished' ELSE 'reencryption_incomplete' END,
        NULL, NULL,
        format('run %s: %s rows re-encrypted, %s tables done, %s rows could not be re-encrypted%s%s', run, moved, done,
               failed_rows, '; failed: ' || failed_tables, '; unfinished: ' || unfinished), NULL);
    PERFORM fieldcrypt_internal.release_run();
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.reencrypt_end(integer) IS 'ends this session''s run of re-encryption and sums up what its steps did';

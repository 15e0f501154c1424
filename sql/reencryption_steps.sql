-- The steps of a run: what is claimed, worked through in batches and counted.

CREATE FUNCTION fieldcrypt_internal.reencrypt_batch(
        relation oid, from_block bigint, from_offset bigint, end_block bigint, max_rows bigint,
        max_bytes bigint, only_compromised boolean, contexts text, careful boolean) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_reencrypt_batch';
COMMENT ON FUNCTION fieldcrypt_internal.reencrypt_batch(oid, bigint, bigint, bigint, bigint, bigint, boolean, text, boolean) IS
    're-encrypts a stretch of a table as the table''s owner and tells what it did, as JSON; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.reencrypt_position() RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_reencrypt_position';
COMMENT ON FUNCTION fieldcrypt_internal.reencrypt_position() IS 'the row at which the last batch failed, and whether in code of the table''s owner, as JSON';

-- The next chunk for a run: one to come back to, one that a dead run left, else a new one.
CREATE FUNCTION fieldcrypt_internal.claim_chunk(run integer, relations oid[]) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
DECLARE
    found_chunk integer;
    table_row fieldcrypt_internal.reencryptions;
    blocks bigint;
    file oid;
    next_is_needed boolean;
    is_held boolean := false;
    bound_since text[];
BEGIN
    SELECT c.chunk INTO found_chunk
      FROM fieldcrypt_internal.reencryption_chunks AS c
     WHERE c.relation = ANY (relations) AND c.not_before <= clock_timestamp()
       AND (c.run IS NULL OR c.run NOT IN (SELECT l.run FROM fieldcrypt_internal.live_runs() AS l))
     ORDER BY c.chunk LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
        UPDATE fieldcrypt_internal.reencryption_chunks AS c SET run = claim_chunk.run WHERE c.chunk = found_chunk;
        RETURN 'returned';
    END IF;
    SELECT r.* INTO table_row
      FROM fieldcrypt_internal.reencryptions AS r
     WHERE r.relation = ANY (relations) AND r.state = 'in_progress' AND r.next_block < r.end_block
     ORDER BY r.only_compromised DESC, array_position(relations, r.relation)
     LIMIT 1 FOR UPDATE;
    IF FOUND THEN
        blocks := least(greatest(table_row.end_block / 8, 64), 8192, table_row.end_block - table_row.next_block);
        INSERT INTO fieldcrypt_internal.reencryption_chunks (relation, next_block, end_block, run)
        VALUES (table_row.relation, table_row.next_block, table_row.next_block + blocks, claim_chunk.run);
        UPDATE fieldcrypt_internal.reencryptions AS r
           SET next_block = r.next_block + blocks, last_run = claim_chunk.run
         WHERE r.relation = table_row.relation;
        RETURN 'claimed';
    END IF;
    -- Passes that are over: another one, if this one changed anything, since an UPDATE of the application
    -- may have moved an old value behind it.
    FOR table_row IN
        SELECT r.*
          FROM fieldcrypt_internal.reencryptions AS r
         WHERE r.relation = ANY (relations) AND r.state = 'in_progress' AND r.next_block >= r.end_block
           AND NOT EXISTS (SELECT FROM fieldcrypt_internal.reencryption_chunks AS c WHERE c.relation = r.relation)
         ORDER BY array_position(relations, r.relation)
           FOR UPDATE SKIP LOCKED
    LOOP
        IF NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = table_row.relation) THEN
            PERFORM fieldcrypt_internal.forget_table(table_row.relation);
            RETURN 'advanced';
        END IF;
        file := pg_relation_filenode(table_row.relation);
        -- Columns that were left have been given a context meanwhile.
        bound_since := ARRAY(SELECT c FROM jsonb_object_keys(table_row.columns_left) AS c
                              WHERE fieldcrypt_internal.contexts_of(table_row.relation)::jsonb ? c);
        next_is_needed := table_row.needs_pass OR file IS DISTINCT FROM table_row.file_node OR cardinality(bound_since) > 0;
        blocks := fieldcrypt_internal.table_blocks(table_row.relation);
        IF blocks IS NULL THEN
            is_held := true;
            CONTINUE;
        END IF;
        IF next_is_needed AND table_row.pass >= 20 THEN
            UPDATE fieldcrypt_internal.reencryptions AS r
               SET state = 'failed', error_code = 'KF025', error = 'the table did not come to rest in 20 passes',
                   finished_at = clock_timestamp(), updated_at = clock_timestamp()
             WHERE r.relation = table_row.relation;
        ELSIF NOT next_is_needed AND blocks > table_row.end_block AND NOT table_row.was_extended THEN
            -- The table has grown: what was put there is looked at too, once, since it may grow for ever.
            UPDATE fieldcrypt_internal.reencryptions AS r
               SET end_block = blocks, was_extended = true
             WHERE r.relation = table_row.relation;
        ELSIF next_is_needed OR table_row.only_compromised THEN
            DELETE FROM fieldcrypt.reencryption_failures AS f WHERE f.relation = table_row.relation;
            UPDATE fieldcrypt_internal.reencryptions AS r
               SET pass = r.pass + 1, needs_pass = false, next_block = 0, end_block = blocks, file_node = file,
                   was_extended = false, tally = fieldcrypt_internal.opened_of_tally(r.tally), columns_left = r.columns_left - bound_since,
                   rows_failed = 0, rows_seen = 0, rows_at_resume = 0, resumed_at = clock_timestamp(),
                   rows_estimated = CASE WHEN r.end_block = 0 THEN r.rows_estimated ELSE r.rows_seen END,
                   only_compromised = r.only_compromised AND next_is_needed,
                   compromised_done = CASE WHEN r.only_compromised AND NOT next_is_needed
                                           THEN r.compromised_pass ELSE r.compromised_done END
             WHERE r.relation = table_row.relation;
        ELSIF table_row.columns_left <> '{}' THEN
            PERFORM fieldcrypt_internal.fail_table(table_row.relation, 'KF002', fieldcrypt_internal.said_of_columns(table_row.columns_left));
        ELSE
            UPDATE fieldcrypt_internal.reencryptions AS r
               SET state = 'done', error_code = NULL, error = NULL, finished_at = clock_timestamp(), updated_at = clock_timestamp()
             WHERE r.relation = table_row.relation;
        END IF;
        RETURN 'advanced';
    END LOOP;
    -- Locked rows to come back to are waited for, and so are other runs, whose pass may have a next one to
    -- share.
    RETURN CASE
        WHEN is_held OR EXISTS (SELECT FROM fieldcrypt_internal.reencryption_chunks AS c WHERE c.relation = ANY (relations) AND c.run IS NULL)
        THEN 'wait'
        -- Also without a stretch in hand: it may be just about to begin or end that pass.
        WHEN EXISTS (SELECT FROM fieldcrypt_internal.reencryptions AS r WHERE r.relation = ANY (relations) AND r.state = 'in_progress')
        THEN 'others'
        ELSE 'over' END;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.claim_chunk(integer, oid[]) IS
    'gives a run its next stretch of a table; begins and ends passes';

CREATE FUNCTION fieldcrypt_internal.forget_table(relation oid) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM fieldcrypt_internal.reencryption_chunks AS c WHERE c.relation = $1;
    DELETE FROM fieldcrypt.reencryption_failures AS f WHERE f.relation = $1;
    DELETE FROM fieldcrypt_internal.reencryptions AS r WHERE r.relation = $1;
$$;
COMMENT ON FUNCTION fieldcrypt_internal.forget_table(oid) IS 'ends the re-encryption of a table that is gone';

CREATE FUNCTION fieldcrypt_internal.fail_table(relation oid, error_code text, error text) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    WITH left_over AS (
        DELETE FROM fieldcrypt_internal.reencryption_chunks AS c WHERE c.relation = $1 RETURNING c.*
    )
    UPDATE fieldcrypt_internal.reencryptions AS r
       SET state = 'failed', error_code = $2, error = $3,
           next_block = r.next_block - l.blocks, rows_seen = r.rows_seen + l.rows_seen, rows_moved = r.rows_moved + l.rows_moved,
           bytes_moved = r.bytes_moved + l.bytes_moved, rows_failed = r.rows_failed + l.rows_failed,
           finished_at = clock_timestamp(), updated_at = clock_timestamp()
      FROM (SELECT coalesce(sum(c.end_block - c.next_block), 0)::bigint AS blocks, coalesce(sum(c.rows_seen), 0)::bigint AS rows_seen,
                   coalesce(sum(c.rows_moved), 0)::bigint AS rows_moved, coalesce(sum(c.bytes_moved), 0)::bigint AS bytes_moved,
                   coalesce(sum(c.rows_failed), 0)::bigint AS rows_failed
              FROM left_over AS c) AS l
     WHERE r.relation = $1;
$$;
COMMENT ON FUNCTION fieldcrypt_internal.fail_table(oid, text, text) IS 'ends the re-encryption of a table that can''t go on';

CREATE FUNCTION fieldcrypt_internal.list_failures(relation oid, failures jsonb) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO fieldcrypt.reencryption_failures
           (relation, table_name, column_name, row_key, row_ctid, key_id, error_code, error)
    SELECT $1, r.table_name, f ->> 'column', nullif(f -> 'row_key', 'null'), f ->> 'ctid',
           (f ->> 'key_id')::bigint, f ->> 'error_code', f ->> 'error'
      FROM fieldcrypt_internal.reencryptions AS r, jsonb_array_elements($2) AS f
     WHERE r.relation = $1
     LIMIT greatest(0, 10000 - (SELECT count(*) FROM fieldcrypt.reencryption_failures AS l WHERE l.relation = $1))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.list_failures(oid, jsonb) IS 'lists values that could not be re-encrypted';

-- One step of a run: one batch, or what leads to the next. A batch that fails is tried again row by
-- row, so that one bad row does not keep the others back.
CREATE FUNCTION fieldcrypt_internal.reencrypt_step(
        run integer, relations oid[], batch_size bigint,
        OUT outcome text, OUT moved bigint, OUT bytes bigint, OUT error_code text, OUT message text, OUT hint text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
DECLARE
    max_bytes CONSTANT bigint := 16 * 1024 * 1024;
    piece fieldcrypt_internal.reencryption_chunks;
    table_row fieldcrypt_internal.reencryptions;
    contexts jsonb;
    result jsonb;
    failed_at jsonb;
    careful boolean := false;
    code text;
    tries integer := 0;
BEGIN
    -- Of the tables that the run was begun over.
    relations := ARRAY(SELECT t FROM unnest(relations) WITH ORDINALITY AS u (t, place)
                        WHERE t = ANY ((SELECT r.relations FROM fieldcrypt_internal.reencryption_runs AS r WHERE r.run = reencrypt_step.run)::oid[])
                        ORDER BY u.place);
    moved := 0;
    bytes := 0;
    PERFORM fieldcrypt_internal.refuse_unless_own_run(run);
    PERFORM fieldcrypt_internal.refuse_unless_writable();
    SELECT c.* INTO piece
      FROM fieldcrypt_internal.reencryption_chunks AS c
     WHERE c.run = reencrypt_step.run AND c.relation = ANY (relations)
     LIMIT 1;
    IF NOT FOUND THEN
        -- Losing this in a crash loses nothing: no wait for the disk.
        PERFORM set_config('synchronous_commit', 'off', true);
        outcome := fieldcrypt_internal.claim_chunk(run, relations);
        RETURN;
    END IF;
    outcome := 'worked';
    SELECT r.* INTO table_row FROM fieldcrypt_internal.reencryptions AS r WHERE r.relation = piece.relation;
    contexts := fieldcrypt_internal.contexts_of(piece.relation)::jsonb;
    LOOP
        tries := tries + 1;
        BEGIN
            result := fieldcrypt_internal.reencrypt_batch(
                piece.relation, piece.next_block, piece.next_offset, piece.end_block,
                CASE WHEN careful THEN 1 ELSE batch_size END, max_bytes,
                table_row.only_compromised, (fieldcrypt_internal.left_alone(table_row.columns_left) || contexts)::text, careful)::jsonb;
        EXCEPTION
        WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
            UPDATE fieldcrypt_internal.reencryption_chunks AS c
               SET run = NULL, not_before = clock_timestamp() + interval '1 second'
             WHERE c.chunk = piece.chunk;
            outcome := 'wait';
            RETURN;
        WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
            failed_at := fieldcrypt_internal.reencrypt_position()::jsonb;
            -- Only the system ends the run of all tables, not an owner's code that says it is the system. The error
            -- stays with the table until it is gone on with.
            IF (code IN ('KF008', 'KF009', 'KF010', 'KF012', 'KF013', 'XX000') OR left(code, 2) IN ('53', '57', '58'))
               AND NOT (failed_at ->> 'in_owners_code')::boolean THEN
                UPDATE fieldcrypt_internal.reencryptions AS r
                   SET error_code = code, error = reencrypt_step.message, updated_at = clock_timestamp()
                 WHERE r.relation = piece.relation;
                outcome := 'failed';
                error_code := code;
                RETURN;
            ELSIF failed_at ->> 'block' IS NULL OR piece.failures_in_a_row >= 100 THEN
                PERFORM fieldcrypt_internal.save_chunk(piece, run, moved);
                PERFORM fieldcrypt_internal.fail_table(piece.relation, code, message);
                RETURN;
            ELSIF careful THEN
                -- Errors of this class quote what they could not make sense of.
                IF left(code, 2) = '22' THEN
                    message := 'an expression, constraint or trigger of the table does not take the row';
                END IF;
                PERFORM fieldcrypt_internal.list_failures(piece.relation, jsonb_build_array(jsonb_build_object(
                    'row_key', failed_at -> 'row_key',
                    'ctid', format('(%s,%s)', failed_at ->> 'block', failed_at ->> 'offset'),
                    'error_code', code, 'error', message)));
                piece.rows_failed := piece.rows_failed + 1;
                piece.failures_in_a_row := piece.failures_in_a_row + 1;
                piece.next_block := (failed_at ->> 'block')::bigint;
                piece.next_offset := (failed_at ->> 'offset')::integer + 1;
            END IF;
            careful := true;
            result := NULL;
        END;
        CONTINUE WHEN result IS NULL;
        IF (result ->> 'is_gone')::boolean THEN
            PERFORM fieldcrypt_internal.forget_table(piece.relation);
            RETURN;
        END IF;
        piece := fieldcrypt_internal.add_result(piece, result);
        moved := moved + (result ->> 'moved')::bigint;
        bytes := bytes + (result ->> 'bytes')::bigint;
        EXIT WHEN NOT careful OR tries > 100 OR result ->> 'next_block' IS NULL;
    END LOOP;
    IF moved = 0 THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    PERFORM fieldcrypt_internal.save_chunk(piece, run, moved);
    IF result ->> 'next_block' IS NULL THEN
        UPDATE fieldcrypt_internal.reencryptions AS r
           SET rows_seen = r.rows_seen + piece.rows_seen, rows_moved = r.rows_moved + piece.rows_moved,
               bytes_moved = r.bytes_moved + piece.bytes_moved, rows_failed = r.rows_failed + piece.rows_failed,
               tally = fieldcrypt_internal.sum_of_tallies(r.tally, piece.tally),
               needs_pass = r.needs_pass OR piece.rows_moved > 0 OR (result ->> 'changed')::bigint > 0,
               updated_at = clock_timestamp(), last_run = reencrypt_step.run
         WHERE r.relation = piece.relation;
        DELETE FROM fieldcrypt_internal.reencryption_chunks AS c WHERE c.chunk = piece.chunk;
    ELSIF (result ->> 'changed')::bigint > 0 THEN
        UPDATE fieldcrypt_internal.reencryptions AS r SET needs_pass = true WHERE r.relation = piece.relation AND NOT r.needs_pass;
    END IF;
    IF piece.rows_failed > 0 THEN
        PERFORM fieldcrypt_internal.leave_columns(piece.relation, contexts);
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.reencrypt_step(integer, oid[], bigint) IS
    'one batch of re-encryption, or what leads to the next; a table that can''t go on is marked, not raised';

CREATE FUNCTION fieldcrypt_internal.save_chunk(chunk fieldcrypt_internal.reencryption_chunks, run integer, moved bigint) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE fieldcrypt_internal.reencryption_chunks AS c
       SET next_block = $1.next_block, next_offset = $1.next_offset,
           rows_seen = $1.rows_seen, rows_moved = $1.rows_moved, bytes_moved = $1.bytes_moved,
           rows_failed = $1.rows_failed, failures_in_a_row = $1.failures_in_a_row, tally = $1.tally,
           updated_at = clock_timestamp()
     WHERE c.chunk = $1.chunk;
    IF $3 > 0 THEN
        UPDATE fieldcrypt_internal.reencryption_runs AS r SET rows_moved = r.rows_moved + $3 WHERE r.run = $2;
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.save_chunk(fieldcrypt_internal.reencryption_chunks, integer, bigint) IS 'writes down how far a chunk is, and what its run has moved';

CREATE FUNCTION fieldcrypt_internal.sum_of_tallies(one jsonb, other jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF other IS NULL OR other = '{}' THEN
        RETURN one;
    END IF;
    RETURN (SELECT jsonb_object_agg(s.key, jsonb_build_array(s.opened, s.failed))
              FROM (SELECT t.key, sum((t.value ->> 0)::bigint) AS opened, sum((t.value ->> 1)::bigint) AS failed
                      FROM (SELECT a.* FROM jsonb_each(one) AS a UNION ALL SELECT b.* FROM jsonb_each(other) AS b) AS t
                     GROUP BY t.key) AS s);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.sum_of_tallies(jsonb, jsonb) IS 'values that opened without a context and that did not, by column';

-- What a pass has moved the next one does not open again.
CREATE FUNCTION fieldcrypt_internal.opened_of_tally(tally jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT coalesce(jsonb_object_agg(t.key, jsonb_build_array(t.value -> 0, 0)), '{}') FROM jsonb_each($1) AS t $$;
COMMENT ON FUNCTION fieldcrypt_internal.opened_of_tally(jsonb) IS 'a tally as another pass begins with it';

CREATE FUNCTION fieldcrypt_internal.left_alone(columns_left jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT coalesce(jsonb_object_agg(c, '{"is_left": true}'::jsonb), '{}') FROM jsonb_object_keys($1) AS c $$;
COMMENT ON FUNCTION fieldcrypt_internal.left_alone(jsonb) IS 'what reencrypt_batch is told of columns that are left alone';

CREATE FUNCTION fieldcrypt_internal.said_of_columns(columns_left jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT string_agg(c.value, '; ' ORDER BY c.key) FROM jsonb_each_text($1) AS c $$;
COMMENT ON FUNCTION fieldcrypt_internal.said_of_columns(jsonb) IS 'why columns are left alone, as one text';

-- That a column needs a context which nobody has set can be told from a thousand values: millions are not opened to list
-- each. Some that were written without one prove nothing. The other columns go on.
CREATE FUNCTION fieldcrypt_internal.leave_columns(relation oid, contexts jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    table_row fieldcrypt_internal.reencryptions;
    tally jsonb;
    newly_left jsonb;
BEGIN
    SELECT r.* INTO table_row FROM fieldcrypt_internal.reencryptions AS r WHERE r.relation = $1;
    tally := table_row.tally;
    SELECT fieldcrypt_internal.sum_of_tallies(tally, jsonb_object_agg(s.key, jsonb_build_array(s.opened, s.failed))) INTO tally
      FROM (SELECT t.key, sum((t.value ->> 0)::bigint) AS opened, sum((t.value ->> 1)::bigint) AS failed
              FROM fieldcrypt_internal.reencryption_chunks AS c, jsonb_each(c.tally) AS t
             WHERE c.relation = $1 GROUP BY t.key) AS s;
    SELECT jsonb_object_agg(t.key, format(
               'no context is set for column "%s", and without one %s of %s values did not open: fieldcrypt.set_column_context() says what its values are bound to',
               t.key, t.failed, t.opened + t.failed)) INTO newly_left
      FROM (SELECT e.key, (e.value ->> 0)::bigint AS opened, (e.value ->> 1)::bigint AS failed FROM jsonb_each(tally) AS e) AS t
     WHERE t.failed >= 1000 AND t.opened * 20 < t.failed AND NOT $2 ? t.key AND NOT table_row.columns_left ? t.key;
    IF newly_left IS NULL THEN
        RETURN;
    END IF;
    UPDATE fieldcrypt_internal.reencryptions AS r
       SET columns_left = r.columns_left || newly_left, error_code = 'KF002', error = fieldcrypt_internal.said_of_columns(r.columns_left || newly_left)
     WHERE r.relation = $1
    RETURNING r.* INTO table_row;
    IF table_row.columns <@ ARRAY(SELECT jsonb_object_keys(table_row.columns_left)) THEN
        PERFORM fieldcrypt_internal.fail_table($1, table_row.error_code, table_row.error);
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.leave_columns(oid, jsonb) IS
    'leaves columns alone of which nearly all values are bound to contexts that nobody has set; without any other the table can''t go on';

-- Counts a batch in its chunk, lists what failed, and leaves blocks with locked rows to come back to.
CREATE FUNCTION fieldcrypt_internal.add_result(chunk fieldcrypt_internal.reencryption_chunks, result jsonb)
    RETURNS fieldcrypt_internal.reencryption_chunks
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF jsonb_array_length(result -> 'failures') > 0 THEN
        PERFORM fieldcrypt_internal.list_failures(chunk.relation, result -> 'failures');
        chunk.rows_failed := chunk.rows_failed
            + (SELECT count(DISTINCT f ->> 'ctid') FROM jsonb_array_elements(result -> 'failures') AS f);
    END IF;
    IF jsonb_array_length(result -> 'locked_blocks') > 0 THEN
        INSERT INTO fieldcrypt_internal.reencryption_chunks (relation, next_block, end_block, not_before)
        SELECT chunk.relation, min(l.block), max(l.block) + 1, clock_timestamp() + interval '0.5 seconds'
          FROM (SELECT b::bigint AS block, b::bigint - row_number() OVER (ORDER BY b::bigint) AS island
                  FROM jsonb_array_elements_text(result -> 'locked_blocks') AS b) AS l
         GROUP BY l.island;
    END IF;
    chunk.tally := fieldcrypt_internal.sum_of_tallies(chunk.tally, (
        SELECT jsonb_object_agg(o.key, jsonb_build_array(o.value, 0)) FROM jsonb_each(result -> 'opened_without_context') AS o));
    chunk.tally := fieldcrypt_internal.sum_of_tallies(chunk.tally, (
        SELECT jsonb_object_agg(f.column_name, jsonb_build_array(0, f.number))
          FROM (SELECT f ->> 'column' AS column_name, count(*) AS number FROM jsonb_array_elements(result -> 'failures') AS f
                 WHERE f ->> 'error_code' = 'KF002' GROUP BY 1) AS f));
    chunk.rows_seen := chunk.rows_seen + (result ->> 'rows')::bigint;
    chunk.rows_moved := chunk.rows_moved + (result ->> 'moved')::bigint;
    chunk.bytes_moved := chunk.bytes_moved + (result ->> 'bytes')::bigint;
    chunk.rows_failed := chunk.rows_failed + (result ->> 'suppressed')::bigint;
    chunk.next_block := coalesce((result ->> 'next_block')::bigint, chunk.end_block);
    chunk.next_offset := coalesce((result ->> 'next_offset')::integer, 1);
    IF (result ->> 'moved')::bigint > 0 THEN
        chunk.failures_in_a_row := 0;
    END IF;
    RETURN chunk;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.add_result(fieldcrypt_internal.reencryption_chunks, jsonb) IS 'counts a batch of re-encryption in its chunk';

-- Verification of stored values: each is opened with the context of its column, and what does not open is listed.
--
-- How far a table is, is written in the transaction of each batch: what is interrupted is gone on with.

CREATE TABLE fieldcrypt.value_verifications (
    relation oid PRIMARY KEY,
    table_name text NOT NULL,
    columns text[] NOT NULL,
    state text COLLATE "C" NOT NULL CHECK (state IN ('in_progress', 'done', 'failed')),
    blocks_done bigint NOT NULL DEFAULT 0,
    blocks_total bigint NOT NULL,
    next_row integer NOT NULL DEFAULT 1,
    rows_seen bigint NOT NULL DEFAULT 0,
    values_seen bigint NOT NULL DEFAULT 0,
    values_failed bigint NOT NULL DEFAULT 0,
    error_code text,
    error text,
    started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at timestamptz
);
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt.value_verifications
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
COMMENT ON TABLE fieldcrypt.value_verifications IS 'the last verification of each table''s values, and how far it is: written by CALL fieldcrypt.verify_values()';
COMMENT ON COLUMN fieldcrypt.value_verifications.relation IS 'the table';
COMMENT ON COLUMN fieldcrypt.value_verifications.table_name IS 'its name, qualified';
COMMENT ON COLUMN fieldcrypt.value_verifications.columns IS 'the columns that are verified: those with a context, and protected ones';
COMMENT ON COLUMN fieldcrypt.value_verifications.state IS 'in_progress (the next verify_values goes on), done or failed';
COMMENT ON COLUMN fieldcrypt.value_verifications.blocks_done IS 'blocks of the table that were read';
COMMENT ON COLUMN fieldcrypt.value_verifications.blocks_total IS 'blocks that it had when it began';
COMMENT ON COLUMN fieldcrypt.value_verifications.next_row IS 'the row of the next block to go on at';
COMMENT ON COLUMN fieldcrypt.value_verifications.rows_seen IS 'rows read';
COMMENT ON COLUMN fieldcrypt.value_verifications.values_seen IS 'values opened';
COMMENT ON COLUMN fieldcrypt.value_verifications.values_failed IS 'values that did not open: see value_failures';
COMMENT ON COLUMN fieldcrypt.value_verifications.error_code IS 'SQLSTATE of what ended it';
COMMENT ON COLUMN fieldcrypt.value_verifications.error IS 'message of what ended it';
COMMENT ON COLUMN fieldcrypt.value_verifications.started_at IS 'when it began';
COMMENT ON COLUMN fieldcrypt.value_verifications.updated_at IS 'when a batch last ended';
COMMENT ON COLUMN fieldcrypt.value_verifications.finished_at IS 'when it was done or failed';

CREATE TABLE fieldcrypt.value_failures (
    relation oid NOT NULL,
    table_name text NOT NULL,
    column_name text NOT NULL,
    row_key jsonb,
    row_ctid text NOT NULL,
    key_id bigint,
    error_code text NOT NULL,
    error text NOT NULL,
    at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
CREATE INDEX value_failures_relation ON fieldcrypt.value_failures (relation);
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt.value_failures
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
COMMENT ON TABLE fieldcrypt.value_failures IS 'values that the last verification of their table could not open: which row, which key, why; never a value. At most 10000 a table are listed, all are counted';
COMMENT ON COLUMN fieldcrypt.value_failures.relation IS 'the table';
COMMENT ON COLUMN fieldcrypt.value_failures.table_name IS 'its name, qualified';
COMMENT ON COLUMN fieldcrypt.value_failures.column_name IS 'the column';
COMMENT ON COLUMN fieldcrypt.value_failures.row_key IS 'primary key of the row; NULL for a table without one';
COMMENT ON COLUMN fieldcrypt.value_failures.row_ctid IS 'where the row lay then';
COMMENT ON COLUMN fieldcrypt.value_failures.key_id IS 'the key that the value is on';
COMMENT ON COLUMN fieldcrypt.value_failures.error_code IS 'SQLSTATE: why';
COMMENT ON COLUMN fieldcrypt.value_failures.error IS 'the message, without values';
COMMENT ON COLUMN fieldcrypt.value_failures.at IS 'when it was tried';

CREATE FUNCTION fieldcrypt_internal.verify_batch(
        relation oid, block bigint, row_offset bigint, end_block bigint, max_values bigint, contexts text) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_verify_batch';
COMMENT ON FUNCTION fieldcrypt_internal.verify_batch(oid, bigint, bigint, bigint, bigint, text) IS
    'opens the values of a stretch of a table as the table''s owner and tells what does not open, as JSON; granted to nobody';

-- What a column is declared to be is in its table; what it is said to be bound to otherwise, in ours.
CREATE FUNCTION fieldcrypt_internal.bindings_of(relation oid) RETURNS text
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT (fieldcrypt_internal.contexts_of($1)::jsonb || coalesce(jsonb_object_agg(d.column_name, '{"declared": true}'::jsonb), '{}'))::text
      FROM jsonb_to_recordset(fieldcrypt_internal.declarations($1)::jsonb) AS d (column_name text)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.bindings_of(oid) IS 'what is known of what a table''s values are bound to, by column, as JSON: contexts, and declarations; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.verify_begin(relation regclass, column_name text) RETURNS oid[]
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET jit = off
AS $$
DECLARE
    relations oid[] := '{}';
    item record;
BEGIN
    PERFORM fieldcrypt_internal.refuse_unless_writable();
    DELETE FROM fieldcrypt.value_failures AS f WHERE NOT EXISTS (SELECT FROM pg_class AS t WHERE t.oid = f.relation);
    DELETE FROM fieldcrypt.value_verifications AS v WHERE NOT EXISTS (SELECT FROM pg_class AS t WHERE t.oid = v.relation);
    FOR item IN
        SELECT c.relation, c.table_name, array_agg(c.column_name ORDER BY c.attnum) AS columns
          FROM fieldcrypt_internal.encrypted_columns() AS c
         WHERE c.is_readable
           AND c.relation IN (SELECT t.relation FROM fieldcrypt_internal.with_descendants(verify_begin.relation) AS t)
           AND (verify_begin.column_name IS NULL OR c.column_name = verify_begin.column_name)
           AND fieldcrypt_internal.bindings_of(c.relation)::jsonb ? c.column_name
         GROUP BY c.relation, c.table_name
         ORDER BY c.table_name
    LOOP
        relations := relations || item.relation;
        -- What was interrupted is gone on with.
        CONTINUE WHEN EXISTS (
            SELECT FROM fieldcrypt.value_verifications AS v
             WHERE v.relation = item.relation AND v.state = 'in_progress' AND v.columns = item.columns);
        DELETE FROM fieldcrypt.value_failures AS f WHERE f.relation = item.relation;
        DELETE FROM fieldcrypt.value_verifications AS v WHERE v.relation = item.relation;
        INSERT INTO fieldcrypt.value_verifications (relation, table_name, columns, state, blocks_total)
        VALUES (item.relation, item.table_name, item.columns, 'in_progress',
                pg_relation_size(item.relation::regclass) / current_setting('block_size')::bigint);
    END LOOP;
    IF cardinality(relations) = 0 AND verify_begin.relation = ANY (fieldcrypt_internal.distributed_tables()) THEN
        RAISE EXCEPTION USING ERRCODE = 'KF033',
            MESSAGE = format('%s is a distributed table of Citus: its rows are in shards, on other nodes, too, and are not verified from here', verify_begin.relation),
            HINT = 'On each node that has shards: CALL fieldcrypt.verify_values(shard). See docs/more-than-one-node.md. (KF033, see docs/errors.md)';
    END IF;
    IF cardinality(relations) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('no values of %s can be verified: no context of an encrypted column is known', verify_begin.relation),
            HINT = 'SELECT fieldcrypt.set_column_context(relation, column, expression => ...) says what its values are bound to; for a column of type encrypted_text, protect_column.';
    END IF;
    RETURN relations;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.verify_begin(regclass, text) IS 'begins or resumes the verification of a table, and gives what belongs to it';

CREATE FUNCTION fieldcrypt_internal.verify_step(relation oid) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    piece fieldcrypt.value_verifications;
    bindings jsonb;
    result jsonb;
    code text;
    message text;
BEGIN
    SELECT v.* INTO piece FROM fieldcrypt.value_verifications AS v
     WHERE v.relation = verify_step.relation AND v.state = 'in_progress' FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'over';
    END IF;
    SELECT coalesce(jsonb_object_agg(k.column_name, k.binding), '{}') INTO bindings
      FROM jsonb_each(fieldcrypt_internal.bindings_of(piece.relation)::jsonb) AS k (column_name, binding)
     WHERE k.column_name = ANY (piece.columns);
    BEGIN
        result := fieldcrypt_internal.verify_batch(piece.relation, piece.blocks_done, piece.next_row, piece.blocks_total, 20000, bindings::text)::jsonb;
    EXCEPTION WHEN lock_not_available THEN
        RETURN 'wait';
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
        -- Only the system ends the run, not an owner's code that says it is the system.
        IF (code IN ('KF008', 'KF009', 'KF010', 'KF012', 'XX000') OR left(code, 2) IN ('53', '57', '58'))
           AND NOT (fieldcrypt_internal.reencrypt_position()::jsonb ->> 'in_owners_code')::boolean THEN
            RAISE;
        END IF;
        -- Errors of this class quote what they could not make sense of.
        IF left(code, 2) = '22' THEN
            message := 'the expression of a context does not take a row';
        END IF;
        UPDATE fieldcrypt.value_verifications AS v
           SET state = 'failed', error_code = code, error = message, updated_at = clock_timestamp(), finished_at = clock_timestamp()
         WHERE v.relation = piece.relation;
        RETURN 'over';
    END;
    IF (result ->> 'is_gone')::boolean THEN
        DELETE FROM fieldcrypt.value_failures AS f WHERE f.relation = piece.relation;
        DELETE FROM fieldcrypt.value_verifications AS v WHERE v.relation = piece.relation;
        RETURN 'over';
    END IF;
    INSERT INTO fieldcrypt.value_failures (relation, table_name, column_name, row_key, row_ctid, key_id, error_code, error)
    SELECT piece.relation, piece.table_name, f ->> 'column', nullif(f -> 'row_key', 'null'), f ->> 'ctid',
           (f ->> 'key_id')::bigint, f ->> 'error_code', f ->> 'error'
      FROM jsonb_array_elements(result -> 'failures') AS f
     LIMIT greatest(0, 10000 - piece.values_failed);
    UPDATE fieldcrypt.value_verifications AS v
       SET blocks_done = coalesce((result ->> 'next_block')::bigint, v.blocks_total),
           next_row = coalesce((result ->> 'next_offset')::integer, 1),
           rows_seen = v.rows_seen + (result ->> 'rows')::bigint,
           values_seen = v.values_seen + (result ->> 'values')::bigint,
           values_failed = v.values_failed + (result ->> 'failed')::bigint,
           state = CASE WHEN result ->> 'next_block' IS NULL THEN 'done' ELSE v.state END,
           updated_at = clock_timestamp(),
           finished_at = CASE WHEN result ->> 'next_block' IS NULL THEN clock_timestamp() END
     WHERE v.relation = piece.relation;
    RETURN CASE WHEN result ->> 'next_block' IS NULL THEN 'over' ELSE 'more' END;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.verify_step(oid) IS 'verifies one batch of a table''s values';

CREATE PROCEDURE fieldcrypt.verify_values(relation regclass, column_name name DEFAULT NULL)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    relations pg_catalog.oid[];
    item pg_catalog.oid;
    outcome pg_catalog.text;
    summary pg_catalog.record;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF relation IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'relation must not be NULL',
            HINT = 'Name the table: CALL fieldcrypt.verify_values(''patients'').';
    END IF;
    relations := fieldcrypt_internal.verify_begin(relation, column_name::pg_catalog.text);
    COMMIT;
    FOREACH item IN ARRAY relations LOOP
        LOOP
            SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
            -- These last for one transaction only. The run is nobody's tenant.
            PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true),
                    pg_catalog.set_config('fieldcrypt.tenant', '', true);
            outcome := fieldcrypt_internal.verify_step(item);
            COMMIT;
            EXIT WHEN outcome OPERATOR(pg_catalog.=) 'over';
            IF outcome OPERATOR(pg_catalog.=) 'wait' THEN
                PERFORM pg_catalog.pg_sleep(0.1);
            END IF;
        END LOOP;
    END LOOP;
    SELECT COALESCE(pg_catalog.sum(v.values_seen), 0) AS values_seen, COALESCE(pg_catalog.sum(v.values_failed), 0) AS values_failed,
           pg_catalog.string_agg(pg_catalog.format('%s: %s (%s)', v.table_name, v.error, v.error_code), '; ' ORDER BY v.table_name)
               FILTER (WHERE v.state OPERATOR(pg_catalog.=) 'failed') AS problems
      INTO summary
      FROM fieldcrypt.value_verifications AS v WHERE v.relation OPERATOR(pg_catalog.=) ANY (relations);
    IF summary.problems IS NOT NULL THEN
        RAISE WARNING USING ERRCODE = 'KF031',
            MESSAGE = pg_catalog.format('could not be verified to the end: %s', summary.problems),
            HINT = 'See fieldcrypt.value_verifications; mend it and CALL fieldcrypt.verify_values() again. (KF031, see docs/errors.md)';
    END IF;
    IF summary.values_failed OPERATOR(pg_catalog.>) 0 THEN
        RAISE WARNING USING ERRCODE = 'KF031',
            MESSAGE = pg_catalog.format('%s of %s values do not open with the context of their row', summary.values_failed, summary.values_seen),
            HINT = 'See fieldcrypt.value_failures: which rows, and why. (KF031, see docs/errors.md)';
    END IF;
    RAISE NOTICE 'verify_values: % values verified, % do not open', summary.values_seen, summary.values_failed;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.verify_values(regclass, name) IS
    'opens every value of a table''s columns that have a context or are protected, in committed batches that resume, and lists what does not open in value_failures; shows nothing';

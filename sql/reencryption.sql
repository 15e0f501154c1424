-- Re-encryption: brings stored values to the active keys, online, in committed batches.
--
-- A pass over a table is cut into chunks of blocks, which runs claim and work through batch by batch;
-- how far a chunk is, is written in the transaction of the batch. So several runs share a table, and
-- what a crash leaves behind is taken up where it stood. Whether a run is under way tells the lock
-- that its session holds (pg_locks), never a row.

-- Cycles: as many runs and chunks are never there at once.
CREATE SEQUENCE fieldcrypt_internal.reencryption_numbers AS integer CYCLE;
COMMENT ON SEQUENCE fieldcrypt_internal.reencryption_numbers IS 'numbers of runs and chunks of re-encryption';

CREATE TABLE fieldcrypt_internal.reencryptions (
    relation oid PRIMARY KEY,
    table_name text NOT NULL,
    columns text[] NOT NULL,
    state text COLLATE "C" NOT NULL CHECK (state IN ('in_progress', 'done', 'failed')),
    only_compromised boolean NOT NULL,
    compromised_pass text,
    compromised_done text,
    pass integer NOT NULL,
    needs_pass boolean NOT NULL DEFAULT false,
    next_block bigint NOT NULL,
    end_block bigint NOT NULL,
    rows_estimated bigint NOT NULL,
    rows_seen bigint NOT NULL DEFAULT 0,
    rows_moved bigint NOT NULL DEFAULT 0,
    bytes_moved bigint NOT NULL DEFAULT 0,
    rows_failed bigint NOT NULL DEFAULT 0,
    last_run integer,
    error_code text,
    error text,
    started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    resumed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    rows_at_resume bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at timestamptz,
    file_node oid,
    was_extended boolean NOT NULL DEFAULT false
);
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt_internal.reencryptions
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
COMMENT ON TABLE fieldcrypt_internal.reencryptions IS 'how far each table is re-encrypted; read fieldcrypt.reencryption_progress';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.relation IS 'the table';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.table_name IS 'its name, qualified';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.columns IS 'its columns that are re-encrypted';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.state IS 'in_progress, done or failed; whether a run is at it now tells reencryption_progress';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.only_compromised IS 'whether the pass is for values on compromised keys, which go first';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.compromised_pass IS 'the ids of these keys';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.compromised_done IS 'the compromised keys of which an earlier pass found no more values';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.pass IS 'number of the pass over the table: another one follows until one finds nothing to move';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.needs_pass IS 'whether another pass has to follow';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.next_block IS 'the first block that no run has taken yet';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.end_block IS 'the block before which the pass ends';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.rows_estimated IS 'rows of the table, from the planner or the pass before';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.rows_seen IS 'rows that the pass has looked at; without chunks that are not finished, as the other counts';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.rows_moved IS 'rows re-encrypted, of all passes';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.bytes_moved IS 'bytes of their encrypted values, of all passes';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.rows_failed IS 'rows of the pass with a value that could not be re-encrypted';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.last_run IS 'the run that was last at it';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.error_code IS 'SQLSTATE of what ended it';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.error IS 'message of what ended it';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.started_at IS 'when it began';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.resumed_at IS 'when the run or the pass began from which the rate is counted';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.rows_at_resume IS 'rows_seen at that time';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.updated_at IS 'when a chunk was last finished';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.finished_at IS 'when it was done or failed';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.file_node IS 'the file that the pass began over: a rewrite (VACUUM FULL) puts rows where the pass has been';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.was_extended IS 'whether the pass was made longer because the table had grown, which is done once';

CREATE TABLE fieldcrypt_internal.reencryption_chunks (
    chunk integer PRIMARY KEY DEFAULT pg_catalog.nextval('fieldcrypt_internal.reencryption_numbers'),
    relation oid NOT NULL,
    next_block bigint NOT NULL,
    next_offset integer NOT NULL DEFAULT 1,
    end_block bigint NOT NULL,
    run integer,
    not_before timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    rows_seen bigint NOT NULL DEFAULT 0,
    rows_moved bigint NOT NULL DEFAULT 0,
    bytes_moved bigint NOT NULL DEFAULT 0,
    rows_failed bigint NOT NULL DEFAULT 0,
    failures_in_a_row integer NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
CREATE INDEX reencryption_chunks_relation ON fieldcrypt_internal.reencryption_chunks (relation);
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt_internal.reencryption_chunks
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
COMMENT ON TABLE fieldcrypt_internal.reencryption_chunks IS 'stretches of tables that runs of re-encryption work on, or have to come back to';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.chunk IS 'number of the stretch';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.relation IS 'the table';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.next_block IS 'the block to go on at';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.next_offset IS 'the row of that block to go on at';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.end_block IS 'the block before which it ends';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.run IS 'the run that has it; NULL, or a run that is no more: the next one takes it';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.not_before IS 'when it is to be come back to, at the earliest: others hold its rows';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.rows_seen IS 'rows looked at';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.rows_moved IS 'rows re-encrypted';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.bytes_moved IS 'bytes of their encrypted values';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.rows_failed IS 'rows with a value that could not be re-encrypted';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.failures_in_a_row IS 'rows refused one after the other; more than 100 end the re-encryption of the table';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.updated_at IS 'when its last batch ended';

CREATE TABLE fieldcrypt.reencryption_failures (
    relation oid NOT NULL,
    table_name text NOT NULL,
    column_name text,
    row_key jsonb,
    row_ctid text,
    key_id bigint,
    error_code text NOT NULL,
    error text NOT NULL,
    at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
CREATE INDEX reencryption_failures_relation ON fieldcrypt.reencryption_failures (relation);
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt.reencryption_failures
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
COMMENT ON TABLE fieldcrypt.reencryption_failures IS 'values that the last re-encryption of their table could not bring to the active key: which row, which key, why; never a value. At most 10000 a table are listed, all are counted';
COMMENT ON COLUMN fieldcrypt.reencryption_failures.relation IS 'the table';
COMMENT ON COLUMN fieldcrypt.reencryption_failures.table_name IS 'its name, qualified';
COMMENT ON COLUMN fieldcrypt.reencryption_failures.column_name IS 'the column; NULL if the whole row was refused, by a constraint or a trigger';
COMMENT ON COLUMN fieldcrypt.reencryption_failures.row_key IS 'primary key of the row; NULL for a table without one';
COMMENT ON COLUMN fieldcrypt.reencryption_failures.row_ctid IS 'where the row lay then';
COMMENT ON COLUMN fieldcrypt.reencryption_failures.key_id IS 'the key that the value is on';
COMMENT ON COLUMN fieldcrypt.reencryption_failures.error_code IS 'SQLSTATE: why';
COMMENT ON COLUMN fieldcrypt.reencryption_failures.error IS 'the message, without values';
COMMENT ON COLUMN fieldcrypt.reencryption_failures.at IS 'when it was tried';

-- By name, so that a dump restores it; with the owner of then, so that an expression never runs for
-- the owner of another table of that name.
CREATE TABLE fieldcrypt.column_contexts (
    table_name text NOT NULL,
    column_name text NOT NULL,
    constant text,
    expression text,
    table_owner text NOT NULL,
    set_by text NOT NULL DEFAULT session_user,
    set_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (table_name, column_name),
    CHECK ((constant IS NULL) OPERATOR(pg_catalog.<>) (expression IS NULL))
);
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON fieldcrypt.column_contexts
    FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt.column_contexts
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.column_contexts', '');
COMMENT ON TABLE fieldcrypt.column_contexts IS 'what the values of columns are bound to, for re-encryption: written by fieldcrypt.set_column_context()';
COMMENT ON COLUMN fieldcrypt.column_contexts.table_name IS 'the table, qualified';
COMMENT ON COLUMN fieldcrypt.column_contexts.column_name IS 'the column';
COMMENT ON COLUMN fieldcrypt.column_contexts.constant IS 'one context for all values of the column';
COMMENT ON COLUMN fieldcrypt.column_contexts.expression IS 'an expression over the columns of the row, as in a CHECK constraint';
COMMENT ON COLUMN fieldcrypt.column_contexts.table_owner IS 'owner of the table when it was set; it counts only while that is the owner';
COMMENT ON COLUMN fieldcrypt.column_contexts.set_by IS 'session_user: who set it';
COMMENT ON COLUMN fieldcrypt.column_contexts.set_at IS 'when it was set';

CREATE FUNCTION fieldcrypt_internal.reencrypt_batch(
        relation oid, from_block bigint, from_offset bigint, end_block bigint, max_rows bigint,
        max_bytes bigint, only_compromised boolean, contexts text, careful boolean) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_reencrypt_batch';
COMMENT ON FUNCTION fieldcrypt_internal.reencrypt_batch(oid, bigint, bigint, bigint, bigint, bigint, boolean, text, boolean) IS
    're-encrypts a stretch of a table as the table''s owner and tells what it did, as JSON; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.reencrypt_position() RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_reencrypt_position';
COMMENT ON FUNCTION fieldcrypt_internal.reencrypt_position() IS 'the row at which the last batch failed, and whether in code of the table''s owner, as JSON';

CREATE FUNCTION fieldcrypt_internal.store_column_context(
        table_name text, column_name text, constant text, expression text, table_owner text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_store_column_context';
COMMENT ON FUNCTION fieldcrypt_internal.store_column_context(text, text, text, text, text) IS 'writes fieldcrypt.column_contexts; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.hold_run(run bigint) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_hold_run';
COMMENT ON FUNCTION fieldcrypt_internal.hold_run(bigint) IS 'shows to other sessions that this one runs a re-encryption, until that ends or fails';

CREATE FUNCTION fieldcrypt_internal.release_run() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_release_run';
COMMENT ON FUNCTION fieldcrypt_internal.release_run() IS 'the end of hold_run';

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

-- The planner takes the recursion for expensive: compiling it takes a hundred times as long as running it.
CREATE FUNCTION fieldcrypt_internal.encrypted_columns()
    RETURNS TABLE (relation oid, table_name text, kind "char", attnum smallint, column_name text,
                   holds text, is_readable boolean, problem text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
    WITH RECURSIVE holding (type, holds) AS (
        SELECT 'fieldcrypt.encrypted'::regtype::oid, 'value'
        UNION
        SELECT t.oid, CASE t.typtype WHEN 'd' THEN h.holds WHEN 'c' THEN 'composite' ELSE 'array' END
          FROM holding AS h, pg_type AS t
         WHERE t.typtype = 'd' AND t.typbasetype = h.type
            OR t.typcategory = 'A' AND t.typelem = h.type
            OR t.typtype = 'c' AND EXISTS (
                SELECT FROM pg_attribute AS a
                 WHERE a.attrelid = t.typrelid AND a.atttypid = h.type
                   AND a.attnum > 0 AND NOT a.attisdropped)
    ), how AS (
        SELECT h.type, min(h.holds) AS holds FROM holding AS h GROUP BY h.type
    )
    SELECT c.oid, format('%I.%I', n.nspname, c.relname), c.relkind, a.attnum, a.attname::text, how.holds,
           c.relkind <> 'f' AND NOT (c.relpersistence = 't' AND n.oid <> pg_my_temp_schema())
               AND c.relam = (SELECT m.oid FROM pg_am AS m WHERE m.amname = 'heap'),
           CASE WHEN c.relkind = 'f' THEN 'a foreign table'
                WHEN c.relpersistence = 't' AND n.oid <> pg_my_temp_schema()
                THEN 'a temporary table of another session'
                WHEN c.relam <> (SELECT m.oid FROM pg_am AS m WHERE m.amname = 'heap')
                THEN 'a table of another access method than heap'
                WHEN c.relkind = 'm' THEN 'a materialized view: refresh it'
                WHEN a.attgenerated <> '' THEN 'a generated column: it follows the columns that it is computed from'
                WHEN EXISTS (
                    SELECT FROM pg_partition_ancestors(c.oid) AS up(relid)
                      JOIN pg_partitioned_table AS p ON p.partrelid = up.relid
                      JOIN pg_attribute AS k
                        ON k.attrelid = up.relid AND k.attnum = ANY (p.partattrs::smallint[])
                     WHERE k.attname = a.attname)
                THEN 'part of the partition key'
           END
      FROM how
      JOIN pg_attribute AS a ON a.atttypid = how.type AND a.attnum > 0 AND NOT a.attisdropped
      JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'm', 'f')
      JOIN pg_namespace AS n ON n.oid = c.relnamespace
     ORDER BY 2, 4
$$;
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_columns() IS
    'every column of this database that can hold encrypted values: in itself, in a domain, an array or a composite; problem: why it is not re-encrypted';

CREATE FUNCTION fieldcrypt_internal.remember_column_context(
        relation oid, column_name text, constant text, expression text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
AS $$
DECLARE
    qualified_name text;
    owner text;
BEGIN
    SELECT format('%I.%I', n.nspname, c.relname), c.relowner::regrole::text INTO qualified_name, owner
      FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = $1;
    IF NOT EXISTS (
        SELECT FROM fieldcrypt_internal.encrypted_columns() AS c
         WHERE c.column_name = $2
           AND c.relation IN (SELECT t.relation FROM fieldcrypt_internal.with_descendants($1) AS t)) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_column',
            MESSAGE = format('table %s has no encrypted column "%s"', $1::regclass, column_name),
            HINT = 'Contexts are remembered for columns of type fieldcrypt.encrypted, and of domains, arrays and composites over it.';
    END IF;
    IF constant <> '' AND expression <> '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a context is either a constant or an expression',
            HINT = 'Pass one of them; neither takes the context away.';
    END IF;
    PERFORM fieldcrypt_internal.store_column_context(
        qualified_name, column_name, nullif(constant, ''), nullif(expression, ''), owner);
    PERFORM fieldcrypt_internal.record_event('column_context_set', NULL, NULL, column_name, $1::regclass::text);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.remember_column_context(oid, text, text, text) IS
    'set_column_context for a caller whose rights were checked; granted to nobody';

-- C with the caller's rights: whose these are can't be told any more inside of a SECURITY DEFINER
-- function, and SET ROLE says nothing of the function that may call this.
CREATE FUNCTION fieldcrypt.set_column_context(
        relation regclass, column_name name, constant text DEFAULT '', expression text DEFAULT '')
    RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_set_column_context';
COMMENT ON FUNCTION fieldcrypt.set_column_context(regclass, name, text, text) IS
    'remembers what the values of a column are bound to, so that they can be re-encrypted: a constant, or an expression over the row (names outside pg_catalog qualified), computed as the table''s owner; for a partitioned table it holds for its partitions; neither takes it away';

CREATE FUNCTION fieldcrypt_internal.with_descendants(relation oid) RETURNS TABLE (relation oid)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE tree (relation) AS (
        SELECT $1
        UNION
        SELECT i.inhrelid FROM tree AS t JOIN pg_inherits AS i ON i.inhparent = t.relation
    )
    SELECT t.relation FROM tree AS t
$$;
COMMENT ON FUNCTION fieldcrypt_internal.with_descendants(oid) IS 'a table with its partitions and the tables that inherit from it';

-- PL/pgSQL, which keeps its plan: this is called for every batch.
CREATE FUNCTION fieldcrypt_internal.contexts_of(relation oid) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM fieldcrypt.column_contexts) THEN
        RETURN '{}';
    END IF;
    RETURN (WITH RECURSIVE up (relation, distance) AS (
        SELECT $1, 0
        UNION ALL
        SELECT i.inhparent, u.distance + 1 FROM up AS u JOIN pg_inherits AS i ON i.inhrelid = u.relation
    ), known AS (
        SELECT DISTINCT ON (x.column_name) x.column_name, x.constant, x.expression
          FROM up AS u
          JOIN pg_class AS c ON c.oid = u.relation
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
          JOIN fieldcrypt.column_contexts AS x
            ON x.table_name = format('%I.%I', n.nspname, c.relname)
           AND x.table_owner = c.relowner::regrole::text
         -- A parent of another owner says nothing about a child: its expression would run as the child's.
         WHERE c.relowner = (SELECT s.relowner FROM pg_class AS s WHERE s.oid = $1)
            OR x.constant IS NOT NULL
         ORDER BY x.column_name, u.distance
    )
    SELECT coalesce(jsonb_object_agg(k.column_name,
               jsonb_strip_nulls(jsonb_build_object('constant', k.constant, 'expression', k.expression))), '{}')::text
      FROM known AS k);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.contexts_of(oid) IS 'the remembered contexts of a table''s columns, as JSON; those of its parents count for it too';

CREATE FUNCTION fieldcrypt_internal.reencrypt_begin(relation regclass, OUT run integer, OUT relations oid[])
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
DECLARE
    compromised text := (SELECT string_agg(k.key_id::text, ' ' ORDER BY k.key_id)
                           FROM fieldcrypt.encryption_keys AS k WHERE k.purpose = 'field' AND k.state = 'compromised');
    item record;
    note text;
    blocks bigint;
    file oid;
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
                last_run, resumed_at, rows_at_resume)
               = ROW (excluded.table_name, excluded.columns, excluded.state,
                         compromised IS NOT NULL AND compromised IS DISTINCT FROM r.compromised_done, compromised,
                         1, excluded.needs_pass, false, 0, excluded.end_block, excluded.file_node, excluded.rows_estimated, 0, 0, 0, 0, NULL, NULL, clock_timestamp(), clock_timestamp(), NULL,
                         -- Another run may be just ending, which began the table before.
                         excluded.last_run, clock_timestamp(), 0)
         WHERE r.state <> 'in_progress';
        UPDATE fieldcrypt_internal.reencryptions AS r
           SET last_run = reencrypt_begin.run, resumed_at = clock_timestamp(), rows_at_resume = r.rows_seen
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
    IF reencrypt_begin.relation IS NOT NULL AND cardinality(relations) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('%s has no encrypted column that can be re-encrypted', reencrypt_begin.relation),
            HINT = 'Re-encryption is for tables with columns of type fieldcrypt.encrypted, or of domains, arrays and composites over it.';
    END IF;
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

-- The next chunk for a run: one to come back to, one that a dead run left, else a new one.
CREATE FUNCTION fieldcrypt_internal.claim_chunk(run integer, relations oid[]) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_chunk integer;
    table_row fieldcrypt_internal.reencryptions;
    blocks bigint;
    file oid;
    next_is_needed boolean;
    is_held boolean := false;
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
        next_is_needed := table_row.needs_pass OR file IS DISTINCT FROM table_row.file_node;
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
                   was_extended = false,
                   rows_failed = 0, rows_seen = 0, rows_at_resume = 0, resumed_at = clock_timestamp(),
                   rows_estimated = CASE WHEN r.end_block = 0 THEN r.rows_estimated ELSE r.rows_seen END,
                   only_compromised = r.only_compromised AND next_is_needed,
                   compromised_done = CASE WHEN r.only_compromised AND NOT next_is_needed
                                           THEN r.compromised_pass ELSE r.compromised_done END
             WHERE r.relation = table_row.relation;
        ELSE
            UPDATE fieldcrypt_internal.reencryptions AS r
               SET state = 'done', finished_at = clock_timestamp(), updated_at = clock_timestamp()
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
    DELETE FROM fieldcrypt_internal.reencryption_chunks AS c WHERE c.relation = $1;
    UPDATE fieldcrypt_internal.reencryptions AS r
       SET state = 'failed', error_code = $2, error = $3,
           finished_at = clock_timestamp(), updated_at = clock_timestamp()
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
        OUT outcome text, OUT moved bigint, OUT bytes bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
DECLARE
    max_bytes CONSTANT bigint := 16 * 1024 * 1024;
    piece fieldcrypt_internal.reencryption_chunks;
    table_row fieldcrypt_internal.reencryptions;
    contexts text;
    result jsonb;
    failed_at jsonb;
    careful boolean := false;
    code text;
    message text;
    tries integer := 0;
BEGIN
    moved := 0;
    bytes := 0;
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
    contexts := fieldcrypt_internal.contexts_of(piece.relation);
    LOOP
        tries := tries + 1;
        BEGIN
            result := fieldcrypt_internal.reencrypt_batch(
                piece.relation, piece.next_block, piece.next_offset, piece.end_block,
                CASE WHEN careful THEN 1 ELSE batch_size END, max_bytes,
                table_row.only_compromised, contexts, careful)::jsonb;
        EXCEPTION
        WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
            UPDATE fieldcrypt_internal.reencryption_chunks AS c
               SET run = NULL, not_before = clock_timestamp() + interval '1 second'
             WHERE c.chunk = piece.chunk;
            outcome := 'wait';
            RETURN;
        WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
            failed_at := fieldcrypt_internal.reencrypt_position()::jsonb;
            -- Only the system ends the run of all tables, not an owner's code that says it is the system.
            IF (code IN ('KF008', 'KF009', 'KF010', 'KF012', 'KF013', 'XX000') OR left(code, 2) IN ('53', '57', '58'))
               AND NOT (failed_at ->> 'in_owners_code')::boolean THEN
                RAISE;
            ELSIF failed_at ->> 'block' IS NULL OR piece.failures_in_a_row >= 100 THEN
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
    IF result ->> 'next_block' IS NULL THEN
        UPDATE fieldcrypt_internal.reencryptions AS r
           SET rows_seen = r.rows_seen + piece.rows_seen, rows_moved = r.rows_moved + piece.rows_moved,
               bytes_moved = r.bytes_moved + piece.bytes_moved, rows_failed = r.rows_failed + piece.rows_failed,
               needs_pass = r.needs_pass OR piece.rows_moved > 0 OR (result ->> 'changed')::bigint > 0,
               updated_at = clock_timestamp(), last_run = reencrypt_step.run
         WHERE r.relation = piece.relation;
        DELETE FROM fieldcrypt_internal.reencryption_chunks AS c WHERE c.chunk = piece.chunk;
    ELSE
        UPDATE fieldcrypt_internal.reencryption_chunks AS c
           SET next_block = piece.next_block, next_offset = piece.next_offset,
               rows_seen = piece.rows_seen, rows_moved = piece.rows_moved, bytes_moved = piece.bytes_moved,
               rows_failed = piece.rows_failed, failures_in_a_row = piece.failures_in_a_row,
               updated_at = clock_timestamp()
         WHERE c.chunk = piece.chunk;
        IF (result ->> 'changed')::bigint > 0 THEN
            UPDATE fieldcrypt_internal.reencryptions AS r SET needs_pass = true WHERE r.relation = piece.relation AND NOT r.needs_pass;
        END IF;
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.reencrypt_step(integer, oid[], bigint) IS
    'one batch of re-encryption, or what leads to the next; a table that can''t go on is marked, not raised';

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

CREATE FUNCTION fieldcrypt_internal.reencrypt_end(
        run integer, relations oid[], moved bigint,
        OUT done bigint, OUT failed_tables text, OUT failed_rows bigint, OUT unfinished text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE fieldcrypt_internal.reencryption_chunks AS c SET run = NULL WHERE c.run = reencrypt_end.run;
    SELECT count(*) FILTER (WHERE r.state = 'done'),
           string_agg(format('%s: %s (%s)', r.table_name, r.error, r.error_code), '; ' ORDER BY r.table_name)
               FILTER (WHERE r.state = 'failed'),
           coalesce(sum(r.rows_failed), 0)::bigint,
           -- What another run has in hand is not left: that run goes on with the table.
           string_agg(r.table_name, ', ' ORDER BY r.table_name) FILTER (WHERE r.state = 'in_progress' AND NOT EXISTS (
               SELECT FROM fieldcrypt_internal.live_runs() AS l
                WHERE l.run <> reencrypt_end.run
                  AND (l.run = r.last_run
                       OR l.run IN (SELECT c.run FROM fieldcrypt_internal.reencryption_chunks AS c WHERE c.relation = r.relation))))
      INTO done, failed_tables, failed_rows, unfinished
      FROM fieldcrypt_internal.reencryptions AS r
     WHERE r.relation = ANY (relations);
    PERFORM fieldcrypt_internal.record_event(
        CASE WHEN failed_tables IS NULL AND failed_rows = 0 AND unfinished IS NULL
             THEN 'reencryption_finished' ELSE 'reencryption_incomplete' END,
        NULL, NULL,
        format('run %s: %s rows re-encrypted, %s tables done, %s rows could not be re-encrypted%s%s', run, moved, done,
               failed_rows, '; failed: ' || failed_tables, '; unfinished: ' || unfinished), NULL);
    PERFORM fieldcrypt_internal.release_run();
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.reencrypt_end(integer, oid[], bigint) IS 'ends a run of re-encryption and sums it up';

CREATE PROCEDURE fieldcrypt.reencrypt(
        relation regclass DEFAULT NULL, batch_size integer DEFAULT 1000,
        rows_per_second integer DEFAULT 1000, bytes_per_second bigint DEFAULT 0,
        pause interval DEFAULT '0', wait_for_locks interval DEFAULT '1 minute')
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    run pg_catalog.int4;
    relations pg_catalog.oid[];
    step pg_catalog.record;
    summary pg_catalog.record;
    moved pg_catalog.int8 := 0;
    due pg_catalog.timestamptz;
    now_is pg_catalog.timestamptz;
    idle_since pg_catalog.timestamptz;
    told pg_catalog.timestamptz;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF batch_size IS NULL OR rows_per_second IS NULL OR bytes_per_second IS NULL OR pause IS NULL OR wait_for_locks IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'no limit of reencrypt may be NULL',
            HINT = 'Leave the argument out for its default; 0 rows or bytes per second is no limit.';
    END IF;
    IF batch_size OPERATOR(pg_catalog.<) 1 OR batch_size OPERATOR(pg_catalog.>) 100000
       OR rows_per_second OPERATOR(pg_catalog.<) 0 OR bytes_per_second OPERATOR(pg_catalog.<) 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'batch_size is 1 to 100000, and a rate is not negative',
            HINT = 'Writers wait at most for one batch: 1000 rows take some milliseconds.';
    END IF;
    SELECT b.run, b.relations INTO run, relations FROM fieldcrypt_internal.reencrypt_begin(relation) AS b;
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    due := pg_catalog.clock_timestamp();
    told := due;
    LOOP
        -- These too last for one transaction only. The run is nobody's tenant.
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true),
                pg_catalog.set_config('fieldcrypt.tenant', '', true);
        SELECT s.outcome, s.moved, s.bytes INTO step
          FROM fieldcrypt_internal.reencrypt_step(run, relations, batch_size) AS s;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        EXIT WHEN step.outcome OPERATOR(pg_catalog.=) 'over';
        now_is := pg_catalog.clock_timestamp();
        moved := moved OPERATOR(pg_catalog.+) step.moved;
        IF step.moved OPERATOR(pg_catalog.>) 0 OR step.outcome OPERATOR(pg_catalog.=) ANY ('{claimed,advanced}'::pg_catalog.text[]) THEN
            idle_since := NULL;
        ELSIF step.outcome OPERATOR(pg_catalog.=) ANY ('{wait,returned}'::pg_catalog.text[]) THEN
            -- Only locked rows are left.
            idle_since := COALESCE(idle_since, now_is);
            EXIT WHEN now_is OPERATOR(pg_catalog.-) idle_since OPERATOR(pg_catalog.>) wait_for_locks;
        END IF;
        IF step.outcome OPERATOR(pg_catalog.=) ANY ('{wait,others}'::pg_catalog.text[]) THEN
            PERFORM pg_catalog.pg_sleep(0.1);
        ELSIF step.moved OPERATOR(pg_catalog.>) 0 THEN
            due := GREATEST(due, now_is OPERATOR(pg_catalog.-) '1 second'::pg_catalog.interval);
            IF rows_per_second OPERATOR(pg_catalog.>) 0 THEN
                due := due OPERATOR(pg_catalog.+) ('1 second'::pg_catalog.interval OPERATOR(pg_catalog.*)
                    (step.moved::pg_catalog.float8 OPERATOR(pg_catalog./) rows_per_second::pg_catalog.float8));
            END IF;
            IF bytes_per_second OPERATOR(pg_catalog.>) 0 THEN
                due := GREATEST(due, now_is OPERATOR(pg_catalog.+) ('1 second'::pg_catalog.interval OPERATOR(pg_catalog.*)
                    (step.bytes::pg_catalog.float8 OPERATOR(pg_catalog./) bytes_per_second::pg_catalog.float8)));
            END IF;
            due := GREATEST(due, now_is OPERATOR(pg_catalog.+) pause);
            IF due OPERATOR(pg_catalog.>) now_is THEN
                PERFORM pg_catalog.pg_sleep(EXTRACT(epoch FROM due OPERATOR(pg_catalog.-) now_is)::pg_catalog.float8);
            END IF;
            IF now_is OPERATOR(pg_catalog.-) told OPERATOR(pg_catalog.>) '10 seconds'::pg_catalog.interval THEN
                told := now_is;
                RAISE NOTICE 'reencrypt: % rows so far (see fieldcrypt.reencryption_progress)', moved;
            END IF;
        END IF;
    END LOOP;
    SELECT e.done, e.failed_tables, e.failed_rows, e.unfinished INTO summary
      FROM fieldcrypt_internal.reencrypt_end(run, relations, moved) AS e;
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    IF summary.failed_tables IS NOT NULL THEN
        RAISE WARNING USING ERRCODE = 'KF025',
            MESSAGE = pg_catalog.format('could not be re-encrypted to the end: %s', summary.failed_tables),
            HINT = 'See fieldcrypt.reencryption_progress and fieldcrypt.reencryption_failures; mend it and CALL fieldcrypt.reencrypt() again.';
    END IF;
    IF summary.failed_rows OPERATOR(pg_catalog.>) 0 THEN
        RAISE WARNING USING ERRCODE = 'KF025',
            MESSAGE = pg_catalog.format('%s rows have values that could not be re-encrypted', summary.failed_rows),
            HINT = 'See fieldcrypt.reencryption_failures. Values that are bound to a context need fieldcrypt.set_column_context().';
    END IF;
    IF summary.unfinished IS NOT NULL THEN
        RAISE WARNING USING ERRCODE = 'KF025',
            MESSAGE = pg_catalog.format('rows locked by other sessions were left: %s', summary.unfinished),
            HINT = 'CALL fieldcrypt.reencrypt() again: it goes on with them.';
    END IF;
    RAISE NOTICE 'reencrypt: % rows re-encrypted, % tables done, % rows could not be', moved, summary.done, summary.failed_rows;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.reencrypt(regclass, integer, integer, bigint, interval, interval) IS
    'brings the encrypted values of a table, or of all, to their tenants'' active keys: in committed batches, going on where it was interrupted, without waiting for locked rows; rows_per_second and bytes_per_second: 0 is no limit';

CREATE VIEW fieldcrypt.reencryption_progress AS
    SELECT r.table_name, r.columns,
           CASE WHEN r.state OPERATOR(pg_catalog.<>) 'in_progress' THEN r.state
                WHEN w.pids IS NULL THEN 'interrupted' ELSE 'running' END AS state,
           r.pass, r.only_compromised,
           GREATEST(r.rows_estimated, s.rows_seen) AS rows_total, s.rows_seen AS rows_done, s.rows_moved, s.rows_failed, s.bytes_moved,
           CASE WHEN w.pids IS NOT NULL THEN pg_catalog.round((s.rows_seen OPERATOR(pg_catalog.-) r.rows_at_resume)::pg_catalog.numeric
               OPERATOR(pg_catalog./) GREATEST(EXTRACT(epoch FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) r.resumed_at), 0.001), 1) END AS rows_per_second,
           CASE WHEN w.pids IS NOT NULL AND s.share OPERATOR(pg_catalog.>) 0 THEN pg_catalog.date_trunc('second', pg_catalog.clock_timestamp()
               OPERATOR(pg_catalog.+) ((pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) r.resumed_at)
               OPERATOR(pg_catalog.*) ((1 OPERATOR(pg_catalog.-) s.share) OPERATOR(pg_catalog./) s.share)::pg_catalog.float8)) END AS estimated_end,
           r.started_at, GREATEST(r.updated_at, s.updated_at) AS updated_at, r.finished_at, w.pids, r.error_code, r.error
      FROM fieldcrypt_internal.reencryptions AS r
      JOIN pg_catalog.pg_class AS t ON t.oid OPERATOR(pg_catalog.=) r.relation
      LEFT JOIN LATERAL (
        SELECT r.rows_seen OPERATOR(pg_catalog.+) COALESCE(pg_catalog.sum(c.rows_seen), 0)::pg_catalog.int8 AS rows_seen,
               r.rows_moved OPERATOR(pg_catalog.+) COALESCE(pg_catalog.sum(c.rows_moved), 0)::pg_catalog.int8 AS rows_moved,
               r.bytes_moved OPERATOR(pg_catalog.+) COALESCE(pg_catalog.sum(c.bytes_moved), 0)::pg_catalog.int8 AS bytes_moved,
               r.rows_failed OPERATOR(pg_catalog.+) COALESCE(pg_catalog.sum(c.rows_failed), 0)::pg_catalog.int8 AS rows_failed,
               pg_catalog.max(c.updated_at) AS updated_at,
               (r.next_block OPERATOR(pg_catalog.-) COALESCE(pg_catalog.sum(c.end_block OPERATOR(pg_catalog.-) c.next_block), 0))
                   OPERATOR(pg_catalog./) NULLIF(r.end_block, 0)::pg_catalog.numeric AS share
          FROM fieldcrypt_internal.reencryption_chunks AS c WHERE c.relation OPERATOR(pg_catalog.=) r.relation
      ) AS s ON true
      LEFT JOIN LATERAL (
        SELECT pg_catalog.array_agg(DISTINCT l.pid) AS pids
          FROM fieldcrypt_internal.live_runs() AS l
         WHERE l.run OPERATOR(pg_catalog.=) r.last_run
            OR l.run IN (SELECT c.run FROM fieldcrypt_internal.reencryption_chunks AS c WHERE c.relation OPERATOR(pg_catalog.=) r.relation)
      ) AS w ON r.state OPERATOR(pg_catalog.=) 'in_progress'
     ORDER BY r.table_name;
COMMENT ON VIEW fieldcrypt.reencryption_progress IS
    'how far each table is re-encrypted: state running, interrupted, done or failed; rows of the pass, total, done and failed; which processes are at it';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.table_name IS 'the table, qualified';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.columns IS 'its columns that are re-encrypted';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.state IS 'running, interrupted (the next reencrypt goes on), done or failed';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.pass IS 'number of the pass over the table: another one follows until one finds nothing to move';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.only_compromised IS 'whether the pass is for values on compromised keys, which go first';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.rows_total IS 'rows of the table, an estimate';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.rows_done IS 'rows that the pass has looked at';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.rows_moved IS 'rows re-encrypted, of all passes';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.rows_failed IS 'rows of the pass with a value that could not be re-encrypted: see reencryption_failures';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.bytes_moved IS 'bytes of the values re-encrypted, of all passes';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.rows_per_second IS 'rows looked at a second, while it runs';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.estimated_end IS 'when the pass will end at that rate';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.started_at IS 'when it began';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.updated_at IS 'when a batch last ended';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.finished_at IS 'when it was done or failed';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.pids IS 'process ids of the sessions that are at it';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.error_code IS 'SQLSTATE of what ended it';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.error IS 'message of what ended it';

-- The procedure that re-encrypts, and the view that shows how far it is. The procedure loops and commits, with its
-- caller's rights; each step does its work with the owner's.

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
    PERFORM fieldcrypt_internal.refuse_unless_committable();
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
        SELECT s.outcome, s.moved, s.bytes, s.error_code, s.message, s.hint INTO step
          FROM fieldcrypt_internal.reencrypt_step(run, relations, batch_size) AS s;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        IF step.outcome OPERATOR(pg_catalog.=) 'failed' THEN
            RAISE EXCEPTION USING ERRCODE = step.error_code, MESSAGE = step.message, HINT = step.hint;
        END IF;
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
    SELECT e.done, e.failed_tables, e.failed_rows, e.unfinished, e.unbound INTO summary
      FROM fieldcrypt_internal.reencrypt_end(run) AS e;
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    IF summary.failed_tables IS NOT NULL THEN
        RAISE WARNING USING ERRCODE = 'KF025',
            MESSAGE = pg_catalog.format('could not be re-encrypted to the end: %s', summary.failed_tables),
            HINT = 'See fieldcrypt.reencryption_progress and fieldcrypt.reencryption_failures; mend it and CALL fieldcrypt.reencrypt() again. (KF025, see docs/errors.md)';
    END IF;
    IF summary.failed_rows OPERATOR(pg_catalog.>) 0 THEN
        RAISE WARNING USING ERRCODE = 'KF025',
            MESSAGE = pg_catalog.format('%s rows have values that could not be re-encrypted', summary.failed_rows),
            HINT = CASE WHEN summary.unbound IS NULL THEN 'See fieldcrypt.reencryption_failures: which rows, and why. (KF025, see docs/errors.md)'
                ELSE pg_catalog.format('See fieldcrypt.reencryption_failures. No context is set for %s: fieldcrypt.set_column_context() says what values are bound to. (KF025, see docs/errors.md)', summary.unbound) END;
    END IF;
    IF summary.unfinished IS NOT NULL THEN
        RAISE WARNING USING ERRCODE = 'KF025',
            MESSAGE = pg_catalog.format('rows locked by other sessions were left: %s', summary.unfinished),
            HINT = 'CALL fieldcrypt.reencrypt() again: it goes on with them. (KF025, see docs/errors.md)';
    END IF;
    RAISE NOTICE 'reencrypt: % rows re-encrypted, % tables done, % rows could not be', moved, summary.done, summary.failed_rows;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.reencrypt(regclass, integer, integer, bigint, interval, interval) IS
    'brings the encrypted values of a table, or of all, to their tenants'' active keys: in committed batches, going on where it was interrupted, without waiting for locked rows; rows_per_second and bytes_per_second: 0 is no limit';

CREATE VIEW fieldcrypt.reencryption_progress AS
    SELECT r.table_name, r.columns,
           CASE WHEN r.state OPERATOR(pg_catalog.=) 'done' AND s.rows_failed OPERATOR(pg_catalog.>) 0 THEN 'incomplete'
                WHEN r.state OPERATOR(pg_catalog.<>) 'in_progress' THEN r.state
                WHEN w.pids IS NULL THEN 'interrupted' ELSE 'running' END AS state,
           r.pass, r.only_compromised,
           -- A table that was never analysed is judged by what was read of its blocks.
           GREATEST(r.rows_estimated, s.rows_seen,
               CASE WHEN r.rows_estimated OPERATOR(pg_catalog.=) 0 AND s.share OPERATOR(pg_catalog.>) 0
                    THEN pg_catalog.round(s.rows_seen::pg_catalog.numeric OPERATOR(pg_catalog./) s.share)::pg_catalog.int8 END) AS rows_total,
           CASE WHEN r.state OPERATOR(pg_catalog.=) 'done' THEN 100
                ELSE pg_catalog.round(100 OPERATOR(pg_catalog.*) COALESCE(s.share, 0), 1) END AS percent,
           s.rows_seen AS rows_done, s.rows_moved, s.rows_failed, s.bytes_moved,
           CASE WHEN w.pids IS NOT NULL THEN pg_catalog.round((s.rows_seen OPERATOR(pg_catalog.-) r.rows_at_resume)::pg_catalog.numeric
               OPERATOR(pg_catalog./) GREATEST(EXTRACT(epoch FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) r.resumed_at), 0.001), 1) END AS rows_per_second,
           s.remaining, pg_catalog.date_trunc('second', pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) s.remaining) AS estimated_end,
           r.started_at, GREATEST(r.updated_at, s.updated_at) AS updated_at, r.finished_at, w.pids, r.error_code, r.error
      FROM fieldcrypt_internal.reencryptions AS r
      LEFT JOIN LATERAL (
        SELECT pg_catalog.array_agg(DISTINCT l.pid) AS pids
          FROM fieldcrypt_internal.live_runs() AS l
         WHERE l.run OPERATOR(pg_catalog.=) r.last_run
            OR l.run IN (SELECT c.run FROM fieldcrypt_internal.reencryption_chunks AS c WHERE c.relation OPERATOR(pg_catalog.=) r.relation)
      ) AS w ON r.state OPERATOR(pg_catalog.=) 'in_progress'
      LEFT JOIN LATERAL (
        SELECT c.*,
               -- At the rate since the run began or went on: what was done before took no time of it.
               CASE WHEN w.pids IS NOT NULL AND c.share OPERATOR(pg_catalog.>) 0 AND c.rows_seen OPERATOR(pg_catalog.>) r.rows_at_resume
                    THEN pg_catalog.date_trunc('second', (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) r.resumed_at)
                        OPERATOR(pg_catalog.*) ((1 OPERATOR(pg_catalog.-) c.share) OPERATOR(pg_catalog.*) c.rows_seen::pg_catalog.numeric
                            OPERATOR(pg_catalog./) (c.share OPERATOR(pg_catalog.*) (c.rows_seen OPERATOR(pg_catalog.-) r.rows_at_resume)))::pg_catalog.float8)
                    END AS remaining
          FROM (
            SELECT r.rows_seen OPERATOR(pg_catalog.+) COALESCE(pg_catalog.sum(c.rows_seen), 0)::pg_catalog.int8 AS rows_seen,
                   r.rows_moved OPERATOR(pg_catalog.+) COALESCE(pg_catalog.sum(c.rows_moved), 0)::pg_catalog.int8 AS rows_moved,
                   r.bytes_moved OPERATOR(pg_catalog.+) COALESCE(pg_catalog.sum(c.bytes_moved), 0)::pg_catalog.int8 AS bytes_moved,
                   r.rows_failed OPERATOR(pg_catalog.+) COALESCE(pg_catalog.sum(c.rows_failed), 0)::pg_catalog.int8 AS rows_failed,
                   pg_catalog.max(c.updated_at) AS updated_at,
                   (r.next_block OPERATOR(pg_catalog.-) COALESCE(pg_catalog.sum(c.end_block OPERATOR(pg_catalog.-) c.next_block), 0))
                       OPERATOR(pg_catalog./) NULLIF(r.end_block, 0)::pg_catalog.numeric AS share
              FROM fieldcrypt_internal.reencryption_chunks AS c WHERE c.relation OPERATOR(pg_catalog.=) r.relation
          ) AS c
      ) AS s ON true
     -- Of tables that are there, shards of Citus, too, which it takes out of pg_class.
     WHERE pg_catalog.pg_relation_filenode(r.relation) IS NOT NULL
     ORDER BY r.table_name;
COMMENT ON VIEW fieldcrypt.reencryption_progress IS
    'how far each table is re-encrypted: state running, interrupted, done, incomplete or failed; rows of the pass, total, done and failed; which processes are at it';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.table_name IS 'the table, qualified';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.columns IS 'its columns that are re-encrypted';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.state IS 'running, interrupted (the next reencrypt goes on), done, incomplete (rows_failed rows stay on their keys) or failed';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.pass IS 'number of the pass over the table: another one follows until one finds nothing to move';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.only_compromised IS 'whether the pass is for values on compromised keys, which go first';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.rows_total IS 'rows of the table, an estimate';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.percent IS 'how much of the pass is done, by blocks';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.rows_done IS 'rows that the pass has looked at';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.rows_moved IS 'rows re-encrypted, of all passes';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.rows_failed IS 'rows of the pass with a value that could not be re-encrypted: see reencryption_failures';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.bytes_moved IS 'bytes of the values re-encrypted, of all passes';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.rows_per_second IS 'rows looked at a second, while it runs';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.remaining IS 'how long the pass will take still, at the rate so far';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.estimated_end IS 'when it will end then';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.started_at IS 'when it began';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.updated_at IS 'when a batch last ended';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.finished_at IS 'when it was done or failed';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.pids IS 'process ids of the sessions that are at it';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.error_code IS 'SQLSTATE of what ended or interrupted it';
COMMENT ON COLUMN fieldcrypt.reencryption_progress.error IS 'message of what ended or interrupted it';

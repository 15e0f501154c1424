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
    was_extended boolean NOT NULL DEFAULT false,
    tally jsonb NOT NULL DEFAULT '{}',
    columns_left jsonb NOT NULL DEFAULT '{}'
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
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.error_code IS 'SQLSTATE of what ended or interrupted it';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.error IS 'message of what ended or interrupted it';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.started_at IS 'when it began';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.resumed_at IS 'when the run or the pass began from which the rate is counted';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.rows_at_resume IS 'rows_seen at that time';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.updated_at IS 'when a chunk was last finished';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.finished_at IS 'when it was done or failed';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.file_node IS 'the file that the pass began over: a rewrite (VACUUM FULL) puts rows where the pass has been';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.was_extended IS 'whether the pass was made longer because the table had grown, which is done once';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.tally IS 'how many values opened without a context, and how many of the pass did not, by column';
COMMENT ON COLUMN fieldcrypt_internal.reencryptions.columns_left IS 'columns that are left alone since no context is set for them and nearly all of their values need one: what is said of each';

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
    tally jsonb NOT NULL DEFAULT '{}',
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
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.tally IS 'as in reencryptions';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_chunks.updated_at IS 'when its last batch ended';

-- What runs have done, counted by their steps: whoever calls one by hand can't tell the log of another number.
CREATE TABLE fieldcrypt_internal.reencryption_runs (
    run integer PRIMARY KEY,
    relations oid[] NOT NULL,
    rows_moved bigint NOT NULL DEFAULT 0
);
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt_internal.reencryption_runs
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
COMMENT ON TABLE fieldcrypt_internal.reencryption_runs IS 'runs of re-encryption that have not ended; whether one is under way tells live_runs()';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_runs.run IS 'its number';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_runs.relations IS 'the tables that it is over';
COMMENT ON COLUMN fieldcrypt_internal.reencryption_runs.rows_moved IS 'rows that its batches have re-encrypted';

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

-- What seals the audit log: origins, signing keys, checkpoints, and what retention has taken away. The
-- tree, the leaves and the order of it all are made in src/audit/seal.rs; docs/audit-format.md says how.
--
-- Ids are those of the audit log: a restored database deals out higher ones than it receives, so that
-- what it has begun before the restore stands beside it.

CREATE TABLE fieldcrypt.audit_origins (
    id bigint PRIMARY KEY,
    log_id bytea NOT NULL UNIQUE CHECK (pg_catalog.octet_length(log_id) OPERATOR(pg_catalog.=) 16),
    at timestamptz NOT NULL,
    system_identifier bigint NOT NULL,
    database_oid bigint NOT NULL,
    timeline bigint NOT NULL,
    old_log_id bytea,
    old_size bigint NOT NULL CHECK (old_size OPERATOR(pg_catalog.>=) 0),
    old_root bytea NOT NULL CHECK (pg_catalog.octet_length(old_root) OPERATOR(pg_catalog.=) 32),
    cause text COLLATE "C" NOT NULL,
    acknowledged_at timestamptz,
    acknowledged_by text COLLATE "C",
    acknowledged_reason text
);
COMMENT ON TABLE fieldcrypt.audit_origins IS 'where the audit log was sealed: the last row counts. After a restore, a copy or a promotion the log goes on under a new name, and names what it goes on from';
COMMENT ON COLUMN fieldcrypt.audit_origins.id IS 'in the order of writing; shares its numbers with audit_log';
COMMENT ON COLUMN fieldcrypt.audit_origins.log_id IS 'random name of the log from here on; its checkpoints say pg_fieldcrypt/ and this in hex';
COMMENT ON COLUMN fieldcrypt.audit_origins.at IS 'when it began';
COMMENT ON COLUMN fieldcrypt.audit_origins.system_identifier IS 'the cluster';
COMMENT ON COLUMN fieldcrypt.audit_origins.database_oid IS 'the database';
COMMENT ON COLUMN fieldcrypt.audit_origins.timeline IS 'the timeline: a new one begins with a promotion and a point-in-time recovery';
COMMENT ON COLUMN fieldcrypt.audit_origins.old_log_id IS 'the name that the log had before; NULL for the first';
COMMENT ON COLUMN fieldcrypt.audit_origins.old_size IS 'number of leaves that it goes on from';
COMMENT ON COLUMN fieldcrypt.audit_origins.old_root IS 'root of the Merkle tree over these';
COMMENT ON COLUMN fieldcrypt.audit_origins.cause IS 'why it began: the first, another cluster, another database, another timeline, or an acknowledgement';
COMMENT ON COLUMN fieldcrypt.audit_origins.acknowledged_at IS 'when somebody said why the log goes on elsewhere; NULL for the first, and for one that verify_audit_log reports as a fork';
COMMENT ON COLUMN fieldcrypt.audit_origins.acknowledged_by IS 'session_user: who said so';
COMMENT ON COLUMN fieldcrypt.audit_origins.acknowledged_reason IS 'what was said';

CREATE TABLE fieldcrypt.audit_signers (
    id bigint PRIMARY KEY,
    origin_id bigint NOT NULL,
    public_key text COLLATE "C" NOT NULL,
    introduced_at timestamptz NOT NULL,
    introduced_by text COLLATE "C" NOT NULL CHECK (introduced_by IN ('successor', 'mac', 'itself')),
    from_size bigint NOT NULL,
    is_clean boolean NOT NULL,
    proof text COLLATE "C" NOT NULL
);
COMMENT ON TABLE fieldcrypt.audit_signers IS 'the public keys that sign checkpoints of the audit log';
COMMENT ON COLUMN fieldcrypt.audit_signers.id IS 'in the order of writing; shares its numbers with audit_log';
COMMENT ON COLUMN fieldcrypt.audit_signers.origin_id IS 'the origin whose checkpoints it signs';
COMMENT ON COLUMN fieldcrypt.audit_signers.public_key IS 'the key, in the text form of C2SP signed-note';
COMMENT ON COLUMN fieldcrypt.audit_signers.introduced_at IS 'when it was introduced';
COMMENT ON COLUMN fieldcrypt.audit_signers.introduced_by IS 'who vouches for it: successor (the key before it signed it), mac (a key of purpose audit authenticates it), itself (nobody: there was no master key)';
COMMENT ON COLUMN fieldcrypt.audit_signers.from_size IS 'number of leaves when it was introduced';
COMMENT ON COLUMN fieldcrypt.audit_signers.is_clean IS 'whether everything that had happened before was sealed by the key before it';
COMMENT ON COLUMN fieldcrypt.audit_signers.proof IS 'the statement that introduces it, signed or authenticated';

CREATE TABLE fieldcrypt.audit_checkpoints (
    id bigint PRIMARY KEY,
    size bigint NOT NULL CHECK (size OPERATOR(pg_catalog.>=) 0),
    at timestamptz NOT NULL,
    root bytea NOT NULL CHECK (pg_catalog.octet_length(root) OPERATOR(pg_catalog.=) 32),
    frontier bytea NOT NULL,
    signer_id bigint NOT NULL,
    origin_id bigint NOT NULL,
    is_final boolean NOT NULL,
    note text COLLATE "C" NOT NULL
);
CREATE INDEX audit_checkpoints_size ON fieldcrypt.audit_checkpoints (size, id);
COMMENT ON TABLE fieldcrypt.audit_checkpoints IS 'signed statements of the size and root of the audit log; keep copies outside of this server';
COMMENT ON COLUMN fieldcrypt.audit_checkpoints.id IS 'in the order of writing; shares its numbers with audit_log';
COMMENT ON COLUMN fieldcrypt.audit_checkpoints.size IS 'number of leaves';
COMMENT ON COLUMN fieldcrypt.audit_checkpoints.at IS 'when it was signed';
COMMENT ON COLUMN fieldcrypt.audit_checkpoints.root IS 'root of the Merkle tree over these';
COMMENT ON COLUMN fieldcrypt.audit_checkpoints.frontier IS 'the tree''s right edge, from which it is gone on with';
COMMENT ON COLUMN fieldcrypt.audit_checkpoints.signer_id IS 'the key that signed it';
COMMENT ON COLUMN fieldcrypt.audit_checkpoints.origin_id IS 'the origin of the log';
COMMENT ON COLUMN fieldcrypt.audit_checkpoints.is_final IS 'whether everything that had happened was sealed';
COMMENT ON COLUMN fieldcrypt.audit_checkpoints.note IS 'the checkpoint with its signature: C2SP tlog-checkpoint. Where the database''s encoding has no em dash, \u2014 stands for it';

CREATE TABLE fieldcrypt.audit_retirements (
    id bigint PRIMARY KEY,
    at timestamptz NOT NULL,
    partition_name text COLLATE "C" NOT NULL,
    row_count bigint NOT NULL,
    size bigint NOT NULL,
    root bytea NOT NULL CHECK (pg_catalog.octet_length(root) OPERATOR(pg_catalog.=) 32),
    frontier bytea NOT NULL
);
COMMENT ON TABLE fieldcrypt.audit_retirements IS 'partitions of the audit log that apply_audit_retention has emptied, and the tree that the remaining rows go on from';
COMMENT ON COLUMN fieldcrypt.audit_retirements.id IS 'in the order of writing; shares its numbers with audit_log';
COMMENT ON COLUMN fieldcrypt.audit_retirements.at IS 'when it was emptied';
COMMENT ON COLUMN fieldcrypt.audit_retirements.partition_name IS 'which partition';
COMMENT ON COLUMN fieldcrypt.audit_retirements.row_count IS 'how many rows it had';
COMMENT ON COLUMN fieldcrypt.audit_retirements.size IS 'leaves below this number are retired; rows of other partitions among them are no longer part of a proof';
COMMENT ON COLUMN fieldcrypt.audit_retirements.root IS 'root of the Merkle tree over the retired leaves';
COMMENT ON COLUMN fieldcrypt.audit_retirements.frontier IS 'that tree''s right edge, from which verification goes on';

SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.audit_origins', '');
SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.audit_signers', '');
SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.audit_checkpoints', '');
SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.audit_retirements', '');

-- Whether somebody seems to be restoring a dump into this database, whose rows bring leaves with them.
CREATE FUNCTION fieldcrypt_internal.is_being_restored() RETURNS boolean
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $$
    SELECT EXISTS (SELECT FROM pg_stat_activity AS a
                    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
                      AND (a.application_name = 'pg_restore' OR a.state <> 'idle' AND a.query ~ '^\s*COPY fieldcrypt(_internal)?\.'))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.is_being_restored() IS 'whether a dump seems to be coming in; granted to nobody';

CREATE FUNCTION fieldcrypt.acknowledge_audit_fork(reason text) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_acknowledge_audit_fork';
COMMENT ON FUNCTION fieldcrypt.acknowledge_audit_fork(text) IS
    'says why the audit log goes on elsewhere than where it began (restore, copy, promotion), and gives the number of origins that this explains. Where none is open it begins a new origin, which lets a log be signed again whose tables were changed';

CREATE FUNCTION fieldcrypt.acknowledge_audit_findings(reason text) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_acknowledge_audit_findings';
COMMENT ON FUNCTION fieldcrypt.acknowledge_audit_findings(text) IS
    'says why verify_audit_log finds rows without a MAC, gaps, unclean handovers and keys that nobody introduced (a missing key file, a crash, a full queue), up to the last checkpoint; gives their number. It is recorded, they are told as acknowledged, and nothing else is';

-- Retention. The procedure loops and commits; what it does is done by steps with the owner's rights.

CREATE FUNCTION fieldcrypt_internal.audit_retention() RETURNS text
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'fieldcrypt_audit_retention';
COMMENT ON FUNCTION fieldcrypt_internal.audit_retention() IS
    'the setting fieldcrypt.audit_retention (which itself could be shown wrong before the library is loaded)';
CREATE FUNCTION fieldcrypt_internal.retire_audit_partition(partition text) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_retire_audit_partition';
COMMENT ON FUNCTION fieldcrypt_internal.retire_audit_partition(text) IS
    'empties a partition of the audit log, if a checkpoint keeps what follows provable; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.lock_audit_partition(partition text, OUT row_count bigint, OUT unsealed bigint, OUT size bigint)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('LOCK TABLE fieldcrypt_internal.%I IN ACCESS EXCLUSIVE MODE', partition);
    EXECUTE format('SELECT count(*), count(*) FILTER (WHERE l.leaf IS NULL), coalesce(max(l.leaf) + 1, 0) FROM fieldcrypt_internal.%I AS l', partition)
       INTO row_count, unsealed, size;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.lock_audit_partition(text) IS
    'how many rows a partition of the audit log has, how many of them have no leaf, and the number behind the last leaf; locks it; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.empty_audit_partition(partition text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- It is locked now: what came since it was looked at is seen.
    IF partition = 'audit_log_default'
       AND EXISTS (SELECT FROM fieldcrypt_internal.audit_log_default AS l WHERE l.at > now() - fieldcrypt_internal.audit_retention()::interval) THEN
        RAISE EXCEPTION USING ERRCODE = 'KF028', MESSAGE = 'audit_log_default has got rows that are not old enough',
            HINT = 'CALL fieldcrypt.apply_audit_retention() again, later. (KF028, see docs/errors.md)';
    END IF;
    -- Not TRUNCATE, which takes the rows also from a snapshot that is older: a dump would have neither them nor what
    -- says that they were retired.
    EXECUTE format('DELETE FROM fieldcrypt_internal.%I', partition);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.empty_audit_partition(text) IS
    'empties a partition of the audit log; granted to nobody, passes only from the library';

CREATE FUNCTION fieldcrypt_internal.next_audit_partition(after_partition text) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET standard_conforming_strings = on SET timezone = 'UTC' SET intervalstyle = 'postgres'
AS $$
DECLARE
    setting text := fieldcrypt_internal.audit_retention();
    retention interval;
    part text;
    has_rows boolean;
BEGIN
    BEGIN
        retention := setting::interval;
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    IF retention IS NULL OR now() - retention > now() - interval '1 day' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('fieldcrypt.audit_retention is "%s": it must be an interval of at least a day', setting),
            HINT = 'Usual are 6 years, the default.';
    END IF;
    FOR part IN
        SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'fieldcrypt.audit_log'::regclass
           AND c.relname > coalesce(after_partition, '')
           AND CASE WHEN c.relname ~ '^audit_log_\d{4}$'
                    THEN make_timestamptz(right(c.relname, 4)::integer + 1, 1, 1, 0, 0, 0, 'UTC') <= now() - retention
                    ELSE c.relname = 'audit_log_default' END
         ORDER BY c.relname
    LOOP
        -- Rows of years without a partition, by a clock that was wrong: they go together, when the last is old enough.
        EXECUTE format('SELECT EXISTS (SELECT FROM fieldcrypt_internal.%I)', part)
                || CASE WHEN part = 'audit_log_default' THEN ' AND NOT EXISTS (SELECT FROM fieldcrypt_internal.audit_log_default AS l WHERE l.at > $1)' ELSE '' END
           INTO has_rows USING now() - retention;
        IF has_rows THEN
            RETURN part;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.next_audit_partition(text) IS
    'the next partition of the audit log, in the order of years, that has rows and is older than fieldcrypt.audit_retention';

CREATE FUNCTION fieldcrypt_internal.retire_audit_step(partition text) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Whoever calls it by hand retires nothing that is not due.
    IF partition IS DISTINCT FROM fieldcrypt_internal.next_audit_partition(NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'KF028', MESSAGE = 'this partition of the audit log is not the next one to be retired',
            HINT = 'CALL fieldcrypt.apply_audit_retention(). (KF028, see docs/errors.md)';
    END IF;
    RETURN fieldcrypt_internal.retire_audit_partition(partition);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.retire_audit_step(text) IS
    'empties the oldest partition of the audit log that is older than fieldcrypt.audit_retention';

CREATE PROCEDURE fieldcrypt.apply_audit_retention()
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    part pg_catalog.text;
    rows_retired pg_catalog.int8;
    partitions pg_catalog.int8 := 0;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    LOOP
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        PERFORM fieldcrypt_internal.refuse_unless_writable();
        part := fieldcrypt_internal.next_audit_partition(part);
        EXIT WHEN part IS NULL;
        rows_retired := fieldcrypt_internal.retire_audit_step(part);
        COMMIT;
        -- At once: any expression after a COMMIT takes a snapshot, and then it is too late.
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        partitions := partitions OPERATOR(pg_catalog.+) 1;
        RAISE NOTICE 'apply_audit_retention: % rows of % retired', rows_retired, part;
    END LOOP;
    RAISE NOTICE 'apply_audit_retention: % partitions retired', partitions;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.apply_audit_retention() IS
    'empties the years of the audit log that are older than fieldcrypt.audit_retention, each in its own transaction; what follows stays provable';

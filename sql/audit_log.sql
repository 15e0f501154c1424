-- The audit log: append-only, partitioned by year from the start.

CREATE FUNCTION fieldcrypt_internal.refuse_change() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_change';
CREATE FUNCTION fieldcrypt_internal.refuse_restore_over() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_restore_over';
CREATE FUNCTION fieldcrypt_internal.refuse_restore_over_log() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_restore_over_log';
CREATE FUNCTION fieldcrypt_internal.outer_role() RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_outer_role';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_change() IS 'trigger: only the extension itself changes its tables';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_restore_over() IS 'trigger: nothing is restored over existing keys';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_restore_over_log() IS 'trigger: nothing is restored over an existing log';
COMMENT ON FUNCTION fieldcrypt_internal.outer_role() IS 'the role chosen with SET ROLE, whatever SECURITY DEFINER function runs';

-- Ids start at the clock, in microseconds, and are spent more slowly than it runs. So the sequence of a
-- restored database begins above all the ids that it receives, and it needs no place in the dump: there
-- a setval that comes after a refused restore would make an existing database deal out ids again.
DO $sequence$
BEGIN
    EXECUTE pg_catalog.format('CREATE SEQUENCE fieldcrypt_internal.audit_log_id_seq AS bigint START WITH %s',
        pg_catalog.floor(EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint);
END
$sequence$;

-- Every value is computed where the event arises, in src/audit, which authenticates the row: there are no
-- defaults. The order of the columns is known to src/audit/row.rs: new ones go to the end.
-- No key on the parent: a unique index there would have to hold the partitioning column.
CREATE TABLE fieldcrypt.audit_log (
    id bigint NOT NULL,
    at timestamptz NOT NULL,
    event text COLLATE "C" NOT NULL,
    actor text NOT NULL,
    role text NOT NULL,
    client_address inet,
    application text,
    backend_pid integer NOT NULL,
    transaction_id xid8,
    tenant text COLLATE "C",
    key_id bigint,
    reason text,
    table_name text COLLATE "C",
    partition_name text COLLATE "C",
    row_key jsonb,
    old_row_key jsonb,
    changed_columns text[],
    error_code text COLLATE "C",
    value_count bigint,
    key_ids bigint[],
    mac bytea,
    mac_key_id bigint,
    leaf bigint,
    subject text,
    contexts text[]
) PARTITION BY RANGE (at);

CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON fieldcrypt.audit_log
    FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
CREATE TRIGGER refuse_restore BEFORE INSERT ON fieldcrypt.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_restore_over_log();

-- A partition is found by pg_dump only if it is registered, and it can be registered only here: so
-- the years to come are made now. What lies outside them goes into the default partition.
DO $partitions$
DECLARE
    year integer;
    part text;
BEGIN
    FOR year IN 2026 .. 2056 LOOP
        IF year < 2056 THEN
            part := pg_catalog.format('audit_log_%s', year);
            EXECUTE pg_catalog.format(
                'CREATE TABLE fieldcrypt_internal.%I PARTITION OF fieldcrypt.audit_log FOR VALUES FROM (%L) TO (%L)',
                part, year || '-01-01 00:00:00+00', year + 1 || '-01-01 00:00:00+00');
        ELSE
            part := 'audit_log_default';
            EXECUTE pg_catalog.format(
                'CREATE TABLE fieldcrypt_internal.%I PARTITION OF fieldcrypt.audit_log DEFAULT', part);
        END IF;
        EXECUTE pg_catalog.format('ALTER TABLE fieldcrypt_internal.%I ADD PRIMARY KEY (id)', part);
        EXECUTE pg_catalog.format('CREATE UNIQUE INDEX ON fieldcrypt_internal.%I (leaf) WHERE leaf IS NOT NULL', part);
        EXECUTE pg_catalog.format('CREATE INDEX ON fieldcrypt_internal.%I (id) WHERE leaf IS NULL', part);
        EXECUTE pg_catalog.format(
            'CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt_internal.%I
                FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change()', part);
        EXECUTE pg_catalog.format(
            'CREATE TRIGGER refuse_restore BEFORE INSERT ON fieldcrypt_internal.%I
                FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_restore_over_log()', part);
        EXECUTE pg_catalog.format(
            'COMMENT ON TABLE fieldcrypt_internal.%I IS %L', part, 'partition of fieldcrypt.audit_log; read that');
        PERFORM pg_catalog.pg_extension_config_dump(
            pg_catalog.format('fieldcrypt_internal.%I', part)::pg_catalog.regclass, '');
    END LOOP;
END
$partitions$;

COMMENT ON SEQUENCE fieldcrypt_internal.audit_log_id_seq IS 'ids of fieldcrypt.audit_log; gaps are rolled-back transactions';
COMMENT ON TABLE fieldcrypt.audit_log IS 'who did what with which key and which row: append-only, never a value';
COMMENT ON COLUMN fieldcrypt.audit_log.id IS 'in the order of writing; gaps are rolled-back transactions';
COMMENT ON COLUMN fieldcrypt.audit_log.at IS 'when it happened, by the clock';
COMMENT ON COLUMN fieldcrypt.audit_log.client_address IS 'where the client connected from; NULL for a local socket';
COMMENT ON COLUMN fieldcrypt.audit_log.backend_pid IS 'process id of the session';
COMMENT ON COLUMN fieldcrypt.audit_log.transaction_id IS 'transaction that did it; NULL for events that are recorded although their transaction was rolled back';
COMMENT ON COLUMN fieldcrypt.audit_log.tenant IS 'whose key, for events of keys';
COMMENT ON COLUMN fieldcrypt.audit_log.key_id IS 'which key, for events of keys';
COMMENT ON COLUMN fieldcrypt.audit_log.reason IS 'why, in the words of the call; for a refusal, the error';
COMMENT ON COLUMN fieldcrypt.audit_log.partition_name IS 'the partition that holds the row, if the table is partitioned';
COMMENT ON COLUMN fieldcrypt.audit_log.event IS 'what happened: key_created, key_rotated, key_deactivated, key_suspended, key_resumed, key_compromised, key_destruction_scheduled, key_destruction_cancelled, key_destroyed, tenant_shredded, key_refused, rotation_policy_set, rotation_policy_removed, master_key_rotation_started, master_key_rotation_finished, reencryption_started, reencryption_finished, reencryption_incomplete, column_context_set, column_protected, column_unprotected, column_encryption_started, column_encrypted, column_encryption_undone, plaintext_column_dropped, keys_exported, keys_imported, key_states_confirmed, approval_requested, approval_given, approval_used, approval_withdrawn, approval_refused, row_inserted, row_updated, row_deleted, table_truncated, table_audited, table_detached, table_unaudited, extension_updated, access_granted, access_revoked, access_snapshot, decrypt_failed, call_refused, master_key_loaded, master_key_failed, values_decrypted, audit_gap, audit_started, audit_origin_begun, audit_fork_acknowledged, audit_findings_acknowledged, audit_retired, alert_raised, alert_resolved';
COMMENT ON COLUMN fieldcrypt.audit_log.actor IS 'session_user: who logged in';
COMMENT ON COLUMN fieldcrypt.audit_log.role IS 'the role chosen with SET ROLE; the actor, if none was';
COMMENT ON COLUMN fieldcrypt.audit_log.application IS 'application_name, which the client chooses';
COMMENT ON COLUMN fieldcrypt.audit_log.table_name IS 'the table; for a partition, the table at the top';
COMMENT ON COLUMN fieldcrypt.audit_log.row_key IS 'primary key of the row, or else a unique key; NULL for a table without either';
COMMENT ON COLUMN fieldcrypt.audit_log.old_row_key IS 'the same before an UPDATE that changed it';
COMMENT ON COLUMN fieldcrypt.audit_log.error_code IS 'SQLSTATE of a failure or refusal';
COMMENT ON COLUMN fieldcrypt.audit_log.value_count IS 'how many values, or events, the row stands for';
COMMENT ON COLUMN fieldcrypt.audit_log.key_ids IS 'the keys, where there are several; of values_decrypted the first 32';
COMMENT ON COLUMN fieldcrypt.audit_log.mac IS 'HMAC of the row under a key of purpose audit; NULL: written without a master key, not authenticated';
COMMENT ON COLUMN fieldcrypt.audit_log.mac_key_id IS 'the key of that HMAC';
COMMENT ON COLUMN fieldcrypt.audit_log.leaf IS 'number of the row in the Merkle tree that seals the log; NULL until it is sealed';
COMMENT ON COLUMN fieldcrypt.audit_log.subject IS 'for whom the client said that it acted (fieldcrypt.audit_subject): a claim, which whoever may run SQL can make; actor and role are what the server knows';
COMMENT ON COLUMN fieldcrypt.audit_log.contexts IS 'what the decrypted values are bound to, with fieldcrypt.audit_decrypt_contexts; an empty one: to nothing. NULL: not recorded';
COMMENT ON COLUMN fieldcrypt.audit_log.changed_columns IS 'encrypted columns whose stored value changed';

CREATE FUNCTION fieldcrypt_internal.record_event(
        event text, tenant text, key_id bigint, reason text, table_name text) RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'fieldcrypt_record';
COMMENT ON FUNCTION fieldcrypt_internal.record_event(text, text, bigint, text, text) IS
    'writes a row of the audit log; granted to nobody, called by functions of the extension';

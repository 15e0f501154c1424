\echo Use "CREATE EXTENSION pg_fieldcrypt" to load this file. \quit

-- sql/schema.sql
-- The schemas. CREATE SCHEMA, not IF NOT EXISTS: a schema that somebody else prepared is refused.
CREATE SCHEMA fieldcrypt;
COMMENT ON SCHEMA fieldcrypt IS 'pg_fieldcrypt: field encryption with a key per tenant, rotation and an audit log';

-- What no user calls or reads by name: it would hide what users do.
CREATE SCHEMA fieldcrypt_internal;
COMMENT ON SCHEMA fieldcrypt_internal IS 'what pg_fieldcrypt is made of inside; nothing in it is to be called or read by name';

-- sql/type.sql
-- The type: what goes in and out of it is ciphertext, always.

CREATE TYPE fieldcrypt.encrypted;

CREATE FUNCTION fieldcrypt_internal.encrypted_in(cstring) RETURNS fieldcrypt.encrypted
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_encrypted_in';
CREATE FUNCTION fieldcrypt_internal.encrypted_out(fieldcrypt.encrypted) RETURNS cstring
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_encrypted_out';
CREATE FUNCTION fieldcrypt_internal.encrypted_recv(internal) RETURNS fieldcrypt.encrypted
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_encrypted_recv';
CREATE FUNCTION fieldcrypt_internal.encrypted_send(fieldcrypt.encrypted) RETURNS bytea
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteasend';

CREATE TYPE fieldcrypt.encrypted (
    INPUT = fieldcrypt_internal.encrypted_in,
    OUTPUT = fieldcrypt_internal.encrypted_out,
    RECEIVE = fieldcrypt_internal.encrypted_recv,
    SEND = fieldcrypt_internal.encrypted_send,
    INTERNALLENGTH = VARIABLE,
    ALIGNMENT = int4,
    STORAGE = external
);

-- From bytea it must parse; to bytea it is the same bytes. Both explicit.
CREATE FUNCTION fieldcrypt_internal.encrypted_from_bytea(bytea) RETURNS fieldcrypt.encrypted
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fieldcrypt_encrypted_from_bytea';
CREATE CAST (bytea AS fieldcrypt.encrypted)
    WITH FUNCTION fieldcrypt_internal.encrypted_from_bytea(bytea);
CREATE CAST (fieldcrypt.encrypted AS bytea) WITHOUT FUNCTION;

-- Two encryptions of one value differ, so the byte image alone is compared and sorted, which DISTINCT, GROUP BY, UNION,
-- windows, IS DISTINCT FROM on rows and REPLICA IDENTITY FULL need. The order means nothing. Operators of the usual names
-- would be taken for comparisons of plaintexts: operators.sql has them, and they refuse.
CREATE FUNCTION fieldcrypt_internal.encrypted_same(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS boolean
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteaeq';
CREATE FUNCTION fieldcrypt_internal.encrypted_not_same(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS boolean
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteane';
CREATE FUNCTION fieldcrypt_internal.encrypted_less(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS boolean
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'bytealt';
CREATE FUNCTION fieldcrypt_internal.encrypted_less_or_same(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS boolean
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteale';
CREATE FUNCTION fieldcrypt_internal.encrypted_more_or_same(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS boolean
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteage';
CREATE FUNCTION fieldcrypt_internal.encrypted_more(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS boolean
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteagt';
CREATE FUNCTION fieldcrypt_internal.encrypted_order(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS integer
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteacmp';
CREATE FUNCTION fieldcrypt_internal.encrypted_sort(internal) RETURNS void
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'bytea_sortsupport';
CREATE FUNCTION fieldcrypt_internal.refuse_index(oid) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_index';
CREATE FUNCTION fieldcrypt_internal.encrypted_hash(fieldcrypt.encrypted) RETURNS integer
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'hashvarlena';
CREATE FUNCTION fieldcrypt_internal.encrypted_hash_extended(fieldcrypt.encrypted, bigint) RETURNS bigint
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'hashvarlenaextended';

CREATE OPERATOR fieldcrypt.*= (
    LEFTARG = fieldcrypt.encrypted,
    RIGHTARG = fieldcrypt.encrypted,
    FUNCTION = fieldcrypt_internal.encrypted_same,
    COMMUTATOR = OPERATOR(fieldcrypt.*=),
    NEGATOR = OPERATOR(fieldcrypt.*<>),
    RESTRICT = eqsel,
    JOIN = eqjoinsel,
    HASHES,
    MERGES
);
CREATE OPERATOR fieldcrypt.*<> (
    LEFTARG = fieldcrypt.encrypted,
    RIGHTARG = fieldcrypt.encrypted,
    FUNCTION = fieldcrypt_internal.encrypted_not_same,
    COMMUTATOR = OPERATOR(fieldcrypt.*<>),
    NEGATOR = OPERATOR(fieldcrypt.*=),
    RESTRICT = neqsel,
    JOIN = neqjoinsel
);
CREATE OPERATOR fieldcrypt.*< (
    LEFTARG = fieldcrypt.encrypted,
    RIGHTARG = fieldcrypt.encrypted,
    FUNCTION = fieldcrypt_internal.encrypted_less,
    COMMUTATOR = OPERATOR(fieldcrypt.*>),
    NEGATOR = OPERATOR(fieldcrypt.*>=),
    RESTRICT = scalarltsel,
    JOIN = scalarltjoinsel
);
CREATE OPERATOR fieldcrypt.*<= (
    LEFTARG = fieldcrypt.encrypted,
    RIGHTARG = fieldcrypt.encrypted,
    FUNCTION = fieldcrypt_internal.encrypted_less_or_same,
    COMMUTATOR = OPERATOR(fieldcrypt.*>=),
    NEGATOR = OPERATOR(fieldcrypt.*>),
    RESTRICT = scalarlesel,
    JOIN = scalarlejoinsel
);
CREATE OPERATOR fieldcrypt.*>= (
    LEFTARG = fieldcrypt.encrypted,
    RIGHTARG = fieldcrypt.encrypted,
    FUNCTION = fieldcrypt_internal.encrypted_more_or_same,
    COMMUTATOR = OPERATOR(fieldcrypt.*<=),
    NEGATOR = OPERATOR(fieldcrypt.*<),
    RESTRICT = scalargesel,
    JOIN = scalargejoinsel
);
CREATE OPERATOR fieldcrypt.*> (
    LEFTARG = fieldcrypt.encrypted,
    RIGHTARG = fieldcrypt.encrypted,
    FUNCTION = fieldcrypt_internal.encrypted_more,
    COMMUTATOR = OPERATOR(fieldcrypt.*<),
    NEGATOR = OPERATOR(fieldcrypt.*<=),
    RESTRICT = scalargtsel,
    JOIN = scalargtjoinsel
);
CREATE OPERATOR CLASS fieldcrypt.encrypted_bytes DEFAULT FOR TYPE fieldcrypt.encrypted USING hash AS
    OPERATOR 1 fieldcrypt.*=,
    FUNCTION 1 fieldcrypt_internal.encrypted_hash(fieldcrypt.encrypted),
    FUNCTION 2 fieldcrypt_internal.encrypted_hash_extended(fieldcrypt.encrypted, bigint);
-- Nothing but the build of an index asks for function 4, whether equal values are the same bytes. So there it is refused: an
-- index finds no plaintext, and UNIQUE no duplicate.
CREATE OPERATOR CLASS fieldcrypt.encrypted_bytes DEFAULT FOR TYPE fieldcrypt.encrypted USING btree AS
    OPERATOR 1 fieldcrypt.*<,
    OPERATOR 2 fieldcrypt.*<=,
    OPERATOR 3 fieldcrypt.*=,
    OPERATOR 4 fieldcrypt.*>=,
    OPERATOR 5 fieldcrypt.*>,
    FUNCTION 1 fieldcrypt_internal.encrypted_order(fieldcrypt.encrypted, fieldcrypt.encrypted),
    FUNCTION 2 fieldcrypt_internal.encrypted_sort(internal),
    FUNCTION 4 fieldcrypt_internal.refuse_index(oid);

-- What the output function gives, for who wants it: the cast to text refuses.
CREATE FUNCTION fieldcrypt.ciphertext_text(value fieldcrypt.encrypted) RETURNS text
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_ciphertext_text';

COMMENT ON TYPE fieldcrypt.encrypted IS
    'an encrypted value; text form fc1:...; made by fieldcrypt.encrypt_field, read by fieldcrypt.decrypt_field';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_in(cstring) IS 'text input: fc1: and base64url; refuses anything else';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_out(fieldcrypt.encrypted) IS 'text output: fc1: and base64url';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_recv(internal) IS 'binary input: the bytes; refuses what is no encrypted value';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_send(fieldcrypt.encrypted) IS 'binary output: the bytes';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_from_bytea(bytea) IS 'cast from bytea; refuses what is no encrypted value';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_same(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'whether two values are the same bytes';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_not_same(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'whether two values are different bytes';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_hash(fieldcrypt.encrypted) IS 'hash of the bytes';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_hash_extended(fieldcrypt.encrypted, bigint) IS 'hash of the bytes, with a seed';
COMMENT ON OPERATOR fieldcrypt.*= (fieldcrypt.encrypted, fieldcrypt.encrypted) IS
    'same bytes; says nothing about plaintexts, since no two encryptions of one value are alike';
COMMENT ON OPERATOR fieldcrypt.*<> (fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'different bytes';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_less(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing: for sorts';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_less_or_same(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing: for sorts';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_more_or_same(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing: for sorts';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_more(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing: for sorts';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_order(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing: for sorts';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_sort(internal) IS 'the same, for sorts of many';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_index(oid) IS 'called when a b-tree index is built: an error that says why there is none on encrypted values';
COMMENT ON FUNCTION fieldcrypt.ciphertext_text(fieldcrypt.encrypted) IS 'the ciphertext as text: fc1:...';
COMMENT ON OPERATOR fieldcrypt.*< (fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing';
COMMENT ON OPERATOR fieldcrypt.*<= (fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing';
COMMENT ON OPERATOR fieldcrypt.*>= (fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing';
COMMENT ON OPERATOR fieldcrypt.*> (fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing';

-- sql/operators.sql
-- What is written as if a column held its plaintext: compared, searched, matched, cast to text. Without these it is an error
-- of Postgres's whose hint leads to a cast, which finds no row in silence. So each is an error that says what to write.
--
-- In pg_catalog, since operators are looked up by search_path. None is polymorphic or takes "any": such a one takes
-- comparisons of other types' away. Each takes an encrypted value on one side, and text on the other, which an untyped literal
-- or parameter becomes; two encrypted values meet in a domain, since for (encrypted, encrypted) a literal would be read as
-- ciphertext. A test compares what all types' operators mean with and without the extension.
--
-- The planner asks the functions' support function about each call, and that refuses: so the error comes with any table,
-- also an empty one, and before a row is read.

CREATE DOMAIN fieldcrypt_internal.any_encrypted AS fieldcrypt.encrypted;
COMMENT ON DOMAIN fieldcrypt_internal.any_encrypted IS 'the right side of operators of two encrypted values';

CREATE FUNCTION fieldcrypt_internal.plan_comparison(internal) RETURNS internal
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_plan_comparison';
COMMENT ON FUNCTION fieldcrypt_internal.plan_comparison(internal) IS 'what the planner asks of comparisons: an error';
CREATE FUNCTION fieldcrypt_internal.refuse_comparison_with_text(fieldcrypt.encrypted, text) RETURNS boolean
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_comparison
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_comparison_with_text';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_comparison_with_text(fieldcrypt.encrypted, text) IS 'what = and its like do: an error that says how to search';
CREATE FUNCTION fieldcrypt_internal.refuse_comparison_of_text(text, fieldcrypt.encrypted) RETURNS boolean
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_comparison
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_comparison_of_text';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_comparison_of_text(text, fieldcrypt.encrypted) IS 'what = and its like do: an error that says how to search';
CREATE FUNCTION fieldcrypt_internal.refuse_comparison(fieldcrypt.encrypted, fieldcrypt_internal.any_encrypted) RETURNS boolean
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_comparison
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_comparison';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_comparison(fieldcrypt.encrypted, fieldcrypt_internal.any_encrypted) IS 'what = and its like do: an error that says how to search';

CREATE FUNCTION fieldcrypt_internal.plan_match(internal) RETURNS internal
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_plan_match';
COMMENT ON FUNCTION fieldcrypt_internal.plan_match(internal) IS 'what the planner asks of matches: an error';
CREATE FUNCTION fieldcrypt_internal.refuse_match(fieldcrypt.encrypted, text) RETURNS boolean
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_match
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_match';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_match(fieldcrypt.encrypted, text) IS 'what LIKE and its like do: an error';

CREATE FUNCTION fieldcrypt_internal.plan_member(internal) RETURNS internal
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_plan_member';
COMMENT ON FUNCTION fieldcrypt_internal.plan_member(internal) IS 'what the planner asks of -> and ->>: an error';
CREATE FUNCTION fieldcrypt_internal.refuse_member(fieldcrypt.encrypted, text) RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_member
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_member';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_member(fieldcrypt.encrypted, text) IS 'what -> and ->> do: an error';
CREATE FUNCTION fieldcrypt_internal.refuse_element(fieldcrypt.encrypted, integer) RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_member
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_element';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_element(fieldcrypt.encrypted, integer) IS 'what -> and ->> do: an error';

CREATE FUNCTION fieldcrypt_internal.plan_order(internal) RETURNS internal
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_plan_order';
COMMENT ON FUNCTION fieldcrypt_internal.plan_order(internal) IS 'what the planner asks of max and min: an error';
CREATE FUNCTION fieldcrypt_internal.refuse_order(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS fieldcrypt.encrypted
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_order
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_order';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_order(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'what max and min do: an error';

CREATE FUNCTION fieldcrypt_internal.plan_text(internal) RETURNS internal
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_plan_text';
COMMENT ON FUNCTION fieldcrypt_internal.plan_text(internal) IS 'what the planner asks of casts to text: an error';
CREATE FUNCTION fieldcrypt_internal.refuse_text(fieldcrypt.encrypted) RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_text
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_text';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_text(fieldcrypt.encrypted) IS 'what casts to text do: an error that names decrypt_field and ciphertext_text';
CREATE FUNCTION fieldcrypt_internal.refuse_name(fieldcrypt.encrypted) RETURNS name
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_text
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_name';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_name(fieldcrypt.encrypted) IS 'what the cast to name does: the same';

-- Without AS ASSIGNMENT a ciphertext would still get into a variable of type text in PL/pgSQL.
CREATE CAST (fieldcrypt.encrypted AS text) WITH FUNCTION fieldcrypt_internal.refuse_text(fieldcrypt.encrypted) AS ASSIGNMENT;
CREATE CAST (fieldcrypt.encrypted AS varchar) WITH FUNCTION fieldcrypt_internal.refuse_text(fieldcrypt.encrypted) AS ASSIGNMENT;
CREATE CAST (fieldcrypt.encrypted AS bpchar) WITH FUNCTION fieldcrypt_internal.refuse_text(fieldcrypt.encrypted) AS ASSIGNMENT;
CREATE CAST (fieldcrypt.encrypted AS name) WITH FUNCTION fieldcrypt_internal.refuse_name(fieldcrypt.encrypted) AS ASSIGNMENT;

DO $$
DECLARE
    item record;
BEGIN
    FOR item IN
        SELECT o.name, s.left_type, s.right_type, s.function, s.what
          FROM (VALUES ('fieldcrypt.encrypted', 'text', 'refuse_comparison_with_text', ARRAY['=', '<>', '<', '<=', '>=', '>'], 'compares'),
                       ('text', 'fieldcrypt.encrypted', 'refuse_comparison_of_text', ARRAY['=', '<>', '<', '<=', '>=', '>'], 'compares'),
                       ('fieldcrypt.encrypted', 'fieldcrypt_internal.any_encrypted', 'refuse_comparison', ARRAY['=', '<>', '<', '<=', '>=', '>'], 'compares'),
                       ('fieldcrypt.encrypted', 'text', 'refuse_match', ARRAY['~~', '!~~', '~~*', '!~~*', '~', '!~', '~*', '!~*'], 'matches'),
                       ('fieldcrypt.encrypted', 'text', 'refuse_member', ARRAY['->', '->>'], 'takes apart'),
                       ('fieldcrypt.encrypted', 'integer', 'refuse_element', ARRAY['->', '->>'], 'takes apart'))
            AS s (left_type, right_type, function, names, what), unnest(s.names) AS o(name)
    LOOP
        EXECUTE format('CREATE OPERATOR pg_catalog.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = fieldcrypt_internal.%s)',
            item.name, item.left_type, item.right_type, item.function);
        EXECUTE format('COMMENT ON OPERATOR pg_catalog.%s (%s, %s) IS %L',
            item.name, item.left_type, item.right_type, format('no operator %s an encrypted value: an error that says what to write', item.what));
    END LOOP;
END
$$;

CREATE AGGREGATE pg_catalog.max(fieldcrypt.encrypted) (SFUNC = fieldcrypt_internal.refuse_order, STYPE = fieldcrypt.encrypted, PARALLEL = SAFE);
CREATE AGGREGATE pg_catalog.min(fieldcrypt.encrypted) (SFUNC = fieldcrypt_internal.refuse_order, STYPE = fieldcrypt.encrypted, PARALLEL = SAFE);
COMMENT ON AGGREGATE pg_catalog.max(fieldcrypt.encrypted) IS 'an error: the order of encrypted values says nothing';
COMMENT ON AGGREGATE pg_catalog.min(fieldcrypt.encrypted) IS 'an error: the order of encrypted values says nothing';

-- sql/audit_log.sql
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
COMMENT ON COLUMN fieldcrypt.audit_log.event IS 'what happened: key_created, key_rotated, key_deactivated, key_suspended, key_resumed, key_compromised, key_destruction_scheduled, key_destruction_cancelled, key_destroyed, tenant_shredded, key_refused, rotation_policy_set, rotation_policy_removed, master_key_rotation_started, master_key_rotation_finished, reencryption_started, reencryption_finished, reencryption_incomplete, column_context_set, keys_exported, keys_imported, key_states_confirmed, approval_requested, approval_given, approval_used, approval_withdrawn, approval_refused, row_inserted, row_updated, row_deleted, table_truncated, table_audited, table_detached, table_unaudited, access_granted, access_revoked, access_snapshot, decrypt_failed, call_refused, master_key_loaded, master_key_failed, values_decrypted, audit_gap, audit_started, audit_origin_begun, audit_fork_acknowledged, audit_findings_acknowledged, audit_retired, alert_raised, alert_resolved';
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

-- sql/nodes.sql
-- Other nodes, as the catalogs of this one tell of them. What is Citus's is looked at only where its catalog is, and by
-- no name that has to be there when these functions are made.
--
-- Citus hides shards: to every query that names pg_class it adds a condition, unless citus.override_table_visibility is
-- off. A shard that is not seen is not counted, and its keys would be destroyed. So each function that looks for tables
-- of users in pg_class is planned with that setting off; elsewhere it means nothing.

CREATE FUNCTION fieldcrypt_internal.keys_from(purpose text) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_keys_from';
COMMENT ON FUNCTION fieldcrypt_internal.keys_from(text) IS
    'which other node makes the keys of this database that are for that purpose; NULL: it makes them itself';

CREATE FUNCTION fieldcrypt_internal.refuse_unless_made_here(purpose text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_unless_made_here';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_unless_made_here(text) IS
    'an error where keys for that purpose come from another node: on a worker of Citus, on a subscriber that receives the tables of keys';

CREATE FUNCTION fieldcrypt_internal.distributed_tables() RETURNS oid[]
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relations oid[];
BEGIN
    IF to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL THEN
        EXECUTE 'SELECT array_agg(p.logicalrelid::oid) FROM pg_catalog.pg_dist_partition AS p' INTO relations;
    END IF;
    RETURN coalesce(relations, '{}');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.distributed_tables() IS
    'the tables of Citus whose rows are in shards, here and on other nodes; granted to nobody';

-- A table that is named, one of a schema that is, and one of all.
CREATE FUNCTION fieldcrypt_internal.publications_of_keys() RETURNS text[]
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    publications text[];
BEGIN
    publications := ARRAY(
        SELECT p.pubname::text FROM pg_publication AS p
         WHERE p.puballtables
            OR EXISTS (SELECT FROM pg_publication_rel AS r WHERE r.prpubid = p.oid AND r.prrelid = 'fieldcrypt.encryption_keys'::regclass));
    -- From PostgreSQL 15 on.
    IF to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL THEN
        EXECUTE 'SELECT $1 || array_agg(p.pubname::text) FROM pg_catalog.pg_publication_namespace AS n
                   JOIN pg_catalog.pg_publication AS p ON p.oid OPERATOR(pg_catalog.=) n.pnpubid
                  WHERE n.pnnspid OPERATOR(pg_catalog.=) ''fieldcrypt''::pg_catalog.regnamespace'
           INTO publications USING publications;
    END IF;
    RETURN ARRAY(SELECT DISTINCT u.name FROM unnest(publications) AS u(name) WHERE u.name IS NOT NULL ORDER BY 1);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.publications_of_keys() IS 'the publications that send the table of keys to other databases; granted to nobody';

-- Values of keys that others have, too, may be with them, or on the way here.
CREATE FUNCTION fieldcrypt_internal.values_elsewhere() RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    publications text[] := fieldcrypt_internal.publications_of_keys();
    slots bigint;
BEGIN
    IF fieldcrypt_internal.keys_from('field') IS NOT NULL THEN
        RETURN format('another node may have values of it, or send them here (%s)', fieldcrypt_internal.keys_from('field'));
    ELSIF cardinality(publications) > 0 THEN
        SELECT count(*) INTO slots FROM pg_replication_slots AS s
         WHERE s.slot_type = 'logical' AND s.database = current_database() AND NOT s.temporary;
        IF slots > 0 THEN
            RETURN format('subscribers may have values of it (publication "%s" sends them the keys, by %s slot(s))', array_to_string(publications, '", "'), slots);
        END IF;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.values_elsewhere() IS
    'why databases that publish or receive the table of keys may have values on keys of this one; NULL: none that is known; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.other_nodes() RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    publications text[] := fieldcrypt_internal.publications_of_keys();
BEGIN
    RETURN nullif(concat_ws('; ',
        CASE WHEN to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL THEN 'the other nodes of Citus have keys and a master key of their own' END,
        CASE WHEN fieldcrypt_internal.keys_from('audit') IS NOT NULL THEN fieldcrypt_internal.keys_from('audit') || ', which has them still' END,
        CASE WHEN cardinality(publications) > 0 THEN format('subscribers of publication "%s" have the keys, too, and hear of changes when they apply them',
            array_to_string(publications, '", "')) END), '');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.other_nodes() IS 'which other nodes, as far as is known here, have keys that nothing here speaks of; NULL if none';

-- sql/keys.sql
-- The keys. The order of the columns is known to crates/pg/src/key_table.rs: new ones go to the end.

CREATE TABLE fieldcrypt.master_keys (
    fingerprint bytea PRIMARY KEY CHECK (pg_catalog.octet_length(fingerprint) OPERATOR(pg_catalog.=) 16),
    is_current boolean NOT NULL,
    first_used_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    retired_at timestamptz
);
CREATE UNIQUE INDEX master_keys_current ON fieldcrypt.master_keys (is_current) WHERE is_current;

CREATE TABLE fieldcrypt.encryption_keys (
    key_id bigint PRIMARY KEY CHECK (key_id OPERATOR(pg_catalog.>) 0),
    tenant text COLLATE "C" NOT NULL CHECK (pg_catalog.octet_length(tenant) BETWEEN 1 AND 1024),
    purpose text COLLATE "C" NOT NULL CHECK (purpose IN ('field', 'audit')),
    version integer NOT NULL CHECK (version OPERATOR(pg_catalog.>) 0),
    state text COLLATE "C" NOT NULL
        CHECK (state IN ('active', 'deactivated', 'suspended', 'compromised', 'destroyed')),
    algorithm text COLLATE "C" NOT NULL,
    wrapped_key bytea CHECK (pg_catalog.octet_length(wrapped_key) OPERATOR(pg_catalog.=) 73),
    master_key_fingerprint bytea NOT NULL
        CHECK (pg_catalog.octet_length(master_key_fingerprint) OPERATOR(pg_catalog.=) 16),
    key_check bytea NOT NULL CHECK (pg_catalog.octet_length(key_check) OPERATOR(pg_catalog.=) 16),
    created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    deactivated_at timestamptz,
    destroyed_at timestamptz,
    suspended_from text COLLATE "C" CHECK (suspended_from IN ('active', 'deactivated', 'compromised')),
    destroy_scheduled_at timestamptz,
    destroy_after timestamptz,
    destroy_horizon xid8,
    CONSTRAINT destroyed_keys_are_erased
        CHECK ((state OPERATOR(pg_catalog.=) 'destroyed') OPERATOR(pg_catalog.=) (wrapped_key IS NULL)),
    CONSTRAINT only_suspended_keys_come_back
        CHECK (suspended_from IS NULL OR state OPERATOR(pg_catalog.=) 'suspended'),
    CONSTRAINT active_keys_are_kept
        CHECK (destroy_after IS NULL OR destroy_scheduled_at IS NOT NULL AND state OPERATOR(pg_catalog.<>) 'active'
            AND COALESCE(suspended_from OPERATOR(pg_catalog.<>) 'active', true))
);
CREATE UNIQUE INDEX encryption_keys_version
    ON fieldcrypt.encryption_keys (tenant, purpose, version);
CREATE UNIQUE INDEX encryption_keys_active
    ON fieldcrypt.encryption_keys (tenant, purpose) WHERE state OPERATOR(pg_catalog.=) 'active';

CREATE FUNCTION fieldcrypt_internal.invalidate_keys() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'fieldcrypt_invalidate_keys';
COMMENT ON FUNCTION fieldcrypt_internal.invalidate_keys() IS 'trigger: tells every session that keys have changed';

-- A new row changes nothing that a session could have cached, so INSERT tells nobody. ALWAYS: a
-- subscriber that receives the table by logical replication must notice too.
CREATE TRIGGER invalidate AFTER UPDATE OR DELETE ON fieldcrypt.encryption_keys
    FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.invalidate_keys();
CREATE TRIGGER invalidate_all AFTER TRUNCATE ON fieldcrypt.encryption_keys
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.invalidate_keys();
ALTER TABLE fieldcrypt.encryption_keys ENABLE ALWAYS TRIGGER invalidate;
ALTER TABLE fieldcrypt.encryption_keys ENABLE ALWAYS TRIGGER invalidate_all;

SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.master_keys', '');
SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.encryption_keys', '');

COMMENT ON TABLE fieldcrypt.master_keys IS 'fingerprints of the master keys that wrap this database''s keys; the keys themselves are never here';
COMMENT ON COLUMN fieldcrypt.master_keys.fingerprint IS 'public name of a master key, derived from it';
COMMENT ON COLUMN fieldcrypt.master_keys.first_used_at IS 'when it first wrapped a key here';
COMMENT ON COLUMN fieldcrypt.master_keys.retired_at IS 'since when it wraps no key here; it need not be loaded then';
COMMENT ON COLUMN fieldcrypt.encryption_keys.algorithm IS 'what the key is used with: XAES-256-GCM or HMAC-SHA256';
COMMENT ON COLUMN fieldcrypt.encryption_keys.created_at IS 'when the key was made';
COMMENT ON COLUMN fieldcrypt.encryption_keys.deactivated_at IS 'when it stopped encrypting';
COMMENT ON COLUMN fieldcrypt.encryption_keys.destroyed_at IS 'when it was erased';
COMMENT ON COLUMN fieldcrypt.encryption_keys.suspended_from IS 'the state that resume_key brings a suspended key back to';
COMMENT ON COLUMN fieldcrypt.encryption_keys.destroy_scheduled_at IS 'when its destruction was scheduled';
COMMENT ON COLUMN fieldcrypt.encryption_keys.destroy_after IS 'from when on destroy_due_keys erases it; NULL for a key that is to stay';
COMMENT ON COLUMN fieldcrypt.encryption_keys.destroy_horizon IS 'prepared transactions with lower ids may hold values of it; NULL until all older transactions that were not prepared have ended';
COMMENT ON COLUMN fieldcrypt.master_keys.is_current IS 'new encryption keys are wrapped by this one';
COMMENT ON TABLE fieldcrypt.encryption_keys IS 'the encryption keys, wrapped by a master key: a version for each tenant and rotation; written by the extension only';
COMMENT ON COLUMN fieldcrypt.encryption_keys.key_id IS 'random id that every value carries of its key';
COMMENT ON COLUMN fieldcrypt.encryption_keys.tenant IS 'whose key: any text; ''audit log'' for the keys of purpose audit, which belong to no tenant';
COMMENT ON COLUMN fieldcrypt.encryption_keys.purpose IS 'what the key is for: field (encrypts values) or audit (authenticates rows of the audit log)';
COMMENT ON COLUMN fieldcrypt.encryption_keys.version IS '1 for the tenant''s first key';
COMMENT ON COLUMN fieldcrypt.encryption_keys.state IS 'NIST SP 800-57: active (encrypts and decrypts), deactivated (decrypts), suspended (neither), compromised (decrypts, to be re-encrypted), destroyed (erased)';
COMMENT ON COLUMN fieldcrypt.encryption_keys.wrapped_key IS 'the key, encrypted by the master key; NULL once destroyed';
COMMENT ON COLUMN fieldcrypt.encryption_keys.master_key_fingerprint IS 'the master key that wraps it';
COMMENT ON COLUMN fieldcrypt.encryption_keys.key_check IS 'public value by which the key is recognised';

CREATE FUNCTION fieldcrypt.create_key(tenant text DEFAULT '') RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_create_key';
COMMENT ON FUNCTION fieldcrypt.create_key(text) IS
    'makes a tenant''s first encryption key ahead of time and gives its id; the active key''s id if there is one';

CREATE FUNCTION fieldcrypt_internal.loaded_master_keys() RETURNS text
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'fieldcrypt_loaded_master_keys';
COMMENT ON FUNCTION fieldcrypt_internal.loaded_master_keys() IS 'the master keys of this session, as JSON: source, fingerprints, never a key';

CREATE FUNCTION fieldcrypt.master_key_status(
        OUT fingerprint text, OUT is_loaded boolean, OUT is_current boolean, OUT encryption_keys bigint,
        OUT source text, OUT loaded_at timestamptz, OUT problem text, OUT advice text) RETURNS SETOF record
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH session AS MATERIALIZED (
        SELECT fieldcrypt_internal.loaded_master_keys()::jsonb AS loaded
    ), loaded AS (
        SELECT decode(f.value, 'hex') AS fingerprint, f.place = 1 AS is_first
          FROM session, jsonb_array_elements_text(session.loaded -> 'fingerprints') WITH ORDINALITY AS f(value, place)
    ), used AS (
        SELECT master_key_fingerprint AS fingerprint, count(*) AS encryption_keys
          FROM fieldcrypt.encryption_keys
         WHERE wrapped_key IS NOT NULL
         GROUP BY master_key_fingerprint
    ), named AS (
        SELECT fingerprint FROM loaded
        UNION SELECT fingerprint FROM used
        UNION SELECT fingerprint FROM fieldcrypt.master_keys
    ), elsewhere AS MATERIALIZED (
        SELECT '; this speaks for this node only: ' || fieldcrypt_internal.other_nodes() AS note
    )
    SELECT encode(named.fingerprint, 'hex'),
           EXISTS (SELECT FROM loaded WHERE loaded.fingerprint = named.fingerprint),
           coalesce(known.is_current, false),
           coalesce(used.encryption_keys, 0),
           session.loaded ->> 'source',
           timestamptz '2000-01-01 00:00:00+00'
               + (session.loaded ->> 'loaded_at')::bigint * interval '1 microsecond',
           coalesce(session.loaded ->> 'problem',
               CASE WHEN used.fingerprint IS NOT NULL
                     AND NOT EXISTS (SELECT FROM loaded WHERE loaded.fingerprint = named.fingerprint)
                    THEN 'keys are wrapped by this master key, which is not loaded' END),
           CASE WHEN known.is_current THEN 'new keys are wrapped by it'
                WHEN used.fingerprint IS NOT NULL
                    THEN 'keys are wrapped by it: keep it; CALL fieldcrypt.rotate_master_key() moves them to the first loaded one'
                WHEN (SELECT l.is_first FROM loaded AS l WHERE l.fingerprint = named.fingerprint)
                    THEN 'not in use: CALL fieldcrypt.rotate_master_key() makes it the current one'
                ELSE 'nothing in this database needs it: its line can be removed, if no other database needs it' END
               || coalesce((SELECT e.note FROM elsewhere AS e), '')
      FROM session
      LEFT JOIN named ON true
      LEFT JOIN fieldcrypt.master_keys AS known ON known.fingerprint = named.fingerprint
      LEFT JOIN used ON used.fingerprint = named.fingerprint
     ORDER BY 3 DESC, 2 DESC, 1
$$;
COMMENT ON FUNCTION fieldcrypt.master_key_status() IS
    'the master keys that this session has loaded and that this database needs: fingerprints and source, never a key';

-- sql/fields.sql
-- Encrypting and decrypting. One name a type: overloads would resolve silently to the wrong one.
-- Never STRICT: a NULL value gives NULL, but a NULL context or tenant is an error.

CREATE FUNCTION fieldcrypt.encrypt_field(value text, context text DEFAULT '', tenant text DEFAULT '')
    RETURNS fieldcrypt.encrypted LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_encrypt_field';
CREATE FUNCTION fieldcrypt.encrypt_field_bytea(value bytea, context text DEFAULT '', tenant text DEFAULT '')
    RETURNS fieldcrypt.encrypted LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_encrypt_field_bytea';
CREATE FUNCTION fieldcrypt.encrypt_field_jsonb(value jsonb, context text DEFAULT '', tenant text DEFAULT '')
    RETURNS fieldcrypt.encrypted LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_encrypt_field_jsonb';
-- For every other type. Not an overload of encrypt_field: that could change which function a call means, and what
-- calls it by its name alone (PostgREST, regproc) would find two.
CREATE FUNCTION fieldcrypt.encrypt_field_as(value anyelement, context text DEFAULT '', tenant text DEFAULT '')
    RETURNS fieldcrypt.encrypted LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_encrypt_field_as';

CREATE FUNCTION fieldcrypt.decrypt_field(value fieldcrypt.encrypted, context text DEFAULT '')
    RETURNS text LANGUAGE c STABLE PARALLEL SAFE NOT LEAKPROOF COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_decrypt_field';
CREATE FUNCTION fieldcrypt.decrypt_field_bytea(value fieldcrypt.encrypted, context text DEFAULT '')
    RETURNS bytea LANGUAGE c STABLE PARALLEL SAFE NOT LEAKPROOF COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_decrypt_field_bytea';
CREATE FUNCTION fieldcrypt.decrypt_field_jsonb(value fieldcrypt.encrypted, context text DEFAULT '')
    RETURNS jsonb LANGUAGE c STABLE PARALLEL SAFE NOT LEAKPROOF COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_decrypt_field_jsonb';
CREATE FUNCTION fieldcrypt.decrypt_field_as(
        value fieldcrypt.encrypted, type anyelement, context text DEFAULT '')
    RETURNS anyelement LANGUAGE c STABLE PARALLEL SAFE NOT LEAKPROOF COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_decrypt_field_as';
CREATE FUNCTION fieldcrypt.try_decrypt_field(value fieldcrypt.encrypted, context text DEFAULT '')
    RETURNS text LANGUAGE c STABLE PARALLEL SAFE NOT LEAKPROOF COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_try_decrypt_field';

CREATE FUNCTION fieldcrypt.reencrypt_field(value fieldcrypt.encrypted, context text DEFAULT '')
    RETURNS fieldcrypt.encrypted LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_reencrypt_field';
CREATE FUNCTION fieldcrypt.rebind_field(value fieldcrypt.encrypted, context text, new_context text)
    RETURNS fieldcrypt.encrypted LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_rebind_field';

CREATE FUNCTION fieldcrypt.key_id(value fieldcrypt.encrypted) RETURNS bigint
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_key_id';
CREATE FUNCTION fieldcrypt.ciphertext_info(
        value fieldcrypt.encrypted, OUT format text, OUT algorithm text, OUT key_id bigint,
        OUT nonce bytea, OUT plaintext_bytes integer)
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_ciphertext_info';

COMMENT ON FUNCTION fieldcrypt.encrypt_field(text, text, text) IS
    'encrypts a text under the tenant''s active key, bound to a context that decryption must name again';
COMMENT ON FUNCTION fieldcrypt.encrypt_field_bytea(bytea, text, text) IS
    'encrypts bytes under the tenant''s active key, bound to a context that decryption must name again';
COMMENT ON FUNCTION fieldcrypt.encrypt_field_jsonb(jsonb, text, text) IS
    'encrypts a JSON document under the tenant''s active key, bound to a context that decryption must name again';
COMMENT ON FUNCTION fieldcrypt.encrypt_field_as(anyelement, text, text) IS
    'encrypts a value of any type, in the same form whatever the session''s DateStyle, TimeZone and the like; read with decrypt_field_as';
COMMENT ON FUNCTION fieldcrypt.decrypt_field(fieldcrypt.encrypted, text) IS
    'decrypts to text: the plaintext or an error, never anything else';
COMMENT ON FUNCTION fieldcrypt.decrypt_field_bytea(fieldcrypt.encrypted, text) IS
    'decrypts to bytes: the plaintext or an error, never anything else';
COMMENT ON FUNCTION fieldcrypt.decrypt_field_jsonb(fieldcrypt.encrypted, text) IS
    'decrypts to a JSON document: the plaintext or an error, never anything else';
COMMENT ON FUNCTION fieldcrypt.decrypt_field_as(fieldcrypt.encrypted, anyelement, text) IS
    'decrypts to any type, given as a NULL of it: decrypt_field_as(dob, NULL::date)';
COMMENT ON FUNCTION fieldcrypt.try_decrypt_field(fieldcrypt.encrypted, text) IS
    'for finding damage: NULL where the value is not authentic or its key is unknown or destroyed; other errors stay errors';
COMMENT ON FUNCTION fieldcrypt.reencrypt_field(fieldcrypt.encrypted, text) IS
    'the same plaintext under the active key of the value''s tenant; shows no plaintext';
COMMENT ON FUNCTION fieldcrypt.rebind_field(fieldcrypt.encrypted, text, text) IS
    'the same plaintext bound to another context, under the active key of the value''s tenant; shows no plaintext; needs encrypt and decrypt';
COMMENT ON FUNCTION fieldcrypt.key_id(fieldcrypt.encrypted) IS
    'the id of the key that a value was encrypted with';
COMMENT ON FUNCTION fieldcrypt.ciphertext_info(fieldcrypt.encrypted) IS
    'what a value''s header says; whether it is authentic, only decryption tells';

-- sql/context.sql
-- The text that a value is bound to.

-- IMMUTABLE: no setting has a say in it. For everybody, since it reads and shows nothing: constraints, triggers and
-- generated columns call it for whoever writes.
CREATE FUNCTION fieldcrypt.context(VARIADIC parts "any") RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE COST 5 AS 'MODULE_PATHNAME', 'fieldcrypt_context';
COMMENT ON FUNCTION fieldcrypt.context("any") IS
    'a name and the values of a row''s key as one text, the same whatever the session''s settings: context(''patients.ssn'', id) gives patients.ssn/17';

-- sql/tenant.sql
-- The tenant of a transaction. The setting fieldcrypt.tenant is in src/settings.rs.

CREATE FUNCTION fieldcrypt.lock_tenant(name text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_lock_tenant';
COMMENT ON FUNCTION fieldcrypt.lock_tenant(text) IS
    'sets fieldcrypt.tenant until the transaction ends, and refuses any other tenant until then, whatever asks for it: SET, RESET, set_config, a savepoint';

-- sql/approvals.sql
-- Two people for what can't be undone: one asks, another approves, and then the one who asked does it.
--
-- The setting fieldcrypt.require_approval says what needs it. Who is who is session_user, and the role
-- that logged in beside it: SET ROLE changes neither.

CREATE FUNCTION fieldcrypt_internal.needs_approval(operation text) RETURNS boolean
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'fieldcrypt_needs_approval';
COMMENT ON FUNCTION fieldcrypt_internal.needs_approval(text) IS
    'whether the configuration demands an approval for an operation (the setting itself could be shown wrong before the library is loaded)';

CREATE FUNCTION fieldcrypt_internal.login_role() RETURNS text
    LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'fieldcrypt_login_role';
COMMENT ON FUNCTION fieldcrypt_internal.login_role() IS 'the role that logged in, whatever SET SESSION AUTHORIZATION says';

-- Who approves must mean it: a trigger or a function of somebody else, run in the approver's session,
-- has the approver's name too.
CREATE FUNCTION fieldcrypt_internal.by_own_hand() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_by_own_hand';
CREATE FUNCTION fieldcrypt_internal.refuse_unless_own_hand() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_unless_own_hand';
COMMENT ON FUNCTION fieldcrypt_internal.by_own_hand() IS
    'notes, for the rest of the transaction, that a CALL of the session itself does this; an error in functions and triggers';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_unless_own_hand() IS
    'an error unless by_own_hand was called in this transaction; granted to nobody';

CREATE SEQUENCE fieldcrypt_internal.approvals_id_seq AS bigint;

-- Not in a dump: an approval lasts for days, and one that a restore could bring could be forged. What
-- was asked, approved and done stays in the audit log.
CREATE TABLE fieldcrypt.approvals (
    id bigint PRIMARY KEY DEFAULT pg_catalog.nextval('fieldcrypt_internal.approvals_id_seq'),
    operation text COLLATE "C" NOT NULL CHECK (operation IN ('rotate_master_key', 'shred_tenant', 'destroy_key')),
    subject text COLLATE "C" NOT NULL,
    reason text NOT NULL,
    requested_by text COLLATE "C" NOT NULL DEFAULT session_user,
    requested_role text COLLATE "C" NOT NULL DEFAULT fieldcrypt_internal.outer_role(),
    requested_login text COLLATE "C" NOT NULL DEFAULT fieldcrypt_internal.login_role(),
    requested_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    expires_at timestamptz NOT NULL,
    approved_by text COLLATE "C",
    approved_role text COLLATE "C",
    approved_login text COLLATE "C",
    approved_at timestamptz,
    used_by text COLLATE "C",
    used_role text COLLATE "C",
    used_at timestamptz,
    withdrawn_by text COLLATE "C",
    withdrawn_at timestamptz,
    CONSTRAINT two_people CHECK (approved_by OPERATOR(pg_catalog.<>) requested_by
        AND approved_login OPERATOR(pg_catalog.<>) requested_login),
    CONSTRAINT used_by_who_asked CHECK (used_by IS NULL OR approved_by IS NOT NULL AND used_by OPERATOR(pg_catalog.=) requested_by)
);
CREATE INDEX approvals_subject ON fieldcrypt.approvals (operation, subject);

-- ALWAYS: session_replication_role leaves them on.
CREATE TRIGGER refuse_change BEFORE INSERT OR UPDATE OR DELETE ON fieldcrypt.approvals
    FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt.approvals
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
ALTER TABLE fieldcrypt.approvals ENABLE ALWAYS TRIGGER refuse_change;
ALTER TABLE fieldcrypt.approvals ENABLE ALWAYS TRIGGER refuse_truncate;

COMMENT ON SEQUENCE fieldcrypt_internal.approvals_id_seq IS 'ids of fieldcrypt.approvals';
COMMENT ON TABLE fieldcrypt.approvals IS 'who asked for what, and who approved it: written by the extension only';
COMMENT ON COLUMN fieldcrypt.approvals.id IS 'what approve and withdraw_approval take';
COMMENT ON COLUMN fieldcrypt.approvals.operation IS 'rotate_master_key, shred_tenant or destroy_key';
COMMENT ON COLUMN fieldcrypt.approvals.subject IS 'the fingerprint of the new master key in hex, the tenant, or the key id';
COMMENT ON COLUMN fieldcrypt.approvals.reason IS 'why, in the words of the request';
COMMENT ON COLUMN fieldcrypt.approvals.requested_by IS 'session_user of who asked; only that one can use the approval';
COMMENT ON COLUMN fieldcrypt.approvals.requested_role IS 'the role chosen with SET ROLE by who asked';
COMMENT ON COLUMN fieldcrypt.approvals.requested_login IS 'the role that logged in, whatever SET SESSION AUTHORIZATION said';
COMMENT ON COLUMN fieldcrypt.approvals.requested_at IS 'when it was asked for';
COMMENT ON COLUMN fieldcrypt.approvals.expires_at IS 'until when it can be approved and used';
COMMENT ON COLUMN fieldcrypt.approvals.approved_by IS 'session_user of who approved; never who asked';
COMMENT ON COLUMN fieldcrypt.approvals.approved_role IS 'the role chosen with SET ROLE by who approved';
COMMENT ON COLUMN fieldcrypt.approvals.approved_login IS 'the role that logged in of who approved';
COMMENT ON COLUMN fieldcrypt.approvals.approved_at IS 'when it was approved';
COMMENT ON COLUMN fieldcrypt.approvals.used_by IS 'who did it';
COMMENT ON COLUMN fieldcrypt.approvals.used_role IS 'the role chosen with SET ROLE by who did it';
COMMENT ON COLUMN fieldcrypt.approvals.used_at IS 'when it was done: an approval is good for one time';
COMMENT ON COLUMN fieldcrypt.approvals.withdrawn_by IS 'who took it back';
COMMENT ON COLUMN fieldcrypt.approvals.withdrawn_at IS 'when it was taken back';

CREATE FUNCTION fieldcrypt_internal.insert_approval(id bigint, operation text, subject text, reason text, seconds bigint) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_insert_approval';
CREATE FUNCTION fieldcrypt_internal.mark_approved(id bigint) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_mark_approved';
CREATE FUNCTION fieldcrypt_internal.mark_used(id bigint) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_mark_used';
CREATE FUNCTION fieldcrypt_internal.mark_withdrawn(id bigint) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_mark_withdrawn';
COMMENT ON FUNCTION fieldcrypt_internal.insert_approval(bigint, text, text, text, bigint) IS 'writes a request of session_user; granted to nobody';
COMMENT ON FUNCTION fieldcrypt_internal.mark_approved(bigint) IS 'approves as session_user what another asked for and is open; granted to nobody';
COMMENT ON FUNCTION fieldcrypt_internal.mark_used(bigint) IS 'spends an approval of session_user; granted to nobody';
COMMENT ON FUNCTION fieldcrypt_internal.mark_withdrawn(bigint) IS 'takes an unused approval back; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.record_approval(event text, operation text, subject text, reason text) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT fieldcrypt_internal.record_event($1,
        CASE $2 WHEN 'shred_tenant' THEN $3
                WHEN 'destroy_key' THEN (SELECT k.tenant FROM fieldcrypt.encryption_keys AS k WHERE k.key_id::text = $3) END,
        CASE WHEN $2 = 'destroy_key' THEN (SELECT k.key_id FROM fieldcrypt.encryption_keys AS k WHERE k.key_id::text = $3) END,
        format('%s %s: %s', $2, $3, $4), NULL)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.record_approval(text, text, text, text) IS 'an audit row about an approval; granted to nobody';

CREATE FUNCTION fieldcrypt.request_approval(
        operation text, subject text, reason text, expires_in interval DEFAULT '24 hours') RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    new_id bigint;
BEGIN
    IF operation IS NULL OR subject IS NULL OR reason IS NULL OR expires_in IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'operation, subject, reason and expires_in must not be NULL';
    END IF;
    PERFORM fieldcrypt_internal.needs_approval(operation);
    IF NOT (CASE operation
            WHEN 'rotate_master_key' THEN subject ~ '^[0-9a-f]{32}$'
            WHEN 'destroy_key' THEN subject ~ '^[1-9][0-9]{0,18}$'
            ELSE octet_length(subject) BETWEEN 1 AND 1024 END) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('"%s" is nothing that %s can be about', left(subject, 64), operation),
            HINT = 'The subject of rotate_master_key is the new master key''s fingerprint (32 hex digits), of shred_tenant the tenant, of destroy_key the key id.';
    END IF;
    IF btrim(reason) = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a request needs a reason',
            HINT = 'Whoever approves reads it, and so does the auditor.';
    END IF;
    IF expires_in <= interval '0' OR expires_in > interval '7 days' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a request expires after 7 days at most',
            HINT = 'Leave expires_in out for 24 hours.';
    END IF;
    new_id := nextval('fieldcrypt_internal.approvals_id_seq');
    PERFORM fieldcrypt_internal.insert_approval(new_id, operation, subject, reason,
        ceil(EXTRACT(epoch FROM expires_in))::bigint);
    PERFORM fieldcrypt_internal.record_approval('approval_requested', operation, subject,
        format('request %s: %s', new_id, reason));
    RETURN new_id;
END
$$;
COMMENT ON FUNCTION fieldcrypt.request_approval(text, text, text, interval) IS
    'asks for rotate_master_key, shred_tenant or destroy_key; another role approves with CALL fieldcrypt.approve(id)';

CREATE FUNCTION fieldcrypt.withdraw_approval(id bigint) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    request fieldcrypt.approvals;
BEGIN
    SELECT a.* INTO request FROM fieldcrypt.approvals AS a WHERE a.id = id;
    IF NOT coalesce(fieldcrypt_internal.mark_withdrawn(id), false) THEN
        RAISE EXCEPTION USING ERRCODE = 'KF019',
            MESSAGE = format('there is no request %s that could be withdrawn', id),
            HINT = 'SELECT * FROM fieldcrypt.approvals shows all: used and withdrawn ones stay as they are. (KF019, see docs/errors.md)';
    END IF;
    PERFORM fieldcrypt_internal.record_approval('approval_withdrawn', request.operation, request.subject, format('request %s', id));
    RAISE NOTICE 'withdraw_approval: request % is withdrawn: % "%"', id, request.operation, request.subject;
END
$$;
COMMENT ON FUNCTION fieldcrypt.withdraw_approval(bigint) IS 'takes a request, approved or not, back: anybody with manage can';

-- A refusal is given back, not raised: so the record of it stays.
CREATE FUNCTION fieldcrypt_internal.approve_step(id bigint, OUT message text, OUT hint text, OUT done text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    request fieldcrypt.approvals;
BEGIN
    SELECT a.* INTO request FROM fieldcrypt.approvals AS a WHERE a.id = id;
    IF fieldcrypt_internal.mark_approved(id) THEN
        PERFORM fieldcrypt_internal.record_approval('approval_given', request.operation, request.subject,
            format('request %s of %s: %s', id, request.requested_by, request.reason));
        done := format('request %s is approved: %s may %s "%s" until %s', id, request.requested_by, request.operation, request.subject,
            date_trunc('second', request.expires_at));
        RETURN;
    END IF;
    -- Anew: it may have been somebody else who was faster.
    SELECT a.* INTO request FROM fieldcrypt.approvals AS a WHERE a.id = id;
    hint := 'SELECT * FROM fieldcrypt.approvals shows all requests; fieldcrypt.request_approval makes a new one. (KF019, see docs/errors.md)';
    IF request.id IS NULL THEN
        message := format('there is no request %s', id);
    ELSIF request.withdrawn_by IS NOT NULL THEN
        message := format('request %s was withdrawn by %s', id, request.withdrawn_by);
    ELSIF request.used_by IS NOT NULL THEN
        message := format('request %s was approved and used already', id);
    ELSIF request.approved_by IS NOT NULL THEN
        message := format('request %s was approved already, by %s', id, request.approved_by);
    ELSIF request.expires_at <= clock_timestamp() THEN
        message := format('request %s has expired', id);
    ELSE
        message := format('request %s is your own', id);
        hint := 'Another person approves it, who logs in with a role of their own: SET ROLE and SET SESSION AUTHORIZATION don''t count. (KF019, see docs/errors.md)';
    END IF;
    PERFORM fieldcrypt_internal.record_approval('approval_refused', coalesce(request.operation, 'approve'),
        coalesce(request.subject, '?'), message);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.approve_step(bigint) IS
    'approves a request; a refusal is recorded and given back, not raised';

CREATE PROCEDURE fieldcrypt.approve(id bigint)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    step pg_catalog.record;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM fieldcrypt_internal.refuse_unless_writable();
    PERFORM fieldcrypt_internal.by_own_hand();
    SELECT s.message, s.hint, s.done INTO step FROM fieldcrypt_internal.approve_step(id) AS s;
    COMMIT;
    IF step.message IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'KF019', MESSAGE = step.message, HINT = step.hint;
    END IF;
    RAISE NOTICE 'approve: %', step.done;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.approve(bigint) IS
    'approves what another role asked for with request_approval; a refusal is an error and a row of the audit log';

-- For procedures: what is refused is recorded and given back, and they commit before they raise it.
CREATE FUNCTION fieldcrypt_internal.spend_approval(operation text, subject text, OUT message text, OUT hint text)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    request fieldcrypt.approvals;
BEGIN
    IF NOT fieldcrypt_internal.needs_approval(operation) THEN
        RETURN;
    END IF;
    -- destroy_key is only scheduled, and retire_keys is a function.
    IF operation <> 'destroy_key' THEN
        PERFORM fieldcrypt_internal.refuse_unless_own_hand();
    END IF;
    FOR request IN
        SELECT a.* FROM fieldcrypt.approvals AS a
         WHERE a.operation = operation AND a.subject = subject AND a.requested_by = session_user
           AND a.approved_by IS NOT NULL AND a.used_by IS NULL AND a.withdrawn_by IS NULL
           AND a.expires_at > clock_timestamp()
         ORDER BY a.expires_at, a.id
    LOOP
        -- Holds the same conditions: another session may have been faster.
        IF fieldcrypt_internal.mark_used(request.id) THEN
            PERFORM fieldcrypt_internal.record_approval('approval_used', operation, subject,
                format('request %s, approved by %s: %s', request.id, request.approved_by, request.reason));
            RETURN;
        END IF;
    END LOOP;
    -- The nearest miss is the best reason: what this user asked for, what is still open, what was approved,
    -- the latest.
    SELECT a.* INTO request FROM fieldcrypt.approvals AS a
     WHERE a.operation = operation AND a.subject = subject
     ORDER BY a.requested_by = session_user DESC,
              (a.used_by IS NULL AND a.withdrawn_by IS NULL AND a.expires_at > clock_timestamp()) DESC,
              (a.approved_by IS NOT NULL) DESC, a.id DESC
     LIMIT 1;
    message := format('%s "%s" needs an approval: ', operation, subject) || CASE
        WHEN request.id IS NULL THEN 'nobody has asked for it'
        WHEN request.requested_by <> session_user THEN format('request %s is of %s, who alone can use it', request.id, request.requested_by)
        WHEN request.withdrawn_by IS NOT NULL THEN format('request %s was withdrawn by %s', request.id, request.withdrawn_by)
        WHEN request.used_by IS NOT NULL THEN format('request %s has been used', request.id)
        WHEN request.expires_at <= clock_timestamp() THEN format('request %s has expired', request.id)
        ELSE format('request %s waits for another role', request.id) END;
    hint := format(
        'SELECT fieldcrypt.request_approval(%L, %L, reason); then another role: CALL fieldcrypt.approve(id). What needs it is in fieldcrypt.require_approval. (KF019, see docs/errors.md)',
        operation, subject);
    PERFORM fieldcrypt_internal.record_approval('approval_refused', operation, subject, message);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.spend_approval(text, text) IS
    'spends the approval that an operation needs by the configuration; without one, records and gives back why; granted to nobody';

-- sql/key_states.sql
-- The states of a key, the end of a tenant, and the destruction of unused keys. The changes are made in src/keyring/states.rs, the one
-- place that says which are allowed.

CREATE FUNCTION fieldcrypt.mark_compromised(key_id bigint, reason text) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_mark_compromised';
CREATE FUNCTION fieldcrypt.suspend_key(key_id bigint, reason text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_suspend_key';
CREATE FUNCTION fieldcrypt.resume_key(key_id bigint, reason text) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_resume_key';
COMMENT ON FUNCTION fieldcrypt.mark_compromised(bigint, text) IS
    'marks a key that others may know, and makes the tenant''s next version if it was the active one; gives the active key''s id. Twice is harmless';
COMMENT ON FUNCTION fieldcrypt.suspend_key(bigint, text) IS
    'a key neither encrypts nor decrypts until resume_key; a tenant whose active key is suspended has none';
COMMENT ON FUNCTION fieldcrypt.resume_key(bigint, text) IS
    'ends suspend_key and gives the state that the key is in now: deactivated, not active, if the tenant has another active key';

CREATE FUNCTION fieldcrypt_internal.set_key_state(key_id bigint, state text, reason text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_set_key_state';
CREATE FUNCTION fieldcrypt_internal.erase_tenant_keys(tenant text, reason text) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_shred_tenant';
COMMENT ON FUNCTION fieldcrypt_internal.set_key_state(bigint, text, text) IS
    'brings a key into a less permissive state; makes no new version, asks for no approval; granted to nobody';
COMMENT ON FUNCTION fieldcrypt_internal.erase_tenant_keys(text, text) IS
    'destroys all keys of a tenant and gives their number; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.shred_step(
        tenant text, reason text, OUT destroyed bigint, OUT error_code text, OUT message text, OUT hint text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF tenant IS NULL OR reason IS NULL OR btrim(reason) = '' THEN
        error_code := CASE WHEN tenant IS NULL OR reason IS NULL THEN '22004' ELSE '22023' END;
        message := 'a tenant and a reason are needed';
        hint := 'CALL fieldcrypt.shred_tenant(tenant, reason)';
        RETURN;
    END IF;
    BEGIN
        SELECT s.message, s.hint INTO message, hint FROM fieldcrypt_internal.spend_approval('shred_tenant', tenant) AS s;
        IF message IS NOT NULL THEN
            error_code := 'KF019';
            RETURN;
        END IF;
        destroyed := fieldcrypt_internal.erase_tenant_keys(tenant, reason);
    EXCEPTION WHEN OTHERS THEN
        -- The approval, too, is as it was.
        GET STACKED DIAGNOSTICS
            error_code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
        PERFORM fieldcrypt_internal.record_event('key_refused', tenant, NULL,
            format('shred_tenant failed: %s (%s)', message, error_code), NULL);
    END;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.shred_step(text, text) IS
    'spends the approval and destroys a tenant''s keys; a refusal is recorded and given back, not raised';

CREATE PROCEDURE fieldcrypt.shred_tenant(tenant text, reason text)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    step pg_catalog.record;
    others pg_catalog.text;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened: what is shredded
    -- can't be rolled back, and what is refused is recorded.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM fieldcrypt_internal.refuse_unless_writable();
    PERFORM fieldcrypt_internal.by_own_hand();
    SELECT s.destroyed, s.error_code, s.message, s.hint INTO step FROM fieldcrypt_internal.shred_step(tenant, reason) AS s;
    COMMIT;
    IF step.message IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = step.error_code, MESSAGE = step.message, HINT = step.hint;
    END IF;
    others := fieldcrypt_internal.other_nodes();
    IF others IS NOT NULL THEN
        RAISE WARNING USING
            MESSAGE = pg_catalog.format('shred_tenant speaks for this node only: %s', others),
            HINT = 'A tenant is gone when its keys are destroyed on every node: call shred_tenant there, too, or see that the change has arrived. See docs/more-than-one-node.md.';
    END IF;
    RAISE NOTICE USING
        MESSAGE = pg_catalog.format('shred_tenant: %s encryption key(s) of tenant "%s" destroyed; no session can read its values from its next statement on', step.destroyed, tenant),
        DETAIL = 'Whoever has the master key can still read them with an older copy of the keys: dumps, key exports, base backups and archived WAL from before, standbys until they have replayed this, dead rows of fieldcrypt.encryption_keys on this server until VACUUM FULL.',
        HINT = 'VACUUM FULL fieldcrypt.encryption_keys; then delete those copies, or let them expire. To end it for all of them at once: rotate the master key, and destroy the old one.';
END
$$;
COMMENT ON PROCEDURE fieldcrypt.shred_tenant(text, text) IS
    'destroys all keys of a tenant at once, the active one too: its values are lost. Needs an approval unless fieldcrypt.require_approval says otherwise';

-- Destruction: scheduled, and done when it is due and nothing can use the key any more.

CREATE FUNCTION fieldcrypt_internal.schedule_destruction(key_id bigint, seconds bigint, reason text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_schedule_destruction';
CREATE FUNCTION fieldcrypt_internal.set_destroy_horizon(key_id bigint, horizon text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_set_destroy_horizon';
CREATE FUNCTION fieldcrypt_internal.erase_key(key_id bigint, reason text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_erase_key';
CREATE FUNCTION fieldcrypt.cancel_destroy_key(key_id bigint, reason text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_cancel_destroy_key';
COMMENT ON FUNCTION fieldcrypt_internal.schedule_destruction(bigint, bigint, text) IS 'schedules without looking for use; granted to nobody';
COMMENT ON FUNCTION fieldcrypt_internal.set_destroy_horizon(bigint, text) IS 'notes which prepared transactions have to end first; granted to nobody';
COMMENT ON FUNCTION fieldcrypt_internal.erase_key(bigint, text) IS 'erases a key whose destruction is due, without looking for use; granted to nobody';
COMMENT ON FUNCTION fieldcrypt.cancel_destroy_key(bigint, text) IS 'a key that destroy_key has scheduled stays';

CREATE FUNCTION fieldcrypt_internal.refuse_destruction(key_id bigint, delay interval) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    key record;
BEGIN
    IF key_id IS NULL OR delay IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'key_id and delay must not be NULL';
    END IF;
    IF now() + delay < now() + interval '7 days' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a key is destroyed after 7 days at the earliest',
            HINT = 'Until then cancel_destroy_key takes it back. A tenant''s data is destroyed at once by shred_tenant.';
    END IF;
    SELECT k.purpose, k.state, k.destroy_after INTO key FROM fieldcrypt.encryption_keys AS k WHERE k.key_id = key_id;
    IF key.state IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'KF003',
            MESSAGE = format('encryption key %s does not exist in this database', key_id),
            HINT = 'A value of it comes from another database, or fieldcrypt.encryption_keys was not restored with it. That table lists the keys that are here. (KF003, see docs/errors.md)';
    ELSIF key.purpose = 'audit' THEN
        RAISE EXCEPTION USING ERRCODE = 'KF018',
            MESSAGE = format('encryption key %s authenticates the audit log: it can''t be destroyed', key_id),
            HINT = 'Rows of the log could not be checked any more. (KF018, see docs/errors.md)';
    ELSIF key.state IN ('active', 'destroyed') THEN
        RAISE EXCEPTION USING ERRCODE = 'KF018',
            MESSAGE = format('encryption key %s is %s: it can''t be destroyed', key_id, key.state),
            HINT = 'An active key is replaced first: CALL fieldcrypt.rotate_keys(tenant), and its values are re-encrypted. (KF018, see docs/errors.md)';
    ELSIF key.destroy_after IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'KF018',
            MESSAGE = format('the destruction of encryption key %s is scheduled already', key_id),
            HINT = 'To change the date: SELECT fieldcrypt.cancel_destroy_key(key_id, reason), then schedule it anew. (KF018, see docs/errors.md)';
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.refuse_destruction(bigint, interval) IS 'an error if a key''s destruction can''t be scheduled so; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.schedule_unused(
        key_id bigint, delay interval, reason text, counted jsonb, OUT error_code text, OUT message text, OUT hint text)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    uses text := fieldcrypt_internal.use_of_key(counted, key_id);
BEGIN
    IF uses IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'KF017',
            MESSAGE = format('encryption key %s is in use', key_id),
            DETAIL = format('It encrypts %s.', uses),
            HINT = 'Re-encrypt these values first: CALL fieldcrypt.reencrypt(). SELECT * FROM fieldcrypt.key_usage(exact => true) shows all keys. (KF017, see docs/errors.md)';
    END IF;
    SELECT s.message, s.hint INTO message, hint FROM fieldcrypt_internal.spend_approval('destroy_key', key_id::text) AS s;
    IF message IS NOT NULL THEN
        error_code := 'KF019';
        RETURN;
    END IF;
    PERFORM fieldcrypt_internal.schedule_destruction(key_id,
        ceil(EXTRACT(epoch FROM now() + delay - now()))::bigint, reason);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.schedule_unused(bigint, interval, text, jsonb) IS
    'spends the approval and schedules a destruction, unless the key was found in use; a missing approval is recorded and given back, not raised; granted to nobody';

-- Counts and schedules in one step: whoever calls it by hand leaves nothing out.
CREATE FUNCTION fieldcrypt_internal.schedule_step(
        key_id bigint, delay interval, reason text, OUT error_code text, OUT message text, OUT hint text, OUT done text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    problem text;
BEGIN
    PERFORM fieldcrypt_internal.refuse_destruction(key_id, delay);
    SELECT s.error_code, s.message, s.hint INTO error_code, message, hint
      FROM fieldcrypt_internal.schedule_unused(key_id, delay, reason, fieldcrypt_internal.count_use(ARRAY[key_id])) AS s;
    -- What can't be counted must be so when it is due; it is said now, so that nobody waits in vain.
    problem := fieldcrypt_internal.uncountable('-infinity');
    IF message IS NULL AND problem IS NOT NULL THEN
        RAISE WARNING USING
            MESSAGE = format('it can''t be known that encryption key %s is unused: %s', key_id, problem),
            HINT = 'It is scheduled, but destroy_due_keys does not destroy it as long as this is so.';
    END IF;
    done := (SELECT format('destroy_due_keys destroys encryption key %s from %s on; until then cancel_destroy_key takes it back',
                        key_id, date_trunc('second', k.destroy_after))
               FROM fieldcrypt.encryption_keys AS k WHERE k.key_id = key_id);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.schedule_step(bigint, interval, text) IS
    'looks for use, spends the approval and schedules a destruction; a missing approval is recorded and given back, not raised';

-- The approval is asked for now and not when it is due: it lasts for 7 days at most, the delay for 7 at
-- least. Whoever regrets it has that time, and needs nobody's approval for cancel_destroy_key.
CREATE PROCEDURE fieldcrypt.destroy_key(
        key_id bigint, delay interval DEFAULT '30 days', reason text DEFAULT NULL)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    step pg_catalog.record;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM fieldcrypt_internal.refuse_unless_writable();
    SELECT s.error_code, s.message, s.hint, s.done INTO step FROM fieldcrypt_internal.schedule_step(key_id, delay, reason) AS s;
    COMMIT;
    IF step.message IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = step.error_code, MESSAGE = step.message, HINT = step.hint;
    END IF;
    RAISE NOTICE 'destroy_key: %', step.done;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.destroy_key(bigint, interval, text) IS
    'schedules the destruction of a key that no value uses, 7 days from now at the earliest; until then it decrypts, and cancel_destroy_key takes it back';

CREATE FUNCTION fieldcrypt.retire_keys(
        keep_versions integer, tenant text DEFAULT NULL, delay interval DEFAULT '30 days', reason text DEFAULT NULL)
    RETURNS TABLE (key_id bigint, key_tenant text, version integer, state text, outcome text, detail text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    keys bigint[];
    counted jsonb;
    step record;
    problem text := fieldcrypt_internal.uncountable('-infinity');
    scheduled bigint := 0;
BEGIN
    IF keep_versions IS NULL OR delay IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'keep_versions and delay must not be NULL';
    END IF;
    IF keep_versions < 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'at least one version of each tenant''s keys is kept',
            HINT = 'To destroy all of a tenant''s keys: CALL fieldcrypt.shred_tenant(tenant, reason).';
    END IF;
    keys := ARRAY(
        SELECT k.key_id
          FROM (SELECT a.*, row_number() OVER (PARTITION BY a.tenant ORDER BY a.version DESC) AS place
                  FROM fieldcrypt.encryption_keys AS a
                 WHERE a.purpose = 'field' AND a.state <> 'destroyed' AND (tenant IS NULL OR a.tenant = tenant)) AS k
         WHERE k.place > keep_versions AND k.state <> 'active' AND k.destroy_after IS NULL
         ORDER BY k.tenant, k.version);
    IF keys <> '{}' THEN
        counted := fieldcrypt_internal.count_use(keys);
    END IF;
    FOR key_id, key_tenant, version, state IN
        SELECT k.key_id, k.tenant, k.version, k.state
          FROM unnest(keys) WITH ORDINALITY AS u(id, place) JOIN fieldcrypt.encryption_keys AS k ON k.key_id = u.id
         ORDER BY u.place
    LOOP
        outcome := 'kept';
        detail := fieldcrypt_internal.use_of_key(counted, key_id);
        IF detail IS NOT NULL THEN
            detail := 'in use: ' || detail;
        ELSIF state = 'suspended' THEN
            detail := 'suspended: resume it, or schedule it with destroy_key';
        ELSE
            BEGIN
                PERFORM fieldcrypt_internal.refuse_destruction(key_id, delay);
                SELECT s.error_code, s.message INTO step FROM fieldcrypt_internal.schedule_unused(key_id, delay, reason, counted) AS s;
                IF step.message IS NULL THEN
                    outcome := 'scheduled';
                    scheduled := scheduled + 1;
                ELSE
                    detail := format('%s (%s)', step.message, step.error_code);
                END IF;
            EXCEPTION WHEN OTHERS THEN
                IF SQLSTATE = '22023' THEN
                    RAISE;
                END IF;
                detail := format('%s (%s)', SQLERRM, SQLSTATE);
            END;
        END IF;
        RETURN NEXT;
    END LOOP;
    -- As destroy_key says it.
    IF scheduled > 0 AND problem IS NOT NULL THEN
        RAISE WARNING USING
            MESSAGE = format('it can''t be known that %s encryption key(s) are unused: %s', scheduled, problem),
            HINT = 'They are scheduled, but destroy_due_keys does not destroy them as long as this is so.';
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt.retire_keys(integer, text, interval, text) IS
    'schedules the destruction of unused key versions but the newest ones of each tenant, and says of each what was done';

-- Whether every transaction that may have encrypted with a key has ended.
--
-- destroy_key and retire_keys schedule a key only when its last change of state is committed, so that no
-- transaction that began later has encrypted with it: every use of a cached key looks for changes first.
-- What deactivated_at says is not enough: it is the time of the change, not of its commit. The hour that
-- is added is for clocks that are set, and for a commit that is seen before its message arrives; since
-- nothing is due before 7 days, it costs nothing.
--
-- A prepared transaction shows no start, so what counts is its id: once none of the older transactions
-- runs any more, those that were prepared have ids below the next one, the horizon. It is noted at the
-- first chance, so that a database that always has some prepared transaction gets there.
CREATE FUNCTION fieldcrypt_internal.quiet_step(key_id bigint) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    key record;
    next_id bigint;
    horizon bigint;
    blockers text;
BEGIN
    SELECT k.destroy_scheduled_at + interval '1 hour' AS since, k.destroy_horizon INTO key
      FROM fieldcrypt.encryption_keys AS k
     WHERE k.key_id = key_id AND k.destroy_after IS NOT NULL AND k.state <> 'destroyed';
    IF key.since IS NULL THEN
        RETURN 'it is no longer scheduled';
    END IF;
    IF NOT (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user)
       AND NOT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') THEN
        RETURN format('the extension''s owner can''t see the transactions of others (GRANT pg_read_all_stats TO %I)', current_user);
    END IF;
    next_id := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
    horizon := key.destroy_horizon::text::bigint;
    -- One from the future came with a dump of another server.
    IF horizon IS NULL OR horizon > next_id THEN
        PERFORM pg_stat_clear_snapshot();
        SELECT string_agg(format('process %s of %s', a.pid, a.usename), ', ' ORDER BY a.xact_start) INTO blockers
          FROM pg_stat_activity AS a
         WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
           AND a.backend_type <> 'autovacuum worker'
           AND (a.xact_start < key.since
                -- With track_activities off nothing is known of its transaction.
                OR a.state = 'disabled' AND (a.backend_start < key.since OR a.backend_start IS NULL));
        IF blockers IS NOT NULL THEN
            RETURN format('transactions from before its schedule are running: %s', blockers);
        END IF;
        -- Taken after that look: whatever it missed because it was prepared has a lower id.
        horizon := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
        next_id := horizon;
        BEGIN
            PERFORM fieldcrypt_internal.set_destroy_horizon(key_id, horizon::text);
        EXCEPTION WHEN OTHERS THEN
            -- Of this key alone: the others go on.
            RETURN format('%s (%s)', SQLERRM, SQLSTATE);
        END;
    END IF;
    -- Ids of prepared transactions are the lower 32 bits.
    SELECT string_agg(format('%L', p.gid), ', ' ORDER BY p.prepared) INTO blockers
      FROM pg_prepared_xacts AS p
     WHERE p.database = current_database()
       AND next_id + ((p.transaction::text::bigint - next_id + 2147483648) & 4294967295) - 2147483648 < horizon;
    RETURN 'prepared transactions from before its schedule are open: ' || blockers;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.quiet_step(bigint) IS
    'why transactions may still hold values of a scheduled key; NULL if none can';

CREATE FUNCTION fieldcrypt_internal.scheduled_keys(OUT due bigint[], OUT unobserved bigint[])
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(k.key_id ORDER BY k.destroy_after, k.key_id) FILTER (WHERE k.destroy_after <= clock_timestamp()), '{}'),
           coalesce(array_agg(k.key_id) FILTER (WHERE k.destroy_after > clock_timestamp() AND k.destroy_horizon IS NULL
               AND k.destroy_scheduled_at + interval '1 hour' < clock_timestamp()), '{}')
      FROM fieldcrypt.encryption_keys AS k
     WHERE k.destroy_after IS NOT NULL AND k.state <> 'destroyed'
$$;
COMMENT ON FUNCTION fieldcrypt_internal.scheduled_keys() IS 'keys whose destruction is due, and those whose older transactions are still to be waited for';

-- Looks and erases in one step: whoever calls it by hand leaves nothing out. The order matters: first
-- nothing may run that encrypted with the key; then no table may hold a value of it; and what nobody can
-- write anew stays so until it is erased. What remains possible is a value that a client, or a
-- transaction that moves rows about at this very moment, holds outside of every table, and a restore.
CREATE FUNCTION fieldcrypt_internal.destroy_step(
        keys bigint[], ignore_uncountable boolean,
        OUT key_id bigint, OUT outcome text, OUT message text) RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    quiet bigint[] := '{}';
    counted jsonb;
    is_uncertain boolean;
    since timestamptz;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_transaction_state',
            MESSAGE = 'keys are destroyed in READ COMMITTED only: an older snapshot does not show what uses them';
    END IF;
    FOREACH key_id IN ARRAY keys LOOP
        message := fieldcrypt_internal.quiet_step(key_id);
        IF message IS NULL THEN
            quiet := quiet || key_id;
        ELSE
            outcome := 'waits';
            RETURN NEXT;
        END IF;
    END LOOP;
    IF quiet = '{}' THEN
        RETURN;
    END IF;
    counted := fieldcrypt_internal.count_use(quiet);
    is_uncertain := ignore_uncountable IS NOT TRUE AND fieldcrypt_internal.uncountable('infinity') IS NOT NULL;
    FOREACH key_id IN ARRAY quiet LOOP
        SELECT k.destroy_scheduled_at + interval '1 hour' INTO since
          FROM fieldcrypt.encryption_keys AS k WHERE k.key_id = key_id;
        outcome := 'waits';
        message := coalesce(
            'it is in use: ' || fieldcrypt_internal.use_of_key(counted, key_id),
            CASE WHEN is_uncertain THEN fieldcrypt_internal.uncountable(since) END);
        IF message IS NULL THEN
            BEGIN
                PERFORM fieldcrypt_internal.erase_key(key_id, CASE WHEN ignore_uncountable THEN 'ignore_uncountable' END);
                outcome := 'destroyed';
            EXCEPTION WHEN OTHERS THEN
                outcome := 'failed';
                message := format('%s (%s)', SQLERRM, SQLSTATE);
                PERFORM fieldcrypt_internal.record_event('key_refused', NULL, key_id, 'destruction failed: ' || message, NULL);
            END;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.destroy_step(bigint[], boolean) IS
    'erases those of some due keys that no transaction and no table can hold a value of, and says what keeps the others';

CREATE PROCEDURE fieldcrypt.destroy_due_keys(ignore_uncountable boolean DEFAULT false)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    scheduled pg_catalog.record;
    outcomes pg_catalog.jsonb;
    outcome pg_catalog.record;
    id pg_catalog.int8;
    place pg_catalog.int4 := 1;
    destroyed pg_catalog.int8 := 0;
    waiting pg_catalog.int8 := 0;
    failed pg_catalog.int8 := 0;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM fieldcrypt_internal.refuse_unless_writable();
    SELECT s.due, s.unobserved INTO scheduled FROM fieldcrypt_internal.scheduled_keys() AS s;
    -- What is seen of transactions is kept, also of keys that are not due, and if the rest fails.
    FOREACH id IN ARRAY scheduled.due OPERATOR(pg_catalog.||) scheduled.unobserved LOOP
        PERFORM fieldcrypt_internal.quiet_step(id);
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    END LOOP;
    -- Many at once, since each time all tables are read.
    WHILE place OPERATOR(pg_catalog.<=) pg_catalog.cardinality(scheduled.due) LOOP
        SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(s)) INTO outcomes
          FROM fieldcrypt_internal.destroy_step(
                   (scheduled.due)[place : place OPERATOR(pg_catalog.+) 9999], COALESCE(ignore_uncountable, false)) AS s;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        FOR outcome IN
            SELECT o.key_id, o.outcome, o.message
              FROM pg_catalog.jsonb_to_recordset(outcomes)
                   AS o(key_id pg_catalog.int8, outcome pg_catalog.text, message pg_catalog.text)
        LOOP
            IF outcome.outcome OPERATOR(pg_catalog.=) 'destroyed' THEN
                destroyed := destroyed OPERATOR(pg_catalog.+) 1;
            ELSIF outcome.outcome OPERATOR(pg_catalog.=) 'waits' THEN
                waiting := waiting OPERATOR(pg_catalog.+) 1;
            ELSE
                failed := failed OPERATOR(pg_catalog.+) 1;
            END IF;
            IF outcome.message IS NOT NULL THEN
                RAISE WARNING USING
                    MESSAGE = pg_catalog.format('encryption key %s is not destroyed: %s', outcome.key_id, outcome.message),
                    HINT = 'It stays scheduled; cancel_destroy_key takes it back.';
            END IF;
        END LOOP;
        place := place OPERATOR(pg_catalog.+) 10000;
    END LOOP;
    RAISE NOTICE 'destroy_due_keys: % destroyed, % waiting, % failed', destroyed, waiting, failed;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.destroy_due_keys(boolean) IS
    'erases the keys whose destruction is due and that nothing can use any more. ignore_uncountable: also if there are tables whose values can''t be counted';

-- sql/rotation.sql
-- Rotation: how often, and the procedure that does it. The procedure loops and commits, with its
-- caller's rights; each step does its work with the owner's.

CREATE TABLE fieldcrypt.rotation_policies (
    tenant text COLLATE "C" PRIMARY KEY CHECK (pg_catalog.octet_length(tenant) OPERATOR(pg_catalog.<=) 1024),
    rotate_every interval NOT NULL,
    set_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    set_by text NOT NULL DEFAULT session_user
);
COMMENT ON TABLE fieldcrypt.rotation_policies IS 'how old a tenant''s active key may become; written by set_rotation_policy';
COMMENT ON COLUMN fieldcrypt.rotation_policies.tenant IS 'whose keys; empty: all tenants without a row of their own, which is 90 days without this row';
COMMENT ON COLUMN fieldcrypt.rotation_policies.rotate_every IS 'the age at which an active key is due';
COMMENT ON COLUMN fieldcrypt.rotation_policies.set_at IS 'when it was set';
COMMENT ON COLUMN fieldcrypt.rotation_policies.set_by IS 'session_user: who set it';

SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.rotation_policies', '');

-- The ids are those of the audit log: a restored database deals out higher ones.
CREATE TABLE fieldcrypt.rotation_log (
    id bigint PRIMARY KEY DEFAULT pg_catalog.nextval('fieldcrypt_internal.audit_log_id_seq'),
    run_started_at timestamptz NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    tenant text COLLATE "C" NOT NULL,
    outcome text COLLATE "C" NOT NULL CHECK (outcome IN ('rotated', 'created', 'failed')),
    old_key_id bigint,
    new_key_id bigint,
    error_code text COLLATE "C",
    error text,
    reason text,
    actor text NOT NULL DEFAULT session_user,
    role text NOT NULL DEFAULT fieldcrypt_internal.outer_role()
);
CREATE INDEX rotation_log_tenant ON fieldcrypt.rotation_log (tenant, id);
COMMENT ON TABLE fieldcrypt.rotation_log IS 'what rotate_keys did: a row for each tenant that it rotated or failed to, append-only';
COMMENT ON COLUMN fieldcrypt.rotation_log.id IS 'in the order of writing; shares its numbers with audit_log';
COMMENT ON COLUMN fieldcrypt.rotation_log.run_started_at IS 'when the statement that called rotate_keys began: the same for all rows of a run';
COMMENT ON COLUMN fieldcrypt.rotation_log.started_at IS 'when this tenant''s turn began';
COMMENT ON COLUMN fieldcrypt.rotation_log.ended_at IS 'when it ended';
COMMENT ON COLUMN fieldcrypt.rotation_log.tenant IS 'whose key';
COMMENT ON COLUMN fieldcrypt.rotation_log.outcome IS 'rotated; created (no key was active); failed';
COMMENT ON COLUMN fieldcrypt.rotation_log.old_key_id IS 'the key that was active before';
COMMENT ON COLUMN fieldcrypt.rotation_log.new_key_id IS 'the key that is active since';
COMMENT ON COLUMN fieldcrypt.rotation_log.error_code IS 'SQLSTATE of the failure';
COMMENT ON COLUMN fieldcrypt.rotation_log.error IS 'message of the failure';
COMMENT ON COLUMN fieldcrypt.rotation_log.reason IS 'why, in the words of the call';
COMMENT ON COLUMN fieldcrypt.rotation_log.actor IS 'session_user: who logged in';
COMMENT ON COLUMN fieldcrypt.rotation_log.role IS 'the role chosen with SET ROLE; the actor, if none was';

SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.rotation_log', '');

CREATE FUNCTION fieldcrypt_internal.store_rotation_policy(tenant text, every text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_store_rotation_policy';
COMMENT ON FUNCTION fieldcrypt_internal.store_rotation_policy(text, text) IS
    'writes a row of rotation_policies, or removes it; granted to nobody';

CREATE FUNCTION fieldcrypt.set_rotation_policy(tenant text, every interval) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET intervalstyle = 'postgres'
AS $$
DECLARE
    -- The shortest month: an interval of months less days is measured where it is shortest.
    february timestamptz := '2026-02-01 00:00:00+00';
    had boolean := EXISTS (SELECT FROM fieldcrypt.rotation_policies AS p WHERE p.tenant = coalesce($1, ''));
    whose text := CASE WHEN $1 IS NULL THEN 'the key of each tenant without a policy of its own' ELSE format('the key of tenant "%s"', $1) END;
BEGIN
    IF tenant = '' OR octet_length(tenant) > 1024 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a policy is for a tenant, whose name has 1 to 1024 bytes',
            HINT = 'NULL sets the default for all tenants.';
    END IF;
    -- First by itself: a date can't be moved by any interval.
    IF every > interval '100 years' OR every < interval '1 hour' OR february + every < february + interval '1 hour' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('a rotation policy of %s is refused: it must be from one hour to 100 years', every),
            HINT = 'Usual are 90 days or a year. NULL removes the policy.';
    END IF;
    PERFORM fieldcrypt_internal.store_rotation_policy(coalesce(tenant, ''), every::text);
    PERFORM fieldcrypt_internal.record_event(
        CASE WHEN every IS NULL THEN 'rotation_policy_removed' ELSE 'rotation_policy_set' END,
        tenant, NULL, every::text, NULL);
    IF every IS NOT NULL THEN
        RAISE NOTICE 'set_rotation_policy: % is due for rotation after %', whose, every;
    ELSIF had THEN
        RAISE NOTICE 'set_rotation_policy: % goes by the default again', whose;
    ELSE
        RAISE NOTICE 'set_rotation_policy: nothing to do: % goes by the default already', whose;
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt.set_rotation_policy(text, interval) IS
    'sets after what time a tenant''s key is due for rotation; tenant NULL: the default for all (90 days); interval NULL: removes it';

CREATE FUNCTION fieldcrypt_internal.rotate_active_key(
        tenant text, reason text, force boolean, expected_key_id bigint,
        OUT old_key_id bigint, OUT new_key_id bigint)
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_rotate_active_key';
COMMENT ON FUNCTION fieldcrypt_internal.rotate_active_key(text, text, boolean, bigint) IS
    'deactivates a tenant''s active key and makes the next version, if the expected one is active still; 0 is none; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.log_rotation(
        run_started_at timestamptz, started_at timestamptz, tenant text, outcome text,
        old_key_id bigint, new_key_id bigint, error_code text, error text, reason text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_log_rotation';
COMMENT ON FUNCTION fieldcrypt_internal.log_rotation(timestamptz, timestamptz, text, text, bigint, bigint, text, text, text) IS
    'writes a row of rotation_log; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.refuse_unless_writable() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_unless_writable';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_unless_writable() IS
    'an error where no key can be made: on a standby, in a READ ONLY transaction';

CREATE FUNCTION fieldcrypt_internal.refuse_unless_committable() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_unless_committable';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_unless_committable() IS
    'an error where the procedure that calls it could not commit: in a transaction block, in a function';

-- The settings keep it a walk along the index of active keys, whatever statistics there are: a run
-- over all tenants walks it once.
CREATE FUNCTION fieldcrypt_internal.next_tenant(
        after_tenant text, force boolean, run_started_at timestamptz, OUT tenant text, OUT key_id bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
    SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    default_every interval := coalesce(
        (SELECT p.rotate_every FROM fieldcrypt.rotation_policies AS p WHERE p.tenant = ''), interval '90 days');
BEGIN
    SELECT k.tenant, k.key_id
      INTO tenant, key_id
      FROM fieldcrypt.encryption_keys AS k
     WHERE k.purpose = 'field'
       AND k.state = 'active'
       AND k.tenant > coalesce(after_tenant, '')
       AND k.created_at <= run_started_at - CASE WHEN force THEN interval '0' ELSE coalesce(
               (SELECT p.rotate_every FROM fieldcrypt.rotation_policies AS p WHERE p.tenant = k.tenant),
               default_every) END
     ORDER BY k.tenant
     LIMIT 1;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.next_tenant(text, boolean, timestamptz) IS
    'the next tenant, in the order of names, whose active key was due when the run started (with force: was there)';

CREATE FUNCTION fieldcrypt_internal.due_audit_key(force boolean, run_started_at timestamptz, OUT tenant text, OUT key_id bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
    SELECT k.tenant, k.key_id
      FROM fieldcrypt.encryption_keys AS k
     WHERE k.purpose = 'audit' AND k.state = 'active'
       AND k.created_at <= $2 - CASE WHEN $1 THEN interval '0' ELSE coalesce(
               (SELECT p.rotate_every FROM fieldcrypt.rotation_policies AS p WHERE p.tenant = ''), interval '90 days') END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.due_audit_key(boolean, timestamptz) IS
    'the key that authenticates the audit log, if it was due by the default policy when the run started (with force: if there is one)';

CREATE FUNCTION fieldcrypt_internal.count_active_tenants() RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT count(*) FROM fieldcrypt.encryption_keys AS k WHERE k.purpose = 'field' AND k.state = 'active'
$$;
COMMENT ON FUNCTION fieldcrypt_internal.count_active_tenants() IS 'how many tenants have an active key';

CREATE FUNCTION fieldcrypt_internal.rotate_step(
        tenant text, reason text, force boolean, expected_key_id bigint,
        OUT outcome text, OUT error_code text, OUT message text, OUT hint text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    started_at timestamptz := clock_timestamp();
    -- The statement that is the run: its time stays the same over the commits of a procedure.
    run_started_at timestamptz := statement_timestamp();
    keys record;
BEGIN
    BEGIN
        SELECT r.old_key_id, r.new_key_id INTO keys
          FROM fieldcrypt_internal.rotate_active_key(tenant, reason, force, expected_key_id) AS r;
        outcome := CASE WHEN keys.new_key_id = 0 THEN 'not due' WHEN keys.old_key_id = 0 THEN 'created' ELSE 'rotated' END;
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS
            error_code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
        hint := coalesce(nullif(hint, ''), 'See fieldcrypt.rotation_log.');
        outcome := 'failed';
        PERFORM fieldcrypt_internal.record_event('key_refused', left(tenant, 1024), NULL,
            format('rotation failed: %s (%s)', message, error_code), NULL);
        -- A name that is too long is refused; the index takes no such.
        PERFORM fieldcrypt_internal.log_rotation(run_started_at, started_at,
            CASE WHEN octet_length(tenant) <= 1024 THEN tenant ELSE left(coalesce(tenant, ''), 256) END, outcome,
            (SELECT k.key_id FROM fieldcrypt.encryption_keys AS k
              WHERE k.tenant = rotate_step.tenant AND k.state = 'active' ORDER BY k.purpose DESC LIMIT 1),
            NULL, error_code, message, reason);
        RETURN;
    END;
    IF outcome <> 'not due' THEN
        PERFORM fieldcrypt_internal.log_rotation(run_started_at, started_at, tenant, outcome,
            nullif(keys.old_key_id, 0), keys.new_key_id, NULL, NULL, reason);
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.rotate_step(text, text, boolean, bigint) IS
    'rotates one tenant''s key; a failure is recorded and given back, not raised';

CREATE FUNCTION fieldcrypt.rotate_key(tenant text, reason text DEFAULT NULL) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    started_at timestamptz := clock_timestamp();
    keys record;
BEGIN
    SELECT r.old_key_id, r.new_key_id INTO keys
      FROM fieldcrypt_internal.rotate_active_key(tenant, reason, false, NULL) AS r;
    PERFORM fieldcrypt_internal.log_rotation(started_at, started_at, tenant, 'rotated',
        keys.old_key_id, keys.new_key_id, NULL, NULL, reason);
    RETURN keys.new_key_id;
END
$$;
COMMENT ON FUNCTION fieldcrypt.rotate_key(text, text) IS
    'makes a new key version for a tenant inside the transaction that calls it, and gives its id: for migrations and tests; rotate_keys is for everything else';

CREATE PROCEDURE fieldcrypt.rotate_keys(
        tenant text DEFAULT NULL, reason text DEFAULT NULL, force boolean DEFAULT false)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    -- Names of types too are looked up by the caller's search_path.
    run_started_at pg_catalog.timestamptz := pg_catalog.clock_timestamp();
    current_tenant pg_catalog.text := tenant;
    expected_key_id pg_catalog.int8;
    step pg_catalog.record;
    rotated pg_catalog.int8 := 0;
    failed pg_catalog.int8 := 0;
    others pg_catalog.int8 := 0;
    is_audit_key pg_catalog.bool := false;
    from_elsewhere pg_catalog.text;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF tenant IS NULL THEN
        -- A subscriber rotates nothing; a worker of Citus only the key of its own log.
        PERFORM fieldcrypt_internal.refuse_unless_made_here('audit');
        from_elsewhere := fieldcrypt_internal.keys_from('field');
        IF from_elsewhere IS NOT NULL THEN
            RAISE WARNING USING ERRCODE = 'KF034',
                MESSAGE = pg_catalog.format('the keys of tenants are not rotated here: %s', from_elsewhere),
                HINT = 'CALL fieldcrypt.rotate_keys() on the coordinator, then export_keys() there and import_keys(document, apply_states => true) on every worker. (KF034, see docs/errors.md)';
        END IF;
    END IF;
    LOOP
        -- This too lasts for one transaction only.
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        PERFORM fieldcrypt_internal.refuse_unless_writable();
        IF tenant IS NULL THEN
            IF from_elsewhere IS NULL THEN
                SELECT n.tenant, n.key_id INTO current_tenant, expected_key_id
                  FROM fieldcrypt_internal.next_tenant(current_tenant, force, run_started_at) AS n;
            END IF;
            IF current_tenant IS NULL THEN
                -- The last one, and no tenant's.
                is_audit_key := true;
                SELECT n.tenant, n.key_id INTO current_tenant, expected_key_id
                  FROM fieldcrypt_internal.due_audit_key(force, run_started_at) AS n;
                EXIT WHEN current_tenant IS NULL;
            END IF;
        END IF;
        -- Another run may come first: then the expected key is not active any more, and nothing is done.
        SELECT s.outcome, s.error_code, s.message, s.hint INTO step
          FROM fieldcrypt_internal.rotate_step(current_tenant, reason, force, expected_key_id) AS s;
        COMMIT;
        -- At once: any expression after a COMMIT takes a snapshot, and then it is too late.
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        IF is_audit_key THEN
            IF step.outcome OPERATOR(pg_catalog.=) 'failed' THEN
                RAISE WARNING USING
                    ERRCODE = step.error_code,
                    MESSAGE = pg_catalog.format('the key of the audit log was not rotated: %s', step.message),
                    HINT = step.hint;
            END IF;
            EXIT;
        ELSIF step.outcome IN ('rotated', 'created') THEN
            rotated := rotated OPERATOR(pg_catalog.+) 1;
        ELSIF step.outcome OPERATOR(pg_catalog.=) 'failed' AND tenant IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = step.error_code,
                MESSAGE = pg_catalog.format('the key of tenant "%s" was not rotated: %s', tenant, step.message),
                HINT = step.hint;
        ELSIF step.outcome OPERATOR(pg_catalog.=) 'failed' THEN
            failed := failed OPERATOR(pg_catalog.+) 1;
            RAISE WARNING USING
                ERRCODE = step.error_code,
                MESSAGE = pg_catalog.format('the key of tenant "%s" was not rotated: %s', current_tenant, step.message),
                HINT = step.hint;
        END IF;
        EXIT WHEN tenant IS NOT NULL;
    END LOOP;
    IF tenant IS NULL THEN
        others := GREATEST(fieldcrypt_internal.count_active_tenants() OPERATOR(pg_catalog.-) rotated OPERATOR(pg_catalog.-) failed, 0);
    END IF;
    RAISE NOTICE 'rotate_keys: % rotated, % failed, % not due (see fieldcrypt.rotation_log)', rotated, failed, others;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.rotate_keys(text, text, boolean) IS
    'makes a new key version for each tenant whose key is due by its policy, and for the audit log by the default policy, or for the tenant named; each in its own transaction; old values stay readable. force: for all with an active key, or for the tenant named also where no key is active';

-- sql/encrypted_columns.sql
-- Where encrypted values are: found in the catalogs, since no column can hold them unless its type says so.

-- The planner takes the recursion for expensive: compiling it takes a hundred times as long as running it.
CREATE FUNCTION fieldcrypt_internal.encrypted_columns()
    RETURNS TABLE (relation oid, table_name text, kind "char", attnum smallint, column_name text,
                   holds text, is_readable boolean, problem text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET jit = off
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
           c.relkind <> 'f' AND c.oid <> ALL (elsewhere.relations)
               AND NOT (c.relpersistence = 't' AND n.oid <> pg_my_temp_schema())
               AND c.relam = (SELECT m.oid FROM pg_am AS m WHERE m.amname = 'heap'),
           CASE WHEN c.relkind = 'f' THEN 'a foreign table'
                WHEN c.oid = ANY (elsewhere.relations) THEN 'a distributed table of Citus: its rows are in shards, on other nodes, too'
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
     CROSS JOIN (SELECT fieldcrypt_internal.distributed_tables() AS relations) AS elsewhere
     ORDER BY 2, 4
$$;
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_columns() IS
    'every column of this database that can hold encrypted values: in itself, in a domain, an array or a composite; problem: why it is not re-encrypted';

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

-- sql/enforced_contexts.sql
-- Contexts that are enforced: triggers that refuse what is not authentic for the row that it is written to.
--
-- The declaration is the condition of two triggers: it follows renames, goes into dumps, is copied to partitions
-- that are attached later, and is created by pg_restore after the data are there. AFTER ROW, so that it sees the row
-- as it was stored, whatever other triggers and generated columns did; and since the condition itself refuses, and is
-- never met, no event is queued.

CREATE FUNCTION fieldcrypt_internal.is_foreign(value "any", context text, column_name text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10 AS 'MODULE_PATHNAME', 'fieldcrypt_is_foreign';
COMMENT ON FUNCTION fieldcrypt_internal.is_foreign("any", text, text) IS
    'condition of triggers: an error unless a value is authentic for the context of its row; otherwise false';
CREATE FUNCTION fieldcrypt_internal.is_changed_to_foreign(
        value "any", context text, old_value "any", old_context text, column_name text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10 AS 'MODULE_PATHNAME', 'fieldcrypt_is_changed_to_foreign';
COMMENT ON FUNCTION fieldcrypt_internal.is_changed_to_foreign("any", text, "any", text, text) IS
    'the same for an UPDATE: what was there before, and is bound to the same, passes';

CREATE FUNCTION fieldcrypt_internal.refuse_foreign() RETURNS trigger
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_foreign';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_foreign() IS
    'what the triggers of an enforced context have as their function; their condition does the work and is never met';

CREATE FUNCTION fieldcrypt_internal.enforcing_triggers()
    RETURNS TABLE (relation oid, trigger_name text, column_name text, is_update boolean, fires boolean, is_copy boolean)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off SET standard_conforming_strings = on
AS $$
    SELECT t.tgrelid, t.tgname::text,
           (parse_ident(d.parts[3]))[1], d.parts[2] = 'is_changed_to_foreign',
           -- AFTER UPDATE or AFTER INSERT FOR EACH ROW, of all columns, at once, and on no other condition.
           t.tgenabled IN ('O', 'A') AND t.tgtype = CASE d.parts[2] WHEN 'is_changed_to_foreign' THEN 17 ELSE 5 END
               AND t.tgattr::text = '' AND t.tgconstraint = 0 AND d.parts[1] = '',
           t.tgparentid <> 0
      FROM pg_trigger AS t,
           regexp_match(pg_get_triggerdef(t.oid),
               ' WHEN \((.*?)fieldcrypt_internal\.(is_foreign|is_changed_to_foreign)\(new\.("(?:[^"]|"")+"|[a-z0-9_$]+), ') AS d(parts)
     WHERE t.tgfoid = 'fieldcrypt_internal.refuse_foreign()'::regprocedure
$$;
COMMENT ON FUNCTION fieldcrypt_internal.enforcing_triggers() IS
    'the triggers of enforced contexts: on which table, for which column, whether they fire, whether they are a partition''s copy';

CREATE FUNCTION fieldcrypt_internal.drop_enforcing_triggers(relation oid, column_name text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
AS $$
DECLARE
    item record;
    dropped boolean := false;
BEGIN
    FOR item IN
        SELECT e.relation, e.trigger_name
          FROM fieldcrypt_internal.enforcing_triggers() AS e
         WHERE e.column_name = $2 AND NOT e.is_copy
           AND e.relation IN (SELECT t.relation FROM fieldcrypt_internal.with_descendants($1) AS t)
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', item.trigger_name, item.relation::regclass);
        dropped := true;
    END LOOP;
    RETURN dropped;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.drop_enforcing_triggers(oid, text) IS
    'what is written to a column is not checked any more; says whether it was';

CREATE FUNCTION fieldcrypt_internal.create_enforcing_triggers(
        relation oid, column_name text, new_context text, old_context text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off SET standard_conforming_strings = on
AS $$
DECLARE
    item record;
    trigger_name text;
    number integer;
BEGIN
    -- Partitions have their parent's triggers; tables that inherit otherwise do not. Those of another owner are his.
    FOR item IN
        SELECT c.oid::regclass AS relation, format('%s.%I', c.oid::regclass, $2) AS place
          FROM fieldcrypt_internal.with_descendants($1) AS t
          JOIN pg_class AS c ON c.oid = t.relation
         WHERE c.relkind IN ('r', 'p') AND (c.oid = $1 OR NOT c.relispartition)
           AND c.relowner = (SELECT o.relowner FROM pg_class AS o WHERE o.oid = $1)
    LOOP
        number := 0;
        LOOP
            trigger_name := format('fieldcrypt_context_%s', number);
            EXIT WHEN NOT EXISTS (
                SELECT FROM pg_trigger AS g
                 WHERE g.tgname IN (trigger_name || '_insert', trigger_name || '_update')
                   AND g.tgrelid IN (SELECT t.relation FROM fieldcrypt_internal.with_descendants(item.relation) AS t));
            number := number + 1;
        END LOOP;
        EXECUTE format('CREATE TRIGGER %I AFTER INSERT ON %s FOR EACH ROW
            WHEN (fieldcrypt_internal.is_foreign(new.%I, %s, %L)) EXECUTE FUNCTION fieldcrypt_internal.refuse_foreign()',
            trigger_name || '_insert', item.relation, $2, new_context, item.place);
        EXECUTE format('CREATE TRIGGER %I AFTER UPDATE ON %s FOR EACH ROW
            WHEN (fieldcrypt_internal.is_changed_to_foreign(new.%I, %s, old.%I, %s, %L)) EXECUTE FUNCTION fieldcrypt_internal.refuse_foreign()',
            trigger_name || '_update', item.relation, $2, new_context, $2, old_context, item.place);
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.create_enforcing_triggers(oid, text, text, text) IS
    'what is written to a column is checked from now on';

-- sql/column_contexts.sql
-- What the values of columns are bound to, remembered for re-encryption.

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
    enforced boolean NOT NULL DEFAULT false,
    owner_here text,
    PRIMARY KEY (table_name, column_name),
    CHECK ((constant IS NULL) OPERATOR(pg_catalog.<>) (expression IS NULL))
);
SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.column_contexts', '');
COMMENT ON TABLE fieldcrypt.column_contexts IS 'what the values of columns are bound to, for re-encryption: written by fieldcrypt.set_column_context()';
COMMENT ON COLUMN fieldcrypt.column_contexts.table_name IS 'the table, qualified';
COMMENT ON COLUMN fieldcrypt.column_contexts.column_name IS 'the column';
COMMENT ON COLUMN fieldcrypt.column_contexts.constant IS 'one context for all values of the column';
COMMENT ON COLUMN fieldcrypt.column_contexts.expression IS 'an expression over the columns of the row, as in a CHECK constraint';
COMMENT ON COLUMN fieldcrypt.column_contexts.table_owner IS 'owner of the table when it was set; it counts only while that is the owner';
COMMENT ON COLUMN fieldcrypt.column_contexts.set_by IS 'session_user: who set it';
COMMENT ON COLUMN fieldcrypt.column_contexts.set_at IS 'when it was set';
COMMENT ON COLUMN fieldcrypt.column_contexts.owner_here IS 'the owner by number, and of which server: a role that was renamed is the same';
COMMENT ON COLUMN fieldcrypt.column_contexts.enforced IS 'whether triggers refuse what is not authentic for its row';

CREATE FUNCTION fieldcrypt_internal.role_here(role oid) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('%s/%s', (SELECT s.system_identifier FROM pg_control_system() AS s), $1)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.role_here(oid) IS 'a role by number, and of which server';

CREATE FUNCTION fieldcrypt_internal.is_owner(context fieldcrypt.column_contexts, role oid) RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
AS $$
    SELECT CASE WHEN context.table_owner = role::regrole::text THEN true
                ELSE coalesce(context.owner_here = fieldcrypt_internal.role_here(role), false) END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.is_owner(fieldcrypt.column_contexts, oid) IS 'whether a role owned the table when its context was set, whatever it was called';

CREATE FUNCTION fieldcrypt_internal.remember_column_context(
        relation oid, column_name text, constant text, expression text, is_mutable boolean,
        enforce boolean, new_context text, old_context text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    qualified_name text;
    owner text;
    was_enforced boolean;
    was_there boolean;
    whose text := format('%s.%I', $1::regclass, $2);
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
    IF enforce AND constant = '' AND expression = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'there is no context to be enforced',
            HINT = 'Pass it with enforce => true, as an expression such as fieldcrypt.context(''patients.ssn'', id).';
    END IF;
    IF is_mutable THEN
        RAISE WARNING USING
            MESSAGE = 'the context expression goes by settings or tables, too: what a session writes by its own may not open elsewhere',
            HINT = 'It is computed with DateStyle ISO, TimeZone UTC and the like. fieldcrypt.context(name, columns of the key) is the same for ever.';
    END IF;
    IF constant = '' AND expression = '' THEN
        DELETE FROM fieldcrypt.column_contexts AS c WHERE c.table_name = qualified_name AND c.column_name = $2;
        was_there := FOUND;
    ELSE
        INSERT INTO fieldcrypt.column_contexts (table_name, column_name, constant, expression, enforced, table_owner, owner_here)
        VALUES (qualified_name, $2, nullif($3, ''), nullif($4, ''), enforce, owner,
                (SELECT fieldcrypt_internal.role_here(c.relowner) FROM pg_class AS c WHERE c.oid = $1))
            ON CONFLICT ON CONSTRAINT column_contexts_pkey DO UPDATE
           SET constant = excluded.constant, expression = excluded.expression, enforced = excluded.enforced,
               table_owner = excluded.table_owner, owner_here = excluded.owner_here, set_by = excluded.set_by, set_at = excluded.set_at;
    END IF;
    was_enforced := fieldcrypt_internal.drop_enforcing_triggers($1, $2);
    IF enforce THEN
        PERFORM fieldcrypt_internal.create_enforcing_triggers($1, $2,
            CASE WHEN constant <> '' THEN quote_literal(constant) ELSE new_context END,
            CASE WHEN constant <> '' THEN quote_literal(constant) ELSE old_context END);
    END IF;
    IF enforce THEN
        RAISE NOTICE 'set_column_context: the context of % is remembered, and what is written and does not open with it is refused', whose;
    ELSIF was_there IS NULL THEN
        RAISE NOTICE 'set_column_context: the context of % is remembered%', whose, CASE WHEN was_enforced THEN ', and not enforced any more' ELSE '' END;
    ELSIF was_there OR was_enforced THEN
        RAISE NOTICE 'set_column_context: the context of % is forgotten%', whose, CASE WHEN was_enforced THEN ', and not enforced any more' ELSE '' END;
    ELSE
        RAISE NOTICE 'set_column_context: nothing to do: % has no context', whose;
    END IF;
    PERFORM fieldcrypt_internal.record_event('column_context_set', NULL, NULL,
        CASE WHEN enforce THEN column_name || ', enforced' ELSE column_name END, $1::regclass::text);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.remember_column_context(oid, text, text, text, boolean, boolean, text, text) IS
    'set_column_context for a caller whose rights were checked; granted to nobody';

-- C with the caller's rights: whose these are can't be told any more inside of a SECURITY DEFINER
-- function, and SET ROLE says nothing of the function that may call this.
CREATE FUNCTION fieldcrypt.set_column_context(
        relation regclass, column_name name, constant text DEFAULT '', expression text DEFAULT '',
        enforce boolean DEFAULT false)
    RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_set_column_context';
COMMENT ON FUNCTION fieldcrypt.set_column_context(regclass, name, text, text, boolean) IS
    'remembers what the values of a column are bound to, so that they can be re-encrypted and verified: a constant, or an expression over the row (names outside pg_catalog qualified), computed as the table''s owner; for a partitioned table it holds for its partitions; enforce: what is written and not authentic for its row is refused; neither takes it away';

-- PL/pgSQL, which keeps its plan: this is called for every batch.
CREATE FUNCTION fieldcrypt_internal.contexts_of(relation oid) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
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
           AND fieldcrypt_internal.is_owner(x, c.relowner)
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

-- sql/context_renames.sql
-- Contexts follow renames. They are remembered by name, so that a dump restores them; but a name is not what stays of a
-- table. So before an ALTER that renames something it is looked up what the names mean, and after it they are brought up
-- to what they are now: of the table, its schema, the column, and the columns in the expression. What it writes is about
-- what the statement itself has locked: DDL on other tables neither waits for it nor costs more.

CREATE FUNCTION fieldcrypt_internal.column_names(relation oid) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(jsonb_object_agg(a.attnum, a.attname), '{}') FROM pg_attribute AS a
     WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
$$;
COMMENT ON FUNCTION fieldcrypt_internal.column_names(oid) IS 'the columns of a table, by number';

CREATE FUNCTION fieldcrypt_internal.renamed_expression(relation oid, expression text, old_table text, old_columns text)
    RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_renamed_expression';
COMMENT ON FUNCTION fieldcrypt_internal.renamed_expression(oid, text, text, text) IS
    'an expression that calls a table and its columns by old names, with those of now; old_columns: identifiers, comma-separated, one for each column that is there';

-- Typed tables have the columns of their type, and descendants those of their parent.
CREATE FUNCTION fieldcrypt_internal.altered_tables(what text, object oid) RETURNS TABLE (relation oid)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off SET jit = off
AS $$
    WITH RECURSIVE tree (relation) AS (
        SELECT a.relation
          FROM (SELECT $2 WHERE $1 = 'relation'
                UNION
                SELECT t.oid FROM pg_class AS c JOIN pg_class AS t ON t.reloftype = c.reltype
                 WHERE $1 = 'relation' AND c.oid = $2 AND c.relkind = 'c'
                UNION
                SELECT c.oid FROM pg_class AS c WHERE $1 = 'schema' AND c.relnamespace = $2 AND c.relkind IN ('r', 'p')
                UNION
                SELECT to_regclass(x.table_name)::oid FROM fieldcrypt.column_contexts AS x WHERE $1 = 'extension') AS a (relation)
         WHERE a.relation IS NOT NULL
        UNION
        SELECT i.inhrelid FROM tree AS t JOIN pg_inherits AS i ON i.inhparent = t.relation
    )
    SELECT t.relation FROM tree AS t
$$;
COMMENT ON FUNCTION fieldcrypt_internal.altered_tables(text, oid) IS 'tables whose name, or whose columns'' names, an ALTER may change; what: relation, schema or extension (all)';

CREATE FUNCTION fieldcrypt_internal.before_alter(what text, object oid) RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off SET jit = off
AS $$
BEGIN
    IF what = 'leaves' THEN
        RETURN coalesce((SELECT jsonb_build_object('leaves', object::bigint, 'parents', jsonb_agg(i.inhparent::bigint))
                           FROM pg_inherits AS i WHERE i.inhrelid = object HAVING count(*) > 0)::text, '');
    END IF;
    IF NOT EXISTS (SELECT FROM fieldcrypt.column_contexts) THEN
        RETURN '';
    END IF;
    -- Of those that count: a table of another owner may have the name by now.
    RETURN coalesce((
        SELECT jsonb_agg(jsonb_build_object('table_name', x.table_name, 'column_name', x.column_name, 'relation', c.oid::bigint,
                   'attnum', a.attnum, 'relname', c.relname, 'names', fieldcrypt_internal.column_names(c.oid)))
          FROM fieldcrypt_internal.altered_tables(what, object) AS t
          JOIN pg_class AS c ON c.oid = t.relation
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
          JOIN fieldcrypt.column_contexts AS x
            ON x.table_name = format('%I.%I', n.nspname, c.relname) AND fieldcrypt_internal.is_owner(x, c.relowner)
          JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = x.column_name AND NOT a.attisdropped)::text, '');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.before_alter(text, oid) IS 'what an ALTER may change of remembered contexts, or take from a partition, as it is before; empty: nothing; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.after_alter(before text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF jsonb_typeof(before::jsonb) = 'object' THEN
        PERFORM fieldcrypt_internal.follow_parents((before::jsonb ->> 'leaves')::oid, before::jsonb -> 'parents');
    ELSE
        PERFORM fieldcrypt_internal.move_contexts(before::jsonb);
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.after_alter(text) IS 'what follows from what before_alter found; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.move_contexts(before jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off SET jit = off
AS $$
DECLARE
    item record;
    context fieldcrypt.column_contexts;
    moved fieldcrypt.column_contexts[] := '{}';
BEGIN
    FOR item IN
        SELECT x AS context, c.oid AS relation, b.names AS old_names, now.names, b.relname AS old_relname, x.table_name AS old_table,
               x.column_name AS old_column, format('%I.%I', n.nspname, c.relname) AS table_name, a.attname::text AS column_name, c.relname::text,
               c.relowner::regrole::text AS table_owner
          FROM jsonb_to_recordset(before) AS b (table_name text, column_name text, relation bigint, attnum smallint, relname text, names jsonb)
          JOIN fieldcrypt.column_contexts AS x ON x.table_name = b.table_name AND x.column_name = b.column_name
          JOIN pg_class AS c ON c.oid = b.relation::oid AND fieldcrypt_internal.is_owner(x, c.relowner)
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
          JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = b.attnum AND NOT a.attisdropped,
               LATERAL (SELECT fieldcrypt_internal.column_names(c.oid)) AS now (names)
    LOOP
        CONTINUE WHEN (item.table_name, item.column_name, item.names) = (item.old_table, item.old_column, item.old_names);
        context := item.context;
        context.table_name := item.table_name;
        context.column_name := item.column_name;
        context.table_owner := item.table_owner;
        IF context.expression IS NOT NULL AND (item.names <> item.old_names OR item.old_relname <> item.relname) THEN
            BEGIN
                context.expression := fieldcrypt_internal.renamed_expression(
                    item.relation, context.expression, item.old_relname,
                    (SELECT string_agg(quote_ident(coalesce(item.old_names ->> n.key, '?' || n.key)), ',' ORDER BY n.key::integer)
                       FROM jsonb_each_text(item.names) AS n));
            EXCEPTION WHEN OTHERS THEN
                RAISE WARNING USING
                    MESSAGE = format('the context of %s.%I can''t be computed any more: %s', context.table_name, context.column_name, SQLERRM),
                    HINT = 'Say it anew: SELECT fieldcrypt.set_column_context(...).';
            END;
        END IF;
        moved := moved || context;
        DELETE FROM fieldcrypt.column_contexts AS x WHERE x.table_name = item.old_table AND x.column_name = item.old_column;
        IF (item.table_name, item.column_name) <> (item.old_table, item.old_column) THEN
            RAISE NOTICE 'the context that was remembered for %.% is that of %.% now',
                item.old_table, quote_ident(item.old_column), item.table_name, quote_ident(item.column_name);
        END IF;
    END LOOP;
    -- What had such a name before is gone.
    INSERT INTO fieldcrypt.column_contexts SELECT m.* FROM unnest(moved) AS m
        ON CONFLICT ON CONSTRAINT column_contexts_pkey DO UPDATE
       SET (constant, expression, table_owner, owner_here, set_by, set_at, enforced)
           = ROW (excluded.constant, excluded.expression, excluded.table_owner, excluded.owner_here, excluded.set_by, excluded.set_at, excluded.enforced);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.move_contexts(jsonb) IS 'brings the names in column_contexts up to what they are after an ALTER; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.note_alter() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'fieldcrypt_note_alter';
COMMENT ON FUNCTION fieldcrypt_internal.note_alter() IS 'event trigger: remembered contexts follow what is renamed, and partitions that are detached are told of';

DO $$
DECLARE
    moment text;
BEGIN
    FOREACH moment IN ARRAY '{start,end}'::pg_catalog.text[] LOOP
        EXECUTE pg_catalog.format(
            'CREATE EVENT TRIGGER fieldcrypt_renames_%1$s ON ddl_command_%1$s
                WHEN TAG IN (''ALTER TABLE'', ''ALTER SCHEMA'', ''ALTER EXTENSION'', ''ALTER INDEX'', ''ALTER VIEW'',
                             ''ALTER MATERIALIZED VIEW'', ''ALTER FOREIGN TABLE'', ''ALTER TYPE'')
                EXECUTE FUNCTION fieldcrypt_internal.note_alter()', moment);
        EXECUTE pg_catalog.format('ALTER EVENT TRIGGER fieldcrypt_renames_%s ENABLE ALWAYS', moment);
        EXECUTE pg_catalog.format('COMMENT ON EVENT TRIGGER fieldcrypt_renames_%s IS %L', moment,
            'remembered contexts of encrypted columns follow renames');
    END LOOP;
END
$$;

-- sql/detached_partitions.sql
-- A partition has the audit triggers, the enforced contexts and the remembered contexts of its parent. DETACH takes all of
-- it away, and nothing in the catalogs tells afterwards: so what is lost is kept, or told of, when it leaves.

CREATE FUNCTION fieldcrypt_internal.follow_parents(relation oid, parents jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off SET jit = off
AS $$
DECLARE
    parent oid;
BEGIN
    FOR parent IN
        SELECT c.oid FROM jsonb_array_elements_text(parents) AS p (oid) JOIN pg_class AS c ON c.oid = p.oid::oid
         WHERE NOT EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = $1 AND i.inhparent = c.oid)
    LOOP
        PERFORM fieldcrypt_internal.keep_contexts_of_parent($1, parent);
        IF fieldcrypt_internal.has_audit_trigger(parent, 'change')
           AND NOT fieldcrypt_internal.has_audit_trigger($1, 'change') THEN
            PERFORM fieldcrypt_internal.record_event('table_detached', NULL, NULL,
                format('it was recorded as a part of %s', parent::regclass), $1::regclass::text);
            RAISE WARNING USING
                MESSAGE = format('changes of %s are not recorded any more', $1::regclass),
                HINT = format('SELECT fieldcrypt.audit_table(%L) records them again; unaudit_table(%1$L) says that none are to be.', $1::regclass);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.follow_parents(oid, jsonb) IS
    'keeps, or tells of, what a table had of parents that it has left; granted to nobody';

-- An expression runs as the table's owner: it is kept only where parent and partition have the same.
CREATE FUNCTION fieldcrypt_internal.keep_contexts_of_parent(relation oid, parent oid) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    item record;
    enforced text[] := ARRAY(SELECT e.column_name FROM fieldcrypt_internal.enforcing_triggers() AS e WHERE e.relation = $2 AND e.fires);
    enforced_still text[] := ARRAY(SELECT e.column_name FROM fieldcrypt_internal.enforcing_triggers() AS e WHERE e.relation = $1 AND e.fires);
BEGIN
    FOR item IN
        SELECT a.attname::text AS column_name, k.context ->> 'constant' AS constant, k.context ->> 'expression' AS expression,
               format('%I.%I', n.nspname, c.relname) AS table_name, c.relowner::regrole::text AS table_owner, fieldcrypt_internal.role_here(c.relowner) AS owner_here
          FROM jsonb_each(fieldcrypt_internal.contexts_of($2)::jsonb) AS k (column_name, context)
          JOIN pg_class AS c ON c.oid = $1
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
          JOIN pg_attribute AS a ON a.attrelid = $1 AND a.attname = k.column_name AND NOT a.attisdropped
         WHERE NOT fieldcrypt_internal.contexts_of($1)::jsonb ? k.column_name
           AND (k.context ? 'constant' OR c.relowner = (SELECT p.relowner FROM pg_class AS p WHERE p.oid = $2))
    LOOP
        INSERT INTO fieldcrypt.column_contexts (table_name, column_name, constant, expression, enforced, table_owner, owner_here)
        VALUES (item.table_name, item.column_name, item.constant, item.expression, item.column_name = ANY (enforced), item.table_owner, item.owner_here)
            ON CONFLICT ON CONSTRAINT column_contexts_pkey DO UPDATE
           SET constant = excluded.constant, expression = excluded.expression, enforced = excluded.enforced,
               table_owner = excluded.table_owner, owner_here = excluded.owner_here, set_by = excluded.set_by, set_at = excluded.set_at;
        RAISE NOTICE '%.% keeps the context that it had of %', $1::regclass, quote_ident(item.column_name), $2::regclass;
    END LOOP;
    FOR item IN
        SELECT DISTINCT u.column_name FROM unnest(enforced) AS u (column_name)
         WHERE u.column_name <> ALL (enforced_still)
           AND EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = $1 AND a.attname = u.column_name AND NOT a.attisdropped)
    LOOP
        RAISE WARNING USING
            MESSAGE = format('what is written to %s.%I is not checked against its context any more', $1::regclass, item.column_name),
            HINT = 'SELECT fieldcrypt.set_column_context(relation, column, expression => ..., enforce => true) checks it again.';
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.keep_contexts_of_parent(oid, oid) IS
    'what a partition that was detached keeps of its parent''s contexts, and what not; granted to nobody';

-- sql/value_verification.sql
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
COMMENT ON COLUMN fieldcrypt.value_verifications.columns IS 'the columns that are verified: those with a context';
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
           AND fieldcrypt_internal.contexts_of(c.relation)::jsonb ? c.column_name
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
            HINT = 'SELECT fieldcrypt.set_column_context(relation, column, expression => ...) says what its values are bound to.';
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
    contexts jsonb;
    result jsonb;
    code text;
    message text;
BEGIN
    SELECT v.* INTO piece FROM fieldcrypt.value_verifications AS v
     WHERE v.relation = verify_step.relation AND v.state = 'in_progress' FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'over';
    END IF;
    SELECT coalesce(jsonb_object_agg(k.column_name, k.context), '{}') INTO contexts
      FROM jsonb_each(fieldcrypt_internal.contexts_of(piece.relation)::jsonb) AS k (column_name, context)
     WHERE k.column_name = ANY (piece.columns);
    BEGIN
        result := fieldcrypt_internal.verify_batch(piece.relation, piece.blocks_done, piece.next_row, piece.blocks_total, 20000, contexts::text)::jsonb;
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
    'opens every value of a table''s columns that have a context, in committed batches that resume, and lists what does not open in value_failures; shows nothing';

-- sql/reencryption_tables.sql
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

-- sql/reencryption_runs.sql
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
                           FROM fieldcrypt.encryption_keys AS k WHERE k.purpose = 'field' AND k.state = 'compromised');
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

-- sql/reencryption_steps.sql
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

-- sql/reencryption.sql
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

-- sql/key_usage.sql
-- Which key is used where.
--
-- Values are counted by fieldcrypt_internal.count_keys, which reads past row-level security: a count that a
-- policy filters would destroy keys that are in use.

CREATE FUNCTION fieldcrypt_internal.count_keys(relation oid) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_count_keys';
COMMENT ON FUNCTION fieldcrypt_internal.count_keys(oid) IS
    'how many values of each column of a table are on which key, as JSON: an array of attnum, column, key_id, values; every row that is committed, whatever its policies; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.relations_to_count() RETURNS oid[]
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS 'SELECT coalesce(array_agg(DISTINCT c.relation), ''{}'') FROM fieldcrypt_internal.encrypted_columns() AS c WHERE c.is_readable';
COMMENT ON FUNCTION fieldcrypt_internal.relations_to_count() IS 'the relations whose values can be counted; granted to nobody';

-- What nobody here can read, and why that forbids to destroy a key. Other sessions' temporary tables would
-- forbid it for ever; but one of a session that began after the key was known to be unused has no value
-- of it: there was none left that it could have copied.
CREATE FUNCTION fieldcrypt_internal.uncountable(since timestamptz) RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
DECLARE
    unreadable text;
    temporary text;
    elsewhere text;
    sessions text;
BEGIN
    SELECT string_agg(format('%s.%I (%s)', c.table_name, c.column_name, c.problem), ', ' ORDER BY c.table_name, c.attnum)
               FILTER (WHERE t.relpersistence <> 't'),
           string_agg(format('%s.%I', c.table_name, c.column_name), ', ' ORDER BY c.table_name, c.attnum)
               FILTER (WHERE t.relpersistence = 't')
      INTO unreadable, temporary
      FROM fieldcrypt_internal.encrypted_columns() AS c JOIN pg_class AS t ON t.oid = c.relation
     WHERE NOT c.is_readable;
    IF unreadable IS NOT NULL THEN
        RETURN 'values can''t be counted in ' || unreadable;
    END IF;
    elsewhere := fieldcrypt_internal.values_elsewhere();
    IF elsewhere IS NOT NULL THEN
        RETURN elsewhere;
    END IF;
    IF temporary IS NOT NULL THEN
        PERFORM pg_stat_clear_snapshot();
        SELECT string_agg(a.pid::text, ', ' ORDER BY a.backend_start) INTO sessions
          FROM pg_stat_activity AS a
         WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
           AND a.backend_type <> 'autovacuum worker' AND (a.backend_start < since OR a.backend_start IS NULL);
        IF sessions IS NOT NULL THEN
            RETURN format('values can''t be counted in temporary tables (%s), and there are sessions from before the schedule (processes %s)',
                temporary, sessions);
        END IF;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.uncountable(timestamptz) IS
    'why it can''t be known that a key scheduled before that time is unused; NULL if it can; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.count_in(relation oid, keys bigint[]) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
BEGIN
    -- Dropped meanwhile, and its values with it.
    IF NOT EXISTS (SELECT FROM pg_class AS t WHERE t.oid = $1) THEN
        RETURN '[]';
    END IF;
    RETURN coalesce((
        SELECT jsonb_agg(jsonb_build_object(
                   'key_id', u.key_id, 'values', u."values", 'table', $1::regclass::text,
                   'column', (SELECT a.attname FROM pg_attribute AS a WHERE a.attrelid = $1 AND a.attnum = u.attnum)))
          FROM jsonb_to_recordset(fieldcrypt_internal.count_keys($1)::jsonb) AS u(attnum integer, key_id text, "values" bigint)
         WHERE keys IS NULL OR u.key_id::bigint = ANY (keys)), '[]');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.count_in(oid, bigint[]) IS
    'how many values of some keys (NULL: of all) a relation has, as JSON; granted to nobody';

-- In both directions: a value that is moved from a table not yet read to one already read is found on the
-- way back. The list is made anew for that: a table may have been made meanwhile.
CREATE FUNCTION fieldcrypt_internal.count_use(keys bigint[]) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    counted jsonb := '[]';
    relations oid[] := fieldcrypt_internal.relations_to_count();
BEGIN
    FOR place IN 1 .. cardinality(relations) LOOP
        counted := counted || fieldcrypt_internal.count_in(relations[place], keys);
    END LOOP;
    relations := fieldcrypt_internal.relations_to_count();
    FOR place IN REVERSE cardinality(relations) .. 1 LOOP
        counted := counted || fieldcrypt_internal.count_in(relations[place], keys);
    END LOOP;
    -- By key, since it is asked key by key.
    RETURN coalesce((
        SELECT jsonb_object_agg(of_key.key_id, of_key.places)
          FROM (SELECT c ->> 'key_id' AS key_id, jsonb_agg(c) AS places
                  FROM jsonb_array_elements(counted) AS c WHERE c ->> 'key_id' IS NOT NULL GROUP BY 1) AS of_key), '{}');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.count_use(bigint[]) IS 'where some keys are used, in all tables, as a JSON object by key id; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.use_of_key(used jsonb, key_id bigint) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(format('%s value(s) in %s.%I', u.total, u."table", u."column"), ', ' ORDER BY u."table", u."column")
      FROM (SELECT c."table", c."column", max(c."values") AS total
              FROM jsonb_to_recordset(coalesce($1 -> $2::text, '[]')) AS c("table" text, "column" text, "values" bigint)
             GROUP BY c."table", c."column") AS u
$$;
COMMENT ON FUNCTION fieldcrypt_internal.use_of_key(jsonb, bigint) IS 'what count_use found of a key, as a text; NULL if nothing; granted to nobody';

CREATE FUNCTION fieldcrypt.key_usage(exact boolean DEFAULT false) RETURNS TABLE (
        key_id bigint, tenant text, version integer, state text,
        table_name text, column_name text, "values" bigint, is_exact boolean)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET row_security = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    counted jsonb := '[]';
    item record;
    relation_counted oid;
    of_relation jsonb;
    percent double precision;
    problem text := fieldcrypt_internal.uncountable('-infinity');
BEGIN
    IF exact IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'exact must not be NULL';
    END IF;
    -- A 0 is not the whole truth then.
    IF problem IS NOT NULL THEN
        RAISE NOTICE USING MESSAGE = 'key_usage: ' || problem,
            HINT = 'On each node that has such values: SELECT * FROM fieldcrypt.key_usage(exact => true).';
    END IF;
    FOR item IN
        WITH sized AS (
            -- What lies on the disk now, not what was known when the table was last analysed.
            SELECT t.oid, t.relkind, coalesce(pg_relation_size(t.oid), 0) / current_setting('block_size')::bigint AS pages,
                   coalesce(pg_table_size(t.oid), 0) AS bytes
              FROM pg_class AS t
             WHERE t.oid IN (SELECT c.relation FROM fieldcrypt_internal.encrypted_columns() AS c WHERE c.is_readable)
        ), cheap AS (
            -- The smaller tables, as many as have half a gigabyte together.
            SELECT s.*, sum(s.bytes) OVER (ORDER BY s.bytes, s.oid) <= 536870912 AS is_cheap FROM sized AS s
        )
        SELECT c.relation, c.table_name, c.attnum, c.column_name, c.holds, t.relkind, t.pages, t.is_cheap
          FROM fieldcrypt_internal.encrypted_columns() AS c JOIN cheap AS t ON t.oid = c.relation
         WHERE c.is_readable
         ORDER BY c.relation, c.attnum
    LOOP
        -- A sample of about a thousand pages; what is cheap is counted, and so is what
        -- is hidden in arrays and composites. With row_security off Postgres refuses what it would filter.
        percent := 100.0 * 1000 / greatest(item.pages, 1000);
        IF exact OR item.is_cheap OR percent > 50 OR item.relkind NOT IN ('r', 'm') OR item.holds <> 'value' THEN
            -- One look at a table tells of all its columns.
            IF relation_counted IS DISTINCT FROM item.relation THEN
                relation_counted := item.relation;
                of_relation := fieldcrypt_internal.count_in(item.relation, NULL);
            END IF;
            counted := counted || coalesce((
                SELECT jsonb_agg(u || jsonb_build_object('is_exact', true))
                  FROM jsonb_array_elements(of_relation) AS u
                 WHERE u ->> 'column' = item.column_name), '[]');
        ELSE
            EXECUTE format(
                'SELECT $1 || coalesce(jsonb_agg(to_jsonb(s)), ''[]'') FROM (
                    SELECT fieldcrypt.key_id(v.%I)::text AS key_id, $2 AS "table", $3 AS "column",
                           round(count(*) * 100 / $4)::bigint AS "values", false AS is_exact
                      FROM ONLY %s AS v TABLESAMPLE SYSTEM ($4)
                     WHERE v.%I IS NOT NULL GROUP BY 1) AS s',
                item.column_name, item.relation::regclass, item.column_name)
              INTO counted USING counted, item.relation::regclass::text, item.column_name, percent;
        END IF;
    END LOOP;
    RETURN QUERY
        SELECT coalesce(k.key_id, u.key_id::bigint), k.tenant::text, k.version, k.state::text,
               u."table", u."column", coalesce(u."values", 0), coalesce(u.is_exact, exact)
          FROM (SELECT * FROM fieldcrypt.encryption_keys AS f WHERE f.purpose = 'field') AS k
          FULL JOIN jsonb_to_recordset(counted)
               AS u(key_id text, "table" text, "column" text, "values" bigint, is_exact boolean)
            ON u.key_id = k.key_id::text
         ORDER BY k.tenant, k.version, u."table", u."column";
END
$$;
COMMENT ON FUNCTION fieldcrypt.key_usage(boolean) IS
    'every key version, and where and how often it is used; exact: counted in all tables, otherwise the smaller tables, half a gigabyte in all, are counted, and larger ones estimated from a sample: is_exact says which. A key without a tenant is not of this database';

-- sql/master_key_rotation.sql
-- Rotation of the master key: every encryption key is wrapped again. First the target becomes the
-- current one, under a lock that waits for all who are making a key; from then on no key comes under
-- the old one, and what is left is moved in committed batches.

CREATE FUNCTION fieldcrypt_internal.target_master_key() RETURNS bytea
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_target_master_key';
COMMENT ON FUNCTION fieldcrypt_internal.target_master_key() IS
    'fingerprint of the first master key, its source read again; an error where the master key can''t be rotated';
CREATE FUNCTION fieldcrypt_internal.lock_master_keys() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_lock_master_keys';
COMMENT ON FUNCTION fieldcrypt_internal.lock_master_keys() IS
    'waits until nobody is making an encryption key; granted to nobody';
CREATE FUNCTION fieldcrypt_internal.make_current(target bytea) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_make_current';
COMMENT ON FUNCTION fieldcrypt_internal.make_current(bytea) IS
    'new encryption keys are wrapped by this master key from now on; granted to nobody';
CREATE FUNCTION fieldcrypt_internal.rewrap_keys(target bytea, key_ids text) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_rewrap_keys';
COMMENT ON FUNCTION fieldcrypt_internal.rewrap_keys(bytea, text) IS
    'wraps encryption keys again, opening each new wrapping to compare; granted to nobody';
CREATE FUNCTION fieldcrypt_internal.retire_master_keys() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_retire_master_keys';
COMMENT ON FUNCTION fieldcrypt_internal.retire_master_keys() IS
    'marks the master keys that wrap nothing; granted to nobody';

-- What steps have done, counted by themselves: whoever calls one by hand can't tell the log of another number.
CREATE TABLE fieldcrypt_internal.master_key_rotation (
    target bytea PRIMARY KEY,
    rewrapped bigint NOT NULL DEFAULT 0,
    failed_keys bigint[] NOT NULL DEFAULT '{}'
);
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt_internal.master_key_rotation
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
COMMENT ON TABLE fieldcrypt_internal.master_key_rotation IS 'the rotation of the master key that has begun and was not finished: at most one row';
COMMENT ON COLUMN fieldcrypt_internal.master_key_rotation.target IS 'fingerprint of the master key that wraps all keys when it is finished';
COMMENT ON COLUMN fieldcrypt_internal.master_key_rotation.rewrapped IS 'keys wrapped again since it began';
COMMENT ON COLUMN fieldcrypt_internal.master_key_rotation.failed_keys IS 'keys that did not open';

CREATE FUNCTION fieldcrypt_internal.short_fingerprint(fingerprint bytea) RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT upper(left(encode($1, 'hex'), 8)) || '...' $$;
COMMENT ON FUNCTION fieldcrypt_internal.short_fingerprint(bytea) IS 'a fingerprint as messages show it';

CREATE FUNCTION fieldcrypt_internal.lock_holders(relation regclass) RETURNS text
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(DISTINCT CASE
               WHEN p.gid IS NOT NULL THEN format('prepared transaction "%s" of %s since %s', p.gid, p.owner, date_trunc('second', p.prepared))
               WHEN l.pid IS NULL THEN 'a prepared transaction'
               ELSE format('process %s of %s, in a transaction since %s', l.pid, coalesce(a.usename, '?'), date_trunc('second', a.xact_start)) END, '; ')
      FROM pg_locks AS l
      LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
      LEFT JOIN pg_locks AS own ON l.pid IS NULL AND own.pid IS NULL
           AND own.locktype = 'transactionid' AND own.granted AND own.virtualtransaction = l.virtualtransaction
      LEFT JOIN pg_prepared_xacts AS p ON p.transaction = own.transactionid
     WHERE l.locktype = 'relation' AND l.relation = $1 AND l.granted AND l.mode NOT IN ('AccessShareLock')
       AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
       AND l.pid IS DISTINCT FROM pg_backend_pid()
$$;
COMMENT ON FUNCTION fieldcrypt_internal.lock_holders(regclass) IS 'the transactions that hold a table locked for writing';

CREATE FUNCTION fieldcrypt_internal.keys_to_rewrap(target bytea) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT count(*) FROM fieldcrypt.encryption_keys AS k
     WHERE k.wrapped_key IS NOT NULL AND k.master_key_fingerprint <> $1
$$;
COMMENT ON FUNCTION fieldcrypt_internal.keys_to_rewrap(bytea) IS 'how many encryption keys another master key wraps';

CREATE FUNCTION fieldcrypt_internal.begin_master_key_rotation(
        target bytea, OUT state text, OUT old_fingerprint bytea, OUT blockers text,
        OUT message text, OUT hint text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    -- Whoever wants to make a key queues behind the lock that is waited for here.
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s'
AS $$
BEGIN
    SELECT m.fingerprint INTO old_fingerprint FROM fieldcrypt.master_keys AS m WHERE m.is_current;
    IF old_fingerprint IS DISTINCT FROM target THEN
        BEGIN
            PERFORM fieldcrypt_internal.lock_master_keys();
        EXCEPTION WHEN lock_not_available THEN
            state := 'blocked';
            blockers := coalesce(fieldcrypt_internal.lock_holders('fieldcrypt.master_keys'), 'another transaction');
            RETURN;
        END;
        SELECT m.fingerprint INTO old_fingerprint FROM fieldcrypt.master_keys AS m WHERE m.is_current;
    END IF;
    IF old_fingerprint IS NULL THEN
        state := 'no keys';
    ELSIF old_fingerprint <> target THEN
        SELECT s.message, s.hint INTO message, hint
          FROM fieldcrypt_internal.spend_approval('rotate_master_key', encode(target, 'hex')) AS s;
        IF message IS NOT NULL THEN
            -- Not raised here: that would take the record of the refusal back.
            state := 'refused';
            RETURN;
        END IF;
        PERFORM fieldcrypt_internal.make_current(target);
        DELETE FROM fieldcrypt_internal.master_key_rotation;
        INSERT INTO fieldcrypt_internal.master_key_rotation (target) VALUES (begin_master_key_rotation.target);
        PERFORM fieldcrypt_internal.record_event('master_key_rotation_started', NULL, NULL,
            format('from %s to %s, keys to wrap again: %s', encode(old_fingerprint, 'hex'),
                   encode(target, 'hex'), fieldcrypt_internal.keys_to_rewrap(target)), NULL);
        state := 'switched';
    ELSIF fieldcrypt_internal.keys_to_rewrap(target) > 0 THEN
        INSERT INTO fieldcrypt_internal.master_key_rotation (target) VALUES (begin_master_key_rotation.target)
            ON CONFLICT ON CONSTRAINT master_key_rotation_pkey DO NOTHING;
        state := 'resumed';
    ELSE
        state := 'done';
        BEGIN
            -- A run that ended early may have left this undone.
            PERFORM fieldcrypt_internal.retire_master_keys();
        EXCEPTION WHEN lock_not_available THEN
            -- Of an import, for instance.
            state := 'blocked';
            blockers := coalesce(fieldcrypt_internal.lock_holders('fieldcrypt.master_keys'), 'another transaction');
        END;
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.begin_master_key_rotation(bytea) IS
    'the first step of rotate_master_key: makes the target the current master key, if it is not';

-- By key id, each pass from the last one on: no batch reads again what is done. Keys that another
-- transaction holds locked are left for a later pass.
CREATE FUNCTION fieldcrypt_internal.rewrap_step(
        target bytea, after_key_id bigint, batch_size integer,
        OUT last_key_id bigint, OUT rewrapped bigint, OUT failed bigint, OUT failures text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
AS $$
DECLARE
    key_ids text;
    done jsonb;
    failure record;
    known bigint[];
BEGIN
    -- Before rows of the other table, as everybody does: an import locks them in this order.
    LOCK TABLE fieldcrypt.master_keys IN ROW SHARE MODE;
    SELECT max(c.key_id), string_agg(c.key_id::text, ',')
      INTO last_key_id, key_ids
      FROM (SELECT k.key_id
              FROM fieldcrypt.encryption_keys AS k
             WHERE k.key_id > after_key_id
               AND k.wrapped_key IS NOT NULL
               AND k.master_key_fingerprint <> target
             ORDER BY k.key_id
             LIMIT batch_size
               FOR NO KEY UPDATE SKIP LOCKED) AS c;
    IF last_key_id IS NULL THEN
        RETURN;
    END IF;
    done := fieldcrypt_internal.rewrap_keys(target, key_ids);
    rewrapped := (done ->> 'rewrapped')::bigint;
    failed := jsonb_array_length(done -> 'failures');
    INSERT INTO fieldcrypt_internal.master_key_rotation AS r (target) VALUES (rewrap_step.target)
        ON CONFLICT ON CONSTRAINT master_key_rotation_pkey DO UPDATE SET rewrapped = r.rewrapped
    RETURNING r.failed_keys INTO known;
    FOR failure IN
        SELECT k.tenant, k.key_id, f.value ->> 'error' AS error
          FROM jsonb_array_elements(done -> 'failures') AS f
          JOIN fieldcrypt.encryption_keys AS k ON k.key_id = (f.value ->> 'key_id')::bigint
         ORDER BY k.key_id
    LOOP
        failures := concat_ws('; ', failures, failure.error);
        -- Once for each key, however often it is tried.
        IF failure.key_id <> ALL (known) THEN
            known := known || failure.key_id;
            PERFORM fieldcrypt_internal.record_event('key_refused', failure.tenant, failure.key_id,
                format('not wrapped again: %s', failure.error), NULL);
        END IF;
    END LOOP;
    UPDATE fieldcrypt_internal.master_key_rotation AS r
       SET rewrapped = r.rewrapped + rewrap_step.rewrapped, failed_keys = known
     WHERE r.target = rewrap_step.target;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.rewrap_step(bytea, bigint, integer) IS
    'wraps a batch of encryption keys under the target; what does not open is recorded and left as it is';

CREATE FUNCTION fieldcrypt_internal.finish_master_key_rotation(OUT remaining bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target bytea;
    rewrapped bigint;
    failed bigint;
    failed_keys bigint[];
BEGIN
    LOCK TABLE fieldcrypt.master_keys IN ROW SHARE MODE;
    DELETE FROM fieldcrypt_internal.master_key_rotation AS r
     USING fieldcrypt.master_keys AS m WHERE m.is_current AND m.fingerprint = r.target
    RETURNING r.target, r.rewrapped, r.failed_keys INTO target, rewrapped, failed_keys;
    IF target IS NULL THEN
        -- Another session was faster, or there was nothing to finish.
        remaining := (SELECT fieldcrypt_internal.keys_to_rewrap(m.fingerprint) FROM fieldcrypt.master_keys AS m WHERE m.is_current);
        RETURN;
    END IF;
    failed := (SELECT count(*) FROM fieldcrypt.encryption_keys AS k
                WHERE k.key_id = ANY (failed_keys) AND k.wrapped_key IS NOT NULL AND k.master_key_fingerprint <> target);
    PERFORM fieldcrypt_internal.retire_master_keys();
    remaining := fieldcrypt_internal.keys_to_rewrap(target);
    PERFORM fieldcrypt_internal.record_event('master_key_rotation_finished', NULL, NULL,
        format('to %s: %s wrapped again, %s failed, %s left under other master keys',
               encode(target, 'hex'), rewrapped, failed, remaining), NULL);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.finish_master_key_rotation() IS
    'the last step of rotate_master_key: records the end of one that has begun, with what its steps have counted, and what needs not be loaded any more';

CREATE PROCEDURE fieldcrypt.rotate_master_key(
        batch_size integer DEFAULT 1000, wait_for_locks interval DEFAULT '1 minute')
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    target pg_catalog.bytea;
    begun pg_catalog.record;
    step pg_catalog.record;
    deadline pg_catalog.timestamptz := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) wait_for_locks;
    told_at pg_catalog.timestamptz := pg_catalog.clock_timestamp();
    after_key_id pg_catalog.int8 := 0;
    total pg_catalog.int8;
    remaining pg_catalog.int8;
    rewrapped pg_catalog.int8 := 0;
    failed pg_catalog.int8 := 0;
    failures pg_catalog.text := '';
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF batch_size IS NULL OR wait_for_locks IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'batch_size and wait_for_locks must not be NULL', HINT = 'Leave them out.';
    ELSIF batch_size OPERATOR(pg_catalog.<) 1 OR batch_size OPERATOR(pg_catalog.>) 100000 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'batch_size must be from 1 to 100000', HINT = 'The default of 1000 keys a transaction is good.';
    END IF;
    target := fieldcrypt_internal.target_master_key();

    LOOP
        PERFORM fieldcrypt_internal.by_own_hand();
        SELECT b.state, b.old_fingerprint, b.blockers, b.message, b.hint INTO begun FROM fieldcrypt_internal.begin_master_key_rotation(target) AS b;
        COMMIT;
        -- At once: any expression after a COMMIT takes a snapshot, and then it is too late.
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        IF begun.state OPERATOR(pg_catalog.=) 'refused' THEN
            RAISE EXCEPTION USING ERRCODE = 'KF019', MESSAGE = begun.message, HINT = begun.hint;
        END IF;
        EXIT WHEN begun.state OPERATOR(pg_catalog.<>) 'blocked';
        IF pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) deadline THEN
            RAISE EXCEPTION USING ERRCODE = 'KF020',
                MESSAGE = pg_catalog.format('the master key was not rotated: transactions that have made keys have not ended: %s', begun.blockers),
                HINT = 'End them (COMMIT PREPARED or ROLLBACK PREPARED for a prepared one) and call it again. Nothing was changed. (KF020, see docs/errors.md)';
        END IF;
        RAISE NOTICE 'rotate_master_key: waiting for %', begun.blockers;
        PERFORM pg_catalog.pg_sleep(0.5);
    END LOOP;
    IF begun.state OPERATOR(pg_catalog.=) 'no keys' THEN
        RAISE NOTICE 'rotate_master_key: nothing to do: this database has no encryption keys yet';
        RETURN;
    ELSIF begun.state OPERATOR(pg_catalog.=) 'done' THEN
        RAISE NOTICE 'rotate_master_key: nothing to do: master key % is the current one already and wraps all keys',
            fieldcrypt_internal.short_fingerprint(target);
        RETURN;
    END IF;
    total := fieldcrypt_internal.keys_to_rewrap(target);
    RAISE NOTICE 'rotate_master_key: % to master key %: % keys to wrap again', begun.state, fieldcrypt_internal.short_fingerprint(target), total;

    LOOP
        SELECT s.last_key_id, s.rewrapped, s.failed, s.failures INTO step
          FROM fieldcrypt_internal.rewrap_step(target, after_key_id, batch_size) AS s;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        IF step.last_key_id IS NOT NULL THEN
            after_key_id := step.last_key_id;
            rewrapped := rewrapped OPERATOR(pg_catalog.+) step.rewrapped;
            failed := failed OPERATOR(pg_catalog.+) step.failed;
            IF step.failed OPERATOR(pg_catalog.>) 0 THEN
                failures := pg_catalog."left"(pg_catalog.concat_ws('; ', NULLIF(failures, ''), step.failures), 2000);
            END IF;
            IF pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) (told_at OPERATOR(pg_catalog.+) interval '5 seconds') THEN
                told_at := pg_catalog.clock_timestamp();
                RAISE NOTICE 'rotate_master_key: % of % keys', rewrapped, total;
            END IF;
            CONTINUE;
        END IF;
        remaining := fieldcrypt_internal.keys_to_rewrap(target);
        EXIT WHEN remaining OPERATOR(pg_catalog.<=) failed OR pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) deadline;
        -- Some are locked by others: once more, from the start.
        PERFORM pg_catalog.pg_sleep(0.2);
        after_key_id := 0;
        failed := 0;
        failures := '';
    END LOOP;

    remaining := fieldcrypt_internal.finish_master_key_rotation();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF failed OPERATOR(pg_catalog.>) 0 THEN
        RAISE WARNING USING ERRCODE = 'KF020',
            MESSAGE = pg_catalog.format('%s keys did not open and were not wrapped again: %s', failed, failures),
            HINT = 'Keep the old master key loaded. Restore the rows of these keys in fieldcrypt.encryption_keys from a backup, or destroy them, and call it again. (KF020, see docs/errors.md)';
    END IF;
    IF remaining OPERATOR(pg_catalog.>) failed THEN
        RAISE WARNING USING ERRCODE = 'KF020',
            MESSAGE = pg_catalog.format('%s keys are locked by other transactions and were not wrapped again: %s',
                remaining OPERATOR(pg_catalog.-) failed, COALESCE(fieldcrypt_internal.lock_holders('fieldcrypt.encryption_keys'::pg_catalog.regclass), 'they have ended meanwhile')),
            HINT = 'Keep the old master key loaded, and call it again when they have ended. (KF020, see docs/errors.md)';
    END IF;
    IF remaining OPERATOR(pg_catalog.>) 0 THEN
        RAISE NOTICE 'rotate_master_key: % wrapped again, % left under other master keys (see fieldcrypt.master_key_status())', rewrapped, remaining;
    ELSE
        RAISE NOTICE 'rotate_master_key: % wrapped again; master key % wraps all keys of this database: the lines that fieldcrypt.master_key_status() calls not needed can be removed, once that holds in every database that uses them',
            rewrapped, fieldcrypt_internal.short_fingerprint(target);
    END IF;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.rotate_master_key(integer, interval) IS
    'wraps every encryption key under the first master key of the source, which becomes the current one; in committed batches, resumable; wait_for_locks: how long it waits for transactions that hold keys';

-- sql/key_origins.sql
-- Where the keys are, and what is known of their states: what tells a restore that took them back in time.

-- Where the key states were last known to be the newest. It is in dumps, so that a restored one shows.
CREATE TABLE fieldcrypt.origins (
    id integer PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    actor text COLLATE "C" NOT NULL DEFAULT session_user,
    is_confirmed boolean NOT NULL,
    reason text NOT NULL,
    system_identifier bigint NOT NULL,
    database_oid bigint NOT NULL,
    timeline bigint NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.origins', '');

COMMENT ON TABLE fieldcrypt.origins IS 'where the key states were confirmed to be the newest: the last row counts; another cluster or timeline means a restore';
COMMENT ON COLUMN fieldcrypt.origins.id IS 'in the order of writing';
COMMENT ON COLUMN fieldcrypt.origins.at IS 'when it was written';
COMMENT ON COLUMN fieldcrypt.origins.actor IS 'session_user: who confirmed, made the first key or imported';
COMMENT ON COLUMN fieldcrypt.origins.is_confirmed IS 'false after an import of keys: their states are as old as the export';
COMMENT ON COLUMN fieldcrypt.origins.reason IS 'why, in the words of confirm_key_states';
COMMENT ON COLUMN fieldcrypt.origins.system_identifier IS 'the cluster';
COMMENT ON COLUMN fieldcrypt.origins.database_oid IS 'the database';
COMMENT ON COLUMN fieldcrypt.origins.timeline IS 'the timeline: a new one begins with a promotion and a point-in-time recovery';

CREATE FUNCTION fieldcrypt_internal.origin_here(
        OUT system_identifier bigint, OUT database_oid bigint, OUT timeline bigint, OUT is_standby boolean)
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    -- The control file tells the timeline of the last checkpoint, which a promotion does not wait for.
    SELECT s.system_identifier, d.oid::bigint,
           CASE WHEN r.is_standby THEN greatest(c.timeline_id, m.min_recovery_end_timeline)
                ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint END,
           r.is_standby
      FROM pg_is_in_recovery() AS r(is_standby), pg_control_system() AS s, pg_control_checkpoint() AS c,
           pg_control_recovery() AS m, pg_database AS d
     WHERE d.datname = current_database()
$$;
COMMENT ON FUNCTION fieldcrypt_internal.origin_here() IS 'which cluster, database and timeline this is';

CREATE FUNCTION fieldcrypt_internal.write_origin(is_confirmed boolean, reason text) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO fieldcrypt.origins (id, is_confirmed, reason, system_identifier, database_oid, timeline)
    SELECT coalesce((SELECT max(o.id) FROM fieldcrypt.origins AS o), 0) + 1, $1, $2,
           h.system_identifier, h.database_oid, h.timeline
      FROM fieldcrypt_internal.origin_here() AS h
$$;
COMMENT ON FUNCTION fieldcrypt_internal.write_origin(boolean, text) IS
    'notes where the keys are, confirmed or not; granted to nobody, passes only from the library';

CREATE FUNCTION fieldcrypt_internal.record_origin(is_confirmed boolean, reason text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_record_origin';
COMMENT ON FUNCTION fieldcrypt_internal.record_origin(boolean, text) IS 'write_origin past the guard; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.origin_checks(OUT item text, OUT ok boolean, OUT detail text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    WITH here AS MATERIALIZED (
        SELECT * FROM fieldcrypt_internal.origin_here()
    ), latest AS MATERIALIZED (
        SELECT o.* FROM fieldcrypt.origins AS o ORDER BY o.id DESC LIMIT 1
    ), has_keys AS MATERIALIZED (
        SELECT EXISTS (SELECT FROM fieldcrypt.encryption_keys) AS has_keys
    )
    SELECT c.item, c.ok, c.detail,
           CASE WHEN NOT c.ok THEN 'Compare with the newest export: key_states_status(document). Then SELECT fieldcrypt.confirm_key_states(reason). See docs/disaster-recovery.md.' END
      FROM has_keys AS k CROSS JOIN here AS h LEFT JOIN latest AS l ON true
     CROSS JOIN LATERAL (VALUES
        ('confirmation', l.is_confirmed IS TRUE OR NOT k.has_keys,
            CASE WHEN NOT k.has_keys THEN 'no keys'
                 WHEN l.id IS NULL THEN 'the keys came from elsewhere, and nobody has confirmed their states'
                 WHEN l.is_confirmed THEN format('confirmed at %s by %s: %s', l.at, l.actor, l.reason)
                 ELSE format('keys were imported at %s by %s, and their states not confirmed since: %s', l.at, l.actor, l.reason) END),
        ('system identifier', l.id IS NULL OR l.system_identifier = h.system_identifier,
            CASE WHEN l.id IS NULL THEN 'not known'
                 WHEN l.system_identifier = h.system_identifier THEN 'the same cluster'
                 ELSE format('another cluster than at the confirmation (%s, now %s): a restored dump, or pg_upgrade', l.system_identifier, h.system_identifier) END),
        ('database', l.id IS NULL OR l.database_oid = h.database_oid,
            CASE WHEN l.id IS NULL THEN 'not known'
                 WHEN l.database_oid = h.database_oid THEN 'the same database'
                 ELSE 'another database than at the confirmation: a restored dump, or a copy by CREATE DATABASE' END),
        -- A standby may know a new timeline later than the row that was replicated to it.
        ('timeline', l.id IS NULL OR l.timeline = h.timeline OR h.is_standby AND h.timeline < l.timeline,
            CASE WHEN l.id IS NULL THEN 'not known'
                 WHEN l.timeline = h.timeline OR h.is_standby AND h.timeline < l.timeline THEN format('the same timeline, %s', h.timeline)
                 ELSE format('another timeline than at the confirmation (%s, now %s): a point-in-time recovery, or a promoted standby', l.timeline, h.timeline) END)
     ) AS c (item, ok, detail)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.origin_checks() IS 'whether this is where the key states were last confirmed';

CREATE FUNCTION fieldcrypt_internal.states_confirmed() RETURNS boolean
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'SELECT bool_and(c.ok) FROM fieldcrypt_internal.origin_checks() AS c';
COMMENT ON FUNCTION fieldcrypt_internal.states_confirmed() IS
    'false after a restore, recovery, promotion or import, until confirm_key_states';

CREATE FUNCTION fieldcrypt_internal.state_rank(state text) RETURNS integer
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT array_position('{active,deactivated,compromised,suspended,destroyed}'::text[], $1) $$;
COMMENT ON FUNCTION fieldcrypt_internal.state_rank(text) IS
    'states from permissive to restrictive: who may do less with the key ranks higher';

CREATE FUNCTION fieldcrypt_internal.logged_states()
    RETURNS TABLE (key_id bigint, state text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT l.key_id,
           CASE WHEN bool_or(l.event = 'key_destroyed') THEN 'destroyed'
                WHEN (array_agg(l.event ORDER BY l.id DESC) FILTER (WHERE l.event IN ('key_suspended', 'key_resumed')))[1] = 'key_suspended' THEN 'suspended'
                WHEN bool_or(l.event = 'key_compromised') THEN 'compromised'
                WHEN bool_or(l.event = 'key_deactivated') THEN 'deactivated' END
      FROM fieldcrypt.audit_log AS l
     WHERE l.key_id IS NOT NULL
       AND l.event IN ('key_destroyed', 'key_suspended', 'key_resumed', 'key_compromised', 'key_deactivated')
     GROUP BY l.key_id
$$;
COMMENT ON FUNCTION fieldcrypt_internal.logged_states() IS 'the state that each key must at least have by the audit log';

CREATE FUNCTION fieldcrypt_internal.refuse_unless_recordable(what text) RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' THEN
        RAISE EXCEPTION USING ERRCODE = 'read_only_sql_transaction',
            MESSAGE = format('%s is recorded, and a standby or a READ ONLY transaction can''t write', what),
            HINT = 'Do it on the primary.';
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.refuse_unless_recordable(text) IS 'a clear error where nothing can be written';

-- sql/key_backup.sql
-- Backup of the keys: export, verification, import.

-- Export.

CREATE FUNCTION fieldcrypt_internal.seal_export(contents text) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_seal_export';
COMMENT ON FUNCTION fieldcrypt_internal.seal_export(text) IS
    'authenticates an export by every master key that wraps one of its keys; granted to nobody';
CREATE FUNCTION fieldcrypt_internal.read_export(document text) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_read_export';
COMMENT ON FUNCTION fieldcrypt_internal.read_export(text) IS 'what an authentic export says; granted to nobody';
CREATE FUNCTION fieldcrypt_internal.import_document(document text, apply_states boolean, renumber boolean) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_import_keys';
COMMENT ON FUNCTION fieldcrypt_internal.import_document(text, boolean, boolean) IS
    'checks an export, opens its keys, and takes them over; granted to nobody';
CREATE FUNCTION fieldcrypt_internal.renumber_key(key_id bigint, version integer) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_renumber_key';
COMMENT ON FUNCTION fieldcrypt_internal.renumber_key(bigint, integer) IS
    'gives a key another version, and wraps it again for it; granted to nobody';
CREATE FUNCTION fieldcrypt_internal.key_problem(key_id bigint) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_key_problem';
COMMENT ON FUNCTION fieldcrypt_internal.key_problem(bigint) IS
    'why a wrapped key does not open; NULL if it does, or is destroyed; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.utc_text(moment timestamptz) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT to_char($1 AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$;
COMMENT ON FUNCTION fieldcrypt_internal.utc_text(timestamptz) IS 'a time as exports write it';

CREATE FUNCTION fieldcrypt.export_keys() RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    confirmed boolean := fieldcrypt_internal.states_confirmed();
    number_of_keys bigint;
    contents text;
    document text;
BEGIN
    PERFORM fieldcrypt_internal.refuse_unless_recordable('an export of keys');
    SELECT k.number_of_keys,
           json_build_object(
               'format', 'pg_fieldcrypt key export',
               'version', 1,
               'created_at', fieldcrypt_internal.utc_text(clock_timestamp()),
               'states_confirmed', confirmed,
               'database', json_build_object('system_identifier', (h.system_identifier)::text, 'name', current_database()),
               'master_keys', m.list,
               'keys', k.list)
      INTO number_of_keys, contents
      FROM fieldcrypt_internal.origin_here() AS h,
           (SELECT coalesce(json_agg(json_build_object(
                       'fingerprint', encode(m.fingerprint, 'hex'),
                       'is_current', m.is_current,
                       'first_used_at', fieldcrypt_internal.utc_text(m.first_used_at)) ORDER BY m.fingerprint), '[]') AS list
              FROM fieldcrypt.master_keys AS m) AS m,
           (SELECT count(*) AS number_of_keys,
                   coalesce(json_agg(json_build_object(
                       'key_id', k.key_id::text,
                       'tenant', k.tenant,
                       'purpose', k.purpose,
                       'version', k.version,
                       'state', k.state,
                       'algorithm', k.algorithm,
                       'wrapped_key', encode(k.wrapped_key, 'hex'),
                       'master_key_fingerprint', encode(k.master_key_fingerprint, 'hex'),
                       'key_check', encode(k.key_check, 'hex'),
                       'created_at', fieldcrypt_internal.utc_text(k.created_at),
                       'deactivated_at', fieldcrypt_internal.utc_text(k.deactivated_at),
                       'destroyed_at', fieldcrypt_internal.utc_text(k.destroyed_at),
                       'suspended_from', k.suspended_from,
                       'destroy_scheduled_at', fieldcrypt_internal.utc_text(k.destroy_scheduled_at),
                       'destroy_after', fieldcrypt_internal.utc_text(k.destroy_after)) ORDER BY k.key_id), '[]') AS list
              FROM fieldcrypt.encryption_keys AS k) AS k;
    document := fieldcrypt_internal.seal_export(contents);
    IF NOT confirmed THEN
        RAISE WARNING USING ERRCODE = 'KF023',
            MESSAGE = 'the exported key states are not confirmed since a restore, promotion or import',
            HINT = 'See fieldcrypt.key_states_status(); then fieldcrypt.confirm_key_states(reason), and export again. (KF023, see docs/errors.md)';
    END IF;
    PERFORM fieldcrypt_internal.record_event('keys_exported', NULL, NULL, format('%s keys', number_of_keys), NULL);
    RETURN document;
END
$$;
COMMENT ON FUNCTION fieldcrypt.export_keys() IS
    'all keys, wrapped, as one authenticated JSON document: useless without the master keys, which it does not hold';

CREATE FUNCTION fieldcrypt.verify_keys(
        OUT key_id bigint, OUT tenant text, OUT version integer, OUT state text, OUT ok boolean, OUT problem text)
    RETURNS SETOF record
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.key_id, k.tenant, k.version, k.state, p.problem IS NULL, p.problem
      FROM fieldcrypt.encryption_keys AS k
     CROSS JOIN LATERAL (SELECT fieldcrypt_internal.key_problem(k.key_id) AS problem OFFSET 0) AS p
     ORDER BY k.tenant, k.version
$$;
COMMENT ON FUNCTION fieldcrypt.verify_keys() IS
    'opens every wrapped key with the loaded master keys and compares its check value; says of each what is wrong';

-- Import.

CREATE FUNCTION fieldcrypt_internal.exported_keys(contents json)
    RETURNS TABLE (key_id bigint, tenant text, purpose text, version integer, state text, algorithm text,
        wrapped_key bytea, master_key_fingerprint bytea, key_check bytea, created_at timestamptz,
        deactivated_at timestamptz, destroyed_at timestamptz, suspended_from text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.key_id::bigint, k.tenant, k.purpose, k.version, k.state, k.algorithm, decode(k.wrapped_key, 'hex'),
           decode(k.master_key_fingerprint, 'hex'), decode(k.key_check, 'hex'),
           k.created_at, k.deactivated_at, k.destroyed_at, k.suspended_from
      FROM json_to_recordset(contents -> 'keys') AS k (
               key_id text, tenant text, purpose text, version integer, state text, algorithm text, wrapped_key text,
               master_key_fingerprint text, key_check text, created_at timestamptz, deactivated_at timestamptz,
               destroyed_at timestamptz, suspended_from text)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.exported_keys(json) IS 'the keys of an export as rows';

CREATE FUNCTION fieldcrypt_internal.import_contents(contents json, apply_states integer, renumber integer) RETURNS json
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
-- What is refused is given back, since an error of its own would lose its SQLSTATE on the way through the
-- library, which raises it: nothing of what was done before stays.
DECLARE
    clash record;
    repaired bigint;
    restricted bigint := 0;
    imported bigint;
    unchanged bigint;
    looser bigint;
    renumbered bigint := 0;
    reason text;
BEGIN
    -- An older snapshot would not see the keys that the locks below wait for.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RETURN json_build_object('isolation', current_setting('transaction_isolation'));
    END IF;
    -- In the order in which a new key takes them. Encryption and decryption go on.
    LOCK TABLE fieldcrypt.master_keys IN EXCLUSIVE MODE;
    LOCK TABLE fieldcrypt.encryption_keys IN SHARE ROW EXCLUSIVE MODE;

    SELECT d.key_id, d.tenant, d.version INTO clash
      FROM fieldcrypt_internal.exported_keys(contents) AS d
      JOIN fieldcrypt.encryption_keys AS k ON k.key_id = d.key_id
     WHERE (k.tenant, k.purpose, k.version, k.algorithm, k.key_check)
           IS DISTINCT FROM (d.tenant, d.purpose, d.version, d.algorithm, d.key_check)
     ORDER BY d.key_id LIMIT 1;
    IF FOUND THEN
        RETURN json_build_object('conflict', format('key %s of the export (tenant "%s", version %s) is not the key %s of this database', clash.key_id, clash.tenant, clash.version, clash.key_id),
            'hint', 'The export is of another database, or that row was edited. Nothing was imported.');
    END IF;
    -- A key that was made here after the others were lost has the version of one of them.
    FOR clash IN
        SELECT d.key_id, d.tenant, d.purpose, d.version, k.key_id AS key_here
          FROM fieldcrypt_internal.exported_keys(contents) AS d
          JOIN fieldcrypt.encryption_keys AS k
            ON k.tenant = d.tenant AND k.purpose = d.purpose AND k.version = d.version AND k.key_id <> d.key_id
         ORDER BY d.tenant, d.version
    LOOP
        -- The audit log of this database is not that of the export: its keys stand beside each other.
        IF renumber = 0 AND clash.purpose <> 'audit' OR fieldcrypt_internal.key_problem(clash.key_here) IS NOT NULL THEN
            RETURN json_build_object('conflict', format('key %s of the export is version %s of tenant "%s", which is key %s in this database', clash.key_id, clash.version, clash.tenant, clash.key_here),
                'hint', 'If that key was made here after the others were lost, import_keys(document, renumber => true) makes it a later version. Otherwise the export is of another database. Nothing was imported.');
        END IF;
        PERFORM fieldcrypt_internal.renumber_key(clash.key_here, 1 + (
            SELECT max(v.version)
              FROM (SELECT k.version FROM fieldcrypt.encryption_keys AS k WHERE k.tenant = clash.tenant AND k.purpose = clash.purpose
                    UNION ALL
                    SELECT d.version FROM fieldcrypt_internal.exported_keys(contents) AS d WHERE d.tenant = clash.tenant AND d.purpose = clash.purpose) AS v));
        renumbered := renumbered + (clash.purpose <> 'audit')::integer;
    END LOOP;

    -- A row whose wrapped key is damaged, or whose master key is gone, takes the one of the export: the
    -- same key, since its check value says so.
    UPDATE fieldcrypt.encryption_keys AS k
       SET wrapped_key = d.wrapped_key, master_key_fingerprint = d.master_key_fingerprint
      FROM fieldcrypt_internal.exported_keys(contents) AS d
     WHERE k.key_id = d.key_id AND k.state <> 'destroyed' AND d.wrapped_key IS NOT NULL
       AND fieldcrypt_internal.key_problem(k.key_id) IS NOT NULL;
    GET DIAGNOSTICS repaired = ROW_COUNT;
    IF repaired > 0 THEN
        -- A master key that is lost and no longer needed would keep new keys from being made.
        DELETE FROM fieldcrypt.master_keys AS m
         WHERE NOT EXISTS (SELECT FROM fieldcrypt.encryption_keys AS k
                            WHERE k.master_key_fingerprint = m.fingerprint AND k.wrapped_key IS NOT NULL)
           AND NOT coalesce(fieldcrypt_internal.loaded_master_keys()::jsonb -> 'fingerprints' ? encode(m.fingerprint, 'hex'), false);
    END IF;

    -- Nothing is erased by an import: what was destroyed elsewhere and is alive here is suspended.
    IF apply_states = 1 THEN
        UPDATE fieldcrypt.encryption_keys AS k
           SET state = CASE d.state WHEN 'destroyed' THEN 'suspended' ELSE d.state END,
               suspended_from = CASE
                   WHEN d.state NOT IN ('suspended', 'destroyed') THEN NULL
                   WHEN 'compromised' IN (k.state, k.suspended_from, d.suspended_from) THEN 'compromised'
                   WHEN k.state = 'suspended' THEN k.suspended_from
                   WHEN k.state = 'active' AND d.suspended_from = 'deactivated' THEN 'deactivated'
                   ELSE k.state END,
               deactivated_at = coalesce(k.deactivated_at, d.deactivated_at, clock_timestamp())
          FROM fieldcrypt_internal.exported_keys(contents) AS d
         WHERE k.key_id = d.key_id
           AND fieldcrypt_internal.state_rank(k.state) < fieldcrypt_internal.state_rank(CASE d.state WHEN 'destroyed' THEN 'suspended' ELSE d.state END);
        GET DIAGNOSTICS restricted = ROW_COUNT;
    END IF;

    SELECT d.key_id, d.tenant, k.key_id AS key_here INTO clash
      FROM fieldcrypt_internal.exported_keys(contents) AS d
      JOIN fieldcrypt.encryption_keys AS k
        ON k.tenant = d.tenant AND k.purpose = d.purpose AND k.version < d.version AND k.state = 'active'
     WHERE d.state = 'active' AND d.purpose <> 'audit'
       AND NOT EXISTS (SELECT FROM fieldcrypt.encryption_keys AS e WHERE e.key_id = d.key_id)
     ORDER BY d.key_id LIMIT 1;
    IF FOUND THEN
        RETURN json_build_object('conflict', format('tenant "%s" would have two active keys: %s here, and %s of the export', clash.tenant, clash.key_here, clash.key_id),
            'hint', 'The states here are older than the export''s: import_keys(document, apply_states => true) takes over what it says of existing keys. Nothing was imported.');
    END IF;

    INSERT INTO fieldcrypt.master_keys (fingerprint, is_current, first_used_at)
    SELECT decode(m.fingerprint, 'hex'),
           m.is_current AND NOT EXISTS (SELECT FROM fieldcrypt.master_keys AS c WHERE c.is_current),
           m.first_used_at
      FROM json_to_recordset(contents -> 'master_keys') AS m (fingerprint text, is_current boolean, first_used_at timestamptz)
     -- One that wraps nothing here would have to be loaded for nothing before a new key is made.
     WHERE m.is_current AND NOT EXISTS (SELECT FROM fieldcrypt.master_keys AS c WHERE c.is_current) OR EXISTS (
               SELECT FROM fieldcrypt_internal.exported_keys(contents) AS d
                WHERE d.master_key_fingerprint = decode(m.fingerprint, 'hex') AND d.wrapped_key IS NOT NULL)
        ON CONFLICT (fingerprint) DO NOTHING;
    UPDATE fieldcrypt.master_keys AS m
       SET is_current = true
      FROM json_to_recordset(contents -> 'master_keys') AS d (fingerprint text, is_current boolean)
     WHERE d.is_current AND m.fingerprint = decode(d.fingerprint, 'hex')
       AND NOT EXISTS (SELECT FROM fieldcrypt.master_keys AS c WHERE c.is_current);

    -- A scheduled destruction is not taken over: what it was scheduled for may be needed again. The state
    -- is the most restrictive of what the export says, what the audit log here says, and what a newer
    -- version leaves possible.
    INSERT INTO fieldcrypt.encryption_keys AS k (
           key_id, tenant, purpose, version, state, algorithm, wrapped_key, master_key_fingerprint,
           key_check, created_at, deactivated_at, destroyed_at, suspended_from)
    SELECT d.key_id, d.tenant, d.purpose, d.version, s.state, d.algorithm,
           CASE WHEN s.state <> 'destroyed' THEN d.wrapped_key END, d.master_key_fingerprint, d.key_check, d.created_at,
           CASE WHEN s.state = d.state THEN d.deactivated_at ELSE coalesce(d.deactivated_at, clock_timestamp()) END,
           CASE WHEN s.state = d.state THEN d.destroyed_at WHEN s.state = 'destroyed' THEN clock_timestamp() END,
           CASE WHEN s.state = 'suspended' THEN
                CASE WHEN l.state IS NOT NULL AND d.state = 'compromised' THEN 'compromised'
                     WHEN newer.is_there THEN coalesce(nullif(d.suspended_from, 'active'), 'deactivated')
                     ELSE coalesce(d.suspended_from, nullif(d.state, 'suspended'), 'deactivated') END END
      FROM fieldcrypt_internal.exported_keys(contents) AS d
      LEFT JOIN fieldcrypt_internal.logged_states() AS l ON l.key_id = d.key_id
     CROSS JOIN LATERAL (SELECT EXISTS (
               SELECT FROM fieldcrypt.encryption_keys AS n
                WHERE n.tenant = d.tenant AND n.purpose = d.purpose AND n.version > d.version)) AS newer (is_there)
     CROSS JOIN LATERAL (
           SELECT c.state FROM (VALUES (d.state), (l.state), (CASE WHEN newer.is_there THEN 'deactivated' END),
                 (CASE WHEN d.purpose = 'audit' AND EXISTS (
                      SELECT FROM fieldcrypt.encryption_keys AS a WHERE a.purpose = 'audit' AND a.state = 'active') THEN 'deactivated' END)) AS c (state)
            WHERE c.state IS NOT NULL
            ORDER BY fieldcrypt_internal.state_rank(c.state) DESC LIMIT 1) AS s
     WHERE NOT EXISTS (SELECT FROM fieldcrypt.encryption_keys AS e WHERE e.key_id = d.key_id);
    GET DIAGNOSTICS imported = ROW_COUNT;

    -- A master key that wraps a key again is needed again.
    UPDATE fieldcrypt.master_keys AS m
       SET retired_at = NULL
     WHERE m.retired_at IS NOT NULL
       AND EXISTS (SELECT FROM fieldcrypt.encryption_keys AS k
                    WHERE k.master_key_fingerprint = m.fingerprint AND k.wrapped_key IS NOT NULL);

    SELECT count(*) - imported, count(*) FILTER (WHERE fieldcrypt_internal.state_rank(k.state) < fieldcrypt_internal.state_rank(d.state))
      INTO unchanged, looser
      FROM fieldcrypt_internal.exported_keys(contents) AS d
      JOIN fieldcrypt.encryption_keys AS k ON k.key_id = d.key_id;
    unchanged := greatest(unchanged - restricted - repaired, 0);
    IF looser > 0 THEN
        RAISE WARNING USING ERRCODE = 'KF023',
            MESSAGE = format('%s keys are in a more permissive state here than in the export', looser),
            HINT = 'fieldcrypt.key_states_status(document) lists them. (KF023, see docs/errors.md)';
    END IF;
    reason := format('%s keys imported, %s repaired, %s restricted, %s renumbered, from the export of %s in database "%s" of cluster %s',
        imported, repaired, restricted, renumbered, contents ->> 'created_at', contents #>> '{database,name}', contents #>> '{database,system_identifier}');
    IF imported > 0 THEN
        PERFORM fieldcrypt_internal.write_origin(false, reason);
    END IF;
    PERFORM fieldcrypt_internal.record_event('keys_imported', NULL, NULL, reason, NULL);
    RETURN json_build_object('imported', imported, 'repaired', repaired, 'restricted', restricted, 'renumbered', renumbered,
        'unchanged', unchanged);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.import_contents(json, integer, integer) IS
    'takes over the keys of an export that was checked; granted to nobody, passes only from the library';

CREATE FUNCTION fieldcrypt.import_keys(
        document text, apply_states boolean DEFAULT false, renumber boolean DEFAULT false,
        OUT imported bigint, OUT repaired bigint, OUT restricted bigint, OUT renumbered bigint, OUT unchanged bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF apply_states IS NULL OR renumber IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'apply_states and renumber must not be NULL',
            HINT = 'Leave an argument out to leave existing keys as they are.';
    END IF;
    PERFORM fieldcrypt_internal.refuse_unless_recordable('an import of keys');
    SELECT c.imported, c.repaired, c.restricted, c.renumbered, c.unchanged
      INTO imported, repaired, restricted, renumbered, unchanged
      FROM json_to_record(fieldcrypt_internal.import_document(document, apply_states, renumber)::json)
           AS c (imported bigint, repaired bigint, restricted bigint, renumbered bigint, unchanged bigint);
END
$$;
COMMENT ON FUNCTION fieldcrypt.import_keys(text, boolean, boolean) IS
    'takes over the keys of an export that are missing or damaged here, all or none; existing keys keep their state, or with apply_states take a more restrictive one, never a more permissive one; with renumber, keys made after a loss become later versions';

-- sql/restored_states.sql
-- Key states after a restore.

CREATE FUNCTION fieldcrypt.key_states_status(
        document text DEFAULT '', OUT item text, OUT ok boolean, OUT detail text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    contents json;
BEGIN
    IF document IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'document must not be NULL',
            HINT = 'Leave the argument out to check without an export.';
    END IF;
    RETURN QUERY SELECT c.item, c.ok, c.detail, c.hint FROM fieldcrypt_internal.origin_checks() AS c;
    RETURN QUERY
        SELECT format('key %s', k.key_id), false,
               format('tenant "%s", version %s is %s here, and was %s by the audit log', k.tenant, k.version, k.state, l.state),
               'The key table is older than the log: set the state again.'
          FROM fieldcrypt.encryption_keys AS k
          JOIN fieldcrypt_internal.logged_states() AS l ON l.key_id = k.key_id
         WHERE fieldcrypt_internal.state_rank(k.state) < fieldcrypt_internal.state_rank(l.state)
         ORDER BY k.tenant, k.version;
    IF document = '' THEN
        RETURN;
    END IF;
    contents := fieldcrypt_internal.read_export(document)::json;
    RETURN QUERY
        SELECT 'export', (contents ->> 'states_confirmed')::boolean,
               format('of %s, from database "%s" of cluster %s, %s keys', contents ->> 'created_at',
                   contents #>> '{database,name}', contents #>> '{database,system_identifier}', json_array_length(contents -> 'keys')),
               CASE WHEN NOT (contents ->> 'states_confirmed')::boolean
                    THEN 'It was made while key states were not confirmed: take one from before the restore, too.' END;
    RETURN QUERY
        SELECT format('key %s', d.key_id), false,
               CASE WHEN k.key_id IS NULL
                    THEN format('tenant "%s", version %s is missing here, and %s in the export', d.tenant, d.version, d.state)
                    ELSE format('tenant "%s", version %s is %s here, and %s in the export', d.tenant, d.version, k.state, d.state) END,
               CASE WHEN k.key_id IS NULL THEN 'fieldcrypt.import_keys(document) brings it back.'
                    WHEN d.state = 'destroyed' THEN 'Values here may still need it: re-encrypt them, then destroy it again. import_keys(document, apply_states => true) suspends it.'
                    ELSE 'fieldcrypt.import_keys(document, apply_states => true) sets the state of the export.' END
          FROM fieldcrypt_internal.exported_keys(contents) AS d
          LEFT JOIN fieldcrypt.encryption_keys AS k ON k.key_id = d.key_id
         WHERE k.key_id IS NULL
            OR fieldcrypt_internal.state_rank(k.state) < fieldcrypt_internal.state_rank(d.state)
         ORDER BY d.tenant, d.version;
END
$$;
COMMENT ON FUNCTION fieldcrypt.key_states_status(text) IS
    'whether key states may have gone back in time (restore, recovery, promotion, import), and which keys are more permissive here than in the audit log or in an export';

CREATE FUNCTION fieldcrypt.confirm_key_states(reason text) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF reason IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'reason must not be NULL',
            HINT = 'Say what the key states were compared with.';
    ELSIF btrim(reason) = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'a confirmation needs a reason',
            HINT = 'Say what the key states were compared with.';
    END IF;
    PERFORM fieldcrypt_internal.refuse_unless_recordable('a confirmation');
    PERFORM fieldcrypt_internal.record_origin(true, reason);
    PERFORM fieldcrypt_internal.record_event('key_states_confirmed', NULL, NULL, reason, NULL);
    RAISE NOTICE 'confirm_key_states: the states of the keys in this database count as the newest';
END
$$;
COMMENT ON FUNCTION fieldcrypt.confirm_key_states(text) IS
    'records that somebody looked at key_states_status() and put the key states right';

-- sql/schedule.sql
-- Jobs of pg_cron: one CALL a job, since two statements in one job run in one transaction. With the
-- caller's rights, and as the caller: pg_cron's functions are not the extension's.

CREATE FUNCTION fieldcrypt_internal.scheduled_jobs(rotation text, reencryption text, destruction text)
    RETURNS TABLE (job text, schedule text, command text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    -- A job's name is its user's, in pg_cron's database: so it says which database it is for.
    SELECT (j.name || current_database())::name::text, j.schedule, j.command
      FROM (VALUES ('fieldcrypt rotation of ', $1, 'CALL fieldcrypt.rotate_keys()'),
                   ('fieldcrypt re-encryption of ', $2, 'CALL fieldcrypt.reencrypt()'),
                   ('fieldcrypt destruction of ', $3, 'CALL fieldcrypt.destroy_due_keys()')) AS j (name, schedule, command)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.scheduled_jobs(text, text, text) IS 'names and commands of the jobs of schedule_rotation';

CREATE FUNCTION fieldcrypt_internal.refuse_without_cron(jobs jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home text;
    hint text;
BEGIN
    -- Its own functions, not those of somebody who made a schema of that name.
    IF EXISTS (
        SELECT FROM pg_extension AS e
          JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
          JOIN pg_namespace AS n ON d.classid = 'pg_namespace'::regclass AND d.objid = n.oid
         WHERE e.extname = 'pg_cron' AND n.nspname = 'cron')
    THEN
        RETURN;
    END IF;
    BEGIN
        home := current_setting('cron.database_name', true);
    EXCEPTION WHEN insufficient_privilege THEN
        home := '?';
    END;
    IF home IS NULL THEN
        hint := 'Install pg_cron (Debian: postgresql-15-cron), add it to shared_preload_libraries, restart, and CREATE EXTENSION pg_cron in the database cron.database_name. Or let any other scheduler run: '
            || (SELECT string_agg(j.command, '; ') FROM jsonb_to_recordset(jobs) AS j(job text, schedule text, command text) WHERE j.schedule <> '');
    ELSE
        hint := format('pg_cron has its jobs in one database%s. Run there: ',
                CASE WHEN home = '?' THEN ', cron.database_name' ELSE format(', here "%s"', home) END)
            || (SELECT string_agg(format('SELECT cron.schedule_in_database(%L, %L, %L, %L);', j.job, j.schedule, j.command, current_database()), ' ')
                  FROM jsonb_to_recordset(jobs) AS j(job text, schedule text, command text) WHERE j.schedule <> '');
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
        MESSAGE = 'pg_cron is not installed in this database', HINT = hint;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.refuse_without_cron(jsonb) IS 'an error with what to do, where pg_cron is not in this database';

CREATE FUNCTION fieldcrypt_internal.schedule_jobs(jobs jsonb) RETURNS TABLE (job text, schedule text, command text)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM jsonb_to_recordset(jobs) AS j(schedule text) WHERE j.schedule IS NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'a schedule must not be NULL', HINT = 'Pass '''' for no such job.';
    END IF;
    PERFORM fieldcrypt_internal.refuse_without_cron(jobs);
    PERFORM fieldcrypt_internal.unschedule_jobs(jobs);
    FOR job, schedule, command IN
        SELECT j.job, j.schedule, j.command FROM jsonb_to_recordset(jobs) AS j(job text, schedule text, command text) WHERE j.schedule <> ''
    LOOP
        EXECUTE 'SELECT cron.schedule($1, $2, $3)' USING job, schedule, command;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.schedule_jobs(jsonb) IS 'makes jobs of pg_cron, in the place of the caller''s of the same names';

CREATE FUNCTION fieldcrypt_internal.unschedule_jobs(jobs jsonb) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    id bigint;
    removed integer := 0;
BEGIN
    PERFORM fieldcrypt_internal.refuse_without_cron(jobs);
    FOR id IN EXECUTE
        'SELECT j.jobid FROM cron.job AS j
           JOIN jsonb_to_recordset($1) AS s(job text) ON s.job = j.jobname::text
          WHERE j.username = current_user' USING jobs
    LOOP
        EXECUTE 'SELECT cron.unschedule($1)' USING id;
        removed := removed + 1;
    END LOOP;
    RETURN removed;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.unschedule_jobs(jsonb) IS 'takes the caller''s jobs of these names away, and gives their number';

CREATE FUNCTION fieldcrypt.schedule_rotation(
        cron text DEFAULT '0 3 * * *', reencryption text DEFAULT '15 3 * * *', destruction text DEFAULT '45 3 * * *')
    RETURNS TABLE (job text, schedule text, command text)
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.job, s.schedule, s.command
      FROM fieldcrypt_internal.schedule_jobs((SELECT jsonb_agg(j) FROM fieldcrypt_internal.scheduled_jobs($1, $2, $3) AS j)) AS s
$$;
COMMENT ON FUNCTION fieldcrypt.schedule_rotation(text, text, text) IS
    'lets pg_cron rotate the keys that are due, re-encrypt, and destroy what is due, as the caller; '''' is no such job; again: replaces';

CREATE FUNCTION fieldcrypt.unschedule_rotation() RETURNS integer
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT fieldcrypt_internal.unschedule_jobs((
        SELECT jsonb_agg(j) FROM fieldcrypt_internal.scheduled_jobs('0 3 * * *', '15 3 * * *', '45 3 * * *') AS j))
$$;
COMMENT ON FUNCTION fieldcrypt.unschedule_rotation() IS 'takes the caller''s jobs of schedule_rotation away, and gives their number';

-- sql/audit_status.sql
-- How the queue, the worker and the seals of the audit log stand.

CREATE FUNCTION fieldcrypt_internal.audit_queue_status() RETURNS text
    LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_audit_status';
COMMENT ON FUNCTION fieldcrypt_internal.audit_queue_status() IS 'what shared memory tells of this database''s audit queue';

CREATE FUNCTION fieldcrypt.audit_status(
        OUT is_preloaded boolean, OUT is_standby boolean, OUT ring_bytes bigint, OUT ring_used bigint,
        OUT queued_events bigint, OUT gap_events bigint, OUT worker_pid integer, OUT last_written_at timestamptz,
        OUT unsealed_rows bigint, OUT last_checkpoint_at timestamptz, OUT last_checkpoint_size bigint,
        OUT last_problem text)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.is_preloaded, pg_is_in_recovery(), s.ring_bytes, s.ring_used, s.queued_events, s.gap_events, s.worker_pid,
           s.last_written_at,
           (SELECT count(*) FROM fieldcrypt.audit_log AS l WHERE l.leaf IS NULL),
           s.last_checkpoint_at, s.last_checkpoint_size, s.last_problem
      FROM jsonb_to_record(fieldcrypt_internal.audit_queue_status()::jsonb) AS s (
           is_preloaded boolean, ring_bytes bigint, ring_used bigint, queued_events bigint, gap_events bigint,
           worker_pid integer, last_written_at timestamptz, last_checkpoint_at timestamptz,
           last_checkpoint_size bigint, last_problem text)
$$;
COMMENT ON FUNCTION fieldcrypt.audit_status() IS
    'how the audit log of this database is written: is_preloaded (otherwise events that outlive their transaction go to the server log), the queue (bytes; events since the server started; gap_events: that found no room), the worker (NULL: none runs now, one starts when needed), rows without a seal, and the last checkpoint and problem since the server started';

-- sql/audit_seal.sql
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

-- sql/audit_verification.sql
-- Verification of the sealed audit log. What is judged, and how, is in crates/audit.

CREATE FUNCTION fieldcrypt_internal.audit_log_findings(from_time timestamptz, to_time timestamptz, anchor text) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_verify_audit_log';
COMMENT ON FUNCTION fieldcrypt_internal.audit_log_findings(timestamptz, timestamptz, text) IS
    'the findings of verify_audit_log as JSON; granted to nobody';

CREATE FUNCTION fieldcrypt.verify_audit_log(
        from_time timestamptz DEFAULT NULL, to_time timestamptz DEFAULT NULL, anchor text DEFAULT '')
    RETURNS TABLE (status text, finding text, leaf bigint, log_id bigint, detail text)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f.status, f.finding, f.leaf, f.log_id, f.detail
      FROM ROWS FROM (
           jsonb_to_recordset(fieldcrypt_internal.audit_log_findings($1, $2, $3)::jsonb)
           AS (status text, finding text, leaf bigint, log_id bigint, detail text)
           ) WITH ORDINALITY AS f (status, finding, leaf, log_id, detail, place)
     ORDER BY f.place
$$;
COMMENT ON FUNCTION fieldcrypt.verify_audit_log(timestamptz, timestamptz, text) IS
    'finds rows of the audit log that were changed, inserted, deleted, moved or cut off, and checkpoints and keys that were; the first row is the summary. From the last checkpoint before from_time to the first one after to_time; anchor is what is known outside of the server: public keys, one a line, and a checkpoint';

CREATE FUNCTION fieldcrypt.audit_export(from_time timestamptz DEFAULT NULL, to_time timestamptz DEFAULT NULL)
    RETURNS SETOF text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_audit_export';
COMMENT ON FUNCTION fieldcrypt.audit_export(timestamptz, timestamptz) IS
    'the audit log with all that seals it, as lines of JSON: to be verified elsewhere by fieldcrypt verify-log';

CREATE FUNCTION fieldcrypt.audit_proof(log_id bigint) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_audit_proof';
COMMENT ON FUNCTION fieldcrypt.audit_proof(bigint) IS
    'proof that a row is in the audit log, under its last checkpoint: to be verified elsewhere by fieldcrypt verify-proof';

-- sql/statistics.sql
-- What encryption and decryption are used for: figures in shared memory.

CREATE FUNCTION fieldcrypt_internal.tenant_statistics() RETURNS text
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'fieldcrypt_statistics';
COMMENT ON FUNCTION fieldcrypt_internal.tenant_statistics() IS
    'the figures of fieldcrypt_stats as a JSON array; empty without preload';

CREATE FUNCTION fieldcrypt.fieldcrypt_stats_reset() RETURNS void
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'fieldcrypt_statistics_reset';
COMMENT ON FUNCTION fieldcrypt.fieldcrypt_stats_reset() IS
    'begins the statistics of this database anew, and makes room for other tenants';

CREATE VIEW fieldcrypt.fieldcrypt_stats AS
    SELECT s.tenant COLLATE "C" AS tenant,
           s.encrypt_statements, s.encrypt_values, s.encrypt_bytes, s.encrypt_time,
           s.decrypt_statements, s.decrypt_values, s.decrypt_bytes, s.decrypt_time,
           s.reencrypt_values, s.failures, s.cache_hits, s.cache_misses, s.load_time, s.keys_made, s.stats_since
      FROM pg_catalog.jsonb_to_recordset(fieldcrypt_internal.tenant_statistics()::pg_catalog.jsonb) AS s (
           tenant text,
           encrypt_statements bigint, encrypt_values bigint, encrypt_bytes bigint, encrypt_time double precision,
           decrypt_statements bigint, decrypt_values bigint, decrypt_bytes bigint, decrypt_time double precision,
           reencrypt_values bigint, failures bigint, cache_hits bigint, cache_misses bigint,
           load_time double precision, keys_made bigint, stats_since timestamptz);

COMMENT ON VIEW fieldcrypt.fieldcrypt_stats IS
    'what this database''s keys are used for, by tenant, since the server started or fieldcrypt_stats_reset(); empty unless pg_fieldcrypt is in shared_preload_libraries. Of all sessions, up to their last finished statement';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.tenant IS
    'the tenant; NULL: tenants beyond fieldcrypt.stats_max together, and failures of values whose tenant is not known';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.encrypt_statements IS 'statements that encrypted values; in a parallel query each process counts as one';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.encrypt_values IS 'values encrypted, also by transactions that were rolled back';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.encrypt_bytes IS 'bytes of their plaintexts';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.encrypt_time IS 'milliseconds of encryption: an estimate from one value in 61, without load_time';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.decrypt_statements IS 'statements that decrypted values; in a parallel query each process counts as one';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.decrypt_values IS 'values decrypted';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.decrypt_bytes IS 'bytes of their plaintexts';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.decrypt_time IS 'milliseconds of decryption: an estimate from one value in 61, without load_time';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.reencrypt_values IS 'values that re-encryption brought to the active key';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.failures IS 'decryptions that failed, whether with an error or with NULL';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.cache_hits IS 'look-ups of keys that the session''s cache answered';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.cache_misses IS 'look-ups that had to read the table of keys, or to make a key';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.load_time IS 'milliseconds that those took, each measured';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.keys_made IS 'keys made, also by transactions that were rolled back';
COMMENT ON COLUMN fieldcrypt.fieldcrypt_stats.stats_since IS 'since when the row is counted';

-- sql/health.sql
-- Health: is everything all right, and if not, what is to be done?
--
-- Each check is a function check_NAME, which always gives one finding. It is cheap: it reads what the extension
-- keeps about keys, re-encryption and the audit log, never the values of users' tables, unless it is given
-- a count of them. A status of NULL is "can't be told now": ok for who looks, and what alerts know stays as it
-- is. identity is what a finding is about, without ages and counts that change by themselves: an alert is
-- raised again when something is added to it.

-- What the checks ask every minute, of logs and key tables that may be large. Rows of tables and of
-- decryptions, of which there are most, are left out of the first.
CREATE INDEX audit_log_event ON fieldcrypt.audit_log (event, at)
    WHERE event OPERATOR(pg_catalog.<>) ALL ('{row_inserted,row_updated,row_deleted,values_decrypted}'::text[]);
CREATE INDEX audit_log_address ON fieldcrypt.audit_log (client_address, at)
    WHERE event OPERATOR(pg_catalog.=) 'values_decrypted';
CREATE INDEX encryption_keys_age ON fieldcrypt.encryption_keys (purpose, created_at)
    WHERE state OPERATOR(pg_catalog.=) 'active';
CREATE INDEX encryption_keys_deactivated ON fieldcrypt.encryption_keys (deactivated_at)
    WHERE state OPERATOR(pg_catalog.=) 'deactivated';
CREATE INDEX encryption_keys_exposed ON fieldcrypt.encryption_keys (state, tenant, version)
    WHERE state IN ('compromised', 'suspended');
CREATE INDEX encryption_keys_due ON fieldcrypt.encryption_keys (destroy_after)
    WHERE destroy_after IS NOT NULL AND state OPERATOR(pg_catalog.<>) 'destroyed';

CREATE FUNCTION fieldcrypt_internal.master_key_source() RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_master_key_source';
COMMENT ON FUNCTION fieldcrypt_internal.master_key_source() IS
    'the setting that gives the master key, and who else could reach the key there, as JSON; granted to nobody';
CREATE FUNCTION fieldcrypt_internal.health_hours() RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_health_hours';
COMMENT ON FUNCTION fieldcrypt_internal.health_hours() IS 'fieldcrypt.health_hours as JSON; NULL if it is empty; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.health_threshold(name text) RETURNS interval
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT current_setting('fieldcrypt.health_' || $1)::interval $$;
COMMENT ON FUNCTION fieldcrypt_internal.health_threshold(text) IS 'a setting fieldcrypt.health_... that is a time';

-- Names are anybody's text: quoted as JSON, cut, and without what moves a terminal's cursor or turns the
-- direction of writing.
CREATE FUNCTION fieldcrypt_internal.quoted_name(name text) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $$
    SELECT regexp_replace(
        to_json(CASE WHEN length($1) <= 60 THEN $1
                     -- Its characters are bytes: none of UTF-8 is cut in two.
                     WHEN getdatabaseencoding() = 'SQL_ASCII' THEN regexp_replace(left($1, 60), '[\u00c0-\u00ff][\u0080-\u00bf]*$', '') || '...'
                     ELSE left($1, 60) || '...' END)::text,
        -- Numbers of characters are Unicode's in UTF8 alone.
        CASE WHEN getdatabaseencoding() = 'UTF8' THEN '[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]' ELSE '[\u007f]' END, '?', 'g')
$$;
COMMENT ON FUNCTION fieldcrypt_internal.quoted_name(text) IS 'a name as health shows it: in double quotes, on one line, at most 60 characters';

CREATE FUNCTION fieldcrypt_internal.counted_names(names text[], total bigint, noun text, cap bigint DEFAULT 10000) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN $2 = 0 THEN NULL
                WHEN $2 = 1 THEN format('%s %s', $3, listed.names)
                WHEN $2 > $4 THEN format('more than %s %ss, for instance %s', $4, $3, listed.names)
                WHEN $2 > cardinality($1[1:3]) THEN format('%s %ss, for instance %s', $2, $3, listed.names)
                ELSE format('%s %ss: %s', $2, $3, listed.names) END
      FROM (SELECT array_to_string($1[1:3], ', ') AS names) AS listed
$$;
COMMENT ON FUNCTION fieldcrypt_internal.counted_names(text[], bigint, text, bigint) IS
    'how many of something, and the names of at most three; cap: what was counted at most; granted to nobody';

-- Of many, only the magnitude: it includes the lower ones, so that nothing is added when they get fewer.
CREATE FUNCTION fieldcrypt_internal.finding_identity(items text[], total bigint) RETURNS text[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN $2 <= 20 THEN $1
                ELSE ARRAY(SELECT format('more than %s', 10 << power) FROM generate_series(1, 20) AS power WHERE $2 > 10 << power) END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.finding_identity(text[], bigint) IS 'what a finding is about: the things themselves, or how many they are about';

CREATE TYPE fieldcrypt_internal.health_finding AS (status text, detail text, hint text, identity text[]);
COMMENT ON TYPE fieldcrypt_internal.health_finding IS 'what a check of health found';
COMMENT ON COLUMN fieldcrypt_internal.health_finding.status IS 'ok, warning or critical; NULL: can''t be told now';
COMMENT ON COLUMN fieldcrypt_internal.health_finding.detail IS 'what is so';
COMMENT ON COLUMN fieldcrypt_internal.health_finding.hint IS 'what to do';
COMMENT ON COLUMN fieldcrypt_internal.health_finding.identity IS 'what it is about';

CREATE FUNCTION fieldcrypt_internal.finding_of(status text, detail text, hint text DEFAULT NULL, identity text[] DEFAULT NULL)
    RETURNS fieldcrypt_internal.health_finding
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT $1, $2, $3, $4 $$;
COMMENT ON FUNCTION fieldcrypt_internal.finding_of(text, text, text, text[]) IS 'a finding of these parts';

CREATE FUNCTION fieldcrypt_internal.time_ago(moment timestamptz) RETURNS text
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN age.seconds >= 2 * 86400 THEN format('%s days ago', floor(age.seconds / 86400))
                WHEN age.seconds >= 2 * 3600 THEN format('%s hours ago', floor(age.seconds / 3600))
                WHEN age.seconds >= 120 THEN format('%s minutes ago', floor(age.seconds / 60))
                ELSE 'just now' END
      FROM (SELECT EXTRACT(epoch FROM clock_timestamp() - $1) AS seconds) AS age
$$;
COMMENT ON FUNCTION fieldcrypt_internal.time_ago(timestamptz) IS 'how long ago that was, for people';

-- A check that fails is a finding too, and keeps no other from being made.
CREATE FUNCTION fieldcrypt_internal.health_findings(
        thorough boolean, OUT "check" text, OUT status text, OUT detail text, OUT hint text, OUT identity text[])
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on SET row_security = off SET jit = off
AS $$
DECLARE
    accepted text[];
    used jsonb;
BEGIN
    -- Loads the library, which has the thresholds.
    PERFORM fieldcrypt_internal.health_hours();
    accepted := regexp_split_to_array(btrim(current_setting('fieldcrypt.health_accepted')), '\s*,\s*');
    IF thorough THEN
        used := fieldcrypt_internal.count_use(NULL);
    END IF;
    FOREACH "check" IN ARRAY '{key_age,master_key,master_key_age,master_key_rotation,master_key_source,server_file_roles,
            compromised_keys,suspended_keys,deactivated_keys,key_destruction,reencryption,enforced_contexts,stored_values,values_elsewhere,missing_keys,key_subscriptions,encrypted_indexes,restore_order,key_states,key_export,default_tenant,require_tenant,
            preload,statement_logging,statement_visibility,
            failed_decrypts,unusual_hours,unusual_addresses,unusual_volume,
            audit_key_age,audit_verification,audit_gaps,audit_sealing,audit_handover,audit_fork,audit_anchor,audited_tables}'::text[]
    LOOP
        BEGIN
            EXECUTE format('SELECT c.status, c.detail, c.hint, c.identity FROM fieldcrypt_internal.%I($1) AS c', 'check_' || "check")
               INTO status, detail, hint, identity USING used;
        EXCEPTION WHEN OTHERS THEN
            status := 'critical';
            detail := format('this check failed: %s (%s)', SQLERRM, SQLSTATE);
            hint := 'What it looks for is not known until that is mended.';
            identity := ARRAY[SQLSTATE];
        END;
        -- One line, whatever an error or a name brought along.
        detail := regexp_replace(detail, '[[:cntrl:]]+', ' ', 'g');
        identity := coalesce(identity, '{}');
        IF status = 'warning' AND "check" = ANY (accepted) THEN
            status := 'ok';
            detail := 'accepted by fieldcrypt.health_accepted: ' || detail;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.health_findings(boolean) IS 'all checks, with what their findings are about; granted to nobody';

CREATE FUNCTION fieldcrypt.health(thorough boolean DEFAULT false)
    RETURNS TABLE ("check" text, status text, detail text, hint text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    IF thorough IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'thorough must not be NULL';
    END IF;
    RETURN QUERY
        SELECT h."check", coalesce(h.status, 'ok'), h.detail, h.hint
          FROM fieldcrypt_internal.health_findings(thorough) AS h
         ORDER BY array_position('{critical,warning,ok}'::text[], coalesce(h.status, 'ok')), h."check" COLLATE "C";
END
$$;
COMMENT ON FUNCTION fieldcrypt.health(boolean) IS
    'every check, the worst first: status ok, warning or critical, what is wrong and what to do. thorough: counts all values and reads the whole audit log for what is otherwise known from bookkeeping. See docs/health.md';

-- sql/health_keys.sql
-- Health of the keys: ages, states, where the master key lies, re-encryption, backups.

CREATE FUNCTION fieldcrypt_internal.check_key_age(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    default_every interval := coalesce(
        (SELECT p.rotate_every FROM fieldcrypt.rotation_policies AS p WHERE p.tenant = ''), interval '90 days');
    shortest interval := least(default_every, (SELECT min(p.rotate_every) FROM fieldcrypt.rotation_policies AS p));
    latest timestamptz := clock_timestamp() - fieldcrypt_internal.health_threshold('due_grace');
    old record;
BEGIN
    SELECT count(*) AS total, array_agg(fieldcrypt_internal.quoted_name(k.tenant) ORDER BY k.created_at) AS names,
           array_agg(k.tenant ORDER BY k.created_at) AS tenants, min(k.created_at) AS oldest
      INTO old
      FROM (SELECT a.tenant, a.created_at
              FROM fieldcrypt.encryption_keys AS a
              LEFT JOIN fieldcrypt.rotation_policies AS p ON p.tenant = a.tenant
             WHERE a.purpose = 'field' AND a.state = 'active'
               AND a.created_at <= latest - shortest
               AND a.created_at <= latest - coalesce(p.rotate_every, default_every)
             ORDER BY a.created_at
             LIMIT 10001) AS k;
    IF old.total = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('no active key is older than its policy (%s where no other is set)', default_every));
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('the active key is older than its rotation policy for %s; the oldest was made %s',
            fieldcrypt_internal.counted_names(old.names, old.total, 'tenant'), fieldcrypt_internal.time_ago(old.oldest)),
        coalesce('On the node that makes the keys: CALL fieldcrypt.rotate_keys(). Here ' || fieldcrypt_internal.keys_from('field') || '.',
            'CALL fieldcrypt.rotate_keys(); SELECT fieldcrypt.schedule_rotation() lets pg_cron do it. What fails is in fieldcrypt.rotation_log.'),
        fieldcrypt_internal.finding_identity(old.tenants, old.total));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_key_age(jsonb) IS 'check: active keys older than their policy';

CREATE FUNCTION fieldcrypt_internal.check_master_key_age(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    current_key record;
    detail text;
BEGIN
    SELECT m.* INTO current_key FROM fieldcrypt.master_keys AS m WHERE m.is_current;
    IF NOT FOUND THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'no master key has been used in this database yet');
    END IF;
    detail := format('the current master key (%s) was first used %s, on %s', fieldcrypt_internal.short_fingerprint(current_key.fingerprint),
        fieldcrypt_internal.time_ago(current_key.first_used_at), current_key.first_used_at::date);
    IF current_key.first_used_at > clock_timestamp() - fieldcrypt_internal.health_threshold('master_key_age') THEN
        RETURN fieldcrypt_internal.finding_of('ok', detail);
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        detail,
        'Put a new key before the old one in the key file, reload, and CALL fieldcrypt.rotate_master_key(). Nothing stops for it. See docs/rotation.md.',
        ARRAY[encode(current_key.fingerprint, 'hex')]);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_master_key_age(jsonb) IS 'check: the age of the current master key';

CREATE FUNCTION fieldcrypt_internal.check_master_key(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    loaded jsonb := fieldcrypt_internal.loaded_master_keys()::jsonb;
    missing text[];
BEGIN
    IF loaded ->> 'source' IS NULL THEN
        RETURN fieldcrypt_internal.finding_of(CASE WHEN EXISTS (SELECT FROM fieldcrypt.master_keys) THEN 'critical' ELSE 'warning' END,
            format('the master key can''t be loaded: %s', loaded ->> 'problem'),
            'Set one of fieldcrypt.master_key_file and fieldcrypt.master_key_command, or mend what it names. See docs/operations.md.',
            ARRAY[loaded ->> 'problem']);
    END IF;
    missing := ARRAY(
        SELECT fieldcrypt_internal.short_fingerprint(m.fingerprint)
          FROM fieldcrypt.master_keys AS m
         WHERE m.retired_at IS NULL AND NOT loaded -> 'fingerprints' ? encode(m.fingerprint, 'hex')
         ORDER BY m.first_used_at);
    IF cardinality(missing) > 0 THEN
        RETURN fieldcrypt_internal.finding_of('critical',
            format('values can''t be read: keys are wrapped by %s, which %s does not give', fieldcrypt_internal.counted_names(missing, cardinality(missing), 'master key'), loaded ->> 'source'),
            'Add the line of that master key again. SELECT * FROM fieldcrypt.master_key_status() shows which are loaded and which are needed.',
            missing);
    ELSIF loaded ->> 'problem' IS NOT NULL THEN
        RETURN fieldcrypt_internal.finding_of('critical',
            format('the master key was not reloaded, and new sessions can''t load it: %s', loaded ->> 'problem'),
            'Put its source right, then SELECT pg_reload_conf().',
            ARRAY[loaded ->> 'problem']);
    ELSE
        RETURN fieldcrypt_internal.finding_of('ok', format('the master key loads from %s', loaded ->> 'source'));
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_master_key(jsonb) IS 'check: whether the master keys that this database needs load';

CREATE FUNCTION fieldcrypt_internal.check_master_key_rotation(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    old text[] := ARRAY(
        SELECT fieldcrypt_internal.short_fingerprint(m.fingerprint)
          FROM fieldcrypt.master_keys AS m
         WHERE NOT m.is_current AND m.retired_at IS NULL
         ORDER BY m.first_used_at);
BEGIN
    IF cardinality(old) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'one master key wraps all keys');
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('keys are still wrapped by %s besides the current one', fieldcrypt_internal.counted_names(old, cardinality(old), 'older master key')),
        'CALL fieldcrypt.rotate_master_key() ends it; an older one can''t be taken away before.',
        old);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_master_key_rotation(jsonb) IS 'check: a rotation of the master key that has not ended';

CREATE FUNCTION fieldcrypt_internal.check_master_key_source(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    source jsonb := fieldcrypt_internal.master_key_source()::jsonb;
    found record;
BEGIN
    SELECT bool_or((w.value ->> 'is_critical')::boolean) AS is_critical,
           string_agg(w.value ->> 'detail', '; ') AS detail,
           string_agg(DISTINCT w.value ->> 'hint', ' ') AS hint,
           array_agg(w.value ->> 'detail') AS items
      INTO found
      FROM jsonb_array_elements(source -> 'weaknesses') AS w;
    RETURN fieldcrypt_internal.finding_of(CASE WHEN found.is_critical THEN 'critical' WHEN found.detail IS NOT NULL THEN 'warning' ELSE 'ok' END,
        coalesce(found.detail, CASE WHEN source ->> 'source' = '' THEN 'no source of the master key is set'
            ELSE format('nobody but root and the server''s user can reach what %s names', source ->> 'source') END),
        found.hint,
        found.items);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_master_key_source(jsonb) IS 'check: who else could reach the master key where it lies';

CREATE FUNCTION fieldcrypt_internal.check_server_file_roles(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $$
DECLARE
    roles text[] := ARRAY(
        SELECT r.rolname::text
          FROM pg_roles AS r
         WHERE NOT r.rolsuper AND r.rolname NOT LIKE 'pg\_%'
           AND (pg_has_role(r.oid, 'pg_read_server_files', 'MEMBER') OR pg_has_role(r.oid, 'pg_write_server_files', 'MEMBER')
                OR pg_has_role(r.oid, 'pg_execute_server_program', 'MEMBER'))
         ORDER BY r.rolname);
BEGIN
    IF cardinality(roles) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'only superusers can read the server''s files');
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('the master key can be read, as all files of the server''s user, by %s',
            fieldcrypt_internal.counted_names(ARRAY(SELECT fieldcrypt_internal.quoted_name(r.name) FROM unnest(roles) AS r(name)), cardinality(roles), 'role')),
        'REVOKE pg_read_server_files, pg_write_server_files, pg_execute_server_program FROM them: these rights are as good as a superuser''s.',
        fieldcrypt_internal.finding_identity(roles, cardinality(roles)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_server_file_roles(jsonb) IS 'check: roles that can read the files of the server though they are not superusers';

-- Where values may be left on old keys, by the bookkeeping of re-encryption: a table is clear of every key
-- that had stopped encrypting when its last re-encryption began. A table without rows has no values.
CREATE FUNCTION fieldcrypt_internal.lagging_tables(since timestamptz, key_id bigint)
    RETURNS TABLE (table_name text, is_in_progress boolean)
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT DISTINCT c.table_name, coalesce(r.state = 'in_progress', false)
      FROM fieldcrypt_internal.encrypted_columns() AS c
      LEFT JOIN fieldcrypt_internal.reencryptions AS r ON r.relation = c.relation
     WHERE c.problem IS NULL
       AND (NOT coalesce(
                -- The values of compromised keys go first, and that pass is remembered longest.
                $2::text = ANY (string_to_array(r.compromised_done, ' '))
                OR r.state = 'done' AND r.started_at > $1, false)
            OR EXISTS (SELECT FROM fieldcrypt.reencryption_failures AS f WHERE f.relation = c.relation AND f.key_id = $2))
       -- Not waiting for who holds the table: one whose size can't be told may have rows.
       AND fieldcrypt_internal.table_blocks(c.relation) IS DISTINCT FROM 0
     ORDER BY 1
$$;
COMMENT ON FUNCTION fieldcrypt_internal.lagging_tables(timestamptz, bigint) IS
    'tables that may have values of a key that stopped encrypting then; granted to nobody';

-- Few keys are in such a state: at most a hundred are looked at one by one.
CREATE FUNCTION fieldcrypt_internal.keys_with_values(
        state text, used jsonb, OUT total bigint, OUT names text[], OUT ids text[], OUT clear bigint)
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    WITH keys AS MATERIALIZED (
        SELECT k.key_id, k.tenant, k.version,
               coalesce(k.deactivated_at, (
                   SELECT max(l.at) FROM fieldcrypt.audit_log AS l WHERE l.event = 'key_suspended' AND l.key_id = k.key_id),
                   'infinity') AS since
          FROM fieldcrypt.encryption_keys AS k
         WHERE k.state IN ('compromised', 'suspended') AND k.state = $1 AND k.purpose = 'field'
         ORDER BY k.tenant, k.version
         LIMIT 101
    ), judged AS (
        SELECT k.*, coalesce(fieldcrypt_internal.use_of_key($2, k.key_id), t.tables) AS place
          FROM keys AS k
          LEFT JOIN LATERAL (
            SELECT fieldcrypt_internal.counted_names(array_agg(l.table_name), count(*), 'table') AS tables
              FROM fieldcrypt_internal.lagging_tables(k.since, k.key_id) AS l) AS t ON $2 IS NULL
    )
    SELECT count(*) FILTER (WHERE j.place IS NOT NULL),
           array_agg(format('%s (tenant %s, version %s; %s)', j.key_id, fieldcrypt_internal.quoted_name(j.tenant), j.version, j.place)
               ORDER BY j.tenant, j.version) FILTER (WHERE j.place IS NOT NULL),
           array_agg(j.key_id::text) FILTER (WHERE j.place IS NOT NULL),
           count(*) FILTER (WHERE j.place IS NULL)
      FROM judged AS j
$$;
COMMENT ON FUNCTION fieldcrypt_internal.keys_with_values(text, jsonb) IS
    'the compromised or suspended keys that values are left on: counted, or by the bookkeeping of re-encryption; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.is_reencrypting() RETURNS boolean
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$ SELECT EXISTS (SELECT FROM fieldcrypt_internal.reencryptions AS r WHERE r.state = 'in_progress') $$;
COMMENT ON FUNCTION fieldcrypt_internal.is_reencrypting() IS 'whether a re-encryption has begun and not ended; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_compromised_keys(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found record;
BEGIN
    SELECT k.* INTO found FROM fieldcrypt_internal.keys_with_values('compromised', used) AS k;
    IF found.total > 0 THEN
        RETURN fieldcrypt_internal.finding_of('critical',
            format('values %s be read with %s', CASE WHEN used IS NULL THEN 'may' ELSE 'can' END,
                fieldcrypt_internal.counted_names(found.names, found.total, 'compromised key', 100)),
            'CALL fieldcrypt.reencrypt() moves them to the active keys, these first; fieldcrypt.reencryption_failures tells what could not be moved.',
            fieldcrypt_internal.finding_identity(found.ids, found.total));
    ELSIF found.clear > 0 THEN
        -- What the last re-encryption could not move is forgotten when the next one begins.
        RETURN fieldcrypt_internal.finding_of(CASE WHEN NOT fieldcrypt_internal.is_reencrypting() THEN 'ok' END,
            format('no values are left on %s compromised key(s)', found.clear),
            'CALL fieldcrypt.destroy_key(key_id, reason => ...) ends them.');
    END IF;
    RETURN fieldcrypt_internal.finding_of('ok', 'no key is compromised');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_compromised_keys(jsonb) IS 'check: values left on compromised keys';

CREATE FUNCTION fieldcrypt_internal.check_suspended_keys(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found record;
BEGIN
    SELECT k.* INTO found FROM fieldcrypt_internal.keys_with_values('suspended', used) AS k;
    IF found.total > 0 THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            format('values %s unreadable: %s', CASE WHEN used IS NULL THEN 'may be' ELSE 'are' END,
                fieldcrypt_internal.counted_names(found.names, found.total, 'suspended key', 100)),
            'SELECT fieldcrypt.resume_key(key_id, reason), or mark_compromised(key_id, reason) and CALL fieldcrypt.reencrypt().',
            fieldcrypt_internal.finding_identity(found.ids, found.total));
    ELSIF found.clear > 0 THEN
        -- What the last re-encryption could not move is forgotten when the next one begins.
        RETURN fieldcrypt_internal.finding_of(CASE WHEN NOT fieldcrypt_internal.is_reencrypting() THEN 'ok' END,
            format('no values are left on %s suspended key(s)', found.clear));
    END IF;
    RETURN fieldcrypt_internal.finding_of('ok', 'no key is suspended');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_suspended_keys(jsonb) IS 'check: values left on suspended keys';

CREATE FUNCTION fieldcrypt_internal.check_deactivated_keys(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    hint CONSTANT text := 'CALL fieldcrypt.reencrypt(); SELECT fieldcrypt.schedule_rotation() lets pg_cron do it.';
    latest timestamptz := clock_timestamp() - fieldcrypt_internal.health_threshold('reencryption_delay');
    counted record;
    oldest record;
    lagging record;
BEGIN
    IF used IS NOT NULL THEN
        SELECT count(*) AS total, count(*) FILTER (WHERE k.deactivated_at <= latest) AS overdue,
               array_agg(format('%s (tenant %s, version %s; %s)', k.key_id, fieldcrypt_internal.quoted_name(k.tenant), k.version, fieldcrypt_internal.use_of_key(used, k.key_id))
                   ORDER BY k.deactivated_at) AS names,
               array_agg(k.key_id::text) FILTER (WHERE k.deactivated_at <= latest) AS ids
          INTO counted
          FROM jsonb_object_keys(used) AS u(key_id)
          JOIN fieldcrypt.encryption_keys AS k ON k.key_id = u.key_id::bigint
         WHERE k.state = 'deactivated';
        IF counted.total = 0 THEN
            RETURN fieldcrypt_internal.finding_of('ok', 'no values are on deactivated keys');
        END IF;
        RETURN fieldcrypt_internal.finding_of(CASE WHEN counted.overdue > 0 THEN 'warning' ELSE 'ok' END,
            format('values are on %s', fieldcrypt_internal.counted_names(counted.names, counted.total, 'deactivated key')),
            hint,
            fieldcrypt_internal.finding_identity(counted.ids, counted.overdue));
    END IF;
    -- A table that is clear of the last one is clear of all before it; keys whose values could not be moved
    -- are known one by one.
    SELECT array_agg(DISTINCT t.table_name) FILTER (WHERE NOT t.is_in_progress) AS tables,
           count(DISTINCT t.table_name) FILTER (WHERE NOT t.is_in_progress) AS total, count(*) FILTER (WHERE t.is_in_progress) AS moving,
           max(t.since) AS since
      INTO lagging
      FROM (SELECT l.table_name, l.is_in_progress, k.deactivated_at AS since
              FROM (SELECT a.deactivated_at
                      FROM fieldcrypt.encryption_keys AS a
                     WHERE a.state = 'deactivated' AND a.purpose = 'field' AND a.deactivated_at <= latest
                     ORDER BY a.deactivated_at DESC LIMIT 1) AS k
             CROSS JOIN LATERAL fieldcrypt_internal.lagging_tables(k.deactivated_at, 0) AS l
             UNION ALL
            SELECT f.table_name, false, k.deactivated_at
              FROM fieldcrypt.reencryption_failures AS f
              JOIN fieldcrypt.encryption_keys AS k ON k.key_id = f.key_id AND k.state = 'deactivated' AND k.deactivated_at <= latest) AS t;
    IF lagging.total > 0 THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            format('not re-encrypted since keys were deactivated, the last of them %s: %s',
                fieldcrypt_internal.time_ago(lagging.since), fieldcrypt_internal.counted_names(lagging.tables, lagging.total, 'table')),
            hint,
            fieldcrypt_internal.finding_identity(lagging.tables, lagging.total));
    ELSIF lagging.moving > 0 THEN
        RETURN fieldcrypt_internal.finding_of(NULL, 'values are being moved to the active keys');
    END IF;
    SELECT count(*) AS total INTO oldest
      FROM (SELECT FROM fieldcrypt.encryption_keys AS k WHERE k.state = 'deactivated' AND k.purpose = 'field' AND k.deactivated_at > latest LIMIT 10001) AS recent;
    RETURN fieldcrypt_internal.finding_of('ok', CASE WHEN oldest.total = 0 THEN 'no values are left on deactivated keys: all tables were re-encrypted since'
        ELSE format('%s key(s) were deactivated in the last %s; until the next re-encryption values may be on them',
            least(oldest.total, 10000), fieldcrypt_internal.health_threshold('reencryption_delay')) END);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_deactivated_keys(jsonb) IS 'check: values left on deactivated keys';

CREATE FUNCTION fieldcrypt_internal.check_key_destruction(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    latest timestamptz := clock_timestamp() - fieldcrypt_internal.health_threshold('due_grace');
    due record;
BEGIN
    SELECT count(*) AS total, array_agg(format('%s (tenant %s, version %s)', k.key_id, fieldcrypt_internal.quoted_name(k.tenant), k.version) ORDER BY k.destroy_after) AS names,
           array_agg(k.key_id::text) AS ids, min(k.destroy_after) AS oldest
      INTO due
      FROM (SELECT a.*
              FROM fieldcrypt.encryption_keys AS a
             WHERE a.destroy_after IS NOT NULL AND a.state <> 'destroyed'
               AND a.destroy_after <= latest
             ORDER BY a.destroy_after LIMIT 10001) AS k;
    IF due.total = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'no destruction is due');
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('to be destroyed, the first since %s: %s', due.oldest::date, fieldcrypt_internal.counted_names(due.names, due.total, 'key')),
        'CALL fieldcrypt.destroy_due_keys(): its warnings say what keeps a key.',
        fieldcrypt_internal.finding_identity(due.ids, due.total));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_key_destruction(jsonb) IS 'check: keys whose destruction is due';

CREATE FUNCTION fieldcrypt_internal.check_reencryption(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    latest timestamptz := clock_timestamp() - fieldcrypt_internal.health_threshold('reencryption_stall');
    found record;
BEGIN
    SELECT count(*) AS total,
           array_agg(format('%s (%s)', p.table_name, p.problem) ORDER BY p.table_name) FILTER (WHERE p.problem IS NOT NULL) AS names,
           array_agg(format('%s %s', p.table_name, p.kind)) FILTER (WHERE p.problem IS NOT NULL) AS items,
           count(*) FILTER (WHERE p.problem IS NOT NULL) AS problems,
           count(*) FILTER (WHERE p.state = 'running') AS running
      INTO found
      FROM (SELECT r.table_name, r.state, d.kind, d.problem
              FROM fieldcrypt.reencryption_progress AS r
             CROSS JOIN LATERAL (
                -- A standby does not see who runs on the primary.
                SELECT CASE WHEN r.state = 'failed' OR r.state = 'interrupted' AND r.error_code IS NOT NULL THEN r.state
                            WHEN r.state = 'interrupted' AND r.updated_at <= latest AND NOT pg_is_in_recovery() THEN 'interrupted'
                            WHEN r.state = 'running' AND r.updated_at <= latest THEN 'stalled'
                            WHEN r.state = 'incomplete' THEN r.state END) AS k(kind)
             CROSS JOIN LATERAL (
                SELECT k.kind, CASE k.kind
                    WHEN 'failed' THEN format('failed: %s (%s)', fieldcrypt_internal.quoted_name(r.error), r.error_code)
                    WHEN 'interrupted' THEN format('interrupted %s', fieldcrypt_internal.time_ago(r.updated_at))
                        || CASE WHEN r.error_code IS NULL THEN '' ELSE format(': %s (%s)', fieldcrypt_internal.quoted_name(r.error), r.error_code) END
                    WHEN 'stalled' THEN format('running, but without progress: the last was %s', fieldcrypt_internal.time_ago(r.updated_at))
                    WHEN 'incomplete' THEN format('%s rows could not be re-encrypted', r.rows_failed) END) AS d(kind, problem)) AS p;
    IF found.problems = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok',
            CASE WHEN found.total = 0 THEN 'no table was re-encrypted yet'
                           WHEN found.running > 0 THEN format('re-encryption is running over %s table(s)', found.running)
                           ELSE 'no re-encryption is stalled' END);
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('re-encryption has not come to its end in %s', fieldcrypt_internal.counted_names(found.names, found.problems, 'table')),
        'See fieldcrypt.reencryption_progress and fieldcrypt.reencryption_failures, mend what they tell, and CALL fieldcrypt.reencrypt() again.',
        fieldcrypt_internal.finding_identity(found.items, found.problems));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_reencryption(jsonb) IS 'check: re-encryption that stalls or fails';

CREATE FUNCTION fieldcrypt_internal.check_key_states(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    origin record;
    looser record;
BEGIN
    SELECT array_agg(c.item) AS items, string_agg(c.detail, '; ') AS detail, min(c.hint) AS hint
      INTO origin FROM fieldcrypt_internal.origin_checks() AS c WHERE NOT c.ok;
    -- Only with a count, since it reads all that the log tells of keys.
    IF used IS NOT NULL THEN
        SELECT count(*) AS total, array_agg(format('%s (tenant %s, version %s: %s, was %s)', k.key_id, fieldcrypt_internal.quoted_name(k.tenant), k.version, k.state, l.state)) AS names,
               array_agg(k.key_id::text) AS ids
          INTO looser
          FROM fieldcrypt.encryption_keys AS k
          JOIN fieldcrypt_internal.logged_states() AS l ON l.key_id = k.key_id
         WHERE fieldcrypt_internal.state_rank(k.state) < fieldcrypt_internal.state_rank(l.state);
        IF looser.total > 0 THEN
            RETURN fieldcrypt_internal.finding_of('critical',
                format('by the audit log the state was more restrictive for %s', fieldcrypt_internal.counted_names(looser.names, looser.total, 'key')),
                'The key table is older than the log, or was changed: SELECT * FROM fieldcrypt.key_states_status(), and set the states again.',
                fieldcrypt_internal.finding_identity(looser.ids, looser.total));
        END IF;
    END IF;
    RETURN fieldcrypt_internal.finding_of(CASE WHEN origin.items IS NULL THEN 'ok' ELSE 'warning' END,
        CASE WHEN origin.items IS NULL THEN 'the key states are those of this database and timeline'
            ELSE 'key states may have gone back in time: ' || origin.detail END,
        origin.hint,
        coalesce(origin.items, '{}'));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_key_states(jsonb) IS 'check: key states that nobody has confirmed since a restore';

CREATE FUNCTION fieldcrypt_internal.check_key_export(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    exported_at timestamptz := (SELECT max(l.at) FROM fieldcrypt.audit_log AS l WHERE l.event = 'keys_exported');
BEGIN
    IF exported_at > clock_timestamp() - fieldcrypt_internal.health_threshold('key_export_age') THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('the keys were exported %s', fieldcrypt_internal.time_ago(exported_at)));
    ELSIF NOT EXISTS (SELECT FROM fieldcrypt.encryption_keys AS k WHERE k.purpose = 'field') THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'there are no keys to export yet');
    ELSE
        RETURN fieldcrypt_internal.finding_of('warning',
            CASE WHEN exported_at IS NULL THEN 'the keys were never exported'
                ELSE format('the last export of the keys was %s', fieldcrypt_internal.time_ago(exported_at)) END,
            'SELECT fieldcrypt.export_keys(), and keep what it gives apart from the database''s backups. See docs/disaster-recovery.md.');
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_key_export(jsonb) IS 'check: how long ago the keys were exported';

-- sql/health_values.sql
-- Health of stored values: whether enforced contexts are enforced, and whether values open.

CREATE FUNCTION fieldcrypt_internal.check_enforced_contexts(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    enforced bigint;
    open_columns text[];
BEGIN
    -- Where it was declared, and each table that has one of the triggers: a declaration names its table, and that
    -- may have another name now.
    WITH triggers AS MATERIALIZED (
        SELECT e.* FROM fieldcrypt_internal.enforcing_triggers() AS e
    ), declared (relation, column_name) AS (
        SELECT t.relation, x.column_name
          FROM fieldcrypt.column_contexts AS x
          JOIN pg_class AS c ON c.relowner::regrole::text = x.table_owner
          JOIN pg_namespace AS n ON n.oid = c.relnamespace AND format('%I.%I', n.nspname, c.relname) = x.table_name,
               fieldcrypt_internal.with_descendants(c.oid) AS t
         WHERE x.enforced
        UNION
        SELECT t.relation, e.column_name FROM triggers AS e, fieldcrypt_internal.with_descendants(e.relation) AS t
    ), standing AS (
        SELECT format('%s.%I', d.relation::regclass, d.column_name) AS place,
               (SELECT count(DISTINCT e.is_update) = 2 FROM triggers AS e
                 WHERE e.relation = d.relation AND e.column_name = d.column_name AND e.fires) AS is_enforced
          FROM declared AS d
          JOIN pg_class AS c ON c.oid = d.relation AND c.relkind IN ('r', 'p')
          JOIN pg_attribute AS a ON a.attrelid = d.relation AND a.attname = d.column_name AND NOT a.attisdropped
    )
    SELECT count(*) FILTER (WHERE s.is_enforced),
           coalesce(array_agg(s.place ORDER BY s.place COLLATE "C") FILTER (WHERE NOT s.is_enforced), '{}')
      INTO enforced, open_columns FROM standing AS s;
    IF cardinality(open_columns) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', CASE WHEN enforced = 0 THEN 'no context is enforced when values are written'
            ELSE format('what is written is checked against the context of %s columns', enforced) END);
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('a context is said to be enforced and is not: a trigger is disabled or missing for %s',
            fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(o)) FROM unnest(open_columns[1:3]) AS o),
                cardinality(open_columns), 'column')),
        'ALTER TABLE ... ENABLE TRIGGER ALL, or call set_column_context(..., enforce => true) again; tables that inherit from one need that, too. Then CALL fieldcrypt.verify_values(relation).',
        fieldcrypt_internal.finding_identity(open_columns, cardinality(open_columns)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_enforced_contexts(jsonb) IS 'check: enforced contexts whose triggers don''t fire';

CREATE FUNCTION fieldcrypt_internal.check_stored_values(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    bad text[];
    item record;
    result jsonb;
    blocks bigint;
    place bigint;
    seen bigint := 0;
    failed bigint := 0;
BEGIN
    bad := ARRAY(SELECT v.table_name FROM fieldcrypt.value_verifications AS v
                  WHERE v.values_failed > 0 AND EXISTS (SELECT FROM pg_class AS c WHERE c.oid = v.relation)
                  ORDER BY v.table_name);
    IF cardinality(bad) > 0 THEN
        RETURN fieldcrypt_internal.finding_of('critical',
            format('values do not open with the context of their row, of %s',
                fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(b)) FROM unnest(bad[1:3]) AS b), cardinality(bad), 'table')),
            'SELECT * FROM fieldcrypt.value_failures; restore these values or encrypt them anew, then CALL fieldcrypt.verify_values(relation).',
            fieldcrypt_internal.finding_identity(bad, cardinality(bad)));
    END IF;
    IF used IS NULL THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'verify_values has found no value that does not open; health(thorough => true) opens a sample');
    END IF;
    -- Some rows of each table with a context, from three places.
    FOR item IN
        SELECT c.relation, c.table_name, fieldcrypt_internal.contexts_of(c.relation) AS contexts
          FROM (SELECT DISTINCT e.relation, e.table_name FROM fieldcrypt_internal.encrypted_columns() AS e WHERE e.is_readable) AS c
         WHERE fieldcrypt_internal.contexts_of(c.relation) <> '{}'
         ORDER BY random() LIMIT 200
    LOOP
        blocks := fieldcrypt_internal.table_blocks(item.relation);
        CONTINUE WHEN coalesce(blocks, 0) = 0;
        FOR stretch IN 1 .. 3 LOOP
            place := floor(random() * blocks);
            BEGIN
                result := fieldcrypt_internal.verify_batch(item.relation, place, 1, blocks, 100, item.contexts)::jsonb;
                CONTINUE WHEN (result ->> 'is_gone')::boolean;
                seen := seen + (result ->> 'values')::bigint;
                failed := failed + (result ->> 'failed')::bigint;
                IF (result ->> 'failed')::bigint > 0 AND item.table_name <> ALL (bad) THEN
                    bad := bad || item.table_name;
                END IF;
            EXCEPTION WHEN lock_not_available THEN
                NULL;
            END;
        END LOOP;
    END LOOP;
    IF failed = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('a sample of %s values opens with the contexts of their rows', seen));
    END IF;
    RETURN fieldcrypt_internal.finding_of('critical',
        format('of a sample of %s values %s do not open with the context of their row, of %s', seen, failed,
            fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(b)) FROM unnest(bad[1:3]) AS b), cardinality(bad), 'table')),
        'CALL fieldcrypt.verify_values(relation) lists them all in fieldcrypt.value_failures.',
        fieldcrypt_internal.finding_identity(bad, cardinality(bad)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_stored_values(jsonb) IS 'check: values that do not open, by verify_values or in a sample';

CREATE FUNCTION fieldcrypt_internal.check_encrypted_indexes(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    found text[];
    failing text[];
BEGIN
    -- Most are refused when they are built. Not so with INCLUDE, behind a column of numeric or float, on a partitioned table
    -- that has no partition yet, by EXCLUDE with hash, with an array, a domain or a composite around the values; and CREATE
    -- INDEX CONCURRENTLY leaves what was refused. A hash index by itself finds ciphertexts, and is let alone.
    WITH RECURSIVE holding (type) AS (
        SELECT 'fieldcrypt.encrypted'::regtype::oid
        UNION
        SELECT t.oid
          FROM holding AS h, pg_type AS t
         WHERE t.typtype = 'd' AND t.typbasetype = h.type
            OR t.typcategory = 'A' AND t.typelem = h.type
            OR t.typtype = 'r' AND EXISTS (SELECT FROM pg_range AS r WHERE r.rngtypid = t.oid AND r.rngsubtype = h.type)
            OR t.typtype = 'c' AND EXISTS (
                SELECT FROM pg_attribute AS a
                 WHERE a.attrelid = t.typrelid AND a.atttypid = h.type AND a.attnum > 0 AND NOT a.attisdropped)
    )
    SELECT coalesce(array_agg(DISTINCT i.indexrelid::regclass::text ORDER BY i.indexrelid::regclass::text), '{}') INTO found
      FROM pg_index AS i
     CROSS JOIN generate_series(1, i.indnkeyatts) AS k(place)
      JOIN pg_class AS c ON c.oid = i.indexrelid
      JOIN pg_am AS m ON m.oid = c.relam
      JOIN pg_opclass AS o ON o.oid = i.indclass[k.place - 1]
      -- What the index holds need not be of the column's type: elements of an array, or numbers.
      JOIN pg_attribute AS a ON a.attrelid = i.indexrelid AND a.attnum = k.place
      LEFT JOIN pg_attribute AS b ON b.attrelid = i.indrelid AND b.attnum = i.indkey[k.place - 1] AND b.attnum > 0
     WHERE (m.amname <> 'hash' OR i.indisunique OR i.indisexclusion)
       AND EXISTS (SELECT FROM holding AS h WHERE h.type IN (o.opcintype, a.atttypid, b.atttypid));

    -- What compares values where no statement says so: a statement with the table fails, by whatever it is about.
    WITH refusing (class, object) AS (
        SELECT 'pg_proc'::regclass::oid, p.oid
          FROM pg_proc AS p
         WHERE p.pronamespace = 'fieldcrypt_internal'::regnamespace AND p.proname LIKE 'refuse\_%' AND p.prosupport <> 0
    ), operators (class, object) AS (
        SELECT 'pg_operator'::regclass::oid, o.oid
          FROM pg_operator AS o JOIN refusing AS r ON r.object = o.oprcode
        UNION ALL
        SELECT r.class, r.object FROM refusing AS r
    )
    SELECT coalesce(array_agg(DISTINCT concat_ws(' ', d.type, d.identity) ORDER BY concat_ws(' ', d.type, d.identity)), '{}') INTO failing
      FROM (SELECT DISTINCT e.classid, e.objid
              FROM operators AS u
              JOIN pg_depend AS e ON e.refclassid = u.class AND e.refobjid = u.object
             WHERE e.classid = ANY (ARRAY['pg_statistic_ext', 'pg_constraint', 'pg_class', 'pg_attrdef', 'pg_policy', 'pg_trigger', 'pg_rewrite']::regclass[])
               AND NOT EXISTS (SELECT FROM pg_depend AS m WHERE m.classid = e.classid AND m.objid = e.objid AND m.deptype = 'e')) AS x,
           pg_identify_object(x.classid, x.objid, 0) AS d
     WHERE d.identity IS NOT NULL;

    IF cardinality(found) + cardinality(failing) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'no index but one by hash, no UNIQUE and no expression of a table or view compares encrypted values');
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        concat_ws('; ',
            'on encrypted values an index finds nothing, and UNIQUE or EXCLUDE no duplicate: ' ||
                fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(f)) FROM unnest(found[1:3]) AS f), cardinality(found), 'relation'),
            'statements fail by an expression that compares encrypted values: ' ||
                fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(f)) FROM unnest(failing[1:3]) AS f), cardinality(failing), 'object')),
        'Drop it. Make an index on a keyed hash in a column beside the values, an expression of what is decrypted: see docs/querying.md.',
        fieldcrypt_internal.finding_identity(found || failing, cardinality(found) + cardinality(failing)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_encrypted_indexes(jsonb) IS 'check: indexes and UNIQUE on encrypted values, which do nothing, and expressions that compare them, which fail';

-- sql/health_nodes.sql
-- Health of more than one node: subscriptions that bring keys, nodes that lack keys, values that are elsewhere.

-- A subscription that fails starts anew every few seconds, and is seen between two failures as well as in one. So one
-- that is at work counts as failing while it began a moment ago and has failed before.
CREATE FUNCTION fieldcrypt_internal.check_key_subscriptions(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    item record;
    errors bigint;
    total bigint := 0;
    problem text;
    problems text[] := '{}';
    names text[] := '{}';
    is_critical boolean := false;
BEGIN
    PERFORM pg_stat_clear_snapshot();
    FOR item IN
        SELECT s.oid, s.subname, s.subenabled, bool_and(r.srsubstate IN ('r', 's')) AS is_copied,
               EXISTS (SELECT FROM pg_stat_subscription AS w WHERE w.subid = s.oid AND w.relid IS NULL AND w.pid IS NOT NULL) AS is_at_work,
               (SELECT min(a.backend_start) FROM pg_stat_subscription AS w JOIN pg_stat_activity AS a ON a.pid = w.pid
                 WHERE w.subid = s.oid AND w.relid IS NULL) AS began,
               (SELECT max(w.last_msg_receipt_time) FROM pg_stat_subscription AS w
                 WHERE w.subid = s.oid AND w.relid IS NULL) AS heard
          FROM pg_subscription AS s
          JOIN pg_subscription_rel AS r ON r.srsubid = s.oid
         -- A database that was copied tells of the other's, too.
         WHERE s.subdbid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
           AND r.srrelid IN ('fieldcrypt.encryption_keys'::regclass, 'fieldcrypt.master_keys'::regclass)
         GROUP BY s.oid, s.subname, s.subenabled
         ORDER BY s.subname
    LOOP
        total := total + 1;
        errors := 0;
        -- From PostgreSQL 15 on.
        IF to_regclass('pg_catalog.pg_stat_subscription_stats') IS NOT NULL THEN
            EXECUTE 'SELECT e.apply_error_count + e.sync_error_count FROM pg_catalog.pg_stat_subscription_stats AS e WHERE e.subid = $1'
               INTO errors USING item.oid;
        END IF;
        problem := CASE
            WHEN NOT item.subenabled THEN 'is disabled'
            WHEN pg_is_in_recovery() THEN NULL
            WHEN NOT item.is_at_work OR errors > 0 AND item.began > clock_timestamp() - interval '15 seconds'
            THEN format('is not at work: its publisher is away, no worker is free, or what it brings can''t be applied (%s errors so far)', errors)
            -- Without the timeout nobody asks a publisher that has nothing to say.
            WHEN item.heard < clock_timestamp() - greatest(current_setting('wal_receiver_timeout')::interval, interval '5 minutes')
                 AND current_setting('wal_receiver_timeout')::interval > '0'
            THEN format('has heard nothing from the publisher, the last time %s', fieldcrypt_internal.time_ago(item.heard))
            WHEN NOT item.is_copied THEN CASE WHEN errors > 0 THEN format('can''t copy the tables of keys (%s errors)', errors) ELSE 'is copying the tables of keys still' END
        END;
        CONTINUE WHEN problem IS NULL;
        is_critical := is_critical OR problem NOT LIKE 'is copying%';
        problems := problems || format('%s %s', fieldcrypt_internal.quoted_name(item.subname), problem);
        names := names || format('%s %s', item.subname, regexp_replace(problem, '[:,(].*', ''));
    END LOOP;
    IF total = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'no subscription brings keys from another database');
    ELSIF problems = '{}' THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('keys come from another database by %s subscription(s), which work', total));
    END IF;
    RETURN fieldcrypt_internal.finding_of(CASE WHEN is_critical THEN 'critical' ELSE 'warning' END,
        format('keys that are rotated, suspended or destroyed on the publisher do not get here: %s',
            fieldcrypt_internal.counted_names(problems, cardinality(problems), 'subscription')),
        'The server log says why: mostly a key that was made here, too, or a publisher that is away. Until it works suspend_key stops a key here. See docs/more-than-one-node.md.',
        fieldcrypt_internal.finding_identity(names, cardinality(names)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_key_subscriptions(jsonb) IS 'check: subscriptions that bring keys and are stuck';

CREATE FUNCTION fieldcrypt_internal.check_missing_keys(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    has_keys boolean := EXISTS (SELECT FROM fieldcrypt.encryption_keys AS k WHERE k.purpose = 'field');
    from_elsewhere text := fieldcrypt_internal.keys_from('field');
    missing record;
BEGIN
    IF used IS NOT NULL THEN
        SELECT count(*) AS total, array_agg(format('%s (%s)', u.key_id, fieldcrypt_internal.use_of_key(used, u.key_id::bigint)) ORDER BY u.key_id) AS names,
               array_agg(u.key_id) AS ids
          INTO missing
          FROM jsonb_object_keys(used) AS u(key_id)
         WHERE NOT EXISTS (SELECT FROM fieldcrypt.encryption_keys AS k WHERE k.key_id = u.key_id::bigint);
        IF missing.total > 0 AND (has_keys OR from_elsewhere IS NOT NULL) THEN
            RETURN fieldcrypt_internal.finding_of('critical',
                format('values can''t be read: this database has not %s', fieldcrypt_internal.counted_names(missing.names, missing.total, 'key')),
                'They were encrypted on another node, or before a restore: SELECT fieldcrypt.import_keys(document, apply_states => true) with what export_keys() gives there.',
                fieldcrypt_internal.finding_identity(missing.ids, missing.total));
        ELSIF missing.total > 0 THEN
            RETURN fieldcrypt_internal.finding_of('ok', 'there are values and no keys: values are encrypted and decrypted on another node');
        END IF;
        RETURN fieldcrypt_internal.finding_of('ok', 'every value''s key is here');
    ELSIF NOT has_keys AND from_elsewhere IS NOT NULL AND EXISTS (SELECT FROM fieldcrypt_internal.encrypted_columns()) THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            format('there are encrypted columns and no keys here: %s', from_elsewhere),
            'Until they are here, what is encrypted or decrypted on this node fails: SELECT fieldcrypt.import_keys(document, apply_states => true) with what export_keys() gives where they are made.',
            '{}');
    END IF;
    RETURN fieldcrypt_internal.finding_of('ok', CASE WHEN has_keys THEN 'whether every value''s key is here tells health(thorough => true)'
        ELSE 'there are no keys here' END);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_missing_keys(jsonb) IS 'check: values whose keys are not in this database';

CREATE FUNCTION fieldcrypt_internal.check_values_elsewhere(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text := fieldcrypt_internal.uncountable('-infinity');
    keys record;
BEGIN
    IF problem IS NULL THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'all that can hold values of this database''s keys is counted here, as far as is known');
    END IF;
    SELECT count(*) AS total, array_agg(format('%s (tenant %s, version %s, %s)', k.key_id, fieldcrypt_internal.quoted_name(k.tenant), k.version,
               CASE WHEN k.destroy_after IS NULL THEN k.state ELSE 'to be destroyed' END) ORDER BY k.tenant, k.version) AS names,
           array_agg(k.key_id::text) AS ids
      INTO keys
      FROM fieldcrypt.encryption_keys AS k
     WHERE k.purpose = 'field' AND k.state <> 'destroyed' AND (k.state = 'compromised' OR k.destroy_after IS NOT NULL);
    IF keys.total = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'what is said of values here speaks for this node only: ' || problem);
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('%s; so it is not known here whether values are left on %s', problem, fieldcrypt_internal.counted_names(keys.names, keys.total, 'key')),
        'On each node that has such values: CALL fieldcrypt.reencrypt(), then SELECT * FROM fieldcrypt.key_usage(exact => true). If none is left anywhere: CALL fieldcrypt.destroy_due_keys(ignore_uncountable => true).',
        fieldcrypt_internal.finding_identity(keys.ids, keys.total));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_values_elsewhere(jsonb) IS 'check: keys that are to end, of which values may be where nothing here counts them';

-- sql/health_tenants.sql
-- Health of the tenants: values that nobody named a tenant for.

CREATE FUNCTION fieldcrypt_internal.check_default_tenant(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keys bigint[] := ARRAY(
        SELECT k.key_id FROM fieldcrypt.encryption_keys AS k
         WHERE k.tenant = 'default' AND k.purpose = 'field' AND k.state <> 'destroyed');
    others bigint := (
        SELECT count(*) FROM (
            SELECT FROM fieldcrypt.encryption_keys AS k
             WHERE k.purpose = 'field' AND k.state = 'active' AND k.tenant <> 'default' LIMIT 10001) AS k);
    places text;
BEGIN
    IF cardinality(keys) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'the tenant "default" has no keys');
    ELSIF others = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'there is no tenant but "default"');
    END IF;
    IF used IS NOT NULL THEN
        places := (SELECT string_agg(fieldcrypt_internal.use_of_key(used, k.key_id), ', ') FROM unnest(keys) AS k(key_id));
        IF places IS NULL THEN
            RETURN fieldcrypt_internal.finding_of('ok', 'the tenant "default" has keys, and no values');
        END IF;
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('the tenant "default" has %s beside %s: it is whose values those are that were encrypted without the name of a tenant',
            coalesce(places, 'keys'),
            CASE WHEN others > 10000 THEN 'more than 10000 other tenants' WHEN others = 1 THEN 'one other tenant' ELSE format('%s other tenants', others) END),
        'If they should be other tenants'' values: turn fieldcrypt.require_tenant on, and encrypt them anew. See docs/poolers.md. If not: fieldcrypt.health_accepted = ''default_tenant''.',
        '{default}');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_default_tenant(jsonb) IS 'check: values of the tenant default beside other tenants';

-- Where tenants are required, two things let others in all the same: a role that comes in by SET ROLE, which brings no
-- settings along, and what a client leaves in the temporary schema of a connection that another gets next.
CREATE FUNCTION fieldcrypt_internal.check_require_tenant(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $$
DECLARE
    here CONSTANT oid := (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database());
    off CONSTANT text[] := '{off,of,false,fals,fal,fa,f,no,n,0}';
    -- Of the server, not of the session that asks, which may have another value by its role.
    for_server text := (SELECT s.setting FROM pg_settings AS s WHERE s.name = 'fieldcrypt.require_tenant' AND s.source IN ('default', 'command line', 'environment variable', 'configuration file'));
    bypassed text[];
    temporary text[];
    roles text[];
    problems text[];
BEGIN
    IF has_table_privilege('pg_file_settings', 'SELECT') THEN
        for_server := coalesce((SELECT f.setting FROM pg_file_settings AS f WHERE f.applied AND lower(f.name) = 'fieldcrypt.require_tenant'), for_server);
    END IF;
    WITH entries AS MATERIALIZED (
        SELECT s.setrole, s.setdatabase, lower(btrim(substr(c.entry, strpos(c.entry, '=') + 1))) <> ALL (off) AS is_required
          FROM pg_db_role_setting AS s CROSS JOIN LATERAL unnest(s.setconfig) AS c(entry)
         WHERE s.setdatabase IN (0, here) AND lower(split_part(c.entry, '=', 1)) = 'fieldcrypt.require_tenant'
    ), everybody AS MATERIALIZED (
        SELECT r.oid, r.rolname, r.rolcanlogin,
               EXISTS (SELECT FROM entries AS e WHERE e.setrole = r.oid AND e.is_required) AS is_named,
               -- As a session takes them: the role's in this database, the role's, the database's, everybody's.
               coalesce((SELECT e.is_required FROM entries AS e WHERE e.setrole IN (0, r.oid)
                          ORDER BY e.setrole = r.oid DESC, e.setdatabase = here DESC LIMIT 1),
                   lower(btrim(coalesce(for_server, 'off'))) <> ALL (off)) AS is_required
          FROM pg_roles AS r
         WHERE NOT r.rolsuper
    ), users AS MATERIALIZED (
        SELECT e.* FROM everybody AS e
         WHERE (e.is_named OR e.is_required)
           AND (has_function_privilege(e.oid, 'fieldcrypt.encrypt_field(text,text,text)', 'EXECUTE')
                OR has_function_privilege(e.oid, 'fieldcrypt.decrypt_field(fieldcrypt.encrypted,text)', 'EXECUTE'))
    )
    SELECT ARRAY(SELECT DISTINCT format('%s (who becomes %s)', fieldcrypt_internal.quoted_name(l.rolname), fieldcrypt_internal.quoted_name(u.rolname))
                   FROM users AS u JOIN everybody AS l ON l.rolcanlogin AND NOT l.is_required AND l.oid <> u.oid AND pg_has_role(l.oid, u.oid, 'MEMBER')
                  WHERE u.is_named ORDER BY 1),
           ARRAY(SELECT fieldcrypt_internal.quoted_name(u.rolname) FROM users AS u
                  WHERE u.is_required AND has_database_privilege(u.oid, here, 'TEMPORARY') ORDER BY u.rolname),
           ARRAY(SELECT u.rolname::text FROM users AS u WHERE u.is_required ORDER BY 1)
      INTO bypassed, temporary, roles;
    IF cardinality(bypassed) > 0 THEN
        problems := problems || format('fieldcrypt.require_tenant is set for a role, and has no effect for %s: settings of a role are for who logs in as that role',
            fieldcrypt_internal.counted_names(bypassed, cardinality(bypassed), 'role'));
    END IF;
    IF cardinality(temporary) > 0 THEN
        problems := problems || format('a tenant is required of %s, and a temporary table or view that it makes may get the plaintext of the next client of a shared connection',
            fieldcrypt_internal.counted_names(temporary, cardinality(temporary), 'role'));
    END IF;
    IF problems IS NOT NULL THEN
        RETURN fieldcrypt_internal.finding_of('warning', array_to_string(problems, '; '),
            concat_ws(' ',
                CASE WHEN cardinality(bypassed) > 0 THEN 'ALTER ROLE ... SET fieldcrypt.require_tenant for the roles that log in, or ALTER DATABASE.' END,
                CASE WHEN cardinality(temporary) > 0 THEN format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC, and from these roles; if no connection is shared, fieldcrypt.health_accepted = ''require_tenant''.', current_database()) END,
                'See docs/poolers.md.'),
            fieldcrypt_internal.finding_identity(bypassed || temporary, cardinality(bypassed || temporary)));
    END IF;
    RETURN fieldcrypt_internal.finding_of('ok', CASE WHEN cardinality(roles) = 0 THEN 'no role that encrypts or decrypts is required to name a tenant'
        ELSE 'roles that are required to name a tenant can neither come in without that nor leave temporary objects behind' END);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_require_tenant(jsonb) IS 'check: roles that come in without the setting that requires a tenant, or that leave temporary objects on shared connections';

-- sql/health_restore.sql
-- Health of restores: what a restore computes before the keys are there, or is refused whenever.

-- By the names in its source, which is what can be told cheaply: a name in a comment is found too, and one that is put
-- together at run time is not.
CREATE FUNCTION fieldcrypt_internal.functions_called_by(function oid) RETURNS SETOF oid
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
    SELECT d.refobjid FROM pg_depend AS d
     WHERE d.classid = 'pg_proc'::regclass AND d.objid = $1 AND d.refclassid = 'pg_proc'::regclass
    UNION
    SELECT named.oid
      FROM pg_proc AS p
     CROSS JOIN LATERAL (
           SELECT DISTINCT word.parts[1] AS name FROM regexp_matches(left(p.prosrc, 200000), '[[:alpha:]_][[:alnum:]_$]*', 'g') AS word(parts)) AS word
      JOIN pg_proc AS named ON named.proname = ANY (ARRAY[word.name, lower(word.name)]::name[])
     WHERE p.oid = $1 AND named.pronamespace <> 'pg_catalog'::regnamespace
       AND p.pronamespace <> ALL ('{fieldcrypt,fieldcrypt_internal,pg_catalog}'::regnamespace[])
$$;
COMMENT ON FUNCTION fieldcrypt_internal.functions_called_by(oid) IS 'what a function of users'' calls, as its source names it; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.functions_needing_keys(roots oid[]) RETURNS oid[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
    WITH RECURSIVE reached (function) AS (
        SELECT r FROM unnest($1) AS r
        UNION
        SELECT c FROM reached AS r, fieldcrypt_internal.functions_called_by(r.function) AS c
    ), edges AS MATERIALIZED (
        SELECT r.function AS caller, c AS called FROM reached AS r, fieldcrypt_internal.functions_called_by(r.function) AS c
    ), needing (function) AS (
        SELECT p.oid FROM reached AS r JOIN pg_proc AS p ON p.oid = r.function
         WHERE p.pronamespace = 'fieldcrypt'::regnamespace AND p.proname NOT IN ('context', 'key_id', 'ciphertext_info')
            OR p.pronamespace = 'fieldcrypt_internal'::regnamespace AND p.proname IN ('is_foreign', 'is_changed_to_foreign')
        UNION
        SELECT e.caller FROM needing AS n JOIN edges AS e ON e.called = n.function
    )
    SELECT coalesce(array_agg(n.function), '{}') FROM needing AS n
$$;
COMMENT ON FUNCTION fieldcrypt_internal.functions_needing_keys(oid[]) IS
    'of some functions and those that they call, however deep, the ones that need keys: of the extension, or calling such; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_restore_order(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    early text[];
    never text[];
    found text[];
BEGIN
    WITH calling (class, object, owner, is_early, kind) AS MATERIALIZED (
        -- What is NOT VALID is restored behind the data.
        SELECT 'pg_constraint'::regclass, c.oid, CASE WHEN c.contypid <> 0 THEN c.contypid ELSE c.conrelid END, true,
               CASE WHEN c.contypid <> 0 THEN 'domain' ELSE 'constraint' END
          FROM pg_constraint AS c WHERE c.contype = 'c' AND c.convalidated AND c.conislocal
        UNION ALL
        SELECT 'pg_attrdef'::regclass, d.oid, d.adrelid, true, 'generated'
          FROM pg_attribute AS a JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attgenerated <> ''
        UNION ALL
        SELECT 'pg_class'::regclass, p.partrelid, p.partrelid, true, 'partition key'
          FROM pg_partitioned_table AS p WHERE p.partexprs IS NOT NULL
        UNION ALL
        SELECT 'pg_class'::regclass, i.indexrelid, i.indexrelid, false, 'index'
          FROM pg_index AS i WHERE i.indexprs IS NOT NULL OR i.indpred IS NOT NULL
        UNION ALL
        SELECT 'pg_rewrite'::regclass, r.oid, r.ev_class, false, 'materialized view'
          FROM pg_class AS c JOIN pg_rewrite AS r ON r.ev_class = c.oid WHERE c.relkind = 'm'
    ), calls AS MATERIALIZED (
        SELECT c.*, coalesce(o.oprcode::oid, d.refobjid) AS function
          FROM calling AS c
          JOIN pg_depend AS d ON d.classid = c.class AND d.objid = c.object
           AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
          LEFT JOIN pg_operator AS o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
    ), needing (functions) AS MATERIALIZED (
        SELECT fieldcrypt_internal.functions_needing_keys(ARRAY(SELECT DISTINCT c.function FROM calls AS c))
    ), places AS MATERIALIZED (
        SELECT DISTINCT c.is_early,
               CASE c.kind
                   WHEN 'domain' THEN format('constraint %I of domain %s', k.conname, c.owner::regtype)
                   WHEN 'constraint' THEN format('constraint %I of %s', k.conname, c.owner::regclass)
                   WHEN 'generated' THEN format('generated column %s.%I', c.owner::regclass, a.attname)
                   WHEN 'partition key' THEN format('partition key of %s', c.owner::regclass)
                   ELSE format('%s %s', c.kind, c.owner::regclass) END AS place
          FROM calls AS c
          JOIN needing AS n ON c.function = ANY (n.functions)
          LEFT JOIN pg_constraint AS k ON c.class = 'pg_constraint'::regclass AND k.oid = c.object
          LEFT JOIN pg_attrdef AS d ON c.class = 'pg_attrdef'::regclass AND d.oid = c.object
          LEFT JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
          LEFT JOIN pg_class AS t ON c.kind <> 'domain' AND t.oid = c.owner
         WHERE t.relpersistence IS DISTINCT FROM 't'
    )
    SELECT coalesce(array_agg(p.place ORDER BY p.place COLLATE "C") FILTER (WHERE p.is_early), '{}'),
           coalesce(array_agg(p.place ORDER BY p.place COLLATE "C") FILTER (WHERE NOT p.is_early), '{}')
      INTO early, never FROM places AS p;
    found := early || never;
    IF cardinality(found) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'no constraint, generated column, index or materialized view needs keys while it is restored');
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        concat_ws('; ',
            'a restore computes before the keys are there, and may fail by that: ' || fieldcrypt_internal.counted_names(
                (SELECT array_agg(fieldcrypt_internal.quoted_name(e)) FROM unnest(early[1:3]) AS e), cardinality(early), 'object'),
            'a restore is refused to compute, since it would store plaintext: ' || fieldcrypt_internal.counted_names(
                (SELECT array_agg(fieldcrypt_internal.quoted_name(n)) FROM unnest(never[1:3]) AS n), cardinality(never), 'object')),
        'Make constraints NOT VALID, which restores them behind the data and checks new rows as before; or restore the keys first, as '
            'docs/operations.md shows. Take what decrypts out of indexes and materialized views.',
        fieldcrypt_internal.finding_identity(found, cardinality(found)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_restore_order(jsonb) IS
    'check: constraints, generated columns, indexes and materialized views that need keys while they are restored';

-- sql/health_server.sql
-- Health of the server: its settings, who sees what they let out, and how values are used.

CREATE FUNCTION fieldcrypt_internal.is_preloaded() RETURNS boolean
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$ SELECT (fieldcrypt_internal.audit_queue_status()::jsonb ->> 'is_preloaded')::boolean $$;
COMMENT ON FUNCTION fieldcrypt_internal.is_preloaded() IS 'whether the server was started with the library; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_preload(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF fieldcrypt_internal.is_preloaded() THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'the server was started with pg_fieldcrypt');
    ELSE
        RETURN fieldcrypt_internal.finding_of('warning',
            'pg_fieldcrypt is not in shared_preload_libraries: failed decryptions are only in the server log, the audit log is not sealed, and statements are not redacted',
            'Add pg_fieldcrypt to shared_preload_libraries, and restart the server.');
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_preload(jsonb) IS 'check: whether the library is preloaded';

-- A setting is looked for where it holds for the server, in the files too: the session that asks may have
-- another value by its role. And where it holds for single roles and databases.
CREATE FUNCTION fieldcrypt_internal.settings_that_hold(names text[]) RETURNS TABLE (name text, value text, holder text)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT n.name, coalesce(s.reset_val, current_setting(n.name, true)), ''
          FROM unnest(names) AS n(name)
          LEFT JOIN pg_settings AS s ON s.name = n.name
         WHERE s.name IS NOT NULL OR n.name LIKE '%.%';
    IF has_table_privilege('pg_file_settings', 'SELECT') THEN
        RETURN QUERY SELECT f.name, f.setting, '' FROM pg_file_settings AS f WHERE f.applied AND lower(f.name) = ANY (names);
    END IF;
    RETURN QUERY
        SELECT lower(split_part(c.entry, '=', 1)), substr(c.entry, strpos(c.entry, '=') + 1),
               concat(' for role ' || fieldcrypt_internal.quoted_name(r.rolname), CASE WHEN d.setdatabase <> 0 THEN ' in this database' END)
          FROM pg_db_role_setting AS d
          LEFT JOIN pg_roles AS r ON r.oid = d.setrole
         CROSS JOIN LATERAL unnest(d.setconfig) AS c(entry)
         WHERE d.setdatabase IN (0, (SELECT b.oid FROM pg_database AS b WHERE b.datname = current_database()))
           AND lower(split_part(c.entry, '=', 1)) = ANY (names);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.settings_that_hold(text[]) IS 'values of settings for the server, and for roles and this database; granted to nobody';

-- Whether a value of a setting lets values into the server log. Times and sizes are as somebody wrote them.
CREATE FUNCTION fieldcrypt_internal.lets_values_out(name text, value text) RETURNS boolean
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $$
    SELECT CASE
        WHEN $1 = 'log_statement' THEN lower($2) IN ('mod', 'all')
        WHEN $1 IN ('log_min_duration_statement', 'log_min_duration_sample', 'auto_explain.log_min_duration') THEN btrim($2) NOT LIKE '-1%' AND btrim($2) <> ''
        WHEN $1 IN ('log_transaction_sample_rate', 'log_parameter_max_length_on_error') THEN $2 !~ '^\s*\+?0*\.?0*(\s|[a-z]|$)'
        WHEN $1 IN ('debug_print_parse', 'debug_print_rewritten', 'debug_print_plan') THEN lower(btrim($2)) IN ('on', 'true', 't', 'tr', 'tru', 'yes', 'y', 'ye', '1')
        WHEN $1 = 'pgaudit.log' THEN lower(btrim($2)) NOT IN ('', 'none')
        ELSE false END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.lets_values_out(text, text) IS 'whether a setting with this value writes literals or parameters to the server log';

CREATE FUNCTION fieldcrypt_internal.check_statement_logging(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $$
DECLARE
    leaks text[];
    parameters boolean;
BEGIN
    leaks := ARRAY(
        SELECT DISTINCT format('%s = %s%s', s.name, left(regexp_replace(s.value, '\s+', ' ', 'g'), 40), s.holder)
          FROM fieldcrypt_internal.settings_that_hold('{log_statement,log_min_duration_statement,log_min_duration_sample,log_transaction_sample_rate,log_parameter_max_length_on_error,debug_print_parse,debug_print_rewritten,debug_print_plan,auto_explain.log_min_duration,pgaudit.log}') AS s
         WHERE fieldcrypt_internal.lets_values_out(s.name, s.value)
         ORDER BY 1);
    IF fieldcrypt_internal.redaction_is_active() THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'statements that call the extension or touch encrypted columns are redacted in the server log');
    END IF;
    IF cardinality(leaks) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok',
            'statements that succeed are not logged; those that fail are, with their text, unless log_min_error_statement forbids it',
            'With preload, fieldcrypt.redact_logs takes the values out of those too.');
    END IF;
    parameters := EXISTS (SELECT FROM pg_settings AS s WHERE s.name = 'log_parameter_max_length' AND s.reset_val <> '0');
    RETURN fieldcrypt_internal.finding_of('warning',
        format('plaintext values get into the server log as literals%s: %s', CASE WHEN parameters THEN ' and parameters' END, array_to_string(leaks[1:6], ', ')),
        'Put pg_fieldcrypt into shared_preload_libraries and leave fieldcrypt.redact_logs on, or take these settings back, also with log_parameter_max_length = 0.',
        leaks);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_statement_logging(jsonb) IS 'check: settings that write the literals of statements to the server log';

CREATE FUNCTION fieldcrypt_internal.check_statement_visibility(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $$
DECLARE
    roles text[];
BEGIN
    IF NOT EXISTS (SELECT FROM fieldcrypt_internal.settings_that_hold('{track_activities}') AS s WHERE lower(btrim(s.value)) NOT IN ('off', 'false', 'no', '0')) THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'track_activities is off: running statements are not shown to others');
    END IF;
    roles := ARRAY(
        SELECT r.rolname::text
          FROM pg_roles AS r
         WHERE NOT r.rolsuper AND r.rolname NOT LIKE 'pg\_%' AND pg_has_role(r.oid, 'pg_read_all_stats', 'MEMBER')
         ORDER BY r.rolname);
    IF cardinality(roles) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'the text of running statements, with its literals, is shown in pg_stat_activity to its role and to superusers only');
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('the text of all running statements, with its literals, is shown in pg_stat_activity to %s',
            fieldcrypt_internal.counted_names(ARRAY(SELECT fieldcrypt_internal.quoted_name(r.name) FROM unnest(roles) AS r(name)), cardinality(roles), 'role')),
        'Pass values as parameters, which are not shown; REVOKE pg_read_all_stats or pg_monitor from who does not need it; or ALTER ROLE ... SET track_activities = off for the application''s roles.',
        fieldcrypt_internal.finding_identity(roles, cardinality(roles)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_statement_visibility(jsonb) IS 'check: roles that see the statements of others in pg_stat_activity';

-- The newest rows are enough to judge: an attack that fails a million times is not counted to its end.
CREATE FUNCTION fieldcrypt_internal.check_failed_decrypts(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    span interval := fieldcrypt_internal.health_threshold('failed_decrypts_window');
    since timestamptz := clock_timestamp() - span;
    status text;
    detail text;
    found record;
BEGIN
    IF current_setting('fieldcrypt.audit_decrypt', true) = 'off' THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            'not recorded: fieldcrypt.audit_decrypt is off',
            'Set fieldcrypt.audit_decrypt to failures or more: values that do not decrypt are how an attack and damage show.');
    END IF;
    WITH recent AS MATERIALIZED (
        SELECT l.actor, coalesce(l.value_count, 1) AS failed
          FROM fieldcrypt.audit_log AS l
         WHERE l.event = 'decrypt_failed' AND l.at > since
         ORDER BY l.at DESC LIMIT 10000
    ), of_actor AS (
        SELECT r.actor, sum(r.failed) AS failed FROM recent AS r GROUP BY r.actor
    )
    SELECT coalesce(sum(a.failed), 0) AS total, count(*) AS actors,
           array_agg(format('%s (%s)', fieldcrypt_internal.quoted_name(a.actor), a.failed) ORDER BY a.failed DESC, a.actor) AS names,
           array_agg(a.actor ORDER BY a.actor) AS items,
           (SELECT count(*) = 10000 FROM recent) AS is_more
      INTO found
      FROM of_actor AS a;
    status := CASE WHEN found.total >= current_setting('fieldcrypt.health_failed_decrypts_critical')::integer THEN 'critical'
                   WHEN found.total >= current_setting('fieldcrypt.health_failed_decrypts')::integer THEN 'warning'
                   ELSE 'ok' END;
    detail := format('%s%s values did not decrypt in the last %s', CASE WHEN found.is_more THEN 'more than ' END, found.total, span);
    IF found.actors > 0 THEN
        detail := format('%s: %s', detail, fieldcrypt_internal.counted_names(found.names, found.actors, 'login role'));
    ELSIF NOT fieldcrypt_internal.is_preloaded() THEN
        detail := detail || '; without preload they are only in the server log';
    END IF;
    IF status = 'ok' THEN
        RETURN fieldcrypt_internal.finding_of('ok', detail);
    END IF;
    RETURN fieldcrypt_internal.finding_of(status,
        detail,
        'SELECT * FROM fieldcrypt.audit_log WHERE event = ''decrypt_failed'' ORDER BY id DESC LIMIT 20 tells who, from where and why. Wrong contexts after a change of the application look like this, and so do damage and attacks.',
        fieldcrypt_internal.finding_identity(found.items, found.actors));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_failed_decrypts(jsonb) IS 'check: values that did not decrypt lately';

CREATE FUNCTION fieldcrypt_internal.is_use_recorded() RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT coalesce(current_setting('fieldcrypt.audit_decrypt', true), 'off') IN ('statements', 'all') $$;
COMMENT ON FUNCTION fieldcrypt_internal.is_use_recorded() IS 'whether decryptions that succeed are recorded';

-- By the index, one step for each address, however many rows there are. Years are partitions: a time within
-- one would have the rows of an address before it read.
CREATE FUNCTION fieldcrypt_internal.decrypting_addresses(since timestamptz) RETURNS TABLE (address inet)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
DECLARE
    year_start timestamptz := date_trunc('year', since AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
BEGIN
    SELECT min(l.client_address) INTO address
      FROM fieldcrypt.audit_log AS l WHERE l.event = 'values_decrypted' AND l.at >= year_start;
    FOR place IN 1 .. 10000 LOOP
        EXIT WHEN address IS NULL;
        RETURN NEXT;
        SELECT min(l.client_address) INTO address
          FROM fieldcrypt.audit_log AS l WHERE l.event = 'values_decrypted' AND l.at >= year_start AND l.client_address > address;
    END LOOP;
    address := NULL;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.decrypting_addresses(timestamptz) IS
    'the addresses that values were decrypted from, and NULL for local sockets; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.decrypted_from(address inet, since timestamptz, upto timestamptz, most integer)
    RETURNS TABLE (actor text, total bigint, at timestamptz)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
BEGIN
    IF address IS NULL THEN
        RETURN QUERY SELECT l.actor, coalesce(l.value_count, 1), l.at FROM fieldcrypt.audit_log AS l
                      WHERE l.event = 'values_decrypted' AND l.client_address IS NULL AND l.at >= since AND l.at < upto LIMIT most;
    ELSE
        RETURN QUERY SELECT l.actor, coalesce(l.value_count, 1), l.at FROM fieldcrypt.audit_log AS l
                      WHERE l.event = 'values_decrypted' AND l.client_address = address AND l.at >= since AND l.at < upto LIMIT most;
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.decrypted_from(inet, timestamptz, timestamptz, integer) IS
    'who decrypted how many values from an address in some time: at most so many rows of the log; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_unusual_hours(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    hours jsonb := fieldcrypt_internal.health_hours()::jsonb;
    zone text := coalesce(hours ->> 'zone', current_setting('log_timezone'));
    span interval := fieldcrypt_internal.health_threshold('use_window');
    upto timestamptz := clock_timestamp();
    detail text;
    found record;
BEGIN
    IF hours IS NULL THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'not judged: fieldcrypt.health_hours is empty');
    ELSIF NOT fieldcrypt_internal.is_use_recorded() THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'not recorded: fieldcrypt.audit_decrypt is neither statements nor all');
    END IF;
    SELECT count(*) AS rows, coalesce(sum(d.total), 0) AS total, count(DISTINCT d.actor) AS actors,
           array_agg(DISTINCT fieldcrypt_internal.quoted_name(d.actor)) AS names, array_agg(DISTINCT d.actor) AS items, max(d.at) AS latest
      INTO found
      FROM unnest(
            tstzmultirange(tstzrange(upto - span, upto)) - coalesce((
                SELECT range_agg(tstzrange((day + make_interval(mins => (hours ->> 'start')::integer)) AT TIME ZONE zone,
                           (day + make_interval(mins => (hours ->> 'end')::integer
                               + CASE WHEN (hours ->> 'end')::integer <= (hours ->> 'start')::integer THEN 1440 ELSE 0 END)) AT TIME ZONE zone))
                  FROM generate_series(date_trunc('day', (upto - span) AT TIME ZONE zone) - interval '1 day',
                           date_trunc('day', upto AT TIME ZONE zone), interval '1 day') AS day
                 WHERE hours -> 'days' @> to_jsonb(EXTRACT(isodow FROM day)::integer)), '{}'::tstzmultirange)) AS outside(part),
           fieldcrypt_internal.decrypting_addresses(upto - span) AS a,
           LATERAL fieldcrypt_internal.decrypted_from(a.address, lower(outside.part), upper(outside.part), 1000) AS d;
    detail := format('%s values were decrypted outside of %s in the last %s', found.total, current_setting('fieldcrypt.health_hours'), span);
    IF found.rows = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', detail);
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('%s: %s, last at %s', detail, fieldcrypt_internal.counted_names(found.names, found.actors, 'login role'), date_trunc('second', found.latest)),
        'SELECT * FROM fieldcrypt.audit_log WHERE event = ''values_decrypted'' tells who, from where and which keys.',
        fieldcrypt_internal.finding_identity(found.items, found.actors));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_unusual_hours(jsonb) IS 'check: values decrypted outside of the usual hours';

CREATE FUNCTION fieldcrypt_internal.check_unusual_addresses(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    span interval := fieldcrypt_internal.health_threshold('use_window');
    memory interval := fieldcrypt_internal.health_threshold('address_memory');
    upto timestamptz := clock_timestamp();
    found record;
BEGIN
    IF NOT fieldcrypt_internal.is_use_recorded() THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'not recorded: fieldcrypt.audit_decrypt is neither statements nor all');
    END IF;
    SELECT count(*) FILTER (WHERE a.is_recent AND NOT a.is_known) AS total,
           array_agg(a.name ORDER BY a.address) FILTER (WHERE a.is_recent AND NOT a.is_known) AS names,
           coalesce(bool_or(a.is_known), false) AS has_history
      INTO found
      FROM (SELECT d.address, coalesce(host(d.address), 'the local socket') AS name,
                   EXISTS (SELECT FROM fieldcrypt_internal.decrypted_from(d.address, upto - span, upto, 1)) AS is_recent,
                   EXISTS (SELECT FROM fieldcrypt_internal.decrypted_from(d.address, upto - memory, upto - span, 1)) AS is_known
              FROM fieldcrypt_internal.decrypting_addresses(upto - memory) AS d) AS a;
    IF NOT found.has_history THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('no address is unusual yet: nothing was recorded before the last %s', span));
    ELSIF found.total = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('values were decrypted only from addresses that did so before, in the last %s', memory));
    ELSE
        RETURN fieldcrypt_internal.finding_of('warning',
            format('values were decrypted in the last %s from %s that never did so in the %s before', span,
                fieldcrypt_internal.counted_names(found.names, found.total, 'host'), memory),
            'SELECT * FROM fieldcrypt.audit_log WHERE event = ''values_decrypted'' tells who and which keys. An address that is all right becomes known by itself.',
            fieldcrypt_internal.finding_identity(found.names, found.total));
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_unusual_addresses(jsonb) IS 'check: values decrypted from addresses that never did so before';

-- sql/health_volume.sql
-- Health of use: who decrypts many times as much as he does otherwise.

-- By role, by subject, and by record: what an auditor asks of years of rows, and the check below every minute.
CREATE INDEX audit_log_volume ON fieldcrypt.audit_log (actor, at)
    WHERE event OPERATOR(pg_catalog.=) 'values_decrypted';
CREATE INDEX audit_log_subject ON fieldcrypt.audit_log (subject, at)
    WHERE subject IS NOT NULL;
CREATE INDEX audit_log_contexts ON fieldcrypt.audit_log USING gin (contexts)
    WHERE contexts IS NOT NULL;

-- By the index, one step for each role, as decrypting_addresses.
CREATE FUNCTION fieldcrypt_internal.decrypting_roles(since timestamptz) RETURNS TABLE (actor text)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
DECLARE
    year_start timestamptz := date_trunc('year', since AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
BEGIN
    SELECT min(l.actor) INTO actor
      FROM fieldcrypt.audit_log AS l WHERE l.event = 'values_decrypted' AND l.at >= year_start;
    FOR place IN 1 .. 10000 LOOP
        EXIT WHEN actor IS NULL;
        RETURN NEXT;
        SELECT min(l.actor) INTO actor
          FROM fieldcrypt.audit_log AS l WHERE l.event = 'values_decrypted' AND l.at >= year_start AND l.actor > decrypting_roles.actor;
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.decrypting_roles(timestamptz) IS 'the login roles that decrypted values; granted to nobody';

-- Of the newest rows, so that it takes no longer with more of them: what they leave out makes a volume smaller than it
-- was in the last window, and is made up for by the time that they cover before it.
CREATE FUNCTION fieldcrypt_internal.decrypted_by(actor text, subject text, since timestamptz, upto timestamptz, span interval, most integer)
    RETURNS TABLE (total numeric, usual numeric)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
#variable_conflict use_variable
DECLARE
    seconds numeric := greatest(EXTRACT(epoch FROM span), 1);
BEGIN
    -- Dynamic: the plan must know whether there is a subject.
    RETURN QUERY EXECUTE
        'SELECT coalesce(sum(d.value_count), 0),
                greatest(coalesce(sum(d.value_count), 0) / greatest(count(DISTINCT floor(EXTRACT(epoch FROM $4 - d.at) / $5)), 1),
                    CASE WHEN count(*) = $6 THEN sum(d.value_count) * $5 / greatest(EXTRACT(epoch FROM $4 - min(d.at)), 1) END)
           FROM (SELECT coalesce(l.value_count, 1) AS value_count, l.at
                   FROM fieldcrypt.audit_log AS l
                  WHERE l.event = ''values_decrypted'' AND l.actor = $1 AND l.at >= $3 AND l.at < $4'
                || CASE WHEN subject IS NULL THEN '' ELSE ' AND l.subject = $2' END
                || ' ORDER BY l.at DESC LIMIT $6) AS d'
        USING actor, subject, since, upto, seconds, most;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.decrypted_by(text, text, timestamptz, timestamptz, interval, integer) IS
    'how many values a login role, or it for a subject, decrypted in some time, and how many in each span of it in which it decrypted at all: of at most so many rows of the log; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_unusual_volume(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
DECLARE
    most CONSTANT integer := 100000;
    span interval := fieldcrypt_internal.health_threshold('use_window');
    memory interval := fieldcrypt_internal.health_threshold('address_memory');
    factor integer := current_setting('fieldcrypt.health_volume_factor')::integer;
    least integer := current_setting('fieldcrypt.health_volume_least')::integer;
    upto timestamptz := clock_timestamp();
    found record;
BEGIN
    IF NOT fieldcrypt_internal.is_use_recorded() THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'not recorded: fieldcrypt.audit_decrypt is neither statements nor all');
    ELSIF NOT EXISTS (SELECT FROM fieldcrypt_internal.decrypting_roles(upto - memory) AS r
                       CROSS JOIN LATERAL fieldcrypt_internal.decrypted_by(r.actor, NULL, upto - memory, upto - span, span, 1) AS b WHERE b.total > 0) THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('no volume is unusual yet: nothing was recorded before the last %s', span));
    END IF;
    WITH large AS MATERIALIZED (
        SELECT r.actor, n.total
          FROM fieldcrypt_internal.decrypting_roles(upto - span) AS r,
               LATERAL fieldcrypt_internal.decrypted_by(r.actor, NULL, upto - span, upto, span, most) AS n
         WHERE n.total >= least
    ), volumes AS (
        SELECT g.actor, NULL::text AS subject, g.total FROM large AS g
        UNION ALL
        SELECT g.actor, s.subject, s.total
          FROM large AS g,
               LATERAL (SELECT d.subject, sum(d.value_count) AS total
                          FROM (SELECT l.subject, coalesce(l.value_count, 1) AS value_count FROM fieldcrypt.audit_log AS l
                                 WHERE l.event = 'values_decrypted' AND l.actor = g.actor AND l.at >= upto - span AND l.at < upto
                                 ORDER BY l.at DESC LIMIT most) AS d
                         WHERE d.subject IS NOT NULL GROUP BY d.subject HAVING sum(d.value_count) >= least
                         ORDER BY 2 DESC LIMIT 100) AS s
    ), judged AS (
        SELECT v.actor, v.subject, v.total, b.usual,
               format('%s (%s values, usually %s)',
                   CASE WHEN v.subject IS NULL THEN 'login role ' || fieldcrypt_internal.quoted_name(v.actor)
                        ELSE format('%s as claimed by login role %s', fieldcrypt_internal.quoted_name(v.subject), fieldcrypt_internal.quoted_name(v.actor)) END,
                   v.total, ceil(b.usual)) AS name
          FROM volumes AS v,
               LATERAL fieldcrypt_internal.decrypted_by(v.actor, v.subject, upto - memory, upto - span, span, most / 5) AS b
         WHERE v.total > b.usual * factor
    )
    SELECT count(*) AS total, array_agg(j.name ORDER BY j.total DESC, j.actor, j.subject) AS names,
           array_agg(concat_ws(' for ', to_json(j.actor), to_json(j.subject))) AS items
      INTO found FROM judged AS j;
    IF found.total = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok',
            format('nobody decrypted more than %s times as many values in the last %s as usually', factor, span));
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('more than %s times as many values were decrypted in the last %s as usually, for %s', factor, span,
            fieldcrypt_internal.counted_names(found.names, found.total, 'reader')),
        'SELECT * FROM fieldcrypt.audit_trail WHERE event = ''values_decrypted'' tells who, from where and why. What goes on becomes usual by itself.',
        fieldcrypt_internal.finding_identity(found.items, found.total));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_unusual_volume(jsonb) IS 'check: login roles, and subjects as claimed, that decrypted many times as much as usually';

-- sql/health_audit.sql
-- Health of the audit log: whether it is whole, sealed, verified, and known outside.

-- When the whole log was verified: append-only, as a fact that an auditor asks for.
CREATE TABLE fieldcrypt.audit_verifications (
    id bigint PRIMARY KEY DEFAULT pg_catalog.nextval('fieldcrypt_internal.audit_log_id_seq'),
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    status text COLLATE "C" NOT NULL CHECK (status IN ('ok', 'warning', 'critical')),
    findings bigint NOT NULL,
    detail text NOT NULL,
    actor text NOT NULL DEFAULT session_user
);
SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.audit_verifications', '');
COMMENT ON TABLE fieldcrypt.audit_verifications IS 'when check_audit_log verified the whole log, and with what result';
COMMENT ON COLUMN fieldcrypt.audit_verifications.id IS 'in the order of writing; shares its numbers with audit_log';
COMMENT ON COLUMN fieldcrypt.audit_verifications.started_at IS 'when the verification began';
COMMENT ON COLUMN fieldcrypt.audit_verifications.ended_at IS 'when it ended';
COMMENT ON COLUMN fieldcrypt.audit_verifications.status IS 'the worst of its findings: ok, warning or critical';
COMMENT ON COLUMN fieldcrypt.audit_verifications.findings IS 'how many findings were not ok';
COMMENT ON COLUMN fieldcrypt.audit_verifications.detail IS 'the summary, and the first findings';
COMMENT ON COLUMN fieldcrypt.audit_verifications.actor IS 'session_user: who had it verified';

CREATE FUNCTION fieldcrypt_internal.store_verification(started_at timestamptz, status text, findings bigint, detail text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_store_verification';
COMMENT ON FUNCTION fieldcrypt_internal.store_verification(timestamptz, text, bigint, text) IS 'writes a row of audit_verifications; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_audit_key_age(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    every interval := coalesce(
        (SELECT p.rotate_every FROM fieldcrypt.rotation_policies AS p WHERE p.tenant = ''), interval '90 days');
    key record;
    detail text;
BEGIN
    SELECT k.key_id, k.created_at INTO key
      FROM fieldcrypt.encryption_keys AS k WHERE k.purpose = 'audit' AND k.state = 'active'
     ORDER BY k.created_at LIMIT 1;
    IF key.key_id IS NULL THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'there is no audit key yet: rows of the audit log are not authenticated');
    END IF;
    detail := format('the key that authenticates the audit log was made %s; the default policy is %s', fieldcrypt_internal.time_ago(key.created_at), every);
    IF key.created_at > clock_timestamp() - every - fieldcrypt_internal.health_threshold('due_grace') THEN
        RETURN fieldcrypt_internal.finding_of('ok', detail);
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        detail,
        coalesce('On the node that makes the keys: CALL fieldcrypt.rotate_keys(). Here ' || fieldcrypt_internal.keys_from('audit') || '.',
            'CALL fieldcrypt.rotate_keys(), which rotates it by the default policy; SELECT fieldcrypt.schedule_rotation() lets pg_cron do it.'),
        ARRAY[key.key_id::text]);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audit_key_age(jsonb) IS 'check: the age of the key that authenticates the audit log';

-- Numbers and roots are others each time; what was found is not.
CREATE FUNCTION fieldcrypt_internal.without_figures(detail text) RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT md5(regexp_replace($1, '[0-9a-f]*[0-9][0-9a-f]*', '', 'g')) $$;
COMMENT ON FUNCTION fieldcrypt_internal.without_figures(text) IS 'the identity of what a verification says; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_audit_verification(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    latest record;
    detail text;
BEGIN
    SELECT v.* INTO latest FROM fieldcrypt.audit_verifications AS v ORDER BY v.id DESC LIMIT 1;
    IF latest.status = 'critical' THEN
        RETURN fieldcrypt_internal.finding_of('critical',
            format('the last verification (%s) found the audit log changed: %s', fieldcrypt_internal.time_ago(latest.ended_at), latest.detail),
            'SELECT * FROM fieldcrypt.verify_audit_log(); keep a copy of the database as evidence before anything else.',
            ARRAY[fieldcrypt_internal.without_figures(latest.detail)]);
    ELSIF latest.status IS NULL THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            'the audit log was never verified',
            'CALL fieldcrypt.check_audit_log(), every night.');
    ELSIF latest.ended_at <= clock_timestamp() - fieldcrypt_internal.health_threshold('verification_age') THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            format('the audit log was last verified %s', fieldcrypt_internal.time_ago(latest.ended_at)),
            'CALL fieldcrypt.check_audit_log(), every night.');
    END IF;
    detail := format('the audit log was verified %s: %s', fieldcrypt_internal.time_ago(latest.ended_at), latest.detail);
    IF latest.status = 'ok' THEN
        RETURN fieldcrypt_internal.finding_of('ok', detail);
    END IF;
    RETURN fieldcrypt_internal.finding_of(latest.status,
        detail,
        'SELECT * FROM fieldcrypt.verify_audit_log() shows all findings.',
        ARRAY[fieldcrypt_internal.without_figures(latest.detail)]);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audit_verification(jsonb) IS 'check: when the audit log was last verified, and how that ended';

CREATE FUNCTION fieldcrypt_internal.check_audit_gaps(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    memory interval := fieldcrypt_internal.health_threshold('event_memory');
    since timestamptz := clock_timestamp() - memory;
    gaps record;
BEGIN
    SELECT count(*) AS total, coalesce(sum(coalesce(l.value_count, 1)), 0) AS events, max(l.at) AS latest,
           array_agg(l.id::text) AS items, (array_agg(l.reason ORDER BY l.at DESC))[1] AS reason
      INTO gaps
      FROM (SELECT a.id, a.at, a.value_count, a.reason
              FROM fieldcrypt.audit_log AS a
             WHERE a.event = 'audit_gap' AND a.at > since
               AND (a.leaf IS NULL OR a.leaf >= coalesce((
                   SELECT max(k.value_count) FROM fieldcrypt.audit_log AS k
                    WHERE k.event = 'audit_findings_acknowledged' AND k.at > since), 0))
             ORDER BY a.at DESC LIMIT 10001) AS l;
    IF gaps.total = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('no event was left out of the audit log in the last %s', memory));
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('%s events were left out of the audit log in the last %s, last %s: %s', gaps.events, memory,
            fieldcrypt_internal.time_ago(gaps.latest), coalesce(gaps.reason, 'they are in the server log')),
        'They are lines "fieldcrypt audit:" of the server log: keep it. A larger queue, or fieldcrypt.audit_on_overflow = error, leaves none out.',
        fieldcrypt_internal.finding_identity(gaps.items, gaps.total));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audit_gaps(jsonb) IS 'check: events that are not in the audit log but in the server log';

CREATE FUNCTION fieldcrypt_internal.check_audit_sealing(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    delay interval := fieldcrypt_internal.health_threshold('seal_delay');
    since timestamptz := clock_timestamp() - delay;
    log jsonb := fieldcrypt_internal.audit_queue_status()::jsonb;
    checkpoint record;
    waiting record;
BEGIN
    IF NOT (log ->> 'is_preloaded')::boolean THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'not judged: without preload nothing seals the audit log');
    ELSIF pg_is_in_recovery() THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'not judged on a standby: the primary seals the audit log');
    END IF;
    SELECT c.size, c.at INTO checkpoint FROM fieldcrypt.audit_checkpoints AS c ORDER BY c.id DESC LIMIT 1;
    SELECT count(*) AS total INTO waiting
      FROM ((SELECT FROM fieldcrypt.audit_log AS a WHERE a.leaf IS NULL AND a.at < since LIMIT 10001)
            UNION ALL
            (SELECT FROM fieldcrypt.audit_log AS a WHERE a.leaf >= coalesce(checkpoint.size, 0) AND a.at < since LIMIT 10001)) AS l;
    IF waiting.total > 0 THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            format('%s%s rows of the audit log are in no checkpoint, though older than %s%s', CASE WHEN waiting.total > 10000 THEN 'more than ' END,
                least(waiting.total, 10000), delay, ': ' || (log ->> 'last_problem')),
            'Until then they can be changed without a trace. The server log says why; the worker needs one of max_worker_processes.',
            ARRAY[coalesce(log ->> 'last_problem', '')]);
    END IF;
    RETURN fieldcrypt_internal.finding_of('ok', 'the audit log is sealed' || coalesce('; the last checkpoint was made ' || fieldcrypt_internal.time_ago(checkpoint.at), ''));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audit_sealing(jsonb) IS 'check: rows of the audit log that wait too long for their seal';

CREATE FUNCTION fieldcrypt_internal.check_audit_handover(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    memory interval := fieldcrypt_internal.health_threshold('event_memory');
    since timestamptz := clock_timestamp() - memory;
    unclean record;
BEGIN
    SELECT count(*) AS total, max(s.introduced_at) AS latest, array_agg(s.id::text) AS items, bool_or(s.introduced_by = 'itself') AS is_unproven
      INTO unclean
      FROM (SELECT a.* FROM fieldcrypt.audit_signers AS a
             -- Before the first key there was nothing that it could not have followed.
             WHERE NOT a.is_clean AND a.from_size > 0 AND a.introduced_at > since
             ORDER BY a.introduced_at DESC LIMIT 10001) AS s;
    IF unclean.total = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('all keys that signed the audit log in the last %s follow each other', memory));
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('in the last %s the sealing of the audit log was interrupted %s time(s), last %s, and went on with a key that the one before did not sign%s',
            memory, unclean.total, fieldcrypt_internal.time_ago(unclean.latest), CASE WHEN unclean.is_unproven THEN ', nor a master key' END),
        'After a crash or an immediate stop this is to be expected: compare with when those were. Rows that were written shortly before are as trustworthy as who could write the tables then.',
        fieldcrypt_internal.finding_identity(unclean.items, unclean.total));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audit_handover(jsonb) IS 'check: signing keys of the audit log that do not follow from the one before';

CREATE FUNCTION fieldcrypt_internal.check_audit_fork(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    fork record;
BEGIN
    SELECT o.id, o.at, o.cause, o.old_size INTO fork
      FROM fieldcrypt.audit_origins AS o
     WHERE o.acknowledged_at IS NULL AND o.old_log_id IS NOT NULL
     ORDER BY o.id DESC LIMIT 1;
    IF fork.id IS NULL THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'the audit log goes on where it began, or somebody has said why not');
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('since %s the audit log goes on elsewhere than where it began (%s, after %s rows), and nobody has said why',
            date_trunc('second', fork.at), fork.cause, fork.old_size),
        'After a restore, a copy or a promotion: compare with the newest checkpoint that is kept outside, then SELECT fieldcrypt.acknowledge_audit_fork(reason).',
        ARRAY[fork.id::text]);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audit_fork(jsonb) IS 'check: a fork of the audit log that nobody has acknowledged';

CREATE FUNCTION fieldcrypt_internal.check_audit_anchor(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    log jsonb := fieldcrypt_internal.audit_queue_status()::jsonb;
BEGIN
    IF NOT (log ->> 'is_preloaded')::boolean THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'not judged: without preload the audit log has no checkpoints');
    ELSIF coalesce(current_setting('fieldcrypt.audit_checkpoint_command', true), '') = '' THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            'checkpoints of the audit log are kept in this database only: a superuser who can read the master key could rewrite it without a trace',
            'Set fieldcrypt.audit_checkpoint_command to one that takes each checkpoint to another machine. See docs/health.md.');
    ELSIF log ->> 'last_problem' LIKE 'fieldcrypt.audit_checkpoint_command%' THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            format('checkpoints of the audit log do not get outside: %s', log ->> 'last_problem'),
            'Run it by hand as the server''s user, with a row of fieldcrypt.audit_checkpoints as its input.');
    ELSE
        RETURN fieldcrypt_internal.finding_of('ok', 'checkpoints of the audit log are passed on to fieldcrypt.audit_checkpoint_command');
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audit_anchor(jsonb) IS 'check: whether checkpoints of the audit log are kept outside';

CREATE FUNCTION fieldcrypt_internal.check_audited_tables(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    total bigint := (SELECT count(DISTINCT t.tgrelid) FROM pg_trigger AS t WHERE t.tgfoid = 'fieldcrypt_internal.audit_change()'::regprocedure);
    bypass text := fieldcrypt_internal.trigger_bypass();
    found record;
    detail text;
BEGIN
    SELECT count(*) AS problems, array_agg(p.relation || ' ' || md5(p.problem)) AS items,
           (array_agg(format('%s: %s', fieldcrypt_internal.quoted_name(p.relation::regclass::text), p.problem) ORDER BY p.relation, p.problem))[1:3] AS said,
           (array_agg(p.remedy ORDER BY p.relation, p.problem))[1] AS remedy
      INTO found FROM fieldcrypt_internal.audited_table_problems() AS p;
    IF found.problems = 0 AND (bypass IS NULL OR total = 0) THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('%s tables and partitions are audited, all of their changes with the row''s name', total));
    END IF;
    detail := concat_ws('; ',
        CASE WHEN total > 0 THEN 'no trigger of audit_table fires where ' || bypass END,
        array_to_string(found.said, '; '),
        CASE WHEN found.problems > 3 THEN format('and %s more', found.problems - 3) END);
    RETURN fieldcrypt_internal.finding_of('warning', 'audited tables: ' || detail,
        coalesce(found.remedy || '; for all: ', '') || 'docs/health.md, "audited_tables".',
        fieldcrypt_internal.finding_identity(found.items || coalesce(bypass, ''), found.problems));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audited_tables(jsonb) IS 'check: audited tables whose changes are not all recorded, or whose rows have no name in the log';

-- With session_replication_role = replica no ordinary trigger fires. Who sets it in a session is not seen here.
CREATE FUNCTION fieldcrypt_internal.trigger_bypass() RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(b.place, ', ' ORDER BY b.place)
      FROM (SELECT 'the configuration says session_replication_role = replica' AS place
              FROM pg_settings AS s
             WHERE s.name = 'session_replication_role' AND s.reset_val = 'replica' AND s.source NOT IN ('database', 'user', 'database user', 'client', 'session')
            UNION ALL
            SELECT format('session_replication_role = replica is set for %s',
                   concat_ws(' in ', 'role ' || fieldcrypt_internal.quoted_name(r.rolname), 'database ' || fieldcrypt_internal.quoted_name(d.datname)))
              FROM pg_db_role_setting AS s
              LEFT JOIN pg_roles AS r ON r.oid = s.setrole
              LEFT JOIN pg_database AS d ON d.oid = s.setdatabase
             WHERE 'session_replication_role=replica' = ANY (s.setconfig)
               AND (s.setdatabase = 0 OR d.datname = current_database())) AS b
$$;
COMMENT ON FUNCTION fieldcrypt_internal.trigger_bypass() IS 'where settings keep triggers from firing in this database; NULL: nowhere; granted to nobody';

-- sql/alerts.sql
-- Alerts: what health() finds, told once, to listeners, the server log and the audit log. And the
-- verification of the audit log, whose result health() tells.

CREATE TABLE fieldcrypt.alerts (
    "check" text COLLATE "C" PRIMARY KEY,
    status text COLLATE "C" NOT NULL CHECK (status IN ('warning', 'critical')),
    detail text NOT NULL,
    hint text,
    identity jsonb NOT NULL,
    since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    told_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE fieldcrypt.alerts IS 'the findings that check_alerts has told of and that are not over: not dumped, a restored database tells of its own';
COMMENT ON COLUMN fieldcrypt.alerts."check" IS 'as in fieldcrypt.health()';
COMMENT ON COLUMN fieldcrypt.alerts.status IS 'warning or critical';
COMMENT ON COLUMN fieldcrypt.alerts.detail IS 'what was found, when check_alerts last looked';
COMMENT ON COLUMN fieldcrypt.alerts.hint IS 'what to do';
COMMENT ON COLUMN fieldcrypt.alerts.identity IS 'what the finding is about: when something is added, it is told again';
COMMENT ON COLUMN fieldcrypt.alerts.since IS 'when it was first found';
COMMENT ON COLUMN fieldcrypt.alerts.told_at IS 'when it was last told';

CREATE FUNCTION fieldcrypt_internal.store_alert("check" text, status text, detail text, hint text, identity text, is_told boolean) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_store_alert';
COMMENT ON FUNCTION fieldcrypt_internal.store_alert(text, text, text, text, text, boolean) IS 'writes a row of alerts; granted to nobody';
CREATE FUNCTION fieldcrypt_internal.forget_alert("check" text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_forget_alert';
COMMENT ON FUNCTION fieldcrypt_internal.forget_alert(text) IS 'removes a row of alerts; granted to nobody';

-- Postgres takes less than 8000 bytes.
CREATE FUNCTION fieldcrypt_internal.alert_payload(event text, "check" text, status text, detail text, hint text, since timestamptz) RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    payload text;
BEGIN
    LOOP
        payload := json_build_object('event', event, 'database', current_database(), 'check', "check", 'status', status,
            'detail', detail, 'hint', hint, 'since', since)::text;
        EXIT WHEN octet_length(payload) < 7900;
        detail := left(detail, length(detail) * 3 / 4) || '...';
        hint := left(hint, 500);
    END LOOP;
    RETURN payload;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.alert_payload(text, text, text, text, text, timestamptz) IS
    'what listeners are told, as JSON; a detail that is too long is cut; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.alert_step(OUT told integer, OUT resolved integer, OUT unresolved integer)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    channel text;
    item record;
    is_told boolean;
    what text;
BEGIN
    PERFORM fieldcrypt_internal.refuse_unless_recordable('an alert');
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_transaction_state',
            MESSAGE = 'alerts are told in READ COMMITTED only: an older snapshot does not show what was told meanwhile',
            HINT = 'CALL fieldcrypt.check_alerts().';
    END IF;
    -- A second run waits, and then sees what this one has told.
    LOCK TABLE fieldcrypt.alerts IN SHARE ROW EXCLUSIVE MODE;
    PERFORM fieldcrypt_internal.health_hours();
    channel := current_setting('fieldcrypt.alert_channel');
    told := 0;
    resolved := 0;
    FOR item IN
        SELECT h.*, a.status AS old_status, a.identity AS old_identity, coalesce(a.since, clock_timestamp()) AS since
          FROM fieldcrypt_internal.health_findings(false) AS h
          LEFT JOIN fieldcrypt.alerts AS a ON a."check" = h."check"
         WHERE h.status IS NOT NULL
         ORDER BY h."check"
    LOOP
        IF item.status = 'ok' THEN
            CONTINUE WHEN item.old_status IS NULL;
            PERFORM fieldcrypt_internal.forget_alert(item."check");
            what := 'resolved';
            resolved := resolved + 1;
            RAISE LOG USING MESSAGE = format('fieldcrypt alert resolved: %s: %s', item."check", item.detail);
        ELSE
            is_told := item.old_status IS DISTINCT FROM item.status OR NOT to_jsonb(item.identity) <@ item.old_identity;
            PERFORM fieldcrypt_internal.store_alert(item."check", item.status, item.detail, item.hint, to_jsonb(item.identity)::text, is_told);
            CONTINUE WHEN NOT is_told;
            what := CASE WHEN item.old_status IS NULL THEN 'raised' ELSE 'changed' END;
            told := told + 1;
            RAISE WARNING USING MESSAGE = format('fieldcrypt alert: %s is %s: %s', item."check", item.status, item.detail), HINT = coalesce(item.hint, '');
        END IF;
        PERFORM fieldcrypt_internal.record_event(CASE what WHEN 'resolved' THEN 'alert_resolved' ELSE 'alert_raised' END, NULL, NULL,
            format('%s is %s: %s', item."check", item.status, item.detail), NULL);
        IF channel <> '' THEN
            PERFORM pg_notify(channel, fieldcrypt_internal.alert_payload(what, item."check", item.status, item.detail, item.hint, item.since));
        END IF;
    END LOOP;
    unresolved := (SELECT count(*) FROM fieldcrypt.alerts);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.alert_step() IS 'tells of what health finds and was not told yet, and of what is over';

CREATE PROCEDURE fieldcrypt.check_alerts()
    LANGUAGE plpgsql
AS $$
DECLARE
    step pg_catalog.record;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened: what is told can't be
    -- rolled back.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    SELECT s.told, s.resolved, s.unresolved INTO step FROM fieldcrypt_internal.alert_step() AS s;
    COMMIT;
    RAISE NOTICE 'check_alerts: % told, % resolved, % unresolved (see fieldcrypt.alerts)', step.told, step.resolved, step.unresolved;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.check_alerts() IS
    'tells of what fieldcrypt.health() finds, once until it changes or is over: a notification on fieldcrypt.alert_channel, a warning in the server log, an event in the audit log';

CREATE FUNCTION fieldcrypt_internal.verification_step(OUT status text, OUT findings bigint, OUT detail text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    started_at timestamptz := clock_timestamp();
BEGIN
    PERFORM fieldcrypt_internal.refuse_unless_recordable('a verification of the audit log');
    -- Every night, where no worker does it; not where another than what is committed would be seen.
    IF current_setting('fieldcrypt.audit_access_interval', true) <> '0' AND pg_current_xact_id_if_assigned() IS NULL
       AND current_setting('transaction_isolation') IN ('read committed', 'read uncommitted') THEN
        PERFORM fieldcrypt_internal.access_step();
    END IF;
    SELECT coalesce((array_agg(v.status ORDER BY array_position('{critical,warning,ok}'::text[], v.status)))[1], 'critical'),
           count(*) FILTER (WHERE v.status <> 'ok' AND v.finding <> 'summary'),
           string_agg(format('%s: %s', v.finding, left(v.detail, 300)), '; ' ORDER BY v.place)
               FILTER (WHERE v.place <= 4 AND (v.status <> 'ok' OR v.finding = 'summary'))
      INTO status, findings, detail
      FROM (SELECT a.*, row_number() OVER (ORDER BY a.finding <> 'summary', array_position('{critical,warning,ok}'::text[], a.status), a.ordinality) AS place
              FROM fieldcrypt.verify_audit_log() WITH ORDINALITY AS a) AS v;
    PERFORM fieldcrypt_internal.store_verification(started_at, status, findings, coalesce(detail, 'nothing was verified'));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.verification_step() IS 'verifies the audit log and writes the result down';

CREATE PROCEDURE fieldcrypt.check_audit_log()
    LANGUAGE plpgsql
AS $$
DECLARE
    step pg_catalog.record;
BEGIN
    -- In a transaction block this is refused (2D000): the result stays, whatever else is rolled back.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    SELECT s.status, s.findings, s.detail INTO step FROM fieldcrypt_internal.verification_step() AS s;
    COMMIT;
    IF step.status OPERATOR(pg_catalog.=) 'ok' THEN
        RAISE NOTICE 'check_audit_log: ok: %', step.detail;
    ELSE
        RAISE WARNING USING
            MESSAGE = pg_catalog.format('the audit log is not all right (%s, %s findings): %s', step.status, step.findings, step.detail),
            HINT = 'SELECT * FROM fieldcrypt.verify_audit_log() shows all findings.';
    END IF;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.check_audit_log() IS
    'verifies the whole audit log and writes the result to fieldcrypt.audit_verifications, for health(): to be called every night';

CREATE FUNCTION fieldcrypt_internal.alert_jobs(alerts text, verification text) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_agg(jsonb_build_object('job', (j.name || current_database())::name, 'schedule', j.schedule, 'command', j.command))
      FROM (VALUES ('fieldcrypt alerts of ', $1, 'CALL fieldcrypt.check_alerts()'),
                   ('fieldcrypt audit of ', $2, 'CALL fieldcrypt.check_audit_log()')) AS j (name, schedule, command)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.alert_jobs(text, text) IS 'names and commands of the jobs of schedule_alerts';

CREATE FUNCTION fieldcrypt.schedule_alerts(cron text DEFAULT '* * * * *', verification text DEFAULT '30 2 * * *')
    RETURNS TABLE (job text, schedule text, command text)
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.job, s.schedule, s.command FROM fieldcrypt_internal.schedule_jobs(fieldcrypt_internal.alert_jobs($1, $2)) AS s
$$;
COMMENT ON FUNCTION fieldcrypt.schedule_alerts(text, text) IS
    'lets pg_cron look for alerts and verify the audit log, as the caller; '''' is no such job; again: replaces';

CREATE FUNCTION fieldcrypt.unschedule_alerts() RETURNS integer
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$ SELECT fieldcrypt_internal.unschedule_jobs(fieldcrypt_internal.alert_jobs('* * * * *', '30 2 * * *')) $$;
COMMENT ON FUNCTION fieldcrypt.unschedule_alerts() IS 'takes the caller''s jobs of schedule_alerts away, and gives their number';

-- sql/guards.sql
-- The guards of the tables: only the extension changes them, nobody empties them, and nothing is restored over
-- rows that are there. Tables with other guards have them where they are made: the audit log, whose partitions
-- need them too, approvals, and those of re-encryption, which it writes in SQL.
DO $guards$
DECLARE
    guarded record;
BEGIN
    FOR guarded IN
        SELECT g.name, g.restore_guard
          FROM (VALUES ('encryption_keys', 'refuse_restore_over'),
                       ('master_keys', 'refuse_restore_over'),
                       ('origins', 'refuse_restore_over'),
                       ('rotation_policies', 'refuse_restore_over'),
                       ('rotation_log', 'refuse_restore_over'),
                       ('audit_verifications', 'refuse_restore_over'),
                       ('audit_origins', 'refuse_restore_over_log'),
                       ('audit_signers', 'refuse_restore_over_log'),
                       ('audit_checkpoints', 'refuse_restore_over_log'),
                       ('audit_retirements', 'refuse_restore_over_log'),
                       ('column_contexts', NULL),
                       ('alerts', NULL)) AS g (name, restore_guard)
    LOOP
        EXECUTE pg_catalog.format(
            'CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON fieldcrypt.%I
                FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.refuse_change()', guarded.name);
        EXECUTE pg_catalog.format(
            'CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt.%I
                FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change()', guarded.name);
        IF guarded.restore_guard IS NOT NULL THEN
            EXECUTE pg_catalog.format(
                'CREATE TRIGGER refuse_restore BEFORE INSERT ON fieldcrypt.%I
                    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.%I()', guarded.name, guarded.restore_guard);
        END IF;
    END LOOP;
END
$guards$;

-- sql/drops.sql
-- The guard of the whole: nothing drops the extension, its keys, its type or its log while there are keys.
--
-- The library sees every object that is dropped, by whatever statement, and refuses (src/lifecycle/drops.rs). A session
-- that has not needed it so far loads it here, before the statement begins. sql_drop would come too late: it is asked
-- for after the trigger itself is gone. These are the statements that drop anything on which something of the extension
-- could depend.

CREATE FUNCTION fieldcrypt_internal.guard_drops() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'fieldcrypt_guard_drops';
COMMENT ON FUNCTION fieldcrypt_internal.guard_drops() IS
    'event trigger: loads the library, which refuses to drop the extension while there are keys';

CREATE EVENT TRIGGER fieldcrypt_guard_drops ON ddl_command_start
    WHEN TAG IN ('DROP EXTENSION', 'DROP SCHEMA', 'DROP OWNED', 'DROP TABLE', 'DROP TYPE', 'DROP DOMAIN', 'DROP FUNCTION',
        'DROP PROCEDURE', 'DROP ROUTINE', 'DROP AGGREGATE', 'DROP OPERATOR', 'DROP OPERATOR CLASS', 'DROP OPERATOR FAMILY',
        'DROP CAST', 'DROP VIEW', 'DROP MATERIALIZED VIEW', 'DROP SEQUENCE', 'DROP LANGUAGE', 'DROP COLLATION',
        'DROP CONVERSION', 'DROP ACCESS METHOD', 'DROP FOREIGN DATA WRAPPER', 'DROP SERVER', 'DROP FOREIGN TABLE',
        'ALTER TABLE')
    EXECUTE FUNCTION fieldcrypt_internal.guard_drops();
-- Also where replication applies changes, or a session says that it does.
ALTER EVENT TRIGGER fieldcrypt_guard_drops ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER fieldcrypt_guard_drops IS
    'pg_fieldcrypt: nothing drops the extension, its keys, its type or its log while there are keys, unless fieldcrypt.allow_drop is on';

-- sql/report.sql
-- The compliance report: what is known of keys, access, use and the log, for who reads it without a database.
-- docs/compliance-report.md says what each figure is; report_figures.sql and report_audit.sql make them.

CREATE FUNCTION fieldcrypt_internal.report_requirements() RETURNS TABLE (standard text, section text, title text, figures text[], note text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    VALUES
    ('HIPAA', '164.312(a)(2)(iv)', 'Encryption and decryption',
        '{cryptography,keys,master_keys,rotation,reencryption,destruction}'::text[],
        'Fields are encrypted with authenticated encryption under keys of their own for each tenant; the figures show which keys there are, how old they are and what is still on old ones.'),
    ('HIPAA', '164.312(b)', 'Audit controls',
        '{access,use,approvals,exports,audit_log,verification,health}',
        'Use of keys, failures, refusals and changes of rights are recorded and can be examined here.'),
    ('HIPAA', '164.312(c)(1)', 'Integrity',
        '{cryptography,audit_log,verification}',
        'A changed value does not decrypt; a changed record of the log is found by its seal.'),
    ('PCI DSS v4', '3.6.1.1', 'Description of the cryptographic architecture: algorithms, keys, their use and expiry', '{cryptography,keys,master_keys}',
        'The inventory of keys and algorithms.'),
    ('PCI DSS v4', '3.6.1.2', 'Keys are stored encrypted by a key-encrypting key that is stored apart', '{cryptography,master_keys}',
        'Each encryption key is wrapped by a master key that is not in the database. Where that one is stored is outside of this report.'),
    ('PCI DSS v4', '3.6.1.3', 'Access to keys is restricted to the fewest custodians necessary', '{access,exports}',
        'Who holds which privilege, and who is above all of them.'),
    ('PCI DSS v4', '3.7.1', 'Generation of strong keys', '{cryptography}', 'Algorithms, lengths, and where random bytes come from.'),
    ('PCI DSS v4', '3.7.4', 'Keys are changed at the end of their cryptoperiod', '{keys,master_keys,rotation}',
        'Ages of keys against the policy of rotation, and what was rotated.'),
    ('PCI DSS v4', '3.7.5', 'Retirement, replacement and destruction of keys', '{keys,reencryption,destruction,approvals}',
        'Keys that are suspended, compromised or destroyed, and values that are still on keys to be replaced.'),
    ('PCI DSS v4', '3.7.7', 'Prevention of unauthorized substitution of keys', '{access,approvals,exports,verification}',
        'A wrapped key is bound to its row; imports, approvals and changes of rights are recorded.'),
    ('GDPR', 'Art. 32(1)(a)', 'Encryption of personal data', '{cryptography,keys,reencryption}', 'Which fields are encrypted, and by which keys.'),
    ('GDPR', 'Art. 32(1)(b)', 'Ongoing confidentiality and integrity', '{access,use,audit_log,verification}', 'Who can decrypt, who did, and whether the record holds.'),
    ('GDPR', 'Art. 32(1)(c)', 'Restoring availability and access after an incident', '{exports}',
        'When the keys were last exported, and whether their states are confirmed since the last restore.'),
    ('GDPR', 'Art. 32(1)(d)', 'Regular testing and evaluation of the measures', '{verification,health}', 'Verification of the log, and the checks of health().')
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_requirements() IS 'which requirement each figure of the compliance report supports; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_cryptography() RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_build_object('algorithms', jsonb_agg(jsonb_build_object('use', a.use, 'algorithm', a.algorithm, 'key_bits', a.bits, 'standard', a.standard) ORDER BY a.place))
      FROM (VALUES
        (1, 'Encryption of fields', 'XAES-256-GCM (authenticated), a key for each tenant and version', 256, 'C2SP XAES-256-GCM, NIST SP 800-38D'),
        (2, 'Wrapping of encryption keys by the master key', 'XAES-256-GCM, bound to tenant, key id, version, purpose and master key', 256, 'C2SP XAES-256-GCM'),
        (3, 'Derivation of keys', 'HKDF-SHA256: no key serves two algorithms', 256, 'RFC 5869'),
        (4, 'Authentication of key exports and of rows of the audit log', 'HMAC-SHA256', 256, 'RFC 2104, FIPS 198-1'),
        (5, 'Sealing of the audit log', 'Merkle tree with SHA-256', NULL, 'RFC 6962, section 2.1'),
        (6, 'Signatures of checkpoints', 'Ed25519', 256, 'RFC 8032, C2SP signed-note and tlog-checkpoint'),
        (7, 'Random bytes', 'the operating system''s generator, drawn in each server process', NULL, 'getrandom(2)')
      ) AS a (place, use, algorithm, bits, standard)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_cryptography() IS 'the algorithms in use; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_limits() RETURNS text[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY[
        'This report shows what the database records. Whether an installation meets a requirement is for its assessor; the mapping says what a figure can be evidence for, not that a requirement is met.',
        'A superuser of the database, and whoever is root or the server''s user, can read the master key through the server, load code, and change what the database says. They are listed under access, not kept out. Only a checkpoint of the audit log that was stored outside, before, contradicts them.',
        'Whoever has the master key and a copy of the database can decrypt elsewhere; nothing here would show it.',
        'Plaintext is outside of the extension in applications, their logs and caches, in query results, in temporary files of queries that decrypt, and in copies that users make. Nothing here shows them.',
        'Decryptions are in the log only as far as fieldcrypt.audit_decrypt had them recorded at the time. A figure of zero can mean that none was recorded.',
        'Changes of rights are in the log as far as they were made with grant_access and revoke_access. A plain GRANT is shown in the table of rights as it is now, and not when or by whom it was made. Membership of roles likewise.',
        'Inventory, ages, access and coverage are of the time at which the report was made, not of the end of the period.',
        'Values on old keys are counted in columns of type fieldcrypt.encrypted (also in domains, arrays and composites); ciphertext copied into other types, files or other systems is not seen. Estimates are marked as such.',
        'Destroyed keys live on in old backups, key exports, archived WAL and standbys until those are gone.',
        'Where the master key is stored, who can read it there, and how backups are kept, is outside of the database.']
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_limits() IS 'what the compliance report does not show; granted to nobody';

-- What a check found, or why it did not run: a failing check is a finding, not the end of the report.
CREATE FUNCTION fieldcrypt_internal.report_verified(
        tenant text, from_time timestamptz, to_time timestamptz, verify boolean, most integer) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found jsonb;
    began timestamptz := clock_timestamp();
BEGIN
    IF NOT verify THEN
        RETURN jsonb_build_object('status', 'not run', 'summary', 'verify was false');
    END IF;
    -- A finding may name rows of others; for one tenant's report it is enough that there is one.
    SELECT jsonb_build_object(
               'status', min(v.status) FILTER (WHERE v.finding = 'summary'),
               'summary', CASE WHEN tenant IS NULL THEN min(v.detail) FILTER (WHERE v.finding = 'summary') END,
               'from', fieldcrypt_internal.utc_text(from_time), 'to', fieldcrypt_internal.utc_text(to_time),
               'findings', jsonb_build_object(
                   'total', count(*) FILTER (WHERE v.finding <> 'summary'),
                   'rows', coalesce(jsonb_agg(jsonb_build_object('status', v.status, 'finding', v.finding, 'leaf', v.leaf, 'log_id', v.log_id::text,
                               'detail', CASE WHEN tenant IS NULL THEN v.detail END) ORDER BY v.place)
                           FILTER (WHERE v.finding <> 'summary' AND v.place <= most + 1), '[]')))
      INTO found
      FROM fieldcrypt.verify_audit_log(from_time, to_time)
           WITH ORDINALITY AS v(status, finding, leaf, log_id, detail, place);
    RETURN found || jsonb_build_object('seconds', round(EXTRACT(epoch FROM clock_timestamp() - began), 1));
EXCEPTION WHEN OTHERS THEN
    RETURN jsonb_build_object('status', 'failed', 'summary', format('%s (%s)', SQLERRM, SQLSTATE));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_verified(text, timestamptz, timestamptz, boolean, integer) IS
    'what verify_audit_log() says, or why it could not; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_verification(
        tenant text, from_time timestamptz, to_time timestamptz, since timestamptz, until timestamptz, verify boolean, most integer) RETURNS jsonb
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT fieldcrypt_internal.report_verified($1, $2, $3, $6, $7) || jsonb_build_object('stored', jsonb_build_object(
        'total', (SELECT count(*) FROM fieldcrypt.audit_verifications AS v WHERE v.ended_at >= $4 AND v.ended_at < $5),
        'rows', coalesce((
            SELECT jsonb_agg(jsonb_build_object('at', fieldcrypt_internal.utc_text(v.ended_at), 'status', v.status, 'findings', v.findings, 'actor', v.actor,
                       'detail', CASE WHEN $1 IS NULL THEN v.detail END) ORDER BY v.id DESC)
              FROM (SELECT v.* FROM fieldcrypt.audit_verifications AS v WHERE v.ended_at >= $4 AND v.ended_at < $5 ORDER BY v.id DESC LIMIT $7) AS v), '[]')))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_verification(text, timestamptz, timestamptz, timestamptz, timestamptz, boolean, integer) IS
    'the audit log verified now, and the verifications of the period; granted to nobody';

-- What health() knows from bookkeeping alone, the report may have counted: then that is told, and not two things.
CREATE FUNCTION fieldcrypt_internal.report_health(tenant text, counted jsonb) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- In all tables, and each row: of a sample without a value of a key it is not known whether there is one.
    is_counted boolean := coalesce(tenant IS NULL AND counted ->> 'problem' IS NULL
        AND (counted #>> '{totals,is_exact}')::boolean AND (counted #>> '{totals,columns_not_counted}')::bigint = 0
        AND fieldcrypt_internal.uncountable('-infinity') IS NULL
        AND NOT EXISTS (SELECT FROM fieldcrypt_internal.encrypted_columns() AS c WHERE c.problem IS NOT NULL)
        -- As key_usage() has it.
        AND (SELECT coalesce(sum(pg_table_size(t.relation)), 0) <= 536870912
               FROM (SELECT DISTINCT c.relation FROM fieldcrypt_internal.encrypted_columns() AS c) AS t), false);
BEGIN
    RETURN (SELECT jsonb_build_object(
                'status', CASE WHEN count(*) FILTER (WHERE h.status = 'critical') > 0 THEN 'critical'
                               WHEN count(*) FILTER (WHERE h.status <> 'ok') > 0 THEN 'warning' ELSE 'ok' END,
                'ok', count(*) FILTER (WHERE h.status = 'ok'), 'warning', count(*) FILTER (WHERE h.status = 'warning'),
                'critical', count(*) FILTER (WHERE h.status = 'critical'),
                -- What a check says may name tenants.
                'checks', coalesce(jsonb_agg(jsonb_build_object('check', h."check", 'status', h.status,
                              'detail', CASE WHEN tenant IS NULL THEN h.detail END, 'hint', CASE WHEN tenant IS NULL THEN h.hint END)
                          ORDER BY array_position('{critical,warning,ok}'::text[], h.status), h.place), '[]'))
              FROM (SELECT h."check", h.place,
                           CASE WHEN c.is_none THEN 'ok' ELSE h.status END AS status,
                           CASE WHEN c.is_none THEN format('no values are on %s keys: they were counted for this report', c.state) ELSE h.detail END AS detail,
                           CASE WHEN NOT c.is_none THEN h.hint END AS hint
                      FROM fieldcrypt.health() WITH ORDINALITY AS h("check", status, detail, hint, place)
                     CROSS JOIN LATERAL (
                        SELECT s.state, is_counted AND h.status <> 'ok' AND h."check" IN ('compromised_keys', 'suspended_keys')
                                        AND h.detail LIKE 'values may be%' AND coalesce((counted #>> ARRAY['totals', s.state])::bigint, 0) = 0 AS is_none
                          FROM (SELECT replace(h."check", '_keys', '') AS state) AS s) AS c) AS h);
EXCEPTION WHEN OTHERS THEN
    RETURN jsonb_build_object('status', 'failed', 'problem', format('%s (%s)', SQLERRM, SQLSTATE), 'checks', jsonb '[]');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_health(text, jsonb) IS 'what health() says, and the report''s own counts instead of its guesses, or why it could not; granted to nobody';

CREATE FUNCTION fieldcrypt.compliance_report(
        tenant text DEFAULT NULL, from_time timestamptz DEFAULT NULL, to_time timestamptz DEFAULT NULL,
        verify boolean DEFAULT true, count_values boolean DEFAULT true) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    -- Nobody waits long for what a check or a count can't read now: it says so.
    SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET jit = off SET lock_timeout = '5s'
AS $$
#variable_conflict use_variable
DECLARE
    most CONSTANT integer := 50;
    made_at timestamptz := clock_timestamp();
    until timestamptz := coalesce(to_time, made_at);
    since timestamptz;
    figures jsonb;
BEGIN
    IF verify IS NULL OR count_values IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'verify and count_values must not be NULL';
    END IF;
    IF NOT isfinite(until) OR NOT isfinite(coalesce(from_time, until)) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'the period of a report must not be infinite',
            HINT = 'Leave from_time or to_time out: that is the last 365 days.';
    END IF;
    since := coalesce(from_time, until - interval '365 days');
    IF since >= until OR since < until - interval '100 years' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'the period of a report must begin before it ends, and be at most 100 years long',
            HINT = format('This one is from %s to %s.', since, until);
    END IF;
    IF tenant IS NOT NULL AND NOT EXISTS (SELECT FROM fieldcrypt.encryption_keys AS k WHERE k.tenant = tenant AND k.purpose = 'field') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('tenant "%s" has no keys in this database', tenant),
            HINT = 'Leave the tenant out for a report about all.';
    END IF;
    figures := jsonb_build_object(
        'cryptography', fieldcrypt_internal.report_cryptography(),
        'keys', fieldcrypt_internal.report_keys(tenant, since, until, most),
        'master_keys', fieldcrypt_internal.report_master_keys(tenant, since, until, most),
        'rotation', fieldcrypt_internal.report_rotation(tenant, since, until, most),
        'reencryption', fieldcrypt_internal.report_reencryption(tenant, count_values, most),
        'destruction', fieldcrypt_internal.report_destruction(tenant, since, until, most),
        'access', fieldcrypt_internal.report_access(since, until, most),
        'use', fieldcrypt_internal.report_use(tenant, since, until, most),
        'approvals', fieldcrypt_internal.report_approvals(tenant, since, until, most),
        'exports', fieldcrypt_internal.report_exports(since, until, most),
        'audit_log', fieldcrypt_internal.report_log(tenant, since, until, most),
        'verification', fieldcrypt_internal.report_verification(tenant, from_time, to_time, since, until, verify, most));
    figures := figures || jsonb_build_object('health', fieldcrypt_internal.report_health(tenant, figures -> 'reencryption'));
    RETURN jsonb_build_object(
            'format', 'pg_fieldcrypt compliance report',
            'version', 1,
            'generated', jsonb_build_object(
                'at', fieldcrypt_internal.utc_text(made_at), 'by', session_user, 'role', fieldcrypt_internal.outer_role(),
                'database', current_database(), 'system_identifier', (SELECT h.system_identifier::text FROM fieldcrypt_internal.origin_here() AS h),
                'is_standby', pg_is_in_recovery(),
                'extension_version', (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'pg_fieldcrypt'),
                'server_version', current_setting('server_version')),
            'period', jsonb_build_object('from', fieldcrypt_internal.utc_text(since), 'to', fieldcrypt_internal.utc_text(until)),
            'scope', jsonb_build_object('tenant', tenant),
            'rows_listed_at_most', most,
            'requirements', (SELECT jsonb_agg(jsonb_build_object('standard', r.standard, 'section', r.section, 'title', r.title,
                                        'figures', to_jsonb(r.figures), 'note', r.note)) FROM fieldcrypt_internal.report_requirements() AS r),
            'limits', to_jsonb(fieldcrypt_internal.report_limits()))
        || (SELECT jsonb_object_agg(f.name, f.contents || jsonb_build_object('supports', (
                       SELECT coalesce(jsonb_agg(r.standard || ' ' || r.section), '[]')
                         FROM fieldcrypt_internal.report_requirements() AS r WHERE f.name = ANY (r.figures))))
              FROM jsonb_each(figures) AS f(name, contents));
END
$$;
COMMENT ON FUNCTION fieldcrypt.compliance_report(text, timestamptz, timestamptz, boolean, boolean) IS
    'what is known of keys, rotation, access, use and the audit log, as one document: of a tenant or of all, for a period (the last 365 days); verify: runs verify_audit_log() over the times given; count_values: looks which values are on old keys. See docs/compliance-report.md';

CREATE FUNCTION fieldcrypt_internal.report_page(report jsonb) RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_report_page';
COMMENT ON FUNCTION fieldcrypt_internal.report_page(jsonb) IS 'a compliance report as a page of HTML, in ASCII; granted to nobody';

CREATE FUNCTION fieldcrypt.compliance_report_html(
        tenant text DEFAULT NULL, from_time timestamptz DEFAULT NULL, to_time timestamptz DEFAULT NULL,
        verify boolean DEFAULT true, count_values boolean DEFAULT true) RETURNS text
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT fieldcrypt_internal.report_page(fieldcrypt.compliance_report($1, $2, $3, $4, $5)) $$;
COMMENT ON FUNCTION fieldcrypt.compliance_report_html(text, timestamptz, timestamptz, boolean, boolean) IS
    'compliance_report() as one self-contained page: no script, no request, printable. psql -XAt -o report.html -c ''SELECT fieldcrypt.compliance_report_html()''';

-- sql/redaction.sql
-- Literals out of the server log.

CREATE FUNCTION fieldcrypt_internal.redaction_is_active() RETURNS boolean
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'fieldcrypt_redaction_is_active';
COMMENT ON FUNCTION fieldcrypt_internal.redaction_is_active() IS
    'whether literals are masked in the server log: the library is preloaded and fieldcrypt.redact_logs is not off';

-- sql/report_figures.sql
-- The figures of the compliance report: a function for each section, called by compliance_report only.
--
-- Lists are bounded, and beside each stands how many there are: {"total": n, "rows": [...]}. A section for a
-- tenant (not NULL) never names another one. Nothing here reads a wrapped key or a value.

-- How often what happened, over the period: one row for each day, week or month, also for those without.
CREATE FUNCTION fieldcrypt_internal.report_buckets(from_time timestamptz, to_time timestamptz, fineness integer)
    RETURNS TABLE (bucket text, starts timestamptz, ends timestamptz)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
    WITH unit AS (
        -- At most about 400 rows for years, and a hundred for what is drawn broad.
        SELECT CASE WHEN $2 - $1 <= interval '1 day' * (400 / $3) THEN 'day'
                    WHEN $2 - $1 <= interval '1 day' * (1600 / $3) THEN 'week'
                    ELSE 'month' END AS name
    )
    SELECT u.name, b.starts, b.starts + ('1 ' || u.name)::interval
      FROM unit AS u, generate_series(date_trunc(u.name, $1), $2, ('1 ' || u.name)::interval) AS b(starts)
     WHERE b.starts < $2
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_buckets(timestamptz, timestamptz, integer) IS
    'the days, weeks or months (UTC) that a period is drawn in; fineness: 1 for many, 4 for few; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_key_list(tenant text, states text[], most integer) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_build_object(
        'total', (SELECT count(*) FROM fieldcrypt.encryption_keys AS k WHERE k.state = ANY ($2) AND ($1 IS NULL OR k.tenant = $1 AND k.purpose = 'field')),
        'rows', coalesce((
            SELECT jsonb_agg(jsonb_build_object(
                       'key_id', k.key_id::text, 'tenant', k.tenant, 'purpose', k.purpose, 'version', k.version, 'state', k.state,
                       'created_at', fieldcrypt_internal.utc_text(k.created_at), 'deactivated_at', fieldcrypt_internal.utc_text(k.deactivated_at),
                       'destroyed_at', fieldcrypt_internal.utc_text(k.destroyed_at), 'destroy_after', fieldcrypt_internal.utc_text(k.destroy_after))
                   ORDER BY k.destroyed_at DESC NULLS LAST, k.created_at, k.key_id)
              FROM (SELECT k.* FROM fieldcrypt.encryption_keys AS k
                     WHERE k.state = ANY ($2) AND ($1 IS NULL OR k.tenant = $1 AND k.purpose = 'field')
                     ORDER BY k.destroyed_at DESC NULLS LAST, k.created_at, k.key_id LIMIT $3) AS k), '[]'))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_key_list(text, text[], integer) IS
    'keys in some states: destroyed ones the latest first, others the oldest; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_keys(tenant text, from_time timestamptz, to_time timestamptz, most integer) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH default_policy AS (
        SELECT coalesce((SELECT p.rotate_every FROM fieldcrypt.rotation_policies AS p WHERE p.tenant = ''), interval '90 days') AS rotate_every
    ), keys AS MATERIALIZED (
        SELECT k.key_id, k.tenant, k.purpose, k.version, k.state, k.algorithm, k.created_at, k.destroyed_at, k.destroy_after,
               greatest(EXTRACT(epoch FROM now() - k.created_at) / 86400, 0) AS age_days,
               coalesce(p.rotate_every, d.rotate_every) AS rotate_every,
               k.purpose = 'field' AND k.state = 'active' AND k.created_at <= now() - coalesce(p.rotate_every, d.rotate_every) AS is_overdue
          FROM fieldcrypt.encryption_keys AS k
         CROSS JOIN default_policy AS d
          LEFT JOIN fieldcrypt.rotation_policies AS p ON p.tenant = k.tenant AND k.purpose = 'field'
         WHERE $1 IS NULL OR k.tenant = $1 AND k.purpose = 'field'
    ), tenants AS MATERIALIZED (
        SELECT k.tenant, count(*) AS versions,
               count(*) FILTER (WHERE k.state = 'deactivated') AS deactivated, count(*) FILTER (WHERE k.state = 'suspended') AS suspended,
               count(*) FILTER (WHERE k.state = 'compromised') AS compromised, count(*) FILTER (WHERE k.state = 'destroyed') AS destroyed,
               min(k.created_at) FILTER (WHERE k.state = 'active') AS active_since
          FROM keys AS k WHERE k.purpose = 'field' GROUP BY k.tenant
    ), shown AS (
        SELECT t.*, a.key_id, a.version, a.age_days, a.rotate_every, a.is_overdue
          FROM (SELECT t.* FROM tenants AS t ORDER BY t.active_since, t.tenant LIMIT $4) AS t
          LEFT JOIN keys AS a ON a.tenant = t.tenant AND a.purpose = 'field' AND a.state = 'active'
    ), ages (place, from_days, to_days) AS (
        VALUES (1, 0, 30), (2, 30, 60), (3, 60, 90), (4, 90, 180), (5, 180, 365), (6, 365, NULL)
    )
    -- By state and age: keys of fields. The audit log's are in 'keys' and 'audit_keys' alone: no tenant has them.
    SELECT jsonb_build_object(
        'totals', (SELECT jsonb_build_object(
            'keys', count(*), 'field_keys', count(*) FILTER (WHERE k.purpose = 'field'), 'audit_keys', count(*) FILTER (WHERE k.purpose = 'audit'),
            'tenants', (SELECT count(*) FROM tenants),
            'tenants_without_active_key', (SELECT count(*) FROM tenants AS t WHERE t.active_since IS NULL),
            'tenants_shredded', (SELECT count(*) FROM tenants AS t WHERE t.destroyed = t.versions),
            'active', count(*) FILTER (WHERE k.purpose = 'field' AND k.state = 'active'), 'deactivated', count(*) FILTER (WHERE k.purpose = 'field' AND k.state = 'deactivated'),
            'suspended', count(*) FILTER (WHERE k.purpose = 'field' AND k.state = 'suspended'), 'compromised', count(*) FILTER (WHERE k.purpose = 'field' AND k.state = 'compromised'),
            'destroyed', count(*) FILTER (WHERE k.purpose = 'field' AND k.state = 'destroyed'),
            'destroyed_in_period', count(*) FILTER (WHERE k.destroyed_at >= $2 AND k.destroyed_at < $3),
            'destruction_scheduled', count(*) FILTER (WHERE k.destroy_after IS NOT NULL AND k.state <> 'destroyed'),
            'created_in_period', count(*) FILTER (WHERE k.created_at >= $2 AND k.created_at < $3),
            'overdue', count(*) FILTER (WHERE k.is_overdue)) FROM keys AS k),
        'algorithms', (SELECT coalesce(jsonb_agg(jsonb_build_object('algorithm', a.algorithm, 'keys', a.keys) ORDER BY a.algorithm), '[]')
                         FROM (SELECT k.algorithm, count(*) AS keys FROM keys AS k WHERE k.state <> 'destroyed' GROUP BY k.algorithm) AS a),
        'default_policy', (SELECT d.rotate_every::text FROM default_policy AS d),
        'own_policies', (SELECT count(*) FROM fieldcrypt.rotation_policies AS p WHERE p.tenant <> '' AND ($1 IS NULL OR p.tenant = $1)),
        'ages', (SELECT jsonb_agg(jsonb_build_object('from_days', a.from_days, 'to_days', a.to_days,
                     'keys', (SELECT count(*) FROM keys AS k WHERE k.purpose = 'field' AND k.state = 'active'
                                 AND k.age_days >= a.from_days AND (a.to_days IS NULL OR k.age_days < a.to_days)),
                     'overdue', (SELECT count(*) FROM keys AS k WHERE k.is_overdue
                                 AND k.age_days >= a.from_days AND (a.to_days IS NULL OR k.age_days < a.to_days))) ORDER BY a.place)
                   FROM ages AS a),
        'tenants', jsonb_build_object('total', (SELECT count(*) FROM tenants), 'rows', coalesce((
            SELECT jsonb_agg(jsonb_build_object(
                       'tenant', s.tenant, 'key_id', s.key_id::text, 'version', s.version, 'active_since', fieldcrypt_internal.utc_text(s.active_since),
                       'age_days', floor(s.age_days)::bigint, 'rotate_every', s.rotate_every::text, 'is_overdue', coalesce(s.is_overdue, false),
                       'versions', s.versions, 'deactivated', s.deactivated, 'suspended', s.suspended, 'compromised', s.compromised, 'destroyed', s.destroyed)
                   ORDER BY s.active_since, s.tenant)
              FROM shown AS s), '[]')),
        'attention', fieldcrypt_internal.report_key_list($1, '{suspended,compromised}', $4))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_keys(text, timestamptz, timestamptz, integer) IS
    'the inventory of keys as it is now: totals, ages, the tenants with the oldest keys; granted to nobody';

-- Events of the log as a bounded list, the latest first.
CREATE FUNCTION fieldcrypt_internal.report_events(
        events text[], tenant text, from_time timestamptz, to_time timestamptz, most integer) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH events AS MATERIALIZED (
        SELECT l.* FROM fieldcrypt.audit_log AS l
         WHERE l.at >= $3 AND l.at < $4 AND l.event = ANY ($1) AND ($2 IS NULL OR l.tenant = $2)
    )
    SELECT jsonb_build_object(
        'total', (SELECT count(*) FROM events),
        'rows', coalesce((
            SELECT jsonb_agg(jsonb_build_object(
                       'id', e.id::text, 'at', fieldcrypt_internal.utc_text(e.at), 'event', e.event, 'actor', e.actor, 'role', e.role,
                       'client_address', host(e.client_address), 'tenant', e.tenant, 'key_id', e.key_id::text,
                       'error_code', e.error_code, 'value_count', e.value_count, 'reason', e.reason) ORDER BY e.at DESC, e.id DESC)
              FROM (SELECT e.* FROM events AS e ORDER BY e.at DESC, e.id DESC LIMIT $5) AS e), '[]'))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_events(text[], text, timestamptz, timestamptz, integer) IS
    'events of the audit log in a period: how many, and the latest; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_master_keys(tenant text, from_time timestamptz, to_time timestamptz, most integer) RETURNS jsonb
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    WITH used AS (
        SELECT k.master_key_fingerprint AS fingerprint, count(*) AS keys
          FROM fieldcrypt.encryption_keys AS k
         WHERE k.wrapped_key IS NOT NULL AND ($1 IS NULL OR k.tenant = $1)
         GROUP BY k.master_key_fingerprint
    ), session AS MATERIALIZED (
        SELECT fieldcrypt_internal.loaded_master_keys()::jsonb AS loaded
    )
    SELECT jsonb_build_object(
        'source', (SELECT s.loaded ->> 'source' FROM session AS s),
        'keys', jsonb_build_object(
            'total', (SELECT count(*) FROM fieldcrypt.master_keys),
            'rows', coalesce((
                SELECT jsonb_agg(jsonb_build_object(
                           'fingerprint', encode(m.fingerprint, 'hex'), 'is_current', m.is_current,
                           'first_used_at', fieldcrypt_internal.utc_text(m.first_used_at), 'retired_at', fieldcrypt_internal.utc_text(m.retired_at),
                           'age_days', floor(EXTRACT(epoch FROM now() - m.first_used_at) / 86400)::bigint,
                           'is_loaded', (SELECT s.loaded -> 'fingerprints' ? encode(m.fingerprint, 'hex') FROM session AS s),
                           'wrapped_keys', coalesce(u.keys, 0)) ORDER BY m.is_current DESC, m.first_used_at DESC)
                  FROM (SELECT m.* FROM fieldcrypt.master_keys AS m ORDER BY m.is_current DESC, m.first_used_at DESC LIMIT $4) AS m
                  LEFT JOIN used AS u ON u.fingerprint = m.fingerprint), '[]')),
        'events', fieldcrypt_internal.report_events('{master_key_rotation_started,master_key_rotation_finished,master_key_failed}', NULL, $2, $3, $4))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_master_keys(text, timestamptz, timestamptz, integer) IS
    'the master keys by fingerprint, and their rotations; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_rotation(tenant text, from_time timestamptz, to_time timestamptz, most integer) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH happened AS MATERIALIZED (
        -- The log has them all, whatever made the new version; rotation_log has what rotate_keys did not achieve.
        SELECT l.at, l.tenant, true AS is_rotation FROM fieldcrypt.audit_log AS l
         WHERE l.at >= $2 AND l.at < $3 AND l.event = 'key_rotated' AND ($1 IS NULL OR l.tenant = $1)
        UNION ALL
        SELECT r.ended_at, r.tenant, false FROM fieldcrypt.rotation_log AS r
         WHERE r.ended_at >= $2 AND r.ended_at < $3 AND r.outcome = 'failed' AND ($1 IS NULL OR r.tenant = $1)
    ), buckets AS MATERIALIZED (
        SELECT b.* FROM fieldcrypt_internal.report_buckets($2, $3, 4) AS b
    ), placed AS (
        SELECT width_bucket(h.at, (SELECT array_agg(b.starts ORDER BY b.starts) FROM buckets AS b)) AS place,
               count(*) FILTER (WHERE h.is_rotation) AS rotated, count(*) FILTER (WHERE NOT h.is_rotation) AS failed
          FROM happened AS h GROUP BY 1
    ), runs AS (
        SELECT r.* FROM fieldcrypt.rotation_log AS r
         WHERE r.ended_at >= $2 AND r.ended_at < $3 AND ($1 IS NULL OR r.tenant = $1)
    )
    SELECT jsonb_build_object(
        'rotated', (SELECT count(*) FROM happened AS h WHERE h.is_rotation),
        'tenants', (SELECT count(DISTINCT h.tenant) FROM happened AS h WHERE h.is_rotation),
        'failed', (SELECT count(*) FROM happened AS h WHERE NOT h.is_rotation),
        'last_at', (SELECT fieldcrypt_internal.utc_text(max(h.at)) FROM happened AS h WHERE h.is_rotation),
        'bucket', (SELECT min(b.bucket) FROM buckets AS b),
        'over_time', (SELECT coalesce(jsonb_agg(jsonb_build_object('from', to_char(b.starts AT TIME ZONE 'UTC', 'YYYY-MM-DD'),
                                 'rotated', coalesce(p.rotated, 0), 'failed', coalesce(p.failed, 0)) ORDER BY b.starts), '[]')
                        FROM (SELECT b.starts, row_number() OVER (ORDER BY b.starts) AS place FROM buckets AS b) AS b
                        LEFT JOIN placed AS p ON p.place = b.place),
        'log', jsonb_build_object(
            'total', (SELECT count(*) FROM runs),
            'rows', coalesce((
                SELECT jsonb_agg(jsonb_build_object(
                           'at', fieldcrypt_internal.utc_text(r.ended_at), 'tenant', r.tenant, 'outcome', r.outcome, 'old_key_id', r.old_key_id::text,
                           'new_key_id', r.new_key_id::text, 'actor', r.actor, 'role', r.role, 'reason', r.reason,
                           'error_code', r.error_code, 'error', r.error) ORDER BY r.ended_at DESC, r.id DESC)
                  FROM (SELECT r.* FROM runs AS r ORDER BY r.ended_at DESC, r.id DESC LIMIT $4) AS r), '[]')))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_rotation(text, timestamptz, timestamptz, integer) IS
    'rotations of encryption keys in a period; granted to nobody';

-- Counting reads the tables of others: a lock, a policy or a missing right there must not cost the report. What
-- could not be counted is said to be so.
CREATE FUNCTION fieldcrypt_internal.report_usage(count_values boolean, OUT rows jsonb, OUT problem text)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT count_values THEN
        problem := 'not counted: count_values was false';
        RETURN;
    END IF;
    SELECT coalesce(jsonb_agg(jsonb_build_object('key_id', u.key_id::text, 'table', u.table_name, 'column', u.column_name,
               'values', u."values", 'is_exact', u.is_exact)), '[]')
      INTO rows
      FROM fieldcrypt.key_usage() AS u WHERE u.table_name IS NOT NULL;
EXCEPTION WHEN OTHERS THEN
    rows := NULL;
    problem := format('not counted: %s (%s)', SQLERRM, SQLSTATE);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_usage(boolean) IS 'key_usage(), or why it could not be had; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_reencryption(tenant text, count_values boolean, most integer) RETURNS jsonb
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET jit = off
AS $$
    WITH counting AS MATERIALIZED (
        SELECT u.rows, u.problem FROM fieldcrypt_internal.report_usage($2) AS u
    ), used AS MATERIALIZED (
        SELECT u."table", u."column", u.values, u.is_exact,
               CASE WHEN k.key_id IS NULL THEN 'unknown' ELSE k.state END AS state
          FROM counting AS c, jsonb_to_recordset(c.rows) AS u(key_id text, "table" text, "column" text, "values" bigint, is_exact boolean)
          LEFT JOIN fieldcrypt.encryption_keys AS k ON k.key_id = u.key_id::bigint
         WHERE $1 IS NULL OR k.tenant = $1
    ), columns AS MATERIALIZED (
        -- regclass of key_usage leaves pg_temp and pg_catalog out, format does not.
        SELECT c.relation::regclass::text AS "table", c.column_name AS "column", c.table_name, c.is_readable, c.problem,
               t.relkind = 'm' OR c.is_readable AND c.problem IS NOT NULL AS is_left_out
          FROM fieldcrypt_internal.encrypted_columns() AS c JOIN pg_class AS t ON t.oid = c.relation
    ), coverage AS MATERIALIZED (
        SELECT c.table_name, c."column", c.problem,
               CASE WHEN s.problem IS NOT NULL THEN s.problem WHEN NOT c.is_readable THEN 'not counted: ' || c.problem END AS not_counted,
               coalesce(sum(u.values) FILTER (WHERE u.state = 'active'), 0) AS active,
               coalesce(sum(u.values) FILTER (WHERE u.state = 'deactivated'), 0) AS deactivated,
               coalesce(sum(u.values) FILTER (WHERE u.state = 'suspended'), 0) AS suspended,
               coalesce(sum(u.values) FILTER (WHERE u.state = 'compromised'), 0) AS compromised,
               coalesce(sum(u.values) FILTER (WHERE u.state = 'destroyed'), 0) AS destroyed,
               coalesce(sum(u.values) FILTER (WHERE u.state = 'unknown'), 0) AS unknown,
               coalesce(bool_and(u.is_exact), true) AS is_exact
          FROM counting AS s CROSS JOIN columns AS c
          LEFT JOIN used AS u ON u."table" = c."table" AND u."column" = c."column"
         GROUP BY c.table_name, c."column", c.problem, s.problem, c.is_readable
    ), ranked AS (
        SELECT c.*, c.deactivated + c.suspended + c.compromised + c.destroyed + c.unknown AS not_on_active FROM coverage AS c
    )
    SELECT jsonb_build_object(
        'problem', (SELECT s.problem FROM counting AS s),
        'totals', (SELECT jsonb_build_object(
            'columns', count(*), 'columns_not_counted', count(*) FILTER (WHERE r.not_counted IS NOT NULL),
            'active', sum(r.active) FILTER (WHERE r.not_counted IS NULL), 'deactivated', sum(r.deactivated) FILTER (WHERE r.not_counted IS NULL),
            'suspended', sum(r.suspended) FILTER (WHERE r.not_counted IS NULL), 'compromised', sum(r.compromised) FILTER (WHERE r.not_counted IS NULL),
            'destroyed', sum(r.destroyed) FILTER (WHERE r.not_counted IS NULL), 'unknown', sum(r.unknown) FILTER (WHERE r.not_counted IS NULL),
            'is_exact', coalesce(bool_and(r.is_exact) FILTER (WHERE r.not_counted IS NULL), true)) FROM ranked AS r),
        'columns', jsonb_build_object(
            'total', (SELECT count(*) FROM ranked),
            'rows', coalesce((
                SELECT jsonb_agg(jsonb_build_object(
                           'table', r.table_name, 'column', r."column", 'not_counted', r.not_counted, 'note', r.problem, 'is_exact', r.is_exact)
                       || CASE WHEN r.not_counted IS NULL THEN jsonb_build_object(
                           'active', r.active, 'deactivated', r.deactivated, 'suspended', r.suspended, 'compromised', r.compromised,
                           'destroyed', r.destroyed, 'unknown', r.unknown) ELSE '{}' END
                       ORDER BY r.not_counted IS NULL, r.not_on_active DESC, r.table_name, r."column")
                  FROM (SELECT r.* FROM ranked AS r
                         ORDER BY r.not_counted IS NULL, r.not_on_active DESC, r.table_name, r."column" LIMIT $3) AS r), '[]')),
        'runs', jsonb_build_object(
            'total', (SELECT count(*) FROM fieldcrypt.reencryption_progress),
            'rows', coalesce((
                SELECT jsonb_agg(jsonb_build_object(
                           'table', p.table_name, 'state', p.state,
                           -- Of what has come to its end each row was seen; of others the total is what statistics say.
                           'rows_total', CASE WHEN p.state IN ('done', 'incomplete') THEN p.rows_done ELSE p.rows_total END,
                           'rows_total_is_exact', p.state IN ('done', 'incomplete'), 'rows_done', p.rows_done,
                           'rows_moved', p.rows_moved, 'rows_failed', p.rows_failed, 'started_at', fieldcrypt_internal.utc_text(p.started_at),
                           'finished_at', fieldcrypt_internal.utc_text(p.finished_at), 'error_code', p.error_code,
                           'error', CASE WHEN $1 IS NULL THEN p.error END) ORDER BY p.started_at DESC, p.table_name)
                  FROM (SELECT p.* FROM fieldcrypt.reencryption_progress AS p ORDER BY p.started_at DESC, p.table_name LIMIT $3) AS p), '[]')),
        'failures', (SELECT count(*) FROM fieldcrypt.reencryption_failures AS f
                      WHERE $1 IS NULL OR f.key_id IN (SELECT k.key_id FROM fieldcrypt.encryption_keys AS k WHERE k.tenant = $1)))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_reencryption(text, boolean, integer) IS
    'which values are on which keys, as far as it was counted, and the runs of re-encryption; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_destruction(tenant text, from_time timestamptz, to_time timestamptz, most integer) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_build_object(
        'destroyed', fieldcrypt_internal.report_key_list($1, '{destroyed}', $4),
        'scheduled', jsonb_build_object(
            'total', (SELECT count(*) FROM fieldcrypt.encryption_keys AS k
                       WHERE k.destroy_after IS NOT NULL AND k.state <> 'destroyed' AND ($1 IS NULL OR k.tenant = $1 AND k.purpose = 'field')),
            'rows', coalesce((
                SELECT jsonb_agg(jsonb_build_object('key_id', k.key_id::text, 'tenant', k.tenant, 'purpose', k.purpose, 'version', k.version,
                           'state', k.state, 'created_at', fieldcrypt_internal.utc_text(k.created_at), 'destroy_after', fieldcrypt_internal.utc_text(k.destroy_after))
                       ORDER BY k.destroy_after, k.key_id)
                  FROM (SELECT k.* FROM fieldcrypt.encryption_keys AS k
                         WHERE k.destroy_after IS NOT NULL AND k.state <> 'destroyed' AND ($1 IS NULL OR k.tenant = $1 AND k.purpose = 'field')
                         ORDER BY k.destroy_after, k.key_id LIMIT $4) AS k), '[]')),
        'events', fieldcrypt_internal.report_events('{tenant_shredded,key_destroyed,key_destruction_scheduled,key_destruction_cancelled}', $1, $2, $3, $4))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_destruction(text, timestamptz, timestamptz, integer) IS
    'keys destroyed and to be destroyed; granted to nobody';

-- sql/report_audit.sql
-- The figures of the compliance report that tell of people and of the log: who may do what, who did, and
-- whether the record of it holds. As in report_figures.sql: bounded lists, one tenant's report names no other.

CREATE FUNCTION fieldcrypt_internal.report_access(from_time timestamptz, to_time timestamptz, most integer) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
    WITH schemas AS MATERIALIZED (
        SELECT n.oid, n.nspacl FROM pg_namespace AS n WHERE n.nspname IN ('fieldcrypt', 'fieldcrypt_internal')
    ), owner AS (
        SELECT n.nspowner AS oid FROM pg_namespace AS n WHERE n.nspname = 'fieldcrypt'
    ), held AS MATERIALIZED (
        SELECT g.grantee, fieldcrypt_internal.held_privileges(g.grantee) AS privileges
          FROM (SELECT DISTINCT a.grantee FROM schemas AS s, aclexplode(s.nspacl) AS a
                UNION
                SELECT a.grantee FROM pg_proc AS p, aclexplode(p.proacl) AS a WHERE p.pronamespace IN (SELECT s.oid FROM schemas AS s)
                UNION
                SELECT a.grantee FROM pg_class AS c, aclexplode(c.relacl) AS a WHERE c.relnamespace IN (SELECT s.oid FROM schemas AS s)
                UNION
                SELECT a.grantee FROM pg_class AS c JOIN pg_attribute AS t ON t.attrelid = c.oid, aclexplode(t.attacl) AS a
                 WHERE c.relnamespace IN (SELECT s.oid FROM schemas AS s)) AS g
         WHERE g.grantee <> (SELECT o.oid FROM owner AS o)
    ), granted (grantee, class, object, rights, name) AS (
        SELECT a.grantee, 'pg_proc'::regclass, p.oid, a.privilege_type, p.oid::regprocedure::text
          FROM pg_proc AS p, aclexplode(p.proacl) AS a WHERE p.pronamespace IN (SELECT s.oid FROM schemas AS s)
        UNION ALL
        SELECT a.grantee, 'pg_class'::regclass, c.oid, a.privilege_type, c.oid::regclass::text
          FROM pg_class AS c, aclexplode(c.relacl) AS a WHERE c.relnamespace IN (SELECT s.oid FROM schemas AS s)
        UNION ALL
        SELECT a.grantee, 'pg_attribute'::regclass, c.oid, a.privilege_type, format('%s (%I)', c.oid::regclass, t.attname)
          FROM pg_class AS c JOIN pg_attribute AS t ON t.attrelid = c.oid, aclexplode(t.attacl) AS a
         WHERE c.relnamespace IN (SELECT s.oid FROM schemas AS s)
           AND NOT (c.oid = 'fieldcrypt.encryption_keys'::regclass AND t.attname <> 'wrapped_key' AND a.privilege_type = 'SELECT')
    ), objects AS MATERIALIZED (
        -- One look-up of each name, whatever the number of roles.
        SELECT u.name, o.rights, CASE WHEN o.object ~ '^(FUNCTION|PROCEDURE) ' THEN to_regprocedure(regexp_replace(o.object, '^[A-Z]+ ', ''))::oid
                    WHEN o.object ~ '^TABLE ' THEN to_regclass(substr(o.object, 7))::oid END AS object
          FROM unnest('{encrypt,decrypt,reencrypt,manage,audit,backup,value}'::text[]) AS u(name), fieldcrypt_internal.privilege_objects(u.name) AS o
    ), others AS (
        SELECT g.grantee, array_agg(g.rights || ' ' || g.name ORDER BY g.name, g.rights) AS rights
          FROM granted AS g JOIN held AS h ON h.grantee = g.grantee
         WHERE NOT EXISTS (SELECT FROM objects AS o
                            WHERE o.object = g.object AND o.rights = g.rights AND g.class <> 'pg_attribute'::regclass
                              AND (o.name = ANY (h.privileges) OR o.name = 'value' AND h.privileges && '{encrypt,decrypt,reencrypt,manage}'))
         GROUP BY g.grantee
    ), held_by AS MATERIALIZED (
        SELECT h.grantee AS oid, h.privileges, NULL::oid AS through, o.rights
          FROM held AS h LEFT JOIN others AS o ON o.grantee = h.grantee
         WHERE h.privileges <> '{}' OR o.rights IS NOT NULL
        UNION ALL
        SELECT r.oid, h.privileges, h.grantee, NULL
          FROM pg_roles AS r JOIN held AS h ON h.grantee <> r.oid AND h.grantee <> 0 AND h.privileges <> '{}'
         WHERE NOT r.rolsuper AND pg_has_role(r.oid, h.grantee, 'MEMBER')
    ), roles AS MATERIALIZED (
        SELECT b.oid, CASE WHEN b.oid = 0 THEN 'PUBLIC' ELSE r.rolname END AS name, coalesce(r.rolcanlogin, true) AS can_login,
               ARRAY(SELECT DISTINCT p FROM held_by AS d, unnest(d.privileges) AS p WHERE d.oid = b.oid AND d.through IS NULL ORDER BY p) AS granted,
               ARRAY(SELECT DISTINCT p FROM held_by AS d, unnest(d.privileges) AS p WHERE d.oid = b.oid ORDER BY p) AS effective,
               ARRAY(SELECT g.rolname::text FROM held_by AS d JOIN pg_roles AS g ON g.oid = d.through WHERE d.oid = b.oid ORDER BY 1 LIMIT 20) AS through,
               coalesce((SELECT d.rights FROM held_by AS d WHERE d.oid = b.oid AND d.rights IS NOT NULL), '{}') AS other_rights
          FROM (SELECT DISTINCT b.oid FROM held_by AS b) AS b LEFT JOIN pg_roles AS r ON r.oid = b.oid
    ), reaches AS MATERIALIZED (
        SELECT r.rolname AS name, r.rolcanlogin AS can_login, r.rolsuper AS is_superuser, array_remove(ARRAY[
                   CASE WHEN r.rolsuper THEN 'superuser' END,
                   CASE WHEN r.oid = (SELECT o.oid FROM owner AS o) THEN 'owner of the extension'
                        WHEN NOT r.rolsuper AND pg_has_role(r.oid, (SELECT o.oid FROM owner AS o), 'MEMBER') THEN 'member of the extension''s owner' END,
                   CASE WHEN NOT r.rolsuper THEN (
                       SELECT 'member of superuser ' || min(quote_ident(p.rolname)) FROM pg_roles AS p
                        WHERE p.rolsuper AND p.oid <> (SELECT o.oid FROM owner AS o) AND pg_has_role(r.oid, p.oid, 'MEMBER')) END,
                   CASE WHEN r.rolreplication AND NOT r.rolsuper THEN 'REPLICATION' END,
                   CASE WHEN r.rolcreaterole AND NOT r.rolsuper THEN 'CREATEROLE' END]
               || CASE WHEN r.rolsuper THEN '{}' ELSE ARRAY(
                   SELECT p.rolname::text FROM pg_roles AS p
                    WHERE p.rolname IN ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program', 'pg_read_all_data', 'pg_write_all_data')
                      AND pg_has_role(r.oid, p.oid, 'MEMBER') ORDER BY 1) END, NULL) AS why
          FROM pg_roles AS r WHERE r.rolname !~ '^pg_'
    )
    SELECT jsonb_build_object(
        'owner', (SELECT r.rolname FROM owner AS o JOIN pg_roles AS r ON r.oid = o.oid),
        'roles', jsonb_build_object(
            'total', (SELECT count(*) FROM roles),
            'rows', coalesce((
                SELECT jsonb_agg(jsonb_build_object('role', r.name, 'can_login', r.can_login, 'privileges', to_jsonb(r.effective), 'granted', to_jsonb(r.granted),
                           'through', to_jsonb(r.through), 'other_rights', to_jsonb(r.other_rights[1:20]),
                           'other_rights_total', cardinality(r.other_rights)) ORDER BY r.oid <> 0, cardinality(r.effective) DESC, r.name)
                  FROM (SELECT r.* FROM roles AS r ORDER BY r.oid <> 0, cardinality(r.effective) DESC, r.name LIMIT $3) AS r), '[]')),
        'counts', (SELECT jsonb_object_agg(u.privilege, (SELECT count(*) FROM roles AS r WHERE u.privilege = ANY (r.effective)))
                     FROM unnest('{encrypt,decrypt,reencrypt,manage,audit,backup}'::text[]) AS u(privilege)),
        'superusers', (SELECT count(*) FROM reaches AS s WHERE s.is_superuser),
        'powerful', jsonb_build_object(
            'total', (SELECT count(*) FROM reaches AS s WHERE s.why <> '{}'),
            'rows', coalesce((
                SELECT jsonb_agg(jsonb_build_object('role', s.name, 'can_login', s.can_login, 'why', to_jsonb(s.why)) ORDER BY s.is_superuser DESC, s.name)
                  FROM (SELECT s.* FROM reaches AS s WHERE s.why <> '{}' ORDER BY s.is_superuser DESC, s.name LIMIT $3) AS s), '[]')),
        'changes', fieldcrypt_internal.report_events('{access_granted,access_revoked}', NULL, $1, $2, $3))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_access(timestamptz, timestamptz, integer) IS
    'which roles hold which privileges now, also through others, who is above them, and what was changed; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_use(tenant text, from_time timestamptz, to_time timestamptz, most integer) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
    WITH log AS MATERIALIZED (
        SELECT l.at, l.event, l.actor, l.role, l.tenant, l.error_code, coalesce(l.value_count, 1) AS times
          FROM fieldcrypt.audit_log AS l
         WHERE l.at >= $2 AND l.at < $3 AND l.event IN ('values_decrypted', 'decrypt_failed', 'call_refused', 'key_refused', 'approval_refused')
           AND ($1 IS NULL OR l.tenant = $1)
    ), buckets AS MATERIALIZED (
        SELECT b.* FROM fieldcrypt_internal.report_buckets($2, $3, 1) AS b
    ), placed AS (
        SELECT width_bucket(l.at, (SELECT array_agg(b.starts ORDER BY b.starts) FROM buckets AS b)) AS place,
               sum(l.times) FILTER (WHERE l.event = 'values_decrypted') AS decrypted,
               sum(l.times) FILTER (WHERE l.event = 'decrypt_failed') AS failed,
               sum(l.times) FILTER (WHERE l.event IN ('call_refused', 'key_refused', 'approval_refused')) AS refused
          FROM log AS l GROUP BY 1
    ), by_role AS MATERIALIZED (
        SELECT l.role, l.actor, count(DISTINCT l.tenant) AS tenants,
               coalesce(sum(l.times) FILTER (WHERE l.event = 'values_decrypted'), 0) AS decrypted,
               coalesce(sum(l.times) FILTER (WHERE l.event = 'decrypt_failed'), 0) AS failed,
               coalesce(sum(l.times) FILTER (WHERE l.event IN ('call_refused', 'key_refused', 'approval_refused')), 0) AS refused, max(l.at) AS last_at
          FROM log AS l GROUP BY l.role, l.actor
    ), by_tenant AS MATERIALIZED (
        SELECT l.tenant, count(DISTINCT l.role) AS roles,
               coalesce(sum(l.times) FILTER (WHERE l.event = 'values_decrypted'), 0) AS decrypted,
               coalesce(sum(l.times) FILTER (WHERE l.event = 'decrypt_failed'), 0) AS failed,
               coalesce(sum(l.times) FILTER (WHERE l.event IN ('call_refused', 'key_refused', 'approval_refused')), 0) AS refused, max(l.at) AS last_at
          FROM log AS l GROUP BY l.tenant
    ), by_code AS MATERIALIZED (
        SELECT l.event, l.error_code, sum(l.times) AS times, max(l.at) AS last_at
          FROM log AS l WHERE l.event <> 'values_decrypted' GROUP BY l.event, l.error_code
    )
    SELECT jsonb_build_object(
        -- Of this session; what others had, and when, is not known.
        'audit_decrypt', current_setting('fieldcrypt.audit_decrypt', true),
        'decrypted', (SELECT coalesce(sum(l.times), 0) FROM log AS l WHERE l.event = 'values_decrypted'),
        'decrypt_records', (SELECT count(*) FROM log AS l WHERE l.event = 'values_decrypted'),
        'failed', (SELECT coalesce(sum(l.times), 0) FROM log AS l WHERE l.event = 'decrypt_failed'),
        'refused', (SELECT coalesce(sum(l.times), 0) FROM log AS l WHERE l.event IN ('call_refused', 'key_refused', 'approval_refused')),
        'bucket', (SELECT min(b.bucket) FROM buckets AS b),
        'over_time', (SELECT coalesce(jsonb_agg(jsonb_build_object('from', to_char(b.starts AT TIME ZONE 'UTC', 'YYYY-MM-DD'),
                                 'decrypted', coalesce(p.decrypted, 0), 'failed', coalesce(p.failed, 0), 'refused', coalesce(p.refused, 0)) ORDER BY b.starts), '[]')
                        FROM (SELECT b.starts, row_number() OVER (ORDER BY b.starts) AS place FROM buckets AS b) AS b
                        LEFT JOIN placed AS p ON p.place = b.place),
        'by_role', jsonb_build_object('total', (SELECT count(*) FROM by_role), 'rows', coalesce((
            SELECT jsonb_agg(jsonb_build_object('role', r.role, 'actor', r.actor, 'tenants', r.tenants, 'decrypted', r.decrypted, 'failed', r.failed,
                       'refused', r.refused, 'last_at', fieldcrypt_internal.utc_text(r.last_at)) ORDER BY r.decrypted DESC, r.failed DESC, r.refused DESC, r.role, r.actor)
              FROM (SELECT r.* FROM by_role AS r ORDER BY r.decrypted DESC, r.failed DESC, r.refused DESC, r.role, r.actor LIMIT $4) AS r), '[]')),
        'by_tenant', jsonb_build_object('total', (SELECT count(*) FROM by_tenant), 'rows', coalesce((
            SELECT jsonb_agg(jsonb_build_object('tenant', t.tenant, 'roles', t.roles, 'decrypted', t.decrypted, 'failed', t.failed,
                       'refused', t.refused, 'last_at', fieldcrypt_internal.utc_text(t.last_at)) ORDER BY t.decrypted DESC, t.failed DESC, t.refused DESC, t.tenant)
              FROM (SELECT t.* FROM by_tenant AS t ORDER BY t.decrypted DESC, t.failed DESC, t.refused DESC, t.tenant LIMIT $4) AS t), '[]')),
        'by_code', jsonb_build_object('total', (SELECT count(*) FROM by_code), 'rows', coalesce((
            SELECT jsonb_agg(jsonb_build_object('event', c.event, 'error_code', c.error_code, 'times', c.times, 'last_at', fieldcrypt_internal.utc_text(c.last_at))
                       ORDER BY c.times DESC, c.event, c.error_code)
              FROM (SELECT c.* FROM by_code AS c ORDER BY c.times DESC, c.event, c.error_code LIMIT $4) AS c), '[]')),
        'refusals', fieldcrypt_internal.report_events('{decrypt_failed,call_refused,key_refused,approval_refused}', $1, $2, $3, $4))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_use(text, timestamptz, timestamptz, integer) IS
    'use of keys by role and tenant, failures and refusals, as far as the audit log has them; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_approvals(tenant text, from_time timestamptz, to_time timestamptz, most integer) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH open AS (
        SELECT a.* FROM fieldcrypt.approvals AS a
         WHERE a.used_by IS NULL AND a.withdrawn_by IS NULL AND a.expires_at > clock_timestamp()
           AND ($1 IS NULL OR a.operation = 'shred_tenant' AND a.subject = $1
                OR a.operation = 'destroy_key' AND a.subject IN (SELECT k.key_id::text FROM fieldcrypt.encryption_keys AS k WHERE k.tenant = $1))
    )
    SELECT jsonb_build_object(
        'required_for', (SELECT coalesce(jsonb_agg(o.name), '[]')
                           FROM unnest('{rotate_master_key,shred_tenant,destroy_key}'::text[]) AS o(name) WHERE fieldcrypt_internal.needs_approval(o.name)),
        'counts', (SELECT jsonb_build_object(
                       'requested', count(*) FILTER (WHERE l.event = 'approval_requested'), 'given', count(*) FILTER (WHERE l.event = 'approval_given'),
                       'used', count(*) FILTER (WHERE l.event = 'approval_used'), 'withdrawn', count(*) FILTER (WHERE l.event = 'approval_withdrawn'),
                       'refused', count(*) FILTER (WHERE l.event = 'approval_refused'))
                     FROM fieldcrypt.audit_log AS l WHERE l.at >= $2 AND l.at < $3 AND l.event ~ '^approval_' AND ($1 IS NULL OR l.tenant = $1)),
        'open', jsonb_build_object('total', (SELECT count(*) FROM open), 'rows', coalesce((
            SELECT jsonb_agg(jsonb_build_object('id', o.id::text, 'operation', o.operation, 'subject', o.subject, 'reason', o.reason,
                       'requested_by', o.requested_by, 'requested_at', fieldcrypt_internal.utc_text(o.requested_at), 'expires_at', fieldcrypt_internal.utc_text(o.expires_at),
                       'approved_by', o.approved_by) ORDER BY o.id)
              FROM (SELECT o.* FROM open AS o ORDER BY o.id LIMIT $4) AS o), '[]')),
        'events', fieldcrypt_internal.report_events('{approval_requested,approval_given,approval_used,approval_withdrawn,approval_refused}', $1, $2, $3, $4))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_approvals(text, timestamptz, timestamptz, integer) IS
    'what needs two people, and what was asked and approved; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_exports(from_time timestamptz, to_time timestamptz, most integer) RETURNS jsonb
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_build_object(
        'last_export_at', (SELECT fieldcrypt_internal.utc_text(max(l.at)) FROM fieldcrypt.audit_log AS l WHERE l.event = 'keys_exported'),
        'exports', (SELECT count(*) FROM fieldcrypt.audit_log AS l WHERE l.event = 'keys_exported' AND l.at >= $1 AND l.at < $2),
        'imports', (SELECT count(*) FROM fieldcrypt.audit_log AS l WHERE l.event = 'keys_imported' AND l.at >= $1 AND l.at < $2),
        'states_confirmed', fieldcrypt_internal.states_confirmed(),
        'events', fieldcrypt_internal.report_events('{keys_exported,keys_imported,key_states_confirmed}', NULL, $1, $2, $3))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_exports(timestamptz, timestamptz, integer) IS
    'exports and imports of keys, and whether their states are confirmed; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_log(tenant text, from_time timestamptz, to_time timestamptz, most integer) RETURNS jsonb
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
    WITH queue AS MATERIALIZED (
        SELECT fieldcrypt_internal.audit_queue_status()::jsonb AS status
    )
    SELECT (SELECT jsonb_build_object(
                'rows', count(*), 'rows_in_period', count(*) FILTER (WHERE l.at >= $2 AND l.at < $3),
                'first_at', fieldcrypt_internal.utc_text(min(l.at)), 'last_at', fieldcrypt_internal.utc_text(max(l.at)),
                'sealed', count(l.leaf), 'unsealed', count(*) - count(l.leaf), 'unauthenticated', count(*) - count(l.mac))
            || CASE WHEN $1 IS NULL THEN jsonb_build_object(
                'gaps', count(*) FILTER (WHERE l.event = 'audit_gap'),
                'events_in_gaps', coalesce(sum(l.value_count) FILTER (WHERE l.event = 'audit_gap'), 0)) ELSE '{}' END
              FROM fieldcrypt.audit_log AS l WHERE $1 IS NULL OR l.tenant = $1)
        || (SELECT jsonb_build_object('is_preloaded', q.status -> 'is_preloaded',
                'last_problem', CASE WHEN $1 IS NULL THEN q.status -> 'last_problem' END) FROM queue AS q)
        || jsonb_build_object(
        'checkpoint', (SELECT jsonb_build_object('at', fieldcrypt_internal.utc_text(c.at), 'size', c.size, 'root', encode(c.root, 'hex'), 'note', regexp_replace(c.note, '[^\x01-\x7F]+', '\\u2014', 'g'), 'is_final', c.is_final)
                         FROM fieldcrypt.audit_checkpoints AS c ORDER BY c.id DESC LIMIT 1),
        'checkpoints', (SELECT count(*) FROM fieldcrypt.audit_checkpoints),
        'signers', (SELECT jsonb_build_object('total', count(*),
                        'unclean', count(*) FILTER (WHERE NOT s.is_clean AND s.id > (SELECT min(f.id) FROM fieldcrypt.audit_signers AS f)),
                        'first_public_key', (SELECT f.public_key FROM fieldcrypt.audit_signers AS f ORDER BY f.id LIMIT 1),
                        'last_public_key', (SELECT f.public_key FROM fieldcrypt.audit_signers AS f ORDER BY f.id DESC LIMIT 1)) FROM fieldcrypt.audit_signers AS s),
        'forks', (SELECT count(*) FROM fieldcrypt.audit_origins AS o WHERE o.old_log_id IS NOT NULL AND o.acknowledged_at IS NULL),
        'origins', jsonb_build_object('total', (SELECT count(*) FROM fieldcrypt.audit_origins), 'rows', coalesce((
            SELECT jsonb_agg(jsonb_build_object('log_id', encode(o.log_id, 'hex'), 'at', fieldcrypt_internal.utc_text(o.at), 'cause', o.cause, 'old_size', o.old_size,
                       'acknowledged_at', fieldcrypt_internal.utc_text(o.acknowledged_at), 'acknowledged_by', o.acknowledged_by,
                       'acknowledged_reason', CASE WHEN $1 IS NULL THEN o.acknowledged_reason END) ORDER BY o.id DESC)
              FROM (SELECT o.* FROM fieldcrypt.audit_origins AS o ORDER BY o.id DESC LIMIT $4) AS o), '[]')),
        'retired_rows', (SELECT coalesce(sum(r.row_count), 0) FROM fieldcrypt.audit_retirements AS r),
        'events', fieldcrypt_internal.report_events('{audit_gap,audit_started,audit_fork_acknowledged,audit_findings_acknowledged,audit_retired}', NULL, $2, $3, $4))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_log(text, timestamptz, timestamptz, integer) IS
    'how many rows the audit log has, how many are sealed, what is missing, and the last checkpoint; granted to nobody';

-- sql/audit_table.sql
-- The triggers that write the audit log for a user's tables.

CREATE FUNCTION fieldcrypt_internal.audit_change() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'fieldcrypt_audit_change';
COMMENT ON FUNCTION fieldcrypt_internal.audit_change() IS 'trigger: records who changed which row and which encrypted columns';

-- By what a trigger does: neither its name nor its function says that it records every change.
CREATE FUNCTION fieldcrypt_internal.audit_triggers()
    RETURNS TABLE (number oid, relation oid, name name, kind text, fires boolean, is_always boolean, is_own boolean, identity bytea)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT t.oid, t.tgrelid, t.tgname,
           CASE WHEN t.tgqual IS NULL AND t.tgattr::text = '' AND t.tgconstraint = 0 AND t.tgoldtable IS NULL AND t.tgnewtable IS NULL
                -- AFTER INSERT OR UPDATE OR DELETE FOR EACH ROW; AFTER TRUNCATE FOR EACH STATEMENT.
                THEN CASE t.tgtype WHEN 29 THEN 'change' WHEN 32 THEN 'truncate' END END,
           t.tgenabled IN ('O', 'A'), t.tgenabled = 'A', t.tgparentid = 0,
           CASE WHEN t.tgnargs = 1 THEN substring(t.tgargs FOR length(t.tgargs) - 1) END
      FROM pg_trigger AS t
     WHERE t.tgfoid = 'fieldcrypt_internal.audit_change()'::regprocedure
$$;
COMMENT ON FUNCTION fieldcrypt_internal.audit_triggers() IS
    'the triggers that write the log for tables: kind change or truncate, NULL for one that records only some changes; whether it fires, is a partition''s copy, and which key it was made for';

CREATE FUNCTION fieldcrypt_internal.has_audit_trigger(target regclass, kind text) RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT EXISTS (SELECT FROM fieldcrypt_internal.audit_triggers() AS t WHERE t.relation = $1 AND t.kind = $2 AND t.fires) $$;
COMMENT ON FUNCTION fieldcrypt_internal.has_audit_trigger(regclass, text) IS 'whether a table has a trigger of audit_table of this kind (change or truncate), enabled';

-- How rows of a table are told apart: as the log does it (src/audit/row_trigger.rs), which a test compares. No
-- lock is taken on the table, for health's sake.
CREATE FUNCTION fieldcrypt_internal.row_identity(relation oid) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY k.place)
      FROM (SELECT i.indrelid, i.indkey, i.indnkeyatts FROM pg_index AS i
             WHERE i.indrelid = $1 AND i.indislive
               AND (i.indisprimary
                    OR i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
                       AND NOT EXISTS (SELECT FROM unnest(i.indkey) WITH ORDINALITY AS u (number, place)
                                         JOIN pg_attribute AS n ON n.attrelid = i.indrelid AND n.attnum = u.number
                                        WHERE u.place <= i.indnkeyatts AND NOT n.attnotnull))
             ORDER BY i.indisprimary DESC, i.indisreplident DESC, i.indnkeyatts, i.indexrelid LIMIT 1) AS x,
           unnest(x.indkey) WITH ORDINALITY AS k (number, place)
      JOIN pg_attribute AS a ON a.attnum = k.number
     WHERE a.attrelid = x.indrelid AND k.place <= x.indnkeyatts
$$;
COMMENT ON FUNCTION fieldcrypt_internal.row_identity(oid) IS
    'the columns by which rows of a table are named in the audit log: its primary key, else a unique index over columns that are NOT NULL (that of its replica identity before others); NULL: none';

-- What keeps changes of audited tables out of the log, or their rows without a name there. Temporary tables
-- are their sessions' own.
CREATE FUNCTION fieldcrypt_internal.audited_table_problems() RETURNS TABLE (relation oid, problem text, remedy text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET standard_conforming_strings = on
AS $$
    WITH RECURSIVE triggers AS (
        SELECT t.* FROM fieldcrypt_internal.audit_triggers() AS t
          JOIN pg_class AS c ON c.oid = t.relation AND c.relpersistence <> 't'
    ), audited AS (
        SELECT t.relation, c.relkind, fieldcrypt_internal.row_identity(t.relation) AS identity,
               coalesce(bool_or(t.kind = 'change'), false) AS has_change,
               coalesce(bool_or(t.kind = 'truncate'), false) AS has_truncate,
               bool_and(t.fires) AS is_enabled,
               coalesce(bool_or(t.kind = 'change' AND t.is_always), false) AS is_always,
               coalesce(bool_or(t.kind = 'change' AND t.is_own), false) AS is_own,
               count(*) FILTER (WHERE t.kind = 'change' AND t.fires) > 1 OR count(*) FILTER (WHERE t.kind = 'truncate' AND t.fires) > 1 AS is_twice,
               min(t.name::text) FILTER (WHERE t.kind IS NULL) AS odd_one,
               min(t.name::text) FILTER (WHERE t.kind = 'change') AS change_name,
               max(encode(t.identity, 'hex')) FILTER (WHERE t.kind = 'change') AS recorded_identity
          FROM triggers AS t JOIN pg_class AS c ON c.oid = t.relation
         GROUP BY t.relation, c.relkind
    ), members (relation, is_partition) AS (
        SELECT i.inhrelid, c.relispartition FROM audited AS a
          JOIN pg_inherits AS i ON i.inhparent = a.relation JOIN pg_class AS c ON c.oid = i.inhrelid
         WHERE a.has_change
        UNION
        SELECT i.inhrelid, c.relispartition FROM members AS m
          JOIN pg_inherits AS i ON i.inhparent = m.relation JOIN pg_class AS c ON c.oid = i.inhrelid
    )
    SELECT a.relation, 'its triggers are disabled',
           format('SELECT fieldcrypt.audit_table(%L)', a.relation::regclass)
      FROM audited AS a WHERE NOT a.is_enabled
    UNION ALL
    SELECT a.relation, 'only TRUNCATE is recorded',
           format('SELECT fieldcrypt.audit_table(%L), or unaudit_table', a.relation::regclass)
      FROM audited AS a WHERE NOT a.has_change AND a.has_truncate
    UNION ALL
    SELECT a.relation, format('its trigger %I does not record every change', a.odd_one),
           format('SELECT fieldcrypt.audit_table(%L), which drops it', coalesce(pg_partition_root(a.relation::regclass), a.relation::regclass))
      FROM audited AS a WHERE a.odd_one IS NOT NULL
    UNION ALL
    SELECT a.relation, 'its changes are recorded twice',
           format('SELECT fieldcrypt.audit_table(%L)', coalesce(pg_partition_root(a.relation::regclass), a.relation::regclass))
      FROM audited AS a WHERE a.is_twice
    UNION ALL
    SELECT m.relation,
           CASE WHEN m.is_partition THEN 'TRUNCATE of this partition alone is not recorded' ELSE 'it inherits from an audited table, and is not audited' END,
           CASE WHEN m.is_partition THEN format('SELECT fieldcrypt.audit_table(%L)', pg_partition_root(m.relation::regclass))
                ELSE format('SELECT fieldcrypt.audit_table(%L)', m.relation::regclass) END
      FROM members AS m JOIN pg_class AS c ON c.oid = m.relation AND c.relkind IN ('r', 'p')
      LEFT JOIN audited AS a ON a.relation = m.relation
     WHERE CASE WHEN m.is_partition THEN NOT coalesce(a.has_truncate, false) ELSE NOT coalesce(a.has_change, false) END
    UNION ALL
    SELECT a.relation, 'its rows have no name in the log, since it has neither a primary key nor a unique index over columns that are NOT NULL',
           format('ALTER TABLE %s ADD PRIMARY KEY (...)', a.relation::regclass)
      FROM audited AS a WHERE a.has_change AND a.relkind = 'r' AND a.identity IS NULL
    UNION ALL
    SELECT a.relation,
           format('its rows were named by %s when it was audited, and are now by %s',
               coalesce(nullif(convert_from(decode(a.recorded_identity, 'hex'), getdatabaseencoding()), ''), 'nothing'), a.identity),
           format('SELECT fieldcrypt.audit_table(%L), which records the new key', a.relation::regclass)
      FROM audited AS a
     WHERE a.is_own AND a.identity IS NOT NULL
       AND a.recorded_identity IS DISTINCT FROM encode(convert_to(a.identity, getdatabaseencoding()), 'hex')
    UNION ALL
    -- It runs as a replica does.
    SELECT a.relation, 'what a subscription writes to it is not recorded',
           format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', a.relation::regclass, a.change_name)
      FROM audited AS a WHERE a.has_change AND NOT a.is_always AND EXISTS (SELECT FROM pg_subscription_rel AS s WHERE s.srrelid = a.relation)
    UNION ALL
    -- Who drops a trigger tells nobody.
    SELECT lost.relation, 'it was audited, and has no triggers of audit_table any more',
           format('SELECT fieldcrypt.audit_table(%L), or unaudit_table', lost.relation::regclass)
      FROM fieldcrypt_internal.tables_said_to_be_audited() AS lost (relation)
     WHERE NOT EXISTS (SELECT FROM audited AS a WHERE a.relation = lost.relation)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.audited_table_problems() IS
    'audited tables whose changes do not all get into the audit log, or not with a name for the row; granted to nobody';

-- By name, as the log has it: a table that was made anew under the name of another is not audited either.
CREATE FUNCTION fieldcrypt_internal.tables_said_to_be_audited() RETURNS SETOF oid
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
    SELECT c.oid
      FROM (SELECT DISTINCT ON (l.table_name) l.table_name, l.event
              FROM fieldcrypt.audit_log AS l WHERE l.event IN ('table_audited', 'table_detached', 'table_unaudited')
             ORDER BY l.table_name, l.id DESC) AS latest
      JOIN pg_class AS c ON c.oid = to_regclass(latest.table_name)
     WHERE latest.event <> 'table_unaudited' AND c.relpersistence <> 't'
$$;
COMMENT ON FUNCTION fieldcrypt_internal.tables_said_to_be_audited() IS
    'tables of which the last that the audit log tells is that they are audited, or were as partitions; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.is_said_to_be_audited(target regclass) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT $1::oid IN (SELECT fieldcrypt_internal.tables_said_to_be_audited()) $$;
COMMENT ON FUNCTION fieldcrypt_internal.is_said_to_be_audited(regclass) IS
    'whether the last that the audit log tells of a table is that it is audited';

CREATE FUNCTION fieldcrypt_internal.problems_of_audited_table(target regclass) RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('%s: %s', p.relation::regclass, p.problem) FROM fieldcrypt_internal.audited_table_problems() AS p
     WHERE p.relation = $1
        OR p.relation IN (SELECT t.relid FROM pg_partition_tree($1) AS t)
        OR p.relation IN (WITH RECURSIVE children AS (
                              SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = $1
                              UNION SELECT i.inhrelid FROM children AS c JOIN pg_inherits AS i ON i.inhparent = c.inhrelid)
                          SELECT c.inhrelid FROM children AS c)
     ORDER BY p.relation::regclass::text COLLATE "C", p.problem
$$;
COMMENT ON FUNCTION fieldcrypt_internal.problems_of_audited_table(regclass) IS 'what audit_table has to say of a table';

CREATE FUNCTION fieldcrypt_internal.remember_table_audit(target bigint, triggers bigint) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_remember_table_audit';
CREATE FUNCTION fieldcrypt_internal.remembered_table_audit(target bigint) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_remembered_table_audit';
COMMENT ON FUNCTION fieldcrypt_internal.remember_table_audit(bigint, bigint) IS
    'notes which triggers of audit_table a table has, until the end of the transaction; granted to nobody';
COMMENT ON FUNCTION fieldcrypt_internal.remembered_table_audit(bigint) IS 'what was noted of a table, once; -1 for nothing; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.audit_triggers_state(target regclass) RETURNS bigint
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce((hashtextextended(string_agg(format('%s %s', t.oid, t.tgenabled), ',' ORDER BY t.oid), 0) & 4611686018427387902) + 1, 0)
      FROM (SELECT $1 AS relid UNION SELECT p.relid FROM pg_partition_tree($1) AS p) AS m
      JOIN pg_trigger AS t ON t.tgrelid = m.relid
     WHERE t.tgfoid = 'fieldcrypt_internal.audit_change()'::regprocedure
$$;
COMMENT ON FUNCTION fieldcrypt_internal.audit_triggers_state(regclass) IS
    'a number for the triggers of audit_table that a table and its partitions have, and whether they are enabled; 0 for none; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.note_table_audit(target regclass) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT fieldcrypt_internal.remember_table_audit($1::oid::bigint, fieldcrypt_internal.audit_triggers_state($1)) $$;
COMMENT ON FUNCTION fieldcrypt_internal.note_table_audit(regclass) IS 'before audit_table and unaudit_table change a table: what it has';

-- Records what is so and was not so before, by what was noted in this transaction or by the log itself, not what
-- the caller says: whoever may call this can't forge an entry.
CREATE FUNCTION fieldcrypt_internal.record_table_audit(target regclass, audited boolean) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
DECLARE
    before bigint := nullif(fieldcrypt_internal.remembered_table_audit(target::oid::bigint), -1);
    now_is bigint := fieldcrypt_internal.audit_triggers_state(target);
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = target)
       OR audited IS NULL
       OR audited AND (before IS NULL OR before = now_is)
       OR NOT audited AND NOT (fieldcrypt_internal.is_said_to_be_audited(target) OR coalesce(before, 0) > 0 AND now_is = 0)
       OR audited IS DISTINCT FROM fieldcrypt_internal.has_audit_trigger(target, 'change')
       OR NOT has_table_privilege(fieldcrypt_internal.outer_role()::name, target, 'TRIGGER') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'only what audit_table and unaudit_table have done to a table of yours is recorded';
    END IF;
    PERFORM fieldcrypt_internal.record_event(
        CASE WHEN audited THEN 'table_audited' ELSE 'table_unaudited' END, NULL, NULL,
        CASE WHEN audited THEN coalesce('rows are named by ' || fieldcrypt_internal.row_identity(target), 'rows have no name') END,
        target::text);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.record_table_audit(regclass, boolean) IS 'records that a table''s audit triggers were made or dropped';

-- With the caller's rights: whoever may not put a trigger on the table may not audit it.
CREATE FUNCTION fieldcrypt.audit_table(target regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
DECLARE
    kind "char" := (SELECT c.relkind FROM pg_class AS c WHERE c.oid = target);
    member regclass;
    row_name text := coalesce(fieldcrypt_internal.row_identity(target), '');
    kept oid;
    found_trigger record;
    problem text;
    changed boolean := false;
BEGIN
    IF target IS NULL OR kind IS NULL OR kind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('%s is not a table', coalesce(target::text, 'NULL')),
            HINT = 'Only tables and partitioned tables can be audited.';
    END IF;
    IF EXISTS (SELECT FROM pg_class AS c WHERE c.oid = target AND c.relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])) THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('%s belongs to pg_fieldcrypt', target),
            HINT = 'Its own tables are recorded already.';
    END IF;
    PERFORM fieldcrypt_internal.note_table_audit(target);
    -- Those that a partition has from the whole can only be enabled again.
    FOR found_trigger IN
        SELECT t.relation::regclass AS relation, t.name
          FROM (SELECT target AS relid UNION SELECT relid FROM pg_partition_tree(target)) AS m
          JOIN fieldcrypt_internal.audit_triggers() AS t ON t.relation = m.relid
         WHERE t.kind = 'change' AND NOT t.is_own AND NOT t.fires
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE TRIGGER %I', found_trigger.relation, found_trigger.name);
        changed := true;
    END LOOP;
    -- One trigger records the rows of the whole, and one each TRUNCATE of a partition: what else calls the same function
    -- records only some changes, or all of them twice. Its argument says how rows are named, for health to see when
    -- that changes.
    kept := (SELECT t.number FROM fieldcrypt_internal.audit_triggers() AS t
              WHERE t.relation = target AND t.kind = 'change' AND t.fires
                AND (NOT t.is_own OR t.identity = convert_to(row_name, getdatabaseencoding()))
              ORDER BY t.is_own, t.name <> 'fieldcrypt_audit_change', t.number LIMIT 1);
    FOR found_trigger IN
        SELECT t.relation::regclass AS relation, t.name
          FROM (SELECT target AS relid UNION SELECT relid FROM pg_partition_tree(target)) AS m
          JOIN (SELECT a.*, row_number() OVER (PARTITION BY a.relation, a.kind ORDER BY a.fires DESC, a.name <> 'fieldcrypt_audit_truncate', a.number) AS place
                  FROM fieldcrypt_internal.audit_triggers() AS a WHERE a.is_own) AS t ON t.relation = m.relid
         WHERE (t.number = kept OR t.kind = 'truncate' AND t.fires AND t.place = 1) IS NOT TRUE
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', found_trigger.name, found_trigger.relation);
        changed := true;
    END LOOP;
    IF kept IS NULL THEN
        -- Some other trigger that only has the name.
        FOR member IN
            SELECT m.relid FROM (SELECT target AS relid UNION SELECT relid FROM pg_partition_tree(target)) AS m
              JOIN pg_trigger AS t ON t.tgrelid = m.relid AND t.tgname = 'fieldcrypt_audit_change'
             WHERE t.tgparentid = 0
        LOOP
            EXECUTE format('DROP TRIGGER fieldcrypt_audit_change ON %s', member);
        END LOOP;
        EXECUTE format(
            'CREATE TRIGGER fieldcrypt_audit_change AFTER INSERT OR UPDATE OR DELETE ON %s
                FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.audit_change(%L)', target, row_name);
        changed := true;
    END IF;
    FOR member IN
        SELECT m.relid FROM (SELECT target AS relid UNION SELECT relid FROM pg_partition_tree(target)) AS m
          JOIN pg_class AS c ON c.oid = m.relid AND c.relkind IN ('r', 'p')
         WHERE m.relid NOT IN (SELECT t.relation FROM fieldcrypt_internal.audit_triggers() AS t WHERE t.kind = 'truncate' AND t.fires)
    LOOP
        IF EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = member AND t.tgname = 'fieldcrypt_audit_truncate') THEN
            EXECUTE format('DROP TRIGGER fieldcrypt_audit_truncate ON %s', member);
        END IF;
        EXECUTE format(
            'CREATE TRIGGER fieldcrypt_audit_truncate AFTER TRUNCATE ON %s
                FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.audit_change()', member);
        changed := true;
    END LOOP;
    IF changed THEN
        PERFORM fieldcrypt_internal.record_table_audit(target, true);
        RAISE NOTICE 'audit_table: every change of % is recorded from now on', target;
    ELSE
        RAISE NOTICE 'audit_table: nothing to do: % is audited already', target;
    END IF;
    FOR problem IN SELECT fieldcrypt_internal.problems_of_audited_table(target) LOOP
        RAISE NOTICE USING MESSAGE = problem, HINT = 'SELECT * FROM fieldcrypt.health() goes on looking for this (audited_tables).';
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt.audit_table(regclass) IS
    'records every INSERT, UPDATE, DELETE and TRUNCATE of a table in fieldcrypt.audit_log: row and columns, never a value. Twice is harmless';

CREATE FUNCTION fieldcrypt.unaudit_table(target regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_trigger record;
    changed boolean := false;
BEGIN
    PERFORM fieldcrypt_internal.note_table_audit(target);
    FOR found_trigger IN
        SELECT t.tgrelid::regclass AS relation, t.tgname AS name,
               t.tgfoid = 'fieldcrypt_internal.audit_change()'::regprocedure AS is_ours
          FROM (SELECT target AS relid UNION SELECT relid FROM pg_partition_tree(target)) AS m
          JOIN pg_trigger AS t ON t.tgrelid = m.relid
         WHERE (t.tgfoid = 'fieldcrypt_internal.audit_change()'::regprocedure
                OR t.tgname IN ('fieldcrypt_audit_change', 'fieldcrypt_audit_truncate'))
           AND t.tgparentid = 0
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', found_trigger.name, found_trigger.relation);
        changed := changed OR found_trigger.is_ours;
    END LOOP;
    IF changed OR fieldcrypt_internal.is_said_to_be_audited(target) THEN
        PERFORM fieldcrypt_internal.record_table_audit(target, false);
        RAISE NOTICE 'unaudit_table: changes of % are not recorded any more', target;
    ELSE
        RAISE NOTICE 'unaudit_table: nothing to do: % is not audited', target;
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt.unaudit_table(regclass) IS 'takes the triggers of audit_table away';

-- sql/access_history.sql
-- Who could do what, and when: the roles that each privilege reaches, in the log whenever they have changed. Plain
-- GRANTs, memberships and attributes of roles change that as well as grant_access does.

-- Wider rather than narrower: a role is listed if it can get there by what it holds, with a statement of its own if need be.
CREATE FUNCTION fieldcrypt_internal.effective_access()
    RETURNS TABLE (privilege text, role name, how text, can_login boolean)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET standard_conforming_strings = on SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH listed AS (
        SELECT p.name AS privilege, o.object
          FROM unnest('{encrypt,decrypt,reencrypt,manage,audit,backup}'::text[]) AS p (name),
               fieldcrypt_internal.privilege_objects(p.name) AS o
         WHERE o.rights = 'EXECUTE'
    ), acls (privilege, owner, acl, needed) AS (
        -- Routines that belong to one privilege alone. Any of them will do: there is more than one way to decrypt.
        SELECT min(l.privilege), r.proowner, coalesce(r.proacl, acldefault('f', r.proowner)), 'EXECUTE'
          FROM listed AS l
          JOIN pg_proc AS r ON r.oid = regexp_replace(l.object, '^[A-Z]+ ', '')::regprocedure
         GROUP BY l.object, r.oid, r.proowner, r.proacl HAVING count(*) = 1
        UNION ALL
        -- The log, by any of its years or columns; and the wrapped keys.
        SELECT 'audit', c.relowner, a.acl, 'SELECT'
          FROM pg_class AS c, LATERAL (
                SELECT coalesce(c.relacl, acldefault('r', c.relowner))
                UNION ALL SELECT n.attacl FROM pg_attribute AS n WHERE n.attrelid = c.oid AND n.attacl IS NOT NULL) AS a (acl)
         WHERE c.oid = 'fieldcrypt.audit_log'::regclass
            OR c.oid IN (SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = 'fieldcrypt.audit_log'::regclass)
        UNION ALL
        SELECT 'backup', c.relowner, a.acl, 'SELECT'
          FROM pg_class AS c, LATERAL (
                SELECT coalesce(c.relacl, acldefault('r', c.relowner))
                UNION ALL SELECT n.attacl FROM pg_attribute AS n
                           WHERE n.attrelid = c.oid AND n.attname = 'wrapped_key' AND n.attacl IS NOT NULL) AS a (acl)
         WHERE c.oid = 'fieldcrypt.encryption_keys'::regclass
    ), holders (privilege, holder, is_owner, is_inherited) AS MATERIALIZED (
        SELECT a.privilege, e.grantee, bool_or(e.grantee = a.owner), true
          FROM acls AS a, aclexplode(a.acl) AS e WHERE e.privilege_type = a.needed
         GROUP BY a.privilege, e.grantee
        UNION
        SELECT a.privilege, a.owner, true, true FROM acls AS a
        UNION
        SELECT p.name, 'pg_read_all_data'::regrole, false, true FROM unnest('{audit,backup}'::text[]) AS p (name)
        UNION
        -- Members of a superuser are not superusers before they have said SET ROLE.
        SELECT p.name, r.oid, false, false FROM unnest('{encrypt,decrypt,reencrypt,manage,audit,backup}'::text[]) AS p (name), pg_roles AS r WHERE r.rolsuper
    ), doors (holder, door) AS MATERIALIZED (
        -- Until PostgreSQL 15 a role with CREATEROLE makes itself a member of any role but a superuser, and so of one that is a member of it.
        SELECT h.holder, coalesce(min(quote_ident(g.rolname)) FILTER (WHERE g.oid = h.holder), min(quote_ident(g.rolname)))
          FROM (SELECT DISTINCT h.holder FROM holders AS h WHERE h.holder <> 0) AS h
          JOIN pg_roles AS g ON NOT g.rolsuper AND g.rolname <> 'pg_database_owner' AND pg_has_role(g.oid, h.holder, 'MEMBER')
         WHERE current_setting('server_version_num')::integer < 160000
         GROUP BY h.holder
    ), reached AS (
        SELECT h.privilege, r.oid, r.rolname, r.rolcanlogin,
               min(CASE WHEN r.rolsuper THEN 1 WHEN h.holder = r.oid AND h.is_owner THEN 2 WHEN h.holder = r.oid THEN 3
                        WHEN h.holder = 0 THEN 6
                        WHEN h.is_inherited AND pg_has_role(r.oid, h.holder, 'USAGE') THEN 4
                        WHEN pg_has_role(r.oid, h.holder, 'MEMBER') THEN 5
                        WHEN r.rolcreaterole AND d.door IS NOT NULL THEN 7 END) AS way,
               r.rolsuper
          FROM holders AS h
          LEFT JOIN doors AS d ON d.holder = h.holder
         CROSS JOIN pg_roles AS r
         GROUP BY h.privilege, r.oid, r.rolname, r.rolcanlogin, r.rolsuper
    )
    SELECT w.privilege, w.rolname,
           CASE w.way WHEN 1 THEN 'superuser' WHEN 2 THEN 'owner' WHEN 3 THEN 'granted' WHEN 6 THEN 'granted to PUBLIC'
                ELSE format(CASE w.way WHEN 4 THEN 'inherits from %s' WHEN 5 THEN 'SET ROLE %s' ELSE 'CREATEROLE: GRANT %s' END,
                        (SELECT min(CASE WHEN w.way = 7 THEN d.door ELSE quote_ident(g.rolname) END)
                           FROM holders AS h JOIN pg_roles AS g ON g.oid = h.holder LEFT JOIN doors AS d ON d.holder = h.holder
                          WHERE h.privilege = w.privilege
                            AND CASE w.way WHEN 4 THEN h.is_inherited AND pg_has_role(w.oid, h.holder, 'USAGE')
                                           WHEN 5 THEN pg_has_role(w.oid, h.holder, 'MEMBER') ELSE d.door IS NOT NULL END)) END,
           w.rolcanlogin
      FROM reached AS w WHERE w.way IS NOT NULL;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.effective_access() IS
    'which roles each privilege reaches now, and how: by a grant, membership, ownership, as a superuser; granted to nobody';

-- A row of the log holds a privilege, or a part of it, as JSON: within what a reason may have.
CREATE FUNCTION fieldcrypt_internal.access_step() RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on SET timezone = 'UTC' SET row_security = off SET jit = off
AS $$
DECLARE
    most CONSTANT integer := 4000;
    taken text := to_char(clock_timestamp(), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
    parts jsonb[] := '{}';
    last jsonb;
    known jsonb[];
    roles jsonb;
    pieces jsonb[];
    item record;
    entry jsonb;
BEGIN
    -- Before there is a key nobody can do anything.
    IF NOT EXISTS (SELECT FROM fieldcrypt.encryption_keys) THEN
        RETURN 0;
    END IF;
    FOR item IN
        SELECT p.name AS privilege,
               array_agg(jsonb_build_array(e.role, e.how, e.can_login) ORDER BY e.role) FILTER (WHERE e.role IS NOT NULL) AS entries
          FROM unnest('{encrypt,decrypt,reencrypt,manage,audit,backup}'::text[]) WITH ORDINALITY AS p (name, place)
          LEFT JOIN fieldcrypt_internal.effective_access() AS e ON e.privilege = p.name
         GROUP BY p.name, p.place ORDER BY p.place
    LOOP
        roles := '[]';
        pieces := '{}';
        FOREACH entry IN ARRAY coalesce(item.entries, '{}') LOOP
            IF octet_length(roles::text) + octet_length(entry::text) > most THEN
                pieces := pieces || roles;
                roles := '[]';
            END IF;
            roles := roles || jsonb_build_array(entry);
        END LOOP;
        pieces := pieces || roles;
        FOR part IN 1 .. cardinality(pieces) LOOP
            parts := parts || jsonb_build_object('privilege', item.privilege, 'part', part, 'parts', cardinality(pieces), 'roles', pieces[part]);
        END LOOP;
    END LOOP;
    last := (SELECT l.reason::jsonb FROM fieldcrypt.audit_log AS l WHERE l.event = 'access_snapshot' ORDER BY l.at DESC, l.id DESC LIMIT 1);
    known := ARRAY(
        SELECT l.reason::jsonb - 'taken' FROM fieldcrypt.audit_log AS l
         WHERE l.event = 'access_snapshot' AND l.at >= (last ->> 'taken')::timestamptz AND l.reason::jsonb ->> 'taken' = last ->> 'taken'
         ORDER BY l.id);
    -- One a month in any case: a year may be retired, and what was never looked at is not the same as what has not changed.
    IF known = parts AND (last ->> 'taken')::timestamptz > clock_timestamp() - interval '30 days' THEN
        RETURN 0;
    END IF;
    FOR part IN 1 .. cardinality(parts) LOOP
        PERFORM fieldcrypt_internal.record_event('access_snapshot', NULL, NULL,
            (parts[part] || jsonb_build_object('taken', taken))::text, NULL);
    END LOOP;
    RETURN cardinality(parts);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.access_step() IS
    'writes which roles each privilege reaches into the audit log, if that has changed; gives the number of rows; granted to nobody';

CREATE FUNCTION fieldcrypt.snapshot_access() RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM fieldcrypt_internal.refuse_unless_recordable('a snapshot of access');
    -- What may be rolled back, and what was before, would be told as what is.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') OR pg_current_xact_id_if_assigned() IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'active_sql_transaction',
            MESSAGE = 'a snapshot of access is of what is committed: not of what this transaction has changed, nor of when it began',
            HINT = 'Call it on its own, outside a transaction block that has written, in READ COMMITTED.';
    END IF;
    RETURN fieldcrypt_internal.access_step();
END
$$;
COMMENT ON FUNCTION fieldcrypt.snapshot_access() IS
    'writes now into the audit log which roles each privilege reaches, if that has changed since it was last written; gives the number of rows. The log''s worker does it once a day (fieldcrypt.audit_access_interval), and check_audit_log() each time';

CREATE FUNCTION fieldcrypt.who_could(privilege text, at timestamptz DEFAULT now())
    RETURNS TABLE (role text, how text, can_login boolean, as_of timestamptz)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on SET timezone = 'UTC'
AS $$
#variable_conflict use_variable
DECLARE
    taken text;
    found record;
BEGIN
    IF privilege IS NULL OR at IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'privilege and time must not be NULL';
    ELSIF privilege <> ALL ('{encrypt,decrypt,reencrypt,manage,audit,backup}'::text[]) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'this is none of the privileges',
            HINT = 'They are encrypt, decrypt, reencrypt, manage, audit and backup.';
    END IF;
    taken := (SELECT l.reason::jsonb ->> 'taken' FROM fieldcrypt.audit_log AS l
               WHERE l.event = 'access_snapshot' AND l.at <= who_could.at ORDER BY l.at DESC, l.id DESC LIMIT 1);
    IF taken IS NULL THEN
        -- No rows would say that nobody could.
        RAISE EXCEPTION USING ERRCODE = 'no_data_found', MESSAGE = 'the audit log does not tell who could what at that time',
            HINT = coalesce((SELECT 'It tells from ' || min(l.at) || ' on.' FROM fieldcrypt.audit_log AS l WHERE l.event = 'access_snapshot'),
                'SELECT fieldcrypt.snapshot_access() writes it down now; fieldcrypt.audit_access_interval says how often the log''s worker does.');
    END IF;
    as_of := taken::timestamptz;
    SELECT array_agg(l.reason::jsonb ORDER BY l.id) AS parts, max((l.reason::jsonb ->> 'parts')::integer) AS expected INTO found
      FROM fieldcrypt.audit_log AS l
     WHERE l.event = 'access_snapshot' AND l.at >= as_of AND l.reason::jsonb ->> 'taken' = taken AND l.reason::jsonb ->> 'privilege' = who_could.privilege;
    IF cardinality(found.parts) IS DISTINCT FROM found.expected THEN
        RAISE EXCEPTION USING ERRCODE = 'data_exception', MESSAGE = 'what the audit log tells of that time is not whole',
            HINT = 'SELECT * FROM fieldcrypt.verify_audit_log().';
    END IF;
    FOR role, how, can_login IN
        SELECT e.entry ->> 0, e.entry ->> 1, (e.entry ->> 2)::boolean
          FROM unnest(found.parts) AS p (part), jsonb_array_elements(p.part -> 'roles') AS e (entry) ORDER BY 1
    LOOP
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt.who_could(text, timestamptz) IS
    'which roles a privilege reached at some time, and how, as the audit log last said before then: as_of is when that was written, and a look since that found the same wrote nothing; an error if the log says nothing of it';

-- sql/audit_trail.sql
-- The log in sentences, for people: when, who, did what, to what, and why.

CREATE FUNCTION fieldcrypt_internal.shown_text(words text, most integer) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $$
    -- Numbers of characters are Unicode's in UTF8 alone: elsewhere, what is the same in all encodings.
    SELECT regexp_replace(CASE WHEN length($1) <= $2 THEN $1
                               -- Its characters are bytes: none of UTF-8 is cut in two.
                               WHEN getdatabaseencoding() = 'SQL_ASCII' THEN regexp_replace(left($1, $2), '[\u00c0-\u00ff][\u0080-\u00bf]*$', '') || '...'
                               ELSE left($1, $2) || '...' END,
        CASE WHEN getdatabaseencoding() = 'UTF8' THEN '[\u0001-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+'
             ELSE '[\u0001-\u001f\u007f]+' END, ' ', 'g')
$$;
COMMENT ON FUNCTION fieldcrypt_internal.shown_text(text, integer) IS
    'words as a sentence has them: on one line, without what moves a cursor or turns the direction of writing, cut';

-- Of each event what was done, and what its value_count counts. tests/run/errors.pl tells which event has no sentence.
CREATE FUNCTION fieldcrypt_internal.event_words() RETURNS TABLE (event text, did text, counted text)
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    VALUES ('key_created', 'made a key', NULL),
           ('key_rotated', 'made a new version of a key', NULL),
           ('key_deactivated', 'made a key one that only decrypts', NULL),
           ('key_suspended', 'suspended a key', NULL),
           ('key_resumed', 'resumed a key', NULL),
           ('key_compromised', 'marked a key as compromised', NULL),
           ('key_destruction_scheduled', 'scheduled the destruction of a key', NULL),
           ('key_destruction_cancelled', 'cancelled the destruction of a key', NULL),
           ('key_destroyed', 'erased a key', NULL),
           ('tenant_shredded', 'erased all keys of a tenant', NULL),
           ('key_refused', 'tried to change a key, which was refused', NULL),
           ('rotation_policy_set', 'set how often keys are rotated', NULL),
           ('rotation_policy_removed', 'removed a rule of how often keys are rotated', NULL),
           ('master_key_rotation_started', 'began to wrap the keys by another master key', 'keys'),
           ('master_key_rotation_finished', 'finished to wrap the keys by another master key', 'keys'),
           ('reencryption_started', 'began a re-encryption', 'rows'),
           ('reencryption_finished', 'finished a re-encryption', 'rows'),
           ('reencryption_incomplete', 'ended a re-encryption with something left', 'rows'),
           ('column_context_set', 'set what the values of a column are bound to', NULL),
           ('keys_exported', 'exported the keys', 'keys'),
           ('keys_imported', 'imported keys', 'keys'),
           ('key_states_confirmed', 'confirmed that the states of the keys are the newest', NULL),
           ('approval_requested', 'asked for an approval', NULL),
           ('approval_given', 'gave an approval', NULL),
           ('approval_used', 'did what was approved', NULL),
           ('approval_withdrawn', 'withdrew a request for an approval', NULL),
           ('approval_refused', 'tried what needs an approval, which was refused', NULL),
           ('row_inserted', 'inserted a row', NULL),
           ('row_updated', 'updated a row', NULL),
           ('row_deleted', 'deleted a row', NULL),
           ('table_truncated', 'emptied a table', NULL),
           ('table_audited', 'had changes of a table recorded from then on', NULL),
           ('table_detached', 'detached a partition, whose changes are recorded no more', NULL),
           ('table_unaudited', 'had changes of a table recorded no more', NULL),
           ('access_granted', 'granted access', NULL),
           ('access_revoked', 'revoked access', NULL),
           ('access_snapshot', 'found a change of who may do what', NULL),
           ('decrypt_failed', 'tried to decrypt, which failed', 'values'),
           ('call_refused', 'tried what was refused', NULL),
           ('master_key_loaded', 'loaded the master key', NULL),
           ('master_key_failed', 'could not load the master key', NULL),
           ('values_decrypted', 'decrypted', 'values'),
           ('audit_gap', 'found events that are not in the log', 'events'),
           ('audit_started', 'began to sign the log by a new key', NULL),
           ('audit_origin_begun', 'began the log under a new name', NULL),
           ('audit_fork_acknowledged', 'said why the log goes on elsewhere', NULL),
           ('audit_findings_acknowledged', 'said why verification finds something', 'rows sealed until then'),
           ('audit_retired', 'emptied a year of the log', 'rows'),
           ('alert_raised', 'raised an alert', NULL),
           ('alert_resolved', 'told that an alert is over', NULL)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.event_words() IS 'each event of the audit log as what somebody did, and what is counted of it';

CREATE FUNCTION fieldcrypt_internal.list_of(items text[], most integer) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_to_string(ARRAY(SELECT fieldcrypt_internal.quoted_name(i.item) FROM unnest($1[1:$2]) AS i (item)), ', ')
           || CASE WHEN cardinality($1) > $2 THEN format(' and %s more', cardinality($1) - $2) ELSE '' END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.list_of(text[], integer) IS 'some names in a sentence, the first of them, and how many more';

-- Of access_snapshot: the reason says it to a machine.
CREATE FUNCTION fieldcrypt_internal.access_words(snapshot text) RETURNS text
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    document jsonb;
BEGIN
    document := snapshot::jsonb;
    RETURN format('%s: %s%s',
        document ->> 'privilege',
        coalesce(nullif(fieldcrypt_internal.list_of(ARRAY(
            SELECT format('%s (%s)', e.entry ->> 0, e.entry ->> 1) FROM jsonb_array_elements(document -> 'roles') AS e (entry)), 20), ''), 'nobody'),
        CASE WHEN document ->> 'parts' <> '1' THEN format(', part %s of %s', document ->> 'part', document ->> 'parts') ELSE '' END);
EXCEPTION WHEN data_exception THEN
    -- Somebody else wrote it.
    RETURN 'what: ' || fieldcrypt_internal.quoted_name(snapshot);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.access_words(text) IS 'which roles a privilege reaches, as a sentence says it';

CREATE VIEW fieldcrypt.audit_trail AS
    SELECT t.id, t.at, t.event, t.who, t.did, t.to_what, t.why,
           pg_catalog.concat_ws(' ', t.who, pg_catalog.concat_ws(': ', t.did, t.to_what), '(' OPERATOR(pg_catalog.||) pg_catalog.to_json(t.why)::pg_catalog.text OPERATOR(pg_catalog.||) ')')
               OPERATOR(pg_catalog.||) '.' AS sentence
      FROM (
        SELECT l.id, l.at, l.event,
               pg_catalog.concat_ws(', ',
                   pg_catalog.concat_ws(' as ', fieldcrypt_internal.quoted_name(l.actor),
                       CASE WHEN l.role OPERATOR(pg_catalog.<>) l.actor THEN fieldcrypt_internal.quoted_name(l.role) END),
                   'from ' OPERATOR(pg_catalog.||) pg_catalog.host(l.client_address),
                   'for ' OPERATOR(pg_catalog.||) fieldcrypt_internal.quoted_name(l.subject) OPERATOR(pg_catalog.||) ', as claimed') AS who,
               coalesce(w.did, 'did ' OPERATOR(pg_catalog.||) fieldcrypt_internal.quoted_name(l.event)) AS did,
               nullif(CASE WHEN l.event OPERATOR(pg_catalog.=) 'access_snapshot' THEN fieldcrypt_internal.access_words(l.reason)
               ELSE pg_catalog.concat_ws(', ',
                   l.value_count OPERATOR(pg_catalog.||) (' ' OPERATOR(pg_catalog.||) coalesce(w.counted, 'things')),
                   fieldcrypt_internal.shown_text(l.row_key::pg_catalog.text, 300),
                   'which was ' OPERATOR(pg_catalog.||) fieldcrypt_internal.shown_text(l.old_row_key::pg_catalog.text, 300),
                   'of ' OPERATOR(pg_catalog.||) fieldcrypt_internal.quoted_name(l.table_name),
                   'in ' OPERATOR(pg_catalog.||) fieldcrypt_internal.quoted_name(l.partition_name),
                   'with ' OPERATOR(pg_catalog.||) nullif(fieldcrypt_internal.list_of(l.changed_columns, 20), ''),
                   'key ' OPERATOR(pg_catalog.||) l.key_id,
                   'keys ' OPERATOR(pg_catalog.||) nullif(fieldcrypt_internal.list_of(l.key_ids::pg_catalog.text[], 3), ''),
                   'of tenant ' OPERATOR(pg_catalog.||) fieldcrypt_internal.quoted_name(l.tenant),
                   'bound to ' OPERATOR(pg_catalog.||) nullif(fieldcrypt_internal.list_of(l.contexts, 20), '')) END, '') AS to_what,
               nullif(CASE WHEN l.event OPERATOR(pg_catalog.<>) 'access_snapshot' THEN pg_catalog.concat_ws(': ',
                   fieldcrypt_internal.shown_text(l.error_code, 20), fieldcrypt_internal.shown_text(nullif(l.reason, ''), 1000)) END, '') AS why
          FROM fieldcrypt.audit_log AS l
          LEFT JOIN fieldcrypt_internal.event_words() AS w ON w.event OPERATOR(pg_catalog.=) l.event) AS t;
COMMENT ON VIEW fieldcrypt.audit_trail IS
    'the audit log in sentences, a row each: when, who did what, to what, and why. Names are quoted and cut; audit_log has all of them';
COMMENT ON COLUMN fieldcrypt.audit_trail.id IS 'as in audit_log';
COMMENT ON COLUMN fieldcrypt.audit_trail.at IS 'when it happened, by the clock';
COMMENT ON COLUMN fieldcrypt.audit_trail.event IS 'as in audit_log';
COMMENT ON COLUMN fieldcrypt.audit_trail.who IS 'who logged in, as which role, from where; and for whom, which is a claim';
COMMENT ON COLUMN fieldcrypt.audit_trail.did IS 'what was done';
COMMENT ON COLUMN fieldcrypt.audit_trail.to_what IS 'which values, rows, tables, keys, tenants and contexts';
COMMENT ON COLUMN fieldcrypt.audit_trail.why IS 'in the words of who did it; of what failed or was refused, those of the error';
COMMENT ON COLUMN fieldcrypt.audit_trail.sentence IS 'all of it';

-- sql/grants.sql
-- Rights: nothing for PUBLIC; the rest by name.

REVOKE ALL ON SCHEMA fieldcrypt, fieldcrypt_internal FROM PUBLIC;
REVOKE ALL ON TYPE fieldcrypt.encrypted, fieldcrypt_internal.any_encrypted, fieldcrypt_internal.health_finding FROM PUBLIC;

CREATE FUNCTION fieldcrypt_internal.privilege_objects(privilege text)
    RETURNS TABLE (rights text, object text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH listed (privileges, rights, object) AS (VALUES
        ('{encrypt}'::text[], 'EXECUTE', 'FUNCTION fieldcrypt.encrypt_field(text, text, text)'),
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.encrypt_field_bytea(bytea, text, text)'),
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.encrypt_field_jsonb(jsonb, text, text)'),
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.encrypt_field_as(anyelement, text, text)'),
        -- It asks for decrypt, too.
        ('{encrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.rebind_field(fieldcrypt.encrypted, text, text)'),
        ('{decrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.decrypt_field(fieldcrypt.encrypted, text)'),
        ('{decrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.decrypt_field_bytea(fieldcrypt.encrypted, text)'),
        ('{decrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.decrypt_field_jsonb(fieldcrypt.encrypted, text)'),
        ('{decrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.decrypt_field_as(fieldcrypt.encrypted, anyelement, text)'),
        ('{decrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.try_decrypt_field(fieldcrypt.encrypted, text)'),
        ('{reencrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.reencrypt_field(fieldcrypt.encrypted, text)'),
        ('{encrypt,decrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.lock_tenant(text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.create_key(text)'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.rotate_keys(text, text, boolean)'),
        -- Rotation of keys and of the master key, and their schedule.
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.rotate_step(text, text, boolean, bigint)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.refuse_unless_writable()'),
        ('{manage,audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.refuse_unless_committable()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.keys_from(text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.refuse_unless_made_here(text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.other_nodes()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.rotate_key(text, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.next_tenant(text, boolean, timestamptz)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.due_audit_key(boolean, timestamptz)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.count_active_tenants()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.set_rotation_policy(text, interval)'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.rotate_master_key(integer, interval)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.target_master_key()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.begin_master_key_rotation(bytea)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.keys_to_rewrap(bytea)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.rewrap_step(bytea, bigint, integer)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.finish_master_key_rotation()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.lock_holders(regclass)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.short_fingerprint(bytea)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.schedule_rotation(text, text, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.unschedule_rotation()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.scheduled_jobs(text, text, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.refuse_without_cron(jsonb)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.schedule_jobs(jsonb)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.unschedule_jobs(jsonb)'),
        ('{manage,audit,backup}', 'SELECT', 'TABLE fieldcrypt.rotation_policies'),
        ('{manage,audit,backup}', 'SELECT', 'TABLE fieldcrypt.rotation_log'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.master_key_status()'),
        -- Re-encryption.
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.reencrypt(regclass, integer, integer, bigint, interval, interval)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.reencrypt_begin(regclass)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.reencrypt_step(integer, oid[], bigint)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.reencrypt_end(integer)'),
        ('{manage,reencrypt}', 'EXECUTE', 'FUNCTION fieldcrypt.set_column_context(regclass, name, text, text, boolean)'),
        -- Who restores a dump as the owner of its tables creates the triggers again.
        ('{manage,reencrypt}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.refuse_foreign()'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.verify_values(regclass, name)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.verify_begin(regclass, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.verify_step(oid)'),
        ('{manage,audit}', 'SELECT', 'TABLE fieldcrypt.value_verifications'),
        ('{manage,audit}', 'SELECT', 'TABLE fieldcrypt.value_failures'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.live_runs()'),
        ('{manage}', 'SELECT', 'TABLE fieldcrypt.reencryption_progress'),
        ('{manage}', 'SELECT', 'TABLE fieldcrypt.reencryption_failures'),
        ('{manage,backup}', 'SELECT', 'TABLE fieldcrypt.column_contexts'),
        -- Approvals.
        ('{manage,audit}', 'SELECT', 'TABLE fieldcrypt.approvals'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.request_approval(text, text, text, interval)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.withdraw_approval(bigint)'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.approve(bigint)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.approve_step(bigint)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.by_own_hand()'),
        -- The compliance report.
        ('{audit,manage}', 'EXECUTE', 'FUNCTION fieldcrypt.compliance_report(text, timestamptz, timestamptz, boolean, boolean)'),
        ('{audit,manage}', 'EXECUTE', 'FUNCTION fieldcrypt.compliance_report_html(text, timestamptz, timestamptz, boolean, boolean)'),
        -- Key states.
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.mark_compromised(bigint, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.suspend_key(bigint, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.resume_key(bigint, text)'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.shred_tenant(text, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.shred_step(text, text)'),
        -- Key usage and destruction.
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.key_usage(boolean)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.cancel_destroy_key(bigint, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.retire_keys(integer, text, interval, text)'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.destroy_key(bigint, interval, text)'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.destroy_due_keys(boolean)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.schedule_step(bigint, interval, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.scheduled_keys()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.quiet_step(bigint)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.destroy_step(bigint[], boolean)'),
        -- Backup of keys.
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.import_keys(text, boolean, boolean)'),
        ('{manage,backup}', 'EXECUTE', 'FUNCTION fieldcrypt.verify_keys()'),
        ('{manage,backup}', 'EXECUTE', 'FUNCTION fieldcrypt.key_states_status(text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.confirm_key_states(text)'),
        ('{manage,backup}', 'SELECT', 'TABLE fieldcrypt.origins'),
        ('{backup}', 'EXECUTE', 'FUNCTION fieldcrypt.export_keys()'),
        -- The audit log.
        ('{manage,audit}', 'EXECUTE', 'FUNCTION fieldcrypt.audit_status()'),
        -- What seals the audit log.
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.acknowledge_audit_fork(text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.acknowledge_audit_findings(text)'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.apply_audit_retention()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.next_audit_partition(text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.retire_audit_step(text)'),
        ('{audit,backup}', 'SELECT', 'TABLE fieldcrypt.audit_origins'),
        ('{audit,backup}', 'SELECT', 'TABLE fieldcrypt.audit_signers'),
        ('{audit,backup}', 'SELECT', 'TABLE fieldcrypt.audit_checkpoints'),
        ('{audit,backup}', 'SELECT', 'TABLE fieldcrypt.audit_retirements'),
        -- Health.
        ('{manage,audit}', 'EXECUTE', 'FUNCTION fieldcrypt.health(boolean)'),
        ('{manage,audit,backup}', 'SELECT', 'TABLE fieldcrypt.audit_verifications'),
        ('{manage}', 'EXECUTE', 'PROCEDURE fieldcrypt.check_alerts()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.alert_step()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.schedule_alerts(text, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.unschedule_alerts()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.alert_jobs(text, text)'),
        ('{manage,audit}', 'SELECT', 'TABLE fieldcrypt.alerts'),
        ('{manage,audit}', 'EXECUTE', 'PROCEDURE fieldcrypt.check_audit_log()'),
        ('{manage,audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.verification_step()'),
        -- Verification of the audit log.
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt.verify_audit_log(timestamptz, timestamptz, text)'),
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt.audit_export(timestamptz, timestamptz)'),
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt.audit_proof(bigint)'),
        ('{audit}', 'SELECT', 'TABLE fieldcrypt.audit_trail'),
        -- A view's functions are called with the rights of who reads it.
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.event_words()'),
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.access_words(text)'),
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.list_of(text[], integer)'),
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.shown_text(text, integer)'),
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.quoted_name(text)'),
        ('{audit}', 'EXECUTE', 'FUNCTION fieldcrypt.who_could(text, timestamptz)'),
        ('{manage,audit}', 'EXECUTE', 'FUNCTION fieldcrypt.snapshot_access()'),
        -- Audited tables.
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.audit_table(regclass)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.unaudit_table(regclass)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.audit_change()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.audit_triggers()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.has_audit_trigger(regclass, text)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.note_table_audit(regclass)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.record_table_audit(regclass, boolean)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.row_identity(oid)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.is_said_to_be_audited(regclass)'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.problems_of_audited_table(regclass)'),
        ('{manage,backup}', 'SELECT', 'TABLE fieldcrypt.master_keys'),
        ('{manage}', 'SELECT (key_id, tenant, purpose, version, state, algorithm, master_key_fingerprint, key_check, created_at, deactivated_at, destroyed_at, suspended_from, destroy_scheduled_at, destroy_after, destroy_horizon)',
            'TABLE fieldcrypt.encryption_keys'),
        ('{audit}', 'SELECT', 'TABLE fieldcrypt.audit_log'),
        ('{backup}', 'SELECT', 'TABLE fieldcrypt.encryption_keys'),
        -- Statistics. Tenants' names may tell of persons: not for pg_monitor.
        ('{manage,audit}', 'SELECT', 'TABLE fieldcrypt.fieldcrypt_stats'),
        ('{manage,audit}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.tenant_statistics()'),
        ('{manage}', 'EXECUTE', 'FUNCTION fieldcrypt.fieldcrypt_stats_reset()'),
        -- What every use of a value needs: the type, its casts and its comparison.
        ('{value,type}', 'USAGE', 'TYPE fieldcrypt.encrypted'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_from_bytea(bytea)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_same(fieldcrypt.encrypted, fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_not_same(fieldcrypt.encrypted, fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_less(fieldcrypt.encrypted, fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_less_or_same(fieldcrypt.encrypted, fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_more_or_same(fieldcrypt.encrypted, fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_more(fieldcrypt.encrypted, fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_order(fieldcrypt.encrypted, fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_hash(fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt_internal.encrypted_hash_extended(fieldcrypt.encrypted, bigint)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt.key_id(fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt.ciphertext_text(fieldcrypt.encrypted)'),
        ('{value}', 'EXECUTE', 'FUNCTION fieldcrypt.ciphertext_info(fieldcrypt.encrypted)'),
        ('{schema}', 'USAGE', 'SCHEMA fieldcrypt'),
        -- What procedures call and pg_dump reads is looked up by name, with the rights of who does it.
        ('{manage,audit,backup}', 'USAGE', 'SCHEMA fieldcrypt_internal')
    )
    SELECT l.rights, l.object FROM listed AS l WHERE $1 = ANY (l.privileges)
    UNION ALL
    SELECT 'SELECT', format('TABLE %s', i.inhrelid::regclass)
      FROM pg_inherits AS i
     WHERE $1 = 'backup' AND i.inhparent = 'fieldcrypt.audit_log'::regclass
$$;
COMMENT ON FUNCTION fieldcrypt_internal.privilege_objects(text) IS 'what each privilege of grant_access is made of';

CREATE FUNCTION fieldcrypt_internal.held_privileges(grantee regrole) RETURNS text[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
    -- The type belongs to those who use values; by itself it is a privilege, too.
    SELECT CASE WHEN h.privileges && '{encrypt,decrypt,reencrypt,manage}' THEN array_remove(h.privileges, 'type') ELSE h.privileges END
      FROM (
        SELECT coalesce(array_agg(m.privilege ORDER BY m.privilege), '{}') AS privileges
          FROM (
            SELECT 'encrypt'::text, p.proacl FROM pg_proc AS p WHERE p.oid = 'fieldcrypt.encrypt_field(text, text, text)'::regprocedure
            UNION ALL
            SELECT 'decrypt', p.proacl FROM pg_proc AS p WHERE p.oid = 'fieldcrypt.decrypt_field(fieldcrypt.encrypted, text)'::regprocedure
            UNION ALL
            SELECT 'reencrypt', p.proacl FROM pg_proc AS p WHERE p.oid = 'fieldcrypt.reencrypt_field(fieldcrypt.encrypted, text)'::regprocedure
            UNION ALL
            SELECT 'manage', p.proacl FROM pg_proc AS p WHERE p.oid = 'fieldcrypt.create_key(text)'::regprocedure
            UNION ALL
            SELECT 'audit', c.relacl FROM pg_class AS c WHERE c.oid = 'fieldcrypt.audit_log'::regclass
            UNION ALL
            SELECT 'backup', c.relacl FROM pg_class AS c WHERE c.oid = 'fieldcrypt.encryption_keys'::regclass
            UNION ALL
            SELECT 'type', t.typacl FROM pg_type AS t WHERE t.oid = 'fieldcrypt.encrypted'::regtype
          ) AS m (privilege, acl)
         WHERE EXISTS (SELECT FROM aclexplode(m.acl) AS a WHERE a.grantee = $1)
      ) AS h
$$;
COMMENT ON FUNCTION fieldcrypt_internal.held_privileges(regrole) IS 'the privileges that were granted to a role itself';

-- Those of some privileges that were granted to a role itself, once each, in the order in which they were named.
CREATE FUNCTION fieldcrypt_internal.held_of(target regrole, privileges text[]) RETURNS text[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(n.privilege ORDER BY n.place), '{}')
      FROM (SELECT u.privilege, min(u.place) AS place FROM unnest($2) WITH ORDINALITY AS u (privilege, place) GROUP BY u.privilege) AS n,
           fieldcrypt_internal.held_privileges($1) AS h (privileges)
     WHERE n.privilege = ANY (h.privileges) OR n.privilege = 'type' AND h.privileges && '{encrypt,decrypt,reencrypt,manage}'
$$;
COMMENT ON FUNCTION fieldcrypt_internal.held_of(regrole, text[]) IS 'which of some privileges were granted to a role itself; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.change_access(target regrole, privileges text[], granting boolean) RETURNS text[]
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner regrole := (SELECT n.nspowner FROM pg_namespace AS n WHERE n.nspname = 'fieldcrypt');
    verb text := CASE WHEN granting THEN 'GRANT' ELSE 'REVOKE' END;
    direction text := CASE WHEN granting THEN 'TO' ELSE 'FROM' END;
    known text[] := '{encrypt,decrypt,reencrypt,manage,audit,backup,type}';
    bundles text[] := privileges;
    had text[];
    held text[];
    item record;
BEGIN
    IF NOT pg_has_role(current_user, owner, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'only the owner of pg_fieldcrypt can change access to it',
            HINT = format('Connect as %s, or as a superuser.', owner);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.oid = target) OR coalesce(cardinality(privileges), 0) = 0 OR NOT privileges <@ known THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a role and at least one known privilege are needed',
            HINT = 'Privileges are: encrypt, decrypt, reencrypt, manage, audit, backup, type.';
    END IF;
    had := fieldcrypt_internal.held_of(target, privileges);
    held := ARRAY(SELECT unnest(fieldcrypt_internal.held_privileges(target)) EXCEPT SELECT unnest(privileges));
    IF NOT granting OR privileges && '{encrypt,decrypt,reencrypt,manage}' THEN
        bundles := bundles || 'value'::text;
    END IF;
    FOR item IN
        SELECT o.rights, o.object FROM unnest(bundles || 'schema'::text) AS b(name), fieldcrypt_internal.privilege_objects(b.name) AS o
    LOOP
        EXECUTE format('%s %s ON %s %s %s', verb, item.rights, item.object, direction, target);
    END LOOP;
    -- What was taken away and belongs to other privileges, too, comes back.
    IF NOT granting AND cardinality(held) > 0 THEN
        PERFORM fieldcrypt_internal.change_access(target, held, true);
    END IF;
    RETURN had;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.change_access(regrole, text[], boolean) IS 'what grant_access and revoke_access share; gives those of the privileges that the role had before';

CREATE FUNCTION fieldcrypt.grant_access(target regrole, VARIADIC privileges text[]) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    had text[];
    has text[];
BEGIN
    had := fieldcrypt_internal.change_access(target, privileges, true);
    PERFORM fieldcrypt_internal.record_event('access_granted', NULL, NULL,
        format('%s to %s', array_to_string(privileges, ', '), target), NULL);
    has := fieldcrypt_internal.held_of(target, privileges);
    IF has <@ had THEN
        RAISE NOTICE 'grant_access: nothing to do: role % has % already', target, array_to_string(had, ', ');
    ELSE
        RAISE NOTICE 'grant_access: role % now has %', target, array_to_string(has, ', ');
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt.grant_access(regrole, text[]) IS
    'gives a role some of: encrypt, decrypt, reencrypt, manage (keys and audited tables), audit (read the log), backup (what pg_dump must read), type (declare columns of type encrypted, nothing else)';

CREATE FUNCTION fieldcrypt.revoke_access(target regrole, VARIADIC privileges text[]) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    had text[];
    has text[];
    lost text;
BEGIN
    had := fieldcrypt_internal.change_access(target, privileges, false);
    PERFORM fieldcrypt_internal.record_event('access_revoked', NULL, NULL,
        format('%s from %s', array_to_string(privileges, ', '), target), NULL);
    has := fieldcrypt_internal.held_of(target, privileges);
    lost := (SELECT string_agg(h.privilege, ', ' ORDER BY h.place)
               FROM unnest(had) WITH ORDINALITY AS h (privilege, place) WHERE h.privilege <> ALL (has));
    IF lost IS NOT NULL THEN
        RAISE NOTICE 'revoke_access: role % no longer has %', target, lost;
    ELSIF has <> '{}' THEN
        RAISE NOTICE 'revoke_access: nothing to do: role % keeps %, which belongs to its other privileges', target, array_to_string(has, ', ');
    ELSE
        RAISE NOTICE 'revoke_access: nothing to do: role % has no %', target, array_to_string(privileges, ', ');
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt.revoke_access(regrole, text[]) IS 'takes privileges of grant_access away from a role';

REVOKE ALL ON ALL TABLES IN SCHEMA fieldcrypt, fieldcrypt_internal FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA fieldcrypt, fieldcrypt_internal FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA fieldcrypt, fieldcrypt_internal FROM PUBLIC;

-- ALTER DEFAULT PRIVILEGES of whoever creates the extension may have given roles rights on all this.
DO $default_privileges$
DECLARE
    schemas oid[] := '{fieldcrypt,fieldcrypt_internal}'::regnamespace[];
    item record;
BEGIN
    FOR item IN
        SELECT o.object, a.grantee::regrole AS grantee
          FROM (
            SELECT 'SCHEMA ' || n.oid::regnamespace, n.nspacl, n.nspowner
              FROM pg_catalog.pg_namespace AS n WHERE n.oid = ANY (schemas)
            UNION ALL
            SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass, c.relacl, c.relowner
              FROM pg_catalog.pg_class AS c
             WHERE c.relnamespace = ANY (schemas) AND c.relkind IN ('r', 'p', 'v', 'S')
            UNION ALL
            SELECT 'ROUTINE ' || p.oid::regprocedure, p.proacl, p.proowner
              FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = ANY (schemas)
            UNION ALL
            SELECT 'TYPE ' || t.oid::regtype, t.typacl, t.typowner
              FROM pg_catalog.pg_type AS t
             WHERE t.typnamespace = ANY (schemas) AND t.typname IN ('encrypted', 'any_encrypted', 'health_finding')
          ) AS o (object, acl, owner), pg_catalog.aclexplode(o.acl) AS a
         WHERE a.grantee <> o.owner AND a.grantee <> 0
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON %s FROM %s', item.object, item.grantee);
    END LOOP;
END
$default_privileges$;

-- What reads no key and shows nothing, and runs in constraints and triggers for whoever writes a row.
GRANT EXECUTE ON FUNCTION fieldcrypt.context("any") TO PUBLIC;
-- Conditions of triggers are computed with the rights of who writes the row. Nobody calls these by name without
-- USAGE on their schema. They answer authentic or not, for a value that the caller holds already.
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.is_foreign("any", text, text) TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.is_changed_to_foreign("any", text, "any", text, text) TO PUBLIC;

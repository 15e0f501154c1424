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
    purpose text COLLATE "C" NOT NULL CHECK (purpose IN ('field', 'loose', 'search', 'audit')),
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
COMMENT ON COLUMN fieldcrypt.encryption_keys.tenant IS 'whose key: any text; ''audit log'' for the keys of purpose audit and ''loose values'' for those of purpose loose, which belong to no tenant';
COMMENT ON COLUMN fieldcrypt.encryption_keys.purpose IS 'what the key is for: field (encrypts values), loose (encrypts plaintext on its way into a row), search (makes search tags) or audit (authenticates rows of the audit log)';
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

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

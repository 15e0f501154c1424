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

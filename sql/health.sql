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
            compromised_keys,suspended_keys,deactivated_keys,key_destruction,reencryption,enforced_contexts,protected_columns,stored_values,values_elsewhere,missing_keys,key_subscriptions,published_tables,encrypted_indexes,plaintext_columns,restore_order,key_states,key_export,default_tenant,require_tenant,
            extension_version,preload,statement_logging,statement_visibility,
            failed_decrypts,unusual_hours,unusual_addresses,unusual_volume,
            audit_key_age,audit_verification,audit_gaps,audit_sealing,audit_handover,audit_fork,audit_anchor,audited_tables}'::text[]
    LOOP
        BEGIN
            EXECUTE format('SELECT c.status, c.detail, c.hint, c.identity FROM fieldcrypt_internal.%I($1) AS c', 'check_' || "check")
               INTO status, detail, hint, identity USING used;
        EXCEPTION
        -- Who asks on after want of memory may end the server (docs/errors.md).
        WHEN out_of_memory THEN
            RAISE;
        WHEN OTHERS THEN
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

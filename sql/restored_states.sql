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

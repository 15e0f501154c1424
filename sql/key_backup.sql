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
               -- The lowest that has the purposes of all keys.
               'version', CASE WHEN EXISTS (SELECT FROM fieldcrypt.encryption_keys AS o WHERE o.purpose NOT IN ('field', 'audit')) THEN 2 ELSE 1 END,
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
        -- The audit log of this database is not that of the export, and loose values of either may be left: their keys stand beside each other.
        IF renumber = 0 AND clash.purpose NOT IN ('audit', 'loose') OR fieldcrypt_internal.key_problem(clash.key_here) IS NOT NULL THEN
            RETURN json_build_object('conflict', format('key %s of the export is version %s of tenant "%s", which is key %s in this database', clash.key_id, clash.version, clash.tenant, clash.key_here),
                'hint', 'If that key was made here after the others were lost, import_keys(document, renumber => true) makes it a later version. Otherwise the export is of another database. Nothing was imported.');
        END IF;
        PERFORM fieldcrypt_internal.renumber_key(clash.key_here, 1 + (
            SELECT max(v.version)
              FROM (SELECT k.version FROM fieldcrypt.encryption_keys AS k WHERE k.tenant = clash.tenant AND k.purpose = clash.purpose
                    UNION ALL
                    SELECT d.version FROM fieldcrypt_internal.exported_keys(contents) AS d WHERE d.tenant = clash.tenant AND d.purpose = clash.purpose) AS v));
        renumbered := renumbered + (clash.purpose NOT IN ('audit', 'loose'))::integer;
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
     WHERE d.state = 'active' AND d.purpose NOT IN ('audit', 'loose')
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
                 (CASE WHEN d.purpose IN ('audit', 'loose') AND EXISTS (
                      SELECT FROM fieldcrypt.encryption_keys AS a WHERE a.purpose = d.purpose AND a.state = 'active') THEN 'deactivated' END)) AS c (state)
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

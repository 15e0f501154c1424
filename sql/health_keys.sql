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
             WHERE a.purpose IN ('field', 'loose') AND a.state = 'active'
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
         WHERE k.state IN ('compromised', 'suspended') AND k.state = $1 AND k.purpose IN ('field', 'loose')
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
                     WHERE a.state = 'deactivated' AND a.purpose IN ('field', 'loose') AND a.deactivated_at <= latest
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
      FROM (SELECT FROM fieldcrypt.encryption_keys AS k WHERE k.state = 'deactivated' AND k.purpose IN ('field', 'loose') AND k.deactivated_at > latest LIMIT 10001) AS recent;
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

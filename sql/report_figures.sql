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
    -- By state and age: keys of fields. The audit log's and those of loose values are in 'keys' and in a figure of their own
    -- alone: no tenant has them.
    SELECT jsonb_build_object(
        'totals', (SELECT jsonb_build_object(
            'keys', count(*), 'field_keys', count(*) FILTER (WHERE k.purpose = 'field'), 'audit_keys', count(*) FILTER (WHERE k.purpose = 'audit'),
            'loose_keys', count(*) FILTER (WHERE k.purpose = 'loose'),
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
EXCEPTION
WHEN out_of_memory THEN
    RAISE;
WHEN OTHERS THEN
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

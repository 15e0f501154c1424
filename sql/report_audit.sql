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

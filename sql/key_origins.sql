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

-- Health of the audit log: whether it is whole, sealed, verified, and known outside.

-- When the whole log was verified: append-only, as a fact that an auditor asks for.
CREATE TABLE fieldcrypt.audit_verifications (
    id bigint PRIMARY KEY DEFAULT pg_catalog.nextval('fieldcrypt_internal.audit_log_id_seq'),
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    status text COLLATE "C" NOT NULL CHECK (status IN ('ok', 'warning', 'critical')),
    findings bigint NOT NULL,
    detail text NOT NULL,
    actor text NOT NULL DEFAULT session_user
);
SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.audit_verifications', '');
COMMENT ON TABLE fieldcrypt.audit_verifications IS 'when check_audit_log verified the whole log, and with what result';
COMMENT ON COLUMN fieldcrypt.audit_verifications.id IS 'in the order of writing; shares its numbers with audit_log';
COMMENT ON COLUMN fieldcrypt.audit_verifications.started_at IS 'when the verification began';
COMMENT ON COLUMN fieldcrypt.audit_verifications.ended_at IS 'when it ended';
COMMENT ON COLUMN fieldcrypt.audit_verifications.status IS 'the worst of its findings: ok, warning or critical';
COMMENT ON COLUMN fieldcrypt.audit_verifications.findings IS 'how many findings were not ok';
COMMENT ON COLUMN fieldcrypt.audit_verifications.detail IS 'the summary, and the first findings';
COMMENT ON COLUMN fieldcrypt.audit_verifications.actor IS 'session_user: who had it verified';

CREATE FUNCTION fieldcrypt_internal.store_verification(started_at timestamptz, status text, findings bigint, detail text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_store_verification';
COMMENT ON FUNCTION fieldcrypt_internal.store_verification(timestamptz, text, bigint, text) IS 'writes a row of audit_verifications; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_audit_key_age(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    every interval := coalesce(
        (SELECT p.rotate_every FROM fieldcrypt.rotation_policies AS p WHERE p.tenant = ''), interval '90 days');
    key record;
    detail text;
BEGIN
    SELECT k.key_id, k.created_at INTO key
      FROM fieldcrypt.encryption_keys AS k WHERE k.purpose = 'audit' AND k.state = 'active'
     ORDER BY k.created_at LIMIT 1;
    IF key.key_id IS NULL THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'there is no audit key yet: rows of the audit log are not authenticated');
    END IF;
    detail := format('the key that authenticates the audit log was made %s; the default policy is %s', fieldcrypt_internal.time_ago(key.created_at), every);
    IF key.created_at > clock_timestamp() - every - fieldcrypt_internal.health_threshold('due_grace') THEN
        RETURN fieldcrypt_internal.finding_of('ok', detail);
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        detail,
        coalesce('On the node that makes the keys: CALL fieldcrypt.rotate_keys(). Here ' || fieldcrypt_internal.keys_from('audit') || '.',
            'CALL fieldcrypt.rotate_keys(), which rotates it by the default policy; SELECT fieldcrypt.schedule_rotation() lets pg_cron do it.'),
        ARRAY[key.key_id::text]);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audit_key_age(jsonb) IS 'check: the age of the key that authenticates the audit log';

-- Numbers and roots are others each time; what was found is not.
CREATE FUNCTION fieldcrypt_internal.without_figures(detail text) RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT md5(regexp_replace($1, '[0-9a-f]*[0-9][0-9a-f]*', '', 'g')) $$;
COMMENT ON FUNCTION fieldcrypt_internal.without_figures(text) IS 'the identity of what a verification says; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_audit_verification(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    latest record;
    detail text;
BEGIN
    SELECT v.* INTO latest FROM fieldcrypt.audit_verifications AS v ORDER BY v.id DESC LIMIT 1;
    IF latest.status = 'critical' THEN
        RETURN fieldcrypt_internal.finding_of('critical',
            format('the last verification (%s) found the audit log changed: %s', fieldcrypt_internal.time_ago(latest.ended_at), latest.detail),
            'SELECT * FROM fieldcrypt.verify_audit_log(); keep a copy of the database as evidence before anything else.',
            ARRAY[fieldcrypt_internal.without_figures(latest.detail)]);
    ELSIF latest.status IS NULL THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            'the audit log was never verified',
            'CALL fieldcrypt.check_audit_log(), every night.');
    ELSIF latest.ended_at <= clock_timestamp() - fieldcrypt_internal.health_threshold('verification_age') THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            format('the audit log was last verified %s', fieldcrypt_internal.time_ago(latest.ended_at)),
            'CALL fieldcrypt.check_audit_log(), every night.');
    END IF;
    detail := format('the audit log was verified %s: %s', fieldcrypt_internal.time_ago(latest.ended_at), latest.detail);
    IF latest.status = 'ok' THEN
        RETURN fieldcrypt_internal.finding_of('ok', detail);
    END IF;
    RETURN fieldcrypt_internal.finding_of(latest.status,
        detail,
        'SELECT * FROM fieldcrypt.verify_audit_log() shows all findings.',
        ARRAY[fieldcrypt_internal.without_figures(latest.detail)]);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audit_verification(jsonb) IS 'check: when the audit log was last verified, and how that ended';

CREATE FUNCTION fieldcrypt_internal.check_audit_gaps(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    memory interval := fieldcrypt_internal.health_threshold('event_memory');
    since timestamptz := clock_timestamp() - memory;
    gaps record;
BEGIN
    SELECT count(*) AS total, coalesce(sum(coalesce(l.value_count, 1)), 0) AS events, max(l.at) AS latest,
           array_agg(l.id::text) AS items, (array_agg(l.reason ORDER BY l.at DESC))[1] AS reason
      INTO gaps
      FROM (SELECT a.id, a.at, a.value_count, a.reason
              FROM fieldcrypt.audit_log AS a
             WHERE a.event = 'audit_gap' AND a.at > since
               AND (a.leaf IS NULL OR a.leaf >= coalesce((
                   SELECT max(k.value_count) FROM fieldcrypt.audit_log AS k
                    WHERE k.event = 'audit_findings_acknowledged' AND k.at > since), 0))
             ORDER BY a.at DESC LIMIT 10001) AS l;
    IF gaps.total = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('no event was left out of the audit log in the last %s', memory));
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('%s events were left out of the audit log in the last %s, last %s: %s', gaps.events, memory,
            fieldcrypt_internal.time_ago(gaps.latest), coalesce(gaps.reason, 'they are in the server log')),
        'They are lines "fieldcrypt audit:" of the server log: keep it. A larger queue, or fieldcrypt.audit_on_overflow = error, leaves none out.',
        fieldcrypt_internal.finding_identity(gaps.items, gaps.total));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audit_gaps(jsonb) IS 'check: events that are not in the audit log but in the server log';

CREATE FUNCTION fieldcrypt_internal.check_audit_sealing(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    delay interval := fieldcrypt_internal.health_threshold('seal_delay');
    since timestamptz := clock_timestamp() - delay;
    log jsonb := fieldcrypt_internal.audit_queue_status()::jsonb;
    checkpoint record;
    waiting record;
BEGIN
    IF NOT (log ->> 'is_preloaded')::boolean THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'not judged: without preload nothing seals the audit log');
    ELSIF pg_is_in_recovery() THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'not judged on a standby: the primary seals the audit log');
    END IF;
    SELECT c.size, c.at INTO checkpoint FROM fieldcrypt.audit_checkpoints AS c ORDER BY c.id DESC LIMIT 1;
    SELECT count(*) AS total INTO waiting
      FROM ((SELECT FROM fieldcrypt.audit_log AS a WHERE a.leaf IS NULL AND a.at < since LIMIT 10001)
            UNION ALL
            (SELECT FROM fieldcrypt.audit_log AS a WHERE a.leaf >= coalesce(checkpoint.size, 0) AND a.at < since LIMIT 10001)) AS l;
    IF waiting.total > 0 THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            format('%s%s rows of the audit log are in no checkpoint, though older than %s%s', CASE WHEN waiting.total > 10000 THEN 'more than ' END,
                least(waiting.total, 10000), delay, ': ' || (log ->> 'last_problem')),
            'Until then they can be changed without a trace. The server log says why; the worker needs one of max_worker_processes.',
            ARRAY[coalesce(log ->> 'last_problem', '')]);
    END IF;
    RETURN fieldcrypt_internal.finding_of('ok', 'the audit log is sealed' || coalesce('; the last checkpoint was made ' || fieldcrypt_internal.time_ago(checkpoint.at), ''));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audit_sealing(jsonb) IS 'check: rows of the audit log that wait too long for their seal';

CREATE FUNCTION fieldcrypt_internal.check_audit_handover(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    memory interval := fieldcrypt_internal.health_threshold('event_memory');
    since timestamptz := clock_timestamp() - memory;
    unclean record;
BEGIN
    SELECT count(*) AS total, max(s.introduced_at) AS latest, array_agg(s.id::text) AS items, bool_or(s.introduced_by = 'itself') AS is_unproven
      INTO unclean
      FROM (SELECT a.* FROM fieldcrypt.audit_signers AS a
             -- Before the first key there was nothing that it could not have followed.
             WHERE NOT a.is_clean AND a.from_size > 0 AND a.introduced_at > since
             ORDER BY a.introduced_at DESC LIMIT 10001) AS s;
    IF unclean.total = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('all keys that signed the audit log in the last %s follow each other', memory));
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('in the last %s the sealing of the audit log was interrupted %s time(s), last %s, and went on with a key that the one before did not sign%s',
            memory, unclean.total, fieldcrypt_internal.time_ago(unclean.latest), CASE WHEN unclean.is_unproven THEN ', nor a master key' END),
        'After a crash or an immediate stop this is to be expected: compare with when those were. Rows that were written shortly before are as trustworthy as who could write the tables then.',
        fieldcrypt_internal.finding_identity(unclean.items, unclean.total));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audit_handover(jsonb) IS 'check: signing keys of the audit log that do not follow from the one before';

CREATE FUNCTION fieldcrypt_internal.check_audit_fork(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    fork record;
BEGIN
    SELECT o.id, o.at, o.cause, o.old_size INTO fork
      FROM fieldcrypt.audit_origins AS o
     WHERE o.acknowledged_at IS NULL AND o.old_log_id IS NOT NULL
     ORDER BY o.id DESC LIMIT 1;
    IF fork.id IS NULL THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'the audit log goes on where it began, or somebody has said why not');
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('since %s the audit log goes on elsewhere than where it began (%s, after %s rows), and nobody has said why',
            date_trunc('second', fork.at), fork.cause, fork.old_size),
        'After a restore, a copy or a promotion: compare with the newest checkpoint that is kept outside, then SELECT fieldcrypt.acknowledge_audit_fork(reason).',
        ARRAY[fork.id::text]);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audit_fork(jsonb) IS 'check: a fork of the audit log that nobody has acknowledged';

CREATE FUNCTION fieldcrypt_internal.check_audit_anchor(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    log jsonb := fieldcrypt_internal.audit_queue_status()::jsonb;
BEGIN
    IF NOT (log ->> 'is_preloaded')::boolean THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'not judged: without preload the audit log has no checkpoints');
    ELSIF coalesce(current_setting('fieldcrypt.audit_checkpoint_command', true), '') = '' THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            'checkpoints of the audit log are kept in this database only: a superuser who can read the master key could rewrite it without a trace',
            'Set fieldcrypt.audit_checkpoint_command to one that takes each checkpoint to another machine. See docs/health.md.');
    ELSIF log ->> 'last_problem' LIKE 'fieldcrypt.audit_checkpoint_command%' THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            format('checkpoints of the audit log do not get outside: %s', log ->> 'last_problem'),
            'Run it by hand as the server''s user, with a row of fieldcrypt.audit_checkpoints as its input.');
    ELSE
        RETURN fieldcrypt_internal.finding_of('ok', 'checkpoints of the audit log are passed on to fieldcrypt.audit_checkpoint_command');
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audit_anchor(jsonb) IS 'check: whether checkpoints of the audit log are kept outside';

CREATE FUNCTION fieldcrypt_internal.check_audited_tables(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    total bigint := (SELECT count(DISTINCT t.tgrelid) FROM pg_trigger AS t WHERE t.tgfoid = 'fieldcrypt_internal.audit_change()'::regprocedure);
    bypass text := fieldcrypt_internal.trigger_bypass();
    found record;
    detail text;
BEGIN
    SELECT count(*) AS problems, array_agg(p.relation || ' ' || md5(p.problem)) AS items,
           (array_agg(format('%s: %s', fieldcrypt_internal.quoted_name(p.relation::regclass::text), p.problem) ORDER BY p.relation, p.problem))[1:3] AS said,
           (array_agg(p.remedy ORDER BY p.relation, p.problem))[1] AS remedy
      INTO found FROM fieldcrypt_internal.audited_table_problems() AS p;
    IF found.problems = 0 AND (bypass IS NULL OR total = 0) THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('%s tables and partitions are audited, all of their changes with the row''s name', total));
    END IF;
    detail := concat_ws('; ',
        CASE WHEN total > 0 THEN 'no trigger of audit_table fires where ' || bypass END,
        array_to_string(found.said, '; '),
        CASE WHEN found.problems > 3 THEN format('and %s more', found.problems - 3) END);
    RETURN fieldcrypt_internal.finding_of('warning', 'audited tables: ' || detail,
        coalesce(found.remedy || '; for all: ', '') || 'docs/health.md, "audited_tables".',
        fieldcrypt_internal.finding_identity(found.items || coalesce(bypass, ''), found.problems));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_audited_tables(jsonb) IS 'check: audited tables whose changes are not all recorded, or whose rows have no name in the log';

-- With session_replication_role = replica no ordinary trigger fires. Who sets it in a session is not seen here.
CREATE FUNCTION fieldcrypt_internal.trigger_bypass() RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(b.place, ', ' ORDER BY b.place)
      FROM (SELECT 'the configuration says session_replication_role = replica' AS place
              FROM pg_settings AS s
             WHERE s.name = 'session_replication_role' AND s.reset_val = 'replica' AND s.source NOT IN ('database', 'user', 'database user', 'client', 'session')
            UNION ALL
            SELECT format('session_replication_role = replica is set for %s',
                   concat_ws(' in ', 'role ' || fieldcrypt_internal.quoted_name(r.rolname), 'database ' || fieldcrypt_internal.quoted_name(d.datname)))
              FROM pg_db_role_setting AS s
              LEFT JOIN pg_roles AS r ON r.oid = s.setrole
              LEFT JOIN pg_database AS d ON d.oid = s.setdatabase
             WHERE 'session_replication_role=replica' = ANY (s.setconfig)
               AND (s.setdatabase = 0 OR d.datname = current_database())) AS b
$$;
COMMENT ON FUNCTION fieldcrypt_internal.trigger_bypass() IS 'where settings keep triggers from firing in this database; NULL: nowhere; granted to nobody';

-- Alerts: what health() finds, told once, to listeners, the server log and the audit log. And the
-- verification of the audit log, whose result health() tells.

CREATE TABLE fieldcrypt.alerts (
    "check" text COLLATE "C" PRIMARY KEY,
    status text COLLATE "C" NOT NULL CHECK (status IN ('warning', 'critical')),
    detail text NOT NULL,
    hint text,
    identity jsonb NOT NULL,
    since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    told_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE fieldcrypt.alerts IS 'the findings that check_alerts has told of and that are not over: not dumped, a restored database tells of its own';
COMMENT ON COLUMN fieldcrypt.alerts."check" IS 'as in fieldcrypt.health()';
COMMENT ON COLUMN fieldcrypt.alerts.status IS 'warning or critical';
COMMENT ON COLUMN fieldcrypt.alerts.detail IS 'what was found, when check_alerts last looked';
COMMENT ON COLUMN fieldcrypt.alerts.hint IS 'what to do';
COMMENT ON COLUMN fieldcrypt.alerts.identity IS 'what the finding is about: when something is added, it is told again';
COMMENT ON COLUMN fieldcrypt.alerts.since IS 'when it was first found';
COMMENT ON COLUMN fieldcrypt.alerts.told_at IS 'when it was last told';

CREATE FUNCTION fieldcrypt_internal.store_alert("check" text, status text, detail text, hint text, identity text, is_told boolean) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_store_alert';
COMMENT ON FUNCTION fieldcrypt_internal.store_alert(text, text, text, text, text, boolean) IS 'writes a row of alerts; granted to nobody';
CREATE FUNCTION fieldcrypt_internal.forget_alert("check" text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_forget_alert';
COMMENT ON FUNCTION fieldcrypt_internal.forget_alert(text) IS 'removes a row of alerts; granted to nobody';

-- Postgres takes less than 8000 bytes.
CREATE FUNCTION fieldcrypt_internal.alert_payload(event text, "check" text, status text, detail text, hint text, since timestamptz) RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    payload text;
BEGIN
    LOOP
        payload := json_build_object('event', event, 'database', current_database(), 'check', "check", 'status', status,
            'detail', detail, 'hint', hint, 'since', since)::text;
        EXIT WHEN octet_length(payload) < 7900;
        detail := left(detail, length(detail) * 3 / 4) || '...';
        hint := left(hint, 500);
    END LOOP;
    RETURN payload;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.alert_payload(text, text, text, text, text, timestamptz) IS
    'what listeners are told, as JSON; a detail that is too long is cut; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.alert_step(OUT told integer, OUT resolved integer, OUT unresolved integer)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    channel text;
    item record;
    is_told boolean;
    what text;
BEGIN
    PERFORM fieldcrypt_internal.refuse_unless_recordable('an alert');
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_transaction_state',
            MESSAGE = 'alerts are told in READ COMMITTED only: an older snapshot does not show what was told meanwhile',
            HINT = 'CALL fieldcrypt.check_alerts().';
    END IF;
    -- A second run waits, and then sees what this one has told.
    LOCK TABLE fieldcrypt.alerts IN SHARE ROW EXCLUSIVE MODE;
    PERFORM fieldcrypt_internal.health_hours();
    channel := current_setting('fieldcrypt.alert_channel');
    told := 0;
    resolved := 0;
    FOR item IN
        SELECT h.*, a.status AS old_status, a.identity AS old_identity, coalesce(a.since, clock_timestamp()) AS since
          FROM fieldcrypt_internal.health_findings(false) AS h
          LEFT JOIN fieldcrypt.alerts AS a ON a."check" = h."check"
         WHERE h.status IS NOT NULL
         ORDER BY h."check"
    LOOP
        IF item.status = 'ok' THEN
            CONTINUE WHEN item.old_status IS NULL;
            PERFORM fieldcrypt_internal.forget_alert(item."check");
            what := 'resolved';
            resolved := resolved + 1;
            RAISE LOG USING MESSAGE = format('fieldcrypt alert resolved: %s: %s', item."check", item.detail);
        ELSE
            is_told := item.old_status IS DISTINCT FROM item.status OR NOT to_jsonb(item.identity) <@ item.old_identity;
            PERFORM fieldcrypt_internal.store_alert(item."check", item.status, item.detail, item.hint, to_jsonb(item.identity)::text, is_told);
            CONTINUE WHEN NOT is_told;
            what := CASE WHEN item.old_status IS NULL THEN 'raised' ELSE 'changed' END;
            told := told + 1;
            RAISE WARNING USING MESSAGE = format('fieldcrypt alert: %s is %s: %s', item."check", item.status, item.detail), HINT = coalesce(item.hint, '');
        END IF;
        PERFORM fieldcrypt_internal.record_event(CASE what WHEN 'resolved' THEN 'alert_resolved' ELSE 'alert_raised' END, NULL, NULL,
            format('%s is %s: %s', item."check", item.status, item.detail), NULL);
        IF channel <> '' THEN
            PERFORM pg_notify(channel, fieldcrypt_internal.alert_payload(what, item."check", item.status, item.detail, item.hint, item.since));
        END IF;
    END LOOP;
    unresolved := (SELECT count(*) FROM fieldcrypt.alerts);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.alert_step() IS 'tells of what health finds and was not told yet, and of what is over';

CREATE PROCEDURE fieldcrypt.check_alerts()
    LANGUAGE plpgsql
AS $$
DECLARE
    step pg_catalog.record;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened: what is told can't be
    -- rolled back.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    SELECT s.told, s.resolved, s.unresolved INTO step FROM fieldcrypt_internal.alert_step() AS s;
    COMMIT;
    RAISE NOTICE 'check_alerts: % told, % resolved, % unresolved (see fieldcrypt.alerts)', step.told, step.resolved, step.unresolved;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.check_alerts() IS
    'tells of what fieldcrypt.health() finds, once until it changes or is over: a notification on fieldcrypt.alert_channel, a warning in the server log, an event in the audit log';

CREATE FUNCTION fieldcrypt_internal.verification_step(OUT status text, OUT findings bigint, OUT detail text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    started_at timestamptz := clock_timestamp();
BEGIN
    PERFORM fieldcrypt_internal.refuse_unless_recordable('a verification of the audit log');
    -- Every night, where no worker does it; not where another than what is committed would be seen.
    IF current_setting('fieldcrypt.audit_access_interval', true) <> '0' AND pg_current_xact_id_if_assigned() IS NULL
       AND current_setting('transaction_isolation') IN ('read committed', 'read uncommitted') THEN
        PERFORM fieldcrypt_internal.access_step();
    END IF;
    SELECT coalesce((array_agg(v.status ORDER BY array_position('{critical,warning,ok}'::text[], v.status)))[1], 'critical'),
           count(*) FILTER (WHERE v.status <> 'ok' AND v.finding <> 'summary'),
           string_agg(format('%s: %s', v.finding, left(v.detail, 300)), '; ' ORDER BY v.place)
               FILTER (WHERE v.place <= 4 AND (v.status <> 'ok' OR v.finding = 'summary'))
      INTO status, findings, detail
      FROM (SELECT a.*, row_number() OVER (ORDER BY a.finding <> 'summary', array_position('{critical,warning,ok}'::text[], a.status), a.ordinality) AS place
              FROM fieldcrypt.verify_audit_log() WITH ORDINALITY AS a) AS v;
    PERFORM fieldcrypt_internal.store_verification(started_at, status, findings, coalesce(detail, 'nothing was verified'));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.verification_step() IS 'verifies the audit log and writes the result down';

CREATE PROCEDURE fieldcrypt.check_audit_log()
    LANGUAGE plpgsql
AS $$
DECLARE
    step pg_catalog.record;
BEGIN
    -- In a transaction block this is refused (2D000): the result stays, whatever else is rolled back.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    SELECT s.status, s.findings, s.detail INTO step FROM fieldcrypt_internal.verification_step() AS s;
    COMMIT;
    IF step.status OPERATOR(pg_catalog.=) 'ok' THEN
        RAISE NOTICE 'check_audit_log: ok: %', step.detail;
    ELSE
        RAISE WARNING USING
            MESSAGE = pg_catalog.format('the audit log is not all right (%s, %s findings): %s', step.status, step.findings, step.detail),
            HINT = 'SELECT * FROM fieldcrypt.verify_audit_log() shows all findings.';
    END IF;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.check_audit_log() IS
    'verifies the whole audit log and writes the result to fieldcrypt.audit_verifications, for health(): to be called every night';

CREATE FUNCTION fieldcrypt_internal.alert_jobs(alerts text, verification text) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_agg(jsonb_build_object('job', (j.name || current_database())::name, 'schedule', j.schedule, 'command', j.command))
      FROM (VALUES ('fieldcrypt alerts of ', $1, 'CALL fieldcrypt.check_alerts()'),
                   ('fieldcrypt audit of ', $2, 'CALL fieldcrypt.check_audit_log()')) AS j (name, schedule, command)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.alert_jobs(text, text) IS 'names and commands of the jobs of schedule_alerts';

CREATE FUNCTION fieldcrypt.schedule_alerts(cron text DEFAULT '* * * * *', verification text DEFAULT '30 2 * * *')
    RETURNS TABLE (job text, schedule text, command text)
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.job, s.schedule, s.command FROM fieldcrypt_internal.schedule_jobs(fieldcrypt_internal.alert_jobs($1, $2)) AS s
$$;
COMMENT ON FUNCTION fieldcrypt.schedule_alerts(text, text) IS
    'lets pg_cron look for alerts and verify the audit log, as the caller; '''' is no such job; again: replaces';

CREATE FUNCTION fieldcrypt.unschedule_alerts() RETURNS integer
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$ SELECT fieldcrypt_internal.unschedule_jobs(fieldcrypt_internal.alert_jobs('* * * * *', '30 2 * * *')) $$;
COMMENT ON FUNCTION fieldcrypt.unschedule_alerts() IS 'takes the caller''s jobs of schedule_alerts away, and gives their number';

-- Health of the server: its settings, who sees what they let out, and how values are used.

CREATE FUNCTION fieldcrypt_internal.is_preloaded() RETURNS boolean
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$ SELECT (fieldcrypt_internal.audit_queue_status()::jsonb ->> 'is_preloaded')::boolean $$;
COMMENT ON FUNCTION fieldcrypt_internal.is_preloaded() IS 'whether the server was started with the library; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_preload(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF fieldcrypt_internal.is_preloaded() THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'the server was started with pg_fieldcrypt');
    ELSE
        RETURN fieldcrypt_internal.finding_of('warning',
            'pg_fieldcrypt is not in shared_preload_libraries: failed decryptions are only in the server log, the audit log is not sealed, and statements are not redacted',
            'Add pg_fieldcrypt to shared_preload_libraries, and restart the server.');
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_preload(jsonb) IS 'check: whether the library is preloaded';

-- A library of 0.1.0 does not say which version it is of: nothing later is without library_version().
CREATE FUNCTION fieldcrypt_internal.check_extension_version(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    catalog text := (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'pg_fieldcrypt');
    library text;
    is_older boolean;
BEGIN
    BEGIN
        library := fieldcrypt_internal.library_version();
    EXCEPTION WHEN undefined_function THEN
        library := '0.1.0';
    END;
    IF library = catalog THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('this database has version %s of the extension, and the library is of the same', catalog));
    END IF;
    is_older := fieldcrypt_internal.version_parts(catalog) < fieldcrypt_internal.version_parts(library);
    RETURN fieldcrypt_internal.finding_of(
        CASE WHEN is_older THEN 'warning' ELSE 'critical' END,
        format('this database has version %s of the extension, and the library is of %s', catalog, library),
        CASE WHEN is_older THEN 'ALTER EXTENSION pg_fieldcrypt UPDATE. See docs/operations.md.'
             ELSE 'The library is older than what it is to serve: install that of this version, and restart the server if it preloads it.' END,
        ARRAY[catalog, library]);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_extension_version(jsonb) IS 'check: whether this database and the library are of one version';

-- A setting is looked for where it holds for the server, in the files too: the session that asks may have
-- another value by its role. And where it holds for single roles and databases.
CREATE FUNCTION fieldcrypt_internal.settings_that_hold(names text[]) RETURNS TABLE (name text, value text, holder text)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT n.name, coalesce(s.reset_val, current_setting(n.name, true)), ''
          FROM unnest(names) AS n(name)
          LEFT JOIN pg_settings AS s ON s.name = n.name
         WHERE s.name IS NOT NULL OR n.name LIKE '%.%';
    IF has_table_privilege('pg_file_settings', 'SELECT') THEN
        RETURN QUERY SELECT f.name, f.setting, '' FROM pg_file_settings AS f WHERE f.applied AND lower(f.name) = ANY (names);
    END IF;
    RETURN QUERY
        SELECT lower(split_part(c.entry, '=', 1)), substr(c.entry, strpos(c.entry, '=') + 1),
               concat(' for role ' || fieldcrypt_internal.quoted_name(r.rolname), CASE WHEN d.setdatabase <> 0 THEN ' in this database' END)
          FROM pg_db_role_setting AS d
          LEFT JOIN pg_roles AS r ON r.oid = d.setrole
         CROSS JOIN LATERAL unnest(d.setconfig) AS c(entry)
         WHERE d.setdatabase IN (0, (SELECT b.oid FROM pg_database AS b WHERE b.datname = current_database()))
           AND lower(split_part(c.entry, '=', 1)) = ANY (names);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.settings_that_hold(text[]) IS 'values of settings for the server, and for roles and this database; granted to nobody';

-- Whether a value of a setting lets values into the server log. Times and sizes are as somebody wrote them.
CREATE FUNCTION fieldcrypt_internal.lets_values_out(name text, value text) RETURNS boolean
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $$
    SELECT CASE
        WHEN $1 = 'log_statement' THEN lower($2) IN ('mod', 'all')
        WHEN $1 IN ('log_min_duration_statement', 'log_min_duration_sample', 'auto_explain.log_min_duration') THEN btrim($2) NOT LIKE '-1%' AND btrim($2) <> ''
        WHEN $1 IN ('log_transaction_sample_rate', 'log_parameter_max_length_on_error') THEN $2 !~ '^\s*\+?0*\.?0*(\s|[a-z]|$)'
        WHEN $1 IN ('debug_print_parse', 'debug_print_rewritten', 'debug_print_plan') THEN lower(btrim($2)) IN ('on', 'true', 't', 'tr', 'tru', 'yes', 'y', 'ye', '1')
        WHEN $1 = 'pgaudit.log' THEN lower(btrim($2)) NOT IN ('', 'none')
        ELSE false END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.lets_values_out(text, text) IS 'whether a setting with this value writes literals or parameters to the server log';

CREATE FUNCTION fieldcrypt_internal.check_statement_logging(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $$
DECLARE
    leaks text[];
    parameters boolean;
BEGIN
    leaks := ARRAY(
        SELECT DISTINCT format('%s = %s%s', s.name, left(regexp_replace(s.value, '\s+', ' ', 'g'), 40), s.holder)
          FROM fieldcrypt_internal.settings_that_hold('{log_statement,log_min_duration_statement,log_min_duration_sample,log_transaction_sample_rate,log_parameter_max_length_on_error,debug_print_parse,debug_print_rewritten,debug_print_plan,auto_explain.log_min_duration,pgaudit.log}') AS s
         WHERE fieldcrypt_internal.lets_values_out(s.name, s.value)
         ORDER BY 1);
    IF fieldcrypt_internal.redaction_is_active() THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'statements that call the extension or touch encrypted columns are redacted in the server log');
    END IF;
    IF cardinality(leaks) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok',
            'statements that succeed are not logged; those that fail are, with their text, unless log_min_error_statement forbids it',
            'With preload, fieldcrypt.redact_logs takes the values out of those too.');
    END IF;
    parameters := EXISTS (SELECT FROM pg_settings AS s WHERE s.name = 'log_parameter_max_length' AND s.reset_val <> '0');
    RETURN fieldcrypt_internal.finding_of('warning',
        format('plaintext values get into the server log as literals%s: %s', CASE WHEN parameters THEN ' and parameters' END, array_to_string(leaks[1:6], ', ')),
        'Put pg_fieldcrypt into shared_preload_libraries and leave fieldcrypt.redact_logs on, or take these settings back, also with log_parameter_max_length = 0.',
        leaks);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_statement_logging(jsonb) IS 'check: settings that write the literals of statements to the server log';

CREATE FUNCTION fieldcrypt_internal.check_statement_visibility(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $$
DECLARE
    roles text[];
BEGIN
    IF NOT EXISTS (SELECT FROM fieldcrypt_internal.settings_that_hold('{track_activities}') AS s WHERE lower(btrim(s.value)) NOT IN ('off', 'false', 'no', '0')) THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'track_activities is off: running statements are not shown to others');
    END IF;
    roles := ARRAY(
        SELECT r.rolname::text
          FROM pg_roles AS r
         WHERE NOT r.rolsuper AND r.rolname NOT LIKE 'pg\_%' AND pg_has_role(r.oid, 'pg_read_all_stats', 'MEMBER')
         ORDER BY r.rolname);
    IF cardinality(roles) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'the text of running statements, with its literals, is shown in pg_stat_activity to its role and to superusers only');
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('the text of all running statements, with its literals, is shown in pg_stat_activity to %s',
            fieldcrypt_internal.counted_names(ARRAY(SELECT fieldcrypt_internal.quoted_name(r.name) FROM unnest(roles) AS r(name)), cardinality(roles), 'role')),
        'Pass values as parameters, which are not shown; REVOKE pg_read_all_stats or pg_monitor from who does not need it; or ALTER ROLE ... SET track_activities = off for the application''s roles.',
        fieldcrypt_internal.finding_identity(roles, cardinality(roles)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_statement_visibility(jsonb) IS 'check: roles that see the statements of others in pg_stat_activity';

-- The newest rows are enough to judge: an attack that fails a million times is not counted to its end.
CREATE FUNCTION fieldcrypt_internal.check_failed_decrypts(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    span interval := fieldcrypt_internal.health_threshold('failed_decrypts_window');
    since timestamptz := clock_timestamp() - span;
    status text;
    detail text;
    found record;
BEGIN
    IF current_setting('fieldcrypt.audit_decrypt', true) = 'off' THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            'not recorded: fieldcrypt.audit_decrypt is off',
            'Set fieldcrypt.audit_decrypt to failures or more: values that do not decrypt are how an attack and damage show.');
    END IF;
    WITH recent AS MATERIALIZED (
        SELECT l.actor, coalesce(l.value_count, 1) AS failed
          FROM fieldcrypt.audit_log AS l
         WHERE l.event = 'decrypt_failed' AND l.at > since
         ORDER BY l.at DESC LIMIT 10000
    ), of_actor AS (
        SELECT r.actor, sum(r.failed) AS failed FROM recent AS r GROUP BY r.actor
    )
    SELECT coalesce(sum(a.failed), 0) AS total, count(*) AS actors,
           array_agg(format('%s (%s)', fieldcrypt_internal.quoted_name(a.actor), a.failed) ORDER BY a.failed DESC, a.actor) AS names,
           array_agg(a.actor ORDER BY a.actor) AS items,
           (SELECT count(*) = 10000 FROM recent) AS is_more
      INTO found
      FROM of_actor AS a;
    status := CASE WHEN found.total >= current_setting('fieldcrypt.health_failed_decrypts_critical')::integer THEN 'critical'
                   WHEN found.total >= current_setting('fieldcrypt.health_failed_decrypts')::integer THEN 'warning'
                   ELSE 'ok' END;
    detail := format('%s%s values did not decrypt in the last %s', CASE WHEN found.is_more THEN 'more than ' END, found.total, span);
    IF found.actors > 0 THEN
        detail := format('%s: %s', detail, fieldcrypt_internal.counted_names(found.names, found.actors, 'login role'));
    ELSIF NOT fieldcrypt_internal.is_preloaded() THEN
        detail := detail || '; without preload they are only in the server log';
    END IF;
    IF status = 'ok' THEN
        RETURN fieldcrypt_internal.finding_of('ok', detail);
    END IF;
    RETURN fieldcrypt_internal.finding_of(status,
        detail,
        'SELECT * FROM fieldcrypt.audit_log WHERE event = ''decrypt_failed'' ORDER BY id DESC LIMIT 20 tells who, from where and why. Wrong contexts after a change of the application look like this, and so do damage and attacks.',
        fieldcrypt_internal.finding_identity(found.items, found.actors));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_failed_decrypts(jsonb) IS 'check: values that did not decrypt lately';

CREATE FUNCTION fieldcrypt_internal.is_use_recorded() RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT coalesce(current_setting('fieldcrypt.audit_decrypt', true), 'off') IN ('statements', 'all') $$;
COMMENT ON FUNCTION fieldcrypt_internal.is_use_recorded() IS 'whether decryptions that succeed are recorded';

-- By the index, one step for each address, however many rows there are. Years are partitions: a time within
-- one would have the rows of an address before it read.
CREATE FUNCTION fieldcrypt_internal.decrypting_addresses(since timestamptz) RETURNS TABLE (address inet)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
DECLARE
    year_start timestamptz := date_trunc('year', since AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
BEGIN
    SELECT min(l.client_address) INTO address
      FROM fieldcrypt.audit_log AS l WHERE l.event = 'values_decrypted' AND l.at >= year_start;
    FOR place IN 1 .. 10000 LOOP
        EXIT WHEN address IS NULL;
        RETURN NEXT;
        SELECT min(l.client_address) INTO address
          FROM fieldcrypt.audit_log AS l WHERE l.event = 'values_decrypted' AND l.at >= year_start AND l.client_address > address;
    END LOOP;
    address := NULL;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.decrypting_addresses(timestamptz) IS
    'the addresses that values were decrypted from, and NULL for local sockets; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.decrypted_from(address inet, since timestamptz, upto timestamptz, most integer)
    RETURNS TABLE (actor text, total bigint, at timestamptz)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
BEGIN
    IF address IS NULL THEN
        RETURN QUERY SELECT l.actor, coalesce(l.value_count, 1), l.at FROM fieldcrypt.audit_log AS l
                      WHERE l.event = 'values_decrypted' AND l.client_address IS NULL AND l.at >= since AND l.at < upto LIMIT most;
    ELSE
        RETURN QUERY SELECT l.actor, coalesce(l.value_count, 1), l.at FROM fieldcrypt.audit_log AS l
                      WHERE l.event = 'values_decrypted' AND l.client_address = address AND l.at >= since AND l.at < upto LIMIT most;
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.decrypted_from(inet, timestamptz, timestamptz, integer) IS
    'who decrypted how many values from an address in some time: at most so many rows of the log; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_unusual_hours(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    hours jsonb := fieldcrypt_internal.health_hours()::jsonb;
    zone text := coalesce(hours ->> 'zone', current_setting('log_timezone'));
    span interval := fieldcrypt_internal.health_threshold('use_window');
    upto timestamptz := clock_timestamp();
    detail text;
    found record;
BEGIN
    IF hours IS NULL THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'not judged: fieldcrypt.health_hours is empty');
    ELSIF NOT fieldcrypt_internal.is_use_recorded() THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'not recorded: fieldcrypt.audit_decrypt is neither statements nor all');
    END IF;
    SELECT count(*) AS rows, coalesce(sum(d.total), 0) AS total, count(DISTINCT d.actor) AS actors,
           array_agg(DISTINCT fieldcrypt_internal.quoted_name(d.actor)) AS names, array_agg(DISTINCT d.actor) AS items, max(d.at) AS latest
      INTO found
      FROM unnest(
            tstzmultirange(tstzrange(upto - span, upto)) - coalesce((
                SELECT range_agg(tstzrange((day + make_interval(mins => (hours ->> 'start')::integer)) AT TIME ZONE zone,
                           (day + make_interval(mins => (hours ->> 'end')::integer
                               + CASE WHEN (hours ->> 'end')::integer <= (hours ->> 'start')::integer THEN 1440 ELSE 0 END)) AT TIME ZONE zone))
                  FROM generate_series(date_trunc('day', (upto - span) AT TIME ZONE zone) - interval '1 day',
                           date_trunc('day', upto AT TIME ZONE zone), interval '1 day') AS day
                 WHERE hours -> 'days' @> to_jsonb(EXTRACT(isodow FROM day)::integer)), '{}'::tstzmultirange)) AS outside(part),
           fieldcrypt_internal.decrypting_addresses(upto - span) AS a,
           LATERAL fieldcrypt_internal.decrypted_from(a.address, lower(outside.part), upper(outside.part), 1000) AS d;
    detail := format('%s values were decrypted outside of %s in the last %s', found.total, current_setting('fieldcrypt.health_hours'), span);
    IF found.rows = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', detail);
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('%s: %s, last at %s', detail, fieldcrypt_internal.counted_names(found.names, found.actors, 'login role'), date_trunc('second', found.latest)),
        'SELECT * FROM fieldcrypt.audit_log WHERE event = ''values_decrypted'' tells who, from where and which keys.',
        fieldcrypt_internal.finding_identity(found.items, found.actors));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_unusual_hours(jsonb) IS 'check: values decrypted outside of the usual hours';

CREATE FUNCTION fieldcrypt_internal.check_unusual_addresses(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    span interval := fieldcrypt_internal.health_threshold('use_window');
    memory interval := fieldcrypt_internal.health_threshold('address_memory');
    upto timestamptz := clock_timestamp();
    found record;
BEGIN
    IF NOT fieldcrypt_internal.is_use_recorded() THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'not recorded: fieldcrypt.audit_decrypt is neither statements nor all');
    END IF;
    SELECT count(*) FILTER (WHERE a.is_recent AND NOT a.is_known) AS total,
           array_agg(a.name ORDER BY a.address) FILTER (WHERE a.is_recent AND NOT a.is_known) AS names,
           coalesce(bool_or(a.is_known), false) AS has_history
      INTO found
      FROM (SELECT d.address, coalesce(host(d.address), 'the local socket') AS name,
                   EXISTS (SELECT FROM fieldcrypt_internal.decrypted_from(d.address, upto - span, upto, 1)) AS is_recent,
                   EXISTS (SELECT FROM fieldcrypt_internal.decrypted_from(d.address, upto - memory, upto - span, 1)) AS is_known
              FROM fieldcrypt_internal.decrypting_addresses(upto - memory) AS d) AS a;
    IF NOT found.has_history THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('no address is unusual yet: nothing was recorded before the last %s', span));
    ELSIF found.total = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('values were decrypted only from addresses that did so before, in the last %s', memory));
    ELSE
        RETURN fieldcrypt_internal.finding_of('warning',
            format('values were decrypted in the last %s from %s that never did so in the %s before', span,
                fieldcrypt_internal.counted_names(found.names, found.total, 'host'), memory),
            'SELECT * FROM fieldcrypt.audit_log WHERE event = ''values_decrypted'' tells who and which keys. An address that is all right becomes known by itself.',
            fieldcrypt_internal.finding_identity(found.names, found.total));
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_unusual_addresses(jsonb) IS 'check: values decrypted from addresses that never did so before';

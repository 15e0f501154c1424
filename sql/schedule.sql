-- Jobs of pg_cron: one CALL a job, since two statements in one job run in one transaction. With the
-- caller's rights, and as the caller: pg_cron's functions are not the extension's.

CREATE FUNCTION fieldcrypt_internal.scheduled_jobs(rotation text, reencryption text, destruction text)
    RETURNS TABLE (job text, schedule text, command text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    -- A job's name is its user's, in pg_cron's database: so it says which database it is for.
    SELECT (j.name || current_database())::name::text, j.schedule, j.command
      FROM (VALUES ('fieldcrypt rotation of ', $1, 'CALL fieldcrypt.rotate_keys()'),
                   ('fieldcrypt re-encryption of ', $2, 'CALL fieldcrypt.reencrypt()'),
                   ('fieldcrypt destruction of ', $3, 'CALL fieldcrypt.destroy_due_keys()')) AS j (name, schedule, command)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.scheduled_jobs(text, text, text) IS 'names and commands of the jobs of schedule_rotation';

CREATE FUNCTION fieldcrypt_internal.refuse_without_cron(jobs jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home text;
    hint text;
BEGIN
    -- Its own functions, not those of somebody who made a schema of that name.
    IF EXISTS (
        SELECT FROM pg_extension AS e
          JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
          JOIN pg_namespace AS n ON d.classid = 'pg_namespace'::regclass AND d.objid = n.oid
         WHERE e.extname = 'pg_cron' AND n.nspname = 'cron')
    THEN
        RETURN;
    END IF;
    BEGIN
        home := current_setting('cron.database_name', true);
    EXCEPTION WHEN insufficient_privilege THEN
        home := '?';
    END;
    IF home IS NULL THEN
        hint := 'Install pg_cron (Debian: postgresql-15-cron), add it to shared_preload_libraries, restart, and CREATE EXTENSION pg_cron in the database cron.database_name. Or let any other scheduler run: '
            || (SELECT string_agg(j.command, '; ') FROM jsonb_to_recordset(jobs) AS j(job text, schedule text, command text) WHERE j.schedule <> '');
    ELSE
        hint := format('pg_cron has its jobs in one database%s. Run there: ',
                CASE WHEN home = '?' THEN ', cron.database_name' ELSE format(', here "%s"', home) END)
            || (SELECT string_agg(format('SELECT cron.schedule_in_database(%L, %L, %L, %L);', j.job, j.schedule, j.command, current_database()), ' ')
                  FROM jsonb_to_recordset(jobs) AS j(job text, schedule text, command text) WHERE j.schedule <> '');
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
        MESSAGE = 'pg_cron is not installed in this database', HINT = hint;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.refuse_without_cron(jsonb) IS 'an error with what to do, where pg_cron is not in this database';

CREATE FUNCTION fieldcrypt_internal.schedule_jobs(jobs jsonb) RETURNS TABLE (job text, schedule text, command text)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM jsonb_to_recordset(jobs) AS j(schedule text) WHERE j.schedule IS NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'a schedule must not be NULL', HINT = 'Pass '''' for no such job.';
    END IF;
    PERFORM fieldcrypt_internal.refuse_without_cron(jobs);
    PERFORM fieldcrypt_internal.unschedule_jobs(jobs);
    FOR job, schedule, command IN
        SELECT j.job, j.schedule, j.command FROM jsonb_to_recordset(jobs) AS j(job text, schedule text, command text) WHERE j.schedule <> ''
    LOOP
        EXECUTE 'SELECT cron.schedule($1, $2, $3)' USING job, schedule, command;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.schedule_jobs(jsonb) IS 'makes jobs of pg_cron, in the place of the caller''s of the same names';

CREATE FUNCTION fieldcrypt_internal.unschedule_jobs(jobs jsonb) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    id bigint;
    removed integer := 0;
BEGIN
    PERFORM fieldcrypt_internal.refuse_without_cron(jobs);
    FOR id IN EXECUTE
        'SELECT j.jobid FROM cron.job AS j
           JOIN jsonb_to_recordset($1) AS s(job text) ON s.job = j.jobname::text
          WHERE j.username = current_user' USING jobs
    LOOP
        EXECUTE 'SELECT cron.unschedule($1)' USING id;
        removed := removed + 1;
    END LOOP;
    RETURN removed;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.unschedule_jobs(jsonb) IS 'takes the caller''s jobs of these names away, and gives their number';

CREATE FUNCTION fieldcrypt.schedule_rotation(
        cron text DEFAULT '0 3 * * *', reencryption text DEFAULT '15 3 * * *', destruction text DEFAULT '45 3 * * *')
    RETURNS TABLE (job text, schedule text, command text)
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.job, s.schedule, s.command
      FROM fieldcrypt_internal.schedule_jobs((SELECT jsonb_agg(j) FROM fieldcrypt_internal.scheduled_jobs($1, $2, $3) AS j)) AS s
$$;
COMMENT ON FUNCTION fieldcrypt.schedule_rotation(text, text, text) IS
    'lets pg_cron rotate the keys that are due, re-encrypt, and destroy what is due, as the caller; '''' is no such job; again: replaces';

CREATE FUNCTION fieldcrypt.unschedule_rotation() RETURNS integer
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT fieldcrypt_internal.unschedule_jobs((
        SELECT jsonb_agg(j) FROM fieldcrypt_internal.scheduled_jobs('0 3 * * *', '15 3 * * *', '45 3 * * *') AS j))
$$;
COMMENT ON FUNCTION fieldcrypt.unschedule_rotation() IS 'takes the caller''s jobs of schedule_rotation away, and gives their number';

-- The states of a key, the end of a tenant, and the destruction of unused keys. The changes are made in src/keyring/states.rs, the one
-- place that says which are allowed.

CREATE FUNCTION fieldcrypt.mark_compromised(key_id bigint, reason text) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_mark_compromised';
CREATE FUNCTION fieldcrypt.suspend_key(key_id bigint, reason text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_suspend_key';
CREATE FUNCTION fieldcrypt.resume_key(key_id bigint, reason text) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_resume_key';
COMMENT ON FUNCTION fieldcrypt.mark_compromised(bigint, text) IS
    'marks a key that others may know, and makes the tenant''s next version if it was the active one; gives the active key''s id. Twice is harmless';
COMMENT ON FUNCTION fieldcrypt.suspend_key(bigint, text) IS
    'a key neither encrypts nor decrypts until resume_key; a tenant whose active key is suspended has none';
COMMENT ON FUNCTION fieldcrypt.resume_key(bigint, text) IS
    'ends suspend_key and gives the state that the key is in now: deactivated, not active, if the tenant has another active key';

CREATE FUNCTION fieldcrypt_internal.set_key_state(key_id bigint, state text, reason text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_set_key_state';
CREATE FUNCTION fieldcrypt_internal.erase_tenant_keys(tenant text, reason text) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_shred_tenant';
COMMENT ON FUNCTION fieldcrypt_internal.set_key_state(bigint, text, text) IS
    'brings a key into a less permissive state; makes no new version, asks for no approval; granted to nobody';
COMMENT ON FUNCTION fieldcrypt_internal.erase_tenant_keys(text, text) IS
    'destroys all keys of a tenant and gives their number; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.shred_step(
        tenant text, reason text, OUT destroyed bigint, OUT error_code text, OUT message text, OUT hint text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF tenant IS NULL OR reason IS NULL OR btrim(reason) = '' THEN
        error_code := CASE WHEN tenant IS NULL OR reason IS NULL THEN '22004' ELSE '22023' END;
        message := 'a tenant and a reason are needed';
        hint := 'CALL fieldcrypt.shred_tenant(tenant, reason)';
        RETURN;
    END IF;
    BEGIN
        SELECT s.message, s.hint INTO message, hint FROM fieldcrypt_internal.spend_approval('shred_tenant', tenant) AS s;
        IF message IS NOT NULL THEN
            error_code := 'KF019';
            RETURN;
        END IF;
        destroyed := fieldcrypt_internal.erase_tenant_keys(tenant, reason);
    EXCEPTION WHEN out_of_memory THEN
        RAISE;
    WHEN OTHERS THEN
        -- The approval, too, is as it was.
        GET STACKED DIAGNOSTICS
            error_code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
        PERFORM fieldcrypt_internal.record_event('key_refused', tenant, NULL,
            format('shred_tenant failed: %s (%s)', message, error_code), NULL);
    END;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.shred_step(text, text) IS
    'spends the approval and destroys a tenant''s keys; a refusal is recorded and given back, not raised';

CREATE PROCEDURE fieldcrypt.shred_tenant(tenant text, reason text)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    step pg_catalog.record;
    others pg_catalog.text;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened: what is shredded
    -- can't be rolled back, and what is refused is recorded.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM fieldcrypt_internal.refuse_unless_writable();
    PERFORM fieldcrypt_internal.by_own_hand();
    SELECT s.destroyed, s.error_code, s.message, s.hint INTO step FROM fieldcrypt_internal.shred_step(tenant, reason) AS s;
    COMMIT;
    IF step.message IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = step.error_code, MESSAGE = step.message, HINT = step.hint;
    END IF;
    others := fieldcrypt_internal.other_nodes();
    IF others IS NOT NULL THEN
        RAISE WARNING USING
            MESSAGE = pg_catalog.format('shred_tenant speaks for this node only: %s', others),
            HINT = 'A tenant is gone when its keys are destroyed on every node: call shred_tenant there, too, or see that the change has arrived. See docs/more-than-one-node.md.';
    END IF;
    RAISE NOTICE USING
        MESSAGE = pg_catalog.format('shred_tenant: %s encryption key(s) of tenant "%s" destroyed; no session can read its values from its next statement on', step.destroyed, tenant),
        DETAIL = 'Whoever has the master key can still read them with an older copy of the keys: dumps, key exports, base backups and archived WAL from before, standbys until they have replayed this, dead rows of fieldcrypt.encryption_keys on this server until VACUUM FULL.',
        HINT = 'VACUUM FULL fieldcrypt.encryption_keys; then delete those copies, or let them expire. To end it for all of them at once: rotate the master key, and destroy the old one.';
END
$$;
COMMENT ON PROCEDURE fieldcrypt.shred_tenant(text, text) IS
    'destroys all keys of a tenant at once, the active one too: its values are lost. Needs an approval unless fieldcrypt.require_approval says otherwise';

-- Destruction: scheduled, and done when it is due and nothing can use the key any more.

CREATE FUNCTION fieldcrypt_internal.schedule_destruction(key_id bigint, seconds bigint, reason text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_schedule_destruction';
CREATE FUNCTION fieldcrypt_internal.set_destroy_horizon(key_id bigint, horizon text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_set_destroy_horizon';
CREATE FUNCTION fieldcrypt_internal.erase_key(key_id bigint, reason text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_erase_key';
CREATE FUNCTION fieldcrypt.cancel_destroy_key(key_id bigint, reason text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_cancel_destroy_key';
COMMENT ON FUNCTION fieldcrypt_internal.schedule_destruction(bigint, bigint, text) IS 'schedules without looking for use; granted to nobody';
COMMENT ON FUNCTION fieldcrypt_internal.set_destroy_horizon(bigint, text) IS 'notes which prepared transactions have to end first; granted to nobody';
COMMENT ON FUNCTION fieldcrypt_internal.erase_key(bigint, text) IS 'erases a key whose destruction is due, without looking for use; granted to nobody';
COMMENT ON FUNCTION fieldcrypt.cancel_destroy_key(bigint, text) IS 'a key that destroy_key has scheduled stays';

CREATE FUNCTION fieldcrypt_internal.refuse_destruction(key_id bigint, delay interval) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    key record;
BEGIN
    IF key_id IS NULL OR delay IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'key_id and delay must not be NULL';
    END IF;
    IF now() + delay < now() + interval '7 days' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a key is destroyed after 7 days at the earliest',
            HINT = 'Until then cancel_destroy_key takes it back. A tenant''s data is destroyed at once by shred_tenant.';
    END IF;
    SELECT k.purpose, k.state, k.destroy_after INTO key FROM fieldcrypt.encryption_keys AS k WHERE k.key_id = key_id;
    IF key.state IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'KF003',
            MESSAGE = format('encryption key %s does not exist in this database', key_id),
            HINT = 'A value of it comes from another database, or fieldcrypt.encryption_keys was not restored with it. That table lists the keys that are here. (KF003, see docs/errors.md)';
    ELSIF key.purpose = 'audit' THEN
        RAISE EXCEPTION USING ERRCODE = 'KF018',
            MESSAGE = format('encryption key %s authenticates the audit log: it can''t be destroyed', key_id),
            HINT = 'Rows of the log could not be checked any more. (KF018, see docs/errors.md)';
    ELSIF key.state IN ('active', 'destroyed') THEN
        RAISE EXCEPTION USING ERRCODE = 'KF018',
            MESSAGE = format('encryption key %s is %s: it can''t be destroyed', key_id, key.state),
            HINT = 'An active key is replaced first: CALL fieldcrypt.rotate_keys(tenant), and its values are re-encrypted. (KF018, see docs/errors.md)';
    ELSIF key.destroy_after IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'KF018',
            MESSAGE = format('the destruction of encryption key %s is scheduled already', key_id),
            HINT = 'To change the date: SELECT fieldcrypt.cancel_destroy_key(key_id, reason), then schedule it anew. (KF018, see docs/errors.md)';
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.refuse_destruction(bigint, interval) IS 'an error if a key''s destruction can''t be scheduled so; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.schedule_unused(
        key_id bigint, delay interval, reason text, counted jsonb, OUT error_code text, OUT message text, OUT hint text)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    uses text := fieldcrypt_internal.use_of_key(counted, key_id);
BEGIN
    IF uses IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'KF017',
            MESSAGE = format('encryption key %s is in use', key_id),
            DETAIL = format('It encrypts %s.', uses),
            HINT = 'Re-encrypt these values first: CALL fieldcrypt.reencrypt(). SELECT * FROM fieldcrypt.key_usage(exact => true) shows all keys. (KF017, see docs/errors.md)';
    END IF;
    SELECT s.message, s.hint INTO message, hint FROM fieldcrypt_internal.spend_approval('destroy_key', key_id::text) AS s;
    IF message IS NOT NULL THEN
        error_code := 'KF019';
        RETURN;
    END IF;
    PERFORM fieldcrypt_internal.schedule_destruction(key_id,
        ceil(EXTRACT(epoch FROM now() + delay - now()))::bigint, reason);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.schedule_unused(bigint, interval, text, jsonb) IS
    'spends the approval and schedules a destruction, unless the key was found in use; a missing approval is recorded and given back, not raised; granted to nobody';

-- Counts and schedules in one step: whoever calls it by hand leaves nothing out.
CREATE FUNCTION fieldcrypt_internal.schedule_step(
        key_id bigint, delay interval, reason text, OUT error_code text, OUT message text, OUT hint text, OUT done text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    problem text;
BEGIN
    PERFORM fieldcrypt_internal.refuse_destruction(key_id, delay);
    SELECT s.error_code, s.message, s.hint INTO error_code, message, hint
      FROM fieldcrypt_internal.schedule_unused(key_id, delay, reason, fieldcrypt_internal.count_use(ARRAY[key_id])) AS s;
    -- What can't be counted must be so when it is due; it is said now, so that nobody waits in vain.
    problem := fieldcrypt_internal.uncountable('-infinity');
    IF message IS NULL AND problem IS NOT NULL THEN
        RAISE WARNING USING
            MESSAGE = format('it can''t be known that encryption key %s is unused: %s', key_id, problem),
            HINT = 'It is scheduled, but destroy_due_keys does not destroy it as long as this is so.';
    END IF;
    done := (SELECT format('destroy_due_keys destroys encryption key %s from %s on; until then cancel_destroy_key takes it back',
                        key_id, date_trunc('second', k.destroy_after))
               FROM fieldcrypt.encryption_keys AS k WHERE k.key_id = key_id);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.schedule_step(bigint, interval, text) IS
    'looks for use, spends the approval and schedules a destruction; a missing approval is recorded and given back, not raised';

-- The approval is asked for now and not when it is due: it lasts for 7 days at most, the delay for 7 at
-- least. Whoever regrets it has that time, and needs nobody's approval for cancel_destroy_key.
CREATE PROCEDURE fieldcrypt.destroy_key(
        key_id bigint, delay interval DEFAULT '30 days', reason text DEFAULT NULL)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    step pg_catalog.record;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM fieldcrypt_internal.refuse_unless_writable();
    SELECT s.error_code, s.message, s.hint, s.done INTO step FROM fieldcrypt_internal.schedule_step(key_id, delay, reason) AS s;
    COMMIT;
    IF step.message IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = step.error_code, MESSAGE = step.message, HINT = step.hint;
    END IF;
    RAISE NOTICE 'destroy_key: %', step.done;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.destroy_key(bigint, interval, text) IS
    'schedules the destruction of a key that no value uses, 7 days from now at the earliest; until then it decrypts, and cancel_destroy_key takes it back';

CREATE FUNCTION fieldcrypt.retire_keys(
        keep_versions integer, tenant text DEFAULT NULL, delay interval DEFAULT '30 days', reason text DEFAULT NULL)
    RETURNS TABLE (key_id bigint, key_tenant text, version integer, state text, outcome text, detail text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    keys bigint[];
    counted jsonb;
    step record;
    problem text := fieldcrypt_internal.uncountable('-infinity');
    scheduled bigint := 0;
BEGIN
    IF keep_versions IS NULL OR delay IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'keep_versions and delay must not be NULL';
    END IF;
    IF keep_versions < 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'at least one version of each tenant''s keys is kept',
            HINT = 'To destroy all of a tenant''s keys: CALL fieldcrypt.shred_tenant(tenant, reason).';
    END IF;
    keys := ARRAY(
        SELECT k.key_id
          FROM (SELECT a.*, row_number() OVER (PARTITION BY a.tenant ORDER BY a.version DESC) AS place
                  FROM fieldcrypt.encryption_keys AS a
                 WHERE a.purpose IN ('field', 'loose') AND a.state <> 'destroyed' AND (tenant IS NULL OR a.tenant = tenant)) AS k
         WHERE k.place > keep_versions AND k.state <> 'active' AND k.destroy_after IS NULL
         ORDER BY k.tenant, k.version);
    IF keys <> '{}' THEN
        counted := fieldcrypt_internal.count_use(keys);
    END IF;
    FOR key_id, key_tenant, version, state IN
        SELECT k.key_id, k.tenant, k.version, k.state
          FROM unnest(keys) WITH ORDINALITY AS u(id, place) JOIN fieldcrypt.encryption_keys AS k ON k.key_id = u.id
         ORDER BY u.place
    LOOP
        outcome := 'kept';
        detail := fieldcrypt_internal.use_of_key(counted, key_id);
        IF detail IS NOT NULL THEN
            detail := 'in use: ' || detail;
        ELSIF state = 'suspended' THEN
            detail := 'suspended: resume it, or schedule it with destroy_key';
        ELSE
            BEGIN
                PERFORM fieldcrypt_internal.refuse_destruction(key_id, delay);
                SELECT s.error_code, s.message INTO step FROM fieldcrypt_internal.schedule_unused(key_id, delay, reason, counted) AS s;
                IF step.message IS NULL THEN
                    outcome := 'scheduled';
                    scheduled := scheduled + 1;
                ELSE
                    detail := format('%s (%s)', step.message, step.error_code);
                END IF;
            EXCEPTION WHEN OTHERS THEN
                IF SQLSTATE IN ('22023', '53200') THEN
                    RAISE;
                END IF;
                detail := format('%s (%s)', SQLERRM, SQLSTATE);
            END;
        END IF;
        RETURN NEXT;
    END LOOP;
    -- As destroy_key says it.
    IF scheduled > 0 AND problem IS NOT NULL THEN
        RAISE WARNING USING
            MESSAGE = format('it can''t be known that %s encryption key(s) are unused: %s', scheduled, problem),
            HINT = 'They are scheduled, but destroy_due_keys does not destroy them as long as this is so.';
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt.retire_keys(integer, text, interval, text) IS
    'schedules the destruction of unused key versions but the newest ones of each tenant, and says of each what was done';

-- Whether every transaction that may have encrypted with a key has ended.
--
-- destroy_key and retire_keys schedule a key only when its last change of state is committed, so that no
-- transaction that began later has encrypted with it: every use of a cached key looks for changes first.
-- What deactivated_at says is not enough: it is the time of the change, not of its commit. The hour that
-- is added is for clocks that are set, and for a commit that is seen before its message arrives; since
-- nothing is due before 7 days, it costs nothing.
--
-- A prepared transaction shows no start, so what counts is its id: once none of the older transactions
-- runs any more, those that were prepared have ids below the next one, the horizon. It is noted at the
-- first chance, so that a database that always has some prepared transaction gets there.
CREATE FUNCTION fieldcrypt_internal.quiet_step(key_id bigint) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    key record;
    next_id bigint;
    horizon bigint;
    blockers text;
BEGIN
    SELECT k.destroy_scheduled_at + interval '1 hour' AS since, k.destroy_horizon, k.purpose INTO key
      FROM fieldcrypt.encryption_keys AS k
     WHERE k.key_id = key_id AND k.destroy_after IS NOT NULL AND k.state <> 'destroyed';
    IF key.since IS NULL THEN
        RETURN 'it is no longer scheduled';
    END IF;
    IF NOT (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user)
       AND NOT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') THEN
        RETURN format('the extension''s owner can''t see the transactions of others (GRANT pg_read_all_stats TO %I)', current_user);
    END IF;
    next_id := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
    horizon := key.destroy_horizon::text::bigint;
    -- One from the future came with a dump of another server.
    IF horizon IS NULL OR horizon > next_id THEN
        PERFORM pg_stat_clear_snapshot();
        SELECT string_agg(format('process %s of %s', a.pid, a.usename), ', ' ORDER BY a.xact_start) INTO blockers
          FROM pg_stat_activity AS a
         WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
           AND a.backend_type <> 'autovacuum worker'
           AND (a.xact_start < key.since
                -- Statements that are prepared, and functions, keep the literals that were sealed when they were first read.
                OR key.purpose = 'loose' AND (a.backend_start < key.since OR a.backend_start IS NULL)
                -- With track_activities off nothing is known of its transaction.
                OR a.state = 'disabled' AND (a.backend_start < key.since OR a.backend_start IS NULL));
        IF blockers IS NOT NULL THEN
            RETURN format('%s from before its schedule are running: %s', CASE key.purpose WHEN 'loose' THEN 'sessions' ELSE 'transactions' END, blockers);
        END IF;
        -- Taken after that look: whatever it missed because it was prepared has a lower id.
        horizon := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
        next_id := horizon;
        BEGIN
            PERFORM fieldcrypt_internal.set_destroy_horizon(key_id, horizon::text);
        EXCEPTION WHEN out_of_memory THEN
            RAISE;
        WHEN OTHERS THEN
            -- Of this key alone: the others go on.
            RETURN format('%s (%s)', SQLERRM, SQLSTATE);
        END;
    END IF;
    -- Ids of prepared transactions are the lower 32 bits.
    SELECT string_agg(format('%L', p.gid), ', ' ORDER BY p.prepared) INTO blockers
      FROM pg_prepared_xacts AS p
     WHERE p.database = current_database()
       AND next_id + ((p.transaction::text::bigint - next_id + 2147483648) & 4294967295) - 2147483648 < horizon;
    RETURN 'prepared transactions from before its schedule are open: ' || blockers;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.quiet_step(bigint) IS
    'why transactions may still hold values of a scheduled key; NULL if none can';

CREATE FUNCTION fieldcrypt_internal.scheduled_keys(OUT due bigint[], OUT unobserved bigint[])
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(k.key_id ORDER BY k.destroy_after, k.key_id) FILTER (WHERE k.destroy_after <= clock_timestamp()), '{}'),
           coalesce(array_agg(k.key_id) FILTER (WHERE k.destroy_after > clock_timestamp() AND k.destroy_horizon IS NULL
               AND k.destroy_scheduled_at + interval '1 hour' < clock_timestamp()), '{}')
      FROM fieldcrypt.encryption_keys AS k
     WHERE k.destroy_after IS NOT NULL AND k.state <> 'destroyed'
$$;
COMMENT ON FUNCTION fieldcrypt_internal.scheduled_keys() IS 'keys whose destruction is due, and those whose older transactions are still to be waited for';

-- Looks and erases in one step: whoever calls it by hand leaves nothing out. The order matters: first
-- nothing may run that encrypted with the key; then no table may hold a value of it; and what nobody can
-- write anew stays so until it is erased. What remains possible is a value that a client, or a
-- transaction that moves rows about at this very moment, holds outside of every table, and a restore.
CREATE FUNCTION fieldcrypt_internal.destroy_step(
        keys bigint[], ignore_uncountable boolean,
        OUT key_id bigint, OUT outcome text, OUT message text) RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    quiet bigint[] := '{}';
    counted jsonb;
    is_uncertain boolean;
    since timestamptz;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_transaction_state',
            MESSAGE = 'keys are destroyed in READ COMMITTED only: an older snapshot does not show what uses them';
    END IF;
    FOREACH key_id IN ARRAY keys LOOP
        message := fieldcrypt_internal.quiet_step(key_id);
        IF message IS NULL THEN
            quiet := quiet || key_id;
        ELSE
            outcome := 'waits';
            RETURN NEXT;
        END IF;
    END LOOP;
    IF quiet = '{}' THEN
        RETURN;
    END IF;
    counted := fieldcrypt_internal.count_use(quiet);
    is_uncertain := ignore_uncountable IS NOT TRUE AND fieldcrypt_internal.uncountable('infinity') IS NOT NULL;
    FOREACH key_id IN ARRAY quiet LOOP
        SELECT k.destroy_scheduled_at + interval '1 hour' INTO since
          FROM fieldcrypt.encryption_keys AS k WHERE k.key_id = key_id;
        outcome := 'waits';
        message := coalesce(
            'it is in use: ' || fieldcrypt_internal.use_of_key(counted, key_id),
            CASE WHEN is_uncertain THEN fieldcrypt_internal.uncountable(since) END);
        IF message IS NULL THEN
            BEGIN
                PERFORM fieldcrypt_internal.erase_key(key_id, CASE WHEN ignore_uncountable THEN 'ignore_uncountable' END);
                outcome := 'destroyed';
            EXCEPTION WHEN out_of_memory THEN
                RAISE;
            WHEN OTHERS THEN
                outcome := 'failed';
                message := format('%s (%s)', SQLERRM, SQLSTATE);
                PERFORM fieldcrypt_internal.record_event('key_refused', NULL, key_id, 'destruction failed: ' || message, NULL);
            END;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.destroy_step(bigint[], boolean) IS
    'erases those of some due keys that no transaction and no table can hold a value of, and says what keeps the others';

CREATE PROCEDURE fieldcrypt.destroy_due_keys(ignore_uncountable boolean DEFAULT false)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    scheduled pg_catalog.record;
    outcomes pg_catalog.jsonb;
    outcome pg_catalog.record;
    id pg_catalog.int8;
    place pg_catalog.int4 := 1;
    destroyed pg_catalog.int8 := 0;
    waiting pg_catalog.int8 := 0;
    failed pg_catalog.int8 := 0;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM fieldcrypt_internal.refuse_unless_writable();
    SELECT s.due, s.unobserved INTO scheduled FROM fieldcrypt_internal.scheduled_keys() AS s;
    -- What is seen of transactions is kept, also of keys that are not due, and if the rest fails.
    FOREACH id IN ARRAY scheduled.due OPERATOR(pg_catalog.||) scheduled.unobserved LOOP
        PERFORM fieldcrypt_internal.quiet_step(id);
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    END LOOP;
    -- Many at once, since each time all tables are read.
    WHILE place OPERATOR(pg_catalog.<=) pg_catalog.cardinality(scheduled.due) LOOP
        SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(s)) INTO outcomes
          FROM fieldcrypt_internal.destroy_step(
                   (scheduled.due)[place : place OPERATOR(pg_catalog.+) 9999], COALESCE(ignore_uncountable, false)) AS s;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        FOR outcome IN
            SELECT o.key_id, o.outcome, o.message
              FROM pg_catalog.jsonb_to_recordset(outcomes)
                   AS o(key_id pg_catalog.int8, outcome pg_catalog.text, message pg_catalog.text)
        LOOP
            IF outcome.outcome OPERATOR(pg_catalog.=) 'destroyed' THEN
                destroyed := destroyed OPERATOR(pg_catalog.+) 1;
            ELSIF outcome.outcome OPERATOR(pg_catalog.=) 'waits' THEN
                waiting := waiting OPERATOR(pg_catalog.+) 1;
            ELSE
                failed := failed OPERATOR(pg_catalog.+) 1;
            END IF;
            IF outcome.message IS NOT NULL THEN
                RAISE WARNING USING
                    MESSAGE = pg_catalog.format('encryption key %s is not destroyed: %s', outcome.key_id, outcome.message),
                    HINT = 'It stays scheduled; cancel_destroy_key takes it back.';
            END IF;
        END LOOP;
        place := place OPERATOR(pg_catalog.+) 10000;
    END LOOP;
    RAISE NOTICE 'destroy_due_keys: % destroyed, % waiting, % failed', destroyed, waiting, failed;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.destroy_due_keys(boolean) IS
    'erases the keys whose destruction is due and that nothing can use any more. ignore_uncountable: also if there are tables whose values can''t be counted';

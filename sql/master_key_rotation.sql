-- Rotation of the master key: every encryption key is wrapped again. First the target becomes the
-- current one, under a lock that waits for all who are making a key; from then on no key comes under
-- the old one, and what is left is moved in committed batches.

CREATE FUNCTION fieldcrypt_internal.target_master_key() RETURNS bytea
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_target_master_key';
COMMENT ON FUNCTION fieldcrypt_internal.target_master_key() IS
    'fingerprint of the first master key, its source read again; an error where the master key can''t be rotated';
CREATE FUNCTION fieldcrypt_internal.lock_master_keys() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_lock_master_keys';
COMMENT ON FUNCTION fieldcrypt_internal.lock_master_keys() IS
    'waits until nobody is making an encryption key; granted to nobody';
CREATE FUNCTION fieldcrypt_internal.make_current(target bytea) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_make_current';
COMMENT ON FUNCTION fieldcrypt_internal.make_current(bytea) IS
    'new encryption keys are wrapped by this master key from now on; granted to nobody';
CREATE FUNCTION fieldcrypt_internal.rewrap_keys(target bytea, key_ids text) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_rewrap_keys';
COMMENT ON FUNCTION fieldcrypt_internal.rewrap_keys(bytea, text) IS
    'wraps encryption keys again, opening each new wrapping to compare; granted to nobody';
CREATE FUNCTION fieldcrypt_internal.retire_master_keys() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_retire_master_keys';
COMMENT ON FUNCTION fieldcrypt_internal.retire_master_keys() IS
    'marks the master keys that wrap nothing; granted to nobody';

-- What steps have done, counted by themselves: whoever calls one by hand can't tell the log of another number.
CREATE TABLE fieldcrypt_internal.master_key_rotation (
    target bytea PRIMARY KEY,
    rewrapped bigint NOT NULL DEFAULT 0,
    failed_keys bigint[] NOT NULL DEFAULT '{}'
);
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt_internal.master_key_rotation
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
COMMENT ON TABLE fieldcrypt_internal.master_key_rotation IS 'the rotation of the master key that has begun and was not finished: at most one row';
COMMENT ON COLUMN fieldcrypt_internal.master_key_rotation.target IS 'fingerprint of the master key that wraps all keys when it is finished';
COMMENT ON COLUMN fieldcrypt_internal.master_key_rotation.rewrapped IS 'keys wrapped again since it began';
COMMENT ON COLUMN fieldcrypt_internal.master_key_rotation.failed_keys IS 'keys that did not open';

CREATE FUNCTION fieldcrypt_internal.short_fingerprint(fingerprint bytea) RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT upper(left(encode($1, 'hex'), 8)) || '...' $$;
COMMENT ON FUNCTION fieldcrypt_internal.short_fingerprint(bytea) IS 'a fingerprint as messages show it';

CREATE FUNCTION fieldcrypt_internal.lock_holders(relation regclass) RETURNS text
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(DISTINCT CASE
               WHEN p.gid IS NOT NULL THEN format('prepared transaction "%s" of %s since %s', p.gid, p.owner, date_trunc('second', p.prepared))
               WHEN l.pid IS NULL THEN 'a prepared transaction'
               ELSE format('process %s of %s, in a transaction since %s', l.pid, coalesce(a.usename, '?'), date_trunc('second', a.xact_start)) END, '; ')
      FROM pg_locks AS l
      LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
      LEFT JOIN pg_locks AS own ON l.pid IS NULL AND own.pid IS NULL
           AND own.locktype = 'transactionid' AND own.granted AND own.virtualtransaction = l.virtualtransaction
      LEFT JOIN pg_prepared_xacts AS p ON p.transaction = own.transactionid
     WHERE l.locktype = 'relation' AND l.relation = $1 AND l.granted AND l.mode NOT IN ('AccessShareLock')
       AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
       AND l.pid IS DISTINCT FROM pg_backend_pid()
$$;
COMMENT ON FUNCTION fieldcrypt_internal.lock_holders(regclass) IS 'the transactions that hold a table locked for writing';

CREATE FUNCTION fieldcrypt_internal.keys_to_rewrap(target bytea) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT count(*) FROM fieldcrypt.encryption_keys AS k
     WHERE k.wrapped_key IS NOT NULL AND k.master_key_fingerprint <> $1
$$;
COMMENT ON FUNCTION fieldcrypt_internal.keys_to_rewrap(bytea) IS 'how many encryption keys another master key wraps';

CREATE FUNCTION fieldcrypt_internal.begin_master_key_rotation(
        target bytea, OUT state text, OUT old_fingerprint bytea, OUT blockers text,
        OUT message text, OUT hint text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    -- Whoever wants to make a key queues behind the lock that is waited for here.
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s'
AS $$
BEGIN
    SELECT m.fingerprint INTO old_fingerprint FROM fieldcrypt.master_keys AS m WHERE m.is_current;
    IF old_fingerprint IS DISTINCT FROM target THEN
        BEGIN
            PERFORM fieldcrypt_internal.lock_master_keys();
        EXCEPTION WHEN lock_not_available THEN
            state := 'blocked';
            blockers := coalesce(fieldcrypt_internal.lock_holders('fieldcrypt.master_keys'), 'another transaction');
            RETURN;
        END;
        SELECT m.fingerprint INTO old_fingerprint FROM fieldcrypt.master_keys AS m WHERE m.is_current;
    END IF;
    IF old_fingerprint IS NULL THEN
        state := 'no keys';
    ELSIF old_fingerprint <> target THEN
        SELECT s.message, s.hint INTO message, hint
          FROM fieldcrypt_internal.spend_approval('rotate_master_key', encode(target, 'hex')) AS s;
        IF message IS NOT NULL THEN
            -- Not raised here: that would take the record of the refusal back.
            state := 'refused';
            RETURN;
        END IF;
        PERFORM fieldcrypt_internal.make_current(target);
        DELETE FROM fieldcrypt_internal.master_key_rotation;
        INSERT INTO fieldcrypt_internal.master_key_rotation (target) VALUES (begin_master_key_rotation.target);
        PERFORM fieldcrypt_internal.record_event('master_key_rotation_started', NULL, NULL,
            format('from %s to %s, keys to wrap again: %s', encode(old_fingerprint, 'hex'),
                   encode(target, 'hex'), fieldcrypt_internal.keys_to_rewrap(target)), NULL);
        state := 'switched';
    ELSIF fieldcrypt_internal.keys_to_rewrap(target) > 0 THEN
        INSERT INTO fieldcrypt_internal.master_key_rotation (target) VALUES (begin_master_key_rotation.target)
            ON CONFLICT ON CONSTRAINT master_key_rotation_pkey DO NOTHING;
        state := 'resumed';
    ELSE
        state := 'done';
        BEGIN
            -- A run that ended early may have left this undone.
            PERFORM fieldcrypt_internal.retire_master_keys();
        EXCEPTION WHEN lock_not_available THEN
            -- Of an import, for instance.
            state := 'blocked';
            blockers := coalesce(fieldcrypt_internal.lock_holders('fieldcrypt.master_keys'), 'another transaction');
        END;
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.begin_master_key_rotation(bytea) IS
    'the first step of rotate_master_key: makes the target the current master key, if it is not';

-- By key id, each pass from the last one on: no batch reads again what is done. Keys that another
-- transaction holds locked are left for a later pass.
CREATE FUNCTION fieldcrypt_internal.rewrap_step(
        target bytea, after_key_id bigint, batch_size integer,
        OUT last_key_id bigint, OUT rewrapped bigint, OUT failed bigint, OUT failures text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
AS $$
DECLARE
    key_ids text;
    done jsonb;
    failure record;
    known bigint[];
BEGIN
    -- Before rows of the other table, as everybody does: an import locks them in this order.
    LOCK TABLE fieldcrypt.master_keys IN ROW SHARE MODE;
    SELECT max(c.key_id), string_agg(c.key_id::text, ',')
      INTO last_key_id, key_ids
      FROM (SELECT k.key_id
              FROM fieldcrypt.encryption_keys AS k
             WHERE k.key_id > after_key_id
               AND k.wrapped_key IS NOT NULL
               AND k.master_key_fingerprint <> target
             ORDER BY k.key_id
             LIMIT batch_size
               FOR NO KEY UPDATE SKIP LOCKED) AS c;
    IF last_key_id IS NULL THEN
        RETURN;
    END IF;
    done := fieldcrypt_internal.rewrap_keys(target, key_ids);
    rewrapped := (done ->> 'rewrapped')::bigint;
    failed := jsonb_array_length(done -> 'failures');
    INSERT INTO fieldcrypt_internal.master_key_rotation AS r (target) VALUES (rewrap_step.target)
        ON CONFLICT ON CONSTRAINT master_key_rotation_pkey DO UPDATE SET rewrapped = r.rewrapped
    RETURNING r.failed_keys INTO known;
    FOR failure IN
        SELECT k.tenant, k.key_id, f.value ->> 'error' AS error
          FROM jsonb_array_elements(done -> 'failures') AS f
          JOIN fieldcrypt.encryption_keys AS k ON k.key_id = (f.value ->> 'key_id')::bigint
         ORDER BY k.key_id
    LOOP
        failures := concat_ws('; ', failures, failure.error);
        -- Once for each key, however often it is tried.
        IF failure.key_id <> ALL (known) THEN
            known := known || failure.key_id;
            PERFORM fieldcrypt_internal.record_event('key_refused', failure.tenant, failure.key_id,
                format('not wrapped again: %s', failure.error), NULL);
        END IF;
    END LOOP;
    UPDATE fieldcrypt_internal.master_key_rotation AS r
       SET rewrapped = r.rewrapped + rewrap_step.rewrapped, failed_keys = known
     WHERE r.target = rewrap_step.target;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.rewrap_step(bytea, bigint, integer) IS
    'wraps a batch of encryption keys under the target; what does not open is recorded and left as it is';

CREATE FUNCTION fieldcrypt_internal.finish_master_key_rotation(OUT remaining bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target bytea;
    rewrapped bigint;
    failed bigint;
    failed_keys bigint[];
BEGIN
    LOCK TABLE fieldcrypt.master_keys IN ROW SHARE MODE;
    DELETE FROM fieldcrypt_internal.master_key_rotation AS r
     USING fieldcrypt.master_keys AS m WHERE m.is_current AND m.fingerprint = r.target
    RETURNING r.target, r.rewrapped, r.failed_keys INTO target, rewrapped, failed_keys;
    IF target IS NULL THEN
        -- Another session was faster, or there was nothing to finish.
        remaining := (SELECT fieldcrypt_internal.keys_to_rewrap(m.fingerprint) FROM fieldcrypt.master_keys AS m WHERE m.is_current);
        RETURN;
    END IF;
    failed := (SELECT count(*) FROM fieldcrypt.encryption_keys AS k
                WHERE k.key_id = ANY (failed_keys) AND k.wrapped_key IS NOT NULL AND k.master_key_fingerprint <> target);
    PERFORM fieldcrypt_internal.retire_master_keys();
    remaining := fieldcrypt_internal.keys_to_rewrap(target);
    PERFORM fieldcrypt_internal.record_event('master_key_rotation_finished', NULL, NULL,
        format('to %s: %s wrapped again, %s failed, %s left under other master keys',
               encode(target, 'hex'), rewrapped, failed, remaining), NULL);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.finish_master_key_rotation() IS
    'the last step of rotate_master_key: records the end of one that has begun, with what its steps have counted, and what needs not be loaded any more';

CREATE PROCEDURE fieldcrypt.rotate_master_key(
        batch_size integer DEFAULT 1000, wait_for_locks interval DEFAULT '1 minute')
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    target pg_catalog.bytea;
    begun pg_catalog.record;
    step pg_catalog.record;
    deadline pg_catalog.timestamptz := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) wait_for_locks;
    told_at pg_catalog.timestamptz := pg_catalog.clock_timestamp();
    after_key_id pg_catalog.int8 := 0;
    total pg_catalog.int8;
    remaining pg_catalog.int8;
    rewrapped pg_catalog.int8 := 0;
    failed pg_catalog.int8 := 0;
    failures pg_catalog.text := '';
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF batch_size IS NULL OR wait_for_locks IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'batch_size and wait_for_locks must not be NULL', HINT = 'Leave them out.';
    ELSIF batch_size OPERATOR(pg_catalog.<) 1 OR batch_size OPERATOR(pg_catalog.>) 100000 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'batch_size must be from 1 to 100000', HINT = 'The default of 1000 keys a transaction is good.';
    END IF;
    target := fieldcrypt_internal.target_master_key();

    LOOP
        PERFORM fieldcrypt_internal.by_own_hand();
        SELECT b.state, b.old_fingerprint, b.blockers, b.message, b.hint INTO begun FROM fieldcrypt_internal.begin_master_key_rotation(target) AS b;
        COMMIT;
        -- At once: any expression after a COMMIT takes a snapshot, and then it is too late.
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        IF begun.state OPERATOR(pg_catalog.=) 'refused' THEN
            RAISE EXCEPTION USING ERRCODE = 'KF019', MESSAGE = begun.message, HINT = begun.hint;
        END IF;
        EXIT WHEN begun.state OPERATOR(pg_catalog.<>) 'blocked';
        IF pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) deadline THEN
            RAISE EXCEPTION USING ERRCODE = 'KF020',
                MESSAGE = pg_catalog.format('the master key was not rotated: transactions that have made keys have not ended: %s', begun.blockers),
                HINT = 'End them (COMMIT PREPARED or ROLLBACK PREPARED for a prepared one) and call it again. Nothing was changed. (KF020, see docs/errors.md)';
        END IF;
        RAISE NOTICE 'rotate_master_key: waiting for %', begun.blockers;
        PERFORM pg_catalog.pg_sleep(0.5);
    END LOOP;
    IF begun.state OPERATOR(pg_catalog.=) 'no keys' THEN
        RAISE NOTICE 'rotate_master_key: nothing to do: this database has no encryption keys yet';
        RETURN;
    ELSIF begun.state OPERATOR(pg_catalog.=) 'done' THEN
        RAISE NOTICE 'rotate_master_key: nothing to do: master key % is the current one already and wraps all keys',
            fieldcrypt_internal.short_fingerprint(target);
        RETURN;
    END IF;
    total := fieldcrypt_internal.keys_to_rewrap(target);
    RAISE NOTICE 'rotate_master_key: % to master key %: % keys to wrap again', begun.state, fieldcrypt_internal.short_fingerprint(target), total;

    LOOP
        SELECT s.last_key_id, s.rewrapped, s.failed, s.failures INTO step
          FROM fieldcrypt_internal.rewrap_step(target, after_key_id, batch_size) AS s;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        IF step.last_key_id IS NOT NULL THEN
            after_key_id := step.last_key_id;
            rewrapped := rewrapped OPERATOR(pg_catalog.+) step.rewrapped;
            failed := failed OPERATOR(pg_catalog.+) step.failed;
            IF step.failed OPERATOR(pg_catalog.>) 0 THEN
                failures := pg_catalog."left"(pg_catalog.concat_ws('; ', NULLIF(failures, ''), step.failures), 2000);
            END IF;
            IF pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) (told_at OPERATOR(pg_catalog.+) interval '5 seconds') THEN
                told_at := pg_catalog.clock_timestamp();
                RAISE NOTICE 'rotate_master_key: % of % keys', rewrapped, total;
            END IF;
            CONTINUE;
        END IF;
        remaining := fieldcrypt_internal.keys_to_rewrap(target);
        EXIT WHEN remaining OPERATOR(pg_catalog.<=) failed OR pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) deadline;
        -- Some are locked by others: once more, from the start.
        PERFORM pg_catalog.pg_sleep(0.2);
        after_key_id := 0;
        failed := 0;
        failures := '';
    END LOOP;

    remaining := fieldcrypt_internal.finish_master_key_rotation();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF failed OPERATOR(pg_catalog.>) 0 THEN
        RAISE WARNING USING ERRCODE = 'KF020',
            MESSAGE = pg_catalog.format('%s keys did not open and were not wrapped again: %s', failed, failures),
            HINT = 'Keep the old master key loaded. Restore the rows of these keys in fieldcrypt.encryption_keys from a backup, or destroy them, and call it again. (KF020, see docs/errors.md)';
    END IF;
    IF remaining OPERATOR(pg_catalog.>) failed THEN
        RAISE WARNING USING ERRCODE = 'KF020',
            MESSAGE = pg_catalog.format('%s keys are locked by other transactions and were not wrapped again: %s',
                remaining OPERATOR(pg_catalog.-) failed, COALESCE(fieldcrypt_internal.lock_holders('fieldcrypt.encryption_keys'::pg_catalog.regclass), 'they have ended meanwhile')),
            HINT = 'Keep the old master key loaded, and call it again when they have ended. (KF020, see docs/errors.md)';
    END IF;
    IF remaining OPERATOR(pg_catalog.>) 0 THEN
        RAISE NOTICE 'rotate_master_key: % wrapped again, % left under other master keys (see fieldcrypt.master_key_status())', rewrapped, remaining;
    ELSE
        RAISE NOTICE 'rotate_master_key: % wrapped again; master key % wraps all keys of this database: the lines that fieldcrypt.master_key_status() calls not needed can be removed, once that holds in every database that uses them',
            rewrapped, fieldcrypt_internal.short_fingerprint(target);
    END IF;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.rotate_master_key(integer, interval) IS
    'wraps every encryption key under the first master key of the source, which becomes the current one; in committed batches, resumable; wait_for_locks: how long it waits for transactions that hold keys';

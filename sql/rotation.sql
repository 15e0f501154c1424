-- Rotation: how often, and the procedure that does it. The procedure loops and commits, with its
-- caller's rights; each step does its work with the owner's.

CREATE TABLE fieldcrypt.rotation_policies (
    tenant text COLLATE "C" PRIMARY KEY CHECK (pg_catalog.octet_length(tenant) OPERATOR(pg_catalog.<=) 1024),
    rotate_every interval NOT NULL,
    set_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    set_by text NOT NULL DEFAULT session_user
);
COMMENT ON TABLE fieldcrypt.rotation_policies IS 'how old a tenant''s active key may become; written by set_rotation_policy';
COMMENT ON COLUMN fieldcrypt.rotation_policies.tenant IS 'whose keys; empty: all tenants without a row of their own, which is 90 days without this row';
COMMENT ON COLUMN fieldcrypt.rotation_policies.rotate_every IS 'the age at which an active key is due';
COMMENT ON COLUMN fieldcrypt.rotation_policies.set_at IS 'when it was set';
COMMENT ON COLUMN fieldcrypt.rotation_policies.set_by IS 'session_user: who set it';

SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.rotation_policies', '');

-- The ids are those of the audit log: a restored database deals out higher ones.
CREATE TABLE fieldcrypt.rotation_log (
    id bigint PRIMARY KEY DEFAULT pg_catalog.nextval('fieldcrypt_internal.audit_log_id_seq'),
    run_started_at timestamptz NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    tenant text COLLATE "C" NOT NULL,
    outcome text COLLATE "C" NOT NULL CHECK (outcome IN ('rotated', 'created', 'failed')),
    old_key_id bigint,
    new_key_id bigint,
    error_code text COLLATE "C",
    error text,
    reason text,
    actor text NOT NULL DEFAULT session_user,
    role text NOT NULL DEFAULT fieldcrypt_internal.outer_role()
);
CREATE INDEX rotation_log_tenant ON fieldcrypt.rotation_log (tenant, id);
COMMENT ON TABLE fieldcrypt.rotation_log IS 'what rotate_keys did: a row for each tenant that it rotated or failed to, append-only';
COMMENT ON COLUMN fieldcrypt.rotation_log.id IS 'in the order of writing; shares its numbers with audit_log';
COMMENT ON COLUMN fieldcrypt.rotation_log.run_started_at IS 'when the statement that called rotate_keys began: the same for all rows of a run';
COMMENT ON COLUMN fieldcrypt.rotation_log.started_at IS 'when this tenant''s turn began';
COMMENT ON COLUMN fieldcrypt.rotation_log.ended_at IS 'when it ended';
COMMENT ON COLUMN fieldcrypt.rotation_log.tenant IS 'whose key';
COMMENT ON COLUMN fieldcrypt.rotation_log.outcome IS 'rotated; created (no key was active); failed';
COMMENT ON COLUMN fieldcrypt.rotation_log.old_key_id IS 'the key that was active before';
COMMENT ON COLUMN fieldcrypt.rotation_log.new_key_id IS 'the key that is active since';
COMMENT ON COLUMN fieldcrypt.rotation_log.error_code IS 'SQLSTATE of the failure';
COMMENT ON COLUMN fieldcrypt.rotation_log.error IS 'message of the failure';
COMMENT ON COLUMN fieldcrypt.rotation_log.reason IS 'why, in the words of the call';
COMMENT ON COLUMN fieldcrypt.rotation_log.actor IS 'session_user: who logged in';
COMMENT ON COLUMN fieldcrypt.rotation_log.role IS 'the role chosen with SET ROLE; the actor, if none was';

SELECT pg_catalog.pg_extension_config_dump('fieldcrypt.rotation_log', '');

CREATE FUNCTION fieldcrypt_internal.store_rotation_policy(tenant text, every text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_store_rotation_policy';
COMMENT ON FUNCTION fieldcrypt_internal.store_rotation_policy(text, text) IS
    'writes a row of rotation_policies, or removes it; granted to nobody';

CREATE FUNCTION fieldcrypt.set_rotation_policy(tenant text, every interval) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET intervalstyle = 'postgres'
AS $$
DECLARE
    -- The shortest month: an interval of months less days is measured where it is shortest.
    february timestamptz := '2026-02-01 00:00:00+00';
    had boolean := EXISTS (SELECT FROM fieldcrypt.rotation_policies AS p WHERE p.tenant = coalesce($1, ''));
    whose text := CASE WHEN $1 IS NULL THEN 'the key of each tenant without a policy of its own' ELSE format('the key of tenant "%s"', $1) END;
BEGIN
    IF tenant = '' OR octet_length(tenant) > 1024 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a policy is for a tenant, whose name has 1 to 1024 bytes',
            HINT = 'NULL sets the default for all tenants.';
    END IF;
    -- First by itself: a date can't be moved by any interval.
    IF every > interval '100 years' OR every < interval '1 hour' OR february + every < february + interval '1 hour' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('a rotation policy of %s is refused: it must be from one hour to 100 years', every),
            HINT = 'Usual are 90 days or a year. NULL removes the policy.';
    END IF;
    PERFORM fieldcrypt_internal.store_rotation_policy(coalesce(tenant, ''), every::text);
    PERFORM fieldcrypt_internal.record_event(
        CASE WHEN every IS NULL THEN 'rotation_policy_removed' ELSE 'rotation_policy_set' END,
        tenant, NULL, every::text, NULL);
    IF every IS NOT NULL THEN
        RAISE NOTICE 'set_rotation_policy: % is due for rotation after %', whose, every;
    ELSIF had THEN
        RAISE NOTICE 'set_rotation_policy: % goes by the default again', whose;
    ELSE
        RAISE NOTICE 'set_rotation_policy: nothing to do: % goes by the default already', whose;
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt.set_rotation_policy(text, interval) IS
    'sets after what time a tenant''s key is due for rotation; tenant NULL: the default for all (90 days); interval NULL: removes it';

CREATE FUNCTION fieldcrypt_internal.rotate_active_key(
        tenant text, reason text, force boolean, expected_key_id bigint,
        OUT old_key_id bigint, OUT new_key_id bigint)
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_rotate_active_key';
COMMENT ON FUNCTION fieldcrypt_internal.rotate_active_key(text, text, boolean, bigint) IS
    'deactivates a tenant''s active key and makes the next version, if the expected one is active still; 0 is none; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.log_rotation(
        run_started_at timestamptz, started_at timestamptz, tenant text, outcome text,
        old_key_id bigint, new_key_id bigint, error_code text, error text, reason text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_log_rotation';
COMMENT ON FUNCTION fieldcrypt_internal.log_rotation(timestamptz, timestamptz, text, text, bigint, bigint, text, text, text) IS
    'writes a row of rotation_log; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.refuse_unless_writable() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_unless_writable';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_unless_writable() IS
    'an error where no key can be made: on a standby, in a READ ONLY transaction';

CREATE FUNCTION fieldcrypt_internal.refuse_unless_committable() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_unless_committable';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_unless_committable() IS
    'an error where the procedure that calls it could not commit: in a transaction block, in a function';

-- The settings keep it a walk along the index of active keys, whatever statistics there are: a run
-- over all tenants walks it once.
CREATE FUNCTION fieldcrypt_internal.next_tenant(
        after_tenant text, force boolean, run_started_at timestamptz, OUT tenant text, OUT key_id bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
    SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    default_every interval := coalesce(
        (SELECT p.rotate_every FROM fieldcrypt.rotation_policies AS p WHERE p.tenant = ''), interval '90 days');
BEGIN
    SELECT k.tenant, k.key_id
      INTO tenant, key_id
      FROM fieldcrypt.encryption_keys AS k
     WHERE k.purpose = 'field'
       AND k.state = 'active'
       AND k.tenant > coalesce(after_tenant, '')
       AND k.created_at <= run_started_at - CASE WHEN force THEN interval '0' ELSE coalesce(
               (SELECT p.rotate_every FROM fieldcrypt.rotation_policies AS p WHERE p.tenant = k.tenant),
               default_every) END
     ORDER BY k.tenant
     LIMIT 1;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.next_tenant(text, boolean, timestamptz) IS
    'the next tenant, in the order of names, whose active key was due when the run started (with force: was there)';

CREATE FUNCTION fieldcrypt_internal.due_audit_key(force boolean, run_started_at timestamptz, OUT tenant text, OUT key_id bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
    SELECT k.tenant, k.key_id
      FROM fieldcrypt.encryption_keys AS k
     WHERE k.purpose = 'audit' AND k.state = 'active'
       AND k.created_at <= $2 - CASE WHEN $1 THEN interval '0' ELSE coalesce(
               (SELECT p.rotate_every FROM fieldcrypt.rotation_policies AS p WHERE p.tenant = ''), interval '90 days') END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.due_audit_key(boolean, timestamptz) IS
    'the key that authenticates the audit log, if it was due by the default policy when the run started (with force: if there is one)';

CREATE FUNCTION fieldcrypt_internal.due_loose_key(force boolean, run_started_at timestamptz, OUT tenant text, OUT key_id bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
    SELECT k.tenant, k.key_id
      FROM fieldcrypt.encryption_keys AS k
     WHERE k.purpose = 'loose' AND k.state = 'active'
       AND k.created_at <= $2 - CASE WHEN $1 THEN interval '0' ELSE coalesce(
               (SELECT p.rotate_every FROM fieldcrypt.rotation_policies AS p WHERE p.tenant = ''), interval '90 days') END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.due_loose_key(boolean, timestamptz) IS
    'the key of loose values, if it was due by the default policy when the run started (with force: if there is one)';

CREATE FUNCTION fieldcrypt_internal.count_active_tenants() RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT count(*) FROM fieldcrypt.encryption_keys AS k WHERE k.purpose IN ('field', 'loose') AND k.state = 'active'
$$;
COMMENT ON FUNCTION fieldcrypt_internal.count_active_tenants() IS 'how many tenants have an active key, and loose values';

CREATE FUNCTION fieldcrypt_internal.rotate_step(
        tenant text, reason text, force boolean, expected_key_id bigint,
        OUT outcome text, OUT error_code text, OUT message text, OUT hint text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    started_at timestamptz := clock_timestamp();
    -- The statement that is the run: its time stays the same over the commits of a procedure.
    run_started_at timestamptz := statement_timestamp();
    keys record;
BEGIN
    BEGIN
        SELECT r.old_key_id, r.new_key_id INTO keys
          FROM fieldcrypt_internal.rotate_active_key(tenant, reason, force, expected_key_id) AS r;
        outcome := CASE WHEN keys.new_key_id = 0 THEN 'not due' WHEN keys.old_key_id = 0 THEN 'created' ELSE 'rotated' END;
    EXCEPTION
    WHEN out_of_memory THEN
        RAISE;
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS
            error_code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
        hint := coalesce(nullif(hint, ''), 'See fieldcrypt.rotation_log.');
        outcome := 'failed';
        PERFORM fieldcrypt_internal.record_event('key_refused', left(tenant, 1024), NULL,
            format('rotation failed: %s (%s)', message, error_code), NULL);
        -- A name that is too long is refused; the index takes no such.
        PERFORM fieldcrypt_internal.log_rotation(run_started_at, started_at,
            CASE WHEN octet_length(tenant) <= 1024 THEN tenant ELSE left(coalesce(tenant, ''), 256) END, outcome,
            (SELECT k.key_id FROM fieldcrypt.encryption_keys AS k
              WHERE k.tenant = rotate_step.tenant AND k.state = 'active' ORDER BY k.purpose DESC LIMIT 1),
            NULL, error_code, message, reason);
        RETURN;
    END;
    IF outcome <> 'not due' THEN
        PERFORM fieldcrypt_internal.log_rotation(run_started_at, started_at, tenant, outcome,
            nullif(keys.old_key_id, 0), keys.new_key_id, NULL, NULL, reason);
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.rotate_step(text, text, boolean, bigint) IS
    'rotates one tenant''s key; a failure is recorded and given back, not raised';

CREATE FUNCTION fieldcrypt.rotate_key(tenant text, reason text DEFAULT NULL) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    started_at timestamptz := clock_timestamp();
    keys record;
BEGIN
    SELECT r.old_key_id, r.new_key_id INTO keys
      FROM fieldcrypt_internal.rotate_active_key(tenant, reason, false, NULL) AS r;
    PERFORM fieldcrypt_internal.log_rotation(started_at, started_at, tenant, 'rotated',
        keys.old_key_id, keys.new_key_id, NULL, NULL, reason);
    RETURN keys.new_key_id;
END
$$;
COMMENT ON FUNCTION fieldcrypt.rotate_key(text, text) IS
    'makes a new key version for a tenant inside the transaction that calls it, and gives its id: for migrations and tests; rotate_keys is for everything else';

CREATE PROCEDURE fieldcrypt.rotate_keys(
        tenant text DEFAULT NULL, reason text DEFAULT NULL, force boolean DEFAULT false)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    -- Names of types too are looked up by the caller's search_path.
    run_started_at pg_catalog.timestamptz := pg_catalog.clock_timestamp();
    current_tenant pg_catalog.text := tenant;
    expected_key_id pg_catalog.int8;
    step pg_catalog.record;
    rotated pg_catalog.int8 := 0;
    failed pg_catalog.int8 := 0;
    others pg_catalog.int8 := 0;
    is_loose_key pg_catalog.bool := false;
    is_audit_key pg_catalog.bool := false;
    from_elsewhere pg_catalog.text;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF tenant IS NULL THEN
        -- A subscriber rotates nothing; a worker of Citus only the key of its own log.
        PERFORM fieldcrypt_internal.refuse_unless_made_here('audit');
        from_elsewhere := fieldcrypt_internal.keys_from('field');
        IF from_elsewhere IS NOT NULL THEN
            RAISE WARNING USING ERRCODE = 'KF034',
                MESSAGE = pg_catalog.format('the keys of tenants are not rotated here: %s', from_elsewhere),
                HINT = 'CALL fieldcrypt.rotate_keys() on the coordinator, then export_keys() there and import_keys(document, apply_states => true) on every worker. (KF034, see docs/errors.md)';
        END IF;
    END IF;
    LOOP
        -- This too lasts for one transaction only.
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        PERFORM fieldcrypt_internal.refuse_unless_writable();
        IF tenant IS NULL THEN
            IF from_elsewhere IS NULL AND NOT is_loose_key THEN
                SELECT n.tenant, n.key_id INTO current_tenant, expected_key_id
                  FROM fieldcrypt_internal.next_tenant(current_tenant, force, run_started_at) AS n;
                IF current_tenant IS NULL THEN
                    -- Those after it are no tenants'.
                    is_loose_key := true;
                    SELECT n.tenant, n.key_id INTO current_tenant, expected_key_id
                      FROM fieldcrypt_internal.due_loose_key(force, run_started_at) AS n;
                END IF;
            ELSE
                current_tenant := NULL;
            END IF;
            IF current_tenant IS NULL THEN
                -- The last one.
                is_audit_key := true;
                SELECT n.tenant, n.key_id INTO current_tenant, expected_key_id
                  FROM fieldcrypt_internal.due_audit_key(force, run_started_at) AS n;
                EXIT WHEN current_tenant IS NULL;
            END IF;
        END IF;
        -- Another run may come first: then the expected key is not active any more, and nothing is done.
        SELECT s.outcome, s.error_code, s.message, s.hint INTO step
          FROM fieldcrypt_internal.rotate_step(current_tenant, reason, force, expected_key_id) AS s;
        COMMIT;
        -- At once: any expression after a COMMIT takes a snapshot, and then it is too late.
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        IF is_audit_key THEN
            IF step.outcome OPERATOR(pg_catalog.=) 'failed' THEN
                RAISE WARNING USING
                    ERRCODE = step.error_code,
                    MESSAGE = pg_catalog.format('the key of the audit log was not rotated: %s', step.message),
                    HINT = step.hint;
            END IF;
            EXIT;
        ELSIF step.outcome IN ('rotated', 'created') THEN
            rotated := rotated OPERATOR(pg_catalog.+) 1;
        ELSIF step.outcome OPERATOR(pg_catalog.=) 'failed' AND tenant IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = step.error_code,
                MESSAGE = pg_catalog.format('the key of tenant "%s" was not rotated: %s', tenant, step.message),
                HINT = step.hint;
        ELSIF step.outcome OPERATOR(pg_catalog.=) 'failed' THEN
            failed := failed OPERATOR(pg_catalog.+) 1;
            RAISE WARNING USING
                ERRCODE = step.error_code,
                MESSAGE = pg_catalog.format('the key of tenant "%s" was not rotated: %s', current_tenant, step.message),
                HINT = step.hint;
        END IF;
        EXIT WHEN tenant IS NOT NULL;
    END LOOP;
    IF tenant IS NULL THEN
        others := GREATEST(fieldcrypt_internal.count_active_tenants() OPERATOR(pg_catalog.-) rotated OPERATOR(pg_catalog.-) failed, 0);
    END IF;
    RAISE NOTICE 'rotate_keys: % rotated, % failed, % not due (see fieldcrypt.rotation_log)', rotated, failed, others;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.rotate_keys(text, text, boolean) IS
    'makes a new key version for each tenant whose key is due by its policy, and for the audit log by the default policy, or for the tenant named; each in its own transaction; old values stay readable. force: for all with an active key, or for the tenant named also where no key is active';

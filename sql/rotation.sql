-- Rotation. The procedure loops and commits, with its caller's rights; each step does its work with
-- the owner's.

CREATE FUNCTION fieldcrypt._rotate_key(tenant text, reason text, force boolean) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_rotate_key';
COMMENT ON FUNCTION fieldcrypt._rotate_key(text, text, boolean) IS
    'deactivates a tenant''s active key and makes the next version; granted to nobody';

CREATE FUNCTION fieldcrypt._refuse_unless_writable() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_unless_writable';
COMMENT ON FUNCTION fieldcrypt._refuse_unless_writable() IS
    'an error where no key can be made: on a standby, in a READ ONLY transaction';

CREATE FUNCTION fieldcrypt._next_tenant(after_tenant text, force boolean) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.tenant
      FROM fieldcrypt.encryption_keys AS k
     WHERE k.purpose = 'field'
       AND (k.state = 'active' OR $2)
       AND k.tenant > coalesce($1, '')
     ORDER BY k.tenant
     LIMIT 1
$$;
COMMENT ON FUNCTION fieldcrypt._next_tenant(text, boolean) IS
    'the next tenant with an active key (with force: with any), in the order of names';

CREATE FUNCTION fieldcrypt._rotate_step(
        tenant text, reason text, force boolean,
        OUT key_id bigint, OUT error_code text, OUT message text, OUT hint text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    key_id := fieldcrypt._rotate_key(tenant, reason, force);
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS
        error_code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
    hint := coalesce(nullif(hint, ''), 'See fieldcrypt.audit_log.');
    PERFORM fieldcrypt._record('key_refused', tenant, NULL,
        format('rotation failed: %s (%s)', message, error_code), NULL);
END
$$;
COMMENT ON FUNCTION fieldcrypt._rotate_step(text, text, boolean) IS
    'rotates one tenant''s key; a failure is recorded and given back, not raised';

CREATE PROCEDURE fieldcrypt.rotate_keys(
        tenant text DEFAULT NULL, reason text DEFAULT NULL, force boolean DEFAULT false)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    -- Names of types too are looked up by the caller's search_path.
    current_tenant pg_catalog.text := tenant;
    step pg_catalog.record;
    rotated pg_catalog.int8 := 0;
    failed pg_catalog.int8 := 0;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    LOOP
        -- This too lasts for one transaction only.
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        PERFORM fieldcrypt._refuse_unless_writable();
        IF tenant IS NULL THEN
            current_tenant := fieldcrypt._next_tenant(current_tenant, force);
            EXIT WHEN current_tenant IS NULL;
        END IF;
        SELECT s.error_code, s.message, s.hint INTO step
          FROM fieldcrypt._rotate_step(current_tenant, reason, force) AS s;
        COMMIT;
        -- At once: any expression after a COMMIT takes a snapshot, and then it is too late.
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        IF step.message IS NULL THEN
            rotated := rotated OPERATOR(pg_catalog.+) 1;
        ELSIF tenant IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = step.error_code,
                MESSAGE = pg_catalog.format('the key of tenant "%s" was not rotated: %s', tenant, step.message),
                HINT = step.hint;
        ELSE
            failed := failed OPERATOR(pg_catalog.+) 1;
            RAISE WARNING USING
                ERRCODE = step.error_code,
                MESSAGE = pg_catalog.format('the key of tenant "%s" was not rotated: %s', current_tenant, step.message),
                HINT = step.hint;
        END IF;
        EXIT WHEN tenant IS NOT NULL;
    END LOOP;
    RAISE NOTICE 'rotate_keys: % rotated, % failed (see fieldcrypt.audit_log)', rotated, failed;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.rotate_keys(text, text, boolean) IS
    'makes a new key version for one tenant or for all, each in its own transaction; old values stay readable. force: also where no key is active';

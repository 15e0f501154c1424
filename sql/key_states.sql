-- The states of a key, and the end of a tenant. The changes are made in src/keyring/states.rs, the one
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

CREATE FUNCTION fieldcrypt._set_key_state(key_id bigint, state text, reason text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_set_key_state';
CREATE FUNCTION fieldcrypt._shred_tenant(tenant text, reason text) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_shred_tenant';
COMMENT ON FUNCTION fieldcrypt._set_key_state(bigint, text, text) IS
    'brings a key into a less permissive state; makes no new version, asks for no approval; granted to nobody';
COMMENT ON FUNCTION fieldcrypt._shred_tenant(text, text) IS
    'destroys all keys of a tenant and gives their number; granted to nobody';

CREATE FUNCTION fieldcrypt._shred_step(
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
        SELECT s.message, s.hint INTO message, hint FROM fieldcrypt._spend_approval('shred_tenant', tenant) AS s;
        IF message IS NOT NULL THEN
            error_code := 'KF019';
            RETURN;
        END IF;
        destroyed := fieldcrypt._shred_tenant(tenant, reason);
    EXCEPTION WHEN OTHERS THEN
        -- The approval, too, is as it was.
        GET STACKED DIAGNOSTICS
            error_code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
        PERFORM fieldcrypt._record('key_refused', tenant, NULL,
            format('shred_tenant failed: %s (%s)', message, error_code), NULL);
    END;
END
$$;
COMMENT ON FUNCTION fieldcrypt._shred_step(text, text) IS
    'spends the approval and destroys a tenant''s keys; a refusal is recorded and given back, not raised';

CREATE PROCEDURE fieldcrypt.shred_tenant(tenant text, reason text)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    step pg_catalog.record;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened: what is shredded
    -- can't be rolled back, and what is refused is recorded.
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM fieldcrypt._refuse_unless_writable();
    SELECT s.destroyed, s.error_code, s.message, s.hint INTO step FROM fieldcrypt._shred_step(tenant, reason) AS s;
    COMMIT;
    IF step.message IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = step.error_code, MESSAGE = step.message, HINT = step.hint;
    END IF;
    RAISE NOTICE USING
        MESSAGE = pg_catalog.format('shred_tenant: %s keys of tenant "%s" destroyed; no session can read its values from its next statement on', step.destroyed, tenant),
        DETAIL = 'Whoever has the master key can still read them with an older copy of the keys: dumps, key exports, base backups and archived WAL from before, standbys until they have replayed this, dead rows of fieldcrypt.encryption_keys on this server until VACUUM FULL.',
        HINT = 'VACUUM FULL fieldcrypt.encryption_keys; then delete those copies, or let them expire. To end it for all of them at once: rotate the master key, and destroy the old one.';
END
$$;
COMMENT ON PROCEDURE fieldcrypt.shred_tenant(text, text) IS
    'destroys all keys of a tenant at once, the active one too: its values are lost. Needs an approval unless fieldcrypt.require_approval says otherwise';

-- The tenant of a transaction. The setting fieldcrypt.tenant is in src/settings.rs.

CREATE FUNCTION fieldcrypt.lock_tenant(name text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_lock_tenant';
COMMENT ON FUNCTION fieldcrypt.lock_tenant(text) IS
    'sets fieldcrypt.tenant until the transaction ends, and refuses any other tenant until then, whatever asks for it: SET, RESET, set_config, a savepoint';

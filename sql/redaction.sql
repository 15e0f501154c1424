-- Literals out of the server log.

CREATE FUNCTION fieldcrypt_internal.redaction_is_active() RETURNS boolean
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'fieldcrypt_redaction_is_active';
COMMENT ON FUNCTION fieldcrypt_internal.redaction_is_active() IS
    'whether literals are masked in the server log: the library is preloaded and fieldcrypt.redact_logs is not off';

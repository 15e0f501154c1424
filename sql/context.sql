-- The text that a value is bound to.

-- IMMUTABLE: no setting has a say in it. For everybody, since it reads and shows nothing: constraints, triggers and
-- generated columns call it for whoever writes.
CREATE FUNCTION fieldcrypt.context(VARIADIC parts "any") RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE COST 5 AS 'MODULE_PATHNAME', 'fieldcrypt_context';
COMMENT ON FUNCTION fieldcrypt.context("any") IS
    'a name and the values of a row''s key as one text, the same whatever the session''s settings: context(''patients.ssn'', id) gives patients.ssn/17';

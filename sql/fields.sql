-- Encrypting and decrypting. One name a type: overloads would resolve silently to the wrong one.
-- Never STRICT: a NULL value gives NULL, but a NULL context or tenant is an error.

CREATE FUNCTION fieldcrypt.encrypt_field(value text, context text DEFAULT '', tenant text DEFAULT '')
    RETURNS fieldcrypt.encrypted LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_encrypt_field';
CREATE FUNCTION fieldcrypt.encrypt_field_bytea(value bytea, context text DEFAULT '', tenant text DEFAULT '')
    RETURNS fieldcrypt.encrypted LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_encrypt_field_bytea';
CREATE FUNCTION fieldcrypt.encrypt_field_jsonb(value jsonb, context text DEFAULT '', tenant text DEFAULT '')
    RETURNS fieldcrypt.encrypted LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_encrypt_field_jsonb';
-- For every other type. Not an overload of encrypt_field: that could change which function a call means, and what
-- calls it by its name alone (PostgREST, regproc) would find two.
CREATE FUNCTION fieldcrypt.encrypt_field_as(value anyelement, context text DEFAULT '', tenant text DEFAULT '')
    RETURNS fieldcrypt.encrypted LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_encrypt_field_as';

CREATE FUNCTION fieldcrypt.decrypt_field(value fieldcrypt.encrypted, context text DEFAULT '')
    RETURNS text LANGUAGE c STABLE PARALLEL SAFE NOT LEAKPROOF COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_decrypt_field';
CREATE FUNCTION fieldcrypt.decrypt_field_bytea(value fieldcrypt.encrypted, context text DEFAULT '')
    RETURNS bytea LANGUAGE c STABLE PARALLEL SAFE NOT LEAKPROOF COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_decrypt_field_bytea';
CREATE FUNCTION fieldcrypt.decrypt_field_jsonb(value fieldcrypt.encrypted, context text DEFAULT '')
    RETURNS jsonb LANGUAGE c STABLE PARALLEL SAFE NOT LEAKPROOF COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_decrypt_field_jsonb';
CREATE FUNCTION fieldcrypt.decrypt_field_as(
        value fieldcrypt.encrypted, type anyelement, context text DEFAULT '')
    RETURNS anyelement LANGUAGE c STABLE PARALLEL SAFE NOT LEAKPROOF COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_decrypt_field_as';
CREATE FUNCTION fieldcrypt.try_decrypt_field(value fieldcrypt.encrypted, context text DEFAULT '')
    RETURNS text LANGUAGE c STABLE PARALLEL SAFE NOT LEAKPROOF COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_try_decrypt_field';

CREATE FUNCTION fieldcrypt.reencrypt_field(value fieldcrypt.encrypted, context text DEFAULT '')
    RETURNS fieldcrypt.encrypted LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_reencrypt_field';
CREATE FUNCTION fieldcrypt.rebind_field(value fieldcrypt.encrypted, context text, new_context text)
    RETURNS fieldcrypt.encrypted LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10
    AS 'MODULE_PATHNAME', 'fieldcrypt_rebind_field';

CREATE FUNCTION fieldcrypt.key_id(value fieldcrypt.encrypted) RETURNS bigint
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_key_id';
CREATE FUNCTION fieldcrypt.ciphertext_info(
        value fieldcrypt.encrypted, OUT format text, OUT algorithm text, OUT key_id bigint,
        OUT nonce bytea, OUT plaintext_bytes integer)
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_ciphertext_info';

COMMENT ON FUNCTION fieldcrypt.encrypt_field(text, text, text) IS
    'encrypts a text under the tenant''s active key, bound to a context that decryption must name again';
COMMENT ON FUNCTION fieldcrypt.encrypt_field_bytea(bytea, text, text) IS
    'encrypts bytes under the tenant''s active key, bound to a context that decryption must name again';
COMMENT ON FUNCTION fieldcrypt.encrypt_field_jsonb(jsonb, text, text) IS
    'encrypts a JSON document under the tenant''s active key, bound to a context that decryption must name again';
COMMENT ON FUNCTION fieldcrypt.encrypt_field_as(anyelement, text, text) IS
    'encrypts a value of any type, in the same form whatever the session''s DateStyle, TimeZone and the like; read with decrypt_field_as';
COMMENT ON FUNCTION fieldcrypt.decrypt_field(fieldcrypt.encrypted, text) IS
    'decrypts to text: the plaintext or an error, never anything else';
COMMENT ON FUNCTION fieldcrypt.decrypt_field_bytea(fieldcrypt.encrypted, text) IS
    'decrypts to bytes: the plaintext or an error, never anything else';
COMMENT ON FUNCTION fieldcrypt.decrypt_field_jsonb(fieldcrypt.encrypted, text) IS
    'decrypts to a JSON document: the plaintext or an error, never anything else';
COMMENT ON FUNCTION fieldcrypt.decrypt_field_as(fieldcrypt.encrypted, anyelement, text) IS
    'decrypts to any type, given as a NULL of it: decrypt_field_as(dob, NULL::date)';
COMMENT ON FUNCTION fieldcrypt.try_decrypt_field(fieldcrypt.encrypted, text) IS
    'for finding damage: NULL where the value is not authentic or its key is unknown or destroyed; other errors stay errors';
COMMENT ON FUNCTION fieldcrypt.reencrypt_field(fieldcrypt.encrypted, text) IS
    'the same plaintext under the active key of the value''s tenant; shows no plaintext';
COMMENT ON FUNCTION fieldcrypt.rebind_field(fieldcrypt.encrypted, text, text) IS
    'the same plaintext bound to another context, under the active key of the value''s tenant; shows no plaintext; needs encrypt and decrypt';
COMMENT ON FUNCTION fieldcrypt.key_id(fieldcrypt.encrypted) IS
    'the id of the key that a value was encrypted with';
COMMENT ON FUNCTION fieldcrypt.ciphertext_info(fieldcrypt.encrypted) IS
    'what a value''s header says; whether it is authentic, only decryption tells';

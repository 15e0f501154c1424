-- The type: what goes in and out of it is ciphertext, always.

CREATE TYPE fieldcrypt.encrypted;

CREATE FUNCTION fieldcrypt_internal.encrypted_in(cstring) RETURNS fieldcrypt.encrypted
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_encrypted_in';
CREATE FUNCTION fieldcrypt_internal.encrypted_out(fieldcrypt.encrypted) RETURNS cstring
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_encrypted_out';
CREATE FUNCTION fieldcrypt_internal.encrypted_recv(internal) RETURNS fieldcrypt.encrypted
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_encrypted_recv';
CREATE FUNCTION fieldcrypt_internal.encrypted_send(fieldcrypt.encrypted) RETURNS bytea
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteasend';

CREATE TYPE fieldcrypt.encrypted (
    INPUT = fieldcrypt_internal.encrypted_in,
    OUTPUT = fieldcrypt_internal.encrypted_out,
    RECEIVE = fieldcrypt_internal.encrypted_recv,
    SEND = fieldcrypt_internal.encrypted_send,
    INTERNALLENGTH = VARIABLE,
    ALIGNMENT = int4,
    STORAGE = external
);

-- From bytea it must parse; to bytea it is the same bytes. Both explicit.
CREATE FUNCTION fieldcrypt_internal.encrypted_from_bytea(bytea) RETURNS fieldcrypt.encrypted
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fieldcrypt_encrypted_from_bytea';
CREATE CAST (bytea AS fieldcrypt.encrypted)
    WITH FUNCTION fieldcrypt_internal.encrypted_from_bytea(bytea);
CREATE CAST (fieldcrypt.encrypted AS bytea) WITHOUT FUNCTION;

-- Two encryptions of one value differ, so the byte image alone is compared and sorted, which DISTINCT, GROUP BY, UNION,
-- windows, IS DISTINCT FROM on rows and REPLICA IDENTITY FULL need. The order means nothing. Operators of the usual names
-- would be taken for comparisons of plaintexts: operators.sql has them, and they refuse.
CREATE FUNCTION fieldcrypt_internal.encrypted_same(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS boolean
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteaeq';
CREATE FUNCTION fieldcrypt_internal.encrypted_not_same(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS boolean
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteane';
CREATE FUNCTION fieldcrypt_internal.encrypted_less(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS boolean
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'bytealt';
CREATE FUNCTION fieldcrypt_internal.encrypted_less_or_same(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS boolean
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteale';
CREATE FUNCTION fieldcrypt_internal.encrypted_more_or_same(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS boolean
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteage';
CREATE FUNCTION fieldcrypt_internal.encrypted_more(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS boolean
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteagt';
CREATE FUNCTION fieldcrypt_internal.encrypted_order(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS integer
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteacmp';
CREATE FUNCTION fieldcrypt_internal.encrypted_sort(internal) RETURNS void
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'bytea_sortsupport';
CREATE FUNCTION fieldcrypt_internal.refuse_index(oid) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_index';
CREATE FUNCTION fieldcrypt_internal.encrypted_hash(fieldcrypt.encrypted) RETURNS integer
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'hashvarlena';
CREATE FUNCTION fieldcrypt_internal.encrypted_hash_extended(fieldcrypt.encrypted, bigint) RETURNS bigint
    LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'hashvarlenaextended';

CREATE OPERATOR fieldcrypt.*= (
    LEFTARG = fieldcrypt.encrypted,
    RIGHTARG = fieldcrypt.encrypted,
    FUNCTION = fieldcrypt_internal.encrypted_same,
    COMMUTATOR = OPERATOR(fieldcrypt.*=),
    NEGATOR = OPERATOR(fieldcrypt.*<>),
    RESTRICT = eqsel,
    JOIN = eqjoinsel,
    HASHES,
    MERGES
);
CREATE OPERATOR fieldcrypt.*<> (
    LEFTARG = fieldcrypt.encrypted,
    RIGHTARG = fieldcrypt.encrypted,
    FUNCTION = fieldcrypt_internal.encrypted_not_same,
    COMMUTATOR = OPERATOR(fieldcrypt.*<>),
    NEGATOR = OPERATOR(fieldcrypt.*=),
    RESTRICT = neqsel,
    JOIN = neqjoinsel
);
CREATE OPERATOR fieldcrypt.*< (
    LEFTARG = fieldcrypt.encrypted,
    RIGHTARG = fieldcrypt.encrypted,
    FUNCTION = fieldcrypt_internal.encrypted_less,
    COMMUTATOR = OPERATOR(fieldcrypt.*>),
    NEGATOR = OPERATOR(fieldcrypt.*>=),
    RESTRICT = scalarltsel,
    JOIN = scalarltjoinsel
);
CREATE OPERATOR fieldcrypt.*<= (
    LEFTARG = fieldcrypt.encrypted,
    RIGHTARG = fieldcrypt.encrypted,
    FUNCTION = fieldcrypt_internal.encrypted_less_or_same,
    COMMUTATOR = OPERATOR(fieldcrypt.*>=),
    NEGATOR = OPERATOR(fieldcrypt.*>),
    RESTRICT = scalarlesel,
    JOIN = scalarlejoinsel
);
CREATE OPERATOR fieldcrypt.*>= (
    LEFTARG = fieldcrypt.encrypted,
    RIGHTARG = fieldcrypt.encrypted,
    FUNCTION = fieldcrypt_internal.encrypted_more_or_same,
    COMMUTATOR = OPERATOR(fieldcrypt.*<=),
    NEGATOR = OPERATOR(fieldcrypt.*<),
    RESTRICT = scalargesel,
    JOIN = scalargejoinsel
);
CREATE OPERATOR fieldcrypt.*> (
    LEFTARG = fieldcrypt.encrypted,
    RIGHTARG = fieldcrypt.encrypted,
    FUNCTION = fieldcrypt_internal.encrypted_more,
    COMMUTATOR = OPERATOR(fieldcrypt.*<),
    NEGATOR = OPERATOR(fieldcrypt.*<=),
    RESTRICT = scalargtsel,
    JOIN = scalargtjoinsel
);
CREATE OPERATOR CLASS fieldcrypt.encrypted_bytes DEFAULT FOR TYPE fieldcrypt.encrypted USING hash AS
    OPERATOR 1 fieldcrypt.*=,
    FUNCTION 1 fieldcrypt_internal.encrypted_hash(fieldcrypt.encrypted),
    FUNCTION 2 fieldcrypt_internal.encrypted_hash_extended(fieldcrypt.encrypted, bigint);
-- Nothing but the build of an index asks for function 4, whether equal values are the same bytes. So there it is refused: an
-- index finds no plaintext, and UNIQUE no duplicate.
CREATE OPERATOR CLASS fieldcrypt.encrypted_bytes DEFAULT FOR TYPE fieldcrypt.encrypted USING btree AS
    OPERATOR 1 fieldcrypt.*<,
    OPERATOR 2 fieldcrypt.*<=,
    OPERATOR 3 fieldcrypt.*=,
    OPERATOR 4 fieldcrypt.*>=,
    OPERATOR 5 fieldcrypt.*>,
    FUNCTION 1 fieldcrypt_internal.encrypted_order(fieldcrypt.encrypted, fieldcrypt.encrypted),
    FUNCTION 2 fieldcrypt_internal.encrypted_sort(internal),
    FUNCTION 4 fieldcrypt_internal.refuse_index(oid);

-- What the output function gives, for who wants it: the cast to text refuses.
CREATE FUNCTION fieldcrypt.ciphertext_text(value fieldcrypt.encrypted) RETURNS text
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_ciphertext_text';

COMMENT ON TYPE fieldcrypt.encrypted IS
    'an encrypted value; text form fc1:...; made by fieldcrypt.encrypt_field, read by fieldcrypt.decrypt_field';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_in(cstring) IS 'text input: fc1: and base64url; refuses anything else';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_out(fieldcrypt.encrypted) IS 'text output: fc1: and base64url';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_recv(internal) IS 'binary input: the bytes; refuses what is no encrypted value';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_send(fieldcrypt.encrypted) IS 'binary output: the bytes';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_from_bytea(bytea) IS 'cast from bytea; refuses what is no encrypted value';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_same(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'whether two values are the same bytes';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_not_same(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'whether two values are different bytes';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_hash(fieldcrypt.encrypted) IS 'hash of the bytes';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_hash_extended(fieldcrypt.encrypted, bigint) IS 'hash of the bytes, with a seed';
COMMENT ON OPERATOR fieldcrypt.*= (fieldcrypt.encrypted, fieldcrypt.encrypted) IS
    'same bytes; says nothing about plaintexts, since no two encryptions of one value are alike';
COMMENT ON OPERATOR fieldcrypt.*<> (fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'different bytes';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_less(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing: for sorts';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_less_or_same(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing: for sorts';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_more_or_same(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing: for sorts';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_more(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing: for sorts';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_order(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing: for sorts';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_sort(internal) IS 'the same, for sorts of many';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_index(oid) IS 'called when a b-tree index is built: an error that says why there is none on encrypted values';
COMMENT ON FUNCTION fieldcrypt.ciphertext_text(fieldcrypt.encrypted) IS 'the ciphertext as text: fc1:...';
COMMENT ON OPERATOR fieldcrypt.*< (fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing';
COMMENT ON OPERATOR fieldcrypt.*<= (fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing';
COMMENT ON OPERATOR fieldcrypt.*>= (fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing';
COMMENT ON OPERATOR fieldcrypt.*> (fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'order of the bytes, which means nothing';

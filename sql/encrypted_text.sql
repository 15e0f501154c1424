-- The type of columns that take plaintext: what comes in is sealed at once, so that here, too, what is of the type is
-- ciphertext, always.
--
-- CATEGORY 'S': drivers and ORMs send what they have as text and let Postgres find the way. What a value of another type
-- becomes is said by a cast; types without one go through the input function, which looks at where its text comes from.

CREATE TYPE fieldcrypt.encrypted_text;

-- STABLE: what is sealed is another value each time, but within one statement one will do; an index can be used with it.
CREATE FUNCTION fieldcrypt_internal.encrypted_text_in(cstring) RETURNS fieldcrypt.encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_encrypted_text_in';
CREATE FUNCTION fieldcrypt_internal.encrypted_text_out(fieldcrypt.encrypted_text) RETURNS cstring
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_encrypted_text_out';
CREATE FUNCTION fieldcrypt_internal.encrypted_text_recv(internal) RETURNS fieldcrypt.encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_encrypted_text_recv';
CREATE FUNCTION fieldcrypt_internal.encrypted_text_send(fieldcrypt.encrypted_text) RETURNS bytea
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_encrypted_text_send';

CREATE TYPE fieldcrypt.encrypted_text (
    INPUT = fieldcrypt_internal.encrypted_text_in,
    OUTPUT = fieldcrypt_internal.encrypted_text_out,
    RECEIVE = fieldcrypt_internal.encrypted_text_recv,
    SEND = fieldcrypt_internal.encrypted_text_send,
    INTERNALLENGTH = VARIABLE,
    ALIGNMENT = int4,
    STORAGE = external,
    CATEGORY = 'S'
);

-- The same bytes: every function of an encrypted value takes these, too. An encrypted value may be written to such a
-- column, whose trigger says whether it is the row's.
CREATE CAST (fieldcrypt.encrypted_text AS fieldcrypt.encrypted) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (fieldcrypt.encrypted AS fieldcrypt.encrypted_text) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE CAST (fieldcrypt.encrypted_text AS bytea) WITHOUT FUNCTION;

CREATE FUNCTION fieldcrypt_internal.encrypted_text_from("any") RETURNS fieldcrypt.encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_encrypted_text_from';

-- Of the types whose plaintexts have a form of their own, and of texts. Of all other types of Postgres whose output is
-- immutable, too, since of a constant of those the planner makes a text before the input function could see what it was: the
-- function refuses them.
DO $encrypted_text_casts$
DECLARE
    source text;
BEGIN
    FOR source IN
        SELECT pg_catalog.format('pg_catalog.%I', t.typname)
          FROM pg_catalog.pg_type AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.typoutput
         WHERE t.typnamespace = 'pg_catalog'::pg_catalog.regnamespace AND t.typtype = 'b'
           AND (t.typname = ANY ('{text,varchar,bpchar,name,int2,int4,int8,numeric,date,timestamptz,uuid,bool,jsonb}')
                OR t.typcategory NOT IN ('A', 'S', 'Z') AND p.provolatile = 'i')
         ORDER BY t.typname
    LOOP
        EXECUTE pg_catalog.format('CREATE CAST (%s AS fieldcrypt.encrypted_text)
            WITH FUNCTION fieldcrypt_internal.encrypted_text_from("any") AS ASSIGNMENT', source);
    END LOOP;
END
$encrypted_text_casts$;
-- A ciphertext is no plaintext, whatever the category allows: as for encrypted. Functions of their own: a dump makes casts
-- without regard to the one that would let those of encrypted serve.
CREATE FUNCTION fieldcrypt_internal.refuse_encrypted_text(fieldcrypt.encrypted_text) RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_text
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_encrypted_text';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_encrypted_text(fieldcrypt.encrypted_text) IS 'what casts to text do: an error that names decrypt_field and ciphertext_text';
CREATE FUNCTION fieldcrypt_internal.refuse_encrypted_name(fieldcrypt.encrypted_text) RETURNS name
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_text
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_encrypted_name';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_encrypted_name(fieldcrypt.encrypted_text) IS 'what the cast to name does: the same';
CREATE CAST (fieldcrypt.encrypted_text AS text) WITH FUNCTION fieldcrypt_internal.refuse_encrypted_text(fieldcrypt.encrypted_text) AS ASSIGNMENT;
CREATE CAST (fieldcrypt.encrypted_text AS varchar) WITH FUNCTION fieldcrypt_internal.refuse_encrypted_text(fieldcrypt.encrypted_text) AS ASSIGNMENT;
CREATE CAST (fieldcrypt.encrypted_text AS bpchar) WITH FUNCTION fieldcrypt_internal.refuse_encrypted_text(fieldcrypt.encrypted_text) AS ASSIGNMENT;
CREATE CAST (fieldcrypt.encrypted_text AS name) WITH FUNCTION fieldcrypt_internal.refuse_encrypted_name(fieldcrypt.encrypted_text) AS ASSIGNMENT;

CREATE FUNCTION fieldcrypt.loosen(value fieldcrypt.encrypted, place text DEFAULT '') RETURNS fieldcrypt.encrypted_text
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 10 AS 'MODULE_PATHNAME', 'fieldcrypt_loosen';
CREATE FUNCTION fieldcrypt_internal.is_loose(value fieldcrypt.encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_is_loose';
CREATE FUNCTION fieldcrypt_internal.key_of_text(value text) RETURNS bigint
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_key_of_text';
COMMENT ON FUNCTION fieldcrypt_internal.key_of_text(text) IS 'the key of a ciphertext in its text form; NULL for what is none';
CREATE FUNCTION fieldcrypt.create_loose_key() RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_create_loose_key';

COMMENT ON TYPE fieldcrypt.encrypted_text IS
    'for columns that take plaintext: it is encrypted as it comes in, and fieldcrypt.protect_column has it bound to its row; text form fc1:...; read by a view of fieldcrypt.create_decrypted_view';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_text_in(cstring) IS 'text input: fc1: and base64url is ciphertext; anything else is plaintext, and is sealed';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_text_out(fieldcrypt.encrypted_text) IS 'text output: fc1: and base64url';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_text_recv(internal) IS 'binary input: a text, as for text input';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_text_send(fieldcrypt.encrypted_text) IS 'binary output: fc1: and base64url';
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_text_from("any") IS 'casts of plaintexts: seals them, or refuses the type';
COMMENT ON FUNCTION fieldcrypt.loosen(fieldcrypt.encrypted, text) IS
    'a copy of a value that the next row which it is written to binds to itself, for who may decrypt and encrypt; place: the place or context that it is bound to';
COMMENT ON FUNCTION fieldcrypt_internal.is_loose(fieldcrypt.encrypted_text) IS 'whether a value is bound to no row yet, as its header says';
COMMENT ON FUNCTION fieldcrypt.create_loose_key() IS
    'makes the key that plaintext is taken in with, if there never was one, and gives its id: after a restore of the schema alone; protect_column does so by itself';

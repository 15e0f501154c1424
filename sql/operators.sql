-- What is written as if a column held its plaintext: compared, searched, matched, cast to text. Without these it is an error
-- of Postgres's whose hint leads to a cast, which finds no row in silence. So each is an error that says what to write.
--
-- In pg_catalog, since operators are looked up by search_path. None is polymorphic or takes "any": such a one takes
-- comparisons of other types' away. Each takes an encrypted value on one side, and text on the other, which an untyped literal
-- or parameter becomes; two encrypted values meet in a domain, since for (encrypted, encrypted) a literal would be read as
-- ciphertext. A test compares what all types' operators mean with and without the extension.
--
-- The planner asks the functions' support function about each call, and that refuses: so the error comes with any table,
-- also an empty one, and before a row is read.

CREATE DOMAIN fieldcrypt_internal.any_encrypted AS fieldcrypt.encrypted;
COMMENT ON DOMAIN fieldcrypt_internal.any_encrypted IS 'the right side of operators of two encrypted values';

CREATE FUNCTION fieldcrypt_internal.plan_comparison(internal) RETURNS internal
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_plan_comparison';
COMMENT ON FUNCTION fieldcrypt_internal.plan_comparison(internal) IS 'what the planner asks of comparisons: an error';
CREATE FUNCTION fieldcrypt_internal.refuse_comparison_with_text(fieldcrypt.encrypted, text) RETURNS boolean
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_comparison
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_comparison_with_text';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_comparison_with_text(fieldcrypt.encrypted, text) IS 'what = and its like do: an error that says how to search';
CREATE FUNCTION fieldcrypt_internal.refuse_comparison_of_text(text, fieldcrypt.encrypted) RETURNS boolean
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_comparison
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_comparison_of_text';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_comparison_of_text(text, fieldcrypt.encrypted) IS 'what = and its like do: an error that says how to search';
CREATE FUNCTION fieldcrypt_internal.refuse_comparison(fieldcrypt.encrypted, fieldcrypt_internal.any_encrypted) RETURNS boolean
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_comparison
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_comparison';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_comparison(fieldcrypt.encrypted, fieldcrypt_internal.any_encrypted) IS 'what = and its like do: an error that says how to search';

CREATE FUNCTION fieldcrypt_internal.plan_match(internal) RETURNS internal
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_plan_match';
COMMENT ON FUNCTION fieldcrypt_internal.plan_match(internal) IS 'what the planner asks of matches: an error';
CREATE FUNCTION fieldcrypt_internal.refuse_match(fieldcrypt.encrypted, text) RETURNS boolean
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_match
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_match';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_match(fieldcrypt.encrypted, text) IS 'what LIKE and its like do: an error';

CREATE FUNCTION fieldcrypt_internal.plan_member(internal) RETURNS internal
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_plan_member';
COMMENT ON FUNCTION fieldcrypt_internal.plan_member(internal) IS 'what the planner asks of -> and ->>: an error';
CREATE FUNCTION fieldcrypt_internal.refuse_member(fieldcrypt.encrypted, text) RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_member
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_member';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_member(fieldcrypt.encrypted, text) IS 'what -> and ->> do: an error';
CREATE FUNCTION fieldcrypt_internal.refuse_element(fieldcrypt.encrypted, integer) RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_member
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_element';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_element(fieldcrypt.encrypted, integer) IS 'what -> and ->> do: an error';

CREATE FUNCTION fieldcrypt_internal.plan_order(internal) RETURNS internal
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_plan_order';
COMMENT ON FUNCTION fieldcrypt_internal.plan_order(internal) IS 'what the planner asks of max and min: an error';
CREATE FUNCTION fieldcrypt_internal.refuse_order(fieldcrypt.encrypted, fieldcrypt.encrypted) RETURNS fieldcrypt.encrypted
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_order
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_order';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_order(fieldcrypt.encrypted, fieldcrypt.encrypted) IS 'what max and min do: an error';

CREATE FUNCTION fieldcrypt_internal.plan_text(internal) RETURNS internal
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_plan_text';
COMMENT ON FUNCTION fieldcrypt_internal.plan_text(internal) IS 'what the planner asks of casts to text: an error';
CREATE FUNCTION fieldcrypt_internal.refuse_text(fieldcrypt.encrypted) RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_text
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_text';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_text(fieldcrypt.encrypted) IS 'what casts to text do: an error that names decrypt_field and ciphertext_text';
CREATE FUNCTION fieldcrypt_internal.refuse_name(fieldcrypt.encrypted) RETURNS name
    LANGUAGE c IMMUTABLE PARALLEL SAFE SUPPORT fieldcrypt_internal.plan_text
    AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_name';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_name(fieldcrypt.encrypted) IS 'what the cast to name does: the same';

-- Without AS ASSIGNMENT a ciphertext would still get into a variable of type text in PL/pgSQL.
CREATE CAST (fieldcrypt.encrypted AS text) WITH FUNCTION fieldcrypt_internal.refuse_text(fieldcrypt.encrypted) AS ASSIGNMENT;
CREATE CAST (fieldcrypt.encrypted AS varchar) WITH FUNCTION fieldcrypt_internal.refuse_text(fieldcrypt.encrypted) AS ASSIGNMENT;
CREATE CAST (fieldcrypt.encrypted AS bpchar) WITH FUNCTION fieldcrypt_internal.refuse_text(fieldcrypt.encrypted) AS ASSIGNMENT;
CREATE CAST (fieldcrypt.encrypted AS name) WITH FUNCTION fieldcrypt_internal.refuse_name(fieldcrypt.encrypted) AS ASSIGNMENT;

DO $$
DECLARE
    item record;
BEGIN
    FOR item IN
        SELECT o.name, s.left_type, s.right_type, s.function, s.what
          FROM (VALUES ('fieldcrypt.encrypted', 'text', 'refuse_comparison_with_text', ARRAY['=', '<>', '<', '<=', '>=', '>'], 'compares'),
                       ('text', 'fieldcrypt.encrypted', 'refuse_comparison_of_text', ARRAY['=', '<>', '<', '<=', '>=', '>'], 'compares'),
                       ('fieldcrypt.encrypted', 'fieldcrypt_internal.any_encrypted', 'refuse_comparison', ARRAY['=', '<>', '<', '<=', '>=', '>'], 'compares'),
                       ('fieldcrypt.encrypted', 'text', 'refuse_match', ARRAY['~~', '!~~', '~~*', '!~~*', '~', '!~', '~*', '!~*'], 'matches'),
                       ('fieldcrypt.encrypted', 'text', 'refuse_member', ARRAY['->', '->>'], 'takes apart'),
                       ('fieldcrypt.encrypted', 'integer', 'refuse_element', ARRAY['->', '->>'], 'takes apart'))
            AS s (left_type, right_type, function, names, what), unnest(s.names) AS o(name)
    LOOP
        EXECUTE format('CREATE OPERATOR pg_catalog.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = fieldcrypt_internal.%s)',
            item.name, item.left_type, item.right_type, item.function);
        EXECUTE format('COMMENT ON OPERATOR pg_catalog.%s (%s, %s) IS %L',
            item.name, item.left_type, item.right_type, format('no operator %s an encrypted value: an error that says what to write', item.what));
    END LOOP;
END
$$;

CREATE AGGREGATE pg_catalog.max(fieldcrypt.encrypted) (SFUNC = fieldcrypt_internal.refuse_order, STYPE = fieldcrypt.encrypted, PARALLEL = SAFE);
CREATE AGGREGATE pg_catalog.min(fieldcrypt.encrypted) (SFUNC = fieldcrypt_internal.refuse_order, STYPE = fieldcrypt.encrypted, PARALLEL = SAFE);
COMMENT ON AGGREGATE pg_catalog.max(fieldcrypt.encrypted) IS 'an error: the order of encrypted values says nothing';
COMMENT ON AGGREGATE pg_catalog.min(fieldcrypt.encrypted) IS 'an error: the order of encrypted values says nothing';

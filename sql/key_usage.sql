-- Which keys stored values still use, and the destruction of those that none uses.

CREATE FUNCTION fieldcrypt._count_keys(relation oid) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_count_keys';
COMMENT ON FUNCTION fieldcrypt._count_keys(oid) IS
    'how many values of each column of a table are on which key, as JSON: an array of attnum, column, key_id, values; every row that is committed, whatever its policies; granted to nobody';

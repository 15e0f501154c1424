-- The schemas. CREATE SCHEMA, not IF NOT EXISTS: a schema that somebody else prepared is refused.
CREATE SCHEMA fieldcrypt;
COMMENT ON SCHEMA fieldcrypt IS 'pg_fieldcrypt: field encryption with a key per tenant, rotation and an audit log';

-- What no user calls or reads by name: it would hide what users do.
CREATE SCHEMA fieldcrypt_internal;
COMMENT ON SCHEMA fieldcrypt_internal IS 'what pg_fieldcrypt is made of inside; nothing in it is to be called or read by name';

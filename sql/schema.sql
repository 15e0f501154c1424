-- The schema. CREATE SCHEMA, not IF NOT EXISTS: a schema that somebody else prepared is refused.
CREATE SCHEMA fieldcrypt;
COMMENT ON SCHEMA fieldcrypt IS 'pg_fieldcrypt: field encryption with a key per tenant, rotation and an audit log';

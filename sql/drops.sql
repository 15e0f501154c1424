-- The guard of the whole: nothing drops the extension, its keys, its type or its log while there are keys.
--
-- The library sees every object that is dropped, by whatever statement, and refuses (src/lifecycle/drops.rs). A session
-- that has not needed it so far loads it here, before the statement begins. sql_drop would come too late: it is asked
-- for after the trigger itself is gone. These are the statements that drop anything on which something of the extension
-- could depend.

CREATE FUNCTION fieldcrypt_internal.guard_drops() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'fieldcrypt_guard_drops';
COMMENT ON FUNCTION fieldcrypt_internal.guard_drops() IS
    'event trigger: loads the library, which refuses to drop the extension while there are keys';

CREATE EVENT TRIGGER fieldcrypt_guard_drops ON ddl_command_start
    WHEN TAG IN ('DROP EXTENSION', 'DROP SCHEMA', 'DROP OWNED', 'DROP TABLE', 'DROP TYPE', 'DROP DOMAIN', 'DROP FUNCTION',
        'DROP PROCEDURE', 'DROP ROUTINE', 'DROP AGGREGATE', 'DROP OPERATOR', 'DROP OPERATOR CLASS', 'DROP OPERATOR FAMILY',
        'DROP CAST', 'DROP VIEW', 'DROP MATERIALIZED VIEW', 'DROP SEQUENCE', 'DROP LANGUAGE', 'DROP COLLATION',
        'DROP CONVERSION', 'DROP ACCESS METHOD', 'DROP FOREIGN DATA WRAPPER', 'DROP SERVER', 'DROP FOREIGN TABLE',
        'ALTER TABLE')
    EXECUTE FUNCTION fieldcrypt_internal.guard_drops();
-- Also where replication applies changes, or a session says that it does.
ALTER EVENT TRIGGER fieldcrypt_guard_drops ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER fieldcrypt_guard_drops IS
    'pg_fieldcrypt: nothing drops the extension, its keys, its type or its log while there are keys, unless fieldcrypt.allow_drop is on';

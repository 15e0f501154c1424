-- Versions: the library is the server's, what it serves is each database's, and they are not changed at one moment. A new
-- library serves databases that were not updated yet; sql/updates/ has what updates them.

CREATE FUNCTION fieldcrypt_internal.library_version() RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_library_version';
COMMENT ON FUNCTION fieldcrypt_internal.library_version() IS 'the version of the library that this session runs; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.version_parts(version text) RETURNS integer[]
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT string_to_array(substring($1 FROM '^[0-9]+(?:[.][0-9]+)*'), '.')::integer[] $$;
COMMENT ON FUNCTION fieldcrypt_internal.version_parts(text) IS 'the numbers of a version, which compare as versions do';

-- Who has a privilege of grant_access has what a new version adds to it: procedures run with their callers' rights, and may
-- call functions that were not there before. The update script can't grant that itself: what a script grants counts as the
-- extension's own, and pg_dump leaves it out. So it notes who has what (sql/updates/begin.sql), and here, after it, the rest
-- is granted, with the rights of who updates: anybody may write such a note, and nobody grants more by it than without.
CREATE FUNCTION fieldcrypt_internal.complete_privileges() RETURNS event_trigger
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    noted jsonb;
    item record;
    granted record;
BEGIN
    IF coalesce(current_setting('fieldcrypt_update.noted', true), '') = ''
       OR pg_has_role(current_user, (SELECT n.nspowner FROM pg_namespace AS n WHERE n.nspname = 'fieldcrypt'), 'USAGE') IS NOT TRUE THEN
        RETURN;
    END IF;
    noted := current_setting('fieldcrypt_update.noted');
    PERFORM set_config('fieldcrypt_update.noted', '', false);
    -- An update whose end nobody was told of may have left one.
    IF noted ->> 'transaction' IS DISTINCT FROM pg_current_xact_id()::text THEN
        RETURN;
    END IF;
    FOR granted IN
        SELECT h.role, h.role::regrole::text AS name, h.privilege, array_agg(format('GRANT %s ON %s TO %s', o.rights, o.object, h.role::regrole)) AS grants
          FROM jsonb_to_recordset(noted -> 'holders') AS h (role oid, privilege text)
         CROSS JOIN fieldcrypt_internal.privilege_objects(h.privilege) AS o
         WHERE NOT noted -> 'objects' -> h.privilege ? format('%s ON %s', o.rights, o.object)
         GROUP BY h.role, h.privilege
         ORDER BY h.role, h.privilege
    LOOP
        FOR item IN SELECT u.command FROM unnest(granted.grants) AS u (command) LOOP
            EXECUTE item.command;
        END LOOP;
        PERFORM fieldcrypt_internal.record_event('access_granted', NULL, NULL,
            format('%s to %s: what is new in it', granted.privilege, granted.name), NULL);
        RAISE NOTICE 'role % has % and now what is new in it', granted.name, granted.privilege;
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.complete_privileges() IS
    'event trigger: whoever has a privilege of grant_access has what an update adds to it';

CREATE EVENT TRIGGER fieldcrypt_updates ON ddl_command_end
    WHEN TAG IN ('ALTER EXTENSION')
    EXECUTE FUNCTION fieldcrypt_internal.complete_privileges();
ALTER EVENT TRIGGER fieldcrypt_updates ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER fieldcrypt_updates IS 'pg_fieldcrypt: whoever has a privilege has what an update adds to it';

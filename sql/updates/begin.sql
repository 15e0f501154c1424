-- The beginning of every update.

-- What is there, so that the end tells what is new; and who has the whole of which privilege, for after the end.
DO $noted$
BEGIN
    PERFORM set_config('fieldcrypt_update.members', (
        SELECT string_agg(format('%s:%s', d.classid, d.objid), ' ') FROM pg_depend AS d
         WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
           AND d.refobjid = (SELECT e.oid FROM pg_extension AS e WHERE e.extname = 'pg_fieldcrypt')), true);
    -- One statement may make several updates.
    IF coalesce(current_setting('fieldcrypt_update.noted', true), '') <> ''
       AND current_setting('fieldcrypt_update.noted')::jsonb ->> 'transaction' = pg_current_xact_id()::text THEN
        RETURN;
    END IF;
    PERFORM set_config('fieldcrypt_update.noted', (
        WITH listed AS (
            SELECT p.privilege, o.rights, o.object
              FROM unnest('{encrypt,decrypt,reencrypt,manage,audit,backup,type,value,schema}'::text[]) AS p (privilege),
                   fieldcrypt_internal.privilege_objects(p.privilege) AS o
        ), items AS (
            SELECT l.privilege, row_number() OVER () AS number, split_part(l.rights, ' ', 1) AS rights, split_part(l.object, ' ', 1) AS kind,
                   substr(l.object, strpos(l.object, ' ') + 1) AS name, c.name AS column_name
              FROM listed AS l LEFT JOIN regexp_split_to_table(substring(l.rights FROM '[(](.*)[)]'), ', ') AS c (name) ON true
        ), held AS (
            SELECT i.privilege, a.grantee
              FROM items AS i,
                   aclexplode(CASE
                       WHEN i.kind IN ('FUNCTION', 'PROCEDURE') THEN (SELECT p.proacl FROM pg_proc AS p WHERE p.oid = to_regprocedure(i.name))
                       WHEN i.kind = 'TABLE' AND i.column_name IS NULL THEN (SELECT c.relacl FROM pg_class AS c WHERE c.oid = to_regclass(i.name))
                       WHEN i.kind = 'TABLE' THEN (SELECT a.attacl FROM pg_attribute AS a WHERE a.attrelid = to_regclass(i.name) AND a.attname = i.column_name)
                       WHEN i.kind = 'TYPE' THEN (SELECT t.typacl FROM pg_type AS t WHERE t.oid = to_regtype(i.name))
                       WHEN i.kind = 'SCHEMA' THEN (SELECT n.nspacl FROM pg_namespace AS n WHERE n.nspname = i.name) END) AS a
             WHERE a.privilege_type = i.rights AND a.grantee <> 0 AND a.grantee <> a.grantor
             GROUP BY i.privilege, a.grantee
            HAVING count(DISTINCT i.number) = (SELECT count(*) FROM items AS o WHERE o.privilege = i.privilege)
        )
        SELECT jsonb_build_object(
                   'transaction', pg_current_xact_id()::text,
                   'holders', (SELECT coalesce(jsonb_agg(jsonb_build_object('role', h.grantee::bigint, 'privilege', h.privilege)), '[]') FROM held AS h),
                   'objects', (SELECT jsonb_object_agg(b.privilege, b.objects)
                                 FROM (SELECT l.privilege, jsonb_agg(format('%s ON %s', l.rights, l.object)) AS objects FROM listed AS l GROUP BY l.privilege) AS b))::text),
        false);
END
$noted$;

-- A server that preloads the library has the new one after a restart only. What is new here would not find its functions, or
-- would find what does other things than it says.
DO $library$
DECLARE
    library text;
BEGIN
    BEGIN
        EXECUTE $$CREATE OR REPLACE FUNCTION fieldcrypt_internal.library_version() RETURNS text
            LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_library_version'$$;
        library := fieldcrypt_internal.library_version();
    EXCEPTION WHEN undefined_function THEN
        library := '0.1.0';
    END;
    IF string_to_array(substring(library FROM '^[0-9]+(?:[.][0-9]+)*'), '.')::integer[] < string_to_array('@TO@', '.')::integer[] THEN
        RAISE EXCEPTION USING ERRCODE = 'KF035',
            MESSAGE = format('this session runs the library of pg_fieldcrypt %s, which is older than @TO@', library),
            HINT = 'Install the new one. Where shared_preload_libraries names it, restart the server; elsewhere begin a new session. Then update. (KF035, see docs/errors.md)';
    END IF;
END
$library$;

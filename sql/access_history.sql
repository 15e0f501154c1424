-- Who could do what, and when: the roles that each privilege reaches, in the log whenever they have changed. Plain
-- GRANTs, memberships and attributes of roles change that as well as grant_access does.

-- Wider rather than narrower: a role is listed if it can get there by what it holds, with a statement of its own if need be.
CREATE FUNCTION fieldcrypt_internal.effective_access()
    RETURNS TABLE (privilege text, role name, how text, can_login boolean)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET standard_conforming_strings = on SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH listed AS (
        SELECT p.name AS privilege, o.object
          FROM unnest('{encrypt,decrypt,reencrypt,manage,audit,backup}'::text[]) AS p (name),
               fieldcrypt_internal.privilege_objects(p.name) AS o
         WHERE o.rights = 'EXECUTE'
    ), acls (privilege, owner, acl, needed) AS (
        -- Routines that belong to one privilege alone. Any of them will do: there is more than one way to decrypt.
        SELECT min(l.privilege), r.proowner, coalesce(r.proacl, acldefault('f', r.proowner)), 'EXECUTE'
          FROM listed AS l
          JOIN pg_proc AS r ON r.oid = regexp_replace(l.object, '^[A-Z]+ ', '')::regprocedure
         GROUP BY l.object, r.oid, r.proowner, r.proacl HAVING count(*) = 1
        UNION ALL
        -- The log, by any of its years or columns; and the wrapped keys.
        SELECT 'audit', c.relowner, a.acl, 'SELECT'
          FROM pg_class AS c, LATERAL (
                SELECT coalesce(c.relacl, acldefault('r', c.relowner))
                UNION ALL SELECT n.attacl FROM pg_attribute AS n WHERE n.attrelid = c.oid AND n.attacl IS NOT NULL) AS a (acl)
         WHERE c.oid = 'fieldcrypt.audit_log'::regclass
            OR c.oid IN (SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = 'fieldcrypt.audit_log'::regclass)
        UNION ALL
        SELECT 'backup', c.relowner, a.acl, 'SELECT'
          FROM pg_class AS c, LATERAL (
                SELECT coalesce(c.relacl, acldefault('r', c.relowner))
                UNION ALL SELECT n.attacl FROM pg_attribute AS n
                           WHERE n.attrelid = c.oid AND n.attname = 'wrapped_key' AND n.attacl IS NOT NULL) AS a (acl)
         WHERE c.oid = 'fieldcrypt.encryption_keys'::regclass
    ), holders (privilege, holder, is_owner, is_inherited) AS MATERIALIZED (
        SELECT a.privilege, e.grantee, bool_or(e.grantee = a.owner), true
          FROM acls AS a, aclexplode(a.acl) AS e WHERE e.privilege_type = a.needed
         GROUP BY a.privilege, e.grantee
        UNION
        SELECT a.privilege, a.owner, true, true FROM acls AS a
        UNION
        SELECT p.name, 'pg_read_all_data'::regrole, false, true FROM unnest('{audit,backup}'::text[]) AS p (name)
        UNION
        -- Members of a superuser are not superusers before they have said SET ROLE.
        SELECT p.name, r.oid, false, false FROM unnest('{encrypt,decrypt,reencrypt,manage,audit,backup}'::text[]) AS p (name), pg_roles AS r WHERE r.rolsuper
    ), doors (holder, door) AS MATERIALIZED (
        -- Until PostgreSQL 15 a role with CREATEROLE makes itself a member of any role but a superuser, and so of one that is a member of it.
        SELECT h.holder, coalesce(min(quote_ident(g.rolname)) FILTER (WHERE g.oid = h.holder), min(quote_ident(g.rolname)))
          FROM (SELECT DISTINCT h.holder FROM holders AS h WHERE h.holder <> 0) AS h
          JOIN pg_roles AS g ON NOT g.rolsuper AND g.rolname <> 'pg_database_owner' AND pg_has_role(g.oid, h.holder, 'MEMBER')
         WHERE current_setting('server_version_num')::integer < 160000
         GROUP BY h.holder
    ), reached AS (
        SELECT h.privilege, r.oid, r.rolname, r.rolcanlogin,
               min(CASE WHEN r.rolsuper THEN 1 WHEN h.holder = r.oid AND h.is_owner THEN 2 WHEN h.holder = r.oid THEN 3
                        WHEN h.holder = 0 THEN 6
                        WHEN h.is_inherited AND pg_has_role(r.oid, h.holder, 'USAGE') THEN 4
                        WHEN pg_has_role(r.oid, h.holder, 'MEMBER') THEN 5
                        WHEN r.rolcreaterole AND d.door IS NOT NULL THEN 7 END) AS way,
               r.rolsuper
          FROM holders AS h
          LEFT JOIN doors AS d ON d.holder = h.holder
         CROSS JOIN pg_roles AS r
         GROUP BY h.privilege, r.oid, r.rolname, r.rolcanlogin, r.rolsuper
    )
    SELECT w.privilege, w.rolname,
           CASE w.way WHEN 1 THEN 'superuser' WHEN 2 THEN 'owner' WHEN 3 THEN 'granted' WHEN 6 THEN 'granted to PUBLIC'
                ELSE format(CASE w.way WHEN 4 THEN 'inherits from %s' WHEN 5 THEN 'SET ROLE %s' ELSE 'CREATEROLE: GRANT %s' END,
                        (SELECT min(CASE WHEN w.way = 7 THEN d.door ELSE quote_ident(g.rolname) END)
                           FROM holders AS h JOIN pg_roles AS g ON g.oid = h.holder LEFT JOIN doors AS d ON d.holder = h.holder
                          WHERE h.privilege = w.privilege
                            AND CASE w.way WHEN 4 THEN h.is_inherited AND pg_has_role(w.oid, h.holder, 'USAGE')
                                           WHEN 5 THEN pg_has_role(w.oid, h.holder, 'MEMBER') ELSE d.door IS NOT NULL END)) END,
           w.rolcanlogin
      FROM reached AS w WHERE w.way IS NOT NULL;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.effective_access() IS
    'which roles each privilege reaches now, and how: by a grant, membership, ownership, as a superuser; granted to nobody';

-- A row of the log holds a privilege, or a part of it, as JSON: within what a reason may have.
CREATE FUNCTION fieldcrypt_internal.access_step() RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on SET timezone = 'UTC' SET row_security = off SET jit = off
AS $$
DECLARE
    most CONSTANT integer := 4000;
    taken text := to_char(clock_timestamp(), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
    parts jsonb[] := '{}';
    last jsonb;
    known jsonb[];
    roles jsonb;
    pieces jsonb[];
    item record;
    entry jsonb;
BEGIN
    -- Before there is a key nobody can do anything.
    IF NOT EXISTS (SELECT FROM fieldcrypt.encryption_keys) THEN
        RETURN 0;
    END IF;
    FOR item IN
        SELECT p.name AS privilege,
               array_agg(jsonb_build_array(e.role, e.how, e.can_login) ORDER BY e.role) FILTER (WHERE e.role IS NOT NULL) AS entries
          FROM unnest('{encrypt,decrypt,reencrypt,manage,audit,backup}'::text[]) WITH ORDINALITY AS p (name, place)
          LEFT JOIN fieldcrypt_internal.effective_access() AS e ON e.privilege = p.name
         GROUP BY p.name, p.place ORDER BY p.place
    LOOP
        roles := '[]';
        pieces := '{}';
        FOREACH entry IN ARRAY coalesce(item.entries, '{}') LOOP
            IF octet_length(roles::text) + octet_length(entry::text) > most THEN
                pieces := pieces || roles;
                roles := '[]';
            END IF;
            roles := roles || jsonb_build_array(entry);
        END LOOP;
        pieces := pieces || roles;
        FOR part IN 1 .. cardinality(pieces) LOOP
            parts := parts || jsonb_build_object('privilege', item.privilege, 'part', part, 'parts', cardinality(pieces), 'roles', pieces[part]);
        END LOOP;
    END LOOP;
    last := (SELECT l.reason::jsonb FROM fieldcrypt.audit_log AS l WHERE l.event = 'access_snapshot' ORDER BY l.at DESC, l.id DESC LIMIT 1);
    known := ARRAY(
        SELECT l.reason::jsonb - 'taken' FROM fieldcrypt.audit_log AS l
         WHERE l.event = 'access_snapshot' AND l.at >= (last ->> 'taken')::timestamptz AND l.reason::jsonb ->> 'taken' = last ->> 'taken'
         ORDER BY l.id);
    -- One a month in any case: a year may be retired, and what was never looked at is not the same as what has not changed.
    IF known = parts AND (last ->> 'taken')::timestamptz > clock_timestamp() - interval '30 days' THEN
        RETURN 0;
    END IF;
    FOR part IN 1 .. cardinality(parts) LOOP
        PERFORM fieldcrypt_internal.record_event('access_snapshot', NULL, NULL,
            (parts[part] || jsonb_build_object('taken', taken))::text, NULL);
    END LOOP;
    RETURN cardinality(parts);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.access_step() IS
    'writes which roles each privilege reaches into the audit log, if that has changed; gives the number of rows; granted to nobody';

CREATE FUNCTION fieldcrypt.snapshot_access() RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM fieldcrypt_internal.refuse_unless_recordable('a snapshot of access');
    -- What may be rolled back, and what was before, would be told as what is.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') OR pg_current_xact_id_if_assigned() IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'active_sql_transaction',
            MESSAGE = 'a snapshot of access is of what is committed: not of what this transaction has changed, nor of when it began',
            HINT = 'Call it on its own, outside a transaction block that has written, in READ COMMITTED.';
    END IF;
    RETURN fieldcrypt_internal.access_step();
END
$$;
COMMENT ON FUNCTION fieldcrypt.snapshot_access() IS
    'writes now into the audit log which roles each privilege reaches, if that has changed since it was last written; gives the number of rows. The log''s worker does it once a day (fieldcrypt.audit_access_interval), and check_audit_log() each time';

CREATE FUNCTION fieldcrypt.who_could(privilege text, at timestamptz DEFAULT now())
    RETURNS TABLE (role text, how text, can_login boolean, as_of timestamptz)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on SET timezone = 'UTC'
AS $$
#variable_conflict use_variable
DECLARE
    taken text;
    found record;
BEGIN
    IF privilege IS NULL OR at IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'privilege and time must not be NULL';
    ELSIF privilege <> ALL ('{encrypt,decrypt,reencrypt,manage,audit,backup}'::text[]) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'this is none of the privileges',
            HINT = 'They are encrypt, decrypt, reencrypt, manage, audit and backup.';
    END IF;
    taken := (SELECT l.reason::jsonb ->> 'taken' FROM fieldcrypt.audit_log AS l
               WHERE l.event = 'access_snapshot' AND l.at <= who_could.at ORDER BY l.at DESC, l.id DESC LIMIT 1);
    IF taken IS NULL THEN
        -- No rows would say that nobody could.
        RAISE EXCEPTION USING ERRCODE = 'no_data_found', MESSAGE = 'the audit log does not tell who could what at that time',
            HINT = coalesce((SELECT 'It tells from ' || min(l.at) || ' on.' FROM fieldcrypt.audit_log AS l WHERE l.event = 'access_snapshot'),
                'SELECT fieldcrypt.snapshot_access() writes it down now; fieldcrypt.audit_access_interval says how often the log''s worker does.');
    END IF;
    as_of := taken::timestamptz;
    SELECT array_agg(l.reason::jsonb ORDER BY l.id) AS parts, max((l.reason::jsonb ->> 'parts')::integer) AS expected INTO found
      FROM fieldcrypt.audit_log AS l
     WHERE l.event = 'access_snapshot' AND l.at >= as_of AND l.reason::jsonb ->> 'taken' = taken AND l.reason::jsonb ->> 'privilege' = who_could.privilege;
    IF cardinality(found.parts) IS DISTINCT FROM found.expected THEN
        RAISE EXCEPTION USING ERRCODE = 'data_exception', MESSAGE = 'what the audit log tells of that time is not whole',
            HINT = 'SELECT * FROM fieldcrypt.verify_audit_log().';
    END IF;
    FOR role, how, can_login IN
        SELECT e.entry ->> 0, e.entry ->> 1, (e.entry ->> 2)::boolean
          FROM unnest(found.parts) AS p (part), jsonb_array_elements(p.part -> 'roles') AS e (entry) ORDER BY 1
    LOOP
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt.who_could(text, timestamptz) IS
    'which roles a privilege reached at some time, and how, as the audit log last said before then: as_of is when that was written, and a look since that found the same wrote nothing; an error if the log says nothing of it';

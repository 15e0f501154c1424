-- The end of every update.

-- What is new is the owner's, whoever updates, and nobody else's: not even if ALTER DEFAULT PRIVILEGES of who updates say
-- so. What was there keeps the rights that it has, and is not even looked at: a GRANT or REVOKE in a script would make all
-- rights on an object, also those that users gave, the extension's own, which pg_dump leaves out.
DO $new_objects$
DECLARE
    owner oid := (SELECT n.nspowner FROM pg_namespace AS n WHERE n.nspname = 'fieldcrypt');
    item record;
    grantee oid;
BEGIN
    FOR item IN
        WITH member AS (
            SELECT d.classid, d.objid, i.schema, i.identity FROM pg_depend AS d, pg_identify_object(d.classid, d.objid, 0) AS i
             WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
               AND d.refobjid = (SELECT e.oid FROM pg_extension AS e WHERE e.extname = 'pg_fieldcrypt')
               AND format('%s:%s', d.classid, d.objid) <> ALL (string_to_array(current_setting('fieldcrypt_update.members'), ' '))
        )
        SELECT 'ROUTINE' AS kind, m.*, p.proowner AS owner, coalesce(p.proacl, acldefault('f', owner)) AS acl
          FROM member AS m JOIN pg_proc AS p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
        UNION ALL
        SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, m.*, c.relowner, c.relacl
          FROM member AS m JOIN pg_class AS c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
        UNION ALL
        SELECT CASE t.typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, m.*, t.typowner, coalesce(t.typacl, acldefault('T', owner))
          FROM member AS m JOIN pg_type AS t ON m.classid = 'pg_type'::regclass AND t.oid = m.objid
         -- From PostgreSQL 17 on, arrays and tables' row types are members, too: their owner and rights follow.
         WHERE NOT EXISTS (SELECT FROM pg_type AS e WHERE e.typarray = t.oid)
           AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = t.typrelid AND c.relkind <> 'c')
        UNION ALL
        -- Only superusers own event triggers.
        SELECT 'EVENT TRIGGER', m.*, t.evtowner, NULL FROM member AS m JOIN pg_event_trigger AS t ON m.classid = 'pg_event_trigger'::regclass AND t.oid = m.objid
         WHERE (SELECT r.rolsuper FROM pg_roles AS r WHERE r.oid = owner)
        UNION ALL
        SELECT 'OPERATOR', m.*, o.oprowner, NULL FROM member AS m JOIN pg_operator AS o ON m.classid = 'pg_operator'::regclass AND o.oid = m.objid
        UNION ALL
        SELECT 'OPERATOR CLASS', m.*, o.opcowner, NULL FROM member AS m JOIN pg_opclass AS o ON m.classid = 'pg_opclass'::regclass AND o.oid = m.objid
        UNION ALL
        SELECT 'OPERATOR FAMILY', m.*, o.opfowner, NULL FROM member AS m JOIN pg_opfamily AS o ON m.classid = 'pg_opfamily'::regclass AND o.oid = m.objid
    LOOP
        -- The sequence of a column follows its table.
        IF item.owner <> owner AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = item.classid AND d.objid = item.objid
                AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND item.kind = 'SEQUENCE') THEN
            EXECUTE format('ALTER %s %s OWNER TO %s', item.kind, item.identity, owner::regrole);
        END IF;
        FOR grantee IN SELECT DISTINCT a.grantee FROM aclexplode(item.acl) AS a
             WHERE a.grantee <> item.owner AND item.schema IN ('fieldcrypt', 'fieldcrypt_internal')
        LOOP
            EXECUTE format('REVOKE ALL ON %s %s FROM %s', item.kind, item.identity, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END);
        END LOOP;
    END LOOP;
END
$new_objects$;

SELECT fieldcrypt_internal.record_event('extension_updated', NULL, NULL, 'from @FROM@ to @TO@', NULL);

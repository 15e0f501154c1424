-- Health of the tenants: values that nobody named a tenant for.

CREATE FUNCTION fieldcrypt_internal.check_default_tenant(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keys bigint[] := ARRAY(
        SELECT k.key_id FROM fieldcrypt.encryption_keys AS k
         WHERE k.tenant = 'default' AND k.purpose = 'field' AND k.state <> 'destroyed');
    others bigint := (
        SELECT count(*) FROM (
            SELECT FROM fieldcrypt.encryption_keys AS k
             WHERE k.purpose = 'field' AND k.state = 'active' AND k.tenant <> 'default' LIMIT 10001) AS k);
    places text;
BEGIN
    IF cardinality(keys) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'the tenant "default" has no keys');
    ELSIF others = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'there is no tenant but "default"');
    END IF;
    IF used IS NOT NULL THEN
        places := (SELECT string_agg(fieldcrypt_internal.use_of_key(used, k.key_id), ', ') FROM unnest(keys) AS k(key_id));
        IF places IS NULL THEN
            RETURN fieldcrypt_internal.finding_of('ok', 'the tenant "default" has keys, and no values');
        END IF;
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('the tenant "default" has %s beside %s: it is whose values those are that were encrypted without the name of a tenant',
            coalesce(places, 'keys'),
            CASE WHEN others > 10000 THEN 'more than 10000 other tenants' WHEN others = 1 THEN 'one other tenant' ELSE format('%s other tenants', others) END),
        'If they should be other tenants'' values: turn fieldcrypt.require_tenant on, and encrypt them anew. See docs/poolers.md. If not: fieldcrypt.health_accepted = ''default_tenant''.',
        '{default}');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_default_tenant(jsonb) IS 'check: values of the tenant default beside other tenants';

-- Where tenants are required, two things let others in all the same: a role that comes in by SET ROLE, which brings no
-- settings along, and what a client leaves in the temporary schema of a connection that another gets next.
CREATE FUNCTION fieldcrypt_internal.check_require_tenant(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $$
DECLARE
    here CONSTANT oid := (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database());
    off CONSTANT text[] := '{off,of,false,fals,fal,fa,f,no,n,0}';
    -- Of the server, not of the session that asks, which may have another value by its role.
    for_server text := (SELECT s.setting FROM pg_settings AS s WHERE s.name = 'fieldcrypt.require_tenant' AND s.source IN ('default', 'command line', 'environment variable', 'configuration file'));
    bypassed text[];
    temporary text[];
    roles text[];
    problems text[];
BEGIN
    IF has_table_privilege('pg_file_settings', 'SELECT') THEN
        for_server := coalesce((SELECT f.setting FROM pg_file_settings AS f WHERE f.applied AND lower(f.name) = 'fieldcrypt.require_tenant'), for_server);
    END IF;
    WITH entries AS MATERIALIZED (
        SELECT s.setrole, s.setdatabase, lower(btrim(substr(c.entry, strpos(c.entry, '=') + 1))) <> ALL (off) AS is_required
          FROM pg_db_role_setting AS s CROSS JOIN LATERAL unnest(s.setconfig) AS c(entry)
         WHERE s.setdatabase IN (0, here) AND lower(split_part(c.entry, '=', 1)) = 'fieldcrypt.require_tenant'
    ), everybody AS MATERIALIZED (
        SELECT r.oid, r.rolname, r.rolcanlogin,
               EXISTS (SELECT FROM entries AS e WHERE e.setrole = r.oid AND e.is_required) AS is_named,
               -- As a session takes them: the role's in this database, the role's, the database's, everybody's.
               coalesce((SELECT e.is_required FROM entries AS e WHERE e.setrole IN (0, r.oid)
                          ORDER BY e.setrole = r.oid DESC, e.setdatabase = here DESC LIMIT 1),
                   lower(btrim(coalesce(for_server, 'off'))) <> ALL (off)) AS is_required
          FROM pg_roles AS r
         WHERE NOT r.rolsuper
    ), users AS MATERIALIZED (
        SELECT e.* FROM everybody AS e
         WHERE (e.is_named OR e.is_required)
           AND (has_function_privilege(e.oid, 'fieldcrypt.encrypt_field(text,text,text)', 'EXECUTE')
                OR has_function_privilege(e.oid, 'fieldcrypt.decrypt_field(fieldcrypt.encrypted,text)', 'EXECUTE'))
    )
    SELECT ARRAY(SELECT DISTINCT format('%s (who becomes %s)', fieldcrypt_internal.quoted_name(l.rolname), fieldcrypt_internal.quoted_name(u.rolname))
                   FROM users AS u JOIN everybody AS l ON l.rolcanlogin AND NOT l.is_required AND l.oid <> u.oid AND pg_has_role(l.oid, u.oid, 'MEMBER')
                  WHERE u.is_named ORDER BY 1),
           ARRAY(SELECT fieldcrypt_internal.quoted_name(u.rolname) FROM users AS u
                  WHERE u.is_required AND has_database_privilege(u.oid, here, 'TEMPORARY') ORDER BY u.rolname),
           ARRAY(SELECT u.rolname::text FROM users AS u WHERE u.is_required ORDER BY 1)
      INTO bypassed, temporary, roles;
    IF cardinality(bypassed) > 0 THEN
        problems := problems || format('fieldcrypt.require_tenant is set for a role, and has no effect for %s: settings of a role are for who logs in as that role',
            fieldcrypt_internal.counted_names(bypassed, cardinality(bypassed), 'role'));
    END IF;
    IF cardinality(temporary) > 0 THEN
        problems := problems || format('a tenant is required of %s, and a temporary table or view that it makes may get the plaintext of the next client of a shared connection',
            fieldcrypt_internal.counted_names(temporary, cardinality(temporary), 'role'));
    END IF;
    IF problems IS NOT NULL THEN
        RETURN fieldcrypt_internal.finding_of('warning', array_to_string(problems, '; '),
            concat_ws(' ',
                CASE WHEN cardinality(bypassed) > 0 THEN 'ALTER ROLE ... SET fieldcrypt.require_tenant for the roles that log in, or ALTER DATABASE.' END,
                CASE WHEN cardinality(temporary) > 0 THEN format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC, and from these roles; if no connection is shared, fieldcrypt.health_accepted = ''require_tenant''.', current_database()) END,
                'See docs/poolers.md.'),
            fieldcrypt_internal.finding_identity(bypassed || temporary, cardinality(bypassed || temporary)));
    END IF;
    RETURN fieldcrypt_internal.finding_of('ok', CASE WHEN cardinality(roles) = 0 THEN 'no role that encrypts or decrypts is required to name a tenant'
        ELSE 'roles that are required to name a tenant can neither come in without that nor leave temporary objects behind' END);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_require_tenant(jsonb) IS 'check: roles that come in without the setting that requires a tenant, or that leave temporary objects on shared connections';

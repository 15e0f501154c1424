-- Other nodes, as the catalogs of this one tell of them. What is Citus's is looked at only where its catalog is, and by
-- no name that has to be there when these functions are made.
--
-- Citus hides shards: to every query that names pg_class it adds a condition, unless citus.override_table_visibility is
-- off. A shard that is not seen is not counted, and its keys would be destroyed. So each function that looks for tables
-- of users in pg_class is planned with that setting off; elsewhere it means nothing.

CREATE FUNCTION fieldcrypt_internal.keys_from(purpose text) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_keys_from';
COMMENT ON FUNCTION fieldcrypt_internal.keys_from(text) IS
    'which other node makes the keys of this database that are for that purpose; NULL: it makes them itself';

CREATE FUNCTION fieldcrypt_internal.refuse_unless_made_here(purpose text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_unless_made_here';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_unless_made_here(text) IS
    'an error where keys for that purpose come from another node: on a worker of Citus, on a subscriber that receives the tables of keys';

CREATE FUNCTION fieldcrypt_internal.distributed_tables() RETURNS oid[]
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relations oid[];
BEGIN
    IF to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL THEN
        EXECUTE 'SELECT array_agg(p.logicalrelid::oid) FROM pg_catalog.pg_dist_partition AS p' INTO relations;
    END IF;
    RETURN coalesce(relations, '{}');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.distributed_tables() IS
    'the tables of Citus whose rows are in shards, here and on other nodes; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.is_applying() RETURNS boolean
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_is_applying';
COMMENT ON FUNCTION fieldcrypt_internal.is_applying() IS
    'whether this process applies what a subscription brings, or copies its tables';

CREATE FUNCTION fieldcrypt_internal.keep_own() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'fieldcrypt_keep_own';
COMMENT ON FUNCTION fieldcrypt_internal.keep_own() IS
    'trigger: what is one database''s own, its log for instance, takes nothing that a subscription brings';

-- Policies and contexts are the publisher's, also where a database had some before it subscribed: two of one tenant or
-- column would stop the subscription for ever.
CREATE FUNCTION fieldcrypt_internal.take_over() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT fieldcrypt_internal.is_applying() THEN
        RETURN NEW;
    ELSIF TG_RELID = 'fieldcrypt.rotation_policies'::regclass THEN
        DELETE FROM fieldcrypt.rotation_policies AS p WHERE p.tenant = NEW.tenant;
    ELSE
        DELETE FROM fieldcrypt.column_contexts AS c WHERE c.table_name = NEW.table_name AND c.column_name = NEW.column_name;
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.take_over() IS
    'trigger: a policy or context that a subscription brings replaces that of this database';

-- A table that is named, one of a schema that is, and one of all.
CREATE FUNCTION fieldcrypt_internal.publications_of_keys() RETURNS text[]
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    publications text[];
BEGIN
    publications := ARRAY(
        SELECT p.pubname::text FROM pg_publication AS p
         WHERE p.puballtables
            OR EXISTS (SELECT FROM pg_publication_rel AS r WHERE r.prpubid = p.oid AND r.prrelid = 'fieldcrypt.encryption_keys'::regclass));
    -- From PostgreSQL 15 on.
    IF to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL THEN
        EXECUTE 'SELECT $1 || array_agg(p.pubname::text) FROM pg_catalog.pg_publication_namespace AS n
                   JOIN pg_catalog.pg_publication AS p ON p.oid OPERATOR(pg_catalog.=) n.pnpubid
                  WHERE n.pnnspid OPERATOR(pg_catalog.=) ''fieldcrypt''::pg_catalog.regnamespace'
           INTO publications USING publications;
    END IF;
    RETURN ARRAY(SELECT DISTINCT u.name FROM unnest(publications) AS u(name) WHERE u.name IS NOT NULL ORDER BY 1);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.publications_of_keys() IS 'the publications that send the table of keys to other databases; granted to nobody';

-- Values of keys that others have, too, may be with them, or on the way here.
CREATE FUNCTION fieldcrypt_internal.values_elsewhere() RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    publications text[] := fieldcrypt_internal.publications_of_keys();
    slots bigint;
BEGIN
    IF fieldcrypt_internal.keys_from('field') IS NOT NULL THEN
        RETURN format('another node may have values of it, or send them here (%s)', fieldcrypt_internal.keys_from('field'));
    ELSIF cardinality(publications) > 0 THEN
        SELECT count(*) INTO slots FROM pg_replication_slots AS s
         WHERE s.slot_type = 'logical' AND s.database = current_database() AND NOT s.temporary;
        IF slots > 0 THEN
            RETURN format('subscribers may have values of it (publication "%s" sends them the keys, by %s slot(s))', array_to_string(publications, '", "'), slots);
        END IF;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.values_elsewhere() IS
    'why databases that publish or receive the table of keys may have values on keys of this one; NULL: none that is known; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.other_nodes() RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    publications text[] := fieldcrypt_internal.publications_of_keys();
BEGIN
    RETURN nullif(concat_ws('; ',
        CASE WHEN to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL THEN 'the other nodes of Citus have keys and a master key of their own' END,
        CASE WHEN fieldcrypt_internal.keys_from('audit') IS NOT NULL THEN fieldcrypt_internal.keys_from('audit') || ', which has them still' END,
        CASE WHEN cardinality(publications) > 0 THEN format('subscribers of publication "%s" have the keys, too, and hear of changes when they apply them',
            array_to_string(publications, '", "')) END), '');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.other_nodes() IS 'which other nodes, as far as is known here, have keys that nothing here speaks of; NULL if none';

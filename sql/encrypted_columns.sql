-- Where encrypted values are: found in the catalogs, since no column can hold them unless its type says so.

-- The planner takes the recursion for expensive: compiling it takes a hundred times as long as running it.
CREATE FUNCTION fieldcrypt_internal.encrypted_columns()
    RETURNS TABLE (relation oid, table_name text, kind "char", attnum smallint, column_name text,
                   holds text, is_readable boolean, problem text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET jit = off
AS $$
    WITH RECURSIVE holding (type, holds) AS (
        SELECT t.type::oid, 'value' FROM unnest('{fieldcrypt.encrypted,fieldcrypt.encrypted_text}'::regtype[]) AS t(type)
        UNION
        SELECT t.oid, CASE t.typtype WHEN 'd' THEN h.holds WHEN 'c' THEN 'composite' ELSE 'array' END
          FROM holding AS h, pg_type AS t
         WHERE t.typtype = 'd' AND t.typbasetype = h.type
            OR t.typcategory = 'A' AND t.typelem = h.type
            OR t.typtype = 'c' AND EXISTS (
                SELECT FROM pg_attribute AS a
                 WHERE a.attrelid = t.typrelid AND a.atttypid = h.type
                   AND a.attnum > 0 AND NOT a.attisdropped)
    ), how AS (
        SELECT h.type, min(h.holds) AS holds FROM holding AS h GROUP BY h.type
    )
    SELECT c.oid, format('%I.%I', n.nspname, c.relname), c.relkind, a.attnum, a.attname::text, how.holds,
           c.relkind <> 'f' AND c.oid <> ALL (elsewhere.relations)
               AND NOT (c.relpersistence = 't' AND n.oid <> pg_my_temp_schema())
               AND c.relam = (SELECT m.oid FROM pg_am AS m WHERE m.amname = 'heap'),
           CASE WHEN c.relkind = 'f' THEN 'a foreign table'
                WHEN c.oid = ANY (elsewhere.relations) THEN 'a distributed table of Citus: its rows are in shards, on other nodes, too'
                WHEN c.relpersistence = 't' AND n.oid <> pg_my_temp_schema()
                THEN 'a temporary table of another session'
                WHEN c.relam <> (SELECT m.oid FROM pg_am AS m WHERE m.amname = 'heap')
                THEN 'a table of another access method than heap'
                WHEN c.relkind = 'm' THEN 'a materialized view: refresh it'
                WHEN a.attgenerated <> '' THEN 'a generated column: it follows the columns that it is computed from'
                WHEN EXISTS (
                    SELECT FROM pg_partition_ancestors(c.oid) AS up(relid)
                      JOIN pg_partitioned_table AS p ON p.partrelid = up.relid
                      JOIN pg_attribute AS k
                        ON k.attrelid = up.relid AND k.attnum = ANY (p.partattrs::smallint[])
                     WHERE k.attname = a.attname)
                THEN 'part of the partition key'
           END
      FROM how
      JOIN pg_attribute AS a ON a.atttypid = how.type AND a.attnum > 0 AND NOT a.attisdropped
      JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'm', 'f')
      JOIN pg_namespace AS n ON n.oid = c.relnamespace
     CROSS JOIN (SELECT fieldcrypt_internal.distributed_tables() AS relations) AS elsewhere
     ORDER BY 2, 4
$$;
COMMENT ON FUNCTION fieldcrypt_internal.encrypted_columns() IS
    'every column of this database that can hold encrypted values: in itself, in a domain, an array or a composite; problem: why it is not re-encrypted';

CREATE FUNCTION fieldcrypt_internal.with_descendants(relation oid) RETURNS TABLE (relation oid)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE tree (relation) AS (
        SELECT $1
        UNION
        SELECT i.inhrelid FROM tree AS t JOIN pg_inherits AS i ON i.inhparent = t.relation
    )
    SELECT t.relation FROM tree AS t
$$;
COMMENT ON FUNCTION fieldcrypt_internal.with_descendants(oid) IS 'a table with its partitions and the tables that inherit from it';

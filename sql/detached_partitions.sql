-- A partition has the audit triggers, the enforced contexts and the remembered contexts of its parent. DETACH takes all of
-- it away, and nothing in the catalogs tells afterwards: so what is lost is kept, or told of, when it leaves.

CREATE FUNCTION fieldcrypt_internal.follow_parents(relation oid, parents jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off SET jit = off
AS $$
DECLARE
    parent oid;
BEGIN
    FOR parent IN
        SELECT c.oid FROM jsonb_array_elements_text(parents) AS p (oid) JOIN pg_class AS c ON c.oid = p.oid::oid
         WHERE NOT EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = $1 AND i.inhparent = c.oid)
    LOOP
        PERFORM fieldcrypt_internal.keep_contexts_of_parent($1, parent);
        IF fieldcrypt_internal.has_audit_trigger(parent, 'change')
           AND NOT fieldcrypt_internal.has_audit_trigger($1, 'change') THEN
            PERFORM fieldcrypt_internal.record_event('table_detached', NULL, NULL,
                format('it was recorded as a part of %s', parent::regclass), $1::regclass::text);
            RAISE WARNING USING
                MESSAGE = format('changes of %s are not recorded any more', $1::regclass),
                HINT = format('SELECT fieldcrypt.audit_table(%L) records them again; unaudit_table(%1$L) says that none are to be.', $1::regclass);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.follow_parents(oid, jsonb) IS
    'keeps, or tells of, what a table had of parents that it has left; granted to nobody';

-- An expression runs as the table's owner: it is kept only where parent and partition have the same.
CREATE FUNCTION fieldcrypt_internal.keep_contexts_of_parent(relation oid, parent oid) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    item record;
    enforced text[] := ARRAY(SELECT e.column_name FROM fieldcrypt_internal.enforcing_triggers() AS e WHERE e.relation = $2 AND e.fires);
    enforced_still text[] := ARRAY(SELECT e.column_name FROM fieldcrypt_internal.enforcing_triggers() AS e WHERE e.relation = $1 AND e.fires);
BEGIN
    FOR item IN
        SELECT a.attname::text AS column_name, k.context ->> 'constant' AS constant, k.context ->> 'expression' AS expression,
               format('%I.%I', n.nspname, c.relname) AS table_name, c.relowner::regrole::text AS table_owner, fieldcrypt_internal.role_here(c.relowner) AS owner_here
          FROM jsonb_each(fieldcrypt_internal.contexts_of($2)::jsonb) AS k (column_name, context)
          JOIN pg_class AS c ON c.oid = $1
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
          JOIN pg_attribute AS a ON a.attrelid = $1 AND a.attname = k.column_name AND NOT a.attisdropped
         WHERE NOT fieldcrypt_internal.contexts_of($1)::jsonb ? k.column_name
           AND (k.context ? 'constant' OR c.relowner = (SELECT p.relowner FROM pg_class AS p WHERE p.oid = $2))
    LOOP
        INSERT INTO fieldcrypt.column_contexts (table_name, column_name, constant, expression, enforced, table_owner, owner_here)
        VALUES (item.table_name, item.column_name, item.constant, item.expression, item.column_name = ANY (enforced), item.table_owner, item.owner_here)
            ON CONFLICT ON CONSTRAINT column_contexts_pkey DO UPDATE
           SET constant = excluded.constant, expression = excluded.expression, enforced = excluded.enforced,
               table_owner = excluded.table_owner, owner_here = excluded.owner_here, set_by = excluded.set_by, set_at = excluded.set_at;
        RAISE NOTICE '%.% keeps the context that it had of %', $1::regclass, quote_ident(item.column_name), $2::regclass;
    END LOOP;
    FOR item IN
        SELECT DISTINCT u.column_name FROM unnest(enforced) AS u (column_name)
         WHERE u.column_name <> ALL (enforced_still)
           AND EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = $1 AND a.attname = u.column_name AND NOT a.attisdropped)
    LOOP
        RAISE WARNING USING
            MESSAGE = format('what is written to %s.%I is not checked against its context any more', $1::regclass, item.column_name),
            HINT = 'SELECT fieldcrypt.set_column_context(relation, column, expression => ..., enforce => true) checks it again.';
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.keep_contexts_of_parent(oid, oid) IS
    'what a partition that was detached keeps of its parent''s contexts, and what not; granted to nobody';

-- A partition has the audit triggers, the enforced contexts and the remembered contexts of its parent. DETACH takes all of
-- it away, and nothing in the catalogs tells afterwards: so parents are noted, and what is lost is kept or told of.

CREATE TABLE fieldcrypt_internal.noted_parents (
    relation oid NOT NULL,
    parent oid NOT NULL,
    PRIMARY KEY (relation, parent)
);
CREATE TRIGGER refuse_change BEFORE INSERT OR UPDATE OR DELETE ON fieldcrypt_internal.noted_parents
    FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt_internal.noted_parents
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
COMMENT ON TABLE fieldcrypt_internal.noted_parents IS 'partitions and children of tables that are audited or have contexts, as of the last ALTER; not in dumps';
COMMENT ON COLUMN fieldcrypt_internal.noted_parents.relation IS 'the partition, or the table that inherits';
COMMENT ON COLUMN fieldcrypt_internal.noted_parents.parent IS 'of which table';

CREATE FUNCTION fieldcrypt_internal.follow_parents() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    lost record;
BEGIN
    FOR lost IN
        DELETE FROM fieldcrypt_internal.noted_parents AS p
         WHERE NOT EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = p.relation AND i.inhparent = p.parent)
        RETURNING p.relation, p.parent
    LOOP
        CONTINUE WHEN (SELECT count(*) FROM pg_class AS c WHERE c.oid IN (lost.relation, lost.parent)) < 2;
        PERFORM fieldcrypt_internal.keep_contexts_of_parent(lost.relation, lost.parent);
        IF fieldcrypt_internal.has_audit_trigger(lost.parent, 'change')
           AND NOT fieldcrypt_internal.has_audit_trigger(lost.relation, 'change') THEN
            PERFORM fieldcrypt_internal.record_event('table_detached', NULL, NULL,
                format('it was recorded as a part of %s', lost.parent::regclass), lost.relation::regclass::text);
            RAISE WARNING USING
                MESSAGE = format('changes of %s are not recorded any more', lost.relation::regclass),
                HINT = format('SELECT fieldcrypt.audit_table(%L) records them again; unaudit_table(%1$L) says that none are to be.', lost.relation::regclass);
        END IF;
    END LOOP;
    INSERT INTO fieldcrypt_internal.noted_parents (relation, parent)
    SELECT i.inhrelid, i.inhparent
      FROM (SELECT c.oid AS relation FROM pg_class AS c
             WHERE c.relkind IN ('r', 'p', 'f') AND c.relhassubclass
               AND (EXISTS (SELECT FROM pg_trigger AS t
                             WHERE t.tgrelid = c.oid
                               AND t.tgfoid = ANY ('{fieldcrypt_internal.audit_change(),fieldcrypt_internal.refuse_foreign()}'::regprocedure[]))
                    OR fieldcrypt_internal.contexts_of(c.oid) <> '{}')) AS p
      JOIN pg_inherits AS i ON i.inhparent = p.relation
        ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.follow_parents() IS
    'notes which tables are parts of audited ones and of those with contexts, and keeps or tells of what those lose that were; granted to nobody';

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
               format('%I.%I', n.nspname, c.relname) AS table_name, c.relowner::regrole::text AS table_owner
          FROM jsonb_each(fieldcrypt_internal.contexts_of($2)::jsonb) AS k (column_name, context)
          JOIN pg_class AS c ON c.oid = $1
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
          JOIN pg_attribute AS a ON a.attrelid = $1 AND a.attname = k.column_name AND NOT a.attisdropped
         WHERE NOT fieldcrypt_internal.contexts_of($1)::jsonb ? k.column_name
           AND (k.context ? 'constant' OR c.relowner = (SELECT p.relowner FROM pg_class AS p WHERE p.oid = $2))
    LOOP
        INSERT INTO fieldcrypt.column_contexts (table_name, column_name, constant, expression, enforced, table_owner)
        VALUES (item.table_name, item.column_name, item.constant, item.expression, item.column_name = ANY (enforced), item.table_owner)
            ON CONFLICT ON CONSTRAINT column_contexts_pkey DO UPDATE
           SET constant = excluded.constant, expression = excluded.expression, enforced = excluded.enforced,
               table_owner = excluded.table_owner, set_by = excluded.set_by, set_at = excluded.set_at;
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
    PERFORM fieldcrypt_internal.note_context_places();
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.keep_contexts_of_parent(oid, oid) IS
    'what a partition that was detached keeps of its parent''s contexts, and what not; granted to nobody';

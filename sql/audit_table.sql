-- The triggers that write the audit log for a user's tables.

CREATE FUNCTION fieldcrypt_internal.audit_change() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'fieldcrypt_audit_change';
COMMENT ON FUNCTION fieldcrypt_internal.audit_change() IS 'trigger: records who changed which row and which encrypted columns';

-- By what a trigger does: neither its name nor its function says that it records every change.
CREATE FUNCTION fieldcrypt_internal.audit_triggers()
    RETURNS TABLE (number oid, relation oid, name name, kind text, fires boolean, is_always boolean, is_own boolean, identity bytea)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT t.oid, t.tgrelid, t.tgname,
           CASE WHEN t.tgqual IS NULL AND t.tgattr::text = '' AND t.tgconstraint = 0 AND t.tgoldtable IS NULL AND t.tgnewtable IS NULL
                -- AFTER INSERT OR UPDATE OR DELETE FOR EACH ROW; AFTER TRUNCATE FOR EACH STATEMENT.
                THEN CASE t.tgtype WHEN 29 THEN 'change' WHEN 32 THEN 'truncate' END END,
           t.tgenabled IN ('O', 'A'), t.tgenabled = 'A', t.tgparentid = 0,
           CASE WHEN t.tgnargs = 1 THEN substring(t.tgargs FOR length(t.tgargs) - 1) END
      FROM pg_trigger AS t
     WHERE t.tgfoid = 'fieldcrypt_internal.audit_change()'::regprocedure
$$;
COMMENT ON FUNCTION fieldcrypt_internal.audit_triggers() IS
    'the triggers that write the log for tables: kind change or truncate, NULL for one that records only some changes; whether it fires, is a partition''s copy, and which key it was made for';

CREATE FUNCTION fieldcrypt_internal.has_audit_trigger(target regclass, kind text) RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT EXISTS (SELECT FROM fieldcrypt_internal.audit_triggers() AS t WHERE t.relation = $1 AND t.kind = $2 AND t.fires) $$;
COMMENT ON FUNCTION fieldcrypt_internal.has_audit_trigger(regclass, text) IS 'whether a table has a trigger of audit_table of this kind (change or truncate), enabled';

-- How rows of a table are told apart: as the log does it (src/audit/row_trigger.rs), which a test compares. No
-- lock is taken on the table, for health's sake.
CREATE FUNCTION fieldcrypt_internal.row_identity(relation oid) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY k.place)
      FROM (SELECT i.indrelid, i.indkey, i.indnkeyatts FROM pg_index AS i
             WHERE i.indrelid = $1 AND i.indislive
               AND (i.indisprimary
                    OR i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
                       AND NOT EXISTS (SELECT FROM unnest(i.indkey) WITH ORDINALITY AS u (number, place)
                                         JOIN pg_attribute AS n ON n.attrelid = i.indrelid AND n.attnum = u.number
                                        WHERE u.place <= i.indnkeyatts AND NOT n.attnotnull))
             ORDER BY i.indisprimary DESC, i.indisreplident DESC, i.indnkeyatts, i.indexrelid LIMIT 1) AS x,
           unnest(x.indkey) WITH ORDINALITY AS k (number, place)
      JOIN pg_attribute AS a ON a.attnum = k.number
     WHERE a.attrelid = x.indrelid AND k.place <= x.indnkeyatts
$$;
COMMENT ON FUNCTION fieldcrypt_internal.row_identity(oid) IS
    'the columns by which rows of a table are named in the audit log: its primary key, else a unique index over columns that are NOT NULL (that of its replica identity before others); NULL: none';

-- What keeps changes of audited tables out of the log, or their rows without a name there. Temporary tables
-- are their sessions' own.
CREATE FUNCTION fieldcrypt_internal.audited_table_problems() RETURNS TABLE (relation oid, problem text, remedy text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET standard_conforming_strings = on
AS $$
    WITH RECURSIVE triggers AS (
        SELECT t.* FROM fieldcrypt_internal.audit_triggers() AS t
          JOIN pg_class AS c ON c.oid = t.relation AND c.relpersistence <> 't'
    ), audited AS (
        SELECT t.relation, c.relkind, fieldcrypt_internal.row_identity(t.relation) AS identity,
               coalesce(bool_or(t.kind = 'change'), false) AS has_change,
               coalesce(bool_or(t.kind = 'truncate'), false) AS has_truncate,
               bool_and(t.fires) AS is_enabled,
               coalesce(bool_or(t.kind = 'change' AND t.is_always), false) AS is_always,
               coalesce(bool_or(t.kind = 'change' AND t.is_own), false) AS is_own,
               count(*) FILTER (WHERE t.kind = 'change' AND t.fires) > 1 OR count(*) FILTER (WHERE t.kind = 'truncate' AND t.fires) > 1 AS is_twice,
               min(t.name::text) FILTER (WHERE t.kind IS NULL) AS odd_one,
               min(t.name::text) FILTER (WHERE t.kind = 'change') AS change_name,
               max(encode(t.identity, 'hex')) FILTER (WHERE t.kind = 'change') AS recorded_identity
          FROM triggers AS t JOIN pg_class AS c ON c.oid = t.relation
         GROUP BY t.relation, c.relkind
    ), members (relation, is_partition) AS (
        SELECT i.inhrelid, c.relispartition FROM audited AS a
          JOIN pg_inherits AS i ON i.inhparent = a.relation JOIN pg_class AS c ON c.oid = i.inhrelid
         WHERE a.has_change
        UNION
        SELECT i.inhrelid, c.relispartition FROM members AS m
          JOIN pg_inherits AS i ON i.inhparent = m.relation JOIN pg_class AS c ON c.oid = i.inhrelid
    )
    SELECT a.relation, 'its triggers are disabled',
           format('SELECT fieldcrypt.audit_table(%L)', a.relation::regclass)
      FROM audited AS a WHERE NOT a.is_enabled
    UNION ALL
    SELECT a.relation, 'only TRUNCATE is recorded',
           format('SELECT fieldcrypt.audit_table(%L), or unaudit_table', a.relation::regclass)
      FROM audited AS a WHERE NOT a.has_change AND a.has_truncate
    UNION ALL
    SELECT a.relation, format('its trigger %I does not record every change', a.odd_one),
           format('SELECT fieldcrypt.audit_table(%L), which drops it', coalesce(pg_partition_root(a.relation::regclass), a.relation::regclass))
      FROM audited AS a WHERE a.odd_one IS NOT NULL
    UNION ALL
    SELECT a.relation, 'its changes are recorded twice',
           format('SELECT fieldcrypt.audit_table(%L)', coalesce(pg_partition_root(a.relation::regclass), a.relation::regclass))
      FROM audited AS a WHERE a.is_twice
    UNION ALL
    SELECT m.relation,
           CASE WHEN m.is_partition THEN 'TRUNCATE of this partition alone is not recorded' ELSE 'it inherits from an audited table, and is not audited' END,
           CASE WHEN m.is_partition THEN format('SELECT fieldcrypt.audit_table(%L)', pg_partition_root(m.relation::regclass))
                ELSE format('SELECT fieldcrypt.audit_table(%L)', m.relation::regclass) END
      FROM members AS m JOIN pg_class AS c ON c.oid = m.relation AND c.relkind IN ('r', 'p')
      LEFT JOIN audited AS a ON a.relation = m.relation
     WHERE CASE WHEN m.is_partition THEN NOT coalesce(a.has_truncate, false) ELSE NOT coalesce(a.has_change, false) END
    UNION ALL
    SELECT a.relation, 'its rows have no name in the log, since it has neither a primary key nor a unique index over columns that are NOT NULL',
           format('ALTER TABLE %s ADD PRIMARY KEY (...)', a.relation::regclass)
      FROM audited AS a WHERE a.has_change AND a.relkind = 'r' AND a.identity IS NULL
    UNION ALL
    SELECT a.relation,
           format('its rows were named by %s when it was audited, and are now by %s',
               coalesce(nullif(convert_from(decode(a.recorded_identity, 'hex'), getdatabaseencoding()), ''), 'nothing'), a.identity),
           format('SELECT fieldcrypt.audit_table(%L), which records the new key', a.relation::regclass)
      FROM audited AS a
     WHERE a.is_own AND a.identity IS NOT NULL
       AND a.recorded_identity IS DISTINCT FROM encode(convert_to(a.identity, getdatabaseencoding()), 'hex')
    UNION ALL
    -- It runs as a replica does.
    SELECT a.relation, 'what a subscription writes to it is not recorded',
           format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', a.relation::regclass, a.change_name)
      FROM audited AS a WHERE a.has_change AND NOT a.is_always AND EXISTS (SELECT FROM pg_subscription_rel AS s WHERE s.srrelid = a.relation)
    UNION ALL
    -- Who drops a trigger tells nobody.
    SELECT lost.relation, 'it was audited, and has no triggers of audit_table any more',
           format('SELECT fieldcrypt.audit_table(%L), or unaudit_table', lost.relation::regclass)
      FROM fieldcrypt_internal.tables_said_to_be_audited() AS lost (relation)
     WHERE NOT EXISTS (SELECT FROM audited AS a WHERE a.relation = lost.relation)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.audited_table_problems() IS
    'audited tables whose changes do not all get into the audit log, or not with a name for the row; granted to nobody';

-- By name, as the log has it: a table that was made anew under the name of another is not audited either.
CREATE FUNCTION fieldcrypt_internal.tables_said_to_be_audited() RETURNS SETOF oid
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
    SELECT c.oid
      FROM (SELECT DISTINCT ON (l.table_name) l.table_name, l.event
              FROM fieldcrypt.audit_log AS l WHERE l.event IN ('table_audited', 'table_detached', 'table_unaudited')
             ORDER BY l.table_name, l.id DESC) AS latest
      JOIN pg_class AS c ON c.oid = to_regclass(latest.table_name)
     WHERE latest.event <> 'table_unaudited' AND c.relpersistence <> 't'
$$;
COMMENT ON FUNCTION fieldcrypt_internal.tables_said_to_be_audited() IS
    'tables of which the last that the audit log tells is that they are audited, or were as partitions; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.is_said_to_be_audited(target regclass) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT $1::oid IN (SELECT fieldcrypt_internal.tables_said_to_be_audited()) $$;
COMMENT ON FUNCTION fieldcrypt_internal.is_said_to_be_audited(regclass) IS
    'whether the last that the audit log tells of a table is that it is audited';

CREATE FUNCTION fieldcrypt_internal.problems_of_audited_table(target regclass) RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('%s: %s', p.relation::regclass, p.problem) FROM fieldcrypt_internal.audited_table_problems() AS p
     WHERE p.relation = $1
        OR p.relation IN (SELECT t.relid FROM pg_partition_tree($1) AS t)
        OR p.relation IN (WITH RECURSIVE children AS (
                              SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = $1
                              UNION SELECT i.inhrelid FROM children AS c JOIN pg_inherits AS i ON i.inhparent = c.inhrelid)
                          SELECT c.inhrelid FROM children AS c)
     ORDER BY p.relation::regclass::text COLLATE "C", p.problem
$$;
COMMENT ON FUNCTION fieldcrypt_internal.problems_of_audited_table(regclass) IS 'what audit_table has to say of a table';

CREATE FUNCTION fieldcrypt_internal.remember_table_audit(target bigint, triggers bigint) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_remember_table_audit';
CREATE FUNCTION fieldcrypt_internal.remembered_table_audit(target bigint) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_remembered_table_audit';
COMMENT ON FUNCTION fieldcrypt_internal.remember_table_audit(bigint, bigint) IS
    'notes which triggers of audit_table a table has, until the end of the transaction; granted to nobody';
COMMENT ON FUNCTION fieldcrypt_internal.remembered_table_audit(bigint) IS 'what was noted of a table, once; -1 for nothing; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.audit_triggers_state(target regclass) RETURNS bigint
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce((hashtextextended(string_agg(format('%s %s', t.oid, t.tgenabled), ',' ORDER BY t.oid), 0) & 4611686018427387902) + 1, 0)
      FROM (SELECT $1 AS relid UNION SELECT p.relid FROM pg_partition_tree($1) AS p) AS m
      JOIN pg_trigger AS t ON t.tgrelid = m.relid
     WHERE t.tgfoid = 'fieldcrypt_internal.audit_change()'::regprocedure
$$;
COMMENT ON FUNCTION fieldcrypt_internal.audit_triggers_state(regclass) IS
    'a number for the triggers of audit_table that a table and its partitions have, and whether they are enabled; 0 for none; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.note_table_audit(target regclass) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT fieldcrypt_internal.remember_table_audit($1::oid::bigint, fieldcrypt_internal.audit_triggers_state($1)) $$;
COMMENT ON FUNCTION fieldcrypt_internal.note_table_audit(regclass) IS 'before audit_table and unaudit_table change a table: what it has';

-- Records what is so and was not so before, by what was noted in this transaction or by the log itself, not what
-- the caller says: whoever may call this can't forge an entry.
CREATE FUNCTION fieldcrypt_internal.record_table_audit(target regclass, audited boolean) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
DECLARE
    before bigint := nullif(fieldcrypt_internal.remembered_table_audit(target::oid::bigint), -1);
    now_is bigint := fieldcrypt_internal.audit_triggers_state(target);
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = target)
       OR audited IS NULL
       OR audited AND (before IS NULL OR before = now_is)
       OR NOT audited AND NOT (fieldcrypt_internal.is_said_to_be_audited(target) OR coalesce(before, 0) > 0 AND now_is = 0)
       OR audited IS DISTINCT FROM fieldcrypt_internal.has_audit_trigger(target, 'change')
       OR NOT has_table_privilege(fieldcrypt_internal.outer_role()::name, target, 'TRIGGER') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'only what audit_table and unaudit_table have done to a table of yours is recorded';
    END IF;
    PERFORM fieldcrypt_internal.record_event(
        CASE WHEN audited THEN 'table_audited' ELSE 'table_unaudited' END, NULL, NULL,
        CASE WHEN audited THEN coalesce('rows are named by ' || fieldcrypt_internal.row_identity(target), 'rows have no name') END,
        target::text);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.record_table_audit(regclass, boolean) IS 'records that a table''s audit triggers were made or dropped';

-- With the caller's rights: whoever may not put a trigger on the table may not audit it.
CREATE FUNCTION fieldcrypt.audit_table(target regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
DECLARE
    kind "char" := (SELECT c.relkind FROM pg_class AS c WHERE c.oid = target);
    member regclass;
    row_name text := coalesce(fieldcrypt_internal.row_identity(target), '');
    kept oid;
    found_trigger record;
    problem text;
    changed boolean := false;
BEGIN
    IF target IS NULL OR kind IS NULL OR kind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('%s is not a table', coalesce(target::text, 'NULL')),
            HINT = 'Only tables and partitioned tables can be audited.';
    END IF;
    IF EXISTS (SELECT FROM pg_class AS c WHERE c.oid = target AND c.relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])) THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('%s belongs to pg_fieldcrypt', target),
            HINT = 'Its own tables are recorded already.';
    END IF;
    PERFORM fieldcrypt_internal.note_table_audit(target);
    -- Those that a partition has from the whole can only be enabled again.
    FOR found_trigger IN
        SELECT t.relation::regclass AS relation, t.name
          FROM (SELECT target AS relid UNION SELECT relid FROM pg_partition_tree(target)) AS m
          JOIN fieldcrypt_internal.audit_triggers() AS t ON t.relation = m.relid
         WHERE t.kind = 'change' AND NOT t.is_own AND NOT t.fires
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE TRIGGER %I', found_trigger.relation, found_trigger.name);
        changed := true;
    END LOOP;
    -- One trigger records the rows of the whole, and one each TRUNCATE of a partition: what else calls the same function
    -- records only some changes, or all of them twice. Its argument says how rows are named, for health to see when
    -- that changes.
    kept := (SELECT t.number FROM fieldcrypt_internal.audit_triggers() AS t
              WHERE t.relation = target AND t.kind = 'change' AND t.fires
                AND (NOT t.is_own OR t.identity = convert_to(row_name, getdatabaseencoding()))
              ORDER BY t.is_own, t.name <> 'fieldcrypt_audit_change', t.number LIMIT 1);
    FOR found_trigger IN
        SELECT t.relation::regclass AS relation, t.name
          FROM (SELECT target AS relid UNION SELECT relid FROM pg_partition_tree(target)) AS m
          JOIN (SELECT a.*, row_number() OVER (PARTITION BY a.relation, a.kind ORDER BY a.fires DESC, a.name <> 'fieldcrypt_audit_truncate', a.number) AS place
                  FROM fieldcrypt_internal.audit_triggers() AS a WHERE a.is_own) AS t ON t.relation = m.relid
         WHERE (t.number = kept OR t.kind = 'truncate' AND t.fires AND t.place = 1) IS NOT TRUE
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', found_trigger.name, found_trigger.relation);
        changed := true;
    END LOOP;
    IF kept IS NULL THEN
        -- Some other trigger that only has the name.
        FOR member IN
            SELECT m.relid FROM (SELECT target AS relid UNION SELECT relid FROM pg_partition_tree(target)) AS m
              JOIN pg_trigger AS t ON t.tgrelid = m.relid AND t.tgname = 'fieldcrypt_audit_change'
             WHERE t.tgparentid = 0
        LOOP
            EXECUTE format('DROP TRIGGER fieldcrypt_audit_change ON %s', member);
        END LOOP;
        EXECUTE format(
            'CREATE TRIGGER fieldcrypt_audit_change AFTER INSERT OR UPDATE OR DELETE ON %s
                FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.audit_change(%L)', target, row_name);
        changed := true;
    END IF;
    FOR member IN
        SELECT m.relid FROM (SELECT target AS relid UNION SELECT relid FROM pg_partition_tree(target)) AS m
          JOIN pg_class AS c ON c.oid = m.relid AND c.relkind IN ('r', 'p')
         WHERE m.relid NOT IN (SELECT t.relation FROM fieldcrypt_internal.audit_triggers() AS t WHERE t.kind = 'truncate' AND t.fires)
    LOOP
        IF EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = member AND t.tgname = 'fieldcrypt_audit_truncate') THEN
            EXECUTE format('DROP TRIGGER fieldcrypt_audit_truncate ON %s', member);
        END IF;
        EXECUTE format(
            'CREATE TRIGGER fieldcrypt_audit_truncate AFTER TRUNCATE ON %s
                FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.audit_change()', member);
        changed := true;
    END LOOP;
    IF changed THEN
        PERFORM fieldcrypt_internal.record_table_audit(target, true);
        RAISE NOTICE 'audit_table: every change of % is recorded from now on', target;
    ELSE
        RAISE NOTICE 'audit_table: nothing to do: % is audited already', target;
    END IF;
    FOR problem IN SELECT fieldcrypt_internal.problems_of_audited_table(target) LOOP
        RAISE NOTICE USING MESSAGE = problem, HINT = 'SELECT * FROM fieldcrypt.health() goes on looking for this (audited_tables).';
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt.audit_table(regclass) IS
    'records every INSERT, UPDATE, DELETE and TRUNCATE of a table in fieldcrypt.audit_log: row and columns, never a value. Twice is harmless';

CREATE FUNCTION fieldcrypt.unaudit_table(target regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_trigger record;
    changed boolean := false;
BEGIN
    PERFORM fieldcrypt_internal.note_table_audit(target);
    FOR found_trigger IN
        SELECT t.tgrelid::regclass AS relation, t.tgname AS name,
               t.tgfoid = 'fieldcrypt_internal.audit_change()'::regprocedure AS is_ours
          FROM (SELECT target AS relid UNION SELECT relid FROM pg_partition_tree(target)) AS m
          JOIN pg_trigger AS t ON t.tgrelid = m.relid
         WHERE (t.tgfoid = 'fieldcrypt_internal.audit_change()'::regprocedure
                OR t.tgname IN ('fieldcrypt_audit_change', 'fieldcrypt_audit_truncate'))
           AND t.tgparentid = 0
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', found_trigger.name, found_trigger.relation);
        changed := changed OR found_trigger.is_ours;
    END LOOP;
    IF changed OR fieldcrypt_internal.is_said_to_be_audited(target) THEN
        PERFORM fieldcrypt_internal.record_table_audit(target, false);
        RAISE NOTICE 'unaudit_table: changes of % are not recorded any more', target;
    ELSE
        RAISE NOTICE 'unaudit_table: nothing to do: % is not audited', target;
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt.unaudit_table(regclass) IS 'takes the triggers of audit_table away';

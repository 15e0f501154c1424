-- Columns that are encrypted online: a new column beside the old one, a trigger that keeps both alike, committed batches,
-- verification, and a swap of the names. Which columns these are says the condition of the trigger, which follows renames
-- and goes into dumps; how far a table is, is kept here.

CREATE TABLE fieldcrypt_internal.column_migrations (
    relation oid NOT NULL,
    attnum smallint NOT NULL,
    table_name text NOT NULL,
    column_name text NOT NULL,
    state text COLLATE "C" NOT NULL CHECK (state IN ('filling', 'validating', 'verifying', 'ready', 'finishing', 'swapped', 'undoing')),
    has_source boolean NOT NULL,
    run integer,
    parts jsonb NOT NULL DEFAULT '{}',
    rows_estimated bigint NOT NULL DEFAULT 0,
    rows_done bigint NOT NULL DEFAULT 0,
    rows_verified bigint NOT NULL DEFAULT 0,
    error_code text,
    error text,
    filled_before xid8,
    started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (relation, attnum)
);
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt_internal.column_migrations
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
COMMENT ON TABLE fieldcrypt_internal.column_migrations IS 'how far encrypt_column is with each column; read fieldcrypt.column_migrations';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.relation IS 'the table';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.attnum IS 'the number of the encrypted column';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.table_name IS 'the table''s name, qualified';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.column_name IS 'the column that is encrypted, as it is called before and after';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.state IS 'filling, validating, verifying, ready (to swap), finishing (after the swap), swapped or undoing';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.has_source IS 'whether an expression gives the plaintexts: it may hold a key and is kept nowhere';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.run IS 'the run that is at it, or was last; whether it is under way tells live_runs()';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.parts IS 'of the table or its partitions, by number: the next block of this pass, where it ends, the file, rows left behind';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.rows_estimated IS 'rows of the table, by the planner';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.rows_done IS 'rows that batches have encrypted';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.rows_verified IS 'rows that were opened and compared';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.error_code IS 'SQLSTATE of what it stopped at';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.error IS 'what it stopped at, without values';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.filled_before IS 'a transaction before which all rows were encrypted: older snapshots would see none after the swap';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.started_at IS 'when it began';
COMMENT ON COLUMN fieldcrypt_internal.column_migrations.updated_at IS 'when a step last ended';

-- Keys of rows only, whose values in one column have to be made of the other: only who has the expression can.
CREATE SEQUENCE fieldcrypt_internal.migration_mark_numbers;
COMMENT ON SEQUENCE fieldcrypt_internal.migration_mark_numbers IS 'numbers of rows that are marked while a column is encrypted';
CREATE TABLE fieldcrypt_internal.migration_marks (
    mark bigint PRIMARY KEY DEFAULT pg_catalog.nextval('fieldcrypt_internal.migration_mark_numbers'),
    relation oid NOT NULL,
    place_name text NOT NULL,
    row_key text NOT NULL
);
CREATE INDEX migration_marks_relation ON fieldcrypt_internal.migration_marks (relation);
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt_internal.migration_marks
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
COMMENT ON TABLE fieldcrypt_internal.migration_marks IS 'rows that were written while a column with a source was encrypted, or since: encrypt_column and undo_encrypt_column bring both columns together';
COMMENT ON COLUMN fieldcrypt_internal.migration_marks.mark IS 'its number';
COMMENT ON COLUMN fieldcrypt_internal.migration_marks.relation IS 'the table, or the one at the top of its partitions';
COMMENT ON COLUMN fieldcrypt_internal.migration_marks.place_name IS 'the name of the column''s places';
COMMENT ON COLUMN fieldcrypt_internal.migration_marks.row_key IS 'the row''s key, as a JSON array of texts';

-- In a condition it costs nothing, since the planner puts its body in its place.
CREATE FUNCTION fieldcrypt_internal.is_twin(plaintext anyelement, value fieldcrypt.encrypted_text, step text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT true';
COMMENT ON FUNCTION fieldcrypt_internal.is_twin(anyelement, fieldcrypt.encrypted_text, text) IS
    'condition of triggers, always met: names two columns of which one takes over from the other, and what the trigger does';

CREATE FUNCTION fieldcrypt_internal.carry_column() RETURNS trigger
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'fieldcrypt_carry_column';
COMMENT ON FUNCTION fieldcrypt_internal.carry_column() IS
    'trigger of tables of which a column is being encrypted: what is written to one of two columns is in the other, too';

-- For who calls the procedures: they commit, and so have their callers' rights.
CREATE FUNCTION fieldcrypt.column_migration_step(relation regclass, step text, arguments text DEFAULT '{}') RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_column_migration_step';
COMMENT ON FUNCTION fieldcrypt.column_migration_step(regclass, text, text) IS
    'what encrypt_column, undo_encrypt_column and drop_plaintext_column do of themselves, step by step; not called by hand';
CREATE FUNCTION fieldcrypt.is_sealed_as(value fieldcrypt.encrypted, place text, plaintext "any", modifier integer) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_is_sealed_as';
COMMENT ON FUNCTION fieldcrypt.is_sealed_as(fieldcrypt.encrypted, text, "any", integer) IS
    'whether a value opens in its place and is that plaintext, or with a modifier what a column of that type makes of it: by which encrypt_column verifies, and nobody else may ask';

CREATE FUNCTION fieldcrypt_internal.column_twins()
    RETURNS TABLE (relation oid, attnum smallint, trigger_name text, plaintext_column text, value_column text, step text, fires boolean, is_copy boolean)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off SET standard_conforming_strings = on
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY SELECT t.tgrelid, a.attnum, t.tgname::text, (parse_ident(d.parts[1]))[1], a.attname::text, d.parts[3], t.tgenabled = 'A', t.tgparentid <> 0
      FROM pg_trigger AS t,
           -- At its end: what comes before has names of the owner's.
           regexp_match(pg_get_triggerdef(t.oid),
               'WHEN \(fieldcrypt_internal\.is_twin\(new\.("(?:[^"]|"")+"|[^ ",]+), new\.("(?:[^"]|"")+"|[^ ",]+), ''(\w+)''::text\)\) EXECUTE FUNCTION fieldcrypt_internal\.carry_column\(\)$') AS d(parts),
           pg_attribute AS a
     WHERE t.tgfoid = 'fieldcrypt_internal.carry_column()'::regprocedure
       AND a.attrelid = t.tgrelid AND a.attname = (parse_ident(d.parts[2]))[1] AND NOT a.attisdropped;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.column_twins() IS
    'columns of which one takes over from the other, as the triggers that keep them alike say it';

-- What stands on a column. refused: it can't be there while the column is encrypted; kept: it stays with the old column and
-- goes with it, if the caller says so; told: worth knowing.
CREATE FUNCTION fieldcrypt_internal.column_dependents(relation oid, column_name text)
    RETURNS TABLE (verdict text, what text, hint text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
    WITH tree AS MATERIALIZED (
        SELECT t.relation, a.attnum
          FROM fieldcrypt_internal.with_descendants($1) AS t
          JOIN pg_attribute AS a ON a.attrelid = t.relation AND a.attname = $2 AND NOT a.attisdropped
    ), depending AS (
        SELECT DISTINCT d.classid, d.objid, t.relation, t.attnum
          FROM tree AS t
          JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.relation AND d.refobjsubid = t.attnum
    ), judged AS (
        SELECT d.relation, d.classid, d.objid,
               CASE d.classid
                   WHEN 'pg_class'::regclass THEN (
                       SELECT CASE WHEN c.relkind = 'S' THEN 'refused:Keep a sequence for another column, or drop it.'
                                   WHEN c.relispartition THEN NULL
                                   WHEN i.indisprimary THEN 'refused:A primary key tells rows apart and can''t be encrypted.'
                                   WHEN i.indisreplident THEN 'refused:ALTER TABLE ... REPLICA IDENTITY names another one.'
                                   ELSE 'kept:' END
                         FROM pg_class AS c LEFT JOIN pg_index AS i ON i.indexrelid = c.oid WHERE c.oid = d.objid)
                   WHEN 'pg_constraint'::regclass THEN (
                       SELECT CASE WHEN k.conparentid <> 0 THEN NULL
                                   WHEN k.contype = 'p' THEN 'refused:A primary key tells rows apart and can''t be encrypted.'
                                   WHEN k.contype = 'f' THEN 'refused:A foreign key would compare plaintext with what is encrypted: drop it.'
                                   WHEN k.contype = 'n' THEN NULL
                                   WHEN k.contype IN ('c', 'u', 'x') THEN 'kept:'
                                   ELSE 'refused:Drop it first.' END
                         FROM pg_constraint AS k WHERE k.oid = d.objid)
                   WHEN 'pg_attrdef'::regclass THEN (
                       SELECT CASE WHEN f.adrelid = d.relation AND f.adnum = d.attnum THEN NULL
                                   ELSE 'refused:A generated column would show what is encrypted: drop it.' END
                         FROM pg_attrdef AS f WHERE f.oid = d.objid)
                   WHEN 'pg_rewrite'::regclass THEN 'refused:Drop it, and make it again after the swap, of what is decrypted.'
                   WHEN 'pg_trigger'::regclass THEN (
                       SELECT CASE WHEN g.tgfoid IN ('fieldcrypt_internal.refuse_foreign()'::regprocedure) OR g.tgparentid <> 0 THEN NULL
                                   WHEN g.tgfoid = 'fieldcrypt_internal.carry_column()'::regprocedure
                                   THEN 'refused:The column is being encrypted, or is kept beside one that was: see fieldcrypt.column_migrations.'
                                   ELSE 'refused:A trigger that names the column would look at what is encrypted: drop it, and make it again after the swap.' END
                         FROM pg_trigger AS g WHERE g.oid = d.objid)
                   WHEN 'pg_policy'::regclass THEN 'refused:A policy can''t compare what is encrypted: change it.'
                   WHEN 'pg_statistic_ext'::regclass THEN 'kept:'
                   WHEN 'pg_proc'::regclass THEN 'refused:Change the function, and back after the swap.'
                   ELSE 'refused:Drop it, or change it, and make it again after the swap.'
               END AS verdict
          FROM depending AS d
    )
    SELECT split_part(j.verdict, ':', 1),
           -- A view is called by its own name, not by that of its rule.
           CASE WHEN j.classid = 'pg_rewrite'::regclass
                THEN (SELECT pg_describe_object('pg_class'::regclass, r.ev_class, 0) || CASE WHEN r.rulename = '_RETURN' THEN '' ELSE format(', rule %I', r.rulename) END
                        FROM pg_rewrite AS r WHERE r.oid = j.objid)
                ELSE pg_describe_object(j.classid, j.objid, 0) END,
           substr(j.verdict, strpos(j.verdict, ':') + 1)
      FROM judged AS j WHERE j.verdict IS NOT NULL
    UNION
    SELECT 'refused', format('publication %I', p.pubname),
           'Subscribers lack the new column: publish the table with a list of columns that has neither, ALTER PUBLICATION ... SET TABLE.'
      FROM pg_publication AS p
     WHERE p.puballtables
        OR EXISTS (SELECT FROM pg_publication_rel AS r, tree AS t
                    WHERE r.prpubid = p.oid AND r.prattrs IS NULL AND (r.prrelid = t.relation OR r.prrelid IN (SELECT u.relid FROM pg_partition_ancestors(t.relation) AS u)))
        OR EXISTS (SELECT FROM pg_publication_namespace AS s JOIN pg_class AS c ON c.relnamespace = s.pnnspid JOIN tree AS t ON t.relation = c.oid
                    WHERE s.pnpubid = p.oid)
    UNION
    SELECT 'refused', 'a subscription that writes to the table', 'Encrypt the column where the rows come from.'
     WHERE EXISTS (SELECT FROM pg_subscription_rel AS s JOIN tree AS t ON t.relation = s.srrelid)
    UNION
    -- What it made of the row would be in one of the two columns only.
    SELECT 'refused', pg_describe_object('pg_trigger'::regclass, g.oid, 0),
           'A BEFORE trigger must sort before "~fieldcrypt_": ALTER TRIGGER ... RENAME TO ....'
      FROM pg_trigger AS g JOIN tree AS t ON t.relation = g.tgrelid
     WHERE NOT g.tgisinternal AND g.tgparentid = 0 AND g.tgtype & 3 = 3 AND g.tgtype & 20 <> 0 AND g.tgname::text COLLATE "C" > '~fieldcrypt_'
       AND g.tgfoid NOT IN ('fieldcrypt_internal.bind_values()'::regprocedure, 'fieldcrypt_internal.carry_column()'::regprocedure)
    UNION
    SELECT 'told', pg_describe_object('pg_trigger'::regclass, g.oid, 0), 'It fires for each row that a batch encrypts.'
      FROM pg_trigger AS g JOIN tree AS t ON t.relation = g.tgrelid
     WHERE NOT g.tgisinternal AND g.tgparentid = 0 AND g.tgtype & 16 <> 0 AND g.tgtype & 1 <> 0 AND g.tgattr::text = '' AND g.tgenabled <> 'D'
       AND g.tgfoid NOT IN ('fieldcrypt_internal.refuse_foreign()'::regprocedure, 'fieldcrypt_internal.bind_values()'::regprocedure,
                            'fieldcrypt_internal.carry_column()'::regprocedure)
    UNION
    SELECT 'told', format('security label of %I for the column', l.provider), 'It is not given to the new column.'
      FROM pg_seclabel AS l JOIN tree AS t ON l.classoid = 'pg_class'::regclass AND l.objoid = t.relation AND l.objsubid = t.attnum
     ORDER BY 1, 2
$$;
COMMENT ON FUNCTION fieldcrypt_internal.column_dependents(oid, text) IS
    'what depends on a column, and what encrypt_column does about it: refused, kept with the old column, or told of; granted to nobody';

-- What can't be encrypted into another column, and why; NULL if it can.
CREATE FUNCTION fieldcrypt_internal.problem_of_migration(relation oid, column_name text, has_source boolean, plaintext text, OUT problem text, OUT hint text)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off
AS $$
#variable_conflict use_column
DECLARE
    found record;
    form text := fieldcrypt_internal.form_of_type((SELECT a.atttypid FROM pg_attribute AS a WHERE a.attrelid = $1 AND a.attname = $2 AND NOT a.attisdropped));
BEGIN
    SELECT c.relkind, c.relpersistence, c.relispartition, c.reloftype, c.relowner, c.relnamespace, a.attnum, a.attgenerated, a.attidentity, a.attinhcount, a.atttypid INTO found
      FROM pg_class AS c LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped
     WHERE c.oid = $1;
    hint := 'See docs/migration.md.';
    IF found.relkind NOT IN ('r', 'p') OR found.relnamespace IN ('fieldcrypt'::regnamespace, 'fieldcrypt_internal'::regnamespace, 'pg_catalog'::regnamespace) THEN
        problem := format('%s is no table of yours', $1::regclass);
    ELSIF found.attnum IS NULL THEN
        problem := format('table %s has no column "%s"', $1::regclass, $2);
    ELSIF found.relpersistence = 't' THEN
        problem := format('table %s is temporary', $1::regclass);
    ELSIF found.relispartition THEN
        problem := format('table %s is a partition', $1::regclass);
        hint := format('Encrypt the column of the whole: CALL fieldcrypt.encrypt_column(''%s'', ...).', pg_partition_root($1::regclass));
    ELSIF $1 = ANY (fieldcrypt_internal.distributed_tables()) THEN
        problem := format('%s is a distributed table of Citus: its rows are in shards, on other nodes, too', $1::regclass);
    ELSIF found.reloftype <> 0 OR found.attinhcount > 0 OR EXISTS (
        SELECT FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent = $1 AND NOT c.relispartition) THEN
        problem := format('table %s is of a type or inherits, or others inherit from it', $1::regclass);
        hint := 'ALTER TABLE ... NO INHERIT or NOT OF, and one table after the other.';
    ELSIF EXISTS (SELECT FROM fieldcrypt_internal.with_descendants($1) AS t JOIN pg_class AS c ON c.oid = t.relation WHERE c.relforcerowsecurity) THEN
        problem := format('table %s has row security that is forced: its owner does not see all rows', $1::regclass);
        hint := 'ALTER TABLE ... NO FORCE ROW LEVEL SECURITY, until the column is encrypted.';
    ELSIF found.attgenerated <> '' OR found.attidentity <> '' THEN
        problem := format('column "%s" of table %s is generated', $2, $1::regclass);
    ELSIF found.atttypid = 'fieldcrypt.encrypted_text'::regtype THEN
        problem := format('column "%s" of table %s is of type fieldcrypt.encrypted_text already', $2, $1::regclass);
        hint := 'SELECT fieldcrypt.protect_column(...) has what is written to it bound to its row.';
    ELSIF NOT has_source AND form IS NULL THEN
        problem := format('column "%s" of table %s is of type %s, whose values have no form that is the same for ever', $2, $1::regclass, format_type(found.atttypid, NULL));
        hint := 'Types are text, varchar, char(n), name, integers, numeric, date, timestamptz, uuid, boolean, jsonb and json. For others an expression gives the plaintext: source => ''...''.';
    ELSIF NOT has_source AND plaintext IS NOT NULL
          AND NOT (plaintext = form OR form = 'text' AND (plaintext ~ '^(lower|digits)(-[0-9.]+)?$') OR found.atttypid = 'json'::regtype AND plaintext = 'text') THEN
        problem := format('values of type %s are not kept as they are by the form %s', format_type(found.atttypid, NULL), plaintext);
        hint := 'Leave plaintext out for the form of the column''s type; texts may be text, lower or digits, and json may be text.';
    ELSIF found.relkind = 'p' AND (
        SELECT bool_or(c.relkind NOT IN ('r', 'p') OR c.relowner <> found.relowner OR c.relkind = 'r' AND m.amname <> 'heap')
          FROM fieldcrypt_internal.with_descendants($1) AS t JOIN pg_class AS c ON c.oid = t.relation LEFT JOIN pg_am AS m ON m.oid = c.relam) THEN
        problem := format('a partition of %s is a foreign table, of another owner, or of another access method than heap', $1::regclass);
    ELSIF EXISTS (
        SELECT FROM pg_partitioned_table AS p JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = ANY (p.partattrs::smallint[])
         WHERE a.attname = $2 AND p.partrelid IN (SELECT t.relation FROM fieldcrypt_internal.with_descendants($1) AS t)) THEN
        problem := format('column "%s" of table %s is part of the partition key', $2, $1::regclass);
    END IF;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.problem_of_migration(oid, text, boolean, text) IS 'why a column can''t be encrypted into another one, and what to do; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.form_of_type(type oid) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE base (type) AS (
        SELECT $1
        UNION
        SELECT t.typbasetype FROM base AS b JOIN pg_type AS t ON t.oid = b.type AND t.typtype = 'd'
    )
    SELECT f.form
      FROM base AS b
      JOIN (VALUES ('text', 'text'), ('varchar', 'text'), ('bpchar', 'text'), ('name', 'text'), ('int2', 'integer'), ('int4', 'integer'),
                   ('int8', 'integer'), ('numeric', 'numeric'), ('date', 'date'), ('timestamptz', 'timestamptz'), ('uuid', 'uuid'),
                   ('bool', 'boolean'), ('jsonb', 'jsonb'), ('json', 'jsonb')) AS f (type, form) ON b.type = f.type::regtype
$$;
COMMENT ON FUNCTION fieldcrypt_internal.form_of_type(oid) IS 'the form in which values of a type are sealed; NULL if there is none; granted to nobody';

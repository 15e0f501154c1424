-- What psql shows of the extension describes itself, and the signatures that users rely on.
\getenv tests PG_ABS_SRCDIR
\set ECHO none
\i :tests/include/begin.sql
\set ECHO all

-- Everything has a comment: nothing is listed here.
SELECT p.oid::regprocedure AS function FROM pg_proc AS p
 WHERE p.pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND obj_description(p.oid, 'pg_proc') IS NULL ORDER BY 1;
SELECT c.oid::regclass AS relation FROM pg_class AS c
 WHERE c.relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND c.relkind IN ('r', 'p', 'v', 'S') AND obj_description(c.oid, 'pg_class') IS NULL ORDER BY 1;
SELECT t.oid::regtype AS type FROM pg_type AS t
 WHERE t.typnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND t.typtype = 'b' AND t.typelem = 0 AND obj_description(t.oid, 'pg_type') IS NULL ORDER BY 1;
SELECT o.oid::regoperator AS operator FROM pg_operator AS o
 WHERE o.oprnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND obj_description(o.oid, 'pg_operator') IS NULL ORDER BY 1;
SELECT a.attrelid::regclass AS relation, a.attname AS column FROM pg_attribute AS a
 WHERE a.attrelid IN ('fieldcrypt.encryption_keys'::regclass, 'fieldcrypt.master_keys'::regclass, 'fieldcrypt.audit_log'::regclass)
   AND a.attnum > 0 AND NOT a.attisdropped AND col_description(a.attrelid, a.attnum) IS NULL ORDER BY a.attrelid::regclass::text, a.attnum;
SELECT obj_description('fieldcrypt'::regnamespace, 'pg_namespace') IS NOT NULL AS schema_has_comment,
       obj_description('fieldcrypt_internal'::regnamespace, 'pg_namespace') IS NOT NULL AS internals_have_comment,
       obj_description(oid, 'pg_extension') IS NOT NULL AS extension_has_comment
  FROM pg_extension WHERE extname = 'pg_fieldcrypt';

-- No relation, type or operator besides these.
SELECT relnamespace::regnamespace AS schema, relkind, count(*), string_agg(relname, ', ' ORDER BY relname) FILTER (WHERE relname !~ '^audit_log_\d+') AS names
  FROM pg_class WHERE relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND relkind IN ('r', 'p', 'v', 'm', 'S', 'c')
 GROUP BY 1, 2 ORDER BY relnamespace::regnamespace::text, relkind;
SELECT typname, obj_description(oid, 'pg_type') AS comment FROM pg_type
 WHERE typnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND typtype <> 'c' AND typelem = 0 ORDER BY 1;
\do fieldcrypt.*
\do fieldcrypt_internal.*

-- The table of keys, as `\d+` has it.
SELECT a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type, c.collname AS collation, a.attnotnull AS not_null,
       pg_get_expr(d.adbin, d.adrelid) AS default
  FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  LEFT JOIN pg_collation AS c ON c.oid = a.attcollation AND c.collname <> 'default'
 WHERE a.attrelid = 'fieldcrypt.encryption_keys'::regclass AND a.attnum > 0 ORDER BY a.attnum;
SELECT indexrelid::regclass AS index, indisunique AS unique, pg_get_expr(indpred, indrelid) AS predicate
  FROM pg_index WHERE indrelid = 'fieldcrypt.encryption_keys'::regclass ORDER BY 1;
SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'fieldcrypt.encryption_keys'::regclass ORDER BY 1;

-- The functions that users call. This list is a promise: what is in it stays, with its names and defaults. What
-- they are made of is in the other schema, and not here.
\pset format unaligned
SELECT p.proname || '(' || pg_get_function_arguments(p.oid) || ')' AS signature,
       coalesce(pg_get_function_result(p.oid), 'procedure') AS result,
       CASE p.provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END AS volatility,
       CASE p.proparallel WHEN 's' THEN 'safe' WHEN 'r' THEN 'restricted' ELSE 'unsafe' END AS parallel,
       CASE WHEN p.proisstrict THEN 'strict' ELSE 'not strict' END AS null
  FROM pg_proc AS p WHERE p.pronamespace = 'fieldcrypt'::regnamespace ORDER BY p.proname, 1;
-- No function of either schema is leakproof, runs with its owner's rights without a fixed search_path, or has the name of another.
SELECT p.oid::regprocedure AS function FROM pg_proc AS p WHERE p.pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND p.proleakproof;
SELECT p.oid::regprocedure AS function FROM pg_proc AS p
 WHERE p.pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND p.prosecdef AND NOT coalesce(p.proconfig::text ~ 'search_path=pg_catalog, pg_temp', false);
SELECT proname FROM pg_proc WHERE pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) GROUP BY proname HAVING count(*) > 1;

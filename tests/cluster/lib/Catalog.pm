# The extension as the catalogs of a database have it, so that two databases can be compared object by object.
#
#   my %catalog = catalog($node, 'postgres');                 # "function fieldcrypt.key_id(…)" => { "owner" => …, … }
#   my @differences = differences(\%updated, \%fresh);        # texts, empty if they are equal
#   my @statements = statements(\%updated, \%fresh);          # SQL that makes the first what the second is, as far as it is clear
package Catalog;

use strict;
use warnings;

use Exporter 'import';
use FieldcryptTest;
use JSON::PP ();

our @EXPORT = qw(catalog differences statements);

# What is compared: for each object a text that names it, and a JSON object of what it is. No object ids, which differ, and
# nothing that users set up themselves: rights of other roles than the owner are not the extension's.
my $SQL = <<'SQL';
SET search_path = pg_catalog;
CREATE FUNCTION pg_temp.rights(acl aclitem[], kind "char", owner oid) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(DISTINCT format('%s to %s', a.privilege_type, CASE a.grantee WHEN 0 THEN 'PUBLIC' WHEN $3 THEN 'owner' ELSE a.grantee::regrole::text END), ', ')
      FROM aclexplode(coalesce($1, acldefault($2, $3))) AS a
$$;
-- The rights that pg_dump takes for the extension's own.
CREATE FUNCTION pg_temp.own_rights(class regclass, object oid, part int, kind "char", owner oid) RETURNS text LANGUAGE sql AS $$
    SELECT coalesce((SELECT pg_temp.rights(i.initprivs, $4, $5) FROM pg_init_privs AS i WHERE (i.classoid, i.objoid, i.objsubid) = ($1, $2, $3)),
                    CASE WHEN $4 <> '-' THEN pg_temp.rights(NULL, $4, $5) END)
$$;
CREATE FUNCTION pg_temp.name(class regclass, object oid) RETURNS text LANGUAGE sql AS $$
    SELECT i.type || ' ' || i.identity FROM pg_identify_object($1, $2, 0) AS i
$$;
CREATE TEMP VIEW own AS
    SELECT d.classid, d.objid FROM pg_depend AS d
     WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND d.refobjid = (SELECT e.oid FROM pg_extension AS e WHERE e.extname = 'pg_fieldcrypt');
CREATE TEMP VIEW own_schema AS SELECT n.oid, n.nspowner AS owner FROM pg_namespace AS n WHERE n.nspname IN ('fieldcrypt', 'fieldcrypt_internal');
CREATE TEMP VIEW own_relation AS SELECT c.* FROM pg_class AS c WHERE c.relnamespace IN (SELECT s.oid FROM own_schema AS s) AND c.relkind NOT IN ('i', 'I');
CREATE TEMP VIEW own_comment AS SELECT d.classoid, d.objoid, d.objsubid, d.description FROM pg_description AS d;

CREATE TEMP TABLE object (name text, what jsonb);

INSERT INTO object
SELECT 'member: ' || pg_temp.name(o.classid, o.objid), jsonb_build_object('belongs to', 'the extension') FROM own AS o;

INSERT INTO object
SELECT pg_temp.name('pg_proc'::regclass, p.oid),
       jsonb_build_object('definition', CASE WHEN p.prokind IN ('f', 'p') THEN pg_get_functiondef(p.oid) END,
           'source', p.prosrc, 'library', p.probin, 'settings', p.proconfig, 'volatility', p.provolatile, 'parallel', p.proparallel, 'strict', p.proisstrict,
           'security definer', p.prosecdef, 'leakproof', p.proleakproof, 'support', p.prosupport::text, 'cost', p.procost, 'rows', p.prorows,
           'aggregate', (SELECT (to_jsonb(a) - '{aggfnoid,aggsortop,aggtranstype,aggmtranstype}'::text[]) || jsonb_build_object('state', a.aggtranstype::regtype, 'moving state', a.aggmtranstype::regtype) FROM pg_aggregate AS a WHERE a.aggfnoid = p.oid),
           'owner', p.proowner::regrole, 'rights', pg_temp.rights(p.proacl, 'f', p.proowner), 'own rights', pg_temp.own_rights('pg_proc', p.oid, 0, 'f', p.proowner),
           'comment', obj_description(p.oid, 'pg_proc'))
  FROM pg_proc AS p
 WHERE p.pronamespace IN (SELECT s.oid FROM own_schema AS s) OR EXISTS (SELECT FROM own AS o WHERE o.classid = 'pg_proc'::regclass AND o.objid = p.oid);

INSERT INTO object
SELECT pg_temp.name('pg_type'::regclass, t.oid),
       (to_jsonb(t) - '{oid,typnamespace,typowner,typrelid,typelem,typarray,typbasetype,typcollation,typacl}'::text[])
       || jsonb_build_object('base', t.typbasetype::regtype, 'element', t.typelem::regtype, 'collation', (SELECT c.collname FROM pg_collation AS c WHERE c.oid = t.typcollation),
           'owner', t.typowner::regrole, 'rights', pg_temp.rights(t.typacl, 'T', t.typowner), 'own rights', pg_temp.own_rights('pg_type', t.oid, 0, 'T', t.typowner),
           'comment', obj_description(t.oid, 'pg_type'), 'labels', (SELECT array_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum AS e WHERE e.enumtypid = t.oid))
  FROM pg_type AS t WHERE t.typnamespace IN (SELECT s.oid FROM own_schema AS s);

INSERT INTO object
SELECT pg_temp.name('pg_operator'::regclass, o.oid),
       jsonb_build_object('function', o.oprcode::text, 'result', o.oprresult::regtype, 'commutator', o.oprcom::regoperator, 'negator', o.oprnegate::regoperator,
           'restrict', o.oprrest::text, 'join', o.oprjoin::text, 'merges', o.oprcanmerge, 'hashes', o.oprcanhash, 'owner', o.oprowner::regrole,
           'comment', obj_description(o.oid, 'pg_operator'))
  FROM pg_operator AS o
 WHERE o.oprnamespace IN (SELECT s.oid FROM own_schema AS s) OR EXISTS (SELECT FROM own WHERE own.classid = 'pg_operator'::regclass AND own.objid = o.oid);

INSERT INTO object
SELECT pg_temp.name('pg_opclass'::regclass, c.oid),
       jsonb_build_object('for', c.opcintype::regtype, 'default', c.opcdefault, 'keytype', c.opckeytype::regtype, 'family', (SELECT f.opfname FROM pg_opfamily AS f WHERE f.oid = c.opcfamily),
           'owner', c.opcowner::regrole, 'comment', obj_description(c.oid, 'pg_opclass'))
  FROM pg_opclass AS c WHERE c.opcnamespace IN (SELECT s.oid FROM own_schema AS s);

INSERT INTO object
SELECT pg_temp.name('pg_opfamily'::regclass, f.oid),
       jsonb_build_object('owner', f.opfowner::regrole, 'comment', obj_description(f.oid, 'pg_opfamily'),
           'operators', (SELECT jsonb_agg(format('%s %s %s', a.amopstrategy, a.amopopr::regoperator, a.amoppurpose) ORDER BY a.amopstrategy, a.amopopr::regoperator::text) FROM pg_amop AS a WHERE a.amopfamily = f.oid),
           'functions', (SELECT jsonb_agg(format('%s %s', a.amprocnum, a.amproc::regprocedure) ORDER BY a.amprocnum, a.amproc::regprocedure::text) FROM pg_amproc AS a WHERE a.amprocfamily = f.oid))
  FROM pg_opfamily AS f WHERE f.opfnamespace IN (SELECT s.oid FROM own_schema AS s);

INSERT INTO object
SELECT pg_temp.name('pg_cast'::regclass, c.oid),
       jsonb_build_object('function', c.castfunc::regprocedure, 'context', c.castcontext, 'method', c.castmethod, 'comment', obj_description(c.oid, 'pg_cast'))
  FROM pg_cast AS c WHERE EXISTS (SELECT FROM own AS o WHERE o.classid = 'pg_cast'::regclass AND o.objid = c.oid);

-- The first id of the log is the time at which it was made.
INSERT INTO object
SELECT pg_temp.name('pg_class'::regclass, c.oid),
       jsonb_build_object('kind', c.relkind, 'persistence', c.relpersistence, 'options', c.reloptions, 'access method', c.relam, 'replica identity', c.relreplident,
           'row security', c.relrowsecurity, 'row security forced', c.relforcerowsecurity, 'part of', (SELECT i.inhparent::regclass FROM pg_inherits AS i WHERE i.inhrelid = c.oid),
           'bounds', pg_get_expr(c.relpartbound, c.oid), 'partitioned by', CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END,
           'query', CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END,
           'sequence', (SELECT to_jsonb(s) - '{seqrelid}'::text[] - CASE c.relname WHEN 'audit_log_id_seq' THEN '{seqstart}' ELSE '{}' END::text[] FROM pg_sequence AS s WHERE s.seqrelid = c.oid),
           'sequence of', (SELECT format('%s.%s', d.refobjid::regclass, d.refobjsubid) FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0 AND c.relkind = 'S'),
           'owner', c.relowner::regrole, 'rights', pg_temp.rights(c.relacl, CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner),
           'own rights', pg_temp.own_rights('pg_class', c.oid, 0, CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner),
           'comment', obj_description(c.oid, 'pg_class'))
  FROM own_relation AS c;

-- Some builds of PostgreSQL stamp columns with a number (pg_attver). The place of a column is among those that are there: what reads a table by place is made for it as it is anew.
INSERT INTO object
SELECT format('column %s.%I', c.oid::regclass, a.attname),
       jsonb_build_object('place', (SELECT count(*) FROM pg_attribute AS b WHERE b.attrelid = c.oid AND b.attnum BETWEEN 1 AND a.attnum AND NOT b.attisdropped), 'number', a.attnum,
           'type', format_type(a.atttypid, a.atttypmod), 'collation', (SELECT l.collname FROM pg_collation AS l WHERE l.oid = a.attcollation), 'not null', a.attnotnull,
           'default', (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef AS d WHERE d.adrelid = c.oid AND d.adnum = a.attnum), 'identity', a.attidentity, 'generated', a.attgenerated,
           'storage', a.attstorage, 'compression', a.attcompression, 'options', (SELECT array_agg(x.item) FROM unnest(a.attoptions) AS x (item) WHERE x.item NOT LIKE 'pg\_attver=%'), 'inherited', a.attinhcount, 'own', a.attislocal,
           'rights', (SELECT string_agg(x.item::text, ' ' ORDER BY x.item::text) FROM unnest(a.attacl) AS x (item)), 'comment', col_description(c.oid, a.attnum))
  FROM own_relation AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped;

INSERT INTO object
SELECT format('constraint %I of %s', k.conname, CASE WHEN k.conrelid <> 0 THEN k.conrelid::regclass::text ELSE k.contypid::regtype::text END),
       jsonb_build_object('definition', pg_get_constraintdef(k.oid), 'kind', k.contype, 'validated', k.convalidated, 'deferrable', k.condeferrable, 'deferred', k.condeferred,
           'not inherited', k.connoinherit, 'inherited', k.coninhcount, 'comment', obj_description(k.oid, 'pg_constraint'))
  FROM pg_constraint AS k WHERE k.connamespace IN (SELECT s.oid FROM own_schema AS s);

INSERT INTO object
SELECT format('index %s', i.indexrelid::regclass),
       jsonb_build_object('definition', pg_get_indexdef(i.indexrelid), 'valid', i.indisvalid, 'ready', i.indisready, 'clustered', i.indisclustered, 'identity', i.indisreplident,
           'options', x.reloptions, 'owner', x.relowner::regrole, 'part of', (SELECT h.inhparent::regclass FROM pg_inherits AS h WHERE h.inhrelid = i.indexrelid), 'comment', obj_description(x.oid, 'pg_class'))
  FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid JOIN own_relation AS c ON c.oid = i.indrelid;

INSERT INTO object
SELECT format('trigger %I of %s', t.tgname, t.tgrelid::regclass),
       jsonb_build_object('definition', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled, 'of the parent', t.tgparentid <> 0, 'comment', obj_description(t.oid, 'pg_trigger'))
  FROM pg_trigger AS t JOIN own_relation AS c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal;

INSERT INTO object
SELECT format('policy %I of %s', p.polname, p.polrelid::regclass),
       jsonb_build_object('for', p.polcmd, 'permissive', p.polpermissive, 'roles', p.polroles::regrole[], 'using', pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid))
  FROM pg_policy AS p JOIN own_relation AS c ON c.oid = p.polrelid;

INSERT INTO object
SELECT format('rule %I of %s', r.rulename, r.ev_class::regclass), jsonb_build_object('definition', pg_get_ruledef(r.oid), 'enabled', r.ev_enabled)
  FROM pg_rewrite AS r JOIN own_relation AS c ON c.oid = r.ev_class;

INSERT INTO object
SELECT format('statistics %s', s.stxname), jsonb_build_object('definition', pg_get_statisticsobjdef(s.oid))
  FROM pg_statistic_ext AS s JOIN own_relation AS c ON c.oid = s.stxrelid;

INSERT INTO object
SELECT 'event trigger ' || e.evtname,
       jsonb_build_object('event', e.evtevent, 'tags', e.evttags, 'enabled', e.evtenabled, 'owner', e.evtowner::regrole, 'function', e.evtfoid::regprocedure, 'comment', obj_description(e.oid, 'pg_event_trigger'))
  FROM pg_event_trigger AS e;

INSERT INTO object
SELECT 'schema ' || n.nspname,
       jsonb_build_object('owner', n.nspowner::regrole, 'rights', pg_temp.rights(n.nspacl, 'n', n.nspowner), 'own rights', pg_temp.own_rights('pg_namespace', n.oid, 0, 'n', n.nspowner), 'comment', obj_description(n.oid, 'pg_namespace'))
  FROM pg_namespace AS n WHERE n.oid IN (SELECT s.oid FROM own_schema AS s);

INSERT INTO object
SELECT 'default privileges ' || coalesce(d.defaclnamespace::regnamespace::text, 'everywhere') || ' ' || d.defaclobjtype::text, to_jsonb(d.defaclacl::text[]) FROM pg_default_acl AS d;

INSERT INTO object
SELECT 'rights on columns, as the extension''s own: ' || i.objoid::regclass || ' ' || i.objsubid, to_jsonb(i.initprivs::text[])
  FROM pg_init_privs AS i WHERE i.classoid = 'pg_class'::regclass AND i.objsubid <> 0 AND i.objoid IN (SELECT c.oid FROM own_relation AS c);

-- The order of its tables is that in which they were made: pg_dump goes by their names.
INSERT INTO object
SELECT 'extension ' || e.extname,
       jsonb_build_object('version', e.extversion, 'owner', e.extowner::regrole, 'schema', e.extnamespace::regnamespace, 'relocatable', e.extrelocatable, 'comment', obj_description(e.oid, 'pg_extension'))
  FROM pg_extension AS e WHERE e.extname = 'pg_fieldcrypt';
INSERT INTO object
SELECT 'dumped table ' || c.oid::regclass, jsonb_build_object('condition', c.condition)
  FROM pg_extension AS e, unnest(e.extconfig, e.extcondition) AS c (oid, condition) WHERE e.extname = 'pg_fieldcrypt';

ALTER TABLE object ADD PRIMARY KEY (name);
SELECT jsonb_object_agg(o.name, o.what) FROM object AS o;
SQL

sub catalog
{
	my ($node, $db) = @_;
	return %{ JSON::PP->new->decode(value($node, $SQL, db => $db)) };
}

# What is otherwise in the first than in the second, one text for each property.
sub differences
{
	my ($got, $expected) = @_;
	my @differences;
	my $json = JSON::PP->new->canonical->allow_nonref;
	my %all = (%$got, %$expected);
	foreach my $name (sort keys %all)
	{
		if (!$got->{$name}) { push @differences, "$name is missing"; next }
		if (!$expected->{$name}) { push @differences, "$name is left"; next }
		my ($is, $should) = map { ref $_ eq 'HASH' ? $_ : { all => $_ } } $got->{$name}, $expected->{$name};
		foreach my $property (sort keys %{ { %$is, %$should } })
		{
			my ($one, $other) = map { $json->encode($_->{$property}) } $is, $should;
			push @differences, "$name: $property is $one, not $other" if $one ne $other;
		}
	}
	return @differences;
}

# What would do away with the differences, where that is plain from the catalogs. A person decides: rows may have to follow.
sub statements
{
	my ($got, $expected) = @_;
	my @statements;
	my %all = (%$got, %$expected);
	foreach my $name (sort keys %all)
	{
		my ($is, $should) = ($got->{$name}, $expected->{$name});
		my ($kind, $what) = $name =~ /^(column|constraint|index|trigger|policy|rule|dumped table|function|procedure|view|table|type|sequence|operator|cast|event trigger|member:|[\w ]+?) (.+)$/;
		my ($part, $table) = $what =~ /^(\S+) of (.+)$/;
		my ($relation, $column) = $what =~ /^(.*)\.([^.]+)$/;
		if (!$should)
		{
			push @statements,
			    $kind eq 'column' ? "ALTER TABLE $relation DROP COLUMN $column;"
			  : $kind eq 'constraint' ? "ALTER TABLE $table DROP CONSTRAINT $part;"
			  : $kind =~ /^(?:trigger|policy|rule)$/ ? 'DROP ' . uc($kind) . " $part ON $table;"
			  : $kind eq 'member:' || $kind eq 'dumped table' ? ()
			  : 'DROP ' . uc($kind) . " $what;";
		}
		elsif (!$is)
		{
			push @statements,
			    $kind eq 'column' ? "ALTER TABLE $relation ADD COLUMN $column $should->{type}" . ($should->{'not null'} ? ' NOT NULL' : '') . (defined $should->{default} ? " DEFAULT $should->{default}" : '') . ';'
			  : $kind eq 'constraint' ? "ALTER TABLE $table ADD CONSTRAINT $part $should->{definition};"
			  : $kind eq 'dumped table' ? "SELECT pg_catalog.pg_extension_config_dump('$what', '" . ($should->{condition} // '') . q{');}
			  : $kind eq 'member:' ? ()
			  : $kind =~ /^(?:index|trigger|rule)$/ ? "$should->{definition};"
			  : "-- what makes $name in sql/";
		}
		elsif (ref $should eq 'HASH')
		{
			foreach my $property (grep { ($is->{$_} // '') ne ($should->{$_} // '') && ref($should->{$_}) !~ /^(?:ARRAY|HASH)$/ } sort keys %$should)
			{
				push @statements,
				    $kind eq 'column' && $property eq 'type' ? "ALTER TABLE $relation ALTER COLUMN $column TYPE $should->{type};"
				  : $kind eq 'column' && $property eq 'default' ? "ALTER TABLE $relation ALTER COLUMN $column " . (defined $should->{default} ? "SET DEFAULT $should->{default};" : 'DROP DEFAULT;')
				  : $kind eq 'column' && $property eq 'not null' ? "ALTER TABLE $relation ALTER COLUMN $column " . ($should->{'not null'} ? 'SET' : 'DROP') . ' NOT NULL;'
				  : $kind =~ /^(?:index|trigger|constraint)$/ && $property eq 'definition' ? "-- DROP, then: $should->{definition};"
				  : $property eq 'comment' ? '-- the COMMENT ON ' . uc($kind) . " $what of sql/"
				  : ();
			}
		}
	}
	return @statements;
}

1;

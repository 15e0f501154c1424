# Contexts that columns are bound to follow renames: of the column, the table, its schema, its owner, and of what the
# expression names; in a dump of afterwards too. A name that is free again brings nothing back.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "autovacuum = off\n");

sub contexts
{
	my ($node, $database) = @_;
	return $node->safe_psql($database // 'postgres', q{SELECT table_name, column_name, coalesce(expression, constant), table_owner FROM fieldcrypt.column_contexts ORDER BY 1, 2});
}

value($node, <<'SQL');
CREATE ROLE clerk LOGIN; CREATE ROLE other;
GRANT CREATE, USAGE ON SCHEMA public TO clerk;
CREATE SCHEMA ward AUTHORIZATION clerk;
CREATE TABLE ward.patients (gone int, id int PRIMARY KEY, kind text, ssn fieldcrypt.encrypted, plain fieldcrypt.encrypted);
ALTER TABLE ward.patients DROP COLUMN gone;
INSERT INTO ward.patients SELECT i, 'k', fieldcrypt.encrypt_field('s' || i, fieldcrypt.context('patients.ssn', kind, i)),
       fieldcrypt.encrypt_field('p' || i, 'plain') FROM (SELECT i, 'k'::text AS kind FROM generate_series(1, 20) AS i) AS rows;
ALTER TABLE ward.patients OWNER TO clerk;
SELECT fieldcrypt.grant_access('clerk', 'type');
SELECT fieldcrypt.set_column_context('ward.patients', 'ssn', expression => $$fieldcrypt.context('patients.ssn', patients.kind, id)$$);
SELECT fieldcrypt.set_column_context('ward.patients', 'plain', 'plain');
SQL
is_kept($node, 'ward.patients', 'before any rename');

# Each thing that may be called otherwise, by who owns it and not by a superuser.
my $told = $node->psql('postgres', 'ALTER TABLE ward.patients RENAME COLUMN ssn TO number', connstr => $node->connstr('postgres') . ' user=clerk', stderr => \my $stderr);
is($told, 0, 'the owner renames the column');
like($stderr, qr/NOTICE: .*remembered for ward\.patients\.ssn is that of ward\.patients\.number now/, '  and is told what follows');
is_kept($node, 'ward.patients', 'the column');
value($node, 'ALTER TABLE ward.patients RENAME COLUMN id TO "Id of, it"');
is_kept($node, 'ward.patients', 'a column of the expression');
value($node, 'BEGIN; ALTER TABLE ward.patients RENAME COLUMN kind TO was; ALTER TABLE ward.patients RENAME COLUMN "Id of, it" TO kind; ALTER TABLE ward.patients RENAME COLUMN was TO id; COMMIT');
is_kept($node, 'ward.patients', 'two columns of the expression that change names');
value($node, 'ALTER TABLE ward.patients RENAME TO "Sick"');
is_kept($node, 'ward."Sick"', 'the table');
value($node, 'ALTER SCHEMA ward RENAME TO wing');
is_kept($node, 'wing."Sick"', 'its schema');
value($node, 'ALTER TABLE wing."Sick" SET SCHEMA public');
is_kept($node, 'public."Sick"', 'another schema');
value($node, 'ALTER TABLE "Sick" ADD COLUMN was int, ALTER COLUMN kind TYPE bigint; ALTER TABLE "Sick" RENAME was TO more');
is_kept($node, 'public."Sick"', 'columns that are of no concern');
value($node, 'ALTER ROLE clerk RENAME TO scribe');
is_kept($node, 'public."Sick"', 'the owner');
value($node, 'BEGIN; ALTER TABLE "Sick" RENAME TO forgotten; ROLLBACK');
is_kept($node, 'public."Sick"', 'a rename that was rolled back');
value($node, 'ALTER TABLE "Sick" RENAME TO ill');
is(contexts($node), "public.ill|number|fieldcrypt.context('patients.ssn', id, kind)|scribe\npublic.ill|plain|plain|scribe",
	'what is remembered in the end');
is(value($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'column_context_set'}), '2', 'nobody is said to have set it anew');

# A dump of now, and a rename after its restore; the owner's name was changed before.
$node->safe_psql('postgres', 'CREATE DATABASE copy');
my $dump = $node->basedir . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ], 'dumped');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('copy') ], 'restored');
is(contexts($node, 'copy'), contexts($node), '  with what is remembered');
$node->safe_psql('copy', 'ALTER TABLE ill RENAME COLUMN number TO ssn; ALTER TABLE ill RENAME TO patients');
is(contexts($node, 'copy'), "public.patients|plain|plain|scribe\npublic.patients|ssn|fieldcrypt.context('patients.ssn', id, kind)|scribe",
	'  which follows there, too');
$node->safe_psql('copy', q{CALL fieldcrypt.verify_values('patients')});
is($node->safe_psql('copy', 'SELECT count(*) FROM fieldcrypt.value_failures'), '0', '  and all values open');

# Two tables that change places, as migrations do: contexts stay with their tables.
value($node, <<'SQL');
CREATE TABLE a (id int, v fieldcrypt.encrypted);
CREATE TABLE b (id int, v fieldcrypt.encrypted);
INSERT INTO a SELECT i, fieldcrypt.encrypt_field('v', 'of a/' || i) FROM generate_series(1, 20) AS i;
INSERT INTO b SELECT i, fieldcrypt.encrypt_field('v', 'of b/' || i) FROM generate_series(1, 20) AS i;
SELECT fieldcrypt.set_column_context('a', 'v', expression => $$'of a/' || id$$);
SELECT fieldcrypt.set_column_context('b', 'v', expression => $$'of b/' || id$$);
BEGIN; ALTER TABLE a RENAME TO c; ALTER TABLE b RENAME TO a; ALTER TABLE c RENAME TO b; COMMIT;
SQL
is_kept($node, 'public.a', 'tables that changed places');
is_kept($node, 'public.b', '  and the other');

# Partitions have their parent's.
value($node, <<'SQL');
CREATE TABLE parted (id int, v fieldcrypt.encrypted) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
INSERT INTO parted SELECT i, fieldcrypt.encrypt_field('v', 'p/' || i) FROM generate_series(1, 20) AS i;
SELECT fieldcrypt.set_column_context('parted', 'v', expression => $$'p/' || id$$);
ALTER TABLE parted RENAME TO split;
ALTER TABLE split RENAME COLUMN id TO number;
ALTER TABLE split RENAME COLUMN v TO w;
ALTER TABLE parted_1 RENAME TO split_1;
SQL
is_kept($node, 'public.split_1', 'a partition');

# Enforced, too: what the triggers refuse and what health says.
value($node, <<'SQL');
CREATE TABLE strict (id int PRIMARY KEY, v fieldcrypt.encrypted);
SELECT fieldcrypt.set_column_context('strict', 'v', expression => $$fieldcrypt.context('strict.v', id)$$, enforce => true);
ALTER TABLE strict RENAME COLUMN id TO number;
ALTER TABLE strict RENAME COLUMN v TO w;
ALTER TABLE strict RENAME TO strictly;
INSERT INTO strictly VALUES (1, fieldcrypt.encrypt_field('v', fieldcrypt.context('strict.v', 1)));
SQL
refused($node, q{INSERT INTO strictly VALUES (2, fieldcrypt.encrypt_field('v', fieldcrypt.context('strict.v', 1)))}, 'KF031', 'an enforced context is enforced still');
gives($node, q{SELECT status FROM fieldcrypt.health() WHERE "check" = 'enforced_contexts'}, 'ok', '  and health knows');
is_kept($node, 'public.strictly', '  and it is kept', 1);

# A name that another table has now brings no context back; a column that is dropped takes its own along.
value($node, <<'SQL');
DROP TABLE b;
CREATE TABLE b (id int, v fieldcrypt.encrypted);
ALTER TABLE b RENAME TO elsewhere;
SQL
unlike(contexts($node), qr/^public\.b\|/m, 'a table of the same name and owner has the context, as it had, and takes it along');
$stderr = '';
$node->psql('postgres', 'ALTER TABLE ill DROP COLUMN kind', stderr => \$stderr);
like($stderr, qr/WARNING: .*the context of public\.ill\.number can't be computed any more: .*HINT: .*set_column_context/s, 'an expression that has lost a column: told');
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
my $result = run_sql($node, q{CALL fieldcrypt.reencrypt('ill', rows_per_second => 0)});
like($result->{err}, qr/WARNING:  KF025: could not be re-encrypted to the end: public\.ill/, '  and a run says so');

# A new column, or a new table, takes the old name: the context stays with what it was said of.
foreach my $case ([ 'one by one', '' ], [ 'in one transaction', 'BEGIN;' ])
{
	my ($name, $begin) = @$case;
	value($node, <<"SQL");
DROP TABLE IF EXISTS q, q_old CASCADE;
CREATE TABLE q (id bigint, v fieldcrypt.encrypted);
INSERT INTO q SELECT i + 1000, fieldcrypt.encrypt_field('v', fieldcrypt.context('q.v', i + 1000)) FROM generate_series(1, 20) AS i;
SELECT fieldcrypt.set_column_context('q', 'v', expression => \$\$fieldcrypt.context('q.v', q.id)\$\$, enforce => true);
$begin ALTER TABLE q RENAME id TO old_id; ALTER TABLE q ADD id bigint GENERATED ALWAYS AS IDENTITY; COMMIT;
SQL
	is_kept($node, 'public.q', "$name: another column is called id now");
	like(contexts($node), qr/^public\.q\|v\|fieldcrypt\.context\('q\.v'(?:::text)?, old_id\)/m, '  the expression names the old one');
	unlike(run_sql($node, q{CALL fieldcrypt.verify_values('q')})->{err}, qr/WARNING|ERROR/, '  and all values open');
	refused($node, q{INSERT INTO q (old_id, v) VALUES (7, fieldcrypt.encrypt_field('v', fieldcrypt.context('q.v', 21)))}, 'KF031', '  what is enforced is the same');
	value($node, <<"SQL");
$begin ALTER TABLE q RENAME COLUMN v TO old_v; ALTER TABLE q ADD v fieldcrypt.encrypted; COMMIT;
SQL
	is(value($node, q{SELECT string_agg(column_name, ',') FROM fieldcrypt.column_contexts WHERE table_name = 'public.q'}), 'old_v', "$name: a new column under the old name has no context");
	value($node, "$begin ALTER TABLE q RENAME TO q_old; CREATE TABLE q (old_id bigint, old_v fieldcrypt.encrypted, v fieldcrypt.encrypted); COMMIT");
	is(value($node, q{SELECT string_agg(table_name || ' ' || column_name, ',') FROM fieldcrypt.column_contexts WHERE table_name ~ 'public\.q'}), 'public.q_old old_v', "$name: nor has a new table under the old name");
	value($node, 'ALTER TABLE q ADD another int; ALTER TABLE q_old ADD another int');
	is(value($node, q{SELECT string_agg(table_name || ' ' || column_name, ',') FROM fieldcrypt.column_contexts WHERE table_name ~ 'public\.q'}), 'public.q_old old_v', '  nor after the next ALTER');
	refused($node, q{CALL fieldcrypt.verify_values('q')}, '22023', qr/no context/, '  there is nothing to verify it by');
	value($node, q{INSERT INTO q VALUES (1, fieldcrypt.encrypt_field('any', 'any'))});
	is_kept($node, 'public.q_old', '  and the old one keeps its own');
}

# The same in a copy: dumped before the renames, and after them.
value($node, <<'SQL');
DROP TABLE q, q_old CASCADE;
CREATE TABLE q (id bigint, v fieldcrypt.encrypted);
INSERT INTO q SELECT i + 1000, fieldcrypt.encrypt_field('v', fieldcrypt.context('q.v', i + 1000)) FROM generate_series(1, 20) AS i;
SELECT fieldcrypt.set_column_context('q', 'v', expression => $$fieldcrypt.context('q.v', id)$$, enforce => true);
SQL
my $renames = 'ALTER TABLE q RENAME id TO old_id; ALTER TABLE q ADD id bigint GENERATED ALWAYS AS IDENTITY; ALTER TABLE q RENAME TO q_old; CREATE TABLE q (id bigint, v fieldcrypt.encrypted)';
foreach my $case ([ 'before', '', $renames ], [ 'after', $renames, 'ALTER TABLE q_old ADD more int; ALTER TABLE q ADD more int' ])
{
	my ($when, $here, $there) = @$case;
	value($node, $here) if $here;
	$node->safe_psql('postgres', 'DROP DATABASE IF EXISTS second'); $node->safe_psql('postgres', 'CREATE DATABASE second');
	$node->command_ok([ 'pg_dump', '-f', "$dump.$when", $node->connstr('postgres') ], "dumped $when the renames");
	$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$dump.$when", $node->connstr('second') ], '  restored');
	value($node, $there, db => 'second');
	like(contexts($node, 'second'), qr/^public\.q_old\|v\|fieldcrypt\.context\('q\.v'(?:::text)?, old_id\)/m, '  the context is that of the old column of the old table');
	unlike(contexts($node, 'second'), qr/^public\.q\|/m, '  and of no other');
	unlike(run_sql($node, q{CALL fieldcrypt.verify_values('q_old')}, db => 'second')->{err}, qr/WARNING|ERROR/, '  and all values open');
}
value($node, 'DROP TABLE q, q_old');

# DDL on one table neither waits for DDL on another nor fails because of it, whatever is altered and remembered elsewhere:
# beside a rename, a detached partition, and a prepared transaction; also in the snapshot of another time.
value($node, q{CREATE TABLE one (id int, v fieldcrypt.encrypted); CREATE TABLE two (id int, v fieldcrypt.encrypted);
	CREATE TABLE par (id int, v fieldcrypt.encrypted) PARTITION BY RANGE (id);
	CREATE TABLE par_1 PARTITION OF par FOR VALUES FROM (1) TO (2); CREATE TABLE par_2 PARTITION OF par FOR VALUES FROM (2) TO (3);
	SELECT fieldcrypt.set_column_context(t, 'v', expression => $$'v/' || id$$) FROM unnest('{one,two,par}'::regclass[]) AS t;
	CREATE TABLE par_3 PARTITION OF par FOR VALUES FROM (3) TO (4)});
foreach my $open ('ALTER TABLE one RENAME v TO w', 'ALTER TABLE one ADD more int', 'ALTER TABLE par DETACH PARTITION par_2', 'DROP TABLE par_3', 'CREATE TEMP TABLE t (a int); ALTER TABLE t ADD b int')
{
	my $first = session($node);
	$first->value("BEGIN; $open; SELECT 'open'");
	foreach my $other ('ALTER TABLE two ADD a int; ALTER TABLE two DROP a', 'ALTER TABLE two RENAME v TO w; ALTER TABLE two RENAME w TO v',
		'CREATE TEMP TABLE u (a int); ALTER TABLE u ADD b int; ALTER TABLE u RENAME TO uu')
	{
		my $result = run_sql($node, "SET lock_timeout = '2s'; $other");
		is("@{ $result->{sqlstates} }", '', "beside $open: $other");
	}
	$first->value('ROLLBACK');
	$first->close;
}
my $old = session($node);
$old->value('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
value($node, 'ALTER TABLE one RENAME v TO w');
unlike($old->run('ALTER TABLE two ADD more int')->{err} // '', qr/ERROR/, 'in an old snapshot');
$old->value('COMMIT');
$old->close;
like(contexts($node), qr/^public\.one\|w\|.*^public\.two\|v\|/ms, 'what was renamed is followed, and nothing else');
value($node, 'DROP TABLE one, two, par');

# Typed tables are renamed with their type.
value($node, q{CREATE TYPE kind AS (id int, v fieldcrypt.encrypted); CREATE TABLE typed OF kind; CREATE TABLE another (a int);
	SELECT fieldcrypt.set_column_context('typed', 'v', 'first');
	ALTER TYPE kind RENAME ATTRIBUTE v TO w CASCADE; SELECT fieldcrypt.set_column_context('typed', 'w', 'second');
	ALTER TYPE kind RENAME ATTRIBUTE w TO x CASCADE; ALTER TABLE another ADD b int});
like(contexts($node), qr/^public\.typed\|x\|second\|/m, 'a column of a typed table');
unlike(contexts($node), qr/^public\.typed\|[vw]\|/m, '  has one context');
value($node, 'DROP TABLE typed, another; DROP TYPE kind');

# An expression means the same whatever the session has set.
value($node, q{CREATE TABLE said (id int, day date, v fieldcrypt.encrypted);
	INSERT INTO said VALUES (1, '2001-03-04', fieldcrypt.encrypt_field('v', E'C:\\\\temp/t'));
	SELECT fieldcrypt.set_column_context('said', 'v', expression => $$'C:\temp/' || CASE WHEN day = '2001-03-04' AND id IS NOT NULL THEN 't' ELSE 'f' END$$)});
my $odd = 'SET standard_conforming_strings = off; SET escape_string_warning = off; SET transform_null_equals = on; SET datestyle = "SQL, DMY"; SET quote_all_identifiers = on';
value($node, "$odd; ALTER TABLE said RENAME id TO key; ALTER TABLE said RENAME day TO born");
unlike(run_sql($node, "$odd; CALL fieldcrypt.verify_values('said')")->{err}, qr/WARNING|ERROR/, 'under odd settings: followed, and the value opens');
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
unlike(run_sql($node, "$odd; CALL fieldcrypt.reencrypt('said')")->{err}, qr/WARNING|ERROR/, '  and is re-encrypted');
value($node, "$odd; SELECT fieldcrypt.set_column_context('said', 'v', expression => fieldcrypt_test.e, enforce => true) FROM (SELECT \$\$'C:\\temp/' || CASE WHEN born = '2001-03-04' AND key IS NOT NULL THEN 't' ELSE 'f' END\$\$ AS e) AS fieldcrypt_test");
is("@{ run_sql($node, q{INSERT INTO said VALUES (2, '2001-03-04', fieldcrypt.encrypt_field('v', E'C:\\\\temp/t'))})->{sqlstates} }", '', '  enforced: what is right is taken');
refused($node, q{INSERT INTO said VALUES (3, '2001-03-05', fieldcrypt.encrypt_field('v', E'C:\\\\temp/t'))}, 'KF031', '  and nothing else');
value($node, 'DROP TABLE said');

# What the extension has itself can be called otherwise, and get back its name.
value($node, "ALTER $_ RENAME TO other; ALTER @{[ s/[a-z_]+$/other/r ]} RENAME TO @{[ /([a-z_]+)$/ ]}") foreach 'TABLE fieldcrypt.column_contexts', 'SCHEMA fieldcrypt', 'SCHEMA fieldcrypt_internal';

# A statement that fails leaves nothing for the next one.
value($node, q{CREATE TABLE failing (id int, v fieldcrypt.encrypted); SELECT fieldcrypt.set_column_context('failing', 'v', 'c');
	DO $$ BEGIN ALTER TABLE failing RENAME v TO id; EXCEPTION WHEN duplicate_column THEN NULL; END $$; ALTER TABLE failing ADD more int; ALTER TABLE failing RENAME v TO w});
like(contexts($node), qr/^public\.failing\|w\|c\|/m, 'a rename that failed, and one that did not');
value($node, 'DROP TABLE failing');

# No master key: what is renamed is renamed.
my $key_file = $node->basedir . '/master.key';
rename $key_file, "$key_file.away" or die $!;
$node->restart;
value($node, 'ALTER TABLE a RENAME COLUMN v TO w');
like(contexts($node), qr/^public\.a\|w\|.*of b/m, 'without a master key: followed');
rename "$key_file.away", $key_file or die $!;

# Who may alter nothing but his own table gets at nothing else.
refused($node, $_->[0], $_->[1], "nobody does the steps by hand: $_->[0]")
  foreach [ q{SET ROLE other; SELECT fieldcrypt_internal.before_alter('relation', 1)}, '42501' ], [ q{SET ROLE other; SELECT fieldcrypt_internal.after_alter('[]')}, '42501' ],
  [ q{SET ROLE other; SELECT fieldcrypt_internal.move_contexts('[]')}, '42501' ];

done_testing();

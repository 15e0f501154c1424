# A partition that is detached loses the triggers and contexts that it had of its parent: it keeps the contexts, and of
# what is recorded or checked no more it is told at once, in the log and by health.
use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary');
value($node, <<'SQL');
CREATE ROLE owner LOGIN; CREATE ROLE other;
SELECT fieldcrypt.grant_access('owner', 'manage');
SELECT fieldcrypt.create_key();
CREATE SCHEMA mine AUTHORIZATION owner;
SET ROLE owner;
CREATE TABLE mine.parts (id int, region int, n int, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE mine.parts_0 PARTITION OF mine.parts FOR VALUES IN (0);
SELECT fieldcrypt.audit_table('mine.parts');
CREATE TABLE mine.parts_1 PARTITION OF mine.parts FOR VALUES IN (1);
CREATE TABLE mine.parts_2 (id int NOT NULL, region int NOT NULL, n int, PRIMARY KEY (region, id));
ALTER TABLE mine.parts ATTACH PARTITION mine.parts_2 FOR VALUES IN (2);
CREATE TABLE mine.deep PARTITION OF mine.parts FOR VALUES IN (3, 4) PARTITION BY LIST (region);
CREATE TABLE mine.deep_3 PARTITION OF mine.deep FOR VALUES IN (3);
SQL

sub health { my ($check, $db) = @_; return value($node, qq{SELECT status || ': ' || detail FROM fieldcrypt.health() WHERE "check" = '$check'}, $db ? (db => $db) : ()) }

# What a statement says besides.
sub says
{
	my ($statement, %options) = @_;
	my $result = run_sql($node, $statement, %options);
	is_deeply($result->{sqlstates}, [], "$statement: goes through") or diag $result->{err};
	return $result->{err};
}

# Audited: each way in which a partition leaves, and one that came later than audit_table.
foreach my $case ([ 'parts_1', 'parts', '' ], [ 'parts_2', 'parts', '' ], [ 'deep_3', 'deep', '' ], [ 'deep', 'parts', '' ], [ 'parts_0', 'parts', ' CONCURRENTLY' ])
{
	my ($partition, $parent, $how) = @$case;
	like(says("ALTER TABLE mine.$parent DETACH PARTITION mine.$partition$how", user => 'owner'),
		qr/WARNING: .*changes of mine\.$partition are not recorded any more.*HINT: .*audit_table\('mine\.$partition'\)/s, '  and says what is lost');
	gives($node, "SELECT event, reason, actor FROM fieldcrypt.audit_log WHERE table_name = 'mine.$partition' ORDER BY id DESC LIMIT 1", "table_detached|it was recorded as a part of mine.$parent|owner", '  which is in the log');
	like(health('audited_tables'), qr/^warning: .*"mine\.$partition": (?:it was audited, and has no triggers of audit_table any more|only TRUNCATE is recorded)/, '  and health goes on saying it');
	value($node, "SELECT fieldcrypt.audit_table('mine.parts'); SELECT fieldcrypt." . ($partition eq 'deep' ? 'audit_table' : 'unaudit_table') . "('mine.$partition')", user => 'owner');
	like(health('audited_tables'), qr/^ok: /, '  until somebody says that it is meant, or audits it') or diag health('audited_tables');
}
unlike(says('ALTER TABLE mine.parts ATTACH PARTITION mine.parts_1 FOR VALUES IN (1)', user => 'owner'), qr/WARNING/, '  there is nothing to say');
like(says('BEGIN; ALTER TABLE mine.parts DETACH PARTITION mine.parts_1; ROLLBACK', user => 'owner'), qr/not recorded any more/, '  it is told of');
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE table_name = 'mine.parts_1' AND event = 'table_detached'}, '1', '  and not recorded, as it was rolled back');
value($node, 'ALTER TABLE mine.parts DETACH PARTITION mine.parts_1; DROP TABLE mine.parts_1', user => 'owner');
unlike(health('audited_tables'), qr/parts_1/, 'what is dropped is not missed');

# Contexts: remembered ones go with the partition.
my $context = "fieldcrypt.context('log.v', id)";
value($node, <<"SQL");
SET ROLE owner;
CREATE TABLE mine.log (id int, v fieldcrypt.encrypted, w fieldcrypt.encrypted, x fieldcrypt.encrypted) PARTITION BY RANGE (id);
CREATE TABLE mine.log_1 PARTITION OF mine.log FOR VALUES FROM (0) TO (100);
CREATE TABLE mine.log_2 (x fieldcrypt.encrypted, w fieldcrypt.encrypted, v fieldcrypt.encrypted, id int);
ALTER TABLE mine.log ATTACH PARTITION mine.log_2 FOR VALUES FROM (100) TO (200);
CREATE TABLE mine.log_3 PARTITION OF mine.log FOR VALUES FROM (200) TO (300);
CREATE TABLE mine.log_4 PARTITION OF mine.log FOR VALUES FROM (300) TO (400);
RESET ROLE;
ALTER TABLE mine.log_3 OWNER TO other;
INSERT INTO mine.log SELECT i, fieldcrypt.encrypt_field('v', fieldcrypt.context('log.v', i)), fieldcrypt.encrypt_field('w', 'const'), fieldcrypt.encrypt_field('x', fieldcrypt.context('log.x', i)) FROM generate_series(0, 399) AS i;
SELECT fieldcrypt.set_column_context('mine.log', 'v', expression => \$\$$context\$\$, enforce => true);
SELECT fieldcrypt.set_column_context('mine.log', 'w', 'const', enforce => true);
SELECT fieldcrypt.set_column_context('mine.log', 'x', expression => \$\$fieldcrypt.context('log.x', id)\$\$);
SELECT fieldcrypt.set_column_context('mine.log_2', 'x', expression => \$\$fieldcrypt.context('log.x', id) || ''\$\$);
CREATE TABLE mine.base (id int, v fieldcrypt.encrypted);
CREATE TABLE mine.child () INHERITS (mine.base);
INSERT INTO mine.child SELECT i, fieldcrypt.encrypt_field('v', 'base/' || i) FROM generate_series(0, 9) AS i;
SELECT fieldcrypt.set_column_context('mine.base', 'v', expression => \$\$'base/' || id\$\$);
SQL
my $contexts = q{SELECT string_agg(concat_ws(' ', column_name, coalesce(expression, constant), enforced), ', ' ORDER BY column_name) FROM fieldcrypt.column_contexts WHERE table_name = 'mine.%s'};
my $said = says('ALTER TABLE mine.log DETACH PARTITION mine.log_1');
like($said, qr/NOTICE: .*mine\.log_1\.$_ keeps the context/, "$_ keeps its context") foreach 'v', 'w', 'x';
like($said, qr/WARNING: .*what is written to mine\.log_1\.$_ is not checked/, "$_ is said not to be checked any more") foreach 'v', 'w';
unlike($said, qr/written to mine\.log_1\.x/, 'what was not enforced is not missed');
gives($node, sprintf($contexts, 'log_1'), "v $context t, w const t, x fieldcrypt.context('log.x', id) f", 'what the partition has of its own now');
like(health('enforced_contexts'), qr/^warning: .*mine\.log_1\.v/, 'health names what is not enforced');
value($node, 'ALTER TABLE mine.log DETACH PARTITION mine.log_2; ALTER TABLE mine.child NO INHERIT mine.base');
gives($node, sprintf($contexts, 'log_2'), "v $context t, w const t, x fieldcrypt.context('log.x', id) || '' f", 'a context of its own stays its own');
like(says('ALTER TABLE mine.log DETACH PARTITION mine.log_4 CONCURRENTLY'), qr/WARNING: .*mine\.log_4\.v/, 'concurrently');
gives($node, sprintf($contexts, 'log_4'), "v $context t, w const t, x fieldcrypt.context('log.x', id) f", '  the same');
foreach my $table ('log_1', 'log_2', 'log_4', 'child')
{
	value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
	unlike(says("CALL fieldcrypt.verify_values('mine.$table')"), qr/WARNING/, "mine.$table: all values open");
	unlike(says("CALL fieldcrypt.reencrypt('mine.$table', rows_per_second => 0)"), qr/WARNING/, '  and move');
}
$said = says('ALTER TABLE mine.log DETACH PARTITION mine.log_3');
like($said, qr/WARNING: .*what is written to mine\.log_3\.$_ is not checked/, "of another owner: $_ is said not to be checked any more") foreach 'v', 'w';
gives($node, sprintf($contexts, 'log_3'), 'w const t', '  an expression of one owner does not become another\'s');

# Set again, attached again.
value($node, "SELECT fieldcrypt.set_column_context('mine.log_1', 'v', expression => \$\$$context\$\$, enforce => true), fieldcrypt.set_column_context('mine.log_1', 'w', 'const', enforce => true)");
refused($node, "INSERT INTO mine.log_1 VALUES (1, fieldcrypt.encrypt_field('v', 'wrong'))", 'KF031', 'enforced again by hand');
refused($node, 'ALTER TABLE mine.log ATTACH PARTITION mine.log_1 FOR VALUES FROM (0) TO (100)', '42710', qr/trigger/, 'attached again with triggers of its own: Postgres takes no two of one name');
value($node, "SELECT fieldcrypt.set_column_context('mine.log_1', c) FROM unnest('{v,w,x}'::name[]) AS c; ALTER TABLE mine.log ATTACH PARTITION mine.log_1 FOR VALUES FROM (0) TO (100)");
refused($node, "INSERT INTO mine.log VALUES (1, fieldcrypt.encrypt_field('v', 'wrong'))", 'KF031', '  once they are taken away, it has those of the whole');
gives($node, sprintf($contexts, 'log_1'), '', '  and its contexts');
refused($node, 'ALTER TABLE mine.parts ATTACH PARTITION mine.deep FOR VALUES IN (3, 4)', '42710', qr/fieldcrypt_audit_change/, 'the same with a partition that is audited on its own');
value($node, q{SELECT fieldcrypt.unaudit_table('mine.deep'); ALTER TABLE mine.parts ATTACH PARTITION mine.deep FOR VALUES IN (3, 4)}, user => 'owner');
value($node, 'ALTER TABLE mine.log ATTACH PARTITION mine.log_4 FOR VALUES FROM (300) TO (400)');
refused($node, "INSERT INTO mine.log VALUES (301, fieldcrypt.encrypt_field('v', 'wrong'))", 'KF031', 'attached again: checked again');
unlike(health('enforced_contexts'), qr/log_4/, '  and health is content with it');

# In a copy, where nothing was noted before.
create_database($node, 'copy');
my $dump = $node->basedir . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ], 'dumped');
$node->safe_psql('postgres', 'DROP DATABASE copy'); $node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('copy') ], 'restored');
like(says('ALTER TABLE mine.log DETACH PARTITION mine.log_4', db => 'copy'), qr/WARNING: .*mine\.log_4\.v/, 'a detached partition is told of there, too');

# Without a master key it is detached all the same.
value($node, q{CREATE TABLE mine.parts_5 PARTITION OF mine.parts FOR VALUES IN (5)}, user => 'owner');
my $key_file = $node->basedir . '/master.key';
rename $key_file, "$key_file.away" or die $!;
$node->restart;
like(says('ALTER TABLE mine.parts DETACH PARTITION mine.parts_5', user => 'owner'), qr/not recorded any more/, 'without a master key');
rename "$key_file.away", $key_file or die $!;
refused($node, 'SET ROLE other; SELECT fieldcrypt_internal.follow_parents(1::oid, $$[]$$::jsonb)', '42501', 'nobody calls the steps by hand');

no_crash($node);
done_testing();

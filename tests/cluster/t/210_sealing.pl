# Sealing: what is committed becomes a leaf of the tree, once, however late; and what is written says who
# wrote it.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('sealing', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nmax_prepared_transactions = 5\n");

# Waits until all rows of the log have leaves.
sub all_sealed
{
	my ($db) = @_;
	return $node->poll_query_until($db, 'SELECT count(*) = 0 FROM fieldcrypt.audit_log WHERE leaf IS NULL');
}

# Leaf numbers are 0, 1, 2 …, each once.
sub numbered
{
	my ($db, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return gives($node, 'SELECT count(*) > 0, count(leaf) = max(leaf) + 1, min(leaf), count(DISTINCT leaf) = count(leaf) FROM fieldcrypt.audit_log',
		't|t|0|t', $name, db => $db);
}

# Before there are keys.
value($node, q{CREATE TABLE early (id int); SELECT fieldcrypt.audit_table('early')});
gives($node, 'SELECT count(*), count(mac), count(leaf) FROM fieldcrypt.audit_log', '1|0|0', 'without keys: recorded, neither authenticated nor sealed');
gives($node, 'SELECT count(*) FROM fieldcrypt.encryption_keys', '0', 'and no key was made: a dump may still be restored');

# The first key.
value($node, q{SELECT fieldcrypt.create_key('acme')});
gives($node, q{SELECT purpose, tenant, version, state, algorithm FROM fieldcrypt.encryption_keys ORDER BY purpose}, "audit|audit log|1|active|HMAC-SHA256\nfield|acme|1|active|XAES-256-GCM",
	'the first key brings the key of the log with it');
gives($node, q{SELECT tenant, mac IS NOT NULL, mac_key_id = (SELECT key_id FROM fieldcrypt.encryption_keys WHERE purpose = 'audit') FROM fieldcrypt.audit_log WHERE event = 'key_created' ORDER BY id},
	"audit log|t|t\nacme|t|t", 'both are recorded and authenticated');
ok(all_sealed('postgres'), 'all rows are sealed, also those from before');
numbered('postgres', 'numbered without gaps');
gives($node, q{SELECT old_size, cause, old_log_id IS NULL, octet_length(log_id), acknowledged_at IS NULL FROM fieldcrypt.audit_origins}, '0|the first|t|16|t', 'the first origin');

# A transaction that commits late.
my $late = session($node);
$late->value(q{BEGIN; SELECT fieldcrypt.create_key('late'); INSERT INTO early VALUES (1)});
value($node, q{SELECT fieldcrypt.create_key('early ' || i) FROM generate_series(1, 50) AS i});
ok(all_sealed('postgres'), 'what others commit meanwhile is sealed');
$late->value('COMMIT');
ok(all_sealed('postgres'), 'what commits late is sealed late');
gives($node, q{SELECT count(*), min(l.leaf) > max(o.leaf) FROM fieldcrypt.audit_log AS l, (SELECT max(leaf) AS leaf FROM fieldcrypt.audit_log WHERE tenant LIKE 'early%') AS o WHERE l.tenant = 'late' OR l.event = 'row_inserted'},
	'2|t', 'after the others, though its ids are lower');
numbered('postgres', 'numbered without gaps');
$late->close;

# A prepared one.
value($node, q{BEGIN; SELECT fieldcrypt.create_key('prepared'); PREPARE TRANSACTION 'p'});
value($node, q{SELECT fieldcrypt.create_key('after it')});
ok(all_sealed('postgres'), 'beside a prepared transaction');
$node->stop('immediate');
$node->start;
value($node, q{COMMIT PREPARED 'p'; SELECT fieldcrypt.create_key('and after that')});
ok(all_sealed('postgres'), 'prepared, crashed, committed, sealed');
numbered('postgres', 'numbered without gaps');

# Events that outlive their transactions.
foreach (1 .. 20)
{
	run_sql($node, q{SELECT fieldcrypt.decrypt_field(decode('f901' || repeat('01', 60), 'hex')::fieldcrypt.encrypted)});
}
$node->poll_query_until('postgres', q{SELECT coalesce(sum(value_count), 0) >= 20 FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'}) or fail('failed decrypts are recorded');
ok(all_sealed('postgres'), 'sealed');
gives($node, q{SELECT sum(value_count), count(*) = count(mac), count(transaction_id) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'}, '20|t|0', 'twenty failed decrypts are recorded and authenticated');
numbered('postgres', 'numbered without gaps');

# Many at once, beside a transaction that began before them and commits after them.
my $long = session($node);
$long->value(q{BEGIN; SELECT fieldcrypt.create_key('long'); INSERT INTO early VALUES (-1)});
my $script = PostgreSQL::Test::Utils::tempdir() . '/writers.sql';
PostgreSQL::Test::Utils::append_to_file($script, <<'SQL');
\set n random(1, 1000000000)
BEGIN;
INSERT INTO early VALUES (:n);
SAVEPOINT s;
INSERT INTO early VALUES (:n);
ROLLBACK TO s;
INSERT INTO early VALUES (:n);
COMMIT;
SQL
$node->command_ok([ 'pgbench', '-n', '-c', '32', '-j', '2', '-t', '20', '-f', $script, $node->connstr('postgres') ], '32 writers');
ok(all_sealed('postgres'), '32 writers: all sealed');
$long->value('INSERT INTO early VALUES (-2); COMMIT');
$long->close;
ok(all_sealed('postgres'), 'what a long transaction wrote before and after them is sealed');
gives($node, <<'SQL', '3|t|t', 'behind them all');
WITH long AS (SELECT transaction_id FROM fieldcrypt.audit_log WHERE tenant = 'long')
SELECT count(*), min(l.leaf) > max(o.leaf), min(l.id) < min(o.id)
  FROM fieldcrypt.audit_log AS l, (SELECT min(id) AS id, max(leaf) AS leaf FROM fieldcrypt.audit_log
    WHERE event = 'row_inserted' AND id > (SELECT id FROM fieldcrypt.audit_log WHERE tenant = 'long') AND transaction_id <> (TABLE long)) AS o
 WHERE l.transaction_id = (TABLE long)
SQL
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'row_inserted'}, 3 + 32 * 20 * 2, '32 writers: what was rolled back is not there');
gives($node, q{SELECT coalesce(string_agg(DISTINCT event, ' '), '') FROM fieldcrypt.audit_log WHERE mac IS NULL AND event NOT IN ('table_audited', 'master_key_loaded')}, '', '32 writers: all authenticated');
numbered('postgres', '32 writers: numbered without gaps');

# Who holds the lock of sealing, in a transaction that is idle or prepared, keeps nothing from being recorded; and it is
# told who it is.
my $recorded = q{SELECT coalesce(sum(value_count), 0) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'};
my $failing = q{SELECT fieldcrypt.decrypt_field(decode('f901' || repeat('01', 60), 'hex')::fieldcrypt.encrypted)};
my $holder = session($node);
my $process = $holder->value('SELECT pg_backend_pid()');
foreach my $case ([ "of process $process", 'ROLLBACK', '' ], [ 'a prepared transaction', q{ROLLBACK PREPARED 'held'}, q{; PREPARE TRANSACTION 'held'} ])
{
	my ($who, $end, $more) = @$case;
	my $before = value($node, $recorded);
	$holder->value("BEGIN; SELECT fieldcrypt.acknowledge_audit_fork('x')$more");
	run_sql($node, $failing) foreach 1 .. 3;
	ok(eventually($node, $recorded, $before + 3), "sealing held up by $who: what happens is recorded");
	ok(eventually($node, "SELECT last_problem ~ 'sealing is held up by .*$who' FROM fieldcrypt.audit_status()", 't'), '  and it is told by whom');
	$holder->value($end);
	ok(all_sealed('postgres'), '  sealed when it has ended');
	ok(eventually($node, 'SELECT last_problem IS NULL FROM fieldcrypt.audit_status()', 't'), '  and no problem any more');
}
$holder->close;
numbered('postgres', 'numbered without gaps');
gives($node, q{SELECT count(*) FROM fieldcrypt.verify_audit_log() WHERE status = 'critical'}, '0', 'and nobody is accused');

no_crash($node);
$node->stop;
done_testing();

# The twin: tables and their plaintext twins, changed alike by several sessions, while keys rotate and
# two runs of re-encryption go over them. Nobody fails or waits, and then the two are equal.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Twin;

my $seed = seed();
# The server logs whoever waits for a lock for 700 ms.
my $node = new_cluster('primary', conf => <<'CONF');
max_connections = 40
fsync = off
log_lock_waits = on
deadlock_timeout = 700ms
log_line_prefix = '%m [%p] %q%a '
autovacuum_naptime = 1s
CONF
make_twins($node, rows => 1000);
value($node, 'CREATE EXTENSION amcheck');
twins_equal($node, 'at first');
all_active($node, 'at first');

my $seconds = 25;
my $writers = writers($node, seconds => $seconds, seed => $seed, rows => 1000);
# Small batches, so that many of them meet a writer.
my $runs = bench($node, 'runs', [
	[ "CALL fieldcrypt.reencrypt(batch_size => 20, rows_per_second => 0);\n", 3 ],
	[ "CALL fieldcrypt.reencrypt('kept', batch_size => 7, rows_per_second => 0);\n", 1 ],
	[ "CALL fieldcrypt.reencrypt('parts', batch_size => 200, rows_per_second => 0);\n", 1 ] ],
	'-c', 2, '-T', $seconds, "--random-seed=$seed");
my $rotation = bench($node, 'rotation', [
	[ "CALL fieldcrypt.rotate_keys(force => true);\n\\sleep 2500 ms\n", 1 ],
	[ "CALL fieldcrypt.rotate_keys('tenant 1');\n\\sleep 1500 ms\n", 1 ] ],
	'-c', 1, '-T', $seconds, "--random-seed=$seed");
# DBAs look.
my $watchers = bench($node, 'watchers', [
	[ "SELECT * FROM fieldcrypt.reencryption_progress;\n\\sleep 100 ms\n", 1 ] ],
	'-c', 1, '-T', $seconds, "--random-seed=$seed");

judge_writers($writers, 'writers');
judge_bench($watchers, 8, 'who looks at the progress');
judge_bench($rotation, 20, 'rotation');
judge_bench($runs, 60, 'runs of re-encryption');
cmp_ok($runs->{transactions}, '>=', 2, 'some runs ended');
cmp_ok($rotation->{transactions}, '>=', 6, 'some rotations');
my @warnings = grep { /WARNING/ } split /\n/, $runs->{err};
my @unexpected = grep { !/did not come to rest in 20 passes/ } @warnings;
is(join("\n", @unexpected), '', 'no warning but of tables that keys rotated in again and again');
note scalar(@warnings), ' warnings';

twins_equal($node, 'after the load');
gives($node, 'SELECT count(*) FROM fieldcrypt.reencryption_failures', '0', 'no value failed');
gives($node, q{SELECT count(*) FROM fieldcrypt.reencryption_progress WHERE state NOT IN ('done', 'failed') OR pids IS NOT NULL}, '0', 'nothing is under way');

my $quiet = run_sql($node, 'CALL fieldcrypt.reencrypt(batch_size => 100, rows_per_second => 0)');
is("@{ $quiet->{sqlstates} }", '', 'a last run alone') or diag $quiet->{err};
unlike($quiet->{err}, qr/WARNING/, 'without a warning');
all_active($node, 'after the last run');
twins_equal($node, 'after the last run');
gives($node, q{SELECT string_agg(DISTINCT state, ' ') FROM fieldcrypt.reencryption_progress}, 'done', 'all is done');

# The old versions were of use, and are of none any more: the twin stays readable without them.
past_the_guard($node, q{UPDATE fieldcrypt.encryption_keys SET state = 'destroyed', wrapped_key = NULL, destroyed_at = now() WHERE state = 'deactivated'});
twins_equal($node, 'with all the old versions destroyed');

gives($node, q{SELECT count(bt_index_check(c.oid, true)) > 5 FROM pg_class AS c JOIN pg_index AS i ON i.indexrelid = c.oid JOIN pg_am AS a ON a.oid = c.relam
                WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relnamespace = 'public'::regnamespace}, 't', 'the indexes are sound');
gives($node, q{SELECT count(*) FROM kept AS k CROSS JOIN LATERAL verify_heapam('kept') AS v WHERE k.id = 1}, '0', 'the table is sound');
gives($node, 'SELECT count(*) FROM visits AS v WHERE NOT EXISTS (SELECT FROM kept AS k WHERE k.id = v.kept)', '0', 'foreign keys hold');

# Who waited, and for how long, is in the log.
my @waits = grep { /still waiting for|deadlock detected|canceling statement due to lock timeout/ } split /\n/, slurp_file($node->logfile);
is(join("\n", @waits[ 0 .. ($#waits > 5 ? 5 : $#waits) ]), '', 'nobody waited long for a lock, nobody met a deadlock');
no_crash($node);
$node->stop;
done_testing();

# Re-encryption over time: compromised keys first, throttled, watched, and free when nothing is to do.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = new_cluster('primary', conf => "autovacuum = off\n");
my $rotate = 'CALL fieldcrypt.rotate_keys(force => true)';

sub on_key
{
	my ($table, $key) = @_;
	return value($node, "SELECT count(*) FROM $table WHERE fieldcrypt.key_id(v) = $key");
}

# Starts a run in a session of its own, and gives its process.
sub start
{
	my ($session, $arguments) = @_;
	my $pid = $session->server_process;
	$session->send("CALL fieldcrypt.reencrypt($arguments)");
	$node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM fieldcrypt_internal.live_runs() AS l WHERE l.pid = $pid)") or die 'the run did not begin';
	return $pid;
}

sub comes_true
{
	my ($sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($node->poll_query_until('postgres', $sql), $name);
}

# Compromised first: over all tables, before any other value, whatever the order of the names.
value($node, <<SQL);
CREATE TABLE a_first (id int PRIMARY KEY, v fieldcrypt.encrypted);
CREATE TABLE z_last (id int PRIMARY KEY, v fieldcrypt.encrypted);
INSERT INTO a_first SELECT i, fieldcrypt.encrypt_field('a' || i, tenant => CASE WHEN i % 20 = 0 THEN 'leaked' ELSE 'safe' END) FROM generate_series(1, 2000) AS i;
INSERT INTO z_last SELECT i, fieldcrypt.encrypt_field('z' || i, tenant => CASE WHEN i % 20 = 0 THEN 'leaked' ELSE 'safe' END) FROM generate_series(1, 2000) AS i;
$rotate;
SQL
my %old = map { my ($t, $k) = split /\|/; ($t => $k) } split /\n/, value($node, q{SELECT tenant, key_id FROM fieldcrypt.encryption_keys WHERE state = 'deactivated'});
value($node, "SELECT fieldcrypt.mark_compromised($old{leaked}, 'a test')");
my $session = session($node);
my $pid = start($session, "batch_size => 100, rows_per_second => 200");
my $seen = 'none';
foreach (1 .. 300)
{
	my ($leaked, $safe) = split /\|/, value($node, "SELECT count(*) FILTER (WHERE k = $old{leaked}), count(*) FILTER (WHERE k = $old{safe}) FROM (SELECT fieldcrypt.key_id(v) AS k FROM a_first UNION ALL SELECT fieldcrypt.key_id(v) FROM z_last) AS q");
	$seen = 'others first' if $leaked > 0 && $safe < 3800;
	if ($leaked == 0) { $seen = "compromised first, then $safe" if $seen eq 'none'; last }
	usleep(50_000);
}
like($seen, qr/^compromised first, then 3[0-9]{3}$/, 'values on a compromised key are moved first, in every table');
gives($node, "SELECT pg_cancel_backend($pid)", 't', 'the run is cancelled');
comes_true("SELECT count(*) = 0 FROM fieldcrypt_internal.live_runs()", '  and ends');
gives($node, q{SELECT DISTINCT state FROM fieldcrypt.reencryption_progress WHERE state <> 'done'}, 'interrupted', '  what it left is interrupted');
gives($node, q{SELECT count(*) FROM fieldcrypt.reencryption_progress WHERE pids IS NOT NULL OR estimated_end IS NOT NULL OR rows_per_second IS NOT NULL}, '0', '  by nobody');
$session->close;

# A key that is compromised while a run lies interrupted.
$session = session($node);
my $left = on_key('z_last', $old{safe});
cmp_ok($left, '>', 1000, 'there is something left');
value($node, "INSERT INTO z_last SELECT 10000 + i, fieldcrypt.encrypt_field('late', tenant => 'late') FROM generate_series(1, 50) AS i; SELECT fieldcrypt.mark_compromised(key_id, 'a test') FROM fieldcrypt.encryption_keys WHERE tenant = 'late'");
my $late = value($node, q{SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'late' AND state = 'compromised'});
$pid = start($session, "batch_size => 50, rows_per_second => 100");
comes_true("SELECT count(*) = 0 FROM z_last WHERE fieldcrypt.key_id(v) = $late", 'compromised meanwhile: its values are moved');
cmp_ok(on_key('z_last', $old{safe}), '>', $left - 300, '  before the others');
value($node, "SELECT pg_terminate_backend($pid)");
comes_true("SELECT count(*) = 0 FROM fieldcrypt_internal.live_runs()", '  and the run, terminated, ends');
$session->close;
value($node, 'CALL fieldcrypt.reencrypt(rows_per_second => 0)');
is(on_key($_, $old{leaked}) + on_key($_, $old{safe}), 0, "all of $_ is done in the end") foreach 'a_first', 'z_last';
value($node, 'DROP TABLE a_first, z_last');

# The throttle, within reason: never faster than asked for, but for a second's worth and a batch.
value($node, <<SQL);
CREATE TABLE slow (id int PRIMARY KEY, v fieldcrypt.encrypted);
INSERT INTO slow SELECT i, fieldcrypt.encrypt_field(repeat('x', 458)) FROM generate_series(1, 1500) AS i;
SQL
foreach my $case (
	[ 'batch_size => 100, rows_per_second => 500', 1.8, 'rows per second' ],
	[ 'batch_size => 100, rows_per_second => 0, bytes_per_second => 250000', 2.4, 'bytes per second' ],
	[ "batch_size => 300, rows_per_second => 0, pause => '0.5 seconds'", 1.9, 'a pause between batches' ],
	[ "batch_size => 300, rows_per_second => 100000, bytes_per_second => 100000000, pause => '0.5 seconds'", 1.9, 'the slowest of them counts' ])
{
	my ($arguments, $at_least, $name) = @$case;
	value($node, $rotate);
	my $began = time;
	value($node, "CALL fieldcrypt.reencrypt('slow', $arguments)");
	my $took = time - $began;
	cmp_ok($took, '>', $at_least, "throttled: $name");
	cmp_ok($took, '<', $at_least * 3 + 6, sprintf '  but no slower than need be (%.1f s)', $took);
}
value($node, $rotate);
my $began = time;
value($node, "CALL fieldcrypt.reencrypt('slow', rows_per_second => 0, batch_size => 100)");
cmp_ok(time - $began, '<', 6, 'without a throttle it takes less');
$began = time;
value($node, "CALL fieldcrypt.reencrypt('slow', rows_per_second => 1, pause => '1 second', batch_size => 100)");
cmp_ok(time - $began, '<', 3, 'nothing to do: the throttle does not hold it up');

# The progress, while it runs.
value($node, "VACUUM FULL slow; ANALYZE slow; $rotate");
$session = session($node);
$pid = start($session, "'slow', batch_size => 50, rows_per_second => 150");
comes_true("SELECT rows_moved > 200 FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.slow'", 'running: rows are counted');
my $progress = value($node, q{SELECT state, columns, pids, rows_total, rows_done BETWEEN 200 AND 1400, rows_moved <= rows_done, rows_failed, bytes_moved BETWEEN rows_moved * 500 - 1 AND rows_moved * 500,
	rows_per_second BETWEEN 60 AND 400, estimated_end > now() AND estimated_end < now() + interval '1 minute', started_at > now() - interval '1 minute', updated_at >= started_at AND updated_at > clock_timestamp() - interval '2 seconds', finished_at IS NULL, error_code IS NULL
	FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.slow'});
is($progress, "running|{v}|{$pid}|1500|t|t|0|t|t|t|t|t|t|t", '  state, process, rows, bytes, rate, estimated end')
  or diag value($node, "SELECT clock_timestamp(), p FROM fieldcrypt.reencryption_progress AS p WHERE table_name = 'public.slow'") . value($node, 'SELECT * FROM fieldcrypt_internal.reencryptions') . value($node, 'SELECT * FROM fieldcrypt_internal.reencryption_chunks');
my $moved = value($node, "SELECT rows_moved FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.slow'");
comes_true("SELECT rows_moved > $moved FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.slow'", '  it goes on');
my $second = session($node);
my $second_pid = start($second, "'slow', batch_size => 50, rows_per_second => 50");
value($node, "SELECT pg_cancel_backend($second_pid)");
$second->close;

# A crash.
$moved = value($node, "SELECT count(*) FROM slow WHERE fieldcrypt.key_id(v) IN (SELECT key_id FROM fieldcrypt.encryption_keys WHERE state = 'active')");
$node->stop('immediate');
$session->close;
$node->start;
gives($node, q{SELECT state, pids FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.slow'}, 'interrupted|', 'after a crash: interrupted, by nobody');
gives($node, q{SELECT p.rows_moved = (SELECT count(*) FROM slow WHERE fieldcrypt.key_id(v) IN (SELECT key_id FROM fieldcrypt.encryption_keys WHERE state = 'active')) FROM fieldcrypt.reencryption_progress AS p WHERE table_name = 'public.slow'}, 't', '  and tells exactly what is done');
my $result = run_sql($node, "CALL fieldcrypt.reencrypt('slow', rows_per_second => 0)");
is("@{ $result->{sqlstates} }", '', '  it goes on');
my ($again) = $result->{err} =~ /reencrypt: (\d+) rows re-encrypted/;
cmp_ok($again, '<=', 1500 - $moved, "  with what is left: $again rows, of 1500 at least $moved were done");
gives($node, q{SELECT state, rows_failed, finished_at IS NOT NULL, pids FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.slow'}, 'done|0|t|', '  to the end');

# A run over what is finished changes nothing.
value($node, <<'SQL');
CREATE TABLE finished (id int PRIMARY KEY, v fieldcrypt.encrypted, w fieldcrypt.encrypted[]);
INSERT INTO finished SELECT i, e, ARRAY[e] FROM generate_series(1, 50000) AS i, fieldcrypt.encrypt_field('x') AS e;
CALL fieldcrypt.rotate_keys(force => true);
CALL fieldcrypt.reencrypt('finished', rows_per_second => 0);
VACUUM (FREEZE) finished;
CHECKPOINT;
SQL
my $image = q{SELECT md5(string_agg(id || ' ' || ctid || ' ' || xmin || ' ' || xmax || ' ' || md5(v::bytea), ',' ORDER BY id)) FROM finished};
my $image_before = value($node, $image);
my $wal = value($node, 'SELECT pg_current_wal_insert_lsn()');
$result = run_sql($node, "CALL fieldcrypt.reencrypt('finished')");
like($result->{err}, qr/NOTICE:  00000: reencrypt: 0 rows re-encrypted, 1 tables done, 0 rows could not be/, 'a second run finds nothing to do');
my $volume = value($node, "SELECT pg_current_wal_insert_lsn() - '$wal'");
cmp_ok($volume, '<', 400_000, "  writes next to nothing ($volume bytes of WAL)");
gives($node, $image, $image_before, '  and no row version');
value($node, "INSERT INTO finished SELECT 60000, v, w FROM finished LIMIT 1");

# The cost of a batch does not grow with what is done: buffers that the last tenth touches, against the first.
value($node, $rotate);
$session = session($node);
my $buffers = q{SELECT heap_blks_read + heap_blks_hit FROM pg_statio_user_tables WHERE relname = 'finished'};
my @cost;
value($node, 'SELECT pg_stat_reset()');
foreach my $part (1, 2)
{
	# The run ends by itself when a timeout comes; what is done is done.
	my $before = value($node, "SELECT count(*) FROM finished WHERE fieldcrypt.key_id(v) NOT IN (SELECT key_id FROM fieldcrypt.encryption_keys WHERE state = 'active')");
	my $started = time;
	run_sql($node, "SET statement_timeout = '4s'; CALL fieldcrypt.reencrypt('finished', rows_per_second => 0, batch_size => 200)");
	my $after = value($node, "SELECT count(*) FROM finished WHERE fieldcrypt.key_id(v) NOT IN (SELECT key_id FROM fieldcrypt.encryption_keys WHERE state = 'active')");
	push @cost, ($before - $after);
}
note "rows in 4 s: @cost";
cmp_ok($cost[1], '>', $cost[0] * 0.4, 'a batch costs later what it costs at first') if $cost[1] + $cost[0] < 50000;
$session->close;
value($node, "CALL fieldcrypt.reencrypt('finished', rows_per_second => 0, batch_size => 10000)");

# The settings of the session that calls.
value($node, <<SQL);
CREATE TABLE of_tenants (id int PRIMARY KEY, tenant text, v fieldcrypt.encrypted);
INSERT INTO of_tenants SELECT i, 't' || i % 3, fieldcrypt.encrypt_field('o' || i, tenant => 't' || i % 3) FROM generate_series(1, 30) AS i;
SQL
# Not every build of PostgreSQL has it.
my @lz4 = value($node, q{SELECT 'lz4' = ANY(enumvals) FROM pg_settings WHERE name = 'default_toast_compression'}) eq 't' ? 'default_toast_compression = lz4' : ();
foreach my $setting ("fieldcrypt.tenant = 't1'", "fieldcrypt.tenant = 'none such'", "session_replication_role = replica", "bytea_output = escape", "plpgsql.extra_errors = 'all'", "plpgsql.variable_conflict = use_column",
	"IntervalStyle = sql_standard", "DateStyle = 'SQL, DMY'", "TimeZone = 'Asia/Kathmandu'", "quote_all_identifiers = on", @lz4, "row_security = off", "transform_null_equals = on", "array_nulls = off",
	"standard_conforming_strings = off", "jit_above_cost = 0", force_parallel() =~ /SET (.*);/, "enable_tidscan = off", "lock_timeout = '1ms'", "client_min_messages = error", "synchronous_commit = off", "default_tablespace = pg_default",
	"check_function_bodies = off", "extra_float_digits = -15", "search_path = ''", "idle_in_transaction_session_timeout = '1ms'", "lc_numeric = 'C'")
{
	value($node, $rotate);
	$result = run_sql($node, "SET $setting; CALL fieldcrypt.reencrypt('public.of_tenants', rows_per_second => 0); SHOW " . ($setting =~ s/ = .*//r));
	is("@{ $result->{sqlstates} }", '', "with $setting: the run goes through") or diag $result->{err};
	unlike($result->{err}, qr/WARNING/, '  without a warning');
	(my $value = $setting) =~ s/^\S+ = '?([^']*)'?$/$1/;
	like($result->{out}, qr/^(?:\Q$value\E|""|sql_standard|SQL, DMY)$/, '  and the setting is as it was');
	gives($node, q{SELECT count(*) FROM of_tenants AS o JOIN fieldcrypt.encryption_keys AS k ON k.key_id = fieldcrypt.key_id(v) WHERE k.state = 'active' AND k.tenant = o.tenant}, '30', "  all of every tenant is done");
}

unlike(slurp_file($node->logfile), qr/WARNING:.*leak|still referenced|not closed/i, 'nothing leaked');
no_crash($node);
$node->stop;
done_testing();

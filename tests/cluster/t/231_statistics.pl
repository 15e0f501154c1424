# fieldcrypt_stats: what keys are used for, of all sessions, by tenant, in bounded memory; seen by those who may.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.stats_max = 100
max_prepared_transactions = 5
parallel_setup_cost = 0
parallel_tuple_cost = 0
min_parallel_table_scan_size = 0
CONF

value($node, <<'SQL');
CREATE TABLE kept (id int, value fieldcrypt.encrypted) WITH (parallel_workers = 0);
CREATE ROLE auditor LOGIN; CREATE ROLE manager LOGIN; CREATE ROLE monitor LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE stranger LOGIN;
SELECT fieldcrypt.grant_access('auditor', 'audit');
SELECT fieldcrypt.grant_access('manager', 'manage');
SELECT fieldcrypt.grant_access('reader', 'encrypt', 'decrypt', 'reencrypt', 'backup');
GRANT pg_monitor TO monitor;
GRANT USAGE ON SCHEMA fieldcrypt, fieldcrypt_internal TO stranger, monitor;
SQL

my @figures = qw(encrypt_statements encrypt_values encrypt_bytes decrypt_statements decrypt_values decrypt_bytes reencrypt_values failures keys_made);

# What the figures of a tenant are.
sub figures
{
	my ($tenant, $columns, %options) = @_;
	my $where = defined $tenant ? "tenant = '$tenant'" : 'tenant IS NULL';
	return value($node, "SELECT $columns FROM fieldcrypt.fieldcrypt_stats WHERE $where", %options);
}

# A test: what SQL adds to the figures of a tenant, those that stay left out.
sub adds
{
	my ($sql, $tenant, $expected, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $columns = join ', ', @figures;
	my @before = split /\|/, figures($tenant, $columns) || join '|', (0) x @figures;
	my $result = run_sql($node, $sql, %options);
	is(join(' ', @{ $result->{sqlstates} }), $options{fails} // '', "$name: ends as it should") or diag $result->{err};
	my @after = split /\|/, figures($tenant, $columns);
	my @added = map { $after[$_] == $before[$_] ? () : "$figures[$_] " . ($after[$_] - $before[$_]) } 0 .. $#figures;
	return is(join(', ', @added), $expected, $name);
}

gives($node, 'SELECT count(*) FROM fieldcrypt.fieldcrypt_stats', '0', 'nothing at first');
adds(q{INSERT INTO kept SELECT i, fieldcrypt.encrypt_field(repeat('x', 10), '', 'a') FROM generate_series(1, 1000) AS i},
	'a', 'encrypt_statements 1, encrypt_values 1000, encrypt_bytes 10000, keys_made 1', 'encryption');
my $all = 'SELECT count(fieldcrypt.decrypt_field(value)) FROM kept';
my $read = 'decrypt_statements 1, decrypt_values 1000, decrypt_bytes 10000';
adds($all, 'a', $read, 'decryption');
adds("SET fieldcrypt.audit_decrypt = '$_'; $all", 'a', $read, "with audit_decrypt = $_") foreach qw(off failures statements);
adds("BEGIN; $all; ROLLBACK", 'a', $read, 'what is rolled back counts');
adds("BEGIN; $all; PREPARE TRANSACTION 'p'; ROLLBACK PREPARED 'p'", 'a', $read, 'what is prepared counts');
adds("SELECT 1 / (count(fieldcrypt.decrypt_field(value)) - 1000) FROM kept", 'a', $read, 'what fails counts', fails => '22012');
adds("$all; $all", 'a', 'decrypt_statements 2, decrypt_values 2000, decrypt_bytes 20000', 'statements');
adds(q{SELECT count(fieldcrypt.try_decrypt_field(value, 'other')) FROM kept WHERE id <= 30}, 'a', 'failures 30', 'failures that give NULL');
adds(q{SET fieldcrypt.audit_decrypt = off; SELECT count(fieldcrypt.try_decrypt_field(value, 'other')) FROM kept WHERE id <= 30}, 'a', 'failures 30', 'also where they are not recorded');
adds(q{SELECT fieldcrypt.decrypt_field(value, 'other') FROM kept}, 'a', 'failures 1', 'a failure that is an error', fails => 'KF002');
adds(q{DO $$BEGIN FOR i IN 1 .. 5 LOOP BEGIN PERFORM fieldcrypt.decrypt_field(value, 'other') FROM kept; EXCEPTION WHEN SQLSTATE 'KF002' THEN NULL; END; END LOOP; END$$},
	'a', 'failures 5', 'errors that are caught');
adds(q{CALL fieldcrypt.rotate_keys('a')}, 'a', 'keys_made 1', 'rotation');
adds('UPDATE kept SET value = fieldcrypt.reencrypt_field(value) WHERE id <= 400', 'a', 'reencrypt_values 400', 're-encryption');
adds('UPDATE kept SET value = fieldcrypt.reencrypt_field(value) WHERE id <= 400', 'a', '', 're-encryption of what is on the active key');
adds(q{CALL fieldcrypt.reencrypt('kept', rows_per_second => 1000000)}, 'a', 'reencrypt_values 600', 're-encryption in batches');

# Of a value whose key is unknown nobody knows the tenant.
run_sql($node, q{SELECT fieldcrypt.decrypt_field(('\xf9010123456789abcdef'::bytea || substr(value::bytea, 11))::fieldcrypt.encrypted) FROM kept});
is(figures(undef, 'failures'), '1', 'failures of an unknown key have no tenant');

# The cache, and the times.
{
	my $session = session($node);
	my $of = sub { return $session->value("SELECT $_[0] FROM fieldcrypt.fieldcrypt_stats WHERE tenant = 'a'"); };
	$session->value($all);
	my ($hits, $misses) = split /\|/, $of->('cache_hits, cache_misses');
	$session->value($all);
	is($of->("cache_hits - $hits, cache_misses - $misses"), '1000|0', 'look-ups that the cache answers');
	($hits, $misses) = split /\|/, $of->('cache_hits, cache_misses');
	value($node, 'VACUUM fieldcrypt.encryption_keys');
	$session->value($all);
	is($of->("cache_hits - $hits, cache_misses - $misses"), '999|1', 'and one that it does not');
	is($of->('decrypt_time > 0, encrypt_time > 0, load_time > 0, decrypt_time < 60000, load_time < 60000, stats_since < now(), stats_since > now() - interval \'1 hour\''),
		't|t|t|t|t|t|t', 'times');
	$session->close;
}

# All processes of a parallel query count, each as a statement.
{
	value($node, 'ALTER TABLE kept SET (parallel_workers = 2); ANALYZE kept');
	like(value($node, "EXPLAIN (ANALYZE, COSTS off) $all"), qr/Workers Launched: [12]/, 'a parallel query');
	my $before = figures('a', 'decrypt_values');
	value($node, $all);
	is(figures('a', "decrypt_values - $before"), '1000', 'counts each value once');
	value($node, 'ALTER TABLE kept SET (parallel_workers = 0)');
}

# Sessions at the same time, some of which end by force.
{
	my $before = figures('a', 'decrypt_values');
	my @sessions = map { session($node) } 1 .. 6;
	$_->send("$all; " x 20 . 'BEGIN; ' . "$all; SELECT pg_sleep(600)") foreach @sessions;
	$node->poll_query_until('postgres', q{SELECT count(*) = 6 FROM pg_stat_activity WHERE wait_event = 'PgSleep'}) or die;
	value($node, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'});
	$node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'}) or die;
	is(figures('a', "decrypt_values - $before"), 6 * 21 * 1000, 'six sessions: nothing is lost, nothing counted twice');
	$_->close foreach @sessions;
}

# More tenants than there is room for: the sums stay right.
value($node, q{SELECT count(fieldcrypt.encrypt_field('x', '', 'tenant ' || i)) FROM generate_series(1, 300) AS i});
gives($node, 'SELECT count(*), count(tenant) FROM fieldcrypt.fieldcrypt_stats', '101|100', 'as many tenants as stats_max, and a row for the rest');
is(figures(undef, 'encrypt_values, keys_made'), '201|201', 'which has what they did');
gives($node, q{SELECT sum(encrypt_values) FROM fieldcrypt.fieldcrypt_stats WHERE tenant IS DISTINCT FROM 'a'}, '300', 'nothing is missing');

# Databases see their own figures only, and share the room.
create_database($node, 'other');
gives($node, 'SELECT count(*) FROM fieldcrypt.fieldcrypt_stats', '0', 'another database has figures of its own', db => 'other');
value($node, q{SELECT fieldcrypt.encrypt_field('x', '', 'secret name')}, db => 'other');
gives($node, 'SELECT tenant IS NULL, encrypt_values FROM fieldcrypt.fieldcrypt_stats', 't|1', 'for which there is no room but in its rest', db => 'other');
value($node, 'SELECT fieldcrypt.fieldcrypt_stats_reset()');
gives($node, 'SELECT count(*) FROM fieldcrypt.fieldcrypt_stats', '0', 'reset');
gives($node, 'SELECT tenant IS NULL, encrypt_values FROM fieldcrypt.fieldcrypt_stats', 't|1', 'of this database alone', db => 'other');
value($node, q{SELECT fieldcrypt.encrypt_field('x', '', 'secret name')}, db => 'other');
gives($node, 'SELECT tenant, encrypt_values FROM fieldcrypt.fieldcrypt_stats WHERE tenant IS NOT NULL', 'secret name|1', 'it made room', db => 'other');
adds($all, 'a', $read, 'and counts anew');
gives($node, q{SELECT count(*) FROM fieldcrypt.fieldcrypt_stats WHERE tenant = 'secret name'}, '0', 'no name of another database is shown');

# Names are data.
my $name = q{<script>alert("1")</script>'; DROP TABLE kept; --\\"} . "\x{e9}";
utf8::encode($name);
(my $quoted = $name) =~ s/'/''/g;
value($node, "SELECT fieldcrypt.encrypt_field('x', '', '$quoted')");
gives($node, "SELECT encrypt_values FROM fieldcrypt.fieldcrypt_stats WHERE tenant = '$quoted'", '1', 'a hostile name stays a name');
my $long = 'y' x 1024;
value($node, "SELECT fieldcrypt.encrypt_field('x', '', '$long')");
is(figures($long, 'encrypt_values'), '1', 'the longest name');

# Rights.
foreach my $role ('auditor', 'manager')
{
	gives($node, 'SELECT count(*) > 0 FROM fieldcrypt.fieldcrypt_stats', 't', "$role sees the figures", user => $role);
}
gives($node, 'SELECT fieldcrypt.fieldcrypt_stats_reset()', '', 'the manager resets them', user => 'manager');
gives($node, 'SELECT count(*) FROM fieldcrypt.fieldcrypt_stats', '0', 'which shows', user => 'manager');
refused($node, 'SELECT fieldcrypt.fieldcrypt_stats_reset()', '42501', qr/permission denied for function fieldcrypt_stats_reset/, 'the auditor does not', user => 'auditor');
foreach my $role ('reader', 'stranger', 'monitor')
{
	refused($node, 'SELECT * FROM fieldcrypt.fieldcrypt_stats', '42501', qr/permission denied for view fieldcrypt_stats/, "$role does not see them", user => $role);
	refused($node, 'SELECT fieldcrypt_internal.tenant_statistics()', '42501', qr/permission denied for function tenant_statistics/, "$role: nor below the view", user => $role);
	refused($node, 'SELECT fieldcrypt.fieldcrypt_stats_reset()', '42501', qr/permission denied for function fieldcrypt_stats_reset/, "$role: nor resets them", user => $role);
}

# Restarts begin anew, and so does a crash.
value($node, $all);
$node->restart;
gives($node, 'SELECT count(*) FROM fieldcrypt.fieldcrypt_stats', '0', 'a restart begins anew');
adds($all, 'a', $read, 'and counts');
{
	my $session = session($node);
	my $process = $session->server_process;
	$session->send("BEGIN; $all; SELECT pg_sleep(600)");
	$node->poll_query_until('postgres', "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $process") or die;
	crash($node, $process) or die 'the server did not come back';
	$session->close;
	gives($node, 'SELECT count(*) FROM fieldcrypt.fieldcrypt_stats', '0', 'so does a crash');
	adds($all, 'a', $read, 'and counts afterwards');
}

# A database that is dropped makes room.
create_database($node, 'dropped');
value($node, q{SELECT count(fieldcrypt.encrypt_field('x', '', 'tenant ' || i)) FROM generate_series(1, 150) AS i}, db => 'dropped');
value($node, q{SELECT fieldcrypt.encrypt_field('x', '', 'too many')});
is(figures('too many', 'count(*)'), '0', 'another database has taken all the room');
value($node, 'DROP DATABASE dropped');
value($node, q{SELECT fieldcrypt.encrypt_field('x', '', 'one more')});
is(figures('one more', 'encrypt_values'), '1', 'until it is dropped');

# Without preload there are none, and nothing breaks.
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\nfieldcrypt.stats_max = 100");
$node->restart;
value($node, $all);
gives($node, "$all; SELECT count(*) FROM fieldcrypt.fieldcrypt_stats; SELECT fieldcrypt.fieldcrypt_stats_reset()", "1000\n0\n", 'without preload nothing is kept');
my $log = slurp_file($node->logfile);
unlike($log, qr/invalid configuration parameter name "fieldcrypt/, 'and no setting is unknown');

ok($log !~ /PANIC:  |[A-Z]:  XX000: |unreachable|panicked/, 'no internal error');
$node->stop;
done_testing();

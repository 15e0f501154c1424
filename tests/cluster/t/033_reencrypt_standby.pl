# Re-encryption and copies of the data: a standby that is promoted in the middle of it goes on where the
# last replayed commit was; a subscriber gets every value, and reads it.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);
use Twin;

my $seed = seed();
my $rows = 6000;

# 1. A standby.
my $primary = new_cluster('primary', init => { allows_streaming => 1 }, conf => "max_connections = 40\nfsync = off\n");
value($primary, <<SQL);
CREATE TABLE many (id int PRIMARY KEY, value fieldcrypt.encrypted, filler text);
INSERT INTO many SELECT i, fieldcrypt.encrypt_field('many ' || i), repeat('x', 150) FROM generate_series(1, $rows) AS i;
ANALYZE many;
SQL
$primary->backup('base');
my $progress = q{SELECT format('%s %s %s %s', state, rows_moved, rows_done, pids) FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.many'};

foreach my $round (1 .. 3)
{
	my $standby = PostgreSQL::Test::Cluster->new("standby_$round");
	$standby->init_from_backup($primary, 'base', has_streaming => 1);
	use_key_file($standby, key_text(1));
	$standby->start;
	value($primary, 'CALL fieldcrypt.rotate_keys(force => true)');
	$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

	my $call = q{CALL fieldcrypt.reencrypt('many', batch_size => 30, rows_per_second => 0, pause => '5 milliseconds')};
	foreach my $refused ($call, 'CALL fieldcrypt.reencrypt()', q{SELECT fieldcrypt_internal.reencrypt_begin('many')})
	{
		my $result = run_sql($standby, $refused);
		is("@{ $result->{sqlstates} }", 'KF013', "round $round: a standby refuses: $refused") or diag $result->{err};
		like($result->{err}, qr/standby/, "round $round: and says why");
	}
	gives($standby, q{SELECT count(*) FROM fieldcrypt_internal.count_keys('many'::regclass)}, '1', "round $round: a standby counts values by key");

	my $session = session($primary);
	$session->send($call);
	eventually($primary, q{SELECT count(*) FROM fieldcrypt.reencryption_progress WHERE state = 'running'}, 1) or die 'nothing runs';
	my $after = 200 + int rand 500;
	usleep(1000 * $after);
	like(value($primary, $progress), qr/^running \d+ \d+ \{\d+\}$/, "round $round: under way for $after ms");
	my $seen = value($standby, $progress);
	like($seen, qr/^(?:interrupted|running) \d+ \d+ $/, "round $round: the standby shows no process of its own: $seen");

	# The primary is lost; what did not reach the standby is lost with it.
	$primary->stop('immediate');
	$session->close;
	$standby->promote;
	my ($state, $moved, $done) = split / /, value($standby, $progress);
	is($state, 'interrupted', "round $round: promoted: interrupted");
	cmp_ok($moved, '<', $rows, "round $round: and not done ($moved)");
	cmp_ok($moved, '>', 0, "round $round: but begun");
	is($moved + stale_values($standby, q{table_name = 'public.many'}), $rows, "round $round: what it says is what its table holds");
	my $result = run_sql($standby, q{CALL fieldcrypt.reencrypt('many', rows_per_second => 0)});
	my $rest = $rows - $moved;
	like($result->{err}, qr/NOTICE:.*reencrypt: $rest rows re-encrypted, 1 tables done, 0 rows could not be/, "round $round: goes on with just the rest");
	is(stale_values($standby, q{table_name = 'public.many'}), '0', "round $round: no value is on an old key");
	gives($standby, "SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(value) = 'many ' || id), count(*) FROM many", "$rows|$rows", "round $round: all is readable");
	no_crash($standby);
	$standby->stop;
	# And the old primary, by itself, likewise.
	$primary->start;
	is((split / /, value($primary, $progress))[0], 'interrupted', "round $round: the old primary knows of no run");
	value($primary, q{CALL fieldcrypt.reencrypt('many', rows_per_second => 0)});
	is(stale_values($primary, q{table_name = 'public.many'}), '0', "round $round: and would have gone on itself");
}
no_crash($primary);
$primary->stop;

# 2. Logical replication.
my $publisher = new_cluster('publisher', init => { allows_streaming => 'logical' }, conf => "max_connections = 40\nfsync = off\nlogical_decoding_work_mem = 64kB\n");
my $subscriber = new_cluster('subscriber', init => { allows_streaming => 'logical' }, conf => "max_connections = 40\nfsync = off\n", extension => 0);
my $tables = <<'SQL';
CREATE TABLE by_key (id int PRIMARY KEY, value fieldcrypt.encrypted, big fieldcrypt.encrypted, note text);
CREATE TABLE by_row (id int, value fieldcrypt.encrypted, big fieldcrypt.encrypted, note text);
ALTER TABLE by_row REPLICA IDENTITY FULL;
CREATE TABLE by_index (id int NOT NULL, value fieldcrypt.encrypted, big fieldcrypt.encrypted, note text);
CREATE UNIQUE INDEX by_index_id ON by_index (id);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_id;
CREATE TABLE by_part (id int PRIMARY KEY, value fieldcrypt.encrypted, big fieldcrypt.encrypted, note text) PARTITION BY HASH (id);
CREATE TABLE by_part_0 PARTITION OF by_part FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE by_part_1 PARTITION OF by_part FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE nameless (id int, value fieldcrypt.encrypted, big fieldcrypt.encrypted, note text);
CREATE TABLE nothing (id int PRIMARY KEY, value fieldcrypt.encrypted, big fieldcrypt.encrypted, note text);
ALTER TABLE nothing REPLICA IDENTITY NOTHING;
SQL
value($publisher, <<SQL);
$tables
INSERT INTO by_key SELECT i, fieldcrypt.encrypt_field('of ' || i, tenant => 'tenant ' || i % 3),
       CASE WHEN i % 5 = 0 THEN fieldcrypt.encrypt_field(repeat('big ' || i, 700), tenant => 'tenant ' || i % 3) END, 'note'
  FROM generate_series(1, 400) AS i;
INSERT INTO by_row TABLE by_key; INSERT INTO by_index TABLE by_key; INSERT INTO by_part TABLE by_key;
INSERT INTO nameless TABLE by_key; INSERT INTO nothing TABLE by_key;
CREATE PUBLICATION rows FOR TABLE by_key, by_row, by_index, by_part, nameless, nothing;
CREATE PUBLICATION keys FOR TABLE fieldcrypt.encryption_keys, fieldcrypt.master_keys;
SQL
my $db = create_database($subscriber, 'copy');
value($subscriber, $tables, db => $db);
my $from = $publisher->connstr('postgres') =~ s/'/''/gr;
value($subscriber, "CREATE SUBSCRIPTION copy CONNECTION '$from' PUBLICATION rows, keys WITH (streaming = true)", db => $db);
$subscriber->wait_for_subscription_sync($publisher, 'copy', $db);

my @copied = qw(by_key by_row by_index by_part);
my $read = join '', map { "SELECT '$_', id, value::bytea, big::bytea, fieldcrypt.decrypt_field(value), fieldcrypt.decrypt_field(big), note FROM $_ ORDER BY id;\n" } @copied;
my $plain = join '', map { "SELECT '$_', id, fieldcrypt.decrypt_field(value), fieldcrypt.decrypt_field(big), note FROM $_ ORDER BY id;\n" } @copied;
my $before = value($publisher, $plain);

value($publisher, 'CALL fieldcrypt.rotate_keys(force => true)');
my $result = run_sql($publisher, 'CALL fieldcrypt.reencrypt(batch_size => 50, rows_per_second => 0)');
is("@{ $result->{sqlstates} }", '', 'tables that can not be replicated do not stop the run') or diag $result->{err};
foreach my $table (qw(nameless nothing))
{
	like($result->{err}, qr/WARNING:\s+KF025:.*public\.$table.*replica identity.*\(55000\).*HINT/s, "$table: the warning says what it lacks");
	like(value($publisher, "SELECT format('%s %s %s', state, error_code, error) FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.$table'"),
		qr/^failed 55000 .*replica identity/, "$table: and so does the progress");
	isnt(stale_values($publisher, "table_name = 'public.$table'"), '0', "$table: it is as it was");
}
is(stale_values($publisher, "table_name LIKE 'public.by%'"), '0', 'all the others are done');
like($result->{err}, qr/NOTICE:.*: 1600 rows re-encrypted, 5 tables done, 0 rows could not be/, 'each row of them once');

$publisher->wait_for_catchup('copy');
same_contents(value($subscriber, $read, db => $db), value($publisher, $read), 'the subscriber has every value, byte for byte, and reads it');
same_contents(value($subscriber, $plain, db => $db), $before, 'which says what it said before');
is(stale_values($subscriber, "table_name LIKE 'public.by%'", db => $db), '0', 'and none is on an old key there');
gives($publisher, q{SELECT count(*) FROM fieldcrypt.reencryption_failures}, '0', 'no single value failed');
unlike(slurp_file($subscriber->logfile), qr/ERROR/, 'the subscriber had no error');

# With an identity they are done, and replicated.
value($publisher, 'ALTER TABLE nameless REPLICA IDENTITY FULL; ALTER TABLE nothing REPLICA IDENTITY DEFAULT');
$result = run_sql($publisher, 'CALL fieldcrypt.reencrypt(rows_per_second => 0)');
unlike($result->{err}, qr/WARNING|ERROR/, 'with a replica identity the next run succeeds');
like($result->{err}, qr/NOTICE:.*: 800 rows re-encrypted/, 'with just their rows');
is(stale_values($publisher, 'true'), '0', 'no value is on an old key');
value($subscriber, 'ALTER TABLE nameless REPLICA IDENTITY FULL; ALTER TABLE nothing REPLICA IDENTITY DEFAULT', db => $db);
$publisher->wait_for_catchup('copy');
is(stale_values($subscriber, 'true', db => $db), '0', 'nor on the subscriber');

# A subscriber has the publisher's keys. Once it is none any more, it rotates and re-encrypts its own copy.
value($subscriber, 'ALTER SUBSCRIPTION copy DISABLE', db => $db);
refused($subscriber, 'CALL fieldcrypt.rotate_keys(force => true)', 'KF034', 'a subscriber of keys makes none', db => $db);
value($subscriber, 'ALTER SUBSCRIPTION copy SET (slot_name = NONE); DROP SUBSCRIPTION copy', db => $db);
value($subscriber, 'CALL fieldcrypt.rotate_keys(force => true)', db => $db);
value($subscriber, 'CALL fieldcrypt.reencrypt(rows_per_second => 0)', db => $db);
is(stale_values($subscriber, 'true', db => $db), '0', 'a subscriber re-encrypts its own copy');
same_contents(value($subscriber, $plain, db => $db), $before, 'and reads it');

no_crash($_) foreach $publisher, $subscriber;
$_->stop foreach $subscriber, $publisher;
done_testing();

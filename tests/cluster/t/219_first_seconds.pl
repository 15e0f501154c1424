# The first seconds of a log: while a transaction makes the first key, others write rows that nobody can
# authenticate yet; and copies are taken at any moment. Neither makes an accusation.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes;

my $node = new_cluster('first', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_worker_linger = 200
fieldcrypt.audit_seal_interval = 500
fieldcrypt.audit_queue_databases = 200
max_prepared_transactions = 10
max_worker_processes = 30
CONF
value($node, 'CREATE ROLE nobody LOGIN');

my $bad = q{SELECT coalesce(string_agg(DISTINCT status || ' ' || finding, ', ' ORDER BY status || ' ' || finding), '') FROM fieldcrypt.verify_audit_log() WHERE status <> 'ok' AND finding <> 'summary'};

sub all_findings
{
	my ($db) = @_;
	return diag value($node, q{SELECT string_agg(concat_ws(' | ', status, finding, leaf, log_id, detail), E'\n') FROM fieldcrypt.verify_audit_log()}, db => $db);
}

sub sealed
{
	my ($db) = @_;
	return eventually($node, <<'SQL', 't', db => $db);
SELECT count(*) FILTER (WHERE leaf IS NULL) = 0 AND max(leaf) + 1 = (SELECT max(size) FROM fieldcrypt.audit_checkpoints) FROM fieldcrypt.audit_log
SQL
}

my $policies = 0;

# What others do meanwhile: a row with its own transaction, and one by way of the queue.
sub meanwhile
{
	my ($db) = @_;
	value($node, "SELECT fieldcrypt.set_rotation_policy('tenant @{[ ++$policies ]}', '1 year')", db => $db);
	value($node, "INSERT INTO audited VALUES ($policies), (-$policies)", db => $db);
	refused($node, 'SELECT fieldcrypt.create_key()', '42501', "$db: somebody is refused meanwhile", db => $db, user => 'nobody');
	return;
}

# A table is audited before the database has any key: its rows wait for the end of their statement.
sub audited
{
	my ($db) = @_;
	value($node, q{CREATE TABLE audited (id int PRIMARY KEY, v fieldcrypt.encrypted); SELECT fieldcrypt.audit_table('audited')}, db => $db);
	return;
}

my %ends = (
	commit => [ q{SELECT fieldcrypt.encrypt_field('x')}, 'COMMIT' ],
	savepoint => [ q{SAVEPOINT a; SELECT fieldcrypt.create_key('gone'); ROLLBACK TO a; SAVEPOINT b; SELECT fieldcrypt.create_key('stays'); RELEASE b}, 'COMMIT' ],
	prepared => [ q{SELECT fieldcrypt.create_key('acme')}, q{PREPARE TRANSACTION 'prepared'} ],
	rolled_back => [ q{SELECT fieldcrypt.create_key('acme')}, q{ROLLBACK; SELECT fieldcrypt.create_key('second')} ]);
foreach my $end (sort keys %ends)
{
	my ($makes, $ends) = @{ $ends{$end} };
	create_database($node, $end);
	audited($end);
	my $session = session($node, db => $end);
	# Begun before the key is there, ended after it.
	my $straggler = session($node, db => $end);
	$straggler->run('BEGIN; SELECT fieldcrypt.set_rotation_policy($$late$$, $$1 year$$)');
	$session->run("BEGIN; $makes");
	meanwhile($end);
	# A statement that writes rows before the key is there and is written to the log after it.
	my $slow = session($node, db => $end);
	$slow->send("INSERT INTO audited SELECT 1000 + i FROM generate_series(1, 2) AS i, pg_sleep(CASE i WHEN 1 THEN 0 ELSE 6 END);");
	# Longer than the worker's patience.
	Time::HiRes::sleep(3.5);
	meanwhile($end);
	is($session->run($ends)->{err}, '', "$end: the first key") ;
	meanwhile($end);
	if ($end eq 'prepared')
	{
		# Somebody else's key, while the first one is in flight.
		run_sql($node, q{SET lock_timeout = '3s'; SELECT fieldcrypt.create_key('other')}, db => $end);
		meanwhile($end);
		value($node, q{COMMIT PREPARED 'prepared'}, db => $end);
	}
	meanwhile($end);
	value($node, q{SELECT fieldcrypt.create_key('later')}, db => $end);
	meanwhile($end);
	ok(sealed($end), "$end: sealed");
	gives($node, $bad, '', "$end: nothing is wrong", db => $end) or all_findings($end);
	$straggler->run('COMMIT');
	ok(sealed($end), "$end: sealed with the one that came late");
	gives($node, $bad, '', "$end: nor with a transaction that began before the key", db => $end) or all_findings($end);
	gives($node, q{SELECT count(*) > 0 FROM fieldcrypt.audit_log WHERE mac IS NULL}, 't', "$end: rows without a MAC were there", db => $end);
	gives($node, q{SELECT count(*) FROM fieldcrypt.verify_audit_log(from_time => now()) WHERE finding = 'mac_missing'}, '0', "$end: nor for who looks at the end only", db => $end);
	$_->close foreach $session, $straggler, $slow;

	# And who puts a row in afterwards is found.
	value($node, q{SET session_replication_role = replica; INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid) SELECT nextval('fieldcrypt_internal.audit_log_id_seq'), now(), 'key_destroyed', 'mallory', 'mallory', 1}, db => $end);
	gives($node, $bad, 'warning mac_missing', "$end: a row without a MAC that came later is", db => $end) or all_findings($end);
}

# A night without the key file: rows that nobody authenticates, a key that nobody introduces. Somebody's word is good
# for that, and for nothing that comes later.
{
	create_database($node, 'night');
	value($node, q{CREATE TABLE t AS SELECT fieldcrypt.encrypt_field('x') AS v}, db => 'night');
	ok(sealed('night'), 'night: sealed');
	refused($node, q{SELECT fieldcrypt.acknowledge_audit_findings('nothing')}, 'KF028', qr/nothing that could be acknowledged/, 'night: where nothing is wrong nothing is acknowledged', db => 'night');
	my $file = $node->basedir . '/master.key';
	rename $file, "$file.away" or die;
	$node->stop('immediate');
	$node->start;
	refused($node, q{SELECT fieldcrypt.decrypt_field(v) FROM t}, 'KF009', 'night: no key', db => 'night');
	ok(eventually($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed' AND mac IS NULL}, '1', db => 'night'), 'night: a row without a MAC');
	ok(sealed('night'), 'night: sealed without a key');
	refused($node, q{SELECT fieldcrypt.acknowledge_audit_findings('too early')}, 'KF028', qr/without its key/, 'night: nobody says why before the key is back', db => 'night');
	rename "$file.away", $file or die;
	$node->restart;
	value($node, q{SELECT fieldcrypt.create_key('in the morning')}, db => 'night');
	ok(sealed('night'), 'night: sealed again');
	like(value($node, $bad, db => 'night'), qr/critical signer_not_introduced.*warning mac_missing/, 'night: found');
	refused($node, q{SELECT fieldcrypt.acknowledge_audit_findings(' ')}, 'KF028', qr/a reason is needed/, 'night: not without a reason', db => 'night');
	refused($node, q{SELECT fieldcrypt.acknowledge_audit_findings(NULL)}, '22004', 'night: nor with none', db => 'night');
	refused($node, q{SELECT fieldcrypt.acknowledge_audit_findings('x')}, '42501', 'night: not by anybody', db => 'night', user => 'nobody');
	refused($node, q{BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT fieldcrypt.acknowledge_audit_findings('x')}, '25001', 'night: not of what was', db => 'night');
	gives($node, q{SELECT fieldcrypt.acknowledge_audit_findings('the key file was not mounted') >= 2}, 't', 'night: somebody says why', db => 'night');
	ok(sealed('night'), 'night: sealed with that');
	gives($node, $bad, '', 'night: and then it is good', db => 'night') or all_findings('night');
	gives($node, q{SELECT count(*) FROM fieldcrypt.verify_audit_log() WHERE finding = 'acknowledged' AND detail LIKE '%the key file was not mounted%'}, '1', 'night: verification tells of it for ever', db => 'night');
	value($node, q{CALL fieldcrypt.check_audit_log()}, db => 'night');
	gives($node, q{SELECT status FROM fieldcrypt.health() WHERE "check" = 'audit_verification'}, 'ok', 'night: health is green', db => 'night');
	my $outside = value($node, 'SELECT note FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1', db => 'night');
	value($node, q{SET session_replication_role = replica; UPDATE fieldcrypt.audit_log SET actor = 'mallory' WHERE leaf = 1}, db => 'night');
	like(value($node, $bad, db => 'night'), qr/critical root_mismatch, critical row_changed/, 'night: a forgery below is found all the same');
	value($node, q{SELECT fieldcrypt.acknowledge_audit_findings('nothing to see here')}, db => 'night');
	like(value($node, $bad, db => 'night'), qr/critical root_mismatch, critical row_changed/, 'night: whatever is said of it');
	like(value($node, "SELECT string_agg(finding, ' ') FROM fieldcrypt.verify_audit_log(anchor => '$outside')", db => 'night'), qr/root_mismatch/, 'night: also beside what is known outside');
}

# Copies at any moment of the first ten seconds.
{
	create_database($node, 'young');
	my $began = Time::HiRes::time;
	my @copies;
	while (Time::HiRes::time - $began < 10)
	{
		my $number = @copies;
		if ($number % 3 != 2)
		{
			run_sql($node, "SELECT fieldcrypt.create_key('tenant $number')", db => 'young') if $number > 0;
			run_sql($node, 'SELECT fieldcrypt.create_key()', db => 'young', user => 'nobody');
		}
		Time::HiRes::sleep(rand 0.3);
		my $copied = run_sql($node, "CREATE DATABASE young_$number TEMPLATE young STRATEGY " . (rand() < 0.5 ? 'file_copy' : 'wal_log'));
		push @copies, "young_$number" if $copied->{err} eq '';
		last if @copies > 40;
	}
	cmp_ok(scalar @copies, '>', 4, 'copies were taken: ' . @copies);
	my $first = join ', ', grep { $_ ne '' } map { value($node, $bad, db => $_) } @copies;
	is($first, '', 'as they are, none is accused');
	foreach my $copy (@copies)
	{
		value($node, q{SELECT fieldcrypt.create_key('made in the copy')}, db => $copy);
		sealed($copy);
		my $found = value($node, $bad, db => $copy);
		like($found, qr/^(|warning fork)$/, "$copy: nor when it is used") or all_findings($copy);
		value($node, "DROP DATABASE $copy WITH (FORCE)");
	}
}

no_crash($node);
$node->stop;
done_testing();

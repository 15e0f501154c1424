# A superuser without the master key, who lets the server itself sign a log that was cut; tables so damaged that
# nothing can be sealed; snapshots that see the log as it was.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes;

my $node = new_cluster('rewound', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_worker_linger = 200
fieldcrypt.audit_seal_interval = 200
max_prepared_transactions = 5
CONF

# A database with a log that is sealed and closed by a final checkpoint.
sub logged
{
	my ($db) = @_;
	create_database($node, $db);
	value($node, q{SELECT fieldcrypt.create_key('tenant ' || i) FROM generate_series(1, 10) AS i}, db => $db);
	settled($db);
	return;
}

# Waits until all rows are sealed and the worker has left.
sub settled
{
	my ($db) = @_;
	return $node->poll_query_until($db, <<'SQL');
SELECT count(*) FILTER (WHERE leaf IS NULL) = 0 AND max(leaf) + 1 = (SELECT max(size) FROM fieldcrypt.audit_checkpoints)
       AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'pg_fieldcrypt audit worker' AND datname = current_database())
  FROM fieldcrypt.audit_log
SQL
}

sub no_worker
{
	my ($db) = @_;
	return $node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'pg_fieldcrypt audit worker' AND datname = '$db'");
}

my $bad = q{SELECT coalesce(string_agg(DISTINCT status || ' ' || finding, ', ' ORDER BY status || ' ' || finding), '') FROM fieldcrypt.verify_audit_log() WHERE status <> 'ok' AND finding <> 'summary'};
# Past the guards, as a superuser can.
my $past = 'SET session_replication_role = replica';
my $tail = <<"SQL";
$past;
DELETE FROM fieldcrypt.audit_checkpoints WHERE size > 5;
DELETE FROM fieldcrypt.audit_log WHERE leaf >= 5 OR leaf IS NULL;
SQL

# The log gets another name for a moment, so that the signer should forget what it signed under this one.
{
	logged('renamed');
	gives($node, $bad, '', 'before it all is well', db => 'renamed');
	my $name = value($node, q{SELECT encode(log_id, 'hex') FROM fieldcrypt.audit_origins}, db => 'renamed');
	value($node, "$past; UPDATE fieldcrypt.audit_origins SET log_id = decode('" . '5a' x 16 . "', 'hex')", db => 'renamed');
	value($node, q{SELECT fieldcrypt.create_key('under another name')}, db => 'renamed');
	Time::HiRes::sleep(2);
	no_worker('renamed');
	value($node, "$past; UPDATE fieldcrypt.audit_origins SET log_id = decode('$name', 'hex'); DELETE FROM fieldcrypt.audit_signers WHERE id > (SELECT min(id) FROM fieldcrypt.audit_signers); $tail", db => 'renamed');
	value($node, q{SELECT fieldcrypt.create_key('afterwards')}, db => 'renamed');
	Time::HiRes::sleep(2);
	like(value($node, $bad, db => 'renamed'), qr/critical tail_cut/, 'a log that had another name meanwhile: what was cut is missed');
	gives($node, 'SELECT max(size) FROM fieldcrypt.audit_checkpoints WHERE size > 5', '', '  and what is left gets no signature', db => 'renamed');
}

# All is deleted, and a first log begins.
{
	logged('emptied');
	value($node, "$past; DELETE FROM fieldcrypt.$_", db => 'emptied') foreach qw(audit_log audit_checkpoints audit_signers audit_origins);
	value($node, q{SELECT fieldcrypt.create_key('the first')}, db => 'emptied');
	ok(settled('emptied'), 'a log that was emptied begins anew');
	like(value($node, $bad, db => 'emptied'), qr/critical tail_cut/, '  but not as if there had been none');
}

# Somebody sends the launcher away, with what it knows.
{
	logged('forgotten');
	my ($launcher) = grep { /pg_fieldcrypt audit launcher/ } split /\n/, `ps -o pid=,args= --ppid @{[ postmaster($node) ]}`;
	my ($pid) = $launcher =~ /^\s*([0-9]+)/;
	kill 'TERM', $pid;
	value($node, $tail, db => 'forgotten');
	value($node, q{SELECT fieldcrypt.create_key('afterwards')}, db => 'forgotten');
	ok(settled('forgotten'), 'without the launcher that knew better the log goes on');
	like(value($node, $bad, db => 'forgotten'), qr/warning unclean_handover/, '  but not as if that launcher had ended in order');
	unlike(value($node, q{SELECT string_agg(reason, ' ') FROM fieldcrypt.audit_log WHERE event = 'audit_started' AND leaf > 5}, db => 'forgotten'), qr/^clean/, '  and the log says so');
}

# Fields that claim a tree of any size, or none.
foreach my $damage (
	[ 'size', q{UPDATE fieldcrypt.audit_origins SET old_size = 9223372036854775807; UPDATE fieldcrypt.audit_checkpoints SET origin_id = 0} ],
	# Three gaps whose sum is a little more than fits 64 bits.
	[ 'leaves', q{INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid, leaf)
SELECT i, now(), 'x', 'x', 'x', 1, div(18446744073709551616 + 3 * (SELECT max(size) FROM fieldcrypt.audit_checkpoints), 3) + i FROM generate_series(1, 3) AS i;
UPDATE fieldcrypt.audit_origins SET old_size = 9223372036854775807; UPDATE fieldcrypt.audit_checkpoints SET origin_id = 0} ],
	[ 'frontier', q{UPDATE fieldcrypt.audit_checkpoints SET frontier = '\x00'} ])
{
	my ($what, $sql) = @$damage;
	logged("damaged_$what");
	value($node, "$past; $sql", db => "damaged_$what");
	value($node, q{CREATE TABLE t AS SELECT fieldcrypt.encrypt_field('x') AS v}, db => "damaged_$what");
	run_sql($node, q{SELECT fieldcrypt.decrypt_field(v, 'wrong') FROM t}, db => "damaged_$what");
	ok(eventually($node, "SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed' AND leaf IS NULL", '1', db => "damaged_$what"),
		"damaged $what: events are written all the same, without a leaf");
	gives($node, q{SELECT last_problem IS NOT NULL FROM fieldcrypt.audit_status()}, 't', "damaged $what: the status tells why nothing is sealed", db => "damaged_$what");
	like(value($node, $bad, db => "damaged_$what"), qr/critical/, "damaged $what: verification finds it");
}

# A leaf number that no tree reaches.
{
	logged('highest');
	value($node, "$past; INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid, leaf) VALUES (12345, now(), 'key_destroyed', 'mallory', 'mallory', 1, 9223372036854775807)", db => 'highest');
	like(value($node, $bad, db => 'highest'), qr/critical/, 'a row with the highest leaf number there is is found');
}

# An older dump of the database, restored over it.
{
	logged('older');
	my $dump = PostgreSQL::Test::Utils::tempdir() . '/older.dump';
	dump_database($node, 'older', $dump, '-Fc');
	value($node, q{SELECT fieldcrypt.create_key('newer ' || i) FROM generate_series(1, 10) AS i}, db => 'older');
	settled('older');
	no_worker('older');
	is(restore_database($node, 'older', $dump, '--clean', '--if-exists', '-e', options => '-c fieldcrypt.allow_drop=on -c client_min_messages=warning')->{err}, '', 'an older dump is restored over its database');
	value($node, q{SELECT fieldcrypt.create_key('after the restore')}, db => 'older');
	ok(settled('older'), '  and the log goes on');
	like(value($node, $bad, db => 'older'), qr/critical tail_cut.*warning fork/, '  verification says that it goes on from an older state');
	value($node, q{SELECT fieldcrypt.acknowledge_audit_fork('restored on purpose')}, db => 'older');
	settled('older');
	unlike(value($node, $bad, db => 'older'), qr/critical|fork/, '  until somebody says why');
}

# A trigger of the owner's that takes rows away.
{
	logged('hushed');
	value($node, <<'SQL', db => 'hushed');
CREATE FUNCTION public.hush() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER hush BEFORE INSERT ON fieldcrypt.audit_log FOR EACH ROW EXECUTE FUNCTION public.hush();
SQL
	refused($node, q{SELECT fieldcrypt.create_key('unseen')}, 'KF012', qr/did not take a row/, 'what the log does not take is not done', db => 'hushed');
}

# A transaction that sees the log as it was.
{
	logged('snapshot');
	my $session = session($node, db => 'snapshot');
	$session->run('BEGIN ISOLATION LEVEL REPEATABLE READ');
	$session->gives($bad, '', 'REPEATABLE READ: verified');
	value($node, q{SELECT fieldcrypt.create_key('later ' || i) FROM generate_series(1, 10) AS i}, db => 'snapshot');
	settled('snapshot');
	$session->gives($bad, '', 'REPEATABLE READ: what was sealed since is not taken for cut off');
	$session->refused(q{SELECT fieldcrypt.acknowledge_audit_fork('x')}, '25001', 'REPEATABLE READ: no origin begins where the newest rows are not seen');
	$session->run('ROLLBACK');
	$session->close;
	gives($node, $bad, '', 'REPEATABLE READ: afterwards all is well', db => 'snapshot');
}

# Two crashes before anybody can write the gap.
{
	logged('crashed');
	value($node, q{CREATE TABLE t AS SELECT fieldcrypt.encrypt_field('x') AS v}, db => 'crashed');
	value($node, "BEGIN; LOCK TABLE fieldcrypt.audit_log IN ACCESS EXCLUSIVE MODE; SELECT pg_advisory_xact_lock(1); SELECT txid_current(); PREPARE TRANSACTION 'locked'", db => 'crashed');
	run_sql($node, q{SELECT fieldcrypt.decrypt_field(v, 'wrong') FROM t}, db => 'crashed');
	foreach my $crash (1, 2)
	{
		my $victim = session($node);
		crash($node, $victim->server_process) or die 'the server did not come back';
		eval { $victim->close };
		Time::HiRes::sleep(1);
	}
	value($node, "ROLLBACK PREPARED 'locked'", db => 'crashed');
	ok(eventually($node, q{SELECT sum(value_count) >= 1 FROM fieldcrypt.audit_log WHERE event = 'audit_gap'}, 't', db => 'crashed'),
		'the gap of a crash is told of after a second crash');
}

$node->stop('fast');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP/, 'no panic');
done_testing();

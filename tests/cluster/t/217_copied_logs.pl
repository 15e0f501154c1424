# A log is copied in each state in which its tables can be committed: no copy, and no slow transaction, makes an
# accusation of it.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes;

# Ten minutes: an origin gets its first key, and a leaf its checkpoint, when a test lets it.
my @slow = ('fieldcrypt.audit_seal_interval' => '10min');
my @quick = ('fieldcrypt.audit_seal_interval' => '200ms');
my $node = new_cluster('copied', init => { allows_streaming => 1 }, conf => <<"CONF");
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_worker_linger = 200
fieldcrypt.audit_seal_interval = 200
fieldcrypt.audit_queue_databases = 200
max_prepared_transactions = 10
max_worker_processes = 30
CONF
my $folder = PostgreSQL::Test::Utils::tempdir();

my $bad = q{SELECT coalesce(string_agg(DISTINCT status || ' ' || finding, ', ' ORDER BY status || ' ' || finding), '') FROM fieldcrypt.verify_audit_log() WHERE status <> 'ok' AND finding <> 'summary'};

sub all_findings
{
	my ($on, $db) = @_;
	return diag value($on, q{SELECT string_agg(concat_ws(' | ', status, finding, leaf, log_id, detail), E'\n') FROM fieldcrypt.verify_audit_log()}, db => $db);
}

sub sealed
{
	my ($on, $db) = @_;
	return eventually($on, <<'SQL', 't', db => $db);
SELECT count(*) FILTER (WHERE leaf IS NULL) = 0 AND max(leaf) + 1 = (SELECT max(size) FROM fieldcrypt.audit_checkpoints) FROM fieldcrypt.audit_log
SQL
}

sub no_worker
{
	my ($on, $db) = @_;
	return eventually($on, "SELECT count(*) FROM pg_stat_activity WHERE datname = '$db' AND pid <> pg_backend_pid()", '0');
}

# A test: a log of another place is accused of nothing, is gone on with when it is used, and then somebody's word
# is all that it wants.
sub good_copy
{
	my ($on, $db, $name, $is_crash) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	# A copy of a copy has a fork of its own already.
	my $before = $name =~ /copied/ ? 'warning fork' : '';
	gives($on, $bad, $before, "$name: before it is used nothing is wrong", db => $db) or all_findings($on, $db);
	value($on, q{SELECT fieldcrypt.create_key('made in the copy')}, db => $db);
	ok(sealed($on, $db), "$name: it is gone on with") or diag value($on, 'SELECT last_problem FROM fieldcrypt.audit_status()', db => $db);
	like(value($on, $bad, db => $db), $is_crash ? qr/^(|warning fork, )(|warning unclean_handover)$/ : qr/^(|warning fork)$/, "$name: and asks for a word at most") or all_findings($on, $db);
	value($on, q{SELECT fieldcrypt.acknowledge_audit_fork('a test')}, db => $db);
	ok(sealed($on, $db), "$name: sealed with the word");
	if ($is_crash && value($on, $bad, db => $db) ne '')
	{
		value($on, q{SELECT fieldcrypt.acknowledge_audit_findings('started from a copy of the files')}, db => $db);
		ok(sealed($on, $db), "$name: sealed with the word on the crash");
	}
	return gives($on, $bad, '', "$name: which makes it good", db => $db) || all_findings($on, $db);
}

my $first_key = q{SELECT fieldcrypt.create_key('first')};
my $unsigned = 'SELECT (SELECT count(*) FROM fieldcrypt.audit_origins) - (SELECT count(*) FROM fieldcrypt.audit_signers) > 0 AND count(*) > 0 FROM fieldcrypt.audit_log WHERE leaf IS NOT NULL';
my $uncovered = 'SELECT max(leaf) >= (SELECT max(size) FROM fieldcrypt.audit_checkpoints) FROM fieldcrypt.audit_log';

# By name: how a log comes into that state. Signed is none that says so until the interval is long.
my @states = qw(empty unsigned signed uncovered waiting copied);
{
	create_database($node, $_) foreach 'empty', 'signed', 'uncovered', 'before', 'waiting';
	value($node, $first_key, db => $_) foreach qw(signed uncovered before waiting);
	ok(sealed($node, $_), "$_: signed") foreach qw(signed uncovered before waiting);
	configure($node, @slow);

	create_database($node, 'unsigned');
	value($node, $first_key, db => 'unsigned');
	ok(eventually($node, $unsigned, 't', db => 'unsigned'), 'unsigned: an origin, and no key that signs for it');

	value($node, q{SELECT fieldcrypt.create_key('second')}, db => 'uncovered');
	ok(eventually($node, $uncovered, 't', db => 'uncovered'), 'uncovered: leaves without a checkpoint');

	# A row that waits for its leaf: the one who numbers them is kept from it.
	my $holder = session($node, db => 'waiting');
	$holder->run('BEGIN; LOCK TABLE fieldcrypt.audit_checkpoints IN ACCESS EXCLUSIVE MODE');
	value($node, q{SELECT fieldcrypt.create_key('second')}, db => 'waiting');
	gives($node, 'SELECT count(*) > 0 FROM fieldcrypt.audit_log WHERE leaf IS NULL', 't', 'waiting: rows without a leaf', db => 'waiting');
	$holder->close;

	# A copy that has begun its own name, and was copied again before a key signed for that.
	no_worker($node, 'before');
	value($node, 'CREATE DATABASE copied TEMPLATE before');
	value($node, q{SELECT fieldcrypt.create_key('second')}, db => 'copied');
	ok(eventually($node, $unsigned, 't', db => 'copied'), 'copied: a second origin without a key');
}

# Every state, every way to copy it.
my @copies;
foreach my $state (@states)
{
	dump_database($node, $state, "$folder/$state", $state =~ /unsigned|waiting/ ? ('-Fd', '-j', 2) : '-Fc');
	foreach my $way ('wal_log', 'file_copy')
	{
		no_worker($node, $state);
		value($node, "CREATE DATABASE ${state}_$way TEMPLATE $state STRATEGY $way");
		push @copies, "${state}_$way";
	}
}
$node->backup('base');
configure($node, @quick);
foreach my $state (@states)
{
	my $db = "restored_$state";
	value($node, "CREATE DATABASE $db");
	is(restore_database($node, $db, "$folder/$state", '-e')->{err}, '', "$db: restored");
	push @copies, $db;
}
good_copy($node, $_, $_) foreach @copies;

# The whole cluster: a base backup that becomes a primary, and one whose server was killed.
{
	my $promoted = PostgreSQL::Test::Cluster->new('promoted');
	# Without a primary it stays what the backup was.
	$promoted->init_from_backup($node, 'base');
	use_key_file($promoted, key_text(1));
	$promoted->append_conf('postgresql.conf', "fieldcrypt.audit_seal_interval = '200ms'");
	$promoted->set_standby_mode;
	$promoted->start;
	foreach my $state (@states)
	{
		gives($promoted, $bad, $state eq 'copied' ? 'warning fork' : '', "standby: $state is accused of nothing", db => $state) or all_findings($promoted, $state);
	}
	$promoted->promote;
	good_copy($promoted, $_, "promoted: $_") foreach @states;
	no_crash($promoted);
	$promoted->stop;

	my $killed = PostgreSQL::Test::Cluster->new('killed');
	$killed->init_from_backup($node, 'base');
	use_key_file($killed, key_text(1));
	$killed->append_conf('configure.conf', '');
	$killed->append_conf('postgresql.conf', "fieldcrypt.audit_seal_interval = '200ms'");
	$killed->start;
	good_copy($killed, $_, "a copy of the files: $_", 1) foreach @states;
	$killed->stop;
}

no_crash($node);
$node->stop;
done_testing();

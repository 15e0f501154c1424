# The load of the master key is an event of the server, not of every connection: it is recorded once after a start,
# and whenever something about it is new.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('loads', conf => <<'CONF', init => { allows_streaming => 1 });
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_worker_linger = 100
CONF
my $file = $node->basedir . '/master.key';
foreach my $db ('one', 'two')
{
	create_database($node, $db);
	value($node, q{CREATE TABLE t AS SELECT fieldcrypt.encrypt_field('x') AS v}, db => $db);
}

sub uses
{
	my ($db, $times, $on) = @_;
	value($on // $node, 'SELECT fieldcrypt.decrypt_field(v) FROM t', db => $db) foreach 1 .. $times;
	return;
}

# A test: so many rows of loads and failures since the last look.
my %seen;
sub new_rows
{
	my ($db, $loads, $failures, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	# A marker behind them in the queue.
	my $marker = 'marker ' . ++$seen{marker};
	run_sql($node, "SET application_name = '$marker'; SELECT fieldcrypt.decrypt_field(v, 'wrong') FROM t", db => $db);
	eventually($node, "SELECT count(*) > 0 FROM fieldcrypt.audit_log WHERE application = '$marker'", 't', db => $db) or diag 'the marker was not written';
	my $since = $seen{$db} // 0;
	my $found = value($node, "SELECT count(*) FILTER (WHERE event = 'master_key_loaded'), count(*) FILTER (WHERE event = 'master_key_failed') FROM fieldcrypt.audit_log WHERE id > $since", db => $db);
	$seen{$db} = value($node, 'SELECT max(id) FROM fieldcrypt.audit_log', db => $db);
	is($found, "$loads|$failures", $name) or diag value($node, "SELECT string_agg(concat_ws(' ', id, at, event, backend_pid, reason), E'\\n' ORDER BY id) FROM fieldcrypt.audit_log WHERE event LIKE 'master_key%'", db => $db);
	return;
}

uses('one', 20);
uses('two', 5);
new_rows('one', 1, 0, 'twenty connections, one row');
new_rows('two', 1, 0, 'another database, its own row');
uses('one', 20);
new_rows('one', 0, 0, 'and no more');

$node->restart;
uses('one', 10);
new_rows('one', 1, 0, 'after a start of the server');

{
	my $victim = session($node, db => 'one');
	kill 'KILL', $victim->server_process;
	eval { $victim->close };
	$node->poll_query_until('one', 'SELECT true');
	uses('one', 10);
	new_rows('one', 1, 0, 'after a crash');
}

# Another key file: a reload reaches sessions that are there, and new ones read it anyway.
{
	my $old = session($node, db => 'one');
	$old->gives('SELECT fieldcrypt.decrypt_field(v) FROM t', 'x', 'a session that has the old keys');
	write_key_file($file, key_text(1), key_text(2));
	$node->reload;
	uses('one', 10);
	$old->gives('SELECT fieldcrypt.decrypt_field(v) FROM t', 'x', 'and reads the new ones');
	new_rows('one', 1, 0, 'another key in the file');
	write_key_file($file, key_text(1));
	$node->reload;
	uses('one', 10);
	new_rows('one', 1, 0, 'one fewer');
	$old->close;
}

# The key is away for a while.
{
	rename $file, "$file.away" or die;
	$node->reload;
	run_sql($node, 'SELECT fieldcrypt.decrypt_field(v) FROM t', db => 'one') foreach 1 .. 3;
	rename "$file.away", $file or die;
	$node->reload;
	uses('one', 10);
	# Each session that finds none says so.
	new_rows('one', 1, 3, 'failures, each, and that it is over');
}

# Every session, by a setting that is not anybody's.
{
	value($node, 'CREATE ROLE app LOGIN');
	refused($node, 'SET fieldcrypt.audit_master_key_loads = sessions', '42501', 'not by a user', user => 'app');
	value($node, 'ALTER DATABASE one SET fieldcrypt.audit_master_key_loads = sessions');
	uses('one', 4);
	# The marker's session is one, too.
	new_rows('one', 5, 0, 'every session, if that is asked for');
	value($node, 'ALTER DATABASE one RESET fieldcrypt.audit_master_key_loads');
	uses('one', 4);
	new_rows('one', 0, 0, 'and no more');
}

# A command as the source.
{
	$node->append_conf('postgresql.conf', "fieldcrypt.master_key_file = ''\nfieldcrypt.master_key_command = 'cat $file'");
	$node->restart;
	uses('one', 5);
	new_rows('one', 1, 0, 'a command: once, too');
	gives($node, q{SELECT reason LIKE 'fieldcrypt.master_key_command: %' FROM fieldcrypt.audit_log WHERE event = 'master_key_loaded' ORDER BY id DESC LIMIT 1}, 't', 'and says that it is one', db => 'one');
}

# A standby tells its server log, once; promoted it tells the log.
{
	$node->backup('base');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	$standby->start;
	$node->wait_for_catchup($standby);
	uses('one', 5, $standby);
	my $lines = () = slurp_file($standby->logfile) =~ /fieldcrypt audit: .*master_key_loaded/g;
	is($lines, 1, 'a standby: one line in the server log');
	$standby->promote;
	my $before = value($standby, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'master_key_loaded'}, db => 'one');
	uses('one', 5, $standby);
	ok(eventually($standby, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'master_key_loaded'}, $before + 1, db => 'one'), 'promoted: one row');
	$standby->stop;
}

unlike(slurp_file($node->logfile), qr/PANIC|TRAP|XX000/, 'no panic');
$node->stop;
done_testing();

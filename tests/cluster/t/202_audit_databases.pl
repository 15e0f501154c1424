# The workers of the audit log stand in nobody's way: CREATE, DROP and ALTER DATABASE, DROP EXTENSION, several
# databases at once, a server without room for workers.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_queue_databases = 3
fieldcrypt.audit_worker_linger = '60s'
CONF
my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_fieldcrypt audit worker'};
my $failed = q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'};

sub prepare
{
	my ($db) = @_;
	value($node, q{CREATE TABLE kept AS SELECT fieldcrypt.encrypt_field('kept', 'place') AS value}, db => $db);
	return;
}

sub fail_in
{
	my ($db, $times) = @_;
	value($node, <<"SQL", db => $db);
DO \$\$ BEGIN FOR i IN 1 .. $times LOOP
    BEGIN PERFORM fieldcrypt.decrypt_field(value) FROM kept; EXCEPTION WHEN OTHERS THEN NULL; END;
END LOOP; END \$\$
SQL
	return;
}

# Databases come and go under a busy worker
{
	create_database($node, 'short');
	prepare('short');
	fail_in('short', 5);
	ok(eventually($node, $failed, 5, db => 'short'), 'a worker writes in a database');
	ok(eventually($node, "$workers AND datname = 'short'", 1), 'and is still there');
	my $began = time;
	gives($node, 'CREATE DATABASE copied TEMPLATE short', '', 'it makes way for a copy of the database');
	fail_in('short', 5);
	ok(eventually($node, $failed, 10, db => 'short'), 'and comes back');
	gives($node, 'ALTER DATABASE short RENAME TO renamed', '', 'it makes way for another name');
	fail_in('renamed', 5);
	ok(eventually($node, $failed, 15, db => 'renamed'), 'and comes back');
	fail_in('renamed', 1000);
	gives($node, 'DROP DATABASE renamed', '', 'and for DROP DATABASE');
	cmp_ok(time - $began, '<', 40, 'without long waits');
	foreach my $round (1 .. 5)
	{
		create_database($node, 'brief');
		prepare('brief');
		fail_in('brief', 20);
		gives($node, 'DROP DATABASE brief', '', "made and dropped again, round $round");
	}
	ok(eventually($node, $workers . q{ AND datname IS NULL}, 0), 'no worker is left without a database');
	gives($node, 'DROP DATABASE copied', '', 'the copy goes too');
}

# A statement that is refused sends nobody away for ever
{
	prepare('postgres');
	refused($node, 'DROP DATABASE nowhere', '3D000', 'a database that is not there can\'t be dropped');
	refused($node, 'BEGIN; DROP DATABASE template1', '25001', 'nor one in a transaction');
	fail_in('postgres', 3);
	ok(eventually($node, $failed, 3), 'events are written after that');
}

# What an update of the extension does, step by step, in a transaction that stays open beside a busy worker
{
	my $busy = session($node);
	my $update = session($node);
	my $worker = q{SELECT worker_pid FROM fieldcrypt.audit_status()};
	$busy->value(q{SET application_name = 'busy'});
	$busy->send(<<'SQL');
DO $$ BEGIN FOR i IN 1 .. 400 LOOP
    BEGIN PERFORM fieldcrypt.decrypt_field(value) FROM kept; EXCEPTION WHEN OTHERS THEN NULL; END;
    PERFORM pg_sleep(0.005);
END LOOP; END $$;
SQL
	ok(eventually($node, "SELECT (count(*) > 0)::int FROM fieldcrypt.audit_log WHERE application = 'busy'", 1), 'a worker is busy');
	my $busy_worker = value($node, $worker);
	$update->value(q{BEGIN; SET LOCAL lock_timeout = '20s'});
	$update->gives("ALTER EXTENSION pg_fieldcrypt DROP $_; ALTER EXTENSION pg_fieldcrypt ADD $_", '', "an update replaces $_ beside it")
	  foreach 'FUNCTION fieldcrypt.audit_status()', 'TABLE fieldcrypt.audit_origins';
	my $before = value($node, $failed);
	fail_in('postgres', 3);
	ok(eventually($node, "SELECT (count(*) >= $before + 3)::int FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'", 1), 'meanwhile events are written');
	$update->gives('ALTER TABLE fieldcrypt.audit_log ADD COLUMN of_the_next_version text', '', 'it changes the table that the worker writes to');
	fail_in('postgres', 3);
	$update->gives('ALTER TABLE fieldcrypt.audit_log DROP COLUMN of_the_next_version; COMMIT', '', 'and commits');
	ok(eventually($node, $failed, 3 + 400 + 6), 'all events are written, those of meanwhile too') or diag value($node, $failed);
	gives($node, $worker, $busy_worker, 'by the worker that was there before');
	$_->close foreach $busy, $update;
}

# The extension goes while its worker runs
{
	create_database($node, 'without');
	prepare('without');
	fail_in('without', 10);
	ok(eventually($node, $failed, 10, db => 'without'), 'a worker runs');
	gives($node, 'DROP TABLE kept; SET fieldcrypt.allow_drop = on; DROP EXTENSION pg_fieldcrypt CASCADE', '', 'the extension is dropped under it', db => 'without');
	ok(eventually($node, "$workers AND datname = 'without'", 0), 'the worker leaves') or diag(value($node, 'SELECT * FROM pg_stat_activity'));
	gives($node, 'CREATE EXTENSION pg_fieldcrypt', '', 'it is made again', db => 'without');
	prepare('without');
	fail_in('without', 2);
	ok(eventually($node, $failed, 2, db => 'without'), 'and recorded again');
	gives($node, 'DROP DATABASE without', '', 'and dropped');
}

# More databases than queues: no event is lost silently
{
	$node->append_conf('postgresql.conf', "fieldcrypt.audit_worker_linger = '200ms'");
	$node->reload;
	my @many = map { "many_$_" } 1 .. 5;
	foreach my $db (@many)
	{
		create_database($node, $db);
		prepare($db);
	}
	foreach my $round (1 .. 3)
	{
		fail_in($_, 1) foreach @many;
	}
	my ($written, $logged) = (0, 0);
	foreach (1 .. 300)
	{
		$written = 0;
		$written += value($node, $failed, db => $_) foreach @many;
		$logged = () = slurp_file($node->logfile) =~ /fieldcrypt audit: .*"event":"decrypt_failed".*"remark":"overflow"/g;
		last if $written + $logged >= 15;
		Time::HiRes::usleep(200_000);
	}
	is($written + $logged, 15, "each of 15 events is in its database's log ($written) or in the server log ($logged)");
}

# No room for a worker: events wait
{
	$node->append_conf('postgresql.conf', 'max_worker_processes = 1');
	$node->restart;
	like(value($node, 'SELECT last_problem FROM fieldcrypt.audit_status()'), qr/launcher.*max_worker_processes/, 'without room for the launcher the status says so');
	$node->append_conf('postgresql.conf', "max_worker_processes = 2\nfieldcrypt.audit_worker_linger = '200ms'");
	$node->restart;
	my $before = value($node, $failed);
	fail_in('postgres', 4);
	ok(eventually($node, q{SELECT (last_problem LIKE '%max_worker_processes%')::int FROM fieldcrypt.audit_status()}, 1), 'the status says that no worker can be started');
	is(value($node, $failed), $before, 'nothing is written');
	cmp_ok(value($node, 'SELECT ring_used FROM fieldcrypt.audit_status()'), '>', 0, 'the events wait');
	$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
	$node->restart;
	my $logged = () = slurp_file($node->logfile) =~ /fieldcrypt audit: .*"event":"decrypt_failed".*"remark":"not written at the end of the server"/g;
	is($logged, 4, 'a server that stops meanwhile logs them');
}

no_crash($node);
done_testing();

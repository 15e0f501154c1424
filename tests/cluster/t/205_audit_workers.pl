# What could leave the workers of the audit log behind, or the log without them: errors in the hook that sends
# them away, a database that is made while rows wait for a checkpoint, a postmaster that is gone.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_worker_linger = '10min'
fieldcrypt.audit_seal_interval = '8s'
CONF
my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_fieldcrypt audit worker'};
my $uncovered = q{SELECT (SELECT count(*) FROM fieldcrypt.audit_log) - (SELECT coalesce(max(size), 0) FROM fieldcrypt.audit_checkpoints)};

value($node, q{CREATE TABLE kept AS SELECT fieldcrypt.encrypt_field('kept', 'place') AS value});
ok(eventually($node, $uncovered, 0), 'a checkpoint covers the first rows');

# Rows that wait for their checkpoint when the worker is sent away
{
	# A slow machine may come to look after the checkpoint: then another row is made.
	my $is_waiting = 0;
	foreach my $attempt (1 .. 10)
	{
		value($node, "SELECT fieldcrypt.encrypt_field('other', 'place', 'clinic $attempt')");
		$is_waiting = eventually($node, "SELECT (count(*) FILTER (WHERE leaf IS NULL) = 0 OR ($uncovered) = 0)::int FROM fieldcrypt.audit_log", 1)
		  && value($node, $uncovered) > 0;
		last if $is_waiting;
	}
	ok($is_waiting, 'a row is sealed, and no checkpoint covers it yet');
	value($node, 'CREATE DATABASE other');
	ok(eventually($node, $uncovered, 0), 'a worker comes back for it, though nothing else happens');
}

# An error where the hook looks a database up
{
	my $session = session($node);
	my $locker = session($node);
	$session->gives(q{SET statement_timeout = '500ms'}, '', 'a session with little time');
	$locker->gives('BEGIN; LOCK TABLE pg_catalog.pg_database IN ACCESS EXCLUSIVE MODE', '', 'another that holds the list of databases');
	$session->refused('DROP DATABASE other', '57014', qr/statement timeout/, 'DROP DATABASE is cancelled');
	$locker->gives('ROLLBACK', '', 'the list is free');
	$session->gives('RESET statement_timeout', '', 'the session lives');
	$session->gives('DROP DATABASE IF EXISTS nowhere', '', 'a database that is not there may be dropped');
	$session->gives('DROP DATABASE other', '', 'and one that is');
	refused($node, q{SELECT fieldcrypt.decrypt_field(value) FROM kept}, 'KF002', 'a failure');
	ok(eventually($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'}, 1), 'is recorded as ever');
}

no_crash($node);

# The postmaster is killed: nobody of ours keeps its memory
{
	ok(eventually($node, $workers, 1), 'a worker runs');
	my @processes = map { $_->[0] } processes(command => 'pg_fieldcrypt audit', parent => postmaster($node));
	is(scalar @processes, 2, 'and the launcher');
	$node->kill9;
	my $until = time + 60;
	Time::HiRes::usleep(100_000) while time < $until && kill(0, @processes);
	is(kill(0, @processes), 0, 'both end soon after the postmaster');
	$node->start;
	refused($node, q{SELECT fieldcrypt.decrypt_field(value) FROM kept}, 'KF002', 'another failure');
	ok(eventually($node, $uncovered, 0), 'and the log goes on');
}

done_testing();

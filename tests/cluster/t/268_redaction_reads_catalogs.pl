# The names that a line of the log is compared with are read beside somebody's statement, which must not fail by it: not by its own
# timeout, not by an error in a catalog. What can't be read hides everything.

use strict;
use warnings;

use FieldcryptTest;
use LogCanary;
use PostgreSQL::Test::Utils;
use ServerLog;
use Test::More;
use Time::HiRes qw(time);

my $node = new_cluster('primary', conf => everything_logged() . "log_statement = none\nlog_min_duration_statement = -1\n");
value($node, <<'SQL');
CREATE TABLE patients (id int, ssn fieldcrypt.encrypted);
CREATE TABLE plain (id int PRIMARY KEY, t text);
-- Sources that take long to look through.
DO $$
BEGIN
    FOR i IN 1..3000 LOOP
        EXECUTE format('CREATE FUNCTION slow_%s(a text) RETURNS text LANGUAGE plpgsql AS %L', i,
            'BEGIN RETURN a' || repeat(' || upper(a) || lower(''some words'')', 60) || '; END');
    END LOOP;
END $$;
SQL
my $log = LogCanary->new($node);

# How long reading takes, as one statement more than usual.
my $session = session($node);
$session->value('SELECT 1');
$session->run('SELECT 1 / 0');
my $begun = time;
$session->value('SELECT 1');
my $reading = 1000 * (time - $begun);
note "reading takes $reading ms";
cmp_ok($reading, '>', 20, 'reading takes its time');

# Each new function makes the names be read again: statements with a timeout that is shorter come to their end.
my $timeout = int($reading / 3) + 1;
$session->value("SET statement_timeout = '${timeout}ms'");
my $failed = 0;
my @failures;
foreach my $round (1 .. 3)
{
	value($node, "CREATE FUNCTION another_$round() RETURNS int LANGUAGE sql AS 'SELECT 1'");
	foreach (1 .. 5)
	{
		my $result = $session->run(q{SELECT 'x', 1});
		push @failures, $result->{err} if @{ $result->{sqlstates} };
	}
}
cmp_ok(scalar @failures, '<=', 2, 'none fails by what is read, in a session that reads again and again') or diag @failures;
is(join("\n", grep { /DETAIL|backtrace|\.rs/ } @failures), '', 'and nobody is shown the inside of it');
$session->run('RESET statement_timeout');
$log->hides(sub { $session->run(qq{SELECT '$_[0]'::int FROM patients}) }, 'the session knows what to hide', qr/22P02/);
$log->shows(sub { $session->run(qq{SELECT '$_[0]'::int FROM plain}) }, 'and what not');

# The timeout is there all the same, and a cancel.
value($node, "CREATE FUNCTION one_more() RETURNS int LANGUAGE sql AS 'SELECT 1'");
$session->value("SET statement_timeout = '300ms'");
$session->refused('SELECT pg_sleep(60)', '57014', qr/statement timeout/, 'the timeout of a statement counts on after the names were read');
$session->value('RESET statement_timeout');
my $process = $session->server_process;
value($node, "CREATE FUNCTION one_more_still() RETURNS int LANGUAGE sql AS 'SELECT 1'");
$session->send('SELECT pg_sleep(600)');
$node->poll_query_until('postgres', "SELECT pg_cancel_backend($process) FROM pg_stat_activity WHERE pid = $process AND state = 'active' AND wait_event = 'PgSleep'");
$node->poll_query_until('postgres', "SELECT state = 'idle' FROM pg_stat_activity WHERE pid = $process") or die;
$session->run('SELECT 1');
$session->gives('SELECT 2', '2', 'a statement can be cancelled after the names were read');

# Reading leaves no trace in the transaction that it happens in.
foreach my $begin ('BEGIN', 'BEGIN READ ONLY', 'BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE', 'BEGIN; SAVEPOINT a; SAVEPOINT b')
{
	value($node, "DROP FUNCTION IF EXISTS appears(); CREATE FUNCTION appears() RETURNS int LANGUAGE sql AS 'SELECT 1'");
	$session->value($begin);
	$session->gives('SELECT txid_current_if_assigned() IS NULL', 't', "$begin: no transaction id");
	value($node, "DROP FUNCTION appears()");
	$session->gives('SELECT count(*) FROM patients', '0', "$begin: the next statement");
	$session->gives('SELECT current_setting($$transaction_read_only$$) = $$on$$ OR txid_current() > 0', 't', "$begin: and the one after");
	$session->value('COMMIT');
}
# Statements that must come first in a transaction, or be alone in one.
value($node, 'CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN COMMIT; PERFORM 1; ROLLBACK; END $$');
$session->gives('SELECT pg_backend_pid() > 0', 't', 'before that');
foreach my $alone ('VACUUM plain', 'CREATE INDEX CONCURRENTLY alone ON plain (t)', 'DROP INDEX CONCURRENTLY alone', 'CREATE DATABASE alone', 'DROP DATABASE alone', 'CALL commits()', 'ALTER SYSTEM RESET work_mem',
	'BEGIN; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY; SELECT 1; COMMIT')
{
	value($node, "DROP FUNCTION IF EXISTS appears(); CREATE FUNCTION appears() RETURNS int LANGUAGE sql AS 'SELECT 1'");
	$session->gives($alone, qr/^1?$/, "$alone, while names are to be read");
}
my $snapshot = session($node);
my $exported = $snapshot->value('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_export_snapshot()');
$session->value('BEGIN ISOLATION LEVEL REPEATABLE READ');
value($node, "DROP FUNCTION IF EXISTS appears(); CREATE FUNCTION appears() RETURNS int LANGUAGE sql AS 'SELECT 1'");
$session->gives("SET TRANSACTION SNAPSHOT '$exported'", '', 'SET TRANSACTION SNAPSHOT, while names are to be read');
$session->value('COMMIT');
$snapshot->close;
value($node, "CREATE FUNCTION makes_functions() RETURNS int LANGUAGE plpgsql AS \$f\$ DECLARE n int := 0; BEGIN FOR i IN 1..3 LOOP BEGIN
	EXECUTE format('CREATE FUNCTION pg_temp.of_it_%s() RETURNS int LANGUAGE sql AS ''SELECT 1''', i); n := n + i; PERFORM 1 / (2 - i); EXCEPTION WHEN division_by_zero THEN n := n + 100; END; END LOOP; RETURN n; END \$f\$");
$session->gives('SELECT makes_functions()', '106', 'blocks that catch errors');
value($node, 'INSERT INTO plain SELECT i, i FROM generate_series(1, 2000) AS i; ANALYZE plain');
$session->value(force_parallel() . 'SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0');
value($node, "CREATE FUNCTION the_last() RETURNS int LANGUAGE sql AS 'SELECT 1'");
$session->gives('SELECT sum(id) FROM plain', '2001000', 'a parallel plan');
$session->close;

# An error in a catalog that nothing else reads: everything is hidden, and all goes on.
create_database($node, 'damaged');
value($node, 'CREATE TABLE plain (id int PRIMARY KEY, t text); CREATE TABLE patients (id int, ssn fieldcrypt.encrypted)', db => 'damaged');
my $file = $node->data_dir . '/' . value($node, q{SELECT pg_relation_filepath('pg_depend_reference_index')}, db => 'damaged');
$node->stop;
open my $index, '+<:raw', $file or die "$file: $!";
print $index "\0" x 8192;
close $index;
$node->start;
foreach my $mode ('none', 'all')
{
	my $one = session($node, db => 'damaged', env => { PGOPTIONS => "-c log_statement=$mode" });
	$one->refused('SELECT 1 / 0', '22012', "log_statement $mode: an error");
	foreach my $round (1 .. 3)
	{
		$one->gives("SELECT $round", $round, "log_statement $mode: a statement, $round");
		$one->gives("BEGIN; INSERT INTO plain VALUES ($round, 'x'); SELECT count(*) FROM plain; ROLLBACK", '1', "log_statement $mode: a transaction, $round");
		$log->hides(sub { $one->run("SELECT '$_[0]'::int FROM plain") }, "log_statement $mode: everything is hidden, $round", qr/22P02/);
	}
	# What makes others look again.
	value($node, 'ANALYZE plain', db => 'damaged');
	$one->gives('SELECT 4', '4', "log_statement $mode: after a change");
	$one->close;
}
my $all = slurp_file(log_files($node)->{stderr});
like($all, qr/LOG:  00000: the names for fieldcrypt\.redact_logs can't be read \(SQLSTATE XX00[12]\): all statements are masked/, 'the log says why');

# An error in a session that has read them before, and reads again where its statement's line is written to the log: that
# statement fails by it, at the most. The session goes on, hides everything, and fails by it no more, whatever changes.
create_database($node, 'spoilt');
value($node, 'CREATE TABLE plain (id int PRIMARY KEY, t text); CREATE TABLE patients (id int, ssn fieldcrypt.encrypted)', db => 'spoilt');
foreach my $mode ('none', 'all')
{
	my $one = session($node, db => 'spoilt', env => { PGOPTIONS => "-c log_statement=$mode" });
	my $healthy = session($node, db => 'spoilt');
	$_->value('SELECT 1') foreach $one, $healthy;
	$one->refused('SELECT 1 / 0', '22012', "an index is missing, log_statement $mode: an error before that");
	$one->value('SELECT 2');
	$log->shows(sub { $one->run("SELECT '$_[0]'::int FROM plain") }, "log_statement $mode: nothing is hidden before");
	value($node, q{SET allow_system_table_mods = on; CREATE TABLE IF NOT EXISTS kept AS SELECT * FROM pg_class WHERE relname = 'pg_depend_reference_index';
		DELETE FROM pg_class WHERE relname = 'pg_depend_reference_index'}, db => 'spoilt');
	my $failed = 0;
	foreach my $round (1 .. 5)
	{
		# What makes all sessions look again.
		$healthy->value("SET allow_system_table_mods = on; UPDATE pg_proc SET procost = $round WHERE proname = 'now'");
		foreach my $sql ("SELECT $round", "BEGIN; SELECT $round; COMMIT", "BEGIN; ROLLBACK; SELECT $round")
		{
			my $result = $one->run($sql);
			if (@{ $result->{sqlstates} }) { $failed++; $one->run('ROLLBACK') }
			else { is($result->{out}, $round, "log_statement $mode: $sql") }
		}
		$log->hides(sub { $one->run("SELECT '$_[0]'::int FROM plain") }, "log_statement $mode: everything is hidden, $round", qr/22P02/);
	}
	cmp_ok($failed, '<=', $mode eq 'all' ? 1 : 0, "log_statement $mode: statements that fail by it");
	# What is mended is read again.
	$healthy->value(q{SET allow_system_table_mods = on; INSERT INTO pg_class SELECT * FROM kept});
	$one->value('SELECT 3') foreach 1 .. 2;
	value($node, "CREATE OR REPLACE FUNCTION mended() RETURNS int LANGUAGE sql AS 'SELECT 1'", db => 'spoilt');
	$one->run('SELECT 4') foreach 1 .. 2;
	$log->shows(sub { $one->run("SELECT '$_[0]'::int FROM plain") }, "log_statement $mode: nothing is hidden after it is mended");
	$_->close foreach $one, $healthy;
}

no_crash($node);
$node->stop;
done_testing();

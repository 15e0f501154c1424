# Whatever dies: the server comes back, nothing is written twice, and what could not be written is in the
# server log.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nlog_line_prefix = '%p '\n");
value($node, <<'SQL');
CREATE TABLE kept AS SELECT fieldcrypt.encrypt_field('kept', 'place') AS value;
CREATE SEQUENCE tried;
-- Fails to decrypt so many times; each time has a number, which is the application's name.
CREATE PROCEDURE fail(times int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. times LOOP
        PERFORM set_config('application_name', 'try ' || nextval('tried'), false);
        BEGIN
            PERFORM fieldcrypt.decrypt_field(value) FROM kept;
        EXCEPTION WHEN OTHERS THEN NULL;
        END;
        COMMIT;
    END LOOP;
END $$;
SQL

my $events = q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'};
my $in_log = 0;

# How often each number is in the table and in the server's log; a number in the log may say that it is in
# doubt, which the table may have too.
sub accounts
{
	my ($name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	eventually($node, 'SELECT ring_used FROM fieldcrypt.audit_status()', '0') or diag('the queue is not empty');
	my (%table, %log, %doubt);
	$table{$_}++ foreach split /\n/, value($node, q{SELECT substr(application, 5) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed' AND application LIKE 'try %'});
	foreach my $line (grep { /fieldcrypt audit: / } split /\n/, slurp_file($node->logfile))
	{
		my ($number) = $line =~ /"application":"try (\d+)"/ or next;
		next if $line !~ /"event":"decrypt_failed"/;
		$line =~ /may be in audit_log already/ ? $doubt{$number}++ : $log{$number}++;
	}
	my $last = value($node, 'SELECT last_value FROM tried');
	my @twice = grep { ($table{$_} // 0) + ($log{$_} // 0) > 1 } 1 .. $last;
	is("@twice", '', "$name: nothing is recorded twice");
	# The last number of a session that was killed may have been spent with nothing done yet.
	my @lost = grep { !$table{$_} && !$log{$_} && !$doubt{$_} } 1 .. $last;
	my $sessions = $options{sessions} // 0;
	cmp_ok(scalar @lost, '<=', $sessions, "$name: nothing is lost silently") or diag("lost: @lost");
	$in_log = keys(%log) + keys %doubt;
	note(keys(%table) . ' in the table, ' . keys(%log) . ' in the server log, ' . keys(%doubt) . ' in doubt');
	return;
}

sub busy
{
	my ($sessions) = @_;
	my @busy = map { session($node) } 1 .. $sessions;
	$_->send('CALL fail(100000);') foreach @busy;
	eventually($node, 'SELECT (last_value > 50)::int FROM tried', 1);
	return @busy;
}

sub worker { return value($node, 'SELECT coalesce(worker_pid, 0) FROM fieldcrypt.audit_status()') }

sub restarted
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach (1 .. 300)
	{
		return pass("$name: the server comes back") if run_sql($node, 'SELECT 1')->{code} == 0;
		Time::HiRes::usleep(100_000);
	}
	return fail("$name: the server comes back");
}

foreach my $round (1 .. 4)
{
	my @busy = busy(3);
	eventually($node, 'SELECT (worker_pid IS NOT NULL)::int FROM fieldcrypt.audit_status()', 1);
	kill 'KILL', worker();
	Time::HiRes::usleep(300_000);
	restarted("kill -9 of the worker, round $round");
	$_->close foreach @busy;
	accounts("kill -9 of the worker, round $round", sessions => 3 * $round);
}

my $killed = 12;
foreach my $round (1 .. 4)
{
	my @busy = busy(3);
	Time::HiRes::usleep(rand 200_000);
	kill 'KILL', $busy[0]->server_process;
	Time::HiRes::usleep(300_000);
	restarted("kill -9 of a busy session, round $round");
	$_->close foreach @busy;
	$killed += 3;
	accounts("kill -9 of a busy session, round $round", sessions => $killed);
}
cmp_ok($in_log, '>', 0, 'some events were in the queue at a crash, and are in the server log');
is(value($node, q{SELECT (sum(value_count) > 0)::int FROM fieldcrypt.audit_log WHERE event = 'audit_gap' AND reason LIKE '%server log%'}), 1, 'the log tells how many');

# A worker that is only terminated, or an error in it, ends nothing.
{
	my @busy = busy(2);
	foreach (1 .. 5)
	{
		my $worker = worker();
		value($node, "SELECT pg_terminate_backend($worker)") if $worker;
		Time::HiRes::usleep(400_000);
	}
	value($node, q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'CALL fail%' AND pid <> pg_backend_pid()});
	$_->close foreach @busy;
	$killed += 2;
	accounts('a worker that is terminated again and again', sessions => $killed);
}

foreach my $mode ('immediate', 'fast')
{
	my @busy = busy(3);
	$node->stop($mode);
	$_->close foreach @busy;
	$node->start;
	$killed += 3;
	accounts("a $mode stop", sessions => $killed);
}

my @bad = grep { /PANIC|XX000|unreachable|panicked/ } split /\n/, slurp_file($node->logfile);
is("@bad", '', 'no internal error');
done_testing();

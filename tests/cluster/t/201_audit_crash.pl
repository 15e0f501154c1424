# Whatever dies: the server comes back, nothing is written twice, and what could not be written is in the
# server log.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nlog_line_prefix = '%p '\nfieldcrypt.redact_logs = off\n");
value($node, <<'SQL');
CREATE TABLE kept AS SELECT fieldcrypt.encrypt_field('kept', 'place') AS value;
-- Fails to decrypt again and again. Each time has a number, which is the application's name, and which the
-- server log knows before: that is written at once.
CREATE PROCEDURE fail(session text) LANGUAGE plpgsql AS $$
DECLARE
    number text;
BEGIN
    FOR i IN 1 .. 1000000 LOOP
        number := format('%s.%s', session, i);
        PERFORM set_config('application_name', number, false);
        RAISE LOG 'about to try %', number;
        BEGIN
            PERFORM fieldcrypt.decrypt_field(value) FROM kept;
        EXCEPTION WHEN OTHERS THEN NULL;
        END;
        IF i % 20 = 0 THEN
            PERFORM pg_sleep(0.005);
        END IF;
        COMMIT;
    END LOOP;
END $$;
SQL

my $in_log = 0;
my $sessions = 0;
my @processes;

# How often each number is in the table and in the server's log; a number in the log may say that it is in
# doubt, which the table may have too.
sub accounts
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	eventually($node, 'SELECT coalesce(ring_used, 0) FROM fieldcrypt.audit_status()', '0') or diag('the queue is not empty');
	my (%tried, %table, %log, %doubt, %last);
	$table{$_}++ foreach split /\n/, value($node, q{SELECT application FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'});
	foreach my $line (split /\n/, slurp_file($node->logfile))
	{
		if ($line =~ /about to try (\d+)\.(\d+)$/)
		{
			$tried{"$1.$2"} = 1;
			$last{$1} = $2;
		}
		next if $line !~ /fieldcrypt audit: .*"event":"decrypt_failed"/;
		my ($number) = $line =~ /"application":"(\d+\.\d+)"/ or next;
		$line =~ /may be in audit_log already/ ? $doubt{$number}++ : $log{$number}++;
	}
	my @twice = grep { ($table{$_} // 0) + ($log{$_} // 0) > 1 } keys %tried;
	is("@twice", '', "$name: nothing is recorded twice");
	# The last try of a session may not have come to its decrypt.
	delete $tried{"$_.$last{$_}"} foreach keys %last;
	my @lost = grep { !$table{$_} && !$log{$_} && !$doubt{$_} } keys %tried;
	cmp_ok(scalar keys %tried, '>', 100, "$name: much was tried");
	is("@lost", '', "$name: nothing is lost silently, of " . keys %tried);
	$in_log = keys(%log) + keys %doubt;
	note(keys(%table) . ' in the table, ' . keys(%log) . ' in the server log, ' . keys(%doubt) . ' in doubt');
	return;
}

sub busy
{
	my ($count) = @_;
	my @busy = map { session($node) } 1 .. $count;
	@processes = map { $_->server_process } @busy;
	$_->send("CALL fail('" . ++$sessions . "');") foreach @busy;
	eventually($node, "SELECT (count(*) > 50)::int FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed' AND application LIKE '$sessions.%'", 1)
	  or die 'the sessions do nothing';
	return @busy;
}

sub worker
{
	my $worker;
	foreach (1 .. 600)
	{
		return $worker if $worker = value($node, 'SELECT worker_pid FROM fieldcrypt.audit_status()');
		Time::HiRes::usleep(50_000);
	}
	die 'no worker comes';
}

foreach my $round (1 .. 4)
{
	my @busy = busy(3);
	ok(crash($node, worker()), "kill -9 of the worker, round $round: the server comes back");
	$_->close foreach @busy;
	accounts("kill -9 of the worker, round $round");
}

foreach my $round (1 .. 4)
{
	my @busy = busy(3);
	Time::HiRes::usleep(rand 200_000);
	ok(crash($node, $processes[0]), "kill -9 of a busy session, round $round: the server comes back");
	$_->close foreach @busy;
	accounts("kill -9 of a busy session, round $round");
}
cmp_ok($in_log, '>', 0, 'some events were in the queue at a crash, and are in the server log');
is(value($node, q{SELECT (sum(value_count) > 0)::int FROM fieldcrypt.audit_log WHERE event = 'audit_gap' AND reason LIKE '%server log%'}), 1, 'the log tells how many');

# A worker that is only terminated, or an error in it, ends nothing.
{
	my @busy = busy(2);
	foreach (1 .. 5)
	{
		my $worker = worker();
		value($node, "SELECT pg_terminate_backend($worker)");
		Time::HiRes::usleep(400_000);
	}
	value($node, q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'CALL fail%' AND pid <> pg_backend_pid()});
	$_->close foreach @busy;
	accounts('a worker that is terminated again and again');
}

foreach my $mode ('immediate', 'fast')
{
	my @busy = busy(3);
	$node->stop($mode);
	$_->close foreach @busy;
	$node->start;
	accounts("a $mode stop");
}

my @bad = grep { /PANIC:  |[A-Z]:  XX000: |unreachable|panicked/ } split /\n/, slurp_file($node->logfile);
is("@bad", '', 'no internal error');
done_testing();

# Re-encryption interrupted at random points, by a cancel, the end of its session, kill -9 and a crash of
# the server, while the application writes: nothing is lost, nothing is done twice, nobody is called
# running who is not, and it goes on where it stood.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);
use Twin;

my $seed = seed();
my $node = new_cluster('primary', conf => "max_connections = 40\nautovacuum_naptime = 1s\nlog_checkpoints = on\n");
make_twins($node, rows => 500);
# A table that nobody writes: there the numbers are exact. Several chunks.
my $rows = 12_000;
value($node, <<SQL);
CREATE TABLE many (id int PRIMARY KEY, value fieldcrypt.encrypted, filler text);
INSERT INTO many SELECT i, fieldcrypt.encrypt_field('many ' || i), repeat('x', 150) FROM generate_series(1, $rows) AS i;
ANALYZE many;
SQL

my %interruptions = (
	'cancel' => sub { value($node, "SELECT pg_cancel_backend($_[0])"); },
	'terminate' => sub { value($node, "SELECT pg_terminate_backend($_[0])"); },
	'kill -9' => sub { crash($node, $_[0]); },
	'immediate stop' => sub { $node->stop('immediate'); $node->start; },
);
my @kinds = sort keys %interruptions;
my $interrupted = 0;

# Waits until the server lets sessions in and this one is gone.
sub wait_for_end
{
	my ($process) = @_;
	foreach (1 .. 600)
	{
		# psql may find no server and go away before it has read this.
		my $result = eval { run_sql($node, "SELECT NOT pg_is_in_recovery() AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $process AND state <> 'idle')") };
		return if $result && $result->{out} eq 't';
		usleep(50_000);
	}
	die 'the server does not come back';
}

# Whatever is not done is called interrupted, at once.
my $orphans = q{SELECT string_agg(format('%s %s %s', table_name, state, pids), ', ') FROM fieldcrypt.reencryption_progress
  WHERE state NOT IN ('interrupted', 'done') OR pids IS NOT NULL OR rows_per_second IS NOT NULL OR estimated_end IS NOT NULL};
my $runs_left = q{SELECT string_agg(format('run %s of process %s', run, pid), ' ') FROM fieldcrypt_internal.live_runs()};

# Runs re-encryption, and interrupts it after some milliseconds. Gives whether it was under way then, and
# what is wrong with what is told of it. After a cancel its session is still there.
sub interrupted_run
{
	my ($call, $kind, $after) = @_;
	my $session = session($node);
	my $process = $session->server_process;
	$session->send($call);
	usleep(1000 * $after);
	my $was_running = value($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $process AND state = 'active'");
	$interruptions{$kind}->($process);
	wait_for_end($process);
	my $wrong = join ' ', grep { $_ ne '' } value($node, $orphans), value($node, $runs_left);
	$session->close;
	$interrupted += $was_running;
	return ($was_running, $wrong);
}

# 1. A table that nobody writes, each kind by itself. What is left to do only shrinks, and in the end each
# row was moved exactly once.
my $progress = q{SELECT format('%s %s %s %s', pass, rows_moved, rows_done, state) FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.many'};
my $left = q{SELECT string_agg(format('%s-%s', next_block * 10000 + next_offset, end_block * 10000), ' ')
  FROM (SELECT next_block, next_offset, end_block FROM fieldcrypt_internal.reencryption_chunks WHERE relation = 'many'::regclass
        UNION ALL SELECT next_block, 0, end_block FROM fieldcrypt_internal.reencryptions WHERE relation = 'many'::regclass) AS c};

# Whether every stretch of one list lies in one of another.
sub is_within
{
	my ($inner, $outer) = @_;
	my @outer = map { [ split /-/ ] } split / /, $outer;
	foreach my $stretch (map { [ split /-/ ] } split / /, $inner)
	{
		next if $stretch->[0] >= $stretch->[1];
		return 0 unless grep { $_->[0] <= $stretch->[0] && $stretch->[1] <= $_->[1] } @outer;
	}
	return 1;
}

foreach my $kind (@kinds)
{
	value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
	my ($last_pass, $last_moved, $last_done, $last_left) = (0, 0, 0, undef);
	my (@problems, $count, $under_way) = ();
	foreach my $round (1 .. 7)
	{
		my $after = 60 + int rand 350;
		# Half of the time is spent in the pauses, or little of it.
		my $speed = rand() < 0.5 ? q{batch_size => 60, pause => '15 milliseconds'} : q{batch_size => 10, pause => '1 millisecond'};
		my $call = "CALL fieldcrypt.reencrypt('many', $speed, rows_per_second => 0)";
		my ($was_running, $wrong) = interrupted_run($call, $kind, $after);
		$under_way += $was_running;
		push @problems, "round $round ($after ms): $wrong" if $wrong ne '';
		my ($pass, $moved, $done, $state) = split / /, value($node, $progress);
		my $left_now = value($node, $left);
		note "$kind, after $after ms: pass $pass, $moved moved, $done seen, $state, left $left_now";
		if ($round > 1 && $pass == $last_pass)
		{
			push @problems, "round $round: $moved moved, less than before ($last_moved)" if $moved < $last_moved;
			push @problems, "round $round: $done seen, less than before ($last_done)" if $done < $last_done;
			push @problems, "round $round: begins again: $left_now, after $last_left" unless is_within($left_now, $last_left);
		}
		# A row is seen once, and its new version once more if it came to lie before the run.
		push @problems, "round $round: $done seen, of $rows, $moved of them moved" if $done > $rows + $moved;
		my $on_old_keys = stale_values($node, q{table_name = 'public.many'});
		push @problems, "round $round: $moved moved and $on_old_keys not, of $rows" if $moved + $on_old_keys != $rows;
		($last_pass, $last_moved, $last_done, $last_left) = ($pass, $moved, $done, $left_now);
	}
	is(join("\n", @problems), '', "$kind: interrupted, nothing lost, nothing begun again");
	cmp_ok($under_way, '>=', 5, "$kind: it was under way");
	cmp_ok($last_moved, '>', 0, "$kind: it came on");
	cmp_ok($last_moved, '<', $rows, "$kind: and was not done yet");
	# The next run takes the stretch up at the very row.
	my $at = q{SELECT next_block, next_offset FROM fieldcrypt_internal.reencryption_chunks WHERE relation = 'many'::regclass};
	my $stood = value($node, $at);
	if ($stood ne '')
	{
		my $next = session($node);
		my ($run, $relations) = split /\|/, $next->value(q{SELECT run, relations FROM fieldcrypt_internal.reencrypt_begin('many')});
		$next->gives("SELECT outcome FROM fieldcrypt_internal.reencrypt_step($run, '$relations', 10)", 'returned', "$kind: a next run takes up what was left");
		is(value($node, $at), $stood, "$kind: at the very row");
		$next->close;
		ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM fieldcrypt_internal.live_runs()'), "$kind: a session that ends ends its run");
	}
	my $result = run_sql($node, q{CALL fieldcrypt.reencrypt('many', rows_per_second => 0)});
	is("@{ $result->{sqlstates} }", '', "$kind: goes on") or diag $result->{err};
	my $rest = $rows - $last_moved;
	like($result->{err}, qr/NOTICE:.*reencrypt: $rest rows re-encrypted, 1 tables done, 0 rows could not be/, "$kind: with just the rest");
	like(value($node, $progress), qr/^\d+ $rows \d+ done$/, "$kind: each row was moved once, over all runs");
	is(stale_values($node, q{table_name = 'public.many'}), '0', "$kind: no value is on an old key");
	gives($node, "SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(value) = 'many ' || id), count(*) FROM many", "$rows|$rows", "$kind: all is readable");
}

# 2. The twins, under writers, in random order. Each is a lap: the keys rotate, and then re-encryption is
# interrupted until it is done. Rows moved over the whole lap are at most the rows that were stale at its
# start: a row that the application writes is on the active key.
my $stale_rows = q{SELECT format('%s %s', t, (xpath('/row/c/text()', query_to_xml(format(
    'SELECT count(*) AS c FROM %s AS t WHERE EXISTS (SELECT FROM fieldcrypt.encryption_keys AS k WHERE k.state <> ''active'' AND k.key_id IN (fieldcrypt.key_id(t.value), fieldcrypt.key_id(t.big)))', t), false, true, '')))[1])
  FROM unnest('{kept,parts_0,parts_1,parts_2}'::text[]) AS t};
my $writing = q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'writers'};
my ($rounds, $lap, $with_writers) = (0, 0, 0);
my $writers;
while ($interrupted < 52 && ++$lap <= 9)
{
	value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
	my %stale = map { split / / } split /\n/, value($node, $stale_rows);
	my @problems;
	foreach my $round (1 .. 9)
	{
		my $kind = $kinds[ ++$rounds % @kinds ];
		my $after = 30 + int rand 250;
		# A crash ends the writers.
		if (!$writers || value($node, $writing) == 0)
		{
			finish_bench($writers) if $writers;
			$writers = writers($node, seconds => 60, clients => 3, seed => $seed + $rounds, rows => 500);
		}
		my ($was_running, $wrong) = interrupted_run('CALL fieldcrypt.reencrypt(batch_size => 15, rows_per_second => 0, pause => ' . (rand() < 0.5 ? q{'10 milliseconds')} : q{'1 millisecond')}), $kind, $after);
		$with_writers++ if $kind =~ /cancel|terminate/ && value($node, $writing) > 0;
		push @problems, "$kind after $after ms: $wrong" if $wrong ne '';
		foreach (split /\n/, value($node, q{SELECT format('%s %s', substr(table_name, 8), rows_moved) FROM fieldcrypt.reencryption_progress WHERE started_at > (SELECT max(created_at) FROM fieldcrypt.encryption_keys)}))
		{
			my ($table, $moved) = split / /;
			push @problems, "$kind after $after ms: $moved rows of $table moved, of $stale{$table}" if defined $stale{$table} && $moved > $stale{$table};
		}
		last unless $was_running;
	}
	is(join("\n", @problems), '', "lap $lap, under writers: nothing done twice, no orphan");
	my $result = run_sql($node, 'CALL fieldcrypt.reencrypt(batch_size => 100, rows_per_second => 0)');
	is("@{ $result->{sqlstates} }", '', "lap $lap: goes on to the end") or diag $result->{err};
	unlike($result->{err}, qr/WARNING/, "lap $lap: without a warning");
	foreach (split /\n/, value($node, q{SELECT format('%s %s', substr(table_name, 8), rows_moved) FROM fieldcrypt.reencryption_progress}))
	{
		my ($table, $moved) = split / /;
		next unless defined $stale{$table};
		cmp_ok($moved, '<=', $stale{$table}, "lap $lap: no row of $table was moved twice");
	}
}
# The writers end; what they moved behind a pass is the next run's.
value($node, 'SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = ' . q{'writers'});
finish_bench($writers);
cmp_ok($with_writers, '>', 5, 'while the application wrote');
my $last = run_sql($node, 'CALL fieldcrypt.reencrypt(rows_per_second => 0)');
is("@{ $last->{sqlstates} }", '', 'a last run') or diag $last->{err};
all_active($node, 'after the last run');
twins_equal($node, 'after the last run');
gives($node, 'SELECT count(*) FROM fieldcrypt_internal.reencryption_chunks', '0', 'nothing is left to come back to');
gives($node, 'SELECT count(*) FROM fieldcrypt.reencryption_failures', '0', 'no value failed');
cmp_ok($interrupted, '>=', 50, "at least 50 interruptions ($interrupted)");

# kill -9 is what the test does: the rest of the log must be clean.
my @bad = grep { /PANIC:  |[A-Z]:  XX000: |unreachable|panicked/ || /was terminated by signal/ && !/by signal 9/ } split /\n/, slurp_file($node->logfile);
is(join("\n", @bad), '', 'no crash of its own and no internal error');
unlike(slurp_file($node->logfile), qr/ERROR:.*(?:of the twin|KF0\d\d)|deadlock detected/, 'the writers had no error of ours');
$node->stop;
done_testing();

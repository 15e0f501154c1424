# A column that is encrypted while the application writes it, and is interrupted at random points: by a cancel, the end of
# its session, kill -9 and an immediate stop. The same CALL goes on, and nothing is lost. Then it is undone, before the swap
# and after it, while the application writes.

use strict;
use warnings;

use FieldcryptTest;
use Migration;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);
use Twin;

my $seed = seed();
my $node = new_cluster('primary', conf => "max_connections = 40\nautovacuum_naptime = 1s\nshared_preload_libraries = 'pg_fieldcrypt'\n");
my $rows = 6000;
make_migrated($node, rows => $rows);

my %interruptions = (
	'cancel' => sub { value($node, "SELECT pg_cancel_backend($_[0])"); },
	'terminate' => sub { value($node, "SELECT pg_terminate_backend($_[0])"); },
	'kill -9' => sub { crash($node, $_[0]); },
	'immediate stop' => sub { $node->stop('immediate'); $node->start; });
my @kinds = sort keys %interruptions;
my $writing = q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'writers'};
my $writers;

sub keep_writing
{
	my ($round) = @_;
	return if $writers && value($node, $writing) > 0;
	finish_bench($writers) if $writers;
	$writers = migration_writers($node, rows => $rows, seconds => 90, seed => $seed + $round, clients => 3);
	return;
}

sub stop_writing
{
	value($node, q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'writers'});
	finish_bench($writers);
	undef $writers;
	$node->poll_query_until('postgres', $writing =~ s/count\(\*\)/count(*) = 0/r);
	return;
}

# Waits until the server lets sessions in and this one is gone.
sub wait_for_end
{
	my ($process) = @_;
	foreach (1 .. 600)
	{
		my $result = eval { run_sql($node, "SELECT NOT pg_is_in_recovery() AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $process AND state <> 'idle')") };
		return if $result && $result->{out} eq 't';
		usleep(50_000);
	}
	die 'the server does not come back';
}

# Starts a call and interrupts it; gives whether it was under way then.
sub interrupted
{
	my ($call, $kind, $after) = @_;
	my $session = session($node);
	my $process = $session->server_process;
	$session->send($call);
	usleep(1000 * $after);
	my $was_running = value($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $process AND state = 'active'");
	$interruptions{$kind}->($process);
	wait_for_end($process);
	$session->close;
	return $was_running;
}

# 1. To the end, through ten interruptions.
my $call = q{CALL fieldcrypt.encrypt_column('people', 'ssn', batch_size => 40, rows_per_second => 800, swap => false)};
my ($under_way, $last_done) = (0, 0);
my @problems;
my %stood;
foreach my $round (1 .. 11)
{
	keep_writing($round);
	my $kind = $kinds[ $round % @kinds ];
	my $after = 100 + int rand 900;
	my $was_running = interrupted($call, $kind, $after);
	$under_way += $was_running;
	my $state = state_of($node, 'public.people');
	my ($step, $done, $verified) = split /\|/,
	  value($node, q{SELECT coalesce(max(step), 'none'), coalesce(max(rows_done), 0), coalesce(max(rows_verified), 0) FROM fieldcrypt.column_migrations});
	note "$kind after $after ms: $state at $step, $done done, $verified verified";
	$stood{$step}++;
	push @problems, "round $round, $kind: $state" unless $state =~ /^(interrupted|ready|none)$/;
	push @problems, "round $round, $kind: $done done, less than before ($last_done)" if $done < $last_done;
	push @problems, "round $round, $kind: health is silent"
	  if $state eq 'interrupted' && value($node, q{SELECT status || detail FROM fieldcrypt.health() WHERE "check" = 'plaintext_columns'}) !~ /^warning.*stands still.*public\.people\.ssn/;
	$last_done = $done;
}
is(join("\n", @problems), '', 'what is interrupted is called so, and is not begun again');
cmp_ok($under_way, '>=', 10, "at least ten interruptions ($under_way)");
cmp_ok($last_done, '<=', $rows, 'no row was encrypted twice by a batch');
cmp_ok($stood{filling} // 0, '>', 1, 'while it filled');
cmp_ok($stood{verifying} // 0, '>', 1, 'and while it verified');
# Around the swap: what is interrupted there is before it or after it, and nothing between.
foreach my $round (1 .. 8)
{
	keep_writing(50 + $round);
	interrupted(q{CALL fieldcrypt.encrypt_column('people', 'ssn', batch_size => 2000)}, $kinds[ $round % 3 ], 5 + 15 * $round);
	my $columns = value($node, q{SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'people'::regclass AND attname ~ '^ssn' AND NOT attisdropped});
	my $trigger = value($node, q{SELECT tgname FROM pg_trigger WHERE tgrelid = 'people'::regclass AND tgname ~ 'twin'});
	like("$columns $trigger", qr/^(?:ssn ssn_encrypted_new ~fieldcrypt_are_twins_\d+|ssn_plaintext ssn ~fieldcrypt_keep_twin_\d+)$/, "interrupted around the swap: $columns");
}
keep_writing(100);
my $result = run_sql($node, q{CALL fieldcrypt.encrypt_column('people', 'ssn', batch_size => 200)});
is("@{ $result->{sqlstates} }", '', 'it goes on to the end') or diag $result->{err};
gives($node, q{SELECT attnotnull, attname FROM pg_attribute WHERE attrelid = 'people'::regclass AND atttypid = 'fieldcrypt.encrypted_text'::regtype},
	'f|ssn', 'and is swapped');
ok(value($node, $writing) > 0, 'while the application writes');
usleep(1_500_000);
stop_writing();
same_as_twin($node, 'after the swap');
gives($node, q{SELECT state, error FROM fieldcrypt.column_migrations}, 'swapped|', 'it is swapped');

# 2. Undone after the swap, interrupted once, while the application writes.
keep_writing(200);
interrupted(q{CALL fieldcrypt.undo_encrypt_column('people', 'ssn')}, 'kill -9', 60);
keep_writing(201);
$result = run_sql($node, q{CALL fieldcrypt.undo_encrypt_column('people', 'ssn')});
# The one that was killed may have come to its end.
like("@{ $result->{sqlstates} }", qr/^(?:55000)?$/, 'undone after the swap') or diag $result->{err};
usleep(1_000_000);
stop_writing();
same_as_twin($node, 'after it was undone');
gives($node, q{SELECT string_agg(attname || ' ' || atttypid::regtype, ', '
	 ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'people'::regclass AND attname ~ '^ssn' AND NOT attisdropped},
	'ssn character varying', 'with the old column and no other');
gives($node, q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'people'::regclass AND NOT tgisinternal}, '0', 'and no trigger');

# 3. Undone before the swap, half-way.
keep_writing(300);
interrupted($call, 'cancel', 900);
like(state_of($node, 'public.people'), qr/^interrupted$/, 'half-way');
$result = run_sql($node, q{CALL fieldcrypt.undo_encrypt_column('people', 'ssn')});
is("@{ $result->{sqlstates} }", '', 'undone before the swap') or diag $result->{err};
# 4. And to the end once more, without an interruption.
$result = run_sql($node, q{CALL fieldcrypt.encrypt_column('people', 'ssn')});
is("@{ $result->{sqlstates} }", '', 'once more, to the end') or diag $result->{err};
usleep(500_000);
stop_writing();
same_as_twin($node, 'after all');
value($node, q{SELECT fieldcrypt.drop_plaintext_column('people', 'ssn')});
same_as_twin($node, 'after the plaintext is gone');
gives($node, q{SELECT status FROM fieldcrypt.health() WHERE "check" = 'plaintext_columns'}, 'ok', 'health has nothing to say');
gives($node, q{SELECT col_description('people'::regclass, attnum) FROM pg_attribute WHERE attrelid = 'people'::regclass AND attname = 'ssn'},
	'the number', 'its comment is there');

my @bad = grep { /PANIC:  |[A-Z]:  XX000: |unreachable|panicked/ || /was terminated by signal/ && !/by signal 9/ } split /\n/, slurp_file($node->logfile);
is(join("\n", @bad), '', 'no crash of its own and no internal error');
unlike(slurp_file($node->logfile), qr/ERROR:.*(?:of the twin|KF0\d\d)|deadlock detected/, 'the writers had no error of ours');
$node->stop;
done_testing();

# The names that a line of the log is compared with are read when it is written: a catalog that somebody has locked, a cancel,
# the end of the session then neither show anything nor hold up anybody.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use ServerLog;
use Test::More;
use Time::HiRes ();

my $node = new_cluster('primary', conf => everything_logged());
value($node, 'CREATE TABLE patients (id int, ssn fieldcrypt.encrypted)');
my $from = rotate_log($node);

foreach my $catalog (qw(pg_depend pg_proc pg_rewrite pg_constraint pg_operator pg_trigger pg_extension pg_namespace))
{
	my $user = session($node);
	$user->value('SELECT 1');
	my $locker = session($node);
	$locker->value("BEGIN; LOCK TABLE pg_catalog.$catalog IN ACCESS EXCLUSIVE MODE");
	# Nothing here needs the catalog but the log: patients stands in the session's caches after the first time.
	my %outcome;
	foreach my $who ('a new session', 'one that has to read again')
	{
		my $session = $who eq 'a new session' ? undef : $user;
		my $sql = "SET statement_timeout = '1s'; SELECT 'Zq${catalog}Canary', fieldcrypt.key_id(NULL) IS NULL FROM patients";
		my $result = defined $session ? $session->run($sql) : run_sql($node, $sql);
		$outcome{$who} = join ' ', @{ $result->{sqlstates} };
		like($outcome{$who}, qr/^(?:|57014)$/, "$catalog locked, $who: done or cancelled, not stuck");
	}
	$locker->value('ROLLBACK');
	$user->value('RESET statement_timeout');
	gives($node, q{SELECT count(*) FROM patients WHERE 'ZqAfterCanary' = ''}, '0', "$catalog: afterwards all is well");
	$_->close foreach $user, $locker;
}

# A session that ends while it waits, a statement that is cancelled.
foreach my $end (qw(pg_cancel_backend pg_terminate_backend))
{
	my ($locker, $session) = (session($node), session($node));
	my $process = $session->server_process;
	value($node, 'CREATE FUNCTION changes_what_is_known() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$');
	$locker->value('BEGIN; LOCK TABLE pg_catalog.pg_attribute IN ACCESS EXCLUSIVE MODE');
	$session->send(q{SELECT 'ZqWaitingCanary' FROM patients});
	# No new session can be made meanwhile, but the log can be read.
	my $waits;
	foreach (1 .. 300)
	{
		$waits = slurp_file(log_files($node)->{stderr}) =~ /\[$process\].* still waiting for AccessShareLock on relation 1249 /;
		last if $waits;
		Time::HiRes::usleep(100_000);
	}
	ok($waits, "$end: it waits for the catalog");
	$locker->gives("SELECT $end($process)", 't', "$end: while it waits, or after");
	$locker->value('SELECT pg_sleep(0.5); ROLLBACK');
	$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $process AND state <> 'idle'") or die;
	value($node, 'DROP FUNCTION changes_what_is_known()');
	$_->close foreach $locker, $session;
}

my $log = since($node, $from);
is(join("\n", grep { /Canary/ } split /\n/, $log->{$_}), '', "nothing is shown in $_") foreach sort keys %$log;
like($log->{stderr}, qr/'\*\*\*'/, 'but all of it is logged');
like($log->{stderr}, qr/still waiting for AccessShareLock on relation 1249 .*\n.*\n.*\n.*STATEMENT:  SELECT '\*\*\*' FROM patients/, 'also what is logged while names are being read');
no_crash($node);
$node->stop;
done_testing();

# Key use where the audit queue is full: what finds no room is in the server log, and with audit_on_overflow = error
# the statement fails; each value is told of once, in one of the two places. And other libraries' hooks.

use strict;
use warnings;

use FieldcryptTest;
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => <<'CONF');
shared_preload_libraries = 'pg_stat_statements, pg_fieldcrypt, auto_explain'
pg_stat_statements.track = 'all'
auto_explain.log_min_duration = 0
auto_explain.log_nested_statements = on
auto_explain.log_level = debug1
fieldcrypt.audit_decrypt = 'statements'
fieldcrypt.audit_queue_size = 64kB
CONF
value($node, <<'SQL');
CREATE EXTENSION pg_stat_statements;
CREATE TABLE kept (id int, value fieldcrypt.encrypted);
INSERT INTO kept SELECT i, fieldcrypt.encrypt_field('v', '', 'tenant ' || i % 3) FROM generate_series(1, 300) AS i;
CREATE FUNCTION nested() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    PERFORM count(fieldcrypt.decrypt_field(value)) FROM kept WHERE id <= 30;
    BEGIN
        PERFORM 1 / 0;
    EXCEPTION WHEN division_by_zero THEN NULL;
    END;
    RETURN (SELECT count(fieldcrypt.decrypt_field(value)) FROM kept WHERE id <= 60);
END $$;
SQL

# What is told in either place: { place => count of values }, of one backend.
sub told
{
	my ($process) = @_;
	$node->poll_query_until('postgres', 'SELECT ring_used = 0 FROM fieldcrypt.audit_status()') or die;
	my $written = value($node, "SELECT coalesce(sum(value_count), 0) FROM fieldcrypt.audit_log WHERE event = 'values_decrypted' AND backend_pid = $process");
	my $logged = 0;
	foreach my $line (slurp_file($node->logfile) =~ /fieldcrypt audit: (\{.*\})$/mg)
	{
		my $event = JSON::PP::decode_json($line);
		next if $event->{event} ne 'values_decrypted' || $event->{backend_pid} != $process;
		$logged += $event->{value_count};
	}
	return ($written, $logged);
}

# The hooks of others, before and after.
value($node, 'SELECT pg_stat_statements_reset()');
{
	my $session = session($node);
	my $process = $session->server_process;
	$session->value('SELECT nested() FROM generate_series(1, 5)');
	$session->refused('SELECT 1 / (nested() - 60)', '22012', 'a failure under all hooks');
	is(join('|', told($process)), '540|0', 'with hooks of others: each value is told of once');
	is(value($node, "SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'values_decrypted' AND backend_pid = $process"), '6', 'and each statement, by tenant');
	is(value($node, q{SELECT toplevel, calls FROM pg_stat_statements WHERE query LIKE '%nested()%' OR query LIKE '%id <= $%' AND query NOT LIKE '%pg_stat%' ORDER BY toplevel, calls, query}),
		"f|6\nf|6\nt|1", 'pg_stat_statements sees its statements and their levels');
	$session->close;
}

# A worker that can't write: the queue fills up.
foreach my $mode ('log', 'error')
{
	configure($node, 'fieldcrypt.audit_on_overflow' => $mode);
	my $lock = session($node);
	my $session = session($node);
	my $process = $session->server_process;
	$session->value('SELECT count(fieldcrypt.decrypt_field(value)) FROM kept');
	$lock->value('BEGIN; LOCK TABLE fieldcrypt.audit_log IN EXCLUSIVE MODE');
	my ($read, $failed) = (300, 0);
	foreach my $round (1 .. 400)
	{
		my $result = $session->run('SELECT count(fieldcrypt.decrypt_field(value)) FROM kept');
		$read += 300;
		next unless @{ $result->{sqlstates} };
		++$failed;
		if ($failed == 1)
		{
			is("@{ $result->{sqlstates} }", 'KF026', 'error: a statement whose event has no room fails');
			like($result->{err}, qr/the audit queue is full/, 'and says why');
		}
		last if $failed == 20;
	}
	is($failed, $mode eq 'error' ? 20 : 0, "$mode: statements that failed");
	# In a transaction that goes on after it, and in one that does not.
	my $result = $session->run('BEGIN; SAVEPOINT a; SELECT nested(); ROLLBACK TO a; SELECT nested(); COMMIT');
	$read += 180;
	is("@{ $result->{sqlstates} }", $mode eq 'error' ? 'KF026 KF026' : '', "$mode: in a transaction with a savepoint");
	$result = $session->run('SELECT 1 / (nested() - 60)');
	$read += 90;
	is("@{ $result->{sqlstates} }", '22012', "$mode: a statement that fails anyway fails by its own error");
	$lock->value('ROLLBACK');
	my ($written, $logged) = told($process);
	cmp_ok($logged, '>', 0, "$mode: some had no room");
	is($written + $logged, $read, "$mode: each value is told of once, written or logged");
	gives($node, 'SELECT gap_events > 0 FROM fieldcrypt.audit_status()', 't', "$mode: and counted");
	$_->close foreach $lock, $session;
}

no_crash($node);
$node->stop;
done_testing();

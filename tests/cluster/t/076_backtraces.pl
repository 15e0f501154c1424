# RUST_BACKTRACE in the server's environment: no backtrace reaches a client or the log, none is made, and no session hangs
# while one is. Errors of Postgres's inside functions, hooks and workers are panics on their way.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

foreach my $kind (qw(1 full))
{
	local $ENV{RUST_BACKTRACE} = $kind;
	local $ENV{RUST_LIB_BACKTRACE} = $kind;
	my $node = new_cluster("backtrace_$kind", conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.redact_logs = on
log_min_duration_statement = 0
log_statement = 'all'
CONF
	like(slurp_file('/proc/' . postmaster($node) . '/environ'), qr/RUST_BACKTRACE=$kind\0/, "$kind: the server has the setting");
	value($node, <<'SQL');
CREATE TABLE vals (id int PRIMARY KEY, sealed fieldcrypt.encrypted);
INSERT INTO vals SELECT n, fieldcrypt.encrypt_field('note ' || n) FROM generate_series(1, 20000) AS n;
CREATE VIEW work AS SELECT count(fieldcrypt.decrypt_field(sealed)) FROM vals, generate_series(1, 50);
SQL
	my $seen = '';
	my $collect = sub { $seen .= $_[0]{err}; return "@{ $_[0]{sqlstates} }" };
	note 'errors of all kinds';
	foreach my $sql (
		q{SELECT 'fc1:AAAA'::fieldcrypt.encrypted}, q{SELECT fieldcrypt.encrypt_field('x', NULL)}, q{SELECT fieldcrypt.import_keys('x')},
		q{SELECT pg_cancel_backend(pg_backend_pid()), fieldcrypt.create_key('new')},
		q{SELECT pg_cancel_backend(pg_backend_pid()), fieldcrypt.export_keys()},
		q{SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('x'), 1)},
		q{SELECT fieldcrypt.set_column_context('vals', 'sealed', expression => 'nothing')}, q{SELECT fieldcrypt.audit_proof(0)},
		q{SELECT fieldcrypt.set_column_context('vals', 'sealed', expression => 'SELECT')}, q{UPDATE fieldcrypt.encryption_keys SET state = state})
	{
		isnt($collect->(run_sql($node, $sql)), '', "$kind: an error: $sql");
	}
	note 'cancels in the middle';
	foreach my $timeout (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
	{
		foreach my $work ('TABLE work', 'SELECT * FROM fieldcrypt.verify_audit_log()', 'SELECT * FROM fieldcrypt.key_usage(true)',
			'UPDATE vals SET sealed = fieldcrypt.reencrypt_field(sealed)', 'SELECT * FROM fieldcrypt.health(true)')
		{
			# Each with a table that the log's masks have to hear of first.
			my $outcome = $collect->(run_sql($node, "SET statement_timeout = '${timeout}ms'; CREATE TEMP TABLE fresh_$timeout (sealed fieldcrypt.encrypted); $work"));
			like($outcome, qr/^(?:57014(?: 57014)?)?$/, "$kind: $timeout ms: $work");
		}
	}
	note 'the end of a session in the middle';
	foreach my $round (1 .. 5)
	{
		my $session = session($node);
		my $process = $session->server_process;
		$session->send('TABLE work; TABLE work; TABLE work');
		ok(eventually($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $process AND state = 'active'", 1), "$kind: it works");
		usleep(20_000 * $round);
		value($node, "SELECT pg_terminate_backend($process)");
		ok(eventually($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $process", 0), "$kind: it ends when it is told to");
		$session->close;
	}
	note 'a worker that fails';
	{
		value($node, <<'SQL');
CREATE FUNCTION raises() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'of a trigger'; END $$;
CREATE TRIGGER a_raises BEFORE INSERT ON fieldcrypt.audit_checkpoints FOR EACH ROW EXECUTE FUNCTION raises();
SELECT fieldcrypt.create_key('sealed');
SQL
		ok(eventually($node, q{SELECT fieldcrypt.audit_status()::text ~ 'of a trigger'}, 't'), "$kind: the worker's problem is told of");
		value($node, 'DROP TRIGGER a_raises ON fieldcrypt.audit_checkpoints');
	}
	unlike($seen, qr/stack backtrace|\n\s+\d+: |\.rs:\d|rust_|pgrx/, "$kind: nothing of it reaches the client");
	unlike(slurp_file($node->logfile), qr/stack backtrace|^\s+\d+: 0x|\.rs:\d|rust_begin|pgrx::/m, "$kind: nothing of it is in the log");
	no_crash($node);
	$node->stop;
}

done_testing();

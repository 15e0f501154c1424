# The extension is dropped while the worker of its log is at work: nobody deadlocks, no error, and the next one begins
# as if there had been none.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes;

my $node = new_cluster('dropped', conf => <<'CONF', extension => 0);
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_worker_linger = 60000
fieldcrypt.audit_seal_interval = 100
log_lock_waits = on
CONF

# Right after first use, again and again: the worker is in the middle of its first transactions. By its name, and with all
# that its owner has, which comes upon the tables in another order.
create_database($node, 'app', extension => 0);
value($node, 'CREATE ROLE keeper SUPERUSER LOGIN');
foreach my $drop ('EXTENSION pg_fieldcrypt', 'OWNED BY keeper')
{
	my $failed = 0;
	foreach my $round (1 .. 25)
	{
		my $result = run_sql($node, <<"SQL", db => 'app', user => 'keeper');
CREATE EXTENSION pg_fieldcrypt;
SELECT fieldcrypt.create_key('tenant ' || i) FROM generate_series(1, 20) AS i;
SELECT pg_sleep(@{[ rand 0.4 ]});
BEGIN;
SELECT fieldcrypt.create_key('last');
COMMIT;
SET fieldcrypt.allow_drop = on;
DROP $drop CASCADE;
SQL
		$failed += () = $result->{err} =~ /ERROR/g;
		diag $result->{err} if $result->{err} =~ /ERROR/;
	}
	is($failed, 0, "DROP $drop right after first use, 25 times");
}

# Somebody holds what DROP needs, so that it waits with the extension's lock: the worker gives way for as long.
foreach my $drop ('EXTENSION pg_fieldcrypt', 'OWNED BY keeper')
{
	value($node, 'CREATE EXTENSION pg_fieldcrypt', db => 'app', user => 'keeper');
	value($node, q{SELECT fieldcrypt.create_key('x')}, db => 'app');
	# DROP OWNED comes upon the extension last.
	value($node, <<'SQL', db => 'app');
SET allow_system_table_mods = on;
WITH moved AS (DELETE FROM pg_shdepend WHERE classid = 'pg_extension'::regclass AND refobjid = 'keeper'::regrole AND deptype = 'o' RETURNING *)
INSERT INTO pg_shdepend SELECT * FROM moved;
SQL
	my $reader = session($node, db => 'app');
	$reader->run('BEGIN; LOCK TABLE fieldcrypt.audit_log IN ACCESS SHARE MODE');
	my $dropper = session($node, db => 'app');
	$dropper->send("SET fieldcrypt.allow_drop = on; DROP $drop CASCADE;");
	ok(eventually($node, q{SELECT count(*) > 0 FROM pg_locks WHERE NOT granted}, 't'), "DROP $drop waits");
	gives($node, q{SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND classid = 'pg_extension'::regclass AND mode = 'AccessExclusiveLock' AND granted},
		'1', "DROP $drop has the extension before it waits for anything else");
	Time::HiRes::sleep(1.5);
	gives($node, q{SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE a.backend_type = 'pg_fieldcrypt audit worker' AND a.datname = 'app' AND l.locktype = 'relation' AND l.relation >= 16384}, '0', "DROP $drop: and the worker holds nothing of it meanwhile");
	$reader->close;
	ok(eventually($node, q{SELECT count(*) FROM pg_extension WHERE extname = 'pg_fieldcrypt'}, '0', db => 'app'), "DROP $drop: it is dropped");
	$dropper->close;
}

# Made anew: it works, and no problem of the past is told of.
value($node, 'CREATE EXTENSION pg_fieldcrypt', db => 'app');
value($node, q{SELECT fieldcrypt.create_key('x')}, db => 'app');
gives($node, 'SELECT last_problem IS NULL FROM fieldcrypt.audit_status()', 't', 'no problem is left', db => 'app');
ok(eventually($node, q{SELECT count(*) > 0 FROM fieldcrypt.audit_checkpoints}, 't', db => 'app'), 'the log is sealed');

# A prepared DROP keeps nobody, nor the server from stopping.
{
	$node->append_conf('postgresql.conf', 'max_prepared_transactions = 2');
	$node->restart;
	value($node, q{SELECT fieldcrypt.create_key('y')}, db => 'app');
	value($node, q{SET fieldcrypt.allow_drop = on; BEGIN; DROP EXTENSION pg_fieldcrypt CASCADE; PREPARE TRANSACTION 'drop'}, db => 'app');
	my $began = time;
	$node->restart;
	cmp_ok(time - $began, '<', 25, 'a prepared DROP does not keep the server from stopping');
	value($node, q{ROLLBACK PREPARED 'drop'}, db => 'app');
	value($node, q{SELECT fieldcrypt.create_key('z')}, db => 'app');
	ok(eventually($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE leaf IS NULL}, '0', db => 'app'), 'and then all is sealed');
}

my $log = slurp_file($node->logfile);
unlike($log, qr/deadlock detected/, 'no deadlock');
unlike($log, qr/could not open relation|cache lookup failed|ERROR:  pg_fieldcrypt is not installed/, 'no error of a worker');
unlike($log, qr/background worker "pg_fieldcrypt audit worker" \(PID [0-9]+\) exited with exit code 1/, 'no worker ended by an error');
no_crash($node);
$node->stop;
done_testing();

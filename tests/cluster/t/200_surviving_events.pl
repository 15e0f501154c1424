# Failed decrypts, refused calls and loads of the master key are recorded although their transaction is
# rolled back, each once, by a worker that comes when it is needed and leaves when it is not.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $preload = "shared_preload_libraries = 'pg_fieldcrypt'\n";
my $node = new_cluster('primary', conf => $preload . "max_parallel_workers_per_gather = 2\n");
value($node, <<'SQL');
CREATE TABLE kept (id int PRIMARY KEY, tenant text, value fieldcrypt.encrypted);
INSERT INTO kept SELECT g, 'clinic', fieldcrypt.encrypt_field('kept ' || g, 'place', 'clinic') FROM generate_series(1, 5) AS g;
CREATE ROLE app LOGIN;
SELECT fieldcrypt.grant_access('app', 'decrypt');
GRANT SELECT ON kept TO app;
SQL

# The rows of the log that an event left, after the last test's, once as many as expected are there.
my %seen;

sub recorded
{
	my ($expected, $name, %options) = @_;
	my $event = $options{event} // 'decrypt_failed';
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $db = $options{db} // 'postgres';
	my $seen = $seen{$event} // 0;
	my $query = "SELECT count(*) FROM fieldcrypt.audit_log WHERE event = '$event' AND id > $seen";
	eventually($node, $query, $expected, db => $db)
	  or return fail("$name: " . value($node, $query, db => $db) . " rows instead of $expected");
	# Another worker's round would bring what was recorded twice.
	Time::HiRes::usleep(700_000) if $options{once} // 1;
	is(value($node, $query, db => $db), $expected, $name);
	my $rows = value($node, <<"SQL", db => $db);
SELECT concat_ws('|', actor, role, coalesce(tenant, '-'), coalesce(key_id = (SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'clinic'), false),
                 error_code, value_count, application, transaction_id IS NULL)
  FROM fieldcrypt.audit_log WHERE event = '$event' AND id > $seen ORDER BY id
SQL
	$seen{$event} = value($node, "SELECT coalesce(max(id), $seen) FROM fieldcrypt.audit_log WHERE event = '$event'", db => $db);
	return $rows;
}

my $failing = q{SELECT fieldcrypt.decrypt_field(value, 'elsewhere') FROM kept WHERE id = 1};

# Where a decrypt fails
{
	refused($node, $failing, 'KF002', 'a decrypt with the wrong context fails', user => 'app');
	my $rows = recorded(1, 'it is recorded, once');
	like($rows, qr/^app\|app\|clinic\|t\|KF002\|1\|\S+\|t$/, 'with who, whose key, which key, and why');

	refused($node, "BEGIN; $failing; COMMIT", 'KF002', 'in a transaction');
	recorded(1, 'recorded, once');

	run_sql($node, "BEGIN; SAVEPOINT a; $failing; ROLLBACK TO a; INSERT INTO kept VALUES (100); ROLLBACK");
	recorded(1, 'in a savepoint, and the rest rolled back: recorded once');

	value($node, <<"SQL");
DO \$\$ BEGIN
    FOR i IN 1 .. 3 LOOP
        BEGIN
            PERFORM fieldcrypt.decrypt_field(value, 'elsewhere') FROM kept WHERE id = 1;
        EXCEPTION WHEN OTHERS THEN NULL;
        END;
    END LOOP;
END \$\$
SQL
	recorded(3, 'in an exception block of PL/pgSQL, three times: recorded three times');

	value($node, 'SET ROLE app; DO $$ BEGIN PERFORM fieldcrypt.decrypt_field(value) FROM kept; EXCEPTION WHEN OTHERS THEN END $$');
	like(recorded(1, 'under SET ROLE'), qr/^(?!app)[\w-]+\|app\|/, 'with the actor and the role');
}

# How the statement ends afterwards
{
	my $then = q{DO $$ BEGIN BEGIN PERFORM fieldcrypt.decrypt_field(value) FROM kept; EXCEPTION WHEN OTHERS THEN END; PERFORM pg_sleep(600); END $$};
	my $session = session($node);
	$session->send("SET statement_timeout = '3s'; $then;");
	recorded(1, 'a statement that is cancelled afterwards: recorded once');
	$session->close;

	my $doomed = session($node);
	my $pid = $doomed->value('SELECT pg_backend_pid()');
	$doomed->send("$then;");
	eventually($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND wait_event = 'PgSleep'", '1');
	value($node, "SELECT pg_terminate_backend($pid)");
	recorded(1, 'a backend that is terminated afterwards: recorded once');
	$doomed->close;
}

# Parallel
{
	value($node, <<'SQL');
CREATE TABLE many AS SELECT g AS id, value FROM kept, generate_series(1, 20000) AS g WHERE kept.id = 1;
ANALYZE many;
SQL
	my $settings = 'SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET parallel_leader_participation = off;';
	like(value($node, "$settings EXPLAIN SELECT count(fieldcrypt.decrypt_field(value, 'place')) FROM many"), qr/Gather/, 'the query is parallel');
	refused($node, "$settings SET max_parallel_workers_per_gather = 1; SELECT count(fieldcrypt.decrypt_field(value, 'elsewhere')) FROM many", 'KF002', 'a decrypt fails in a parallel worker');
	recorded(1, 'recorded once');
}

# Why a decrypt fails
{
	my $key = value($node, "SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'clinic'");
	my $fails = sub {
		my ($sql, $code, $name, %options) = @_;
		refused($node, $sql, $code, "$name: refused", %options);
		like(recorded(1, "$name: recorded", once => 0), qr/\|$code\|/, "$name: with its code");
	};
	$fails->(q{SET fieldcrypt.tenant = 'other'; SELECT fieldcrypt.decrypt_field(value, 'place') FROM kept WHERE id = 1}, 'KF006', 'another tenant');
	$fails->(q{SELECT fieldcrypt.decrypt_field(overlay(value::bytea PLACING '\x01' FROM 4 FOR 1)::fieldcrypt.encrypted, 'place') FROM kept WHERE id = 1}, 'KF003', 'an unknown key');
	value($node, "SELECT fieldcrypt.suspend_key($key, 'test')");
	$fails->(q{SELECT fieldcrypt.decrypt_field(value, 'place') FROM kept WHERE id = 1}, 'KF004', 'a suspended key');
	value($node, "SELECT fieldcrypt.resume_key($key, 'test')");
	my $second = value($node, q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', '', 'gone'))});
	value($node, q{CREATE TABLE gone AS SELECT fieldcrypt.encrypt_field('x', '', 'gone') AS value});
	past_the_guard($node, "UPDATE fieldcrypt.encryption_keys SET state = 'destroyed', wrapped_key = NULL WHERE key_id = $second");
	$fails->(q{SELECT fieldcrypt.decrypt_field(value) FROM gone}, 'KF005', 'a destroyed key');
	is(value($node, q{SELECT fieldcrypt.try_decrypt_field(value) IS NULL FROM gone}), 't', 'try_decrypt_field gives NULL');
	like(recorded(1, 'which is recorded, too'), qr/\|KF005\|1\|/, 'once a statement');

	# Bytes that are no value where a value is stored: a cast that only a superuser can make brings them there.
	value($node, <<'SQL');
CREATE TYPE forged;
CREATE FUNCTION forged_in(cstring) RETURNS forged LANGUAGE internal IMMUTABLE STRICT AS 'byteain';
CREATE FUNCTION forged_out(forged) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'byteaout';
SET client_min_messages = error;
CREATE TYPE forged (INPUT = forged_in, OUTPUT = forged_out, LIKE = bytea);
CREATE CAST (bytea AS forged) WITHOUT FUNCTION;
CREATE CAST (forged AS fieldcrypt.encrypted) WITHOUT FUNCTION;
CREATE TABLE damaged AS
    SELECT 'version' AS part, overlay(value::bytea PLACING '\x00' FROM 1)::forged::fieldcrypt.encrypted AS value FROM kept WHERE id = 1
    UNION ALL SELECT 'end', substr(value::bytea, 1, 30)::forged::fieldcrypt.encrypted FROM kept WHERE id = 1;
SQL
	$fails->("SELECT fieldcrypt.decrypt_field(value, 'place') FROM damaged WHERE part = '$_'", 'KF001', "a stored value with a damaged $_") foreach 'version', 'end';

	# No master key is configured, another is loaded.
	my $path = $node->basedir . '/master.key';
	configure($node, 'fieldcrypt.master_key_file' => '');
	$fails->(q{SELECT fieldcrypt.decrypt_field(value, 'place') FROM kept WHERE id = 1}, 'KF008', 'no master key is configured');
	configure($node);
	write_key_file($path, key_text(2));
	$fails->(q{SELECT fieldcrypt.decrypt_field(value, 'place') FROM kept WHERE id = 1}, 'KF010', 'another master key');
	write_key_file($path, key_text(1));
	gives($node, <<"SQL", <<'EXPECTED' =~ s/\n$//r, 'with the reason, and with tenant and key where bytes tell of them');
SELECT error_code, event, tenant, key_id = $key, regexp_replace(reason, 'by master key [0-9A-F.]+; loaded: [0-9A-F.]+', 'by another master key') FROM fieldcrypt.audit_log
 WHERE error_code IN ('KF001', 'KF008', 'KF010') ORDER BY error_code, event, id
SQL
KF001|decrypt_failed|||not an encrypted value: invalid header
KF001|decrypt_failed|||not an encrypted value: too short
KF008|decrypt_failed|clinic|t|no master key is configured
KF008|master_key_failed|||no master key is configured
KF010|decrypt_failed|clinic|t|keys in this database are wrapped by another master key
EXPECTED
	$seen{master_key_failed} = value($node, 'SELECT max(id) FROM fieldcrypt.audit_log');

	# The master key is away.
	value($node, 'SELECT 1');
	rename $path, "$path.away" or die;
	$fails->(q{SELECT fieldcrypt.decrypt_field(value, 'place') FROM kept WHERE id = 1}, 'KF009', 'no master key');
	recorded(1, 'and that the master key could not be loaded', event => 'master_key_failed');
	rename "$path.away", $path or die;
	eventually($node, 'SELECT ring_used FROM fieldcrypt.audit_status()', 0);
	$seen{master_key_loaded} = value($node, 'SELECT max(id) FROM fieldcrypt.audit_log');
	value($node, q{SELECT fieldcrypt.decrypt_field(value, 'place') FROM kept WHERE id = 1});
	recorded(1, 'a load of the master key is recorded', event => 'master_key_loaded');
}

# Refused calls
{
	refused($node, 'DELETE FROM fieldcrypt.encryption_keys', 'KF015', 'keys are guarded');
	recorded(1, 'an attack on a guarded table is recorded', event => 'call_refused');
	value($node, 'CREATE ROLE stranger LOGIN; CREATE FUNCTION unrelated() RETURNS int LANGUAGE sql AS $$SELECT 1$$; REVOKE ALL ON FUNCTION unrelated FROM PUBLIC; GRANT USAGE ON SCHEMA fieldcrypt TO stranger');
	foreach my $call (
		q{SELECT fieldcrypt.decrypt_field(NULL)}, q{CALL fieldcrypt.rotate_keys()}, 'SELECT * FROM fieldcrypt.audit_log', 'SELECT wrapped_key FROM fieldcrypt.encryption_keys',
		q{SELECT * FROM fieldcrypt.reencryption_progress})
	{
		isnt("@{ run_sql($node, $call, user => 'stranger')->{sqlstates} }", '', "a role without rights is refused: $call");
	
		like(recorded(1, 'and it is recorded', event => 'call_refused', once => 0), qr/^stranger\|stranger\|.*42501/, 'with who');
	}
	refused($node, q{BEGIN; SELECT 1; SET application_name = 'pooled'; SELECT fieldcrypt.encrypt_field('x', 'y')}, '42501', 'a session that goes by another name', user => 'stranger');
	like(recorded(1, 'is recorded', event => 'call_refused', once => 0), qr/\|pooled\|/, 'by that');
	refused($node, 'SELECT unrelated()', '42501', 'another function', user => 'stranger');
	recorded(0, 'is not recorded', event => 'call_refused');
	refused($node, 'CREATE MATERIALIZED VIEW leak AS SELECT fieldcrypt.decrypt_field(value, $$place$$) FROM kept', 'KF014', 'plaintext in a materialized view is refused')
	  and recorded(1, 'and recorded', event => 'call_refused');
}

# The worker
{
	$node->append_conf('postgresql.conf', "fieldcrypt.audit_worker_linger = '300ms'");
	$node->reload;
	refused($node, $failing, 'KF002', 'another failure');
	recorded(1, 'recorded');
	eventually($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_fieldcrypt audit worker'}, '0');
	is(value($node, q{SELECT worker_pid IS NULL FROM fieldcrypt.audit_status()}), 't', 'the worker leaves when nothing is to be done');
	is(scalar(processes(command => 'pg_fieldcrypt audit launcher', parent => postmaster($node))), 1, 'the launcher stays');
	refused($node, $failing, 'KF002', 'and another failure');
	recorded(1, 'recorded by a new worker');
	is(value($node, 'SELECT ring_used, gap_events, is_preloaded, is_standby FROM fieldcrypt.audit_status()'), '0|0|t|f', 'nothing is left in the queue');
}

# Several databases, one without the extension
{
	create_database($node, 'second');
	value($node, q{CREATE TABLE kept AS SELECT 1 AS id, fieldcrypt.encrypt_field('x') AS value}, db => 'second');
	refused($node, $failing, 'KF002', 'a failure in another database', db => 'second');
	eventually($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'}, '1', db => 'second');
	is(value($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'}, db => 'second'), '1', 'is recorded there');
	recorded(0, 'and not here');
}

no_crash($node);
done_testing();

# Who wants events kept out of the log, or the server not to stop: SQL users without rights, owners of
# databases and tables, locks and standbys that are not there.
use strict;
use warnings;

use lib 'lib';
use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $node = new_cluster('primary', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_seal_interval = 500ms
fieldcrypt.audit_worker_linger = 1s
max_prepared_transactions = 5
CONF
value($node, <<'SQL');
CREATE ROLE nobody0 LOGIN;
CREATE ROLE app LOGIN;
CREATE ROLE db_owner LOGIN;
SQL

sub prepare_database
{
	my ($db) = @_;
	value($node, <<'SQL', db => $db);
SELECT fieldcrypt.grant_access('app', 'decrypt');
CREATE TABLE people (id integer PRIMARY KEY, v fieldcrypt.encrypted);
INSERT INTO people VALUES (1, fieldcrypt.encrypt_field('a value', 'right'));
GRANT SELECT ON people TO app;
SQL
	return;
}

# A decryption that fails, under an application's name.
sub fail_as
{
	my ($name, %options) = @_;
	return run_sql($node, "SELECT fieldcrypt.decrypt_field(v, 'wrong') FROM people",
		user => 'app', env => { PGAPPNAME => $name }, %options);
}

# Whether such a failure comes into the log, and is sealed, within seconds.
sub is_recorded
{
	my ($name, %options) = @_;
	my $sql = "SELECT application FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed' AND leaf IS NOT NULL";
	foreach (1 .. 600)
	{
		return 1 if grep { $_ eq $name } split /\n/, value($node, $sql, %options);
		Time::HiRes::usleep(100_000);
	}
	diag run_sql($node, 'SELECT * FROM fieldcrypt.audit_status()', %options)->{out};
	diag run_sql($node, 'SELECT event, application, leaf FROM fieldcrypt.audit_log ORDER BY id DESC LIMIT 5', %options)->{out};
	return 0;
}

sub stops
{
	my ($name) = @_;
	my $since = time;
	system_log('pg_ctl', '-D', $node->data_dir, '-m', 'fast', '-w', '-t', '40', 'stop');
	my $is_stopped = !-e $node->data_dir . '/postmaster.pid';
	ok($is_stopped, $name) or diag time - $since, ' seconds';
	$node->stop('immediate') unless $is_stopped;
	$node->{_pid} = undef;
	return;
}

prepare_database('postgres');
create_database($node, 'owned', with => 'OWNER db_owner');
prepare_database('owned');
fail_as('before');
ok(is_recorded('before'), 'the log begins');

# 1. Statements that send workers away, by who may not run them.
foreach my $statement (
	'ALTER DATABASE postgres CONNECTION LIMIT 50',
	'ALTER DATABASE postgres RENAME TO mine',
	'ALTER DATABASE nowhere RENAME TO mine')
{
	my $session = session($node, user => 'nobody0');
	$session->run("BEGIN; SAVEPOINT one; $statement; ROLLBACK TO one;");
	$session->gives("SELECT 'still here'", 'still here', "a transaction stays open after: $statement");
	fail_as("kept out by $statement");
	ok(is_recorded("kept out by $statement"), "nobody is kept out of the log by: $statement");
	$session->close;
}
{
	my $session = session($node, db => 'owned', user => 'db_owner');
	$session->run('BEGIN; ALTER DATABASE owned CONNECTION LIMIT 50;');
	fail_as('limit', db => 'owned');
	ok(is_recorded('limit', db => 'owned'), 'an open ALTER DATABASE … CONNECTION LIMIT by its owner keeps nothing out');
	$session->run('ROLLBACK');
	$session->close;
}
create_database($node, 'other', with => 'OWNER db_owner', extension => 0);
{
	my $session = session($node, db => 'owned', user => 'db_owner');
	value($node, 'ALTER ROLE db_owner CREATEDB');
	$session->gives("BEGIN; ALTER DATABASE other RENAME TO another; SELECT 'renamed'", 'renamed', 'a database is renamed, and the transaction stays open');
	fail_as('renaming');
	ok(is_recorded('renaming'), 'of one database that is renamed the others\' workers know nothing');
	$session->run('ROLLBACK');
	$session->close;
}

# 2. Settings that the owner gives his database.
foreach my $setting (
	'default_transaction_read_only = on',
	"default_transaction_isolation = 'serializable'",
	'default_transaction_deferrable = on',
	"search_path = 'nowhere'")
{
	value($node, "ALTER DATABASE owned SET $setting", user => 'db_owner');
	eventually($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_fieldcrypt audit worker' AND datname = 'owned'", '0');
	run_sql($node, "SELECT fieldcrypt.decrypt_field(v, 'wrong') FROM public.people",
		db => 'owned', user => 'app', env => { PGAPPNAME => $setting });
	value($node, 'ALTER DATABASE owned RESET ALL');
	ok(is_recorded($setting, db => 'owned'), "the database's $setting does not keep the worker from writing");
}

# 3. Rows of prepared transactions.
{
	value($node, "BEGIN; SELECT fieldcrypt.create_key('prepared'); PREPARE TRANSACTION 'keys'");
	eventually($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_fieldcrypt audit worker' AND datname = 'postgres'", '0');
	value($node, "COMMIT PREPARED 'keys'");
	ok(eventually($node, "SELECT count(*) FROM fieldcrypt.audit_log WHERE tenant = 'prepared' AND leaf IS NOT NULL", '1'),
		'what a prepared transaction wrote to the log is sealed when it commits');
}

# 4. A number that somebody forged is not counted up to.
{
	my $id = value($node, "SELECT id FROM fieldcrypt.audit_log WHERE leaf IS NOT NULL ORDER BY leaf DESC LIMIT 1");
	value($node, <<"SQL");
BEGIN;
SET LOCAL session_replication_role = replica;
CREATE TABLE kept AS SELECT id, leaf FROM fieldcrypt.audit_log WHERE id = $id;
CREATE TABLE kept_size AS SELECT id, size FROM fieldcrypt.audit_checkpoints ORDER BY size DESC, id DESC LIMIT 1;
UPDATE fieldcrypt.audit_log SET leaf = 1::bigint << 50 WHERE id = $id;
UPDATE fieldcrypt.audit_checkpoints SET size = 1::bigint << 51 WHERE id = (SELECT id FROM kept_size);
COMMIT;
SQL
	my $result = eval {
		local $SIG{ALRM} = sub { die "timeout\n" };
		alarm 30;
		my $result = run_sql($node, "SELECT fieldcrypt.audit_proof($id)");
		alarm 0;
		$result;
	};
	is(join(' ', @{ ($result // {})->{sqlstates} // ['for ever'] }), 'KF027', 'a proof of a row with a forged number is refused at once');
	value($node, <<'SQL');
BEGIN;
SET LOCAL session_replication_role = replica;
UPDATE fieldcrypt.audit_log AS l SET leaf = k.leaf FROM kept AS k WHERE l.id = k.id;
UPDATE fieldcrypt.audit_checkpoints AS c SET size = k.size FROM kept_size AS k WHERE c.id = k.id;
DROP TABLE kept, kept_size;
COMMIT;
SQL
}

# Who may nothing at all is refused before his first statement is analyzed.
{
	refused($node, "SELECT fieldcrypt.encrypt_field('x')", '42501', 'a role without rights is refused', user => 'nobody0');
	ok(eventually($node, "SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'call_refused' AND actor = 'nobody0'", '1'),
		'and that is recorded, though it was the first statement of the session');
}

# A role that got its name in a database of another encoding.
{
	my $name = "caf\xe9";
	create_database($node, 'bytes', extension => 0, with => "ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'");
	value($node, "CREATE ROLE \"$name\" LOGIN IN ROLE app", db => 'bytes');
	run_sql($node, "SELECT fieldcrypt.decrypt_field(v, 'wrong') FROM people", user => $name);
	ok(eventually($node, "SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed' AND actor = 'caf\\xe9'", '1'),
		'is in the log with the bytes that are no text here in hex, so that the log can be dumped and restored');
}

# 5. The extension belongs to somebody who is no superuser, and puts triggers on the log.
{
	value($node, "CREATE ROLE installer SUPERUSER LOGIN; CREATE ROLE table_owner LOGIN; CREATE DATABASE given");
	value($node, 'CREATE EXTENSION pg_fieldcrypt; GRANT CREATE ON SCHEMA public TO table_owner', db => 'given', user => 'installer');
	prepare_database('given');
	refused($node, 'REASSIGN OWNED BY installer TO table_owner', '42501', 'the extension as a whole is given to nobody who is no superuser', db => 'given');
	value($node, <<'SQL', db => 'given');
DO $$
DECLARE
    command text;
BEGIN
    FOR command IN
        SELECT format('ALTER SCHEMA %I OWNER TO table_owner', nspname) FROM pg_namespace WHERE nspname ~ '^fieldcrypt'
        UNION ALL
        SELECT format('ALTER %s %s OWNER TO table_owner', CASE relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, oid::regclass)
          FROM pg_class WHERE relnamespace::regnamespace::text ~ '^fieldcrypt' AND relkind IN ('r', 'p', 'S', 'v')
        UNION ALL
        SELECT format('ALTER ROUTINE %s OWNER TO table_owner', oid::regprocedure) FROM pg_proc WHERE pronamespace::regnamespace::text ~ '^fieldcrypt'
    LOOP
        EXECUTE command;
    END LOOP;
END $$;
SQL
	fail_as('given', db => 'given');
	ok(is_recorded('given', db => 'given'), 'the log of an owner who is no superuser is written');
	value($node, <<'SQL', db => 'given', user => 'table_owner');
CREATE FUNCTION public.planted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'ALTER ROLE table_owner SUPERUSER';
    RETURN NULL;
EXCEPTION WHEN insufficient_privilege THEN
    RETURN NULL;
END $$;
DO $$ BEGIN
    EXECUTE format('CREATE CONSTRAINT TRIGGER planted AFTER INSERT OR UPDATE ON fieldcrypt_internal.audit_log_%s
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.planted()', EXTRACT(year FROM now() AT TIME ZONE 'UTC'));
END $$;
SQL
	fail_as('escalation', db => 'given');
	Time::HiRes::sleep(3);
	gives($node, "SELECT rolsuper FROM pg_roles WHERE rolname = 'table_owner'", 'f', 'a deferred trigger of the owner does not run as the worker');
	# Nor as a superuser who uses keys there.
	value($node, <<'SQL', db => 'given', user => 'table_owner');
CREATE CONSTRAINT TRIGGER planted AFTER INSERT OR UPDATE ON fieldcrypt.encryption_keys
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.planted();
SQL
	foreach my $statement ("SELECT fieldcrypt.create_key('lured')", "SELECT fieldcrypt.encrypt_field('x', '', 'lured too')",
		"CALL fieldcrypt.rotate_keys('default')", 'CALL fieldcrypt.rotate_master_key()', 'SELECT count(*) FROM fieldcrypt.verify_audit_log()')
	{
		run_sql($node, $statement, db => 'given');
		gives($node, "SELECT rolsuper FROM pg_roles WHERE rolname = 'table_owner'", 'f', "nor in a superuser's $statement");
		value($node, 'ALTER ROLE table_owner NOSUPERUSER');
	}
	value($node, 'DROP FUNCTION public.planted() CASCADE', db => 'given');
	ok(is_recorded('escalation', db => 'given'), 'the event is not lost meanwhile');
	value($node, "SELECT fieldcrypt.create_key('lured')", db => 'given');
}

# 6. A standby that never answers, and a lock that nobody gives up.
{
	configure($node, synchronous_standby_names => 'nobody', synchronous_commit => 'on');
	fail_as('no standby');
	ok(is_recorded('no standby'), 'a synchronous standby that does not answer keeps no event out');
	stops('the server stops without the standby');
	unlink $node->data_dir . '/configure.conf';
	append_to_file($node->data_dir . '/configure.conf', "\n");
	$node->start;
	value($node, "BEGIN; SELECT fieldcrypt.acknowledge_audit_fork('it is long'); PREPARE TRANSACTION 'lock'");
	fail_as('locked');
	Time::HiRes::sleep(2);
	stops('the server stops although a prepared transaction keeps the log from being sealed');
	$node->start;
	value($node, "ROLLBACK PREPARED 'lock'");
	fail_as('afterwards');
	ok(is_recorded('afterwards'), 'it goes on afterwards');
	ok(is_recorded('locked'), 'and what happened meanwhile is in the log, too');
	gives($node, "SELECT reason LIKE 'clean%' FROM fieldcrypt.audit_log WHERE event = 'audit_started' ORDER BY id DESC LIMIT 1", 't',
		'nothing is missing');
}

gives($node, "SELECT DISTINCT status FROM fieldcrypt.verify_audit_log() WHERE status = 'critical'", '', 'the log is whole');
no_crash($node);
done_testing();

# Nothing drops the extension, its type, its keys or its log while there are keys that are not destroyed: by whatever
# statement, in sessions that have not loaded the library, too. Who says so in the session, as a superuser, may: for a
# restore that makes it anew. pg_restore --clean and pg_upgrade are the real ones.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $message = qr/not dropped while encryption keys exist.*SELECT fieldcrypt\.export_keys\(\).*SET fieldcrypt\.allow_drop = on/s;
my $all = q{SELECT (SELECT count(*) FROM fieldcrypt.encryption_keys), (SELECT count(*) > 0 FROM fieldcrypt.audit_log),
	(SELECT string_agg(fieldcrypt.decrypt_field(value::fieldcrypt.encrypted), ',') FROM as_bytes)};

# What holds values in a column of another type, so that nothing depends on the extension.
sub prepare
{
	my ($node, %options) = @_;
	value($node, <<'SQL', %options);
CREATE TABLE as_bytes AS SELECT fieldcrypt.encrypt_field(v)::bytea AS value FROM unnest('{one,two}'::text[]) AS v;
CREATE FUNCTION public.by_a_function() RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'DROP EXTENSION pg_fieldcrypt CASCADE'; END $$;
SQL
	return;
}

my @drops = (
	'DROP EXTENSION pg_fieldcrypt',
	'DROP EXTENSION IF EXISTS pg_fieldcrypt',
	'DROP EXTENSION pg_fieldcrypt CASCADE',
	'DROP EXTENSION plpgsql CASCADE',
	'DROP OWNED BY keeper CASCADE',
	'DROP OWNED BY keeper',
	'SELECT public.by_a_function()',
	q{DO $$ BEGIN EXECUTE 'DROP EXTENSION pg_fieldcrypt'; EXCEPTION WHEN feature_not_supported THEN NULL; END $$},
	'SET session_replication_role = replica; DROP EXTENSION pg_fieldcrypt CASCADE',
	"SET fieldcrypt.allow_drop = off; DROP EXTENSION pg_fieldcrypt CASCADE",
	# Taken out of the extension first.
	'ALTER EXTENSION pg_fieldcrypt DROP TABLE fieldcrypt.encryption_keys; DROP TABLE fieldcrypt.encryption_keys CASCADE',
	'ALTER EXTENSION pg_fieldcrypt DROP TABLE fieldcrypt.master_keys; DROP TABLE fieldcrypt.master_keys',
	'ALTER EXTENSION pg_fieldcrypt DROP TABLE fieldcrypt.audit_log; DROP TABLE fieldcrypt.audit_log CASCADE',
	'ALTER EXTENSION pg_fieldcrypt DROP TABLE fieldcrypt_internal.audit_log_2031; DROP TABLE fieldcrypt_internal.audit_log_2031',
	'ALTER EXTENSION pg_fieldcrypt DROP TABLE fieldcrypt.audit_checkpoints; DROP TABLE fieldcrypt.audit_checkpoints CASCADE',
	'ALTER EXTENSION pg_fieldcrypt DROP TYPE fieldcrypt.encrypted; DROP TYPE fieldcrypt.encrypted CASCADE',
	'ALTER EXTENSION pg_fieldcrypt DROP FUNCTION fieldcrypt_internal.encrypted_in(cstring); DROP FUNCTION fieldcrypt_internal.encrypted_in(cstring) CASCADE',
	'ALTER EXTENSION pg_fieldcrypt DROP SCHEMA fieldcrypt; DROP SCHEMA fieldcrypt CASCADE',
	'ALTER EXTENSION pg_fieldcrypt DROP SCHEMA fieldcrypt_internal; DROP SCHEMA fieldcrypt_internal CASCADE',
	'ALTER TABLE fieldcrypt.encryption_keys DROP COLUMN wrapped_key CASCADE',
	# In the transaction that was let drop the extension.
	'SET client_min_messages = error; ALTER EXTENSION pg_fieldcrypt DROP SCHEMA fieldcrypt;
	 ALTER EXTENSION pg_fieldcrypt DROP TABLE fieldcrypt.encryption_keys; SET LOCAL fieldcrypt.allow_drop = on; DROP EXTENSION pg_fieldcrypt CASCADE;
	 SET LOCAL fieldcrypt.allow_drop = off; DROP TABLE fieldcrypt.encryption_keys CASCADE',
	# Under another name.
	'ALTER SCHEMA fieldcrypt RENAME TO other; DROP EXTENSION pg_fieldcrypt CASCADE',
	'ALTER SCHEMA fieldcrypt RENAME TO other; ALTER SCHEMA fieldcrypt_internal RENAME TO another; DROP EXTENSION pg_fieldcrypt',
	'ALTER TABLE fieldcrypt.encryption_keys RENAME TO other; DROP EXTENSION pg_fieldcrypt CASCADE',
	'ALTER TABLE fieldcrypt.encryption_keys RENAME TO other; CREATE TABLE fieldcrypt.encryption_keys (LIKE fieldcrypt.other);
	 DROP EXTENSION pg_fieldcrypt CASCADE');

my $superuser = getpwuid $<;
foreach my $preload ('', 'pg_fieldcrypt')
{
	my $kind = $preload ? 'preloaded' : 'not preloaded';
	my $node = new_cluster($preload ? 'preloaded' : 'plain', extension => 0, conf => "shared_preload_libraries = '$preload'");
	# Not the superuser that initdb made, of which DROP OWNED drops nothing.
	value($node, 'CREATE ROLE keeper SUPERUSER LOGIN; CREATE ROLE stranger LOGIN');

	# Where the extension is not, its names are anybody's; also once it is in the database beside.
	my $namesake = q{SET ROLE stranger; CREATE SCHEMA fieldcrypt; CREATE TABLE fieldcrypt.audit_x (a int); CREATE TYPE fieldcrypt.encrypted AS (a int);
		CREATE TABLE fieldcrypt.encryption_keys (a int, wrapped_key bytea); CREATE TABLE fieldcrypt.master_keys (a int); RESET ROLE};
	create_database($node, 'beside', extension => 0);
	value($node, 'CREATE EXTENSION pg_fieldcrypt', user => 'keeper');
	value($node, 'GRANT CREATE ON DATABASE beside TO stranger');
	gives($node, "SET client_min_messages = error; LOAD 'pg_fieldcrypt'; BEGIN; $namesake; $_; ROLLBACK", '', "$kind, without the extension: $_", db => 'beside')
	  foreach 'DROP TABLE fieldcrypt.audit_x', 'DROP TYPE fieldcrypt.encrypted', 'DROP TABLE fieldcrypt.encryption_keys', 'DROP TABLE fieldcrypt.master_keys',
	  'ALTER TABLE fieldcrypt.encryption_keys DROP COLUMN wrapped_key', 'DROP SCHEMA fieldcrypt CASCADE', 'DROP OWNED BY stranger CASCADE';

	# Without keys there is nothing to lose.
	gives($node, "BEGIN; $_; ROLLBACK", '', "$kind, no keys: $_") foreach 'DROP EXTENSION pg_fieldcrypt', 'DROP OWNED BY keeper CASCADE';

	prepare($node);
	my $before = value($node, $all);
	refused($node, "BEGIN; $_; COMMIT", 'KF032', $message, "$kind: $_") foreach @drops;
	refused($node, $_, 'KF032', $message, "$kind: $_, by itself") foreach @drops[0, 2];
	refused($node, "BEGIN; SAVEPOINT s; DROP EXTENSION pg_fieldcrypt; ROLLBACK TO s; COMMIT", 'KF032', $message, "$kind: within a savepoint");
	refused($node, 'DROP SCHEMA fieldcrypt CASCADE', '2BP01', "$kind: a schema that is the extension's");
	value($node, 'CREATE TABLE typed (value fieldcrypt.encrypted)');
	refused($node, 'DROP EXTENSION pg_fieldcrypt', '2BP01', "$kind: who leaves out CASCADE is told of the column first");
	refused($node, 'DROP EXTENSION pg_fieldcrypt CASCADE', 'KF032', $message, "$kind: CASCADE is no answer to that");
	value($node, 'DROP TABLE typed');
	gives($node, $all, $before, "$kind: nothing is lost");
	gives($node, q{SELECT count(*) FROM pg_depend WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'plpgsql')},
		4, "$kind: nor of plpgsql");

	# Other drops go on as ever, also of what only looks like it.
	gives($node, "BEGIN; $_; ROLLBACK", '', "$kind: allowed: $_") foreach (
		'CREATE TABLE encryption_keys (id int); DROP TABLE encryption_keys',
		'CREATE SCHEMA app; CREATE TABLE app.audit_log (id int, value fieldcrypt.encrypted); DROP SCHEMA app CASCADE',
		'CREATE TYPE encrypted AS (a int); DROP TYPE encrypted',
		'ALTER TABLE fieldcrypt.audit_log ADD COLUMN later text; ALTER TABLE fieldcrypt.audit_log DROP COLUMN later',
		'DROP INDEX fieldcrypt.audit_log_event',
		'DROP TABLE as_bytes',
		'CREATE EXTENSION pgcrypto; DROP EXTENSION pgcrypto');
	value($node, 'CREATE TABLE parts (id int) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF parts FOR VALUES IN (1)');
	gives($node, 'ALTER TABLE parts DETACH PARTITION part CONCURRENTLY', '', "$kind: allowed: a partition is detached concurrently");
	gives($node, <<'SQL', '', "$kind: allowed: the key table is written anew");
VACUUM FULL fieldcrypt.encryption_keys;
REINDEX TABLE CONCURRENTLY fieldcrypt.encryption_keys;
CLUSTER fieldcrypt.encryption_keys USING encryption_keys_pkey;
SQL

	# Who may say so, and where.
	refused($node, 'SET fieldcrypt.allow_drop = on; DROP EXTENSION pg_fieldcrypt', $preload ? '42501 42501' : '42501', "$kind: no superuser", user => 'stranger');
	# Without preload this is a name that anybody may give a value; it counts for nothing.
	refused($node, 'SET SESSION AUTHORIZATION stranger; SET fieldcrypt.allow_drop = on; RESET SESSION AUTHORIZATION; DROP EXTENSION pg_fieldcrypt',
		$preload ? '42501 KF032' : 'KF032', "$kind: set by no superuser");
	if ($preload)
	{
		refused($node, $_, '22023', qr/turned on in a session only/, "$kind: $_")
		  foreach map { "ALTER $_ SET fieldcrypt.allow_drop = on" } 'SYSTEM', 'ROLE keeper', 'DATABASE postgres';
	}
	else
	{
		value($node, "ALTER ROLE keeper SET fieldcrypt.allow_drop = on; ALTER DATABASE postgres SET fieldcrypt.allow_drop = on");
		refused($node, 'DROP EXTENSION pg_fieldcrypt', 'KF032', $message, "$kind: what a role has counts for nothing", user => 'keeper');
		refused($node, 'DROP EXTENSION pg_fieldcrypt', 'KF032', $message, "$kind: nor what a database has");
		value($node, "ALTER ROLE keeper RESET fieldcrypt.allow_drop; ALTER DATABASE postgres RESET fieldcrypt.allow_drop");
	}
	configure($node, 'fieldcrypt.allow_drop' => 'on');
	refused($node, 'DROP EXTENSION pg_fieldcrypt', 'KF032', $message, "$kind: nor what the configuration file has");
	configure($node);
	my $denied = run_sql($node, 'DROP EXTENSION pg_fieldcrypt', user => 'stranger', env => { PGOPTIONS => '-c fieldcrypt.allow_drop=on' });
	like($denied->{err}, $preload ? qr/permission denied to set parameter/ : qr/must be owner of extension/, "$kind: PGOPTIONS of no superuser");
	refused($node, 'BEGIN; SET LOCAL fieldcrypt.allow_drop = on; COMMIT; DROP EXTENSION pg_fieldcrypt', 'KF032', $message, "$kind: said for another transaction");

	# It is refused on the record.
	if ($preload)
	{
		ok(eventually($node, q{SELECT count(*) > 5 FROM fieldcrypt.audit_log WHERE event = 'call_refused' AND error_code = 'KF032'}, 't'),
			"$kind: refusals are recorded");
	}

	# And allowed.
	my $log = -s $node->logfile;
	foreach my $drop (@drops[2, 4], 'ALTER EXTENSION pg_fieldcrypt DROP TYPE fieldcrypt.encrypted; DROP TYPE fieldcrypt.encrypted CASCADE')
	{
		gives($node, "SET client_min_messages = error; BEGIN; SET LOCAL fieldcrypt.allow_drop = on; $drop; ROLLBACK", '', "$kind: said so, $drop");
	}
	gives($node, $all, $before, "$kind: rolled back");
	gives($node, "DROP EXTENSION pg_fieldcrypt", '', "$kind: said so by PGOPTIONS", env => { PGOPTIONS => '-c fieldcrypt.allow_drop=on' });
	like(slurp_file($node->logfile, $log), qr/LOG:  pg_fieldcrypt: the encryption keys of this database are dropped by "\Q$superuser\E", as fieldcrypt\.allow_drop allows/,
		"$kind: the server log tells of it");
	gives($node, 'CREATE EXTENSION pg_fieldcrypt; DROP EXTENSION pg_fieldcrypt', '', "$kind: made anew, and dropped without keys");

	no_crash($node);
	$node->stop;
}

# Only destroyed keys are left, of a log that has none: nothing more can be lost by it. The log's own key counts.
{
	my $node = new_cluster('destroyed', conf => "fieldcrypt.require_approval = ''");
	prepare($node);
	value($node, q{CALL fieldcrypt.shred_tenant('default', 'asked to')});
	refused($node, 'DROP EXTENSION pg_fieldcrypt', 'KF032', $message, 'the key of the log is one, too');
	past_the_guard($node, q{DELETE FROM fieldcrypt.encryption_keys WHERE purpose = 'audit'});
	gives($node, 'DROP EXTENSION pg_fieldcrypt', '', 'destroyed keys alone are none');
	$node->stop;
}

# pg_restore --clean, over the database that was dumped: with what is newer there.
{
	my $node = new_cluster('cleaned', extension => 0);
	my $folder = PostgreSQL::Test::Utils::tempdir();
	create_database($node, 'app');
	value($node, <<'SQL', db => 'app');
CREATE SCHEMA app;
CREATE TABLE app.typed (id int, value fieldcrypt.encrypted);
INSERT INTO app.typed SELECT i, fieldcrypt.encrypt_field('value ' || i) FROM generate_series(1, 10) AS i;
SQL
	prepare($node, db => 'app');
	my $values = $all . q{, (SELECT string_agg(fieldcrypt.decrypt_field(value), ',' ORDER BY id) FROM app.typed)};
	my $dumped = value($node, $values, db => 'app');
	dump_database($node, 'app', "$folder/custom", '-Fc');
	dump_database($node, 'app', "$folder/clean.sql", '--clean', '--if-exists');
	my $allowed = '-c client_min_messages=warning -c fieldcrypt.allow_drop=on';

	foreach my $way ([ "$folder/custom", '--clean', '--if-exists', '-e' ], [ "$folder/custom", '--clean', '--if-exists', '-e', '-1' ],
		[ "$folder/custom", '--clean', '-e' ], [ "$folder/clean.sql", '-v', 'ON_ERROR_STOP=1' ], [ "$folder/clean.sql", '-v', 'ON_ERROR_STOP=1', '-1' ])
	{
		my ($file, @arguments) = @$way;
		my $name = join ' ', $file =~ m{([^/]+)$}, @arguments;
		# A key that is not in the dump, with a value that nothing else will open.
		value($node, q{INSERT INTO as_bytes SELECT fieldcrypt.encrypt_field('newer', tenant => 'newer')::bytea}, db => 'app');
		my $newer = value($node, $values, db => 'app');
		my $result = restore_database($node, 'app', $file, @arguments, $arguments[-1] eq '-1' ? () : '-1');
		isnt($result->{code}, 0, "$name: refused");
		like($result->{err}, qr/not dropped while encryption keys exist.*PGOPTIONS='-c fieldcrypt\.allow_drop=on'/s, "$name: says how");
		gives($node, $values, $newer, "$name: all is there, also the newer key and its value", db => 'app');
		$result = restore_database($node, 'app', $file, @arguments, options => $allowed);
		is("$result->{code} $result->{err}", '0 ', "$name: said so, restored") or last;
		gives($node, $values, $dumped, "$name: as it was dumped", db => 'app');
		gives($node, q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x'))}, 'x', "$name: and goes on", db => 'app');
		refused($node, 'DROP EXTENSION pg_fieldcrypt CASCADE', 'KF032', "$name: guarded as before", db => 'app');
	}

	# Without saying so, and without stopping at errors: all else is restored under the keys that are there.
	value($node, q{SELECT fieldcrypt.create_key('newer'); UPDATE app.typed SET value = NULL}, db => 'app');
	my $result = restore_database($node, 'app', "$folder/custom", '--clean', '--if-exists');
	is($result->{code}, 1, 'not said, errors ignored: pg_restore tells that there were some');
	gives($node, $values, $dumped =~ s/^2/3/r, 'not said, errors ignored: the values of the dump, and every key', db => 'app');

	# Into a database without keys nothing has to be said.
	foreach my $with (0, 1)
	{
		my $db = create_database($node, "empty_$with", extension => $with);
		my $restored = restore_database($node, $db, "$folder/custom", '--clean', '--if-exists', '-e', '-1');
		is("$restored->{code} $restored->{err}", '0 ', 'no keys there: nothing has to be said, ' . ($with ? 'with' : 'without') . ' the extension');
		gives($node, $values, $dumped, 'no keys there: restored', db => $db);
	}
	no_crash($node);
	$node->stop;
}
done_testing();

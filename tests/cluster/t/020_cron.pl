# pg_cron rotates keys and re-encrypts, over a connection and in its background worker: as schedule_rotation sets it up in
# pg_cron's own database, and in another one by schedule_in_database. A tenant that fails stops nobody.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

needs_library('pg_cron');

my $data = <<'SQL';
CREATE TABLE t AS SELECT i, fieldcrypt.encrypt_field('of ' || i, tenant => 'tenant ' || i) AS value FROM generate_series(1, 25) AS i;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'disk full' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER fail BEFORE INSERT ON fieldcrypt.encryption_keys FOR EACH ROW WHEN (NEW.tenant = 'tenant 13') EXECUTE FUNCTION fail();
SQL
# An active key that is older than any policy.
my $age = q{UPDATE fieldcrypt.encryption_keys SET created_at = created_at - interval '100 days' WHERE tenant <> 'tenant 2'};

sub past_the_guard_in
{
	my ($node, $db, $sql) = @_;
	value($node, "SET session_replication_role = replica; $sql", db => $db);
	return;
}

my @nodes;
foreach my $how ('connection', 'background worker')
{
	my $node = new_cluster("cron_by_@{[ $how =~ s/ /_/r ]}", start => 0);
	$node->append_conf('postgresql.conf', join "\n",
		q{shared_preload_libraries = 'pg_cron'}, q{cron.database_name = 'postgres'}, q{max_worker_processes = 20},
		'cron.host = \'' . $node->host . q{'}, 'cron.use_background_workers = ' . ($how eq 'connection' ? 'off' : 'on'), '');
	$node->start;
	value($node, 'CREATE EXTENSION pg_fieldcrypt; CREATE ROLE rotator LOGIN');
	create_database($node, 'app');
	value($node, "SELECT fieldcrypt.grant_access('rotator', 'manage'); $data", db => $_) foreach 'postgres', 'app';
	past_the_guard_in($node, $_, $age) foreach 'postgres', 'app';
	value($node, <<'SQL', db => $_) foreach 'postgres', 'app';
CREATE TABLE moved AS SELECT i, fieldcrypt.encrypt_field('of ' || i, tenant => 'moved') AS value FROM generate_series(1, 100) AS i;
CALL fieldcrypt.rotate_keys('moved');
SQL

	# In a database that pg_cron is not at home in: an error that says what to run, and it works as it is.
	my $result = run_sql($node, q{SELECT fieldcrypt.schedule_rotation('* * * * *', '', '')}, db => 'app');
	is("@{ $result->{sqlstates} }", '0A000', "$how: not in another database");
	like($result->{err}, qr/pg_cron is not installed in this database/, "$how: not in another database, it says");
	my ($line) = $result->{err} =~ /here "postgres"\. Run there: (SELECT cron\.schedule_in_database\([^;]*;)\s/;
	is($line, q{SELECT cron.schedule_in_database('fieldcrypt rotation of app', '* * * * *', 'CALL fieldcrypt.rotate_keys()', 'app');}, "$how: and what to run instead");
	refused($node, 'SELECT fieldcrypt.unschedule_rotation()', '0A000', qr/pg_cron/, "$how: nothing to take away there", db => 'app');
	like(run_sql($node, 'SELECT fieldcrypt.schedule_rotation()', db => 'app')->{err},
		qr/'CALL fieldcrypt\.rotate_keys\(\)', 'app'\); SELECT cron\.schedule_in_database\('fieldcrypt re-encryption of app', '15 3 \* \* \*', 'CALL fieldcrypt\.reencrypt\(\)', 'app'\); SELECT cron\.schedule_in_database\('fieldcrypt destruction of app'/,
		"$how: a line for each job");

	# A schema of that name is not pg_cron.
	value($node, <<'SQL', db => 'app');
CREATE SCHEMA cron;
CREATE FUNCTION cron.schedule(text, text, text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the attacker''s function ran'; END $$;
SQL
	refused($node, 'SELECT fieldcrypt.schedule_rotation()', '0A000', qr/pg_cron is not installed/, "$how: a schema cron that is not pg_cron's", db => 'app');

	# Before pg_cron is installed, the same in its own database.
	refused($node, 'SELECT fieldcrypt.schedule_rotation()', '0A000', qr/not installed/, "$how: not before CREATE EXTENSION");
	value($node, 'CREATE EXTENSION pg_cron');
	refused($node, 'SELECT fieldcrypt.schedule_rotation(NULL)', '22004', qr/must not be NULL/, "$how: a NULL schedule");
	refused($node, q{SELECT fieldcrypt.schedule_rotation('* * * * *', NULL)}, '22004', "$how: another");
	isnt("@{ run_sql($node, q{SELECT fieldcrypt.schedule_rotation('* * * * *', 'every now and then')})->{sqlstates} }", '', "$how: a schedule that is none");
	gives($node, 'SELECT count(*) FROM cron.job', '0', "$how: then no job is made");
	refused($node, 'SELECT fieldcrypt.schedule_rotation()', '42501', "$how: a role without rights on pg_cron", user => 'rotator');
	value($node, 'GRANT USAGE ON SCHEMA cron TO rotator');
	gives($node, 'SELECT * FROM fieldcrypt.schedule_rotation()', <<'OUT' =~ s/\n\z//r, "$how: three jobs", user => 'rotator');
fieldcrypt rotation of postgres|0 3 * * *|CALL fieldcrypt.rotate_keys()
fieldcrypt re-encryption of postgres|15 3 * * *|CALL fieldcrypt.reencrypt()
fieldcrypt destruction of postgres|45 3 * * *|CALL fieldcrypt.destroy_due_keys()
OUT
	gives($node, 'SELECT count(*), min(username), min(database) FROM cron.job', '3|rotator|postgres', "$how: as the caller, in this database");
	gives($node, q{SELECT count(*) FROM fieldcrypt.schedule_rotation('* * * * *', '* * * * *', '')}, '2', "$how: again, another way", user => 'rotator');
	gives($node, 'SELECT jobname, schedule, command FROM cron.job ORDER BY command', <<'OUT' =~ s/\n\z//r, "$how: which replaces");
fieldcrypt re-encryption of postgres|* * * * *|CALL fieldcrypt.reencrypt()
fieldcrypt rotation of postgres|* * * * *|CALL fieldcrypt.rotate_keys()
OUT
	gives($node, 'SELECT fieldcrypt.unschedule_rotation()', '0', "$how: another role's jobs are left alone");
	value($node, "CREATE ROLE stranger LOGIN; GRANT USAGE ON SCHEMA cron TO stranger");
	refused($node, "SELECT fieldcrypt.$_", '42501', "$how: a role without manage: $_", user => 'stranger') foreach 'schedule_rotation()', 'unschedule_rotation()';
	# What the hint said, as rotator.
	value($node, $line =~ s/'app'\)/'app', 'rotator')/r);
	value($node, q{SELECT cron.schedule_in_database('move', '* * * * *', 'CALL fieldcrypt.reencrypt()', 'app', 'rotator')});
	push @nodes, { node => $node, how => $how };
}

# This pg_cron knows minutes ('N seconds' came with 1.5): both clusters wait for the same minute.
foreach my $each (@nodes)
{
	my ($node, $how) = @$each{ 'node', 'how' };
	ok($node->poll_query_until('postgres', q{SELECT count(DISTINCT (database, command)) = 4 FROM cron.job_run_details WHERE status IN ('succeeded', 'failed')}),
		"$how: the jobs ran");
	gives($node, q{SELECT fieldcrypt.unschedule_rotation()}, '2', "$how: unscheduled", user => 'rotator');
	value($node, q{SELECT cron.unschedule(jobid) FROM cron.job});
	gives($node, q{SELECT status, return_message FROM cron.job_run_details WHERE status <> 'succeeded'}, '', "$how: and succeeded, though a tenant failed");
	foreach my $db ('postgres', 'app')
	{
		gives($node, <<'SQL', 't|25|23|failed', "$how: in $db every key that was due was rotated, and everything is readable", db => $db);
SELECT (SELECT bool_and(n = 1) FROM (SELECT count(*) FILTER (WHERE state = 'active') AS n FROM fieldcrypt.encryption_keys GROUP BY tenant) AS a),
       (SELECT count(*) FROM t WHERE fieldcrypt.decrypt_field(value) = 'of ' || i),
       (SELECT count(DISTINCT tenant) FROM fieldcrypt.encryption_keys WHERE version >= 2 AND purpose = 'field' AND tenant <> 'moved'),
       (SELECT DISTINCT outcome FROM fieldcrypt.rotation_log WHERE tenant = 'tenant 13')
SQL
		gives($node, <<'SQL', "rotated|23|t|\nfailed|1|t|53100 disk full", "$how: in $db the log of rotations tells", db => $db);
SELECT outcome, count(DISTINCT tenant), bool_and(actor = 'rotator' AND ended_at >= started_at AND started_at >= run_started_at), string_agg(DISTINCT error_code || ' ' || error, ',')
  FROM fieldcrypt.rotation_log WHERE tenant NOT IN ('moved', 'audit log') GROUP BY outcome ORDER BY 1 DESC
SQL
		gives($node, <<'SQL', '100|1|100|done', "$how: in $db stored values were re-encrypted", db => $db);
SELECT (SELECT count(*) FROM moved WHERE fieldcrypt.decrypt_field(value) = 'of ' || i), count(DISTINCT k.key_id), count(*) FILTER (WHERE k.state = 'active'),
       (SELECT state FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.moved')
  FROM moved JOIN fieldcrypt.encryption_keys AS k ON k.key_id = fieldcrypt.key_id(moved.value)
SQL
		gives($node, q{SELECT count(*) FROM fieldcrypt.rotation_log WHERE tenant = 'tenant 2'}, '0', "$how: in $db a tenant whose key is young is left alone", db => $db);
	}
	no_crash($node);
	$node->stop;
}
done_testing();

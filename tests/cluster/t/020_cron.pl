# pg_cron rotates keys in a database that is not its own, over a connection and in its background worker.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my @nodes;
foreach my $how ('connection', 'background worker')
{
	my $node = new_cluster("cron_by_@{[ $how =~ s/ /_/r ]}", start => 0);
	$node->append_conf('postgresql.conf', join "\n",
		q{shared_preload_libraries = 'pg_cron'}, q{cron.database_name = 'postgres'}, q{max_worker_processes = 20},
		'cron.host = \'' . $node->host . q{'}, 'cron.use_background_workers = ' . ($how eq 'connection' ? 'off' : 'on'), '');
	$node->start;
	create_database($node, 'app');
	value($node, <<'SQL', db => 'app');
CREATE ROLE rotator LOGIN;
SELECT fieldcrypt.grant_access('rotator', 'manage');
CREATE TABLE t AS SELECT i, fieldcrypt.encrypt_field('of ' || i, tenant => 'tenant ' || i) AS value FROM generate_series(1, 25) AS i;
SQL
	value($node, <<'SQL');
CREATE EXTENSION pg_cron;
SELECT cron.schedule_in_database('rotate', '* * * * *', 'CALL fieldcrypt.rotate_keys(reason => ''by pg_cron'', force => true)', 'app', 'rotator');
SQL
	push @nodes, { node => $node, how => $how };
}

# pg_cron knows minutes, and seconds only in later versions: both clusters wait for the same minute.
foreach my $each (@nodes)
{
	my ($node, $how) = @$each{ 'node', 'how' };
	ok($node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM cron.job_run_details WHERE status IN ('succeeded', 'failed')}),
		"$how: the job ran");
	value($node, q{SELECT cron.unschedule(jobid) FROM cron.job});
	gives($node, q{SELECT status, return_message FROM cron.job_run_details WHERE status <> 'succeeded'}, '', "$how: and succeeded");
	gives($node, <<'SQL', 't|t|25|25|rotator', "$how: every key was rotated, everything is readable, and recorded", db => 'app');
SELECT (SELECT bool_and(n = 1) FROM (SELECT count(*) FILTER (WHERE state = 'active') AS n FROM fieldcrypt.encryption_keys GROUP BY tenant) AS a),
       (SELECT min(version) >= 2 FROM fieldcrypt.encryption_keys WHERE state = 'active'),
       (SELECT count(*) FROM t WHERE fieldcrypt.decrypt_field(value) = 'of ' || i),
       count(DISTINCT tenant), min(actor)
  FROM fieldcrypt.audit_log WHERE event = 'key_rotated' AND reason = 'by pg_cron'
SQL
	no_crash($node);
	$node->stop;
}
done_testing();

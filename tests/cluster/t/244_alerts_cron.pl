# pg_cron looks for alerts every minute and verifies the audit log, as schedule_alerts sets it up: a listener
# hears of a finding once, and of its end.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

needs_library('pg_cron');

my $node = new_cluster('cron', start => 0);
$node->append_conf('postgresql.conf', join "\n",
	q{shared_preload_libraries = 'pg_cron,pg_fieldcrypt'}, q{cron.database_name = 'postgres'}, q{max_worker_processes = 20},
	'cron.use_background_workers = on', 'log_statement = none', '');
$node->start;
value($node, <<'SQL');
CREATE EXTENSION pg_fieldcrypt; CREATE ROLE watcher LOGIN; CREATE ROLE stranger LOGIN;
SELECT fieldcrypt.grant_access('watcher', 'manage'); SELECT fieldcrypt.create_key('a tenant');
SQL
refused($node, 'SELECT fieldcrypt.schedule_alerts()', '0A000', qr/'fieldcrypt alerts of postgres|CALL fieldcrypt\.check_alerts\(\)/, 'without pg_cron: it says what to run', user => 'watcher');
value($node, 'CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO watcher, stranger');
refused($node, 'SELECT fieldcrypt.schedule_alerts(NULL)', '22004', 'a NULL schedule', user => 'watcher');
refused($node, 'SELECT fieldcrypt.schedule_alerts()', '42501', 'a role without manage', user => 'stranger');
gives($node, 'SELECT * FROM fieldcrypt.schedule_alerts()', <<'OUT' =~ s/\n\z//r, 'two jobs', user => 'watcher');
fieldcrypt alerts of postgres|* * * * *|CALL fieldcrypt.check_alerts()
fieldcrypt audit of postgres|30 2 * * *|CALL fieldcrypt.check_audit_log()
OUT
gives($node, q{SELECT count(*) FROM fieldcrypt.schedule_alerts('* * * * *', '* * * * *')}, '2', 'again, another way', user => 'watcher');
gives($node, 'SELECT count(*), min(username), min(database) FROM cron.job', '2|watcher|postgres', 'which replaces them');
gives($node, 'SELECT fieldcrypt.unschedule_alerts()', '0', q{another role's jobs are left alone});

my $listener = session($node);
$listener->value('LISTEN fieldcrypt_alerts');
my $heard = '';
sub hears
{
	my ($like) = @_;
	foreach (1 .. 150)
	{
		$heard .= $listener->value('SELECT 1');
		return 1 if $heard =~ $like;
		sleep 1;
	}
	return 0;
}
ok(hears(qr/"event" : "raised"[^\n]*"check" : "key_export"[^\n]*"status" : "warning"/), 'a listener hears of a finding') or diag $heard;
ok($node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM fieldcrypt.audit_verifications WHERE actor = 'watcher'}), 'the audit log is verified');
value($node, 'SELECT length(fieldcrypt.export_keys())');
ok(hears(qr/"event" : "resolved"[^\n]*"check" : "key_export"[^\n]*"status" : "ok"/), 'and of its end') or diag $heard;
is(scalar(() = $heard =~ /"check" : "key_export"/g), 2, 'each once');
gives($node, q{SELECT count(*) > 1, bool_and(status = 'succeeded') FROM cron.job_run_details WHERE command LIKE '%check_alerts%' AND status IN ('succeeded', 'failed')}, 't|t', 'all its runs succeeded');
gives($node, 'SELECT fieldcrypt.unschedule_alerts()', '2', 'unscheduled', user => 'watcher');
gives($node, 'SELECT count(*) FROM cron.job', '0', 'no job is left');

$listener->close;
no_crash($node);
$node->stop;
done_testing();

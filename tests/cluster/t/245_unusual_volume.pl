# The health check unusual_volume, and the alert of it: a role, or whom it claims to act for, that decrypts many times
# as much as on other days; not a first day, not the usual batch, not small numbers; and in bounded time.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;
use Time::HiRes ();

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nfieldcrypt.audit_worker_linger = 60000\n");
value($node, <<'SQL');
SELECT fieldcrypt.create_key('default');
CREATE ROLE app LOGIN; CREATE ROLE batch LOGIN; CREATE ROLE fresh LOGIN;
SELECT fieldcrypt.grant_access(r, 'encrypt', 'decrypt') FROM unnest('{app,batch,fresh}'::regrole[]) AS r;
CREATE TABLE t AS SELECT i, fieldcrypt.encrypt_field('v') AS v FROM generate_series(1, 6000) AS i;
GRANT SELECT ON t TO PUBLIC;
SQL

sub health
{
	return value($node, q{SELECT status || ': ' || detail FROM fieldcrypt.health() WHERE "check" = 'unusual_volume'});
}
sub is_health
{
	my ($like, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like(health(), $like, $name);
}
# Decrypts so many values, for somebody, and waits until that is recorded.
sub decrypt
{
	my ($user, $values, $subject) = @_;
	my $recorded = q{SELECT coalesce(sum(value_count), 0) FROM fieldcrypt.audit_log WHERE event = 'values_decrypted'};
	my $before = value($node, $recorded);
	value($node, "SELECT set_config('fieldcrypt.audit_subject', '" . ($subject // '') . "', false); SELECT count(fieldcrypt.decrypt_field(v)) FROM t WHERE i <= $values", user => $user);
	return eventually($node, $recorded, $before + $values);
}
# A past, as if it had been recorded then.
sub past
{
	my ($user, $days, $values, $subject) = @_;
	$subject = defined $subject ? "'$subject'" : 'NULL';
	value($node, qq{SET session_replication_role = replica;
		INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid, value_count, subject)
		SELECT nextval('fieldcrypt_internal.audit_log_id_seq'), now() - make_interval(days => d), 'values_decrypted', '$user', '$user', 1, $values, $subject FROM unnest('{$days}'::int[]) AS d});
	return;
}

is_health(qr/^ok: not recorded: fieldcrypt\.audit_decrypt/, 'not recorded');
configure($node, 'fieldcrypt.audit_decrypt' => 'statements');
decrypt('app', 5000);
is_health(qr/^ok: no volume is unusual yet/, 'a first day is not judged');
past('app', '2,3,9', 500);
is_health(qr/^ok: nobody decrypted more than 10 times/, 'ten times as much is not more than that');
decrypt('app', 1);
is_health(qr/^warning: more than 10 times as many values were decrypted in the last 1 day as usually, for reader login role "app" \(5001 values, usually 500\)$/, 'more is');
# Its usual day is that on which it decrypts at all; older ones are forgotten.
past('batch', '14', 5000);
past('batch', '40', 1);
decrypt('batch', 6000);
is_health(qr/for reader login role "app"/, 'the batch of every fortnight is usual');
# Who never did so, from some number on.
decrypt('fresh', 999);
is_health(qr/for reader login role "app"/, 'a new one, of a few');
decrypt('fresh', 1);
is_health(qr/for 2 readers: login role "app" \(5001 values, usually 500\), login role "fresh" \(1000 values, usually 0\)/, 'a new one, of many');
# For whom it acts, as it claims: what is usual for the role is not for each.
past('batch', '1,2,3', 20, 'dr. li');
decrypt('batch', 2000, 'dr. li');
is_health(qr/"dr\. li" as claimed by login role "batch" \(2000 values, usually 20\)/, 'a subject, as claimed');
decrypt('fresh', 1000, qq{x" for \\u0000 %s});
like(value($node, q{SELECT identity::text FROM fieldcrypt_internal.check_unusual_volume(NULL)}), qr/x.*%s/, 'a strange subject is one, too');
# The thresholds are the administrator's.
configure($node, 'fieldcrypt.audit_decrypt' => 'statements', 'fieldcrypt.health_volume_factor' => 1000, 'fieldcrypt.health_volume_least' => 3000);
is_health(qr/^ok: nobody decrypted more than 1000 times/, 'thresholds');
refused($node, 'SET fieldcrypt.health_volume_factor = 1', '55P02', 'not by a session', user => 'app');
configure($node, 'fieldcrypt.audit_decrypt' => 'statements');
# It is told of once, and again for another.
value($node, 'CALL fieldcrypt.check_alerts()');
gives($node, q{SELECT status FROM fieldcrypt.alerts WHERE "check" = 'unusual_volume'}, 'warning', 'an alert');
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'alert_raised' AND reason LIKE 'unusual_volume is warning: %'}, '1', 'in the log');
value($node, 'CALL fieldcrypt.check_alerts()');
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'alert_raised' AND reason LIKE 'unusual_volume is warning: %'}, '1', 'once');
decrypt('app', 2000, 'dr. no');
value($node, 'CALL fieldcrypt.check_alerts()');
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'alert_raised' AND reason LIKE 'unusual_volume is warning: %'}, '2', 'again when there is another');

# Of half a million rows it takes no second.
value($node, q{SET session_replication_role = replica;
	INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid, value_count, subject)
	SELECT nextval('fieldcrypt_internal.audit_log_id_seq'), now() - make_interval(secs => i * 5), 'values_decrypted', 'busy', 'busy', 1, 3, 'person ' || i % 5000 FROM generate_series(1, 500000) AS i;
	ANALYZE fieldcrypt.audit_log});
my $began = Time::HiRes::time();
unlike(health(), qr/"busy"/, 'a busy role is usual');
my $took = Time::HiRes::time() - $began;
cmp_ok($took, '<', 10, sprintf 'in bounded time (%.1f s for all of health)', $took);
no_crash($node);
$node->stop;
done_testing();

# Policies: what is due is rotated and nothing else, by however many runs at once; a tenant that fails
# stops nobody; the log of rotations tells.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary');
value($node, <<'SQL');
SELECT count(fieldcrypt.create_key('tenant ' || i)) FROM generate_series(1, 10) AS i;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'disk full' USING ERRCODE = 'disk_full', HINT = 'Buy another.'; END $$;
CREATE ROLE manager LOGIN; CREATE ROLE auditor LOGIN; CREATE ROLE nobody LOGIN;
SELECT fieldcrypt.grant_access('manager', 'manage'), fieldcrypt.grant_access('auditor', 'audit'), fieldcrypt.grant_access('nobody', 'encrypt', 'decrypt', 'reencrypt');
SQL

sub age
{
	my ($interval, $where) = @_;
	past_the_guard($node, "UPDATE fieldcrypt.encryption_keys SET created_at = clock_timestamp() - interval '$interval' WHERE state = 'active' AND ($where)");
	return;
}

# Runs a rotation; gives what its notice says, as "rotated failed not-due".
sub rotate
{
	my ($arguments, %options) = @_;
	my $result = run_sql($node, 'CALL fieldcrypt.rotate_keys(' . ($arguments // '') . ')', %options);
	my ($counts) = map { join ' ', @$_ } [ $result->{err} =~ /rotate_keys: (\d+) rotated, (\d+) failed, (\d+) not due/ ];
	return $counts eq '' ? "@{ $result->{sqlstates} }" : $counts;
}
my $versions = q{SELECT string_agg(replace(tenant, 'tenant ', '') || ':' || version, ' ' ORDER BY length(tenant), tenant) FROM fieldcrypt.encryption_keys WHERE state = 'active' AND version > 1};

# The default is 90 days.
is(rotate(), '0 0 10', 'new keys are not due');
gives($node, 'SELECT count(*) FROM fieldcrypt.rotation_log', '0', 'and nothing is logged of them');
age('89 days 23 hours', 'true');
is(rotate(), '0 0 10', 'before 90 days: not due');
age('90 days 1 second', q{tenant IN ('tenant 1', 'tenant 10')});
is(rotate(q{reason => 'scheduled'}), '2 0 8', 'after 90 days: due');
gives($node, $versions, '1:2 10:2', 'and those are rotated');
is(rotate(), '0 0 10', 'once');
gives($node, <<'SQL', "tenant 1|rotated|t|t|t|scheduled|t|t\ntenant 10|rotated|t|t|t|scheduled|t|t", 'the log of rotations: a row each');
SELECT tenant, outcome, old_key_id = (SELECT key_id FROM fieldcrypt.encryption_keys AS k WHERE k.tenant = l.tenant AND version = 1),
       new_key_id = (SELECT key_id FROM fieldcrypt.encryption_keys AS k WHERE k.tenant = l.tenant AND version = 2),
       run_started_at <= started_at AND started_at <= ended_at AND run_started_at = min(run_started_at) OVER (), reason, actor = session_user, role = current_user
  FROM fieldcrypt.rotation_log AS l ORDER BY id
SQL

# Policies of tenants, and of all.
value($node, q{SELECT fieldcrypt.set_rotation_policy('tenant 2', '1 hour'), fieldcrypt.set_rotation_policy('tenant 3', '1 year')});
age('91 days', q{tenant = 'tenant 3'});
age('59 minutes', q{tenant = 'tenant 2'});
is(rotate(), '0 0 10', 'a policy of its own: not due before');
age('61 minutes', q{tenant = 'tenant 2'});
is(rotate(), '1 0 9', 'a policy of its own: due after');
gives($node, $versions, '1:2 2:2 10:2', 'a policy of its own: that one');
value($node, q{SELECT fieldcrypt.set_rotation_policy('tenant 3', '1 month')});
is(rotate(), '1 0 9', 'a policy that is set anew counts at once');
value($node, q{SELECT fieldcrypt.set_rotation_policy(NULL, '1 day')});
age('25 hours', 'true');
value($node, q{SELECT fieldcrypt.set_rotation_policy('tenant 2', NULL)});
is(rotate(), '9 0 1', 'the default for all: all but the one with a longer one, also where one was removed');
value($node, q{SELECT fieldcrypt.set_rotation_policy(NULL, NULL)});
age('25 hours', 'true');
is(rotate(), '0 0 10', 'the default removed: 90 days again');
gives($node, 'SELECT tenant, rotate_every, set_by = session_user FROM fieldcrypt.rotation_policies', 'tenant 3|1 mon|t', 'the table of policies');
gives($node, q{SELECT event, coalesce(tenant, 'all'), reason FROM fieldcrypt.audit_log WHERE event LIKE 'rotation_policy%' ORDER BY id}, <<'OUT' =~ s/\n\z//r, 'changes of policies are recorded');
rotation_policy_set|tenant 2|01:00:00
rotation_policy_set|tenant 3|1 year
rotation_policy_set|tenant 3|1 mon
rotation_policy_set|all|1 day
rotation_policy_removed|tenant 2|
rotation_policy_removed|all|
OUT
# Months count as the calendar does, whatever the session's time zone and styles are.
value($node, q{SET timezone = 'Pacific/Apia'; SET intervalstyle = 'sql_standard'; SELECT fieldcrypt.set_rotation_policy('tenant 4', '1 year 2 months 3 days 04:05:06')});
gives($node, q{SELECT rotate_every FROM fieldcrypt.rotation_policies WHERE tenant = 'tenant 4'}, '1 year 2 mons 3 days 04:05:06', 'an interval of all parts is kept');
value($node, q{SET intervalstyle = 'sql_standard'; SELECT fieldcrypt.set_rotation_policy('tenant 4', '1 month -1 day')});
gives($node, q{SELECT rotate_every FROM fieldcrypt.rotation_policies WHERE tenant = 'tenant 4'}, '1 mon -1 days', 'a month less a day is kept');
value($node, q{SELECT fieldcrypt.set_rotation_policy(t, NULL) FROM (VALUES ('tenant 3'), ('tenant 4'), ('never set')) AS v (t)});

# What is refused.
foreach my $interval ('59 minutes 59.999 seconds', '0', '-1 day', '-1 month', '1 month -30 days', '1 month -28 days', '1 year -12 months', '101 years', '178000000 years', '-178000000 years')
{
	refused($node, "SELECT fieldcrypt.set_rotation_policy('tenant 1', '$interval')", '22023', qr/must be from one hour to 100 years/, "a policy of $interval");
	refused($node, "SELECT fieldcrypt.set_rotation_policy(NULL, '$interval')", '22023', "a policy of $interval for all");
}
refused($node, q{SELECT fieldcrypt.set_rotation_policy('', '1 day')}, '22023', qr/1 to 1024 bytes/, 'a tenant without a name');
refused($node, q{SELECT fieldcrypt.set_rotation_policy(repeat('t', 1025), '1 day')}, '22023', 'a tenant with a long name');
refused($node, q{SELECT fieldcrypt.set_rotation_policy('tenant 1', '1 day')}, '42501', 'a role without manage', user => 'nobody');
refused($node, "SELECT fieldcrypt_internal.$_", '42501', "nobody is granted $_", user => 'manager')
  foreach q{store_rotation_policy('', '1 second')}, q{log_rotation(now(), now(), 'x', 'rotated', 1, 2, NULL, NULL, NULL)}, q{rotate_active_key('tenant 1', NULL, true, NULL)};
refused($node, $_, 'KF015', qr/written by the functions/, "by hand: $_") foreach
  q{UPDATE fieldcrypt.rotation_log SET outcome = 'failed'}, 'DELETE FROM fieldcrypt.rotation_log', 'TRUNCATE fieldcrypt.rotation_log', 'TRUNCATE fieldcrypt.rotation_policies';
refused($node, q{INSERT INTO fieldcrypt.rotation_log (run_started_at, started_at, tenant, outcome) VALUES (now(), now(), 'forged', 'rotated')}, 'KF016', 'by hand: a forged row of the log');
value($node, q{SELECT fieldcrypt.set_rotation_policy('tenant 1', '1 day')});
refused($node, $_, 'KF015', "by hand: $_") foreach q{UPDATE fieldcrypt.rotation_policies SET rotate_every = '1 second'}, 'DELETE FROM fieldcrypt.rotation_policies';
refused($node, q{INSERT INTO fieldcrypt.rotation_policies VALUES ('', '1 second')}, 'KF016', 'by hand: another policy');
value($node, q{SELECT fieldcrypt.set_rotation_policy('tenant 1', NULL)});
foreach my $table ('rotation_log', 'rotation_policies')
{
	like(value($node, "SELECT count(*) FROM fieldcrypt.$table", user => $_), qr/^\d+$/, "$table: readable to the $_") foreach 'manager', 'auditor';
	refused($node, "SELECT FROM fieldcrypt.$table", '42501', "$table: not to others", user => 'nobody');
	refused($node, "DELETE FROM fieldcrypt.$table", '42501', "$table: not writable to a manager", user => 'manager');
}

# force: all with an active key, and none whose keys were taken away on purpose.
past_the_guard($node, <<'SQL');
UPDATE fieldcrypt.encryption_keys SET state = 'suspended' WHERE tenant = 'tenant 5';
UPDATE fieldcrypt.encryption_keys SET state = 'deactivated' WHERE tenant = 'tenant 6';
UPDATE fieldcrypt.encryption_keys SET state = 'destroyed', wrapped_key = NULL WHERE tenant = 'tenant 7';
UPDATE fieldcrypt.encryption_keys SET state = 'compromised' WHERE tenant = 'tenant 8';
SQL
is(rotate('force => true'), '6 0 0', 'force: every tenant with an active key');
age('10 years', 'true');
is(rotate(), '6 0 0', 'due: every tenant with an active key');
gives($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE state = 'active' AND tenant IN ('tenant 5', 'tenant 6', 'tenant 7', 'tenant 8')}, '0', 'but none whose keys were suspended, retired, destroyed or compromised');
is(rotate(q{'tenant 7'}), 'KF007', 'a tenant without an active key, named');
gives($node, q{SELECT outcome, error_code, error, new_key_id IS NULL FROM fieldcrypt.rotation_log ORDER BY id DESC LIMIT 1}, 'failed|KF007|tenant "tenant 7" has no active encryption key|t', 'is logged');
is(rotate(q{'tenant 7', force => true}), '1 0 0', 'named, and with force: it gets one');
gives($node, q{SELECT outcome, old_key_id IS NULL FROM fieldcrypt.rotation_log ORDER BY id DESC LIMIT 1}, 'created|t', 'which is logged');
is(rotate(q{'tenant 1'}), '1 0 0', 'a tenant that is named is rotated now, due or not');
is(rotate(q{NULL, NULL, NULL}), '0 0 7', 'a NULL force is none');
is(rotate(q{''}), '22023', 'an empty name');
gives($node, q{SELECT tenant, error_code FROM fieldcrypt.rotation_log ORDER BY id DESC LIMIT 1}, '|22023', 'is logged too');

# One tenant's failure.
value($node, q{CREATE TRIGGER fail BEFORE INSERT ON fieldcrypt.encryption_keys FOR EACH ROW WHEN (NEW.tenant IN ('tenant 10', 'tenant 3')) EXECUTE FUNCTION fail()});
age('1 year', 'true');
my $result = run_sql($node, q{CALL fieldcrypt.rotate_keys(reason => 'with failures')}, user => 'manager');
is("@{ $result->{sqlstates} }", '', 'failing tenants: the run ends');
like($result->{err}, qr/WARNING:  53100: the key of tenant "$_" was not rotated: disk full\nHINT:  Buy another\./, "failing tenants: a warning of $_") foreach 'tenant 10', 'tenant 3';
like($result->{err}, qr/5 rotated, 2 failed, 0 not due/, 'failing tenants: the others go on');
gives($node, q{SELECT outcome, count(*), string_agg(DISTINCT actor, ','), string_agg(DISTINCT error_code || ' ' || error, ',') FROM fieldcrypt.rotation_log WHERE reason = 'with failures' GROUP BY 1 ORDER BY 1},
	"failed|2|manager|53100 disk full\nrotated|6|manager|", 'failing tenants: logged');
gives($node, q{SELECT string_agg(tenant, ',' ORDER BY tenant) FROM fieldcrypt.audit_log WHERE event = 'key_refused' AND reason = 'rotation failed: disk full (53100)' AND actor = 'manager'}, 'tenant 10,tenant 3', 'failing tenants: in the audit log too');
is(rotate(), '0 2 5', 'failing tenants: they stay due');
value($node, 'DROP TRIGGER fail ON fieldcrypt.encryption_keys');
is(rotate(), '2 0 5', 'failing tenants: until they succeed');

# Runs at once rotate each tenant once.
value($node, q{SELECT count(fieldcrypt.create_key('one of many ' || i)) FROM generate_series(1, 400) AS i});
foreach my $arguments ('', 'force => true')
{
	age('1 year', 'true');
	my $before = value($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE purpose = 'field'});
	# They start together: all wait for the lock that the first one's first step takes last.
	my $gate = session($node);
	$gate->value('BEGIN; LOCK TABLE fieldcrypt.encryption_keys IN ACCESS EXCLUSIVE MODE');
	my @runners = map { session($node) } 1 .. 4;
	$_->send("CALL fieldcrypt.rotate_keys($arguments)") foreach @runners;
	$node->poll_query_until('postgres', q{SELECT count(*) = 4 FROM pg_locks WHERE relation = 'fieldcrypt.encryption_keys'::regclass AND NOT granted}) or die;
	$gate->value('COMMIT');
	my $sum = 0;
	foreach my $runner (@runners)
	{
		my $done = $runner->run('SELECT 1');
		is("@{ $done->{sqlstates} }", '', "runs at once ($arguments): no error") or diag $done->{err};
		$sum += $1 if $done->{err} =~ /(\d+) rotated/;
	}
	is($sum, 407, "runs at once ($arguments): each tenant is rotated by one of them");
	is(value($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE purpose = 'field'}) - $before, 407, "runs at once ($arguments): and once");
	$_->close foreach @runners, $gate;
}

# The look for the next tenant walks an index, also right after a bulk load, without statistics.
{
	my $log = run_sql($node, q{LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on; SET client_min_messages = log; SELECT fieldcrypt_internal.next_tenant('one', false, now())})->{err};
	like($log, qr/Index (?:Only )?Scan using encryption_keys_active/, 'the next tenant is found by the index of active keys');
	unlike($log, qr/Seq Scan|Sort/, 'without reading or sorting the table');
}

# 0 tenants.
create_database($node, 'empty');
is(rotate('', db => 'empty'), '0 0 0', 'no tenants: nothing happens');
is(rotate('force => true', db => 'empty'), '0 0 0', 'no tenants, with force: nothing happens');

no_crash($node);
$node->stop;
done_testing();

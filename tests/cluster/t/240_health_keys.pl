# Health of the keys: each check goes from ok to a finding by a real cause, says what and what to do, and is ok
# again when that is done. Ages are the only thing that is set by hand.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\n");
my $keys = $node->basedir . '/keys';
mkdir $keys, 0700 or die;
my $file = write_key_file("$keys/master.key", key_text(1));
$node->append_conf('postgresql.conf', "fieldcrypt.master_key_file = '$file'");
$node->reload;

# A test: a check has this status, and a detail and hint like these.
sub is_health
{
	my ($check, $status, $like, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $call = $options{thorough} ? 'health(thorough => true)' : 'health()';
	my $row = value($options{node} // $node, qq{SELECT status || ': ' || detail || coalesce(' HINT ' || hint, '') FROM fieldcrypt.$call WHERE "check" = '$check'}, db => $options{db} // 'postgres', env => $options{env} // {});
	return like($row, qr/^$status: .*$like/, "$check: $name");
}

# The frame.
is_health('master_key', 'ok', 'loads from fieldcrypt.master_key_file', 'a key file that is all right');
my $checks = value($node, q{SELECT string_agg("check", ' ') FROM fieldcrypt.health()});
is(join(' ', sort split / /, $checks), join(' ', sort qw(
	key_age master_key master_key_age master_key_rotation master_key_source server_file_roles compromised_keys suspended_keys deactivated_keys
	key_destruction reencryption enforced_contexts protected_columns stored_values values_elsewhere missing_keys key_subscriptions published_tables encrypted_indexes plaintext_columns restore_order key_states key_export default_tenant require_tenant extension_version preload statement_logging statement_visibility failed_decrypts unusual_hours unusual_addresses unusual_volume
	audit_key_age audit_verification audit_gaps audit_sealing audit_handover audit_fork audit_anchor audited_tables)), 'every check is there, also those that are ok');
gives($node, q{SELECT count(*) FROM fieldcrypt.health() WHERE status IS NULL OR detail IS NULL OR status <> 'ok' AND hint IS NULL}, '0', 'each says what it is, and what to do if it is not ok');
gives($node, 'SELECT array_agg(status) = array_agg(status ORDER BY place, "check") AND array_agg("check") = array_agg("check" ORDER BY place, "check")
	FROM (SELECT *, array_position(ARRAY[\'critical\', \'warning\', \'ok\'], status) AS place FROM fieldcrypt.health()) AS h', 't', 'the worst first, then by name');
refused($node, 'SELECT fieldcrypt.health(NULL)', '22004', 'a NULL argument');
gives($node, 'BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; SELECT count(*) > 20 FROM fieldcrypt.health(); COMMIT', 't', 'in a read-only transaction, too');
gives($node, q{SET timezone = 'Pacific/Apia'; SET intervalstyle = 'sql_standard'; SET datestyle = 'German'; SELECT count(*) FROM fieldcrypt.health(true) WHERE detail LIKE '%check failed%'}, '0', 'under odd settings of the session, too');

# Ages of keys.
value($node, <<'SQL');
SELECT count(fieldcrypt.create_key('tenant ' || i)) FROM generate_series(1, 5) AS i;
CREATE TABLE t AS SELECT i, fieldcrypt.encrypt_field('of ' || i, tenant => 'tenant ' || i % 5 + 1) AS value FROM generate_series(1, 100) AS i;
SQL
sub age
{
	my ($interval, $where) = @_;
	past_the_guard($node, "UPDATE fieldcrypt.encryption_keys SET created_at = clock_timestamp() - interval '$interval' WHERE state = 'active' AND ($where)");
	return;
}
is_health('key_age', 'ok', 'older than its policy \(90 days', 'young keys');
age('90 days 1 minute', q{tenant = 'tenant 1'});
is_health('key_age', 'warning', 'for tenant "tenant 1"; the oldest was made 90 days ago HINT CALL fieldcrypt.rotate_keys\(\)', 'a key of 90 days');
age('100 days', 'true');
is_health('key_age', 'warning', 'for 5 tenants, for instance "tenant \d", "tenant \d", "tenant \d"; ', 'many: three are named');
value($node, q{SELECT fieldcrypt.set_rotation_policy(NULL, '1 year')});
is_health('key_age', 'ok', '1 year', 'a longer policy');
value($node, q{SELECT fieldcrypt.set_rotation_policy('tenant 2', '1 month')});
is_health('key_age', 'warning', 'for tenant "tenant 2"', 'a tenant with a shorter one');
value($node, q{SELECT fieldcrypt.set_rotation_policy(NULL, NULL); SELECT fieldcrypt.set_rotation_policy('tenant 2', NULL)});
configure($node, 'fieldcrypt.health_due_grace' => '11 d');
is_health('key_age', 'ok', '', 'with time for the nightly job');
configure($node);
is_health('key_age', 'warning', 'for 5 tenants', 'without');
value($node, 'CALL fieldcrypt.rotate_keys()');
is_health('key_age', 'ok', '', 'after a rotation');

is_health('audit_key_age', 'ok', 'made just now', 'the key of the audit log, rotated with them');
past_the_guard($node, q{UPDATE fieldcrypt.encryption_keys SET created_at = created_at - interval '91 days' WHERE purpose = 'audit' AND state = 'active'});
is_health('audit_key_age', 'warning', 'made 91 days ago; the default policy is 90 days HINT CALL fieldcrypt\.rotate_keys', 'the key of the audit log, old');
value($node, 'CALL fieldcrypt.rotate_keys()');
is_health('audit_key_age', 'ok', 'made just now', 'the key of the audit log, rotated');

# Values on deactivated keys.
is_health('deactivated_keys', 'ok', '5 key\(s\) were deactivated in the last 1 day', 'just after a rotation');
is_health('deactivated_keys', 'ok', 'values are on 5 deactivated keys, for instance \d+ \(tenant "tenant \d", version 1; 20 value\(s\) in public\.t\.value\)', 'just after a rotation, counted', thorough => 1);
configure($node, 'fieldcrypt.health_reencryption_delay' => '0');
is_health('deactivated_keys', 'warning', 'not re-encrypted since .* table public\.t HINT CALL fieldcrypt\.reencrypt', 'with no time for it');
is_health('deactivated_keys', 'warning', '20 value\(s\)', 'with no time for it, counted', thorough => 1);
configure($node);
past_the_guard($node, q{UPDATE fieldcrypt.encryption_keys SET deactivated_at = deactivated_at - interval '2 days' WHERE state = 'deactivated'});
is_health('deactivated_keys', 'warning', 'the last of them 2 days ago: table public\.t', 'two days later');
value($node, 'CREATE TABLE empty (value fieldcrypt.encrypted); CALL fieldcrypt.reencrypt()');
is_health('deactivated_keys', 'ok', 'all tables were re-encrypted since', 'after re-encryption');
is_health('deactivated_keys', 'ok', 'no values', 'after re-encryption, counted', thorough => 1);
value($node, q{CREATE TABLE copied AS SELECT * FROM t});
is_health('deactivated_keys', 'warning', 'table public\.copied$|table public\.copied HINT', 'a table that was made since: values may be old copies');
is_health('deactivated_keys', 'ok', 'no values', 'a table that was made since, counted', thorough => 1);
value($node, 'DROP TABLE copied, empty');
is_health('deactivated_keys', 'ok', '', 'without it');

# Compromised keys.
value($node, q{SELECT fieldcrypt.mark_compromised((SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'tenant 3' AND state = 'active'), 'stolen')});
is_health('compromised_keys', 'critical', 'values may be read with compromised key \d+ \(tenant "tenant 3", version 2; table public\.t\) HINT CALL fieldcrypt\.reencrypt', 'values may be left on one');
is_health('compromised_keys', 'critical', 'values can be read with .* 20 value\(s\) in public\.t\.value', 'counted', thorough => 1);
value($node, 'CALL fieldcrypt.reencrypt()');
is_health('compromised_keys', 'ok', 'no values are left on 1 compromised', 'after re-encryption');
is_health('compromised_keys', 'ok', 'no values are left on 1 compromised', 'after re-encryption, counted', thorough => 1);

# Nobody is waited for who holds a table.
value($node, q{SELECT fieldcrypt.mark_compromised((SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'tenant 2' AND state = 'active'), 'stolen too')});
{
	my $holder = session($node);
	$holder->value('BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE');
	is_health('compromised_keys', 'critical', 'tenant "tenant 2", version 2; table public\.t', 'the table is held by another session', env => { PGOPTIONS => '-c statement_timeout=20s' });
	$holder->value('COMMIT');
	$holder->close;
}
value($node, 'CALL fieldcrypt.reencrypt()');
is_health('compromised_keys', 'ok', 'no values are left on 2 compromised', 'after another re-encryption');

# Suspended keys: re-encryption can't read what is on them.
value($node, q{SELECT fieldcrypt.suspend_key(key_id, 'look') FROM fieldcrypt.encryption_keys WHERE tenant = 'tenant 4' AND state = 'active'});
is_health('suspended_keys', 'warning', 'suspended key \d+ \(tenant "tenant 4", version 2; table public\.t\) HINT SELECT fieldcrypt\.resume_key', 'one with values');
run_sql($node, 'CALL fieldcrypt.reencrypt()');
is_health('suspended_keys', 'warning', 'tenant "tenant 4"', 'also after a re-encryption, which can not move them');
is_health('reencryption', 'warning', 'public\.t \(20 rows could not be re-encrypted\) HINT See fieldcrypt\.reencryption_progress', 'rows that could not be moved');
value($node, q{SELECT fieldcrypt.resume_key(key_id, 'is all right') FROM fieldcrypt.encryption_keys WHERE tenant = 'tenant 4' AND state = 'suspended'});
is_health('suspended_keys', 'ok', 'no key is suspended', 'resumed');
value($node, 'CALL fieldcrypt.reencrypt()');
is_health('reencryption', 'ok', '', 'rows can be moved again');
value($node, q{SELECT fieldcrypt.suspend_key(key_id, 'old') FROM fieldcrypt.encryption_keys WHERE tenant = 'tenant 4' AND state = 'deactivated'});
is_health('suspended_keys', 'ok', 'no values are left on 1 suspended', 'one whose values were moved before');
is_health('suspended_keys', 'ok', 'no values are left on 1 suspended', 'one whose values were moved before, counted', thorough => 1);

# A re-encryption that is interrupted.
value($node, q{CALL fieldcrypt.rotate_keys(force => true); INSERT INTO t SELECT 1000 + t.i, value FROM t, generate_series(1, 50)});
{
	my $runner = session($node);
	$runner->send('CALL fieldcrypt.reencrypt(batch_size => 10, rows_per_second => 50)');
	$node->poll_query_until('postgres', q{SELECT rows_moved > 0 FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.t'}) or die;
	is_health('reencryption', 'ok', 'is running over 1 table', 'one that runs');
	configure($node, 'fieldcrypt.health_reencryption_delay' => '0');
	is_health('deactivated_keys', 'ok', 'being moved', 'values that are being moved');
	value($node, q{SELECT pg_terminate_backend(pid) FROM fieldcrypt_internal.live_runs()});
	$node->poll_query_until('postgres', q{SELECT state = 'interrupted' FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.t'}) or die;
	configure($node);
}
is_health('reencryption', 'ok', '', 'one that was interrupted just now');
configure($node, 'fieldcrypt.health_reencryption_stall' => '1s');
sleep 2;
is_health('reencryption', 'warning', 'public\.t \(interrupted just now\)', 'one that is not gone on with');
value($node, 'CALL fieldcrypt.reencrypt(rows_per_second => 0)');
is_health('reencryption', 'ok', '', 'one that was gone on with');
configure($node);

# Keys that are due for destruction.
my $due = value($node, q{SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'tenant 1' AND version = 1});
value($node, "CALL fieldcrypt.destroy_key($due, '7 days', 'old')");
is_health('key_destruction', 'ok', 'no destruction is due', 'one that is scheduled');
past_the_guard($node, "UPDATE fieldcrypt.encryption_keys SET destroy_after = clock_timestamp() - interval '1 hour', destroy_scheduled_at = destroy_scheduled_at - interval '8 days' WHERE key_id = $due");
is_health('key_destruction', 'warning', "key $due \\(tenant \"tenant 1\", version 1\\) HINT CALL fieldcrypt\\.destroy_due_keys", 'one that is due');
value($node, 'CALL fieldcrypt.destroy_due_keys()');
is_health('key_destruction', 'ok', '', 'one that was destroyed');

# Exports.
is_health('key_export', 'warning', 'never exported HINT SELECT fieldcrypt\.export_keys', 'none yet');
value($node, 'SELECT length(fieldcrypt.export_keys())');
is_health('key_export', 'ok', 'exported just now', 'one');
configure($node, 'fieldcrypt.health_key_export_age' => '1s');
sleep 2;
is_health('key_export', 'warning', 'the last export of the keys was', 'one that is too old');
configure($node);

# The master key.
is_health('master_key_age', 'ok', 'first used just now', 'a new one');
configure($node, 'fieldcrypt.health_master_key_age' => '1s');
is_health('master_key_age', 'warning', 'HINT Put a new key before the old one', 'one that is older than the setting');
configure($node);
value($node, q{SET session_replication_role = replica; UPDATE fieldcrypt.master_keys SET first_used_at = first_used_at - interval '366 days'});
is_health('master_key_age', 'warning', 'first used 366 days ago', 'one that is older than a year');
write_key_file($file, key_text(2), key_text(1));
$node->reload;
value($node, 'CREATE TABLE saved AS SELECT key_id, wrapped_key FROM fieldcrypt.encryption_keys');
past_the_guard($node, q{UPDATE fieldcrypt.encryption_keys SET wrapped_key = overlay(wrapped_key PLACING '\\x00' FROM 40) WHERE tenant = 'tenant 5' AND version = 1});
run_sql($node, 'CALL fieldcrypt.rotate_master_key()');
is_health('master_key_age', 'ok', 'first used just now', 'after a rotation');
is_health('master_key_rotation', 'warning', 'older master key [0-9A-F]{8}\.\.\. besides', 'a rotation that could not end: a key does not open');
write_key_file($file, key_text(2));
$node->reload;
is_health('master_key', 'critical', 'keys are wrapped by master key [0-9A-F]{8}\.\.\., which fieldcrypt.master_key_file does not give', 'an older one that is needed and not loaded');
write_key_file($file, key_text(2), key_text(1));
is_health('master_key', 'ok', '', 'loaded again');
past_the_guard($node, q{UPDATE fieldcrypt.encryption_keys AS k SET wrapped_key = s.wrapped_key FROM saved AS s WHERE s.key_id = k.key_id AND tenant = 'tenant 5' AND version = 1});
value($node, 'CALL fieldcrypt.rotate_master_key()');
is_health('master_key_rotation', 'ok', 'one master key wraps all keys', 'a rotation that has ended');
unlink $file;
is_health('master_key', 'critical', "can't be loaded: fieldcrypt.master_key_file names a file that does not exist HINT .", 'none');
gives($node, q{SELECT count(*) FROM fieldcrypt.health() WHERE detail LIKE '%check failed%'}, '0', 'no other check needs it');
{
	write_key_file($file, key_text(2), key_text(1));
	my $session = session($node);
	$session->value(q{SELECT fieldcrypt.decrypt_field(value) FROM t WHERE i = 1});
	unlink $file;
	$node->reload;
	like($session->value(q{SELECT status || detail FROM fieldcrypt.health() WHERE "check" = 'master_key'}), qr/^criticalthe master key was not reloaded, and new sessions can't load it: /, 'master_key: a session that has it tells, too');
	$session->close;
}
write_key_file($file, key_text(2), key_text(1));
is_health('master_key', 'ok', '', 'there again');

# Key states after a real restore.
is_health('key_states', 'ok', 'those of this database', 'where the keys were made');
my $dump = dump_database($node, 'postgres', $node->basedir . '/dump.sql');
value($node, 'CREATE DATABASE restored');
restore_database($node, 'restored', $dump);
is_health('key_states', 'warning', 'another database than at the confirmation.* HINT Compare with the newest export', 'a restored dump', db => 'restored');
value($node, q{SELECT fieldcrypt.confirm_key_states('compared')}, db => 'restored');
is_health('key_states', 'ok', '', 'confirmed', db => 'restored');
value($node, q{SET session_replication_role = replica; UPDATE fieldcrypt.encryption_keys SET state = 'deactivated' WHERE state = 'compromised'}, db => 'restored');
is_health('key_states', 'ok', '', 'a state that was loosened is not looked for', db => 'restored');
is_health('key_states', 'critical', '2 keys: .*\(tenant "tenant 3", version 2: deactivated, was compromised\)', 'but found by the thorough look', db => 'restored', thorough => 1);
is_health('key_export', 'ok', '', 'the log tells of the export, in the restored database, too', db => 'restored');

no_crash($node);
$node->stop;
done_testing();

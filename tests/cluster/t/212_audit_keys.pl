# The keys that authenticate the audit log: made, rotated, wrapped again, exported like the others; never
# used for values, and never lost by an operation on a tenant.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('keys');
my $folder = PostgreSQL::Test::Utils::tempdir();
my $audit_keys = q{SELECT version, state FROM fieldcrypt.encryption_keys WHERE purpose = 'audit' ORDER BY version};
my $active = q{(SELECT key_id FROM fieldcrypt.encryption_keys WHERE purpose = 'audit' AND state = 'active')};
value($node, 'CREATE TABLE audited (id int); SELECT fieldcrypt.audit_table($$audited$$)');

# Rolled back.
value($node, q{BEGIN; SELECT fieldcrypt.create_key('a'); ROLLBACK});
gives($node, $audit_keys, '', 'rolled back: no key is left');
my $session = session($node);
$session->value(q{BEGIN; SAVEPOINT s; SELECT fieldcrypt.create_key('a'); INSERT INTO audited VALUES (1); ROLLBACK TO s});
$session->value(q{INSERT INTO audited VALUES (2); SELECT fieldcrypt.create_key('b'); INSERT INTO audited VALUES (3); COMMIT});
gives($node, q{SELECT l.event, l.mac_key_id = } . $active . q{ FROM fieldcrypt.audit_log AS l WHERE l.event <> 'table_audited' ORDER BY l.id}, "row_inserted|\nkey_created|t\nkey_created|t\nrow_inserted|t",
	'a savepoint that was rolled back: no row is authenticated by its key');
$session->value(q{BEGIN; INSERT INTO audited VALUES (4); SAVEPOINT s; INSERT INTO audited VALUES (5); RELEASE s; ROLLBACK});
$session->value(q{INSERT INTO audited VALUES (6)});
$session->close;
gives($node, q{SELECT count(*), count(mac) FROM fieldcrypt.audit_log WHERE event = 'row_inserted'}, '3|2', 'rows that were rolled back are gone');
gives($node, $audit_keys, '1|active', 'one key');

# In flight in another session: nobody waits for it for long, and nobody fails.
create_database($node, 'flight');
value($node, 'CREATE TABLE audited (id int); SELECT fieldcrypt.audit_table($$audited$$)', db => 'flight');
{
	my ($maker, $writer) = map { session($node, db => 'flight') } 1, 2;
	$maker->value(q{BEGIN; SELECT fieldcrypt.create_key('a')});
	# The writer sees no key of the database, so it has none to be authenticated by.
	$writer->value('INSERT INTO audited SELECT generate_series(1, 100)');
	$maker->value('COMMIT');
	$writer->value('INSERT INTO audited VALUES (101)');
	gives($node, q{SELECT count(*), count(mac) FROM fieldcrypt.audit_log WHERE event = 'row_inserted'}, '101|1', 'a first key in flight: rows are written unauthenticated, then authenticated', db => 'flight');
	# The same where there are other keys.
	value($node, q{SET session_replication_role = replica; DELETE FROM fieldcrypt.encryption_keys WHERE purpose = 'audit'}, db => 'flight');
	$maker->value(q{BEGIN; INSERT INTO audited VALUES (102)});
	my $started = time;
	$writer->value('INSERT INTO audited SELECT generate_series(1000, 1999)');
	cmp_ok(time - $started, '<', 30, 'a key in flight: a thousand rows wait once, not each');
	gives($node, q{SELECT count(mac) FROM fieldcrypt.audit_log WHERE (row_key IS NULL) AND event = 'row_inserted' AND backend_pid = } . $writer->server_process, '1', 'a key in flight: they are unauthenticated', db => 'flight');
	$maker->value('COMMIT');
	$writer->value('INSERT INTO audited VALUES (2000)');
	gives($node, q{SELECT count(mac) FROM fieldcrypt.audit_log WHERE event = 'row_inserted' AND backend_pid = } . $writer->server_process, '2', 'a key in flight: once it is committed it is used', db => 'flight');
	$_->close foreach $maker, $writer;
}

# No value is under such a key.
my $id = value($node, "SELECT $active");
value($node, 'CREATE TABLE kept AS SELECT fieldcrypt.encrypt_field($$x$$) AS v');
value($node, "CREATE TABLE forged AS SELECT (overlay(v::bytea PLACING int8send($id) FROM 3))::fieldcrypt.encrypted AS v FROM kept");
gives($node, 'SELECT fieldcrypt.key_id(v) FROM forged', $id, 'a value that names a key of the log');
refused($node, 'SELECT fieldcrypt.decrypt_field(v) FROM forged', 'KF002', 'is not authentic');
refused($node, 'SELECT fieldcrypt.reencrypt_field(v) FROM forged', 'KF002', 'nor re-encrypted');
gives($node, 'SELECT fieldcrypt.try_decrypt_field(v) IS NULL FROM forged', 't', 'and is damage');
gives($node, "SELECT tenant IS NULL, \"values\" FROM fieldcrypt.key_usage(true) WHERE key_id = $id", 't|1', 'key_usage says that its key is none of a tenant');
value($node, 'DROP TABLE forged');

# States.
refused($node, "SELECT fieldcrypt.suspend_key($id, 'x')", 'KF018', qr/authenticates the audit log: it can't be suspended or destroyed/, 'it is not suspended');
refused($node, "CALL fieldcrypt.destroy_key($id)", 'KF018', qr/authenticates the audit log/, 'nor scheduled for destruction');
refused($node, "SELECT fieldcrypt_internal.set_key_state($id, '$_', 'x')", 'KF018', qr/authenticates the audit log/, "nor made $_ past the functions for that") foreach 'suspended', 'destroyed';
refused($node, "SELECT fieldcrypt_internal.schedule_destruction($id, 0, 'x')", 'KF018', qr/authenticates the audit log/, 'nor scheduled past them');
refused($node, "SELECT fieldcrypt_internal.erase_key($id, 'x')", 'KF018', 'nor erased');
$node->append_conf('postgresql.conf', "fieldcrypt.require_approval = ''");
$node->reload;
refused($node, q{CALL fieldcrypt.shred_tenant('audit log', 'x')}, 'KF018', qr/has no encryption key/, 'no tenant has it: nothing is shredded');
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
gives($node, $audit_keys, "1|deactivated\n2|active", 'rotation makes a new version');
gives($node, q{SELECT count(*) FROM fieldcrypt.retire_keys(1) WHERE key_tenant = 'audit log'}, '0', 'retire_keys leaves old versions alone');
refused($node, "CALL fieldcrypt.destroy_key($id)", 'KF018', qr/authenticates the audit log/, 'an old version is not destroyed either');
gives($node, q{SELECT event, mac_key_id <> key_id FROM fieldcrypt.audit_log WHERE key_id = } . $id . ' ORDER BY id', "key_created|f\nkey_deactivated|f", 'what came before the new version is under the old one');
value($node, 'INSERT INTO audited VALUES (7)');
gives($node, q{SELECT mac_key_id = } . $active . q{ FROM fieldcrypt.audit_log ORDER BY id DESC LIMIT 1}, 't', 'what comes after it, under the new one');
value($node, 'CALL fieldcrypt.rotate_keys()');
gives($node, $audit_keys, "1|deactivated\n2|active", 'rotation leaves a young one');
value($node, q{SET session_replication_role = replica; UPDATE fieldcrypt.encryption_keys SET created_at = now() - interval '91 days' WHERE purpose = 'audit' AND state = 'active'});
value($node, 'CALL fieldcrypt.rotate_keys()');
gives($node, $audit_keys, "1|deactivated\n2|deactivated\n3|active", 'and replaces one that is due by the default policy');
my $third = value($node, "SELECT $active");
isnt(value($node, "SELECT fieldcrypt.mark_compromised($third, 'leaked')"), $third, 'a compromised one is replaced');
gives($node, $audit_keys, "1|deactivated\n2|deactivated\n3|compromised\n4|active", 'by the next version');

# No tenant can be called so. One that has keys already, by an import, is another matter: 176.
refused($node, $_, '22023', qr/"audit log" is no tenant's name/, "refused: $_")
  foreach q{SELECT fieldcrypt.encrypt_field('theirs', tenant => 'audit log')}, q{SELECT fieldcrypt.create_key('audit log')}, q{CALL fieldcrypt.rotate_keys('audit log')}, q{CALL fieldcrypt.rotate_keys('audit log', force => true)};
gives($node, $audit_keys, "1|deactivated\n2|deactivated\n3|compromised\n4|active", 'and the keys of the log are what they were');

# The master key.
use_key_file($node, key_text(2), key_text(1));
$node->reload;
like(run_sql($node, 'CALL fieldcrypt.rotate_master_key()')->{err}, qr/wraps all keys of this database/, 'rotate_master_key wraps them again');
gives($node, 'SELECT count(DISTINCT master_key_fingerprint) FROM fieldcrypt.encryption_keys WHERE wrapped_key IS NOT NULL', '1', 'all of them');
use_key_file($node, key_text(2));
$node->reload;
gives($node, 'SELECT bool_and(ok) FROM fieldcrypt.verify_keys()', 't', 'they open without the old one');
value($node, 'INSERT INTO audited VALUES (8)');
gives($node, q{SELECT mac_key_id = } . $active . q{ FROM fieldcrypt.audit_log ORDER BY id DESC LIMIT 1}, 't', 'and authenticate');

# Exports.
my $export = value($node, 'SELECT fieldcrypt.export_keys()');
(my $quoted = $export) =~ s/'/''/g;
create_database($node, 'import');
value($node, "SELECT fieldcrypt.import_keys('$quoted')", db => 'import');
gives($node, $audit_keys, "1|deactivated\n2|deactivated\n3|compromised\n4|active", 'an import brings them', db => 'import');
value($node, q{SELECT fieldcrypt.create_key('one more')}, db => 'import');
gives($node, q{SELECT mac_key_id = } . $active . q{ FROM fieldcrypt.audit_log ORDER BY id DESC LIMIT 1}, 't', 'and goes on with the active one', db => 'import');
create_database($node, 'merged');
value($node, q{SELECT fieldcrypt.create_key('of its own')}, db => 'merged');
my $own = value($node, "SELECT $active", db => 'merged');
value($node, "SELECT fieldcrypt.import_keys('$quoted')", db => 'merged');
gives($node, q{SELECT count(*), count(*) FILTER (WHERE state = 'active'), max(key_id) FILTER (WHERE state = 'active') FROM fieldcrypt.encryption_keys WHERE purpose = 'audit'}, "5|1|$own", 'imported beside one of its own, which stays the active one', db => 'merged');
gives($node, 'SELECT bool_and(ok) FROM fieldcrypt.verify_keys()', 't', 'and all open', db => 'merged');
my $exported = "$folder/export";
append_to_file($exported, $export);
my $tool = $ENV{FIELDCRYPT_TOOL};
my $out = '';
IPC::Run::run([ $tool, 'check', $exported, '--master-key', $node->basedir . '/master.key' ], '>', \$out, '2>', \my $err);
like($out, qr/^GOOD: /m, 'the offline tool opens them');

# Without a master key: what is to be recorded is, and nobody asks for the key row by row.
my $calls = "$folder/calls";
append_to_file("$folder/command", "#!/bin/sh\necho called >> '$calls'\nexit 1\n");
chmod 0755, "$folder/command";
$node->append_conf('postgresql.conf', "fieldcrypt.master_key_file = ''\nfieldcrypt.master_key_command = '$folder/command'");
$node->restart;
value($node, q{INSERT INTO audited SELECT generate_series(1, 1000)});
gives($node, q{SELECT count(*), count(mac) FROM (SELECT mac FROM fieldcrypt.audit_log WHERE event = 'row_inserted' ORDER BY id DESC LIMIT 1000) AS l}, '1000|0', 'without a master key: a thousand rows, unauthenticated');
my $called = () = slurp_file($calls) =~ /called/g;
cmp_ok($called, '<=', 3, "without a master key: its command is run once a while, not once a row ($called)");
$session = session($node);
$session->value('INSERT INTO audited VALUES (9)');
$node->append_conf('postgresql.conf', "fieldcrypt.master_key_command = ''");
use_key_file($node, key_text(2));
$node->reload;
$session->value('INSERT INTO audited VALUES (10)');
$session->close;
gives($node, q{SELECT mac_key_id = } . $active . q{ FROM fieldcrypt.audit_log ORDER BY id DESC LIMIT 1}, 't', 'with a master key again: the next row is authenticated');

# A key that does not open.
past_the_guard($node, q{UPDATE fieldcrypt.encryption_keys SET wrapped_key = set_byte(wrapped_key, 40, get_byte(wrapped_key, 40) # 1) WHERE purpose = 'audit' AND state = 'active'});
value($node, 'INSERT INTO audited VALUES (11)');
gives($node, q{SELECT mac IS NULL, mac_key_id IS NULL FROM fieldcrypt.audit_log ORDER BY id DESC LIMIT 1}, 't|t', 'a damaged key: rows are written unauthenticated');
gives($node, q{SELECT tenant, version, problem ~ 'not authentic' FROM fieldcrypt.verify_keys() WHERE NOT ok}, 'audit log|4|t', 'and verify_keys says so');

no_crash($node);
$node->stop;
done_testing();

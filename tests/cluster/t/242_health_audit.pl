# Health of the audit log and what it tells of use: failed decryptions, gaps, seals, handovers, forks and outside
# copies; each from ok to a finding and back, by a real cause.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
max_connections = 40
fieldcrypt.audit_queue_size = 64kB
fieldcrypt.audit_seal_interval = 200ms
CONF

# A test: a check comes to this status within a minute, with a detail and hint like these.
sub is_health
{
	my ($check, $status, $like, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $row;
	foreach (1 .. 120)
	{
		$row = value($node, qq{SELECT status || ': ' || detail || coalesce(' HINT ' || hint, '') FROM fieldcrypt.health() WHERE "check" = '$check'}, %options);
		last if $row =~ /^$status: .*$like/;
		select undef, undef, undef, 0.5;
	}
	return like($row, qr/^$status: .*$like/, "$check: $name");
}

value($node, <<'SQL');
CREATE ROLE manager LOGIN; CREATE ROLE auditor LOGIN; CREATE ROLE app LOGIN; CREATE ROLE "o'dd ""role" LOGIN;
SELECT fieldcrypt.grant_access('manager', 'manage'), fieldcrypt.grant_access('auditor', 'audit'), fieldcrypt.grant_access('app', 'encrypt', 'decrypt'), fieldcrypt.grant_access('"o''dd ""role"', 'decrypt');
CREATE TABLE t AS SELECT i, fieldcrypt.encrypt_field('of ' || i, 'context ' || i, 'tenant ' || i % 3) AS value FROM generate_series(1, 100) AS i;
GRANT SELECT ON t TO app, "o'dd ""role";
SQL

# Fails to decrypt so many values, each in a statement of its own: their transactions are rolled back.
sub fail
{
	my ($user, $count) = @_;
	run_sql($node, join(";\n", (q{SELECT fieldcrypt.decrypt_field(value, 'wrong') FROM t WHERE i = 7}) x $count), user => $user);
	return;
}

# Failed decryptions.
is_health('failed_decrypts', 'ok', '0 values did not decrypt in the last 01:00:00', 'none');
fail('app', 2);
is_health('failed_decrypts', 'ok', '2 values did not decrypt in the last 01:00:00: login role "app" \(2\)', 'two');
fail(q{o'dd "role}, 1);
is_health('failed_decrypts', 'warning', q{3 values did not decrypt in the last 01:00:00: 2 login roles: "app" \(2\), "o'dd \\\\"role" \(1\) HINT SELECT \* FROM fieldcrypt\.audit_log}, 'three');
configure($node, 'fieldcrypt.health_failed_decrypts' => '4');
is_health('failed_decrypts', 'ok', '3 values', 'three, where four are a warning');
configure($node);
fail('app', 97);
is_health('failed_decrypts', 'critical', '100 values did not decrypt', 'a hundred');
gives($node, q{SELECT "check" FROM fieldcrypt.health() LIMIT 1}, 'failed_decrypts', 'the worst is first');
configure($node, 'fieldcrypt.health_failed_decrypts_window' => '1s');
sleep 2;
is_health('failed_decrypts', 'ok', '0 values did not decrypt in the last 00:00:01', 'an hour, or another time, later');
configure($node);

# Gaps: the worker can't write, and the queue is full.
is_health('audit_gaps', 'ok', 'no event was left out', 'none');
{
	my $gate = session($node);
	$gate->value('BEGIN; LOCK TABLE fieldcrypt.audit_log IN SHARE MODE');
	fail('app', 2000);
	gives($node, 'SELECT gap_events > 0 FROM fieldcrypt.audit_status()', 't', 'the queue is full');
	$gate->value('COMMIT');
	$gate->close;
}
is_health('audit_gaps', 'warning', '\d+ events were left out of the audit log in the last 7 days, last just now.* HINT They are lines "fieldcrypt audit:" of the server log', 'a full queue');
configure($node, 'fieldcrypt.health_event_memory' => '1s');
sleep 2;
is_health('audit_gaps', 'ok', '', 'a week, or another time, later');
configure($node);

# Seals: the worker can't write them.
is_health('audit_sealing', 'ok', 'the audit log is sealed; the last checkpoint', 'sealed');
{
	my $gate = session($node);
	$gate->value('BEGIN; LOCK TABLE fieldcrypt.audit_checkpoints, fieldcrypt.audit_origins, fieldcrypt.audit_signers IN EXCLUSIVE MODE');
	my $sealer = session($node);
	$sealer->value(q{SELECT fieldcrypt.create_key('late')});
	configure($node, 'fieldcrypt.health_seal_delay' => '1s');
	is_health('audit_sealing', 'warning', 'rows of the audit log are in no checkpoint, though older than 00:00:01.* HINT Until then', 'held up');
	$gate->value('COMMIT');
	$_->close foreach $gate, $sealer;
}
is_health('audit_sealing', 'ok', '', 'held up no more');
configure($node);

# Outside copies.
is_health('audit_anchor', 'warning', 'kept in this database only.* HINT Set fieldcrypt\.audit_checkpoint_command', 'no command');
my $copies = $node->basedir . '/copies';
configure($node, 'fieldcrypt.audit_checkpoint_command' => "cat >> '$copies'", 'fieldcrypt.audit_checkpoint_command_interval' => '1s');
is_health('audit_anchor', 'ok', 'passed on', 'a command');
value($node, q{SELECT fieldcrypt.create_key('for a checkpoint')});
foreach (1 .. 60) { last if -s $copies; sleep 1; }
like(slurp_file($copies), qr/^pg_fieldcrypt\/[0-9a-f]{32}\n\d+\n/, 'a command that gets checkpoints');
configure($node, 'fieldcrypt.audit_checkpoint_command' => 'exit 3', 'fieldcrypt.audit_checkpoint_command_interval' => '1s');
value($node, q{SELECT fieldcrypt.create_key('for another checkpoint')});
is_health('audit_anchor', 'warning', 'do not get outside: fieldcrypt\.audit_checkpoint_command failed', 'a command that fails');
configure($node);

# Handovers.
is_health('audit_handover', 'ok', 'follow each other', 'none');
$node->restart;
value($node, q{SELECT fieldcrypt.create_key('after a restart')});
is_health('audit_sealing', 'ok', 'sealed; the last', 'after a restart');
is_health('audit_handover', 'ok', '', 'after a restart in order');
value($node, q{SELECT fieldcrypt.create_key('before a crash')});
$node->stop('immediate');
$node->start;
value($node, q{SELECT fieldcrypt.create_key('after a crash')});
is_health('audit_handover', 'warning', 'interrupted 1 time\(s\), last just now, and went on with a key that the one before did not sign HINT After a crash', 'after a crash');
configure($node, 'fieldcrypt.health_event_memory' => '1s');
sleep 2;
is_health('audit_handover', 'ok', '', 'a week, or another time, later');
configure($node);

# Forks: a dump that is restored elsewhere.
is_health('audit_fork', 'ok', '', 'none');
my $dump = dump_database($node, 'postgres', $node->basedir . '/dump.sql');
value($node, 'CREATE DATABASE restored');
restore_database($node, 'restored', $dump);
value($node, q{SELECT fieldcrypt.create_key('in the copy')}, db => 'restored');
is_health('audit_fork', 'warning', 'goes on elsewhere than where it began .* HINT After a restore', 'a restored dump', db => 'restored');
value($node, q{SELECT fieldcrypt.acknowledge_audit_fork('restored for a test')}, db => 'restored');
is_health('audit_fork', 'ok', '', 'acknowledged', db => 'restored');
is_health('audit_fork', 'ok', '', 'the database that was dumped has none');

no_crash($node);
$node->stop;
done_testing();

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
listen_addresses = '127.0.0.1'
CONF
append_to_file($node->data_dir . '/pg_hba.conf', "host all all 127.0.0.1/32 trust\n");

# A test: a check comes to this status soon, with a detail and hint like these.
sub is_health
{
	my ($check, $status, $like, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $row;
	foreach (1 .. 40)
	{
		$row = value($node, qq{SELECT status || ': ' || detail || coalesce(' HINT ' || hint, '') FROM fieldcrypt.health() WHERE "check" = '$check'}, %options);
		last if $row =~ /^$status: .*$like/ || $row =~ /check failed/;
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
sub fail_once
{
	my ($user, $count) = @_;
	run_sql($node, join(";\n", (q{SELECT fieldcrypt.decrypt_field(value, 'wrong') FROM t WHERE i = 7}) x $count), user => $user);
	return;
}

# Failed decryptions.
is_health('failed_decrypts', 'ok', '0 values did not decrypt in the last 01:00:00', 'none');
fail_once('app', 2);
is_health('failed_decrypts', 'ok', '2 values did not decrypt in the last 01:00:00: login role "app" \(2\)', 'two');
fail_once(q{o'dd "role}, 1);
is_health('failed_decrypts', 'warning', q{3 values did not decrypt in the last 01:00:00: 2 login roles: "app" \(2\), "o'dd \\\\"role" \(1\) HINT SELECT \* FROM fieldcrypt\.audit_log}, 'three');
configure($node, 'fieldcrypt.health_failed_decrypts' => '4');
is_health('failed_decrypts', 'ok', '3 values', 'three, where four are a warning');
configure($node);
fail_once('app', 97);
is_health('failed_decrypts', 'critical', '100 values did not decrypt', 'a hundred');
gives($node, q{SELECT "check" FROM fieldcrypt.health() LIMIT 1}, 'failed_decrypts', 'the worst is first');
configure($node, 'fieldcrypt.health_failed_decrypts_window' => '1s');
sleep 2;
is_health('failed_decrypts', 'ok', '0 values did not decrypt in the last 00:00:01', 'an hour, or another time, later');
configure($node, 'fieldcrypt.audit_decrypt' => 'off');
is_health('failed_decrypts', 'warning', 'not recorded: .* HINT Set fieldcrypt\.audit_decrypt', 'not recorded');
configure($node);

# Unusual use.
is_health('unusual_hours', 'ok', 'not judged: fieldcrypt.health_hours is empty', 'no hours set');
is_health('unusual_addresses', 'ok', 'not recorded: fieldcrypt.audit_decrypt', 'not recorded');
sub use_by
{
	my ($user) = @_;
	value($node, q{SELECT count(fieldcrypt.decrypt_field(value, 'context ' || i)) FROM t}, user => $user);
	return;
}
my %recorded = ('fieldcrypt.audit_decrypt' => 'statements');
configure($node, %recorded, 'fieldcrypt.health_hours' => '00:00-24:00');
is_health('unusual_hours', 'ok', '0 values were decrypted outside of 00:00-24:00 in the last 1 day', 'nothing was decrypted');
use_by('app');
$node->poll_query_until('postgres', q{SELECT count(*) = 3 FROM fieldcrypt.audit_log WHERE event = 'values_decrypted'}) or die 'not recorded';
is_health('unusual_hours', 'ok', '0 values', 'in hours that are all day');
# Now, in a time zone where it is about noon, and one where it is about midnight.
my $hour = (gmtime)[2];
my $zone = sub { my $shift = (shift() - $hour) % 24; $shift -= 24 if $shift > 12; return sprintf 'Etc/GMT%+d', -$shift; };
configure($node, %recorded, 'fieldcrypt.health_hours' => '07:00-19:00 ' . $zone->(12));
is_health('unusual_hours', 'ok', '0 values', 'by day');
configure($node, %recorded, 'fieldcrypt.health_hours' => '22:00-06:00 ' . $zone->(12));
is_health('unusual_hours', 'warning', '100 values were decrypted outside of 22:00-06:00 Etc/GMT\S+ in the last 1 day: login role "app", last at .* HINT SELECT', 'by day, where the hours are the night');
configure($node, %recorded, 'fieldcrypt.health_hours' => '07:00-19:00 ' . $zone->(0));
is_health('unusual_hours', 'warning', '100 values', 'by night');
configure($node, %recorded, 'fieldcrypt.health_hours' => '22:00-06:00 ' . $zone->(0));
is_health('unusual_hours', 'ok', '0 values', 'by night, where the hours are the night');
my @days = qw(Sun Mon Tue Wed Thu Fri Sat);
my $today = (gmtime)[6];
configure($node, %recorded, 'fieldcrypt.health_hours' => "$days[($today + 2) % 7]-$days[($today + 5) % 7] 00:00-24:00 UTC");
is_health('unusual_hours', 'warning', '100 values', 'on another day');
configure($node, %recorded, 'fieldcrypt.health_hours' => "$days[$today],$days[($today + 1) % 7] 00:00-24:00 UTC");
is_health('unusual_hours', 'ok', '0 values', 'on the right day');
configure($node, %recorded, 'fieldcrypt.health_hours' => '07:00-19:00 Mars/Olympus');
is_health('unusual_hours', 'critical', 'this check failed: time zone "Mars/Olympus" not recognized', 'a time zone that there is not');
configure($node, %recorded, 'fieldcrypt.health_hours' => '22:00-06:00 ' . $zone->(12), 'fieldcrypt.health_use_window' => '1s');
sleep 2;
is_health('unusual_hours', 'ok', '0 values', 'longer ago than the window');

# Addresses: a local socket first, then a connection over TCP.
configure($node, %recorded);
is_health('unusual_addresses', 'ok', 'no address is unusual yet', 'nothing to compare with');
configure($node, %recorded, 'fieldcrypt.health_use_window' => '1s');
is_health('unusual_addresses', 'ok', 'only from addresses that did so before', 'known ones');
configure($node, %recorded, 'fieldcrypt.health_use_window' => '30s');
$node->poll_query_until('postgres', q{SELECT max(at) < now() - interval '31 s' FROM fieldcrypt.audit_log WHERE event = 'values_decrypted'}) or die 'no end of use';
my $events = value($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'values_decrypted'});
my $tcp = "host=127.0.0.1 port=@{[ $node->port ]} dbname=postgres user=app";
IPC::Run::run([ 'psql', '-XAtqc', q{SELECT count(fieldcrypt.decrypt_field(value, 'context ' || i)) FROM t}, $tcp ], '>', \my $out);
$node->poll_query_until('postgres', "SELECT count(*) > $events FROM fieldcrypt.audit_log WHERE event = 'values_decrypted'") or die 'not recorded';
is_health('unusual_addresses', 'warning', 'in the last 00:00:30 from host 127\.0\.0\.1 that never did so in the 30 days before HINT', 'a new one');
configure($node, %recorded, 'fieldcrypt.health_use_window' => '1s');
is_health('unusual_addresses', 'ok', 'only from addresses that did so before', 'it becomes known');
configure($node);

# Gaps: the worker can't write, and the queue is full.
is_health('audit_gaps', 'ok', 'no event was left out', 'none');
{
	my $gate = session($node);
	$gate->value('BEGIN; LOCK TABLE fieldcrypt.audit_log IN SHARE MODE');
	fail_once('app', 2000);
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

# Verifications.
is_health('audit_verification', 'warning', 'never verified HINT CALL fieldcrypt\.check_audit_log', 'none');
refused($node, 'CALL fieldcrypt.check_audit_log()', '42501', 'verification: not by who only decrypts', user => 'app');
refused($node, 'BEGIN; CALL fieldcrypt.check_audit_log(); ROLLBACK', '2D000', 'verification: not in a transaction block');
value($node, 'CALL fieldcrypt.check_audit_log()', user => 'auditor');
gives($node, 'SELECT status, actor, started_at < ended_at, detail <> \'\' FROM fieldcrypt.audit_verifications', qr/^(ok|warning)\|auditor\|t\|t$/, 'verification: the result is kept');
is_health('audit_verification', '(?:ok|warning)', 'the audit log was verified just now: summary: ', 'verified');
configure($node, 'fieldcrypt.health_verification_age' => '1s');
sleep 2;
is_health('audit_verification', 'warning', 'was last verified', 'a day, or another time, later');
configure($node);
value($node, q{SET session_replication_role = replica; CREATE TABLE kept AS SELECT id, reason FROM fieldcrypt.audit_log WHERE leaf = 3; UPDATE fieldcrypt.audit_log SET reason = 'forged' WHERE leaf = 3});
my $forged = run_sql($node, 'CALL fieldcrypt.check_audit_log()');
like($forged->{err}, qr/WARNING:  01000: the audit log is not all right \(critical, /, 'verification: of a forged log, says so');
is_health('audit_verification', 'critical', 'found the audit log changed: .* HINT SELECT \* FROM fieldcrypt\.verify_audit_log', 'of a forged log');
value($node, q{SET session_replication_role = replica; UPDATE fieldcrypt.audit_log AS l SET reason = k.reason FROM kept AS k WHERE k.id = l.id});
value($node, 'CALL fieldcrypt.check_audit_log()', user => 'manager');
is_health('audit_verification', '(?:ok|warning)', 'the audit log was verified just now', 'of one that was put right');

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

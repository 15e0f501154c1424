# Where a log is sealed: restored, copied, promoted, it goes on under another name, and somebody has to
# say why.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes;

my $conf = "shared_preload_libraries = 'pg_fieldcrypt'\nfieldcrypt.audit_worker_linger = 200\nfieldcrypt.audit_seal_interval = 200\n";
my $node = new_cluster('origins', init => { allows_streaming => 1 }, conf => $conf);
my $folder = PostgreSQL::Test::Utils::tempdir();

# What verification finds, and how bad it is; what is to be expected of any log here left out.
my $found = q{SELECT coalesce(string_agg(DISTINCT status || ' ' || finding, ', ' ORDER BY status || ' ' || finding), '') FROM fieldcrypt.verify_audit_log(anchor => '%s') WHERE status <> 'ok' AND finding NOT IN ('summary', 'unanchored', 'unclean_handover')};

sub verified
{
	my ($anchor, $db) = @_;
	note value($node, sprintf(q{SELECT * FROM fieldcrypt.verify_audit_log(anchor => '%s') WHERE status <> 'ok'}, $anchor), db => $db // 'restored');
	return value($node, sprintf($found, $anchor), db => $db // 'restored');
}

# Waits until all rows of the log have leaves, and a checkpoint covers them.
sub sealed
{
	my ($on, $db, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	local $PostgreSQL::Test::Utils::timeout_default = 30;
	my $sealed = $on->poll_query_until($db, <<'SQL');
SELECT count(*) FILTER (WHERE leaf IS NULL) = 0 AND max(leaf) + 1 = (SELECT max(size) FROM fieldcrypt.audit_checkpoints) FROM fieldcrypt.audit_log
SQL
	ok($sealed, "$name: sealed and signed") or diag value($on, 'SELECT s.*, (SELECT max(leaf) FROM fieldcrypt.audit_log), (SELECT max(size) FROM fieldcrypt.audit_checkpoints) FROM fieldcrypt.audit_status() AS s', db => $db);
	return gives($on, 'SELECT count(leaf) = max(leaf) + 1, min(leaf), count(DISTINCT leaf) = count(leaf) FROM fieldcrypt.audit_log',
		't|0|t', "$name: numbered without gaps", db => $db);
}

my $origins = q{SELECT row_number() OVER (ORDER BY o.id), o.cause, o.old_log_id = lag(o.log_id) OVER (ORDER BY o.id), o.acknowledged_by, o.acknowledged_reason FROM fieldcrypt.audit_origins AS o ORDER BY o.id};

create_database($node, 'app');
value($node, 'CREATE ROLE manager LOGIN; CREATE ROLE auditor LOGIN');
value($node, q{SELECT fieldcrypt.grant_access('manager', 'manage'); SELECT fieldcrypt.grant_access('auditor', 'audit')}, db => 'app');
value($node, q{SELECT fieldcrypt.create_key('tenant ' || i) FROM generate_series(1, 20) AS i}, db => 'app');
value($node, q{CREATE TABLE kept AS SELECT fieldcrypt.encrypt_field('kept', 'right', 'tenant 1') AS value}, db => 'app');
sealed($node, 'app', 'the first origin');
gives($node, $origins, '1|the first|||', 'the first origin', db => 'app');
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'audit_origin_begun' AND mac IS NOT NULL}, '1', 'the first origin: the log tells of it', db => 'app');
my $size = value($node, 'SELECT max(size) FROM fieldcrypt.audit_checkpoints', db => 'app');

# Who may.
foreach my $user ('auditor', 'manager')
{
	gives($node, 'SELECT count(*) > 0 FROM fieldcrypt.audit_origins, fieldcrypt.audit_checkpoints, fieldcrypt.audit_signers', 't', "$user reads origins, signers and checkpoints", db => 'app', user => $user) if $user eq 'auditor';
	refused($node, "$_", '42501', "$user: $_", db => 'app', user => $user)
	  foreach 'UPDATE fieldcrypt.audit_origins SET acknowledged_at = now()', 'DELETE FROM fieldcrypt.audit_checkpoints', 'TRUNCATE fieldcrypt.audit_signers',
	  q{SELECT fieldcrypt_internal.retire_audit_partition('audit_log_2026')}, q{SELECT fieldcrypt_internal.empty_audit_partition('audit_log_2026')}, q{SELECT fieldcrypt_internal.lock_audit_partition('audit_log_2026')}, 'SELECT fieldcrypt_internal.audit_retention()';
}
refused($node, q{SELECT fieldcrypt.acknowledge_audit_fork('because')}, '42501', 'an auditor acknowledges nothing', db => 'app', user => 'auditor');
foreach my $table (qw(audit_origins audit_signers audit_checkpoints))
{
	refused($node, "DELETE FROM fieldcrypt.$table", 'KF015', "a superuser deletes nothing from $table", db => 'app');
	refused($node, "TRUNCATE fieldcrypt.$table", 'KF015', "nor empties $table", db => 'app');
	refused($node, "INSERT INTO fieldcrypt.$table SELECT * FROM fieldcrypt.$table", 'KF016', "nor adds to $table", db => 'app');
}

# A dump, restored beside it.
dump_database($node, 'app', "$folder/app", '-Fc');
value($node, 'CREATE DATABASE restored');
is(restore_database($node, 'restored', "$folder/app", '-e', '-j', 2)->{err}, '', 'restored');
gives($node, "SELECT max(size) >= $size FROM fieldcrypt.audit_checkpoints", 't', 'restored: checkpoints came along', db => 'restored');
gives($node, $origins, '1|the first|||', 'restored: nothing is begun while a dump may be coming in', db => 'restored');
value($node, q{SELECT fieldcrypt.create_key('made after the restore')}, db => 'restored');
sealed($node, 'restored', 'restored');
gives($node, $origins, "1|the first|||\n2|another database|t||", 'restored: it goes on under another name', db => 'restored');
gives($node, q{SELECT o.old_size >= } . $size . q{, o.old_root = c.root OR o.old_size > c.size FROM fieldcrypt.audit_origins AS o, fieldcrypt.audit_checkpoints AS c WHERE o.cause = 'another database' AND c.size = } . $size . ' LIMIT 1', 't|t', 'restored: from the size and root that it had', db => 'restored');
like(verified(''), qr/^warning \w*fork\w*$/, 'restored: verification says so');
refused($node, 'SELECT fieldcrypt.acknowledge_audit_fork(NULL)', '22004', 'no NULL reason', db => 'restored');
refused($node, q{SELECT fieldcrypt.acknowledge_audit_fork('  ')}, 'KF028', qr/a reason is needed/, 'no empty reason', db => 'restored');
refused($node, q{BEGIN READ ONLY; SELECT fieldcrypt.acknowledge_audit_fork('x')}, 'KF013', 'not in a READ ONLY transaction', db => 'restored');
gives($node, q{SELECT fieldcrypt.acknowledge_audit_fork('a test of the restore')}, '1', 'acknowledged', db => 'restored', user => 'manager');
gives($node, $origins, "1|the first|||\n2|another database|t|manager|a test of the restore", 'acknowledged: by whom and why', db => 'restored');
gives($node, q{SELECT l.actor, l.reason = 'a test of the restore (log ' || encode(o.log_id, 'hex') || ')', l.mac IS NOT NULL FROM fieldcrypt.audit_log AS l, fieldcrypt.audit_origins AS o WHERE l.event = 'audit_fork_acknowledged' AND o.old_log_id IS NOT NULL}, 'manager|t|t', 'acknowledged: recorded', db => 'restored');
gives($node, $origins, '1|the first|||', 'the database that was dumped goes on as it was', db => 'app');

unlike(verified(''), qr/fork|critical/, 'acknowledged: verification is content');

# What an outside checkpoint of the old log says is not hidden by that.
value($node, q{SELECT fieldcrypt.create_key('newer than the dump ' || i) FROM generate_series(1, 100) AS i}, db => 'app');
sealed($node, 'app', 'newer rows than the dump has');
my $newer = value($node, 'SELECT note FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1', db => 'app');
unlike(verified($newer, 'app'), qr/critical/, 'a newer checkpoint: of the log that it is of');
like(verified($newer), qr/critical/, 'a newer checkpoint: the restored log does not have what it states');

# Nothing is open: an acknowledgement begins a new origin.
gives($node, q{SELECT fieldcrypt.acknowledge_audit_fork('tables were repaired')}, '1', 'acknowledged where nothing is open', db => 'restored');
gives($node, "SELECT count(*), max(cause) FILTER (WHERE acknowledged_reason = 'tables were repaired') FROM fieldcrypt.audit_origins", '3|an acknowledgement', 'begins a new origin', db => 'restored');
sealed($node, 'restored', 'after that');

# A restore over a log that is in use.
my $again = restore_database($node, 'restored', "$folder/app", '--data-only');
is_deeply([ grep { !/^KF016$/ } @{ $again->{sqlstates} } ], [], 'nothing is restored over it');
gives($node, 'SELECT count(*) FROM fieldcrypt.audit_origins', '3', 'nor are origins', db => 'restored');

# A dump restored where nobody makes a key: a minute after the restore has ended, which is waited for at the end.
value($node, 'CREATE DATABASE quiet');
my $restore = session($node, db => 'quiet', env => { PGAPPNAME => 'pg_restore' });
$restore->gives('SELECT 1', '1', 'somebody who says that he restores');
is(restore_database($node, 'quiet', "$folder/app", '-e')->{err}, '', 'restored where nobody makes a key');
is(value($node, q{SELECT fieldcrypt_internal.is_being_restored()}, db => $_->[0]), $_->[1], "$_->[0]: whether a restore is under way")
  foreach [ 'app', 'f' ], [ 'quiet', 't' ];
run_sql($node, q{SELECT fieldcrypt.decrypt_field(value, 'wrong') FROM kept}, db => 'quiet');
my $restored_at = time;

# A copy.
$node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'app'}) or fail('nobody is connected');
value($node, 'CREATE DATABASE copied TEMPLATE app');
value($node, q{SELECT fieldcrypt.create_key('made in the copy')}, db => 'copied');
sealed($node, 'copied', 'a copy');
gives($node, $origins, "1|the first|||\n2|another database|t||", 'a copy goes on under another name', db => 'copied');

# A standby that is promoted.
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('promoted');
$standby->init_from_backup($node, 'base', has_streaming => 1);
use_key_file($standby, key_text(1));
$standby->start;
$node->wait_for_catchup($standby);
$standby->promote;
value($standby, q{SELECT fieldcrypt.create_key('made after the promotion')}, db => 'app');
sealed($standby, 'app', 'promoted');
gives($standby, $origins, "1|the first|||\n2|another timeline|t||", 'a promoted standby goes on under another name', db => 'app');
value($node, q{SELECT fieldcrypt.create_key('made meanwhile')}, db => 'app');
sealed($node, 'app', 'the old primary');
my ($here, $there) = map { value($_, 'SELECT encode(log_id, $$hex$$) FROM fieldcrypt.audit_origins ORDER BY id DESC LIMIT 1', db => 'app') } $node, $standby;
isnt($here, $there, 'and the old primary under its own');

# The database where nobody makes a key, but somebody uses them: not sealed while the restore lasts, and a minute
# after it, though its worker has left long before.
Time::HiRes::sleep(1) while time < $restored_at + 65;
gives($node, $origins, '1|the first|||', 'not sealed while a restore is under way', db => 'quiet');
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed' AND leaf IS NULL}, '1', 'but written', db => 'quiet');
$restore->close;
{
	my $ended = time;
	local $PostgreSQL::Test::Utils::timeout_default = 150;
	ok($node->poll_query_until('quiet', 'SELECT count(*) = 2 FROM fieldcrypt.audit_origins'), 'sealed without a key of its own');
	cmp_ok(time - $ended, '>=', 55, 'but not at once');
}
sealed($node, 'quiet', 'restored, and left alone');
gives($node, $origins, "1|the first|||\n2|another database|t||", 'restored, and left alone: it goes on under another name', db => 'quiet');

foreach my $one ($standby, $node)
{
	no_crash($one);
	$one->stop;
}
done_testing();

# A tenant is shredded: all its values are lost in every session at the next statement, nobody else's
# are, and what can still be read elsewhere is what the notice says.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary',
	init => { allows_streaming => 1 },
	conf => "max_connections = 50\nmax_prepared_transactions = 5\nautovacuum = off\nwal_level = replica\n");
value($node, <<'SQL');
CREATE TABLE kept (tenant text, value fieldcrypt.encrypted);
CREATE ROLE asks LOGIN;
CREATE ROLE approves LOGIN;
CREATE ROLE app LOGIN;
SELECT fieldcrypt.grant_access('asks', 'manage');
SELECT fieldcrypt.grant_access('approves', 'manage');
SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt');
GRANT SELECT, INSERT ON kept TO app;
SQL
my $fill = q{INSERT INTO kept SELECT t, fieldcrypt.encrypt_field('of ' || t, '', t) FROM unnest(ARRAY['acme', 'globex']) AS t};
value($node, $fill);
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
value($node, $fill);
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
value($node, $fill);
value($node, q{SELECT fieldcrypt.suspend_key(key_id, 'r') FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND version = 2});
value($node, q{SELECT fieldcrypt.mark_compromised(key_id, 'r') FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND version = 1});

sub read_of { return "SELECT DISTINCT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = '$_[0]' AND value IS NOT NULL AND fieldcrypt.key_id(value) = (SELECT fieldcrypt.key_id(value) FROM kept WHERE tenant = '$_[0]' ORDER BY ctid DESC LIMIT 1)"; }
sub write_of { return "SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', '', '$_[0]')) > 0"; }
my $shred = q{CALL fieldcrypt.shred_tenant('acme', 'right to erasure, case 7')};

# The wrapped keys of the tenant, as they lie in files.
my @wrapped = map { pack 'H*', $_ } split /\n/, value($node, q{SELECT encode(wrapped_key, 'hex') FROM fieldcrypt.encryption_keys WHERE tenant = 'acme'});
sub found_in { return scalar keys %{ files_with(\@wrapped, map { $node->data_dir . "/$_" } @_) }; }
value($node, 'CHECKPOINT');
is(found_in('base'), 3, 'the wrapped keys of three versions are in the data files');

$node->backup('before');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'before', has_streaming => 1);
use_key_file($standby, key_text(1));
$standby->start;
my $dump = dump_database($node, 'postgres', PostgreSQL::Test::Utils::tempdir() . '/before.dump', '-Fc');

# Refused.
refused($node, $shred, 'KF019', qr/nobody has asked/, 'without approval', user => 'asks');
refused($node, $shred, '42501', qr/permission denied/, 'without the right', user => 'app');
refused($node, "CALL fieldcrypt.shred_tenant($_->[0])", $_->[1], $_->[2], "refused: $_->[3]", user => 'asks') foreach (
	[ q{NULL, 'r'}, '22004', qr/a tenant and a reason/, 'no tenant' ],
	[ q{'acme', NULL}, '22004', qr/a tenant and a reason/, 'NULL as reason' ],
	[ q{'acme', ' '}, '22023', qr/a tenant and a reason/, 'an empty reason' ]);
refused($node, "BEGIN; $shred", '2D000', 'in a transaction block');
refused($node, "DO \$\$ BEGIN $shred; EXCEPTION WHEN division_by_zero THEN NULL; END \$\$", '2D000', 'where it could be rolled back');
gives($node, read_of('acme'), 'of acme', 'nothing was done');

# Sessions with the keys cached, in every kind of transaction; one in the middle of a cursor.
my %sessions = (autocommit => '', 'READ COMMITTED' => 'BEGIN', 'REPEATABLE READ' => 'BEGIN ISOLATION LEVEL REPEATABLE READ', SERIALIZABLE => 'BEGIN ISOLATION LEVEL SERIALIZABLE');
my %open;
foreach my $name (sort keys %sessions)
{
	foreach my $use ('read', 'write')
	{
		my $session = $open{$name}{$use} = session($node, user => 'app');
		$session->value($sessions{$name} . ';' . read_of('acme') . ';' . write_of('acme'));
	}
}
my $cursor = session($node);
$cursor->value(q{BEGIN; DECLARE c CURSOR FOR SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = 'acme' AND fieldcrypt.key_id(value) IN (SELECT key_id FROM fieldcrypt.encryption_keys WHERE version <> 2)});
$cursor->gives('FETCH 1 FROM c', 'of acme', 'a cursor reads');
# A transaction that has a key of the tenant in flight is waited for.
my $rotating = session($node);
$rotating->value(q{BEGIN; SELECT fieldcrypt.mark_compromised(key_id, 'r') FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND state = 'active'});

my $id = value($node, q{SELECT fieldcrypt.request_approval('shred_tenant', 'acme', 'right to erasure, case 7')}, user => 'asks');
value($node, "CALL fieldcrypt.approve($id)", user => 'approves');
my $shredding = session($node, user => 'asks');
$shredding->send($shred);
$node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM pg_locks WHERE NOT granted}) or die;
gives($node, read_of('acme'), 'of acme', 'while a new key of the tenant is not committed, shredding waits');
$rotating->value('COMMIT');
my $result = $shredding->run('SELECT 1');
like($result->{err}, qr/NOTICE:.*4 encryption key\(s\) of tenant "acme" destroyed/, 'and destroys also what that made');
like($result->{err}, qr/DETAIL:.*dumps, key exports, base backups and archived WAL.*standbys.*dead rows.*VACUUM FULL/, 'the notice says what remains');
like($result->{err}, qr/HINT:.*VACUUM FULL fieldcrypt\.encryption_keys/, 'and what to do');

foreach my $name (sort keys %sessions)
{
	$open{$name}{read}->refused(read_of('acme'), 'KF005', qr/destroyed/, "$name: unreadable at the next statement");
	$open{$name}{write}->refused(write_of('acme'), 'KF007', qr/no active/, "$name: no new key by mere encryption");
	$_->close foreach values %{ $open{$name} };
}
$cursor->refused('FETCH 1 FROM c', 'KF005', 'the open cursor reads no further');
$_->close foreach $cursor, $rotating, $shredding;
gives($node, q{SELECT count(*), count(*) FILTER (WHERE state = 'destroyed'), count(wrapped_key), count(destroyed_at) FROM fieldcrypt.encryption_keys WHERE tenant = 'acme'},
	'4|4|0|4', 'every version is erased: active, deactivated, suspended, compromised');
refused($node, write_of('acme'), 'KF007', 'nor in a new session');
refused($node, q{SELECT fieldcrypt.create_key('acme')}, 'KF007', 'nor by create_key');
refused($node, q{SELECT fieldcrypt.resume_key(key_id, 'r') FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND version = 2}, 'KF018', 'the suspended one does not come back');
refused($node, q{CALL fieldcrypt.rotate_keys('acme')}, 'KF007', 'nor by rotation');
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
gives($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND state <> 'destroyed'}, 0, 'nor by rotation of all with force');
gives($node, q{SELECT count(*), count(fieldcrypt.try_decrypt_field(value)) FROM kept WHERE tenant = 'acme'}, '3|0', 'all values are lost');
gives($node, q{SELECT count(*), count(fieldcrypt.decrypt_field(value)) FROM kept WHERE tenant = 'globex'}, '3|3', 'another tenant keeps all');
gives($node, write_of('globex'), 't', 'and goes on');
refused($node, $shred, 'KF019', qr/has been used/, 'again with the same approval', user => 'asks');
gives($node, q{SELECT actor, tenant, reason FROM fieldcrypt.audit_log WHERE event = 'tenant_shredded'}, 'asks|acme|right to erasure, case 7', 'recorded, by whom and why');
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'key_destroyed' AND tenant = 'acme' AND reason = 'right to erasure, case 7'}, 4, 'and every key');

# Shredded already.
$id = value($node, q{SELECT fieldcrypt.request_approval('shred_tenant', 'acme', 'again')}, user => 'asks');
value($node, "CALL fieldcrypt.approve($id)", user => 'approves');
refused($node, $shred, 'KF018', qr/all encryption keys of tenant "acme" are destroyed already/, 'twice', user => 'asks');
gives($node, "SELECT used_by IS NULL FROM fieldcrypt.approvals WHERE id = $id", 't', 'which spends no approval');

# What the notice says is so: in the files until VACUUM FULL, in a dump for ever, on the standby until it has replayed.
value($node, 'CHECKPOINT');
is(found_in('base'), 3, 'dead rows hold the wrapped keys');
value($node, 'VACUUM FULL fieldcrypt.encryption_keys; CHECKPOINT');
is(found_in('base', 'global'), 0, 'after VACUUM FULL no data file does');
is(found_in('pg_wal'), 3, 'but the WAL does, as the notice says');
$node->wait_for_catchup($standby);
refused($standby, read_of('acme'), 'KF005', 'unreadable on the standby that has replayed it');
gives($standby, read_of('globex'), 'of globex', 'where the others are readable');
create_database($node, 'restored', extension => 0);
is(restore_database($node, 'restored', $dump)->{code}, 0, 'a dump from before is restored');
gives($node, read_of('acme'), 'of acme', 'and with the master key its values are readable: old dumps have to go', db => 'restored');

# After it, the tenant can come back, if somebody says so.
value($node, q{CALL fieldcrypt.rotate_keys('acme', force => true)});
gives($node, write_of('acme'), 't', 'a tenant gets a new key by rotation with force');
gives($node, q{SELECT count(fieldcrypt.try_decrypt_field(value)) FROM kept WHERE tenant = 'acme'}, 0, 'the old values stay lost');

# One person is enough where the configuration says so.
configure($node, 'fieldcrypt.require_approval' => '');
gives($node, q{CALL fieldcrypt.shred_tenant('globex', 'r')}, '', 'without approval, if none is configured', user => 'asks');
refused($node, read_of('globex'), 'KF005', 'and it is done');

no_crash($_) foreach $node, $standby;
$standby->stop;
$node->stop;
done_testing();

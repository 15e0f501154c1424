# A publication FOR ALL TABLES sends what is one database's own, too: its log, approvals, progress. A subscriber keeps its
# own and takes none of it, also where a publisher means harm; keys and policies arrive, and the subscription goes on.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = <<'CONF';
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_worker_linger = '300ms'
fieldcrypt.require_approval = 'shred_tenant'
wal_retrieve_retry_interval = '100ms'
max_worker_processes = 24
max_logical_replication_workers = 12
max_sync_workers_per_subscription = 6
CONF
my $publisher = new_cluster('publisher', init => { allows_streaming => 'logical' }, conf => $conf);
# Without a master key its log begins without a key that would be in the way of the publisher's.
my $subscriber = new_cluster('subscriber', init => { allows_streaming => 'logical' }, conf => $conf . "fieldcrypt.master_key_file = ''\n");

my $sealed = q{SELECT count(*) > 0 AND count(*) = count(leaf) FROM fieldcrypt.audit_log};
value($_, 'CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted); SELECT fieldcrypt.audit_table($$patients$$)') foreach $publisher, $subscriber;
value($_, q{SELECT fieldcrypt.set_rotation_policy(NULL, '60 days'); SELECT fieldcrypt.set_column_context('patients', 'ssn', constant => 'of ' || current_setting('cluster_name'))})
  foreach $publisher, $subscriber;
value($publisher, <<'SQL');
SELECT fieldcrypt.set_rotation_policy('acme', '30 days');
SELECT fieldcrypt.set_rotation_policy(NULL, '45 days');
SELECT fieldcrypt.set_column_context('patients', 'ssn', constant => 'ssn');
INSERT INTO patients SELECT i, fieldcrypt.encrypt_field('value ' || i, 'ssn', 'acme') FROM generate_series(1, 20) AS i;
SELECT fieldcrypt.request_approval('shred_tenant', 'acme', 'asked before');
CALL fieldcrypt.rotate_keys('acme', force => true);
CALL fieldcrypt.reencrypt();
CALL fieldcrypt.verify_values('patients');
SQL
refused($publisher, q{SELECT fieldcrypt.decrypt_field(ssn, 'another') FROM patients WHERE id = 1}, 'KF002', 'a failure before');
ok(eventually($publisher, $sealed, 't'), 'its log is sealed');

# All that is one database's own, as it is.
my @own = split ' ', value($subscriber, <<'SQL');
SELECT string_agg(oid::regclass::text, ' ' ORDER BY relnamespace, relname)
  FROM pg_class
 WHERE relnamespace IN ('fieldcrypt'::regnamespace, 'fieldcrypt_internal'::regnamespace) AND relkind IN ('r', 'p') AND NOT relispartition
   AND relname NOT IN ('encryption_keys', 'master_keys', 'rotation_policies', 'column_contexts')
SQL
is(scalar @own, 19, 'so many tables are one database\'s own') or diag "@own";
my $own_rows = join ' UNION ALL ', map { "SELECT '$_', t::text FROM $_ AS t" } @own;

sub own_of
{
	my ($node) = @_;
	return value($node, "$own_rows ORDER BY 1, 2");
}

# The same once nothing is on its way any more: what a session does here, the log's worker writes a moment later.
sub settled_own_of
{
	my ($node) = @_;
	my ($last, $rows) = ('', own_of($node));
	for (my $tries = 0; $rows ne $last; $tries++)
	{
		die 'what is its own goes on changing' if $tries > 30;
		sleep 3;
		($last, $rows) = ($rows, own_of($node));
	}
	return $rows;
}

$subscriber->append_conf('postgresql.conf', "fieldcrypt.master_key_file = '" . $subscriber->basedir . "/master.key'");
$subscriber->restart;
my $before = settled_own_of($subscriber);

my $from = $publisher->connstr('postgres') =~ s/'/''/gr;
value($publisher, 'CREATE PUBLICATION everything FOR ALL TABLES');
value($subscriber, "CREATE SUBSCRIPTION follower CONNECTION '$from' PUBLICATION everything WITH (disable_on_error = true)");
$subscriber->wait_for_subscription_sync($publisher, 'follower');
same_contents(own_of($subscriber), $before, 'the first copy: what is its own is as before');

my $arriving = <<'SQL';
SELECT 'key', k.* FROM fieldcrypt.encryption_keys AS k ORDER BY key_id;
SELECT 'master key', m.* FROM fieldcrypt.master_keys AS m ORDER BY fingerprint;
SELECT 'policy', p.* FROM fieldcrypt.rotation_policies AS p ORDER BY tenant;
SELECT 'context', c.* FROM fieldcrypt.column_contexts AS c ORDER BY column_name;
SQL

sub same_here
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$publisher->wait_for_catchup('follower');
	same_contents(value($subscriber, $arriving), value($publisher, $arriving), "$what: keys, policies and contexts are the publisher's");
	same_contents(own_of($subscriber), $before, "$what: what is its own is as before");
	is(value($subscriber, 'SELECT subenabled FROM pg_subscription'), 't', "$what: the subscription goes on");
	return;
}
same_here('the first copy');
gives($subscriber, q{SELECT fieldcrypt.decrypt_field(ssn, 'ssn') FROM patients WHERE id = 7}, 'value 7', 'the subscriber decrypts');
ok(eventually($subscriber, q{SELECT count(*) > 0 FROM fieldcrypt.audit_log WHERE event = 'master_key_loaded'}, 't'), 'which its own log tells of');
# The role that reads and who it is are told of its own log alone: what is read here is written here.
$before = settled_own_of($subscriber);

# Changes of every kind: inserted, sealed (an UPDATE), deleted, rotated.
value($publisher, <<'SQL');
SELECT fieldcrypt.set_rotation_policy('acme', '20 days');
SELECT fieldcrypt.set_rotation_policy(NULL, NULL);
SELECT fieldcrypt.set_rotation_policy('other', '20 days');
CALL fieldcrypt.rotate_keys('acme', force => true);
UPDATE patients SET ssn = fieldcrypt.encrypt_field('changed', 'ssn', 'acme') WHERE id = 7;
CALL fieldcrypt.reencrypt();
CALL fieldcrypt.verify_values('patients');
SELECT fieldcrypt.request_approval('shred_tenant', 'acme', 'asked after');
CALL fieldcrypt.check_alerts();
CALL fieldcrypt.check_audit_log();
SELECT fieldcrypt.confirm_key_states('all is well');
SQL
ok(eventually($publisher, $sealed, 't'), 'the publisher\'s log is sealed again');
same_here('changes');

# What fails to be re-encrypted or verified is listed in tables without a key, and deleted there by the next run.
value($publisher, q{UPDATE patients SET ssn = fieldcrypt.encrypt_field('bound elsewhere', 'elsewhere', 'acme') WHERE id = 3});
value($publisher, q{CALL fieldcrypt.rotate_keys('acme', force => true)});
run_sql($publisher, "CALL fieldcrypt.$_") foreach q{reencrypt()}, q{verify_values('patients')};
gives($publisher, 'SELECT (SELECT count(*) FROM fieldcrypt.reencryption_failures), (SELECT count(*) FROM fieldcrypt.value_failures)', '1|1', 'a value fails');
value($publisher, q{UPDATE patients SET ssn = fieldcrypt.encrypt_field('right', 'ssn', 'acme') WHERE id = 3});
gives($publisher, "CALL fieldcrypt.$_", qr//, "$_ deletes what it had listed, though it is published") foreach q{reencrypt()}, q{verify_values('patients')};
gives($publisher, 'SELECT (SELECT count(*) FROM fieldcrypt.reencryption_failures), (SELECT count(*) FROM fieldcrypt.value_failures)', '0|0', 'and it is gone');
same_here('failures that come and go');

# The log of the subscriber goes on, by the publisher's key, and is whole.
refused($subscriber, q{SELECT fieldcrypt.decrypt_field(ssn, 'another') FROM patients WHERE id = 1}, 'KF002', 'a failure on the subscriber');
ok(eventually($subscriber, q{SELECT is_final AND size = (SELECT max(leaf) + 1 FROM fieldcrypt.audit_log) FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1}, 't'),
	'is sealed there');
gives($subscriber, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'}, '1', 'once, and not the publisher\'s');
unlike(value($subscriber, q{SELECT coalesce(string_agg(DISTINCT finding, ' '), '') FROM fieldcrypt.verify_audit_log() WHERE status = 'error'}), qr/row|checkpoint|root|cut/,
	'its log is verified');
$before = settled_own_of($subscriber);

# A publisher that means harm: what it sends is made by hand, past its own guards.
value($publisher, <<'SQL');
ALTER TABLE fieldcrypt.approvals DISABLE TRIGGER refuse_change;
SET session_replication_role = replica;
INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid, reason) VALUES (1, now(), 'key_created', 'forged', 'forged', 1, 'forged');
INSERT INTO fieldcrypt.approvals (id, operation, subject, reason, requested_by, requested_login, expires_at, approved_by, approved_login, approved_at)
VALUES (99, 'shred_tenant', 'acme', 'forged', 'me', 'me', now() + interval '1 day', 'you', 'you', now());
SQL
same_here('forged rows');
# Rows that both have: changed and deleted.
my $shared = value($subscriber, q{SELECT format('%s, %L', id, at) FROM fieldcrypt.audit_log ORDER BY id LIMIT 1});
value($publisher, <<"SQL");
SET session_replication_role = replica;
INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid) VALUES ($shared, 'key_created', 'forged', 'forged', 1);
SQL
value($publisher, 'SET session_replication_role = replica; ' . $_) foreach
  q{UPDATE fieldcrypt.audit_log SET actor = 'forged', leaf = NULL WHERE actor = 'forged'},
  q{UPDATE fieldcrypt.audit_origins SET id = id},
  q{DELETE FROM fieldcrypt.audit_log WHERE actor = 'forged'};
same_here('rows that the subscriber has, changed and deleted');

my $year = value($publisher, q{SELECT extract(year FROM now())});
# A TRUNCATE can't be left out: it stops the subscription, and the log is as it was.
value($publisher, "SET session_replication_role = replica; TRUNCATE fieldcrypt_internal.audit_log_$year, fieldcrypt.audit_checkpoints, fieldcrypt_internal.audit_log_default");
ok(eventually($subscriber, 'SELECT subenabled FROM pg_subscription', 'f'), 'a TRUNCATE of a log stops the subscription');
# The log tells of the refusal; all else is there still.
my %now = map { $_ => 1 } split /\n/, own_of($subscriber);
is(join("\n", grep { !$now{$_} } split /\n/, $before), '', 'and what is its own is there still');
gives($subscriber, q{SELECT count(*) > 0 FROM fieldcrypt.audit_log WHERE event = 'call_refused' AND error_code = 'KF015' AND reason LIKE 'keep_own: %'}, 't', 'its audit log tells of it');
like(slurp_file($subscriber->logfile), qr/ERROR: .*fieldcrypt\S+audit_(?:log_$year|checkpoints|log_default) is written by the functions/, 'its log says why');

no_crash($_) foreach $publisher, $subscriber;
value($subscriber, 'ALTER SUBSCRIPTION follower DISABLE; ALTER SUBSCRIPTION follower SET (slot_name = NONE); DROP SUBSCRIPTION follower');
$_->stop foreach $subscriber, $publisher;
done_testing();

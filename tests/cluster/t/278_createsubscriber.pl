# pg_createsubscriber makes a subscriber of a standby: of its tables, all those of the extension too. Keys go on arriving,
# two logs go on apart from each other.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = new_cluster('publisher', start => 0, init => { allows_streaming => 'logical' }, conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_worker_linger = '300ms'
max_worker_processes = 16
CONF
plan skip_all => 'pg_createsubscriber is there from PostgreSQL 17 on' if server_version() < 17;
$publisher->start;
value($publisher, <<'SQL');
CREATE EXTENSION pg_fieldcrypt;
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('patients');
SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => $$fieldcrypt.context('patients.ssn', id)$$, enforce => true);
SELECT fieldcrypt.set_rotation_policy('acme', '30 days');
INSERT INTO patients SELECT i, fieldcrypt.encrypt_field('value ' || i, fieldcrypt.context('patients.ssn', i), 'acme') FROM generate_series(1, 20) AS i;
SQL
$publisher->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($publisher, 'base', has_streaming => 1);
use_key_file($standby, key_text(1));
$standby->start;
value($publisher, q{CALL fieldcrypt.rotate_keys('acme', force => true)});
$publisher->wait_for_replay_catchup($standby);
$standby->stop;

my $out = '';
ok(IPC::Run::run(
		[ 'pg_createsubscriber', '--pgdata', $standby->data_dir, '--publisher-server', $publisher->connstr('postgres'),
			'--socketdir', $standby->host, '--subscriber-port', $standby->port, '--database', 'postgres',
			'--publication', 'everything', '--subscription', 'follower', '--recovery-timeout', $PostgreSQL::Test::Utils::timeout_default ],
		'>', \$out, '2>&1'), 'pg_createsubscriber') or diag $out;
$standby->start;
my $subscriber = $standby;
gives($publisher, q{SELECT puballtables FROM pg_publication WHERE pubname = 'everything'}, 't', 'what it makes is a publication of all tables');

my $keys = 'SELECT * FROM fieldcrypt.encryption_keys ORDER BY key_id';
my $rows = q{SELECT id, fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id)) FROM patients ORDER BY id};
value($publisher, <<'SQL');
CALL fieldcrypt.rotate_keys('acme', force => true);
CALL fieldcrypt.reencrypt();
SELECT fieldcrypt.set_rotation_policy('acme', '20 days');
INSERT INTO patients VALUES (21, fieldcrypt.encrypt_field('value 21', fieldcrypt.context('patients.ssn', 21), 'acme'));
DELETE FROM patients WHERE id = 3;
SQL
$publisher->wait_for_catchup('follower');
same_contents(value($subscriber, $keys), value($publisher, $keys), 'keys arrive');
same_contents(value($subscriber, $rows), value($publisher, $rows), 'rows arrive, and are readable');
gives($subscriber, q{SELECT rotate_every FROM fieldcrypt.rotation_policies WHERE tenant = 'acme'}, '20 days', 'policies arrive');
refused($subscriber, q{SELECT fieldcrypt.create_key('new')}, 'KF034', 'the subscriber makes no keys');

# Each has a log of its own.
refused($subscriber, q{SELECT fieldcrypt.decrypt_field(ssn, 'another') FROM patients WHERE id = 1}, 'KF002', 'a failure on the subscriber');
refused($publisher, q{SELECT fieldcrypt.decrypt_field(ssn, 'another') FROM patients WHERE id IN (1, 2)}, 'KF002', 'a failure on the publisher');
my $sealed = q{SELECT count(*) = count(leaf) FROM fieldcrypt.audit_log};
ok(eventually($_, $sealed, 't'), $_->name . ': its log is sealed') foreach $subscriber, $publisher;
$publisher->wait_for_catchup('follower');
gives($_, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'}, '1', $_->name . ': its own failure alone') foreach $subscriber, $publisher;
gives($subscriber, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'rotation_policy_set'}, '1', 'what the publisher did since is in its log alone');
gives($subscriber, 'SELECT count(*) FROM fieldcrypt.audit_origins', '2', 'the copy has an origin of its own');
gives($publisher, 'SELECT count(*) FROM fieldcrypt.audit_origins', '1', 'and the publisher has its one');
value($subscriber, q{SELECT fieldcrypt.acknowledge_audit_fork('made by pg_createsubscriber'); SELECT fieldcrypt.confirm_key_states('a subscriber that has caught up')});
gives($subscriber, q{SELECT count(*) FROM fieldcrypt.verify_audit_log() WHERE status <> 'ok'}, '0', 'its log is verified');
gives($_, q{SELECT count(*) FROM fieldcrypt.verify_audit_log() WHERE status = 'error'}, '0', $_->name . ': no finding') foreach $publisher, $subscriber;

# health() tells of what is sent; the documentation has the statement that sends what is meant.
like(value($publisher, q{SELECT status || ': ' || detail FROM fieldcrypt.health() WHERE "check" = 'published_tables'}), qr/^warning: the audit log.*"everything"/,
	'health: the log is sent');
my ($query) = slurp_file("$ENV{TESTDIR}/docs/more-than-one-node.md") =~ /<!-- tried: what to publish -->\n```sql\n(.*?)```/s
  or die 'docs/more-than-one-node.md does not show it';
value($publisher, value($publisher, $query));
value($subscriber, 'ALTER SUBSCRIPTION follower SET PUBLICATION everything_mine WITH (copy_data = false)');
value($publisher, 'DROP PUBLICATION everything');
gives($publisher, q{SELECT status FROM fieldcrypt.health() WHERE "check" = 'published_tables'}, 'ok', 'health: it is not any more');
value($publisher, q{CALL fieldcrypt.rotate_keys('acme', force => true); UPDATE patients SET ssn = fieldcrypt.encrypt_field('later', fieldcrypt.context('patients.ssn', id), 'acme') WHERE id = 1});
$publisher->wait_for_catchup('follower');
same_contents(value($subscriber, $keys), value($publisher, $keys), 'keys go on arriving');
same_contents(value($subscriber, $rows), value($publisher, $rows), 'and rows');
gives($subscriber, q{SELECT status FROM fieldcrypt.health() WHERE "check" = 'key_subscriptions'}, 'ok', 'health: the subscription works');

no_crash($_) foreach $publisher, $subscriber;
$_->stop foreach $subscriber, $publisher;
done_testing();

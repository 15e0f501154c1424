# A database that receives the tables of keys by logical replication makes no key: it would stop the subscription for
# ever, and with it the suspension of keys. Where one is stuck all the same, health() says so.

use strict;
use warnings;

use FieldcryptTest;
use OtherNodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = "shared_preload_libraries = 'pg_fieldcrypt'\nwal_retrieve_retry_interval = '500ms'\nfieldcrypt.require_approval = ''\n";
my $publisher = new_cluster('publisher', init => { allows_streaming => 'logical' }, conf => $conf);
my $follower = new_cluster('follower', init => { allows_streaming => 'logical' }, conf => $conf);
my $late = new_cluster('late', init => { allows_streaming => 'logical' }, conf => $conf);

value($_, 'CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted)') foreach $publisher, $follower, $late;
value($publisher, <<'SQL');
INSERT INTO patients SELECT 1, fieldcrypt.encrypt_field('first', tenant => 'acme');
CREATE PUBLICATION keys FOR TABLE fieldcrypt.encryption_keys, fieldcrypt.master_keys;
CREATE PUBLICATION rows FOR TABLE patients;
SQL
my $from = $publisher->connstr('postgres') =~ s/'/''/gr;

sub health_of
{
	my ($node, $check) = @_;
	return value($node, qq{SELECT status || ': ' || detail FROM fieldcrypt.health() WHERE "check" = '$check'});
}

# A test: health comes to say this of the subscriptions that bring keys.
sub comes_to_say
{
	my ($node, $like, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $came = eventually($node, qq{SELECT (status || ': ' || detail) ~ '^$like' FROM fieldcrypt.health() WHERE "check" = 'key_subscriptions'}, 't');
	diag health_of($node, 'key_subscriptions') if !$came;
	return ok($came, $name);
}

# Only rows: the database makes its own keys, as before.
value($late, "CREATE SUBSCRIPTION rows CONNECTION '$from' PUBLICATION rows WITH (copy_data = false, slot_name = 'late_rows')");
gives($late, q{SELECT fieldcrypt.create_key('of its own') > 0}, 't', 'a subscription of other tables keeps nobody from making keys');
like(health_of($late, 'key_subscriptions'), qr/^ok: no subscription brings keys/, 'nor is it looked at');
value($late, 'DROP SUBSCRIPTION rows');

# Keys, too.
value($follower, "CREATE SUBSCRIPTION follower CONNECTION '$from' PUBLICATION keys, rows");
$follower->wait_for_subscription_sync($publisher, 'follower');
comes_to_say($follower, 'ok: keys come from another database by 1 subscription\(s\), which work', 'health: it works');
gives($follower, 'SELECT fieldcrypt.decrypt_field(ssn) FROM patients WHERE id = 1', 'first', 'the follower decrypts');
my $refusal = qr/no encryption key is made here: subscription "follower" brings the keys of another database/;
my $all_refused = sub {
	my ($when, $tenant) = @_;
	refused($follower, $_, 'KF034', $refusal, "refused $when: $_") foreach (
		qq{SELECT fieldcrypt.encrypt_field('x', tenant => '$tenant')},
		qq{SELECT fieldcrypt.create_key('$tenant')},
		qq{CALL fieldcrypt.rotate_keys('$tenant', force => true)},
		q{CALL fieldcrypt.rotate_keys('acme')},
		q{CALL fieldcrypt.rotate_keys()},
		q{CALL fieldcrypt.rotate_keys(force => true)},
		q{SELECT fieldcrypt.rotate_key('acme')},
		q{SELECT fieldcrypt.mark_compromised((SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND state = 'active'), 'r')});
};
$all_refused->('on a follower', 'new');
like(run_sql($follower, q{SELECT fieldcrypt.create_key('new')})->{err}, qr/HINT: .*Make it on the publisher/, 'the hint is a way out');
value($publisher, q{SELECT fieldcrypt.create_key('new')});
my $active = q{SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'new' AND state = 'active'};
my $key = value($publisher, $active);
ok(eventually($follower, $active, $key), 'made on the publisher, it arrives');
gives($follower, q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => 'new'))}, $key, 'and encrypts');
my $all_keys = q{SELECT string_agg(key_id || state || purpose, ' ' ORDER BY key_id) FROM fieldcrypt.encryption_keys};
is(value($follower, $all_keys), value($publisher, $all_keys), 'the keys are the publisher\'s, that of its log as well');

# A disabled subscription will go on one day.
value($follower, 'ALTER SUBSCRIPTION follower DISABLE');
$all_refused->('while it is disabled', 'newer');
comes_to_say($follower, 'critical: keys that are rotated.*subscription "follower" is disabled', 'health: it is disabled');

# A copy of the database has the rows of its catalog, and no subscription.
value($follower, 'CREATE DATABASE copy TEMPLATE postgres', db => 'template1');
gives($follower, 'SELECT count(*) FROM pg_subscription_rel', '3', 'what a copy has of subscriptions', db => 'copy');
gives($follower, q{SELECT fieldcrypt.create_key('of the copy') > 0}, 't', 'a copy of the database makes its own keys', db => 'copy');
gives($follower, q{SELECT status FROM fieldcrypt.health() WHERE "check" = 'key_subscriptions'}, 'ok', 'and waits for none', db => 'copy');
value($follower, 'ALTER SUBSCRIPTION follower ENABLE');
comes_to_say($follower, 'ok: ', 'health: enabled, it works again');

# The publisher is away.
$publisher->stop;
comes_to_say($follower, 'critical: keys that are rotated.*"follower" is not at work: its publisher is away', 'health: the publisher is away');
$publisher->start;
comes_to_say($follower, 'ok: ', 'health: and back');

# The fault: a database that made a key of its own before it subscribed.
value($late, q{SELECT fieldcrypt.create_key('shared')});
value($late, "CREATE SUBSCRIPTION late CONNECTION '$from' PUBLICATION keys WITH (copy_data = false)");
comes_to_say($late, 'ok: ', 'health: nothing is wrong yet');
value($publisher, q{SELECT fieldcrypt.create_key('shared')});
comes_to_say($late, 'critical: .*subscription "late" is not at work: .*can\'\'t be applied \([1-9]\d* errors so far\)', 'health: stuck, since a key was made here, too');
my $identity = q{SELECT array_to_string(identity, ' ') FROM fieldcrypt_internal.check_key_subscriptions(NULL)};
is(value($late, $identity), 'late is not at work', 'an alert is not raised anew with each error');
my $shared = value($publisher, q{SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'shared'});
value($publisher, "SELECT fieldcrypt.suspend_key($shared, 'r')");
gives($late, "SELECT count(*) FROM fieldcrypt.encryption_keys WHERE key_id = $shared", '0', 'what the publisher suspends does not arrive');
past_the_guard($late, q{DELETE FROM fieldcrypt.encryption_keys WHERE tenant = 'shared'});
ok(eventually($late, "SELECT state FROM fieldcrypt.encryption_keys WHERE key_id = $shared", 'suspended'), 'mended, it arrives');
comes_to_say($late, 'ok: ', 'health: all is well again');

# Whose values are with others, or on the way, can't be counted.
value($publisher, q{CALL fieldcrypt.rotate_keys('new')});
ok(eventually($follower, "SELECT state FROM fieldcrypt.encryption_keys WHERE key_id = $key", 'deactivated'), 'a rotation arrives');
my $result = run_sql($publisher, "CALL fieldcrypt.destroy_key($key)");
like($result->{err}, qr/WARNING: .*encryption key $key is unused: subscribers may have values of it \(publication "keys" sends them the keys, by \d slot\(s\)\)/, 'the publisher can\'t count its subscribers\' values');
make_due($publisher, $key);
run_sql($publisher, 'CALL fieldcrypt.destroy_due_keys()');
gives($publisher, "SELECT state FROM fieldcrypt.encryption_keys WHERE key_id = $key", 'deactivated', 'and destroys nothing');
ok(eventually($follower, "SELECT destroy_after < now() FROM fieldcrypt.encryption_keys WHERE key_id = $key", 't'), 'the schedule arrives');
$result = run_sql($follower, 'CALL fieldcrypt.destroy_due_keys()');
like($result->{err}, qr/is not destroyed: another node may have values of it, or send them here \(subscription "follower"/, 'nor does the follower');

# What speaks for one node says so.
foreach my $case (
	[ $publisher, qr/subscribers of publication "keys" have the keys, too/ ],
	[ $follower, qr/subscription "follower" brings the keys of another database, which has them still/ ])
{
	my ($node, $like) = @$case;
	like(value($node, 'SELECT advice FROM fieldcrypt.master_key_status()'), qr/this speaks for this node only: $like/, $node->name . ': master_key_status');
	my $tenant = 'of ' . $node->name;
	value($publisher, "SELECT fieldcrypt.create_key('$tenant')");
	ok(eventually($node, "SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = '$tenant'", '1'), "$tenant: a tenant");
	$result = run_sql($node, "CALL fieldcrypt.shred_tenant('$tenant', 'r')");
	like($result->{err}, qr/WARNING: .*shred_tenant speaks for this node only: $like/, $node->name . ': shred_tenant');
}
value($publisher, q{CALL fieldcrypt.shred_tenant('acme', 'r')});
ok(eventually($follower, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND state <> 'destroyed'}, '0'), 'what is shredded on the publisher is shredded here when it is applied');

# A database that leaves makes its own keys again.
value($follower, 'DROP SUBSCRIPTION follower');
gives($follower, q{SELECT fieldcrypt.create_key('another') > 0}, 't', 'without the subscription keys are made here');
value($late, 'DROP SUBSCRIPTION late');
value($publisher, 'CALL fieldcrypt.destroy_due_keys()');
gives($publisher, "SELECT state FROM fieldcrypt.encryption_keys WHERE key_id = $key", 'destroyed', 'without subscribers all is counted');
value($publisher, 'DROP PUBLICATION keys');
gives($publisher, 'SELECT fieldcrypt_internal.publications_of_keys()', '{}', 'a publication of other tables sends no keys');
value($publisher, 'CREATE PUBLICATION schemas FOR TABLES IN SCHEMA fieldcrypt; CREATE PUBLICATION everything FOR ALL TABLES');
gives($publisher, 'SELECT fieldcrypt_internal.publications_of_keys()', '{everything,schemas}', 'one of all tables does, and one of the schema');

foreach my $node ($publisher, $follower, $late)
{
	no_crash($node);
	$node->stop;
}
done_testing();

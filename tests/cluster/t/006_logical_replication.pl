# Logical replication carries encrypted columns unchanged; keys travel by dump or by replication, and
# then a rotation on the publisher reaches sessions of the subscriber.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = new_cluster('publisher', init => { allows_streaming => 'logical' },
	conf => "max_connections = 40\nlogical_decoding_work_mem = 64kB\n");
my $subscriber = new_cluster('subscriber', extension => 0,
	init => { allows_streaming => 'logical' }, conf => "max_connections = 40\n");

# No table of the extension is written by hand, and no = is needed to find a row to change.
my $tables = <<'SQL';
CREATE TABLE by_key (id int PRIMARY KEY, tenant text, value fieldcrypt.encrypted);
CREATE TABLE by_row (id int, tenant text, value fieldcrypt.encrypted);
ALTER TABLE by_row REPLICA IDENTITY FULL;
SQL
my $read = <<'SQL';
SELECT 'by key', id, value::bytea, fieldcrypt.decrypt_field(value, 'v') FROM by_key ORDER BY id;
SELECT 'by row', id, value::bytea, fieldcrypt.decrypt_field(value, 'v') FROM by_row ORDER BY id, value::bytea;
SQL

value($publisher, <<"SQL");
$tables
INSERT INTO by_key SELECT i, t, fieldcrypt.encrypt_field('CANARY ' || i, 'v', t) FROM generate_series(1, 20) AS i, LATERAL (SELECT 'tenant ' || i % 3 AS t) AS t;
INSERT INTO by_row SELECT * FROM by_key;
SELECT pg_create_logical_replication_slot('decoding', 'test_decoding');
CREATE PUBLICATION rows FOR TABLE by_key, by_row;
CREATE PUBLICATION keys FOR TABLE fieldcrypt.encryption_keys, fieldcrypt.master_keys;
SQL
dump_database($publisher, 'postgres', $publisher->basedir . '/keys.sql', '-a', '-e', 'pg_fieldcrypt', '-t', 'fieldcrypt.*');

my @subscriptions = (
	{ db => 'by_dump', publications => 'rows', with => 'binary = false' },
	{ db => 'by_replication', publications => 'rows, keys', with => 'binary = true, streaming = true' },
);
foreach my $subscription (@subscriptions)
{
	my $db = create_database($subscriber, $subscription->{db});
	value($subscriber, $tables, db => $db);
	if ($subscription->{publications} !~ /keys/)
	{
		my $result = restore_database($subscriber, $db, $publisher->basedir . '/keys.sql', '-v', 'ON_ERROR_STOP=1');
		is("$result->{code} $result->{err}", '0 ', "$db: keys restored");
	}
	my $from = $publisher->connstr('postgres') =~ s/'/''/gr;
	value($subscriber, <<SQL, db => $db);
CREATE SUBSCRIPTION $db CONNECTION '$from' PUBLICATION $subscription->{publications} WITH ($subscription->{with});
SQL
}

sub caught_up
{
	foreach my $subscription (@subscriptions)
	{
		$subscriber->wait_for_subscription_sync($publisher, $subscription->{db}, $subscription->{db});
	}
	return;
}

sub same_everywhere
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	caught_up();
	my $expected = value($publisher, $read);
	same_contents(value($subscriber, $read, db => $_->{db}), $expected, "$_->{db}, $name: values, byte for byte, and readable")
	  foreach @subscriptions;
	return;
}

same_everywhere('initial copy');
value($publisher, q{INSERT INTO by_key VALUES (100, 'tenant 1', fieldcrypt.encrypt_field('CANARY inserted', 'v', 'tenant 1')); INSERT INTO by_row TABLE by_key});
same_everywhere('INSERT');
value($publisher, q{UPDATE by_key SET value = fieldcrypt.encrypt_field('CANARY updated', 'v', tenant) WHERE id < 5; UPDATE by_row SET value = fieldcrypt.encrypt_field('CANARY updated', 'v', tenant) WHERE id < 5});
same_everywhere('UPDATE');
value($publisher, q{UPDATE by_row SET tenant = tenant || '' WHERE id < 9; DELETE FROM by_key WHERE id = 7; DELETE FROM by_row WHERE id IN (7, 8)});
same_everywhere('UPDATE of another column, DELETE');
value($publisher, q{UPDATE by_row SET value = NULL WHERE id = 9; UPDATE by_row SET value = fieldcrypt.encrypt_field('', 'v', tenant) WHERE id = 9});
same_everywhere('NULL and the empty value');
value($publisher, q{INSERT INTO by_key SELECT i, 'tenant 2', fieldcrypt.encrypt_field(repeat('CANARY', 2000), 'v', 'tenant 2') FROM generate_series(1000, 1050) AS i});
same_everywhere('values that are stored out of line, in a transaction larger than the decoding memory');
value($publisher, q{UPDATE by_key SET tenant = 'tenant  2' WHERE id >= 1000});
same_everywhere('UPDATE that leaves such a value as it was');

# Rotation and what follows reach a session of the subscriber that has the keys cached.
my $replicated = session($subscriber, db => 'by_replication');
my $dumped = session($subscriber, db => 'by_dump');
my $key_of_next = q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => 'tenant 1'))};
my $old_key = value($publisher, $key_of_next);
$replicated->gives($key_of_next, $old_key, 'replicated keys: the subscriber encrypts with the same key');
$dumped->gives($key_of_next, $old_key, 'restored keys: the subscriber encrypts with the same key');
$replicated->value('BEGIN');
$replicated->value($key_of_next);

value($publisher, q{CALL fieldcrypt.rotate_keys(force => true)});
value($publisher, q{INSERT INTO by_key VALUES (200, 'tenant 1', fieldcrypt.encrypt_field('CANARY after rotation', 'v', 'tenant 1'))});
caught_up();
my $new_key = value($publisher, $key_of_next);
isnt($new_key, $old_key, 'rotated on the publisher');
$replicated->gives($key_of_next, $new_key, 'replicated keys: an open transaction encrypts with the new key');
$replicated->gives(q{COMMIT; SELECT fieldcrypt.decrypt_field(value, 'v') FROM by_key WHERE id IN (2, 200) ORDER BY id},
	"CANARY updated\nCANARY after rotation", 'replicated keys: old and new values are readable');
$dumped->refused(q{SELECT fieldcrypt.decrypt_field(value, 'v') FROM by_key WHERE id = 200}, 'KF003', qr/was not restored/,
	'restored keys: a value under a key that came later is refused');
$dumped->gives(q{SELECT fieldcrypt.decrypt_field(value, 'v') FROM by_key WHERE id = 2}, 'CANARY updated',
	'restored keys: old values are readable');

sub past_the_guard_everywhere
{
	my ($sql) = @_;
	past_the_guard($publisher, $sql);
	caught_up();
	return;
}
past_the_guard_everywhere("UPDATE fieldcrypt.encryption_keys SET state = 'suspended' WHERE key_id = $new_key");
$replicated->refused(q{SELECT fieldcrypt.decrypt_field(value, 'v') FROM by_key WHERE id = 200}, 'KF004', 'replicated keys: suspended on the publisher');
past_the_guard_everywhere("UPDATE fieldcrypt.encryption_keys SET state = 'destroyed', wrapped_key = NULL WHERE key_id = $new_key");
$replicated->refused(q{SELECT fieldcrypt.decrypt_field(value, 'v') FROM by_key WHERE id = 200}, 'KF005', 'replicated keys: destroyed on the publisher');
same_contents(
	value($subscriber, 'SELECT * FROM fieldcrypt.encryption_keys ORDER BY key_id', db => 'by_replication'),
	value($publisher, 'SELECT * FROM fieldcrypt.encryption_keys ORDER BY key_id'),
	'replicated keys: the table is the publisher\'s');

# The guards stand on the subscriber too, for everybody but the apply worker.
refused($subscriber, 'DELETE FROM fieldcrypt.encryption_keys', 'KF015', 'replicated keys: guarded', db => 'by_replication');

# What an output plugin shows.
my $decoded = value($publisher, q{SELECT data FROM pg_logical_slot_get_changes('decoding', NULL, NULL)});
like($decoded, qr/table public\.by_key: INSERT: .*value\[fieldcrypt\.encrypted\]:'fc1:/, 'decoding shows ciphertext');
unlike($decoded, qr/CANARY|${\ unpack('H*', 'CANARY')}/, 'and no plaintext');

$_->close foreach $replicated, $dumped;
foreach my $node ($subscriber, $publisher)
{
	no_crash($node);
}
value($subscriber, "DROP SUBSCRIPTION $_->{db}", db => $_->{db}) foreach @subscriptions;
$_->stop foreach $subscriber, $publisher;
done_testing();

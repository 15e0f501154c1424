# Shards behind postgres_fdw that have neither keys nor a master key: values are encrypted and decrypted where the
# application is connected, and travel as ciphertext.

use strict;
use warnings;

use FieldcryptTest;
use OtherNodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $hub = new_cluster('hub', conf => "fieldcrypt.require_approval = ''\n");
# The type is there, no master key: the shards can't make a key, nor open a value.
my %shards = map { $_ => new_cluster("shard$_", start => 0, conf => "fieldcrypt.master_key_file = ''\n") } 1, 2;
foreach my $number (sort keys %shards)
{
	my $shard = $shards{$number};
	$shard->start;
	value($shard, 'CREATE EXTENSION pg_fieldcrypt; CREATE TABLE patients (id int PRIMARY KEY, name text, ssn fieldcrypt.encrypted)');
}
value($hub, 'CREATE EXTENSION postgres_fdw; CREATE TABLE patients (id int NOT NULL, name text, ssn fieldcrypt.encrypted) PARTITION BY HASH (id)');
foreach my $number (sort keys %shards)
{
	my ($host, $port) = ($shards{$number}->host, $shards{$number}->port);
	my $remainder = $number - 1;
	value($hub, <<"SQL");
CREATE SERVER shard$number FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$host', port '$port', dbname 'postgres');
CREATE USER MAPPING FOR PUBLIC SERVER shard$number;
CREATE FOREIGN TABLE patients_$number PARTITION OF patients FOR VALUES WITH (MODULUS 2, REMAINDER $remainder) SERVER shard$number OPTIONS (table_name 'patients');
SQL
}

value($hub, <<'SQL');
INSERT INTO patients SELECT i, 'name ' || i, fieldcrypt.encrypt_field('CANARY ' || i, fieldcrypt.context('patients.ssn', i)) FROM generate_series(1, 40) AS i;
UPDATE patients SET ssn = fieldcrypt.encrypt_field('CANARY changed', fieldcrypt.context('patients.ssn', id)) WHERE id IN (3, 4);
SQL
my $read = q{fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id))};
gives($hub, "SELECT count(*), count($read), min($read) FROM patients WHERE $read LIKE 'CANARY%'", '40|40|CANARY 1', 'all values are written and read through the hub');
gives($hub, "SELECT string_agg($read, ', ') FROM patients WHERE id IN (3, 4)", 'CANARY changed, CANARY changed', 'and changed');
gives($hub, "BEGIN; UPDATE patients SET ssn = fieldcrypt.reencrypt_field(ssn, fieldcrypt.context('patients.ssn', id)) WHERE id < 9; COMMIT; SELECT count($read) FROM patients", '40', 're-encrypted by hand, through the hub');

foreach my $number (sort keys %shards)
{
	my $shard = $shards{$number};
	gives($shard, 'SELECT count(*) > 10 AND bool_and(ssn::bytea IS NOT NULL) FROM patients', 't', "shard $number holds rows");
	gives($shard, 'SELECT count(*) FROM fieldcrypt.encryption_keys', '0', 'and no key');
	refused($shard, "SELECT $read FROM patients LIMIT 1", 'KF003', 'it opens nothing');
	refused($shard, q{SELECT fieldcrypt.encrypt_field('x')}, 'KF008', 'and encrypts nothing');
	my $log = slurp_file($shard->logfile);
	unlike($log, qr/CANARY/, 'nor has it seen a plaintext');
	is(keys %{ files_with(['CANARY'], $shard->data_dir) }, 0, 'nor do its files have one');
	gives($shard, q{SELECT status || ': ' || detail FROM fieldcrypt.health(true) WHERE "check" = 'missing_keys'},
		'ok: there are values and no keys: values are encrypted and decrypted on another node', 'health: as it is meant to be');
}

# What is pushed down to a shard is compared there: decryption never is.
my $plan = value($hub, "EXPLAIN (VERBOSE, COSTS off) SELECT id FROM patients WHERE $read = 'CANARY 7' AND id = 7");
unlike($plan, qr/Remote SQL:.*decrypt_field/, 'no shard is asked to decrypt');
unlike($plan, qr/Remote SQL:.*CANARY/, 'nor told what is looked for');

# Values that are on the shards are not counted on the hub, and none of their keys is destroyed.
my $old = value($hub, q{SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'default' AND state = 'active'});
value($hub, q{CALL fieldcrypt.rotate_keys('default')});
my $result = run_sql($hub, "CALL fieldcrypt.destroy_key($old)");
like($result->{err}, qr/it can't be known that encryption key $old is unused: .*public\.patients_1\.ssn \(a foreign table\)/, 'destroy_key says what it can\'t count');
make_due($hub, $old);
run_sql($hub, 'CALL fieldcrypt.destroy_due_keys()');
gives($hub, "SELECT count($read) FROM patients", '40', 'and no key is destroyed');
$result = run_sql($hub, 'CALL fieldcrypt.reencrypt()');
like($result->{err}, qr/patients_2\.ssn is left alone: a foreign table/, 'reencrypt names what it leaves');

# The same values, moved by their statements through the hub, as docs/more-than-one-node.md has it.
value($hub, "UPDATE patients SET ssn = fieldcrypt.reencrypt_field(ssn, fieldcrypt.context('patients.ssn', id)) WHERE fieldcrypt.key_id(ssn) = $old");
gives($hub, "SELECT count(*) FILTER (WHERE fieldcrypt.key_id(ssn) = $old), count($read) FROM patients", '0|40', 'moved to the active key through the hub');

foreach my $node ($hub, values %shards)
{
	no_crash($node);
	$node->stop;
}
done_testing();

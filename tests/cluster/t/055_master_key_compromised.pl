# The procedure of docs/rotation.md for a compromised master key: afterwards whoever has it, and a copy of
# the key table from before, opens nothing that the database holds.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary');
my $file = $node->basedir . '/master.key';

sub load_keys
{
	my (@numbers) = @_;
	write_key_file($file, map { key_text($_) } @numbers);
	configure($node);
	return;
}

create_database($node, 'app');
value($node, <<'SQL', db => 'app');
CREATE TABLE patients (id int PRIMARY KEY, tenant text, ssn fieldcrypt.encrypted);
INSERT INTO patients SELECT i, 'tenant ' || i % 7, fieldcrypt.encrypt_field('ssn ' || i, tenant => 'tenant ' || i % 7) FROM generate_series(1, 500) AS i;
SQL
# What was stolen: the master key and a dump.
my $stolen = dump_database($node, 'app', PostgreSQL::Test::Utils::tempdir() . '/stolen.dump', '-Fc');
my $begin = value($node, 'SELECT clock_timestamp()', db => 'app');

load_keys(2, 1);
unlike(run_sql($node, 'CALL fieldcrypt.rotate_master_key()', db => 'app')->{err}, qr/WARNING|ERROR/, 'the keys are wrapped again');
like(run_sql($node, q{CALL fieldcrypt.rotate_keys(reason => 'master key compromised', force => true)}, db => 'app')->{err}, qr/7 rotated, 0 failed/, 'new keys for all');
my $result = run_sql($node, 'CALL fieldcrypt.reencrypt(rows_per_second => 0)', db => 'app');
is("@{ $result->{sqlstates} }", '', 're-encrypted') or diag $result->{err};
unlike($result->{err}, qr/WARNING/, 're-encrypted without a warning');
load_keys(2);
gives($node, q{SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(ssn) = 'ssn ' || id) FROM patients}, '500', 'all is readable with the new master key alone', db => 'app');
gives($node, "SELECT count(*) FROM patients JOIN fieldcrypt.encryption_keys ON key_id = fieldcrypt.key_id(ssn) WHERE state <> 'active' OR created_at < '$begin'", '0', 'no value is under a key from before', db => 'app');

# The thief, with the dump, the old master key, and all values of now.
my $values = value($node, q{SELECT string_agg(fieldcrypt.ciphertext_text(ssn), ',') FROM patients}, db => 'app');
load_keys(1);
create_database($node, 'thief', extension => 0);
is(restore_database($node, 'thief', $stolen, '--exit-on-error')->{code}, 0, 'a thief has the dump');
gives($node, q{SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(ssn) = 'ssn ' || id) FROM patients}, '500', 'and opens what was stolen', db => 'thief');
gives($node, "SELECT count(*), count(fieldcrypt.try_decrypt_field(v::fieldcrypt.encrypted)) FROM unnest(string_to_array('$values', ',')) AS v", '500|0', 'but nothing of now', db => 'thief');
gives($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE state = 'active' AND encode(master_key_fingerprint, 'hex') = '} . unpack('H*', hkdf(pack('H*', key_text(1)), 'mek-fingerprint', 16)) . q{'}, '0', 'no key of now is wrapped by the old master key', db => 'app');
load_keys(2);

no_crash($node);
$node->stop;
done_testing();

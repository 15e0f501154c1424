# The offline tool on what a real server wrote: dumps of every text form and CSV are opened by the master
# key and a key export, while no server runs.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my ($old, $new) = (key_text(1), key_text(2));
my $node = new_cluster('primary', keys => [$old]);
my $folder = PostgreSQL::Test::Utils::tempdir();

value($node, <<'SQL');
CREATE TABLE patients (id int PRIMARY KEY, tenant text, name fieldcrypt.encrypted, ssn fieldcrypt.encrypted, photo fieldcrypt.encrypted, notes fieldcrypt.encrypted[]);
CREATE TABLE plain AS SELECT i AS id, t AS tenant, format(E'name %s: it''s "quoted", \\ and\ta tab,\nlines; ü 🔑', i) AS name, 'ssn ' || i AS ssn, sha256(i::text::bytea) AS photo
  FROM generate_series(1, 300) AS i, LATERAL (SELECT (ARRAY['default', 'acme', 'Zürich 🔑'])[1 + i % 3] AS t) AS t;
INSERT INTO patients SELECT id, tenant, fieldcrypt.encrypt_field(name, tenant => tenant), fieldcrypt.encrypt_field(ssn, 'patients.ssn/' || id, tenant),
       fieldcrypt.encrypt_field_bytea(photo, tenant => tenant), ARRAY[fieldcrypt.encrypt_field('one', tenant => tenant), NULL]
  FROM plain WHERE id <= 200;
CALL fieldcrypt.rotate_keys(force => true);
INSERT INTO patients SELECT id, tenant, fieldcrypt.encrypt_field(name, tenant => tenant), fieldcrypt.encrypt_field(ssn, 'patients.ssn/' || id, tenant),
       fieldcrypt.encrypt_field_bytea(photo, tenant => tenant), ARRAY[fieldcrypt.encrypt_field('one', tenant => tenant), NULL]
  FROM plain WHERE id > 200;
CREATE TABLE long (id int, value fieldcrypt.encrypted);
INSERT INTO long SELECT 1, fieldcrypt.encrypt_field(repeat('0123456789', 300000));
SQL

# A new master key, made by the tool, which the server takes.
my $made = tool('new-master-key', "$folder/made.key");
is($made->{code}, 0, 'a new master key') or diag $made->{err};
my ($fingerprint) = $made->{out} =~ /^([0-9a-f]{32})$/m;
$node->append_conf('postgresql.conf', "fieldcrypt.master_key_file = '$folder/made.key'");
$node->reload;
gives($node, q{SELECT fingerprint FROM fieldcrypt.master_key_status() WHERE is_loaded}, $fingerprint, 'the server loads it, and gives it the same fingerprint');
is(tool('new-master-key', "$folder/made.key")->{code}, 2, 'never overwritten');
use_key_file($node, $old);
$node->reload;
my $key = write_key_file("$folder/master.key", $old);

# What is taken from the server.
my $export = write_file('export.json', value($node, 'SELECT fieldcrypt.export_keys()'));
my $name_of = q{SELECT id, name FROM plain ORDER BY id};
my $copy_dump = dump_database($node, 'postgres', "$folder/copy.sql", '--data-only', '-t', 'patients');
my $insert_dump = dump_database($node, 'postgres', "$folder/insert.sql", '--data-only', '--inserts', '-t', 'patients');
my $csv = value($node, 'COPY (SELECT id, tenant, name, ssn FROM patients ORDER BY id) TO stdout CSV HEADER') . "\n";
my $long = value($node, 'SELECT value FROM long');
my $plain_csv = value($node, 'COPY (SELECT id, tenant, name, ssn FROM plain ORDER BY id) TO stdout CSV HEADER') . "\n";
$node->stop;

# Without any server.
my $checked = tool('check', $export, '--master-key', $key);
is($checked->{code}, 0, 'the export is good');
like($checked->{out}, qr/^GOOD: 8 keys, 8 open, 0 destroyed, 0 do not open$/m, 'key by key');
unlike($checked->{out}, qr/$old/, 'without showing the master key');
is(tool('check', $export, '--master-key', write_key_file("$folder/wrong.key", $new))->{code}, 2, 'a wrong master key');

my @open = ('open', '--export', $export, '--master-key', $key);
my $opened = tool_with_input($csv, @open, '--csv', '--column-context', 'ssn=patients.ssn/{id}');
is($opened->{code}, 0, 'CSV: every value opens') or diag $opened->{err};
like($opened->{err}, qr/600 values opened$/m, 'CSV: all of them');
my $opened_csv = write_file('opened.csv', $opened->{out});
$opened = tool_with_input($csv, @open, '--csv');
is($opened->{code}, 1, 'CSV without the context: not all open');
like($opened->{err}, qr/300 values opened, 300 left as they are: 300 not authentic or of another context$/m, 'and says how many');

my $copied = tool(@open, '--escape', 'copy', $copy_dump);
is($copied->{code}, 1, 'a dump: all but those with a context');
like($copied->{err}, qr/900 values opened, 300 left as they are: 300 not authentic/, 'and says how many');
my $inserted = tool(@open, '--escape', 'sql', $insert_dump);
like($inserted->{err}, qr/900 values opened, 300 left/, 'a dump with INSERT commands');
is(tool_with_input($long, @open)->{out}, '0123456789' x 300000, 'a long value');

my $tampered = $csv;
$tampered =~ s/(fc1:.{50})(.)/$1 . ($2 eq 'A' ? 'B' : 'A')/e;
my $found = tool_with_input($tampered, @open, '--csv', '--column-context', 'ssn=patients.ssn/{id}');
is($found->{code}, 1, 'a tampered value');
like($found->{err}, qr/599 values opened, 1 left/, 'is left, the others open');

# What was opened is what was encrypted: read by a server that knows no key.
my $reader = new_cluster('reader', extension => 0);
value($reader, <<SQL);
CREATE TABLE plain (id int PRIMARY KEY, tenant text, name text, ssn text);
COPY plain FROM '$opened_csv' CSV HEADER;
SQL
is(value($reader, 'COPY (SELECT * FROM plain ORDER BY id) TO stdout CSV HEADER') . "\n", $plain_csv, 'CSV: read back, every row is what was encrypted');
foreach my $case ([ 'copy', $copied->{out} ], [ 'insert', $inserted->{out} ])
{
	my ($name, $dump) = @$case;
	value($reader, 'DROP TABLE IF EXISTS patients; CREATE TABLE patients (id int, tenant text, name text, ssn text, photo text, notes text[])');
	my $restored = restore_database($reader, 'postgres', write_file("opened-$name.sql", $dump), '-v', 'ON_ERROR_STOP=1');
	is($restored->{code}, 0, "opened dump, $name: restored into columns of type text");
	gives($reader, q{SELECT count(*), count(*) FILTER (WHERE p.name = q.name AND p.tenant = q.tenant AND notes = '{one,NULL}' AND p.ssn LIKE 'fc1:%' AND photo::bytea = sha256(id::text::bytea)) FROM patients AS p JOIN plain AS q USING (id)},
		'300|300', "opened dump, $name: every row is what was encrypted");
}
no_crash($reader);
$reader->stop;
no_crash($node);
done_testing();

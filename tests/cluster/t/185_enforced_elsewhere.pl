# Enforced contexts in dumps, on subscribers and standbys, and the README's SQL for keys that the database makes. A dump
# is restored in pg_dump's own order without a master key, since triggers come after the data.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', init => { allows_streaming => 'logical' });
my $folder = $node->basedir;
value($node, <<'SQL');
CREATE SCHEMA app;
CREATE TABLE app.patients (junk int, id bigint PRIMARY KEY, name text, ssn fieldcrypt.encrypted);
ALTER TABLE app.patients DROP COLUMN junk;
INSERT INTO app.patients SELECT i, 'n', fieldcrypt.encrypt_field('s' || i, fieldcrypt.context('patients.ssn', i)) FROM generate_series(1, 50) AS i;
SELECT fieldcrypt.set_column_context('app.patients', 'ssn', expression => $$fieldcrypt.context('patients.ssn', id)$$, enforce => true);
CREATE TABLE app.parts (id int, day int, ssn fieldcrypt.encrypted) PARTITION BY LIST (day);
CREATE TABLE app.parts_1 PARTITION OF app.parts FOR VALUES IN (1);
SELECT fieldcrypt.set_column_context('app.parts', 'ssn', expression => $$fieldcrypt.context('parts.ssn', id)$$, enforce => true);
INSERT INTO app.parts VALUES (1, 1, fieldcrypt.encrypt_field('p', 'parts.ssn/1'));
SQL

# A cluster that has no master key at all.
my $blind = new_cluster('blind', extension => 0, start => 0);
$blind->append_conf('postgresql.conf', "fieldcrypt.master_key_file = ''");
$blind->start;
foreach my $format ('plain', 'custom', 'directory')
{
	my $path = dump_database($node, 'postgres', "$folder/dump" . ($format eq 'plain' ? '.sql' : ".$format"), '-F', $format);
	create_database($blind, "of_$format", extension => 0);
	my $restored = restore_database($blind, "of_$format", $path, $format eq 'plain' ? () : ('-j', 2));
	is_deeply($restored->{sqlstates}, [], "$format: restored without a master key");
	gives($blind, 'SELECT count(*) FROM app.patients', '50', "$format: all rows", db => "of_$format");
	gives($blind, "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'fieldcrypt_context%'", '6', "$format: and the triggers", db => "of_$format");
	gives($blind, "UPDATE app.patients SET name = 'm' WHERE id = 1 RETURNING name", 'm', "$format: other columns are written", db => "of_$format");
	refused($blind, 'UPDATE app.patients SET id = 99 WHERE id = 1', 'KF008', "$format: what can't be checked is not written", db => "of_$format");
}
# With its key, a restored table is checked as before, also where columns have other numbers now.
my $again = create_database($node, 'again', extension => 0);
is_deeply(restore_database($node, $again, "$folder/dump.custom")->{sqlstates}, [], 'restored beside the key');
refused($node, 'UPDATE app.patients SET id = 99 WHERE id = 1', 'KF031', 'restored, it is enforced', db => $again);
refused($node, "INSERT INTO app.parts VALUES (2, 1, (SELECT ssn FROM app.parts))", 'KF031', 'on partitions, too', db => $again);
gives($node, q{SELECT status FROM fieldcrypt.health() WHERE "check" = 'enforced_contexts'}, 'ok', 'health agrees', db => $again);
like(run_sql($node, q{SELECT fieldcrypt.set_column_context('app.patients', 'ssn')}, db => $again)->{err}, qr/not enforced any more/, 'and it is undone');
gives($node, "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'fieldcrypt_context%' AND tgrelid = 'app.patients'::regclass", '0', 'without a trace', db => $again);

# Data alone, into the same schema with its triggers.
dump_database($node, 'postgres', "$folder/data.custom", '-F', 'custom', '--data-only', '-t', 'app.*');
dump_database($node, 'postgres', "$folder/keys.custom", '-F', 'custom', '--data-only', '-t', 'fieldcrypt.*');
dump_database($node, 'postgres', "$folder/schema.custom", '-F', 'custom', '--schema-only');
create_database($blind, 'data', extension => 0);
is_deeply(restore_database($blind, 'data', "$folder/schema.custom")->{sqlstates}, [], 'the schema alone');
like(restore_database($blind, 'data', "$folder/data.custom")->{err}, qr/KF003|does not exist in this database|no master key/, 'data alone, without keys: refused, not stored unseen');
gives($blind, 'SELECT count(*) FROM app.patients', '0', 'nothing of it', db => 'data');
my $loaded = restore_database($blind, 'data', "$folder/data.custom", '--disable-triggers');
unlike($loaded->{err}, qr/error/, 'with --disable-triggers it is loaded') or diag $loaded->{err};
gives($blind, 'SELECT count(*) FROM app.patients', '50', 'all of it', db => 'data');

# A subscriber applies without asking, with and without keys: the publisher has checked. Its own writers are checked.
value($node, 'CREATE PUBLICATION pub FOR TABLE app.patients');
value($blind, 'TRUNCATE app.patients', db => 'data');
value($blind, "CREATE SUBSCRIPTION sub CONNECTION '" . $node->connstr('postgres') =~ s/'/''/gr . "' PUBLICATION pub", db => 'data');
ok(eventually($blind, 'SELECT count(*) FROM app.patients', '50', db => 'data'), 'the first copy');
value($node, q{INSERT INTO app.patients VALUES (51, 'n', fieldcrypt.encrypt_field('s', fieldcrypt.context('patients.ssn', 51))); UPDATE app.patients SET name = 'o' WHERE id = 51});
ok(eventually($blind, 'SELECT name FROM app.patients WHERE id = 51', 'o', db => 'data'), 'changes are applied without a key');
isnt(run_sql($blind, 'UPDATE app.patients SET id = 99 WHERE id = 51', db => 'data')->{sqlstates}[0], undef, 'a writer there is checked');
value($blind, 'ALTER SUBSCRIPTION sub DISABLE; ALTER SUBSCRIPTION sub SET (slot_name = NONE); DROP SUBSCRIPTION sub', db => 'data');

# The README's ways for keys that the database makes.
my $readme = do { open my $in, '<', "$ENV{TESTDIR}/README.md" or die "README.md: $!"; local $/ = undef; <$in> };
my ($sql) = $readme =~ /<!-- tried: keys that the database makes -->\n```sql\n(.*?)```/s or die 'README.md does not show it';
create_database($node, 'readme');
my $result = run_sql($node, $sql, db => 'readme');
is_deeply($result->{sqlstates}, [], 'the SQL that README.md shows runs') or diag $result->{err};
gives($node, q{SELECT string_agg(fieldcrypt.decrypt_field(ssn, fieldcrypt.context('members.ssn', id)), ', ' ORDER BY id) FROM members}, '987-65-4321', 'and what it stores opens', db => 'readme');

# Its quick start, and the explicit way.
foreach my $name ('quick start', 'the explicit way')
{
	my ($shown) = $readme =~ /<!-- tried: \Q$name\E -->\n```sql\n(.*?)```/s or die "README.md does not show $name";
	my $done = run_sql($node, $shown =~ s/^CREATE EXTENSION.*\n//mr, db => 'readme');
	is_deeply($done->{sqlstates}, [], "the SQL of $name runs") or diag $done->{err};
}
gives($node, 'SELECT ssn FROM decrypted_patients', '123-45-6789', 'and gives the plaintext', db => 'readme');
value($node, 'DROP TABLE staff', db => 'readme');

# And the way of docs/operations.md for a column in plaintext.
my ($taken_over) = slurp_file("$ENV{TESTDIR}/docs/operations.md") =~ /<!-- tried: a column in plaintext -->\n```sql\n(.*?)```/s or die 'docs/operations.md does not show it';
value($node, q{CREATE TABLE staff (id int PRIMARY KEY, iban text); INSERT INTO staff VALUES (1, 'DE89370400440532013000'), (2, NULL)}, db => 'readme');
$result = run_sql($node, $taken_over, db => 'readme');
is_deeply($result->{sqlstates}, [], 'the SQL that docs/operations.md shows runs') or diag $result->{err};
gives($node, q{SELECT id, fieldcrypt.decrypt_field(iban, fieldcrypt.context('staff.iban', id)) FROM staff ORDER BY id}, "1|DE89370400440532013000\n2|", 'and what was in plaintext opens', db => 'readme');
my $files = value($node, q{CHECKPOINT; SELECT pg_relation_filepath('staff')}, db => 'readme');
unlike(slurp_file($node->data_dir . "/$files"), qr/DE8937040044/, 'and is not in the table any more');
refused($node, q{INSERT INTO staff SELECT 3, iban FROM staff WHERE id = 1}, 'KF031', 'and it is enforced', db => 'readme');
no_crash($_) foreach $node, $blind;
done_testing();

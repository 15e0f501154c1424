# Dumps taken before, in the middle of and after a re-encryption: each restores into a new database with
# every value readable, and re-encryption goes on there, with the contexts that were remembered.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $rows = 3000;
my $node = new_cluster('primary');
my $folder = PostgreSQL::Test::Utils::tempdir();
value($node, <<SQL);
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted, note fieldcrypt.encrypted) PARTITION BY RANGE (id);
CREATE TABLE patients_low PARTITION OF patients FOR VALUES FROM (0) TO (1000);
CREATE TABLE patients_high PARTITION OF patients FOR VALUES FROM (1000) TO (1000000);
INSERT INTO patients
SELECT i, fieldcrypt.encrypt_field('ssn ' || i, 'patients.ssn/' || i), fieldcrypt.encrypt_field('note ' || i, 'notes')
  FROM generate_series(1, $rows) AS i;
SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => \$\$'patients.ssn/' || id\$\$);
SELECT fieldcrypt.set_column_context('patients', 'note', constant => 'notes');
CALL fieldcrypt.rotate_keys(force => true);
SQL

my $readable = q{SELECT count(*) FROM patients
 WHERE fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) = 'ssn ' || id AND fieldcrypt.decrypt_field(note, 'notes') = 'note ' || id};
my $stale = q{SELECT count(*) FROM patients, fieldcrypt.encryption_keys AS k
 WHERE k.key_id = fieldcrypt.key_id(ssn) AND k.state <> 'active'};

my %dumps;
$dumps{before} = dump_database($node, 'postgres', "$folder/before.custom", '-Fc');
# A statement_timeout ends it in the middle, at a rate that leaves no doubt of that.
refused($node, q{SET statement_timeout = '1500ms'; CALL fieldcrypt.reencrypt('patients', batch_size => 100, rows_per_second => 500)},
	'57014', 'stopped in the middle');
my $left = value($node, $stale);
ok($left > 0 && $left < $rows, "in the middle: $left of $rows are left");
$dumps{middle} = dump_database($node, 'postgres', "$folder/middle.custom", '-Fc');
value($node, q{CALL fieldcrypt.reencrypt('patients', rows_per_second => 0)});
gives($node, $stale, '0', 'done');
$dumps{after} = dump_database($node, 'postgres', "$folder/after.custom", '-Fc');

my %left = (before => $rows, middle => $left, after => 0);
foreach my $when (qw(before middle after))
{
	my $db = create_database($node, "restored_$when", extension => 0);
	is(restore_database($node, $db, $dumps{$when}, '--exit-on-error', '--single-transaction')->{code}, 0, "$when: restored");
	gives($node, $readable, $rows, "$when: all is readable", db => $db);
	gives($node, $stale, $left{$when}, "$when: as stale as it was", db => $db);
	gives($node, 'SELECT count(*) FROM fieldcrypt.reencryption_progress', '0', "$when: progress is not restored, the places of rows are others", db => $db);
	gives($node, q{SELECT count(*) FROM fieldcrypt.column_contexts}, '2', "$when: the contexts are", db => $db);
	my $run = run_sql($node, q{CALL fieldcrypt.reencrypt(rows_per_second => 0)}, db => $db);
	like($run->{err}, qr/NOTICE:  00000: reencrypt: $left{$when} rows re-encrypted, 2 tables done, 0 rows could not be/, "$when: goes on there");
	unlike($run->{err}, qr/WARNING/, "$when: without a warning");
	gives($node, $stale, '0', "$when: to its end", db => $db);
	gives($node, $readable, $rows, "$when: nothing is lost", db => $db);
}

# A table that is restored under another owner: the old owner's expression does not run for the new one.
value($node, 'CREATE ROLE other');
my $db = create_database($node, 'owned', extension => 0);
is(restore_database($node, $db, $dumps{before}, '--exit-on-error', '--single-transaction')->{code}, 0, 'another owner: restored');
value($node, 'ALTER TABLE patients OWNER TO other; ALTER TABLE patients_low OWNER TO other; ALTER TABLE patients_high OWNER TO other', db => $db);
my $run = run_sql($node, q{CALL fieldcrypt.reencrypt(rows_per_second => 0)}, db => $db);
like($run->{err}, qr/WARNING:  KF025: could not be re-encrypted to the end: public\.patients_high: (?:(?!\(KF002\)).)*no context is set for column "ssn"/, 'another owner: the remembered contexts count no more');
gives($node, $readable, $rows, 'another owner: and nothing is lost', db => $db);
no_crash($node);
$node->stop;
done_testing();

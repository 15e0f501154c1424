# Protected columns go where their table goes: through dumps of every kind, restored before there is a master key, to subscribers
# and standbys. There each value is its row's, plaintext comes in as before, and what belongs elsewhere is refused.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = new_cluster('source', init => { allows_streaming => 'logical' }, conf => "max_connections = 40\n");
my $folder = PostgreSQL::Test::Utils::tempdir();

# Schemas that sort before the extension's and behind it, since pg_dump goes by name.
create_database($source, 'app');
my $declared = <<'SQL';
SELECT fieldcrypt.create_loose_key(); CREATE SCHEMA app; CREATE SCHEMA zoo;
CREATE TABLE app.people (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, ssn fieldcrypt.encrypted_text DEFAULT 'literal', born fieldcrypt.encrypted_text DEFAULT ('2000-01-01'::text));
CREATE TABLE zoo.animals (tenant text, "Key / %" text, name fieldcrypt.encrypted_text, PRIMARY KEY (tenant, "Key / %"));
CREATE TABLE app.days (id int, day date, what fieldcrypt.encrypted_text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE app.days_1 PARTITION OF app.days FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE app.days_2 (what fieldcrypt.encrypted_text, day date NOT NULL, id int NOT NULL);
ALTER TABLE app.days ATTACH PARTITION app.days_2 DEFAULT;
CREATE TABLE zoo.loose (id int PRIMARY KEY, note fieldcrypt.encrypted_text);
SELECT fieldcrypt.protect_column('app.people', 'ssn'), fieldcrypt.protect_column('app.people', 'born', plaintext => 'date'),
       fieldcrypt.protect_column('zoo.animals', 'name', tenant => 'tenant'), fieldcrypt.protect_column('app.days', 'what');
SQL
my $filled = <<'SQL';
INSERT INTO app.people (name, ssn) SELECT 'name ' || i, 'ssn-' || i FROM generate_series(1, 50) AS i;
INSERT INTO app.people (name, ssn, born) VALUES ('none', NULL, NULL), ('empty', '', '1901-02-03'), ('long', repeat('long', 5000), 'infinity');
INSERT INTO zoo.animals SELECT 'zoo ' || i % 3, 'a/%b ' || i, 'animal-' || i FROM generate_series(1, 20) AS i;
INSERT INTO app.days SELECT i, date '2020-12-25' + i, 'what-' || i FROM generate_series(1, 20) AS i;
INSERT INTO zoo.loose SELECT i, 'note-' || i FROM generate_series(1, 5) AS i;
SQL
value($source, $declared . $filled, db => 'app');
my $bytes = <<'SQL';
SET timezone = 'UTC';
SELECT id, name, md5(ssn::bytea), born::bytea FROM app.people ORDER BY id;
SELECT tenant, "Key / %", name::bytea FROM zoo.animals ORDER BY 1, 2;
SELECT id, day, what::bytea, tableoid::regclass FROM app.days ORDER BY id;
SELECT id, note::bytea FROM zoo.loose ORDER BY id;
SQL
my $opened = <<'SQL';
SELECT id, name, md5(fieldcrypt.decrypt_field(ssn, fieldcrypt.context('app.people.ssn', id))), fieldcrypt.decrypt_field(born, fieldcrypt.context('app.people.born', id)) FROM app.people ORDER BY id;
SELECT tenant, "Key / %", fieldcrypt.decrypt_field(name, fieldcrypt.context('zoo.animals.name', tenant, tenant, "Key / %")) FROM zoo.animals ORDER BY 1, 2;
SELECT id, fieldcrypt.decrypt_field(what, fieldcrypt.context('app.days.what', id, day)) FROM app.days ORDER BY id;
SELECT id, fieldcrypt.decrypt_field(note) FROM zoo.loose ORDER BY id;
SQL
my $declarations = 'SELECT relation::regclass, p.attnum, column_name, constraint_name, place_name, plaintext, tenant, key, is_believed FROM fieldcrypt_internal.protected_columns() AS p ORDER BY relation::regclass::text, 3';
my %source_has = map { $_->[0] => value($source, $_->[1], db => 'app') } [ bytes => $bytes ], [ opened => $opened ], [ declarations => $declarations ];

# Restored where there is no master key at all.
my $other = new_cluster('other', keys => [], extension => 0, conf => "fieldcrypt.master_key_file = ''\n", init => { allows_streaming => 'logical' });
sub restored
{
	my ($db, $name, @steps) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	value($other, "CREATE DATABASE $db");
	foreach my $step (@steps)
	{
		my $result = restore_database($other, $db, @$step);
		is("$result->{code} $result->{err}", '0 ', "$name: restored without a master key (@{$step}[1 .. $#$step])");
	}
	same_contents(value($other, $bytes, db => $db), $source_has{bytes}, "$name: byte for byte");
	same_contents(value($other, $declarations, db => $db), $source_has{declarations}, "$name: declared as it was");
	refused($other, 'UPDATE app.people SET ssn = (SELECT ssn FROM app.people WHERE id = 1) WHERE id = 2', 'KF037', "$name: what is another row's is refused without any key", db => $db);
	gives($other, q{UPDATE app.people SET name = 'name 1' WHERE id = 1 RETURNING id}, '1', "$name: other columns are written", db => $db);
	return;
}
sub dumped { my ($name, @arguments) = @_; return dump_database($source, 'app', "$folder/$name", @arguments) }
my $custom = dumped('custom', '-Fc');
restored('by_psql', 'plain', [ dumped('plain.sql'), '-v', 'ON_ERROR_STOP=1' ]);
restored('by_inserts', 'plain, INSERTs', [ dumped('inserts.sql', '--inserts'), '-v', 'ON_ERROR_STOP=1' ]);
restored('by_custom', 'custom', [ $custom, '-e' ]);
restored('by_directory', 'directory', [ dumped('directory', '-Fd', '-j', '4'), '-j', '4' ]);
restored('by_sections', 'sections', map { [ $custom, '-e', "--section=$_" ] } 'pre-data', 'data', 'post-data');
restored('by_parts', 'schema, then data', [ dumped('schema', '-Fc', '--schema-only'), '-e' ], [ dumped('data', '-Fc', '--data-only'), '-e' ]);
restored('by_parts_2', 'schema, then data without triggers', [ "$folder/schema", '-e' ], [ dumped('data.sql', '--data-only', '--disable-triggers'), '-v', 'ON_ERROR_STOP=1' ]);
my @restored = qw(by_psql by_inserts by_custom by_directory by_sections by_parts by_parts_2);
restore_database($other, value($other, 'CREATE DATABASE schema_only; SELECT $$schema_only$$'), "$folder/schema", '-e');

# Now with the key.
use_key_file($other, key_text(1));
$other->restart;
foreach my $db (@restored)
{
	same_contents(value($other, $opened, db => $db), $source_has{opened}, "$db: everything opens");
	gives($other, q{INSERT INTO app.people (name, ssn) VALUES ('new', 'new ssn') RETURNING fieldcrypt.decrypt_field(ssn, fieldcrypt.context('app.people.ssn', id)), fieldcrypt.decrypt_field(born, fieldcrypt.context('app.people.born', id))},
		'new ssn|2000-01-01', "$db: plaintext comes in, and a DEFAULT of ('...'::text) is sealed", db => $db);
	value($other, 'CREATE ROLE ' . ($db eq 'by_psql' ? 'teller LOGIN' : "x_$db") . q{; SELECT fieldcrypt.grant_access('teller', 'encrypt'); GRANT USAGE ON SCHEMA app TO teller; GRANT ALL ON app.people TO teller}, db => $db);
	refused($other, q{INSERT INTO app.people (name) VALUES ('default')}, 'KF038', "$db: a literal in a DEFAULT is of another session", db => $db, user => 'teller');
	gives($other, q{INSERT INTO app.people (name) VALUES ('default') RETURNING fieldcrypt.decrypt_field(ssn, fieldcrypt.context('app.people.ssn', id))}, 'literal', "$db: which who may both can use", db => $db);
	gives($other, q{SELECT status, detail FROM fieldcrypt.health() WHERE "check" = 'protected_columns'}, 'warning|column "zoo.loose.note": not protected, so that what is written there is bound to no row', "$db: health knows what it knew", db => $db);
	gives($other, q{INSERT INTO app.days VALUES (99, '2020-05-05', 'x'), (98, '2030-05-05', 'y'); UPDATE app.days SET day = '2031-05-05' WHERE id = 99 RETURNING fieldcrypt.decrypt_field(what, fieldcrypt.context('app.days.what', id, day))}, 'x', "$db: partitions, too", db => $db);
}
refused($other, q{INSERT INTO app.people (ssn) VALUES ('x')}, 'KF036', qr/create_loose_key/, 'a schema alone: plaintext can\'t come in', db => 'schema_only');
gives($other, q{SELECT fieldcrypt.create_loose_key() > 0; INSERT INTO app.people (ssn) VALUES ('x') RETURNING fieldcrypt.decrypt_field(ssn, fieldcrypt.context('app.people.ssn', id))}, "t\nx", 'until create_loose_key', db => 'schema_only');
gives($other, 'SELECT fieldcrypt.create_loose_key() = key_id FROM fieldcrypt.encryption_keys WHERE purpose = $$loose$$', 't', 'which makes one alone', db => 'schema_only');

# A dump of one table alone: without the keys its values open nowhere, and are nobody else's.
create_database($other, 'alone');
value($other, 'CREATE SCHEMA app; SELECT fieldcrypt.create_loose_key()', db => 'alone');
my $alone = restore_database($other, 'alone', dumped('alone.sql', '-t', 'app.people'), '-v', 'ON_ERROR_STOP=1');
is("$alone->{code} $alone->{err}", '0 ', 'one table alone is restored');
refused($other, "SELECT fieldcrypt.decrypt_field(ssn, 'app.people.ssn/1') FROM app.people WHERE id = 1", 'KF003', 'and does not open', db => 'alone');

# The same table in two schemas: data goes from one to the other by plaintext or loosen alone.
value($other, <<'SQL', db => 'by_psql');
CREATE SCHEMA app_2;
CREATE TABLE app_2.people (LIKE app.people INCLUDING IDENTITY INCLUDING INDEXES);
SELECT fieldcrypt.protect_column('app_2.people', 'ssn'), fieldcrypt.protect_column('app_2.people', 'born', plaintext => 'date');
SQL
my $moved = slurp_file(dumped('people.sql', '--data-only', '-t', 'app.people')) =~ s/\bapp\.people/app_2.people/gr;
my $result = restore_database($other, 'by_psql', write_file('moved.sql', $moved), '-v', 'ON_ERROR_STOP=1');
is("@{ $result->{sqlstates} }", 'KF037', 'a dump of one schema is refused by another');
unlike($result->{err}, qr/ssn-\d/, '  without a plaintext');
refused($other, 'INSERT INTO app_2.people OVERRIDING SYSTEM VALUE SELECT * FROM app.people', 'KF037', 'a copy, too', db => 'by_psql');
gives($other, q{INSERT INTO app_2.people (id, name, ssn) OVERRIDING SYSTEM VALUE SELECT id, name, fieldcrypt.loosen(ssn, fieldcrypt.context('app.people.ssn', id)) FROM app.people WHERE id <= 50;
SELECT count(*) FROM app_2.people WHERE fieldcrypt.decrypt_field(ssn, fieldcrypt.context('app_2.people.ssn', id)) = 'ssn-' || id}, '50', 'loosened they are bound anew', db => 'by_psql');
# A schema that is renamed keeps its values' places.
value($other, 'ALTER SCHEMA app RENAME TO renamed; ALTER TABLE renamed.people RENAME ssn TO number', db => 'by_custom');
gives($other, q{INSERT INTO renamed.people (number) VALUES ('x') RETURNING fieldcrypt.decrypt_field(number, fieldcrypt.context('app.people.ssn', id))}, 'x', 'renamed, places stay', db => 'by_custom');

# Restored by an owner who is no superuser: with manage, which has the trigger, or else without it, and then nothing comes in.
value($other, 'CREATE ROLE owner LOGIN');
foreach my $rights (q{'manage', 'encrypt', 'decrypt'}, q{'encrypt', 'decrypt'})
{
	my $db = $rights =~ /manage/ ? 'by_manager' : 'by_owner';
	value($other, "CREATE DATABASE $db OWNER owner");
	value($other, "CREATE EXTENSION pg_fieldcrypt; SELECT fieldcrypt.grant_access('owner', $rights), fieldcrypt.create_loose_key()", db => $db);
	my $owned = restore_database($other, $db, dumped("$db.sql", '--no-owner', '-n', 'app', '-n', 'zoo'), user => 'owner');
	if ($rights =~ /manage/)
	{
		is("@{ $owned->{sqlstates} }", '', 'restored by an owner with manage');
		gives($other, q{INSERT INTO app.people (ssn) VALUES ('x') RETURNING fieldcrypt.decrypt_field(ssn, fieldcrypt.context('app.people.ssn', id))}, 'x', '  and used', db => $db, user => 'owner');
	}
	else
	{
		like("@{ $owned->{sqlstates} }", qr/^42501( 42501)*$/, 'an owner without manage does not get the trigger');
		refused($other, q{INSERT INTO app.people (ssn) VALUES ('x')}, '23514', '  so that no plaintext is stored', db => $db, user => 'owner');
		value($other, q{SELECT fieldcrypt.protect_column('app.people', 'ssn')}, db => $db, user => 'owner');
		gives($other, q{INSERT INTO app.people (ssn) VALUES ('x') RETURNING fieldcrypt.decrypt_field(ssn, fieldcrypt.context('app.people.ssn', id))}, 'x', '  until protect_column makes it', db => $db, user => 'owner');
	}
}

# Logical replication, with the keys: copies, changes, moved keys and partitions, both formats.
create_database($source, 'published');
value($source, $declared . $filled . <<'SQL', db => 'published');
CREATE PUBLICATION rows FOR TABLE app.people, zoo.animals, app.days, zoo.loose WITH (publish_via_partition_root = true);
CREATE PUBLICATION keys FOR TABLE fieldcrypt.encryption_keys, fieldcrypt.master_keys;
SQL
dump_database($source, 'published', "$folder/published.sql", '--schema-only');
my @subscribers = ([ 'sub_text', 'false' ], [ 'sub_binary', 'true' ]);
foreach my $subscriber (@subscribers)
{
	my ($db, $binary) = @$subscriber;
	value($other, "CREATE DATABASE $db");
	restore_database($other, $db, write_file("$db.sql", slurp_file("$folder/published.sql") =~ s/^(?:CREATE|ALTER) PUBLICATION .*\n//mgr), '-v', 'ON_ERROR_STOP=1');
	my $from = $source->connstr('published') =~ s/'/''/gr;
	value($other, "CREATE SUBSCRIPTION $db CONNECTION '$from' PUBLICATION rows, keys WITH (binary = $binary)", db => $db);
}
sub same_everywhere
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $db (map { $_->[0] } @subscribers)
	{
		$other->wait_for_subscription_sync($source, $db, $db);
		same_contents(value($other, $_, db => $db), value($source, $_, db => 'published'), "$db: $name") foreach $bytes, $opened;
	}
	return;
}
same_everywhere('the first copy');
value($source, q{INSERT INTO app.people (name, ssn) VALUES ('later', 'later'); UPDATE app.people SET ssn = 'ssn-changed' WHERE id = 2; DELETE FROM app.people WHERE id = 3}, db => 'published');
value($source, q{UPDATE app.days SET day = '2025-01-01' WHERE id = 1; UPDATE app.days SET id = 1000 WHERE id = 2; UPDATE zoo.animals SET tenant = 'zoo x' WHERE "Key / %" = 'a/%b 1'}, db => 'published');
same_everywhere('changes, moved rows, another tenant');
value($source, q{CALL fieldcrypt.rotate_keys(force => true)}, db => 'published');
value($source, q{CALL fieldcrypt.reencrypt(rows_per_second => 0)}, db => 'published');
same_everywhere('rotated and re-encrypted');
foreach my $db (map { $_->[0] } @subscribers)
{
	gives($other, q{UPDATE app.people SET name = name WHERE id = 5; UPDATE app.people SET ssn = 'there' WHERE id = 5 RETURNING fieldcrypt.decrypt_field(ssn, fieldcrypt.context('app.people.ssn', id))}, 'there', "$db: plaintext comes in there", db => $db);
	refused($other, 'UPDATE app.people SET ssn = (SELECT ssn FROM app.people WHERE id = 1) WHERE id = 5', 'KF037', "$db: another row's value does not", db => $db);
}
value($other, "ALTER SUBSCRIPTION $_->[0] DISABLE; ALTER SUBSCRIPTION $_->[0] SET (slot_name = NONE); DROP SUBSCRIPTION $_->[0]", db => $_->[0]) foreach @subscribers;

# A standby reads, takes plaintext in for what it only reads, and says why it writes none.
$source->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($source, 'base', has_streaming => 1);
use_key_file($standby, key_text(1));
$standby->start;
value($source, q{UPDATE app.people SET ssn = 'on the primary' WHERE id = 1}, db => 'app');
$source->wait_for_catchup($standby, 'replay', $source->lsn('insert'));
same_contents(value($standby, $opened, db => 'app'), value($source, $opened, db => 'app'), 'a standby reads everything');
gives($standby, q{SELECT fieldcrypt.decrypt_field('x'::fieldcrypt.encrypted_text), fieldcrypt.decrypt_field('y'::text::fieldcrypt.encrypted_text)}, 'x|y', 'plaintext comes in there', db => 'app');
gives($standby, q{EXPLAIN (COSTS OFF) INSERT INTO app.people (ssn) VALUES ('x')}, qr/^Insert/, 'also in an EXPLAIN', db => 'app');
refused($standby, q{INSERT INTO app.people (ssn) VALUES ('x')}, '25006', 'but is stored nowhere', db => 'app');
foreach my $call (q{protect_column('zoo.loose', 'note')}, q{protect_column('app.people', 'ssn')}, q{unprotect_column('app.people', 'ssn')})
{
	refused($standby, "SELECT fieldcrypt.$call", '25006', "nor is anything declared: $call", db => 'app');
	refused($source, "BEGIN READ ONLY; SELECT fieldcrypt.$call", '25006', '  nor in a READ ONLY transaction', db => 'app');
}
my $of_standby = value($standby, q{SELECT 'x'::fieldcrypt.encrypted_text}, db => 'app');
value($source, q{CREATE ROLE teller LOGIN; SELECT fieldcrypt.grant_access('teller', 'encrypt'); GRANT USAGE ON SCHEMA app TO teller; GRANT ALL ON app.people TO teller}, db => 'app');
refused($source, "INSERT INTO app.people (ssn) VALUES ('$of_standby')", 'KF038', 'what it has taken in is none of the primary\'s sessions', db => 'app', user => 'teller');
$standby->promote;
gives($standby, q{INSERT INTO app.people (ssn) VALUES ('promoted') RETURNING fieldcrypt.decrypt_field(ssn, fieldcrypt.context('app.people.ssn', id))}, 'promoted', 'promoted, it goes on', db => 'app');

no_crash($_) foreach $source, $other, $standby;
$_->stop foreach $standby, $other, $source;
done_testing();

# What a restore computes before the keys are there: constraints, domains, generated columns and partition keys that decrypt.
# health() names them, also through functions, and names nothing else. The recipes of docs/operations.md restore them, from
# dumps of every format; a constraint that is NOT VALID needs none. An index that decrypts is named, and never restored.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', extension => 0);
my $health = q{SELECT status || ': ' || detail || coalesce(' HINT ' || hint, '') FROM fieldcrypt.health() WHERE "check" = 'restore_order'};
my $operations = slurp_file("$ENV{TESTDIR}/docs/operations.md");

# A recipe of docs/operations.md.
sub recipe
{
	my ($name) = @_;
	my ($recipe) = $operations =~ /<!-- tried: \Q$name\E -->\n```\w*\n(.*?)```/s or die "docs/operations.md does not show $name";
	return $recipe;
}

# Runs a recipe by a shell in a folder, for a database: {code, err}.
sub follow
{
	my ($folder, $db, $recipe) = @_;
	local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'postgres', PGOPTIONS => '-c client_min_messages=warning');
	my ($out, $err) = ('', '');
	$recipe =~ s/\brestored\b/$db/g;
	IPC::Run::run([ 'bash', '-euo', 'pipefail', '-c', "cd '$folder'\n$recipe" ], '<', \'', '>', \$out, '2>', \$err);
	note $err;
	return { code => $? >> 8, err => $err };
}

# Each kind alone: named by what it is, whether it decrypts itself or by a function, however deep.
create_database($node, 'kinds');
value($node, <<'SQL', db => 'kinds');
SELECT fieldcrypt.create_key();
CREATE SCHEMA app;
CREATE TABLE app.t (id int, v fieldcrypt.encrypted, w fieldcrypt.encrypted);
CREATE FUNCTION app.one(v fieldcrypt.encrypted) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT fieldcrypt.decrypt_field(v) $$;
CREATE FUNCTION app."Two"(v fieldcrypt.encrypted) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN upper(app.one(v)); END $$;
CREATE FUNCTION app.three(v fieldcrypt.encrypted) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN app . "Two" ( v ); END $$;
CREATE FUNCTION app.body(v fieldcrypt.encrypted) RETURNS text IMMUTABLE RETURN app.three(v);
CREATE FUNCTION app.encrypts(v text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM fieldcrypt.encrypt_field(v); RETURN true; END $$;
CREATE FUNCTION app.itself(v text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN CASE WHEN v = '' THEN v ELSE app.itself('') END; END $$;
CREATE FUNCTION app.opens(v fieldcrypt.encrypted, w text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT app.one(v) = w $$;
CREATE OPERATOR app.=== (LEFTARG = fieldcrypt.encrypted, RIGHTARG = text, FUNCTION = app.opens);
SQL
gives($node, $health, qr/^ok: /, 'nothing is there', db => 'kinds');
foreach my $case (
	[ 'ALTER TABLE app.t ADD CONSTRAINT c CHECK (fieldcrypt.decrypt_field(v) IS NOT NULL)', 'constraint c of app.t' ],
	[ 'ALTER TABLE app.t ADD CONSTRAINT c CHECK (fieldcrypt.try_decrypt_field(v) IS NOT NULL)', 'constraint c of app.t' ],
	[ 'ALTER TABLE app.t ADD CONSTRAINT c CHECK (fieldcrypt.decrypt_field_as(v, NULL::int) > 3)', 'constraint c of app.t' ],
	[ 'ALTER TABLE app.t ADD CONSTRAINT c CHECK (app.one(v) > $$a$$)', 'constraint c of app.t' ],
	[ 'ALTER TABLE app.t ADD CONSTRAINT c CHECK (app."Two"(v) > $$a$$)', 'constraint c of app.t' ],
	[ 'ALTER TABLE app.t ADD CONSTRAINT c CHECK (app.three(v) > $$a$$)', 'constraint c of app.t' ],
	[ 'ALTER TABLE app.t ADD CONSTRAINT c CHECK (app.body(v) > $$a$$)', 'constraint c of app.t' ],
	[ 'ALTER TABLE app.t ADD CONSTRAINT c CHECK (app.encrypts(id::text))', 'constraint c of app.t' ],
	[ 'ALTER TABLE app.t ADD CONSTRAINT c CHECK (v OPERATOR(app.===) $$a$$)', 'constraint c of app.t' ],
	[ 'ALTER TABLE app.t ADD d text GENERATED ALWAYS AS (app.three(v)) STORED', 'generated column app.t.d' ],
	[ 'CREATE DOMAIN app.d AS fieldcrypt.encrypted CONSTRAINT c CHECK (app.three(VALUE) > $$a$$)', 'constraint c of domain app.d' ],
	[ 'CREATE TABLE app.p (v fieldcrypt.encrypted) PARTITION BY LIST (app.one(v))', 'partition key of app.p' ],
	[ 'CREATE INDEX i ON app.t (app.one(v))', 'index app.i', 'store plaintext' ],
	[ 'CREATE INDEX i ON app.t (id) WHERE app.three(v) > $$a$$', 'index app.i', 'store plaintext' ],
	[ 'ALTER TABLE app.t ADD CONSTRAINT i EXCLUDE USING btree ((app.one(v)) WITH =)', 'index app.i', 'store plaintext' ],
	[ 'CREATE MATERIALIZED VIEW app.m AS SELECT app.one(v) FROM app.t WITH NO DATA', 'materialized view app.m', 'store plaintext' ])
{
	my ($sql, $place, $why) = @$case;
	$why //= 'before the keys are there';
	gives($node, "BEGIN; $sql; $health; ROLLBACK",
		qr/^warning: a restore [^;]*$why[^;]*: object "\Q$place\E" HINT Make constraints NOT VALID.*docs\/operations\.md/, $sql, db => 'kinds');
}
foreach my $sql (
	'ALTER TABLE app.t ADD CONSTRAINT c CHECK (fieldcrypt.decrypt_field(v) IS NOT NULL) NOT VALID',
	'ALTER TABLE app.t ADD CONSTRAINT c CHECK (fieldcrypt.context($$t$$, id) <> $$x$$ AND fieldcrypt.key_id(v) > 0)',
	'ALTER TABLE app.t ADD CONSTRAINT c CHECK (v IS NOT NULL AND v OPERATOR(fieldcrypt.*<>) w)',
	'ALTER TABLE app.t ADD CONSTRAINT c CHECK (app.itself(id::text) IS NOT NULL)',
	'CREATE DOMAIN app.d AS fieldcrypt.encrypted; ALTER DOMAIN app.d ADD CONSTRAINT c CHECK (app.three(VALUE) > $$a$$) NOT VALID',
	'ALTER TABLE app.t ADD d text GENERATED ALWAYS AS (id::text COLLATE "C") STORED',
	'ALTER TABLE app.t ALTER v SET DEFAULT fieldcrypt.encrypt_field($$x$$)',
	'CREATE INDEX i ON app.t USING hash (v)',
	'CREATE INDEX i ON app.t (fieldcrypt.context($$t$$, id))',
	'CREATE VIEW app.w AS SELECT app.one(v) FROM app.t',
	'CREATE TEMP TABLE temporary (v fieldcrypt.encrypted CHECK (app.one(v) > $$a$$))',
	q{SELECT fieldcrypt.set_column_context('app.t', 'v', expression => $$fieldcrypt.context('t', id)$$, enforce => true)},
	q{CREATE TABLE app.protected (id int PRIMARY KEY, ssn fieldcrypt.encrypted_text); SELECT fieldcrypt.protect_column('app.protected', 'ssn')})
{
	gives($node, "BEGIN; $sql; $health; ROLLBACK", qr/(^|\n)ok: no constraint/, "not named: $sql", db => 'kinds');
}
value($node, join(';', map { "ALTER TABLE app.t ADD CONSTRAINT c$_ CHECK (app.one(v) > '$_')" } 1 .. 30), db => 'kinds');
gives($node, $health, qr/: 30 objects, for instance "constraint c1 of app\.t", /, 'many are counted', db => 'kinds');
value($node, 'DROP DATABASE kinds');

# A database that the documented restore fails with.
create_database($node, 'app');
value($node, <<'SQL', db => 'app');
CREATE SCHEMA app;
CREATE FUNCTION app.digits(v fieldcrypt.encrypted) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT length(fieldcrypt.decrypt_field(v, 'ssn')) $$;
CREATE DOMAIN app.ssn AS fieldcrypt.encrypted CONSTRAINT opens CHECK (app.digits(VALUE) > 2);
CREATE TABLE app.patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted CONSTRAINT is_digits CHECK (fieldcrypt.decrypt_field(ssn, 'ssn') ~ '^[0-9]+$'),
	n int GENERATED ALWAYS AS (app.digits(ssn)) STORED, other app.ssn, note text);
CREATE FUNCTION app.copy() RETURNS void LANGUAGE sql AS $$
COPY app.patients (note) TO '/nowhere';
$$;
SELECT fieldcrypt.audit_table('app.patients');
INSERT INTO app.patients (id, ssn, other, note) SELECT i, v, v, E'COPY fieldcrypt.encryption_keys FROM stdin;\n\\.\n' || i
  FROM generate_series(100, 150) AS i, LATERAL (SELECT fieldcrypt.encrypt_field(i::text, 'ssn', 'tenant ' || i % 3) AS v) AS v;
CREATE SCHEMA "fieldcrypt later";
CREATE TABLE "fieldcrypt later".fieldcrypt AS SELECT id, other FROM app.patients;
CALL fieldcrypt.rotate_keys(force => true);
SQL
my $values = q{SELECT id, n, note, ssn::bytea, fieldcrypt.decrypt_field(ssn, 'ssn'), fieldcrypt.decrypt_field(other, 'ssn') FROM app.patients ORDER BY id;
	SELECT count(fieldcrypt.decrypt_field(other, 'ssn')) FROM "fieldcrypt later".fieldcrypt};
my ($contents, $rows) = (contents($node, 'app'), value($node, $values, db => 'app'));
my $folder = PostgreSQL::Test::Utils::tempdir();
dump_database($node, 'app', "$folder/dump.sql");
my %formats = (custom => '-Fc', directory => '-Fd', tar => '-Ft');
dump_database($node, 'app', "$folder/$_.dump", $formats{$_}) foreach sort keys %formats;

# What must be refused is an element of this too: the fault itself.
create_database($node, 'as_ever', extension => 0);
like(restore_database($node, 'as_ever', "$folder/custom.dump", '-e', '-1')->{err},
	qr/COPY failed for table "patients": ERROR:  encryption key \d+ does not exist/, 'restored as ever: it fails');
value($node, 'DROP DATABASE as_ever');

sub is_whole
{
	my ($db, $name) = @_;
	same_contents(contents($node, $db), $contents, "$name: keys and log");
	same_contents(value($node, $values, db => $db), $rows, "$name: values");
	refused($node, q{INSERT INTO app.patients (id, ssn) VALUES (1, fieldcrypt.encrypt_field('no digits', 'ssn'))}, '23514',
		"$name: the constraint is there", db => $db);
	gives($node, q{SELECT bool_and(ok) FROM fieldcrypt.verify_keys()}, 't', "$name: keys open", db => $db);
	value($node, "DROP DATABASE $db");
	return;
}
foreach my $way ([ 'custom' ], [ 'directory' ], [ 'tar' ], [ 'directory', 3 ])
{
	my ($format, $jobs) = @$way;
	my $recipe = recipe('keys first') =~ s/dump\.custom/$format.dump/gr;
	$recipe =~ s/--single-transaction (?=--use-list=rest)/-j $jobs / or die $recipe if $jobs;
	my $name = $format . ($jobs ? " with $jobs jobs" : '');
	my $restored = follow($folder, 'by_recipe', $recipe);
	is("$restored->{code} $restored->{err}", '0 ', "$name: restored, keys first");
	is_whole('by_recipe', $name);
}
{
	my $restored = follow($folder, 'by_plain', recipe('keys first, plain'));
	is("$restored->{code} $restored->{err}", '0 ', 'plain: restored, keys first');
	is_whole('by_plain', 'plain');
}

# The data alone, into tables whose enforced context opens what is written: the same.
{
	value($node, q{SELECT fieldcrypt.set_column_context('app.patients', 'ssn', constant => 'ssn', enforce => true)}, db => 'app');
	dump_database($node, 'app', "$folder/schema.sql", '--schema-only');
	dump_database($node, 'app', "$folder/data.custom", '-Fc', '--data-only');
	$contents = contents($node, 'app');
	create_database($node, 'by_halves', extension => 0);
	restore_database($node, 'by_halves', "$folder/schema.sql", '-v', 'ON_ERROR_STOP=1', '-1')->{code} == 0 or die 'schema';
	value($node, 'ALTER TABLE app.patients DROP CONSTRAINT is_digits, DROP n; ALTER DOMAIN app.ssn DROP CONSTRAINT opens', db => 'by_halves');
	like(restore_database($node, 'by_halves', "$folder/data.custom", '-e', '-1')->{err}, qr/COPY failed for table "patients": ERROR:  encryption key \d+ does not exist/,
		'data only, enforced context: as ever it fails');
	my $recipe = recipe('keys first') =~ s/dump\.custom/data.custom/gr =~ s/pg_restore --list --section=(?:pre|post)-data data\.custom/true/gr =~ s/^createdb.*\n//mr;
	my $restored = follow($folder, 'by_halves', $recipe);
	is("$restored->{code} $restored->{err}", '0 ', 'data only, enforced context: restored, keys first');
	gives($node, q{SELECT count(fieldcrypt.decrypt_field(ssn, 'ssn')) FROM app.patients}, '51', 'data only, enforced context: values', db => 'by_halves');
	refused($node, q{UPDATE app.patients SET ssn = other, other = fieldcrypt.encrypt_field('1234') WHERE id = 100; UPDATE app.patients SET ssn = fieldcrypt.encrypt_field('1234')},
		'KF031', 'data only, enforced context: it is enforced', db => 'by_halves');
	value($node, 'DROP DATABASE by_halves');
	value($node, q{SELECT fieldcrypt.set_column_context('app.patients', 'ssn', constant => 'ssn')}, db => 'app');
}

# NOT VALID: as ever, in every format, with jobs, too.
value($node, <<'SQL', db => 'app');
ALTER TABLE app.patients DROP CONSTRAINT is_digits,
	ADD CONSTRAINT is_digits CHECK (fieldcrypt.decrypt_field(ssn, 'ssn') ~ '^[0-9]+$') NOT VALID, DROP n, ADD n int;
ALTER DOMAIN app.ssn DROP CONSTRAINT opens;
ALTER DOMAIN app.ssn ADD CONSTRAINT opens CHECK (app.digits(VALUE) > 2) NOT VALID;
SQL
($contents, $rows) = (contents($node, 'app'), value($node, $values, db => 'app'));
gives($node, $health, qr/^ok: /, 'NOT VALID: health finds nothing', db => 'app');
dump_database($node, 'app', "$folder/valid.sql");
dump_database($node, 'app', "$folder/valid.directory", '-Fd');
foreach my $way ([ 'valid.sql', '-v', 'ON_ERROR_STOP=1', '-1' ], [ 'valid.directory', '-e', '-1' ], [ 'valid.directory', '-e', '-j', 3 ])
{
	my ($file, @arguments) = @$way;
	create_database($node, 'valid', extension => 0);
	my $restored = restore_database($node, 'valid', "$folder/$file", @arguments);
	is("$restored->{code} $restored->{err}", '0 ', "NOT VALID, $file @arguments: restored");
	is_whole('valid', "NOT VALID, $file @arguments");
}
no_crash($node);
$node->stop;
done_testing();

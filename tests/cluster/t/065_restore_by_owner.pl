# A database is restored by its owner, who is no superuser, after the recipe of docs/operations.md: a superuser makes the
# extension and grants, the owner imports the keys and restores the rest. Or the superuser restores what is the extension's,
# with the log. What the owner lacks is refused.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = new_cluster('source');
my $node = new_cluster('other', extension => 0);
my $folder = PostgreSQL::Test::Utils::tempdir();
my $operations = slurp_file("$ENV{TESTDIR}/docs/operations.md");
my $superuser = getpwuid $<;

sub recipe
{
	my ($name) = @_;
	my ($recipe) = $operations =~ /<!-- tried: \Q$name\E -->\n```\w*\n(.*?)```/s or die "docs/operations.md does not show $name";
	return $recipe;
}

# As a role, for a database: {code, err}.
sub follow
{
	my ($user, $db, $recipe) = @_;
	local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port, PGUSER => $user, PGOPTIONS => '-c client_min_messages=warning');
	my ($out, $err) = ('', '');
	$recipe =~ s/-d restored\b/-d $db/g;
	IPC::Run::run([ 'bash', '-euo', 'pipefail', '-c', "cd '$folder'\n$recipe" ], '<', \'', '>', \$out, '2>', \$err);
	note $out, $err;
	return { code => $? >> 8, err => $err };
}

value($source, 'CREATE ROLE app_owner LOGIN; CREATE ROLE clerk LOGIN; CREATE DATABASE app OWNER app_owner');
value($source, <<'SQL', db => 'app');
CREATE EXTENSION pg_fieldcrypt;
SELECT fieldcrypt.grant_access('app_owner', 'backup', 'encrypt', 'decrypt', 'manage');
SELECT fieldcrypt.grant_access('clerk', 'decrypt');
SQL
value($source, <<'SQL', db => 'app', user => 'app_owner');
CREATE SCHEMA app;
CREATE FUNCTION app.digits(v fieldcrypt.encrypted, id int) RETURNS int LANGUAGE sql IMMUTABLE AS $$
	SELECT length(fieldcrypt.decrypt_field(v, fieldcrypt.context('patients.ssn', id))) $$;
CREATE TABLE app.patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted CONSTRAINT long CHECK (app.digits(ssn, id) > 2),
	n int GENERATED ALWAYS AS (app.digits(ssn, id)) STORED);
-- Names that look like the extension's.
CREATE TABLE app.fieldcrypt (id int);
CREATE TABLE app."fieldcrypt " AS SELECT 1 AS id;
INSERT INTO app.fieldcrypt VALUES (1);
SELECT fieldcrypt.audit_table('app.patients');
SELECT fieldcrypt.set_column_context('app.patients', 'ssn', expression => $$fieldcrypt.context('patients.ssn', id)$$, enforce => true);
INSERT INTO app.patients (id, ssn)
SELECT i, fieldcrypt.encrypt_field((1000 + i)::text, fieldcrypt.context('patients.ssn', i), 'tenant ' || i % 3) FROM generate_series(1, 30) AS i;
CALL fieldcrypt.rotate_keys(force => true);
GRANT USAGE ON SCHEMA app TO clerk;
GRANT SELECT ON app.patients TO clerk;
SQL
my $values = q{SELECT id, n, ssn::bytea, fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id)) FROM app.patients ORDER BY id;
	SELECT * FROM app.fieldcrypt; SELECT * FROM app."fieldcrypt "};
my ($rows, $contents) = (value($source, $values, db => 'app', user => 'app_owner'), contents($source, 'app'));
dump_database($source, 'app', "$folder/dump.custom", '-Fc', '-U', 'app_owner');
open my $export, '>', "$folder/keys.json" or die $!;
print $export value($source, 'SELECT fieldcrypt.export_keys()', db => 'app', user => 'app_owner'), "\n";
close $export or die $!;
$source->stop;

value($node, 'CREATE ROLE app_owner LOGIN; CREATE ROLE clerk LOGIN');
my @owner = (user => 'app_owner');
sub is_restored
{
	my ($db, $name) = @_;
	my @there = (db => $db, @owner);
	same_contents(value($node, $values, @there), $rows, "$name: values, readable by the owner");
	gives($node, q{SELECT tableowner, count(*) FROM pg_tables WHERE schemaname = 'app' GROUP BY 1}, 'app_owner|3', "$name: the owner owns the tables", @there);
	refused($node, q{UPDATE app.patients SET ssn = fieldcrypt.encrypt_field('1234', 'elsewhere') WHERE id = 1}, 'KF002',
		"$name: the generated column opens what is written", @there);
	gives($node, <<'SQL', '5', "$name: it goes on", @there);
UPDATE app.patients SET ssn = fieldcrypt.encrypt_field('54321', fieldcrypt.context('patients.ssn', id), 'tenant 1') WHERE id = 1;
SELECT n FROM app.patients WHERE id = 1;
SQL
	gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'row_updated'}, '1', "$name: and is audited", db => $db);
	gives($node, q{SELECT string_agg(item, ',') FROM fieldcrypt.key_states_status() WHERE NOT ok}, '', "$name: key states are confirmed", db => $db);
	refused($node, 'DROP EXTENSION pg_fieldcrypt CASCADE', '42501', "$name: the extension is not the owner's", @there);
	return;
}

# With the export.
{
	value($node, 'CREATE DATABASE imported OWNER app_owner');
	my $restored = follow('app_owner', 'imported', recipe('owner'));
	isnt($restored->{code}, 0, 'without the superuser: refused');
	value($node, recipe('owner, the superuser\'s part'), db => 'imported');
	$restored = follow('app_owner', 'imported', recipe('owner'));
	is("$restored->{code} $restored->{err}", '0 ', 'by import: restored');
	is_restored('imported', 'by import');
	value($node, <<'SQL', db => 'imported', @owner);
SELECT fieldcrypt.set_column_context('app.patients', 'ssn', expression => $$fieldcrypt.context('patients.ssn', id)$$, enforce => true);
SQL
	gives($node, q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'app.patients'::regclass AND tgname LIKE 'fieldcrypt_context%'}, '2',
		'by import: the context is remembered, and enforced once', db => 'imported');
	gives($node, q{SELECT status FROM fieldcrypt.health() WHERE "check" = 'enforced_contexts'}, 'ok', 'by import: which is well', db => 'imported', @owner);
	value($node, q{SELECT fieldcrypt.grant_access('clerk', 'decrypt')}, db => 'imported');
	gives($node, q{SELECT count(*) FROM app.patients WHERE fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id)) = '1002'}, '1',
		'by import: other roles get their privileges again', db => 'imported', user => 'clerk');
}

# Not without the privilege; not the extension's own data.
{
	value($node, 'CREATE DATABASE bare OWNER app_owner');
	value($node, q{CREATE EXTENSION pg_fieldcrypt; SELECT fieldcrypt.grant_access('app_owner', 'encrypt', 'decrypt')}, db => 'bare');
	my $restored = follow('app_owner', 'bare', recipe('owner'));
	like($restored->{err}, qr/permission denied for function import_keys/, 'without "manage": refused');
	my $whole = restore_database($node, 'bare', "$folder/dump.custom", '-e', '-1', '--no-owner', user => 'app_owner');
	like($whole->{err}, qr/must be owner of extension|permission denied/, 'the whole dump by the owner: refused');
	gives($node, 'SELECT count(*) FROM fieldcrypt.encryption_keys', '0', 'and nothing is there', db => 'bare');
}

# With the log, by the superuser.
{
	value($node, 'CREATE DATABASE whole OWNER app_owner');
	my $restored = follow($superuser, 'whole', recipe('owner, with the log'));
	is("$restored->{code} $restored->{err}", '0 ', 'with the log: the superuser\'s part');
	same_contents(contents($node, 'whole'), $contents, 'with the log: keys and log');
	value($node, q{SELECT fieldcrypt.grant_access('app_owner', 'manage', 'encrypt', 'decrypt')}, db => 'whole');
	$restored = follow('app_owner', 'whole', recipe('owner') =~ s/^psql.*?^SQL\n//msr);
	is("$restored->{code} $restored->{err}", '0 ', 'with the log: the owner\'s part');
	is_restored('whole', 'with the log');
	gives($node, q{SELECT count(*) FROM fieldcrypt.column_contexts}, '1', 'with the log: the context is remembered', db => 'whole');
}
no_crash($node);
$node->stop;
done_testing();

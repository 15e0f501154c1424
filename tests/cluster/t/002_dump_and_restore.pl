# Dumps by a database owner who is no superuser: all keys, the whole audit log, every value as it
# was, and what comes after. And restores that must be refused.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = new_cluster('source');
my $other = new_cluster('other', extension => 0);
my $folder = PostgreSQL::Test::Utils::tempdir();

value($source, <<'SQL');
CREATE ROLE app_owner LOGIN;
CREATE ROLE clerk LOGIN;
CREATE ROLE stranger LOGIN;
CREATE DATABASE app OWNER app_owner;
SQL

# A schema whose name comes before the extension's and one that comes after it: pg_dump goes by name.
value($source, <<'SQL', db => 'app');
CREATE EXTENSION pg_fieldcrypt;
SELECT fieldcrypt.grant_access('app_owner', 'backup', 'encrypt', 'decrypt', 'manage');
SELECT fieldcrypt.grant_access('clerk', 'decrypt');
GRANT CREATE ON SCHEMA public TO app_owner;
GRANT USAGE ON SCHEMA public TO clerk, stranger;
CREATE SCHEMA app AUTHORIZATION app_owner;
SQL
value($source, <<'SQL', db => 'app', user => 'app_owner');
CREATE TABLE public.patients (id int PRIMARY KEY, tenant text, ssn fieldcrypt.encrypted);
CREATE TABLE app.notes (id int PRIMARY KEY, note fieldcrypt.encrypted);
CREATE TABLE app.visits (at date, place fieldcrypt.encrypted) PARTITION BY RANGE (at);
CREATE TABLE app.visits_2020 PARTITION OF app.visits FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE app.visits_rest PARTITION OF app.visits DEFAULT;
SELECT fieldcrypt.audit_table(t) FROM unnest('{public.patients, app.notes, app.visits}'::regclass[]) AS t;
INSERT INTO patients SELECT i, t, fieldcrypt.encrypt_field(format('%s of %s', i, t), 'patients.ssn', t)
  FROM generate_series(1, 40) AS i, LATERAL (SELECT (ARRAY['default', 'acme', 'Zürich', 'with "quotes", \and, ''comma'''])[1 + i % 4] AS t) AS t;
INSERT INTO app.notes VALUES (1, fieldcrypt.encrypt_field(repeat('long ', 5000))), (2, fieldcrypt.encrypt_field('')), (3, NULL);
INSERT INTO app.visits VALUES ('2020-05-05', fieldcrypt.encrypt_field('here')), ('2026-05-05', fieldcrypt.encrypt_field('there'));
CALL fieldcrypt.rotate_keys(reason => 'before the dump', force => true);
UPDATE patients SET ssn = fieldcrypt.encrypt_field(format('%s of %s', id, tenant), 'patients.ssn', tenant) WHERE id > 30;
CALL fieldcrypt.rotate_keys('acme', 'again');
GRANT SELECT ON patients TO clerk, stranger;
SQL

# Other years, the default partition before and after all years; rows as replication would bring them.
my $other_years = <<'SQL';
SET session_replication_role = replica;
INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid, tenant)
SELECT nextval('fieldcrypt_internal.audit_log_id_seq'), make_timestamptz(year, 7, 1, 0, 0, 0, 'UTC'), 'key_created', 'x', 'x', 1, 'of ' || year FROM unnest('{1999, 2025, 2027, 2031, 2055, 2056, 2099}'::int[]) AS year;
SQL
value($source, $other_years, db => 'app');

my $values = <<'SQL';
SELECT 'patient', id, tenant, ssn::bytea, fieldcrypt.decrypt_field(ssn, 'patients.ssn') FROM patients ORDER BY id;
SELECT 'note', id, md5(note::bytea), md5(fieldcrypt.decrypt_field(note)) FROM app.notes ORDER BY id;
SELECT 'visit', tableoid::regclass, at, place::bytea, fieldcrypt.decrypt_field(place) FROM app.visits ORDER BY at;
SQL
my $keys = 'SELECT * FROM fieldcrypt.encryption_keys ORDER BY key_id';
my %source_has = (
	contents => contents($source, 'app'),
	values => value($source, $values, db => 'app'),
	keys => value($source, $keys, db => 'app'));

is(value($source, 'SELECT count(DISTINCT tableoid) FROM fieldcrypt.audit_log', db => 'app'),
	5, 'the log has rows in five partitions: 2026, 2027, 2031, 2055, and the default one');
unlike($source_has{contents}, qr/ of (?:default|acme|Z)|long long/, 'no value in the tables of the extension');

# Without "backup", pg_dump is refused; with it, it reads what a superuser's reads.
foreach my $user ('clerk', 'stranger')
{
	my $err = '';
	IPC::Run::run([ 'pg_dump', '-w', '-U', $user, '-d', $source->connstr('app') ], '>', \my $out, '2>', \$err);
	like($err, qr/permission denied for (?:table|schema|sequence)/, "$user without the privilege can't dump");
}
dump_database($source, 'app', "$folder/owner.sql", '-U', 'app_owner');
dump_database($source, 'app', "$folder/superuser.sql");
# pg_dump's \restrict lines carry a random word.
my ($by_owner, $by_superuser) = map { slurp_file("$folder/$_.sql") =~ s/^\\(?:un)?restrict .*$//mgr } 'owner', 'superuser';
same_contents($by_owner, $by_superuser, 'the owner dumps what a superuser dumps');
unlike(slurp_file("$folder/owner.sql"), qr/ of (?:default|acme|Z)|long long/, 'no value in the dump');

# Roles come with pg_dumpall.
$source->run_log([ 'pg_dumpall', '-w', '--globals-only', '-f', "$folder/globals.sql", '-d', $source->connstr('postgres') ]) or die 'pg_dumpall';
restore_database($other, 'postgres', "$folder/globals.sql");

# What must hold of a database that was restored.
sub is_restored
{
	my ($node, $db, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	same_contents(contents($node, $db), $source_has{contents}, "$name: keys and audit log");
	same_contents(value($node, $values, db => $db), $source_has{values}, "$name: values, byte for byte, and readable");
	goes_on($node, $db, $name);
	# Grants came along, and no others.
	my $read = q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn') FROM patients WHERE id = 1};
	gives($node, $read, '1 of acme', "$name: clerk may decrypt", db => $db, user => 'clerk');
	refused($node, $read, '42501', "$name: stranger may not", db => $db, user => 'stranger');
	refused($node, 'SELECT wrapped_key FROM fieldcrypt.encryption_keys', '42501', "$name: clerk sees no wrapped key", db => $db, user => 'clerk');
	refused($node, q{SELECT fieldcrypt.encrypt_field('x')}, '42501', "$name: clerk may not encrypt", db => $db, user => 'clerk');
	refused($node, $_, 'KF015', "$name: guarded against $_", db => $db)
	  foreach 'UPDATE fieldcrypt.encryption_keys SET version = 9', 'DELETE FROM fieldcrypt.audit_log', 'TRUNCATE fieldcrypt_internal.audit_log_2031';
}

# The next key, the next rotation, the next audited row: no clash.
sub goes_on
{
	my ($node, $db, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $before = value($node, 'SELECT count(*) FROM fieldcrypt.audit_log', db => $db);
	gives($node, <<'SQL', 't', "$name: the next keys and audit rows are written", db => $db);
SET client_min_messages = error;
SELECT fieldcrypt.create_key('new tenant') > 0;
CALL fieldcrypt.rotate_keys('acme', 'after the restore');
CALL fieldcrypt.rotate_keys(force => true);
UPDATE public.patients SET ssn = fieldcrypt.reencrypt_field(ssn, 'patients.ssn') WHERE id = 1;
DELETE FROM app.notes WHERE id = 3;
SQL
	gives($node, <<"SQL", 't|t|t|t', "$name: and recorded, each with an id of its own", db => $db);
SELECT (SELECT count(*) = count(DISTINCT id) AND count(*) > $before FROM fieldcrypt.audit_log),
       EXISTS (SELECT FROM fieldcrypt.audit_log WHERE event = 'row_deleted' AND row_key ->> 'id' = '3'),
       (SELECT max(n) = 1 FROM (SELECT count(*) AS n FROM fieldcrypt.encryption_keys WHERE state = 'active' GROUP BY tenant) AS t),
       fieldcrypt.decrypt_field((SELECT ssn FROM public.patients WHERE id = 1), 'patients.ssn') = '1 of acme'
SQL
	return;
}

# name, file, pg_dump's arguments, restore's arguments
my @formats = (
	[ 'plain', 'plain.sql', [], [ '-v', 'ON_ERROR_STOP=1', '-1' ] ],
	[ 'custom', 'custom', ['-Fc'], [ '-e', '-1' ] ],
	[ 'directory, two jobs', 'directory', [ '-Fd', '-j', 2 ], [ '-e', '-j', 2 ] ],
	[ 'tar', 'tar', ['-Ft'], ['-e'] ],
	[ 'INSERT commands', 'inserts.sql', ['--inserts'], [ '-v', 'ON_ERROR_STOP=1' ] ],
	[ 'INSERT commands, one transaction', 'columns.sql', [ '--column-inserts', '--rows-per-insert=3' ], [ '-v', 'ON_ERROR_STOP=1', '-1' ] ],
	[ 'through the partitioned table', 'root.sql', ['--load-via-partition-root'], [ '-v', 'ON_ERROR_STOP=1' ] ],
);
my $serial = 0;
foreach my $format (@formats)
{
	my ($name, $file, $how_dumped, $how_restored) = @$format;
	dump_database($source, 'app', "$folder/$file", '-U', 'app_owner', @$how_dumped);
	foreach my $node ($source, $other)
	{
		my $where = $name . ', into another ' . ($node == $source ? 'database' : 'cluster');
		my $db = create_database($node, 'restored_' . ++$serial, extension => 0);
		my $result = restore_database($node, $db, "$folder/$file", @$how_restored);
		if (is("$result->{code} $result->{err}", '0 ', "$where: restored"))
		{
			is_restored($node, $db, $where);
		}
		value($node, "DROP DATABASE $db WITH (FORCE)");
	}
}

# The schema first, the data later: the tables have their audit triggers already, which record rows.
dump_database($source, 'app', "$folder/schema.sql", '-U', 'app_owner', '--schema-only');
foreach my $format (
	[ 'data only', 'data.sql', ['-a'], [ '-v', 'ON_ERROR_STOP=1', '-1' ] ],
	[ 'data only, two jobs', 'data', [ '-a', '-Fd', '-j', 2 ], [ '-e', '-j', 2 ] ],
	[ 'data only, triggers disabled', 'quiet.sql', [ '-a', '--disable-triggers' ], [ '-v', 'ON_ERROR_STOP=1', '-1' ] ])
{
	my ($name, $file, $how_dumped, $how_restored) = @$format;
	dump_database($source, 'app', "$folder/$file", '-U', 'app_owner', @$how_dumped);
	my $db = create_database($other, 'restored_' . ++$serial, extension => 0);
	restore_database($other, $db, "$folder/schema.sql", '-v', 'ON_ERROR_STOP=1', '-1')->{code} == 0 or die 'schema';
	my $result = restore_database($other, $db, "$folder/$file", @$how_restored);
	is("$result->{code} $result->{err}", '0 ', "$name: restored");
	same_contents(value($other, $keys, db => $db), $source_has{keys}, "$name: keys");
	my %has = map { $_ => 1 } split /\n/, contents($other, $db);
	my @missing = grep { !$has{$_} } split /\n/, $source_has{contents};
	is("@missing[0 .. ($#missing > 2 ? 2 : $#missing)]", '', "$name: the whole audit log");
	same_contents(value($other, $values, db => $db), $source_has{values}, "$name: values");
	goes_on($other, $db, $name);
}

# One table, without the keys.
dump_database($source, 'app', "$folder/table.sql", '-U', 'app_owner', '-t', 'public.patients');
unlike(slurp_file("$folder/table.sql"), qr/COPY fieldcrypt(?:_internal)?\.|EXTENSION/, 'one table: the dump holds that table alone');
{
	my $db = create_database($source, 'twin', extension => 0);
	restore_database($source, $db, "$folder/plain.sql", '-v', 'ON_ERROR_STOP=1')->{code} == 0 or die 'plain';
	value($source, 'DROP TABLE public.patients', db => $db);
	my $result = restore_database($source, $db, "$folder/table.sql", '-v', 'ON_ERROR_STOP=1', '-1');
	is("$result->{code} $result->{err}", '0 ', 'one table, into a database with its keys: restored');
	same_contents(value($source, $values, db => $db), $source_has{values}, 'one table, into a database with its keys: values');
	goes_on($source, $db, 'one table, into a database with its keys');

	$db = create_database($other, 'keyless');
	$result = restore_database($other, $db, "$folder/table.sql", '-v', 'ON_ERROR_STOP=1', '-1');
	is("$result->{code} $result->{err}", '0 ', 'one table, into a database without its keys: restored');
	refused($other, q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn') FROM patients},
		'KF003', qr/does not exist in this database.*not restored with it/s,
		'one table, into a database without its keys: which says so', db => $db);
	gives($other, q{SELECT count(fieldcrypt.try_decrypt_field(ssn, 'patients.ssn')) FROM patients}, '0',
		'one table, into a database without its keys: nothing readable', db => $db);

	# The keys can be brought later. Without -e, pg_dump 15 crashes on a partition of an extension.
	dump_database($source, 'app', "$folder/keys.sql", '-U', 'app_owner', '-a', '-e', 'pg_fieldcrypt', '-t', 'fieldcrypt.*', '-t', 'fieldcrypt_internal.*');
	$result = restore_database($other, $db, "$folder/keys.sql", '-v', 'ON_ERROR_STOP=1', '-1');
	is("$result->{code} $result->{err}", '0 ', 'the keys alone, into that database: restored');
	gives($other, q{SELECT count(fieldcrypt.decrypt_field(ssn, 'patients.ssn')) FROM patients}, '40',
		'the keys alone, into that database: and everything is readable', db => $db);
}

# A cluster with another master key: refused before any value, nothing harmed.
{
	my $wrong = new_cluster('wrong', extension => 0, keys => [ key_text(2) ]);
	restore_database($wrong, 'postgres', "$folder/globals.sql");
	my $db = create_database($wrong, 'app', extension => 0);
	is(restore_database($wrong, $db, "$folder/plain.sql", '-v', 'ON_ERROR_STOP=1', '-1')->{code}, 0, 'restored under another master key');
	refused($wrong, $_, 'KF010', qr/are wrapped by master key [0-9A-Fa-f]+\.\.\.; loaded: [0-9A-Fa-f]+\.\.\./, "refused under another master key: $_", db => $db)
	  foreach q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn') FROM patients}, q{SELECT fieldcrypt.encrypt_field('x')},
	  q{SELECT fieldcrypt.create_key('new tenant')}, q{CALL fieldcrypt.rotate_keys('acme')},
	  q{SELECT fieldcrypt.try_decrypt_field(ssn, 'patients.ssn') FROM patients};
	same_contents(value($wrong, $keys, db => $db), $source_has{keys}, 'and no key was touched');
	use_key_file($wrong, key_text(2), key_text(1));
	$wrong->reload;
	gives($wrong, q{SELECT count(fieldcrypt.decrypt_field(ssn, 'patients.ssn')) FROM patients}, '40',
		'the right master key beside the other one: readable', db => $db);
	$wrong->stop;
}

# A database that has keys already: refused whole, however the restore goes on after errors. Its log
# has more rows than the dump's, so that the dump's sequence is behind.
my @over = (
	[ 'plain', 'plain.sql', [] ],
	[ 'plain, one transaction', 'plain.sql', ['-1'] ],
	[ 'custom', 'custom', [] ],
	[ 'custom, one transaction', 'custom', [ '-e', '-1' ] ],
	[ 'directory, two jobs', 'directory', [ '-j', 2 ] ],
	[ 'data only', 'data.sql', [] ],
	[ 'INSERT commands', 'inserts.sql', [] ],
	[ 'through the partitioned table', 'root.sql', [] ],
	[ 'the keys alone', 'keys.sql', [] ],
);
foreach my $case (@over)
{
	my ($name, $file, $how_restored) = @$case;
	my $db = create_database($other, 'busy_' . ++$serial);
	value($other, <<'SQL', db => $db);
SET client_min_messages = error;
CREATE TABLE mine (id int PRIMARY KEY, value fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('mine');
INSERT INTO mine SELECT i, fieldcrypt.encrypt_field('mine', tenant => (ARRAY['default', 'acme'])[1 + i % 2]) FROM generate_series(1, 600) AS i;
DELETE FROM mine WHERE id > 6;
CALL fieldcrypt.rotate_keys(force => true);
SQL
	my $before = contents($other, $db);
	my $result = restore_database($other, $db, "$folder/$file", @$how_restored);
	$other->poll_query_until('postgres', 'SELECT true') or die 'the server does not come back';
	like($result->{err}, qr/this database already has rows in fieldcrypt(?:_internal)?\.\w+: nothing is restored over them/, "over existing keys, $name: refused, and why");
	my $states = join ' ', sort { $a cmp $b } grep { !/^(?:42P06|42710|42P07|25P02|KF016)$/ } @{ $result->{sqlstates} };
	$states =~ s/\b(?:42P01|42704|23505|3F000) ?//g;
	is($states, '', "over existing keys, $name: no other error of the extension's");
	same_contents(contents($other, $db), $before, "over existing keys, $name: keys and log are what they were");
	gives($other, <<'SQL', '6', "over existing keys, $name: values readable, the next key, rotation and audit row written", db => $db);
SET client_min_messages = error;
DO $$ BEGIN PERFORM fieldcrypt.create_key('another') FROM generate_series(1, 30); END $$;
CALL fieldcrypt.rotate_keys(force => true);
INSERT INTO mine SELECT i, fieldcrypt.encrypt_field('mine') FROM generate_series(7, 70) AS i;
DELETE FROM mine WHERE id > 6;
SELECT count(*) FROM mine WHERE fieldcrypt.decrypt_field(value) = 'mine';
SQL
	value($other, "DROP DATABASE $db WITH (FORCE)");
}

no_crash($_) foreach $source, $other;
$_->stop foreach $source, $other;
done_testing();

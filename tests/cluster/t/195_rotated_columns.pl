# Protected columns over the life of their keys: rotated, compromised, suspended, destroyed, exported, erased with a tenant. What
# is bound stays bound, what is loose keeps its key alive, and verify_values and health say what does not hold.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nautovacuum = off\nfieldcrypt.require_approval = ''\n");
value($node, <<'SQL');
CREATE ROLE manager LOGIN; SELECT fieldcrypt.grant_access('manager', 'manage');
CREATE ROLE app LOGIN; SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt');
CREATE TABLE people (id bigint PRIMARY KEY, name text, ssn fieldcrypt.encrypted_text);
CREATE TABLE rooms (hotel text, number int, guest fieldcrypt.encrypted_text, PRIMARY KEY (hotel, number));
SELECT fieldcrypt.protect_column('people', 'ssn'), fieldcrypt.protect_column('rooms', 'guest', tenant => 'hotel');
CREATE TABLE undeclared (id bigint PRIMARY KEY, note fieldcrypt.encrypted_text);
CREATE TABLE fields (id bigint PRIMARY KEY, value fieldcrypt.encrypted);
INSERT INTO people SELECT i, 'name ' || i, 'ssn-' || i FROM generate_series(1, 200) AS i;
INSERT INTO rooms SELECT 'hotel ' || i % 3, i, 'guest-' || i FROM generate_series(1, 30) AS i;
INSERT INTO undeclared SELECT i, 'note-' || i FROM generate_series(1, 20) AS i;
INSERT INTO fields SELECT id, note FROM undeclared;
GRANT ALL ON people, rooms, undeclared, fields TO app;
SQL
sub key_of { my ($where) = @_; return value($node, "SELECT key_id FROM fieldcrypt.encryption_keys WHERE $where"); }
my $people = q{SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.people.ssn', id)) = 'ssn-' || id) FROM people};
my $rooms = q{SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(guest,
	fieldcrypt.context('public.rooms.guest', hotel, hotel, number)) = 'guest-' || number) FROM rooms};
my $loose = q{SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(note) = 'note-' || id) FROM undeclared;
	SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(value) = 'note-' || id) FROM fields};
sub all_open
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return gives($node, "$people; $rooms; $loose", "200\n30\n20\n20", "$name: everything opens where it is");
}
sub health
{
	my ($thorough) = @_;
	return value($node, q{SELECT status || ': ' || detail FROM fieldcrypt.health(} . ($thorough ? 'true' : '') . q{) WHERE "check" = 'protected_columns'});
}
all_open('written');

# The key of loose values is used, and where.
my $usage = q{SELECT table_name, column_name, "values" FROM fieldcrypt.key_usage(exact => true) WHERE tenant = 'loose values' AND "values" > 0 ORDER BY 1};
gives($node, $usage, "public.fields|value|20\npublic.undeclared|note|20", 'key_usage counts loose values, in columns of type encrypted, too');
like(health(), qr/^warning: column "public\.undeclared\.note": not protected/, 'health names the undeclared column');
like(health(1), qr/2 columns: "public\.fields\.value", "public\.undeclared\.note": with values that are bound to no row/,
	'and, thorough, those with loose values');

# Rotation and re-encryption: without a context, with the same places.
my $places = 'SELECT md5(string_agg(encode(substr(ssn::bytea, 27, 17), $$hex$$), $$$$ ORDER BY id)) FROM people';
my $before = value($node, $places);
my $old_loose = key_of("purpose = 'loose' AND state = 'active'");
my $old = key_of("tenant = 'default' AND state = 'active'");
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
gives($node, q{SELECT count(*), count(*) FILTER (WHERE state = 'deactivated') FROM fieldcrypt.encryption_keys WHERE purpose IN ('field', 'loose')}, '10|5',
	'all keys are rotated');
all_open('rotated');
my $moved = run_sql($node, 'CALL fieldcrypt.reencrypt(rows_per_second => 0)');
unlike($moved->{err}, qr/WARNING|ERROR/, 're-encrypted without a context and without a warning') or diag $moved->{err};
gives($node, 'SELECT table_name, rows_moved, rows_failed FROM fieldcrypt.reencryption_progress ORDER BY 1',
	"public.fields|20|0\npublic.people|200|0\npublic.rooms|30|0\npublic.undeclared|20|0", 'every value is moved');
gives($node, q{SELECT count(*) FROM fieldcrypt.key_usage(exact => true) WHERE state <> 'active' AND "values" > 0}, '0', 'and is on an active key');
all_open('re-encrypted');
gives($node, $places, $before, 'place, salt and form are the same');
gives($node, q{SELECT count(*) FROM undeclared WHERE NOT fieldcrypt_internal.is_loose(note)}, '0', 'what was loose is loose');
like(run_sql($node, 'CALL fieldcrypt.reencrypt(rows_per_second => 0)')->{err}, qr/^(?!.*(?:WARNING|ERROR))/s, 'once more: nothing to do');

# Whoever has no right to a plaintext writes none of it; the row's other columns are everybody's.
sub verified
{
	my ($table, $seen, $failed, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $result = run_sql($node, "CALL fieldcrypt.verify_values('$table')");
	is("@{ $result->{sqlstates} }", '', "$name: verified") or diag $result->{err};
	return gives($node, "SELECT state, values_seen, values_failed FROM fieldcrypt.value_verifications WHERE table_name = 'public.$table'", "done|$seen|$failed",
		"  $seen seen, $failed fail");
}
verified('people', 200, 0, 'protected columns need no context');
verified('rooms', 30, 0, 'one with a tenant column');
refused($node, "CALL fieldcrypt.verify_values('undeclared')", '22023', qr/HINT:.*protect_column/, 'an undeclared column has nothing to be verified by');
gives($node, q{SELECT status FROM fieldcrypt.health(true) WHERE "check" = 'stored_values'}, 'ok', 'the sample of health opens');
# Under the constraint and past the trigger, as damage of a file is: bodies, places, keys, other tables.
value($node, <<'SQL');
SET session_replication_role = replica;
ALTER TABLE people DROP CONSTRAINT ssn_is_protected;
UPDATE people SET ssn = set_byte(ssn::bytea, 50, get_byte(ssn::bytea, 50) # 1)::fieldcrypt.encrypted WHERE id = 1;
UPDATE people SET ssn = (SELECT o.ssn FROM people AS o WHERE o.id = 3) WHERE id = 2;
UPDATE people SET ssn = fieldcrypt.encrypt_field('x', fieldcrypt.context('public.people.ssn', 4)) WHERE id = 4;
UPDATE people SET ssn = 'loose' WHERE id = 5;
UPDATE people SET ssn = (SELECT guest FROM rooms WHERE number = 6) WHERE id = 6;
UPDATE people SET ssn = set_byte(ssn::bytea, 26, 4)::fieldcrypt.encrypted WHERE id = 7;
UPDATE people SET ssn = NULL WHERE id = 8;
ALTER TABLE people ADD CONSTRAINT ssn_is_protected CHECK (fieldcrypt.is_protected(ssn, 'public.people.ssn', 'text', 'session', '', id)) NOT VALID;
SQL
verified('people', 199, 6, 'damaged and foreign values');
gives($node, q{SELECT row_key ->> 'id', error_code FROM fieldcrypt.value_failures WHERE table_name = 'public.people' ORDER BY (row_key ->> 'id')::int},
	"1|KF002\n2|KF037\n4|KF037\n5|KF037\n6|KF037\n7|KF037", 'each is listed by its row, and why');
gives($node, q{SELECT count(*) FROM fieldcrypt.value_failures AS f WHERE f::text ~ '(ssn|guest)-'}, '0', 'without values');
gives($node, q{SELECT status FROM fieldcrypt.health() WHERE "check" = 'stored_values'}, 'critical', 'health says so');
like(health(), qr/column "public\.people\.ssn": declared by a constraint that is not valid/, 'and that the constraint is not valid');
like(run_sql($node, q{SELECT fieldcrypt.protect_column('people', 'ssn')})->{err}, qr/ERROR:  (?:KF037|42P17|KF002|KF003)/,
	'protect_column does not believe it before it holds');
value($node, "UPDATE people SET ssn = 'ssn-' || id WHERE id < 9; SELECT fieldcrypt.protect_column('people', 'ssn')");
unlike(health(), qr/not valid/, 'mended, it does');
verified('people', 200, 0, 'mended');
all_open('mended');

# Without the trigger, without the constraint, with a trigger behind ours.
foreach my $break (
	[ 'a disabled trigger', 'ALTER TABLE people DISABLE TRIGGER "~fieldcrypt_bind_values"', 'ALTER TABLE people ENABLE TRIGGER "~fieldcrypt_bind_values"',
		qr/"public\.people\.ssn": without the trigger/ ],
	[ 'a trigger for replicas alone', 'ALTER TABLE people ENABLE REPLICA TRIGGER "~fieldcrypt_bind_values"',
		'ALTER TABLE people ENABLE TRIGGER "~fieldcrypt_bind_values"', qr/"public\.people\.ssn": without the trigger/ ],
	[ 'a dropped trigger', 'DROP TRIGGER "~fieldcrypt_bind_values" ON people', q{SELECT fieldcrypt.protect_column('people', 'ssn')},
		qr/"public\.people\.ssn": without the trigger/ ],
	[ 'a trigger for one column', 'DROP TRIGGER "~fieldcrypt_bind_values" ON people;
		CREATE TRIGGER "~fieldcrypt_bind_values" BEFORE INSERT OR UPDATE OF name ON people FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.bind_values()',
		q{DROP TRIGGER "~fieldcrypt_bind_values" ON people; SELECT fieldcrypt.protect_column('people', 'ssn')}, qr/"public\.people\.ssn": without the trigger/ ],
	[ 'a trigger behind', 'CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
		CREATE TRIGGER "~z" BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION f()',
		'ALTER TRIGGER "~z" ON people RENAME TO "Zz"', qr/"public\.people\.ssn": with a trigger behind/ ],
	[ 'a dropped constraint', 'ALTER TABLE people DROP CONSTRAINT ssn_is_protected', q{SELECT fieldcrypt.protect_column('people', 'ssn')},
		qr/"public\.people\.ssn", "public\.undeclared\.note": not protected/ ],
	[ 'another key', q{ALTER TABLE people RENAME id TO old; ALTER TABLE people ADD id bigint; UPDATE people SET id = old; SELECT fieldcrypt.unprotect_column('people', 'ssn');
		ALTER TABLE people DROP old},
		q{ALTER TABLE people ADD PRIMARY KEY (id); SELECT fieldcrypt.protect_column('people', 'ssn')},
			qr/"public\.people\.ssn", "public\.undeclared\.note": not protected/ ],
	[ 'a table that inherits', 'CREATE TABLE heir () INHERITS (people); ALTER TABLE heir ADD PRIMARY KEY (id)', 'DROP TABLE heir',
		qr/"public\.heir\.ssn": without the trigger/ ],
	[ 'an array', 'CREATE TABLE arrays (a fieldcrypt.encrypted_text[])', 'DROP TABLE arrays', qr/"public\.arrays\.a", "public\.undeclared\.note": not protected/ ],
	[ 'a domain', 'CREATE DOMAIN secret AS fieldcrypt.encrypted_text; CREATE TABLE domains (d secret)', 'DROP TABLE domains; DROP DOMAIN secret',
		qr/"public\.domains\.d", "public\.undeclared\.note": not protected/ ],
	[ 'a partition that is detached', q{CREATE TABLE parts (id int, ssn fieldcrypt.encrypted_text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM (1) TO (10); SELECT fieldcrypt.protect_column('parts',
	'ssn'); ALTER TABLE parts DETACH PARTITION part_1},
		'DROP TABLE part_1, parts', qr/"public\.part_1\.ssn": without the trigger/ ])
{
	my ($name, $sql, $mend, $like) = @$break;
	value($node, $sql);
	like(health(), $like, "health: $name");
	value($node, $mend);
	is(health(), 'warning: column "public.undeclared.note": not protected, so that what is written there is bound to no row', '  mended');
}
all_open('after all of that');

# A compromised key is replaced at once, for both kinds; what is on it is moved.
my $compromised = key_of("tenant = 'default' AND state = 'active'");
value($node, "SELECT fieldcrypt.mark_compromised($compromised, 'a test')");
all_open('a compromised key');
gives($node, "UPDATE people SET ssn = 'ssn-1' WHERE id = 1; SELECT fieldcrypt.key_id(ssn) = $compromised FROM people WHERE id = 1", 't',
	'the same plaintext keeps its bytes, whatever its key');
gives($node, "UPDATE people SET ssn = 'ssn-x' WHERE id = 1; UPDATE people SET ssn = 'ssn-1' WHERE id = 1;
	SELECT fieldcrypt.key_id(ssn) = $compromised FROM people WHERE id = 1", 'f', 'another one is under the new key');
my $compromised_loose = key_of("purpose = 'loose' AND state = 'active'");
value($node, "SELECT fieldcrypt.mark_compromised($compromised_loose, 'a test')");
isnt(key_of("purpose = 'loose' AND state = 'active'"), '', 'a compromised key of loose values is replaced');
all_open('a compromised key of loose values');
value($node, 'CALL fieldcrypt.reencrypt(rows_per_second => 0)');
gives($node, qq{SELECT count(*) FROM fieldcrypt.key_usage(exact => true) WHERE key_id IN ($compromised, $compromised_loose) AND "values" > 0}, '0',
	'both are empty after a re-encryption');
all_open('moved off them');

# Suspended: what needs the key waits, the rest goes on.
my $active = key_of("tenant = 'default' AND state = 'active'");
value($node, "SELECT fieldcrypt.suspend_key($active, 'a test')");
refused($node, "UPDATE people SET ssn = 'new' WHERE id = 1", 'KF007', 'a suspended key: no plaintext is written');
refused($node, 'UPDATE people SET id = 1000 WHERE id = 1', 'KF004', 'nor a row moved with its value');
gives($node, "UPDATE people SET name = 'other' WHERE id = 1 RETURNING name", 'other', 'other columns are');
gives($node, "UPDATE people SET ssn = ssn WHERE id = 1 RETURNING id", '1', 'and the value as it is');
gives($node, "UPDATE people SET ssn = NULL WHERE id = 200 RETURNING id", '200', 'or NULL');
gives($node, "UPDATE rooms SET guest = 'guest-' || number WHERE number = 1 RETURNING number", '1', 'another tenant goes on');
verified('people', 199, 199, 'verify_values says of each');
value($node, "SELECT fieldcrypt.resume_key($active, 'a test'); UPDATE people SET ssn = 'ssn-200' WHERE id = 200");
my $active_loose = key_of("purpose = 'loose' AND state = 'active'");
value($node, "SELECT fieldcrypt.suspend_key($active_loose, 'a test')");
my $suspended = run_sql($node, "UPDATE people SET ssn = 'new' WHERE id = 1");
like("@{ $suspended->{sqlstates} }", qr/^KF007$/, 'a suspended key of loose values: no plaintext comes in') or diag $suspended->{err};
like($suspended->{err}, qr/HINT/, '  with a hint');
unlike($suspended->{err}, qr/create_loose_key/, '  which does not lead to a call that refuses');
gives($node, "$people; UPDATE people SET name = 'x' WHERE id = 1; UPDATE people SET id = 1000 WHERE id = 1; UPDATE people SET id = 1 WHERE id = 1000", '200',
	'bound values are read, kept and moved');
value($node, "SELECT fieldcrypt.resume_key($active_loose, 'a test')");
all_open('resumed');

# A key of loose values is not destroyed while one is anywhere.
value($node, "CALL fieldcrypt.rotate_keys('loose values')");
sub destroyed
{
	my ($key) = @_;
	my $scheduled = run_sql($node, "CALL fieldcrypt.destroy_key($key)", user => 'manager');
	past_the_guard($node, "UPDATE fieldcrypt.encryption_keys SET destroy_scheduled_at = clock_timestamp() - interval '10 days',
		destroy_after = clock_timestamp() - interval '1 second' WHERE key_id = $key AND destroy_after IS NOT NULL");
	my $result = run_sql($node, 'CALL fieldcrypt.destroy_due_keys()', user => 'manager');
	return "$scheduled->{err}$result->{err}";
}
like(destroyed($active_loose), qr/20 value\(s\) in public\.fields\.value, 20 value\(s\) in public\.undeclared\.note/,
	'a key of loose values is used by both kinds of columns');
is(value($node, "SELECT state FROM fieldcrypt.encryption_keys WHERE key_id = $active_loose"), 'deactivated', '  and is there still');
value($node, "DELETE FROM undeclared");
like(destroyed($active_loose), qr/20 value\(s\) in public\.fields\.value/, 'also by one of them');
value($node, 'INSERT INTO undeclared SELECT id, value FROM fields; CALL fieldcrypt.reencrypt(rows_per_second => 0)');
like(destroyed($active_loose), qr/destroy_due_keys: 1 destroyed/, 'not used any more it is destroyed');
all_open('destroyed');
# Literals were sealed when they were written: in a DEFAULT, a view, a function; or in a statement that a session has prepared.
value($node, <<'SQL');
CREATE TABLE defaults (id int PRIMARY KEY, v fieldcrypt.encrypted_text DEFAULT 'literal', w fieldcrypt.encrypted_text DEFAULT ('when it runs'::text));
SELECT fieldcrypt.protect_column('defaults', 'v'), fieldcrypt.protect_column('defaults', 'w');
CREATE VIEW literal AS SELECT 'literal'::fieldcrypt.encrypted_text AS v, ssn FROM people;
CREATE FUNCTION literal() RETURNS fieldcrypt.encrypted_text BEGIN ATOMIC SELECT 'literal'::fieldcrypt.encrypted_text; END;
CREATE VIEW innocent AS SELECT ssn, NULL::fieldcrypt.encrypted_text AS n, '''fc1:x''::fieldcrypt.encrypted_text'::text AS t FROM people;
SQL
my $of_literals = key_of("purpose = 'loose' AND state = 'active'");
like(health(), qr/3 expressions: .*default value for column v of table .*literal that other sessions can't use/, 'health names literals');
gives($node, qq{SELECT string_agg(table_name, '; ' ORDER BY table_name COLLATE "C") FROM fieldcrypt.key_usage()
	WHERE key_id = $of_literals AND column_name IS NULL}, qr/^default value .*; function .*literal\(\); rule .*literal$/, 'key_usage counts them');
my $session = session($node, user => 'app');
$session->value(q{PREPARE p AS INSERT INTO people (id, name, ssn) VALUES (5000, 'n', 'prepared')});
value($node, "CALL fieldcrypt.rotate_keys('loose values')");
value($node, 'CALL fieldcrypt.reencrypt(rows_per_second => 0)');
like(destroyed($of_literals), qr/1 value\(s\) in default value for column v.*1 value\(s\) in function.*1 value\(s\) in rule/, 'their key is not destroyed');
value($node, q{ALTER TABLE defaults ALTER v SET DEFAULT ('literal'::text); DROP VIEW literal, innocent; DROP FUNCTION literal()});
unlike(health(), qr/literal/, 'mended');
value($node, "CALL fieldcrypt.destroy_key($of_literals)");
past_the_guard($node, "UPDATE fieldcrypt.encryption_keys SET destroy_after = clock_timestamp() - interval '1 second' WHERE key_id = $of_literals");
like(run_sql($node, 'CALL fieldcrypt.destroy_due_keys()')->{err}, qr/sessions from before its schedule are running: process \d+ of app.*0 destroyed/s,
	'nor while a session is there that may have prepared a statement');
$session->gives('EXECUTE p; SELECT count(*) FROM people WHERE id = 5000', '1', '  which has');
$session->close;
value($node, 'DELETE FROM people WHERE id = 5000');
past_the_guard($node, "UPDATE fieldcrypt.encryption_keys SET destroy_scheduled_at = clock_timestamp() - interval '10 days' WHERE key_id = $of_literals");
ok(eventually($node, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'", '0'), 'that session ends');
like(run_sql($node, 'CALL fieldcrypt.destroy_due_keys()')->{err}, qr/1 destroyed/, '  and its key with it');
all_open('without old literals');
like(destroyed($compromised), qr/1 destroyed/, 'an old key of bound values, too');
all_open('both destroyed');

# retire_keys schedules what is unused of both kinds, and nothing that is used.
value($node, "CALL fieldcrypt.rotate_keys('loose values')");
gives($node, q{SELECT outcome, detail FROM fieldcrypt.retire_keys(1, 'loose values') WHERE outcome <> 'scheduled'},
	qr/^kept\|.*in public\.fields\.value.*in public\.undeclared\.note/,
	'retire_keys keeps the key of loose values that is used');
value($node, 'CALL fieldcrypt.reencrypt(rows_per_second => 0)');
gives($node, q{SELECT count(*) FILTER (WHERE outcome = 'scheduled') > 0, count(*) FILTER (WHERE outcome = 'kept') FROM fieldcrypt.retire_keys(1)}, 't|0',
	'  until it is not');
all_open('retired');

# Keys elsewhere: an export has those of loose values, and what they are for.
my $document = value($node, 'SELECT fieldcrypt.export_keys()');
create_database($node, 'elsewhere');
(my $quoted = $document) =~ s/'/''/g;
value($node, "SELECT * FROM fieldcrypt.import_keys('$quoted')", db => 'elsewhere');
gives($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE purpose = 'loose' AND state = 'active'}, '1', 'imported: one active key of loose values',
	db => 'elsewhere');
my $rows = value($node, q{SELECT string_agg(format('(%s, %L)', id, fieldcrypt.ciphertext_text(ssn)), ', ') FROM people WHERE id < 10});
value($node, "CREATE TABLE people (id bigint PRIMARY KEY, ssn fieldcrypt.encrypted_text); SELECT fieldcrypt.protect_column('people', 'ssn');
	INSERT INTO people VALUES $rows, (10, 'ssn-10')", db => 'elsewhere');
gives($node, $people, '10', 'values open there, and plaintext comes in', db => 'elsewhere');
refused($node, 'UPDATE people SET ssn = (SELECT ssn FROM people WHERE id = 1) WHERE id = 2', 'KF037', 'each in its row', db => 'elsewhere');

# A tenant that is erased, row by its row.
value($node, q{CALL fieldcrypt.shred_tenant('hotel 1', 'right to erasure')});
refused($node, q{SELECT fieldcrypt.decrypt_field(guest, fieldcrypt.context('public.rooms.guest', hotel, hotel, number)) FROM rooms WHERE hotel = 'hotel 1'},
	'KF005', 'an erased tenant');
gives($node, "$rooms WHERE hotel <> 'hotel 1'", '20', '  and nobody else');
refused($node, q{INSERT INTO rooms VALUES ('hotel 1', 100, 'new')}, 'KF007', '  has no new values');
gives($node, q{UPDATE rooms SET hotel = hotel WHERE hotel = 'hotel 1'; DELETE FROM rooms WHERE hotel = 'hotel 1' RETURNING 1}, "1\n1\n1\n1\n1\n1\n1\n1\n1\n1",
	'  its rows are written and deleted');
refused($node, q{UPDATE rooms SET hotel = 'hotel 1' WHERE number = 2}, 'KF007', '  and no row moves to it');
no_crash($node);
# What knows its place is given no context.
refused($node, q{SELECT fieldcrypt.set_column_context('people', 'ssn', constant => 'x')}, '42P17', qr/takes plaintext/, 'no context for a protected column');

done_testing();

# A decrypted view is a table to an application: what it writes arrives encrypted, what it reads is plaintext, and who may do
# neither on the table may do neither here.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary');
value($node, <<'SQL');
CREATE ROLE app LOGIN; CREATE ROLE writer LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE stranger LOGIN;
GRANT CREATE, USAGE ON SCHEMA public TO app;
SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt'), fieldcrypt.grant_access('writer', 'encrypt'), fieldcrypt.grant_access('reader', 'decrypt');
SQL
my @app = (user => 'app');
value($node, <<'SQL', @app);
CREATE TABLE people (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL DEFAULT 'nobody', ssn fieldcrypt.encrypted_text,
    born fieldcrypt.encrypted_text DEFAULT DATE '2000-01-01', notes fieldcrypt.encrypted_text, at timestamptz NOT NULL DEFAULT now(),
    visits integer DEFAULT 0, upper_name text GENERATED ALWAYS AS (upper(name)) STORED, extra json);
SELECT fieldcrypt.protect_column('people', 'ssn'), fieldcrypt.protect_column('people', 'born', plaintext => 'date'),
       fieldcrypt.protect_column('people', 'notes', plaintext => 'jsonb');
SELECT fieldcrypt.create_decrypted_view('people');
SQL

# An application's whole life on it.
gives($node, q{INSERT INTO decrypted_people (name, ssn, born, notes) VALUES ('Ada', '1-1', '2001-02-03', '{"a": 1}'), ('Bob', NULL, DEFAULT, NULL)
	RETURNING id, name, ssn, born, notes, at IS NOT NULL, visits, upper_name},
	qq(1|Ada|1-1|2001-02-03|{"a": 1}|t|0|ADA\n2|Bob||2000-01-01||t|0|BOB), 'what was left out has its default, what the table makes comes back', @app);
gives($node, 'SELECT pg_typeof(ssn), pg_typeof(born), pg_typeof(notes) FROM decrypted_people LIMIT 1', 'text|date|jsonb', 'plaintexts have their types', @app);
gives($node, q{SELECT bool_and(fieldcrypt.ciphertext_text(ssn) LIKE 'fc1:%') FROM people WHERE id = 1}, 't', 'and the table has ciphertext', @app);
my $before = value($node, 'SELECT fieldcrypt.ciphertext_text(ssn) FROM people WHERE id = 1', @app);
gives($node, q{UPDATE decrypted_people SET name = 'Ada L.', visits = visits + 1 WHERE ssn = '1-1' RETURNING upper_name, visits, ssn}, 'ADA L.|1|1-1',
	'UPDATE of other columns', @app);
is(value($node, 'SELECT fieldcrypt.ciphertext_text(ssn) FROM people WHERE id = 1', @app), $before, 'leaves the value as it was, byte by byte');
gives($node, q{UPDATE decrypted_people SET ssn = '2-2', notes = notes || '{"b": 2}', extra = '{}' WHERE id = 1 RETURNING ssn, notes}, '2-2|{"a": 1, "b": 2}',
	'UPDATE of what is encrypted', @app);
gives($node, q{UPDATE decrypted_people SET extra = '{"x": 1}', ssn = ssn WHERE id = 1 RETURNING extra}, '{"x": 1}', 'of a type without an =', @app);
gives($node, q{UPDATE decrypted_people SET ssn = NULL WHERE id = 1 RETURNING ssn IS NULL}, 't', 'to NULL', @app);
gives($node, 'DELETE FROM decrypted_people WHERE name = \'Bob\' RETURNING id, born', '2|2000-01-01', 'DELETE', @app);
my $copy = run_sql($node, "COPY decrypted_people (name, ssn) FROM stdin;\nC\t3-3\nD\t4-4\n\\.\n", @app);
is($copy->{err}, '', 'COPY into it');
gives($node, 'SELECT count(*), count(ssn) FROM decrypted_people', '3|2', 'all are there', @app);
gives($node, 'COPY (SELECT name, ssn FROM decrypted_people ORDER BY id) TO stdout', "Ada L.\t\\N\nC\t3-3\nD\t4-4", 'and out of it', @app);
gives($node, 'INSERT INTO decrypted_people DEFAULT VALUES RETURNING name, born', 'nobody|2000-01-01', 'nothing but defaults', @app);
# An explicit NULL is one, where the column takes it; where it does not, it is refused as by the table.
gives($node, q{INSERT INTO decrypted_people (name, visits, born) VALUES ('E', NULL, NULL) RETURNING visits IS NULL, born IS NULL}, 't|t', 'NULL is not the default', @app);
gives($node, q{SELECT born IS NULL FROM decrypted_people WHERE name = 'E'}, 't', 'nor of what is encrypted', @app);
refused($node, q{INSERT INTO decrypted_people (name) VALUES (NULL)}, '23502', 'nor NOT NULL', @app);
refused($node, q{INSERT INTO decrypted_people (id, name) VALUES (99, 'x')}, '428C9', 'the identity is the table\'s', @app);
refused($node, q{UPDATE decrypted_people SET id = 99 WHERE id = 1}, '428C9', 'and stays', @app);
gives($node, q{UPDATE decrypted_people SET upper_name = 'x' WHERE id = 1 RETURNING upper_name}, 'ADA L.', 'what is generated stays so', @app);
refused($node, q{INSERT INTO decrypted_people (born) VALUES ('yesterday-ish')}, '22007', 'a value that is no date', @app);

# Triggers of the table see an UPDATE that changes nothing, too.
value($node, <<'SQL', @app);
CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.at := 'epoch'; RETURN NEW; END $$;
CREATE TRIGGER touched BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION touched();
SQL
gives($node, q{UPDATE decrypted_people SET name = name WHERE id = 1 RETURNING extract(epoch FROM at)::integer}, '0', 'an UPDATE that changes nothing is one', @app);
value($node, 'DROP TRIGGER touched ON people', @app);

# Two at once. A table's UPDATE waits and is computed anew; a view's can't be, and says so instead of undoing what the other did.
my ($one, $two) = (session($node, @app), session($node, @app));
my $process = $two->server_process;
sub is_waiting { return eventually($node, "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $process", 't') }
$one->value('BEGIN');
$one->value('UPDATE decrypted_people SET visits = visits + 1 WHERE id = 1');
$two->send('UPDATE decrypted_people SET visits = visits + 1 WHERE id = 1');
is_waiting($two);
$one->value('COMMIT');
$two->refused('SELECT 1', '40001', qr/another transaction has changed the row/, 'two that count up: the second is told');
gives($node, 'SELECT visits FROM decrypted_people WHERE id = 1', '2', 'and nothing is lost', @app);
$one->value(q{BEGIN; UPDATE decrypted_people SET ssn = 'first' WHERE id = 1});
$two->send(q{UPDATE decrypted_people SET name = 'second' WHERE id = 1});
is_waiting($two);
$one->value('COMMIT');
$two->refused('SELECT 1', '40001', 'two that change different columns: what chose the row may be another now');
gives($node, 'SELECT ssn, name FROM decrypted_people WHERE id = 1', 'first|Ada L.', 'and nothing was done', @app);
$one->value(q{BEGIN; UPDATE people SET name = 'kept' WHERE id = 1});
$two->send(q{DELETE FROM decrypted_people WHERE name = 'Ada L.'});
is_waiting($two);
$one->value('COMMIT');
$two->refused('SELECT 1', '40001', 'a row that is chosen by what it was is not deleted');
gives($node, 'SELECT name FROM decrypted_people WHERE id = 1', 'kept', 'and is there', @app);
$one->value(q{BEGIN; UPDATE decrypted_people SET ssn = 'third' WHERE id = 1});
$two->send(q{UPDATE decrypted_people SET ssn = ssn || '!' WHERE id = 1});
is_waiting($two);
$one->value('COMMIT');
$two->refused('SELECT 1', '40001', 'and of what is encrypted');
$one->value('BEGIN; DELETE FROM decrypted_people WHERE id = 1');
$two->send(q{UPDATE decrypted_people SET name = 'gone' WHERE id = 1 RETURNING 1});
is_waiting($two);
$one->value('COMMIT');
$two->gives(q{SELECT 'done'}, 'done', 'a row that is gone is not updated');
$_->close foreach $one, $two;

# Nothing is changed, and nothing has changed: no error for ever.
value($node, <<'SQL', @app);
CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER never BEFORE UPDATE OR DELETE ON people FOR EACH ROW EXECUTE FUNCTION never();
SQL
gives($node, q{UPDATE decrypted_people SET name = 'x' RETURNING 1}, '', 'a trigger that lets no row pass: 0 rows, as of the table', @app);
gives($node, q{DELETE FROM decrypted_people RETURNING 1}, '', 'nor is any deleted', @app);
value($node, 'DROP TRIGGER never ON people', @app);

# Triggers by hand, and views of others.
value($node, 'CREATE TABLE by_hand (id integer PRIMARY KEY)', @app);
foreach my $when ('BEFORE INSERT ON by_hand FOR EACH ROW', 'AFTER INSERT ON by_hand FOR EACH ROW', 'BEFORE INSERT ON by_hand FOR EACH STATEMENT')
{
	value($node, "CREATE TRIGGER hand $when EXECUTE FUNCTION fieldcrypt.write_decrypted_view()", @app);
	refused($node, 'INSERT INTO by_hand VALUES (1)', '39P01', qr/create_decrypted_view makes only/, "a trigger $when", @app);
	value($node, 'DROP TRIGGER hand ON by_hand', @app);
}
value($node, 'CREATE TRIGGER hand BEFORE INSERT ON decrypted_people FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt.write_decrypted_view()', @app);
refused($node, q{INSERT INTO decrypted_people (name) VALUES ('x')}, '39P01', 'a trigger of the statement', @app);
value($node, 'DROP TRIGGER hand ON decrypted_people', @app);
value($node, 'GRANT CREATE ON SCHEMA public TO writer');
value($node, q{CREATE VIEW trap AS SELECT 1 AS id; CREATE TRIGGER t INSTEAD OF INSERT ON trap FOR EACH ROW EXECUTE FUNCTION fieldcrypt.write_decrypted_view()}, user => 'writer');
refused($node, q{SELECT fieldcrypt.create_decrypted_view('people', 'trap')}, '42P17', qr/was not made by/, 'a view of another owner is not taken over');
refused($node, q{INSERT INTO trap VALUES (1)}, '42P17', 'and writes nowhere', user => 'writer');
value($node, 'DROP VIEW trap', user => 'writer');
# One that a superuser makes is the table's owner's.
value($node, q{SELECT fieldcrypt.create_decrypted_view('people', 'by_root'); INSERT INTO by_root (name) VALUES ('R')});
gives($node, q{SELECT viewowner FROM pg_views WHERE viewname = 'by_root'}, 'app', 'whoever makes a view, it is the table owner\'s');
value($node, 'DROP VIEW by_root', @app);

# Rights: those on the table count, and nothing else.
refused($node, 'SELECT * FROM decrypted_people', '42501', "$_ reads nothing", user => $_) foreach qw(writer reader stranger);
value($node, 'GRANT SELECT, INSERT, UPDATE, DELETE ON decrypted_people TO writer, reader, stranger', @app);
refused($node, $_, '42501', "not on the table: $_", user => 'reader')
	foreach 'SELECT * FROM decrypted_people', q{INSERT INTO decrypted_people (name) VALUES ('x')}, 'DELETE FROM decrypted_people';
value($node, 'GRANT SELECT ON people TO reader, stranger; GRANT INSERT ON people TO writer', @app);
gives($node, 'SELECT count(ssn) FROM decrypted_people', '2', 'SELECT on both and decrypt: reads', user => 'reader');
refused($node, 'SELECT * FROM decrypted_people', '42501', qr/decrypt_field/, 'without decrypt: not', user => 'stranger');
gives($node, q{INSERT INTO decrypted_people (name, ssn) VALUES ('W', 'blind')}, '', 'INSERT and encrypt: writes', user => 'writer');
refused($node, 'SELECT ssn FROM decrypted_people', '42501', 'and reads nothing', user => 'writer');
value($node, 'GRANT INSERT ON people TO stranger', @app);
refused($node, q{INSERT INTO decrypted_people (name, ssn) VALUES ('S', 'x')}, '42501', qr/encrypt/, 'INSERT without encrypt: not', user => 'stranger');
gives($node, q{SELECT ssn FROM decrypted_people WHERE name = 'W'}, 'blind', 'what was written blindly is there', @app);
# Policies are those of who reads.
value($node, <<'SQL', @app);
ALTER TABLE people ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON people USING (name = 'W') WITH CHECK (name = 'W');
GRANT SELECT, UPDATE ON people TO reader;
SQL
value($node, q{SELECT fieldcrypt.grant_access('reader', 'encrypt')});
gives($node, 'SELECT string_agg(name, \',\') FROM decrypted_people', 'W', 'a policy holds for the view', user => 'reader');
gives($node, q{UPDATE decrypted_people SET ssn = 'by policy' RETURNING name}, 'W', 'for what is written, too', user => 'reader');
refused($node, q{UPDATE decrypted_people SET name = 'X'}, '42501', 'and refuses', user => 'reader');
value($node, 'ALTER TABLE people DISABLE ROW LEVEL SECURITY', @app);

# After DDL.
value($node, q{ALTER TABLE people RENAME TO folk; ALTER TABLE folk RENAME ssn TO number; ALTER SCHEMA public RENAME TO other; CREATE SCHEMA public});
gives($node, q{INSERT INTO other.decrypted_people (name, ssn) VALUES ('R', 'renamed') RETURNING ssn}, 'renamed', 'names may change', @app);
value($node, 'ALTER SCHEMA other RENAME TO tmp; DROP SCHEMA public; ALTER SCHEMA tmp RENAME TO public');
value($node, <<'SQL', @app);
ALTER TABLE folk ADD COLUMN more fieldcrypt.encrypted_text DEFAULT ('given'::text), ADD COLUMN plain integer DEFAULT 5;
SELECT fieldcrypt.protect_column('folk', 'more');
SQL
gives($node, q{SELECT fieldcrypt.create_decrypted_view('folk', 'decrypted_people')}, '', 'called again', @app);
gives($node, q{INSERT INTO decrypted_people (name) VALUES ('N') RETURNING more, plain}, 'given|5', 'it has the new columns and their defaults', @app);
gives($node, 'SELECT count(*) FROM decrypted_people WHERE more IS DISTINCT FROM \'given\'', '0', 'also those that rows had when it was protected', @app);
gives($node, q{SELECT fieldcrypt.create_decrypted_view('folk', 'few', '{id,name}')}, '', 'a view of some columns', @app);
value($node, 'GRANT SELECT (id, name) ON folk TO stranger; REVOKE SELECT ON folk FROM stranger; GRANT SELECT ON few TO stranger', @app);
value($node, 'REVOKE ALL ON folk FROM stranger; GRANT SELECT (id, name) ON folk TO stranger', @app);
gives($node, q{SELECT name FROM few WHERE name = 'N'}, 'N', 'for who may read those columns', user => 'stranger');

# What came in before the column was declared is bound by the declaration, for who may decrypt.
value($node, q{CREATE TABLE early (id integer PRIMARY KEY, v fieldcrypt.encrypted_text); INSERT INTO early SELECT n, 'early ' || n FROM generate_series(1, 300) AS n}, @app);
value($node, q{SELECT fieldcrypt.protect_column('early', 'v'), fieldcrypt.create_decrypted_view('early')}, @app);
gives($node, q{SELECT count(*) FROM decrypted_early WHERE v = 'early ' || id}, '300', 'loose values are bound when their column is declared', @app);

# health() compares the DEFAULTs.
my $health = q{SELECT status, detail FROM fieldcrypt.health() WHERE "check" = 'protected_columns'};
unlike(value($node, $health), qr/DEFAULT/, 'a view with the DEFAULTs of its table');
value($node, 'ALTER TABLE folk ALTER COLUMN plain SET DEFAULT 6', @app);
like(value($node, $health), qr/^warning\|.*decrypted_people\.plain.*: shown by a decrypted view with other DEFAULTs than the table's/, 'a DEFAULT that was changed since');
value($node, q{SELECT fieldcrypt.create_decrypted_view('folk', 'decrypted_people'); ALTER TABLE folk ALTER COLUMN plain SET DEFAULT 5;
	SELECT fieldcrypt.create_decrypted_view('folk', 'decrypted_people')}, @app);
unlike(value($node, $health), qr/DEFAULT/, 'the call brings it up to date');

# A DEFAULT in text of what is no text: the table makes it.
value($node, q{CREATE TABLE dated (id integer PRIMARY KEY, d fieldcrypt.encrypted_text DEFAULT ('2000-01-01'::text))}, @app);
value($node, q{SELECT fieldcrypt.protect_column('dated', 'd', plaintext => 'date'), fieldcrypt.create_decrypted_view('dated'); INSERT INTO decrypted_dated (id) VALUES (1)}, @app);
gives($node, 'SELECT d FROM decrypted_dated', '2000-01-01', 'a DEFAULT that is a text, of a column that is a date', @app);
# A view that is made anew keeps the rights of columns, too.
value($node, 'GRANT SELECT (id) ON decrypted_dated TO stranger; ALTER TABLE dated ADD COLUMN a integer, ADD COLUMN b integer', @app);
value($node, q{DROP VIEW IF EXISTS nothing; SELECT fieldcrypt.create_decrypted_view('dated', columns => '{id,d,b}')}, @app);
value($node, q{SELECT fieldcrypt.create_decrypted_view('dated')}, @app);
gives($node, q{SELECT has_column_privilege('stranger', 'decrypted_dated', 'id', 'SELECT'), has_column_privilege('stranger', 'decrypted_dated', 'd', 'SELECT')}, 't|f',
	'rights of columns are kept', @app);
# An index of a name that only looks like a value: nothing that looks at literals stumbles.
value($node, q{CREATE VIEW odd AS SELECT NULL::fieldcrypt.encrypted_text AS "'fc1:zz'::fieldcrypt.encrypted_text"}, @app);
gives($node, q{SELECT count(*) > 0 FROM fieldcrypt.key_usage()}, 't', 'a name that only looks like a value');
value($node, 'DROP VIEW odd', @app);

# What encrypt_column keeps beside a column is not the application's, and does not hang on the view.
value($node, q{CREATE TABLE taken (id integer PRIMARY KEY, v text); INSERT INTO taken SELECT n, 'v' || n FROM generate_series(1, 5) AS n}, @app);
value($node, q{CALL fieldcrypt.encrypt_column('taken', 'v')}, @app);
value($node, q{SELECT fieldcrypt.create_decrypted_view('taken')}, @app);
gives($node, 'SELECT * FROM decrypted_taken WHERE id = 1', '1|v1', 'the plaintext that is kept is not shown', @app);
gives($node, q{SELECT fieldcrypt.drop_plaintext_column('taken', 'v')}, '', 'and can be dropped', @app);

# Refused.
refused($node, q{SELECT fieldcrypt.create_decrypted_view('folk', 'folk')}, '42P17', qr/was not made by create_decrypted_view/, 'over a table', @app);
refused($node, q{SELECT fieldcrypt.create_decrypted_view('folk', 'a.b.c')}, '42P17', 'a name that is none', @app);
refused($node, q{SELECT fieldcrypt.create_decrypted_view('folk', columns => '{nope}')}, '42P17', qr/no column "nope"/, 'a column that is not there', @app);
refused($node, q{SELECT fieldcrypt.create_decrypted_view('few')}, '42P17', qr/is no table/, 'a view of a view', @app);
value($node, 'CREATE TABLE bare (id integer PRIMARY KEY)', @app);
refused($node, q{SELECT fieldcrypt.create_decrypted_view('bare')}, '42P17', qr/no protected column/, 'nothing to decrypt', @app);
refused($node, q{SELECT fieldcrypt.create_decrypted_view('folk', 'mine')}, '42501', 'of another owner', user => 'writer');
refused($node, 'SELECT fieldcrypt.write_decrypted_view()', '39P01', 'the trigger by hand', @app);

# Dumped, and restored.
my $dump = $node->basedir . '/dump.sql';
dump_database($node, 'postgres', $dump);
$node->safe_psql('postgres', 'CREATE DATABASE copy');
restore_database($node, 'copy', $dump);
gives($node, q{SELECT more, plain FROM decrypted_people WHERE name = 'N'}, 'given|5', 'a dump has the view', db => 'copy', @app);
gives($node, q{INSERT INTO decrypted_people (name, number) VALUES ('Z', 'z') RETURNING number, plain}, 'z|5', 'and it takes what is written', db => 'copy', @app);

done_testing();

# What ordinary SQL does with a protected column comes out right: upserts of many columns and many rows, triggers that write other
# rows, waits for other sessions, savepoints, cursors, COPY in all its formats, every form of plaintext and every encoding. Each
# value that is stored is opened where it is, and what is refused tells no plaintext.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nlog_min_error_statement = panic\n");
my @columns = map { "c$_" } 1 .. 9;
value($node, <<SQL);
CREATE ROLE app LOGIN; SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt');
CREATE ROLE writer LOGIN; GRANT pg_read_all_stats TO writer; SELECT fieldcrypt.grant_access('writer', 'encrypt');
CREATE ROLE nobody LOGIN;
CREATE TABLE people (id bigint PRIMARY KEY, name text, ssn fieldcrypt.encrypted_text);
SELECT fieldcrypt.protect_column('people', 'ssn');
CREATE TABLE wide (id int PRIMARY KEY, @{[ join ', ', map { "$_ fieldcrypt.encrypted_text" } @columns ]});
@{[ map { "SELECT fieldcrypt.protect_column('wide', '$_');\n" } @columns ]}
GRANT ALL ON people, wide TO PUBLIC;
INSERT INTO people SELECT i, 'name ' || i, 'ssn-' || i FROM generate_series(1, 10) AS i;
SQL
my $opened = q{fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.people.ssn', id))};
sub row { my ($id) = @_; return "SELECT $opened FROM people WHERE id = $id" }

# Upserts: all columns of a row at once, rows that are new and rows that are there, RETURNING, every protocol.
my $all = join ", ", map { "$_ = excluded.$_" } @columns;
my $values = sub { my ($id, $word) = @_; return "($id, " . join(', ', map { "'$word-$_'" } @columns) . ')' };
my $wide = join " || ' ' || ", map { "fieldcrypt.decrypt_field($_, fieldcrypt.context('public.wide.$_', id))" } @columns;
gives($node, "INSERT INTO wide VALUES @{[ $values->(1, 'a') ]}, @{[ $values->(2, 'b') ]}; INSERT INTO wide VALUES @{[ $values->(1, 'x') ]}, @{[ $values->(3, 'y') ]}, @{[ $values->(2, 'z') ]}
	ON CONFLICT (id) DO UPDATE SET $all; SELECT id, $wide FROM wide ORDER BY id",
	join("\n", map { my $word = $_->[1]; "$_->[0]|" . join ' ', map { "$word-$_" } @columns } [ 1, 'x' ], [ 2, 'z' ], [ 3, 'y' ]), 'nine protected columns in one upsert of three rows');
gives($node, "INSERT INTO wide VALUES @{[ $values->(1, 'q') ]} ON CONFLICT (id) DO UPDATE SET c1 = excluded.c1, c2 = NULL, c3 = 'own' RETURNING fieldcrypt.decrypt_field(c1, 'public.wide.c1/1'), c2 IS NULL, fieldcrypt.decrypt_field(c3, 'public.wide.c3/1'), fieldcrypt.decrypt_field(c4, 'public.wide.c4/1')",
	'q-c1|t|own|x-c4', 'some of them, NULL and a plaintext', user => 'app');
gives($node, "INSERT INTO people VALUES (1, 'n', 'changed') ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn, id = people.id + 100 RETURNING id, $opened", '101|changed', 'an upsert that moves the row it finds');
gives($node, "INSERT INTO people VALUES (2, 'n', 'not taken') ON CONFLICT DO NOTHING; @{[ row(2) ]}", 'ssn-2', 'DO NOTHING');
gives($node, "INSERT INTO people VALUES (2, 'n', 'x') ON CONFLICT (id) DO UPDATE SET name = excluded.name; @{[ row(2) ]}", 'ssn-2', 'an upsert of another column');
is(bind($node, 'INSERT INTO people VALUES (:id, :name, :ssn) ON CONFLICT (id) DO UPDATE SET ssn = EXCLUDED.ssn', { id => 2, name => 'n', ssn => 'by parameter' }, protocol => $_, user => 'writer', transactions => 7)->{code}, 0, "an upsert by parameters, $_")
  foreach qw(extended prepared);
gives($node, row(2), 'by parameter', '  opens');
value($node, q{UPDATE people SET ssn = 'ssn-2' WHERE id = 2; INSERT INTO people VALUES (1, 'n', 'ssn-1')});
{
	my $memory = q{SELECT sum(total_bytes) FROM pg_backend_memory_contexts};
	my $session = session($node, user => 'writer');
	$session->value("INSERT INTO people SELECT i, 'n', 'many-' || i FROM generate_series(1000, 100999) AS i");
	my $before = $session->value($memory);
	$session->gives("WITH u AS (INSERT INTO people SELECT i, 'n', 'again-' || i FROM generate_series(1000, 100999) AS i ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn RETURNING 1) SELECT count(*) FROM u", '100000', '100000 conflicts in one statement');
	cmp_ok($session->value($memory) - $before, '<', 10_000_000, '  and nothing of it is kept');
	$session->close;
	gives($node, "SELECT count(*) FROM people WHERE id >= 1000 AND $opened = 'again-' || id", '100000', '  each is its row\'s');
	value($node, 'DELETE FROM people WHERE id >= 1000');
}

# Triggers that write protected rows while one is written: elsewhere, and in the same table.
value($node, <<'SQL');
CREATE FUNCTION spread() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() > 1 THEN RETURN NEW; END IF;
    INSERT INTO wide (id, c1) SELECT 1000 + i, 'spread-' || i FROM generate_series(1, 10) AS i ON CONFLICT (id) DO UPDATE SET c1 = excluded.c1;
    INSERT INTO people SELECT 2000 + i, 'spread', 'spread-' || i FROM generate_series(1, 10) AS i ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn;
    RETURN NEW;
END $$;
CREATE TRIGGER spread BEFORE INSERT OR UPDATE ON people FOR EACH ROW EXECUTE FUNCTION spread();
SQL
my $spread = "SELECT count(*) FILTER (WHERE $opened = 'spread-' || id - 2000) FROM people WHERE id > 2000; SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(c1, fieldcrypt.context('public.wide.c1', id)) = 'spread-' || id - 1000) FROM wide WHERE id > 1000";
foreach my $statement (
	"INSERT INTO people VALUES (20, 'n', 'outer')", "INSERT INTO people VALUES (20, 'n', 'outer') ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn",
	"INSERT INTO people VALUES (21, 'n', 'outer'), (20, 'n', 'outer') ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn", "UPDATE people SET ssn = 'outer' WHERE id IN (20, 21)")
{
	gives($node, "$statement; @{[ row(20) ]}; $spread", "outer\n10\n10", "a trigger that writes ten rows elsewhere and ten here: $statement");
}
value($node, 'DROP TRIGGER spread ON people; DELETE FROM people WHERE id > 10; DELETE FROM wide WHERE id > 1000');

# Waits: the second session goes on with the row as the first has left it.
foreach my $case (
	[ 'another column', "name = 'first'", "ssn = 'second'", 'second' ], [ 'the same column', "ssn = 'first'", "ssn = 'second'", 'second' ],
	[ 'the first the value', "ssn = 'first'", "name = 'second'", 'first' ], [ 'the second the key', "ssn = 'first'", 'id = 3', 'first' ],
	[ 'the first the key back and forth', "id = 3", "ssn = 'second'", 'second' ])
{
	my ($name, $first, $second, $expected) = @$case;
	my ($one, $two) = (session($node, user => 'app'), session($node, user => 'app'));
	my $waiting = q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'app'};
	$one->value("BEGIN; UPDATE people SET $first WHERE id = 3");
	$two->send("UPDATE people SET $second WHERE id = 3; SELECT 'over'");
	ok(eventually($node, $waiting, '1'), "two sessions write a row, $name: the second waits");
	$one->value('COMMIT');
	$two->gives(row(3), qr/\Q$expected\E$/, '  and what it leaves opens');
	value($node, "UPDATE people SET ssn = 'ssn-3', name = 'n' WHERE id = 3");
	$_->close foreach $one, $two;
}
{
	my ($one, $two) = (session($node, user => 'app'), session($node, user => 'app'));
	$one->value("BEGIN; INSERT INTO people VALUES (30, 'first', 'first')");
	$two->send("INSERT INTO people VALUES (30, 'second', 'second') ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn, name = excluded.name");
	ok(eventually($node, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'app'}, '1'), 'an upsert waits for an insert');
	$one->value('COMMIT');
	$two->gives(row(30), qr/second$/, '  and writes its own value');
	$one->value("BEGIN; DELETE FROM people WHERE id = 30");
	$two->send("INSERT INTO people VALUES (30, 'third', 'third') ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn");
	ok(eventually($node, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'app'}, '1'), 'an upsert waits for a delete');
	$one->value('COMMIT');
	$two->gives(row(30), qr/third$/, '  and inserts');
	$_->close foreach $one, $two;
}

# Savepoints, cursors, exceptions, and the same statement again.
{
	my $session = session($node, user => 'writer');
	$session->value(q{PREPARE u (bigint, text) AS INSERT INTO people VALUES ($1, 'n', $2) ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn});
	$session->value(q{BEGIN; EXECUTE u (31, 'one'); SAVEPOINT a; EXECUTE u (31, 'two'); SAVEPOINT b});
	$session->refused(q{UPDATE people SET ssn = (SELECT ssn FROM people WHERE id = 4) WHERE id = 31}, 'KF037', 'a refusal inside of a savepoint');
	$session->value(q{ROLLBACK TO b; EXECUTE u (31, 'three'); ROLLBACK TO a; EXECUTE u (32, 'four'); COMMIT});
	$session->close;
	gives($node, row(31) . '; ' . row(32), "one\nfour", 'savepoints and ROLLBACK TO');
	value($node, q{BEGIN; DECLARE c CURSOR FOR SELECT * FROM people WHERE id IN (31, 32) ORDER BY id FOR UPDATE; FETCH c; UPDATE people SET ssn = 'here' WHERE CURRENT OF c; FETCH c;
		UPDATE people SET ssn = 'there', id = 33 WHERE CURRENT OF c; COMMIT});
	gives($node, row(31) . '; ' . row(33), "here\nthere", 'UPDATE ... WHERE CURRENT OF');
	gives($node, q{DO $$ BEGIN BEGIN UPDATE people SET ssn = (SELECT ssn FROM people WHERE id = 4) WHERE id = 31; EXCEPTION WHEN SQLSTATE 'KF037' THEN UPDATE people SET ssn = 'caught' WHERE id = 31; END; END $$; } . row(31), 'caught', 'a refusal that is caught');
	gives($node, q{WITH m AS (UPDATE people SET id = 34, ssn = 'moved' WHERE id = 33 RETURNING id, ssn) SELECT fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.people.ssn', id)) FROM m}, 'moved', 'a new key and a new value at once');
	gives($node, q{UPDATE people SET id = id + 1000 WHERE id > 30; SELECT count(*) FROM people WHERE } . "$opened IS NULL", '0', 'many keys at once');
	value($node, 'DELETE FROM people WHERE id > 10');
}

# The same plaintext again keeps the bytes for who may decrypt; who may not is not told by them that he guessed right.
my $bytes = q{SELECT md5(ssn::bytea) FROM people WHERE id = 4};
foreach my $user ('app', 'writer')
{
	my $before = value($node, $bytes);
	value($node, "UPDATE people SET ssn = 'ssn-4' WHERE id = 4", user => $user);
	my $same = value($node, $bytes) eq $before;
	ok($user eq 'app' ? $same : !$same, "the same plaintext, by $user: the bytes " . ($user eq 'app' ? 'stay' : 'are others'));
	value($node, "INSERT INTO people VALUES (4, 'n', 'ssn-4') ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn", user => $user);
	gives($node, row(4), 'ssn-4', '  and open, after an upsert, too');
	$before = value($node, $bytes);
	value($node, "UPDATE people SET ssn = 'ssn-5' WHERE id = 4; UPDATE people SET ssn = 'ssn-4' WHERE id = 4", user => $user);
	isnt(value($node, $bytes), $before, '  another one in between');
}
value($node, q{CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.ssn::bytea IS DISTINCT FROM OLD.ssn::bytea THEN RAISE NOTICE 'changed %', NEW.id; END IF; RETURN NULL; END $$;
CREATE TRIGGER note AFTER UPDATE ON people FOR EACH ROW EXECUTE FUNCTION note()});
unlike(run_sql($node, "UPDATE people SET ssn = 'ssn-' || id, name = 'all of an ORM'", user => 'app')->{err}, qr/changed/, 'change detection of bytes sees no change in it');
like(run_sql($node, "UPDATE people SET ssn = 'ssn-' || id + 1 WHERE id = 5; UPDATE people SET ssn = 'ssn-5' WHERE id = 5", user => 'app')->{err}, qr/changed 5.*changed 5/s, 'and sees one');

# COPY: text, csv and binary, of ciphertext and of plaintext; files that are half of each.
my $files = $node->basedir;
value($node, "COPY people TO '$files/rows.text'; COPY people TO '$files/rows.csv' (FORMAT csv); COPY people TO '$files/rows.bin' (FORMAT binary)");
write_copy("$files/plain.text", "11\tn\tplain-11\n12\tn\t\\N\n13\tn\tfc1\n14\tn\t\n");
write_copy("$files/plain.csv", "15,n,\"plain-15\"\n16,n,\"a \"\"b\"\", c\nd\"\n17,n,fc\n18,n,\n");
foreach my $format ('text', 'csv', 'bin')
{
	my $with = $format eq 'bin' ? '(FORMAT binary)' : "(FORMAT $format)";
	my $before = value($node, 'SELECT md5(string_agg(ssn::bytea::text, $$$$ ORDER BY id)) FROM people');
	gives($node, "TRUNCATE people; COPY people FROM '$files/rows.$format' $with; SELECT md5(string_agg(ssn::bytea::text, '' ORDER BY id)) FROM people; SELECT count(*) FROM people WHERE $opened = 'ssn-' || id",
		"$before\n10", "COPY $format: what was copied comes back byte for byte");
	value($node, "CREATE TABLE other (LIKE people INCLUDING INDEXES); SELECT fieldcrypt.protect_column('other', 'ssn')");
	refused($node, "COPY other FROM '$files/rows.$format' $with", 'KF037', '  into another table it is refused');
	value($node, 'DROP TABLE other');
}
my $in = sub { my ($what, $with) = @_; return "COPY people FROM '$files/$what' (FORMAT $with)" };
gives($node, $in->('plain.text', 'text') . "; SELECT id, coalesce($opened, 'NULL') FROM people WHERE id BETWEEN 11 AND 14 ORDER BY id", "11|plain-11\n12|NULL\n13|fc1\n14|", 'COPY of plaintext, text');
gives($node, $in->('plain.csv', 'csv') . "; SELECT id, coalesce(quote_literal($opened), 'NULL') FROM people WHERE id BETWEEN 15 AND 18 ORDER BY id", "15|'plain-15'\n16|'a \"b\", c\nd'\n17|'fc'\n18|NULL", 'COPY of plaintext, csv');
write_copy("$files/plain.bin", "PGCOPY\n\xff\r\n\0" . pack('N2', 0, 0) . pack('n', 3) . pack('Nq>', 8, 19) . pack('N', 1) . 'n' . pack('N', 8) . 'plain-19' . pack('n', 0xffff));
gives($node, $in->('plain.bin', 'binary') . '; ' . row(19), 'plain-19', 'COPY of plaintext, binary');
foreach my $bad ("21\tn\tfc1:broken\n", "21\tn\tfc1:\n", "21\tn\tfc1:" . 'A' x 100 . "\n")
{
	write_copy("$files/bad.text", $bad);
	refused($node, $in->('bad.text', 'text'), 'KF001', 'COPY of what begins with fc1: and is none: ' . substr $bad, 5, 12);
}
# What a failed COPY tells of the line it failed at.
write_copy("$files/secret.text", "22\tn\tsecret-22\n23\tn\tsecret-23\n");
foreach my $case ([ 'nobody', '42501' ], [ 'nobody', '42501', 'CREATE TEMP TABLE own (LIKE people); ' ])
{
	my ($user, $state) = @$case;
	my $result = run_sql($node, "\\copy people FROM '$files/secret.text'", user => $user);
	is("@{ $result->{sqlstates} }", $state, "COPY by $user is refused");
	unlike($result->{err}, qr/secret-2/, '  and its CONTEXT tells no plaintext') or diag $result->{err};
}
# Errors of Postgres's own quote the line to the client that has sent it. The server log, masked, has none of it (see below).
refused($node, "ALTER TABLE people DISABLE TRIGGER USER; COPY people FROM '$files/secret.text'", '23514', qr/DETAIL:  Failing row contains \(22, n, fc1:/, 'COPY past the trigger: ciphertext in the row');
value($node, 'ALTER TABLE people ENABLE TRIGGER USER; DROP TRIGGER note ON people');
write_copy("$files/twice.text", "22\tn\tsecret-22\n22\tn\tsecret-23\n");
refused($node, "COPY people FROM '$files/twice.text'", '23505', 'COPY of a duplicate key');
value($node, "CREATE TABLE numbers (id int PRIMARY KEY, n fieldcrypt.encrypted_text); SELECT fieldcrypt.protect_column('numbers', 'n', plaintext => 'integer')");
write_copy("$files/number.text", "1\tsecret-2\n");
my $number = run_sql($node, "COPY numbers FROM '$files/number.text'");
isnt("@{ $number->{sqlstates} }", '', 'nor that of a plaintext which is of no such form');
unlike($number->{err}, qr/secret-2/, '  by its CONTEXT') or diag $number->{err};

unlike(slurp_file($node->logfile), qr/secret-2/, 'the server log has none of it either');
no_crash($node);
done_testing();

sub write_copy
{
	my ($path, $content) = @_;
	open my $file, '>:raw', $path or die "$path: $!";
	print $file $content;
	close $file or die "$path: $!";
	chmod 0644, $path;
	return;
}

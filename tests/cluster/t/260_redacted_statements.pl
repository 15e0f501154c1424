# With fieldcrypt.redact_logs no literal of a statement that concerns encrypted values reaches the server log, in any
# format, by any of the ways in which statements get there; the client's messages are whole, and other statements are
# logged as they are.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use ServerLog;
use Test::More;

my $node = new_cluster('primary', conf => everything_logged());
value($node, <<'SQL');
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted, age int CHECK (age > 0), code varchar(5), email text UNIQUE);
CREATE TABLE "Odd Table" (id int, v fieldcrypt.encrypted);
CREATE VIEW shown AS SELECT id, age, fieldcrypt.decrypt_field(ssn) AS ssn FROM patients;
CREATE VIEW over_shown AS SELECT id + 1 AS id, age FROM shown;
CREATE DOMAIN secret_value AS fieldcrypt.encrypted;
CREATE TABLE by_domain (id int, held secret_value);
CREATE TABLE parts (id int, held fieldcrypt.encrypted) PARTITION BY RANGE (id);
CREATE TABLE part1 PARTITION OF parts FOR VALUES FROM (0) TO (1000000);
CREATE FUNCTION register(id int, plain text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO patients VALUES (id, fieldcrypt.encrypt_field(plain), 1);
END $$;
CREATE FUNCTION calls_register(plain text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM register(-1, plain);
    RAISE NOTICE 'registered';
END $$;
CREATE FUNCTION calls_internal(plain text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN fieldcrypt_internal.quoted_name(plain);
END $$;
CREATE PROCEDURE register_all(plain text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM fieldcrypt.encrypt_field(plain);
    COMMIT;
    PERFORM fieldcrypt.encrypt_field(plain);
END $$;
CREATE TABLE plain (id int PRIMARY KEY, t text);
SQL

my $canary_serial = 0;

# A test: this SQL, in which CANARY is a word that occurs nowhere else, leaves no trace of the word in the log; the
# client reads what it should.
sub hides
{
	my ($sql, $name, %options) = @_;
	my $canary = sprintf 'Zq%06dCanary', ++$canary_serial;
	my $from = rotate_log($node);
	my $result = $options{run} ? $options{run}->($canary) : run_sql($node, $sql =~ s/CANARY/$canary/gr, %{ $options{with} // {} });
	my $log = since($node, $from);
	my @found = grep { $log->{$_} =~ /$canary/i } sort keys %$log;
	is("@found", '', "hidden: $name");
	diag((grep { /$canary/i } split /\n/, $log->{ $found[0] })[0]) if @found;
	my $logged = $options{logged} // qr/\*\*\*/;
	my @missing = grep { $log->{$_} !~ $logged } sort keys %$log;
	is("@missing", '', "logged: $name");
	diag $log->{stderr} if @missing;
	(my $client = $options{client} // '') =~ s/CANARY/$canary/g;
	like($result->{err} . $result->{out}, qr/$client/, "the client is told: $name") if $options{client};
	if ($options{sqlstate}) { is("@{ $result->{sqlstates} }", $options{sqlstate}, "SQLSTATE: $name") }
	return $log;
}

# A test: this SQL is logged with the word.
sub shows
{
	my ($sql, $name, %options) = @_;
	my $canary = sprintf 'Zq%06dCanary', ++$canary_serial;
	my $from = rotate_log($node);
	run_sql($node, $sql =~ s/CANARY/$canary/gr, %{ $options{with} // {} });
	my $log = since($node, $from);
	my @missing = grep { $log->{$_} !~ ($options{logged} // qr/$canary/) } sort keys %$log;
	is("@missing", '', "shown: $name");
	diag $log->{stderr} if @missing;
	return $log;
}

# The ways in which a statement concerns encrypted values.
my @statements = (
	[ q{SELECT fieldcrypt.encrypt_field('CANARY')}, 'a call' ],
	[ q{SET search_path = public, fieldcrypt; SELECT encrypt_field('CANARY')}, 'a call by search path, two statements' ],
	[ q{SELECT fieldcrypt_internal.quoted_name('CANARY')}, 'a call of an internal' ],
	[ q{SELECT FIELDCRYPT_INTERNAL."quoted_name"('CANARY')}, 'a call of an internal in other letters' ],
	[ q{DO $$ BEGIN PERFORM fieldcrypt_internal.quoted_name('CANARY'); END $$}, 'an internal in DO' ],
	[ q{SELECT calls_internal('CANARY')}, 'a function that calls an internal' ],
	[ q{INSERT INTO patients VALUES (1, fieldcrypt.encrypt_field('CANARY'), 5)}, 'INSERT' ],
	[ q{UPDATE patients SET email = 'CANARY' WHERE id = 1}, 'another column of the table' ],
	[ q{SELECT * FROM patients WHERE email = E'CANARY\n' OR email = $x$CANARY$x$ OR email = U&'CANARY'}, 'strings of all kinds' ],
	[ q{SELECT * FROM shown WHERE ssn = 'CANARY'}, 'a view' ],
	[ q{SELECT * FROM over_shown WHERE 'CANARY' = ''}, 'a view of a view' ],
	[ q{SELECT * FROM "Odd Table" WHERE 'CANARY' = ''}, 'a table in quotes' ],
	[ q{SELECT * FROM by_domain WHERE 'CANARY' = ''}, 'a column of a domain' ],
	[ q{SELECT * FROM part1 WHERE 'CANARY' = ''}, 'a partition' ],
	[ q{SELECT register(100, 'CANARY')}, 'a function that encrypts' ],
	[ q{SELECT calls_register('CANARY')}, 'a function that calls one that encrypts' ],
	[ q{CALL register_all('CANARY')}, 'CALL of a procedure that commits' ],
	[ q{DO $$ BEGIN PERFORM fieldcrypt.encrypt_field('CANARY'); END $$}, 'DO' ],
	[ q{DO 'BEGIN EXECUTE ''SELECT fieldcrypt.encrypt_field($x$CANARY$x$)''; END'}, 'DO in a plain string' ],
	[ q{PREPARE p(text) AS SELECT fieldcrypt.encrypt_field($1 || 'CANARY'); EXECUTE p('CANARY'); EXECUTE p('CANARY')}, 'PREPARE and EXECUTE' ],
	[ q{PREPARE q(text) AS SELECT register(101, $1); EXECUTE q('CANARY')}, 'EXECUTE of a function that encrypts' ],
	[ q{BEGIN; DECLARE c CURSOR FOR SELECT fieldcrypt.encrypt_field('CANARY'); FETCH c; COMMIT}, 'a cursor' ],
	[ q{COPY (SELECT fieldcrypt.encrypt_field('CANARY')) TO STDOUT}, 'COPY TO' ],
	[ q{EXPLAIN (ANALYZE, COSTS OFF) SELECT fieldcrypt.encrypt_field('CANARY')}, 'EXPLAIN' ],
	[ q{CREATE TABLE made AS SELECT fieldcrypt.encrypt_field('CANARY'); DROP TABLE made}, 'CREATE TABLE AS' ],
	[ q{CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT fieldcrypt.ciphertext_text(fieldcrypt.encrypt_field('CANARY')) $$; SELECT f(); DROP FUNCTION f()}, 'CREATE FUNCTION' ],
	[ q{SET fieldcrypt.tenant = 'CANARY'}, 'a setting' ],
	[ q{/* CANARY */ SELECT fieldcrypt.encrypt_field('x') -- CANARY}, 'comments' ],
	[ q{SELECT 1; SELECT 'CANARY', fieldcrypt.encrypt_field('x')}, 'one of several statements' ]);

# What calls the extension without being named in a statement: what is made, then the statements that make it run.
value($node, <<'SQL');
CREATE FUNCTION seals(t text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN fieldcrypt.ciphertext_text(fieldcrypt.encrypt_field(t)); END $$;
CREATE FUNCTION seals_on(state text, t text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN seals(t); END $$;
CREATE FUNCTION seals_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM seals(NEW.t); RETURN NEW; END $$;
CREATE FUNCTION seals_apart(a float8, b float8) RETURNS float8 IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM seals('x'); RETURN a - b; END $$;
CREATE FUNCTION seals_order(a text, b text) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM seals('x'); RETURN bttextcmp(a, b); END $$;
SQL
my @dependents = (
	[ 'a policy', q{CREATE TABLE by_policy (t text); ALTER TABLE by_policy ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON by_policy USING (seals(t) IS NOT NULL)},
		q{SELECT * FROM by_policy WHERE t = 'CANARY'} ],
	[ 'a policy that reads a table', q{CREATE TABLE by_reading (t text); ALTER TABLE by_reading ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON by_reading USING (EXISTS (SELECT FROM patients WHERE email = t))},
		q{SELECT * FROM by_reading WHERE t = 'CANARY'} ],
	[ 'a constraint', q{CREATE TABLE by_check (t text CHECK (seals(t) IS NOT NULL))}, q{INSERT INTO by_check VALUES ('CANARY')} ],
	[ 'a constraint of a domain', q{CREATE DOMAIN checked AS text CHECK (seals(VALUE) IS NOT NULL)}, q{SELECT 'CANARY'::checked} ],
	[ 'a later constraint of a domain', q{CREATE DOMAIN later AS text; SELECT 'x'::later; ALTER DOMAIN later ADD CHECK (seals(VALUE) IS NOT NULL)}, q{SELECT 'CANARY'::later} ],
	[ 'a column of a domain with a constraint', q{CREATE TABLE by_checked (d checked)}, q{INSERT INTO by_checked VALUES ('CANARY')} ],
	[ 'an operator', q{CREATE OPERATOR @@@ (RIGHTARG = text, FUNCTION = seals)}, q{SELECT @@@ 'CANARY'}, q{SELECT OPERATOR(public.@@@) 'CANARY'},
		q{DO $$ BEGIN PERFORM @@@ 'CANARY'; END $$} ],
	[ 'an operator that a key word stands for', q{CREATE FUNCTION seals_like(a float8, b text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RETURN seals(b) = ''; END $$; CREATE OPERATOR ~~ (LEFTARG = float8, RIGHTARG = text, FUNCTION = seals_like)},
		q{SELECT 1.0::float8 LIKE 'CANARY'::text} ],
	[ 'a cast', q{CREATE TYPE sealed AS (t text); CREATE FUNCTION makes_sealed(text) RETURNS sealed LANGUAGE plpgsql AS $$ BEGIN RETURN ROW(seals($1)); END $$; CREATE CAST (text AS sealed) WITH FUNCTION makes_sealed(text)},
		q{SELECT 'CANARY'::text::sealed}, q{SELECT CAST('CANARY'::text AS sealed)} ],
	[ 'a rule', q{CREATE TABLE by_rule (t text); CREATE RULE r AS ON INSERT TO by_rule DO ALSO SELECT seals(NEW.t)}, q{INSERT INTO by_rule VALUES ('CANARY')} ],
	[ 'a trigger', q{CREATE TABLE by_trigger (t text); CREATE TRIGGER t BEFORE INSERT ON by_trigger FOR EACH ROW EXECUTE FUNCTION seals_row()}, q{INSERT INTO by_trigger VALUES ('CANARY')} ],
	[ 'a generated column', q{CREATE TABLE by_generated (t text, g text GENERATED ALWAYS AS (seals(t)) STORED)}, q{INSERT INTO by_generated VALUES ('CANARY')} ],
	[ 'a default', q{CREATE TABLE by_default (t text, d text DEFAULT seals('x'))}, q{INSERT INTO by_default VALUES ('CANARY')} ],
	[ 'an index of an expression', q{CREATE TABLE by_index (t text); CREATE INDEX ON by_index (seals(t))}, q{INSERT INTO by_index VALUES ('CANARY')} ],
	[ 'a partial index', q{CREATE TABLE by_partial (t text); CREATE INDEX ON by_partial (t) WHERE seals(t) IS NOT NULL}, q{INSERT INTO by_partial VALUES ('CANARY')} ],
	[ 'an exclusion constraint', q{CREATE TABLE by_exclusion (t text, EXCLUDE USING btree (seals(t) WITH =))}, q{INSERT INTO by_exclusion VALUES ('CANARY')} ],
	[ 'an operator class', q{CREATE OPERATOR CLASS sealed_order FOR TYPE text USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 seals_order(text, text); CREATE TABLE by_class (t text); CREATE INDEX ON by_class (t sealed_order)},
		q{INSERT INTO by_class VALUES ('CANARY')} ],
	[ 'an aggregate', q{CREATE AGGREGATE all_of_them(text) (SFUNC = seals_on, STYPE = text)}, q{SELECT all_of_them('CANARY')} ],
	[ 'a range', q{CREATE TYPE span AS RANGE (SUBTYPE = float8, SUBTYPE_DIFF = seals_apart)}, q{SELECT 'CANARY'::span} ],
	[ 'statistics', q{CREATE TABLE by_statistics (t text); CREATE STATISTICS s ON (seals(t)), t FROM by_statistics}, q{SELECT * FROM by_statistics WHERE t = 'CANARY'} ],
	[ 'a partition key', q{CREATE TABLE by_key (t text) PARTITION BY HASH (seals(t)); CREATE TABLE key_part PARTITION OF by_key FOR VALUES WITH (MODULUS 1, REMAINDER 0)},
		q{INSERT INTO by_key VALUES ('CANARY')}, q{INSERT INTO key_part VALUES ('CANARY')} ],
	[ 'a constraint of a partition', q{CREATE TABLE above (t text) PARTITION BY LIST (t); CREATE TABLE below PARTITION OF above DEFAULT; ALTER TABLE below ADD CHECK (seals(t) IS NOT NULL)},
		q{INSERT INTO above VALUES ('CANARY')} ]);

# And with an error.
my @errors = (
	[ q{SELECT fieldcrypt.encrypt_field('CANARY'), 1 / 0}, 'division by zero', '22012' ],
	[ q{SELECT fieldcrypt.encrypt_field('CANARY') FROM nowhere}, 'no such table', '42P01', 'relation "nowhere" does not exist' ],
	[ q{SELECT fieldcrypt.encrypt_field('CANARY'}, 'a syntax error', '42601' ],
	[ q{SELECT fieldcrypt.encrypt_field('CANARY}, 'an open string', '42601', q{unterminated quoted string at or near "'CANARY"} ],
	[ q{SELECT fieldcrypt.encrypt_field(x) FROM 'CANARY'}, 'a syntax error at the literal', '42601', q{at or near "'CANARY'"} ],
	[ q{SELECT fieldcrypt.encrypt_field('x'), 'CANARY'::int}, 'a literal that is no integer', '22P02', 'invalid input syntax for type integer: "CANARY"' ],
	[ q{INSERT INTO patients (id, ssn) VALUES (2, 'CANARY')}, 'a plaintext in an encrypted column', 'KF001' ],
	[ q{INSERT INTO patients (id, code) VALUES (2, 'CANARY')}, 'too long for a column', '22001' ],
	[ q{INSERT INTO patients (id, email, age) VALUES (2, 'CANARY', -1)}, 'a check constraint', '23514', 'Failing row contains \(2, null, -1, null, CANARY\)' ],
	[ q{INSERT INTO patients (id, email) VALUES (3, 'CANARY'), (4, 'CANARY')}, 'a duplicate key', '23505', 'Key \(email\)=\(CANARY\) already exists' ],
	[ q{SELECT fieldcrypt_internal.nowhere('CANARY')}, 'no such internal', '42883' ],
	[ q{SELECT fieldcrypt.decrypt_field('fc1:AAAA', 'CANARY')}, 'a value that is none', 'KF001' ],
	[ q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x'), 'CANARY')}, 'another context', 'KF002' ],
	[ q{DO $$ BEGIN PERFORM fieldcrypt.encrypt_field('CANARY'); PERFORM 1 / 0; END $$}, 'DO', '22012' ],
	[ q{DO $$ BEGIN PERFORM 'CANARY'::int, fieldcrypt.encrypt_field('x'); END $$}, 'CONTEXT and QUERY', '22P02', '"CANARY"' ],
	[ q{DO $$ BEGIN PERFORM fieldcrypt.encrypt_field('CANARY'); RAISE EXCEPTION 'bad value %', 'CANARY'; END $$}, 'RAISE', 'P0001', 'bad value CANARY' ],
	[ q{DO $$ DECLARE v text := 'CANARY'; BEGIN EXECUTE format('SELECT fieldcrypt.encrypt_field(%L) FROM nowhere', v); END $$}, 'EXECUTE', '42P01', q{QUERY:.*CANARY} ],
	[ q{SELECT register(1, 'CANARY'), register(1, 'CANARY')}, 'in a function', '23505' ],
	[ q{SELECT register('CANARY', 'x')}, 'an argument that is no integer', '22P02', '"CANARY"' ],
	[ q{PREPARE p(int) AS SELECT fieldcrypt.encrypt_field('x'), $1; EXECUTE p('CANARY')}, 'EXECUTE', '22P02', '"CANARY"' ],
	[ q{SELECT '{"a": CANARY}'::json FROM patients}, 'JSON', '22P02', 'JSON data, line 1: \{"a": CANARY' ],
	[ "COPY patients (id, email, age) FROM STDIN;\n9\tCANARY\tCANARY\n\\.\n", 'COPY FROM, a column', '22P02', 'COPY patients, line 1, column age: "CANARY"' ],
	[ "COPY patients (id, email) FROM STDIN;\nCANARY\n\\.\n", 'COPY FROM, a line', '22P02', 'CANARY' ],
	[ "COPY patients (id, ssn) FROM STDIN;\n9\tCANARY\n\\.\n", 'COPY FROM, a plaintext', 'KF001' ]);

hides(@$_) foreach @statements;
foreach (@dependents)
{
	my ($name, $made, @run) = @$_;
	# A session that knew all that there was before, then a new one.
	hides("SELECT 1; $made; $run[0]", "$name, in the session that makes it");
	hides($_, "$name: $_") foreach @run;
}
hides(q{CREATE TEMP TABLE passing (t text); SELECT 1; CREATE RULE r AS ON INSERT TO passing DO ALSO SELECT seals(NEW.t); INSERT INTO passing VALUES ('CANARY')}, 'a rule of a temporary table');
foreach my $case (@errors)
{
	my ($sql, $name, $sqlstate, $client) = @$case;
	hides($sql, "error, $name", sqlstate => $sqlstate, client => $client, logged => qr/$sqlstate/);
}

# Without log_statement and durations: what a session does not know yet is hidden.
hides($_->[0], "a new session, only errors, $_->[1]", sqlstate => $_->[2], client => $_->[3], logged => qr/$_->[2]/,
	with => { env => { PGOPTIONS => '-c log_statement=none -c log_min_duration_statement=-1' } })
  foreach @errors;
# Only durations.
hides(@$_, with => { env => { PGOPTIONS => '-c log_statement=none' } }) foreach @statements;

# What has nothing to do with the extension is logged as it is, but for the first statement that log_statement writes: the
# names that it is compared with are read after that.
foreach my $options ('', '-c log_statement=none')
{
	my %with = (with => { env => { PGOPTIONS => $options } });
	shows(q{SELECT 1; SELECT 'CANARY', 12345}, "another statement $options", %with, logged => qr/SELECT 'Zq\d+Canary', 12345/);
	shows(q{SELECT 1 / 0, 'CANARY'}, "another statement with an error $options", %with, logged => qr/SELECT 1 \/ 0, 'Zq\d+Canary'/)
	  if $options eq '';
}
shows(q{SELECT 1; SELECT 1 / 0, 'CANARY'}, 'an error in a session that knows', with => { env => { PGOPTIONS => '-c log_statement=none' } });
shows(q{INSERT INTO plain VALUES (1, 'CANARY'), (1, 'CANARY')}, 'a duplicate key in another table', logged => qr/Key \(id\)=\(1\) already exists/);
shows(q{DO $$ BEGIN PERFORM 'CANARY'::int; END $$}, 'DO of something else', logged => qr/SELECT 'Zq\d+Canary'::int/);
shows(q{PREPARE p(text) AS SELECT $1; EXECUTE p('CANARY')}, 'EXECUTE of something else');
shows(q{SELECT 1; SELECT 'CANARY' || 'x' = '' OR 1 - -1 < 2}, 'other operators', logged => qr/SELECT 'Zq\d+Canary' \|\| 'x' = '' OR 1 - -1 < 2/);
shows(q{CREATE TEMP TABLE kept (t text PRIMARY KEY CHECK (t <> ''), n int DEFAULT 5); INSERT INTO kept VALUES ('CANARY')}, 'a table with constraints, an index and a default');
# But for the one from above that LIKE stands for, too.
value($node, 'DROP OPERATOR ~~ (float8, text)');
shows(q{SELECT 1; SELECT max('CANARY'), 'a' LIKE 'b', '{}'::json ->> 'c', 'd' ~ 'e'}, 'names and operators that refuse encrypted values', logged => qr/max\('Zq\d+Canary'\), 'a' LIKE 'b'/);
shows(q{SELECT 1; SELECT 'CANARY' WHERE 1 = SOME ('{1}'::int[])}, 'a word of SQL that stands before a parenthesis, as a call does');
shows(q{CREATE FUNCTION pg_temp.record_event(t text) RETURNS text LANGUAGE sql AS 'SELECT t'; SELECT pg_temp.record_event('CANARY')},
	'a function of the application that has the name of an internal');

# What the extension itself says is no secret, also where an internal says it.
foreach my $case (
	[ q{SELECT fieldcrypt.set_rotation_policy('t', '1 minute')}, qr/a rotation policy of 00:01:00 is refused/ ],
	[ q{SELECT fieldcrypt_internal.record_table_audit('plain', true)}, qr/only what audit_table and unaudit_table have done/ ])
{
	my ($sql, $says) = @$case;
	my $from = rotate_log($node);
	run_sql($node, $sql);
	my $log = since($node, $from);
	my @missing = grep { $log->{$_} !~ $says } sort keys %$log;
	is("@missing", '', "its own words are in the log: $sql");
}

no_crash($node);
$node->stop;
done_testing();

# What a transaction did decides how it is logged until it has ended: an error at COMMIT or Sync, in FETCH, in a later statement has
# nothing in its text that tells of encrypted values. And what nobody can tell is hidden.

use strict;
use warnings;

use FieldcryptTest;
use LogCanary;
use PostgreSQL::Test::Utils;
use ServerLog;
use Test::More;
use Wire;

my $node = new_cluster('primary', conf => everything_logged() . "max_prepared_transactions = 5\nlog_min_messages = notice\n");
value($node, <<'SQL');
CREATE TABLE patients (id int, ssn fieldcrypt.encrypted, email text);
CREATE TABLE plain (id int PRIMARY KEY, t text);
CREATE TABLE child (id int REFERENCES plain DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE staging (t text);
CREATE TABLE other_staging (t text);
CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.email ~ '^cast' THEN PERFORM substr(NEW.email, 6)::int; END IF;
    IF NEW.email ~ '^say' THEN RAISE EXCEPTION 'this is late: %', NEW.email USING DETAIL = NEW.email; END IF;
    IF NEW.email ~ '^sql' THEN EXECUTE format('INSERT INTO plain VALUES (%L)', NEW.email); END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE ON patients DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late();
-- It fails before it calls anything.
CREATE FUNCTION late_staging() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM NEW.t::int;
    INSERT INTO patients (ssn) VALUES (fieldcrypt.encrypt_field(NEW.t));
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON staging DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late_staging();
CREATE FUNCTION register(plain text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN fieldcrypt.ciphertext_text(fieldcrypt.encrypt_field(plain)); END $$;
CREATE FUNCTION checked(plain text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF plain ~ '^bad' THEN RAISE EXCEPTION 'this is bad: %', plain; END IF;
    RETURN fieldcrypt.ciphertext_text(fieldcrypt.encrypt_field(plain));
END $$;
CREATE FUNCTION of_row(plain) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN fieldcrypt.ciphertext_text(fieldcrypt.encrypt_field($1.t)); END $$;
CREATE PROCEDURE commits(value text) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO patients (email) VALUES (value);
    COMMIT;
END $$;
INSERT INTO plain VALUES (1, 'one');
SQL
my $log = LogCanary->new($node);

# A session in which only errors are logged, and which knows the names that a line is compared with.
sub quiet
{
	my (%options) = @_;
	my $session = session($node, env => { PGOPTIONS => '-c log_statement=none -c log_min_duration_statement=-1' . ($options{more} // '') });
	$session->run('SELECT 1 / 0');
	$session->value('SELECT 1');
	return $session;
}

# Runs statements one after the other in such a session, with other things between.
sub quietly
{
	my (@steps) = @_;
	return sub {
		my ($canary) = @_;
		my $session = quiet();
		my $result;
		foreach my $step (@steps)
		{
			$result = ref $step ? $step->($session, $canary) : $session->run($step =~ s/CANARY/$canary/gr);
		}
		$session->close;
		return $result;
	};
}

sub elsewhere
{
	my ($sql) = @_;
	return sub { my (undef, $canary) = @_; value($node, $sql =~ s/CANARY/$canary/gr) };
}

# Deferred triggers (13).
foreach my $case ([ 'cast', '22P02' ], [ 'say', 'P0001' ], [ 'sql', '22P02' ])
{
	my ($how, $sqlstate) = @$case;
	my $insert = "INSERT INTO patients (id, email) VALUES (1, '$how CANARY')";
	$log->hides(quietly('BEGIN', $insert, 'COMMIT'), "$how: COMMIT", qr/$sqlstate/);
	$log->hides(quietly('BEGIN', $insert, 'SELECT 1', 'SET CONSTRAINTS ALL IMMEDIATE', 'ROLLBACK'), "$how: SET CONSTRAINTS", qr/$sqlstate/);
	$log->hides(quietly('BEGIN', $insert, "PREPARE TRANSACTION 'x'"), "$how: PREPARE TRANSACTION", qr/$sqlstate/);
	$log->hides(quietly('BEGIN', 'SAVEPOINT s', $insert, 'RELEASE s', 'COMMIT'), "$how: after a savepoint", qr/$sqlstate/);
	$log->hides(quietly($insert), "$how: autocommit", qr/$sqlstate/);
	$log->hides(quietly("CALL commits('$how CANARY')"), "$how: COMMIT in a procedure", qr/$sqlstate/);
	$log->hides(quietly("DO \$\$ BEGIN CALL commits('$how CANARY'); END \$\$"), "$how: in DO", qr/$sqlstate/);
	foreach my $quiet (0, 1)
	{
		$log->hides(
			sub {
				my ($canary) = @_;
				my $wire = Wire->connect($node, startup => $quiet ? { options => '-c log_statement=none -c log_min_duration_statement=-1' } : {});
				$wire->query('SELECT 1 / 0')->answer;
				$wire->query('SELECT 1')->answer;
				$wire->parse('', 'INSERT INTO patients (email) VALUES ($1)')->bind('', '', "$how $canary")->execute('')->sync;
				my $answer = $wire->answer;
				is($answer->{errors}[0]{C}, $sqlstate, "$how: the client is told at Sync");
				return $answer;
			},
			"$how: autocommit in the extended protocol, quiet $quiet", qr/$sqlstate/);
	}
}
$log->hides(quietly('BEGIN', "INSERT INTO staging VALUES ('CANARY')", 'COMMIT'), 'a table whose trigger would encrypt, COMMIT', qr/22P02/);
$log->hides(quietly('PREPARE p AS INSERT INTO staging VALUES ($1)', 'BEGIN', "EXECUTE p('CANARY')", 'COMMIT'), 'the same, prepared', qr/22P02/);

# Cursors over decrypted values (14): the first row is a number, and sorts before the others.
sub decrypted { return 'SELECT d FROM (SELECT fieldcrypt.decrypt_field(ssn) AS d FROM patients WHERE id = 14 ORDER BY 1 OFFSET 0) AS s' }
my $as_numbers = decrypted() =~ s/SELECT d/SELECT d::int/r;
my $values = elsewhere(q{DELETE FROM patients WHERE id = 14; INSERT INTO patients VALUES (14, fieldcrypt.encrypt_field('1')), (14, fieldcrypt.encrypt_field('CANARY'))});
$log->hides(quietly($values, 'BEGIN', "DECLARE c CURSOR FOR $as_numbers", 'FETCH c', 'FETCH c'), 'FETCH', qr/22P02/);
$log->hides(quietly($values, 'BEGIN', "DECLARE c CURSOR FOR $as_numbers", 'FETCH c', 'MOVE c', 'ROLLBACK'), 'MOVE', qr/22P02/);
$log->hides(quietly($values, 'BEGIN', "DECLARE c CURSOR FOR $as_numbers", 'FETCH c', 'FETCH ALL FROM c'), 'FETCH ALL', qr/22P02/);
$log->hides(quietly($values, 'BEGIN', 'DECLARE c CURSOR FOR ' . decrypted(), 'FETCH c', q{DO $$ DECLARE c refcursor := 'c'; v int; BEGIN FETCH c INTO v; END $$}), 'FETCH in DO', qr/22P02/);
$log->hides(quietly($values, 'BEGIN', 'DECLARE c CURSOR WITH HOLD FOR ' . decrypted(), 'COMMIT', 'FETCH c', q{DO $$ DECLARE c refcursor := 'c'; v int; BEGIN FETCH c INTO v; END $$}),
	'FETCH from a cursor WITH HOLD', qr/22P02/);
$log->hides(quietly($values, 'BEGIN', "DECLARE c CURSOR WITH HOLD FOR $as_numbers", 'COMMIT'), 'COMMIT with a cursor WITH HOLD', qr/22P02/);
$log->hides(quietly(q{BEGIN; DECLARE c CURSOR FOR SELECT checked(v) FROM (VALUES ('good'), ('bad CANARY')) AS x (v)}, 'FETCH c', 'FETCH c'), 'FETCH calls a function', qr/P0001/);
$log->hides(quietly(q{BEGIN; DECLARE c CURSOR FOR SELECT checked(v) FROM (VALUES ('bad CANARY')) AS x (v)}, 'FETCH c'), 'FETCH calls a function that fails before it encrypts', qr/P0001/);
$log->hides(
	sub {
		my ($canary) = @_;
		$values->(undef, $canary);
		my $wire = Wire->connect($node, startup => { options => '-c log_statement=none -c log_min_duration_statement=-1' });
		$wire->query('SELECT 1 / 0')->answer;
		$wire->query('BEGIN')->answer;
		$wire->parse('s', $as_numbers)->bind('c', 's')->execute('c', 1)->sync->answer;
		return $wire->execute('c', 1)->sync->answer;
	},
	'a portal that goes on', qr/22P02/);
# A cursor that is gone hides nothing any more.
$log->shows(quietly($values, 'BEGIN', 'DECLARE c CURSOR WITH HOLD FOR ' . decrypted(), 'COMMIT', 'CLOSE c', q{SELECT 'CANARY'::int}), 'after CLOSE', qr/Zq\d+Canary/);

# EXECUTE of what is not there (17).
$log->hides(quietly(q{EXECUTE nowhere('CANARY')}), 'EXECUTE of no prepared statement', qr/26000/);
$log->hides(sub { run_sql($node, "SELECT 1; EXECUTE nowhere('$_[0]')") }, 'EXECUTE of no prepared statement, all is logged', qr/26000/);
$log->hides(quietly('PREPARE p(text) AS SELECT register($1)', 'DEALLOCATE p', q{EXECUTE p('CANARY')}), 'EXECUTE after DEALLOCATE', qr/26000/);
$log->hides(quietly('PREPARE p(text) AS SELECT register($1)', 'DISCARD ALL', q{EXPLAIN EXECUTE p('CANARY')}), 'EXPLAIN EXECUTE after DISCARD', qr/26000/);
$log->hides(sub { run_sql($node, "PREPARE p(text) AS SELECT register(\$1); DO \$\$ BEGIN EXECUTE 'EXECUTE p(''$_[0]'')'; END \$\$") }, 'EXECUTE in DO', qr/\*\*\*/);
$log->hides(sub { Wire->connect($node)->query("PREPARE p AS SELECT 'x'::text; DEALLOCATE p; EXECUTE p('$_[0]')")->answer }, 'in one message', qr/26000/);

# What changed meanwhile (18): another session's work, and one's own.
my $serial = 0;
sub changed
{
	my ($change, $use, $error, $name) = @_;
	foreach my $mode ('all', 'errors')
	{
		foreach my $own (0, 1)
		{
			$serial++;
			my ($now, $then) = map { s/NEW/new$serial/gr } $change, $mode eq 'all' ? $use : $error;
			$log->hides(
				sub {
					my ($canary) = @_;
					my $session = $mode eq 'all' ? session($node, env => { PGOPTIONS => '-c log_min_duration_statement=-1' }) : quiet();
					$session->value("BEGIN; SELECT 1, 'patients'; SELECT 2");
					$own ? $session->value($now) : value($node, $now);
					my $result = $session->run($then =~ s/CANARY/$canary/gr);
					$session->run('COMMIT');
					$session->close;
					return $result;
				},
				"$name, " . ($own ? 'in this transaction' : 'in another session') . ", $mode", qr/new$serial/);
		}
	}
	return;
}
my $function = 'CREATE FUNCTION NEW(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN fieldcrypt.ciphertext_text(fieldcrypt.encrypt_field($1)); END $$';
changed($function, q{SELECT NEW('CANARY')}, q{SELECT NEW('CANARY') FROM nowhere}, 'a new function');
changed($function, q{SELECT NEW('CANARY')}, q{SELECT NEW('CANARY'), FROM FROM}, 'a new function, a syntax error');
changed($function, q{SELECT NEW('CANARY')}, q{SELECT NEW('x'), 'CANARY'::int}, 'a new function, an error of a literal');
changed('CREATE TABLE NEW (id int, ssn fieldcrypt.encrypted)', q{SELECT 'CANARY' FROM NEW}, q{SELECT 'CANARY'::int FROM NEW}, 'a new table');
changed('CREATE FUNCTION old_NEW(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN fieldcrypt.ciphertext_text(fieldcrypt.encrypt_field($1)); END $$; ALTER FUNCTION old_NEW RENAME TO NEW',
	q{SELECT NEW('CANARY')}, q{SELECT NEW('CANARY') FROM nowhere}, 'a renamed function');
changed('CREATE TABLE old_NEW (id int, ssn fieldcrypt.encrypted); ALTER TABLE old_NEW RENAME TO NEW', q{SELECT 'CANARY' FROM NEW}, q{SELECT 'CANARY' FROM NEW, nowhere}, 'a renamed table');
changed('CREATE TABLE NEW (t text); CREATE TRIGGER late AFTER INSERT ON NEW FOR EACH ROW EXECUTE FUNCTION late_staging()', q{INSERT INTO NEW VALUES ('CANARY')},
	q{INSERT INTO NEW VALUES ('CANARY', 1)}, 'a table with a new trigger');
# A statement that was prepared under a name that the table no longer has.
value($node, 'CREATE TABLE before_it (id int, ssn fieldcrypt.encrypted, email text)');
$log->hides(
	sub {
		my ($canary) = @_;
		my $session = session($node, env => { PGOPTIONS => '-c log_statement=none -c log_min_duration_statement=-1' });
		$session->value('PREPARE p(int) AS SELECT id FROM before_it WHERE id = $1');
		value($node, 'ALTER TABLE before_it RENAME TO after_it');
		$session->run('SELECT 1 / 0');
		$session->value('SELECT 1');
		my $result = $session->run("EXECUTE p('$canary')");
		$session->close;
		return $result;
	},
	'a table renamed since a statement was prepared', qr/22P02/);

# A transaction that touched values, and its later statements; an exception that was caught.
$log->hides(quietly('BEGIN', 'SELECT register($$x$$)', q{SELECT 'CANARY'::int}), 'a later statement of the transaction', qr/22P02/);
$log->hides(quietly('BEGIN', 'SAVEPOINT s', 'SELECT register($$x$$)', 'ROLLBACK TO s', q{SELECT 'CANARY'::int}), 'after ROLLBACK TO', qr/22P02/);
$log->hides(quietly($values, 'BEGIN', "SELECT set_config('app.last', fieldcrypt.decrypt_field(ssn), true) FROM patients WHERE id = 14 ORDER BY 1", "SELECT current_setting('app.last')::int"),
	'a value in a setting of the transaction', qr/22P02/);
$log->hides(quietly(q{DO $$ BEGIN BEGIN PERFORM checked('bad CANARY'); EXCEPTION WHEN OTHERS THEN RAISE EXCEPTION 'again: %', SQLERRM; END; END $$}), 'caught and raised again', qr/P0001/);
$log->hides(quietly(q{DO $$ DECLARE kept text; BEGIN BEGIN PERFORM checked('bad CANARY'); EXCEPTION WHEN OTHERS THEN kept := SQLERRM; END; PERFORM kept::int; END $$}),
	'caught, and kept', qr/22P02/);
$log->hides(quietly(q{DO $$ BEGIN PERFORM checked('x'); RAISE WARNING 'it is %', 'CANARY'; RAISE LOG 'it is %', 'CANARY'; END $$}), 'WARNING and LOG', qr/at RAISE/);

# Names of functions as attributes (19).
$log->hides(sub { run_sql($node, "SELECT p.of_row, '$_[0]' FROM plain AS p") }, 'attribute notation with an alias', qr/of_row/);
$log->hides(sub { run_sql($node, "SELECT (p).of_row, '$_[0]' FROM plain AS p") }, 'attribute notation with parentheses', qr/of_row/);
$log->hides(sub { run_sql($node, "SELECT (ROW(1, '$_[0]')::plain).of_row") }, 'attribute notation of a row', qr/of_row/);
$log->hides(sub { run_sql($node, "SET search_path = public, fieldcrypt; SELECT x.encrypt_field FROM (SELECT '$_[0]'::text) AS x (t)") }, 'attribute notation of a call', qr/encrypt_field/);
$log->hides(sub { run_sql($node, qq{SELECT p."of_row", '$_[0]' FROM plain AS p}) }, 'attribute notation in quotes', qr/of_row/);

# And what has nothing to do with any of this is logged as it is, in the same session, too.
my $after = ', after a transaction that touched values';
my @touch = ('BEGIN', 'SELECT register($$x$$)', 'COMMIT');
$log->shows(quietly(@touch, q{SELECT 'CANARY'::int}), "a literal$after");
$log->shows(quietly(@touch, 'BEGIN', q{INSERT INTO plain VALUES (2, 'x')}, q{INSERT INTO plain VALUES (2, 'CANARY')}, 'ROLLBACK'), "a key$after");
$log->shows(quietly(@touch, 'BEGIN', 'SELECT 1', q{SELECT v::int FROM (VALUES ('CANARY')) AS x (v)}, 'ROLLBACK'), "in a transaction$after");
$log->shows(quietly(q{INSERT INTO child VALUES (4711)}), 'a deferred foreign key of another table', qr/Key \(id\)=\(4711\) is not present in table .{1,2}plain/);
$log->shows(quietly('BEGIN', q{INSERT INTO child VALUES (4712)}, 'COMMIT'), 'the same at COMMIT', qr/Key \(id\)=\(4712\) is not present in table .{1,2}plain/);
$log->shows(sub { run_sql($node, "SELECT 1; BEGIN; SELECT 1; SELECT '$_[0]'; COMMIT", env => { PGOPTIONS => '-c log_min_duration_statement=-1' }) }, 'log_statement in a transaction');
$log->shows(quietly('BEGIN', 'DECLARE c CURSOR FOR SELECT v::int FROM (VALUES ($$1$$), ($$CANARY$$)) AS x (v)', 'FETCH c', 'FETCH c'), 'FETCH of other values');
foreach my $case (
	[ q{INSERT INTO patients SELECT 1, NULL, 'x' FROM nowhere}, qr/relation .{1,2}nowhere.{1,2} does not exist/ ],
	[ q{SELECT nothing FROM patients}, qr/column .{1,2}nothing.{1,2} does not exist/ ],
	[ q{SELECT id FROM patients WHERE}, qr/syntax error at end of input/ ],
	[ q{SELECT id FROM patients WHERE id = 'x'}, qr/invalid input syntax for type integer: .{1,2}\*\*\*/ ],
	[ q{ALTER TABLE patients ADD CONSTRAINT positive CHECK (id > 0); INSERT INTO patients VALUES (-1)}, qr/new row for relation .{1,2}patients.{1,2} violates check constraint .{1,2}positive/ ])
{
	my ($sql, $says) = @$case;
	$log->shows(sub { run_sql($node, $sql) }, "the words of a message: $sql", $says);
}

no_crash($node);
$node->stop;
done_testing();

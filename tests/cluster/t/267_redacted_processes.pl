# Values that no statement of a client names: those that replication applies or decodes, that another process of the statement
# fails on, that the fast path of the protocol carries, that waits and memory are told of, lines of data that look like lines of CONTEXT.

use strict;
use warnings;

use FieldcryptTest;
use LogCanary;
use PostgreSQL::Test::Utils;
use ServerLog;
use Test::More;
use Time::HiRes ();
use Wire;

my $quiet = "log_statement = none\nlog_min_duration_statement = -1\n";
my $node = new_cluster('primary', conf => everything_logged() . $quiet . "wal_level = logical\nmax_wal_senders = 10\nwal_retrieve_retry_interval = 200ms\nmax_worker_processes = 20\n");
value($node, <<'SQL');
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted, email text, age int, about text);
CREATE TABLE plain (id int PRIMARY KEY, t text);
CREATE FUNCTION checked(n int, plain text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF plain ~ '^bad' THEN RAISE EXCEPTION 'this is bad: %', plain; END IF;
    RETURN fieldcrypt.ciphertext_text(fieldcrypt.encrypt_field(plain));
END $$;
CREATE FUNCTION harmless(n int) RETURNS int LANGUAGE sql AS 'SELECT n';
SQL
my $log = LogCanary->new($node);

# Sessions that know the names already.
sub known
{
	my ($work) = @_;
	return sub {
		my ($canary) = @_;
		my $session = session($node);
		$session->run('SELECT 1 / 0');
		$session->value('SELECT 1');
		my $result = ref $work ? $work->($session, $canary) : $session->run($work =~ s/CANARY/$canary/gr);
		$session->close;
		return $result;
	};
}

# Data that looks like lines of CONTEXT (15).
my @begins = (
	'while scanning the abdomen of', 'PL/pgSQL function', 'SQL function "x" of', 'automatic analyze of table', 'processing remote data', 'parallel worker', 'while locking the door on',
	'SQL statement "SELECT', 'COPY of', 'unnamed portal', 'extended query with', 'slot "', 'WAL redo at', 'while inserting index tuple', 'Process 5:', 'Process 5 waits for');
foreach my $begin (@begins)
{
	my $value = qq{"first\n$begin CANARY\nlast"};
	my $psql = "COPY patients (id, age) FROM STDIN WITH (FORMAT csv);\n7,$value\n\\.\n";
	$log->hides(sub { my $sql = $psql =~ s/CANARY/$_[0]/r; run_sql($node, "SELECT 1 / 0; SELECT 1;\n$sql") }, "COPY, a column: $begin", qr/COPY patients, line \d+/);
	$psql = "COPY patients (id, email) FROM STDIN WITH (FORMAT csv);\n7,$value,more\n\\.\n";
	$log->hides(sub { my $sql = $psql =~ s/CANARY/$_[0]/r; run_sql($node, "SELECT 1 / 0; SELECT 1;\n$sql") }, "COPY, a line: $begin", qr/COPY patients, line \d+/);
	my $literal = qq{first\n$begin CANARY};
	$log->hides(known(qq{SELECT E'{"a":\n$begin CANARY}'::json FROM patients}), "JSON: $begin", qr/22P02/);
	$log->hides(known(qq{DO \$\$ BEGIN EXECUTE format('SELECT 1 / 0, %L FROM patients LIMIT 1', '$literal'); END \$\$}), "a statement in DO: $begin", qr/22012/);
	$log->hides(known(qq{DO \$\$ BEGIN PERFORM checked(1, E'bad\n$begin CANARY'); END \$\$}), "RAISE: $begin", qr/P0001/);
	$log->hides(
		sub { Wire->connect($node)->query('SELECT 1 / 0')->parse('', 'SELECT checked(1, $1), 1 / (SELECT count(*) FROM plain)')->bind('', '', "x\n$begin $_[0]")->execute('')->sync->answer },
		"parameters: $begin", qr/22012/);
}
# COPY in which a trigger's statement fails: its CONTEXT comes before the data.
value($node, <<'SQL');
CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM 1 / (NEW.id - 8); EXECUTE 'SELECT 1 AS "odd"' || (SELECT 'x' WHERE NEW.id <> 9); RETURN NEW; END $$;
CREATE TRIGGER fails BEFORE INSERT ON patients FOR EACH ROW EXECUTE FUNCTION fails();
SQL
foreach my $id (8, 9, 10)
{
	$log->hides(sub { run_sql($node, "SELECT 1 / 0; SELECT 1;\nCOPY patients (id, email) FROM STDIN WITH (FORMAT csv);\n$id,\"x\nwhile scanning $_[0]\"\n\\.\n") },
		"COPY, a trigger fails, $id", $id == 10 ? undef : qr/PL\/pgSQL function fails\(\) line 1/);
}
value($node, 'DROP TRIGGER fails ON patients');

# The fast path: values without a statement.
my %oid = map { split /=/ } split /\n/, value($node, q{SELECT proname || '=' || oid FROM pg_proc WHERE proname IN ('checked', 'harmless', 'encrypt_field') AND pronamespace IN ('public'::regnamespace, 'fieldcrypt'::regnamespace)});
foreach my $begin ('', 'BEGIN')
{
	my $call = sub {
		my ($function, @values) = @_;
		return sub {
			my ($canary) = @_;
			my $wire = Wire->connect($node);
			$wire->query($_)->answer foreach 'SELECT 1 / 0', 'SELECT 1', $begin;
			return $wire->call($oid{$function}, map { s/CANARY/$canary/r } @values)->answer;
		};
	};
	$log->hides($call->('checked', 1, 'bad CANARY'), "the fast path, a message $begin", qr/P0001/);
	$log->hides($call->('checked', 'CANARY', 'x'), "the fast path, an argument $begin", qr/22P02/);
	$log->hides($call->('harmless', 'CANARY'), "the fast path, a function of which nothing is known $begin", qr/22P02/);
	$log->hides($call->('encrypt_field', 'CANARY', 'x', "a\xff"), "the fast path, a door $begin", qr/22021/);
}

# Processes that help with a plan.
value($node, 'INSERT INTO plain SELECT i, i FROM generate_series(1, 5000) AS i; ANALYZE plain; INSERT INTO patients (id, age) SELECT i, i FROM generate_series(100, 5000) AS i; ANALYZE patients');
my $parallel = force_parallel() . 'SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;';
$log->hides(known("$parallel SELECT count(*) FROM patients WHERE ('CANARY' || age)::int > 0"), 'a parallel plan', qr/22P02/);
$log->hides(known("$parallel CREATE FUNCTION hidden(t text) RETURNS text PARALLEL SAFE LANGUAGE plpgsql AS \$\$ BEGIN EXECUTE 'SELECT field' || 'crypt.ciphertext_info(NULL)'; RETURN t::int; END \$\$;
	SELECT 1 / 0; SELECT 1; SELECT count(hidden('CANARY' || id)) FROM plain"), 'a parallel plan with a function of which nothing is known', undef);

# Autovacuum and ANALYZE: expressions of an index.
value($node, <<'SQL');
CREATE FUNCTION number_of(t text) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN IF current_setting('app.strict', true) = 'on' THEN RETURN t::int; END IF; RETURN 0; END $$;
CREATE TABLE analyzed (ssn fieldcrypt.encrypted, email text) WITH (autovacuum_enabled = off);
CREATE INDEX ON analyzed (number_of(email));
SQL
my $analyze = sub { value($node, "TRUNCATE analyzed; INSERT INTO analyzed (email) SELECT '$_[0]' FROM generate_series(1, 500)") };
$log->hides(sub { $analyze->(@_); run_sql($node, "SELECT 1 / 0; SELECT 1; SET app.strict = on; ANALYZE analyzed") }, 'ANALYZE', qr/22P02/);
value($node, q{ALTER SYSTEM SET autovacuum_naptime = 1; ALTER DATABASE postgres SET app.strict = 'on'; ALTER TABLE analyzed SET (autovacuum_enabled = on, autovacuum_analyze_threshold = 1)});
$log->hides(
	sub {
		run_sql($node, "SET app.strict = off; TRUNCATE analyzed; INSERT INTO analyzed (email) SELECT '$_[0]' FROM generate_series(1, 500)");
		$node->reload;
		my $seen;
		foreach (1 .. 300)
		{
			$seen = slurp_file(log_files($node)->{stderr}) =~ /CONTEXT:.*\n(?:.*\n)*?.*automatic analyze of table "postgres\.public\.analyzed"/;
			last if $seen;
			Time::HiRes::usleep(100_000);
		}
		ok($seen, 'autovacuum has failed');
	},
	'autovacuum', qr/automatic analyze of table .{1,2}postgres\.public\.analyzed/);
value($node, 'ALTER DATABASE postgres RESET app.strict; ALTER SYSTEM RESET autovacuum_naptime; DROP TABLE analyzed');
$node->reload;

# Decoding: by a function, and for a receiver.
value($node, q{SELECT pg_create_logical_replication_slot('decoded', 'test_decoding')});
$log->hides(known(q{INSERT INTO patients (id, email) VALUES (50, 'CANARY'); SELECT * FROM pg_logical_slot_peek_changes('decoded', NULL, NULL, 'include-xids', 'CANARY'), patients LIMIT 1}), 'an option of a decoding plugin', qr/include-xids|\*\*\*/);
value($node, q{SELECT pg_drop_replication_slot('decoded')});

# Replication (16): a row that the subscriber's constraint, key or type refuses, at first (tablesync) and later (apply).
my $subscriber = new_cluster('subscriber', conf => everything_logged() . $quiet . "wal_retrieve_retry_interval = 200ms\nmax_worker_processes = 20\n");
my $at = LogCanary->new($subscriber);
$at->{serial} = 5000;
my @tables = (
	[ 'checked_rows', 'id int PRIMARY KEY, ssn fieldcrypt.encrypted, email text', q{, CHECK (email !~ '^bad')}, 'bad CANARY', '23514' ],
	[ 'keyed_rows', 'id int PRIMARY KEY, ssn fieldcrypt.encrypted, email text', ', UNIQUE (email)', 'twice CANARY', '23505' ],
	[ 'typed_rows', 'id int PRIMARY KEY, email text, ssn fieldcrypt.encrypted', '', 'CANARY', '22P02' ],
	[ 'bytes_rows', 'id int PRIMARY KEY, ssn text, email text', '', 'CANARY', 'KF001' ]);
foreach my $case (@tables)
{
	my ($name, $columns, $constraint, $email, $sqlstate) = @$case;
	value($node, "CREATE TABLE $name ($columns)");
	my $there = $sqlstate eq '22P02' ? $columns =~ s/email text/email int/r : $sqlstate eq 'KF001' ? $columns =~ s/ssn text/ssn fieldcrypt.encrypted/r : $columns;
	foreach my $when ('tablesync', 'apply')
	{
		value($subscriber, "CREATE TABLE $name ($there$constraint)");
		value($node, "TRUNCATE $name; CREATE PUBLICATION of_$name FOR TABLE $name");
		value($subscriber, "INSERT INTO $name (id, email) VALUES (-1, 'twice ' || 'Zq' || lpad('" . ($at->{serial} + 1) . "', 6, '0') || 'Canary')") if $sqlstate eq '23505';
		my $connection = $node->connstr('postgres') =~ s{'}{}gr;
		my $subscribe = "CREATE SUBSCRIPTION of_$name CONNECTION '$connection' PUBLICATION of_$name";
		$at->hides(
			sub {
				my ($canary) = @_;
				my $value = $email =~ s/CANARY/$canary/r;
				my $insert = $sqlstate eq 'KF001' ? "INSERT INTO $name (id, ssn) VALUES (1, '$value')" : "INSERT INTO $name (id, email) VALUES (1, '$value')";
				my $from = -s log_files($subscriber)->{stderr};
				value($node, $insert) if $when eq 'tablesync';
				value($subscriber, $subscribe);
				if ($when eq 'apply')
				{
					$subscriber->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_subscription_rel WHERE srsubstate IN ('r', 's')") or die;
					value($node, $insert);
				}
				my $seen;
				foreach (1 .. 300)
				{
					$seen = substr(slurp_file(log_files($subscriber)->{stderr}), $from) =~ / $sqlstate: /;
					last if $seen;
					Time::HiRes::usleep(100_000);
				}
				ok($seen, "$name, $when: it has failed");
				value($subscriber, "ALTER SUBSCRIPTION of_$name DISABLE; ALTER SUBSCRIPTION of_$name SET (slot_name = NONE); DROP SUBSCRIPTION of_$name");
				return;
			},
			"$name, $when", $sqlstate eq 'KF001' ? undef : qr/\*\*\*/);
		value($subscriber, "DROP TABLE $name");
		value($node, "DROP PUBLICATION of_$name; SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL");
		$node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM pg_replication_slots WHERE active') or die;
		value($node, 'SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots');
	}
}
# Its publisher's side: statements of tablesync workers.
like(slurp_file(log_files($node)->{stderr}), qr/SELECT|patients/, 'the publisher has a log');
no_crash($subscriber);
$subscriber->stop;

# What is waited for (19): the number of an advisory lock may be a value.
my $number = 123454321;
value($node, "INSERT INTO patients (id, ssn) VALUES (60, fieldcrypt.encrypt_field('$number'))");
my $waits = known(
	sub {
		my ($session) = @_;
		my $holder = session($node);
		$holder->value("SELECT pg_advisory_lock($number)");
		$session->value("SET lock_timeout = '1s'");
		my $result = $session->run('SELECT pg_advisory_lock(fieldcrypt.decrypt_field(ssn)::int) FROM patients WHERE id = 60');
		$holder->close;
		return $result;
	});
my $outcome = $log->hides($waits, 'waiting for an advisory lock', qr/still waiting for ExclusiveLock on advisory lock \[\*\*\*\]/);
unlike($outcome->{log}{$_}, qr/$number/, "the number of an advisory lock, $_") foreach sort keys %{ $outcome->{log} };
# A deadlock tells each of the statements and locks of the other.
$outcome = $log->hides(
	sub {
		my ($canary) = @_;
		my ($one, $two) = map { session($node) } 1 .. 2;
		$_->run('SELECT 1 / 0') foreach $one, $two;
		$_->value('SELECT 1') foreach $one, $two;
		$one->value("PREPARE p(text) AS SELECT pg_advisory_xact_lock($number), checked(1, \$1)");
		$one->value('BEGIN; SELECT pg_advisory_xact_lock(1)');
		$two->value("BEGIN; SELECT pg_advisory_xact_lock($number)");
		$one->send("EXECUTE p('$canary')");
		$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'advisory'}) or die;
		my $result = $two->run('SELECT pg_advisory_xact_lock(1)');
		my $other = $one->run('SELECT 1');
		$_->close foreach $one, $two;
		return { err => $result->{err} . $other->{err} };
	},
	'a deadlock with EXECUTE', qr/40P01/);
unlike($outcome->{log}{$_}, qr/$number/, "a deadlock, the number of an advisory lock, $_") foreach sort keys %{ $outcome->{log} };
like($outcome->{log}{stderr}, qr/Process \d+: (?:EXECUTE p\('\*\*\*'\)|SELECT pg_advisory_xact_lock\(0\))/, 'the statements are there, masked');

# The memory of a session: what it has prepared.
$log->hides(
	known(sub {
		my ($session, $canary) = @_;
		$session->value("PREPARE p AS SELECT 1 AS \"used: 1 used\", '$canary' FROM patients");
		$session->value('SELECT pg_log_backend_memory_contexts(pg_backend_pid())');
		$session->run('SELECT 1 / 0');
	}),
	'the memory of a session', qr/CachedPlanSource: \d+ total in \d+ blocks; \d+ free \(\d+ chunks\); \d+ used: \*\*\*/);

# Short literals, at levels at which the server talks much.
my $debug = known("SET log_min_messages = debug5; SELECT 'q7' FROM patients WHERE email = 'q7'; CREATE TEMP TABLE of_q (t text DEFAULT 'q7', ssn fieldcrypt.encrypted); DO \$\$ BEGIN PERFORM checked(1, 'q7'); END \$\$; SELECT 'q7'::date FROM patients");
$outcome = $log->hides($debug, 'debug5', qr/22007/);
unlike($outcome->{log}{$_}, qr/q7/, "short literals at debug5, $_") foreach sort keys %{ $outcome->{log} };

no_crash($node);
$node->stop;
done_testing();

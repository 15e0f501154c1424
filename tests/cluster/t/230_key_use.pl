# fieldcrypt.audit_decrypt: every value decrypted is told of once, however its statement ends, with one event
# a client's statement and tenant; and no more than the setting asks for.

use strict;
use warnings;

use FieldcryptTest;
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $node = new_cluster('primary', conf => <<'CONF');
fieldcrypt.audit_decrypt = 'statements'
max_prepared_transactions = 5
parallel_setup_cost = 0
parallel_tuple_cost = 0
min_parallel_table_scan_size = 0
max_parallel_workers_per_gather = 2
CONF

value($node, <<'SQL');
CREATE TABLE kept (id int, tenant text, value fieldcrypt.encrypted) WITH (parallel_workers = 0);
INSERT INTO kept SELECT i, 'tenant ' || i % 3, fieldcrypt.encrypt_field('v' || i, '', 'tenant ' || i % 3) FROM generate_series(1, 300) AS i;
CREATE TABLE many (id int, value fieldcrypt.encrypted) WITH (parallel_workers = 2);
INSERT INTO many SELECT i, fieldcrypt.encrypt_field('v' || i, '', 'many') FROM generate_series(1, 20000) AS i;
CREATE TABLE target (shown text);
-- How it reads the values: by statements of its own, in an expression, in blocks of which some fail.
CREATE FUNCTION by_statements(until int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE shown text; read int := 0;
BEGIN
    FOR i IN 1 .. until LOOP
        SELECT fieldcrypt.decrypt_field(value) INTO shown FROM kept WHERE id = i * 3;
        read := read + length(shown);
    END LOOP;
    RETURN until;
END $$;
CREATE FUNCTION by_expressions(until int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE sealed fieldcrypt.encrypted := (SELECT value FROM kept WHERE id = 3); shown text;
BEGIN
    FOR i IN 1 .. until LOOP
        shown := fieldcrypt.decrypt_field(sealed);
    END LOOP;
    RETURN until;
END $$;
CREATE FUNCTION in_blocks(until int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE failed int := 0; shown text;
BEGIN
    FOR i IN 1 .. until LOOP
        BEGIN
            SELECT fieldcrypt.decrypt_field(value) INTO shown FROM kept WHERE id = i * 3;
            IF i % 2 = 0 THEN RAISE EXCEPTION 'no'; END IF;
        EXCEPTION WHEN raise_exception THEN
            failed := failed + 1;
        END;
    END LOOP;
    RETURN failed;
END $$;
CREATE PROCEDURE in_transactions(until int) LANGUAGE plpgsql AS $$
DECLARE shown text;
BEGIN
    FOR i IN 1 .. until LOOP
        SELECT fieldcrypt.decrypt_field(value) INTO shown FROM kept WHERE id = i * 3;
        IF i % 2 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
    END LOOP;
END $$;
CREATE FUNCTION trigger_reads() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.shown := (SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE id = 3);
    RETURN NEW;
END $$;
CREATE TABLE triggered (shown text);
CREATE TRIGGER read BEFORE INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION trigger_reads();
CREATE VIEW damaged AS SELECT id, CASE WHEN id % 2 = 0 THEN value ELSE
    ('\xf9010123456789abcdef'::bytea || substr(value::bytea, 11))::fieldcrypt.encrypted END AS value FROM kept;
CREATE ROLE bob LOGIN;
SELECT fieldcrypt.grant_access('bob', 'decrypt');
GRANT SELECT ON ALL TABLES IN SCHEMA public TO bob;
SQL

my $read = 0;

# The events that were told since the last call, as "event tenant count", each preceded by who if asked for.
sub events
{
	my (@fields) = @_;
	@fields = qw(event tenant value_count) unless @fields;
	my @found;
	foreach my $event (raw_events())
	{
		push @found, join ' ', map { my $field = $event->{$_}; ref $field ? scalar @$field : $field // '-' } @fields;
	}
	return join ', ', sort @found;
}

# Without preload they are in the server log, with it a worker brings them to the audit log.
my $is_preloaded = 0;
my $last_id = 0;

sub raw_events
{
	if ($is_preloaded)
	{
		$node->poll_query_until('postgres', 'SELECT coalesce(ring_used = 0, true) FROM fieldcrypt.audit_status()') or die;
		my $rows = value($node, <<"SQL");
SELECT id || ' ' || jsonb_set(to_jsonb(a), '{key_ids}', to_jsonb(coalesce(key_ids, CASE WHEN key_id IS NULL THEN '{}' ELSE ARRAY[key_id] END)))
  FROM fieldcrypt.audit_log AS a WHERE id > $last_id AND event LIKE '%decrypt%' ORDER BY id
SQL
		my @rows = map { [ /^(\d+) (.*)$/ ] } split /\n/, $rows;
		$last_id = $rows[-1][0] if @rows;
		return map { JSON::PP::decode_json($_->[1]) } @rows;
	}
	my $log = slurp_file($node->logfile, $read);
	$read += length $log;
	return grep { $_->{event} =~ /decrypt/ } map { JSON::PP::decode_json($_) } $log =~ /fieldcrypt audit: (\{.*\})$/mg;
}

sub tells
{
	my ($sql, $expected, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	events();
	my $result = run_sql($node, $sql, %options);
	my $states = join ' ', @{ $result->{sqlstates} };
	is($states, $options{fails} // '', "$name: ends as it should") or diag $result->{err};
	return is(events(), $expected, $name);
}

my $of_two = q{fieldcrypt.decrypt_field(value) FROM kept WHERE id <= 200};
my $three = 'values_decrypted tenant 0 66, values_decrypted tenant 1 67, values_decrypted tenant 2 67';
my $hundred = 'values_decrypted tenant 0 100, values_decrypted tenant 1 100, values_decrypted tenant 2 100';
my $all = q{SELECT count(fieldcrypt.decrypt_field(value)) FROM kept};

# However the library was loaded.
sub test_all
{
	my ($how) = @_;
	my $case = sub { my ($sql, $expected, $name, %options) = @_; tells($sql, $expected, "$how: $name", %options); };

	$case->("SELECT $of_two", $three, 'one event a tenant');
	$case->("SELECT $of_two; SELECT $of_two", "$three, $three" =~ s/(.*)/join ', ', sort split qr{, }, $1/er, 'and a statement');
	$case->("BEGIN; $all; COMMIT; BEGIN; $all; ROLLBACK", join(', ', sort split /, /, "$hundred, $hundred"), 'also if it is rolled back');
	$case->('SELECT by_statements(100)', 'values_decrypted tenant 0 100', 'statements inside of a function are not told apart');
	$case->('SELECT by_expressions(1000)', 'values_decrypted tenant 0 1000', 'expressions of PL/pgSQL');
	$case->('SELECT in_blocks(100)', 'values_decrypted tenant 0 100', 'blocks with exceptions');
	$case->('DO $$BEGIN PERFORM by_statements(10); PERFORM in_blocks(10); END$$', 'values_decrypted tenant 0 20', 'DO');
	$case->('CALL in_transactions(4)', join(', ', ('values_decrypted tenant 0 1') x 4), 'a procedure: one event a transaction');
	$case->('INSERT INTO triggered SELECT FROM generate_series(1, 50)', 'values_decrypted tenant 0 50', 'triggers');
	$case->("INSERT INTO target SELECT $of_two", $three, 'INSERT SELECT');
	$case->("CREATE TEMPORARY TABLE t AS SELECT $of_two", $three, 'CREATE TABLE AS');
	$case->("COPY (SELECT $of_two) TO STDOUT", $three, 'COPY');
	$case->("EXPLAIN (ANALYZE, COSTS off) SELECT $of_two", $three, 'EXPLAIN ANALYZE');
	$case->("EXPLAIN SELECT $of_two", '', 'EXPLAIN alone');
	$case->("PREPARE p AS SELECT $of_two; EXECUTE p; EXECUTE p", join(', ', sort split /, /, "$three, $three"), 'a prepared statement');
	$case->("BEGIN; DECLARE c CURSOR FOR SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = 'tenant 0'; FETCH 50 FROM c; FETCH 30 FROM c; FETCH 40 FROM c; CLOSE c; COMMIT",
		'values_decrypted tenant 0 20, values_decrypted tenant 0 30, values_decrypted tenant 0 50',
		'a cursor: one event a FETCH');
	$case->("DECLARE c CURSOR WITH HOLD FOR SELECT $of_two; FETCH 10 FROM c; CLOSE c", $three, 'a cursor that is held');
	$case->("BEGIN; INSERT INTO target SELECT $of_two; PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'", $three, 'a prepared transaction');
	$case->("BEGIN; $all; SAVEPOINT a; SELECT by_statements(5); ROLLBACK TO a; SELECT by_statements(6); RELEASE a; COMMIT",
		"values_decrypted tenant 0 100, values_decrypted tenant 0 5, values_decrypted tenant 0 6, values_decrypted tenant 1 100, values_decrypted tenant 2 100", 'savepoints');

	# The extended protocol, where a statement has several messages.
	foreach my $protocol ('extended', 'prepared')
	{
		events();
		my $result = bind($node, 'SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE id = :id', { id => 3 }, protocol => $protocol, transactions => 7);
		is($result->{code}, 0, "$how: protocol $protocol") or diag $result->{err};
		is(events(), join(', ', ('values_decrypted tenant 0 1') x 7), "$how: an event a statement");
		bind($node, "BEGIN; SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE id = :id;\nSELECT count(fieldcrypt.decrypt_field(value)) FROM kept WHERE id <= :id; COMMIT", { id => 3 }, protocol => $protocol);
		is(events(), 'values_decrypted tenant 0 1, values_decrypted tenant 0 1, values_decrypted tenant 1 1, values_decrypted tenant 2 1', "$how: in a transaction");
	}

	# Statements that fail.
	my $fails = q{SELECT count(CASE WHEN id < 150 THEN fieldcrypt.decrypt_field(value) ELSE (1 / (id - 150))::text END) FROM kept};
	my $half = 'values_decrypted tenant 0 49, values_decrypted tenant 1 50, values_decrypted tenant 2 50';
	$case->($fails, $half, 'a statement that fails midway', fails => '22012');
	$case->("BEGIN; $fails; ROLLBACK", $half, 'in a transaction', fails => '22012');
	$case->("BEGIN; $all; $fails; COMMIT", join(', ', sort split /, /, "$hundred, $half"), 'after one that did not', fails => '22012');
	$case->("BEGIN; SAVEPOINT a; $fails; ROLLBACK TO a; SELECT by_statements(7); COMMIT", join(', ', sort split /, /, "$half, values_decrypted tenant 0 7"),
		'in a savepoint', fails => '22012');
	$case->("DO \$\$BEGIN PERFORM by_statements(3); PERFORM 1 / 0; END\$\$", 'values_decrypted tenant 0 3', 'DO that fails', fails => '22012');
	$case->("SELECT by_statements(2); SELECT 1 / 0", 'values_decrypted tenant 0 2', 'a failure afterwards', fails => '22012');

	# A statement that is cancelled.
	{
		events();
		my $session = session($node);
		my $process = $session->server_process;
		$session->send('SELECT by_statements(4), pg_sleep(600);');
		$node->poll_query_until('postgres', "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $process") or die;
		value($node, "SELECT pg_cancel_backend($process)");
		$node->poll_query_until('postgres', "SELECT state = 'idle' FROM pg_stat_activity WHERE pid = $process") or die;
		is(events(qw(event tenant value_count)), 'values_decrypted tenant 0 4', "$how: a statement that is cancelled");
		$session->close;
	}

	# A backend that is terminated.
	foreach my $begin ('', 'BEGIN;', 'BEGIN; SAVEPOINT a;')
	{
		events();
		my $session = session($node);
		my $process = $session->server_process;
		$session->send("$begin SELECT by_statements(8), pg_sleep(60)");
		$node->poll_query_until('postgres', "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $process") or die;
		value($node, "SELECT pg_terminate_backend($process)");
		$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $process") or die;
		is(events(qw(event tenant value_count backend_pid)), "values_decrypted tenant 0 8 $process", "$how: a backend that is terminated ($begin)");
		$session->close;
	}

	# Parallel workers tell of their own, under their leader's process id.
	{
		events();
		my $session = session($node);
		my $process = $session->server_process;
		my $explained = $session->value('EXPLAIN (ANALYZE, COSTS off, TIMING off) SELECT count(fieldcrypt.decrypt_field(value)) FROM many');
		like($explained, qr/Workers Launched: [12]/, "$how: a parallel query");
		my ($count, $processes) = (0, 0);
		my %who;
		foreach my $event (raw_events())
		{
			$count += $event->{value_count};
			++$processes;
			$who{"$event->{event} $event->{tenant} $event->{backend_pid}"} = 1;
		}
		is($count, 20000, "$how: each value is counted once");
		is(join(',', keys %who), "values_decrypted many $process", "$how: all are the session's");
		cmp_ok($processes, '<=', 3, "$how: one event a process");
		$session->close;
	}

	# Failures that give NULL.
	my $null = 'decrypt_failed - 150 KF003 150, values_decrypted tenant 0 50 - 1, values_decrypted tenant 1 50 - 1, values_decrypted tenant 2 50 - 1';
	events();
	gives($node, 'SELECT count(fieldcrypt.try_decrypt_field(value)) FROM damaged', '150', "$how: try_decrypt_field");
	(my $expected = $null) =~ s/KF003 150/KF003 1/;
	is(events(qw(event tenant value_count error_code key_ids)), $expected, "$how: failures of a kind are one event");
	gives($node, q{SELECT count(fieldcrypt.try_decrypt_field(value, 'other')) FROM kept WHERE id <= 9}, '0', "$how: another context");
	is(events(qw(event tenant value_count error_code)), 'decrypt_failed tenant 0 3 KF002, decrypt_failed tenant 1 3 KF002, decrypt_failed tenant 2 3 KF002', "$how: told by tenant");

	# What the setting asks for.
	$case->("SET fieldcrypt.audit_decrypt = off; $all; SELECT count(fieldcrypt.try_decrypt_field(value)) FROM damaged", '', 'off');
	$case->("SET fieldcrypt.audit_decrypt = failures; $all; SELECT count(fieldcrypt.try_decrypt_field(value)) FROM damaged", 'decrypt_failed - 150', 'failures');
	$case->("SET fieldcrypt.audit_decrypt = 'all'; SELECT by_statements(3), by_expressions(2)", join(', ', ('values_decrypted tenant 0 1') x 5), 'all: an event a value');
	$case->("SET fieldcrypt.audit_decrypt = off; SELECT set_config('fieldcrypt.audit_decrypt', 'statements', false), by_statements(3)", 'values_decrypted tenant 0 3', 'changed inside of a statement');
	refused($node, "$all; SET fieldcrypt.audit_decrypt = off", '42501', qr/permission denied to set parameter/, "$how: nobody else sets it", user => 'bob');
	events();
	value($node, "SELECT by_expressions(1)", user => 'bob', env => { PGAPPNAME => "a 'name'" });
	is(events(qw(event tenant actor role application)), "values_decrypted tenant 0 bob bob a 'name'", "$how: who it was");
	value($node, "SET ROLE bob; SELECT by_expressions(1)");
	like(events(qw(event tenant actor role)), qr/^values_decrypted tenant 0 (?!bob)\S+ bob$/, "$how: and under which role");

	# Encryption and re-encryption show no plaintext.
	$case->("SELECT count(fieldcrypt.encrypt_field(id::text)), count(fieldcrypt.reencrypt_field(value)) FROM kept", '', 'nothing is told of what shows nothing');
}

test_all('loaded by the statement');
configure($node, session_preload_libraries => 'pg_fieldcrypt');
test_all('loaded before');
configure($node, session_preload_libraries => '');

# An attacker's own setting, from before the library is loaded.
events();
value($node, 'SELECT by_expressions(2)', user => 'bob', env => { PGOPTIONS => '-c fieldcrypt.audit_decrypt=off' });
is(events(), join(', ', ('values_decrypted tenant 0 1') x 2), 'a client that switches it off has everything recorded');

# More keys than an event names, more tenants than the cache holds.
value($node, <<'SQL');
CREATE TABLE rotated (value fieldcrypt.encrypted);
DO $$ BEGIN
    FOR i IN 1 .. 40 LOOP
        INSERT INTO rotated SELECT fieldcrypt.encrypt_field('x', '', 'rotated') FROM generate_series(1, 2);
        PERFORM fieldcrypt_internal.rotate_active_key('rotated', NULL, true, NULL);
    END LOOP;
END $$;
CREATE TABLE tenants AS SELECT fieldcrypt.encrypt_field('x', '', 'of ' || i) AS value FROM generate_series(1, 6000) AS i;
SQL
events();
gives($node, 'SELECT count(fieldcrypt.decrypt_field(value)) FROM rotated', '80', '40 keys of a tenant');
is(events(qw(event tenant value_count key_ids reason)), 'values_decrypted rotated 80 32 more keys were used than the 32 listed', 'an event names 32 of them, and says so');
foreach my $size (1, 100, 10000)
{
	events();
	gives($node, "SET fieldcrypt.key_cache_size = $size; SELECT count(fieldcrypt.decrypt_field(value)) FROM tenants", '6000', "6000 tenants, a cache of $size keys");
	my %counts;
	$counts{ $_->{tenant} } += $_->{value_count} foreach raw_events();
	is(join(' ', scalar keys %counts, scalar grep { $_ != 1 } values %counts), '6000 0', 'each is told of once');
}

# The master key changes in the middle of a transaction: what was counted stays.
{
	events();
	my $session = session($node);
	$session->value('BEGIN; SELECT by_statements(5)');
	use_key_file($node, key_text(1), key_text(2));
	$node->reload;
	$session->value('SELECT by_statements(6); COMMIT');
	is(events(), 'values_decrypted tenant 0 5, values_decrypted tenant 0 6', 'a reload of the master key');
	$session->close;
}

# Errors come through the hooks as they were raised.
sub test_errors
{
	my ($how) = @_;
	value($node, 'DROP TABLE IF EXISTS unique_one; CREATE TABLE unique_one (id int PRIMARY KEY, CONSTRAINT small CHECK (id < 10)); INSERT INTO unique_one VALUES (1)');
	my $result = run_sql($node, 'SELECT by_expressions(1); INSERT INTO unique_one VALUES (1)');
	like($result->{err}, qr/ERROR:  23505: .*DETAIL:  Key \(id\)=\(1\) already exists\..*SCHEMA NAME:  public\nTABLE NAME:  unique_one\nCONSTRAINT NAME:  unique_one_pkey\nLOCATION:  _bt_check_unique/s, "$how: an error keeps its fields");
	$result = run_sql($node, 'SELECT by_expressions(1); DO $$BEGIN PERFORM nothing(); END$$');
	like($result->{err}, qr/ERROR:  42883: .*LINE 1: SELECT nothing\(\)\n.*QUERY:  SELECT nothing\(\)\nCONTEXT:  PL\/pgSQL function inline_code_block line 1 at PERFORM/s, "$how: and its position and context");
}

test_errors('not preloaded');

$node->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_fieldcrypt'");
$node->restart;
$is_preloaded = 1;
raw_events();
test_all('preloaded');
test_errors('preloaded');

no_crash($node);
$node->stop;
done_testing();

# A locked tenant: whatever SQL an attacker can add to a transaction, its values are the locked tenant's. With
# lock_tenant the application says whose request it is, once, before anything that it does not trust.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Protocol;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nmax_prepared_transactions = 5\n");
value($node, <<'SQL');
CREATE ROLE app LOGIN;
CREATE ROLE writer LOGIN;
CREATE ROLE reader LOGIN;
CREATE ROLE mover LOGIN;
SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt', 'reencrypt');
SELECT fieldcrypt.grant_access('writer', 'encrypt');
SELECT fieldcrypt.grant_access('reader', 'decrypt');
SELECT fieldcrypt.grant_access('mover', 'reencrypt', 'manage', 'audit', 'backup');
GRANT CREATE ON SCHEMA public TO app;
CREATE TABLE t (id int PRIMARY KEY, v fieldcrypt.encrypted);
INSERT INTO t SELECT 1, fieldcrypt.encrypt_field('of acme', tenant => 'acme');
INSERT INTO t SELECT 2, fieldcrypt.encrypt_field('of umbrella', tenant => 'umbrella');
GRANT SELECT, INSERT ON t TO app, reader;
CREATE FUNCTION for_umbrella() RETURNS text LANGUAGE sql SET fieldcrypt.tenant = 'umbrella' AS $$ SELECT fieldcrypt.decrypt_field(v) FROM t WHERE id = 2 $$;
CREATE FUNCTION for_umbrella_parallel(v fieldcrypt.encrypted) RETURNS text LANGUAGE plpgsql PARALLEL SAFE STABLE SET fieldcrypt.tenant = 'umbrella' AS $$ BEGIN RETURN fieldcrypt.decrypt_field(v); END $$;
CREATE FUNCTION for_acme() RETURNS text LANGUAGE sql SET fieldcrypt.tenant = 'acme' AS $$ SELECT fieldcrypt.decrypt_field(v) FROM t WHERE id = 1 $$;
CREATE FUNCTION as_owner(id int) RETURNS text LANGUAGE sql SECURITY DEFINER AS $$ SELECT fieldcrypt.decrypt_field(t.v) FROM t WHERE t.id = $1 $$;
CREATE FUNCTION begin_request(tenant text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$ BEGIN PERFORM fieldcrypt.lock_tenant(tenant); END $$;
CREATE FUNCTION own_clause() RETURNS void LANGUAGE plpgsql SET fieldcrypt.tenant = 'acme' AS $$ BEGIN PERFORM fieldcrypt.lock_tenant('acme'); END $$;
SQL
my @app = (user => 'app');
my $own = 'SELECT fieldcrypt.decrypt_field(v) FROM t WHERE id = 1';
my $others = 'SELECT fieldcrypt.decrypt_field(v) FROM t WHERE id = 2';
my $lock = q{SELECT fieldcrypt.lock_tenant('acme')};

# A test: after the lock, an attack, which fails with this SQLSTATE or with nothing, changes nothing: the own
# values are there (after ROLLBACK TO, if it failed), and no other's are.
sub holds
{
	my ($attack, $state, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $session = session($node, @app);
	$session->value("BEGIN; $lock; SAVEPOINT before");
	my $result = $session->run($attack);
	is(join(' ', @{ $result->{sqlstates} }), $state, "$name: " . ($state || 'no error')) or diag $result->{err};
	like($result->{err}, qr/fieldcrypt\.tenant is locked until the transaction ends.*HINT/s, "$name: says why") if $state eq 'KF030';
	my $after = $session->run($others);
	like("@{ $after->{sqlstates} }", $state ? qr/^25P02$/ : qr/^KF006$/, "$name: no other tenant's values");
	unlike($after->{out} . $result->{out}, qr/of umbrella/, "$name: nothing of another tenant");
	$session->value('ROLLBACK TO before');
	$session->gives($own, 'of acme', "$name: the own values");
	$session->gives('SHOW fieldcrypt.tenant', 'acme', "$name: the setting");
	$session->refused($others, 'KF006', "$name: no other tenant's values after a ROLLBACK TO");
	$session->value('ROLLBACK');
	$session->gives($others, 'of umbrella', "$name: and the next transaction is free");
	$session->close;
	return;
}

foreach my $attack (
	q{SET fieldcrypt.tenant = 'umbrella'}, q{SET LOCAL fieldcrypt.tenant = 'umbrella'}, q{SET SESSION fieldcrypt.tenant = 'umbrella'}, q{SET fieldcrypt.tenant = ''},
	'SET fieldcrypt.tenant TO DEFAULT', 'SET LOCAL fieldcrypt.tenant TO DEFAULT', 'RESET fieldcrypt.tenant', 'RESET ALL',
	q{SELECT set_config('fieldcrypt.tenant', 'umbrella', false)}, q{SELECT set_config('fieldcrypt.tenant', 'umbrella', true)}, q{SELECT set_config('fieldcrypt.tenant', '', true)},
	q{SELECT set_config('fieldcrypt.tenant', NULL, false)}, q{SELECT set_config('fieldcrypt.tenant', NULL, true)}, q{SELECT set_config('FieldCrypt.Tenant', 'umbrella', false)},
	q{UPDATE pg_settings SET setting = 'umbrella' WHERE name = 'fieldcrypt.tenant'}, q{SELECT fieldcrypt.lock_tenant('umbrella')},
	'SELECT for_umbrella()', q{SELECT for_umbrella_parallel(v) FROM t WHERE id = 2}, q{SELECT begin_request('umbrella')},
	q{SELECT set_config('fieldcrypt.tenant', 'umbrella', true) || fieldcrypt.decrypt_field(v) FROM t WHERE id = 2},
	q{WITH s AS MATERIALIZED (SELECT set_config('fieldcrypt.tenant', NULL, true)) SELECT fieldcrypt.decrypt_field(v) FROM t, s WHERE id = 2},
	q{DO $$ BEGIN EXECUTE 'RESET fieldcrypt.tenant'; PERFORM fieldcrypt.decrypt_field(v) FROM t WHERE id = 2; END $$},
	q{PREPARE a AS SELECT set_config('fieldcrypt.tenant', 'umbrella', true); EXECUTE a}, q{ALTER ROLE app SET fieldcrypt.tenant = 'umbrella'},
	q{CREATE FUNCTION f() RETURNS text LANGUAGE sql SET fieldcrypt.tenant = 'umbrella' AS 'SELECT NULL::text'},
	q{SET check_function_bodies = off; CREATE FUNCTION f() RETURNS text LANGUAGE sql SET fieldcrypt.tenant = 'umbrella' AS 'SELECT NULL::text'},
	q{ALTER FUNCTION for_acme() SET fieldcrypt.tenant = 'umbrella'},
	q{DECLARE c CURSOR FOR SELECT set_config('fieldcrypt.tenant', 'umbrella', true); FETCH c})
{
	my $refused = $attack =~ /ALTER FUNCTION/ ? '42501' : 'KF030';
	holds($attack, $refused, $attack);
}
# What fails softly, or does nothing.
holds(q{DO $$ BEGIN PERFORM set_config('fieldcrypt.tenant', 'umbrella', true); EXCEPTION WHEN OTHERS THEN NULL; END $$}, '', 'an error that is caught');
holds(q{DO $$ BEGIN EXECUTE 'RESET ALL'; EXCEPTION WHEN OTHERS THEN NULL; END $$}, '', 'RESET ALL, caught');
holds(q{SET LOCAL fieldcrypt.tenant = 'acme'; SET fieldcrypt.tenant = 'acme'; SELECT fieldcrypt.lock_tenant('acme'); SELECT for_acme()}, '', 'the same tenant again');
holds('SELECT as_owner(1)', '', 'a SECURITY DEFINER function: the own values');
holds('SELECT as_owner(2)', 'KF006', 'a SECURITY DEFINER function');
holds('DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES', '', 'DISCARD of something else');
holds('DISCARD ALL', '25001', 'DISCARD ALL');
holds('SAVEPOINT a; SAVEPOINT b; ROLLBACK TO a; RELEASE a', '', 'savepoints after the lock');
holds(q{SELECT fieldcrypt.encrypt_field('x', tenant => 'umbrella')}, 'KF006', 'encrypting for another tenant');
holds(q{SELECT fieldcrypt.encrypt_field_bytea('x', 'c', 'umbrella')}, 'KF006', 'encrypting bytes for another tenant');
holds(q{SELECT fieldcrypt.encrypt_field_jsonb('1', 'c', 'umbrella')}, 'KF006', 'encrypting JSON for another tenant');
holds('SELECT fieldcrypt.reencrypt_field(v) FROM t WHERE id = 2', 'KF006', "re-encrypting another tenant's value");
holds('SELECT fieldcrypt.try_decrypt_field(v) FROM t WHERE id = 2', 'KF006', "try_decrypt_field of another tenant's value");
holds(q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x')) = fieldcrypt.key_id(v) FROM t WHERE id = 1}, '', 'encrypting for nobody is for the locked one');

# A savepoint from before the lock takes the setting back, not the lock.
{
	my $session = session($node, @app);
	foreach my $way ('SAVEPOINT s', 'SAVEPOINT s; SAVEPOINT deeper')
	{
		$session->value("BEGIN; $way; $lock");
		$session->value('ROLLBACK TO s');
		$session->refused("$others", 'KF006', "$way: not after ROLLBACK TO");
		$session->value('ROLLBACK TO s');
		$session->gives('SHOW fieldcrypt.tenant', 'acme', "$way: the setting is back");
		$session->gives(q{SELECT current_setting('fieldcrypt.tenant')}, 'acme', "$way: for SELECT, too");
		$session->gives($own, 'of acme', "$way: the own values");
		$session->refused(q{SELECT fieldcrypt.lock_tenant('umbrella')}, 'KF030', "$way: no other lock");
		$session->value('ROLLBACK TO s');
		$session->refused(q{SET fieldcrypt.tenant = 'umbrella'}, 'KF030', "$way: no other value");
		$session->value('ROLLBACK');
		$session->gives('SHOW fieldcrypt.tenant', '', "$way: until the transaction ends");
	}
	# PL/pgSQL's savepoint, and a value that is read without a statement.
	$session->gives(<<'SQL', 'KF006', 'an EXCEPTION block around the lock');
BEGIN;
DO $$
DECLARE other fieldcrypt.encrypted := (SELECT v FROM t WHERE id = 2); got text;
BEGIN
    BEGIN
        PERFORM fieldcrypt.lock_tenant('acme');
        RAISE EXCEPTION 'back';
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
    BEGIN
        got := fieldcrypt.decrypt_field(other);
    EXCEPTION WHEN OTHERS THEN got := SQLSTATE;
    END;
    PERFORM set_config('test.got', got, true);
END $$;
SELECT current_setting('test.got');
COMMIT;
SQL
	$session->close;
}

# Where it ends.
{
	my $session = session($node, @app);
	foreach my $end ('COMMIT', 'ROLLBACK', 'COMMIT AND CHAIN', 'ROLLBACK AND CHAIN', q{PREPARE TRANSACTION 'p'}, 'SELECT 1/0; ROLLBACK')
	{
		$session->value("BEGIN; $lock; INSERT INTO t SELECT 100 + count(*), fieldcrypt.encrypt_field('x') FROM t");
		$session->run($end);
		$session->gives(q{SELECT coalesce(nullif(current_setting('fieldcrypt.tenant'), ''), 'none')}, 'none', "$end: the setting is back");
		$session->gives($others, 'of umbrella', "$end: the lock is over");
		$session->run(q{ROLLBACK; ROLLBACK PREPARED 'p'});
	}
	$session->value(q{SET fieldcrypt.tenant = 'umbrella'});
	$session->gives("BEGIN; $lock; SHOW fieldcrypt.tenant; $own; COMMIT; SHOW fieldcrypt.tenant", "\nacme\nof acme\numbrella", 'what the session had before comes back');
	$session->gives("BEGIN; $lock; SET fieldcrypt.tenant = 'acme'; COMMIT; SHOW fieldcrypt.tenant; SET fieldcrypt.tenant = 'umbrella'", "\nacme", 'what was set for the session stays');
	$session->refused("BEGIN; $lock; SELECT set_config('fieldcrypt.tenant', 'acme', true), set_config('fieldcrypt.tenant', NULL, true)", 'KF030', 'the same tenant, then none, in one statement');
	$session->value('ROLLBACK');
	$session->value(q{RESET fieldcrypt.tenant});
	$session->gives("$lock; $others", "\nof umbrella", 'without a transaction block it is over with its statement');
	like($session->run($lock)->{err}, qr/WARNING:  25P01: there is no transaction block: the tenant is locked until this statement is committed, with the pipeline/, 'and says so');
	unlike($session->run('BEGIN; ' . $lock . '; COMMIT')->{err}, qr/WARNING/, 'in a block it does not');
	unlike($session->run(q{SELECT begin_request('acme')})->{err}, qr/WARNING/, 'nor in a function, which may use it itself');
	$session->refused("BEGIN; SELECT own_clause(); COMMIT", 'KF030', 'a function whose own SET clause would take it back');
	$session->gives("SELECT 1; $others", "1\nof umbrella", 'after that');
	$session->gives(q{BEGIN; SELECT begin_request('acme'); } . $own, "\nof acme", 'a function with another SET clause');
	$session->refused($others, 'KF006', 'a function with another SET clause: others');
	$session->value('ROLLBACK');
	$session->close;
}
{
	my $result = run_sql($node, q{CREATE PROCEDURE two() LANGUAGE plpgsql AS $$ DECLARE got text; BEGIN
		PERFORM fieldcrypt.lock_tenant('acme'); COMMIT; PERFORM fieldcrypt.lock_tenant('umbrella'); got := fieldcrypt.decrypt_field(v) FROM t WHERE id = 2; RAISE NOTICE 'got %', got; END $$; CALL two()});
	like($result->{err}, qr/got of umbrella/, 'a procedure that commits: a lock a transaction');
}

# What can't be a tenant; who may.
refused($node, "BEGIN; SELECT fieldcrypt.lock_tenant($_->[0])", $_->[1], "lock_tenant($_->[0])", @app)
  foreach [ "''", '22023' ], [ 'NULL', '22004' ], [ "' acme'", '22023' ], [ "E'ac\\nme'", '22023' ], [ "'audit log'", '22023' ], [ "repeat('t', 1025)", '22023' ];
refused($node, q{BEGIN; SET LOCAL app.tenant = 'acme'; COMMIT; BEGIN; SELECT fieldcrypt.lock_tenant(current_setting('app.tenant', true))}, '22023', qr/HINT:.*SET LOCAL in an earlier transaction/, 'a setting that was SET LOCAL once', @app);
gives($node, q{BEGIN; SELECT fieldcrypt.lock_tenant(repeat('t', 1024)); SELECT current_setting('fieldcrypt.tenant') = repeat('t', 1024)}, "\nt", 'the longest name', @app);
gives($node, "BEGIN; $lock; SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x')) > 0", "\nt", 'who only encrypts may', user => 'writer');
gives($node, "BEGIN; $lock; $own", "\nof acme", 'who only decrypts may', user => 'reader');
refused($node, "BEGIN; $lock", '42501', 'the others may not', user => 'mover');
value($node, q{CREATE TABLE planted (id int); CREATE FUNCTION planted() RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT fieldcrypt.lock_tenant('umbrella'); SELECT 1 $$;
	ALTER FUNCTION planted() OWNER TO app; ALTER TABLE planted OWNER TO app; INSERT INTO planted VALUES (1)});
refused($node, 'CREATE INDEX ON planted ((planted()))', '42501', qr/security-restricted/, 'an index expression does not lock the tenant of who builds it', @app);

# A lock while the configuration file changes: the file counts afterwards.
{
	my $session = session($node, @app);
	$session->value("BEGIN; $lock");
	configure($node, 'fieldcrypt.tenant' => 'umbrella');
	$session->gives($own, 'of acme', 'a reload: the lock holds');
	$session->refused($others, 'KF006', 'a reload: no other values');
	$session->value('ROLLBACK');
	$session->gives('SHOW fieldcrypt.tenant', 'umbrella', 'a reload: the file counts when the transaction is over');
	$session->value("BEGIN; SAVEPOINT s; $lock; ROLLBACK TO s");
	configure($node);
	$session->gives($own, 'of acme', 'a reload after a savepoint took the setting back');
	$session->value('COMMIT');
	$session->gives('SHOW fieldcrypt.tenant', '', 'a reload: and is over with it');
	$session->close;
}

# Parallel workers get the lock with the settings.
value($node, q{CREATE TABLE many AS SELECT i, fieldcrypt.encrypt_field('of ' || i, tenant => CASE WHEN i = 20000 THEN 'umbrella' ELSE 'acme' END) AS v FROM generate_series(1, 20000) AS i; GRANT SELECT ON many TO app; ANALYZE many});
{
	my $session = session($node, @app);
	$session->value('SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2; SET parallel_leader_participation = off');
	my $count = 'SELECT count(*) FROM many WHERE length(fieldcrypt.decrypt_field(v)) > 3';
	my $escape = 'SELECT count(*) FROM many WHERE length(for_umbrella_parallel(v)) > 3 AND i = 20000';
	like($session->value("EXPLAIN $_"), qr/Workers Planned: [12]/, 'the plan is parallel') foreach $count, $escape;
	$session->gives($escape, '1', 'parallel workers: a function for another tenant, without a lock');
	$session->value("BEGIN; $lock; SAVEPOINT s");
	$session->gives("$count AND i < 20000", '19999', 'parallel workers: the own values');
	$session->refused($count, 'KF006', "parallel workers: another tenant's value");
	$session->value('ROLLBACK TO s');
	$session->refused($escape, 'KF030', 'parallel workers: a function for another tenant');
	$session->value("ROLLBACK; BEGIN; SAVEPOINT s; $lock; ROLLBACK TO s");
	$session->refused($count, 'KF006', 'parallel workers: after a savepoint took the setting back');
	$session->value('ROLLBACK TO s');
	$session->refused($escape, 'KF030', 'parallel workers: after that, a function for another tenant');
	$session->value("ROLLBACK; BEGIN; $lock; SET LOCAL fieldcrypt.tenant = 'acme'");
	$session->refused($escape, 'KF030', 'parallel workers: after the same tenant was set again');
	$session->value("ROLLBACK; SET fieldcrypt.tenant = 'umbrella'; BEGIN; $lock");
	$session->refused($escape, 'KF030', 'parallel workers: in a session with another tenant');
	$session->value("ROLLBACK; BEGIN; SAVEPOINT s; $lock; ROLLBACK TO s");
	$session->refused($count, 'KF006', 'parallel workers: in a session with another tenant, which a savepoint took back');
	$session->value('ROLLBACK; RESET fieldcrypt.tenant');
	$session->gives($count, '20000', 'parallel workers: without a lock');
	$session->close;
}

# The protocol: pipelines, whose statements are one transaction without BEGIN; prepared statements of before.
{
	my $client = Protocol->new(host => $node->host, port => $node->port, user => 'app');
	my $all = join "\n", @{ $client->pipeline([ 'SELECT fieldcrypt.lock_tenant($1)', 'acme' ], $own, $others) };
	like($all, qr/of acme.*error KF006/s, 'a pipeline: locked to its end');
	foreach my $attack ('DISCARD ALL', 'RESET ALL', 'RESET fieldcrypt.tenant', q{SELECT set_config('fieldcrypt.tenant', NULL, false)}, q{SET fieldcrypt.tenant = 'umbrella'})
	{
		my $outcome = join "\n", @{ $client->pipeline([ 'SELECT fieldcrypt.lock_tenant($1)', 'acme' ], $attack, $others) };
		like($outcome, qr/^error (KF030|25001)/m, "a pipeline: $attack");
		unlike($outcome, qr/of umbrella/, "a pipeline: $attack: nothing of others");
	}
	is_deeply($client->pipeline($others), ['row of umbrella'], 'a pipeline: the next one is free');
	foreach my $mistake (sub { $client->pipeline([ 'SELECT fieldcrypt.lock_tenant($1)', 'acme' ], $others) }, sub { $client->simple("BEGIN; $lock; $others") })
	{
		$client->{hints} = [];
		like(join("\n", @{ $mistake->() }), qr/error KF006/, "another tenant's value is refused");
		$client->simple('ROLLBACK');
		my $hint = "@{ $client->{hints} }";
		like($hint, qr/a transaction of its own tenant: BEGIN; SELECT fieldcrypt\.lock_tenant/, 'and the hint is one that can be followed');
		unlike($hint, qr/RESET|set the right one/, 'nor does it say how to go without a guard');
	}
	my $parts = join "\n", @{ $client->simple("SELECT fieldcrypt.lock_tenant('acme'); $own; RESET fieldcrypt.tenant; $others") };
	like($parts, qr/of acme.*error KF030/s, 'statements in one message are one transaction, too');
	unlike($parts, qr/of umbrella|25P01/, 'statements in one message: nothing of others');
	# A prepared statement of before the lock.
	$client->simple('PREPARE read (int) AS SELECT fieldcrypt.decrypt_field(v) FROM t WHERE id = $1');
	is_deeply($client->simple('EXECUTE read (2)'), ['row of umbrella'], 'a prepared statement, before');
	like(join("\n", @{ $client->simple("BEGIN; $lock; EXECUTE read (1); EXECUTE read (2)") }), qr/of acme\nerror KF006/, 'a prepared statement, locked');
	$client->simple('ROLLBACK');

	# What is said to a pooler.
	my $reported = sub { $client->{reported}{'fieldcrypt.tenant'} };
	is($reported->(), '', 'the tenant is reported to the client: none');
	$client->simple(q{SET fieldcrypt.tenant = 'umbrella'});
	is($reported->(), 'umbrella', 'reported: SET');
	$client->simple("BEGIN; $lock");
	is($reported->(), 'acme', 'reported: the lock');
	$client->simple('COMMIT');
	is($reported->(), 'umbrella', 'reported: its end');
	$client->simple("BEGIN; SAVEPOINT s; $lock; ROLLBACK TO s; SELECT 1");
	is($reported->(), 'acme', 'reported: the lock, after a savepoint took the setting back');
	$client->simple('ROLLBACK');
	is($reported->(), 'umbrella', 'reported: its end, after that');
	$client->simple('DISCARD ALL');
	is($reported->(), '', 'reported: DISCARD ALL');
	# What the client's encoding has no characters for would be an error between statements, again and again.
	$client->simple('SET client_encoding = LATIN1');
	is_deeply($client->simple(q{SET fieldcrypt.tenant = U&'\65E5\672C'; SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x')) > 0}), ['row t'], 'a tenant that the client can not be told');
	like($reported->(), qr/^ \(not in the encoding/, 'is reported as what no tenant is called');
	like($client->simple("SET fieldcrypt.tenant = '" . $reported->() . "'")->[0], qr/^error 22023/, 'so that it is refused if a pooler carries it');
	is_deeply($client->simple(q{SELECT current_setting('fieldcrypt.tenant') = U&'\65E5\672C'}), ['row t'], 'for SQL it is what it is');
	like($client->simple('SHOW fieldcrypt.tenant')->[0], qr/^error 22P05/, 'who asks for it is told why not');
	is_deeply($client->simple(q{BEGIN; SELECT fieldcrypt.lock_tenant(U&'\65E5')}), ['row '], 'so is a locked one');
	$client->simple($_) foreach 'COMMIT', 'SET client_encoding = UTF8', 'DISCARD ALL';
	is($reported->(), '', 'and none is none');
	$client->close;
	my $started = Protocol->new(host => $node->host, port => $node->port, user => 'app', startup => { 'fieldcrypt.tenant' => 'acme' });
	is($started->{reported}{'fieldcrypt.tenant'}, 'acme', 'reported: what the client began with');
	$started->close;
}

# What a lock refuses a function of the extension is in the audit log. (A SET is refused by Postgres: the server log.)
ok(eventually($node, "SELECT count(*) > 0 FROM fieldcrypt.audit_log WHERE event = 'call_refused' AND error_code = '$_->[0]' AND reason ~ '^$_->[1]:'", 't'), "recorded: $_->[0] of $_->[1]")
  foreach [ 'KF030', 'lock_tenant' ], [ 'KF006', 'encrypt_field' ], [ 'KF006', 'encrypt_field_bytea' ];
no_crash($node);
$node->stop;

# Without preload the call itself brings the library.
{
	my $late = new_cluster('late');
	value($late, q{CREATE TABLE t AS SELECT 1 AS id, fieldcrypt.encrypt_field('of acme', tenant => 'acme') AS v; INSERT INTO t SELECT 2, fieldcrypt.encrypt_field('of umbrella', tenant => 'umbrella')});
	foreach my $before ('', q{SET fieldcrypt.tenant = 'umbrella';}, q{SET LOCAL fieldcrypt.tenant = 'umbrella';})
	{
		my $result = run_sql($late, "BEGIN; SAVEPOINT s; $before $lock; $own; ROLLBACK TO s; $others; ROLLBACK TO s; RESET fieldcrypt.tenant; ROLLBACK TO s; $own; SHOW fieldcrypt.tenant");
		is("@{ $result->{sqlstates} }", 'KF006 KF030', "without preload: '$before' and a lock") or diag $result->{err};
		is($result->{out} =~ s/^\s+//r, "of acme\nof acme\nacme", "without preload: '$before' and the own values");
	}
	no_crash($late);
	$late->stop;
}
done_testing();

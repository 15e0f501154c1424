# A missing tenant is no choice of a tenant: fieldcrypt.require_tenant, in every form in which an application loses its
# tenant, and for everything that needs none.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Protocol;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nmax_prepared_transactions = 5\n");
value($node, <<'SQL');
CREATE ROLE app LOGIN;
SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt', 'reencrypt');
CREATE TABLE t (id int PRIMARY KEY, tenant text, v fieldcrypt.encrypted);
INSERT INTO t SELECT 1, 'acme', fieldcrypt.encrypt_field('of acme', 't/1', 'acme');
INSERT INTO t SELECT 2, 'umbrella', fieldcrypt.encrypt_field('of umbrella', 't/2', 'umbrella');
INSERT INTO t SELECT 3, 'default', fieldcrypt.encrypt_field('of nobody', 't/3');
GRANT SELECT, INSERT, UPDATE ON t TO app;
ALTER ROLE app SET fieldcrypt.require_tenant = on;
SQL
my @app = (user => 'app');
my $acme = value($node, 'SELECT v FROM t WHERE id = 1');

# It is off.
gives($node, 'SHOW fieldcrypt.require_tenant', 'off', 'it is off unless somebody turns it on');
gives($node, q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', '', ''))}, 'x', 'off: no tenant is "default", as before');

# The trap: a setting that was SET LOCAL once reads '' in later transactions.
{
	my $session = session($node, @app);
	my $write = q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', 'c', current_setting('app.tenant', true))) IS NOT NULL};
	$session->refused($write, '22004', qr/tenant must not be NULL/, 'a setting that never was: NULL');
	$session->gives("BEGIN; SET LOCAL app.tenant = 'acme'; $write; COMMIT", 't', 'the setting of a request');
	$session->gives(q{SELECT current_setting('app.tenant', true) = ''}, 't', 'later it is empty');
	$session->refused($write, 'KF029', qr/no tenant is named to encrypt for/, 'a setting that was SET LOCAL once');
	$session->refused("PREPARE p (text) AS SELECT fieldcrypt.encrypt_field('x', 'c', \$1); EXECUTE p ('')", 'KF029', 'a prepared statement');
	$session->refused(q{EXECUTE p (current_setting('app.tenant', true))}, 'KF029', 'a prepared statement, again');
	$session->gives(q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', 'c', 'acme')) = fieldcrypt.key_id(v) FROM t WHERE id = 1}, 't', 'a tenant that the call names is one');
	$session->close;
}
foreach my $call (q{encrypt_field('x')}, q{encrypt_field('x', 'c')}, q{encrypt_field('x', 'c', '')}, q{encrypt_field('x', tenant => '')},
	q{encrypt_field_bytea('x')}, q{encrypt_field_jsonb('1')}, q{encrypt_field_jsonb('1', '', '')}, q{encrypt_field_as(date '2001-03-04')},
	q{encrypt_field_as(1, 'c', '')})
{
	refused($node, "SELECT fieldcrypt.$call", 'KF029', "$call", @app);
	gives($node, "BEGIN; SET LOCAL fieldcrypt.tenant = 'acme'; SELECT fieldcrypt.key_id(fieldcrypt.$call) = fieldcrypt.key_id('$acme'); COMMIT", 't', "$call, with the session's tenant", @app);
}
{
	my $client = Protocol->new(host => $node->host, port => $node->port, user => 'app');
	my $write = q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', 'c', $1)) = $2::bigint};
	my $key = value($node, "SELECT fieldcrypt.key_id('$acme')");
	is_deeply($client->pipeline([ $write, 'acme', $key ]), ['row t'], 'extended protocol: a parameter that names a tenant');
	like($client->pipeline([ $write, '', $key ])->[0], qr/^error KF029/, 'extended protocol: an empty parameter');
	like($client->pipeline([ $write, undef, $key ])->[0], qr/^error 22004/, 'extended protocol: no parameter');
	my $pipeline = $client->pipeline(q{SET LOCAL fieldcrypt.tenant = 'acme'}, [ $write, '', $key ]);
	is($pipeline->[-1], 'row t', 'a pipeline: SET LOCAL lasts to its end');
	like($client->pipeline([ $write, '', $key ])->[0], qr/^error KF029/, 'a pipeline: and no longer');
	$client->close;
}
gives($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = ''}, '0', 'no tenant without a name has a key');
refused($node, "SELECT fieldcrypt.rebind_field('$acme', 't/1', 't/2')", 'KF029', qr/no tenant is named to bind values anew for/, 'binding anew', @app);
refused($node, "BEGIN; SET LOCAL fieldcrypt.tenant = 'another'; SELECT fieldcrypt.rebind_field('$acme', 't/1', 't/2')", 'KF006', 'binding another tenant\'s value anew', @app);
gives($node, "BEGIN; SET LOCAL fieldcrypt.tenant = 'acme'; SELECT fieldcrypt.decrypt_field(fieldcrypt.rebind_field('$acme', 't/1', 't/2'), 't/2') = fieldcrypt.decrypt_field('$acme', 't/1')",
	't', 'with the tenant it is bound anew', @app);

# Reading takes the session's tenant. Values say nothing to who has none, whatever is wrong with them.
my ($unknown) = value($node, "SELECT overlay('$acme'::fieldcrypt.encrypted::bytea PLACING '\\x0102030405060708'::bytea FROM 3)::fieldcrypt.encrypted");
foreach my $read (q{decrypt_field(V, 't/1')}, q{decrypt_field_bytea(V, 't/1')}, q{decrypt_field_jsonb(V, 't/1')}, q{decrypt_field_as(V, NULL::text, 't/1')},
	q{try_decrypt_field(V, 't/1')}, q{decrypt_field(V, 'another context')}, q{try_decrypt_field(V)})
{
	refused($node, 'SELECT fieldcrypt.' . $read =~ s/V/'$_'/r, 'KF029', qr/no tenant is named to decrypt for/, "$read without a tenant", @app)
	  foreach $acme, $unknown;
}
gives($node, 'SELECT fieldcrypt.decrypt_field(NULL)', '', 'where there is no value, there is nothing to refuse', @app);
gives($node, q{SET fieldcrypt.tenant = 'acme'; SELECT fieldcrypt.decrypt_field(v, 't/1') FROM t WHERE id = 1}, 'of acme', "the session's tenant reads", @app);
refused($node, q{SET fieldcrypt.tenant = 'acme'; SELECT fieldcrypt.decrypt_field(v, 't/2') FROM t WHERE id = 2}, 'KF006', 'and not what is another one\'s', @app);
refused($node, q{SET fieldcrypt.tenant = ''; SELECT fieldcrypt.decrypt_field(v, 't/1') FROM t WHERE id = 1}, 'KF029', 'an empty one is none', @app);
gives($node, q{SET fieldcrypt.tenant = 'default'; SELECT fieldcrypt.decrypt_field(v, 't/3') FROM t WHERE id = 3}, 'of nobody', '"default" is one, by its name', @app);

# Every way in which the tenant goes away.
{
	my $session = session($node, @app);
	my $read = q{SELECT fieldcrypt.decrypt_field(v, 't/1') FROM t WHERE id = 1};
	my %ways = (
		'COMMIT of SET LOCAL' => "BEGIN; SET LOCAL fieldcrypt.tenant = 'acme'; $read; COMMIT",
		'ROLLBACK of SET' => "BEGIN; SET fieldcrypt.tenant = 'acme'; $read; ROLLBACK",
		'ROLLBACK TO a savepoint' => "BEGIN; SAVEPOINT s; SET fieldcrypt.tenant = 'acme'; $read; ROLLBACK TO s",
		'PREPARE TRANSACTION' => "BEGIN; SET LOCAL fieldcrypt.tenant = 'acme'; $read; PREPARE TRANSACTION 'p'",
		'RESET' => "SET fieldcrypt.tenant = 'acme'; $read; RESET fieldcrypt.tenant",
		'RESET ALL' => "SET fieldcrypt.tenant = 'acme'; $read; RESET ALL; SET fieldcrypt.tenant TO DEFAULT",
		'DISCARD ALL' => "SET fieldcrypt.tenant = 'acme'; $read; DISCARD ALL",
		'set_config to NULL' => "SET fieldcrypt.tenant = 'acme'; $read; SELECT set_config('fieldcrypt.tenant', NULL, false)",
	);
	foreach my $way (sort keys %ways)
	{
		my $result = $session->run($ways{$way});
		like($result->{out}, qr/^of acme/, "$way: before") or diag $result->{err};
		$session->refused($read, 'KF029', "$way: after");
		$session->run(q{ROLLBACK; ROLLBACK PREPARED 'p'; RESET fieldcrypt.tenant});
	}
	$session->close;
}
value($node, <<'SQL');
CREATE FUNCTION read_for_acme() RETURNS text LANGUAGE sql SET fieldcrypt.tenant = 'acme' AS $$ SELECT fieldcrypt.decrypt_field(v, 't/1') FROM t WHERE id = 1 $$;
CREATE FUNCTION read_for_none() RETURNS text LANGUAGE sql SET fieldcrypt.tenant = '' AS $$ SELECT fieldcrypt.decrypt_field(v, 't/1') FROM t WHERE id = 1 $$;
CREATE FUNCTION read_as_owner() RETURNS text LANGUAGE sql SECURITY DEFINER AS $$ SELECT fieldcrypt.decrypt_field(v, 't/1') FROM t WHERE id = 1 $$;
CREATE FUNCTION unrequired() RETURNS text LANGUAGE sql SECURITY DEFINER SET fieldcrypt.require_tenant = off AS $$ SELECT fieldcrypt.decrypt_field(v, 't/1') FROM t WHERE id = 1 $$;
SQL
gives($node, 'SELECT read_for_acme()', 'of acme', 'a function with a SET clause reads for its tenant', @app);
refused($node, q{SET fieldcrypt.tenant = 'acme'; SELECT read_for_none()}, 'KF029', 'a function with an empty SET clause does not', @app);
refused($node, 'SELECT read_as_owner()', 'KF029', 'a SECURITY DEFINER function is in the session, too', @app);
gives($node, 'SELECT unrequired()', 'of acme', "a superuser's function may be exempt", @app);

# Parallel workers.
value($node, q{CREATE TABLE many AS SELECT i, fieldcrypt.encrypt_field('of ' || i, tenant => 'acme') AS v FROM generate_series(1, 20000) AS i; GRANT SELECT ON many TO app; ANALYZE many});
{
	my $parallel = 'SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2; SET parallel_leader_participation = off;';
	my $count = 'SELECT count(*) FROM many WHERE length(fieldcrypt.decrypt_field(v)) > 3';
	like(value($node, "$parallel EXPLAIN $count", @app), qr/Workers Planned: [12]/, 'the plan is parallel');
	refused($node, "$parallel $count", 'KF029', 'parallel workers: without a tenant', @app);
	gives($node, "$parallel SET fieldcrypt.tenant = 'acme'; $count", '20000', 'parallel workers: with it', @app);
	refused($node, "$parallel SET fieldcrypt.tenant = 'umbrella'; $count", 'KF006', 'parallel workers: with another', @app);
}

# It is the superuser's.
foreach my $try ('SET fieldcrypt.require_tenant = off', 'SET LOCAL fieldcrypt.require_tenant = off', q{SELECT set_config('fieldcrypt.require_tenant', 'off', false)},
	'ALTER ROLE app SET fieldcrypt.require_tenant = off', 'RESET fieldcrypt.require_tenant', 'SET fieldcrypt.create_keys_on_use = on',
	'CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql SET fieldcrypt.require_tenant = off AS $$ SELECT 1 $$')
{
	refused($node, $try, '42501', $try, @app);
}
gives($node, 'RESET ALL; DISCARD ALL; SHOW fieldcrypt.require_tenant', 'on', 'RESET ALL leaves what the role was given', @app);
{
	my $result = run_sql($node, q{SELECT fieldcrypt.encrypt_field('x')}, @app, env => { PGOPTIONS => '-c fieldcrypt.require_tenant=off' });
	like($result->{err}, qr/permission denied to set parameter "fieldcrypt.require_tenant"/, "a client's options can't turn it off");
}

# What needs no tenant.
value($node, 'ALTER DATABASE postgres SET fieldcrypt.require_tenant = on');
value($node, q{SELECT fieldcrypt.set_column_context('t', 'v', expression => $$'t/' || id$$)});
gives($node, q{SELECT fieldcrypt.create_key('new') > 0}, 't', 'exempt: create_key for a tenant');
refused($node, q{SELECT fieldcrypt.create_key('')}, 'KF029', qr/to make a key for/, 'but not for none');
refused($node, q{SELECT fieldcrypt.create_key()}, 'KF029', 'nor for one that is left out');
foreach my $exempt (q{CALL fieldcrypt.rotate_keys(force => true)}, 'CALL fieldcrypt.reencrypt()', 'SELECT count(*) FROM fieldcrypt.verify_keys()', 'SELECT length(fieldcrypt.export_keys()) > 0',
	q{SELECT fieldcrypt.set_rotation_policy('acme', '1 year')}, 'SELECT count(*) FROM fieldcrypt.key_usage(true)', 'SELECT count(*) FROM fieldcrypt.health(true)',
	'CALL fieldcrypt.check_audit_log()', q{SELECT fieldcrypt.mark_compromised(key_id, 'test') FROM fieldcrypt.encryption_keys WHERE tenant = 'new' AND state = 'active'})
{
	my $result = run_sql($node, $exempt);
	is_deeply($result->{sqlstates}, [], "exempt: $exempt") or diag $result->{err};
}
gives($node, q{SELECT bool_and(state = 'done' AND rows_failed = 0) FROM fieldcrypt.reencryption_progress}, 't', 'exempt: reencrypt has moved all values');
gives($node, q{SELECT bool_and(fieldcrypt.key_id(t.v) = k.key_id) FROM t JOIN fieldcrypt.encryption_keys AS k ON k.tenant = t.tenant AND k.state = 'active'}, 't', 'each to the active key of its own tenant');
gives($node, q{SELECT fieldcrypt.key_id(fieldcrypt.reencrypt_field(v, 't/2')) = fieldcrypt.key_id(v) FROM t WHERE id = 2}, 't', 'exempt: reencrypt_field', @app);
refused($node, q{SET fieldcrypt.tenant = 'acme'; SELECT fieldcrypt.reencrypt_field(v, 't/2') FROM t WHERE id = 2}, 'KF006', "but another tenant's value stays another tenant's", @app);
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed' AND error_code = 'KF029'}, qr/^[1-9]/, 'a refused decryption is in the audit log');
value($node, 'ALTER DATABASE postgres RESET fieldcrypt.require_tenant');

# A prepared transaction, committed later, holds what it was encrypted for.
gives($node, <<"SQL", 't', 'a value of a prepared transaction is of its tenant');
BEGIN; SET LOCAL fieldcrypt.tenant = 'umbrella'; INSERT INTO t SELECT 4, 'umbrella', fieldcrypt.encrypt_field('x', 't/4'); PREPARE TRANSACTION 'later';
COMMIT PREPARED 'later';
SELECT k.tenant = 'umbrella' FROM t JOIN fieldcrypt.encryption_keys AS k ON k.key_id = fieldcrypt.key_id(t.v) WHERE t.id = 4;
SQL

no_crash($node);
$node->stop;

# Without preload a client's options come before the library: they must not turn it off.
{
	my $late = new_cluster('late', conf => "fieldcrypt.require_tenant = on\nfieldcrypt.create_keys_on_use = off\n");
	value($late, q{CREATE ROLE app LOGIN; SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt'); SELECT fieldcrypt.create_key('acme')});
	foreach my $options ('', '-c fieldcrypt.require_tenant=off -c fieldcrypt.create_keys_on_use=on')
	{
		my @with = (user => 'app', env => { PGOPTIONS => $options });
		refused($late, q{SELECT fieldcrypt.encrypt_field('x')}, 'KF029', "without preload, options '$options': a tenant is required", @with);
		refused($late, q{SELECT fieldcrypt.encrypt_field('x', '', 'acmee')}, 'KF007', "without preload, options '$options': no key is made", @with);
		refused($late, q{SET fieldcrypt.require_tenant = off; SET fieldcrypt.create_keys_on_use = on; SELECT fieldcrypt.encrypt_field('x')}, 'KF029', "without preload, options '$options': SET before the library is there", @with);
	}
	refused($late, q{SET fieldcrypt.tenant = ' acme'; SELECT fieldcrypt.encrypt_field('x')}, 'KF029', 'without preload: a tenant that can be none is dropped, and then there is none', user => 'app');
	gives($late, q{SET fieldcrypt.tenant = 'acme'; SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x'))}, 'x', 'without preload: a tenant that was set before the library was there', user => 'app');
	gives($late, q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x'))}, 'x', 'without preload: a superuser can turn it off', env => { PGOPTIONS => '-c fieldcrypt.require_tenant=off -c fieldcrypt.create_keys_on_use=on' });
	no_crash($late);
	$late->stop;
}
done_testing();

# What PostgreSQL 16 to 18 brought, with encrypted columns: MERGE that returns, MAINTAIN, timeouts of transactions, login
# triggers, the builtin provider of locales, OLD and NEW, numbers that name a time, temporal keys, constraints that are not
# enforced. Below the version a part is skipped by name.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $version = server_version();
plan skip_all => 'what is tried here came with PostgreSQL 16 to 18' if $version < 16;
my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nfieldcrypt.audit_worker_linger = '300ms'\nfieldcrypt.audit_decrypt = statements\n");

sub since
{
	my ($needed, $what, $test) = @_;
  SKIP:
	{
		skip "$what came with PostgreSQL $needed", 1 if $version < $needed;
		subtest "$what ($needed)" => $test;
	}
	return;
}

# The values of a table that are bound to their rows and audited.
value($node, <<'SQL');
CREATE ROLE clerk LOGIN;
CREATE TABLE patients (id int PRIMARY KEY, name text, ssn fieldcrypt.encrypted);
SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => $$fieldcrypt.context('patients.ssn', id)$$, enforce => true);
SELECT fieldcrypt.audit_table('patients');
INSERT INTO patients SELECT i, 'p' || i, fieldcrypt.encrypt_field('value ' || i, fieldcrypt.context('patients.ssn', i), 'acme') FROM generate_series(1, 50) AS i;
SQL
my $recorded = sub { return value($node, q{SELECT string_agg(event || ' ' || row_key, ', ' ORDER BY id) FROM fieldcrypt.audit_log WHERE event LIKE 'row\_%' AND id > } . $_[0]) // '' };
my $last = sub { return value($node, 'SELECT max(id) FROM fieldcrypt.audit_log') };

since(17, 'MERGE with RETURNING', sub {
	my $from = $last->();
	gives($node, <<'SQL', "UPDATE|1|merged 1\nDELETE|2|value 2\nINSERT|101|merged 101", 'each action, with what is decrypted');
WITH merged AS (
	MERGE INTO patients AS p USING (VALUES (1), (2), (101)) AS v(id) ON p.id = v.id
	WHEN MATCHED AND v.id = 2 THEN DELETE
	WHEN MATCHED THEN UPDATE SET ssn = fieldcrypt.encrypt_field('merged ' || v.id, fieldcrypt.context('patients.ssn', v.id), 'acme')
	WHEN NOT MATCHED THEN INSERT (id, ssn) VALUES (v.id, fieldcrypt.encrypt_field('merged ' || v.id, fieldcrypt.context('patients.ssn', v.id), 'acme'))
	RETURNING merge_action() AS action, p.id, fieldcrypt.decrypt_field(p.ssn, fieldcrypt.context('patients.ssn', p.id)) AS ssn)
SELECT * FROM merged ORDER BY id
SQL
	is($recorded->($from), 'row_updated {"id": 1}, row_deleted {"id": 2}, row_inserted {"id": 101}', 'audited, each once');
	refused($node, q{MERGE INTO patients AS p USING (VALUES (3), (4)) AS v(id) ON p.id = v.id WHEN MATCHED THEN UPDATE SET ssn = (SELECT ssn FROM patients WHERE id = 9)},
		'KF031', 'a value of another row is refused');
	refused($node, q{MERGE INTO patients AS p USING (VALUES (300)) AS v(id) ON p.id = v.id WHEN NOT MATCHED BY SOURCE AND p.id < 5 THEN UPDATE SET ssn = fieldcrypt.encrypt_field('x', 'elsewhere', 'acme') WHEN NOT MATCHED THEN INSERT (id) VALUES (300)},
		'KF031', 'by source, too');
});

since(17, 'MAINTAIN', sub {
	value($node, 'GRANT MAINTAIN ON patients TO clerk');
	gives($node, 'VACUUM patients; ANALYZE patients; REINDEX TABLE patients; CLUSTER patients USING patients_pkey', '', 'maintains', user => 'clerk');
	refused($node, 'SELECT ssn FROM patients', '42501', 'and reads nothing', user => 'clerk');
	refused($node, "CALL fieldcrypt.reencrypt('patients')", '42501', 'nor re-encrypts', user => 'clerk');
	value($node, 'CREATE ROLE keeper LOGIN; GRANT pg_maintain TO keeper');
	# By name it reaches none of a schema that it may not use.
	gives($node, 'SET client_min_messages = error; VACUUM (ANALYZE)', '', 'pg_maintain vacuums', user => 'keeper');
	ok(eventually($node, q{SELECT count(*) FROM pg_stat_all_tables WHERE relid = 'fieldcrypt.encryption_keys'::regclass AND vacuum_count > 0}, '1'), 'the tables of the extension, too');
	refused($node, "$_ fieldcrypt.encryption_keys", '42501', "and not: $_", user => 'keeper') foreach 'TRUNCATE', 'DELETE FROM', 'TABLE';
});

since(17, 'transaction_timeout', sub {
	value($node, q{CREATE TABLE many (id int, v fieldcrypt.encrypted); INSERT INTO many SELECT i, fieldcrypt.encrypt_field('v' || i, tenant => 'acme') FROM generate_series(1, 6000) AS i});
	value($node, q{CALL fieldcrypt.rotate_keys('acme', force => true)});
	my $result = run_sql($node, q{SET transaction_timeout = '1ms'; CALL fieldcrypt.reencrypt('many')});
	like($result->{err}, qr/FATAL:  25P04/, 'ends a session that re-encrypts');
	gives($node, q{SET transaction_timeout = '3s'; CALL fieldcrypt.reencrypt('many')}, '', 'batches are transactions of their own: six seconds of them, of at most three each');
	gives($node, q{SELECT count(*) FROM many WHERE fieldcrypt.decrypt_field(v) = 'v' || id AND fieldcrypt.key_id(v) = (SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND state = 'active')}, '6000', 'and what was interrupted is gone on with');
	like(run_sql($node, q{BEGIN; SET LOCAL transaction_timeout = '100ms'; SELECT fieldcrypt.decrypt_field(ssn, 'elsewhere') FROM patients; SELECT pg_sleep(3); COMMIT})->{err}, qr/KF002/, 'a failure in a transaction that ends so');
	my %patient = (env => { PGOPTIONS => '-c transaction_timeout=0' });
	# The log's worker has nothing to do with the timeout of a database.
	value($node, q{ALTER SYSTEM SET transaction_timeout = '50ms'});
	$node->restart;
	run_sql($node, q{SELECT fieldcrypt.decrypt_field(ssn, 'elsewhere') FROM patients}, %patient);
	ok(eventually($node, q{SELECT count(*) >= 2 FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'}, 't', %patient), 'the log is written');
	ok(eventually($node, q{SELECT count(*) = count(leaf) FROM fieldcrypt.audit_log}, 't', %patient), 'and sealed');
	value($node, 'ALTER SYSTEM RESET transaction_timeout', %patient);
	$node->restart;
	unlike(slurp_file($node->logfile), qr/pg_fieldcrypt audit \w+.*transaction timeout/, 'no worker of ours met it');
});

since(17, 'login event triggers', sub {
	create_database($node, 'logins');
	value($node, <<'SQL', db => 'logins');
SELECT fieldcrypt.grant_access('clerk', 'encrypt', 'decrypt');
CREATE TABLE logins (who text, v fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('logins');
CREATE FUNCTION on_login() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	PERFORM set_config('fieldcrypt.tenant', session_user, false);
	INSERT INTO public.logins VALUES (session_user, fieldcrypt.encrypt_field('at login', 'login', session_user));
	PERFORM fieldcrypt.decrypt_field(v, 'login') FROM public.logins WHERE who = session_user;
END $$;
CREATE EVENT TRIGGER on_login ON login EXECUTE FUNCTION on_login();
ALTER EVENT TRIGGER on_login ENABLE ALWAYS;
SQL
	gives($node, q{SHOW fieldcrypt.tenant; SELECT fieldcrypt.ciphertext_info(fieldcrypt.encrypt_field('x')) IS NOT NULL}, "clerk\nt", 'the session has the tenant of its login', db => 'logins', user => 'clerk');
	gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'row_inserted' AND actor = 'clerk'}, qr/^[1-9]/, 'what it wrote is recorded', db => 'logins');
	ok(eventually($node, q{SELECT count(*) > 0 FROM fieldcrypt.audit_log WHERE event = 'values_decrypted' AND actor = 'clerk'}, 't', db => 'logins'), 'and what it read');
});

since(17, 'the builtin provider of locales', sub {
	create_database($node, 'builtin', with => q{TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'});
	gives($node, q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('Äquator', fieldcrypt.context('a', 'Ö'), 'Ünal'), fieldcrypt.context('a', 'Ö'))}, 'Äquator', 'values, contexts and tenants beyond ASCII', db => 'builtin');
	refused($node, q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', 'a', 'ünal'), 'b')}, 'KF002', 'and refusals', db => 'builtin');
	ok(eventually($node, q{SELECT count(DISTINCT tenant) FROM fieldcrypt.audit_log WHERE event = 'key_created' AND tenant <> ''}, '2', db => 'builtin'), 'tenants are told apart by bytes');
});

since(18, 'OLD and NEW in RETURNING', sub {
	gives($node, <<'SQL', 'value 10|new 10', 'both are decrypted');
UPDATE patients SET ssn = fieldcrypt.encrypt_field('new 10', fieldcrypt.context('patients.ssn', id), 'acme') WHERE id = 10
RETURNING fieldcrypt.decrypt_field(old.ssn, fieldcrypt.context('patients.ssn', old.id)), fieldcrypt.decrypt_field(new.ssn, fieldcrypt.context('patients.ssn', new.id))
SQL
	gives($node, <<'SQL', 'new 10|t', 'of an upsert, too');
INSERT INTO patients VALUES (10, 'again', fieldcrypt.encrypt_field('newer 10', fieldcrypt.context('patients.ssn', 10), 'acme'))
ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn
RETURNING fieldcrypt.decrypt_field(old.ssn, fieldcrypt.context('patients.ssn', old.id)), old.ssn::bytea <> new.ssn::bytea
SQL
	refused($node, q{DELETE FROM patients WHERE id = 10 RETURNING fieldcrypt.decrypt_field(old.ssn, 'elsewhere')}, 'KF002', 'with their context');
});

since(18, 'uuidv7 in contexts', sub {
	value($node, <<'SQL');
CREATE TABLE files (id uuid PRIMARY KEY DEFAULT uuidv7(), n int, v fieldcrypt.encrypted);
SELECT fieldcrypt.set_column_context('files', 'v', expression => $$fieldcrypt.context('files.v', id)$$, enforce => true);
INSERT INTO files (id, n, v) SELECT u, i, fieldcrypt.encrypt_field('file ' || i, fieldcrypt.context('files.v', u), 'acme') FROM (SELECT i, uuidv7() AS u FROM generate_series(1, 10) AS i) AS made;
SQL
	refused($node, q{INSERT INTO files (n, v) VALUES (11, fieldcrypt.encrypt_field('x', fieldcrypt.context('files.v', uuidv7())))}, 'KF031', 'one that is made twice is another');
	value($node, q{CALL fieldcrypt.rotate_keys('acme', force => true)});
	run_sql($node, q{CALL fieldcrypt.reencrypt('files')});
	gives($node, q{SELECT string_agg(fieldcrypt.decrypt_field(v, fieldcrypt.context('files.v', id)), ',' ORDER BY id) FROM files WHERE n < 3}, 'file 1,file 2', 'are contexts like others');
});

since(18, 'temporal keys', sub {
	value($node, <<'SQL');
CREATE EXTENSION btree_gist;
CREATE TABLE rooms (room int, during daterange, price fieldcrypt.encrypted, PRIMARY KEY (room, during WITHOUT OVERLAPS));
CREATE TABLE stays (id int PRIMARY KEY, room int, during daterange, guest fieldcrypt.encrypted, FOREIGN KEY (room, PERIOD during) REFERENCES rooms (room, PERIOD during));
SELECT fieldcrypt.set_column_context('rooms', 'price', expression => $$fieldcrypt.context('rooms.price', room, lower(during))$$, enforce => true);
SELECT fieldcrypt.audit_table('rooms'), fieldcrypt.audit_table('stays');
INSERT INTO rooms SELECT i, '[2026-01-01,2027-01-01)', fieldcrypt.encrypt_field('price ' || i, fieldcrypt.context('rooms.price', i, date '2026-01-01'), 'acme') FROM generate_series(1, 5) AS i;
INSERT INTO stays VALUES (1, 1, '[2026-02-01,2026-03-01)', fieldcrypt.encrypt_field('Ada', 'stays', 'acme'));
SQL
	refused($node, q{INSERT INTO rooms VALUES (1, '[2026-06-01,2026-07-01)', fieldcrypt.encrypt_field('x', fieldcrypt.context('rooms.price', 1, date '2026-06-01'), 'acme'))}, '23P01', 'no two at a time');
	refused($node, q{INSERT INTO stays VALUES (2, 1, '[2027-02-01,2027-03-01)', NULL)}, '23503', 'nor a stay without a room');
	gives($node, q{SELECT row_key FROM fieldcrypt.audit_log WHERE table_name = 'public.rooms' AND event = 'row_inserted' ORDER BY id LIMIT 1}, '{"room": 1, "during": "[2026-01-01,2027-01-01)"}', 'rows are named by them');
	value($node, q{SET client_min_messages = error; CALL fieldcrypt.rotate_keys('acme', force => true); CALL fieldcrypt.reencrypt()});
	gives($node, q{SELECT count(*) FROM rooms WHERE fieldcrypt.decrypt_field(price, fieldcrypt.context('rooms.price', room, lower(during))) = 'price ' || room AND fieldcrypt.key_id(price) = (SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND state = 'active')},
		'5', 're-encrypted, within a foreign key by period');
});

since(18, 'constraints that are not enforced or not valid', sub {
	value($node, <<'SQL');
CREATE TABLE loose (id int PRIMARY KEY, v fieldcrypt.encrypted, CONSTRAINT said CHECK (fieldcrypt.key_id(v) < 0) NOT ENFORCED);
INSERT INTO loose SELECT i, CASE WHEN i > 1 THEN fieldcrypt.encrypt_field('loose ' || i, fieldcrypt.context('loose.v', i), 'acme') END FROM generate_series(1, 5) AS i;
ALTER TABLE loose ADD CONSTRAINT there NOT NULL v NOT VALID;
SELECT fieldcrypt.set_column_context('loose', 'v', expression => $$fieldcrypt.context('loose.v', id)$$, enforce => true);
CALL fieldcrypt.rotate_keys('acme', force => true);
SQL
	refused($node, q{INSERT INTO loose VALUES (6, fieldcrypt.encrypt_field('x', 'elsewhere', 'acme'))}, 'KF031', 'contexts are enforced beside them');
	refused($node, 'INSERT INTO loose VALUES (7, NULL)', '23502', 'NOT NULL holds for what comes');
	value($node, q{SET client_min_messages = error; CALL fieldcrypt.reencrypt('loose')});
	gives($node, q{SELECT count(*) FROM loose WHERE fieldcrypt.decrypt_field(v, fieldcrypt.context('loose.v', id)) = 'loose ' || id}, '4', 're-encrypted, though what is not enforced does not hold');
	gives($node, q{SELECT count(*) FROM fieldcrypt.reencryption_failures WHERE relation = 'loose'::regclass}, '0', 'and no row is refused');
});

since(18, 'virtual columns beside encrypted ones', sub {
	value($node, <<'SQL');
CREATE TABLE virtuals (id int PRIMARY KEY, name text, ssn fieldcrypt.encrypted, upper_name text GENERATED ALWAYS AS (upper(name)) VIRTUAL, twice int GENERATED ALWAYS AS (id * 2));
SELECT fieldcrypt.audit_table('virtuals');
INSERT INTO virtuals SELECT i, 'n' || i, fieldcrypt.encrypt_field('v' || i, 'virtuals', 'acme') FROM generate_series(1, 10) AS i;
CREATE VIEW seen AS SELECT id, upper_name, twice, fieldcrypt.decrypt_field(ssn, 'virtuals') AS ssn FROM virtuals;
SELECT fieldcrypt.set_column_context('virtuals', 'ssn', constant => 'virtuals', enforce => true);
UPDATE virtuals SET name = 'changed' WHERE id = 3;
SET client_min_messages = error;
CALL fieldcrypt.rotate_keys('acme', force => true);
CALL fieldcrypt.reencrypt('virtuals');
CALL fieldcrypt.verify_values('virtuals');
SQL
	gives($node, 'SELECT * FROM seen WHERE id = 3', '3|CHANGED|6|v3', 'a view over both');
	gives($node, 'SELECT count(*) FROM fieldcrypt.value_failures', '0', 'verified');
	my $dump = dump_database($node, 'postgres', $node->basedir . '/virtuals.sql', '-t', 'virtuals');
	create_database($node, 'restored', extension => 0);
	value($node, 'CREATE EXTENSION pg_fieldcrypt', db => 'restored');
	my $result = restore_database($node, 'restored', $dump);
	unlike($result->{err}, qr/ERROR/, 'dumped and restored');
	gives($node, 'SELECT upper_name, twice, ssn IS NOT NULL FROM virtuals WHERE id = 3', 'CHANGED|6|t', 'with its columns', db => 'restored');
	isnt(scalar @{ run_sql($node, q{CREATE TABLE w (id int, ssn fieldcrypt.encrypted, key bigint GENERATED ALWAYS AS (fieldcrypt.key_id(ssn)) VIRTUAL)})->{sqlstates} }, 0,
		'a virtual column over a function of an extension is refused by PostgreSQL: STORED');
});

no_crash($node);
$node->stop;
done_testing();

# A value that is not authentic for its row is refused when it is written, whatever writes it: upserts, copies, MERGE,
# COPY, cascades, triggers, partitions and children, roles without any privilege, every protocol. What was there before
# stays writable in its other columns, and nothing is shown or stored that the caller did not hold.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nmax_prepared_transactions = 5\n");
my $context = "fieldcrypt.context('patients.ssn', id)";
sub sealed { my ($id, $text) = @_; return "fieldcrypt.encrypt_field('" . ($text // "ssn-$id") . "', fieldcrypt.context('patients.ssn', $id))" }

value($node, <<SQL);
CREATE ROLE writer LOGIN; CREATE ROLE stranger LOGIN;
SELECT fieldcrypt.grant_access('writer', 'encrypt');
CREATE TABLE patients (id bigint PRIMARY KEY, name text, ssn fieldcrypt.encrypted);
CREATE TABLE staging (LIKE patients);
GRANT ALL ON patients, staging TO writer, stranger;
INSERT INTO patients VALUES (1, 'Ada', @{[ sealed(1) ]}), (2, 'Bob', @{[ sealed(2) ]}), (3, 'Eve', NULL);
INSERT INTO staging SELECT * FROM patients;
SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => \$\$$context\$\$, enforce => true);
SQL
my $all = "SELECT string_agg(concat_ws(' ', id, name, fieldcrypt.decrypt_field(ssn, $context)), ', ' ORDER BY id) FROM patients";
my $before = '1 Ada ssn-1, 2 Bob ssn-2, 3 Eve';
gives($node, $all, $before, 'what is there opens');

# Each is one statement; all of them were accepted once.
my @attacks = (
	[ 'INSERT for another row', "INSERT INTO patients VALUES (9, 'x', @{[ sealed(8) ]})" ],
	[ 'INSERT without the context', "INSERT INTO patients VALUES (9, 'x', fieldcrypt.encrypt_field('x'))" ],
	[ 'ON CONFLICT DO UPDATE SET ssn = excluded.ssn', "INSERT INTO patients VALUES (9, 'x', @{[ sealed(9) ]}), (1, 'x', @{[ sealed(4) ]}) ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn" ],
	[ 'ON CONFLICT ON another key', "INSERT INTO patients SELECT 1, 'x', ssn FROM staging WHERE id = 2 ON CONFLICT ON CONSTRAINT patients_pkey DO UPDATE SET ssn = excluded.ssn, name = 'y'" ],
	[ 'UPDATE SET id', 'UPDATE patients SET id = id + 100 WHERE id = 1' ],
	[ 'a swap of two people', 'UPDATE patients AS p SET ssn = o.ssn FROM patients AS o WHERE (p.id, o.id) IN ((1, 2), (2, 1))' ],
	[ 'INSERT SELECT with new ids', 'INSERT INTO patients SELECT id + 10, name, ssn FROM staging' ],
	[ 'MERGE, insert', 'MERGE INTO patients AS p USING staging AS s ON p.id = s.id + 50 WHEN NOT MATCHED THEN INSERT VALUES (s.id + 50, s.name, s.ssn)' ],
	[ 'MERGE, update', 'MERGE INTO patients AS p USING staging AS s ON s.id = 2 AND p.id = 1 WHEN MATCHED THEN UPDATE SET ssn = s.ssn' ],
	[ 'a writable CTE', 'WITH gone AS (DELETE FROM patients WHERE id = 2 RETURNING *) INSERT INTO patients SELECT 4, name, ssn FROM gone' ],
	[ 'a value with a flipped bit', "UPDATE patients SET ssn = set_byte(ssn::bytea, 30, get_byte(ssn::bytea, 30) # 1)::fieldcrypt.encrypted WHERE id = 1" ],
	[ 'a prepared statement', "PREPARE a AS UPDATE patients SET ssn = (SELECT ssn FROM staging WHERE id = \$1) WHERE id = \$2; EXECUTE a (1, 2)" ],
	[ 'a cursor', 'BEGIN; DECLARE c CURSOR FOR SELECT * FROM patients WHERE id = 1 FOR UPDATE; FETCH c; UPDATE patients SET id = 77 WHERE CURRENT OF c; COMMIT' ],
	[ 'a view', 'CREATE VIEW pg_temp.v AS SELECT * FROM patients; UPDATE pg_temp.v SET id = 5 WHERE id = 1' ],
	[ 'PREPARE TRANSACTION', "BEGIN; UPDATE patients SET id = 6 WHERE id = 1; PREPARE TRANSACTION 'x'" ],
);
foreach my $attack (@attacks)
{
	my ($name, $statement) = @$attack;
	my $result = run_sql($node, $statement);
	is($result->{sqlstates}[0], 'KF031', "refused: $name") or diag $result->{err};
	like($result->{err}, qr/rebind_field/, "$name: what to do") if $name =~ /^UPDATE SET id/;
	unlike($result->{err}, qr/ssn-\d/, "$name: no plaintext");
}
gives($node, $all, $before, 'nothing of it was stored');
refused($node, 'DO $$ BEGIN UPDATE patients SET id = 9 WHERE id = 1; EXCEPTION WHEN SQLSTATE \'KF031\' THEN RAISE EXCEPTION \'seen\'; END $$', 'P0001', 'it can be caught, as any error');

# COPY, in text and binary, and rows that triggers change on their way: the final row counts.
my $file = $node->basedir . '/rows';
value($node, "COPY (SELECT id + 20, name, ssn FROM staging) TO '$file'; COPY (SELECT id + 20, name, ssn FROM staging) TO '$file.bin' WITH (FORMAT binary)");
refused($node, "COPY patients FROM '$file'", 'KF031', 'COPY');
refused($node, "COPY patients FROM '$file.bin' WITH (FORMAT binary)", 'KF031', 'COPY of binary');
value($node, <<'SQL');
CREATE FUNCTION shift() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.id := NEW.id + 500; RETURN NEW; END $$;
CREATE TRIGGER zzzz BEFORE INSERT ON patients FOR EACH ROW EXECUTE FUNCTION shift();
SQL
refused($node, "INSERT INTO patients VALUES (10, 'x', @{[ sealed(10) ]})", 'KF031', 'a later BEFORE trigger that moves the row');
gives($node, "INSERT INTO patients VALUES (10, 'x', @{[ sealed(510) ]}) RETURNING id", '510', 'a value for the row that it makes');
value($node, 'DROP TRIGGER zzzz ON patients; DELETE FROM patients WHERE id = 510');

# Everything else goes on.
gives($node, "INSERT INTO patients VALUES (4, 'Dan', @{[ sealed(4) ]}) ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn RETURNING name", 'Dan', 'a good INSERT');
gives($node, "INSERT INTO patients AS p VALUES (4, 'Dan', @{[ sealed(4, 'new') ]}) ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn RETURNING fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', p.id))", 'new', 'an upsert on the row\'s own key');
gives($node, "UPDATE patients SET id = 5, ssn = fieldcrypt.rebind_field(ssn, $context, fieldcrypt.context('patients.ssn', 5)) WHERE id = 4 RETURNING fieldcrypt.decrypt_field(ssn, $context)", 'new', 'a new key, with rebind_field');
value($node, 'DELETE FROM patients WHERE id = 5; UPDATE patients SET ssn = NULL WHERE id = 3; UPDATE patients SET name = name');
gives($node, $all, $before, 'as before');
my $bound = bind($node, "INSERT INTO patients VALUES (:id, :name, fieldcrypt.encrypt_field(:ssn, fieldcrypt.context('patients.ssn', :id::bigint)))", { id => 30, name => 'n', ssn => 's' }, protocol => 'prepared');
is($bound->{code}, 0, 'parameters of a driver') or diag $bound->{err};
$bound = bind($node, "INSERT INTO patients VALUES (:id + 1, :name, fieldcrypt.encrypt_field(:ssn, fieldcrypt.context('patients.ssn', :id::bigint)))", { id => 30, name => 'n', ssn => 's' }, protocol => 'extended');
like($bound->{err}, qr/not authentic for the row/, 'and those for another row');
value($node, 'DELETE FROM patients WHERE id >= 30');

# Who may only encrypt, or nothing at all, is checked too, and learns nothing but yes or no.
refused($node, "INSERT INTO patients VALUES (9, 'x', @{[ sealed(8) ]})", 'KF031', 'a role with encrypt', user => 'writer');
refused($node, 'UPDATE patients SET id = 9 WHERE id = 1', 'KF031', 'a role without any privilege', user => 'stranger');
gives($node, "UPDATE patients SET name = 'Ada' WHERE id = 1", '', 'which can write the other columns', user => 'stranger');
gives($node, 'INSERT INTO patients SELECT id + 0, name, ssn FROM staging WHERE id = 1 ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn', '', 'and put a value back into its row', user => 'stranger');
refused($node, 'SELECT fieldcrypt_internal.is_foreign(ssn, \'a\', \'b\') FROM patients', '42501', 'nobody calls the condition by name', user => 'writer');
refused($node, 'SELECT fieldcrypt.rebind_field(ssn, \'a\', \'b\') FROM patients', '42501', qr/decrypt/, 'rebind_field needs decrypt, too', user => 'writer');
value($node, "SELECT fieldcrypt.revoke_access('writer', 'encrypt'); SELECT fieldcrypt.grant_access('writer', 'decrypt')");
refused($node, 'SELECT fieldcrypt.rebind_field(ssn, \'a\', \'b\') FROM patients', '42501', 'with decrypt alone it is not to be called', user => 'writer');
value($node, "SELECT fieldcrypt.grant_access('writer', 'encrypt')");
gives($node, "SELECT fieldcrypt.decrypt_field(fieldcrypt.rebind_field(ssn, $context, 'b'), 'b') FROM patients WHERE id = 1", 'ssn-1', 'with both it is', user => 'writer');
refused($node, "SELECT fieldcrypt.rebind_field(ssn, 'wrong', 'b') FROM patients WHERE id = 1", 'KF002', 'the context must be right', user => 'writer');
refused($node, "SELECT fieldcrypt.rebind_field(ssn, $context, NULL) FROM patients WHERE id = 1", '22004', 'and NULL is none', user => 'writer');
value($node, "SELECT fieldcrypt.create_key('acme')");
gives($node, "SELECT tenant FROM fieldcrypt.encryption_keys WHERE key_id = fieldcrypt.key_id(fieldcrypt.rebind_field(fieldcrypt.encrypt_field('x', 'a', 'acme'), 'a', 'b'))", 'acme', 'the tenant stays');
refused($node, "SET fieldcrypt.tenant = 'other'; INSERT INTO patients VALUES (9, 'x', fieldcrypt.encrypt_field('x', fieldcrypt.context('patients.ssn', 9), 'acme'))", 'KF006', 'another tenant\'s value');

# Values of another database, and on keys that can't be used.
create_database($node, 'other');
my $foreign = value($node, "SELECT fieldcrypt.encrypt_field('x', 'patients.ssn/9')", db => 'other');
refused($node, "INSERT INTO patients VALUES (9, 'x', '$foreign')", 'KF003', qr/another database/, 'ciphertext of another database');
value($node, "INSERT INTO patients VALUES (40, 'x', fieldcrypt.encrypt_field('x', fieldcrypt.context('patients.ssn', 40), 'gone'))");
value($node, "SELECT fieldcrypt.suspend_key(key_id, 'test') FROM fieldcrypt.encryption_keys WHERE tenant = 'gone'");
gives($node, "UPDATE patients SET name = 'y' WHERE id = 40 RETURNING name", 'y', 'a row with a value of a suspended key is written in other columns');
refused($node, 'UPDATE patients SET id = 41 WHERE id = 40', 'KF004', 'but not moved');
value($node, 'ALTER TABLE patients DISABLE TRIGGER USER; UPDATE patients SET id = 42 WHERE id = 40; ALTER TABLE patients ENABLE TRIGGER USER');
gives($node, "UPDATE patients SET name = 'z' WHERE id = 42 RETURNING name", 'z', 'so is one that was broken before');
value($node, 'DELETE FROM patients WHERE id = 42');

# Renames of the table, the columns and the schema.
value($node, 'CREATE SCHEMA "Other"; ALTER TABLE patients SET SCHEMA "Other"; ALTER TABLE "Other".patients RENAME TO "People"; ALTER TABLE "Other"."People" RENAME id TO "Number"; ALTER TABLE "Other"."People" RENAME ssn TO "social / no"');
refused($node, 'UPDATE "Other"."People" SET "Number" = 9 WHERE "Number" = 1', 'KF031', 'renamed, it is checked');
gives($node, q{UPDATE "Other"."People" SET "social / no" = "social / no" WHERE "Number" = 1 RETURNING 'yes'}, 'yes', 'and what is right is right');
value($node, 'ALTER TABLE "Other"."People" RENAME "Number" TO id; ALTER TABLE "Other"."People" RENAME "social / no" TO ssn; ALTER TABLE "Other"."People" RENAME TO patients; ALTER TABLE "Other".patients SET SCHEMA public');
refused($node, 'ALTER TABLE patients ALTER COLUMN ssn TYPE bytea USING ssn::bytea', '0A000', 'the type of a column that is checked is not changed');
refused($node, 'ALTER TABLE patients DROP COLUMN id', '2BP01', 'what its context is made of is not dropped');

# Re-encryption is not hindered, and finds what is right.
value($node, "CALL fieldcrypt.rotate_keys('default', force => true); CALL fieldcrypt.reencrypt('patients')");
gives($node, 'SELECT count(*), count(DISTINCT k.state) FROM patients JOIN fieldcrypt.encryption_keys AS k ON k.key_id = fieldcrypt.key_id(ssn) WHERE k.state = \'active\'', '2|1', 'all was re-encrypted');
gives($node, $all, $before, 'and opens');
value($node, "ALTER TABLE patients ENABLE ALWAYS TRIGGER fieldcrypt_context_0_update; CALL fieldcrypt.rotate_keys('default', force => true); CALL fieldcrypt.reencrypt('patients')");
gives($node, $all, $before, 'with a trigger that fires always, too');
gives($node, 'SELECT count(*) FROM fieldcrypt.reencryption_failures', '0', 'without failures');
value($node, 'ALTER TABLE patients ENABLE TRIGGER fieldcrypt_context_0_update');

# A refused value is recorded, a checked one is no decryption.
value($node, "SELECT fieldcrypt.fieldcrypt_stats_reset()");
value($node, "INSERT INTO patients VALUES (50, 'x', @{[ sealed(50) ]}); DELETE FROM patients WHERE id = 50");
ok(eventually($node, "SELECT sum(encrypt_values) FROM fieldcrypt.fieldcrypt_stats", '1'), 'a value was encrypted');
gives($node, 'SELECT sum(decrypt_values) FROM fieldcrypt.fieldcrypt_stats', '0', 'and none decrypted');
ok(eventually($node, "SELECT count(*) > 0 FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed' AND error_code = 'KF031'", 't'), 'what was refused is in the audit log');

# Foreign keys that cascade.
value($node, <<SQL);
CREATE TABLE visits (patient bigint REFERENCES patients ON UPDATE CASCADE ON DELETE CASCADE, note fieldcrypt.encrypted);
INSERT INTO visits VALUES (3, fieldcrypt.encrypt_field('n', fieldcrypt.context('visits.note', 3)));
SELECT fieldcrypt.set_column_context('visits', 'note', expression => \$\$fieldcrypt.context('visits.note', patient)\$\$, enforce => true);
SQL
refused($node, 'UPDATE patients SET id = 33 WHERE id = 3', 'KF031', 'a cascade that moves a value');

# Partitions: those that are there, those that are made and attached later, rows that move.
value($node, <<SQL);
CREATE TABLE parts (id int, day int, ssn fieldcrypt.encrypted) PARTITION BY RANGE (day);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (1) TO (10);
SELECT fieldcrypt.set_column_context('parts', 'ssn', expression => \$\$fieldcrypt.context('parts.ssn', id)\$\$, enforce => true);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
CREATE TABLE parts_3 (more text, ssn fieldcrypt.encrypted, day int, id int);
ALTER TABLE parts_3 DROP COLUMN more;
ALTER TABLE parts ATTACH PARTITION parts_3 FOR VALUES FROM (20) TO (30);
SQL
foreach my $day (1, 10, 20)
{
	refused($node, "INSERT INTO parts VALUES (1, $day, fieldcrypt.encrypt_field('x', 'parts.ssn/2'))", 'KF031', "partition of day $day");
	gives($node, "INSERT INTO parts VALUES ($day, $day, fieldcrypt.encrypt_field('x', 'parts.ssn/$day')) RETURNING day", $day, "and what is right, of day $day");
	refused($node, "UPDATE parts SET id = 99 WHERE day = $day", 'KF031', "an update there");
}
refused($node, "INSERT INTO parts_3 VALUES (fieldcrypt.encrypt_field('x', 'parts.ssn/2'), 21, 1)", 'KF031', 'into the partition itself');
gives($node, 'UPDATE parts SET day = 25 WHERE id = 1 RETURNING day', '25', 'a row moves to another partition');
refused($node, 'UPDATE parts SET day = 2, id = 7 WHERE id = 1', 'KF031', 'not with a new id');

# Tables that inherit, arrays, domains and composites; constants; generated columns.
value($node, <<SQL);
CREATE TABLE base (id int, ssn fieldcrypt.encrypted);
CREATE TABLE child (extra text) INHERITS (base);
SELECT fieldcrypt.set_column_context('base', 'ssn', expression => \$\$fieldcrypt.context('base.ssn', id)\$\$, enforce => true);
CREATE DOMAIN secret AS fieldcrypt.encrypted;
CREATE TYPE both_of AS (label text, one fieldcrypt.encrypted);
CREATE TABLE shapes (id int, key text GENERATED ALWAYS AS (fieldcrypt.context('shapes', id)) STORED, d secret, a fieldcrypt.encrypted[], c both_of, k fieldcrypt.encrypted);
SELECT fieldcrypt.set_column_context('shapes', 'd', expression => 'key', enforce => true), fieldcrypt.set_column_context('shapes', 'a', expression => 'key', enforce => true),
       fieldcrypt.set_column_context('shapes', 'c', expression => 'key', enforce => true), fieldcrypt.set_column_context('shapes', 'k', constant => 'the k''s', enforce => true);
SQL
refused($node, "INSERT INTO child VALUES (1, fieldcrypt.encrypt_field('x', 'base.ssn/2'))", 'KF031', 'a table that inherits');
my $good = "fieldcrypt.encrypt_field('x', 'shapes/1')";
my $bad = "fieldcrypt.encrypt_field('x', 'shapes/2')";
gives($node, "INSERT INTO shapes (id, d, a, c, k) VALUES (1, $good, ARRAY[$good, NULL, $good], ROW('l', $good), fieldcrypt.encrypt_field('x', 'the k''s')) RETURNING id", '1', 'all shapes');
refused($node, "INSERT INTO shapes (id, d) VALUES (1, $bad)", 'KF031', 'a domain');
refused($node, "INSERT INTO shapes (id, a) VALUES (1, ARRAY[$good, NULL, $bad])", 'KF031', 'an array');
refused($node, "INSERT INTO shapes (id, c) VALUES (1, ROW('l', $bad))", 'KF031', 'a composite');
refused($node, "INSERT INTO shapes (id, k) VALUES (1, fieldcrypt.encrypt_field('x', 'the k'))", 'KF031', 'a constant');
refused($node, 'UPDATE shapes SET id = 2', 'KF031', 'by way of the generated column');
refused($node, "INSERT INTO shapes (d) VALUES ($good)", '22004', 'a context that is NULL');

# Undone, in every way in which it can be said, and set again.
foreach my $call ("constant => 'x'", "expression => '$context'", "expression => '$context', enforce => false", '')
{
	my $quoted = $call =~ s/'\Q$context\E'/\$\$$context\$\$/r;
	value($node, "SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => \$\$$context\$\$, enforce => true)");
	my $result = run_sql($node, "SELECT fieldcrypt.set_column_context('patients', 'ssn'" . ($quoted ? ", $quoted" : '') . ')');
	like($result->{err}, qr/not enforced any more/, "undone by ($call), which says so");
	gives($node, "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'patients'::regclass AND tgname LIKE 'fieldcrypt%'", '0', 'no trigger is left');
}
gives($node, "SELECT fieldcrypt.set_column_context('parts', 'ssn'); SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'fieldcrypt%' AND tgrelid::regclass::text LIKE 'parts%'", qr/\b0$/, 'nor on partitions');
refused($node, "SELECT fieldcrypt.set_column_context('patients', 'ssn', enforce => true)", '22023', 'without a context there is nothing to enforce');
refused($node, "SELECT fieldcrypt.set_column_context('patients', 'ssn', enforce => NULL)", '22004', 'NULL is neither');
refused($node, "SELECT fieldcrypt.set_column_context('patients', 'name', constant => 'x', enforce => true)", '42703', 'a column that holds no values');
refused($node, "SELECT fieldcrypt.set_column_context('patients', 'ssn', constant => 'x', enforce => true)", '42501', 'a role that does not own the table', user => 'writer');
no_crash($node);
done_testing();

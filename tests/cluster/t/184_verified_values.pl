# verify_values opens every value of the columns that have a context and lists what does not open, with the row, the key
# and the reason, never a value. It commits batch by batch and goes on where it was interrupted. health() names contexts
# that are said to be enforced and are not, and opens a sample.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', conf => "fieldcrypt.require_approval = ''\n");
my $checks = q{SELECT "check", status FROM fieldcrypt.health() WHERE "check" IN ('enforced_contexts', 'stored_values') ORDER BY 1};
my $thorough = $checks =~ s/health\(\)/health(true)/r;
gives($node, $checks, "enforced_contexts|ok\nstored_values|ok", 'nothing is wrong where nothing is');

value($node, <<'SQL');
CREATE ROLE manager LOGIN; SELECT fieldcrypt.grant_access('manager', 'manage');
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted, note fieldcrypt.encrypted, free fieldcrypt.encrypted, many fieldcrypt.encrypted[]);
INSERT INTO patients SELECT i, fieldcrypt.encrypt_field('secret ' || i, fieldcrypt.context('patients.ssn', i)), fieldcrypt.encrypt_field('n', 'notes'),
       fieldcrypt.encrypt_field('f', 'nobody knows'), ARRAY[fieldcrypt.encrypt_field('m', 'many'), NULL] FROM generate_series(1, 3000) AS i;
SQL
refused($node, "CALL fieldcrypt.verify_values('patients')", '22023', qr/no context/, 'nothing is known of the table');
value($node, q{SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => $$fieldcrypt.context('patients.ssn', id)$$),
	fieldcrypt.set_column_context('patients', 'note', constant => 'notes'), fieldcrypt.set_column_context('patients', 'many', constant => 'many')});
my $result = run_sql($node, "CALL fieldcrypt.verify_values('patients')", user => 'manager');
is_deeply($result->{sqlstates}, [], 'verified by a role with manage');
like($result->{err}, qr/9000 values verified, 0 do not open/, 'all values of the columns with a context');
unlike($result->{err}, qr/WARNING/, 'without a warning');
gives($node, $thorough, "enforced_contexts|ok\nstored_values|ok", 'health opens a sample and is content');

# Damage of each kind.
create_database($node, 'other');
my $foreign = value($node, q{SELECT fieldcrypt.encrypt_field('x', 'patients.ssn/7')}, db => 'other');
value($node, <<SQL);
UPDATE patients SET id = 10001 WHERE id = 1;
UPDATE patients SET ssn = '$foreign' WHERE id = 7;
UPDATE patients SET note = set_byte(note::bytea, 30, get_byte(note::bytea, 30) # 1)::fieldcrypt.encrypted WHERE id = 8;
UPDATE patients SET many = ARRAY[many[1], fieldcrypt.encrypt_field('m', 'few')] WHERE id = 9;
INSERT INTO patients VALUES (20000, fieldcrypt.encrypt_field('x', 'patients.ssn/20000', 'gone'));
CALL fieldcrypt.shred_tenant('gone', 'test');
SQL
$result = run_sql($node, "CALL fieldcrypt.verify_values('patients')", user => 'manager');
like($result->{err}, qr/WARNING:  KF031: 5 of 9002 values do not open/, 'a warning with a code');
gives($node, q{SELECT row_key ->> 'id', column_name, error_code FROM fieldcrypt.value_failures ORDER BY 1, 2}, qr/^10001\|ssn\|KF002\n20000\|ssn\|KF005\n7\|ssn\|KF003\n8\|note\|KF002\n9\|many\|KF002$/, 'which rows, and why', user => 'manager');
gives($node, q{SELECT count(*) FROM fieldcrypt.value_failures AS f WHERE f::text LIKE '%secret%'}, '0', 'no plaintext');
gives($node, q{SELECT state, values_seen, values_failed, blocks_done = blocks_total FROM fieldcrypt.value_verifications}, 'done|9002|5|t', 'how far it came', user => 'manager');
gives($node, $checks, "enforced_contexts|ok\nstored_values|critical", 'health says so');
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'values_decrypted'}, '0', 'verification is no decryption');
value($node, "CALL fieldcrypt.verify_values('patients', 'ssn')");
gives($node, q{SELECT DISTINCT column_name FROM fieldcrypt.value_failures}, 'ssn', 'one column alone');
value($node, 'DELETE FROM patients WHERE id IN (10001, 7, 8, 9, 20000)');
value($node, "CALL fieldcrypt.verify_values('patients')");
gives($node, $checks, "enforced_contexts|ok\nstored_values|ok", 'mended, and verified again');
value($node, 'UPDATE patients SET id = -id');
gives($node, $thorough, "enforced_contexts|ok\nstored_values|critical", 'the sample of health(thorough) finds what nobody has verified');
value($node, 'UPDATE patients SET id = -id');

# Interrupted in the middle: what is committed is kept.
value($node, q{INSERT INTO patients SELECT i, fieldcrypt.encrypt_field('secret ' || i, fieldcrypt.context('patients.ssn', i)) FROM generate_series(30001, 90000) AS i});
value($node, q{INSERT INTO fieldcrypt.value_verifications (relation, table_name, columns, state, blocks_done, blocks_total, values_seen)
	SELECT 'patients'::regclass, 'public.patients', '{ssn,note,many}', 'in_progress', 100, pg_relation_size('patients') / 8192, 12345
	ON CONFLICT (relation) DO UPDATE SET state = excluded.state, blocks_done = 100, blocks_total = excluded.blocks_total, values_seen = 12345, finished_at = NULL});
value($node, "CALL fieldcrypt.verify_values('patients')");
my $resumed = value($node, 'SELECT values_seen FROM fieldcrypt.value_verifications');
cmp_ok($resumed, '<', 12345 + 68985, 'it went on where it stood');
cmp_ok($resumed, '>', 12345 + 50000, 'to the end');
my $session = session($node);
my $pid = $session->server_process;
value($node, q{CREATE FUNCTION slowly(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM pg_sleep(0.001); RETURN $1; END $$;
	SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => $$public.slowly(fieldcrypt.context('patients.ssn', id))$$)});
$session->send("CALL fieldcrypt.verify_values('patients', 'ssn')");
ok(eventually($node, "SELECT blocks_done > 0 AND state = 'in_progress' FROM fieldcrypt.value_verifications", 't'), 'progress is seen while it runs');
value($node, "SELECT pg_terminate_backend($pid)");
ok(eventually($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", '0'), 'it is killed');
my ($done, $seen) = split /\|/, value($node, 'SELECT blocks_done, values_seen FROM fieldcrypt.value_verifications');
value($node, q{CREATE OR REPLACE FUNCTION slowly(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1'});
value($node, "CALL fieldcrypt.verify_values('patients', 'ssn')");
gives($node, 'SELECT state, values_seen, values_failed FROM fieldcrypt.value_verifications', 'done|62996|0', 'each value was opened once');
$session->close;

# What can't be verified says so, and what may not be called is refused.
value($node, q{CREATE FUNCTION broken(int) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN (1 / ($1 - $1))::text; END $$;
	SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => 'public.broken(id)')});
$result = run_sql($node, "CALL fieldcrypt.verify_values('patients', 'ssn')");
like($result->{err}, qr/WARNING:  KF031: could not be verified to the end: public.patients/, 'an expression that fails');
gives($node, 'SELECT state, error_code FROM fieldcrypt.value_verifications', 'failed|22012', 'is in the view');
refused($node, "BEGIN; CALL fieldcrypt.verify_values('patients'); COMMIT", '2D000', 'not inside a transaction block');
refused($node, 'CALL fieldcrypt.verify_values(NULL)', '22004', 'not without a table');
refused($node, "CALL fieldcrypt.verify_values('patients', 'free')", '22023', 'not a column without a context');
value($node, 'CREATE ROLE nobody LOGIN');
refused($node, "CALL fieldcrypt.verify_values('patients')", '42501', 'not without manage', user => 'nobody');

# Enforced or not, as health sees it.
value($node, <<'SQL');
CREATE TABLE parts (id int, ssn fieldcrypt.encrypted) PARTITION BY LIST (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
CREATE TABLE base (id int, ssn fieldcrypt.encrypted);
SELECT fieldcrypt.set_column_context('parts', 'ssn', expression => $$fieldcrypt.context('parts.ssn', id)$$, enforce => true),
       fieldcrypt.set_column_context('base', 'ssn', expression => $$fieldcrypt.context('base.ssn', id)$$, enforce => true);
SQL
my $enforced = q{SELECT status, detail FROM fieldcrypt.health() WHERE "check" = 'enforced_contexts'};
gives($node, $enforced, qr/^ok\|.*context of 3 columns$/, 'all is enforced');
foreach my $way ([ 'ALTER TABLE parts_1 DISABLE TRIGGER fieldcrypt_context_0_insert', 'ALTER TABLE parts_1 ENABLE TRIGGER fieldcrypt_context_0_insert', 'parts_1' ],
	[ 'ALTER TABLE base DISABLE TRIGGER USER', 'ALTER TABLE base ENABLE TRIGGER USER', 'base' ],
	[ 'ALTER TABLE base ENABLE REPLICA TRIGGER fieldcrypt_context_0_update', 'ALTER TABLE base ENABLE TRIGGER fieldcrypt_context_0_update', 'base' ],
	[ 'CREATE TABLE child () INHERITS (base)', q{SELECT fieldcrypt.set_column_context('base', 'ssn', expression => $$fieldcrypt.context('base.ssn', id)$$, enforce => true)}, 'child' ],
	[ 'ALTER TABLE base RENAME ssn TO s; ALTER TABLE base DISABLE TRIGGER USER', 'ALTER TABLE base RENAME s TO ssn; ALTER TABLE base ENABLE TRIGGER USER', 'base.s' ],
	[ 'DROP TRIGGER fieldcrypt_context_0_insert ON base', q{SELECT fieldcrypt.set_column_context('base', 'ssn', expression => $$fieldcrypt.context('base.ssn', id)$$, enforce => true)}, 'base' ])
{
	my ($breaks, $mends, $named) = @$way;
	value($node, $breaks);
	gives($node, $enforced, qr/^warning\|.*\Q$named\E/, "seen: $breaks");
	value($node, $mends);
	gives($node, $enforced, qr/^ok\|/, 'mended');
}
no_crash($node);
done_testing();

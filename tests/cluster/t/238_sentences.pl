# fieldcrypt.audit_trail: the log as sentences, for who may read the log and nobody else. Every event has its own, whatever
# its columns hold; what somebody chose (names, reasons, subjects, contexts) stays within its quotes and on its line.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_decrypt = 'statements'
fieldcrypt.audit_decrypt_contexts = 100
CONF
value($node, <<'SQL');
CREATE ROLE app LOGIN; CREATE ROLE reader; GRANT reader TO app; CREATE ROLE auditor LOGIN; CREATE ROLE nobody LOGIN; CREATE ROLE manager LOGIN;
SELECT fieldcrypt.create_key('acme');
SELECT fieldcrypt.grant_access('app', 'encrypt'), fieldcrypt.grant_access('reader', 'decrypt'), fieldcrypt.grant_access('auditor', 'audit'), fieldcrypt.grant_access('manager', 'manage', 'backup');
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted);
GRANT ALL ON patients TO app, reader;
SELECT fieldcrypt.audit_table('patients');
SQL
my @auditor = (user => 'auditor');
sub sentence
{
	my ($of) = @_;
	eventually($node, "SELECT count(*) > 0 FROM fieldcrypt.audit_log WHERE $of", 't');
	return value($node, "SELECT sentence FROM fieldcrypt.audit_trail WHERE id = (SELECT max(id) FROM fieldcrypt.audit_log WHERE $of)", @auditor);
}

# Who may read it.
refused($node, 'SELECT * FROM fieldcrypt.audit_trail', '42501', "$_ may not", user => $_) foreach qw(nobody app manager);
ok(value($node, 'SELECT count(*) > 5 FROM fieldcrypt.audit_trail', @auditor) eq 't', 'the auditor may');
gives($node, 'SELECT (SELECT count(*) FROM fieldcrypt.audit_trail) = (SELECT count(*) FROM fieldcrypt.audit_log)', 't', 'a sentence for each row', @auditor);

# What really happens.
value($node, <<'SQL', user => 'app');
BEGIN;
SET LOCAL fieldcrypt.audit_subject = 'dr. li';
INSERT INTO patients VALUES (4711, fieldcrypt.encrypt_field('x', 'patients.ssn/4711', 'acme'));
SET LOCAL ROLE reader;
SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/4711') FROM patients;
COMMIT;
SQL
is(sentence(q{event = 'row_inserted'}), '"app", for "dr. li", as claimed inserted a row: {"id": 4711}, of "public.patients", with "ssn".', 'a row');
my $key = value($node, q{SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'acme'});
is(sentence(q{event = 'values_decrypted'}), qq{"app" as "reader", for "dr. li", as claimed decrypted: 1 values, key $key, of tenant "acme", bound to "patients.ssn/4711".}, 'a decryption');
value($node, q{CALL fieldcrypt.rotate_keys('acme', 'because')});
like(sentence(q{event = 'key_rotated'}), qr/^"[^"]+" made a new version of a key: key \d+, of tenant "acme" \(.*because.*\)\.$/, 'a rotation, and why');
refused($node, 'CALL fieldcrypt.rotate_keys()', '42501', 'refused', user => 'nobody');
like(sentence(q{event = 'call_refused' AND actor = 'nobody'}), qr/^"nobody" tried what was refused \("42501: permission denied for schema fieldcrypt"\)\.$/, 'a refusal');
value($node, 'SELECT fieldcrypt.snapshot_access()');
like(sentence(q{event = 'access_snapshot' AND reason LIKE '%"decrypt"%'}), qr/^"[^"]+" found a change of who may do what: decrypt: "app \(inherits from reader\)", .*"reader \(granted\)"/, 'who may what');

# Every event, with every column, with hostile ones, and with as little as there can be: written as the log's owner could.
my @events = split /, /, value($node, q{SELECT split_part(col_description('fieldcrypt.audit_log'::regclass, 3), ': ', 2)});
cmp_ok(scalar @events, '>', 45, 'all events');
my $evil = q{E'x\n2026-01-01 "postgres" erased a key. \x1b[2J\r\t%s %n <b>"\' \u202E\u2028\u200b'};
value($node, <<"SQL");
SET session_replication_role = replica;
INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid)
SELECT 1000 + n, now(), event, 'a', 'a', 1 FROM unnest(string_to_array('@{[ join ',', @events ]}', ',')) WITH ORDINALITY AS e (event, n);
INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, client_address, application, backend_pid, tenant, key_id, reason, table_name, partition_name, row_key, old_row_key, changed_columns, error_code, value_count, key_ids, subject, contexts)
SELECT 2000 + n, now(), event, e, e || 'r', '10.0.0.1', e, 1, e, 7, e, e, e, jsonb_build_object(e, e), jsonb_build_object(e, e), ARRAY[e, NULL, e], e, 5, ARRAY[1, 2, 3, 4], e, ARRAY[e, repeat(e, 100)]
  FROM unnest(string_to_array('@{[ join ',', @events, 'no_such_event' ]}', ',')) WITH ORDINALITY AS v (event, n), (VALUES ($evil)) AS evil (e);
SQL
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_trail WHERE id < 3000 AND sentence IS NOT NULL AND who IS NOT NULL AND did <> ''}, 2 * @events + 1, 'all have a sentence', @auditor);
gives($node, q{SELECT string_agg(event, ' ') FROM fieldcrypt.audit_trail WHERE id < 2000 AND did LIKE 'did "%'}, '', 'of their own', @auditor);
gives($node, q{SELECT count(DISTINCT did) FROM fieldcrypt.audit_trail WHERE id < 2000}, scalar @events, 'no two the same', @auditor);
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_trail WHERE id < 3000 AND sentence ~ '[\u0001-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e]'}, '0', 'on one line, with nothing that moves or turns', @auditor);
like(value($node, q{SELECT who FROM fieldcrypt.audit_trail WHERE id = 2001}, @auditor), qr/^"x\\n2026-01-01 \\"postgres\\" erased a key\. [^\n]*" as "[^\n]*", from 10\.0\.0\.1, for "x\\n[^\n]*", as claimed$/, 'what is chosen stays within its quotes');
gives($node, q{SELECT max(length(sentence)) < 8000 FROM fieldcrypt.audit_trail}, 't', 'none is without end', @auditor);
like(value($node, q{SELECT sentence FROM fieldcrypt.audit_trail WHERE id < 3000 AND event = 'no_such_event'}, @auditor), qr/ did "no_such_event": /, 'what is none says so');
like(sentence(q{id = 2001}), qr/ \("x [^()]*\\"postgres\\" erased a key/, 'a reason stays within its quotes, too');
# Attack: other operators and functions in the reader's path.
gives($node, q{CREATE TEMP TABLE unnest (x int); SELECT count(*) FROM fieldcrypt.audit_trail WHERE id < 2000 AND did LIKE 'did "%'}, '0', 'whatever the path', @auditor);

no_crash($node);
$node->stop;
done_testing();

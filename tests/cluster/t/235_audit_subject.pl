# fieldcrypt.audit_subject: for whom the application acted, as it claims, in every event of the transaction; never in
# the place of who was connected, in no form that breaks a line, and sealed with its row. Rows with and without it
# stay one log: dumped, restored, exported, verified.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_decrypt = 'statements'
fieldcrypt.audit_seal_interval = 200
fieldcrypt.audit_worker_linger = 60000
max_prepared_transactions = 2
CONF

value($node, <<'SQL');
SELECT fieldcrypt.create_key('default');
CREATE ROLE app LOGIN;
CREATE ROLE nobody LOGIN;
GRANT CREATE ON SCHEMA public TO app;
SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt');
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('patients');
INSERT INTO patients SELECT i, fieldcrypt.encrypt_field('s' || i, 'patients.ssn/' || i) FROM generate_series(1, 20) AS i;
GRANT ALL ON patients TO app;
CREATE FUNCTION claims_for_each() RETURNS int LANGUAGE plpgsql AS $$
DECLARE shown text;
BEGIN
    FOR i IN 1 .. 6 LOOP
        PERFORM set_config('fieldcrypt.audit_subject', 'person ' || i % 3, true);
        SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || i) INTO shown FROM patients WHERE id = i;
        SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || i) INTO shown FROM patients WHERE id = i;
    END LOOP;
    RETURN 6;
END $$;
SQL
my $last = 0;
sub from_now_on { $last = value($node, 'SELECT coalesce(max(id), 0) FROM fieldcrypt.audit_log'); return }

# The events since then, with who and for whom; when all of them are written.
sub events
{
	my ($count) = @_;
	eventually($node, "SELECT count(*) >= $count FROM fieldcrypt.audit_log WHERE id > $last AND event !~ '^(master_key|audit_)'", 't');
	return value($node, "SELECT string_agg(concat_ws(':', event, actor, coalesce(subject, '-')), ' ' ORDER BY event, subject, id) FROM fieldcrypt.audit_log WHERE id > $last AND event !~ '^(master_key|audit_)'");
}

# Every kind of event: of the transaction, of a table's rows, of decryption, failed and refused, rolled back.
my $app = session($node, user => 'app');
from_now_on();
$app->value(<<'SQL');
BEGIN;
SET LOCAL fieldcrypt.audit_subject = 'dr. li';
INSERT INTO patients VALUES (100, fieldcrypt.encrypt_field('x', 'patients.ssn/100'));
SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/1') FROM patients WHERE id = 1;
COMMIT;
SQL
is(events(2), 'row_inserted:app:dr. li values_decrypted:app:dr. li', 'rows and decryptions carry it');
from_now_on();
$app->value(q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/1') FROM patients WHERE id = 1});
is(events(1), 'values_decrypted:app:-', 'the next transaction does not');
from_now_on();
$app->run('BEGIN');
$app->run(q{SET LOCAL fieldcrypt.audit_subject = 'dr. li'});
$app->refused(q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/2') FROM patients WHERE id = 1}, 'KF002', 'a failure');
$app->run('ROLLBACK');
$app->run('BEGIN');
$app->run(q{SET LOCAL fieldcrypt.audit_subject = 'dr. no'});
$app->refused(q{CALL fieldcrypt.rotate_keys()}, '42501', 'a refusal');
$app->run('ROLLBACK');
$app->run('BEGIN');
$app->run(q{SET LOCAL fieldcrypt.audit_subject = 'dr. who'});
$app->value(q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/1') FROM patients WHERE id = 1});
$app->run('ROLLBACK');
is(events(3), 'call_refused:app:dr. no decrypt_failed:app:dr. li values_decrypted:app:dr. who', 'failed, refused and rolled back, too');

# Savepoints and two-phase commit: as the setting stands when it happens.
from_now_on();
$app->value(<<'SQL');
BEGIN;
SET LOCAL fieldcrypt.audit_subject = 'a';
SAVEPOINT s;
SET LOCAL fieldcrypt.audit_subject = 'b';
DELETE FROM patients WHERE id = 100;
ROLLBACK TO s;
DELETE FROM patients WHERE id = 100;
SET LOCAL fieldcrypt.audit_subject = 'c';
INSERT INTO patients VALUES (101, NULL);
PREPARE TRANSACTION 'two';
COMMIT PREPARED 'two';
SQL
is(events(2), 'row_deleted:app:a row_inserted:app:c', 'of each change');
# One statement that acts for several: each is told of its own.
from_now_on();
$app->value('SELECT claims_for_each()');
eventually($node, "SELECT coalesce(sum(value_count), 0) = 12 FROM fieldcrypt.audit_log WHERE id > $last AND event = 'values_decrypted'", 't');
gives($node, "SELECT string_agg(s, ' ' ORDER BY s) FROM (SELECT concat_ws('=', subject, sum(value_count)) AS s FROM fieldcrypt.audit_log WHERE id > $last AND event = 'values_decrypted' GROUP BY subject) AS t", 'person 0=4 person 1=4 person 2=4', 'a statement that acts for several is told by each');

# One statement as several roles: each is told of its own. Also of failures, and of many changes.
value($node, 'CREATE ROLE ra; CREATE ROLE rb; GRANT ra, rb TO app; GRANT SELECT ON patients TO ra, rb');
value($node, q{SELECT fieldcrypt.grant_access('ra', 'decrypt'), fieldcrypt.grant_access('rb', 'decrypt')});
from_now_on();
my $changing = session($node, user => 'app');
$changing->value(q{DO $$ BEGIN
	SET LOCAL ROLE ra; PERFORM fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) FROM patients WHERE id = 1;
	SET LOCAL ROLE rb; PERFORM fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) FROM patients WHERE id <= 5;
	PERFORM fieldcrypt.try_decrypt_field(ssn, 'wrong') FROM patients WHERE id <= 2;
	RESET ROLE; PERFORM fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) FROM patients WHERE id <= 3;
	PERFORM fieldcrypt.try_decrypt_field(ssn, 'wrong') FROM patients WHERE id <= 4;
END $$});
my $by_role = "SELECT string_agg(concat_ws('=', event, actor, role, value_count), ' ' ORDER BY event, role) FROM (SELECT event, actor, role, sum(value_count) AS value_count FROM fieldcrypt.audit_log WHERE id > $last AND event IN ('values_decrypted', 'decrypt_failed') GROUP BY event, actor, role) AS l";
ok(eventually($node, $by_role, 'decrypt_failed=app=app=4 decrypt_failed=app=rb=2 values_decrypted=app=app=3 values_decrypted=app=ra=1 values_decrypted=app=rb=5'), 'a statement as several roles is told by each') or diag(value($node, $by_role));
from_now_on();
$changing->value(q{DO $$ BEGIN FOR i IN 1 .. 1500 LOOP
	SET LOCAL ROLE ra; PERFORM fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) FROM patients WHERE id = 1;
	SET LOCAL ROLE rb; PERFORM fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) FROM patients WHERE id <= 2;
END LOOP; END $$});
$by_role =~ s/id > \d+/id > $last/;
ok(eventually($node, $by_role, 'values_decrypted=app=ra=1500 values_decrypted=app=rb=3000'), 'also of many') or diag(value($node, $by_role));
$changing->close;

# Attack: to be somebody else. It is a claim, beside who was connected; and the same for who has no rights.
from_now_on();
my $nobody = session($node, user => 'nobody');
$nobody->value(q{SET fieldcrypt.audit_subject = 'postgres'});
$nobody->refused(q{SELECT * FROM fieldcrypt.audit_log}, '42501', 'nobody may not read');
is(events(1), 'call_refused:nobody:postgres', 'what is claimed stands beside who was connected');
gives($node, "SELECT DISTINCT actor, role FROM fieldcrypt.audit_log WHERE id > $last AND subject = 'postgres'", 'nobody|nobody', 'and in no other column');
from_now_on();
$nobody->value(q{SET application_name = 'x'});
$nobody->value(q{RESET fieldcrypt.audit_subject});

# Attack: lines, terminals, directions of writing, length.
my %bad = (
	'a line end' => q{E'dr. li\nfieldcrypt audit: {}'}, 'a carriage return' => q{E'dr. li\r'}, 'an escape' => q{E'\x1b[2J'},
	'C1' => q{U&'\009b'}, 'a line separator' => q{U&'a\2028b'}, 'an override' => q{U&'\202Eil .rd'}, 'an isolate' => q{U&'a\2066b'},
	'a blank at the end' => q{'dr. li '}, 'what can not be seen' => q{U&'dr. li\200B'}, '257 bytes' => q{repeat('x', 257)}, '100 kB' => q{repeat('x', 100000)});
foreach my $name (sort keys %bad)
{
	$nobody->refused("SELECT set_config('fieldcrypt.audit_subject', $bad{$name}, false)", '22023', "$name is refused");
}
$nobody->gives(q{SHOW fieldcrypt.audit_subject}, '', 'and nothing is left of it');
my $strange = q{%s %n $1 {"a": 1}', <b>&amp; \\n "};
$nobody->value(q{SELECT set_config('fieldcrypt.audit_subject', '} . $strange =~ s/'/''/gr . q{', false)});
$nobody->refused(q{SELECT * FROM fieldcrypt.audit_log}, '42501', 'refused');
eventually($node, "SELECT count(*) > 0 FROM fieldcrypt.audit_log WHERE id > $last", 't');
gives($node, "SELECT subject FROM fieldcrypt.audit_log WHERE id > $last", $strange, 'what has a meaning elsewhere stays what it is');
$nobody->close;
$app->close;

# It is sealed: nobody takes it away, changes it or puts it in, whatever else is done to the row.
sub sealed
{
	return $node->poll_query_until('postgres', 'SELECT count(*) FILTER (WHERE leaf IS NULL) = 0 AND max(leaf) + 1 = (SELECT max(size) FROM fieldcrypt.audit_checkpoints) FROM fieldcrypt.audit_log');
}
my $critical = q{SELECT coalesce(string_agg(DISTINCT finding, ' ' ORDER BY finding), '') FROM fieldcrypt.verify_audit_log() WHERE status = 'critical' AND finding <> 'summary'};
ok(sealed(), 'sealed');
gives($node, $critical, '', 'before: nothing to be found');
gives($node, q{SELECT count(*) FILTER (WHERE subject IS NOT NULL) > 5, count(*) FILTER (WHERE subject IS NULL) > 5 FROM fieldcrypt.audit_log}, 't|t', 'rows of both versions');
value($node, 'CREATE TABLE saved AS SELECT * FROM fieldcrypt.audit_log');
my $new = value($node, q{SELECT id FROM fieldcrypt.audit_log WHERE subject = 'dr. li' AND event = 'row_inserted'});
my $old = value($node, q{SELECT id FROM fieldcrypt.audit_log WHERE event = 'row_inserted' AND subject IS NULL LIMIT 1});
my %edits = (
	'taken away' => [ $new, 'subject = NULL' ], 'emptied' => [ $new, q{subject = ''} ], 'another' => [ $new, q{subject = 'dr. no'} ],
	'moved to the contexts' => [ $new, q{subject = NULL, contexts = '{dr. li}'} ], 'moved to the reason' => [ $new, q{reason = subject, subject = NULL} ],
	'contexts put in' => [ $new, q{contexts = '{}'} ], 'with the MAC taken away' => [ $new, q{subject = NULL, mac = NULL, mac_key_id = NULL} ],
	'put into an old row' => [ $old, q{subject = 'dr. li'} ], 'an empty one into an old row' => [ $old, q{subject = ''} ],
	'contexts into an old row' => [ $old, q{contexts = '{patients.ssn/1}'} ], 'empty contexts into an old row' => [ $old, q{contexts = '{}'} ],
	'contexts of two dimensions' => [ $old, q{contexts = '{{a}}'} ]);
foreach my $name (sort keys %edits)
{
	my ($row, $edit) = @{ $edits{$name} };
	is(value($node, "SET session_replication_role = replica; WITH u AS (UPDATE fieldcrypt.audit_log SET $edit WHERE id = $row RETURNING *) SELECT count(*) FROM u"), '1', "$name: done");
	my $found = run_sql($node, $critical);
	like($found->{out}, qr/row_changed|root_mismatch/, "$name: found ($found->{out})") or diag $found->{err};
	value($node, "SET session_replication_role = replica; DELETE FROM fieldcrypt.audit_log WHERE id = $row; INSERT INTO fieldcrypt.audit_log SELECT * FROM saved WHERE id = $row");
}
gives($node, $critical, '', 'put back: nothing to be found');

# Exported with both versions, checked without the server; and an export from which a subject is taken is bad.
my @master = ('--master-key', $node->basedir . '/master.key', '--keys', write_file('keys.json', value($node, 'SELECT fieldcrypt.export_keys()')));
sub verified
{
	my ($text, $outcome, $like, $name) = @_;
	my $result = tool('verify-log', write_file('log.jsonl', $text), @master);
	is($result->{code}, $outcome, "offline: $name") or diag "$result->{out}$result->{err}";
	like($result->{out}, $like, "offline: $name, in words");
	return;
}
my $text = value($node, 'SELECT fieldcrypt.audit_export()') . "\n";
like($text, qr/"subject":"dr\. li"/, 'the export has it');
verified($text, 0, qr/^\d+ sealed rows, 0 not sealed/, 'a log of both versions');
verified($text =~ s/,"subject":"dr\. li"//r, 1, qr/critical row_changed/, 'a subject taken away');
verified($text =~ s/"subject":"dr\. li"/"subject":"dr. no"/r, 1, qr/critical row_changed/, 'a subject changed');
verified($text =~ s/"event":"row_inserted"/"event":"row_inserted","subject":"dr. li"/r, 1, qr/critical row_changed/, 'a subject put in');

# Dumped and restored, mixed; and a dump from before there were these columns.
my $dump = $node->basedir . '/dump.sql';
dump_database($node, 'postgres', $dump);
sub restored
{
	my ($db, $file) = @_;
	create_database($node, $db, extension => 0);
	restore_database($node, $db, $file);
	gives($node, $critical, '', "$db: verified", db => $db);
	gives($node, 'SELECT count(*) FROM fieldcrypt.verify_audit_log() WHERE finding LIKE \'mac%\'', '0', "$db: authentic", db => $db);
	return;
}
restored('copy', $dump);
my $of = q{SELECT md5(string_agg(l::text, '|' ORDER BY id)) FROM fieldcrypt.audit_log AS l WHERE id <= (SELECT max(id) FROM postgres_rows)};
my $rows = 'CREATE TEMP VIEW postgres_rows AS SELECT ' . value($node, 'SELECT max(id) FROM saved') . '::bigint AS id';
is(value($node, "$rows; $of", db => 'copy'), value($node, "$rows; $of"), 'copy: the same rows');

create_database($node, 'ancient');
value($node, q{SELECT fieldcrypt.create_key('acme'); CALL fieldcrypt.rotate_keys('acme', 'why')}, db => 'ancient');
$node->poll_query_until('ancient', 'SELECT count(*) FILTER (WHERE leaf IS NULL) = 0 AND max(leaf) + 1 = (SELECT max(size) FROM fieldcrypt.audit_checkpoints) FROM fieldcrypt.audit_log');
dump_database($node, 'ancient', $dump);
open my $in, '<', $dump or die $!;
my ($before, $is_log, $lines) = ('', 0, 0);
while (<$in>)
{
	$is_log = 1 if s/^(COPY fieldcrypt_internal\.audit_log_\w+ \(.*), subject, contexts\)/$1)/;
	$is_log = 0 if /^\\\.$/;
	$lines++ if $is_log && s/\t\\N\t\\N$//;
	$before .= $_;
}
close $in;
ok($lines > 2, "a dump from before: $lines rows");
$dump = write_file('before.sql', $before);
restored('older', $dump);
value($node, q{SET fieldcrypt.audit_subject = 'dr. li'; SELECT fieldcrypt.create_key('new')}, db => 'older');
gives($node, q{SELECT subject FROM fieldcrypt.audit_log WHERE event = 'key_created' ORDER BY id DESC LIMIT 1}, 'dr. li', 'older: goes on', db => 'older');
gives($node, $critical, '', 'older: still verified', db => 'older');

no_crash($node);
$node->stop;

# Without preload events go to the server log: a line of JSON each, whatever was claimed, also before the library was there.
my $plain = new_cluster('plain', conf => "fieldcrypt.audit_decrypt = 'statements'\n");
value($plain, q{SELECT fieldcrypt.create_key('default'); CREATE TABLE t AS SELECT fieldcrypt.encrypt_field('x') AS v});
my $log = -s $plain->logfile;
value($plain, qq{SET fieldcrypt.audit_subject = E'dr. "li" \\u00fc'; SELECT fieldcrypt.decrypt_field(v) FROM t});
run_sql($plain, q{SET fieldcrypt.audit_subject = E'dr.\nfieldcrypt audit: {"event":"forged"}'; SELECT fieldcrypt.decrypt_field(v) FROM t});
my $written = slurp_file($plain->logfile, $log);
like($written, qr/fieldcrypt audit: \{.*"subject":"dr\. \\"li\\" \\u00fc"/, 'on one line, in ASCII');
unlike($written, qr/^(?:.*LOG:\s+)?fieldcrypt audit: \{"event":"forged"/m, 'no line is forged');
$plain->stop;
done_testing();

# What is told of a re-encryption is so: how far it is, that it is done, what stopped it.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "autovacuum = off\n");
my $key_file = $node->basedir . '/master.key';
my $rotate = 'CALL fieldcrypt.rotate_keys(force => true)';
my $run = 'CALL fieldcrypt.reencrypt(%s, rows_per_second => 0)';

sub progress
{
	my ($table, $columns) = @_;
	return "SELECT $columns FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.$table'";
}

# A test: health() says this of re-encryption.
sub is_health
{
	my ($like, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like(value($node, q{SELECT status || ': ' || detail FROM fieldcrypt.health() WHERE "check" = 'reencryption'}), $like, $name);
}

# Values that are bound to a context which nobody has set: 50,000 failures are not looked for one by one.
value($node, <<"SQL");
CREATE TABLE bound (id int PRIMARY KEY, v fieldcrypt.encrypted);
INSERT INTO bound SELECT i, fieldcrypt.encrypt_field('x' || i, 'bound.v/' || i) FROM generate_series(1, 50000) AS i;
$rotate;
SQL
my $result = run_sql($node, sprintf $run, q{'bound'});
is("@{ $result->{sqlstates} }", '', 'without a context: the run goes through');
like($result->{err}, qr/WARNING:  KF025: could not be re-encrypted to the end: public\.bound: no context is set for column "v", and without one \d+ of \d+ values did not open: fieldcrypt\.set_column_context\(\) says .* \(KF002\)/,
	'  and says why, and what to do');
gives($node, progress('bound', 'state, error_code, rows_moved, rows_failed < 3000'), 'failed|KF002|0|t', '  it was not gone on with to the end, and is not called done');
gives($node, 'SELECT count(*) < 3000 FROM fieldcrypt.reencryption_failures', 't', '  nor listed');
gives($node, progress('bound', 'rows_failed = (SELECT count(*) FROM fieldcrypt.reencryption_failures), rows_done >= rows_failed, rows_total BETWEEN 30000 AND 70000, percent BETWEEN 1 AND 10'),
	't|t|t|t', '  the figures say how far it came');
is_health(qr/^warning: .*public\.bound \(failed: "no context is set for column .*\(KF002\)\)/, '  health says so');
value($node, q{SELECT fieldcrypt.set_column_context('bound', 'v', expression => $$'bound.v/' || id$$)});
$result = run_sql($node, sprintf $run, q{'bound'});
unlike($result->{err}, qr/WARNING|ERROR/, 'with the context: no warning');
gives($node, progress('bound', 'state, rows_moved, rows_failed, percent'), 'done|50000|0|100', '  all is done');

# A context that is wrong was set by somebody, and values may be lost in truth: these are all looked at.
value($node, "SELECT fieldcrypt.set_column_context('bound', 'v', 'another'); $rotate");
$result = run_sql($node, sprintf $run, q{'bound'});
like($result->{err}, qr/WARNING:  KF025: 50000 rows have values/, 'with a wrong context: all rows are tried');
like($result->{err}, qr/ 0 rows re-encrypted, 0 tables done, 50000 rows could not be/, '  and the table is not counted as done');
gives($node, progress('bound', 'state, rows_failed'), 'incomplete|50000', '  nor called so');
is_health(qr/^warning: .*public\.bound \(50000 rows could not be re-encrypted\)/, '  health says so');
value($node, 'DROP TABLE bound');

# Each column by itself: what can be moved is, of the others one is told which it is.
value($node, <<"SQL");
CREATE TABLE mixed (id int PRIMARY KEY, v fieldcrypt.encrypted, w fieldcrypt.encrypted);
INSERT INTO mixed SELECT i, fieldcrypt.encrypt_field('v', 'mixed'), fieldcrypt.encrypt_field('w') FROM generate_series(1, 5000) AS i;
CREATE TABLE several (id int PRIMARY KEY, v fieldcrypt.encrypted, w fieldcrypt.encrypted, x fieldcrypt.encrypted[]);
INSERT INTO several SELECT i, fieldcrypt.encrypt_field('v', 'v'), fieldcrypt.encrypt_field('w', 'several/' || i), ARRAY[fieldcrypt.encrypt_field('x', 'x')] FROM generate_series(1, 5000) AS i;
SELECT fieldcrypt.set_column_context('several', 'w', expression => \$\$'several/' || id\$\$);
CREATE TABLE nearly AS SELECT i AS id, CASE WHEN i % 500 = 7 THEN fieldcrypt.encrypt_field('v') ELSE fieldcrypt.encrypt_field('v', 'nearly') END AS v FROM generate_series(1, 5000) AS i;
CREATE TABLE few AS SELECT i AS id, fieldcrypt.encrypt_field('v', 'few') AS v FROM generate_series(1, 900) AS i;
CREATE TABLE half AS SELECT i AS id, CASE WHEN i % 2 = 0 THEN fieldcrypt.encrypt_field('v', 'half') ELSE fieldcrypt.encrypt_field('v') END AS v FROM generate_series(1, 4000) AS i;
CREATE TABLE late AS SELECT i AS id, CASE WHEN i > 100 THEN fieldcrypt.encrypt_field('v', 'late') ELSE fieldcrypt.encrypt_field('v') END AS v FROM generate_series(1, 4000) AS i;
CREATE TABLE sparse AS SELECT i AS id, CASE WHEN i % 3 = 0 THEN fieldcrypt.encrypt_field('v', 'sparse') END AS v, fieldcrypt.encrypt_field('w') AS w FROM generate_series(1, 6000) AS i;
$rotate;
SQL
$result = run_sql($node, sprintf $run, 'NULL');
like($result->{err}, qr/WARNING:  KF025: could not be .*public\.$_->[0]: (?:(?!\(KF002\)).)*no context is set for column "$_->[1]", and without one \d+ of \d+ values did not open/, "$_->[0]: column $_->[1] is named")
  foreach [ 'mixed', 'v' ], [ 'several', 'v' ], [ 'several', 'x' ], [ 'nearly', 'v' ], [ 'late', 'v' ], [ 'sparse', 'v' ];
gives($node, progress($_->[0], 'state, rows_moved'), $_->[1], "$_->[0]: the other columns are moved")
  foreach [ 'mixed', 'failed|5000' ], [ 'several', 'failed|5000' ], [ 'sparse', 'failed|6000' ];
gives($node, progress('nearly', 'state, error_code, rows_moved BETWEEN 1 AND 9, rows_failed BETWEEN 1000 AND 2500, percent < 100'), 'failed|KF002|t|t|t', 'nearly: one value without a context makes no difference');
gives($node, progress($_->[0], 'state, rows_moved, rows_failed'), $_->[1], "$_->[0]: what can be moved is, and what can't is counted")
  foreach [ 'few', 'incomplete|0|900' ], [ 'half', 'incomplete|2000|2000' ], [ 'late', 'failed|100|2900' ];
like($result->{err}, qr/WARNING:  KF025: \d+ rows have values .*\n?HINT:  .*No context is set for public\.few\.v, public\.half\.v/, 'those that went on are named, too');
gives($node, q{SELECT count(*) FROM fieldcrypt.reencryption_failures WHERE table_name IN ('public.mixed', 'public.several', 'public.sparse')}, qr/^\d{1,3}$|^[1-4]\d{3}$/, 'not every value is listed');
is_health(qr/^warning: .*no context is set for column/, 'health says so');
value($node, q{SELECT fieldcrypt.set_column_context('mixed', 'v', 'mixed'), fieldcrypt.set_column_context('several', 'v', 'v'), fieldcrypt.set_column_context('several', 'x', 'x'),
	fieldcrypt.set_column_context('sparse', 'v', 'sparse')});
foreach my $table ('mixed', 'several', 'sparse')
{
	$result = run_sql($node, sprintf $run, "'$table'");
	unlike($result->{err}, qr/WARNING|ERROR/, "$table: with the contexts no warning");
	gives($node, progress($table, 'state, rows_moved, rows_failed, error'), ($table eq 'sparse' ? 'done|2000|0|' : 'done|5000|0|'), '  all is done');
}
value($node, 'DROP TABLE mixed, several, nearly, few, half, late, sparse');

# A table that is stopped by its owner's constraint: its figures are of what was done.
value($node, <<"SQL");
CREATE TABLE stopped (id int, v fieldcrypt.encrypted, filler text);
INSERT INTO stopped SELECT i, fieldcrypt.encrypt_field('v'), repeat('x', 400) FROM generate_series(1, 3000) AS i;
ALTER TABLE stopped ADD CHECK (id <= 1000) NOT VALID;
$rotate;
SQL
run_sql($node, sprintf $run, q{'stopped'});
gives($node, progress('stopped', q{state, error_code, rows_moved, rows_failed = (SELECT count(*) FROM fieldcrypt.reencryption_failures), rows_failed >= 100, percent BETWEEN 20 AND 60, rows_total BETWEEN 2000 AND 4500}),
	'failed|23514|1000|t|t|t|t', 'stopped by a constraint: how far it came');
value($node, 'DROP TABLE stopped');

# A table that was never analysed: how much there is, how far it is, how long it will take.
value($node, <<"SQL");
CREATE TABLE fresh (id int PRIMARY KEY, v fieldcrypt.encrypted, filler text);
INSERT INTO fresh SELECT i, fieldcrypt.encrypt_field('x'), repeat('x', 400) FROM generate_series(1, 20000) AS i;
$rotate;
SQL
gives($node, q{SELECT reltuples FROM pg_class WHERE relname = 'fresh'}, '-1', 'a table that was never analysed');
my $session = session($node);
$session->send(q{CALL fieldcrypt.reencrypt('fresh', rows_per_second => 2000, batch_size => 200)});
ok(eventually($node, progress('fresh', 'rows_done > 1000'), 't'), 'is re-encrypted');
my ($percent, $total, $remaining, $consistent) = split /\|/,
  value($node, progress('fresh', q{percent, rows_total, extract(epoch FROM remaining), abs(percent - 100.0 * rows_done / rows_total) < 5 AND estimated_end > clock_timestamp()}));
cmp_ok($percent, '>', 1, "it is told how far it is ($percent %)");
cmp_ok($percent, '<', 100, '  which is not the end');
cmp_ok($total, '>', 16000, "how many rows there are ($total)");
cmp_ok($total, '<', 24000, '  about');
cmp_ok($remaining, '>', 0, "and how long it will take ($remaining s)");
is($consistent, 't', '  all of which goes together');

# It is interrupted; then an error ends each run, and stays until the table is gone on with.
value($node, q{SELECT pg_terminate_backend(pid) FROM fieldcrypt_internal.live_runs()});
ok(eventually($node, progress('fresh', 'state'), 'interrupted'), 'it is interrupted');
$session->close;
gives($node, progress('fresh', 'error_code IS NULL, remaining IS NULL, percent BETWEEN 1 AND 99'), 't|t|t', '  without an error, as far as it was');
write_key_file($key_file, key_text(9));
refused($node, sprintf($run, q{'fresh'}), 'KF010', qr/HINT: /, 'the master key goes away: the next run ends with the error, and a hint');
gives($node, progress('fresh', q{state, error_code, error LIKE 'keys in this database are wrapped by master key%', pids IS NULL, percent BETWEEN 1 AND 99}), 'interrupted|KF010|t|t|t', '  the progress tells what it was');
is_health(qr/^warning: .*public\.fresh \(interrupted just now: .*wrapped by master key.* \(KF010\)\)/, '  and so does health, at once');
write_key_file($key_file, key_text(1));
$session = session($node);
$session->send(q{CALL fieldcrypt.reencrypt('fresh', rows_per_second => 1000, batch_size => 200)});
ok(eventually($node, progress('fresh', q{state = 'running' AND remaining IS NOT NULL}), 't'), 'with the right key it goes on');
gives($node, progress('fresh', 'error_code IS NULL, error IS NULL'), 't|t', '  and the error is gone');
ok(eventually($node, progress('fresh', q{remaining > interval '5 s'}), 't'), '  what was done before is no measure of the rate');
value($node, q{SELECT pg_terminate_backend(pid) FROM fieldcrypt_internal.live_runs()});
$session->close;
value($node, sprintf $run, q{'fresh'});
gives($node, progress('fresh', 'state, rows_failed, percent, remaining IS NULL, error_code IS NULL'), 'done|0|100|t|t', 'in the end it is done');
is_health(qr/^ok: /, '  and health is content');

$node->stop;
done_testing();

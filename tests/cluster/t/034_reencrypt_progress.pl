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
like($result->{err}, qr/WARNING:  KF025: could not be re-encrypted to the end: public\.bound: no context is set for column "v", and without one none of \d+ rows opened: fieldcrypt\.set_column_context\(\) says .* \(KF002\)/,
	'  and says why, and what to do');
gives($node, progress('bound', 'state, error_code, rows_moved, rows_failed < 3000'), 'failed|KF002|0|t', '  it was not gone on with to the end, and is not called done');
gives($node, 'SELECT count(*) < 3000 FROM fieldcrypt.reencryption_failures', 't', '  nor listed');
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

# Some rows only, and some columns only: the others are moved.
value($node, <<"SQL");
CREATE TABLE mixed (id int PRIMARY KEY, v fieldcrypt.encrypted, w fieldcrypt.encrypted);
INSERT INTO mixed SELECT i, fieldcrypt.encrypt_field('v', 'mixed'), fieldcrypt.encrypt_field('w') FROM generate_series(1, 4000) AS i;
CREATE TABLE few AS SELECT i AS id, fieldcrypt.encrypt_field('v', 'few') AS v FROM generate_series(1, 900) AS i;
CREATE TABLE late AS SELECT i AS id, CASE WHEN i > 100 THEN fieldcrypt.encrypt_field('v', 'late') ELSE fieldcrypt.encrypt_field('v') END AS v FROM generate_series(1, 4000) AS i;
$rotate;
SQL
run_sql($node, sprintf $run, 'NULL');
gives($node, progress($_->[0], 'state, rows_moved, rows_failed'), $_->[1], "$_->[0]: what can be moved is, and what can't is counted")
  foreach [ 'mixed', 'incomplete|4000|4000' ], [ 'few', 'incomplete|0|900' ], [ 'late', 'incomplete|100|3900' ];
value($node, 'DROP TABLE mixed, few, late');

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

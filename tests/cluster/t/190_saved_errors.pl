# Who asks whether a text is a value of type encrypted, or wants to go on without what is none, gets an answer and no error,
# from PostgreSQL 16 on. Whatever is no question of the text is an error all the same. A COPY that skips lines tells nobody
# what stood in them.

use strict;
use warnings;

use FieldcryptTest;
use LogCanary;
use PostgreSQL::Test::Utils;
use ServerLog;
use Test::More;

my $node = new_cluster('primary', conf => "log_min_messages = notice\nlog_error_verbosity = verbose\n");
my $version = server_version($node);
if ($version < 16)
{
	$node->stop;
	plan skip_all => 'PostgreSQL 15 has no such question';
}
my $secret = '123-45-6789';
value($node, <<'SQL');
CREATE TABLE patients (id bigint, name text, ssn fieldcrypt.encrypted);
CREATE DOMAIN number_of_patient AS fieldcrypt.encrypted CHECK (VALUE IS NOT NULL);
CREATE TYPE person AS (name text, ssn fieldcrypt.encrypted);
CREATE TABLE nested (id bigint, ssn number_of_patient, list fieldcrypt.encrypted[], person person);
SQL
my $value = value($node, q{SELECT fieldcrypt.encrypt_field('kept')});
my $composite = qq{(n,$value)};

foreach my $type ('fieldcrypt.encrypted', 'number_of_patient')
{
	gives($node, "SELECT pg_input_is_valid('$value', '$type')", 't', "$type: a value");
	gives($node, "SELECT pg_input_is_valid('$_', '$type')", 'f', "$type: none: $_") foreach $secret, '', 'fc1:', 'fc1:!', 'fc1:AAAA', "fc1:" . 'A' x 80, $value . 'x' x 5, "\\x00";
}
gives($node, "SELECT pg_input_is_valid('{$value,$_}', 'fieldcrypt.encrypted[]'), pg_input_is_valid('(n,$_)', 'person')", 'f|f', 'in an array, in a composite') foreach $secret;
gives($node, "SELECT pg_input_is_valid('{$value}', 'fieldcrypt.encrypted[]'), pg_input_is_valid('$composite', 'person')", 't|t', 'and values there');
gives($node, "SELECT * FROM pg_input_error_info('$secret', 'fieldcrypt.encrypted')",
	qr/^not an encrypted value: it does not start with "fc1:"\|\|Columns of type encrypted take ciphertext only: .*\(KF001, see docs\/errors\.md\)\|KF001$/, 'what is wrong: as the error has it');
gives($node, "SELECT count(*) FROM pg_input_error_info('$value', 'fieldcrypt.encrypted')  AS i WHERE i.message IS NOT NULL", '0', 'and with a value nothing');
refused($node, "SELECT '$secret'::fieldcrypt.encrypted", 'KF001', 'who does not ask gets an error');
# Many in one statement, in a transaction that goes on: nothing is left behind.
gives($node, "BEGIN; SELECT count(*) FILTER (WHERE pg_input_is_valid(CASE i % 2 WHEN 0 THEN '$value' ELSE 'x' || i END, 'fieldcrypt.encrypted')) FROM generate_series(1, 100000) AS i; INSERT INTO patients VALUES (0, 'n', '$value'); COMMIT; SELECT count(*) FROM patients; DELETE FROM patients",
	qr/^50000\n1$/, 'a hundred thousand questions');
gives($node, "DO \$\$ BEGIN FOR i IN 1..10 LOOP IF pg_input_is_valid('$secret', 'fieldcrypt.encrypted') THEN RAISE 'valid'; END IF; END LOOP; END \$\$", '', 'in PL/pgSQL');

SKIP:
{
	skip 'COPY skips nothing before PostgreSQL 17, and JSON has no such functions', 1 if $version < 17;
	gives($node, qq{SELECT JSON_VALUE(jsonb '{"a": "$secret"}', '\$.a' RETURNING fieldcrypt.encrypted DEFAULT NULL ON ERROR) IS NULL}, 't', 'JSON_VALUE with a default');
	gives($node, qq{SELECT JSON_VALUE(jsonb '{"a": "$value"}', '\$.a' RETURNING fieldcrypt.encrypted ERROR ON ERROR)}, $value, 'JSON_VALUE of a value');
	refused($node, qq{SELECT JSON_VALUE(jsonb '{"a": "$secret"}', '\$.a' RETURNING fieldcrypt.encrypted ERROR ON ERROR)}, 'KF001', 'JSON_VALUE that wants an error');
	gives($node, qq{SELECT count(*), count(v) FROM JSON_TABLE(jsonb '["$value", "$secret"]', '\$[*]' COLUMNS (v fieldcrypt.encrypted PATH '\$'))}, '2|1', 'JSON_TABLE');

	my $lines = write_file('lines', "1\ta\t$value\n2\tb\t$secret\n3\tc\t\\N\n4\td\tx$secret\n5\te\t$value\n6\tf\t-\n7\tg\t*\n");
	my $options = "ON_ERROR ignore, LOG_VERBOSITY verbose";
	foreach my $way ("COPY %s FROM '%s' WITH (%s)", "\\copy %s from '%s' with (%s)")
	{
		my ($by) = $way =~ /^(\S+)/;
		my $from = -s $node->logfile;
		my $told = run_sql($node, sprintf $way, 'patients', $lines, $options);
		my $log = slurp_file($node->logfile, $from);
		like($told->{err}, qr/skipping row due to data type incompatibility at line 2 for column "ssn": "\*\*\*"/, "$by: the line that is skipped, not its value");
		like($told->{err}, qr/4 rows were skipped/, "$by: and how many");
		unlike($told->{err}, qr/$secret/, "$by: no value for the client");
		unlike($log, qr/$secret/, "$by: nor for the log");
		gives($node, 'SELECT string_agg(id::text, $$,$$ ORDER BY id) FROM patients; TRUNCATE patients', '1,3,5', "$by: the others arrive");
	}
	my $domains = write_file('domains', "1\t$secret\n2\t$value\n");
	my $told = run_sql($node, "COPY nested (id, ssn) FROM '$domains' WITH ($options); SELECT id FROM nested");
	like($told->{err}, qr/line 1 for column "ssn": "\*\*\*"/, 'a domain');
	unlike($told->{err}, qr/$secret/, '  whose value is not told either');
	is($told->{out}, '2', '  the other arrives');
	refused($node, "COPY patients FROM '$lines'", 'KF001', qr/COPY patients, line 2, column ssn$/m, 'without that option, the first is an error');
	if ($version >= 18)
	{
		my $from = -s $node->logfile;
		my $refused = run_sql($node, "COPY patients FROM '$lines' WITH (ON_ERROR ignore, REJECT_LIMIT 1)");
		like($refused->{err}, qr/skipped more than REJECT_LIMIT \(1\) rows/, 'too many lines');
		unlike($refused->{err} . slurp_file($node->logfile, $from), qr/$secret/, '  and no value of the last of them');
	}
	# Nothing else of the text is changed: what a trigger asks while a COPY runs is as it was.
	value($node, <<'SQL');
CREATE TABLE asked (t text, answer text);
CREATE FUNCTION ask() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.answer := NEW.t || pg_input_is_valid(NEW.t, 'fieldcrypt.encrypted'); RETURN NEW; END $$;
CREATE TRIGGER ask BEFORE INSERT ON asked FOR EACH ROW EXECUTE FUNCTION ask();
SQL
	value($node, "COPY asked (t) FROM '" . write_file('asked', "$secret\n$value\n") . "' WITH ($options)");
	gives($node, 'SELECT count(*) FROM asked WHERE answer IN (t || $$true$$, t || $$false$$)', '2', 'a trigger that asks during COPY');
}
no_crash($node);
$node->stop;

# What is damaged, and no question of the text, is an error all the same; and with preload the log is masked.
my $preloaded = new_cluster('preloaded', conf => everything_logged());
value($preloaded, 'CREATE TABLE patients (id bigint, name text, ssn fieldcrypt.encrypted, other fieldcrypt.encrypted[])');
my $canaries = LogCanary->new($preloaded);
$canaries->hides(sub { run_sql($preloaded, "SELECT pg_input_is_valid('$_[0]', 'fieldcrypt.encrypted'), (SELECT message FROM pg_input_error_info('$_[0]', 'fieldcrypt.encrypted'))") }, 'the question itself', qr/pg_input_is_valid/);
if ($version >= 17)
{
	foreach my $column (qw(ssn other))
	{
		$canaries->hides(
			sub {
				my ($canary) = @_;
				my $path = write_file('of_preloaded', "1\t" . ($column eq 'other' ? "{$canary}" : $canary) . "\n");
				return run_sql($preloaded, "COPY patients (id, $column) FROM '$path' WITH (ON_ERROR ignore, LOG_VERBOSITY verbose)");
			},
			"a line that COPY skips, column $column", qr/NOTICE/);
	}
}
no_crash($preloaded);
$preloaded->stop;
done_testing();

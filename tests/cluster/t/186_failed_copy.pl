# A COPY that fails by an error of the extension tells its client where: relation, line, and column where one is at
# fault. The value it tells nobody, neither the client nor the server log. And psql, which shows no SQLSTATE by itself,
# shows the code.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

# Without preload: nothing masks the log.
my $node = new_cluster('primary', conf => "log_statement = none\nlog_error_verbosity = verbose\n");
my $secret = '123-45-6789';
value($node, <<'SQL');
CREATE TABLE patients (id bigint, name text, ssn fieldcrypt.encrypted);
CREATE TABLE enforced (id bigint PRIMARY KEY, name text, ssn fieldcrypt.encrypted);
SELECT fieldcrypt.set_column_context('enforced', 'ssn', expression => $$fieldcrypt.context('patients.ssn', id)$$, enforce => true);
CREATE TABLE parted (id bigint, name text, ssn fieldcrypt.encrypted) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
SELECT fieldcrypt.set_column_context('parted', 'ssn', expression => $$fieldcrypt.context('patients.ssn', id)$$, enforce => true);
CREATE TABLE checked (id bigint, name text, ssn fieldcrypt.encrypted CHECK (fieldcrypt.decrypt_field(ssn, 'elsewhere') <> ''));
CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM fieldcrypt.decrypt_field(NEW.ssn, 'elsewhere'); RETURN NEW; END $$;
CREATE TABLE triggered (LIKE patients);
CREATE TRIGGER look BEFORE INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION look();
CREATE TABLE caught (LIKE patients);
CREATE FUNCTION catch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM fieldcrypt.decrypt_field(NEW.ssn, 'elsewhere');
    RETURN NEW;
EXCEPTION WHEN SQLSTATE 'KF002' THEN
    NEW.name := 'caught';
    RETURN NEW;
END $$;
CREATE TRIGGER catch BEFORE INSERT ON caught FOR EACH ROW EXECUTE FUNCTION catch();
CREATE TABLE "a: ""b" (LIKE patients);
SQL
my @rows = split /\n/, value($node, <<"SQL");
SET fieldcrypt.tenant = '';
SELECT concat_ws(E'\\t', id, 'n' || '$secret', fieldcrypt.encrypt_field('x', fieldcrypt.context('patients.ssn', CASE id WHEN 2 THEN 7 ELSE id END)))
  FROM generate_series(1, 3) AS id
SQL
my $plain = "1\tn$secret\t\\N\n2\tn$secret\t$secret: \"COPY patients, line 77\"\n";
my $bound = join '', map { "$_\n" } @rows;

sub file
{
	my ($name, $text) = @_;
	my $path = $node->basedir . "/$name";
	open my $out, '>', $path or die "$path: $!";
	print $out $text;
	close $out or die "$path: $!";
	return $path;
}

# What psql or pg_restore says, at its default, and what the server logs meanwhile.
sub told
{
	my (@command) = @_;
	my $from = -s $node->logfile;
	my ($out, $err) = ('', '');
	IPC::Run::run([@command], '<', \'', '>', \$out, '2>', \$err);
	# The server logs before it tells its client.
	return { err => $err, log => slurp_file($node->logfile, $from) };
}
sub psql { my (@statements) = @_; return told('psql', '-X', '-d', $node->connstr('postgres'), map { ('-c', $_) } @statements) }

sub is_told
{
	my ($told, $code, $place, $name) = @_;
	like($told->{err}, qr/^HINT:  .*\($code, see docs\/errors\.md\)$/m, "$name: the code");
	like($told->{err}, qr/^(?:CONTEXT:  |)$place$/m, "$name: the place");
	unlike($told->{err}, qr/$secret/, "$name: no value for the client");
	like($told->{log}, qr/ERROR:  $code/, "$name: the log has the error");
	unlike($told->{log}, qr/$secret|CONTEXT|QUERY|STATEMENT/, "$name: nor for the log");
	return;
}

my $plain_file = file('plain', $plain);
my $bound_file = file('bound', $bound);
foreach my $way ("COPY %s FROM '%s'", "\\copy %s from '%s'")
{
	my $run = sub { return psql(sprintf $way, @_) };
	my ($by) = $way =~ /^(\S+)/;
	is_told($run->('patients', $plain_file), 'KF001', 'COPY patients, line 2, column ssn', "$by: plaintext in an encrypted column");
	is_told($run->('"a: ""b"', $plain_file), 'KF001', 'COPY a', "$by: a name with a colon and a quote");
	foreach my $table (qw(enforced parted))
	{
		my $told = $run->($table, $bound_file);
		is_told($told, 'KF031', "COPY $table, line 2", "$by: a value of another row, table $table");
		like($told->{err}, qr/^DETAIL:  The value is of encryption key \d+\.$/m, "$by: and its key");
	}
	is_told($run->('checked', $bound_file), 'KF002', 'COPY checked, line 1', "$by: a CHECK");
	my $told = $run->('triggered', $bound_file);
	is_told($told, 'KF002', 'COPY triggered, line 1', "$by: a BEFORE trigger");
	like($told->{err}, qr/PL\/pgSQL function look\(\)/, "$by: and which");
}
value($node, "COPY (SELECT * FROM patients) TO '$bound_file.bin' WITH (FORMAT binary)");
value($node, "CREATE TABLE bytes (id bigint, name text, ssn bytea); INSERT INTO bytes VALUES (1, 'n$secret', NULL), (2, 'n$secret', '$secret'); COPY bytes TO '$bound_file.bin' WITH (FORMAT binary)");
is_told(psql("COPY patients FROM '$bound_file.bin' WITH (FORMAT binary)"), 'KF001', 'COPY patients, line 2, column ssn', 'COPY of binary');
is_told(psql("COPY patients (id, name, ssn) FROM '" . file('csv', qq{1,"n$secret","\n\n$secret\nCOPY patients, line 9: ""$secret"""\n}) . "' WITH (FORMAT csv)"),
	'KF001', 'COPY patients, line \d, column ssn', 'CSV, a value of several lines');
is_told(psql('CREATE TEMP TABLE t (v fieldcrypt.encrypted)', "DO \$\$ BEGIN EXECUTE 'COPY patients FROM ' || quote_literal('$plain_file'); END \$\$"),
	'KF001', 'COPY patients, line 2, column ssn', 'COPY in PL/pgSQL');

# An error that is caught on the way leaves nothing behind, nor do those of Postgres that follow.
value($node, "COPY caught FROM '$bound_file'");
gives($node, 'SELECT DISTINCT name, count(*) FROM caught GROUP BY 1', 'caught|3', 'errors that are caught: all rows are there');
my $caught = run_sql($node, "COPY caught FROM '" . file('other', "$rows[0]\nx\t\\N\t\\N\n") . "'");
like($caught->{err}, qr/22P02.*COPY caught, line 2, column id: "x"/s, 'the errors of Postgres are as ever, after one of ours');

# Where no COPY runs nothing changes: PL/pgSQL says where it was, but for what stands in a statement.
my $plpgsql = psql("DO \$\$ BEGIN PERFORM fieldcrypt.decrypt_field((SELECT ssn FROM caught LIMIT 1), 'elsewhere'); END \$\$");
like($plpgsql->{err}, qr/^PL\/pgSQL function inline_code_block line 1 at PERFORM$/m, 'PL/pgSQL without COPY');

# pg_restore of rows that were damaged, or that belong elsewhere.
value($node, 'CREATE TABLE old (id bigint, name text, ssn text)');
value($node, "COPY old FROM '$plain_file'");
my $dump = $node->basedir . '/old.sql';
dump_database($node, 'postgres', $dump, '-t', 'old', '--data-only');
my $text = slurp_file($dump) =~ s/public\.old/public.patients/gr;
is_told(told('psql', '-X', '-q', '-d', $node->connstr('postgres'), '-f', file('dump.sql', $text)), 'KF001', '(?:psql:\S+: )?.*COPY patients, line 2, column ssn', 'psql of a dump');
value($node, 'TRUNCATE patients; ALTER TABLE old RENAME TO old_rows; ALTER TABLE patients RENAME TO kept; ALTER TABLE old_rows RENAME TO patients');
dump_database($node, 'postgres', "$dump.custom", '-Fc', '-t', 'patients');
value($node, 'DROP TABLE patients; ALTER TABLE kept RENAME TO patients');
is_told(told('pg_restore', '--data-only', '-t', 'patients', '-d', $node->connstr('postgres'), "$dump.custom"), 'KF001', 'COPY patients, line 2, column ssn', 'pg_restore');

done_testing();

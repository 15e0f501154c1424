# The lexer against Postgres itself: literals in all places where the grammar has them, and the SQL of the other tests.
# What is logged with redact_logs = all holds no literal, and Postgres parses it.

use strict;
use warnings;

use Cwd ();
use FieldcryptTest;
use JSON::PP;
use PostgreSQL::Test::Utils;
use ServerLog;
use Test::More;

my $node = new_cluster('primary', conf => everything_logged() . "fieldcrypt.redact_logs = all\nlog_min_duration_statement = -1\n");
value($node, <<'SQL');
CREATE FUNCTION parse_error(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    -- Only the body is parsed.
    EXECUTE format('CREATE OR REPLACE FUNCTION pg_temp.probe() RETURNS void LANGUAGE sql AS %L', statement);
    RETURN NULL;
EXCEPTION WHEN syntax_error THEN
    -- What reads a regtype complains of its text, without quotes.
    RETURN CASE WHEN SQLERRM ~ 'at or near|at end of input|unterminated|Unicode escape'
                 AND SQLERRM <> 'syntax error at or near "***"' THEN SQLERRM END;
WHEN OTHERS THEN
    RETURN NULL;
END $$;
SQL
isnt(value($node, q{SELECT parse_error('SELECT FROM WHERE')}), '', 'a syntax error is found');
is(value($node, q{SELECT parse_error('SELECT 1 FROM nowhere; CREATE TABLE t (a int)')}), '', 'and other errors are not taken for one');

# Statements as they were logged since a place in the log.
sub statements
{
	my ($from) = @_;
	my @statements;
	foreach my $line (split /\n/, since($node, $from)->{jsonlog})
	{
		# A database in LATIN1 writes what is no JSON.
		my $record = eval { decode_json($line) } // next;
		push @statements, $1 if $record->{message} =~ /\Astatement: (.*)\z/s;
	}
	return @statements;
}

# A test: what was logged can be parsed and holds no literal.
sub masked
{
	my ($name, @statements) = @_;
	my @holding = grep {
		my $rest = $_;
		$rest =~ s/"(?:[^"]|"")*"//g;
		$rest =~ s/'\*\*\*'//g;
		$rest =~ /'|--|\/\*|\$(?!\d)|(?<![\w\$.])(?!0\b)\d/
	} @statements;
	is(join("\n", @holding), '', "no literal: $name");
	my $list = join ",\n", map { my $text = s/'/''/gr; "('$text')" } @statements;
	my $errors = value($node, "SELECT parse_error(s), s FROM (VALUES $list) AS v (s) WHERE parse_error(s) IS NOT NULL");
	is($errors, '', "can be parsed: $name, " . @statements . ' statements');
	return;
}

# Literals of every kind, of which the content is a marker, in every place.
my $serial = 0;
sub marker { return sprintf 'Mk%05dMarker', ++$serial }
my @strings = (
	sub { "'$_[0]'" }, sub { "'it''s $_[0]'" }, sub { "E'a\\'$_[0]\\n'" }, sub { "e'\\\\$_[0]'" }, sub { "U&'\\0041$_[0]'" },
	sub { "U&'!0041$_[0]' UESCAPE '!'" }, sub { "\$\$$_[0]\$\$" }, sub { "\$a1\$ \$\$ ' $_[0] \$a1\$" }, sub { "N'$_[0]'" }, sub { "'a'\n  '$_[0]'" },
	sub { "'a' -- $_[0]\n'$_[0]'" }, sub { "E'a'\n'\\'$_[0]'" }, sub { "'\xc3\xa9$_[0]'" }, sub { "/* $_[0] /* '$_[0] */ */'$_[0]'" }, sub { "'$_[0]' -- '$_[0]\n" });
my @places = (
	'SELECT L', 'SELECT L AS a, L b, x.y FROM (SELECT L) AS x', 'SELECT (L)::text || L', 'SELECT text L', 'SELECT date L, interval L', 'SELECT f(L, a => L)',
	'SELECT ARRAY[L, L], ROW(L), (L, L)', 'SELECT * FROM t WHERE a = L AND b IN (L, L) OR c LIKE L ESCAPE L', 'SELECT * FROM t WHERE a BETWEEN L AND L ORDER BY L',
	'SELECT CASE L WHEN L THEN L ELSE L END', 'SELECT a[L], b->L', 'SELECT CAST(L AS numeric(10, 2)), L::varchar(10), L::timestamp(3)', 'SELECT L COLLATE "C"',
	'SELECT a FROM t LIMIT L OFFSET L', 'VALUES (L), (L)', 'INSERT INTO t VALUES (L, L), (DEFAULT, L) ON CONFLICT DO UPDATE SET a = L RETURNING L',
	'UPDATE t SET a = L, (b, c) = (L, L) WHERE d = L', 'DELETE FROM t USING u WHERE a = L', 'WITH x AS (SELECT L) SELECT * FROM x', 'SELECT string_agg(a, L ORDER BY L) FILTER (WHERE b = L) OVER ()',
	'SELECT extract(year FROM timestamp L), position(L IN L), substring(L FROM 1 FOR 2), trim(both L FROM L), overlay(L PLACING L FROM 2)',
	'CREATE TABLE t (a text DEFAULT L CHECK (a <> L), b varchar(12), c numeric(7, 3), d float(24), e interval(3))', 'CREATE TABLE p PARTITION OF t FOR VALUES FROM (L) TO (L)',
	'CREATE VIEW v AS SELECT L', 'CREATE FUNCTION f() RETURNS text LANGUAGE sql COST 5 ROWS 7 SET a = L AS L', 'CREATE TYPE e AS ENUM (L, L)', 'COMMENT ON TABLE t IS L', 'DO L', 'DO LANGUAGE plpgsql L',
	'PREPARE p AS SELECT $1, L', 'EXECUTE p(L, 5)', 'CALL p(L)', 'COPY t FROM L WITH (DELIMITER L, NULL L)', 'COPY (SELECT L) TO STDOUT', 'SET a.b = L', 'SET a.b TO L, L', 'ALTER SYSTEM SET a.b = L', 'NOTIFY a, L',
	'ALTER ROLE a PASSWORD L VALID UNTIL L', 'CREATE USER MAPPING FOR a SERVER b OPTIONS (user L, password L)', 'EXPLAIN (FORMAT json) SELECT L', 'DECLARE c CURSOR FOR SELECT L', 'FETCH 5 FROM c', 'FETCH -5 FROM c',
	'SELECT 5, 5.5, .5, 5., 5e5, 5.5E-5, -5, +5, 5+5, a-5, a5, $5, a.b5, "5", a[5:6]', 'SELECT B\'101\', X\'1F\', b\'0\', x\'ff\'', 'SELECT a FROM generate_series(5, 6) LIMIT 5 FETCH FIRST 5 ROWS ONLY',
	'CREATE SEQUENCE s START 5 INCREMENT -5 MAXVALUE 500', 'CREATE INDEX i ON t (a) WITH (fillfactor = 70) WHERE b = L', 'SELECT L::"Odd ""Type"', 'SELECT U&"d\0061t" , L', 'SECURITY LABEL ON TABLE t IS L',
	'SELECT XMLELEMENT(name a, L)', 'SELECT a FROM t TABLESAMPLE system (5) REPEATABLE (7)', 'SELECT L IS NOT DISTINCT FROM L, L SIMILAR TO L', 'SELECT 1; SELECT L; SELECT 2', "SELECT a-/* L */-b--L\n,c",
	'MERGE INTO t USING u ON a = L WHEN MATCHED AND b = L THEN UPDATE SET c = L WHEN NOT MATCHED THEN INSERT VALUES (L)', 'SELECT json L -> L #>> L @> L ? L', 'ALTER TABLE t ADD COLUMN a text DEFAULT L, ALTER b SET STATISTICS 500');

my @statements;
foreach my $place (@places)
{
	foreach my $string ($place =~ /L/ ? @strings : sub { '' })
	{
		my $marker = marker();
		# Inside of a comment only what can stand there.
		my $literal = $place =~ /--L/ ? "'$marker" : $string->($marker);
		push @statements, $place =~ s/(?<![A-Za-z])L(?![A-Za-z])/$literal/gr;
	}
}
# Only what Postgres can parse is a statement: a literal can't stand everywhere that one is put above.
my $good = value($node, 'SELECT parse_error(s) IS NULL FROM (VALUES ' . join(",\n", map { my $text = s/'/''/gr; "('$text')" } @statements) . ') AS v (s)');
my @good = split /\n/, $good;
@statements = map { $statements[$_] } grep { $good[$_] eq 't' } 0 .. $#statements;
cmp_ok(scalar @statements, '>', 700, 'most of what is generated are statements: ' . @statements);

# They run in a failed transaction, where nothing is executed.
my $from = rotate_log($node);
# Each with -c, which sends it as it is.
PostgreSQL::Test::Utils::run_log([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), map { ('-c', $_) } 'BEGIN', 'SELECT 1 / 0', @statements ]);
my $all = since($node, $from);
is(join("\n", grep { /Mk\d+Marker/ } split /\n/, $all->{$_}), '', "no marker in $_") foreach sort keys %$all;
my @logged = statements($from);
cmp_ok(scalar @logged, '>', scalar @statements, 'all were logged');
masked('generated statements', @logged);

# The SQL of the regression tests.
local $ENV{PG_ABS_SRCDIR} = Cwd::abs_path('../regress');
foreach my $file (sort glob '../regress/sql/*.sql')
{
	my ($name) = $file =~ /(\w+)\.sql$/;
	value($node, 'CREATE DATABASE regression');
	my $from = rotate_log($node);
	PostgreSQL::Test::Utils::run_log([ 'psql', '-XAtq', '-f', $file, '-d', $node->connstr('regression') ]);
	my @logged = statements($from);
	cmp_ok(scalar @logged, '>', 3, "$name: statements were logged");
	# A backslash before a quote leaves open where a string ends: everything after it is masked.
	my $open = () = slurp_file($file) =~ /\\'/g;
	my @cut_off = splice @{ [ grep { /'\*\*\*'\z/ } @logged ] }, 0, $open;
	my %cut_off = map { ($_ => 1) } @cut_off;
	masked($name, grep { !$cut_off{$_} } @logged);
	value($node, 'DROP DATABASE regression');
}

no_crash($node);
$node->stop;
done_testing();

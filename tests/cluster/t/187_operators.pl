# The operators, casts and aggregates that refuse encrypted values are in pg_catalog, where every statement looks for its
# own. None of them may take part in what is written about other types: every type, as value, untyped literal, parameter and
# text, on both sides of each operator, means the same in a database with the extension as in one without.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary');
create_database($node, 'stock', extension => 0);

my @operators = ('=', '<>', '<', '<=', '>=', '>', '~~', '!~~', '~~*', '!~~*', '~', '!~', '~*', '!~*', '->', '->>', '||', '#>>', '@>', '?');
my $operators = join ',', map { "'$_'" } @operators;
my $setup = <<'SQL';
SET client_min_messages = error;
CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE EXTENSION isn;
CREATE DOMAIN of_text AS text; CREATE DOMAIN of_varchar AS varchar(20); CREATE DOMAIN of_domain AS of_text; CREATE DOMAIN of_integer AS integer;
CREATE DOMAIN of_citext AS citext; CREATE DOMAIN of_array AS text[];
CREATE TYPE color AS ENUM ('red', 'green'); CREATE TYPE pair AS (a integer, b text); CREATE TYPE text_range AS RANGE (SUBTYPE = text);

-- What a parsed expression calls, whatever the numbers are here; or its error.
CREATE FUNCTION meaning(expression text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    EXECUTE format('CREATE TEMP VIEW v AS SELECT %s AS x', expression);
    SELECT concat_ws(' ', string_agg(CASE WHEN m[1] LIKE 'opno%' THEN m[2]::oid::regoperator::text ELSE m[2]::oid::regprocedure::text END, ' '),
                     (SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute AS a WHERE a.attrelid = 'v'::regclass))
      INTO result
      FROM pg_rewrite AS r, regexp_matches(r.ev_action, ':(opno|funcid|aggfnoid|winfnoid) (\d+)', 'g') AS m
     WHERE r.ev_class = 'v'::regclass AND m[2] <> '0';
    RAISE EXCEPTION USING ERRCODE = 'ZZZZZ', MESSAGE = coalesce(result, '');
EXCEPTION WHEN OTHERS THEN
    RETURN CASE SQLSTATE WHEN 'ZZZZZ' THEN SQLERRM ELSE SQLSTATE || ' ' || SQLERRM END;
END
$$;
-- Which types parameters get.
CREATE FUNCTION parameters(expression text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'PREPARE p AS SELECT ' || expression;
    EXECUTE 'DEALLOCATE p';
    EXECUTE 'PREPARE p AS SELECT ' || expression;
    RAISE EXCEPTION USING ERRCODE = 'ZZZZZ', MESSAGE = (SELECT parameter_types::text FROM pg_prepared_statements WHERE name = 'p');
EXCEPTION WHEN OTHERS THEN
    IF SQLSTATE = 'ZZZZZ' THEN
        EXECUTE 'DEALLOCATE p';
        RETURN SQLERRM;
    END IF;
    RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;
SQL
my $types = <<'SQL';
    SELECT format_type(t.oid, NULL) AS name FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
     WHERE n.nspname IN ('pg_catalog', 'public') AND t.typtype <> 'p' AND NOT EXISTS (SELECT FROM pg_type AS e WHERE e.typarray = t.oid)
       AND (t.typrelid = 0 OR t.typname IN ('pair', 'pg_class'))
    UNION ALL VALUES ('text[]'), ('integer[]'), ('varchar[]'), ('color[]'), ('jsonb[]'), ('of_text[]'), ('record'), ('unknown')
SQL
my $sweep = <<"SQL";
SET client_min_messages = error;
WITH types AS ($types), forms AS (
    SELECT format(f.form, 'CAST(NULL AS ' || t.name || ')', o.name) AS expression, f.form ~ '(^|[^0-9])[\$]' AS has_parameter
      FROM types AS t, unnest(ARRAY[$operators]) AS o(name),
           (VALUES ('%1\$s %2\$s ''red'''), ('''red'' %2\$s %1\$s'), ('%1\$s %2\$s %1\$s'), ('%1\$s %2\$s ''a''::text'), ('''a''::text %2\$s %1\$s'),
                   ('%1\$s %2\$s \$1'), ('\$1 %2\$s %1\$s'), ('%1\$s %2\$s NULL'), ('NULL %2\$s %1\$s')) AS f(form)
    UNION ALL
    SELECT format(f.form, 'CAST(NULL AS ' || t.name || ')'), f.form ~ '(^|[^0-9])[\$]'
      FROM types AS t,
           (VALUES ('%1\$s IN (''red'', ''green'')'), ('%1\$s IN (\$1, \$2)'), ('%1\$s = ANY (''{red}'')'), ('%1\$s = ANY (\$1)'), ('''red'' = ANY (ARRAY[%1\$s])'),
                   ('\$1 = ANY (ARRAY[%1\$s])'), ('%1\$s NOT IN (SELECT %1\$s)'), ('%1\$s IN (SELECT ''red'')'), ('CASE %1\$s WHEN ''red'' THEN 1 END'), ('nullif(%1\$s, ''red'')'),
                   ('nullif(''red'', %1\$s)'), ('%1\$s IS DISTINCT FROM ''red'''), ('%1\$s BETWEEN ''a'' AND ''b'''), ('%1\$s SIMILAR TO ''a%%'''), ('%1\$s LIKE ''a'' ESCAPE ''b'''),
                   ('%1\$s ILIKE %1\$s'), ('%1\$s -> 0'), ('%1\$s ->> 0'), ('(1, %1\$s) = (1, ''red'')'), ('(1, %1\$s) < (1, %1\$s)'), ('max(%1\$s)'), ('min(%1\$s)'), ('max(%1\$s) OVER ()'),
                   ('greatest(%1\$s, ''red'')'), ('%1\$s::text'), ('%1\$s::varchar(3)'), ('%1\$s::name'), ('%1\$s::bpchar'), ('coalesce(%1\$s, ''red'')'), ('array_agg(%1\$s) || %1\$s')) AS f(form)
    UNION ALL
    SELECT format(f.form, o.name), f.form ~ '(^|[^0-9])[\$]'
      FROM unnest(ARRAY[$operators]) AS o(name),
           (VALUES ('''red'' %1\$s ''green'''), ('NULL %1\$s NULL'), ('\$1 %1\$s \$2'), ('\$1 %1\$s ''red'''), ('''red'' %1\$s \$1'), ('''red'' %1\$s ANY (''{red}'')'), ('\$1 %1\$s ANY (\$2)')) AS f(form)
    UNION ALL VALUES ('max(''red'')', false), ('min(NULL)', false), ('max(\$1)', true), ('min(\$1)', true))
SELECT f.expression || ': ' || CASE WHEN f.has_parameter THEN parameters(f.expression) ELSE meaning(f.expression) END FROM forms AS f
SQL
# { expression => what it means }
sub meanings
{
	my ($db) = @_;
	return { map { /^(.*?): (.*)$/ ? ($1 => $2) : die "no meaning: $_" } split /\n/, value($node, $sweep, db => $db) };
}
sub changed
{
	my ($stock, $other) = @_;
	return grep { $stock->{$_} ne ($other->{$_} // 'nothing') } sort keys %$stock;
}

value($node, $setup, db => $_) foreach 'stock', 'postgres';
my ($stock, $extended) = (meanings('stock'), meanings('postgres'));
my $count = keys %$stock;
cmp_ok($count, '>', 15_000, "$count expressions");
my @changed = changed($stock, $extended);
is(scalar @changed, 0, 'each means the same with the extension and without');
diag "$_: $stock->{$_}\n  with the extension: $extended->{$_}" foreach @changed[ 0 .. ($#changed > 9 ? 9 : $#changed) ];
is(scalar keys %$extended, $count, 'none is missing');
foreach my $kind ([ 'an operator', qr/\(.*,.*\) / ], [ 'parameters', qr/^\{\w/ ], [ 'no operator', qr/^42883/ ], [ 'an ambiguous one', qr/^42725/ ])
{
	my ($what, $like) = @$kind;
	cmp_ok(scalar(grep { /$like/ } values %$stock), '>', 20, "the sweep has answers of this kind: $what");
}

# The sweep can tell: a polymorphic operator of the same name, which would be the easier way, changes what others mean.
value($node, <<'SQL');
CREATE FUNCTION any_value(fieldcrypt.encrypted, anynonarray) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR pg_catalog.= (LEFTARG = fieldcrypt.encrypted, RIGHTARG = anynonarray, FUNCTION = any_value);
SQL
cmp_ok(scalar(changed($stock, meanings('postgres'))), '>', 0, 'it notices an operator that takes others away');

# The page on querying, as it stands there.
my $page = do { open my $in, '<', "$ENV{TESTDIR}/docs/querying.md" or die "querying.md: $!"; local $/ = undef; <$in> };
create_database($node, 'page');
value($node, 'CREATE TABLE patients (id bigint PRIMARY KEY, name text, ssn fieldcrypt.encrypted)', db => 'page');
value($node, q{INSERT INTO patients SELECT 1, 'Ada', fieldcrypt.encrypt_field('123-45-6789', fieldcrypt.context('patients.ssn', 1))}, db => 'page');
my $shown = run_sql($node, join('', $page =~ /```sql\n(.*?)```/sg) . q{UPDATE patients SET ssn = ssn; UPDATE patients SET ssn = NULL WHERE id = 10}, db => 'page');
is_deeply($shown->{sqlstates}, [], 'the SQL of docs/querying.md runs') or diag $shown->{err};
is($shown->{out}, "Ada\nAda\nGrace|987-65-4321", 'and finds what it says');
my $notices = () = $shown->{err} =~ /another ciphertext in row 10/g;
is($notices, 1, 'a trigger sees a changed value, and only that');
like(run_sql($node, q{SELECT * FROM patients WHERE ssn = '123-45-6789'}, db => 'page')->{err}, qr/can't be compared by what is in it/, 'the error that it shows');

# Parameters of drivers, whatever type they are sent with.
foreach my $type ('', '::text', '::varchar')
{
	like(bind($node, "SELECT * FROM patients WHERE ssn = :ssn$type", { ssn => 'x' }, db => 'page', protocol => $_)->{err}, qr/can't be compared by what is in it/, "a parameter$type, $_")
	  foreach 'extended', 'prepared';
}

# A column that takes plaintext has no comparison but those that refuse, and ciphertext becomes a text nowhere unasked.
value($node, <<'SQL', db => 'page');
CREATE TABLE given (id bigint PRIMARY KEY, name text, ssn fieldcrypt.encrypted_text, other fieldcrypt.encrypted_text);
SELECT fieldcrypt.protect_column('given', 'ssn');
INSERT INTO given VALUES (1, 'Ada', '123-45-6789');
SQL
foreach my $expression (
	(map { ("ssn $_ 'x'", "'x' $_ ssn", "ssn $_ name", "name $_ ssn", "ssn $_ ssn", "ssn $_ other", "ssn $_ 'x'::varchar", "ssn $_ NULL") } '=', '<>', '<', '>='),
	(map { ("ssn $_ 'x'", "ssn $_ name") } '~~', '!~~*', '~', '->', '->>', '||'),
	"ssn IN ('x', 'y')", "ssn = ANY ('{x}')", 'ssn NOT IN (SELECT ssn FROM given)', "nullif(ssn, 'x')", "CASE ssn WHEN 'x' THEN 1 END", "ssn IS DISTINCT FROM 'x'",
	'max(ssn)', 'min(ssn)', 'ssn::text', 'ssn::varchar(3)', 'ssn::name', "'x' || ssn", "(id, ssn) = (1, 'x')", "ssn SIMILAR TO 'x'", "ssn BETWEEN 'a' AND 'b'")
{
	my $result = run_sql($node, "SELECT $expression FROM given", db => 'page');
	is("@{ $result->{sqlstates} }", '0A000', "encrypted_text: $expression") or diag $result->{out} . $result->{err};
	like($result->{err}, qr/HINT/, '  with a hint');
}
foreach my $expression ('ssn = 1', 'ssn = now()', 'ssn = true', 'lower(ssn)', 'length(ssn)', 'sum(ssn)', "string_agg(ssn, ',')", 'substr(ssn, 1, 3)', "ssn ^@ 'f'", 'array[ssn] @> array[name]', "ssn = '{}'::jsonb", "ssn = '\\x00'::bytea")
{
	my $result = run_sql($node, "SELECT $expression FROM given", db => 'page');
	like("@{ $result->{sqlstates} }", qr/^(42883|42725|42804)$/, "encrypted_text: no such thing as $expression") or diag $result->{out} . $result->{err};
}
gives($node, "SELECT id FROM given WHERE ssn IS NOT NULL ORDER BY ssn", '1', 'and what asks for no plaintext goes on', db => 'page');

# What is built without asking is named by health.
my $health = q{SELECT status || ': ' || detail FROM fieldcrypt.health() WHERE "check" = 'encrypted_indexes'};
gives($node, $health, qr/^ok: /, 'health: no index', db => 'page');
value($node, 'CREATE INDEX plain_hash ON patients USING hash (ssn)', db => 'page');
gives($node, $health, qr/^ok: /, 'health: a hash index is let alone', db => 'page');
foreach my $statement (
	'CREATE UNIQUE INDEX found ON patients (ssn) INCLUDE (id)',
	'ALTER TABLE patients ADD CONSTRAINT found EXCLUDE USING hash (ssn WITH OPERATOR(fieldcrypt.*=))',
	'CREATE TABLE parts (id numeric, ssn fieldcrypt.encrypted) PARTITION BY LIST (id); CREATE INDEX found ON parts (ssn)',
	'CREATE TABLE amounts (id numeric, ssn fieldcrypt.encrypted); CREATE INDEX found ON amounts (id, ssn)',
	'CREATE TABLE arrays (a fieldcrypt.encrypted[]); CREATE UNIQUE INDEX found ON arrays (a)',
	'CREATE INDEX found ON arrays USING gin (a)',
	'CREATE INDEX found ON patients USING gin ((array[ssn]))',
	'CREATE TYPE pair AS (n int, ssn fieldcrypt.encrypted); CREATE TABLE pairs (p pair); CREATE UNIQUE INDEX found ON pairs (p)',
	'CREATE DOMAIN pair_of AS pair; CREATE TABLE inner_pairs (p pair_of[]); CREATE INDEX found ON inner_pairs (p)')
{
	value($node, $statement, db => 'page');
	gives($node, $health, qr/^warning: .*relation "(?:public\.)?found"/, "health: $statement", db => 'page');
	value($node, $statement =~ /CONSTRAINT/ ? 'ALTER TABLE patients DROP CONSTRAINT found' : 'DROP INDEX found', db => 'page');
}
value($node, 'CREATE TABLE keyed (p pair CONSTRAINT found PRIMARY KEY)', db => 'page');
gives($node, $health, qr/^warning: .*relation "(?:public\.)?found"/, 'health: a primary key', db => 'page');
value($node, 'DROP TABLE keyed; CREATE INDEX array_hash ON arrays USING hash (a); CREATE INDEX beside ON patients (id) INCLUDE (ssn)', db => 'page');
gives($node, $health, qr/^ok: /, 'health: a hash index of arrays, and values that are only included', db => 'page');

# What is said once, and fails in statements that do not say it.
value($node, "CREATE TABLE plain (id int, s text); CREATE TABLE split (id int, s fieldcrypt.encrypted) PARTITION BY LIST (id)", db => 'page');
foreach my $expression (
	[ "CREATE STATISTICS failing ON (ssn = 'x'), id FROM patients", 'statistics object public.failing', 'DROP STATISTICS failing' ],
	[ "CREATE STATISTICS failing ON (ssn::text), id FROM patients", 'statistics object public.failing', 'DROP STATISTICS failing' ],
	[ "CREATE STATISTICS failing ON (s LIKE 'a%'), id FROM plain; ALTER TABLE plain ALTER s TYPE fieldcrypt.encrypted USING fieldcrypt.encrypt_field(s)",
		'statistics object public.failing', 'DROP STATISTICS failing' ],
	[ "CREATE TABLE one PARTITION OF split (CONSTRAINT failing CHECK (s <> '')) FOR VALUES IN (3)", 'table constraint failing on public.one', 'DROP TABLE one' ],
	[ "CREATE TABLE checked (s fieldcrypt.encrypted CONSTRAINT failing CHECK (s <> ''))", 'table constraint failing on public.checked', 'DROP TABLE checked' ],
	[ "CREATE VIEW failing AS SELECT id FROM patients WHERE ssn = 'x'", 'rule ', 'DROP VIEW failing' ],
	[ 'CREATE TRIGGER failing BEFORE UPDATE ON patients FOR EACH ROW WHEN (old.ssn IS DISTINCT FROM new.ssn) EXECUTE FUNCTION note_new_ssn()',
		'trigger failing on public.patients', 'DROP TRIGGER failing ON patients' ],
	[ "CREATE POLICY failing ON patients USING (ssn <> '')", 'policy failing on public.patients', 'DROP POLICY failing ON patients' ])
{
	my ($statement, $named, $drop) = @$expression;
	value($node, $statement, db => 'page');
	gives($node, $health, qr/^warning: .*object "\Q$named\E/, "health: $statement", db => 'page');
	value($node, $drop, db => 'page');
	gives($node, $health, qr/^ok: /, "health: $drop", db => 'page');
}
refused($node, 'CREATE INDEX CONCURRENTLY found ON patients (ssn)', '0A000', 'CREATE INDEX CONCURRENTLY is refused', db => 'page');
gives($node, $health, qr/^warning: .*found/, 'and what it leaves is named', db => 'page');

done_testing();

# fieldcrypt.context writes a name and key values in one form, whatever a session has set and whatever the database's
# encoding: what one session binds, another opens. What can't have one form for ever is refused, and so are contexts
# of columns that change by themselves.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary');

# The frozen vectors, which are checked without Postgres, too.
my $vectors = do {
	open my $file, '<:raw', "$ENV{TESTDIR}/tests/vectors/contexts.json" or die "contexts.json: $!";
	local $/ = undef;
	<$file>;
};
$vectors =~ s/\$v\$//g;
value($node, "CREATE TABLE vectors AS SELECT v AS vector FROM jsonb_array_elements(\$v\$$vectors\$v\$::jsonb) AS v");
# Far moments are reached by days and by microseconds: their sum does not fit into one number.
value($node, <<'SQL');
CREATE FUNCTION moment_of(part jsonb, start text, type text) RETURNS text LANGUAGE sql AS $$
    SELECT CASE part ->> 'value' WHEN '9223372036854775807' THEN format('''infinity''::%s', type) WHEN '-9223372036854775808' THEN format('''-infinity''::%s', type)
        ELSE format('((''%s''::timestamp %s make_interval(days => %s) %2$s make_interval(secs => %4$s) %2$s make_interval(secs => 0.000001 * %5$s)) %6$s)', start,
                CASE WHEN n < 0 THEN '-' ELSE '+' END, div(abs(n), 86400000000), div(mod(abs(n), 86400000000), 1000000), mod(abs(n), 1000000), CASE type WHEN 'timestamptz' THEN 'AT TIME ZONE ''UTC''' ELSE '' END) END
      FROM (SELECT (part ->> 'value')::numeric) AS m(n)
$$;
CREATE FUNCTION part_of(part jsonb) RETURNS text LANGUAGE sql AS $$
    SELECT CASE part ->> 'type'
        WHEN 'integer' THEN format('%L::bigint', part ->> 'value')
        WHEN 'date' THEN CASE part ->> 'value' WHEN '2147483647' THEN '''infinity''::date' WHEN '-2147483648' THEN '''-infinity''::date'
            ELSE format('(''2000-01-01''::date + %L::int)', part ->> 'value') END
        WHEN 'timestamp' THEN moment_of(part, '2000-01-01', 'timestamp')
        WHEN 'timestamptz' THEN moment_of(part, '2000-01-01', 'timestamptz')
        ELSE format('%L::%s', part ->> 'value', part ->> 'type') END
$$;
CREATE FUNCTION differing() RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE v jsonb; made text;
BEGIN
    FOR v IN SELECT vector FROM vectors LOOP
        EXECUTE format('SELECT fieldcrypt.context(%s)', (SELECT string_agg(part_of(p), ', ' ORDER BY o) FROM jsonb_array_elements(v -> 'parts') WITH ORDINALITY AS x(p, o))) INTO made;
        IF made IS DISTINCT FROM v ->> 'context' THEN RETURN NEXT format('%s: %s', v ->> 'name', made); END IF;
    END LOOP;
END $$;
SQL
cmp_ok(value($node, 'SELECT count(*) FROM vectors'), '>=', 50, 'there are vectors');
foreach my $settings ('', "SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Kolkata'; SET IntervalStyle = iso_8601; SET extra_float_digits = -15; SET bytea_output = escape;",
	"SET DateStyle = German; SET TimeZone = 'America/St_Johns'; SET quote_all_identifiers = on;")
{
	gives($node, "$settings SELECT differing()", '', 'every vector, under ' . ($settings || 'defaults'));
}

# Values as an application has them.
foreach my $case (
	[ q{'patients.ssn', 17}, 'patients.ssn/17' ], [ q{'patients.ssn', 17::smallint}, 'patients.ssn/17' ],
	[ q{'t'::name, 'a  '::char(5), 'b '::varchar, 'c'::text}, 't/a/b /c' ], [ q{'t', 'x'::word, 5::positive}, 't/x/5' ],
	[ q{'t', 1e3::numeric}, 't/1000' ], [ q{'t', 1.10}, 't/1.1' ], [ q{'t', true, false}, 't/true/false' ], [ q{'t'}, 't' ],
	[ q{'t', make_timestamptz(2001, 3, 4, 5, 6, 7.5, 'Asia/Kolkata')}, 't/2001-03-03T23:36:07.500000Z' ],
	[ q{'t', repeat('/', 3)}, 't/%2F%2F%2F' ])
{
	my ($arguments, $expected) = @$case;
	gives($node, "SET client_min_messages = error; CREATE DOMAIN pg_temp.word AS text; CREATE DOMAIN pg_temp.positive AS int CHECK (VALUE > 0);
		SET search_path = pg_temp, public; SELECT fieldcrypt.context($arguments)", $expected, "context($arguments)");
}
refused($node, "SELECT fieldcrypt.context('t', NULL)", '22004', qr/nextval/, 'NULL is an error that says where it comes from');
refused($node, "SELECT fieldcrypt.context(NULL, 1)", '22004', 'as a name, too');
refused($node, "SELECT fieldcrypt.context('')", '22023', 'an empty name is no name');
refused($node, 'SELECT fieldcrypt.context(17, 18)', '22023', 'a number is no name');
refused($node, "SELECT fieldcrypt.context(VARIADIC ARRAY['a', 'b'])", '42804', qr/one by one/, 'an array for the list');
value($node, "CREATE TYPE mood AS ENUM ('a'); CREATE DOMAIN moody AS mood; CREATE TABLE t (); CREATE SEQUENCE s");
foreach my $value ('1.0::float8', '1.0::float4', q{'{}'::json}, q{'{}'::jsonb}, q{'a'::mood}, q{int4range(1, 2)}, q{ARRAY[1]}, 'ROW(1, 2)', q{'\x00'::bytea},
	q{interval '1 day'}, 'current_time', q{'10.0.0.1'::inet}, q{'t'::regclass}, q{'a'::"char"}, '1::money', '1::oid', q{fieldcrypt.encrypt_field('x')}, q{'a'::moody})
{
	refused($node, "SELECT fieldcrypt.context('t', $value)", '42804', "a value that is refused: $value");
}
is((bind($node, 'SELECT fieldcrypt.context(:n::text, :i::bigint, :u::uuid, :t::timestamptz)',
	{ n => 't', i => 17, u => 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', t => '2001-03-04 05:06:07+01' }, protocol => $_))->{code}, 0, "as parameters, $_") foreach 'extended', 'prepared';

# For everybody, in constraints and generated columns; and no way to anything else.
value($node, 'CREATE ROLE nobody LOGIN; CREATE TABLE place (id bigint, at text GENERATED ALWAYS AS (fieldcrypt.context(\'place\', id)) STORED, CHECK (fieldcrypt.context(\'a\', id) <> \'a/3\')); GRANT ALL ON place TO nobody');
gives($node, 'INSERT INTO place VALUES (1) RETURNING at', 'place/1', 'who has no right at all writes such a table', user => 'nobody');
gives($node, 'CREATE INDEX ON place (fieldcrypt.context(\'a\', id))', '', 'it may be indexed');
refused($node, 'SELECT fieldcrypt.context(\'a\', 1)', '42501', 'and can\'t name a function of the schema', user => 'nobody');

# A context made of a timestamp opens in another time zone.
value($node, q{SET TimeZone = 'Asia/Kolkata'; SET DateStyle = 'SQL, DMY'; CREATE TABLE visits (at timestamptz, day date, note fieldcrypt.encrypted);
	INSERT INTO visits SELECT t, d, fieldcrypt.encrypt_field('note', fieldcrypt.context('visits.note', t, d)) FROM (VALUES (now(), current_date)) AS v (t, d)});
gives($node, q{SET TimeZone = 'America/St_Johns'; SELECT fieldcrypt.decrypt_field(note, fieldcrypt.context('visits.note', at, day)) FROM visits}, 'note', 'bound in one time zone, opened in another');

# Other encodings: the text is in the database's, what is sealed is UTF-8.
create_database($node, 'latin', with => "ENCODING LATIN1 LOCALE 'C' TEMPLATE template0");
gives($node, q{SELECT encode(convert_to(fieldcrypt.context('größe', 'ä/ö'), 'UTF8'), 'hex') = encode(convert_to('größe/ä%2Fö', 'UTF8'), 'hex')}, 't', 'LATIN1', db => 'latin', env => { PGCLIENTENCODING => 'UTF8' });

# What a column's context may be.
value($node, 'CREATE TABLE patients (id bigint PRIMARY KEY, seen timestamptz, weight float8, born date, seal bytea, ssn fieldcrypt.encrypted)');
my $set = sub { "SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => \$\$$_[0]\$\$)" };
refused($node, $set->($_), '42P17', qr/volatile/, "volatile: $_") foreach 'random()::text', q{'a' || id || random()}, 'gen_random_uuid()::text || id', q{id || nextval('public.s')::text}, 'clock_timestamp()::text || id';
refused($node, $set->($_), '42P17', qr/no column/, "of the time or session alone: $_") foreach 'now()::text', 'current_user::text', q{current_setting('a.b', true)}, 'CURRENT_DATE::text';
foreach my $expression (q{'patients.ssn/' || seen}, q{'p/' || born}, q{'p/' || weight}, q{'p/' || weight::text::varchar}, q{upper('p' || ARRAY[weight]::text)}, q{'p/' || seal::text}, 'id || now()::text', q{to_char(seen, 'YYYY')})
{
	my $result = run_sql($node, $set->($expression));
	is_deeply($result->{sqlstates}, [], "taken: $expression");
	like($result->{err}, qr/WARNING:  01000: .*settings/, "with a warning: $expression");
}
foreach my $expression (q{fieldcrypt.context('patients.ssn', id)}, q{fieldcrypt.context('patients.ssn', seen, born)}, q{'patients.ssn/' || id}, q{'a'})
{
	my $result = run_sql($node, $set->($expression));
	is_deeply($result->{sqlstates}, [], "taken: $expression");
	unlike($result->{err}, qr/WARNING/, "without a warning: $expression");
}

# Output functions that are called immutable and are not.
refused($node, $set->($_) =~ s/\)$/, enforce => true)/r, '42P17', qr/must be immutable/, "not to be enforced: $_")
  foreach q{'p/' || weight}, q{'p/' || ARRAY[weight]::text}, q{'p/' || seen}, q{'p/' || seal::text};

# Re-encryption computes it under settings that are nobody's.
value($node, $set->(q{'p/' || seen}));
value($node, q{SET TimeZone = 'UTC'; INSERT INTO patients SELECT 1, t, 1, '2001-03-04', NULL, fieldcrypt.encrypt_field('utc', 'p/' || t) FROM (SELECT now()) AS n(t)});
value($node, q{SET TimeZone = 'Asia/Kolkata'; INSERT INTO patients SELECT 2, t, 1, '2001-03-04', NULL, fieldcrypt.encrypt_field('ist', 'p/' || t) FROM (SELECT now()) AS n(t)});
value($node, "CALL fieldcrypt.rotate_keys('default', force => true)");
run_sql($node, q{SET TimeZone = 'Asia/Kolkata'; SET DateStyle = German; CALL fieldcrypt.reencrypt('patients')});
gives($node, "SELECT row_key ->> 'id', error_code FROM fieldcrypt.reencryption_failures", '2|KF002', 'what was written under others is listed');
gives($node, q{SET TimeZone = 'Asia/Kolkata'; SELECT fieldcrypt.decrypt_field(ssn, 'p/' || seen) FROM patients WHERE id = 2}, 'ist', 'it is there, and opens with its own');
gives($node, "SELECT state FROM fieldcrypt.encryption_keys AS k JOIN patients AS p ON fieldcrypt.key_id(p.ssn) = k.key_id WHERE id = 1", 'active', 'the other was moved');

no_crash($node);
done_testing();

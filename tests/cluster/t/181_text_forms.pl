# A value of any type is encrypted in one text form and read back from it, whatever the writer's and the reader's
# sessions have set. What was written as text in the writer's own style is refused where it could be another value.
# encrypt_field means the same function for every type, literal and parameter that it took before.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary');

# Sessions as far from each other as settings can bring them.
my @writers = (
	"SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Kolkata'; SET IntervalStyle = sql_standard; SET extra_float_digits = -15;
	 SET bytea_output = escape; SET xmlbinary = hex; SET array_nulls = off; SET quote_all_identifiers = on;",
	"SET DateStyle = 'German, DMY'; SET TimeZone = 'America/St_Johns'; SET IntervalStyle = iso_8601; SET extra_float_digits = 0;",
	"SET DateStyle = 'Postgres, MDY'; SET TimeZone = 'Pacific/Kiritimati'; SET IntervalStyle = postgres_verbose;",
	'');

value($node, <<'SQL');
CREATE TYPE mood AS ENUM ('a', 'B c');
CREATE DOMAIN day AS date CHECK (VALUE > '1000-01-01');
CREATE DOMAIN word AS text;
CREATE TYPE pair AS (d date, f float8);
CREATE TABLE things (name text, expression text);
INSERT INTO things VALUES
    ('date', $$date '2001-03-04'$$), ('first date', $$'4714-11-24 BC'::date$$), ('year 12', $$make_date(12, 3, 4)$$),
    ('infinite date', $$'infinity'::date$$), ('late date', $$'5874897-12-31'::date$$),
    ('timestamp', $$make_timestamp(2001, 3, 4, 5, 6, 7.123456)$$), ('BC timestamp', $$make_timestamp(-44, 3, 4, 5, 6, 0)$$),
    ('timestamptz', $$make_timestamptz(2001, 3, 4, 23, 59, 59.5, 'UTC')$$), ('old timestamptz', $$make_timestamptz(1850, 3, 4, 5, 6, 7, 'UTC')$$),
    ('-infinity', $$'-infinity'::timestamptz$$), ('time', $$make_time(1, 2, 3.5)$$), ('timetz', $$'01:02:03+05:30'::timetz$$),
    ('interval', $$make_interval(years => 1, months => -2, days => 3, hours => -4, secs => 5.5)$$),
    ('negative interval', $$make_interval(years => -1, months => -2, days => -3, hours => -4)$$),
    ('interval with one sign', $$make_interval(days => -3, hours => 4)$$),
    ('float8', $$0.1::float8 + 0.2::float8$$), ('float4', $$(1.0/3)::float4$$), ('NaN', $$'NaN'::float8$$), ('tiny', $$5e-324::float8$$),
    ('integer', '-42'), ('bigint', '9223372036854775807'), ('smallint', '7::smallint'), ('numeric', '1.500::numeric'), ('boolean', 'true'),
    ('uuid', $$'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid$$), ('bytea', $$decode('00ff5c41', 'hex')$$), ('money', $$1234.5::money$$),
    ('enum', $$'B c'::mood$$), ('domain', $$make_date(2001, 3, 4)::day$$), ('domain over text', $$'x'::word$$),
    ('varchar', $$'abc'::varchar(5)$$), ('char', $$'abc'::char(5)$$), ('name', $$'abc'::name$$), ('jsonb', $$'{"a": 1.50}'::jsonb$$),
    ('array', $$ARRAY[make_date(2001, 3, 4), NULL]$$), ('array of texts', $$ARRAY['NULL', NULL, 'a b']$$),
    ('array of bytea', $$ARRAY[decode('00ff', 'hex')]$$), ('array of floats', $$ARRAY[0.1::float8 + 0.2::float8]$$),
    ('range', $$daterange(make_date(2001, 3, 4), make_date(2001, 5, 4))$$),
    ('multirange', $$tstzmultirange(tstzrange(make_timestamptz(2001, 3, 4, 5, 6, 7, 'UTC'), NULL))$$),
    ('row', $$ROW(make_date(2001, 3, 4), 0.1::float8 + 0.2::float8)::pair$$), ('point', $$point(0.1::float8 + 0.2::float8, 1)$$),
    ('regclass', $$'things'::regclass$$), ('inet', $$'10.0.0.1/8'::inet$$), ('empty text', $$''::text$$);
CREATE TABLE written (writer integer, name text, value fieldcrypt.encrypted);
-- Compared as what they are stored as, which no setting changes.
CREATE FUNCTION write_all(writer integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE thing things;
BEGIN
    FOR thing IN SELECT * FROM things LOOP
        EXECUTE format('INSERT INTO written SELECT $1, $2, fieldcrypt.encrypt_field_as(%s)', thing.expression) USING writer, thing.name;
    END LOOP;
END $$;
CREATE FUNCTION read_all() RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE thing record; same boolean;
BEGIN
    FOR thing IN SELECT w.*, t.expression FROM written AS w JOIN things AS t USING (name) LOOP
        BEGIN
            EXECUTE format('SELECT record_image_eq(ROW(fieldcrypt.decrypt_field_as($1, %1$s)), ROW(%1$s))', thing.expression)
               INTO same USING thing.value;
            IF same IS NOT TRUE THEN RETURN NEXT format('%s of writer %s', thing.name, thing.writer); END IF;
        EXCEPTION WHEN OTHERS THEN
            RETURN NEXT format('%s of writer %s: %s', thing.name, thing.writer, SQLERRM);
        END;
    END LOOP;
END $$;
SQL
value($node, "$writers[$_] SELECT write_all($_)") foreach 0 .. $#writers;
is(value($node, 'SELECT count(*) FROM written'), 4 * value($node, 'SELECT count(*) FROM things'), 'every type was written by every session');
gives($node, "$writers[$_] SELECT read_all()", '', "session $_ reads what all of them wrote") foreach 0 .. $#writers;
gives($node, <<'SQL', '', 'and the text is the same, whoever wrote it');
SELECT name FROM written GROUP BY name HAVING count(DISTINCT fieldcrypt.decrypt_field(value)) <> 1
SQL
gives($node, <<'SQL', '2001-03-04|2001-03-04 23:59:59.5+00|0.30000000000000004|10 mons 3 days -03:59:54.5|\x00ff5c41|public.things', 'it is what pg_dump writes');
SELECT string_agg(fieldcrypt.decrypt_field(w.value), '|' ORDER BY n.place)
  FROM unnest('{date,timestamptz,float8,interval,bytea,regclass}'::text[]) WITH ORDINALITY AS n(name, place) JOIN written AS w USING (name)
 WHERE w.writer = 0
SQL

# The session's own settings are as they were, after errors and in the middle of a transaction, too.
my $session = session($node);
$session->value("$writers[0]");
my $own = "SELECT concat_ws(' ', date '2001-03-04', make_timestamptz(2001,3,4,5,6,7,'UTC'), make_interval(days => 1, hours => 2), 0.1::float8 + 0.2, decode('ff', 'hex'))";
my $before = $session->value($own);
$session->refused("SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('no date'), NULL::date)", '22018', 'a text that is no date');
$session->gives($own, $before, 'after an error the settings are the session\'s');
$session->refused("SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('{no}'), NULL::date[])", '22018', 'the same in an array');
$session->gives($own, $before, 'and so they are then');
$session->gives(<<'SQL', $before, 'in a block with an exception handler, and in one statement with others');
DO $$ BEGIN PERFORM fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('no date'), NULL::timestamptz); EXCEPTION WHEN OTHERS THEN END $$;
SELECT concat_ws(' ', date '2001-03-04', make_timestamptz(2001,3,4,5,6,7,'UTC'), make_interval(days => 1, hours => 2), 0.1::float8 + 0.2, decode('ff', 'hex'))
  FROM (SELECT fieldcrypt.encrypt_field_as(ARRAY[now()]), fieldcrypt.encrypt_field_as(now())) AS x
SQL
$session->gives("SELECT current_setting('DateStyle') || current_setting('TimeZone')", 'SQL, DMYAsia/Kolkata', 'SHOW says so, too');
$session->close;

# Texts in a session's own style: read where they say what they are, refused where not.
foreach my $case (
	[ '04/03/2001', 'date' ], [ '04-03-2001', 'date' ], [ '04.03.2001', 'date' ], [ '04/03/0012', 'date' ], [ '01/02/03', 'date' ],
	[ '04/03/2001 05:06:07', 'timestamp' ], [ '04.03.2001 05:06:07 IST', 'timestamptz' ], [ ' 4/3/2001', 'date' ])
{
	my ($text, $type) = @$case;
	refused($node, "SET DateStyle = 'SQL, DMY'; SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('$text'), NULL::$type)",
		'22018', qr/begins with its year/, "'$text' is no $type for everybody");
}
foreach my $case ([ '2001-03-04', 'date', '2001-03-04' ], [ 'Sun 04 Mar 05:06:07 2001', 'timestamp', '2001-03-04 05:06:07' ],
	[ '2001-03-04 05:06:07+05:30', 'timestamptz', '2001-03-03 23:36:07+00' ], [ '2001-03-04 05:06:07', 'timestamptz', '2001-03-04 05:06:07+00' ],
	[ '-1-2 -3 -4:05:06', 'interval', '-1 years -2 mons -3 days -04:05:06' ], [ '-3 4:05:06', 'interval', '-3 days -04:05:06' ],
	[ 'P1Y2M', 'interval', '1 year 2 mons' ], [ '20010304', 'date', '2001-03-04' ], [ '\x00ff', 'bytea', '\x00ff' ], [ '\000A', 'bytea', '\x0041' ])
{
	my ($text, $type, $expected) = @$case;
	gives($node, "SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('$text'), NULL::$type)", $expected, "'$text' is the $type that it says");
}

# The same wherever such a type is inside of another: a text that could be another value for another reader is refused.
value($node, <<'SQL');
CREATE DOMAIN ddate AS date;
CREATE DOMAIN dddate AS ddate;
CREATE DOMAIN dates AS date[];
CREATE TYPE visit AS (who text, at timestamptz);
CREATE TYPE visits AS (place text, list visit[]);
CREATE TYPE span AS (days daterange, note int);
CREATE DOMAIN stay AS interval;
SQL
my $read = sub { my ($text, $type) = @_; return "SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field(\$text\$$text\$text\$), NULL::$type)" };
my %unclear = (
	'begins with its year' => [
		[ '01/02/03', $_ ], [ '04/03/0005', $_ ], [ '04-Mar-01', $_ ], [ '01.02.03', $_ ] ],
	'other times each day' => [],
	'may be a time zone' => [],
	'one of its first part' => []);
$unclear{'begins with its year'} = [
	map({ my $type = $_; map { [ $_, $type ] } '01/02/03', '04/03/0005', '01-02-03', '04-Mar-01', ' 01.02.03' } qw(date ddate dddate)),
	[ '01/02/03 04:05', 'timestamp' ], [ '01/02/03 04:05+02', 'timestamptz' ], [ '{01/02/03}', 'date[]' ], [ '{2001-02-03,"01/02/03"}', 'ddate[]' ],
	[ '{{01/02/03}}', 'dates' ], [ '[01/02/03,05/06/07)', 'daterange' ], [ '{[01/02/03,05/06/07)}', 'datemultirange' ], [ '["01/02/03 04:05",)', 'tsrange' ],
	[ '(1,"01/02/03 00:00")', 'visit' ], [ '(x,"{""(y,\\\\""01/02/03 04:05+00\\\\"")""}")', 'visits' ], [ '("[01/02/03,05/06/07)",1)', 'span' ] ];
$unclear{'other times each day'} = [
	map({ my $type = $_; map { [ $_, $type ] } 'now', 'today', 'Tomorrow', ' YESTERDAY ' } qw(date ddate timestamp timestamptz)),
	[ 'now', 'time' ], [ 'now', 'timetz' ], [ 'today 12:00', 'timestamp' ], [ 'today12:00', 'timestamp' ], [ 'yesterday allballs', 'timestamptz' ], [ '{today}', 'date[]' ],
	[ '{"today"}', 'dates' ], [ '{to"d"ay}', 'date[]', '22018' ], [ '[today,)', 'daterange' ], [ '[yes"ter"day,)', 'daterange' ], [ '(x,now)', 'visit' ], [ '(x,n\\ow)', 'visit' ],
	[ '(x,"{""(y,today)""}")', 'visits' ], [ '("[today,tomorrow)",1)', 'span' ] ];
$unclear{'may be a time zone'} = [
	map({ my $zone = $_; map { [ $_->[0] =~ s/ZONE/$zone/r, $_->[1] ] } [ '2001-03-04 05:06:07 ZONE', 'timestamptz' ], [ 'Sun 04 Mar 05:06:07 2001 ZONE', 'timestamptz' ], [ '05:06:07 ZONE', 'timetz' ],
		[ '{"2001-03-04 05:06:07 ZONE"}', 'timestamptz[]' ], [ '["2001-03-04 05:06:07 ZONE",)', 'tstzrange' ], [ '(x,"2001-03-04 05:06:07 ZONE")', 'visit' ] } 'IST', 'EST', 'cst'),
	[ '2001-03-04 05:06:07 Asia/Kolkata', 'timestamptz' ] ];
$unclear{'one of its first part'} = [ map({ my $type = $_; map { [ $_, $type ] } '-1 day 02:00', '-1 year 2 days', '-1 mon 3' } qw(interval stay)), [ '{"-1 day 02:00"}', 'interval[]' ] ];
foreach my $why (sort keys %unclear)
{
	foreach my $case (@{ $unclear{$why} })
	{
		my ($text, $type) = @$case;
		if (@$case > 2) { refused($node, $read->($text, $type), $case->[2], "'$text' as $type") }
		else { refused($node, $read->($text, $type), '22018', qr/does not say which .* it is: .*$why/, "'$text' as $type: $why") }
	}
}
unlike(run_sql($node, $read->('[01/02/03,05/06/07)', 'daterange'))->{err}, qr{01/02|2001-02}, 'the refusal does not say what it was');
foreach my $case ([ '0005-03-04', 'ddate' ], [ '{2001-03-04,NULL}', 'date[]' ], [ '{ 2001-03-04 , "4 Mar 2001" }', 'date[]', '{2001-03-04,2001-03-04}' ], [ '[2001-03-04,2001-05-04)', 'daterange' ],
	[ '[4 Mar 2001,2001-05-04]', 'daterange', '[2001-03-04,2001-05-05)' ], [ 'infinity', 'timestamptz' ], [ 'epoch', 'date', '1970-01-01' ], [ 'allballs', 'time', '00:00:00' ],
	[ '2001-03-04T05:06:07Z', 'timestamptz', '2001-03-04 05:06:07+00' ], [ 'Sun Mar 04 05:06:07.5 2001 UTC', 'timestamptz', '2001-03-04 05:06:07.5+00' ], [ '2001-03-04 05:06 pm GMT', 'timestamptz', '2001-03-04 17:06:00+00' ],
	[ '05:06 PM', 'time', '17:06:00' ], [ '44-03-15 BC', 'date', undef ], [ '0044-03-15 BC', 'date' ], [ '(today,"2001-03-04 05:06:07+00")', 'visit' ], [ '("I am here now, IST",)', 'visit' ],
	[ '(Anna,"2001-03-04 05:06:07+05:30")', 'visit', '(Anna,"2001-03-03 23:36:07+00")' ], [ '-1 days +02:00:00', 'interval' ], [ '-1 days -02:00:00', 'interval' ], [ '1 day 02:00', 'interval', '1 day 02:00:00' ],
	[ '@ 1 day -2 hours ago', 'interval', '-1 days +02:00:00' ], [ 'P-1DT2H', 'interval', '-1 days +02:00:00' ], [ '-1-2', 'interval', '-1 years -2 mons' ], [ '{today,  IST}', 'text[]', '{today,IST}' ])
{
	my ($text, $type, $expected) = @$case;
	next if @$case == 3 && !defined $expected;
	gives($node, $read->($text, $type), $expected // $text, "'$text' is the $type that it says");
}
# What a session writes in its own style is read as what it was, or not at all.
{
	my @types = ([ 'date', q{date '2001-02-03' + n * 37} ], [ 'ddate', q{(date '0005-03-04' + n)::ddate} ], [ 'date[]', q{ARRAY[date '2001-02-03' + n, date '0001-12-13' + n * 3]} ],
		[ 'timestamptz', q{timestamptz '1999-12-31 22:30+00' + n * interval '3 days 5 hours'} ], [ 'tstzrange', q{tstzrange(timestamptz '1999-12-31 22:30+00' + n * interval '99 days', NULL)} ],
		[ 'timetz', q{('05:06:07'::time + n * interval '1 hour')::timetz} ], [ 'interval', q{make_interval(months => n - 20, days => 7 - n, secs => n * 1000 - 30000)} ],
		[ 'visit', q{ROW('now ' || n, timestamptz '1999-12-31 22:30+00' + n * interval '3 days 5 hours')::visit} ]);
	foreach my $style ('ISO, DMY', 'SQL, DMY', 'SQL, MDY', 'Postgres, DMY', 'Postgres, MDY', 'German, DMY', 'ISO, YMD')
	{
		foreach my $zone ('UTC', 'Asia/Kolkata', 'America/New_York')
		{
			foreach my $intervals ('postgres', 'sql_standard', 'postgres_verbose', 'iso_8601')
			{
				next if $intervals ne 'postgres' && $zone ne 'UTC';
				my $session = session($node);
				$session->value("SET DateStyle = '$style'; SET TimeZone = '$zone'; SET IntervalStyle = $intervals");
				my $wrong = join ' ', map {
					my ($type, $expression) = @$_;
					$session->value(<<"SQL") eq 'f' ? $type : ();
CREATE OR REPLACE FUNCTION pg_temp.differs(v $type) RETURNS boolean LANGUAGE plpgsql AS \$f\$
BEGIN RETURN NOT record_image_eq(ROW(fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field(v::text), v)), ROW(v)); EXCEPTION WHEN SQLSTATE '22018' THEN RETURN false; END \$f\$;
SELECT count(*) = 0 FROM generate_series(1, 40) AS n WHERE pg_temp.differs($expression);
SQL
				} @types;
				is($wrong, '', "texts of a session with $style, $zone, $intervals are read for what they were, or not at all");
				$session->close;
			}
		}
	}
}

# Random values of the types with several styles, there and back.
gives($node, <<'SQL', '0', 'thousands of intervals, times and floats come back as they were');
SET TimeZone = 'Europe/Berlin'; SET IntervalStyle = sql_standard;
SELECT count(*)
  FROM (SELECT make_interval(months => (random() * 100 - 50)::int, days => (random() * 100 - 50)::int, secs => (random() * 100000 - 50000)::numeric(10,3)::float8) AS i,
               timestamptz '1900-01-01 00:00+00' + random() * interval '200 years' AS t, (random() - 0.5) * 10 ^ (random() * 600 - 300) AS f
          FROM generate_series(1, 3000)) AS r
 WHERE (fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field_as(i), i), fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field_as(t), t),
        fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field_as(f), f)) IS DISTINCT FROM (i, t, f)
SQL

# NULL, rights, ciphertext.
gives($node, 'SELECT fieldcrypt.encrypt_field_as(NULL::date) IS NULL', 't', 'NULL gives NULL');
refused($node, "SELECT fieldcrypt.encrypt_field_as(date '2001-03-04', NULL)", '22004', 'a NULL context is an error');
refused($node, "SELECT fieldcrypt.encrypt_field_as(date '2001-03-04', 'a', NULL)", '22004', 'and so is a NULL tenant');
refused($node, "SELECT fieldcrypt.encrypt_field_as('abc')", '42804', 'a literal has no type');
gives($node, <<'SQL', 'd', 'context and tenant are those of encrypt_field');
SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field_as('d'::text, 'c', 't'), NULL::text, 'c')
SQL
value($node, "CREATE ROLE app LOGIN; CREATE ROLE writer LOGIN; SELECT fieldcrypt.grant_access('writer', 'encrypt')");
refused($node, "SELECT fieldcrypt.encrypt_field_as(1)", '42501', 'not without the privilege encrypt', user => 'app');
gives($node, "SELECT fieldcrypt.encrypt_field_as(current_date) IS NOT NULL", 't', 'with it, anybody\'s type', user => 'writer');

my $twice = q{(SELECT fieldcrypt.encrypt_field('x') AS ssn) AS t};
refused($node, "SELECT fieldcrypt.encrypt_field(fieldcrypt.ciphertext_text(ssn)) FROM $twice", '22023', qr/encrypted value already/, 'what is encrypted already is not encrypted twice');
refused($node, "SELECT fieldcrypt.encrypt_field_as(ssn) FROM $twice", '22023', 'not as a value of its type');
refused($node, "SELECT fieldcrypt.encrypt_field_as(fieldcrypt.ciphertext_text(ssn)::varchar) FROM $twice", '22023', 'nor as another text');
refused($node, "SELECT fieldcrypt.encrypt_field_jsonb(to_jsonb(ssn)) FROM $twice", '22023', 'nor as a document');
gives($node, "SELECT fieldcrypt.decrypt_field_bytea(fieldcrypt.encrypt_field_bytea(ssn::bytea)) = ssn::bytea FROM $twice", 't', 'bytes are bytes: that is how to do it on purpose');
gives($node, "SELECT count(fieldcrypt.encrypt_field(t)) FROM unnest('{fc1:,fc1:hello,fc1:AAAA,\" fc1:x\"}'::text[]) AS t", '4', 'a text that only begins so is a text');

# encrypt_field is one function: what it was called with means what it meant. An overload for other types was tried and
# is not there: values of type "char", and of domains over name, would be ambiguous (42725), and so would the name alone.
gives($node, "SELECT 'fieldcrypt.encrypt_field'::regproc", 'fieldcrypt.encrypt_field', 'its name is enough to name it');
my $resolved = <<'SQL';
CREATE FUNCTION pg_temp.outcome(call text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN EXECUTE call; RETURN 'text'; EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE; END $$;
SQL
my @positions = ('NULL::%1$s', q{NULL::%1$s, 'c'}, q{NULL::%1$s, 'c', 't'}, 'value => NULL::%1$s', q{NULL::text, NULL::%1$s}, q{NULL::text, '', NULL::%1$s});
foreach my $position (@positions)
{
	(my $arguments = $position) =~ s/'/''/g;
	gives($node, <<SQL, "0\n7", "every type as ($position): text for those that are texts, 42883 for all others");
$resolved
CREATE TEMP TABLE outcomes AS SELECT t.typname, t.oid::regtype AS type, pg_temp.outcome(format('SELECT fieldcrypt.encrypt_field($arguments)', t.oid::regtype)) AS outcome
  FROM pg_type AS t WHERE t.typtype IN ('b', 'd', 'e', 'r', 'm', 'c');
SELECT count(*) FROM outcomes WHERE outcome NOT IN ('text', '42883', '22004');
SELECT count(*) FROM outcomes WHERE outcome IN ('text', '22004')
   AND type IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'name'::regtype, '"char"'::regtype, 'word'::regtype, 'information_schema.sql_identifier'::regtype);
SQL
}
foreach my $parameter ('date', 'int', 'uuid', 'numeric', 'boolean', 'timestamptz', 'json', 'int[]')
{
	refused($node, "PREPARE p($parameter) AS SELECT fieldcrypt.encrypt_field(\$1)", '42883', "a parameter of type $parameter is refused as before");
}
foreach my $protocol ('simple', 'extended', 'prepared')
{
	my $result = bind($node, 'SELECT fieldcrypt.encrypt_field(:v, :c), fieldcrypt.encrypt_field_as(:n::date, :c)', { v => "'x'", c => "'c'", n => "'2001-03-04'" }, protocol => 'simple');
	is($result->{code}, 0, "literals, $protocol") or diag $result->{err};
	next if $protocol eq 'simple';
	$result = bind($node, 'SELECT fieldcrypt.encrypt_field(:v), fieldcrypt.encrypt_field(:v, :c), fieldcrypt.encrypt_field_as(:n::date, :c), fieldcrypt.encrypt_field_as(:n::timestamptz)',
		{ v => 'x', c => 'c', n => '2001-03-04' }, protocol => $protocol);
	is($result->{code}, 0, "parameters without a type, $protocol") or diag $result->{err};
}
no_crash($node);
done_testing();

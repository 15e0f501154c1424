# What is taken as a plaintext, in each form, with the inputs that people and drivers send; keys of every type, with the
# characters that would make two rows one; and databases in other encodings. Refusals name no plaintext.

use strict;
use warnings;
use utf8;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nlog_min_error_statement = panic\n");
my @forms = qw(text lower digits integer numeric date timestamptz uuid boolean jsonb);
value($node, "CREATE TABLE forms (id int PRIMARY KEY, @{[ join ', ', map { qq(of_$_ fieldcrypt.encrypted_text) } @forms ]}); "
	  . join ' ', map { "SELECT fieldcrypt.protect_column('forms', 'of_$_', plaintext => '$_');" } @forms);
# Written as an expression, and in a session with these settings; what comes back, or the SQLSTATE.
my @inputs = (
	[ integer => "'12'", '12' ], [ integer => "' 12 '", '12' ], [ integer => "'-0'", '0' ], [ integer => "'9223372036854775807'", '9223372036854775807' ],
	[ integer => "'9223372036854775808'", '22P02' ], [ integer => '12', '12' ], [ integer => '12::smallint', '12' ], [ integer => '12.0', '22P02' ],
		[ integer => "'secret'", '22P02' ],
	[ integer => "''", '22P02' ], [ integer => 'true', '22P02' ], [ integer => "'12'::text", '12' ], [ integer => "'12'::char(5)", '12' ],
	[ numeric => "'1.50'", '1.50' ], [ numeric => '1.50', '1.50' ], [ numeric => "'NaN'", 'NaN' ], [ numeric => "'Infinity'", 'Infinity' ],
		[ numeric => "'1e30'", '1000000000000000000000000000000' ],
	[ numeric => '12', '12' ], [ numeric => "'-0.0'", '0.0' ], [ numeric => '1::float8', '42804' ], [ numeric => "'secret'", '22P02' ],
	[ date => "'2020-02-29'", '2020-02-29' ], [ date => "'2020-02-30'", '22P02' ], [ date => "'infinity'", 'infinity' ], [ date => "'0044-03-15 BC'",
		'0044-03-15 BC' ],
	[ date => "date '2020-02-29'", '2020-02-29' ], [ date => "'01/02/2020'", '2020-01-02' ], [ date => "'01/02/2020'", '2020-02-01', "datestyle = 'ISO, DMY'" ],
	[ date => "'01/02/2020'::text", '2020-02-01', "datestyle = 'SQL, DMY'" ], [ date => "date '01/02/2020'", '2020-02-01', "datestyle = 'German, DMY'" ],
	[ date => "timestamp '2020-01-01'", '42804' ], [ date => "'secret'", '22P02' ],
	[ timestamptz => "'2020-01-01 00:00'", '2020-01-01 00:00:00+00' ], [ timestamptz => "'2020-01-01 00:00'", '2019-12-31 15:00:00+00',
		"timezone = 'Asia/Tokyo'" ],
	[ timestamptz => "'2020-01-01 00:00+05'", '2019-12-31 19:00:00+00', "timezone = 'Asia/Tokyo'" ], [ timestamptz => "timestamptz '2020-01-01'",
		'2019-12-31 15:00:00+00', "timezone = 'Asia/Tokyo'" ],
	[ timestamptz => "'-infinity'", '-infinity' ], [ timestamptz => "'2020-01-01 00:00:00.000001'", '2020-01-01 00:00:00.000001+00' ],
		[ timestamptz => "'secret'", '22P02' ],
	[ uuid => "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11' ], [ uuid => "'{a0eebc999c0b4ef8bb6d6bb9bd380a11}'",
		'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11' ],
	[ uuid => "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid", 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11' ], [ uuid => "'secret'", '22P02' ],
	[ boolean => "'yes'", 't' ], [ boolean => "'off'", 'f' ], [ boolean => 'true', 't' ], [ boolean => "'secret'", '22P02' ],
	[ jsonb => q('{"b":1, "a" : 2,"a":3}'), '{"a": 3, "b": 1}' ], [ jsonb => q('{"a":1}'::jsonb), '{"a": 1}' ], [ jsonb => q('{"a":1}'::json), '42804' ],
		[ jsonb => q('"x"'), '"x"' ],
	[ jsonb => "'secret'", '22P02' ], [ jsonb => q('"\u0000"'), '22P02' ], [ jsonb => 'NULL', 'NULL' ], [ jsonb => "'null'", 'null' ],
	[ text => '12', '12' ], [ text => '12.50', '12.50' ], [ text => "date '2020-01-02'", '2020-01-02' ], [ text => "date '2020-01-02'", '2020-01-02',
		"datestyle = 'German'" ], [ text => 'true', 't' ],
	[ text => "'a'::char(5)", 'a' ], [ text => "'a '::varchar", 'a ' ], [ text => "'n'::name", 'n' ], [ text => "''", '' ], [ text => "'FC1:x'", 'FC1:x' ],
		[ text => "' fc1:x'", ' fc1:x' ],
	[ text => "'fc1:secret'", 'KF001' ], [ text => "'fc1:'::text", 'KF001' ], [ text => "NULL", 'NULL' ], [ text => "E'tab\\t\\\\ and \\U0001F600'",
		"tab\t\\ and \x{1F600}" ],
	[ lower => "'ÄÖ Straße İ ǅ'", 'ÄÖ Straße İ ǅ' ], [ lower => "'A'", 'A' ], [ digits => "'123-45-6789'", '123-45-6789' ], [ digits => "'none'", 'none' ],
	(map { [ text => $_, '42804' ] } "'\\x41'::bytea", 'ARRAY[1]', '1::float4', "interval '1 day'", "timestamp '2020-01-01'", "'1.2.3.4'::inet", 'row(1, 2)',
		"'<a/>'::xml", '12::money',
		'1::oid', "'forms'::regclass", "time '12:00'", "B'101'", 'int4range(1, 2)', "'{}'::json", "'(1,2)'::point", "'a'::tsvector"));
foreach my $input (@inputs)
{
	my ($form, $sql, $expected, $setting) = @$input;
	my $set = $setting ? "SET $setting; " : '';
	my $name = "$form, $sql" . ($setting ? " with $setting" : '');
	my $statement = "${set}INSERT INTO forms (id, of_$form) VALUES (1, $sql) ON CONFLICT (id) DO UPDATE SET of_$form = excluded.of_$form";
	utf8::encode($_) foreach $statement, $expected, $name;
	if ($expected =~ /^(?:22P02|42804|KF001)$/)
	{
		my $refused = run_sql($node, $statement);
		is("@{ $refused->{sqlstates} }", $expected, "refused: $name") or diag $refused->{err};
		unlike($refused->{err} =~ s/^LINE .*//mr, qr/secret/, '  without the plaintext') if $expected ne '42804';
		next;
	}
	gives($node, "$statement; SELECT coalesce(fieldcrypt.decrypt_field(of_$form, 'public.forms.of_$form/1'), 'NULL') FROM forms", $expected, $name,
		env => { PGCLIENTENCODING => 'UTF8' });
}
refused($node, "SELECT fieldcrypt.protect_column('forms', 'of_text', plaintext => '$_')", '42P17', "no such form: $_") foreach '', 'TEXT', 'float', 'lower ';

# Parameters of drivers, with their types.
foreach my $case ([ 'integer', '', '77', '77' ], [ 'integer', '::int', '77', '77' ], [ 'date', '', '2020-02-03', '2020-02-03' ], [ 'date', '::date',
	'2020-02-03', '2020-02-03' ], [ 'uuid', '::uuid', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11' ],
	[ 'boolean', '::bool', 'no', 'f' ], [ 'text', '::varchar', 'x', 'x' ], [ 'jsonb', '::jsonb', '[1]', '[1]' ], [ 'numeric', '::numeric', '1.0', '1.0' ],
		[ 'timestamptz', '::timestamptz', '2020-01-01Z', '2020-01-01 00:00:00+00' ])
{
	my ($form, $cast, $parameter, $expected) = @$case;
	foreach my $protocol ('extended', 'prepared')
	{
		my $bound = bind($node, "UPDATE forms SET of_$form = :v$cast", { v => $parameter }, protocol => $protocol);
		is($bound->{code}, 0, "a parameter, $form$cast, $protocol") or diag $bound->{err};
		gives($node, "SELECT fieldcrypt.decrypt_field(of_$form, 'public.forms.of_$form/1') FROM forms", $expected, '  is what it was');
	}
}

# Keys. Rows that look alike are not each other's.
sub table_of
{
	my ($name, $columns, $key, @keys) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	value($node, "CREATE TABLE $name ($columns, v fieldcrypt.encrypted_text, PRIMARY KEY ($key)); SELECT fieldcrypt.protect_column('$name', 'v')");
	my $number = 0;
	value($node, "INSERT INTO $name ($key, v) VALUES ($_, 'v-" . ++$number . "')") foreach @keys;
	my $context = "fieldcrypt.context('public.$name.v', $key)";
	foreach my $settings ('', "SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'; SET extra_float_digits = 0; SET intervalstyle = 'sql_standard'; ")
	{
		gives($node, "${settings}SELECT count(*), count(DISTINCT $context), count(*) FILTER (WHERE fieldcrypt.decrypt_field(v, $context) LIKE 'v-%') FROM $name",
			"$number|$number|$number", "key $columns: each of $number opens" . ($settings && ', with other settings'));
		gives($node, "${settings}UPDATE $name SET v = v; SELECT count(*) FROM $name", $number, '  and stays');
	}
	my $result = run_sql($node, "UPDATE $name AS a SET v = b.v FROM $name AS b WHERE a.ctid <> b.ctid");
	is("@{ $result->{sqlstates} }", 'KF037', '  and is no other row\'s') if $number > 1;
	return;
}
table_of('of_identity', 'id bigint GENERATED ALWAYS AS IDENTITY, n int', 'id');
gives($node, q{INSERT INTO of_identity (v) SELECT 'x' || i FROM generate_series(1, 3) AS i;
	SELECT id, fieldcrypt.decrypt_field(v, fieldcrypt.context('public.of_identity.v', id)) FROM of_identity ORDER BY id}, "1|x1\n2|x2\n3|x3", 'an identity');
table_of('of_serial', 'id serial', 'id');
gives($node, q{INSERT INTO of_serial (v) VALUES ('x'), ('y') RETURNING id, fieldcrypt.decrypt_field(v, fieldcrypt.context('public.of_serial.v', id))},
	"1|x\n2|y", 'a serial');
table_of('of_default', 'id uuid DEFAULT gen_random_uuid()', 'id');
gives($node, q{INSERT INTO of_default (v) VALUES ('x') RETURNING fieldcrypt.decrypt_field(v, fieldcrypt.context('public.of_default.v', id))}, 'x',
	'a uuid by default');
table_of('of_texts', 'a text, b text', 'a, b', "'a/b', 'c'", "'a', 'b/c'", "'a%2Fb', 'c'", "'a%2fb', 'c'", "'a', 'b%2Fc'", "'', 'a/b/c'", "'a/b/c', ''",
	"' a', 'b'", "'a ', 'b'", "'A', 'b'", "'%', '/'", "'/', '%'", "'%25', '%2F'", "E'a\\nb', 'c'", "'ä', 'b'" =~ s/ä/\xc3\xa4/r, "'a\xcc\x88', 'b'");
table_of('of_text_or_number', 'a text, b int', 'a, b', "'1', 2", "'1/2', 2", "'', 12", "'12', 0");
table_of('of_numbers', 'a numeric, b smallint', 'a, b', '1.0, 2', '10, 2', '1, 20', '-1, 2', "'NaN', 2", "'Infinity', 2", '0.1, 2', '1e30, 2');
table_of('of_times', 'a timestamptz, b timestamp, c date', 'a, b, c', "'2020-01-01 00:00+00', '2020-01-01', '2020-01-01'",
	"'2020-01-01 00:00+09', '2020-01-01', '2020-01-01'", "'infinity', '-infinity', 'infinity'", "'2020-01-01 00:00:00.000001+00', '2020-01-01', '0001-01-01 BC'");
table_of('of_odd', 'a boolean, b name, c char(5), d varchar(5)', 'a, b, c, d', "true, 'n', 'c', 'd'", "false, 'n', 'c', 'd'", "true, 'nc', '', 'd'",
	"true, 'n', 'c', 'd '");
value($node, 'CREATE DOMAIN number AS bigint CHECK (VALUE > 0); CREATE DOMAIN label AS text');
table_of('of_domains', 'a number, b label', 'a, b', "1, 'x'", "2, 'x'", "1, 'y'");
gives($node, q{INSERT INTO of_numbers VALUES (1.00, 2, 'same row') ON CONFLICT (a, b) DO UPDATE SET v = excluded.v, a = excluded.a;
	SELECT fieldcrypt.decrypt_field(v, fieldcrypt.context('public.of_numbers.v', 1, 2))
	FROM of_numbers WHERE a = 1 AND b = 2}, 'same row', 'equal numbers are one place');
refused($node, q{INSERT INTO of_texts VALUES (NULL, 'b', 'x')}, '23502', 'a NULL key');
refused($node, q{UPDATE of_texts SET a = NULL WHERE a = '%'}, '23502', 'a key that becomes NULL');
refused($node, q{INSERT INTO of_texts VALUES (repeat('a', 2000000), 'b', 'x')}, '54000', 'a key that is no key');
gives($node, q{UPDATE of_texts SET a = b, b = a WHERE (a, b) = ('a', 'b/c')
	RETURNING fieldcrypt.decrypt_field(v, fieldcrypt.context('public.of_texts.v', a, b))},
	'v-2', 'columns of a key that change places take the value along');

# Databases in other encodings. A value is sealed as UTF-8: it opens in each of them as the text that it was.
my $text = "Z\xfcrich \xa7";
create_database($node, 'latin', with => "ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'");
create_database($node, 'ascii', with => "ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'");
my $made = 'CREATE TABLE places (id int PRIMARY KEY, name text, v fieldcrypt.encrypted_text); SELECT fieldcrypt.protect_column($$places$$, $$v$$)';
value($node, $made, db => 'latin');
my $utf8 = $text;
utf8::encode($utf8);
gives($node, "INSERT INTO places VALUES (1, NULL, '$utf8'), (2, '$utf8', NULL);
	SELECT fieldcrypt.decrypt_field(v, 'public.places.v/1') = '$utf8', fieldcrypt.decrypt_field(v, 'public.places.v/1')
	FROM places WHERE id = 1", "t|$utf8", 'LATIN1', db => 'latin', env => { PGCLIENTENCODING => 'UTF8' });
gives($node, "UPDATE places SET v = name::varchar WHERE id = 2; SELECT fieldcrypt.decrypt_field(v, 'public.places.v/2') = name FROM places WHERE id = 2", 't',
	'LATIN1, from a column', db => 'latin');
refused($node, "INSERT INTO places VALUES (3, NULL, '\xe2\x82\xac')", '22P05', 'what the encoding lacks', db => 'latin', env => { PGCLIENTENCODING => 'UTF8' });
my ($keys, $rows) = map { value($node, $_, db => 'latin', env => { PGCLIENTENCODING => 'UTF8' }) } 'SELECT fieldcrypt.export_keys()',
	q{SELECT string_agg(format('(%s, %L)', id, fieldcrypt.ciphertext_text(v)), ', ') FROM places};
create_database($node, 'utf8');
(my $quoted = $keys) =~ s/'/''/g;
value($node, "SELECT fieldcrypt.import_keys('$quoted'); $made; INSERT INTO places (id, v) VALUES $rows", db => 'utf8');
gives($node, q{SELECT fieldcrypt.decrypt_field(v, fieldcrypt.context('public.places.v', id)) FROM places ORDER BY id}, "$utf8\n$utf8",
	'and opens in a database of UTF8', db => 'utf8', env => { PGCLIENTENCODING => 'UTF8' });
# A key in another encoding is the same place.
value($node, 'CREATE TABLE named (name text PRIMARY KEY, v fieldcrypt.encrypted_text); SELECT fieldcrypt.protect_column($$named$$, $$v$$)',
	db => $_) foreach 'latin', 'utf8';
value($node, "INSERT INTO named VALUES ('$utf8', 'named')", db => 'latin', env => { PGCLIENTENCODING => 'UTF8' });
my $named = value($node, 'SELECT fieldcrypt.ciphertext_text(v) FROM named', db => 'latin');
value($node, "SELECT fieldcrypt.import_keys('" . value($node, 'SELECT fieldcrypt.export_keys()', db => 'latin') =~ s/'/''/gr . "')", db => 'utf8');
gives($node, "INSERT INTO named VALUES ('$utf8', '$named'); SELECT fieldcrypt.decrypt_field(v, fieldcrypt.context('public.named.v', name)) FROM named",
	'named', 'a key with such letters is the same place in both', db => 'utf8', env => { PGCLIENTENCODING => 'UTF8' });
value($node, $made, db => 'ascii');
gives($node, "INSERT INTO places VALUES (1, NULL, 'plain'), (2, NULL, '$utf8');
	SELECT fieldcrypt.decrypt_field(v, fieldcrypt.context('public.places.v', id))
	FROM places ORDER BY id", "plain\n$utf8", 'SQL_ASCII, what is UTF-8', db => 'ascii');
my $bytes = run_sql($node, "INSERT INTO places VALUES (3, NULL, E'\\xfc')", db => 'ascii');
like("@{ $bytes->{sqlstates} }", qr/^(?:22021|KF0\d\d|22P0\d)$/, 'SQL_ASCII, bytes that are no UTF-8') or diag $bytes->{err};

unlike(slurp_file($node->logfile), qr/secret/, 'the server log has no plaintext');
no_crash($node);
done_testing();

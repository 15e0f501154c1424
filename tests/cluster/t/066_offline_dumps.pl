# The offline tool on dumps whose values are bound to their rows: the contexts are in the same dump, and so is all that
# they are made of. No context is given, and every value opens, in each form that pg_dump has for a text.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary');
my $folder = PostgreSQL::Test::Utils::tempdir();

# Each table: the definition of its columns, the values of its key, and the expression as people write it. Schema "app"
# is dumped before the contexts, "public" after them.
my @tables = (
	[ 'app.patients', 'id bigint PRIMARY KEY', q{i}, q{fieldcrypt.context('patients.ssn', id)} ],
	[ 'app.joined', 'id int PRIMARY KEY', q{-i}, q{'joined.ssn/' || id} ],
	[ 'app."Odd Name"', '"Id ""x""" uuid PRIMARY KEY', q{md5(i::text)::uuid}, q{fieldcrypt.context('odd', "Id ""x""")} ],
	[ 'public.cast_text', 'id smallint PRIMARY KEY', q{i}, q{('cast/'::text || (id)::text)} ],
	[ 'public.of_texts', 'code text, part varchar(20)', q{E'a/b%\\\\ \t\n''"ü' || i, 'p' || i}, q{fieldcrypt.context('texts', code, part)} ],
	[ 'public.joined_texts', 'code text, padded char(9)', q{E'a/b%\\\\ \t\n''"ü' || i, 'p' || i}, q{'t/' || code || '/' || padded || '/' || padded::text} ],
	[ 'public.of_times', 'born date, seen timestamptz, at timestamp', q{date '2000-02-28' + i, timestamptz '2001-03-04 05:06:07.5+02' + i * interval '1 day', timestamp '2001-03-04 05:06' + i * interval '1 s'},
		q{fieldcrypt.context('times', born, seen, at)} ],
	[ 'public.joined_date', 'born date', q{date '2000-02-28' + i}, q{'t/' || born} ],
	[ 'public.of_numbers', 'amount numeric, flag boolean', q{i * 1.50, i % 2 = 0}, q{fieldcrypt.context('n', amount, flag, 7)} ],
	[ 'public.joined_numbers', 'amount numeric(10,2), flag boolean', q{i * 1.50, i % 2 = 0}, q{'n/' || amount || '/' || flag} ],
	[ 'public.of_hosts', 'host inet, net inet, size float8', q{'10.0.0.0'::inet + i, ('fe80::' || i || '/64')::inet, i * 1e20::float8}, q{'h/' || host || '/' || net || '/' || size} ],
	[ 'public.formatted', 'id int, code text', q{i, 'c' || i}, q{format('f/%s/%2$s%%', id, code)} ],
	[ 'public.of_domain', 'id public.number', q{i}, q{fieldcrypt.context('d', id)} ],
	[ 'public.constant', 'id int', q{i}, q{'always the same'} ]);

value($node, 'CREATE SCHEMA app; CREATE DOMAIN public.number AS integer CHECK (VALUE > 0)');
my $count = 0;
foreach my $table (@tables)
{
	my ($name, $columns, $key, $expression) = @$table;
	value($node, "CREATE TABLE $name ($columns, ssn fieldcrypt.encrypted, free fieldcrypt.encrypted)");
	# The value is bound by what the server makes of the expression, as an application would.
	my @columns = map { /^\s*("(?:[^"]|"")+"|\w+)/ } split /,\s*(?=\w+ \w)/, $columns;
	my $quoted = $expression =~ s/'/''/gr;
	value($node, "SELECT fieldcrypt.set_column_context('$name', 'ssn', expression => '$quoted')");
	value($node, "SET timezone = 'UTC'; INSERT INTO $name SELECT k.*, fieldcrypt.encrypt_field('plain-' || i || '''\\', c.context), fieldcrypt.encrypt_field('free-' || i)
		FROM generate_series(1, 20) AS i, LATERAL (SELECT $key) AS k(@{[ join ', ', @columns ]}), LATERAL (SELECT $expression AS context) AS c");
	$count += 40;
}
# Partitions have the context of the whole, and so have tables that inherit.
value($node, <<'SQL');
CREATE TABLE app.whole (id int, region text, ssn fieldcrypt.encrypted) PARTITION BY LIST (region);
CREATE TABLE app.whole_eu PARTITION OF app.whole FOR VALUES IN ('eu') PARTITION BY RANGE (id);
CREATE TABLE public.whole_eu_low PARTITION OF app.whole_eu FOR VALUES FROM (0) TO (100);
CREATE TABLE app.parent (id int, ssn fieldcrypt.encrypted);
CREATE TABLE public.child (more text) INHERITS (app.parent);
SELECT fieldcrypt.set_column_context('app.whole', 'ssn', expression => $$fieldcrypt.context('whole', region, id)$$),
       fieldcrypt.set_column_context('app.parent', 'ssn', expression => $$'parent/' || id$$);
INSERT INTO app.whole SELECT i, 'eu', fieldcrypt.encrypt_field('plain', fieldcrypt.context('whole', 'eu', i)) FROM generate_series(1, 20) AS i;
INSERT INTO public.child SELECT i, fieldcrypt.encrypt_field('plain', 'parent/' || i), 'more' FROM generate_series(1, 20) AS i;
-- What looks like data, and is none.
CREATE FUNCTION app.misleading() RETURNS text LANGUAGE sql AS $_$
SELECT 'don''t
COPY app.patients (id, ssn) FROM stdin;
INSERT INTO app.patients VALUES (1, ''it is open
CREATE TABLE app.patients (
'::text
$_$;
SQL
$count += 40;

my $export = write_file('export.json', value($node, 'SELECT fieldcrypt.export_keys()'));
my $key = "$folder/master.key";
write_key_file($key, key_text(1));
my %forms = (
	'COPY' => [ 'copy' ], '--inserts' => [ 'sql', '--inserts' ], '--column-inserts' => [ 'sql', '--column-inserts' ],
	'--rows-per-insert' => [ 'sql', '--rows-per-insert=7' ], '--quote-all-identifiers' => [ 'copy', '--quote-all-identifiers' ],
	'--load-via-partition-root' => [ 'copy', '--load-via-partition-root' ]);
foreach my $form (sort keys %forms)
{
	my ($escape, @options) = @{ $forms{$form} };
	my $dump = dump_database($node, 'postgres', "$folder/dump.sql", @options);
	my $opened = tool('open', '--export', $export, '--master-key', $key, '--escape', $escape, $dump);
	is($opened->{code}, 0, "$form: every value opens, and no context was given") or diag $opened->{err};
	like($opened->{err}, qr/\A\S+: $count values opened\n\z/, "$form: all of them");
	unlike($opened->{out}, qr/fc1:/, "$form: no ciphertext is left");
	is(scalar(() = $opened->{out} =~ /plain-\d+/g), 20 * @tables, "$form: their plaintexts are there");
}

# A dump that can be read only once: what comes before the contexts is left, and it is said why.
{
	my $dump = slurp_file(dump_database($node, 'postgres', "$folder/dump.sql"));
	my $opened = tool_with_input($dump, 'open', '--export', $export, '--master-key', $key, '--escape', 'copy');
	is($opened->{code}, 1, 'through a pipe: contexts come after some values');
	like($opened->{err}, qr/^fieldcrypt: app\.patients\.ssn: 20 left: the dump holds no context of it up to here/m, 'which is said');
	unlike($opened->{err}, qr/public\.constant/, 'the others open');
}

# Custom dumps become plain ones first, as ever.
{
	my $dump = dump_database($node, 'postgres', "$folder/dump.custom", '-Fc');
	system_or_bail('pg_restore', '-f', "$folder/restored.sql", $dump);
	like(tool('open', '--export', $export, '--master-key', $key, '--escape', 'copy', "$folder/restored.sql")->{err}, qr/: $count values opened$/m, 'a custom dump, by pg_restore -f');
}

# What can't be computed without a server is named, and can be given.
{
	value($node, <<'SQL');
CREATE TABLE public.lowered (id int, "Code" text, ssn fieldcrypt.encrypted);
SELECT fieldcrypt.set_column_context('lowered', 'ssn', expression => $$'l/' || lower("Code")$$);
INSERT INTO lowered SELECT i, 'c' || i, fieldcrypt.encrypt_field('plain', 'l/c' || i) FROM generate_series(1, 5) AS i;
SQL
	my $dump = dump_database($node, 'postgres', "$folder/dump.sql");
	my @open = ('open', '--export', $export, '--master-key', $key, '--escape', 'copy');
	my $opened = tool(@open, $dump);
	is($opened->{code}, 1, 'an expression that is not computed here');
	like($opened->{err}, qr/^fieldcrypt: public\.lowered\.ssn: 5 left: its context can't be computed here \(the function lower\(\) is not computed here, in: 'l\/' \|\| lower\("Code"\)\); give it with --column-context 'public\.lowered\.ssn=TEMPLATE'/m,
		'is named, with what to do');
	is((() = $opened->{out} =~ /fc1:/g), 5, 'the others are opened');
	$opened = tool(@open, '--column-context', 'public.lowered.ssn=l/{Code}', $dump);
	is($opened->{code}, 0, 'and with it, they open') or diag $opened->{err};
	is(tool(@open, '--column-context', 'lowered.ssn=l/{Code}', $dump)->{code}, 0, 'the schema may be left out');
	is(tool(@open, '--column-context', 'ssn=l/{Code}', $dump)->{code}, 2, 'the table may not');
	is(tool(@open, '--column-context', 'public.lowered.ssn=l/{Code', $dump)->{code}, 2, 'a brace without its other');
}

# A value of a column without a context, which nothing binds, was put where values are bound: as on the server, it does not open.
{
	my ($before) = value($node, 'DROP TABLE lowered; SELECT ssn FROM app.patients WHERE id = 7');
	value($node, 'UPDATE app.patients SET ssn = (SELECT free FROM app.patients WHERE id = 1) WHERE id = 7');
	is(value($node, q{SELECT fieldcrypt.try_decrypt_field(ssn, fieldcrypt.context('patients.ssn', id)) IS NULL FROM app.patients WHERE id = 7}), 't', 'a foreign value does not open on the server');
	foreach my $form (sort keys %forms)
	{
		my ($escape, @options) = @{ $forms{$form} };
		my @open = ('open', '--export', $export, '--master-key', $key, '--escape', $escape, dump_database($node, 'postgres', "$folder/dump.sql", @options));
		foreach my $context ([], [ '--context', '' ], [ '--context', 'x' ])
		{
			my $opened = tool(@open, @$context);
			is($opened->{code}, 1, "$form @$context: nor without it");
			like($opened->{err}, qr/^fieldcrypt: app\.patients\.ssn: 1 left: they do not open with the context of their row$/m, "$form @$context: and is named");
			is(scalar(() = $opened->{out} =~ /fc1:/g), 1, "$form @$context: it is left as it is") if !@$context || $context->[1] eq '';
		}
	}
	value($node, "UPDATE app.patients SET ssn = '$before' WHERE id = 7");
}

# A value that was moved to another row does not open there, whatever is known.
{
	value($node, q{ALTER TABLE app.patients DROP CONSTRAINT patients_pkey; UPDATE app.patients SET id = 4712 WHERE id = 3});
	my $opened = tool('open', '--export', $export, '--master-key', $key, dump_database($node, 'postgres', "$folder/dump.sql"));
	is($opened->{code}, 1, 'a moved value');
	like($opened->{err}, qr/app\.patients\.ssn: 1 left: they do not open with the context of their row/, 'is left, and found');
	# One table alone has its data, but not the contexts.
	$opened = tool('open', '--export', $export, '--master-key', $key, dump_database($node, 'postgres', "$folder/one.sql", '-t', 'app.joined', '--data-only'));
	like($opened->{err}, qr/app\.joined\.ssn: 20 left: the dump holds no context of it up to here; if it has one, give it with --column-context/, 'a dump of one table has no contexts, and it is said what to do');
	is(tool('open', '--export', $export, '--master-key', $key, '--column-context', 'app.joined.ssn=joined.ssn/{id}', "$folder/one.sql")->{code}, 0, 'which helps');
}

no_crash($node);
$node->stop;
done_testing();

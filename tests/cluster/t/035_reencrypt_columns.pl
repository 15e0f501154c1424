# Re-encryption of columns: every way in which a column can hold encrypted values is followed or
# reported; and their contexts.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "max_prepared_transactions = 5\n");

sub reencrypt
{
	my ($arguments, %options) = @_;
	my $before = $options{before} // '';
	return run_sql($node, "SET statement_timeout = '100s';\n$before\nCALL fieldcrypt.reencrypt($arguments)", %options);
}

# A test: the run went through without an error or a warning.
sub runs_clean
{
	my ($arguments, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $result = reencrypt($arguments, %options);
	is(join(' ', @{ $result->{sqlstates} }, $result->{err} =~ /^(?:\S+ )?WARNING: .*$/mg), '', $name) or diag $result->{err};
	return $result;
}

my $encrypt = 'fieldcrypt.encrypt_field';
# Name of a table => how it is made and filled, and a query that gives all its values.
my @tables = (
	[ 'plain', <<SQL, 'SELECT v FROM plain' ],
CREATE TABLE plain (v fieldcrypt.encrypted, n int);
INSERT INTO plain SELECT CASE WHEN i % 5 > 0 THEN $encrypt('plain ' || i, tenant => 'tenant ' || i % 3) END, i FROM generate_series(1, 500) AS i;
SQL
	[ 'nothing', 'CREATE TABLE nothing (id int PRIMARY KEY, v fieldcrypt.encrypted)', 'SELECT v FROM nothing' ],
	[ 'only_null', 'CREATE TABLE only_null (v fieldcrypt.encrypted); INSERT INTO only_null SELECT NULL FROM generate_series(1, 50)', 'SELECT v FROM only_null' ],
	[ 'domains', <<SQL, 'SELECT v FROM domains UNION ALL SELECT w FROM domains' ],
CREATE DOMAIN card AS fieldcrypt.encrypted CHECK (octet_length(VALUE::bytea) > 42);
CREATE DOMAIN my_card AS card NOT NULL;
CREATE TABLE domains (id int PRIMARY KEY, v card, w my_card);
INSERT INTO domains SELECT i, $encrypt('v ' || i), $encrypt('w ' || i) FROM generate_series(1, 100) AS i;
INSERT INTO domains SELECT i, NULL, $encrypt('w ' || i) FROM generate_series(101, 120) AS i;
SQL
	[ 'arrays', <<SQL, 'SELECT unnest(v) FROM arrays UNION ALL SELECT unnest(w) FROM arrays UNION ALL SELECT unnest(x) FROM arrays' ],
CREATE DOMAIN cards AS card[] CHECK (array_length(VALUE, 1) < 5);
CREATE TABLE arrays (id int PRIMARY KEY, v fieldcrypt.encrypted[], w card[], x cards);
INSERT INTO arrays SELECT i, ARRAY[$encrypt('a ' || i), NULL, $encrypt('b ' || i)], ARRAY[$encrypt('c ' || i)]::card[], ARRAY[$encrypt('d ' || i), NULL]::cards FROM generate_series(1, 50) AS i;
INSERT INTO arrays VALUES (51, '{}', '{}', NULL), (52, '{NULL}', '{NULL,NULL}', NULL),
    (53, ('[2:3][5:6]={{' || fieldcrypt.ciphertext_text($encrypt('e')) || ',NULL},{' || fieldcrypt.ciphertext_text($encrypt('f')) || ',' || fieldcrypt.ciphertext_text($encrypt('g')) || '}}')::fieldcrypt.encrypted[], NULL, NULL);
SQL
	[ 'composites', <<SQL, 'SELECT (v).secret FROM composites UNION ALL SELECT (unnest(w)).secret FROM composites UNION ALL SELECT ((x).inner_part).secret FROM composites UNION ALL SELECT unnest((x).more) FROM composites UNION ALL SELECT (y).secret FROM composites' ],
CREATE TYPE part AS (label text, secret fieldcrypt.encrypted, n bigint);
CREATE TYPE whole AS (n int, inner_part part, more fieldcrypt.encrypted[], note text);
CREATE DOMAIN checked_part AS part CHECK ((VALUE).label <> 'bad');
CREATE TABLE composites (v part, w part[], x whole, y checked_part);
INSERT INTO composites
SELECT ROW('l', $encrypt('v ' || i), i)::part, ARRAY[ROW(repeat('long ', 2000), $encrypt('w ' || i), i), NULL, ROW(NULL, NULL, NULL)]::part[],
       ROW(i, ROW('in', $encrypt(repeat('x', 3000) || i), i), ARRAY[$encrypt('more ' || i), NULL], repeat('note', 1000))::whole, ROW('ok', $encrypt('y ' || i), i)::part::checked_part
  FROM generate_series(1, 40) AS i;
INSERT INTO composites VALUES (NULL, NULL, NULL, NULL), (ROW(NULL, NULL, NULL)::part, '{}', ROW(1, NULL, NULL, NULL)::whole, NULL);
SQL
	[ 'row_types', <<SQL, 'SELECT (r).secret FROM row_types UNION ALL SELECT (r).added FROM row_types' ],
CREATE TABLE pattern (gone int, id int, secret fieldcrypt.encrypted);
CREATE TABLE row_types (n int, r pattern);
INSERT INTO row_types SELECT i, ROW(1, i, $encrypt('row type ' || i))::pattern FROM generate_series(1, 30) AS i;
ALTER TABLE pattern DROP COLUMN gone;
ALTER TABLE pattern ADD COLUMN added fieldcrypt.encrypted;
INSERT INTO row_types SELECT i, ROW(i, $encrypt('row type ' || i), $encrypt('added ' || i))::pattern FROM generate_series(31, 60) AS i;
SQL
	[ 'generated', <<SQL, 'SELECT v FROM generated UNION ALL SELECT copied FROM generated' ],
CREATE TABLE generated (id int PRIMARY KEY, v fieldcrypt.encrypted, kid bigint GENERATED ALWAYS AS (fieldcrypt.key_id(v)) STORED, twice int GENERATED ALWAYS AS (id * 2) STORED,
    copied fieldcrypt.encrypted GENERATED ALWAYS AS (v) STORED);
INSERT INTO generated SELECT i, $encrypt('generated ' || i) FROM generate_series(1, 60) AS i;
CREATE INDEX ON generated (kid);
CREATE INDEX ON generated (fieldcrypt.key_id(v));
SQL
	[ 'partitioned', <<SQL, 'SELECT v FROM partitioned' ],
CREATE TABLE partitioned (id int, region text, v fieldcrypt.encrypted, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE partitioned_a PARTITION OF partitioned FOR VALUES IN ('a') PARTITION BY RANGE (id);
CREATE TABLE partitioned_a1 PARTITION OF partitioned_a FOR VALUES FROM (0) TO (100);
CREATE TABLE partitioned_a2 (v fieldcrypt.encrypted, dropped text, region text NOT NULL, id int NOT NULL);
ALTER TABLE partitioned_a2 DROP COLUMN dropped;
ALTER TABLE partitioned_a ATTACH PARTITION partitioned_a2 FOR VALUES FROM (100) TO (1000);
CREATE TABLE partitioned_rest PARTITION OF partitioned DEFAULT;
INSERT INTO partitioned SELECT i, CASE i % 2 WHEN 0 THEN 'a' ELSE 'b' END, $encrypt('p ' || i) FROM generate_series(1, 300) AS i;
SQL
	[ 'ancestor', <<SQL, 'SELECT v FROM ancestor UNION ALL SELECT w FROM child' ],
CREATE TABLE ancestor (id int, v fieldcrypt.encrypted);
CREATE TABLE child (w fieldcrypt.encrypted) INHERITS (ancestor);
CREATE TABLE grandchild () INHERITS (child);
INSERT INTO ancestor SELECT i, $encrypt('ancestor ' || i) FROM generate_series(1, 20) AS i;
INSERT INTO child SELECT i, $encrypt('child ' || i), $encrypt('w ' || i) FROM generate_series(21, 40) AS i;
INSERT INTO grandchild SELECT i, $encrypt('grandchild ' || i), $encrypt('w ' || i) FROM generate_series(41, 60) AS i;
SQL
	[ 'not_logged', "CREATE UNLOGGED TABLE not_logged (v fieldcrypt.encrypted); INSERT INTO not_logged SELECT $encrypt('u ' || i) FROM generate_series(1, 20) AS i", 'SELECT v FROM not_logged' ],
	[ 'compressed', <<SQL, 'SELECT v FROM compressed' ],
CREATE TABLE compressed (other text, v fieldcrypt.encrypted);
ALTER TABLE compressed ALTER v SET STORAGE EXTENDED;
INSERT INTO compressed SELECT repeat('o', i * 1000), $encrypt(repeat(i || ' ', i * 100)) FROM generate_series(1, 40) AS i;
ALTER TABLE compressed ALTER v SET STORAGE MAIN;
INSERT INTO compressed SELECT repeat('o', i * 1000), $encrypt(repeat(i || ' ', i * 10)) FROM generate_series(41, 60) AS i;
SQL
	[ 'dropped', <<SQL, 'SELECT v FROM dropped' ],
CREATE TABLE dropped (a text NOT NULL, old fieldcrypt.encrypted NOT NULL, id int PRIMARY KEY, b int DEFAULT 7, v fieldcrypt.encrypted, c text);
INSERT INTO dropped SELECT repeat('a', 5000), $encrypt(repeat('old', 3000)), i, i, $encrypt('d ' || i), repeat('c', i * 100) FROM generate_series(1, 40) AS i;
ALTER TABLE dropped DROP COLUMN a, DROP COLUMN b, DROP COLUMN old;
INSERT INTO dropped SELECT i, $encrypt('d ' || i), 'c' FROM generate_series(41, 60) AS i;
SQL
	[ 'added', <<SQL, 'SELECT v FROM added UNION ALL SELECT w FROM added' ],
CREATE TABLE added (id int, v fieldcrypt.encrypted);
INSERT INTO added SELECT i, $encrypt('a ' || i) FROM generate_series(1, 40) AS i;
ALTER TABLE added ADD COLUMN note text DEFAULT 'a default', ADD COLUMN nothing fieldcrypt.encrypted;
DO \$\$ BEGIN EXECUTE format('ALTER TABLE added ADD COLUMN w fieldcrypt.encrypted DEFAULT %L', $encrypt('by default')); END \$\$;
ALTER TABLE added ADD COLUMN after int DEFAULT 42;
SQL
	[ 'no_columns_before', <<SQL, 'SELECT v FROM wide' ],
DO \$\$ BEGIN EXECUTE 'CREATE TABLE wide (' || (SELECT string_agg(format('c%s int', i), ', ') FROM generate_series(1, 1200) AS i) || ', v fieldcrypt.encrypted)'; END \$\$;
INSERT INTO wide (c1, c600, v) SELECT i, i, $encrypt('wide ' || i) FROM generate_series(1, 30) AS i;
SQL
	(map {
			my ($name, $column) = @$_;
			(my $literal = $name) =~ s/"/""/g;
			(my $column_literal = $column) =~ s/"/""/g;
			[ $name, qq{CREATE TABLE "$literal" ("$column_literal" fieldcrypt.encrypted, "select" int); INSERT INTO "$literal" SELECT $encrypt('odd ' || i), i FROM generate_series(1, 10) AS i},
				qq{SELECT "$column_literal" FROM "$literal"} ] }
		[ 'MixedCase', 'Value' ], [ q{with "quotes" and 'single' \\ %s %I}, q{"v" 'x' \\ $1} ], [ "new\nline\ttab", "new\nline" ],
		[ 'x' x 63, 'y' x 63 ], [ "\xc3\xa4" x 31, "\xe2\x82\xac" ], [ 'select', 'table' ])
);

value($node, $_->[1]) foreach @tables;
value($node, 'CREATE SCHEMA "Odd Schema"; CREATE TABLE "Odd Schema"."T 1" (v fieldcrypt.encrypted); INSERT INTO "Odd Schema"."T 1" SELECT ' . "$encrypt('os')");
push @tables, [ '"Odd Schema"."T 1"', '', 'SELECT v FROM "Odd Schema"."T 1"' ];

my $plaintexts = sub { "SELECT count(v), md5(string_agg(fieldcrypt.decrypt_field(v), ',' ORDER BY fieldcrypt.decrypt_field(v))) FROM ($_[0]) AS q(v)" };
my $old_keys = sub {
	"SELECT count(*) FROM ($_[0]) AS q(v) WHERE v IS NOT NULL AND fieldcrypt.key_id(v) NOT IN (SELECT key_id FROM fieldcrypt.encryption_keys WHERE state = 'active')";
};
# Everything else of the rows.
my %others = (
	arrays => q{SELECT id, array_dims(v), array_dims(w), array_dims(x), (SELECT string_agg((e IS NULL)::text, ',') FROM unnest(v) AS e) FROM arrays ORDER BY id},
	composites => q{SELECT (v).label, (v).n, array_length(w, 1), (SELECT string_agg(md5(u.label) || u.n, ',') FROM unnest(w) AS u), (x).n, md5((x).note), v IS NULL, x IS NULL, (y).label FROM composites ORDER BY 2, 1, 3},
	row_types => 'SELECT n, (r).id FROM row_types ORDER BY n',
	generated => 'SELECT id, twice FROM generated ORDER BY id',
	compressed => 'SELECT md5(other) FROM compressed ORDER BY 1',
	dropped => 'SELECT id, md5(c) FROM dropped ORDER BY 1',
	added => 'SELECT id, note, nothing, after FROM added ORDER BY 1',
	plain => 'SELECT n, v IS NULL FROM plain ORDER BY 1',
	partitioned => 'SELECT tableoid::regclass, id, region FROM partitioned ORDER BY id');
my (%before, %others_before);
$before{ $_->[0] } = value($node, $plaintexts->($_->[2])) foreach @tables;
$others_before{$_} = value($node, $others{$_}) foreach keys %others;

# What is skipped and listed.
value($node, <<SQL);
CREATE MATERIALIZED VIEW seen AS SELECT v FROM plain;
CREATE EXTENSION file_fdw;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE far (v fieldcrypt.encrypted) SERVER files OPTIONS (filename '/dev/null');
CREATE TABLE keyed (n int, v fieldcrypt.encrypted) PARTITION BY HASH (v);
CREATE TABLE keyed_0 PARTITION OF keyed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE keyed_1 PARTITION OF keyed FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO keyed SELECT i, $encrypt('keyed ' || i) FROM generate_series(1, 20) AS i;
CREATE VIEW a_view AS SELECT v FROM plain;
SQL
my $other = session($node);
$other->value("CREATE TEMPORARY TABLE theirs (v fieldcrypt.encrypted); INSERT INTO theirs SELECT $encrypt('theirs')");

value($node, "CALL fieldcrypt.rotate_keys(force => true)");
foreach my $table (@tables)
{
	next if $table->[0] =~ /^(nothing|only_null)$/;
	cmp_ok(value($node, $old_keys->($table->[2])), '>', 0, "$table->[0] =~ before: values on old keys") if $table->[0] eq 'plain';
}
my $run = runs_clean('rows_per_second => 0, batch_size => 37', 'the whole database, in small batches',
	before => "CREATE TEMPORARY TABLE mine (v fieldcrypt.encrypted) ON COMMIT PRESERVE ROWS; INSERT INTO mine SELECT $encrypt('mine'); CALL fieldcrypt.rotate_keys(force => true);");
foreach my $table (@tables)
{
	(my $name = $table->[0]) =~ s/[\n\t]/ /g;
	gives($node, $old_keys->($table->[2]), '0', "$name: no value is on an old key");
	gives($node, $plaintexts->($table->[2]), $before{ $table->[0] }, '  and every plaintext is the same');
}
gives($node, $others{$_}, $others_before{$_}, "$_: the rest of the rows is the same") foreach sort keys %others;
gives($node, 'SELECT count(*) FROM generated WHERE kid <> fieldcrypt.key_id(v) OR NOT v OPERATOR(fieldcrypt.*=) copied', '0', 'stored generated columns follow the new values');
gives($node, 'SET enable_seqscan = off; SELECT count(*) FROM generated WHERE fieldcrypt.key_id(v) = (SELECT max(key_id) FROM fieldcrypt.encryption_keys WHERE tenant = \'default\' AND state = \'active\')', '60', 'and so does an index on an expression');
gives($node, 'SELECT sum(pg_column_size(d.*)) < 60 * 6000 FROM dropped AS d', 't', 'what dropped columns held is not carried along');

my %problem = (
	'public.seen.v' => qr/materialized view/,
	'public.far.v' => qr/foreign table/,
	'public.keyed_0.v' => qr/partition key/,
	'public.keyed_1.v' => qr/partition key/,
	'pg_temp_\d+.theirs.v' => qr/temporary table of another session/,
	'public.generated.copied' => qr/generated column/);
foreach my $column (sort keys %problem)
{
	like($run->{err}, qr/NOTICE: .*\b$column is left alone: .*$problem{$column}/, "skipped and said: $column");
}
unlike($run->{err}, qr/\ba_view\b/, 'a view is not spoken of');
gives($node, "SELECT count(*) FROM (SELECT v FROM keyed) AS q WHERE fieldcrypt.key_id(v) NOT IN (SELECT key_id FROM fieldcrypt.encryption_keys WHERE state = 'active')", '20', 'a partition key stays as it is');
$other->gives('SELECT fieldcrypt.decrypt_field(v) FROM theirs', 'theirs', "another session's temporary table is as it was");
{
	my $result = $other->run("CALL fieldcrypt.reencrypt('theirs', rows_per_second => 0)");
	is("@{ $result->{sqlstates} }", '', 'a session re-encrypts a temporary table of its own') or diag $result->{err};
	$other->gives("SELECT fieldcrypt.decrypt_field(v), state FROM theirs JOIN fieldcrypt.encryption_keys ON key_id = fieldcrypt.key_id(v)", 'theirs|active', '  to the active key');
}
refused($node, "CALL fieldcrypt.reencrypt('keyed')", '42809', qr/HINT/, 'refused: a table whose only encrypted column is the partition key');
# Counted: exactly what is there.
foreach my $table (grep { $_->[0] =~ /^(plain|arrays|composites|generated|added|row_types)$/ } @tables)
{
	my $there = value($node, "SELECT count(v) FROM ($table->[2]) AS q(v)");
	gives($node, "SELECT sum((c ->> 'values')::int) FROM jsonb_array_elements(fieldcrypt_internal.count_keys('$table->[0]'::regclass)::jsonb) AS c", $there, "$table->[0]: every value is counted");
	gives($node, "SELECT count(*) FROM jsonb_array_elements(fieldcrypt_internal.count_keys('$table->[0]'::regclass)::jsonb) AS c WHERE (c ->> 'key_id')::bigint NOT IN (SELECT key_id FROM fieldcrypt.encryption_keys WHERE state = 'active')", '0', '  none on an old key');
}
# A part of a tree.
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
runs_clean("'partitioned_a', rows_per_second => 0", 'a partition that is partitioned');
gives($node, "SELECT region, count(*) FROM partitioned WHERE fieldcrypt.key_id(v) IN (SELECT key_id FROM fieldcrypt.encryption_keys WHERE state = 'active') GROUP BY 1", 'a|150', 'does its own partitions, and no other');
runs_clean("'ancestor', rows_per_second => 0", 'a table with children');
gives($node, $old_keys->('SELECT v FROM ancestor UNION ALL SELECT w FROM child'), '0', 'does the children, to the last, and the columns that only they have');
runs_clean("'partitioned', rows_per_second => 0", 'a partitioned table');
gives($node, $old_keys->('SELECT v FROM partitioned'), '0', 'does all its partitions');
$other->close;

# Huge values: the memory of the backend does not grow with them.
value($node, <<SQL);
CREATE TABLE huge (id int PRIMARY KEY, other bytea, v fieldcrypt.encrypted, w fieldcrypt.encrypted);
ALTER TABLE huge ALTER other SET STORAGE EXTERNAL;
INSERT INTO huge SELECT i, decode(repeat('ab', 100000), 'hex'), fieldcrypt.encrypt_field_bytea(decode(repeat(to_hex(16 + i), 1000000), 'hex')), $encrypt('w') FROM generate_series(1, 12) AS i;
SQL
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
my $digests = 'SELECT id, md5(other), md5(fieldcrypt.decrypt_field_bytea(v)), fieldcrypt.decrypt_field(w) FROM huge ORDER BY id';
my $huge_before = value($node, $digests);
my $session = session($node);
my $pid = $session->server_process;
my $peak = sub { slurp_file("/proc/$pid/status") =~ /^VmHWM:\s+(\d+)/m or die 'no VmHWM'; return $1 };
$session->value("CALL fieldcrypt.reencrypt('plain', rows_per_second => 0)");
my $peak_before = $peak->();
$session->value("CALL fieldcrypt.reencrypt('huge', rows_per_second => 0)");
my $growth = $peak->() - $peak_before;
# Shared buffers that are touched count for a process: the values, twice, and their new versions.
cmp_ok($growth, '<', 50_000, "12 values of 1 MB: the memory of the backend grew by $growth kB");
gives($node, $digests, $huge_before, '  and they are the same');
gives($node, $old_keys->('SELECT v FROM huge UNION ALL SELECT w FROM huge'), '0', '  on the new key');
value($node, "INSERT INTO huge SELECT i, NULL, fieldcrypt.encrypt_field_bytea(decode(repeat(to_hex(16 + i), 8000000), 'hex')), NULL FROM generate_series(101, 103) AS i");
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
$huge_before = value($node, $digests);
$session->value("CALL fieldcrypt.reencrypt('huge', rows_per_second => 0)");
$growth = $peak->() - $peak_before;
cmp_ok($growth, '<', 120_000, "3 of 8 MB: it grew by $growth kB, a few values' worth and the buffers");
cmp_ok($session->value('SELECT sum(total_bytes) FROM pg_backend_memory_contexts'), '<', 8_000_000, '  and gave it back');
gives($node, $digests, $huge_before, '  and they are the same');
gives($node, $old_keys->('SELECT v FROM huge UNION ALL SELECT w FROM huge'), '0', '  on the new key');
$session->close;
value($node, 'DROP TABLE huge');

# Contexts.
value($node, <<SQL);
CREATE TABLE bound (id int PRIMARY KEY, name text, c fieldcrypt.encrypted, e fieldcrypt.encrypted, n fieldcrypt.encrypted);
INSERT INTO bound SELECT i, 'name ' || i, $encrypt('c' || i, 'bound.c'), $encrypt('e' || i, 'bound.e/' || i), $encrypt('n' || i) FROM generate_series(1, 30) AS i;
CALL fieldcrypt.rotate_keys(force => true);
SQL
my $on_old = sub { my ($column, $table) = @_; value($node, $old_keys->("SELECT $column FROM " . ($table // 'bound'))) };
my $image = 'SELECT id, md5(c::bytea), md5(e::bytea) FROM bound ORDER BY id';
my $image_before = value($node, $image);
my $warned = sub {
	my ($arguments, $like, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $result = reencrypt($arguments);
	is("@{ $result->{sqlstates} }", '', "$name: no error") or diag $result->{err};
	like($result->{err}, $like, "  a warning");
	return;
};
$warned->("'bound', rows_per_second => 0", qr/WARNING:  KF025: 30 rows .*could not be/, 'no context is known');
gives($node, 'SELECT column_name, error_code, count(*), count(DISTINCT row_key), min(key_id::text) <> \'\' FROM fieldcrypt.reencryption_failures GROUP BY 1, 2 ORDER BY 1', "c|KF002|30|30|t\ne|KF002|30|30|t", '  both columns are listed as not authentic');
gives($node, $image, $image_before, '  nothing of them has changed');
is($on_old->('n'), '0', '  the column without a context is done');
gives($node, "SELECT fieldcrypt.set_column_context('bound', 'c', constant => 'bound.c')", '', 'a constant');
gives($node, "SELECT fieldcrypt.set_column_context('bound', 'e', expression => '''bound.f/'' || id')", '', 'a wrong expression');
$warned->("'bound', rows_per_second => 0", qr/WARNING:  KF025: 30 rows/, 'a wrong context');
is($on_old->('c'), '0', '  the other column is done');
gives($node, 'SELECT column_name, error_code, count(*) FROM fieldcrypt.reencryption_failures GROUP BY 1, 2', 'e|KF002|30', '  the wrong one is listed, the failures of the last run are gone');
gives($node, 'SELECT count(*) FROM bound WHERE fieldcrypt.decrypt_field(e, \'bound.e/\' || id) = \'e\' || id AND fieldcrypt.decrypt_field(c, \'bound.c\') = \'c\' || id', '30', '  and unharmed');
gives($node, "SELECT fieldcrypt.set_column_context('bound', 'e', expression => '''bound.e/'' || id')", '', 'the right expression');
runs_clean("'bound', rows_per_second => 0", 'with it');
is($on_old->('e'), '0', '  all is done');
gives($node, 'SELECT count(*) FROM fieldcrypt.reencryption_failures', '0', '  nothing is listed any more');
gives($node, 'SELECT count(*) FROM bound WHERE fieldcrypt.decrypt_field(e, \'bound.e/\' || id) = \'e\' || id AND fieldcrypt.decrypt_field(c, \'bound.c\') = \'c\' || id', '30', '  and still bound to what it was');

# An expression that is NULL or fails for some rows: these are listed, the others are done.
value($node, "UPDATE bound SET name = NULL WHERE id = 7; UPDATE bound SET name = 'ZERO-CANARY' WHERE id = 9; CALL fieldcrypt.rotate_keys(force => true)");
value($node, q{SELECT fieldcrypt.set_column_context('bound', 'e', expression => '''bound.e/'' || id || substr(name, 1, 0) || repeat('''', 1 / CASE name WHEN ''ZERO-CANARY'' THEN 0 ELSE 1 END)')});
$warned->("'bound', rows_per_second => 0", qr/WARNING:  KF025: 2 rows/, 'an expression that fails for one row and is NULL for another');
gives($node, q{SELECT (row_key ->> 'id')::int, error_code FROM fieldcrypt.reencryption_failures ORDER BY 1}, "7|22004\n9|22012", '  these two are listed, by their primary key');
is($on_old->('e'), '2', '  the others are done');
gives($node, q{SELECT count(*) FROM fieldcrypt.reencryption_failures AS f WHERE f::text ~ 'CANARY'}, '0', '  no text of the row is listed');
value($node, q{SELECT fieldcrypt.set_column_context('bound', 'e', expression => '''bound.e/'' || (id || CASE name WHEN ''ZERO-CANARY'' THEN name ELSE '''' END)::int')});
value($node, "UPDATE bound SET name = '' WHERE id = 7");
$warned->("'bound', rows_per_second => 0", qr/WARNING:  KF025: 1 rows/, 'an expression whose error quotes the row');
gives($node, q{SELECT count(*), count(*) FILTER (WHERE f::text ~ 'CANARY') FROM fieldcrypt.reencryption_failures AS f}, '1|0', '  no text of the row is listed');

# What an expression may be.
foreach my $case (
	[ '(SELECT 1)', '0A000' ], [ 'count(*)', '42803' ], [ 'generate_series(1, 2)::text', '0A000' ], [ 'row_number() OVER ()', '42P20' ],
	[ 'nothing_like_it', '42703' ], [ 'id) FROM pg_class WHERE (true', '42601' ], [ 'id); DROP TABLE bound; SELECT (1', '42601' ],
	[ 'id) UNION SELECT (id', '42601' ], [ 'id) INTO TEMPORARY x FROM bound ORDER BY (1', '42601' ], [ '', '' ], [ ' ', '42601' ], [ '$1', '42P02' ], [ 'id) AS (x', '42601' ],
	[ 'DISTINCT id', '42601' ], [ 'a_function_that_is_not(id)', '42883' ], [ "id::text COLLATE nowhere", '42704' ])
{
	my ($expression, $sqlstate) = @$case;
	next if $sqlstate eq '';
	(my $literal = $expression) =~ s/'/''/g;
	refused($node, "SELECT fieldcrypt.set_column_context('bound', 'e', expression => '$literal')", $sqlstate, "refused as a context: $expression");
}
refused($node, "SELECT fieldcrypt.set_column_context('bound', 'e', 'a', 'name')", '22023', qr/HINT/, 'refused: a constant and an expression');
refused($node, "SELECT fieldcrypt.set_column_context('bound', 'name', 'a')", '42703', qr/no encrypted column "name"/, 'refused: a column that is not encrypted');
refused($node, "SELECT fieldcrypt.set_column_context('bound', 'absent', 'a')", '42703', 'refused: a column that is not there');
refused($node, "SELECT fieldcrypt.set_column_context('bound', 'e', $_)", '22004', "refused: $_") foreach 'NULL', "'a', NULL";
refused($node, "SELECT fieldcrypt.set_column_context('bound', NULL, 'a')", '22004', 'refused: no column');
refused($node, "SELECT fieldcrypt.set_column_context(NULL, 'e', 'a')", '22004', 'refused: no table');
gives($node, q{SELECT fieldcrypt.set_column_context('bound', 'e', expression => 'name -- and a remark')}, '', 'a remark after it');
refused($node, q{SELECT fieldcrypt.set_column_context('bound', 'e', expression => 'CASE WHEN bound.id > 0 THEN bound.* END')}, '42P17', 'refused: a whole row');
gives($node, q{SELECT fieldcrypt.set_column_context('bound', 'e', expression => '''bound.e/'' || id')}, '', 'back to what it was');
value($node, q{UPDATE bound SET name = 'n'});
runs_clean("'bound', rows_per_second => 0", 'and nothing is lost');

# A parent's contexts are those of its partitions; a partition's own come first. They follow renames.
value($node, <<SQL);
CREATE TABLE tree (id int, v fieldcrypt.encrypted, w fieldcrypt.encrypted) PARTITION BY RANGE (id);
CREATE TABLE tree_1 PARTITION OF tree FOR VALUES FROM (1) TO (11);
CREATE TABLE tree_2 (w fieldcrypt.encrypted, v fieldcrypt.encrypted, id int);
ALTER TABLE tree ATTACH PARTITION tree_2 FOR VALUES FROM (11) TO (21);
INSERT INTO tree SELECT i, $encrypt('v' || i, 'tree.v/' || i), $encrypt('w' || i, CASE WHEN i < 11 THEN 'tree.w' ELSE 'tree_2.w' END) FROM generate_series(1, 20) AS i;
SELECT fieldcrypt.set_column_context('tree', 'v', expression => '''tree.v/'' || id');
SELECT fieldcrypt.set_column_context('tree', 'w', 'tree.w');
SELECT fieldcrypt.set_column_context('tree_2', 'w', 'tree_2.w');
CALL fieldcrypt.rotate_keys(force => true);
SQL
runs_clean("'tree', rows_per_second => 0", 'contexts of the partitioned table, and of a partition');
is($on_old->('v', 'tree') + $on_old->('w', 'tree'), 0, '  all is done');
gives($node, q{SELECT count(*) FROM tree WHERE fieldcrypt.decrypt_field(v, 'tree.v/' || id) = 'v' || id AND fieldcrypt.decrypt_field(w, CASE WHEN id < 11 THEN 'tree.w' ELSE 'tree_2.w' END) = 'w' || id}, '20', '  bound to what it was');
value($node, 'ALTER TABLE bound RENAME TO bound_2; ALTER TABLE tree RENAME COLUMN w TO ww; CALL fieldcrypt.rotate_keys(force => true)');
runs_clean("'bound_2', rows_per_second => 0", 'a renamed table');
runs_clean("'tree', rows_per_second => 0", 'a renamed column');
gives($node, q{SELECT count(*) FROM bound_2 WHERE fieldcrypt.decrypt_field(e, 'bound.e/' || id) = 'e' || id AND fieldcrypt.decrypt_field(c, 'bound.c') = 'c' || id}, '30', '  and nothing is lost');
value($node, q{SELECT fieldcrypt.set_column_context('bound_2', 'c', 'bound.c'), fieldcrypt.set_column_context('bound_2', 'e', '', '''bound.e/'' || id'), fieldcrypt.set_column_context('tree', 'ww', 'tree.w'), fieldcrypt.set_column_context('tree_2', 'ww', 'tree_2.w')});
runs_clean('rows_per_second => 0', 'with contexts for the new names');
is($on_old->('c', 'bound_2') + $on_old->('e', 'bound_2') + $on_old->('v', 'tree') + $on_old->('ww', 'tree'), 0, '  all is done');

# A setting that changes how names are written does not lose a context.
value($node, q{SET quote_all_identifiers = on; SELECT fieldcrypt.set_column_context('bound_2', 'c', 'bound.c'); CALL fieldcrypt.rotate_keys(force => true)});
runs_clean("'bound_2', rows_per_second => 0", 'a context is found without quote_all_identifiers');
value($node, q{CALL fieldcrypt.rotate_keys(force => true)});
runs_clean("'bound_2', rows_per_second => 0", 'and with it', before => 'SET quote_all_identifiers = on;');

# Contexts in composites and arrays: one for all values of the row's column.
value($node, <<SQL);
CREATE TABLE nested (id int, v part[]);
INSERT INTO nested SELECT i, ARRAY[ROW('a', $encrypt('a' || i, 'nested/' || i), 1), ROW('b', $encrypt('b' || i, 'nested/' || i), 2)]::part[] FROM generate_series(1, 20) AS i;
SELECT fieldcrypt.set_column_context('nested', 'v', expression => '''nested/'' || id');
CALL fieldcrypt.rotate_keys(force => true);
UPDATE nested SET v = v || ROW('c', $encrypt('c', 'elsewhere'), 3)::part WHERE id = 5;
CALL fieldcrypt.rotate_keys(force => true);
SQL
$warned->("'nested', rows_per_second => 0", qr/WARNING:  KF025: 1 rows/, 'an array with one value of another context');
is($on_old->('(unnest(v)).secret', 'nested'), '1', '  the rest of the array is done');
gives($node, q{SELECT count(*) FROM nested, unnest(v) AS u WHERE fieldcrypt.decrypt_field(u.secret, CASE u.label WHEN 'c' THEN 'elsewhere' ELSE 'nested/' || id END) IS NOT NULL}, '41', '  and all are readable');

# A database of another encoding.
create_database($node, 'latin1', with => q{ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
{
	my %latin = (db => 'latin1', env => { PGCLIENTENCODING => 'UTF8' });
	value($node, <<SQL, %latin);
CREATE TABLE "t\xc3\xa4bel" (id text PRIMARY KEY, "spalt\xc3\xa9" fieldcrypt.encrypted, v fieldcrypt.encrypted, bad fieldcrypt.encrypted);
INSERT INTO "t\xc3\xa4bel" SELECT '\xc3\xb6' || i, $encrypt('\xc3\xbc' || i, 't\xc3\xa4bel/\xc3\xb6' || i), $encrypt('\xc3\xbc', '\xc3\xa6'), $encrypt('x', 'y') FROM generate_series(1, 20) AS i;
SELECT fieldcrypt.set_column_context('t\xc3\xa4bel', 'spalt\xc3\xa9', expression => '''t\xc3\xa4bel/'' || id');
SELECT fieldcrypt.set_column_context('t\xc3\xa4bel', 'v', '\xc3\xa6');
CALL fieldcrypt.rotate_keys(force => true);
SQL
	my $result = run_sql($node, "CALL fieldcrypt.reencrypt('t\xc3\xa4bel', rows_per_second => 0)", %latin);
	is("@{ $result->{sqlstates} }", '', 'LATIN1: the run goes through') or diag $result->{err};
	gives($node, qq{SELECT count(*) FROM "t\xc3\xa4bel" WHERE fieldcrypt.decrypt_field("spalt\xc3\xa9", 't\xc3\xa4bel/' || id) = '\xc3\xbc' || ltrim(id, '\xc3\xb6')}, '20', '  values, contexts and names', %latin);
	gives($node, qq{SELECT count(*) FROM "t\xc3\xa4bel", fieldcrypt.encryption_keys AS k WHERE k.key_id = fieldcrypt.key_id("spalt\xc3\xa9") AND k.state = 'active' AND fieldcrypt.key_id(v) = k.key_id}, '20', '  are on the active key', %latin);
	gives($node, q{SELECT row_key ->> 'id', column_name, table_name FROM fieldcrypt.reencryption_failures ORDER BY 1 LIMIT 1}, "\xc3\xb61|bad|public.\"t\xc3\xa4bel\"", '  and the rows that failed are named', %latin);
}

unlike(slurp_file($node->logfile), qr/WARNING:.*leak|still referenced|not closed/i, 'nothing leaked');
no_crash($node);
$node->stop;
done_testing();

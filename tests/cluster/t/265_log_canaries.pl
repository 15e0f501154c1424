# A value that occurs nowhere else, decrypted or given as a literal, driven into every kind of message that the server has for it, with
# everything logged that can be, and with errors alone: no trace of it is in the log, as it is or in hex.

use strict;
use warnings;

use FieldcryptTest;
use LogCanary;
use PostgreSQL::Test::Utils;
use ServerLog;
use Test::More;
use Wire;

chomp(my $folder = `$ENV{PG_CONFIG} --pkglibdir`);
my %has = map { $_ => 1 } grep { -e "$folder/$_.so" } qw(auto_explain pgaudit dblink postgres_fdw);
note join ' ', 'libraries:', sort keys %has;
my $preload = join ', ', (grep { $has{$_} } qw(auto_explain pgaudit)), 'pg_fieldcrypt';
my $node = new_cluster('primary', conf => everything_logged() . <<"CONF");
shared_preload_libraries = '$preload'
max_prepared_transactions = 5
log_temp_files = 0
log_autovacuum_min_duration = 0
log_connections = on
log_disconnections = on
pgaudit.log = 'all'
pgaudit.log_parameter = on
pgaudit.log_catalog = on
auto_explain.log_nested_statements = on
auto_explain.log_analyze = on
auto_explain.log_verbose = on
CONF
value($node, <<'SQL');
CREATE TYPE mood AS ENUM ('good');
CREATE TYPE pair AS (a int, b int);
CREATE DOMAIN short AS text CHECK (length(VALUE) < 3);
CREATE DOMAIN digits AS varchar(2);
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted, email text, age int CHECK (age > 0), code varchar(5), at date, valid int4range, EXCLUDE USING gist (valid WITH &&));
CREATE UNIQUE INDEX ON patients (lower(email));
CREATE TABLE visits (id int, note text UNIQUE REFERENCES visits (note), held fieldcrypt.encrypted, n int GENERATED ALWAYS AS (length(note)) STORED);
CREATE TABLE by_list (id int, note text, held fieldcrypt.encrypted) PARTITION BY LIST (note);
CREATE TABLE by_list_x PARTITION OF by_list FOR VALUES IN ('x');
CREATE VIEW adults AS SELECT * FROM patients WHERE email = 'x' WITH CHECK OPTION;
CREATE TABLE plain (id int PRIMARY KEY, t text);
CREATE PROCEDURE again(value text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM fieldcrypt.encrypt_field(value);
    COMMIT;
    PERFORM value::int;
EXCEPTION WHEN OTHERS THEN
    RAISE NOTICE 'caught: %', SQLERRM;
    RAISE;
END $$;
SQL
my $log = LogCanary->new($node);

# Decrypted: what becomes of "d".
my @decrypted = (
	# Types and what reads them.
	map({ "d::$_" } qw(int bigint smallint numeric real float8 boolean date time timetz timestamp timestamptz interval uuid json jsonb xml inet cidr macaddr macaddr8 money bit(3) varbit oid xid xid8 cid tid
		pg_lsn point line lseg box path polygon circle tsquery int4range nummultirange mood pair short digits jsonpath txid_snapshot pg_snapshot "char"::int int[] int2vector oidvector
		regclass regproc regprocedure regoper regoperator regtype regrole regnamespace regcollation regconfig regdictionary aclitem fieldcrypt.encrypted)),
	q`(d || '(')::regprocedure`, q`('+.' || d)::regoper`, q`(d || '.a.b.c')::regclass`, q`(d || '(')::regtype`, q`('"' || d)::regclass`, q`('{' || d)::int[]`, q`('(' || d)::pair`, q`('[' || d)::int4range`,
	q`('{"a": ' || d)::jsonb`, q`('<a>' || d)::xml`, q`('$.' || d || '(')::jsonpath`, q`(d || ' &')::tsquery`, q`('2001-01-01 00:00 ' || d)::timestamptz`, q`encode(convert_to(d, 'UTF8'), 'hex')::numeric`,
	# Functions that say what they did not like.
	q`to_date(d, 'YYYY-MM-DD')`, q`to_timestamp(d, 'Mon')`, q`to_number(d, d)`, q`date_trunc(d, now())`, q`date_part(d, now())`, q`extract(year FROM d::date)`, q`now() AT TIME ZONE d`, q`make_timestamptz(1, 1, 1, 1, 1, 1, d)`,
	q`decode(d, 'base64')`, q`decode(d, 'hex')`, q`decode('x', d)`, q`encode('x', d)`, q`convert_to(d, d)`, q`convert_from('x', d)`, q`convert_from(decode(md5(d), 'hex') || d::bytea, 'UTF8')`, q`convert_to(d || U&'\2603', 'LATIN1')`,
	q`regexp_match(d, d || '(')`, q`'x' ~ (d || '[')`, q`regexp_replace(d, 'x', 'y', d)`, q`substring(d SIMILAR d ESCAPE d)`, q`d LIKE d ESCAPE d`, q`format('%' || d, 1)`, q`format(d || '%1$Q')`, q`overlay(d PLACING d FROM -5)`,
	q`set_config(d, 'x', true)`, q`set_config('work_mem', d, true)`, q`set_config('timezone', d, true)`, q`set_config('search_path', d || ',"', true)`, q`set_config('client_encoding', d, true)`, q`set_config('role', d, true)`,
	q`set_config('datestyle', d, true)`, q`current_setting(d)`, q`pg_size_bytes(d)`, q`nextval(d)`, q`currval(d)`, q`setval(d, 1)`, q`pg_get_serial_sequence(d, d)`, q`pg_get_serial_sequence('plain', d)`,
	q`has_table_privilege(d, 'SELECT')`, q`has_table_privilege('plain', d)`, q`has_column_privilege('plain', d, 'SELECT')`, q`has_function_privilege(d, 'EXECUTE')`, q`has_schema_privilege(d, 'USAGE')`, q`pg_has_role(d, 'USAGE')`,
	q`pg_read_file(d)`, q`pg_ls_dir(d)`, q`pg_stat_file(d)`, q`lo_import(d)`, q`lo_export(1, d)`, q`pg_relation_filepath(d)`, q`pg_get_viewdef(d)`, q`row_security_active(d)`, q`txid_status(length(d)::bigint * 1000000)`,
	q`pg_create_restore_point(d)`, q`pg_drop_replication_slot(d)`, q`pg_logical_slot_get_changes(d, NULL, NULL)`, q`pg_notify(repeat(d, 20), d)`, q`pg_notify(NULL, d)`, q`ts_headline(d, d::tsquery)`, q`to_tsvector(d::regconfig, d)`,
	q`query_to_xml('SELECT ''' || d || '''::int', true, false, '')`, q`table_to_xml(d, true, false, '')`, q`xpath(d || '[', '<a/>')`, q`xmlparse(document d)`, q`xmlpi(name xml, d)`, q`jsonb_path_query('{}', ('$ ? (' || d)::jsonpath)`,
	q{json_populate_record(NULL::pair, ('{"a": "' || d || '"}')::json)}, q{jsonb_set('{"a": []}', ARRAY['a', d], '1')}, q{jsonb_object(ARRAY[d])}, q{('{"a": "' || d || '"}')::jsonb -> 'a' #> ARRAY[d]}, q{(('{"a": "' || d || '"}')::jsonb -> 'a')::int},
	q`array_fill(d, ARRAY[-1])`, q`string_to_array(d, '')::int[]`, q`('{' || d || '}')::int[]`, q`unnest(ARRAY[d])::int`, q`generate_series(1, d::int)`, q`width_bucket(1, ARRAY[d]::int[])`, q`repeat(d, 100000000)`,
	q`fieldcrypt.decrypt_field(d::fieldcrypt.encrypted)`, q`fieldcrypt.decrypt_field_as(ssn, NULL::int)`, q`fieldcrypt.decrypt_field_as(ssn, NULL::mood)`, q`fieldcrypt.decrypt_field(ssn, d)`, q`fieldcrypt.encrypt_field_jsonb(d::jsonb)`,
	q`1 / (length(d) - length(d))`, q`(SELECT d FROM generate_series(1, 2))`, q`d COLLATE "C" < d COLLATE "POSIX"`, q`nowhere(d)`, q`d + 1`, q`d.x`);
# Numbers that are values: 73195 is the plaintext in them.
my @numbers = (
	'make_date(n, 13, 1)', 'make_time(n % 60, 99, n)', 'make_interval(n * 1000000)', 'chr(n * 100)', 'n::smallint', 'n::int * 1000000', 'n::numeric(3, 1)', 'to_timestamp(n::float8 * 1e15)', 'substring($$x$$, 1, -n)', 'set_byte($$x$$::bytea, n, 1)',
	'get_bit($$x$$::bytea, n)', 'n::bit(3)::int / 0', 'array_fill(1, ARRAY[n * 10000])', 'generate_series(1, 2, n - n)', 'lpad($$x$$, n * 100000)', 'setseed(n)', 'pg_advisory_xact_lock(n) IS NULL OR 1 / 0 > n', '(ARRAY[1])[n:n]::int / 0', 'lo_get(n)', 'loread(n, 1)',
	'pg_catalog.nth_value(n, 0) OVER ()', 'ntile(n - n) OVER ()', 'factorial(n * 10000)', 'power(n, 100000)', 'sqrt(-n)', 'ln(-n)', 'set_config($$work_mem$$, n::text || $$x$$, true)', 'pg_size_bytes(n || $$xB$$)', 'n::oid::regclass::int', 'pg_get_functiondef(n)', 'format_type(n, n)::int',
	'pg_relation_size(n)::text::date', 'timestamp $$epoch$$ + n * interval $$1 million years$$', 'percentile_cont(n) WITHIN GROUP (ORDER BY n)', 'regexp_substr($$x$$, $$x$$, -n)', 'to_char(n, $$EEEE99$$)');

# Literals, in statements about encrypted values.
my @statements = (
	q{INSERT INTO patients (id, email) VALUES (1, 'CANARY'), (1, 'CANARY')}, q{INSERT INTO patients (id, email, age) VALUES (1, 'CANARY', -1)}, q{INSERT INTO patients (id, code) VALUES (1, 'CANARY')}, q{INSERT INTO patients (id, email) VALUES (NULL, 'CANARY')},
	q{INSERT INTO patients (id, email) VALUES (1, 'CANARY'), (2, 'canary')}, q{INSERT INTO patients (id, valid, email) VALUES (1, '[1,5)', 'CANARY'), (2, '[3,4)', 'x')}, q{INSERT INTO visits (id, note) VALUES (1, 'CANARY')}, q{INSERT INTO visits VALUES (1, 'CANARY', NULL, 5)},
	q{INSERT INTO by_list VALUES (1, 'CANARY')}, q{INSERT INTO by_list_x VALUES (1, 'CANARY')}, q{UPDATE by_list SET note = 'CANARY'}, q{INSERT INTO adults (id, email) VALUES (1, 'CANARY')}, q{INSERT INTO patients (ssn) VALUES ('CANARY')},
	q{INSERT INTO patients (id, email) VALUES (1, 'CANARY') ON CONFLICT (code) DO NOTHING}, q{MERGE INTO patients USING (VALUES (1, 'CANARY'), (1, 'CANARY')) AS v (i, e) ON id = i WHEN NOT MATCHED THEN INSERT (id, email) VALUES (i, e)},
	q{ALTER TABLE patients ADD CHECK (email <> 'CANARY'), ADD x int DEFAULT 'CANARY'}, q{CREATE INDEX ON patients ((email = 'CANARY')) WHERE nothing}, q{CREATE VIEW v AS SELECT 'CANARY'::int FROM patients}, q{CREATE TABLE patients (a text DEFAULT 'CANARY')},
	q{COMMENT ON COLUMN patients.nothing IS 'CANARY'}, q{SECURITY LABEL ON TABLE patients IS 'CANARY'}, q{ALTER TABLE patients ALTER email SET DEFAULT 'CANARY', DROP nothing}, q{CREATE POLICY p ON patients USING (email = 'CANARY' AND nothing)},
	q{CREATE TRIGGER t BEFORE INSERT ON patients FOR EACH ROW WHEN (NEW.email = 'CANARY') EXECUTE FUNCTION nowhere('CANARY')}, q{CREATE RULE r AS ON INSERT TO patients WHERE NEW.email = 'CANARY' DO ALSO SELECT nothing},
	q{COPY patients TO '/nowhere/CANARY'}, q{COPY patients FROM '/nowhere/CANARY'}, q{COPY (SELECT 'CANARY'::int FROM patients) TO STDOUT}, q{COPY patients TO STDOUT (DELIMITER 'CANARY')}, q{COPY patients TO STDOUT (NULL 'CANARY', FORMAT 'CANARY')},
	q{DO $$ BEGIN PERFORM fieldcrypt.encrypt_field('CANARY'); RAISE EXCEPTION 'CANARY' USING DETAIL = 'CANARY', HINT = 'CANARY', COLUMN = 'CANARY', TABLE = 'CANARY', CONSTRAINT = 'CANARY', DATATYPE = 'CANARY', SCHEMA = 'CANARY'; END $$},
	q{DO $$ BEGIN PERFORM fieldcrypt.encrypt_field('x'); RAISE unique_violation USING MESSAGE = 'CANARY', DETAIL = 'Key (a)=(b) CANARY already exists (CANARY) CANARY'; END $$}, q{DO $$ BEGIN ASSERT 1 = (SELECT count(*) + 5 FROM patients), 'CANARY'; END $$},
	q{DO $$ DECLARE v int; BEGIN SELECT email INTO STRICT v FROM patients WHERE email = 'CANARY'; END $$}, q{DO $$ #print_strict_params on
		DECLARE v text; w text := 'CANARY'; BEGIN SELECT email INTO STRICT v FROM patients WHERE email = w; END $$}, q{DO $$ DECLARE v int; BEGIN v := (SELECT 'CANARY' || count(*) FROM patients); END $$},
	q{DO $$ DECLARE v patients; BEGIN v.nothing := 'CANARY'; END $$}, q{DO $$ BEGIN EXECUTE 'SELECT 1 FROM patients WHERE ' || quote_literal('CANARY') || ' nonsense'; END $$}, q{DO $$ BEGIN EXECUTE 'SELECT $1::int FROM patients, (VALUES (1)) AS x' USING 'CANARY'; END $$},
	q{DO $$ BEGIN FOR i IN 1 .. (SELECT 'CANARY' || count(*) FROM patients) LOOP END LOOP; END $$}, q{DO $$ BEGIN CASE (SELECT 'CANARY' || count(*) FROM patients) WHEN 'x' THEN NULL; END CASE; END $$}, q{DO $$ BEGIN RETURN 'CANARY', fieldcrypt.x; END $$}, q{DO $$ BEGIN fieldcrypt 'CANARY'; END $$},
	q{CALL again('CANARY')}, q{CALL fieldcrypt.nowhere('CANARY')}, q{CALL fieldcrypt.rotate_keys('CANARY', nothing => 'CANARY')}, q{SELECT fieldcrypt.nowhere('CANARY')}, q{SELECT 'CANARY' nonsense nonsense FROM patients},
	q{SELECT E'\xZZ CANARY' FROM patients}, q{SELECT U&'\ZZZZ CANARY' FROM patients}, q{SELECT B'CANARY' FROM patients}, q{SELECT X'CANARY' FROM patients}, q{SELECT 1 FROM patients ORDER BY 'CANARY'}, q{SELECT 1 FROM patients LIMIT 'CANARY'}, q{SELECT * FROM patients WHERE email = ANY ('CANARY')},
	q{SELECT 'CANARY'::patients}, q{SELECT ROW('CANARY')::patients}, q{SELECT json_populate_record(NULL::patients, '{"id": "CANARY"}')}, q{SELECT nothing FROM patients WHERE email = 'CANARY' /* CANARY */ -- CANARY}, q{EXPLAIN (NOTHING 'CANARY') SELECT 1 FROM patients}, q{EXPLAIN ANALYZE SELECT 'CANARY'::int FROM patients},
	q{SET fieldcrypt.tenant = 'CANARY' 'x'}, q{SET fieldcrypt.nowhere = 'CANARY'}, q{ALTER ROLE nobody SET fieldcrypt.tenant = 'CANARY'}, q{LISTEN x; NOTIFY patients, 'CANARY' 'x'}, q{PREPARE p(int) AS SELECT id FROM patients WHERE id = $1; EXECUTE p('CANARY')}, q{EXECUTE nowhere('CANARY')},
	q{BEGIN; SELECT fieldcrypt.encrypt_field('CANARY'); PREPARE TRANSACTION 'CANARY CANARY' 'x'}, q{CREATE STATISTICS s ON (email = 'CANARY'), nothing FROM patients}, q{CREATE PUBLICATION p FOR TABLE patients WHERE (email = 'CANARY' AND nothing)}, q{DECLARE c CURSOR FOR SELECT 'CANARY' FROM patients},
	q{TABLE patients; SELECT 1 / 0 FROM (SELECT 'CANARY' FROM patients UNION ALL SELECT 'x') AS x}, q{REFRESH MATERIALIZED VIEW patients; SELECT 'CANARY' FROM patients}, q{CREATE FUNCTION f() RETURNS text LANGUAGE sql AS 'SELECT ''CANARY''::int FROM patients'}, q{VACUUM (NOTHING 'CANARY') patients},
	q{LOCK TABLE patients; LOCK TABLE nowhere, patients IN 'CANARY' MODE}, q{CREATE TABLE x PARTITION OF by_list FOR VALUES IN ('x', 'CANARY')}, q{ALTER TABLE by_list ATTACH PARTITION patients FOR VALUES IN ('CANARY')},
	# The last: it has no end.
	q{SELECT "fieldcrypt", 'CANARY});

# Data, each in a session of its own.
my @copies = (
	"COPY patients (id, email, age) FROM STDIN;\n9\tCANARY\tCANARY\n\\.\n", "COPY patients (id) FROM STDIN;\n9\tCANARY\n\\.\n", "COPY patients (id, at) FROM STDIN (FORMAT csv);\n9,\"CANARY\n\\.\n",
	"COPY patients (id, email) FROM STDIN (FORMAT csv, HEADER match);\nid,CANARY\n9,x\n\\.\n", "COPY adults (id, email) FROM STDIN;\n9\tCANARY\n\\.\n", "COPY by_list (id, note) FROM STDIN;\n9\tCANARY\n\\.\n",
	"COPY patients (id, ssn) FROM STDIN;\n9\tCANARY\n\\.\n", "COPY patients (id, email) FROM STDIN;\n9\tCANARY\\xff\n\\.\n", "COPY visits (id, note) FROM STDIN;\n9\tCANARY\n9\tCANARY\n\\.\n");

# The settings under which each is run.
my %modes = (
	'everything' => '-c log_min_messages=debug2 -c debug_print_parse=on -c debug_print_rewritten=on -c debug_print_plan=on -c log_min_error_statement=debug5 -c auto_explain.log_min_duration=0',
	'errors' => '-c log_statement=none -c log_min_duration_statement=-1 -c pgaudit.log=none');

# A test: after these statements nothing of their canaries is in the log.
sub none_leaks
{
	my ($mode, $name, $statements, $values) = @_;
	my @canaries = map { ($log->next_canary)[0] } @$statements;
	if ($values)
	{
		my $rows = join ', ', map { "($_ + 1000, fieldcrypt.encrypt_field('$canaries[$_]'))" } 0 .. $#canaries;
		value($node, "DELETE FROM patients; INSERT INTO patients (id, ssn) VALUES $rows", env => { PGOPTIONS => $modes{errors} });
	}
	my $from = rotate_log($node);
	my $sql = "SELECT 1 / 0;\nSELECT 1;\n";
	foreach my $index (0 .. $#$statements)
	{
		my $id = $index + 1000;
		(my $statement = $statements->[$index]) =~ s/CANARY/$canaries[$index]/g;
		$statement =~ s/THIS/$id/g;
		$sql .= "$statement;\nROLLBACK;\n";
	}
	my $result = run_sql($node, $sql, env => { PGOPTIONS => $modes{$mode} });
	my $logged = since($node, $from);
	my %folded = map { ($_ => lc $logged->{$_}) } keys %$logged;
	my @leaks;
	foreach my $index (0 .. $#canaries)
	{
		foreach my $trace (lc $canaries[$index], unpack 'H*', $canaries[$index])
		{
			my @formats = grep { index($folded{$_}, $trace) >= 0 } sort keys %folded;
			push @leaks, "$statements->[$index] (@formats): " . (grep { index(lc, $trace) >= 0 } split /\n/, $logged->{ $formats[0] })[0] if @formats;
		}
	}
	is(join("\n", @leaks), '', "$mode: $name");
	my $errors = @{ $result->{sqlstates} };
	note 'the end of what the client reads: ' . substr $result->{err}, -600 if $errors <= @$statements / 2;
	cmp_ok($errors, '>', @$statements / 2, "$mode: $name: most of " . @$statements . " fail: $errors");
	return $logged;
}

my $once = 'SELECT %s FROM (SELECT ssn, fieldcrypt.decrypt_field(ssn) AS d FROM patients WHERE id = THIS OFFSET 0) AS s';
foreach my $mode (sort keys %modes)
{
	none_leaks($mode, 'casts and functions of a decrypted value', [ map { sprintf $once, $_ } @decrypted ], 1);
	none_leaks($mode, 'the same in a later statement, of a cursor', [ map { 'BEGIN; DECLARE c CURSOR FOR ' . sprintf($once =~ s/= THIS/>= THIS ORDER BY id/r, $_) . '; FETCH c' } @decrypted[ 0 .. 80 ] ], 1);
	none_leaks($mode, 'the same in DO', [ map { 'DO $do$ DECLARE d text; ssn fieldcrypt.encrypted; x text; BEGIN SELECT p.ssn, fieldcrypt.decrypt_field(p.ssn) INTO ssn, d FROM patients AS p WHERE id = THIS; x := ' . $_ . '; END $do$' } @decrypted ], 1);
	none_leaks($mode, 'statements with a literal', \@statements);
	none_leaks($mode, "COPY $_", [ $copies[$_] ]) foreach 0 .. $#copies;
	none_leaks($mode, 'the same in a prepared statement', [ map { my $s = s/'/''/gr; "DO \$do\$ BEGIN EXECUTE '$s'; END \$do\$" } grep { !/STDIN|\$do\$|^DO|^BEGIN|^DECLARE/ } @statements ]);

	# The number 73195, which no other statement here holds.
	value($node, q{DELETE FROM patients; INSERT INTO patients (id, ssn) VALUES (1, fieldcrypt.encrypt_field('73195'))}, env => { PGOPTIONS => $modes{errors} });
	my $from = rotate_log($node);
	run_sql($node, "SELECT 1 / 0;\nSELECT 1;\n" . join('', map { "SELECT $_ FROM (SELECT fieldcrypt.decrypt_field(ssn)::int AS n FROM patients WHERE id = 1 OFFSET 0) AS s;\n" } @numbers), env => { PGOPTIONS => $modes{$mode} });
	my $logged = since($node, $from);
	my @found = map { grep { /73195/ && !/\.73195|73195[\d.]* ms/ } split /\n/, $logged->{$_} } sort keys %$logged;
	is(join("\n", @found), '', "$mode: numbers");

	# Parameters, of all forms of messages of the protocol.
	my @bound = (
		'SELECT fieldcrypt.encrypt_field($1)', 'SELECT id FROM patients WHERE email = $1', 'SELECT id FROM patients WHERE id = $1', 'SELECT $1::text::int FROM patients', 'INSERT INTO patients (id, email) VALUES (1, $1), (2, $1)',
		'SELECT id / 0 FROM patients WHERE email <> $1', 'UPDATE patients SET age = -1, email = $1', 'SELECT fieldcrypt.decrypt_field($1)', 'SELECT fieldcrypt.decrypt_field(ssn, $1) FROM patients', 'SELECT $1::regclass FROM patients');
	foreach my $statement (@bound)
	{
		foreach my $name ('', 'named')
		{
			$log->hides(
				sub {
					my ($canary) = @_;
					my $wire = Wire->connect($node, startup => { options => $modes{$mode} });
					$wire->query($_)->answer foreach 'SELECT 1 / 0', 'SELECT 1';
					$wire->parse($name, $statement)->sync->answer if $name;
					$wire->parse($name, $statement) if !$name;
					return $wire->bind('', $name, $canary)->execute('')->sync->answer;
				},
				"$mode: $statement, a statement '$name'", undef);
		}
	}

	# Rows that another server, or this one as such, complains of.
	SKIP:
	{
		skip 'no dblink', 1 if !$has{dblink};
		value($node, 'CREATE EXTENSION IF NOT EXISTS dblink', env => { PGOPTIONS => $modes{errors} });
		none_leaks($mode, 'dblink, here', [ q{SELECT dblink_connect('host=/nowhere dbname=' || fieldcrypt.decrypt_field(ssn)) FROM patients WHERE id = THIS} ], 1);
	}
}

# Where nothing is about values the log is what it always was.
my $shown = $log->shows(sub { run_sql($node, "SELECT 1; SELECT '$_[0]'::int", env => { PGOPTIONS => '-c auto_explain.log_min_duration=-1' }) }, 'another error');
no_crash($node);
$node->stop;
done_testing();

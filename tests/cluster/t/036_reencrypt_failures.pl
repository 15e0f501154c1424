# Re-encryption where something is wrong: values, keys, rows, tables, the master key, the call. What can
# be done is done, what can't is listed, and nothing shows a value.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary');
my $key_file = $node->basedir . '/master.key';

sub reencrypt
{
	my ($arguments, %options) = @_;
	my $before = $options{before} // '';
	return run_sql($node, "SET statement_timeout = '60s';\n$before\nCALL fieldcrypt.reencrypt($arguments)", %options);
}

# A test: the run went through, with these warnings.
sub warns
{
	my ($arguments, $likes, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $result = reencrypt($arguments, %options);
	is("@{ $result->{sqlstates} }", '', "$name: goes through") or diag $result->{err};
	my @warnings = $result->{err} =~ /WARNING: +(.*)$/mg;
	is(scalar @warnings, scalar @$likes, '  with as many warnings') or diag $result->{err};
	like($warnings[$_] // '', $likes->[$_], '  ' . $likes->[$_]) foreach 0 .. $#$likes;
	like($result->{err}, qr/NOTICE:  00000: reencrypt: \d+ rows re-encrypted/, '  and sums up at its end');
	return $result;
}

sub on_old_keys
{
	my ($table, $column) = @_;
	return "SELECT count(*) FROM $table WHERE fieldcrypt.key_id($column) NOT IN (SELECT key_id FROM fieldcrypt.encryption_keys WHERE state = 'active')";
}

# Values that can't be decrypted, for every reason.
value($node, <<'SQL');
CREATE TABLE damaged (tenant text, id int, note text DEFAULT 'NOTE-CANARY', v fieldcrypt.encrypted, w fieldcrypt.encrypted, PRIMARY KEY (tenant, id));
INSERT INTO damaged SELECT t, i, 'NOTE-CANARY', fieldcrypt.encrypt_field('PLAIN-CANARY ' || t || i, tenant => t), fieldcrypt.encrypt_field('PLAIN-CANARY w', tenant => 'good')
  FROM unnest('{good,suspended,destroyed,without,unwrapped,unknown}'::text[]) AS t, generate_series(1, 10) AS i;
CREATE TABLE fine AS SELECT id, fieldcrypt.encrypt_field('fine ' || id, tenant => 'good') AS v FROM damaged;
SQL
# Another key of the destroyed tenant; the values of one are on a key that this database never had.
value($node, q{CALL fieldcrypt.rotate_keys(force => true)});
my $id_of = sub { value($node, "SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = '$_[0]' AND state = 'deactivated'") };
my %key = map { $_ => $id_of->($_) } qw(good suspended destroyed without unwrapped unknown);
past_the_guard($node, <<SQL);
UPDATE fieldcrypt.encryption_keys SET state = 'suspended' WHERE key_id = $key{suspended};
UPDATE fieldcrypt.encryption_keys SET state = 'destroyed', wrapped_key = NULL, destroyed_at = now() WHERE key_id = $key{destroyed};
UPDATE fieldcrypt.encryption_keys SET state = 'deactivated', deactivated_at = now() WHERE tenant = 'without';
UPDATE fieldcrypt.encryption_keys SET wrapped_key = set_byte(wrapped_key, 40, get_byte(wrapped_key, 40) # 1) WHERE key_id = $key{unwrapped}
SQL
value($node, <<'SQL');
UPDATE damaged SET v = set_byte(v::bytea, 2, get_byte(v::bytea, 2) # 1)::fieldcrypt.encrypted WHERE tenant = 'unknown';
UPDATE damaged SET v = set_byte(v::bytea, 30, get_byte(v::bytea, 30) # 1)::fieldcrypt.encrypted WHERE tenant = 'good' AND id > 8;
SQL
my $unknown = value($node, q{SELECT DISTINCT fieldcrypt.key_id(v) FROM damaged WHERE tenant = 'unknown'});
my $image = q{SELECT tenant, id, md5(v::bytea) FROM damaged WHERE tenant <> 'good' OR id > 8 ORDER BY 1, 2};
my $image_before = value($node, $image);
my @canaries = ('CANARY', unpack('H*', 'CANARY'), value($node, q{SELECT substr(fieldcrypt.ciphertext_text(v), 20, 40) FROM damaged WHERE tenant = 'good' AND id = 9}), value($node, q{SELECT substr(encode(v::bytea, 'hex'), 40, 40) FROM damaged WHERE tenant = 'good' AND id = 9}));
my $log_before = -s $node->logfile;
my $run = warns('rows_per_second => 0, batch_size => 7', [qr/KF025: 52 rows have values that could not be re-encrypted/], 'values that can not be decrypted');
like($run->{err}, qr/HINT:.*reencryption_failures/, '  the hint says where they are listed');
gives($node, q{SELECT row_key ->> 'tenant', error_code, key_id, column_name, count(*), count(DISTINCT (row_key ->> 'id')::int), count(DISTINCT row_ctid) FROM fieldcrypt.reencryption_failures GROUP BY 1, 2, 3, 4 ORDER BY 1}, <<TEXT =~ s/\n\z//r, '  listed by primary key, key and SQLSTATE');
destroyed|KF005|$key{destroyed}|v|10|10|10
good|KF002|$key{good}|v|2|2|2
suspended|KF004|$key{suspended}|v|10|10|10
unknown|KF003|$unknown|v|10|10|10
unwrapped|KF011|$key{unwrapped}|v|10|10|10
without|KF007|$key{without}|v|10|10|10
TEXT
gives($node, $image, $image_before, '  they are as they were');
gives($node, on_old_keys('damaged', 'w'), '0', '  the other column of these rows is done');
gives($node, on_old_keys("damaged WHERE tenant = 'good' AND true", 'v') =~ s/ WHERE fieldcrypt/ AND fieldcrypt/r, '2', '  the other rows are done');
gives($node, on_old_keys('fine', 'v'), '0', '  the other tables are done');
gives($node, q{SELECT table_name, state, rows_failed FROM fieldcrypt.reencryption_progress ORDER BY 1}, "public.damaged|incomplete|52\npublic.fine|done|0", '  the progress tells the same');
gives($node, q{SELECT event, reason ~ '52 rows could not be' FROM fieldcrypt.audit_log ORDER BY id DESC LIMIT 1}, 'reencryption_incomplete|t', '  so does the audit log');
my $listed = value($node, 'SELECT f::text FROM fieldcrypt.reencryption_failures AS f') . value($node, 'SELECT r::text FROM fieldcrypt_internal.reencryptions AS r') . value($node, 'SELECT a::text FROM fieldcrypt.audit_log AS a');
my $log = slurp_file($node->logfile, $log_before);
foreach my $canary (@canaries)
{
	unlike($listed, qr/\Q$canary/, '  no value in the tables');
	unlike($log, qr/\Q$canary/, '  nor in the log of the server');
	unlike($run->{err}, qr/\Q$canary/, '  nor in what the client reads');
}
gives($node, q{SELECT fieldcrypt.count_it FROM (SELECT sum((c ->> 'values')::int) AS count_it FROM jsonb_array_elements(fieldcrypt_internal.count_keys('damaged'::regclass)::jsonb) AS c) AS fieldcrypt}, '120', '  all values are counted, readable or not');
# Mended: the rest follows, and nothing is listed any more.
past_the_guard($node, <<SQL);
UPDATE fieldcrypt.encryption_keys SET state = 'deactivated' WHERE key_id = $key{suspended};
UPDATE fieldcrypt.encryption_keys SET wrapped_key = set_byte(wrapped_key, 40, get_byte(wrapped_key, 40) # 1) WHERE key_id = $key{unwrapped}
SQL
value($node, q{CALL fieldcrypt.rotate_keys('without', force => true)});
warns("'damaged', rows_per_second => 0", [qr/KF025: 22 rows/], 'mended');
gives($node, q{SELECT DISTINCT row_key ->> 'tenant' FROM fieldcrypt.reencryption_failures ORDER BY 1}, "destroyed\ngood\nunknown", '  only what is lost is listed');
value($node, q{DELETE FROM damaged WHERE tenant IN ('destroyed', 'unknown') OR tenant = 'good' AND id > 8});
warns("'damaged', rows_per_second => 0", [], 'without these rows');
gives($node, 'SELECT count(*) FROM fieldcrypt.reencryption_failures', '0', '  nothing is listed');
value($node, 'DROP TABLE damaged, fine');

# More failures than are listed.
value($node, q{CREATE TABLE many (id int PRIMARY KEY, v fieldcrypt.encrypted); INSERT INTO many SELECT i, e FROM generate_series(1, 10500) AS i, fieldcrypt.encrypt_field('x', 'bound') AS e; SELECT fieldcrypt.set_column_context('many', 'v', 'another'); CALL fieldcrypt.rotate_keys(force => true)});
warns("'many', rows_per_second => 0", [qr/KF025: 10500 rows/], 'more failures than are listed');
gives($node, 'SELECT count(*) FROM fieldcrypt.reencryption_failures', '10000', '  10000 are listed');
value($node, 'DROP TABLE many');

# What rows and tables have of their own.
my $rotate = 'CALL fieldcrypt.rotate_keys(force => true)';
value($node, <<'SQL');
CREATE TABLE armed (is_armed boolean);
INSERT INTO armed VALUES (false);
CREATE FUNCTION fail_for(id int, bad int, code text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    IF (SELECT is_armed FROM public.armed) AND (bad = 0 OR id = bad) THEN
        IF code = 'assert' THEN ASSERT false; END IF;
        RAISE EXCEPTION USING ERRCODE = code, MESSAGE = 'planted';
    END IF;
    RETURN true; END $$;
CREATE FUNCTION fail_quietly(id int, bad int, code text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM public.fail_for(id, bad, code); RETURN id; END $$;
CREATE FUNCTION fail_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.fail_for(new.id, TG_ARGV[0]::int, 'P0001'); RETURN new; END $$;
CREATE FUNCTION fail_statement() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.fail_for(0, 0, 'P0001'); RETURN NULL; END $$;
CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.id = 7 THEN RETURN NULL; END IF; RETURN new; END $$;
CREATE TABLE after_all (id int PRIMARY KEY, v fieldcrypt.encrypted);
INSERT INTO after_all SELECT i, fieldcrypt.encrypt_field('z') FROM generate_series(1, 5) AS i;
SQL
# Each: how the table is made to fail, for row 7 of 300 alone, and the SQLSTATE that is listed.
my %one = (
	check => [ 'ADD CHECK (fail_for(id, 7, \'P0001\'))', 'P0001' ],
	'not valid check' => [ 'ADD CHECK (id <> 7) NOT VALID', '23514' ],
	'index expression' => [ '; CREATE INDEX ON a_table ((fail_quietly(id, 7, \'22012\') + octet_length(v::bytea)))', '22012' ],
	'before row' => [ '; CREATE TRIGGER b BEFORE UPDATE ON a_table FOR EACH ROW EXECUTE FUNCTION fail_row(7); ALTER TABLE a_table ENABLE ALWAYS TRIGGER b', 'P0001' ],
	'after row' => [ '; CREATE TRIGGER b AFTER UPDATE ON a_table FOR EACH ROW EXECUTE FUNCTION fail_row(7); ALTER TABLE a_table ENABLE ALWAYS TRIGGER b', 'P0001' ],
	'constraint trigger' => [ '; CREATE CONSTRAINT TRIGGER b AFTER UPDATE ON a_table FOR EACH ROW EXECUTE FUNCTION fail_row(7); ALTER TABLE a_table ENABLE ALWAYS TRIGGER b', 'P0001' ],
	'generated column' => [ 'ADD g int GENERATED ALWAYS AS (fail_quietly(id, 7, \'P0001\') + octet_length(v::bytea)) STORED', 'P0001' ],
	'domain' => [ '; CREATE DOMAIN d AS fieldcrypt.encrypted CHECK (octet_length(VALUE::bytea) <> 45) NOT VALID; ALTER TABLE a_table ALTER v TYPE d; UPDATE a_table SET v = fieldcrypt.encrypt_field(\'short\')', '' ],
);
delete $one{domain};
foreach my $case (sort keys %one)
{
	my ($change, $code) = @{ $one{$case} };
	value($node, "CREATE TABLE a_table (id int PRIMARY KEY, v fieldcrypt.encrypted); INSERT INTO a_table SELECT i, fieldcrypt.encrypt_field('a' || i) FROM generate_series(1, 300) AS i; ALTER TABLE a_table " . ($change =~ /^;/ ? 'SET (fillfactor = 100)' : '') . "$change; $rotate; UPDATE armed SET is_armed = true");
	warns('rows_per_second => 0, batch_size => 50', [qr/KF025: 1 rows/], "one row fails: $case");
	gives($node, q{SELECT row_key ->> 'id', error_code, key_id, error ~ 'CANARY' FROM fieldcrypt.reencryption_failures}, "7|$code||f", '  this row is listed, and no other');
	gives($node, on_old_keys('a_table', 'v'), '1', '  the others are done');
	gives($node, q{SELECT count(*) FROM after_all WHERE } . "fieldcrypt.key_id(v) IN (SELECT key_id FROM fieldcrypt.encryption_keys WHERE state = 'active')", '5', '  and the tables after it');
	value($node, 'UPDATE armed SET is_armed = false; DROP TABLE a_table');
}
# A trigger that lets a row not pass.
value($node, "CREATE TABLE a_table (id int PRIMARY KEY, v fieldcrypt.encrypted); INSERT INTO a_table SELECT i, fieldcrypt.encrypt_field('a' || i) FROM generate_series(1, 30) AS i; CREATE TRIGGER b BEFORE UPDATE ON a_table FOR EACH ROW EXECUTE FUNCTION drop_row(); ALTER TABLE a_table ENABLE ALWAYS TRIGGER b; $rotate");
warns('rows_per_second => 0', [qr/KF025: 1 rows/], 'a trigger does not let a row pass');
gives($node, on_old_keys('a_table', 'v'), '1', '  the others are done');
value($node, 'DROP TABLE a_table');

# All rows fail, with every SQLSTATE that an owner may choose: the table fails, the others go on.
my @codes = qw(P0001 XX000 XX001 KF008 KF010 KF012 KF013 KF025 53100 53200 57014 57P01 57P03 58030 25006 2D000 40P01 40001 55P03 assert 00001 02000);
foreach my $code (@codes)
{
	my $waits = $code =~ /^(40P01|40001|55P03)$/;
	foreach my $place ('check', $code =~ /^(57014|XX000|assert|KF010)$/ ? ('statement trigger', 'context') : ())
	{
		my $sql = {
			check => "ALTER TABLE a_table ADD CHECK (fail_for(id, 0, '$code'))",
			'statement trigger' => "CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN PERFORM public.fail_for(0, 0, '$code'); RETURN NULL; END \$\$; CREATE TRIGGER b AFTER UPDATE ON a_table FOR EACH STATEMENT EXECUTE FUNCTION planted(); ALTER TABLE a_table ENABLE ALWAYS TRIGGER b",
			context => "SELECT fieldcrypt.set_column_context('a_table', 'v', expression => 'CASE WHEN public.fail_quietly(id, 0, ''$code'') > 0 THEN '''' END')" }->{$place};
		value($node, "CREATE TABLE a_table (id int PRIMARY KEY, v fieldcrypt.encrypted); INSERT INTO a_table SELECT i, fieldcrypt.encrypt_field('a' || i) FROM generate_series(1, 250) AS i; $sql; $rotate; UPDATE armed SET is_armed = true");
		my $result = reencrypt("rows_per_second => 0, wait_for_locks => '1 second'");
		is("@{ $result->{sqlstates} }", '', "all rows fail with $code in a $place: the run goes through") or diag $result->{err};
		like($result->{err}, qr/WARNING:  KF025: .*public\.a_table/, '  and names the table');
		gives($node, on_old_keys('after_all', 'v'), '0', '  the tables after it are done');
		gives($node, on_old_keys('a_table', 'v'), '250', '  nothing of it is changed');
		gives($node, q{SELECT state FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.a_table'}, $waits ? 'interrupted' : 'failed', '  the progress tells so');
		value($node, 'UPDATE armed SET is_armed = false');
		warns("'a_table', rows_per_second => 0", [], '  mended') if $code =~ /^(P0001|40001|57014)$/;
		value($node, "SELECT fieldcrypt.set_column_context('a_table', 'v'); DROP TABLE a_table; DROP FUNCTION IF EXISTS planted()");
	}
}
# A real cancel is no failure of the table.
value($node, "CREATE TABLE a_table (id int PRIMARY KEY, v fieldcrypt.encrypted); INSERT INTO a_table VALUES (1, fieldcrypt.encrypt_field('a')); CREATE FUNCTION slow() RETURNS boolean LANGUAGE plpgsql AS \$\$ BEGIN IF (SELECT is_armed FROM public.armed) THEN PERFORM pg_sleep(60); END IF; RETURN true; END \$\$; ALTER TABLE a_table ADD CHECK (slow()); $rotate; UPDATE armed SET is_armed = true");
refused($node, "SET statement_timeout = '2s'; CALL fieldcrypt.reencrypt('a_table')", '57014', qr/statement timeout/, 'a timeout while code of the owner runs ends the run');
gives($node, q{SELECT state FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.a_table'}, 'interrupted', '  which is interrupted, not failed');
value($node, 'UPDATE armed SET is_armed = false');
warns("'a_table', rows_per_second => 0", [], '  the next goes on');
value($node, 'DROP TABLE a_table; DROP FUNCTION slow()');

# Statement triggers, types that are nested too deep, no replica identity.
my $deep = 'CREATE TYPE deep_0 AS (v fieldcrypt.encrypted);' . join ' ', map { "CREATE TYPE deep_$_ AS (v deep_" . ($_ - 1) . ');' } 1 .. 30;
value($node, "$deep CREATE TABLE a_deep (v deep_30)");
my $result = reencrypt('rows_per_second => 0');
is("@{ $result->{sqlstates} }", '', 'types nested too deep: the run goes through') or diag $result->{err};
gives($node, on_old_keys('after_all', 'v'), '0', '  the tables after it are done');
value($node, 'INSERT INTO a_deep VALUES (NULL)');
value($node, $rotate);
$result = reencrypt('rows_per_second => 0');
is("@{ $result->{sqlstates} }", '', '  with a row too') or diag $result->{err};
gives($node, on_old_keys('after_all', 'v'), '0', '  the tables after it are done');
value($node, 'DROP TABLE a_deep');

# Exclusion constraints that the new values don't meet: the constraint holds, deferrable or not.
foreach my $kind ('', 'DEFERRABLE', 'DEFERRABLE INITIALLY DEFERRED')
{
	value($node, "CREATE TABLE a_table (id int PRIMARY KEY, v fieldcrypt.encrypted, EXCLUDE USING btree ((fieldcrypt.key_id(v)) WITH =) $kind); INSERT INTO a_table VALUES (1, fieldcrypt.encrypt_field('a')); $rotate; INSERT INTO a_table VALUES (2, fieldcrypt.encrypt_field('b'))");
	warns("'a_table', rows_per_second => 0", [qr/KF025: 1 rows/], "an exclusion constraint $kind that the new value does not meet");
	gives($node, 'SELECT count(*), count(DISTINCT fieldcrypt.key_id(v)) FROM a_table', '2|2', '  holds');
	value($node, 'DROP TABLE a_table');
}

# The master key: one error, before any row is touched.
value($node, $rotate);
my $before = value($node, 'SELECT ctid, md5(v::bytea) FROM after_all ORDER BY id');
my $key_text = slurp_file($key_file);
foreach my $case ([ 'KF010', key_text(9) ], [ 'KF009', 'nonsense' ], [ 'KF008', undef ])
{
	my ($code, $text) = @$case;
	if (defined $text) { write_key_file($key_file, $text) }
	else { $node->append_conf('postgresql.conf', "fieldcrypt.master_key_file = ''") }
	$node->reload;
	refused($node, "CALL fieldcrypt.reencrypt()", $code, qr/HINT/, "master key: $code");
	gives($node, 'SELECT ctid, md5(v::bytea) FROM after_all ORDER BY id', $before, '  no row is touched');
	gives($node, 'SELECT count(*) FROM fieldcrypt.reencryption_failures', '0', '  none is listed');
	gives($node, q{SELECT count(*) FROM fieldcrypt.reencryption_progress WHERE state = 'running' OR pids IS NOT NULL}, '0', '  nothing looks as if it were running');
}
write_key_file($key_file, key_text(1));
$node->append_conf('postgresql.conf', "fieldcrypt.master_key_file = '$key_file'");
$node->reload;
warns('rows_per_second => 0', [], 'with the right master key');
gives($node, on_old_keys('after_all', 'v'), '0', '  all is done');

# Refusals.
value($node, 'CREATE TABLE plain (a int); CREATE VIEW a_view AS TABLE after_all; CREATE SEQUENCE a_sequence; CREATE MATERIALIZED VIEW seen AS TABLE after_all; CREATE TABLE empty_tree (v int) PARTITION BY RANGE (v); CREATE INDEX an_index ON after_all (id)');
refused($node, "BEGIN; CALL fieldcrypt.reencrypt()", '2D000', 'refused: in a transaction block');
refused($node, "DO \$\$ BEGIN CALL fieldcrypt.reencrypt(); EXCEPTION WHEN SQLSTATE 'ZZZZZ' THEN END \$\$", '2D000', 'refused: in a block with EXCEPTION');
refused($node, "CREATE FUNCTION calling() RETURNS void LANGUAGE plpgsql AS 'BEGIN CALL fieldcrypt.reencrypt(); END'; SELECT calling()", '2D000', 'refused: in a function');
foreach my $name (qw(batch_size rows_per_second bytes_per_second pause wait_for_locks))
{
	refused($node, "CALL fieldcrypt.reencrypt($name => NULL)", '22004', qr/may be NULL.*HINT/s, "refused: $name NULL");
}
refused($node, "CALL fieldcrypt.reencrypt(batch_size => $_)", '22023', qr/HINT/, "refused: batch_size $_") foreach 0, -1, 100001, -2147483648;
refused($node, "CALL fieldcrypt.reencrypt($_ => -1)", '22023', qr/HINT/, "refused: $_ -1") foreach 'rows_per_second', 'bytes_per_second';
refused($node, "CALL fieldcrypt.reencrypt('$_')", '42809', qr/no encrypted column.*HINT/s, "refused: $_") foreach 'plain', 'a_view', 'a_sequence', 'seen', 'empty_tree', 'an_index', 'pg_class', 'fieldcrypt.encryption_keys';
refused($node, "CALL fieldcrypt.reencrypt('nowhere')", '42P01', 'refused: a table that is not there');
refused($node, "CALL fieldcrypt.reencrypt(4294967294::oid::regclass)", '42809', 'refused: an oid of nothing');
refused($node, "SET default_transaction_read_only = on; CALL fieldcrypt.reencrypt()", 'KF013', qr/READ ONLY.*HINT/s, 'refused: default_transaction_read_only');
refused($node, "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; CALL fieldcrypt.reencrypt('after_all')", 'KF013', 'refused: READ ONLY');
warns("'after_all', rows_per_second => 0", [], 'every isolation level', before => "SET default_transaction_isolation = '$_'; SET default_transaction_deferrable = on;") foreach 'serializable', 'repeatable read';
gives($node, q{SELECT count(*) FROM fieldcrypt.reencryption_progress WHERE state IN ('running', 'interrupted') OR pids IS NOT NULL}, '0', 'nothing looks as if it were running');
gives($node, q{SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND classid = 'fieldcrypt_internal.reencryption_chunks'::regclass}, '0', 'no lock is held');

# A table that another session holds: the run does not hang, the others are done.
value($node, "CREATE TABLE a_held (id int PRIMARY KEY, v fieldcrypt.encrypted); INSERT INTO a_held VALUES (1, fieldcrypt.encrypt_field('a')); $rotate");
my $holder = session($node);
$holder->value('BEGIN; LOCK TABLE a_held IN ACCESS EXCLUSIVE MODE');
$result = reencrypt("rows_per_second => 0, wait_for_locks => '2 seconds'", before => "SET statement_timeout = '30s';");
is("@{ $result->{sqlstates} }", '', 'a table is held by another session: the run goes through') or diag $result->{err};
gives($node, on_old_keys('after_all', 'v'), '0', '  the other tables are done');
$holder->close;

unlike(slurp_file($node->logfile), qr/WARNING:.*leak|still referenced|not closed/i, 'nothing leaked');
is(join("\n", grep { /PANIC|was terminated by signal|unreachable|panicked/ } split /\n/, slurp_file($node->logfile)), '', 'no crash');
$node->stop;
done_testing();

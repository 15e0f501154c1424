# Columns that are encrypted otherwise: by pgcrypto, and by encrypt_field. An expression gives the plaintexts, and is kept
# nowhere: not in a table, a log, an error or another session. What is written meanwhile, by who has the expression's key and
# by nobody else, is not lost, before the swap nor after it. Partitioned tables, tenants by a column, rows that change hands.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);
use Twin;

needs_library('pgcrypto');
my $seed = seed();
my $node = new_cluster('primary', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_decrypt = statements
max_connections = 40
CONF
value($node, 'CREATE EXTENSION pgcrypto');
my $key = 'Geheimnis-7391-canary';
my $source = qq{source => \$q\$pgp_sym_decrypt(ssn, '$key')\$q\$};

# 1. Refusals: no error shows the expression or what it gives.
value($node, "CREATE TABLE t (id int PRIMARY KEY, ssn bytea NOT NULL, note text);
	INSERT INTO t SELECT i, pgp_sym_encrypt('number-' || i, '$key') FROM generate_series(1, 60) AS i");
my @wrong = (
	[ qq{pgp_sym_decrypt(ssn, '$key-wrong')}, '39000', 'a wrong key' ],
	[ qq{pgp_sym_decrypt(ssn, '$key}, '42601', 'an expression that does not end' ],
	[ qq{pgp_sym_decrypt(ssn, '$key'), (SELECT 1}, '42601', 'one that is two' ],
	[ qq{pgp_sym_decrypt(number, '$key')}, '42703', 'a column that is not there' ],
	[ qq{pgp_sym_decrypt(ssn, '$key')::date}, '22007', 'plaintexts of another type' ],
	[ qq{nullif(pgp_sym_decrypt(ssn, '$key'), 'number-60')}, '22004', 'NULL where the column is not NULL' ],
	[ q{ssn}, '42804', 'bytes' ],
	[ q{1.5::float8}, 'any', 'a type that has no form' ]);
foreach my $case (@wrong)
{
	my ($expression, $sqlstate, $name) = @$case;
	my $result = run_sql($node, "CALL fieldcrypt.encrypt_column('t', 'ssn', source => \$q\$$expression\$q\$)");
	is($sqlstate eq 'any' ? scalar @{ $result->{sqlstates} } : "@{ $result->{sqlstates} }", $sqlstate eq 'any' ? 1 : $sqlstate, $name) or diag $result->{err};
	unlike($result->{err}, qr/canary|number-\d/, '  no word of it');
}
gives($node, q{SELECT error ~ 'a row can.t be taken over', error ~ 'canary' FROM fieldcrypt.column_migrations}, 't|f', 'the view says that, and no more');
refused($node, q{CALL fieldcrypt.encrypt_column('t', 'ssn')}, '22023', qr/with a source, which is kept nowhere/, 'without it, it does not go on');
refused($node, q{CALL fieldcrypt.encrypt_column('t', 'ssn', source => '')}, '22023', 'nor with an empty one');

# 2. What is written meanwhile: marked, and taken over before the swap. A value for the new column is not taken from anybody.
value($node, "CALL fieldcrypt.encrypt_column('t', 'ssn', $source, swap => false)");
value($node, <<SQL);
UPDATE t SET ssn = pgp_sym_encrypt('changed', '$key') WHERE id = 1;
INSERT INTO t VALUES (100, pgp_sym_encrypt('inserted', '$key'));
UPDATE t SET id = 101 WHERE id = 2;
UPDATE t SET ssn_encrypted_new = 'planted' WHERE id = 3;
DELETE FROM t WHERE id = 4;
BEGIN; UPDATE t SET ssn = pgp_sym_encrypt('rolled back', '$key') WHERE id = 5; ROLLBACK;
SQL
gives($node, q{SELECT string_agg(row_key, ' ' ORDER BY mark) FROM fieldcrypt_internal.migration_marks}, '["1"] ["100"] ["101"]',
	'rows are marked by their keys, and by nothing else');
value($node, "CALL fieldcrypt.encrypt_column('t', 'ssn', $source)");
my $both = qq{SELECT count(*) FROM t WHERE fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.t.ssn', id)) IS DISTINCT FROM pgp_sym_decrypt(ssn_before, '$key')};
gives($node, $both, '0', 'both columns are alike');
gives($node, q{SELECT count(*) FROM t WHERE fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.t.ssn', id)) IN ('changed', 'inserted')}, '2',
	'  with what was written meanwhile');
gives($node, q{SELECT count(*) FROM fieldcrypt_internal.migration_marks}, '0', '  and nothing is left to do');
gives($node, q{SELECT attname, attnotnull FROM pg_attribute WHERE attrelid = 't'::regclass AND attname ~ 'ssn' AND NOT attisdropped ORDER BY 1}, "ssn|t\nssn_before|f", 'NOT NULL is the new column\'s');

# 3. Undone after the swap: what was written since needs the expression that gives the old value.
value($node, q{UPDATE t SET ssn = 'after the swap' WHERE id = 6; INSERT INTO t (id, ssn) VALUES (200, 'new'); UPDATE t SET note = 'x' WHERE id = 7;
	UPDATE t SET id = 300 WHERE id = 8});
refused($node, q{INSERT INTO t VALUES (201, '\x00', 'note')}, '55000', 'the old column is not written by itself');
refused($node, q{CALL fieldcrypt.undo_encrypt_column('t', 'ssn')}, '55000', qr/rows were written since.*HINT:.*source => /s,
	'undone without an expression: refused, nothing is lost');
my $back = qq{source => \$q\$pgp_sym_encrypt(fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.t.ssn', id)), '$key')\$q\$};
my $result = run_sql($node, qq{CALL fieldcrypt.undo_encrypt_column('t', 'ssn', source => \$q\$pgp_sym_encrypt('canary', no_such_column)\$q\$)});
is("@{ $result->{sqlstates} }", '42703', 'with one that fails: refused');
unlike($result->{err}, qr/canary|no_such/, '  no word of it');
value($node, "CALL fieldcrypt.undo_encrypt_column('t', 'ssn', $back)");
gives($node, qq{SELECT id, pgp_sym_decrypt(ssn, '$key') FROM t WHERE id IN (1, 3, 6, 7, 200, 300) ORDER BY id}, "1|changed\n3|number-3\n6|after the swap\n7|number-7\n200|new\n300|number-8", 'undone, with all that was written since');
gives($node, q{SELECT attname, atttypid::regtype, attnotnull FROM pg_attribute WHERE attrelid = 't'::regclass AND attname ~ 'ssn' AND NOT attisdropped}, 'ssn|bytea|t', 'the column is what it was');

# 4. While an application writes pgcrypto's values, before the swap and after; the expression is one that it can't see.
value($node, <<SQL);
CREATE TABLE busy (id int PRIMARY KEY, ssn bytea, counter int NOT NULL DEFAULT 0);
CREATE TABLE busy_twin (id int PRIMARY KEY, ssn text, counter int NOT NULL DEFAULT 0);
INSERT INTO busy SELECT i, CASE WHEN i % 9 > 0 THEN pgp_sym_encrypt('n' || i, '$key', 's2k-mode=0, compress-algo=0') END FROM generate_series(1, 600) AS i;
INSERT INTO busy_twin SELECT i, CASE WHEN i % 9 > 0 THEN 'n' || i END FROM generate_series(1, 600) AS i;
-- Before the swap it writes pgcrypto's values, after it plaintext: as an application that asks for the column's type.
CREATE FUNCTION write_busy(row_id int, content text, what text) RETURNS void LANGUAGE plpgsql AS \$\$
DECLARE
    value text;
    number int;
    twins int;
BEGIN
    LOCK TABLE busy IN ROW EXCLUSIVE MODE;
    value := CASE WHEN (SELECT a.atttypid = 'bytea'::regtype FROM pg_attribute AS a WHERE a.attrelid = 'busy'::regclass AND a.attname = 'ssn')
        THEN '(pgp_sym_encrypt(\$2, ''$key'', ''s2k-mode=0, compress-algo=0''))' ELSE '\$2' END;
    IF what = 'delete' THEN
        DELETE FROM busy WHERE id = row_id;
        GET DIAGNOSTICS number = ROW_COUNT;
        DELETE FROM busy_twin WHERE id = row_id AND number > 0;
    ELSIF what = 'counter' THEN
        UPDATE busy SET counter = counter + 1 WHERE id = row_id;
        GET DIAGNOSTICS number = ROW_COUNT;
        UPDATE busy_twin SET counter = counter + 1 WHERE id = row_id AND number > 0;
    ELSE
        EXECUTE format('INSERT INTO busy AS b (id, ssn) VALUES (\$1, %s) ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn', value) USING row_id, content;
        number := 1;
        INSERT INTO busy_twin AS b (id, ssn) VALUES (row_id, content) ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn;
    END IF;
    GET DIAGNOSTICS twins = ROW_COUNT;
    IF twins <> number THEN
        RAISE EXCEPTION '% %: % rows, % of the twin', what, row_id, number, twins;
    END IF;
END \$\$;
ANALYZE busy;
SQL
sub busy_writers
{
	my $begin = "\\set id random(1, 660)\n\\set r random(1, 1000000)\n";
	return Twin::bench($node, 'writers', [
		[ "$begin SELECT write_busy(:id, 'w:r', 'upsert');\n", 6 ], [ "$begin SELECT write_busy(:id, 'w:r',
		'counter');\n", 3 ], [ "$begin SELECT write_busy(:id, 'w:r', 'delete');\n", 2 ],
		[ "$begin BEGIN;\nSELECT write_busy(:id, 'w:r', 'upsert');\n\\sleep 10 ms\nCOMMIT;\n", 2 ], [ "$begin BEGIN;\nSELECT write_busy(:id, 'w:r',
		'upsert');\nROLLBACK;\n", 1 ] ],
		'-c', 3, '-T', 60, '--rate=150', "--random-seed=$seed");
}
sub stop_writers
{
	my ($writers) = @_;
	ok(value($node, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'writers'}) eq 't', '  while the application writes');
	value($node, q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'writers'});
	finish_bench($writers);
	return;
}
my $busy_source = qq{source => \$q\$pgp_sym_decrypt(ssn, '$key')\$q\$};
my $writers = busy_writers();
usleep(500_000);
$result = run_sql($node, "CALL fieldcrypt.encrypt_column('busy', 'ssn', $busy_source, batch_size => 20, rows_per_second => 400)");
is("@{ $result->{sqlstates} }", '', 'under writers it comes to the swap') or diag $result->{err};
usleep(500_000);
stop_writers($writers);
my $twins = q{SELECT count(*) FROM busy AS b FULL JOIN busy_twin AS t ON t.id = b.id WHERE b.id IS NULL OR t.id IS NULL OR b.counter <> t.counter OR };
gives($node, $twins . q{fieldcrypt.decrypt_field(b.ssn, fieldcrypt.context('public.busy.ssn', b.id)) IS DISTINCT FROM t.ssn}, '0', '  row by row as the twin');
cmp_ok(value($node, 'SELECT count(*) FROM busy WHERE ssn IS NOT NULL AND ssn_before IS NULL'), '>', 0, '  of some rows the old value is no longer known');
gives($node, qq{SELECT count(*) FROM busy AS b WHERE ssn_before IS NOT NULL AND pgp_sym_decrypt(ssn_before, '$key') <> fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.busy.ssn', id))}, '0', '  and no wrong one');
$writers = busy_writers();
usleep(300_000);
my $busy_back = qq{source => \$q\$pgp_sym_encrypt(fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.busy.ssn', id)), '$key',
	's2k-mode=0, compress-algo=0')\$q\$};
$result = run_sql($node, "CALL fieldcrypt.undo_encrypt_column('busy', 'ssn', $busy_back)");
is("@{ $result->{sqlstates} }", '', 'undone under writers') or diag $result->{err};
usleep(500_000);
stop_writers($writers);
gives($node, $twins . qq{pgp_sym_decrypt(b.ssn, '$key') IS DISTINCT FROM t.ssn}, '0', '  row by row as the twin');
unlike(slurp_file($node->logfile), qr/ERROR:.*of the twin|deadlock detected/, '  the application had no error of ours');

# More rows than one step takes, of which somebody holds some: those are noted again, and not forgotten.
value($node, <<'SQL');
CREATE TABLE many (id int PRIMARY KEY, ssn bytea);
INSERT INTO many SELECT i, convert_to('n' || i, 'UTF8') FROM generate_series(1, 1500) AS i;
CALL fieldcrypt.encrypt_column('many', 'ssn', source => $$convert_from(ssn, 'UTF8')$$, swap => false);
UPDATE many SET ssn = convert_to('m' || id, 'UTF8');
SQL
gives($node, 'SELECT count(*) FROM fieldcrypt_internal.migration_marks', '1500', 'every row is written again before the swap');
my $holder = session($node);
$holder->value('BEGIN; SELECT FROM many WHERE id IN (1, 2, 3) FOR UPDATE');
my $caller = session($node);
$caller->send(q{CALL fieldcrypt.encrypt_column('many', 'ssn', source => $$convert_from(ssn, 'UTF8')$$)});
ok($node->poll_query_until('postgres', 'SELECT count(*) <= 500 FROM fieldcrypt_internal.migration_marks'), '  they are taken over');
gives($node, q{SELECT string_agg(row_key, ' ' ORDER BY row_key) FROM fieldcrypt_internal.migration_marks WHERE row_key IN ('["1"]', '["2"]', '["3"]')},
	'["1"] ["2"] ["3"]', '  those that are held are noted again');
$holder->value('COMMIT');
ok($node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM fieldcrypt.column_migrations WHERE table_name = 'public.many' AND state = 'swapped'}), '  swapped');
$caller->run('SELECT 1');
gives($node, q{SELECT count(*) FROM many WHERE fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.many.ssn', id)) = 'm' || id}, '1500', '  with all of them');
$_->close foreach $holder, $caller;

# 5. The expression is nowhere.
value($node, 'CHECKPOINT');
my $tables = value($node, q{SELECT string_agg(format('SELECT %L, count(*) FROM %s AS t WHERE t::text LIKE ''%%canary%%''', c.oid::regclass, c.oid::regclass), ' UNION ALL ')
  FROM pg_class AS c WHERE c.relkind = 'r' AND c.relnamespace IN ('fieldcrypt'::regnamespace, 'fieldcrypt_internal'::regnamespace, 'public'::regnamespace)});
gives($node, "SELECT count(*) FROM ($tables) AS f (t, n) WHERE n > 0", '0', 'the key is in no table');
gives($node, q{SELECT count(*) FROM pg_trigger AS t WHERE pg_get_triggerdef(t.oid) LIKE '%canary%'}, '0', 'nor in a trigger');
# Statements of an application with pgcrypto's key are its own.
my @lines = grep { !/INSERT INTO|UPDATE t|THEN '\(pgp_sym_encrypt/ } grep { /canary/ } split /\n/, slurp_file($node->logfile);
is(join("\n", @lines), '', 'nor in the log: not in errors, their contexts, or the CALL, which is masked');
# Verification and the trigger are no decryptions that anybody is shown; what the expression decrypts is one a statement.
cmp_ok(value($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'values_decrypted'}), '<', 60, 'the log is not flooded');

# 6. Our own type, with a context; and its log says that it was decrypted.
value($node, <<'SQL');
CREATE TABLE ours (id int PRIMARY KEY, ssn fieldcrypt.encrypted);
INSERT INTO ours SELECT i, fieldcrypt.encrypt_field('n' || i, 'ours.ssn/' || i, 'acme') FROM generate_series(1, 300) AS i;
SELECT fieldcrypt.set_column_context('ours', 'ssn', expression => $$'ours.ssn/' || id$$, enforce => true);
SQL
refused($node, q{CALL fieldcrypt.encrypt_column('ours', 'ssn')}, '42P17', qr/source/, 'our own type needs a source, too');
refused($node, q{CALL fieldcrypt.encrypt_column('ours', 'ssn', source => $q$fieldcrypt.decrypt_field(ssn, 'ours.ssn/wrong')$q$)}, 'KF002',
	qr/\{"id": 1\}/, 'with a wrong context it stops at the row');
my $decrypted = value($node, q{SELECT coalesce(sum(value_count), 0) FROM fieldcrypt.audit_log WHERE event = 'values_decrypted'});
value($node, q{SET fieldcrypt.tenant = 'acme'; CALL fieldcrypt.encrypt_column('ours',
	'ssn', source => $q$fieldcrypt.decrypt_field(ssn, 'ours.ssn/' || id)$q$)});
gives($node, q{SELECT count(*) FROM ours WHERE fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.ours.ssn', id)) = 'n' || id}, '300',
	'of our own type, with the right one');
cmp_ok(value($node, q{SELECT sum(value_count) FROM fieldcrypt.audit_log WHERE event = 'values_decrypted'}) - $decrypted, '>=', 300, '  and the log counts what it decrypted');

# 7. A partitioned table, a tenant by column; rows that change their partition and their hands, before the swap and after it.
value($node, <<'SQL');
CREATE TABLE parts (id int, clinic text NOT NULL, ssn text, PRIMARY KEY (id, clinic)) PARTITION BY LIST (clinic);
CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a');
CREATE TABLE parts_b (ssn text, extra int, clinic text NOT NULL, id int NOT NULL);
ALTER TABLE parts_b DROP COLUMN extra;
ALTER TABLE parts ATTACH PARTITION parts_b FOR VALUES IN ('b');
CREATE TABLE parts_rest PARTITION OF parts DEFAULT;
INSERT INTO parts SELECT i, CASE i % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'b' ELSE 'c' END, 'n' || i FROM generate_series(1, 900) AS i;
CALL fieldcrypt.encrypt_column('parts', 'ssn', tenant => 'clinic', name => 'parts.ssn', plaintext => 'digits', swap => false);
UPDATE parts SET clinic = 'b' WHERE id = 3;
UPDATE parts SET ssn = 'moved', clinic = 'a' WHERE id = 4;
CREATE TABLE parts_d PARTITION OF parts FOR VALUES IN ('d');
INSERT INTO parts VALUES (2000, 'd', 'in a new partition');
CALL fieldcrypt.encrypt_column('parts', 'ssn');
SQL
my $parts = q{SELECT count(*) FROM parts WHERE fieldcrypt.decrypt_field(ssn, fieldcrypt.context('parts.ssn', clinic, id, clinic)) IS DISTINCT FROM ssn_plaintext};
gives($node, $parts, '0', 'a partitioned table: all is there');
gives($node, q{SELECT count(*), count(*) FILTER (WHERE k.tenant = p.clinic) FROM parts AS p JOIN fieldcrypt.encryption_keys AS k ON k.key_id = fieldcrypt.key_id(p.ssn)}, '901|901', '  each value under the key of its row\'s tenant');
value($node, q{UPDATE parts SET clinic = 'c' WHERE id = 3; UPDATE parts SET clinic = 'b', ssn = 'moved again' WHERE id = 4;
	INSERT INTO parts (id, clinic, ssn) VALUES (3000, 'd', 'after'); UPDATE parts SET clinic = 'a' WHERE clinic = 'd'});
gives($node, $parts, '0', '  also of rows that change hands after the swap');
refused($node, q{INSERT INTO parts (id, clinic, ssn, ssn_plaintext) VALUES (3001, 'a', 'x', 'y')}, '55000',
	'  but not with another plaintext than its value\'s');
value($node, q{CREATE TABLE late (id int NOT NULL, clinic text NOT NULL, ssn_plaintext text, ssn fieldcrypt.encrypted_text);
	INSERT INTO late (id, clinic, ssn_plaintext) VALUES (1, 'e', 'x')});
refused($node, q{ALTER TABLE parts ATTACH PARTITION late FOR VALUES IN ('e')}, '42804', 'a table without what the others promise is not attached');
value($node, q{CALL fieldcrypt.undo_encrypt_column('parts', 'ssn')});
gives($node, q{SELECT string_agg(ssn, ',' ORDER BY id) FROM parts WHERE id IN (3, 4, 5, 2000, 3000)}, 'n3,moved again,n5,in a new partition,after', 'undone');

no_crash($node);
$node->stop;
done_testing();

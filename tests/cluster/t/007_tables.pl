# What else is done to a table with an encrypted column, and to the tables of the extension.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary');
my $folder = PostgreSQL::Test::Utils::tempdir();

value($node, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, value fieldcrypt.encrypted);
INSERT INTO t SELECT i, fieldcrypt.encrypt_field(repeat('CANARY ' || i, i * 10), 't', 'tenant ' || i % 3) FROM generate_series(1, 100) AS i;
INSERT INTO t VALUES (101, NULL), (102, fieldcrypt.encrypt_field('', 't'));
SQL
my $read = q{SELECT id, md5(value::bytea), md5(fieldcrypt.decrypt_field(value, 't')) FROM t ORDER BY id};
my $before = value($node, $read);
like($before, qr/^102\|[0-9a-f]{32}\|d41d8cd98f00b204e9800998ecf8427e$/m, 'an empty value is a value');

# Nothing of this changes a byte.
foreach my $sql (
	'VACUUM FULL t',
	'CLUSTER t USING t_pkey',
	'VACUUM (FREEZE, ANALYZE) t',
	'CREATE INDEX ON t USING hash (value)',
	'REINDEX TABLE CONCURRENTLY t',
	'ALTER TABLE t ALTER value SET STORAGE EXTENDED; VACUUM FULL t; ALTER TABLE t ALTER value SET STORAGE EXTERNAL; VACUUM FULL t',
	'ALTER TABLE t ALTER value TYPE bytea USING value::bytea; ALTER TABLE t ALTER value TYPE fieldcrypt.encrypted USING value::fieldcrypt.encrypted',
	'DROP INDEX t_value_idx; ALTER TABLE t ALTER value TYPE text USING fieldcrypt.ciphertext_text(value); ALTER TABLE t ALTER value TYPE fieldcrypt.encrypted USING value::fieldcrypt.encrypted',
	'ALTER TABLE t ALTER id TYPE bigint; ALTER TABLE t ALTER id TYPE int',
	'ALTER TABLE t RENAME TO u; CREATE TABLE t AS TABLE u; DROP TABLE u; ALTER TABLE t ADD PRIMARY KEY (id)',
	'SELECT * INTO u FROM t; TRUNCATE t; INSERT INTO t TABLE u; DROP TABLE u',
	'ALTER TABLE t RENAME TO u; CREATE TABLE t (LIKE u) PARTITION BY RANGE (id); ALTER TABLE t ATTACH PARTITION u FOR VALUES FROM (0) TO (1000)',
	'CREATE TABLE t_high PARTITION OF t FOR VALUES FROM (1000) TO (9000); UPDATE t SET id = id + 1000; UPDATE t SET id = id - 1000',
	'ALTER TABLE t DETACH PARTITION u; DROP TABLE t; ALTER TABLE u RENAME TO t',
	'CREATE TABLE h (LIKE t) PARTITION BY HASH (value); CREATE TABLE h0 PARTITION OF h FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE h1 PARTITION OF h FOR VALUES WITH (MODULUS 2, REMAINDER 1); INSERT INTO h TABLE t; TRUNCATE t; INSERT INTO t TABLE h; DROP TABLE h',
	'CREATE MATERIALIZED VIEW m AS TABLE t; REFRESH MATERIALIZED VIEW m; TRUNCATE t; INSERT INTO t TABLE m; DROP MATERIALIZED VIEW m',
	"COPY t TO '$folder/t.text'; TRUNCATE t; COPY t FROM '$folder/t.text'",
	"COPY t TO '$folder/t.csv' (FORMAT csv, HEADER, FORCE_QUOTE *); TRUNCATE t; COPY t FROM '$folder/t.csv' (FORMAT csv, HEADER)",
	"COPY t TO '$folder/t.binary' (FORMAT binary); TRUNCATE t; COPY t FROM '$folder/t.binary' (FORMAT binary)",
	"COPY (SELECT id, value::bytea FROM t) TO '$folder/t.bytea' (FORMAT binary); TRUNCATE t; COPY t FROM '$folder/t.bytea' (FORMAT binary)",
  )
{
	my $result = run_sql($node, $sql);
	is("@{ $result->{sqlstates} }", '', "done: $sql") or diag $result->{err};
	same_contents(value($node, $read), $before, '  values, byte for byte, and readable');
}
foreach my $file ('text', 'csv', 'binary', 'bytea')
{
	unlike(slurp_file("$folder/t.$file"), qr/CANARY|(?i:${\ unpack('H*', 'CANARY')})/, "no plaintext in the COPY file t.$file");
}
value($node, 'ANALYZE t');
unlike(value($node, q{SELECT * FROM pg_stats WHERE tablename = 't'}), qr/CANARY/, 'no plaintext in statistics');

# From plaintext to ciphertext and back, in place; with a key that is made on the way.
gives($node, <<'SQL', "t|CANARY 7\nCANARY 7", 'a column of plaintext becomes one of ciphertext, and back');
CREATE TABLE plain (id int, value text);
INSERT INTO plain SELECT i, 'CANARY ' || i FROM generate_series(1, 50) AS i;
ALTER TABLE plain ALTER value TYPE fieldcrypt.encrypted USING fieldcrypt.encrypt_field(value, tenant => 'altered');
SELECT count(DISTINCT fieldcrypt.key_id(value)) = 1, (SELECT fieldcrypt.decrypt_field(value) FROM plain WHERE id = 7) FROM plain;
ALTER TABLE plain ALTER value TYPE text USING fieldcrypt.decrypt_field(value);
SELECT value FROM plain WHERE id = 7;
SQL
gives($node, <<'SQL', "50|default 1", 'a volatile default encrypts each row by itself');
ALTER TABLE plain ADD COLUMN secret fieldcrypt.encrypted DEFAULT fieldcrypt.encrypt_field('default 1');
SELECT (SELECT count(*) FROM (SELECT DISTINCT secret FROM plain) AS d), (SELECT fieldcrypt.decrypt_field(secret) FROM plain LIMIT 1);
SQL

# Plaintext does not get in, and the log does not show it (a client sees what it sent itself).
my $plain_file = "$folder/plain";
value($node, "COPY (SELECT 900, 'CANARY in a file'::bytea) TO '$plain_file.binary' (FORMAT binary)");
append_to_file("$plain_file.text", "900\tCANARY in a file\n");
append_to_file("$plain_file.csv", "900,\"CANARY in a file\"\n");
append_to_file("$plain_file.short", "900\tfc1:CANARY\n");
my $log_before = -s $node->logfile;
foreach my $sql (
	"COPY t FROM '$plain_file.text'",
	"COPY t FROM '$plain_file.short'",
	"COPY t FROM '$plain_file.csv' (FORMAT csv)",
	"COPY t FROM '$plain_file.binary' (FORMAT binary)",
	q{ALTER TABLE plain ALTER value TYPE fieldcrypt.encrypted USING value::fieldcrypt.encrypted},
	q{ALTER TABLE plain ADD COLUMN other fieldcrypt.encrypted DEFAULT 'CANARY'},
	q{INSERT INTO t VALUES (900, 'CANARY')},
	q{INSERT INTO t SELECT 900, value::bytea::fieldcrypt.encrypted FROM plain},
	q{UPDATE t SET value = (SELECT value FROM plain LIMIT 1)::fieldcrypt.encrypted})
{
	my $result = run_sql($node, $sql);
	is("@{ $result->{sqlstates} }", 'KF001', "refused: $sql") or diag $result->{err};
}
my @shown = grep { /CANARY/ && !/LOG:  statement: / } split /\n/, slurp_file($node->logfile, $log_before);
is(join("\n", @shown), '', 'no error in the log shows the value');
refused($node, q{ALTER TABLE plain ALTER value TYPE fieldcrypt.encrypted}, '42804', 'refused: no cast that would happen by itself');
refused($node, q{INSERT INTO t SELECT 900, value FROM plain}, '42804', 'refused: text assigned to the column');

# Comparison: the bytes for what needs it, none that would suggest more.
value($node, 'CREATE TABLE twice AS TABLE t UNION ALL TABLE t');
foreach my $case (
	[ 'SELECT count(*) FROM (SELECT DISTINCT value FROM twice) AS d', '102' ],
	[ 'SELECT count(*) FROM (SELECT value FROM twice GROUP BY value HAVING count(*) = 2) AS g', '102' ],
	[ 'SELECT count(*) FROM (TABLE t UNION TABLE twice) AS u', '102' ],
	[ 'SELECT count(*) FROM (TABLE t INTERSECT TABLE twice) AS u', '102' ],
	[ 'SELECT count(*) FROM (TABLE twice EXCEPT TABLE t) AS u', '0' ],
	[ 'SELECT count(*) FROM t JOIN t AS o USING (id) WHERE t IS DISTINCT FROM o', '0' ],
	[ 'SELECT count(*) FROM t JOIN t AS o ON t.id = o.id + 1 WHERE t IS DISTINCT FROM o', '101' ],
	[ 'SELECT count(*) FROM t JOIN twice AS o ON t.value OPERATOR(fieldcrypt.*=) o.value', '202' ],
	[ 'SELECT count(*) FROM t JOIN t AS o USING (id) WHERE t.value OPERATOR(fieldcrypt.*<>) o.value', '0' ],
	[ 'SELECT count(*) FROM t WHERE t.* = t.*', '102' ])
{
	gives($node, $case->[0], $case->[1], "compares bytes: $case->[0]");
}
refused($node, $_->[0], $_->[1], "refused: $_->[0]") foreach (
	[ 'SELECT FROM t WHERE value = value', '0A000' ],
	[ 'SELECT FROM t WHERE value IN (SELECT value FROM twice)', '0A000' ],
	[ 'SELECT FROM t WHERE value < value', '0A000' ],
	[ 'SELECT FROM t WHERE value IS DISTINCT FROM value', '0A000' ],
	[ q{SELECT FROM t WHERE value LIKE 'fc1%'}, '0A000' ],
	[ 'SELECT max(value) FROM t', '0A000' ],
	# A row of the index that does not fit into its page comes first.
	[ 'CREATE INDEX ON t (value)', '54000' ],
	[ 'CREATE TABLE short AS SELECT value FROM t ORDER BY octet_length(value::bytea) LIMIT 2; CREATE INDEX ON short (value)', '0A000' ],
	[ 'ALTER TABLE short ADD UNIQUE (value)', '0A000' ]);
gives($node, <<'SQL', '1', 'OLD IS DISTINCT FROM NEW in a trigger');
CREATE TABLE changes (id int);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO changes VALUES (new.id); RETURN NULL; END $$;
CREATE TRIGGER note AFTER UPDATE ON twice FOR EACH ROW WHEN (OLD IS DISTINCT FROM NEW) EXECUTE FUNCTION note();
UPDATE twice SET value = value;
UPDATE twice SET value = fieldcrypt.encrypt_field('other', 't') WHERE ctid = (SELECT min(ctid) FROM twice WHERE id = 5);
SELECT count(*) FROM changes;
SQL

# The extension's own tables are maintained under sessions that have keys cached, one in a transaction.
my %sessions = (idle => session($node), 'in a transaction' => session($node));
$sessions{'in a transaction'}->value('BEGIN');
my $tenant = 0;
my $use = sub {
	my ($session) = @_;
	my $new = 'new ' . ++$tenant;
	return $session->value(<<SQL);
SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('a', tenant => 'tenant 1'))
    || fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('b', tenant => '$new'))
    || (SELECT count(*) FROM t WHERE fieldcrypt.decrypt_field(value, 't') LIKE 'CANARY%')
SQL
};
is($use->($_), 'ab100', 'before') foreach $sessions{idle};
value($node, "CREATE FUNCTION with_keys() RETURNS text LANGUAGE plpgsql AS \$\$ BEGIN RETURN fieldcrypt.ciphertext_text(fieldcrypt.encrypt_field('x')); END \$\$");
foreach my $sql (
	(map { ("REINDEX INDEX CONCURRENTLY fieldcrypt.$_", "REINDEX INDEX fieldcrypt.$_") }
	  'encryption_keys_pkey', 'encryption_keys_active', 'encryption_keys_version'),
	'REINDEX TABLE CONCURRENTLY fieldcrypt.encryption_keys',
	'REINDEX TABLE CONCURRENTLY fieldcrypt.master_keys',
	'VACUUM FULL fieldcrypt.encryption_keys',
	'CLUSTER fieldcrypt.encryption_keys USING encryption_keys_version',
	'VACUUM (ANALYZE) fieldcrypt.encryption_keys',
	'REINDEX SCHEMA fieldcrypt',
	'VACUUM FULL fieldcrypt.audit_log',
	q{CALL fieldcrypt.rotate_keys('tenant 1')})
{
	# The transaction has cached keys and no lock that would block; it uses them again afterwards.
	$sessions{'in a transaction'}->value(q{COMMIT; BEGIN; SELECT fieldcrypt.encrypt_field('x', tenant => 'tenant 1')});
	my $result = run_sql($node, "SET lock_timeout = '20s'; SET client_min_messages = warning; $sql");
	is("@{ $result->{sqlstates} }", '', "done: $sql") or diag $result->{err};
	is($use->($sessions{$_}), 'ab100', "  $_: keys are found, a new one is made") foreach sort keys %sessions;
	$sessions{'in a transaction'}->value('COMMIT; BEGIN');
}
$_->close foreach values %sessions;

# DROP EXTENSION.
refused($node, 'DROP EXTENSION pg_fieldcrypt', '2BP01', 'refused: dropping the extension while a column uses the type');
refused($node, 'DROP TYPE fieldcrypt.encrypted CASCADE', '2BP01', 'refused: dropping the type');
refused($node, "DROP TABLE $_", '2BP01', "refused: dropping $_") foreach 'fieldcrypt.encryption_keys', 'fieldcrypt.master_keys', 'fieldcrypt.audit_log', 'fieldcrypt_internal.audit_log_2031';
refused($node, 'DROP SCHEMA fieldcrypt CASCADE', '2BP01', 'refused: dropping the schema');
same_contents(value($node, $read), $before, 'and nothing happened');
my $one = session($node);
my $other = session($node);
$_->value("SELECT fieldcrypt.encrypt_field('cached')") foreach $one, $other;
my $orphan = $one->value(q{SELECT fieldcrypt.encrypt_field('orphan')});
$one->gives(<<'SQL', "new\nt", 'DROP and CREATE EXTENSION rolled back: the new keys in between, the old ones after');
BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL fieldcrypt.allow_drop = on;
DROP EXTENSION pg_fieldcrypt CASCADE;
CREATE EXTENSION pg_fieldcrypt;
SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('new'));
ROLLBACK;
SELECT count(fieldcrypt.decrypt_field(value, 't')) = 101 FROM t;
SQL
$_->gives("SELECT fieldcrypt.decrypt_field('$orphan')", 'orphan', '  the old key still opens') foreach $one, $other;
$one->value('SET client_min_messages = warning; SET fieldcrypt.allow_drop = on; DROP EXTENSION pg_fieldcrypt CASCADE');
$_->refused("SELECT fieldcrypt.encrypt_field('x')", '3F000', 'dropped: a session that had it cached') foreach $one, $other;
$one->value('CREATE EXTENSION pg_fieldcrypt');
foreach my $session ($one, $other)
{
	my $made = $session->value(q{SELECT fieldcrypt.encrypt_field('after')});
	gives($node, "SELECT fieldcrypt.decrypt_field('$made')", 'after', 'made again: encrypts with keys that are there');
	$session->refused("SELECT fieldcrypt.decrypt_field('$orphan')", 'KF003', 'made again: the old key is gone');
}
$one->value('CALL fieldcrypt.rotate_keys(force => true)');
$_->gives(q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x')) = (SELECT key_id FROM fieldcrypt.encryption_keys WHERE purpose = 'field' AND state = 'active')},
	't', 'made again: rotation reaches the session') foreach $one, $other;
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'key_created'}, '2', 'made again: a log of its own');

$_->close foreach $one, $other;
no_crash($node);
$node->stop;
done_testing();

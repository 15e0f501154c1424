# No nonce is used twice under one key: a million values from several sessions at once, with prepared
# statements, re-connections, errors and rollbacks in between. Blocks are never shared and begin
# anywhere.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "max_wal_size = 4GB\nautovacuum = off\nsynchronous_commit = off\nmax_connections = 50\n");

# What is rolled back is counted in: the client, or the handler of the error, keeps it and stores it again.
value($node, <<'SQL');
CREATE UNLOGGED TABLE made (kind text, batch bigint, value fieldcrypt.encrypted);
CREATE SEQUENCE batches;
SELECT fieldcrypt.create_key('a'), fieldcrypt.create_key('b');
CREATE FUNCTION make(kind text, rows int, tenant text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO made SELECT $1, b.batch, fieldcrypt.encrypt_field('x', '', $3)
      FROM (SELECT nextval('batches') AS batch) AS b, generate_series(1, $2)
$$;
-- Encrypts, fails, catches, goes on: the failed values come back as the message of the error.
CREATE FUNCTION make_with_errors(rounds int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    lost text;
    this bigint := nextval('batches');
BEGIN
    FOR i IN 1 .. rounds LOOP
        INSERT INTO made VALUES ('errors', this, fieldcrypt.encrypt_field('x', '', 'a'));
        BEGIN
            RAISE SQLSTATE 'ZZZZZ' USING MESSAGE = fieldcrypt.ciphertext_text(fieldcrypt.encrypt_field('lost', '', 'a'));
        EXCEPTION WHEN SQLSTATE 'ZZZZZ' THEN
            INSERT INTO made VALUES ('errors', this, SQLERRM::fieldcrypt.encrypted);
        END;
    END LOOP;
END $$;
SQL

my $folder = PostgreSQL::Test::Utils::tempdir();

sub pgbench
{
	my ($name, $script, @arguments) = @_;
	my $path = "$folder/$name.sql";
	open my $file, '>', $path or die $!;
	print $file $script;
	close $file;
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'pgbench', '-n', '-f', $path, @arguments, '-h', $node->host, '-p', $node->port, 'postgres' ],
		'<', \'', '>', \$out, '2>', \$err);
	ok($? == 0 && $err !~ /ERROR|aborted/, "made: $name") or diag $err;
	return;
}

# Bulk statements of several sessions at once: beyond a block's 65,536 values, too.
pgbench('bulk', "SELECT make('bulk', 140000, 'a');\n", '-c', 4, '-j', 2, '-t', 1);
pgbench('bulk of two keys', "SELECT make('bulk', 60000, CASE WHEN :client_id % 2 = 0 THEN 'a' ELSE 'b' END);\n", '-c', 4, '-j', 2, '-t', 2);
# Single rows, each protocol; many statements in one transaction; a connection for each.
pgbench("rows, $_", "SELECT make('rows', 1, 'a');\n", '-c', 4, '-j', 2, '-t', 1000, '-M', $_) foreach qw(simple extended prepared);
pgbench('transactions', "BEGIN;\n" . "SELECT make('transactions', 3, 'a');\n" x 10 . "COMMIT;\n", '-c', 4, '-j', 2, '-t', 50, '-M', 'prepared');
pgbench('one message', 'SELECT make($$one message$$, 3, $$a$$)\; SELECT make($$one message$$, 3, $$b$$);' . "\n", '-c', 4, '-j', 2, '-t', 50);
pgbench('connections', "SELECT make('connections', 2, 'a');\n", '-C', '-c', 4, '-j', 2, '-t', 60);
# Savepoints and transactions that roll back, with values before, in and after.
pgbench('savepoints', <<'SQL', '-c', 4, '-j', 2, '-t', 200, '-M', 'extended');
BEGIN;
SELECT make('savepoints', 2, 'a');
SAVEPOINT s;
SELECT fieldcrypt.encrypt_field('lost', '', 'a')::bytea AS lost \gset
ROLLBACK TO s;
INSERT INTO made VALUES ('savepoints', nextval('batches'), (:lost::text)::bytea::fieldcrypt.encrypted);
SELECT make('savepoints', 2, 'a');
COMMIT;
SQL
pgbench('rollbacks', <<'SQL', '-c', 4, '-j', 2, '-t', 200, '-M', 'extended');
BEGIN;
SELECT fieldcrypt.encrypt_field('lost', '', 'a')::bytea AS lost \gset
ROLLBACK;
INSERT INTO made VALUES ('rollbacks', nextval('batches'), (:lost::text)::bytea::fieldcrypt.encrypted);
SELECT make('rollbacks', 1, 'a');
SQL
pgbench('errors', "SELECT make_with_errors(200);\n", '-c', 4, '-j', 2, '-t', 5);
# Two kinds of loop inside one statement, and re-encryption.
value($node, q{DO $$ BEGIN FOR i IN 1 .. 3000 LOOP PERFORM make('loop', 1, 'a'); END LOOP; END $$});
value($node, q{SELECT fieldcrypt_internal.rotate_active_key('b', NULL, false, NULL)});
value($node, q{INSERT INTO made SELECT 'reencrypted', nextval('batches'), fieldcrypt.reencrypt_field(value) FROM made WHERE fieldcrypt.key_id(value) IN (SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'b' AND state = 'deactivated')});
# A cache too small for the keys in use: each time a key comes back, it begins a block.
value($node, q{SET fieldcrypt.key_cache_size = 1; INSERT INTO made SELECT 'evicted', 0, fieldcrypt.encrypt_field('x', '', CASE WHEN g % 2 = 0 THEN 'a' ELSE 'b' END) FROM generate_series(1, 2000) AS g});

value($node, <<'SQL');
SET work_mem = '512MB';
CREATE UNLOGGED TABLE nonces AS
    SELECT m.kind, m.batch, i.key_id, i.nonce, substr(i.nonce, 1, 12) AS prefix,
           ('x' || encode(substr(i.nonce, 13), 'hex'))::bit(32)::bigint & 4294967295 AS counter
      FROM made AS m, fieldcrypt.ciphertext_info(m.value) AS i;
ANALYZE nonces;
SQL
gives($node, 'SELECT count(*) > 1000000, count(DISTINCT key_id) FROM nonces', 't|3', 'a million values under three keys');
# Re-encryption under a key that is active gives the value back as it is, so nothing is in `made` twice.
gives($node, q{SET work_mem = '512MB'; SELECT count(*) FROM (SELECT FROM nonces GROUP BY key_id, nonce HAVING count(*) > 1) AS twice}, '0', 'no nonce twice under a key');
gives($node, q{SET work_mem = '512MB'; SELECT count(*) FROM (SELECT prefix FROM nonces GROUP BY prefix HAVING count(DISTINCT key_id) > 1) AS shared}, '0', 'no prefix under two keys');

# A batch is one statement. A block belongs to one; only statements sent in one message may share it.
gives($node, <<'SQL', '0', 'no block is shared by two statements');
SET work_mem = '512MB';
SELECT count(*) FROM (
    SELECT prefix FROM nonces WHERE kind NOT IN ('loop', 'one message', 'evicted', 'reencrypted') AND batch <> 0
     GROUP BY prefix HAVING count(DISTINCT batch) > 1) AS shared
SQL
gives($node, q{SELECT count(*) FROM (SELECT FROM nonces WHERE kind = 'evicted' GROUP BY prefix HAVING count(*) > 1) AS shared}, '0', 'no block outlives its key\'s place in the cache');
gives($node, q{SELECT count(DISTINCT prefix), count(*) FROM nonces WHERE kind = 'loop'}, '1|3000', 'the rows of one statement share a block, which is what makes them quick');
gives($node, <<'SQL', '65536|t', 'a block ends after 65,536 values');
SET work_mem = '512MB';
SELECT max(n), count(*) FILTER (WHERE n = 65536) >= 8 FROM (SELECT count(*) AS n FROM nonces GROUP BY prefix) AS b
SQL

# Within a block the counter goes up by one, modulo 2^32: also where values were lost to errors.
gives($node, <<'SQL', '0', 'a block\'s counters follow one another without a gap');
SET work_mem = '512MB';
SELECT count(*) FROM (
    SELECT count(*) AS n, count(DISTINCT counter) AS different,
           least(max(counter) - min(counter), max((counter + 2147483648) % 4294967296) - min((counter + 2147483648) % 4294967296)) AS span
      FROM nonces WHERE kind <> 'reencrypted' GROUP BY prefix) AS b
 WHERE n <> different OR span <> n - 1
SQL

# Where blocks begin: sixteen bins of the counter's 2^32, chi-square with 15 degrees of freedom; above 60
# has a chance below 3 in 10 million. The same for every byte of the prefix.
gives($node, <<'SQL', 't|t', 'first counters are spread evenly, and so is every byte of the prefixes');
SET work_mem = '512MB';
WITH blocks AS MATERIALIZED (
    SELECT prefix, min(counter) AS first FROM nonces GROUP BY prefix HAVING max(counter) - min(counter) < 65536
), counted AS (
    SELECT bin, count(*)::float AS n, sum(count(*)) OVER () / 16 AS expected FROM (SELECT first >> 28 AS bin FROM blocks) AS x GROUP BY bin
), bytes AS (
    SELECT at, get_byte(prefix, at) >> 4 AS bin FROM blocks, generate_series(0, 11) AS at
), bytes_counted AS (
    SELECT at, count(*)::float AS n, sum(count(*)) OVER (PARTITION BY at) / 16 AS expected FROM bytes GROUP BY at, bin
)
SELECT (SELECT count(*) = 16 AND sum((n - expected) ^ 2 / expected) < 60 FROM counted),
       (SELECT bool_and(chi < 60) FROM (SELECT sum((n - expected) ^ 2 / expected) AS chi FROM bytes_counted GROUP BY at) AS c)
SQL
gives($node, q{SELECT count(DISTINCT prefix) > 15000 FROM nonces}, 't', 'that is said of thousands of blocks');

gives($node, q{SELECT bool_and(fieldcrypt.decrypt_field(value) IN ('x', 'lost')) FROM made}, 't', 'every one of them opens');
ok(slurp_file($node->logfile) !~ /PANIC|XX000|terminated by signal/, 'no internal error');
$node->stop;
done_testing();

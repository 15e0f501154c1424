# Parallel plans: decryption runs in workers and sees what the leader's transaction made; encryption
# stays out of them.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => <<'CONF');
parallel_setup_cost = 0
parallel_tuple_cost = 0
min_parallel_table_scan_size = 0
max_parallel_workers_per_gather = 3
max_parallel_workers = 8
max_worker_processes = 16
CONF
$node->append_conf('postgresql.conf', force_parallel() =~ s/SET (.*);/$1/r . "\n");
$node->reload;

value($node, <<'SQL');
CREATE TABLE t (id int, value fieldcrypt.encrypted) WITH (parallel_workers = 3);
INSERT INTO t SELECT i, fieldcrypt.encrypt_field('value ' || i, tenant => 'tenant ' || i % 5) FROM generate_series(1, 3000) AS i;
ANALYZE t;
SQL

my $sum = q{SELECT count(*), sum(substr(fieldcrypt.decrypt_field(value), 7)::int) FROM t WHERE fieldcrypt.decrypt_field(value) LIKE 'value %'};
like(value($node, "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) $sum"),
	qr/Workers Launched: [1-3].*Parallel Seq Scan.*Filter: .*decrypt_field/s, 'decrypt_field runs in workers');
gives($node, $sum, '3000|4501500', 'and gives what it should');
gives($node, q{SELECT fieldcrypt.decrypt_field_as(value, NULL::text), fieldcrypt.try_decrypt_field(value), convert_from(fieldcrypt.decrypt_field_bytea(value), 'UTF8') FROM t WHERE id = 7},
	'value 7|value 7|value 7', 'so do the others');

# Encryption is never in a worker, nor below a Gather.
foreach my $sql (
	q{SELECT fieldcrypt.encrypt_field('x') FROM t},
	q{SELECT fieldcrypt.encrypt_field_bytea('x') FROM t},
	q{SELECT fieldcrypt.encrypt_field_jsonb('1') FROM t},
	q{SELECT fieldcrypt.reencrypt_field(value) FROM t},
	q{SELECT fieldcrypt.create_key('tenant 1') FROM t},
	q{SELECT count(*) FROM t WHERE fieldcrypt.key_id(fieldcrypt.encrypt_field(id::text)) > 0},
	q{CREATE TABLE copy AS SELECT fieldcrypt.encrypt_field(id::text) FROM t})
{
	unlike(value($node, "EXPLAIN $sql"), qr/Gather/, "no parallel plan: $sql");
}

# A key that this transaction made is known to its workers; one that it rolled back to nobody.
my $new = q{INSERT INTO t SELECT 10000 + i, fieldcrypt.encrypt_field('value 0', tenant => 'made in this transaction') FROM generate_series(1, 1000) AS i};
foreach my $isolation ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	my $session = session($node);
	$session->value("BEGIN ISOLATION LEVEL $isolation");
	$session->value($new);
	like($session->value("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) $sum"), qr/Workers Launched: [1-3]/, "$isolation: workers");
	$session->gives($sum, '4000|4501500', "$isolation: read what a new key encrypted");
	$session->value('SAVEPOINT a');
	$session->value(q{SELECT fieldcrypt_internal.rotate_active_key('made in this transaction', NULL, false, NULL)});
	$session->value($new);
	$session->gives($sum, '5000|4501500', "$isolation: and a key of a savepoint");
	$session->value('ROLLBACK TO a');
	$session->gives($sum, '4000|4501500', "$isolation: savepoint rolled back");
	value($node, 'CALL fieldcrypt.rotate_keys(force => true)') if $isolation ne 'SERIALIZABLE';
	$session->gives($sum, '4000|4501500', "$isolation: others rotated meanwhile");
	$session->value('ROLLBACK');
	$session->gives($sum, '3000|4501500', "$isolation: all rolled back");
	$session->close;
}

# A function that lies about being parallel safe: existing keys serve, new ones are refused.
value($node, <<'SQL');
CREATE FUNCTION lie(tenant text) RETURNS text LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RETURN fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', tenant => tenant));
END $$;
SQL
my $load = q{LOAD 'pg_fieldcrypt';};
gives($node, qq{$load SELECT count(*) FROM t WHERE lie('tenant 1') = 'x'}, '3000', 'existing keys encrypt in a worker, too');
refused($node, qq{$load SELECT count(*) FROM t WHERE lie('nobody yet') = 'x'}, 'KF013', qr/parallel query can't make one/, 'no key is made in a parallel query');
gives($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = 'nobody yet'}, '0', 'and none was');

# A session whose first use of the extension is inside a parallel query, hidden in a function: the
# library is loaded there, and its settings hold all the same, then and later.
value($node, <<'SQL');
CREATE FUNCTION shown(value fieldcrypt.encrypted) RETURNS text LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RETURN fieldcrypt.decrypt_field(value);
END $$;
SQL
foreach my $leader ('on', 'off')
{
	my $set = "SET parallel_leader_participation = $leader;";
	gives($node, "$set SELECT count(*) FROM t WHERE shown(value) LIKE 'value %'", '3000', "leader $leader: the library is loaded in a parallel query");
	gives($node, "$set SELECT count(*) FROM t WHERE shown(value) LIKE 'value %'; SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('later', tenant => 'tenant 1'))",
		"3000\nlater", "leader $leader: and the session can go on");
	refused($node, "$set SET fieldcrypt.tenant = 'tenant 1'; SELECT count(*) FROM t WHERE shown(value) LIKE 'value %'",
		'KF006', "leader $leader: the session's tenant holds, set before the library was loaded");
	my $result = run_sql($node, "$set SET fieldcrypt.tenant = 'tenant 1'; SELECT count(*) FROM t WHERE id % 5 = 1 AND shown(value) LIKE 'value %'; SHOW fieldcrypt.tenant");
	is($result->{out}, "600\ntenant 1", "leader $leader: and still afterwards") or diag $result->{err};
}

# Errors of workers are errors, with their own codes.
refused($node, "SET fieldcrypt.tenant = 'tenant 1'; $sum", 'KF006', 'the session\'s tenant holds in workers');
refused($node, $sum =~ s/\(value\)/(value, 'other')/gr, 'KF002', 'another context');
value($node, <<'SQL');
BEGIN;
ALTER TABLE fieldcrypt.encryption_keys DISABLE TRIGGER refuse_change;
UPDATE fieldcrypt.encryption_keys SET state = 'suspended' WHERE tenant = 'tenant 2' AND version = 1;
ALTER TABLE fieldcrypt.encryption_keys ENABLE TRIGGER refuse_change;
COMMIT;
SQL
refused($node, $sum, 'KF004', 'a suspended key');
$node->append_conf('postgresql.conf', "fieldcrypt.master_key_file = ''\n");
$node->reload;
refused($node, 'SELECT count(fieldcrypt.decrypt_field(value)) FROM t', 'KF008', 'no master key');

no_crash($node);
$node->stop;
done_testing();

# A table whose rows are on other nodes is not counted as empty: no key is destroyed while values of it may be there,
# and re-encryption does not say that it is done. Catalogs that look like Citus's stand for Citus: 276 has the real one.

use strict;
use warnings;

use FieldcryptTest;
use OtherNodes;
use Test::More;

my $node = new_cluster('coordinator', conf => "allow_system_table_mods = on\nfieldcrypt.require_approval = ''\n");
value($node, <<'SQL');
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted);
CREATE TABLE local (id int PRIMARY KEY, ssn fieldcrypt.encrypted);
CREATE ROLE manager LOGIN;
SELECT fieldcrypt.grant_access('manager', 'manage');
SQL
look_like_citus($node, 0);

my $serial = 0;

# A deactivated key without values here.
sub old_key
{
	my $tenant = 'tenant ' . ++$serial;
	my $key = value($node, "SELECT fieldcrypt.create_key('$tenant')");
	value($node, "CALL fieldcrypt.rotate_keys('$tenant')");
	return ($tenant, $key);
}

sub state_of { return value($node, "SELECT state FROM fieldcrypt.encryption_keys WHERE key_id = $_[0]"); }

sub health_of
{
	return value($node, qq{SELECT status || ': ' || detail || coalesce(' HINT ' || hint, '') FROM fieldcrypt.health() WHERE "check" = '$_[0]'});
}

my $elsewhere = qr/values can't be counted in public\.patients\.ssn \(a distributed table of Citus: its rows are in shards, on other nodes, too\)/;

# The coordinator makes keys; without a distributed table all is counted.
my ($tenant, $key) = old_key();
value($node, "CALL fieldcrypt.destroy_key($key)");
make_due($node, $key);
my $result = run_sql($node, 'CALL fieldcrypt.destroy_due_keys()');
is(state_of($key), 'destroyed', 'no table is distributed: a key without values is destroyed') or diag $result->{err};
like(health_of('values_elsewhere'), qr/^ok: all that can hold values/, 'and health counts on it');

# The fault: a table whose rows are in shards has none here.
distribute($node, 'patients');
like(health_of('values_elsewhere'), qr/^ok: what is said of values here speaks for this node only: $elsewhere/, 'health says what it does not see');
($tenant, $key) = old_key();
$result = run_sql($node, "CALL fieldcrypt.destroy_key($key)");
like($result->{err}, qr/WARNING: .*it can't be known that encryption key $key is unused: $elsewhere/, 'destroy_key warns');
like(health_of('values_elsewhere'), qr/^warning: $elsewhere; so it is not known here whether values are left on key $key .*HINT On each node/, 'health names the key that waits');
make_due($node, $key);
$result = run_sql($node, 'CALL fieldcrypt.destroy_due_keys()', user => 'manager');
is(state_of($key), 'deactivated', 'destroy_due_keys destroys nothing') or diag $result->{err};
like($result->{err}, qr/encryption key $key is not destroyed: $elsewhere/, 'and says why');
gives($node, "SELECT outcome, message ~ 'distributed table' FROM fieldcrypt_internal.destroy_step(ARRAY[$key]::bigint[], false)", 'waits|t', 'nor does its step, called by hand');
is(state_of($key), 'deactivated', 'the key is there');

my ($other, $retired) = old_key();
$result = run_sql($node, "SELECT key_id, outcome FROM fieldcrypt.retire_keys(1, '$other')", user => 'manager');
is($result->{out}, "$retired|scheduled", 'retire_keys schedules');
like($result->{err}, qr/WARNING: .*it can't be known that 1 encryption key\(s\) are unused: $elsewhere/, 'and warns as destroy_key does');
make_due($node, $retired);
run_sql($node, 'CALL fieldcrypt.destroy_due_keys()');
is(state_of($retired), 'deactivated', 'nor is that one destroyed');
$result = run_sql($node, "SELECT count(*) FROM fieldcrypt.retire_keys(1, '$other')");
unlike($result->{err}, qr/WARNING/, 'where nothing is scheduled, nothing is warned of');

$result = run_sql($node, "SELECT count(*) FROM fieldcrypt.key_usage(exact => true) WHERE key_id = $key AND \"values\" = 0");
is($result->{out}, '1', 'key_usage counts 0 here');
like($result->{err}, qr/NOTICE: .*key_usage: $elsewhere/, 'and says that this is not all');

# Shards that are here are tables like others.
value($node, "CREATE TABLE patients_102008 (LIKE patients); INSERT INTO patients_102008 SELECT 1, fieldcrypt.encrypt_field('a', tenant => '$tenant')");
gives($node, "SELECT count(*) FROM fieldcrypt.key_usage(true) WHERE table_name = 'public.patients_102008' AND \"values\" = 1", '1', 'a shard is counted');

# Re-encryption and verification.
refused($node, q{CALL fieldcrypt.reencrypt('patients')}, 'KF033', qr/^.*patients is a distributed table of Citus/, 'reencrypt of a distributed table', user => 'manager');
like(run_sql($node, q{CALL fieldcrypt.reencrypt('patients')})->{err}, qr/HINT: +On each node that has shards: CALL fieldcrypt\.reencrypt\(\)/, 'and the hint says where');
$result = run_sql($node, 'CALL fieldcrypt.reencrypt()', user => 'manager');
like($result->{err}, qr/WARNING: +KF033: distributed tables of Citus are left alone, their shards here are not: public\.patients\n/, 'reencrypt of all names it');
like($result->{err}, qr/, 2 tables done/, 'and counts only what it did');
gives($node, q{SELECT string_agg(table_name, ' ' ORDER BY table_name) FROM fieldcrypt.reencryption_progress}, 'public.local public.patients_102008', 'nor is it in the progress');
value($node, q{SELECT fieldcrypt.set_column_context('patients', 'ssn', constant => 'x')});
refused($node, q{CALL fieldcrypt.verify_values('patients')}, 'KF033', qr/not verified from here/, 'nor is it verified from here', user => 'manager');

# The whole kind: rows that are elsewhere in other ways.
value($node, 'DELETE FROM pg_catalog.pg_dist_partition');
value($node, <<'SQL');
CREATE FOREIGN DATA WRAPPER nowhere;
CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere;
CREATE TABLE parts (id int, ssn fieldcrypt.encrypted) PARTITION BY RANGE (id);
CREATE FOREIGN TABLE part_elsewhere PARTITION OF parts FOR VALUES FROM (0) TO (9) SERVER nowhere;
SQL
make_due($node, $key);
$result = run_sql($node, 'CALL fieldcrypt.destroy_due_keys()');
is(state_of($key), 'deactivated', 'a partition that is a foreign table: nothing is destroyed');
like($result->{err}, qr/public\.part_elsewhere\.ssn \(a foreign table\)/, 'and it is named');
value($node, 'DROP TABLE parts');

# What speaks for one node says so.
distribute($node, 'patients');
gives($node, q{SELECT bool_and(advice ~ 'this speaks for this node only: the other nodes of Citus have keys') FROM fieldcrypt.master_key_status()}, 't', 'master_key_status speaks for this node');
$result = run_sql($node, "CALL fieldcrypt.shred_tenant('$other', 'asked to')", user => 'manager');
is(join(' ', @{ $result->{sqlstates} }), '', 'a tenant is shredded here');
like($result->{err}, qr/WARNING: .*shred_tenant speaks for this node only: the other nodes of Citus have keys/, 'and that is said');

# Whoever knows better decides.
$result = run_sql($node, 'CALL fieldcrypt.destroy_due_keys(ignore_uncountable => true)');
is(state_of($key), 'destroyed', 'ignore_uncountable => true destroys it') or diag $result->{err};

# Citus hides shards from each query that names pg_class, unless this setting is off while it is planned.
gives($node, <<'SQL', '', 'every function that looks into pg_class sees what Citus hides there');
SELECT string_agg(p.oid::regprocedure::text, ' ') FROM pg_proc AS p
 WHERE p.pronamespace IN ('fieldcrypt'::regnamespace, 'fieldcrypt_internal'::regnamespace) AND p.prosrc ~ '\mpg_class\M'
   AND NOT 'citus.override_table_visibility=off' = ANY (coalesce(p.proconfig, '{}'))
SQL
gives($node, q{SELECT count(*) FROM pg_views WHERE schemaname = 'fieldcrypt' AND definition ~ '\mpg_class\M'}, '0', 'and no view does');
gives($node, q{SELECT count(*) > 10 FROM pg_proc WHERE 'citus.override_table_visibility=off' = ANY (proconfig)}, 't', 'there are such functions');

no_crash($node);
$node->stop;
done_testing();

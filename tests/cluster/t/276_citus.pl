# The real Citus, where its library is installed: a coordinator and two workers. What its catalogs alone can't show: shards
# that it hides, settings that it takes along, and the statements of docs/more-than-one-node.md.

use strict;
use warnings;

use FieldcryptTest;
use OtherNodes;
use PostgreSQL::Test::Utils;
use Test::More;

needs_library('citus', 'Citus');

my $conf = <<'CONF';
shared_preload_libraries = 'citus,pg_fieldcrypt'
listen_addresses = '127.0.0.1'
citus.node_conninfo = 'sslmode=prefer'
fieldcrypt.require_approval = ''
CONF
my %nodes = map { $_ => new_cluster($_, extension => 0, init => { allows_streaming => 'logical' }, conf => $conf) } qw(coordinator one two);
my $coordinator = $nodes{coordinator};
value($nodes{$_}, 'CREATE EXTENSION citus') foreach sort keys %nodes;
value($coordinator, sprintf "SELECT citus_set_coordinator_host('127.0.0.1', %d)", $coordinator->port);
value($coordinator, sprintf "SELECT citus_add_node('127.0.0.1', %d)", $nodes{$_}->port) foreach 'one', 'two';
value($_, 'CREATE EXTENSION IF NOT EXISTS pg_fieldcrypt') foreach $coordinator, $nodes{one}, $nodes{two};
my @workers = @nodes{ 'one', 'two' };

# First keys: on the coordinator, brought to the workers.
refused($_, q{SELECT fieldcrypt.create_key('acme')}, 'KF034', $_->name . ' makes no key') foreach @workers;
value($coordinator, q{SELECT fieldcrypt.create_key('acme'), fieldcrypt.create_key('other')});
my $bring = sub {
	my $document = value($coordinator, 'SELECT fieldcrypt.export_keys()') =~ s/'/''/gr;
	value($_, "SELECT * FROM fieldcrypt.import_keys('$document', apply_states => true)") foreach @workers;
};
$bring->();

value($coordinator, <<'SQL');
CREATE TABLE patients (id int PRIMARY KEY, name text, ssn fieldcrypt.encrypted);
SELECT create_distributed_table('patients', 'id', shard_count => 4);
SQL
my $context = q{fieldcrypt.context('patients.ssn', %s)};
value($coordinator, sprintf("INSERT INTO patients VALUES (%d, 'n', fieldcrypt.encrypt_field('v %d', fieldcrypt.context('patients.ssn', %d), 'acme'))", $_, $_, $_)) foreach 1 .. 20;
my $read = q{fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id))};
gives($coordinator, "SELECT count(*), count($read) FROM patients", '20|20', 'values are written by the coordinator and read on the workers');
value($coordinator, q{UPDATE patients SET ssn = (SELECT fieldcrypt.encrypt_field('changed', fieldcrypt.context('patients.ssn', 3), 'acme')) WHERE id = 3});
gives($coordinator, "SELECT $read FROM patients WHERE id = 3", 'changed', 'UPDATE in the form that the docs have');
refused($coordinator, q{UPDATE patients SET ssn = fieldcrypt.encrypt_field('changed', 'c', 'acme') WHERE id = 3}, '0A000', 'and not in the other');

# Keys in use are kept.
my $old = value($coordinator, q{SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND state = 'active'});
value($coordinator, q{CALL fieldcrypt.rotate_keys('acme')});
$bring->();
like(run_sql($coordinator, "CALL fieldcrypt.destroy_key($old)")->{err}, qr/public\.patients\.ssn \(a distributed table of Citus/, 'destroy_key: what is not counted');
make_due($coordinator, $old);
run_sql($coordinator, 'CALL fieldcrypt.destroy_due_keys()');
gives($coordinator, "SELECT count($read) FROM patients", '20', 'and no key is destroyed');

# Workers see their shards, whatever the application is called.
my $counted = 0;
foreach my $worker (@workers)
{
	my $here = value($worker, qq{SELECT coalesce(sum("values"), 0) FROM fieldcrypt.key_usage(exact => true) WHERE key_id = $old});
	ok($here > 0, $worker->name . ' counts the values of its shards');
	$counted += $here;
	gives($worker, q{SELECT count(*) > 0 FROM fieldcrypt_internal.encrypted_columns() WHERE table_name ~ '^public\.patients_\d+$' AND is_readable}, 't', $worker->name . ' sees its shards');
}
is($counted, 20, 'all of them together');

# Re-encryption, on each worker, with the context of each shard.
refused($coordinator, q{CALL fieldcrypt.reencrypt('patients')}, 'KF033', 'not from the coordinator');
foreach my $worker (@workers)
{
	value($worker, <<'SQL');
SELECT fieldcrypt.set_column_context(c.relation::regclass, 'ssn', expression => $e$fieldcrypt.context('patients.ssn', id)$e$)
  FROM fieldcrypt_internal.encrypted_columns() AS c WHERE c.table_name ~ '^public\.patients_\d+$' AND c.is_readable
SQL
	my $result = run_sql($worker, 'CALL fieldcrypt.reencrypt(rows_per_second => 0)');
	is("@{ $result->{sqlstates} }", '', $worker->name . ' re-encrypts its shards') or diag $result->{err};
	gives($worker, qq{SELECT coalesce(sum("values"), 0) FROM fieldcrypt.key_usage(exact => true) WHERE key_id = $old}, '0', '  to the new key');
}
gives($coordinator, "SELECT count($read) FROM patients", '20', 'all of it is read as before');

# The tenant of the session.
value($coordinator, q{INSERT INTO patients VALUES (100, 'n', fieldcrypt.encrypt_field('of other', fieldcrypt.context('patients.ssn', 100), 'other'))});
my $result = run_sql($coordinator, "SET fieldcrypt.tenant = 'acme'; SELECT $read FROM patients WHERE id = 100");
like($result->{err}, qr/01000: fieldcrypt\.tenant holds on this node only/, 'SET: it is said that it does not reach the workers');
$result = run_sql($coordinator, "SET citus.propagate_set_commands = 'local'; BEGIN; SET LOCAL fieldcrypt.tenant = 'acme'; SELECT $read FROM patients WHERE id = 100; COMMIT");
is("@{ $result->{sqlstates} }", 'KF006', 'SET LOCAL that Citus takes along: another tenant\'s value is refused') or diag "$result->{out}$result->{err}";
unlike($result->{err}, qr/01000/, 'and nothing is warned of');

foreach my $node (@nodes{ sort keys %nodes })
{
	no_crash($node);
	$node->stop;
}
done_testing();

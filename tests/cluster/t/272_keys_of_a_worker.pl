# A worker of Citus makes no key of its own: it would be missing on every other node, and be found missing when a shard
# moves. Keys are made on the coordinator and brought over; catalogs that look like Citus's stand for Citus (276).

use strict;
use warnings;

use FieldcryptTest;
use OtherNodes;
use Test::More;

my $conf = "allow_system_table_mods = on\nshared_preload_libraries = 'pg_fieldcrypt'\n";
my $coordinator = new_cluster('coordinator', conf => $conf);
my $worker = new_cluster('worker', conf => $conf);
value($_, q{CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted); CREATE TABLE plain (id int, ssn text); INSERT INTO plain VALUES (1, 'a')})
  foreach $coordinator, $worker;
look_like_citus($coordinator, 0);
look_like_citus($worker, 3);

sub health_of
{
	my ($check, $call) = @_;
	return value($worker, qq{SELECT status || ': ' || detail FROM fieldcrypt.@{[ $call // 'health()' ]} WHERE "check" = '$check'});
}
sub field_keys { return value($_[0], q{SELECT string_agg(key_id || ' ' || state, ', ' ORDER BY key_id) FROM fieldcrypt.encryption_keys WHERE purpose = 'field'}); }

like(health_of('missing_keys'), qr/^warning: there are encrypted columns and no keys here: this is a worker of Citus/, 'health: a worker without keys');

# First keys, in every form.
my $refusal = qr/no encryption key is made here: this is a worker of Citus/;
foreach my $sql (
	q{SELECT fieldcrypt.encrypt_field('x', tenant => 'acme')},
	q{SELECT fieldcrypt.encrypt_field('x')},
	q{SELECT fieldcrypt.encrypt_field_as(1, 'c', 'acme')},
	q{SELECT fieldcrypt.encrypt_field_jsonb('{}', 'c', 'acme')},
	q{SELECT fieldcrypt.encrypt_field_bytea('x', 'c', 'acme')},
	q{INSERT INTO patients SELECT id, fieldcrypt.encrypt_field(ssn) FROM plain},
	q{ALTER TABLE plain ALTER ssn TYPE fieldcrypt.encrypted USING fieldcrypt.encrypt_field(ssn)},
	q{SET fieldcrypt.tenant = 'acme'; SELECT fieldcrypt.encrypt_field('x')},
	q{SELECT fieldcrypt.create_key('acme')},
	q{CALL fieldcrypt.rotate_keys('acme', force => true)},
	q{BEGIN; SAVEPOINT s; SELECT fieldcrypt.create_key('acme')})
{
	refused($worker, $sql, 'KF034', $refusal, "refused on a worker: $sql");
}
my $result = run_sql($worker, q{SELECT fieldcrypt.create_key('acme')});
like($result->{err}, qr/HINT: .*on the coordinator.*export_keys\(\) there, import_keys\(document, apply_states => true\) here/, 'the hint is a way out');
configure($worker, 'fieldcrypt.create_keys_on_use' => 'off');
refused($worker, q{SELECT fieldcrypt.encrypt_field('x', tenant => 'acme')}, 'KF034', $refusal, 'also where only create_key makes keys, which makes none here');
configure($worker, 'fieldcrypt.create_keys_on_use' => 'on');
is(field_keys($worker), '', 'there is no key');

# Brought over.
my $value = value($coordinator, q{SELECT fieldcrypt.encrypt_field('CANARY', 'c', 'acme')});
my $document = value($coordinator, 'SELECT fieldcrypt.export_keys()') =~ s/'/''/gr;
value($worker, "SELECT * FROM fieldcrypt.import_keys('$document')");
is(field_keys($worker), field_keys($coordinator), 'imported keys are those of the coordinator');
gives($worker, "SELECT fieldcrypt.decrypt_field('$value', 'c')", 'CANARY', 'they decrypt');
gives($worker, q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => 'acme'))},
	value($coordinator, q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => 'acme'))}), 'and encrypt');
like(health_of('missing_keys'), qr/^ok: /, 'health: it has keys');
gives($worker, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE purpose = 'audit'}, '1', 'its log has a key, too');

# No next version, either: it would be another than the coordinator's.
my $key = value($worker, q{SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'acme'});
my $before = field_keys($worker);
refused($worker, $_, 'KF034', $refusal, "refused on a worker: $_") foreach (
	q{CALL fieldcrypt.rotate_keys('acme')},
	q{CALL fieldcrypt.rotate_keys('acme', force => true)},
	q{SELECT fieldcrypt.rotate_key('acme')},
	qq{SELECT fieldcrypt.mark_compromised($key, 'r')},
	q{SELECT fieldcrypt.encrypt_field('x', tenant => 'another')});
is(field_keys($worker), $before, 'nothing has changed');
my $audit_key = q{SELECT key_id FROM fieldcrypt.encryption_keys WHERE purpose = 'audit' AND state = 'active'};
my $old_audit_key = value($worker, $audit_key);
$result = run_sql($worker, q{CALL fieldcrypt.rotate_keys(force => true)});
is("@{ $result->{sqlstates} }", '', 'rotate_keys for all tenants goes on') or diag $result->{err};
like($result->{err}, qr/WARNING: +KF034: the keys of tenants are not rotated here: this is a worker of Citus/, 'and says whose keys it leaves');
is(field_keys($worker), $before, 'it rotates no tenant\'s key');
isnt(value($worker, $audit_key), $old_audit_key, 'but that of its own log');

# What stops a key needs none, and works at once.
value($worker, "SELECT fieldcrypt.suspend_key($key, 'r')");
refused($worker, "SELECT fieldcrypt.decrypt_field('$value', 'c')", 'KF004', 'a key is suspended on the worker');
refused($worker, q{SELECT fieldcrypt.encrypt_field('x', tenant => 'acme')}, 'KF007', 'nor does the tenant get another');
value($worker, "SELECT fieldcrypt.resume_key($key, 'r')");
gives($worker, "SELECT fieldcrypt.decrypt_field('$value', 'c')", 'CANARY', 'and resumed');

# A rotation on the coordinator, brought over.
value($coordinator, q{CALL fieldcrypt.rotate_keys(force => true)});
$document = value($coordinator, 'SELECT fieldcrypt.export_keys()') =~ s/'/''/gr;
refused($worker, "SELECT * FROM fieldcrypt.import_keys('$document')", 'KF022', qr/two active keys.*HINT: .*apply_states => true/s, 'a new version beside the old one');
value($worker, "SELECT * FROM fieldcrypt.import_keys('$document', apply_states => true)");
is(field_keys($worker), field_keys($coordinator), 'a rotation is brought over with the states of the old keys');
my $key_of_next = q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => 'acme'))};
gives($worker, $key_of_next, value($coordinator, $key_of_next), 'both encrypt with the new one');
gives($worker, "SELECT fieldcrypt.decrypt_field('$value', 'c')", 'CANARY', 'and old values open');

# Nor is a key destroyed here: a shard with its values may move in.
value($worker, "CALL fieldcrypt.destroy_key($key)");
make_due($worker, $key);
$result = run_sql($worker, 'CALL fieldcrypt.destroy_due_keys()');
like($result->{err}, qr/key $key is not destroyed: another node may have values of it, or send them here \(this is a worker of Citus\)/, 'an unused key waits on a worker');
gives($worker, "SELECT fieldcrypt.decrypt_field('$value', 'c')", 'CANARY', 'and still opens');

# A value of a key that did not come along.
my $later = value($coordinator, q{SELECT fieldcrypt.encrypt_field('CANARY', 'c', 'later')});
value($worker, "INSERT INTO patients VALUES (1, '$later')");
like(health_of('missing_keys', 'health(thorough => true)'), qr/^critical: values can't be read: this database has not key \d+ \(1 value\(s\) in public\.patients\.ssn\)/, 'health: a value whose key is not here');
value($worker, 'DELETE FROM patients');
like(health_of('missing_keys', 'health(thorough => true)'), qr/^ok: every value's key is here/, 'health: all keys are here');

# A node that is none of a worker makes keys.
value($worker, 'UPDATE pg_catalog.pg_dist_local_group SET groupid = 0');
gives($worker, q{SELECT fieldcrypt.create_key('later') > 0}, 't', 'in group 0 keys are made');
gives($coordinator, q{SELECT fieldcrypt.create_key('another') > 0}, 't', 'on the coordinator, too');

foreach my $node ($coordinator, $worker)
{
	no_crash($node);
	$node->stop;
}
done_testing();

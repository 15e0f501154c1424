# Exports of the keys: what they hold, who may make them, what an import takes over, and everything
# that it refuses. Nothing makes a key more permissive than it is, or than the log says.

use strict;
use warnings;

use FieldcryptTest;
use JSON::PP;
use Test::More;

my ($old, $new, $stranger) = map { key_text($_) } 1 .. 3;
my $node = new_cluster('primary', keys => [$old]);
value($node, <<'SQL');
CREATE TABLE kept (id int PRIMARY KEY, tenant text, value fieldcrypt.encrypted);
INSERT INTO kept SELECT i, t, fieldcrypt.encrypt_field(format('%s of %s', i, t), tenant => t)
  FROM generate_series(1, 40) AS i, LATERAL (SELECT (ARRAY['default', 'acme', 'Zürich 🔑', E'with "quotes", \\ and more'])[1 + i % 4] AS t) AS t;
CALL fieldcrypt.rotate_keys(force => true);
INSERT INTO kept SELECT i + 40, t, fieldcrypt.encrypt_field(format('%s of %s', i + 40, t), tenant => t)
  FROM generate_series(1, 40) AS i, LATERAL (SELECT (ARRAY['default', 'acme', 'Zürich 🔑', E'with "quotes", \\ and more'])[1 + i % 4] AS t) AS t;
CREATE ROLE manager LOGIN;
CREATE ROLE dumper LOGIN;
CREATE ROLE app LOGIN;
CREATE ROLE auditor LOGIN;
SELECT fieldcrypt.grant_access('manager', 'manage');
SELECT fieldcrypt.grant_access('dumper', 'backup');
SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt', 'reencrypt');
SELECT fieldcrypt.grant_access('auditor', 'audit');
SQL

my $readable = q{SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(value) = format('%s of %s', id, tenant)) FROM kept};
my $keys = 'SELECT * FROM fieldcrypt.encryption_keys ORDER BY key_id';
my $json = JSON::PP->new->canonical->ascii;

sub quoted { my ($text) = @_; $text =~ s/'/''/g; return "'$text'"; }
sub import_sql { my ($document, $more) = @_; return 'SELECT * FROM fieldcrypt.import_keys(' . quoted($document) . ($more // '') . ')'; }
sub lose { my ($sql) = @_; value($node, "SET session_replication_role = replica; $sql"); return; }

my $document = value($node, 'SELECT fieldcrypt.export_keys()');
my $before = value($node, $keys);

# What it holds.
{
	my $content = decode_json($document);
	is($content->{version}, 1, 'version 1');
	is(scalar @{ $content->{keys} }, 10, 'every key, and those of the audit log');
	is(scalar @{ $content->{authentication} }, 1, 'one master key authenticates');
	ok($document !~ /[^\x20-\x7e]/, 'one line of ASCII');
	ok($document !~ /\Q$old\E/, 'no master key in it');
	gives($node, q{SELECT event, reason, key_id FROM fieldcrypt.audit_log ORDER BY id DESC LIMIT 1}, 'keys_exported|10 keys|', 'recorded');
}

# Who may.
foreach my $case (
	[ 'fieldcrypt.export_keys()', 'dumper' ],
	[ 'fieldcrypt.verify_keys()', 'manager dumper' ],
	[ 'fieldcrypt.key_states_status()', 'manager dumper' ],
	[ q{fieldcrypt.confirm_key_states('looked')}, 'manager' ],
	[ "fieldcrypt.import_keys(" . quoted($document) . ")", 'manager' ],
	[ q{fieldcrypt_internal.seal_export('{}')}, '' ],
	[ q{fieldcrypt_internal.read_export('{}')}, '' ],
	[ q{fieldcrypt_internal.import_document('{}', true, true)}, '' ],
	[ q{fieldcrypt_internal.import_contents('{}', 1, 1)}, '' ],
	[ q{fieldcrypt_internal.record_origin(true, 'x')}, '' ],
	[ q{fieldcrypt_internal.write_origin(true, 'x')}, '' ],
	[ q{fieldcrypt_internal.renumber_key(1, 1)}, '' ],
	[ q{fieldcrypt_internal.key_problem(1)}, '' ])
{
	my ($call, $allowed) = @$case;
	my ($name) = $call =~ /^(\w+\.\w+)/;
	foreach my $role (qw(manager dumper app auditor))
	{
		$allowed =~ /$role/
		  ? gives($node, "SELECT count(*) > 0 FROM $call", 't', "$role may call $name", user => $role)
		  : refused($node, "SELECT count(*) > 0 FROM $call", '42501', "$role may not call $name", user => $role);
	}
}
refused($node, q{UPDATE fieldcrypt.origins SET is_confirmed = true}, 'KF015', 'nobody changes origins by hand');
refused($node, q{DELETE FROM fieldcrypt.origins}, 'KF015', 'nor deletes them');
refused($node, q{TRUNCATE fieldcrypt.origins}, 'KF015', 'nor empties them');
refused($node, q{INSERT INTO fieldcrypt.origins SELECT 99, now(), 'x', true, 'x', 1, 1, 1}, 'KF016', 'nor adds to them');

# What is here already.
gives($node, import_sql($document), '0|0|0|0|10', 'an import of what is there changes nothing');
gives($node, $keys, $before, 'no row of it');

# Documents that are refused.
my $content = decode_json($document);
sub changed
{
	my ($change) = @_;
	my $copy = decode_json($document);
	$change->($copy);
	return $json->encode($copy);
}
my @forged = (
	[ 'nothing', '', qr/line 1, column 0/ ],
	[ 'no JSON', 'x', qr/not the JSON of an export/ ],
	[ 'other JSON', '{"format": "backup", "version": 1}', qr/"format" is another's/ ],
	[ 'cut short', substr($document, 0, 2000), qr/not the JSON/ ],
	[ 'a later version', changed(sub { $_[0]{version} = 3; $_[0]{more} = [] }), qr/version 3 is unknown/ ],
	[ 'an unknown field', changed(sub { $_[0]{keys}[0]{more} = 1 }), qr/not the JSON/ ],
	[ 'no authentication', changed(sub { delete $_[0]{authentication} }), qr/no authentication/ ],
	[ 'an empty authentication', changed(sub { $_[0]{authentication} = [] }), qr/does not authenticate/ ],
	[ 'a forged state', changed(sub { $_[0]{keys}[0]{state} = $_[0]{keys}[0]{state} eq 'active' ? 'deactivated' : 'compromised' }), qr/was changed/ ],
	[ 'another tenant', changed(sub { $_[0]{keys}[0]{tenant} = 'mallory' }), qr/was changed/ ],
	[ 'another wrapped key', changed(sub { $_[0]{keys}[0]{wrapped_key} = $_[0]{keys}[1]{wrapped_key} }), qr/was changed/ ],
	[ 'a key less', changed(sub { shift @{ $_[0]{keys} } }), qr/was changed/ ],
	[ 'no keys', changed(sub { $_[0]{keys} = [] }), qr/was changed/ ],
	[ 'keys in another order', changed(sub { $_[0]{keys} = [ reverse @{ $_[0]{keys} } ] }), qr/id is not greater/ ],
	[ 'a key twice', changed(sub { unshift @{ $_[0]{keys} }, $_[0]{keys}[0] }), qr/id is not greater/ ],
	[ 'another database', changed(sub { $_[0]{database}{name} = 'another' }), qr/was changed/ ],
	[ 'another time', changed(sub { $_[0]{created_at} = '2030-01-01T00:00:00.000000Z' }), qr/was changed/ ],
	[ 'another current master key', changed(sub { $_[0]{master_keys}[0]{is_current} = JSON::PP::false }), qr/not exactly one/ ],
	[ 'confirmed states', changed(sub { $_[0]{states_confirmed} = $_[0]{states_confirmed} ? JSON::PP::false : JSON::PP::true }), qr/was changed/ ],
	[ 'a forged code', changed(sub { $_[0]{authentication}[0]{hmac_sha256} = '0' x 64 }), qr/was changed/ ]);
foreach my $case (@forged)
{
	my ($name, $text, $message) = @$case;
	refused($node, import_sql($text), 'KF021', $message, "$name: refused");
	refused($node, 'SELECT * FROM fieldcrypt.key_states_status(' . quoted($text) . ')', 'KF021', $message, "$name: refused in the status too") if $text ne '';
}
refused($node, 'SELECT fieldcrypt.import_keys(NULL)', '22004', 'NULL: refused');
refused($node, 'SELECT fieldcrypt.key_states_status(NULL)', '22004', 'NULL status: refused');
refused($node, 'SELECT fieldcrypt.confirm_key_states(NULL)', '22004', 'NULL reason: refused');
refused($node, q{SELECT fieldcrypt.confirm_key_states(' ')}, '22023', 'no reason: refused');
refused($node, 'BEGIN ISOLATION LEVEL REPEATABLE READ; ' . import_sql($document), '25001', qr/READ COMMITTED/, 'REPEATABLE READ: refused');
refused($node, 'BEGIN READ ONLY; ' . import_sql($document), '25006', qr/READ ONLY transaction can't write/, 'READ ONLY: refused');
refused($node, import_sql($document, ', apply_states => NULL'), '22004', 'apply_states NULL: refused');
gives($node, $keys, $before, 'refusals change nothing');

# Another master key.
use_key_file($node, $stranger);
$node->reload;
refused($node, import_sql($document), 'KF010', qr/belongs to master key [0-9A-F]{8}.*loaded: [0-9A-F]{8}/, 'another master key: refused');
refused($node, 'SELECT fieldcrypt.export_keys()', 'KF010', 'nor is exported');
gives($node, 'SELECT count(*), bool_or(ok), min(problem) FROM fieldcrypt.verify_keys()', qr/^10\|f\|keys in this database are wrapped by master key/, 'verify_keys says why, of every key');
use_key_file($node, $old);
$node->reload;

# Some keys lost, some damaged: all values are readable again, and again changes nothing.
gives($node, 'SELECT count(*), bool_and(ok) FROM fieldcrypt.verify_keys()', '10|t', 'all keys open');
lose(q{DELETE FROM fieldcrypt.encryption_keys WHERE tenant = 'acme'; UPDATE fieldcrypt.encryption_keys SET wrapped_key = set_byte(wrapped_key, 40, get_byte(wrapped_key, 40) # 1) WHERE tenant = 'default' AND version = 1});
gives($node, q{SELECT count(*), string_agg(format('%s %s %s', tenant, version, problem), ', ') FILTER (WHERE NOT ok) FROM fieldcrypt.verify_keys()}, qr/^8\|default 1 the wrapped encryption key \d+ is not authentic$/, 'verify_keys finds the damaged one and raises nothing');
gives($node, import_sql($document), '2|1|0|0|7', 'half-lost: imported and repaired');
gives($node, $keys, $before, 'half-lost: every row is what it was');
gives($node, $readable, '80', 'half-lost: every value readable');
gives($node, import_sql($document), '0|0|0|0|10', 'half-lost: again');
gives($node, q{SELECT event, reason LIKE '2 keys imported, 1 repaired, 0 restricted, 0 renumbered, from the export of %' FROM fieldcrypt.audit_log WHERE event = 'keys_imported' ORDER BY id DESC OFFSET 1 LIMIT 1}, 'keys_imported|t', 'recorded');
gives($node, q{SELECT item, hint ~ 'confirm_key_states' FROM fieldcrypt.key_states_status() WHERE NOT ok}, 'confirmation|t', 'states from an export are to be confirmed');
my $warned = run_sql($node, 'SELECT fieldcrypt.export_keys()');
like($warned->{err}, qr/WARNING:  KF023: .*not confirmed/, 'an export of unconfirmed states warns');
like($warned->{out}, qr/"states_confirmed":false/, 'and says so');
gives($node, q{SELECT fieldcrypt.confirm_key_states('compared')}, '', 'confirmed', user => 'manager');
gives($node, q{SELECT count(*) FILTER (WHERE NOT ok) FROM fieldcrypt.key_states_status()}, '0', 'and then all is well');
gives($node, q{SELECT actor, reason FROM fieldcrypt.audit_log WHERE event = 'key_states_confirmed' ORDER BY id DESC LIMIT 1}, 'manager|compared', 'confirmation recorded');

# All or nothing.
my $rolled_back = run_sql($node, 'BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM fieldcrypt.encryption_keys; SET LOCAL session_replication_role = origin; ' . import_sql($document) . '; ROLLBACK');
is($rolled_back->{out}, '10|0|0|0|0', 'imported in a transaction');
gives($node, $keys, $before, 'and rolled back');

# Conflicts, each with the key's id, and nothing imported.
sub conflict
{
	my ($change, $message, $name) = @_;
	my $result = run_sql($node, "BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM fieldcrypt.encryption_keys WHERE tenant LIKE 'Z%'; $change; SET LOCAL session_replication_role = origin; " . import_sql($document) . '; COMMIT');
	is(join(' ', @{ $result->{sqlstates} }), 'KF022', "$name: refused");
	like($result->{err}, $message, "$name: says which");
	gives($node, $keys, $before, "$name: nothing changed");
	return;
}
my ($first) = grep { $_->{tenant} eq 'default' && $_->{version} == 1 } @{ $content->{keys} };
my ($second) = grep { $_->{tenant} eq 'default' && $_->{version} == 2 } @{ $content->{keys} };
my $id = $first->{key_id};
conflict(qq{UPDATE fieldcrypt.encryption_keys SET key_check = '\\x00112233445566778899aabbccddeeff' WHERE key_id = $id}, qr/key $id of the export .* is not the key $id/, 'the same id, another check value');
conflict(qq{UPDATE fieldcrypt.encryption_keys SET tenant = 'another' WHERE key_id = $id}, qr/key $id /, 'the same id, another tenant');
conflict(qq{UPDATE fieldcrypt.encryption_keys SET version = 9 WHERE key_id = $id}, qr/key $id /, 'the same id, another version');
conflict(qq{UPDATE fieldcrypt.encryption_keys SET key_id = 4711 WHERE key_id = $id}, qr/key $id of the export is version 1 of tenant "default", which is key 4711/, 'the same version, another id');
conflict(qq{DELETE FROM fieldcrypt.encryption_keys WHERE key_id = $second->{key_id}; UPDATE fieldcrypt.encryption_keys SET state = 'active' WHERE key_id = $id}, qr/tenant "default" would have two active keys: $id here, and $second->{key_id}/, 'two active keys');

# A key that the application made after the others were lost: refused, or made a later version.
{
	lose(q{DELETE FROM fieldcrypt.encryption_keys WHERE tenant IN ('acme', 'default')});
	my $session = session($node);
	$session->value(q{INSERT INTO kept SELECT 500, 'acme', fieldcrypt.encrypt_field('500 of acme', tenant => 'acme')});
	value($node, q{CALL fieldcrypt.rotate_keys('acme')});
	$session->value(q{INSERT INTO kept SELECT 501, 'acme', fieldcrypt.encrypt_field('501 of acme', tenant => 'acme')});
	my $made = value($node, $keys);
	refused($node, import_sql($document), 'KF022', qr/key \d+ of the export is version 1 of tenant "acme", which is key \d+ in this database/, 'keys made meanwhile: refused');
	refused($node, import_sql($document, ', apply_states => true'), 'KF022', 'keys made meanwhile: apply_states is no way round');
	refused($node, import_sql($document, ', renumber => NULL'), '22004', 'keys made meanwhile: NULL refused');
	gives($node, $keys, $made, 'keys made meanwhile: nothing changed');
	gives($node, import_sql($document, ', renumber => true'), '4|0|0|2|6', 'keys made meanwhile: made later versions');
	gives($node, q{SELECT string_agg(version || ' ' || state, ', ' ORDER BY version) FROM fieldcrypt.encryption_keys WHERE tenant = 'acme'},
		'1 deactivated, 2 deactivated, 3 deactivated, 4 active', 'keys made meanwhile: the newest is the active one');
	gives($node, 'SELECT bool_and(ok) FROM fieldcrypt.verify_keys()', 't', 'keys made meanwhile: every key opens as its new version');
	gives($node, $readable, '82', 'keys made meanwhile: old and new values readable');
	$session->gives($readable, '82', 'keys made meanwhile: in the session that made one, too');
	$session->gives(q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => 'acme')) = (SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND version = 4)}, 't', 'keys made meanwhile: which goes on with the newest');
	$session->close;
	gives($node, import_sql($document, ', renumber => true'), '0|0|0|0|10', 'keys made meanwhile: again changes nothing');
	value($node, 'DELETE FROM kept WHERE id >= 500');
	lose(q{DELETE FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND version > 2; UPDATE fieldcrypt.encryption_keys SET state = 'active', deactivated_at = NULL WHERE tenant = 'acme' AND version = 2});
	gives($node, $keys, $before, 'back to the beginning');
}

# States: what a key is here, and what it becomes.
sub states
{
	my ($tenant) = @_;
	return value($node, "SELECT string_agg(state || coalesce('(' || suspended_from || ')', ''), ' ' ORDER BY version) FROM fieldcrypt.encryption_keys WHERE tenant = '$tenant'");
}
foreach my $state (qw(deactivated compromised suspended destroyed))
{
	my $erased = $state eq 'destroyed' ? ', wrapped_key = NULL' : '';
	lose("UPDATE fieldcrypt.encryption_keys SET state = '$state'$erased WHERE tenant = 'acme' AND version = 2");
	gives($node, import_sql($document), '0|0|0|0|10', "$state here, active in the export: unchanged");
	is(states('acme'), "deactivated $state", "$state stays $state");
	gives($node, import_sql($document, ', apply_states => true'), '0|0|0|0|10', "$state: nor with apply_states");
	is(states('acme'), "deactivated $state", "$state stays $state with apply_states");
	lose(q{DELETE FROM fieldcrypt.encryption_keys WHERE tenant = 'acme'}) if $state eq 'destroyed';
	value($node, import_sql($document)) if $state eq 'destroyed';
	lose(q{UPDATE fieldcrypt.encryption_keys SET state = 'active', deactivated_at = NULL WHERE tenant = 'acme' AND version = 2});
}

# An older version that was active in the export comes back deactivated.
{
	value($node, q{CALL fieldcrypt.rotate_keys('acme')});
	lose(q{DELETE FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND version < 3});
	gives($node, import_sql($document), '2|0|0|0|8', 'versions before the active one are imported');
	is(states('acme'), 'deactivated deactivated active', 'as deactivated ones');
	gives($node, $readable, '80', 'and are readable');
}

# What the log says of a key that is gone counts.
foreach my $case ([ 'key_destroyed', 'destroyed', 'KF005' ], [ 'key_suspended', 'suspended(active)', 'KF004' ], [ 'key_compromised', 'compromised', undef ])
{
	my ($event, $state, $sqlstate) = @$case;
	my $tenant = "after $event";
	value($node, "INSERT INTO kept SELECT 1000, '$tenant', fieldcrypt.encrypt_field('1000 of $tenant', tenant => '$tenant')");
	my $export = value($node, 'SELECT fieldcrypt.export_keys()');
	my $key = value($node, "SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = '$tenant'");
	value($node, "SELECT fieldcrypt_internal.record_event('$event', '$tenant', $key, 'test', NULL)");
	gives($node, "SELECT detail FROM fieldcrypt.key_states_status() WHERE item = 'key $key'", qr/is active here, and was \w+ by the audit log/, "$event in the log: flagged");
	lose("DELETE FROM fieldcrypt.encryption_keys WHERE tenant = '$tenant'");
	gives($node, import_sql($export), qr/^1\|0\|0\|/, "$event in the log: imported");
	is(states($tenant), $state, "$event in the log: as $state");
	defined $sqlstate
	  ? refused($node, 'SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE id = 1000', $sqlstate, "$event in the log: unreadable")
	  : gives($node, 'SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE id = 1000', "1000 of $tenant", "$event in the log: readable");
	value($node, 'DELETE FROM kept WHERE id = 1000');
}

# Two master keys: both vouch for it, both are needed to import, one to read.
{
	use_key_file($node, $old, $new);
	$node->reload;
	my $current = unpack 'H*', hkdf(pack('H*', $new), 'mek-fingerprint', 16);
	lose("UPDATE fieldcrypt.master_keys SET is_current = false; INSERT INTO fieldcrypt.master_keys VALUES ('\\x$current', true)");
	value($node, q{INSERT INTO kept SELECT 2000, 'second', fieldcrypt.encrypt_field('2000 of second', tenant => 'second')});
	my $export = value($node, 'SELECT fieldcrypt.export_keys()');
	is(scalar @{ decode_json($export)->{authentication} }, 2, 'two master keys authenticate');
	my $one = decode_json($export);
	$one->{authentication} = [ grep { $_->{master_key} ne $current } @{ $one->{authentication} } ];
	refused($node, import_sql($json->encode($one)), 'KF021', qr/does not authenticate/, 'the authentication of one taken away: refused');
	use_key_file($node, $old);
	$node->reload;
	refused($node, import_sql($export), 'KF010', qr/belongs to master key/, 'one of two loaded: not imported');
	gives($node, 'SELECT count(*) > 0 FROM fieldcrypt.key_states_status(' . quoted($export) . ')', 't', 'one of two loaded: compared');
	use_key_file($node, $new, $old);
	$node->reload;
	lose('TRUNCATE fieldcrypt.encryption_keys, fieldcrypt.master_keys');
	refused($node, 'SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE id = 1', 'KF003', 'all lost');
	gives($node, import_sql($export), qr/^\d\d\|0\|0\|0\|0$/, 'all lost: imported');
	gives($node, $readable, '81', 'all lost: every value readable');
	gives($node, q{SELECT is_current, encode(fingerprint, 'hex') FROM fieldcrypt.master_keys ORDER BY 1 DESC LIMIT 1}, "t|$current", 'the current master key is the current one');
	gives($node, q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('new', tenant => 'third'))}, 'new', 'and new keys are made');
}

# An export without keys, into a database without.
{
	create_database($node, 'fresh');
	my $empty = value($node, 'SELECT fieldcrypt.export_keys()', db => 'fresh');
	is(scalar @{ decode_json($empty)->{keys} }, 0, 'no keys: an export all the same');
	gives($node, import_sql($empty), '0|0|0|0|0', 'and imported', db => 'fresh');
	my $full = value($node, 'SELECT fieldcrypt.export_keys()');
	gives($node, import_sql($full), qr/^\d\d\|0\|0\|0\|0$/, 'into another database', db => 'fresh');
	refused($node, q{COPY fieldcrypt.encryption_keys FROM stdin; } . "\n\\.\n", 'KF016', 'and nothing is restored over it', db => 'fresh');
}

no_crash($node);
$node->stop;
done_testing();

# A typo makes no tenant: names that only look like another one are refused at every door, the log's own name too, and
# with create_keys_on_use off who may only encrypt makes no key at all. Keys that have such a name stay usable.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Protocol;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nmax_prepared_transactions = 5\n");
$ENV{PGCLIENTENCODING} = 'UTF8';
value($node, <<'SQL');
CREATE ROLE app LOGIN;
CREATE ROLE manager LOGIN;
SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt'), fieldcrypt.grant_access('manager', 'manage', 'encrypt', 'decrypt');
SELECT fieldcrypt.create_key('acme');
SQL
my $keys = q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE purpose = 'field'};

# Names that are refused, as SQL.
my %edge = (
	'a blank before' => q{' acme'}, 'a blank behind' => q{'acme '}, 'a blank only' => q{' '}, 'a no-break space' => q{U&'acme\00A0'}, 'an em space' => q{U&'\2003acme'},
	'an ideographic space' => q{U&'acme\3000'}, 'a zero width space' => q{U&'acme\200B'}, 'a byte order mark' => q{U&'\FEFFacme'}, 'a word joiner' => q{U&'acme\2060'},
	'a soft hyphen' => q{U&'acme\00AD'}, 'a Hangul filler' => q{U&'acme\3164'}, 'a Braille blank' => q{U&'\2800acme'}, 'a tag' => q{U&'acme\+0E0020'}, 'a left-to-right mark' => q{U&'acme\200E'});
my %control = (
	'a line end behind' => q{E'acme\n'}, 'a carriage return behind' => q{E'acme\r'}, 'a tab within' => q{E'ac\tme'}, 'an escape' => q{E'ac\x1b[31mme'}, 'a bell' => q{E'\x07acme'}, 'delete' => q{E'acme\x7f'},
	'a C1 control' => q{U&'ac\009Bme'}, 'next line' => q{U&'acme\0085'}, 'a line separator' => q{U&'ac\2028me'}, 'an override of direction' => q{U&'\202Eemca'}, 'an isolate' => q{U&'ac\2066me'});
my %refused = (%edge, %control, 'the name of the log' => q{'audit log'}, 'more than 1024 bytes' => q{repeat('t', 1025)}, 'more bytes than characters' => q{repeat('ü', 513)});
my @doors = (
	[ "SELECT fieldcrypt.encrypt_field('x', 'c', NAME)", 'app' ], [ "SELECT fieldcrypt.encrypt_field_bytea('x', tenant => NAME)", 'app' ], [ "SELECT fieldcrypt.encrypt_field_jsonb('1', 'c', NAME)", 'app' ],
	[ "PREPARE p (text) AS SELECT fieldcrypt.encrypt_field('x', 'c', \$1); EXECUTE p (NAME)", 'app' ],
	[ "SELECT set_config('fieldcrypt.tenant', NAME, false)", 'app' ], [ "SELECT set_config('fieldcrypt.tenant', NAME, true)", 'app' ], [ 'BEGIN; SELECT fieldcrypt.lock_tenant(NAME)', 'app' ],
	[ 'SELECT fieldcrypt.create_key(NAME)', 'manager' ], [ 'CALL fieldcrypt.rotate_keys(NAME, force => true)', 'manager' ], [ "SELECT fieldcrypt.set_rotation_policy(NAME, '1 year')", 'manager' ]);
my $before = value($node, $keys);
foreach my $what (sort keys %refused)
{
	my $message = exists $edge{$what} ? qr/neither begins nor ends with a blank/ : exists $control{$what} ? qr/no control characters/ : $what eq 'the name of the log' ? qr/is no tenant's name/ : qr/1 to 1024 bytes/;
	foreach my $door (@doors)
	{
		my ($sql, $user) = @$door;
		my $like = $sql =~ /set_config/ ? qr/invalid value for parameter "fieldcrypt.tenant".*DETAIL/s : $message;
		refused($node, $sql =~ s/NAME/$refused{$what}/r, '22023', $like, "$what: $sql", user => $user);
	}
	refused($node, "ALTER ROLE app SET fieldcrypt.tenant = $refused{$what}", '22023', "$what: ALTER ROLE") if $refused{$what} =~ /^'/;
}
gives($node, $keys, $before, 'none of them has a key');
gives($node, 'SELECT count(*) FROM fieldcrypt.rotation_policies', '0', 'none of them has a policy');
refused($node, $_->[0], $_->[1], $_->[0], user => 'manager')
  foreach [ q{CALL fieldcrypt.shred_tenant('acme ', 'typo')}, 'KF019' ], [ q{SELECT fieldcrypt.compliance_report('acme ')}, '22023' ], [ q{CALL fieldcrypt.rotate_keys('acme ')}, '22023' ], [ q{SELECT fieldcrypt.set_rotation_policy('', '1 year')}, '22023' ];

# Names that are names.
foreach my $name (q{'Praxis Müller'}, q{'a  b'}, q{'audit'}, q{'Audit Log'}, q{U&'\4E2D\6587'}, q{'x''; DROP TABLE t; --'}, q{repeat('u', 1024)}, q{'default'}, q{'4711'}, q{U&'\+01F469\200D\+01F467'}, q{U&'\2764\FE0F'})
{
	gives($node, "SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', 'c', $name), 'c'), set_config('fieldcrypt.tenant', $name, false) = $name", 'x|t', "a name: $name", user => 'app');
}
{
	my $client = Protocol->new(host => $node->host, port => $node->port, user => 'app');
	like($client->pipeline([ q{SELECT fieldcrypt.encrypt_field('x', 'c', $1)}, $_ ])->[0], qr/^error 22023/, 'a bound parameter: ' . s/[^ -~]/?/gr) foreach ' acme', "acme\n", "acme\xC2\xA0", 'audit log';
	$client->close;
	my $log_in = eval { Protocol->new(host => $node->host, port => $node->port, user => 'app', startup => { 'fieldcrypt.tenant' => 'acme ' }) };
	ok(!$log_in, "a client's own options: refused");
}

# Keys that have such names: read, rotated, re-encrypted, exported, shredded.
my $odd = slurp_file('../vectors/odd-tenants.json') =~ s/'/''/gr;
value($node, "SELECT fieldcrypt.import_keys('$odd'); SELECT fieldcrypt.confirm_key_states('imported')");
my $odd_tenants = q{SELECT tenant FROM fieldcrypt.encryption_keys WHERE key_id BETWEEN 1001 AND 1008};
gives($node, "SELECT count(*) FROM ($odd_tenants) AS t", '8', 'an import brings keys of such names');
gives($node, 'SELECT count(*) FILTER (WHERE ok), count(*) FILTER (WHERE NOT ok) FROM fieldcrypt.verify_keys() WHERE key_id < 2000', '8|0', 'they open');
value($node, "CREATE TABLE odd AS SELECT tenant, fieldcrypt.encrypt_field('of ' || tenant, 'c', tenant) AS v FROM ($odd_tenants) AS t");
gives($node, q{SELECT count(*) FROM odd WHERE fieldcrypt.decrypt_field(v, 'c') = 'of ' || tenant AND fieldcrypt.key_id(v) < 2000}, '8', 'values of before are read, and new ones are of the same tenant', );
value($node, q{SELECT fieldcrypt.set_column_context('odd', 'v', 'c'); CALL fieldcrypt.rotate_keys(' acme', force => true); CALL fieldcrypt.rotate_keys(force => true); CALL fieldcrypt.reencrypt('odd')});
gives($node, q{SELECT count(*) FROM odd WHERE fieldcrypt.decrypt_field(v, 'c') = 'of ' || tenant AND fieldcrypt.key_id(v) > 2000}, '8', 'they are rotated and re-encrypted');
gives($node, q{SELECT count(*) FROM fieldcrypt.rotation_log WHERE outcome = 'failed' AND old_key_id BETWEEN 1001 AND 1008}, '0', 'no rotation of them failed');
value($node, q{SELECT fieldcrypt.set_rotation_policy(' acme', '1 year'); SELECT fieldcrypt.set_rotation_policy(' acme', NULL)});
gives($node, q{SELECT fieldcrypt.compliance_report('audit log') IS NOT NULL}, 't', 'a report about one');
configure($node, 'fieldcrypt.require_approval' => '');
my $log_keys = value($node, q{SELECT array_agg(key_id ORDER BY key_id) FROM fieldcrypt.encryption_keys WHERE purpose = 'audit' AND state = 'active'});
value($node, q{CALL fieldcrypt.shred_tenant('audit log', 'they left'); CALL fieldcrypt.shred_tenant(' acme', 'a typo')});
refused($node, "SELECT fieldcrypt.decrypt_field(v, 'c') FROM odd WHERE tenant = $_", 'KF005', "$_ is shredded") foreach q{'audit log'}, q{' acme'};
gives($node, q{SELECT array_agg(key_id ORDER BY key_id) FROM fieldcrypt.encryption_keys WHERE purpose = 'audit' AND state = 'active'}, $log_keys, "the log's own key is another");
gives($node, q{SELECT fieldcrypt.decrypt_field(v, 'c') FROM odd WHERE tenant = 'acme '}, 'of acme ', 'the others are there');
configure($node);

# Keys are made by create_key alone.
configure($node, 'fieldcrypt.create_keys_on_use' => 'off');
$before = value($node, $keys);
foreach my $encrypt (q{encrypt_field('x', 'c', 'acmee')}, q{encrypt_field_bytea('x', 'c', 'acmee')}, q{encrypt_field_jsonb('1', 'c', 'acmee')}, q{encrypt_field('x', 'c', 'tenant ' || i)})
{
	refused($node, "SELECT fieldcrypt.$encrypt FROM generate_series(1, 4000) AS i", 'KF007', qr/has no encryption key.*HINT:.*create_keys_on_use is off.*create_key\(tenant\)/s, "off: $encrypt", user => $_)
	  foreach 'app', 'manager';
}
refused($node, q{SET fieldcrypt.tenant = 'acmee'; SELECT fieldcrypt.encrypt_field('x')}, 'KF007', "off: the session's tenant", user => 'app');
refused($node, q{BEGIN; SELECT fieldcrypt.lock_tenant('acmee'); SELECT fieldcrypt.encrypt_field('x')}, 'KF007', 'off: a locked tenant', user => 'app');
refused($node, q{CREATE TEMP TABLE c (v fieldcrypt.encrypted DEFAULT fieldcrypt.encrypt_field('x', '', 'acmee')); COPY c (v) FROM PROGRAM 'echo'; INSERT INTO c DEFAULT VALUES}, 'KF001 KF007', 'off: a DEFAULT');
refused($node, q{BEGIN READ ONLY; SELECT fieldcrypt.encrypt_field('x', '', 'acmee')}, 'KF007', 'off: in a READ ONLY transaction', user => 'app');
refused($node, q{SELECT fieldcrypt.encrypt_field('x', '', 'new ')}, '22023', 'off: a name that can be none', user => 'app');
gives($node, $keys, $before, 'off: no key was made');
gives($node, q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', 'c', 'acme'), 'c')}, 'x', 'off: a tenant that has a key', user => 'app');
refused($node, q{SELECT fieldcrypt.create_key('new')}, '42501', 'off: who may only encrypt', user => 'app');
gives($node, q{SELECT fieldcrypt.create_key('new') > 0}, 't', 'off: who manages keys', user => 'manager');
gives($node, q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', 'c', 'new'), 'c')}, 'x', 'off: then it is there', user => 'app');
# Neither does any other way that makes keys.
my $first = qr/tenant "mistyped" has no encryption key.*HINT:.*create_keys_on_use is off.*SELECT fieldcrypt\.create_key\(tenant\)/s;
foreach my $call (q{CALL fieldcrypt.rotate_keys('mistyped')}, q{CALL fieldcrypt.rotate_keys('mistyped', force => true)}, q{CALL fieldcrypt.rotate_keys('mistyped', 'x', true)},
	q{SELECT fieldcrypt.rotate_key('mistyped')}, q{BEGIN; SELECT fieldcrypt.rotate_key('mistyped', 'x')}, q{SELECT fieldcrypt.set_rotation_policy('mistyped', '1 day')})
{
	refused($node, $call, 'KF007', $first, "off: $call", user => 'manager');
	refused($node, $call, 'KF007', $first, "off: a superuser: $call");
}
unlike(run_sql($node, q{SELECT fieldcrypt.rotate_key('mistyped')})->{err}, qr/CALL/, 'off: the hint is nothing that a transaction can not do');
value($node, q{SELECT fieldcrypt.set_rotation_policy('mistyped', NULL); SELECT fieldcrypt.set_rotation_policy(NULL, '80 days'); SELECT fieldcrypt.set_rotation_policy(NULL, NULL)}, user => 'manager');
gives($node, q{SELECT (SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = 'mistyped'), (SELECT count(*) FROM fieldcrypt.rotation_policies)}, '0|0', 'off: no key and no policy for it');
value($node, q{CALL fieldcrypt.rotate_keys('new', force => true); SELECT fieldcrypt.rotate_key('new'); SELECT fieldcrypt.set_rotation_policy('new', '1 year'); SELECT fieldcrypt.set_rotation_policy('new', NULL)}, user => 'manager');
gives($node, q{SELECT max(version) FROM fieldcrypt.encryption_keys WHERE tenant = 'new' AND state = 'active'}, '3', 'off: rotation goes on');
gives($node, q{SELECT fieldcrypt.key_id(fieldcrypt.reencrypt_field(v, 'c')) > 0 FROM odd WHERE tenant = 'acme '}, 't', 'off: so does re-encryption');
value($node, q{SELECT fieldcrypt.suspend_key(key_id, 'look') FROM fieldcrypt.encryption_keys WHERE tenant = 'new' AND state = 'active'}, user => 'manager');
refused($node, q{SELECT fieldcrypt.encrypt_field('x', 'c', 'new')}, 'KF007', qr/has no active encryption key.*HINT:.*resume_key.*outside a transaction block/s, 'off: a tenant whose keys are suspended', user => 'app');
refused($node, q{SELECT fieldcrypt.rotate_key('new')}, 'KF007', qr/has no active encryption key/, 'off: in a transaction it gets no new one');
value($node, q{CALL fieldcrypt.rotate_keys('new', force => true)}, user => 'manager');
gives($node, q{SELECT max(version) FROM fieldcrypt.encryption_keys WHERE tenant = 'new' AND state = 'active'}, '4', 'off: by force it gets one');
{
	# A key that is not committed yet is none for others, and none at all if it is rolled back.
	my $maker = session($node, user => 'manager');
	$maker->value(q{BEGIN; SELECT fieldcrypt.create_key('soon')});
	$maker->gives(q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', 'c', 'soon'), 'c')}, 'x', 'off: its own transaction uses it');
	refused($node, q{SET statement_timeout = '30s'; SELECT fieldcrypt.encrypt_field('x', 'c', 'soon')}, 'KF007', 'off: others do not wait for it', user => 'app');
	$maker->value('ROLLBACK');
	$maker->refused(q{SELECT fieldcrypt.encrypt_field('x', 'c', 'soon')}, 'KF007', 'off: rolled back, it is gone');
	$maker->value(q{BEGIN; SELECT fieldcrypt.create_key('soon'); PREPARE TRANSACTION 'k'});
	refused($node, q{SELECT fieldcrypt.encrypt_field('x', 'c', 'soon')}, 'KF007', 'off: prepared, it is not there yet', user => 'app');
	value($node, q{COMMIT PREPARED 'k'});
	gives($node, q{SELECT fieldcrypt.encrypt_field('x', 'c', 'soon') IS NOT NULL}, 't', 'off: committed, it is', user => 'app');
	$maker->close;
}
refused($node, $_, '42501', "not everybody's: $_", user => 'app') foreach 'SET fieldcrypt.create_keys_on_use = on', q{SELECT set_config('fieldcrypt.create_keys_on_use', 'on', true)};
configure($node);
gives($node, q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', 'c', 'acmee'), 'c')}, 'x', 'on again: the first use makes it', user => 'app');
refused($node, q{SELECT fieldcrypt.rotate_key('never')}, 'KF007', qr/never had an encryption key.*HINT:.*SELECT fieldcrypt\.create_key\(tenant\)/s, 'on again: what has no key is not rotated');
value($node, q{CALL fieldcrypt.rotate_keys('forced', force => true)}, user => 'manager');
gives($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = 'forced' AND state = 'active'}, '1', 'on again: by force it gets one');

# Health: values that nobody named a tenant for.
my $health = q{SELECT status || ': ' || detail FROM fieldcrypt.health(THOROUGH) WHERE "check" = 'default_tenant'};
create_database($node, 'h');
my @h = (db => 'h');
gives($node, $health =~ s/THOROUGH//r, 'ok: the tenant "default" has no keys', 'health: nothing yet', @h);
value($node, q{CREATE TABLE t AS SELECT fieldcrypt.encrypt_field('x') AS v}, @h);
gives($node, $health =~ s/THOROUGH//r, 'ok: there is no tenant but "default"', 'health: one tenant', @h);
value($node, q{INSERT INTO t SELECT fieldcrypt.encrypt_field('x', '', 'acme')}, @h);
gives($node, $health =~ s/THOROUGH//r, qr/^warning: the tenant "default" has keys beside one other tenant/, 'health: beside another', @h);
gives($node, $health =~ s/THOROUGH/true/r, qr/^warning: the tenant "default" has 1 value\(s\) in public\.t\.v beside one other tenant/, 'health: counted', @h);
gives($node, q{SELECT hint FROM fieldcrypt.health() WHERE "check" = 'default_tenant'}, qr/fieldcrypt\.require_tenant.*docs\/poolers\.md/, 'health: what to do', @h);
configure($node, 'fieldcrypt.health_accepted' => 'default_tenant');
gives($node, $health =~ s/THOROUGH//r, qr/^ok: accepted by/, 'health: accepted', @h);
configure($node);
value($node, q{DELETE FROM t WHERE fieldcrypt.key_id(v) = fieldcrypt.create_key('default')}, @h);
gives($node, $health =~ s/THOROUGH/true/r, 'ok: the tenant "default" has keys, and no values', 'health: no values', @h);

# Other encodings: what can't be seen there, either.
foreach my $encoding (qw(LATIN1 WIN1252 EUC_JP SQL_ASCII))
{
	my $db = lc $encoding;
	create_database($node, $db, with => "TEMPLATE template0 ENCODING '$encoding' LOCALE 'C'");
	foreach my $name (q{' acme'}, q{E'acme\n'}, q{'audit log'}, $encoding =~ /^[LW]/ ? q{'acme' || convert_from('\xa0', getdatabaseencoding())} : q{'acme '})
	{
		refused($node, "SELECT fieldcrypt.encrypt_field('x', '', $name)", '22023', "$encoding: $name", db => $db);
		next if $name =~ /xa0/;
		refused($node, "SELECT set_config('fieldcrypt.tenant', $name, false)", '22023', "$encoding: $name as the session's", db => $db);
	}
}
gives($node, q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', '', t)), set_config('fieldcrypt.tenant', t, false) = t FROM (SELECT convert_from('\xc2ad', 'EUC_JP')) AS n (t)}, 'x|t', 'EUC_JP: a letter whose bytes would be an invisible character in UTF-8', db => 'euc_jp');

no_crash($node);
$node->stop;
done_testing();

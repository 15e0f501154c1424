# fieldcrypt.tenant does not reach the workers of Citus by itself, and there another tenant's values decrypt. Whoever sets
# it so that it stays here is warned, once a session. Catalogs that look like Citus's stand for Citus (276).

use strict;
use warnings;

use FieldcryptTest;
use OtherNodes;
use Test::More;

my $node = new_cluster('coordinator', conf => "allow_system_table_mods = on\nshared_preload_libraries = 'pg_fieldcrypt'\n");
my $alone = create_database($node, 'alone');
look_like_citus($node, 0);
value($node, q{CREATE FUNCTION of_tenant() RETURNS text LANGUAGE sql SET fieldcrypt.tenant = 'acme' AS $$ SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x')) $$});
value($node, q{SELECT fieldcrypt.create_key('acme')});

my $warning = qr/WARNING: +01000: fieldcrypt\.tenant holds on this node only/;

# A test: SQL in a session of its own is warned of so many times.
sub warned
{
	my ($times, $sql, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $result = run_sql($node, $sql, %options);
	my $seen = () = $result->{err} =~ /$warning/g;
	diag $result->{err} if $seen != $times || @{ $result->{sqlstates} };
	return is("$seen @{ $result->{sqlstates} }", "$times ", $name);
}

my $taken = q{SET citus.propagate_set_commands = 'local'};
warned(1, q{SET fieldcrypt.tenant = 'acme'}, 'SET');
warned(1, q{SET fieldcrypt.tenant = 'acme'; SET fieldcrypt.tenant = 'b'; SELECT set_config('fieldcrypt.tenant', 'c', false)}, 'once a session');
warned(1, q{SELECT set_config('fieldcrypt.tenant', 'acme', false)}, 'set_config');
warned(1, q{BEGIN; SELECT set_config('fieldcrypt.tenant', 'acme', true); COMMIT}, 'set_config for the transaction');
warned(1, q{BEGIN; SET LOCAL fieldcrypt.tenant = 'acme'; COMMIT}, 'SET LOCAL, where Citus takes nothing along');
warned(1, q{BEGIN; SELECT fieldcrypt.lock_tenant('acme'); COMMIT}, 'lock_tenant');
warned(1, q{DO $$ BEGIN SET LOCAL fieldcrypt.tenant = 'acme'; END $$}, 'SET LOCAL in DO');
warned(1, 'SELECT of_tenant()', 'a function with a SET clause');
warned(1, q{SELECT fieldcrypt.encrypt_field('x')}, 'set by the client when it connected', env => { PGOPTIONS => '-c fieldcrypt.tenant=acme' });
warned(1, "$taken; SET fieldcrypt.tenant = 'acme'", 'SET, where Citus takes SET LOCAL along');
warned(1, "$taken; SET LOCAL fieldcrypt.tenant = 'acme'", 'SET LOCAL that ends with its statement');
warned(1, "$taken; BEGIN; SELECT set_config('fieldcrypt.tenant', 'acme', true); COMMIT", 'set_config, which it never does');
warned(1, "$taken; BEGIN; SELECT fieldcrypt.lock_tenant('acme'); COMMIT", 'nor lock_tenant');

warned(0, "$taken; BEGIN; SET LOCAL fieldcrypt.tenant = 'acme'; SELECT fieldcrypt.encrypt_field('x'); COMMIT", 'SET LOCAL that Citus takes along');
warned(0, "$taken; DO \$\$ BEGIN SET LOCAL fieldcrypt.tenant = 'acme'; END \$\$", 'the same in DO');
warned(0, q{RESET fieldcrypt.tenant; SET fieldcrypt.tenant = ''; SELECT set_config('fieldcrypt.tenant', NULL, false)}, 'no tenant');
warned(0, q{SET fieldcrypt.tenant = 'acme'}, 'a database without Citus', db => $alone);
warned(0, q{SELECT fieldcrypt.encrypt_field('x')}, 'the same, set when it connected', db => $alone, env => { PGOPTIONS => '-c fieldcrypt.tenant=acme' });
warned(0, q{SET application_name = 'citus_internal gpid=10000000123'; BEGIN; SET LOCAL fieldcrypt.tenant = 'acme'; COMMIT}, 'a node that was told to take it along');
like(run_sql($node, q{SET fieldcrypt.tenant = 'acme'})->{err}, qr/HINT: .*citus\.propagate_set_commands = 'local'.*SET LOCAL fieldcrypt\.tenant/, 'the hint says what reaches workers');

my $failed = run_sql($node, "$taken; BEGIN; SET LOCAL fieldcrypt.tenant = ' a blank'; ROLLBACK; SELECT set_config('fieldcrypt.tenant', 'acme', false)");
is("@{ $failed->{sqlstates} }", '22023', 'a SET LOCAL that fails');
like($failed->{err}, $warning, 'does not pass for the next setting');

# It is only said: the setting holds.
my $session = session($node);
$session->value(q{SET fieldcrypt.tenant = 'acme'});
$session->refused(q{SELECT fieldcrypt.encrypt_field('x', tenant => 'other')}, 'KF006', 'here the tenant holds');
$session->close;

no_crash($node);
$node->stop;
done_testing();
